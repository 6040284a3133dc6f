//! The part of a request body that could be sent again.
//!
//! Every piece taken from the client passes through here once: it is kept, in
//! memory up to a limit and then on disk up to another, and handed out again,
//! from the first, to each further try. A try thus sees each byte once, in
//! order, first what was kept and then what the client sends next.
//!
//! Over HTTP/2 an endpoint may refuse a request unprocessed, and what it was sent until then must be
//! there for another. So while it may still do so, a try sees no more than is kept; the rest is held.
//!
//! For an upload that a server can take up where it broke, the last bytes are
//! what matters: with such [`Terms`] the first go when memory is full.

use std::{
    io,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use tokio::time::Instant;

use super::message::Piece;
use crate::spool::{Space, Spool};

/// Pieces kept, and how far the current try has got.
#[derive(Debug)]
pub(super) struct Replay {
    terms: Terms,
    /// Where in the body `kept` begins: what came before is gone.
    base: u64,
    /// The first bytes from there.
    kept: Vec<Bytes>,
    /// How many.
    bytes: u64,
    /// All that came after them.
    spool: Option<Spool>,
    /// `Some` once the client's body has ended.
    end: Option<Option<HeaderMap>>,
    /// False when bytes have passed that are not kept.
    complete: bool,
    next: usize,
    next_spooled: u64,
    end_handed_out: bool,
    /// Taken from the client, and seen by no try yet: it is not kept.
    held: Option<Piece>,
    /// The current try may still be refused unprocessed, and another would follow.
    holds: bool,
    /// Since when the disk has taken nothing.
    waits_since: Option<Instant>,
}

/// How much is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Terms {
    /// Most bytes in memory.
    pub(super) memory: u64,
    /// Most bytes on disk.
    pub(super) disk: u64,
    /// Where on disk.
    pub(super) space: Option<Arc<Space>>,
    /// Where memory is all there is, the last bytes are kept rather than the first.
    pub(super) slides: bool,
}

/// What keeping a piece costs beside its bytes: that of all is bounded as the bytes are, so that a body
/// of many small pieces takes no more than twice the limit.
const PIECE_BYTES: u64 = 64;
/// A disk that takes nothing for so long is given up; looked at whenever anything moves.
const PATIENCE: Duration = Duration::from_secs(5);

