//! Small requests while bulk saturates the proxy's only worker.
//!
//! The small requests come at a fixed rate, whether earlier ones were answered or not, and their
//! latency counts from the moment they were due: a proxy that stops for 50 ms is charged for all
//! that came in the meantime. Their client and their origin have a thread of their own, which goes
//! before that of the bulk on the core they share; what that leaves of noise is measured in the same
//! turn by requests that go past the proxy, the floor.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use hdrhistogram::Histogram;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::config::{Pool, Terms};
use super::results::{CaseResults, Figures};
use super::streams::{Streams, Way};
use super::{Bench, Case, Running};
use crate::case::SMALL_BODY;
use crate::contender::Contender;
use crate::load::small_h1::{Connection, request};
use crate::load::{histogram, micros};
use crate::origin::{self, Origin};
use crate::shim;
use crate::stage::{SETTLE, begin_round, stay_awake};

/// Small requests per second through the proxy.
const RATE: u32 = 1000;
/// Small requests per second past it.
const FLOOR_RATE: u32 = 250;
/// Keep-alive connections the small requests take turns on.
const CONNECTIONS: usize = 32;
/// Bulk transfers at a time: half down, half up.
const BULK: usize = 8;
/// Bytes of each.
const BULK_BYTES: u64 = 256 << 20;
/// How long bulk and small requests run before anything counts.
const WARM_UP: Duration = Duration::from_millis(500);

pub(super) fn run(bench: &mut Bench, rounds: u16) -> anyhow::Result<CaseResults> {
    let time = Duration::from_secs(if bench.quick { 2 } else { 6 });
    let proxies = bench.proxies.clone();
    let variants = proxies.iter().flat_map(|proxy| [(*proxy, false), (*proxy, true)]);
    let variants: Vec<(Contender, bool)> = variants.collect();
    let mut found = CaseResults::of(variants.iter().map(|(proxy, bulk)| name(*proxy, *bulk)));
    found.notes.push(format!(
        "GETs of {SMALL_BODY} bytes at {RATE}/s, HTTP/1.1, latency from the moment each was due; \
         bulk: {BULK} transfers at a time of {} MiB, half down, half up",
        BULK_BYTES >> 20
    ));
    let small = bench.stage.runtime.block_on(origin::start(SMALL_BODY))?;
    let aside = Aside::start(bench.stage.cores.map(|cores| cores.load))?;
    let streams = Streams::new()?;
    let serving = streams.clone();
    let serving = aside.handle.spawn(async move { serving.serve().await });
    let bulk = bench.stage.runtime.block_on(serving)??;
    let mut entrants = Vec::new();
    for proxy in proxies {
        match bench.start(proxy, pools(&small, bulk)) {
            Ok(running) => entrants.push((proxy, running)),
            Err(e) => {
                let text = format!("{e:#}");
                for bulk in [false, true] {
                    found.record(
                        Case::Interactive,
                        &name(proxy, bulk),
                        Err(anyhow::anyhow!(text.clone())),
                    );
                }
            }
        }
    }
    thread::sleep(SETTLE);
    for round in 0..rounds {
        begin_round(Case::Interactive, round, rounds, &mut entrants);
        for with_bulk in [false, true] {
            for (proxy, running) in &entrants {
                let name = name(*proxy, with_bulk);
                if found.has_failed(&name) {
                    continue;
                }
                let load = Load { small: &small, handle: &aside.handle, with_bulk, time };
                let turn = bench.stage.turn(load.turn(running))?;
                found.record(Case::Interactive, &name, turn);
            }
        }
    }
    let peers = [name(Contender::Envoy, true), name(Contender::Haproxy, true)];
    let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
    found.relate(&name(Contender::Towpath, true), "p99_ms", &peers, "p99_to_best_peer");
    Ok(found)
}

fn name(proxy: Contender, bulk: bool) -> String {
    format!("{proxy}, {}", if bulk { "bulk" } else { "alone" })
}

fn pools(small: &Origin, bulk: SocketAddr) -> Vec<Pool> {
    let pool = |name, prefix, endpoint| Pool {
        name,
        prefix,
        http2: false,
        endpoints: vec![endpoint],
        terms: Terms::default(),
    };
    vec![pool("small", "/small", small.http1), pool("bulk", "/", bulk)]
}

/// What one turn does to a proxy.
struct Load<'a> {
    small: &'a Origin,
    handle: &'a Handle,
    with_bulk: bool,
    time: Duration,
}

