//! A token bucket that workers share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use towpath_policies::model::Rate;

/// A token bucket, kept as the time at which it will be full again: the generic cell rate
/// algorithm (ITU-T I.371) as a virtual scheduler. One atomic, no lock, and nothing to refill.
///
/// Times are nanoseconds from any one origin. What is taken between any two moments is at most
/// `per_second` times the time between them, plus `burst` (and a thousandth of it).
#[derive(Debug)]
pub(crate) struct Bucket {
    per_second: u64,
    /// Time in which an empty bucket fills.
    burst: u64,
    full_at: AtomicU64,
}

/// No time is further away than this, some 146 years.
const NEVER: u64 = u64::MAX / 4;

impl Bucket {
    pub(crate) fn new(rate: Rate) -> Self {
        let mut bucket =
            Self { per_second: rate.per_second.max(1), burst: 0, full_at: AtomicU64::new(0) };
        let burst = bucket.time_of(rate.burst.max(1));
        // What is taken piecemeal is rounded up each time, which must not cost the last piece.
        bucket.burst = burst + rate.burst.min(burst / 1000);
        bucket
    }

    /// Takes `n` if they are there.
    ///
    /// # Errors
    /// The time until they will be.
    pub(crate) fn take(&self, n: u64, now: u64) -> Result<(), u64> {
        let time = self.time_of(n);
        let taken = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
            let after = full_at.max(now) + time;
            (after - now <= self.burst).then_some(after.min(now + NEVER))
        });
        match taken {
            Ok(_) => Ok(()),
            Err(full_at) => Err(full_at.max(now) + time - now - self.burst),
        }
    }

    /// Takes `n` in any case, and says from when on they may be used. Whoever comes later waits
    /// behind, so that those who take equal parts in turn pass at an equal pace.
    pub(crate) fn reserve(&self, n: u64, now: u64) -> u64 {
        let time = self.time_of(n);
        let after = |full_at: u64| (full_at.max(now) + time).min(now + NEVER);
        let before = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| Some(after(full_at)));
        after(before.unwrap_or_default()).saturating_sub(self.burst).max(now)
    }

    /// Puts back what was taken and not used.
    pub(crate) fn give_back(&self, n: u64) {
        let time = self.time_of(n);
        let _ = self
            .full_at
            .fetch_update(Relaxed, Relaxed, |full_at| Some(full_at.saturating_sub(time)));
    }

    pub(crate) fn per_second(&self) -> u64 {
        self.per_second
    }

    fn time_of(&self, n: u64) -> u64 {
        let time = (u128::from(n) * 1_000_000_000).div_ceil(u128::from(self.per_second));
        u64::try_from(time).unwrap_or(NEVER).min(NEVER)
    }
}

#[cfg(test)]
mod tests;
