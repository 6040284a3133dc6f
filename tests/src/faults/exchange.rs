//! The endpoint's end of one request, over either version.

use std::{future::poll_fn, io, sync::Arc};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

use super::{
    h1::{Framing, Reader, chunk},
    plan::Break,
    tap::{Control, Ending, Tap},
};
use crate::frames;

/// A request being answered.
pub(super) enum Exchange<'a> {
    Http1(Http1<'a>),
    Http2(Box<Http2>),
}

pub(super) struct Http1<'a> {
    pub(super) reader: &'a mut Reader<ReadHalf<Tap>>,
    pub(super) writer: &'a mut WriteHalf<Tap>,
    pub(super) body: Framing,
    pub(super) chunked: bool,
    pub(super) control: Arc<Control>,
}

pub(super) struct Http2 {
    pub(super) body: RecvStream,
    pub(super) respond: SendResponse<Bytes>,
    pub(super) send: Option<SendStream<Bytes>>,
    pub(super) trailers: Option<HeaderMap>,
    pub(super) control: Arc<Control>,
}

/// The other side is gone.
pub(super) type Gone = String;

impl Exchange<'_> {
    /// The next piece of the request body; `None` at its end.
    pub(super) async fn read(&mut self) -> Result<Option<Bytes>, Gone> {
        match self {
            Self::Http1(h1) => h1.reader.piece(&mut h1.body).await.map_err(gone),
            Self::Http2(h2) => match h2.body.data().await {
                // What is reset before its trailers has no end.
                None => match poll_fn(|cx| h2.body.poll_trailers(cx)).await {
                    Ok(trailers) => {
                        h2.trailers = trailers;
                        Ok(None)
                    }
                    Err(error) => Err(error.to_string()),
                },
                Some(Err(error)) => Err(error.to_string()),
                Some(Ok(bytes)) => {
                    let credit = h2.body.flow_control().release_capacity(bytes.len());
                    credit.map_err(|error| error.to_string())?;
                    Ok(Some(bytes))
                }
            },
        }
    }

    /// A field after the request body.
    pub(super) fn trailer(&self, name: &str) -> Option<String> {
        match self {
            Self::Http1(h1) => {
                let mut trailers = h1.reader.trailers.iter();
                trailers.find(|(n, _)| n == name).map(|(_, value)| value.clone())
            }
            Self::Http2(h2) => h2.trailers.as_ref()?.get(name)?.to_str().ok().map(str::to_owned),
        }
    }

    /// Sends an interim response.
    pub(super) async fn inform(
        &mut self,
        status: u16,
        fields: &[(&str, String)],
    ) -> Result<(), Gone> {
        match self {
            Self::Http1(h1) => {
                let head = format!("{}\r\n", fields_text(status, fields));
                h1.writer.write_all(head.as_bytes()).await.map_err(gone)
            }
            Self::Http2(h2) => {
                let head = head_of(status, fields)?;
                h2.respond.send_informational(head).map_err(|e| e.to_string())
            }
        }
    }

    /// Answers with a head alone: to HEAD, or 204.
    pub(super) async fn respond_bodiless(
        &mut self,
        status: u16,
        fields: &[(&str, String)],
    ) -> Result<(), Gone> {
        match self {
            Self::Http1(h1) => {
                let head = format!("{}\r\n", fields_text(status, fields));
                h1.writer.write_all(head.as_bytes()).await.map_err(gone)
            }
            Self::Http2(h2) => {
                let sent = h2.respond.send_response(head_of(status, fields)?, true);
                sent.map(drop).map_err(|e| e.to_string())
            }
        }
    }

    /// Sends the head of the answer.
    pub(super) async fn respond(
        &mut self,
        status: u16,
        length: Option<u64>,
        fields: &[(&str, String)],
    ) -> Result<(), Gone> {
        match self {
            Self::Http1(h1) => {
                h1.chunked = length.is_none();
                let head = head_text(status, length, fields);
                h1.writer.write_all(head.as_bytes()).await.map_err(gone)
            }
            Self::Http2(h2) => {
                let mut head = head_of(status, fields)?;
                if let Some(length) = length {
                    head.headers_mut().insert("content-length", length.into());
                }
                let sent = h2.respond.send_response(head, false);
                h2.send = Some(sent.map_err(|e| e.to_string())?);
                Ok(())
            }
        }
    }

    /// Sends a part of the answer's body.
    pub(super) async fn write(&mut self, mut bytes: Bytes) -> Result<(), Gone> {
        match self {
            Self::Http1(h1) if h1.chunked => {
                h1.writer.write_all(&chunk(&bytes)).await.map_err(gone)
            }
            Self::Http1(h1) => h1.writer.write_all(&bytes).await.map_err(gone),
            Self::Http2(h2) => {
                let Some(send) = &mut h2.send else { return Ok(()) };
                while !bytes.is_empty() {
                    send_some(send, &mut bytes).await?;
                }
                Ok(())
            }
        }
    }

    /// Ends the answer, with a field after its body where there is one and the framing allows it.
    pub(super) async fn end(&mut self, trailer: Option<(&str, String)>) -> Result<(), Gone> {
        match self {
            Self::Http1(h1) if h1.chunked => {
                let field = trailer.map(|(name, value)| format!("{name}: {value}\r\n"));
                let end = format!("0\r\n{}\r\n", field.unwrap_or_default());
                h1.writer.write_all(end.as_bytes()).await.map_err(gone)
            }
            Self::Http1(_) => Ok(()),
            Self::Http2(h2) => {
                let Some(send) = &mut h2.send else { return Ok(()) };
                let Some((name, value)) = trailer else {
                    return send.send_data(Bytes::new(), true).map_err(|e| e.to_string());
                };
                let mut trailers = HeaderMap::new();
                insert(&mut trailers, name, &value)?;
                send.send_trailers(trailers).map_err(|e| e.to_string())
            }
        }
    }

    /// Says that the rest of the request is not wanted.
    pub(super) fn want_no_more(&mut self) {
        match self {
            Self::Http1(h1) => h1.control.kill(Ending::Close),
            Self::Http2(h2) => {
                if let Some(send) = &mut h2.send {
                    send.send_reset(Reason::NO_ERROR);
                }
            }
        }
    }

    /// Begins something that never ends.
    pub(super) async fn begin_partial(&mut self, head: bool) {
        match self {
            Self::Http1(h1) => {
                let bytes: &[u8] = match (head, h1.chunked) {
                    (true, _) => b"HTTP/1.1 200 OK\r\ncontent-le",
                    (false, true) => b"ffff\r\n",
                    (false, false) => b"",
                };
                let _ = h1.writer.write_all(bytes).await;
                h1.control.kill(Ending::Close);
            }
            Self::Http2(h2) => {
                // DATA or HEADERS of 100 bytes, of which few come.
                let kind = if head { frames::HEADERS } else { frames::DATA };
                let id = h2.respond.stream_id().as_u32();
                let mut frame = frames::frame(kind, 0, id, vec![0; 100]);
                frame.truncate(20);
                h2.control.inject(frame, Some(Ending::Close));
            }
        }
    }

    /// Breaks off; true where the endpoint thereby says that it processed nothing.
    pub(super) async fn break_off(&mut self, how: Break, head: bool) -> bool {
        match (how, &mut *self) {
            (Break::Partial, _) => self.begin_partial(head).await,
            (Break::Close, _) => self.control().kill(Ending::Close),
            (Break::Stream(code), Self::Http2(h2)) => {
                let reason = Reason::from(code);
                match &mut h2.send {
                    Some(send) => send.send_reset(reason),
                    None => h2.respond.send_reset(reason),
                }
                return reason == Reason::REFUSED_STREAM;
            }
            (Break::GoAway { below, abrupt }, Self::Http2(h2)) => {
                let id = h2.respond.stream_id().as_u32();
                let last = if below { id.saturating_sub(2) } else { id };
                let last = h2.control.leave_after(last);
                let code: u32 = if abrupt { 2 } else { 0 };
                let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
                let then = abrupt.then_some(Ending::Close);
                h2.control.inject(frames::frame(frames::GOAWAY, 0, 0, payload), then);
                return below;
            }
            _ => self.control().kill(Ending::Reset),
        }
        false
    }

    pub(super) fn control(&self) -> &Arc<Control> {
        match self {
            Self::Http1(h1) => &h1.control,
            Self::Http2(h2) => &h2.control,
        }
    }

    /// The stream; 0 over HTTP/1.1.
    pub(super) fn stream(&self) -> u32 {
        match self {
            Self::Http1(_) => 0,
            Self::Http2(h2) => h2.respond.stream_id().as_u32(),
        }
    }
}

