//! Runs the comparison: every case, round by round, turn by turn.
//!
//! The proxy has one core, the load and the origin share one thread on another.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail};
use tempfile::TempDir;

use crate::case::{Case, Counts, SMALL_BODY, Sizes, Work};
use crate::check;
use crate::contender::{Contender, Ports};
use crate::load::{Outcome, Session};
use crate::machine::Machine;
use crate::meter::ProcessTree;
use crate::origin::{self, Origin};
use crate::output::Output;
use crate::process::{Proxy, free_port};
use crate::report::{self, Form};
use crate::results::{Missing, Performance, Results, Turn};
use crate::shim;
use crate::stage::{QUIET, SETTLE, Stage, begin_round, chosen, print, stay_awake};
use crate::tools::{Given, Tools};

/// Compare with Envoy, `HAProxy` and nginx.
#[derive(Debug, clap::Args)]
pub struct PeersArgs {
    /// Cases to run [default: all]
    #[arg(long, value_delimiter = ',', value_name = "CASE,…")]
    cases: Vec<Case>,
    /// Proxies to compare [default: all]
    #[arg(long, value_delimiter = ',', value_name = "PROXY,…")]
    proxies: Vec<Contender>,
    /// Rounds; every proxy has one turn in each
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Smaller counts and sizes, for a first look
    #[arg(long)]
    quick: bool,
    /// Bytes of the body of a small answer, up to 8192
    #[arg(long, default_value_t = SMALL_BODY, value_name = "BYTES",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=8192))]
    small_body: usize,
    #[command(flatten)]
    output: Output,
    /// Leave proxies and load to the scheduler instead of giving each its core
    #[arg(long)]
    no_pin: bool,
    #[command(flatten)]
    given: Given,
}

impl PeersArgs {
    fn sizes(&self) -> Sizes {
        Sizes { quick: self.quick, small_body: self.small_body }
    }
}

/// Runs the comparison and prints it. `false` if a bar falls short.
///
/// # Errors
/// If a tool is missing or a result cannot be written. A proxy that fails is a result.
pub fn run(args: &PeersArgs) -> anyhow::Result<bool> {
    let cases = chosen(&args.cases, Case::all());
    let contenders = chosen(&args.proxies, Contender::all());
    let tools = Tools::gather(&args.given, &contenders)?;
    let machine = Machine::look();
    if machine.load_at_start > 1.0 {
        eprintln!(
            "the machine is busy (load average {:.1}): CPU per request stays usable, latency and \
             requests/s do not",
            machine.load_at_start
        );
    }
    shim::raise_file_limit();
    let mut bench = Bench::new(args, tools)?;
    let mut results = Results {
        machine,
        pinned: bench.stage.cores.is_some(),
        sizes: args.sizes(),
        rounds: usize::from(args.rounds),
        versions: contenders.iter().map(|c| (*c, bench.tools.version(*c))).collect(),
        rest_mb: BTreeMap::new(),
        cases: BTreeMap::new(),
    };
    let start = Instant::now();
    for case in cases {
        bench.run_case(case, &contenders, &mut results)?;
        print(&report::case_table(&results, case).render(Form::Terminal));
    }
    print(&report::rest_table(&results).render(Form::Terminal));
    let preamble = report::preamble(&results);
    print(&format!("{preamble}; took {:.0} s\n", start.elapsed().as_secs_f64()));
    let tables = report::tables(&results);
    args.output.finish(&results.to_json(), &preamble, &tables, &check::judge(&results))
}

/// What all cases of a run share.
struct Bench {
    stage: Stage,
    tools: Tools,
    origin: Origin,
    rounds: u16,
    sizes: Sizes,
}

/// A proxy set up for a case.
struct Entrant {
    contender: Contender,
    proxy: Proxy,
    ports: Ports,
    // Held for its folder, which goes with it.
    _folder: TempDir,
}

impl Bench {
    fn new(args: &PeersArgs, tools: Tools) -> anyhow::Result<Self> {
        let stage = Stage::set(args.no_pin)?;
        let origin = stage.runtime.block_on(origin::start(args.small_body))?;
        Ok(Self { stage, tools, origin, rounds: args.rounds, sizes: args.sizes() })
    }