impl Load<'_> {
    async fn turn(self, running: &Running) -> anyhow::Result<Figures> {
        let Running { listen, proxy, .. } = running;
        let streams = Streams::new()?;
        let mut bulk = JoinSet::new();
        for nth in 0..if self.with_bulk { BULK } else { 0 } {
            let (streams, target) = (streams.clone(), *listen);
            let way = if nth % 2 == 0 { Way::Down } else { Way::Up };
            bulk.spawn_on(
                async move { streams.client(target, way, BULK_BYTES).await },
                self.handle,
            );
        }
        let seen = self.small.seen.requests();
        // Connections are made and buffers grow before anything counts.
        let warm = open_loop(*listen, RATE, WARM_UP).await?;
        let (before, moved, start) = (proxy.tree().cpu(), streams.moved(), Instant::now());
        let (through, past) = tokio::join!(
            open_loop(*listen, RATE, self.time),
            open_loop(self.small.http1, FLOOR_RATE, self.time),
        );
        let (wall, moved) = (start.elapsed().as_secs_f64(), streams.moved() - moved);
        let spent = proxy.tree().cpu().since(&before);
        streams.stop();
        let (through, past) = (through?, past?);
        while let Some(done) = bulk.join_next().await {
            done??;
        }
        if let Some(complaint) = self.small.seen.take_complaint() {
            bail!(complaint);
        }
        let (made, seen) =
            (warm.len() + through.len() + past.len(), self.small.seen.requests() - seen);
        ensure!(made == seen, "{made} requests were made, the origin answered {seen}");
        ensure!(!self.with_bulk || moved > 0, "no bulk was moved");
        let ms = |histogram: &Histogram<u64>, q| histogram.value_at_quantile(q) as f64 / 1e3;
        Ok(Figures::from([
            ("p50_ms", ms(&through, 0.5)),
            ("p99_ms", ms(&through, 0.99)),
            ("p999_ms", ms(&through, 0.999)),
            ("max_ms", through.max() as f64 / 1e3),
            ("floor_p99_ms", ms(&past, 0.99)),
            ("bulk_gb_per_s", moved as f64 / 1e9 / wall),
            ("busy", spent.run_ns as f64 / 1e9 / wall),
            ("waited", spent.wait_ns as f64 / 1e9 / wall),
        ]))
    }
}

/// Makes `rate` requests a second for `time`, each of which must be answered right.
///
/// # Errors
/// The first that is not.
pub async fn open_loop(
    target: SocketAddr,
    rate: u32,
    time: Duration,
) -> anyhow::Result<Histogram<u64>> {
    let latencies = Arc::new(Mutex::new(histogram()));
    let mut tasks = JoinSet::new();
    let mut lanes = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut connection = Connection::open(target).await?;
        // Bounded by the number of requests of a turn.
        let (lane, mut due) = mpsc::unbounded_channel::<Instant>();
        lanes.push(lane);
        let latencies = Arc::clone(&latencies);
        tasks.spawn(async move {
            let request = request();
            while let Some(due) = due.recv().await {
                connection.exchange(&request, SMALL_BODY).await?;
                if let Ok(mut latencies) = latencies.lock() {
                    latencies.saturating_record(micros(due.elapsed()));
                }
            }
            Ok::<_, io::Error>(())
        });
    }
    let interval = Duration::from_secs(1) / rate.max(1);
    let count = u32::try_from(time.as_nanos() / interval.as_nanos().max(1)).unwrap_or(u32::MAX);
    // A thread of its own wakes within microseconds of the moment, tokio's timers within a
    // millisecond. It ends when it has sent its last.
    thread::Builder::new().name("due".to_owned()).spawn(move || {
        let start = Instant::now();
        for nth in 1..=count {
            let due = start + interval * nth;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // A lane that is gone has an error, which is told below.
            let _ = lanes[nth as usize % CONNECTIONS].send(due);
        }
    })?;
    while let Some(done) = tasks.join_next().await {
        done?.context("small request")?;
    }
    let latencies = latencies.lock().map_or_else(|_| histogram(), |h| h.clone());
    ensure!(latencies.len() == u64::from(count), "requests were lost");
    Ok(latencies)
}

/// A thread for the bulk, beside the one for small requests and behind it.
struct Aside {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Aside {
    fn start(core: Option<usize>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name("bulk".to_owned()).spawn(move || {
            if let Some(core) = core {
                // Inherited from the main thread; said again for those who read only this.
                let _ = shim::pin_this_thread(core);
            }
            shim::go_last();
            runtime.block_on(async {
                let _awake = stay_awake();
                let _ = stopped.await;
            });
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
