//! Transfers under way that last: what `GET /drain` shows, and what a drain reports as cut.
//!
//! An exchange lists itself once it has gone on for `LISTED_AFTER`, so that a small request
//! costs nothing; an opaque connection at once. Each worker has a table of its own, whose lock
//! only a person's question contends for. Knows nothing of how bytes are moved.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use crossbeam_utils::CachePadded;
use serde::Serialize;
use tokio::time::Instant;

use crate::{lock::lock, upstream::EndpointState};

/// The tables of one proxy, by worker. Bounded by the connections and streams that are open.
#[derive(Debug)]
pub struct Transfers(Box<[CachePadded<Mutex<Table>>]>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    listed: HashMap<u64, Arc<Transfer>, ahash::RandomState>,
}

/// One that is listed.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) protocol: &'static str,
    pub(crate) listener: Arc<str>,
    pub(crate) client: SocketAddr,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) service: Option<Arc<str>>,
    /// The one it is with now.
    pub(crate) endpoint: ArcSwapOption<EndpointState>,
    pub(crate) started: Instant,
    /// Body bytes from the client.
    pub(crate) up: AtomicU64,
    /// Body bytes to the client.
    pub(crate) down: AtomicU64,
}

/// Keeps a transfer in its table until dropped.
#[derive(Debug)]
pub(crate) struct Listed {
    transfers: Arc<Transfers>,
    worker: usize,
    key: u64,
    pub(crate) transfer: Arc<Transfer>,
}

/// A transfer as it is seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Underway {
    /// As in the access log: `HTTP/1.1`, `HTTP/2`, `TCP` or `TLS`.
    pub protocol: &'static str,
    /// The listener it came in by.
    pub listener: Arc<str>,
    /// The client.
    pub client: SocketAddr,
    /// The route; none for opaque bytes.
    pub route: Option<Arc<str>>,
    /// The service.
    pub service: Option<Arc<str>>,
    /// The endpoint it is with.
    pub endpoint: Option<String>,
    /// Body bytes from the client so far.
    pub request_bytes: u64,
    /// Body bytes to the client so far.
    pub response_bytes: u64,
    /// Since its head was read, or the connection accepted.
    pub age_ms: u64,
}

/// An exchange lists itself when it has gone on for so long.
pub(crate) const LISTED_AFTER: Duration = Duration::from_secs(2);

impl Transfers {
    /// Empty tables.
    pub fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| CachePadded::default()).collect())
    }

    /// Lists a transfer of this worker.
    pub(crate) fn list(self: &Arc<Self>, worker: usize, transfer: Arc<Transfer>) -> Listed {
        let mut table = self.lock(worker);
        let key = table.next;
        table.next += 1;
        table.listed.insert(key, transfer.clone());
        drop(table);
        Listed { transfers: self.clone(), worker, key, transfer }
    }

    /// Those that moved the most, at most `most` of them, and how many more there are.
    pub fn underway(&self, most: usize) -> (Vec<Underway>, usize) {
        let now = Instant::now();
        let mut all = Vec::new();
        for worker in 0..self.0.len() {
            all.extend(self.lock(worker).listed.values().map(|transfer| transfer.seen(now)));
        }
        let more = all.len().saturating_sub(most);
        all.sort_by_key(|seen| {
            let moved = seen.request_bytes.saturating_add(seen.response_bytes);
            std::cmp::Reverse((moved, seen.age_ms))
        });
        all.truncate(most);
        (all, more)
    }

    fn lock(&self, worker: usize) -> MutexGuard<'_, Table> {
        lock(&self.0[worker % self.0.len()])
    }
}

impl Transfer {
    fn seen(&self, now: Instant) -> Underway {
        let age = now.saturating_duration_since(self.started).as_millis();
        Underway {
            protocol: self.protocol,
            listener: self.listener.clone(),
            client: self.client,
            route: self.route.clone(),
            service: self.service.clone(),
            endpoint: self.endpoint.load().as_ref().map(|e| e.spec.name.clone()),
            request_bytes: self.up.load(Relaxed),
            response_bytes: self.down.load(Relaxed),
            age_ms: u64::try_from(age).unwrap_or(u64::MAX),
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.transfers.lock(self.worker).listed.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_moved_the_most_are_shown_and_the_others_counted() {
        let transfers = Arc::new(Transfers::new(2));
        let listed: Vec<_> = (0..5_u64)
            .map(|n| {
                let transfer = Transfer {
                    protocol: "TCP",
                    listener: "in".into(),
                    client: ([127, 0, 0, 1], 1).into(),
                    route: None,
                    service: None,
                    endpoint: ArcSwapOption::empty(),
                    started: Instant::now(),
                    up: AtomicU64::new(n % 3),
                    down: AtomicU64::new(n),
                };
                transfers.list(usize::try_from(n).unwrap(), transfer.into())
            })
            .collect();
        let (shown, more) = transfers.underway(3);
        let bytes: Vec<_> = shown.iter().map(|t| (t.request_bytes, t.response_bytes)).collect();
        assert_eq!((bytes, more), (vec![(1, 4), (2, 2), (0, 3)], 2));
        drop(listed);
        assert_eq!(transfers.underway(3), (vec![], 0));
    }
}
