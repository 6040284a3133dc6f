//! Who is meant by a host and a port: a route, a service of the mesh, or a stranger.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use http::uri::Authority;
use towpath_policies::model::{Bind, ChainKind, Discovery, Snapshot};

use super::strangers::Strangers;
use crate::{
    access_log::AccessLog,
    router::{CompiledRoute, Router, Target},
    sniff::First,
    tcp::{TcpChain, TcpMetrics},
    transfers::Transfers,
    upstream::{ServiceLive, ServiceState, Site, connect::Wire},
};

/// What the mesh knows now, and the strangers that were asked for of late.
#[derive(Debug)]
pub(crate) struct Directory {
    terms: Terms,
    known: ArcSwap<Known>,
    strangers: Strangers,
}

/// What every chain of the listener has in common.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) listener: Arc<str>,
    /// Where the listeners are reached: nobody is sent there, and connections that were made to elsewhere were
    /// taken.
    pub(crate) own: Vec<SocketAddr>,
    pub(crate) access_log: Option<AccessLog>,
    pub(crate) transfers: Arc<Transfers>,
    pub(crate) site: Site,
}

/// Routers in force, by the name of their table; their place outlives a change.
type Routers<'a> = &'a dyn Fn(&str) -> Option<Arc<ArcSwap<Router>>>;

/// What a request takes.
#[derive(Debug)]
pub(crate) enum Found {
    Route(Arc<CompiledRoute>),
    /// Its host is known, but no route of it matches.
    NoRoute,
    /// It is for a host that only the program knows.
    Stranger,
}

#[derive(Debug, Default)]
struct Known {
    /// Of gateways: they count for the hosts that their routes name.
    gateways: Vec<Arc<ArcSwap<Router>>>,
    /// Services by their names.
    names: HashMap<Box<str>, Arc<Service>, ahash::RandomState>,
    /// Services by a host and port at which they are reached without a mesh.
    places: HashMap<(Box<str>, u16), Arc<Service>, ahash::RandomState>,
}

#[derive(Debug)]
struct Service {
    router: Option<Arc<ArcSwap<Router>>>,
    opaque: Arc<TcpChain>,
}

/// What a URI without a port means.
const HTTP_PORT: u16 = 80;

impl Directory {
    pub(crate) fn new(terms: Terms) -> Self {
        let strangers = Strangers::new(terms.clone());
        Self { terms, known: ArcSwap::default(), strangers }
    }

    /// Whether a connection with this local address was made to us.
    pub(crate) fn is_here(&self, local: SocketAddr) -> bool {
        self.terms.own.contains(&local)
    }

