//! Rules of HTTPRoutes and GRPCRoutes, compiled as far as that goes without
//! knowing where they are attached.

use crate::{
    diagnostic::Rule,
    document::{
        Kind,
        own::ServiceProtocol,
        read::{invalid, ticked},
        route::{GrpcRule, HttpBackendRef, HttpFilter, HttpRetry, HttpRule, HttpTimeouts},
    },
    model::{
        Action, DirectResponse, Forward, HeaderEdit, HostRewrite, Mirror, PathMatch, PathRewrite,
        Redirect, Route, WeightedBackend,
    },
    problem::{Problems, Span},
};

use super::{
    filters::{self, Filters, Place},
    index::{BackendName, Index},
    matches::{self, Written},
    policies::Terms,
};

/// A rule whose references are followed.
#[derive(Clone, Debug)]
pub(crate) struct PreparedRule<'d> {
    /// Name of the routes it becomes.
    pub(crate) name: String,
    /// The document it is of; `None` for rules that nobody wrote.
    pub(crate) route: Option<(Kind, String)>,
    pub(crate) section: Option<String>,
    /// Place among the rules of its route.
    pub(crate) order: usize,
    pub(crate) matches: Vec<Written>,
    pub(crate) outcome: Outcome,
    pub(crate) request_headers: HeaderEdit,
    pub(crate) response_headers: HeaderEdit,
    pub(crate) timeouts: Option<&'d HttpTimeouts>,
    pub(crate) retry: Option<&'d HttpRetry>,
}

/// What a rule does, without its terms.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Forward {
        backends: Vec<WeightedBackend>,
        host: HostRewrite,
        path: Option<PathRewrite>,
        mirrors: Vec<Mirror>,
    },
    Redirect(Redirect),
    Respond(DirectResponse),
}

impl PreparedRule<'_> {
    /// A rule nobody wrote: everything goes to one service.
    pub(crate) fn everything_to(name: String, service: &str, span: Span) -> PreparedRule<'static> {
        PreparedRule {
            name,
            route: None,
            section: None,
            order: 0,
            matches: vec![(matches::any(false), span)],
            outcome: Outcome::Forward {
                backends: vec![WeightedBackend::new(service)],
                host: HostRewrite::Keep,
                path: None,
                mirrors: Vec::new(),
            },
            request_headers: HeaderEdit::default(),
            response_headers: HeaderEdit::default(),
            timeouts: None,
            retry: None,
        }
    }

    /// The services it forwards to, without repeats.
    pub(crate) fn services(&self) -> impl Iterator<Item = &str> {
        let backends = match &self.outcome {
            Outcome::Forward { backends, .. } => backends.as_slice(),
            _ => &[],
        };
        let used = |index: &usize| {
            let service = &backends[*index].service;
            !backends[..*index].iter().any(|earlier| earlier.service == *service)
        };
        (0..backends.len()).filter(used).map(|index| backends[index].service.as_str())
    }

    /// Kind and name of the document, for people.
    pub(crate) fn described(&self) -> String {
        match &self.route {
            Some((kind, id)) => format!("{} {id}", kind.name()),
            None => "nobody".to_owned(),
        }
    }

    /// The routes it becomes under `terms`: one for each match.
    pub(crate) fn routes(&self, terms: &Terms) -> Vec<(Route, Span)> {
        let action = match &self.outcome {
            Outcome::Redirect(redirect) => Action::Redirect(redirect.clone()),
            Outcome::Respond(response) => Action::Respond(response.clone()),
            Outcome::Forward { backends, host, path, mirrors } => Action::Forward(Forward {
                backends: backends.clone(),
                host: host.clone(),
                path: path.clone(),
                mirrors: mirrors.clone(),
                timeout: terms.timeout,
                idle_timeout: terms.idle_timeout,
                retry: terms.retry.clone(),
                transfer: terms.transfer.clone(),
            }),
        };
        let route = |(matches, span): &Written| {
            let route = Route {
                name: self.name.clone(),
                matches: matches.clone(),
                action: action.clone(),
                request_headers: self.request_headers.clone(),
                response_headers: self.response_headers.clone(),
            };
            (route, *span)
        };
        self.matches.iter().map(route).collect()
    }
}

/// Where a rule stands.
#[derive(Clone, Copy)]
pub(crate) struct Home<'a> {
    pub(crate) id: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) order: usize,
}

pub(crate) fn http<'d>(
    rule: &'d HttpRule,
    home: Home<'_>,
    index: &Index<'_>,
    problems: &mut Problems,
) -> Option<PreparedRule<'d>> {
    let before = problems.errors();
    let mut matches: Vec<Written> = Vec::new();
    for written in &rule.matches {
        matches.extend(matches::http(written, problems).map(|m| (m, written.span)));
    }
    if rule.matches.is_empty() {
        matches.push((matches::any(false), rule.span));
    }
    let filters = filters::compile(&rule.filters, Place::HttpRule, home.namespace, index, problems);
    check_prefix(&filters, &matches, problems);
    if let Some(timeouts) = &rule.timeouts {
        check_timeouts(timeouts, problems);
    }
    let parts = Parts { backends: &rule.backend_refs, grpc: false, span: rule.span };
    let outcome = outcome(&parts, &filters, home, index, problems);
    (problems.errors() == before).then(|| PreparedRule {
        name: format!("httproute/{}/{}", home.id, home.order),
        route: Some((Kind::HttpRoute, home.id.to_owned())),
        section: rule.name.as_ref().map(|n| n.to_string()),
        order: home.order,
        matches,
        outcome,
        request_headers: filters.request_headers,
        response_headers: filters.response_headers,
        timeouts: rule.timeouts.as_ref(),
        retry: rule.retry.as_ref(),
    })
}

