//! An xDS server that proxies of a run obey, until it goes away.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{net::TcpListener, sync::watch, task::AbortHandle};
use towpath_policies::model::{Node, Snapshot};
use towpath_xds::server::{AdsServer, StreamEvent, Views};

/// One; ends when dropped.
#[derive(Debug)]
pub(super) struct Plane {
    pub(super) address: SocketAddr,
    views: Arc<Served>,
    gone: watch::Sender<bool>,
    task: AbortHandle,
}

/// What each node is told, by its name.
#[derive(Debug, Default)]
struct Served(Mutex<BTreeMap<String, watch::Sender<Arc<Snapshot>>>>);

impl Served {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Arc<Snapshot>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Views for Served {
    fn watch(&self, node: &Node) -> watch::Receiver<Arc<Snapshot>> {
        self.all().entry(node.id.clone()).or_default().subscribe()
    }

    fn observe(&self, _: StreamEvent) {}
}

impl Plane {
    pub(super) async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let views = Arc::new(Served::default());
        let (gone, mut stop) = watch::channel(false);
        let server = AdsServer::new(views.clone());
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stop.wait_for(|gone| *gone).await;
            };
            // How it ends is seen by whoever obeys it.
            let _ = server.serve(listener, stopped).await;
        });
        Ok(Self { address, views, gone, task: task.abort_handle() })
    }

    /// Tells a node, now or when it asks.
    pub(super) fn tell(&self, node: &str, snapshot: Snapshot) {
        self.views.all().entry(node.into()).or_default().send_replace(Arc::new(snapshot));
    }

    /// Hangs up, and answers no more.
    pub(super) fn leave(&self) {
        self.gone.send_replace(true);
        self.views.all().clear();
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.leave();
        self.task.abort();
    }
}
