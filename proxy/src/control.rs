//! What the admin endpoint, the sources and the signals all act on.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    sync::{Arc, Mutex, MutexGuard, OnceLock, Weak, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::{sync::watch, task::AbortHandle};
use towpath_policies::{
    dns::endpoint_set,
    model::{Discovery, Snapshot},
};

use crate::{
    access_log::AccessLog,
    drain::{Leftovers, MOST_TRANSFERS, Signal},
    gpu::Gpus,
    lock::lock,
    transfers::Transfers,
    upgrade::Place,
    worker::Workers,
    world::{Rejection, View, World},
};

/// The proxy, as seen from its control thread.
#[derive(Debug)]
pub(crate) struct Control {
    world: Mutex<World>,
    view: Arc<ArcSwap<View>>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) access_log: Option<AccessLog>,
    /// Fired when the proxy is to finish what it has and stop.
    pub(crate) drain: Signal,
    /// When it was first fired.
    drain_began: OnceLock<Instant>,
    /// Time transfers have from then on.
    pub(crate) drain_timeout: Duration,
    /// Fired when another process serves in our place.
    pub(crate) handed_over: Signal,
    /// Whether this process serves: a configuration is in force, and no other process that ran
    /// before accepts any more.
    pub(crate) in_charge: watch::Sender<bool>,
    transfers: Arc<Transfers>,
    pub(crate) started: Instant,
    pub(crate) gpus: Arc<Gpus>,
    /// Snapshots put in force so far.
    applied: watch::Sender<u64>,
    source: Mutex<SourceStatus>,
    resolving: Mutex<BTreeMap<String, Resolving>>,
}

/// Where configuration comes from, and how that goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct SourceStatus {
    /// `folder`, `control-plane` or `manual`.
    pub(crate) kind: &'static str,
    /// The folder or address.
    pub(crate) location: String,
    /// Whether the source can be reached now.
    pub(crate) connected: bool,
    /// Whether what is in force was read from the cache on disk.
    pub(crate) from_cache: bool,
    /// What is wrong with the newest configuration, which is therefore not in force.
    pub(crate) errors: Vec<String>,
}

/// A DNS name being followed.
#[derive(Debug)]
struct Resolving {
    discovery: Discovery,
    task: AbortHandle,
}

impl Drop for Resolving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Shortest pause between two look-ups of one name.
const MIN_REFRESH: Duration = Duration::from_secs(1);
/// Pause after a look-up that failed.
const RETRY_LOOKUP: Duration = Duration::from_secs(5);

impl Control {
    pub(crate) fn new(
        world: World,
        workers: Arc<Workers>,
        access_log: Option<AccessLog>,
        transfers: Arc<Transfers>,
        drain_timeout: Duration,
        gpus: Arc<Gpus>,
    ) -> Arc<Self> {
        Arc::new(Self {
            view: world.view(),
            world: Mutex::new(world),
            workers,
            access_log,
            drain: Signal::new(),
            drain_timeout,
            handed_over: Signal::new(),
            in_charge: watch::Sender::new(false),
            drain_began: OnceLock::new(),
            transfers,
            started: Instant::now(),
            gpus,
            applied: watch::Sender::new(0),
            source: Mutex::default(),
            resolving: Mutex::default(),
        })
    }

    /// Puts a snapshot in force, or says why not and changes nothing.
    pub(crate) fn apply(self: &Arc<Self>, snapshot: Arc<Snapshot>) -> Result<(), Vec<Rejection>> {
        let begun = Instant::now();
        let version = snapshot.version.clone();
        self.world().apply(snapshot.clone())?;
        self.follow_names(&snapshot);
        self.applied.send_modify(|count| *count += 1);
        tracing::info!(
            version,
            took_us = begun.elapsed().as_micros() as u64,
            "configuration in force"
        );
        Ok(())
    }

    /// Whether listeners of the configuration are opened.
    pub(crate) fn opens_listeners(&self) -> bool {
        self.world().opens_listeners()
    }

