//! Who goes next where the bandwidth to a service is bounded: shares of classes by weight, of
//! tenants within a class, and of transfers within a tenant.
//!
//! Pure: transfers ask for parts, time passes, parts are granted.

use std::collections::{BTreeMap, VecDeque};

use towpath_policies::model::{Bandwidth, Class};

/// The queue before a bounded bandwidth.
///
/// Between classes it is start-time fair queueing (Goyal et al., 1996): each class has a virtual
/// time that advances by what it gets, divided by its weight; the class that is furthest behind goes
/// first, and one that asked for nothing for a while begins where the others are. Between tenants of a
/// class it is deficit round robin (Shreedhar and Varghese, 1995), and transfers of a tenant come in
/// turn. What nobody asks for is there for others, so that the whole rate is used whenever
/// there is enough to do.
#[derive(Debug)]
pub(super) struct Shares {
    per_second: u64,
    /// Bytes that may go at once after a pause.
    burst: i64,
    /// Bytes that may go now; below zero while a part is being paid for.
    there: i64,
    /// What is less than a byte, in byte-nanoseconds.
    rest: u64,
    last: u64,
    virtual_time: u64,
    classes: [Queue; Class::ALL.len()],
}

#[derive(Debug)]
struct Queue {
    weight: u64,
    virtual_time: u64,
    /// Tenants that ask for something, in turn.
    turns: VecDeque<u64>,
    tenants: BTreeMap<u64, Tenant>,
}

#[derive(Debug, Default)]
struct Tenant {
    deficit: u64,
    asks: VecDeque<Ask>,
}

/// A transfer that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) id: u64,
    pub(super) bytes: u64,
}

/// Virtual times are bytes times this, divided by weights.
const SCALE: u64 = 1 << 10;
const SECOND: u64 = 1_000_000_000;

impl Shares {
    pub(super) fn new(spec: &Bandwidth, now: u64) -> Self {
        let queue = |class: Class| Queue {
            weight: u64::from(spec.weights.of(class)).max(1),
            virtual_time: 0,
            turns: VecDeque::new(),
            tenants: BTreeMap::new(),
        };
        let burst = Self::burst_of(spec.bytes_per_second);
        Self {
            per_second: spec.bytes_per_second.max(1),
            burst: burst.cast_signed(),
            there: burst.cast_signed(),
            rest: 0,
            last: now,
            virtual_time: 0,
            classes: Class::ALL.map(queue),
        }
    }

    /// What may go at once: what timers of a millisecond need to keep up with the rate.
    fn burst_of(per_second: u64) -> u64 {
        (per_second / 100).clamp(64 << 10, 1 << 40)
    }

    /// The most that is worth asking for at a time: two milliseconds' worth, so that those who come
    /// meanwhile wait no longer.
    pub(super) fn most(per_second: u64) -> u64 {
        (per_second / 500).clamp(16 << 10, 1 << 20)
    }

    /// A transfer asks for a part.
    pub(super) fn ask(&mut self, class: Class, tenant: u64, ask: Ask) {
        let queue = &mut self.classes[class as usize];
        if queue.turns.is_empty() {
            queue.virtual_time = queue.virtual_time.max(self.virtual_time);
        }
        let of_tenant = queue.tenants.entry(tenant).or_default();
        if of_tenant.asks.is_empty() {
            queue.turns.push_back(tenant);
        }
        of_tenant.asks.push_back(ask);
    }

    /// A transfer that waits is gone.
    pub(super) fn withdraw(&mut self, class: Class, tenant: u64, id: u64) {
        let queue = &mut self.classes[class as usize];
        let Some(of_tenant) = queue.tenants.get_mut(&tenant) else { return };
        of_tenant.asks.retain(|ask| ask.id != id);
        if of_tenant.asks.is_empty() {
            queue.tenants.remove(&tenant);
            queue.turns.retain(|turn| *turn != tenant);
        }
    }

    /// What was granted and not used.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.there = self.there.saturating_add_unsigned(bytes).min(self.burst);
    }

    /// What was used without having been granted.
    pub(super) fn owe(&mut self, bytes: u64) {
        self.there = self.there.saturating_sub_unsigned(bytes);
    }

    /// Grants the next part, if anything may go at this time.
    pub(super) fn grant(&mut self, now: u64) -> Option<Ask> {
        self.fill(now);
        if self.there <= 0 {
            return None;
        }
        let waiting = self.classes.iter_mut().filter(|queue| !queue.turns.is_empty());
        let queue = waiting.min_by_key(|queue| queue.virtual_time)?;
        self.virtual_time = queue.virtual_time;
        let ask = queue.next(Self::most(self.per_second))?;
        queue.virtual_time += ask.bytes.saturating_mul(SCALE) / queue.weight;
        self.there = self.there.saturating_sub_unsigned(ask.bytes);
        Some(ask)
    }

    /// When the next part may go; `None` when nobody waits.
    pub(super) fn next_at(&self) -> Option<u64> {
        if self.classes.iter().all(|queue| queue.turns.is_empty()) {
            return None;
        }
        let missing = u64::try_from(1 - self.there).unwrap_or(0);
        let time = u128::from(missing) * u128::from(SECOND) / u128::from(self.per_second);
        Some(self.last.saturating_add(u64::try_from(time).unwrap_or(u64::MAX).saturating_add(1)))
    }

    fn fill(&mut self, now: u64) {
        let time = now.saturating_sub(self.last);
        self.last = self.last.max(now);
        let came = u128::from(time) * u128::from(self.per_second) + u128::from(self.rest);
        self.rest = u64::try_from(came % u128::from(SECOND)).unwrap_or(0);
        let came = i64::try_from(came / u128::from(SECOND)).unwrap_or(i64::MAX);
        self.there = self.there.saturating_add(came);
        if self.there >= self.burst {
            self.there = self.burst;
            self.rest = 0;
        }
    }
}

impl Queue {
    /// Deficit round robin: each tenant in its turn gets as much, the largest part there is, and
    /// what it does not use of it while more waits is saved up.
    fn next(&mut self, turn: u64) -> Option<Ask> {
        loop {
            let tenant = *self.turns.front()?;
            let of_tenant = self.tenants.get_mut(&tenant)?;
            let first = *of_tenant.asks.front()?;
            if of_tenant.deficit < first.bytes {
                of_tenant.deficit += turn;
                if of_tenant.deficit < first.bytes {
                    self.turns.rotate_left(1);
                    continue;
                }
            }
            of_tenant.deficit -= first.bytes;
            of_tenant.asks.pop_front();
            let enough = of_tenant.asks.front().is_none_or(|ask| ask.bytes > of_tenant.deficit);
            if of_tenant.asks.is_empty() {
                // Those who ask again at once lose less than a turn.
                self.tenants.remove(&tenant);
                self.turns.pop_front();
            } else if enough {
                self.turns.rotate_left(1);
            }
            return Some(first);
        }
    }
}

#[cfg(test)]
mod tests;
