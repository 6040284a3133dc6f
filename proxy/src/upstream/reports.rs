//! Load reports out of band: where a policy asks for them, one stream of them from each endpoint
//! (`xds.service.orca.v3.OpenRcaService/StreamCoreMetrics`), over a connection of its own on the control
//! thread.
//!
//! A stream that breaks is asked for again after a pause; an endpoint that does not know the method is not
//! asked again while it is the same. Where no stream will do, requests ask. Knows nothing of what a report is
//! good for.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    net::SocketAddr,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tokio::{
    task::AbortHandle,
    time::{sleep, timeout},
};
use towpath_xds::orca::{LoadReport, report_request};

#[cfg(test)]
mod tests;

use super::{
    EndpointLive, EndpointState, ServiceLive, ServiceState,
    connect::{Connector, Wire},
    io::UpstreamIo,
    now_ms,
};
use crate::{
    h2::{Config, Connection, Part, RequestRef, StreamError},
    metrics::registry,
};

/// The method that streams load reports.
pub(crate) const STREAM_CORE_METRICS: &str =
    "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";

/// The streams that run, by service and address.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    running: HashMap<String, HashMap<SocketAddr, Running>>,
    /// Some do without, and that was said.
    full: bool,
}

#[derive(Debug)]
struct Running {
    terms: Terms,
    task: AbortHandle,
}

/// A stream under other terms is another one.
#[derive(Clone, Debug)]
struct Terms {
    every: Duration,
    connector: u64,
    endpoint: Weak<EndpointLive>,
}

/// Pauses between tries.
#[derive(Debug, Default)]
struct Backoff {
    tries: i32,
}

/// Why a stream is over.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The endpoint does not know the method.
    Unknown,
    Broken(String),
}

/// All endpoints of all services together.
const MOST_STREAMS: usize = 1024;
/// In vain, in a row.
const TRIES_BEFORE_REQUESTS_ASK: i32 = 3;
const NO_STREAM: &str = "endpoint does not report its load out of band: requests ask for it";
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// Each pause is so many times the one before, as in gRPC.
const PAUSE_GROWS: f64 = 1.6;
/// One that says nothing for three intervals and so long is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nobody makes us read reports more often.
const REST: Duration = Duration::from_millis(50);
const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// Of a message in gRPC: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("towpath/", env!("CARGO_PKG_VERSION"), " load reports"));
/// `UNIMPLEMENTED`
const UNIMPLEMENTED: &[u8] = b"12";

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Streams {
    /// Starts and stops streams so that they are those the services ask for.
    pub(crate) fn reconcile(&mut self, services: &BTreeMap<String, Arc<ServiceState>>) {
        self.running.retain(|name, running| {
            let Some(service) = services.get(name) else { return false };
            let endpoints: HashMap<_, _> =
                service.endpoints.iter().map(|e| (e.spec.address, e)).collect();
            running.retain(|address, running| {
                let now = endpoints.get(address).and_then(|e| Terms::of(service, e));
                now.as_ref() == Some(&running.terms)
            });
            !running.is_empty()
        });
        let running = self.running.values().flat_map(HashMap::values);
        let runs = running.filter(|running| !running.task.is_finished()).count();
        let mut places = MOST_STREAMS.saturating_sub(runs);
        let mut full = false;
        for (name, service) in
            services.iter().filter(|(_, service)| service.streamed_every().is_some())
        {
            let running = self.running.entry(name.clone()).or_default();
            for endpoint in &service.endpoints {
                let address = endpoint.spec.address;
                if running.contains_key(&address) {
                    continue;
                }
                service.tells_out_of_band(&endpoint.live, places > 0);
                let Some(terms) = Terms::of(service, endpoint).filter(|_| places > 0) else {
                    full = true;
                    continue;
                };
                places -= 1;
                let following = follow(Arc::downgrade(&service.live), address, terms.every);
                let task = tokio::spawn(following).abort_handle();
                running.insert(address, Running { terms, task });
            }
        }
        if full && !self.full {
            tracing::warn!(
                most = MOST_STREAMS,
                "too many endpoints: some are not asked for reports out of band, but by requests"
            );
        }
        self.full = full;
    }
}

impl ServiceState {
    /// How often reports are asked for out of band; `None` where they are not.
    fn streamed_every(&self) -> Option<Duration> {
        self.spec.out_of_band.filter(|_| self.spec.balancer.reads_reports())
    }

