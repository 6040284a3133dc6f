//! Facts about the machine, so that figures can be judged.

use std::fs;

use serde::Serialize;

/// The machine a run took place on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Logical processors this process may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// The distribution.
    pub system: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Load average over a minute when the run began: above 1, others took part in the figures.
    pub load_at_start: f64,
}

impl Machine {
    /// Looks at the machine.
    #[must_use]
    pub fn look() -> Self {
        let uname = rustix::system::uname();
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
            cores: crate::shim::allowed_cores().len(),
            kernel: uname.release().to_string_lossy().into_owned(),
            system: quoted(&read("/etc/os-release"), "PRETTY_NAME=").unwrap_or_default(),
            memory_mib: field(&read("/proc/meminfo"), "MemTotal")
                .and_then(|value| value.split(' ').next()?.parse::<u64>().ok())
                .map_or(0, |kib| kib / 1024),
            load_at_start: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|word| word.parse().ok())
                .unwrap_or(0.0),
        }
    }

    /// The machine in a line.
    #[must_use]
    pub fn describe(&self) -> String {
        let Self { cpu, cores, kernel, system, memory_mib, load_at_start } = self;
        format!(
            "{cpu}, {cores} cores, {memory_mib} MiB, Linux {kernel}, {system}; load average at the \
             start {load_at_start:.2}"
        )
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn quoted(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t\t: 143\nmodel name\t: Some CPU @ 2.0\nMemTotal:  100 kB\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Some CPU @ 2.0"));
        assert_eq!(field(text, "MemTotal").as_deref(), Some("100 kB"));
        assert_eq!(field(text, "name"), None);
        assert_eq!(
            quoted("A=1\nPRETTY_NAME=\"Debian 12\"\n", "PRETTY_NAME=").as_deref(),
            Some("Debian 12")
        );
    }
}
