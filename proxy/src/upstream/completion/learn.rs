//! What is measured, kept in relaxed atomics. Two workers may overwrite each other's last step; the
//! next one makes up for it.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::places::{CELLS, Cell};
use crate::upstream::now_us;

/// What is known of an endpoint.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Learned {
    /// So many times longer than in health, by its last report.
    strain: Real,
    /// Tries until one succeeds.
    tries: Real,
    per_request: Real,
    cell: AtomicU8,
    /// When the last report came; 0 = never.
    reported_ms: AtomicU64,
    /// By the origin of the data.
    pub(crate) paths: [Path; CELLS],
}

/// What is known of a way: the round trip, and what a byte takes at its end.
#[derive(Debug, Default)]
pub(crate) struct Path {
    network: Real,
    per_byte: Real,
    /// The least time of this window.
    least: Real,
}

/// A positive number; 0 = unknown.
#[derive(Debug, Default)]
struct Real(AtomicU32);

/// A median that follows what comes, within a few per cent.
#[derive(Debug, Default)]
pub(crate) struct Median(Real);

/// One try, while it is under way: how long it waited for the endpoint. What it waited for its client
/// says nothing of the endpoint.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    origin: Cell,
    load_before: u32,
    marked_us: u64,
    waits: bool,
    waited_us: u64,
    answered: bool,
}

/// A try that was served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) origin: Cell,
    /// It waited for the endpoint.
    pub(super) seconds: f32,
    pub(super) bytes: u64,
    /// Requests at the endpoint meanwhile, this one included.
    pub(super) load: f32,
}

/// Transfers of so many bytes tell goodput; smaller ones tell the time of a request.
const LARGE: u64 = 64 * 1024;
/// Bytes with which a transfer counts half of what it could.
const TELLING: f32 = 256.0 * 1024.0;
/// How far a large transfer moves the goodput, in logarithms.
const STEP: f32 = 0.3;
/// How far a small one moves the time of a request.
const SMALL_STEP: f32 = 0.2;
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
/// The least time of a way is forgotten after this.
pub(super) const WINDOW_SECONDS: u64 = 10;

impl Learned {
    pub(super) fn strain(&self) -> f32 {
        self.strain.get().unwrap_or(1.0)
    }

    pub(super) fn tries(&self) -> f32 {
        self.tries.get().unwrap_or(1.0)
    }

    pub(super) fn per_request(&self) -> f32 {
        self.per_request.get().unwrap_or(PER_REQUEST.0)
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
            #[expect(clippy::cast_possible_truncation, reason = "from 0 to 1")]
            self.strain.set((1.0 / goodput_factor as f32).min(MOST_STRAIN));
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
        self.paths[Cell::HERE.index()].took(seconds);
    }

    /// A try was served. `pair`: what is known between these places; `health`: how much that counts.
    pub(super) fn served(&self, sample: &Sample, pair: &Path, health: f32) {
        let Sample { origin, seconds, bytes, load } = *sample;
        let path = &self.paths[origin.index()];
        let strain = 1.0 + (self.strain().min(STRAIN_TO_LEARN_BY) - 1.0) * health;
        let network = path.network().unwrap_or(0.0);
        #[expect(clippy::cast_precision_loss, reason = "a measurement")]
        let size = bytes as f32;
        if bytes >= LARGE {
            let busy = (seconds - network).max(seconds / 16.0);
            let per_byte = busy / (size * load * strain);
            let step = STEP * size / (size + TELLING);
            path.moved_at(per_byte, step);
            pair.moved_at(per_byte, step / 2.0);
            return;
        }
        path.took(seconds);
        pair.took(seconds);
        let moving = size * path.seconds_per_byte().unwrap_or(0.0);
        let own = (seconds - network - moving) / (load * strain);
        let own = own.clamp(PER_REQUEST.0, PER_REQUEST.1);
        let before = self.per_request.get().unwrap_or(own);
        self.per_request.set(before + SMALL_STEP * (own - before));
    }

    /// A second has passed.
    pub(super) fn second(&self, now_ms: u64, window_ends: bool) {
        if let Some(tries) = self.tries.get().filter(|tries| *tries > 1.0) {
            self.fails((1.0 - 1.0 / tries) * 0.95);
        }
        let strain = self.strain();
        if strain > 1.0 && now_ms > self.reported_ms.load(Relaxed) + REPORT_HOLDS_MS {
            let less = 1.0 + (strain.min(100.0) - 1.0) * 0.8;
            self.strain.set(if less < 1.05 { 1.0 } else { less });
        }
        if window_ends {
            self.paths.iter().for_each(Path::end_window);
        }
    }
}

impl Path {
    /// Seconds there and back.
    pub(super) fn network(&self) -> Option<f32> {
        self.network.get()
    }

    pub(super) fn seconds_per_byte(&self) -> Option<f32> {
        self.per_byte.get()
    }

    /// What to expect until something is measured.
    pub(super) fn expect(&self, seconds: f32) {
        if self.network().is_none() && seconds > 0.0 {
            self.network.set(seconds);
        }
    }

    /// Something small took so long there and back.
    fn took(&self, seconds: f32) {
        let seconds = seconds.clamp(1e-6, 1e4);
        if self.network().is_none_or(|network| seconds < network) {
            self.network.set(seconds);
        }
        if self.least.get().is_none_or(|least| seconds < least) {
            self.least.set(seconds);
        }
    }

    fn moved_at(&self, seconds: f32, step: f32) {
        let seconds = seconds.clamp(PER_BYTE.0, PER_BYTE.1);
        let next = match self.per_byte.get() {
            // In logarithms, since a tenth and ten times are as far.
            Some(before) => before * (seconds / before).clamp(0.01, 100.0).powf(step),
            None => seconds,
        };
        self.per_byte.set(next);
    }

    /// The least time of the window that ends is the round trip from here on.
    pub(super) fn end_window(&self) {
        if let Some(least) = self.least.get() {
            self.network.set(least);
            self.least.0.store(0, Relaxed);
        }
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
    pub(crate) fn start(load: u32) -> Self {
        Self {
            origin: Cell::HERE,
            load_before: load,
            marked_us: now_us(),
            waits: true,
            waited_us: 0,
            answered: false,
        }
    }

    /// Where its data comes from.
    pub(crate) fn comes_from(&mut self, origin: Cell) {
        self.origin = origin;
    }

    /// From here on it waits for the endpoint, or does not.
    pub(crate) fn mark(&mut self, waits: bool) {
        let now = now_us();
        if self.waits {
            self.waited_us += now.saturating_sub(self.marked_us);
        }
        self.marked_us = now;
        self.waits = waits;
    }

    /// The endpoint served it.
    pub(crate) fn answered(&mut self) {
        self.answered = true;
    }

    /// It is over, with so many others at the endpoint; `None` when that did not serve it.
    pub(super) fn end(mut self, load: u32, bytes: u64) -> Option<Sample> {
        self.mark(false);
        #[expect(clippy::cast_precision_loss, reason = "a measurement")]
        let (seconds, load) = (self.waited_us as f32 / 1e6, (self.load_before + load) as f32 / 2.0);
        let sample = Sample { origin: self.origin, seconds, bytes, load: load.max(1.0) };
        self.answered.then_some(sample)
    }
}

impl Real {
    fn get(&self) -> Option<f32> {
        Some(f32::from_bits(self.0.load(Relaxed))).filter(|value| *value > 0.0)
    }

    fn set(&self, value: f32) {
        self.0.store(value.to_bits(), Relaxed);
    }
}
