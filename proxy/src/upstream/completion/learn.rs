//! What is measured, kept in relaxed atomics. Two workers may overwrite each other's last step; the
//! next one makes up for it.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::places::Cell;
use crate::upstream::now_us;

/// What is known of an endpoint.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Learned {
    /// So many times longer than in health, by its last report.
    strain: Real,
    /// Tries until one succeeds.
    tries: Real,
    per_request: Real,
    /// In which it works off what it has.
    per_byte: Real,
    /// How much was measured of that, counted in transfers that told all they could.
    evidence: Real,
    /// From this proxy.
    pub(super) round_trip: Least,
    cell: AtomicU8,
    /// Seconds since it told anything; 255 = or longer.
    idle: AtomicU8,
    /// When the last report came; 0 = never.
    reported_ms: AtomicU64,
}

/// What is known of the way between two places.
#[derive(Debug, Default)]
pub(crate) struct Way {
    pub(super) round_trip: Least,
    /// What the distance lets expect.
    expected: Real,
    /// As of an endpoint.
    idle: AtomicU8,
    /// Besides what the endpoint at its end takes.
    per_byte: Real,
}

/// The least seconds of something small, there and back, of late.
#[derive(Debug, Default)]
pub(crate) struct Least {
    known: Real,
    /// Of the window that has not ended.
    window: Real,
}

/// What endpoints of a place are like.
#[derive(Debug, Default)]
pub(crate) struct Usual {
    per_byte: Real,
    per_request: Real,
}

/// A positive number; 0 = unknown.
#[derive(Debug, Default)]
pub(super) struct Real(AtomicU32);

/// In what order endpoints do what they have: 0 = all at once, each getting as much as the others
/// (processor sharing, as threads do); 1 = first come, first served. Learned, since nobody says so.
#[derive(Debug)]
pub(crate) struct Discipline(AtomicU32);

/// A median that follows what comes, within a few per cent.
#[derive(Debug, Default)]
pub(crate) struct Median(Real);

/// One try, while it is under way: how long it waited for the endpoint. What it waited for its client
/// says nothing of the endpoint.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    origin: Cell,
    load_before: u32,
    ahead: u64,
    marked_us: u64,
    waits: bool,
    waited_us: u64,
    answered: bool,
    /// Nothing that comes says anything more of the endpoint.
    stopped: bool,
}

/// A try that was served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) origin: Cell,
    /// It waited for the endpoint.
    pub(super) seconds: f32,
    pub(super) bytes: u64,
    /// Bytes in flight at the endpoint when it came.
    pub(super) ahead: u64,
    /// And requests.
    pub(super) others: u32,
    /// Requests at the endpoint meanwhile, this one included.
    pub(super) load: f32,
}

/// Transfers of so many bytes tell goodput; smaller ones tell the time of a request.
const LARGE: u64 = 64 * 1024;
/// Bytes with which a transfer counts half of what it could.
const TELLING: f32 = 256.0 * 1024.0;
/// How far a large transfer moves what is known of goodput, in logarithms.
const STEP: f32 = 0.15;
/// No more evidence is counted than leaves each transfer its step.
const MOST_EVIDENCE: f32 = 1.0 / STEP;
/// A transfer behind many bytes counts less, since they may have been nearly over, but at least this.
const LEAST_TRUST: f32 = 0.1;
/// How far a transfer moves what is known of the order at most.
const ORDER_STEP: f32 = 0.1;
/// How far a small one moves the time of a request.
const SMALL_STEP: f32 = 0.2;
/// A connection has so many bytes on a long way.
const WINDOW_BYTES: f32 = 4.0 * 1024.0 * 1024.0;
/// From 100 GB/s to 100 B/s.
const PER_BYTE: (f32, f32) = (1e-11, 1e-2);
/// A request takes at least this, so that what is said of health counts however fast it is.
const PER_REQUEST: (f32, f32) = (1e-4, 1e4);
/// The share of failures moves so far with each.
const FAILURE_STEP: f32 = 0.15;
const SUCCESS_STEP: f32 = 0.1;
const MOST_TRIES: f32 = 20.0;
/// An endpoint at less than a ten-thousandth of its goodput is as good as gone.
const MOST_STRAIN: f32 = 1e4;
/// What is measured under strain says what it would be in health only within this.
const STRAIN_TO_LEARN_BY: f32 = 10.0;
/// A report holds for so long; from there on it is forgotten by a fifth each second.
const REPORT_HOLDS_MS: u64 = 10_000;
/// So long an endpoint or a way may tell nothing before what is bad of it is forgotten.
const IDLE_SECONDS: u8 = 15;
/// The least time is forgotten after this.
pub(super) const WINDOW_SECONDS: u64 = 10;

