//! What a proxy costs, by the kernel's own books: CPU time and memory of a process tree.
//!
//! CPU time is the scheduler's run time of every thread (`/proc/PID/task/TID/schedstat`, in
//! nanoseconds) rather than the clock ticks of `/proc/PID/stat`, which are 4 to 10 ms apart. A
//! thread that has ended is missing from the former, so the latter serves as a floor.
//! A reading is exact only while the processes sleep, which is when the bench takes them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use rustix::param::clock_ticks_per_second;

/// Processes and all their descendants.
#[derive(Debug, Clone)]
pub struct ProcessTree {
    roots: Vec<u32>,
}

/// CPU accounts of a process tree at one moment.
#[derive(Debug, Clone, Default)]
pub struct CpuReading {
    threads: HashMap<(u32, u32), ThreadTimes>,
    ticks: HashMap<u32, u64>,
}

/// CPU spent between two readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuSpent {
    /// Time on a CPU, all threads together, in nanoseconds.
    pub run_ns: u64,
    /// Time ready to run but waiting for a CPU, in nanoseconds: how disturbed the measurement was.
    pub wait_ns: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct ThreadTimes {
    run_ns: u64,
    wait_ns: u64,
}

impl ProcessTree {
    /// The tree that starts at process `root`.
    #[must_use]
    pub fn new(root: u32) -> Self {
        Self { roots: vec![root] }
    }

    /// Those of several trees, as one.
    #[must_use]
    pub fn together(trees: &[Self]) -> Self {
        Self { roots: trees.iter().flat_map(|tree| tree.roots.iter().copied()).collect() }
    }

    /// All process ids of the tree, roots first. Processes that are gone are left out.
    #[must_use]
    pub fn members(&self) -> Vec<u32> {
        let mut members = self.roots.clone();
        let mut next = 0;
        while let Some(&pid) = members.get(next) {
            next += 1;
            for tid in numbers_in(Path::new(&format!("/proc/{pid}/task"))) {
                let path = format!("/proc/{pid}/task/{tid}/children");
                let text = fs::read_to_string(path).unwrap_or_default();
                members.extend(text.split_ascii_whitespace().filter_map(|w| w.parse::<u32>().ok()));
            }
        }
        members
    }

    /// Reads the CPU accounts of every thread of the tree.
    #[must_use]
    pub fn cpu(&self) -> CpuReading {
        let mut reading = CpuReading::default();
        for pid in self.members() {
            if let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) {
                reading.ticks.insert(pid, parse_stat_ticks(&stat).unwrap_or(0));
            }
            for tid in numbers_in(Path::new(&format!("/proc/{pid}/task"))) {
                let path = format!("/proc/{pid}/task/{tid}/schedstat");
                let times = fs::read_to_string(path).ok().and_then(|t| parse_schedstat(&t));
                if let Some(times) = times {
                    reading.threads.insert((pid, tid), times);
                }
            }
        }
        reading
    }

    /// Resident memory of the tree now, in bytes. Pages that processes share count once for each.
    #[must_use]
    pub fn rss_bytes(&self) -> u64 {
        self.status_sum("VmRSS:")
    }

    /// Most resident memory since [`Self::reset_peak`], in bytes.
    #[must_use]
    pub fn peak_rss_bytes(&self) -> u64 {
        self.status_sum("VmHWM:")
    }

    /// Makes [`Self::peak_rss_bytes`] start anew from the present value.
    pub fn reset_peak(&self) {
        for pid in self.members() {
            // Best effort: where the kernel forbids it, the peak since the start is reported.
            let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        }
    }

    fn status_sum(&self, key: &str) -> u64 {
        self.members()
            .iter()
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok())
            .filter_map(|status| parse_status_kib(&status, key))
            .map(|kib| kib * 1024)
            .sum()
    }
}

