//! How requests are shared out among priorities and localities, as Envoy does it where that is asked for.
//!
//! A priority's *availability* is the usable part of its endpoints times the overprovisioning factor, at
//! most all. Priorities take what they can bear, in order; where all together cannot bear it, each has the more in
//! proportion. Within a priority, a locality counts for its weight times its own availability. The product is one
//! share for each level, reckoned by the control thread several times a second. A pick draws a level by them:
//! one random number, a few relaxed reads, no lock and no memory.
//!
//! Where there is nothing to share out (the default), there is no [`Spread`], and nothing is drawn.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use towpath_policies::model::{self, Locality, Service};

use super::{EndpointState, Level, ServiceState};

#[cfg(test)]
mod tests;

/// The shares of the levels in a view of a service.
#[derive(Debug)]
pub(crate) struct Spread {
    /// `None` = one usable endpoint bears all.
    factor: Option<f64>,
    /// In the order of the levels, those of one priority side by side.
    parts: Box<[Part]>,
}

/// Of one level.
#[derive(Debug)]
struct Part {
    priority: u32,
    weight: f64,
    /// The sum of its endpoints' weights, for when those of localities that have usable ones are all 0.
    of_endpoints: f64,
    /// Endpoints in the level, those included that the control plane does not let be used.
    total: usize,
    /// In its priority.
    total_in_priority: usize,
    /// The shares up to this one and with it, of the whole `u32` range.
    bound: AtomicU32,
}

impl Spread {
    /// `None` where a priority is used only when none before it can be, and localities do not matter.
    pub(super) fn new(
        spec: &Service,
        said: &model::Spread,
        endpoints: &[Arc<EndpointState>],
        levels: &[Level],
    ) -> Option<Box<Self>> {
        let by_priority = said.overprovisioning_percent.is_some()
            && levels.iter().any(|level| level.priority != levels[0].priority);
        if levels.len() < 2 || !(spec.by_locality || by_priority) {
            return None;
        }
        // Those included that the control plane does not let be used: what they are missed for is in the
        // availability, and must not be in the weight too.
        let mut totals: BTreeMap<(u32, Option<&Locality>), (usize, u64)> = BTreeMap::new();
        for spec in endpoints.iter().map(|endpoint| &endpoint.spec) {
            for locality in [Some(&spec.locality), None] {
                let (count, weight) = totals.entry((spec.priority, locality)).or_default();
                *count += 1;
                *weight += u64::from(spec.weight);
            }
        }
        let part = |level: &Level| {
            let locality = &endpoints[level.members[0] as usize].spec.locality;
            let priority = level.priority;
            let key = (priority, spec.by_locality.then_some(locality));
            let (total, weight) = totals[&key];
            #[expect(clippy::cast_precision_loss, reason = "a weight")]
            let of_endpoints = weight as f64;
            let named = said.weight(priority, locality).filter(|_| spec.by_locality);
            Part {
                priority,
                weight: named.map_or(of_endpoints, f64::from),
                of_endpoints,
                total,
                total_in_priority: totals[&(priority, None)].0,
                bound: AtomicU32::new(u32::MAX),
            }
        };
        let factor = said.overprovisioning_percent.map(|percent| f64::from(percent) / 100.0);
        Some(Box::new(Self { factor, parts: levels.iter().map(part).collect() }))
    }

    /// The level for a draw from the whole `u32` range.
    pub(super) fn level(&self, drawn: u32) -> usize {
        let found = self.parts.iter().position(|part| drawn <= part.bound.load(Relaxed));
        found.unwrap_or(self.parts.len() - 1)
    }

    /// How soon a level follows where the drawn one has nobody: first those of its priority, then others, and last
    /// those that have no share.
    pub(super) fn rank(&self, level: usize, drawn: usize) -> u8 {
        let before =
            level.checked_sub(1).map_or(0, |before| self.parts[before].bound.load(Relaxed));
        match self.parts[level].bound.load(Relaxed) > before {
            false => 2,
            true => u8::from(self.parts[level].priority != self.parts[drawn].priority),
        }
    }

