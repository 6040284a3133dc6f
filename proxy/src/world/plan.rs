//! Everything of a change that can fail, done before anything is swapped.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::Arc,
};

use arc_swap::ArcSwap;
use socket2::SockRef;
use towpath_policies::model::{
    self, Action, Bind, HttpOptions, Listener, Only, Redirected, ResourceKey, ResourceKind,
    RouteTable, Snapshot, TcpForward,
};

use super::{CompiledTable, Entrance, Open, Rejection, World, same};
use crate::{
    Credentials, Programs,
    chains::{Chain, ChainKind, Chains},
    explicit::{self, Directory, Explicit},
    http::{HttpListener, orca::Reporter},
    listener::{self, Listening},
    metrics::registry,
    router::Router,
    tcp::{TcpChain, TcpMetrics},
    tls::ServerTls,
    upstream::{
        ServiceLive, ServiceState,
        connect::{self, Connector},
    },
};

/// A change that will succeed.
#[derive(Debug)]
pub(super) struct Plan {
    /// Listeners that are new or changed; the others stay as they are.
    listeners: Vec<Prepared>,
    /// Names of listeners that go.
    gone: Vec<String>,
    /// Every route table, and whether its router must be compiled.
    pub(super) tables: Vec<TablePlan>,
}

/// A route table to be put in force.
#[derive(Debug)]
pub(super) struct TablePlan {
    name: String,
    table: Arc<RouteTable>,
    compile: bool,
}

/// A listener with its socket and its certificates.
#[derive(Debug)]
struct Prepared {
    spec: Arc<Listener>,
    bind: SocketAddr,
    socket: Arc<TcpListener>,
    /// For each chain.
    tls: Vec<Option<Arc<ServerTls>>>,
}

impl Plan {
    pub(super) fn new(world: &World, snapshot: &Snapshot) -> Result<Self, Vec<Rejection>> {
        let mut wrong = Vec::new();
        check_services(world, snapshot, &mut wrong);
        let tables = plan_tables(world, snapshot, &mut wrong);
        let mut plan = Self { listeners: Vec::new(), gone: Vec::new(), tables };
        if !world.draining {
            plan.prepare_listeners(world, snapshot, &mut wrong);
        }
        if wrong.is_empty() { Ok(plan) } else { Err(wrong) }
    }

    fn prepare_listeners(
        &mut self,
        world: &World,
        snapshot: &Snapshot,
        wrong: &mut Vec<Rejection>,
    ) {
        let sockets = |spec: &Listener| spec.bind.socket().filter(|_| world.terms.opens_listeners);
        let wanted =
            |name: &str| snapshot.listeners.get(name).is_some_and(|l| sockets(l).is_some());
        self.gone = world.listeners.keys().filter(|name| !wanted(name)).cloned().collect();
        for (name, spec) in &snapshot.listeners {
            let Some(bind) = sockets(spec) else { continue };
            let open = world.listeners.get(name);
            if open.is_some_and(|open| same(&open.spec, spec)) {
                continue;
            }
            let mut reject = |reason: String| {
                wrong.push(Rejection { key: key(ResourceKind::Listener, name), reason });
            };
            let before = wrong_references(spec, snapshot);
            if !before.is_empty() {
                before.into_iter().for_each(&mut reject);
                continue;
            }
            let tls = match spec.chains.iter().map(|c| server_tls(c, open)).collect() {
                Ok(tls) => tls,
                Err(reason) => {
                    reject(reason);
                    continue;
                }
            };
            let socket = self.socket(world, name, open, bind);
            let socket =
                socket.and_then(|socket| takes_redirected(&spec.bind, &socket).map(|()| socket));
            match socket {
                Ok(socket) => {
                    self.listeners.push(Prepared { spec: spec.clone(), bind, socket, tls });
                }
                Err(error) if spares(&spec.bind, &error) => {
                    tracing::info!(listener = name, "no IPv6 here, so none is redirected");
                }
                Err(error) => reject(bind_error(bind, &error)),
            }
        }
    }

