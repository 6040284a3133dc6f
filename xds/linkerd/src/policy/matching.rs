//! [`RouteMatch`] as Linkerd says it.

use http::Method;
use linkerd2_proxy_api::http_route::{
    HeaderMatch, HttpRouteMatch, PathMatch as PbPath, QueryParamMatch, header_match, path_match,
    query_param_match,
};
use towpath_policies::model::{PathMatch, Pattern, RouteMatch, ValueMatch};

/// The methods that RFC 9110 §9.2.2 calls idempotent.
pub(super) const IDEMPOTENT: [&str; 6] = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];

pub(super) fn encode(matches: &RouteMatch) -> HttpRouteMatch {
    let mut headers: Vec<HeaderMatch> =
        matches.headers.iter().map(|(name, value)| header(name, value)).collect();
    if matches.grpc {
        let value = header_match::Value::Regex(GRPC.to_owned());
        headers.push(HeaderMatch { name: "content-type".to_owned(), value: Some(value) });
    }
    HttpRouteMatch {
        path: Some(path(&matches.path)),
        headers,
        query_params: matches.query.iter().map(|(name, value)| query(name, value)).collect(),
        method: matches.method.as_deref().and_then(method),
    }
}

/// The same for each of these methods.
pub(super) fn each(matches: &HttpRouteMatch, methods: &[&str]) -> Vec<HttpRouteMatch> {
    let of = |name: &&str| HttpRouteMatch { method: method(name), ..matches.clone() };
    methods.iter().map(of).collect()
}

fn method(name: &str) -> Option<linkerd2_proxy_api::http_types::HttpMethod> {
    Method::from_bytes(name.as_bytes()).ok().map(Into::into)
}

fn path(path: &PathMatch) -> PbPath {
    let kind = match path {
        PathMatch::Exact(text) => path_match::Kind::Exact(text.clone()),
        PathMatch::Prefix(text) => path_match::Kind::Prefix(text.clone()),
        PathMatch::Regex(pattern) => path_match::Kind::Regex(whole(pattern)),
    };
    PbPath { kind: Some(kind) }
}

fn header(name: &str, value: &ValueMatch) -> HeaderMatch {
    let value = match value {
        ValueMatch::Exact(text) => header_match::Value::Exact(text.clone().into_bytes()),
        ValueMatch::Regex(pattern) => header_match::Value::Regex(whole(pattern)),
        ValueMatch::Present => header_match::Value::Regex(ANYTHING.to_owned()),
    };
    HeaderMatch { name: name.to_owned(), value: Some(value) }
}

fn query(name: &str, value: &ValueMatch) -> QueryParamMatch {
    let value = match value {
        ValueMatch::Exact(text) => query_param_match::Value::Exact(text.clone()),
        ValueMatch::Regex(pattern) => query_param_match::Value::Regex(whole(pattern)),
        ValueMatch::Present => query_param_match::Value::Regex(ANYTHING.to_owned()),
    };
    QueryParamMatch { name: name.to_owned(), value: Some(value) }
}

/// A proxy looks whether the first match that it finds is the whole text, and of `a|ab` would find `a` in `ab`.
fn whole(pattern: &Pattern) -> String {
    format!("^(?:{})$", pattern.as_str())
}

const ANYTHING: &str = "(?s)^.*$";
const GRPC: &str = "^application/grpc.*$";
