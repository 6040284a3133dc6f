//! Goodput: what is remembered of an endpoint, and whether it lags behind. Pure.
//!
//! An endpoint's pace is bytes per second of the time in which a transfer
//! waited for it. It is held against what its peers *delivered*: bytes per
//! second of all the time their transfers took, waits for clients included. So
//! where clients are the slow ones nobody lags, and an endpoint that a client
//! would never notice is not out. Both are taken per endpoint and per transfer,
//! and an endpoint lags only when both say so: alone, one would condemn the
//! endpoint with the fewest transfers, and the other that with the most.
//!
//! Time is sampled, so a pace is an estimate. It is taken at the end of its
//! confidence interval that speaks for the endpoint.

use std::collections::VecDeque;

use towpath_policies::model::Goodput;

use super::{
    meter::Reading,
    peers::{Seat, usual},
};

/// Time between samples.
pub const TICK_MS: u64 = 50;
/// Samples between judgements.
pub const TICKS_PER_ROUND: u64 = 5;
/// Judgements in a row that eject.
const STRIKES: u32 = 2;
/// A pause of the control thread counts as so many ticks at most.
const LONGEST_TICK: f64 = 4.0;
/// Samples with a transfer that a pace is told from.
const FEWEST: f64 = 4.0;
/// What is remembered after a round: half of it is gone after about 3.4 s.
const MEMORY: f64 = 0.95;
/// Peers must differ from it by so many standard deviations (of logarithms).
const DEVIATIONS: f64 = 3.0;

/// Sums over some time, in ticks.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    ticks: f64,
    bytes: f64,
    /// With a transfer that waited for the endpoint, and transfers that did.
    waiting: (f64, f64),
    /// With a transfer, and transfers.
    active: (f64, f64),
}

/// What is remembered of one endpoint.
#[derive(Clone, Debug, Default)]
pub struct Track {
    bytes: Option<u64>,
    round: Sums,
    /// The rounds of the window.
    rounds: VecDeque<Sums>,
    /// Longer ago counts less.
    memory: Sums,
    strikes: u32,
}

/// Bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Of the endpoint.
    pub endpoint: f64,
    /// Of each of its transfers.
    pub transfer: f64,
    /// Told from so many seconds.
    pub seconds: f64,
}

/// What is known of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Its pace while it was waited for, at best; `None` when it hardly was.
    pub waited_for: Option<Pace>,
    /// What it delivered, at least; `None` when that was hardly anything.
    pub delivered: Option<Pace>,
}

/// An endpoint that lags behind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lag {
    /// Its bytes per second while it was waited for.
    pub pace: f64,
    /// Its peers' median.
    pub usual: f64,
}

impl Track {
    /// Takes what was read after `elapsed_ms`.
    pub fn sample(&mut self, reading: Reading, elapsed_ms: u64) {
        let before = self.bytes.replace(reading.bytes).unwrap_or(reading.bytes);
        let bytes = reading.bytes.saturating_sub(before);
        let ticks = (elapsed_ms as f64 / TICK_MS as f64).min(LONGEST_TICK);
        // One that was ahead and has sent nothing since is waited for after all.
        let stalled = if bytes == 0 { reading.ahead } else { 0 };
        let waiting = reading.waiting + stalled;
        let active = reading.elsewhere + reading.ahead + reading.waiting;
        let both =
            |transfers: u32| (f64::from(transfers.min(1)) * ticks, f64::from(transfers) * ticks);
        self.round.add(&Sums {
            ticks,
            bytes: bytes as f64,
            waiting: both(waiting),
            active: both(active),
        });
    }

    /// Ends a round.
    pub fn end_round(&mut self, terms: &Goodput) {
        let round = std::mem::take(&mut self.round);
        self.memory.scale(MEMORY);
        self.memory.add(&round);
        self.rounds.push_back(round);
        let rounds = terms.window.as_millis().div_ceil(u128::from(TICK_MS * TICKS_PER_ROUND));
        while self.rounds.len() as u128 > rounds.max(1) {
            self.rounds.pop_front();
        }
    }

    /// Whether it has nothing to tell any more.
    pub fn is_blank(&self) -> bool {
        self.round.active.0 == 0.0 && self.rounds.iter().all(|round| round.active.0 == 0.0)
    }

