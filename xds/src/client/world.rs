//! What a client holds, and when it makes a consistent snapshot.
//!
//! Every resource has a current value (the last one that decoded) and an
//! accepted one (the last one the consumer took into use). A snapshot is
//! assembled from the listeners downwards, so it never holds a reference to
//! something it does not hold, and nothing that no listener leads to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use towpath_policies::model::{
    Bind, EndpointSet, Protocol, ResourceKey, ResourceKind, RouteTable, Service, Snapshot,
};

use super::Apply;
use crate::{
    codec::{Decoded, DecodedListener, DecodedService, EndpointSource},
    reach,
    wire::slot,
};

#[derive(Debug)]
pub(super) struct World {
    listeners: Slots<Arc<DecodedListener>>,
    routes: Slots<Arc<RouteTable>>,
    services: Slots<Arc<DecodedService>>,
    endpoints: Slots<Arc<EndpointSet>>,
    /// What differs from the accepted values and was not looked at yet.
    changed: BTreeSet<ResourceKey>,
    /// What differs from the accepted values because no snapshot that was
    /// taken into use led to it, or because it is gone and the snapshot in
    /// use leads to it still.
    unseen: BTreeSet<ResourceKey>,
    /// Types that were answered at least once.
    seen: [bool; 4],
    /// Missing resources whose time is up: snapshots do without them.
    given_up: BTreeSet<ResourceKey>,
    missing: BTreeSet<ResourceKey>,
    warming_since: Option<Instant>,
    warm_wait: Duration,
    /// Listeners without a socket are taken, too: their routes are all that is wanted.
    pub(super) api_listeners: bool,
    published: Option<Arc<Snapshot>>,
    /// Version of the server's state, for the next snapshot.
    pub(super) version: String,
}

type Slots<T> = BTreeMap<String, Slot<T>>;

#[derive(Debug)]
struct Slot<T> {
    current: Option<Held<T>>,
    accepted: Option<Held<T>>,
}

#[derive(Clone, Debug)]
struct Held<T> {
    version: String,
    value: T,
}

impl World {
    pub(super) fn new(warm_wait: Duration) -> Self {
        Self {
            listeners: BTreeMap::new(),
            routes: BTreeMap::new(),
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            changed: BTreeSet::new(),
            unseen: BTreeSet::new(),
            seen: [false; 4],
            given_up: BTreeSet::new(),
            missing: BTreeSet::new(),
            warming_since: None,
            warm_wait,
            api_listeners: false,
            published: None,
            version: String::new(),
        }
    }

    /// Takes in a decoded resource.
    pub(super) fn put(&mut self, name: String, version: String, decoded: Decoded) {
        let kind = decoded.kind();
        match decoded {
            Decoded::Listener(l) => put(&mut self.listeners, name.clone(), version, Arc::new(l)),
            Decoded::RouteTable(r) => put(&mut self.routes, name.clone(), version, Arc::new(r)),
            Decoded::Service(s) => put(&mut self.services, name.clone(), version, Arc::new(s)),
            Decoded::EndpointSet(e) => put(&mut self.endpoints, name.clone(), version, Arc::new(e)),
        }
        self.changed.insert(ResourceKey { kind, name });
    }

    /// The server says there is none of this name.
    pub(super) fn remove(&mut self, kind: ResourceKind, name: &str) {
        let had = match kind {
            ResourceKind::Listener => take(&mut self.listeners, name),
            ResourceKind::RouteTable => take(&mut self.routes, name),
            ResourceKind::Service => take(&mut self.services, name),
            ResourceKind::EndpointSet => take(&mut self.endpoints, name),
        };
        if had {
            self.changed.insert(ResourceKey { kind, name: name.to_owned() });
        }
    }

    pub(super) fn mark_seen(&mut self, kind: ResourceKind) {
        self.seen[slot(kind)] = true;
    }

    /// Names and versions held of a kind.
    pub(super) fn held(&self, kind: ResourceKind) -> BTreeMap<String, String> {
        match kind {
            ResourceKind::Listener => versions(&self.listeners),
            ResourceKind::RouteTable => versions(&self.routes),
            ResourceKind::Service => versions(&self.services),
            ResourceKind::EndpointSet => versions(&self.endpoints),
        }
    }

    /// Names held of a kind.
    pub(super) fn names(&self, kind: ResourceKind) -> Vec<String> {
        fn of<T>(slots: &Slots<T>) -> Vec<String> {
            let held = slots.iter().filter(|(_, slot)| slot.current.is_some());
            held.map(|(name, _)| name.clone()).collect()
        }
        match kind {
            ResourceKind::Listener => of(&self.listeners),
            ResourceKind::RouteTable => of(&self.routes),
            ResourceKind::Service => of(&self.services),
            ResourceKind::EndpointSet => of(&self.endpoints),
        }
    }

