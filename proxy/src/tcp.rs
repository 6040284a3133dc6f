//! Opaque connections: bytes both ways, moved inside the kernel where possible.
//!
//! Half-closes and resets are passed on, so that the two ends see each other as
//! if they were connected directly. Bytes are counted while they pass. Knows
//! no protocol.

mod copy;
mod socket;
mod splice;
mod streamed;

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use socket2::SockRef;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    access_log::{AccessLog, Record},
    h2::Stream,
    http::{
        ClientIo,
        connect::{self, Refusal},
    },
    metrics::{Counter, registry},
    outlier::{self, Failure, Outcome},
    proxy_protocol::Ends,
    timer::Timer,
    transfers::{Listed, Transfer, Transfers},
    upstream::{
        EndpointState, ServiceLive, ServiceState,
        admission::{ConnectionGuard, Limit, Ticket},
        connect::{ConnectError, Connector},
        destination::Destination,
        io::UpstreamIo,
        now_ms,
        pick::{self, Ask, NoPick, Tried},
        returned, tunnel,
    },
};
use socket::Socket;

/// Where the connections of one chain go, and how they are counted.
#[derive(Debug)]
pub(crate) struct TcpChain {
    pub(crate) listener: Arc<str>,
    /// Services by weight; the sum is positive.
    pub(crate) backends: Vec<(Arc<ServiceLive>, u32)>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) access_log: Option<AccessLog>,
    pub(crate) transfers: Arc<Transfers>,
    pub(crate) metrics: TcpMetrics,
}

/// Handles of one chain.
#[derive(Debug)]
pub(crate) struct TcpMetrics {
    connections: Counter,
    bytes_up: Counter,
    bytes_down: Counter,
}

/// A client of an opaque chain: in clear (with what was read of it to find the
/// server name or the host) or under TLS that ends here.
pub(crate) enum Client<T> {
    Clear(TcpStream, Bytes),
    /// As that, and told when an endpoint is reached, or why not: it asked by `CONNECT`.
    Tunnel(TcpStream, Bytes),
    Tls(T),
    /// A stream of a tunnel; told as one that asked by `CONNECT`.
    Stream(Stream),
}

/// Who connected.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) address: SocketAddr,
    /// Where it connected to.
    pub(crate) reached: SocketAddr,
    pub(crate) server_name: Option<String>,
    pub(crate) protocol: &'static str,
    /// The worker it is on.
    pub(crate) worker: usize,
    /// Where it was connecting to, if it was redirected.
    pub(crate) destination: Option<Destination>,
}

/// A connection to an endpoint, for a client of which nothing was passed on yet. Dropped, it never was.
pub(crate) struct Opened {
    upstream: Upstream,
    _guard: ConnectionGuard,
    ticket: Ticket,
    meter: Meter,
}

/// How an endpoint is reached.
enum Upstream {
    /// By a connection of its own.
    Io(UpstreamIo),
    /// Through the sidecar beside it.
    Stream(Stream),
}

/// None could be had.
pub(crate) struct Refused {
    reason: &'static str,
    meter: Meter,
}

/// Counts one relay while it runs, and writes its record when it ends.
pub(crate) struct Meter {
    chain: Arc<TcpChain>,
    /// It is for a client, and counts.
    begun: bool,
    record: Option<Record>,
    /// Bytes moved, each way.
    listed: Listed,
    started: tokio::time::Instant,
    /// Milliseconds after `started` when it was last seen that bytes had moved.
    last_ms: AtomicU64,
    /// How many had, both ways.
    seen: AtomicU64,
    endpoint_bytes: Option<(Counter, Counter)>,
    /// Whether writing failed, by [`Direction`].
    write_failed: [AtomicBool; 2],
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client.
    Up,
    /// To the client.
    Down,
}

/// How one direction ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The reader ended cleanly, and that was passed on.
    Finished,
    /// Reading failed: the reader's peer is gone.
    ReadFailed(io::Error),
    /// Writing failed: the writer's peer is gone.
    WriteFailed(io::Error),
}

impl Direction {
    fn other(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }

    /// What is said when whoever sends in this direction is gone.
    fn gone(self) -> &'static str {
        match self {
            Self::Up => "client_reset",
            Self::Down => RESET,
        }
    }
}

