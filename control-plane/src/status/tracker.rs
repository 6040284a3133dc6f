//! The memory behind [`Status`]: pure state, told what happened and when.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;
use towpath_policies::{
    conditions::ObjectStatus,
    model::{Node, ResourceKind, Snapshot},
};

use super::{
    Applied, Counters, Current, Nack, Name, Proxy, Rejected, ServiceFigures, SourceStatus, Status,
    UnknownPlace, kind_name,
};

/// Versions whose way to the proxies is remembered.
const VERSIONS_KEPT: usize = 20;
/// Findings kept of a rejected version.
const FINDINGS_KEPT: usize = 100;
/// Upper bounds of the apply-time histogram, in seconds.
pub(crate) const APPLY_BOUNDS: [f64; 12] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// A moment on both clocks: one to show, one to measure with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) wall: SystemTime,
    pub(crate) monotonic: Instant,
}

/// Streams are numbered in the order they came.
pub(crate) type StreamId = u64;

/// Everything that is remembered.
#[derive(Debug)]
pub(crate) struct Tracker {
    started: SystemTime,
    source: SourceStatus,
    current: Option<Current>,
    rejected: Option<Rejected>,
    /// What the Gateway API has to say of the objects of these two.
    current_objects: Vec<ObjectStatus>,
    rejected_objects: Vec<ObjectStatus>,
    streams: BTreeMap<StreamId, Stream>,
    versions: VecDeque<Version>,
    names: BTreeMap<String, Name>,
    places: BTreeMap<String, UnknownPlace>,
    loads: Vec<ServiceFigures>,
    counters: Counters,
    apply_times: Histogram,
}

/// Cumulative counts under [`APPLY_BOUNDS`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Histogram {
    pub(crate) buckets: [u64; APPLY_BOUNDS.len()],
    pub(crate) count: u64,
    pub(crate) sum_seconds: f64,
}

#[derive(Debug)]
struct Stream {
    proxy: Proxy,
    /// The snapshot of which something was refused last.
    refused: Option<Arc<Snapshot>>,
}

#[derive(Debug)]
struct Version {
    applied: Applied,
    seen: Instant,
    waiting: HashSet<StreamId>,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { wall: SystemTime::now(), monotonic: Instant::now() }
    }
}

impl Tracker {
    pub(crate) fn new(source: SourceStatus, now: Moment) -> Self {
        Self {
            started: now.wall,
            source,
            current: None,
            rejected: None,
            current_objects: Vec::new(),
            rejected_objects: Vec::new(),
            streams: BTreeMap::new(),
            versions: VecDeque::new(),
            names: BTreeMap::new(),
            places: BTreeMap::new(),
            loads: Vec::new(),
            counters: Counters::default(),
            apply_times: Histogram::default(),
        }
    }

    /// Everything at once, to be told to others.
    pub(crate) fn status(&self) -> Status {
        let current = self.current.as_ref().map_or("", |current| current.version.as_str());
        let mut proxies: Vec<Proxy> =
            self.streams.values().map(|stream| stream.status(current)).collect();
        proxies.sort_by(|a, b| (&a.node, &a.peer).cmp(&(&b.node, &b.peer)));
        Status {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms: unix_ms(self.started),
            ready: self.current.is_some(),
            source: self.source.clone(),
            current: self.current.clone(),
            rejected: self.rejected.clone(),
            proxies,
            applied: self.versions.iter().rev().map(|v| v.applied.clone()).collect(),
            names: self.names.values().cloned().collect(),
            places: self.places.values().cloned().collect(),
            loads: self.loads.clone(),
            counters: self.counters.clone(),
        }
    }

    /// Clients have reported the load they make.
    pub(crate) fn loads(&mut self, loads: Vec<ServiceFigures>) {
        self.loads = loads;
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.current.is_some()
    }

    /// The newest version of the source, where it is not served.
    pub(crate) fn rejection(&self) -> Option<&Rejected> {
        self.rejected.as_ref()
    }

    /// What the Gateway API has to say of the newest objects, and whether these are the ones that are served.
    pub(crate) fn objects(&self) -> (Vec<ObjectStatus>, bool) {
        match &self.rejected {
            Some(_) => (self.rejected_objects.clone(), false),
            None => (self.current_objects.clone(), true),
        }
    }

    /// Of the version that is served, or of the one that is rejected.
    pub(crate) fn judged(&mut self, objects: Vec<ObjectStatus>, served: bool) {
        if served {
            self.current_objects = objects;
        } else {
            self.rejected_objects = objects;
        }
    }

