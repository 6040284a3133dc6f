//! A control plane and a proxy in this process, and policies to give them.
#![allow(dead_code, reason = "every test program uses its own part of it")]

use std::{net::SocketAddr, time::Duration};

use towpath_control_plane as plane;
use towpath_policies::model::Node;
use towpath_proxy as proxy;
use towpath_tests::Repository;

/// A control plane that follows a repository, on free ports.
pub(crate) async fn control_plane(repository: &Repository) -> plane::Running {
    control_plane_asking(repository, Duration::from_secs(10)).await
}

/// As [`control_plane`], one that wants load reports so often.
pub(crate) async fn control_plane_asking(
    repository: &Repository,
    load_report_interval: Duration,
) -> plane::Running {
    let path = repository.path();
    let source = plane::source::SourceSpec::parse(path.to_str().expect("utf-8"), None, None)
        .expect("a path is a source");
    let mut config = plane::Config::new(source);
    config.poll = Duration::from_secs(3600);
    config.load_report_interval = load_report_interval;
    plane::start(config).await.expect("the control plane starts")
}

/// A proxy that obeys an xDS server.
pub(crate) async fn proxy_by_xds(address: &str) -> proxy::Running {
    proxy_called("proxy-1", address).await
}

/// As [`proxy_by_xds`], under this name.
pub(crate) async fn proxy_called(id: &str, address: &str) -> proxy::Running {
    let node = Node { id: id.into(), cluster: "edge".into(), sidecar: false };
    let source =
        proxy::SourceConfig::ControlPlane { address: address.into(), node, cache_dir: None };
    proxy::start(proxy::Config::new(source)).await.expect("the proxy starts")
}

/// The quickstart on this port with these two endpoints.
pub(crate) fn quickstart(port: u16, first: SocketAddr, second: SocketAddr) -> String {
    let text = include_str!("../../../examples/quickstart/mesh.yaml");
    let text = text.replace("port: 8080", &format!("port: {port}"));
    if first == second {
        // The same address twice is refused, rightly: leave the second endpoint out.
        let (before, after) = text.split_once("  - name: eu-west-1").expect("a second endpoint");
        let after = after.split_once("---").expect("another document").1;
        return format!("{before}---{after}").replace("127.0.0.1:9001", &first.to_string());
    }
    text.replace("127.0.0.1:9001", &first.to_string())
        .replace("127.0.0.1:9002", &second.to_string())
}

/// A gRPC service with these endpoints, and nothing else.
pub(crate) fn grpc_service(endpoints: &[SocketAddr]) -> String {
    let mut text = String::from(
        "apiVersion: towpath.dev/v1alpha1\nkind: Service\nmetadata: {name: etl}\nspec:\n  protocol: GRPC\n  endpoints:\n",
    );
    for endpoint in endpoints {
        text.push_str(&format!("  - address: {endpoint}\n"));
    }
    text
}
