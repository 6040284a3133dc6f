//! The queue of a `BreakerPolicy`: what it says, and whether that can have an effect.

use std::collections::BTreeSet;

use crate::{
    diagnostic::Rule,
    document::{
        own::{EndpointSpec, QueueSpec, WeightsSpec},
        read::invalid,
    },
    model::{Action, Class, ClassWeights, Forward, Mesh, Protocol, Queue, Service},
    problem::Problems,
    words,
};

use super::{policies::Policies, services::time};

pub(super) fn compile(spec: &QueueSpec, service: &Service, problems: &mut Problems) -> Queue {
    let default = Queue::default();
    if service.protocol == Protocol::Tcp {
        let message =
            format!("the Service {} speaks TCP, and opaque connections do not queue", service.name);
        problems
            .error(Rule::Conflict, spec.span, message)
            .help("remove `queue`, or set the Service's protocol");
    }
    if let Some(bytes) = spec.max_bytes.as_ref().filter(|bytes| bytes.0 == 0) {
        let message = "with 0 bytes no request with a body could wait behind another";
        invalid(bytes.span, message, "at least 1; the default is 10GiB", problems);
    }
    Queue {
        slots: spec.slots.as_ref().map_or(default.slots, |s| ***s),
        max_requests: spec.max_requests.as_ref().map_or(default.max_requests, |n| ***n),
        max_bytes: spec.max_bytes.as_ref().map_or(default.max_bytes, |b| b.0),
        max_wait: time(spec.max_wait.as_ref(), default.max_wait),
        weights: spec.weights.as_ref().map_or(default.weights, |w| weights(w)),
    }
}

pub(super) fn weights(spec: &WeightsSpec) -> ClassWeights {
    let default = ClassWeights::default();
    ClassWeights {
        interactive: spec.interactive.as_ref().map_or(default.interactive, |w| ***w),
        bulk: spec.bulk.as_ref().map_or(default.bulk, |w| ***w),
        background: spec.background.as_ref().map_or(default.background, |w| ***w),
    }
}

/// Slots of an endpoint that nobody waits for.
pub(super) fn check_endpoints<'a>(
    endpoints: impl Iterator<Item = &'a EndpointSpec>,
    service: &Service,
    problems: &mut Problems,
) {
    if service.admission.queue.is_some() {
        return;
    }
    for slots in endpoints.filter_map(|endpoint| endpoint.slots.as_ref()) {
        let message = format!("the Service {} has no queue, so slots have no effect", service.name);
        problems
            .warning(Rule::NoEffect, slots.span, message)
            .help("give it one with a BreakerPolicy's `queue`");
    }
}

/// What can be told only once all routes are known.
pub(super) fn check_routes(mesh: &Mesh, policies: &Policies<'_>, problems: &mut Problems) {
    for service in mesh.services.values() {
        let Some(queue) = &service.admission.queue else { continue };
        let written = policies.breaker(&service.name).and_then(|p| p.spec.queue.as_ref());
        let Some(written) = written else { continue };
        let routes = || forwards(mesh).filter(|(_, f)| sends_to(f, &service.name));
        let cut_short = routes()
            .find_map(|(name, f)| f.timeout.filter(|t| *t <= queue.max_wait).map(|t| (name, t)));
        if let Some((route, timeout)) = cut_short {
            let span = written.max_wait.as_ref().map_or(written.span, |wait| wait.span);
            let message = format!(
                "a request may wait {}, but {route} gives it {} altogether",
                words::time(queue.max_wait),
                words::time(timeout)
            );
            problems
                .warning(Rule::NoEffect, span, message)
                .help("a shorter `maxWait` turns requests away while they can still go elsewhere");
        }
        let classes: BTreeSet<Class> = routes().map(|(_, f)| f.transfer.class).collect();
        if let (Some(weights), Some(only), true) =
            (&written.weights, classes.first(), classes.len() == 1)
        {
            let message = format!("all requests are {}, so weights have no effect", only.name());
            problems
                .warning(Rule::NoEffect, weights.span, message)
                .help("remove them, or give routes a `class` with a TransferPolicy");
        }
    }
}

pub(super) fn forwards(mesh: &Mesh) -> impl Iterator<Item = (&str, &Forward)> {
    let routes = mesh.routes.values().flat_map(|t| &t.virtual_hosts).flat_map(|h| &h.routes);
    routes.filter_map(|route| match &route.action {
        Action::Forward(forward) => Some((route.name.as_str(), forward)),
        _ => None,
    })
}

pub(super) fn sends_to(forward: &Forward, service: &str) -> bool {
    forward.backends.iter().any(|b| b.service == service && b.weight > 0)
}
