//! An endpoint whose speed and health can be turned while transfers run, and that notes what it
//! gets.
//!
//! It serves `/down/BYTES` over HTTP/1.1 at a pace for each transfer, as a worker behind a disk or
//! an accelerator does, under a strong entity tag and by `Range`, so that a download may go on
//! elsewhere.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpStream};

use crate::pattern;
use crate::wire::{ReadBuffer, h1, write_all};

/// Bytes sent at once: small against what is sent in the time a test tells apart.
const STEP: u64 = 32 << 10;
const ETAG: &str = "\"pattern-1\"";

/// A running endpoint. It lives as long as the runtime.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes a second of each transfer.
    pace: AtomicU64,
    failing: AtomicBool,
    sent: AtomicU64,
    arrivals: Mutex<Vec<Instant>>,
}

impl Endpoint {
    /// Starts one that sends `pace` bytes a second in each transfer.
    ///
    /// # Errors
    /// If a socket cannot be had.
    pub async fn start(pace: u64) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("endpoint")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            pace: AtomicU64::new(pace),
            failing: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            arrivals: Mutex::new(Vec::new()),
        });
        let serving = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                tokio::spawn(async move {
                    // The proxy may go at any time; the client tells what broke.
                    let _ = stream.set_nodelay(true);
                    let _ = state.serve(&stream).await;
                });
            }
        });
        Ok(Self { address, state })
    }

    /// Changes the pace, of running transfers too.
    pub fn set_pace(&self, bytes_per_second: u64) {
        self.state.pace.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Answers 503 from now on, or no longer.
    pub fn set_failing(&self, failing: bool) {
        self.state.failing.store(failing, Ordering::Relaxed);
    }

    /// Body bytes sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }

    /// When requests came, since the last call.
    #[must_use]
    pub fn take_arrivals(&self) -> Vec<Instant> {
        self.state.arrivals.lock().map(|mut a| std::mem::take(&mut *a)).unwrap_or_default()
    }
}

impl State {
    async fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let mut buffer = ReadBuffer::new(16 * 1024);
        loop {
            let Some(head) = h1::request(buffer.filled())? else {
                if buffer.fill(stream).await? == 0 {
                    return Ok(());
                }
                continue;
            };
            let bytes = head.target.strip_prefix("/down/").and_then(|n| n.parse::<u64>().ok());
            let from = range_start(&buffer.filled()[..head.length]);
            let consumed = head.length;
            buffer.consume(consumed);
            if let Ok(mut arrivals) = self.arrivals.lock() {
                arrivals.push(Instant::now());
            }
            if self.failing.load(Ordering::Relaxed) {
                let head = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
                write_all(stream, head).await?;
                continue;
            }
            let bytes = bytes.unwrap_or(0);
            let from = from.filter(|from| *from < bytes);
            write_all(stream, response_head(bytes, from).as_bytes()).await?;
            self.send(stream, from.unwrap_or(0), bytes).await?;
        }
    }

    /// Sends the bytes from `from` to `to` at the pace of the moment.
    async fn send(&self, stream: &TcpStream, from: u64, to: u64) -> io::Result<()> {
        let mut sent = from;
        // Each step is due when the one before has had its time, however late a timer was.
        let mut due = Instant::now();
        while sent < to {
            let piece = pattern::slice(sent, (to - sent).min(STEP));
            write_all(stream, piece).await?;
            sent += piece.len() as u64;
            self.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            let pace = self.pace.load(Ordering::Relaxed).max(1);
            due += Duration::from_secs_f64(piece.len() as f64 / pace as f64);
            // Time lost to a full socket is not made up for in a burst.
            due = due.max(Instant::now() - Duration::from_millis(20));
            tokio::time::sleep_until(due.into()).await;
        }
        Ok(())
    }
}

fn response_head(bytes: u64, from: Option<u64>) -> String {
    let (status, range) = match from {
        Some(from) => {
            let last = bytes - 1;
            ("206 Partial Content", format!("content-range: bytes {from}-{last}/{bytes}\r\n"))
        }
        None => ("200 OK", String::new()),
    };
    let length = bytes - from.unwrap_or(0);
    format!(
        "HTTP/1.1 {status}\r\nserver: endpoint\r\ncontent-type: application/octet-stream\r\n\
         etag: {ETAG}\r\naccept-ranges: bytes\r\n{range}content-length: {length}\r\n\r\n"
    )
}

/// The start of `Range: bytes=N-`, if the request's `If-Range` names what is here.
fn range_start(head: &[u8]) -> Option<u64> {
    let text = |name: &[u8]| std::str::from_utf8(h1::header(head, name)?).ok();
    if text(b"if-range").is_some_and(|tag| tag != ETAG) {
        return None;
    }
    text(b"range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_counts_only_for_what_is_here() {
        let head = |tag: &str| {
            format!("GET /down/9 HTTP/1.1\r\nRange: bytes=7-\r\nIf-Range: {tag}\r\n\r\n")
        };
        assert_eq!(range_start(head(ETAG).as_bytes()), Some(7));
        assert_eq!(range_start(head("\"other\"").as_bytes()), None);
        assert_eq!(range_start(b"GET /down/9 HTTP/1.1\r\nrange: bytes=7-8\r\n\r\n"), None);
        assert!(response_head(9, Some(7)).contains("bytes 7-8/9\r\ncontent-length: 2\r\n"));
    }
}
