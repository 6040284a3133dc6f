//! One client's stream, as a state machine without I/O.
//!
//! Per type of resource the stream knows what the client subscribed to, what
//! it was sent last, and which names may need something sent: the *dirty*
//! ones. A new snapshot only marks what differs (by pointer) as dirty; a
//! request only what it changes. At most one response per type is
//! unacknowledged, and what is dirty meanwhile is looked at when its turn
//! comes, in the snapshot that is the newest then.
//!
//! Order (make before break): services, their endpoint sets, listeners, route
//! tables; and when all of that has been answered, removals from the referrer
//! to the referred. A listener or route table waits for the answer about
//! services and endpoint sets, because Envoy holds that answer back until new
//! clusters are warm; endpoint sets wait for nothing, because warming needs
//! them.

mod kind;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use towpath_policies::model::{Bind, Discovery, Listener, ResourceKind, Snapshot};

use self::kind::{Last, Sent, Type, world_version};
use super::Cache;
use crate::{
    Flavour, reach,
    wire::{
        Encoded, Item, MAKE_ORDER, MAX_NAMES, Malformed, Rejection, Request, Response,
        Subscription, slot,
    },
};

/// What a request meant, for whoever watches the clients.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A response was accepted.
    Ack {
        /// The type.
        kind: ResourceKind,
        /// The snapshot's version behind the response.
        version: String,
    },
    /// A response was rejected.
    Nack {
        /// The type.
        kind: ResourceKind,
        /// The snapshot's version behind the response.
        version: String,
        /// The client's words; `resources` completed from the message or the response.
        rejection: Rejection,
    },
}

/// The state of one stream. See the module's documentation.
#[derive(Debug)]
pub struct Stream {
    flavour: Flavour,
    cache: Arc<Cache>,
    snapshot: Option<Arc<Snapshot>>,
    covered: Covered,
    types: [Type; 4],
    nonces: u64,
    keeps_endpoints: bool,
    /// Endpoint sets that a client of the state-of-the-world variant came back with.
    brought: BTreeSet<String>,
    synced: Option<String>,
}

impl Stream {
    /// A stream that knows nothing yet.
    pub fn new(flavour: Flavour, cache: Arc<Cache>) -> Self {
        Self {
            flavour,
            cache,
            snapshot: None,
            covered: Covered::default(),
            types: Default::default(),
            nonces: 0,
            keeps_endpoints: false,
            brought: BTreeSet::new(),
            synced: None,
        }
    }

    /// The client says that a changed service does without its endpoint set
    /// being told again. Envoy does not say so: it warms a changed cluster
    /// until an endpoint set comes, changed or not.
    pub fn set_keeps_endpoints(&mut self, keeps: bool) {
        self.keeps_endpoints = keeps;
    }

    /// Whether the client says that it takes listeners for their routes only and opens none: then its wildcard covers
    /// those without a socket, too. To be said before anything else.
    pub fn set_opens_listeners(&mut self, opens: bool) {
        self.covered.api_listeners = !opens;
    }

    /// Takes in a request.
    ///
    /// # Errors
    /// When the client subscribes to more than [`MAX_NAMES`] names, or sends
    /// the other variant's request: the stream should be closed.
    pub fn handle(&mut self, request: Request) -> Result<Option<Event>, Malformed> {
        let Request { kind, nonce, rejection, subscription } = request;
        let event = match (self.flavour, subscription) {
            (Flavour::Delta, Subscription::Delta { subscribe, unsubscribe, held }) => {
                let event = self.types[slot(kind)].answered(kind, &nonce, rejection);
                self.subscribe_delta(kind, subscribe, unsubscribe, held);
                event
            }
            (Flavour::StateOfTheWorld, Subscription::World { version, names }) => {
                let this = &mut self.types[slot(kind)];
                // A request that answers an older response was written before
                // the client saw the latest; its answer to that one will
                // carry the current subscription.
                if this.asked && this.last.as_ref().is_some_and(|last| last.nonce != nonce) {
                    return Ok(None);
                }
                let event = this.answered(kind, &nonce, rejection);
                self.subscribe_world(kind, &version, names);
                event
            }
            _ => return Err(Malformed::TooLarge("request of the other protocol variant".into())),
        };
        let this = &self.types[slot(kind)];
        if this.names.len() > MAX_NAMES || this.sent.len() > 2 * MAX_NAMES {
            return Err(Malformed::TooLarge(format!("more than {MAX_NAMES} subscriptions")));
        }
        Ok(event)
    }

