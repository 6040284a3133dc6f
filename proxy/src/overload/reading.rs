//! What is used of memory, descriptors and streams, and how much there may be.

use std::{fs, path::PathBuf, sync::OnceLock};

/// What is used now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Resident memory of this process, in bytes.
    pub resident: u64,
    /// Memory of its control group that cannot simply be given back, in bytes.
    pub group: u64,
    /// What the control group may have, in bytes; 0 = unlimited.
    pub group_most: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Exchanges and opaque connections in flight.
    pub streams: u64,
}

/// What may be used; 0 = unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceilings {
    /// Resident memory, in bytes.
    pub memory: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Exchanges and opaque connections in flight.
    pub streams: u64,
}

/// Memory per stream that the default number of streams is reckoned by, in bytes: its buffers at
/// their usual size, and not at their largest.
const PER_STREAM: u64 = 64 * 1024;

impl Ceilings {
    /// What this machine has room for: four fifths of its memory, or all that the control group
    /// may have; the descriptors this process may open; and a stream for every 64 KiB of the memory.
    pub fn of_this_machine() -> Self {
        let whole = fs::read_to_string("/proc/meminfo").ok();
        let whole = whole.as_deref().and_then(mem_total).unwrap_or(0);
        let group = group_limit().unwrap_or(u64::MAX);
        let memory = (whole / 5 * 4).min(group);
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Self { memory, descriptors: files.unwrap_or(0), streams: memory / PER_STREAM }
    }

    /// With another limit on memory, and the streams that fit into it.
    #[must_use]
    pub fn with_memory(self, memory: u64) -> Self {
        Self { memory, streams: memory / PER_STREAM, ..self }
    }
}

/// Looks at what is used now, streams aside. What cannot be read counts as nothing.
pub fn read() -> Reading {
    let (group, group_most) = group().unwrap_or((0, 0));
    let resident = resident().unwrap_or(0);
    Reading { resident, group, group_most, descriptors: descriptors(), streams: 0 }
}

/// Resident memory of this process, in bytes.
pub(crate) fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Open descriptors. Since Linux 6.2 the size of the folder is their number; before, they are counted.
fn descriptors() -> u64 {
    let size = fs::metadata("/proc/self/fd").map_or(0, |folder| folder.len());
    if size > 0 {
        return size;
    }
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

/// What the control group uses of what it may have (cgroup v2).
fn group() -> Option<(u64, u64)> {
    let folder = group_folder()?;
    let most = group_limit()?;
    let used: u64 = fs::read_to_string(folder.join("memory.current")).ok()?.trim().parse().ok()?;
    let stat = fs::read_to_string(folder.join("memory.stat")).ok()?;
    // Files that nobody reads now are given back before anything is killed.
    Some((used.saturating_sub(stat_value(&stat, "inactive_file").unwrap_or(0)), most))
}

/// What it may have; `None` = unlimited.
fn group_limit() -> Option<u64> {
    fs::read_to_string(group_folder()?.join("memory.max")).ok()?.trim().parse().ok()
}

fn group_folder() -> Option<&'static PathBuf> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let folder = PathBuf::from("/sys/fs/cgroup").join(path);
        folder.join("memory.max").exists().then_some(folder)
    };
    FOLDER.get_or_init(find).as_ref()
}

fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn stat_value(stat: &str, name: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_read() {
        let before = read();
        assert!(before.resident > 100_000 && before.descriptors >= 3, "{before:?}");
        let machine = Ceilings::of_this_machine();
        assert!(machine.memory > before.resident, "{machine:?}");
        assert!(machine.descriptors > 0 && machine.streams == machine.memory / PER_STREAM);
    }

    #[test]
    fn what_the_kernel_writes_is_understood() {
        assert_eq!(mem_total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        let stat = "anon 5\ninactive_file_x 1\ninactive_file 4096\nactive_file 7\n";
        assert_eq!(stat_value(stat, "inactive_file"), Some(4096));
        assert_eq!(stat_value(stat, "file"), None);
    }
}
