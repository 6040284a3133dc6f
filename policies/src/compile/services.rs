//! Services, their endpoints, and the listeners of sidecars.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use crate::{
    diagnostic::Rule,
    document::{
        Documents, Kind, Object,
        own::{
            BreakerPolicySpec, EndpointSpec, GpuVendor, HealthCheckSpec, LimitsSpec,
            ProxyProtocolVersion, ServiceProtocol, ServiceSpec, SidecarSpec,
        },
        read::{invalid, ticked},
        value::{Positive, PositiveTime},
    },
    model::{
        Bind, Breaker, BudgetShare, Chain, ChainKind, Discovery, Endpoint, EndpointSet, Gpu,
        HealthCheck, HealthProbe, HttpOptions, Listener, Locality, Location, NodeSelector, Only,
        Protocol, ProxyVersion, RateLimits, Redirected, Service, Speaks, TcpForward, Thresholds,
        UpstreamTls, WeightedBackend,
    },
    problem::{At, Problems, Span},
};

use super::{
    Intercepted, Output, adaptive, balancer,
    index::Index,
    limits,
    origin::{Origin, Origins},
    outlier,
    place::Places,
    policies::Policies,
    queue,
    region::{self, Regions},
    rules::PreparedRule,
    sockets::{Opener, Sockets},
    spread, stream_age,
    table::{self, HostedRule, Section},
};

pub(crate) fn compile(
    documents: &Documents,
    index: &Index<'_>,
    policies: &Policies<'_>,
    sockets: &mut Sockets,
    output: &mut Output<'_>,
    problems: &mut Problems,
) {
    let regions = Regions::new(documents, index, &mut output.places, problems);
    for object in documents.services.iter().filter(|o| index.is_first(Kind::Service, o)) {
        let service = service(object, policies, output, problems);
        queue::check_endpoints(listed(object).map(|(e, _)| e), &service, problems);
        let (mut set, span) = endpoints(object, &mut output.places, problems);
        regions.tell(&mut set, &service);
        let balancer = policies.balancer(&service.name);
        region::check_terms(balancer, &set, problems);
        set.spread = spread::compile(balancer, &service, &set.endpoints, problems);
        let located: Vec<_> = set.endpoints.iter().map(Endpoint::location).collect();
        output.endpoints(set, span, problems);
        for ((endpoint, name), location) in listed(object).zip(located) {
            if let Some(sidecar) = &endpoint.sidecar {
                let inbound = Inbound { service: &service, endpoint, name, location, sidecar };
                inbound.compile(object, policies, sockets, output, problems);
            }
        }
        output.service(service, object.span, problems);
    }
}

