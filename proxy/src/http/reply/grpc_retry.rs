//! How a gRPC client is told when to come again: `grpc-retry-pushback-ms` (gRFC A6), which
//! libraries obey, and `google.rpc.RetryInfo` in `grpc-status-details-bin`, which programs read.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::http::base64;

const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// Adds both.
pub(super) fn advise(headers: &mut HeaderMap, status: u32, text: &str, seconds: u32) {
    headers.insert(PUSHBACK, (u64::from(seconds) * 1000).into());
    // Without padding, as gRPC writes binary metadata.
    let details = base64::encode(&status_details(status.into(), text, seconds));
    if let Ok(details) = HeaderValue::from_str(details.trim_end_matches('=')) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Written out by hand: an `Any` of 49 bytes, its type of 40, and a delay of 300 s.
    #[test]
    fn the_details_are_a_status_with_a_retry_delay() {
        let mut expected = b"\x08\x08\x12\x04full\x1a\x31\x0a\x28".to_vec();
        expected.extend_from_slice(RETRY_INFO.as_bytes());
        expected.extend_from_slice(b"\x12\x05\x0a\x03\x08\xac\x02");
        assert_eq!(status_details(8, "full", 300), expected);
        let mut headers = HeaderMap::new();
        advise(&mut headers, 8, "full", 3);
        assert_eq!(headers[PUSHBACK], "3000");
        let details = base64::decode(headers[DETAILS].as_bytes()).unwrap();
        assert_eq!(details, status_details(8, "full", 3));
        assert!(!headers[DETAILS].as_bytes().ends_with(b"="));
    }
}
