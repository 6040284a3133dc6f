//! The places that a mesh names: those that a map service is to be asked for are asked for one
//! after the other, beside everything else, and the answers go to the hub.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;
use towpath_policies::{
    model::{Coordinates, Mesh, ResourceKey, ResourceKind},
    places,
};

use super::{AskFor, Locate, MapService, Maps, PlaceError, cache::Cache};
use crate::{
    hub::Hub,
    status::{Shared, UnknownPlace},
    store::Place,
};

/// The file of answers in the state folder.
const FILE: &str = "places.json";
/// Largest such file that is read.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Answers that come fast are saved together.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// Pause before the next look at what is due; at least and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));

/// What the status says of a place that is asked for in vain.
const NOBODY: &str = "nobody knows it";

/// Names of places, each with the file and line of a service that names it, and for whom.
type Wanted = BTreeMap<String, String>;

/// Sees to the places of the mesh that is served.
pub(crate) struct Places {
    asking: Option<Asking>,
}

struct Asking {
    ask_for: AskFor,
    hub: Arc<Hub>,
    shared: Arc<Shared>,
    cache: Arc<Mutex<Cache>>,
    wanted: watch::Sender<Arc<Wanted>>,
    _task: AbortOnDropHandle<()>,
}

impl Places {
    /// Knows what is stored at `place`, and asks `maps` where there are any.
    pub(crate) fn new(
        maps: Option<Maps>,
        hub: Arc<Hub>,
        shared: Arc<Shared>,
        place: Place,
    ) -> Self {
        let asking = maps.map(|Maps { service, ask_for }| {
            let cache = Arc::new(Mutex::new(load(&place)));
            let (wanted, names) = watch::channel(Arc::default());
            let asker = Asker {
                service,
                hub: hub.clone(),
                shared: shared.clone(),
                place,
                cache: cache.clone(),
                saved: Instant::now(),
                unsaved: false,
                unsavable: false,
                away: false,
                stuck: None,
            };
            let task = AbortOnDropHandle::new(tokio::spawn(asker.run(names)));
            Asking { ask_for, hub, shared, cache, wanted, _task: task }
        });
        Self { asking }
    }

    /// Whether anybody is asked for what the gazetteer does not know.
    pub(crate) fn asks(&self) -> bool {
        self.asking.is_some()
    }

    /// Puts in what is known of the places of a mesh that is about to be served, and asks for the
    /// others from now on. Waits for nothing.
    pub(crate) fn follow(&self, mesh: &Mesh) {
        let Some(Asking { ask_for, hub, shared, cache, wanted, .. }) = &self.asking else { return };
        let names = names(mesh, *ask_for);
        let cache = locked(cache);
        let known = names.keys().filter_map(|name| Some((name.clone(), cache.coordinates(name)?)));
        hub.set_places(known.collect());
        let unknown = names.iter().filter(|(name, _)| cache.coordinates(name).is_none());
        let unknown = unknown.map(|(name, written_at)| {
            let asked = !cache.due_in(name, SystemTime::now()).is_zero();
            let error = if asked { NOBODY.to_owned() } else { "not asked for yet".to_owned() };
            UnknownPlace { place: name.clone(), source: written_at.clone(), error }
        });
        shared.update(|tracker| tracker.keep_places(unknown.collect()));
        drop(cache);
        wanted.send_replace(Arc::new(names));
    }
}

struct Asker {
    service: Arc<dyn MapService>,
    hub: Arc<Hub>,
    shared: Arc<Shared>,
    place: Place,
    cache: Arc<Mutex<Cache>>,
    /// When the answers were saved last.
    saved: Instant,
    /// There are some that are not.
    unsaved: bool,
    /// They could not be the last time.
    unsavable: bool,
    /// The service could not be asked the last time.
    away: bool,
    /// The name that it was asked for then.
    stuck: Option<String>,
}

impl Asker {
    async fn run(mut self, mut wanted: watch::Receiver<Arc<Wanted>>) {
        loop {
            let names = wanted.borrow_and_update().clone();
            let pause = match self.due(&names) {
                Due::Now(name, written_at) => self.ask(&name, &written_at).await.err(),
                Due::In(pause) => Some(pause),
            };
            let lately = self.saved.elapsed() < SAVE_EVERY;
            if self.unsaved && (pause.is_some() || !lately) {
                self.save(&names).await;
            }
            let Some(mut pause) = pause else { continue };
            if self.unsaved {
                pause = pause.min(PAUSE.0);
            }
            tokio::select! {
                () = sleep(pause) => {}
                // The service's own pace keeps a new mesh from bringing more calls.
                changed = wanted.changed() => if changed.is_err() { return },
            }
        }
    }

    fn due(&self, names: &Wanted) -> Due {
        let (cache, now) = (locked(&self.cache), SystemTime::now());
        let mut pause = PAUSE.1;
        // After one that got no answer comes the next, or a name that never gets any would keep all others
        // from being asked for.
        let stuck = |name: &str| self.stuck.as_deref().is_some_and(|stuck| name <= stuck);
        let later = names.iter().filter(|(name, _)| !stuck(name));
        for (name, written_at) in later.chain(names.iter().filter(|(name, _)| stuck(name))) {
            let wait = cache.due_in(name, now);
            if wait.is_zero() {
                return Due::Now(name.clone(), written_at.clone());
            }
            pause = pause.min(wait);
        }
        Due::In(pause.max(PAUSE.0))
    }

