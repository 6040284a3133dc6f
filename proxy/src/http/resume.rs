//! How a response that broke midway goes on with another endpoint. Pure.
//!
//! A strong entity tag says that two answers are the same byte for byte
//! (RFC 9110 §8.8.1), so the rest of one may come from a replica. It is asked
//! for by `Range` and `If-Range` (§13.1.5, §14), and believed only when the
//! answer continues exactly where the client's body stands and is otherwise the
//! same. What is said differently, or not said, is no continuation.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::{
    digest::CONTENT_DIGEST,
    message::{Length, RequestHead, ResponseHead},
};

/// What came of a response that broke midway though it could go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeOutcome {
    /// Another endpoint sent the rest, or began to.
    Resumed,
    /// Another endpoint answered, but not with that rest.
    Mismatch,
    /// Another endpoint could not be reached, or broke, or did not answer in time.
    Failed,
    /// Nothing was left of the attempts or the time.
    Exhausted,
}

/// What must hold of whatever goes on with a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resume {
    /// What goes on now must not be gone on with.
    last: bool,
    etag: HeaderValue,
    coding: Option<HeaderValue>,
    media_type: Option<HeaderValue>,
    /// Where in the representation the client's body begins.
    first: u64,
    /// `None` until somebody says it.
    extent: Option<Extent>,
}

/// Where in a representation a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    /// The position after its last byte.
    end: u64,
    /// The length of the representation.
    complete: u64,
}

/// Why an answer is no continuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Mismatch {
    #[error("the status is {0} and not 206")]
    Status(StatusCode),
    #[error("the entity tag is another one")]
    Validator,
    #[error("the content coding is another one")]
    Coding,
    #[error("the media type is another one")]
    MediaType,
    #[error("Content-Range does not continue where the body stands")]
    Range,
    #[error("the length does not fit Content-Range")]
    Length,
}

impl ResumeOutcome {
    /// Metric label values, in order of the variants.
    pub const NAMES: [&'static str; 4] = ["resumed", "mismatch", "failed", "exhausted"];
}

impl Resume {
    /// What to hold on to of an answer, if it is one that can go on elsewhere.
    ///
    /// A part that the client asked for is as good as the whole: `Content-Range`
    /// says which it is.
    pub(super) fn of(request: &RequestHead, answer: &ResponseHead) -> Option<Self> {
        if request.method != Method::GET || !request.length.is_empty() || answer.length.is_empty() {
            return None;
        }
        let headers = &answer.headers;
        let etag = only(headers, &header::ETAG)?.filter(|etag| is_strong(etag))?;
        let media_type = only(headers, &header::CONTENT_TYPE)?;
        if refuses_ranges(headers) || media_type.is_some_and(is_multipart) {
            return None;
        }
        let (first, extent) = match (answer.status, answer.length) {
            (StatusCode::OK, Length::Known(bytes)) => {
                (0, Some(Extent { end: bytes, complete: bytes }))
            }
            (StatusCode::OK, _) => (0, None),
            (StatusCode::PARTIAL_CONTENT, length)
                if request.headers.contains_key(header::RANGE) =>
            {
                let (first, extent) = content_range(only(headers, &header::CONTENT_RANGE)??)?;
                if !fits(length, extent.end - first) {
                    return None;
                }
                (first, Some(extent))
            }
            _ => return None,
        };
        Some(Self {
            last: false,
            etag: etag.clone(),
            coding: only(headers, &header::CONTENT_ENCODING)?.cloned(),
            media_type: media_type.cloned(),
            first,
            extent,
        })
    }

    /// The fields to ask with, made from those of the request, when `delivered`
    /// bytes have been passed on; `None` when there is nothing left to ask for.
    ///
    /// The client's own conditions go: the first answer has settled them, and
    /// from here on only that same representation will do.
    pub(super) fn request(&self, headers: &HeaderMap, delivered: u64) -> Option<HeaderMap> {
        let from = self.position(delivered).filter(|_| !self.last)?;
        let range = match self.extent {
            Some(Extent { end, .. }) if from >= end => return None,
            Some(Extent { end, complete }) if end < complete => format!("bytes={from}-{}", end - 1),
            _ => format!("bytes={from}-"),
        };
        let mut headers = headers.clone();
        for condition in [
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            header::IF_MODIFIED_SINCE,
            header::IF_UNMODIFIED_SINCE,
        ] {
            headers.remove(condition);
        }
        headers.insert(header::RANGE, HeaderValue::from_str(&range).ok()?);
        headers.insert(header::IF_RANGE, self.etag.clone());
        Some(headers)
    }

