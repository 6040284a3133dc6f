//! Turns by weights that endpoints' load reports tell (gRFC A58, `weighted_round_robin`).
//!
//! An endpoint's weight is what it could serve at full load: requests per second by utilization, and
//! by the share of errors. Each report tells it anew; from time to time the control thread makes
//! *strides* of the weights, and picks read those: a member has its turn in so many rounds of
//! 65,535 as its stride says, evenly spread. That takes one addition to a counter where weights are alike,
//! and up to 20 in the mean where one is at the upper bound (half of the members have a tenth of its turns
//! or more); no lock and no memory.
//!
//! What is reported is a claim. Within a level weights are bounded by their median, so that who says that
//! it idles at a million requests per second gets ten times what is usual, and not all.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed};

use towpath_policies::model::{Balancer, Service, Weighing};
use towpath_xds::orca::{GOODPUT_FACTOR, JOULES_PER_BYTE, LoadReport};

#[cfg(test)]
mod tests;

use super::{EndpointLive, Level, ServiceState, tally::Figures};

/// What an endpoint can do, by its reports.
#[derive(Debug, Default)]
pub(crate) struct Capacity {
    /// Requests per second at full load; an `f64` above 0, or 0 for none.
    weight: AtomicU64,
    /// Since when reports come without a gap, and when the last one came; 0 = never.
    since_ms: AtomicU64,
    last_ms: AtomicU64,
}

/// What weights are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Load {
    requests_per_second: f64,
    errors_per_second: f64,
    utilization: f64,
}

/// The weights in force in a view of a service.
#[derive(Debug)]
pub(crate) struct Weights {
    levels: Box<[Turns]>,
    weighed_ms: AtomicU64,
}

/// Of one level.
#[derive(Debug)]
struct Turns {
    /// Fewer than two members have a weight.
    unknown: AtomicBool,
    strides: Box<[AtomicU16]>,
    /// Where this view begins, so that many proxies do not begin with the same endpoint.
    start: u64,
}

/// The stride of who has a turn in every round.
const WHOLE: u64 = u16::MAX as u64;
/// Members with like strides have their turns in other rounds. As gRPC has it.
const OFFSET: u64 = WHOLE / 2;
/// Most of the median weight that one counts for: machines of a service that differ by more are rare, and
/// lies are not.
const MOST_OF_MEDIAN: f64 = 10.0;
/// And least, so that it goes on to be asked how it is.
const LEAST_OF_MEDIAN: f64 = 0.01;
/// Nobody serves more, or less, and reports it.
const REQUESTS_PER_SECOND: (f64, f64) = (1e-6, 1e9);
const UTILIZATION: (f64, f64) = (1e-6, 1e6);
/// A report so soon after another says nothing new.
const NEWS_AFTER_MS: u64 = 5;

impl ServiceState {
    /// An endpoint says how it is. That counts where the policy goes by it.
    pub(crate) fn heed(&self, live: &EndpointLive, report: &LoadReport, now_ms: u64) {
        live.tally.heard(&Figures::of(report));
        if self.weights.is_some() {
            let terms = &self.spec.weighing;
            if let Some(weight) = Load::of(report, &terms.metrics).weight(terms.error_penalty) {
                live.capacity.take(weight, now_ms);
            }
        }
        if self.completion.is_none() {
            return;
        }
        if let Some(factor) = report.named_metrics.get(GOODPUT_FACTOR) {
            live.reported(*factor, now_ms);
        }
        if let Some(joules) = report.named_metrics.get(JOULES_PER_BYTE) {
            live.energy.reported(*joules, now_ms);
        }
    }

    /// Puts new weights in force when it is time to. To be called many times a second.
    pub(crate) fn weigh(&self, now_ms: u64) {
        let Some(weights) = &self.weights else { return };
        let period = millis(self.spec.weighing.update_period);
        if now_ms.saturating_sub(weights.weighed_ms.load(Relaxed)) >= period {
            weights.weigh(&self.spec.weighing, &self.levels, now_ms);
        }
    }
}

impl Capacity {
    fn take(&self, weight: f64, now_ms: u64) {
        if self.since_ms.load(Relaxed) == 0 {
            self.since_ms.store(now_ms, Relaxed);
        }
        self.weight.store(weight.to_bits(), Relaxed);
        self.last_ms.store(now_ms, Relaxed);
    }

    /// Whether another report may tell something that the last did not.
    pub(crate) fn wants_news(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.last_ms.load(Relaxed)) >= NEWS_AFTER_MS
    }

    /// Requests per second at full load, by the last report.
    pub(crate) fn value(&self) -> Option<f64> {
        Some(f64::from_bits(self.weight.load(Relaxed))).filter(|weight| *weight > 0.0)
    }

    /// The weight that counts now: one that is not too old, of one that has reported for a while.
    fn weight(&self, terms: &Weighing, now_ms: u64) -> Option<f64> {
        let age_ms = now_ms.saturating_sub(self.last_ms.load(Relaxed));
        if age_ms >= millis(terms.expiration) {
            self.since_ms.store(0, Relaxed);
            self.weight.store(0, Relaxed);
            return None;
        }
        // A report that comes while one expires may find the old beginning and leave none: the next one
        // does.
        let since = self.since_ms.load(Relaxed);
        let begun = since > 0 && now_ms.saturating_sub(since) >= millis(terms.blackout);
        self.value().filter(|_| begun)
    }
}

