//! Digests of bodies (RFC 9530): made where there are none, checked where there are some. Pure.
//!
//! A [`Body`] sees the pieces of one body pass and tells what to pass on. What says how the body
//! ends (its last byte where its length was told, else its end) is let go only when
//! the digests match, so that no body that does not match ends well. Digests that are only known
//! at the end go into the trailers.

use aws_lc_rs::digest::{self, Context, SHA256, SHA512};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use towpath_policies::model::{DigestAlgorithm, Integrity};

use super::message::{Length, Piece};

mod fields;

use fields::{Malformed, Value};

/// What came of the digests of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestOutcome {
    /// One was made.
    Made,
    /// The body matched those that came with it.
    Ok,
    /// It did not.
    Mismatch,
}

impl DigestOutcome {
    /// Metric label values, in order of the variants.
    pub const NAMES: [&'static str; 3] = ["made", "ok", "mismatch"];
}

/// The digests of both bodies of an exchange.
pub(super) struct Digests {
    pub(super) terms: Integrity,
    /// The client wants a digest of the response.
    pub(super) wanted: bool,
    pub(super) request: Option<Body>,
    pub(super) response: Option<Body>,
}

/// One body, as it passes.
pub(super) struct Body {
    /// At most one for each algorithm.
    hashers: Vec<(DigestAlgorithm, Context)>,
    /// What the head said.
    expected: Vec<(DigestAlgorithm, Vec<u8>)>,
    /// Digests in trailers are checked.
    checks: bool,
    /// The content is the whole representation, so that `Repr-Digest` speaks of it.
    whole: bool,
    make: Option<DigestAlgorithm>,
    /// What was told of the length.
    length: Length,
    passed: u64,
    /// The last bytes of a body of known length whose trailers are still to come.
    held: Option<Bytes>,
    /// What follows the piece handed out last.
    next: Option<Piece>,
    outcome: Option<DigestOutcome>,
}

/// What is known of a body when it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) length: Length,
    /// Trailers may follow.
    pub(super) trailers: bool,
    /// The content is the whole representation.
    pub(super) whole: bool,
    /// A digest is to be made, where there is none.
    pub(super) make: bool,
}

/// A body is not what its digests say, or its digests say nothing that could be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body does not match its digest")]
pub(super) struct Mismatch;

pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
pub(super) const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
const WANT_CONTENT_DIGEST: HeaderName = HeaderName::from_static("want-content-digest");

impl Body {
    /// What to do with a body under these terms; `None` when nothing is.
    ///
    /// # Errors
    /// When a digest field is malformed.
    pub(super) fn new(
        terms: Integrity,
        head: &HeaderMap,
        facts: Facts,
    ) -> Result<Option<Self>, Malformed> {
        let told = head.contains_key(CONTENT_DIGEST) || is_announced(head);
        let make = (terms.make && facts.make && !told).then_some(terms.algorithm);
        let mut expected = Vec::new();
        if terms.check {
            expected = fields::digests(head, &CONTENT_DIGEST)?;
            if facts.whole {
                expected.extend(fields::digests(head, &REPR_DIGEST)?);
            }
        }
        let checks = terms.check && facts.trailers;
        let mut body = Self {
            hashers: Vec::new(),
            expected,
            checks,
            whole: facts.whole,
            make,
            length: facts.length,
            passed: 0,
            held: None,
            next: None,
            outcome: None,
        };
        // Which algorithm trailers will use is not known before: that of the policy.
        let ends = (checks || make.is_some()).then_some(terms.algorithm);
        let wanted: Vec<_> = body.expected.iter().map(|(is, _)| *is).chain(ends).collect();
        for algorithm in wanted {
            if body.hashers.iter().all(|(is, _)| *is != algorithm) {
                body.hashers.push((algorithm, context(algorithm)));
            }
        }
        Ok((!body.hashers.is_empty()).then_some(body))
    }

    /// Whether the digest will be in trailers that this hop makes.
    pub(super) fn makes(&self) -> bool {
        self.make.is_some()
    }

    /// Whether it may end before its last byte because it does not match.
    pub(super) fn checks(&self) -> bool {
        self.checks || !self.expected.is_empty()
    }

    /// Begins anew: the same body for another try.
    pub(super) fn restart(&mut self) {
        for (algorithm, hasher) in &mut self.hashers {
            *hasher = context(*algorithm);
        }
        self.passed = 0;
        (self.held, self.next, self.outcome) = (None, None, None);
    }

    /// What is left to hand out before another piece is taken.
    pub(super) fn next(&mut self) -> Option<Piece> {
        self.next.take()
    }

    /// What came of it, once, at its end.
    pub(super) fn outcome(&mut self) -> Option<DigestOutcome> {
        self.outcome.take()
    }

