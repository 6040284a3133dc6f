//! Frames as they stand on the wire (RFC 9113 §4.1).

use bytes::{BufMut, BytesMut};

use super::error::ErrorCode;

/// What a client sends before its first frame (RFC 9113 §3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's head.
pub(super) const HEAD: usize = 9;
/// The largest window, and the highest stream identifier.
pub(super) const MOST: u32 = 0x7fff_ffff;

pub(super) const DATA: u8 = 0x0;
pub(super) const HEADERS: u8 = 0x1;
pub(super) const PRIORITY: u8 = 0x2;
pub(super) const RST_STREAM: u8 = 0x3;
pub(super) const SETTINGS: u8 = 0x4;
pub(super) const PUSH_PROMISE: u8 = 0x5;
pub(super) const PING: u8 = 0x6;
pub(super) const GOAWAY: u8 = 0x7;
pub(super) const WINDOW_UPDATE: u8 = 0x8;
pub(super) const CONTINUATION: u8 = 0x9;

/// Flags; which a frame may carry depends on its kind.
pub(super) const ACK: u8 = 0x1;
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITISED: u8 = 0x20;

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    /// Reads one; `None` when there are too few bytes.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, d, e, f, g] = bytes.first_chunk::<HEAD>()?;
        Some(Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([d, e, f, g]) & MOST,
        })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Writes a frame's head. `length` fits 24 bits: callers keep below the peer's frame size.
pub(super) fn put_head(out: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    out.put_slice(&[a, b, c, kind, flags, d, e, f, g]);
}

pub(super) fn put_reset(out: &mut BytesMut, stream: u32, code: ErrorCode) {
    put_head(out, 4, RST_STREAM, 0, stream);
    out.put_u32(code.0);
}

pub(super) fn put_window(out: &mut BytesMut, stream: u32, bytes: u32) {
    put_head(out, 4, WINDOW_UPDATE, 0, stream);
    out.put_u32(bytes);
}

pub(super) fn put_ping(out: &mut BytesMut, ack: bool, opaque: [u8; 8]) {
    put_head(out, 8, PING, if ack { ACK } else { 0 }, 0);
    out.put_slice(&opaque);
}

pub(super) fn put_goaway(out: &mut BytesMut, last: u32, code: ErrorCode, text: &str) {
    put_head(out, 8 + text.len(), GOAWAY, 0, 0);
    out.put_u32(last);
    out.put_u32(code.0);
    out.put_slice(text.as_bytes());
}

/// The 32-bit number a payload consists of.
pub(super) fn number(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_be_bytes)
}

/// How much of a padded payload is padding: `(before, after)` the content (RFC 9113 §6.1).
/// `None` when the padding is not shorter than the payload.
pub(super) fn padding(head: Head, payload: &[u8]) -> Option<(usize, usize)> {
    if !head.has(PADDED) {
        return Some((0, 0));
    }
    let after = usize::from(*payload.first()?);
    (after < payload.len()).then_some((1, after))
}
