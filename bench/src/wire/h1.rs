//! HTTP/1.1 message heads, found and read in place.

use std::io;

use crate::wire::unexpected;

/// What the bench needs to know of a response's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseHead {
    /// Bytes of the head, the empty line included.
    pub length: usize,
    /// The status code.
    pub status: u16,
    /// The declared length of the body.
    pub content_length: u64,
}

/// What the bench needs to know of a request's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHead<'a> {
    /// Bytes of the head, the empty line included.
    pub length: usize,
    /// The request target.
    pub target: &'a str,
    /// The declared length of the body, 0 if none is declared.
    pub content_length: u64,
}

/// Reads a response's head; `None` while it is incomplete.
///
/// # Errors
/// If it is no HTTP/1.1 response with a `Content-Length`.
pub fn response(bytes: &[u8]) -> io::Result<Option<ResponseHead>> {
    let Some(length) = head_length(bytes) else { return Ok(None) };
    let head = &bytes[..length];
    let status = head
        .strip_prefix(b"HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(number)
        .ok_or_else(|| unexpected("the response does not start with an HTTP/1.1 status line"))?;
    let content_length = content_length(head)?
        .ok_or_else(|| unexpected("the response has no Content-Length, its origin's had"))?;
    let status = u16::try_from(status).unwrap_or(0);
    Ok(Some(ResponseHead { length, status, content_length }))
}

/// Reads a request's head; `None` while it is incomplete.
///
/// # Errors
/// If the request line is malformed or the body is framed other than by `Content-Length`.
pub fn request(bytes: &[u8]) -> io::Result<Option<RequestHead<'_>>> {
    let Some(length) = head_length(bytes) else { return Ok(None) };
    let head = &bytes[..length];
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let target = std::str::from_utf8(line)
        .ok()
        .and_then(|line| line.split(' ').nth(1))
        .ok_or_else(|| unexpected("malformed request line"))?;
    if has_header(head, b"transfer-encoding") {
        return Err(unexpected("the request came chunked, its client declared a Content-Length"));
    }
    Ok(Some(RequestHead { length, target, content_length: content_length(head)?.unwrap_or(0) }))
}

fn head_length(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|b| *b == b'\n') {
        let end = from + at + 1;
        if bytes[..end].ends_with(b"\r\n\r\n") {
            return Some(end);
        }
        from = end;
    }
    None
}

fn content_length(head: &[u8]) -> io::Result<Option<u64>> {
    let Some(value) = header(head, b"content-length") else { return Ok(None) };
    number(value).map(Some).ok_or_else(|| unexpected("Content-Length is no number"))
}

fn has_header(head: &[u8], name: &[u8]) -> bool {
    header(head, name).is_some()
}

/// The value of a header of a head, without the space around it; names in any case.
#[must_use]
pub fn header<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|b| *b == b'\n').find_map(|line| {
        let colon = name.len();
        let matches = line.get(colon) == Some(&b':') && line[..colon].eq_ignore_ascii_case(name);
        matches.then(|| line[colon + 1..].trim_ascii())
    })
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| {
        digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_read_in_any_case_of_its_names() {
        let bytes = b"HTTP/1.1 200 OK\r\nServer: x\r\nCONTENT-length: 1024 \r\n\r\nbody";
        let head = response(bytes).expect("valid").expect("complete");
        assert_eq!(
            head,
            ResponseHead { length: bytes.len() - 4, status: 200, content_length: 1024 }
        );
    }

    #[test]
    fn an_incomplete_head_waits() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        for cut in 0..bytes.len() {
            assert_eq!(response(&bytes[..cut]).expect("no error"), None, "cut at {cut}");
        }
    }

    #[test]
    fn foreign_framing_is_an_error() {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"[..],
            b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\n",
        ] {
            assert!(response(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
        assert!(request(b"POST /up HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn a_request_shows_target_and_length() {
        let bytes =
            b"POST /up HTTP/1.1\r\nhost: a\r\nx-content-length: 9\r\ncontent-length: 7\r\n\r\n";
        let head = request(bytes).expect("valid").expect("complete");
        assert_eq!((head.target, head.content_length), ("/up", 7));
        let head = request(b"GET / HTTP/1.1\r\n\r\n").expect("valid").expect("complete");
        assert_eq!((head.target, head.content_length), ("/", 0));
    }
}
