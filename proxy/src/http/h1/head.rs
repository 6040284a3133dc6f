//! Request and response heads, and the framing they announce (RFC 9112 §6.3).

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, Uri};

use super::{Fields, Framing};

/// Limits on a head.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Limits {
    pub(in crate::http) bytes: usize,
    pub(in crate::http) fields: usize,
}

/// A request's head as it stood on the wire.
#[derive(Debug)]
pub(in crate::http) struct RequestFrame {
    pub(in crate::http) method: Method,
    pub(in crate::http) uri: Uri,
    pub(in crate::http) http10: bool,
    pub(in crate::http) fields: Fields,
    pub(in crate::http) framing: Framing,
}

/// A response's head as it stood on the wire.
#[derive(Debug)]
pub(in crate::http) struct ResponseFrame {
    pub(in crate::http) status: StatusCode,
    pub(in crate::http) http10: bool,
    pub(in crate::http) fields: Fields,
    pub(in crate::http) framing: Framing,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::http) enum BadHead {
    /// Not HTTP/1, or ambiguous.
    #[error("{0}")]
    Malformed(&'static str),
    /// More bytes or fields than allowed.
    #[error("the head has too many bytes or fields")]
    TooLarge,
    /// A transfer coding other than `chunked`.
    #[error("the only transfer coding understood is chunked")]
    Coding,
    /// An expectation other than `100-continue`.
    #[error("the only expectation understood is 100-continue")]
    Expectation,
    /// Not HTTP/1.0 or HTTP/1.1.
    #[error("this is not HTTP/1.0 or HTTP/1.1")]
    Version,
}

type Slots<'h> = [MaybeUninit<httparse::Header<'h>>];

/// Parses a request head at the front of `buffer` and takes it out; `None` when it is not complete yet.
pub(in crate::http) fn request(
    buffer: &mut BytesMut,
    limits: Limits,
) -> Result<Option<RequestFrame>, BadHead> {
    // An empty line before a request is tolerated (RFC 9112 §2.2).
    while buffer.starts_with(b"\r\n") {
        drop(buffer.split_to(2));
    }
    let Some(head) = take_head(buffer, limits)? else { return Ok(None) };
    with_slots(limits, |slots| parse_request(&head, slots)).map(Some)
}

/// Parses a response head at the front of `buffer` and takes it out; `None` when it is not complete yet.
pub(in crate::http) fn response(
    buffer: &mut BytesMut,
    limits: Limits,
    method: &Method,
) -> Result<Option<ResponseFrame>, BadHead> {
    let Some(head) = take_head(buffer, limits)? else { return Ok(None) };
    with_slots(limits, |slots| parse_response(&head, slots, method)).map(Some)
}

fn take_head(buffer: &mut BytesMut, limits: Limits) -> Result<Option<Bytes>, BadHead> {
    match end_of_head(buffer)? {
        Some(end) if end <= limits.bytes => Ok(Some(buffer.split_to(end).freeze())),
        Some(_) => Err(BadHead::TooLarge),
        None if buffer.len() > limits.bytes => Err(BadHead::TooLarge),
        None => Ok(None),
    }
}

/// Where the head ends. Lines end with CRLF only: a bare LF or CR is where two
/// parsers may disagree about where a line, or the head, ends.
pub(super) fn end_of_head(buffer: &[u8]) -> Result<Option<usize>, BadHead> {
    let mut line = 0;
    for at in memchr::memchr_iter(b'\n', buffer) {
        if at == 0 || buffer[at - 1] != b'\r' {
            return Err(BadHead::Malformed("a line ends with a bare LF"));
        }
        if at - 1 == line && line > 0 {
            return Ok(Some(at + 1));
        }
        line = at + 1;
    }
    Ok(None)
}

fn with_slots<'h, T>(
    limits: Limits,
    parse: impl FnOnce(&mut Slots<'h>) -> Result<T, BadHead>,
) -> Result<T, BadHead> {
    if limits.fields <= FEW {
        parse(&mut [const { MaybeUninit::uninit() }; FEW][..limits.fields])
    } else {
        let mut slots: Vec<_> = (0..limits.fields).map(|_| MaybeUninit::uninit()).collect();
        parse(&mut slots)
    }
}

/// Up to so many fields are parsed without an allocation.
const FEW: usize = 128;

