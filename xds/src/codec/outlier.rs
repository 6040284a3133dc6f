//! Ejection of endpoints, and the way back.

use envoy_types::pb::envoy::{
    config::cluster::v3::{self as cds, LoadBalancingPolicy, OutlierDetection},
    extensions::load_balancing_policies::{
        client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin,
        common::v3::SlowStartConfig, least_request::v3::LeastRequest, round_robin::v3::RoundRobin,
    },
    r#type::v3::Percent,
};
use prost::{Message, Name};
use towpath_policies::model::{Outlier, Recovery, SuccessRate};

use super::{
    common::{Result, bool_value, duration, optional_duration, read_u32, u32_value},
    weighing,
};

/// What Envoy can say of it; latency, goodput and the margin ride as metadata.
pub(super) fn encode(outlier: &Outlier) -> OutlierDetection {
    let rate = outlier.success_rate;
    OutlierDetection {
        consecutive_5xx: u32_value(outlier.consecutive_failures),
        enforcing_consecutive_5xx: u32_value(100),
        base_ejection_time: Some(duration(outlier.base_ejection)),
        max_ejection_time: Some(duration(outlier.max_ejection)),
        max_ejection_percent: u32_value(outlier.max_ejected_percent.min(100)),
        always_eject_one_host: bool_value(true),
        interval: Some(duration(outlier.interval)),
        // On by default in Envoy, so that off must be said.
        enforcing_success_rate: u32_value(if rate.is_some() { 100 } else { 0 }),
        success_rate_minimum_hosts: u32_value(outlier.min_endpoints),
        success_rate_request_volume: rate.and_then(|r| u32_value(r.min_requests)),
        success_rate_stdev_factor: rate.and_then(|r| u32_value(r.deviation_permille)),
        ..Default::default()
    }
}

pub(super) fn decode(pb: Option<&OutlierDetection>) -> Result<Option<Outlier>> {
    let Some(pb) = pb else { return Ok(None) };
    let default = Outlier::default();
    let enforced = |percent: Option<u32>| percent != Some(0);
    let in_a_row = enforced(read_u32(pb.enforcing_consecutive_5xx.as_ref()));
    let rate = SuccessRate::default();
    let success_rate =
        enforced(read_u32(pb.enforcing_success_rate.as_ref())).then(|| SuccessRate {
            min_requests: read_u32(pb.success_rate_request_volume.as_ref())
                .unwrap_or(rate.min_requests)
                .max(1),
            deviation_permille: read_u32(pb.success_rate_stdev_factor.as_ref())
                .unwrap_or(rate.deviation_permille),
            ..rate
        });
    if !in_a_row && success_rate.is_none() {
        return Ok(None);
    }
    let base = optional_duration(pb.base_ejection_time.as_ref(), "base_ejection_time")?;
    let max = optional_duration(pb.max_ejection_time.as_ref(), "max_ejection_time")?;
    let interval = optional_duration(pb.interval.as_ref(), "interval")?;
    let base = base.unwrap_or(default.base_ejection);
    let failures = read_u32(pb.consecutive_5xx.as_ref()).unwrap_or(default.consecutive_failures);
    Ok(Some(Outlier {
        consecutive_failures: if in_a_row { failures.max(1) } else { u32::MAX },
        base_ejection: base,
        max_ejection: max.unwrap_or_else(|| default.max_ejection.max(base)),
        // Envoy's default.
        max_ejected_percent: read_u32(pb.max_ejection_percent.as_ref()).unwrap_or(10).min(100),
        interval: interval.filter(|i| !i.is_zero()).unwrap_or(default.interval),
        // Envoy's default.
        min_endpoints: read_u32(pb.success_rate_minimum_hosts.as_ref()).unwrap_or(5).max(2),
        success_rate,
        // Whoever cannot ask for them did not.
        latency: None,
        goodput: None,
    }))
}

/// Envoy's panic threshold. There it also overrules what the control plane says of an endpoint.
pub(super) fn encode_panic(recovery: &Recovery) -> Percent {
    Percent { value: recovery.panic_percent.into() }
}

pub(super) fn encode_slow_start(recovery: &Recovery) -> Option<SlowStartConfig> {
    (!recovery.slow_start.is_zero()).then(|| SlowStartConfig {
        slow_start_window: Some(duration(recovery.slow_start)),
        min_weight_percent: Some(Percent { value: recovery.slow_start_floor_percent.into() }),
        ..Default::default()
    })
}

