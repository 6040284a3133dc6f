//! Moves bytes from socket to socket: many through a pipe, without copying them into this process
//! (`splice(2)`), and few through a buffer, since to move a message of a database that way costs less
//! than the calls that it takes to fill and empty a pipe.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::task::yield_now;

use super::{Direction, End, Meter, both, socket::Socket};

/// Asked of one `splice` call, and of the pipe where the kernel allows it.
const CHUNK: usize = 1 << 20;
/// Who sends less at a time is not worth a pipe.
const PIECE: usize = 16 * 1024;
/// Empty pipes a worker keeps for the next one who needs it.
const MOST_IDLE: usize = 64;
/// Bytes moved before the other connections of this worker have their turn.
const BURST: usize = 4 << 20;

/// Relays both ways until both ends are done; returns why, when that was no clean end.
pub(super) async fn relay(
    client: &Socket,
    upstream: &Socket,
    meter: &Meter,
    idle: Option<Duration>,
) -> Option<&'static str> {
    let mut breaks = Breaks { sockets: [client, upstream], armed: true };
    let mut up = Way::new(client, upstream, meter, Direction::Up);
    let mut down = Way::new(upstream, client, meter, Direction::Down);
    let reason =
        both(poll_fn(|cx| up.poll(cx)), poll_fn(|cx| down.poll(cx)), meter.idle(idle), |side| {
            match side {
                Direction::Up => upstream.reset(),
                Direction::Down => client.reset(),
            }
        })
        .await;
    breaks.armed = reason.is_some();
    reason
}

/// Resets both ends when it is dropped, unless both directions ended cleanly: a
/// relay that is cut must not look like one that is complete.
struct Breaks<'a> {
    sockets: [&'a Socket; 2],
    armed: bool,
}

impl Drop for Breaks<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.sockets.into_iter().for_each(Socket::reset);
        }
    }
}

/// One direction.
struct Way<'a> {
    from: &'a Socket,
    to: &'a Socket,
    meter: &'a Meter,
    direction: Direction,
    means: Means,
    /// Read, and not yet taken by who is written to.
    rest: Vec<u8>,
    pipe: Option<Pipe>,
    /// Bytes moved in this turn.
    burst: usize,
}

/// How the next bytes are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Means {
    /// Into a buffer, as long as they come in pieces.
    Buffer,
    /// Into a pipe.
    Pipe,
    /// Once into a buffer: a splice that moved nothing may have met an urgent byte, and only a read knows that there is
    /// nothing, or the end.
    Asking,
    /// Into a buffer for good: there are no pipes here.
    BufferOnly,
}

