//! The little of HTTP/1.1 and HTTP/2 that a load generator and an origin need when both ends are
//! known: no allocation per message and no work that would slow the proxy's partner down.
//!
//! This is not a general implementation of either protocol and must never face a stranger: it
//! knows which messages the bench exchanges, and fails loudly on anything else.

pub mod h1;
pub mod h2;

use std::io;

use tokio::net::TcpStream;

/// A receive buffer that hands out what has arrived and keeps the incomplete rest.
#[derive(Debug)]
pub struct ReadBuffer {
    data: Box<[u8]>,
    start: usize,
    end: usize,
}

impl ReadBuffer {
    /// A buffer of `capacity` bytes, which bounds the largest message that can be taken whole.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { data: vec![0; capacity].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What has arrived and is not consumed yet.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    /// Drops the first `count` bytes of [`Self::filled`].
    pub fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Waits for bytes and appends them. Returns how many; 0 is the end of the stream.
    ///
    /// # Errors
    /// The socket's, or `OutOfMemory` if a message is larger than the buffer.
    pub async fn fill(&mut self, stream: &TcpStream) -> io::Result<usize> {
        if self.end == self.data.len() {
            if self.start == 0 {
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, "message exceeds buffer"));
            }
            self.data.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        loop {
            stream.readable().await?;
            match stream.try_read(&mut self.data[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Writes all of `bytes`.
///
/// # Errors
/// The socket's.
pub async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// An error about a peer that does not say what the bench expects.
#[must_use]
pub fn unexpected(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