impl CpuReading {
    /// CPU spent from `earlier` to this reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> CpuSpent {
        let mut spent = CpuSpent { run_ns: 0, wait_ns: 0 };
        for (thread, now) in &self.threads {
            let then = earlier.threads.get(thread).copied().unwrap_or_default();
            spent.run_ns += now.run_ns.saturating_sub(then.run_ns);
            spent.wait_ns += now.wait_ns.saturating_sub(then.wait_ns);
        }
        let mut ticks = 0;
        for (pid, now) in &self.ticks {
            ticks += now.saturating_sub(earlier.ticks.get(pid).copied().unwrap_or(0));
        }
        let tick_ns = 1_000_000_000 / clock_ticks_per_second().max(1);
        // One tick of slack for each of user and system time: they are rounded apart.
        let floor_ns = ticks.saturating_sub(2 * self.ticks.len() as u64) * tick_ns;
        spent.run_ns = spent.run_ns.max(floor_ns);
        spent
    }
}

fn numbers_in(folder: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// `run wait timeslices`, the first two in nanoseconds.
fn parse_schedstat(text: &str) -> Option<ThreadTimes> {
    let mut words = text.split_ascii_whitespace();
    let run_ns = words.next()?.parse().ok()?;
    let wait_ns = words.next()?.parse().ok()?;
    Some(ThreadTimes { run_ns, wait_ns })
}

/// utime + stime. The command's name stands in parentheses and may itself hold any character, so
/// the fields are counted from the last closing one.
fn parse_stat_ticks(text: &str) -> Option<u64> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn parse_status_kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_gives_run_and_wait() {
        let times = parse_schedstat("123456789 4242 17\n");
        assert_eq!(times, Some(ThreadTimes { run_ns: 123_456_789, wait_ns: 4242 }));
        assert_eq!(parse_schedstat("x"), None);
    }

    #[test]
    fn stat_is_read_past_a_name_with_parentheses_and_spaces() {
        let stat = "77 (a) b (c)) S 1 77 77 0 -1 4194560 100 0 0 0 250 150 3 4 20 0 1 0 99 1 2";
        assert_eq!(parse_stat_ticks(stat), Some(400));
        assert_eq!(parse_stat_ticks("77 (short) S 1"), None);
    }

    #[test]
    fn status_finds_its_key_and_nothing_like_it() {
        let status = "Name:\tVmRSS\nVmHWM:\t    9000 kB\nVmRSS:\t    8000 kB\n";
        assert_eq!(parse_status_kib(status, "VmRSS:"), Some(8000));
        assert_eq!(parse_status_kib(status, "VmHWM:"), Some(9000));
        assert_eq!(parse_status_kib(status, "VmSwap:"), None);
    }

    #[test]
    fn spending_counts_new_threads_and_falls_back_to_ticks_for_ended_ones() {
        let times = |run_ns| ThreadTimes { run_ns, wait_ns: 1 };
        let earlier = CpuReading {
            threads: HashMap::from([((1, 1), times(100)), ((1, 2), times(900))]),
            ticks: HashMap::from([(1, 10)]),
        };
        let mut later = CpuReading {
            threads: HashMap::from([((1, 1), times(150)), ((1, 3), times(25))]),
            ticks: HashMap::from([(1, 11)]),
        };
        assert_eq!(later.since(&earlier), CpuSpent { run_ns: 75, wait_ns: 1 });
        // Thread 2 ended after ten ticks of work that no schedstat shows any more.
        later.ticks.insert(1, 22);
        let tick_ns = 1_000_000_000 / clock_ticks_per_second();
        assert_eq!(later.since(&earlier).run_ns, 10 * tick_ns);
    }

    #[test]
    fn own_work_shows_up_in_own_accounts() {
        let tree = ProcessTree::new(std::process::id());
        let before = tree.cpu();
        let start = std::time::Instant::now();
        let mut x = 1_u64;
        while start.elapsed().as_millis() < 60 {
            x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        assert!(tree.cpu().since(&before).run_ns > 1_000_000);
        assert!(tree.rss_bytes() > 100_000);
        assert!(tree.peak_rss_bytes() >= tree.rss_bytes() / 2);
        assert_eq!(tree.members().first(), Some(&std::process::id()));
    }
}
