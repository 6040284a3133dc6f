//! The door: TLS, bounded bodies, bounded work.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Extension, Json, Router,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::task::AbortOnDropHandle;

use super::{
    certificate::{CertificateError, Keeper, Origin, ensure_authority},
    log::Log,
    options::{Identity, Webhook},
    review::{self, Among, Outcome, Reviewed},
};

/// Largest review: what an API server takes in one request, and what is around it.
const MAX_BODY: usize = 4 << 20;
/// Most values in a review, each of which takes many times its text while it is looked at: without
/// this, `[0,0,…` of two strangers is more than half a gigabyte. Large pods have some thousands.
const MAX_VALUES: usize = 250_000;
/// Bodies in memory at a time.
const MAX_BODIES: usize = 16;
/// Of these, for one address.
const BODIES_OF_ONE: usize = 4;
/// Reviews worked on at a time, beside which xDS must go on.
const MAX_REVIEWS: usize = 2;
/// Connections at a time. An API server keeps few.
const MAX_CONNECTIONS: usize = 256;
/// Of these, from one address: a pod that holds on to all it gets must not keep the API server out.
const CONNECTIONS_OF_ONE: usize = 32;
/// Streams of one.
const MAX_STREAMS: u32 = 32;
/// A connection is asked to end after this, so that those who hold them for nothing give way.
const MAX_AGE: Duration = Duration::from_secs(300);
/// Time for a handshake, for a head, and for a body with its answer. API servers wait for 10 s.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time between looks at the certificate's files and age.
const LOOK: Duration = Duration::from_secs(30);
/// Folder of the authority within the state folder.
const AUTHORITY: &str = "webhook-ca";

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    reviews: [AtomicU64; Outcome::ALL.len()],
    micros: AtomicU64,
    handshake_errors: AtomicU64,
    connections_refused: AtomicU64,
}

