//! A snapshot of the whole mesh, and the ways to find something in it by what a connection or a request shows.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;
use towpath_policies::model::{
    Bind, ChainKind, Endpoint, EndpointSet, Listener, RouteTable, Service, Snapshot, VirtualHost,
};

use crate::{names, target::Target};

/// A snapshot with its index.
#[derive(Debug, Default)]
pub struct World {
    snapshot: Arc<Snapshot>,
    /// Grows with every change of a listener, a route table or a service.
    rules: u64,
    /// Endpoints by address; `None` where several Services have it.
    addresses: HashMap<SocketAddr, Option<(Arc<EndpointSet>, usize)>>,
    /// By domain, as a route table has it; with the port that is served there.
    hosts: Arc<HashMap<String, Vec<Hosted>>>,
    /// Services by the ports and networks that `addresses` give them.
    networks: Arc<HashMap<(Option<u16>, IpNetwork), String>>,
}

#[derive(Debug)]
struct Hosted {
    port: u16,
    table: Arc<RouteTable>,
    virtual_host: usize,
}

/// What a target is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found<'w> {
    /// A Service by its name, or by an address that is given to it.
    Service(&'w Arc<Service>),
    /// A Service by the address of one of its endpoints, which is kept.
    Endpoint(&'w Arc<Service>, &'w Arc<EndpointSet>, &'w Endpoint),
    /// A host that routes of a Gateway name.
    Host(&'w RouteTable, &'w VirtualHost),
}

impl World {
    /// The world after this one.
    #[must_use]
    pub fn then(&self, snapshot: Arc<Snapshot>) -> Self {
        let changed = !same_rules(&self.snapshot, &snapshot);
        let rules = self.rules + u64::from(changed);
        let (hosts, networks) = if changed {
            (Arc::new(hosts(&snapshot)), Arc::new(networks(&snapshot)))
        } else {
            (self.hosts.clone(), self.networks.clone())
        };
        Self { addresses: addresses(&snapshot), hosts, networks, rules, snapshot }
    }

    /// Whether there is something to tell of yet.
    pub(crate) fn is_ready(&self) -> bool {
        !self.snapshot.version.is_empty()
    }

    /// Equal as long as no listener, route table or service changed.
    pub(crate) const fn rules(&self) -> u64 {
        self.rules
    }

    pub(crate) fn find(&self, target: &Target) -> Option<Found<'_>> {
        match target {
            Target::Address(address) => match self.addresses.get(address) {
                Some(owner) => {
                    let (set, at) = owner.as_ref()?;
                    let service = self.snapshot.services.get(&set.service)?;
                    Some(Found::Endpoint(service, set, &set.endpoints[*at]))
                }
                None => self.snapshot.services.get(self.network(*address)?).map(Found::Service),
            },
            Target::Name { host, port } => {
                let service = names::service(host).and_then(|id| self.snapshot.services.get(&id));
                service.map(Found::Service).or_else(|| self.host(host, *port))
            }
        }
    }

    /// The set of a service; `None` as long as its name has not resolved.
    pub(crate) fn endpoints(&self, service: &str) -> Option<&Arc<EndpointSet>> {
        self.snapshot.endpoints.get(service)
    }

    pub(crate) fn service(&self, name: &str) -> Option<&Arc<Service>> {
        self.snapshot.services.get(name)
    }

    /// The routes of the mesh itself for what is sent to a Service.
    pub(crate) fn routes(&self, service: &str) -> Option<&RouteTable> {
        let listener = self.snapshot.listeners.get(service).filter(|l| l.bind == Bind::Api)?;
        listener.chains.iter().find_map(|chain| match &chain.kind {
            ChainKind::Http { route_table, .. } => Some(&**self.snapshot.routes.get(route_table)?),
            ChainKind::Tcp(_) => None,
        })
    }

    /// A port counts more than none, and a longer network more than a shorter one.
    fn network(&self, address: SocketAddr) -> Option<&String> {
        let ip = address.ip();
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        [Some(address.port()), None].into_iter().find_map(|port| {
            (0..=longest).rev().find_map(|prefix| {
                let around = IpNetwork::new(ip, prefix).ok()?;
                let network = IpNetwork::new(around.network(), prefix).ok()?;
                self.networks.get(&(port, network))
            })
        })
    }

    /// Of the Gateways that serve the port, or else of all, the most specific domain wins.
    fn host(&self, host: &str, port: u16) -> Option<Found<'_>> {
        let wildcards = host.match_indices('.').map(|(dot, _)| format!("*{}", &host[dot..]));
        let domains = std::iter::once(host.to_owned()).chain(wildcards);
        let known: Vec<&Hosted> = domains.filter_map(|d| self.hosts.get(&d)).flatten().collect();
        let hosted = known.iter().find(|hosted| hosted.port == port).or(known.first())?;
        Some(Found::Host(&hosted.table, hosted.table.virtual_hosts.get(hosted.virtual_host)?))
    }
}

