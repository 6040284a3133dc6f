//! Header blocks to heads and back: what makes a message well-formed (RFC 9113 §8).

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header,
    uri::{Authority, PathAndQuery},
};

use super::hpack::{Field, encode};

/// A request's head as it came, well-formed. What stands in a field of its own here is not
/// among the headers, but for the length.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) authority: Option<Authority>,
    /// `None` for CONNECT only.
    pub(crate) path: Option<PathAndQuery>,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) headers: HeaderMap,
    pub(crate) content_length: Option<u64>,
    pub(crate) te_trailers: bool,
    pub(crate) expects_continue: bool,
}

/// A response's head as it came, well-formed.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) content_length: Option<u64>,
}

/// A request's head to be sent.
#[derive(Debug)]
pub(crate) struct RequestRef<'a> {
    pub(crate) method: &'a Method,
    pub(crate) https: bool,
    pub(crate) authority: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) te_trailers: bool,
    pub(crate) expects_continue: bool,
}

/// The fields of one block, gathered as they are decoded.
#[derive(Debug, Default)]
pub(super) struct Fields {
    method: Option<Method>,
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    scheme: Option<Bytes>,
    protocol: Option<Bytes>,
    status: Option<StatusCode>,
    host: Option<HeaderValue>,
    headers: HeaderMap,
    content_length: Option<u64>,
    te_trailers: bool,
    expects_continue: bool,
    regular: bool,
    malformed: Option<&'static str>,
    most: usize,
    count: usize,
}

/// Why a message is malformed.
type Malformed = &'static str;

impl Fields {
    /// Keeps so many fields and no more.
    pub(super) fn at_most(most: usize) -> Self {
        Self { most, headers: HeaderMap::with_capacity(10), ..Self::default() }
    }

    pub(super) fn are_too_many(&self) -> bool {
        self.count > self.most
    }

    /// Takes one field. What is wrong with any of them is remembered.
    pub(super) fn take(&mut self, field: Field) {
        let pseudo_again = match field {
            Field::Header(name, value) => {
                self.regular = true;
                self.count += 1;
                if self.are_too_many() {
                    return;
                }
                return self.header(name, value);
            }
            Field::Malformed(why) => return self.fail(why),
            Field::Method(method) => self.method.replace(method).is_some(),
            Field::Authority(authority) => self.authority.replace(authority).is_some(),
            Field::Path(path) => self.path.replace(path).is_some(),
            Field::Scheme(scheme) => self.scheme.replace(scheme).is_some(),
            Field::Protocol(protocol) => self.protocol.replace(protocol).is_some(),
            Field::Status(status) => self.status.replace(status).is_some(),
        };
        if pseudo_again {
            self.fail("a pseudo-header is given twice");
        }
        if self.regular {
            self.fail("a pseudo-header follows a regular field");
        }
    }

    fn header(&mut self, name: HeaderName, value: HeaderValue) {
        match name {
            header::HOST => {
                if self.host.replace(value).is_some() {
                    self.fail("more than one host");
                }
            }
            // Checked when it was decoded: it says `trailers` and nothing else.
            header::TE => self.te_trailers = true,
            header::EXPECT => {
                self.expects_continue = value.as_bytes().eq_ignore_ascii_case(b"100-continue");
            }
            header::CONTENT_LENGTH => match length(&value) {
                Some(length) if self.content_length.is_none() => {
                    self.content_length = Some(length);
                    self.append(name, value);
                }
                _ => self.fail("content-length is not one number"),
            },
            name => self.append(name, value),
        }
    }

    fn append(&mut self, name: HeaderName, value: HeaderValue) {
        if self.headers.try_append(name, value).is_err() {
            self.fail("too many fields");
        }
    }

    fn fail(&mut self, why: Malformed) {
        self.malformed.get_or_insert(why);
    }

    fn has_pseudo(&self) -> bool {
        self.has_request_pseudo() || self.status.is_some()
    }

    fn has_request_pseudo(&self) -> bool {
        self.method.is_some()
            || self.authority.is_some()
            || self.path.is_some()
            || self.scheme.is_some()
            || self.protocol.is_some()
    }

    /// The head of a request (RFC 9113 §8.3.1).
    pub(super) fn into_request(self) -> Result<Request, Malformed> {
        if let Some(why) = self.malformed {
            return Err(why);
        }
        if self.status.is_some() {
            return Err("a request with :status");
        }
        if self.protocol.is_some() {
            return Err(":protocol, though extended CONNECT was not offered");
        }
        let method = self.method.ok_or("no :method")?;
        if method == Method::CONNECT {
            if self.path.is_some() || self.scheme.is_some() || self.authority.is_none() {
                return Err("CONNECT takes :authority, and neither :scheme nor :path");
            }
        } else if self.path.is_none() {
            return Err("no :path");
        } else if self.scheme.is_none() {
            return Err("no :scheme");
        }
        Ok(Request {
            method,
            authority: self.authority,
            path: self.path,
            host: self.host,
            headers: self.headers,
            content_length: self.content_length,
            te_trailers: self.te_trailers,
            expects_continue: self.expects_continue,
        })
    }

    /// The head of a response (RFC 9113 §8.3.2).
    pub(super) fn into_response(self) -> Result<Response, Malformed> {
        if let Some(why) = self.malformed {
            return Err(why);
        }
        if self.has_request_pseudo() {
            return Err("a response with a request's pseudo-header");
        }
        let status = self.status.ok_or("no :status")?;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err("101 over HTTP/2");
        }
        Ok(Response { status, headers: self.headers, content_length: self.content_length })
    }

    /// Trailers (RFC 9113 §8.1).
    pub(super) fn into_trailers(self) -> Result<HeaderMap, Malformed> {
        match self.malformed {
            Some(why) => Err(why),
            None if self.has_pseudo() => Err("a pseudo-header in trailers"),
            None => Ok(self.headers),
        }
    }
}

/// Digits, and nothing a signed reader could take for a negative number.
fn length(value: &HeaderValue) -> Option<u64> {
    let digits = value.as_bytes();
    if digits.is_empty() {
        return None;
    }
    digits
        .iter()
        .try_fold(0u64, |n, d| {
            let digit = d.is_ascii_digit().then(|| u64::from(d - b'0'))?;
            n.checked_mul(10)?.checked_add(digit)
        })
        .filter(|length| i64::try_from(*length).is_ok())
}

impl RequestRef<'_> {
    /// Its size as RFC 9113 §6.5.2 counts it, but for what is the same for all requests.
    pub(super) fn list_size(&self) -> usize {
        let fields = self.headers.iter().map(|(n, v)| n.as_str().len() + v.len() + 32);
        fields.sum::<usize>() + self.authority.len() + self.path.len()
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        encode::method(out, self.method);
        // CONNECT has neither (RFC 9113 §8.5).
        let whole = *self.method != Method::CONNECT;
        if whole {
            encode::scheme(out, self.https);
        }
        encode::authority(out, self.authority);
        if whole {
            encode::path(out, self.path);
        }
        fields(out, self.headers);
        if self.te_trailers {
            encode::field(out, &header::TE, &HeaderValue::from_static("trailers"));
        }
        if self.expects_continue {
            encode::field(out, &header::EXPECT, &HeaderValue::from_static("100-continue"));
        }
    }
}

pub(super) fn fields(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        encode::field(out, name, value);
    }
}
