//! What is measured of an endpoint while traffic passes: relaxed atomics, no
//! lock, and no look at a clock.
//!
//! Goodput is bytes per second of the time in which a transfer waited *for the
//! endpoint*. No transfer measures that time. It says at the end of each of its
//! polls whom it waits for, and only when that changed; the control thread
//! samples how many wait (`watch`). So a slow client, or a full
//! buffer of ours, costs an endpoint nothing: while they are waited for, the
//! endpoint is not. Nor is an endpoint waited for that is ahead of us: one that
//! had much ready when we came, and would have more if we came sooner.
//!
//! Only transfers are judged where silence cannot be the endpoint's good right:
//! a response whose length was declared, and an upload that the endpoint does
//! not take. A response of unknown length may pause because there is nothing to
//! say.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// Counters of one endpoint that judgements are made from.
#[derive(Debug, Default)]
pub struct Meter {
    /// Request bodies.
    pub request: Lane,
    /// Response bodies.
    pub response: Lane,
    /// Failures of every kind.
    failures: AtomicU64,
    /// Times to a response head.
    latency: Latencies,
}

/// Counters of the transfers in one direction: an endpoint may well take slowly and give quickly.
#[derive(Debug, Default)]
pub struct Lane {
    /// Body bytes of judged transfers.
    bytes: AtomicU64,
    /// Judged transfers ever; it wraps.
    started: AtomicU32,
    /// Judged transfers under way, by [`State`].
    states: [AtomicU32; 3],
}

/// Times in buckets, two per power of two, from 64 µs to about a minute.
pub type LatencyCounts = [u32; LATENCY_BUCKETS];

#[derive(Debug)]
struct Latencies([AtomicU32; LATENCY_BUCKETS]);

/// What a [`Lane`] says at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Body bytes of judged transfers, ever.
    pub bytes: u64,
    /// Judged transfers, ever; it wraps.
    pub started: u32,
    /// Transfers that wait for their client, or for us.
    pub elsewhere: u32,
    /// Transfers whose endpoint is ahead of us.
    pub ahead: u32,
    /// Transfers that wait for the endpoint.
    pub waiting: u32,
}

/// Whom a transfer waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Elsewhere,
    Ahead,
    Waiting,
}

/// One direction of one try, as the exchange sees it.
#[derive(Debug, Default)]
pub(crate) struct Transfer {
    judged: bool,
    state: State,
    /// Bytes since the last look.
    since: u64,
    total: u64,
}

/// When a request was all sent, so that the time to its answer can be told.
#[derive(Debug, Default)]
pub(crate) enum Asked {
    #[default]
    Sending,
    At(Instant),
    Answered,
}

/// Smaller transfers are not judged: they say more of connections than of goodput.
pub(crate) const SMALLEST_JUDGED: u64 = 256 * 1024;
/// An endpoint that had so much ready at one look is ahead of us.
const AHEAD: u64 = 128 * 1024;
/// Buckets of [`LatencyCounts`].
pub const LATENCY_BUCKETS: usize = 40;
const SHORTEST_MICROS: u64 = 64;

impl Meter {
    /// Counts a failure.
    pub fn fail(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    /// Failures so far.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// Counts a time to a response head.
    pub fn answered_after(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.latency.0[bucket(micros)].fetch_add(1, Relaxed);
    }

    /// All times so far; they wrap.
    pub fn latencies(&self) -> LatencyCounts {
        std::array::from_fn(|index| self.latency.0[index].load(Relaxed))
    }
}

impl Lane {
    /// What it says of transfers now.
    pub fn read(&self) -> Reading {
        let [elsewhere, ahead, waiting] = [0, 1, 2].map(|state| self.states[state].load(Relaxed));
        let (bytes, started) = (self.bytes.load(Relaxed), self.started.load(Relaxed));
        Reading { bytes, started, elsewhere, ahead, waiting }
    }
}

impl Reading {
    /// Transfers under way.
    pub fn active(&self) -> u32 {
        self.elsewhere + self.ahead + self.waiting
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; LATENCY_BUCKETS])
    }
}

impl Transfer {
    /// From here on this direction is judged.
    pub(crate) fn judge(&mut self, lane: &Lane) {
        if !std::mem::replace(&mut self.judged, true) {
            lane.started.fetch_add(1, Relaxed);
            lane.states[self.state as usize].fetch_add(1, Relaxed);
        }
    }

