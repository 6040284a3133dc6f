//! HTTP/2 spoken frame by frame (RFC 9113), so that a test can say what no
//! library would let it.
//!
//! Field sections are written as literals; of those received only the status
//! is read. Flow control is the test's business.

use std::net::SocketAddr;

use crate::{End, Wire};

/// DATA.
pub const DATA: u8 = 0;
/// HEADERS.
pub const HEADERS: u8 = 1;
/// RST_STREAM.
pub const RST_STREAM: u8 = 3;
/// SETTINGS.
pub const SETTINGS: u8 = 4;
/// PING.
pub const PING: u8 = 6;
/// GOAWAY.
pub const GOAWAY: u8 = 7;
/// WINDOW_UPDATE.
pub const WINDOW_UPDATE: u8 = 8;
/// CONTINUATION.
pub const CONTINUATION: u8 = 9;

/// ACK of SETTINGS and PING.
pub const ACK: u8 = 1;
/// END_STREAM of DATA and HEADERS.
pub const END_STREAM: u8 = 1;
/// END_HEADERS of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Type.
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// Stream, 0 for the connection.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// What a peer had to say about a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A response head with this status.
    Status(u16),
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with this code, not 0.
    GoAway(u32),
    /// The end of the connection.
    Closed,
}

impl Frame {
    /// The frame as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).expect("a short payload").to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// The error code of RST_STREAM or GOAWAY.
    ///
    /// # Panics
    /// When it is neither, or too short.
    pub fn code(&self) -> u32 {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            kind => panic!("a frame of type {kind} has no code"),
        };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }

    /// The status of a response head.
    ///
    /// # Panics
    /// When the field section does not begin with one.
    pub fn status(&self) -> u16 {
        let skip = self.payload.iter().take_while(|b| **b & 0xe0 == 0x20).count();
        status(&self.payload[skip..])
            .unwrap_or_else(|| panic!("no status in {:02x?}", self.payload))
    }
}

/// Any frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Vec<u8> {
    Frame { kind, flags, stream, payload: payload.into() }.encode()
}

/// HEADERS with a whole field section.
pub fn headers(flags: u8, stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, section(fields))
}

/// A field section of literals that are not indexed (RFC 7541 §6.2.2).
pub fn section(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            prefixed(&mut block, text.chars().count());
            // A character stands for a byte, so that tests can send any byte.
            block.extend(text.chars().map(|c| u8::try_from(u32::from(c)).expect("a byte")));
        }
    }
    block
}

/// SETTINGS of one value.
pub fn setting(identifier: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, [&identifier.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

/// WINDOW_UPDATE.
pub fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, by.to_be_bytes())
}

/// One end of an HTTP/2 connection.
#[derive(Debug)]
pub struct Frames {
    /// The connection below.
    pub wire: Wire,
}

impl Frames {
    /// Connects as a client and exchanges settings.
    ///
    /// # Panics
    /// When the peer does not.
    pub async fn connect(address: SocketAddr) -> Self {
        let mut wire = Wire::connect(address).await;
        wire.send([PREFACE, &frame(SETTINGS, 0, 0, [])].concat()).await;
        Self { wire }
    }

    /// Takes a connection as a server and sends settings.
    ///
    /// # Panics
    /// When the peer speaks no HTTP/2.
    pub async fn accept(mut wire: Wire, settings: &[u8]) -> Self {
        assert_eq!(wire.exactly(PREFACE.len()).await, PREFACE);
        wire.send(settings).await;
        Self { wire }
    }

