//! Where jobs go, and how soon they are done: twelve workers in three regions behind each proxy.
//!
//! Workers differ in speed and place, job sizes have a heavy tail, and the data of each job lies in
//! one of the regions. Meanwhile a GPU degrades, and one region is cut off and comes back. The proxies
//! are real processes; links and workers are modelled in the bench ([`worker`]), so that every
//! contender meets the same world ([`world`]) and the same jobs ([`trace`]). Besides, a batch of jobs
//! that are there at once is held against what no schedule could go below.
//!
//! The figures are reckoned from what clients and workers saw ([`judge`]); nothing a proxy says of
//! itself counts. A simulation of far more endpoints is not part of this.

pub mod bars;
pub mod client;
pub mod config;
pub mod judge;
pub mod report;
pub mod results;
pub mod shop;
pub mod trace;
pub mod worker;
pub mod world;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::time::{sleep, sleep_until};

use crate::bulk::results::{CaseResults, Figures};
use crate::contender::Contender;
use crate::machine::Machine;
use crate::output::Output;
use crate::process::{Proxy, free_port};
use crate::report::{Form, Table};
use crate::shim;
use crate::stage::{Stage, chosen, print};
use crate::tools::{Given, Tools};
use client::Client;
use config::{Balancing, Plan};
use judge::Pick;
use results::BalanceResults;
use trace::{Job, Script};
use worker::Worker;
use world::{CUT, FAILING, FALLING, FLEET};

/// Show where jobs go and how soon they are done.
#[derive(Debug, clap::Args)]
pub struct BalanceArgs {
    /// Proxies to compare: towpath, envoy, haproxy [default: all three]
    #[arg(long, value_delimiter = ',', value_name = "PROXY,…")]
    proxies: Vec<Contender>,
    /// Only entries whose name contains one of these
    #[arg(long, value_delimiter = ',', value_name = "TEXT,…")]
    only: Vec<String>,
    /// Leave out each term of the predicted completion time in turn, too
    #[arg(long)]
    ablate: bool,
    /// Rounds; every entry has one turn in each, with other jobs [default: 3, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Shorter, for a first look
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    output: Output,
    /// Leave proxies and load to the scheduler instead of giving each its core
    #[arg(long)]
    no_pin: bool,
    #[command(flatten)]
    given: Given,
}

/// A proxy under certain settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Its name in the results.
    pub name: &'static str,
    balancing: Balancing,
    /// How many looks late load reports come.
    report_lag: usize,
    /// The term that is left out.
    pub without: Option<&'static str>,
}

/// Ours, as it is meant.
pub const OURS: &str = "towpath, completion time";
/// Ours, under load reports that come 2 s late.
pub const LATE: &str = "towpath, late reports";
/// The peers that know nothing of places.
pub const BLIND: [&str; 3] = ["envoy, least request", "envoy, ORCA", "haproxy, leastconn"];

const fn variant(name: &'static str, balancing: Balancing) -> Variant {
    Variant { name, balancing, report_lag: 0, without: None }
}

const fn without(name: &'static str, term: &'static str) -> Variant {
    let balancing = Balancing::CompletionTime(Some(term));
    Variant { name, balancing, report_lag: 0, without: Some(term) }
}

const VARIANTS: [Variant; 11] = [
    variant(OURS, Balancing::CompletionTime(None)),
    Variant {
        name: LATE,
        balancing: Balancing::CompletionTime(None),
        report_lag: 8,
        without: None,
    },
    variant("towpath, bytes in flight", Balancing::BytesInFlight),
    variant(BLIND[0], Balancing::EnvoyLeastRequest),
    variant(BLIND[1], Balancing::EnvoyOrca),
    variant(BLIND[2], Balancing::HaproxyLeastconn),
    without("towpath, no network", "network"),
    without("towpath, no transfer", "transfer"),
    without("towpath, no queue", "queue"),
    without("towpath, no health", "health"),
    without("towpath, no failures", "failures"),
];

/// Until probes have found all workers well.
const SETTLE: Duration = Duration::from_millis(1500);
/// From the last job on until those not done are given up.
const PATIENCE: f64 = 40.0;
/// The jobs before a batch, seconds and load: so many that slow workers get some, too.
const BEFORE_BATCH: (f64, f64) = (12.0, 0.7);
/// Jobs of the batch, and how often each is gone over: what one machine takes to move all their bytes
/// must not matter beside the work.
const BATCH: usize = 1500;
const BATCH_PASSES: u32 = 2;
/// The most bytes of a job of the batch: one that comes last must not decide.
const BATCH_MOST: u64 = 1 << 20;