    /// Takes in what is in force now.
    pub(crate) fn learn<'a>(
        &self,
        snapshot: &Snapshot,
        services: impl Iterator<Item = (&'a String, &'a Arc<ServiceState>)>,
        router: Routers<'_>,
    ) {
        let mut known = Known::default();
        let mut meshes = HashMap::new();
        for listener in snapshot.listeners.values() {
            for chain in &listener.chains {
                let ChainKind::Http { route_table, .. } = &chain.kind else { continue };
                let Some(router) = router(route_table) else { continue };
                match listener.bind {
                    Bind::Socket(_) | Bind::Redirected(_) => known.gateways.push(router),
                    Bind::Api => drop(meshes.insert(listener.name.as_str(), router)),
                }
            }
        }
        let own = |(_, state): &(&String, &Arc<ServiceState>)| {
            state.spec.discovery != Discovery::OriginalDestination
        };
        for (name, state) in services.filter(own) {
            let service = Arc::new(Service {
                router: meshes.remove(name.as_str()),
                opaque: self.terms.chain(state.live.clone()),
            });
            for endpoint in &state.endpoints {
                let place =
                    (endpoint.spec.address.ip().to_string().into(), endpoint.spec.address.port());
                known.places.insert(place, service.clone());
            }
            if let Discovery::Dns { host, port, .. } = &state.spec.discovery {
                known.places.insert((host.to_ascii_lowercase().into(), *port), service.clone());
            }
            for alias in aliases(name) {
                known.names.insert(alias.into(), service.clone());
            }
        }
        self.known.store(Arc::new(known));
    }

    /// What a request takes of what the mesh knows.
    pub(crate) fn find(&self, target: &Target<'_>) -> Found {
        let known = self.known.load();
        let route = |router: &ArcSwap<Router>| match router.load().route(target) {
            Some(route) => Found::Route(route.clone()),
            None => Found::NoRoute,
        };
        let host = host_of(target.authority);
        if let Some(gateway) = known.gateway(&host) {
            return route(gateway);
        }
        let port = target.authority.port_u16().unwrap_or(HTTP_PORT);
        match known.service(&host, port).and_then(|service| service.router.as_ref()) {
            Some(router) => route(router),
            None => Found::Stranger,
        }
    }

    /// The route of a request for a host that only the program knows.
    ///
    /// # Errors
    /// When its name has no address.
    pub(crate) async fn stranger(&self, authority: &Authority) -> io::Result<Arc<CompiledRoute>> {
        let port = authority.port_u16().unwrap_or(HTTP_PORT);
        Ok(self.strangers.find(&host_of(authority), port).await?.route.clone())
    }

    /// What a request takes whose host nobody knows, when its connection was made to this address.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub(crate) async fn at(
        &self,
        destination: SocketAddr,
        target: &Target<'_>,
    ) -> io::Result<Option<Arc<CompiledRoute>>> {
        let (host, port) = place(destination);
        let known = self.known.load().service(&host, port).and_then(|s| s.router.clone());
        match known {
            Some(router) => Ok(router.load().route(target).cloned()),
            None => Ok(Some(self.strangers.find(&host, port).await?.route.clone())),
        }
    }

    /// Whether there is anything that routes have a say in.
    pub(super) fn knows_http(&self) -> bool {
        let known = self.known.load();
        let mut services = known.places.values().chain(known.names.values());
        !known.gateways.is_empty() || services.any(|service| service.router.is_some())
    }

    /// What is spoken on a connection to this address, if routes have a say in what its client begins to ask
    /// for. Of anything else not a byte is changed.
    pub(super) fn routes(&self, destination: SocketAddr, first: &First) -> Option<Wire> {
        let known = self.known.load();
        let named = |host: &str| {
            let host = host.to_ascii_lowercase();
            known.gateway(&host).is_some() || known.speaks_http(&host, destination.port())
        };
        let (wire, routed) = match first {
            First::Http1 { host } => (Wire::Http1, host.as_deref().is_some_and(named)),
            // Its host is said once it is answered; what no route knows then goes on to where it was made to.
            First::Http2 => (Wire::Http2, self.knows_http()),
            First::Tls(_) | First::Opaque => return None,
        };
        let (ip, port) = place(destination);
        (routed || known.speaks_http(&ip, port)).then_some(wire)
    }

    /// Where the bytes of a connection go that was made to this address.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub(super) async fn opaque_at(&self, destination: SocketAddr) -> io::Result<Arc<TcpChain>> {
        let (host, port) = place(destination);
        self.opaque_by(&host, port).await
    }

    /// Whether routes may have a say in what goes to this host, once it is known what that is.
    pub(super) fn speaks_http(&self, authority: &Authority) -> bool {
        let known = self.known.load();
        let host = host_of(authority);
        let port = authority.port_u16().unwrap_or(HTTP_PORT);
        known.gateway(&host).is_some() || known.speaks_http(&host, port)
    }

    /// Where opaque bytes for this host go.
    ///
    /// # Errors
    /// When it is a stranger whose name has no address.
    pub(super) async fn opaque(&self, authority: &Authority) -> io::Result<Arc<TcpChain>> {
        self.opaque_by(&host_of(authority), authority.port_u16().unwrap_or(HTTP_PORT)).await
    }

    async fn opaque_by(&self, host: &str, port: u16) -> io::Result<Arc<TcpChain>> {
        let known = self.known.load().service(host, port).map(|service| service.opaque.clone());
        match known {
            Some(chain) => Ok(chain),
            None => Ok(self.strangers.find(host, port).await?.opaque.clone()),
        }
    }
}

impl Known {
    /// The one that names this host most closely.
    fn gateway(&self, host: &str) -> Option<&Arc<ArcSwap<Router>>> {
        let closeness = |gateway: &&Arc<ArcSwap<Router>>| gateway.load().closeness(host);
        let naming = self.gateways.iter().filter(|gateway| closeness(gateway) > 0);
        // Of equals the first, by their names.
        naming.rev().max_by_key(closeness)
    }

    fn speaks_http(&self, host: &str, port: u16) -> bool {
        self.service(host, port).is_some_and(|service| service.router.is_some())
    }

    fn service(&self, host: &str, port: u16) -> Option<&Arc<Service>> {
        // Without a copy there is no looking up a pair by reference; it is once per connection.
        self.places.get(&(host.into(), port)).or_else(|| self.names.get(host))
    }
}

