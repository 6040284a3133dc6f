//! Goodput: what is remembered of an endpoint in one direction, and whether it lags behind. Pure.
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
//!
//! A transfer may be slow for reasons of its own: a throttled tenant, an object
//! that comes from tape. Such transfers last, and so gather. So a lag needs a
//! witness: the very transfers that are slow now were fast here before; or
//! several began and were slow from their beginning; or several are slow, and
//! nothing like it was seen of any peer for a while.

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
/// So many transfers that are slow at once, or one after the other, are no chance.
const SEVERAL: u32 = 3;
/// It must lie below this share of the lowest pace that peers usually come down to.
const BELOW_LOWEST: f64 = 0.5;
/// A lowest pace grows by this each round: it is tenfold after about five minutes.
const FORGET_LOWEST: f64 = 1.002;
/// Rounds, a minute, before what was not seen of peers says that they do not know it.
const ACQUAINTED: u32 = 240;

/// Sums over some time, in ticks.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    ticks: f64,
    bytes: f64,
    /// Transfers under way when it began, and begun since.
    before: u32,
    started: u32,
    /// With a transfer that waited for the endpoint, and transfers that did.
    waiting: (f64, f64),
    /// With a transfer, and transfers.
    active: (f64, f64),
}

/// What is remembered of one endpoint.
#[derive(Clone, Debug, Default)]
pub struct Track {
    last: Option<Reading>,
    round: Sums,
    /// The rounds of the window.
    rounds: VecDeque<Sums>,
    /// Longer ago counts less.
    memory: Sums,
    /// What it delivered at best since a transfer ended here: those that did it are all under way yet.
    best: f64,
    /// A transfer ended in this round.
    ended: bool,
    /// Transfers that began since it lags; `None` when it does not.
    fresh: Option<u32>,
    /// Rounds with a transfer and no lag, as far as they are counted.
    acquainted: u32,
    /// The lowest of its windows, long ago counting less.
    lowest: Option<Pace>,
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
    /// What its deliveries come down to now and then.
    pub lowest: Option<Pace>,
}

/// An endpoint that lags behind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lag {
    /// Its bytes per second while it was waited for.
    pub pace: f64,
    /// Its peers' median.
    pub usual: f64,
    /// No peer comes down so far.
    pub is_unheard_of: bool,
}

impl Track {
    /// Takes what was read after `elapsed_ms`.
    pub fn sample(&mut self, reading: Reading, elapsed_ms: u64) {
        let last = self.last.replace(reading).unwrap_or(reading);
        let bytes = reading.bytes.saturating_sub(last.bytes);
        let started = reading.started.wrapping_sub(last.started);
        let ticks = (elapsed_ms as f64 / TICK_MS as f64).min(LONGEST_TICK);
        // One that was ahead and has sent nothing since is waited for after all.
        let stalled = if bytes == 0 { reading.ahead } else { 0 };
        let waiting = reading.waiting + stalled;
        let active = reading.active();
        let both =
            |transfers: u32| (f64::from(transfers.min(1)) * ticks, f64::from(transfers) * ticks);
        if self.round.ticks == 0.0 {
            self.round.before = active.saturating_sub(started);
        }
        self.ended |= active < last.active().saturating_add(started);
        self.round.add(&Sums {
            ticks,
            bytes: bytes as f64,
            before: 0,
            started,
            waiting: both(waiting),
            active: both(active),
        });
    }

    /// Ends a round.
    pub fn end_round(&mut self, terms: &Goodput) {
        let round = std::mem::take(&mut self.round);
        if self.fresh.is_none() && round.active.0 > 0.0 {
            self.acquainted = (self.acquainted + 1).min(ACQUAINTED);
        }
        self.memory.scale(MEMORY);
        self.memory.add(&round);
        self.rounds.push_back(round);
        let rounds = terms.window.as_millis().div_ceil(u128::from(TICK_MS * TICKS_PER_ROUND));
        while self.rounds.len() as u128 > rounds.max(1) {
            self.rounds.pop_front();
        }
        let full = self.rounds.len() as u128 == rounds.max(1);
        if let Some(now) = self.window().delivered().filter(|_| full) {
            let lowest = self.lowest.get_or_insert(now);
            // No lower than a hundredth of now: a standstill, too, is forgotten one day.
            let follow = |low: f64, now: f64| (low * FORGET_LOWEST).clamp(now / 100.0, now);
            lowest.endpoint = follow(lowest.endpoint, now.endpoint);
            lowest.transfer = follow(lowest.transfer, now.transfer);
        }
        if std::mem::take(&mut self.ended) {
            self.best = 0.0;
        } else if let Some(pace) = round.delivered().filter(|_| round.started == 0) {
            // One that begins fills buffers first, which says nothing of the endpoint.
            self.best = self.best.max(pace.endpoint);
        }
    }

