//! The program's own log: text on standard error or in a file, its level changeable while it runs.

use std::{
    fs::OpenOptions,
    io::IsTerminal,
    path::Path,
    str::FromStr,
    sync::{Mutex, OnceLock},
};

use anyhow::{Context, anyhow};
use tracing_subscriber::{
    Registry,
    filter::Targets,
    fmt::{self, writer::BoxMakeWriter},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Starts logging, to a file if one is named; a program that logs already keeps its own way.
///
/// # Errors
/// When `level` is none, or the file cannot be written.
pub fn start(level: &str, file: Option<&Path>) -> anyhow::Result<()> {
    let (filter, handle) = reload::Layer::new(parse(level).context("--log-level")?);
    let (writer, colour) = match file {
        None => (BoxMakeWriter::new(std::io::stderr), std::io::stderr().is_terminal()),
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file = file.with_context(|| format!("cannot write the log {}", path.display()))?;
            (BoxMakeWriter::new(Mutex::new(file)), false)
        }
    };
    // A log that cannot be written is no reason to end.
    let lines = fmt::layer().with_writer(writer).with_ansi(colour).log_internal_errors(false);
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
