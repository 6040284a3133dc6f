//! Serves HTTP/2 to a client: many streams on one connection, each an exchange.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use tokio::time::{Instant, timeout};

use super::{
    ClientIo, exchange, h2_client,
    headers::{self, Refusal},
    message::{Broken, Client, Interim, Length, Piece, ResponseHead},
    record,
    relay::{Downstream, Gone},
    reply::Reply,
};
use crate::{
    drain,
    h2::{Config, Connection, ErrorCode, Incoming, MEMORY, Stream},
    timer::Timer,
    upstream::h2_pool::STREAM_WINDOW,
};

/// Largest frame taken from a client, in bytes: the least there is (RFC 9113 §4.2), as most
/// servers advertise.
const LISTENER_FRAME: u32 = 16 * 1024;
/// What a client may send of a body before there is somewhere to send it, in bytes.
const FIRST_WINDOW: u32 = 64 << 10;
/// What a client may send ahead on all its streams, in bytes.
const CONNECTION_WINDOW: u32 = 2 << 20;

/// One stream.
struct Exchanging {
    stream: Stream,
    head_only: bool,
    responded: bool,
    ended: bool,
}

pub(super) async fn serve<I: ClientIo>(io: I, client: Client) {
    let client = Arc::new(client);
    let options = &client.listener.options;
    let config = Config {
        first_window: FIRST_WINDOW,
        stream_window: STREAM_WINDOW,
        connection_window: CONNECTION_WINDOW,
        frame: LISTENER_FRAME,
        streams: options.max_concurrent_streams,
        header_list: options.max_head_bytes,
        fields: options.max_headers as usize,
        memory: &MEMORY,
        gathers: false,
        fixed: false,
    };
    let mut connection = Connection::server(io, config);
    let times = Times { first: options.head_timeout, idle: options.idle_timeout };
    drive(&mut connection, times, &client.drain, |incoming, at| begin(&client, incoming, at)).await;
    // A peer that reads no more must not hold the socket.
    let _ = timeout(options.head_timeout, connection.finish()).await;
}

/// How long a connection may be without streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// Before its client has shown that it speaks HTTP/2.
    pub(crate) first: Duration,
    pub(crate) idle: Duration,
}

/// Takes streams until the connection ends, is idle for too long, or drains.
pub(crate) async fn drive<I: ClientIo>(
    connection: &mut Connection<I>,
    times: Times,
    drain: &drain::Watch,
    begin: impl Fn(Incoming, Instant),
) {
    let mut drained = pin!(drain.drained());
    let mut timer = Timer::default();
    let mut active = Instant::now();
    let mut established = false;
    let mut leaving = false;
    poll_fn(|cx| {
        let over = connection.poll(cx);
        while let Some(incoming) = connection.next_request() {
            active = Instant::now();
            begin(incoming, active);
        }
        if over.is_ready() {
            return Poll::Ready(());
        }
        if !leaving && drained.as_mut().poll(cx).is_ready() {
            leaving = true;
            connection.leave();
        }
        established = established || connection.is_established();
        let limit = if established { times.idle } else { times.first };
        let Some(deadline) = active.checked_add(limit) else { return Poll::Pending };
        if timer.poll(cx, deadline).is_pending() {
            return Poll::Pending;
        }
        if !established {
            return Poll::Ready(());
        }
        active = Instant::now();
        if !connection.has_streams() {
            connection.leave();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Starts the exchange of what a client asks for in a task of its own.
fn begin(client: &Arc<Client>, incoming: Incoming, start: Instant) {
    let (stream, request) = match incoming {
        Incoming::Request(stream, request) => (stream, request),
        Incoming::TooLarge(stream) => {
            return Exchanging::new(stream, false).refuse(client, Reply::HEAD_TOO_LARGE);
        }
        Incoming::Malformed => return record::reset(client),
    };
    let mut stream = Exchanging::new(stream, request.method == Method::HEAD);
    match headers::from_h2(request, stream.stream.is_at_end()) {
        Ok(head) => {
            // Ends with its stream, which ends with its connection at the latest.
            // Boxed by hand: the runtime moves an unboxed one about four times.
            tokio::spawn(Box::pin(exchange::run_owned(client.clone(), stream, head, start)));
        }
        Err(Refusal::Reply(reply)) => stream.refuse(client, reply),
        Err(Refusal::Reset) => {
            record::reset(client);
            stream.stream.reset(ErrorCode::PROTOCOL_ERROR);
        }
    }
}

impl Exchanging {
    fn new(stream: Stream, head_only: bool) -> Self {
        Self { stream, head_only, responded: false, ended: false }
    }

    fn refuse(&mut self, client: &Client, reply: Reply) {
        record::refused(client, &reply);
        let (head, body) = reply.into_message(false);
        if self.respond(head).is_ok() {
            let _ = self.data(body, true);
        }
    }
}

impl Downstream for Exchanging {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Broken>> {
        h2_client::poll_part(&mut self.stream, cx)
    }

    fn credit(&mut self, bytes: usize) {
        self.stream.credit(bytes);
    }

    fn retire(&mut self) {
        self.stream.leave();
    }

    fn inform(&mut self, interim: Interim) {
        if !self.responded {
            self.stream.answer(interim.status, &interim.headers, false);
        }
    }

    fn respond(&mut self, head: ResponseHead) -> Result<(), Broken> {
        self.responded = true;
        self.ended = self.head_only
            || head.length == Length::None
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.stream.answer(head.status, &head.headers, self.ended);
        Ok(())
    }

    fn has_responded(&self) -> bool {
        self.responded
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        self.stream.poll_room(cx)
    }

    fn data(&mut self, bytes: Bytes, last: bool) -> Result<(), Broken> {
        if self.ended {
            return Ok(());
        }
        self.ended = last;
        self.stream.send(bytes, last)
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        self.stream.end(trailers)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.stream.poll_sent(cx)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        Poll::Ready(Gone::Broken(ready!(self.stream.poll_failed(cx))))
    }

    fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.stream.poll_until(cx, deadline)
    }

    fn abort(&mut self, cause: &Broken) {
        self.stream.reset(match cause {
            Broken::Reset(code) if *code != ErrorCode::NO_ERROR => *code,
            _ => ErrorCode::INTERNAL_ERROR,
        });
    }

    fn tunnel(&mut self) {}
}
