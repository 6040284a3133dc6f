//! From what stood on the wire to a request or response that may be sent on:
//! validity, the host, and fields that belong to one connection only.

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode, header,
    uri::{Authority, PathAndQuery},
};

use super::{
    Peer,
    h1::{Framing, RequestFrame, ResponseFrame},
    message::{Length, RequestHead, ResponseHead},
    reply::Reply,
};
use crate::{router::path, upstream::connect::Wire};

/// A request as HTTP/1.1 delivered it.
pub(super) fn from_h1(frame: RequestFrame, peer: &Peer) -> Result<RequestHead, Reply> {
    let RequestFrame { method, uri, http10, mut fields, framing } = frame;
    if method == Method::CONNECT {
        return Err(Reply::CONNECT);
    }
    let parts = uri.into_parts();
    let host = fields.host.take();
    // RFC 9112 §3.2: exactly one Host in HTTP/1.1, also beside an absolute target, which wins (§3.2.2).
    let authority = match (parts.authority, host) {
        (_, None) if !http10 => return Err(Reply::bad_request("a Host header is required")),
        (Some(authority), Some(host)) => {
            authority_of(host)?;
            authority
        }
        (Some(authority), None) => authority,
        (None, Some(host)) => authority_of(host)?,
        (None, None) => Authority::try_from(peer.local.to_string())
            .map_err(|_| Reply::bad_request("the request names no host"))?,
    };
    if authority.as_str().contains('@') {
        return Err(Reply::bad_request("the host contains user information"));
    }
    if !has_valid_port(&authority) {
        return Err(Reply::bad_request("the port is not a number"));
    }
    let target = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let target = target_of(target, &method)?;
    if !count_forwards(&method, &mut fields.map) {
        return Err(Reply::MAX_FORWARDS);
    }
    let upgrade = fields
        .upgrade
        .filter(|u| fields.options.upgrade && !u.as_bytes().eq_ignore_ascii_case(b"h2c"));
    Ok(RequestHead {
        received: Wire::Http1,
        method,
        authority,
        target,
        headers: fields.map,
        length: match framing {
            Framing::Empty => Length::None,
            Framing::Length(bytes) => Length::Known(bytes),
            Framing::Chunked | Framing::UntilClose => Length::Unknown,
        },
        te_trailers: fields.te_trailers,
        upgrade,
        expects_continue: fields.expects_continue && !http10,
    })
}

fn authority_of(host: Bytes) -> Result<Authority, Reply> {
    let authority = Authority::from_maybe_shared(host);
    authority.ok().filter(has_valid_port).ok_or(Reply::bad_request("the Host is not valid"))
}

/// `uri-host [ ":" port ]`, and a port is digits (RFC 3986 §3.2.3).
fn has_valid_port(authority: &Authority) -> bool {
    let text = authority.as_str();
    let after_host = match text.rfind(']') {
        Some(end) => &text[end + 1..],
        None => text.find(':').map_or("", |at| &text[at..]),
    };
    match after_host.strip_prefix(':') {
        None => after_host.is_empty(),
        Some(port) => port.is_empty() || port.parse::<u16>().is_ok_and(|_| !port.starts_with('+')),
    }
}

/// Counts `Max-Forwards` down (RFC 9110 §7.6.2). False when the request may go no further.
fn count_forwards(method: &Method, headers: &mut HeaderMap) -> bool {
    if method != Method::OPTIONS && method != Method::TRACE {
        return true;
    }
    let Some(left) = headers.get(header::MAX_FORWARDS).and_then(digits) else { return true };
    headers.insert(header::MAX_FORWARDS, left.saturating_sub(1).into());
    left > 0
}

/// Checks and normalises the path.
fn target_of(target: PathAndQuery, method: &Method) -> Result<PathAndQuery, Reply> {
    let path = target.path();
    if path == "*" {
        let allowed = method == Method::OPTIONS && target.query().is_none();
        return if allowed {
            Ok(target)
        } else {
            Err(Reply::bad_request("`*` is for OPTIONS only"))
        };
    }
    if !path.starts_with('/') {
        return Err(Reply::bad_request("the path does not begin with a slash"));
    }
    match path::normalise(path).map_err(|bad| Reply::bad_request(bad.0))? {
        std::borrow::Cow::Borrowed(_) => Ok(target),
        std::borrow::Cow::Owned(path) => with_path(&target, &path),
    }
}

/// `target` with another path and the same query.
pub(super) fn with_path(target: &PathAndQuery, path: &str) -> Result<PathAndQuery, Reply> {
    let bad = |_| Reply::bad_request("the path is not valid");
    match target.query() {
        None => PathAndQuery::try_from(path).map_err(bad),
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")).map_err(bad),
    }
}

/// Why an HTTP/2 request is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Malformed: the stream is reset (RFC 9113 §8.1.1).
    Reset,
    Reply(Reply),
}

