//! Server and client shells over loopback sockets, in one process.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use towpath_policies::model::{
    Bind, Chain, ChainKind, Endpoint, EndpointSet, Listener, Location, Node, Protocol, ResourceKey,
    ResourceKind, Service, Snapshot, TcpForward, WeightedBackend,
};
use towpath_xds::{
    Flavour,
    client::{AdsClient, Options},
    server::{AdsServer, StreamEvent, Views},
};

/// Nothing on loopback takes this long, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);
const BOTH: [Flavour; 2] = [Flavour::Delta, Flavour::StateOfTheWorld];

fn world(version: u32, port: u16) -> Arc<Snapshot> {
    let mut world = Snapshot { version: version.to_string(), ..Snapshot::default() };
    let backend = WeightedBackend::new("s");
    let kind = ChainKind::Tcp(TcpForward { backends: vec![backend], idle_timeout: None });
    let listener = Listener {
        name: "l".to_owned(),
        bind: Bind::Socket(SocketAddr::from(([127, 0, 0, 1], 80))),
        chains: vec![Chain::new(vec![], None, kind)],
        location: Location::default(),
        proxy_protocol: None,
    };
    let endpoints = vec![Endpoint::new(SocketAddr::from(([10, 0, 0, 1], port)))];
    world.listeners.insert("l".to_owned(), Arc::new(listener));
    world.services.insert("s".to_owned(), Arc::new(Service::new("s", Protocol::Tcp)));
    world.endpoints.insert("s".to_owned(), Arc::new(EndpointSet::new("s".to_owned(), endpoints)));
    Arc::new(world)
}

struct Source {
    snapshots: watch::Sender<Arc<Snapshot>>,
    events: mpsc::UnboundedSender<StreamEvent>,
}

impl Views for Source {
    fn watch(&self, _: &Node) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    fn observe(&self, event: StreamEvent) {
        let _ = self.events.send(event);
    }
}