    pub(super) fn holds(&self, kind: ResourceKind, name: &str) -> bool {
        match kind {
            ResourceKind::Listener => current(&self.listeners, name).is_some(),
            ResourceKind::RouteTable => current(&self.routes, name).is_some(),
            ResourceKind::Service => current(&self.services, name).is_some(),
            ResourceKind::EndpointSet => current(&self.endpoints, name).is_some(),
        }
    }

    /// How many resources of a kind are held.
    pub(super) fn count(&self, kind: ResourceKind) -> usize {
        match kind {
            ResourceKind::Listener => self.listeners.len(),
            ResourceKind::RouteTable => self.routes.len(),
            ResourceKind::Service => self.services.len(),
            ResourceKind::EndpointSet => self.endpoints.len(),
        }
    }

    /// Route tables that the listeners refer to.
    pub(super) fn wanted_routes(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for held in self.listeners.values().filter_map(|slot| slot.current.as_ref()) {
            for table in reach::tables(&held.value.listener) {
                if held.value.inline_table(table).is_none() {
                    names.insert(table.to_owned());
                }
            }
        }
        names
    }

    /// Endpoint sets that the services refer to.
    pub(super) fn wanted_endpoints(&self) -> BTreeSet<String> {
        self.services
            .values()
            .filter_map(|slot| match &slot.current.as_ref()?.value.endpoints {
                EndpointSource::Delivered(name) => Some(name.clone()),
                EndpointSource::Inline(_) | EndpointSource::Resolved => None,
            })
            .collect()
    }

    pub(super) fn published(&self) -> Option<&Arc<Snapshot>> {
        self.published.as_ref()
    }

    pub(super) fn missing(&self) -> impl Iterator<Item = &ResourceKey> {
        self.missing.iter()
    }

