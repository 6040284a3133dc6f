//! Bulk transfers that cost the bench next to nothing, so that one core can keep a proxy on
//! another saturated and still answer small requests at once.
//!
//! Senders hand the kernel pages of a file in memory (`sendfile`) instead of copying; receivers let
//! it drop most of what came unseen (`MSG_TRUNC`) and compare only samples: of every 8 MiB the
//! first 64 KiB, and the end. A lost, repeated or moved buffer anywhere shifts the pattern under
//! every later sample, and the length is counted to the byte. Single flipped bits between the
//! samples would pass; the `peers` cases, where every byte is compared, are there to find those.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Context as _;
use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};

use crate::load::AUTHORITY;
use crate::pattern;
use crate::wire::{ReadBuffer, h1, unexpected, write_all};

/// Between the beginnings of two samples.
const SAMPLE_EVERY: u64 = 8 << 20;
/// Bytes compared in each, and at the end.
const SAMPLE: u64 = 64 << 10;
/// Bytes sent or dropped at once, before others get their turn.
const STEP: usize = 256 << 10;

/// What sends and receives, shared by all connections.
#[derive(Debug, Clone)]
pub struct Streams(Arc<State>);

#[derive(Debug)]
struct State {
    /// The pattern as a file: as much as [`pattern::slice()`] hands out.
    tape: OwnedFd,
    moved: AtomicU64,
    stop: AtomicBool,
}

/// Which way a client's transfers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the origin.
    Down,
    /// To the origin.
    Up,
}

impl Streams {
    /// Writes the pattern into a file in memory.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new() -> anyhow::Result<Self> {
        let tape = memfd_create("pattern", MemfdFlags::CLOEXEC).context("a file in memory")?;
        let mut rest = pattern::slice(0, u64::MAX);
        while !rest.is_empty() {
            rest = &rest[rustix::io::write(&tape, rest)?..];
        }
        let (moved, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        Ok(Self(Arc::new(State { tape, moved, stop })))
    }