    /// An endpoint tells its load out of band, or does not though it should.
    fn tells_out_of_band(&self, endpoint: &EndpointLive, tells: bool) {
        if endpoint.silent.swap(!tells, Relaxed) == tells {
            self.live.silent.fetch_add(if tells { -1 } else { 1 }, Relaxed);
            self.settle_asking();
        }
    }

    /// To be called when this view begins to count.
    pub(super) fn count_silent(&self) {
        let silent = self.endpoints.iter().filter(|endpoint| endpoint.live.silent.load(Relaxed));
        self.live.silent.store(i64::try_from(silent.count()).unwrap_or(i64::MAX), Relaxed);
        self.settle_asking();
    }

    /// Requests ask for reports where somebody goes by them and not every endpoint tells them out of
    /// band.
    fn settle_asking(&self) {
        let in_band = self.spec.out_of_band.is_none() || self.live.silent.load(Relaxed) > 0;
        self.live.asks_for_reports.store(in_band && self.spec.reads_reports(), Relaxed);
    }
}

impl Terms {
    /// `None` where reports are not asked for out of band.
    fn of(service: &ServiceState, endpoint: &EndpointState) -> Option<Self> {
        let every = service.streamed_every()?;
        let endpoint = Arc::downgrade(&endpoint.live);
        Some(Self { every, connector: service.connector.terms(), endpoint })
    }
}

impl PartialEq for Terms {
    fn eq(&self, other: &Self) -> bool {
        let same = self.every == other.every && self.connector == other.connector;
        same && Weak::ptr_eq(&self.endpoint, &other.endpoint)
    }
}

impl Backoff {
    /// The next pause; `jitter` is from 0 to 1.
    fn next(&mut self, jitter: f64) -> Duration {
        let pause = FIRST_PAUSE.as_secs_f64() * PAUSE_GROWS.powi(self.tries);
        self.tries = (self.tries + 1).min(20);
        let pause = pause.min(LONGEST_PAUSE.as_secs_f64());
        Duration::from_secs_f64(pause * (0.8 + 0.4 * jitter))
    }
}

/// Listens to one address for as long as its service has it and it has something to say.
async fn follow(service: Weak<ServiceLive>, address: SocketAddr, every: Duration) {
    let mut backoff = Backoff::default();
    let mut warned = false;
    // Not all at once.
    sleep(every.min(FIRST_PAUSE).mul_f64(fastrand::f64())).await;
    loop {
        let Some((state, endpoint)) = now(&service, address) else { return };
        let names = (state.spec.name.clone(), endpoint.spec.name.clone());
        let connected = Connector::connect_uncounted(&state, &endpoint, Some(Wire::Http2)).await;
        let https = state.connector.is_tls();
        // A stream lasts longer than a view of the service should.
        drop((state, endpoint));
        let end = match connected {
            Ok(io) => {
                let counted = [("service", names.0.as_str()), ("endpoint", names.1.as_str())];
                let mut heard = |report: LoadReport| {
                    backoff = Backoff::default();
                    registry().counter("towpath_out_of_band_reports_total", &counted).inc();
                    if let Some((state, endpoint)) = now(&service, address) {
                        state.tells_out_of_band(&endpoint.live, true);
                        state.heed(&endpoint.live, &report, now_ms());
                    }
                };
                listen(io, &names.0, https, every, &mut heard).await
            }
            Err(error) => End::Broken(error.to_string()),
        };
        let pause = backoff.next(fastrand::f64());
        let unknown = end == End::Unknown;
        let reason = match end {
            End::Unknown => "it does not know the method".to_owned(),
            End::Broken(reason) => reason,
        };
        if unknown || backoff.tries == TRIES_BEFORE_REQUESTS_ASK {
            if let Some((state, endpoint)) = now(&service, address) {
                state.tells_out_of_band(&endpoint.live, false);
            }
            if !std::mem::replace(&mut warned, true) {
                let (service, endpoint) = (&names.0, &names.1);
                tracing::warn!(service, endpoint, reason, "{NO_STREAM}");
            }
        } else {
            let (service, endpoint) = (&names.0, &names.1);
            tracing::debug!(service, endpoint, reason, "no load reports out of band for now");
        }
        if unknown {
            return;
        }
        sleep(pause).await;
    }
}

