//! Who is next. Pure: no clock, no lock, no endpoint.
//!
//! Three levels, each fair in its own way:
//!
//! 1. between **classes** by weight, by start-time fair queueing (Goyal, Vin and Cheng,
//!    SIGCOMM 1996): each has a tag that grows by the work it is given, divided by its weight,
//!    and the smallest tag is served. One that had nothing to do gets no credit for it.
//! 2. between the **tenants** of a class in the same way, without weights;
//! 3. within a tenant by the time at which a request must have begun, those that lie close
//!    together by length, the shortest first. A newcomer's time is later than that of
//!    somebody who has waited long, so that nobody is overtaken for ever.
//!
//! Work is time in a slot: predicted when a request begins, and set right when it is known.

use std::collections::{BTreeSet, HashMap};

use towpath_policies::model::{Class, Queue as Terms};

/// Names a request that waits.
pub(crate) type Id = u64;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) class: Class,
    /// Whose it is.
    pub(crate) tenant: u64,
    /// Body bytes it declares.
    pub(crate) bytes: u64,
    /// Time in a slot it is expected to take, in µs.
    pub(crate) length_us: u64,
    /// After this it is of no use, in µs of the caller's clock: its deadline, or the longest wait.
    pub(crate) start_by_us: u64,
    /// It had a slot before: it goes ahead of its equals.
    pub(crate) again: bool,
}

/// All that wait for a slot of one service.
#[derive(Debug, Default)]
pub(crate) struct Line {
    ranks: [Rank; 3],
    /// Where classes begin that had nothing to do: the tag served last.
    at: u128,
    waiting: HashMap<Id, Place>,
    /// Bytes that count, of all.
    bytes: u64,
    next_id: Id,
    releases: Releases,
}

/// A class.
#[derive(Debug, Default)]
struct Rank {
    tag: u128,
    /// As [`Line::at`], for tenants.
    at: u128,
    tenants: HashMap<u64, Tenant>,
    /// Tenants with somebody waiting, by tag.
    ready: BTreeSet<(u128, u64)>,
    length: usize,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Tenant {
    tag: u128,
    waiting: BTreeSet<Key>,
}

/// The place within a tenant: those that had a slot, then by time, length, and arrival.
type Key = (bool, u64, u64, Id);

/// Somebody in the line.
#[derive(Debug)]
struct Place {
    want: Want,
    key: Key,
    /// Bytes that count, whatever the limit is by now.
    bytes: u64,
}

/// How fast slots come free.
#[derive(Debug, Default)]
struct Releases {
    last_us: Option<u64>,
    gap_us: u64,
}

/// Somebody joined.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) id: Id,
    /// Those who had to go for it.
    pub(crate) displaced: Vec<Id>,
}

/// The line is full of those who are no worse.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// What may be said of somebody's turn.
#[derive(Debug)]
pub(crate) enum Fit<T> {
    /// It can begin, there.
    Yes(T),
    /// Others may have more luck.
    No,
    /// Nobody can begin now.
    Nobody,
}

/// Work is counted in µs times this, so that weights divide it without loss.
const SCALE: u128 = 1 << 10;
/// Times to begin by that lie within this part of the time given count as one.
const WINDOWS: u64 = 4;
/// Tenants remembered beyond those who wait.
const IDLE_TENANTS: usize = 1024;
/// What is told of the time until there is room again.
const SHORTEST_ADVICE_US: u64 = 1_000_000;
const LONGEST_ADVICE_US: u64 = 300_000_000;

impl Line {
    /// Lets somebody in, at the cost of those who are worse where it is full.
    ///
    /// Worse are the lower classes, the last of the lowest first. Somebody who had a slot also
    /// displaces its own class; and so does a tenant that has fewer waiting than another, since
    /// one that floods the line would else keep all others out.
    ///
    /// What one declares costs it nothing. So one that declares more than half of the bytes that
    /// may wait counts as that half, and displaces nobody.
    ///
    /// # Errors
    /// When there is no room: nothing changed.
    pub(crate) fn join(&mut self, want: Want, now_us: u64, terms: &Terms) -> Result<Joined, Full> {
        let displaced = self.make_room(&want, terms)?;
        let id = self.next_id;
        self.next_id += 1;
        if self.waiting.is_empty() {
            // Nothing was waited for until now, so that what passed says nothing of how long it takes.
            self.releases.last_us = Some(now_us);
        }
        let key = (!want.again, window(want.start_by_us, now_us), want.length_us, id);
        let rank = &mut self.ranks[want.class as usize];
        if rank.length == 0 {
            rank.tag = rank.tag.max(self.at);
        }
        let bytes = counted(&want, terms);
        rank.length += 1;
        rank.bytes += bytes;
        let tenant = rank.tenants.entry(want.tenant).or_default();
        if tenant.waiting.is_empty() {
            tenant.tag = tenant.tag.max(rank.at);
            rank.ready.insert((tenant.tag, want.tenant));
        }
        tenant.waiting.insert(key);
        self.bytes += bytes;
        self.waiting.insert(id, Place { want, key, bytes });
        Ok(Joined { id, displaced })
    }

