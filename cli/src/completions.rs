//! `towpath completions`.

use std::process::ExitCode;

use crate::output::print;

/// Which shell.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell to complete for
    shell: clap_complete::Shell,
}

/// Prints the script to standard output.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn run(args: &Args, command: &mut clap::Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "towpath", &mut script);
    print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}
