//! Regions: what is known of those in which endpoints stand, and of those that data comes from.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    diagnostic::{Rule, nearest},
    document::{
        Documents, Kind, Object,
        balancer::BalancerPolicySpec,
        read::ticked,
        region::{EgressSpec, RegionSpec},
    },
    model::{Balancer, Class, Endpoint, EndpointSet, Mesh, Region, Service},
    problem::Problems,
};

use super::{
    index::Index,
    place::Places,
    policies::Policies,
    queue::{forwards, sends_to},
};

/// The regions that are described, by name.
pub(super) struct Regions(BTreeMap<String, Region>);

impl Regions {
    pub(super) fn new(
        documents: &Documents,
        index: &Index<'_>,
        places: &mut Places,
        problems: &mut Problems,
    ) -> Self {
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
            if first.len() == EndpointSet::MOST_ORIGINS {
                let message = "more than 200 regions are described";
                problems
                    .error(Rule::InvalidValue, object.span, message)
                    .help("describe those alone that prices or intensities are known of");
                break;
            }
            first.insert(&object.name, object);
            regions.insert(object.name.clone(), region(object, places, problems));
        }
        check_names(documents, problems);
        Self(regions)
    }

    /// Tells endpoints of the regions in which one of them stands, and of those that data comes from.
    pub(super) fn tell(&self, set: &mut EndpointSet, service: &Service) {
        let names = set.endpoints.iter().map(|e| &*e.locality.region);
        let names: BTreeSet<_> = names.filter(|name| !name.is_empty()).collect();
        let known = names.iter().filter_map(|name| self.0.get_key_value(*name));
        set.regions = known.map(|(name, region)| (name.clone(), region.clone())).collect();
        if service.balancer == Balancer::CompletionTime && !names.is_empty() {
            set.origins = self.beside(&names, &set.regions);
        }
    }

    /// The regions other than those `names` that matter to prices, with what they say of those. None where
    /// there are no prices at all.
    fn beside(
        &self,
        names: &BTreeSet<&str>,
        regions: &BTreeMap<String, Region>,
    ) -> BTreeMap<String, Region> {
        let mut origins = BTreeMap::new();
        for (name, region) in self.0.iter().filter(|(name, _)| !names.contains(&***name)) {
            let counts = |to: &String| to == Region::ANY || names.contains(&**to);
            let egress = region.egress.iter().filter(|(to, _)| counts(to));
            let egress: BTreeMap<_, _> = egress.map(|(to, cents)| (to.clone(), *cents)).collect();
            let paid = regions.iter().any(|(from, region)| region.cents_to(from, name).is_some());
            if paid || !egress.is_empty() || !region.location.is_unsaid() {
                let (location, radius_kilometers) =
                    (region.location.clone(), region.radius_kilometers);
                let origin = Region { egress, location, radius_kilometers, ..Region::default() };
                origins.insert(name.clone(), origin);
            }
        }
        if !prices(regions.values().chain(origins.values())) {
            origins.clear();
        }
        origins
    }
}

/// Whether any of these asks anything.
fn prices<'a>(mut regions: impl Iterator<Item = &'a Region>) -> bool {
    regions.any(|region| !region.egress.is_empty())
}

