//! Bulk transfers over one HTTP/2 connection, with constant memory. The origin shares the code
//! that sends and receives a body.

use std::future::poll_fn;
use std::net::SocketAddr;

use anyhow::Context as _;
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::AUTHORITY;
use crate::case::Direction;
use crate::pattern::{self, Verifier};

/// Flow-control window of a stream at both ends, so that only the proxy's own can hold it up.
pub const STREAM_WINDOW: u32 = 8 << 20;
/// Flow-control window of a connection at both ends.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes offered to the h2 crate at once; it cuts them into frames.
const PIECE: u64 = 256 * 1024;

/// The open connection. Its driver ends with it.
#[derive(Debug)]
pub struct Session {
    sender: SendRequest<Bytes>,
    _driver: JoinSet<()>,
}

impl Session {
    /// Opens the connection.
    ///
    /// # Errors
    /// If it is refused or is no HTTP/2.
    pub async fn connect(target: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(target)
            .await
            .with_context(|| format!("the proxy refuses a connection on {target}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(stream)
            .await
            .context("HTTP/2 handshake with the proxy")?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // A failed connection shows as the error of its transfer.
            let _ = connection.await;
        });
        Ok(Self { sender, _driver: driver })
    }

    /// Moves `bytes` bytes and verifies them.
    ///
    /// # Errors
    /// If the connection fails, or what arrived differs from what was sent.
    pub async fn transfer(&mut self, direction: Direction, bytes: u64) -> anyhow::Result<()> {
        self.sender = self.sender.clone().ready().await?;
        let builder = Request::builder();
        let up = direction == Direction::Up;
        let request = match direction {
            Direction::Down => builder.uri(format!("http://{AUTHORITY}/down/{bytes}")),
            Direction::Up => builder
                .method("POST")
                .uri(format!("http://{AUTHORITY}/up"))
                .header("content-type", "application/octet-stream")
                .header("content-length", bytes),
        };
        let (response, mut stream) = self.sender.send_request(request.body(())?, !up)?;
        if up {
            send(&mut stream, bytes).await.map_err(anyhow::Error::msg)?;
        }
        let response = response.await?;
        anyhow::ensure!(response.status() == 200, "status {}", response.status());
        let mut body = response.into_body();
        if !up {
            return receive(&mut body, bytes).await.map_err(anyhow::Error::msg);
        }
        let mut answer = Vec::new();
        while let Some(piece) = body.data().await {
            let piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
            answer.extend_from_slice(&piece);
            anyhow::ensure!(answer.len() < 32, "the answer to an upload is too long");
        }
        let confirmed = answer == bytes.to_string().as_bytes();
        anyhow::ensure!(confirmed, "the origin confirms another byte count");
        Ok(())
    }
}

/// Sends `bytes` bytes of the pattern and ends the stream.
///
/// # Errors
/// If the stream or its connection fails.
pub async fn send(stream: &mut SendStream<Bytes>, bytes: u64) -> Result<(), String> {
    let mut sent = 0;
    while sent < bytes {
        stream.reserve_capacity(usize::try_from(PIECE.min(bytes - sent)).unwrap_or(0));
        while stream.capacity() == 0 {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(format!("sending at offset {sent}: {e}")),
                None => return Err(format!("the stream closed at offset {sent} of {bytes}")),
            }
        }
        let piece = pattern::bytes(sent, (stream.capacity() as u64).min(bytes - sent));
        sent += piece.len() as u64;
        stream.send_data(piece, sent == bytes).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Takes a body to its end and verifies that it is `bytes` bytes of the pattern.
///
/// # Errors
/// If the stream fails or the bytes differ.
pub async fn receive(body: &mut RecvStream, bytes: u64) -> Result<(), String> {
    let mut verifier = Verifier::default();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(|e| format!("at offset {}: {e}", verifier.received()))?;
        verifier.push(&piece);
        body.flow_control().release_capacity(piece.len()).map_err(|e| e.to_string())?;
    }
    verifier.finish(bytes)
}