impl Learned {
    pub(super) fn strain(&self) -> f32 {
        self.strain.get().unwrap_or(1.0)
    }

    pub(super) fn tries(&self) -> f32 {
        self.tries.get().unwrap_or(1.0)
    }

    /// Seconds in which it works off a byte.
    pub(super) fn per_byte(&self) -> Option<f32> {
        self.per_byte.get()
    }

    /// Seconds of a small request.
    pub(super) fn per_request(&self) -> Option<f32> {
        self.per_request.get()
    }

    pub(super) fn cell(&self) -> Cell {
        Cell::numbered(self.cell.load(Relaxed))
    }

    pub(super) fn stands_in(&self, cell: Cell) {
        self.cell.store(cell.number(), Relaxed);
    }

    /// A load report says what share of its goodput it has. What is no such share is ignored.
    pub(crate) fn reported(&self, goodput_factor: f64, now_ms: u64) {
        if (0.0..=1.0).contains(&goodput_factor) {
            // Zero has a sign.
            #[expect(clippy::cast_possible_truncation, reason = "from 0 to 1")]
            self.strain.set((1.0 / goodput_factor.abs() as f32).min(MOST_STRAIN));
            self.reported_ms.store(now_ms, Relaxed);
        }
    }

    pub(crate) fn failed(&self) {
        let share = 1.0 - 1.0 / self.tries();
        self.fails(share + FAILURE_STEP * (1.0 - share));
    }

    pub(crate) fn succeeded(&self) {
        let tries = self.tries();
        if tries > 1.0 {
            self.fails((1.0 - 1.0 / tries) * (1.0 - SUCCESS_STEP));
        }
    }

    fn fails(&self, share: f32) {
        let tries = (1.0 / (1.0 - share)).min(MOST_TRIES);
        self.tries.set(if tries < 1.01 { 1.0 } else { tries });
    }

    /// A connection stood after so many seconds.
    pub(crate) fn connected(&self, seconds: f32) {
        self.round_trip.took(seconds);
    }

    /// A try was served that went this way; `health`: how much that counts. Endpoints like this one take
    /// so much for a byte and for a request (`usual`).
    pub(super) fn served(
        &self,
        sample: &Sample,
        way: &Way,
        network: f32,
        usual: (f32, f32),
        health: f32,
        discipline: &Discipline,
    ) {
        self.idle.store(0, Relaxed);
        way.idle.store(0, Relaxed);
        let Sample { seconds, bytes, load, .. } = *sample;
        let strain = 1.0 + (self.strain().min(STRAIN_TO_LEARN_BY) - 1.0) * health;
        let (size, others) = (real(bytes), real(sample.others.into()));
        let ahead = discipline.waits_for(size, real(sample.ahead), others);
        let per_byte = self.per_byte().unwrap_or(usual.0);
        let per_request = self.per_request.get().unwrap_or(usual.1);
        let on_the_way = size * way.per_byte();
        let here = (size + ahead) * per_byte;
        let seconds_left = (seconds - network).max(seconds / 16.0);
        let at_work = (seconds_left - on_the_way) / strain;
        let worked_off = (at_work - per_request * load) / per_byte;
        let waited = discipline.saw(size, real(sample.ahead), others, worked_off);
        if bytes < LARGE {
            way.took(seconds);
            let own = ((at_work - here) / load).clamp(PER_REQUEST.0, PER_REQUEST.1);
            // What waited for something large says no more than how long a request takes at most.
            if !waited || own < per_request {
                self.per_request.set(per_request + SMALL_STEP * (own - per_request));
            }
            return;
        }
        // The way and the endpoint are to blame for what was not foreseen, each as far as it was thought
        // to take of the time.
        let foreseen = on_the_way + here * strain;
        let times = (seconds_left / foreseen).clamp(0.01, 100.0);
        let share = on_the_way / foreseen;
        let own = (size / (size + ahead)).max(LEAST_TRUST);
        let telling = size / (size + TELLING) * own;
        // The first ones count as in a mean, so that a few tell of an endpoint of which nothing was known;
        // from then on what is old is forgotten.
        let evidence = (self.evidence.get().unwrap_or(0.0) + telling).min(MOST_EVIDENCE);
        self.evidence.set(evidence);
        let trust = telling * STEP.max(1.0 / evidence);
        way.per_byte.approach(way.per_byte() * times, trust * share);
        self.per_byte.set(per_byte);
        self.per_byte.approach(per_byte * times, trust * (1.0 - share));
    }

