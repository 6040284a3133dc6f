//! Pushes files of rows, batch by batch, to an ETL worker or to a gateway before workers.
//!
//! The same service that `towpath demo` runs, on its own.

use std::process::ExitCode;

use clap::Parser;
use towpath::etl::{LoadArgs, run_load};

/// Pushes files of rows, batch by batch, to an ETL worker or to a gateway before workers
#[derive(Parser)]
#[command(name = "etl-load", version)]
struct Cli {
    #[command(flatten)]
    args: LoadArgs,
}

fn main() -> anyhow::Result<ExitCode> {
    run_load(Cli::parse().args)
}
