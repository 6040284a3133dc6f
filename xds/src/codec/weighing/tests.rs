use envoy_types::pb::envoy::config::{
    cluster::v3::{self as cds, load_balancing_policy::Policy},
    core::v3::TypedExtensionConfig,
};
use towpath_policies::model::{Balancer, Protocol, Recovery};

use super::*;
use crate::codec::service;

fn policies(configs: Vec<Any>) -> LoadBalancingPolicy {
    let policy = |config| {
        let config = TypedExtensionConfig { name: "any".to_owned(), typed_config: Some(config) };
        Policy { typed_extension_config: Some(config) }
    };
    LoadBalancingPolicy { policies: configs.into_iter().map(policy).collect() }
}

fn cluster(configs: Vec<Any>) -> cds::Cluster {
    let load_balancing_policy = Some(policies(configs));
    cds::Cluster { name: "c".to_owned(), load_balancing_policy, ..Default::default() }
}

fn decoded(pb: &cds::Cluster) -> Result<(Balancer, Weighing, Option<Duration>)> {
    let service = service::decode(pb)?.service;
    Ok((service.balancer, service.weighing.clone(), service.out_of_band))
}

fn locality(inner: LoadBalancingPolicy) -> Any {
    pack(&WrrLocality { endpoint_picking_policy: Some(inner) })
}

#[test]
fn all_of_it_is_said_in_envoys_words() {
    let weighing = Weighing {
        metrics: vec!["named_metrics.kv_cache_usage_perc".to_owned()],
        blackout: Duration::ZERO,
        expiration: Duration::from_secs(60),
        update_period: Duration::from_millis(500),
        error_penalty: 2.5,
    };
    let service = Service {
        balancer: Balancer::WeightedRoundRobin,
        weighing: weighing.clone(),
        out_of_band: Some(Duration::from_secs(5)),
        recovery: Recovery { slow_start: Duration::from_secs(7), ..Recovery::default() },
        outlier: None,
        ..Service::new("c", Protocol::Http2)
    };
    let pb = service::encode(&service);
    assert_eq!(pb.metadata, None);
    let policies = &pb.load_balancing_policy.as_ref().unwrap().policies;
    let [first, last] = policies.as_slice() else { panic!("{policies:?}") };
    let name = |policy: &Policy| policy.typed_extension_config.as_ref().unwrap().name.clone();
    assert_eq!(name(first), "envoy.load_balancing_policies.client_side_weighted_round_robin");
    // Whoever is too old for it takes turns.
    assert_eq!(name(last), "envoy.load_balancing_policies.round_robin");
    let config = first.typed_extension_config.as_ref().unwrap().typed_config.as_ref().unwrap();
    let config: ClientSideWeightedRoundRobin = unpack(config).unwrap();
    assert_eq!(config.enable_oob_load_report, bool_value(true));
    assert_eq!(config.oob_reporting_period, Some(duration(Duration::from_secs(5))));
    assert_eq!(config.metric_names_for_computing_utilization, weighing.metrics);
    let slow_start = config.slow_start_config.unwrap().slow_start_window;
    assert_eq!(slow_start, Some(duration(Duration::from_secs(7))));
    let expected = (Balancer::WeightedRoundRobin, weighing, Some(Duration::from_secs(5)));
    assert_eq!(decoded(&pb).unwrap(), expected);
}

#[test]
fn what_other_servers_say_is_obeyed_as_grpc_does() {
    let plain = ClientSideWeightedRoundRobin::default();
    let streamed = ClientSideWeightedRoundRobin {
        enable_oob_load_report: bool_value(true),
        ..Default::default()
    };
    let hasty = ClientSideWeightedRoundRobin {
        enable_oob_load_report: bool_value(true),
        oob_reporting_period: Some(duration(Duration::from_millis(1))),
        weight_update_period: Some(duration(Duration::from_millis(1))),
        ..Default::default()
    };
    let unused = ClientSideWeightedRoundRobin {
        oob_reporting_period: Some(duration(Duration::from_secs(1))),
        ..Default::default()
    };
    let default = Weighing::default();
    let shortest = Weighing { update_period: Duration::from_millis(100), ..Weighing::default() };
    for (pb, weighing, out_of_band) in [
        (plain, &default, None),
        (streamed, &default, Some(Duration::from_secs(10))),
        (hasty, &shortest, Some(Duration::from_millis(100))),
        (unused, &default, None),
    ] {
        let any = pack(&pb);
        let expected = (Balancer::WeightedRoundRobin, weighing.clone(), out_of_band);
        assert_eq!(decoded(&cluster(vec![any.clone()])).unwrap(), expected);
        // As gRPC's servers say it.
        let within = locality(policies(vec![any]));
        assert_eq!(decoded(&cluster(vec![within])).unwrap(), expected);
    }
}

#[test]
fn a_slow_start_is_heeded_within_a_locality_too() {
    let slow_start = Recovery { slow_start: Duration::from_secs(7), ..Recovery::default() };
    let pb = pack(&ClientSideWeightedRoundRobin {
        slow_start_config: encode_slow_start(&slow_start),
        ..Default::default()
    });
    for config in [pb.clone(), locality(policies(vec![pb]))] {
        let service = service::decode(&cluster(vec![config])).unwrap().service;
        assert_eq!(service.recovery.slow_start, Duration::from_secs(7));
    }
}

#[test]
fn what_cannot_be_is_refused_and_localities_within_localities_are_unknown() {
    let ours = || pack(&ClientSideWeightedRoundRobin::default());
    for penalty in [-1.0, f32::NAN, f32::INFINITY] {
        let pb = ClientSideWeightedRoundRobin {
            error_utilization_penalty: Some(FloatValue { value: penalty }),
            ..Default::default()
        };
        let error = decoded(&cluster(vec![pack(&pb)])).unwrap_err().to_string();
        assert!(error.contains("load_balancing_policy.error_utilization_penalty"), "{error}");
    }
    for (count, refused) in [(16, false), (17, true)] {
        let names = (0..count).map(|n| format!("named_metrics.{n}")).collect();
        let pb = ClientSideWeightedRoundRobin {
            metric_names_for_computing_utilization: names,
            ..Default::default()
        };
        let decoded = decoded(&cluster(vec![pack(&pb)])).map_err(|error| error.to_string());
        assert_eq!(decoded.is_err(), refused, "{count}");
        let named = decoded.err().map(|error| error.contains("metric_names_for_computing"));
        assert_eq!(named, refused.then_some(true));
    }
    for (streamed, refused) in [(true, true), (false, false)] {
        let pb = ClientSideWeightedRoundRobin {
            enable_oob_load_report: bool_value(streamed),
            oob_reporting_config: Some(Default::default()),
            ..Default::default()
        };
        assert_eq!(decoded(&cluster(vec![pack(&pb)])).is_err(), refused, "{streamed}");
    }
    let broken = Any { type_url: ClientSideWeightedRoundRobin::type_url(), value: vec![0xff] };
    assert!(decoded(&cluster(vec![broken])).is_err());
    for inner in [LoadBalancingPolicy::default(), policies(vec![locality(policies(vec![ours()]))])]
    {
        assert!(decoded(&cluster(vec![locality(inner.clone())])).is_err());
        // A policy that is not known is passed over.
        let pb = cluster(vec![locality(inner), ours()]);
        assert_eq!(decoded(&pb).unwrap().0, Balancer::WeightedRoundRobin);
    }
}