fn service(
    object: &Object<ServiceSpec>,
    policies: &Policies<'_>,
    output: &mut Output<'_>,
    problems: &mut Problems,
) -> Service {
    let spec = &object.spec;
    let id = object.id();
    let mut origins = Origins::new();
    let own = |span| Origin::Written(span, format!("Service {id}"));
    let or_default = |span: Option<Span>| span.map_or(Origin::Default, own);

    let mut service = Service::new(id.clone(), protocol(spec));
    origins.push(("protocol", or_default(spec.protocol.as_ref().map(|p| p.span))));
    service.connect_timeout = time(spec.connect_timeout.as_ref(), service.connect_timeout);
    origins.push(("connect timeout", or_default(spec.connect_timeout.as_ref().map(|t| t.span))));
    service.pool_idle_timeout = time(spec.pool_idle_timeout.as_ref(), service.pool_idle_timeout);
    origins
        .push(("pool idle timeout", or_default(spec.pool_idle_timeout.as_ref().map(|t| t.span))));
    service.discovery = discovery(spec, problems);
    service.tls = spec.tls.as_ref().map(|tls| UpstreamTls {
        server_name: tls.server_name.to_string(),
        ca_file: tls.ca_file.as_ref().map(|f| f.to_string().into()),
    });
    service.proxy_protocol = spec.proxy_protocol.as_ref().map(|version| match version.value {
        ProxyProtocolVersion::V1 => ProxyVersion::V1,
        ProxyProtocolVersion::V2 => ProxyVersion::V2,
    });
    if let Some(version) = &spec.proxy_protocol {
        origins.push(("PROXY protocol", own(version.span)));
        check_proxy_protocol(object, version.span, problems);
    }
    check_tunnel(object, problems);
    service.health_check = spec.health_check.as_ref().map(|h| health_check(h, spec, problems));
    origins.push(("health check", or_default(spec.health_check.as_ref().map(|h| h.span))));

    let balancer = policies.balancer(&id);
    balancer::compile(balancer, &mut service, &mut output.places, problems);
    balancer::check_streams(balancer, spec, &service, problems);
    origins.push((
        "balancer",
        balancer.map_or(Origin::Default, |p| {
            Origin::Written(p.spec.policy.span, format!("BalancerPolicy {}", p.id()))
        }),
    ));
    breaker(&mut service, policies.breaker(&id), &mut origins, problems);
    let transfer = policies.service_transfer(&id);
    if let Some(limits) = transfer.and_then(|p| p.spec.limits.as_ref())
        && service.protocol == Protocol::Tcp
    {
        problems
            .error(Rule::NoEffect, limits.span, "opaque connections are not limited")
            .related(object.span, "the Service speaks TCP");
    }
    let budget = transfer.and_then(|p| p.spec.retry.as_ref()?.budget.as_ref().map(|b| (p, b)));
    let default = BudgetShare::default();
    service.retry_budget = budget.map_or(default, |(_, budget)| BudgetShare {
        percent: budget.percent.as_ref().map_or(default.percent, |p| ***p),
        min_concurrent: budget.min_concurrent.as_ref().map_or(default.min_concurrent, |m| ***m),
    });
    origins.push((
        "retry budget",
        budget.map_or(Origin::Default, |(p, b)| {
            Origin::Written(b.span, format!("TransferPolicy {}", p.id()))
        }),
    ));
    output.note_service(&id, origins);
    service
}

/// A sidecar's socket would have to read the header, which nobody tells it; clients of HTTP share connections.
fn check_proxy_protocol(object: &Object<ServiceSpec>, span: Span, problems: &mut Problems) {
    let spec = &object.spec;
    if let Some((endpoint, _)) = listed(object).find(|(e, _)| e.sidecar.is_some()) {
        problems
            .error(Rule::Unsupported, span, "a sidecar does not take the PROXY protocol")
            .related(endpoint.address.span, "this endpoint has one")
            .help("remove `proxyProtocol` or `sidecar`");
    } else if protocol(spec) != Protocol::Tcp {
        problems
            .warning(
                Rule::NoEffect,
                span,
                "connections of HTTP are shared by clients, so their headers name none",
            )
            .help("endpoints find clients in X-Forwarded-For; TCP has connections of their own");
    }
}

/// What a tunnel carries is nobody's but the client's and the application's.
fn check_tunnel(object: &Object<ServiceSpec>, problems: &mut Problems) {
    let spec = &object.spec;
    let Some(tunnel) = spec.tunnel.as_ref().filter(|tunnel| tunnel.value) else { return };
    if protocol(spec) != Protocol::Tcp {
        problems
            .error(Rule::NoEffect, tunnel.span, "only opaque connections go through a tunnel")
            .help("remove `tunnel`, as HTTP/2 shares connections anyway, or say `protocol: TCP`");
    }
    for (field, written) in
        [("tls", spec.tls.is_some()), ("proxyProtocol", spec.proxy_protocol.is_some())]
    {
        if written {
            let what = format!("a tunnel does not go together with `{field}`");
            let help = format!("remove `tunnel` or `{field}`");
            problems.error(Rule::Conflict, tunnel.span, what).help(help);
        }
    }
    let at_its_port = |endpoint: &EndpointSpec| {
        takes_tunnels(endpoint) && endpoint.address.value.port() == Redirected::TUNNELS
    };
    if let Some((endpoint, _)) = listed(object).find(|(endpoint, _)| at_its_port(endpoint)) {
        let what = format!("port {} is where tunnels come in", Redirected::TUNNELS);
        problems
            .error(Rule::Conflict, endpoint.address.span, what)
            .related(tunnel.span, "for this")
            .help("have the application listen elsewhere, or remove `tunnel`");
    }
    if !listed(object).any(|(endpoint, _)| takes_tunnels(endpoint)) {
        problems
            .warning(Rule::NoEffect, tunnel.span, "no endpoint has a sidecar that takes a tunnel")
            .help("say `sidecar: {node: NAME}`, without `app`, of listed endpoints");
    }
}

