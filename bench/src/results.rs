//! What a run found, and its form as JSON.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::case::{Case, Kind, Sizes};
use crate::contender::Contender;
use crate::load::Outcome;
use crate::machine::Machine;
use crate::meter::CpuSpent;
use crate::stats::{Summary, ratio_by_round};

/// Everything a run found.
#[derive(Debug)]
pub struct Results {
    /// The machine.
    pub machine: Machine,
    /// Whether proxies and load had cores of their own.
    pub pinned: bool,
    /// The sizes.
    pub sizes: Sizes,
    /// Rounds asked for.
    pub rounds: usize,
    /// The version of each proxy.
    pub versions: BTreeMap<Contender, String>,
    /// Resident memory of each proxy before its first connection, in MB, once per start.
    pub rest_mb: BTreeMap<Contender, Vec<f64>>,
    /// What each proxy did in each case.
    pub cases: BTreeMap<Case, BTreeMap<Contender, Performance>>,
}

/// What a proxy did in a case.
#[derive(Debug, Clone, Default)]
pub struct Performance {
    /// One entry a round; `None` where the turn failed.
    pub turns: Vec<Option<Turn>>,
    /// Why there are no figures, if there are none.
    pub missing: Option<Missing>,
    /// What differs from the other proxies.
    pub remark: Option<&'static str>,
}

/// Why figures are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// The proxy cannot do the case.
    NotPossible(String),
    /// The proxy should have done it and did not.
    Failed(String),
}

/// The figures of one turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Turn {
    /// CPU time of the proxy's processes per request or transfer, in microseconds.
    pub cpu_us_per_request: Option<f64>,
    /// CPU time per 10^9 body bytes, in milliseconds.
    pub cpu_ms_per_gb: Option<f64>,
    /// CPU time per second of the turn, in microseconds.
    pub cpu_us_per_second: f64,
    /// Most resident memory during the turn, in MB (10^6 bytes).
    pub rss_mb: f64,
    /// Requests or transfers per second.
    pub rps: Option<f64>,
    /// Median latency in milliseconds.
    pub p50_ms: Option<f64>,
    /// 99th percentile of the latency in milliseconds.
    pub p99_ms: Option<f64>,
    /// Share of the turn that the proxy's processes were on a CPU; 1 is a whole core.
    pub busy: f64,
    /// Share of the turn that they were ready but waited for a CPU: noise by others.
    pub waited: f64,
}

