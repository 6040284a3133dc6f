//! How an endpoint is picked.

use crate::{
    diagnostic::Rule,
    document::{
        Object,
        balancer::{BalancerKind, BalancerPolicySpec, KeySpec, TermsSpec},
        value::Factor,
    },
    model::{Balancer, Hashing, KeySource, OriginSource, Prediction, Protocol, Service, Terms},
    problem::{At, Problems},
};

pub(super) fn compile(
    policy: Option<&Object<BalancerPolicySpec>>,
    service: &mut Service,
    problems: &mut Problems,
) {
    let Some(spec) = policy.map(|policy| &policy.spec) else { return };
    service.balancer = match spec.policy.value {
        BalancerKind::CompletionTime => Balancer::CompletionTime,
        BalancerKind::BytesInFlight => Balancer::BytesInFlight,
        BalancerKind::LeastRequest => Balancer::LeastRequest,
        BalancerKind::RoundRobin => Balancer::RoundRobin,
        BalancerKind::Random => Balancer::Random,
        BalancerKind::Maglev => Balancer::Maglev,
        BalancerKind::RingHash => Balancer::RingHash,
    };
    predict(spec, service, problems);
    hash(spec, service, problems);
}

fn predict(spec: &BalancerPolicySpec, service: &mut Service, problems: &mut Problems) {
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
    if let Some(origin) = origin.filter(|_| service.protocol == Protocol::Tcp) {
        problems.error(Rule::NoEffect, origin.span, "opaque connections have no headers");
    }
    service.prediction = Prediction {
        origin: origin.map(|o| OriginSource::Header(o.header.to_ascii_lowercase())),
        terms: written.map_or(Terms::default(), terms),
    };
}

fn terms(written: &TermsSpec) -> Terms {
    let factor = |written: &Option<At<Factor>>| written.as_ref().map_or(1.0, |factor| factor.0);
    Terms {
        network: factor(&written.network),
        transfer: factor(&written.transfer),
        queue: factor(&written.queue),
        health: factor(&written.health),
        failures: factor(&written.failures),
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
