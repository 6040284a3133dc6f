//! [`Hashing`] ↔ Envoy's Maglev and ring-hash policies.
//!
//! The key is said in the policy itself, where newer Envoys look before they look into routes; a segment of
//! the path is the header `:path`, rewritten. Of `hash_policy` in routes nothing is known here: a cluster is decoded on its own.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                self as cds,
                cluster::{LbConfig, ring_hash_lb_config::HashFunction as OldFunction},
            },
            route::v3::route_action::{
                HashPolicy,
                hash_policy::{ConnectionProperties, Header, PolicySpecifier, QueryParameter},
            },
        },
        extensions::load_balancing_policies::{
            common::v3::{ConsistentHashingLbConfig, locality_lb_config::LocalityWeightedLbConfig},
            maglev::v3::Maglev,
            ring_hash::v3::{RingHash, ring_hash::HashFunction},
        },
        r#type::matcher::v3::RegexMatchAndSubstitute,
    },
    google::protobuf::{Any, UInt64Value},
};
use prost::Name;
use towpath_policies::model::{Balancer, Hashing, KeySource, Service};

use super::{
    common::{At, Result, pack, read_u32, refuse, refuse_if, u32_value, unpack},
    matching,
};

pub(super) fn encode_maglev(service: &Service) -> Any {
    let hashing = &service.hashing;
    pack(&Maglev {
        table_size: u64_value(hashing.table_size),
        consistent_hashing_lb_config: Some(encode_common(hashing)),
        locality_weighted_lb_config: service.by_locality.then(LocalityWeightedLbConfig::default),
    })
}

pub(super) fn encode_ring(service: &Service) -> Any {
    let hashing = &service.hashing;
    let (least, most) = hashing.ring_size;
    pack(&RingHash {
        hash_function: HashFunction::XxHash as i32,
        minimum_ring_size: u64_value(least),
        maximum_ring_size: u64_value(most),
        consistent_hashing_lb_config: Some(encode_common(hashing)),
        locality_weighted_lb_config: service.by_locality.then(LocalityWeightedLbConfig::default),
        ..Default::default()
    })
}

/// What a policy of another server says, and whether a locality is drawn first; `None` when it is no policy that hashes.
pub(super) fn decode(any: &Any) -> Result<Option<(Balancer, Hashing, bool)>> {
    if any.type_url == Maglev::type_url() {
        let pb: Maglev = unpack(any).at("maglev")?;
        let hashing = Hashing {
            table_size: size(pb.table_size, Hashing::default().table_size),
            ..decode_common(pb.consistent_hashing_lb_config.as_ref()).at("maglev")?
        };
        let by_locality = pb.locality_weighted_lb_config.is_some();
        return Ok(Some((Balancer::Maglev, hashing, by_locality)));
    }
    if any.type_url != RingHash::type_url() {
        return Ok(None);
    }
    let pb: RingHash = unpack(any).at("ring_hash")?;
    let murmur = pb.hash_function == HashFunction::MurmurHash2 as i32;
    refuse_if(murmur, "ring_hash.hash_function", "only XX_HASH is supported")?;
    let mut hashing = decode_common(pb.consistent_hashing_lb_config.as_ref()).at("ring_hash")?;
    #[expect(deprecated, reason = "older servers still write it")]
    let bound = read_u32(pb.hash_balance_factor.as_ref());
    hashing.load_bound_percent = hashing.load_bound_percent.or(bound.filter(|b| *b > 0));
    hashing.ring_size = ring_size(pb.minimum_ring_size, pb.maximum_ring_size);
    let by_locality = pb.locality_weighted_lb_config.is_some();
    Ok(Some((Balancer::RingHash, hashing, by_locality)))
}

