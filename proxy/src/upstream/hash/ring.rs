//! A ring of points, as in ketama and Envoy: an endpoint has as many as it weighs, and a key is at home at the
//! next one. The ring as a whole keeps its size, so that with another number of endpoints each has another
//! number of points, and up to twice as many keys move as have to.

use std::fmt::Write as _;

use twox_hash::XxHash64;

use super::Share;

#[derive(Debug)]
pub(super) struct Ring {
    /// Ascending.
    points: Box<[u64]>,
    /// Whose each point is.
    pub(super) owners: Box<[u32]>,
}

impl Ring {
    /// A ring with at least `least` points, and more up to `most` where the lightest endpoint would
    /// otherwise not get whole ones.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a sum of weights is within 2^53, and Envoy reckons so too"
    )]
    pub(super) fn new(shares: &[Share], least: u32, most: u32) -> Self {
        let whole: u64 = shares.iter().map(|share| u64::from(share.weight)).sum();
        let part = |share: &Share| f64::from(share.weight) / whole as f64;
        let smallest = shares.iter().map(part).fold(1.0, f64::min);
        let size = ((smallest * f64::from(least)).ceil() / smallest).min(f64::from(most));
        let mut points = Vec::new();
        let (mut text, mut wanted) = (String::new(), 0.0);
        for (member, share) in (0_u32..).zip(shares) {
            wanted += size * part(share);
            let mut nth = 0;
            while (points.len() as f64) < wanted {
                text.clear();
                // Writing to a `String` cannot fail.
                let _ = write!(text, "{}_{nth}", share.address);
                points.push((XxHash64::oneshot(0, text.as_bytes()), member));
                nth += 1;
            }
        }
        points.sort_unstable();
        let (points, owners): (Vec<_>, Vec<_>) = points.into_iter().unzip();
        Self { points: points.into(), owners: owners.into() }
    }

    /// The index of the point at which a key is at home.
    pub(super) fn next(&self, key: u64) -> usize {
        let next = self.points.partition_point(|point| *point < key);
        if next < self.points.len() { next } else { 0 }
    }
}
