//! `OutboundPolicies`: what becomes of a connection or a request to a destination.

mod backends;
mod filters;
mod matching;
mod retry;

use std::time::Duration;

use linkerd2_proxy_api::{
    http_route::{HttpRouteMatch, Timeouts},
    outbound::{
        EjectionConfig, ExponentialBackoff, FailureAccrual, HttpRoute, OpaqueRoute, OutboundPolicy,
        ProxyProtocol,
        failure_accrual::{self, ConsecutiveFailures},
        http_route, opaque_route, proxy_protocol,
    },
};
use towpath_policies::model::{Action, Forward, Outlier, Protocol, Route, Service};

use crate::{
    duration, names,
    target::Target,
    world::{Found, World},
};
use backends::Backends;

/// What is told of `target`; `None` where there is nothing of the sort.
pub(crate) fn policy(world: &World, target: &Target) -> Option<OutboundPolicy> {
    let found = world.find(target)?;
    let (service, pinned) = match found {
        Found::Service(service) => (service, None),
        Found::Endpoint(service, _, endpoint) => (service, Some((service.name.as_str(), endpoint))),
        Found::Host(table, host) => {
            let backends = Backends { world, port: target.port(), pinned: None };
            let only = only_service(&host.routes).and_then(|name| world.service(name));
            let accrual = only.and_then(|service| service.outlier.as_ref());
            let http = http_routes(&host.routes, &backends);
            let metadata = Some(names::default_metadata(&table.name));
            // Bytes that are no HTTP name no host.
            let protocol = detect(http, Vec::new(), accrual);
            return Some(OutboundPolicy { protocol: Some(protocol), metadata });
        }
    };
    let backends = Backends { world, port: target.port(), pinned };
    let opaque = vec![opaque_route(service, &backends)];
    let protocol = if service.protocol == Protocol::Tcp {
        let kind = proxy_protocol::Kind::Opaque(proxy_protocol::Opaque { routes: opaque });
        ProxyProtocol { kind: Some(kind) }
    } else {
        // Attached to a Service they are for any host.
        let hosts = &world.routes(&service.name)?.virtual_hosts;
        let http = hosts.iter().flat_map(|host| http_routes(&host.routes, &backends)).collect();
        detect(http, opaque, service.outlier.as_ref())
    };
    let metadata = Some(names::service_metadata(&service.name, target.port()));
    Some(OutboundPolicy { protocol: Some(protocol), metadata })
}

/// A proxy looks at the first bytes, whatever the endpoints speak: it forwards HTTP in the version that came.
fn detect(
    http: Vec<HttpRoute>,
    opaque: Vec<OpaqueRoute>,
    outlier: Option<&Outlier>,
) -> ProxyProtocol {
    let failure_accrual = outlier.and_then(failure_accrual);
    let kind = proxy_protocol::Kind::Detect(proxy_protocol::Detect {
        timeout: Some(duration(DETECT)),
        opaque: Some(proxy_protocol::Opaque { routes: opaque }),
        http1: Some(proxy_protocol::Http1 { routes: http.clone(), failure_accrual }),
        http2: Some(proxy_protocol::Http2 { routes: http, failure_accrual }),
    });
    ProxyProtocol { kind: Some(kind) }
}

fn http_routes(routes: &[Route], backends: &Backends<'_>) -> Vec<HttpRoute> {
    // A proxy prefers the one that names its method where two match alike. So either all do, or none that need not.
    let by_method = routes.iter().any(retry::depends_on_method);
    routes.iter().map(|route| http_route(route, by_method, backends)).collect()
}

fn http_route(route: &Route, by_method: bool, backends: &Backends<'_>) -> HttpRoute {
    let method = route.matches.method.as_deref();
    let any = vec![matching::encode(&route.matches)];
    let by_method = by_method && method.is_none();
    let safe = if by_method { matching::each(&any[0], &matching::IDEMPOTENT) } else { Vec::new() };
    let answers = |filter| vec![answer([safe.clone(), any.clone()].concat(), filter)];
    let rules = match &route.action {
        Action::Forward(forward) if let Some(why) = unsayable(forward) => {
            answers(filters::refuse(why))
        }
        Action::Forward(forward) if by_method => {
            let full = retry::encode(&forward.retry, true);
            let sparing = retry::encode(&forward.retry, false);
            vec![
                forwarding(safe, route, forward, full, backends),
                forwarding(any, route, forward, sparing, backends),
            ]
        }
        Action::Forward(forward) => {
            let safe = method.is_some_and(|method| matching::IDEMPOTENT.contains(&method));
            let retry = retry::encode(&forward.retry, safe);
            vec![forwarding(any, route, forward, retry, backends)]
        }
        Action::Redirect(redirect) => answers(filters::redirect(redirect)),
        Action::Respond(response) => answers(filters::respond(response)),
    };
    HttpRoute { metadata: Some(names::route_metadata(&route.name)), hosts: Vec::new(), rules }
}

