//! A digest of rows that does not depend on their order.
//!
//! Each row's canonical bytes are hashed with SHA-256; the first 128 bits are
//! summed modulo 2^128. Equal multisets of rows have equal digests however they
//! were cut into batches; a lost, changed or doubled row changes it.

use std::{fmt, ops::AddAssign, str::FromStr};

use sha2::{Digest as _, Sha256};

use super::rows::Row;

/// The sum over rows seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u128);

/// Feeds rows to a [`Digest`] without allocating for each.
#[derive(Debug, Default)]
pub struct Digester {
    sum: Digest,
    canonical: Vec<u8>,
}

impl Digester {
    /// Adds a row.
    pub fn add(&mut self, row: &Row<'_>) {
        self.canonical.clear();
        row.canonical(&mut self.canonical);
        let hash = Sha256::digest(&self.canonical);
        let first = hash.iter().take(16).fold(0u128, |sum, byte| (sum << 8) | u128::from(*byte));
        self.sum += Digest(first);
    }

    /// The digest of all rows added.
    pub fn digest(&self) -> Digest {
        self.sum
    }
}

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Digest {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etl::rows::Table;

    const LINES: [&str; 3] = [
        "1|10|F|1.00|1995-01-01|1-URGENT|Clerk#1|0|a|",
        "2|10|O|2.00|1995-01-02|2-HIGH|Clerk#2|0|b|",
        "3|10|P|3.00|1995-01-03|5-LOW|Clerk#3|0|c|",
    ];

    fn digest(lines: &[&str]) -> Digest {
        let mut digester = Digester::default();
        for line in lines {
            digester.add(&Row::parse(Table::Orders, line).unwrap());
        }
        digester.digest()
    }

    #[test]
    fn order_and_cutting_do_not_matter() {
        let [a, b, c] = LINES;
        let mut sum = digest(&[c]);
        sum += digest(&[a, b]);
        assert_eq!(digest(&LINES), sum);
        assert_eq!(digest(&LINES), digest(&[b, c, a]));
    }

    #[test]
    fn a_lost_doubled_or_changed_row_shows() {
        let [a, b, c] = LINES;
        let whole = digest(&LINES);
        for other in
            [&[a, b][..], &[a, b, c, c], &[a, b, b], &[a, b, &c.replace("|c|", "|C|")], &[]]
        {
            assert_ne!(whole, digest(other), "{other:?}");
        }
    }

    #[test]
    fn moving_a_character_between_fields_shows() {
        let one = "1|10|F|1.00|1995-01-01|1-URGENT|ab|0|c|";
        let two = "1|10|F|1.00|1995-01-01|1-URGENT|a|0|bc|";
        assert_ne!(digest(&[one]), digest(&[two]));
    }

    #[test]
    fn text_form_comes_back() {
        let digest = digest(&LINES);
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
}
