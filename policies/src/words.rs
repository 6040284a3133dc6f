//! The domain types in a person's words, for `explain` and `diff`.

use std::{fmt::Write as _, time::Duration};

use ipnetwork::IpNetwork;

use crate::model::{
    Action, AdaptiveConcurrency, Balancer, Bandwidth, Bind, Class, Hashing, HealthCheck,
    HealthProbe, Hedge, HedgeAfter, HttpOptions, KeySource, Locality, Location, NodeSelector, Only,
    OriginSource, Outlier, PathMatch, PathRewrite, Prediction, Protocol, ProxyProtocol,
    ProxyVersion, Queue, Rate, RateLimits, Recovery, Region, RetryCondition, RouteMatch,
    ScopedListener, Service, Speaks, Stall, StreamAge, TenantKey, Thresholds, ValueMatch, Weighing,
    WeightedBackend, Weights,
};

/// `1h30m`, `250ms`, as policy files write it.
pub(crate) fn time(time: Duration) -> String {
    let mut rest = time.as_millis();
    if rest == 0 {
        return if time.is_zero() { "0s".to_owned() } else { format!("{}µs", time.as_micros()) };
    }
    let mut text = String::new();
    for (unit, millis) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if rest >= millis {
            text += &format!("{}{unit}", rest / millis);
            rest %= millis;
        }
    }
    text
}

pub(crate) fn limit(limit: Option<Duration>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), time)
}

/// `64KiB`, or the plain number where no unit fits.
pub(crate) fn bytes(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

/// `POST /ingest/* [x-class: bulk] ?v=2`.
pub(crate) fn matches(matches: &RouteMatch) -> String {
    let mut text = String::new();
    if matches.grpc {
        text += "gRPC ";
    }
    if let Some(method) = &matches.method {
        text += &format!("{method} ");
    }
    text += &match &matches.path {
        PathMatch::Exact(path) => format!("= {path}"),
        PathMatch::Prefix(path) if path == "/" => "/*".to_owned(),
        PathMatch::Prefix(path) => format!("{path}[/*]"),
        PathMatch::Regex(pattern) => format!("~ {}", pattern.as_str()),
    };
    for (name, value) in &matches.headers {
        text += &match value {
            ValueMatch::Exact(value) => format!(" [{name}: {value}]"),
            ValueMatch::Regex(pattern) => format!(" [{name} ~ {}]", pattern.as_str()),
            ValueMatch::Present => format!(" [{name}]"),
        };
    }
    for (name, value) in &matches.query {
        text += &match value {
            ValueMatch::Exact(value) => format!(" ?{name}={value}"),
            ValueMatch::Regex(pattern) => format!(" ?{name}~{}", pattern.as_str()),
            ValueMatch::Present => format!(" ?{name}"),
        };
    }
    text
}

/// What a route does, in one line.
pub(crate) fn action(action: &Action) -> String {
    match action {
        Action::Respond(response) => format!("answer {}", response.status),
        Action::Redirect(redirect) => {
            let mut text = format!("redirect {} to ", redirect.status);
            if let Some(scheme) = &redirect.scheme {
                text += &format!("{scheme}://");
            }
            text += redirect.host.as_deref().unwrap_or("(same host)");
            if let Some(port) = redirect.port {
                text += &format!(":{port}");
            }
            if let Some(path) = &redirect.path {
                text += &format!(", {}", rewrite(path));
            }
            text
        }
        Action::Forward(forward) => backends(&forward.backends),
    }
}

pub(crate) fn rewrite(path: &PathRewrite) -> String {
    match path {
        PathRewrite::Full(path) => format!("the path becomes {path}"),
        PathRewrite::Prefix(path) => format!("the path's prefix becomes {path}"),
    }
}

/// `etl 90 %, etl-canary 10 %`; a single one without its share.
pub(crate) fn backends(backends: &[WeightedBackend]) -> String {
    let sum: u64 = backends.iter().map(|b| u64::from(b.weight)).sum();
    if let [one] = backends {
        return one.service.clone();
    }
    let share = |b: &WeightedBackend| {
        let tenths = (u64::from(b.weight) * 1000).checked_div(sum).unwrap_or(0);
        format!("{} {} %", b.service, decimal(tenths))
    };
    backends.iter().map(share).collect::<Vec<_>>().join(", ")
}

/// Tenths as a decimal without a needless zero.
fn decimal(tenths: u64) -> String {
    if tenths.is_multiple_of(10) {
        (tenths / 10).to_string()
    } else {
        format!("{}.{}", tenths / 10, tenths % 10)
    }
}

/// Parts per million as per cent.
pub(crate) fn percent(parts_per_million: u32) -> String {
    let text = format!("{}.{:04}", parts_per_million / 10_000, parts_per_million % 10_000);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} %")
}