    /// When waiting for missing resources ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        Some(self.warming_since? + self.warm_wait)
    }

    /// Publishes a snapshot if a new, consistent one can be made; returns what
    /// the consumer rejected. Rejected resources are back at their accepted
    /// values afterwards.
    pub(super) fn settle(&mut self, now: Instant, apply: &mut Apply) -> Vec<(ResourceKey, String)> {
        let mut rejected = Vec::new();
        while !self.changed.is_empty() || self.warming_since.is_some() || self.published.is_none() {
            let Some(snapshot) = self.assemble(now) else { break };
            let snapshot = Arc::new(snapshot);
            if self.published.as_ref().is_some_and(|old| same_resources(old, &snapshot)) {
                self.accept(&snapshot);
                break;
            }
            match apply(snapshot.clone()) {
                Ok(()) => {
                    self.accept(&snapshot);
                    self.published = Some(snapshot);
                    break;
                }
                Err(reasons) => {
                    let open = self.changed.len() + self.unseen.len();
                    rejected.extend(self.reject(reasons));
                    if self.changed.len() + self.unseen.len() == open {
                        break;
                    }
                }
            }
        }
        rejected
    }

    fn assemble(&mut self, now: Instant) -> Option<Snapshot> {
        if let Some(snapshot) = self.assemble_endpoints() {
            return Some(snapshot);
        }
        let expired = self.deadline().is_some_and(|deadline| now >= deadline);
        let answered = self.seen[slot(ResourceKind::Listener)]
            && (expired || self.seen[slot(ResourceKind::Service)]);
        let mut missing = BTreeSet::new();
        let snapshot = self.compose(expired, &mut missing);
        self.missing = missing.clone();
        // What has come is missed again, with a wait of its own, should it go.
        self.given_up.retain(|key| missing.contains(key));
        if expired {
            self.given_up.extend(missing);
        } else if !answered || missing.iter().any(|key| !self.given_up.contains(key)) {
            self.warming_since.get_or_insert(now);
            return None;
        }
        self.warming_since = None;
        answered.then_some(snapshot)
    }

    /// The common case, without walking the routes: only endpoints moved.
    fn assemble_endpoints(&self) -> Option<Snapshot> {
        let published = self.published.as_ref()?;
        if self.warming_since.is_some() || !self.given_up.is_empty() || self.changed.is_empty() {
            return None;
        }
        // A set under another name may be that of several services.
        let aliased = self.services.iter().any(|(name, slot)| {
            let held = slot.current.as_ref().map(|held| &held.value.endpoints);
            matches!(held, Some(EndpointSource::Delivered(eds)) if eds != name)
        });
        if aliased {
            return None;
        }
        let mut sets = Vec::new();
        for key in &self.changed {
            let plain = key.kind == ResourceKind::EndpointSet
                && current(&self.services, &key.name)
                    .is_some_and(|s| s.endpoints == EndpointSource::Delivered(key.name.clone()));
            if !plain {
                return None;
            }
            sets.push((&key.name, current(&self.endpoints, &key.name)?));
        }
        let mut snapshot = Snapshot { version: self.version.clone(), ..(**published).clone() };
        for (name, set) in sets {
            if let Some(old) = snapshot.endpoints.get_mut(name) {
                *old = set.clone();
            }
        }
        Some(snapshot)
    }

    /// Walks from the listeners down. What is not there is noted in `missing`
    /// and, if its time is up, replaced: by the accepted value, else by
    /// something empty; a listener without its route table is left out.
    fn compose(&self, expired: bool, missing: &mut BTreeSet<ResourceKey>) -> Snapshot {
        let mut snapshot = Snapshot { version: self.version.clone(), ..Snapshot::default() };
        for (name, slot) in &self.listeners {
            let Some(held) = &slot.current else { continue };
            if held.value.listener.bind == Bind::Api && !self.api_listeners {
                continue;
            }
            let mut complete = true;
            for table in reach::tables(&held.value.listener) {
                let found = held
                    .value
                    .inline_table(table)
                    .or_else(|| current(&self.routes, table))
                    .or_else(|| {
                        self.stand_in(
                            ResourceKind::RouteTable,
                            table,
                            expired,
                            missing,
                            &self.routes,
                        )
                    });
                match found {
                    Some(found) => {
                        snapshot.routes.insert(table.to_owned(), found.clone());
                    }
                    None => complete = false,
                }
            }
            if complete {
                snapshot.listeners.insert(name.clone(), held.value.listener.clone());
            }
        }
        let mut names = BTreeSet::new();
        for listener in snapshot.listeners.values() {
            names.extend(reach::direct_services(listener).map(str::to_owned));
        }
        for table in snapshot.routes.values() {
            names.extend(reach::services(table).into_iter().map(str::to_owned));
        }
        for name in names {
            self.compose_service(&mut snapshot, name, expired, missing);
        }
        snapshot
    }

    fn compose_service(
        &self,
        snapshot: &mut Snapshot,
        name: String,
        expired: bool,
        missing: &mut BTreeSet<ResourceKey>,
    ) {
        let found = current(&self.services, &name).or_else(|| {
            self.stand_in(ResourceKind::Service, &name, expired, missing, &self.services)
        });
        let empty = || Arc::new(EndpointSet::new(name.clone(), Vec::new()));
        let Some(found) = found else {
            // Requests for a service nobody knows are answered 503, and the
            // rest of the configuration works.
            let unknown = Arc::new(Service::new(name.clone(), Protocol::Http1));
            snapshot.endpoints.insert(name.clone(), empty());
            snapshot.services.insert(name, unknown);
            return;
        };
        snapshot.services.insert(name.clone(), found.service.clone());
        let set = match &found.endpoints {
            EndpointSource::Resolved => return,
            EndpointSource::Inline(set) => set.clone(),
            EndpointSource::Delivered(eds) => current(&self.endpoints, eds)
                .or_else(|| {
                    self.stand_in(ResourceKind::EndpointSet, eds, expired, missing, &self.endpoints)
                })
                .map_or_else(empty, |set| {
                    if set.service == name {
                        set.clone()
                    } else {
                        Arc::new(EndpointSet { service: name.clone(), ..(**set).clone() })
                    }
                }),
        };
        snapshot.endpoints.insert(name, set);
    }

    /// Notes a missing resource; its accepted value if it is not waited for (any more).
    fn stand_in<'a, T>(
        &self,
        kind: ResourceKind,
        name: &str,
        expired: bool,
        missing: &mut BTreeSet<ResourceKey>,
        slots: &'a Slots<T>,
    ) -> Option<&'a T> {
        let key = ResourceKey { kind, name: name.to_owned() };
        let use_accepted = expired || self.given_up.contains(&key);
        missing.insert(key);
        let accepted = slots.get(name)?.accepted.as_ref()?;
        use_accepted.then_some(&accepted.value)
    }

    /// Names of the endpoint sets behind a snapshot's services.
    fn endpoints_behind(&self, snapshot: &Snapshot) -> BTreeSet<String> {
        let slots = snapshot.services.keys().filter_map(|name| self.services.get(name));
        slots
            .filter_map(|slot| slot.current.as_ref().or(slot.accepted.as_ref()))
            .filter_map(|held| match &held.value.endpoints {
                EndpointSource::Delivered(eds) => Some(eds.clone()),
                EndpointSource::Inline(_) | EndpointSource::Resolved => None,
            })
            .collect()
    }

    /// A snapshot is in use: what it holds is accepted, and what is gone is
    /// gone. What is gone and yet in the snapshot is there by its accepted
    /// value, which stays as long as something leads to it.
    fn accept(&mut self, snapshot: &Snapshot) {
        let endpoints = self.endpoints_behind(snapshot);
        let open = std::mem::take(&mut self.changed).into_iter();
        for key in open.chain(std::mem::take(&mut self.unseen)) {
            let used = match key.kind {
                ResourceKind::EndpointSet => endpoints.contains(&key.name),
                _ => snapshot.holds(&key),
            };
            if self.holds(key.kind, &key.name) != used {
                self.unseen.insert(key);
                continue;
            }
            match key.kind {
                ResourceKind::Listener => accept(&mut self.listeners, &key.name),
                ResourceKind::RouteTable => accept(&mut self.routes, &key.name),
                ResourceKind::Service => accept(&mut self.services, &key.name),
                ResourceKind::EndpointSet => accept(&mut self.endpoints, &key.name),
            }
        }
    }

    /// Puts rejected resources back. A consumer that names nothing that
    /// changed has rejected everything that did.
    fn reject(&mut self, reasons: Vec<(ResourceKey, String)>) -> Vec<(ResourceKey, String)> {
        let (named, other): (Vec<_>, Vec<_>) = reasons
            .into_iter()
            .partition(|(key, _)| self.changed.contains(key) || self.unseen.contains(key));
        let guilty = if named.is_empty() {
            let reason = match other.first() {
                Some((key, reason)) => format!("with it, {} {}: {reason}", key.kind, key.name),
                None => "the configuration was refused without a reason".to_owned(),
            };
            self.changed.iter().map(|key| (key.clone(), reason.clone())).collect()
        } else {
            named
        };
        for (key, _) in &guilty {
            self.changed.remove(key);
            self.unseen.remove(key);
            match key.kind {
                ResourceKind::Listener => revert(&mut self.listeners, &key.name),
                ResourceKind::RouteTable => revert(&mut self.routes, &key.name),
                ResourceKind::Service => revert(&mut self.services, &key.name),
                ResourceKind::EndpointSet => revert(&mut self.endpoints, &key.name),
            }
        }
        guilty
    }
}

