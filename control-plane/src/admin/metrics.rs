//! Prometheus text exposition, version 0.0.4.

use std::fmt::Write as _;

use crate::status::{APPLY_BOUNDS, EndpointFigures, ServiceFigures, Tracker};

/// All metrics; `linkerd` is the number of streams of Linkerd's proxies, where they are served.
pub(super) fn text(tracker: &Tracker, linkerd: Option<usize>) -> String {
    let status = tracker.status();
    let counters = &status.counters;
    let mut page = Page(String::with_capacity(4096));
    let in_sync = status.proxies.iter().filter(|proxy| proxy.in_sync).count();
    let refusing = status.proxies.iter().filter(|proxy| proxy.nack.is_some()).count();
    page.gauge("ready", "Whether policies are served", u8::from(status.ready));
    page.gauge("proxies_connected", "Streams of proxies", status.proxies.len());
    if let Some(streams) = linkerd {
        page.gauge("linkerd_streams", "Destinations that Linkerd's proxies follow", streams);
    }
    page.gauge("proxies_in_sync", "Of these: hold all of the newest version", in_sync);
    page.gauge("proxies_refusing", "Of these: refused something that still stands", refusing);
    let rejected = u8::from(status.rejected.is_some());
    page.gauge("rejected", "Whether the newest version of the source is not valid", rejected);
    page.gauge("source_failures_in_a_row", "Looks at the source", status.source.failures);
    page.counter("snapshots_total", "Versions published", counters.snapshots);
    page.counter("rejects_total", "Versions that were not valid", counters.rejects);
    page.counter(
        "source_failures_total",
        "Looks at the source that failed",
        counters.source_failures,
    );
    page.counter("streams_total", "Streams accepted", counters.streams);
    page.counter("acks_total", "Responses acknowledged", counters.acks);
    page.counter("nacks_total", "Responses refused", counters.nacks);
    page.counter("dns_failures_total", "Questions to DNS that failed", counters.dns_failures);
    page.apply_seconds(tracker);
    page.loads(&status.loads);
    page.0
}

struct Page(String);

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.single(name, help, "gauge", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.single(name, help, "counter", value);
    }

    fn single(&mut self, name: &str, help: &str, kind: &str, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _ = write!(
            self.0,
            "# HELP towpath_control_plane_{name} {help}.\n\
             # TYPE towpath_control_plane_{name} {kind}\n\
             towpath_control_plane_{name} {value}\n"
        );
    }

    /// What clients report, by service and endpoint.
    fn loads(&mut self, loads: &[ServiceFigures]) {
        let services = |value: fn(&ServiceFigures) -> f64| {
            loads.iter().map(move |of| (format!("service={}", quoted(&of.service)), value(of)))
        };
        self.series("load_dropped_per_second", DROPPED, services(|of| of.dropped_per_second));
        let endpoints = |value: fn(&EndpointFigures) -> f64| {
            each_endpoint(loads).map(move |(labels, of)| (labels, value(of)))
        };
        self.series("load_requests_per_second", ENDED, endpoints(|of| of.requests_per_second));
        self.series("load_errors_per_second", FAILED, endpoints(|of| of.errors_per_second));
        #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
        self.series("load_requests_in_progress", LEFT, endpoints(|of| of.in_progress as f64));
        self.series("load_bytes_per_second", BYTES, endpoints(|of| of.bytes_per_second));
        self.series("load_weight", WEIGHT, endpoints(|of| of.weight.into()));
        let metrics = each_endpoint(loads).flat_map(|(labels, of)| {
            let metric = move |(name, value): (&String, &f64)| {
                (format!("{labels},metric={}", quoted(name)), *value)
            };
            of.metrics.iter().map(metric)
        });
        self.series("load_metric", METRIC, metrics);
    }

    fn series(&mut self, name: &str, help: &str, values: impl Iterator<Item = (String, f64)>) {
        let mut values = values.peekable();
        if values.peek().is_some() {
            let name = format!("towpath_control_plane_{name}");
            let _ = write!(self.0, "# HELP {name} {help}.\n# TYPE {name} gauge\n");
            for (labels, value) in values {
                let _ = writeln!(self.0, "{name}{{{labels}}} {value}");
            }
        }
    }

    fn apply_seconds(&mut self, tracker: &Tracker) {
        let name = "towpath_control_plane_apply_seconds";
        let times = tracker.apply_times();
        let _ = write!(
            self.0,
            "# HELP {name} From a version seen in the source to its acknowledgement by a proxy.\n\
             # TYPE {name} histogram\n"
        );
        for (bound, count) in APPLY_BOUNDS.iter().zip(times.buckets) {
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let (count, sum) = (times.count, times.sum_seconds);
        let _ = write!(
            self.0,
            "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}\n"
        );
    }
}

fn each_endpoint(loads: &[ServiceFigures]) -> impl Iterator<Item = (String, &EndpointFigures)> {
    loads.iter().flat_map(|service| {
        service.endpoints.iter().map(|of| {
            let (service, endpoint) = (quoted(&service.service), quoted(&of.endpoint));
            (format!("service={service},endpoint={endpoint}"), of)
        })
    })
}

/// A label's value.
fn quoted(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{value}\"")
}

const DROPPED: &str = "Requests that clients refused instead of sending them, as they report";
const ENDED: &str = "Requests to an endpoint that ended, as clients report";
const FAILED: &str = "Requests that an endpoint failed, as clients report";
const LEFT: &str = "Requests to an endpoint that have not ended, as clients report";
const BYTES: &str = "Body bytes to and from an endpoint, as far as clients report";
const WEIGHT: &str = "The weight that an endpoint is served with";
const METRIC: &str = "Means of what an endpoint says of itself and clients measure, by name";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_series_by_service_and_endpoint_whatever_they_are_called() {
        let endpoint = EndpointFigures {
            endpoint: "e\"1".into(),
            requests_per_second: 2.5,
            weight: 10,
            metrics: [("m\n\\".to_owned(), 0.5)].into(),
            ..EndpointFigures::default()
        };
        let endpoints = vec![endpoint];
        let load = ServiceFigures { service: "s".into(), endpoints, ..ServiceFigures::default() };
        let mut page = Page(String::new());
        page.loads(&[load]);
        for line in [
            r#"towpath_control_plane_load_dropped_per_second{service="s"} 0"#,
            r#"towpath_control_plane_load_requests_per_second{service="s",endpoint="e\"1"} 2.5"#,
            r#"towpath_control_plane_load_weight{service="s",endpoint="e\"1"} 10"#,
            r#"towpath_control_plane_load_metric{service="s",endpoint="e\"1",metric="m\n\\"} 0.5"#,
        ] {
            assert!(page.0.lines().any(|l| l == line), "{line} not in\n{}", page.0);
        }
        let mut none = Page(String::new());
        none.loads(&[]);
        assert_eq!(none.0, "");
    }
}
