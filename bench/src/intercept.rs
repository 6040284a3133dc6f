//! What a pair of sidecars costs that a connection is led through without knowing: one beside the
//! client, one beside the server, each in the network namespace of what it stands beside.
//!
//! The ways are a direct connection, a pair of ours, one with a tunnel between them, and a pair of
//! Envoys. All of them lead to the same servers; the kernel's rules are the same for all pairs.

mod envoy;
mod net;
mod postgres;
mod towpath;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::case::{SMALL_BODY, Sizes};
use crate::check::Verdict;
use crate::contender::Contender;
use crate::load::Outcome;
use crate::machine::Machine;
use crate::meter::ProcessTree;
use crate::origin::{self, Origin};
use crate::output::Output;
use crate::peers;
use crate::process::Proxy;
use crate::report::{self, Column, Form, Table};
use crate::results::{
    BUSY, CPU_PER_GB, CPU_PER_REQUEST, Figure, Missing, Performance, RPS, RSS, Turn, WAITED,
};
use crate::shim;
use crate::stage::{QUIET, Stage, begin_round, chosen, print};
use crate::tools::{Given, Tools};
use net::{GROUP, INBOUND, OUTBOUND, Pair, SERVER};
use postgres::Postgres;
use towpath::Speaks;

/// Show what a pair of sidecars costs that connections are led through without knowing.
#[derive(Debug, clap::Args)]
pub struct InterceptArgs {
    /// Cases to run [default: all]
    #[arg(long, value_delimiter = ',', value_name = "CASE,…")]
    cases: Vec<Case>,
    /// Ways to compare [default: all]
    #[arg(long, value_delimiter = ',', value_name = "WAY,…")]
    ways: Vec<Way>,
    /// Rounds; every way has one turn in each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Smaller counts and sizes, for a first look
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    output: Output,
    /// Leave sidecars, load and servers to the scheduler instead of giving the sidecars a core
    #[arg(long)]
    no_pin: bool,
    #[command(flatten)]
    given: Given,
}

/// What goes through the sidecars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Case {
    /// Small HTTP/1.1 requests.
    H1Small,
    /// 1 GiB of opaque TCP: half up, half down.
    #[value(name = "tcp-1g")]
    Tcp,
    /// Single rows out of PostgreSQL.
    Pgbench,
}

/// How connections get there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Way {
    /// Without sidecars.
    Direct,
    /// Through two of ours.
    Towpath,
    /// Through two of ours, with one connection between them for all. Opaque bytes only.
    Tunnel,
    /// Through two Envoys.
    Envoy,
}

/// CPU per request through ours, at most this much of Envoy's.
const REQUEST_AGAINST_ENVOY: f64 = 0.5;
/// Transactions a second through our tunnel, at least this much of Envoy's.
const TRANSACTIONS_AGAINST_ENVOY: f64 = 1.3;

type Found = BTreeMap<Case, BTreeMap<Way, Performance>>;

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::H1Small => "h1-small",
            Self::Tcp => "tcp-1g",
            Self::Pgbench => "pgbench",
        }
    }

    /// Whether it is taken this way: requests share connections anyway.
    fn goes(self, way: Way) -> bool {
        self != Self::H1Small || way != Way::Tunnel
    }

    fn of_peers(self) -> Option<crate::case::Case> {
        match self {
            Self::H1Small => Some(crate::case::Case::H1Small),
            Self::Tcp => Some(crate::case::Case::Tcp),
            Self::Pgbench => None,
        }
    }

    fn columns(self) -> &'static [Column] {
        match self.of_peers() {
            Some(like) => report::columns(like.kind()),
            None => &[
                ("CPU µs/transaction", CPU_PER_REQUEST, 2),
                ("transactions/s", RPS, 0),
                ("peak MB", RSS, 1),
                ("busy", BUSY, 2),
                ("waited", WAITED, 2),
            ],
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Towpath => "towpath pair",
            Self::Tunnel => "towpath tunnel",
            Self::Envoy => "envoy pair",
        }
    }

    fn contender(self) -> Option<Contender> {
        match self {
            Self::Direct => None,
            Self::Towpath | Self::Tunnel => Some(Contender::Towpath),
            Self::Envoy => Some(Contender::Envoy),
        }
    }
}