/// Sends as much as the windows allow, and waits until they allow some.
pub(super) async fn send_some(send: &mut SendStream<Bytes>, bytes: &mut Bytes) -> Result<(), Gone> {
    send.reserve_capacity(bytes.len());
    while send.capacity() == 0 {
        match poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("the stream is closed".into()),
        }
    }
    let now = bytes.split_to(bytes.len().min(send.capacity()));
    send.send_data(now, false).map_err(|error| error.to_string())
}

fn head_of(status: u16, fields: &[(&str, String)]) -> Result<Response<()>, Gone> {
    let mut head = Response::builder().status(status).body(()).map_err(of_http)?;
    for (name, value) in fields {
        insert(head.headers_mut(), name, value)?;
    }
    Ok(head)
}

fn insert(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), Gone> {
    let name = HeaderName::try_from(name).map_err(|error| error.to_string())?;
    headers.insert(name, HeaderValue::try_from(value).map_err(|error| error.to_string())?);
    Ok(())
}

fn fields_text(status: u16, fields: &[(&str, String)]) -> String {
    let mut text = format!("HTTP/1.1 {status} Answer\r\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text
}

fn head_text(status: u16, length: Option<u64>, fields: &[(&str, String)]) -> String {
    let mut text = fields_text(status, fields);
    text.push_str(&match length {
        Some(length) => format!("content-length: {length}\r\n\r\n"),
        None => "transfer-encoding: chunked\r\n\r\n".to_owned(),
    });
    text
}

fn gone(error: io::Error) -> Gone {
    error.to_string()
}

fn of_http(error: http::Error) -> Gone {
    error.to_string()
}