impl Counts {
    fn count(&self, outcome: Outcome, took: Duration) {
        self.reviews[outcome as usize].fetch_add(1, Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Prometheus text.
    pub(crate) fn text(&self) -> String {
        const REVIEWS: &str = "towpath_control_plane_webhook_reviews_total";
        const SECONDS: &str = "towpath_control_plane_webhook_review_seconds";
        const HANDSHAKES: &str = "towpath_control_plane_webhook_tls_handshake_errors_total";
        const REFUSED: &str = "towpath_control_plane_webhook_connections_refused_total";
        let mut text = format!(
            "# HELP {REVIEWS} Pods that the API server asked about, by what became of them.\n\
             # TYPE {REVIEWS} counter\n"
        );
        let mut all = 0;
        for outcome in Outcome::ALL {
            let count = self.reviews[outcome as usize].load(Relaxed);
            all += count;
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{REVIEWS}{{outcome=\"{}\"}} {count}", outcome.name());
        }
        let sum = Duration::from_micros(self.micros.load(Relaxed)).as_secs_f64();
        let _ = write!(
            text,
            "# HELP {SECONDS} Time from the whole request to its answer.\n\
             # TYPE {SECONDS} summary\n{SECONDS}_sum {sum}\n{SECONDS}_count {all}\n\
             # HELP {HANDSHAKES} TLS handshakes with the webhook that failed.\n\
             # TYPE {HANDSHAKES} counter\n{HANDSHAKES} {}\n\
             # HELP {REFUSED} Connections closed because their address had its share.\n\
             # TYPE {REFUSED} counter\n{REFUSED} {}\n",
            self.handshake_errors.load(Relaxed),
            self.connections_refused.load(Relaxed)
        );
        text
    }
}

/// The webhook, before it answers.
#[derive(Debug)]
pub(crate) struct Door {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What it will count.
    pub(crate) counts: Arc<Counts>,
    listener: TcpListener,
    webhook: Arc<Webhook>,
    tls: watch::Sender<Arc<ServerConfig>>,
    keeper: Keeper,
}

impl Door {
    /// Makes or reads the certificate. `state` is where an authority of ours is kept.
    pub(crate) fn new(
        webhook: Webhook,
        (listener, address): (TcpListener, SocketAddr),
        state: &Path,
    ) -> Result<Self, CertificateError> {
        let now = SystemTime::now();
        let (folder, origin) = match &webhook.identity {
            Identity::Given(folder) => (folder.clone(), Origin::Given),
            Identity::Authority(folder) => {
                let folder = folder.clone().unwrap_or_else(|| state.join(AUTHORITY));
                ensure_authority(&folder, now)?;
                tracing::info!(
                    authority = %folder.join("tls.crt").display(),
                    "the webhook's certificates are signed by this one (caBundle)"
                );
                (folder, Origin::Authority(webhook.names.clone()))
            }
        };
        let mut keeper = Keeper::new(folder.clone(), origin);
        let Some(config) = keeper.look(now)? else {
            return Err(CertificateError::Unusable { folder, what: "nothing to read".to_owned() });
        };
        let (tls, _) = watch::channel(config);
        let (webhook, counts) = (Arc::new(webhook), Arc::default());
        Ok(Self { address, counts, listener, webhook, tls, keeper })
    }

    /// Answers until `stop`, and renews what it serves with.
    pub(crate) async fn serve(self, stop: watch::Receiver<bool>) -> Result<(), Infallible> {
        let desk = Desk {
            webhook: self.webhook,
            counts: self.counts,
            log: Arc::default(),
            bodies: Arc::new(Semaphore::new(MAX_BODIES)),
            reviews: Arc::new(Semaphore::new(MAX_REVIEWS)),
        };
        let tls = self.tls.subscribe();
        let _renewing = AbortOnDropHandle::new(tokio::spawn(renew(self.keeper, self.tls)));
        accept(self.listener, tls, desk, stop).await;
        Ok(())
    }
}

async fn renew(mut keeper: Keeper, tls: watch::Sender<Arc<ServerConfig>>) {
    let mut told = None;
    loop {
        tokio::time::sleep(LOOK).await;
        // A few small files and a signature; the disk may be slow.
        let looked = tokio::task::spawn_blocking(move || {
            let looked = keeper.look(SystemTime::now());
            (keeper, looked)
        });
        let Ok((kept, looked)) = looked.await else { return };
        keeper = kept;
        match looked {
            Ok(None) => {}
            Ok(Some(config)) => {
                told = None;
                tracing::info!("the webhook has a new certificate");
                tls.send_replace(config);
            }
            // Told once: it is the same every time.
            Err(error) => {
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    tracing::error!(%error, "the webhook keeps its certificate");
                }
                told = Some(error);
            }
        }
    }
}

async fn accept(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    desk: Desk,
    mut stop: watch::Receiver<bool>,
) {
    let router = router(desk.clone());
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut peers: HashMap<IpAddr, Arc<Peer>> = HashMap::new();
    // Dropped at the end, which ends them all.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let (Ok(place), Ok((stream, from))) = (place, accepted) else {
            // Out of descriptors, mostly.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if peers.len() > MAX_CONNECTIONS {
            peers.retain(|_, peer| Arc::strong_count(peer) > 1);
        }
        let peer = peers.entry(from.ip().to_canonical()).or_default().clone();
        let Ok(share) = peer.connections.clone().try_acquire_owned() else {
            desk.counts.connections_refused.fetch_add(1, Relaxed);
            desk.log.refused(from, CONNECTIONS_OF_ONE);
            continue;
        };
        let router = router.clone().layer(Extension(peer)).layer(Extension(from));
        let (config, stop, desk) = (tls.borrow().clone(), stop.clone(), desk.clone());
        connections.spawn(async move {
            match handshake(stream, config).await {
                Ok(Some(stream)) => connection(stream, router, stop).await,
                Ok(None) => {}
                Err(why) => {
                    desk.counts.handshake_errors.fetch_add(1, Relaxed);
                    desk.log.handshake(from, &why);
                }
            }
            drop((share, place));
        });
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(TIMEOUT, ended).await;
}

/// `None` where the client did not say a word: somebody looked whether the port is open, or opened a
/// connection ahead of time.
async fn handshake(
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> Result<Option<TlsStream<TcpStream>>, String> {
    let _ = stream.set_nodelay(true);
    let until = tokio::time::Instant::now() + TIMEOUT;
    if !matches!(tokio::time::timeout_at(until, stream.peek(&mut [0])).await, Ok(Ok(1))) {
        return Ok(None);
    }
    match tokio::time::timeout_at(until, TlsAcceptor::from(config).accept(stream)).await {
        Ok(shaken) => shaken.map(Some).map_err(|error| error.to_string()),
        Err(_) => Err(format!("not done within {} s", TIMEOUT.as_secs())),
    }
}

async fn connection(stream: TlsStream<TcpStream>, router: Router, mut stop: watch::Receiver<bool>) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
    let service = TowerToHyperService::new(router);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = connection.as_mut() => return,
        () = tokio::time::sleep(MAX_AGE) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(TIMEOUT, connection).await;
}

/// What one address may take at a time.
#[derive(Debug)]
struct Peer {
    connections: Arc<Semaphore>,
    bodies: Semaphore,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(CONNECTIONS_OF_ONE)),
            bodies: Semaphore::new(BODIES_OF_ONE),
        }
    }
}

