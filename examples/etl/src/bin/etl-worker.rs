//! An ETL worker: takes batches of rows over HTTP/1.1, HTTP/2 and gRPC, cleans them and loads them as Parquet.
//!
//! The same service that `towpath demo` runs, on its own.

use std::process::ExitCode;

use clap::Parser;
use towpath::etl::{WorkerArgs, run_worker};

/// An ETL worker: takes batches of rows over HTTP/1.1, HTTP/2 and gRPC, cleans them and loads them as Parquet
#[derive(Parser)]
#[command(name = "etl-worker", version)]
struct Cli {
    #[command(flatten)]
    args: WorkerArgs,
}

fn main() -> anyhow::Result<ExitCode> {
    run_worker(Cli::parse().args)
}