/// Runs the comparison and prints it. `false` if a bar falls short.
///
/// # Errors
/// If a tool is missing or a result cannot be written. A proxy that fails is a result.
pub fn run(args: &BalanceArgs) -> anyhow::Result<bool> {
    let partners = [Contender::Towpath, Contender::Envoy, Contender::Haproxy];
    let proxies = chosen(&args.proxies, &partners);
    ensure!(!proxies.is_empty(), "the proxies compared here are towpath, envoy, haproxy");
    let variants = entries(&proxies, &args.only, args.ablate);
    ensure!(!variants.is_empty(), "no entry is called so");
    let tools = Tools::gather(&args.given, &proxies)?;
    let machine = Machine::look();
    if machine.load_at_start > 1.0 {
        eprintln!("the machine is busy (load average {:.1})", machine.load_at_start);
    }
    shim::raise_file_limit();
    let stage = Stage::set(args.no_pin)?;
    let mut results = BalanceResults {
        machine,
        pinned: stage.cores.is_some(),
        quick: args.quick,
        ablate: args.ablate,
        versions: proxies.iter().map(|c| (*c, tools.version(*c))).collect(),
        found: CaseResults::of(variants.iter().map(|variant| variant.name)),
    };
    let mut bench = Bench { stage, tools, quick: args.quick };
    let rounds = args.rounds.unwrap_or(if args.quick { 1 } else { 3 });
    let start = Instant::now();
    bench.rounds(&variants, rounds, &mut results.found)?;
    results.relate();
    let tables = results.tables();
    tables.iter().for_each(|table: &Table| print(&table.render(Form::Terminal)));
    let preamble = results.preamble();
    print(&format!("{preamble}; took {:.0} s\n", start.elapsed().as_secs_f64()));
    args.output.finish(&results.to_json(), &preamble, &tables, &bars::judge(&results))
}

/// The entries that take part.
fn entries(proxies: &[Contender], only: &[String], ablate: bool) -> Vec<Variant> {
    let asked = |variant: &Variant| {
        proxies.contains(&variant.balancing.proxy())
            && (only.is_empty() || only.iter().any(|text| variant.name.contains(text)))
            && (ablate || variant.without.is_none())
    };
    VARIANTS.into_iter().filter(asked).collect()
}

/// What all turns share.
struct Bench {
    stage: Stage,
    tools: Tools,
    quick: bool,
}

/// Workers with a proxy before them.
struct Scene {
    workers: Vec<Worker>,
    listen: std::net::SocketAddr,
    proxy: Proxy,
    // Held for its configuration, and goes with it.
    _folder: TempDir,
}

impl Bench {
    fn rounds(
        &mut self,
        variants: &[Variant],
        rounds: u16,
        found: &mut CaseResults,
    ) -> anyhow::Result<()> {
        for round in 0..rounds {
            for turn in 0..variants.len() {
                // Another entry is first in each round, so that none always follows the same other.
                let variant = &variants[(turn + usize::from(round)) % variants.len()];
                if found.has_failed(variant.name) {
                    continue;
                }
                eprintln!("balance: round {} of {rounds}: {}", round + 1, variant.name);
                let turn = self.turn(variant, u64::from(round) + 1)?;
                found.record("balance", variant.name, turn);
            }
        }
        Ok(())
    }

    /// One entry's turn. The inner error is the proxy's, the outer one ends the run.
    fn turn(&mut self, variant: &Variant, seed: u64) -> anyhow::Result<anyhow::Result<Figures>> {
        let script = Script::of(self.quick);
        let jobs = trace::jobs(trace::LOAD, script.end, seed);
        let mut figures = match self.scene(variant) {
            Ok(scene) => match self.stage.turn(follow(&scene, &jobs, &script))? {
                Ok(figures) => figures,
                Err(e) => return Ok(Err(e.context(scene.proxy.last_words()))),
            },
            Err(e) => return Ok(Err(e)),
        };
        let batch = trace::batch(BATCH, BATCH_MOST, BATCH_PASSES, seed);
        // Anew: of what went wrong before, nothing is left.
        let scene = match self.scene(variant) {
            Ok(scene) => scene,
            Err(e) => return Ok(Err(e)),
        };
        Ok(self.stage.turn(at_once(&scene, &batch, seed))?.map(|more| {
            figures.extend(more);
            figures
        }))
    }

    /// Starts workers, and a proxy before them.
    fn scene(&self, variant: &Variant) -> anyhow::Result<Scene> {
        let folder = TempDir::with_prefix("towpath-bench-balance-")?;
        let workers: Vec<Worker> = {
            let _inside = self.stage.runtime.enter();
            let start = |machine| Worker::start(machine, variant.report_lag);
            FLEET.into_iter().map(start).collect::<anyhow::Result<_>>()?
        };
        let (listen, metrics) = (free_port()?, free_port()?);
        let plan = Plan {
            listen,
            metrics,
            workers: workers.iter().map(|worker| (worker.machine, worker.address)).collect(),
            balancing: variant.balancing.clone(),
        };
        let command = plan.prepare(&self.tools, folder.path())?;
        let core = self.stage.cores.map(|cores| cores.proxy);
        // By this thread: its end would be taken for the bench's.
        let mut proxy = Proxy::start(&command, core, folder.path())?;
        // Workers answer the proxy's first probes meanwhile.
        let proxy = self.stage.runtime.block_on(async move {
            let listens = tokio::task::spawn_blocking(move || {
                proxy.wait_until_listening(listen)?;
                Ok(proxy)
            });
            let proxy = listens.await.context("the proxy's start")?;
            sleep(SETTLE).await;
            proxy
        });
        proxy.map(|proxy| Scene { workers, listen, proxy, _folder: folder })
    }
}

