//! Signals pass through to the command.
//!
//! What the terminal sends reaches the whole group, the command included, and is not passed on a
//! second time. What was ignored when this program started (`nohup`) stays ignored, for both.

use std::{io, sync::Arc, thread};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH},
    flag,
    iterator::{Handle, SignalsInfo, exfiltrator::WithOrigin},
    low_level::siginfo::Cause,
};
use towpath_proxy::Kin;

/// Signals being passed on, until dropped.
#[derive(Debug)]
pub(super) struct Passing(Handle);

/// Signals that are kept until there is somebody to pass them to.
#[derive(Debug)]
pub(super) struct Kept(SignalsInfo<WithOrigin>);

/// The status of a command that cannot be waited for.
pub(super) const LOST: u8 = 125;

const PASSED_ON: [i32; 7] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH];

impl Passing {
    /// Keeps signals from ending this process, and remembers them.
    pub(super) fn begin() -> io::Result<Kept> {
        // Where it is ignored, nobody could be waited for.
        flag::register(SIGCHLD, Arc::default())?;
        let ignored = ignored();
        let wanted = PASSED_ON.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
        Ok(Kept(SignalsInfo::new(wanted)?))
    }
}

impl Kept {
    /// Passes them on to this process from now on, and those that were kept.
    pub(super) fn to(mut self, pid: Pid) -> io::Result<Passing> {
        let handle = self.0.handle();
        // A process that is gone is not taken for the next one of its number.
        let process = pidfd_open(pid, PidfdFlags::empty()).ok();
        let leads = Kin::of("self").is_some_and(|own| own.session == own.process);
        thread::Builder::new().name("signals".into()).stack_size(128 * 1024).spawn(move || {
            for origin in self.0.forever().filter(|o| !reaches_all(o.signal, o.cause, leads)) {
                let Some(signal) = Signal::from_named_raw(origin.signal) else { continue };
                // One that has ended hears nothing.
                let _ = match &process {
                    Some(process) => pidfd_send_signal(process, signal),
                    None => kill_process(pid, signal),
                };
            }
        })?;
        Ok(Passing(handle))
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Whether a signal reached the command by itself, since the terminal sent it to the whole group. That the terminal is
/// gone is told to the leader of the session alone.
fn reaches_all(signal: i32, cause: Cause, leads: bool) -> bool {
    matches!(cause, Cause::Kernel) && !(leads && signal == SIGHUP)
}

/// The signals that this process was told to ignore, as the kernel's mask.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use signal_hook::low_level::siginfo::Sent;

    use super::*;

    #[test]
    fn only_what_the_terminal_sent_to_all_is_not_passed_on() {
        for (signal, cause, leads, expected) in [
            (SIGINT, Cause::Kernel, false, true),
            (SIGINT, Cause::Kernel, true, true),
            (SIGHUP, Cause::Kernel, false, true),
            (SIGHUP, Cause::Kernel, true, false),
            (SIGINT, Cause::Sent(Sent::User), false, false),
            (SIGHUP, Cause::Unknown, false, false),
        ] {
            assert_eq!(reaches_all(signal, cause, leads), expected, "{signal} {leads}");
        }
    }
}