fn parse_request<'h>(head: &'h Bytes, slots: &mut Slots<'h>) -> Result<RequestFrame, BadHead> {
    let mut parsed = httparse::Request::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_request_with_uninit_headers(&mut parsed, head, slots)
        .map_err(of_parser)?;
    let (true, Some(method), Some(target), Some(version)) =
        (status.is_complete(), parsed.method, parsed.path, parsed.version)
    else {
        return Err(BadHead::Malformed("the head is incomplete"));
    };
    let method = Method::from_bytes(method.as_bytes())
        .map_err(|_| BadHead::Malformed("the method is not a token"))?;
    let uri = target_uri(head, target, &method)?;
    let fields = Fields::parse(head, parsed.headers)?;
    let http10 = version == 0;
    let framing = request_framing(&fields, http10)?;
    Ok(RequestFrame { method, uri, http10, fields, framing })
}

/// One of the four forms of RFC 9112 §3.2. The parser of URIs is more lenient than HTTP is: it
/// takes an authority for any method, cuts off a fragment, and lets a scheme begin with a digit.
fn target_uri(head: &Bytes, target: &str, method: &Method) -> Result<Uri, BadHead> {
    const BAD: BadHead = BadHead::Malformed("the request target is not a URI");
    if target.contains('#') {
        return Err(BadHead::Malformed("the request target has a fragment"));
    }
    let uri = Uri::from_maybe_shared(head.slice_ref(target.as_bytes())).map_err(|_| BAD)?;
    if target.starts_with('/') || target == "*" || method == Method::CONNECT {
        return Ok(uri);
    }
    let (scheme, rest) = target.split_once("://").ok_or(BAD)?;
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(BAD);
    }
    // §3.2.4 and §3.2.1: no path means `*` for OPTIONS, and `/` before a query.
    let path = match rest.find(['/', '?']) {
        None if method == Method::OPTIONS => "*".to_owned(),
        Some(at) if rest[at..].starts_with('?') => format!("/{}", &rest[at..]),
        _ => return Ok(uri),
    };
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(path.parse().map_err(|_| BAD)?);
    Uri::from_parts(parts).map_err(|_| BAD)
}

fn request_framing(fields: &Fields, http10: bool) -> Result<Framing, BadHead> {
    match (fields.chunked, fields.content_length) {
        (true, Some(_)) => {
            Err(BadHead::Malformed("both Transfer-Encoding and Content-Length are given"))
        }
        (true, None) if http10 => Err(BadHead::Malformed("Transfer-Encoding in HTTP/1.0")),
        (true, None) => Ok(Framing::Chunked),
        (false, Some(length)) => Ok(Framing::Length(length)),
        (false, None) => Ok(Framing::Empty),
    }
}

fn parse_response<'h>(
    head: &'h Bytes,
    slots: &mut Slots<'h>,
    method: &Method,
) -> Result<ResponseFrame, BadHead> {
    let mut parsed = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, head, slots)
        .map_err(of_parser)?;
    let (true, Some(code), Some(version)) = (status.is_complete(), parsed.code, parsed.version)
    else {
        return Err(BadHead::Malformed("the head is incomplete"));
    };
    let status =
        StatusCode::from_u16(code).map_err(|_| BadHead::Malformed("the status is no number"))?;
    let fields = Fields::parse(head, parsed.headers)?;
    let http10 = version == 0;
    let framing = response_framing(&fields, status, method)?;
    Ok(ResponseFrame { status, http10, fields, framing })
}

fn response_framing(
    fields: &Fields,
    status: StatusCode,
    method: &Method,
) -> Result<Framing, BadHead> {
    if status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || method == Method::HEAD
    {
        return Ok(Framing::Empty);
    }
    match (fields.chunked, fields.content_length) {
        (true, Some(_)) => {
            Err(BadHead::Malformed("both Transfer-Encoding and Content-Length are given"))
        }
        (true, None) => Ok(Framing::Chunked),
        (false, Some(length)) => Ok(Framing::Length(length)),
        (false, None) => Ok(Framing::UntilClose),
    }
}

fn of_parser(error: httparse::Error) -> BadHead {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => BadHead::TooLarge,
        Error::Version => BadHead::Version,
        Error::HeaderName => BadHead::Malformed("a header name is malformed"),
        Error::HeaderValue => BadHead::Malformed("a header value is malformed"),
        Error::Token => BadHead::Malformed("the request line is malformed"),
        Error::NewLine => BadHead::Malformed("a line end is malformed"),
        Error::Status => BadHead::Malformed("the status line is malformed"),
    }
}
