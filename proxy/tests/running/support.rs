//! Proxies, origins and clients for the tests.

use std::{
    fmt::Write as _,
    future::Future,
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::AbortHandle,
};
use towpath_policies::model::*;
use towpath_proxy::{Config, Running, SourceConfig};

/// A proxy without configuration.
pub(crate) async fn proxy() -> Running {
    towpath_proxy::start(Config::new(SourceConfig::Manual)).await.unwrap()
}

/// A proxy that obeys `world`.
pub(crate) async fn proxy_with(world: World) -> Running {
    let proxy = proxy().await;
    proxy.apply(world.build("v1")).unwrap();
    proxy
}

/// Describes a snapshot.
#[derive(Clone, Default)]
pub(crate) struct World(Snapshot);

impl World {
    pub(crate) fn service(self, name: &str, protocol: Protocol, at: &[SocketAddr]) -> Self {
        self.service_with(Service::new(name, protocol), at)
    }

    pub(crate) fn service_with(self, service: Service, at: &[SocketAddr]) -> Self {
        self.service_of(service, at.iter().copied().map(Endpoint::new).collect())
    }

    pub(crate) fn service_of(mut self, service: Service, endpoints: Vec<Endpoint>) -> Self {
        let name = service.name.clone();
        let set = EndpointSet::new(name.clone(), endpoints);
        self.0.endpoints.insert(name.clone(), Arc::new(set));
        self.0.services.insert(name, Arc::new(service));
        self
    }

    /// What is known of the region in which the endpoints of a service stand.
    pub(crate) fn region(mut self, service: &str, name: &str, region: Region) -> Self {
        let set = self.0.endpoints.get_mut(service).map(Arc::make_mut).unwrap();
        for endpoint in &mut set.endpoints {
            name.clone_into(&mut endpoint.locality.region);
        }
        set.regions.insert(name.to_owned(), region);
        self
    }

    /// An opaque listener that sends everything to one service.
    pub(crate) fn tcp(self, listener: &str, service: &str) -> Self {
        self.listener(listener, vec![Chain::new(vec![], None, tcp(service))])
    }

    /// An HTTP listener that sends everything to one service.
    pub(crate) fn http(mut self, listener: &str, service: &str) -> Self {
        self.0.routes.insert(listener.into(), Arc::new(all_to(listener, service)));
        let kind = http(listener);
        self.listener(listener, vec![Chain::new(vec![], None, kind)])
    }

    /// As [`Self::http`], for freight of this class.
    pub(crate) fn http_of(self, class: Class, listener: &str, service: &str) -> Self {
        let mut world = self.http(listener, service);
        let table = world.0.routes.get_mut(listener).map(Arc::make_mut).unwrap();
        if let Action::Forward(forward) = &mut table.virtual_hosts[0].routes[0].action {
            forward.transfer.class = class;
        }
        world
    }

    pub(crate) fn routes(mut self, table: &str, service: &str) -> Self {
        self.0.routes.insert(table.into(), Arc::new(all_to(table, service)));
        self
    }

    pub(crate) fn listener(self, name: &str, chains: Vec<Chain>) -> Self {
        self.listener_at(name, local(0), chains)
    }

    pub(crate) fn listener_at(mut self, name: &str, at: SocketAddr, chains: Vec<Chain>) -> Self {
        let listener = Listener {
            name: name.into(),
            bind: Bind::Socket(at),
            chains,
            location: Location::default(),
            proxy_protocol: None,
        };
        self.0.listeners.insert(name.into(), Arc::new(listener));
        self
    }

    /// Load balancers before this listener say who the client is.
    pub(crate) fn introduced(mut self, listener: &str, terms: Option<ProxyProtocol>) -> Self {
        Arc::make_mut(self.0.listeners.get_mut(listener).unwrap()).proxy_protocol = terms;
        self
    }

    /// The proxy stands there, its listeners say.
    pub(crate) fn located(mut self, location: &Location) -> Self {
        for listener in self.0.listeners.values_mut() {
            Arc::make_mut(listener).location = location.clone();
        }
        self
    }

    pub(crate) fn build(self, version: &str) -> Arc<Snapshot> {
        Arc::new(Snapshot { version: version.into(), ..self.0 })
    }
}

pub(crate) fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

pub(crate) fn tcp(service: &str) -> ChainKind {
    ChainKind::Tcp(TcpForward { backends: vec![backend(service, 1)], idle_timeout: None })
}

pub(crate) fn http(route_table: &str) -> ChainKind {
    ChainKind::Http { route_table: route_table.into(), options: HttpOptions::default() }
}

pub(crate) fn backend(service: &str, weight: u32) -> WeightedBackend {
    WeightedBackend { weight, ..WeightedBackend::new(service) }
}

fn all_to(table: &str, service: &str) -> RouteTable {
    let route = Route {
        name: format!("{table}/all"),
        matches: RouteMatch::everything(),
        action: Action::Forward(Forward::to(vec![WeightedBackend::new(service)])),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    };
    let host = VirtualHost { name: "all".into(), domains: vec!["*".into()], routes: vec![route] };
    RouteTable { name: table.into(), virtual_hosts: vec![host] }
}

/// The program itself, in a process of its own.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) admin: SocketAddr,
}

