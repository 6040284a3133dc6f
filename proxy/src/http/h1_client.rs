//! An exchange with an endpoint over HTTP/1.1.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::Authority};

use super::{
    h1::{self, BadHead, Body, Conn, Framing},
    headers,
    message::{Broken, Interim, Length, RequestHead},
    relay::Answer,
};
use crate::upstream::{EndpointState, admission::ConnectionGuard, io::UpstreamIo, pool};

/// A connection with one request on it.
#[derive(Debug)]
pub(super) struct Http1 {
    pub(super) conn: Conn<UpstreamIo>,
    guard: ConnectionGuard,
    method: Method,
    upgrading: bool,
    tunnel: bool,
    reused: bool,
    heard: bool,
    sent_all: bool,
    reusable: bool,
    interims: u8,
    /// 104s besides: an upload of hours has many.
    progress: u8,
}

/// Limits on response heads.
const LIMITS: h1::Limits = h1::Limits { bytes: 256 * 1024, fields: 256 };
/// Interim responses accepted before the final one.
pub(super) const MAX_INTERIMS: u8 = 32;

impl Http1 {
    /// Puts a request's head on a connection; its body follows.
    pub(super) fn new(
        connection: pool::Http1,
        reused: bool,
        head: &RequestHead,
        host: &Authority,
    ) -> Self {
        let mut conn = Conn::new(connection.io);
        let writer = &mut conn.writer;
        writer.request_line(&head.method, head.target.as_str());
        writer.field("host", host.as_str().as_bytes());
        writer.fields(&head.headers);
        if head.te_trailers {
            writer.field("te", b"trailers");
            writer.field("connection", b"te");
        }
        if let Some(protocol) = &head.upgrade {
            writer.field("connection", b"upgrade");
            writer.field("upgrade", protocol.as_bytes());
        }
        if head.expects_continue && !head.length.is_empty() {
            writer.field("expect", b"100-continue");
        }
        writer.end_head(match head.length {
            Length::None => Body::Empty,
            // Without the field, its trailers matter more than its length.
            Length::Known(_) if !head.headers.contains_key(header::CONTENT_LENGTH) => Body::Chunked,
            Length::Known(bytes) => Body::Length(bytes),
            Length::Unknown => Body::Chunked,
        });
        Self {
            conn,
            guard: connection.guard,
            method: head.method.clone(),
            upgrading: head.upgrade.is_some(),
            tunnel: false,
            reused,
            heard: false,
            sent_all: head.length.is_empty(),
            reusable: false,
            interims: 0,
            progress: 0,
        }
    }

    pub(super) fn data(&mut self, bytes: Bytes, last: bool) -> Result<(), Broken> {
        if !self.conn.writer.data(bytes) {
            return Err(Broken::Malformed("the body is longer than declared"));
        }
        if last { self.end(None) } else { Ok(()) }
    }

    pub(super) fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), Broken> {
        if !self.conn.writer.end(trailers) {
            return Err(Broken::Malformed("the body is shorter than declared"));
        }
        self.sent_all = true;
        Ok(())
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let flushed = if self.tunnel && self.sent_all {
            self.conn.poll_end(cx)
        } else {
            self.conn.poll_flush(cx)
        };
        flushed.map_err(|_| Broken::Closed)
    }

    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Broken>> {
        loop {
            let frame = h1::response(&mut self.conn.reader.buffer, LIMITS, &self.method);
            if let Some(frame) = frame.map_err(malformed)? {
                if is_progress(frame.status) && self.progress >= MAX_INTERIMS {
                    continue;
                }
                return Poll::Ready(self.answer(frame));
            }
            let read = ready!(self.conn.poll_fill(cx)).map_err(|_| Broken::Closed)?;
            if read == 0 {
                return Poll::Ready(Err(Broken::Closed));
            }
            self.heard = true;
        }
    }

    fn answer(&mut self, frame: h1::ResponseFrame) -> Result<Answer, Broken> {
        if frame.status == StatusCode::SWITCHING_PROTOCOLS {
            if !self.upgrading {
                return Err(Broken::Malformed("101 without an upgrade"));
            }
            let upgrade = frame.fields.upgrade.clone();
            let mut head = headers::response_from_h1(frame);
            head.headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
            if let Some(protocol) = upgrade {
                head.headers.insert(http::header::UPGRADE, protocol);
            }
            return Ok(Answer::Switched(head));
        }
        if frame.status.is_informational() {
            let count =
                if is_progress(frame.status) { &mut self.progress } else { &mut self.interims };
            *count += 1;
            if *count > MAX_INTERIMS {
                return Err(Broken::Malformed("too many interim responses"));
            }
            return Ok(Answer::Interim(Interim {
                status: frame.status,
                headers: frame.fields.map,
            }));
        }
        let options = &frame.fields.options;
        let persists = if frame.http10 { options.keep_alive } else { !options.close };
        self.reusable = persists && frame.framing != Framing::UntilClose;
        self.upgrading = false;
        self.conn.reader.start(frame.framing);
        Ok(Answer::Final(headers::response_from_h1(frame)))
    }

    /// From here on, bytes both ways.
    pub(super) fn tunnel(&mut self) {
        self.reusable = false;
        self.sent_all = false;
        self.tunnel = true;
        self.conn.reader.start(Framing::UntilClose);
        self.conn.writer.go_raw();
    }

    /// Ends a tunnel that broke so that the endpoint does not take it for complete.
    pub(super) fn reset_tunnel(&self) {
        if self.tunnel {
            self.conn.io.reset_on_close();
        }
    }

    pub(super) fn was_stale(&self) -> bool {
        self.reused && !self.heard
    }

    /// Gives the connection back to its pool if both messages on it are complete; else closes it.
    pub(super) fn finish(self, endpoint: &EndpointState, worker: usize, idle_timeout: Duration) {
        let conn = &self.conn;
        if self.reusable
            && self.sent_all
            && conn.writer.is_flushed()
            && conn.reader.is_done()
            && !conn.reader.has_bytes()
            && !conn.reader.is_closed()
        {
            let connection = pool::Http1 { io: self.conn.io, guard: self.guard };
            endpoint.put_back(worker, connection, idle_timeout);
        }
    }
}

/// 104, of which a long upload brings many (draft-ietf-httpbis-resumable-upload): beyond a few,
/// they are passed over.
pub(super) fn is_progress(status: StatusCode) -> bool {
    status.as_u16() == 104
}

fn malformed(bad: BadHead) -> Broken {
    Broken::Malformed(match bad {
        BadHead::Malformed(what) => what,
        BadHead::TooLarge => "the response head is too large",
        BadHead::Coding => "unknown transfer coding",
        BadHead::Expectation | BadHead::Version => "not HTTP/1.1",
    })
}
