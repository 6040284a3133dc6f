//! One card over time.

use std::time::Duration;

use super::{
    Limits,
    pace::Remembered,
    terms::{self, Term},
};
use crate::reading::{Heat, Reading, Residency, State};

/// What is remembered of one card.
#[derive(Debug, Default)]
pub(super) struct Card {
    id: String,
    vram: Remembered,
    heat: [Remembered; 3],
    throttle: Remembered,
    /// Limits of temperature, which a card does not change: told once, they hold.
    told: [Heat; 3],
    /// The share of its clocks that it last ran at.
    clocks: Option<f64>,
    whole: Remembered,
    residency: Option<Residency>,
    errors: Errors,
    resetting: bool,
    resets: u64,
    /// In how many observations in a row it was not there.
    missed: u32,
}

impl Card {
    pub(super) fn new(id: String) -> Self {
        Self { id, ..Self::default() }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn resets(&self) -> u64 {
        self.resets
    }

    /// What a reading of it makes of it. `own_cache`: its memory is a model server's, who tells how full it is.
    pub(super) fn observe(
        &mut self,
        reading: &Reading,
        own_cache: bool,
        at: Duration,
        limits: &Limits,
    ) -> Term {
        self.missed = 0;
        let term = match reading.state {
            State::Resetting => self.reset(),
            State::Lost => Term::new(0.0, "is lost"),
            State::Asleep => Term::good().worse(self.errors.term(at)),
            State::Ready => self.judge(reading, own_cache, at, limits),
        };
        self.whole.follow(Some(term.clone()), "", at, limits);
        term
    }

    /// What to make of it when its source answers without it. Once may be the source's fault.
    pub(super) fn missed(&mut self, at: Duration, limits: &Limits) -> Term {
        self.missed = self.missed.saturating_add(1);
        if self.missed < GONE_AFTER { self.unheard(at, limits) } else { Term::new(0.0, "is gone") }
    }

    /// What to make of it when its source is silent. A card that is gone does not come back by that.
    pub(super) fn unheard(&mut self, at: Duration, limits: &Limits) -> Term {
        if self.missed >= GONE_AFTER {
            return Term::new(0.0, "is gone");
        }
        let last = self.whole.follow(None, "the GPU's source", at, limits);
        last.unwrap_or_else(|| Term::new(limits.unknown, "nothing is known"))
            .worse(self.errors.term(at))
    }

    fn reset(&mut self) -> Term {
        if !self.resetting {
            self.resets += 1;
        }
        self.resetting = true;
        Term::new(0.0, "is being reset")
    }

    fn judge(&mut self, reading: &Reading, own_cache: bool, at: Duration, limits: &Limits) -> Term {
        let errors = self.errors.follow(reading, std::mem::take(&mut self.resetting), at, limits);
        if reading.healthy == Some(false) {
            return Term::new(0.0, "unhealthy, says its exporter");
        }
        if own_cache {
            self.vram.forget();
        }
        let vram = if own_cache { None } else { terms::vram(reading, limits) };
        if reading.clocks.is_some() && reading.busy.is_some() {
            self.clocks = terms::clock_share(reading);
        }
        let throttle = terms::throttle(reading, self.residency, self.clocks, limits);
        self.residency = reading.residency;
        let mut known = vec![errors];
        for (((place, heat, by_make), before), told) in
            terms::places(reading).into_iter().zip(&mut self.heat).zip(&mut self.told)
        {
            let heat = Heat {
                critical: heat.critical.or(told.critical),
                emergency: heat.emergency.or(told.emergency),
                ..heat
            };
            *told = heat;
            let limit = terms::limit_of(heat, by_make, reading, limits);
            let term = terms::heat(place, heat, limit, limits);
            known.push(before.follow(term, place, at, limits));
        }
        known.push(self.vram.follow(vram, "VRAM", at, limits));
        known.push(self.throttle.follow(throttle, "throttle status", at, limits));
        known
            .into_iter()
            .flatten()
            .reduce(Term::worse)
            .unwrap_or_else(|| Term::new(limits.unknown, "nothing is known"))
    }
}

/// Memory errors that could not be corrected, and others that end a card.
#[derive(Debug, Default)]
struct Errors {
    count: Option<u64>,
    xid: Option<u64>,
    times: u32,
    /// Until when it is left alone, and why.
    hold: Option<(Duration, &'static str)>,
}

impl Errors {
    /// Takes a reading; `None` when it tells nothing of errors. What was there at first is history: it may be of last year.
    fn follow(
        &mut self,
        reading: &Reading,
        after_reset: bool,
        at: Duration,
        limits: &Limits,
    ) -> Option<Term> {
        let told = reading.ecc_uncorrected.is_some() || reading.xid.is_some();
        let mut new = None;
        if let Some(count) = reading.ecc_uncorrected {
            // One that starts over was counted by a driver that is no more, or counts less than before: it clears nobody.
            if self.count.replace(count).is_some_and(|before| count > before) {
                new = Some("uncorrectable ECC");
            }
        }
        if let Some(xid) = reading.xid {
            let changed = self.xid.replace(xid).is_some_and(|before| before != xid);
            if ENDS.contains(&xid) {
                return Some(Term::new(0.0, format!("XID {xid}: needs a reset")));
            }
            if changed && MEMORY.contains(&xid) {
                new = Some("uncorrectable ECC");
            }
        }
        if let Some(reason) = new {
            let hold =
                limits.ecc_hold.saturating_mul(1 << self.times.min(16)).min(limits.ecc_longest);
            self.times = self.times.saturating_add(1);
            self.hold = Some((at.saturating_add(hold), reason));
        }
        // Errors that are first told after a reset are those that it was made for.
        if after_reset {
            self.hold = None;
        }
        told.then(|| self.term(at)).or_else(|| self.hold.is_some().then(|| self.term(at)))
    }

    fn term(&self, at: Duration) -> Term {
        match self.hold {
            Some((until, reason)) if at < until => Term::new(0.0, reason),
            _ => Term::good(),
        }
    }
}

/// An exporter can be read while it puts its text together.
const GONE_AFTER: u32 = 2;
/// NVIDIA's codes after which a card is of no use until it is reset: off the bus, its system processor dead, its memory
/// past repair.
const ENDS: [u64; 4] = [79, 119, 120, 140];
/// NVIDIA's codes for memory errors: double-bit, contained, uncontained.
const MEMORY: [u64; 3] = [48, 94, 95];
