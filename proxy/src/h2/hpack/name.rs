//! Names of fields, and the one place where names and values are checked.

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, StatusCode, header,
    uri::{Authority, PathAndQuery},
};

use super::Field;

/// The name of a field line.
#[derive(Clone, Debug)]
pub(super) enum Name {
    Method,
    Scheme,
    Authority,
    Path,
    Status,
    Protocol,
    Header(HeaderName),
    /// What no field may be called: why, and the length it had.
    Bad(&'static str, usize),
}

pub(super) const CONNECTION_SPECIFIC: &str = "a field is connection-specific";

impl Name {
    pub(super) fn read(text: &[u8]) -> Self {
        match text.strip_prefix(b":") {
            Some(b"method") => return Self::Method,
            Some(b"scheme") => return Self::Scheme,
            Some(b"authority") => return Self::Authority,
            Some(b"path") => return Self::Path,
            Some(b"status") => return Self::Status,
            Some(b"protocol") => return Self::Protocol,
            Some(_) => return Self::Bad("a pseudo-header is unknown", text.len()),
            None => {}
        }
        match HeaderName::from_lowercase(text) {
            Ok(name) if is_connection_specific(&name) => Self::Bad(CONNECTION_SPECIFIC, text.len()),
            // The one byte that `http` takes but RFC 9110 §5.6.2 does not.
            Ok(_) if text.contains(&b'"') => Self::Bad(NOT_A_TOKEN, text.len()),
            Ok(name) => Self::Header(name),
            Err(_) => Self::Bad(NOT_A_TOKEN, text.len()),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Method => ":method".len(),
            Self::Scheme => ":scheme".len(),
            Self::Authority => ":authority".len(),
            Self::Path => ":path".len(),
            Self::Status => ":status".len(),
            Self::Protocol => ":protocol".len(),
            Self::Header(name) => name.as_str().len(),
            Self::Bad(_, length) => *length,
        }
    }

    /// The field of this name and value. A malformed one comes with its name, which may come again
    /// by index, with a better value.
    ///
    /// Each value gets its own allocation: slices of a buffer per block were slower, and one field
    /// in the table would have kept a whole block.
    pub(super) fn field(self, value: &[u8]) -> (Field, Option<Box<Self>>) {
        let (name, why) = match self {
            Self::Header(name) => match check(&name, value) {
                Ok(value) => return (Field::Header(name, value), None),
                Err(why) => (Self::Header(name), why),
            },
            Self::Bad(why, _) => (self, why),
            pseudo => match pseudo.pseudo(value) {
                Ok(field) => return (field, None),
                Err(why) => (pseudo, why),
            },
        };
        (Field::Malformed(why), Some(Box::new(name)))
    }

    fn pseudo(&self, value: &[u8]) -> Result<Field, &'static str> {
        match self {
            Self::Method => Method::from_bytes(value).ok().map(Field::Method).ok_or("bad :method"),
            Self::Status => {
                StatusCode::from_bytes(value).ok().map(Field::Status).ok_or("bad :status")
            }
            Self::Scheme if value == b"https" => Ok(Field::Scheme(Bytes::from_static(b"https"))),
            Self::Scheme if value == b"http" => Ok(Field::Scheme(Bytes::from_static(b"http"))),
            Self::Scheme if is_scheme(value) => Ok(Field::Scheme(Bytes::copy_from_slice(value))),
            Self::Scheme => Err("bad :scheme"),
            Self::Protocol if is_token(value) => Ok(Field::Protocol(Bytes::copy_from_slice(value))),
            Self::Protocol => Err("bad :protocol"),
            Self::Authority => authority(value).ok_or("bad :authority"),
            Self::Path => path(value).ok_or("bad :path"),
            Self::Header(_) | Self::Bad(..) => Err("not a pseudo-header"),
        }
    }
}

const NOT_A_TOKEN: &str = "a field name is not a lower-case token";

/// RFC 9113 §8.2.1 and §8.2.2.
fn check(name: &HeaderName, value: &[u8]) -> Result<HeaderValue, &'static str> {
    if matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t']) {
        return Err("a field value begins or ends with a space");
    }
    if *name == header::TE && !value.eq_ignore_ascii_case(b"trailers") {
        return Err("te says more than trailers");
    }
    HeaderValue::from_bytes(value).map_err(|_| "a field value holds a control character")
}

/// RFC 9113 §8.2.2; `te` is checked with its value.
fn is_connection_specific(name: &HeaderName) -> bool {
    matches!(*name, header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// RFC 9113 §8.3.1 forbids userinfo.
fn authority(value: &[u8]) -> Option<Field> {
    if value.contains(&b'@') {
        return None;
    }
    Authority::from_maybe_shared(Bytes::copy_from_slice(value)).ok().map(Field::Authority)
}

/// RFC 9113 §8.3.1. The parser of URIs is more lenient: it cuts off a fragment and adds a slash.
fn path(value: &[u8]) -> Option<Field> {
    if !(value.starts_with(b"/") || value == b"*") || value.contains(&b'#') {
        return None;
    }
    PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(value)).ok().map(Field::Path)
}

/// RFC 3986 §3.1.
fn is_scheme(value: &[u8]) -> bool {
    value.first().is_some_and(u8::is_ascii_alphabetic)
        && value.iter().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b))
}

/// RFC 9110 §5.6.2.
fn is_token(value: &[u8]) -> bool {
    !value.is_empty()
        && value.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}
