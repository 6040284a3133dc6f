//! Load reports beside ADS, over loopback sockets in one process.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use envoy_types::pb::envoy::service::load_stats::v3::{
    LoadStatsRequest, LoadStatsResponse,
    load_reporting_service_client::LoadReportingServiceClient,
    load_reporting_service_server::{LoadReportingService, LoadReportingServiceServer},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};
use towpath_policies::model::{
    Bind, Chain, ChainKind, EndpointSet, Listener, Locality, Location, Node, Protocol, Service,
    Snapshot, TcpForward, WeightedBackend,
};
use towpath_xds::{
    client::{AdsClient, Counted, CountedEndpoint, Options},
    load::{BYTES, GOODPUT_FACTOR, ServiceLoad, Sum, Terms},
    server::{AdsServer, Loads, StreamEvent, StreamId, Views},
};

/// Nothing on loopback takes this long, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq)]
enum Event {
    Offered { node: String, all: bool },
    Told(Vec<ServiceLoad>),
    Ended,
}

struct Source {
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// ADS streams so far.
    streams: AtomicU64,
    events: Mutex<mpsc::UnboundedSender<Event>>,
    terms: Option<Terms>,
}

impl Source {
    fn new(events: mpsc::UnboundedSender<Event>, terms: Option<Terms>) -> Arc<Self> {
        let snapshots = watch::Sender::new(world("1"));
        let streams = AtomicU64::new(0);
        Arc::new(Self { snapshots, streams, events: Mutex::new(events), terms })
    }

    fn serve(&self, version: &str) {
        self.snapshots.send_replace(world(version));
    }

    fn tell(&self, event: Event) {
        let _ = self.events.lock().expect("not poisoned").send(event);
    }
}

impl Views for Source {
    fn watch(&self, _: &Node) -> watch::Receiver<Arc<Snapshot>> {
        self.streams.fetch_add(1, Relaxed);
        self.snapshots.subscribe()
    }

    fn observe(&self, _: StreamEvent) {}
}

impl Loads for Source {
    fn offered(&self, _: StreamId, node: &Node, all: bool) -> Option<Terms> {
        self.tell(Event::Offered { node: node.id.clone(), all });
        self.terms.clone()
    }

    fn told(&self, _: StreamId, loads: Vec<ServiceLoad>) {
        self.tell(Event::Told(loads));
    }

    fn ended(&self, _: StreamId) {
        self.tell(Event::Ended);
    }
}

/// One listener, called as the version, and its service.
fn world(version: &str) -> Arc<Snapshot> {
    let mut world = Snapshot { version: version.to_owned(), ..Snapshot::default() };
    let backends = vec![WeightedBackend::new("s")];
    let kind = ChainKind::Tcp(TcpForward { backends, idle_timeout: None });
    let listener = Listener {
        name: version.to_owned(),
        bind: Bind::Socket(([127, 0, 0, 1], 80).into()),
        chains: vec![Chain::new(vec![], None, kind)],
        location: Location::default(),
        proxy_protocol: None,
    };
    world.listeners.insert(version.to_owned(), Arc::new(listener));
    world.services.insert("s".to_owned(), Arc::new(Service::new("s", Protocol::Tcp)));
    world.endpoints.insert("s".to_owned(), Arc::new(EndpointSet::new("s".to_owned(), vec![])));
    Arc::new(world)
}

struct Server {
    address: SocketAddr,
    source: Arc<Source>,
    events: mpsc::UnboundedReceiver<Event>,
    stop: Option<oneshot::Sender<()>>,
    done: oneshot::Receiver<()>,
}

impl Server {
    async fn start(terms: Option<Terms>) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let source = Source::new(sender, terms);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let (finished, done) = oneshot::channel();
        let server = AdsServer::new(source.clone()).with_loads(source.clone());
        tokio::spawn(async move {
            let _ = server.serve(listener, async { drop(stopped.await) }).await;
            let _ = finished.send(());
        });
        Self { address, source, events, stop: Some(stop), done }
    }

    async fn event(&mut self) -> Event {
        timeout(PATIENCE, self.events.recv()).await.expect("the event comes").expect("it runs")
    }
}

/// Counts how often it is asked what was counted.
struct Client {
    ads: AdsClient,
    counted: Arc<AtomicU64>,
    applied: mpsc::UnboundedReceiver<Arc<Snapshot>>,
}

impl Client {
    fn start(address: SocketAddr) -> Self {
        let (sender, applied) = mpsc::unbounded_channel();
        let counted = Arc::<AtomicU64>::default();
        let counting = counted.clone();
        // A panic would be lost with the task.
        let count = move || {
            counting.fetch_add(1, Relaxed);
            Vec::new()
        };
        let ads = AdsClient::start_reporting(options(address), Arc::new(count), move |snapshot| {
            let _ = sender.send(snapshot);
            Ok(())
        });
        Self { ads: ads.expect("an address"), counted, applied }
    }