    /// Takes in the newest snapshot. Costs a pointer comparison per resource,
    /// and more only for what changed.
    pub fn update(&mut self, snapshot: &Arc<Snapshot>) {
        if snapshot.version.is_empty()
            || self.snapshot.as_ref().is_some_and(|old| Arc::ptr_eq(old, snapshot))
        {
            return;
        }
        let empty = Arc::default();
        let old = self.snapshot.replace(snapshot.clone()).unwrap_or(empty);
        let mut relinked = false;
        relinked |=
            self.types[slot(ResourceKind::Listener)].mark(&old.listeners, &snapshot.listeners);
        relinked |= self.types[slot(ResourceKind::RouteTable)].mark(&old.routes, &snapshot.routes);
        self.types[slot(ResourceKind::Service)].mark(&old.services, &snapshot.services);
        self.types[slot(ResourceKind::EndpointSet)].mark(&old.endpoints, &snapshot.endpoints);
        if relinked {
            let visible = self.covered.services_of(snapshot);
            let services = &mut self.types[slot(ResourceKind::Service)];
            if services.asked {
                services
                    .dirty
                    .extend(visible.symmetric_difference(&self.covered.services).cloned());
            }
            self.covered.services = visible;
        }
    }

    /// The next response to send, if one is due. Call it when there is room
    /// to send, and not before: what it returns counts as sent.
    pub fn outgoing(&mut self) -> Option<Response> {
        let snapshot = self.snapshot.clone()?;
        let mut made = true;
        for kind in MAKE_ORDER {
            let gated = matches!(kind, ResourceKind::Listener | ResourceKind::RouteTable);
            if gated && !made {
                return None;
            }
            let due = self.upserts(&snapshot, kind);
            let this = &self.types[slot(kind)];
            if !this.waiting() && (!due.is_empty() || this.owed) {
                return Some(self.respond(&snapshot, kind, due, Vec::new()));
            }
            made &= due.is_empty() && !this.waiting();
        }
        if !made {
            return None;
        }
        for kind in BREAK_ORDER {
            let gone = self.removals(&snapshot, kind);
            if self.flavour == Flavour::StateOfTheWorld && !full_state(kind) {
                // This variant has no word for "gone" here; leaving the
                // referrer out has said it. The client may hold it still, so
                // what it was sent stays noted.
                self.types[slot(kind)].leave_be(&gone);
            } else if !gone.is_empty() {
                return Some(self.respond(&snapshot, kind, Vec::new(), gone));
            }
            if self.rejects_any(&snapshot, kind) {
                // The client still uses the version before, and with it
                // perhaps what would be told as gone next.
                return None;
            }
        }
        None
    }

    /// The version of the snapshot that the client now holds, once, when
    /// everything it subscribed to has been sent and answered.
    pub fn newly_synced(&mut self) -> Option<String> {
        let version = &self.snapshot.as_ref()?.version;
        let settled = self.types[slot(ResourceKind::Listener)].asked
            && self.types.iter().all(|t| t.dirty.is_empty() && !t.owed && !t.waiting());
        if !settled || self.synced.as_ref() == Some(version) || self.awaits_routes() {
            return None;
        }
        self.synced = Some(version.clone());
        self.synced.clone()
    }

    /// Whether the client asks for a listener that opens a socket, and opens it.
    pub fn opens_sockets(&self) -> bool {
        if self.covered.api_listeners {
            return false;
        }
        let Some(snapshot) = &self.snapshot else { return false };
        let kind = ResourceKind::Listener;
        let this = &self.types[slot(kind)];
        snapshot.listeners.iter().any(|(name, listener)| {
            listener.bind != Bind::Api && this.wants(snapshot, &self.covered, kind, name)
        })
    }

