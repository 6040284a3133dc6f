//! Configuration from an xDS server: applied, rejected, and kept for bad days.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinHandle,
};
use towpath_policies::model::*;
use towpath_proxy::{Config, Running, SourceConfig};
use towpath_xds::server::{AdsServer, StreamEvent, Views};

use crate::support::*;

/// Serves one snapshot to everyone, and remembers what it was told.
struct ControlPlane {
    address: SocketAddr,
    snapshot: watch::Sender<Arc<Snapshot>>,
    events: Arc<Mutex<Vec<StreamEvent>>>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

struct Everyone {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    events: Arc<Mutex<Vec<StreamEvent>>>,
}

impl Views for Everyone {
    fn watch(&self, _: &Node) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    fn observe(&self, event: StreamEvent) {
        self.events.lock().unwrap().push(event);
    }
}

impl ControlPlane {
    async fn start(snapshot: Arc<Snapshot>) -> Self {
        let listener = TcpListener::bind(local(0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (snapshot, seen) = watch::channel(snapshot);
        let events = Arc::<Mutex<Vec<_>>>::default();
        let views = Everyone { snapshot: seen, events: events.clone() };
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            AdsServer::new(Arc::new(views)).serve(listener, stopped).await.unwrap();
        });
        Self { address, snapshot, events, stop, serving }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.serving.await.unwrap();
    }

    /// Whether each client that holds everything has opened listeners.
    fn opened(&self) -> Vec<bool> {
        let events = self.events.lock().unwrap();
        let synced = events.iter().filter_map(|event| match event {
            StreamEvent::Synced { sockets, .. } => Some(*sockets),
            _ => None,
        });
        synced.collect()
    }

    /// Reasons given for rejecting `resource`.
    fn rejections_of(&self, resource: &str) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let rejected = events.iter().filter_map(|event| match event {
            StreamEvent::Nack { resources, .. } => Some(resources),
            _ => None,
        });
        rejected
            .flatten()
            .filter(|(name, _)| name == resource)
            .map(|(_, why)| why.clone())
            .collect()
    }
}

async fn obeying(address: SocketAddr, cache_dir: Option<&Path>) -> Running {
    towpath_proxy::start(config(address, cache_dir)).await.unwrap()
}

fn config(address: SocketAddr, cache_dir: Option<&Path>) -> Config {
    let node = Node { id: "edge-1".into(), cluster: "edge".into(), sidecar: false };
    let source = SourceConfig::ControlPlane {
        address: address.to_string(),
        node,
        cache_dir: cache_dir.map(Path::to_owned),
    };
    Config::new(source)
}

fn world(at: SocketAddr, endpoint: SocketAddr) -> World {
    let chain = Chain::new(vec![], None, tcp("s"));
    World::default().service("s", Protocol::Tcp, &[endpoint]).listener_at("in", at, vec![chain])
}

/// It takes the routes of gateways, and must not be taken for one.
#[tokio::test]
async fn a_jobs_sidecar_says_that_it_opens_no_listeners() {
    let echo = echo().await;
    let plane = ControlPlane::start(world(dead().await, echo.address).build("v1")).await;
    for opens in [true, false] {
        let mut config = config(plane.address, None);
        config.opens_listeners = opens;
        let proxy = towpath_proxy::start(config).await.unwrap();
        proxy.ready().await;
        assert_eq!(proxy.listener_addrs().contains_key("in"), opens);
        eventually("the answer", || async { (!plane.opened().is_empty()).then_some(()) }).await;
        assert_eq!(plane.opened(), [opens]);
        plane.events.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn what_the_control_plane_sends_is_obeyed_or_rejected_by_name() {
    let (one, two, at) = (named("one").await, named("two").await, dead().await);
    let plane = ControlPlane::start(world(at, one.address).build("v1")).await;
    let proxy = obeying(plane.address, None).await;
    proxy.ready().await;
    assert_eq!(told(&proxy, "in").await, "one");
    let source = admin_json(&proxy, "/config_dump").await["source"].clone();
    assert_eq!(source["kind"], "control-plane");

    plane.snapshot.send_replace(world(at, two.address).build("v2"));
    eventually("the changed endpoint", || async {
        (told(&proxy, "in").await == "two").then_some(())
    })
    .await;

    let tls = TlsServer {
        certificate_file: "/nowhere/tls.crt".into(),
        private_key_file: "/nowhere/tls.key".into(),
        second: None,
        alpn: vec![],
    };
    let chain = Chain::new(vec![], Some(tls), tcp("s"));
    let bad = world(at, two.address).listener_at("bad", dead().await, vec![chain]);
    plane.snapshot.send_replace(bad.build("v3"));
    let reasons = eventually("the rejection", || async {
        Some(plane.rejections_of("bad")).filter(|reasons| !reasons.is_empty())
    })
    .await;
    assert!(reasons[0].contains("certificate file /nowhere/tls.crt"), "{reasons:?}");
    assert_eq!(told(&proxy, "in").await, "two", "the rest goes on");
    eventually("the rejection in the dump", || async {
        let source = admin_json(&proxy, "/config_dump").await["source"].clone();
        source["errors"][0].as_str()?.starts_with("listener `bad`").then_some(())
    })
    .await;
    plane.stop().await;
    assert_eq!(told(&proxy, "in").await, "two", "without a control plane");
}

#[tokio::test]
async fn a_proxy_starts_from_what_it_kept_when_the_control_plane_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let (origin, at) = (named("kept").await, dead().await);
    let plane = ControlPlane::start(world(at, origin.address).build("v1")).await;
    let address = plane.address;
    let proxy = obeying(address, Some(dir.path())).await;
    proxy.ready().await;
    eventually("the file", || async { dir.path().join("last-good.json").exists().then_some(()) })
        .await;
    plane.stop().await;
    proxy.shutdown();
    let again = obeying(address, Some(dir.path())).await;
    again.ready().await;
    assert_eq!(told(&again, "in").await, "kept");
    let source = admin_json(&again, "/config_dump").await["source"].clone();
    assert_eq!((&source["from_cache"], &source["connected"]), (&true.into(), &false.into()));
}