    /// A second has passed. What is worse than `usual` is forgotten where nothing has borne it out for a
    /// while: one that is avoided cannot tell that it is better now.
    pub(super) fn second(&self, now_ms: u64, window_ends: bool, usual: (f32, f32)) {
        if passed(&self.idle) > IDLE_SECONDS {
            self.per_byte.forget(usual.0);
            self.per_request.forget(usual.1);
            self.evidence.set(1.0);
        }
        if let Some(tries) = self.tries.get().filter(|tries| *tries > 1.0) {
            self.fails((1.0 - 1.0 / tries) * 0.95);
        }
        let strain = self.strain();
        if strain > 1.0 && now_ms > self.reported_ms.load(Relaxed) + REPORT_HOLDS_MS {
            let less = 1.0 + (strain.min(100.0) - 1.0) * 0.8;
            self.strain.set(if less < 1.05 { 1.0 } else { less });
        }
        if window_ends {
            self.round_trip.end_window();
        }
    }
}

impl Way {
    /// What to expect until something is measured. A round trip moves a window of bytes.
    pub(super) fn expect(&self, round_trip: f32) {
        let per_byte = |round_trip: f32| (round_trip / WINDOW_BYTES).clamp(PER_BYTE.0, PER_BYTE.1);
        let before = self.expected.get();
        // What was expected before, and is all that is known yet, may have changed.
        let mere = |known: Option<f32>, expected: f32| known.is_none_or(|known| known == expected);
        if mere(self.per_byte.get(), per_byte(before.unwrap_or(0.0))) {
            self.per_byte.set(per_byte(round_trip));
        }
        if mere(self.round_trip.seconds(), before.unwrap_or(0.0)) {
            self.round_trip.known.set(round_trip);
        }
        self.expected.set(round_trip);
    }

    /// Nothing is known.
    pub(super) fn begin(&self) {
        for known in
            [&self.round_trip.known, &self.round_trip.window, &self.expected, &self.per_byte]
        {
            known.set(0.0);
        }
        self.idle.store(0, Relaxed);
    }

    /// Something small took so long there and back. No answer comes sooner than light: those that do
    /// needed nothing from there.
    fn took(&self, seconds: f32) {
        self.round_trip.took(seconds.max(self.expected.get().unwrap_or(0.0) / 2.0));
    }

    /// A second has passed, as for an endpoint.
    pub(super) fn second(&self, window_ends: bool) {
        if window_ends {
            self.round_trip.end_window();
        }
        if passed(&self.idle) > IDLE_SECONDS
            && let Some(expected) = self.expected.get()
        {
            self.round_trip.known.forget(expected);
            self.per_byte.forget((expected / WINDOW_BYTES).max(PER_BYTE.0));
        }
    }

    pub(super) fn per_byte(&self) -> f32 {
        self.per_byte.get().unwrap_or(PER_BYTE.0)
    }
}

impl Least {
    pub(super) fn seconds(&self) -> Option<f32> {
        self.known.get()
    }

    fn took(&self, seconds: f32) {
        let seconds = seconds.clamp(1e-6, 1e4);
        for least in [&self.known, &self.window] {
            if least.get().is_none_or(|least| seconds < least) {
                least.set(seconds);
            }
        }
    }

    /// The least of the window that ends is what is known from here on.
    pub(super) fn end_window(&self) {
        if let Some(least) = self.window.get() {
            self.known.set(least);
            self.window.unset();
        }
    }
}

impl Usual {
    /// Nothing is known.
    pub(super) fn begin(&self) {
        self.per_byte.set(0.0);
        self.per_request.set(0.0);
    }

    pub(super) fn per_byte(&self) -> Option<f32> {
        self.per_byte.get()
    }

    pub(super) fn per_request(&self) -> f32 {
        self.per_request.get().unwrap_or(PER_REQUEST.0)
    }

    /// What is known of one of them now, were it of the usual weight.
    pub(super) fn saw(&self, per_byte: Option<f32>, per_request: Option<f32>) {
        if let Some(per_byte) = per_byte {
            self.per_byte.approach(per_byte, STEP / 2.0);
        }
        if let Some(per_request) = per_request {
            let before = self.per_request.get().unwrap_or(per_request);
            self.per_request.set(before + (per_request - before) * STEP / 2.0);
        }
    }
}

impl Default for Discipline {
    fn default() -> Self {
        Self(AtomicU32::new(0.5_f32.to_bits()))
    }
}

