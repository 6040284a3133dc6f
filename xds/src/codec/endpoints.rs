//! [`EndpointSet`] ↔ `ClusterLoadAssignment` (EDS).

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::SocketAddr,
};

use envoy_types::pb::envoy::config::{
    core::v3::{self as core, HealthStatus},
    endpoint::v3::{
        self as eds, ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints,
        cluster_load_assignment::Policy, lb_endpoint::HostIdentifier,
    },
};
use towpath_policies::model::{
    Endpoint, EndpointSet, Gpu, Health, Locality, LocalityWeight, Region, Spread,
};

use super::{
    common::{At, Result, address, read_address, read_u32, refuse, refuse_if, u32_value},
    extension::Extra,
};

pub(super) type Pb = ClusterLoadAssignment;

pub(super) fn encode(set: &EndpointSet) -> Pb {
    // Clients want priorities without gaps (gRPC refuses others) and every
    // locality once per priority.
    let priorities: BTreeSet<u32> = set.endpoints.iter().map(|e| e.priority).collect();
    let ranks: BTreeMap<u32, u32> = priorities.into_iter().zip(0..).collect();
    let mut groups: BTreeMap<(u32, &Locality), Vec<(usize, &Endpoint)>> = BTreeMap::new();
    for (index, endpoint) in set.endpoints.iter().enumerate() {
        groups
            .entry((ranks[&endpoint.priority], &endpoint.locality))
            .or_default()
            .push((index, endpoint));
    }
    let in_order = groups.values().flatten().map(|(index, _)| *index).is_sorted();
    let mut origins = Some(&set.origins).filter(|origins| !origins.is_empty());
    let endpoints = groups
        .into_iter()
        .map(|((rank, locality), members)| {
            // Members of one rank have one priority.
            let priority = members.first().map_or(rank, |(_, e)| e.priority);
            let named = set.spread.weight(priority, locality);
            let weight = named.unwrap_or_else(|| {
                usual_weight(members.iter().map(|(_, endpoint)| endpoint.weight))
            });
            LocalityLbEndpoints {
                locality: Some(core::Locality {
                    region: locality.region.clone(),
                    zone: locality.zone.clone(),
                    sub_zone: locality.sub_zone.clone(),
                }),
                priority: rank,
                metadata: {
                    let mut extra =
                        encode_group(set.regions.get(&locality.region), named.is_none());
                    // They are the whole set's, which has no place for them.
                    extra.keep("origins", &std::mem::take(&mut origins), &None);
                    extra.into_metadata()
                },
                // gRPC ignores localities without a weight, and so does Envoy where it goes by them.
                load_balancing_weight: (weight > 0)
                    .then_some(weight.min(LocalityWeight::MOST))
                    .and_then(u32_value),
                lb_endpoints: members
                    .into_iter()
                    .map(|(index, e)| encode_endpoint(e, rank, (!in_order).then_some(index)))
                    .collect(),
                ..Default::default()
            }
        })
        .collect();
    Pb {
        cluster_name: set.service.clone(),
        endpoints,
        policy: Some(Policy {
            overprovisioning_factor: u32_value(
                set.spread.overprovisioning_percent.unwrap_or(ONE_IS_ENOUGH),
            ),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What is known of a locality's region, and whether its weight is only what its endpoints' add up to.
fn encode_group(region: Option<&Region>, unnamed: bool) -> Extra {
    let mut extra = Extra::default();
    extra.keep("region", &region, &None);
    extra.keep("unnamed", &unnamed, &false);
    extra
}

/// What a locality counts for of which nothing else is said.
fn usual_weight(members: impl Iterator<Item = u32>) -> u32 {
    let sum: u64 = members.map(u64::from).sum();
    u32::try_from(sum).unwrap_or(u32::MAX).clamp(1, LocalityWeight::MOST)
}

fn encode_endpoint(endpoint: &Endpoint, rank: u32, index: Option<usize>) -> LbEndpoint {
    let mut extra = Extra::default();
    extra.keep("name", &endpoint.name, &endpoint.address.to_string());
    extra.keep("place", &endpoint.place, &None);
    extra.keep("coordinates", &endpoint.coordinates, &None);
    extra.keep("gpu", &endpoint.gpu, &None);
    extra.keep("slots", &endpoint.slots, &None);
    extra.keep("tunnel", &endpoint.tunnel, &false);
    extra.keep("declaredWeight", &endpoint.declared_weight, &None);
    extra.keep("priority", &endpoint.priority, &rank);
    extra.keep("index", &index, &None);
    let health = match endpoint.health {
        Health::Unknown => HealthStatus::Unknown,
        Health::Healthy => HealthStatus::Healthy,
        Health::Unhealthy => HealthStatus::Unhealthy,
        Health::Draining => HealthStatus::Draining,
    };
    LbEndpoint {
        health_status: health as i32,
        metadata: extra.into_metadata(),
        load_balancing_weight: u32_value(endpoint.weight.max(1)),
        host_identifier: Some(HostIdentifier::Endpoint(eds::Endpoint {
            address: Some(address(endpoint.address)),
            ..Default::default()
        })),
    }
}

pub(super) fn decode(pb: &Pb) -> Result<EndpointSet> {
    if pb.cluster_name.is_empty() {
        return refuse("must not be empty").at("cluster_name");
    }
    if let Some(policy) = &pb.policy {
        let drops = policy
            .drop_overloads
            .iter()
            .any(|d| d.drop_percentage.is_some_and(|p| p.numerator > 0));
        refuse_if(drops, "policy.drop_overloads", "dropping requests is not supported")?;
    }
    let mut read = Reader::default();
    for (i, group) in pb.endpoints.iter().enumerate() {
        read.group(group).at_index("endpoints", i)?;
    }
    let regions = std::mem::take(&mut read.regions);
    let mut origins = std::mem::take(&mut read.origins);
    origins.retain(|name, _| !regions.contains_key(name) && !read.endpoints.is_empty());
    let factor = pb.policy.as_ref().and_then(|p| read_u32(p.overprovisioning_factor.as_ref()));
    let factor = factor.unwrap_or(Spread::USUAL_OVERPROVISIONING);
    let named = |((priority, locality), weight)| LocalityWeight { priority, locality, weight };
    let spread = Spread {
        overprovisioning_percent: (factor < ONE_IS_ENOUGH).then_some(factor.max(1)),
        localities: std::mem::take(&mut read.weights).into_iter().map(named).collect(),
    };
    let service = pb.cluster_name.clone();
    Ok(EndpointSet { service, endpoints: read.finish(), regions, origins, spread })
}

#[derive(Default)]
struct Reader {
    /// With the place each says it has.
    endpoints: Vec<(usize, Endpoint)>,
    addresses: HashSet<SocketAddr>,
    regions: BTreeMap<String, Region>,
    origins: BTreeMap<String, Region>,
    /// Of the localities, as told; those of a locality that is there twice add up.
    weights: BTreeMap<(u32, Locality), u32>,
}

impl Reader {
    fn group(&mut self, group: &LocalityLbEndpoints) -> Result<()> {
        refuse_if(
            group.lb_config.is_some(),
            "lb_config",
            "only lb_endpoints is supported (no LEDS)",
        )?;
        let locality = group.locality.clone().unwrap_or_default();
        let locality =
            Locality { region: locality.region, zone: locality.zone, sub_zone: locality.sub_zone };
        let mut region: Option<Region> = None;
        let mut unnamed = false;
        let mut extra = Extra::read(group.metadata.as_ref())?;
        extra.restore("region", &mut region)?;
        extra.restore("unnamed", &mut unnamed)?;
        self.origins(&mut extra)?;
        let known = self.endpoints.len();
        for (i, endpoint) in group.lb_endpoints.iter().enumerate() {
            self.endpoint(endpoint, &locality, group.priority).at_index("lb_endpoints", i)?;
        }
        // What ours calls by another priority, it calls so throughout.
        if let Some((_, first)) = self.endpoints.get(known).filter(|_| !unnamed) {
            let weight = read_u32(group.load_balancing_weight.as_ref()).unwrap_or(0);
            let sum = self.weights.entry((first.priority, locality.clone())).or_default();
            *sum = sum.saturating_add(weight).min(LocalityWeight::MOST);
        }
        let Some(region) = region.filter(|_| !group.lb_endpoints.is_empty()) else { return Ok(()) };
        if let Err(why) = region.check() {
            return refuse(why).at("region");
        }
        // Of several that differ the first has the say.
        self.regions.entry(locality.region).or_insert(region);
        Ok(())
    }

    /// Of several that are told of the first has the say.
    fn origins(&mut self, extra: &mut Extra) -> Result<()> {
        let mut origins: BTreeMap<String, Region> = BTreeMap::new();
        extra.restore("origins", &mut origins)?;
        for (name, region) in origins {
            if let Err(why) = region.check() {
                return refuse(why).at("origins");
            }
            self.origins.entry(name).or_insert(region);
        }
        let many = self.origins.len() > EndpointSet::MOST_ORIGINS;
        refuse_if(many, "origins", "must be at most 200")
    }

    fn endpoint(&mut self, pb: &LbEndpoint, locality: &Locality, priority: u32) -> Result<()> {
        let Some(HostIdentifier::Endpoint(host)) = &pb.host_identifier else {
            return refuse("needs an endpoint with an address (named endpoints are not supported)");
        };
        let address = read_address(host.address.as_ref()).at("endpoint.address")?;
        if !self.addresses.insert(address) {
            // Equal addresses appear once; the first has the say, as in Envoy.
            return Ok(());
        }
        let mut extra = Extra::read(pb.metadata.as_ref())?;
        let mut endpoint = Endpoint {
            locality: locality.clone(),
            priority,
            weight: read_u32(pb.load_balancing_weight.as_ref()).unwrap_or(1).max(1),
            health: match HealthStatus::try_from(pb.health_status) {
                Ok(HealthStatus::Healthy | HealthStatus::Degraded) => Health::Healthy,
                Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => Health::Unhealthy,
                Ok(HealthStatus::Draining) => Health::Draining,
                Ok(HealthStatus::Unknown) | Err(_) => Health::Unknown,
            },
            ..Endpoint::new(address)
        };
        if !host.hostname.is_empty() {
            endpoint.name.clone_from(&host.hostname);
        }
        let mut index = self.endpoints.len();
        extra.restore("name", &mut endpoint.name)?;
        extra.restore("place", &mut endpoint.place)?;
        extra.restore("coordinates", &mut endpoint.coordinates)?;
        extra.restore("gpu", &mut endpoint.gpu)?;
        extra.restore("slots", &mut endpoint.slots)?;
        extra.restore("tunnel", &mut endpoint.tunnel)?;
        extra.restore("declaredWeight", &mut endpoint.declared_weight)?;
        extra.restore("priority", &mut endpoint.priority)?;
        extra.restore("index", &mut index)?;
        refuse_if(
            endpoint.coordinates.is_some_and(|at| !at.on_earth()),
            "coordinates",
            "out of range",
        )?;
        refuse_if(
            endpoint.gpu.as_ref().is_some_and(|g: &Gpu| g.count == 0),
            "gpu.count",
            "must be at least 1",
        )?;
        refuse_if(endpoint.slots == Some(0), "slots", "must be at least 1")?;
        let declared = endpoint.declared_weight;
        refuse_if(
            declared.is_some_and(|weight| !(1..=MAX_WEIGHT).contains(&weight)),
            "declaredWeight",
            "must be from 1 to 1,000,000",
        )?;
        self.endpoints.push((index, endpoint));
        Ok(())
    }

    fn finish(mut self) -> Vec<Endpoint> {
        self.endpoints.sort_by_key(|(index, _)| *index);
        let heaviest = self.endpoints.iter().map(|(_, e)| e.weight).max().unwrap_or(1);
        let mut endpoints: Vec<Endpoint> = self.endpoints.into_iter().map(|(_, e)| e).collect();
        if heaviest > MAX_WEIGHT {
            for endpoint in &mut endpoints {
                let scaled =
                    u64::from(endpoint.weight) * u64::from(MAX_WEIGHT) / u64::from(heaviest);
                endpoint.weight = u32::try_from(scaled).unwrap_or(MAX_WEIGHT).max(1);
            }
        }
        endpoints
    }
}

/// Largest weight of a domain endpoint; larger ones are scaled down together.
const MAX_WEIGHT: u32 = 1_000_000;
/// Overprovisioning in per cent with which a priority is left only when none of a thousand endpoints
/// is usable.
const ONE_IS_ENOUGH: u32 = 100_000;
