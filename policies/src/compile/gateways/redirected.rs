//! Listeners for connections that were made to other addresses and are redirected to the proxy.
//!
//! Destinations are known without reading a byte, so they are looked at first; then comes what the client says.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use crate::{
    diagnostic::Rule,
    document::{
        Documents,
        gateway::{FromNamespaces, GatewayListener, ListenerProtocol},
        read::ticked,
    },
    model::{
        Bind, Chain, ChainKind, Discovery, EndpointSet, Listener, Node, NodeSelector, Only,
        Redirected, Route, RouteTable, Service, Speaks, TcpForward, VirtualHost, WeightedBackend,
    },
    problem::{Problems, Span},
};

use super::{
    super::{
        Intercepted,
        addresses::{Addresses, Destination, Reached},
        table,
    },
    Output, Port,
    attach::Plan,
};

/// Services, and routes by name, at their ports that a listener tells apart; each becomes up to three chains, in two
/// listeners.
const MOST_DESTINATIONS: usize = 10_000;
/// Networks at ports that lead to them.
const MOST_NETWORKS: usize = 100_000;

/// Whether a listener takes what is redirected to it.
pub(super) fn is(listener: &GatewayListener) -> bool {
    matches!(listener.protocol.value, ListenerProtocol::Outbound | ListenerProtocol::Inbound)
}

