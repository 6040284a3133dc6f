//! What a listener does with a connection: chosen by where it was made to, where connections are redirected,
//! by server name, and by what it speaks.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use ahash::AHashMap;
use ipnetwork::IpNetwork;
use towpath_policies::model::{Only, ProxyProtocol, Redirected, Speaks};

use crate::{explicit::Explicit, http::HttpListener, sniff::First, tcp::TcpChain, tls::ServerTls};

/// The chains of one listener, compiled.
#[derive(Debug)]
pub(crate) struct Chains {
    list: Vec<Arc<Chain>>,
    /// How connections come, where they were made to other addresses.
    pub(crate) redirected: Option<Redirected>,
    /// By destination port.
    ports: AHashMap<u16, Networks>,
    /// At ports that no chain names.
    any_port: Networks,
    /// The chain that takes what no other does.
    rest: Option<usize>,
    /// Who may say, before all this, for which client a connection is.
    proxy_protocol: Option<ProxyProtocol>,
}

/// Chains by the network of the destination.
#[derive(Debug, Default)]
struct Networks {
    by_network: AHashMap<IpNetwork, Names>,
    /// Lengths of prefixes there are, the longest first: of IPv4 and of IPv6.
    lengths: [Vec<u8>; 2],
    any: Names,
}

/// Chains by server name.
#[derive(Debug, Default)]
struct Names {
    exact: HashMap<String, Spoken>,
    /// By what follows the `*`, e.g. `.example.com`.
    wildcards: HashMap<String, Spoken>,
    /// Without server names.
    any: Spoken,
}

/// Chains by what is spoken.
#[derive(Clone, Copy, Debug, Default)]
struct Spoken {
    http: Option<usize>,
    tls: Option<usize>,
    any: Option<usize>,
}

/// One chain, compiled.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) server_names: Vec<String>,
    pub(crate) only: Only,
    pub(crate) tls: Option<Arc<ServerTls>>,
    pub(crate) kind: ChainKind,
}

/// What is spoken after TLS, if any.
#[derive(Debug)]
pub(crate) enum ChainKind {
    Http(Arc<HttpListener>),
    Tcp(Arc<TcpChain>),
    /// Whatever a program asks its proxy for.
    Explicit(Arc<Explicit>),
}

/// How a connection begins.
pub(crate) enum Opening<'a> {
    /// Only one thing it can be: nothing is read to find out.
    Clear(&'a Chain),
    /// A ClientHello decides.
    Hello,
}

impl Chains {
    pub(crate) fn new(list: Vec<Arc<Chain>>, redirected: Option<Redirected>) -> Self {
        let (ports, any_port, rest) = (AHashMap::new(), Networks::default(), None);
        let (list_so_far, proxy_protocol) = (Vec::new(), None);
        let mut chains =
            Self { list: list_so_far, redirected, ports, any_port, rest, proxy_protocol };
        for (index, chain) in list.iter().enumerate() {
            let all = chain.only.takes_all() && chain.server_names.is_empty();
            if all {
                chains.rest.get_or_insert(index);
            }
            // Beside a port or a network it is not looked at but as the rest.
            let networks = match chain.only.port {
                Some(port) => chains.ports.entry(port).or_default(),
                None => &mut chains.any_port,
            };
            networks.add(index, chain);
        }
        chains.list = list;
        chains
    }

    /// The same, behind the PROXY protocol.
    pub(crate) fn introduced(self, proxy_protocol: Option<ProxyProtocol>) -> Self {
        Self { proxy_protocol, ..self }
    }

    pub(crate) fn proxy_protocol(&self) -> Option<&ProxyProtocol> {
        self.proxy_protocol.as_ref()
    }

    pub(crate) fn list(&self) -> &[Arc<Chain>] {
        &self.list
    }