    /// Returns when this version is applied; on the way to it the one before may be once more.
    async fn applies(&mut self, version: &str) {
        let wait = async {
            loop {
                let snapshot = self.applied.recv().await.expect("it runs");
                if snapshot.listeners.keys().eq([version]) {
                    return;
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("a snapshot comes");
    }
}

/// Notes who offers load reports, and says that it does not know what that is.
struct KnowsNothing(mpsc::UnboundedSender<()>);

#[tonic::async_trait]
impl LoadReportingService for KnowsNothing {
    type StreamLoadStatsStream = tokio_stream::Empty<Result<LoadStatsResponse, Status>>;

    async fn stream_load_stats(
        &self,
        _: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let _ = self.0.send(());
        Err(Status::unimplemented("what is that"))
    }
}

fn terms() -> Terms {
    Terms { services: None, every: Duration::from_millis(100), per_endpoint: true }
}

fn options(address: SocketAddr) -> Options {
    let node = Node { id: "proxy-1".to_owned(), cluster: "proxies".to_owned(), sidecar: false };
    Options::new(address.to_string(), node)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reports_what_it_counts_until_it_goes() {
    let mut server = Server::start(Some(terms())).await;
    let asked = Arc::new(AtomicU64::new(0));
    let counting = asked.clone();
    // Each time it is asked ten requests more were made.
    let count = move || {
        let issued = 10 * (1 + counting.fetch_add(1, Relaxed));
        let endpoint = CountedEndpoint {
            address: ([10, 0, 0, 1], 80).into(),
            locality: Locality { region: "us".to_owned(), ..Locality::default() },
            priority: 0,
            issued,
            failed: 0,
            in_progress: 1,
            metrics: vec![
                (GOODPUT_FACTOR, Sum { count: issued, total: issued as f64 / 2.0 }),
                (BYTES, Sum { count: issued, total: issued as f64 * 1000.0 }),
            ],
            now: vec![],
        };
        vec![Counted { service: "s".to_owned(), dropped: 0, endpoints: vec![endpoint] }]
    };
    let client = AdsClient::start_reporting(options(server.address), Arc::new(count), |_| Ok(()));
    let client = client.expect("an address");
    let offered = Event::Offered { node: "proxy-1".to_owned(), all: true };
    assert_eq!(server.event().await, offered);
    for _ in 0..3 {
        let Event::Told(loads) = server.event().await else { panic!("a report comes") };
        let [load] = loads.as_slice() else { panic!("{loads:?}") };
        assert!(load.service == "s" && load.over >= Duration::from_millis(90), "{load:?}");
        let [place] = load.localities.as_slice() else { panic!("{load:?}") };
        assert_eq!(place.locality.region, "us");
        let [endpoint] = place.endpoints.as_slice() else { panic!("{load:?}") };
        assert_eq!((endpoint.load.issued, endpoint.load.succeeded), (10, 10));
        assert_eq!(endpoint.load.metrics[GOODPUT_FACTOR], Sum { count: 10, total: 5.0 });
        assert_eq!(endpoint.load.metrics[BYTES], Sum { count: 10, total: 1e4 });
        assert_eq!(place.load.metrics, endpoint.load.metrics);
    }
    drop(client);
    while server.event().await != Event::Ended {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_know_reports_goes_on_to_serve_by_the_same_stream() {
    let (asks, mut asked) = mpsc::unbounded_channel();
    let (events, _) = mpsc::unbounded_channel();
    let source = Source::new(events, None);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let server = tonic::transport::Server::builder()
        .add_service(AdsServer::new(source.clone()).into_service())
        .add_service(LoadReportingServiceServer::new(KnowsNothing(asks)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let server = tokio::spawn(server);
    let mut client = Client::start(address);
    client.applies("1").await;
    timeout(PATIENCE, asked.recv()).await.expect("it is asked").expect("it runs");
    // What is served once the client has acknowledged what came after the refusal comes after that.
    for version in ["2", "3"] {
        source.serve(version);
        client.applies(version).await;
    }
    assert!(client.ads.status().borrow().connected);
    assert_eq!((source.streams.load(Relaxed), client.counted.load(Relaxed)), (1, 0));
    assert!(asked.try_recv().is_err(), "nor is it asked again");
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_no_more_reports_goes_on_to_serve_by_the_same_stream() {
    let mut server = Server::start(None).await;
    let mut client = Client::start(server.address);
    client.applies("1").await;
    // It was turned away before it offers again.
    for _ in 0..2 {
        assert!(matches!(server.event().await, Event::Offered { .. }));
    }
    server.source.serve("2");
    client.applies("2").await;
    assert!(client.ads.status().borrow().connected);
    assert_eq!((server.source.streams.load(Relaxed), client.counted.load(Relaxed)), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_of_the_server_ends_the_streams_of_reports() {
    let mut server = Server::start(Some(terms())).await;
    let _client =
        AdsClient::start_reporting(options(server.address), Arc::new(Vec::new), |_| Ok(()));
    assert!(matches!(server.event().await, Event::Offered { .. }));
    let _ = server.stop.take().expect("once").send(());
    timeout(PATIENCE, &mut server.done).await.expect("streams do not hold it up").expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_name_is_refused() {
    let server = Server::start(Some(terms())).await;
    let url = format!("http://{}", server.address);
    let mut client = LoadReportingServiceClient::connect(url).await.expect("connects");
    let first = tokio_stream::iter([LoadStatsRequest::default()]);
    let mut answers = client.stream_load_stats(first).await.expect("opens").into_inner();
    let refused = answers.message().await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
}
