//! What all spools together hold in memory until it is written.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
};

use tokio::sync::{Notify, futures::OwnedNotified};

/// A budget in bytes that all share. It is looked at before a piece is taken and charged after,
/// so that it is exceeded by one piece for each worker thread at most, and what rounds it up.
#[derive(Debug)]
pub(super) struct Memory {
    limit: usize,
    held: AtomicUsize,
    freed: Arc<Notify>,
}

/// A place in the line of those who wait for room. When it is dropped the next in line is woken in its
/// stead, if it was its turn. So it is to be dropped by whoever waits for something else.
pub(super) type Place = Pin<Box<OwnedNotified>>;

impl Memory {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, held: AtomicUsize::new(0), freed: Arc::new(Notify::new()) }
    }

    pub(super) fn take(&self, bytes: usize) {
        self.held.fetch_add(bytes, SeqCst);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        let before = self.held.fetch_sub(bytes, SeqCst);
        if before >= self.limit && before - bytes < self.limit {
            self.freed.notify_one();
        }
    }

    /// Whether nobody may take more.
    pub(super) fn is_full(&self) -> bool {
        self.held.load(SeqCst) >= self.limit
    }

    /// Whether nobody should hold more than can be helped: a transfer whose client has
    /// stopped sending must not sit on what others wait for.
    pub(super) fn is_short(&self) -> bool {
        self.held.load(SeqCst) >= self.limit / 2
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.load(SeqCst)
    }

    /// Ready when there is room. Those who wait are woken one after the other: each that finds
    /// room wakes the next, since it may itself have nothing to put there.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>, place: &mut Option<Place>) -> Poll<()> {
        loop {
            if place.is_none() && !self.is_full() {
                return Poll::Ready(());
            }
            let notified =
                place.get_or_insert_with(|| Box::pin(self.freed.clone().notified_owned()));
            // In line first, and then a look: room made in between is not missed.
            notified.as_mut().enable();
            if !self.is_full() {
                *place = None;
                self.freed.notify_one();
                return Poll::Ready(());
            }
            ready!(notified.as_mut().poll(cx));
            *place = None;
        }
    }
}
