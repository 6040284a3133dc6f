//! `towpath demo`: a whole mesh on this machine, real data through it, faults, and a proof.
//!
//! Every part runs as a process of its own, started from this same program:
//! six ETL workers in three make-believe regions, a sidecar before each, a
//! gateway, and a control plane that follows a Git repository made for the
//! occasion. Clients push TPC-H through the gateway while things break. At the
//! end everything loaded is read back and compared with the source.

mod admin;
mod freight;
mod ledger;
mod place;
mod policies;
mod process;
mod proof;
mod report;
mod repository;
mod show;
mod source;
mod stage;
mod story;
mod survivor;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::Instant,
};

use self::{
    freight::Freight,
    ledger::Ledger,
    place::{Capacity, HOST},
    proof::Proof,
    report::Report,
    show::{Show, Tone, count},
    source::{Cargo, UPLOADS},
    stage::Stage,
    story::{Chronicle, CommitTimes, Story},
    survivor::Survivor,
};
use crate::etl::client::Client;

/// Exit status after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;
const SCALE: f64 = 0.1;
const QUICK_SCALE: f64 = 0.02;
/// The freight takes at least this long, so that there is time for things to go wrong.
const SPREAD: Duration = Duration::from_secs(32);
const QUICK_SPREAD: Duration = Duration::from_secs(13);
/// The upload whose worker is killed, in MiB.
const UPLOAD_MIB: u64 = 1024;
const QUICK_UPLOAD_MIB: u64 = 256;
/// The workers together move bytes so many times faster than the freight comes …
const ROOM: f64 = 6.0;
/// … and spend this share of their time on beginning batches.
const BUSY: f64 = 0.3;
const WORKERS: f64 = 6.0;

/// Options of the demonstration.
#[derive(Debug, clap::Args)]
#[command(after_help = "Ends with status 0 only if every row arrived, once and unchanged.")]
pub struct Args {
    /// Less data and less time: under 30 seconds
    #[arg(long)]
    pub quick: bool,
    /// TPC-H scale factor, 0.001 to 30; 1 is a gigabyte [default: 0.1, or 0.02 with --quick]
    #[arg(long, value_parser = parse_scale)]
    pub scale: Option<f64>,
    /// MiB of the upload that survives its worker's death [default: 1024, or 256 with --quick]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=8192))]
    pub upload_mib: Option<u64>,
    /// Decides sizes of batches, dirt in them, and who suffers what and when
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write proof and figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Leave everything running afterwards, to play with, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
}

fn parse_scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(scale) if (0.001..=30.0).contains(&scale) => Ok(scale),
        _ => Err("a number from 0.001 to 30".to_owned()),
    }
}

/// Runs the demonstration. Ctrl-C and SIGTERM end it and everything it started.
///
/// # Errors
/// When the stage cannot be put up, or the mesh breaks a promise.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let outcome = runtime.block_on(perform(args));
    // a generator that still makes rows for nobody need not be waited for
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

/// Ctrl-C, SIGTERM, or the terminal going away.
struct Interrupts([Signal; 3]);

impl Interrupts {
    fn new() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [int, term, hup] = &mut self.0;
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
        }
    }
}

async fn perform(args: Args) -> anyhow::Result<ExitCode> {
    let mut interrupts = Interrupts::new().context("cannot wait for signals")?;
    let show = Show::new();
    let folder = tempfile::Builder::new()
        .prefix("towpath-demo-")
        .tempdir()
        .context("cannot make a folder for temporary files; is TMPDIR writable?")?;
    let default_scale = if args.quick { QUICK_SCALE } else { SCALE };
    let cargo = Cargo { scale: args.scale.unwrap_or(default_scale), seed: args.seed };
    let spread = if args.quick { QUICK_SPREAD } else { SPREAD };
    let mut stage = Stage::new(folder.path(), capacity(&cargo, spread))?;
    let outcome = tokio::select! {
        outcome = play(&args, cargo, spread, &show, &mut stage) => Some(outcome),
        () = interrupts.next() => None,
    };
    show.clear();
    if args.keep && matches!(outcome, Some(Ok(_))) {
        invite(&show, &stage)?;
        interrupts.next().await;
    }
    if outcome.is_none() {
        show.say(Tone::Plain, "interrupted: ending what was started");
    }
    tokio::select! {
        () = stage.take_down() => {}
        // whoever asks twice does not want to wait: what is left is killed when dropped
        () = interrupts.next() => {}
    }
    drop(stage);
    match outcome {
        None => Ok(ExitCode::from(INTERRUPTED)),
        Some(Ok(true)) => Ok(ExitCode::SUCCESS),
        Some(Ok(false)) => {
            show.say(Tone::Bad, format!("logs and files are left in {}", folder.keep().display()));
            Ok(ExitCode::FAILURE)
        }
        Some(Err(error)) => {
            show.say(Tone::Bad, format!("logs and files are left in {}", folder.keep().display()));
            Err(error)
        }
    }
}

/// Workers so strong that the freight keeps them busy, but not overly.
fn capacity(cargo: &Cargo, spread: Duration) -> Capacity {
    let seconds = spread.as_secs_f64();
    let batches_per_worker = cargo.small_batches() as f64 / seconds / WORKERS;
    Capacity {
        mib: cargo.bytes() / seconds / f64::from(1 << 20) * ROOM,
        batch_ms: (BUSY / batches_per_worker * 1000.0).min(50.0) as u64,
    }
}

