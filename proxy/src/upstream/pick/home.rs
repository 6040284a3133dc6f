//! The endpoint at which a key is at home, and who comes next when that one has its fill.
//!
//! "Consistent Hashing with Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam, SODA 2018): an endpoint has at
//! most so much of the mean load, and what is beyond goes to the next in the key's own order.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{EndpointState, Level, Round, wrap};
use crate::upstream::hash::{Homes, Table};

/// So many entries of a table are looked at before the members are, from end to end.
const STEPS: usize = 128;

/// What a level bears, without the endpoints that may not be used.
struct Load {
    requests: u64,
    /// In thousandths.
    weight: u128,
}

impl<'a> Round<'a, '_> {
    /// The first from its home on that may be used and is within the bound; if none is, the first that may
    /// be used.
    pub(super) fn at_home(
        &mut self,
        homes: &Homes,
        nth: usize,
        level: &Level,
        key: u64,
    ) -> Option<&'a Arc<EndpointState>> {
        let (table, count) = (homes.table(nth), level.members.len());
        let home = table.from(key).next()?;
        let members = (0..count).map(|step| wrap(home + step, count));
        let mut first = None;
        let mut load = None;
        for member in table.from(key).take(STEPS).chain(members) {
            let Some(candidate) = self.eligible(level, member) else { continue };
            let Some(percent) = homes.bound_percent() else { return Some(candidate) };
            let requests = level.lives[member].requests.load(Relaxed);
            if requests == 0 {
                return Some(candidate);
            }
            first.get_or_insert(candidate);
            let load = load.get_or_insert_with(|| self.load(table, level));
            let weight = self.bears(table, level, member);
            // Without this request, so that one more is within the bound rounded up.
            let most = u128::from(percent) * u128::from(load.requests + 1) * weight;
            if u128::from(requests) * 100 * load.weight < most {
                return Some(candidate);
            }
        }
        first
    }

    fn load(&self, table: &Table, level: &Level) -> Load {
        let mut load = Load { requests: 0, weight: 0 };
        for (member, live) in level.lives.iter().enumerate() {
            if self.panic || live.usable(self.now_ms) {
                load.requests += u64::from(live.requests.load(Relaxed));
                load.weight += self.bears(table, level, member);
            }
        }
        load
    }

    /// Its weight in thousandths; one that came back bears a part at first.
    fn bears(&self, table: &Table, level: &Level, member: usize) -> u128 {
        let warmth = match self.recovering {
            true => level.lives[member].warmth(self.now_ms, &self.service.spec.recovery).max(1),
            false => 1000,
        };
        u128::from(table.weight(member)) * u128::from(warmth)
    }
}
