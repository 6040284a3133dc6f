//! Moves bytes between a connection and a stream of a tunnel.
//!
//! Small messages of many streams leave together: what is sent here waits in the tunnel's queue until all that could
//! be read at this turn is dealt with.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{io::ReadBuf, task::yield_now};

use super::{Direction, Meter};
use crate::{
    h2::{ErrorCode, Part, Stream, StreamError},
    http::ClientIo,
};

/// Read at a time.
const PIECE: usize = 16 * 1024;
/// Bytes moved before the other connections of this worker have their turn.
const BURST: usize = 256 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE].into_boxed_slice());
}

/// Relays both ways until both ends are done; returns why, when that was no clean end. `direction` is that of what
/// comes from the connection.
pub(super) async fn relay<S: ClientIo>(
    io: S,
    stream: Stream,
    direction: Direction,
    meter: &Meter,
    idle: Option<Duration>,
) -> Option<&'static str> {
    let mut relay = Relay {
        io,
        stream,
        direction,
        meter,
        sending: Sending::Bytes,
        receiving: Receiving::Bytes(Bytes::new()),
        unflushed: false,
        whole: false,
    };
    let mut idle = pin!(meter.idle(idle));
    let reason = poll_fn(|cx| match relay.poll(cx) {
        Poll::Pending => idle.as_mut().poll(cx).map(|()| Some("idle_timeout")),
        ended => ended,
    })
    .await;
    relay.whole = reason.is_none();
    reason
}

struct Relay<'a, S: ClientIo> {
    io: S,
    stream: Stream,
    /// Of what comes from `io`.
    direction: Direction,
    meter: &'a Meter,
    sending: Sending,
    receiving: Receiving,
    /// Bytes were written of which some may still wait, where `io` is TLS.
    unflushed: bool,
    /// Both ends know all of it.
    whole: bool,
}

/// From the connection to the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sending {
    Bytes,
    /// The end was read, and something before it waits.
    Rest,
    Done,
}

/// From the stream to the connection.
enum Receiving {
    /// With what came and is not written yet.
    Bytes(Bytes),
    End,
    Done,
    /// The connection takes nothing any more. What it still has to say is passed on first.
    Broken,
}

impl<S: ClientIo> Relay<'_, S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<&'static str>> {
        // In this order: whether anybody is left to tell of a stream that failed is known when all that it had is read.
        if let Poll::Ready(Err(gone)) = self.poll_receive(cx) {
            return Poll::Ready(Some(gone));
        }
        if let Poll::Ready(Err(gone)) = self.poll_send(cx) {
            return Poll::Ready(Some(gone));
        }
        match (self.sending, &self.receiving) {
            (Sending::Done, Receiving::Done) => Poll::Ready(None),
            (Sending::Done, Receiving::Broken) => Poll::Ready(Some(self.io_is_gone())),
            _ => Poll::Pending,
        }
    }

    /// Ready when this direction is over.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        let (mut burst, mut room) = (0, false);
        while self.sending == Sending::Bytes {
            if !room && let Err(error) = ready!(self.stream.poll_room(cx)) {
                return self.failed_to_send(error);
            }
            if burst >= BURST {
                return later(cx);
            }
            let stream = &self.stream;
            let io = Pin::new(&mut self.io);
            let read = BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                ready!(io.poll_read(cx, &mut buffer))?;
                let bytes = buffer.filled();
                // One that fails is told as above.
                if !bytes.is_empty() {
                    let _ = stream.send_copy(bytes);
                }
                Poll::Ready(io::Result::Ok(bytes.len()))
            });
            match ready!(read) {
                // That may be what is left of a reset which a write has met.
                Ok(0) if matches!(self.receiving, Receiving::Broken) => {
                    return Poll::Ready(Err(self.io_is_gone()));
                }
                Ok(0) => {
                    let _ = self.stream.end(None);
                    self.sending = Sending::Rest;
                }
                Ok(n) => {
                    burst += n;
                    self.meter.moved(self.direction, n);
                    // After less there is mostly nothing, and one more may wait if there is.
                    room = !room && n < PIECE;
                }
                Err(error) => {
                    tracing::debug!(%error, "a tunnelled connection broke");
                    return Poll::Ready(Err(self.io_is_gone()));
                }
            }
        }
        if self.sending == Sending::Rest {
            if let Err(error) = ready!(self.stream.poll_sent(cx)) {
                return self.failed_to_send(error);
            }
            self.sending = Sending::Done;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        let mut burst = 0;
        loop {
            let io = Pin::new(&mut self.io);
            match &mut self.receiving {
                Receiving::Bytes(rest) if rest.is_empty() => {
                    if burst >= BURST {
                        return later(cx);
                    }
                    match self.stream.poll_part(cx) {
                        // TLS may have something left.
                        Poll::Pending => {
                            if self.unflushed {
                                let flushed = ready!(io.poll_flush(cx));
                                self.unflushed = false;
                                if flushed.is_err() {
                                    self.receiving = Receiving::Broken;
                                }
                            }
                            return Poll::Pending;
                        }
                        Poll::Ready(Ok(Part::Data { bytes, .. })) => *rest = bytes,
                        Poll::Ready(Ok(Part::End(_))) => self.receiving = Receiving::End,
                        Poll::Ready(Err(error)) => {
                            return Poll::Ready(Err(self.stream_is_gone(error)));
                        }
                    }
                }
                Receiving::Bytes(rest) => match io.poll_write(cx, rest) {
                    // Who does not read must not keep a connection whose other end is gone, but for its last words.
                    Poll::Pending if self.stream.is_at_end() => return Poll::Pending,
                    Poll::Pending => {
                        let error = ready!(self.stream.poll_failed(cx));
                        return Poll::Ready(Err(self.stream_is_gone(error)));
                    }
                    Poll::Ready(Ok(n)) if n > 0 => {
                        rest.advance(n);
                        burst += n;
                        self.unflushed = true;
                        self.stream.credit(n);
                        self.meter.moved(self.direction.other(), n);
                    }
                    Poll::Ready(_) => self.receiving = Receiving::Broken,
                },
                Receiving::End => {
                    self.receiving = match ready!(io.poll_shutdown(cx)) {
                        Ok(()) => Receiving::Done,
                        Err(_) => Receiving::Broken,
                    };
                }
                Receiving::Done | Receiving::Broken => return Poll::Ready(Ok(())),
            }
        }
    }

    /// A stream that takes nothing any more is told by who reads it, once all that it had is read; by this where nobody
    /// does.
    fn failed_to_send(&mut self, error: StreamError) -> Poll<Result<(), &'static str>> {
        match self.receiving {
            Receiving::Done | Receiving::Broken => Poll::Ready(Err(self.stream_is_gone(error))),
            Receiving::Bytes(_) | Receiving::End => Poll::Pending,
        }
    }

    /// Tells the other side (RFC 9113 §8.5).
    fn io_is_gone(&mut self) -> &'static str {
        self.stream.reset(ErrorCode::CONNECT_ERROR);
        self.direction.gone()
    }

    fn stream_is_gone(&mut self, error: StreamError) -> &'static str {
        tracing::debug!(%error, "a stream of a tunnel broke");
        self.direction.other().gone()
    }
}

