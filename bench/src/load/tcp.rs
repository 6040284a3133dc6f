//! Bulk transfers over opaque TCP: half of the bytes up, then as many down, on one connection.
//!
//! The client announces the size, so that neither side needs a half-close to find the end: nginx
//! cannot carry one by default. The origin shares the code.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

use crate::pattern::{self, Verifier};
use crate::wire::{ReadBuffer, unexpected, write_all};

/// Bytes of the header that announces the size of each half, big-endian.
pub const HEADER: usize = 8;
/// Bytes read at once.
pub const BUFFER: usize = 256 * 1024;

/// Moves `bytes` bytes, half in each direction, and verifies them.
///
/// # Errors
/// If the connection fails, or what came back differs from the pattern.
pub async fn transfer(target: SocketAddr, bytes: u64) -> io::Result<()> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let half = bytes / 2;
    write_all(&stream, &half.to_be_bytes()).await?;
    send(&stream, half).await?;
    let mut buffer = ReadBuffer::new(BUFFER);
    receive(&stream, &mut buffer, half).await.map_err(unexpected)
}

/// Sends `bytes` bytes of the pattern.
///
/// # Errors
/// The socket's.
pub async fn send(stream: &TcpStream, bytes: u64) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes {
        let piece = pattern::slice(sent, bytes - sent);
        write_all(stream, piece).await?;
        sent += piece.len() as u64;
    }
    Ok(())
}

/// Takes `bytes` bytes and verifies them.
///
/// # Errors
/// If the stream ends early or the bytes differ.
pub async fn receive(
    stream: &TcpStream,
    buffer: &mut ReadBuffer,
    bytes: u64,
) -> Result<(), String> {
    let mut verifier = Verifier::default();
    loop {
        verifier.push(buffer.filled());
        buffer.consume(usize::MAX);
        if verifier.received() >= bytes {
            return verifier.finish(bytes);
        }
        match buffer.fill(stream).await {
            Ok(1..) => {}
            Ok(0) => return verifier.finish(bytes),
            Err(e) => return Err(e.to_string()),
        }
    }
}