    /// Asks for one place; where there is no answer, the pause after which there may be one.
    async fn ask(&mut self, name: &str, written_at: &str) -> Result<(), Duration> {
        let found = match self.service.find(name).await {
            Ok(found) => {
                if std::mem::take(&mut self.away) {
                    tracing::info!("the map service answers again");
                }
                found.into_iter().next()
            }
            Err(PlaceError::Refused(why)) => {
                tracing::warn!(
                    place = name,
                    written_at,
                    why,
                    "the map service does not take the name"
                );
                None
            }
            Err(error) => {
                let why = error.to_string();
                self.stuck = Some(name.to_owned());
                self.shared.update(|tracker| tracker.placed(name, Err(&why)));
                let pause = error.wait().unwrap_or(PAUSE.0);
                let news = !std::mem::replace(&mut self.away, true);
                if news {
                    tracing::warn!(%error, "the map service is not to be had; what it said before stays");
                }
                return Err(pause);
            }
        };
        let mut cache = locked(&self.cache);
        let mut unknown = None;
        match &found {
            Some(found) => {
                let coordinates = found.coordinates;
                tracing::info!(
                    place = name,
                    found = found.name,
                    latitude = coordinates.latitude,
                    longitude = coordinates.longitude,
                    "found"
                );
            }
            None if cache.coordinates(name).is_some() => {}
            None => {
                let similar = places::similar(name).join(" or ");
                unknown = Some(match &*similar {
                    "" => NOBODY.to_owned(),
                    similar => format!("{NOBODY}; did you mean {similar}?"),
                });
                tracing::warn!(
                    place = name,
                    written_at,
                    similar,
                    "nobody knows this place; what is there is without coordinates"
                );
            }
        }
        cache.put(name, found, SystemTime::now());
        self.unsaved = true;
        if let Some(coordinates) = cache.coordinates(name) {
            self.hub.set_place(name, coordinates);
        }
        drop(cache);
        let answer = unknown.as_deref().map_or(Ok(()), Err);
        self.shared.update(|tracker| tracker.placed(name, answer));
        Ok(())
    }

    async fn save(&mut self, names: &Arc<Wanted>) {
        self.saved = Instant::now();
        let (place, cache, names) = (self.place.clone(), self.cache.clone(), names.clone());
        let saved = tokio::task::spawn_blocking(move || {
            let mut cache = locked(&cache);
            cache.tidy(|name| names.contains_key(name), SystemTime::now());
            let bytes = cache.write()?;
            drop(cache);
            place.keep(FILE, &bytes)
        });
        let saved = saved.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
        self.unsaved = saved.is_err();
        let news = std::mem::replace(&mut self.unsavable, self.unsaved) != self.unsaved;
        match saved {
            Err(error) if news => {
                tracing::warn!(%error, "the places that were found cannot be kept on disk for now");
            }
            Ok(()) if news => tracing::info!("the places that were found are kept on disk again"),
            _ => {}
        }
    }
}

impl Drop for Asker {
    /// What was found last is not lost by an end that comes before it is saved.
    fn drop(&mut self) {
        if self.unsaved
            && let Ok(bytes) = locked(&self.cache).write()
            && let Err(error) = self.place.keep(FILE, &bytes)
        {
            tracing::warn!(%error, "the places that were found cannot be kept on disk");
        }
    }
}

enum Due {
    /// A name, and where it is written.
    Now(String, String),
    In(Duration),
}

/// The places of a mesh to ask for.
fn names(mesh: &Mesh, ask_for: AskFor) -> Wanted {
    let mut names = Wanted::new();
    let mut want = |kind,
                    resource: &str,
                    place: &str,
                    at: Option<Coordinates>,
                    who: Option<&str>| {
        let known = ask_for == AskFor::Unknown && at.is_some();
        if known || names.contains_key(place) {
            return;
        }
        let key = ResourceKey { kind, name: resource.to_owned() };
        let mut written_at = mesh.sources.get(&key).map(ToString::to_string).unwrap_or_default();
        if let Some(who) = who {
            // Of a policy only its service is known here.
            let _ =
                write!(written_at, ", registered for {who} by the BalancerPolicy of {resource}");
        }
        names.insert(place.to_owned(), written_at);
    };
    for (name, set) in &mesh.endpoints {
        set.places(|place, at, who| want(ResourceKind::EndpointSet, name, place, at, who));
    }
    for (name, service) in &mesh.services {
        service.places(|place, at, who| want(ResourceKind::Service, name, place, at, who));
    }
    for (name, scoped) in &mesh.listeners {
        scoped.listener.places(|place, at, who| want(ResourceKind::Listener, name, place, at, who));
    }
    names
}

fn load(place: &Place) -> Cache {
    match place.kept(FILE, MAX_FILE_BYTES) {
        Ok(None) => Cache::default(),
        Ok(Some(bytes)) => Cache::read(&bytes).unwrap_or_else(|error| {
            tracing::warn!(%error, "the places that were found before cannot be read; they are asked for again");
            Cache::default()
        }),
        Err(error) => {
            tracing::warn!(%error, "the places that were found before cannot be read; they are asked for again");
            Cache::default()
        }
    }
}

fn locked(cache: &Mutex<Cache>) -> MutexGuard<'_, Cache> {
    // Every change of it is one call that does not panic.
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
