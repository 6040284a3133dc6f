//! What happens while the freight is under way: a baseline, three faults in an
//! order drawn by the seed, a commit that shifts traffic, and a broken one.
//!
//! Acts begin by progress of the freight, not by the clock, and each is told
//! with what the mesh did about it.

mod chronicle;

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use serde_json::json;
use tokio::time::Instant;

pub(super) use self::chronicle::{Chronicle, CommitTimes, Shares};
use super::{
    admin::Metrics,
    ledger::{Counts, Ledger},
    place::{FAVOURED, Node, REGIONS},
    policies::{self, File, ROUTES, SHIFTED, TRANSFER, TYPO},
    repository::Commit,
    show::{Show, Tone, many},
    stage::{CONTROL_PLANE, Stage, worker},
};

/// Shares of the small batches at which acts begin and end.
const BASELINE: (f64, f64) = (0.02, 0.12);
const FAULTS: [(f64, f64); 3] = [(0.12, 0.26), (0.30, 0.44), (0.48, 0.62)];
const SHIFT: (f64, f64) = (0.66, 0.80);
const BROKEN: (f64, f64) = (0.82, 0.92);
/// How much slower a worker becomes.
const SLOWNESS: u32 = 10;

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill(usize),
    Slow(usize),
    Restart,
}

/// Tells the story on this stage.
pub(super) struct Story<'a> {
    pub(super) stage: &'a mut Stage,
    pub(super) ledger: Arc<Ledger>,
    pub(super) show: &'a Show,
    pub(super) seed: u64,
    pub(super) chronicle: Chronicle,
}

/// What gateway and clients had counted at one moment.
struct Mark {
    metrics: Metrics,
    counts: Counts,
}

