//! The streams of a connection, found by identifier for frames and by place for their owners.

use std::collections::{HashMap, HashSet, VecDeque};

use super::core::StreamState;

/// Where a stream is kept while its owner or the wire still needs it.
pub(super) type Key = usize;

/// Identifiers remembered of streams that ended by a reset of ours.
/// More than can be open at a time, so that all may be reset at once.
const REMEMBERED: usize = 4096;

/// Places kept while no stream is open.
const KEPT: usize = 256;
/// Identifiers remembered of streams that ended.
const ENDED: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Streams {
    places: Vec<Option<StreamState>>,
    free: Vec<Key>,
    by_id: HashMap<u32, Key, ahash::RandomState>,
    reset: HashSet<u32, ahash::RandomState>,
    reset_order: VecDeque<u32>,
    /// The last that ended, in a ring, and where the next goes.
    ended: [u32; ENDED],
    next_ended: usize,
}

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Streams that not both sides have ended.
    pub(super) fn open(&self) -> usize {
        self.places.iter().flatten().filter(|s| !(s.local_closed && s.remote_closed)).count()
    }

    pub(super) fn add(&mut self, stream: StreamState) -> Key {
        let id = stream.id;
        let key = match self.free.pop() {
            Some(key) => {
                self.places[key] = Some(stream);
                key
            }
            None => {
                self.places.push(Some(stream));
                self.places.len() - 1
            }
        };
        self.by_id.insert(id, key);
        key
    }

    pub(super) fn find(&self, id: u32) -> Option<Key> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn get(&self, key: Key) -> Option<&StreamState> {
        self.places.get(key)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut StreamState> {
        self.places.get_mut(key)?.as_mut()
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<StreamState> {
        let stream = self.places.get_mut(key)?.take()?;
        self.by_id.remove(&stream.id);
        self.ended[self.next_ended % ENDED] = stream.id;
        self.next_ended = self.next_ended.wrapping_add(1);
        if self.by_id.is_empty() && self.places.len() > KEPT {
            self.places = Vec::new();
            self.free = Vec::new();
            self.by_id.shrink_to_fit();
        } else {
            self.free.push(key);
        }
        Some(stream)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + use<> {
        0..self.places.len()
    }

    /// Remembers that we reset this stream: what was sent before the peer knew is ignored.
    pub(super) fn note_reset(&mut self, id: u32) {
        if !self.reset.insert(id) {
            return;
        }
        if self.reset_order.len() >= REMEMBERED
            && let Some(oldest) = self.reset_order.pop_front()
        {
            self.reset.remove(&oldest);
        }
        self.reset_order.push_back(id);
    }

    /// Whether a stream ended not long ago.
    pub(super) fn has_ended(&self, id: u32) -> bool {
        self.ended.contains(&id)
    }

    pub(super) fn was_reset(&self, id: u32) -> bool {
        self.reset.contains(&id)
    }
}