pub(crate) fn conditions(on: &[RetryCondition]) -> String {
    let codes = |codes: &[String]| codes.join(" ");
    let word = |condition: &RetryCondition| match condition {
        RetryCondition::ConnectFailure => "connect-failure".to_owned(),
        RetryCondition::RefusedStream => "refused-stream".to_owned(),
        RetryCondition::Reset => "reset".to_owned(),
        RetryCondition::Timeout => "timeout".to_owned(),
        RetryCondition::Stall => "stall".to_owned(),
        RetryCondition::Status(status) => {
            let status: Vec<_> = status.iter().map(u16::to_string).collect();
            format!("status {}", codes(&status))
        }
        RetryCondition::GrpcStatus(status) => {
            let status: Vec<_> = status.iter().map(u32::to_string).collect();
            format!("grpc-status {}", codes(&status))
        }
    };
    if on.is_empty() {
        return "nothing".to_owned();
    }
    on.iter().map(word).collect::<Vec<_>>().join(", ")
}

pub(crate) fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "HTTP/1.1",
        Protocol::Http2 => "HTTP/2",
        Protocol::Follow => "HTTP, the client's version",
        Protocol::Tcp => "TCP",
    }
}

pub(crate) fn balancer(service: &Service) -> String {
    let mut text = policy(service);
    if let Some(every) = service.out_of_band.filter(|_| service.balancer.reads_reports()) {
        let _ = write!(text, ", reports out of band every {}", time(every));
    }
    if service.weights == Weights::FromLoad {
        text += ", weights as load reports tell the control plane";
    }
    if service.by_locality {
        text += ", in a locality drawn by weight";
    }
    text
}

fn policy(service: &Service) -> String {
    let hashing = &service.hashing;
    match service.balancer {
        Balancer::BytesInFlight => "fewest bytes in flight".to_owned(),
        Balancer::CompletionTime => completion_time(&service.prediction),
        Balancer::LeastRequest => "fewest requests in flight".to_owned(),
        Balancer::RoundRobin => "in turn".to_owned(),
        Balancer::WeightedRoundRobin => by_reports(&service.weighing),
        Balancer::Random => "at random".to_owned(),
        Balancer::Maglev => format!("by {} (Maglev){}", key(hashing), load_bound(hashing)),
        Balancer::RingHash => format!("by {} (ring){}", key(hashing), load_bound(hashing)),
    }
}

fn by_reports(weighing: &Weighing) -> String {
    let utilization = match weighing.metrics.as_slice() {
        [] => "utilization".to_owned(),
        metrics => format!("the largest of {}", metrics.join(", ")),
    };
    let mut text = format!("in turn, by reported requests per second by {utilization}");
    let default = Weighing::default();
    for (what, own, usual) in [
        ("blackout", weighing.blackout, default.blackout),
        ("expiration", weighing.expiration, default.expiration),
        ("update period", weighing.update_period, default.update_period),
    ] {
        if own != usual {
            let _ = write!(text, ", {what} {}", time(own));
        }
    }
    if weighing.error_penalty != default.error_penalty {
        let _ = write!(text, ", errors × {}", weighing.error_penalty);
    }
    text
}

fn key(hashing: &Hashing) -> String {
    match &hashing.key {
        Some(KeySource::Header(name)) => format!("header `{name}`"),
        Some(KeySource::PathSegment(nth)) => format!("segment {nth} of the path"),
        Some(KeySource::Query(name)) => format!("query parameter `{name}`"),
        Some(KeySource::ClientAddress) => "client address".to_owned(),
        None => "a key that no request tells".to_owned(),
    }
}

fn load_bound(hashing: &Hashing) -> String {
    match hashing.load_bound_percent {
        Some(percent) => format!(", at most {percent} % of the mean requests in flight"),
        None => ", however many requests that makes".to_owned(),
    }
}

