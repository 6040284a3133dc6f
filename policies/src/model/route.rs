//! Which request goes where, and under what terms.

use std::time::Duration;

use regex::Regex;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::Transfer;

/// The routes of one listener, by host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteTable {
    /// Unique name, e.g. `gateway/edge/http`.
    pub name: String,
    /// Chosen by host; the most specific domain wins (exact, then longest suffix wildcard, then `*`).
    pub virtual_hosts: Vec<VirtualHost>,
}

/// The routes of a set of host names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VirtualHost {
    /// Unique within the table.
    pub name: String,
    /// Exact hosts, `*.suffix` wildcards, or `*`; lower case, without port. No domain appears twice in a table.
    pub domains: Vec<String>,
    /// Tried in order, first match wins. Already sorted by Gateway API precedence
    /// (exact path, longest prefix, method, most headers, most query parameters, order of appearance).
    pub routes: Vec<Route>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// For logs and metrics, e.g. `httproute/lineitem/0`.
    pub name: String,
    /// When it applies.
    pub matches: RouteMatch,
    /// What it does.
    pub action: Action,
    /// Edits of the request's headers before it is forwarded.
    pub request_headers: HeaderEdit,
    /// Edits of the response's headers before it is returned.
    pub response_headers: HeaderEdit,
}

/// All given conditions must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteMatch {
    /// On the path, without the query.
    pub path: PathMatch,
    /// Method token, upper case; `None` = any.
    pub method: Option<String>,
    /// Header name (lower case) and its condition.
    pub headers: Vec<(String, ValueMatch)>,
    /// Query parameter name (first occurrence, percent-decoded value) and its condition.
    pub query: Vec<(String, ValueMatch)>,
    /// Only requests whose content type is `application/grpc*`.
    pub grpc: bool,
}

impl RouteMatch {
    /// Every request.
    pub fn everything() -> Self {
        Self {
            path: PathMatch::Prefix("/".to_owned()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
            grpc: false,
        }
    }
}

/// Condition on a path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PathMatch {
    /// Equal, byte for byte.
    Exact(String),
    /// Equal, or continued after a `/` (Gateway API `PathPrefix`: `/a` matches `/a` and `/a/b`,
    /// not `/ab`). Stored without a trailing slash, except `/` itself, which matches all.
    Prefix(String),
    /// The whole path matches (RE2 syntax, anchored at both ends).
    Regex(Pattern),
}

/// Condition on a header or query value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ValueMatch {
    /// Equal, byte for byte.
    Exact(String),
    /// The whole value matches (RE2 syntax, anchored).
    Regex(Pattern),
    /// There, whatever the value.
    Present,
}

/// A compiled, size-limited regular expression that matches whole values.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    compiled: Regex,
}

impl Pattern {
    /// Longest accepted pattern in bytes.
    pub const MAX_BYTES: usize = 1024;

    /// Compiles `text`, anchored at both ends.
    ///
    /// # Errors
    /// When it is too long, is no regular expression (no look-around, no
    /// back-references), or compiles to more than 1 MiB.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.len() > Self::MAX_BYTES {
            return Err(format!("longer than {} bytes", Self::MAX_BYTES));
        }
        let compile = |text: &str| {
            let built = regex::RegexBuilder::new(text).size_limit(1 << 20).build();
            built.map_err(|e| e.to_string())
        };
        // By itself first: `a)|(?:b` is no expression, and would be one between the anchors.
        compile(text)?;
        let compiled = compile(&format!("^(?:{text})$"))?;
        Ok(Self { text: text.to_owned(), compiled })
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the whole of `value` matches.
    pub fn is_match(&self, value: &str) -> bool {
        self.compiled.is_match(value)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(d)?).map_err(D::Error::custom)
    }
}

/// What a matching route does.
#[expect(clippy::large_enum_variant, reason = "nearly all forward: a box each would only cost")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Send it to a service.
    Forward(Forward),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer with a fixed status (a route without backends is a 500 per Gateway API).
    Respond(DirectResponse),
}

/// Forwarding, and its terms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    /// Drawn by weight per request. Never empty; the sum of weights is positive.
    pub backends: Vec<WeightedBackend>,
    /// Rewrite of the host sent upstream.
    pub host: HostRewrite,
    /// Rewrite of the path.
    pub path: Option<PathRewrite>,
    /// Copies of the request whose answers are thrown away.
    pub mirrors: Vec<Mirror>,
    /// Whole time for the exchange, all tries together; `None` = unlimited (bulk takes as long as it takes).
    pub timeout: Option<Duration>,
    /// An exchange in which no byte moves for this long is ended; default 5 min.
    pub idle_timeout: Option<Duration>,
    /// When and how often to try again.
    pub retry: RetryPolicy,
    /// What kind of freight it is, and how it is treated.
    #[serde(default)]
    pub transfer: Transfer,
}

impl Forward {
    /// As it came, on the terms that hold without a policy.
    pub fn to(backends: Vec<WeightedBackend>) -> Self {
        Self {
            backends,
            host: HostRewrite::Keep,
            path: None,
            mirrors: Vec::new(),
            timeout: None,
            idle_timeout: Some(Duration::from_secs(300)),
            retry: RetryPolicy::default(),
            transfer: Transfer::default(),
        }
    }
}

/// One service among several, by weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightedBackend {
    /// Name of the [`super::Service`].
    pub service: String,
    /// Share among its siblings; 0 draws nothing.
    pub weight: u32,
    /// Edits for this backend only, after the route's own.
    pub request_headers: HeaderEdit,
    /// Edits of this backend's responses, before the route's own.
    pub response_headers: HeaderEdit,
}

