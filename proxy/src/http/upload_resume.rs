//! How an upload that broke goes on with a server that speaks resumable uploads
//! (draft-ietf-httpbis-resumable-upload, interop version 8). Pure.
//!
//! The server names an upload resource by a 104, and says there how much it has. What is missing
//! is appended by `PATCH`, and the answer to that is the answer to the upload.

use http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header, uri::PathAndQuery};

use super::{
    digest::{CONTENT_DIGEST, REPR_DIGEST},
    exchange::IDEMPOTENCY_KEY,
    message::{Interim, Length, RequestHead, ResponseHead},
};

/// An upload that may go on if it breaks.
#[derive(Debug, Default)]
pub(super) struct UploadResume {
    resource: Option<Resource>,
}

/// Where the server keeps what it has.
#[derive(Debug)]
struct Resource {
    target: PathAndQuery,
    /// As it was told.
    location: HeaderValue,
}

/// What an answer of an upload resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The upload's own answer, for the client.
    Answer,
    /// It broke again, or the two sides do not agree how far it has got: ask once more.
    Again,
    /// It will not go on.
    Over,
}

impl UploadResume {
    /// An upload that may be made resumable; not one whose client sees to that itself.
    pub(super) fn of(request: &mut RequestHead) -> Option<Self> {
        let uploads = matches!(request.method, Method::PUT | Method::POST)
            && !request.length.is_empty()
            && request.upgrade.is_none()
            && !OWN.iter().any(|name| request.headers.contains_key(name));
        if !uploads {
            return None;
        }
        request.headers.insert(UPLOAD_COMPLETE, HeaderValue::from_static("?1"));
        request.headers.insert(INTEROP_VERSION, VERSION);
        Some(Self::default())
    }

    /// Takes what a 104 says. Others are not for us.
    pub(super) fn hear(&mut self, interim: &Interim, request: &RequestHead) -> bool {
        if interim.status.as_u16() != RESUMPTION_SUPPORTED {
            return false;
        }
        let headers = &interim.headers;
        let location = headers.get(header::LOCATION);
        if headers.get(INTEROP_VERSION) == Some(&VERSION)
            && let Some(location) = location
        {
            self.resource = match &self.resource {
                // §4.2.1: it is the same in all messages, or nothing is to be made of it.
                Some(known) if known.location != location => None,
                _ => target(location, request)
                    .map(|target| Resource { target, location: location.clone() }),
            };
        }
        true
    }

    /// Whether the server named an upload resource.
    pub(super) fn can_go_on(&self) -> bool {
        self.resource.is_some()
    }

    /// What is known of a try does not hold for the next.
    pub(super) fn forget(&mut self) {
        self.resource = None;
    }

    /// Asks how much the server has.
    pub(super) fn question(&self, request: &RequestHead) -> Option<RequestHead> {
        self.request(request, Method::HEAD, Length::None)
    }

    /// Sends on from `offset`.
    pub(super) fn append(&self, request: &RequestHead, offset: u64) -> Option<RequestHead> {
        let length = match request.length {
            Length::Known(bytes) => Length::Known(bytes.checked_sub(offset)?),
            other => other,
        };
        let mut append = self.request(request, Method::PATCH, length)?;
        let headers = &mut append.headers;
        headers.insert(UPLOAD_COMPLETE, HeaderValue::from_static("?1"));
        headers.insert(UPLOAD_OFFSET, offset.into());
        headers
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/partial-upload"));
        if let Length::Known(bytes) = length {
            headers.insert(header::CONTENT_LENGTH, bytes.into());
        }
        Some(append)
    }

    fn request(
        &self,
        request: &RequestHead,
        method: Method,
        length: Length,
    ) -> Option<RequestHead> {
        let resource = self.resource.as_ref()?;
        let mut headers = request.headers.clone();
        for name in OF_THE_UPLOAD.iter().chain(&OWN) {
            headers.remove(name);
        }
        headers.insert(INTEROP_VERSION, VERSION);
        Some(RequestHead {
            received: request.received,
            method,
            authority: request.authority.clone(),
            target: resource.target.clone(),
            headers,
            length,
            te_trailers: request.te_trailers,
            upgrade: None,
            expects_continue: false,
        })
    }

