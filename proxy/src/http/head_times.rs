//! How long a route's service takes to the response head, of late. Relaxed atomics, no lock.
//!
//! Times fall into buckets, four per power of two, so that a quantile is told a quarter too high
//! at most. When [`MEMORY`] are in, all buckets are halved: what was long ago fades. Two threads
//! at it at once may lose a count or two, which no quantile shows.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The times of one route and service.
#[derive(Debug)]
pub(crate) struct HeadTimes {
    percent: u32,
    buckets: [AtomicU32; BUCKETS],
    /// Since the buckets were halved.
    recent: AtomicU32,
    /// All that ever came, up to the largest number.
    samples: AtomicU32,
    /// The quantile as last told, in microseconds.
    quantile: AtomicU64,
}

/// From 64 µs to about a minute.
const BUCKETS: usize = 80;
const SHORTEST_MICROS: u64 = 64;
/// So many times until what came before counts for half.
const MEMORY: u32 = 1024;
/// So often the quantile is told anew.
const EVERY: u32 = 32;

impl HeadTimes {
    /// Nothing is known yet of this percentile.
    pub(crate) fn new(percent: u32) -> Self {
        Self {
            percent,
            buckets: [const { AtomicU32::new(0) }; BUCKETS],
            recent: AtomicU32::new(0),
            samples: AtomicU32::new(0),
            quantile: AtomicU64::new(0),
        }
    }

    /// Notes a time to the head.
    pub(crate) fn record(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(micros)].fetch_add(1, Relaxed);
        let samples = self.samples.load(Relaxed).saturating_add(1);
        self.samples.store(samples, Relaxed);
        let recent = self.recent.fetch_add(1, Relaxed) + 1;
        if recent >= MEMORY {
            self.recent.store(0, Relaxed);
            for bucket in &self.buckets {
                bucket.store(bucket.load(Relaxed) / 2, Relaxed);
            }
        }
        if recent.is_multiple_of(EVERY) {
            self.quantile.store(self.tell(), Relaxed);
        }
    }

    /// The percentile, once so many times are known.
    pub(crate) fn quantile(&self, min_samples: u32) -> Option<Duration> {
        if self.samples.load(Relaxed) < min_samples {
            return None;
        }
        match self.quantile.load(Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    fn tell(&self) -> u64 {
        let counts = self.buckets.each_ref().map(|bucket| u64::from(bucket.load(Relaxed)));
        let total: u64 = counts.iter().sum();
        let mut below = 0;
        let at = counts.iter().position(|count| {
            below += count;
            below * 100 >= total * u64::from(self.percent)
        });
        at.map_or(0, bound)
    }
}

fn bucket(micros: u64) -> usize {
    let scaled = micros / (SHORTEST_MICROS / 4);
    let octave = scaled.max(4).ilog2() as usize;
    let quarter = (scaled.max(4) >> (octave - 2)) as usize - 4;
    ((octave - 2) * 4 + quarter).min(BUCKETS - 1)
}

/// Where a bucket ends, in microseconds.
fn bound(bucket: usize) -> u64 {
    let quarter = (SHORTEST_MICROS / 4) << (bucket / 4);
    quarter * (5 + bucket as u64 % 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_told_within_its_bucket_and_only_when_enough_is_known() {
        for micros in [64, 65, 100, 127, 128, 1_000, 5_000, 70_000, 3_000_000] {
            let times = HeadTimes::new(95);
            (0..95).for_each(|_| times.record(Duration::from_micros(micros)));
            assert_eq!(times.quantile(96), None);
            (0..5).for_each(|_| times.record(Duration::from_secs(20)));
            assert_eq!(times.quantile(101), None);
            let told = times.quantile(96).unwrap().as_micros();
            let (least, most) = (u128::from(micros), u128::from(micros) * 5 / 4 + 1);
            assert!((least..=most).contains(&told), "{micros}: {told}");
        }
    }

    #[test]
    fn what_was_long_ago_fades() {
        let times = HeadTimes::new(95);
        (0..10_000).for_each(|_| times.record(Duration::from_secs(1)));
        (0..10 * MEMORY).for_each(|_| times.record(Duration::from_millis(1)));
        assert!(times.quantile(1).unwrap() < Duration::from_millis(2));
    }

    #[test]
    fn no_time_is_out_of_bounds() {
        let times = HeadTimes::new(50);
        for time in [Duration::ZERO, Duration::MAX] {
            (0..EVERY).for_each(|_| times.record(time));
            assert!(times.quantile(1).is_some());
        }
    }
}