    /// The socket the listener has, or one that a listener on its way out has, or one that
    /// another process handed over, or a new one.
    fn socket(
        &self,
        world: &World,
        name: &str,
        open: Option<&Open>,
        bind: SocketAddr,
    ) -> io::Result<Arc<TcpListener>> {
        let going = self.gone.iter().filter_map(|name| world.listeners.get(name));
        let taken = |socket: &Arc<TcpListener>| {
            self.listeners.iter().any(|p| Arc::ptr_eq(&p.socket, socket))
        };
        let inherited = open
            .into_iter()
            .chain(going)
            .find(|open| open.listening.bind == bind && !taken(&open.socket));
        match inherited {
            Some(open) => Ok(open.socket.clone()),
            None => match world.terms.inherited.find(Some(name), bind) {
                Some(socket) => Ok(Arc::new(socket)),
                None => listener::bind(bind).map(Arc::new),
            },
        }
    }
}

impl World {
    /// Accepts from the programs whose proxy this is, and tells them what is in force.
    pub(super) fn serve_programs(&mut self, snapshot: &Snapshot) {
        if self.entrance.is_none() && self.terms.has_programs() && !self.draining {
            self.entrance = Some(self.entrance());
        }
        let Some(entrance) = &self.entrance else { return };
        let router = |table: &str| self.routers.get(table).map(|compiled| compiled.place.clone());
        entrance.directory.learn(snapshot, self.services.iter(), &router);
    }

    fn entrance(&self) -> Entrance {
        let Programs { told, taken } = &self.terms.programs;
        let sockets = told.iter().map(|(socket, _)| socket).chain(taken);
        let directory = Arc::new(Directory::new(explicit::Terms {
            listener: explicit::NAME.into(),
            own: sockets.filter_map(|socket| socket.local_addr().ok()).collect(),
            access_log: self.terms.access_log.clone(),
            transfers: self.terms.transfers.clone(),
            site: self.site(),
        }));
        let told = told.iter().map(|(socket, said)| (explicit::NAME, socket, Some(said)));
        let all = told.chain(taken.iter().map(|socket| (explicit::TAKEN, socket, None)));
        let open = |(name, socket, said): (_, &Arc<TcpListener>, Option<&Credentials>)| {
            let opened = self.open_to_programs(name, socket, said, &directory);
            opened.inspect_err(|error| tracing::error!(%error, "cannot accept from programs")).ok()
        };
        Entrance { listening: all.filter_map(open).collect(), directory }
    }

    fn open_to_programs(
        &self,
        name: &str,
        socket: &TcpListener,
        credentials: Option<&Credentials>,
        directory: &Arc<Directory>,
    ) -> io::Result<Arc<Listening>> {
        socket.set_nonblocking(true)?;
        let (own, terms) = (socket.local_addr()?, &self.terms);
        let mut http = HttpListener::new(
            name.into(),
            HttpOptions::default(),
            Arc::new(ArcSwap::from_pointee(Router::empty(name))),
            terms.transfers.clone(),
            terms.overload.clone(),
        );
        http.access_log.clone_from(&terms.access_log);
        http.spool.clone_from(&terms.spool);
        http.directory = Some(directory.clone());
        http.credentials = credentials.cloned();
        let explicit = Explicit { http: Arc::new(http), directory: directory.clone() };
        let kind = ChainKind::Explicit(Arc::new(explicit));
        let only = Only::default();
        let chain = Chain { server_names: Vec::new(), only, tls: None, kind };
        Listening::start(
            name,
            own,
            socket,
            Arc::new(Chains::new(vec![Arc::new(chain)], None)),
            &terms.workers,
            terms.max_connections,
            terms.overload.clone(),
        )
    }

