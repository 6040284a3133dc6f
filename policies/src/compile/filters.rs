//! Filters of rules and backends.

use crate::{
    diagnostic::Rule,
    document::{
        read::{invalid, ticked},
        route::{
            FilterType, HeaderModifier, HttpFilter, PathModifier, PathModifierType, RequestMirror,
            RequestRedirect, Scheme,
        },
    },
    model::{HeaderEdit, HostRewrite, Mirror, PathRewrite, Redirect},
    problem::{At, Problems, Span},
};

use super::{
    index::{BackendName, Index},
    matches,
};

/// What the filters of a rule say together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filters {
    pub(crate) request_headers: HeaderEdit,
    pub(crate) response_headers: HeaderEdit,
    pub(crate) host: HostRewrite,
    pub(crate) path: Option<PathRewrite>,
    pub(crate) mirrors: Vec<Mirror>,
    pub(crate) redirect: Option<(Redirect, Span)>,
    /// Where a prefix is replaced, which only a prefix match allows.
    pub(crate) replaces_prefix: Option<Span>,
}

/// What may be filtered where.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    HttpRule,
    GrpcRule,
    Backend,
}

pub(crate) fn compile(
    written: &[HttpFilter],
    place: Place,
    home: &str,
    index: &Index<'_>,
    problems: &mut Problems,
) -> Filters {
    let mut filters = Filters::default();
    let mut seen: Vec<(FilterType, Span)> = Vec::new();
    for filter in written {
        let kind = filter.kind.value;
        if !well_formed(filter, problems) || !allowed(filter, place, problems) {
            continue;
        }
        let earlier = seen.iter().find(|(k, _)| *k == kind && kind != FilterType::RequestMirror);
        if let Some((_, first)) = earlier {
            problems
                .error(Rule::Duplicate, filter.kind.span, "this filter may be there only once")
                .related(*first, "first here");
        }
        seen.push((kind, filter.kind.span));
        if let Some(modifier) = &filter.request_header_modifier {
            filters.request_headers = header_edit(modifier, true, problems);
        }
        if let Some(modifier) = &filter.response_header_modifier {
            filters.response_headers = header_edit(modifier, false, problems);
        }
        if let Some(mirror) = &filter.request_mirror {
            filters.mirrors.extend(self::mirror(mirror, home, index, problems));
        }
        if let Some(redirect) = &filter.request_redirect {
            let compiled = self::redirect(redirect, &mut filters, problems);
            filters.redirect = Some((compiled, filter.kind.span));
        }
        if let Some(rewrite) = &filter.url_rewrite {
            if let Some(host) = &rewrite.hostname {
                filters.host = HostRewrite::Literal(host.to_string());
            }
            if let Some(path) = &rewrite.path {
                filters.path = path_rewrite(path, &mut filters.replaces_prefix, problems);
            }
            if rewrite.hostname.is_none() && rewrite.path.is_none() {
                problems.warning(Rule::NoEffect, rewrite.span, "nothing is rewritten");
            }
        }
    }
    let of = |kind| seen.iter().find(|(k, _)| *k == kind);
    if let (Some((_, rewrite)), Some((_, redirect))) =
        (of(FilterType::UrlRewrite), of(FilterType::RequestRedirect))
    {
        problems
            .error(Rule::Conflict, *rewrite, "a redirect cannot be rewritten")
            .related(*redirect, "the redirect");
    }
    filters
}

