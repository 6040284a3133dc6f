//! Counters, gauges and histograms behind handles that cost one relaxed atomic
//! each, and their Prometheus text.
//!
//! A handle is made once, by name and labels, when configuration is applied;
//! nothing is looked up or formatted while traffic passes. Knows nothing of
//! what is measured.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::lock::lock;

/// The process's one registry.
pub fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(Registry::default)
}

/// All series of this process, by name and labels.
#[derive(Debug, Default)]
pub struct Registry {
    families: Mutex<BTreeMap<&'static str, Family>>,
}

/// A number that only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

/// A number that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicI64>);

/// A number that need not be whole.
#[derive(Clone, Debug, Default)]
pub struct Real(Arc<AtomicU64>);

/// A number that only grows, and need not be whole. It is shown once there is something to show.
#[derive(Clone, Debug, Default)]
pub struct Sum(Arc<AtomicU64>);

/// Durations in fixed buckets, two per power of two, from 64 µs to about 36 minutes.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Arc<Buckets>);

#[derive(Debug, Default)]
struct Family {
    series: BTreeMap<String, Series>,
}

#[derive(Debug)]
enum Series {
    Counter(Whole),
    Gauge(Gauge),
    Real(Real),
    Sum(Sum),
    Histogram(Histogram),
}

/// A counter with the parts that are counted apart.
#[derive(Debug, Default)]
struct Whole {
    own: Counter,
    parts: Vec<Counter>,
}

#[derive(Debug)]
struct Buckets {
    counts: [AtomicU64; BUCKETS + 1],
    sum_micros: AtomicU64,
}

impl Registry {
    /// The counter of this name and these labels; made on first use.
    ///
    /// By convention the name ends in `_total`. A name keeps the kind it was
    /// first given: asking for it as another kind returns a handle that is
    /// never shown.
    pub fn counter(&self, name: &'static str, labels: &[(&str, &str)]) -> Counter {
        let mut families = self.families();
        match series(&mut families, name, labels, || Series::Counter(Whole::default())) {
            Series::Counter(whole) => whole.own.clone(),
            _ => Counter::default(),
        }
    }

    /// A new part of the counter of this name and these labels, which is shown as the sum of its parts:
    /// for one of several that come to the same labels, one after the other, and each knows its own.
    pub fn counter_part(&self, name: &'static str, labels: &[(&str, &str)]) -> Counter {
        let mut families = self.families();
        match series(&mut families, name, labels, || Series::Counter(Whole::default())) {
            Series::Counter(whole) => whole.part(),
            _ => Counter::default(),
        }
    }

    /// The gauge of this name and these labels; made on first use.
    pub fn gauge(&self, name: &'static str, labels: &[(&str, &str)]) -> Gauge {
        let mut families = self.families();
        match series(&mut families, name, labels, || Series::Gauge(Gauge::default())) {
            Series::Gauge(gauge) => gauge.clone(),
            _ => Gauge::default(),
        }
    }

    /// The gauge of a number that is not whole, of this name and these labels; made on first use.
    pub fn real(&self, name: &'static str, labels: &[(&str, &str)]) -> Real {
        let mut families = self.families();
        match series(&mut families, name, labels, || Series::Real(Real::default())) {
            Series::Real(real) => real.clone(),
            _ => Real::default(),
        }
    }

    /// The counter of what need not be whole, of this name and these labels; made on first use.
    pub fn sum(&self, name: &'static str, labels: &[(&str, &str)]) -> Sum {
        let mut families = self.families();
        match series(&mut families, name, labels, || Series::Sum(Sum::default())) {
            Series::Sum(sum) => sum.clone(),
            _ => Sum::default(),
        }
    }

    /// The histogram of this name and these labels; made on first use.
    pub fn histogram(&self, name: &'static str, labels: &[(&str, &str)]) -> Histogram {
        let mut families = self.families();
        match series(&mut families, name, labels, || Series::Histogram(Histogram::default())) {
            Series::Histogram(histogram) => histogram.clone(),
            _ => Histogram::default(),
        }
    }

    /// Forgets the series that carry all of these labels, so that names of
    /// removed services and endpoints do not pile up. Handles still held keep
    /// counting, unseen.
    pub fn forget(&self, labels: &[(&str, &str)]) {
        let wanted: Vec<String> = labels.iter().map(|label| label_text(&[*label])).collect();
        let mut families = self.families();
        for family in families.values_mut() {
            family.series.retain(|text, _| !wanted.iter().all(|label| carries(text, label)));
        }
        families.retain(|_, family| !family.series.is_empty());
    }