impl Story<'_> {
    /// Plays every act; returns what is to be remembered.
    ///
    /// # Errors
    /// When the mesh does not do what it promises, or a process ends by itself.
    pub(super) async fn play(mut self) -> anyhow::Result<Chronicle> {
        self.until(BASELINE.0).await?;
        let before = self.mark().await?;
        self.until(BASELINE.1).await?;
        let baseline = self.shares_since(&before).await?;
        self.show.say(Tone::Plain, format!("picks by region: {baseline}"));
        self.chronicle.before = baseline;
        let strong: Vec<bool> = self.stage.places.nodes.iter().map(|node| node.gpu).collect();
        for (fault, (from, to)) in faults(self.seed, &strong).into_iter().zip(FAULTS) {
            self.until(from).await?;
            match fault {
                Fault::Kill(node) => self.kill(node, to).await?,
                Fault::Slow(node) => self.slow(node, from, to).await?,
                Fault::Restart => self.restart(from, to).await?,
            }
        }
        self.until(SHIFT.0).await?;
        self.shift().await?;
        self.until(BROKEN.0).await?;
        self.broken().await?;
        Ok(self.chronicle)
    }

    async fn kill(&mut self, index: usize, to: f64) -> anyhow::Result<()> {
        let node = &self.stage.places.nodes[index];
        let (name, process) = (node.name.clone(), worker(node));
        let pid = self.stage.fleet.pid(&process).unwrap_or_default();
        let mark = self.mark().await?;
        self.stage.fleet.kill(&process).await?;
        self.trouble(format!("worker {name} is killed (SIGKILL, pid {pid}); its sidecar stays"));
        let gone = self.stage.until_usable(&name, false).await?;
        let since = self.since(&mark).await?;
        self.answer(format!(
            "out of rotation after {}; {} elsewhere; {}",
            seconds(gone),
            many(since.retries, "try repeated", "tries repeated"),
            seen_by_clients(since.failures)
        ));
        self.until(to).await?;
        let since = self.since(&mark).await?;
        self.stage.start_worker(index).await?;
        self.show.say(Tone::Plain, format!("worker {name} is started again"));
        let back = self.stage.until_usable(&name, true).await?;
        self.answer(format!(
            "in rotation again after {}; meanwhile {} acknowledged, {}",
            seconds(back),
            many(since.batches, "batch", "batches"),
            seen_by_clients(since.failures)
        ));
        self.chronicle.event(json!({
            "event": "kill", "worker": name, "out_of_rotation_s": gone.as_secs_f64(),
            "in_rotation_again_s": back.as_secs_f64(), "retries": since.retries,
            "client_failures": since.failures, "batches_meanwhile": since.batches,
        }));
        Ok(())
    }

    async fn slow(&mut self, index: usize, from: f64, to: f64) -> anyhow::Result<()> {
        let node = &self.stage.places.nodes[index];
        let (name, (_, gpu)) = (node.name.clone(), node.region.gpu);
        let mark = self.mark().await?;
        self.stage.slow_down(index, SLOWNESS).await?;
        self.trouble(format!("the {gpu} of worker {name} throttles to a tenth, and says so"));
        // those under way are still to end
        self.until((2.0 * from + to) / 3.0).await?;
        let queued = self.mark().await?;
        self.until(to).await?;
        let since = self.since(&mark).await?;
        let now = self.shares_since(&queued).await?;
        let during = now.of_endpoint(&name);
        self.stage.slow_down(index, 1).await?;
        for line in map(&self.chronicle.before, &now, &self.stage.places.nodes, &name) {
            self.show.print(&line);
        }
        let before = self.chronicle.before.of_endpoint(&name);
        self.answer(format!(
            "its share of the picks: {before:.0} % before, {during:.0} % while slow; \
             {} acknowledged, {}",
            many(since.batches, "batch", "batches"),
            seen_by_clients(since.failures)
        ));
        self.chronicle.event(json!({
            "event": "slow", "worker": name, "factor": SLOWNESS,
            "picks_percent_before": before, "picks_percent_slow": during,
            "client_failures": since.failures, "batches_meanwhile": since.batches,
        }));
        Ok(())
    }

    async fn restart(&mut self, from: f64, to: f64) -> anyhow::Result<()> {
        let mark = self.mark().await?;
        let stopped = Instant::now();
        self.stage.fleet.stop(CONTROL_PLANE).await;
        self.trouble("the control plane is stopped".to_owned());
        self.until((from + to) / 2.0).await?;
        let since = self.since(&mark).await?;
        self.answer(format!(
            "the proxies go on with what they have: {} acknowledged, {}",
            many(since.batches, "batch", "batches"),
            seen_by_clients(since.failures)
        ));
        self.stage.start_control_plane().await?;
        let away = stopped.elapsed();
        let commit = self.chronicle.latest()?;
        let back = self.stage.until_in_sync(&commit).await?;
        self.answer(format!(
            "started again after {}; every proxy back and in sync {} later",
            seconds(away),
            seconds(back)
        ));
        self.chronicle.event(json!({
            "event": "restart_control_plane", "away_s": away.as_secs_f64(),
            "in_sync_again_s": back.as_secs_f64(), "client_failures": since.failures,
            "batches_meanwhile": since.batches,
        }));
        self.until(to).await
    }

    async fn shift(&mut self) -> anyhow::Result<()> {
        let text = policies::routes(SHIFTED);
        let file = File { path: ROUTES, text };
        let subject = format!("Shift most of the freight to {FAVOURED}");
        let commit = self.stage.repository.commit(&subject, &[file])?;
        self.show.say(Tone::Plain, format!("commit {}: {subject}", commit.short()));
        self.obeyed(&commit).await?;
        let mark = self.mark().await?;
        self.until(SHIFT.1).await?;
        let after = self.shares_since(&mark).await?;
        let was = self.chronicle.before.of(FAVOURED);
        self.answer(format!("picks by region: {after} ({FAVOURED} had {was:.0} %)"));
        self.chronicle.after = after;
        if !self.chronicle.shifted() {
            self.show.say(Tone::Bad, format!("more of them should go to {FAVOURED} than that"));
        }
        Ok(())
    }

    async fn broken(&mut self) -> anyhow::Result<()> {
        let good = self.chronicle.latest()?;
        let mark = self.mark().await?;
        let (right, wrong) = TYPO;
        let text = self.stage.repository.read(TRANSFER)?.replacen(right, wrong, 1);
        let line = 1 + text.lines().take_while(|line| !line.contains(wrong)).count();
        let file = File { path: TRANSFER, text };
        let commit = self.stage.repository.commit("Replay larger batches", &[file])?;
        self.trouble(format!("commit {}: {}, with a typo in it", commit.short(), commit.subject));
        self.stage.refresh().await?;
        let (took, finding) = self.stage.until_rejected(&commit).await?;
        let found = format!(
            "{}:{}",
            finding["file"].as_str().unwrap_or_default(),
            finding["line"].as_u64().unwrap_or_default()
        );
        self.answer(format!(
            "rejected after {}: {found}: {}",
            seconds(took),
            finding["message"].as_str().unwrap_or_default()
        ));
        let name = TRANSFER.rsplit('/').next().unwrap_or(TRANSFER);
        ensure!(
            found.ends_with(&format!("{name}:{line}")),
            "the mistake is at {name}:{line}, but the control plane points at {found}"
        );
        self.until(BROKEN.1).await?;
        let since = self.since(&mark).await?;
        let held = self.stage.gateway_metrics().await?;
        let held = held.label_of("towpath_config_version_info", "version").unwrap_or_default();
        ensure!(held.starts_with(&good.id), "the gateway left commit {} for {held}", good.short());
        self.answer(format!(
            "harmed nothing: {} acknowledged under {}, {}",
            many(since.batches, "batch", "batches"),
            good.short(),
            seen_by_clients(since.failures)
        ));
        self.chronicle.event(json!({
            "event": "broken_commit", "commit": commit.id, "rejected_s": took.as_secs_f64(),
            "at": found, "message": finding["message"], "client_failures": since.failures,
            "batches_meanwhile": since.batches,
        }));
        self.revert().await
    }

    /// Takes the broken commit back. Nothing in the mesh differs from before, so
    /// nothing is sent to the proxies: only the control plane can tell.
    async fn revert(&mut self) -> anyhow::Result<()> {
        let revert = self.stage.repository.revert()?;
        let committed = Instant::now();
        self.show.say(Tone::Plain, format!("commit {}: {}", revert.short(), revert.subject));
        self.stage.refresh().await?;
        self.stage.until_in_sync(&revert).await?;
        let all = committed.elapsed();
        self.answer(format!("every proxy in sync with it after {}", seconds(all)));
        self.chronicle.commits.push(CommitTimes { commit: revert, gateway: None, all });
        Ok(())
    }

    /// Tells the control plane of a commit and measures its way to the proxies.
    async fn obeyed(&mut self, commit: &Commit) -> anyhow::Result<()> {
        let committed = Instant::now();
        self.stage.refresh().await?;
        self.stage.until_obeyed(commit).await?;
        let gateway = committed.elapsed();
        self.stage.until_in_sync(commit).await?;
        let all = committed.elapsed();
        self.answer(format!(
            "the gateway obeys it {} after the commit; every proxy holds it after {}",
            seconds(gateway),
            seconds(all)
        ));
        let gateway = Some(gateway);
        self.chronicle.commits.push(CommitTimes { commit: commit.clone(), gateway, all });
        Ok(())
    }

    /// Waits for the freight, and watches the processes meanwhile.
    async fn until(&mut self, share: f64) -> anyhow::Result<()> {
        while self.ledger.share() < share {
            self.stage.fleet.check()?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.stage.fleet.check()
    }

    async fn mark(&self) -> anyhow::Result<Mark> {
        let metrics = self.stage.gateway_metrics().await?;
        Ok(Mark { metrics, counts: self.ledger.counts() })
    }

    async fn shares_since(&self, mark: &Mark) -> anyhow::Result<Shares> {
        Ok(Shares::between(&mark.metrics, &self.stage.gateway_metrics().await?))
    }

    async fn since(&self, mark: &Mark) -> anyhow::Result<Since> {
        let metrics = self.stage.gateway_metrics().await?;
        let counts = self.ledger.counts();
        let retries = |metrics: &Metrics| metrics.sum("towpath_retries_total", &[]);
        Ok(Since {
            retries: (retries(&metrics) - retries(&mark.metrics)) as u64,
            failures: counts.failures - mark.counts.failures,
            batches: counts.batches - mark.counts.batches,
        })
    }

    fn trouble(&self, text: String) {
        self.show.say(Tone::Trouble, text);
    }

    fn answer(&self, text: String) {
        self.show.say(Tone::Answer, text);
    }
}