#[derive(Clone)]
struct Desk {
    webhook: Arc<Webhook>,
    counts: Arc<Counts>,
    log: Arc<Log>,
    bodies: Arc<Semaphore>,
    reviews: Arc<Semaphore>,
}

fn router(desk: Desk) -> Router {
    let all = async |desk: State<Desk>, request: Request| review(desk.0, Among::All, request).await;
    let annotated =
        async |desk: State<Desk>, request: Request| review(desk.0, Among::Annotated, request).await;
    Router::new()
        .route("/inject", post(all))
        .route("/inject/annotated", post(annotated))
        .fallback(async |desk: State<Desk>, request: Request| {
            elsewhere(&desk, StatusCode::NOT_FOUND, &request)
        })
        .method_not_allowed_fallback(async |desk: State<Desk>, request: Request| {
            elsewhere(&desk, StatusCode::METHOD_NOT_ALLOWED, &request)
        })
        .with_state(desk)
}

/// What is asked where no review is: a `clientConfig` may name another path.
fn elsewhere(desk: &Desk, status: StatusCode, request: &Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let why = format!("{method} {path}: reviews are sent by POST to /inject or /inject/annotated");
    desk.unanswered(client(request), (status, why))
}

fn client(request: &Request) -> Option<SocketAddr> {
    request.extensions().get().copied()
}

async fn review(desk: Desk, among: Among, request: Request) -> Response {
    let client = client(&request);
    let answer = tokio::time::timeout(TIMEOUT, desk.answer(among, request)).await;
    let answer =
        answer.unwrap_or_else(|_| Err((StatusCode::REQUEST_TIMEOUT, "too slow".to_owned())));
    answer.unwrap_or_else(|refusal| desk.unanswered(client, refusal))
}

impl Desk {
    /// Counts and logs a request that gets no review's answer, and tells the client why.
    fn unanswered(
        &self,
        client: Option<SocketAddr>,
        (status, why): (StatusCode, String),
    ) -> Response {
        self.counts.count(Outcome::BadRequest, Duration::ZERO);
        self.log.request(client, &why);
        (status, why + "\n").into_response()
    }