    /// What is in force.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Where what is in force is found.
    pub(crate) fn shared_view(&self) -> Arc<ArcSwap<View>> {
        self.view.clone()
    }

    /// Counts the snapshots put in force.
    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Begins the drain: nothing new is accepted, what runs is asked to finish.
    pub(crate) fn begin_drain(&self) {
        self.drain_began.get_or_init(Instant::now);
        self.drain.fire();
        self.world().drain();
    }

    /// Begins the drain of a process in whose place another one accepts.
    pub(crate) fn hand_over(&self) {
        self.drain_began.get_or_init(Instant::now);
        self.handed_over.fire();
        self.drain.fire_gently();
        self.world().hand_over();
    }

    /// The listening sockets, each once more.
    pub(crate) fn sockets(&self) -> std::io::Result<Vec<(Place, TcpListener)>> {
        self.world().sockets()
    }

    /// How long the drain has gone on.
    pub(crate) fn draining_for(&self) -> Option<Duration> {
        self.drain_began.get().map(Instant::elapsed)
    }

    /// What is under way now.
    pub(crate) fn leftovers(&self) -> Leftovers {
        let view = self.view();
        let services = view.services.values().map(|s| &s.live);
        let (transfers, more) = self.transfers.underway(MOST_TRANSFERS);
        Leftovers {
            connections: self.workers.open_connections(),
            requests: services.clone().map(|s| s.requests.load(Relaxed)).sum(),
            bytes_in_flight: services.map(|s| s.bytes_in_flight.load(Relaxed)).sum(),
            transfers,
            more,
        }
    }

    pub(crate) fn reload_certificates(&self) {
        self.world().reload_certificates();
    }

    pub(crate) fn addresses(&self) -> BTreeMap<String, std::net::SocketAddr> {
        self.world().addresses()
    }

    pub(crate) fn source(&self) -> SourceStatus {
        lock(&self.source).clone()
    }

    pub(crate) fn note_source(&self, change: impl FnOnce(&mut SourceStatus)) {
        change(&mut lock(&self.source));
    }

    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    /// Follows the DNS names of services whose endpoints nobody else delivers.
    fn follow_names(self: &Arc<Self>, snapshot: &Snapshot) {
        let ours = |name: &str, discovery: &Discovery| {
            matches!(discovery, Discovery::Dns { .. })
                && snapshot.endpoints.get(name).is_none_or(|set| set.endpoints.is_empty())
        };
        let mut resolving = lock(&self.resolving);
        resolving.retain(|name, running| {
            snapshot.services.get(name).is_some_and(|service| {
                service.discovery == running.discovery && ours(name, &service.discovery)
            })
        });
        for (name, service) in &snapshot.services {
            if !ours(name, &service.discovery) || resolving.contains_key(name) {
                continue;
            }
            if let Discovery::Dns { host, port, refresh } = &service.discovery {
                let control = Arc::downgrade(self);
                let following =
                    follow(control, name.clone(), host.clone(), *port, (*refresh).max(MIN_REFRESH));
                let task = tokio::spawn(following).abort_handle();
                let discovery = service.discovery.clone();
                resolving.insert(name.clone(), Resolving { discovery, task });
            }
        }
    }
}

/// Looks a name up again and again; the last good answer stays in use.
async fn follow(control: Weak<Control>, service: String, host: String, port: u16, every: Duration) {
    let mut known = None;
    loop {
        let found = tokio::net::lookup_host((host.as_str(), port)).await;
        let Some(control) = control.upgrade() else { return };
        let pause = match found {
            Ok(addresses) => {
                let set = endpoint_set(&service, addresses);
                if known.as_ref() != Some(&set) {
                    known = Some(set.clone());
                    tracing::info!(service, host, endpoints = set.endpoints.len(), "name resolved");
                    control.world().resolve(&service, Arc::new(set));
                }
                every
            }
            Err(error) => {
                tracing::warn!(service, host, %error, "name cannot be resolved, keeping the last answer");
                every.min(RETRY_LOOKUP)
            }
        };
        drop(control);
        tokio::time::sleep(pause).await;
    }
}
