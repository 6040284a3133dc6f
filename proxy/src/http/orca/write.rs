//! A report as it is written into header fields, and what a sidecar reports.

use std::{
    fmt::Write,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use tokio::sync::Semaphore;
use towpath_xds::orca::{GOODPUT_FACTOR, JOULES_PER_BYTE, LoadReport};

use super::{
    METRICS, METRICS_BIN,
    read::{self, Found, MAX_BYTES, NAMED},
    stream::MOST_STREAMS,
};
use crate::{
    http::base64, load::NodeLoad, lock::lock, router::RouteMetrics, upstream::ServiceLive,
};

/// How a report is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Format {
    Text,
    Json,
    Binary,
}

/// What a sidecar's listener reports by.
#[derive(Debug)]
pub(crate) struct Reporter {
    node: Arc<NodeLoad>,
    rates: Mutex<Rates>,
    /// Places for those who ask out of band.
    pub(super) streams: Semaphore,
}

/// What went on, over at least a second.
#[derive(Debug, Default)]
struct Rates {
    /// When it was last reckoned, and what had come by then; 0 = never.
    at_ms: u64,
    counted: Counts,
    load: Load,
}

/// Since the beginning.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    requests: u64,
    errors: u64,
    /// Microseconds that those took which are over.
    busy_us: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Load {
    requests_per_second: f64,
    errors_per_second: f64,
    /// Seconds per second, that is how many are worked on at a time. Those of the same requests that the
    /// rate counts: one that took long counts whole when it ends. So the one by the other is how many
    /// there could be, however long they take and whenever somebody asks.
    busy: f64,
}

impl Format {
    /// The words of vLLM and Triton, in small letters or large.
    pub(super) fn named(value: &HeaderValue) -> Option<Self> {
        let is = |name: &str| value.as_bytes().eq_ignore_ascii_case(name.as_bytes());
        match () {
            () if is("text") => Some(Self::Text),
            () if is("json") => Some(Self::Json),
            () if is("bin") => Some(Self::Binary),
            () => None,
        }
    }
}

impl Reporter {
    pub(crate) fn new(node: Arc<NodeLoad>) -> Self {
        Self { node, rates: Mutex::default(), streams: Semaphore::new(MOST_STREAMS) }
    }

    /// What the sidecar itself knows of the application, its service here, and of the machine.
    #[expect(clippy::cast_precision_loss, reason = "for a balancer")]
    pub(super) fn report(
        &self,
        service: &ServiceLive,
        slots: Option<u32>,
        metrics: Option<&RouteMetrics>,
        now_ms: u64,
    ) -> LoadReport {
        let (cpu_utilization, mem_utilization) = self.node.look();
        let load = metrics.map_or(Load::default(), |metrics| {
            let (requests, errors) = metrics.ended();
            let busy_us = service.busy_us.load(Relaxed);
            lock(&self.rates).look(now_ms, Counts { requests, errors, busy_us })
        });
        let factor = self.node.gpus.goodput_factor();
        let requests = f64::from(service.requests.load(Relaxed));
        let bytes = service.bytes_in_flight.load(Relaxed) as f64;
        let slots = slots.filter(|slots| *slots > 0).map(f64::from);
        LoadReport {
            cpu_utilization,
            mem_utilization,
            rps_fractional: load.requests_per_second,
            eps: load.errors_per_second,
            application_utilization: slots
                .map_or(0.0, |slots| (load.busy / slots).max(LEAST_UTILIZATION)),
            named_metrics: [
                (REQUESTS_IN_FLIGHT, Some(requests)),
                (BYTES_IN_FLIGHT, Some(bytes)),
                (GOODPUT_FACTOR, factor),
                (JOULES_PER_BYTE, self.node.energy.joules_per_byte()),
            ]
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect(),
            ..LoadReport::default()
        }
    }
}

