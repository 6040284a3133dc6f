//! The socket of a connection, and what drives it.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::yield_now,
    time::{Instant, timeout},
};

use super::{
    core::{Asked, Config, Core, Ending, Role},
    error::{ErrorCode, Fatal},
    frame::{self, HEAD, Head, PREFACE},
    head::{Request, RequestRef},
    lifecycle::LAST_WORDS,
    receive::Body,
    stream::{Shared, Stream},
};
use crate::timer::Timer;

/// A connection. Nothing happens on it unless it is polled.
#[derive(Debug)]
pub(crate) struct Connection<I> {
    io: I,
    shared: Shared,
    input: Input,
    timer: Timer,
    /// What is to be written has waited for more.
    gathered: bool,
    /// When the peer has had time enough: to hear that we go away, or to read our last words.
    farewell: Option<(Ending, usize, Instant)>,
}

/// What was read and is not dealt with yet.
#[derive(Debug)]
struct Input {
    buffer: BytesMut,
    /// Bytes the next read asks for.
    ask: usize,
    preface: bool,
}

/// What a client asked for.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly always the large one, and short-lived")]
pub(crate) enum Incoming {
    Request(Stream, Request),
    /// The head is over the limit; it is to be answered so.
    TooLarge(Stream),
    /// Malformed, and reset already.
    Malformed,
}

/// Opens streams on a connection to a server. The connection ends once this is dropped and
/// the last stream is done.
#[derive(Debug)]
pub(crate) struct Client(Shared);

/// Why no stream was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unopened {
    /// The server allows no more at a time, or does not read what was sent.
    Full,
    /// The head is longer than the server takes (`SETTINGS_MAX_HEADER_LIST_SIZE`).
    TooLarge,
    /// The connection ends, or has no stream identifiers left.
    Closed,
}

/// The first read of a connection; doubled while reads fill it.
const FIRST_ASK: usize = 16 * 1024;
const MOST_ASK: usize = 256 * 1024;
/// Reads before other tasks have their turn.
const READS: usize = 4;
/// Payloads below this are copied out of the buffer, others passed on as views of it.
const COPIED: usize = 2 * 1024;
/// And so are those below this part of the buffer: what waits holds no more than so many times
/// its size.
const PINNED: usize = 16;
/// While more waits for the socket than streams may queue, nothing is read: what a peer makes
/// us answer is bounded by what it reads.
const MOST_OUT: usize = 1 << 20;
/// Time for a client to hear that we go away.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// What is read, and for how long, after the end, lest a reset overtake our last words.
const LINGER_BYTES: usize = 1 << 20;
const LINGER: Duration = Duration::from_secs(1);

impl<I: AsyncRead + AsyncWrite + Unpin> Connection<I> {
    /// Serves a client, whose preface is still to be read.
    pub(crate) fn server(io: I, config: Config) -> Self {
        Self::new(io, Core::new(Role::Server, config))
    }

    /// Connects to a server (RFC 9113 §3.3: it is known to speak HTTP/2).
    pub(crate) fn client(io: I, config: Config) -> (Self, Client) {
        let connection = Self::new(io, Core::new(Role::Client, config));
        let client = Client(connection.shared.clone());
        (connection, client)
    }

    fn new(io: I, core: Core) -> Self {
        let preface = core.role == Role::Server;
        Self {
            io,
            shared: Shared::new(core),
            input: Input { buffer: BytesMut::new(), ask: FIRST_ASK, preface },
            timer: Timer::default(),
            gathered: false,
            farewell: None,
        }
    }