/// Where it binds, if nothing says so: where the kernel redirects to.
pub(super) fn default_addresses(listener: &GatewayListener, port: u16) -> Vec<SocketAddr> {
    let families: [IpAddr; 2] = match listener.protocol.value {
        ListenerProtocol::Outbound => [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        _ => [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    };
    families.map(|ip| SocketAddr::new(ip, port)).into()
}

impl Port<'_, '_, '_> {
    /// A listener for each address, all with the same chains.
    pub(super) fn redirected(
        &mut self,
        plan: &Plan<'_>,
        addresses: &[SocketAddr],
        known: &Addresses,
        problems: &mut Problems,
    ) {
        let span = plan.written.port.span;
        self.passthrough(span, problems);
        let inbound = plan.written.protocol.value == ListenerProtocol::Inbound;
        let chains = if inbound {
            vec![to(Only::default(), Service::PASSTHROUGH)]
        } else {
            self.outbound_chains(plan, known, problems)
        };
        let mut opaque_ports = Vec::from(Redirected::SERVER_FIRST);
        opaque_ports.extend(&self.settings.opaque_ports);
        opaque_ports.sort_unstable();
        opaque_ports.dedup();
        for address in addresses {
            let second = addresses.len() > 1 && address.is_ipv6();
            let name = if second { format!("{}/v6", self.name) } else { self.name.clone() };
            let redirected = Redirected {
                address: *address,
                transparent: inbound && self.settings.transparent,
                opaque_ports: opaque_ports.clone(),
                tunnels: false,
            };
            let listener = Listener {
                bind: Bind::Redirected(redirected),
                chains: chains.clone(),
                location: self.settings.location.clone(),
                proxy_protocol: None,
                name,
            };
            let own = if inbound { self.own(&listener) } else { BTreeMap::new() };
            let nodes = self.settings.nodes.clone();
            self.output.listener_with(nodes, listener, own, span, problems);
        }
    }

    /// What each proxy gets that has endpoints behind it.
    fn own(&self, listener: &Listener) -> BTreeMap<String, Arc<Listener>> {
        let mut own: BTreeMap<String, Listener> = BTreeMap::new();
        for intercepted in &self.output.intercepted {
            let of_node = own.entry(intercepted.node.clone()).or_insert_with(|| listener.clone());
            of_node.chains.splice(0..0, intercepted.chains.iter().cloned());
            if let Bind::Redirected(redirected) = &mut of_node.bind {
                redirected.tunnels |= intercepted.tunnel;
            }
        }
        own.into_iter().map(|(node, listener)| (node, Arc::new(listener))).collect()
    }

    /// The Service of what nothing is known of; there once, however many listeners lead to it.
    fn passthrough(&mut self, span: Span, problems: &mut Problems) {
        let known = self.output.mesh.services.get(Service::PASSTHROUGH);
        if known.is_some_and(|service| service.discovery == Discovery::OriginalDestination) {
            return;
        }
        self.output.service(Service::passthrough(), span, problems);
        self.output.endpoints(
            EndpointSet::new(Service::PASSTHROUGH.to_owned(), Vec::new()),
            span,
            problems,
        );
    }

    fn outbound_chains(
        &mut self,
        plan: &Plan<'_>,
        known: &Addresses,
        problems: &mut Problems,
    ) -> Vec<Chain> {
        let namespaces = plan.written.allowed_routes.as_ref().and_then(|a| a.namespaces.as_ref());
        let from = namespaces.and_then(|namespaces| namespaces.from.as_ref());
        let all = from.is_some_and(|from| from.value == FromNamespaces::All);
        let own = self.gateway.namespace.as_str();
        let within = |reached: &Reached| all || reached.namespace == own;
        let refused = |many: usize, what: &str, most: usize, problems: &mut Problems| {
            let told = format!("{many} {what} are to be told apart here");
            problems.error(Rule::Limit, plan.written.port.span, told).help(format!(
                "at most {most}; what has no port in `addresses`, or goes by name, counts once for each port that any has, \
                 so say ports"
            ));
            Vec::new()
        };
        let destinations = match known.destinations(MOST_NETWORKS, within) {
            Ok(destinations) => destinations,
            Err(many) => return refused(many, "networks", MOST_NETWORKS, problems),
        };
        let by_name = self.named_chains(plan, problems);
        let many = destinations.services.len() + by_name.len() * (destinations.ports.len() + 1);
        if many > MOST_DESTINATIONS {
            return refused(many, "destinations", MOST_DESTINATIONS, problems);
        }
        let mut chains: Vec<Chain> = Vec::new();
        for destination in &destinations.services {
            chains.extend(self.service_chains(plan, destination));
        }
        for port in std::iter::once(None).chain(destinations.ports.iter().copied().map(Some)) {
            chains.extend(by_name.iter().cloned().map(|mut chain| {
                chain.only.port = port;
                chain
            }));
        }
        chains.push(to(Only::default(), Service::PASSTHROUGH));
        beside_http(chains)
    }

    /// A Service at some of its addresses.
    fn service_chains(&self, plan: &Plan<'_>, destination: &Destination<'_>) -> Vec<Chain> {
        let service = destination.reached.service.as_str();
        let only = |speaks| Only {
            port: destination.port,
            networks: destination.networks.clone(),
            speaks,
        };
        let gateway = Some((self.gateway.id(), plan.written.name.to_string()));
        let gateway = gateway.as_ref().map(|(id, name)| (id.as_str(), name.as_str()));
        let idle_timeout = self.policies.tcp_idle(&[service], gateway);
        let backends = vec![WeightedBackend::new(service)];
        let opaque = ChainKind::Tcp(TcpForward { backends, idle_timeout });
        let mut chains = Vec::new();
        if destination.reached.http {
            let chain = self.http_chain(&format!("mesh/{service}"), plan, Vec::new(), None);
            chains.push(Chain { only: only(Some(Speaks::Http)), ..chain });
        }
        if destination.reached.tls {
            chains.push(to(only(Some(Speaks::Tls)), Service::PASSTHROUGH));
        }
        chains.push(Chain { only: only(None), ..Chain::new(Vec::new(), None, opaque) });
        chains
    }

    /// What goes by host and by server name, where the destination is not known.
    fn named_chains(&mut self, plan: &Plan<'_>, problems: &mut Problems) -> Vec<Chain> {
        let speaks = |speaks, chain| Chain {
            only: Only { speaks: Some(speaks), ..Only::default() },
            ..chain
        };
        let mut chains: Vec<Chain> =
            self.stream_chains(plan).into_iter().map(|chain| speaks(Speaks::Tls, chain)).collect();
        super::server_name_conflicts(&[plan], problems);
        if !plan.http.is_empty() {
            let name = self.name.clone();
            let section = self.section(&name, plan);
            let mut table = table::build(&name, vec![section], problems);
            pass_the_rest(&mut table);
            self.output.route_table(table, plan.table_span(), problems);
            chains.push(speaks(Speaks::Http, self.http_chain(&name, plan, Vec::new(), None)));
        }
        chains
    }
}

fn to(only: Only, service: &str) -> Chain {
    // As it would be without the proxy: nothing is cut because nothing moves.
    let backends = vec![WeightedBackend::new(service)];
    let kind = ChainKind::Tcp(TcpForward { backends, idle_timeout: None });
    Chain { only, ..Chain::new(Vec::new(), None, kind) }
}

/// Gives TLS chains of its own beside those of HTTP, once any chain goes by TLS: then Envoy takes a TLS client's
/// ALPN for what it speaks, and what offers `http/1.1` within TLS would be HTTP.
fn beside_http(chains: Vec<Chain>) -> Vec<Chain> {
    let unnamed = || chains.iter().filter(|chain| chain.server_names.is_empty());
    let known: HashMap<&Only, &ChainKind> = unnamed().map(|c| (&c.only, &c.kind)).collect();
    let by_tls = chains.iter().any(|chain| chain.only.speaks == Some(Speaks::Tls));
    let mut all = Vec::new();
    for chain in &chains {
        all.push(chain.clone());
        let only = |speaks| Only { speaks, ..chain.only.clone() };
        let tls = only(Some(Speaks::Tls));
        if !by_tls || chain.only.speaks != Some(Speaks::Http) || known.contains_key(&tls) {
            continue;
        }
        all.push(match known.get(&only(None)) {
            Some(unread) => Chain { only: tls, ..Chain::new(Vec::new(), None, (*unread).clone()) },
            None => to(tls, Service::PASSTHROUGH),
        });
    }
    all
}

/// Requests for hosts of which nothing is known go on to where their connection was made to.
fn pass_the_rest(table: &mut RouteTable) {
    let any = table.virtual_hosts.iter_mut().find(|host| host.domains.iter().any(|d| d == "*"));
    match any {
        Some(host) => host.routes.push(Route::passthrough()),
        None => table.virtual_hosts.push(VirtualHost {
            name: "*".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![Route::passthrough()],
        }),
    }
}

/// Tells of endpoints whose connections nobody would redirect, or no listener of their proxy would take.
pub(super) fn check(documents: &Documents, output: &Output<'_>, problems: &mut Problems) {
    let listeners = documents.gateways.iter().flat_map(|gateway| gateway.spec.listeners.iter());
    let any = listeners.into_iter().any(|l| l.protocol.value == ListenerProtocol::Inbound);
    for Intercepted { node, span, .. } in &output.intercepted {
        if !any {
            problems
                .warning(Rule::NoEffect, *span, "no listener takes the connections of this sidecar")
                .help("add a Gateway with a listener of protocol towpath.dev/Inbound, or `app` with another address");
        } else if !is_served(node, output) {
            let what = format!(
                "no Gateway with a listener of protocol towpath.dev/Inbound is for {}",
                ticked(node)
            );
            problems
                .warning(Rule::NoEffect, *span, what)
                .help("have its annotation towpath.dev/nodes name that proxy, unless it does by the cluster");
        }
    }
}

/// Whether a proxy of this name gets a listener with the chains of its endpoints.
fn is_served(node: &str, output: &Output<'_>) -> bool {
    let id = Node { id: node.to_owned(), ..Node::default() };
    output.mesh.listeners.values().any(|scoped| {
        let fits = scoped.nodes == NodeSelector::Unclaimed || scoped.nodes.names(&id);
        fits && scoped.own.contains_key(node)
    })
}