/// Whether what comes for it is redirected to a sidecar.
fn takes_tunnels(endpoint: &EndpointSpec) -> bool {
    endpoint.sidecar.as_ref().is_some_and(|sidecar| sidecar.app.is_none())
}

fn protocol(spec: &ServiceSpec) -> Protocol {
    match spec.protocol.as_ref().map(|p| p.value) {
        Some(ServiceProtocol::Http) => Protocol::Http1,
        Some(ServiceProtocol::Http2 | ServiceProtocol::Grpc) => Protocol::Http2,
        Some(ServiceProtocol::Tcp) => Protocol::Tcp,
        Some(ServiceProtocol::Follow) | None => Protocol::Follow,
    }
}

pub(super) fn time(written: Option<&At<PositiveTime>>, default: Duration) -> Duration {
    written.map_or(default, |t| t.0)
}

pub(super) fn count(written: Option<&At<Positive>>, default: u32) -> u32 {
    written.map_or(default, |c| ***c)
}

fn discovery(spec: &ServiceSpec, problems: &mut Problems) -> Discovery {
    const SHORTEST: Duration = Duration::from_secs(1);
    let Some(dns) = &spec.dns else { return Discovery::Listed };
    let refresh = time(dns.refresh.as_ref(), Duration::from_secs(30));
    if refresh < SHORTEST {
        let span = dns.refresh.as_ref().map_or(dns.span, |r| r.span);
        invalid(span, "looks up too often", "at least 1s", problems);
    }
    Discovery::Dns {
        host: dns.host.to_string(),
        port: u16::try_from(**dns.port).unwrap_or(u16::MAX),
        refresh,
    }
}

fn health_check(
    written: &HealthCheckSpec,
    spec: &ServiceSpec,
    problems: &mut Problems,
) -> HealthCheck {
    let probe = if let Some(http) = &written.http {
        HealthProbe::Http {
            path: http.path.as_ref().map_or_else(|| "/".to_owned(), |p| p.to_string()),
            host: http.host.as_ref().map(|h| h.to_string()),
        }
    } else if let Some(grpc) = &written.grpc {
        if let Some(protocol) = &spec.protocol
            && matches!(protocol.value, ServiceProtocol::Http | ServiceProtocol::Tcp)
        {
            problems
                .error(Rule::Conflict, grpc.span, "a gRPC probe needs a service that speaks HTTP/2")
                .related(protocol.span, "it speaks another protocol")
                .help("set the protocol to GRPC, or use an http or tcp probe");
        }
        let service = grpc.service.as_ref().map(|s| s.value.clone()).unwrap_or_default();
        HealthProbe::Grpc { service }
    } else {
        HealthProbe::Tcp
    };
    HealthCheck {
        probe,
        interval: time(written.interval.as_ref(), Duration::from_secs(10)),
        timeout: time(written.timeout.as_ref(), Duration::from_secs(2)),
        unhealthy_threshold: count(written.unhealthy_threshold.as_ref(), 3),
        healthy_threshold: count(written.healthy_threshold.as_ref(), 1),
    }
}

