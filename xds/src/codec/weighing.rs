//! [`Weighing`] ↔ Envoy's client-side weighted round robin, which gRPC obeys too (A58).
//!
//! Where localities have weights, it is said within `wrr_locality`, as gRPC's servers do.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{LoadBalancingPolicy, load_balancing_policy::Policy},
            core::v3::TypedExtensionConfig,
        },
        extensions::load_balancing_policies::{
            client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin,
            wrr_locality::v3::WrrLocality,
        },
    },
    google::protobuf::{Any, FloatValue},
};
use prost::Name;
use towpath_policies::model::{Service, Weighing, WeighingField};

use super::{
    common::{
        At, Result, bool_value, duration, optional_duration, pack, read_bool, refuse, refuse_if,
        unpack,
    },
    outlier::encode_slow_start,
};

pub(super) fn encode(service: &Service) -> Any {
    let weighing = &service.weighing;
    pack(&ClientSideWeightedRoundRobin {
        enable_oob_load_report: bool_value(service.out_of_band.is_some()),
        oob_reporting_period: service.out_of_band.map(duration),
        blackout_period: Some(duration(weighing.blackout)),
        weight_expiration_period: Some(duration(weighing.expiration)),
        weight_update_period: Some(duration(weighing.update_period)),
        error_utilization_penalty: Some(FloatValue { value: weighing.error_penalty }),
        metric_names_for_computing_utilization: weighing.metrics.clone(),
        slow_start_config: encode_slow_start(&service.recovery),
        ..Default::default()
    })
}

/// What weights are made of, and how often reports are asked for out of band; `None` when it is
/// another policy.
pub(super) fn decode(any: &Any) -> Result<Option<(Weighing, Option<Duration>)>> {
    if any.type_url != ClientSideWeightedRoundRobin::type_url() {
        return Ok(None);
    }
    let pb: ClientSideWeightedRoundRobin = unpack(any)?;
    let streamed = read_bool(pb.enable_oob_load_report.as_ref());
    let elsewhere = streamed && pb.oob_reporting_config.is_some();
    refuse_if(elsewhere, "oob_reporting_config", "reports are asked for where requests go")?;
    let time = |field, name| optional_duration(field, name);
    let default = Weighing::default();
    let update = time(pb.weight_update_period.as_ref(), "weight_update_period")?;
    let weighing = Weighing {
        metrics: pb.metric_names_for_computing_utilization,
        blackout: time(pb.blackout_period.as_ref(), "blackout_period")?.unwrap_or(default.blackout),
        expiration: time(pb.weight_expiration_period.as_ref(), "weight_expiration_period")?
            .unwrap_or(default.expiration),
        update_period: update.unwrap_or(default.update_period).max(Weighing::SHORTEST_UPDATE),
        error_penalty: pb.error_utilization_penalty.map_or(default.error_penalty, |p| p.value),
    };
    if let Err((field, why)) = weighing.check() {
        return refuse(why).at(match field {
            WeighingField::Metrics => "metric_names_for_computing_utilization",
            WeighingField::UpdatePeriod => "weight_update_period",
            WeighingField::ErrorPenalty => "error_utilization_penalty",
        });
    }
    let period = time(pb.oob_reporting_period.as_ref(), "oob_reporting_period")?;
    let (least, most) = Service::REPORT_INTERVALS.into_inner();
    let period = period.unwrap_or(USUAL_PERIOD).clamp(least, most);
    Ok(Some((weighing, streamed.then_some(period))))
}

/// A policy that picks within a locality, which is drawn by weight before.
pub(super) fn encode_within_locality(picks: Policy) -> Policy {
    let within = LoadBalancingPolicy { policies: vec![picks] };
    Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: "envoy.load_balancing_policies.wrr_locality".to_owned(),
            typed_config: Some(pack(&WrrLocality { endpoint_picking_policy: Some(within) })),
        }),
    }
}

/// What picks within a locality, where that is what a policy says.
pub(super) fn within_locality(any: &Any) -> Result<Option<LoadBalancingPolicy>> {
    if any.type_url != WrrLocality::type_url() {
        return Ok(None);
    }
    let pb: WrrLocality = unpack(any)?;
    Ok(Some(pb.endpoint_picking_policy.unwrap_or_default()))
}

/// gRPC's default.
const USUAL_PERIOD: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
