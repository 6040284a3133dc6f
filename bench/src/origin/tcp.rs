//! The opaque TCP origin: takes the announced bytes, then sends as many back.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::Seen;
use crate::load::tcp::{BUFFER, HEADER, receive, send};
use crate::wire::ReadBuffer;

/// Serves a connection: a header with the number of bytes, that many up, then that many down.
pub(super) async fn serve(stream: TcpStream, seen: Arc<Seen>) -> Result<(), String> {
    let mut buffer = ReadBuffer::new(BUFFER);
    while buffer.filled().len() < HEADER {
        if !matches!(buffer.fill(&stream).await, Ok(1..)) {
            // Probes for readiness open a connection and close it.
            return Ok(());
        }
    }
    let mut header = [0; HEADER];
    header.copy_from_slice(&buffer.filled()[..HEADER]);
    let bytes = u64::from_be_bytes(header);
    buffer.consume(HEADER);
    receive(&stream, &mut buffer, bytes).await?;
    seen.received_upload(bytes);
    send(&stream, bytes).await.map_err(|e| e.to_string())?;
    seen.answered();
    // Waits for the client's close, so that ours is never the one that cuts it short.
    let _ = buffer.fill(&stream).await;
    Ok(())
}