    /// Everything in the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        let families = self.families();
        let mut out = String::with_capacity(4096);
        for (name, family) in families.iter() {
            let shown = || family.series.iter().filter(|(_, series)| series.is_shown());
            let Some((_, first)) = shown().next() else { continue };
            if let Some((_, help)) = HELP.iter().find(|(named, _)| named == name) {
                let _ = writeln!(out, "# HELP {name} {help}");
            }
            let _ = writeln!(out, "# TYPE {name} {}", first.kind());
            for (labels, series) in shown() {
                series.render(name, labels, &mut out);
            }
        }
        out
    }

    fn families(&self) -> MutexGuard<'_, BTreeMap<&'static str, Family>> {
        lock(&self.families)
    }
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Whole {
    fn part(&mut self) -> Counter {
        // Of those in which nobody counts any more only the sum is kept.
        self.parts.retain_mut(|part| {
            let last = Arc::get_mut(&mut part.0).map(|value| *value.get_mut());
            self.own.add(last.unwrap_or(0));
            last.is_none()
        });
        let part = Counter::default();
        self.parts.push(part.clone());
        part
    }

    fn value(&self) -> u64 {
        self.own.value() + self.parts.iter().map(Counter::value).sum::<u64>()
    }
}

impl Real {
    /// Replaces the value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

impl Sum {
    /// Adds what is finite and not below zero. Rounding loses what is less than a 10¹⁶th of the sum.
    pub fn add(&self, value: f64) {
        if value > 0.0 && value.is_finite() {
            let add = |before: u64| Some((f64::from_bits(before) + value).min(f64::MAX).to_bits());
            // It always has a next value.
            let _ = self.0.fetch_update(Relaxed, Relaxed, add);
        }
    }

    /// The value now.
    pub fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

impl Gauge {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Replaces the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.0.counts[bucket(micros)].fetch_add(1, Relaxed);
        self.0.sum_micros.fetch_add(micros, Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|c| c.load(Relaxed)).sum()
    }
}

impl Default for Buckets {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BUCKETS + 1], sum_micros: AtomicU64::new(0) }
    }
}

impl Series {
    fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) | Self::Sum(_) => "counter",
            Self::Gauge(_) | Self::Real(_) => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }

    /// Sums of what may not be known for most labels are left out while they are nothing.
    fn is_shown(&self) -> bool {
        !matches!(self, Self::Sum(sum) if sum.value() == 0.0)
    }

    fn render(&self, name: &str, labels: &str, out: &mut String) {
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = match self {
            Self::Counter(c) => writeln!(out, "{name}{braced} {}", c.value()),
            Self::Gauge(g) => writeln!(out, "{name}{braced} {}", g.value()),
            Self::Real(r) => writeln!(out, "{name}{braced} {}", r.value()),
            Self::Sum(s) => writeln!(out, "{name}{braced} {}", s.value()),
            Self::Histogram(h) => {
                h.render(name, labels, &braced, out);
                Ok(())
            }
        };
    }
}

impl Histogram {
    fn render(&self, name: &str, labels: &str, braced: &str, out: &mut String) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (index, count) in self.0.counts.iter().enumerate() {
            total += count.load(Relaxed);
            if index < BUCKETS {
                let bound = bound_micros(index) as f64 / 1e6;
                let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
            }
        }
        let sum = self.0.sum_micros.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {total}");
        let _ = writeln!(out, "{name}_sum{braced} {sum}");
        let _ = writeln!(out, "{name}_count{braced} {total}");
    }
}

fn series<'a>(
    families: &'a mut BTreeMap<&'static str, Family>,
    name: &'static str,
    labels: &[(&str, &str)],
    new: impl FnOnce() -> Series,
) -> &'a mut Series {
    families.entry(name).or_default().series.entry(label_text(labels)).or_insert_with(new)
}

/// Whether the rendered labels contain this one. Quotes inside values are
/// escaped, so a value cannot pass for a label.
fn carries(labels: &str, label: &str) -> bool {
    labels.match_indices(label).any(|(at, _)| at == 0 || labels[..at].ends_with("\","))
}

fn label_text(labels: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (index, (name, value)) in labels.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text
}