    /// Whether `answer` goes on after `delivered` bytes; where it ends is noted then.
    ///
    /// # Errors
    /// [`Mismatch`].
    pub(super) fn check(&mut self, delivered: u64, answer: &ResponseHead) -> Result<(), Mismatch> {
        let headers = &answer.headers;
        if answer.status != StatusCode::PARTIAL_CONTENT {
            return Err(Mismatch::Status(answer.status));
        }
        // §15.3.7: a 206 carries the tag that a 200 would. Compared byte for byte, so `W/` never passes.
        if only(headers, &header::ETAG).ok_or(Mismatch::Validator)? != Some(&self.etag) {
            return Err(Mismatch::Validator);
        }
        let coding = only(headers, &header::CONTENT_ENCODING).ok_or(Mismatch::Coding)?;
        if coding != self.coding.as_ref() {
            return Err(Mismatch::Coding);
        }
        // After `If-Range` it may be left out (§15.3.7).
        let media_type = only(headers, &header::CONTENT_TYPE).ok_or(Mismatch::MediaType)?;
        if media_type.is_some() && media_type != self.media_type.as_ref() {
            return Err(Mismatch::MediaType);
        }
        let range = only(headers, &header::CONTENT_RANGE).flatten().and_then(content_range);
        let (from, extent) = range.ok_or(Mismatch::Range)?;
        // What was asked for without an end goes to the end.
        let wanted =
            self.extent.unwrap_or(Extent { end: extent.complete, complete: extent.complete });
        if Some(from) != self.position(delivered) || extent != wanted {
            return Err(Mismatch::Range);
        }
        if !fits(answer.length, extent.end - from) {
            return Err(Mismatch::Length);
        }
        self.extent = Some(extent);
        self.last = refuses_ranges(headers);
        Ok(())
    }

    /// Bytes to come when `delivered` have been passed on; `None` when nobody said.
    pub(super) fn left(&self, delivered: u64) -> Option<u64> {
        self.extent.map(|extent| (extent.end - self.first).saturating_sub(delivered))
    }

    /// Whether a body of so many bytes stays within what was promised, and at its end is all of it.
    pub(super) fn allows(&self, delivered: u64, last: bool) -> bool {
        self.extent.is_none_or(|extent| {
            let length = extent.end - self.first;
            if last { delivered == length } else { delivered <= length }
        })
    }

    fn position(&self, delivered: u64) -> Option<u64> {
        self.first.checked_add(delivered)
    }
}

/// Removes from the trailers of a continuation what they say of its own content
/// alone, of which the client sees only a part (RFC 9530 §2).
pub(super) fn strip_digests(trailers: &mut HeaderMap) {
    trailers.remove(CONTENT_DIGEST);
    trailers.remove(CONTENT_MD5);
}

/// `Some(None)` when there is no such field, `None` when there are several.
#[expect(clippy::option_option, reason = "absent and ambiguous are not the same")]
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Option<&'a HeaderValue>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    values.next().is_none().then_some(first)
}

/// RFC 9110 §8.8.3: `opaque-tag = DQUOTE *etagc DQUOTE`, without `W/`.
fn is_strong(etag: &HeaderValue) -> bool {
    let inner = etag.as_bytes().strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    inner.is_some_and(|tag| tag.iter().all(|b| matches!(b, 0x21 | 0x23..=0x7e | 0x80..)))
}

fn is_multipart(media_type: &HeaderValue) -> bool {
    let kind = b"multipart/byteranges";
    media_type.as_bytes().get(..kind.len()).is_some_and(|is| is.eq_ignore_ascii_case(kind))
}

/// `Accept-Ranges: none` (RFC 9110 §14.3).
fn refuses_ranges(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::ACCEPT_RANGES).iter();
    values.any(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"none"))
}

/// Where a part of known extent begins and ends: `bytes 5-9/10` (RFC 9110 §14.4).
/// Without the complete length (`*`) it says too little.
fn content_range(value: &HeaderValue) -> Option<(u64, Extent)> {
    let (unit, rest) = value.to_str().ok()?.split_once(' ')?;
    let (range, complete) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, complete) = (number(first)?, number(last)?, number(complete)?);
    let valid = unit.eq_ignore_ascii_case("bytes") && first <= last && last < complete;
    valid.then(|| (first, Extent { end: last + 1, complete }))
}

/// `1*DIGIT`, no sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn fits(length: Length, bytes: u64) -> bool {
    match length {
        Length::None => false,
        Length::Known(declared) => declared == bytes,
        Length::Unknown => true,
    }
}

const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");

#[cfg(test)]
mod tests;
