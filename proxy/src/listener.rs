//! Sockets that accept, and what becomes of a connection: TLS, protocol, chain.
//!
//! A [`Listening`] keeps its socket for as long as its name and address stay in
//! the configuration; what it does with a connection is swapped as a whole.

mod redirected;
mod tunnels;

pub(crate) use redirected::who_speaks;

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream as StdStream},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::server::TlsStream;
use towpath_policies::model::ProxyProtocol;

use crate::{
    chains::{Chain, ChainKind, Chains, Opening},
    drain,
    explicit::{self, Accepted},
    http::{self, ClientIo, Peer, TlsInfo},
    metrics::{Counter, Gauge, registry},
    overload::Overload,
    proxy_protocol::{self, Ends, Opening as Introduction},
    sniff::{self, Hello, MAX_HELLO_BYTES, Prefixed},
    tcp::{self, Caller, Client},
    upstream::{connect::Wire, destination::Destination},
    worker::{Load, Workers},
};

/// A listener that accepts.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) name: Arc<str>,
    /// What was asked for; port 0 stays 0 here.
    pub(crate) bind: SocketAddr,
    /// Where it is reached.
    pub(crate) address: SocketAddr,
    /// What it does with the next connection.
    pub(crate) chains: ArcSwap<Chains>,
    /// Fired when it is removed, or the proxy drains.
    pub(crate) drain: drain::Signal,
    slots: Arc<Semaphore>,
    overload: Arc<Overload>,
    open: AtomicU32,
    /// When it was last told that a connection was not redirected, in [`now_ms`](crate::upstream::now_ms).
    told_astray_ms: AtomicU64,
    /// And that one was our own.
    told_looped_ms: AtomicU64,
    metrics: ListenerMetrics,
}

#[derive(Debug)]
struct ListenerMetrics {
    open: Gauge,
    accepted: Counter,
    accept_errors: Counter,
    handshake_errors: Counter,
    not_redirected: Counter,
    looped: Counter,
    introduction_errors: Counter,
}

/// Held by a connection to its end.
struct Held {
    listening: Arc<Listening>,
    worker: usize,
    /// Where it was made to, if it was redirected.
    destination: Option<Destination>,
    /// Where the client connected to, if that was elsewhere, as the PROXY protocol tells.
    reached: Option<SocketAddr>,
    _slot: OwnedSemaphorePermit,
    load: Load,
}

/// Connections the kernel keeps for us while we are busy (capped by `somaxconn`).
const BACKLOG: i32 = 4096;
/// Pause after an error that the next call would only repeat (no file descriptors), and under overload.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time a client has to complete its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time a load balancer has to say whose connection it is.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the first request of a connection that was just accepted when the drain begins.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(250);
/// A silent peer is asked whether it is still there after this, then this often.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(30));

/// Opens a listening socket with the options its connections inherit.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE.0).with_interval(KEEPALIVE.1);
    socket.set_tcp_keepalive(&keepalive)?;
    if address.is_ipv6() {
        // `[::]` takes both families only where the policy says so by a second listener.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Listening {
    /// Starts to accept from `socket` on one of the workers.
    pub(crate) fn start(
        name: &str,
        bind: SocketAddr,
        socket: &TcpListener,
        chains: Arc<Chains>,
        workers: &Arc<Workers>,
        max_connections: u32,
        overload: Arc<Overload>,
    ) -> io::Result<Arc<Self>> {
        let of = [("listener", name)];
        let listening = Arc::new(Self {
            name: name.into(),
            bind,
            address: socket.local_addr()?,
            chains: ArcSwap::new(chains),
            drain: drain::Signal::new(),
            slots: Arc::new(Semaphore::new(max_connections as usize)),
            overload,
            open: AtomicU32::new(0),
            told_astray_ms: AtomicU64::new(0),
            told_looped_ms: AtomicU64::new(0),
            metrics: ListenerMetrics {
                open: registry().gauge("towpath_connections", &of),
                accepted: registry().counter("towpath_connections_total", &of),
                accept_errors: registry().counter("towpath_accept_errors_total", &of),
                handshake_errors: registry().counter("towpath_tls_handshake_errors_total", &of),
                not_redirected: registry().counter("towpath_not_redirected_total", &of),
                looped: registry().counter("towpath_looped_total", &of),
                introduction_errors: registry().counter("towpath_proxy_protocol_errors_total", &of),
            },
        });
        // Names spread the listeners over the workers; connections spread by load anyway.
        let worker = name.bytes().fold(0_usize, |h, b| h.wrapping_mul(31).wrapping_add(b.into()))
            % workers.count();
        // The accepting task has a descriptor of its own; the socket closes with the last one.
        let socket = socket.try_clone()?;
        let accepting = workers.accepting();
        workers.spawn_on(worker, {
            let (listening, workers) = (listening.clone(), workers.clone());
            async move {
                accept(listening, socket, workers, worker).await;
                drop(accepting);
            }
        });
        Ok(listening)
    }

    /// Client connections open now.
    pub(crate) fn open_connections(&self) -> u32 {
        self.open.load(Relaxed)
    }
}