    /// Compiles what must be compiled; connections see the new routes at their next request.
    pub(super) fn swap_routers(&mut self, tables: &[TablePlan]) {
        let mut routers = BTreeMap::new();
        for plan in tables {
            let old = self.routers.get(&plan.name);
            let compiled = match old {
                Some(old) if !plan.compile => old.clone(),
                _ => {
                    let live = |name: &str| self.live(name);
                    let before = old.map(|old| old.place.load());
                    let before = before.as_ref().map(|router| &***router);
                    let (name, table) = (&plan.name, &plan.table);
                    let router = match Router::compile_after(before, name, table, &live) {
                        Ok(router) => Arc::new(router),
                        Err(error) => {
                            // Was compiled once already to see that it can be.
                            tracing::error!(table = plan.name, %error, "cannot compile routes");
                            continue;
                        }
                    };
                    let place = match old {
                        Some(old) => {
                            old.place.store(router);
                            old.place.clone()
                        }
                        None => Arc::new(ArcSwap::new(router)),
                    };
                    CompiledTable { table: plan.table.clone(), place }
                }
            };
            routers.insert(plan.name.clone(), compiled);
        }
        let before = std::mem::replace(&mut self.routers, routers);
        self.forget_routes(before.values().map(|compiled| &compiled.table));
    }

    /// Forgets the series of those routes of these tables that are in none that is in force.
    pub(super) fn forget_routes<'a>(&self, tables: impl Iterator<Item = &'a Arc<RouteTable>>) {
        let in_force = |table: &Arc<RouteTable>| {
            self.routers.get(&table.name).is_some_and(|now| Arc::ptr_eq(&now.table, table))
        };
        let mut gone: BTreeSet<&str> =
            tables.filter(|t| !in_force(t)).flat_map(routes_of).collect();
        if gone.is_empty() {
            return;
        }
        for name in self.routers.values().flat_map(|compiled| routes_of(&compiled.table)) {
            gone.remove(name);
        }
        for name in gone {
            registry().forget(&[("route", name)]);
        }
    }

    /// Opens, changes and closes listeners.
    pub(super) fn swap_listeners(&mut self, plan: Plan) {
        for name in &plan.gone {
            if let Some(open) = self.listeners.remove(name) {
                open.listening.drain.fire();
                registry().forget(&[("listener", name)]);
                tracing::info!(listener = name, address = %open.listening.address, "listener closed");
            }
        }
        for prepared in plan.listeners {
            let chains = Arc::new(self.chains(&prepared));
            let name = prepared.spec.name.clone();
            match self.listeners.get_mut(&name) {
                Some(open) if Arc::ptr_eq(&open.socket, &prepared.socket) => {
                    open.listening.chains.store(chains);
                    open.spec = prepared.spec;
                }
                _ => {
                    if let Some(open) = self.open(prepared, chains)
                        && let Some(old) = self.listeners.insert(name, open)
                    {
                        old.listening.drain.fire();
                    }
                }
            }
        }
    }

    fn open(&self, prepared: Prepared, chains: Arc<Chains>) -> Option<Open> {
        let Prepared { spec, bind, socket, .. } = prepared;
        let started = Listening::start(
            &spec.name,
            bind,
            &socket,
            chains,
            &self.terms.workers,
            self.terms.max_connections,
            self.terms.overload.clone(),
        );
        match started {
            Ok(listening) => {
                tracing::info!(listener = spec.name, address = %listening.address, "listening");
                Some(Open { spec, socket, listening })
            }
            Err(error) => {
                tracing::error!(listener = spec.name, %error, "cannot accept");
                None
            }
        }
    }

    fn chains(&self, prepared: &Prepared) -> Chains {
        let name: Arc<str> = prepared.spec.name.as_str().into();
        let redirected = match &prepared.spec.bind {
            Bind::Redirected(redirected) => Some(redirected.clone()),
            Bind::Socket(_) | Bind::Api => None,
        };
        let chains = prepared.spec.chains.iter().zip(&prepared.tls).map(|(spec, tls)| {
            let kind = match &spec.kind {
                model::ChainKind::Http { route_table, options } => {
                    let place = self.routers.get(route_table).map_or_else(
                        || Arc::new(ArcSwap::from_pointee(Router::empty(&name))),
                        |compiled| compiled.place.clone(),
                    );
                    let terms = &self.terms;
                    let (transfers, overload) = (terms.transfers.clone(), terms.overload.clone());
                    let reports = options.reports_load;
                    let (name, options) = (name.clone(), options.clone());
                    let mut http = HttpListener::new(name, options, place, transfers, overload);
                    http.access_log.clone_from(&terms.access_log);
                    http.spool.clone_from(&terms.spool);
                    http.load = reports.then(|| Reporter::new(terms.load.clone()));
                    ChainKind::Http(Arc::new(http))
                }
                model::ChainKind::Tcp(forward) => ChainKind::Tcp(self.forward(&name, forward)),
            };
            let (server_names, only) = (spec.server_names.clone(), spec.only.clone());
            Arc::new(Chain { server_names, only, tls: tls.clone(), kind })
        });
        let chains = Chains::new(chains.collect(), redirected);
        chains.introduced(prepared.spec.proxy_protocol.clone())
    }

    fn forward(&self, listener: &Arc<str>, forward: &TcpForward) -> Arc<TcpChain> {
        let backends = forward
            .backends
            .iter()
            .filter_map(|backend| Some((self.live(&backend.service)?, backend.weight)))
            .collect();
        Arc::new(TcpChain {
            listener: listener.clone(),
            backends,
            idle_timeout: forward.idle_timeout,
            access_log: self.terms.access_log.clone(),
            transfers: self.terms.transfers.clone(),
            metrics: TcpMetrics::new(listener),
        })
    }

    fn live(&self, service: &str) -> Option<Arc<ServiceLive>> {
        self.services.get(service).map(|state| state.live.clone())
    }
}

