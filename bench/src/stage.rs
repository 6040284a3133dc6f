//! What every command of the bench stands on: a core for the proxy and one for everything else,
//! the one thread that is load and origin, and the limits of a turn.

use std::fmt::Display;
use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::shim;

/// How long a proxy stays untouched before its memory at rest is read.
pub(crate) const SETTLE: Duration = Duration::from_millis(500);
/// Lets a proxy finish what it does after its last answer, so that its books are closed.
pub(crate) const QUIET: Duration = Duration::from_millis(30);
/// How long one turn may take at most.
const TURN_LIMIT: Duration = Duration::from_secs(180);

/// The cores of the two sides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cores {
    pub(crate) proxy: usize,
    pub(crate) load: usize,
}

/// The cores and the runtime of a run.
pub(crate) struct Stage {
    /// Runs the load and the origin, on the calling thread.
    pub(crate) runtime: Runtime,
    /// `None` if everything is left to the scheduler.
    pub(crate) cores: Option<Cores>,
    interrupt: Signal,
    terminate: Signal,
}

impl Stage {
    /// Binds this thread to the load's core and makes its runtime.
    pub(crate) fn set(no_pin: bool) -> anyhow::Result<Self> {
        let cores = if no_pin { None } else { split_cores(&shim::allowed_cores()) };
        if let Some(cores) = cores {
            shim::pin_this_thread(cores.load)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Caught, so that the proxies are ended and their folders removed.
        let (interrupt, terminate) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        Ok(Self { runtime, cores, interrupt, terminate })
    }

    /// Does the work of one turn. The inner error is the proxy's, the outer one ends the run.
    pub(crate) fn turn<T>(
        &mut self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<anyhow::Result<T>> {
        let (interrupt, terminate) = (&mut self.interrupt, &mut self.terminate);
        self.runtime.block_on(async {
            tokio::select! {
                done = work => Ok(done),
                () = tokio::time::sleep(TURN_LIMIT) => {
                    Ok(Err(anyhow!("the turn took longer than {TURN_LIMIT:?}")))
                }
                _ = interrupt.recv() => Err(anyhow!("interrupted")),
                _ = terminate.recv() => Err(anyhow!("terminated")),
            }
        })
    }
}

/// Tells which round begins. Another entrant is first in each, so that none always follows the same other.
pub(crate) fn begin_round<T>(case: impl Display, round: u16, rounds: u16, entrants: &mut [T]) {
    eprintln!("{case}: round {} of {rounds}", round + 1);
    let count = entrants.len().max(1);
    entrants.rotate_left(usize::from(round > 0) % count);
}

/// Keeps this thread polling its sockets instead of sleeping until the guard is dropped.
///
/// If the load slept whenever a proxy is slower than it, each of that proxy's sends would have to
/// wake another core: an interrupt between processors, on a virtual machine an exit to the
/// hypervisor, that costs more than the request and that no network card would charge it for.
pub(crate) fn stay_awake() -> JoinSet<()> {
    let mut guard = JoinSet::new();
    guard.spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    guard
}

/// Those of `all` that were asked for, in its order; all if none was.
pub(crate) fn chosen<T: Copy + Ord>(asked: &[T], all: &[T]) -> Vec<T> {
    all.iter().filter(|one| asked.is_empty() || asked.contains(one)).copied().collect()
}

/// Prints a line or a table.
pub(crate) fn print(text: &str) {
    // A closed pipe is the reader's wish; the run goes on for the files.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Writes a result, naming the file in the error.
pub(crate) fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A core for the proxy and another for the load and the origin.
fn split_cores(allowed: &[usize]) -> Option<Cores> {
    match *allowed {
        [] | [_] => None,
        [proxy, load, ..] => Some(Cores { proxy, load }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Case;

    #[test]
    fn the_proxy_has_its_core_alone() {
        assert!(split_cores(&[]).is_none() && split_cores(&[3]).is_none());
        for allowed in [&[0, 1][..], &[2, 5, 7], &[0, 1, 2, 3]] {
            let cores = split_cores(allowed).expect("two or more");
            assert_ne!(cores.proxy, cores.load);
        }
    }

    #[test]
    fn a_choice_keeps_the_order_of_all() {
        assert_eq!(chosen(&[], Case::all()), Case::all());
        assert_eq!(chosen(&[Case::Tcp, Case::H1Small], Case::all()), [Case::H1Small, Case::Tcp]);
    }
}
