//! Reads from a connection: bytes into a buffer, bodies out of it.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::{AsyncRead, ReadBuf};

use super::{
    super::message::{Broken, Piece},
    head::end_of_head,
};

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Framing {
    Empty,
    Length(u64),
    Chunked,
    /// To the end of the connection: some responses, and tunnels.
    UntilClose,
}

/// What was read and not used yet, and where in the body reading stands.
#[derive(Debug)]
pub(in crate::http) struct Reader {
    pub(in crate::http) buffer: BytesMut,
    state: State,
    /// Bytes the next read of a body asks for.
    ask: usize,
    pub(super) closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Done,
    Length(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    UntilClose,
}

/// The first read of a body; doubled while reads fill it.
const FIRST_ASK: usize = 16 * 1024;
/// The largest read of a body.
const MOST_ASK: usize = 256 * 1024;
/// The longest line with a chunk's size and extensions.
const MAX_CHUNK_LINE: usize = 256;
/// The most bytes of trailers.
const MAX_TRAILERS: usize = 16 * 1024;
/// The most trailer fields.
const MAX_TRAILER_FIELDS: usize = 64;

impl Default for Reader {
    fn default() -> Self {
        Self { buffer: BytesMut::new(), state: State::Done, ask: FIRST_ASK, closed: false }
    }
}

impl Reader {
    /// Starts a body.
    pub(in crate::http) fn start(&mut self, framing: Framing) {
        self.state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(bytes) => State::Length(bytes),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
    }