/// Whether exactly the member that `type` names is given.
fn well_formed(filter: &HttpFilter, problems: &mut Problems) -> bool {
    let members = [
        (
            FilterType::RequestHeaderModifier,
            "requestHeaderModifier",
            filter.request_header_modifier.as_ref().map(|m| m.span),
        ),
        (
            FilterType::ResponseHeaderModifier,
            "responseHeaderModifier",
            filter.response_header_modifier.as_ref().map(|m| m.span),
        ),
        (
            FilterType::RequestMirror,
            "requestMirror",
            filter.request_mirror.as_ref().map(|m| m.span),
        ),
        (
            FilterType::RequestRedirect,
            "requestRedirect",
            filter.request_redirect.as_ref().map(|m| m.span),
        ),
        (FilterType::UrlRewrite, "urlRewrite", filter.url_rewrite.as_ref().map(|m| m.span)),
    ];
    let mut good = true;
    for (kind, name, given) in members {
        match given {
            None if kind == filter.kind.value => {
                let message = format!("`{name}` is missing");
                problems
                    .error(Rule::MissingField, filter.kind.span, message)
                    .help("`type` names it");
                good = false;
            }
            Some(span) if kind != filter.kind.value => {
                problems
                    .error(Rule::Conflict, span, format!("`{name}` does not belong to this `type`"))
                    .help("write one filter for each");
                good = false;
            }
            _ => {}
        }
    }
    good
}

fn allowed(filter: &HttpFilter, place: Place, problems: &mut Problems) -> bool {
    let kind = filter.kind.value;
    let header =
        matches!(kind, FilterType::RequestHeaderModifier | FilterType::ResponseHeaderModifier);
    let help = match place {
        Place::HttpRule => return true,
        Place::Backend if header => return true,
        Place::Backend => {
            "a backendRef may have RequestHeaderModifier and ResponseHeaderModifier; put the others on the rule"
        }
        Place::GrpcRule if header || kind == FilterType::RequestMirror => return true,
        Place::GrpcRule => {
            "a GRPCRoute may have RequestHeaderModifier, ResponseHeaderModifier and RequestMirror"
        }
    };
    problems
        .error(Rule::Unsupported, filter.kind.span, "this filter is not supported here")
        .help(help);
    false
}

/// Fields that belong to a connection or frame a message (RFC 9110 section
/// 7.6.1, RFC 9112 section 6): editing them would break the exchange.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

fn header_edit(
    modifier: &At<HeaderModifier>,
    request: bool,
    problems: &mut Problems,
) -> HeaderEdit {
    let mut edit = HeaderEdit::default();
    let mut seen: Vec<(String, Span)> = Vec::new();
    let mut name = |written: &At<crate::document::value::HeaderName>, problems: &mut Problems| {
        let name = written.to_ascii_lowercase();
        if FRAMING.contains(&name.as_str()) {
            let help = "headers that belong to the connection are the proxy's own";
            invalid(written.span, format!("{} cannot be changed", ticked(written)), help, problems);
        }
        if request && name == "host" {
            let help = "use a URLRewrite filter with a hostname";
            invalid(written.span, "`host` cannot be changed by a header filter", help, problems);
        }
        if let Some((_, first)) = seen.iter().find(|(earlier, _)| *earlier == name) {
            problems
                .error(
                    Rule::Duplicate,
                    written.span,
                    format!("the header {} is there twice", ticked(&name)),
                )
                .related(*first, "first here");
        }
        seen.push((name.clone(), written.span));
        name
    };
    for pair in &modifier.set {
        edit.set.push((name(&pair.name, problems), pair.value.to_string()));
    }
    for pair in &modifier.add {
        edit.add.push((name(&pair.name, problems), pair.value.to_string()));
    }
    for removed in &modifier.remove {
        edit.remove.push(name(removed, problems));
    }
    if edit.is_empty() {
        problems.warning(Rule::NoEffect, modifier.span, "no header is changed");
    }
    edit
}