fn key(kind: ResourceKind, name: &str) -> ResourceKey {
    ResourceKey { kind, name: name.to_owned() }
}

pub(super) fn rejection_of_service(name: &str, reason: String) -> Rejection {
    Rejection { key: key(ResourceKind::Service, name), reason }
}

/// The names of its routes. Requests that match none are counted under a name that is empty.
fn routes_of(table: &Arc<RouteTable>) -> impl Iterator<Item = &str> {
    let routes = table.virtual_hosts.iter().flat_map(|host| &host.routes);
    routes.map(|route| route.name.as_str()).filter(|name| !name.is_empty())
}

/// Services whose TLS or protocol towards the endpoints is new must be able to build it.
fn check_services(world: &World, snapshot: &Snapshot, wrong: &mut Vec<Rejection>) {
    for (name, spec) in &snapshot.services {
        let old = world.services.get(name);
        let same_wire = |old: &Arc<ServiceState>| {
            old.spec.tls == spec.tls && old.spec.protocol == spec.protocol
        };
        if spec.tls.is_none() || old.is_some_and(same_wire) {
            continue;
        }
        if let Err(error) = Connector::new(spec) {
            wrong.push(rejection_of_service(name, error.to_string()));
        }
    }
}

/// Routers are compiled anew when their table changed, or when a service they
/// name came or went; endpoints and terms of a service do not matter to them.
fn plan_tables(world: &World, snapshot: &Snapshot, wrong: &mut Vec<Rejection>) -> Vec<TablePlan> {
    let came_or_went = |service: &str| {
        world.services.contains_key(service) != snapshot.services.contains_key(service)
    };
    let mut tables = Vec::new();
    let used = used_tables(snapshot, world.terms.has_programs());
    for (name, table) in snapshot.routes.iter().filter(|(name, _)| used.contains(name.as_str())) {
        let old = world.routers.get(name);
        let changed = old.is_none_or(|old| !same(&old.table, table));
        if changed && let Err(error) = Router::compile(name, table, &|_| None) {
            let reason = error.to_string();
            wrong.push(Rejection { key: key(ResourceKind::RouteTable, name), reason });
            continue;
        }
        let compile = changed || references(table).into_iter().any(came_or_went);
        tables.push(TablePlan { name: name.clone(), table: table.clone(), compile });
    }
    tables
}