impl Replay {
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            terms,
            base: 0,
            kept: Vec::new(),
            bytes: 0,
            spool: None,
            end: None,
            complete: true,
            next: 0,
            next_spooled: 0,
            end_handed_out: false,
            held: None,
            holds: false,
            waits_since: None,
        }
    }

    /// Whether everything the client has sent so far can be sent again.
    pub(super) fn is_complete(&self) -> bool {
        self.base == 0 && self.has_no_gap()
    }

    /// Whether everything from `base` on can be sent again.
    fn has_no_gap(&self) -> bool {
        self.complete && self.spool.as_ref().is_none_or(|spool| !spool.has_failed())
    }

    /// Bytes that another try would be sent again.
    pub(super) fn length(&self) -> u64 {
        self.bytes + self.spool.as_ref().map_or(0, Spool::len)
    }

    /// Whether some of it is on disk.
    pub(super) fn is_spooled(&self) -> bool {
        self.spool.is_some()
    }

    /// Ready once it is known whether all could be kept.
    pub(super) fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.spool {
            Some(spool) if self.complete => spool.poll_settled(cx),
            _ => Poll::Ready(()),
        }
    }

    /// Whether the client has sent anything yet.
    pub(super) fn has_begun(&self) -> bool {
        !self.complete
            || self.base > 0
            || !self.kept.is_empty()
            || self.spool.is_some()
            || self.held.is_some()
            || self.end.is_some()
    }

    /// Begins anew for the next try.
    pub(super) fn rewind(&mut self) {
        self.next = 0;
        self.next_spooled = 0;
        self.end_handed_out = false;
        if let Some(spool) = &mut self.spool {
            spool.rewind();
        }
    }

    /// Begins anew at this byte of the body. False when that is not kept.
    pub(super) fn seek(&mut self, offset: u64) -> bool {
        let Some(mut rest) = offset.checked_sub(self.base).filter(|_| self.has_no_gap()) else {
            return false;
        };
        self.rewind();
        for index in 0..self.kept.len() {
            let length = self.kept[index].len() as u64;
            if rest < length {
                self.next = index;
                if rest > 0 {
                    let front = self.kept[index].split_to(rest as usize);
                    self.kept.insert(index, front);
                    self.next = index + 1;
                }
                return true;
            }
            rest -= length;
        }
        self.next = self.kept.len();
        self.next_spooled = rest;
        rest <= self.spool.as_ref().map_or(0, Spool::len)
    }

    /// The next piece this try has not seen and the client has sent before; `None` when there
    /// is none, and pending while it is read from disk.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Piece>>> {
        if let Some(kept) = self.kept.get_mut(self.next) {
            self.next += 1;
            let bytes = if self.complete { kept.clone() } else { std::mem::take(kept) };
            return Poll::Ready(Ok(Some(Piece::Data { bytes, last: false })));
        }
        if let Some(spool) = &mut self.spool
            && self.next_spooled < spool.len()
        {
            let bytes = ready!(spool.poll_read(cx, self.next_spooled))?;
            self.next_spooled += bytes.len() as u64;
            self.drop_spent();
            return Poll::Ready(Ok(Some(Piece::Data { bytes, last: false })));
        }
        let Some(end) = &self.end else { return Poll::Ready(Ok(None)) };
        if std::mem::replace(&mut self.end_handed_out, true) {
            return Poll::Ready(Ok(None));
        }
        Poll::Ready(Ok(Some(Piece::End(end.clone()))))
    }

    /// Ready when another piece may be [noted](Self::note): a slow disk slows the client.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let room = match &mut self.spool {
            Some(spool) if self.complete => spool.poll_room(cx),
            _ => Poll::Ready(()),
        };
        if room.is_ready() {
            self.waits_since = None;
            return room;
        }
        if self.waits_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            return Poll::Pending;
        }
        // The transfer itself must not end with the disk.
        self.give_up();
        Poll::Ready(())
    }

    /// What was held back, to be [admitted](Self::admit) again before anything else from the client.
    pub(super) fn take_held(&mut self) -> Option<Piece> {
        self.held.take()
    }

    /// Notes what the current try may see of a piece from the client, and returns that. The rest is held; nothing is
    /// returned when all is, until `accepted` says that the try will not be refused any more.
    pub(super) fn admit(&mut self, piece: Piece, accepted: impl FnOnce() -> bool) -> Option<Piece> {
        let (mut bytes, last) = match piece {
            Piece::Data { bytes, last } if self.holds && !bytes.is_empty() => (bytes, last),
            piece => {
                self.note(&piece);
                return Some(piece);
            }
        };
        while self.is_complete() {
            let fits = self.room().min(bytes.len() as u64) as usize;
            if fits == 0 {
                if accepted() {
                    break;
                }
                self.held = Some(Piece::Data { bytes, last });
                return None;
            }
            let front = bytes.slice(..fits);
            if self.keep(&front) {
                bytes.advance(fits);
                if bytes.is_empty() {
                    self.seen_to(last);
                    return Some(Piece::Data { bytes: front, last });
                }
                self.held = Some(Piece::Data { bytes, last });
                return Some(Piece::Data { bytes: front, last: false });
            }
            // There is no room on the disk after all.
            self.terms.disk = 0;
        }
        self.holds = false;
        let piece = Piece::Data { bytes, last };
        self.note(&piece);
        Some(piece)
    }

    /// So many bytes can be kept without another being lost.
    fn room(&self) -> u64 {
        let spooled = self.spool.as_ref().map_or(0, Spool::len);
        let on_disk =
            self.terms.space.as_ref().map_or(0, |_| self.terms.disk.saturating_sub(spooled));
        let in_memory = if self.spool.is_none() && self.has_place() {
            self.terms.memory.saturating_sub(self.bytes)
        } else {
            0
        };
        in_memory.max(on_disk)
    }

    /// Whether another piece may be kept in memory, whatever its size.
    fn has_place(&self) -> bool {
        (self.kept.len() as u64 + 1) * PIECE_BYTES <= self.terms.memory
    }

    /// Notes what came from the client and goes to the current try right away.
    pub(super) fn note(&mut self, piece: &Piece) {
        if !self.complete {
            return;
        }
        match piece {
            Piece::Data { bytes, last } => {
                if !self.keep(bytes) {
                    return self.give_up();
                }
                self.seen_to(*last);
            }
            Piece::End(trailers) => {
                self.end = Some(trailers.clone());
                self.end_handed_out = true;
            }
        }
    }

    /// The current try has seen a piece, which may be the last.
    fn seen_to(&mut self, last: bool) {
        if last {
            self.end = Some(None);
            self.end_handed_out = true;
        }
    }

    /// Keeps bytes that the current try has seen. False when there is no room for them.
    fn keep(&mut self, bytes: &Bytes) -> bool {
        let length = bytes.len() as u64;
        if self.spool.is_none() && self.has_place() && self.bytes + length <= self.terms.memory {
            self.bytes += length;
            self.kept.push(bytes.clone());
            self.next = self.kept.len();
            return true;
        }
        let Some(space) = &self.terms.space else { return self.terms.slides && self.slide(bytes) };
        let spooled = self.spool.as_ref().map_or(0, Spool::len);
        if spooled + length > self.terms.disk {
            return false;
        }
        let spool = self.spool.get_or_insert_with(|| Spool::new(space.clone()));
        let kept = spool.push(bytes.clone());
        // The current try has seen it all, kept or not.
        self.next_spooled = spool.len();
        kept
    }

    /// After the last try none will need what is on disk: nothing more goes there. Memory still
    /// serves a connection that was stale. `refusable`: an endpoint that refuses this try unprocessed is
    /// followed by another.
    pub(super) fn begin_try(&mut self, last: bool, refusable: bool) {
        self.holds = refusable && !last;
        if last {
            self.terms.disk = 0;
        }
        if last && self.spool.is_some() {
            self.give_up();
        }
    }

    /// Keeps bytes in the place of the first ones. Half of them go, so that few are moved for each.
    fn slide(&mut self, bytes: &Bytes) -> bool {
        let (memory, more) = (self.terms.memory, bytes.len() as u64);
        let room = memory.saturating_sub(more).min(memory / 2);
        let places = (memory / 2 / PIECE_BYTES) as usize;
        let mut gone = 0;
        while self.bytes > room || self.kept.len() - gone > places {
            let length = self.kept[gone].len() as u64;
            self.base += length;
            self.bytes -= length;
            gone += 1;
        }
        self.kept.drain(..gone);
        if more <= memory && self.has_place() {
            self.kept.push(bytes.clone());
            self.bytes += more;
        } else {
            self.base += more;
        }
        self.next = self.kept.len();
        true
    }

    /// Keeps nothing more from here on: no further try will be made. What the
    /// current try has not seen yet is still handed out to it.
    pub(super) fn give_up(&mut self) {
        self.complete = false;
        self.terms = Terms::default();
        self.kept.drain(..self.next);
        self.next = 0;
        self.drop_spent();
    }

    /// Drops a spool that nobody will read any more.
    fn drop_spent(&mut self) {
        if !self.complete && self.spool.as_ref().is_some_and(|s| self.next_spooled >= s.len()) {
            self.spool = None;
        }
    }

    /// The whole body, once the client has sent all of it and all of it is kept in memory.
    pub(super) fn whole(&self) -> Option<(&[Bytes], Option<&HeaderMap>)> {
        let end = self.end.as_ref().filter(|_| self.is_complete() && self.spool.is_none())?;
        Some((&self.kept, end.as_ref()))
    }
}

#[cfg(test)]
mod tests;
