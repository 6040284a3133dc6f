//! A policy in short, and what a proxy demands of it.

use linkerd2_proxy_api::{
    destination::WeightedAddr,
    http_types::{Headers, http_method, scheme},
    meta::{Metadata, metadata},
    outbound::http_route::{RouteBackend, distribution, filter},
};
use towpath_policies::model::Pattern;

use super::*;

pub(super) fn policy(policy: &OutboundPolicy) -> String {
    let mut text = format!("{}\n", name(policy.metadata.as_ref()));
    match kind(policy) {
        proxy_protocol::Kind::Opaque(opaque) => text += &self::opaque(&opaque.routes),
        proxy_protocol::Kind::Detect(detect) => {
            let http1 = detect.http1.as_ref().unwrap();
            let http2 = detect.http2.as_ref().unwrap();
            assert_eq!(
                (&http1.routes, http1.failure_accrual),
                (&http2.routes, http2.failure_accrual)
            );
            text += &format!("detect {}", time(detect.timeout));
            if let Some(accrual) = http1.failure_accrual {
                let failure_accrual::Kind::ConsecutiveFailures(c) = accrual.kind.unwrap() else {
                    panic!("{accrual:?}")
                };
                let backoff = backoff(c.backoff.as_ref());
                text += &format!(", ejects after {} failures for {backoff}", c.max_failures);
            }
            text += "\n";
            for route in &http1.routes {
                text += &format!("{}\n", name(route.metadata.as_ref()));
                assert!(route.hosts.is_empty());
                text += &route.rules.iter().map(rule).collect::<String>();
            }
            text += &self::opaque(&detect.opaque.as_ref().unwrap().routes);
        }
        other => panic!("{other:?}"),
    }
    text
}

fn kind(policy: &OutboundPolicy) -> &proxy_protocol::Kind {
    policy.protocol.as_ref().unwrap().kind.as_ref().unwrap()
}

fn name(metadata: Option<&Metadata>) -> String {
    match metadata.unwrap().kind.as_ref().unwrap() {
        metadata::Kind::Default(name) => name.clone(),
        metadata::Kind::Resource(r) => {
            let group = if r.group == "towpath.dev" { "towpath.dev/" } else { "" };
            let port = if r.port == 0 { String::new() } else { format!(":{}", r.port) };
            format!("{group}{} {}/{}{port}", r.kind, r.namespace, r.name)
        }
    }
}

fn opaque(routes: &[OpaqueRoute]) -> String {
    let [route] = routes else { return String::new() };
    let distribution = route.rules[0].backends.as_ref().unwrap().kind.as_ref().unwrap();
    let opaque_route::distribution::Kind::FirstAvailable(first) = distribution else {
        panic!("{distribution:?}")
    };
    format!("opaque to {}\n", backend(first.backends[0].backend.as_ref().unwrap()))
}

fn rule(rule: &http_route::Rule) -> String {
    let matches: Vec<_> = rule.matches.iter().map(request).collect();
    let mut text = format!("  {}\n", matches.join(" or "));
    let filters: Vec<_> = rule.filters.iter().map(filter).collect();
    if !filters.is_empty() {
        text += &format!("    {}\n", filters.join("; "));
    }
    text += &format!("    to {}\n", distribution(rule));
    let mut terms = Vec::new();
    if let Some(timeouts) = &rule.timeouts {
        terms.extend(timeouts.request.map(|t| format!("within {}", time(Some(t)))));
        terms.extend(timeouts.idle.map(|t| format!("idle {}", time(Some(t)))));
    }
    if let Some(retry) = &rule.retry {
        let after = backoff(retry.backoff.as_ref());
        let mut said = format!(
            "retry {} of {} bytes after {after}",
            retry.max_retries, retry.max_request_bytes
        );
        let ranges = &retry.conditions.as_ref().unwrap().status_ranges;
        if !ranges.is_empty() {
            said += " on";
        }
        for range in ranges {
            said += &match range.end - range.start {
                0 => format!(" {}", range.start),
                _ => format!(" {}..{}", range.start, range.end),
            };
        }
        said += &retry.timeout.map(|t| format!(" or {}", time(Some(t)))).unwrap_or_default();
        terms.push(said);
    }
    if !terms.is_empty() {
        text += &format!("    {}\n", terms.join(", "));
    }
    text
}