    /// Reads, deals with what came, and writes. Ready when the connection is over; what is to
    /// be said last is then left to [`Self::finish`].
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let shared = self.shared.clone();
        let mut core = shared.lock();
        core.driven_by(cx);
        if core.ending == Ending::Over {
            return Poll::Ready(());
        }
        let stalled = core.out.len() > MOST_OUT;
        if !stalled && let Err(end) = self.input.poll(&mut self.io, &mut core, cx) {
            core.end(end);
            return Poll::Ready(());
        }
        self.poll_time(&mut core, cx);
        let gathers = core.config.gathers && core.out.len() > 0 && core.streams.len() > 1;
        self.gathered = gathers && !self.gathered;
        if self.gathered {
            // Has it polled again once all sockets have been looked at; until then nobody need wake it.
            let _ = pin!(yield_now()).poll(cx);
            return Poll::Pending;
        }
        loop {
            let more = core.serve_blocked();
            match core.out.poll_write(&mut self.io, cx) {
                Poll::Pending => break,
                // What counts is what can still be read; its end ends the connection.
                Poll::Ready(Err(_)) => core.write_failed(),
                Poll::Ready(Ok(())) => {}
            }
            if more {
                cx.waker().wake_by_ref();
                break;
            }
            if core.out.len() == 0 && core.blocked.is_empty() || core.send_window <= 0 {
                break;
            }
        }
        if core.streams.len() == 0 {
            core.out.rest();
            self.input.rest();
        }
        if core.ending == Ending::Over || core.is_finished() && core.out.len() == 0 {
            core.end(None);
            return Poll::Ready(());
        }
        if stalled && core.out.len() <= MOST_OUT {
            cx.waker().wake_by_ref();
        }
        core.left_by_driver();
        Poll::Pending
    }

    /// Looks at what was to happen by now.
    fn poll_time(&mut self, core: &mut Core, cx: &mut Context<'_>) {
        loop {
            let farewell = self.farewell_of(core);
            let block = core.block.as_ref().map(|block| block.deadline);
            let all = core.deadline.into_iter().chain(farewell).chain(block);
            let Some(first) = all.min() else { return };
            if self.timer.poll(cx, first).is_pending() {
                return;
            }
            let now = Instant::now().max(first);
            if farewell.is_some_and(|at| at <= now) {
                match core.ending {
                    Ending::Announced => core.left(),
                    _ => return core.end(None),
                }
            }
            if block.is_some_and(|at| at <= now) {
                let why = "a header block takes too long";
                return core.end(Some(Fatal(ErrorCode::ENHANCE_YOUR_CALM, why)));
            }
            core.look_at_deadlines(now);
        }
    }

    /// How long the end may still take, where it waits for the peer alone.
    fn farewell_of(&mut self, core: &Core) -> Option<Instant> {
        let time = match core.ending {
            Ending::Announced => FAREWELL_TIME,
            Ending::Final if core.streams.len() == 0 => LAST_WORDS,
            _ => return None,
        };
        // As long as it reads, it has more time.
        let left = core.out.len();
        if self.farewell.is_none_or(|(ending, len, _)| (ending, len) != (core.ending, left)) {
            let at = Instant::now().checked_add(time);
            self.farewell = at.map(|at| (core.ending, left, at));
        }
        self.farewell.map(|(_, _, at)| at)
    }

    /// What a client asks for next.
    pub(crate) fn next_request(&mut self) -> Option<Incoming> {
        let mut core = self.shared.lock();
        let stream = |key| Stream::new(self.shared.clone(), key);
        loop {
            return Some(match core.asked.pop_front()? {
                // Reset before anybody looked at it.
                Asked::Request(key, _) | Asked::TooLarge(key) if core.has_failed(key) => {
                    core.release(key);
                    continue;
                }
                Asked::Request(key, request) => Incoming::Request(stream(key), request),
                Asked::TooLarge(key) => Incoming::TooLarge(stream(key)),
                Asked::Malformed => {
                    // The driver may have waited for this alone.
                    core.notify_driver();
                    Incoming::Malformed
                }
            });
        }
    }

    /// Whether the peer's settings are here, and thus an HTTP/2 peer.
    pub(crate) fn is_established(&self) -> bool {
        self.shared.lock().peer.told
    }

    /// Whether any stream is open.
    pub(crate) fn has_streams(&self) -> bool {
        self.shared.lock().streams.len() > 0
    }

    /// Reads the window streams have now.
    #[cfg(test)]
    pub(super) fn window(&self) -> impl Fn() -> u32 + use<I> {
        let shared = self.shared.clone();
        move || shared.lock().config.stream_window
    }

    /// Begins a graceful end (RFC 9113 §6.8).
    pub(crate) fn leave(&mut self) {
        self.shared.lock().leave();
    }

    /// Says what is left to say once the connection is over, as far as the peer listens.
    pub(crate) async fn finish(&mut self) {
        // Whoever drives is done: a failure now has nobody to tell.
        let _ = self.say_last().await;
    }

    async fn say_last(&mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        shared.lock().end(None);
        poll_fn(|cx| shared.lock().out.poll_write(&mut self.io, cx)).await?;
        poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await?;
        let mut read = 0;
        let lingering = poll_fn(|cx| {
            while read < LINGER_BYTES {
                self.input.buffer.clear();
                match ready!(self.input.poll_read(&mut self.io, cx)) {
                    Ok(0) | Err(_) => break,
                    Ok(more) => read += more,
                }
            }
            Poll::Ready(())
        });
        let _ = timeout(LINGER, lingering).await;
        Ok(())
    }
}

