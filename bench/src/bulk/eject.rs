//! How long an endpoint that went bad still gets transfers.
//!
//! Six endpoints carry a steady load; one falls to a tenth of its goodput, or starts to answer 503.
//! It is out when it got its last new transfer, as it notes itself: nothing a proxy says of itself
//! counts in its favour. Of ours we ask besides that its admin endpoint call the endpoint ejected,
//! and take the later of the two: picking it less often is not yet leaving it out.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::client::{Connection, fetch};
use super::config::{Pool, Terms};
use super::endpoint::Endpoint;
use super::results::{CaseResults, Figures};
use super::{Bench, Case, Running};
use crate::contender::Contender;

const ENDPOINTS: usize = 6;
/// Downloads at a time.
const CLIENTS: usize = 18;
/// Bytes of each.
const BYTES: u64 = 2 << 20;
/// Bytes a second of each while its endpoint is well: 0.25 s for a download.
const PACE: u64 = 8 << 20;
/// What is left of it where goodput falls.
const FALLEN_PACE: u64 = PACE / 10;
/// How long everything is well, at least.
const WELL: Duration = Duration::from_millis(2500);
/// Until then every endpoint must have got as many transfers.
const WELL_TRANSFERS: usize = 5;
/// Without a new transfer for this long an endpoint is out: while it is well it gets one each 80 ms,
const SILENCE: Duration = Duration::from_secs(2);
/// if the others got as many meanwhile: by chance that happens once in ten thousand times.
const MEANWHILE: usize = 50;
/// How long is waited for that.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at the admin endpoint.
const LOOK: Duration = Duration::from_millis(50);

/// What goes wrong with an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Slow,
    Failing,
}

/// A proxy, its settings, and what goes wrong.
#[derive(Debug, Clone, Copy)]
struct Variant {
    name: &'static str,
    proxy: Contender,
    fault: Fault,
    terms: fn() -> Terms,
}

const VARIANTS: [Variant; 4] = [
    Variant {
        name: "towpath, goodput",
        proxy: Contender::Towpath,
        fault: Fault::Slow,
        terms: || breaker("outlier: {goodput: {}}"),
    },
    Variant {
        name: "towpath, 5xx",
        proxy: Contender::Towpath,
        fault: Fault::Failing,
        terms: || breaker("outlier: {goodput: {}}"),
    },
    Variant {
        name: "envoy, 5xx, default",
        proxy: Contender::Envoy,
        fault: Fault::Failing,
        // At the default of 10 % it would eject none of six.
        terms: || envoy(json!({"max_ejection_percent": 50})),
    },
    Variant {
        name: "envoy, 5xx, fast",
        proxy: Contender::Envoy,
        fault: Fault::Failing,
        terms: || fast_envoy(),
    },
];

fn breaker(outlier: &str) -> Terms {
    Terms { breaker: outlier.to_owned(), ..Terms::default() }
}

fn envoy(outlier: Value) -> Terms {
    Terms {
        envoy: json!({"outlier_detection": outlier, "lb_policy": "LEAST_REQUEST"}),
        ..Terms::default()
    }
}

fn fast_envoy() -> Terms {
    envoy(json!({"max_ejection_percent": 50, "interval": "1s", "consecutive_5xx": 3}))
}

pub(super) fn run(bench: &mut Bench, rounds: u16) -> anyhow::Result<CaseResults> {
    let variants: Vec<Variant> =
        VARIANTS.into_iter().filter(|variant| bench.has(variant.proxy)).collect();
    let mut found = CaseResults::of(variants.iter().map(|variant| variant.name));
    found.notes.push(format!(
        "{ENDPOINTS} endpoints, {CLIENTS} downloads of {} MiB at a time, {} MiB/s each; Envoy has \
         no ejection by goodput",
        BYTES >> 20,
        PACE >> 20
    ));
    for round in 0..rounds {
        eprintln!("eject: round {} of {rounds}", round + 1);
        for variant in &variants {
            if found.has_failed(variant.name) {
                continue;
            }
            let turn = one_turn(bench, *variant, usize::from(round))?;
            found.record(Case::Eject, variant.name, turn);
        }
    }
    Ok(found)
}

/// A turn with endpoints and a proxy of its own: an ejection would outlast it.
fn one_turn(
    bench: &mut Bench,
    variant: Variant,
    round: usize,
) -> anyhow::Result<anyhow::Result<Figures>> {
    let endpoints = bench.stage.runtime.block_on(start_endpoints())?;
    let pool = Pool {
        name: "pool",
        prefix: "/",
        http2: false,
        endpoints: endpoints.iter().map(|endpoint| endpoint.address).collect(),
        terms: (variant.terms)(),
    };
    match bench.start(variant.proxy, vec![pool]) {
        Ok(running) => {
            // Another one each round, neither always the first nor the last of the list.
            let bad = (2 + round * 5) % ENDPOINTS;
            bench.stage.turn(turn(&running, variant, &endpoints, bad))
        }
        Err(e) => Ok(Err(e)),
    }
}

