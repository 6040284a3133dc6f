//! Services that are a part of another: those of its endpoints that have some labels.
//!
//! They become lists of endpoints before anything else looks at Services, as in Istio, where a subset is a
//! cluster of its own; so routes name them like any other, and every xDS client understands them.

use std::collections::HashMap;

use crate::{
    diagnostic::Rule,
    document::{
        Documents, Kind, Object,
        own::{EndpointSpec, ServiceSpec, SubsetSpec},
        read::{Texts, invalid},
    },
    problem::{At, Problems},
};

use super::index::Index;

/// The documents with lists of endpoints in place of subsets; `None` when there are none.
pub(super) fn resolve(documents: &Documents, problems: &mut Problems) -> Option<Documents> {
    documents.services.iter().find(|service| service.spec.subset.is_some())?;
    let index = Index::new(documents, problems);
    let first = documents.services.iter().filter(|service| index.is_first(Kind::Service, service));
    let wholes: HashMap<String, &Object<ServiceSpec>> = first.map(|s| (s.id(), s)).collect();
    let mut resolved = documents.clone();
    for service in &mut resolved.services {
        let Some(subset) = service.spec.subset.take() else { continue };
        let whole = index.follow(Kind::Service, &service.namespace, &subset.of, problems);
        let whole = whole.and_then(|id| wholes.get(&id).copied());
        let endpoints = whole.map(|whole| part(whole, &subset, problems)).unwrap_or_default();
        // Why there are none has been told.
        service.spec.endpoints =
            (!endpoints.is_empty()).then_some(At { value: endpoints, span: subset.span });
        if let Some(whole) = whole {
            inherit(&mut service.spec, &whole.spec);
        }
    }
    Some(resolved)
}

fn inherit(spec: &mut ServiceSpec, whole: &ServiceSpec) {
    fn or<T: Clone>(own: &mut Option<T>, whole: &Option<T>) {
        *own = own.take().or_else(|| whole.clone());
    }
    or(&mut spec.protocol, &whole.protocol);
    or(&mut spec.connect_timeout, &whole.connect_timeout);
    or(&mut spec.pool_idle_timeout, &whole.pool_idle_timeout);
    or(&mut spec.health_check, &whole.health_check);
    or(&mut spec.tls, &whole.tls);
    or(&mut spec.proxy_protocol, &whole.proxy_protocol);
}

/// The endpoints that it takes.
fn part(
    whole: &Object<ServiceSpec>,
    subset: &SubsetSpec,
    problems: &mut Problems,
) -> Vec<EndpointSpec> {
    if subset.labels.is_empty() {
        let help = "give labels, e.g. `labels: {version: v2}`";
        invalid(subset.span, "without labels it would be the whole Service", help, problems);
    }
    let cannot = if whole.spec.subset.is_some() {
        Some("that Service is a subset itself")
    } else if whole.spec.dns.is_some() {
        Some("addresses of a DNS name have no labels")
    } else {
        None
    };
    if let Some(why) = cannot {
        problems
            .error(Rule::Unsupported, subset.of.span, why)
            .related(whole.span, "it is written here")
            .help("name a Service that lists its `endpoints`");
        return Vec::new();
    }
    let listed = whole.spec.endpoints.iter().flat_map(|list| &list.value);
    let has = |labels: &Texts| {
        let same = |(name, (_, value)): (&String, &(_, At<String>))| {
            labels.get(name).is_some_and(|(_, own)| own.value == value.value)
        };
        subset.labels.iter().all(same)
    };
    // The whole has the sidecars' listeners already.
    let taken = |endpoint: &EndpointSpec| EndpointSpec { sidecar: None, ..endpoint.clone() };
    let taken: Vec<_> = listed.filter(|e| has(&e.labels)).map(taken).collect();
    if taken.is_empty() {
        let message = format!("no endpoint of Service {} has these labels", whole.id());
        problems
            .warning(Rule::NoEffect, subset.span, message)
            .related(whole.span, "its endpoints are listed here");
    }
    taken
}