    /// What is known of it.
    pub fn figures(&self) -> Figures {
        let mut window = Sums::default();
        self.rounds.iter().for_each(|round| window.add(round));
        let least = lower(window.waiting.0, window.ticks);
        let enough = window.waiting.0 >= FEWEST.max(window.ticks / 4.0) && least > 0.0;
        let waited_for = enough.then(|| window.pace(window.waiting, least));
        let delivered = window.delivered().or_else(|| self.memory.delivered());
        Figures { waited_for, delivered }
    }

    /// Takes a verdict of this round; true when it is the last one needed.
    pub fn strike(&mut self, lags: bool) -> bool {
        self.strikes = if lags { self.strikes + 1 } else { 0 };
        let out = self.strikes >= STRIKES;
        if out {
            self.strikes = 0;
        }
        out
    }
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.ticks += other.ticks;
        self.bytes += other.bytes;
        self.waiting.0 += other.waiting.0;
        self.waiting.1 += other.waiting.1;
        self.active.0 += other.active.0;
        self.active.1 += other.active.1;
    }

    fn scale(&mut self, by: f64) {
        self.ticks *= by;
        self.bytes *= by;
        self.waiting = (self.waiting.0 * by, self.waiting.1 * by);
        self.active = (self.active.0 * by, self.active.1 * by);
    }

    fn delivered(&self) -> Option<Pace> {
        (self.active.0 >= FEWEST).then(|| self.pace(self.active, upper(self.active.0, self.ticks)))
    }

    /// `time` was sampled, and is taken to be `corrected`.
    fn pace(&self, time: (f64, f64), corrected: f64) -> Pace {
        let second = TICK_MS as f64 / 1000.0;
        let seconds = corrected * second;
        let transfers = time.1 * (corrected / time.0) * second;
        Pace { endpoint: self.bytes / seconds, transfer: self.bytes / transfers, seconds }
    }
}

/// Of `samples`, `hits` saw it: it was there for at least this many, very likely.
fn lower(hits: f64, samples: f64) -> f64 {
    hits - 2.0 * spread(hits, samples)
}

/// And at most this many.
fn upper(hits: f64, samples: f64) -> f64 {
    (hits + 2.0 * spread(hits, samples)).min(samples)
}

fn spread(hits: f64, samples: f64) -> f64 {
    (hits * (1.0 - hits / samples)).max(0.0).sqrt()
}

/// Ends a round for all endpoints of a service; tells which are to be ejected.
/// `place` is the group of the endpoint of a track, and whether it is ejected.
pub fn end_round(
    tracks: &mut [Track],
    place: impl Fn(usize) -> (u32, bool),
    min_endpoints: u32,
    terms: &Goodput,
) -> Vec<(usize, Lag)> {
    tracks.iter_mut().for_each(|track| track.end_round(terms));
    let seats: Vec<_> = tracks
        .iter()
        .enumerate()
        .map(|(at, track)| {
            let (group, ejected) = place(at);
            Seat { group, ejected, figure: track.figures() }
        })
        .collect();
    let mut out = Vec::new();
    for (at, track) in tracks.iter_mut().enumerate() {
        let lag = lag(&seats, at, min_endpoints, terms);
        if track.strike(lag.is_some()) {
            out.extend(lag.map(|lag| (at, lag)));
        }
    }
    out
}

/// Whether the endpoint at this seat lags behind its peers.
pub fn lag(seats: &[Seat<Figures>], at: usize, min_endpoints: u32, terms: &Goodput) -> Option<Lag> {
    let seat = seats.get(at).filter(|seat| !seat.ejected)?;
    let pace = seat.figure.waited_for?;
    let below = |pace: f64, of: fn(&Pace) -> f64| {
        let figure = |figures: &Figures| figures.delivered.as_ref().map(|pace| of(pace).ln());
        let usual = usual(seats, at, min_endpoints, figure)?;
        let share = (f64::from(terms.below_percent) / 100.0).ln();
        let far = share.min(-DEVIATIONS * usual.deviation);
        (pace.ln() < usual.median + far).then(|| usual.median.exp())
    };
    let usual = below(pace.endpoint, |p| p.endpoint)?;
    below(pace.transfer, |p| p.transfer)?;
    (usual * pace.seconds >= terms.min_bytes as f64).then_some(Lag { pace: pace.endpoint, usual })
}

#[cfg(test)]
mod tests;
