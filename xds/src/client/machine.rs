//! The client's side of the protocol, as a state machine without I/O.
//!
//! A response is decoded resource by resource: what is good becomes current,
//! what is not keeps its last good value. Then the world is asked for a new
//! consistent snapshot, which the consumer takes into use or rejects, and only
//! then is the response answered. While a snapshot still waits for resources
//! of other types, the answer says what decoding found; should the consumer
//! reject something later, a second, negative answer to the same response
//! follows.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use towpath_policies::model::{ResourceKey, ResourceKind, Snapshot};

use super::{Apply, Status, world::World};
use crate::{
    Flavour, codec,
    wire::{
        Item, MAKE_ORDER, MAX_NAME_BYTES, MAX_NAMES, Rejection, Request, Response, Subscription,
        slot,
    },
};

/// The state of one client, across streams. See the module's documentation.
#[derive(Debug)]
pub struct Machine {
    flavour: Flavour,
    world: World,
    types: [Type; 4],
    outbox: VecDeque<Request>,
    connected: bool,
    error: Option<String>,
    rejected: BTreeMap<ResourceKey, String>,
}

#[derive(Debug, Default)]
struct Type {
    /// Whether something was asked on this stream.
    asked: bool,
    names: BTreeSet<String>,
    nonce: String,
    /// Last accepted version of the type, and the one before (state of the world).
    version: String,
    previous: String,
    /// Something was rejected, so what is held is no version of the server's:
    /// the next stream must not resume with one.
    mixed: bool,
}

impl Machine {
    /// A client that holds nothing. `warm_wait` bounds the wait for resources
    /// that are referred to and do not come.
    pub fn new(flavour: Flavour, warm_wait: Duration) -> Self {
        Self {
            flavour,
            world: World::new(warm_wait),
            types: Default::default(),
            outbox: VecDeque::new(),
            connected: false,
            error: None,
            rejected: BTreeMap::new(),
        }
    }

    /// Takes listeners without a socket, too, for a client that opens none.
    pub fn take_api_listeners(&mut self) {
        self.world.api_listeners = true;
    }

    /// A stream to a server opens: asks for everything, naming what is held.
    pub fn connected(&mut self) {
        self.outbox.clear();
        for kind in MAKE_ORDER {
            let this = &mut self.types[slot(kind)];
            this.asked = false;
            this.nonce.clear();
            this.names.clear();
            if std::mem::take(&mut this.mixed) {
                this.version.clear();
                this.previous.clear();
            }
        }
        // What is still offered will be offered again.
        self.rejected.clear();
        for kind in [ResourceKind::Service, ResourceKind::Listener] {
            self.types[slot(kind)].asked = true;
            let subscription = match self.flavour {
                Flavour::Delta => Subscription::Delta {
                    subscribe: Vec::new(),
                    unsubscribe: Vec::new(),
                    held: self.world.held(kind),
                },
                Flavour::StateOfTheWorld => self.subscription_world(kind),
            };
            self.ask(kind, None, subscription);
        }
        self.subscribe();
    }

    /// The server took the stream. (One that has no news may never say more.)
    pub fn established(&mut self) {
        self.connected = true;
        self.error = None;
    }

    /// The stream is gone.
    pub fn disconnected(&mut self, error: impl Into<String>) {
        self.connected = false;
        self.error = Some(error.into());
        self.outbox.clear();
    }

    /// Takes in a response, publishes what can be published, and queues the answer.
    pub fn handle(&mut self, response: Response, now: Instant, apply: &mut Apply) {
        let kind = response.kind;
        self.established();
        if let Some(version) = &response.snapshot_version {
            self.world.version.clone_from(version);
        } else {
            self.world.version.clone_from(&response.version);
        }
        self.types[slot(kind)].nonce.clone_from(&response.nonce);
        let mut errors = self.take_in(&response);
        self.world.mark_seen(kind);
        self.forget_unwanted();
        let refused = self.world.settle(now, apply);
        let (mine, others): (Vec<_>, Vec<_>) =
            refused.into_iter().partition(|(k, _)| k.kind == kind);
        errors.extend(mine.into_iter().map(|(key, reason)| (key.name, reason)));
        self.answer(kind, response.version, errors);
        self.reject_late(others);
        self.subscribe();
    }

