//! The energy counters of processors (RAPL) in the kernel's powercap tree: those of packages only, since
//! those of cores are a part of them and those of a whole system hold them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the kernel shows them.
pub(super) const ROOT: &str = "/sys/class/powercap";
/// More than any machine has.
const MOST_PACKAGES: usize = 64;
/// No package takes more. What seems to was set back, not at its end.
const MOST_WATTS: f64 = 5000.0;

/// The packages of this machine.
#[derive(Debug)]
pub(super) struct Packages {
    root: PathBuf,
    /// In order of their folders, with what they counted at the last look.
    known: Vec<(PathBuf, u64)>,
    told: bool,
}

/// What one counter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    micros: u64,
    /// It begins anew after this.
    most: u64,
}

impl Packages {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, known: Vec::new(), told: false }
    }

    /// Joules that all packages took since the last look, so many seconds ago; `None` where that cannot be
    /// told. The log has one line when there is nothing to read.
    pub(super) fn joules(&mut self, seconds: f64) -> Option<f64> {
        let counts = match read(&self.root) {
            Ok(counts) => counts,
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    let root = self.root.display().to_string();
                    tracing::info!(%error, root, "this machine's energy cannot be read");
                }
                self.known.clear();
                return None;
            }
        };
        let before = std::mem::take(&mut self.known);
        self.known = counts.iter().map(|(path, count)| (path.clone(), count.micros)).collect();
        let same = before.len() == counts.len()
            && before.iter().zip(&counts).all(|((old, _), (new, _))| old == new);
        #[expect(clippy::cast_precision_loss, reason = "a measurement")]
        let possible = |micros: &u64| *micros as f64 / 1e6 <= MOST_WATTS * seconds;
        let taken = |((_, before), (_, now)): (&(PathBuf, u64), &(PathBuf, Count))| {
            now.since(*before).filter(possible)
        };
        let micros: Option<u64> = match same {
            true => before
                .iter()
                .zip(&counts)
                .map(taken)
                .try_fold(0, |sum: u64, taken| sum.checked_add(taken?)),
            false => None,
        };
        #[expect(clippy::cast_precision_loss, reason = "a measurement")]
        micros.map(|micros| micros as f64 / 1e6)
    }
}

impl Count {
    /// Microjoules since then; `None` when it cannot be told.
    fn since(&self, before: u64) -> Option<u64> {
        match self.micros.checked_sub(before) {
            Some(taken) => Some(taken),
            // It has begun anew.
            None => self.most.checked_sub(before)?.checked_add(self.micros),
        }
    }
}

/// The counters of all packages, sorted by folder. An error also where there are none.
fn read(root: &Path) -> io::Result<Vec<(PathBuf, Count)>> {
    let mut counts = Vec::new();
    for entry in fs::read_dir(root)?.flatten() {
        let name = entry.file_name();
        // `intel-rapl:0` is a package, on AMD's processors too; `intel-rapl:0:0` is a part of one.
        let number = name.to_str().and_then(|name| name.strip_prefix("intel-rapl:"));
        if !number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
            continue;
        }
        let path = entry.path();
        if !fs::read_to_string(path.join("name"))?.trim_start().starts_with("package") {
            continue;
        }
        let number = |file: &str| -> io::Result<u64> {
            let text = fs::read_to_string(path.join(file))?;
            text.trim().parse().map_err(|_| io::Error::other(format!("{file} is no number")))
        };
        let count = Count { micros: number("energy_uj")?, most: number("max_energy_range_uj")? };
        counts.push((path, count));
        if counts.len() == MOST_PACKAGES {
            break;
        }
    }
    if counts.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no counters of processors"));
    }
    counts.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(root: &Path, folder: &str, name: &str, micros: &str) {
        let path = root.join(folder);
        fs::create_dir_all(&path).unwrap();
        for (file, text) in
            [("name", name), ("energy_uj", micros), ("max_energy_range_uj", "262143328850")]
        {
            fs::write(path.join(file), format!("{text}\n")).unwrap();
        }
    }

    #[test]
    fn packages_are_added_up_and_parts_of_them_are_not() {
        let tree = tempfile::tempdir().unwrap();
        let root = tree.path();
        domain(root, "intel-rapl:0", "package-0", "1000000");
        domain(root, "intel-rapl:1", "package-1", "262143000000");
        domain(root, "intel-rapl:0:0", "core", "500000");
        domain(root, "intel-rapl:2", "psys", "9000000");
        fs::create_dir(root.join("intel-rapl")).unwrap();
        let mut packages = Packages::new(root.to_owned());
        assert_eq!(packages.joules(1.0), None, "nothing to compare with");
        domain(root, "intel-rapl:0", "package-0", "3500000");
        domain(root, "intel-rapl:0:0", "core", "900000");
        domain(root, "intel-rapl:1", "package-1", "671150");
        // 2.5 J, and 1 J of one that began anew.
        assert_eq!(packages.joules(1.0), Some(3.5));
        assert_eq!(packages.joules(1.0), Some(0.0));
        // One that is set back has not come to its end, with a quarter of a megajoule.
        domain(root, "intel-rapl:0", "package-0", "100");
        assert_eq!(packages.joules(1.0), None);
        assert_eq!(packages.joules(1.0), Some(0.0));
        domain(root, "intel-rapl:3", "package-2", "1");
        assert_eq!(packages.joules(1.0), None, "another machine");
        assert_eq!(packages.joules(1.0), Some(0.0));
    }

    #[test]
    fn what_is_not_there_or_makes_no_sense_says_nothing() {
        let tree = tempfile::tempdir().unwrap();
        let root = tree.path();
        for missing in [root.to_owned(), root.join("none")] {
            assert_eq!(Packages::new(missing).joules(1.0), None);
        }
        let mut packages = Packages::new(root.to_owned());
        domain(root, "intel-rapl:0", "package-0", "7000000");
        assert_eq!(packages.joules(1.0), None);
        for odd in ["", "-1", "99999999999999999999", "1e6", "\u{0}"] {
            domain(root, "intel-rapl:0", "package-0", odd);
            assert_eq!(packages.joules(1.0), None, "{odd:?}");
        }
        // The counter stands beyond where it begins anew.
        domain(root, "intel-rapl:0", "package-0", &u64::MAX.to_string());
        assert_eq!(packages.joules(1.0), None);
        domain(root, "intel-rapl:0", "package-0", "5");
        assert_eq!(packages.joules(1.0), None);
        assert_eq!(packages.joules(1.0), Some(0.0));
    }
}
