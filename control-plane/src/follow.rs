//! Follows the source: look, validate, publish; and again when time is up,
//! something changed, or somebody asks.

mod compile;

use std::{pin::pin, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::timeout,
};

use crate::{
    carbon::Intensities,
    dns::Names,
    hub::Hub,
    places::Places,
    source::{Follower, Look, Revision, SourceError, Watch, short},
    status::{Current, Finding, Moment, Rejected, Shared, unix_ms},
    store::Store,
};

/// A source that takes longer than this to answer is not waited for if there
/// are last good policies of an earlier run.
const RESTORE_AFTER: Duration = Duration::from_secs(3);
/// Longest pause after failures, unless the poll itself is slower.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// A source that is being written to is looked at once it was quiet for so long …
const QUIET: Duration = Duration::from_millis(50);
/// … but after so many changes at the latest.
const MAX_RESTLESS: usize = 20;
/// Requests for a look that may wait.
pub(crate) const MAX_REQUESTS: usize = 64;
/// Findings of a rejected version that are logged.
const FINDINGS_LOGGED: usize = 20;

/// The answer to a request for a look.
pub(crate) type Request = oneshot::Sender<Refreshed>;

/// What a look at the source came to: the JSON of `POST /refresh`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Refreshed {
    /// In one word.
    pub outcome: Outcome,
    /// The version that is served after it; `None` before the first valid one.
    pub version: Option<String>,
    /// The newest version, where it is not fit to be served.
    pub rejected: Option<Rejected>,
    /// Why the source could not be read, and what to do.
    pub error: Option<String>,
}

/// What a look at the source came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// A new version is served.
    Applied,
    /// The newest version is served already.
    #[default]
    Unchanged,
    /// The newest version is not fit to be served; the last good one stays.
    Rejected,
    /// The source could not be read; the last good version stays.
    Failed,
}

/// Everything that following takes.
pub(crate) struct Follow {
    pub(crate) follower: Follower,
    pub(crate) store: Store,
    pub(crate) names: Names,
    pub(crate) places: Places,
    pub(crate) intensities: Intensities,
    pub(crate) hub: Arc<Hub>,
    pub(crate) shared: Arc<Shared>,
    /// Time between looks.
    pub(crate) poll: Duration,
}

/// The task that follows.
struct Following {
    follower: Follower,
    publisher: Publisher,
    poll: Duration,
    changed: Arc<Notify>,
    requests: mpsc::Receiver<Request>,
    watch: Option<Watch>,
}

/// What is done with what was found.
struct Publisher {
    store: Store,
    names: Names,
    places: Places,
    intensities: Intensities,
    hub: Arc<Hub>,
    shared: Arc<Shared>,
}

/// What came of the first look.
#[derive(Clone, Debug, Default)]
pub(crate) struct First {
    /// Why there is nothing to follow, where waiting does not mend it.
    pub(crate) hopeless: Option<String>,
}

impl Follow {
    /// Follows until all who may request a look are gone. `changed` hints at
    /// something new; `first` is told of the first look.
    pub(crate) async fn run(
        self,
        changed: Arc<Notify>,
        requests: mpsc::Receiver<Request>,
        first: watch::Sender<Option<First>>,
    ) {
        let Self { follower, store, names, places, intensities, hub, shared, poll } = self;
        let publisher = Publisher { store, names, places, intensities, hub, shared };
        let following = Following { follower, publisher, poll, changed, requests, watch: None };
        following.run(first).await;
    }
}

impl Following {
    async fn run(mut self, first: watch::Sender<Option<First>>) {
        let mut waiting: Vec<Request> = Vec::new();
        loop {
            self.renew_watch();
            let (refreshed, hopeless) = self.look().await;
            for request in waiting.drain(..) {
                // Who asked may have gone.
                let _ = request.send(refreshed.clone());
            }
            if first.borrow().is_none() {
                first.send_replace(Some(First { hopeless }));
            }
            tokio::select! {
                () = tokio::time::sleep(self.pause()) => {}
                () = self.changed.notified() => self.quiet().await,
                request = self.requests.recv() => match request {
                    Some(request) => waiting.push(request),
                    None => return,
                },
            }
            while let Ok(request) = self.requests.try_recv() {
                waiting.push(request);
            }
        }
    }

    /// One look, with everything that follows from it.
    async fn look(&mut self) -> (Refreshed, Option<String>) {
        let Self { follower, publisher, .. } = self;
        let seen = Moment::now();
        let looked = {
            let mut look = pin!(follower.look());
            match timeout(RESTORE_AFTER, &mut look).await {
                Ok(looked) => looked,
                Err(_) => {
                    publisher.restore("the source is slow to answer").await;
                    look.await
                }
            }
        };
        let hopeless = match &looked {
            Err(error) if error.is_lasting() => Some(error.to_string()),
            _ => None,
        };
        let refreshed = publisher.take(looked, seen).await;
        (refreshed, hopeless)
    }

    /// Waits until whoever writes seems to be done.
    async fn quiet(&self) {
        for _ in 0..MAX_RESTLESS {
            if timeout(QUIET, self.changed.notified()).await.is_err() {
                return;
            }
        }
    }

    fn pause(&self) -> Duration {
        let failures = self.publisher.shared.look(|tracker| tracker.failures());
        pause_after(self.poll, failures)
    }

    /// What is watched may have come, gone, or been replaced since the last look.
    fn renew_watch(&mut self) {
        let wanted = self.follower.watched();
        if let (Some(watch), Some(wanted)) = (&self.watch, &wanted)
            && watch.is_of(wanted)
        {
            return;
        }
        self.watch = wanted.and_then(|watched| {
            Watch::start(watched, self.changed.clone())
                .inspect_err(|error| tracing::debug!(%error, "no watch; the poll finds changes"))
                .ok()
        });
    }
}