fn request(matches: &HttpRouteMatch) -> String {
    let method = matches.method.as_ref().map(|m| match m.r#type.as_ref().unwrap() {
        http_method::Type::Unregistered(name) => format!("{name} "),
        http_method::Type::Registered(_) => {
            format!("{} ", http::Method::try_from(m.clone()).unwrap())
        }
    });
    let mut text = method.unwrap_or_default();
    text += &match matches.path.as_ref().unwrap().kind.as_ref().unwrap() {
        path_match::Kind::Exact(path) => path.clone(),
        path_match::Kind::Prefix(path) => format!("{path}*"),
        path_match::Kind::Regex(path) => format!("~{path}"),
    };
    for header in &matches.headers {
        let value = match header.value.as_ref().unwrap() {
            header_match::Value::Exact(value) => format!("={}", String::from_utf8_lossy(value)),
            header_match::Value::Regex(value) => format!("~{value}"),
        };
        text += &format!(" {}{value}", header.name);
    }
    for query in &matches.query_params {
        let value = match query.value.as_ref().unwrap() {
            query_param_match::Value::Exact(value) => format!("={value}"),
            query_param_match::Value::Regex(value) => format!("~{value}"),
        };
        text += &format!(" ?{}{value}", query.name);
    }
    text
}

fn filter(filter: &http_route::Filter) -> String {
    match filter.kind.as_ref().unwrap() {
        filter::Kind::FailureInjector(fail) => {
            format!("answer {} {}", fail.status, fail.message).trim().to_owned()
        }
        filter::Kind::RequestHeaderModifier(m) => {
            edits("request", m.add.as_ref(), m.set.as_ref(), &m.remove)
        }
        filter::Kind::ResponseHeaderModifier(m) => {
            edits("response", m.add.as_ref(), m.set.as_ref(), &m.remove)
        }
        filter::Kind::Redirect(r) => {
            use linkerd2_proxy_api::http_route::path_modifier::Replace;
            let scheme = match r.scheme.as_ref().and_then(|s| s.r#type.as_ref()) {
                Some(scheme::Type::Registered(1)) => "https ",
                Some(_) => "http ",
                None => "",
            };
            let path = match r.path.as_ref().and_then(|p| p.replace.as_ref()) {
                Some(Replace::Full(path)) => format!(" path {path}"),
                Some(Replace::Prefix(path)) => format!(" prefix {path}"),
                None => String::new(),
            };
            format!("redirect {} {scheme}{}:{}{path}", r.status, r.host, r.port)
        }
    }
}

fn edits(of: &str, add: Option<&Headers>, set: Option<&Headers>, remove: &[String]) -> String {
    let list = |what: &str, headers: &Headers| {
        let value = |h: &http_types::headers::Header| {
            format!("{}={}", h.name, String::from_utf8_lossy(&h.value))
        };
        let all: Vec<_> = headers.headers.iter().map(value).collect();
        format!("{of} {what} {}", all.join(" "))
    };
    let remove = (!remove.is_empty()).then(|| format!("{of} remove {}", remove.join(" ")));
    let steps = [add.map(|h| list("add", h)), set.map(|h| list("set", h)), remove];
    let steps: Vec<_> = steps.into_iter().flatten().collect();
    assert_eq!(steps.len(), 1, "a filter does one thing, so that their order is ours");
    steps.join(" ")
}

fn distribution(rule: &http_route::Rule) -> String {
    match rule.backends.as_ref().unwrap().kind.as_ref().unwrap() {
        distribution::Kind::Empty(_) => "nobody".to_owned(),
        distribution::Kind::FirstAvailable(first) => panic!("{first:?}"),
        distribution::Kind::RandomAvailable(random) => {
            let one = random.backends.len() == 1;
            let each = random.backends.iter().map(|weighted| {
                let weight = if one { String::new() } else { format!("{} ", weighted.weight) };
                format!("{weight}{}", route_backend(weighted.backend.as_ref().unwrap()))
            });
            each.collect::<Vec<_>>().join(", ")
        }
    }
}

fn route_backend(route: &RouteBackend) -> String {
    let filters = route.filters.iter().map(filter).map(|filter| format!(" {filter}"));
    format!("{}{}", backend(route.backend.as_ref().unwrap()), filters.collect::<String>())
}

fn backend(backend: &Backend) -> String {
    let queue = backend.queue.unwrap();
    let to = match backend.kind.as_ref() {
        Some(backend::Kind::Balancer(balancer)) => path(balancer).to_owned(),
        Some(backend::Kind::Forward(endpoint)) => {
            format!("{} {}", address(endpoint), endpoint.metric_labels["endpoint"])
        }
        None => "nothing".to_owned(),
    };
    format!("{to} ({} wait {})", queue.capacity, time(queue.failfast_timeout))
}

fn path(balancer: &backend::BalanceP2c) -> &str {
    let discovery = balancer.discovery.as_ref().unwrap().kind.as_ref().unwrap();
    let backend::endpoint_discovery::Kind::Dst(get) = discovery;
    &get.path
}

fn address(endpoint: &WeightedAddr) -> std::net::SocketAddr {
    endpoint.addr.unwrap().try_into().unwrap()
}

