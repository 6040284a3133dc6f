//! Maglev hashing: "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), §3.4.
//!
//! Every endpoint has a permutation of the table's places, of its own name alone, and endpoints take the next
//! free place of theirs in turn. One that weighs half of the heaviest takes every second turn, as in Envoy.

use std::{cmp::Reverse, collections::BinaryHeap, fmt::Write as _};

use twox_hash::XxHash64;

use super::Share;

/// Whose each place is; `size` is a prime. Empty when there are no endpoints.
pub(super) fn table(shares: &[Share], size: u32) -> Box<[u32]> {
    let Some(heaviest) = shares.iter().map(|share| share.weight).max() else { return [].into() };
    let size = u64::from(size);
    let mut text = String::new();
    let mut permutations: Vec<_> =
        shares.iter().map(|share| Permutation::new(share, size, &mut text)).collect();
    let mut turns: BinaryHeap<_> = (0..shares.len()).map(|i| Reverse((1_u64, i))).collect();
    let mut owners = vec![FREE; usize::try_from(size).unwrap_or(0)];
    for _ in 0..size {
        let Some(Reverse((turn, i))) = turns.pop() else { break };
        let permutation = &mut permutations[i];
        permutation.take(&mut owners, i);
        let share = u64::from(shares[i].weight.max(1));
        let due = (permutation.taken * u64::from(heaviest)).div_ceil(share);
        turns.push(Reverse((due.max(turn + 1), i)));
    }
    owners.into()
}

const FREE: u32 = u32::MAX;

struct Permutation {
    next: u64,
    skip: u64,
    size: u64,
    taken: u64,
}

impl Permutation {
    fn new(share: &Share, size: u64, text: &mut String) -> Self {
        text.clear();
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{}", share.address);
        let hash = |seed| XxHash64::oneshot(seed, text.as_bytes());
        Self { next: hash(0) % size, skip: hash(1) % (size - 1) + 1, size, taken: 0 }
    }

    /// Takes the next free place. There is one, and since the size is a prime it is come by.
    fn take(&mut self, owners: &mut [u32], member: usize) {
        loop {
            let place = usize::try_from(self.next).unwrap_or(0);
            self.next = (self.next + self.skip) % self.size;
            if owners[place] == FREE {
                owners[place] = u32::try_from(member).unwrap_or(0);
                self.taken += 1;
                return;
            }
        }
    }
}
