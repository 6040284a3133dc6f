//! Prometheus text exposition, version 0.0.4.

use std::fmt::Write as _;

use crate::status::{APPLY_BOUNDS, Tracker};

/// All metrics.
pub(super) fn text(tracker: &Tracker) -> String {
    let status = tracker.status();
    let counters = &status.counters;
    let mut page = Page(String::with_capacity(4096));
    let in_sync = status.proxies.iter().filter(|proxy| proxy.in_sync).count();
    let refusing = status.proxies.iter().filter(|proxy| proxy.nack.is_some()).count();
    page.gauge("ready", "Whether policies are served", u8::from(status.ready));
    page.gauge("proxies_connected", "Streams of proxies", status.proxies.len());
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
