//! What is sent: heads and bodies into frames, as far as windows and the socket allow.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tokio::time::Instant;

use super::{
    core::Core,
    error::StreamError,
    frame::{self, HEAD},
    head, out,
    streams::Key,
};

/// Streams add nothing while so many bytes wait for the socket.
const HIGH: usize = 256 * 1024;
/// What one stream sends before another's turn.
const TURN: usize = 64 * 1024;
/// Streams woken at a time when there is room again.
const WOKEN: usize = 16;

impl Core {
    /// Whether the peer reads what it is sent.
    pub(super) fn has_room_out(&self) -> bool {
        self.out.len() < HIGH
    }

    /// Sends a header block.
    pub(super) fn send_block(
        &mut self,
        id: u32,
        end_stream: bool,
        encode: impl FnOnce(&mut BytesMut),
    ) {
        let tail = &mut self.out.tail;
        let start = tail.len();
        let end = if end_stream { frame::END_STREAM } else { 0 };
        frame::put_head(tail, 0, frame::HEADERS, frame::END_HEADERS | end, id);
        self.encoder.begin(tail);
        encode(tail);
        let length = tail.len() - start - HEAD;
        if length <= self.peer.frame {
            tail[start..start + 3].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
        } else {
            self.split_block(start, id, end);
        }
        self.notify_driver();
    }

    /// Cuts a block that is longer than a frame (RFC 9113 §4.3).
    fn split_block(&mut self, start: usize, id: u32, end: u8) {
        let tail = &mut self.out.tail;
        let block = tail.split_off(start).split_off(HEAD);
        let mut fragments = block.chunks(self.peer.frame).peekable();
        let mut kind = (frame::HEADERS, end);
        while let Some(fragment) = fragments.next() {
            let last = if fragments.peek().is_none() { frame::END_HEADERS } else { 0 };
            frame::put_head(tail, fragment.len(), kind.0, kind.1 | last, id);
            tail.extend_from_slice(fragment);
            kind = (frame::CONTINUATION, 0);
        }
    }

    /// Queues a part of a body; ends the stream with `end`, and trailers in it.
    ///
    /// # Errors
    /// When the stream has failed.
    pub(super) fn send_part(
        &mut self,
        key: Key,
        bytes: Bytes,
        end: Option<Option<HeaderMap>>,
    ) -> Result<(), StreamError> {
        let Some(stream) = self.streams.get_mut(key) else { return Err(StreamError::Closed) };
        if let Some(failed) = stream.failed {
            return Err(failed);
        }
        if stream.local_closed || stream.pending_end.is_some() {
            return Ok(());
        }
        if !bytes.is_empty() {
            stream.pending.push_back(bytes);
        }
        stream.pending_end = end;
        self.push(key);
        Ok(())
    }

    /// As [`Self::send_part`], without its own copy where it goes out as one small frame at once.
    ///
    /// # Errors
    /// When the stream has failed.
    pub(super) fn send_copy(&mut self, key: Key, bytes: &[u8]) -> Result<(), StreamError> {
        let length = bytes.len() as i64;
        let Some(stream) = self.streams.get_mut(key) else { return Err(StreamError::Closed) };
        let goes = stream.failed.is_none()
            && !stream.local_closed
            && stream.is_sent()
            && length <= stream.window.min(self.send_window)
            && bytes.len() < out::COPIED
            && self.out.len() < HIGH;
        if !goes {
            return self.send_part(key, Bytes::copy_from_slice(bytes), None);
        }
        stream.window -= length;
        self.send_window -= length;
        self.out.small(stream.id, bytes, false, self.peer.frame);
        self.notify_driver();
        Ok(())
    }