fn breaker(
    service: &mut Service,
    policy: Option<&Object<BreakerPolicySpec>>,
    origins: &mut Origins,
    problems: &mut Problems,
) {
    let of = |span| {
        policy
            .map_or(Origin::Default, |p| Origin::Written(span, format!("BreakerPolicy {}", p.id())))
    };
    let spec = policy.map(|p| &p.spec);
    let thresholds = |written: Option<&LimitsSpec>| {
        written.map_or(Thresholds::default(), |l| Thresholds {
            max_connections: l.max_connections.as_ref().map(|n| ***n),
            max_requests: l.max_requests.as_ref().map(|n| ***n),
            max_pending: l.max_pending.as_ref().map(|n| ***n),
            max_bytes_in_flight: l.max_bytes_in_flight.as_ref().map(|n| n.0),
        })
    };
    let whole = spec.and_then(|s| s.service.as_ref());
    let each = spec.and_then(|s| s.endpoint.as_ref());
    for limit in [whole, each].into_iter().flatten().filter_map(|l| l.max_bytes_in_flight.as_ref())
    {
        if limit.0 == 0 {
            invalid(limit.span, "0 bytes would refuse every body", "at least 1", problems);
        }
    }
    service.breaker = Breaker { service: thresholds(whole), endpoint: thresholds(each) };
    origins.push(("limits", whole.map_or(Origin::Default, |l| of(l.span))));
    origins.push(("limits of each endpoint", each.map_or(Origin::Default, |l| of(l.span))));
    let written = spec.and_then(|s| s.bandwidth.as_ref());
    service.admission.bandwidth = written.map(|b| limits::bandwidth(b, service.protocol, problems));
    origins.push(("bandwidth", written.map_or(Origin::Default, |b| of(b.span))));
    let written = spec.and_then(|s| s.outlier.as_ref());
    service.outlier = outlier::compile(written, service, problems);
    origins.push(("outlier ejection", written.map_or(Origin::Default, |o| of(o.span))));
    service.recovery = outlier::recovery(spec, service.outlier.as_ref(), problems);
    let span = spec.and_then(outlier::recovery_span);
    origins.push(("recovery", span.map_or(Origin::Default, of)));
    let written = spec.and_then(|s| s.queue.as_ref());
    service.admission.queue = written.map(|q| queue::compile(q, service, problems));
    if let Some(written) = written {
        origins.push(("queue", of(written.span)));
    }
    let written = spec.and_then(|s| s.stream_age.as_ref());
    service.admission.stream_age = stream_age::compile(written, service, problems);
    if let Some(written) = written {
        origins.push(("stream age", of(written.span)));
    }
    let written = spec.and_then(|s| s.adaptive_concurrency.as_ref());
    service.admission.adaptive_concurrency =
        written.map(|a| adaptive::compile(a, spec, service, problems));
    if let Some(written) = written {
        origins.push(("adaptive concurrency", of(written.span)));
    }
}

/// The listed endpoints and their names.
fn listed(object: &Object<ServiceSpec>) -> impl Iterator<Item = (&EndpointSpec, String)> {
    object.spec.endpoints.iter().flat_map(|list| &list.value).map(|endpoint| {
        let name = endpoint
            .name
            .as_ref()
            .map_or_else(|| endpoint.address.value.to_string(), |n| n.to_string());
        (endpoint, name)
    })
}

fn endpoints(
    object: &Object<ServiceSpec>,
    places: &mut Places,
    problems: &mut Problems,
) -> (EndpointSet, Span) {
    let span = object.spec.endpoints.as_ref().map_or(object.span, |list| list.span);
    let mut names: HashMap<String, Span> = HashMap::new();
    let mut addresses: HashMap<SocketAddr, Span> = HashMap::new();
    let mut endpoints = Vec::new();
    let tunnels = object.spec.tunnel.as_ref().is_some_and(|tunnel| tunnel.value);
    for (written, name) in listed(object) {
        let at = written.name.as_ref().map_or(written.address.span, |n| n.span);
        if let Some(first) = addresses.insert(written.address.value, written.address.span) {
            problems
                .error(Rule::Duplicate, written.address.span, "this address is there twice")
                .related(first, "first here");
        } else if let Some(first) = names.insert(name.clone(), at) {
            problems
                .error(Rule::Duplicate, at, "two endpoints have this name")
                .related(first, "first here");
        }
        let (place, given) = (written.place.as_ref(), written.coordinates.as_ref());
        let otherwise = "the endpoint is without coordinates";
        let Location { place, coordinates } = places.either(place, given, otherwise, problems);
        let tunnel = tunnels && takes_tunnels(written);
        endpoints.push(Endpoint { place, coordinates, tunnel, ..endpoint(written, name) });
    }
    if endpoints.is_empty() && object.spec.endpoints.is_some() {
        problems.warning(
            Rule::NoEffect,
            span,
            "the Service has no endpoint; every request will fail",
        );
    }
    (EndpointSet::new(object.id(), endpoints), span)
}

