//! How long until endpoints that were added carry their share of long transfers.
//!
//! Two endpoints serve downloads that last longer than anybody watches; then there are four. A
//! balancer alone would send new transfers to the new ones, and there are none: what comes to them
//! is what `streamAge` moves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::JoinSet;

use super::client::Connection;
use super::config::{POLICIES, POLICY_FILE, Plan, Pool, Terms};
use super::endpoint::Endpoint;
use super::results::{CaseResults, Figures};
use super::{Bench, Case, Running};
use crate::contender::Contender;

/// Endpoints before, and after.
const BEFORE: usize = 2;
const AFTER: usize = 4;
/// Downloads at a time.
const CLIENTS: usize = 40;
/// Bytes a second of each.
const PACE: u64 = 2 << 20;
/// How long one would take: an hour.
const BYTES: u64 = 3600 * PACE;
/// From what age on a download may move, in our words.
const STREAM_AGE: &str = "streamAge: {max: 10s}";
/// How long only the first endpoints are there.
const SETTLED: Duration = Duration::from_secs(3);
/// How far from its fair share an endpoint may be.
const TOLERANCE: f64 = 0.2;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// Looks whose bytes are taken together: a share is that of a second.
const WINDOW: usize = 4;
/// Windows in a row in which the new endpoints must have their share.
const HOLD: usize = 4;
/// How long is waited for that.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn run(bench: &mut Bench, rounds: u16) -> anyhow::Result<CaseResults> {
    let name = Contender::Towpath.name();
    let mut found = CaseResults::of([name]);
    found.notes.push(format!(
        "{CLIENTS} downloads of an hour under `{STREAM_AGE}`, from {BEFORE} endpoints to {AFTER}; \
         the share is of the bytes of a second, within {:.0} % of a quarter",
        TOLERANCE * 100.0
    ));
    for round in 0..if bench.has(Contender::Towpath) { rounds } else { 0 } {
        eprintln!("rebalance: round {} of {rounds}", round + 1);
        if !found.has_failed(name) {
            let turn = one_turn(bench)?;
            found.record(Case::Rebalance, name, turn);
        }
    }
    Ok(found)
}

fn one_turn(bench: &mut Bench) -> anyhow::Result<anyhow::Result<Figures>> {
    let mut endpoints = Vec::with_capacity(AFTER);
    for _ in 0..AFTER {
        endpoints.push(bench.stage.runtime.block_on(Endpoint::start(PACE))?);
    }
    let spool = bench.spool.clone();
    match bench.start(Contender::Towpath, vec![pool(&endpoints[..BEFORE])]) {
        Ok(running) => bench.stage.turn(turn(&running, spool, &endpoints)),
        Err(e) => Ok(Err(e)),
    }
}

fn pool(endpoints: &[Endpoint]) -> Pool {
    Pool {
        name: "pool",
        prefix: "/",
        http2: false,
        endpoints: endpoints.iter().map(|endpoint| endpoint.address).collect(),
        terms: Terms { breaker: STREAM_AGE.to_owned(), ..Terms::default() },
    }
}

async fn turn(
    running: &Running,
    spool: std::path::PathBuf,
    endpoints: &[Endpoint],
) -> anyhow::Result<Figures> {
    let load = Load::start(running.listen);
    tokio::time::sleep(SETTLED).await;
    let Running { listen, metrics, folder, .. } = running;
    let plan = Plan { listen: *listen, metrics: *metrics, spool, pools: vec![pool(endpoints)] };
    // Written beside and renamed: the proxy never sees half a file.
    let draft = folder.path().join("next.yaml");
    std::fs::write(&draft, plan.towpath())?;
    std::fs::rename(&draft, folder.path().join(POLICIES).join(POLICY_FILE))?;
    let change = Instant::now();
    let mut shares = Shares::new(AFTER);
    while shares.fair_since().is_none() && change.elapsed() < PATIENCE {
        tokio::time::sleep(LOOK).await;
        shares.look(change.elapsed(), endpoints.iter().map(Endpoint::sent));
    }
    let fair = shares.fair_since();
    load.finish().await?;
    let share = shares.least_new().unwrap_or(0.0);
    let fair = fair.with_context(|| {
        format!("after {PATIENCE:?} a new endpoint carried {share:.2} of the bytes")
    })?;
    Ok(Figures::from([("fair_s", fair.as_secs_f64()), ("share_at_end", share)]))
}

