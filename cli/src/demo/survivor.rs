//! The last act: one large upload, whose worker is killed when most of it is through.
//!
//! The client sends every byte once and notices nothing: the gateway has kept a copy on disk,
//! sends it to another worker, and goes on from there.

use std::{
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::Instant,
};

use super::{
    admin::Metrics,
    place::HOST,
    policies::ARCHIVE,
    show::{Show, Tone},
    stage::{GATEWAY, Stage, worker},
};
use crate::etl::wire::{ARCHIVE_PREFIX, ArchiveReply};

/// Share of the upload that its first worker gets to see.
const KILLED_AT: f64 = 0.8;
const PIECE: usize = 256 * 1024;
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// The whole act must end in this time.
const DEADLINE: Duration = Duration::from_secs(300);
const MOST_ANSWER_BYTES: u64 = 64 * 1024;

/// What became of the upload.
#[derive(Debug)]
pub(super) struct Survivor {
    bytes: u64,
    /// SHA-256 of what the client sent, and what was acknowledged.
    sent: String,
    received: ArchiveReply,
    killed: String,
    /// Bytes that the gateway sent beyond those that came from the client.
    again: u64,
    took: Duration,
    /// Most memory the gateway ever had, in bytes; 0 where the system does not tell.
    peak_memory: u64,
}

/// How far the client is.
#[derive(Debug, Default)]
struct Progress {
    sent: AtomicU64,
    done: AtomicBool,
}

impl Survivor {
    /// Whether all of it arrived, unchanged, on another worker than the one that was killed.
    pub(super) fn holds(&self) -> bool {
        self.digest_equal() && self.received.worker != self.killed
    }

    fn digest_equal(&self) -> bool {
        self.received.bytes == self.bytes && self.received.sha256 == self.sent
    }

