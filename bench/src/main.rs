//! The bench's command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use towpath_bench::{balance, bulk, forward, intercept, peers, shim};

/// Measures Towpath's proxy side by side with its peers.
#[derive(Debug, Parser)]
#[command(name = "towpath-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare with Envoy, HAProxy and nginx, turn by turn in one run.
    Peers(peers::PeersArgs),
    /// Show what becomes of bulk traffic: replay, interactive latency, queues, ejection, rebalancing.
    Bulk(bulk::BulkArgs),
    /// Show where jobs go, and how soon they are done, on workers that differ in speed and place.
    Balance(balance::BalanceArgs),
    /// Show what a pair of sidecars costs that connections are led through without knowing.
    Intercept(intercept::InterceptArgs),
    /// Become another program on a given core.
    #[command(hide = true)]
    Exec(shim::ExecArgs),
    /// Run the bare hyper forwarder.
    #[command(hide = true)]
    Forward(forward::ForwardArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Peers(args) => peers::run(&args),
        Command::Bulk(args) => bulk::run(&args),
        Command::Balance(args) => balance::run(&args),
        Command::Intercept(args) => intercept::run(&args),
        Command::Exec(args) => shim::exec(&args).map(|never| match never {}),
        Command::Forward(args) => forward::forward(&args).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(2)
        }
    }
}
