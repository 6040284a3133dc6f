//! A proxy in this process, from policies.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
};

use towpath_proxy::{Config, Running, SourceConfig};

/// A proxy with one worker that obeys a folder of policies; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where its listener is.
    pub address: SocketAddr,
    /// The proxy itself.
    pub running: Running,
    _folder: tempfile::TempDir,
}

impl Proxy {
    /// Starts one in front of `origins`, which speak `protocol` (as in a policy:
    /// `HTTP`, `HTTP2`, `FOLLOW` or `TCP`).
    ///
    /// # Panics
    /// When it does not start.
    pub async fn before(protocol: &str, origins: &[SocketAddr]) -> Self {
        Self::with(protocol, origins, "").await
    }

    /// As [`Proxy::before`], with more policy documents.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn with(protocol: &str, origins: &[SocketAddr], more: &str) -> Self {
        let port = listener_port();
        Self::start(port, &format!("{}{more}", policies(port, protocol, origins))).await
    }

    /// Starts one that listens on `port` as `policies` say.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(port: u16, policies: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("mesh.yaml"), policies).expect("writable");
        let source =
            SourceConfig::Folder { folder: folder.path().to_owned(), node: Default::default() };
        let running = towpath_proxy::start(Config::new(source)).await.expect("the proxy starts");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { address, running, _folder: folder }
    }
}

/// Policies of a gateway on `port` whose every request or connection goes to
/// the service `origin`. No endpoint is ever ejected, so that a case leaves
/// nothing behind for the next.
pub fn policies(port: u16, protocol: &str, origins: &[SocketAddr]) -> String {
    let (listener, route) = match protocol {
        "TCP" => ("TCP", "TCPRoute"),
        _ => ("HTTP", "HTTPRoute"),
    };
    let mut text = format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, annotations: {{towpath.dev/bind: 127.0.0.1}}}}
spec:
  gatewayClassName: towpath
  listeners:
  - {{name: all, port: {port}, protocol: {listener}}}
---
apiVersion: gateway.networking.k8s.io/{}
kind: {route}
metadata: {{name: all}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - backendRefs: [{{name: origin}}]
---
apiVersion: towpath.dev/v1alpha1
kind: BreakerPolicy
metadata: {{name: origin}}
spec:
  targetRefs: [{{kind: Service, name: origin}}]
  outlier: {{disabled: true}}
---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: origin}}
spec:
  protocol: {protocol}
  endpoints:
",
        if protocol == "TCP" { "v1alpha2" } else { "v1" },
    );
    for (n, origin) in origins.iter().enumerate() {
        let _ = writeln!(text, "  - {{name: e{n}, address: \"{origin}\"}}");
    }
    text
}

/// A port for a listener. Taken below the ephemeral range, where no outgoing
/// connection of a test running beside can take it first.
///
/// # Panics
/// When none is free.
pub fn listener_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 11_000 + (std::process::id() % 200) as u16 * 100;
    for _ in 0..2000 {
        let port = 11_000 + (base - 11_000 + NEXT.fetch_add(1, Ordering::Relaxed)) % 21_000;
        if std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port below the ephemeral range");
}
