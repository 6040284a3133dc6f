//! The command: started, passed its signals, and waited for.

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt as _,
    process::{Child, Command},
};

use rustix::process::{Pid, WaitOptions, WaitStatus, getpid, waitpid};

use super::{
    namespace::Namespace,
    signals::{self, Kept, Passing},
    tell,
};

/// A command that runs.
#[derive(Debug)]
pub(super) struct Running {
    pid: Pid,
    passing: Option<Passing>,
}

/// Why a command did not start.
#[derive(Debug)]
pub(super) struct NotStarted {
    pub(super) source: io::Error,
    /// As a shell would say it.
    pub(super) status: u8,
}

/// A shell's statuses for what is not there, and what cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
/// What a shell adds to the number of a signal.
const BY_SIGNAL: i32 = 128;

impl Running {
    /// Has the process that waits in a namespace become the command.
    pub(super) fn inside(namespace: Namespace, kept: Kept) -> Result<Self, NotStarted> {
        let pid =
            pid(namespace.process()).ok_or_else(|| not_started(io::ErrorKind::NotFound.into()))?;
        let passing = pass(kept, pid);
        // One that has ended meanwhile was sent a signal, and has a status that says so.
        namespace.go();
        Ok(Self { pid, passing })
    }

    /// Starts the command with these variables besides those of this process. Everything else
    /// is what it would be without a sidecar: standard streams, group, limits, signals.
    pub(super) fn start(
        command: &[OsString],
        variables: &[(&'static str, OsString)],
        kept: Option<Kept>,
    ) -> Result<Self, NotStarted> {
        let kept = kept.map_or_else(Passing::begin, Ok).map_err(not_started)?;
        let (program, arguments) =
            command.split_first().ok_or_else(|| not_started(io::ErrorKind::InvalidInput.into()))?;
        let child = Command::new(program)
            .arg0(program)
            .args(arguments)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .spawn()
            .map_err(not_started)?;
        let pid = pid(&child).ok_or_else(|| not_started(io::ErrorKind::NotFound.into()))?;
        let passing = pass(kept, pid);
        Ok(Self { pid, passing })
    }

    /// Waits for the command's end; its status, as a shell would say it. The first process of a
    /// container inherits all orphans, and reaps them, too.
    pub(super) fn wait(self) -> u8 {
        let whom = (getpid() != Pid::INIT).then_some(self.pid);
        let status = loop {
            match waitpid(whom, WaitOptions::empty()) {
                Ok(Some((pid, status))) if pid == self.pid => break as_shell(status),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                // It cannot be waited for, and there is nothing to tell of it.
                Err(_) => break signals::LOST,
            }
        };
        drop(self.passing);
        status
    }
}

/// The command runs: that its signals cannot be passed on is said, and changes nothing else.
fn pass(kept: Kept, pid: Pid) -> Option<Passing> {
    let passing = kept.to(pid);
    passing.inspect_err(|error| tell(&format!("towpath: signals stay here: {error}\n"))).ok()
}

/// As a shell would say why.
pub(super) fn not_started(source: io::Error) -> NotStarted {
    let missing = source.kind() == io::ErrorKind::NotFound;
    NotStarted { source, status: if missing { NOT_FOUND } else { NOT_EXECUTABLE } }
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}

fn as_shell(status: WaitStatus) -> u8 {
    let by_signal = status.terminating_signal().map(|signal| BY_SIGNAL + signal);
    let status = status.exit_status().or(by_signal).unwrap_or(signals::LOST.into());
    u8::try_from(status).unwrap_or(u8::MAX)
}
