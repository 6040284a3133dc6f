//! The program: `towpath control-plane`.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use rustix::process::{Pid, getppid, set_parent_process_death_signal};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{
    config::{Args, Config},
    serve::{Running, start},
    source::Location,
};

/// Runs a control plane until SIGTERM or SIGINT. Prints one line,
/// `ready admin=ADDR xds=ADDR`, when its sockets stand; ` linkerd=ADDR` and ` webhook=ADDR` follow where
/// those are served.
///
/// # Errors
/// When it cannot start, or a server ended by itself.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let parent = getppid();
    let config = Config::try_from(&args)?;
    if args.die_with_parent {
        die_with_parent(parent)?;
    }
    log_to_stderr(&args.log_level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let outcome = runtime.block_on(serve(config));
    // A question to the resolver of the system may hang for long; nobody waits for its answer.
    runtime.shutdown_background();
    outcome
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    // Taken before the ready line: whoever reads it may send a signal at once.
    let mut signals = Signals::listen()?;
    if let Location::Remote(url) = &config.source.location
        && url.holds_password()
    {
        tracing::warn!(
            "--policies holds a password, which other users of this machine can see; a git credential helper keeps it to itself"
        );
    }
    if !config.admin.ip().is_loopback() {
        tracing::warn!(admin = %config.admin, "the admin endpoint has no authentication and is not on loopback");
    }
    let running = tokio::select! {
        running = start(config) => running?,
        () = signals.end() => return Ok(ExitCode::SUCCESS),
    };
    if !running.status().ready {
        tracing::warn!("no valid policies yet: proxies may connect, and wait");
    }
    let told =
        |name, addr: Option<_>| addr.map(|addr| format!(" {name}={addr}")).unwrap_or_default();
    let linkerd = told("linkerd", running.linkerd_addr);
    let webhook = told("webhook", running.webhook_addr);
    let ready = format!("ready admin={} xds={}", running.admin_addr, running.xds_addr);
    // Nobody reading is no reason not to serve.
    let _ = writeln!(std::io::stdout(), "{ready}{linkerd}{webhook}");
    tokio::select! {
        () = signals.obey(&running) => {}
        () = running.wait() => anyhow::bail!("a server ended by itself; see the log above"),
    }
    tracing::info!("ending");
    tokio::select! {
        () = running.shutdown() => {}
        // A second signal: at once.
        () = signals.end() => {}
    }
    Ok(ExitCode::SUCCESS)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be listened for");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Looks for a new version at each SIGHUP, until told to end.
    async fn obey(&mut self, running: &Running) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => running.nudge(),
            }
        }
    }
}

fn log_to_stderr(level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level)
        .with_context(|| format!("--log-level {level:?}: expected error, warn, info, debug, trace, or a filter like towpath_xds=debug"))?;
    let colour = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false);
    // Somebody who embeds this may log in a way of their own.
    let _ = log.try_init();
    Ok(())
}

/// `parent` is that of the start: the kernel tells nothing of one that ended before it was asked.
fn die_with_parent(parent: Option<Pid>) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .context("--die-with-parent")?;
    anyhow::ensure!(getppid() == parent, "--die-with-parent: the parent has ended already");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_that_ended_before_the_kernel_was_asked_is_noticed() {
        // The signal belongs to the thread that started the process: this test's runner stays.
        die_with_parent(getppid()).unwrap();
        let ended = Some(rustix::process::getpid());
        assert!(die_with_parent(ended).unwrap_err().to_string().contains("ended already"));
        set_parent_process_death_signal(None).unwrap();
    }
}
