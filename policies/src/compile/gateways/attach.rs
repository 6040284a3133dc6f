//! Which routes attach to which listeners, and for which hosts.

use crate::{
    diagnostic::Rule,
    document::{
        GATEWAY_GROUP, Kind, Object,
        gateway::{
            FromNamespaces, GatewayListener, GatewaySpec, ListenerProtocol, TlsMode, TlsOptions,
        },
        read::ticked,
    },
    problem::{Problems, Span},
};

use super::{
    super::{
        routes::{Parent, PreparedRoute},
        streams::PreparedStream,
        table::intersection,
    },
    Routes,
};

/// A listener and the routes attached to it.
pub(crate) struct Plan<'d> {
    pub(crate) written: &'d GatewayListener,
    /// The host it serves, `*` for any.
    pub(crate) host: String,
    pub(crate) http: Vec<AttachedRoute<'d>>,
    pub(crate) streams: Vec<AttachedStream<'d>>,
}

pub(crate) struct AttachedRoute<'d> {
    pub(crate) route: &'d PreparedRoute<'d>,
    pub(crate) hosts: Vec<String>,
    span: Span,
}

pub(crate) struct AttachedStream<'d> {
    pub(crate) route: &'d PreparedStream<'d>,
    pub(crate) hosts: Vec<String>,
}

impl<'d> Plan<'d> {
    pub(crate) fn new(written: &'d GatewayListener) -> Self {
        let host = written.hostname.as_ref().map_or_else(|| "*".to_owned(), |h| h.to_string());
        Self { written, host, http: Vec::new(), streams: Vec::new() }
    }

    /// What can share a port.
    pub(crate) fn family(&self) -> u8 {
        match self.written.protocol.value {
            ListenerProtocol::Http => 0,
            ListenerProtocol::Https | ListenerProtocol::Tls => 1,
            ListenerProtocol::Tcp => 2,
            ListenerProtocol::Outbound => 3,
            ListenerProtocol::Inbound => 4,
        }
    }
}

impl Plan<'_> {
    /// The place that a route table is said to come from.
    pub(crate) fn table_span(&self) -> Span {
        self.http.first().map_or(self.written.name.span, |attached| attached.span)
    }
}

/// What attachment needs to know of any kind of route.
pub(crate) struct Candidate<'a> {
    pub(crate) kind: Kind,
    pub(crate) id: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) hostnames: Vec<&'a str>,
}

/// Why a listener does not take a route.
pub(crate) struct Refusal {
    /// As the Gateway API words it.
    pub(crate) reason: &'static str,
    pub(crate) why: String,
}

pub(crate) fn plan<'d>(
    gateway: &'d Object<GatewaySpec>,
    routes: &Routes<'d, 'd>,
    problems: &mut Problems,
) -> Vec<Plan<'d>> {
    let mut plans: Vec<Plan<'d>> = Vec::new();
    for written in gateway.spec.listeners.iter() {
        if let Some(first) = plans.iter().find(|p| p.written.name.value == written.name.value) {
            problems
                .error(Rule::Duplicate, written.name.span, "two listeners have this name")
                .related(first.written.name.span, "first here");
            continue;
        }
        check_tls(written, problems);
        check_kinds(written, problems);
        plans.push(Plan::new(written));
    }
    let id = gateway.id();
    for route in routes.http {
        let hostnames = route.hostnames.iter().map(|h| &***h).collect();
        let candidate =
            Candidate { kind: route.kind, id: &route.id, namespace: route.namespace, hostnames };
        for (index, hosts, span) in
            attach(&candidate, &route.parents, (gateway, &id), &plans, problems)
        {
            plans[index].http.push(AttachedRoute { route, hosts, span });
        }
    }
    for route in routes.streams {
        let hostnames = route.hostnames.iter().map(|h| &***h).collect();
        let candidate =
            Candidate { kind: route.kind, id: &route.id, namespace: route.namespace, hostnames };
        for (index, hosts, span) in
            attach(&candidate, &route.parents, (gateway, &id), &plans, problems)
        {
            let plan = &mut plans[index];
            let tcp = plan.written.protocol.value == ListenerProtocol::Tcp;
            if let Some(first) = plan.streams.first().filter(|_| tcp) {
                problems
                    .error(
                        Rule::Conflict,
                        span,
                        format!("the listener `{}` has a TCPRoute already", plan.written.name),
                    )
                    .related(first.route.span, "this one")
                    .help("use another listener, or weights in one route");
                continue;
            }
            plan.streams.push(AttachedStream { route, hosts });
        }
    }
    // After an error the route may well be there and not be understood.
    let idle = |p: &&Plan<'_>| problems.errors() == 0 && p.http.is_empty() && p.streams.is_empty();
    let idle: Vec<_> = plans.iter().filter(idle).collect();
    for plan in idle {
        let what = match plan.written.protocol.value {
            ListenerProtocol::Http | ListenerProtocol::Https => "it answers 404",
            ListenerProtocol::Tls | ListenerProtocol::Tcp => "it is not opened",
            // They take what is redirected to them.
            ListenerProtocol::Outbound | ListenerProtocol::Inbound => continue,
        };
        problems
            .warning(
                Rule::NoEffect,
                plan.written.name.span,
                format!("no route is attached to this listener; {what}"),
            )
            .help("name it in a route's parentRefs");
    }
    plans
}

