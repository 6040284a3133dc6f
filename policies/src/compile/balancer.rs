//! How an endpoint is picked.

use std::time::Duration;

use crate::{
    diagnostic::Rule,
    document::{
        Object,
        balancer::{
            BalancerKind, BalancerPolicySpec, KeySpec, OriginSpec, RegisteredPlace, RegisteredSpec,
            TermsSpec, WeighingSpec, WeightsKind,
        },
        own::{EndpointSpec, ServiceSpec},
        read::invalid,
        value::{Decimal, Factor},
    },
    model::{
        Balancer, Hashing, KeySource, Location, OriginSource, Prediction, Protocol, Registered,
        Service, Terms, Weighing, Weights,
    },
    problem::{At, Problems, Span},
};

use super::place::Places;

pub(super) fn compile(
    policy: Option<&Object<BalancerPolicySpec>>,
    service: &mut Service,
    places: &mut Places,
    problems: &mut Problems,
) {
    let Some(spec) = policy.map(|policy| &policy.spec) else { return };
    service.balancer = match spec.policy.value {
        BalancerKind::CompletionTime => Balancer::CompletionTime,
        BalancerKind::BytesInFlight => Balancer::BytesInFlight,
        BalancerKind::LeastRequest => Balancer::LeastRequest,
        BalancerKind::RoundRobin => Balancer::RoundRobin,
        BalancerKind::WeightedRoundRobin => Balancer::WeightedRoundRobin,
        BalancerKind::Random => Balancer::Random,
        BalancerKind::Maglev => Balancer::Maglev,
        BalancerKind::RingHash => Balancer::RingHash,
    };
    predict(spec, service, places, problems);
    hash(spec, service, problems);
    weigh(spec, service, problems);
    ask(spec, service, problems);
    follow_load(spec, service, problems);
    service.by_locality = spec.localities.is_some();
}

fn follow_load(spec: &BalancerPolicySpec, service: &mut Service, problems: &mut Problems) {
    let Some(written) = &spec.weights else { return };
    if matches!(written.value, WeightsKind::Declared) {
        return;
    }
    if service.balancer.hashes() {
        problems
            .error(Rule::NoEffect, written.span, "keys would move with every report of load")
            .related(spec.policy.span, "this policy keeps keys where they are")
            .help("leave it out, or take a policy without keys");
    } else if service.protocol == Protocol::Tcp {
        problems.error(Rule::NoEffect, written.span, "opaque connections carry no reports of load");
    } else {
        service.weights = Weights::FromLoad;
    }
}

fn predict(
    spec: &BalancerPolicySpec,
    service: &mut Service,
    places: &mut Places,
    problems: &mut Problems,
) {
    if let Some(joules) = &spec.joules_per_gigabyte {
        service.prediction.joules_per_gigabyte = joules.0;
    }
    let (origin, written) = (spec.origin.as_ref(), spec.terms.as_ref());
    if service.balancer != Balancer::CompletionTime {
        let spans = [origin.map(|o| o.span), written.map(|t| t.span)];
        for span in spans.into_iter().flatten() {
            problems
                .error(Rule::NoEffect, span, "only predicted completion times look at this")
                .related(spec.policy.span, "this policy does not predict any");
        }
        return;
    }
    let sources = origin.map_or(&[][..], |origin| origin.value.0.as_slice());
    let mut by_client: Option<Span> = None;
    for source in sources {
        if source.client_address.is_none() {
            if service.protocol == Protocol::Tcp {
                problems
                    .error(Rule::NoEffect, source.span, "opaque connections have no headers")
                    .help("their origin can be `clientAddress: {}`");
            }
        } else if let Some(first) = by_client.replace(source.span) {
            problems
                .error(Rule::Duplicate, source.span, "the client's address is asked for already")
                .related(first, "first here");
        }
    }
    service.prediction = Prediction {
        origin: sources.iter().filter_map(|s| origin_source(s, places, problems)).collect(),
        terms: written.map_or(Terms::default(), terms),
        joules_per_gigabyte: service.prediction.joules_per_gigabyte,
    };
}

