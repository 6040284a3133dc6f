//! A socket that can be told to end badly: reset, closed, or with bytes put between two frames.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
};

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// RST.
    Reset,
    /// FIN (which the kernel makes a RST where something is unread).
    Close,
}

/// A socket under a protocol.
#[derive(Debug)]
pub(super) struct Tap {
    tcp: TcpStream,
    control: Arc<Control>,
    track: Track,
}

/// What is told to a [`Tap`] from outside.
#[derive(Debug, Default)]
pub(super) struct Control {
    state: Mutex<State>,
    poked: Notify,
    killed: Notify,
}

#[derive(Debug, Default)]
struct State {
    inject: VecDeque<(Bytes, Option<Ending>)>,
    ending: Option<Ending>,
    /// Streams above it were declared unprocessed.
    last_stream: Option<u32>,
}

/// Where in the HTTP/2 frames being written the socket is.
#[derive(Debug, Default)]
struct Track {
    head: Vec<u8>,
    left: usize,
}

impl Tap {
    pub(super) fn new(tcp: TcpStream) -> (Self, Arc<Control>) {
        // Best effort: without it a run is slower, not wrong.
        let _ = tcp.set_nodelay(true);
        let control = Arc::new(Control::default());
        (Self { tcp, control: control.clone(), track: Track::default() }, control)
    }

    /// Writes what is to be put between two frames.
    fn poll_inject(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.control.state().ending.is_some() {
            // Nothing follows what was cut off.
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        while self.track.between() {
            let Some((mut bytes, then)) = self.control.state().inject.pop_front() else { break };
            while !bytes.is_empty() {
                match Pin::new(&mut self.tcp).poll_write(cx, &bytes) {
                    Poll::Ready(written) => bytes.advance(written?),
                    Poll::Pending => {
                        self.control.state().inject.push_front((bytes, then));
                        return Poll::Pending;
                    }
                }
            }
            if let Some(ending) = then {
                self.control.kill(ending);
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Control {
    /// Ends the connection now.
    pub(super) fn kill(&self, ending: Ending) {
        self.state().ending.get_or_insert(ending);
        self.killed.notify_one();
    }

    /// Waits for [`Self::kill`].
    pub(super) async fn killed(&self) {
        self.killed.notified().await;
    }

    /// Never returns: the connection, and whoever waits on it, is ended by [`Self::kill`].
    pub(super) async fn gone(&self) {
        std::future::pending::<()>().await;
    }

    /// Puts bytes between two frames, and then perhaps ends the connection.
    pub(super) fn inject(&self, bytes: impl Into<Bytes>, then: Option<Ending>) {
        self.state().inject.push_back((bytes.into(), then));
        self.poked.notify_one();
    }

    /// Waits for [`Self::inject`].
    pub(super) async fn poked(&self) {
        self.poked.notified().await;
    }

    /// Notes that streams above `last` were declared unprocessed; what may be said, for it must not grow.
    pub(super) fn leave_after(&self, last: u32) -> u32 {
        let mut state = self.state();
        let last = state.last_stream.map_or(last, |known| known.min(last));
        state.last_stream = Some(last);
        last
    }

    /// Whether this stream was declared unprocessed.
    pub(super) fn is_disowned(&self, stream: u32) -> bool {
        self.state().last_stream.is_some_and(|last| stream > last)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Track {
    fn between(&self) -> bool {
        self.head.is_empty() && self.left == 0
    }

    fn wrote(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let now = self.left.min(bytes.len());
                self.left -= now;
                bytes = &bytes[now..];
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            if let [a, b, c, _, _, _, _, _, _] = self.head[..] {
                self.left = u32::from_be_bytes([0, a, b, c]) as usize;
                self.head.clear();
            }
        }
    }

    /// How many of these bytes may go before the next frame begins.
    fn until_next(&self, bytes: &[u8]) -> usize {
        if self.left > 0 {
            return self.left.min(bytes.len());
        }
        (9 - self.head.len()).min(bytes.len())
    }
}

impl AsyncRead for Tap {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tap {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_inject(cx))?;
        let waiting = !self.control.state().inject.is_empty();
        let most = if waiting { self.track.until_next(buf) } else { buf.len() };
        let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, &buf[..most]))?;
        self.track.wrote(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_inject(cx))?;
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if self.control.state().ending == Some(Ending::Reset) {
            // A zero linger time turns close into RST.
            let _ = self.tcp.set_zero_linger();
        }
    }
}