/// What the names mean.
const HELP: [(&str, &str); 62] = [
    (
        "towpath_access_log_dropped_total",
        "Access log lines dropped because the writer could not keep up.",
    ),
    ("towpath_accept_errors_total", "Connections that could not be accepted."),
    (
        "towpath_bandwidth_bytes_total",
        "Body bytes to and from a service whose bandwidth is shared by class.",
    ),
    ("towpath_bytes_in_flight", "Body bytes of unfinished exchanges, both ways."),
    (
        "towpath_carbon_grams_total",
        "CO2 equivalent of the electricity that went with body bytes, where it is known.",
    ),
    (
        "towpath_config_rejected_total",
        "Configurations not applied because something in them is wrong.",
    ),
    ("towpath_config_version_info", "The configuration in use, as a label."),
    ("towpath_connections", "Open client connections."),
    ("towpath_connections_total", "Client connections accepted."),
    ("towpath_digests_total", "Bodies given a digest, and held against one."),
    (
        "towpath_egress_cents_total",
        "Price of body bytes that went between regions, where it is known.",
    ),
    ("towpath_ejections_total", "Endpoints left alone for a while: they failed, or lagged behind."),
    (
        "towpath_endpoint_awaiting_head",
        "Requests that wait for a response head, where their number adapts.",
    ),
    ("towpath_endpoint_bytes_total", "Body bytes to and from an endpoint."),
    (
        "towpath_endpoint_concurrency_limit",
        "Requests that may wait for a response head, where their number adapts.",
    ),
    (
        "towpath_endpoint_goodput_bytes_per_second",
        "Body bytes per second of active large transfers, of late; 0 = unknown.",
    ),
    (
        "towpath_endpoint_predicted_seconds",
        "Terms of the predicted completion time of a request as is usual, from beside the proxy.",
    ),
    ("towpath_endpoint_usable", "1 when an endpoint would be picked."),
    (
        "towpath_energy_joules_per_byte",
        "Energy that went with a byte through this machine, of late.",
    ),
    ("towpath_gpu_busy_percent", "How much of the time something ran on a GPU."),
    (
        "towpath_gpu_goodput_factor",
        "The share of its goodput that this machine has left, by its GPUs' health.",
    ),
    ("towpath_gpu_temperature_celsius", "The hottest of a GPU's temperatures."),
    ("towpath_gpu_vram_bytes", "Memory of a GPU."),
    ("towpath_gpu_vram_used_bytes", "Memory of a GPU that is taken."),
    ("towpath_health_probes_total", "Active health probes."),
    ("towpath_hedges_total", "Reads that were late and asked for once more, or would have been."),
    ("towpath_limited_total", "Requests refused, and transfers slowed, by a rate limit."),
    (
        "towpath_looped_total",
        "Connections of the proxy itself that were redirected back to it, and reset.",
    ),
    ("towpath_mirrors_dropped_total", "Mirror copies not sent."),
    (
        "towpath_out_of_band_reports_total",
        "Load reports of an endpoint that came on a stream of their own.",
    ),
    (
        "towpath_not_redirected_total",
        "Connections to a listener for redirected ones that were made to itself, and closed.",
    ),
    ("towpath_overflow_total", "Requests refused by a circuit breaker."),
    ("towpath_overload_level", "Shed now: 0 nothing, 1 background, 2 bulk too, 3 everything."),
    ("towpath_picks_total", "Times an endpoint was picked."),
    ("towpath_process_resident_bytes", "Resident memory of the process."),
    (
        "towpath_proxy_protocol_errors_total",
        "Connections closed because they did not begin as the PROXY protocol must, or came from elsewhere.",
    ),
    ("towpath_queue_bytes", "Declared body bytes of requests that wait for a slot."),
    ("towpath_queue_displaced_total", "Requests that had to leave the queue for a better class."),
    ("towpath_queue_expired_total", "Requests whose time ran out in the queue."),
    ("towpath_queue_length", "Requests that wait for a slot."),
    ("towpath_queue_refused_total", "Requests refused because the queue was full."),
    ("towpath_queue_wait_seconds", "Time until a request had a slot."),
    ("towpath_request_bytes_total", "Request body bytes."),
    ("towpath_request_seconds", "From request head to the last byte of the response."),
    ("towpath_requests_total", "Exchanges that ended."),
    ("towpath_response_bytes_total", "Response body bytes."),
    ("towpath_resumes_total", "Responses that broke midway, and what came of going on elsewhere."),
    ("towpath_retries_total", "Further tries."),
    ("towpath_retry_budget_exhausted_total", "Retries not made because the budget was used up."),
    ("towpath_shed_total", "Requests refused because the proxy is overloaded."),
    ("towpath_spool_bytes", "Disk taken by request bodies kept for another try."),
    (
        "towpath_spool_refused_total",
        "Request bodies not kept on disk: no room, or the disk failed.",
    ),
    ("towpath_stalls_total", "Tries and transfers ended because a side moved too little."),
    ("towpath_streams_moved_total", "Streams of age that went on with another endpoint."),
    ("towpath_tcp_bytes_total", "Opaque bytes relayed."),
    ("towpath_tcp_connections_total", "Opaque connections relayed."),
    ("towpath_tls_handshake_errors_total", "TLS handshakes with clients that failed."),
    (
        "towpath_tunnelled_connections_total",
        "Clients' connections that went to a sidecar as streams of one.",
    ),
    ("towpath_upstream_connections", "Open connections to endpoints."),
    ("towpath_upstream_connect_errors_total", "Connections to endpoints that could not be made."),
    (
        "towpath_upload_resumes_total",
        "Uploads that broke midway, and what came of going on with them.",
    ),
    ("towpath_uptime_seconds", "Time since the start of the process."),
];

