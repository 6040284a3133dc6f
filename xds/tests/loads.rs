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
    LoadStatsRequest, load_reporting_service_client::LoadReportingServiceClient,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use towpath_policies::model::{Locality, Node, Snapshot};
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
    events: Mutex<mpsc::UnboundedSender<Event>>,
    terms: Option<Terms>,
}

impl Source {
    fn tell(&self, event: Event) {
        let _ = self.events.lock().expect("not poisoned").send(event);
    }
}

impl Views for Source {
    fn watch(&self, _: &Node) -> watch::Receiver<Arc<Snapshot>> {
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

struct Server {
    address: SocketAddr,
    events: mpsc::UnboundedReceiver<Event>,
    stop: Option<oneshot::Sender<()>>,
    done: oneshot::Receiver<()>,
}

impl Server {
    async fn start(terms: Option<Terms>, takes_loads: bool) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let version = Snapshot { version: "1".to_owned(), ..Snapshot::default() };
        let snapshots = watch::Sender::new(Arc::new(version));
        let source = Arc::new(Source { snapshots, events: Mutex::new(sender), terms });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let (finished, done) = oneshot::channel();
        let server = AdsServer::new(source.clone());
        let server = if takes_loads { server.with_loads(source) } else { server };
        tokio::spawn(async move {
            let _ = server.serve(listener, async { drop(stopped.await) }).await;
            let _ = finished.send(());
        });
        Self { address, events, stop: Some(stop), done }
    }

    async fn event(&mut self) -> Event {
        timeout(PATIENCE, self.events.recv()).await.expect("the event comes").expect("it runs")
    }
}

fn terms() -> Terms {
    Terms { services: None, every: Duration::from_millis(100), per_endpoint: true }
}

fn options(address: SocketAddr) -> Options {
    let node = Node { id: "proxy-1".to_owned(), cluster: "proxies".to_owned() };
    Options::new(address.to_string(), node)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reports_what_it_counts_until_it_goes() {
    let mut server = Server::start(Some(terms()), true).await;
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
async fn a_server_that_takes_no_reports_or_no_more_is_served_by_ads_alone() {
    for (terms, takes_loads) in [(Some(terms()), false), (None, true)] {
        let mut server = Server::start(terms, takes_loads).await;
        let (applied, mut snapshots) = mpsc::unbounded_channel();
        // A panic would be lost with the task.
        let asked = Arc::new(AtomicU64::new(0));
        let counting = asked.clone();
        let count = move || {
            counting.fetch_add(1, Relaxed);
            Vec::new()
        };
        let client =
            AdsClient::start_reporting(options(server.address), Arc::new(count), move |snapshot| {
                let _ = applied.send(snapshot);
                Ok(())
            });
        let client = client.expect("an address");
        timeout(PATIENCE, snapshots.recv()).await.expect("in time").expect("a snapshot");
        if takes_loads {
            // It was turned away before it offers again.
            for _ in 0..2 {
                assert!(matches!(server.event().await, Event::Offered { .. }));
            }
        }
        assert!(client.status().borrow().connected);
        assert_eq!(asked.load(Relaxed), 0, "nobody wants to know");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_of_the_server_ends_the_streams_of_reports() {
    let mut server = Server::start(Some(terms()), true).await;
    let _client =
        AdsClient::start_reporting(options(server.address), Arc::new(Vec::new), |_| Ok(()));
    assert!(matches!(server.event().await, Event::Offered { .. }));
    let _ = server.stop.take().expect("once").send(());
    timeout(PATIENCE, &mut server.done).await.expect("streams do not hold it up").expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_name_is_refused() {
    let server = Server::start(Some(terms()), true).await;
    let url = format!("http://{}", server.address);
    let mut client = LoadReportingServiceClient::connect(url).await.expect("connects");
    let first = tokio_stream::iter([LoadStatsRequest::default()]);
    let mut answers = client.stream_load_stats(first).await.expect("opens").into_inner();
    let refused = answers.message().await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
}
