//! HTTP/2 frames (RFC 9113 section 4) and fixed header blocks (RFC 7541).
//!
//! Header blocks are only ever written, never decoded: the first on a connection inserts its
//! fields into the peer's dynamic table, later ones refer to them, as any real encoder would do
//! with repeated headers. What comes back is judged by its shape; see [`is_status_200`].

/// The client's connection preface.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's header.
pub const FRAME_HEADER: usize = 9;
/// The connection's flow-control window before any update.
pub const DEFAULT_WINDOW: u32 = 65_535;
/// Size of the dynamic table that both sides assume until told otherwise.
pub const DEFAULT_TABLE: u32 = 4096;

/// `END_STREAM` on DATA and HEADERS.
pub const END_STREAM: u8 = 0x1;
/// `END_HEADERS` on HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 0x4;
/// `ACK` on SETTINGS and PING.
pub const ACK: u8 = 0x1;

/// Frame types by their code.
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0;
    /// HEADERS.
    pub const HEADERS: u8 = 1;
    /// `RST_STREAM`.
    pub const RST_STREAM: u8 = 3;
    /// SETTINGS.
    pub const SETTINGS: u8 = 4;
    /// PING.
    pub const PING: u8 = 6;
    /// GOAWAY.
    pub const GOAWAY: u8 = 7;
    /// `WINDOW_UPDATE`.
    pub const WINDOW_UPDATE: u8 = 8;
    /// CONTINUATION.
    pub const CONTINUATION: u8 = 9;
}

/// Identifiers of the settings the bench reads or sends.
pub mod setting {
    /// `SETTINGS_HEADER_TABLE_SIZE`.
    pub const HEADER_TABLE_SIZE: u16 = 1;
    /// `SETTINGS_MAX_CONCURRENT_STREAMS`.
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    /// `SETTINGS_INITIAL_WINDOW_SIZE`.
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
}

/// A frame within a receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The type's code, see [`kind`].
    pub kind: u8,
    /// The flags.
    pub flags: u8,
    /// The stream, 0 for the connection.
    pub stream: u32,
    /// Everything after the frame's header.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first whole frame of `bytes`.
    #[must_use]
    pub fn first_in(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.get(..FRAME_HEADER)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]) & 0x7fff_ffff;
        let payload = bytes.get(FRAME_HEADER..FRAME_HEADER + length)?;
        Some(Self { kind: header[3], flags: header[4], stream, payload })
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn length(&self) -> usize {
        FRAME_HEADER + self.payload.len()
    }

    /// Whether a flag is set.
    #[must_use]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The settings of a SETTINGS frame.
    pub fn settings(&self) -> impl Iterator<Item = (u16, u32)> + use<'a> {
        self.payload.chunks_exact(6).map(|s| {
            (u16::from_be_bytes([s[0], s[1]]), u32::from_be_bytes([s[2], s[3], s[4], s[5]]))
        })
    }

    /// The first four bytes as a number: the increment of a `WINDOW_UPDATE`, the code of a
    /// `RST_STREAM`.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }
}

