//! What the clients saw.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hdrhistogram::Histogram;

use crate::etl::{client::Protocol, wire::IngestReply};

/// Longest latency that is told apart: ten minutes, in µs.
const MAX_MICROS: u64 = 600_000_000;
/// Failures kept word by word.
const MAX_NOTES: usize = 20;

/// Counts acknowledgements and failures as they come.
#[derive(Debug)]
pub(super) struct Ledger {
    small_rows_expected: u64,
    small_rows: AtomicU64,
    rows: AtomicU64,
    bytes: AtomicU64,
    batches: AtomicU64,
    failures: AtomicU64,
    already: AtomicU64,
    all_small_done: AtomicBool,
    details: Mutex<Details>,
}

/// What takes more than a number.
#[derive(Clone, Debug, Default)]
pub(super) struct Details {
    pub(super) lanes: BTreeMap<Protocol, Lane>,
    /// Acknowledged batches by the region of the worker.
    pub(super) regions: BTreeMap<String, u64>,
    pub(super) uploads: Vec<Upload>,
    pub(super) notes: Vec<String>,
}

/// Small batches over one protocol.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    latency: Histogram<u64>,
}

/// A large upload that was acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    pub(super) batch: String,
    pub(super) protocol: Protocol,
    pub(super) bytes: u64,
    pub(super) rows: u64,
    /// Of the try that succeeded.
    pub(super) took: Duration,
    pub(super) tries: u32,
    pub(super) region: String,
}

/// Numbers at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) batches: u64,
    /// Tries that failed before the clients' eyes, and were repeated by them.
    pub(super) failures: u64,
    /// Acknowledged, but loaded by an earlier try whose answer was lost.
    pub(super) already: u64,
}

impl Ledger {
    pub(super) fn new(small_rows_expected: u64) -> Self {
        Self {
            small_rows_expected: small_rows_expected.max(1),
            small_rows: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            already: AtomicU64::new(0),
            all_small_done: AtomicBool::new(false),
            details: Mutex::default(),
        }
    }

    /// A small batch was acknowledged.
    pub(super) fn small(
        &self,
        protocol: Protocol,
        bytes: u64,
        took: Duration,
        reply: &IngestReply,
    ) {
        self.small_rows.fetch_add(reply.rows, Relaxed);
        self.count(bytes, reply);
        let mut details = self.lock();
        let lane = details.lanes.entry(protocol).or_insert_with(Lane::new);
        let micros = u64::try_from(took.as_micros()).unwrap_or(MAX_MICROS);
        lane.latency.saturating_record(micros.clamp(1, MAX_MICROS));
        *details.regions.entry(reply.region.clone()).or_default() += 1;
    }

    /// A large upload was acknowledged.
    pub(super) fn large(&self, upload: Upload, reply: &IngestReply) {
        self.count(upload.bytes, reply);
        let mut details = self.lock();
        *details.regions.entry(reply.region.clone()).or_default() += 1;
        details.uploads.push(upload);
    }

    fn count(&self, bytes: u64, reply: &IngestReply) {
        self.rows.fetch_add(reply.rows, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        self.batches.fetch_add(1, Relaxed);
        self.already.fetch_add(u64::from(reply.already), Relaxed);
    }

    /// A try failed.
    pub(super) fn failed(&self, note: String) {
        self.failures.fetch_add(1, Relaxed);
        let mut details = self.lock();
        if details.notes.len() < MAX_NOTES {
            details.notes.push(note);
        }
    }

    /// Nothing small is left to be acknowledged.
    pub(super) fn all_small_done(&self) {
        self.all_small_done.store(true, Relaxed);
    }

    /// Share of the small batches' rows that were acknowledged, 0 to 1.
    pub(super) fn share(&self) -> f64 {
        if self.all_small_done.load(Relaxed) {
            return 1.0;
        }
        let share = self.small_rows.load(Relaxed) as f64 / self.small_rows_expected as f64;
        share.min(0.999)
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            rows: self.rows.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            batches: self.batches.load(Relaxed),
            failures: self.failures.load(Relaxed),
            already: self.already.load(Relaxed),
        }
    }

    pub(super) fn details(&self) -> Details {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Details> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, MAX_MICROS, 3);
        Self { latency: latency.expect("1 µs to ten minutes with three digits is a valid range") }
    }

    pub(super) fn batches(&self) -> u64 {
        self.latency.len()
    }

    /// Milliseconds at a quantile, 0 to 1.
    pub(super) fn millis(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(rows: u64, already: bool) -> IngestReply {
        let region = "eu-west".to_owned();
        IngestReply { rows, already, region, ..IngestReply::default() }
    }

    #[test]
    fn what_is_acknowledged_is_counted() {
        let ledger = Ledger::new(100);
        for millis in 1..=50 {
            let took = Duration::from_millis(millis);
            ledger.small(Protocol::Http1, 10, took, &reply(1, millis == 1));
        }
        assert!((ledger.share() - 0.5).abs() < 1e-9);
        let upload = Upload {
            batch: "large".into(),
            protocol: Protocol::Grpc,
            bytes: 1000,
            rows: 70,
            took: Duration::from_secs(1),
            tries: 2,
            region: "eu-west".into(),
        };
        ledger.large(upload, &reply(70, false));
        ledger.failed("once".into());
        let counts = ledger.counts();
        assert_eq!((counts.rows, counts.bytes, counts.batches), (120, 1500, 51));
        assert_eq!((counts.failures, counts.already), (1, 1));
        let details = ledger.details();
        let lane = &details.lanes[&Protocol::Http1];
        assert_eq!(lane.batches(), 50);
        assert!((24.9..=25.1).contains(&lane.millis(0.5)), "{}", lane.millis(0.5));
        assert_eq!(details.regions["eu-west"], 51);
        assert!((ledger.share() - 0.5).abs() < 1e-9, "uploads do not tell the time");
        ledger.all_small_done();
        assert!((ledger.share() - 1.0).abs() < 1e-9);
    }
}
