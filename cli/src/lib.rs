//! The `towpath` program: one command a person meets, and the parts of the
//! demonstration (an ETL worker and a loader) that can be run on their own.
//!
//! Knows every other crate's front door and nothing of their insides.

mod admin;
mod check;
mod completions;
pub mod demo;
mod diff;
pub mod etl;
mod explain;
mod inject;
mod intercept;
mod output;
mod place;
mod ready;
mod run;
mod schema;
mod status;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Towpath: a service mesh for data pipelines that counts bytes and seconds.
#[derive(Debug, Parser)]
#[command(name = "towpath", version, about, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Start here:  towpath demo            a whole mesh on this machine, with real data, in a minute
             towpath check DIR       are these policy files right?
             towpath proxy --policies DIR --admin 127.0.0.1:9901"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole mesh on this machine: real data, faults, and a proof at the end
    Demo(demo::Args),
    /// Check policy files, and point at every mistake
    Check(check::Args),
    /// Show what changes between two commits or folders of policies
    Diff(diff::Args),
    /// Write the JSON Schemas of the policy files, for editors, or definitions for clusters
    Schema(schema::Args),
    /// Run a sidecar or gateway proxy
    Proxy(towpath_proxy::Args),
    /// Run any command with a sidecar for as long as it lives
    Run(Box<run::Args>),
    /// The process in the network namespace of a command
    #[command(hide = true)]
    RunInside(run::InsideArgs),
    /// Run the control plane: policy files in Git become xDS
    ControlPlane(towpath_control_plane::Args),
    /// Ask a control plane which proxies hold which version
    Status(status::Args),
    /// Say whether a proxy or a control plane is ready (for probes)
    Ready(ready::Args),
    /// Ask a proxy when each endpoint of a service would complete a request, and why
    Explain(explain::Args),
    /// Say where places are, what is at a point, and how long the way takes
    Place(place::Args),
    /// Put a sidecar beside workloads: Kubernetes manifests, Compose files, systemd units
    Inject(inject::Args),
    /// Send connections of this network namespace to its proxy, without the programs' knowledge
    Intercept(intercept::Args),
    /// Print a shell completion script
    Completions(completions::Args),
    /// An ETL worker of the demonstration
    #[command(hide = true)]
    EtlWorker(etl::WorkerArgs),
    /// A client of the demonstration that pushes data
    #[command(hide = true)]
    EtlLoad(etl::LoadArgs),
}

/// Parses the command line, runs the command, and says in a line what went wrong.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(args) => demo::run(args),
        Command::Check(args) => check::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Proxy(args) => towpath_proxy::run(args),
        Command::Run(args) => Ok(run::run(*args)),
        Command::RunInside(args) => Ok(run::inside(&args)),
        Command::ControlPlane(args) => towpath_control_plane::run(args),
        Command::Status(args) => status::run(args),
        Command::Ready(args) => ready::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Place(args) => place::run(args),
        Command::Inject(args) => inject::run(&args),
        Command::Intercept(args) => intercept::run(args),
        Command::Completions(args) => completions::run(&args, &mut Cli::command()),
        Command::EtlWorker(args) => etl::run_worker(args),
        Command::EtlLoad(args) => etl::run_load(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("towpath: {error:#}");
        ExitCode::FAILURE
    })
}
