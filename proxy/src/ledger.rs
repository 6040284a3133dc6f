//! What went where, summed up while it happens: for the one who started a proxy beside a job.
//!
//! It is fed what the access log is fed, one record per exchange when it is over, and knows as
//! many destinations as fit; the others are one line together.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde::{Serialize, Serializer};
use towpath_policies::model::Service;

use crate::{access_log::Record, lock::lock};

/// The sums so far.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Sums>);

/// What went to one destination.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Line {
    /// A host and port as they were asked for, or an endpoint of the service; empty for the
    /// destinations beyond [`MOST_DESTINATIONS`].
    pub destination: Arc<str>,
    /// The service that took it; none where nothing did.
    pub service: Option<Arc<str>>,
    /// The sums.
    #[serde(flatten)]
    pub sum: Sum,
}

/// Exchanges, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sum {
    /// Requests, and opaque connections.
    pub requests: u64,
    /// Those that were cut, refused, or answered with a 5xx.
    pub failed: u64,
    /// Tries beyond the first.
    pub retries: u64,
    /// Body bytes that the job sent.
    pub bytes_out: u64,
    /// Body bytes that it was sent.
    pub bytes_in: u64,
    /// How long they took, one after the other.
    #[serde(serialize_with = "seconds", rename = "seconds")]
    pub time: Duration,
}

/// Destinations told apart.
pub const MOST_DESTINATIONS: usize = 1000;

#[derive(Debug, Default)]
struct Sums {
    lines: BTreeMap<(Arc<str>, Option<Arc<str>>), Sum>,
    others: Sum,
}

impl Ledger {
    /// Adds one that is over.
    pub(crate) fn add(&self, record: &Record) {
        let one = Sum::of(record);
        let key = (destination(record), record.service.clone());
        let mut sums = self.lock();
        if sums.lines.len() >= MOST_DESTINATIONS && !sums.lines.contains_key(&key) {
            sums.others.add(&one);
            return;
        }
        sums.lines.entry(key).or_default().add(&one);
    }

    /// Every destination, those with the most bytes first; the others last.
    pub fn lines(&self) -> Vec<Line> {
        let sums = self.lock();
        let line = |((destination, service), sum): (&(Arc<str>, Option<Arc<str>>), &Sum)| Line {
            destination: destination.clone(),
            service: service.clone(),
            sum: *sum,
        };
        let mut lines: Vec<Line> = sums.lines.iter().map(line).collect();
        lines.sort_by_key(|line| std::cmp::Reverse(line.sum.bytes_out + line.sum.bytes_in));
        if sums.others.requests > 0 {
            lines.push(Line { sum: sums.others, ..Line::default() });
        }
        lines
    }

    /// All together.
    pub fn total(&self) -> Sum {
        let sums = self.lock();
        let mut total = sums.others;
        sums.lines.values().for_each(|sum| total.add(sum));
        total
    }

    fn lock(&self) -> MutexGuard<'_, Sums> {
        lock(&self.0)
    }
}

impl Sum {
    fn of(record: &Record) -> Self {
        let opaque = record.method.is_none();
        let broke = if opaque {
            record.reason.is_some()
        } else {
            record.status.is_none_or(|status| status >= 500) || record.reason.is_some()
        };
        Self {
            requests: 1,
            failed: broke.into(),
            retries: record.attempts.saturating_sub(1).into(),
            bytes_out: record.request_bytes,
            bytes_in: record.response_bytes,
            time: record.duration,
        }
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.retries += other.retries;
        self.bytes_out += other.bytes_out;
        self.bytes_in += other.bytes_in;
        self.time += other.time;
    }
}

/// What a person knows it by: an endpoint of the mesh, or the host that was asked for.
fn destination(record: &Record) -> Arc<str> {
    let known = record.service.as_deref().is_some_and(|service| service != Service::PASSTHROUGH);
    let endpoint = record.endpoint.as_ref().filter(|_| known);
    match (endpoint, &record.host) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, Some(host)) => host.as_ref().into(),
        (None, None) => record.endpoint.clone().unwrap_or_else(|| "unknown".into()),
    }
}

fn seconds<S: Serializer>(time: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(time.as_millis() as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(host: &str, service: Option<&str>, endpoint: Option<&str>) -> Record {
        let mut record = Record::new("HTTP/1.1", "run".into(), None);
        record.method = Some(http::Method::PUT);
        record.status = Some(200);
        record.host = Some(host.into());
        record.service = service.map(Into::into);
        record.endpoint = endpoint.map(Into::into);
        record.attempts = 1;
        record.request_bytes = 10;
        record
    }

    #[test]
    fn what_went_to_one_destination_is_one_line() {
        let ledger = Ledger::default();
        ledger.add(&record("etl", Some("etl"), Some("us-1")));
        let again = Record { attempts: 3, ..record("etl", Some("etl"), Some("us-1")) };
        ledger.add(&again);
        let broken = Record {
            status: None,
            reason: Some("client_gone"),
            response_bytes: 100,
            ..record("b.test:80", Some(Service::PASSTHROUGH), Some("10.0.0.1:80"))
        };
        ledger.add(&broken);
        let lines = ledger.lines();
        let told: Vec<_> = lines
            .iter()
            .map(|l| (&*l.destination, l.sum.requests, l.sum.failed, l.sum.retries))
            .collect();
        assert_eq!(told, [("b.test:80", 1, 1, 0), ("us-1", 2, 0, 2)]);
        assert_eq!((ledger.total().bytes_out, ledger.total().bytes_in), (30, 100));
    }

    #[test]
    fn destinations_beyond_the_bound_are_counted_together() {
        let ledger = Ledger::default();
        for n in 0..MOST_DESTINATIONS + 5 {
            ledger.add(&record(&format!("{n}.test"), None, None));
        }
        ledger.add(&record("0.test", None, None));
        let lines = ledger.lines();
        assert_eq!(lines.len(), MOST_DESTINATIONS + 1);
        let last = lines.last().map(|line| (&*line.destination, line.sum.requests));
        assert_eq!(last, Some(("", 5)));
        assert_eq!(ledger.total().requests, MOST_DESTINATIONS as u64 + 6);
    }
}