/// What stands beside `lb_policy` of a cluster.
pub(super) fn decode_old(pb: &cds::Cluster, balancer: Balancer) -> Result<Hashing> {
    let common = pb.common_lb_config.as_ref();
    let common = common.and_then(|c| c.consistent_hashing_lb_config.as_ref());
    let mut hashing = Hashing {
        load_bound_percent: common
            .and_then(|c| read_u32(c.hash_balance_factor.as_ref()))
            .filter(|bound| *bound > 0),
        ..Hashing::default()
    };
    match (&pb.lb_config, balancer) {
        (Some(LbConfig::RingHashLbConfig(ring)), Balancer::RingHash) => {
            let murmur = ring.hash_function == OldFunction::MurmurHash2 as i32;
            refuse_if(murmur, "ring_hash_lb_config.hash_function", "only XX_HASH is supported")?;
            hashing.ring_size = ring_size(ring.minimum_ring_size, ring.maximum_ring_size);
        }
        (Some(LbConfig::MaglevLbConfig(maglev)), Balancer::Maglev) => {
            hashing.table_size = size(maglev.table_size, hashing.table_size);
        }
        _ => {}
    }
    Ok(hashing)
}

fn encode_common(hashing: &Hashing) -> ConsistentHashingLbConfig {
    ConsistentHashingLbConfig {
        hash_balance_factor: hashing.load_bound_percent.and_then(u32_value),
        hash_policy: hashing.key.iter().map(encode_key).collect(),
        ..Default::default()
    }
}

fn decode_common(pb: Option<&ConsistentHashingLbConfig>) -> Result<Hashing> {
    let Some(pb) = pb else { return Ok(Hashing::default()) };
    let key = match pb.hash_policy.as_slice() {
        [] => None,
        [only] => match decode_key(only) {
            None => return refuse(ONE_KEY).at("hash_policy"),
            key => key,
        },
        _ => return refuse(ONE_KEY).at("hash_policy"),
    };
    let bound = read_u32(pb.hash_balance_factor.as_ref()).filter(|bound| *bound > 0);
    Ok(Hashing { key, load_bound_percent: bound, ..Hashing::default() })
}

fn encode_key(key: &KeySource) -> HashPolicy {
    let header = |name: &str, regex_rewrite| {
        PolicySpecifier::Header(Header { header_name: name.to_owned(), regex_rewrite })
    };
    let specifier = match key {
        KeySource::Header(name) => header(name, None),
        KeySource::PathSegment(nth) => header(PATH, Some(segment(*nth))),
        KeySource::Query(name) => {
            PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() })
        }
        KeySource::ClientAddress => {
            PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })
        }
    };
    HashPolicy { policy_specifier: Some(specifier), ..Default::default() }
}

fn decode_key(pb: &HashPolicy) -> Option<KeySource> {
    match pb.policy_specifier.as_ref()? {
        PolicySpecifier::Header(header) => match &header.regex_rewrite {
            None if header.header_name.starts_with(':') => None,
            None => Some(KeySource::Header(header.header_name.to_ascii_lowercase())),
            Some(rewrite) if header.header_name == PATH => (1..=KeySource::LAST_SEGMENT)
                .find(|nth| *rewrite == segment(*nth))
                .map(KeySource::PathSegment),
            Some(_) => None,
        },
        PolicySpecifier::QueryParameter(query) => Some(KeySource::Query(query.name.clone())),
        PolicySpecifier::ConnectionProperties(connection) if connection.source_ip => {
            Some(KeySource::ClientAddress)
        }
        _ => None,
    }
}

/// All of the path but its `nth` segment is left out.
fn segment(nth: u32) -> RegexMatchAndSubstitute {
    let before = nth.saturating_sub(1);
    let pattern = format!("^(?:/[^/?]*){{{before}}}/([^/?]+).*$");
    RegexMatchAndSubstitute {
        pattern: Some(matching::regex(&pattern)),
        substitution: r"\1".to_owned(),
    }
}

fn ring_size(least: Option<UInt64Value>, most: Option<UInt64Value>) -> (u32, u32) {
    let (default_least, default_most) = Hashing::default().ring_size;
    (size(least, default_least), size(most, default_most))
}

fn size(value: Option<UInt64Value>, default: u32) -> u32 {
    value.map_or(default, |value| u32::try_from(value.value).unwrap_or(u32::MAX))
}

fn u64_value(value: u32) -> Option<UInt64Value> {
    Some(UInt64Value { value: value.into() })
}

const PATH: &str = ":path";
const ONE_KEY: &str = "only one header, query parameter or source_ip is supported";

#[cfg(test)]
mod tests;