    /// Takes a piece, and says what to pass on; `None` while it is held back.
    ///
    /// # Errors
    /// At the end of a body that is not what was told; nothing more may be passed on then.
    pub(super) fn pass(&mut self, piece: Piece) -> Result<Option<Piece>, Mismatch> {
        match piece {
            Piece::Data { bytes, last: false } => {
                self.hash(&bytes);
                let all = self.length == Length::Known(self.passed) && !bytes.is_empty();
                if all && self.checks && self.held.is_none() {
                    self.held = Some(bytes);
                    return Ok(None);
                }
                Ok(Some(Piece::Data { bytes, last: false }))
            }
            Piece::Data { bytes, last: true } => {
                self.hash(&bytes);
                let trailers = self.end(None)?;
                let bytes = self.held.take().unwrap_or(bytes);
                Ok(Some(self.last(bytes, trailers)))
            }
            Piece::End(trailers) => {
                let trailers = self.end(trailers)?;
                Ok(Some(match self.held.take() {
                    Some(bytes) => self.last(bytes, trailers),
                    None => Piece::End(trailers),
                }))
            }
        }
    }

    fn hash(&mut self, bytes: &[u8]) {
        for (_, hasher) in &mut self.hashers {
            hasher.update(bytes);
        }
        self.passed += bytes.len() as u64;
    }

    fn last(&mut self, bytes: Bytes, trailers: Option<HeaderMap>) -> Piece {
        let last = trailers.is_none();
        self.next = trailers.map(|trailers| Piece::End(Some(trailers)));
        Piece::Data { bytes, last }
    }

    /// The trailers to end with, if all that was told is true.
    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<Option<HeaderMap>, Mismatch> {
        let digests: Vec<_> = std::mem::take(&mut self.hashers)
            .into_iter()
            .map(|(algorithm, hasher)| (algorithm, hasher.finish()))
            .collect();
        let ended = self.verdict(&digests, trailers);
        // A try that is made again needs them again.
        self.hashers =
            digests.iter().map(|(algorithm, _)| (*algorithm, context(*algorithm))).collect();
        if ended.is_err() {
            self.outcome = Some(DigestOutcome::Mismatch);
        }
        ended
    }

    fn verdict(
        &mut self,
        digests: &[(DigestAlgorithm, digest::Digest)],
        mut trailers: Option<HeaderMap>,
    ) -> Result<Option<HeaderMap>, Mismatch> {
        let mut told_in_trailers = Vec::new();
        if let (true, Some(trailers)) = (self.checks, &trailers) {
            let read =
                |name: &HeaderName| fields::digests(trailers, name).map_err(|Malformed| Mismatch);
            told_in_trailers = read(&CONTENT_DIGEST)?;
            if self.whole {
                told_in_trailers.extend(read(&REPR_DIGEST)?);
            }
        }
        let mut compared = false;
        for (algorithm, expected) in self.expected.iter().chain(&told_in_trailers) {
            let Some((_, is)) = digests.iter().find(|(known, _)| known == algorithm) else {
                continue;
            };
            if is.as_ref() != expected.as_slice() {
                return Err(Mismatch);
            }
            compared = true;
        }
        self.outcome = compared.then_some(DigestOutcome::Ok);
        if let Some(algorithm) = self.make
            && let Some((_, is)) = digests.iter().find(|(known, _)| *known == algorithm)
        {
            let trailers = trailers.get_or_insert_default();
            if !trailers.contains_key(CONTENT_DIGEST) {
                trailers.insert(CONTENT_DIGEST, fields::value(algorithm, is.as_ref()));
                self.outcome = Some(DigestOutcome::Made);
            }
        }
        Ok(trailers)
    }
}

/// Whether `Trailer` says that a digest will come.
fn is_announced(head: &HeaderMap) -> bool {
    let named = |name: &[u8]| name.trim_ascii().eq_ignore_ascii_case(b"content-digest");
    let mut lines = head.get_all(header::TRAILER).iter();
    lines.any(|line| line.as_bytes().split(|b| *b == b',').any(named))
}

/// Whether these fields want a `Content-Digest` by this algorithm (RFC 9530 §4).
pub(super) fn is_wanted(head: &HeaderMap, algorithm: DigestAlgorithm) -> bool {
    let wants = fields::dictionary(head, &WANT_CONTENT_DIGEST).unwrap_or_default();
    // The last of several is meant (RFC 9651 §4.2.2); 0 is "not acceptable".
    let wish = wants.into_iter().rev().find(|(key, _)| key == algorithm.name());
    matches!(wish, Some((_, Value::Integer(1..=10))))
}

/// Asks for a digest, unless the client did.
pub(super) fn want(head: &mut HeaderMap, algorithm: DigestAlgorithm) {
    head.entry(WANT_CONTENT_DIGEST).or_insert(HeaderValue::from_static(match algorithm {
        DigestAlgorithm::Sha256 => "sha-256=10",
        DigestAlgorithm::Sha512 => "sha-512=10",
    }));
}

fn context(algorithm: DigestAlgorithm) -> Context {
    Context::new(match algorithm {
        DigestAlgorithm::Sha256 => &SHA256,
        DigestAlgorithm::Sha512 => &SHA512,
    })
}

#[cfg(test)]
mod tests;
