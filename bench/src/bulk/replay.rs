//! What it costs to keep an upload for another try, when no try fails.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::client::fetch;
use super::config::{Pool, Terms};
use super::results::{CaseResults, Figures};
use super::{Bench, Case, Running};
use crate::case::{BULK_BYTES, Counts, Direction, QUICK_BULK_BYTES, SMALL_BODY, Work};
use crate::contender::Contender;
use crate::load::Session;
use crate::origin::{self, Origin};
use crate::peers::measure;
use crate::results::Turn;
use crate::stage::{SETTLE, begin_round};

/// What is kept of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Nothing,
    InMemory,
    OnDisk,
}

const KEPT: [Kept; 3] = [Kept::Nothing, Kept::InMemory, Kept::OnDisk];

/// One proxy and what it is asked to keep.
struct Entrant {
    name: String,
    http2: bool,
    kept: Kept,
    running: Running,
}

pub(super) fn run(bench: &mut Bench, rounds: u16) -> anyhow::Result<CaseResults> {
    let bytes = if bench.quick { QUICK_BULK_BYTES } else { BULK_BYTES };
    let origin = bench.stage.runtime.block_on(origin::start(SMALL_BODY))?;
    let combinations: Vec<(bool, Kept)> =
        [false, true].into_iter().flat_map(|http2| KEPT.map(|kept| (http2, kept))).collect();
    let mut found = CaseResults::of(combinations.iter().map(|(http2, kept)| name(*http2, *kept)));
    found.notes.push(format!("uploads of {} MiB, one after the other", bytes >> 20));
    if !bench.has(Contender::Towpath) {
        return Ok(found);
    }
    let mut entrants = Vec::new();
    for (http2, kept) in combinations {
        let name = name(http2, kept);
        match bench.start(Contender::Towpath, pools(http2, kept, &origin)) {
            Ok(running) => entrants.push(Entrant { name, http2, kept, running }),
            Err(e) => found.record(Case::Replay, &name, Err(e)),
        }
    }
    thread::sleep(SETTLE);
    for entrant in &entrants {
        let proof = bench.stage.turn(proves_what_it_keeps(entrant, bytes))?;
        if let Err(e) = proof {
            found.record(Case::Replay, &entrant.name, Err(e));
        }
    }
    for round in 0..rounds {
        begin_round(Case::Replay, round, rounds, &mut entrants);
        for entrant in &entrants {
            if found.has_failed(&entrant.name) {
                continue;
            }
            let tree = entrant.running.proxy.tree();
            let counts = Counts { warm_up: 1, measured: 1 };
            let work = work(entrant.http2, bytes);
            let listen = entrant.running.listen;
            let turn = bench.stage.turn(measure(&origin, &tree, listen, work, counts))?;
            found.record(Case::Replay, &entrant.name, turn.and_then(|turn| figures(&turn, bytes)));
        }
    }
    for entrant in &entrants {
        let refused = bench.stage.turn(refused(entrant.running.metrics))?;
        let problem = match refused {
            Ok(0.0) => continue,
            Ok(count) => anyhow::anyhow!("{count} bodies were not kept to their end"),
            Err(e) => e,
        };
        found.record(Case::Replay, &entrant.name, Err(problem));
    }
    for http2 in [false, true] {
        let off = name(http2, Kept::Nothing);
        for kept in [Kept::InMemory, Kept::OnDisk] {
            found.relate(&name(http2, kept), "cpu_ms_per_gb", &[&off], "to_off");
        }
    }
    Ok(found)
}

fn name(http2: bool, kept: Kept) -> String {
    let kept = match kept {
        Kept::Nothing => "off",
        Kept::InMemory => "memory",
        Kept::OnDisk => "disk",
    };
    format!("{}, {kept}", if http2 { "h2" } else { "h1" })
}

fn work(http2: bool, bytes: u64) -> Work {
    if http2 { Work::BulkH2(Direction::Up, bytes) } else { Work::BulkH1(Direction::Up, bytes) }
}

fn pools(http2: bool, kept: Kept, origin: &Origin) -> Vec<Pool> {
    let endpoint = if http2 { origin.bulk_h2 } else { origin.http1 };
    vec![Pool { name: "origin", prefix: "/", http2, endpoints: vec![endpoint], terms: terms(kept) }]
}

/// An upload by POST is sent again only with a key; without one nothing would be kept at all.
fn terms(kept: Kept) -> Terms {
    let retry = match kept {
        Kept::Nothing => "retry: {attempts: 0, replayLimit: 0}",
        Kept::InMemory => "retry: {mintIdempotencyKey: true}",
        Kept::OnDisk => "retry: {mintIdempotencyKey: true, replayDiskLimit: 8GiB}",
    };
    Terms { transfer: format!("timeouts: {{request: 0s}}\n{retry}"), ..Terms::default() }
}

fn figures(turn: &Turn, bytes: u64) -> anyhow::Result<Figures> {
    let cpu = turn.cpu_ms_per_gb.context("nothing was carried")?;
    let per_second = turn.rps.context("nothing was carried")? * bytes as f64 / 1e9;
    Ok(Figures::from([
        ("cpu_ms_per_gb", cpu),
        ("gb_per_s", per_second),
        ("rss_mb", turn.rss_mb),
        ("busy", turn.busy),
        ("waited", turn.waited),
    ]))
}

/// Makes one upload, looking from time to time how much of it lies on the disk: without this the
/// figures of a proxy that keeps nothing would be the best of all.
async fn proves_what_it_keeps(entrant: &Entrant, bytes: u64) -> anyhow::Result<()> {
    let Running { listen, metrics, .. } = entrant.running;
    let mut session = Session::connect(listen, work(entrant.http2, bytes)).await?;
    let mut most = 0.0_f64;
    let mut upload = std::pin::pin!(session.run(1));
    loop {
        tokio::select! {
            done = &mut upload => {
                done?;
                break;
            }
            () = tokio::time::sleep(Duration::from_millis(2)) => {
                let seen = metric(metrics, "towpath_spool_bytes").await?;
                most = most.max(seen.unwrap_or(0.0));
            }
        }
    }
    let on_disk = most > 0.0;
    ensure!(on_disk == (entrant.kept == Kept::OnDisk), "{most} bytes of the upload were on disk");
    Ok(())
}

/// How often a body could not be kept.
async fn refused(metrics: SocketAddr) -> anyhow::Result<f64> {
    Ok(metric(metrics, "towpath_spool_refused_total").await?.unwrap_or(0.0))
}

async fn metric(metrics: SocketAddr, name: &str) -> anyhow::Result<Option<f64>> {
    Ok(value_of(&fetch(metrics, "/metrics").await?, name))
}

/// The value of a metric without labels.
fn value_of(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bulk::config::tests::assert_valid;

    #[test]
    fn the_policies_of_every_setting_are_valid() {
        for kept in KEPT {
            let pool = Pool {
                name: "origin",
                prefix: "/",
                http2: true,
                endpoints: vec![SocketAddr::from(([127, 0, 0, 1], 9000))],
                terms: terms(kept),
            };
            assert_valid(vec![pool]);
        }
    }

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text = "# TYPE spool_bytes gauge\nspool_bytes_total 5\nspool_bytes 17\n";
        assert_eq!(value_of(text, "spool_bytes"), Some(17.0));
        assert_eq!(value_of(text, "spool"), None);
    }
}