/// Finds the listeners one route attaches to: index, hosts, place of the reference.
fn attach(
    route: &Candidate<'_>,
    parents: &[Parent<'_>],
    (gateway, id): (&Object<GatewaySpec>, &str),
    plans: &[Plan<'_>],
    problems: &mut Problems,
) -> Vec<(usize, Vec<String>, Span)> {
    let mut attached: Vec<(usize, Vec<String>, Span)> = Vec::new();
    for parent in parents.iter().filter(|p| p.kind == Kind::Gateway && p.id == id) {
        let named = |plan: &Plan<'_>| {
            parent.section.is_none_or(|section| section.value == plan.written.name.value)
                && parent.port.is_none_or(|port| port.value == plan.written.port.value)
        };
        let mut refusals = Vec::new();
        let mut found = 0;
        for (index, plan) in plans.iter().enumerate().filter(|(_, plan)| named(plan)) {
            match accept(route, &gateway.namespace, plan) {
                Err(Refusal { why, .. }) => {
                    refusals.push(format!("listener `{}` {why}", plan.written.name));
                }
                Ok(hosts) => {
                    found += 1;
                    if let Some((.., first)) = attached.iter().find(|(at, ..)| *at == index) {
                        problems
                            .error(
                                Rule::Duplicate,
                                parent.span,
                                format!(
                                    "the route is attached to listener `{}` twice",
                                    plan.written.name
                                ),
                            )
                            .related(*first, "first here");
                    } else {
                        attached.push((index, hosts, parent.span));
                    }
                }
            }
        }
        if found == 0 {
            refused(route, parent, &refusals, problems);
        }
    }
    attached
}

fn refused(
    route: &Candidate<'_>,
    parent: &Parent<'_>,
    refusals: &[String],
    problems: &mut Problems,
) {
    let span = parent.section.map_or(parent.span, |section| section.span);
    if refusals.is_empty() {
        let span = parent.port.map_or(span, |port| port.span);
        problems
            .error(
                Rule::DanglingReference,
                span,
                format!("Gateway `{}` has no such listener", parent.id),
            )
            .help("sectionName and port must fit one of its listeners");
        return;
    }
    let message =
        format!("{} `{}` fits no listener of Gateway `{}`", route.kind.name(), route.id, parent.id);
    problems.error(Rule::Conflict, span, message).help(refusals.join("; "));
}

/// The hosts for which a listener takes a route, or why it does not.
pub(crate) fn accept(
    route: &Candidate<'_>,
    gateway_namespace: &str,
    plan: &Plan<'_>,
) -> Result<Vec<String>, Refusal> {
    let not_allowed = |why: String| Refusal { reason: "NotAllowedByListeners", why };
    let listener = plan.written;
    if !carries(listener).contains(&route.kind) {
        return Err(not_allowed(format!("does not carry {}s", route.kind.name())));
    }
    if let Some(allowed) = &listener.allowed_routes {
        let kinds = &allowed.kinds;
        if !kinds.is_empty() && !kinds.iter().any(|k| k.kind.value == route.kind.name()) {
            return Err(not_allowed("does not allow this kind".to_owned()));
        }
    }
    let from = listener.allowed_routes.as_ref().and_then(|a| a.namespaces.as_ref()?.from.as_ref());
    let all = from.is_some_and(|from| from.value == FromNamespaces::All);
    if !all && route.namespace != gateway_namespace {
        return Err(not_allowed(
            "allows only routes of its own namespace (allowedRoutes.namespaces.from)".to_owned(),
        ));
    }
    if route.hostnames.is_empty() {
        return Ok(vec![plan.host.clone()]);
    }
    let mut hosts: Vec<String> = Vec::new();
    for host in &route.hostnames {
        if let Some(common) = intersection(&plan.host, host)
            && !hosts.iter().any(|h| h == common)
        {
            hosts.push(common.to_owned());
        }
    }
    if hosts.is_empty() {
        let why = format!("serves {} only", plan.host);
        return Err(Refusal { reason: "NoMatchingListenerHostname", why });
    }
    Ok(hosts)
}

/// The kinds of routes that fit a listener's protocol.
pub(crate) fn carries(listener: &GatewayListener) -> &'static [Kind] {
    match listener.protocol.value {
        ListenerProtocol::Http | ListenerProtocol::Https => &[Kind::HttpRoute, Kind::GrpcRoute],
        ListenerProtocol::Tcp => &[Kind::TcpRoute],
        ListenerProtocol::Outbound => &[Kind::HttpRoute, Kind::GrpcRoute, Kind::TlsRoute],
        ListenerProtocol::Inbound => &[],
        ListenerProtocol::Tls if passes_through(listener) => &[Kind::TlsRoute],
        ListenerProtocol::Tls => &[Kind::TlsRoute, Kind::TcpRoute],
    }
}