    /// Sends bytes.
    ///
    /// # Panics
    /// When the peer is gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes).await;
    }

    /// The next frame, or `None` at the end. SETTINGS and PING are acknowledged on the way.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            let head = self.wire.up_to(9).await;
            let [a, b, c, kind, flags, ref s @ ..] = head[..] else { return None };
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            let stream = u32::from_be_bytes(s.try_into().ok()?) & 0x7fff_ffff;
            let payload = self.wire.up_to(length).await;
            if payload.len() < length {
                return None;
            }
            if matches!(kind, SETTINGS | PING) {
                if flags & ACK == 0 {
                    let echo = if kind == PING { payload } else { Vec::new() };
                    self.wire.try_send(frame(kind, ACK, 0, echo)).await;
                }
                continue;
            }
            return Some(Frame { kind, flags, stream, payload });
        }
    }

    /// The next frame of one of these types.
    ///
    /// # Panics
    /// When the connection ends before.
    pub async fn next_of(&mut self, kinds: &[u8]) -> Frame {
        loop {
            let frame =
                self.next().await.unwrap_or_else(|| panic!("the end, not a frame of {kinds:?}"));
            if kinds.contains(&frame.kind) {
                return frame;
            }
            // Said before the end, so that a failing test can tell why.
            if frame.kind == GOAWAY {
                println!("GOAWAY {}: {}", frame.code(), frame.payload[8..].escape_ascii());
            }
        }
    }

    /// What the peer says about a stream first.
    pub async fn verdict(&mut self, stream: u32) -> Verdict {
        while let Some(frame) = self.next().await {
            match frame.kind {
                HEADERS if frame.stream == stream => return Verdict::Status(frame.status()),
                RST_STREAM if frame.stream == stream => return Verdict::Reset(frame.code()),
                GOAWAY if frame.code() != 0 => return Verdict::GoAway(frame.code()),
                _ => {}
            }
        }
        Verdict::Closed
    }

    /// Waits for the end of the connection, whatever comes before.
    pub async fn ended(&mut self) -> End {
        while self.next().await.is_some() {}
        self.wire.rest().await.1
    }
}

fn prefixed(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else { return block.push(length as u8) };
    block.push(127);
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}

/// RFC 7541: `:status` from the static table, or a literal of that name.
fn status(block: &[u8]) -> Option<u16> {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    let (&first, rest) = block.split_first()?;
    if let 0x88..=0x8e = first {
        return INDEXED.get(usize::from(first - 0x88)).copied();
    }
    // Any of the indices 8 to 14 names it.
    let named = (0x48..=0x4e).contains(&first) || (0x08..=0x0e).contains(&first);
    let (&length, text) = rest.split_first().filter(|_| named)?;
    let text = text.get(..usize::from(length & 0x7f))?;
    if length & 0x80 == 0 {
        return std::str::from_utf8(text).ok()?.parse().ok();
    }
    // Huffman: 0 to 2 take five bits, 3 to 9 take six (0b011001 and on).
    let bits: Vec<u8> = text.iter().flat_map(|b| (0..8).rev().map(move |n| b >> n & 1)).collect();
    let (mut at, mut value) = (0, 0);
    for _ in 0..3 {
        let take =
            |n: usize| Some(bits.get(at..at + n)?.iter().fold(0u16, |v, b| v << 1 | u16::from(*b)));
        let (digit, width) = match take(5)? {
            digit @ 0..=2 => (digit, 5),
            _ => (take(6)?.checked_sub(0b01_1001)? + 3, 6),
        };
        (at, value) = (at + width, value * 10 + digit);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::{Frame, HEADERS, section, status};

    #[test]
    fn a_status_is_read_in_each_of_its_codings() {
        assert_eq!(status(&[0x88]), Some(200));
        assert_eq!(status(&[0x8e, 0x40]), Some(500));
        assert_eq!(status(&[0x48, 3, b'4', b'1', b'3']), Some(413));
        // RFC 7541 C.6.1: 302.
        assert_eq!(status(&[0x48, 0x82, 0x64, 0x02]), Some(302));
        assert_eq!(status(&[0x82]), None);
    }

    #[test]
    fn long_literals_take_more_than_a_byte_of_length() {
        let block = section(&[("a", &"b".repeat(300))]);
        assert_eq!(block[..5], [0, 1, b'a', 127, 173]);
        assert_eq!(block.len(), 3 + 3 + 300);
        let frame = Frame { kind: HEADERS, flags: 4, stream: 1, payload: block };
        assert_eq!(frame.encode()[..9], [0, 1, 50, 1, 4, 0, 0, 0, 1]);
    }
}