    /// Whether the client has yet to ask for the route tables of its
    /// listeners, which it does once it has those.
    fn awaits_routes(&self) -> bool {
        let Some(snapshot) = &self.snapshot else { return false };
        let kind = ResourceKind::Listener;
        let this = &self.types[slot(kind)];
        !self.types[slot(ResourceKind::RouteTable)].asked
            && snapshot.listeners.iter().any(|(name, listener)| {
                this.wants(snapshot, &self.covered, kind, name)
                    && reach::tables(listener).next().is_some()
            })
    }

    /// Whether the client rejected, and so holds an older version of, a
    /// resource that it is to have.
    fn rejects_any(&self, snapshot: &Snapshot, kind: ResourceKind) -> bool {
        let this = &self.types[slot(kind)];
        this.sent.iter().any(|(name, sent)| {
            sent.rejected
                && holds(snapshot, kind, name)
                && this.wants(snapshot, &self.covered, kind, name)
        })
    }

    /// The version of this resource that the client was sent last and did not
    /// reject.
    pub fn held_version(&self, kind: ResourceKind, name: &str) -> Option<&str> {
        let sent = self.types[slot(kind)].sent.get(name)?;
        (!sent.rejected && !sent.version.is_empty()).then_some(&*sent.version)
    }

    fn subscribe_delta(
        &mut self,
        kind: ResourceKind,
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
        held: BTreeMap<String, String>,
    ) {
        let all = self.all_names(kind);
        let this = &mut self.types[slot(kind)];
        let first = !std::mem::replace(&mut this.asked, true);
        if first {
            // An empty first subscription is the older way to say `*`.
            this.wildcard = full_state(kind) && subscribe.is_empty();
            this.owed = full_state(kind) && held.is_empty();
            let everything = this.wildcard || subscribe.iter().any(|name| name == "*");
            let named: BTreeSet<&String> = subscribe.iter().collect();
            for (name, version) in held.into_iter().filter(|(n, _)| everything || named.contains(n))
            {
                this.dirty.insert(name.clone());
                let sent = Sent { version: version.into(), rejected: false, encoded: None };
                this.sent.insert(name, sent);
            }
        }
        let had_wildcard = this.wildcard && !first;
        for name in subscribe {
            if name == "*" {
                this.wildcard = true;
                continue;
            }
            // A name subscribed again must be answered again: the client may
            // have dropped what it had.
            if !first {
                this.sent.remove(&name);
            }
            this.dirty.insert(name.clone());
            this.names.insert(name);
        }
        for name in unsubscribe {
            if name == "*" {
                this.wildcard = false;
                let names = &this.names;
                this.sent.retain(|name, _| names.contains(name));
                continue;
            }
            this.names.remove(&name);
            if this.wildcard {
                // What the wildcard covers is due again: the client may have
                // dropped it.
                let covered = self.snapshot.as_ref().is_some_and(|snapshot| {
                    holds(snapshot, kind, &name) && this.wants(snapshot, &self.covered, kind, &name)
                });
                if covered {
                    this.sent.remove(&name);
                }
                this.dirty.insert(name);
            } else {
                this.sent.remove(&name);
                this.dirty.remove(&name);
            }
        }
        if this.wildcard && !had_wildcard {
            this.dirty.extend(all);
        }
    }

    fn subscribe_world(&mut self, kind: ResourceKind, version: &str, names: Vec<String>) {
        let all = self.all_names(kind);
        let this = &mut self.types[slot(kind)];
        let first = !std::mem::replace(&mut this.asked, true);
        let had_wildcard = std::mem::take(&mut this.wildcard);
        let mut names: BTreeSet<String> = names.into_iter().collect();
        this.wildcard = names.remove("*") || (full_state(kind) && names.is_empty() && !this.named);
        this.named |= !names.is_empty();
        let added: Vec<String> = names.difference(&this.names).cloned().collect();
        for name in this.names.difference(&names) {
            if !this.wildcard {
                this.sent.remove(name);
                this.dirty.remove(name);
            }
        }
        this.names = names;
        for name in &added {
            this.sent.remove(name);
        }
        this.owed |= full_state(kind) && (first || !added.is_empty());
        this.dirty.extend(added);
        if this.wildcard && !had_wildcard {
            this.dirty.extend(all);
        }
        if first && !version.is_empty() {
            if kind == ResourceKind::EndpointSet {
                self.brought.clone_from(&self.types[slot(kind)].names);
            }
            self.resume_world(kind, version);
        }
    }