fn endpoint(written: &EndpointSpec, name: String) -> Endpoint {
    let text =
        |text: &Option<At<String>>| text.as_ref().map(|t| t.value.clone()).unwrap_or_default();
    Endpoint {
        name,
        locality: written.locality.as_ref().map_or_else(Locality::default, |l| Locality {
            region: text(&l.region),
            zone: text(&l.zone),
            sub_zone: text(&l.sub_zone),
        }),
        weight: written.weight.as_ref().map_or(100, |w| ***w),
        priority: written.priority.as_ref().map_or(0, |p| ***p),
        slots: written.slots.as_ref().map(|s| ***s),
        gpu: written.gpu.as_ref().map(|gpu| Gpu {
            vendor: match gpu.vendor.value {
                GpuVendor::Amd => "amd".to_owned(),
                GpuVendor::Nvidia => "nvidia".to_owned(),
            },
            model: gpu.model.value.clone(),
            count: gpu.count.as_ref().map_or(1, |c| ***c),
        }),
        ..Endpoint::new(written.address.value)
    }
}

/// A sidecar's side of an endpoint.
struct Inbound<'a> {
    service: &'a Service,
    endpoint: &'a EndpointSpec,
    name: String,
    location: Location,
    sidecar: &'a SidecarSpec,
}

