//! The program's own log: text on standard error, its level changeable while it runs.

use std::{io::IsTerminal, str::FromStr, sync::OnceLock};

use anyhow::{Context, anyhow};
use tracing_subscriber::{
    Registry, filter::Targets, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Starts logging; a program that logs already keeps its own way.
///
/// # Errors
/// When `level` is none.
pub(crate) fn start(level: &str) -> anyhow::Result<()> {
    let (filter, handle) = reload::Layer::new(parse(level).context("--log-level")?);
    let lines =
        fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        // Set once: `try_init` succeeds only once in a process.
        let _ = FILTER.set(handle);
    }
    Ok(())
}

/// Changes what is logged.
///
/// # Errors
/// When `level` is none, or another part of the program owns the log.
pub(crate) fn set_level(level: &str) -> anyhow::Result<()> {
    let filter = parse(level)?;
    let handle = FILTER.get().ok_or_else(|| anyhow!("this program's log is not the proxy's"))?;
    handle.reload(filter).context("cannot change the log level")
}

fn parse(level: &str) -> anyhow::Result<Targets> {
    Targets::from_str(level)
        .with_context(|| format!("`{level}` is no log level: write error, warn, info, debug, trace, or per module like info,h2=debug"))
}
