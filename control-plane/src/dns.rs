//! Endpoints by DNS: one task per service asks again and again, keeps the last
//! good addresses, and changes that service's endpoint set alone.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use towpath_policies::{
    dns,
    model::{Discovery, Mesh, ResourceKey, ResourceKind},
};

use crate::{
    hub::Hub,
    status::{Moment, Shared},
};

/// Time allowed for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a new mesh waits for the first answers of names it brings, so that
/// most come in one piece with it.
const FIRST_ANSWERS: Duration = Duration::from_millis(100);
/// How long proxies wait for the first answer of a name. Without one its
/// service is served without endpoints until there is one.
const FIRST_VERDICT: Duration = Duration::from_secs(2);
/// First pause after a failure; doubles up to the service's refresh interval.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Share of the interval by which it is shortened at random, in per cent, so
/// that many names (and many control planes) do not ask in step.
const JITTER_PERCENT: u32 = 10;

type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Asks for all addresses of a host and port.
#[derive(Clone)]
pub struct Resolver(Arc<dyn Fn(String, u16) -> Answer + Send + Sync>);

impl Resolver {
    /// The operating system's resolver (`/etc/hosts`, DNS).
    pub fn system() -> Self {
        Self::new(
            |host, port| async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) },
        )
    }

    /// A resolver of one's own.
    pub fn new<F, A>(ask: F) -> Self
    where
        F: Fn(String, u16) -> A + Send + Sync + 'static,
        A: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        Self(Arc::new(move |host, port| Box::pin(ask(host, port))))
    }

    async fn ask(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        let answer = (self.0)(host.to_owned(), port);
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(addresses)) if addresses.is_empty() => Err("no address".to_owned()),
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// The names a mesh asks for, each with its task.
pub(crate) struct Names {
    resolver: Resolver,
    hub: Arc<Hub>,
    shared: Arc<Shared>,
    running: BTreeMap<String, Running>,
}

/// What one service asks for.
#[derive(Clone, Debug)]
struct Question {
    service: String,
    host: String,
    port: u16,
    refresh: Duration,
    /// As the mesh has it.
    asked: Discovery,
    /// File and line of the service.
    place: Option<String>,
}

struct Running {
    /// As the mesh has it.
    asked: Discovery,
    /// Turns true with the first answer or failure.
    said: watch::Receiver<bool>,
    _task: AbortOnDropHandle<()>,
}

impl Names {
    pub(crate) fn new(resolver: Resolver, hub: Arc<Hub>, shared: Arc<Shared>) -> Self {
        Self { resolver, hub, shared, running: BTreeMap::new() }
    }

    /// Asks for the names of `mesh`, no longer for others, and waits a moment
    /// for the first answers, so that the mesh starts with addresses.
    pub(crate) async fn follow(&mut self, mesh: &Mesh) {
        let questions = questions(mesh);
        let kept: BTreeMap<String, Option<String>> =
            questions.iter().map(|q| (q.service.clone(), q.place.clone())).collect();
        self.running.retain(|service, _| kept.contains_key(service));
        self.shared.update(|tracker| tracker.keep_names(&kept));
        for question in questions {
            if self.running.get(&question.service).is_some_and(|r| r.asked == question.asked) {
                continue;
            }
            let service = question.service.clone();
            let running = self.ask(question);
            // Ends the task of an earlier question of the same service.
            self.running.insert(service, running);
        }
        let all_asked = async {
            for running in self.running.values_mut() {
                // An error means that the task ended, which waiting does not mend.
                let _ = running.said.wait_for(|asked| *asked).await;
            }
        };
        // Who is slower comes later, and holds up nothing but its own service.
        let _ = tokio::time::timeout(FIRST_ANSWERS, all_asked).await;
    }

    fn ask(&self, question: Question) -> Running {
        let (tell, said) = watch::channel(false);
        let asked = question.asked.clone();
        let (resolver, hub, shared) =
            (self.resolver.clone(), self.hub.clone(), self.shared.clone());
        let task = follow(question, resolver, hub, shared, tell);
        Running { asked, said, _task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }
}

/// Asks one name for ever.
async fn follow(
    question: Question,
    resolver: Resolver,
    hub: Arc<Hub>,
    shared: Arc<Shared>,
    tell: watch::Sender<bool>,
) {
    let Question { service, host, port, refresh, asked, place } = question;
    let place = place.unwrap_or_default();
    let told = |answer: Result<usize, &str>| {
        shared.update(|tracker| {
            tracker.resolved(&service, format!("{host}:{port}"), answer, Moment::now());
        });
    };
    let mut failures = 0_u32;
    let verdict = Instant::now() + FIRST_VERDICT;
    let mut undecided = true;
    loop {
        let started = Instant::now();
        let mut asking = pin!(resolver.ask(&host, port));
        let outcome = match timeout_at(verdict, &mut asking).await {
            Ok(outcome) => outcome,
            Err(_) => {
                if std::mem::take(&mut undecided) {
                    let error = format!("no answer within {} s so far", FIRST_VERDICT.as_secs());
                    tracing::warn!(%service, %host, %place, %error, "name does not resolve; its service has no endpoints unless a proxy knows some from before");
                    told(Err(&error));
                    hub.set_unresolved(&asked, &service);
                }
                asking.await
            }
        };
        undecided = false;
        let known = outcome.is_ok();
        told(outcome.as_ref().map(Vec::len).map_err(String::as_str));
        match outcome {
            Ok(addresses) => {
                failures = 0;
                hub.set_resolved(&asked, dns::endpoint_set(&service, addresses));
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                hub.set_unresolved(&asked, &service);
                if failures == 1 {
                    tracing::warn!(%service, %host, %place, %error, "name does not resolve; last known addresses stay");
                }
            }
        }
        tell.send_replace(true);
        let interval = if known { refresh } else { pause_after(failures, refresh) };
        tokio::time::sleep_until(started + shortened(interval, fastrand::u32(..))).await;
    }
}

fn questions(mesh: &Mesh) -> Vec<Question> {
    let ask = |service: &Arc<towpath_policies::model::Service>| match &service.discovery {
        Discovery::Listed | Discovery::OriginalDestination => None,
        Discovery::Dns { host, port, refresh } => Some(Question {
            service: service.name.clone(),
            host: host.clone(),
            port: *port,
            refresh: (*refresh).max(Duration::from_secs(1)),
            asked: service.discovery.clone(),
            place: mesh
                .sources
                .get(&ResourceKey { kind: ResourceKind::EndpointSet, name: service.name.clone() })
                .map(ToString::to_string),
        }),
    };
    mesh.services.values().filter_map(ask).collect()
}

/// The pause after the n-th failure in a row, n ≥ 1.
fn pause_after(failures: u32, refresh: Duration) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(refresh)
}

/// `interval` less a share of at most [`JITTER_PERCENT`] that `chance` picks.
fn shortened(interval: Duration, chance: u32) -> Duration {
    let share = f64::from(chance) / f64::from(u32::MAX) * f64::from(JITTER_PERCENT) / 100.0;
    interval.mul_f64(1.0 - share)
}

#[cfg(test)]
mod tests;