    /// A client that comes back with exactly what it would be sent is sent nothing.
    fn resume_world(&mut self, kind: ResourceKind, version: &str) {
        let Some(snapshot) = self.snapshot.clone() else { return };
        let due = self.upserts(&snapshot, kind);
        let this = &mut self.types[slot(kind)];
        let sent: BTreeMap<String, Sent> =
            due.into_iter().map(|e| (e.name.clone(), Sent::new(&e, self.flavour))).collect();
        if world_version(&sent) == version {
            this.sent = sent;
            this.owed = false;
            // Names without a resource stay dirty for nobody's sake.
            this.dirty.clear();
        }
    }

    /// Dirty names whose resource is there, wanted, and not what was sent.
    /// Names that need nothing any more are taken off the dirty list.
    fn upserts(&mut self, snapshot: &Snapshot, kind: ResourceKind) -> Vec<Arc<Encoded>> {
        let Self { types, cache, covered, flavour, brought, .. } = self;
        let this = &mut types[slot(kind)];
        let (mut due, mut bytes, mut settled) = (Vec::new(), 0, Vec::new());
        let whole = full_state(kind) && *flavour == Flavour::StateOfTheWorld;
        for name in &this.dirty {
            let wanted = this.wants(snapshot, covered, kind, name);
            let told = this.sent.get(name).is_some_and(|sent| !sent.version.is_empty());
            // A client that holds addresses from before keeps them.
            if kind == ResourceKind::EndpointSet
                && (told || brought.contains(name))
                && is_unresolved(snapshot, name)
            {
                settled.push(name.clone());
                continue;
            }
            let encoded = wanted.then(|| cache.encoded(snapshot, kind, name)).flatten();
            match encoded {
                Some(encoded) => {
                    if this.sent.get(name).is_some_and(|sent| sent.version == encoded.version) {
                        settled.push(name.clone());
                        continue;
                    }
                    bytes += encoded.any.value.len();
                    due.push(encoded);
                    if bytes > RESPONSE_BYTES && !whole {
                        break;
                    }
                }
                None => {
                    let owed = *flavour == Flavour::Delta
                        && this.names.contains(name)
                        && !this.sent.contains_key(name);
                    // An endpoint set of a known service is only late: a
                    // client that holds one from before keeps it.
                    let late =
                        kind == ResourceKind::EndpointSet && snapshot.services.contains_key(name);
                    if late || (!told && !owed) {
                        settled.push(name.clone());
                    }
                }
            }
        }
        for name in settled {
            this.dirty.remove(&name);
        }
        due
    }

    /// Dirty names to be told as gone. Only called when no upsert is due, so
    /// every dirty name is one.
    fn removals(&self, snapshot: &Snapshot, kind: ResourceKind) -> Vec<String> {
        let this = &self.types[slot(kind)];
        this.dirty
            .iter()
            .filter(|name| {
                !this.wants(snapshot, &self.covered, kind, name) || !holds(snapshot, kind, name)
            })
            .cloned()
            .collect()
    }

