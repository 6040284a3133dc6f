//! The zones of the mesh that is served: each is asked for every 5 to 15 minutes, beside everything
//! else, and what is said goes to the hub.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;
use towpath_policies::model::Mesh;

use super::{CarbonApi, CarbonError, cache::Cache};
use crate::{hub::Hub, store::Place};

/// The file of answers in the state folder.
const FILE: &str = "carbon.json";
/// Largest such file that is read.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Most zones that are asked for; there are some 350.
const MOST_ZONES: usize = 1000;
/// Time until a zone is asked for again, at least and at most.
const PERIOD: (Duration, Duration) = (Duration::from_secs(5 * 60), Duration::from_secs(15 * 60));
/// A zone that it does not know is asked for again after this.
const UNKNOWN_AGAIN: Duration = Duration::from_secs(3600);

type Zones = BTreeSet<String>;

/// Sees to the carbon intensities of the mesh that is served.
pub(crate) struct Intensities {
    asking: Option<Asking>,
}

struct Asking {
    hub: Arc<Hub>,
    cache: Arc<Mutex<Cache>>,
    clock: Clock,
    wanted: watch::Sender<Arc<Zones>>,
    _task: AbortOnDropHandle<()>,
}

/// The wall clock at the start, and from there on the one that does not jump.
#[derive(Clone, Copy)]
struct Clock {
    wall: SystemTime,
    since: Instant,
}

impl Intensities {
    /// Knows what is stored at `place`, and asks `api` where there is one.
    pub(crate) fn new(api: Option<Arc<CarbonApi>>, hub: Arc<Hub>, place: Place) -> Self {
        let asking = api.map(|api| {
            let clock = Clock { wall: SystemTime::now(), since: Instant::now() };
            let cache = Arc::new(Mutex::new(load(&place)));
            let (wanted, zones) = watch::channel(Arc::default());
            let asker = Asker {
                api,
                hub: hub.clone(),
                place,
                cache: cache.clone(),
                clock,
                due: BTreeMap::new(),
                not_before: None,
                failing: Failing::default(),
            };
            let task = AbortOnDropHandle::new(tokio::spawn(asker.run(zones)));
            Asking { hub, cache, clock, wanted, _task: task }
        });
        Self { asking }
    }

    /// Puts in what is known for a mesh that is about to be served, and asks for its zones from now on.
    /// Waits for nothing.
    pub(crate) fn follow(&self, mesh: &Mesh) {
        let Some(Asking { hub, cache, clock, wanted, .. }) = &self.asking else { return };
        let mut cache = locked(cache);
        cache.expire(clock.now());
        hub.set_intensities(cache.known());
        drop(cache);
        wanted.send_replace(Arc::new(zones(mesh)));
    }
}

struct Asker {
    api: Arc<CarbonApi>,
    hub: Arc<Hub>,
    place: Place,
    cache: Arc<Mutex<Cache>>,
    clock: Clock,
    /// When zones are asked for again.
    due: BTreeMap<String, Instant>,
    /// After a failure, and between calls.
    not_before: Option<Instant>,
    failing: Failing,
}

/// The zones for which it could not be asked the last time. The log has a line for the first, and one when
/// there is none any more: a zone that is never to be had among many that are is told of once.
#[derive(Default)]
struct Failing(Zones);

impl Asker {
    async fn run(mut self, mut wanted: watch::Receiver<Arc<Zones>>) {
        loop {
            let zones = wanted.borrow_and_update().clone();
            self.due.retain(|zone, _| zones.contains(zone));
            self.failing.0.retain(|zone| zones.contains(zone));
            self.expire();
            let now = Instant::now();
            let rest = self.not_before.map(|at| at.saturating_duration_since(now));
            let (zone, wait) = self.next(&zones, now);
            let wait = wait.max(rest.unwrap_or_default());
            if let Some(zone) = zone.filter(|_| wait.is_zero()) {
                self.ask(&zone).await;
                continue;
            }
            let expires = locked(&self.cache).expires_in(self.clock.now());
            let pause = wait.min(expires.unwrap_or(PERIOD.1)).max(Duration::from_millis(100));
            tokio::select! {
                () = sleep(pause) => {}
                changed = wanted.changed() => if changed.is_err() { return },
            }
        }
    }

