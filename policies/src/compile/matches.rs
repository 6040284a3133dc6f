//! Conditions of routes, and the order in which they are tried.

use std::cmp::Reverse;

use crate::{
    diagnostic::Rule,
    document::{
        read::{invalid, ticked},
        route::{
            GrpcMatch, GrpcMethodMatch, HeaderMatch, HttpMatch, HttpPathMatch, MatchType,
            PathMatchType, QueryMatch,
        },
        value::is_token,
    },
    model::{PathMatch, Pattern, RouteMatch, ValueMatch},
    problem::{At, Problems, Span},
};

/// Matches every request.
pub(crate) fn any(grpc: bool) -> RouteMatch {
    RouteMatch { grpc, ..RouteMatch::everything() }
}

pub(crate) fn http(written: &HttpMatch, problems: &mut Problems) -> Option<RouteMatch> {
    let path = match &written.path {
        Some(path) => path_match(path, problems),
        None => Some(PathMatch::Prefix("/".to_owned())),
    };
    let headers = headers(&written.headers, problems);
    let query = query(&written.query_params, problems);
    Some(RouteMatch {
        path: path?,
        method: written.method.as_ref().map(|m| m.token().to_owned()),
        headers: headers?,
        query: query?,
        grpc: false,
    })
}

pub(crate) fn grpc(written: &GrpcMatch, problems: &mut Problems) -> Option<RouteMatch> {
    let path = match &written.method {
        Some(method) => grpc_path(method, problems),
        None => Some(PathMatch::Prefix("/".to_owned())),
    };
    let headers = headers(&written.headers, problems);
    Some(RouteMatch { path: path?, headers: headers?, ..any(true) })
}

fn path_match(written: &HttpPathMatch, problems: &mut Problems) -> Option<PathMatch> {
    let kind = written.kind.as_ref().map_or(PathMatchType::PathPrefix, |k| k.value);
    let Some(value) = &written.value else {
        if kind == PathMatchType::RegularExpression {
            let message = "`value` is missing";
            problems.error(Rule::MissingField, written.span, message).help("a regular expression");
            return None;
        }
        return Some(match kind {
            PathMatchType::Exact => PathMatch::Exact("/".to_owned()),
            _ => PathMatch::Prefix("/".to_owned()),
        });
    };
    if kind == PathMatchType::RegularExpression {
        return pattern(value, problems).map(PathMatch::Regex);
    }
    if let Err(why) = check_path(value) {
        let help = "a path that starts with /, without query, // or dot segments";
        invalid(value.span, format!("{} {why}", ticked(value)), help, problems);
        return None;
    }
    Some(match kind {
        PathMatchType::Exact => PathMatch::Exact(value.value.clone()),
        _ => PathMatch::Prefix(prefix(value)),
    })
}

/// A prefix without trailing slash, except `/` itself.
pub(crate) fn prefix(path: &str) -> String {
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() }
}

pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("does not start with /");
    }
    if path.len() > 1024 {
        return Err("is longer than 1024 bytes");
    }
    if path.contains(['?', '#']) {
        return Err("has a query or fragment");
    }
    if path.contains("//") {
        return Err("has an empty segment");
    }
    if path.split('/').any(|segment| segment == "." || segment == "..") {
        return Err("has a dot segment");
    }
    if !path.bytes().all(|b| (b'!'..=b'~').contains(&b)) {
        return Err("has blanks or characters that a URL must escape");
    }
    Ok(())
}

fn pattern(text: &At<String>, problems: &mut Problems) -> Option<Pattern> {
    match Pattern::new(text) {
        Ok(pattern) => Some(pattern),
        Err(why) => {
            // The last line says what is wrong; those before draw the pattern.
            let why = why.lines().last().unwrap_or("not valid").trim_start_matches("error: ");
            let message = format!("{} is no regular expression: {why}", ticked(text));
            let help = "RE2 syntax: no look-around, no back-references; the whole value must match";
            invalid(text.span, message, help, problems);
            None
        }
    }
}

fn value(
    kind: Option<&At<MatchType>>,
    text: &At<String>,
    problems: &mut Problems,
) -> Option<ValueMatch> {
    match kind.map(|k| k.value) {
        Some(MatchType::RegularExpression) => pattern(text, problems).map(ValueMatch::Regex),
        _ => Some(ValueMatch::Exact(text.value.clone())),
    }
}

