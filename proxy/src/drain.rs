//! Tells connections to finish what they have and take nothing new.
//!
//! A [`Signal`] is fired once; every [`Watch`] of it sees it at any later time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::{sync::Notify, time::timeout};

use crate::transfers::Underway;

/// The side that says when.
#[derive(Clone, Debug, Default)]
pub struct Signal(Arc<Shared>);

/// The side that listens; cheap to clone.
#[derive(Clone, Debug)]
pub struct Watch(Arc<Shared>);

/// What is under way, or was when the drain's time was over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Leftovers {
    /// Client connections.
    pub connections: u32,
    /// Exchanges in flight.
    pub requests: u32,
    /// Their body bytes, declared or so far seen.
    pub bytes_in_flight: u64,
    /// Those that last, at most [`MOST_TRANSFERS`]: the ones that moved the most.
    pub transfers: Vec<Underway>,
    /// How many more of those there are.
    pub more: usize,
}

/// Transfers named in a report; the others are counted.
pub const MOST_TRANSFERS: usize = 100;

#[derive(Debug, Default)]
struct Shared {
    state: AtomicU8,
    notify: Notify,
}

/// The states of a signal, in the order in which they can follow each other.
const GENTLE: u8 = 1;
const NOW: u8 = 2;

/// After a gentle signal, connections without a request may yet send one for so long.
const IDLE_GRACE: Duration = Duration::from_secs(15);

impl Signal {
    /// A signal not yet fired.
    pub fn new() -> Self {
        Self::default()
    }

    /// A watcher of this signal.
    pub fn watch(&self) -> Watch {
        Watch(self.0.clone())
    }

    /// Starts the drain. Firing again changes nothing.
    pub fn fire(&self) {
        self.reach(NOW);
    }

    /// Starts a drain in which connections without a request are kept a while longer, since a
    /// request may be on its way. [`Signal::fire`] makes it an ordinary one.
    pub fn fire_gently(&self) {
        self.reach(GENTLE);
    }

    fn reach(&self, state: u8) {
        self.0.state.fetch_max(state, Ordering::Release);
        self.0.notify.notify_waiters();
    }

    /// Whether it was fired.
    pub fn fired(&self) -> bool {
        self.0.state.load(Ordering::Acquire) > 0
    }
}

impl Watch {
    /// Whether the drain has begun.
    pub fn draining(&self) -> bool {
        self.0.state.load(Ordering::Acquire) > 0
    }

    /// Waits for the drain to begin; returns at once when it has. Cancel-safe.
    pub async fn drained(&self) {
        self.reached(GENTLE).await;
    }

    /// Waits until connections without a request are to be closed.
    pub(crate) async fn idle_ends(&self) {
        self.reached(GENTLE).await;
        if self.0.state.load(Ordering::Acquire) == GENTLE {
            // Rare, so on the heap.
            let grace = Box::pin(timeout(IDLE_GRACE, self.reached(NOW)));
            let _ = grace.await;
        }
    }

    async fn reached(&self, state: u8) {
        loop {
            let mut notified = std::pin::pin!(self.0.notify.notified());
            // Registered before the state is read, so that a signal in between is not missed.
            notified.as_mut().enable();
            if self.0.state.load(Ordering::Acquire) >= state {
                return;
            }
            notified.await;
        }
    }
}

/// Tells the log what a drain cuts.
pub(crate) fn report(left: &Leftovers) {
    tracing::warn!(
        connections = left.connections,
        requests = left.requests,
        bytes_in_flight = left.bytes_in_flight,
        "cut what was still under way"
    );
    for cut in &left.transfers {
        tracing::warn!(
            protocol = cut.protocol,
            listener = &*cut.listener,
            client = %cut.client,
            route = cut.route.as_deref().unwrap_or("-"),
            service = cut.service.as_deref().unwrap_or("-"),
            endpoint = cut.endpoint.as_deref().unwrap_or("-"),
            request_bytes = cut.request_bytes,
            response_bytes = cut.response_bytes,
            age_ms = cut.age_ms,
            "cut a transfer"
        );
    }
    if left.more > 0 {
        tracing::warn!(count = left.more, "cut further transfers, which moved less");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn watchers_before_and_after_the_signal_both_see_it() {
        let signal = Signal::new();
        let early = signal.watch();
        assert!(!early.draining());
        let watch = early.clone();
        let waiting = tokio::spawn(async move { watch.drained().await });
        tokio::task::yield_now().await;
        signal.fire();
        waiting.await.unwrap();
        signal.watch().drained().await;
        assert!(early.draining() && signal.fired());
    }

    #[tokio::test(start_paused = true)]
    async fn a_gentle_drain_keeps_idle_connections_a_while_unless_it_becomes_an_ordinary_one() {
        let start = tokio::time::Instant::now();
        let (gentle, hastened, ordinary) = (Signal::new(), Signal::new(), Signal::new());
        gentle.fire_gently();
        gentle.watch().drained().await;
        gentle.watch().idle_ends().await;
        assert_eq!(start.elapsed(), IDLE_GRACE);
        hastened.fire_gently();
        let watch = hastened.watch();
        let waiting = tokio::spawn(async move { watch.idle_ends().await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        hastened.fire();
        waiting.await.unwrap();
        ordinary.fire();
        // No way back.
        ordinary.fire_gently();
        ordinary.watch().idle_ends().await;
        assert_eq!(start.elapsed(), IDLE_GRACE + Duration::from_secs(1));
    }
}