/// Runs the comparison and prints it. `false` if a bar falls short.
///
/// # Errors
/// If a tool or a privilege is missing, or a result cannot be written. A sidecar that fails is a
/// result.
pub fn run(args: &InterceptArgs) -> anyhow::Result<bool> {
    let cases = chosen(&args.cases, Case::value_variants());
    let ways = chosen(&args.ways, Way::value_variants());
    let contenders: Vec<Contender> = ways.iter().filter_map(|way| way.contender()).collect();
    let tools = Tools::gather(&args.given, &contenders)?;
    let machine = Machine::look();
    if machine.load_at_start > 1.0 {
        eprintln!("the machine is busy (load average {:.1})", machine.load_at_start);
    }
    shim::raise_file_limit();
    let versions = contenders.iter().map(|c| (*c, tools.version(*c))).collect();
    let mut bench = Bench::new(args, tools)?;
    let start = Instant::now();
    let mut found = Found::new();
    for case in cases {
        let performances = bench.run_case(case, &ways)?;
        print(&table(case, &performances).render(Form::Terminal));
        found.insert(case, performances);
    }
    let what = format!("{} rounds, small answers of {SMALL_BODY} bytes", args.rounds);
    let pinned = bench.stage.cores.is_some();
    let preamble = report::setting(&machine, &[&what], pinned, args.quick, &versions);
    print(&format!("{preamble}; took {:.0} s\n", start.elapsed().as_secs_f64()));
    let tables: Vec<Table> = found.iter().map(|(case, found)| table(*case, found)).collect();
    let json = json!({
        "bench": "intercept",
        "machine": machine,
        "settings": {"pinned": pinned, "quick": args.quick, "rounds": args.rounds},
        "cases": cases_json(&found),
    });
    args.output.finish(&json, &preamble, &tables, &judge(&found))
}

/// What all cases of a run share.
struct Bench {
    // Before the namespaces that it runs in, so that it ends first.
    postgres: Option<Postgres>,
    stage: Stage,
    tools: Tools,
    origin: Origin,
    pair: Pair,
    rounds: u16,
    sizes: Sizes,
}

/// A way that is open.
struct Entrant {
    way: Way,
    sidecars: Vec<Proxy>,
    // Held for their configuration, which goes with them.
    _folders: Vec<TempDir>,
}

impl Bench {
    fn new(args: &InterceptArgs, tools: Tools) -> anyhow::Result<Self> {
        let stage = Stage::set(args.no_pin)?;
        let pair = Pair::make()?;
        pair.server.enter()?;
        let origin = stage.runtime.block_on(origin::start_at(SERVER, SMALL_BODY))?;
        pair.client.enter()?;
        let sizes = Sizes { quick: args.quick, small_body: SMALL_BODY };
        Ok(Self { postgres: None, stage, tools, origin, pair, rounds: args.rounds, sizes })
    }

    fn run_case(&mut self, case: Case, ways: &[Way]) -> anyhow::Result<BTreeMap<Way, Performance>> {
        if case == Case::Pgbench && self.postgres.is_none() {
            self.pair.intercept(false)?;
            self.pair.server.enter()?;
            let postgres = Postgres::start(SERVER)?;
            self.pair.client.enter()?;
            postgres.fill(SERVER)?;
            self.postgres = Some(postgres);
        }
        let mut ways: Vec<Way> = ways.iter().copied().filter(|way| case.goes(*way)).collect();
        let mut performances: BTreeMap<Way, Performance> =
            ways.iter().map(|way| (*way, Performance::default())).collect();
        for round in 0..self.rounds {
            begin_round(case, round, self.rounds, &mut ways);
            for way in &ways {
                let Some(performance) = performances.get_mut(way) else { continue };
                // One failure is enough to void the case; what follows could hang till its limit.
                if performance.missing.is_some() {
                    performance.turns.push(None);
                    continue;
                }
                // Both sidecars listen at the same ports whoever they are, so each pair lives for a turn.
                let turn = match self.open(*way, case) {
                    Ok(entrant) => self.turn(case, &entrant)?,
                    Err(e) => Err(e),
                };
                if let Err(e) = &turn {
                    eprintln!("{case}: {} failed: {e:#}", way.name());
                    performance.missing = Some(Missing::Failed(format!("{e:#}")));
                }
                performance.turns.push(turn.ok());
            }
        }
        Ok(performances)
    }