    /// Takes somebody out who does not wait any longer.
    pub(crate) fn leave(&mut self, id: Id) -> Option<Want> {
        let Place { want, key, bytes } = self.waiting.remove(&id)?;
        self.bytes -= bytes;
        let rank = &mut self.ranks[want.class as usize];
        rank.length -= 1;
        rank.bytes -= bytes;
        if let Some(tenant) = rank.tenants.get_mut(&want.tenant) {
            tenant.waiting.remove(&key);
            if tenant.waiting.is_empty() {
                rank.ready.remove(&(tenant.tag, want.tenant));
            }
        }
        rank.forget_idle();
        Some(want)
    }

    /// The first in order of whom `fits` says so; it is out of the line then, and charged.
    /// Those whose time has passed are not asked.
    pub(crate) fn next<T>(
        &mut self,
        now_us: u64,
        terms: &Terms,
        mut fits: impl FnMut(Id, &Want) -> Fit<T>,
    ) -> Option<(Id, Want, T)> {
        let (id, place) = self.in_order().find_map(|id| {
            let want = &self.waiting.get(&id)?.want;
            if want.start_by_us <= now_us {
                return None;
            }
            match fits(id, want) {
                Fit::Yes(place) => Some(Some((id, place))),
                Fit::No => None,
                Fit::Nobody => Some(None),
            }
        })??;
        let want = self.leave(id)?;
        self.charge(&want, terms);
        Some((id, want, place))
    }

    /// Charges work that begins.
    fn charge(&mut self, want: &Want, terms: &Terms) {
        let weight = weight(terms, want.class);
        let rank = &mut self.ranks[want.class as usize];
        self.at = self.at.max(rank.tag);
        rank.tag += scaled(want.length_us, weight);
        let Some(tenant) = rank.tenants.get_mut(&want.tenant) else { return };
        rank.at = rank.at.max(tenant.tag);
        let moved = tenant.tag + scaled(want.length_us, 1);
        rank.retag(want.tenant, moved);
        rank.forget_idle();
    }

    /// Sets right what was charged, now that the work is done.
    pub(crate) fn settle(&mut self, want: &Want, took_us: u64, now_us: u64, terms: &Terms) {
        if !self.waiting.is_empty() {
            self.releases.note(now_us);
        }
        let right = |tag: u128, weight| {
            let charged = tag + scaled(took_us, weight);
            charged.saturating_sub(scaled(want.length_us, weight))
        };
        let rank = &mut self.ranks[want.class as usize];
        rank.tag = right(rank.tag, weight(terms, want.class));
        rank.advance(took_us);
        if let Some(tenant) = rank.tenants.get(&want.tenant) {
            let moved = right(tenant.tag, 1);
            rank.retag(want.tenant, moved);
        }
    }

    /// The time in which what waits now will probably have begun, in µs: what somebody is told
    /// who is turned away.
    pub(crate) fn advice_us(&self, now_us: u64) -> u64 {
        let waiting = self.waiting.len() as u64 + 1;
        let gap = self.releases.gap_us(now_us);
        waiting.saturating_mul(gap).clamp(SHORTEST_ADVICE_US, LONGEST_ADVICE_US)
    }

    /// How many wait, and the bytes of theirs that count.
    pub(crate) fn of_class(&self, class: Class) -> (usize, u64) {
        let rank = &self.ranks[class as usize];
        (rank.length, rank.bytes)
    }

    /// Whose turn it is.
    pub(crate) fn first(&self) -> Option<Id> {
        self.in_order().next()
    }

    /// How many wait.
    pub(crate) fn length(&self) -> usize {
        self.waiting.len()
    }

    /// Everybody, in order of their turn as it is now.
    fn in_order(&self) -> impl Iterator<Item = Id> {
        let mut ranks: [&Rank; 3] = self.ranks.each_ref();
        // Stable: on ties the better class is first.
        ranks.sort_by_key(|rank| rank.tag);
        ranks.into_iter().flat_map(|rank| {
            let tenants = rank.ready.iter().filter_map(|(_, name)| rank.tenants.get(name));
            tenants.flat_map(|tenant| tenant.waiting.iter().map(|(.., id)| *id))
        })
    }