    /// Body bytes were moved. Told to others at the next look.
    pub(crate) fn moved(&mut self, bytes: u64) {
        self.since += bytes;
        self.total += bytes;
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The end of a poll: all that could be moved was, and what is left to do
    /// waits for the endpoint (`waits`) or for somebody else.
    pub(crate) fn look(&mut self, lane: &Lane, waits: bool) {
        let since = std::mem::take(&mut self.since);
        if !self.judged {
            return;
        }
        if since > 0 {
            lane.bytes.fetch_add(since, Relaxed);
        }
        let state = match waits {
            false => State::Elsewhere,
            true if since >= AHEAD => State::Ahead,
            true => State::Waiting,
        };
        if state != self.state {
            lane.states[self.state as usize].fetch_sub(1, Relaxed);
            lane.states[state as usize].fetch_add(1, Relaxed);
            self.state = state;
        }
    }

    /// It is over, for good or bad.
    pub(crate) fn end(&mut self, lane: &Lane) {
        if std::mem::take(&mut self.judged) {
            lane.bytes.fetch_add(self.since, Relaxed);
            lane.states[self.state as usize].fetch_sub(1, Relaxed);
        }
    }
}

impl Asked {
    /// The request is all sent; only the first time counts.
    pub(crate) fn now(&mut self) {
        if let Self::Sending = self {
            *self = Self::At(Instant::now());
        }
    }

    /// The time so far without a head.
    pub(crate) fn waited(&self) -> Option<Duration> {
        if let Self::At(asked) = self { Some(asked.elapsed()) } else { None }
    }

    /// The head came. One that came before the request was all sent tells no time.
    pub(crate) fn answered(&mut self, meter: &Meter) -> Option<Duration> {
        let Self::At(asked) = std::mem::replace(self, Self::Answered) else { return None };
        let time = asked.elapsed();
        meter.answered_after(time);
        Some(time)
    }
}

fn bucket(micros: u64) -> usize {
    let scaled = micros / SHORTEST_MICROS;
    let Some(octave) = scaled.checked_ilog2() else { return 0 };
    // The upper half of an octave has a bucket of its own.
    let upper = octave > 0 && scaled >> (octave - 1) & 1 == 1;
    (octave as usize * 2 + 1 + usize::from(upper)).min(LATENCY_BUCKETS - 1)
}

/// The median of these times, as the upper bound of its bucket; `None` of none.
pub fn median_latency(counts: &LatencyCounts) -> Option<Duration> {
    let total: u64 = counts.iter().map(|n| u64::from(*n)).sum();
    let mut before = 0;
    let at = counts.iter().position(|n| {
        before += u64::from(*n);
        total > 0 && before * 2 >= total
    })?;
    let bound = SHORTEST_MICROS << at.div_ceil(2);
    let bound = if at > 1 && at % 2 == 1 { bound / 4 * 3 } else { bound };
    Some(Duration::from_micros(bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_counted_where_it_waits_and_leaves_nothing_behind() {
        let lane = Lane::default();
        let mut transfer = Transfer::default();
        transfer.moved(10);
        transfer.look(&lane, true);
        assert_eq!(lane.read(), Reading::default(), "not judged, not counted");
        transfer.judge(&lane);
        transfer.judge(&lane);
        for (moved, waits, expected) in [
            (1, true, [0, 0, 1]),
            (AHEAD, true, [0, 1, 0]),
            (0, true, [0, 0, 1]),
            (AHEAD, false, [1, 0, 0]),
            (1, true, [0, 0, 1]),
        ] {
            transfer.moved(moved);
            transfer.look(&lane, waits);
            let Reading { elsewhere, ahead, waiting, .. } = lane.read();
            assert_eq!([elsewhere, ahead, waiting], expected, "{moved} {waits}");
        }
        transfer.moved(5);
        transfer.end(&lane);
        transfer.end(&lane);
        let bytes = 2 * AHEAD + 7;
        assert_eq!(lane.read(), Reading { bytes, started: 1, ..Reading::default() });
    }

    #[test]
    fn the_median_time_is_told_within_a_bucket() {
        assert_eq!(median_latency(&[0; LATENCY_BUCKETS]), None);
        for micros in [10, 64, 100, 128, 200, 1_000, 5_000, 70_000, 3_000_000] {
            let meter = Meter::default();
            (0..10).for_each(|_| meter.answered_after(Duration::from_micros(micros)));
            (0..4).for_each(|_| meter.answered_after(Duration::from_secs(20)));
            let told = median_latency(&meter.latencies()).unwrap().as_micros();
            let most = u128::from(micros.max(SHORTEST_MICROS / 2)) * 2;
            assert!((u128::from(micros)..=most).contains(&told), "{micros}: {told}");
        }
    }
}
