//! How a gRPC client is told when to come again: `grpc-retry-pushback-ms` (gRFC A6), which
//! libraries obey, and `google.rpc.RetryInfo` in `grpc-status-details-bin`, which programs read.

use http::{HeaderMap, HeaderName, HeaderValue};

const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// Adds both.
pub(super) fn advise(headers: &mut HeaderMap, status: &str, text: &str, seconds: u32) {
    headers.insert(PUSHBACK, (u64::from(seconds) * 1000).into());
    let details = base64(&status_details(status.parse().unwrap_or(2), text, seconds));
    if let Ok(details) = HeaderValue::from_str(&details) {
        headers.insert(DETAILS, details);
    }
}

/// `google.rpc.Status { code, message, details: [RetryInfo { retry_delay }] }`.
fn status_details(code: u64, text: &str, seconds: u32) -> Vec<u8> {
    let mut delay = Vec::new();
    number(1, seconds.into(), &mut delay);
    let mut info = Vec::new();
    bytes(1, &delay, &mut info);
    let mut any = Vec::new();
    bytes(1, RETRY_INFO.as_bytes(), &mut any);
    bytes(2, &info, &mut any);
    let mut status = Vec::new();
    number(1, code, &mut status);
    bytes(2, text.as_bytes(), &mut status);
    bytes(3, &any, &mut status);
    status
}

/// A varint field.
fn number(field: u8, value: u64, out: &mut Vec<u8>) {
    out.push(field << 3);
    varint(value, out);
}

/// A length-delimited field.
fn bytes(field: u8, value: &[u8], out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Without padding, as gRPC writes binary metadata.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0, |word, at| word << 8 | usize::from(*chunk.get(at).unwrap_or(&0)));
        for at in 0..=chunk.len() {
            text.push(ALPHABET[word >> (18 - 6 * at) & 63].into());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648_without_padding() {
        for (plain, expected) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), expected);
        }
    }

    /// Written out by hand: an `Any` of 49 bytes, its type of 40, and a delay of 300 s.
    #[test]
    fn the_details_are_a_status_with_a_retry_delay() {
        let mut expected = b"\x08\x08\x12\x04full\x1a\x31\x0a\x28".to_vec();
        expected.extend_from_slice(RETRY_INFO.as_bytes());
        expected.extend_from_slice(b"\x12\x05\x0a\x03\x08\xac\x02");
        assert_eq!(status_details(8, "full", 300), expected);
        let mut headers = HeaderMap::new();
        advise(&mut headers, "8", "full", 3);
        assert_eq!(headers[PUSHBACK], "3000");
        assert_eq!(headers[DETAILS], base64(&status_details(8, "full", 3)));
    }
}