fn mirror(
    written: &RequestMirror,
    home: &str,
    index: &Index<'_>,
    problems: &mut Problems,
) -> Option<Mirror> {
    const ALL: u64 = 1_000_000;
    let share = match (&written.percent, &written.fraction) {
        (Some(percent), Some(fraction)) => {
            problems
                .error(
                    Rule::Conflict,
                    fraction.span,
                    "only one of `percent`, `fraction` may be given",
                )
                .related(percent.span, "the other");
            return None;
        }
        (Some(percent), None) => u64::from(***percent) * 10_000,
        (None, Some(fraction)) => {
            let denominator = fraction.denominator.as_ref().map_or(100, |d| ***d);
            let numerator = **fraction.numerator;
            if numerator > denominator {
                let help = "a share of at most 1";
                invalid(fraction.numerator.span, "larger than the denominator", help, problems);
                return None;
            }
            u64::from(numerator) * ALL / u64::from(denominator)
        }
        (None, None) => ALL,
    };
    let target = &written.backend_ref;
    let name = BackendName {
        group: &target.group,
        kind: &target.kind,
        namespace: &target.namespace,
        name: &target.name,
        port: target.port.as_ref().map(|p| p.span),
    };
    let backend = index.backend(&name, home, problems)?;
    let parts_per_million = u32::try_from(share).unwrap_or(1_000_000);
    Some(Mirror { service: backend.service, parts_per_million })
}

fn redirect(written: &RequestRedirect, filters: &mut Filters, problems: &mut Problems) -> Redirect {
    let path =
        written.path.as_ref().and_then(|p| path_rewrite(p, &mut filters.replaces_prefix, problems));
    let status = written.status_code.as_ref().map_or(302, |s| ***s);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        let span = written.status_code.as_ref().map_or(written.span, |s| s.span);
        invalid(span, format!("{status} is not a redirect"), "301, 302, 303, 307 or 308", problems);
    }
    let scheme = written.scheme.as_ref().map(|s| match s.value {
        Scheme::Http => "http",
        Scheme::Https => "https",
    });
    let nothing = written.scheme.is_none()
        && written.hostname.is_none()
        && written.path.is_none()
        && written.port.is_none();
    if nothing {
        problems
            .error(Rule::InvalidValue, written.span, "the redirect leads to where it came from")
            .help("give at least one of scheme, hostname, path, port");
    }
    // A new scheme without a port means the scheme's own port, not the listener's.
    let well_known = match scheme {
        Some("https") => Some(443),
        Some(_) => Some(80),
        None => None,
    };
    let port = written.port.as_ref().and_then(|p| u16::try_from(***p).ok()).or(well_known);
    Redirect {
        scheme: scheme.map(str::to_owned),
        host: written.hostname.as_ref().map(|h| h.to_string()),
        port,
        path,
        status: u16::try_from(status).unwrap_or(302),
    }
}

fn path_rewrite(
    written: &PathModifier,
    replaces_prefix: &mut Option<Span>,
    problems: &mut Problems,
) -> Option<PathRewrite> {
    let full = written.replace_full_path.as_ref();
    let prefix = written.replace_prefix_match.as_ref();
    let extra = match written.kind.value {
        PathModifierType::ReplaceFullPath => prefix.map(|p| p.span),
        PathModifierType::ReplacePrefixMatch => full.map(|p| p.span),
    };
    if let Some(span) = extra {
        problems.error(Rule::Conflict, span, "does not belong to this `type`");
        return None;
    }
    let missing = |name: &str, problems: &mut Problems| {
        problems
            .error(Rule::MissingField, written.kind.span, format!("`{name}` is missing"))
            .help("`type` names it");
    };
    match written.kind.value {
        PathModifierType::ReplaceFullPath => {
            let Some(path) = full else {
                missing("replaceFullPath", problems);
                return None;
            };
            Some(PathRewrite::Full(path.to_string()))
        }
        PathModifierType::ReplacePrefixMatch => {
            *replaces_prefix = Some(written.kind.span);
            let Some(path) = prefix else {
                missing("replacePrefixMatch", problems);
                return None;
            };
            if !path.is_empty()
                && let Err(why) = matches::check_path(path)
            {
                let help = "a path that starts with /, or nothing to cut the prefix off";
                invalid(path.span, format!("{} {why}", ticked(path)), help, problems);
                return None;
            }
            Some(PathRewrite::Prefix(matches::prefix(path)))
        }
    }
}
