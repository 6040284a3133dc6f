//! Conditions of a route.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, Method, header, uri::Authority};
use towpath_policies::model::{PathMatch, RouteMatch, ValueMatch};

/// What of a request routes can look at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) authority: &'a Authority,
    /// Normalised, without query.
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a HeaderMap,
}

impl<'a> Target<'a> {
    /// Host without port and final dot, in any case; brackets of IPv6 kept.
    pub(crate) fn host(&self) -> &'a str {
        let host = self.authority.host();
        host.strip_suffix('.').unwrap_or(host)
    }
}

#[derive(Debug)]
pub(crate) struct Matches {
    path: PathMatch,
    method: Option<Method>,
    headers: Box<[(HeaderName, ValueMatch)]>,
    query: Box<[(String, ValueMatch)]>,
    grpc: bool,
}

impl Matches {
    pub(crate) fn new(spec: &RouteMatch) -> Result<Self, String> {
        let name = |name: &str| {
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("`{name}` is no header name"))
        };
        let method = |m: &String| {
            Method::from_bytes(m.as_bytes()).map_err(|_| format!("`{m}` is no method"))
        };
        Ok(Self {
            path: spec.path.clone(),
            method: spec.method.as_ref().map(method).transpose()?,
            headers: spec
                .headers
                .iter()
                .map(|(n, value)| Ok((name(n)?, value.clone())))
                .collect::<Result<_, String>>()?,
            query: spec.query.clone().into(),
            grpc: spec.grpc,
        })
    }

    pub(crate) fn hold(&self, target: &Target<'_>, path: &str) -> bool {
        self.path_holds(path)
            && self.method.as_ref().is_none_or(|m| m == target.method)
            && (!self.grpc || is_grpc(target.headers))
            && self.headers.iter().all(|(name, value)| header_holds(target, name, value))
            && self.query.iter().all(|(name, value)| query_holds(target.query, name, value))
    }

    fn path_holds(&self, path: &str) -> bool {
        match &self.path {
            PathMatch::Exact(exact) => exact == path,
            PathMatch::Prefix(prefix) => prefix == "/" || after_prefix(path, prefix).is_some(),
            PathMatch::Regex(pattern) => pattern.is_match(path),
        }
    }
}

/// What follows `prefix` in `path`: empty, or begins with a slash.
pub(crate) fn after_prefix<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// Whether the content type is `application/grpc`, alone or with `+` or `;` after it.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|v| {
        v.as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

fn header_holds(target: &Target<'_>, name: &HeaderName, condition: &ValueMatch) -> bool {
    if name == header::HOST {
        return value_holds(condition, target.host().as_bytes());
    }
    let mut values = target.headers.get_all(name).iter();
    let Some(first) = values.next() else { return false };
    match values.next() {
        None => value_holds(condition, first.as_bytes()),
        // Several lines are one value joined by commas (RFC 9110 §5.3).
        Some(second) => {
            let mut joined = first.as_bytes().to_vec();
            for value in std::iter::once(second).chain(values) {
                joined.extend_from_slice(b",");
                joined.extend_from_slice(value.as_bytes());
            }
            value_holds(condition, &joined)
        }
    }
}

fn query_holds(query: Option<&str>, name: &str, condition: &ValueMatch) -> bool {
    let pairs = query.into_iter().flat_map(|q| q.split('&'));
    let found = pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| decode(key).as_ref() == name.as_bytes());
    found.is_some_and(|(_, value)| value_holds(condition, &decode(value)))
}

fn value_holds(condition: &ValueMatch, value: &[u8]) -> bool {
    match condition {
        ValueMatch::Exact(exact) => exact.as_bytes() == value,
        ValueMatch::Regex(pattern) => std::str::from_utf8(value).is_ok_and(|v| pattern.is_match(v)),
        ValueMatch::Present => true,
    }
}

/// Percent-decodes a query part; `+` is a space.
fn decode(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if memchr::memchr2(b'%', b'+', bytes).is_none() {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at += 3;
                continue;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    Cow::Owned(out)
}