    fn make_room(&mut self, want: &Want, terms: &Terms) -> Result<Vec<Id>, Full> {
        let mut displaced = Vec::new();
        if self.has_room(self.waiting.len(), self.bytes, want, terms) {
            return Ok(displaced);
        }
        if want.bytes > most_counted(terms) {
            return Err(Full);
        }
        let own = want.class as usize;
        let worse = if want.again { own } else { own + 1 };
        let length: usize = self.ranks[worse..].iter().map(|rank| rank.length).sum();
        let bytes: u64 = self.ranks[worse..].iter().map(|rank| rank.bytes).sum();
        if self.has_room(self.waiting.len() - length, self.bytes - bytes, want, terms) {
            while !self.has_room(self.waiting.len(), self.bytes, want, terms) {
                let last = self.ranks[worse..].iter().rev().find_map(Rank::last).ok_or(Full)?;
                self.leave(last);
                displaced.push(last);
            }
            return Ok(displaced);
        }
        let last = self.ranks[own].last_of_a_flood(want.tenant).ok_or(Full)?;
        let bytes = self.waiting.get(&last).map_or(0, |place| place.bytes);
        if !self.has_room(self.waiting.len() - 1, self.bytes - bytes, want, terms) {
            return Err(Full);
        }
        self.leave(last);
        displaced.push(last);
        Ok(displaced)
    }

    fn has_room(&self, length: usize, bytes: u64, want: &Want, terms: &Terms) -> bool {
        let fits = bytes.saturating_add(counted(want, terms)) <= terms.max_bytes;
        length < terms.max_requests as usize && fits
    }
}

impl Rank {
    fn retag(&mut self, name: u64, tag: u128) {
        let Some(tenant) = self.tenants.get_mut(&name) else { return };
        if self.ready.remove(&(tenant.tag, name)) {
            self.ready.insert((tag, name));
        }
        tenant.tag = tag;
    }

    /// Moves on where newcomers begin, by the part of this work that is everybody's who waits
    /// (the virtual time of weighted fair queueing). Tenants who are new each time would else all
    /// begin where the first did, and always be before one that was served once. No newcomer
    /// begins behind all others.
    fn advance(&mut self, took_us: u64) {
        let Some((last, _)) = self.ready.last() else { return };
        let part = scaled(took_us, 1) / self.ready.len() as u128;
        self.at = self.at.max((self.at + part).min(*last));
    }

    /// The last in order of the tenant that was served the most.
    fn last(&self) -> Option<Id> {
        let (_, name) = self.ready.last()?;
        self.tenants.get(name)?.waiting.last().map(|(.., id)| *id)
    }

    /// The last of the tenant with the most waiting, if that is two more than `newcomer` has.
    fn last_of_a_flood(&self, newcomer: u64) -> Option<Id> {
        let own = self.tenants.get(&newcomer).map_or(0, |t| t.waiting.len());
        let waiting = self.ready.iter().filter_map(|(_, name)| self.tenants.get(name));
        let most = waiting.max_by_key(|tenant| tenant.waiting.len())?;
        let last = most.waiting.last().map(|(.., id)| *id);
        last.filter(|_| most.waiting.len() > own + 1)
    }

    /// Forgets those who are owed nothing, and if these are too few, all who do not wait.
    fn forget_idle(&mut self) {
        if self.tenants.len() <= self.ready.len() + IDLE_TENANTS {
            return;
        }
        let at = self.at;
        self.tenants.retain(|_, tenant| !tenant.waiting.is_empty() || tenant.tag > at);
        if self.tenants.len() > self.ready.len() + IDLE_TENANTS {
            self.tenants.retain(|_, tenant| !tenant.waiting.is_empty());
        }
    }
}

impl Releases {
    fn note(&mut self, now_us: u64) {
        if let Some(last) = self.last_us {
            let gap = now_us.saturating_sub(last);
            self.gap_us = if self.gap_us == 0 { gap } else { (self.gap_us * 7 + gap) / 8 };
        }
        self.last_us = Some(now_us);
    }

    /// Between one that comes free and the next; no shorter than the one that is awaited now.
    fn gap_us(&self, now_us: u64) -> u64 {
        self.gap_us.max(self.last_us.map_or(0, |last| now_us.saturating_sub(last)))
    }
}

/// Bytes of a request that count while it waits.
fn counted(want: &Want, terms: &Terms) -> u64 {
    want.bytes.min(most_counted(terms))
}

fn most_counted(terms: &Terms) -> u64 {
    terms.max_bytes / 2
}

fn weight(terms: &Terms, class: Class) -> u32 {
    terms.weights.of(class).max(1)
}

fn scaled(us: u64, weight: u32) -> u128 {
    u128::from(us) * SCALE / u128::from(weight)
}

/// The time to begin by, rounded down to a quarter of the time there is (to the power of two below it).
fn window(start_by_us: u64, now_us: u64) -> u64 {
    let part = (start_by_us.saturating_sub(now_us) / WINDOWS).max(1);
    start_by_us & !((1 << part.ilog2()) - 1)
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