impl<'a> Way<'a> {
    fn new(from: &'a Socket, to: &'a Socket, meter: &'a Meter, direction: Direction) -> Self {
        let (means, rest, pipe, burst) = (Means::Buffer, Vec::new(), None, 0);
        Self { from, to, meter, direction, means, rest, pipe, burst }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            if let Err(error) = ready!(self.poll_rest(cx)) {
                return Poll::Ready(self.meter.write_failed(self.direction, error));
            }
            if self.burst >= BURST {
                self.burst = 0;
                // Has this task run again once the sockets have been looked at.
                let _ = pin!(yield_now()).poll(cx);
                return Poll::Pending;
            }
            let moved = match self.means {
                Means::Pipe => ready!(self.poll_fill(cx)),
                _ => ready!(self.poll_piece(cx)),
            };
            match moved {
                Ok(Some(0)) if self.means != Means::Pipe => return Poll::Ready(self.finish()),
                Ok(Some(n)) if n > 0 => {
                    self.burst += n;
                    self.means = match self.means {
                        Means::BufferOnly => Means::BufferOnly,
                        _ if n < PIECE => Means::Buffer,
                        _ => Means::Pipe,
                    };
                }
                Ok(_) => self.means = Means::Asking,
                Err(End::ReadFailed(error)) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.means = Means::BufferOnly;
                }
                Err(end) => return Poll::Ready(end),
            }
        }
    }

    /// Writes what was read before.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            let n = ready!(self.to.poll_put(cx, &self.rest))?;
            self.meter.moved(self.direction, n);
            self.rest.drain(..n);
        }
        if let Some(pipe) = &mut self.pipe {
            while pipe.held > 0 {
                let n = ready!(self.to.poll_put_by(cx, |to| pipe.empty(to)))?;
                self.meter.moved(self.direction, n);
            }
            if let Some(pipe) = self.pipe.take() {
                pipe.give_back();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Moves what has arrived, up to [`PIECE`] bytes, through a buffer; 0 at the end of the stream.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<usize>, End>> {
        BUFFER.with_borrow_mut(|buffer| {
            let n = match ready!(self.from.poll_take(cx, buffer)) {
                Ok(n) => n,
                Err(error) => return Poll::Ready(Err(End::ReadFailed(error))),
            };
            let mut at = 0;
            while at < n {
                match self.to.poll_put(cx, &buffer[at..n]) {
                    Poll::Ready(Ok(put)) => {
                        self.meter.moved(self.direction, put);
                        at += put;
                    }
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Err(self.meter.write_failed(self.direction, error)));
                    }
                    Poll::Pending => {
                        self.rest = buffer[at..n].to_vec();
                        break;
                    }
                }
            }
            Poll::Ready(Ok(Some(n)))
        })
    }

    /// As [`Self::poll_piece`], up to [`CHUNK`] bytes into a pipe; `None` if nothing has arrived. Whether that is the end
    /// must be asked by a read.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<usize>, End>> {
        if let Err(error) = ready!(self.from.poll_readable(cx)) {
            return Poll::Ready(Err(End::ReadFailed(error)));
        }
        let Some(mut pipe) = Pipe::take() else {
            // No more file descriptors: bytes pass all the same.
            self.means = Means::BufferOnly;
            return self.poll_piece(cx);
        };
        // Not as the runtime would try it: it would wait for more, though more may be there.
        Poll::Ready(match pipe.fill(self.from.as_fd()) {
            Ok(n) => {
                self.pipe = Some(pipe);
                Ok(Some(n))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                pipe.give_back();
                Ok(None)
            }
            Err(error) => Err(End::ReadFailed(error)),
        })
    }

    /// Passes the end of a stream on, if it is one.
    fn finish(&self) -> End {
        if let Some(broken) = self.meter.broken(self.direction) {
            return broken;
        }
        match self.to.finish() {
            Ok(()) => End::Finished,
            Err(error) => self.meter.write_failed(self.direction, error),
        }
    }
}

/// A pipe borrowed from this worker's pool. One that still holds bytes when it
/// is dropped is closed, never reused.
struct Pipe {
    ends: Option<(OwnedFd, OwnedFd)>,
    held: usize,
}

thread_local! {
    static IDLE: RefCell<Vec<(OwnedFd, OwnedFd)>> = const { RefCell::new(Vec::new()) };
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE].into_boxed_slice());
}

impl Pipe {
    fn take() -> Option<Self> {
        let ends = IDLE.with_borrow_mut(Vec::pop).or_else(|| {
            let ends = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
            // Smaller pipes work as well, with more calls.
            let _ = fcntl_setpipe_size(&ends.1, CHUNK);
            Some(ends)
        })?;
        Some(Self { ends: Some(ends), held: 0 })
    }

    fn give_back(mut self) {
        debug_assert_eq!(self.held, 0, "a pipe with bytes in it must not be reused");
        if let Some(ends) = self.ends.take() {
            IDLE.with_borrow_mut(|idle| {
                if idle.len() < MOST_IDLE {
                    idle.push(ends);
                }
            });
        }
    }

    /// Moves what has arrived into the (empty) pipe; 0 at the end of the stream.
    fn fill(&mut self, from: BorrowedFd<'_>) -> io::Result<usize> {
        let Some((_, write)) = &self.ends else { return Ok(0) };
        let n = move_bytes(from, write.as_fd(), CHUNK)?;
        self.held += n;
        Ok(n)
    }

    fn empty(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let Some((read, _)) = &self.ends else { return Ok(0) };
        let n = move_bytes(read.as_fd(), to, self.held)?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.held -= n;
        Ok(n)
    }
}

fn move_bytes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    loop {
        match splice(from, None, to, None, most, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(n) => return Ok(n),
            Err(error) => return Err(error.into()),
        }
    }
}
