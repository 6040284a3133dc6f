//! Clients of the bulk cases beside those of [`crate::load`]: one that takes a failure for an
//! answer, and one that asks an admin endpoint.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::load::AUTHORITY;
use crate::pattern::{self, Verifier};
use crate::wire::{ReadBuffer, h1, unexpected, write_all};

/// Most bytes an admin endpoint may answer.
const ADMIN_LIMIT: u64 = 16 << 20;

/// A keep-alive connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: ReadBuffer,
}

impl Connection {
    /// Opens it.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn open(target: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: ReadBuffer::new(64 * 1024) })
    }

    /// Gets `path` and returns the status. The body of a 200 is verified to be `bytes` of the
    /// pattern; another's is dropped.
    ///
    /// # Errors
    /// If the connection fails, or what arrived is not that.
    pub async fn get(&mut self, path: &str, bytes: u64) -> io::Result<u16> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {AUTHORITY}\r\n\r\n");
        write_all(&self.stream, request.as_bytes()).await?;
        let head = self.head().await?;
        if head.status == 200 && head.content_length != bytes {
            return Err(unexpected(format!("a wrong answer: {head:?}")));
        }
        let mut body = Verifier::default();
        self.body(head.content_length, |piece| body.push(piece)).await?;
        if head.status == 200 {
            body.finish(bytes).map_err(unexpected)?;
        }
        Ok(head.status)
    }

    /// Gets `path`, whose body would be `bytes` bytes of the pattern, until `stop` is set; every
    /// byte is compared as it comes.
    ///
    /// # Errors
    /// If the connection fails, or what arrives is not that, or it ends before `stop` is set.
    pub async fn follow(mut self, path: &str, bytes: u64, stop: &AtomicBool) -> io::Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {AUTHORITY}\r\n\r\n");
        write_all(&self.stream, request.as_bytes()).await?;
        let head = self.head().await?;
        if head.status != 200 || head.content_length != bytes {
            return Err(unexpected(format!("a wrong answer: {head:?}")));
        }
        let mut body = Verifier::default();
        while !stop.load(Ordering::Relaxed) {
            if self.buffer.filled().is_empty() && self.buffer.fill(&self.stream).await? == 0 {
                return Err(unexpected(format!("the answer ended after {}", body.received())));
            }
            let piece = self.buffer.filled();
            let count = piece.len();
            body.push(piece);
            self.buffer.consume(count);
            body.finish(body.received()).map_err(unexpected)?;
        }
        Ok(())
    }

    /// Posts `bytes` bytes of the pattern to `path` and returns the status and the answer's body.
    /// Without bytes it is a GET.
    ///
    /// # Errors
    /// If the connection fails, or the answer is no HTTP/1.1.
    pub async fn post(&mut self, path: &str, bytes: u64) -> io::Result<(u16, String)> {
        let method = if bytes > 0 { "POST" } else { "GET" };
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {AUTHORITY}\r\n");
        if bytes > 0 {
            request.push_str(&format!("content-length: {bytes}\r\n"));
        }
        request.push_str("\r\n");
        let mut message = request.into_bytes();
        message.extend_from_slice(pattern::slice(0, bytes));
        write_all(&self.stream, &message).await?;
        let head = self.head().await?;
        let mut text = Vec::new();
        self.body(head.content_length, |piece| text.extend_from_slice(piece)).await?;
        Ok((head.status, String::from_utf8_lossy(&text).into_owned()))
    }

    /// Sends a request whose head is given with `bytes` bytes of the pattern, and returns the status
    /// and the answer's body. An answer that comes before all is sent ends the sending; unless it is
    /// a 200 the connection is of no more use.
    ///
    /// # Errors
    /// If the connection fails, or the answer is no HTTP/1.1.
    pub async fn send(&mut self, head: &str, bytes: u64) -> io::Result<(u16, String)> {
        let Self { stream, buffer } = self;
        let stream = &*stream;
        let sending = async {
            write_all(stream, head.as_bytes()).await?;
            let mut sent = 0;
            while sent < bytes {
                let piece = pattern::slice(sent, bytes - sent);
                write_all(stream, piece).await?;
                sent += piece.len() as u64;
            }
            Ok::<(), io::Error>(())
        };
        let head = {
            let mut receiving = std::pin::pin!(read_head(stream, buffer));
            tokio::select! {
                biased;
                early = &mut receiving => early?,
                // A proxy that refuses may close before it has read all; its answer is there by then.
                _ = sending => receiving.await?,
            }
        };
        let mut text = Vec::new();
        self.body(head.content_length, |piece| text.extend_from_slice(piece)).await?;
        Ok((head.status, String::from_utf8_lossy(&text).into_owned()))
    }

    async fn head(&mut self) -> io::Result<h1::ResponseHead> {
        read_head(&self.stream, &mut self.buffer).await
    }

    async fn body(&mut self, length: u64, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.buffer.filled().is_empty() && self.buffer.fill(&self.stream).await? == 0 {
                return Err(unexpected(format!("the answer ended {left} bytes early")));
            }
            let filled = self.buffer.filled();
            let piece = filled.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            each(&filled[..piece]);
            self.buffer.consume(piece);
            left -= piece as u64;
        }
        Ok(())
    }
}

async fn read_head(stream: &TcpStream, buffer: &mut ReadBuffer) -> io::Result<h1::ResponseHead> {
    loop {
        if let Some(head) = h1::response(buffer.filled())? {
            buffer.consume(head.length);
            return Ok(head);
        }
        if buffer.fill(stream).await? == 0 {
            return Err(unexpected("the proxy closed the connection without an answer"));
        }
    }
}

/// What an admin endpoint answers.
///
/// # Errors
/// If it does not, or not with 200.
pub async fn fetch(admin: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(admin).await.context("the admin endpoint")?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ADMIN_LIMIT).read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    anyhow::ensure!(
        text.starts_with("HTTP/1.1 200"),
        "{path}: {}",
        text.lines().next().unwrap_or("")
    );
    let (_, body) = text.split_once("\r\n\r\n").context("no body")?;
    Ok(body.to_owned())
}
