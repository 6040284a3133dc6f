//! The world of the comparison: three regions, the links between them, and twelve workers.
//!
//! Nothing here runs. The figures are those of a fleet that grew: some old machines, some new ones,
//! some with an accelerator, in places that were cheap at the time.

use std::time::Duration;

use super::trace::Job;

/// A region.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Region {
    /// Its name in policies.
    pub name: &'static str,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
}

/// The regions; the second lies between the others.
pub const REGIONS: [Region; 3] = [
    Region { name: "us-west", latitude: 45.6, longitude: -121.2 },
    Region { name: "us-east", latitude: 39.0, longitude: -77.5 },
    Region { name: "eu-central", latitude: 50.1, longitude: 8.7 },
];

/// The way from the origin of a job's data to a worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// One way.
    pub delay: Duration,
    /// Of each transfer: what a connection with a window of 1 MiB gets over such a round trip.
    pub bytes_per_second: f64,
}

const SAME: Link = Link { delay: Duration::from_millis(1), bytes_per_second: 64.0 * MIB };
const NEXT: Link = Link { delay: Duration::from_millis(40), bytes_per_second: 12.0 * MIB };
const FAR: Link = Link { delay: Duration::from_millis(90), bytes_per_second: 6.0 * MIB };

const MIB: f64 = (1 << 20) as f64;

/// The link between two regions, by their places in [`REGIONS`].
#[must_use]
pub fn link(from: usize, to: usize) -> Link {
    match from.abs_diff(to) {
        0 => SAME,
        1 => NEXT,
        _ => FAR,
    }
}

/// A worker as it was bought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// Where it stands, in [`REGIONS`].
    pub region: usize,
    /// How fast it is: 1, 2 or 4 times [`UNIT`].
    pub speed: u32,
}

/// Bytes a second that a worker of speed 1 goes over.
pub const UNIT: f64 = 2.0 * MIB;
/// Jobs a worker has in work at a time; they share its speed equally, and what comes more waits in
/// the order it came. An ETL worker is like that: a job is a partition that is loaded, and then
/// transformed by one of a few threads, or on one of a few streams of an accelerator.
pub const SLOTS: usize = 4;

const fn machine(region: usize, speed: u32) -> Machine {
    Machine { region, speed }
}

/// The workers. Those of speed 4 have a GPU.
pub const FLEET: [Machine; 12] = [
    machine(0, 4),
    machine(0, 2),
    machine(0, 2),
    machine(0, 1),
    machine(1, 4),
    machine(1, 4),
    machine(1, 2),
    machine(1, 1),
    machine(2, 4),
    machine(2, 1),
    machine(2, 1),
    machine(2, 1),
];

/// The worker whose GPU degrades, in [`FLEET`].
pub const FALLING: usize = 4;
/// What is left of its speed.
pub const FALLEN: f64 = 0.1;
/// The worker that fails every other job at once, as one does whose disk is full, in [`FLEET`]: it
/// always looks as if it had little to do.
pub const FAILING: usize = 1;
/// The region that is cut off and comes back, in [`REGIONS`].
pub const CUT: usize = 2;

impl Machine {
    /// Bytes a second.
    #[must_use]
    pub fn bytes_per_second(self) -> f64 {
        f64::from(self.speed) * UNIT
    }

    /// How long a job takes alone, from the first byte sent to the answer.
    #[must_use]
    pub fn alone(self, job: &Job) -> f64 {
        let Link { delay, bytes_per_second } = link(job.origin, self.region);
        let transfer = job.bytes as f64 / bytes_per_second;
        2.0 * delay.as_secs_f64() + transfer + job.work() / self.bytes_per_second()
    }
}

/// Bytes a second that all workers go over together.
#[must_use]
pub fn capacity() -> f64 {
    FLEET.iter().map(|machine| machine.bytes_per_second()).sum()
}

/// No schedule of jobs that are all there at once ends earlier, in seconds: the work must be
/// divided, and no job takes less than on the worker that is best for it.
#[must_use]
pub fn bound(jobs: &[Job]) -> f64 {
    let work: f64 = jobs.iter().map(Job::work).sum();
    let best = |job: &Job| FLEET.iter().map(|machine| machine.alone(job)).reduce(f64::min);
    let longest = jobs.iter().filter_map(best).fold(0.0, f64::max);
    longest.max(work / capacity())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_region_has_four_workers_and_links_are_the_same_both_ways() {
        for region in 0..REGIONS.len() {
            assert_eq!(FLEET.iter().filter(|machine| machine.region == region).count(), 4);
            for other in 0..REGIONS.len() {
                assert_eq!(link(region, other), link(other, region));
                assert!(link(region, region).delay <= link(region, other).delay);
            }
        }
        assert!(FLEET.iter().all(|machine| [1, 2, 4].contains(&machine.speed)));
    }

    #[test]
    fn what_goes_wrong_leaves_capacity_for_the_load() {
        assert_eq!(FLEET[FALLING].speed, 4);
        assert_ne!(FLEET[FALLING].region, CUT);
        let cut = FLEET.iter().filter(|machine| machine.region == CUT);
        let lost: f64 = cut.map(|machine| machine.bytes_per_second()).sum::<f64>()
            + FLEET[FALLING].bytes_per_second() * (1.0 - FALLEN);
        let load = super::super::trace::LOAD;
        assert!(load * capacity() < 0.95 * (capacity() - lost));
    }

    #[test]
    fn who_knows_all_comes_near_the_bound_though_jobs_cannot_be_moved() {
        for seed in 1..6 {
            let jobs = super::super::trace::batch(1500, 1 << 20, 2, seed);
            // Each job, as it comes, to the worker that will be done with it first.
            let mut work = [0.0; FLEET.len()];
            let mut last = 0.0_f64;
            for job in &jobs {
                let done =
                    |nth: usize| work[nth] / FLEET[nth].bytes_per_second() + FLEET[nth].alone(job);
                let best = (0..FLEET.len()).min_by(|a, b| done(*a).total_cmp(&done(*b)));
                let best = best.expect("workers");
                last = last.max(done(best));
                work[best] += job.work();
            }
            assert!(last < 1.1 * bound(&jobs), "{last} for {}", bound(&jobs));
        }
    }

    #[test]
    fn the_bound_is_the_divided_work_or_the_longest_job_with_its_way() {
        // Four seconds of the whole fleet's work in jobs that are small.
        let job = |origin, bytes, passes| Job { at: Duration::ZERO, origin, bytes, passes };
        let small = (capacity() / 27_000.0) as u64;
        let many: Vec<Job> = (0..27_000).map(|nth| job(nth % 3, small, 4)).collect();
        assert!((bound(&many) - 4.0).abs() < 0.01, "{}", bound(&many));
        // One job that its own region's best worker needs two seconds for.
        let one = bound(&[job(0, 16 << 20, 1)]);
        assert!((one - (0.002 + 0.25 + 2.0)).abs() < 1e-9, "{one}");
        let twice = bound(&[job(0, 16 << 20, 2)]);
        assert!((twice - (0.002 + 0.25 + 4.0)).abs() < 1e-9, "{twice}");
        // The link counts: where no fast worker is near, a far one may be better, or not.
        let eu = job(2, 1 << 20, 1);
        assert_eq!(bound(&[eu]), FLEET[8].alone(&eu));
        assert!(FLEET[0].alone(&eu) > FLEET[8].alone(&eu));
        assert_eq!(bound(&[]), 0.0);
    }
}