fn completion_time(prediction: &Prediction) -> String {
    let mut text = "least predicted time to completion".to_owned();
    for (nth, source) in prediction.origin.iter().enumerate() {
        text += if nth == 0 { ", data from where " } else { ", else where " };
        let _ = match source {
            OriginSource::Header(name) => write!(text, "`{name}` says"),
            OriginSource::Registered(registered) => {
                let (header, count) = (&registered.header, registered.places.len());
                write!(text, "what `{header}` names is registered ({count})")
            }
            OriginSource::ClientAddress => write!(text, "the client's address is"),
        };
    }
    for (name, factor) in prediction.terms.named() {
        if factor == 0.0 {
            let _ = write!(text, ", without {name}");
        } else if factor != 1.0 {
            let _ = write!(text, ", {name} × {factor}");
        }
    }
    for (what, seconds) in [("gram", prediction.terms.carbon), ("cent", prediction.terms.price)] {
        if seconds > 0.0 {
            let _ = write!(text, ", {seconds} s for a {what}");
        }
    }
    text
}

/// To be added to what stands there; empty where nothing is known.
pub(crate) fn location(location: &Location) -> String {
    let mut text = String::new();
    if let Some(place) = &location.place {
        let _ = write!(text, ", in {place}");
    }
    match location.coordinates {
        Some(at) => {
            let _ = write!(text, " ({}, {})", at.latitude, at.longitude);
        }
        None if location.place.is_some() => text += " (coordinates not known here)",
        None => {}
    }
    text
}

pub(crate) fn region(region: &Region) -> String {
    let mut parts = Vec::new();
    parts.extend(region.carbon_intensity.map(|grams| format!("{grams} g/kWh")));
    let zone = region.electricity_maps_zone.as_ref();
    parts.extend(zone.map(|zone| format!("zone {zone} at Electricity Maps")));
    for (to, cents) in &region.egress {
        let to = if to == Region::ANY { "elsewhere" } else { to };
        parts.push(format!("{cents} cents a gigabyte to {to}"));
    }
    if !region.location.is_unsaid() {
        let radius = region.radius_kilometers.unwrap_or(Region::USUAL_KILOMETERS);
        let within = location(&region.location);
        parts.push(format!(
            "within {radius} km of {}",
            within.trim_start_matches(", in ").trim_start()
        ));
    }
    if parts.is_empty() { "nothing is known".to_owned() } else { parts.join(", ") }
}

pub(crate) fn thresholds(limits: &Thresholds) -> String {
    let mut parts = Vec::new();
    for (what, limit) in [
        ("connections", limits.max_connections),
        ("requests", limits.max_requests),
        ("waiting", limits.max_pending),
    ] {
        if let Some(limit) = limit {
            parts.push(format!("{limit} {what}"));
        }
    }
    if let Some(limit) = limits.max_bytes_in_flight {
        parts.push(format!("{} in flight", bytes(limit)));
    }
    if parts.is_empty() { "unlimited".to_owned() } else { parts.join(", ") }
}

pub(crate) fn health_check(check: Option<&HealthCheck>) -> String {
    let Some(check) = check else { return "none".to_owned() };
    let probe = match &check.probe {
        HealthProbe::Http { path, host: None } => format!("GET {path}"),
        HealthProbe::Http { path, host: Some(host) } => format!("GET {host}{path}"),
        HealthProbe::Grpc { service } if service.is_empty() => "gRPC".to_owned(),
        HealthProbe::Grpc { service } => format!("gRPC {service}"),
        HealthProbe::Tcp => "TCP".to_owned(),
    };
    format!(
        "{probe} every {}, {} to answer, {} failures to go, {} to come back",
        time(check.interval),
        time(check.timeout),
        check.unhealthy_threshold,
        check.healthy_threshold
    )
}

pub(crate) fn outlier(outlier: Option<&Outlier>) -> String {
    let Some(outlier) = outlier else { return "off".to_owned() };
    let mut text = format!("after {} failures in a row", outlier.consecutive_failures);
    if let Some(rate) = &outlier.success_rate {
        text += &format!(
            "; {} points below the peers' success rate over {} requests in {}",
            rate.margin_percent,
            rate.min_requests,
            time(outlier.interval)
        );
    }
    if let Some(latency) = &outlier.latency {
        text += &format!(
            "; at {} % of the peers' time to the head and {} over it, over {} requests in {}",
            latency.above_percent,
            time(latency.margin),
            latency.min_requests,
            time(outlier.interval)
        );
    }
    if let Some(goodput) = &outlier.goodput {
        text += &format!(
            "; below {} % of the peers' goodput over {} and {}",
            goodput.below_percent,
            bytes(goodput.min_bytes),
            time(goodput.window)
        );
    }
    if outlier.success_rate.is_some() || outlier.latency.is_some() || outlier.goodput.is_some() {
        text += &format!("; among {} endpoints or more", outlier.min_endpoints);
    }
    text + &format!(
        "; for {} up to {}, at most {} % at once",
        time(outlier.base_ejection),
        time(outlier.max_ejection),
        outlier.max_ejected_percent
    )
}

