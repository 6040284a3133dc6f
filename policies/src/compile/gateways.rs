//! Gateways: which routes attach to which listeners, and the sockets that come of it.

pub(crate) mod attach;
mod redirected;
mod settings;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use crate::{
    diagnostic::Rule,
    document::{
        Documents, Kind, Object,
        gateway::{GatewayListener, GatewaySpec, ListenerProtocol, TlsMode, TlsOptions},
        read::ticked,
    },
    model::{Bind, Chain, ChainKind, KeyFiles, Listener, NodeSelector, TcpForward, TlsServer},
    problem::{Problems, Span},
};

use self::{attach::Plan, settings::Settings};
use super::{
    Output,
    addresses::Addresses,
    index::Index,
    listeners::{self, ListenerLevels},
    policies::Policies,
    routes::PreparedRoute,
    sockets::{Opener, Sockets},
    streams::PreparedStream,
    table::{self, HostedRule, Section},
};

/// The class of Gateways that are served.
pub(crate) const CLASS: &str = "towpath";

/// Routes of all kinds.
pub(crate) struct Routes<'a, 'd> {
    pub(crate) http: &'a [PreparedRoute<'d>],
    pub(crate) streams: &'a [PreparedStream<'d>],
    pub(crate) addresses: &'a Addresses,
}

pub(crate) fn compile(
    documents: &Documents,
    index: &Index<'_>,
    routes: &Routes<'_, '_>,
    policies: &Policies<'_>,
    sockets: &mut Sockets,
    output: &mut Output<'_>,
    problems: &mut Problems,
) {
    for gateway in documents.gateways.iter().filter(|g| index.is_first(Kind::Gateway, g)) {
        let class = &gateway.spec.class;
        if class.value != CLASS {
            problems
                .warning(
                    Rule::NoEffect,
                    class.span,
                    format!("a Gateway of class {} is passed over", ticked(class)),
                )
                .help("Towpath serves gatewayClassName: towpath");
            continue;
        }
        let settings = Settings::new(gateway, &mut output.places, problems);
        let plans = attach::plan(gateway, routes, problems);
        for (port, group) in by_port(&plans) {
            let span = group[0].written.port.span;
            let name = format!("gateway/{}/{port}", gateway.id());
            let redirected = redirected::is(group[0].written);
            let addresses = match (settings.bind, redirected) {
                (None, true) => redirected::default_addresses(group[0].written, port),
                (bind, _) => {
                    let bind = bind.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
                    vec![SocketAddr::new(bind, port)]
                }
            };
            for address in &addresses {
                claim_socket(sockets, &settings.nodes, *address, span, problems);
            }
            if !fits_together(&group, problems) {
                continue;
            }
            let mut port = Port { gateway, name, settings: &settings, policies, output };
            let levels: Vec<_> = group.iter().map(|plan| (*plan, port.levels(plan))).collect();
            listeners::check_http(&levels, problems);
            let proxy_protocol = listeners::of_port(&levels, problems);
            if redirected {
                port.redirected(group[0], &addresses, routes.addresses, problems);
                continue;
            }
            let address = addresses[0];
            let chains = port.chains(&group, problems);
            let Port { name, .. } = port;
            if chains.is_empty() {
                continue;
            }
            let location = settings.location.clone();
            let bind = Bind::Socket(address);
            let listener = Listener { name, bind, chains, location, proxy_protocol };
            output.listener(settings.nodes.clone(), listener, span, problems);
        }
    }
    redirected::check(documents, output, problems);
}

fn by_port<'p, 'd>(plans: &'p [Plan<'d>]) -> BTreeMap<u16, Vec<&'p Plan<'d>>> {
    let mut ports: BTreeMap<u16, Vec<&Plan<'_>>> = BTreeMap::new();
    for plan in plans {
        let port = u16::try_from(**plan.written.port).unwrap_or(u16::MAX);
        ports.entry(port).or_default().push(plan);
    }
    ports
}

/// A proxy cannot open the same socket for a Gateway and for something else.
fn claim_socket(
    sockets: &mut Sockets,
    nodes: &NodeSelector,
    address: SocketAddr,
    span: Span,
    problems: &mut Problems,
) {
    let Some(taken) = sockets.claim(Opener::Gateway, nodes, address, span) else { return };
    let by = match taken.opener {
        Opener::Gateway => "another Gateway",
        Opener::Sidecar => "a sidecar",
    };
    problems
        .error(
            Rule::Conflict,
            span,
            format!("port {} is taken by {by} of the same proxies", address.port()),
        )
        .related(taken.span, taken.note)
        .help("use another port, or select other proxies by the annotation towpath.dev/nodes");
}

/// Whether the listeners of one port can share it.
fn fits_together(group: &[&Plan<'_>], problems: &mut Problems) -> bool {
    let mut good = true;
    for (index, plan) in group.iter().enumerate() {
        let alone =
            plan.written.protocol.value == ListenerProtocol::Tcp || redirected::is(plan.written);
        let clash = group[..index].iter().find_map(|earlier| {
            if earlier.family() != plan.family() {
                Some((earlier, "the port is used with another protocol already"))
            } else if alone {
                Some((earlier, "the port is taken: the protocol has no host names to share it by"))
            } else if earlier.host == plan.host {
                Some((earlier, "the port has a listener for this host already"))
            } else {
                None
            }
        });
        if let Some((earlier, message)) = clash {
            let written = plan.written;
            let span = written.hostname.as_ref().map_or(written.port.span, |h| h.span);
            problems
                .error(Rule::Conflict, span, message)
                .related(earlier.written.name.span, format!("listener `{}`", earlier.written.name))
                .help("use another port or hostname");
            good = false;
        }
    }
    good
}

/// One port of a Gateway.
struct Port<'a, 'o, 'f> {
    gateway: &'a Object<GatewaySpec>,
    name: String,
    settings: &'a Settings,
    policies: &'a Policies<'a>,
    output: &'o mut Output<'f>,
}