/// What was counted since a mark.
struct Since {
    retries: u64,
    failures: u64,
    batches: u64,
}

/// Who took which share of the picks, before and now, region by region.
fn map(before: &Shares, now: &Shares, nodes: &[Node], ill: &str) -> Vec<String> {
    let row = |name: &str, was: f64, is: f64, mark: &str| {
        format!("          {name:<22} {:<22} {:<22} {mark}", bar(was), bar(is))
            .trim_end()
            .to_owned()
    };
    let head = format!("          {:<22} {:<22} {:<22}", "picks", "before", "now");
    let mut lines = vec![head.trim_end().to_owned()];
    for region in &REGIONS {
        lines.push(row(region.name, before.of(region.name), now.of(region.name), ""));
        for node in nodes.iter().filter(|node| node.region.name == region.name) {
            let gpu = if node.gpu { format!(" ({})", node.region.gpu.1) } else { String::new() };
            let name = format!("  {}{gpu}", node.name);
            let mark = if node.name == ill { "<- throttles" } else { "" };
            let share = |shares: &Shares| shares.of_endpoint(&node.name);
            lines.push(row(&name, share(before), share(now), mark));
        }
    }
    lines
}

/// A share as a bar of at most 16 blocks.
fn bar(percent: f64) -> String {
    let blocks = (percent / 100.0 * 16.0).round() as usize;
    format!("{} {percent:.0} %", "█".repeat(blocks.min(16)))
}

