//! What each frame does (RFC 9113 §6).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::time::Instant;

use super::{
    core::{Asked, Block, Core, Ending, Role, StreamState},
    error::{ErrorCode, Fatal, StreamError},
    frame::{self, Head},
    head::Fields,
    lifecycle::FAREWELL,
    streams::Key,
    window::PROBE,
};

/// The payload of a DATA frame.
pub(super) enum Body<'a> {
    /// A small one, copied where it goes.
    Small(&'a [u8]),
    /// A view of what was read.
    Large(Bytes),
}

/// Why a stream fails that ends before its declared length.
pub(crate) const ENDED_SHORT: &str = "fewer bytes than content-length says";
/// Interim responses that wait to be read.
const MOST_INTERIMS: usize = 8;
/// Payloads up to this size are joined when they must wait.
const JOINED: usize = 4 * 1024;
/// The compressed size of a header block may exceed the limit on heads by its half and this
/// before the connection, and not only the request, is given up.
const BLOCK_GRACE: usize = 16 * 1024;
/// Time for a header block to be whole.
const BLOCK_TIME: Duration = Duration::from_secs(30);

const fn protocol(why: &'static str) -> Fatal {
    Fatal(ErrorCode::PROTOCOL_ERROR, why)
}

const fn size(why: &'static str) -> Fatal {
    Fatal(ErrorCode::FRAME_SIZE_ERROR, why)
}

impl Core {
    /// Checks what can be told from a frame's head.
    pub(super) fn expect(&self, head: Head) -> Result<(), Fatal> {
        if head.length > self.config.frame as usize {
            return Err(size("a frame is longer than MAX_FRAME_SIZE"));
        }
        match &self.block {
            Some(block) if head.kind != frame::CONTINUATION || head.stream != block.stream => {
                Err(protocol("a header block is interrupted"))
            }
            None if head.kind == frame::CONTINUATION => {
                Err(protocol("CONTINUATION without a header block"))
            }
            _ if !self.peer.told && head.kind != frame::SETTINGS => {
                Err(protocol("the first frame is not SETTINGS"))
            }
            _ => Ok(()),
        }
    }

    /// Takes any frame but DATA.
    pub(super) fn receive(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        match head.kind {
            frame::HEADERS => self.headers(head, payload),
            frame::CONTINUATION => self.continuation(head, payload),
            frame::PRIORITY => self.priority(head, payload),
            frame::RST_STREAM => self.reset_by_peer(head, payload),
            frame::SETTINGS => self.settings(head, payload),
            frame::PUSH_PROMISE => Err(protocol("PUSH_PROMISE, though push is off")),
            frame::PING => self.ping(head, payload),
            frame::GOAWAY => self.goaway(head, payload),
            frame::WINDOW_UPDATE => self.window_update(head, payload),
            _ => Ok(()),
        }
    }

    /// Whether no stream of this identifier was ever opened.
    fn is_idle(&self, id: u32) -> bool {
        let peers = id % 2 == 1;
        match self.role {
            Role::Server => !peers || id > self.highest,
            Role::Client => !peers || id >= self.next,
        }
    }

