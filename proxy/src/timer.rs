//! One timer for many deadlines.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::{
    task::coop::has_budget_remaining,
    time::{Instant, Sleep, sleep_until},
};

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
                // Out of budget it has not been told whom to wake.
                self.wakes = has_budget_remaining().then(|| cx.waker().clone());
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

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::{sync::mpsc, time::timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_that_is_set_when_a_task_has_had_its_turn_fires_all_the_same() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        (0..1000).for_each(|n| sender.send(n).unwrap());
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut timer = Timer::default();
        let mut first = true;
        let firing = poll_fn(|cx| {
            if std::mem::take(&mut first) {
                while receiver.poll_recv(cx).is_ready() {}
                assert!(!has_budget_remaining());
            }
            timer.poll(cx, deadline)
        });
        timeout(Duration::from_secs(2), firing).await.unwrap();
        assert_eq!(Instant::now(), deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_another_task_polls_wakes_that_one() {
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut timer = Timer::default();
        assert!(poll_fn(|cx| Poll::Ready(timer.poll(cx, deadline))).await.is_pending());
        let other = tokio::spawn(async move { poll_fn(|cx| timer.poll(cx, deadline)).await });
        timeout(Duration::from_secs(2), other).await.unwrap().unwrap();
        assert_eq!(Instant::now(), deadline);
    }
}