    /// Frames what a stream has pending, as far as it may; the rest waits for its turn.
    pub(super) fn push(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let mut sent = 0;
        while let Some(first) = stream.pending.front_mut() {
            let blocked = self.send_window <= 0 || self.out.len() >= HIGH || sent >= TURN;
            if stream.window <= 0 || blocked {
                if self.send_window <= 0 {
                    self.send_blocked.get_or_insert_with(Instant::now);
                }
                // An update of its window has it go on; otherwise, its turn.
                if stream.window > 0 && !std::mem::replace(&mut stream.queued, true) {
                    self.blocked.push_back(key);
                }
                self.notify_driver();
                return;
            }
            let allowed = stream.window.min(self.send_window).unsigned_abs() as usize;
            let length = first.len().min(self.peer.frame).min(allowed);
            let part = first.split_to(length);
            if first.is_empty() {
                stream.pending.pop_front();
            }
            let last =
                stream.pending.is_empty() && stream.pending_end.take_if(|t| t.is_none()).is_some();
            self.out.data(stream.id, part, last, self.peer.frame);
            stream.window -= length as i64;
            self.send_window -= length as i64;
            stream.local_closed |= last;
            sent += length;
        }
        let id = stream.id;
        match stream.pending_end.take() {
            None => {}
            Some(trailers) => {
                stream.local_closed = true;
                match trailers.filter(|t| !t.is_empty()) {
                    None => self.out.data(id, Bytes::new(), true, self.peer.frame),
                    Some(trailers) => {
                        self.send_block(id, true, |out| head::fields(out, &trailers));
                    }
                }
            }
        }
        self.notify_driver();
        let Some(stream) = self.streams.get_mut(key) else { return };
        if std::mem::take(&mut stream.wants_room) {
            stream.wake();
        }
        if stream.local_closed && stream.released {
            self.settle(key);
        }
    }

    /// Whether a stream may send more now. When not, it is woken once it may.
    pub(super) fn has_room(&mut self, key: Key) -> bool {
        let Some(stream) = self.streams.get_mut(key) else { return true };
        if stream.window > 0 && stream.pending.is_empty() {
            if self.send_window > 0 && self.out.len() < HIGH {
                return true;
            }
            if !std::mem::replace(&mut stream.queued, true) {
                self.blocked.push_back(key);
            }
        }
        stream.wants_room = true;
        false
    }

    /// Gives the streams that wait their turns. True when some still wait though there is room:
    /// those woken go first, since each may fill it.
    pub(super) fn serve_blocked(&mut self) -> bool {
        let mut woken = 0;
        while self.send_window > 0 && self.out.len() < HIGH {
            let Some(key) = self.blocked.pop_front() else { return false };
            let Some(stream) = self.streams.get_mut(key) else { continue };
            if !std::mem::take(&mut stream.queued) {
                continue;
            }
            if !stream.pending.is_empty() {
                self.push(key);
            } else if std::mem::take(&mut stream.wants_room) {
                stream.wake();
                woken += 1;
                if woken == WOKEN {
                    return true;
                }
            }
        }
        false
    }

    /// Notes that so many bytes of a stream's body were passed on.
    pub(super) fn credit(&mut self, key: Key, bytes: usize) {
        let Some(stream) = self.streams.get_mut(key).filter(|_| bytes > 0) else { return };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(stream.uncredited);
        stream.uncredited -= bytes;
        stream.owed += bytes;
        stream.moves = true;
        let window = if stream.wide { self.config.stream_window } else { self.config.first_window };
        if !stream.remote_closed && stream.owed >= window / 2 {
            frame::put_window(&mut self.out.tail, stream.id, stream.owed);
            stream.receive_window += std::mem::take(&mut stream.owed);
            self.notify_driver();
        }
        self.passed_on(bytes);
    }

    /// Gives back credit for bytes that no stream holds, once it is half of what there is.
    pub(super) fn credit_connection(&mut self, bytes: u32) {
        self.owed += bytes;
        if self.owed > 0 && self.owed >= self.receive_window {
            frame::put_window(&mut self.out.tail, 0, self.owed);
            self.receive_window += std::mem::take(&mut self.owed);
            self.notify_driver();
        }
    }
}
