//! Load reports of endpoints (ORCA, gRFC A51): `xds.data.orca.v3.OrcaLoadReport`, which `envoy-types`
//! lacks.
//!
//! Knows neither headers nor what a report is used for.

use std::{collections::BTreeMap, time::Duration};

use envoy_types::pb::google::protobuf;
use prost::Message;

/// Ours among the named metrics: the share of its goodput that the endpoint has, from 0 to 1, by the
/// health of its accelerators.
pub const GOODPUT_FACTOR: &str = "towpath.goodput_factor";
/// Among the named metrics: the energy that goes with a byte through the endpoint's machine, from 0 to 0.001.
pub const JOULES_PER_BYTE: &str = "towpath.joules_per_byte";

/// What an endpoint says of its load. As in protobuf, a number that is 0 says nothing; an entry of
/// a map that is 0 does.
#[derive(Clone, PartialEq, Message)]
pub struct LoadReport {
    /// Share of the CPU in use; may be more than 1.
    #[prost(double, tag = "1")]
    pub cpu_utilization: f64,
    /// Share of the memory in use.
    #[prost(double, tag = "2")]
    pub mem_utilization: f64,
    /// Requests per second, before `rps_fractional` came.
    #[prost(uint64, tag = "3")]
    pub rps: u64,
    /// What this request cost, by name.
    #[prost(btree_map = "string, double", tag = "4")]
    pub request_cost: BTreeMap<String, f64>,
    /// Shares of other resources in use, by name.
    #[prost(btree_map = "string, double", tag = "5")]
    pub utilization: BTreeMap<String, f64>,
    /// Requests per second.
    #[prost(double, tag = "6")]
    pub rps_fractional: f64,
    /// Errors per second.
    #[prost(double, tag = "7")]
    pub eps: f64,
    /// Whatever else, by name.
    #[prost(btree_map = "string, double", tag = "8")]
    pub named_metrics: BTreeMap<String, f64>,
    /// Share of what the application can do that it does; may be more than 1.
    #[prost(double, tag = "9")]
    pub application_utilization: f64,
}

/// `xds.service.orca.v3.OrcaLoadReportRequest`. The names of costs it may ask for are those of
/// requests, of which none stands behind a report out of band.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, optional, tag = "1")]
    report_interval: Option<protobuf::Duration>,
}

/// How often a request for reports out of band wants one; zero where it does not say so, `None`
/// when it is none.
pub fn report_interval(request: &[u8]) -> Option<Duration> {
    let Some(interval) = Request::decode(request).ok()?.report_interval else {
        return Some(Duration::ZERO);
    };
    let nanos = u32::try_from(interval.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(interval.seconds).ok()?, nanos))
}

/// A request for a report out of band each `interval`.
pub fn report_request(interval: Duration) -> Vec<u8> {
    let interval = protobuf::Duration {
        seconds: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(interval.subsec_nanos()).unwrap_or(0),
    };
    Request { report_interval: Some(interval) }.encode_to_vec()
}