/// Exactly one of them is given.
fn origin_source(
    written: &OriginSpec,
    places: &mut Places,
    problems: &mut Problems,
) -> Option<OriginSource> {
    let header = written.header.as_ref();
    let header = header.map(|name| OriginSource::Header(name.to_ascii_lowercase()));
    let registered = written.registered.as_ref();
    let registered =
        registered.map(|r| OriginSource::Registered(self::registered(r, places, problems)));
    let client = written.client_address.as_ref().map(|_| OriginSource::ClientAddress);
    header.or(registered).or(client)
}

fn registered(
    written: &RegisteredSpec,
    places: &mut Places,
    problems: &mut Problems,
) -> Registered {
    let mut located = |place: &RegisteredPlace| match place {
        RegisteredPlace::Point(point) => Location::at(point.coordinates()),
        RegisteredPlace::Named(name) => {
            places.named(name, "it is as if nothing were registered", problems)
        }
    };
    let places = &written.places.0;
    Registered {
        header: written.header.to_ascii_lowercase(),
        places: places.iter().map(|(name, place)| (name.value.clone(), located(place))).collect(),
    }
}

fn terms(written: &TermsSpec) -> Terms {
    let factor = |written: &Option<At<Factor>>| written.as_ref().map_or(1.0, |factor| factor.0);
    let seconds =
        |written: &Option<At<Decimal<1_000_000>>>| written.as_ref().map_or(0.0, |rate| rate.0);
    Terms {
        network: factor(&written.network),
        transfer: factor(&written.transfer),
        queue: factor(&written.queue),
        health: factor(&written.health),
        failures: factor(&written.failures),
        carbon: seconds(&written.carbon),
        price: seconds(&written.price),
    }
}

fn hash(spec: &BalancerPolicySpec, service: &mut Service, problems: &mut Problems) {
    let (key, bound) = (spec.key.as_ref(), spec.load_bound_percent.as_ref());
    if !service.balancer.hashes() {
        let spans = [key.map(|k| k.span), bound.map(|b| b.span)];
        for span in spans.into_iter().flatten() {
            problems
                .error(Rule::NoEffect, span, "only Maglev and RingHash look at this")
                .related(spec.policy.span, "this policy knows no keys");
        }
        return;
    }
    let Some(key) = key else {
        problems
            .error(Rule::MissingField, spec.policy.span, "this policy needs a `key`")
            .help("e.g. `key: {header: X-Partition}`");
        return;
    };
    if service.protocol == Protocol::Tcp && key.client_address.is_none() {
        problems
            .error(Rule::NoEffect, key.span, "opaque connections have no requests")
            .help("their key can be `clientAddress: {}`");
    }
    service.hashing = Hashing {
        key: key_source(key),
        load_bound_percent: bound.map_or(Some(Hashing::DEFAULT_BOUND_PERCENT), |bound| bound.0),
        ..Hashing::default()
    };
}

/// Exactly one of them is given.
fn key_source(key: &KeySpec) -> Option<KeySource> {
    let header = key.header.as_ref().map(|name| KeySource::Header(name.to_ascii_lowercase()));
    let segment = key.path_segment.as_ref().map(|nth| KeySource::PathSegment(nth.0));
    let query = key.query.as_ref().map(|name| KeySource::Query(name.0.clone()));
    let client = key.client_address.as_ref().map(|_| KeySource::ClientAddress);
    header.or(segment).or(query).or(client)
}

fn weigh(spec: &BalancerPolicySpec, service: &mut Service, problems: &mut Problems) {
    let written = spec.weighing.as_ref();
    if service.balancer != Balancer::WeightedRoundRobin {
        if let Some(weighing) = written {
            problems
                .error(Rule::NoEffect, weighing.span, "only WeightedRoundRobin looks at this")
                .related(spec.policy.span, "this policy takes weights as they are configured");
        }
        return;
    }
    if service.protocol == Protocol::Tcp {
        problems
            .error(Rule::Conflict, spec.policy.span, "opaque connections carry no load reports")
            .help("RoundRobin, or give the service a protocol that is HTTP");
    }
    if let Some(weighing) = written {
        service.weighing = weighing_of(weighing, problems);
    }
}