fn addresses(snapshot: &Snapshot) -> HashMap<SocketAddr, Option<(Arc<EndpointSet>, usize)>> {
    let mut addresses = HashMap::new();
    // What stands behind a sidecar is not for peers.
    for set in snapshot.endpoints.values().filter(|set| names::parts(&set.service).is_some()) {
        for (at, endpoint) in set.endpoints.iter().enumerate() {
            let once = addresses.entry(endpoint.address);
            once.and_modify(|owner| *owner = None).or_insert_with(|| Some((set.clone(), at)));
        }
    }
    addresses
}

fn hosts(snapshot: &Snapshot) -> HashMap<String, Vec<Hosted>> {
    let mut hosts: HashMap<String, Vec<Hosted>> = HashMap::new();
    for listener in snapshot.listeners.values() {
        let Bind::Socket(address) = listener.bind else { continue };
        for chain in &listener.chains {
            let ChainKind::Http { route_table, .. } = &chain.kind else { continue };
            let Some(table) = snapshot.routes.get(route_table) else { continue };
            for (virtual_host, host) in table.virtual_hosts.iter().enumerate() {
                // Any host is none that could be looked up.
                for domain in host.domains.iter().filter(|domain| *domain != "*") {
                    let (port, table) = (address.port(), table.clone());
                    let hosted = Hosted { port, table, virtual_host };
                    hosts.entry(domain.clone()).or_default().push(hosted);
                }
            }
        }
    }
    hosts
}

/// As listeners for redirected connections tell them: a chain for each Service, whatever is spoken.
fn networks(snapshot: &Snapshot) -> HashMap<(Option<u16>, IpNetwork), String> {
    let redirected = |l: &&Arc<Listener>| matches!(l.bind, Bind::Redirected(_));
    let mut networks = HashMap::new();
    for chain in snapshot.listeners.values().filter(redirected).flat_map(|l| &l.chains) {
        let ChainKind::Tcp(forward) = &chain.kind else { continue };
        let ([backend], None) = (forward.backends.as_slice(), chain.only.speaks) else { continue };
        for network in &chain.only.networks {
            let network = IpNetwork::new(network.network(), network.prefix()).unwrap_or(*network);
            let key = (chain.only.port, network);
            networks.entry(key).or_insert_with(|| backend.service.clone());
        }
    }
    networks
}

fn same_rules(a: &Snapshot, b: &Snapshot) -> bool {
    fn same<T>(a: &BTreeMap<String, Arc<T>>, b: &BTreeMap<String, Arc<T>>) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|((n, v), (m, w))| n == m && Arc::ptr_eq(v, w))
    }
    a.version.is_empty() == b.version.is_empty()
        && same(&a.listeners, &b.listeners)
        && same(&a.routes, &b.routes)
        && same(&a.services, &b.services)
}
