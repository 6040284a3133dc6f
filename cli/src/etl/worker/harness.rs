//! Distance and speed of a region, since the kernel at hand has no netem.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

/// How fast the worker is and how far away.
#[derive(Clone, Copy, Debug, Default)]
pub struct Speed {
    /// Round trip to it.
    pub delay: Duration,
    /// Time it spends on a batch of any size.
    pub per_batch: Duration,
    /// Bytes per second over all its uploads together; `None` = as fast as it goes.
    pub bytes_per_second: Option<f64>,
}

/// Holds a worker to its [`Speed`].
#[derive(Debug)]
pub struct Harness {
    speed: Speed,
    slow_factor: AtomicU32,
    /// When the work accepted so far will be done.
    busy_until: Mutex<Instant>,
}

impl Harness {
    /// A harness at full speed.
    pub fn new(speed: Speed) -> Self {
        Self { speed, slow_factor: AtomicU32::new(1), busy_until: Mutex::new(Instant::now()) }
    }

    /// Makes the worker this many times slower; 1 is its own speed.
    pub fn slow_down(&self, factor: u32) {
        self.slow_factor.store(factor.max(1), Relaxed);
    }

    /// The factor in force.
    pub fn factor(&self) -> u32 {
        self.slow_factor.load(Relaxed)
    }

    /// Passes the distance.
    pub(super) async fn travel(&self) {
        if !self.speed.delay.is_zero() {
            tokio::time::sleep(self.speed.delay).await;
        }
    }

    /// Waits for the worker to have time to begin a batch.
    pub(super) async fn begin(&self) {
        self.spend(self.speed.per_batch).await;
    }

    /// Waits for the worker to have time for `bytes`.
    pub(super) async fn work(&self, bytes: usize) {
        let Some(rate) = self.speed.bytes_per_second else { return };
        self.spend(Duration::from_secs_f64(bytes as f64 / rate)).await;
    }

    /// All work stands in one queue, first come first served.
    async fn spend(&self, time: Duration) {
        if time.is_zero() {
            return;
        }
        let done = {
            let mut busy_until = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
            *busy_until = (*busy_until).max(Instant::now()) + time * self.factor();
            *busy_until
        };
        tokio::time::sleep_until(done).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn uploads_share_the_speed_and_slow_means_slow() {
        let harness = Harness::new(Speed {
            delay: Duration::from_millis(20),
            per_batch: Duration::from_millis(5),
            bytes_per_second: Some(1000.0),
        });
        let start = Instant::now();
        tokio::join!(harness.work(500), harness.work(500));
        assert_eq!(start.elapsed().as_millis(), 1000);
        harness.slow_down(10);
        harness.work(100).await;
        assert_eq!(start.elapsed().as_millis(), 2000);
        harness.travel().await;
        assert_eq!(start.elapsed().as_millis(), 2020);
        harness.begin().await;
        assert_eq!(start.elapsed().as_millis(), 2070);
    }
}
