//! One run from plan to verdict, and many of them.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{IsTerminal, Write as _},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{net::TcpStream, time::timeout};
use towpath_proxy::metrics;

use super::{
    Limits,
    answer::Outcome,
    check::{self, Counted, TALLIES},
    client::Client,
    mesh::Mesh,
    origin::Origin,
    plan::{Event, EventKind, Plan},
    scene::Scene,
};

/// A run that broke a promise.
#[derive(Debug)]
pub struct Failure {
    /// Replays it.
    pub seed: u64,
    /// What is wrong, the plan and the story.
    pub report: String,
}

/// What a campaign came to.
#[derive(Debug, Default)]
pub struct Report {
    /// The runs that broke a promise.
    pub failures: Vec<Failure>,
    /// How often what the proxies can do came to pass, by their own counters.
    pub tallies: BTreeMap<&'static str, u64>,
}

/// What a campaign does.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Seed of the first run; each further one has the next.
    pub seed: u64,
    /// How many.
    pub runs: u64,
    /// What is drawn from.
    pub limits: Limits,
    /// The story of every run is printed, not only of those that fail.
    pub verbose: bool,
}

/// No run takes so long, besides the time for its bytes: that something hangs is told by this, and
/// by nothing else.
const MOST: Duration = Duration::from_secs(30);
/// Any machine moves so many bytes a second.
const SLOWEST: u64 = 8 << 20;
/// Nor does what is left after it.
const SETTLE: Duration = Duration::from_secs(10);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(1);

impl Campaign {
    /// Makes the runs, one after the other; every failure is printed as it happens.
    ///
    /// # Panics
    /// When this machine has no runtime to offer.
    pub fn run(&self) -> Report {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let progress = std::io::stderr().is_terminal() && !self.verbose;
        let mut report = Report::default();
        // What a process opens once and keeps is no leak of the first run.
        let calm = Limits { max_size: 1, ..self.limits.clone() };
        let first = runtime.block_on(staged(Scene::new(Plan::draw(0, &calm))));
        assert!(first.is_ok(), "nothing can be started here: {first:?}");
        let begun = Instant::now();
        for index in 0..self.runs {
            let seed = self.seed.wrapping_add(index);
            let plan = Plan::draw(seed, &self.limits);
            let (scene, seen) = runtime.block_on(one(plan));
            if self.verbose {
                println!("{}{}", scene.plan, scene.story());
            }
            for (name, count) in seen.tallies {
                *report.tallies.entry(name).or_default() += count;
            }
            if !seen.wrong.is_empty() {
                let text = self.describe(&scene, &seen.wrong);
                eprintln!("{text}");
                report.failures.push(Failure { seed, report: text });
            }
            if progress {
                let rate = (index + 1) as f64 / begun.elapsed().as_secs_f64();
                let _ = write!(
                    std::io::stderr(),
                    "\r{}/{} runs, {} failed, {rate:.0}/s ",
                    index + 1,
                    self.runs,
                    report.failures.len()
                );
            }
        }
        if progress {
            eprintln!();
        }
        report
    }

    fn describe(&self, scene: &Scene, wrong: &[String]) -> String {
        let mut report = format!("FAILED {}", scene.plan);
        for what in wrong {
            report.push_str(&format!("  WRONG {what}\n"));
        }
        let Limits { max_size, skip } = &self.limits;
        let seed = scene.plan.seed;
        report.push_str(&format!("  AGAIN --runs 1 --seed {seed} --max-size {max_size}"));
        if !skip.is_empty() {
            let names: Vec<_> = skip.iter().map(String::as_str).collect();
            report.push_str(&format!(" --skip {}", names.join(",")));
        }
        report.push('\n');
        report.push_str(&scene.story());
        report
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tallies: Vec<_> =
            self.tallies.iter().map(|(name, count)| format!("{count} {name}")).collect();
        write!(f, "came to pass: {}", tallies.join(", "))
    }
}