impl Inbound<'_> {
    fn compile(
        &self,
        object: &Object<ServiceSpec>,
        policies: &Policies<'_>,
        sockets: &mut Sockets,
        output: &mut Output<'_>,
        problems: &mut Problems,
    ) {
        if !self.check(object, sockets, problems) {
            return;
        }
        let span = self.sidecar.span;
        let name = format!("inbound/{}/{}", self.service.name, self.name);
        // Beside the app nothing is weighed, ejected or probed: there is one endpoint.
        let service = Service {
            outlier: None,
            connect_timeout: self.service.connect_timeout,
            pool_idle_timeout: self.service.pool_idle_timeout,
            ..Service::new(name.clone(), self.service.protocol)
        };
        output.service(service, span, problems);
        let (app, app_span) = match &self.sidecar.app {
            Some(app) => (app.value, app.span),
            None => (self.endpoint.address.value, span),
        };
        let app = Endpoint {
            name: self.name.clone(),
            slots: self.endpoint.slots.as_ref().map(|slots| ***slots),
            ..Endpoint::new(app)
        };
        let set = EndpointSet::new(name.clone(), vec![app]);
        output.endpoints(set, app_span, problems);
        if self.sidecar.app.is_none() {
            let chains = self.intercepted(&name, policies, output, problems);
            let node = self.sidecar.node.to_string();
            let tunnel = object.spec.tunnel.as_ref().is_some_and(|tunnel| tunnel.value);
            let port = self.endpoint.address.value.port();
            let intercepted = Intercepted { node, chains, port, tunnel, span };
            let beside = output.intercepted.iter().filter(|other| other.node == intercepted.node);
            for other in beside.filter(|other| other.is_in_the_way_of(&intercepted)) {
                problems
                    .error(
                        Rule::Conflict,
                        span,
                        "an application has the port at which tunnels come",
                    )
                    .related(other.span, "one of them is here, the other there")
                    .help(format!(
                        "have it listen elsewhere than at {}, or remove `tunnel`",
                        Redirected::TUNNELS
                    ));
            }
            output.intercepted.push(intercepted);
            return;
        }
        let kind = if self.service.protocol == Protocol::Tcp {
            self.opaque(&name, policies)
        } else {
            self.http(&name, policies, output, problems)
        };
        let chain = Chain::new(Vec::new(), None, kind);
        let bind = Bind::Socket(self.endpoint.address.value);
        let location = self.location.clone();
        let chains = vec![chain];
        let listener = Listener { name, bind, chains, location, proxy_protocol: None };
        output.listener(self.nodes(), listener, span, problems);
    }

    /// The chains that take what is redirected.
    fn intercepted(
        &self,
        name: &str,
        policies: &Policies<'_>,
        output: &mut Output<'_>,
        problems: &mut Problems,
    ) -> Vec<Chain> {
        let address = self.endpoint.address.value;
        let chain = |speaks, kind| Chain {
            only: Only { port: Some(address.port()), networks: vec![address.ip().into()], speaks },
            ..Chain::new(Vec::new(), None, kind)
        };
        let mut chains = vec![chain(None, self.opaque(name, policies))];
        if self.service.protocol != Protocol::Tcp {
            let http = self.http(name, policies, output, problems);
            chains.insert(0, chain(Some(Speaks::Http), http));
        }
        chains
    }

    fn opaque(&self, name: &str, policies: &Policies<'_>) -> ChainKind {
        let idle_timeout = policies.tcp_idle(&[&self.service.name], None);
        ChainKind::Tcp(TcpForward { backends: vec![WeightedBackend::new(name)], idle_timeout })
    }

    fn http(
        &self,
        name: &str,
        policies: &Policies<'_>,
        output: &mut Output<'_>,
        problems: &mut Problems,
    ) -> ChainKind {
        self.route_table(name, policies, output, problems);
        let options = HttpOptions { reports_load: true, ..HttpOptions::default() };
        ChainKind::Http { route_table: name.to_owned(), options }
    }

    fn nodes(&self) -> NodeSelector {
        NodeSelector::Matching(vec![self.sidecar.node.to_string()])
    }

    fn route_table(
        &self,
        name: &str,
        policies: &Policies<'_>,
        output: &mut Output<'_>,
        problems: &mut Problems,
    ) {
        let mut terms = {
            let to_service =
                PreparedRule::everything_to(name.to_owned(), &self.service.name, self.sidecar.span);
            policies.terms(&to_service, None)
        };
        // The caller's side retries; twice would multiply.
        terms.retry.attempts = 0;
        terms.retry.on.clear();
        terms.retry.per_try_timeout = None;
        // And limits: here every client's address is a proxy's.
        terms.transfer.limits = RateLimits::default();
        terms.origins.retain(|(field, _)| matches!(*field, "timeout" | "idle timeout"));
        let rule = PreparedRule::everything_to(name.to_owned(), name, self.sidecar.span);
        output.note_route(name, &rule, &terms);
        let rules = vec![HostedRule::new("*", &rule, &terms)];
        let section = Section { host: "*".to_owned(), rules };
        let table = table::build(name, vec![section], problems);
        output.route_table(table, self.sidecar.span, problems);
    }

    fn check(
        &self,
        object: &Object<ServiceSpec>,
        sockets: &mut Sockets,
        problems: &mut Problems,
    ) -> bool {
        let before = problems.errors();
        let address = self.endpoint.address.value;
        if let Some(app) = self.sidecar.app.as_ref().filter(|app| app.value == address) {
            problems
                .error(Rule::Conflict, app.span, "the app has the sidecar's own address")
                .related(self.endpoint.address.span, "the sidecar listens here")
                .help("let the app listen elsewhere, e.g. on 127.0.0.1, or leave `app` out where connections are redirected");
        }
        if let Some(tls) = &object.spec.tls {
            problems
                .error(Rule::Unsupported, self.sidecar.span, "a sidecar does not terminate TLS yet")
                .related(tls.span, "the Service wants TLS")
                .help("remove `tls` or `sidecar`");
        }
        let span = self.endpoint.address.span;
        // Without `app` it is the app that listens here: what is redirected to it belongs to one Service, too.
        if let Some(taken) = sockets.claim(Opener::Sidecar, &self.nodes(), address, span) {
            let message =
                format!("the node {} listens on this address already", ticked(&self.sidecar.node));
            problems.error(Rule::Conflict, span, message).related(taken.span, taken.note);
        }
        problems.errors() == before
    }
}
