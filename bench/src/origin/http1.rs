//! The HTTP/1.1 origin.

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::{Seen, down_bytes};
use crate::pattern::{self, Verifier};
use crate::wire::{ReadBuffer, h1, write_all};

/// Large enough that a bulk body needs few reads.
const BUFFER: usize = 256 * 1024;

/// What a request asks of the origin.
enum Task {
    Small,
    Down(u64),
    Up(u64),
    Unknown,
}

/// Serves a connection until the peer closes it.
///
/// A proxy may drop an idle connection at any time, so socket errors are no complaint; broken
/// content is.
pub(super) async fn serve(
    stream: TcpStream,
    seen: Arc<Seen>,
    small_body: usize,
) -> Result<(), String> {
    let small = response("200 OK", "application/json", &vec![b'x'; small_body]);
    let mut buffer = ReadBuffer::new(BUFFER);
    loop {
        let (task, consumed) = match h1::request(buffer.filled()) {
            Err(e) => return Err(e.to_string()),
            Ok(Some(head)) => (task_of(&head), head.length),
            Ok(None) => match buffer.fill(&stream).await {
                Ok(1..) => continue,
                Ok(0) | Err(_) => return Ok(()),
            },
        };
        buffer.consume(consumed);
        let sent = match task {
            Task::Small => write_all(&stream, &small).await,
            Task::Down(bytes) => send_down(&stream, bytes).await,
            Task::Up(bytes) => {
                if receive_up(&stream, &mut buffer, bytes).await? < bytes {
                    return Err(format!("an upload of {bytes} bytes ended early"));
                }
                seen.received_upload(bytes);
                let body = bytes.to_string();
                write_all(&stream, &response("200 OK", "text/plain", body.as_bytes())).await
            }
            Task::Unknown => {
                write_all(&stream, &response("404 Not Found", "text/plain", b"")).await
            }
        };
        if sent.is_err() {
            return Ok(());
        }
        seen.answered();
    }
}

fn task_of(head: &h1::RequestHead<'_>) -> Task {
    match head.target {
        "/small" => Task::Small,
        "/up" => Task::Up(head.content_length),
        path => down_bytes(path).map_or(Task::Unknown, Task::Down),
    }
}

fn response(status: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = head(status, content_type, body.len() as u64).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn head(status: &str, content_type: &str, length: u64) -> String {
    format!(
        "HTTP/1.1 {status}\r\nserver: origin\r\ndate: Fri, 20 Nov 2026 12:00:00 GMT\r\n\
         content-type: {content_type}\r\ncache-control: no-store\r\ncontent-length: {length}\r\n\r\n"
    )
}

async fn send_down(stream: &TcpStream, bytes: u64) -> io::Result<()> {
    write_all(stream, head("200 OK", "application/octet-stream", bytes).as_bytes()).await?;
    let mut sent = 0;
    while sent < bytes {
        let piece = pattern::slice(sent, bytes - sent);
        write_all(stream, piece).await?;
        sent += piece.len() as u64;
    }
    Ok(())
}

/// Takes the body and returns how much of it came.
async fn receive_up(
    stream: &TcpStream,
    buffer: &mut ReadBuffer,
    bytes: u64,
) -> Result<u64, String> {
    let mut body = Verifier::default();
    while body.received() < bytes {
        if buffer.filled().is_empty() && !matches!(buffer.fill(stream).await, Ok(1..)) {
            return Ok(body.received());
        }
        let left = usize::try_from(bytes - body.received()).unwrap_or(usize::MAX);
        let piece = buffer.filled().len().min(left);
        body.push(&buffer.filled()[..piece]);
        buffer.consume(piece);
    }
    body.finish(bytes)?;
    Ok(bytes)
}
