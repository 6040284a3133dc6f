//! HTTP/1.1 messages as they come: heads, and bodies piece by piece, strictly.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Reads messages from one connection.
#[derive(Debug)]
pub(super) struct Reader<R> {
    io: BufReader<R>,
    /// Fields after the last body in chunks; names in lower case.
    pub(super) trailers: Vec<(String, String)>,
}

/// The start line and fields of a message; names in lower case.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) first: String,
    pub(super) fields: Vec<(String, String)>,
}

/// What is still to come of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    /// So many bytes of a chunk; `None` where a chunk's size comes next.
    Chunked(Option<u64>),
}

/// Longest line taken.
const MAX_LINE: usize = 64 * 1024;
/// Bytes read at a time.
const BUFFER: usize = 64 * 1024;

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(io: R) -> Self {
        Self { io: BufReader::with_capacity(BUFFER, io), trailers: Vec::new() }
    }

    /// The next head; `None` at the end of the connection.
    pub(super) async fn head(&mut self) -> io::Result<Option<Head>> {
        if self.io.fill_buf().await?.is_empty() {
            return Ok(None);
        }
        self.trailers.clear();
        let first = self.line().await?;
        let fields = self.fields().await?;
        Ok(Some(Head { first, fields }))
    }

    async fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| malformed(&line))?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// The next piece of a body; `None` at its end, once and for all.
    pub(super) async fn piece(&mut self, body: &mut Framing) -> io::Result<Option<Bytes>> {
        if let Framing::Chunked(left @ None) = body {
            let line = self.line().await?;
            let size = u64::from_str_radix(&line, 16).map_err(|_| malformed(&line))?;
            if size == 0 {
                self.trailers = self.fields().await?;
                *body = Framing::Length(0);
                return Ok(None);
            }
            *left = Some(size);
        }
        let (Framing::Length(left) | Framing::Chunked(Some(left))) = body else { return Ok(None) };
        if *left == 0 {
            return Ok(None);
        }
        let ready = self.io.fill_buf().await?;
        if ready.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let now = ready.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let bytes = Bytes::copy_from_slice(&ready[..now]);
        self.io.consume(now);
        *left -= now as u64;
        if *body == Framing::Chunked(Some(0)) {
            let end = self.line().await?;
            if !end.is_empty() {
                return Err(malformed(&end));
            }
            *body = Framing::Chunked(None);
        }
        Ok(Some(bytes))
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        loop {
            let ready = self.io.fill_buf().await?;
            if ready.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let end = ready.iter().position(|b| *b == b'\n');
            let taken = end.map_or(ready.len(), |at| at + 1);
            line.extend_from_slice(&ready[..taken]);
            self.io.consume(taken);
            if end.is_some() {
                break;
            }
            if line.len() > MAX_LINE {
                return Err(malformed("a line without end"));
            }
        }
        let text = String::from_utf8_lossy(&line);
        text.strip_suffix("\r\n").map(str::to_owned).ok_or_else(|| malformed(&text))
    }
}

impl Head {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// How the body is delimited; `None` when nothing says.
    pub(super) fn framing(&self) -> Option<Framing> {
        match (self.field("transfer-encoding"), self.field("content-length")) {
            (Some("chunked"), None) => Some(Framing::Chunked(None)),
            (None, Some(length)) => length.parse().ok().map(Framing::Length),
            _ => None,
        }
    }
}

/// A chunk of a body.
pub(super) fn chunk(bytes: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
    chunk.extend_from_slice(bytes);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed: {what:.80}"))
}
