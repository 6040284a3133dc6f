//! One timer for many deadlines.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// One timer that serves all time limits of a connection.
///
/// It is moved only when it would fire too late; one that fires early is moved
/// on. A request that ends in time never touches the timer wheel, and a task that polls it again finds with one look
/// that nothing has changed.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whom the runtime wakes when it fires.
    wakes: Option<Waker>,
}

impl Timer {
    /// Ready once `deadline` has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            self.wakes = None;
            sleep.as_mut().reset(deadline);
        }
        let told = self.wakes.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if told && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                self.wakes = Some(cx.waker().clone());
                return Poll::Pending;
            }
            self.wakes = None;
            if sleep.deadline() >= deadline || Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}