impl Rates {
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    fn look(&mut self, now_ms: u64, now: Counts) -> Load {
        let elapsed = now_ms.saturating_sub(self.at_ms);
        if self.at_ms == 0 || elapsed >= 1000 {
            if self.at_ms != 0 {
                let per_second = |now: u64, before: u64| {
                    now.saturating_sub(before) as f64 * 1000.0 / elapsed as f64
                };
                let before = self.counted;
                self.load = Load {
                    requests_per_second: per_second(now.requests, before.requests),
                    errors_per_second: per_second(now.errors, before.errors),
                    busy: per_second(now.busy_us, before.busy_us) / 1e6,
                };
            }
            (self.at_ms, self.counted) = (now_ms, now);
        }
        self.load
    }
}

/// Puts `ours` into the fields, behind what the application says itself. Where that is more than a
/// field may hold, what it says stays as it is.
pub(super) fn add(fields: &mut HeaderMap, mut ours: LoadReport, format: Format, grpc: bool) {
    let mut report = read::find(fields).and_then(Found::report).unwrap_or_default();
    if report.rps > 0 || report.rps_fractional > 0.0 {
        // A rate and a utilization that are not of the same requests make no weight.
        ours.application_utilization = 0.0;
    }
    // Each may know of what the other does not: the worse of the two counts.
    let of_ours = |name| ours.named_metrics.get(name).copied();
    let (factor, joules) = (of_ours(GOODPUT_FACTOR), of_ours(JOULES_PER_BYTE));
    report.fill_in(ours);
    if let (Some(ours), Some(value)) = (factor, report.named_metrics.get_mut(GOODPUT_FACTOR)) {
        *value = value.min(ours);
    }
    if let (Some(ours), Some(value)) = (joules, report.named_metrics.get_mut(JOULES_PER_BYTE)) {
        *value = value.max(ours);
    }
    if let Some((name, value)) = encode(&report, format, grpc) {
        fields.remove(METRICS);
        fields.remove(METRICS_BIN);
        fields.insert(name, value);
    }
}

/// Takes the endpoint's health and energy out of a report that is passed on: they are not those of
/// who passes it on.
pub(super) fn without_endpoint_state(fields: &mut HeaderMap) {
    let Some(found) = read::find(fields) else { return };
    let figures = found.figures();
    if figures.goodput_factor.is_none() && figures.joules_per_byte.is_none() {
        return;
    }
    let report = found.report();
    let (format, grpc) = match found {
        Found::Text(_) => (Format::Text, false),
        Found::Json(_) => (Format::Json, false),
        Found::Binary(_) => (Format::Binary, fields.contains_key(METRICS_BIN)),
    };
    fields.remove(METRICS);
    fields.remove(METRICS_BIN);
    let Some(mut report) = report else { return };
    report.named_metrics.remove(GOODPUT_FACTOR);
    report.named_metrics.remove(JOULES_PER_BYTE);
    if let Some((name, value)) = encode(&report, format, grpc) {
        fields.insert(name, value);
    }
}

/// `grpc`: for a client of gRPC, which looks for a field of its own.
fn encode(report: &LoadReport, format: Format, grpc: bool) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = match format {
        Format::Text => (METRICS, format!("TEXT {}", text(report))),
        Format::Json => (METRICS, format!("JSON {}", json(report))),
        Format::Binary => {
            let binary = base64::encode(&report.to_bytes());
            if grpc { (METRICS_BIN, binary) } else { (METRICS, format!("BIN {binary}")) }
        }
    };
    (value.len() <= MAX_BYTES).then_some((name, HeaderValue::try_from(value).ok()?))
}

fn text(report: &LoadReport) -> String {
    let mut text = String::with_capacity(192);
    let mut write = |map: &str, name: &str, value: f64| {
        let comma = if text.is_empty() { "" } else { ", " };
        // As many digits as it takes, but not three hundred.
        let _ = match value.abs() {
            0.0 | 1e-6..1e15 => write!(text, "{comma}{map}{name}={value}"),
            _ => write!(text, "{comma}{map}{name}={value:e}"),
        };
    };
    for (name, value) in numbers(report) {
        write("", name, value);
    }
    for (map, metrics) in [
        ("request_cost.", &report.request_cost),
        ("utilization.", &report.utilization),
        (NAMED, &report.named_metrics),
    ] {
        for (name, value) in metrics.iter().filter(|(name, _)| can_be_said(name)) {
            write(map, name, *value);
        }
    }
    text
}