async fn start_endpoints() -> anyhow::Result<Vec<Endpoint>> {
    let mut endpoints = Vec::with_capacity(ENDPOINTS);
    for _ in 0..ENDPOINTS {
        endpoints.push(Endpoint::start(PACE).await?);
    }
    Ok(endpoints)
}

async fn turn(
    running: &Running,
    variant: Variant,
    endpoints: &[Endpoint],
    bad: usize,
) -> anyhow::Result<Figures> {
    let clients = Clients::start(running.listen);
    all_well(endpoints).await?;
    ensure!(clients.failures() == 0, "transfers failed while all endpoints were well");
    let fall = Instant::now();
    match variant.fault {
        Fault::Slow => endpoints[bad].set_pace(FALLEN_PACE),
        Fault::Failing => endpoints[bad].set_failing(true),
    }
    let mut watch = Watch::new(variant.proxy == Contender::Towpath);
    while !watch.is_over(fall.elapsed()) {
        tokio::time::sleep(LOOK).await;
        for (nth, endpoint) in endpoints.iter().enumerate() {
            let arrivals = endpoint.take_arrivals();
            let times = arrivals.iter().map(|at| at.saturating_duration_since(fall));
            watch.arrived(nth == bad, times);
        }
        if variant.proxy == Contender::Towpath {
            let text = fetch(running.metrics, "/endpoints").await?;
            watch.ejected(fall.elapsed(), is_ejected(&text, endpoints[bad].address)?);
        }
    }
    let failures = clients.failures();
    clients.finish(variant.fault).await?;
    let out = watch.outcome()?;
    Ok(Figures::from([
        ("out_s", out.as_secs_f64()),
        ("last_transfer_s", watch.last.as_secs_f64()),
        ("transfers", watch.count as f64),
        ("failures", failures as f64),
    ]))
}

/// Waits until every endpoint has its part of the load.
async fn all_well(endpoints: &[Endpoint]) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut counts = [0; ENDPOINTS];
    while start.elapsed() < WELL || counts.iter().any(|count| *count < WELL_TRANSFERS) {
        ensure!(start.elapsed() < PATIENCE, "not all endpoints get transfers: {counts:?}");
        tokio::time::sleep(LOOK).await;
        for (count, endpoint) in counts.iter_mut().zip(endpoints) {
            *count += endpoint.take_arrivals().len();
        }
    }
    Ok(())
}

/// What was seen of an endpoint since it went bad; times are counted from there.
#[derive(Debug)]
struct Watch {
    must_be_ejected: bool,
    last: Duration,
    count: usize,
    /// When the others got theirs.
    others: Vec<Duration>,
    ejected: Option<Duration>,
    now: Duration,
}

impl Watch {
    fn new(must_be_ejected: bool) -> Self {
        let (last, now) = (Duration::ZERO, Duration::ZERO);
        Self { must_be_ejected, last, count: 0, others: Vec::new(), ejected: None, now }
    }

    /// Notes transfers to the endpoint, or to others.
    fn arrived(&mut self, bad: bool, times: impl Iterator<Item = Duration>) {
        if !bad {
            self.others.extend(times);
            return;
        }
        for time in times {
            self.count += 1;
            self.last = self.last.max(time);
        }
    }

    /// Notes when it was first seen ejected without a break since.
    fn ejected(&mut self, now: Duration, ejected: bool) {
        self.ejected = if ejected { Some(self.ejected.unwrap_or(now)) } else { None };
    }

    fn is_over(&mut self, now: Duration) -> bool {
        self.now = now;
        self.outcome().is_ok() || now > PATIENCE
    }

    /// When it was out for good.
    fn outcome(&self) -> anyhow::Result<Duration> {
        let out = if self.must_be_ejected {
            self.last.max(self.ejected.context("the proxy does not call it ejected")?)
        } else {
            self.last
        };
        let meanwhile = self.others.iter().filter(|time| **time > out).count();
        if self.now.saturating_sub(out) < SILENCE || meanwhile < MEANWHILE {
            bail!(
                "it got a transfer {:.1} s after it went bad, and more may follow ({meanwhile} \
                 went to others since)",
                self.last.as_secs_f64()
            );
        }
        Ok(out)
    }
}

/// Whether our proxy calls the endpoint at `address` ejected.
fn is_ejected(endpoints: &str, address: SocketAddr) -> anyhow::Result<bool> {
    let services: Value = serde_json::from_str(endpoints).context("/endpoints")?;
    let address = address.to_string();
    let all = services.as_object().into_iter().flatten();
    let mut all =
        all.flat_map(|(_, service)| service["endpoints"].as_array().into_iter().flatten());
    let one = all.find(|endpoint| endpoint["address"] == address.as_str());
    one.and_then(|one| one["ejected"].as_bool()).with_context(|| format!("{address} in /endpoints"))
}