async fn accept(
    listening: Arc<Listening>,
    socket: TcpListener,
    workers: Arc<Workers>,
    here: usize,
) {
    let socket = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(listener = %listening.name, %error, "cannot accept");
            return;
        }
    };
    let draining = listening.drain.watch();
    let accepting = async {
        loop {
            // At the limit nothing is accepted: the kernel's backlog, then the clients, wait.
            let Ok(slot) = listening.slots.clone().acquire_owned().await else { return };
            // Nor under overload, when every request on it would only be refused.
            while listening.overload.is_full() {
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            let Some((tcp, peer)) = next(&listening, &socket).await else { continue };
            hand_over(tcp, peer, slot, &listening, &workers, here);
        }
    };
    tokio::select! {
        () = accepting => {}
        () = draining.drained() => {}
    }
    // Those whom the kernel has accepted already would be reset when the socket
    // closes. Asked without the reactor, which may not have heard of them yet.
    let Ok(socket) = socket.into_std() else { return };
    // No more than the queue holds: where another process shares the socket, it fills for that one.
    let mut left = BACKLOG;
    while left > 0
        && let Ok(slot) = listening.slots.clone().try_acquire_owned()
        && let Ok((tcp, peer)) = socket.accept()
    {
        left -= 1;
        if tcp.set_nonblocking(true).is_ok()
            && let Ok(tcp) = TcpStream::from_std(tcp)
        {
            hand_over(tcp, peer, slot, &listening, &workers, here);
        }
    }
}

/// Gives a connection to the worker that has the fewest.
fn hand_over(
    tcp: TcpStream,
    peer: SocketAddr,
    slot: OwnedSemaphorePermit,
    listening: &Arc<Listening>,
    workers: &Workers,
    here: usize,
) {
    let (worker, load) = workers.least_loaded(here);
    let listening = listening.clone();
    let held = Held { listening, worker, destination: None, reached: None, _slot: slot, load };
    if worker == here {
        tokio::spawn(serve(tcp, peer, held));
    } else if let Ok(tcp) = tcp.into_std() {
        // The socket leaves this worker's reactor for the other's.
        workers.spawn_on(worker, adopt(tcp, peer, held));
    }
}