impl LoadReport {
    /// Reads the message; `None` when it is none. What it says that cannot be is left out.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut report = Self::decode(bytes).ok()?;
        report.keep_possible();
        Some(report)
    }

    /// The message.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Leaves out what cannot be: numbers that are none, loads below 0, shares of a whole above 1.
    /// What a metric of its own means only its maker knows, so it may be below 0.
    pub fn keep_possible(&mut self) {
        let possible = |load: f64| load.is_finite() && load >= 0.0;
        for load in [
            &mut self.cpu_utilization,
            &mut self.mem_utilization,
            &mut self.rps_fractional,
            &mut self.eps,
            &mut self.application_utilization,
        ] {
            if !possible(*load) {
                *load = 0.0;
            }
        }
        if self.mem_utilization > 1.0 {
            self.mem_utilization = 0.0;
        }
        self.request_cost.retain(|name, cost| !name.is_empty() && possible(*cost));
        self.utilization.retain(|name, share| !name.is_empty() && (0.0..=1.0).contains(share));
        self.named_metrics.retain(|name, metric| !name.is_empty() && metric.is_finite());
    }

    /// What `other` says where this says nothing.
    pub fn fill_in(&mut self, other: Self) {
        let fill = |load: &mut f64, other: f64| {
            if *load == 0.0 {
                *load = other;
            }
        };
        fill(&mut self.cpu_utilization, other.cpu_utilization);
        fill(&mut self.mem_utilization, other.mem_utilization);
        if self.rps == 0 {
            fill(&mut self.rps_fractional, other.rps_fractional);
        }
        fill(&mut self.eps, other.eps);
        fill(&mut self.application_utilization, other.application_utilization);
        for (ours, others) in [
            (&mut self.request_cost, other.request_cost),
            (&mut self.utilization, other.utilization),
            (&mut self.named_metrics, other.named_metrics),
        ] {
            for (name, value) in others {
                ours.entry(name).or_insert(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By the field numbers of `orca_load_report.proto`:
    /// `cpu_utilization: 0.3, mem_utilization: 0.8, rps_fractional: 10, named_metrics {custom_metric_util: 0.4}`.
    const BYTES: &[u8] =
        b"\x09\x33\x33\x33\x33\x33\x33\xd3\x3f\x11\x9a\x99\x99\x99\x99\x99\xe9\x3f\
        \x31\x00\x00\x00\x00\x00\x00\x24\x40\
        \x42\x1d\x0a\x12custom_metric_util\x11\x9a\x99\x99\x99\x99\x99\xd9\x3f";

    #[test]
    fn the_message_is_the_one_that_others_write() {
        let report = LoadReport {
            cpu_utilization: 0.3,
            mem_utilization: 0.8,
            rps_fractional: 10.0,
            named_metrics: [("custom_metric_util".to_owned(), 0.4)].into(),
            ..LoadReport::default()
        };
        assert_eq!(LoadReport::from_bytes(BYTES).as_ref(), Some(&report));
        assert_eq!(report.to_bytes(), BYTES);
    }

    #[test]
    fn an_interval_is_read_and_one_that_cannot_be_is_no_request() {
        for (request, interval) in [
            (&b""[..], Some(Duration::ZERO)),
            (b"\x0a\x02\x08\x05", Some(Duration::from_secs(5))),
            (b"\x0a\x05\x10\x80\xc2\xd7\x2f", Some(Duration::from_millis(100))),
            // A name of a cost.
            (b"\x12\x01c", Some(Duration::ZERO)),
            // -1 s, and a second of nanoseconds.
            (b"\x0a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", None),
            (b"\x0a\x06\x10\x80\x94\xeb\xdc\x03", None),
            (b"\x0a\x05\x08", None),
        ] {
            assert_eq!(report_interval(request), interval, "{request:?}");
        }
        for interval in [Duration::from_millis(100), Duration::from_secs(5), Duration::new(9, 1)] {
            assert_eq!(report_interval(&report_request(interval)), Some(interval));
        }
    }

    #[test]
    fn what_cannot_be_is_left_out_and_the_rest_stays() {
        let named = |value| ("n".to_owned(), value);
        let mut report = LoadReport {
            cpu_utilization: f64::NAN,
            mem_utilization: 1.5,
            rps_fractional: -1.0,
            eps: f64::INFINITY,
            application_utilization: 1.5,
            request_cost: [named(-1.0), ("c".into(), 3487.0)].into(),
            utilization: [named(1.01), ("u".into(), 1.0)].into(),
            named_metrics: [named(f64::NAN), ("m".into(), -2.0), (String::new(), 1.0)].into(),
            ..LoadReport::default()
        };
        report.keep_possible();
        let rest = LoadReport {
            application_utilization: 1.5,
            request_cost: [("c".into(), 3487.0)].into(),
            utilization: [("u".into(), 1.0)].into(),
            named_metrics: [("m".into(), -2.0)].into(),
            ..LoadReport::default()
        };
        assert_eq!(report, rest);
    }

    #[test]
    fn the_application_is_right_and_the_sidecar_fills_in() {
        let mut app = LoadReport {
            cpu_utilization: 0.5,
            named_metrics: [("kv_cache_usage_perc".into(), 0.9), ("both".into(), 0.0)].into(),
            ..LoadReport::default()
        };
        app.fill_in(LoadReport {
            cpu_utilization: 0.1,
            mem_utilization: 0.2,
            named_metrics: [("both".into(), 1.0), ("sidecar".into(), 2.0)].into(),
            ..LoadReport::default()
        });
        assert_eq!((app.cpu_utilization, app.mem_utilization), (0.5, 0.2));
        let named: Vec<_> = app.named_metrics.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        assert_eq!(named, [("both", 0.0), ("kv_cache_usage_perc", 0.9), ("sidecar", 2.0)]);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_no_report_or_one_of_numbers_that_can_be(bytes: Vec<u8>) {
            if let Some(report) = LoadReport::from_bytes(&bytes) {
                let mut again = report.clone();
                again.keep_possible();
                prop_assert_eq!(again, report);
            }
        }
    }
}