impl Port<'_, '_, '_> {
    fn chains(&mut self, group: &[&Plan<'_>], problems: &mut Problems) -> Vec<Chain> {
        if group[0].written.protocol.value == ListenerProtocol::Http {
            // Told apart by the Host header: one chain, one table.
            let sections =
                group.iter().map(|plan| self.section(&self.name.clone(), plan)).collect();
            let table = table::build(&self.name, sections, problems);
            let span = group[0].table_span();
            self.output.route_table(table, span, problems);
            return vec![self.http_chain(&self.name, group[0], Vec::new(), None)];
        }
        let https =
            group.iter().filter(|p| p.written.protocol.value == ListenerProtocol::Https).count();
        let mut chains = Vec::new();
        for plan in group {
            if plan.written.protocol.value != ListenerProtocol::Https {
                chains.extend(self.stream_chains(plan));
                continue;
            }
            let table_name = if https == 1 {
                self.name.clone()
            } else {
                format!("{}/{}", self.name, plan.written.name)
            };
            let section = self.section(&table_name, plan);
            let table = table::build(&table_name, vec![section], problems);
            self.output.route_table(table, plan.table_span(), problems);
            let names = server_names(&plan.host);
            let tls = tls_server(plan.written, true);
            chains.push(self.http_chain(&table_name, plan, names, tls));
        }
        server_name_conflicts(group, problems);
        chains
    }

    fn section(&mut self, table: &str, plan: &Plan<'_>) -> Section {
        let id = self.gateway.id();
        let mut rules = Vec::new();
        for attached in &plan.http {
            for rule in &attached.route.rules {
                let terms = self.policies.terms(rule, Some((&id, plan.written.name.0.as_str())));
                self.output.note_route(table, rule, &terms);
                rules.extend(attached.hosts.iter().map(|host| HostedRule::new(host, rule, &terms)));
            }
        }
        Section { host: plan.host.clone(), rules }
    }

    fn levels(&self, plan: &Plan<'_>) -> ListenerLevels<'_> {
        self.policies.listener(&self.gateway.id(), &plan.written.name)
    }

    fn http_chain(
        &self,
        table: &str,
        plan: &Plan<'_>,
        server_names: Vec<String>,
        tls: Option<TlsServer>,
    ) -> Chain {
        let options = self.levels(plan).http(&self.settings.http);
        let kind = ChainKind::Http { route_table: table.to_owned(), options };
        Chain::new(server_names, tls, kind)
    }

    fn stream_chains(&self, plan: &Plan<'_>) -> Vec<Chain> {
        let id = self.gateway.id();
        let terminate = plan.written.protocol.value == ListenerProtocol::Tls;
        let tls = if terminate { tls_server(plan.written, false) } else { None };
        let chain = |attached: &attach::AttachedStream<'_>| {
            let backends = attached.route.backends.clone();
            let services: Vec<_> = backends.iter().map(|b| b.service.as_str()).collect();
            let idle_timeout = self.policies.tcp_idle(&services, Some((&id, &plan.written.name)));
            // Any host takes what no other chain's server names take.
            let tcp = plan.written.protocol.value == ListenerProtocol::Tcp;
            let any = tcp || attached.hosts.iter().any(|host| host == "*");
            let server_names = if any { Vec::new() } else { attached.hosts.clone() };
            let kind = ChainKind::Tcp(TcpForward { backends, idle_timeout });
            Chain::new(server_names, tls.clone(), kind)
        };
        plan.streams.iter().map(chain).collect()
    }
}

fn server_names(host: &str) -> Vec<String> {
    if host == "*" { Vec::new() } else { vec![host.to_owned()] }
}

/// The certificate of a listener that terminates TLS.
fn tls_server(listener: &GatewayListener, http: bool) -> Option<TlsServer> {
    let tls = listener.tls.as_ref()?;
    if tls.mode.as_ref().is_some_and(|mode| mode.value == TlsMode::Passthrough) {
        return None;
    }
    let options = tls.options.as_ref()?;
    let alpn = if http { vec!["h2".to_owned(), "http/1.1".to_owned()] } else { Vec::new() };
    Some(TlsServer {
        certificate_file: options.certificate_file.to_string().into(),
        private_key_file: options.private_key_file.to_string().into(),
        second: second(options),
        alpn,
    })
}

fn second(options: &TlsOptions) -> Option<KeyFiles> {
    let (certificate, key) =
        (options.second_certificate_file.as_ref()?, options.second_private_key_file.as_ref()?);
    Some(KeyFiles {
        certificate_file: certificate.to_string().into(),
        private_key_file: key.to_string().into(),
    })
}

/// Two chains of a port cannot claim the same server name.
fn server_name_conflicts(group: &[&Plan<'_>], problems: &mut Problems) {
    let mut seen: BTreeMap<&str, Span> = BTreeMap::new();
    let mut claim = |name, span, problems: &mut Problems| {
        if let Some(first) = seen.get(name) {
            let of = if name == "*" {
                "every server name".to_owned()
            } else {
                format!("the server name {name}")
            };
            problems
                .error(Rule::Conflict, span, format!("{of} of this port is taken"))
                .related(*first, "taken here");
        } else {
            seen.insert(name, span);
        }
    };
    for plan in group {
        match plan.written.protocol.value {
            ListenerProtocol::Https => claim(plan.host.as_str(), plan.written.name.span, problems),
            _ => {
                for attached in &plan.streams {
                    for host in &attached.hosts {
                        claim(host, attached.route.span, problems);
                    }
                }
            }
        }
    }
}