    fn window(&self) -> Sums {
        let mut window = Sums::default();
        self.rounds.iter().for_each(|round| window.add(round));
        window.before = self.rounds.front().map_or(0, |first| first.before);
        window
    }

    /// Whether it has nothing to tell any more.
    pub fn is_blank(&self) -> bool {
        self.round.active.0 == 0.0 && self.rounds.iter().all(|round| round.active.0 == 0.0)
    }

    /// What is known of it.
    pub fn figures(&self) -> Figures {
        let window = self.window();
        let least = lower(window.waiting.0, window.ticks);
        let enough = window.waiting.0 >= FEWEST.max(window.ticks / 4.0) && least > 0.0;
        let waited_for = enough.then(|| window.pace(window.waiting, least));
        let delivered = window.delivered().or_else(|| self.memory.delivered());
        Figures { waited_for, delivered, lowest: self.lowest }
    }

    /// Takes what was found of this round; true when that is enough.
    pub fn strike(&mut self, lag: Option<&Lag>, terms: &Goodput) -> bool {
        let Some(lag) = lag else {
            if self.strikes > STRIKES {
                // A long lag without a witness: such things happen here.
                self.acquainted = 0;
            }
            (self.strikes, self.fresh) = (0, None);
            return false;
        };
        let began =
            |rounds: &mut dyn Iterator<Item = &Sums>| rounds.map(|round| round.started).sum();
        let fresh: u32 = match self.fresh {
            None => began(&mut self.rounds.iter()),
            Some(fresh) => fresh + began(&mut self.rounds.iter().rev().take(1)),
        };
        let fell = lag.pace < share(terms) * self.best;
        (self.strikes, self.fresh) = (self.strikes + 1, Some(fresh));
        let window = self.window();
        let several = window.before + window.started >= SEVERAL;
        let unheard_of = lag.is_unheard_of && self.acquainted >= ACQUAINTED;
        let sure = fell || fresh >= SEVERAL || (several && unheard_of);
        let out = self.strikes >= STRIKES && sure;
        if out {
            // What it was ejected for is not what its peers come down to.
            (self.strikes, self.fresh, self.lowest) = (0, None, None);
        }
        out
    }
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.ticks += other.ticks;
        self.bytes += other.bytes;
        self.started += other.started;
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
        if track.strike(lag.as_ref(), terms) {
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
        let of = |pace: &Option<Pace>| pace.as_ref().map(|pace| of(pace).ln());
        let usual = usual(seats, at, min_endpoints, |figures| of(&figures.delivered))?;
        let lowest = self::usual(seats, at, min_endpoints, |figures| of(&figures.lowest))?.median;
        let far = share(terms).ln().min(-DEVIATIONS * usual.deviation);
        let bound = (usual.median + far).min(lowest + BELOW_LOWEST.ln());
        (pace.ln() < bound).then(|| usual.median.exp())
    };
    let usual = below(pace.endpoint, |p| p.endpoint)?;
    below(pace.transfer, |p| p.transfer)?;
    let group = seat.group;
    let peers = seats.iter().enumerate().filter(|(other, _)| *other != at);
    let mut peers = peers.filter(|(_, peer)| peer.group == group && !peer.ejected);
    let is_unheard_of = !peers.any(|(_, peer)| {
        let lowest = peer.figure.lowest;
        lowest.is_some_and(|lowest| lowest.transfer * BELOW_LOWEST <= pace.transfer)
    });
    let lag = Lag { pace: pace.endpoint, usual, is_unheard_of };
    (usual * pace.seconds >= terms.min_bytes as f64).then_some(lag)
}

fn share(terms: &Goodput) -> f64 {
    f64::from(terms.below_percent) / 100.0
}

#[cfg(test)]
mod tests;