fn put<T>(slots: &mut Slots<T>, name: String, version: String, value: T) {
    let slot = slots.entry(name).or_insert(Slot { current: None, accepted: None });
    slot.current = Some(Held { version, value });
}

fn take<T>(slots: &mut Slots<T>, name: &str) -> bool {
    slots.get_mut(name).is_some_and(|slot| slot.current.take().is_some())
}

fn current<'a, T>(slots: &'a Slots<T>, name: &str) -> Option<&'a T> {
    Some(&slots.get(name)?.current.as_ref()?.value)
}

fn versions<T>(slots: &Slots<T>) -> BTreeMap<String, String> {
    slots
        .iter()
        .filter_map(|(name, slot)| Some((name.clone(), slot.current.as_ref()?.version.clone())))
        .collect()
}

fn accept<T: Clone>(slots: &mut Slots<T>, name: &str) {
    if let Some(slot) = slots.get_mut(name) {
        slot.accepted.clone_from(&slot.current);
        if slot.current.is_none() {
            slots.remove(name);
        }
    }
}

fn revert<T: Clone>(slots: &mut Slots<T>, name: &str) {
    if let Some(slot) = slots.get_mut(name) {
        slot.current.clone_from(&slot.accepted);
        if slot.current.is_none() {
            slots.remove(name);
        }
    }
}

/// Whether two snapshots hold the very same objects.
fn same_resources(a: &Snapshot, b: &Snapshot) -> bool {
    fn same<T>(a: &BTreeMap<String, Arc<T>>, b: &BTreeMap<String, Arc<T>>) -> bool {
        a.len() == b.len()
            && a.iter().zip(b).all(|((an, av), (bn, bv))| an == bn && Arc::ptr_eq(av, bv))
    }
    same(&a.listeners, &b.listeners)
        && same(&a.routes, &b.routes)
        && same(&a.services, &b.services)
        && same(&a.endpoints, &b.endpoints)
}
