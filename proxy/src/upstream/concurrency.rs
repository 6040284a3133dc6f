//! A limit on the requests that wait for an endpoint's response head, which follows what the
//! endpoint can do.
//!
//! A request counts until its head comes. What follows may last for hours (a watch, a tunnel, a
//! download) and says nothing of a queue at the endpoint: it is bounded by bytes in flight. Nor do
//! large request bodies count. Requests leave their times in relaxed atomics; the control thread
//! decides (`limiter`).

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use towpath_policies::model::AdaptiveConcurrency;

mod limiter;
#[cfg(test)]
mod simulation;

use limiter::{Limiter, Window};

/// A request body of more bytes is bulk, and bounded as such.
pub(crate) const BULK: u64 = 64 * 1024;

/// The limit of one endpoint.
#[derive(Debug)]
pub(crate) struct Concurrency {
    limit: AtomicU32,
    /// Requests whose head has not come.
    waiting: AtomicU32,
    /// The most of them since the window began.
    peak: AtomicU32,
    /// Somebody was turned away since the window began.
    reached: AtomicBool,
    times: Times,
    /// Those without a head who waited for long, since the window began.
    given_up: AtomicU32,
    /// The typical time without a queue, in microseconds; 0 while it is not known.
    unqueued_us: AtomicU64,
    /// So that not all endpoints are looked at in the same moment, but this one by all proxies.
    offset_us: u64,
    /// Only the control thread asks for it.
    control: Mutex<Control>,
}

#[derive(Debug)]
struct Control {
    limiter: Limiter,
    /// When it began, and the times that had come before; `None` while a decision shows its effect.
    window: Option<(u64, Box<Counts>)>,
    begins_at_us: u64,
    typical_us: f64,
}

/// Head times in buckets, eight per power of two from 32 µs to a minute, and of 4 µs below.
#[derive(Debug)]
struct Times([AtomicU32; BUCKETS]);

type Counts = [u32; BUCKETS];

const BUCKETS: usize = 8 * 22;
const UNIT_US: u64 = 4;
const QUICKER: f64 = 0.75;

/// What a person sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    pub(crate) limit: u32,
    pub(crate) waiting: u32,
    /// The typical head time without queueing, as far as is known.
    pub(crate) unqueued: Option<Duration>,
    /// The typical head time when something was last decided.
    pub(crate) typical: Option<Duration>,
}

impl Concurrency {
    pub(crate) fn new(terms: &AdaptiveConcurrency, endpoint: SocketAddr) -> Self {
        let limiter = Limiter::new(terms);
        Self {
            limit: limiter.limit().into(),
            waiting: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            reached: AtomicBool::new(false),
            given_up: AtomicU32::new(0),
            unqueued_us: AtomicU64::new(0),
            offset_us: offset_us(endpoint),
            times: Times([const { AtomicU32::new(0) }; BUCKETS]),
            control: Mutex::new(Control {
                limiter,
                window: None,
                begins_at_us: 0,
                typical_us: 0.0,
            }),
        }
    }

    /// Whether one more may be sent. That it may not is remembered.
    pub(crate) fn has_room(&self) -> bool {
        let room = self.waiting.load(Relaxed) < self.limit.load(Relaxed);
        if !room && !self.reached.load(Relaxed) {
            self.reached.store(true, Relaxed);
        }
        room
    }

    /// One more waits for its head.
    pub(crate) fn enter(&self) {
        let waiting = self.waiting.fetch_add(1, Relaxed) + 1;
        if waiting > self.peak.load(Relaxed) {
            self.peak.store(waiting, Relaxed);
        }
    }

