//! Turns snapshots into what workers use, all or nothing.
//!
//! Everything that can fail (files, sockets, references) is tried before
//! anything is swapped, so that a configuration that cannot be obeyed changes
//! nothing. What did not change is not touched: a listener keeps its socket, a
//! service its counters and connections, a router its place. One changed
//! endpoint set costs one reconciled service.

mod plan;

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use tokio::task::AbortHandle;
use towpath_policies::model::{
    Coordinates, Discovery, EndpointSet, Listener, ResourceKey, RouteTable, Service, Snapshot,
};

use crate::{
    Programs,
    access_log::AccessLog,
    drain,
    explicit::Directory,
    geoip::ClientPlaces,
    health::Probes,
    listener::Listening,
    load::NodeLoad,
    metrics::{Counter, registry},
    outlier::watch,
    overload::Overload,
    router::Router,
    spool::Space,
    transfers::Transfers,
    upgrade::{Place, Sockets},
    upstream::{self, ServiceState, Site, reports::Streams},
    worker::Workers,
};
use plan::Plan;

/// Why a snapshot was not applied: one resource, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} `{}`: {reason}", .key.kind, .key.name)]
pub struct Rejection {
    /// The resource that cannot be obeyed.
    pub key: ResourceKey,
    /// What is wrong, and what to do about it.
    pub reason: String,
}

/// What is in force, for those who only look.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) services: BTreeMap<String, Arc<ServiceState>>,
    pub(crate) listeners: Vec<Arc<Listening>>,
    /// `None` until the first snapshot is in force.
    pub(crate) applied: Option<SystemTime>,
    /// Where the proxy stands.
    pub(crate) here: Option<Coordinates>,
}

/// The one writer of everything workers read.
#[derive(Debug)]
pub(crate) struct World {
    terms: Terms,
    view: Arc<ArcSwap<View>>,
    services: BTreeMap<String, Arc<ServiceState>>,
    routers: BTreeMap<String, CompiledTable>,
    listeners: BTreeMap<String, Open>,
    /// Endpoints this proxy resolved itself, by service.
    resolved: BTreeMap<String, Arc<EndpointSet>>,
    probes: Probes,
    streams: Streams,
    watch: AbortHandle,
    rejected: Counter,
    draining: bool,
    /// Where the proxy stands.
    here: Option<Coordinates>,
    /// The listeners that this proxy closed to stop.
    leaving: Vec<drain::Signal>,
    /// Serves programs whose proxy this is, once there is a configuration.
    entrance: Option<Entrance>,
}

/// Listeners that no configuration names.
#[derive(Debug)]
struct Entrance {
    listening: Vec<Arc<Listening>>,
    directory: Arc<Directory>,
}

/// What the command line fixes for all listeners.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) workers: Arc<Workers>,
    /// Where the proxy stands; `None` = as the configuration says.
    pub(crate) place: Option<Coordinates>,
    /// Where clients are.
    pub(crate) clients: Option<Arc<ClientPlaces>>,
    pub(crate) access_log: Option<AccessLog>,
    pub(crate) max_connections: u32,
    /// Where request bodies are kept on disk for another try.
    pub(crate) spool: Option<Arc<Space>>,
    /// Listening sockets that another process handed over.
    pub(crate) inherited: Arc<Sockets>,
    /// Those under way that last.
    pub(crate) transfers: Arc<Transfers>,
    /// Says which classes are shed now.
    pub(crate) overload: Arc<Overload>,
    /// What load reports say of this machine.
    pub(crate) load: Arc<NodeLoad>,
    /// Whether listeners of the configuration are opened.
    pub(crate) opens_listeners: bool,
    /// Sockets of the programs whose proxy this is.
    pub(crate) programs: Programs,
}

impl Terms {
    /// Whether there are programs whose proxy this is.
    pub(crate) fn has_programs(&self) -> bool {
        self.programs.told.is_some() || !self.programs.taken.is_empty()
    }
}

/// A route table and its router; connections hold the place, not the router.
#[derive(Clone, Debug)]
struct CompiledTable {
    table: Arc<RouteTable>,
    place: Arc<ArcSwap<Router>>,
}

/// A listener whose socket stands. The socket closes when this and the accepting task are gone.
#[derive(Debug)]
struct Open {
    spec: Arc<Listener>,
    socket: Arc<TcpListener>,
    listening: Arc<Listening>,
}