    pub(crate) fn opening(&self) -> Opening<'_> {
        match self.list.as_slice() {
            [only] if only.tls.is_none() && only.server_names.is_empty() => Opening::Clear(only),
            _ => Opening::Hello,
        }
    }

    /// The most specific chain for a server name: exact, then the longest wildcard, then any.
    pub(crate) fn by_name(&self, name: Option<&str>) -> Option<Arc<Chain>> {
        let found = self.any_port.any.of(name).any?;
        Some(self.list[found].clone())
    }

    /// The chain for connections that do not begin with TLS.
    pub(crate) fn without_tls(&self) -> Option<Arc<Chain>> {
        self.by_name(None).filter(|chain| chain.tls.is_none())
    }

    /// The chain for a redirected connection that begins like this.
    pub(crate) fn choose(&self, destination: SocketAddr, first: &First) -> Option<&Arc<Chain>> {
        let names = self.names(destination);
        let spoken = match first {
            First::Tls(name) => names.of(name.as_deref()),
            _ => names.any,
        };
        let special = match first {
            First::Http1 { .. } | First::Http2 => spoken.http,
            First::Tls(_) => spoken.tls,
            First::Opaque => None,
        };
        special.or(spoken.any).or(self.rest).map(|index| &self.list[index])
    }

    /// Whether nothing of a connection need be read to choose its chain.
    pub(crate) fn is_decided(&self, destination: SocketAddr) -> bool {
        let opaque = self.redirected.as_ref().map_or(&[][..], |r| &r.opaque_ports);
        opaque.contains(&destination.port()) || self.names(destination).is_decided()
    }

    fn names(&self, destination: SocketAddr) -> &Names {
        let networks = self.ports.get(&destination.port()).unwrap_or(&self.any_port);
        let ip = destination.ip().to_canonical();
        let lengths = networks.lengths[usize::from(ip.is_ipv6())].iter();
        let mut narrower = lengths.filter_map(|length| {
            let network = IpNetwork::new(ip, *length).ok()?;
            networks.by_network.get(&IpNetwork::new(network.network(), *length).ok()?)
        });
        narrower.next().unwrap_or(&networks.any)
    }
}

impl Chain {
    /// Whether bytes that nobody reads go where those of another chain go, and under the same terms.
    pub(crate) fn passes_like(&self, other: &Self) -> bool {
        let (ChainKind::Tcp(ours), ChainKind::Tcp(theirs)) = (&self.kind, &other.kind) else {
            return false;
        };
        self.tls.is_none() && other.tls.is_none() && ours.leads_like(theirs)
    }
}

impl Networks {
    fn add(&mut self, index: usize, chain: &Chain) {
        if chain.only.networks.is_empty() {
            self.any.add(index, chain);
        }
        for network in &chain.only.networks {
            let lengths = &mut self.lengths[usize::from(network.is_ipv6())];
            if let Err(at) = lengths.binary_search_by(|length| network.prefix().cmp(length)) {
                lengths.insert(at, network.prefix());
            }
            self.by_network.entry(*network).or_default().add(index, chain);
        }
    }
}

impl Names {
    fn add(&mut self, index: usize, chain: &Chain) {
        if chain.server_names.is_empty() {
            self.any.add(index, chain);
        }
        for name in &chain.server_names {
            let name = name.to_ascii_lowercase();
            match name.strip_prefix('*') {
                Some(suffix) => self.wildcards.entry(suffix.to_owned()).or_default(),
                None => self.exact.entry(name).or_default(),
            }
            .add(index, chain);
        }
    }

    fn of(&self, name: Option<&str>) -> Spoken {
        let named = name.and_then(|name| {
            self.exact.get(name).or_else(|| {
                name.match_indices('.').find_map(|(dot, _)| self.wildcards.get(&name[dot..]))
            })
        });
        named.copied().unwrap_or(self.any)
    }

    fn is_decided(&self) -> bool {
        let Spoken { http, tls, .. } = self.any;
        self.exact.is_empty() && self.wildcards.is_empty() && http.is_none() && tls.is_none()
    }
}

