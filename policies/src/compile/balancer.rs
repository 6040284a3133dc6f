//! How an endpoint is picked.

use crate::{
    diagnostic::Rule,
    document::{
        Object,
        balancer::{BalancerKind, BalancerPolicySpec, TermsSpec},
        value::Factor,
    },
    model::{Balancer, OriginSource, Prediction, Protocol, Service, Terms},
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
    };
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