/// The tables of listeners with a socket. Those of API listeners are for other programs, but for
/// one whose proxy this is.
fn used_tables(snapshot: &Snapshot, of_program: bool) -> BTreeSet<&str> {
    let ours = |l: &&Arc<Listener>| of_program || l.bind.socket().is_some();
    let tables =
        snapshot.listeners.values().filter(ours).flat_map(|listener| &listener.chains).filter_map(
            |chain| {
                let model::ChainKind::Http { route_table, .. } = &chain.kind else { return None };
                Some(route_table.as_str())
            },
        );
    tables.collect()
}

fn references(table: &RouteTable) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for route in table.virtual_hosts.iter().flat_map(|host| &host.routes) {
        if let Action::Forward(forward) = &route.action {
            names.extend(forward.backends.iter().map(|b| b.service.as_str()));
            names.extend(forward.mirrors.iter().map(|m| m.service.as_str()));
        }
    }
    names
}

fn wrong_references(spec: &Listener, snapshot: &Snapshot) -> Vec<String> {
    let mut wrong = Vec::new();
    for chain in &spec.chains {
        match &chain.kind {
            model::ChainKind::Http { route_table, .. } => {
                if !snapshot.routes.contains_key(route_table) {
                    wrong.push(format!("there is no route table `{route_table}`"));
                }
            }
            model::ChainKind::Tcp(forward) => {
                for backend in &forward.backends {
                    if !snapshot.services.contains_key(&backend.service) {
                        wrong.push(format!("there is no service `{}`", backend.service));
                    }
                }
            }
        }
    }
    wrong
}

/// The TLS settings a chain of this listener has already, or new ones.
fn server_tls(chain: &model::Chain, open: Option<&Open>) -> Result<Option<Arc<ServerTls>>, String> {
    let Some(spec) = &chain.tls else { return Ok(None) };
    let chains = open.map(|open| open.listening.chains.load_full());
    let known = chains
        .iter()
        .flat_map(|chains| chains.list())
        .filter_map(|chain| chain.tls.as_ref())
        .find(|tls| tls.spec() == spec);
    match known {
        Some(tls) => Ok(Some(tls.clone())),
        None => ServerTls::new(spec).map(|tls| Some(Arc::new(tls))).map_err(|e| e.to_string()),
    }
}

/// Has a socket take connections that come by TPROXY, where they do.
fn takes_redirected(bind: &Bind, socket: &TcpListener) -> io::Result<()> {
    let Bind::Redirected(Redirected { address, transparent, .. }) = bind else { return Ok(()) };
    connect::mark();
    if !transparent {
        return Ok(());
    }
    let socket = SockRef::from(socket);
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

/// Whether a socket for redirected connections is missing only because the machine has no IPv6.
fn spares(bind: &Bind, error: &io::Error) -> bool {
    let unknown = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    let missing =
        error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(unknown);
    // Any other address was asked for by name.
    let everybodys = |ip: IpAddr| ip.is_ipv6() && (ip.is_loopback() || ip.is_unspecified());
    missing
        && matches!(bind, Bind::Redirected(Redirected { address, .. }) if everybodys(address.ip()))
}

fn bind_error(address: SocketAddr, error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "another program or listener has this port",
        io::ErrorKind::PermissionDenied if address.port() >= 1024 => {
            "taking connections by TPROXY needs root or CAP_NET_ADMIN; REDIRECT needs neither"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need root or CAP_NET_BIND_SERVICE; choose a higher one"
        }
        io::ErrorKind::AddrNotAvailable => "this machine does not have this address",
        _ => "choose another address or port",
    };
    format!("cannot listen on {address}: {error} ({hint})")
}
