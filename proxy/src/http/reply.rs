//! Answers the proxy gives itself: a status, a reason for machines, a sentence for people.

use std::{borrow::Cow, num::NonZeroU32, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{
    Credentials,
    message::{Length, ResponseHead},
    record::GRPC_STATUS,
};
use crate::upstream::admission::Limit;

mod grpc_retry;

/// An answer that does not come from an endpoint.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) reason: &'static str,
    text: Cow<'static, str>,
    /// Seconds after which another try may have more luck.
    retry_after: Option<NonZeroU32>,
}

pub(super) const REASON: HeaderName = HeaderName::from_static("x-towpath-reason");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

macro_rules! replies {
    ($($(#[$doc:meta])* $name:ident = $status:ident, $reason:literal, $text:literal;)*) => {
        impl Reply {
            $($(#[$doc])* pub(super) const $name: Self = Self {
                status: StatusCode::$status,
                reason: $reason,
                text: Cow::Borrowed($text),
                retry_after: None,
            };)*
        }
    };
}

replies! {
    CONNECT = METHOD_NOT_ALLOWED, "connect", "This is no forward proxy: CONNECT is not served here.";
    MAX_FORWARDS = OK, "max_forwards", "Max-Forwards is used up: this proxy is the last to get the request.";
    NO_ROUTE = NOT_FOUND, "no_route", "No route matches this host, path, method and headers.";
    CREDENTIALS = PROXY_AUTHENTICATION_REQUIRED, "credentials", "This proxy is for one job, and this is not it.";
    UNKNOWN_HOST = BAD_GATEWAY, "unknown_host", "The name of this host has no address.";
    NO_SERVICE = SERVICE_UNAVAILABLE, "no_service", "The service this route names is not configured on this proxy.";
    NO_ENDPOINT = SERVICE_UNAVAILABLE, "no_healthy_endpoint", "No endpoint of the service may be used now.";
    CONNECT_FAILED = SERVICE_UNAVAILABLE, "connect_failure", "No connection to an endpoint of the service could be made.";
    LOOPED = SERVICE_UNAVAILABLE, "looped", "The proxy's connection to the endpoint came back to the proxy: see its log.";
    REFUSED = SERVICE_UNAVAILABLE, "refused", "The endpoint refused the request without processing it.";
    BROKEN = BAD_GATEWAY, "upstream_reset", "The endpoint closed the connection before it answered.";
    SPOOL = SERVICE_UNAVAILABLE, "spool", "The copy of the request body that another try needs cannot be read from disk.";
    MALFORMED = BAD_GATEWAY, "upstream_protocol", "The endpoint's answer is not valid HTTP.";
    DIGEST = BAD_GATEWAY, "digest", "The endpoint's answer does not match its digest.";
    QUEUE_FULL = SERVICE_UNAVAILABLE, "queue_full", "Too many requests wait for the service already.";
    QUEUE_DISPLACED = SERVICE_UNAVAILABLE, "queue_displaced", "Too many requests wait for the service, and this one had to make room.";
    QUEUE_WAIT = SERVICE_UNAVAILABLE, "queue_wait", "No endpoint of the service had a slot in time.";
    TIMEOUT = GATEWAY_TIMEOUT, "timeout", "The endpoint did not answer in time.";
    IDLE = GATEWAY_TIMEOUT, "idle_timeout", "Nothing moved for too long.";
    STALL = GATEWAY_TIMEOUT, "stall", "The endpoint took too little of the request body for too long.";
    CLIENT_STALL = REQUEST_TIMEOUT, "client_stall", "The request body came too slowly for too long.";
    HEAD_TIMEOUT = REQUEST_TIMEOUT, "head_timeout", "The request head took too long to arrive.";
    HEAD_TOO_LARGE = REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", "The request head has too many bytes or fields.";
    CODING = NOT_IMPLEMENTED, "transfer_coding", "The only transfer coding understood is chunked.";
    EXPECTATION = EXPECTATION_FAILED, "expectation", "The only expectation understood is 100-continue.";
    OVERLOAD = SERVICE_UNAVAILABLE, "overload", "The proxy is overloaded and sheds requests of this class.";
    LIMITED = TOO_MANY_REQUESTS, "rate_limit", "The limit on requests per second is reached.";
    REPORTS_OF_ONE = NOT_IMPLEMENTED, "reports_of_one", "Reports out of band are of one endpoint, and there are others behind this proxy: ask the endpoint.";
    REPORTS_FULL = TOO_MANY_REQUESTS, "reports_full", "Too many ask for reports out of band already.";
    BODY_TOO_LARGE = PAYLOAD_TOO_LARGE, "body_too_large", "The request body is larger than is taken here.";
    HTTP10 = HTTP_VERSION_NOT_SUPPORTED, "http10", "HTTP/1.0 is not served here: use HTTP/1.1 or HTTP/2.";
    VERSION = HTTP_VERSION_NOT_SUPPORTED, "version", "Only HTTP/1.0, HTTP/1.1 and HTTP/2 are spoken here.";
}

impl Reply {
    /// 400.
    pub(super) const fn bad_request(text: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            reason: "bad_request",
            text: Cow::Borrowed(text),
            retry_after: None,
        }
    }

    /// The request body does not match its digest, or the digest is malformed.
    pub(super) const fn bad_digest(text: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            reason: "digest",
            text: Cow::Borrowed(text),
            retry_after: None,
        }
    }

    /// A breaker limit is reached.
    pub(super) fn overflow(limit: Limit) -> Self {
        let reply = Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            reason: "overflow",
            text: format!("The limit on {} is reached.", Limit::NAMES[limit as usize]).into(),
            retry_after: None,
        };
        if limit == Limit::Concurrency {
            // There is room again as soon as one is answered; but not all at the same moment.
            return reply.again_after(Duration::from_millis(1000 + fastrand::u64(..2000)));
        }
        reply
    }

    /// The same, and when to come again: after this time, rounded up to seconds, at least one.
    pub(super) fn again_after(self, wait: Duration) -> Self {
        let seconds = wait.as_millis().div_ceil(1000).max(1);
        Self { retry_after: NonZeroU32::new(u32::try_from(seconds).unwrap_or(u32::MAX)), ..self }
    }

    /// The head and body to send. For gRPC, a trailers-only response.
    pub(super) fn into_message(self, grpc: bool) -> (ResponseHead, Bytes) {
        let mut headers = HeaderMap::with_capacity(7);
        headers.insert(REASON, HeaderValue::from_static(self.reason));
        if let Ok(date) =
            HeaderValue::from_str(&httpdate::fmt_http_date(std::time::SystemTime::now()))
        {
            headers.insert(header::DATE, date);
        }
        if grpc {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, self.grpc_status().into());
            if let Ok(text) = HeaderValue::from_str(&self.text) {
                headers.insert(GRPC_MESSAGE, text);
            }
            if let Some(seconds) = self.retry_after {
                grpc_retry::advise(&mut headers, self.grpc_status(), &self.text, seconds.get());
            }
            let head = ResponseHead { status: StatusCode::OK, headers, length: Length::None };
            return (head, Bytes::new());
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.get().into());
        }
        if self.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            let asks = HeaderValue::from_static(Credentials::CHALLENGE);
            headers.insert(header::PROXY_AUTHENTICATE, asks);
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        let body = Bytes::from(format!("{}\n", self.text));
        headers.insert(header::CONTENT_LENGTH, body.len().into());
        let length = Length::Known(body.len() as u64);
        (ResponseHead { status: self.status, headers, length }, body)
    }

    /// The gRPC status that says the same.
    pub(super) fn grpc_status(&self) -> u32 {
        match (self.reason, self.status.as_u16()) {
            ("overflow" | "queue_full" | "queue_displaced" | "queue_wait" | "rate_limit", _)
            | ("reports_full" | "body_too_large", _) => 8,
            ("digest", _) => 15,
            (_, 408 | 504) => 4,
            (_, 404 | 405 | 501) => 12,
            (_, 400 | 413 | 431) => 13,
            _ => 14,
        }
    }
}