    pub(super) fn data(&mut self, head: Head, body: Body<'_>) -> Result<(), Fatal> {
        if head.stream == 0 {
            return Err(protocol("DATA on stream 0"));
        }
        let flow = head.length as u32;
        self.receive_window = self
            .receive_window
            .checked_sub(flow)
            .ok_or(Fatal(ErrorCode::FLOW_CONTROL_ERROR, "the connection's window is exceeded"))?;
        let bytes: &[u8] = match &body {
            Body::Small(bytes) => bytes,
            Body::Large(bytes) => bytes,
        };
        let (before, after) =
            frame::padding(head, bytes).ok_or(protocol("padding as long as its frame"))?;
        let length = bytes.len() - before - after;
        let Some(key) = self.streams.find(head.stream) else {
            self.credit_connection(flow);
            return self.data_on_no_stream(head);
        };
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        if stream.peer_reset {
            self.credit_connection(flow);
            return self.closed_by_peer(head.stream);
        }
        if stream.failed.is_some() || stream.remote_closed || stream.released {
            let ours = stream.failed.is_some() || !stream.remote_closed;
            self.credit_connection(flow);
            return match ours {
                true => Ok(()),
                false => self.misused(key, ErrorCode::STREAM_CLOSED, "DATA after the end"),
            };
        }
        if flow > stream.receive_window {
            self.credit_connection(flow);
            return self.misused(key, ErrorCode::FLOW_CONTROL_ERROR, "its window is exceeded");
        }
        stream.receive_window -= flow;
        // With nothing of it here, it held up nobody until now.
        stream.moves |= stream.uncredited == 0;
        stream.uncredited += flow;
        self.hold(flow);
        self.accepted.heard(self.estimate.probing);
        self.measure(flow);
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        let ends = head.has(frame::END_STREAM);
        let wrong = if self.role == Role::Client && !stream.headed {
            Some("DATA before the head")
        } else if !stream.takes(length as u64) {
            Some("more bytes than content-length says")
        } else {
            None
        };
        if let Some(why) = wrong {
            return self.misused(key, ErrorCode::PROTOCOL_ERROR, why);
        }
        if length > 0 {
            match body {
                Body::Small(bytes) => stream.keep_small(&bytes[before..before + length]),
                Body::Large(bytes) => stream.keep(bytes.slice(before..before + length)),
            }
        }
        if ends {
            self.ended(key, None)?;
        } else if length > 0 {
            stream.wake();
        }
        if flow as usize > length {
            self.credit(key, flow as usize - length);
        }
        if length == 0 && !ends { self.charge() } else { Ok(()) }
    }

    /// Refuses a frame on a stream that the peer itself has reset (RFC 9113 §5.1).
    fn closed_by_peer(&mut self, id: u32) -> Result<(), Fatal> {
        frame::put_reset(&mut self.out.tail, id, ErrorCode::STREAM_CLOSED);
        self.charge()
    }

    fn data_on_no_stream(&mut self, head: Head) -> Result<(), Fatal> {
        let id = head.stream;
        if self.is_idle(id) {
            return Err(protocol("DATA on an idle stream"));
        }
        if head.length > 0 && self.streams.was_reset(id) {
            return Ok(());
        }
        frame::put_reset(&mut self.out.tail, id, ErrorCode::STREAM_CLOSED);
        self.streams.note_reset(id);
        self.charge()
    }