/// Whether a name ends where its reader thinks it does.
fn can_be_said(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b',' | b'=' | b':' | b'"'))
}

fn json(report: &LoadReport) -> serde_json::Value {
    let mut fields = serde_json::Map::new();
    for (name, value) in numbers(report) {
        fields.insert(name.to_owned(), json!(value));
    }
    for (name, map) in [
        ("request_cost", &report.request_cost),
        ("utilization", &report.utilization),
        ("named_metrics", &report.named_metrics),
    ] {
        // A field holds ASCII only.
        let map: serde_json::Map<_, _> = map
            .iter()
            .filter(|(name, _)| name.is_ascii())
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        if !map.is_empty() {
            fields.insert(name.to_owned(), map.into());
        }
    }
    fields.into()
}

/// The numbers it says.
fn numbers(report: &LoadReport) -> impl Iterator<Item = (&'static str, f64)> {
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rps = if report.rps_fractional > 0.0 { report.rps_fractional } else { report.rps as f64 };
    [
        ("cpu_utilization", report.cpu_utilization),
        ("mem_utilization", report.mem_utilization),
        ("rps_fractional", rps),
        ("eps", report.eps),
        ("application_utilization", report.application_utilization),
    ]
    .into_iter()
    .filter(|(_, value)| *value != 0.0)
}