pub(crate) fn grpc<'d>(
    rule: &'d GrpcRule,
    home: Home<'_>,
    index: &Index<'_>,
    problems: &mut Problems,
) -> Option<PreparedRule<'d>> {
    let before = problems.errors();
    let mut matches: Vec<Written> = Vec::new();
    for written in &rule.matches {
        matches.extend(matches::grpc(written, problems).map(|m| (m, written.span)));
    }
    if rule.matches.is_empty() {
        matches.push((matches::any(true), rule.span));
    }
    let filters = filters::compile(&rule.filters, Place::GrpcRule, home.namespace, index, problems);
    let parts = Parts { backends: &rule.backend_refs, grpc: true, span: rule.span };
    let outcome = outcome(&parts, &filters, home, index, problems);
    (problems.errors() == before).then(|| PreparedRule {
        name: format!("grpcroute/{}/{}", home.id, home.order),
        route: Some((Kind::GrpcRoute, home.id.to_owned())),
        section: rule.name.as_ref().map(|n| n.to_string()),
        order: home.order,
        matches,
        outcome,
        request_headers: filters.request_headers,
        response_headers: filters.response_headers,
        timeouts: None,
        retry: None,
    })
}

fn check_prefix(filters: &Filters, matches: &[Written], problems: &mut Problems) {
    let Some(span) = filters.replaces_prefix else { return };
    let other = matches.iter().find(|(m, _)| !matches!(m.path, PathMatch::Prefix(_)));
    if let Some((_, other)) = other {
        problems
            .error(Rule::Conflict, span, "a prefix can only be replaced where a prefix is matched")
            .related(*other, "matches otherwise")
            .help("use PathPrefix in every match of the rule, or ReplaceFullPath");
    }
}

fn check_timeouts(timeouts: &HttpTimeouts, problems: &mut Problems) {
    let (Some(request), Some(one)) = (&timeouts.request, &timeouts.backend_request) else { return };
    if request.limit().is_some_and(|limit| one.0 > limit) {
        problems
            .error(
                Rule::InvalidValue,
                one.span,
                "one try may not take longer than the whole request",
            )
            .related(request.span, "the whole request")
            .help("backendRequest must be at most request");
    }
}

struct Parts<'a> {
    backends: &'a [HttpBackendRef],
    grpc: bool,
    span: Span,
}

/// What the rule does. A rule without backends, or whose weights add up to
/// zero, answers 500 by the Gateway API.
fn outcome(
    parts: &Parts<'_>,
    filters: &Filters,
    home: Home<'_>,
    index: &Index<'_>,
    problems: &mut Problems,
) -> Outcome {
    if let Some((redirect, span)) = &filters.redirect {
        if let Some(backend) = parts.backends.first() {
            problems
                .error(Rule::Conflict, backend.name.span, "a redirect has no backends")
                .related(*span, "the redirect");
        }
        return Outcome::Redirect(redirect.clone());
    }
    let mut backends = Vec::new();
    for written in parts.backends {
        backends.extend(backend(written, parts.grpc, home, index, problems));
    }
    let sum: u64 = backends.iter().map(|b: &WeightedBackend| u64::from(b.weight)).sum();
    if parts.backends.is_empty() {
        problems
            .warning(Rule::NoEffect, parts.span, "the rule has no backend and answers 500")
            .help("add backendRefs");
        return Outcome::Respond(server_error("the route has no backend"));
    }
    if sum == 0 && backends.len() == parts.backends.len() {
        let span = parts.backends[0].weight.as_ref().map_or(parts.span, |w| w.span);
        problems
            .warning(Rule::NoEffect, span, "the weights add up to 0, so the rule answers 500")
            .help("give a backend a weight above 0");
        return Outcome::Respond(server_error("the route's backends have no weight"));
    }
    Outcome::Forward {
        backends,
        host: filters.host.clone(),
        path: filters.path.clone(),
        mirrors: filters.mirrors.clone(),
    }
}

fn server_error(body: &str) -> DirectResponse {
    DirectResponse { status: 500, body: format!("{body}\n") }
}

fn backend(
    written: &HttpBackendRef,
    grpc: bool,
    home: Home<'_>,
    index: &Index<'_>,
    problems: &mut Problems,
) -> Option<WeightedBackend> {
    let name = BackendName {
        group: &written.group,
        kind: &written.kind,
        namespace: &written.namespace,
        name: &written.name,
        port: written.port.as_ref().map(|p| p.span),
    };
    let filters = backend_filters(&written.filters, home, index, problems);
    let backend = index.backend(&name, home.namespace, problems)?;
    let wrong = match backend.protocol {
        ServiceProtocol::Tcp => Some("TCP, which has no requests to route"),
        ServiceProtocol::Http if grpc => Some("HTTP/1.1, which cannot carry gRPC"),
        _ => None,
    };
    if let Some(why) = wrong {
        let message = format!("the Service {} speaks {why}", ticked(&written.name));
        let help =
            if grpc { "set its protocol to GRPC" } else { "use a TCPRoute, or set its protocol" };
        invalid(written.name.span, message, help, problems);
        return None;
    }
    Some(WeightedBackend {
        service: backend.service,
        weight: written.weight.as_ref().map_or(1, |w| ***w),
        request_headers: filters.request_headers,
        response_headers: filters.response_headers,
    })
}

fn backend_filters(
    written: &[HttpFilter],
    home: Home<'_>,
    index: &Index<'_>,
    problems: &mut Problems,
) -> Filters {
    filters::compile(written, Place::Backend, home.namespace, index, problems)
}