/// A running server.
struct Server {
    source: Arc<Source>,
    events: mpsc::UnboundedReceiver<StreamEvent>,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(address: SocketAddr, world: Arc<Snapshot>) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let source = Arc::new(Source { snapshots: watch::Sender::new(world), events: sender });
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel();
        let server = AdsServer::new(source.clone());
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            server.serve(listener, stopped).await.expect("serves");
        });
        Self { source, events, address, stop, task }
    }

    async fn stop(self) -> SocketAddr {
        let _ = self.stop.send(());
        timeout(PATIENCE, self.task).await.expect("open streams do not hold it up").expect("ends");
        self.address
    }

    async fn event(&mut self, wanted: impl Fn(&StreamEvent) -> bool) -> StreamEvent {
        let wait = async {
            loop {
                let event = self.events.recv().await.expect("the server runs");
                if wanted(&event) {
                    return event;
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("the event comes")
    }
}

/// Takes every snapshot, unless its endpoint's port is odd.
struct Client {
    client: AdsClient,
    applied: mpsc::UnboundedReceiver<Arc<Snapshot>>,
}

impl Client {
    fn start(address: SocketAddr, flavour: Flavour) -> Self {
        let (sender, applied) = mpsc::unbounded_channel();
        let sender = Mutex::new(sender);
        let node = Node { id: "proxy-1".to_owned(), cluster: "proxies".to_owned(), sidecar: false };
        let options = Options {
            flavour,
            backoff_max: Duration::from_millis(200),
            ..Options::new(address.to_string(), node)
        };
        let apply = move |snapshot: Arc<Snapshot>| {
            if port(&snapshot) % 2 == 1 {
                let key = ResourceKey { kind: ResourceKind::EndpointSet, name: "s".to_owned() };
                return Err(vec![(key, "odd".to_owned())]);
            }
            let _ = sender.lock().expect("not poisoned").send(snapshot);
            Ok(())
        };
        Self { client: AdsClient::start(options, apply).expect("an address"), applied }
    }

    async fn next(&mut self) -> Arc<Snapshot> {
        timeout(PATIENCE, self.applied.recv()).await.expect("a snapshot comes").expect("runs")
    }

    async fn connected(&self, connected: bool) {
        let mut status = self.client.status();
        let wait = status.wait_for(|status| status.connected == connected);
        timeout(PATIENCE, wait).await.expect("it notices").expect("runs");
    }
}

fn port(snapshot: &Snapshot) -> u16 {
    snapshot.endpoints["s"].endpoints[0].address.port()
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[tokio::test]
async fn snapshots_travel_and_acknowledgements_come_back() {
    for flavour in BOTH {
        let mut server = Server::start(any_port(), world(1, 2)).await;
        let mut client = Client::start(server.address, flavour);
        let first = client.next().await;
        assert_eq!((first.version.as_str(), port(&first)), ("1", 2));
        let connected = server.event(|e| matches!(e, StreamEvent::Connected { .. })).await;
        let StreamEvent::Connected { node, peer, flavour: spoken, .. } = connected else {
            panic!("filtered")
        };
        assert_eq!((node.id.as_str(), node.cluster.as_str()), ("proxy-1", "proxies"));
        assert!(peer.is_some_and(|peer| peer.ip().is_loopback()));
        assert_eq!(spoken, flavour);
        server.source.snapshots.send_replace(world(2, 4));
        assert_eq!(port(&*client.next().await), 4);
        server.event(|e| matches!(e, StreamEvent::Synced { version, .. } if version == "2")).await;
        drop(client);
        server.event(|e| matches!(e, StreamEvent::Disconnected { .. })).await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_rejection_names_the_resource_and_the_last_good_stays() {
    for flavour in BOTH {
        let mut server = Server::start(any_port(), world(1, 2)).await;
        let mut client = Client::start(server.address, flavour);
        client.next().await;
        server.source.snapshots.send_replace(world(2, 3));
        let nack = server.event(|e| matches!(e, StreamEvent::Nack { .. })).await;
        let StreamEvent::Nack { kind, version, resources, .. } = nack else { panic!("filtered") };
        assert_eq!((kind, version.as_str()), (ResourceKind::EndpointSet, "2"));
        assert_eq!(resources, [("s".to_owned(), "odd".to_owned())]);
        assert_eq!(client.client.status().borrow().version.as_deref(), Some("1"));
        server.source.snapshots.send_replace(world(3, 4));
        assert_eq!(port(&*client.next().await), 4);
        server.stop().await;
    }
}

#[tokio::test]
async fn the_server_may_be_away_and_come_back() {
    for flavour in BOTH {
        // Nobody is there yet.
        let address = Server::start(any_port(), world(1, 2)).await.stop().await;
        let mut client = Client::start(address, flavour);
        let mut status = client.client.status();
        let refused = |s: &towpath_xds::client::Status| {
            s.error.as_ref().is_some_and(|error| error.contains("cannot connect"))
        };
        timeout(PATIENCE, status.wait_for(refused)).await.expect("it says so").expect("runs");

        let server = Server::start(address, world(1, 2)).await;
        assert_eq!(port(&*client.next().await), 2);
        server.stop().await;
        client.connected(false).await;
        assert_eq!(client.client.status().borrow().version.as_deref(), Some("1"));

        // Equal content after a restart: resumed, not applied again; then a change.
        let server = Server::start(address, world(1, 2)).await;
        client.connected(true).await;
        server.source.snapshots.send_replace(world(2, 6));
        assert_eq!(port(&*client.next().await), 6);
        server.stop().await;
    }
}

#[tokio::test]
async fn an_unready_server_sends_nothing() {
    let server = Server::start(any_port(), Arc::default()).await;
    let mut client = Client::start(server.address, Flavour::Delta);
    client.connected(true).await;
    server.source.snapshots.send_replace(world(1, 2));
    assert_eq!(client.next().await.version, "1");
    server.stop().await;
}

#[test]
fn a_bad_address_is_refused_with_its_text() {
    for address in ["", "https://x:1", "not an address", "http://"] {
        let options = Options::new(address, Node::default());
        let error = AdsClient::start(options, |_| Ok(())).expect_err("refused");
        assert!(error.contains(address), "{error}");
    }
}