    /// Bytes that clients have received or sent, so far.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.0.moved.load(Ordering::Relaxed)
    }

    /// Lets every client end after its present transfer.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }

    /// Starts an origin for `/down/BYTES` and `/up`.
    ///
    /// # Errors
    /// If a socket cannot be had.
    pub async fn serve(&self) -> anyhow::Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("origin")?;
        let address = listener.local_addr()?;
        let streams = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let streams = streams.clone();
                tokio::spawn(async move {
                    // A proxy may close a connection at any time; the client tells what broke.
                    let _ = stream.set_nodelay(true);
                    let _ = streams.answer(&stream).await;
                });
            }
        });
        Ok(address)
    }

    async fn answer(&self, stream: &TcpStream) -> io::Result<()> {
        let mut buffer = ReadBuffer::new(64 * 1024);
        loop {
            let Some(request) = h1::request(buffer.filled())? else {
                if buffer.fill(stream).await? == 0 {
                    return Ok(());
                }
                continue;
            };
            let down = request.target.strip_prefix("/down/").and_then(|n| n.parse().ok());
            let (length, consumed) = (request.content_length, request.length);
            buffer.consume(consumed);
            if let Some(bytes) = down {
                write_all(stream, head(bytes).as_bytes()).await?;
                self.send(stream, bytes, None).await?;
            } else {
                receive(stream, &mut buffer, length, None).await?;
                let count = length.to_string();
                let answer = head(count.len() as u64) + &count;
                write_all(stream, answer.as_bytes()).await?;
            }
        }
    }

    /// Makes transfers of `bytes` bytes through `target`, one after the other, until told to stop.
    ///
    /// # Errors
    /// The first transfer that does not arrive as it should.
    pub async fn client(&self, target: SocketAddr, way: Way, bytes: u64) -> anyhow::Result<u64> {
        let stream = TcpStream::connect(target).await.context("the proxy refuses a connection")?;
        stream.set_nodelay(true)?;
        let mut buffer = ReadBuffer::new(64 * 1024);
        let mut count = 0;
        while !self.0.stop.load(Ordering::Relaxed) {
            let transfer = self.transfer(&stream, &mut buffer, way, bytes).await;
            transfer.with_context(|| format!("bulk transfer {count}, {way:?}"))?;
            count += 1;
        }
        Ok(count)
    }

    async fn transfer(
        &self,
        stream: &TcpStream,
        buffer: &mut ReadBuffer,
        way: Way,
        bytes: u64,
    ) -> io::Result<()> {
        let confirmation = bytes.to_string();
        let request = match way {
            Way::Down => format!("GET /down/{bytes} HTTP/1.1\r\nhost: {AUTHORITY}\r\n\r\n"),
            Way::Up => {
                format!("POST /up HTTP/1.1\r\nhost: {AUTHORITY}\r\ncontent-length: {bytes}\r\n\r\n")
            }
        };
        write_all(stream, request.as_bytes()).await?;
        if way == Way::Up {
            self.send(stream, bytes, Some(&self.0.moved)).await?;
        }
        let length = if way == Way::Down { bytes } else { confirmation.len() as u64 };
        let head = loop {
            match h1::response(buffer.filled())? {
                Some(head) => break head,
                None if buffer.fill(stream).await? == 0 => {
                    return Err(unexpected("the proxy closed the connection without an answer"));
                }
                None => {}
            }
        };
        buffer.consume(head.length);
        if head.status != 200 || head.content_length != length {
            return Err(unexpected(format!("a wrong answer: {head:?}")));
        }
        if way == Way::Down {
            return receive(stream, buffer, bytes, Some(&self.0.moved)).await;
        }
        while (buffer.filled().len() as u64) < length {
            if buffer.fill(stream).await? == 0 {
                return Err(unexpected("the answer to an upload ended early"));
            }
        }
        let confirmed = buffer.filled() == confirmation.as_bytes();
        buffer.consume(usize::MAX);
        if confirmed { Ok(()) } else { Err(unexpected("the origin confirms another byte count")) }
    }

    /// Sends `bytes` bytes of the pattern.
    async fn send(
        &self,
        stream: &TcpStream,
        bytes: u64,
        moved: Option<&AtomicU64>,
    ) -> io::Result<()> {
        let mut sent = 0;
        while sent < bytes {
            let length = pattern::slice(sent, bytes - sent).len().min(STEP);
            let mut at = sent % pattern::PERIOD as u64;
            let step = stream.try_io(Interest::WRITABLE, || {
                sendfile(stream.as_fd(), self.0.tape.as_fd(), Some(&mut at), length)
                    .map_err(io::Error::from)
            });
            match step {
                Ok(count) => {
                    sent += count as u64;
                    moved.map(|moved| moved.fetch_add(count as u64, Ordering::Relaxed));
                    tokio::task::yield_now().await;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Takes `bytes` bytes and compares the samples among them.
async fn receive(
    stream: &TcpStream,
    buffer: &mut ReadBuffer,
    bytes: u64,
    moved: Option<&AtomicU64>,
) -> io::Result<()> {
    let mut received = 0;
    let mut unseen = vec![0; STEP];
    while received < bytes {
        let left = bytes - received;
        let drop = to_drop(received, bytes);
        let count = if !buffer.filled().is_empty() || drop == 0 {
            if buffer.filled().is_empty() && buffer.fill(stream).await? == 0 {
                return Err(unexpected(format!("the body ended {left} bytes early")));
            }
            let piece = buffer.filled();
            let piece = &piece[..piece.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            // The buffer is far smaller than a slice of the pattern.
            if piece != pattern::slice(received, piece.len() as u64) {
                return Err(unexpected(format!("the bytes from {received} on are wrong")));
            }
            let count = piece.len();
            buffer.consume(count);
            count
        } else {
            let most = usize::try_from(drop).unwrap_or(STEP).min(STEP);
            let step = stream.try_io(Interest::READABLE, || {
                rustix::net::recv(stream.as_fd(), &mut unseen[..most], RecvFlags::TRUNC)
                    .map(|(_, count)| count)
                    .map_err(io::Error::from)
            });
            match step {
                Ok(0) => return Err(unexpected(format!("the body ended {left} bytes early"))),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    stream.readable().await?;
                    continue;
                }
                Err(e) => return Err(e),
            }
        };
        received += count as u64;
        moved.map(|moved| moved.fetch_add(count as u64, Ordering::Relaxed));
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// How many of the next bytes belong to no sample.
fn to_drop(received: u64, bytes: u64) -> u64 {
    let end = bytes.saturating_sub(SAMPLE);
    if received % SAMPLE_EVERY < SAMPLE || received >= end {
        return 0;
    }
    (SAMPLE_EVERY - received % SAMPLE_EVERY).min(end - received)
}

fn head(length: u64) -> String {
    format!("HTTP/1.1 200 OK\r\nserver: origin\r\ncontent-length: {length}\r\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_taken_at_regular_places_and_at_the_end() {
        let bytes = 3 * SAMPLE_EVERY;
        let table = [
            (0, 0),
            (SAMPLE - 1, 0),
            (SAMPLE, SAMPLE_EVERY - SAMPLE),
            (SAMPLE_EVERY - 1, 1),
            (SAMPLE_EVERY, 0),
            (bytes - SAMPLE - 7, 7),
            (bytes - SAMPLE, 0),
            (bytes - 1, 0),
        ];
        for (received, expected) in table {
            assert_eq!(to_drop(received, bytes), expected, "after {received}");
        }
        assert_eq!(to_drop(0, 10), 0);
    }
}