impl WeightedBackend {
    /// All requests, as they are.
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            weight: 1,
            request_headers: HeaderEdit::default(),
            response_headers: HeaderEdit::default(),
        }
    }
}

/// A copy of a share of the requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mirror {
    /// Name of the [`super::Service`] that gets the copies.
    pub service: String,
    /// Parts per million of the requests that are copied; 1,000,000 = all.
    pub parts_per_million: u32,
}

/// Host sent upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostRewrite {
    /// As the client sent it.
    #[default]
    Keep,
    /// This host.
    Literal(String),
}

/// Path sent upstream; the query is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathRewrite {
    /// Replace the whole path.
    Full(String),
    /// Replace what the [`PathMatch::Prefix`] matched.
    Prefix(String),
}

/// Changes of header fields: first remove, then set, then add. Names are lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderEdit {
    /// Replace or create.
    pub set: Vec<(String, String)>,
    /// Append.
    pub add: Vec<(String, String)>,
    /// Delete.
    pub remove: Vec<String>,
}

impl HeaderEdit {
    /// True when nothing would change.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// An answer that sends the client elsewhere. Parts left out are kept from the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host without port.
    pub host: Option<String>,
    /// Port; the scheme's default is left out of `Location`.
    pub port: Option<u16>,
    /// Path.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A fixed answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectResponse {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// Body text, at most 4 KiB.
    pub body: String,
}

/// When a failed try is followed by another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Further tries after the first; 0 = none. A failed connect or refused stream
    /// (no byte of the request was processed) may be retried at any size.
    pub attempts: u32,
    /// Failures that may be retried when the request is safe to repeat.
    #[serde(rename = "conditions")]
    pub on: Vec<RetryCondition>,
    /// Deadline of one try up to the response head; `None` = the whole timeout.
    pub per_try_timeout: Option<Duration>,
    /// Base of the jittered exponential back-off. Default 25 ms.
    pub backoff_base: Duration,
    /// Ceiling of the back-off. Default 250 ms.
    pub backoff_max: Duration,
    /// Largest request body kept for replay, in bytes. Default 64 KiB.
    pub replay_limit_bytes: u64,
    /// What may be kept beyond it on the proxy's disk, in bytes per request. Default 0: nothing.
    #[serde(default)]
    pub replay_disk_limit_bytes: u64,
    /// Retry methods that are not idempotent (RFC 9110 §9.2.2) when the request has an `Idempotency-Key`.
    pub with_idempotency_key: bool,
    /// Give such a request an `Idempotency-Key` when it has none, the same for all its tries.
    #[serde(default)]
    pub mint_idempotency_key: bool,
    /// A `GET` whose response breaks midway goes on with another endpoint, where a strong entity tag
    /// proves that the rest is the same. Never true without attempts, of which each such try takes one.
    #[serde(default)]
    pub resume_downloads: bool,
}

/// A failure that may be retried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetryCondition {
    /// The connection could not be made.
    ConnectFailure,
    /// The stream was refused unprocessed (HTTP/2 `REFUSED_STREAM`, or beyond `GOAWAY`'s last stream).
    RefusedStream,
    /// The connection broke before a response head.
    Reset,
    /// One of these status codes.
    Status(Vec<u16>),
    /// One of these gRPC status codes in a trailers-only response or response head.
    GrpcStatus(Vec<u32>),
    /// The try's deadline passed before a response head.
    Timeout,
    /// The endpoint took the request body too slowly ([`super::Stall`]).
    Stall,
}

impl Default for RetryPolicy {
    /// The safe defaults that hold with no policy at all: one more try, only for
    /// failures that provably processed nothing or requests safe to repeat.
    fn default() -> Self {
        Self {
            attempts: 1,
            on: vec![
                RetryCondition::ConnectFailure,
                RetryCondition::RefusedStream,
                RetryCondition::Reset,
            ],
            per_try_timeout: None,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            replay_limit_bytes: 64 * 1024,
            replay_disk_limit_bytes: 0,
            with_idempotency_key: true,
            mint_idempotency_key: false,
            resume_downloads: true,
        }
    }
}

impl RetryPolicy {
    /// Whether downloads are resumed where nobody says: a broken connection is retried anyway, and
    /// under a strong entity tag a break after the head is no worse than one before it.
    pub fn resumes_by_default(attempts: u32, on: &[RetryCondition]) -> bool {
        attempts > 0 && on.contains(&RetryCondition::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::{Pattern, RetryPolicy};

    #[test]
    fn a_pattern_cannot_leave_its_anchors() {
        for text in ["/admin)|(?:/pub", ")|(", "a)(?:b"] {
            assert!(Pattern::new(text).is_err(), "{text}");
        }
        let either = Pattern::new("/admin|/pub").unwrap();
        assert!(either.is_match("/admin") && either.is_match("/pub"));
        assert!(!either.is_match("/public") && !either.is_match("/x/pub"));
    }

    #[test]
    fn a_retry_policy_from_before_resumes_were_known_resumes_nothing() {
        let mut old = serde_json::to_value(RetryPolicy::default()).unwrap();
        assert!(old.as_object_mut().unwrap().remove("resume_downloads").is_some());
        let read: RetryPolicy = serde_json::from_value(old).unwrap();
        assert_eq!(read, RetryPolicy { resume_downloads: false, ..RetryPolicy::default() });
    }
}
