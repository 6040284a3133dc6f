use envoy_types::pb::{
    envoy::config::{
        cluster::v3::{
            LoadBalancingPolicy,
            cluster::{
                CommonLbConfig, LbPolicy, MaglevLbConfig, RingHashLbConfig,
                common_lb_config::ConsistentHashingLbConfig as OldCommon,
            },
            load_balancing_policy::Policy,
        },
        core::v3::TypedExtensionConfig,
        route::v3::route_action::hash_policy::Cookie,
    },
    google::protobuf::UInt32Value,
};
use towpath_policies::model::{Protocol, Service};

use super::*;
use crate::codec::service;

fn cluster(config: Any) -> cds::Cluster {
    let config = TypedExtensionConfig { name: "any".to_owned(), typed_config: Some(config) };
    let policies = vec![Policy { typed_extension_config: Some(config) }];
    let load_balancing_policy = Some(LoadBalancingPolicy { policies });
    cds::Cluster { name: "c".to_owned(), load_balancing_policy, ..Default::default() }
}

fn decoded(cluster: &cds::Cluster) -> Result<(Balancer, Hashing)> {
    let decoded = service::decode(cluster)?;
    Ok((decoded.service.balancer, decoded.service.hashing.clone()))
}

fn wide(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn policies(specifiers: Vec<PolicySpecifier>) -> Vec<HashPolicy> {
    let policy = |s| HashPolicy { policy_specifier: Some(s), ..Default::default() };
    specifiers.into_iter().map(policy).collect()
}

fn header(name: &str) -> PolicySpecifier {
    PolicySpecifier::Header(Header { header_name: name.to_owned(), regex_rewrite: None })
}

#[test]
fn every_key_is_said_as_envoy_says_it() {
    for (key, name, rewrite) in [
        (KeySource::Header("x-p".into()), "x-p", None),
        (KeySource::PathSegment(1), ":path", Some("^(?:/[^/?]*){0}/([^/?]+).*$")),
        (KeySource::PathSegment(3), ":path", Some("^(?:/[^/?]*){2}/([^/?]+).*$")),
    ] {
        let hashing =
            Hashing { key: Some(key.clone()), load_bound_percent: Some(150), ..Hashing::default() };
        let balancer = Balancer::Maglev;
        let pb = service::encode(&Service {
            balancer,
            hashing: hashing.clone(),
            ..Service::new("c", Protocol::Http2)
        });
        let first = pb.load_balancing_policy.as_ref().unwrap().policies[0].clone();
        let config = first.typed_extension_config.unwrap().typed_config.unwrap();
        let maglev: Maglev = unpack(&config).unwrap();
        let common = maglev.consistent_hashing_lb_config.unwrap();
        assert_eq!(common.hash_balance_factor, Some(UInt32Value { value: 150 }));
        let Some(PolicySpecifier::Header(header)) = &common.hash_policy[0].policy_specifier else {
            panic!("{key:?}")
        };
        let pattern = header.regex_rewrite.as_ref().map(|r| r.pattern.as_ref().unwrap());
        assert_eq!(header.header_name, name);
        assert_eq!(pattern.map(|p| p.regex.as_str()), rewrite);
        if let Some(rewrite) = pattern {
            let regex = regex::Regex::new(&rewrite.regex).unwrap();
            assert!(!regex.is_match("/"));
            let found = regex.replace_all("/a/b/c?d=/e", "$1");
            assert_eq!(found, if key == KeySource::PathSegment(1) { "a" } else { "c" });
        }
        // All of it is said in Envoy's words.
        let metadata = pb.metadata.iter().flat_map(|m| m.typed_filter_metadata.values());
        for any in metadata {
            assert!(!String::from_utf8_lossy(&any.value).contains("hashing"), "{any:?}");
        }
        assert_eq!(decoded(&pb).unwrap(), (balancer, hashing));
    }
}

#[test]
fn policies_of_other_servers_are_obeyed() {
    let maglev = Maglev { table_size: wide(1_009), ..Default::default() };
    let expected = Hashing { table_size: 1_009, ..Hashing::default() };
    assert_eq!(decoded(&cluster(pack(&maglev))).unwrap(), (Balancer::Maglev, expected));

    #[expect(deprecated, reason = "older servers still write it")]
    let ring = RingHash {
        minimum_ring_size: wide(2_048),
        hash_balance_factor: Some(UInt32Value { value: 120 }),
        ..Default::default()
    };
    let expected = Hashing {
        load_bound_percent: Some(120),
        ring_size: (2_048, Hashing::MOST_ON_RING),
        ..Hashing::default()
    };
    assert_eq!(decoded(&cluster(pack(&ring))).unwrap(), (Balancer::RingHash, expected));

    let old = |policy: LbPolicy, lb_config| cds::Cluster {
        name: "c".to_owned(),
        lb_policy: policy as i32,
        lb_config,
        common_lb_config: Some(CommonLbConfig {
            consistent_hashing_lb_config: Some(OldCommon {
                hash_balance_factor: Some(UInt32Value { value: 200 }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let bounded = || Hashing { load_bound_percent: Some(200), ..Hashing::default() };
    let plain = old(LbPolicy::Maglev, None);
    assert_eq!(decoded(&plain).unwrap(), (Balancer::Maglev, bounded()));
    let config = MaglevLbConfig { table_size: wide(7) };
    let small = old(LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config)));
    let expected = Hashing { table_size: 7, ..bounded() };
    assert_eq!(decoded(&small).unwrap(), (Balancer::Maglev, expected));
    let config = RingHashLbConfig { maximum_ring_size: wide(4_096), ..Default::default() };
    let ring = old(LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config)));
    let expected = Hashing { ring_size: (1_024, 4_096), ..bounded() };
    assert_eq!(decoded(&ring).unwrap(), (Balancer::RingHash, expected));
}

#[test]
fn what_would_be_disobeyed_is_refused() {
    let maglev = |table_size, factor, specifiers| {
        let common = ConsistentHashingLbConfig {
            hash_balance_factor: u32_value(factor),
            hash_policy: policies(specifiers),
            ..Default::default()
        };
        let consistent_hashing_lb_config = Some(common);
        let table_size = wide(table_size);
        pack(&Maglev { table_size, consistent_hashing_lb_config, ..Default::default() })
    };
    let ring = |hash_function: HashFunction, least, most| {
        pack(&RingHash {
            hash_function: hash_function as i32,
            minimum_ring_size: wide(least),
            maximum_ring_size: wide(most),
            ..Default::default()
        })
    };
    let cookie = PolicySpecifier::Cookie(Cookie { name: "c".to_owned(), ..Default::default() });
    for (config, expected) in [
        (maglev(65_536, 125, vec![]), "must be a prime"),
        (maglev(u64::MAX, 125, vec![]), "must be a prime"),
        (maglev(7, 99, vec![]), "at least 100 %"),
        (maglev(7, 125, vec![cookie]), "maglev.hash_policy: only one header"),
        (maglev(7, 125, vec![header("a"), header("b")]), "maglev.hash_policy: only one header"),
        (maglev(7, 125, vec![header(":path")]), "maglev.hash_policy: only one header"),
        (ring(HashFunction::MurmurHash2, 1, 2), "only XX_HASH"),
        (ring(HashFunction::XxHash, 3, 2), "no least above its most"),
        (ring(HashFunction::XxHash, 1, u64::MAX), "from 1 to 8,388,608 points"),
        (Any { type_url: Maglev::type_url(), value: vec![255] }, "load_balancing_policy.maglev"),
    ] {
        let error = decoded(&cluster(config)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} should say {expected:?}");
    }
}
