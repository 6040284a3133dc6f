//! Regions: what is known of those in which endpoints stand.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    diagnostic::{Rule, nearest},
    document::{
        Documents, Kind, Object,
        balancer::BalancerPolicySpec,
        read::ticked,
        region::{EgressSpec, RegionSpec},
    },
    model::{Endpoint, EndpointSet, Region},
    problem::Problems,
};

use super::index::Index;

/// The regions that are described, by name.
pub(super) struct Regions(BTreeMap<String, Region>);

impl Regions {
    pub(super) fn new(documents: &Documents, index: &Index<'_>, problems: &mut Problems) -> Self {
        let mut first: BTreeMap<&str, &Object<RegionSpec>> = BTreeMap::new();
        let mut regions = BTreeMap::new();
        for object in documents.regions.iter().filter(|o| index.is_first(Kind::Region, o)) {
            // Endpoints know no namespaces.
            if let Some(first) = first.get(object.name.as_str()) {
                let message = format!("the region {} is described twice", ticked(&object.name));
                problems
                    .error(Rule::Duplicate, object.span, message)
                    .related(first.span, "first here")
                    .help("merge the two, whatever their namespaces");
                continue;
            }
            first.insert(&object.name, object);
            regions.insert(object.name.clone(), region(object, problems));
        }
        check_names(documents, problems);
        Self(regions)
    }

    /// Those in which one of these endpoints stands.
    pub(super) fn of(&self, endpoints: &[Endpoint]) -> BTreeMap<String, Region> {
        let names: BTreeSet<_> = endpoints.iter().map(|e| &e.locality.region).collect();
        let known = names.into_iter().filter_map(|name| self.0.get_key_value(name));
        known.map(|(name, region)| (name.clone(), region.clone())).collect()
    }
}

fn region(object: &Object<RegionSpec>, problems: &mut Problems) -> Region {
    let spec = &object.spec;
    let written = spec.egress.as_ref().map_or(&[][..], |list| &list.value);
    if spec.carbon_intensity.is_none() && spec.electricity_maps_zone.is_none() && written.is_empty()
    {
        problems
            .warning(Rule::NoEffect, object.span, "the Region says nothing")
            .help("give `carbonIntensity`, `electricityMapsZone` or `egress`");
    }
    Region {
        carbon_intensity: spec.carbon_intensity.as_ref().map(|c| c.0),
        electricity_maps_zone: spec.electricity_maps_zone.as_ref().map(|zone| zone.to_string()),
        egress: egress(&object.name, written, problems),
    }
}

fn egress(from: &str, written: &[EgressSpec], problems: &mut Problems) -> BTreeMap<String, f64> {
    let mut prices = BTreeMap::new();
    let mut seen = BTreeMap::new();
    for EgressSpec { to, cents_per_gigabyte: cents, .. } in written {
        if let Some(first) = seen.insert(to.to_string(), to.span) {
            let message = format!("the price to {} is there twice", ticked(to));
            problems.error(Rule::Duplicate, to.span, message).related(first, "first here");
        }
        if &***to == from {
            problems
                .warning(Rule::NoEffect, to.span, "what stays in a region costs nothing")
                .help("leave the line out");
            continue;
        }
        prices.insert(to.to_string(), cents.0);
    }
    prices
}

/// Tells of names that no endpoint has. Nothing is missed where a Service could not be read.
fn check_names(documents: &Documents, problems: &mut Problems) {
    if documents.incomplete || documents.broken.iter().any(|(kind, _)| *kind == Kind::Service) {
        return;
    }
    let endpoints = documents.services.iter().flat_map(|s| s.spec.endpoints.iter());
    let endpoints = endpoints.flat_map(|list| &list.value);
    let regions = endpoints.filter_map(|e| Some(e.locality.as_ref()?.region.as_ref()?.as_str()));
    let known: BTreeSet<&str> = regions.collect();
    let mut look = |name: &str, span| {
        if known.contains(name) {
            return;
        }
        let message = format!("no endpoint stands in the region {}", ticked(name));
        let help = match nearest(name, known.iter().copied()) {
            Some(near) => format!("did you mean {}?", ticked(near)),
            None => "endpoints say theirs in `locality.region`".to_owned(),
        };
        problems.warning(Rule::NoEffect, span, message).help(help);
    };
    for object in &documents.regions {
        look(&object.name, object.span);
        for line in object.spec.egress.iter().flat_map(|list| &list.value) {
            if &**line.to != Region::ANY {
                look(&line.to, line.to.span);
            }
        }
    }
}

/// Tells of terms that find nothing to count.
pub(super) fn check_terms(
    policy: Option<&Object<BalancerPolicySpec>>,
    set: &EndpointSet,
    problems: &mut Problems,
) {
    let Some(spec) = policy.map(|policy| &policy.spec) else { return };
    let Some(terms) = &spec.terms else { return };
    let any = |known: fn(&Region) -> bool| set.regions.values().any(known);
    let carbon = |r: &Region| r.carbon_intensity.is_some() || r.electricity_maps_zone.is_some();
    if let Some(written) = terms.carbon.as_ref().filter(|c| c.0 > 0.0 && !any(carbon)) {
        let message = format!("nothing is known of what the endpoints of {} emit", set.service);
        problems
            .warning(Rule::NoEffect, written.span, message)
            .help("describe their regions: `kind: Region` with a `carbonIntensity`");
    }
    let Some(written) = terms.price.as_ref().filter(|price| price.0 > 0.0) else { return };
    if !any(|region| !region.egress.is_empty()) {
        let message = format!("no region of the endpoints of {} has prices", set.service);
        problems
            .warning(Rule::NoEffect, written.span, message)
            .help("describe their regions: `kind: Region` with `egress`");
    } else if spec.origin.is_none() {
        problems
            .warning(
                Rule::NoEffect,
                written.span,
                "without an `origin` nobody knows where bytes go",
            )
            .help("e.g. `origin: {header: X-Towpath-Origin}`");
    }
}
