//! Serves HTTP/2 to a client: many streams on one connection, each an exchange.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    server::{Connection, SendResponse},
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::time::{Instant, timeout};

use super::{
    ClientIo,
    deadline::Timer,
    exchange, h2_client,
    headers::{self, Refusal},
    message::{Broken, Client, Interim, Length, Piece, ResponseHead},
    record,
    relay::{Downstream, Gone},
    reply::Reply,
};
use crate::upstream::{
    coalesce::{Coalescing, Flusher, coalescing},
    h2_pool::{CONNECTION_WINDOW, DATA_FRAME_BUDGET, SEND_BUFFER, STREAM_WINDOW},
};

/// Largest frame taken from a client, in bytes: the least there is (RFC 9113 §4.2), as most
/// servers advertise. Uploads cost more CPU than with 64 KiB (BENCHMARKS.md, `h2-1g-up`).
const LISTENER_FRAME: u32 = 16 * 1024;

/// One stream.
struct Stream {
    responder: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
    receive: RecvStream,
    head_only: bool,
    ended: bool,
}

pub(super) async fn serve<I: ClientIo>(io: I, client: Client) {
    let client = Arc::new(client);
    let options = &client.listener.options;
    let (io, flusher) = coalescing(io);
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(LISTENER_FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(options.max_concurrent_streams)
        .max_header_list_size(options.max_head_bytes)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .handshake(io);
    let mut handshake = pin!(handshake);
    let handshake = poll_fn(|cx| flusher.drive(cx, |cx| handshake.as_mut().poll(cx)));
    let Ok(Ok(connection)) = timeout(options.head_timeout, handshake).await else { return };
    accept(connection, &flusher, &client).await;
    // A peer that reads no more must not hold the socket.
    let _ = timeout(options.head_timeout, flusher.finish()).await;
}

/// Takes streams until the connection ends, is idle for too long, or drains.
async fn accept<I: ClientIo>(
    mut connection: Connection<Coalescing<I>, Bytes>,
    flusher: &Flusher<I>,
    client: &Arc<Client>,
) {
    let idle = client.listener.options.idle_timeout;
    let mut drained = pin!(client.drain.drained());
    let mut ending = false;
    let mut timer = Timer::default();
    let mut active = Instant::now();
    let mut step = |cx: &mut Context<'_>| {
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, responder)))) => {
                    active = Instant::now();
                    begin(client, request, responder, active);
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, peer = %client.peer.addr, "HTTP/2 connection broke");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        if !ending && drained.as_mut().poll(cx).is_ready() {
            ending = true;
            connection.graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        let Some(deadline) = active.checked_add(idle) else { return Poll::Pending };
        ready!(timer.poll(cx, deadline));
        active = Instant::now();
        if !connection.has_streams() {
            if ending {
                return Poll::Ready(());
            }
            ending = true;
            connection.graceful_shutdown();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    };
    poll_fn(|cx| flusher.drive(cx, &mut step)).await;
}

/// Checks a request and starts its exchange in a task of its own.
fn begin(
    client: &Arc<Client>,
    request: Request<RecvStream>,
    responder: SendResponse<Bytes>,
    start: Instant,
) {
    let (parts, receive) = request.into_parts();
    let mut stream = Stream {
        responder,
        send: None,
        head_only: parts.method == Method::HEAD,
        receive,
        ended: false,
    };
    if parts.headers.len() > client.listener.options.max_headers as usize {
        return stream.refuse(client, Reply::HEAD_TOO_LARGE);
    }
    match headers::from_h2(parts, stream.receive.is_end_stream()) {
        Ok(head) => {
            // Ends with its stream, which ends with its connection at the latest.
            // Boxed by hand: the runtime moves an unboxed one about four times.
            tokio::spawn(Box::pin(exchange::run_owned(client.clone(), stream, head, start)));
        }
        Err(Refusal::Reply(reply)) => stream.refuse(client, reply),
        Err(Refusal::Reset) => {
            record::reset(client);
            stream.responder.send_reset(Reason::PROTOCOL_ERROR);
        }
    }
}

impl Stream {
    fn refuse(&mut self, client: &Client, reply: Reply) {
        record::refused(client, &reply);
        let (head, body) = reply.into_message(false);
        if self.respond(head).is_ok() {
            let _ = self.data(body, true);
        }
    }
}

impl Downstream for Stream {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Broken>> {
        h2_client::poll_body(&mut self.receive, cx)
    }

    fn credit(&mut self, bytes: usize) {
        // Fails only when the stream is over, and then nobody needs the credit.
        let _ = self.receive.flow_control().release_capacity(bytes);
    }

    fn inform(&mut self, interim: Interim) {
        if self.send.is_some() {
            return;
        }
        let mut response = Response::new(());
        *response.status_mut() = interim.status;
        *response.headers_mut() = interim.headers;
        // A client that is gone by now is noticed by what follows.
        let _ = self.responder.send_informational(response);
    }

    fn respond(&mut self, head: ResponseHead) -> Result<(), Broken> {
        let bodiless = self.head_only
            || head.length == Length::None
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        let sent = self.responder.send_response(response, bodiless);
        self.send = Some(sent.map_err(|e| Broken::of_h2(&e))?);
        self.ended = bodiless;
        Ok(())
    }

    fn has_responded(&self) -> bool {
        self.send.is_some()
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match &mut self.send {
            Some(send) if !self.ended => h2_client::poll_room(send, cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn data(&mut self, bytes: Bytes, last: bool) -> Result<(), Broken> {
        let Some(send) = self.send.as_mut().filter(|_| !self.ended) else { return Ok(()) };
        self.ended = last;
        send.send_data(bytes, last).map_err(|e| Broken::of_h2(&e))
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        let Some(send) = self.send.as_mut().filter(|_| !self.ended) else { return Ok(()) };
        self.ended = true;
        h2_client::end(send, trailers)
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        let reset = match &mut self.send {
            Some(send) => ready!(send.poll_reset(cx)),
            None => ready!(self.responder.poll_reset(cx)),
        };
        Poll::Ready(Gone::Broken(match reset {
            Ok(reason) => Broken::Reset(reason),
            Err(_) => Broken::Closed,
        }))
    }

    fn abort(&mut self, cause: &Broken) {
        let reason = match cause {
            Broken::Reset(reason) if *reason != Reason::NO_ERROR => *reason,
            _ => Reason::INTERNAL_ERROR,
        };
        match &mut self.send {
            Some(send) => send.send_reset(reason),
            None => self.responder.send_reset(reason),
        }
    }

    fn tunnel(&mut self) {}
}
