//! The cleartext HTTP/2 origin for bulk transfers.

use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use tokio::net::TcpStream;

use super::{Seen, down_bytes};
use crate::load::bulk_h2::{CONNECTION_WINDOW, STREAM_WINDOW, receive, send};

/// Serves a connection until the peer closes it.
pub(super) async fn serve(stream: TcpStream, seen: Arc<Seen>) -> Result<(), String> {
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake::<_, Bytes>(stream)
        .await;
    let Ok(mut connection) = handshake else { return Ok(()) };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            if let Err(text) = answer(request, respond, &seen).await {
                seen.complain(format!("the HTTP/2 origin: {text}"));
            }
        });
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: &Seen,
) -> Result<(), String> {
    let (head, mut body) = request.into_parts();
    let declared = head.headers.get(http::header::CONTENT_LENGTH);
    let declared = declared.and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if let Some(bytes) = down_bytes(head.uri.path()) {
        let mut stream = respond_with(&mut respond, bytes)?;
        send(&mut stream, bytes).await?;
    } else {
        let bytes = declared.ok_or("an upload came without the Content-Length it was sent with")?;
        receive(&mut body, bytes).await?;
        seen.received_upload(bytes);
        let text = bytes.to_string();
        let mut stream = respond_with(&mut respond, text.len() as u64)?;
        stream.send_data(Bytes::from(text), true).map_err(|e| e.to_string())?;
    }
    seen.answered();
    Ok(())
}

fn respond_with(
    respond: &mut SendResponse<Bytes>,
    length: u64,
) -> Result<SendStream<Bytes>, String> {
    let response = Response::builder()
        .header("server", "origin")
        .header("content-type", "application/octet-stream")
        .header("content-length", length)
        .body(())
        .map_err(|e| e.to_string())?;
    respond.send_response(response, false).map_err(|e| e.to_string())
}
