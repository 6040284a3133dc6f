//! Serves HTTP/1.1 to a client: one request after the other on one connection.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use tokio::time::{Instant, timeout};

use super::{
    ClientIo, exchange,
    h1::{self, BadHead, Body, Conn, Framing, Limits, RequestFrame},
    headers,
    message::{Broken, Client, Interim, Length, Piece, ResponseHead},
    record,
    relay::{Downstream, Gone},
    reply::Reply,
};
use crate::timer::Timer;

/// What comes next on a connection.
#[expect(clippy::large_enum_variant, reason = "nearly always the large one, and short-lived")]
enum Next {
    Request(RequestFrame),
    Bad(BadHead),
    /// Nothing any more.
    End,
    /// A head began and did not end in time.
    TooSlow,
}

/// One request's use of the connection.
struct Exchanging<'a, I: ClientIo> {
    conn: &'a mut Conn<I>,
    timer: &'a mut Timer,
    http10: bool,
    head_only: bool,
    expects_continue: bool,
    /// The connection may serve another request.
    keep: bool,
    responded: bool,
    aborted: bool,
    tunnel: bool,
    ended: bool,
}

/// When a request was refused or cut short, so much more of it is read, so that
/// the answer is not lost to a reset (RFC 9112 §9.6).
const LINGER_BYTES: usize = 1 << 20;
/// And for so long.
const LINGER: Duration = Duration::from_secs(2);

pub(super) async fn serve<I: ClientIo>(io: I, client: Client) {
    let mut conn = Conn::new(io);
    let mut timer = Timer::default();
    let drain = client.drain.clone();
    let mut drained = pin!(drain.idle_ends());
    let limits = Limits {
        bytes: client.listener.options.max_head_bytes as usize,
        fields: client.listener.options.max_headers as usize,
    };
    let mut first = true;
    loop {
        let next = poll_next(&mut conn, &client, &mut timer, drained.as_mut(), limits, first).await;
        first = false;
        let persists = match next {
            Next::Request(frame) => one(&mut conn, frame, &client, &mut timer).await,
            Next::Bad(bad) => refuse(&mut conn, &client, of_bad(bad)).await,
            Next::TooSlow => refuse(&mut conn, &client, Reply::HEAD_TIMEOUT).await,
            Next::End => break,
        };
        if !persists {
            break;
        }
        conn.reader.rest();
        conn.writer.rest();
    }
}

/// Reads the next head, within the time for it, or notices that none comes.
async fn poll_next<I: ClientIo>(
    conn: &mut Conn<I>,
    client: &Client,
    timer: &mut Timer,
    mut drained: std::pin::Pin<&mut impl Future<Output = ()>>,
    limits: Limits,
    first: bool,
) -> Next {
    let options = &client.listener.options;
    let mut deadline = None;
    let mut begun = false;
    poll_fn(|cx| {
        loop {
            match h1::request(&mut conn.reader.buffer, limits) {
                Ok(Some(frame)) => return Poll::Ready(Next::Request(frame)),
                Ok(None) => {}
                Err(bad) => return Poll::Ready(Next::Bad(bad)),
            }
            if conn.reader.has_bytes() && !std::mem::replace(&mut begun, true) {
                deadline = Instant::now().checked_add(options.head_timeout);
            }
            if conn.reader.is_closed() {
                return Poll::Ready(Next::End);
            }
            match conn.poll_fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::End),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        if !begun && drained.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Next::End);
        }
        if deadline.is_none() {
            let limit = if first { options.head_timeout } else { options.idle_timeout };
            deadline = Instant::now().checked_add(limit);
        }
        let Some(deadline) = deadline else { return Poll::Pending };
        ready!(timer.poll(cx, deadline));
        Poll::Ready(if begun { Next::TooSlow } else { Next::End })
    })
    .await
}

/// Serves one request. False when the connection is done.
async fn one<I: ClientIo>(
    conn: &mut Conn<I>,
    frame: RequestFrame,
    client: &Client,
    timer: &mut Timer,
) -> bool {
    let start = Instant::now();
    if client.listener.directory.is_some() && frame.uri.scheme_str() == Some("https") {
        // What was asked to be secret is not sent on in clear.
        let reply = Reply::bad_request("what is under https is asked for by CONNECT");
        return refuse(conn, client, reply).await;
    }
    let http10 = frame.http10;
    if http10 && !client.listener.options.http10 {
        return refuse(conn, client, Reply::HTTP10).await;
    }
    let options = &frame.fields.options;
    let wants = if http10 { options.keep_alive } else { true } && !options.close;
    conn.reader.start(frame.framing);
    let no_body = frame.framing == Framing::Empty;
    let head = match headers::from_h1(frame, &client.peer) {
        Ok(head) => head,
        Err(reply) => return refuse(conn, client, reply).await,
    };
    let mut down = Exchanging {
        conn,
        timer,
        http10,
        head_only: head.method == Method::HEAD,
        expects_continue: head.expects_continue && !no_body,
        keep: wants && !client.drain.draining(),
        responded: false,
        aborted: false,
        tunnel: false,
        ended: false,
    };
    exchange::run(client, &mut down, head, start).await;
    let (keep, whole) = (down.keep, down.responded && down.ended && !down.aborted);
    drop(down);
    if !whole {
        return false;
    }
    if keep && drain_body(conn).await {
        return true;
    }
    linger(conn).await;
    false
}

/// Answers what is no request that could be served, and closes.
async fn refuse<I: ClientIo>(conn: &mut Conn<I>, client: &Client, reply: Reply) -> bool {
    record::refused(client, &reply);
    let (head, body) = reply.into_message(false);
    conn.writer.status_line(head.status);
    conn.writer.fields(&head.headers);
    conn.writer.field("connection", b"close");
    conn.writer.end_head(Body::Length(body.len() as u64));
    let _ = conn.writer.data(body);
    linger(conn).await;
    false
}

