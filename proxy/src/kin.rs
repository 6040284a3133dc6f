//! Who started whom, as the kernel numbers them.

/// A process, its parent and its session as `/proc` numbers them (proc_pid_stat(5)): what leads a session from outside
/// the PID namespace (a shell that entered a container) is 0, for which [`rustix::process::Pid`] has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kin {
    /// Its own number.
    pub process: i32,
    /// That of its parent.
    pub parent: i32,
    /// That of the leader of its session.
    pub session: i32,
}

impl Kin {
    /// Of a process by its number, or of `self`; none where `/proc` does not tell.
    #[must_use]
    pub fn of(process: &str) -> Option<Self> {
        let stat = std::fs::read(format!("/proc/{process}/stat")).ok()?;
        // A command's name may have been cut within a character.
        Self::read(&String::from_utf8_lossy(&stat))
    }

    /// A command's name may have brackets and spaces of its own.
    fn read(stat: &str) -> Option<Self> {
        let (process, _) = stat.split_once(' ')?;
        let (_, others) = stat.rsplit_once(')')?;
        let mut others = others.split_ascii_whitespace().skip(1).map(str::parse);
        let parent = others.next()?.ok()?;
        let session = others.nth(1)?.ok()?;
        Some(Self { process: process.parse().ok()?, parent, session })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kin_are_read_whatever_a_command_is_called() {
        let own = Kin::of("self").unwrap();
        assert_eq!(Some(own), Kin::of(&own.process.to_string()));
        for (stat, expected) in [
            ("7 (sh) S 1 7 0 34816 7 4194304", Some((7, 1, 0))),
            ("7 (a) R 9 (b c) S 0 7 3 0", Some((7, 0, 3))),
            ("7 (sh", None),
            ("7 (sh) S 1 7", None),
            ("", None),
        ] {
            let expected =
                expected.map(|(process, parent, session)| Kin { process, parent, session });
            assert_eq!(Kin::read(stat), expected, "{stat}");
        }
    }
}
