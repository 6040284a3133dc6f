//! From what stood on the wire to a request or response that may be sent on:
//! validity, the host, and fields that belong to one connection only.

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header,
    uri::{Authority, PathAndQuery},
};

use super::{
    Peer,
    h1::{Framing, RequestFrame, ResponseFrame},
    message::{Length, RequestHead, ResponseHead},
    reply::Reply,
};
use crate::{
    h2::{Request, Response},
    router::path,
    upstream::connect::Wire,
};

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

/// A request as HTTP/2 delivered it, well-formed; `end` when no body follows.
pub(super) fn from_h2(request: Request, end: bool) -> Result<RequestHead, Refusal> {
    let Request { method, host, mut headers, content_length, .. } = request;
    if method == Method::CONNECT {
        return Err(Refusal::Reply(Reply::CONNECT));
    }
    let authority = match (request.authority, host) {
        (Some(authority), None) => authority,
        // RFC 9113 §8.3.1: they must not differ.
        (Some(authority), Some(host)) => {
            if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) {
                return Err(Refusal::Reset);
            }
            authority
        }
        (None, Some(host)) => Authority::try_from(host.as_bytes())
            .map_err(|_| Refusal::Reply(Reply::bad_request("the Host is not valid")))?,
        (None, None) => {
            return Err(Refusal::Reply(Reply::bad_request("the request names no host")));
        }
    };
    if authority.as_str().contains('@') || !has_valid_port(&authority) {
        return Err(Refusal::Reset);
    }
    let target = request.path.ok_or(Refusal::Reset)?;
    let target = target_of(target, &method).map_err(Refusal::Reply)?;
    if !count_forwards(&method, &mut headers) {
        return Err(Refusal::Reply(Reply::MAX_FORWARDS));
    }
    Ok(RequestHead {
        received: Wire::Http2,
        method,
        authority,
        target,
        headers,
        length: match content_length {
            _ if end => Length::None,
            Some(bytes) => Length::Known(bytes),
            None => Length::Unknown,
        },
        te_trailers: request.te_trailers,
        upgrade: None,
        expects_continue: request.expects_continue,
    })
}

fn digits(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?;
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
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

/// A final response as HTTP/2 delivered it; `end` when no body follows.
pub(super) fn response_from_h2(response: Response, method: &Method, end: bool) -> ResponseHead {
    let Response { status, mut headers, content_length } = response;
    if status == StatusCode::NO_CONTENT {
        headers.remove(header::CONTENT_LENGTH);
    }
    let bodiless = method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    let length = match content_length {
        _ if end || bodiless => Length::None,
        Some(bytes) => Length::Known(bytes),
        None => Length::Unknown,
    };
    ResponseHead { status, headers, length }
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
        header::PROXY_AUTHORIZATION,
        header::WWW_AUTHENTICATE,
        header::PROXY_AUTHENTICATE,
        header::CACHE_CONTROL,
        header::EXPECT,
        header::MAX_FORWARDS,
        header::RANGE,
        header::CONTENT_RANGE,
        header::LOCATION,
        header::VIA,
        header::FORWARDED,
        HeaderName::from_static("x-forwarded-for"),
        HeaderName::from_static("x-forwarded-host"),
        HeaderName::from_static("x-forwarded-proto"),
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