pub(crate) fn recovery(recovery: &Recovery) -> String {
    let mut text = if recovery.slow_start.is_zero() {
        "full weight at once".to_owned()
    } else {
        let floor = recovery.slow_start_floor_percent;
        format!("from {floor} % of the weight to all of it in {}", time(recovery.slow_start))
    };
    text += &match recovery.panic_percent {
        0 => ", ejections and probes always heeded".to_owned(),
        percent => format!(", ejections and probes ignored below {percent} % usable"),
    };
    text
}

pub(crate) fn queue(queue: Option<&Queue>) -> String {
    let Some(queue) = queue else { return "none".to_owned() };
    format!(
        "{} at a time at each endpoint, shared {}; at most {} wait, {}, {}",
        queue.slots,
        shares(&queue.weights),
        queue.max_requests,
        bytes(queue.max_bytes),
        time(queue.max_wait)
    )
}

pub(crate) fn stream_age(age: Option<StreamAge>) -> String {
    let Some(age) = age else { return "off".to_owned() };
    format!(
        "{}, {} % longer or shorter; then downloads move to where there is less to do, and connections take nothing new",
        time(age.max),
        age.jitter_percent
    )
}

pub(crate) fn adaptive_concurrency(terms: Option<AdaptiveConcurrency>) -> String {
    let Some(terms) = terms else { return "off".to_owned() };
    format!(
        "{} to {} requests may wait for their heads at an endpoint, as long as those come within {} % of their time without queueing",
        terms.min_requests, terms.max_requests, terms.tolerance_percent
    )
}

pub(crate) fn tenant(tenant: Option<&TenantKey>) -> String {
    match tenant {
        None => "all are one".to_owned(),
        Some(TenantKey::Header(name)) => format!("by the header {name}"),
        Some(TenantKey::ClientAddress) => "by the client's address".to_owned(),
    }
}

pub(crate) fn stall(stall: Option<&Stall>) -> String {
    stall.map_or_else(
        || "none".to_owned(),
        |stall| format!("below {} a second for {}", bytes(stall.below_bytes), time(stall.time)),
    )
}

pub(crate) fn hedge(hedge: Option<&Hedge>) -> String {
    let Some(hedge) = hedge else { return "none".to_owned() };
    let most = bytes(hedge.max_bytes);
    match hedge.after {
        HedgeAfter::Percentile(percent) => {
            let samples = hedge.min_samples;
            format!("after p{percent} of {samples} heads or more, answers up to {most}")
        }
        HedgeAfter::Time(after) => format!("after {}, answers up to {most}", time(after)),
    }
}

pub(crate) fn rate_limits(limits: &RateLimits) -> String {
    let mut parts = Vec::new();
    for (whose, limit) in [("", &limits.route), (" for each tenant", &limits.tenant)] {
        if let Some(rate) = limit.requests {
            let Rate { per_second, burst } = rate;
            parts.push(format!("{per_second} requests a second{whose}, {burst} at once"));
        }
        if let Some(rate) = limit.bytes {
            let (pace, burst) = (bytes(rate.per_second), bytes(rate.burst));
            parts.push(format!("{pace} a second{whose}, {burst} at once"));
        }
    }
    if parts.is_empty() { "unlimited".to_owned() } else { parts.join("; ") }
}

pub(crate) fn bandwidth(bandwidth: Option<&Bandwidth>) -> String {
    let Some(Bandwidth { bytes_per_second, weights }) = bandwidth else {
        return "unlimited".to_owned();
    };
    format!("{} a second, shared {}", bytes(*bytes_per_second), shares(weights))
}

fn shares(weights: &crate::model::ClassWeights) -> String {
    Class::ALL.map(|class| format!("{} {}", class.name(), weights.of(class))).join(", ")
}

pub(crate) fn locality(locality: &Locality) -> String {
    let parts = [&locality.region, &locality.zone, &locality.sub_zone];
    parts.into_iter().filter(|p| !p.is_empty()).cloned().collect::<Vec<_>>().join("/")
}

