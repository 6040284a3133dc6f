//! Moves bytes from socket to socket: many through a pipe, without copying them into this process
//! (`splice(2)`), and few through a buffer, since to move a message of a database that way costs less
//! than the calls that it takes to fill and empty a pipe.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::{read, retry_on_intr},
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};
use tokio::{
    io::Interest,
    net::TcpStream,
    task::{coop::consume_budget, yield_now},
};

use super::{Direction, End, Meter, both, copy, reset};

/// Asked of one `splice` call, and of the pipe where the kernel allows it.
const CHUNK: usize = 1 << 20;
/// Who sends less at a time is not worth a pipe.
const PIECE: usize = 16 * 1024;
/// Empty pipes, and buffers, a worker keeps for the next one who needs it.
const MOST_IDLE: usize = 64;
/// Bytes moved before the other connections of this worker have their turn.
const BURST: usize = 4 << 20;

/// Relays both ways until both ends are done; returns why, when that was no clean end.
pub(super) async fn relay(
    client: &TcpStream,
    upstream: &TcpStream,
    meter: &Meter,
    idle: Option<Duration>,
) -> Option<&'static str> {
    let mut breaks = Breaks { sockets: [client, upstream], armed: true };
    let reason = both(
        one_way(client, upstream, meter, Direction::Up),
        one_way(upstream, client, meter, Direction::Down),
        meter.idle(idle),
        |side| match side {
            Direction::Up => reset(upstream),
            Direction::Down => reset(client),
        },
    )
    .await;
    breaks.armed = reason.is_some();
    reason
}

/// Resets both ends when it is dropped, unless both directions ended cleanly: a
/// relay that is cut must not look like one that is complete.
struct Breaks<'a> {
    sockets: [&'a TcpStream; 2],
    armed: bool,
}

impl Drop for Breaks<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.sockets.into_iter().for_each(reset);
        }
    }
}

async fn one_way(from: &TcpStream, to: &TcpStream, meter: &Meter, direction: Direction) -> End {
    // Whether it comes in pieces, and whether the next one is read all the same.
    let (mut burst, mut pieces, mut asks) = (0, true, false);
    loop {
        // Readiness that is there at once costs no budget by itself.
        consume_budget().await;
        if burst >= BURST {
            burst = 0;
            yield_now().await;
        }
        if let Err(error) = from.readable().await {
            return End::ReadFailed(error);
        }
        let reads = pieces || std::mem::take(&mut asks);
        let moved = if reads {
            piece(from, to, meter, direction).await
        } else {
            let Some(pipe) = Pipe::take() else {
                // No more file descriptors: bytes pass all the same, by hand.
                return copy::one_way_tcp(from, to, meter, direction).await;
            };
            stretch(pipe, from, to, meter, direction).await
        };
        match moved {
            Ok(Some(0)) if reads => return finish(to, meter, direction),
            Ok(Some(n)) if n > 0 => {
                burst += n;
                pieces = n < PIECE;
            }
            // A splice that moves nothing may have met an urgent byte: only a read knows that there is nothing, or
            // the end.
            Ok(_) => asks = !reads,
            Err(End::ReadFailed(error)) if error.kind() == io::ErrorKind::InvalidInput => {
                return copy::one_way_tcp(from, to, meter, direction).await;
            }
            Err(end) => return end,
        }
    }
}

/// Moves what has arrived, up to [`PIECE`] bytes, through a buffer; 0 at the end of the stream, `None` if
/// nothing has.
async fn piece(
    from: &TcpStream,
    to: &TcpStream,
    meter: &Meter,
    direction: Direction,
) -> Result<Option<usize>, End> {
    let mut buffer =
        IDLE_BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; PIECE].into_boxed_slice());
    // A short read need not be all there is: it stops in front of an urgent byte, too.
    let moved = match from
        .try_io(Interest::READABLE, || Ok(retry_on_intr(|| read(from, &mut buffer[..]))?))
    {
        Ok(n) => {
            copy::write_all(to, &buffer[..n], meter, direction).await?;
            Some(n)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => return Err(End::ReadFailed(error)),
    };
    IDLE_BUFFERS.with_borrow_mut(|idle| {
        if idle.len() < MOST_IDLE {
            idle.push(buffer);
        }
    });
    Ok(moved)
}

/// As [`piece`], up to [`CHUNK`] bytes through a pipe; whether there are more must be asked by a read.
async fn stretch(
    mut pipe: Pipe,
    from: &TcpStream,
    to: &TcpStream,
    meter: &Meter,
    direction: Direction,
) -> Result<Option<usize>, End> {
    // Not as the runtime would try it: it would wait for more, though more may be there.
    let filled = match pipe.fill(from) {
        Ok(n) => Some(n),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => return Err(End::ReadFailed(error)),
    };
    while pipe.held > 0 {
        match to.try_io(Interest::WRITABLE, || pipe.empty(to)) {
            Ok(n) => meter.moved(direction, n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                to.writable().await.map_err(|error| meter.write_failed(direction, error))?;
            }
            Err(error) => return Err(meter.write_failed(direction, error)),
        }
    }
    pipe.give_back();
    Ok(filled)
}

/// Passes the end of a stream on, if it is one.
pub(super) fn finish(to: &TcpStream, meter: &Meter, direction: Direction) -> End {
    if let Some(broken) = meter.broken(direction) {
        return broken;
    }
    match socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write) {
        Ok(()) => End::Finished,
        Err(error) => meter.write_failed(direction, error),
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
    static IDLE_BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
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
    fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let Some((_, write)) = &self.ends else { return Ok(0) };
        let n = move_bytes(from.as_fd(), write.as_fd(), CHUNK)?;
        self.held += n;
        Ok(n)
    }

    fn empty(&mut self, to: &TcpStream) -> io::Result<usize> {
        let Some((read, _)) = &self.ends else { return Ok(0) };
        let n = move_bytes(read.as_fd(), to.as_fd(), self.held)?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.held -= n;
        Ok(n)
    }
}

fn move_bytes(
    from: std::os::fd::BorrowedFd<'_>,
    to: std::os::fd::BorrowedFd<'_>,
    most: usize,
) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    loop {
        match splice(from, None, to, None, most, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(n) => return Ok(n),
            Err(error) => return Err(error.into()),
        }
    }
}
