//! What connections have taken of memory beyond their first windows.
//!
//! A connection's window cannot be taken back from a peer: what a connection has grown by is its
//! own as long as it lasts. So growth has an account of its own, and connections that carry much
//! leave nothing the less to lend to others.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What all connections of a process may take together.
#[derive(Debug)]
pub(crate) struct Memory {
    /// To carry more.
    pub(super) growth: Account,
    /// To hold what readers leave lying.
    pub(super) loans: Account,
}

/// What all connections of this process may take together.
pub(crate) static MEMORY: Memory = Memory::new(160 << 20, 96 << 20);

impl Memory {
    pub(super) const fn new(growth: u64, loans: u64) -> Self {
        Self { growth: Account::new(growth), loans: Account::new(loans) }
    }
}

/// So many bytes, of which connections take their parts.
#[derive(Debug)]
pub(super) struct Account {
    most: u64,
    taken: AtomicU64,
}

/// A connection's part of an account, given back with it.
#[derive(Debug)]
pub(super) struct Taken {
    account: &'static Account,
    bytes: u64,
}

/// A connection may be lent so much even where nothing is left, lest uploads that wait for their
/// turn hold up those they wait for.
const LEAST: u64 = 1 << 20;

impl Account {
    const fn new(most: u64) -> Self {
        Self { most, taken: AtomicU64::new(0) }
    }
}

impl Taken {
    pub(super) fn of(account: &'static Account) -> Self {
        Self { account, bytes: 0 }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes all of it or nothing.
    pub(super) fn take(&mut self, bytes: u64) -> bool {
        let Account { most, taken } = self.account;
        let fits = |taken: u64| taken.checked_add(bytes).filter(|sum| sum <= most);
        let fits = taken.fetch_update(Relaxed, Relaxed, fits).is_ok();
        self.bytes += if fits { bytes } else { 0 };
        fits
    }

    /// Takes of it until this part is half of what is left: a few never have it all, and whoever
    /// comes late finds some. How much that was.
    pub(super) fn take_some(&mut self, bytes: u64) -> u64 {
        let Account { most, taken } = self.account;
        let mut some = 0;
        let _ = taken.fetch_update(Relaxed, Relaxed, |taken| {
            let share = (most.saturating_sub(taken) / 2).max(LEAST);
            some = bytes.min(share.saturating_sub(self.bytes));
            taken.checked_add(some)
        });
        self.bytes += some;
        some
    }

    pub(super) fn give_back(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.account.taken.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.account.taken.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_to_many_leaves_some_for_the_next() {
        static LOANS: Account = Account::new(96 << 20);
        let mut lent = Vec::new();
        for nth in 0..100 {
            let mut taken = Taken::of(&LOANS);
            // As it comes, a frame at a time.
            while taken.bytes() < 32 << 20 && taken.take_some(16 << 10) > 0 {}
            let least = if nth < 6 { 4 << 20 } else { LEAST };
            assert!(taken.bytes() >= least, "{nth}: {}", taken.bytes());
            lent.push(taken);
        }
        let all: u64 = lent.iter().map(Taken::bytes).sum();
        assert!(all <= (96 << 20) + 100 * LEAST, "{all}");
        assert_eq!(LOANS.taken.load(Relaxed), all);
        drop(lent);
        assert_eq!(LOANS.taken.load(Relaxed), 0);
    }
}