/// 0 would be read as not said, and the machine's CPU taken in its place.
const LEAST_UTILIZATION: f64 = 1e-6;
const REQUESTS_IN_FLIGHT: &str = "towpath.requests_in_flight";
const BYTES_IN_FLIGHT: &str = "towpath.bytes_in_flight";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use towpath_policies::model::{Balancer, Endpoint, EndpointSet, Protocol, Service};

    use super::*;
    use crate::upstream::{
        ServiceState,
        pick::{Ask, Tried, pick},
        reconcile,
    };

    fn written(app: Option<(HeaderName, &str)>, ours: LoadReport, format: Format) -> HeaderMap {
        let mut fields = HeaderMap::new();
        app.map(|(name, value)| fields.insert(name, value.parse().unwrap()));
        add(&mut fields, ours, format, false);
        fields
    }

    fn value(fields: &HeaderMap) -> &str {
        assert_eq!(fields.len(), 1, "{fields:?}");
        fields[METRICS].to_str().unwrap()
    }

    fn ours() -> LoadReport {
        LoadReport {
            cpu_utilization: 0.25,
            rps_fractional: 12.5,
            named_metrics: [("towpath.requests_in_flight".into(), 3.0)].into(),
            ..LoadReport::default()
        }
    }

    #[test]
    fn a_report_is_written_as_it_is_wanted() {
        let text = "TEXT cpu_utilization=0.25, rps_fractional=12.5, \
            named_metrics.towpath.requests_in_flight=3";
        assert_eq!(value(&written(None, ours(), Format::Text)), text);
        let json = r#"JSON {"cpu_utilization":0.25,"rps_fractional":12.5,"named_metrics":{"towpath.requests_in_flight":3.0}}"#;
        assert_eq!(value(&written(None, ours(), Format::Json)), json);
        let binary = base64::encode(&ours().to_bytes());
        assert_eq!(value(&written(None, ours(), Format::Binary)), format!("BIN {binary}"));
        let mut fields = HeaderMap::new();
        add(&mut fields, ours(), Format::Binary, true);
        assert_eq!(fields[METRICS_BIN], binary);
        for (value, format) in [
            ("text", Some(Format::Text)),
            ("JSON", Some(Format::Json)),
            ("Bin", Some(Format::Binary)),
            ("xml", None),
            ("", None),
        ] {
            assert_eq!(Format::named(&value.parse().unwrap()), format, "{value}");
        }
    }

    #[test]
    fn what_the_application_says_stays_and_wins() {
        let app = r#"JSON {"cpu_utilization": 0.9, "named_metrics": {"kv_cache_usage_perc": 0.5}}"#;
        let fields = written(Some((METRICS, app)), ours(), Format::Text);
        let text = "TEXT cpu_utilization=0.9, rps_fractional=12.5, \
            named_metrics.kv_cache_usage_perc=0.5, named_metrics.towpath.requests_in_flight=3";
        assert_eq!(value(&fields), text);
        // But of two factors the lower counts.
        for (app, sidecar, factor) in [(1.0, 0.25, "0.25"), (0.5, 1.0, "0.5")] {
            let app = format!("TEXT named_metrics.{GOODPUT_FACTOR}={app}");
            let named = [(GOODPUT_FACTOR.to_owned(), sidecar)].into();
            let ours = LoadReport { named_metrics: named, ..LoadReport::default() };
            let fields = written(Some((METRICS, &app)), ours, Format::Text);
            assert_eq!(value(&fields), format!("TEXT named_metrics.{GOODPUT_FACTOR}={factor}"));
        }
        // And the higher of two energies.
        for (app, sidecar) in [(0.0, 2e-6), (2e-6, 1e-6)] {
            let app = format!("TEXT named_metrics.{JOULES_PER_BYTE}={app}");
            let named = [(JOULES_PER_BYTE.to_owned(), sidecar)].into();
            let ours = LoadReport { named_metrics: named, ..LoadReport::default() };
            let fields = written(Some((METRICS, &app)), ours, Format::Text);
            let report = read::find(&fields).and_then(Found::report).unwrap();
            assert_eq!(report.named_metrics[JOULES_PER_BYTE], 2e-6, "{app}");
        }
        // What is no report gives way to one.
        let fields = written(Some((METRICS_BIN, "!")), LoadReport::default(), Format::Text);
        assert_eq!(value(&fields), "TEXT ");
        // What would not fit stays as it was.
        let long = format!("TEXT {}=1", "named_metrics.a".repeat(271));
        let fields = written(Some((METRICS, &long)), ours(), Format::Text);
        assert_eq!(value(&fields), long);
    }

    #[test]
    fn what_is_passed_on_says_all_but_the_health_of_the_endpoint() {
        let factor = format!("named_metrics.{GOODPUT_FACTOR}");
        let binary = |report: &LoadReport| base64::encode(&report.to_bytes());
        let mut sick = ours();
        sick.named_metrics.insert(GOODPUT_FACTOR.to_owned(), 0.0);
        let rest = "cpu_utilization=0.25, rps_fractional=12.5, \
            named_metrics.towpath.requests_in_flight=3";
        let json = r#"JSON {"cpu_utilization":0.25,"rps_fractional":12.5,"named_metrics":{"towpath.requests_in_flight":3.0}}"#;
        for (name, before, after) in [
            (METRICS, format!("TEXT {rest}, {factor}=0"), format!("TEXT {rest}")),
            (METRICS, format!("{rest},{factor}:0"), format!("TEXT {rest}")),
            (METRICS, json.replace(":{", &format!(r#":{{"{GOODPUT_FACTOR}":0,"#)), json.to_owned()),
            (METRICS, format!("BIN {}", binary(&sick)), format!("BIN {}", binary(&ours()))),
            (METRICS_BIN, binary(&sick), binary(&ours())),
            (
                METRICS,
                format!("TEXT {rest}, named_metrics.{JOULES_PER_BYTE}=0.1"),
                format!("TEXT {rest}"),
            ),
            // What does not say it is not touched, whatever it is.
            (METRICS, format!("{rest}, other"), format!("{rest}, other")),
            (METRICS, "XML <report/>".to_owned(), "XML <report/>".to_owned()),
            (METRICS_BIN, "!".to_owned(), "!".to_owned()),
        ] {
            let mut fields = HeaderMap::from_iter([(name.clone(), before.parse().unwrap())]);
            without_endpoint_state(&mut fields);
            assert_eq!(fields.len(), 1, "{before}: {fields:?}");
            assert_eq!(fields[name].to_str().unwrap(), after, "{before}");
        }
    }

    #[test]
    fn rates_are_those_of_the_last_second_or_more() {
        let mut rates = Rates::default();
        for (now_ms, requests, errors, busy_us, expected) in [
            (5_000, 100, 3, 0, (0.0, 0.0, 0.0)),
            (5_900, 200, 3, 100, (0.0, 0.0, 0.0)),
            (6_000, 200, 4, 2_500_000, (100.0, 1.0, 2.5)),
            (6_500, 900, 4, 9_000_000, (100.0, 1.0, 2.5)),
            (10_000, 220, 4, 3_500_000, (5.0, 0.0, 0.25)),
            // The series began anew.
            (11_000, 0, 0, 0, (0.0, 0.0, 0.0)),
        ] {
            let load = rates.look(now_ms, Counts { requests, errors, busy_us });
            let load = (load.requests_per_second, load.errors_per_second, load.busy);
            assert_eq!(load, expected, "at {now_ms}");
        }
    }

    /// A sidecar, and an application behind it that works on as many requests at a time as it has slots.
    struct Beside {
        reporter: Reporter,
        state: Arc<ServiceState>,
        metrics: RouteMetrics,
        free_at_ms: Vec<u64>,
        took_ms: u64,
    }

    impl Beside {
        fn new(name: String, slots: u32, took_ms: u64) -> Self {
            let endpoints = vec![Endpoint::new(([127, 0, 0, 1], 1).into())];
            let set = EndpointSet::new(name.clone(), endpoints);
            let spec = Arc::new(Service::new(&name, Protocol::Http1));
            Self {
                reporter: Reporter::new(Arc::default()),
                state: reconcile(None, spec, &set, 1).unwrap(),
                metrics: RouteMetrics::new("in", &name, &name),
                free_at_ms: vec![0; slots as usize],
                took_ms,
            }
        }

        /// When the request is done.
        fn take(&mut self, now_ms: u64) -> u64 {
            self.state.live.requests.fetch_add(1, Relaxed);
            let slot = self.free_at_ms.iter_mut().min().unwrap();
            *slot = now_ms.max(*slot) + self.took_ms;
            *slot
        }

        fn report(&self, now_ms: u64) -> LoadReport {
            let slots = u32::try_from(self.free_at_ms.len()).ok();
            self.reporter.report(&self.state.live, slots, Some(&self.metrics), now_ms)
        }

        fn done(&self, began_ms: u64, now_ms: u64) {
            self.state.live.requests.fetch_sub(1, Relaxed);
            self.state.live.busy_us.fetch_add((now_ms - began_ms) * 1000, Relaxed);
            self.metrics.count(200);
        }
    }

    /// The share of turns that the first of two gets in the end, by what their sidecars report.
    fn share(name: &str, slots: [u32; 2], took_ms: u64, every_ms: u64, streamed: bool) -> f64 {
        let mut spec = Service::new(name, Protocol::Http1);
        spec.balancer = Balancer::WeightedRoundRobin;
        spec.weighing.blackout = Duration::ZERO;
        let endpoint = |port| Endpoint::new(([127, 0, 0, 1], port).into());
        let set = EndpointSet::new(name.into(), vec![endpoint(1), endpoint(2)]);
        let caller = reconcile(None, Arc::new(spec), &set, 1).unwrap();
        let mut beside: Vec<Beside> = (0..)
            .zip(slots)
            .map(|(nth, slots)| Beside::new(format!("{name}/{nth}"), slots, took_ms))
            .collect();
        let (begin_ms, end_ms) = (1_000_000, 1_400_000);
        let mut under_way: Vec<(u64, usize, u64)> = Vec::new();
        let mut turns = [0u32; 2];
        for now_ms in begin_ms..end_ms {
            let heed = |nth: usize, report| {
                caller.heed(&caller.endpoints[nth].live, &report, now_ms);
            };
            for (_, nth, began_ms) in under_way.extract_if(.., |(done, ..)| *done == now_ms) {
                // The report is in the head of the answer, so it is still there.
                if !streamed {
                    heed(nth, beside[nth].report(now_ms));
                }
                beside[nth].done(began_ms, now_ms);
            }
            if streamed && now_ms % 1000 == 0 {
                (0..2).for_each(|nth| heed(nth, beside[nth].report(now_ms)));
            }
            caller.weigh(now_ms);
            if now_ms % every_ms == 0 {
                let picked = pick(&caller, &Tried::default(), 1, Ask::default()).unwrap();
                let nth = usize::from(picked.spec.address.port()) - 1;
                under_way.push((beside[nth].take(now_ms), nth, now_ms));
                if now_ms >= end_ms - 100_000 {
                    turns[nth] += 1;
                }
            }
        }
        f64::from(turns[0]) / f64::from(turns[0] + turns[1])
    }

    #[test]
    fn sidecars_of_unequal_slots_get_turns_in_that_proportion_and_keep_it() {
        for streamed in [false, true] {
            for (nth, (took_ms, every_ms)) in
                [(100, 25), (100, 500), (20, 5), (7_000, 1_500)].into_iter().enumerate()
            {
                let name = format!("unequal-{nth}-{streamed}");
                let share = share(&name, [6, 2], took_ms, every_ms, streamed);
                assert!((share - 0.75).abs() < 0.04, "{took_ms} {every_ms} {streamed}: {share}");
            }
        }
    }

    #[test]
    fn idle_slots_are_said_so_that_nobody_takes_the_cpu_for_them() {
        let idle = Beside::new("idle".into(), 4, 1);
        assert!(idle.report(5).application_utilization > 0.0);
        let report = idle.reporter.report(&idle.state.live, None, None, 5);
        assert!(report.application_utilization == 0.0, "unknown");
    }

    fn metrics() -> impl Strategy<Value = std::collections::BTreeMap<String, f64>> {
        prop::collection::btree_map("[ -~]{1,12}|\\PC{1,4}", any::<f64>(), 0..6)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            figures in any::<[f64; 5]>(),
            named in metrics(),
            utilization in metrics(),
            format in prop::sample::select(&[Format::Text, Format::Json, Format::Binary][..]),
        ) {
            let mut report = LoadReport {
                cpu_utilization: figures[0],
                mem_utilization: figures[1],
                rps_fractional: figures[2],
                eps: figures[3],
                application_utilization: figures[4],
                named_metrics: named,
                utilization,
                ..LoadReport::default()
            };
            report.keep_possible();
            let fields = written(None, report.clone(), format);
            let again = read::find(&fields).and_then(Found::report).unwrap();
            let sayable = |name: &str| match format {
                Format::Text => can_be_said(name),
                Format::Json => name.is_ascii(),
                Format::Binary => true,
            };
            report.named_metrics.retain(|name, _| sayable(name));
            report.utilization.retain(|name, _| sayable(name));
            let said = |report: &LoadReport| -> Vec<(String, f64)> {
                let whole = numbers(report).map(|(name, value)| (name.to_owned(), value));
                let maps = report.named_metrics.clone().into_iter().chain(report.utilization.clone());
                whole.chain(maps).collect()
            };
            let (again, report) = (said(&again), said(&report));
            prop_assert_eq!(again.len(), report.len());
            for ((name, value), (own_name, own)) in again.into_iter().zip(report) {
                prop_assert_eq!(&name, &own_name);
                // JSON is read to within the last digit.
                prop_assert!((value - own).abs() <= own.abs() * 1e-15, "{}: {} {}", name, value, own);
            }
        }
    }
}