    /// Looks that failed in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.source.failures
    }

    pub(crate) fn apply_times(&self) -> &Histogram {
        &self.apply_times
    }
}

/// The source and its versions.
impl Tracker {
    /// The source was read.
    pub(crate) fn source_read(&mut self, now: Moment) {
        self.source.read_unix_ms = Some(unix_ms(now.wall));
        self.source.error = None;
        self.source.failures = 0;
    }

    /// The source could not be read. True when the reason is news.
    pub(crate) fn source_failed(&mut self, error: String) -> bool {
        self.counters.source_failures += 1;
        self.source.failures = self.source.failures.saturating_add(1);
        let news = self.source.error.as_ref() != Some(&error);
        self.source.error = Some(error);
        news
    }

    /// A version was not fit to be served.
    pub(crate) fn rejected(&mut self, mut rejected: Rejected) {
        self.counters.rejects += 1;
        rejected.left_out += rejected.diagnostics.len().saturating_sub(FINDINGS_KEPT);
        rejected.diagnostics.truncate(FINDINGS_KEPT);
        self.rejected = Some(rejected);
    }

    /// The source is back at the version that is served.
    pub(crate) fn returned(&mut self) {
        self.rejected = None;
        if let Some(current) = &mut self.current {
            current.restored = false;
        }
    }

    /// A version is served from now on; it means a change for the nodes `changed`.
    pub(crate) fn published(
        &mut self,
        current: Current,
        seen: Moment,
        now: Moment,
        changed: &HashSet<Node>,
    ) {
        self.counters.snapshots += 1;
        if !current.restored {
            self.rejected = None;
        }
        for version in &mut self.versions {
            // Whoever did not get there yet will get to the newer one instead.
            version.applied.lost += version.waiting.len();
            version.waiting.clear();
        }
        let mut waiting = HashSet::new();
        for (id, stream) in &self.streams {
            if changed.contains(&stream.node()) {
                waiting.insert(*id);
            }
        }
        let applied = Applied {
            version: current.version.clone(),
            seen_unix_ms: unix_ms(seen.wall),
            published_after_ms: millis(now.monotonic - seen.monotonic),
            proxies: waiting.len(),
            ..Applied::default()
        };
        self.versions.push_back(Version { applied, seen: seen.monotonic, waiting });
        if self.versions.len() > VERSIONS_KEPT {
            self.versions.pop_front();
        }
        self.current = Some(current);
    }
}

/// Streams of proxies.
impl Tracker {
    pub(crate) fn connected(&mut self, id: StreamId, node: &Node, peer: String, now: Moment) {
        self.counters.streams += 1;
        let proxy = Proxy {
            node: node.id.clone(),
            cluster: node.cluster.clone(),
            sidecar: node.sidecar,
            peer,
            connected_unix_ms: unix_ms(now.wall),
            ..Proxy::default()
        };
        self.streams.insert(id, Stream { proxy, refused: None });
    }

    /// A stream ended; its node, if it was the last one of it.
    pub(crate) fn disconnected(&mut self, id: StreamId) -> Option<Node> {
        let node = self.streams.remove(&id)?.node();
        for version in &mut self.versions {
            if version.waiting.remove(&id) {
                version.applied.lost += 1;
            }
        }
        let last = !self.streams.values().any(|stream| stream.node() == node);
        last.then_some(node)
    }

    /// The node of a stream.
    pub(crate) fn node(&self, id: StreamId) -> Option<Node> {
        self.streams.get(&id).map(Stream::node)
    }

    pub(crate) fn acked(&mut self, id: StreamId, kind: ResourceKind, version: String) {
        self.counters.acks += 1;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.proxy.acks += 1;
        stream.proxy.acked.insert(kind_name(kind).to_owned(), version);
    }

    /// A response was refused; `view` is what the client is served.
    pub(crate) fn nacked(&mut self, id: StreamId, nack: Nack, view: Arc<Snapshot>) {
        self.counters.nacks += 1;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.proxy.nacks += 1;
        for version in self.versions.iter_mut().filter(|v| v.applied.version == nack.version) {
            if version.waiting.remove(&id) {
                version.applied.nacked += 1;
            }
        }
        // A newer one may be served by now; what was refused is not known then.
        stream.refused = (view.version == nack.version).then_some(view);
        stream.proxy.nack = Some(nack);
    }

