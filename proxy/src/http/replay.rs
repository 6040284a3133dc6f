//! The part of a request body that could be sent again.
//!
//! Every piece taken from the client passes through here once: it is kept
//! while all of them together stay under a limit, and handed out again, from
//! the first, to each further try. A try thus sees each byte once, in order,
//! first what was kept and then what the client sends next.

use bytes::Bytes;
use http::HeaderMap;

use super::message::Piece;

/// Pieces kept, and how far the current try has got.
#[derive(Debug)]
pub(super) struct Replay {
    kept: Vec<Bytes>,
    bytes: u64,
    limit: u64,
    /// `Some` once the client's body has ended.
    end: Option<Option<HeaderMap>>,
    /// False when bytes have passed that are not kept.
    complete: bool,
    next: usize,
    end_handed_out: bool,
}

/// What keeping a piece costs beside its bytes: many small ones count too.
const PIECE_BYTES: u64 = 64;

impl Replay {
    /// Keeps bodies up to `limit_bytes`.
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self {
            kept: Vec::new(),
            bytes: 0,
            limit: limit_bytes,
            end: None,
            complete: true,
            next: 0,
            end_handed_out: false,
        }
    }

    /// Whether everything the client has sent so far can be sent again.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether the client has sent anything yet.
    pub(super) fn has_begun(&self) -> bool {
        !self.complete || !self.kept.is_empty() || self.end.is_some()
    }

    /// Begins anew for the next try.
    pub(super) fn rewind(&mut self) {
        self.next = 0;
        self.end_handed_out = false;
    }

    /// The next piece this try has not seen and the client has sent before.
    pub(super) fn next(&mut self) -> Option<Piece> {
        if let Some(kept) = self.kept.get_mut(self.next) {
            self.next += 1;
            let bytes = if self.complete { kept.clone() } else { std::mem::take(kept) };
            return Some(Piece::Data { bytes, last: false });
        }
        let end = self.end.as_ref()?;
        if std::mem::replace(&mut self.end_handed_out, true) {
            return None;
        }
        Some(Piece::End(end.clone()))
    }

    /// Notes what came from the client and goes to the current try right away.
    pub(super) fn note(&mut self, piece: &Piece) {
        if !self.complete {
            return;
        }
        match piece {
            Piece::Data { bytes, last } => {
                self.bytes += bytes.len() as u64 + PIECE_BYTES;
                if self.bytes > self.limit {
                    self.give_up();
                    return;
                }
                self.kept.push(bytes.clone());
                self.next = self.kept.len();
                if *last {
                    self.end = Some(None);
                    self.end_handed_out = true;
                }
            }
            Piece::End(trailers) => {
                self.end = Some(trailers.clone());
                self.end_handed_out = true;
            }
        }
    }

    /// Keeps nothing more from here on: no further try will be made. What the
    /// current try has not seen yet is still handed out to it.
    pub(super) fn give_up(&mut self) {
        self.complete = false;
        self.kept.drain(..self.next);
        self.next = 0;
    }

    /// The whole body, once the client has sent all of it and all of it is kept.
    pub(super) fn whole(&self) -> Option<(&[Bytes], Option<&HeaderMap>)> {
        let end = self.end.as_ref().filter(|_| self.complete)?;
        Some((&self.kept, end.as_ref()))
    }
}

#[cfg(test)]
mod tests;