/// The faults in the order of this seed, on workers of its choice. It is an accelerator that
/// throttles.
fn faults(seed: u64, strong: &[bool]) -> [Fault; 3] {
    let mut random = fastrand::Rng::with_seed(seed ^ 0xfa17);
    let accelerated: Vec<usize> = (0..strong.len()).filter(|node| strong[*node]).collect();
    let slow = accelerated[random.usize(0..accelerated.len())];
    let killed = (slow + random.usize(1..strong.len())) % strong.len();
    let mut faults = [Fault::Kill(killed), Fault::Slow(slow), Fault::Restart];
    random.shuffle(&mut faults);
    faults
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn seen_by_clients(failures: u64) -> String {
    match failures {
        0 => "clients saw no failure".to_owned(),
        _ => format!("clients saw {}", many(failures, "failure", "failures")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_who_suffers_what_and_when() {
        let strong = [false, true, false, true, false, true];
        let mut stories = std::collections::BTreeSet::new();
        for seed in 0..60 {
            let drawn = faults(seed, &strong);
            assert_eq!(drawn, faults(seed, &strong));
            let (mut killed, mut slow) = (None, None);
            for fault in drawn {
                match fault {
                    Fault::Kill(node) => killed = Some(node),
                    Fault::Slow(node) => slow = Some(node),
                    Fault::Restart => {}
                }
            }
            assert!(killed.is_some() && killed != slow, "{drawn:?}");
            assert!(slow.is_some_and(|node| strong[node]), "{drawn:?}");
            stories.insert(format!("{drawn:?}"));
        }
        assert!(stories.len() > 20, "{}", stories.len());
    }

    #[test]
    fn acts_follow_each_other() {
        let mut times = vec![BASELINE.0, BASELINE.1];
        times.extend(FAULTS.iter().flat_map(|(from, to)| [*from, *to]));
        times.extend([SHIFT.0, SHIFT.1, BROKEN.0, BROKEN.1]);
        assert!(times.is_sorted() && times.last().is_some_and(|last| *last < 0.97), "{times:?}");
    }
}