/// How much each endpoint sent, look by look.
#[derive(Debug)]
struct Shares {
    endpoints: usize,
    looks: Vec<(Duration, Vec<u64>)>,
}

impl Shares {
    fn new(endpoints: usize) -> Self {
        Self { endpoints, looks: Vec::new() }
    }

    fn look(&mut self, at: Duration, sent: impl Iterator<Item = u64>) {
        self.looks.push((at, sent.collect()));
    }

    /// The beginning of the last windows, if the new endpoints had their share in all of them.
    fn fair_since(&self) -> Option<Duration> {
        let last = self.looks.len().checked_sub(WINDOW + HOLD)?;
        let fair = 1.0 / self.endpoints as f64;
        let is_fair = |end: usize| {
            let mut new = self.shares(end).into_iter().skip(BEFORE);
            new.all(|share| (share / fair - 1.0).abs() <= TOLERANCE)
        };
        let all = (last + WINDOW..self.looks.len()).all(is_fair);
        all.then(|| self.looks[last + WINDOW].0)
    }

    /// The smallest share of a new endpoint in the last window.
    fn least_new(&self) -> Option<f64> {
        let end = self.looks.len().checked_sub(1).filter(|end| *end >= WINDOW)?;
        self.shares(end).into_iter().skip(BEFORE).reduce(f64::min)
    }

    /// Each endpoint's share in the window that ends with a look.
    fn shares(&self, end: usize) -> Vec<f64> {
        let (from, to) = (&self.looks[end - WINDOW].1, &self.looks[end].1);
        let sent: Vec<u64> = to.iter().zip(from).map(|(to, from)| to - from).collect();
        let all = sent.iter().sum::<u64>().max(1) as f64;
        sent.into_iter().map(|sent| sent as f64 / all).collect()
    }
}

/// The steady load: downloads that do not end by themselves.
struct Load {
    tasks: JoinSet<std::io::Result<()>>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn start(target: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for _ in 0..CLIENTS {
            let stop = Arc::clone(&stop);
            tasks.spawn(async move {
                let connection = Connection::open(target).await?;
                connection.follow(&format!("/down/{BYTES}"), BYTES, &stop).await
            });
        }
        Self { tasks, stop }
    }

    /// Stops all, and says if one broke before.
    async fn finish(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(done) = self.tasks.join_next().await {
            done?.context("a download broke")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at endpoints of which each sends so much from one look to the next.
    fn looks(shares: &mut Shares, count: usize, each: [u64; 4]) {
        for _ in 0..count {
            let (at, sent) = shares.looks.last().cloned().unwrap_or((Duration::ZERO, vec![0; 4]));
            let sent = sent.iter().zip(each).map(|(sent, more)| sent + more);
            shares.look(at + LOOK, sent.collect::<Vec<_>>().into_iter());
        }
    }

    #[test]
    fn the_share_is_fair_once_every_new_endpoint_has_it_for_a_while() {
        let mut shares = Shares::new(AFTER);
        looks(&mut shares, 40, [50, 50, 30, 5]);
        assert_eq!(shares.fair_since(), None, "one of the new ones lags");
        looks(&mut shares, WINDOW + HOLD - 2, [30, 28, 21, 21]);
        assert_eq!(shares.fair_since(), None, "not for long enough");
        looks(&mut shares, 1, [30, 28, 21, 21]);
        assert_eq!(shares.fair_since(), Some(LOOK * (40 + WINDOW as u32)));
    }

    #[test]
    fn a_share_beyond_the_fair_one_is_not_fair_either() {
        let mut shares = Shares::new(AFTER);
        looks(&mut shares, 40, [5, 5, 45, 45]);
        assert_eq!(shares.fair_since(), None);
        assert_eq!(shares.least_new(), Some(0.45));
    }
}
