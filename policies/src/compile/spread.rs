//! How requests are shared out among priorities and localities.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    diagnostic::Rule,
    document::{
        Object,
        balancer::{BalancerPolicySpec, LocalityWeightSpec},
    },
    model::{Discovery, Endpoint, Locality, LocalityWeight, Service, Spread},
    problem::{At, Problems, Span},
    words,
};

pub(super) fn compile(
    policy: Option<&Object<BalancerPolicySpec>>,
    service: &Service,
    endpoints: &[Endpoint],
    problems: &mut Problems,
) -> Spread {
    let Some(spec) = policy.map(|policy| &policy.spec) else { return Spread::default() };
    let percent = spec.overprovisioning_percent.as_ref();
    let localities = spec.localities.as_deref();
    if matches!(service.discovery, Discovery::Dns { .. }) {
        let spans = [percent.map(|p| p.span), localities.map(|all| all[0].span)];
        for span in spans.into_iter().flatten() {
            let message = "addresses of a DNS name have neither localities nor priorities";
            problems.error(Rule::NoEffect, span, message);
        }
        return Spread::default();
    }
    let weights = localities.map(|all| weights(all, problems)).unwrap_or_default();
    if let Some(all) = localities {
        check(all, &weights, service, endpoints, problems);
    }
    let usual = localities.map(|_| Spread::USUAL_OVERPROVISIONING);
    let weight_of = |(priority, locality): (u32, &Locality)| {
        let (weight, _) = weights.get(locality)?;
        Some(LocalityWeight { priority, locality: locality.clone(), weight: *weight })
    };
    let standing: BTreeSet<_> = endpoints.iter().map(|e| (e.priority, &e.locality)).collect();
    Spread {
        overprovisioning_percent: percent.map(|percent| ***percent).or(usual),
        localities: standing.into_iter().filter_map(weight_of).collect(),
    }
}

type Weights = BTreeMap<Locality, (u32, Span)>;

fn weights(written: &[LocalityWeightSpec], problems: &mut Problems) -> Weights {
    let mut weights = Weights::new();
    let text =
        |text: &Option<At<String>>| text.as_ref().map(|t| t.value.clone()).unwrap_or_default();
    for one in written {
        let locality = Locality {
            region: text(&one.region),
            zone: text(&one.zone),
            sub_zone: text(&one.sub_zone),
        };
        if let Some((_, first)) = weights.insert(locality, (**one.weight, one.span)) {
            problems
                .error(Rule::Duplicate, one.span, "this locality is there twice")
                .related(first, "first here");
        }
    }
    weights
}

/// The weights and the localities where endpoints stand must be the same ones.
fn check(
    written: &[LocalityWeightSpec],
    weights: &Weights,
    service: &Service,
    endpoints: &[Endpoint],
    problems: &mut Problems,
) {
    let standing: BTreeSet<&Locality> = endpoints.iter().map(|e| &e.locality).collect();
    for locality in standing.iter().filter(|locality| !weights.contains_key(**locality)) {
        let name = match words::locality(locality) {
            name if name.is_empty() => "without a locality".to_owned(),
            name => format!("in `{name}`"),
        };
        let message = format!(
            "Service {} has endpoints {name}, and there is no weight for them",
            service.name
        );
        problems.error(Rule::MissingField, written[0].span, message).help(
            "name every region, zone and sub-zone as the endpoints do; `weight: 0` sends nothing",
        );
    }
    for (_, (_, span)) in weights.iter().filter(|(locality, _)| !standing.contains(*locality)) {
        let message = format!("no endpoint of Service {} stands there", service.name);
        problems.warning(Rule::NoEffect, *span, message);
    }
}
