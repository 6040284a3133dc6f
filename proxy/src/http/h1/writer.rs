//! Writes to a connection: heads and bodies into a bounded queue, the queue to the socket.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use tokio::io::AsyncWrite;

/// How the body being sent is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Body {
    Empty,
    /// So many bytes are still to come.
    Length(u64),
    Chunked,
    /// By closing, or not at all (a tunnel).
    Raw,
}

/// What waits to be written.
#[derive(Debug)]
pub(in crate::http) struct Writer {
    queue: VecDeque<Bytes>,
    queued: usize,
    /// Small things, joined; after everything in `queue`.
    flat: BytesMut,
    body: Body,
    /// Something was written since the socket was last flushed (TLS holds records back).
    unflushed: bool,
}

/// Pieces up to this size are joined with what is before them, larger ones are sent as they are.
const SMALL: usize = 4 * 1024;
/// With so much unwritten, nothing more is taken.
const ENOUGH: usize = 64 * 1024;
/// Pieces per system call.
const SLICES: usize = 16;
/// A buffer larger than this is not kept by an idle connection.
const KEEP: usize = 2 * 1024;

impl Default for Writer {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            queued: 0,
            flat: BytesMut::new(),
            body: Body::Empty,
            unflushed: false,
        }
    }
}

impl Writer {
    pub(in crate::http) fn request_line(&mut self, method: &Method, target: &str) {
        self.flat.reserve(512);
        self.flat.extend_from_slice(method.as_str().as_bytes());
        self.flat.put_u8(b' ');
        self.flat.extend_from_slice(target.as_bytes());
        self.flat.extend_from_slice(b" HTTP/1.1\r\n");
    }

    pub(in crate::http) fn status_line(&mut self, status: StatusCode) {
        self.flat.reserve(512);
        if status == StatusCode::OK {
            self.flat.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
            return;
        }
        self.flat.extend_from_slice(b"HTTP/1.1 ");
        self.flat.extend_from_slice(status.as_str().as_bytes());
        self.flat.put_u8(b' ');
        self.flat.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
        self.flat.extend_from_slice(b"\r\n");
    }

    pub(in crate::http) fn field(&mut self, name: &str, value: &[u8]) {
        self.flat.reserve(name.len() + value.len() + 4);
        self.flat.extend_from_slice(name.as_bytes());
        self.flat.extend_from_slice(b": ");
        self.flat.extend_from_slice(value);
        self.flat.extend_from_slice(b"\r\n");
    }

    pub(in crate::http) fn fields(&mut self, headers: &HeaderMap) {
        for (name, value) in headers {
            self.field(name.as_str(), value.as_bytes());
        }
    }

    /// Ends a head; what follows is delimited by `body`.
    pub(in crate::http) fn end_head(&mut self, body: Body) {
        if body == Body::Chunked {
            self.flat.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        self.flat.extend_from_slice(b"\r\n");
        self.body = body;
    }

    /// Sends the rest of the connection as it comes.
    pub(in crate::http) fn go_raw(&mut self) {
        self.body = Body::Raw;
    }

    /// Queues a part of the body. False when it is more than was declared.
    #[must_use]
    pub(in crate::http) fn data(&mut self, bytes: Bytes) -> bool {
        if bytes.is_empty() {
            return true;
        }
        match &mut self.body {
            Body::Empty => return false,
            Body::Length(left) => match left.checked_sub(bytes.len() as u64) {
                Some(rest) => *left = rest,
                None => return false,
            },
            Body::Raw => {}
            Body::Chunked => {
                let mut line = [0; 18];
                let size = hex_line(bytes.len(), &mut line);
                self.flat.extend_from_slice(size);
                self.push(bytes);
                self.flat.extend_from_slice(b"\r\n");
                return true;
            }
        }
        self.push(bytes);
        true
    }

    /// Ends the body. False when less than was declared has been sent.
    #[must_use]
    pub(in crate::http) fn end(&mut self, trailers: Option<&HeaderMap>) -> bool {
        match std::mem::replace(&mut self.body, Body::Empty) {
            Body::Length(left) => left == 0,
            Body::Chunked => {
                self.flat.extend_from_slice(b"0\r\n");
                if let Some(trailers) = trailers {
                    self.fields(trailers);
                }
                self.flat.extend_from_slice(b"\r\n");
                true
            }
            Body::Empty | Body::Raw => true,
        }
    }

    fn push(&mut self, bytes: Bytes) {
        if bytes.len() <= SMALL {
            self.flat.extend_from_slice(&bytes);
            return;
        }
        self.seal();
        self.queued += bytes.len();
        self.queue.push_back(bytes);
    }

    fn seal(&mut self) {
        if !self.flat.is_empty() {
            self.queued += self.flat.len();
            self.queue.push_back(self.flat.split().freeze());
        }
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.flat.is_empty()
    }

    /// Whether everything queued is out of our hands.
    pub(in crate::http) fn is_flushed(&self) -> bool {
        self.is_empty() && !self.unflushed
    }

    /// Ready when more may be queued.
    pub(in crate::http) fn poll_room<I: AsyncWrite + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.queued + self.flat.len() >= ENOUGH {
            ready!(self.poll_write(io, cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all that is queued.
    pub(in crate::http) fn poll_flush<I: AsyncWrite + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            ready!(self.poll_write(io, cx))?;
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write<I: AsyncWrite + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let written = if self.queue.is_empty() {
            ready!(Pin::new(&mut *io).poll_write(cx, &self.flat))?
        } else {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            for (slot, bytes) in slices.iter_mut().zip(&self.queue) {
                *slot = IoSlice::new(bytes);
                count += 1;
            }
            if count < SLICES && !self.flat.is_empty() {
                slices[count] = IoSlice::new(&self.flat);
                count += 1;
            }
            ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unflushed = true;
        self.advance(written);
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(front) = self.queue.front_mut() {
            let length = front.len();
            if written < length {
                front.advance(written);
                self.queued -= written;
                return;
            }
            written -= length;
            self.queued -= length;
            self.queue.pop_front();
        }
        if written == self.flat.len() {
            self.flat.clear();
        } else {
            self.flat.advance(written);
        }
    }

    /// Gives back the memory of large messages when nothing is queued.
    pub(in crate::http) fn rest(&mut self) {
        if self.is_empty() && self.flat.capacity() > KEEP {
            self.flat = BytesMut::new();
        }
        if self.queue.is_empty() && self.queue.capacity() > 0 {
            self.queue = VecDeque::new();
        }
    }
}

fn hex_line(size: usize, room: &mut [u8; 18]) -> &[u8] {
    let mut at = 16;
    let mut rest = size;
    room[16] = b'\r';
    room[17] = b'\n';
    loop {
        at -= 1;
        room[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
        if rest == 0 {
            return &room[at..];
        }
    }
}