    /// Goes by how many endpoints of each level are usable.
    fn set(&self, usable: &[usize]) {
        let mut sum = 0.0;
        for (part, share) in self.parts.iter().zip(self.shares(usable)) {
            sum += share;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "saturates"
            )]
            part.bound.store((sum * RANGE) as u32, Relaxed);
        }
    }

    /// The levels' shares, which are 1 together, or nothing where no level has a usable endpoint.
    fn shares(&self, usable: &[usize]) -> Vec<f64> {
        let mut shares = vec![0.0; self.parts.len()];
        let priorities = self.priorities(usable);
        let all: f64 = priorities.iter().map(|(_, availability)| availability).sum();
        let (mut rest, scarcity) = (1.0_f64, all.min(1.0));
        for (levels, availability) in priorities {
            let share = if scarcity > 0.0 { rest.min(availability / scarcity) } else { 0.0 };
            rest -= share;
            let weighed = |weight: fn(&Part) -> f64| -> Vec<f64> {
                let available =
                    |level: usize| self.availability(usable[level], self.parts[level].total);
                levels.clone().map(|level| weight(&self.parts[level]) * available(level)).collect()
            };
            let mut weights = weighed(|part| part.weight);
            if weights.iter().all(|weight| *weight <= 0.0) {
                weights = weighed(|part| part.of_endpoints);
            }
            let sum: f64 = weights.iter().sum();
            for (level, weight) in levels.zip(weights) {
                shares[level] = if sum > 0.0 { share * weight / sum } else { 0.0 };
            }
        }
        shares
    }

    /// The levels of each priority, and its availability.
    fn priorities(&self, usable: &[usize]) -> Vec<(Range<usize>, f64)> {
        let mut from = 0;
        let priority = |group: &[Part]| {
            let levels = from..from + group.len();
            from = levels.end;
            let available = usable[levels.clone()].iter().sum();
            (levels, self.availability(available, group[0].total_in_priority))
        };
        self.parts.chunk_by(|a, b| a.priority == b.priority).map(priority).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "counts")]
    fn availability(&self, usable: usize, total: usize) -> f64 {
        match self.factor {
            _ if usable == 0 => 0.0,
            None => 1.0,
            Some(factor) => (factor * usable as f64 / total.max(1) as f64).min(1.0),
        }
    }
}

impl ServiceState {
    /// Reckons anew which level has which share. To be called many times a second.
    pub(crate) fn share_out(&self, now_ms: u64) {
        let Some(spread) = &self.spread else { return };
        let mut usable = self.usable_by_level(now_ms);
        // Then a pick overrules what was judged here.
        if usable.iter().all(|usable| *usable == 0) {
            usable = self.levels.iter().map(|level| level.members.len()).collect();
        }
        spread.set(&usable);
    }

    /// Whether priorities together can bear all requests, where their loss is made up for little by little.
    pub(crate) fn bears_all(&self, now_ms: u64) -> bool {
        self.spread.as_ref().filter(|spread| spread.factor.is_some()).is_some_and(|spread| {
            let priorities = spread.priorities(&self.usable_by_level(now_ms));
            priorities.iter().map(|(_, availability)| availability).sum::<f64>() >= 1.0
        })
    }

    fn usable_by_level(&self, now_ms: u64) -> Vec<usize> {
        let usable = |level: &Level| level.lives.iter().filter(|l| l.usable(now_ms)).count();
        self.levels.iter().map(usable).collect()
    }

    /// The shares of the levels now, with the priority of each and its locality where those have weights.
    pub(crate) fn shares(&self) -> Option<Vec<(u32, Option<&Locality>, f64)>> {
        let spread = self.spread.as_ref()?;
        let mut before = 0;
        let share = |(level, part): (&Level, &Part)| {
            let bound = part.bound.load(Relaxed);
            let share = f64::from(bound.saturating_sub(std::mem::replace(&mut before, bound)));
            let first = &self.endpoints[level.members[0] as usize].spec;
            let locality = self.spec.by_locality.then_some(&first.locality);
            (level.priority, locality, share / RANGE)
        };
        Some(self.levels.iter().zip(&spread.parts).map(share).collect())
    }

    /// The level that a request is sent to, where levels have shares. A request with a key has always the same,
    /// as long as shares do not change.
    pub(super) fn level_for(&self, key: Option<u64>) -> Option<(&Spread, usize)> {
        let spread = self.spread.as_deref()?;
        let drawn = match key {
            // Other bits than those that choose an endpoint.
            Some(key) => u32::try_from(key.wrapping_mul(GOLDEN) >> 32).unwrap_or(u32::MAX),
            None => fastrand::u32(..),
        };
        Some((spread, spread.level(drawn)))
    }
}

/// Of a `u32`.
const RANGE: f64 = u32::MAX as f64;
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