impl Program {
    /// What starts it on the policies in this folder; what it says is piped.
    pub(crate) fn command(policies: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath-proxy"));
        command
            .args(["--admin", "127.0.0.1:0", "--workers", "2", "--die-with-parent", "--policies"])
            .arg(policies)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts it, and waits until it serves.
    pub(crate) async fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
        let admin = line.trim_end().strip_prefix("ready admin=").expect(&line).parse().unwrap();
        Self { child, admin }
    }
}

/// Policies of a gateway with one listener for each of these protocols, `TCP` or `HTTP`, which
/// sends everything to one endpoint. Listener, route and service have the protocol's name, in
/// small letters. The port is 0 in no policy file, so the test brings one that was free a moment ago.
pub(crate) fn policies(listeners: &[(&str, u16, SocketAddr)]) -> String {
    let mut text = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, annotations: {towpath.dev/bind: "127.0.0.1"}}
spec:
  gatewayClassName: towpath
  listeners:
"#
    .to_owned();
    for (protocol, port, _) in listeners {
        let name = protocol.to_lowercase();
        writeln!(text, "  - {{name: {name}, port: {port}, protocol: {protocol}}}").unwrap();
    }
    for (protocol, _, endpoint) in listeners {
        let name = protocol.to_lowercase();
        let version = if *protocol == "TCP" { "v1alpha2" } else { "v1" };
        write!(
            text,
            r#"---
apiVersion: gateway.networking.k8s.io/{version}
kind: {protocol}Route
metadata: {{name: {name}}}
spec:
  parentRefs: [{{name: edge, sectionName: {name}}}]
  rules:
  - backendRefs: [{{name: {name}}}]
---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: {name}}}
spec:
  protocol: {protocol}
  endpoints: [{{address: "{endpoint}"}}]
"#
        )
        .unwrap();
    }
    text
}

/// A server for as long as it is held.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Origin {
    /// Connections accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves each connection with `serve`.
pub(crate) async fn origin<F, S>(serve: F) -> Origin
where
    F: Fn(TcpStream) -> S + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(local(0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    let task = tokio::spawn(async move {
        // Connections end with their origin.
        let mut serving = tokio::task::JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            serving.spawn(serve(tcp));
        }
    });
    Origin { address, accepted, task: task.abort_handle() }
}

/// Sends back what comes, to the end.
pub(crate) async fn echo() -> Origin {
    origin(|mut tcp| async move {
        let (mut read, mut write) = tcp.split();
        if tokio::io::copy(&mut read, &mut write).await.is_ok() {
            let _ = write.shutdown().await;
        }
    })
    .await
}

/// Says `name` to every connection and ends it.
pub(crate) async fn named(name: &'static str) -> Origin {
    origin(move |mut tcp| async move {
        let _ = tcp.write_all(name.as_bytes()).await;
    })
    .await
}

/// Answers every HTTP/1.1 request without a body with `name`, keeping the connection.
pub(crate) async fn web(name: &'static str) -> Origin {
    origin(move |mut tcp| async move {
        while head(&mut tcp).await.is_some() {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
            if tcp.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Reads one message head; `None` at the end of the stream.
pub(crate) async fn head(tcp: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(tcp.read_u8().await.ok()?);
    }
    Some(String::from_utf8(text).unwrap())
}

/// Sends a request on a connection that stays, and reads head and body of the answer.
pub(crate) async fn get(tcp: &mut TcpStream, path: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: a.test\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let head = head(tcp).await.unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|l| l.split("\r\n").next());
    let mut body = vec![0; length.map_or(0, |l| l.parse().unwrap())];
    tcp.read_exact(&mut body).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// An address where nobody listens. Its port is below the ephemeral ones (32768 on), or a connection of a
/// test running beside could take it first.
pub(crate) async fn dead() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 200).unwrap() * 100;
    for _ in 0..2000 {
        let port = 11_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 21_000;
        if TcpListener::bind(local(port)).await.is_ok() {
            return local(port);
        }
    }
    panic!("no free port below the ephemeral range");
}

/// Connects to a listener of the proxy.
pub(crate) async fn connect(proxy: &Running, listener: &str) -> TcpStream {
    TcpStream::connect(proxy.listener_addrs()[listener]).await.unwrap()
}

/// Everything a fresh connection to the listener is told.
pub(crate) async fn told(proxy: &Running, listener: &str) -> String {
    let mut text = String::new();
    connect(proxy, listener).await.read_to_string(&mut text).await.unwrap();
    text
}

/// Status and body of one request to the admin endpoint.
pub(crate) async fn admin(proxy: &Running, method: &str, path: &str) -> (u16, String) {
    admin_at(proxy.admin_addr(), method, path).await
}

/// As [`admin`], of a proxy that may run elsewhere.
pub(crate) async fn admin_at(host: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    ask(host, &request).await
}

/// Status and body of one raw HTTP/1.1 request.
pub(crate) async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

pub(crate) async fn admin_json(proxy: &Running, path: &str) -> Value {
    let (status, body) = admin(proxy, "GET", path).await;
    assert_eq!(status, 200, "{path}: {body}");
    // The answer may come in chunks; what is between their sizes is one object or list.
    serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}"))
}

/// Waits, within reason, for something another thread brings about.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap_or_else(|_| panic!("never came: {what}"))
}