/// Buckets with an upper bound; one more takes what lies beyond the last.
const BUCKETS: usize = 50;
/// The first bound is `2^FIRST_POWER` µs.
const FIRST_POWER: u32 = 6;

/// Upper bounds are 64, 96, 128, 192, 256, … µs, inclusive.
const fn bound_micros(index: usize) -> u64 {
    let octave = 1_u64 << (FIRST_POWER as usize + index / 2);
    if index.is_multiple_of(2) { octave } else { octave + octave / 2 }
}

fn bucket(micros: u64) -> usize {
    if micros <= 1 << FIRST_POWER {
        return 0;
    }
    // With `below` the bounds can be compared as powers of two: 2^k lands in the bucket it bounds.
    let below = micros - 1;
    let power = below.ilog2();
    let upper_half = (below >> (power - 1)) & 1;
    let index = (power - FIRST_POWER) as usize * 2 + 1 + upper_half as usize;
    index.min(BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lands_in_the_first_bucket_whose_bound_holds_it() {
        for micros in (0..5000).chain([1 << 20, (1 << 20) + 1, u64::MAX]) {
            let expected = (0..BUCKETS).find(|i| micros <= bound_micros(*i)).unwrap_or(BUCKETS);
            assert_eq!(bucket(micros), expected, "{micros}");
        }
    }

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let registry = Registry::default();
        let requests = registry.counter("towpath_requests_total", &[("route", "a\"b")]);
        requests.add(3);
        registry.gauge("open", &[]).set(-2);
        let seconds = registry.histogram("seconds", &[("route", "r")]);
        seconds.record(Duration::from_micros(64));
        seconds.record(Duration::from_secs(3600 * 24));
        let text = registry.render();
        for line in [
            "# HELP towpath_requests_total Exchanges that ended.",
            "# TYPE towpath_requests_total counter",
            r#"towpath_requests_total{route="a\"b"} 3"#,
            "# TYPE open gauge",
            "open -2",
            "# TYPE seconds histogram",
            r#"seconds_bucket{route="r",le="0.000064"} 1"#,
            r#"seconds_bucket{route="r",le="+Inf"} 2"#,
            r#"seconds_count{route="r"} 2"#,
            r#"seconds_sum{route="r"} 86400.000064"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn a_counter_is_the_sum_of_its_parts_and_of_those_that_are_gone() {
        let registry = Registry::default();
        let part = || registry.counter_part("c_total", &[("of", "x")]);
        let shown = || registry.render().lines().last().unwrap().to_owned();
        let (first, second) = (part(), part());
        first.add(1);
        second.add(2);
        registry.counter("c_total", &[("of", "x")]).add(4);
        assert_eq!((first.value(), second.value()), (1, 2));
        assert_eq!(shown(), r#"c_total{of="x"} 7"#);
        drop(first);
        let third = part();
        third.add(8);
        assert_eq!(shown(), r#"c_total{of="x"} 15"#);
        for _ in 0..100 {
            part().add(1);
        }
        assert_eq!(shown(), r#"c_total{of="x"} 115"#);
        let mut families = registry.families();
        let Some(Series::Counter(whole)) =
            families.get_mut("c_total").unwrap().series.values_mut().next()
        else {
            panic!("a counter")
        };
        assert!(whole.parts.len() <= 3, "they do not pile up: {}", whole.parts.len());
    }

    #[test]
    fn what_is_removed_is_forgotten_and_nothing_else() {
        let registry = Registry::default();
        for (service, endpoint) in [("a", "1"), ("a", "2"), ("b", "1"), ("x\",service=\"a", "1")] {
            registry.counter("c_total", &[("service", service), ("endpoint", endpoint)]).inc();
        }
        registry.forget(&[("service", "a"), ("endpoint", "1")]);
        assert_eq!(registry.render().matches("c_total{").count(), 3);
        registry.forget(&[("service", "a")]);
        let text = registry.render();
        assert_eq!(text.matches("c_total{").count(), 2, "{text}");
        assert_eq!(registry.counter("c_total", &[("service", "b"), ("endpoint", "1")]).value(), 1);
        registry.forget(&[("endpoint", "1")]);
        assert_eq!(registry.render(), "");
    }
}