    fn respond(
        &mut self,
        snapshot: &Snapshot,
        kind: ResourceKind,
        due: Vec<Arc<Encoded>>,
        gone: Vec<String>,
    ) -> Response {
        self.nonces += 1;
        let flavour = self.flavour;
        let this = &mut self.types[slot(kind)];
        for encoded in &due {
            this.dirty.remove(&encoded.name);
            this.sent.insert(encoded.name.clone(), Sent::new(encoded, flavour));
        }
        if kind == ResourceKind::Service && !self.keeps_endpoints {
            let sets = &mut self.types[slot(ResourceKind::EndpointSet)];
            for encoded in &due {
                if sets.sent.remove(&encoded.name).is_some() {
                    sets.dirty.insert(encoded.name.clone());
                }
            }
        }
        let this = &mut self.types[slot(kind)];
        for name in &gone {
            this.dirty.remove(name);
            this.sent.remove(name);
            if flavour == Flavour::Delta && this.names.contains(name) {
                this.sent.insert(name.clone(), Sent::absent());
            }
        }
        this.owed = false;
        let whole = flavour == Flavour::StateOfTheWorld && full_state(kind);
        if whole {
            // What was rejected before is offered again with the rest, and the
            // answer is about all of it.
            for sent in this.sent.values_mut() {
                sent.rejected = false;
            }
        }
        let resources: Vec<Item> = if whole {
            this.sent.values().filter_map(|s| s.encoded.as_deref()).map(Item::from).collect()
        } else {
            due.iter().map(|e| Item::from(&**e)).collect()
        };
        let nonce = format!("{:x}", self.nonces);
        this.last = Some(Last {
            nonce: nonce.clone(),
            snapshot_version: snapshot.version.clone(),
            names: resources.iter().map(|item| item.name.clone()).collect(),
            news: due.iter().map(|e| e.name.clone()).collect(),
            waiting: true,
        });
        let version = match flavour {
            Flavour::Delta => snapshot.version.clone(),
            Flavour::StateOfTheWorld => world_version(&this.sent),
        };
        let removed = if flavour == Flavour::Delta { gone } else { Vec::new() };
        let snapshot_version = Some(snapshot.version.clone());
        Response { kind, nonce, version, snapshot_version, resources, removed }
    }

    /// Every name a wildcard covers.
    fn all_names(&self, kind: ResourceKind) -> Vec<String> {
        let Some(snapshot) = &self.snapshot else { return Vec::new() };
        match kind {
            ResourceKind::Listener => snapshot
                .listeners
                .values()
                .filter(|l| self.covered.listener(l))
                .map(|l| l.name.clone())
                .collect(),
            ResourceKind::Service => self.covered.services.iter().cloned().collect(),
            ResourceKind::RouteTable => snapshot.routes.keys().cloned().collect(),
            ResourceKind::EndpointSet => snapshot.endpoints.keys().cloned().collect(),
        }
    }
}

/// Types whose state-of-the-world responses are complete, and which have a wildcard.
fn full_state(kind: ResourceKind) -> bool {
    matches!(kind, ResourceKind::Listener | ResourceKind::Service)
}

fn holds(snapshot: &Snapshot, kind: ResourceKind, name: &str) -> bool {
    match kind {
        ResourceKind::Listener => snapshot.listeners.contains_key(name),
        ResourceKind::RouteTable => snapshot.routes.contains_key(name),
        ResourceKind::Service => snapshot.services.contains_key(name),
        ResourceKind::EndpointSet => snapshot.endpoints.contains_key(name),
    }
}

/// Whether the name of a service did not resolve: an answer without addresses is none.
fn is_unresolved(snapshot: &Snapshot, name: &str) -> bool {
    snapshot.endpoints.get(name).is_some_and(|set| set.endpoints.is_empty())
        && snapshot
            .services
            .get(name)
            .is_some_and(|service| matches!(service.discovery, Discovery::Dns { .. }))
}

/// What a wildcard means.
#[derive(Debug, Default)]
struct Covered {
    /// Listeners without a socket, too.
    api_listeners: bool,
    /// Services that its listeners lead to.
    services: BTreeSet<String>,
}

impl Covered {
    fn listener(&self, listener: &Listener) -> bool {
        self.api_listeners || listener.bind != Bind::Api
    }

    fn services_of(&self, snapshot: &Snapshot) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut tables = BTreeSet::new();
        for listener in snapshot.listeners.values().filter(|l| self.listener(l)) {
            names.extend(reach::direct_services(listener).map(str::to_owned));
            tables.extend(reach::tables(listener));
        }
        for table in tables.into_iter().filter_map(|name| snapshot.routes.get(name)) {
            names.extend(reach::services(table).into_iter().map(str::to_owned));
        }
        names
    }
}

/// From what refers to what is referred to.
const BREAK_ORDER: [ResourceKind; 4] = [
    ResourceKind::Listener,
    ResourceKind::RouteTable,
    ResourceKind::Service,
    ResourceKind::EndpointSet,
];

/// A response is closed when it holds this many bytes; the rest follows when
/// it has been answered.
const RESPONSE_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests;