    /// In words, for the proof.
    pub(super) fn lines(&self) -> [(&'static str, String); 3] {
        let short = |digest: &str| digest.get(..16).unwrap_or(digest).to_owned();
        let equal = if self.holds() { "equal" } else { "NOT EQUAL" };
        [
            (
                "digest of the upload that survived",
                format!("{} = {}  {equal}", short(&self.sent), short(&self.received.sha256)),
            ),
            (
                "sent again to another worker",
                format!(
                    "{} of {} MB, {:.1} s in all; the client sent it once",
                    megabytes(self.again),
                    megabytes(self.bytes),
                    self.took.as_secs_f64()
                ),
            ),
            ("most memory the gateway ever had", format!("{} MB", megabytes(self.peak_memory))),
        ]
    }

    /// For the report.
    pub(super) fn json(&self) -> Value {
        json!({
            "bytes": self.bytes,
            "digest_equal": self.digest_equal(),
            "sha256": self.received.sha256,
            "killed_worker": self.killed,
            "finished_by": self.received.worker,
            "bytes_sent_again": self.again,
            "seconds": self.took.as_secs_f64(),
            "gateway_peak_memory_bytes": self.peak_memory,
        })
    }
}

/// Plays the act. The killed worker runs again afterwards.
///
/// # Errors
/// When the upload fails, or nothing can be killed in its midst.
pub(super) async fn play(stage: &mut Stage, show: &Show, bytes: u64) -> anyhow::Result<Survivor> {
    let started = Instant::now();
    let before = stage.gateway_metrics().await?;
    show.say(
        Tone::Plain,
        format!("one upload of {} MB; the gateway keeps a copy on disk", megabytes(bytes)),
    );
    show.counts_bytes();
    let (progress, (go, wait)) = (Progress::default(), watch::channel(false));
    let sending = send(stage.places.gateway, bytes, &progress, wait);
    let acting = act(stage, show, bytes, &progress, &before, go);
    let both = async { tokio::try_join!(sending, acting) };
    let both = tokio::time::timeout(DEADLINE, both).await;
    show.clear();
    let ((sent, received), (killed, index)) = both.context("the upload does not end")??;
    let after = stage.gateway_metrics().await?;
    let all = sent_to_all(&after) - sent_to_all(&before);
    let survivor = Survivor {
        bytes,
        sent,
        received,
        killed,
        again: all.saturating_sub(bytes),
        took: started.elapsed(),
        peak_memory: stage.fleet.pid(GATEWAY).and_then(peak_memory).unwrap_or_default(),
    };
    show.say(
        Tone::Answer,
        format!(
            "whole after {:.1} s, by worker {}: {} MB went out again, the client sent its bytes once",
            survivor.took.as_secs_f64(),
            survivor.received.worker,
            megabytes(survivor.again)
        ),
    );
    stage.start_worker(index).await?;
    Ok(survivor)
}

/// Shows how the upload goes, kills its worker, and shows how it goes on. Name and index of the
/// worker.
async fn act(
    stage: &mut Stage,
    show: &Show,
    bytes: u64,
    progress: &Progress,
    before: &Metrics,
    go: watch::Sender<bool>,
) -> anyhow::Result<(String, usize)> {
    let stop_at = stop_at(bytes);
    while progress.sent.load(Relaxed) < stop_at {
        ensure!(!progress.done.load(Relaxed), "the upload was answered before its time");
        show.moving(progress.sent.load(Relaxed), bytes, "on its way");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let (name, index) = loop {
        let now = stage.gateway_metrics().await?;
        // what the client has sent is at the gateway, and soon at the worker
        if sent_to_all(&now) - sent_to_all(before) >= stop_at / 2 {
            break holder(stage, before, &now)?;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    stage.fleet.kill(&worker(&stage.places.nodes[index])).await?;
    show.say(
        Tone::Trouble,
        format!(
            "worker {name}, which has about {} MB of it, is killed (SIGKILL)",
            megabytes(stop_at)
        ),
    );
    go.send_replace(true);
    let mut told = false;
    while !progress.done.load(Relaxed) {
        let now = stage.gateway_metrics().await?;
        let elsewhere = (sent_to_all(&now) - sent_to_all(before))
            .saturating_sub(sent_to(&now, &name) - sent_to(before, &name));
        if elsewhere > 0 && !std::mem::replace(&mut told, true) {
            show.say(Tone::Answer, "the gateway sends it to another, from disk");
        }
        show.moving(elsewhere.min(bytes), bytes, "again, from disk");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok((name, index))
}

/// The worker that got the most since `before`.
fn holder(stage: &Stage, before: &Metrics, now: &Metrics) -> anyhow::Result<(String, usize)> {
    let names = stage.places.nodes.iter().map(|node| node.name.clone()).enumerate();
    let since = |name: &str| sent_to(now, name) - sent_to(before, name);
    let (index, name) = names.max_by_key(|(_, name)| since(name)).context("there is no worker")?;
    ensure!(since(&name) > 0, "no worker has got anything of the upload");
    Ok((name, index))
}

fn sent_to(metrics: &Metrics, endpoint: &str) -> u64 {
    let labels = [("service", ARCHIVE), ("endpoint", endpoint), ("direction", "request")];
    metrics.sum("towpath_endpoint_bytes_total", &labels) as u64
}

fn sent_to_all(metrics: &Metrics) -> u64 {
    let labels = [("service", ARCHIVE), ("direction", "request")];
    metrics.sum("towpath_endpoint_bytes_total", &labels) as u64
}

/// Where the client waits for the kill.
fn stop_at(bytes: u64) -> u64 {
    (bytes as f64 * KILLED_AT) as u64
}

/// The client: sends so many bytes once, with a pause until the worker is dead. The digest of
/// what it sent, and the answer.
async fn send(
    gateway: SocketAddr,
    bytes: u64,
    progress: &Progress,
    mut go: watch::Receiver<bool>,
) -> anyhow::Result<(String, ArchiveReply)> {
    let mut stream = TcpStream::connect(gateway).await.context("connecting to the gateway")?;
    let head = format!(
        "PUT {ARCHIVE_PREFIX}upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {bytes}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut random = fastrand::Rng::with_seed(bytes);
    let mut piece = vec![0; PIECE];
    random.fill(&mut piece);
    let (mut at, mut digest) = (0, Sha256::new());
    while at < bytes {
        if at >= stop_at(bytes) {
            go.wait_for(|go| *go).await?;
        }
        // so that no two pieces are alike
        piece[..8].copy_from_slice(&at.to_be_bytes());
        let some = usize::try_from(bytes - at).unwrap_or(PIECE).min(PIECE);
        digest.update(&piece[..some]);
        stream.write_all(&piece[..some]).await.context("the gateway broke the upload off")?;
        at += some as u64;
        progress.sent.store(at, Relaxed);
    }
    let mut answer = String::new();
    stream.take(MOST_ANSWER_BYTES).read_to_string(&mut answer).await?;
    progress.done.store(true, Relaxed);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("the upload was not answered");
    };
    ensure!(head.starts_with("HTTP/1.1 200 "), "the upload was refused: {answer}");
    let reply =
        serde_json::from_str(body).with_context(|| format!("unreadable answer {body:?}"))?;
    Ok((format!("{:x}", digest.finalize()), reply))
}

/// `VmHWM` of `/proc/PID/status`.
fn peak_memory(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_only_if_all_of_it_arrived_unchanged_elsewhere() {
        let survivor = |bytes, sha256: &str, worker: &str| Survivor {
            bytes: 10,
            sent: "abc".into(),
            received: ArchiveReply { bytes, sha256: sha256.into(), worker: worker.into() },
            killed: "one".into(),
            again: 8,
            took: Duration::from_secs(1),
            peak_memory: 1,
        };
        assert!(survivor(10, "abc", "two").holds());
        for wrong in [(9, "abc", "two"), (10, "abd", "two"), (10, "abc", "one")] {
            let survivor = survivor(wrong.0, wrong.1, wrong.2);
            assert!(!survivor.holds() && survivor.lines()[0].1.ends_with("NOT EQUAL"), "{wrong:?}");
        }
    }

    #[test]
    fn this_process_has_had_memory() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(peak_memory(own).is_some_and(|bytes| bytes > 100_000));
    }
}