pub(crate) fn passes_through(listener: &GatewayListener) -> bool {
    let mode = listener.tls.as_ref().and_then(|tls| tls.mode.as_ref());
    mode.is_some_and(|mode| mode.value == TlsMode::Passthrough)
}

/// Whether TLS is given where it is needed, and only there.
fn check_tls(listener: &GatewayListener, problems: &mut Problems) {
    let protocol = &listener.protocol;
    let wants = matches!(protocol.value, ListenerProtocol::Https | ListenerProtocol::Tls);
    match &listener.tls {
        None if wants => {
            problems
                .error(Rule::MissingField, protocol.span, "`tls` is missing: the protocol needs it")
                .help("tls: {options: {towpath.dev/certificate-file: …, towpath.dev/private-key-file: …}}, or mode: Passthrough for TLS");
        }
        Some(tls) if !wants => {
            problems
                .error(Rule::Conflict, tls.span, "`tls` does not go with this protocol")
                .related(protocol.span, "the protocol")
                .help("use HTTPS or TLS, or remove `tls`");
        }
        Some(tls) => {
            let passthrough = passes_through(listener);
            if passthrough && protocol.value == ListenerProtocol::Https {
                let span = tls.mode.as_ref().map_or(tls.span, |mode| mode.span);
                problems
                    .error(Rule::Conflict, span, "HTTPS cannot be passed through")
                    .help("use protocol: TLS with a TLSRoute, or mode: Terminate");
            }
            if let Some(options) = tls.options.as_ref().filter(|_| passthrough) {
                problems
                    .warning(
                        Rule::NoEffect,
                        options.span,
                        "a certificate has no effect on TLS that is passed through",
                    )
                    .help("remove `options`, or use mode: Terminate");
            }
            if let Some(options) = &tls.options {
                check_second(options, problems);
            }
            if tls.options.is_none() && !passthrough {
                problems
                    .error(Rule::MissingField, tls.span, "`options` is missing: TLS needs a certificate")
                    .help("options: {towpath.dev/certificate-file: …, towpath.dev/private-key-file: …}");
            }
        }
        None => {}
    }
    let hosts = matches!(
        protocol.value,
        ListenerProtocol::Http | ListenerProtocol::Https | ListenerProtocol::Tls
    );
    if let Some(host) = listener.hostname.as_ref().filter(|_| !hosts) {
        problems
            .error(Rule::Conflict, host.span, "the protocol carries no host name")
            .help("remove `hostname`, or use HTTP, HTTPS or TLS");
    }
}

/// A second certificate needs its key, and the other way round.
fn check_second(options: &TlsOptions, problems: &mut Problems) {
    let (there, missing) =
        match (&options.second_certificate_file, &options.second_private_key_file) {
            (Some(certificate), None) => (certificate.span, "towpath.dev/second-private-key-file"),
            (None, Some(key)) => (key.span, "towpath.dev/second-certificate-file"),
            _ => return,
        };
    problems.error(Rule::MissingField, there, format!("`{missing}` is missing beside this"));
}

fn check_kinds(listener: &GatewayListener, problems: &mut Problems) {
    let Some(allowed) = &listener.allowed_routes else { return };
    for kind in &allowed.kinds {
        let fits = carries(listener);
        let group = kind.group.as_ref().is_none_or(|g| g.value == GATEWAY_GROUP);
        if !group || !fits.iter().any(|k| k.name() == kind.kind.value) {
            let names: Vec<_> = fits.iter().map(|k| k.name()).collect();
            let names = if names.is_empty() { "no routes".to_owned() } else { names.join(", ") };
            problems
                .error(
                    Rule::InvalidValue,
                    kind.kind.span,
                    format!("{} does not fit the protocol", ticked(&kind.kind)),
                )
                .help(format!("this listener carries {names}"));
        }
    }
}
