//! A proxy in this process between a raw client and a raw origin, all on port 0.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use towpath_policies::model::{
    Action, Endpoint, EndpointSet, Forward, HeaderEdit, HttpOptions, PathMatch, Protocol,
    RetryPolicy, Route, RouteMatch, RouteTable, Service, VirtualHost, WeightedBackend,
};
use towpath_proxy::{
    access_log::AccessLog,
    drain,
    http::{HttpListener, Peer, serve_connection},
    overload::Overload,
    router::Router,
    spool::Space,
    transfers::Transfers,
    upstream::{self, ServiceState, connect::Wire},
};

/// A proxy to be.
pub(crate) struct Setup {
    pub(crate) service: Service,
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) forward: Forward,
    /// Further routes, by prefix of the path.
    pub(crate) also: Vec<(&'static str, Forward)>,
    pub(crate) options: HttpOptions,
    pub(crate) spool: Option<Arc<Space>>,
    pub(crate) access_log: Option<AccessLog>,
}

/// A proxy that runs.
pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    pub(crate) service: Arc<ServiceState>,
    pub(crate) drain: drain::Signal,
    pub(crate) transfers: Arc<Transfers>,
}

impl Setup {
    pub(crate) fn to(origin: SocketAddr) -> Self {
        Self::to_all(&[origin])
    }

    pub(crate) fn to_all(origins: &[SocketAddr]) -> Self {
        Self {
            service: Service::new("origin", Protocol::Http1),
            endpoints: origins.to_vec(),
            forward: Forward {
                retry: RetryPolicy {
                    backoff_base: Duration::from_millis(1),
                    ..RetryPolicy::default()
                },
                ..Forward::to(vec![WeightedBackend::new("origin")])
            },
            also: Vec::new(),
            options: HttpOptions::default(),
            spool: None,
            access_log: None,
        }
    }

    pub(crate) fn speaking(mut self, protocol: Protocol) -> Self {
        self.service.protocol = protocol;
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) async fn start(self) -> Proxy {
        let endpoints = self.endpoints.iter().copied().map(Endpoint::new).collect();
        let set = EndpointSet::new("origin".into(), endpoints);
        let service = upstream::reconcile(None, Arc::new(self.service), &set, 1).unwrap();
        let table = table(self.also, self.forward);
        let live = service.live.clone();
        let router =
            Router::compile("test", &table, &|name| (name == "origin").then(|| live.clone()));
        let router = Arc::new(ArcSwap::from_pointee(router.unwrap()));
        let transfers = Arc::new(Transfers::new(1));
        let overload = Arc::new(Overload::default());
        let mut listener =
            HttpListener::new("test".into(), self.options, router, transfers.clone(), overload);
        listener.access_log = self.access_log;
        listener.spool = self.spool;
        let listener = Arc::new(listener);
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let drain = drain::Signal::new();
        tokio::spawn(accept(socket, listener, drain.watch()));
        Proxy { addr, service, drain, transfers }
    }
}