    /// Whether the client has listeners that open sockets.
    pub(crate) fn opens_sockets(&mut self, id: StreamId, sockets: bool) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.proxy.sockets = sockets;
        }
    }

    /// The client has answered all of `version`; `view` is what it is served.
    pub(crate) fn settled(&mut self, id: StreamId, version: &str, view: &Snapshot, now: Moment) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.proxy.version = Some(version.to_owned());
        if stream.made_good(version, view) {
            stream.proxy.nack = None;
            stream.refused = None;
        }
        for known in self.versions.iter_mut().filter(|v| v.applied.version == version) {
            if known.waiting.remove(&id) {
                let took = now.monotonic.saturating_duration_since(known.seen);
                known.applied.acked += 1;
                known.applied.min_ms.get_or_insert(millis(took));
                known.applied.max_ms = Some(millis(took));
                self.apply_times.record(took);
            }
        }
    }
}

/// Places that a map service is asked for.
impl Tracker {
    /// Those that a mesh names and that are not known.
    pub(crate) fn keep_places(&mut self, unknown: Vec<UnknownPlace>) {
        self.places = unknown.into_iter().map(|at| (at.place.clone(), at)).collect();
    }

    /// A place is known now, or why it is not.
    pub(crate) fn placed(&mut self, place: &str, answer: Result<(), &str>) {
        match answer {
            Ok(()) => {
                self.places.remove(place);
            }
            Err(error) => {
                if let Some(unknown) = self.places.get_mut(place) {
                    error.clone_into(&mut unknown.error);
                }
            }
        }
    }
}

/// Names of services.
impl Tracker {
    /// Forgets all names but those of these services, with the places where they are written.
    pub(crate) fn keep_names(&mut self, services: &BTreeMap<String, Option<String>>) {
        self.names.retain(|service, _| services.contains_key(service));
        for (service, place) in services {
            let name = self.names.entry(service.clone()).or_default();
            name.service.clone_from(service);
            name.source.clone_from(place);
        }
    }

    /// A question was answered with so many addresses, or not.
    pub(crate) fn resolved(
        &mut self,
        service: &str,
        host: String,
        answer: Result<usize, &str>,
        now: Moment,
    ) {
        let name = self.names.entry(service.to_owned()).or_default();
        service.clone_into(&mut name.service);
        name.host = host;
        match answer {
            Ok(addresses) => {
                name.addresses = addresses;
                name.resolved_unix_ms = Some(unix_ms(now.wall));
                name.error = None;
            }
            Err(error) => {
                self.counters.dns_failures += 1;
                name.error = Some(error.to_owned());
            }
        }
    }
}

impl Stream {
    fn node(&self) -> Node {
        let Proxy { node, cluster, sidecar, .. } = &self.proxy;
        Node { id: node.clone(), cluster: cluster.clone(), sidecar: *sidecar }
    }

    fn status(&self, current: &str) -> Proxy {
        let in_sync = self.proxy.nack.is_none() && self.proxy.version.as_deref() == Some(current);
        Proxy { in_sync, ..self.proxy.clone() }
    }

    /// Whether what was refused is gone, or was replaced by something that was accepted.
    ///
    /// A client is not offered the same thing twice, so its silence about a
    /// newer version says nothing about a resource that did not change.
    fn made_good(&self, version: &str, view: &Snapshot) -> bool {
        let Some(nack) = &self.proxy.nack else { return false };
        let stays = |refused: &Arc<Snapshot>| {
            nack.resources.iter().any(|r| same_resource(refused, view, nack.kind, &r.name))
        };
        nack.version != version && !self.refused.as_ref().is_some_and(stays)
    }
}

fn same_resource(a: &Snapshot, b: &Snapshot, kind: ResourceKind, name: &str) -> bool {
    fn same<T>(a: &BTreeMap<String, Arc<T>>, b: &BTreeMap<String, Arc<T>>, name: &str) -> bool {
        matches!((a.get(name), b.get(name)), (Some(a), Some(b)) if Arc::ptr_eq(a, b))
    }
    match kind {
        ResourceKind::Listener => same(&a.listeners, &b.listeners, name),
        ResourceKind::RouteTable => same(&a.routes, &b.routes, name),
        ResourceKind::Service => same(&a.services, &b.services, name),
        ResourceKind::EndpointSet => same(&a.endpoints, &b.endpoints, name),
    }
}

impl Histogram {
    fn record(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (bucket, bound) in self.buckets.iter_mut().zip(APPLY_BOUNDS) {
            *bucket += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum_seconds += seconds;
    }
}

pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds to the microsecond.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests;