    async fn answer(
        &self,
        among: Among,
        request: Request,
    ) -> Result<Response, (StatusCode, String)> {
        let kind = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.as_bytes());
        let is_json = kind.is_some_and(|kind| {
            let kind = kind.split(|b| *b == b';').next().unwrap_or_default();
            kind.trim_ascii().eq_ignore_ascii_case(b"application/json")
        });
        if !is_json {
            let why = "expected application/json".to_owned();
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
        }
        let ending = |_| (StatusCode::SERVICE_UNAVAILABLE, "ending".to_owned());
        let client = client(&request);
        let peer = request.extensions().get::<Arc<Peer>>().cloned().unwrap_or_default();
        // One's own share first: who waits for that stands in nobody's way.
        let _share = peer.bodies.acquire().await.map_err(ending)?;
        let _place = self.bodies.acquire().await.map_err(ending)?;
        let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|error| {
            let status = match error.is::<LengthLimitError>() {
                true => StatusCode::PAYLOAD_TOO_LARGE,
                false => StatusCode::BAD_REQUEST,
            };
            (status, error.to_string())
        })?;
        let (body, begin) = (body.to_bytes(), Instant::now());
        if values(&body) > MAX_VALUES {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, "too many values".to_owned()));
        }
        let turn = self.reviews.clone().acquire_owned().await.map_err(ending)?;
        let webhook = self.webhook.clone();
        let work = tokio::task::spawn_blocking(move || {
            let answer = review::answer(&body, &webhook.options, among, webhook.on_problem);
            drop(turn);
            answer
        });
        let failed = |_| (StatusCode::INTERNAL_SERVER_ERROR, "failed".to_owned());
        let answer = work.await.map_err(failed)?;
        let reviewed = answer.map_err(|why| (StatusCode::BAD_REQUEST, why.to_string()))?;
        let Reviewed { answer, outcome, trouble } = reviewed;
        self.counts.count(outcome, begin.elapsed());
        if let Some(trouble) = trouble {
            self.log.trouble(client, &trouble);
        }
        Ok(Json(answer).into_response())
    }
}

