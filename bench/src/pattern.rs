//! The bytes that bulk transfers carry: a pattern that can be produced without generating and
//! checked without hashing.
//!
//! The stream is one block of pseudo-random bytes, repeated. The block's length is a prime, so a
//! chunk that is lost, repeated or moved by any buffer size shifts every byte after it and is
//! noticed by a plain comparison, which costs a fraction of what any checksum does.

use std::sync::OnceLock;

use bytes::Bytes;

/// Length of the repeated block: the largest prime below 64 KiB, small enough for the L2 cache.
pub const PERIOD: usize = 65_521;
const REPEATS: usize = 9;

/// Largest slice of the stream that [`slice()`] hands out.
pub const MAX_SLICE: usize = PERIOD * (REPEATS - 1);

/// The stream's bytes from `offset` on, `length` of them or [`MAX_SLICE`] if that is less.
#[must_use]
pub fn slice(offset: u64, length: u64) -> &'static [u8] {
    let start = position(offset);
    let length = usize::try_from(length).unwrap_or(MAX_SLICE).min(MAX_SLICE);
    &tape()[start..start + length]
}

/// Like [`slice()`], as shared [`Bytes`] for interfaces that own what they send. Nothing is copied.
#[must_use]
pub fn bytes(offset: u64, length: u64) -> Bytes {
    Bytes::from_static(slice(offset, length))
}

/// Follows a received stream and compares every byte with the pattern.
#[derive(Debug, Default, Clone)]
pub struct Verifier {
    received: u64,
    corrupt_at: Option<u64>,
}

impl Verifier {
    /// Compares the next piece of the stream.
    pub fn push(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let expected = slice(self.received, piece.len() as u64);
            let (head, rest) = piece.split_at(expected.len());
            if head != expected && self.corrupt_at.is_none() {
                self.corrupt_at = Some(self.received);
            }
            self.received += head.len() as u64;
            piece = rest;
        }
    }

    /// Bytes seen so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Checks that exactly `expected` bytes came and every one was right.
    ///
    /// # Errors
    /// Says which of the two failed, and where.
    pub fn finish(&self, expected: u64) -> Result<(), String> {
        match self.corrupt_at {
            Some(at) => Err(format!("the bytes differ in the piece that starts at offset {at}")),
            None if self.received != expected => {
                Err(format!("{} bytes arrived, {expected} were sent", self.received))
            }
            None => Ok(()),
        }
    }
}

fn position(offset: u64) -> usize {
    usize::try_from(offset % PERIOD as u64).unwrap_or(0)
}

fn tape() -> &'static [u8] {
    static TAPE: OnceLock<Vec<u8>> = OnceLock::new();
    TAPE.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let block: Vec<u8> = (0..PERIOD)
            .map(|_| {
                // xorshift64: any fixed, non-repeating sequence will do.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect();
        block.repeat(REPEATS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(total: u64, step: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while (out.len() as u64) < total {
            let offset = out.len() as u64;
            out.extend_from_slice(slice(offset, step.min(total - offset)));
        }
        out
    }

    #[test]
    fn a_stream_verifies_however_it_is_cut() {
        let whole = stream(400_000, 9_999);
        for cut in [1_usize, 7, 16_384, PERIOD, PERIOD + 1, MAX_SLICE + 3] {
            let mut verifier = Verifier::default();
            whole.chunks(cut).for_each(|piece| verifier.push(piece));
            assert_eq!(verifier.finish(400_000), Ok(()), "cut into {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let mut whole = stream(200_000, 50_000);
        whole[123_456] ^= 1;
        let mut verifier = Verifier::default();
        whole.chunks(1000).for_each(|piece| verifier.push(piece));
        assert!(verifier.finish(200_000).is_err_and(|e| e.contains("123000")));
    }

    #[test]
    fn a_lost_or_repeated_buffer_is_found() {
        let whole = stream(300_000, 65_536);
        for size in [4096_usize, 16_384, 65_536] {
            let mut lost = Verifier::default();
            lost.push(&whole[..65_536]);
            lost.push(&whole[65_536 + size..]);
            assert!(lost.finish(300_000 - size as u64).is_err(), "lost {size}");
            let mut repeated = Verifier::default();
            repeated.push(&whole[..65_536]);
            repeated.push(&whole[65_536 - size..]);
            assert!(repeated.finish(300_000 + size as u64).is_err(), "repeated {size}");
        }
    }

    #[test]
    fn a_short_stream_is_found() {
        let mut verifier = Verifier::default();
        verifier.push(&stream(99, 99));
        assert!(verifier.finish(100).is_err_and(|e| e.contains("99 bytes arrived")));
    }
}