/// A request as HTTP/2 delivered it. The `h2` crate has refused upper-case names,
/// connection-specific fields, `TE` other than `trailers`, and wrong pseudo-headers.
pub(super) fn from_h2(parts: http::request::Parts, end: bool) -> Result<RequestHead, Refusal> {
    let http::request::Parts { method, uri, mut headers, .. } = parts;
    let uri = uri.into_parts();
    let found = Found::look(&headers).ok_or(Refusal::Reset)?;
    let hosts = found.hosts;
    if method == Method::CONNECT {
        return Err(if uri.authority.is_some() {
            Refusal::Reply(Reply::CONNECT)
        } else {
            Refusal::Reset
        });
    }
    let host = if hosts == 0 { None } else { headers.remove(header::HOST) };
    let authority = match (uri.authority, host) {
        (Some(authority), None) => authority,
        // RFC 9113 §8.3.1: they must not differ.
        (Some(authority), Some(host)) => {
            let same = authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes());
            if hosts > 1 || !same {
                return Err(Refusal::Reset);
            }
            authority
        }
        (None, Some(host)) if hosts == 1 => Authority::try_from(host.as_bytes())
            .map_err(|_| Refusal::Reply(Reply::bad_request("the Host is not valid")))?,
        (None, Some(_)) => return Err(Refusal::Reset),
        (None, None) => {
            return Err(Refusal::Reply(Reply::bad_request("the request names no host")));
        }
    };
    if authority.as_str().contains('@') || !has_valid_port(&authority) {
        return Err(Refusal::Reset);
    }
    let target = uri.path_and_query.ok_or(Refusal::Reset)?;
    let target = target_of(target, &method).map_err(Refusal::Reply)?;
    if !count_forwards(&method, &mut headers) {
        return Err(Refusal::Reply(Reply::MAX_FORWARDS));
    }
    let te_trailers = found.te && headers.remove(header::TE).is_some();
    let expects_continue = found.expect
        && headers
            .remove(header::EXPECT)
            .is_some_and(|e| e.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    Ok(RequestHead {
        received: Wire::Http2,
        method,
        authority,
        target,
        headers,
        length: match found.length {
            _ if end => Length::None,
            Some(bytes) => Length::Known(bytes),
            None => Length::Unknown,
        },
        te_trailers,
        upgrade: None,
        expects_continue,
    })
}

/// What one look at all fields finds.
#[derive(Default)]
struct Found {
    hosts: usize,
    length: Option<u64>,
    te: bool,
    expect: bool,
}

impl Found {
    /// `None` when a length is malformed or given twice.
    fn look(headers: &HeaderMap) -> Option<Self> {
        let mut found = Self::default();
        for (name, value) in headers {
            match *name {
                header::HOST => found.hosts += 1,
                header::TE => found.te = true,
                header::EXPECT => found.expect = true,
                header::CONTENT_LENGTH if found.length.is_some() => return None,
                header::CONTENT_LENGTH => found.length = Some(digits(value)?),
                _ => {}
            }
        }
        Some(found)
    }
}

fn digits(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?;
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// The one `Content-Length`, if there is any.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, ()> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(());
    }
    digits(value).map(Some).ok_or(())
}

/// A final response as HTTP/1.1 delivered it.
pub(super) fn response_from_h1(frame: ResponseFrame) -> ResponseHead {
    let ResponseFrame { status, mut fields, framing, .. } = frame;
    if status == StatusCode::NO_CONTENT {
        fields.map.remove(header::CONTENT_LENGTH);
    }
    let length = match framing {
        Framing::Empty => Length::None,
        Framing::Length(bytes) => Length::Known(bytes),
        Framing::Chunked | Framing::UntilClose => Length::Unknown,
    };
    ResponseHead { status, headers: fields.map, length }
}

/// A final response as HTTP/2 delivered it; `None` when its length is malformed.
pub(super) fn response_from_h2(
    parts: http::response::Parts,
    method: &Method,
    end: bool,
) -> Option<ResponseHead> {
    let http::response::Parts { status, headers, .. } = parts;
    let declared = content_length(&headers).ok()?;
    let bodiless = method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    let length = match declared {
        _ if end || bodiless => Length::None,
        Some(bytes) => Length::Known(bytes),
        None => Length::Unknown,
    };
    Some(ResponseHead { status, headers, length })
}

/// Removes from trailers what only a head may say (RFC 9110 §6.5.1).
pub(super) fn strip_from_trailers(trailers: &mut HeaderMap) {
    for name in [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::HOST,
        header::CONNECTION,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::AUTHORIZATION,
        header::COOKIE,
        header::SET_COOKIE,
    ] {
        trailers.remove(name);
    }
}

/// HTTP/1 has one `Cookie` line; HTTP/2 may send its crumbs apart (RFC 9113 §8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let mut joined = BytesMut::new();
    for crumb in headers.get_all(header::COOKIE) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(joined.freeze()) {
        headers.insert(header::COOKIE, value);
    }
}