    /// One waits no longer.
    pub(crate) fn leave(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// The time from a request that was all sent to its head.
    pub(crate) fn answered_after(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.times.0[bucket(micros)].fetch_add(1, Relaxed);
    }

    /// No head came in this time. Who leaves sooner than one comes without a queue tells nothing.
    pub(crate) fn given_up_after(&self, time: Duration) {
        if time.as_micros() > u128::from(self.unqueued_us.load(Relaxed)) {
            self.given_up.fetch_add(1, Relaxed);
        }
    }

    /// Looks at what came since the last decision. `shared_us` is the
    /// time by a clock that proxies share.
    pub(crate) fn tick(&self, terms: &AdaptiveConcurrency, now_us: u64, shared_us: u64) {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        if now_us < control.begins_at_us {
            return;
        }
        let counts = self.times.read();
        let Some((from_us, before)) = &control.window else {
            self.begin(&mut control, now_us, counts);
            return;
        };
        let since: Counts = std::array::from_fn(|at| counts[at].wrapping_sub(before[at]));
        let samples = since.iter().map(|n| u64::from(*n)).sum();
        let (typical_us, deviation) = typical_us(&since, samples);
        let window = Window {
            samples,
            typical_us,
            deviation,
            seconds: now_us.saturating_sub(*from_us) as f64 / 1e6,
            given_up: self.given_up.load(Relaxed).into(),
            peak: self.peak.load(Relaxed),
            reached: self.reached.load(Relaxed),
        };
        let decided = control.limiter.handle(terms, &window, shared_us + self.offset_us);
        self.limit.store(control.limiter.limit(), Relaxed);
        let Some(settle_us) = decided else { return };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a minute")]
        let unqueued_us = control.limiter.base_us().unwrap_or(0.0) as u64;
        self.unqueued_us.store(unqueued_us, Relaxed);
        control.typical_us = window.typical_us;
        control.window = None;
        control.begins_at_us = now_us + settle_us;
        if settle_us == 0 {
            self.begin(&mut control, now_us, counts);
        }
    }

    /// The next window.
    fn begin(&self, control: &mut Control, now_us: u64, counts: Counts) {
        self.peak.store(self.waiting.load(Relaxed), Relaxed);
        self.reached.store(false, Relaxed);
        self.given_up.store(0, Relaxed);
        control.window = Some((now_us, Box::new(counts)));
    }

    pub(crate) fn figures(&self) -> Figures {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        Figures {
            limit: self.limit.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            unqueued: control.limiter.base_us().map(micros),
            typical: Some(control.typical_us).filter(|us| *us > 0.0).map(micros),
        }
    }
}

impl Times {
    fn read(&self) -> Counts {
        std::array::from_fn(|at| self.0[at].load(Relaxed))
    }
}

fn bucket(micros: u64) -> usize {
    let scaled = micros / UNIT_US;
    // Of eight or more, the octave and the three bits below its first.
    let Some(octave) = scaled.checked_ilog2().and_then(|log| log.checked_sub(3)) else {
        return usize::try_from(scaled).unwrap_or(0);
    };
    let within = usize::try_from(scaled >> octave).unwrap_or(0) % 8;
    (8 + octave as usize * 8 + within).min(BUCKETS - 1)
}

/// Where a bucket begins, in microseconds.
fn begins_us(bucket: usize) -> u64 {
    match bucket.checked_sub(8) {
        None => bucket as u64 * UNIT_US,
        Some(above) => (8 + above as u64 % 8) << (above / 8) << UNIT_US.ilog2(),
    }
}

/// The mean of the quicker three quarters of so many times, 0 of none, and its standard error in
/// parts of it, times the root of their number. Within its bucket they are taken to lie evenly.
///
/// What takes long by design and is less than a quarter (long polls) does not show, and what a
/// queue adds to all shows in full, whatever else the times are; the median of times of two kinds
/// would be now the one and now the other. The error is that of a trimmed mean (Tukey and McLaughlin 1963).
fn typical_us(counts: &Counts, samples: u64) -> (f64, f64) {
    let wanted = samples as f64 * QUICKER;
    let (mut taken, mut sum, mut squares, mut longest) = (0.0, 0.0, 0.0, 0.0);
    for (at, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let (begins, ends) = (begins_us(at) as f64, begins_us(at + 1) as f64);
        let share = ((wanted - taken) / f64::from(*count)).min(1.0);
        let (number, middle) = (f64::from(*count) * share, begins + (ends - begins) * share / 2.0);
        taken += number;
        sum += number * middle;
        squares += number * middle * middle;
        longest = begins + (ends - begins) * share;
        if share < 1.0 {
            break;
        }
    }
    if sum <= 0.0 {
        return (0.0, 0.0);
    }
    let (samples, others) = (samples as f64, samples as f64 - taken);
    // The slower quarter counts as if it had taken as long as the slowest of the others.
    let mean = (sum + others * longest) / samples;
    let variance = (squares + others * longest * longest) / samples - mean * mean;
    let typical = sum / taken;
    (typical, variance.max(0.0).sqrt() / QUICKER / typical)
}

/// The same in all proxies, at most a minute.
fn offset_us(endpoint: SocketAddr) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let address = endpoint.ip().to_string();
    let bytes = address.bytes().chain(endpoint.port().to_be_bytes());
    // FNV-1a.
    bytes.fold(0xcbf2_9ce4_8422_2325, mix) % 60_000_000
}

