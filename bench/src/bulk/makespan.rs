//! Mixed jobs on workers that do one at a time.
//!
//! Two hundred jobs come at once to eight workers with one slot each, as a GPU has that works on
//! one batch at a time. A job sent to a busy worker waits there, behind a job that may be long, and
//! cannot be moved when another worker comes free: that is what a queue in the proxy is for.
//! Workers take their time without using a CPU's, so that two cores are enough for ten parties.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::client::Connection;
use super::config::{Pool, Terms};
use super::results::{CaseResults, Figures};
use super::{Bench, Case, Running};
use crate::contender::Contender;
use crate::pattern::Verifier;
use crate::stage::{begin_round, stay_awake};
use crate::wire::{ReadBuffer, h1, write_all};

const WORKERS: usize = 8;
const JOBS: usize = 200;

/// A job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// What a worker needs for it.
    pub time: Duration,
    /// Bytes of its input; 0 is a GET.
    pub bytes: u64,
}

pub(super) fn run(bench: &mut Bench, rounds: u16) -> anyhow::Result<CaseResults> {
    let variants = variants(&bench.proxies);
    let mut found = CaseResults::of(variants.iter().map(|variant| variant.name));
    found.notes.push(format!(
        "{JOBS} jobs at once, {WORKERS} workers of one slot; the bound is what no order of the same \
         jobs could go below"
    ));
    let workers = bench.stage.runtime.block_on(Workers::start(WORKERS))?;
    let mut entrants: Vec<(&str, Running)> = Vec::new();
    for Variant { name, proxy, terms } in variants {
        let pool = Pool {
            name: "workers",
            prefix: "/",
            http2: false,
            endpoints: workers.addresses.clone(),
            terms,
        };
        match bench.start(proxy, vec![pool]) {
            Ok(running) => entrants.push((name, running)),
            Err(e) => found.record(Case::Makespan, name, Err(e)),
        }
    }
    for round in 0..rounds {
        begin_round(Case::Makespan, round, rounds, &mut entrants);
        // The same jobs for all, others each round.
        let jobs = jobs(JOBS, u64::from(round) + 1);
        for (name, running) in &entrants {
            if found.has_failed(name) {
                continue;
            }
            let turn = bench.stage.turn(turn(running.listen, &workers, &jobs))?;
            found.record(Case::Makespan, name, turn);
        }
    }
    let peers = [Contender::Envoy.name(), Contender::Haproxy.name()];
    let ours = Contender::Towpath.name();
    found.relate(ours, "makespan_s", &peers, "makespan_to_best_peer");
    found.relate(ours, "mean_s", &peers, "mean_to_best_peer");
    Ok(found)
}

/// A proxy and its settings.
struct Variant {
    name: &'static str,
    proxy: Contender,
    terms: Terms,
}

/// Each proxy's best for workers of one slot, and ours without its queue: what the queue is worth.
fn variants(proxies: &[Contender]) -> Vec<Variant> {
    let all = [
        Variant {
            name: Contender::Towpath.name(),
            proxy: Contender::Towpath,
            terms: Terms { breaker: "queue: {slots: 1}".to_owned(), ..Terms::default() },
        },
        Variant {
            name: "towpath, no queue",
            proxy: Contender::Towpath,
            terms: Terms { balancer: "LeastRequest", ..Terms::default() },
        },
        // No queue either: the least busy of all, not of two drawn at random.
        Variant {
            name: Contender::Envoy.name(),
            proxy: Contender::Envoy,
            terms: Terms {
                envoy: json!({"load_balancing_policy": {"policies": [{"typed_extension_config": {
                    "name": "envoy.load_balancing_policies.least_request",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
                        "selection_method": "FULL_SCAN",
                    },
                }}]}}),
                ..Terms::default()
            },
        },
        // Waits in the backend's queue, not in a server's.
        Variant {
            name: Contender::Haproxy.name(),
            proxy: Contender::Haproxy,
            terms: Terms {
                haproxy_backend: "    balance leastconn",
                haproxy_server: "maxconn 1",
                ..Terms::default()
            },
        },
    ];
    all.into_iter().filter(|variant| proxies.contains(&variant.proxy)).collect()
}