impl TcpMetrics {
    pub(crate) fn new(listener: &str) -> Self {
        let of = ("listener", listener);
        let bytes = |direction| {
            registry().counter("towpath_tcp_bytes_total", &[of, ("direction", direction)])
        };
        Self {
            connections: registry().counter("towpath_tcp_connections_total", &[of]),
            bytes_up: bytes("request"),
            bytes_down: bytes("response"),
        }
    }
}

/// Relays one client connection to an endpoint of the chain, to its end.
pub(crate) async fn relay<T>(chain: Arc<TcpChain>, client: Client<T>, caller: Caller)
where
    T: ClientIo,
{
    let drawn = chain.draw();
    let mut meter = Meter::new(chain, &caller, drawn.as_deref());
    meter.begin();
    // What came through a tunnel is at its end.
    let tunnels = !matches!(client, Client::Stream(_));
    match connect_for(drawn, meter, &caller, tunnels).await {
        Ok(opened) => opened.run(client).await,
        Err(refused) => refused.tell(client).await,
    }
}

/// Connects to an endpoint of the chain. Until it is used it is neither counted nor logged.
pub(crate) async fn open(chain: &Arc<TcpChain>, caller: Caller) -> Result<Opened, Refused> {
    let drawn = chain.draw();
    let meter = Meter::new(chain.clone(), &caller, drawn.as_deref());
    connect_for(drawn, meter, &caller, true).await
}

async fn connect_for(
    drawn: Option<Arc<ServiceState>>,
    mut meter: Meter,
    caller: &Caller,
    tunnels: bool,
) -> Result<Opened, Refused> {
    let connected = match &drawn {
        Some(service) => connect(service, &mut meter, caller, tunnels).await,
        None => Err("no_service"),
    };
    match connected {
        Ok((upstream, _guard, ticket)) => {
            // From here on somebody could speak. Nothing begins anew when it is known who is silent.
            meter.touch();
            Ok(Opened { upstream, _guard, ticket, meter })
        }
        Err(reason) => Err(Refused { reason, meter }),
    }
}

impl Refused {
    /// Ends a client that cannot be served.
    pub(crate) async fn tell<T>(mut self, client: Client<T>) {
        self.meter.begin();
        self.meter.refuse(self.reason, client).await;
    }
}

impl Opened {
    /// Returns when the endpoint has sent something, or ended.
    pub(crate) async fn server_speaks(&self) {
        match &self.upstream {
            // An error is found again by who reads.
            Upstream::Io(io) => drop(io.tcp().readable().await),
            Upstream::Stream(stream) => poll_fn(|cx| stream.poll_speaks(cx)).await,
        }
    }

    /// Returns when nobody has said anything for too long.
    pub(crate) async fn idle(&self) {
        self.meter.idle(self.meter.chain.idle_timeout).await;
    }

    /// Relays until both ends are done.
    pub(crate) async fn run<T: ClientIo>(self, client: Client<T>) {
        let Self { mut upstream, _guard, ticket, mut meter } = self;
        meter.begin();
        let client = match client {
            Client::Tunnel(mut tcp, prefix) => {
                if connect::establish(&mut tcp).await.is_err() {
                    return meter.note(|r| r.reason = Some("client_reset"));
                }
                Client::Clear(tcp, prefix)
            }
            client => client,
        };
        let address = ticket.endpoint.spec.address;
        let counters = &ticket.endpoint.live.metrics;
        meter.endpoint_bytes = Some((counters.bytes_sent.clone(), counters.bytes_received.clone()));
        if let Client::Clear(_, prefix) = &client {
            if upstream.begin(prefix).await.is_err() {
                return meter.refuse(reset_by(address), client).await;
            }
            meter.moved(Direction::Up, prefix.len());
        }
        let reason = carry(client, upstream, &meter).await;
        let reason = if reason == Some(RESET) { Some(reset_by(address)) } else { reason };
        meter.note(|r| r.reason = reason);
    }
}

impl Upstream {
    /// Sends what was read of the client.
    async fn begin(&mut self, prefix: &Bytes) -> io::Result<()> {
        match self {
            Self::Io(io) => io.write_all(prefix).await,
            Self::Stream(stream) => stream.send(prefix.clone(), false).map_err(io::Error::other),
        }
    }
}