/// Appends a frame's header.
pub fn put_header(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&[length[1], length[2], length[3], kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// Appends a frame.
pub fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    put_header(out, kind, flags, stream, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a SETTINGS frame.
pub fn put_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    put_header(out, kind::SETTINGS, 0, 0, settings.len() * 6);
    for (identifier, value) in settings {
        out.extend_from_slice(&identifier.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Appends a `WINDOW_UPDATE`.
pub fn put_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    put(out, kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes());
}

/// A header block that a connection sends again and again.
#[derive(Debug, Clone, Default)]
pub struct HeaderBlock {
    first: Vec<u8>,
    later: Vec<u8>,
    plain: Vec<u8>,
}

impl HeaderBlock {
    /// Starts a block with fields that the static table holds whole, by their index.
    #[must_use]
    pub fn new(static_indexes: &[u8]) -> Self {
        let indexed: Vec<u8> = static_indexes.iter().map(|index| 0x80 | index).collect();
        Self { first: indexed.clone(), later: indexed.clone(), plain: indexed }
    }

    /// Adds fields that go into the dynamic table with the block's first use. The names are given
    /// in full or, when non-zero, by their index in the static table.
    #[must_use]
    pub fn with(mut self, fields: &[(u8, &str, &str)]) -> Self {
        for (position, (name_index, name, value)) in fields.iter().enumerate() {
            // With incremental indexing: the field inserted last has index 62, the first the
            // highest one.
            put_literal(&mut self.first, 0x40, *name_index, name, value);
            put_literal(&mut self.plain, 0x00, *name_index, name, value);
            let index = 62 + fields.len() - 1 - position;
            self.later.push(0x80 | u8::try_from(index).unwrap_or(0x7f));
        }
        self
    }

    /// The bytes for the `nth` use (from 0) on a connection whose peer allows `table` bytes.
    ///
    /// A peer that wants a smaller table than the default gets every field in full each time.
    #[must_use]
    pub fn encoded(&self, nth: u64, table: u32) -> &[u8] {
        match (table >= DEFAULT_TABLE, nth) {
            (false, _) => &self.plain,
            (true, 0) => &self.first,
            (true, _) => &self.later,
        }
    }
}

/// Whether a header block starts with `:status: 200`, as every encoder writes it: by its index in
/// the static table, after any change of the table's size.
#[must_use]
pub fn is_status_200(block: &[u8]) -> bool {
    let status = block.iter().find(|byte| **byte & 0xe0 != 0x20);
    status == Some(&0x88)
}

/// Names shorter than 16 and values shorter than 127 bytes, which is all the bench writes.
fn put_literal(out: &mut Vec<u8>, representation: u8, name_index: u8, name: &str, value: &str) {
    debug_assert!(name_index < 15 || representation == 0x40 && name_index < 63);
    out.push(representation | name_index);
    let strings: &[&str] = if name_index == 0 { &[name, value] } else { &[value] };
    for string in strings {
        debug_assert!(string.len() < 127);
        out.push(u8::try_from(string.len()).unwrap_or(0));
        out.extend_from_slice(string.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_went() {
        let mut out = Vec::new();
        put(&mut out, kind::DATA, END_STREAM, 7, b"abc");
        put_settings(&mut out, &[(setting::INITIAL_WINDOW_SIZE, 1 << 20), (9, 8)]);
        put_window_update(&mut out, 0, 4096);
        let data = Frame::first_in(&out).expect("whole");
        assert_eq!((data.kind, data.stream, data.payload), (kind::DATA, 7, &b"abc"[..]));
        assert!(data.has(END_STREAM) && !data.has(END_HEADERS));
        let rest = &out[data.length()..];
        let settings = Frame::first_in(rest).expect("whole");
        assert_eq!(settings.settings().collect::<Vec<_>>(), [(4, 1 << 20), (9, 8)]);
        let update = Frame::first_in(&rest[settings.length()..]).expect("whole");
        assert_eq!(update.number(), 4096);
        for cut in 0..12 {
            assert_eq!(Frame::first_in(&out[..cut]), None);
        }
    }

    /// The h2 crate's own decoder, as a server, reads the blocks a connection sends in turn.
    #[tokio::test]
    async fn a_real_decoder_reads_first_later_and_plain_blocks() {
        let block = HeaderBlock::new(&[2, 6]).with(&[
            (4, "", "/some/path"),
            (1, "", "bench.example"),
            (0, "x-one", "first value"),
            (0, "x-two", "second value"),
        ]);
        let mut bytes = PREFACE.to_vec();
        put_settings(&mut bytes, &[]);
        for (stream, encoded) in
            [block.encoded(0, 4096), block.encoded(1, 4096), block.encoded(2, 0)]
                .into_iter()
                .enumerate()
        {
            let stream = u32::try_from(stream).expect("small") * 2 + 1;
            put(&mut bytes, kind::HEADERS, END_HEADERS | END_STREAM, stream, encoded);
        }
        let (mut near, far) = tokio::io::duplex(1 << 16);
        tokio::io::AsyncWriteExt::write_all(&mut near, &bytes).await.expect("room");
        let mut server = h2::server::handshake(far).await.expect("handshake");
        for _ in 0..3 {
            let (request, _) = server.accept().await.expect("a stream").expect("valid headers");
            assert_eq!(request.method(), "GET");
            assert_eq!(request.uri(), "http://bench.example/some/path");
            assert_eq!(request.headers()["x-one"], "first value");
            assert_eq!(request.headers()["x-two"], "second value");
        }
    }

    #[test]
    fn only_an_indexed_200_counts() {
        assert!(is_status_200(&[0x88, 0x5f]));
        assert!(is_status_200(&[0x20, 0x88]));
        assert!(!is_status_200(&[0x8d]));
        assert!(!is_status_200(&[]));
    }
}
