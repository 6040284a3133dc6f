//! How loaded this machine is, for the load reports of sidecars.
//!
//! The control thread looks once a second, once somebody has asked; a report reads atomics. It is
//! the machine and not our own control group, which beside an application in a container of its own
//! holds nothing but the proxy.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{energy::Energy, gpu::Gpus};

/// The machine, as it was last looked at.
#[derive(Debug, Default)]
pub(crate) struct NodeLoad {
    asked: AtomicBool,
    cpu: Share,
    memory: Share,
    pub(crate) gpus: Arc<Gpus>,
    pub(crate) energy: Arc<Energy>,
}

/// A share of a whole; 0 = unknown, as in a report.
#[derive(Debug, Default)]
struct Share(AtomicU64);

/// Time that CPUs have spent since the machine was started, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    all: u64,
}

const LOOK: Duration = Duration::from_secs(1);

impl NodeLoad {
    /// The shares of CPU and memory in use. From the first call on they are looked at.
    pub(crate) fn look(&self) -> (f64, f64) {
        if !self.asked.load(Relaxed) {
            self.asked.store(true, Relaxed);
        }
        (self.cpu.get(), self.memory.get())
    }
}

impl Share {
    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }

    fn set(&self, share: f64) {
        self.0.store(share.to_bits(), Relaxed);
    }
}

/// Looks for as long as it is polled.
pub(crate) async fn watch(node: Arc<NodeLoad>) {
    let mut before = None;
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if !node.asked.load(Relaxed) {
            continue;
        }
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let ticks = ticks(&text("/proc/stat"));
        node.cpu.set(before.zip(ticks).and_then(busy_between).unwrap_or(0.0));
        before = ticks;
        node.memory.set(memory(&text("/proc/meminfo")).unwrap_or(0.0));
    }
}

/// The first line: user, nice, system, idle, iowait, irq, softirq, steal; guests are among the first.
fn ticks(stat: &str) -> Option<Ticks> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<u64> =
        line.split_ascii_whitespace().take(8).map_while(|time| time.parse().ok()).collect();
    let idle = times.get(3)?.saturating_add(*times.get(4)?);
    let all = times.iter().fold(0, |all: u64, time| all.saturating_add(*time));
    Some(Ticks { busy: all.saturating_sub(idle), all })
}

#[expect(clippy::cast_precision_loss, reason = "a share")]
fn busy_between((before, now): (Ticks, Ticks)) -> Option<f64> {
    let all = now.all.checked_sub(before.all).filter(|all| *all > 0)?;
    // The time of waiting for a disk may go back.
    let busy = now.busy.saturating_sub(before.busy).min(all);
    Some(busy as f64 / all as f64)
}

#[expect(clippy::cast_precision_loss, reason = "a share")]
fn memory(meminfo: &str) -> Option<f64> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let (total, available) = (kib("MemTotal")?, kib("MemAvailable")?);
    (total > 0).then(|| total.saturating_sub(available) as f64 / total as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_understood() {
        let stat = "cpu  100 10 50 800 40 5 5 0 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        let before = ticks(stat).unwrap();
        assert_eq!(before, Ticks { busy: 170, all: 1010 });
        let now = ticks("cpu  170 10 55 820 45 5 5 0 7 0\n").unwrap();
        assert_eq!(busy_between((before, now)), Some(0.75));
        assert_eq!(busy_between((now, now)), None, "no time has passed");
        assert_eq!(busy_between((now, before)), None, "another machine");
        let meminfo = "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    250 kB\n";
        assert_eq!(memory(meminfo), Some(0.75));
        for nonsense in ["", "cpu", "cpu  1 2 3", "MemTotal: 0 kB\nMemAvailable: 0 kB", "cpu0 1"] {
            assert_eq!((ticks(nonsense), memory(nonsense)), (None, None), "{nonsense:?}");
        }
        assert!(ticks(&fs::read_to_string("/proc/stat").unwrap()).is_some());
        assert!(memory(&fs::read_to_string("/proc/meminfo").unwrap()).is_some_and(|m| m > 0.0));
    }
}