fn weighing_of(spec: &WeighingSpec, problems: &mut Problems) -> Weighing {
    let default = Weighing::default();
    let metrics = spec.metrics.as_ref();
    if let Some(many) = metrics.filter(|metrics| metrics.len() > Weighing::MOST_METRICS) {
        let message = format!("{} metrics are looked for in each report", many.len());
        invalid(many.span, message, "at most 16", problems);
    }
    let shortest = Weighing::SHORTEST_UPDATE;
    if let Some(period) = spec.update_period.as_ref().filter(|period| period.0 < shortest) {
        invalid(period.span, "weights are not reckoned that often", "at least 100ms", problems);
    }
    #[expect(clippy::cast_possible_truncation, reason = "from 0 to 100")]
    let penalty = |factor: f64| factor as f32;
    Weighing {
        metrics: metrics.into_iter().flat_map(|all| all.iter().map(ToString::to_string)).collect(),
        blackout: spec.blackout.as_ref().map_or(default.blackout, |time| time.0),
        expiration: spec.expiration.as_ref().map_or(default.expiration, |time| time.0),
        update_period: spec.update_period.as_ref().map_or(default.update_period, |time| time.0),
        error_penalty: spec.error_penalty.as_ref().map_or(default.error_penalty, |f| penalty(f.0)),
    }
}

fn ask(spec: &BalancerPolicySpec, service: &mut Service, problems: &mut Problems) {
    let Some(reports) = &spec.load_reports else { return };
    if !service.balancer.reads_reports() {
        problems
            .error(
                Rule::NoEffect,
                reports.span,
                "only WeightedRoundRobin and CompletionTime look at this",
            )
            .related(spec.policy.span, "this policy goes by no reports");
        return;
    }
    let every = &reports.out_of_band;
    if !(LEAST_INTERVAL..=*Service::REPORT_INTERVALS.end()).contains(&every.0) {
        invalid(every.span, "endpoints do not report that often or seldom", "1s to 1h", problems);
    }
    let holds = match service.balancer {
        Balancer::CompletionTime => PREDICTION_HOLDS,
        _ => service.weighing.expiration.saturating_sub(Duration::from_millis(1)),
    };
    if every.0 > holds {
        let message = "a report is forgotten before the next one comes";
        problems
            .error(Rule::InvalidValue, every.span, message)
            .help("CompletionTime: up to 10s; WeightedRoundRobin: less than `expiration`");
    }
    // A sidecar speaks HTTP/2 whatever its application does.
    if service.protocol == Protocol::Tcp {
        problems
            .error(Rule::Conflict, reports.span, "endpoints of opaque connections do not report")
            .help("remove it, or give the service a protocol that is HTTP");
    }
    service.out_of_band = Some(every.0);
}

/// Reports out of band are asked for over HTTP/2, whatever requests speak.
pub(super) fn check_streams(
    policy: Option<&Object<BalancerPolicySpec>>,
    written: &ServiceSpec,
    service: &Service,
    problems: &mut Problems,
) {
    let Some(reports) = policy.and_then(|policy| policy.spec.load_reports.as_ref()) else { return };
    if service.protocol != Protocol::Http1 || service.out_of_band.is_none() {
        return;
    }
    let without = |endpoint: &&EndpointSpec| endpoint.sidecar.is_none();
    let lacking = written.endpoints.iter().flat_map(|all| all.iter()).find(without);
    let (span, label) = match (lacking, &written.dns) {
        (Some(endpoint), _) => (endpoint.address.span, "this endpoint has no sidecar"),
        (None, Some(dns)) => (dns.span, "these have no sidecar"),
        (None, None) => return,
    };
    problems
        .warning(
            Rule::NoEffect,
            reports.span,
            "an endpoint of HTTP/1.1 is asked out of band over HTTP/2",
        )
        .related(span, label)
        .help("give it a `sidecar`, which answers, or leave it to requests to ask: remove this");
}

/// The proxy forgets what it was told of an endpoint's health from then on.
const PREDICTION_HOLDS: Duration = Duration::from_secs(10);
/// The machine is looked at no more often.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);
