//! The jobs of a run and what happens meanwhile: the same for every contender.

use std::time::Duration;

use super::world::{REGIONS, capacity};

/// Share of the whole fleet's capacity that the jobs ask for, on average.
pub const LOAD: f64 = 0.55;
/// Least bytes of a job.
pub const LEAST: u64 = 16 << 10;
/// Most bytes of a job.
pub const MOST: u64 = 16 << 20;
/// The tail of their sizes: most jobs are small, and most bytes are in few.
pub const TAIL: f64 = 1.1;

/// A job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Job {
    /// When it is handed in.
    pub at: Duration,
    /// The region its data comes from, in [`REGIONS`].
    pub origin: usize,
    /// Bytes of its input.
    pub bytes: u64,
    /// How often they are gone over: its work is so many times their number.
    pub passes: u32,
}

impl Job {
    /// Bytes that a worker goes over for it.
    #[must_use]
    pub fn work(&self) -> f64 {
        self.bytes as f64 * f64::from(self.passes)
    }
}

/// What happens in a run, and when, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Script {
    /// From here on figures count: proxies have got to know the workers.
    pub warm: f64,
    /// The GPU falls. Until then is the quiet part.
    pub fall: f64,
    /// The region is cut off.
    pub cut: f64,
    /// It is back.
    pub heal: f64,
    /// A worker begins to fail jobs.
    pub fail: f64,
    /// The last job.
    pub end: f64,
}

impl Script {
    /// That of a run of full or quick length.
    #[must_use]
    pub fn of(quick: bool) -> Self {
        if quick {
            Self { warm: 2.0, fall: 5.0, cut: 8.0, heal: 10.0, fail: 12.0, end: 14.0 }
        } else {
            Self { warm: 3.0, fall: 13.0, cut: 18.0, heal: 22.0, fail: 26.0, end: 30.0 }
        }
    }
}

/// Jobs until `end`, in no rhythm, that ask for `load` of the fleet's capacity on average.
#[must_use]
pub fn jobs(load: f64, end: f64, seed: u64) -> Vec<Job> {
    let mut draw = Draw::new(seed);
    let per_second = load * capacity() / mean(LEAST, MOST);
    let mut jobs = Vec::new();
    let mut at = 0.0;
    loop {
        at += -(1.0 - draw.unit()).ln() / per_second;
        if at >= end {
            return jobs;
        }
        jobs.push(draw.job(at, MOST));
    }
}

/// `count` jobs that are there at once, none above `most` bytes.
#[must_use]
pub fn batch(count: usize, most: u64, passes: u32, seed: u64) -> Vec<Job> {
    let mut draw = Draw::new(seed);
    (0..count).map(|_| Job { passes, ..draw.job(0.0, most) }).collect()
}

/// The mean of sizes drawn between two bounds.
fn mean(least: u64, most: u64) -> f64 {
    let (least, most) = (least as f64, most as f64);
    let part = 1.0 - (least / most).powf(TAIL);
    least.powf(TAIL) / part * TAIL / (TAIL - 1.0) * (least.powf(1.0 - TAIL) - most.powf(1.0 - TAIL))
}

/// Drawn numbers, the same for the same seed.
struct Draw(u64);

impl Draw {
    fn new(seed: u64) -> Self {
        // xorshift64* may start anywhere but at 0.
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// From 0 up to, but not, 1.
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn job(&mut self, at: f64, most: u64) -> Job {
        let (least, bound) = (LEAST as f64, most as f64);
        // The inverse of the bounded Pareto distribution.
        let left = 1.0 - self.unit() * (1.0 - (least / bound).powf(TAIL));
        let bytes = (least / left.powf(1.0 / TAIL)).min(bound) as u64;
        let origin = (self.unit() * REGIONS.len() as f64) as usize;
        Job { at: Duration::from_secs_f64(at), origin, bytes, passes: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_jobs_and_another_gives_others() {
        assert_eq!(jobs(LOAD, 2.0, 3), jobs(LOAD, 2.0, 3));
        assert_ne!(jobs(LOAD, 2.0, 3), jobs(LOAD, 2.0, 4));
        assert_eq!(batch(9, MOST, 4, 1), batch(9, MOST, 4, 1));
    }

    #[test]
    fn jobs_ask_for_the_load_and_come_in_order_from_everywhere() {
        let end = 600.0;
        let jobs = jobs(LOAD, end, 1);
        assert!(jobs.is_sorted_by_key(|job| job.at));
        assert!(jobs.iter().all(|job| (LEAST..=MOST).contains(&job.bytes)));
        let bytes: f64 = jobs.iter().map(|job| job.bytes as f64).sum();
        let load = bytes / end / capacity();
        assert!((load / LOAD - 1.0).abs() < 0.05, "{load}");
        for origin in 0..REGIONS.len() {
            let share = jobs.iter().filter(|job| job.origin == origin).count() as f64;
            assert!((share / jobs.len() as f64 - 1.0 / 3.0).abs() < 0.02);
        }
    }

    #[test]
    fn most_jobs_are_small_and_most_bytes_are_in_few() {
        let mut sizes: Vec<u64> = batch(20_000, MOST, 1, 5).iter().map(|job| job.bytes).collect();
        sizes.sort_unstable();
        assert!(sizes[10_000] < 2 * LEAST, "{}", sizes[10_000]);
        let all: u64 = sizes.iter().sum();
        let largest: u64 = sizes[18_000..].iter().sum();
        assert!(largest * 2 > all, "a tenth of the jobs has half of the bytes");
        assert!(batch(20_000, 1 << 20, 1, 5).iter().all(|job| job.bytes <= 1 << 20));
    }

    #[test]
    fn what_happens_is_in_order_and_leaves_time_to_see_it() {
        for quick in [false, true] {
            let Script { warm, fall, cut, heal, fail, end } = Script::of(quick);
            assert!(warm + 2.0 < fall && fall + 2.0 < cut && cut < heal);
            assert!(heal + 2.0 <= fail && fail + 2.0 <= end);
        }
    }
}