fn headers(written: &[HeaderMatch], problems: &mut Problems) -> Option<Vec<(String, ValueMatch)>> {
    let mut found: Vec<(String, ValueMatch)> = Vec::new();
    let mut whole = true;
    for header in written {
        let name = header.name.to_ascii_lowercase();
        if found.iter().any(|(earlier, _)| *earlier == name) {
            let message = format!("the header {} is there twice", ticked(&name));
            problems.error(Rule::Duplicate, header.name.span, message);
            whole = false;
        }
        match value(header.kind.as_ref(), &header.value, problems) {
            Some(value) => found.push((name, value)),
            None => whole = false,
        }
    }
    whole.then_some(found)
}

fn query(written: &[QueryMatch], problems: &mut Problems) -> Option<Vec<(String, ValueMatch)>> {
    let mut found: Vec<(String, ValueMatch)> = Vec::new();
    let mut whole = true;
    for parameter in written {
        let name = &parameter.name;
        if name.is_empty() || name.len() > 256 {
            invalid(name.span, "not a parameter name", "1 to 256 characters", problems);
            whole = false;
        }
        if found.iter().any(|(earlier, _)| *earlier == name.value) {
            let message = format!("the parameter {} is there twice", ticked(name));
            problems.error(Rule::Duplicate, name.span, message);
            whole = false;
        }
        match value(parameter.kind.as_ref(), &parameter.value, problems) {
            Some(value) => found.push((name.value.clone(), value)),
            None => whole = false,
        }
    }
    whole.then_some(found)
}

/// A gRPC call is `POST /package.Service/Method`.
fn grpc_path(written: &GrpcMethodMatch, problems: &mut Problems) -> Option<PathMatch> {
    let regex = written.kind.as_ref().is_some_and(|k| k.value == MatchType::RegularExpression);
    let given = |text: &Option<At<String>>| text.clone().filter(|t| !t.is_empty());
    let (service, method) = (given(&written.service), given(&written.method));
    if service.is_none() && method.is_none() {
        problems.error(Rule::MissingField, written.span, "one of `service`, `method` is missing");
        return None;
    }
    if regex {
        let part = |text: &Option<At<String>>| {
            text.as_ref().map_or_else(|| "[^/]+".to_owned(), |t| format!("(?:{})", t.value))
        };
        // Each alone first, so that an error points at the one that is wrong.
        let whole =
            [&service, &method].into_iter().flatten().all(|t| pattern(t, problems).is_some());
        let at = service.as_ref().or(method.as_ref()).map_or(written.span, |t| t.span);
        let text = At { value: format!("/{}/{}", part(&service), part(&method)), span: at };
        return if whole { pattern(&text, problems).map(PathMatch::Regex) } else { None };
    }
    let mut whole = true;
    for text in [&service, &method].into_iter().flatten() {
        if !is_token(text) {
            let help = "the full name of a gRPC service (package.Service) or method, without /";
            invalid(text.span, format!("{} is not a gRPC name", ticked(text)), help, problems);
            whole = false;
        }
    }
    if !whole {
        return None;
    }
    match (service, method) {
        (Some(service), Some(method)) => {
            Some(PathMatch::Exact(format!("/{}/{}", service.value, method.value)))
        }
        (Some(service), None) => Some(PathMatch::Prefix(format!("/{}", service.value))),
        (None, method) => {
            let method = method?;
            let escaped = regex::escape(&method.value);
            let text = At { value: format!("/[^/]+/{escaped}"), span: method.span };
            pattern(&text, problems).map(PathMatch::Regex)
        }
    }
}

/// Sorts by Gateway API precedence, the first to be tried smallest: exact
/// path, then regular expression, then prefix, each the longest first; then a
/// method; then most headers; then most query parameters. (The Gateway API
/// leaves the place of regular expressions open.)
pub(crate) fn precedence(matches: &RouteMatch) -> impl Ord + use<> {
    let (form, length) = match &matches.path {
        PathMatch::Exact(path) => (0, path.chars().count()),
        PathMatch::Regex(pattern) => (1, pattern.as_str().chars().count()),
        PathMatch::Prefix(path) => (2, path.chars().count()),
    };
    (
        form,
        Reverse(length),
        Reverse(matches.method.is_some()),
        Reverse(matches.grpc),
        Reverse(matches.headers.len()),
        Reverse(matches.query.len()),
    )
}

/// Equal for two matches that hold for exactly the same requests by their wording.
pub(crate) fn identity(matches: &RouteMatch) -> String {
    let mut headers: Vec<_> = matches.headers.iter().map(|h| format!("{h:?}")).collect();
    let mut query: Vec<_> = matches.query.iter().map(|q| format!("{q:?}")).collect();
    headers.sort_unstable();
    query.sort_unstable();
    format!("{:?} {:?} {} {headers:?} {query:?}", matches.path, matches.method, matches.grpc)
}

/// A match and where it is written.
pub(crate) type Written = (RouteMatch, Span);
