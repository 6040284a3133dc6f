use bytes::{BufMut, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::{Decoder, Encoder, Field, HpackError, encode};

mod huffman;
mod random;
mod rfc;

/// `field` as a line of text; what is never indexed begins with `!`.
fn line(field: &Field) -> String {
    match field {
        Field::Method(method) => format!(":method: {method}"),
        Field::Scheme(scheme) => format!(":scheme: {}", scheme.escape_ascii()),
        Field::Authority(authority) => format!(":authority: {authority}"),
        Field::Path(path) => format!(":path: {path}"),
        Field::Status(status) => format!(":status: {}", status.as_str()),
        Field::Protocol(protocol) => format!(":protocol: {}", protocol.escape_ascii()),
        Field::Header(name, value) => {
            let mark = if value.is_sensitive() { "!" } else { "" };
            format!("{mark}{name}: {}", value.as_bytes().escape_ascii())
        }
        Field::Malformed(_) => "malformed".to_owned(),
    }
}

/// The lines of `block`, and whether they are all.
fn decode(
    decoder: &mut Decoder,
    block: &[u8],
    limit: usize,
) -> Result<(Vec<String>, bool), HpackError> {
    let mut lines = Vec::new();
    let whole = decoder.decode(block, limit, |field| lines.push(line(&field)))?;
    Ok((lines, whole))
}

fn lines(decoder: &mut Decoder, block: &[u8]) -> Vec<String> {
    let (lines, whole) = decode(decoder, block, usize::MAX).unwrap();
    assert!(whole);
    lines
}

const PLAIN: u8 = 0x00;
const NEVER: u8 = 0x10;
const ADD: u8 = 0x40;

fn integer(block: &mut Vec<u8>, kind: u8, prefix: u32, value: usize) {
    let most = (1 << prefix) - 1;
    if value < most {
        return block.push(kind | value as u8);
    }
    block.push(kind | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

fn string(block: &mut Vec<u8>, text: &[u8]) {
    integer(block, 0, 7, text.len());
    block.extend(text);
}

/// A literal with a literal name.
fn literal(kind: u8, name: &str, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut block = vec![kind];
    string(&mut block, name.as_bytes());
    string(&mut block, value.as_ref());
    block
}

/// A literal whose name has an index.
fn named(kind: u8, name: usize, value: &str) -> Vec<u8> {
    let mut block = Vec::new();
    integer(&mut block, kind, if kind == ADD { 6 } else { 4 }, name);
    string(&mut block, value.as_bytes());
    block
}

#[test]
fn each_field_is_checked_by_itself() {
    let long_path = format!("/{}", "a".repeat(70_000));
    for (name, value, good) in CHECKS.iter().copied().chain([(":path", &*long_path, false)]) {
        let shown = format!("{name}: {}", value.as_bytes().escape_ascii());
        let expected = if good { shown.clone() } else { "malformed".to_owned() };
        for kind in [PLAIN, ADD] {
            let decoder = &mut Decoder::new(4096);
            assert_eq!(lines(decoder, &literal(kind, name, value)), [expected.as_str()], "{shown}");
        }
    }
}

/// Names and values, and whether they are well-formed.
const CHECKS: &[(&str, &str, bool)] = &[
    (":method", "GET", true),
    (":method", "PURGE", true),
    (":method", "", false),
    (":method", "G T", false),
    (":scheme", "https", true),
    (":scheme", "coap+tcp", true),
    (":scheme", "", false),
    (":scheme", "1http", false),
    (":scheme", "ht tp", false),
    (":authority", "example.com:80", true),
    (":authority", "[::1]:80", true),
    (":authority", "", false),
    (":authority", "user@example.com", false),
    (":authority", "example.com/", false),
    (":authority", "exa mple.com", false),
    (":path", "/", true),
    (":path", "*", true),
    (":path", "/a?b=c", true),
    (":path", "", false),
    (":path", "a", false),
    (":path", "?a", false),
    (":path", "*a", false),
    (":path", "/a#b", false),
    (":path", "/?a#b", false),
    (":path", "/a b", false),
    (":status", "200", true),
    (":status", "999", true),
    (":status", "", false),
    (":status", "99", false),
    (":status", "099", false),
    (":status", "2000", false),
    (":status", "2x0", false),
    (":protocol", "websocket", true),
    (":protocol", "", false),
    (":protocol", "a b", false),
    (":unknown", "a", false),
    (":", "a", false),
    (":Method", "GET", false),
    ("x-a", "", true),
    ("x-a", "a b\tc \u{e9}", true),
    ("x-a", " a", false),
    ("x-a", "a ", false),
    ("x-a", "\ta", false),
    ("x-a", "a\t", false),
    ("x-a", " ", false),
    ("x-a", "a\0b", false),
    ("x-a", "a\rb", false),
    ("x-a", "a\nb", false),
    ("X-a", "a", false),
    ("Accept", "a", false),
    ("", "a", false),
    ("a b", "a", false),
    ("a\"b", "a", false),
    ("a:b", "a", false),
    ("\u{e9}", "a", false),
    ("te", "trailers", true),
    ("te", "Trailers", true),
    ("te", "gzip", false),
    ("te", "trailers, gzip", false),
    ("connection", "close", false),
    ("keep-alive", "1", false),
    ("proxy-connection", "close", false),
    ("transfer-encoding", "chunked", false),
    ("upgrade", "websocket", false),
];

#[test]
fn a_malformed_field_keeps_its_place_and_its_name_in_the_table() {
    let decoder = &mut Decoder::new(4096);
    let block = [literal(ADD, "te", "gzip"), literal(ADD, "X-Bad", "1"), literal(ADD, "x-a", "1")];
    assert_eq!(lines(decoder, &block.concat()), ["malformed", "malformed", "x-a: 1"]);
    assert_eq!(lines(decoder, &[0xbe, 0xbf, 0xc0]), ["x-a: 1", "malformed", "malformed"]);
    assert_eq!(lines(decoder, &named(PLAIN, 64, "trailers")), ["te: trailers"]);
    assert_eq!(lines(decoder, &named(PLAIN, 63, "2")), ["malformed"]);
    // Each takes exactly its own size: 32 and the text.
    let sizes = [32 + 6, 32 + 6, 32 + 4];
    let mut size = Vec::new();
    integer(&mut size, 0x20, 5, sizes.iter().sum());
    assert_eq!(lines(decoder, &[size.as_slice(), &[0xc0]].concat()), ["malformed"]);
    size.clear();
    integer(&mut size, 0x20, 5, sizes.iter().sum::<usize>() - 1);
    assert_eq!(decode(decoder, &[size.as_slice(), &[0xc0]].concat(), 99), Err(HpackError::Index));
}

#[test]
fn broken_blocks_are_connection_errors() {
    use HpackError::{Huffman, Index, Integer, TableSize, Truncated};
    for (block, expected) in [
        (&[0x80][..], Index),
        (&[0xbe], Index),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0x0f], Integer),
        (&[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00], Integer),
        (&[0xff, 0x80, 0xff, 0xff, 0xff, 0x0f], Index),
        (&[0xff, 0x80, 0x80], Truncated),
        (&[0xff], Truncated),
        (&[0x7f, 0x00, 0x00], Index),
        (&[0x40], Truncated),
        (&[0x00, 0x01], Truncated),
        (&[0x00, 0x01, b'a'], Truncated),
        (&[0x00, 0x01, b'a', 0x02, b'b'], Truncated),
        (&[0x00, 0x01, b'a', 0xff, 0xff, 0xff, 0xff, 0x0f], Truncated),
        (&[0x82, 0x20], TableSize),
        (&[0x3f, 0xe2, 0x1f], TableSize),
        (&[0x20, 0x3f, 0xe2, 0x1f], TableSize),
        // `a` is 00011: padded with zeros, and with eleven ones.
        (&[0x00, 0x81, 0x18, 0x00], Huffman),
        (&[0x00, 0x82, 0x1f, 0xff, 0x00], Huffman),
        // Only padding, a whole byte of it, and end-of-string.
        (&[0x00, 0x81, 0xff, 0x00], Huffman),
        (&[0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x00], Huffman),
        (&[0x00, 0x88, 0xff, 0xff, 0xff, 0xfc, 0x18, 0x18, 0x18, 0x18, 0x00], Huffman),
    ] {
        let result = decode(&mut Decoder::new(4096), block, usize::MAX);
        assert_eq!(result, Err(expected), "{block:02x?}");
    }
}

#[test]
fn the_table_changes_size_at_the_start_of_a_block_only_up_to_what_was_announced() {
    let decoder = &mut Decoder::new(4096);
    lines(decoder, &[literal(ADD, "a", "1"), literal(ADD, "b", "2")].concat());
    // 4096, then 34: one entry is left.
    assert_eq!(lines(decoder, &[0x3f, 0xe1, 0x1f, 0x3f, 0x03, 0xbe]), ["b: 2"]);
    assert_eq!(decode(decoder, &[0xbf], 99), Err(HpackError::Index));
    // An entry of 34 replaces the other, a larger one empties the table.
    assert_eq!(lines(decoder, &literal(ADD, "c", "3")), ["c: 3"]);
    assert_eq!(lines(decoder, &[0xbe]), ["c: 3"]);
    assert_eq!(lines(decoder, &literal(ADD, "c", "33")), ["c: 33"]);
    assert_eq!(decode(decoder, &[0xbe], 99), Err(HpackError::Index));
    // No table at all.
    let decoder = &mut Decoder::new(0);
    assert_eq!(lines(decoder, &[&[0x20][..], &literal(ADD, "c", "3")].concat()), ["c: 3"]);
    assert_eq!(decode(decoder, &[0xbe], 99), Err(HpackError::Index));
    assert_eq!(decode(decoder, &[0x21], 99), Err(HpackError::TableSize));
    // A name may come from the entry that makes place for its own.
    let decoder = &mut Decoder::new(40);
    lines(decoder, &literal(ADD, "x-name", "1"));
    assert_eq!(lines(decoder, &named(ADD, 62, "2")), ["x-name: 2"]);
    assert_eq!(lines(decoder, &[0xbe]), ["x-name: 2"]);
}

#[test]
fn beyond_the_list_limit_only_the_table_is_kept() {
    let block =
        [literal(ADD, "a", "1"), literal(ADD, "b", "2"), vec![0xbf], literal(PLAIN, "c", "3")]
            .concat();
    for limit in 0..=4 * 34 + 1 {
        let decoder = &mut Decoder::new(4096);
        let (listed, whole) = decode(decoder, &block, limit).unwrap();
        assert_eq!(listed, ["a: 1", "b: 2", "a: 1", "c: 3"][..(limit / 34).min(4)]);
        assert_eq!(whole, limit >= 4 * 34);
        assert_eq!(lines(decoder, &[0xbf, 0xbe]), ["a: 1", "b: 2"]);
    }
    // Once a field was left out, a smaller one is too.
    let block = [literal(PLAIN, "a", "1".repeat(99)), literal(PLAIN, "b", "2")].concat();
    assert_eq!(decode(&mut Decoder::new(4096), &block, 99), Ok((vec![], false)));
}

#[test]
fn what_was_never_indexed_stays_so() {
    let decoder = &mut Decoder::new(4096);
    let block =
        [literal(NEVER, "x-key", "1"), literal(NEVER, ":path", "/a"), named(NEVER, 58, "b")];
    assert_eq!(lines(decoder, &block.concat()), ["!x-key: 1", ":path: /a", "!user-agent: b"]);
    for (name, sensitive, first) in [
        ("x-key", false, 0x00),
        ("x-key", true, 0x10),
        ("user-agent", false, 0x0f),
        ("user-agent", true, 0x1f),
        ("authorization", false, 0x1f),
        ("cookie", false, 0x1f),
        ("set-cookie", false, 0x1f),
        ("proxy-authorization", false, 0x1f),
    ] {
        let mut value = HeaderValue::from_static("1");
        value.set_sensitive(sensitive);
        let mut out = BytesMut::new();
        encode::field(&mut out, &HeaderName::from_static(name), &value);
        assert_eq!(out[0], first, "{name}");
        let mark = if first & 0x10 == 0 { "" } else { "!" };
        assert_eq!(lines(decoder, &out), [format!("{mark}{name}: 1")]);
    }
}

#[test]
fn the_encoder_uses_the_static_table() {
    let mut out = BytesMut::new();
    let mut encoder = Encoder::default();
    encoder.begin(&mut out);
    encode::method(&mut out, &Method::GET);
    encode::method(&mut out, &Method::POST);
    encode::scheme(&mut out, false);
    encode::scheme(&mut out, true);
    encode::path(&mut out, "/");
    let statuses = [200, 204, 206, 304, 400, 404, 500];
    for status in statuses {
        encode::status(&mut out, StatusCode::from_u16(status).unwrap());
    }
    encoder.begin(&mut out);
    let exact = [0x20, 0x82, 0x83, 0x86, 0x87, 0x84, 0x88, 0x89, 0x8a, 0x8b, 0x8c, 0x8d, 0x8e];
    assert_eq!(out[..], exact);
    out.clear();
    encode::method(&mut out, &Method::DELETE);
    encode::authority(&mut out, "a");
    encode::path(&mut out, "/a");
    encode::status(&mut out, StatusCode::IM_A_TEAPOT);
    assert_eq!(out[..], *b"\x02\x06DELETE\x01\x01a\x04\x02/a\x08\x03418");
}

#[test]
fn every_static_name_is_written_as_its_first_index() {
    for index in 15..=61 {
        let mut block = BytesMut::new();
        block.put_slice(&named(PLAIN, index, ""));
        let mut same = BytesMut::new();
        let result = Decoder::new(0).decode(&block, usize::MAX, |field| match field {
            Field::Header(name, mut value) => {
                value.set_sensitive(false);
                encode::field(&mut same, &name, &value);
            }
            other => assert!(index == 57 && matches!(other, Field::Malformed(_)), "{other:?}"),
        });
        assert_eq!(result, Ok(true));
        same.first_mut().into_iter().for_each(|first| *first &= !NEVER);
        assert!(index == 57 || same == block, "{index}");
    }
}
