//! What waits to be written to the socket.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// Payloads below this many bytes are copied behind their frame's head.
const COPIED: usize = 2 * 1024;
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
}

impl Out {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.in_pieces + self.tail.len()
    }

    /// Appends a payload behind its frame's head, which is in the tail.
    pub(super) fn payload(&mut self, bytes: Bytes) {
        if bytes.len() < COPIED {
            self.tail.extend_from_slice(&bytes);
            return;
        }
        let head = self.tail.split().freeze();
        self.in_pieces += head.len() + bytes.len();
        self.pieces.push_back(head);
        self.pieces.push_back(bytes);
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
