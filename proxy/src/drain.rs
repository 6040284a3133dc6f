//! Tells connections to finish what they have and take nothing new.
//!
//! A [`Signal`] is fired once; every [`Watch`] of it sees it at any later time.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

/// The side that says when.
#[derive(Clone, Debug, Default)]
pub struct Signal(Arc<Shared>);

/// The side that listens; cheap to clone.
#[derive(Clone, Debug)]
pub struct Watch(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    fired: AtomicBool,
    notify: Notify,
}

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
        self.0.fired.store(true, Ordering::Release);
        self.0.notify.notify_waiters();
    }

    /// Whether it was fired.
    pub fn fired(&self) -> bool {
        self.0.fired.load(Ordering::Acquire)
    }
}

impl Watch {
    /// Whether the drain has begun.
    pub fn draining(&self) -> bool {
        self.0.fired.load(Ordering::Acquire)
    }

    /// Waits for the drain to begin; returns at once when it has. Cancel-safe.
    pub async fn drained(&self) {
        let mut notified = std::pin::pin!(self.0.notify.notified());
        // Registered before the flag is read, so that a signal in between is not missed.
        notified.as_mut().enable();
        if !self.draining() {
            notified.await;
        }
    }

    /// As [`Watch::drained`], as a future that owns what it needs.
    pub async fn into_drained(self) {
        self.drained().await;
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
        let waiting = tokio::spawn(early.clone().into_drained());
        tokio::task::yield_now().await;
        signal.fire();
        waiting.await.unwrap();
        signal.watch().drained().await;
        assert!(early.draining() && signal.fired());
    }
}