/// A figure of a turn, by its name in the JSON.
pub type Figure = (&'static str, fn(&Turn) -> Option<f64>);

/// CPU per request.
pub const CPU_PER_REQUEST: Figure = ("cpu_us_per_request", |t| t.cpu_us_per_request);
/// CPU per GB.
pub const CPU_PER_GB: Figure = ("cpu_ms_per_gb", |t| t.cpu_ms_per_gb);
/// CPU per second.
pub const CPU_PER_SECOND: Figure = ("cpu_us_per_second", |t| Some(t.cpu_us_per_second));
/// Peak memory.
pub const RSS: Figure = ("rss_mb", |t| Some(t.rss_mb));
/// Requests per second.
pub const RPS: Figure = ("rps", |t| t.rps);
/// Median latency.
pub const P50: Figure = ("p50_ms", |t| t.p50_ms);
/// 99th percentile.
pub const P99: Figure = ("p99_ms", |t| t.p99_ms);
/// Share on a CPU.
pub const BUSY: Figure = ("busy", |t| Some(t.busy));
/// Share waiting for a CPU.
pub const WAITED: Figure = ("waited", |t| Some(t.waited));

const FIGURES: [Figure; 9] =
    [CPU_PER_REQUEST, CPU_PER_GB, CPU_PER_SECOND, RSS, RPS, P50, P99, BUSY, WAITED];

impl Turn {
    /// Works the figures out of what was done and what it cost.
    #[must_use]
    pub fn new(outcome: &Outcome, wall_seconds: f64, cpu: CpuSpent, peak_rss_bytes: u64) -> Self {
        let run_us = cpu.run_ns as f64 / 1e3;
        let per = |amount: f64, unit: f64| (unit > 0.0).then(|| amount / unit);
        let quantile =
            |q| (outcome.count > 0).then(|| outcome.latency.value_at_quantile(q) as f64 / 1e3);
        Self {
            cpu_us_per_request: per(run_us, outcome.count as f64),
            cpu_ms_per_gb: per(run_us / 1e3, outcome.bytes as f64 / 1e9),
            cpu_us_per_second: run_us / wall_seconds,
            rss_mb: peak_rss_bytes as f64 / 1e6,
            rps: per(outcome.count as f64, wall_seconds).filter(|rps| *rps > 0.0),
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            busy: run_us / 1e6 / wall_seconds,
            waited: cpu.wait_ns as f64 / 1e9 / wall_seconds,
        }
    }
}

impl Performance {
    /// A figure over all rounds.
    #[must_use]
    pub fn summary(&self, figure: Figure) -> Option<Summary> {
        Summary::of(&self.by_round(figure).into_iter().flatten().collect::<Vec<_>>())
    }

    /// The ratio of this proxy's figure to another's, taken round by round.
    #[must_use]
    pub fn ratio_to(&self, other: &Self, figure: Figure) -> Option<Summary> {
        ratio_by_round(&self.by_round(figure), &other.by_round(figure))
    }

    fn by_round(&self, figure: Figure) -> Vec<Option<f64>> {
        self.turns.iter().map(|turn| turn.as_ref().and_then(figure.1)).collect()
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut object = Map::new();
        match &self.missing {
            Some(Missing::NotPossible(reason)) => {
                object.insert("not_possible".into(), json!(reason));
            }
            Some(Missing::Failed(reason)) => {
                object.insert("failed".into(), json!(reason));
            }
            None => {
                let mut range = Map::new();
                for figure in FIGURES {
                    let Some(summary) = self.summary(figure) else { continue };
                    object.insert(figure.0.into(), json!(summary.median));
                    range.insert(figure.0.into(), json!({"min": summary.min, "max": summary.max}));
                }
                object.insert("range".into(), Value::Object(range));
                object.insert("rounds".into(), json!(self.turns.iter().flatten().count()));
            }
        }
        if let Some(remark) = self.remark {
            object.insert("remark".into(), json!(remark));
        }
        Value::Object(object)
    }
}

impl Results {
    /// What a proxy did in a case.
    #[must_use]
    pub fn of(&self, case: Case, contender: Contender) -> Option<&Performance> {
        self.cases.get(&case)?.get(&contender)
    }

    /// Memory at rest, in MB.
    #[must_use]
    pub fn rest(&self, contender: Contender) -> Option<Summary> {
        Summary::of(self.rest_mb.get(&contender)?)
    }

    /// Our figure against another's in a case, round by round.
    #[must_use]
    pub fn ratio(&self, case: Case, other: Contender, figure: Figure) -> Option<Summary> {
        self.of(case, Contender::Towpath)?.ratio_to(self.of(case, other)?, figure)
    }

    /// The whole as JSON: `cases.<case>.<proxy>.<figure>` and what is needed to judge it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let cases: Map<String, Value> = self
            .cases
            .iter()
            .map(|(case, performances)| {
                let proxies = performances.iter().map(|(c, p)| (c.to_string(), p.to_json()));
                (case.to_string(), Value::Object(proxies.collect()))
            })
            .collect();
        let rest: Map<String, Value> = self
            .rest_mb
            .keys()
            .filter_map(|c| Some((c.to_string(), json!(self.rest(*c)?))))
            .collect();
        let versions: Map<String, Value> =
            self.versions.iter().map(|(c, v)| (c.to_string(), json!(v))).collect();
        json!({
            "bench": "peers",
            "machine": self.machine,
            "settings": {"pinned": self.pinned, "quick": self.sizes.quick,
                "small_body_bytes": self.sizes.small_body, "rounds": self.rounds},
            "versions": versions,
            "rest_rss_mb": rest,
            "cases": cases,
            "ratios": self.ratios_json(),
        })
    }

    fn ratios_json(&self) -> Value {
        let mut ratios = Map::new();
        for (case, performances) in &self.cases {
            let figure = case.main_figure();
            let against: Map<String, Value> = performances
                .keys()
                .filter(|other| **other != Contender::Towpath)
                .filter_map(|other| {
                    let ratio = self.ratio(*case, *other, figure)?;
                    Some((format!("towpath/{other}"), json!({"figure": figure.0, "ratio": ratio})))
                })
                .collect();
            if !against.is_empty() {
                ratios.insert(case.to_string(), Value::Object(against));
            }
        }
        Value::Object(ratios)
    }
}