/// The steady load.
struct Clients {
    tasks: JoinSet<io::Result<()>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    failures: AtomicU64,
}

impl Clients {
    fn start(target: SocketAddr) -> Self {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for _ in 0..CLIENTS {
            let shared = Arc::clone(&shared);
            tasks.spawn(async move {
                let path = format!("/down/{BYTES}");
                let mut connection = Connection::open(target).await?;
                while !shared.stop.load(Ordering::Relaxed) {
                    match connection.get(&path, BYTES).await? {
                        200 => {}
                        503 => {
                            shared.failures.fetch_add(1, Ordering::Relaxed);
                        }
                        status => return Err(crate::wire::unexpected(format!("status {status}"))),
                    }
                }
                Ok(())
            });
        }
        Self { tasks, shared }
    }

    /// Answers that were 503.
    fn failures(&self) -> u64 {
        self.shared.failures.load(Ordering::Relaxed)
    }

    /// Waits for the transfers under way: each must have come whole.
    async fn finish(mut self, fault: Fault) -> anyhow::Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(done) = self.tasks.join_next().await {
            done?.context("a download")?;
        }
        ensure!(
            fault == Fault::Failing || self.failures() == 0,
            "transfers failed without a reason"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bulk::config::tests::assert_valid;

    fn seconds(text: f64) -> Duration {
        Duration::from_secs_f64(text)
    }

    /// The others get thirty transfers a second.
    fn with_others(must_be_ejected: bool) -> Watch {
        let mut watch = Watch::new(must_be_ejected);
        watch.arrived(false, (0..900).map(|nth| seconds(f64::from(nth) / 30.0)));
        watch
    }

    #[test]
    fn silence_shows_nothing_while_nobody_gets_transfers() {
        let mut watch = Watch::new(false);
        watch.arrived(false, (0..MEANWHILE as u32).map(|nth| seconds(f64::from(nth) / 100.0)));
        watch.arrived(true, [0.0].map(seconds).into_iter());
        assert!(!watch.is_over(seconds(5.0)));
        watch.arrived(false, [6.0].map(seconds).into_iter());
        assert!(watch.is_over(seconds(6.0)));
    }

    #[test]
    fn an_endpoint_is_out_after_its_last_transfer_once_silence_shows_it() {
        let mut watch = with_others(false);
        watch.arrived(true, [0.1, 1.5].map(seconds).into_iter());
        assert!(!watch.is_over(seconds(3.4)));
        assert!(watch.is_over(seconds(3.6)));
        assert_eq!(watch.outcome().expect("silent"), seconds(1.5));
        // A late one shows that it was not.
        watch.arrived(true, [3.7].map(seconds).into_iter());
        assert!(!watch.is_over(seconds(3.8)));
        assert!(watch.is_over(PATIENCE + seconds(0.1)));
        assert!(watch.outcome().is_ok(), "silent ever since");
    }

    #[test]
    fn ours_must_also_call_it_ejected_and_without_a_break() {
        let mut watch = with_others(true);
        watch.arrived(true, [0.2].map(seconds).into_iter());
        assert!(!watch.is_over(seconds(9.0)), "never called ejected");
        watch.ejected(seconds(9.1), true);
        watch.ejected(seconds(9.2), false);
        watch.ejected(seconds(9.3), true);
        watch.ejected(seconds(9.4), true);
        assert!(!watch.is_over(seconds(11.2)));
        assert!(watch.is_over(seconds(11.4)));
        assert_eq!(watch.outcome().expect("out"), seconds(9.3));
    }

    #[test]
    fn an_endpoint_that_is_never_out_has_no_figure() {
        let mut watch = with_others(false);
        for tenth in 0..205_u32 {
            watch.arrived(true, [seconds(f64::from(tenth) / 10.0)].into_iter());
        }
        assert!(watch.is_over(seconds(20.5)));
        let error = watch.outcome().expect_err("still used");
        assert!(error.to_string().contains("more may follow"), "{error}");
    }

    #[test]
    fn the_admin_endpoint_is_asked_about_the_right_one() {
        let text = r#"{"default/pool": {"endpoints": [
            {"address": "127.0.0.1:1", "ejected": false}, {"address": "127.0.0.1:2", "ejected": true}]}}"#;
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert!(!is_ejected(text, at(1)).expect("there"));
        assert!(is_ejected(text, at(2)).expect("there"));
        assert!(is_ejected(text, at(3)).is_err());
    }

    #[test]
    fn our_policies_are_valid() {
        for variant in VARIANTS.iter().filter(|variant| variant.proxy == Contender::Towpath) {
            let endpoints = (1..=6).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
            let terms = (variant.terms)();
            assert_valid(vec![Pool { name: "pool", prefix: "/", http2: false, endpoints, terms }]);
        }
    }
}