fn forwarding(
    matches: Vec<HttpRouteMatch>,
    route: &Route,
    forward: &Forward,
    retry: Option<http_route::Retry>,
    backends: &Backends<'_>,
) -> http_route::Rule {
    let mut filters = filters::of_request(&route.request_headers);
    filters.extend(filters::of_response(&route.response_headers));
    http_route::Rule {
        matches,
        filters,
        backends: Some(backends.http(&forward.backends)),
        timeouts: Some(Timeouts {
            request: forward.timeout.map(duration),
            idle: forward.idle_timeout.map(duration),
            response: None,
        }),
        retry,
        ..Default::default()
    }
}

/// A rule that sends nothing on.
fn answer(matches: Vec<HttpRouteMatch>, filter: http_route::Filter) -> http_route::Rule {
    let nobody = http_route::distribution::Kind::Empty(http_route::distribution::Empty {});
    http_route::Rule {
        matches,
        filters: vec![filter],
        backends: Some(http_route::Distribution { kind: Some(nobody) }),
        ..Default::default()
    }
}

/// What a request must not go without, and Linkerd cannot do.
fn unsayable(forward: &Forward) -> Option<&'static str> {
    use towpath_policies::model::HostRewrite;
    if forward.path.is_some() {
        Some("the route rewrites paths, which a Linkerd proxy cannot")
    } else if forward.host != HostRewrite::Keep {
        Some("the route rewrites the host, which a Linkerd proxy cannot")
    } else {
        None
    }
}

fn opaque_route(service: &Service, backends: &Backends<'_>) -> OpaqueRoute {
    let rule =
        opaque_route::Rule { backends: Some(backends.opaque(&service.name)), filters: Vec::new() };
    let metadata = names::service_metadata(&service.name, backends.port);
    OpaqueRoute { metadata: Some(metadata), rules: vec![rule] }
}

/// Linkerd judges an endpoint by itself, not beside its peers: what counts here is failures in a row.
fn failure_accrual(outlier: &Outlier) -> Option<FailureAccrual> {
    // Ours says "never" this way.
    let max_failures =
        Some(outlier.consecutive_failures).filter(|failures| *failures < u32::MAX)?;
    let backoff = backoff(outlier.base_ejection, outlier.max_ejection);
    Some(FailureAccrual {
        kind: Some(failure_accrual::Kind::ConsecutiveFailures(ConsecutiveFailures {
            max_failures,
            backoff: Some(backoff),
        })),
        ejection: Some(EjectionConfig { min_ready_endpoints: 1 }),
    })
}

/// A proxy takes no policy with times in the wrong order, nor with none.
fn backoff(least: Duration, most: Duration) -> ExponentialBackoff {
    let least = least.max(Duration::from_millis(1));
    ExponentialBackoff {
        min_backoff: Some(duration(least)),
        max_backoff: Some(duration(most.max(least))),
        jitter_ratio: JITTER,
        respect_retry_after_hint: true,
    }
}

/// The one Service that all routes lead to.
fn only_service(routes: &[Route]) -> Option<&str> {
    let mut services = routes.iter().flat_map(|route| match &route.action {
        Action::Forward(forward) => forward.backends.as_slice(),
        Action::Redirect(_) | Action::Respond(_) => &[],
    });
    let first = services.next()?.service.as_str();
    services.all(|backend| backend.service == first).then_some(first)
}

/// How long a proxy waits for a client's first bytes before it takes them for opaque; Linkerd's default.
const DETECT: Duration = Duration::from_secs(10);
const JITTER: f32 = 0.5;

#[cfg(test)]
mod tests;
