//! An exchange with an endpoint over HTTP/2.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Method};

use super::{
    h1_client::{MAX_INTERIMS, is_progress},
    headers,
    message::{Broken, Interim, Length, Piece, RequestHead},
    relay::Answer,
};
use crate::h2::{ErrorCode, RequestRef, Stream};

/// A stream with one request on it.
pub(super) struct Http2 {
    stream: Stream,
    method: Method,
    informed: u8,
    /// 104s besides: an upload of hours has many.
    progress: u8,
    empty: bool,
}

/// A request as a stream is opened with it.
pub(super) fn request(head: &RequestHead, https: bool) -> RequestRef<'_> {
    RequestRef {
        method: &head.method,
        https,
        authority: head.authority.as_str(),
        path: head.target.as_str(),
        headers: &head.headers,
        te_trailers: head.te_trailers,
        expects_continue: head.expects_continue && !head.length.is_empty(),
    }
}

impl Http2 {
    pub(super) fn new(stream: Stream, method: Method) -> Self {
        Self { stream, method, informed: 0, progress: 0, empty: false }
    }

    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.stream.poll_room(cx)
    }

    pub(super) fn poll_accepted(&mut self, cx: &mut Context<'_>, grpc: bool) -> Poll<()> {
        self.stream.poll_accepted(cx, grpc)
    }

    pub(super) fn data(&mut self, bytes: Bytes, last: bool) -> Result<(), Broken> {
        self.stream.send(bytes, last)
    }

    pub(super) fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        self.stream.end(trailers)
    }

    pub(super) fn reset(&mut self, code: ErrorCode) {
        self.stream.reset(code);
    }

    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Broken>> {
        let response = loop {
            let response = ready!(self.stream.poll_head(cx))?;
            if !(is_progress(response.status) && self.progress >= MAX_INTERIMS) {
                break response;
            }
        };
        if response.status.is_informational() {
            let count =
                if is_progress(response.status) { &mut self.progress } else { &mut self.informed };
            *count += 1;
            if *count > MAX_INTERIMS {
                return Poll::Ready(Err(Broken::Malformed("too many interim responses")));
            }
            let interim = Interim { status: response.status, headers: response.headers };
            return Poll::Ready(Ok(Answer::Interim(interim)));
        }
        let end = self.stream.is_at_end();
        let head = headers::response_from_h2(response, &self.method, end);
        self.empty = head.length == Length::None;
        Poll::Ready(Ok(Answer::Final(head)))
    }

    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Broken>> {
        if self.empty {
            return Poll::Ready(Ok(Piece::End(None)));
        }
        poll_part(&mut self.stream, cx)
    }

    pub(super) fn credit(&mut self, bytes: usize) {
        self.stream.credit(bytes);
    }

    pub(super) fn hold_back(&mut self, held: bool) {
        self.stream.hold_back(held);
    }
}

pub(super) fn poll_part(stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Result<Piece, Broken>> {
    let mut piece = ready!(stream.poll_part(cx))?;
    if let Piece::End(Some(trailers)) = &mut piece {
        headers::strip_from_trailers(trailers);
    }
    Poll::Ready(Ok(piece))
}
