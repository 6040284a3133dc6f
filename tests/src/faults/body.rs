//! Bodies that say at every byte whose they are: pieces of one random block, begun elsewhere for
//! each request and each answer, so that a byte lost, repeated or swapped shows at once.

use std::sync::OnceLock;

use aws_lc_rs::digest::{Context, SHA256, digest};
use bytes::Bytes;

/// Odd, so that no power of two is a period.
const BLOCK: usize = (1 << 20) - 3;

/// What a body is, byte for byte.
#[derive(Debug)]
pub(super) struct Source {
    at: usize,
}

/// Compares what arrives with what should.
#[derive(Debug)]
pub(super) struct Verifier {
    source: Source,
    pub(super) received: u64,
    /// Where it first differs.
    pub(super) wrong: Option<u64>,
}

impl Source {
    /// The body of a request, or of an answer to it.
    pub(super) fn new(seed: u64, request: usize, answer: Option<usize>) -> Self {
        let salt = answer.map_or(0, |answer| answer as u64 + 1);
        let mut dice = fastrand::Rng::with_seed(seed ^ (request as u64) << 32 ^ salt << 48);
        Self { at: dice.usize(..BLOCK) }
    }

    /// Leaves out so many bytes.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.at = ((self.at as u64 + bytes) % BLOCK as u64) as usize;
    }

    /// The next bytes: `most`, or fewer where the block ends.
    pub(super) fn next(&mut self, most: u64) -> Bytes {
        let end = BLOCK.min(self.at.saturating_add(usize::try_from(most).unwrap_or(usize::MAX)));
        let bytes = block().slice(self.at..end);
        self.at = end % BLOCK;
        bytes
    }
}

/// A digest field's value, of a body as it passes (RFC 9530).
#[derive(Clone)]
pub(super) struct Hasher(Context);

impl Hasher {
    pub(super) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn field(self) -> String {
        field(self.0.finish().as_ref())
    }
}

/// The digest field's value of a whole body.
pub(super) fn digest_of(mut source: Source, size: u64) -> String {
    let mut hasher = Hasher::new();
    let mut left = size;
    while left > 0 {
        let bytes = source.next(left);
        left -= bytes.len() as u64;
        hasher.take(&bytes);
    }
    hasher.field()
}

/// That of something else.
pub(super) fn wrong_digest() -> String {
    field(digest(&SHA256, b"something else").as_ref())
}

fn field(digest: &[u8]) -> String {
    const SYMBOLS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("sha-256=:");
    for part in digest.chunks(3) {
        let bits =
            part.iter().chain(&[0, 0]).take(3).fold(0, |bits, b| bits << 8 | usize::from(*b));
        for at in 0..4 {
            let symbol = SYMBOLS[bits >> (18 - 6 * at) & 63];
            text.push(if at <= part.len() { char::from(symbol) } else { '=' });
        }
    }
    text.push(':');
    text
}

impl Verifier {
    pub(super) fn new(source: Source) -> Self {
        Self { source, received: 0, wrong: None }
    }

    /// Begins so many bytes later.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.source.skip(bytes);
    }

    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let expected = self.source.next(bytes.len() as u64);
            let (now, rest) = bytes.split_at(expected.len());
            if now != expected && self.wrong.is_none() {
                let same = now.iter().zip(&expected).take_while(|(a, b)| a == b).count();
                self.wrong = Some(self.received + same as u64);
            }
            self.received += now.len() as u64;
            bytes = rest;
        }
    }
}

fn block() -> &'static Bytes {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut bytes = vec![0; BLOCK];
        fastrand::Rng::with_seed(1).fill(&mut bytes);
        bytes.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_written_as_rfc_9530_has_it() {
        let mut hasher = Hasher::new();
        hasher.take(b"{\"hello\": \"world\"}");
        hasher.take(b"\n");
        assert_eq!(hasher.field(), "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:");
    }

    #[test]
    fn a_repeated_piece_is_noticed_and_a_prefix_is_none() {
        let mut source = Source::new(7, 3, None);
        let mut verifier = Verifier::new(Source::new(7, 3, None));
        for _ in 0..3 {
            verifier.take(&source.next(900_000));
        }
        assert_eq!(verifier.wrong, None);
        let piece = source.next(100);
        let received = verifier.received;
        verifier.take(&piece);
        verifier.take(&piece);
        assert!(verifier.wrong.is_some_and(|at| (100..110).contains(&(at - received))));
    }
}
