//! One connection: the socket, what was read from it, what waits to be written to it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Reader, Writer};
use crate::http::message::{Broken, Piece};

/// A connection of either side.
#[derive(Debug)]
pub(in crate::http) struct Conn<I> {
    pub(in crate::http) io: I,
    pub(in crate::http) reader: Reader,
    pub(in crate::http) writer: Writer,
}

/// What a peer may send ahead (pipelined requests) while its last request is answered, in bytes.
const MAX_AHEAD: usize = 64 * 1024;

impl<I: AsyncRead + AsyncWrite + Unpin> Conn<I> {
    pub(in crate::http) fn new(io: I) -> Self {
        Self { io, reader: Reader::default(), writer: Writer::default() }
    }

    pub(in crate::http) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Piece, Broken>> {
        self.reader.poll_body(&mut self.io, cx)
    }

    pub(in crate::http) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.poll_room(&mut self.io, cx)
    }

    pub(in crate::http) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.poll_flush(&mut self.io, cx)
    }

    /// Reads a head's worth of bytes; 0 at the end.
    pub(in crate::http) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.reader.poll_fill_small(&mut self.io, cx)
    }

    /// Ready when the peer closed its side or the connection broke. What it
    /// sends ahead is kept, up to a bound; beyond it the socket is left alone.
    pub(in crate::http) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.reader.closed {
                return Poll::Ready(Ok(()));
            }
            if self.reader.buffer.len() >= MAX_AHEAD {
                return Poll::Pending;
            }
            ready!(self.poll_fill(cx))?;
        }
    }

    /// Ends the sending side after all that is queued.
    pub(in crate::http) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