/// Waits for the next connection; `None` after an error, and its pause.
async fn next(
    listening: &Listening,
    socket: &tokio::net::TcpListener,
) -> Option<(TcpStream, SocketAddr)> {
    let error = match socket.accept().await {
        Ok(accepted) => return Some(accepted),
        // The client gave up while it waited; the next one has not.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return None,
        Err(error) => error,
    };
    listening.metrics.accept_errors.inc();
    let out_of_files = [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    let hint =
        if out_of_files { "raise the open files limit (ulimit -n)" } else { "will try again" };
    tracing::warn!(listener = %listening.name, %error, hint, "cannot accept a connection");
    // The next call would only repeat it at once.
    tokio::time::sleep(ACCEPT_PAUSE).await;
    None
}

async fn adopt(tcp: StdStream, peer: SocketAddr, held: Held) {
    match TcpStream::from_std(tcp) {
        Ok(tcp) => serve(tcp, peer, held).await,
        Err(error) => {
            tracing::warn!(listener = %held.listening.name, %error, "cannot serve a connection");
        }
    }
}

async fn serve(tcp: TcpStream, mut peer: SocketAddr, mut held: Held) {
    let _open = Counted::new(held.listening.clone());
    let chains = held.listening.chains.load_full();
    if chains.redirected.is_some() {
        // Of its own, so that no other connection's task has room for what is looked at here.
        return Box::pin(redirected::serve(tcp, chains, peer, held)).await;
    }
    let mut seen = BytesMut::new();
    if let Some(terms) = chains.proxy_protocol() {
        match introduction(&tcp, peer, terms, &mut seen, &held.listening).await {
            Ok(Some(Ends { client, server })) => (peer, held.reached) = (client, Some(server)),
            Ok(None) => {}
            Err(Unintroduced::Silent) => return,
            Err(Unintroduced::Refused(reason)) => {
                held.listening.metrics.introduction_errors.inc();
                tracing::debug!(listener = %held.listening.name, %peer, reason, "connection refused");
                return;
            }
        }
    }
    match chains.opening() {
        Opening::Clear(chain) => clear(tcp, seen, chain, peer, None, held).await,
        Opening::Hello => hello(tcp, seen, chains, peer, held).await,
    }
}

/// Why a connection that should say whose it is is not served.
enum Unintroduced {
    /// It ended before its first byte, as health checks of load balancers do. Nothing is wrong.
    Silent,
    Refused(&'static str),
}

/// Takes the PROXY protocol's header off the front of a connection. Whose it is by that, or `None` where it is its
/// peer's own; what was read behind it is left in `seen`.
async fn introduction(
    tcp: &TcpStream,
    peer: SocketAddr,
    terms: &ProxyProtocol,
    seen: &mut BytesMut,
    listening: &Listening,
) -> Result<Option<Ends>, Unintroduced> {
    let refused = |why| Err(Unintroduced::Refused(why));
    if !terms.trusts(peer.ip()) {
        return if terms.required { refused("not from a trusted network") } else { Ok(None) };
    }
    let decide = |bytes: &[u8]| match proxy_protocol::read(bytes) {
        Introduction::Incomplete => None,
        decided => Some(decided),
    };
    let reading = sniff::read_until(tcp, seen, proxy_protocol::MAX_HEADER, decide);
    let draining = listening.drain.watch();
    let read = tokio::select! {
        read = timeout(INTRODUCTION_TIMEOUT, reading) => read,
        () = first_request_grace(&draining) => return match seen.is_empty() {
            true => Err(Unintroduced::Silent),
            false => refused("drained before a header came"),
        },
    };
    match read {
        Ok(Ok(Some(Introduction::Header(length, ends)))) => {
            drop(seen.split_to(length));
            if seen.is_empty() {
                // An idle connection holds no buffer.
                *seen = BytesMut::new();
            }
            Ok(ends)
        }
        Ok(Ok(Some(Introduction::Malformed(why)))) => refused(why),
        Ok(Ok(None) | Err(_)) if seen.is_empty() => Err(Unintroduced::Silent),
        // Silent, or of another protocol.
        Ok(Ok(_)) | Err(_) if !terms.required => Ok(None),
        Ok(Ok(_)) => refused("no header of the PROXY protocol"),
        Ok(Err(_)) => refused("the connection broke"),
        Err(_) => refused("no header in time"),
    }
}

/// Ready a moment after a drain has begun: nothing has been asked of us yet, and a connection without a
/// request may go.
async fn first_request_grace(draining: &drain::Watch) {
    draining.idle_ends().await;
    tokio::time::sleep(FIRST_REQUEST_GRACE).await;
}

/// An open connection, counted until dropped.
struct Counted(Arc<Listening>);

impl Counted {
    fn new(listening: Arc<Listening>) -> Self {
        listening.metrics.accepted.inc();
        listening.metrics.open.inc();
        listening.open.fetch_add(1, Relaxed);
        Self(listening)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
        self.0.metrics.open.dec();
    }
}

/// Reads the ClientHello, chooses the chain by its server name, and goes on.
async fn hello(
    tcp: TcpStream,
    mut seen: BytesMut,
    chains: Arc<Chains>,
    peer: SocketAddr,
    held: Held,
) {
    let decide = |bytes: &[u8]| match sniff::client_hello(bytes) {
        Hello::Incomplete => None,
        decided => Some(decided),
    };
    let reading = sniff::read_until(&tcp, &mut seen, MAX_HELLO_BYTES, decide);
    let handshake_failed = |reason: &str| held.handshake_failed(peer, reason);
    let hello = match timeout(HANDSHAKE_TIMEOUT, reading).await {
        Ok(Ok(Some(hello))) => hello,
        // Somebody looked whether the port is open.
        Ok(Ok(None) | Err(_)) if seen.is_empty() => return,
        Ok(Ok(None)) => return handshake_failed("no complete ClientHello"),
        Ok(Err(_)) => return handshake_failed("connection broke"),
        Err(_) => return handshake_failed("no ClientHello in time"),
    };
    let (chain, name) = match hello {
        Hello::Client(name) => (chains.by_name(name.as_deref()), name),
        Hello::NotTls | Hello::Incomplete => (chains.without_tls(), None),
    };
    let Some(chain) = chain else {
        return handshake_failed("no chain for this server name");
    };
    enter(tcp, seen, &chain, peer, name, held).await;
}

/// Serves a connection by its chain.
async fn enter(
    tcp: TcpStream,
    seen: BytesMut,
    chain: &Chain,
    peer: SocketAddr,
    name: Option<String>,
    held: Held,
) {
    let Some(tls) = &chain.tls else {
        return clear(tcp, seen, chain, peer, name, held).await;
    };
    let stream = Prefixed::new(seen.freeze(), tcp);
    match timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => terminated(stream, chain, peer, name, held).await,
        Ok(Err(error)) => held.handshake_failed(peer, &error.to_string()),
        Err(_) => held.handshake_failed(peer, "handshake not done in time"),
    }
}

impl Held {
    fn handshake_failed(&self, client: SocketAddr, reason: &str) {
        self.listening.metrics.handshake_errors.inc();
        tracing::debug!(listener = %self.listening.name, %client, reason, "TLS refused");
    }

    /// Where the client believes to have connected to.
    fn local_address(&self, tcp: &TcpStream) -> SocketAddr {
        let listening = self.listening.address;
        if let Some(told) = self.reached {
            return told;
        }
        match &self.destination {
            Some(destination) => destination.address(),
            None if listening.ip().is_unspecified() => tcp.local_addr().unwrap_or(listening),
            None => listening,
        }
    }

    /// Who has connected.
    fn caller(
        &self,
        tcp: &TcpStream,
        address: SocketAddr,
        server_name: Option<String>,
        protocol: &'static str,
    ) -> Caller {
        let (reached, destination) = (self.local_address(tcp), self.destination.clone());
        Caller { address, reached, server_name, protocol, worker: self.worker, destination }
    }
}

/// A connection in clear, or one whose TLS is passed through.
async fn clear(
    tcp: TcpStream,
    mut seen: BytesMut,
    chain: &Chain,
    peer: SocketAddr,
    name: Option<String>,
    held: Held,
) {
    let http = match &chain.kind {
        ChainKind::Http(http) => http.clone(),
        ChainKind::Tcp(forward) => {
            let protocol = if name.is_some() { "TLS" } else { "TCP" };
            let caller = held.caller(&tcp, peer, name, protocol);
            let client = Client::<NoTls>::Clear(tcp, seen.freeze());
            return tcp::relay(forward.clone(), client, caller).await;
        }
        ChainKind::Explicit(explicit) => {
            // Of a connection that was taken, where it was made to.
            let Ok(local) = tcp.local_addr() else { return };
            let drain = held.listening.drain.watch();
            let accepted = Accepted { peer, local, worker: held.worker, drain };
            return explicit::serve(tcp, explicit.clone(), accepted).await;
        }
    };
    let draining = held.listening.drain.watch();
    let http2 = match sniff::is_http2(&seen).filter(|_| !seen.is_empty()) {
        Some(http2) => http2,
        None => {
            let limit = http.options.idle_timeout;
            let reading = sniff::read_until(&tcp, &mut seen, MAX_HELLO_BYTES, sniff::is_http2);
            tokio::select! {
                read = timeout(limit, reading) => match read {
                    Ok(Ok(Some(http2))) => http2,
                    // Nothing was asked, so nothing is answered.
                    _ => return,
                },
                () = first_request_grace(&draining) => return,
            }
        }
    };
    let local = held.local_address(&tcp);
    let io = Prefixed::new(seen.freeze(), tcp);
    let wire = if http2 { Wire::Http2 } else { Wire::Http1 };
    let destination = held.destination.clone();
    let peer = Peer { addr: peer, local, tls: None, destination, tunnel: None };
    http::serve_connection(io, wire, http, peer, held.worker, draining).await;
}

/// A connection whose TLS ended here.
async fn terminated(
    stream: TlsStream<Prefixed<TcpStream>>,
    chain: &Chain,
    peer: SocketAddr,
    name: Option<String>,
    held: Held,
) {
    match &chain.kind {
        ChainKind::Tcp(forward) => {
            let caller = held.caller(stream.get_ref().0.get_ref(), peer, name, "TLS");
            tcp::relay(forward.clone(), Client::Tls(stream), caller).await;
        }
        ChainKind::Http(http) => {
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let wire = if http2 { Wire::Http2 } else { Wire::Http1 };
            let local = held.local_address(stream.get_ref().0.get_ref());
            let tls = Some(TlsInfo { server_name: name.map(Into::into) });
            let destination = held.destination.clone();
            let peer = Peer { addr: peer, local, tls, destination, tunnel: None };
            let draining = held.listening.drain.watch();
            http::serve_connection(stream, wire, http.clone(), peer, held.worker, draining).await;
        }
        // It has no TLS of its own.
        ChainKind::Explicit(_) => {}
    }
}

/// A client in clear, where one under TLS could be.
type NoTls = TlsStream<Prefixed<TcpStream>>;

impl ClientIo for Prefixed<TcpStream> {
    fn reset_on_close(&self) {
        self.get_ref().reset_on_close();
    }
}

impl ClientIo for TlsStream<Prefixed<TcpStream>> {}
