//! `towpath completions`.

use std::process::ExitCode;

/// Which shell.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell to complete for
    shell: clap_complete::Shell,
}

/// Prints the script to standard output.
pub(crate) fn run(args: &Args, command: &mut clap::Command) -> ExitCode {
    clap_complete::generate(args.shell, command, "towpath", &mut std::io::stdout());
    ExitCode::SUCCESS
}