/// The whole performance; true when the proof holds.
async fn play(
    args: &Args,
    cargo: Cargo,
    spread: Duration,
    show: &Show,
    stage: &mut Stage,
) -> anyhow::Result<bool> {
    show.say(
        Tone::Plain,
        format!(
            "TPC-H at scale {}: about {} rows of orders and lineitem, seed {}",
            cargo.scale,
            count(cargo.rows()),
            cargo.seed
        ),
    );
    let truth = tokio::task::spawn_blocking(move || cargo.truth());
    let first = put_up(show, stage).await?;
    let chronicle = Chronicle { commits: vec![first], ..Chronicle::default() };

    let ledger = Arc::new(Ledger::new(cargo.small_rows()));
    let client = Arc::new(Client::new(stage.places.gateway, HOST));
    let freight = Freight { cargo, client, ledger: ledger.clone(), spread };
    show.say(
        Tone::Plain,
        format!("the freight rolls: small batches by HTTP/1.1, HTTP/2 and gRPC, and {UPLOADS} large uploads"),
    );
    let started = Instant::now();
    let story =
        Story { stage: &mut *stage, ledger: ledger.clone(), show, seed: args.seed, chronicle };
    let chronicle = tokio::select! {
        chronicle = carry(freight, story) => chronicle?,
        never = tell_progress(show, &ledger, cargo.rows(), started) => match never {},
    };
    let carried = started.elapsed();
    show.clear();

    let upload_mib = if args.quick { QUICK_UPLOAD_MIB } else { UPLOAD_MIB };
    let survivor: Survivor =
        survivor::play(stage, show, args.upload_mib.unwrap_or(upload_mib) << 20).await?;

    show.say(Tone::Plain, "all acknowledged; reading back what was loaded");
    let gateway = stage.gateway_metrics().await?;
    let store = stage.store.clone();
    let proof = tokio::task::spawn_blocking({
        let truth = truth.await.context("counting the source")?;
        move || Proof::of(&truth, &store)
    })
    .await??;
    let details = ledger.details();
    let report = Report {
        cargo,
        quick: args.quick,
        proof: &proof,
        survivor: &survivor,
        chronicle: &chronicle,
        counts: ledger.counts(),
        details: &details,
        gateway: &gateway,
        carried,
        took: show.elapsed(),
    };
    report.print(show);
    if let Some(path) = &args.report {
        report.write(path)?;
    }
    Ok(report.good())
}

/// Starts everything, and tells it. The first commit's time is that of the whole start.
async fn put_up(show: &Show, stage: &mut Stage) -> anyhow::Result<CommitTimes> {
    let started = Instant::now();
    let commit = stage.put_up().await?;
    let took = started.elapsed();
    show.say(Tone::Plain, format!("commit {}: {}", commit.short(), commit.subject));
    let regions = place::REGIONS
        .map(|region| format!("{} ({} ms away, {})", region.name, region.delay_ms, region.gpu.1));
    show.say(Tone::Plain, format!("two workers each, one on a GPU: {}", regions.join(", ")));
    show.say(
        Tone::Answer,
        format!(
            "six workers, six sidecars, a gateway and a control plane run after {:.1} s",
            took.as_secs_f64()
        ),
    );
    Ok(CommitTimes { commit, gateway: None, all: took })
}

/// Freight and story side by side; the freight's end waits for the story's.
async fn carry(freight: Freight, story: Story<'_>) -> anyhow::Result<Chronicle> {
    let (over, story_over) = watch::channel(false);
    let told = async {
        let chronicle = story.play().await?;
        over.send_replace(true);
        Ok(chronicle)
    };
    let ((), (), chronicle) =
        tokio::try_join!(freight.clone().small(story_over), freight.large(), told)?;
    Ok(chronicle)
}

async fn tell_progress(
    show: &Show,
    ledger: &Ledger,
    expected: u64,
    started: Instant,
) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let counts = ledger.counts();
        let seconds = started.elapsed().as_secs_f64();
        show.progress(counts.rows, expected, counts.bytes as f64 / 1e6 / seconds);
    }
}

/// Says what there is to play with.
fn invite(show: &Show, stage: &Stage) -> anyhow::Result<()> {
    let program = std::env::current_exe()?;
    let (program, gateway) = (program.display(), stage.places.gateway);
    let admin = stage.gateway_admin()?;
    let control = stage.control_admin();
    let repository = stage.repository.folder().display();
    let lines = [
        "Everything keeps running until Ctrl-C.".to_owned(),
        format!("  the gateway        http://{gateway}   (ask for Host: {HOST})"),
        format!("  its endpoints      curl http://{admin}/endpoints"),
        format!("  its metrics        curl http://{admin}/metrics"),
        format!("  its configuration  curl http://{admin}/config_dump"),
        format!("  who holds what     {program} status --admin {control}"),
        format!("  the policies       {repository}"),
        "                     change mesh/routes.yaml there, `git commit -a`, and look again"
            .to_owned(),
        format!(
            "  push rows          {program} etl-load --to {gateway} --host {HOST} --table orders FILE.tbl"
        ),
        format!("  what was loaded    {}", stage.folder.join("loaded").display()),
        format!("  logs               {}", stage.folder.join("logs").display()),
    ];
    show.print("");
    for line in lines {
        show.print(&line);
    }
    Ok(())
}