/// Relays by the means that suit both ends.
async fn carry<T: ClientIo>(
    client: Client<T>,
    upstream: Upstream,
    meter: &Meter,
) -> Option<&'static str> {
    let (up, down, idle) = (Direction::Up, Direction::Down, meter.chain.idle_timeout);
    match (client, upstream) {
        (Client::Clear(tcp, _) | Client::Tunnel(tcp, _), Upstream::Io(UpstreamIo::Tcp(io))) => {
            match (Socket::new(tcp), Socket::new(io)) {
                (Ok(tcp), Ok(io)) => splice::relay(&tcp, &io, meter, idle).await,
                (tcp, io) => unwatched(&[tcp, io]),
            }
        }
        (Client::Clear(tcp, _) | Client::Tunnel(tcp, _), Upstream::Io(io)) => {
            copy::relay(tcp, io, meter, idle).await
        }
        (Client::Clear(tcp, _) | Client::Tunnel(tcp, _), Upstream::Stream(stream)) => {
            match Socket::new(tcp) {
                Ok(tcp) => streamed::relay(tcp, stream, up, meter, idle).await,
                failed => unwatched(&[failed]),
            }
        }
        (Client::Tls(tls), Upstream::Io(io)) => copy::relay(tls, io, meter, idle).await,
        (Client::Tls(tls), Upstream::Stream(stream)) => {
            streamed::relay(tls, stream, up, meter, idle).await
        }
        (Client::Stream(stream), Upstream::Io(io)) => {
            stream.answer(StatusCode::OK, &HeaderMap::new(), false);
            match io {
                UpstreamIo::Tcp(tcp) => match Socket::new(tcp) {
                    Ok(tcp) => streamed::relay(tcp, stream, down, meter, idle).await,
                    failed => unwatched(&[failed]),
                },
                io => streamed::relay(io, stream, down, meter, idle).await,
            }
        }
        // Not asked for: a tunnel ends beside the application.
        (Client::Stream(_), Upstream::Stream(_)) => Some("cut"),
    }
}

/// Whose reset it was: the endpoint's, or our own where the connection came back to us.
fn reset_by(address: SocketAddr) -> &'static str {
    if returned::is_looped(address) { LOOPED } else { RESET }
}

const RESET: &str = "upstream_reset";
const LOOPED: &str = "looped";

/// Connects to an endpoint of the service; a failed one is followed by others, unless the client meant
/// this very one.
async fn connect(
    service: &Arc<ServiceState>,
    meter: &mut Meter,
    caller: &Caller,
    tunnels: bool,
) -> Result<(Upstream, ConnectionGuard, Ticket), &'static str> {
    let client = caller.address;
    let original = caller.destination.as_ref().and_then(|d| d.endpoint(service));
    let destination = caller.destination.as_ref().map(Destination::address);
    let meant = original.is_some() || destination.is_some_and(|d| service.at(d).is_some());
    let mut tried = Tried::default();
    let overflow = |_: Limit| "overflow";
    service.has_room(0).map_err(overflow)?;
    let (key, origin) =
        (service.connection_key(client.ip()), service.connection_origin(client.ip()));
    let ask = Ask { origin, key, destination, ..Ask::default() };
    for attempt in 1..=CONNECT_ATTEMPTS {
        let pick = || pick::pick(service, &tried, now_ms(), ask);
        let picked = original.as_ref().map_or_else(pick, Ok);
        let endpoint = match picked {
            Ok(endpoint) => caller
                .destination
                .as_ref()
                .and_then(|destination| destination.apart(service, endpoint))
                .unwrap_or_else(|| endpoint.clone()),
            Err(NoPick::NoneHealthy) => return Err("no_healthy_endpoint"),
            Err(NoPick::Full(_)) => return Err("overflow"),
        };
        meter.note(|r| {
            r.attempts = attempt;
            r.endpoint = Some(endpoint.spec.name.as_str().into());
        });
        meter.listed.transfer.endpoint.store(Some(endpoint.clone()));
        let mut ticket = Ticket::new(service.clone(), endpoint.clone(), 0);
        ticket.comes_from(origin.cell);
        // There is none in opaque bytes.
        ticket.has_head();
        match reach(service, &endpoint, caller, tunnels).await {
            Ok((upstream, guard)) => {
                outlier::report(service, &endpoint, Outcome::Success);
                return Ok((upstream, guard, ticket));
            }
            Err(ConnectError::Full(_)) => return Err("overflow"),
            Err(_) if returned::is_looped(endpoint.spec.address) => return Err(LOOPED),
            Err(error) => {
                let failure = match error {
                    ConnectError::Timeout(_) => Failure::Timeout,
                    _ => Failure::Connect,
                };
                if !error.is_ours() {
                    outlier::report(service, &endpoint, Outcome::Failure(failure));
                }
                tracing::debug!(
                    service = service.spec.name,
                    endpoint = endpoint.spec.name,
                    %error,
                    attempt,
                    "cannot connect"
                );
                tried.add(&endpoint);
                if meant || tried_all(service, attempt) {
                    break;
                }
            }
        }
    }
    Err("connect_failed")
}

