//! Header fields as they are read: end-to-end ones into a map, those of the
//! connection and the framing into what they mean (RFC 9110 §7.6.1, RFC 9112 §6).

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::BadHead;

/// All fields of a head.
#[derive(Debug, Default)]
pub(in crate::http) struct Fields {
    /// End-to-end fields; `Host` is not among them, `Content-Length` is.
    pub(in crate::http) map: HeaderMap,
    pub(in crate::http) host: Option<Bytes>,
    pub(in crate::http) options: ConnectionOptions,
    pub(in crate::http) content_length: Option<u64>,
    pub(in crate::http) chunked: bool,
    pub(in crate::http) te_trailers: bool,
    pub(in crate::http) upgrade: Option<HeaderValue>,
    pub(in crate::http) expects_continue: bool,
}

/// What `Connection` says.
#[derive(Debug, Default)]
pub(in crate::http) struct ConnectionOptions {
    pub(in crate::http) close: bool,
    pub(in crate::http) keep_alive: bool,
    pub(in crate::http) upgrade: bool,
    named: Vec<HeaderName>,
}

impl Fields {
    pub(super) fn parse(head: &Bytes, fields: &[httparse::Header<'_>]) -> Result<Self, BadHead> {
        let mut parsed =
            Self { map: HeaderMap::with_capacity(fields.len() + 4), ..Self::default() };
        for field in fields {
            let name = HeaderName::from_bytes(field.name.as_bytes())
                .map_err(|_| BadHead::Malformed("a header name is not a token"))?;
            // A view of the head's own bytes: nothing is copied.
            let raw = head.slice_ref(field.value);
            let value = HeaderValue::from_maybe_shared(raw.clone())
                .map_err(|_| BadHead::Malformed("a header value contains a control character"))?;
            parsed.take(name, value, raw)?;
        }
        for name in std::mem::take(&mut parsed.options.named) {
            parsed.map.remove(name);
        }
        Ok(parsed)
    }

    fn take(&mut self, name: HeaderName, value: HeaderValue, raw: Bytes) -> Result<(), BadHead> {
        match name {
            header::HOST => {
                if self.host.replace(raw).is_some() {
                    return Err(BadHead::Malformed("more than one Host"));
                }
            }
            header::CONTENT_LENGTH => {
                if self.content_length.is_some() {
                    return Err(BadHead::Malformed("more than one Content-Length"));
                }
                self.content_length = Some(digits(value.as_bytes())?);
                self.map.insert(name, value);
            }
            header::TRANSFER_ENCODING => {
                if self.chunked {
                    return Err(BadHead::Malformed("more than one Transfer-Encoding"));
                }
                if !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(BadHead::Coding);
                }
                self.chunked = true;
            }
            header::CONNECTION => self.options.add(value.as_bytes())?,
            header::TE => {
                self.te_trailers |= tokens(value.as_bytes())
                    .any(|t| t.split(|b| *b == b';').next().is_some_and(is(b"trailers")));
            }
            header::UPGRADE => self.upgrade = Some(value),
            header::EXPECT => {
                if !is(b"100-continue")(value.as_bytes()) {
                    return Err(BadHead::Expectation);
                }
                self.expects_continue = true;
            }
            name if is_hop_by_hop(&name) => {}
            name => {
                self.map.append(name, value);
            }
        }
        Ok(())
    }
}

/// Most fields `Connection` may name.
const MAX_NAMED: usize = 32;

impl ConnectionOptions {
    fn add(&mut self, value: &[u8]) -> Result<(), BadHead> {
        for token in tokens(value) {
            if is(b"close")(token) {
                self.close = true;
            } else if is(b"keep-alive")(token) {
                self.keep_alive = true;
            } else if is(b"upgrade")(token) {
                self.upgrade = true;
            } else {
                let name = HeaderName::from_bytes(token)
                    .map_err(|_| BadHead::Malformed("Connection names what is no header"))?;
                // Naming these would let a client strip what this proxy or the origin relies on.
                if !matches!(
                    name,
                    header::HOST | header::CONTENT_LENGTH | header::COOKIE | header::AUTHORIZATION
                ) {
                    if self.named.len() >= MAX_NAMED {
                        return Err(BadHead::Malformed("Connection names too many headers"));
                    }
                    self.named.push(name);
                }
            }
        }
        Ok(())
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

fn is(expected: &'static [u8]) -> impl Fn(&[u8]) -> bool {
    move |text| text.trim_ascii().eq_ignore_ascii_case(expected)
}

fn digits(text: &[u8]) -> Result<u64, BadHead> {
    let bad = BadHead::Malformed("Content-Length is not a number");
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    text.iter()
        .try_fold(0u64, |n, d| n.checked_mul(10)?.checked_add(u64::from(d - b'0')))
        .filter(|length| i64::try_from(*length).is_ok())
        .ok_or(bad)
}
