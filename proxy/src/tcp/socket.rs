//! A socket as a relay polls it: one call into the kernel reads a message.

use std::{
    io,
    net::{Shutdown, TcpStream as StdStream},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::{
    io::{read, retry_on_intr},
    net::{SendFlags, send},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    net::TcpStream,
};

use super::reset;
use crate::http::ClientIo;

/// A read that leaves room in its buffer has emptied the socket, and needs no second one to learn that: unless it
/// stopped in front of an urgent byte. Of those the kernel tells by an event of its own, for which the runtime's
/// streams do not ask.
#[derive(Debug)]
pub(super) struct Socket(AsyncFd<StdStream>);

impl Socket {
    /// # Errors
    /// When the kernel has no memory to watch it; it is reset.
    #[expect(deprecated, reason = "unsafe only for descriptors that change while they are watched")]
    pub(super) fn new(tcp: TcpStream) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        AsyncFd::try_with_interest(tcp.into_std()?, interest).map(Self).map_err(|error| {
            let (tcp, cause) = error.into_parts();
            reset(&tcp);
            cause
        })
    }

    /// Reads; 0 at the end of the stream.
    pub(super) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            match retry_on_intr(|| read(&self.0, &mut *buffer)).map_err(io::Error::from) {
                Ok(n) => {
                    if 0 < n && n < buffer.len() && !self.is_marked() {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Whether an urgent byte has ever come, or the end.
    fn is_marked(&self) -> bool {
        self.0.try_io(Interest::PRIORITY, |_| Ok(())).is_ok()
    }

    /// Ready when something may be read.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(cx).map_ok(drop)
    }

    pub(super) fn poll_put(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_put_by(cx, |socket| {
            Ok(retry_on_intr(|| send(socket, bytes, SendFlags::NOSIGNAL))?)
        })
    }

    /// Writes by a call of another's.
    pub(super) fn poll_put_by(
        &self,
        cx: &mut Context<'_>,
        mut call: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match call(self.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                done => return Poll::Ready(done),
            }
        }
    }

    /// Ends the sending side.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.0.get_ref().shutdown(Shutdown::Write)
    }

    /// Makes the close a reset (RST), as its counterpart's was.
    pub(super) fn reset(&self) {
        reset(self.0.get_ref());
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ClientIo for Socket {
    fn reset_on_close(&self) {
        self.reset();
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n = ready!(self.poll_take(cx, buf.initialize_unfilled()))?;
        buf.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_put(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
}