    /// The peer has sent all of a stream.
    fn ended(&mut self, key: Key, trailers: Option<http::HeaderMap>) -> Result<(), Fatal> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        if stream.remaining.is_some_and(|left| left > 0) {
            return self.misused(key, ErrorCode::PROTOCOL_ERROR, ENDED_SHORT);
        }
        stream.remote_closed = true;
        stream.end = Some(trailers);
        stream.wake();
        if stream.released && stream.local_closed {
            self.settle(key);
        }
        Ok(())
    }

    fn headers(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream.is_multiple_of(2) {
            return Err(protocol("HEADERS on a stream the peer cannot open"));
        }
        let (before, after) =
            frame::padding(head, payload).ok_or(protocol("padding as long as its frame"))?;
        let mut fragment = &payload[before..payload.len() - after];
        if head.has(frame::PRIORITISED) {
            let (priority, rest) =
                fragment.split_at_checked(5).ok_or(size("HEADERS without its priority"))?;
            if frame::number(&priority[..4]).is_some_and(|on| on & frame::MOST == head.stream) {
                return Err(protocol("a stream depends on itself"));
            }
            fragment = rest;
        }
        let end_stream = head.has(frame::END_STREAM);
        if head.has(frame::END_HEADERS) {
            return self.block_done(head.stream, end_stream, fragment);
        }
        self.block = Some(Block {
            stream: head.stream,
            end_stream,
            bytes: BytesMut::from(fragment),
            deadline: Instant::now() + BLOCK_TIME,
        });
        Ok(())
    }

    fn continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        let limit = self.config.header_list as usize;
        let most = limit.saturating_add(limit / 2).saturating_add(BLOCK_GRACE);
        let Some(block) = &mut self.block else { return Ok(()) };
        block.bytes.extend_from_slice(payload);
        if block.bytes.len() > most {
            return Err(Fatal(ErrorCode::ENHANCE_YOUR_CALM, "a header block is far too long"));
        }
        if !head.has(frame::END_HEADERS) {
            return self.charge();
        }
        match self.block.take() {
            Some(block) => self.block_done(block.stream, block.end_stream, &block.bytes),
            None => Ok(()),
        }
    }

    fn block_done(&mut self, id: u32, end_stream: bool, block: &[u8]) -> Result<(), Fatal> {
        let limit = self.config.header_list as usize;
        let mut fields = Fields::at_most(self.config.fields);
        let whole = self.decoder.decode(block, limit, |field| fields.take(field)).map_err(|e| {
            tracing::debug!(error = %e, "HPACK");
            Fatal(ErrorCode::COMPRESSION_ERROR, "a header block cannot be decoded")
        })?;
        let whole = whole && !fields.are_too_many();
        match (self.streams.find(id), self.role) {
            (Some(key), _) => {
                let stream = self.streams.get(key);
                if stream.is_some_and(|s| s.peer_reset) {
                    return self.closed_by_peer(id);
                }
                if stream.is_some_and(|s| s.failed.is_some()) {
                    return Ok(());
                }
                if stream.is_some_and(|s| s.remote_closed) {
                    return self.misused(key, ErrorCode::STREAM_CLOSED, "HEADERS after the end");
                }
                if !whole {
                    let why = "its head is too large";
                    return self.misused(key, ErrorCode::ENHANCE_YOUR_CALM, why);
                }
                if stream.is_some_and(|s| s.headed) || self.role == Role::Server {
                    self.trailers(key, end_stream, fields)
                } else {
                    self.response(key, end_stream, fields)
                }
            }
            (None, Role::Server) => self.request(id, end_stream, fields, whole),
            (None, Role::Client) if self.is_idle(id) => Err(protocol("HEADERS on an idle stream")),
            (None, Role::Client) => Ok(()),
        }
    }

    fn request(
        &mut self,
        id: u32,
        end_stream: bool,
        fields: Fields,
        whole: bool,
    ) -> Result<(), Fatal> {
        if !self.is_idle(id) {
            if self.streams.was_reset(id) {
                return Ok(());
            }
            // A stream that was skipped is closed too, but named wrongly (RFC 9113 §5.1.1).
            return match self.streams.has_ended(id) {
                true => Err(Fatal(ErrorCode::STREAM_CLOSED, "HEADERS on a closed stream")),
                false => Err(protocol("a stream identifier below an earlier one")),
            };
        }
        self.highest = id;
        if !matches!(self.ending, Ending::No | Ending::Announced) {
            // It crossed our GOAWAY, which told that it is not looked at.
            self.streams.note_reset(id);
            return self.charge();
        }
        if self.is_full(self.config.streams) {
            return self.refuse(id, ErrorCode::REFUSED_STREAM);
        }
        if !whole {
            let key = self.add_stream(id);
            self.asked.push_back(Asked::TooLarge(key));
            return if end_stream { self.ended(key, None) } else { Ok(()) };
        }
        let request = match fields.into_request() {
            Ok(request) => request,
            Err(why) => {
                tracing::debug!(why, "malformed request");
                self.asked.push_back(Asked::Malformed);
                return self.refuse(id, ErrorCode::PROTOCOL_ERROR);
            }
        };
        if end_stream && request.content_length.is_some_and(|length| length > 0) {
            self.asked.push_back(Asked::Malformed);
            return self.refuse(id, ErrorCode::PROTOCOL_ERROR);
        }
        let key = self.add_stream(id);
        if let Some(stream) = self.streams.get_mut(key) {
            stream.remaining = request.content_length;
        }
        self.asked.push_back(Asked::Request(key, request));
        if end_stream { self.ended(key, None) } else { Ok(()) }
    }

    /// Resets a stream that never came to be.
    fn refuse(&mut self, id: u32, code: ErrorCode) -> Result<(), Fatal> {
        frame::put_reset(&mut self.out.tail, id, code);
        self.streams.note_reset(id);
        self.charge()
    }

    fn response(&mut self, key: Key, end_stream: bool, fields: Fields) -> Result<(), Fatal> {
        let response = match fields.into_response() {
            Ok(response) => response,
            Err(why) => return self.misused(key, ErrorCode::PROTOCOL_ERROR, why),
        };
        self.accepted.heard(self.estimate.probing);
        self.accept(key);
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        if response.status.is_informational() {
            if end_stream {
                return self.misused(key, ErrorCode::PROTOCOL_ERROR, "an interim response ends");
            }
            // They are no more than hints: what nobody has read yet may be forgotten.
            if stream.interims.len() >= MOST_INTERIMS {
                return self.charge();
            }
            stream.interims.push_back(response);
            stream.wake();
            return Ok(());
        }
        let bodiless = stream.bodiless
            || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        stream.remaining = if bodiless { Some(0) } else { response.content_length };
        if end_stream && stream.remaining.is_some_and(|left| left > 0) {
            return self.misused(key, ErrorCode::PROTOCOL_ERROR, ENDED_SHORT);
        }
        stream.headed = true;
        stream.response = Some(response);
        stream.wake();
        if end_stream { self.ended(key, None) } else { Ok(()) }
    }

    fn trailers(&mut self, key: Key, end_stream: bool, fields: Fields) -> Result<(), Fatal> {
        if !end_stream {
            return self.misused(key, ErrorCode::PROTOCOL_ERROR, "trailers that do not end");
        }
        match fields.into_trailers() {
            Ok(trailers) => self.ended(key, Some(trailers).filter(|t| !t.is_empty())),
            Err(why) => self.misused(key, ErrorCode::PROTOCOL_ERROR, why),
        }
    }

    /// Priorities are not followed (RFC 9113 §5.3.2).
    fn priority(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream == 0 {
            return Err(protocol("PRIORITY on stream 0"));
        }
        if payload.len() != 5 {
            return match self.streams.find(head.stream) {
                Some(key) => self.misused(key, ErrorCode::FRAME_SIZE_ERROR, "PRIORITY"),
                None => Err(size("PRIORITY is not 5 bytes")),
            };
        }
        Ok(())
    }

    fn reset_by_peer(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        let code = frame::number(payload).ok_or(size("RST_STREAM is not 4 bytes"))?;
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(protocol("RST_STREAM on an idle stream"));
        }
        let Some(key) = self.streams.find(head.stream) else { return Ok(()) };
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        stream.peer_reset = true;
        let early = !stream.local_closed;
        let failure = match ErrorCode(code) {
            ErrorCode::REFUSED_STREAM => StreamError::Refused,
            code => StreamError::Reset(code),
        };
        self.fail(key, failure);
        if early && self.role == Role::Server { self.charge() } else { Ok(()) }
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 {
            return Err(protocol("SETTINGS on a stream"));
        }
        if head.has(frame::ACK) {
            return match payload {
                [] => Ok(()),
                _ => Err(size("an acknowledgement of SETTINGS with content")),
            };
        }
        let before = i64::from(self.peer.window);
        let first = !self.peer.told;
        self.peer.apply(payload, self.role)?;
        let more = i64::from(self.peer.window) - before;
        frame::put_head(&mut self.out.tail, 0, frame::SETTINGS, frame::ACK, 0);
        if more != 0 {
            for key in self.streams.keys() {
                let Some(stream) = self.streams.get_mut(key) else { continue };
                stream.window += more;
                if stream.window > i64::from(frame::MOST) {
                    return Err(Fatal(ErrorCode::FLOW_CONTROL_ERROR, "a window is too large"));
                }
                self.window_grew(key);
            }
        }
        if first { Ok(()) } else { self.charge() }
    }

    fn window_grew(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if !stream.pending.is_empty() {
            self.push(key);
        } else if stream.window > 0 && std::mem::take(&mut stream.wants_room) {
            stream.wake();
        }
    }

    fn ping(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 {
            return Err(protocol("PING on a stream"));
        }
        let opaque: [u8; 8] = payload.try_into().map_err(|_| size("PING is not 8 bytes"))?;
        if head.has(frame::ACK) {
            match opaque {
                FAREWELL => self.left(),
                PROBE => self.measured(),
                opaque => self.heard_back(opaque),
            }
            return Ok(());
        }
        frame::put_ping(&mut self.out.tail, true, opaque);
        self.charge()
    }

    fn goaway(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 {
            return Err(protocol("GOAWAY on a stream"));
        }
        let (last, rest) = payload.split_at_checked(4).ok_or(size("GOAWAY is too short"))?;
        let code = rest.get(..4).and_then(frame::number).ok_or(size("GOAWAY is too short"))?;
        if code != 0 {
            tracing::debug!(code = %ErrorCode(code), "the HTTP/2 peer goes away");
        }
        self.peer_leaves(frame::number(last).unwrap_or(0) & frame::MOST);
        self.charge()
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        let more = frame::number(payload).ok_or(size("WINDOW_UPDATE is not 4 bytes"))?;
        let more = i64::from(more & frame::MOST);
        if head.stream == 0 {
            self.send_window += more;
            self.send_blocked = None;
            return match self.send_window {
                _ if more == 0 => Err(protocol("WINDOW_UPDATE of 0")),
                window if window > i64::from(frame::MOST) => {
                    Err(Fatal(ErrorCode::FLOW_CONTROL_ERROR, "the window is too large"))
                }
                _ => Ok(()),
            };
        }
        let Some(key) = self.streams.find(head.stream) else {
            return match self.is_idle(head.stream) {
                true => Err(protocol("WINDOW_UPDATE on an idle stream")),
                false => Ok(()),
            };
        };
        let Some(stream) = self.streams.get_mut(key).filter(|s| s.failed.is_none()) else {
            return Ok(());
        };
        stream.window += more;
        if more == 0 {
            return self.misused(key, ErrorCode::PROTOCOL_ERROR, "WINDOW_UPDATE of 0");
        }
        if stream.window > i64::from(frame::MOST) {
            return self.misused(key, ErrorCode::FLOW_CONTROL_ERROR, "its window is too large");
        }
        self.accept(key);
        self.window_grew(key);
        Ok(())
    }
}

