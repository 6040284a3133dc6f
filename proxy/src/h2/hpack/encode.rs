//! The encoder. It refers to the static table only, and writes text as it is: a block costs a few
//! bytes more and no state at all.

use bytes::{BufMut, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

/// The encoder of one connection: all it remembers is whether it said that it keeps no table.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    begun: bool,
}

impl Encoder {
    /// Begins a block. The first sets the table size to 0, below which no peer can lower it later
    /// (RFC 7541 §4.2).
    pub(crate) fn begin(&mut self, out: &mut BytesMut) {
        if !self.begun {
            self.begun = true;
            out.put_u8(0x20);
        }
    }
}

/// Writes `:method`.
pub(crate) fn method(out: &mut BytesMut, method: &Method) {
    match *method {
        Method::GET => indexed(out, 2),
        Method::POST => indexed(out, 3),
        _ => named(out, 2, method.as_str()),
    }
}

/// Writes `:scheme`.
pub(crate) fn scheme(out: &mut BytesMut, https: bool) {
    indexed(out, if https { 7 } else { 6 });
}

/// Writes `:authority`.
pub(crate) fn authority(out: &mut BytesMut, authority: &str) {
    named(out, 1, authority);
}

/// Writes `:path`, which is not empty.
pub(crate) fn path(out: &mut BytesMut, path: &str) {
    if path == "/" {
        indexed(out, 4);
    } else {
        named(out, 4, path);
    }
}

/// Writes `:status`.
pub(crate) fn status(out: &mut BytesMut, status: StatusCode) {
    match status.as_u16() {
        200 => indexed(out, 8),
        204 => indexed(out, 9),
        206 => indexed(out, 10),
        304 => indexed(out, 11),
        400 => indexed(out, 12),
        404 => indexed(out, 13),
        500 => indexed(out, 14),
        _ => named(out, 8, status.as_str()),
    }
}

/// Writes a regular field or a trailer. Who passes it on may not index it either if it is
/// sensitive (RFC 7541 §7.1.3).
pub(crate) fn field(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    let sensitive = value.is_sensitive()
        || matches!(
            *name,
            header::AUTHORIZATION
                | header::COOKIE
                | header::PROXY_AUTHORIZATION
                | header::SET_COOKIE
        );
    let kind = if sensitive { NEVER_INDEXED } else { 0 };
    out.reserve(name.as_str().len() + value.len() + MAX_INTEGERS);
    match static_index(name) {
        Some(index) => integer(out, kind, 4, index.into()),
        None => {
            out.put_u8(kind);
            string(out, name.as_str().as_bytes());
        }
    }
    string(out, value.as_bytes());
}

const NEVER_INDEXED: u8 = 0x10;

/// What a field takes beside its text, at most.
const MAX_INTEGERS: usize = 16;

fn indexed(out: &mut BytesMut, index: u8) {
    out.put_u8(0x80 | index);
}

/// A literal whose name has an index below 15.
fn named(out: &mut BytesMut, name: u8, value: &str) {
    out.put_u8(name);
    string(out, value.as_bytes());
}

fn string(out: &mut BytesMut, text: &[u8]) {
    integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

/// RFC 7541 §5.1: `value` in the last `prefix` bits of a byte that begins with `kind`, and more.
fn integer(out: &mut BytesMut, kind: u8, prefix: u32, value: usize) {
    let most = u8::MAX >> (8 - prefix);
    match u8::try_from(value) {
        Ok(value) if value < most => out.put_u8(kind | value),
        _ => {
            out.put_u8(kind | most);
            let mut rest = value - usize::from(most);
            while rest >= 0x80 {
                out.put_u8(0x80 | (rest & 0x7f) as u8);
                rest >>= 7;
            }
            out.put_u8(rest as u8);
        }
    }
}

/// The first index of a name in the static table.
fn static_index(name: &HeaderName) -> Option<u8> {
    Some(match *name {
        header::ACCEPT_CHARSET => 15,
        header::ACCEPT_ENCODING => 16,
        header::ACCEPT_LANGUAGE => 17,
        header::ACCEPT_RANGES => 18,
        header::ACCEPT => 19,
        header::ACCESS_CONTROL_ALLOW_ORIGIN => 20,
        header::AGE => 21,
        header::ALLOW => 22,
        header::AUTHORIZATION => 23,
        header::CACHE_CONTROL => 24,
        header::CONTENT_DISPOSITION => 25,
        header::CONTENT_ENCODING => 26,
        header::CONTENT_LANGUAGE => 27,
        header::CONTENT_LENGTH => 28,
        header::CONTENT_LOCATION => 29,
        header::CONTENT_RANGE => 30,
        header::CONTENT_TYPE => 31,
        header::COOKIE => 32,
        header::DATE => 33,
        header::ETAG => 34,
        header::EXPECT => 35,
        header::EXPIRES => 36,
        header::FROM => 37,
        header::HOST => 38,
        header::IF_MATCH => 39,
        header::IF_MODIFIED_SINCE => 40,
        header::IF_NONE_MATCH => 41,
        header::IF_RANGE => 42,
        header::IF_UNMODIFIED_SINCE => 43,
        header::LAST_MODIFIED => 44,
        header::LINK => 45,
        header::LOCATION => 46,
        header::MAX_FORWARDS => 47,
        header::PROXY_AUTHENTICATE => 48,
        header::PROXY_AUTHORIZATION => 49,
        header::RANGE => 50,
        header::REFERER => 51,
        header::REFRESH => 52,
        header::RETRY_AFTER => 53,
        header::SERVER => 54,
        header::SET_COOKIE => 55,
        header::STRICT_TRANSPORT_SECURITY => 56,
        header::TRANSFER_ENCODING => 57,
        header::USER_AGENT => 58,
        header::VARY => 59,
        header::VIA => 60,
        header::WWW_AUTHENTICATE => 61,
        _ => return None,
    })
}