fn backoff(backoff: Option<&ExponentialBackoff>) -> String {
    let backoff = backoff.unwrap();
    format!("{} to {}", time(backoff.min_backoff), time(backoff.max_backoff))
}

fn time(time: Option<prost_types::Duration>) -> String {
    match Duration::try_from(time.unwrap()).unwrap() {
        time if time.subsec_nanos() == 0 => format!("{}s", time.as_secs()),
        time => format!("{}ms", time.as_millis()),
    }
}

/// What makes a proxy refuse a policy, or panic, is not there.
pub(super) fn check(policy: &OutboundPolicy) {
    name(policy.metadata.as_ref());
    let (http, opaque) = match kind(policy) {
        proxy_protocol::Kind::Opaque(opaque) => (&[][..], &opaque.routes),
        proxy_protocol::Kind::Detect(detect) => {
            time(detect.timeout);
            if let Some(accrual) = detect.http1.as_ref().unwrap().failure_accrual {
                let failure_accrual::Kind::ConsecutiveFailures(c) = accrual.kind.unwrap() else {
                    panic!("{accrual:?}")
                };
                check_backoff(c.backoff.as_ref().unwrap());
            }
            (&*detect.http1.as_ref().unwrap().routes, &detect.opaque.as_ref().unwrap().routes)
        }
        other => panic!("{other:?}"),
    };
    assert!(opaque.len() <= 1);
    for route in opaque {
        assert_eq!(route.rules.len(), 1);
        name(route.metadata.as_ref());
        self::opaque(std::slice::from_ref(route));
    }
    for route in http {
        name(route.metadata.as_ref());
        assert!(!route.rules.is_empty());
        route.rules.iter().for_each(check_rule);
    }
}

fn check_rule(rule: &http_route::Rule) {
    self::rule(rule);
    for matches in &rule.matches {
        if let Some(path_match::Kind::Regex(text)) =
            matches.path.as_ref().and_then(|p| p.kind.as_ref())
        {
            Pattern::new(text).unwrap();
        }
        for header in &matches.headers {
            http::HeaderName::from_bytes(header.name.as_bytes()).unwrap();
            match header.value.as_ref().unwrap() {
                header_match::Value::Exact(value) => {
                    http::HeaderValue::from_bytes(value).unwrap();
                }
                header_match::Value::Regex(text) => drop(Pattern::new(text).unwrap()),
            }
        }
    }
    for filter in &rule.filters {
        match filter.kind.as_ref().unwrap() {
            filter::Kind::FailureInjector(fail) => {
                http::StatusCode::from_u16(u16::try_from(fail.status).unwrap()).unwrap();
                http::HeaderValue::from_str(&fail.message).unwrap();
            }
            filter::Kind::RequestHeaderModifier(m) => check_headers([&m.add, &m.set], &m.remove),
            filter::Kind::ResponseHeaderModifier(m) => check_headers([&m.add, &m.set], &m.remove),
            filter::Kind::Redirect(_) => assert!(!self::filter(filter).contains("path  ")),
        }
    }
    if let Some(retry) = &rule.retry {
        assert!(retry.max_retries <= u16::MAX.into());
        check_backoff(retry.backoff.as_ref().unwrap());
    }
    if let Some(distribution::Kind::RandomAvailable(random)) =
        rule.backends.as_ref().unwrap().kind.as_ref()
    {
        assert!(!random.backends.is_empty() && random.backends.iter().all(|b| b.weight > 0));
        for weighted in &random.backends {
            check_backend(weighted.backend.as_ref().unwrap().backend.as_ref().unwrap());
        }
    }
}

fn check_headers(edits: [&Option<Headers>; 2], remove: &[String]) {
    for header in edits.into_iter().flatten().flat_map(|h| &h.headers) {
        http::HeaderName::from_bytes(header.name.as_bytes()).unwrap();
        http::HeaderValue::from_bytes(&header.value).unwrap();
    }
    for name in remove {
        http::HeaderName::from_bytes(name.as_bytes()).unwrap();
    }
}

fn check_backend(backend: &Backend) {
    match backend.kind.as_ref() {
        Some(backend::Kind::Balancer(balancer)) => {
            let target: Target = path(balancer).parse().unwrap();
            assert!(matches!(target, Target::Name { .. }), "{target:?}");
            assert!(path(balancer).ends_with(&format!(":{}", target.port())));
        }
        Some(backend::Kind::Forward(endpoint)) => assert_ne!(address(endpoint).port(), 0),
        None => {}
    }
}

fn check_backoff(backoff: &ExponentialBackoff) {
    let time = |time: Option<prost_types::Duration>| Duration::try_from(time.unwrap()).unwrap();
    let (least, most) = (time(backoff.min_backoff), time(backoff.max_backoff));
    assert!(least <= most && !most.is_zero() && (0.0..=100.0).contains(&backoff.jitter_ratio));
}