    /// The zone that is due first, and the time until then.
    fn next(&self, zones: &Zones, now: Instant) -> (Option<String>, Duration) {
        // Those that were never asked for come first, then who has waited longest: one that always
        // fails keeps no other back.
        match zones.iter().map(|zone| (self.due.get(zone), zone)).min() {
            Some((due, zone)) => {
                let wait = due.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
                (Some(zone.clone()), wait)
            }
            None => (None, PERIOD.1),
        }
    }

    async fn ask(&mut self, zone: &str) {
        let answer = self.api.latest(zone).await;
        let now = Instant::now();
        self.not_before = Some(now + CarbonApi::spacing());
        let away = matches!(answer, Err(CarbonError::Unavailable { .. }));
        if !away && self.failing.answered(zone) {
            tracing::info!("the carbon API answers again, for all zones");
        }
        match answer {
            Ok(grams) => {
                tracing::debug!(zone, grams, "carbon intensity");
                self.due.insert(zone.to_owned(), now + period());
                locked(&self.cache).put(zone, grams, self.clock.now());
                self.hub.set_intensity(zone, Some(grams));
                self.save().await;
            }
            Err(CarbonError::Zone(why)) => {
                tracing::warn!(zone, why, "the carbon API does not tell of this zone");
                self.due.insert(zone.to_owned(), now + UNKNOWN_AGAIN);
            }
            Err(CarbonError::Unavailable { wait, why }) => {
                self.not_before = Some(now + wait);
                self.due.insert(zone.to_owned(), now + wait);
                if self.failing.failed(zone) {
                    tracing::warn!(
                        zone,
                        why,
                        "the carbon API is not to be had; what it said before counts on"
                    );
                }
            }
        }
    }

    /// Lets what the policies say count again where the last answer is too old.
    fn expire(&self) {
        let old = locked(&self.cache).expire(self.clock.now());
        for zone in old {
            tracing::warn!(
                zone,
                "its last carbon intensity is too old; what the policies say counts"
            );
            self.hub.set_intensity(&zone, None);
        }
    }

    async fn save(&self) {
        let (place, cache) = (self.place.clone(), self.cache.clone());
        let saved = tokio::task::spawn_blocking(move || {
            let bytes = locked(&cache).write()?;
            place.keep(FILE, &bytes)
        });
        if let Ok(Err(error)) = saved.await {
            tracing::warn!(%error, "carbon intensities cannot be kept on disk");
        }
    }
}

impl Failing {
    /// Whether that is news.
    fn failed(&mut self, zone: &str) -> bool {
        let first = self.0.is_empty();
        self.0.insert(zone.to_owned());
        first
    }

    /// Whether it was the last that failed.
    fn answered(&mut self, zone: &str) -> bool {
        self.0.remove(zone) && self.0.is_empty()
    }
}

impl Clock {
    fn now(self) -> SystemTime {
        self.wall + self.since.elapsed()
    }
}

/// The zones of a mesh.
fn zones(mesh: &Mesh) -> Zones {
    let regions = mesh.endpoints.values().flat_map(|set| set.regions.values());
    let zones = regions.filter_map(|region| region.electricity_maps_zone.clone());
    zones.collect::<Zones>().into_iter().take(MOST_ZONES).collect()
}

/// Never the same, so that many who began together do not ask together.
fn period() -> Duration {
    PERIOD.0 + (PERIOD.1 - PERIOD.0).mul_f64(fastrand::f64())
}

fn load(place: &Place) -> Cache {
    let kept = match place.kept(FILE, MAX_FILE_BYTES) {
        Ok(None) => return Cache::default(),
        Ok(Some(bytes)) => Cache::read(&bytes).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    kept.unwrap_or_else(|error| {
        tracing::warn!(error, "the carbon intensities kept before cannot be read");
        Cache::default()
    })
}

fn locked(cache: &Mutex<Cache>) -> MutexGuard<'_, Cache> {
    // Every change of it is one call that does not panic.
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