impl Discipline {
    pub(super) fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Relaxed))
    }

    /// Of the bytes in flight of so many others, those that are worked off before `size` is: where all
    /// are worked at once, of each other as many as of its own.
    #[inline]
    pub(super) fn waits_for(&self, size: f32, ahead: f32, others: f32) -> f32 {
        let beside = (size * others).min(ahead);
        beside + self.get() * (ahead - beside)
    }

    /// In the time that a transfer took, so many bytes could have been worked off. It tells the more, the
    /// less it was itself of what there was; returns whether it tells anything.
    fn saw(&self, size: f32, ahead: f32, others: f32, worked_off: f32) -> bool {
        let shared = size + (size * others).min(ahead);
        let rest = size + ahead - shared;
        if rest <= shared {
            return false;
        }
        let seen = ((worked_off - shared) / rest).clamp(0.0, 1.0);
        let step = ORDER_STEP * rest / (rest + shared);
        self.0.store((self.get() + step * (seen - self.get())).to_bits(), Relaxed);
        true
    }
}

impl Median {
    /// 0 before anything came.
    pub(super) fn value(&self) -> f32 {
        self.0.get().unwrap_or(0.0)
    }

    pub(super) fn add(&self, value: f32) {
        let value = value.clamp(1.0, 1e13);
        let next = match self.0.get() {
            Some(median) if value > median => (median * 1.05).min(value),
            Some(median) => (median / 1.05).max(value),
            None => value,
        };
        self.0.set(next);
    }
}

impl Stopwatch {
    /// At an endpoint with so many requests, this one included, and so many bytes ahead.
    pub(crate) fn start(load: u32, ahead: u64) -> Self {
        Self {
            origin: Cell::HERE,
            load_before: load,
            ahead,
            marked_us: now_us(),
            waits: true,
            waited_us: 0,
            answered: false,
            stopped: false,
        }
    }

    /// Where its data comes from.
    pub(crate) fn comes_from(&mut self, origin: Cell) {
        self.origin = origin;
    }

    /// From here on it waits for the endpoint, or does not.
    pub(crate) fn mark(&mut self, waits: bool) {
        if self.stopped {
            return;
        }
        let now = now_us();
        if self.waits {
            self.waited_us += now.saturating_sub(self.marked_us);
        }
        self.marked_us = now;
        self.waits = waits;
    }

    /// The endpoint serves it, with a response whose length it told, or did not. One of unknown length may
    /// pause because there is nothing to say: only the time to its head counts.
    pub(crate) fn answered(&mut self, length_told: bool) {
        self.answered = true;
        if !length_told {
            self.stop();
        }
    }

    pub(crate) fn stop(&mut self) {
        self.mark(false);
        self.stopped = true;
    }

    /// It is over, with so many requests at the endpoint; `None` when that did not serve it.
    pub(super) fn end(mut self, load: u32, sent: u64, received: u64) -> Option<Sample> {
        self.mark(false);
        #[expect(clippy::cast_precision_loss, reason = "a measurement")]
        let (seconds, load) = (self.waited_us as f32 / 1e6, (self.load_before + load) as f32 / 2.0);
        let bytes = sent.saturating_add(if self.stopped { 0 } else { received });
        let (origin, ahead, others) = (self.origin, self.ahead, self.load_before.saturating_sub(1));
        let sample = Sample { origin, seconds, bytes, ahead, others, load: load.max(1.0) };
        self.answered.then_some(sample)
    }
}

impl Real {
    pub(super) fn get(&self) -> Option<f32> {
        Some(f32::from_bits(self.0.load(Relaxed))).filter(|value| *value > 0.0)
    }

    pub(super) fn set(&self, value: f32) {
        self.0.store(value.to_bits(), Relaxed);
    }

    pub(super) fn unset(&self) {
        self.set(0.0);
    }

    /// What is above this goes a twentieth of the way there.
    fn forget(&self, usual: f32) {
        if let Some(before) = self.get().filter(|before| *before > usual) {
            self.set(before + (usual - before) * 0.05);
        }
    }

    /// Seconds per byte go part of the way there; in logarithms, since a tenth and ten times are as far.
    fn approach(&self, seconds: f32, step: f32) {
        let seconds = seconds.clamp(PER_BYTE.0, PER_BYTE.1);
        let before = self.get().unwrap_or(seconds);
        self.set(before * (seconds / before).powf(step));
    }
}

/// Counts a second, and says how many there were.
fn passed(idle: &AtomicU8) -> u8 {
    let seconds = idle.load(Relaxed).saturating_add(1);
    idle.store(seconds, Relaxed);
    seconds
}

#[expect(clippy::cast_precision_loss, reason = "a measurement")]
pub(super) fn real(number: u64) -> f32 {
    number as f32
}