/// Envoy's slow start is for new hosts too; ours is for those that come back.
pub(super) fn decode_recovery(pb: &cds::Cluster) -> Result<Recovery> {
    let panic = pb.common_lb_config.as_ref().and_then(|c| c.healthy_panic_threshold);
    let policies = pb.load_balancing_policy.as_ref();
    let slow_start = policies.and_then(|list| said_slow_start(list, true)).unwrap_or_default();
    let window = optional_duration(slow_start.slow_start_window.as_ref(), "slow_start_window")?;
    Ok(Recovery {
        slow_start: window.unwrap_or_default(),
        // Both are Envoy's defaults.
        slow_start_floor_percent: slow_start
            .min_weight_percent
            .map_or(10, |p| super::upstream::whole_percent(p.value).clamp(1, 100)),
        panic_percent: panic.map_or(50, |p| super::upstream::whole_percent(p.value).min(100)),
    })
}

/// The slow start of the first policy that says one; `outermost` ones may hold one for localities.
fn said_slow_start(list: &LoadBalancingPolicy, outermost: bool) -> Option<SlowStartConfig> {
    let configs = list.policies.iter().filter_map(|p| p.typed_extension_config.as_ref());
    configs.filter_map(|config| config.typed_config.as_ref()).find_map(|any| {
        let bytes = any.value.as_slice();
        if any.type_url == LeastRequest::type_url() {
            LeastRequest::decode(bytes).ok()?.slow_start_config
        } else if any.type_url == RoundRobin::type_url() {
            RoundRobin::decode(bytes).ok()?.slow_start_config
        } else if any.type_url == ClientSideWeightedRoundRobin::type_url() {
            ClientSideWeightedRoundRobin::decode(bytes).ok()?.slow_start_config
        } else if outermost {
            said_slow_start(&weighing::within_locality(any).ok()??, false)
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use towpath_policies::model::{Goodput, Protocol, Service};

    use super::*;
    use crate::codec::service;

    #[test]
    fn what_envoy_can_say_is_said_in_it_and_the_rest_rides_along() {
        let mut ours = Service::new("s", Protocol::Http1);
        ours.recovery.slow_start = Duration::from_secs(7);
        ours.recovery.panic_percent = 33;
        let outlier = ours.outlier.insert(Outlier::default());
        outlier.interval = Duration::from_secs(5);
        outlier.min_endpoints = 4;
        outlier.success_rate = Some(SuccessRate { min_requests: 20, ..SuccessRate::default() });
        outlier.goodput = Some(Goodput { below_percent: 40, ..Goodput::default() });
        let mut pb = service::encode(&ours);
        let said = pb.outlier_detection.clone().unwrap();
        assert_eq!(read_u32(said.enforcing_success_rate.as_ref()), Some(100));
        assert_eq!(read_u32(said.success_rate_minimum_hosts.as_ref()), Some(4));
        assert_eq!(read_u32(said.success_rate_request_volume.as_ref()), Some(20));
        assert_eq!(read_u32(said.success_rate_stdev_factor.as_ref()), Some(1_900));
        assert_eq!(said.interval.unwrap().seconds, 5);
        let panic = pb.common_lb_config.as_ref().unwrap().healthy_panic_threshold.unwrap();
        assert!((panic.value - 33.0).abs() < 1e-9);
        assert_eq!(service::decode(&pb).unwrap().service.outlier, ours.outlier);

        pb.metadata = None;
        let standard = service::decode(&pb).unwrap().service;
        let outlier = Outlier { goodput: None, ..ours.outlier.unwrap() };
        assert_eq!(standard.outlier, Some(outlier));
        assert_eq!(standard.recovery, ours.recovery);
    }

    #[test]
    fn each_way_of_ejection_can_be_off() {
        let zero = || u32_value(0);
        let default = OutlierDetection::default;
        let both = decode(Some(&default())).unwrap().unwrap();
        assert_eq!((both.consecutive_failures, both.min_endpoints), (5, 5));
        assert_eq!(both.success_rate, Some(SuccessRate::default()));
        assert_eq!((both.latency, both.goodput), (None, None));
        let row = OutlierDetection { enforcing_success_rate: zero(), ..default() };
        assert_eq!(decode(Some(&row)).unwrap().unwrap().success_rate, None);
        let rate = OutlierDetection { enforcing_consecutive_5xx: zero(), ..default() };
        assert_eq!(decode(Some(&rate)).unwrap().unwrap().consecutive_failures, u32::MAX);
        let none = OutlierDetection { enforcing_consecutive_5xx: zero(), ..row };
        assert_eq!(decode(Some(&none)).unwrap(), None);
        assert_eq!(decode(None).unwrap(), None);
    }

    #[test]
    fn a_foreign_cluster_panics_and_starts_as_envoy_would() {
        let foreign = decode_recovery(&cds::Cluster::default()).unwrap();
        let envoys = Recovery {
            slow_start: Duration::ZERO,
            slow_start_floor_percent: 10,
            panic_percent: 50,
        };
        assert_eq!(foreign, envoys);
    }
}