impl Terms {
    /// Whether who connects to this address comes to one of the listeners, however it is written: any address
    /// means this machine.
    pub(super) fn leads_here(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let meets = |own: &SocketAddr| {
            own.port() == address.port() && (own.ip() == ip || ip.is_unspecified())
        };
        self.own.iter().any(meets)
    }

    /// A chain that takes all bytes to one service.
    pub(super) fn chain(&self, service: Arc<ServiceLive>) -> Arc<TcpChain> {
        Arc::new(TcpChain {
            listener: self.listener.clone(),
            backends: vec![(service, 1)],
            idle_timeout: None,
            access_log: self.access_log.clone(),
            transfers: self.transfers.clone(),
            metrics: TcpMetrics::new(&self.listener),
        })
    }
}

/// An address as those of endpoints are looked up.
fn place(address: SocketAddr) -> (String, u16) {
    (address.ip().to_canonical().to_string(), address.port())
}

/// Lower case, without brackets and final dot.
fn host_of(authority: &Authority) -> String {
    let host = authority.host();
    let host = host.strip_suffix('.').unwrap_or(host);
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    host.to_ascii_lowercase()
}

/// The names under which a cluster's programs know a service.
fn aliases(id: &str) -> Vec<String> {
    let (namespace, name) = id.split_once('/').unwrap_or(("default", id));
    let full = format!("{name}.{namespace}");
    let mut aliases = vec![format!("{full}.svc.cluster.local"), format!("{full}.svc"), full];
    if namespace == "default" {
        aliases.push(name.to_owned());
    }
    aliases
}

#[cfg(test)]
mod tests {
    use towpath_policies::model::{RouteTable, VirtualHost};

    use super::*;

    #[test]
    fn a_service_has_the_names_that_a_cluster_gives_it() {
        assert!(aliases("etl").contains(&"etl".to_owned()));
        assert!(aliases("etl").contains(&"etl.default.svc.cluster.local".to_owned()));
        assert_eq!(aliases("lake/etl"), ["etl.lake.svc.cluster.local", "etl.lake.svc", "etl.lake"]);
    }

    #[test]
    fn who_would_come_back_to_us_is_known_however_it_is_written() {
        let terms = Terms {
            listener: "explicit".into(),
            own: vec!["127.0.0.1:3128".parse().unwrap()],
            access_log: None,
            transfers: Arc::new(Transfers::new(1)),
            site: Site::default(),
        };
        for (address, expected) in [
            ("127.0.0.1:3128", true),
            ("0.0.0.0:3128", true),
            ("[::]:3128", true),
            ("[::ffff:127.0.0.1]:3128", true),
            ("[::ffff:0.0.0.0]:3128", true),
            ("127.0.0.1:3129", false),
            ("127.0.0.2:3128", false),
            ("[::1]:3128", false),
        ] {
            assert_eq!(terms.leads_here(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn the_gateway_that_names_a_host_most_closely_has_it() {
        let gateway = |domains: &[&str]| {
            let host = VirtualHost {
                name: "h".to_owned(),
                domains: domains.iter().map(|d| (*d).to_owned()).collect(),
                routes: Vec::new(),
            };
            let table = RouteTable { name: "t".to_owned(), virtual_hosts: vec![host] };
            Arc::new(ArcSwap::from_pointee(Router::compile("l", &table, &|_| None).unwrap()))
        };
        let gateways = vec![
            gateway(&["*"]),
            gateway(&["*.test", "c.test"]),
            gateway(&["*.b.test"]),
            gateway(&["a.b.test", "c.test"]),
        ];
        let known = Known { gateways, ..Known::default() };
        for (host, expected) in [
            ("a.b.test", Some(3)),
            ("x.b.test", Some(2)),
            ("x.test", Some(1)),
            ("c.test", Some(1)),
            ("other", None),
        ] {
            let found = known.gateway(host);
            let at = found.and_then(|f| known.gateways.iter().position(|g| Arc::ptr_eq(g, f)));
            assert_eq!(at, expected, "{host}");
        }
    }

    #[test]
    fn hosts_are_compared_without_case_brackets_and_final_dot() {
        for (authority, expected) in
            [("ETL.Test.:80", "etl.test"), ("[::1]:80", "::1"), ("10.0.0.1", "10.0.0.1")]
        {
            assert_eq!(host_of(&authority.parse().unwrap()), expected);
        }
    }
}