    /// Whether the body was read to its end.
    pub(in crate::http) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub(in crate::http) fn has_bytes(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Throws away what is buffered.
    pub(in crate::http) fn forget(&mut self) {
        self.buffer.clear();
    }

    /// Whether the peer has closed its side.
    pub(in crate::http) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Gives back the memory of large bodies when nothing is buffered.
    pub(in crate::http) fn rest(&mut self) {
        if self.buffer.is_empty() && self.buffer.capacity() > 0 {
            self.buffer = BytesMut::new();
        }
        self.ask = FIRST_ASK;
    }

    /// Reads a first time without holding memory while there is nothing: idle
    /// connections own no buffer.
    pub(in crate::http) fn poll_fill_small<I: AsyncRead + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        thread_local! {
            static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; FIRST_ASK].into());
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(scratch);
            ready!(Pin::new(io).poll_read(cx, &mut read))?;
            let filled = read.filled();
            self.closed |= filled.is_empty();
            self.buffer.extend_from_slice(filled);
            Poll::Ready(Ok(filled.len()))
        })
    }

    fn poll_fill<I: AsyncRead + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let ask = match self.state {
            State::Length(left) => {
                self.ask.min(usize::try_from(left).unwrap_or(usize::MAX)).max(1024)
            }
            _ => self.ask,
        };
        if self.buffer.capacity() - self.buffer.len() < ask / 2 {
            self.buffer.reserve(ask);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        let read = ready!(tokio_util::io::poll_read_buf(Pin::new(io), cx, &mut self.buffer))?;
        self.closed |= read == 0;
        if read == room && read >= self.ask {
            self.ask = (self.ask * 2).min(MOST_ASK);
        }
        Poll::Ready(Ok(read))
    }

    /// The next part of the body.
    pub(in crate::http) fn poll_body<I: AsyncRead + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Piece, Broken>> {
        loop {
            if let Some(piece) = self.decode()? {
                return Poll::Ready(Ok(piece));
            }
            if self.closed {
                return Poll::Ready(self.end_at_close());
            }
            if ready!(self.poll_fill(io, cx)).map_err(|_| Broken::Closed)? == 0 {
                return Poll::Ready(self.end_at_close());
            }
        }
    }

    fn end_at_close(&mut self) -> Result<Piece, Broken> {
        if self.state == State::UntilClose {
            self.state = State::Done;
            return Ok(Piece::End(None));
        }
        Err(Broken::Closed)
    }

    /// What the buffered bytes hold of the body; `None` when more must be read.
    fn decode(&mut self) -> Result<Option<Piece>, Broken> {
        loop {
            match self.state {
                State::Done => return Ok(Some(Piece::End(None))),
                State::Length(left) | State::Chunk(left) => {
                    if self.buffer.is_empty() {
                        return Ok(None);
                    }
                    let bytes = self.take(left);
                    let left = left - bytes.len() as u64;
                    self.state = match self.state {
                        State::Chunk(_) if left > 0 => State::Chunk(left),
                        State::Chunk(_) => State::ChunkEnd,
                        _ if left > 0 => State::Length(left),
                        _ => State::Done,
                    };
                    return Ok(Some(Piece::Data { bytes, last: self.state == State::Done }));
                }
                State::UntilClose => {
                    if self.buffer.is_empty() {
                        return Ok(None);
                    }
                    let bytes = self.take(u64::MAX);
                    return Ok(Some(Piece::Data { bytes, last: false }));
                }
                State::ChunkSize => match self.chunk_size()? {
                    None => return Ok(None),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::Chunk(size),
                },
                State::ChunkEnd => {
                    if self.buffer.len() < 2 {
                        return Ok(None);
                    }
                    // Left where it is, so that it is as malformed for whoever looks again.
                    if !self.buffer.starts_with(b"\r\n") {
                        return Err(Broken::Malformed("a chunk does not end with CRLF"));
                    }
                    drop(self.buffer.split_to(2));
                    self.state = State::ChunkSize;
                }
                State::Trailers => {
                    return Ok(self.trailers()?.map(|trailers| {
                        self.state = State::Done;
                        Piece::End(trailers)
                    }));
                }
            }
        }
    }

    fn take(&mut self, most: u64) -> Bytes {
        let length = self.buffer.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        self.buffer.split_to(length).freeze()
    }

    fn chunk_size(&mut self) -> Result<Option<u64>, Broken> {
        let window = &self.buffer[..self.buffer.len().min(MAX_CHUNK_LINE)];
        let Some(end) = memchr::memchr(b'\n', window) else {
            return if window.len() < MAX_CHUNK_LINE {
                Ok(None)
            } else {
                Err(Broken::Malformed("a chunk's size line is too long"))
            };
        };
        let line = window[..end]
            .strip_suffix(b"\r")
            .ok_or(Broken::Malformed("a chunk's size line ends with a bare LF"))?;
        if line.contains(&b'\r') {
            return Err(Broken::Malformed("a chunk's size line contains a bare CR"));
        }
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let rest = line[digits..].trim_ascii_start();
        if digits == 0 || digits > 16 || !(rest.is_empty() || rest[0] == b';') {
            return Err(Broken::Malformed("a chunk's size is not a hexadecimal number"));
        }
        let hex = line[..digits].iter().filter_map(|b| char::from(*b).to_digit(16));
        let size = hex.fold(0u64, |n, d| (n << 4) | u64::from(d));
        drop(self.buffer.split_to(end + 1));
        Ok(Some(size))
    }

    /// `Some(trailers)` when the section after the last chunk is complete. One that is malformed is left where
    /// it is, so that it is as malformed for whoever looks again.
    fn trailers(&mut self) -> Result<Option<Option<HeaderMap>>, Broken> {
        if self.buffer.starts_with(b"\r\n") {
            drop(self.buffer.split_to(2));
            return Ok(Some(None));
        }
        let malformed = Broken::Malformed("the trailers are malformed");
        let end = end_of_head(&self.buffer).map_err(|_| malformed)?;
        if end.unwrap_or(self.buffer.len()) > MAX_TRAILERS {
            return Err(Broken::Malformed("the trailers are too long"));
        }
        let Some(end) = end else { return Ok(None) };
        // Short, and rare: a copy does not keep what else was read with it.
        let section = Bytes::copy_from_slice(&self.buffer[..end]);
        let mut slots = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
        let Ok(httparse::Status::Complete((_, fields))) =
            httparse::parse_headers(&section, &mut slots)
        else {
            return Err(malformed);
        };
        let fields = super::Fields::parse(&section, fields).map_err(|_| malformed)?;
        drop(self.buffer.split_to(end));
        let mut trailers = fields.map;
        super::super::headers::strip_from_trailers(&mut trailers);
        Ok(Some((!trailers.is_empty()).then_some(trailers)))
    }
}