impl Input {
    /// Reads and deals with what came until there is nothing more for now.
    ///
    /// # Errors
    /// When the connection is over: with what the peer did, or without, when it closed.
    fn poll<I: AsyncRead + Unpin>(
        &mut self,
        io: &mut I,
        core: &mut Core,
        cx: &mut Context<'_>,
    ) -> Result<(), Option<Fatal>> {
        for _ in 0..READS {
            match self.poll_read(io, cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0) | Err(_)) => return Err(None),
                Poll::Ready(Ok(_)) => self.take(core)?,
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn poll_read<I: AsyncRead + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.buffer.capacity() - self.buffer.len() < self.ask / 2 {
            self.buffer.reserve(self.ask);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        let read = ready!(tokio_util::io::poll_read_buf(Pin::new(io), cx, &mut self.buffer))?;
        if read == room && read >= self.ask {
            self.ask = (self.ask * 2).min(MOST_ASK);
        }
        Poll::Ready(Ok(read))
    }

    /// Deals with every frame that is whole.
    fn take(&mut self, core: &mut Core) -> Result<(), Option<Fatal>> {
        if self.preface {
            let known = self.buffer.len().min(PREFACE.len());
            if self.buffer[..known] != PREFACE[..known] {
                let why = "this is not the HTTP/2 preface";
                return Err(Some(Fatal(ErrorCode::PROTOCOL_ERROR, why)));
            }
            if known < PREFACE.len() {
                return Ok(());
            }
            self.buffer.advance(known);
            self.preface = false;
        }
        let mut at = 0;
        while let Some(head) = Head::read(&self.buffer[at..]) {
            core.expect(head).map_err(Some)?;
            let end = at + HEAD + head.length;
            if self.buffer.len() < end {
                break;
            }
            if head.kind == frame::DATA && head.length >= COPIED.max(self.ask / PINNED) {
                self.buffer.advance(at + HEAD);
                let payload = self.buffer.split_to(head.length).freeze();
                at = 0;
                core.data(head, Body::Large(payload)).map_err(Some)?;
                continue;
            }
            let payload = &self.buffer[at + HEAD..end];
            at = end;
            if head.kind == frame::DATA {
                core.data(head, Body::Small(payload)).map_err(Some)?;
            } else {
                core.receive(head, payload).map_err(Some)?;
            }
        }
        if at == self.buffer.len() {
            // Keeps the whole allocation, where `advance` would lose its front.
            self.buffer.clear();
        } else {
            self.buffer.advance(at);
        }
        Ok(())
    }

    /// Gives back memory while nothing is buffered.
    fn rest(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
            self.ask = FIRST_ASK;
        }
    }
}

impl<I> Drop for Connection<I> {
    fn drop(&mut self) {
        self.shared.lock().end(None);
    }
}

impl Client {
    /// Opens a stream with a request's head, which ends it where there is no body.
    ///
    /// # Errors
    /// [`Unopened`]; nothing was sent.
    pub(crate) fn open(&self, request: &RequestRef<'_>, end: bool) -> Result<Stream, Unopened> {
        let mut core = self.0.lock();
        if core.ending != Ending::No || core.next > frame::MOST {
            return Err(Unopened::Closed);
        }
        let most = core.peer.streams.min(core.config.streams);
        if core.is_full(most) || !core.has_room_out() || core.holds_up(!end) {
            return Err(Unopened::Full);
        }
        if core.peer.header_list.is_some_and(|most| request.list_size() > most as usize) {
            return Err(Unopened::TooLarge);
        }
        let id = core.next;
        core.next += 2;
        let key = core.add_stream(id);
        if let Some(stream) = core.streams.get_mut(key) {
            stream.bodiless = *request.method == http::Method::HEAD;
            stream.local_closed = end;
        }
        core.send_block(id, end, |out| request.encode(out));
        drop(core);
        Ok(Stream::new(self.0.clone(), key))
    }

    /// Whether the server says that it allows no stream (RFC 9113 §6.5.2), until it says otherwise.
    pub(crate) fn is_barred(&self) -> bool {
        let core = self.0.lock();
        core.ending == Ending::No && core.peer.streams == 0
    }

    /// Whether it is open, and in use or idle for less than `limit`.
    pub(crate) fn stands(&self, limit: Duration) -> bool {
        let core = self.0.lock();
        core.ending == Ending::No && (core.streams.len() > 0 || core.idle_since.elapsed() < limit)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.lock().leave();
    }
}