pub(crate) fn proxy_protocol(terms: &ProxyProtocol) -> String {
    let trusted: Vec<_> = terms.trusted.iter().map(ToString::to_string).collect();
    let must = if terms.required { "must" } else { "may" };
    format!("connections from {} {must} begin with a PROXY protocol header", trusted.join(", "))
}

pub(crate) fn proxy_version(service: &Service) -> String {
    let version = match service.proxy_protocol {
        None => return "none".to_owned(),
        Some(ProxyVersion::V1) => "v1",
        Some(ProxyVersion::V2) => "v2",
    };
    let who = if service.protocol == Protocol::Tcp {
        "the client"
    } else {
        "nobody, as clients share connections"
    };
    format!("{version}, for {who}")
}

/// What differs from the defaults.
pub(crate) fn http_limits(options: &HttpOptions) -> String {
    let usual = HttpOptions::default();
    let mut parts = Vec::new();
    if options.max_head_bytes != usual.max_head_bytes {
        parts.push(format!("heads up to {}", bytes(options.max_head_bytes.into())));
    }
    if options.max_headers != usual.max_headers {
        parts.push(format!("up to {} header fields", options.max_headers));
    }
    if options.head_timeout != usual.head_timeout {
        parts.push(format!("heads within {}", time(options.head_timeout)));
    }
    if options.idle_timeout != usual.idle_timeout {
        parts.push(format!("idle connections kept for {}", time(options.idle_timeout)));
    }
    if options.max_concurrent_streams != usual.max_concurrent_streams {
        parts.push(format!("{} streams of a connection", options.max_concurrent_streams));
    }
    if !options.http10 {
        parts.push("no HTTP/1.0".to_owned());
    }
    parts.join(", ")
}

pub(crate) fn nodes(scoped: &ScopedListener) -> String {
    match &scoped.nodes {
        NodeSelector::Unclaimed if scoped.is_redirected() => {
            "every proxy that nothing else names".to_owned()
        }
        NodeSelector::Unclaimed => "every proxy that nothing else names, sidecars apart".to_owned(),
        NodeSelector::Any => "every client".to_owned(),
        NodeSelector::Matching(patterns) => patterns.join(", "),
    }
}

/// Which connections a chain takes; empty for all of them.
pub(crate) fn only(only: &Only) -> String {
    let mut parts = Vec::new();
    parts.extend(only.speaks.map(|speaks| match speaks {
        Speaks::Http => "HTTP".to_owned(),
        Speaks::Tls => "TLS".to_owned(),
    }));
    // A whole address is written without its length.
    let written = |network: &IpNetwork| match network.prefix() {
        32 if network.is_ipv4() => network.ip().to_string(),
        128 => network.ip().to_string(),
        _ => network.to_string(),
    };
    let networks: Vec<_> = only.networks.iter().map(written).collect();
    if !networks.is_empty() {
        parts.push(format!("to {}", networks.join(", ")));
    }
    parts.extend(only.port.map(|port| format!("at port {port}")));
    if parts.is_empty() { String::new() } else { parts.join(" ") + ": " }
}

pub(crate) fn bind(bind: &Bind) -> String {
    match bind {
        Bind::Socket(address) => address.to_string(),
        Bind::Redirected(redirected) => {
            let how = if redirected.transparent { "by TPROXY" } else { "redirected" };
            let mut text = format!("{}, for connections that come {how}", redirected.address);
            if !redirected.opaque_ports.is_empty() {
                let ports: Vec<_> = redirected.opaque_ports.iter().map(u16::to_string).collect();
                text += &format!("; to ports {} nothing is read first", ports.join(", "));
            }
            text
        }
        Bind::Api => "xds:///".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{bytes, percent, time};

    #[test]
    fn values_read_as_they_are_written() {
        for (millis, expected) in
            [(0, "0s"), (25, "25ms"), (90_000, "1m30s"), (3_600_000, "1h"), (1_001, "1s1ms")]
        {
            assert_eq!(time(Duration::from_millis(millis)), expected);
        }
        for (size, expected) in [(65_536, "64KiB"), (4 << 30, "4GiB"), (1000, "1000 bytes")] {
            assert_eq!(bytes(size), expected);
        }
        for (parts, expected) in [(1_000_000, "100 %"), (5000, "0.5 %"), (1, "0.0001 %")] {
            assert_eq!(percent(parts), expected);
        }
    }
}
