//! The limit of each endpoint that adapts.

use crate::{
    diagnostic::Rule,
    document::{
        own::{AdaptiveConcurrencySpec, BreakerPolicySpec},
        read::invalid,
    },
    model::{AdaptiveConcurrency, Protocol, Service},
    problem::Problems,
};

pub(super) fn compile(
    spec: &AdaptiveConcurrencySpec,
    policy: Option<&BreakerPolicySpec>,
    service: &Service,
    problems: &mut Problems,
) -> AdaptiveConcurrency {
    let default = AdaptiveConcurrency::default();
    let terms = AdaptiveConcurrency {
        min_requests: spec.min_requests.as_ref().map_or(default.min_requests, |n| ***n),
        max_requests: spec.max_requests.as_ref().map_or(default.max_requests, |n| ***n),
        tolerance_percent: spec
            .tolerance_percent
            .as_ref()
            .map_or(default.tolerance_percent, |p| ***p),
    };
    if terms.min_requests > terms.max_requests {
        let written = spec.min_requests.as_ref().or(spec.max_requests.as_ref());
        let span = written.map_or(spec.span, |n| n.span);
        let message = format!(
            "the limit is to stay above {} and below {}",
            terms.min_requests, terms.max_requests
        );
        invalid(span, message, "`minRequests` up to `maxRequests`", problems);
    }
    if service.protocol == Protocol::Tcp {
        problems
            .error(Rule::Conflict, spec.span, "opaque connections have no response head to time")
            .help("remove it, or give the service a protocol that is HTTP");
    }
    if let Some(queue) = policy.and_then(|p| p.queue.as_ref()) {
        problems
            .error(
                Rule::Conflict,
                spec.span,
                "the slots of the queue are the endpoints' limit already",
            )
            .related(queue.span, "the queue")
            .help("remove one of them");
    }
    let fixed = policy.and_then(|p| p.endpoint.as_ref()?.max_requests.as_ref());
    if let Some(fixed) = fixed.filter(|fixed| ****fixed <= terms.min_requests) {
        problems
            .warning(
                Rule::NoEffect,
                spec.span,
                "no endpoint is ever given more requests than this always allows",
            )
            .related(fixed.span, "the limit that is always there");
    }
    terms
}