/// Reads on to the end of a body that its answer overtook, if that is near. The answer said
/// nothing of closing, so that another request may be on its way.
async fn drain_body<I: ClientIo>(conn: &mut Conn<I>) -> bool {
    let mut read = 0;
    let drained = poll_fn(|cx| {
        while !conn.reader.is_done() && read < LINGER_BYTES {
            match ready!(conn.poll_body(cx)) {
                Ok(Piece::Data { bytes, .. }) => read += bytes.len(),
                Ok(Piece::End(_)) => break,
                Err(_) => return Poll::Ready(false),
            }
        }
        Poll::Ready(conn.reader.is_done())
    });
    timeout(LINGER, drained).await.unwrap_or(false)
}

/// Ends our side, and reads on for a while so that the client can read what was sent.
async fn linger<I: ClientIo>(conn: &mut Conn<I>) {
    let _ = timeout(LINGER, async {
        poll_fn(|cx| conn.poll_end(cx)).await.ok()?;
        let mut read = 0;
        conn.reader.forget();
        while read < LINGER_BYTES && !conn.reader.is_closed() {
            read += poll_fn(|cx| conn.poll_fill(cx)).await.ok()?;
            conn.reader.forget();
        }
        Some(())
    })
    .await;
}

fn of_bad(bad: BadHead) -> Reply {
    match bad {
        BadHead::Malformed(what) => Reply::bad_request(what),
        BadHead::TooLarge => Reply::HEAD_TOO_LARGE,
        BadHead::Coding => Reply::CODING,
        BadHead::Expectation => Reply::EXPECTATION,
        BadHead::Version => Reply::VERSION,
    }
}

impl<I: ClientIo> Drop for Exchanging<'_, I> {
    fn drop(&mut self) {
        // Where only the close ends a body, one that is cut short must not look whole.
        if self.responded && !self.ended && (self.http10 || self.tunnel) {
            self.conn.io.reset_on_close();
        }
    }
}

impl<I: ClientIo> Downstream for Exchanging<'_, I> {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Broken>> {
        self.conn.poll_body(cx)
    }

    fn credit(&mut self, _bytes: usize) {}

    fn retire(&mut self) {
        self.keep = false;
    }

    fn forgo_body(&mut self) {
        self.keep &= self.conn.reader.is_done();
    }

    fn inform(&mut self, interim: Interim) {
        if self.http10 || self.responded {
            return;
        }
        if interim.status == StatusCode::CONTINUE {
            self.expects_continue = false;
        }
        let writer = &mut self.conn.writer;
        writer.status_line(interim.status);
        writer.fields(&interim.headers);
        writer.end_head(Body::Empty);
    }

    fn respond(&mut self, head: ResponseHead) -> Result<(), Broken> {
        self.responded = true;
        let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
        // A client that was never told to continue may send its body or not: no telling
        // where a next request would begin.
        if self.expects_continue && !self.conn.reader.is_done() && !self.conn.reader.has_bytes() {
            self.keep = false;
        }
        let bodiless = self.head_only
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let has_length = head.headers.contains_key(header::CONTENT_LENGTH);
        let writer = &mut self.conn.writer;
        writer.status_line(head.status);
        writer.fields(&head.headers);
        let body = match head.length {
            _ if bodiless || switching => Body::Empty,
            Length::None => {
                if !has_length {
                    writer.field("content-length", b"0");
                }
                Body::Empty
            }
            Length::Known(bytes) => Body::Length(bytes),
            Length::Unknown if self.http10 => {
                self.keep = false;
                Body::Raw
            }
            Length::Unknown => Body::Chunked,
        };
        if switching {
            self.keep = false;
        } else if !self.keep {
            writer.field("connection", b"close");
        } else if self.http10 {
            writer.field("connection", b"keep-alive");
        }
        writer.end_head(body);
        Ok(())
    }

    fn takes_trailers(&self) -> bool {
        !self.http10
    }

    fn has_responded(&self) -> bool {
        self.responded
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.conn.poll_room(cx).map_err(|_| Broken::Closed)
    }

    fn data(&mut self, bytes: Bytes, last: bool) -> Result<(), Broken> {
        if !self.conn.writer.data(bytes) {
            return Err(Broken::Malformed("the body is longer than declared"));
        }
        if last { self.end(None) } else { Ok(()) }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        if !self.conn.writer.end(trailers.as_ref()) {
            return Err(Broken::Malformed("the body is shorter than declared"));
        }
        self.ended = true;
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let flushed = if self.tunnel && self.ended {
            self.conn.poll_end(cx)
        } else {
            self.conn.poll_flush(cx)
        };
        flushed.map_err(|_| Broken::Closed)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        if !self.conn.reader.is_done() {
            // Body bytes that nobody takes any more stay where they are.
            return Poll::Pending;
        }
        match ready!(self.conn.poll_closed(cx)) {
            Ok(()) => Poll::Ready(Gone::HalfClosed),
            Err(_) => Poll::Ready(Gone::Broken(Broken::Closed)),
        }
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.conn.poll_closed(cx).map(|_| ())
    }

    fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.timer.poll(cx, deadline)
    }

    fn abort(&mut self, _cause: &Broken) {
        self.aborted = true;
        if self.responded && (self.http10 || self.tunnel) {
            self.conn.io.reset_on_close();
        }
    }

    fn tunnel(&mut self) {
        self.tunnel = true;
        self.conn.reader.start(Framing::UntilClose);
        self.conn.writer.go_raw();
    }
}