/// No fewer than the values in a JSON text: each stands behind one of these, or is the first.
fn values(json: &[u8]) -> usize {
    1 + json.iter().filter(|b| b"[{:,".contains(b)).count()
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use axum::body::Body;
    use bytes::Bytes;
    use hyper::body::Frame;
    use tokio::io::AsyncWriteExt as _;
    use towpath_inject::Options;

    use super::*;
    use crate::webhook::{OnProblem, log::tests::Heard};

    fn desk() -> Desk {
        let webhook = Webhook {
            address: ([127, 0, 0, 1], 0).into(),
            names: Vec::new(),
            identity: Identity::Authority(None),
            options: Options::new("0.1.0"),
            on_problem: OnProblem::Warn,
        };
        Desk {
            webhook: Arc::new(webhook),
            counts: Arc::default(),
            log: Arc::default(),
            bodies: Arc::new(Semaphore::new(1)),
            reviews: Arc::new(Semaphore::new(1)),
        }
    }

    /// Sends so much, and then nothing for ever.
    struct Slow(usize);

    impl hyper::body::Body for Slow {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            const PART: usize = 64 << 10;
            if self.0 < PART {
                return Poll::Pending;
            }
            self.0 -= PART;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b' '; PART])))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_cannot_take_all_places_for_bodies() {
        let desk = Desk { bodies: Arc::new(Semaphore::new(MAX_BODIES)), ..desk() };
        let (slow, other) = (Arc::<Peer>::default(), Arc::<Peer>::default());
        let asked = |peer: &Arc<Peer>, body| {
            let mut request = request("application/json", body);
            request.extensions_mut().insert(peer.clone());
            review(desk.clone(), Among::All, request)
        };
        let held = (0..MAX_BODIES).map(|_| asked(&slow, Body::new(Slow(0))));
        let held: Vec<_> = held.map(tokio::spawn).collect();
        while slow.bodies.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let response = asked(&other, Body::from("{}")).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert!(held.iter().all(|one| !one.is_finished()), "nobody had to give up for it");
        for one in held {
            assert_eq!(one.await.unwrap().status(), StatusCode::REQUEST_TIMEOUT);
        }
    }

    fn request(kind: &str, body: Body) -> Request {
        Request::post("/inject").header(header::CONTENT_TYPE, kind).body(body).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_send_too_much_too_slowly_or_something_else_are_sent_away() {
        let desk = desk();
        for (kind, body, expected) in [
            ("application/json", Body::new(Slow(MAX_BODY + (1 << 20))), 413),
            ("application/json", Body::new(Slow(0)), 408),
            ("application/json", Body::from("0,".repeat(MAX_VALUES)), 413),
            ("application/json; charset=utf-8", Body::from("{}"), 400),
            ("text/plain", Body::from("{}"), 415),
            ("", Body::from("{}"), 415),
        ] {
            let response = review(desk.clone(), Among::All, request(kind, body)).await;
            assert_eq!(response.status().as_u16(), expected, "{kind}");
        }
        // Nobody is left behind in the queue for bodies.
        assert_eq!(desk.bodies.available_permits(), 1);
        let text = desk.counts.text();
        assert!(text.contains("reviews_total{outcome=\"bad_request\"} 6\n"), "{text}");
    }

    #[tokio::test]
    async fn what_goes_wrong_is_a_line_in_the_log() {
        let (desk, heard) = (desk(), Heard::begin());
        let taken = include_str!("../../testdata/admission/port-taken.json");
        let fine = include_str!("../../testdata/admission/deployment.json");
        let client = SocketAddr::from(([192, 0, 2, 7], 5));
        for (body, expected) in [(taken, 200), (fine, 200), ("{", 400)] {
            let mut request = request("application/json", Body::from(body));
            request.extensions_mut().insert(client);
            let response = review(desk.clone(), Among::All, request).await;
            assert_eq!(response.status().as_u16(), expected);
        }
        let lines = heard.lines();
        let [pod, bad] = lines.as_slice() else { panic!("{lines:?}") };
        let of_it = ["etl", "port-taken-6d5f96fbd5-", "ReplicaSet/", "port 9901"];
        for part in ["WARN", "192.0.2.7:5"].iter().chain(&of_it) {
            assert!(pod.contains(part), "{part} in {pod}");
        }
        for part in ["WARN", "192.0.2.7:5", "not an AdmissionReview"] {
            assert!(bad.contains(part), "{part} in {bad}");
        }
    }

    #[tokio::test]
    async fn a_wrong_path_is_counted_and_the_log_names_it() {
        let (desk, heard) = (desk(), Heard::begin());
        let service = TowerToHyperService::new(router(desk.clone()));
        let client = SocketAddr::from(([192, 0, 2, 7], 5));
        for (method, path, expected) in [("POST", "/injct", 404), ("GET", "/inject", 405)] {
            let request = Request::builder().method(method).uri(path).extension(client);
            let request = request.body(Body::empty()).unwrap();
            let response = hyper::service::Service::call(&service, request).await.unwrap();
            assert_eq!(response.status().as_u16(), expected, "{path}");
            let lines = heard.lines();
            let last = lines.last().unwrap();
            for part in ["192.0.2.7:5", &format!("{method} {path}:"), "/inject/annotated"] {
                assert!(last.contains(part), "{part} in {last}");
            }
        }
        let text = desk.counts.text();
        assert!(text.contains("reviews_total{outcome=\"bad_request\"} 2\n"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_handshake_that_was_begun_fails_for_taking_too_long() {
        let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
        ensure_authority(folder.path(), now).unwrap();
        let origin = Origin::Authority(vec!["webhook.example".to_owned()]);
        let config = Keeper::new(folder.path().to_owned(), origin).look(now).unwrap().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (begin, expected) in
            [(b"".as_slice(), Ok(false)), (b"\x16", Err("not done within 10 s".to_owned()))]
        {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            client.write_all(begin).await.unwrap();
            if !begin.is_empty() {
                // It has arrived, before time passes.
                stream.readable().await.unwrap();
            }
            let shaken = handshake(stream, config.clone()).await;
            assert_eq!(shaken.map(|stream| stream.is_some()), expected, "{begin:?}");
        }
    }
}