/// Hands in a trace while what its script says happens.
async fn follow(scene: &Scene, jobs: &[Job], script: &Script) -> anyhow::Result<Figures> {
    let start = tokio::time::Instant::now() + Duration::from_millis(50);
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    let cut = |cut: bool| {
        let workers = scene.workers.iter().filter(|worker| worker.machine.region == CUT);
        workers.for_each(|worker| worker.set_cut(cut));
    };
    let events = async {
        sleep_until(at(script.fall)).await;
        scene.workers[FALLING].fall().await;
        sleep_until(at(script.cut)).await;
        cut(true);
        sleep_until(at(script.heal)).await;
        cut(false);
        sleep_until(at(script.fail)).await;
        scene.workers[FAILING].fail();
    };
    let limit = script.end + PATIENCE;
    let client = Client::new(scene.listen);
    let (outcomes, ()) = tokio::join!(client.submit(jobs, start, at(limit)), events);
    let mut picks: Vec<(usize, Pick)> = Vec::new();
    for (nth, worker) in scene.workers.iter().enumerate() {
        picks.extend(worker.take_arrivals().into_iter().map(|arrival| {
            let at = arrival.at.saturating_duration_since(start.into_std()).as_secs_f64();
            (arrival.job, Pick { at, worker: nth, bytes: arrival.bytes })
        }));
    }
    picks.sort_by(|(_, a), (_, b)| a.at.total_cmp(&b.at));
    ensure!(
        outcomes.len() == jobs.len(),
        "{} of {} jobs were handed in",
        outcomes.len(),
        jobs.len()
    );
    let mut figures = results::figures(jobs, &outcomes, &picks, script, limit);
    figures.insert("failed", scene.workers[FAILING].failed() as f64);
    Ok(figures)
}

/// Hands in a batch at once, after some jobs by which a proxy gets to know the workers.
async fn at_once(scene: &Scene, batch: &[Job], seed: u64) -> anyhow::Result<Figures> {
    let (seconds, load) = BEFORE_BATCH;
    let start = tokio::time::Instant::now();
    let limit = |seconds: f64| tokio::time::Instant::now() + Duration::from_secs_f64(seconds);
    let mut before = trace::jobs(load / f64::from(BATCH_PASSES), seconds, !seed);
    before.iter_mut().for_each(|job| job.passes = BATCH_PASSES);
    let client = Client::new(scene.listen);
    let done = client.submit(&before, start, limit(seconds + PATIENCE)).await;
    ensure!(
        done.iter().all(|outcome| outcome.time.is_some()),
        "a job before the batch was not done"
    );
    scene.workers.iter().for_each(|worker| drop(worker.take_arrivals()));
    client.open(batch.len()).await.context("the proxy refuses a connection")?;
    let start = tokio::time::Instant::now();
    let done = client.submit(batch, start, limit(PATIENCE)).await;
    let times: Option<Vec<Duration>> = done.iter().map(|outcome| outcome.time).collect();
    let last = times.and_then(|times| times.into_iter().max());
    let last = last.context("a job of the batch was not done")?.as_secs_f64();
    let bound = world::bound(batch);
    let assigned = scene.workers.iter().map(|worker| {
        let arrivals = worker.take_arrivals();
        let jobs = arrivals.iter().filter_map(|arrival| batch.get(arrival.job));
        jobs.map(Job::work).sum::<f64>() / worker.machine.bytes_per_second()
    });
    Ok(Figures::from([
        ("makespan_s", last),
        ("makespan_to_bound", last / bound),
        ("split_to_bound", assigned.fold(0.0, f64::max) / bound),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Contender; 3] = [Contender::Towpath, Contender::Envoy, Contender::Haproxy];

    #[test]
    fn terms_are_left_out_only_when_asked_for() {
        let names = |entries: Vec<Variant>| -> Vec<&'static str> {
            entries.into_iter().map(|variant| variant.name).collect()
        };
        assert_eq!(names(entries(&ALL, &[], false)).len(), 6);
        assert_eq!(names(entries(&ALL, &[], true)).len(), VARIANTS.len());
        assert_eq!(names(entries(&ALL, &["ORCA".to_owned()], false)), ["envoy, ORCA"]);
        assert_eq!(names(entries(&[Contender::Haproxy], &[], true)), ["haproxy, leastconn"]);
    }

    #[test]
    fn peers_and_ours_are_among_the_entries() {
        for name in BLIND.into_iter().chain([OURS, LATE]) {
            assert!(VARIANTS.iter().any(|variant| variant.name == name), "{name}");
        }
    }
}