fn micros(micros: f64) -> Duration {
    Duration::from_secs_f64(micros / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typical(times: &[(u64, u32)]) -> f64 {
        let mut counts = [0; BUCKETS];
        times.iter().for_each(|(micros, times)| counts[bucket(*micros)] += times);
        let samples = times.iter().map(|(_, times)| u64::from(*times)).sum();
        typical_us(&counts, samples).0
    }

    #[test]
    fn every_time_lies_in_its_bucket() {
        let last = begins_us(BUCKETS - 1);
        for micros in (0..100_000).chain((17..26).map(|power| (1 << power) - 1)) {
            let at = bucket(micros);
            assert!((begins_us(at)..begins_us(at + 1)).contains(&micros), "{micros} in {at}");
        }
        assert!(last > 60_000_000, "{last}");
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_is_long_by_design_does_not_show_and_what_a_queue_adds_does() {
        assert!(typical(&[]) <= 0.0);
        let polls = [(5_000, 80), (10_000_000, 20)];
        for (times, expected) in [
            (&[(5_000, 100)][..], 5_000.0),
            (&polls[..], 5_000.0),
            (&[(25_000, 80), (10_020_000, 20)], 25_000.0),
            (&[(5_000, 50), (205_000, 50)], (50.0 * 5_000.0 + 25.0 * 205_000.0) / 75.0),
        ] {
            let told = typical(times);
            assert!((told / expected - 1.0).abs() < 0.125, "{told} for {expected}");
        }
    }

    #[test]
    fn a_limit_counts_those_without_a_head_and_remembers_that_it_was_reached() {
        let terms = AdaptiveConcurrency { max_requests: 2, ..AdaptiveConcurrency::default() };
        let terms = AdaptiveConcurrency { min_requests: 1, ..terms };
        let concurrency = Concurrency::new(&terms, ([127, 0, 0, 1], 80).into());
        for _ in 0..2 {
            assert!(concurrency.has_room());
            concurrency.enter();
        }
        assert!(!concurrency.has_room());
        concurrency.leave();
        assert!(concurrency.has_room());
        assert!(concurrency.reached.load(Relaxed));
        assert_eq!((concurrency.figures().limit, concurrency.figures().waiting), (2, 1));
    }

    #[test]
    fn who_gives_up_after_long_is_counted_and_who_leaves_soon_is_not() {
        let terms = AdaptiveConcurrency::default();
        let concurrency = Concurrency::new(&terms, ([127, 0, 0, 1], 80).into());
        let given_up = || concurrency.given_up.load(Relaxed);
        concurrency.tick(&terms, 50_000, 0);
        (0..20).for_each(|_| concurrency.answered_after(Duration::from_millis(10)));
        concurrency.tick(&terms, 100_000, 0);
        concurrency.given_up_after(Duration::from_millis(2));
        assert_eq!(given_up(), 0);
        concurrency.given_up_after(Duration::from_millis(400));
        assert_eq!(given_up(), 1);
    }

    #[test]
    fn a_limit_that_is_lowered_by_configuration_is_lower_at_the_next_look() {
        let wide = AdaptiveConcurrency::default();
        let narrow = AdaptiveConcurrency { min_requests: 1, max_requests: 1, ..wide };
        let concurrency = Concurrency::new(&wide, ([127, 0, 0, 1], 80).into());
        (1..3).for_each(|tick| concurrency.tick(&narrow, tick * 50_000, 0));
        assert_eq!(concurrency.figures().limit, 1);
    }
}