/// `count` jobs, the same for the same seed: four in five take 1 to 5 ms, the others 50 to 200;
/// every second brings input, more of it the longer it takes.
#[must_use]
pub fn jobs(count: usize, seed: u64) -> Vec<Job> {
    // xorshift64*: any fixed sequence will do, but no seed may be 0.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = |limit: u64| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    };
    let job = |_| {
        let micros = if below(5) > 0 { 1000 + below(4001) } else { 50_000 + below(150_001) };
        let bytes = if below(2) > 0 { micros * 2 } else { 0 };
        Job { time: Duration::from_micros(micros), bytes }
    };
    (0..count).map(job).collect()
}

/// No schedule of `jobs` on `workers` ends earlier: the work must be divided, and the longest job
/// cannot be.
#[must_use]
pub fn bound(jobs: &[Job], workers: usize) -> Duration {
    let sum: Duration = jobs.iter().map(|job| job.time).sum();
    let longest = jobs.iter().map(|job| job.time).max().unwrap_or_default();
    (sum / u32::try_from(workers.max(1)).unwrap_or(u32::MAX)).max(longest)
}

async fn turn(target: SocketAddr, workers: &Workers, jobs: &[Job]) -> anyhow::Result<Figures> {
    // So that workers and clients act on time, not when a timer of the kernel's finds them.
    let _awake = stay_awake();
    let times = submit(target, jobs).await?;
    workers.check(jobs.len())?;
    Ok(figures(&times, bound(jobs, workers.addresses.len())))
}

/// Hands all jobs in at once and returns how long each took to come back.
///
/// # Errors
/// The first that does not come back done.
pub async fn submit(target: SocketAddr, jobs: &[Job]) -> anyhow::Result<Vec<Duration>> {
    let mut connections = Vec::with_capacity(jobs.len());
    for _ in jobs {
        connections.push(Connection::open(target).await.context("the proxy refuses a connection")?);
    }
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for (nth, (job, mut connection)) in jobs.iter().copied().zip(connections).enumerate() {
        tasks.spawn(async move {
            let path = format!("/job/{nth}/{}", job.time.as_micros());
            let (status, answer) = connection.post(&path, job.bytes).await?;
            let done = status == 200 && answer == format!("job {nth} done");
            let wrong =
                || crate::wire::unexpected(format!("job {nth}: status {status}, {answer:?}"));
            if done { Ok(start.elapsed()) } else { Err(wrong()) }
        });
    }
    let mut times = Vec::with_capacity(jobs.len());
    while let Some(done) = tasks.join_next().await {
        times.push(done??);
    }
    Ok(times)
}

fn figures(times: &[Duration], bound: Duration) -> Figures {
    let mut seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    seconds.sort_by(f64::total_cmp);
    let last = seconds.last().copied().unwrap_or(0.0);
    let p99 = seconds.get((seconds.len() * 99).div_ceil(100).saturating_sub(1)).copied();
    Figures::from([
        ("makespan_s", last),
        ("makespan_to_bound", last / bound.as_secs_f64()),
        ("mean_s", seconds.iter().sum::<f64>() / seconds.len() as f64),
        ("p99_s", p99.unwrap_or(0.0)),
    ])
}

/// Workers that do one job at a time, in the order the jobs came.
#[derive(Debug, Clone)]
pub struct Workers {
    /// Where they listen.
    pub addresses: Vec<SocketAddr>,
    done: Arc<Mutex<Vec<usize>>>,
}

impl Workers {
    /// Starts `count` of them, as tasks of the calling runtime.
    ///
    /// # Errors
    /// If a socket cannot be had.
    pub async fn start(count: usize) -> anyhow::Result<Self> {
        let mut workers = Self { addresses: Vec::new(), done: Arc::default() };
        for _ in 0..count {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("worker")?;
            workers.addresses.push(listener.local_addr()?);
            let done = Arc::clone(&workers.done);
            tokio::spawn(async move {
                // Fair: those that wait get it in the order they came.
                let slot = Arc::new(tokio::sync::Mutex::new(()));
                while let Ok((stream, _)) = listener.accept().await {
                    let (slot, done) = (Arc::clone(&slot), Arc::clone(&done));
                    tokio::spawn(async move {
                        let _ = stream.set_nodelay(true);
                        let _ = work(&stream, &slot, &done).await;
                    });
                }
            });
        }
        Ok(workers)
    }

