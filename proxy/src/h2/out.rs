//! What waits to be written to the socket.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use super::frame;

/// Payloads below this many bytes are copied behind their frame's head.
pub(super) const COPIED: usize = 2 * 1024;
/// Pieces of one write.
const SLICES: usize = 64;

/// Frames in the order they leave: pieces, then the tail that is still written to.
#[derive(Debug, Default)]
pub(super) struct Out {
    pieces: VecDeque<Bytes>,
    in_pieces: usize,
    pub(super) tail: BytesMut,
    unflushed: bool,
    broken: bool,
    open: Option<OpenFrame>,
}

/// A DATA frame in the tail to which more may be added while nothing follows it.
#[derive(Clone, Copy, Debug)]
struct OpenFrame {
    stream: u32,
    start: usize,
    length: usize,
}

impl Out {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.in_pieces + self.tail.len()
    }

    /// Appends a DATA frame, or adds to the last one where that is of the same stream and still
    /// here: many small pieces are to be few frames, since some peers take many for an attack.
    pub(super) fn data(&mut self, stream: u32, bytes: Bytes, last: bool, most: usize) {
        if bytes.len() < COPIED {
            return self.small(stream, &bytes, last, most);
        }
        let flags = if last { frame::END_STREAM } else { 0 };
        frame::put_head(&mut self.tail, bytes.len(), frame::DATA, flags, stream);
        self.open = None;
        let head = self.tail.split().freeze();
        self.in_pieces += head.len() + bytes.len();
        self.pieces.push_back(head);
        self.pieces.push_back(bytes);
    }

    /// As [`Self::data`], of fewer than [`COPIED`] bytes.
    pub(super) fn small(&mut self, stream: u32, bytes: &[u8], last: bool, most: usize) {
        if self.extend(stream, bytes, last, most) {
            return;
        }
        let start = self.tail.len();
        let flags = if last { frame::END_STREAM } else { 0 };
        frame::put_head(&mut self.tail, bytes.len(), frame::DATA, flags, stream);
        self.tail.extend_from_slice(bytes);
        self.open = Some(OpenFrame { stream, start, length: bytes.len() });
    }

    fn extend(&mut self, stream: u32, bytes: &[u8], last: bool, most: usize) -> bool {
        let Some(open) = &mut self.open else { return false };
        let end = open.start + frame::HEAD + open.length;
        let length = open.length + bytes.len();
        if open.stream != stream || end != self.tail.len() || length > most {
            return false;
        }
        open.length = length;
        let start = open.start;
        self.tail.extend_from_slice(bytes);
        self.tail[start..start + 3].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
        if last {
            self.tail[start + 4] |= frame::END_STREAM;
        }
        true
    }

    /// The socket takes nothing more: what waits, and what comes, is thrown away.
    pub(super) fn give_up(&mut self) {
        *self = Self { broken: true, ..Self::default() };
    }

    /// Gives back memory while nothing waits.
    pub(super) fn rest(&mut self) {
        if self.len() == 0 {
            let Self { unflushed, broken, .. } = *self;
            *self = Self { unflushed, broken, ..Self::default() };
        }
    }

    /// Writes as much as the socket takes; ready when nothing is left, TLS records included.
    pub(super) fn poll_write<I: AsyncWrite + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.broken {
            self.give_up();
        }
        self.open = None;
        while self.len() > 0 {
            self.unflushed = true;
            let written = if self.pieces.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let mut count = 0;
                let all = self.pieces.iter().map(|b| &b[..]).chain([&self.tail[..]]);
                for (slot, piece) in slices.iter_mut().zip(all) {
                    *slot = IoSlice::new(piece);
                    count += 1;
                }
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.pieces.front_mut() {
            let part = written.min(first.len());
            first.advance(part);
            self.in_pieces -= part;
            written -= part;
            if !first.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        if written == self.tail.len() {
            // Keeps the whole allocation, where `advance` would lose its front.
            self.tail.clear();
        } else {
            self.tail.advance(written);
        }
    }
}
