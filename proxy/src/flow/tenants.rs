//! A bounded table of what is kept for each tenant.

use std::sync::Arc;

use ahash::AHashMap;

/// What is kept by tenant, the least recently used forgotten first.
///
/// Two generations: what is used goes into the young one; when that is full it becomes the old
/// one, and what nobody used since is gone. So at most `most` are kept, and at least the last half
/// of it, at the price of a look-up or two.
#[derive(Debug)]
pub(super) struct Tenants<T> {
    most: usize,
    young: AHashMap<u64, Arc<T>>,
    old: AHashMap<u64, Arc<T>>,
}

impl<T> Tenants<T> {
    pub(super) fn new(most: usize) -> Self {
        Self { most, young: AHashMap::new(), old: AHashMap::new() }
    }

    /// What is kept for this tenant; `make` makes it for one not known.
    pub(super) fn of(&mut self, tenant: u64, make: impl FnOnce() -> T) -> Arc<T> {
        if let Some(kept) = self.young.get(&tenant) {
            return kept.clone();
        }
        let kept = self.old.remove(&tenant).unwrap_or_else(|| Arc::new(make()));
        if self.young.len() >= self.most / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(tenant, kept.clone());
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_in_use_stay_and_the_table_stays_bounded() {
        let mut tenants = Tenants::new(100);
        let mine = tenants.of(u64::MAX, || 7);
        for stranger in 0..10_000 {
            tenants.of(stranger, || 0);
            if stranger % 20 == 0 {
                assert!(Arc::ptr_eq(&mine, &tenants.of(u64::MAX, || 8)), "after {stranger}");
            }
            assert!(tenants.young.len() + tenants.old.len() <= 100);
        }
        for stranger in 0..200 {
            tenants.of(stranger, || 0);
        }
        assert_eq!(*tenants.of(u64::MAX, || 8), 8, "one not seen for long begins anew");
    }
}