impl World {
    /// On the runtime of the control thread.
    pub(crate) fn new(terms: Terms) -> Self {
        let view: Arc<ArcSwap<View>> = Arc::default();
        Self {
            terms,
            watch: tokio::spawn(watch::run(view.clone())).abort_handle(),
            view,
            services: BTreeMap::new(),
            routers: BTreeMap::new(),
            listeners: BTreeMap::new(),
            resolved: BTreeMap::new(),
            probes: Probes::default(),
            streams: Streams::default(),
            rejected: registry().counter("towpath_config_rejected_total", &[]),
            draining: false,
            here: None,
            leaving: Vec::new(),
            entrance: None,
        }
    }

    /// Where the current [`View`] is found.
    pub(crate) fn view(&self) -> Arc<ArcSwap<View>> {
        self.view.clone()
    }

    /// Whether listeners of the configuration are opened.
    pub(crate) fn opens_listeners(&self) -> bool {
        self.terms.opens_listeners
    }

    /// Puts a snapshot in force, or says what is wrong with it and changes nothing.
    pub(crate) fn apply(&mut self, snapshot: Arc<Snapshot>) -> Result<(), Vec<Rejection>> {
        let plan = Plan::new(self, &snapshot).inspect_err(|_| {
            self.rejected.inc();
            // Its tables were compiled to see whether they can be.
            self.forget_routes(snapshot.routes.values());
        })?;
        let here = self.whereabouts(&snapshot);
        let before = std::mem::replace(&mut self.here, here);
        let moved = before != self.here;
        let gone = self.reconcile_services(&snapshot, moved).inspect_err(|_| self.here = before)?;
        if let (true, Some(Coordinates { latitude, longitude })) = (moved, here) {
            tracing::info!(latitude, longitude, "the proxy's own place");
        }
        // Before new routers count: what they make must stay.
        for service in &gone {
            registry().forget(&[("service", &service.spec.name)]);
        }
        self.swap_routers(&plan.tables);
        if !self.draining {
            self.swap_listeners(plan);
        }
        for service in gone {
            upstream::retire(&service);
        }
        self.probes.reconcile(&self.services);
        self.streams.reconcile(&self.services);
        self.publish(snapshot);
        Ok(())
    }

    /// Where the proxy stands: as it was told, or as the first of its listeners says that does.
    fn whereabouts(&self, snapshot: &Snapshot) -> Option<Coordinates> {
        let mut listeners = snapshot.listeners.values();
        let said = || listeners.find_map(|listener| listener.location.coordinates);
        self.terms.place.or_else(said)
    }

    fn site(&self) -> Site {
        Site {
            workers: self.terms.workers.count(),
            here: self.here,
            clients: self.terms.clients.clone(),
        }
    }

    /// Gives a service the endpoints that were resolved for it here.
    pub(crate) fn resolve(&mut self, service: &str, set: Arc<EndpointSet>) {
        let Some(current) = self.services.get(service) else { return };
        let spec = current.spec.clone();
        match self.reconcile(current, spec, &set) {
            Ok(state) => {
                self.services.insert(service.to_owned(), state);
                self.resolved.insert(service.to_owned(), set);
                self.probes.reconcile(&self.services);
                self.streams.reconcile(&self.services);
                let snapshot = self.view.load().snapshot.clone();
                self.publish(snapshot);
            }
            Err(error) => tracing::error!(service, %error, "cannot use resolved endpoints"),
        }
    }

    /// Closes the listening sockets; connections are asked to finish.
    pub(crate) fn drain(&mut self) {
        self.leave(drain::Signal::fire);
    }

    /// Lets go of the listening sockets, which another process has; connections are asked to
    /// finish when it suits them.
    pub(crate) fn hand_over(&mut self) {
        self.leave(drain::Signal::fire_gently);
    }

    fn leave(&mut self, how: fn(&drain::Signal)) {
        self.draining = true;
        let closed = std::mem::take(&mut self.listeners).into_values().map(|open| open.listening);
        let closed = closed.chain(self.entrance.take().into_iter().flat_map(|own| own.listening));
        self.leaving.extend(closed.map(|listening| listening.drain.clone()));
        self.leaving.iter().for_each(how);
    }

    /// The listening sockets, each once more.
    pub(crate) fn sockets(&self) -> io::Result<Vec<(Place, TcpListener)>> {
        let each = self.listeners.iter().map(|(name, open)| {
            let place = Place { listener: Some(name.clone()), asked: open.listening.bind };
            Ok((place, open.socket.try_clone()?))
        });
        each.collect()
    }

    /// Reads certificates again whose files changed.
    pub(crate) fn reload_certificates(&self) {
        for open in self.listeners.values() {
            let name = &open.listening.name;
            for tls in open.listening.chains.load().list().iter().filter_map(|c| c.tls.as_ref()) {
                match tls.reload() {
                    Ok(false) => {}
                    Ok(true) => tracing::info!(
                        listener = %name,
                        file = %tls.spec().certificate_file.display(),
                        "certificate reloaded"
                    ),
                    Err(error) => tracing::error!(
                        listener = %name, %error, "certificate changed but cannot be used, keeping the old one"
                    ),
                }
            }
        }
    }

