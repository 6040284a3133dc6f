//! [`ServiceLoad`] ↔ `ClusterStats`, and the messages of `StreamLoadStats` around them.
//!
//! Utilisations have fields of their own in the load of a locality, and ride among the named metrics
//! in that of an endpoint. What is named in a load report (ORCA) has `named_metrics.` before its name
//! on the wire (gRFC A85), or nothing (A64).

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use envoy_types::pb::envoy::{
    config::{
        core::v3 as core,
        endpoint::v3::{
            ClusterStats, EndpointLoadMetricStats, UnnamedEndpointLoadMetricStats,
            UpstreamEndpointStats, UpstreamLocalityStats,
        },
    },
    service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse},
};
use towpath_policies::model::Locality;

use super::common::{address, duration, optional_duration, read_address};
use crate::{
    load::{
        APPLICATION, BYTES, CPU, EndpointLoad, GOODPUT, Load, LocalityLoad, MEMORY, ServiceLoad,
        Sum, Terms,
    },
    wire::{MAX_NAME_BYTES, MAX_NAMES},
};

pub(crate) fn encode_terms(terms: &Terms) -> LoadStatsResponse {
    LoadStatsResponse {
        clusters: terms.services.iter().flatten().cloned().collect(),
        send_all_clusters: terms.services.is_none(),
        load_reporting_interval: Some(duration(terms.every)),
        report_endpoint_granularity: terms.per_endpoint,
    }
}

/// An interval that is none, or none that can be kept, becomes one that can.
pub(crate) fn decode_terms(pb: LoadStatsResponse) -> Terms {
    let every = optional_duration(pb.load_reporting_interval.as_ref(), "load_reporting_interval");
    let every = every.ok().flatten().filter(|every| !every.is_zero());
    let names = pb.clusters.into_iter().take(MAX_NAMES).filter(|name| is_name(name));
    Terms {
        services: (!pb.send_all_clusters).then(|| names.collect()),
        every: every
            .unwrap_or(Terms::USUAL_INTERVAL)
            .clamp(Terms::SHORTEST_INTERVAL, Terms::LONGEST_INTERVAL),
        per_endpoint: pb.report_endpoint_granularity,
    }
}

pub(crate) fn encode_report(node: Option<core::Node>, loads: Vec<ServiceLoad>) -> LoadStatsRequest {
    LoadStatsRequest { node, cluster_stats: loads.into_iter().map(encode).collect() }
}

/// What cannot be is left out, and what is beyond measure. Of a service only the first entry counts.
pub(crate) fn decode_report(stats: Vec<ClusterStats>) -> Vec<ServiceLoad> {
    let mut seen = HashSet::new();
    let named = stats.into_iter().filter(|pb| is_name(&pb.cluster_name));
    let each = named.take(MAX_NAMES).filter(|pb| seen.insert(pb.cluster_name.clone()));
    each.map(decode).collect()
}

fn encode(load: ServiceLoad) -> ClusterStats {
    ClusterStats {
        cluster_name: load.service,
        upstream_locality_stats: load.localities.into_iter().map(encode_locality).collect(),
        total_dropped_requests: load.dropped,
        load_report_interval: Some(duration(load.over)),
        ..Default::default()
    }
}

fn decode(pb: ClusterStats) -> ServiceLoad {
    let over = optional_duration(pb.load_report_interval.as_ref(), "load_report_interval");
    let mut room = MOST_ENDPOINTS;
    let localities = pb.upstream_locality_stats.into_iter().take(MOST_LOCALITIES);
    ServiceLoad {
        service: pb.cluster_name,
        over: over.ok().flatten().unwrap_or(Duration::ZERO),
        dropped: possible(pb.total_dropped_requests),
        localities: localities.map(|pb| decode_locality(pb, &mut room)).collect(),
    }
}