    /// Starts the sidecars of a way, and has the kernel lead connections to them.
    fn open(&self, way: Way, case: Case) -> anyhow::Result<Entrant> {
        let mut entrant = Entrant { way, sidecars: Vec::new(), _folders: Vec::new() };
        self.pair.intercept(false)?;
        let Some(contender) = way.contender() else { return Ok(entrant) };
        for (namespace, port) in [(&self.pair.server, INBOUND), (&self.pair.client, OUTBOUND)] {
            namespace.enter()?;
            let folder = TempDir::with_prefix(format!("towpath-bench-{contender}-"))?;
            let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, 9901));
            let http = case == Case::H1Small;
            let command = match contender {
                Contender::Envoy => envoy::prepare(http, port, metrics, &self.tools, folder.path()),
                _ => {
                    let server = self.server(case);
                    let speaks = match (http, way) {
                        (true, _) => Speaks::Http,
                        (_, Way::Tunnel) => Speaks::Tunnelled,
                        _ => Speaks::Opaque,
                    };
                    towpath::prepare(speaks, port, server, metrics, &self.tools, folder.path())
                }
            }?;
            let core = self.stage.cores.map(|cores| cores.proxy);
            let mut proxy = Proxy::start_in_group(Some(GROUP), &command, core, folder.path())?;
            proxy.wait_until_listening(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
            entrant.sidecars.push(proxy);
            entrant._folders.push(folder);
        }
        self.pair.intercept(true)?;
        Ok(entrant)
    }

    fn server(&self, case: Case) -> SocketAddr {
        match case {
            Case::H1Small => self.origin.http1,
            Case::Tcp => self.origin.tcp,
            Case::Pgbench => SocketAddr::from((SERVER, postgres::PORT)),
        }
    }

    /// One turn of one way. The inner error is the sidecars', the outer one ends the run.
    fn turn(&mut self, case: Case, entrant: &Entrant) -> anyhow::Result<anyhow::Result<Turn>> {
        let trees: Vec<ProcessTree> = entrant.sidecars.iter().map(Proxy::tree).collect();
        let tree = ProcessTree::together(&trees);
        let turn = match case.of_peers() {
            Some(like) => {
                let target = self.server(case);
                let (work, counts) = (like.work(self.sizes), like.counts(self.sizes));
                self.stage.turn(peers::measure(&self.origin, &tree, target, work, counts))?
            }
            None => self.read_rows(&tree),
        };
        Ok(turn.with_context(|| {
            let words: Vec<String> = entrant.sidecars.iter().map(Proxy::last_words).collect();
            format!("{}, in its turn ({})", entrant.way.name(), words.join(" | "))
        }))
    }

    fn read_rows(&self, tree: &ProcessTree) -> anyhow::Result<Turn> {
        let postgres = self.postgres.as_ref().context("PostgreSQL does not run")?;
        let seconds = if self.sizes.quick { 2 } else { 5 };
        postgres.read(SERVER, 1)?;
        std::thread::sleep(QUIET);
        tree.reset_peak();
        let before = tree.cpu();
        let found = postgres.read(SERVER, seconds)?;
        std::thread::sleep(QUIET);
        let spent = tree.cpu().since(&before);
        // With as many clients as there are, the rate says what the latency would.
        let latency = crate::load::histogram();
        let outcome = Outcome { count: found.transactions, bytes: 0, latency };
        let wall = found.transactions as f64 / found.per_second;
        let turn = Turn::new(&outcome, wall, spent, tree.peak_rss_bytes());
        Ok(Turn { p50_ms: None, p99_ms: None, ..turn })
    }
}

fn table(case: Case, performances: &BTreeMap<Way, Performance>) -> Table {
    let mut header = report::header("way", case.columns().iter().map(|(name, ..)| *name));
    header.push("towpath ÷ it".to_owned());
    let ours = performances.get(&Way::Towpath);
    let mut notes = Vec::new();
    let mut rows = Vec::new();
    for (way, performance) in performances {
        let figures =
            case.columns().iter().map(|(_, f, digits)| (performance.summary(*f), *digits));
        let mut row = report::cells(way.name(), figures, "–");
        let figure = if case == Case::Tcp { CPU_PER_GB } else { CPU_PER_REQUEST };
        let ratio =
            ours.filter(|_| *way == Way::Envoy).and_then(|o| o.ratio_to(performance, figure));
        row.push(ratio.map_or_else(String::new, |ratio| format!("{:.2}", ratio.median)));
        rows.push(row);
        if let Some(Missing::Failed(why)) = &performance.missing {
            notes.push(format!("{} failed: {why}", way.name()));
        }
    }
    Table::new(&format!("intercept: {case}"), header, rows, notes)
}

fn cases_json(found: &Found) -> Value {
    let cases = found.iter().map(|(case, ways)| {
        let ways = ways.iter().map(|(way, found)| (way.name().to_owned(), found.to_json()));
        (case.to_string(), Value::Object(ways.collect()))
    });
    Value::Object(cases.collect::<Map<_, _>>())
}

/// Judges the bars of the cases that ran.
fn judge(found: &Found) -> Vec<Verdict> {
    let ratio = |case: Case, way: Way, figure: Figure| {
        let ways = found.get(&case)?;
        let ratio = ways.get(&way)?.ratio_to(ways.get(&Way::Envoy)?, figure)?;
        Some(ratio.median)
    };
    let verdict = |bar: String, value: Option<f64>, met: fn(f64) -> bool| Verdict {
        bar,
        met: value.is_some_and(met),
        value: value.ok_or_else(|| "no round has both pairs' figures".to_owned()),
    };
    let mut verdicts = Vec::new();
    for (case, figure, what) in [
        (Case::H1Small, CPU_PER_REQUEST, "request"),
        (Case::Tcp, CPU_PER_GB, "GB"),
        (Case::Pgbench, CPU_PER_REQUEST, "transaction"),
    ] {
        if found.contains_key(&case) {
            let bar =
                format!("{case}: CPU per {what} at most {REQUEST_AGAINST_ENVOY} × an Envoy pair's");
            let value = ratio(case, Way::Towpath, figure);
            verdicts.push(verdict(bar, value, |r| r <= REQUEST_AGAINST_ENVOY));
        }
    }
    if found.contains_key(&Case::Pgbench) {
        let bar = format!(
            "pgbench: transactions a second through a tunnel at least {TRANSACTIONS_AGAINST_ENVOY} × what an Envoy pair leaves"
        );
        let value = ratio(Case::Pgbench, Way::Tunnel, RPS);
        verdicts.push(verdict(bar, value, |r| r >= TRANSACTIONS_AGAINST_ENVOY));
    }
    verdicts
}