/// One way to an endpoint, through a tunnel where that may be and is to be had.
async fn reach(
    service: &Arc<ServiceState>,
    endpoint: &Arc<EndpointState>,
    caller: &Caller,
    tunnels: bool,
) -> Result<(Upstream, ConnectionGuard), ConnectError> {
    if tunnels && let Some((stream, guard)) = tunnel::open(service, endpoint, caller.worker).await?
    {
        return Ok((Upstream::Stream(stream), guard));
    }
    let ends = Ends { client: caller.address, server: caller.reached };
    let (io, guard) = Connector::connect_opaque(service, endpoint, ends).await?;
    Ok((Upstream::Io(io), guard))
}

/// How often it is looked in an idle time whether it is one, and how long it takes from one look to the next at least.
const LOOKS: u32 = 64;
const SHORTEST_LOOK: Duration = Duration::from_millis(10);

/// Connections tried for one client: no byte of it was sent yet, so another endpoint is always safe.
const CONNECT_ATTEMPTS: u32 = 3;

fn tried_all(service: &ServiceState, attempts: u32) -> bool {
    attempts as usize >= service.endpoints.len()
}

impl TcpChain {
    /// Whether connections fare the same by another.
    pub(crate) fn leads_like(&self, other: &Self) -> bool {
        let backends = |chain: &Self| -> Vec<_> {
            chain.backends.iter().map(|(service, weight)| (Arc::as_ptr(service), *weight)).collect()
        };
        self.idle_timeout == other.idle_timeout && backends(self) == backends(other)
    }

    fn draw(&self) -> Option<Arc<ServiceState>> {
        let total: u64 = self.backends.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut at = if total > 1 { fastrand::u64(..total) } else { 0 };
        for (service, weight) in &self.backends {
            let weight = u64::from(*weight);
            if at < weight {
                return service.current.load_full();
            }
            at -= weight;
        }
        None
    }
}

impl Meter {
    fn new(chain: Arc<TcpChain>, caller: &Caller, service: Option<&ServiceState>) -> Self {
        let service = service.map(|service| Arc::<str>::from(service.spec.name.as_str()));
        let started = tokio::time::Instant::now();
        let transfer = Transfer {
            protocol: caller.protocol,
            listener: chain.listener.clone(),
            client: caller.address,
            route: None,
            service: service.clone(),
            endpoint: ArcSwapOption::empty(),
            started,
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
        };
        let record = || {
            let mut record =
                Record::new(caller.protocol, chain.listener.clone(), Some(caller.address));
            record.host = caller.server_name.as_deref().map(Into::into);
            record.start = SystemTime::now();
            record.service = service;
            record.destination = caller.destination.as_ref().map(Destination::address);
            // What it stays when this future is dropped before the end.
            record.reason = Some("cut");
            record
        };
        let record = chain.access_log.is_some().then(record);
        Self {
            begun: false,
            listed: chain.transfers.list(caller.worker, transfer.into()),
            chain,
            record,
            started,
            last_ms: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            endpoint_bytes: None,
            write_failed: Default::default(),
        }
    }