impl Spoken {
    fn add(&mut self, index: usize, chain: &Chain) {
        match chain.only.speaks {
            Some(Speaks::Http) => &mut self.http,
            Some(Speaks::Tls) => &mut self.tls,
            None => &mut self.any,
        }
        .get_or_insert(index);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use towpath_policies::model::{EndpointSet, Protocol, Service};

    use super::*;
    use crate::{
        tcp::TcpMetrics,
        upstream::{ServiceLive, reconcile},
    };

    fn chain(names: &[&str]) -> Arc<Chain> {
        narrowed(names, Only::default())
    }

    fn forward(backends: Vec<(Arc<ServiceLive>, u32)>, idle_timeout: Option<Duration>) -> TcpChain {
        TcpChain {
            listener: "l".into(),
            backends,
            idle_timeout,
            access_log: None,
            transfers: Arc::new(crate::transfers::Transfers::new(1)),
            metrics: TcpMetrics::new("l"),
        }
    }

    fn narrowed(names: &[&str], only: Only) -> Arc<Chain> {
        let forward = forward(Vec::new(), None);
        Arc::new(Chain {
            server_names: names.iter().map(ToString::to_string).collect(),
            only,
            tls: None,
            kind: ChainKind::Tcp(Arc::new(forward)),
        })
    }

    #[test]
    fn the_most_specific_name_wins() {
        let chains = Chains::new(
            vec![
                chain(&["*.example.com"]),
                chain(&["a.example.com"]),
                chain(&["*.b.example.com", "other.test"]),
                chain(&[]),
            ],
            None,
        );
        let any = 3;
        for (name, expected) in [
            (Some("a.example.com"), 1),
            (Some("c.example.com"), 0),
            (Some("x.y.example.com"), 0),
            (Some("x.b.example.com"), 2),
            (Some("b.example.com"), 0),
            (Some("other.test"), 2),
            (Some("example.com"), any),
            (Some(""), any),
            (None, any),
        ] {
            let found = chains.by_name(name).unwrap();
            assert!(Arc::ptr_eq(&found, &chains.list[expected]), "{name:?}");
        }
        let strict = Chains::new(vec![chain(&["a.test"])], None);
        assert!(strict.by_name(Some("b.test")).is_none());
        assert!(strict.without_tls().is_none());
        assert!(matches!(strict.opening(), Opening::Hello));
    }

    #[test]
    fn bytes_pass_alike_where_backends_and_idle_time_are_the_same() {
        let live = |name: &str| {
            let (spec, set) =
                (Service::new(name, Protocol::Tcp), EndpointSet::new(name.into(), vec![]));
            reconcile(None, Arc::new(spec), &set, 1).unwrap().live.clone()
        };
        let (a, b) = (live("a"), live("b"));
        let time = |secs| Some(Duration::from_secs(secs));
        let one = forward(vec![(a.clone(), 1)], time(60));
        for (backends, idle_timeout, expected) in [
            (vec![(a.clone(), 1)], time(60), true),
            (vec![(b.clone(), 1)], time(60), false),
            (vec![(a.clone(), 1)], None, false),
            (vec![(a, 1), (b, 1)], time(60), false),
        ] {
            assert_eq!(one.leads_like(&forward(backends, idle_timeout)), expected);
        }
    }

    #[test]
    fn port_network_name_and_protocol_are_looked_at_in_this_order_and_never_back() {
        let only = |port: Option<u16>, networks: &[&str], speaks| Only {
            port,
            networks: networks.iter().map(|n| n.parse().unwrap()).collect(),
            speaks,
        };
        let redirected = Redirected {
            address: ([127, 0, 0, 1], 15001).into(),
            transparent: false,
            tunnels: false,
            opaque_ports: vec![25],
        };
        let chains = Chains::new(
            vec![
                narrowed(&[], only(Some(80), &["10.0.0.0/8"], Some(Speaks::Http))),
                narrowed(&[], only(Some(80), &["10.0.0.0/8"], None)),
                narrowed(&[], only(Some(80), &["10.0.0.7/32", "fd00::7/128"], None)),
                narrowed(&[], only(Some(80), &[], Some(Speaks::Http))),
                narrowed(&["*.etl.test"], only(None, &[], Some(Speaks::Tls))),
                narrowed(&[], only(None, &["192.168.0.0/16"], None)),
                narrowed(&[], only(None, &[], Some(Speaks::Http))),
                narrowed(&[], Only::default()),
            ],
            Some(redirected),
        );
        let http = || First::Http1 { host: None };
        let tls = || First::Tls(Some("a.etl.test".into()));
        for (destination, first, expected) in [
            ("10.1.2.3:80", http(), 0),
            ("10.1.2.3:80", First::Http2, 0),
            ("10.1.2.3:80", First::Opaque, 1),
            ("10.1.2.3:80", tls(), 1),
            ("10.0.0.7:80", http(), 2),
            ("[fd00::7]:80", First::Opaque, 2),
            ("[fd00::8]:80", http(), 3),
            ("[::ffff:10.0.0.7]:80", http(), 2),
            ("192.168.1.1:80", http(), 3),
            ("192.168.1.1:80", First::Opaque, 7),
            ("192.168.1.1:81", http(), 5),
            ("11.0.0.1:80", tls(), 7),
            ("11.0.0.1:443", tls(), 4),
            ("11.0.0.1:443", First::Tls(None), 7),
            ("11.0.0.1:443", http(), 6),
            ("11.0.0.1:443", First::Opaque, 7),
        ] {
            let found = chains.choose(destination.parse().unwrap(), &first).unwrap();
            assert!(Arc::ptr_eq(found, &chains.list[expected]), "{destination} {first:?}");
        }
        for (destination, expected) in [
            ("10.0.0.7:80", true),
            ("10.0.0.8:80", false),
            ("192.168.1.1:81", true),
            ("11.0.0.1:443", false),
            ("11.0.0.1:25", true),
        ] {
            let decided = chains.is_decided(destination.parse().unwrap());
            assert_eq!(decided, expected, "{destination}");
        }
    }
}