fn encode_locality(of: LocalityLoad) -> UpstreamLocalityStats {
    let Locality { region, zone, sub_zone } = of.locality;
    let mut metrics = of.load.metrics;
    let mut own = |name| {
        metrics.remove(name).map(|Sum { count, total }| UnnamedEndpointLoadMetricStats {
            num_requests_finished_with_metric: count,
            total_metric_value: total,
        })
    };
    UpstreamLocalityStats {
        locality: Some(core::Locality { region, zone, sub_zone }),
        priority: of.priority,
        total_issued_requests: of.load.issued,
        total_successful_requests: of.load.succeeded,
        total_error_requests: of.load.failed,
        total_requests_in_progress: of.load.in_progress,
        cpu_utilization: own(CPU),
        mem_utilization: own(MEMORY),
        application_utilization: own(APPLICATION),
        load_metric_stats: encode_metrics(metrics),
        upstream_endpoint_stats: of.endpoints.into_iter().map(encode_endpoint).collect(),
        ..Default::default()
    }
}

fn decode_locality(pb: UpstreamLocalityStats, room: &mut usize) -> LocalityLoad {
    let core::Locality { region, zone, sub_zone } = pb.locality.unwrap_or_default();
    let mut metrics = decode_metrics(pb.load_metric_stats);
    for (name, own) in [
        (CPU, pb.cpu_utilization),
        (MEMORY, pb.mem_utilization),
        (APPLICATION, pb.application_utilization),
    ] {
        let own = own.and_then(|own| {
            possible_sum(own.num_requests_finished_with_metric, own.total_metric_value)
        });
        metrics.extend(own.map(|sum| (name.to_owned(), sum)));
    }
    let endpoints = pb.upstream_endpoint_stats.into_iter().take(*room);
    let endpoints: Vec<EndpointLoad> = endpoints.filter_map(decode_endpoint).collect();
    *room -= endpoints.len();
    LocalityLoad {
        locality: Locality { region, zone, sub_zone },
        priority: pb.priority,
        load: Load {
            issued: possible(pb.total_issued_requests),
            succeeded: possible(pb.total_successful_requests),
            failed: possible(pb.total_error_requests),
            in_progress: possible(pb.total_requests_in_progress),
            metrics,
        },
        endpoints,
    }
}

fn encode_endpoint(of: EndpointLoad) -> UpstreamEndpointStats {
    UpstreamEndpointStats {
        address: Some(address(of.address)),
        total_issued_requests: of.load.issued,
        total_successful_requests: of.load.succeeded,
        total_error_requests: of.load.failed,
        total_requests_in_progress: of.load.in_progress,
        load_metric_stats: encode_metrics(of.load.metrics),
        ..Default::default()
    }
}

fn decode_endpoint(pb: UpstreamEndpointStats) -> Option<EndpointLoad> {
    let load = Load {
        issued: possible(pb.total_issued_requests),
        succeeded: possible(pb.total_successful_requests),
        failed: possible(pb.total_error_requests),
        in_progress: possible(pb.total_requests_in_progress),
        metrics: decode_metrics(pb.load_metric_stats),
    };
    Some(EndpointLoad { address: read_address(pb.address.as_ref()).ok()?, load })
}

fn encode_metrics(metrics: BTreeMap<String, Sum>) -> Vec<EndpointLoadMetricStats> {
    let metric = |(name, Sum { count, total }): (String, Sum)| EndpointLoadMetricStats {
        metric_name: if PLAIN.contains(&name.as_str()) { name } else { format!("{NAMED}{name}") },
        num_requests_finished_with_metric: count,
        total_metric_value: total,
    };
    metrics.into_iter().map(metric).collect()
}

fn decode_metrics(metrics: Vec<EndpointLoadMetricStats>) -> BTreeMap<String, Sum> {
    let metric = |pb: EndpointLoadMetricStats| {
        let name = match pb.metric_name.strip_prefix(NAMED) {
            Some(name) => name.to_owned(),
            None => pb.metric_name,
        };
        let sum = possible_sum(pb.num_requests_finished_with_metric, pb.total_metric_value)?;
        (1..=LONGEST_METRIC).contains(&name.len()).then_some((name, sum))
    };
    metrics.into_iter().filter_map(metric).take(MOST_METRICS).collect()
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
}