impl StreamState {
    /// Takes so many bytes off the declared length. False when it was less.
    fn takes(&mut self, length: u64) -> bool {
        match &mut self.remaining {
            None => true,
            Some(left) => match left.checked_sub(length) {
                Some(rest) => {
                    *left = rest;
                    true
                }
                None => false,
            },
        }
    }

    fn keep_small(&mut self, bytes: &[u8]) {
        if self.chunks.is_empty() && self.joined.is_empty() {
            self.chunks.push_back(Bytes::copy_from_slice(bytes));
        } else {
            self.joined.extend_from_slice(bytes);
        }
    }

    fn keep(&mut self, bytes: Bytes) {
        // Small ones that wait must not hold the large buffers they came in.
        if bytes.len() < JOINED {
            return self.keep_small(&bytes);
        }
        self.flush_joined();
        self.chunks.push_back(bytes);
    }

    fn flush_joined(&mut self) {
        if !self.joined.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.joined).freeze());
        }
    }

    /// The next bytes of the body that came.
    pub(super) fn next_chunk(&mut self) -> Option<Bytes> {
        if self.chunks.is_empty() {
            self.flush_joined();
        }
        self.chunks.pop_front()
    }

    /// Whether bytes of the body wait.
    pub(super) fn has_chunk(&self) -> bool {
        !self.chunks.is_empty() || !self.joined.is_empty()
    }
}
