//! What one number does to health: pure functions from a reading to a factor and
//! its reason.

use super::Limits;
use crate::reading::{Heat, Reading, Residency, ServerLoad, Throttle, Vendor};

/// A factor, and why it is not 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Term {
    pub(super) factor: f64,
    pub(super) reason: Option<String>,
}

impl Term {
    pub(super) fn good() -> Self {
        Self { factor: 1.0, reason: None }
    }

    /// A factor that is no number counts as 0: whoever cannot say how well it is gets no traffic for that.
    pub(super) fn new(factor: f64, reason: impl Into<String>) -> Self {
        let factor = if factor.is_nan() { 0.0 } else { factor.clamp(0.0, 1.0) };
        Self { factor, reason: (factor < 1.0).then(|| reason.into()) }
    }

    pub(super) fn worse(self, other: Self) -> Self {
        if other.factor < self.factor { other } else { self }
    }

    /// The same, with the name of its card.
    pub(super) fn of(mut self, card: &str) -> Self {
        self.reason = self.reason.map(|reason| format!("{card}: {reason}"));
        self
    }

    /// The mean of all, with the reason of the worst.
    pub(super) fn mean(terms: impl Iterator<Item = Self>) -> Option<Self> {
        let (mut sum, mut count, mut worst) = (0.0, 0_u32, Self::good());
        for term in terms {
            sum += term.factor;
            count += 1;
            worst = worst.worse(term);
        }
        (count > 0).then(|| Self {
            factor: (sum / f64::from(count)).clamp(0.0, 1.0),
            reason: worst.reason,
        })
    }

    /// Both together, with the reason of the worse.
    pub(super) fn times(self, other: Self) -> Self {
        let factor = self.factor * other.factor;
        Self { factor, reason: self.worse(other).reason }
    }
}

/// How full the memory is.
pub(super) fn vram(reading: &Reading, limits: &Limits) -> Option<Term> {
    let share = reading.vram_share()?;
    let factor = falling(share, (limits.vram_from, 1.0), (1.0, limits.vram_full));
    Some(Term::new(factor, format!("VRAM {:.0} %", share * 100.0)))
}

/// How near a temperature is to its limit.
pub(super) fn heat(place: &str, heat: Heat, limit: f64, limits: &Limits) -> Option<Term> {
    let now = heat.now?;
    let off = heat.emergency.filter(|off| *off > limit).unwrap_or(limit + limits.heat_margin);
    let factor = if now <= limit {
        falling(now, (limit - limits.heat_margin, limit), (1.0, limits.heat_limit))
    } else {
        falling(now, (limit, off), (limits.heat_limit, 0.0))
    };
    Some(Term::new(factor, format!("{place} at {now:.0} °C of {limit:.0}")))
}

/// Where the card of `reading` slows down at `heat`, told or by its make.
pub(super) fn limit_of(
    heat: Heat,
    told_by_make: (f64, f64),
    reading: &Reading,
    limits: &Limits,
) -> f64 {
    let (amd, nvidia) = told_by_make;
    let by_make = if reading.vendor == Some(Vendor::Nvidia) { nvidia } else { amd };
    heat.critical.or(heat.emergency.map(|off| off - limits.heat_margin)).unwrap_or(by_make)
}

/// What heat leaves of the clocks. To be held down by the limit of power is how a busy card runs.
///
/// `left` is the share of its highest clock that it runs at.
pub(super) fn throttle(
    reading: &Reading,
    before: Option<Residency>,
    left: Option<f64>,
    limits: &Limits,
) -> Option<Term> {
    let residency = reading.residency.zip(before).and_then(|(now, before)| hot_share(now, before));
    let held = match (residency, reading.throttle) {
        (Some(share), _) => share,
        (None, Some(Throttle::Heat)) => 1.0,
        (None, Some(Throttle::Unsaid)) if is_hot(reading, limits) => 1.0,
        (None, Some(_)) => 0.0,
        (None, None) => return None,
    };
    let left = left.unwrap_or(limits.throttled).max(limits.throttled_least);
    let reason = match reading.hottest() {
        Some(celsius) => format!("throttled at {celsius:.0} °C"),
        None => "throttled by heat".to_owned(),
    };
    Some(Term::new(1.0 - held * (1.0 - left.min(1.0)), reason))
}

/// The share of its highest clock that a card has under load; an idle one has low clocks for other reasons.
pub(super) fn clock_share(reading: &Reading) -> Option<f64> {
    let clocks = reading.clocks.filter(|clocks| clocks.most > 0.0)?;
    (reading.busy? >= 0.5).then_some(clocks.now / clocks.most)
}

/// In how much of the time between two readings heat held the clocks down. None when the counters stood still or started over.
fn hot_share(now: Residency, before: Residency) -> Option<f64> {
    let looks = now.looks.wrapping_sub(before.looks);
    let hot = now.hot.wrapping_sub(before.hot);
    let share = f64::from(hot) / f64::from(looks);
    // A card that touches its limit for an instant is not slow.
    (looks > 0 && hot <= looks).then_some(if share < 0.1 { 0.0 } else { share })
}

fn is_hot(reading: &Reading, limits: &Limits) -> bool {
    places(reading).into_iter().any(|(_, heat, by_make)| {
        let limit = limit_of(heat, by_make, reading, limits);
        heat.now.is_some_and(|now| now >= limit - limits.heat_margin)
    })
}

/// The temperatures of a card: where, what, and the limits of AMD's and NVIDIA's where the source tells none (an
/// exporter), low on purpose.
pub(super) fn places(reading: &Reading) -> [(&'static str, Heat, (f64, f64)); 3] {
    [
        ("edge", reading.edge, (100.0, 90.0)),
        ("junction", reading.junction, (100.0, 100.0)),
        ("memory", reading.memory, (95.0, 95.0)),
    ]
}

/// What a model server has left: a full cache makes it compute again, and a long queue makes all wait.
pub(super) fn server(load: &ServerLoad, limits: &Limits) -> Option<Term> {
    let cache = load.kv_cache.map(|share| {
        let factor = falling(share, (limits.cache_from, 1.0), (1.0, limits.cache_full));
        Term::new(factor, format!("KV cache {:.0} %", share * 100.0))
    });
    let queue = load.waiting.map(|waiting| {
        let running = load.running.unwrap_or(0.0);
        let served = running.max(limits.waiting_free);
        // As many may wait as run: half of the time is then spent waiting, and beyond that it grows.
        let factor = (2.0 * served / (served + waiting)).clamp(limits.waiting_least, 1.0);
        Term::new(factor, format!("{waiting:.0} requests wait"))
    });
    [cache, queue].into_iter().flatten().reduce(Term::worse)
}

/// The straight line through (`from`, `high`) and (`to`, `low`), level beyond them.
fn falling(at: f64, (from, to): (f64, f64), (high, low): (f64, f64)) -> f64 {
    if at <= from {
        high
    } else if at >= to {
        low
    } else {
        high + (low - high) * (at - from) / (to - from)
    }
}
