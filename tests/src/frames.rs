//! HTTP/2 spoken frame by frame (RFC 9113), so that a test can say what no
//! library would let it.
//!
//! Field sections are written as literals; of those received only the status
//! is read. Flow control is the test's business.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{net::TcpListener, task::JoinHandle};

use crate::{End, Script, Then, Wire};

/// DATA.
pub const DATA: u8 = 0;
/// HEADERS.
pub const HEADERS: u8 = 1;
/// PRIORITY.
pub const PRIORITY: u8 = 2;
/// RST_STREAM.
pub const RST_STREAM: u8 = 3;
/// SETTINGS.
pub const SETTINGS: u8 = 4;
/// PUSH_PROMISE.
pub const PUSH_PROMISE: u8 = 5;
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
/// PADDED of DATA and HEADERS.
pub const PADDED: u8 = 8;

/// Error code: no error.
pub const NO_ERROR: u32 = 0;
/// Error code: against the protocol.
pub const PROTOCOL_ERROR: u32 = 1;
/// Error code: the peer failed.
pub const INTERNAL_ERROR: u32 = 2;
/// Error code: more than the window.
pub const FLOW_CONTROL_ERROR: u32 = 3;
/// Error code: a frame on a stream that is closed.
pub const STREAM_CLOSED: u32 = 5;
/// Error code: a frame of a wrong length.
pub const FRAME_SIZE_ERROR: u32 = 6;
/// Error code: not processed.
pub const REFUSED_STREAM: u32 = 7;
/// Error code: no longer wanted.
pub const CANCEL: u32 = 8;
/// Error code: HPACK that cannot be read.
pub const COMPRESSION_ERROR: u32 = 9;

/// Setting: bytes of the compression table.
pub const HEADER_TABLE_SIZE: u16 = 1;
/// Setting: whether PUSH_PROMISE is welcome.
pub const ENABLE_PUSH: u16 = 2;
/// Setting: streams at once.
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
/// Setting: the window of a new stream.
pub const INITIAL_WINDOW_SIZE: u16 = 4;
/// Setting: the longest payload.
pub const MAX_FRAME_SIZE: u16 = 5;
/// Setting: the largest field section.
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

/// A list of fields.
pub type Fields = &'static [(&'static str, &'static str)];
/// `GET http://a/x`.
pub const GET: Fields =
    &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/x")];
/// `POST http://a/x`.
pub const POST: Fields =
    &[(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/x")];

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

    /// The values of SETTINGS; of one that is there twice, the last.
    pub fn settings(&self) -> BTreeMap<u16, u32> {
        let values = self.payload.chunks_exact(6).map(|s| {
            let value = u32::from_be_bytes([s[2], s[3], s[4], s[5]]);
            (u16::from_be_bytes([s[0], s[1]]), value)
        });
        values.collect()
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
            block.extend(integer(0, 7, text.chars().count()));
            // A character stands for a byte, so that tests can send any byte.
            block.extend(text.chars().map(|c| u8::try_from(u32::from(c)).expect("a byte")));
        }
    }
    block
}

/// An integer after a prefix of so many bits (RFC 7541 §5.1).
pub fn integer(pattern: u8, bits: u32, value: usize) -> Vec<u8> {
    let most = (1 << bits) - 1;
    let Some(mut rest) = value.checked_sub(most) else { return vec![pattern | value as u8] };
    let mut bytes = vec![pattern | most as u8];
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}

/// Whether a field section refers to the dynamic table; `None` when it is cut off.
pub fn refers_to_entries(mut block: &[u8]) -> Option<bool> {
    fn integer(block: &mut &[u8], bits: u32) -> Option<usize> {
        let (first, mut rest) = block.split_first()?;
        let most = (1_usize << bits) - 1;
        let mut value = usize::from(*first) & most;
        let mut shift = 0;
        while value >= most {
            let (byte, after) = rest.split_first()?;
            (value, rest) = (value + (usize::from(byte & 0x7f) << shift), after);
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        *block = rest;
        Some(value)
    }
    let mut refers = false;
    while let Some(first) = block.first() {
        let (bits, strings) = match first {
            0x80.. => (7, 0),
            0x40.. => (6, 1),
            0x20.. => (5, 0),
            _ => (4, 1),
        };
        let update = (0x20..0x40).contains(first);
        let index = integer(&mut block, bits)?;
        refers |= !update && index > 61;
        for _ in 0..strings + usize::from(strings == 1 && index == 0) {
            let length = integer(&mut block, 7)?;
            block = block.get(length..)?;
        }
    }
    Some(refers)
}

/// SETTINGS of one value.
pub fn setting(identifier: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, [&identifier.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

/// WINDOW_UPDATE.
pub fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, by.to_be_bytes())
}

/// RST_STREAM.
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, code.to_be_bytes())
}

