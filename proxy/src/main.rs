//! The slim proxy binary: see the library, this only starts it.

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Towpath's data plane: sidecar or gateway proxy
#[derive(Debug, Parser)]
#[command(name = "towpath-proxy", version, about, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    args: towpath_proxy::Args,
}

fn main() -> ExitCode {
    towpath_proxy::run(Cli::parse().args).unwrap_or_else(|error| {
        eprintln!("towpath-proxy: {error:#}");
        ExitCode::FAILURE
    })
}