    /// Gives up waiting for what did not come in time. Call it at [`Machine::deadline`].
    pub fn tick(&mut self, now: Instant, apply: &mut Apply) {
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            let refused = self.world.settle(now, apply);
            self.reject_late(refused);
            self.subscribe();
        }
    }

    /// When [`Machine::tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.world.deadline()
    }

    /// The next request to send.
    pub fn outgoing(&mut self) -> Option<Request> {
        self.outbox.pop_front()
    }

    /// How many requests wait to be sent. Whoever feeds responses in should
    /// stop while this is large.
    pub fn backlog(&self) -> usize {
        self.outbox.len()
    }

    /// The snapshot in use.
    pub fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.world.published()
    }

    /// Names and versions held of a kind; what was rejected is not among them.
    pub fn held(&self, kind: ResourceKind) -> BTreeMap<String, String> {
        self.world.held(kind)
    }

    /// Where the client stands.
    pub fn status(&self) -> Status {
        Status {
            connected: self.connected,
            version: self.snapshot().map(|s| s.version.clone()),
            error: self.error.clone(),
            rejected: self.rejected.iter().map(|(k, r)| (k.clone(), r.clone())).collect(),
            waiting_for: match self.deadline() {
                Some(_) => self.world.missing().take(STATUS_NAMES).cloned().collect(),
                None => Vec::new(),
            },
        }
    }

    /// Decodes a response's resources; returns names and reasons of the bad ones.
    fn take_in(&mut self, response: &Response) -> Vec<(String, String)> {
        let kind = response.kind;
        let mut errors = Vec::new();
        let mut present = BTreeSet::new();
        let mut all_named = true;
        for item in &response.resources {
            match self.take_in_one(kind, item) {
                Ok(name) => {
                    self.rejected.remove(&ResourceKey { kind, name: name.clone() });
                    present.insert(name);
                }
                Err((name, reason)) => {
                    all_named &= !name.is_empty();
                    present.insert(name.clone());
                    errors.push((name, reason));
                }
            }
        }
        for name in &response.removed {
            self.rejected.remove(&ResourceKey { kind, name: name.clone() });
            self.world.remove(kind, name);
        }
        let complete = self.flavour == Flavour::StateOfTheWorld
            && matches!(kind, ResourceKind::Listener | ResourceKind::Service);
        // What cannot be read may be the next version of anything held.
        if complete && all_named {
            self.rejected.retain(|key, _| key.kind != kind || present.contains(&key.name));
            for name in self.world.names(kind).into_iter().filter(|name| !present.contains(name)) {
                self.world.remove(kind, &name);
            }
        }
        errors
    }

    fn take_in_one(&mut self, kind: ResourceKind, item: &Item) -> Result<String, (String, String)> {
        let (inner, decoded) = codec::decode(kind, &item.any);
        let name = match inner {
            Some(inner) if !item.name.is_empty() && inner != item.name => {
                return Err((item.name.clone(), format!("calls itself {inner:?} inside")));
            }
            Some(inner) => inner,
            None => item.name.clone(),
        };
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            let name: String = name.chars().take(64).collect();
            return Err((name, format!("a name of 1 to {MAX_NAME_BYTES} bytes is needed")));
        }
        let decoded = match decoded {
            Ok(decoded) => decoded,
            Err(invalid) => return Err((name, invalid.to_string())),
        };
        let by_name = matches!(kind, ResourceKind::RouteTable | ResourceKind::EndpointSet);
        if by_name && !self.types[slot(kind)].names.contains(&name) {
            // Nobody asked (any more); keeping it would let a server fill us up.
            return Ok(name);
        }
        if self.world.count(kind) >= MAX_NAMES && !self.world.holds(kind, &name) {
            return Err((name, format!("more than {MAX_NAMES} of its kind")));
        }
        self.world.put(name.clone(), item.version.clone(), decoded);
        Ok(name)
    }

    fn answer(&mut self, kind: ResourceKind, version: String, errors: Vec<(String, String)>) {
        for (name, reason) in errors.iter().take(MAX_REJECTED) {
            self.note_rejected(ResourceKey { kind, name: name.clone() }, reason.clone());
        }
        let rejection = (!errors.is_empty()).then(|| Rejection::new(errors));
        let this = &mut self.types[slot(kind)];
        if rejection.is_none() {
            this.previous = std::mem::replace(&mut this.version, version);
            // A complete response makes up for everything before.
            this.mixed &= matches!(kind, ResourceKind::EndpointSet | ResourceKind::RouteTable);
        } else {
            this.mixed = true;
        }
        self.send(kind, rejection, BTreeSet::new(), BTreeSet::new());
    }

    /// Rejects resources whose responses were accepted before.
    fn reject_late(&mut self, refused: Vec<(ResourceKey, String)>) {
        let mut by_kind: BTreeMap<ResourceKind, Vec<(String, String)>> = BTreeMap::new();
        for (key, reason) in refused {
            self.note_rejected(key.clone(), reason.clone());
            by_kind.entry(key.kind).or_default().push((key.name, reason));
        }
        for (kind, errors) in by_kind {
            let this = &mut self.types[slot(kind)];
            this.version.clone_from(&this.previous);
            this.mixed = true;
            if this.asked && !this.nonce.is_empty() {
                self.send(kind, Some(Rejection::new(errors)), BTreeSet::new(), BTreeSet::new());
            }
        }
    }

    fn note_rejected(&mut self, key: ResourceKey, reason: String) {
        if self.rejected.len() < MAX_REJECTED || self.rejected.contains_key(&key) {
            self.rejected.insert(key, reason);
        }
    }

    /// Brings the subscriptions by name in line with what is referred to.
    fn subscribe(&mut self) {
        for kind in [ResourceKind::EndpointSet, ResourceKind::RouteTable] {
            let wanted = self.wanted(kind);
            let this = &mut self.types[slot(kind)];
            if wanted == this.names {
                continue;
            }
            let added = wanted.difference(&this.names).cloned().collect();
            let gone = this.names.difference(&wanted).cloned().collect();
            this.names = wanted;
            self.send(kind, None, added, gone);
        }
    }

    /// Drops resources that nothing refers to any more.
    fn forget_unwanted(&mut self) {
        for kind in [ResourceKind::EndpointSet, ResourceKind::RouteTable] {
            let wanted = self.wanted(kind);
            self.rejected.retain(|key, _| key.kind != kind || wanted.contains(&key.name));
            for name in self.world.names(kind) {
                if !wanted.contains(&name) {
                    self.world.remove(kind, &name);
                }
            }
        }
    }

    fn wanted(&self, kind: ResourceKind) -> BTreeSet<String> {
        match kind {
            ResourceKind::EndpointSet => self.world.wanted_endpoints(),
            ResourceKind::RouteTable => self.world.wanted_routes(),
            ResourceKind::Listener | ResourceKind::Service => BTreeSet::new(),
        }
    }

    fn send(
        &mut self,
        kind: ResourceKind,
        rejection: Option<Rejection>,
        subscribe: BTreeSet<String>,
        unsubscribe: BTreeSet<String>,
    ) {
        let first = !std::mem::replace(&mut self.types[slot(kind)].asked, true);
        let subscription = match self.flavour {
            Flavour::Delta => {
                let mut held = BTreeMap::new();
                if first {
                    held = self.world.held(kind);
                    held.retain(|name, _| subscribe.contains(name));
                }
                Subscription::Delta {
                    subscribe: subscribe.into_iter().collect(),
                    unsubscribe: unsubscribe.into_iter().collect(),
                    held,
                }
            }
            Flavour::StateOfTheWorld => self.subscription_world(kind),
        };
        self.ask(kind, rejection, subscription);
    }

    fn subscription_world(&self, kind: ResourceKind) -> Subscription {
        let this = &self.types[slot(kind)];
        // To resume with a version is to say that all of it is held.
        let resumes = this.nonce.is_empty();
        let complete = this.names.iter().all(|name| self.world.holds(kind, name));
        Subscription::World {
            version: if resumes && !complete { String::new() } else { this.version.clone() },
            names: this.names.iter().cloned().collect(),
        }
    }

    fn ask(
        &mut self,
        kind: ResourceKind,
        rejection: Option<Rejection>,
        subscription: Subscription,
    ) {
        // In this variant only an answer carries a nonce: beside a changed
        // subscription it would be taken for a second acceptance.
        let spontaneous = matches!(
            &subscription,
            Subscription::Delta { subscribe, unsubscribe, .. }
                if !subscribe.is_empty() || !unsubscribe.is_empty()
        );
        let nonce = if spontaneous { String::new() } else { self.types[slot(kind)].nonce.clone() };
        self.outbox.push_back(Request { kind, nonce, rejection, subscription });
    }
}

/// Most rejections kept for the status.
const MAX_REJECTED: usize = 1_024;
/// Most names of missing resources in the status.
const STATUS_NAMES: usize = 64;

#[cfg(test)]
mod tests;