    /// There is a client for it.
    fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.chain.metrics.connections.inc();
        }
    }

    fn note(&mut self, write: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            write(record);
        }
    }

    /// Ends a client that cannot be served: by a reset, so that it does not take it for an end,
    /// or by an answer where it waits for one.
    async fn refuse<T>(&mut self, reason: &'static str, client: Client<T>) {
        self.note(|r| r.reason = Some(reason));
        match client {
            Client::Clear(tcp, _) => reset(&tcp),
            Client::Tunnel(mut tcp, _) => Refusal::of(reason).send(&mut tcp).await,
            Client::Stream(stream) => Refusal::of(reason).answer(&stream),
            Client::Tls(_) => {}
        }
    }

    fn moved(&self, direction: Direction, bytes: usize) {
        let n = bytes as u64;
        let (total, chain, endpoint) = match direction {
            Direction::Up => (
                &self.listed.transfer.up,
                &self.chain.metrics.bytes_up,
                self.endpoint_bytes.as_ref().map(|e| &e.0),
            ),
            Direction::Down => (
                &self.listed.transfer.down,
                &self.chain.metrics.bytes_down,
                self.endpoint_bytes.as_ref().map(|e| &e.1),
            ),
        };
        total.fetch_add(n, Relaxed);
        chain.add(n);
        if let Some(endpoint) = endpoint {
            endpoint.add(n);
        }
    }

    /// Writing in this direction failed. That may have taken the socket's error
    /// away, and then the other direction reads what looks like an end.
    fn write_failed(&self, direction: Direction, error: io::Error) -> End {
        self.write_failed[direction as usize].store(true, Relaxed);
        End::WriteFailed(error)
    }

    /// Whether an end just read in this direction is a break, already seen by the other one.
    fn broken(&self, direction: Direction) -> Option<End> {
        let failed = self.write_failed[direction.other() as usize].load(Relaxed);
        failed.then(|| End::ReadFailed(io::ErrorKind::ConnectionReset.into()))
    }

    fn touch(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Relaxed);
    }

    /// Returns when nothing has moved for `limit`, or a little later; never when there is no limit. No byte reads the
    /// clock for it: it is looked now and then whether some have moved.
    async fn idle(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        let transfer = &self.listed.transfer;
        let mut timer = Timer::default();
        loop {
            let moved = transfer.up.load(Relaxed) + transfer.down.load(Relaxed);
            if self.seen.swap(moved, Relaxed) != moved {
                self.touch();
            }
            let end = self.started + Duration::from_millis(self.last_ms.load(Relaxed)) + limit;
            let now = tokio::time::Instant::now();
            if now >= end {
                return;
            }
            let look = end.min(now + (limit / LOOKS).max(SHORTEST_LOOK));
            poll_fn(|cx| timer.poll(cx, look)).await;
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let record = self.record.take().filter(|_| self.begun);
        let (Some(mut record), Some(log)) = (record, &self.chain.access_log) else {
            return;
        };
        record.duration = self.started.elapsed();
        record.request_bytes = self.listed.transfer.up.load(Relaxed);
        record.response_bytes = self.listed.transfer.down.load(Relaxed);
        log.send(record);
    }
}

/// Ends connections that the kernel has no memory to watch.
fn unwatched(sockets: &[io::Result<Socket>]) -> Option<&'static str> {
    for socket in sockets {
        match socket {
            Ok(socket) => socket.reset(),
            Err(error) => tracing::warn!(%error, "cannot watch a connection"),
        }
    }
    Some("cut")
}

/// Makes the close of this socket a reset (RST), as its counterpart's was.
pub(crate) fn reset(tcp: &impl AsFd) {
    // A socket that is gone already cannot be reset, which is as well.
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// Runs both directions to their ends and says why it was not a clean one.
///
/// A peer that is gone ends the other direction too, but only after what it
/// sent before has been delivered.
async fn both(
    up: impl Future<Output = End>,
    down: impl Future<Output = End>,
    idle: impl Future<Output = ()>,
    reset: impl Fn(Direction),
) -> Option<&'static str> {
    let (mut up, mut down, mut idle) =
        (std::pin::pin!(up), std::pin::pin!(down), std::pin::pin!(idle));
    let (mut up_end, mut down_end) = (None, None);
    while up_end.is_none() || down_end.is_none() {
        tokio::select! {
            end = &mut up, if up_end.is_none() => {
                if let End::ReadFailed(error) = &end {
                    tracing::debug!(%error, "client is gone");
                    // The endpoint is told; what it still sends has nowhere to go.
                    reset(Direction::Up);
                    return Some("client_reset");
                }
                up_end = Some(end);
            }
            end = &mut down, if down_end.is_none() => {
                if let End::ReadFailed(error) = &end {
                    tracing::debug!(%error, "endpoint is gone");
                    reset(Direction::Down);
                    return Some(RESET);
                }
                down_end = Some(end);
            }
            () = &mut idle => {
                reset(Direction::Up);
                reset(Direction::Down);
                return Some("idle_timeout");
            }
        }
    }
    match (up_end, down_end) {
        (Some(End::WriteFailed(error)), _) => {
            tracing::debug!(%error, "endpoint is gone");
            reset(Direction::Down);
            Some(RESET)
        }
        (_, Some(End::WriteFailed(error))) => {
            tracing::debug!(%error, "client is gone");
            reset(Direction::Up);
            Some("client_reset")
        }
        _ => None,
    }
}