impl Load {
    /// Of a report that says only what can be.
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    fn of(report: &LoadReport, metrics: &[String]) -> Self {
        let known = metrics.iter().filter_map(|name| metric(report, name));
        let wanted = known.fold(0.0, f64::max);
        let each = [wanted, report.application_utilization, report.cpu_utilization];
        let fractional = report.rps_fractional;
        Self {
            requests_per_second: if fractional > 0.0 { fractional } else { report.rps as f64 },
            errors_per_second: report.eps,
            utilization: each.into_iter().find(|share| *share > 0.0).unwrap_or(0.0),
        }
    }

    /// `None` of one that does nothing, or does not say.
    fn weight(self, error_penalty: f32) -> Option<f64> {
        let is_said = |load: f64| load.is_finite() && load > 0.0;
        if !is_said(self.requests_per_second) || !is_said(self.utilization) {
            return None;
        }
        let rate = self.requests_per_second.clamp(REQUESTS_PER_SECOND.0, REQUESTS_PER_SECOND.1);
        // Without a penalty no number of errors counts, be it past all measure.
        let errors = if is_said(self.errors_per_second) && error_penalty > 0.0 {
            self.errors_per_second / rate * f64::from(error_penalty)
        } else {
            0.0
        };
        Some(rate / (self.utilization + errors).clamp(UTILIZATION.0, UTILIZATION.1))
    }
}

fn metric(report: &LoadReport, name: &str) -> Option<f64> {
    match name.split_once('.') {
        Some(("named_metrics", name)) => report.named_metrics.get(name).copied(),
        Some(("utilization", name)) => report.utilization.get(name).copied(),
        Some(_) => None,
        None => match name {
            "cpu_utilization" => Some(report.cpu_utilization),
            "mem_utilization" => Some(report.mem_utilization),
            "application_utilization" => Some(report.application_utilization),
            _ => None,
        },
    }
}

impl Weights {
    /// Those that count now; `None` where another policy picks.
    pub(super) fn new(spec: &Service, levels: &[Level], now_ms: u64) -> Option<Box<Self>> {
        if spec.balancer != Balancer::WeightedRoundRobin {
            return None;
        }
        let turns = |level: &Level| Turns {
            unknown: AtomicBool::new(true),
            strides: level.members.iter().map(|_| AtomicU16::new(0)).collect(),
            start: fastrand::u32(..).into(),
        };
        let levels_of = levels.iter().map(turns).collect();
        let new = Self { levels: levels_of, weighed_ms: AtomicU64::new(0) };
        new.weigh(&spec.weighing, levels, now_ms);
        Some(Box::new(new))
    }

    fn weigh(&self, terms: &Weighing, levels: &[Level], now_ms: u64) {
        self.weighed_ms.store(now_ms, Relaxed);
        for (turns, level) in self.levels.iter().zip(levels) {
            let weights = level.lives.iter().map(|live| live.capacity.weight(terms, now_ms));
            turns.set(strides(&weights.collect::<Vec<_>>()));
        }
    }

    /// Whether weights count in a level; else members have their turns as configured.
    pub(super) fn count_in(&self, level: usize) -> bool {
        !self.levels[level].unknown.load(Relaxed)
    }

    /// The member of a level whose turn it is.
    pub(super) fn next(&self, level: usize, turn: &AtomicU64) -> usize {
        self.levels[level].next(turn)
    }
}

impl Turns {
    fn set(&self, strides: Option<Vec<u16>>) {
        let Some(strides) = strides else {
            self.unknown.store(true, Relaxed);
            return;
        };
        // Who picks meanwhile sees some old ones and some new ones.
        for (place, stride) in self.strides.iter().zip(strides) {
            place.store(stride, Relaxed);
        }
        self.unknown.store(false, Relaxed);
    }

    fn next(&self, turn: &AtomicU64) -> usize {
        // In every round there is one who has a turn, unless other workers take all of them.
        for _ in 0..self.strides.len() * 4 {
            let at = turn.fetch_add(1, Relaxed).wrapping_add(self.start);
            if let Some(member) = self.at(at) {
                return member;
            }
        }
        fastrand::usize(..self.strides.len().max(1))
    }

    /// The member that is looked at in this place of all rounds, if it has its turn in this one.
    fn at(&self, place: u64) -> Option<usize> {
        let count = self.strides.len() as u64;
        let (round, member) = (place.checked_div(count)?, place % count);
        let index = usize::try_from(member).ok()?;
        let stride = u64::from(self.strides[index].load(Relaxed));
        let phase = (stride * (round % WHOLE) + member * OFFSET) % WHOLE;
        (phase >= WHOLE - stride).then_some(index)
    }
}

/// Strides in proportion to the weights, the largest [`WHOLE`]; who has none counts as the mean. `None`
/// when fewer than two have one.
fn strides(weights: &[Option<f64>]) -> Option<Vec<u16>> {
    let mut known: Vec<f64> = weights.iter().copied().flatten().collect();
    if known.len() < 2 {
        return None;
    }
    known.sort_by(f64::total_cmp);
    // The lower of two: with two, neither can say that the other is nothing.
    let median = known[(known.len() - 1) / 2];
    let bounded = |weight: f64| weight.clamp(median * LEAST_OF_MEDIAN, median * MOST_OF_MEDIAN);
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    let mean = known.iter().map(|weight| bounded(*weight)).sum::<f64>() / known.len() as f64;
    let largest = known.last().map_or(median, |weight| bounded(*weight));
    let stride = |weight: &Option<f64>| {
        let share = weight.map_or(mean, bounded) / largest;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from 0 to 1 before"
        )]
        let stride = (share * f64::from(u16::MAX)).round() as u16;
        stride.max(1)
    };
    Some(weights.iter().map(stride).collect())
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