    /// Checks that every job since the last call was done once.
    ///
    /// # Errors
    /// If one was done twice, or not at all.
    pub fn check(&self, jobs: usize) -> anyhow::Result<()> {
        let mut done = self.done.lock().map(|mut d| std::mem::take(&mut *d)).unwrap_or_default();
        done.sort_unstable();
        ensure!(
            done.iter().copied().eq(0..jobs),
            "{} of {jobs} jobs were done, or one twice",
            done.len()
        );
        Ok(())
    }
}

async fn work(
    stream: &TcpStream,
    slot: &tokio::sync::Mutex<()>,
    done: &Mutex<Vec<usize>>,
) -> io::Result<()> {
    let mut buffer = ReadBuffer::new(64 * 1024);
    loop {
        let Some(head) = h1::request(buffer.filled())? else {
            if buffer.fill(stream).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let job = job_of(head.target);
        let (length, consumed) = (head.content_length, head.length);
        buffer.consume(consumed);
        let mut input = Verifier::default();
        while input.received() < length {
            if buffer.filled().is_empty() && buffer.fill(stream).await? == 0 {
                return Ok(());
            }
            let left = usize::try_from(length - input.received()).unwrap_or(usize::MAX);
            let piece = buffer.filled().len().min(left);
            input.push(&buffer.filled()[..piece]);
            buffer.consume(piece);
        }
        let right = input.finish(length).is_ok();
        let Some((nth, micros)) = job.filter(|_| right) else {
            write_all(stream, b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await?;
            continue;
        };
        {
            let _slot = slot.lock().await;
            let end = Instant::now() + Duration::from_micros(micros);
            // Exact to microseconds where a timer would be to a millisecond, and the thread is
            // awake anyway (`stay_awake`).
            while Instant::now() < end {
                tokio::task::yield_now().await;
            }
            if let Ok(mut done) = done.lock() {
                done.push(nth);
            }
        }
        let answer = format!("job {nth} done");
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        write_all(stream, head.as_bytes()).await?;
    }
}

/// Number and microseconds of `/job/NUMBER/MICROS`.
fn job_of(target: &str) -> Option<(usize, u64)> {
    let (nth, micros) = target.strip_prefix("/job/")?.split_once('/')?;
    Some((nth.parse().ok()?, micros.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bulk::config::tests::assert_valid;

    #[test]
    fn jobs_are_the_same_for_a_seed_and_mostly_short() {
        assert_eq!(jobs(50, 3), jobs(50, 3));
        assert_ne!(jobs(50, 3), jobs(50, 4));
        let jobs = jobs(2000, 1);
        let short = jobs.iter().filter(|job| job.time <= Duration::from_millis(5)).count();
        assert!((1500..1700).contains(&short), "{short}");
        assert!(jobs.iter().all(|job| job.time <= Duration::from_millis(200)));
        let with_input = jobs.iter().filter(|job| job.bytes > 0).count();
        assert!((900..1100).contains(&with_input), "{with_input}");
    }

    #[test]
    fn the_bound_is_the_shared_work_or_the_longest_job() {
        let job = |ms| Job { time: Duration::from_millis(ms), bytes: 0 };
        assert_eq!(bound(&[job(10), job(30), job(20)], 2), Duration::from_millis(30));
        assert_eq!(bound(&[job(10); 8], 2), Duration::from_millis(40));
    }

    #[test]
    fn figures_are_of_all_jobs() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        let figures = figures(&times, Duration::from_millis(100));
        assert_eq!((figures["makespan_s"], figures["p99_s"]), (0.2, 0.198));
        assert!((figures["mean_s"] - 0.1005).abs() < 1e-9);
        assert!((figures["makespan_to_bound"] - 2.0).abs() < 1e-9);
    }

    #[test]
    fn our_policies_are_valid() {
        let endpoints: Vec<SocketAddr> =
            (1..=8).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        for Variant { terms, .. } in variants(&[Contender::Towpath]) {
            let endpoints = endpoints.clone();
            assert_valid(vec![Pool {
                name: "workers",
                prefix: "/",
                http2: false,
                endpoints,
                terms,
            }]);
        }
    }
}