fn region(object: &Object<RegionSpec>, places: &mut Places, problems: &mut Problems) -> Region {
    let spec = &object.spec;
    let written = spec.egress.as_ref().map_or(&[][..], |list| &list.value);
    let otherwise = "no data is known to come from there by its coordinates";
    let given = spec.coordinates.as_ref();
    let location = places.either(spec.place.as_ref(), given, otherwise, problems);
    if spec.carbon_intensity.is_none()
        && spec.electricity_maps_zone.is_none()
        && written.is_empty()
        && location.is_unsaid()
    {
        problems
            .warning(Rule::NoEffect, object.span, "the Region says nothing")
            .help("give `carbonIntensity`, `electricityMapsZone`, `egress` or `place`");
    }
    if let Some(radius) = spec.radius_kilometers.as_ref().filter(|_| location.is_unsaid()) {
        problems
            .warning(Rule::NoEffect, radius.span, "a radius around nowhere")
            .help("give its `place` or `coordinates`");
    }
    Region {
        location,
        radius_kilometers: spec.radius_kilometers.as_ref().map(|radius| ***radius),
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

/// Tells of names that no endpoint has and that are no origin's either. Nothing is missed where a document that
/// could have named them could not be read.
fn check_names(documents: &Documents, problems: &mut Problems) {
    let names = |kind| matches!(kind, Kind::Service | Kind::BalancerPolicy);
    if documents.incomplete || documents.broken.iter().any(|(kind, _)| names(*kind)) {
        return;
    }
    // Requests may name any region whose prices are known.
    let origins =
        documents.balancer_policies.iter().filter_map(|policy| policy.spec.origin.as_ref());
    let named = origins.flat_map(|origin| &origin.value.0).any(|source| source.header.is_some());
    let endpoints = documents.services.iter().flat_map(|s| s.spec.endpoints.iter());
    let endpoints = endpoints.flat_map(|list| &list.value);
    let regions = endpoints.filter_map(|e| Some(e.locality.as_ref()?.region.as_ref()?.as_str()));
    let known: BTreeSet<&str> = regions.collect();
    let described: BTreeSet<&str> = documents.regions.iter().map(|o| o.name.as_str()).collect();
    let mut tell = |name: &str, span, but: &str, otherwise: &str| {
        let message = format!("no endpoint stands in the region {}, {but}", ticked(name));
        let help = match nearest(name, known.iter().copied()) {
            Some(near) => format!("did you mean {}? else {otherwise}", ticked(near)),
            None => otherwise.to_owned(),
        };
        problems.warning(Rule::NoEffect, span, message).help(help);
    };
    for object in &documents.regions {
        let spec = &object.spec;
        let priced = spec.egress.as_ref().is_some_and(|list| !list.value.is_empty());
        let placed = spec.place.is_some() || spec.coordinates.is_some();
        let told = placed || (named && priced);
        if !known.contains(&*object.name) && !told {
            let but = "and it does not say where it is";
            tell(&object.name, object.span, but, "give it a `place`, if data comes from there");
        }
        for line in spec.egress.iter().flat_map(|list| &list.value) {
            let to: &str = &line.to;
            if to != Region::ANY && !known.contains(to) && !described.contains(to) {
                let but = "and no Region describes it";
                tell(to, line.to.span, but, "describe it, if data comes from there");
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
    let carbon = |r: &Region| r.carbon_intensity.is_some() || r.electricity_maps_zone.is_some();
    let dark = !set.regions.values().any(carbon);
    if let Some(written) = terms.carbon.as_ref().filter(|c| c.0 > 0.0 && dark) {
        let message = format!("nothing is known of what the endpoints of {} emit", set.service);
        problems
            .warning(Rule::NoEffect, written.span, message)
            .help("describe their regions: `kind: Region` with a `carbonIntensity`");
    }
    let Some(written) = terms.price.as_ref().filter(|price| price.0 > 0.0) else { return };
    let regions = || set.regions.values().chain(set.origins.values());
    let stands = |e: &Endpoint| !e.locality.region.is_empty() && !e.location().is_unsaid();
    if !prices(regions()) {
        let message = format!("no region of the endpoints of {} has prices", set.service);
        problems
            .warning(Rule::NoEffect, written.span, message)
            .help("describe their regions: `kind: Region` with `egress`");
    } else if spec.origin.is_none()
        && regions().all(|region| region.location.is_unsaid())
        && !set.endpoints.iter().any(stands)
    {
        // Else it is the region in which the proxy is.
        problems
            .warning(
                Rule::NoEffect,
                written.span,
                "without an `origin`, nor any region's `place`, nobody knows where bytes go",
            )
            .help("e.g. `origin: {header: X-Towpath-Origin}`");
    }
}

/// Tells of terms that no request is weighed by. Nothing is missed where a document could not be read.
pub(super) fn check_classes(
    mesh: &Mesh,
    policies: &Policies<'_>,
    documents: &Documents,
    problems: &mut Problems,
) {
    if documents.incomplete || !documents.broken.is_empty() {
        return;
    }
    for service in mesh.services.values().filter(|s| s.balancer == Balancer::CompletionTime) {
        let Some(policy) = policies.balancer(&service.name) else { continue };
        let Some(terms) = &policy.spec.terms else { continue };
        let written = [&terms.carbon, &terms.price].into_iter().flatten();
        let Some(written) = written.into_iter().find(|seconds| seconds.0 > 0.0) else { continue };
        let mut routes = forwards(mesh).filter(|(_, forward)| sends_to(forward, &service.name));
        if routes.all(|(_, forward)| forward.transfer.class == Class::Interactive) {
            let message =
                format!("all requests to {} are interactive, and none is moved", service.name);
            problems.warning(Rule::NoEffect, written.span, message).help(
                "give it, or a route to it, the `class` bulk or background: a TransferPolicy",
            );
        }
    }
}