/// The newest view of the service, and of this endpoint in it.
fn now(
    service: &Weak<ServiceLive>,
    address: SocketAddr,
) -> Option<(Arc<ServiceState>, Arc<EndpointState>)> {
    let state = service.upgrade()?.current.load_full()?;
    let endpoint = state.endpoints.iter().find(|e| e.spec.address == address)?.clone();
    Some((state, endpoint))
}

/// Asks for reports and hears them until the stream is over.
async fn listen(
    io: UpstreamIo,
    authority: &str,
    https: bool,
    every: Duration,
    heard: &mut impl FnMut(LoadReport),
) -> End {
    let (mut connection, client) = Connection::client(io, Config::SMALL);
    let request = RequestRef {
        method: &Method::POST,
        https,
        authority,
        path: STREAM_CORE_METRICS,
        headers: &HeaderMap::from_iter([
            (header::USER_AGENT, USER_AGENT),
            (header::CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
        ]),
        te_trailers: true,
        expects_continue: false,
    };
    let Ok(mut stream) = client.open(&request, false) else {
        return End::Broken("the connection takes no request".to_owned());
    };
    let patience = every * 3 + PATIENCE;
    let hearing = async {
        let say = |error: StreamError| error.to_string();
        let late = |_| format!("nothing for {patience:?}");
        stream.send(message(&report_request(every)), true).map_err(say)?;
        let head = loop {
            let head = timeout(patience, poll_fn(|cx| stream.poll_head(cx))).await;
            let head = head.map_err(late)?.map_err(say)?;
            if !head.status.is_informational() {
                break head;
            }
        };
        if let Some(end) = refused(head.status, &head.headers) {
            return Ok::<_, String>(end);
        }
        let mut buffer = BytesMut::new();
        loop {
            let part = timeout(patience, poll_fn(|cx| stream.poll_part(cx))).await;
            match part.map_err(late)?.map_err(say)? {
                Part::End(trailers) => {
                    let fields = trailers.unwrap_or_default();
                    let end = refused(StatusCode::OK, &fields);
                    return Ok(end.unwrap_or(End::Broken("ended".to_owned())));
                }
                Part::Data { bytes, .. } => {
                    stream.credit(bytes.len());
                    buffer.extend_from_slice(&bytes);
                    if let Some(last) = last_message(&mut buffer)? {
                        heard(LoadReport::from_bytes(&last).ok_or("what came is no report")?);
                        sleep(REST).await;
                    }
                }
            }
        }
    };
    let mut hearing = std::pin::pin!(hearing);
    let end: Result<End, String> = tokio::select! {
        biased;
        end = &mut hearing => end,
        // What came before the end is still there to be read.
        () = poll_fn(|cx| connection.poll(cx)) => hearing.await,
    };
    end.unwrap_or_else(End::Broken)
}

/// Whether a head or trailers end the stream, and how.
fn refused(status: StatusCode, fields: &HeaderMap) -> Option<End> {
    match fields.get("grpc-status").map(HeaderValue::as_bytes) {
        Some(UNIMPLEMENTED) => Some(End::Unknown),
        Some(code) => Some(End::Broken(format!("grpc-status {}", String::from_utf8_lossy(code)))),
        // As gRPC takes it.
        None if status == StatusCode::NOT_FOUND => Some(End::Unknown),
        None if status != StatusCode::OK => Some(End::Broken(format!("answered {status}"))),
        None => None,
    }
}

fn message(bytes: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(PREFIX_BYTES + bytes.len());
    message.put_u8(0);
    message.put_u32(u32::try_from(bytes.len()).unwrap_or(0));
    message.put_slice(bytes);
    message.freeze()
}

/// Takes the whole messages out of what came, and keeps the newest.
fn last_message(buffer: &mut BytesMut) -> Result<Option<Bytes>, String> {
    let mut last = None;
    while let Some((&compressed, rest)) = buffer.split_first() {
        let Some(length) = rest.first_chunk::<4>() else { break };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if compressed != 0 || length > MAX_MESSAGE_BYTES {
            return Err(format!("a message of {length} bytes, or a compressed one"));
        }
        if rest.len() < PREFIX_BYTES - 1 + length {
            break;
        }
        buffer.advance(PREFIX_BYTES);
        last = Some(buffer.split_to(length).freeze());
    }
    Ok(last)
}