    fn run_case(
        &mut self,
        case: Case,
        contenders: &[Contender],
        results: &mut Results,
    ) -> anyhow::Result<()> {
        let mut entrants = Vec::new();
        let mut performances = BTreeMap::new();
        for contender in contenders {
            let mut performance =
                Performance { remark: contender.remark(case), ..Performance::default() };
            match contender.cannot(case, &self.tools) {
                Some(reason) => performance.missing = Some(Missing::NotPossible(reason)),
                None => match self.enter(*contender, case) {
                    Ok(entrant) => entrants.push(entrant),
                    Err(e) => performance.missing = Some(failure(case, *contender, &e)),
                },
            }
            performances.insert(*contender, performance);
        }
        thread::sleep(SETTLE);
        for entrant in &entrants {
            let mb = entrant.proxy.tree().rss_bytes() as f64 / 1e6;
            results.rest_mb.entry(entrant.contender).or_default().push(mb);
        }
        for round in 0..self.rounds {
            begin_round(case, round, self.rounds, &mut entrants);
            for entrant in &entrants {
                let Some(performance) = performances.get_mut(&entrant.contender) else { continue };
                // One failure is enough to void the case; what follows could hang till its limit.
                let failed = performance.missing.is_some();
                let turn = if failed { None } else { Some(self.turn(case, entrant)?) };
                performance.turns.push(match turn {
                    Some(Ok(turn)) => Some(turn),
                    Some(Err(e)) => {
                        performance.missing = Some(failure(case, entrant.contender, &e));
                        None
                    }
                    None => None,
                });
            }
        }
        results.cases.insert(case, performances);
        Ok(())
    }

    /// Starts a proxy for a case.
    fn enter(&self, contender: Contender, case: Case) -> anyhow::Result<Entrant> {
        let folder = TempDir::with_prefix(format!("towpath-bench-{contender}-"))?;
        let setup = case.setup();
        let ports = Ports {
            listen: free_port()?,
            metrics: free_port()?,
            origin: contender.origin_port(setup, &self.origin),
        };
        let command = contender.prepare(setup, ports, &self.tools, folder.path())?;
        let mut proxy =
            Proxy::start(&command, self.stage.cores.map(|cores| cores.proxy), folder.path())?;
        proxy.wait_until_listening(ports.listen)?;
        Ok(Entrant { contender, proxy, ports, _folder: folder })
    }

    /// One turn of one proxy. The inner error is the proxy's, the outer one ends the run.
    fn turn(&mut self, case: Case, entrant: &Entrant) -> anyhow::Result<anyhow::Result<Turn>> {
        let work = case.work(self.sizes);
        let counts = case.counts(self.sizes);
        let tree = entrant.proxy.tree();
        let measured = measure(&self.origin, &tree, entrant.ports.listen, work, counts);
        let turn = self.stage.turn(measured)?;
        Ok(turn.with_context(|| match entrant.proxy.last_words() {
            words if words.is_empty() => "in its turn".to_owned(),
            words => format!("in its turn ({words})"),
        }))
    }
}

/// Does `work` through the proxy at `target` and reads its books before and after.
pub(crate) async fn measure(
    origin: &Origin,
    tree: &ProcessTree,
    target: SocketAddr,
    work: Work,
    counts: Counts,
) -> anyhow::Result<Turn> {
    let (requests, uploaded) = (origin.seen.requests(), origin.seen.uploaded());
    tree.reset_peak();
    let _awake = (!matches!(work, Work::Idle { .. })).then(stay_awake);
    let mut session = Session::connect(target, work).await?;
    let warm = session.run(counts.warm_up).await?;
    tokio::time::sleep(QUIET).await;
    let before = tree.cpu();
    let start = Instant::now();
    let outcome = session.run(counts.measured).await?;
    let wall = start.elapsed();
    tokio::time::sleep(QUIET).await;
    let spent = tree.cpu().since(&before);
    let peak = tree.peak_rss_bytes();
    compare_with_origin(origin, work, &[&warm, &outcome], requests, uploaded)?;
    session.finish().await?;
    Ok(Turn::new(&outcome, wall.as_secs_f64(), spent, peak))
}

/// Checks that the origin saw exactly what the load counts as done.
fn compare_with_origin(
    origin: &Origin,
    work: Work,
    outcomes: &[&Outcome],
    requests: u64,
    uploaded: u64,
) -> anyhow::Result<()> {
    if let Some(complaint) = origin.seen.take_complaint() {
        bail!(complaint);
    }
    if matches!(work, Work::Idle { .. }) {
        return Ok(());
    }
    let count: u64 = outcomes.iter().map(|outcome| outcome.count).sum();
    let seen = origin.seen.requests() - requests;
    anyhow::ensure!(seen == count, "{count} requests were made, the origin answered {seen}");
    let expected = count * work.uploaded_bytes();
    let came = origin.seen.uploaded() - uploaded;
    anyhow::ensure!(came == expected, "{expected} bytes were uploaded, {came} came");
    Ok(())
}

fn failure(case: Case, contender: Contender, error: &anyhow::Error) -> Missing {
    let text = format!("{error:#}");
    eprintln!("{case}: {contender} failed: {text}");
    Missing::Failed(text)
}