impl Publisher {
    async fn take(&mut self, looked: Result<Look, SourceError>, seen: Moment) -> Refreshed {
        let revision = match looked {
            Err(error) => return self.failed(&error).await,
            Ok(look) => {
                let recovered = self.shared.look(|tracker| tracker.failures()) > 0;
                if recovered {
                    tracing::info!("the source can be read again");
                }
                self.shared.update(|tracker| tracker.source_read(Moment::now()));
                match look {
                    Look::Unchanged => return self.standing(),
                    Look::Changed(revision) => revision,
                }
            }
        };
        if revision.version == self.hub.version() {
            self.shared.update(|tracker| tracker.returned());
            return self.standing();
        }
        match compile::compile(&revision, self.places.asks()).await {
            Ok(compiled) => {
                self.publish(compiled, &revision, seen, false).await;
                self.save(revision).await;
                Refreshed { outcome: Outcome::Applied, ..self.standing() }
            }
            Err(refusal) => {
                self.reject(&revision, refusal, seen);
                self.restore("the newest version is not valid").await;
                self.standing()
            }
        }
    }

    /// How things stand without a new version.
    fn standing(&self) -> Refreshed {
        let rejected = self.shared.look(|tracker| tracker.rejection().cloned());
        let outcome = if rejected.is_some() { Outcome::Rejected } else { Outcome::Unchanged };
        let version = Some(self.hub.version()).filter(|version| !version.is_empty());
        Refreshed { outcome, version, rejected, error: None }
    }

    async fn failed(&mut self, error: &SourceError) -> Refreshed {
        let error = error.to_string();
        let mut news = false;
        self.shared.update(|tracker| news = tracker.source_failed(error.clone()));
        if news {
            tracing::error!("{error}");
        }
        self.restore("the source cannot be read").await;
        Refreshed { outcome: Outcome::Failed, error: Some(error), ..self.standing() }
    }

    async fn publish(
        &mut self,
        compiled: compile::Compiled,
        revision: &Revision,
        seen: Moment,
        restored: bool,
    ) {
        let compile::Compiled { mesh, warnings, objects } = compiled;
        self.names.follow(&mesh).await;
        self.places.follow(&mesh);
        self.intensities.follow(&mesh);
        let now = Moment::now();
        let current = Current {
            version: revision.version.clone(),
            commit: revision.commit.clone(),
            branch: revision.branch.clone(),
            published_unix_ms: unix_ms(now.wall),
            restored,
            listeners: mesh.listeners.len(),
            route_tables: mesh.routes.len(),
            services: mesh.services.len(),
            warnings,
        };
        for warning in &current.warnings {
            tracing::warn!("{warning}");
        }
        let subject = current.commit.as_ref().map_or("", |commit| commit.subject.as_str());
        tracing::info!(
            version = short(&current.version),
            subject,
            listeners = current.listeners,
            services = current.services,
            "policies are served"
        );
        // Told before it happens, so that no acknowledgement comes too early.
        let hub = self.hub.clone();
        self.shared.update(move |tracker| {
            let changed = hub.publish(mesh);
            tracker.published(current, seen, now, &changed);
            tracker.judged(objects, true);
        });
    }

    fn reject(&self, revision: &Revision, refusal: compile::Refusal, seen: Moment) {
        let compile::Refusal { diagnostics, left_out, objects } = refusal;
        let version = short(&revision.version);
        tracing::error!(
            version,
            "policies are not valid and are not served; the last good ones stay"
        );
        for finding in diagnostics.iter().take(FINDINGS_LOGGED) {
            tracing::error!("{finding}");
        }
        let rejected = Rejected {
            version: revision.version.clone(),
            commit: revision.commit.clone(),
            seen_unix_ms: unix_ms(seen.wall),
            diagnostics,
            left_out,
        };
        self.shared.update(|tracker| {
            tracker.rejected(rejected);
            tracker.judged(objects, false);
        });
    }

    /// Serves the last good policies of an earlier run, if nothing is served yet.
    async fn restore(&mut self, why: &str) {
        if !self.hub.version().is_empty() {
            return;
        }
        let place = self.store.place();
        let Ok(Some(revision)) = tokio::task::spawn_blocking(move || place.load()).await else {
            return;
        };
        match compile::compile(&revision, self.places.asks()).await {
            Ok(compiled) => {
                tracing::warn!("{why}: the last good policies of an earlier run are served");
                self.publish(compiled, &revision, Moment::now(), true).await;
            }
            Err(_) => {
                tracing::warn!("the last good policies of an earlier run are not valid any more");
            }
        }
    }

    async fn save(&self, revision: Revision) {
        let place = self.store.place();
        let saved = tokio::task::spawn_blocking(move || place.save(&revision)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "the last good policies cannot be kept on disk; a restart will need the source");
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.file.as_os_str().is_empty() {
            write!(f, "{}:{}: ", self.file.display(), self.line)?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

/// The pause before the next look after so many failures in a row.
fn pause_after(poll: Duration, failures: u32) -> Duration {
    let doubled = poll.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(MAX_PAUSE.max(poll))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_make_looks_rarer_but_never_rarer_than_a_minute() {
        let pauses = |poll: u64| {
            [0, 1, 2, 3, 30].map(|n| pause_after(Duration::from_secs(poll), n).as_secs())
        };
        assert_eq!(pauses(5), [5, 5, 10, 20, 60]);
        assert_eq!(pauses(300), [300, 300, 300, 300, 300]);
    }
}