fn table(mut routes: Vec<(&'static str, Forward)>, rest: Forward) -> RouteTable {
    routes.push(("/", rest));
    let route = |(prefix, forward): (&str, Forward)| Route {
        name: if prefix == "/" { "all".into() } else { prefix.into() },
        matches: RouteMatch { path: PathMatch::Prefix(prefix.into()), ..RouteMatch::everything() },
        action: Action::Forward(forward),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    };
    RouteTable {
        name: "test".into(),
        virtual_hosts: vec![VirtualHost {
            name: "all".into(),
            domains: vec!["*".into()],
            routes: routes.into_iter().map(route).collect(),
        }],
    }
}

async fn accept(socket: TcpListener, listener: Arc<HttpListener>, drain: drain::Watch) {
    while let Ok((io, addr)) = socket.accept().await {
        let local = io.local_addr().unwrap();
        let peer = Peer { addr, local, tls: None, destination: None, tunnel: None };
        let (listener, drain) = (listener.clone(), drain.clone());
        tokio::spawn(async move {
            let mut start = [0; 4];
            while io
                .peek(&mut start)
                .await
                .is_ok_and(|n| n > 0 && n < 4 && b"PRI ".starts_with(&start[..n]))
            {
                tokio::task::yield_now().await;
            }
            let wire = if &start == b"PRI " { Wire::Http2 } else { Wire::Http1 };
            serve_connection(io, wire, listener, peer, 0, drain).await;
        });
    }
}

/// An origin whose every connection is played by `script`, which is told how many came before.
pub(crate) async fn origin<F: Future<Output = ()> + Send>(
    script: impl Fn(TcpStream, usize) -> F + Clone + Send + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    tokio::spawn(async move {
        while let Ok((io, _)) = socket.accept().await {
            let before = seen.fetch_add(1, SeqCst);
            let script = script.clone();
            tokio::spawn(async move { script(io, before).await });
        }
    });
    (addr, count)
}

/// An origin that reads one head (and `body` bytes more) per request and answers with `answer` each time.
pub(crate) async fn answering(answer: &'static str) -> (SocketAddr, Requests) {
    let requests = Requests::default();
    let log = requests.clone();
    let (addr, _) = origin(move |mut io, _| {
        let log = log.clone();
        async move {
            let mut input = Input::default();
            while let Some(request) = input.message(&mut io).await {
                log.note(request);
                if io.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (addr, requests)
}

/// What an origin was sent.
#[derive(Clone, Default)]
pub(crate) struct Requests(Arc<std::sync::Mutex<Vec<String>>>);

impl Requests {
    pub(crate) fn note(&self, request: String) {
        self.0.lock().unwrap().push(request);
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn only(&self) -> String {
        let all = self.all();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].clone()
    }
}

/// Bytes read and not used yet.
#[derive(Default)]
pub(crate) struct Input(Vec<u8>);

impl Input {
    /// Reads until `end` is there, and returns everything up to and with it.
    pub(crate) async fn until(&mut self, io: &mut TcpStream, end: &str) -> Option<String> {
        loop {
            if let Some(at) = find(&self.0, end.as_bytes()) {
                let rest = self.0.split_off(at + end.len());
                let found = std::mem::replace(&mut self.0, rest);
                return Some(String::from_utf8_lossy(&found).into_owned());
            }
            if io.read_buf(&mut self.0).await.ok()? == 0 {
                return None;
            }
        }
    }

    pub(crate) async fn exactly(&mut self, io: &mut TcpStream, bytes: usize) -> Option<String> {
        while self.0.len() < bytes {
            if io.read_buf(&mut self.0).await.ok()? == 0 {
                return None;
            }
        }
        let rest = self.0.split_off(bytes);
        let found = std::mem::replace(&mut self.0, rest);
        Some(String::from_utf8_lossy(&found).into_owned())
    }

    /// One message with its body, as it stands on the wire (a body must have a length or be chunked).
    pub(crate) async fn message(&mut self, io: &mut TcpStream) -> Option<String> {
        let head = self.until(io, "\r\n\r\n").await?;
        let lower = head.to_ascii_lowercase();
        let body = if let Some(at) = lower.find("content-length: ") {
            let digits = lower[at + 16..].lines().next()?.trim();
            self.exactly(io, digits.parse().ok()?).await?
        } else if lower.contains("transfer-encoding: chunked") {
            let mut body = String::new();
            loop {
                let line = self.until(io, "\r\n").await?;
                body += &line;
                let size = usize::from_str_radix(line.trim(), 16).ok()?;
                if size == 0 {
                    loop {
                        let line = self.until(io, "\r\n").await?;
                        body += &line;
                        if line == "\r\n" {
                            break;
                        }
                    }
                    break body;
                }
                body += &self.exactly(io, size + 2).await?;
            }
        } else {
            String::new()
        };
        Some(head + &body)
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

impl Proxy {
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Sends bytes on a new connection and reads all that comes until it closes.
    pub(crate) async fn talk(&self, bytes: &str) -> String {
        self.talk_bytes(bytes.as_bytes()).await
    }

    pub(crate) async fn talk_bytes(&self, bytes: &[u8]) -> String {
        let mut io = self.connect().await;
        // The proxy may close before it has read everything.
        let _ = io.write_all(bytes).await;
        read_all(&mut io).await.0
    }
}

/// Reads to the end; tells whether it was a clean close (no reset).
pub(crate) async fn read_all(io: &mut TcpStream) -> (String, bool) {
    let mut bytes = Vec::new();
    let clean = loop {
        match io.read_buf(&mut bytes).await {
            Ok(0) => break true,
            Ok(_) => {}
            Err(_) => break false,
        }
    };
    (String::from_utf8_lossy(&bytes).into_owned(), clean)
}

/// Waits for something that another task is about to do.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "never happened: {what}");
}

/// Bounds a test that would hang.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("took too long")
}
