//! Joins what an HTTP/2 connection writes into few system calls.
//!
//! The `h2` crate writes every DATA frame of 256 bytes or more by a call of its
//! own. A connection driven through [`Flusher::drive`] collects small writes while it is
//! polled, and sends them together when it has nothing more to do.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The connection's end: writes are held back.
#[derive(Debug)]
pub(crate) struct Coalescing<I>(Arc<Mutex<Held<I>>>);

/// The driver's end: sends what was held back.
#[derive(Debug)]
pub(crate) struct Flusher<I>(Arc<Mutex<Held<I>>>);

#[derive(Debug)]
struct Held<I> {
    io: I,
    bytes: BytesMut,
    /// Something was written since the socket was last flushed.
    dirty: bool,
}

/// A write of at least this size is not copied but sent at once, with what is held.
const LARGE: usize = 8 * 1024;
/// The most that is held.
const MOST: usize = 32 * 1024;
/// Pieces of one large write.
const SLICES: usize = 8;

/// Splits a connection's socket into the two ends.
pub(crate) fn coalescing<I>(io: I) -> (Coalescing<I>, Flusher<I>) {
    let held = Arc::new(Mutex::new(Held { io, bytes: BytesMut::new(), dirty: false }));
    (Coalescing(held.clone()), Flusher(held))
}

impl<I: AsyncWrite + Unpin> Flusher<I> {
    /// Polls `work` (the connection), then sends all it wrote.
    pub(crate) fn drive<T>(
        &self,
        cx: &mut Context<'_>,
        work: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let outcome = work(cx);
        // When the socket is full its waker is registered; a failed one fails the connection's next read.
        let _ = lock(&self.0).poll_send(cx);
        outcome
    }

    /// Sends what is left when the connection is over.
    pub(crate) async fn finish(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| lock(&self.0).poll_send(cx)).await
    }
}

fn lock<I>(held: &Mutex<Held<I>>) -> MutexGuard<'_, Held<I>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<I: AsyncWrite + Unpin> Held<I> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.bytes.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.bytes))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.bytes.advance(written);
        }
        if !self.dirty {
            return Poll::Ready(Ok(()));
        }
        // TLS holds records back too.
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.dirty = false;
        Poll::Ready(Ok(()))
    }

    fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total: usize = slices.iter().map(|s| s.len()).sum();
        self.dirty = true;
        if total >= LARGE {
            return self.poll_write_through(cx, slices);
        }
        if self.bytes.len() + total > MOST {
            ready!(self.poll_send(cx))?;
        }
        for slice in slices {
            self.bytes.extend_from_slice(slice);
        }
        Poll::Ready(Ok(total))
    }

    fn poll_write_through(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let held = self.bytes.len();
            let mut all = [IoSlice::new(&[]); SLICES];
            all[0] = IoSlice::new(&self.bytes);
            let first = usize::from(held == 0);
            let mut count = 1;
            for (slot, slice) in all[1..].iter_mut().zip(slices) {
                *slot = IoSlice::new(slice);
                count += 1;
            }
            let write = Pin::new(&mut self.io).poll_write_vectored(cx, &all[first..count]);
            let written = ready!(write)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.bytes.advance(written.min(held));
            if written > held {
                return Poll::Ready(Ok(written - held));
            }
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Coalescing<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Coalescing<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_take(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_take(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing: the driver sends.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut held = lock(&self.0);
        ready!(held.poll_send(cx))?;
        ready!(Pin::new(&mut held.io).poll_flush(cx))?;
        Pin::new(&mut held.io).poll_shutdown(cx)
    }
}