fn possible(count: u64) -> u64 {
    if count > MOST_REQUESTS { 0 } else { count }
}

/// `None` for what is no number, below 0, or without end.
fn possible_sum(count: u64, total: f64) -> Option<Sum> {
    let possible = (1..=MOST_REQUESTS).contains(&count) && (0.0..=MOST_TOTAL).contains(&total);
    possible.then_some(Sum { count, total })
}

const NAMED: &str = "named_metrics.";
/// Those that are not named in a load report.
const PLAIN: [&str; 5] = [CPU, MEMORY, APPLICATION, BYTES, GOODPUT];
/// Of a service.
const MOST_LOCALITIES: usize = 1_000;
/// Of a service.
const MOST_ENDPOINTS: usize = 20_000;
/// Of an endpoint or a locality.
const MOST_METRICS: usize = 16;
/// In bytes.
const LONGEST_METRIC: usize = 128;
/// In one report.
const MOST_REQUESTS: u64 = 1_000_000_000_000;
/// An exabyte.
const MOST_TOTAL: f64 = 1e18;

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf;
    use proptest::{collection::vec, prelude::*};
    use prost::Message;

    use super::*;

    fn sum() -> impl Strategy<Value = Sum> {
        (1..=MOST_REQUESTS, 0.0..=MOST_TOTAL).prop_map(|(count, total)| Sum { count, total })
    }

    fn load() -> impl Strategy<Value = Load> {
        let count = || 0..=MOST_REQUESTS;
        let name = prop_oneof![
            prop::sample::select(PLAIN.to_vec()).prop_map(str::to_owned),
            "[a-z_.]{1,20}",
        ];
        let metrics = prop::collection::btree_map(name, sum(), 0..5);
        (count(), count(), count(), count(), metrics).prop_map(
            |(issued, succeeded, failed, in_progress, metrics)| Load {
                issued,
                succeeded,
                failed,
                in_progress,
                metrics,
            },
        )
    }

    fn service() -> impl Strategy<Value = ServiceLoad> {
        let address = any::<([u8; 4], u16)>().prop_map(std::net::SocketAddr::from);
        let endpoint = (address, load()).prop_map(|(address, load)| EndpointLoad { address, load });
        let place = ("[a-z]{0,4}", "[a-z]{0,4}", "[a-z]{0,4}")
            .prop_map(|(region, zone, sub_zone)| Locality { region, zone, sub_zone });
        let locality = (place, 0..3u32, load(), vec(endpoint, 0..4)).prop_map(
            |(locality, priority, load, endpoints)| LocalityLoad {
                locality,
                priority,
                load,
                endpoints,
            },
        );
        let millis = (0..100_000u64).prop_map(Duration::from_millis);
        ("[a-z/.]{1,20}", millis, 0..=MOST_REQUESTS, vec(locality, 0..4)).prop_map(
            |(service, over, dropped, localities)| ServiceLoad {
                service,
                over,
                dropped,
                localities,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_reported_arrives(mut loads in vec(service(), 0..4)) {
            loads.sort_by(|a, b| a.service.cmp(&b.service));
            loads.dedup_by(|a, b| a.service == b.service);
            let pb = encode_report(None, loads.clone());
            let pb = LoadStatsRequest::decode(pb.encode_to_vec().as_slice()).unwrap();
            prop_assert_eq!(decode_report(pb.cluster_stats), loads);
        }

        #[test]
        fn whatever_comes_is_within_bounds(bytes: Vec<u8>) {
            if let Ok(pb) = LoadStatsRequest::decode(bytes.as_slice()) {
                let loads = decode_report(pb.cluster_stats);
                let again = encode_report(None, loads.clone()).cluster_stats;
                prop_assert_eq!(decode_report(again), loads);
            }
            if let Ok(pb) = LoadStatsResponse::decode(bytes.as_slice()) {
                let every = decode_terms(pb).every;
                prop_assert!(every >= Terms::SHORTEST_INTERVAL && every <= Terms::LONGEST_INTERVAL);
            }
        }

        #[test]
        fn terms_arrive(
            names: Option<std::collections::BTreeSet<String>>,
            millis in 100..100_000u64,
            per_endpoint: bool,
        ) {
            let services = names.map(|names| names.into_iter().filter(|n| !n.is_empty()).collect());
            let terms = Terms { services, every: Duration::from_millis(millis), per_endpoint };
            prop_assert_eq!(decode_terms(encode_terms(&terms)), terms);
        }
    }

    #[test]
    fn intervals_that_cannot_be_kept_become_such_that_can() {
        for (seconds, nanos, millis) in [
            (0, 0, 10_000),
            (-1, 0, 10_000),
            (0, -5, 10_000),
            (0, 1, 100),
            (5, 0, 5_000),
            (i64::MAX, 0, 3_600_000),
        ] {
            let load_reporting_interval = Some(protobuf::Duration { seconds, nanos });
            let pb = LoadStatsResponse { load_reporting_interval, ..Default::default() };
            assert_eq!(decode_terms(pb).every, Duration::from_millis(millis), "{seconds} {nanos}");
        }
        assert_eq!(decode_terms(LoadStatsResponse::default()).every, Terms::USUAL_INTERVAL);
    }

    #[test]
    fn a_service_that_is_named_again_counts_once() {
        let cluster = |name: &str, total_dropped_requests| ClusterStats {
            cluster_name: name.to_owned(),
            total_dropped_requests,
            ..Default::default()
        };
        let loads = decode_report(vec![cluster("s", 1), cluster("t", 2), cluster("s", 4)]);
        let told: Vec<_> = loads.iter().map(|load| (load.service.as_str(), load.dropped)).collect();
        assert_eq!(told, [("s", 1), ("t", 2)]);
    }

    #[test]
    fn figures_that_cannot_be_are_left_out_and_the_rest_stays() {
        let metric = |name: &str, count, total| EndpointLoadMetricStats {
            metric_name: name.to_owned(),
            num_requests_finished_with_metric: count,
            total_metric_value: total,
        };
        let mut many: Vec<_> = (0..100).map(|i| metric(&i.to_string(), 1, 1.0)).collect();
        many.insert(0, metric("", 1, 1.0));
        let odd = UpstreamEndpointStats {
            address: Some(address(([10, 0, 0, 1], 1).into())),
            total_issued_requests: u64::MAX,
            total_successful_requests: 7,
            load_metric_stats: vec![
                metric("nan", 1, f64::NAN),
                metric("below", 1, -1.0),
                metric("endless", 1, f64::INFINITY),
                metric("absurd", 1, 1e300),
                metric("none", 0, 1.0),
                metric(&"long".repeat(100), 1, 1.0),
                metric("named_metrics.towpath.goodput_factor", 2, 0.5),
            ],
            ..Default::default()
        };
        let nowhere = UpstreamEndpointStats { total_successful_requests: 7, ..Default::default() };
        let stats = UpstreamLocalityStats {
            upstream_endpoint_stats: vec![odd, nowhere],
            load_metric_stats: many,
            ..Default::default()
        };
        let cluster = |name: &str, upstream_locality_stats| ClusterStats {
            cluster_name: name.to_owned(),
            upstream_locality_stats,
            ..Default::default()
        };
        let loads = decode_report(vec![cluster("", vec![]), cluster("s", vec![stats])]);
        let [ServiceLoad { localities, .. }] = loads.as_slice() else { panic!("{loads:?}") };
        assert_eq!(localities[0].load.metrics.len(), MOST_METRICS);
        let [EndpointLoad { load, .. }] = localities[0].endpoints.as_slice() else { panic!() };
        let factor = (crate::load::GOODPUT_FACTOR.to_owned(), Sum { count: 2, total: 0.5 });
        let expected = Load { succeeded: 7, metrics: [factor].into(), ..Load::default() };
        assert_eq!(*load, expected);
    }
}