/// Has the task polled again once all sockets have been looked at.
fn later<T>(cx: &mut Context<'_>) -> Poll<T> {
    let _ = pin!(yield_now()).poll(cx);
    Poll::Pending
}

impl<S: ClientIo> Drop for Relay<'_, S> {
    fn drop(&mut self) {
        // A relay that is cut must not look like one that is complete. The stream sees to itself.
        if !self.whole {
            self.io.reset_on_close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        task::Waker,
    };

    use http::{HeaderMap, Method, StatusCode};
    use tokio::{
        io::{AsyncRead, AsyncWrite, duplex},
        time::timeout,
    };

    use super::*;
    use crate::{
        h2::{Config, Connection, Incoming, RequestRef},
        lock::lock,
        tcp::{Caller, TcpChain, TcpMetrics},
        transfers::Transfers,
    };

    /// A connection under TLS of which the socket is full: what is written waits for a flush.
    #[derive(Clone, Default)]
    struct Full(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        waits: Vec<u8>,
        sent: Vec<u8>,
        room: bool,
        flushing: Option<Waker>,
    }

    impl ClientIo for Full {}

    impl AsyncRead for Full {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Full {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            lock(&self.0).waits.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let state = &mut *lock(&self.0);
            if !state.room {
                state.flushing = Some(cx.waker().clone());
                return Poll::Pending;
            }
            state.sent.append(&mut state.waits);
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// The two ends of a stream in a tunnel.
    async fn stream() -> (Stream, Stream) {
        let (near, far) = duplex(64 << 10);
        let (mut client, opens) = Connection::client(near, Config::TUNNEL);
        let mut server = Connection::server(far, Config::TUNNEL);
        tokio::spawn(async move { poll_fn(|cx| client.poll(cx)).await });
        let request = RequestRef {
            method: &Method::CONNECT,
            https: false,
            authority: "10.0.0.1:5432",
            path: "",
            headers: &HeaderMap::new(),
            te_trailers: false,
            expects_continue: false,
        };
        let near = opens.open(&request, false).unwrap();
        let taken = poll_fn(|cx| {
            let _ = server.poll(cx);
            server.next_request().map_or(Poll::Pending, Poll::Ready)
        });
        let Incoming::Request(far, _) = taken.await else { panic!("no request") };
        tokio::spawn(async move {
            let _opens = opens;
            poll_fn(|cx| server.poll(cx)).await;
        });
        (near, far)
    }

    fn meter() -> Meter {
        let chain = TcpChain {
            listener: "in".into(),
            backends: Vec::new(),
            idle_timeout: None,
            access_log: None,
            transfers: Arc::new(Transfers::new(1)),
            metrics: TcpMetrics::new("streamed"),
        };
        let address = ([127, 0, 0, 1], 1).into();
        let caller = Caller {
            address,
            reached: address,
            server_name: None,
            protocol: "TCP",
            worker: 0,
            destination: None,
        };
        Meter::new(chain.into(), &caller, None)
    }

    #[tokio::test(start_paused = true)]
    async fn what_waited_under_tls_for_a_full_socket_goes_out_once_there_is_room() {
        let (near, far) = stream().await;
        far.answer(StatusCode::OK, &HeaderMap::new(), false);
        far.send(Bytes::from_static(b"answer"), false).unwrap();
        let io = Full::default();
        let relayed = io.clone();
        let meter = meter();
        let relay = async { relay(relayed, near, Direction::Up, &meter, None).await };
        let look = || tokio::time::sleep(Duration::from_millis(1));
        let read = async {
            while lock(&io.0).flushing.is_none() {
                look().await;
            }
            lock(&io.0).room = true;
            let flushing = lock(&io.0).flushing.take();
            flushing.into_iter().for_each(Waker::wake);
            while lock(&io.0).sent != b"answer" {
                look().await;
            }
        };
        tokio::select! {
            ended = relay => panic!("{ended:?}"),
            read = timeout(Duration::from_secs(9), read) => read.unwrap(),
        }
    }
}
