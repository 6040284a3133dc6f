//! A stream in the hands of its owner.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::{
    core::{Core, StreamState},
    error::{ErrorCode, StreamError},
    head::{self, Response},
    hpack::encode,
    streams::Key,
};

/// The state of a connection, shared by its driver and its streams.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<Mutex<Core>>);

impl Shared {
    pub(super) fn new(core: Core) -> Self {
        Self(Arc::new(Mutex::new(core)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One stream, in the hands of the task that serves it; all its methods are to be called from
/// that task. Dropped before both sides have ended, it is reset.
#[derive(Debug)]
pub(crate) struct Stream {
    shared: Shared,
    key: Key,
}

/// The next part of a body.
#[derive(Debug)]
pub(crate) enum Part {
    /// Bytes; `last` when it is certain that neither bytes nor trailers follow.
    Data { bytes: Bytes, last: bool },
    /// The end, perhaps with trailers.
    End(Option<HeaderMap>),
}

impl Stream {
    pub(super) fn new(shared: Shared, key: Key) -> Self {
        Self { shared, key }
    }

    fn with<T>(&self, f: impl FnOnce(&mut StreamState) -> T) -> Option<T> {
        self.shared.lock().streams.get_mut(self.key).map(f)
    }

    /// The next head of the answer: interim ones, then the final one.
    ///
    /// # Errors
    /// When the stream ended before its head.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response, StreamError>> {
        self.with(|stream| {
            let head = stream.interims.pop_front().or_else(|| stream.response.take());
            match (head, stream.failed) {
                (Some(head), _) => Poll::Ready(Ok(head)),
                (None, Some(failed)) => Poll::Ready(Err(failed)),
                (None, None) => {
                    stream.watched_by(cx);
                    Poll::Pending
                }
            }
        })
        .unwrap_or(Poll::Ready(Err(StreamError::Closed)))
    }

    /// The next part of the body. Its bytes count against the peer's window until they are
    /// [credited](Self::credit).
    ///
    /// # Errors
    /// When the stream ended before its body, once all that had come is read.
    pub(crate) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, StreamError>> {
        let mut core = self.shared.lock();
        core.open_wide(self.key);
        let stream = core.streams.get_mut(self.key);
        stream
            .map(|stream| {
                if let Some(bytes) = stream.next_chunk() {
                    let last = !stream.has_chunk() && matches!(stream.end, Some(None));
                    return Poll::Ready(Ok(Part::Data { bytes, last }));
                }
                match (&mut stream.end, stream.failed) {
                    (Some(end), _) => Poll::Ready(Ok(Part::End(end.take()))),
                    (None, Some(failed)) => Poll::Ready(Err(failed)),
                    (None, None) => {
                        stream.watched_by(cx);
                        Poll::Pending
                    }
                }
            })
            .unwrap_or(Poll::Ready(Err(StreamError::Closed)))
    }

    /// Ready when there is a part of the body, or none will come.
    pub(crate) fn poll_speaks(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.with(|stream| {
            if stream.has_chunk() || stream.end.is_some() || stream.failed.is_some() {
                return Poll::Ready(());
            }
            stream.watched_by(cx);
            Poll::Pending
        })
        .unwrap_or(Poll::Ready(()))
    }

    /// Whether no body byte is there or can still come.
    pub(crate) fn is_at_end(&self) -> bool {
        self.with(|stream| !stream.has_chunk() && matches!(stream.end, Some(None))).unwrap_or(true)
    }

    /// Has the peer send as many more bytes.
    pub(crate) fn credit(&self, bytes: usize) {
        self.shared.lock().credit(self.key, bytes);
    }

    /// Says whether it is a limit of ours for which its bytes lie here, and not its reader.
    pub(crate) fn hold_back(&self, held: bool) {
        self.with(|stream| stream.held_back = held);
    }

    /// Answers a request: an interim head, or the final one, with which the stream may end.
    pub(crate) fn answer(&self, status: StatusCode, headers: &HeaderMap, end: bool) {
        let mut core = self.shared.lock();
        let Some(stream) = core.streams.get_mut(self.key) else { return };
        if stream.local_closed {
            return;
        }
        stream.local_closed = end;
        let id = stream.id;
        // Interim responses are no reason to hold more for a client that does not read.
        if status.is_informational() && !core.has_room_out() {
            return;
        }
        core.send_block(id, end, |out| {
            encode::status(out, status);
            head::fields(out, headers);
        });
    }

    /// Ready when a part may be sent.
    ///
    /// # Errors
    /// When the stream has failed.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let mut core = self.shared.lock();
        self.watch(&mut core, cx, |core, key| core.has_room(key))
    }

    /// Ready once the server will not refuse the stream any more; never when the stream has failed. It is asked
    /// by a PING where that is not known, if it would not mind: one of gRPC (`sparing`) minds sooner.
    pub(crate) fn poll_accepted(&mut self, cx: &mut Context<'_>, sparing: bool) -> Poll<()> {
        let mut core = self.shared.lock();
        if core.has_accepted(self.key, sparing) {
            return Poll::Ready(());
        }
        if let Some(stream) = core.streams.get_mut(self.key) {
            stream.watched_by(cx);
        }
        Poll::Pending
    }

    /// Ready when all that was sent is on its way to the socket.
    ///
    /// # Errors
    /// When the stream has failed.
    pub(crate) fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let mut core = self.shared.lock();
        self.watch(&mut core, cx, |core, key| {
            let Some(stream) = core.streams.get_mut(key) else { return true };
            stream.wants_room |= !stream.is_sent();
            stream.is_sent()
        })
    }

    fn watch(
        &self,
        core: &mut Core,
        cx: &mut Context<'_>,
        is_ready: impl FnOnce(&mut Core, Key) -> bool,
    ) -> Poll<Result<(), StreamError>> {
        let Some(stream) = core.streams.get_mut(self.key) else {
            return Poll::Ready(Err(StreamError::Closed));
        };
        if let Some(failed) = stream.failed {
            return Poll::Ready(Err(failed));
        }
        if is_ready(core, self.key) {
            return Poll::Ready(Ok(()));
        }
        if let Some(stream) = core.streams.get_mut(self.key) {
            stream.watched_by(cx);
        }
        Poll::Pending
    }

    /// Sends a part of the body, the last one with `last`.
    ///
    /// # Errors
    /// When the stream has failed.
    pub(crate) fn send(&self, bytes: Bytes, last: bool) -> Result<(), StreamError> {
        self.shared.lock().send_part(self.key, bytes, last.then_some(None))
    }

    /// As [`Self::send`], of bytes that are not the caller's to give away.
    ///
    /// # Errors
    /// When the stream has failed.
    pub(crate) fn send_copy(&self, bytes: &[u8]) -> Result<(), StreamError> {
        self.shared.lock().send_copy(self.key, bytes)
    }

    /// Ends the body, perhaps with trailers.
    ///
    /// # Errors
    /// When the stream has failed.
    pub(crate) fn end(&self, trailers: Option<HeaderMap>) -> Result<(), StreamError> {
        self.shared.lock().send_part(self.key, Bytes::new(), Some(trailers))
    }

    /// Ready when the stream has failed.
    pub(crate) fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.with(|stream| match stream.failed {
            Some(failed) => Poll::Ready(failed),
            None => {
                stream.watched_by(cx);
                Poll::Pending
            }
        })
        .unwrap_or(Poll::Ready(StreamError::Closed))
    }

    /// Ready once `deadline` has passed. All streams of a connection share one timer.
    pub(crate) fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let mut core = self.shared.lock();
        let Some(stream) = core.streams.get_mut(self.key) else { return Poll::Pending };
        if std::mem::take(&mut stream.due) && Instant::now() >= deadline {
            return Poll::Ready(());
        }
        stream.watched_by(cx);
        if stream.deadline != Some(deadline) {
            stream.deadline = Some(deadline);
            core.wake_by(deadline);
        }
        Poll::Pending
    }

    /// Begins a graceful end of its connection.
    pub(crate) fn leave(&self) {
        self.shared.lock().leave();
    }

    /// Resets the stream.
    pub(crate) fn reset(&self, code: ErrorCode) {
        let mut core = self.shared.lock();
        if core.streams.get(self.key).is_some_and(|s| s.failed.is_none()) {
            core.reset(self.key, code, StreamError::Closed);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.lock().release(self.key);
    }
}
