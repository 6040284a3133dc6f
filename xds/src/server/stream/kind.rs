//! What a stream knows about one type of resource.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use towpath_policies::model::{ResourceKind, Snapshot};

use super::{Covered, Event};
use crate::{
    Flavour,
    wire::{Encoded, Rejection, digest},
};

#[derive(Debug, Default)]
pub(super) struct Type {
    pub(super) asked: bool,
    /// Whether a name was ever given: from then on an empty list means none (state of the world).
    pub(super) named: bool,
    pub(super) wildcard: bool,
    pub(super) names: BTreeSet<String>,
    pub(super) sent: BTreeMap<String, Sent>,
    pub(super) dirty: BTreeSet<String>,
    /// A response is owed even if it is empty.
    pub(super) owed: bool,
    pub(super) last: Option<Last>,
}

/// What the client was told of a resource.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    /// Empty when it was told that there is none.
    pub(super) version: Arc<str>,
    /// It said no. The same version is not offered again.
    pub(super) rejected: bool,
    /// Kept for complete responses (state of the world).
    pub(super) encoded: Option<Arc<Encoded>>,
}

/// The latest response of a type.
#[derive(Debug)]
pub(super) struct Last {
    pub(super) nonce: String,
    pub(super) snapshot_version: String,
    /// Everything it held, and what of that was news.
    pub(super) names: Vec<String>,
    pub(super) news: Vec<String>,
    pub(super) waiting: bool,
}

impl Type {
    pub(super) fn waiting(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.waiting)
    }

    /// Marks what differs between two snapshots; whether anything did.
    pub(super) fn mark<T>(
        &mut self,
        old: &BTreeMap<String, Arc<T>>,
        new: &BTreeMap<String, Arc<T>>,
    ) -> bool {
        let mut differs = false;
        let changed = new
            .iter()
            .filter(|(name, value)| old.get(*name).is_none_or(|o| !Arc::ptr_eq(o, value)))
            .map(|(name, _)| name);
        let gone = old.keys().filter(|name| !new.contains_key(*name));
        for name in changed.chain(gone) {
            differs = true;
            if self.asked && (self.wildcard || self.names.contains(name)) {
                self.dirty.insert(name.clone());
            }
        }
        differs
    }

    /// Nothing is to be said about these names for now.
    pub(super) fn leave_be(&mut self, names: &[String]) {
        for name in names {
            self.dirty.remove(name);
        }
    }

    /// Whether the client is to have a resource of this name, if there is one.
    pub(super) fn wants(
        &self,
        snapshot: &Snapshot,
        covered: &Covered,
        kind: ResourceKind,
        name: &str,
    ) -> bool {
        self.names.contains(name)
            || self.wildcard
                && match kind {
                    ResourceKind::Listener => {
                        snapshot.listeners.get(name).is_some_and(|l| covered.listener(l))
                    }
                    ResourceKind::Service => covered.services.contains(name),
                    ResourceKind::RouteTable | ResourceKind::EndpointSet => true,
                }
    }

    /// Takes in what a request says about the latest response of its type.
    /// Answers to anything older are ignored. A rejection may follow an
    /// acceptance: a client may find out later that it cannot apply something.
    pub(super) fn answered(
        &mut self,
        kind: ResourceKind,
        nonce: &str,
        rejection: Option<Rejection>,
    ) -> Option<Event> {
        let last = self.last.as_mut().filter(|last| !nonce.is_empty() && last.nonce == nonce)?;
        let waited = std::mem::replace(&mut last.waiting, false);
        let version = last.snapshot_version.clone();
        let Some(mut rejection) = rejection else {
            return waited.then_some(Event::Ack { kind, version });
        };
        if rejection.resources.is_empty() {
            rejection.resources = blame(&last.names, &last.news, &rejection.message);
        }
        for (name, _) in &rejection.resources {
            if let Some(sent) = self.sent.get_mut(name) {
                sent.rejected = true;
            }
        }
        Some(Event::Nack { kind, version, rejection })
    }
}

impl Sent {
    pub(super) fn new(encoded: &Arc<Encoded>, flavour: Flavour) -> Self {
        let keep = flavour == Flavour::StateOfTheWorld;
        Self {
            version: encoded.version.clone(),
            rejected: false,
            encoded: keep.then(|| encoded.clone()),
        }
    }

    pub(super) fn absent() -> Self {
        Self { version: "".into(), rejected: false, encoded: None }
    }
}

/// Which resources a rejection's text names; all that was news when none.
pub(super) fn blame(names: &[String], news: &[String], message: &str) -> Vec<(String, String)> {
    let named: Vec<_> = names.iter().filter(|name| message.contains(name.as_str())).collect();
    let guilty = if named.is_empty() { news.iter().collect() } else { named };
    let reasons = std::iter::repeat_n(message, MAX_REASONS).chain(std::iter::repeat("as above"));
    guilty.into_iter().zip(reasons).map(|(name, text)| (name.clone(), text.to_owned())).collect()
}

/// Most copies of a rejection's text.
const MAX_REASONS: usize = 256;

/// One version for all a client holds of a type. What it rejected is left
/// out, so a client that comes back with it is not taken to hold that.
pub(super) fn world_version(sent: &BTreeMap<String, Sent>) -> String {
    let mut text = String::new();
    for (name, sent) in sent {
        if !sent.rejected {
            text.extend([name.as_str(), "\n", &sent.version, "\n"]);
        }
    }
    digest(text.as_bytes())
}