    /// Brings every service to the snapshot; returns the views of those that are gone.
    fn reconcile_services(
        &mut self,
        snapshot: &Snapshot,
        moved: bool,
    ) -> Result<Vec<Arc<ServiceState>>, Vec<Rejection>> {
        let mut services = BTreeMap::new();
        let old_snapshot = self.view.load().snapshot.clone();
        // Addresses of another host, or of a service that is gone, are nobody's.
        self.resolved.retain(|name, _| {
            let (old, new) = (self.services.get(name), snapshot.services.get(name));
            old.zip(new).is_some_and(|(old, new)| place(&old.spec) == place(new))
        });
        for (name, spec) in &snapshot.services {
            let set = self.endpoints_of(name, snapshot);
            let state = match self.services.get(name) {
                Some(old)
                    if same(&old.spec, spec)
                        && !(moved && old.completion.is_some())
                        && set.as_ref().map_or(old.endpoints.is_empty(), |set| {
                            old_snapshot.endpoints.get(name).is_some_and(|o| same(o, set))
                                || self.resolved.get(name).is_some_and(|o| Arc::ptr_eq(o, set))
                        }) =>
                {
                    old.clone()
                }
                old => {
                    let set = set.unwrap_or_default();
                    match old {
                        Some(old) => self.reconcile(old, spec.clone(), &set),
                        None => upstream::reconcile_at(&self.site(), None, spec.clone(), &set)
                            .map_err(|error| error.to_string()),
                    }
                    .map_err(|reason| vec![plan::rejection_of_service(name, reason)])?
                }
            };
            services.insert(name.clone(), state);
        }
        let old = std::mem::replace(&mut self.services, services);
        Ok(old
            .into_iter()
            .filter(|(n, _)| !self.services.contains_key(n))
            .map(|(_, s)| s)
            .collect())
    }

    fn reconcile(
        &self,
        old: &Arc<ServiceState>,
        spec: Arc<towpath_policies::model::Service>,
        set: &EndpointSet,
    ) -> Result<Arc<ServiceState>, String> {
        let name = spec.name.clone();
        let new = upstream::reconcile_at(&self.site(), Some(old), spec, set)
            .map_err(|error| error.to_string())?;
        let kept: HashSet<&str> = new.endpoints.iter().map(|e| e.spec.name.as_str()).collect();
        for gone in old.endpoints.iter().filter(|e| !kept.contains(e.spec.name.as_str())) {
            registry().forget(&[("service", &name), ("endpoint", &gone.spec.name)]);
        }
        Ok(new)
    }

    /// What was delivered for a service, or else what was resolved here.
    fn endpoints_of(&self, name: &str, snapshot: &Snapshot) -> Option<Arc<EndpointSet>> {
        let delivered = snapshot.endpoints.get(name);
        match self.resolved.get(name) {
            Some(resolved) if delivered.is_none_or(|set| set.endpoints.is_empty()) => {
                Some(resolved.clone())
            }
            _ => delivered.cloned(),
        }
    }

    fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.serve_programs(&snapshot);
        let version = snapshot.version.clone();
        let before = self.view.swap(Arc::new(View {
            snapshot,
            services: self.services.clone(),
            listeners: self.listeners.values().map(|open| open.listening.clone()).collect(),
            applied: Some(SystemTime::now()),
            here: self.here,
        }));
        if before.snapshot.version != version || before.applied.is_none() {
            registry().forget(&[("version", &before.snapshot.version)]);
        }
        registry().gauge("towpath_config_version_info", &[("version", &version)]).set(1);
    }

    /// Where each listener is reached.
    pub(crate) fn addresses(&self) -> BTreeMap<String, SocketAddr> {
        self.listeners.iter().map(|(name, open)| (name.clone(), open.listening.address)).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.watch.abort();
        self.drain();
        // They and what they keep alive know each other, so they do not go by themselves.
        for service in self.services.values() {
            upstream::retire(service);
        }
    }
}

/// The host and port whose addresses a service has, where they come from DNS.
fn place(service: &Service) -> Option<(&str, u16)> {
    match &service.discovery {
        Discovery::Dns { host, port, .. } => Some((host, *port)),
        Discovery::Listed | Discovery::OriginalDestination => None,
    }
}

/// Equal, at the price of a pointer comparison where nothing changed.
fn same<T: PartialEq>(a: &Arc<T>, b: &Arc<T>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}