/// What was seen of a run.
#[derive(Debug, Default)]
struct Seen {
    wrong: Vec<String>,
    tallies: Vec<(&'static str, u64)>,
}

/// Makes a run.
async fn one(plan: Plan) -> (Arc<Scene>, Seen) {
    let scene = Scene::new(plan);
    let before = Left::now();
    let bytes: u64 = scene.plan.requests().map(|r| r.up.size + r.down.size).sum();
    let most = MOST + Duration::from_secs(bytes / SLOWEST);
    let wrong = |what| Seen { wrong: vec![what], ..Seen::default() };
    let mut seen = match timeout(most, staged(scene.clone())).await {
        Ok(Ok(seen)) => seen,
        Ok(Err(error)) => wrong(format!("could not be made: {error:#}")),
        Err(_) => wrong(format!("hung for {most:?}")),
    };
    if let Err(after) = settled(|| Some(Left::now()).filter(|now| !now.is_within(&before))).await {
        seen.wrong.push(format!("left behind: {after:?}, before: {before:?}"));
    }
    (scene, seen)
}

async fn staged(scene: Arc<Scene>) -> anyhow::Result<Seen> {
    let plan = &scene.plan;
    let mut origins = Vec::new();
    for endpoint in 0..plan.endpoints + plan.spares {
        origins.push(Origin::start(scene.clone(), endpoint).await?);
    }
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
    let (first, _) = addresses.split_at(plan.endpoints);
    let mesh = Mesh::start(plan, first).await?;
    let client = Client::new(mesh.address, scene.clone());
    let mut outcomes: Vec<Vec<Outcome>> = plan.lanes.iter().map(|_| Vec::new()).collect();
    let lanes =
        join_all(plan.lanes.iter().zip(&mut outcomes).map(|(lane, seen)| client.lane(lane, seen)));
    let event = async {
        if let Some(event) = plan.event {
            happen(&scene, event, &mesh, &origins).await?;
        }
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        _ = lanes => {}
        failed = event => failed?,
    }
    drop(client);
    scene.tell("all clients are done");
    let outcomes: Vec<Outcome> = outcomes.into_iter().flatten().collect();
    let mut wrong = settle(&mesh).await;
    drain(&mesh, &mut wrong).await;
    let page = crate::get(mesh.inner().admin_addr(), "/metrics", "localhost").await;
    if let Some(sidecar) = &mesh.sidecar {
        // Brings the gauges of this one up to date too.
        crate::get(sidecar.admin_addr(), "/metrics", "localhost").await;
    }
    let text = page.map(|(_, text)| text).unwrap_or_default();
    let names: Vec<_> = addresses.iter().map(|address| Mesh::endpoint(*address)).collect();
    let inner = mesh.service("sidecar");
    let outer = mesh.service(if plan.sidecar.is_some() { "gateway" } else { "sidecar" });
    let counted = Counted { text: &text, outer: &outer, inner: &inner, endpoints: &names };
    // What a reload takes out of the configuration, it takes out of the counters.
    let reloaded = matches!(plan.event, Some(Event { kind: EventKind::OtherService, .. }));
    let counted = Some(&counted).filter(|_| !reloaded);
    wrong.extend(check::check(plan, &scene.attempts(), &outcomes, counted));
    let tally = |counted: &Counted<'_>| {
        TALLIES.map(|(name, metric, label)| (name, counted.of_run(metric, label))).to_vec()
    };
    let tallies = counted.map(tally).unwrap_or_default();
    mesh.forget();
    shut_down(mesh, &origins, &mut wrong).await;
    Ok(Seen { wrong, tallies })
}

/// Waits for its time, then does what the plan says.
async fn happen(
    scene: &Scene,
    event: Event,
    mesh: &Mesh,
    origins: &[Origin],
) -> anyhow::Result<()> {
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
    let (_, spare) = addresses.split_at(scene.plan.endpoints);
    scene.passed(event.after_bytes).await;
    scene.tell(format_args!("{:?}", event.kind));
    match event.kind {
        EventKind::Kill(endpoint) => origins[endpoint].kill(),
        EventKind::OtherEndpoints | EventKind::OtherService => {
            mesh.reload(event.kind, spare).await?;
        }
        EventKind::MoreEndpoints => mesh.reload(event.kind, &addresses).await?,
        EventKind::PlaneGone => mesh.lose_plane(),
        EventKind::Drain => mesh.gateway.drain(),
    }
    Ok(())
}

/// Waits until nothing is in flight any more, and nothing counts as if it were.
async fn settle(mesh: &Mesh) -> Vec<String> {
    let mut wrong = Vec::new();
    for (proxy, _) in mesh.proxies() {
        let busy = || Some(proxy.leftovers()).filter(|l| l.requests > 0 || l.bytes_in_flight > 0);
        if let Err(left) = settled(busy).await {
            wrong.push(format!("still in flight: {left:?}"));
        }
        let end = Instant::now() + SETTLE;
        loop {
            let shown = crate::get(proxy.admin_addr(), "/endpoints", "localhost").await;
            let left = check::left_counted(&shown.map(|(_, text)| text).unwrap_or_default());
            if left.is_empty() {
                break;
            }
            if Instant::now() >= end {
                wrong.push(format!("still counted: {}", left.join(", ")));
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    wrong
}

/// Has the proxies finish, after which all is counted.
async fn drain(mesh: &Mesh, wrong: &mut Vec<String>) {
    for (proxy, address) in mesh.proxies() {
        proxy.drain();
        // Until its socket is closed, it may yet take what the kernel holds for it.
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(LOOK).await;
        }
        if let Some(left) = proxy.drained().await {
            wrong.push(format!("not drained: {left:?}"));
        }
    }
}

/// Ends the proxies, and sees their connections go.
async fn shut_down(mesh: Mesh, origins: &[Origin], wrong: &mut Vec<String>) {
    for proxy in [Some(mesh.gateway), mesh.sidecar].into_iter().flatten() {
        proxy.shutdown();
    }
    let standing = || Some(origins.iter().map(Origin::open).sum::<usize>()).filter(|n| *n > 0);
    if let Err(count) = settled(standing).await {
        wrong.push(format!("{count} connections to endpoints stand"));
    }
}

/// What a run must not leave more of.
#[derive(Debug)]
struct Left {
    descriptors: usize,
    tasks: usize,
    /// Bytes of bodies on disk.
    spooled: i64,
}

impl Left {
    fn now() -> Self {
        Self {
            descriptors: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            spooled: metrics::registry().gauge("towpath_spool_bytes", &[]).value(),
        }
    }

    fn is_within(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors
            && self.tasks <= before.tasks
            && self.spooled == before.spooled
    }
}

/// Waits until there is nothing left to see; what there still is, when that takes too long.
async fn settled<T>(mut left: impl FnMut() -> Option<T>) -> Result<(), T> {
    let end = Instant::now() + SETTLE;
    while let Some(still) = left() {
        if Instant::now() >= end {
            return Err(still);
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
