//! An exchange with an endpoint over HTTP/2.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::ResponseFuture};
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri, header,
    uri::{Authority, Scheme},
};

use super::{
    headers,
    message::{Broken, Interim, Length, Piece, RequestHead},
    relay::Answer,
};
use crate::upstream::h2_pool::{Opened, StreamGuard};

/// A stream with one request on it.
pub(super) struct Http2 {
    response: ResponseFuture,
    send: SendStream<Bytes>,
    receive: Option<RecvStream>,
    method: Method,
    interims: bool,
    informed: u8,
    empty: bool,
    _guard: StreamGuard,
}

/// The head as the `h2` crate wants it.
pub(super) fn request(head: &RequestHead, host: &Authority, scheme: &Scheme) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(scheme.clone());
    parts.authority = Some(host.clone());
    parts.path_and_query = Some(head.target.clone());
    // The three parts are there, so they are a URI.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    *request.version_mut() = http::Version::HTTP_2;
    let mut headers = head.headers.clone();
    if head.te_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if head.expects_continue && !head.length.is_empty() {
        headers.insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    }
    *request.headers_mut() = headers;
    request
}

impl Http2 {
    pub(super) fn new(opened: Opened, method: Method) -> Self {
        Self {
            response: opened.response,
            send: opened.body,
            receive: None,
            method,
            interims: true,
            informed: 0,
            empty: false,
            _guard: opened.guard,
        }
    }

    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        poll_room(&mut self.send, cx)
    }

    pub(super) fn data(&mut self, bytes: Bytes, last: bool) -> Result<(), Broken> {
        self.send.send_data(bytes, last).map_err(|e| Broken::of_h2(&e))
    }

    pub(super) fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        end(&mut self.send, trailers)
    }

    pub(super) fn reset(&mut self, reason: h2::Reason) {
        self.send.send_reset(reason);
    }

    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Broken>> {
        if self.interims {
            match self.response.poll_informational(cx) {
                Poll::Ready(Some(Ok(response))) => {
                    let (parts, ()) = response.into_parts();
                    self.informed += 1;
                    if parts.status == http::StatusCode::SWITCHING_PROTOCOLS {
                        return Poll::Ready(Err(Broken::Malformed("101 over HTTP/2")));
                    }
                    if self.informed > super::h1_client::MAX_INTERIMS {
                        return Poll::Ready(Err(Broken::Malformed("too many interim responses")));
                    }
                    let interim = Interim { status: parts.status, headers: parts.headers };
                    return Poll::Ready(Ok(Answer::Interim(interim)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Broken::of_h2(&error))),
                Poll::Ready(None) => self.interims = false,
                // Nothing came at all, and whoever polls will be woken when something does.
                Poll::Pending => return Poll::Pending,
            }
        }
        let response = ready!(Pin::new(&mut self.response).poll(cx));
        let (parts, body) = response.map_err(|e| Broken::of_h2(&e))?.into_parts();
        let end = body.is_end_stream();
        let head = headers::response_from_h2(parts, &self.method, end)
            .ok_or(Broken::Malformed("content-length"))?;
        self.empty = head.length == Length::None;
        self.receive = Some(body);
        Poll::Ready(Ok(Answer::Final(head)))
    }

    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Broken>> {
        match &mut self.receive {
            Some(receive) if !self.empty => poll_body(receive, cx),
            _ => Poll::Ready(Ok(Piece::End(None))),
        }
    }

    pub(super) fn credit(&mut self, bytes: usize) {
        if let Some(receive) = &mut self.receive {
            // Fails only when the stream is over, and then nobody needs the credit.
            let _ = receive.flow_control().release_capacity(bytes);
        }
    }
}

/// Ready when the peer's windows let at least a byte through.
pub(super) fn poll_room(
    send: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Broken>> {
    send.reserve_capacity(ROOM);
    while send.capacity() == 0 {
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(Broken::of_h2(&error))),
            None => return Poll::Ready(Err(Broken::Closed)),
        }
    }
    Poll::Ready(Ok(()))
}

/// What is reserved before a piece is there. A whole piece is queued once any of it is granted,
/// so that idle streams hold next to nothing of a shared window.
const ROOM: usize = 1;

pub(super) fn poll_body(
    receive: &mut RecvStream,
    cx: &mut Context<'_>,
) -> Poll<Result<Piece, Broken>> {
    match ready!(receive.poll_data(cx)) {
        Some(Ok(bytes)) => {
            let last = receive.is_end_stream();
            Poll::Ready(Ok(Piece::Data { bytes, last }))
        }
        Some(Err(error)) => Poll::Ready(Err(Broken::of_h2(&error))),
        None => match ready!(receive.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(Ok(Piece::End(trailers.map(|mut trailers| {
                headers::strip_from_trailers(&mut trailers);
                trailers
            })))),
            Err(error) => Poll::Ready(Err(Broken::of_h2(&error))),
        },
    }
}

pub(super) fn end(send: &mut SendStream<Bytes>, trailers: Option<HeaderMap>) -> Result<(), Broken> {
    match trailers {
        Some(trailers) => send.send_trailers(trailers),
        None => send.send_data(Bytes::new(), true),
    }
    .map_err(|e| Broken::of_h2(&e))
}