    /// Removes what only we asked for from the upload's answer.
    pub(super) fn clean(&self, answer: &mut ResponseHead) {
        for name in &OWN {
            answer.headers.remove(name);
        }
        let named = self.resource.as_ref().map(|resource| &resource.location);
        if !answer.status.is_redirection()
            && answer.headers.get(header::LOCATION).is_some_and(|is| Some(is) == named)
        {
            answer.headers.remove(header::LOCATION);
        }
    }
}

/// Whether this is appended to an upload by a client that sees to it itself.
pub(super) fn is_part(request: &RequestHead) -> bool {
    request.method == Method::PATCH && request.headers.contains_key(UPLOAD_OFFSET)
}

/// How much the server has, by its answer to [`UploadResume::question`].
///
/// # Errors
/// What to do when it does not say.
pub(super) fn offset(answer: &ResponseHead) -> Result<u64, Verdict> {
    if answer.status.is_client_error() {
        return Err(Verdict::Over);
    }
    let told = answer.headers.get(UPLOAD_OFFSET).and_then(integer);
    told.filter(|_| answer.status.is_success()).ok_or(Verdict::Again)
}

/// What the answer to [`UploadResume::append`] is.
pub(super) fn verdict(answer: &ResponseHead) -> Verdict {
    let complete = answer.headers.get(UPLOAD_COMPLETE).map(HeaderValue::as_bytes);
    match (complete, answer.status) {
        (Some(b"?1"), _) => Verdict::Answer,
        (Some(_), status) if status.is_success() => Verdict::Again,
        (None, status) if status.is_success() => Verdict::Answer,
        (_, StatusCode::CONFLICT) => Verdict::Again,
        (_, status) if status.is_server_error() => Verdict::Again,
        _ => Verdict::Over,
    }
}

/// An upload resource at the server that the request went to: by path, or by the same authority.
fn target(location: &HeaderValue, request: &RequestHead) -> Option<PathAndQuery> {
    let text = location.to_str().ok()?;
    let text = text.split('#').next()?;
    if text.starts_with('/') && !text.starts_with("//") {
        return text.parse().ok();
    }
    let uri: Uri = text.parse().ok()?;
    let same = uri.authority()?.as_str().eq_ignore_ascii_case(request.authority.as_str());
    same.then(|| uri.path_and_query().cloned())?
}

/// A structured field's integer that is not negative (RFC 9651 §3.3.1).
fn integer(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?.trim();
    let digits = text.split(';').next()?;
    let valid = (1..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    valid.then(|| digits.parse().ok())?
}

/// Upload Resumption Supported.
const RESUMPTION_SUPPORTED: u16 = 104;
const UPLOAD_COMPLETE: HeaderName = HeaderName::from_static("upload-complete");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const INTEROP_VERSION: HeaderName = HeaderName::from_static("upload-draft-interop-version");
const VERSION: HeaderValue = HeaderValue::from_static("8");
/// The fields of the protocol.
static OWN: [HeaderName; 5] = [
    UPLOAD_COMPLETE,
    UPLOAD_OFFSET,
    INTEROP_VERSION,
    HeaderName::from_static("upload-limit"),
    HeaderName::from_static("upload-length"),
];
/// What is said of the upload as a whole, or of the resource it is for.
static OF_THE_UPLOAD: [HeaderName; 16] = [
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LOCATION,
    header::CONTENT_DISPOSITION,
    header::TRAILER,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::RANGE,
    header::IF_RANGE,
    CONTENT_DIGEST,
    REPR_DIGEST,
    IDEMPOTENCY_KEY,
];

#[cfg(test)]
mod tests;
