//! Bulk transfers over one HTTP/1.1 keep-alive connection, with constant memory.

use std::io;
use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::net::TcpStream;

use super::AUTHORITY;
use crate::case::Direction;
use crate::pattern::{self, Verifier};
use crate::wire::{ReadBuffer, h1, unexpected, write_all};

const BUFFER: usize = 256 * 1024;

/// The open connection.
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
    buffer: ReadBuffer,
}

impl Session {
    /// Opens the connection.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn connect(target: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(target)
            .await
            .with_context(|| format!("the proxy refuses a connection on {target}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: ReadBuffer::new(BUFFER) })
    }

    /// Moves `bytes` bytes and verifies them.
    ///
    /// # Errors
    /// If the connection fails, or what arrived differs from what was sent.
    pub async fn transfer(&mut self, direction: Direction, bytes: u64) -> io::Result<()> {
        match direction {
            Direction::Down => self.down(bytes).await,
            Direction::Up => self.up(bytes).await,
        }
    }

    async fn down(&mut self, bytes: u64) -> io::Result<()> {
        let request = format!("GET /down/{bytes} HTTP/1.1\r\nhost: {AUTHORITY}\r\n\r\n");
        write_all(&self.stream, request.as_bytes()).await?;
        self.expect_head(bytes).await?;
        let mut body = Verifier::default();
        loop {
            body.push(self.buffer.filled());
            self.buffer.consume(usize::MAX);
            if body.received() >= bytes {
                return body.finish(bytes).map_err(unexpected);
            }
            if self.buffer.fill(&self.stream).await? == 0 {
                let got = body.received();
                return Err(unexpected(format!("the download ended after {got} of {bytes} bytes")));
            }
        }
    }

    async fn up(&mut self, bytes: u64) -> io::Result<()> {
        let head = format!(
            "POST /up HTTP/1.1\r\nhost: {AUTHORITY}\r\n\
             content-type: application/octet-stream\r\ncontent-length: {bytes}\r\n\r\n"
        );
        write_all(&self.stream, head.as_bytes()).await?;
        let mut sent = 0;
        while sent < bytes {
            let piece = pattern::slice(sent, bytes - sent);
            write_all(&self.stream, piece).await?;
            sent += piece.len() as u64;
        }
        // The origin answers with the count of what it verified.
        let expected = bytes.to_string();
        self.expect_head(expected.len() as u64).await?;
        while self.buffer.filled().len() < expected.len() {
            if self.buffer.fill(&self.stream).await? == 0 {
                return Err(unexpected("the answer to an upload ended early"));
            }
        }
        let confirmed = self.buffer.filled() == expected.as_bytes();
        self.buffer.consume(usize::MAX);
        if confirmed { Ok(()) } else { Err(unexpected("the origin confirms another byte count")) }
    }

    async fn expect_head(&mut self, content_length: u64) -> io::Result<()> {
        loop {
            if let Some(head) = h1::response(self.buffer.filled())? {
                self.buffer.consume(head.length);
                if head.status == 200 && head.content_length == content_length {
                    return Ok(());
                }
                return Err(unexpected(format!("a wrong answer: {head:?}")));
            }
            if self.buffer.fill(&self.stream).await? == 0 {
                return Err(unexpected("the proxy closed the connection without an answer"));
            }
        }
    }
}