impl Case {
    /// The figure that proxies are compared by in this case.
    #[must_use]
    pub fn main_figure(self) -> Figure {
        match self.kind() {
            Kind::Small => CPU_PER_REQUEST,
            Kind::Bulk => CPU_PER_GB,
            Kind::Idle => RSS,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A run with the given CPU per request, CPU per GB and memory at rest.
    pub(crate) fn run_with(
        figures: &[(Case, Contender, f64)],
        rest: &[(Contender, f64)],
    ) -> Results {
        let mut results = Results {
            machine: Machine::look(),
            pinned: true,
            sizes: Sizes { quick: false, small_body: 1024 },
            rounds: 1,
            versions: BTreeMap::from([(Contender::Towpath, "0.1.0".to_owned())]),
            rest_mb: rest.iter().map(|(c, mb)| (*c, vec![*mb])).collect(),
            cases: BTreeMap::new(),
        };
        for (case, contender, cpu) in figures {
            let turn = Turn {
                cpu_us_per_request: Some(*cpu),
                cpu_ms_per_gb: Some(*cpu),
                cpu_us_per_second: 1.0,
                rss_mb: 9.5,
                rps: Some(1000.0),
                p50_ms: Some(1.0),
                p99_ms: Some(2.0),
                busy: 0.9,
                waited: 0.01,
            };
            let performance = Performance { turns: vec![Some(turn)], missing: None, remark: None };
            results.cases.entry(*case).or_default().insert(*contender, performance);
        }
        results
    }

    #[test]
    fn a_turn_is_cost_over_work() {
        let mut latency = hdrhistogram::Histogram::new(3).expect("valid");
        for micros in [100, 200, 300, 4000] {
            latency.record(micros).expect("in range");
        }
        let outcome = Outcome { count: 4, bytes: 2_000_000, latency };
        let cpu = CpuSpent { run_ns: 80_000, wait_ns: 2_000_000 };
        let turn = Turn::new(&outcome, 0.02, cpu, 5_000_000);
        assert_eq!(turn.cpu_us_per_request, Some(20.0));
        assert_eq!(turn.cpu_ms_per_gb, Some(40.0));
        assert_eq!((turn.rps, turn.rss_mb), (Some(200.0), 5.0));
        assert!((turn.busy - 0.004).abs() < 1e-9 && (turn.waited - 0.1).abs() < 1e-9);
        assert!(turn.p50_ms.is_some_and(|ms| (0.19..0.21).contains(&ms)));
        assert!(turn.p99_ms.is_some_and(|ms| (3.9..4.1).contains(&ms)));
    }

    #[test]
    fn a_turn_without_requests_has_no_figure_per_request() {
        let latency = hdrhistogram::Histogram::new(3).expect("valid");
        let outcome = Outcome { count: 0, bytes: 0, latency };
        let turn = Turn::new(&outcome, 2.0, CpuSpent { run_ns: 1000, wait_ns: 0 }, 1);
        assert_eq!((turn.cpu_us_per_request, turn.cpu_ms_per_gb, turn.rps), (None, None, None));
        assert_eq!((turn.p50_ms, turn.cpu_us_per_second), (None, 0.5));
    }

    #[test]
    fn the_json_has_the_promised_paths() {
        let mut results = run_with(
            &[(Case::H1Small, Contender::Towpath, 11.0), (Case::H1Small, Contender::Haproxy, 10.0)],
            &[(Contender::Towpath, 7.5)],
        );
        let missing = Some(Missing::NotPossible("because".into()));
        let nginx = Performance { missing, ..Performance::default() };
        results.cases.entry(Case::Tcp).or_default().insert(Contender::Nginx, nginx);
        let json = results.to_json();
        for key in ["cpu_us_per_request", "cpu_ms_per_gb", "rss_mb", "rps", "p99_ms"] {
            assert!(json["cases"]["h1-small"]["towpath"][key].is_f64(), "{key}");
            assert!(json["cases"]["h1-small"]["towpath"]["range"][key]["max"].is_f64(), "{key}");
        }
        assert_eq!(json["cases"]["tcp-1g"]["nginx"]["not_possible"], "because");
        assert_eq!(json["rest_rss_mb"]["towpath"]["median"], 7.5);
        assert_eq!(json["ratios"]["h1-small"]["towpath/haproxy"]["ratio"]["median"], 1.1);
    }
}