/// GOAWAY.
pub fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, [last.to_be_bytes(), code.to_be_bytes()].concat())
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
        Self::connect_with(address, &frame(SETTINGS, 0, 0, [])).await
    }

    /// Connects as a client that begins with these frames.
    ///
    /// # Panics
    /// When nobody listens there.
    pub async fn connect_with(address: SocketAddr, settings: &[u8]) -> Self {
        let mut wire = Wire::connect(address).await;
        wire.send([PREFACE, settings].concat()).await;
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
            let next = self.any().await?;
            if !matches!(next.kind, SETTINGS | PING) {
                return Some(next);
            }
            self.acknowledge(&next).await;
        }
    }

    /// The next frame of any kind, or `None` at the end. Nothing is acknowledged.
    pub async fn any(&mut self) -> Option<Frame> {
        // On the heap: a buffer per wait would be more than a test's stack holds.
        let head = Box::pin(self.wire.up_to(9)).await;
        let [a, b, c, kind, flags, ref s @ ..] = head[..] else { return None };
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let stream = u32::from_be_bytes(s.try_into().ok()?) & 0x7fff_ffff;
        let payload = Box::pin(self.wire.up_to(length)).await;
        (payload.len() == length).then_some(Frame { kind, flags, stream, payload })
    }

    /// Acknowledges SETTINGS or PING; does nothing for any other frame.
    pub async fn acknowledge(&mut self, received: &Frame) {
        if matches!(received.kind, SETTINGS | PING) && received.flags & ACK == 0 {
            let echo = if received.kind == PING { received.payload.clone() } else { Vec::new() };
            self.wire.try_send(frame(received.kind, ACK, 0, echo)).await;
        }
    }

    /// Waits until the peer has read all that was sent; `false` when it is gone.
    pub async fn settled(&mut self) -> bool {
        self.wire.try_send(frame(PING, 0, 0, *b"settled?")).await;
        while let Some(next) = self.any().await {
            self.acknowledge(&next).await;
            if next.kind == PING && next.flags & ACK != 0 {
                return true;
            }
        }
        false
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

/// An origin of HTTP/2 that asks a function what to do with each frame it reads,
/// and keeps what it read. SETTINGS and PING are acknowledged before it asks.
#[derive(Debug)]
pub struct FrameOrigin {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<(usize, Frame)>>>,
    task: JoinHandle<()>,
}

impl FrameOrigin {
    /// Listens on a free port. Each connection begins with `settings`; `answer`
    /// hears the number of the connection, from 0, and the frame.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn start(
        settings: impl Into<Vec<u8>>,
        answer: impl Fn(usize, &Frame) -> Script + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (settings, answer) = (settings.into(), Arc::new(answer));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let task = tokio::spawn(async move {
            let mut connections = 0..;
            while let (Ok((stream, _)), Some(connection)) =
                (listener.accept().await, connections.next())
            {
                let (settings, answer, log) = (settings.clone(), answer.clone(), log.clone());
                tokio::spawn(async move {
                    let mut peer = Frames::accept(Wire::new(stream), &settings).await;
                    while let Some(next) = peer.any().await {
                        peer.acknowledge(&next).await;
                        let script = answer(connection, &next);
                        log.lock().unwrap_or_else(PoisonError::into_inner).push((connection, next));
                        if !script.bytes.is_empty() && !peer.wire.try_send(script.bytes).await {
                            return;
                        }
                        match script.then {
                            Then::Next => {}
                            Then::Close => return,
                            Then::Reset => return peer.wire.reset(),
                        }
                    }
                });
            }
        });
        Self { address, seen, task }
    }

    /// What was read since the last call: the number of the connection, and the frame.
    pub fn take(&self) -> Vec<(usize, Frame)> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for FrameOrigin {
    fn drop(&mut self) {
        self.task.abort();
    }
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
