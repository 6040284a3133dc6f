//! What becomes of bulk traffic when something else goes on: five cases, each with figures and
//! bars of its own.
//!
//! Like [`crate::peers`], every contender does the same work in the same run, turn by turn; here a
//! contender is a proxy *with certain settings*, called an entry.

pub mod bars;
pub mod client;
pub mod config;
pub mod eject;
pub mod endpoint;
pub mod interactive;
pub mod makespan;
pub mod rebalance;
mod replay;
pub mod results;
pub mod streams;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use tempfile::TempDir;

use crate::contender::Contender;
use crate::machine::Machine;
use crate::output::Output;
use crate::process::{Proxy, free_port};
use crate::report::{Form, Table};
use crate::shim;
use crate::stage::{Stage, chosen, print};
use crate::tools::{Given, Tools};
use config::{Plan, Pool};
use results::{BulkResults, CaseResults};

/// Show what becomes of bulk traffic.
#[derive(Debug, clap::Args)]
pub struct BulkArgs {
    /// Cases to run [default: all]
    #[arg(long, value_delimiter = ',', value_name = "CASE,…")]
    cases: Vec<Case>,
    /// Proxies to compare: towpath, envoy, haproxy [default: all three]
    #[arg(long, value_delimiter = ',', value_name = "PROXY,…")]
    proxies: Vec<Contender>,
    /// Rounds; every entry has one turn in each [default: each case's own, 2 to 7]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Smaller sizes and fewer rounds, for a first look
    #[arg(long)]
    quick: bool,
    /// Where the proxy keeps request bodies for another try: a real disk
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    spool_dir: PathBuf,
    #[command(flatten)]
    output: Output,
    /// Leave proxies and load to the scheduler instead of giving each its core
    #[arg(long)]
    no_pin: bool,
    #[command(flatten)]
    given: Given,
}

/// A case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Case {
    /// What it costs to keep uploads for another try when nothing fails.
    Replay,
    /// Small requests while bulk saturates the proxy.
    Interactive,
    /// Mixed jobs on workers that do one at a time.
    Makespan,
    /// Until an endpoint that went bad gets no more transfers.
    Eject,
    /// Until new endpoints carry their share.
    Rebalance,
}

impl Case {
    /// All cases in the order they run.
    #[must_use]
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// The case's name on the command line and in the results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Interactive => "interactive",
            Self::Makespan => "makespan",
            Self::Eject => "eject",
            Self::Rebalance => "rebalance",
        }
    }

    /// Rounds unless asked otherwise: as many as its figures need to stand still.
    fn rounds(self, quick: bool) -> u16 {
        match (self, quick) {
            (_, true) => 1,
            (Self::Replay, false) => 7,
            (Self::Interactive | Self::Eject, false) => 3,
            (Self::Makespan, false) => 5,
            (Self::Rebalance, false) => 2,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Runs the cases and prints what they show. `false` if a bar falls short.
///
/// # Errors
/// If a tool is missing or a result cannot be written. A proxy that fails is a result.
pub fn run(args: &BulkArgs) -> anyhow::Result<bool> {
    let cases = chosen(&args.cases, Case::all());
    let partners = [Contender::Towpath, Contender::Envoy, Contender::Haproxy];
    let proxies = chosen(&args.proxies, &partners);
    anyhow::ensure!(!proxies.is_empty(), "the proxies compared here are towpath, envoy, haproxy");
    let tools = Tools::gather(&args.given, &proxies)?;
    let machine = Machine::look();
    if machine.load_at_start > 1.0 {
        eprintln!(
            "the machine is busy (load average {:.1}): only the figures of `replay` stay usable",
            machine.load_at_start
        );
    }
    shim::raise_file_limit();
    let stage = Stage::set(args.no_pin)?;
    let mut results = BulkResults {
        machine,
        pinned: stage.cores.is_some(),
        quick: args.quick,
        versions: proxies.iter().map(|c| (*c, tools.version(*c))).collect(),
        cases: std::collections::BTreeMap::new(),
    };
    let mut bench =
        Bench { stage, tools, proxies, quick: args.quick, spool: args.spool_dir.clone() };
    let start = Instant::now();
    for case in cases {
        let rounds = args.rounds.unwrap_or_else(|| case.rounds(args.quick));
        let found = bench.run_case(case, rounds)?;
        print(&found.table(case).render(Form::Terminal));
        results.cases.insert(case, found);
    }
    let preamble = results.preamble();
    print(&format!("{preamble}; took {:.0} s\n", start.elapsed().as_secs_f64()));
    let tables: Vec<Table> = results.cases.iter().map(|(case, found)| found.table(*case)).collect();
    args.output.finish(&results.to_json(), &preamble, &tables, &bars::judge(&results))
}

/// What all cases of a run share.
struct Bench {
    stage: Stage,
    tools: Tools,
    proxies: Vec<Contender>,
    quick: bool,
    spool: PathBuf,
}

/// A proxy that runs under certain settings.
struct Running {
    proxy: Proxy,
    /// Where the load connects.
    listen: SocketAddr,
    /// Where the proxy tells of itself.
    metrics: SocketAddr,
    /// Holds its configuration, and goes with it.
    folder: TempDir,
}

impl Bench {
    fn run_case(&mut self, case: Case, rounds: u16) -> anyhow::Result<CaseResults> {
        match case {
            Case::Replay => replay::run(self, rounds),
            Case::Interactive => interactive::run(self, rounds),
            Case::Makespan => makespan::run(self, rounds),
            Case::Eject => eject::run(self, rounds),
            Case::Rebalance => rebalance::run(self, rounds),
        }
    }

    fn has(&self, contender: Contender) -> bool {
        self.proxies.contains(&contender)
    }

    /// Starts a proxy in front of `pools`.
    fn start(&self, contender: Contender, pools: Vec<Pool>) -> anyhow::Result<Running> {
        let folder = TempDir::with_prefix(format!("towpath-bench-{contender}-"))?;
        let (listen, metrics) = (free_port()?, free_port()?);
        let plan = Plan { listen, metrics, spool: self.spool.clone(), pools };
        let command = plan.prepare(contender, &self.tools, folder.path())?;
        let core = self.stage.cores.map(|cores| cores.proxy);
        let mut proxy = Proxy::start(&command, core, folder.path())?;
        proxy.wait_until_listening(listen)?;
        Ok(Running { proxy, listen, metrics, folder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_called_the_same_on_the_command_line_and_in_the_results() {
        for case in Case::all() {
            assert_eq!(Case::from_str(case.name(), false), Ok(*case));
        }
    }
}
