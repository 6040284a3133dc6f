//! `towpath ready`: whether a proxy or a control plane is ready, for probes where there is no shell
//! and the admin endpoint stays on loopback.

use std::{net::SocketAddr, process::ExitCode};

use crate::{admin, output};

/// Options.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 it is, 1 it is not, or cannot be asked.")]
pub(crate) struct Args {
    /// Admin address of the proxy or control plane
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901")]
    admin: SocketAddr,
}

/// Runs the command.
///
/// # Errors
/// When it is not ready, or cannot be asked.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(admin::ask(args.admin, "/ready", "proxy"))?;
    output::print(&String::from_utf8_lossy(&answer))?;
    Ok(ExitCode::SUCCESS)
}
