//! [`Action`] ↔ a route's action.

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::{
        core::v3::{DataSource, RuntimeFractionalPercent, data_source},
        route::v3::{
            self as rds, DirectResponseAction, RedirectAction, RouteAction, WeightedCluster,
            redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
            route::Action as PbAction,
            route_action::{
                ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration, RequestMirrorPolicy,
            },
            weighted_cluster::ClusterWeight,
        },
    },
    r#type::{
        matcher::v3::RegexMatchAndSubstitute,
        v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
};
use towpath_policies::model::{
    Action, DirectResponse, Forward, HostRewrite, Mirror, PathMatch, PathRewrite, Redirect,
    Transfer, WeightedBackend,
};

use super::{
    Invalid,
    common::{At, Result, duration, read_u32, refuse, refuse_if, timeout, u32_value},
    headers, matching, retry,
};

pub(super) fn encode(action: &Action, path: &PathMatch) -> PbAction {
    match action {
        Action::Forward(forward) => PbAction::Route(encode_forward(forward, path)),
        Action::Redirect(redirect) => PbAction::Redirect(encode_redirect(redirect, path)),
        Action::Respond(respond) => PbAction::DirectResponse(DirectResponseAction {
            status: respond.status.into(),
            body: (!respond.body.is_empty()).then(|| DataSource {
                specifier: Some(data_source::Specifier::InlineString(respond.body.clone())),
                ..Default::default()
            }),
            ..Default::default()
        }),
    }
}

pub(super) fn decode(
    action: &PbAction,
    path: &PathMatch,
    host: &rds::VirtualHost,
) -> Result<Action> {
    match action {
        PbAction::Route(route) => {
            decode_forward(route, path, host).map(Action::Forward).at("route")
        }
        PbAction::Redirect(redirect) => {
            decode_redirect(redirect, path).map(Action::Redirect).at("redirect")
        }
        PbAction::DirectResponse(respond) => {
            decode_respond(respond).map(Action::Respond).at("direct_response")
        }
        PbAction::FilterAction(_) | PbAction::NonForwardingAction(_) => {
            refuse("only route, redirect and direct_response are supported")
        }
    }
}

/// Whether an action replaces the prefix that its match found.
pub(super) fn rewrites_prefix(action: Option<&PbAction>) -> bool {
    match action {
        Some(PbAction::Route(route)) => !route.prefix_rewrite.is_empty(),
        Some(PbAction::Redirect(redirect)) => {
            matches!(redirect.path_rewrite_specifier, Some(PathRewriteSpecifier::PrefixRewrite(_)))
        }
        _ => false,
    }
}

fn encode_forward(forward: &Forward, path: &PathMatch) -> RouteAction {
    let (prefix_rewrite, regex_rewrite) = match forward.path.as_ref().map(|p| rewrite(p, path)) {
        None => (String::new(), None),
        Some(Rewrite::Prefix(prefix)) => (prefix, None),
        Some(Rewrite::Regex(regex)) => (String::new(), Some(regex)),
    };
    RouteAction {
        cluster_specifier: Some(encode_backends(&forward.backends)),
        host_rewrite_specifier: match &forward.host {
            HostRewrite::Keep => None,
            HostRewrite::Literal(host) => {
                Some(HostRewriteSpecifier::HostRewriteLiteral(host.clone()))
            }
        },
        prefix_rewrite,
        regex_rewrite,
        request_mirror_policies: forward.mirrors.iter().map(encode_mirror).collect(),
        timeout: Some(duration(forward.timeout.unwrap_or_default())),
        idle_timeout: Some(duration(forward.idle_timeout.unwrap_or_default())),
        // gRPC clients take their deadline from here, Envoy only its ceiling
        // for deadlines that a request brings.
        max_stream_duration: forward.timeout.map(|timeout| MaxStreamDuration {
            grpc_timeout_header_max: Some(duration(timeout)),
            ..Default::default()
        }),
        retry_policy: retry::encode(&forward.retry),
        ..Default::default()
    }
}

fn encode_backends(backends: &[WeightedBackend]) -> ClusterSpecifier {
    match backends {
        [only]
            if only.weight == 1
                && only.request_headers.is_empty()
                && only.response_headers.is_empty() =>
        {
            ClusterSpecifier::Cluster(only.service.clone())
        }
        _ => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: backends.iter().map(encode_backend).collect(),
            ..Default::default()
        }),
    }
}

fn encode_backend(backend: &WeightedBackend) -> ClusterWeight {
    let (request_headers_to_add, request_headers_to_remove) =
        headers::encode(&backend.request_headers);
    let (response_headers_to_add, response_headers_to_remove) =
        headers::encode(&backend.response_headers);
    ClusterWeight {
        name: backend.service.clone(),
        weight: u32_value(backend.weight),
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        ..Default::default()
    }
}

fn encode_mirror(mirror: &Mirror) -> RequestMirrorPolicy {
    RequestMirrorPolicy {
        cluster: mirror.service.clone(),
        runtime_fraction: Some(RuntimeFractionalPercent {
            default_value: Some(FractionalPercent {
                numerator: mirror.parts_per_million,
                denominator: DenominatorType::Million as i32,
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn decode_forward(pb: &RouteAction, path: &PathMatch, host: &rds::VirtualHost) -> Result<Forward> {
    refuse_if(pb.metadata_match.is_some(), "metadata_match", "endpoint subsets are not supported")?;
    refuse_if(pb.path_rewrite_policy.is_some(), "path_rewrite_policy", "is not supported")?;
    refuse_if(!pb.path_rewrite.is_empty(), "path_rewrite", "is not supported")?;
    let own = decode_mirrors(&pb.request_mirror_policies)?;
    let mirrors = if own.is_empty() { decode_mirrors(&host.request_mirror_policies)? } else { own };
    let mut limit = timeout(pb.timeout.as_ref(), Some(DEFAULT_TIMEOUT), "timeout")?;
    if let Some(stream) = &pb.max_stream_duration {
        let whole = timeout(stream.max_stream_duration.as_ref(), None, "max_stream_duration")?;
        limit = limit.into_iter().chain(whole).min();
    }
    Ok(Forward {
        backends: decode_backends(pb.cluster_specifier.as_ref())?,
        host: match &pb.host_rewrite_specifier {
            None => HostRewrite::Keep,
            Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                HostRewrite::Literal(host.clone())
            }
            Some(HostRewriteSpecifier::AutoHostRewrite(auto)) if !auto.value => HostRewrite::Keep,
            Some(_) => return refuse("only host_rewrite_literal is supported").at("host_rewrite"),
        },
        path: decode_rewrite(&pb.prefix_rewrite, pb.regex_rewrite.as_ref(), path)?,
        mirrors,
        timeout: limit,
        idle_timeout: timeout(pb.idle_timeout.as_ref(), Some(DEFAULT_IDLE), "idle_timeout")?,
        retry: retry::decode(pb.retry_policy.as_ref().or(host.retry_policy.as_ref()))
            .at("retry_policy")?,
        transfer: Transfer::default(),
    })
}

fn decode_backends(pb: Option<&ClusterSpecifier>) -> Result<Vec<WeightedBackend>> {
    let backends = match pb {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => {
            vec![WeightedBackend::new(name)]
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            let clusters = weighted.clusters.iter().enumerate();
            clusters
                .map(|(i, c)| decode_backend(c).at_index("weighted_clusters.clusters", i))
                .collect::<Result<_>>()?
        }
        _ => return refuse("needs a cluster or weighted_clusters (no cluster_header, no plugins)"),
    };
    match backends.iter().try_fold(0u32, |sum, b| sum.checked_add(b.weight)) {
        Some(0) => refuse("the weights add up to 0").at("weighted_clusters"),
        Some(_) => Ok(backends),
        None => refuse("the weights add up to more than 2^32 - 1").at("weighted_clusters"),
    }
}

fn decode_backend(pb: &ClusterWeight) -> Result<WeightedBackend> {
    refuse_if(pb.name.is_empty(), "name", "must not be empty (cluster_header is not supported)")?;
    refuse_if(pb.metadata_match.is_some(), "metadata_match", "endpoint subsets are not supported")?;
    refuse_if(
        pb.host_rewrite_specifier.is_some(),
        "host_rewrite_literal",
        "is supported on the route only",
    )?;
    Ok(WeightedBackend {
        service: pb.name.clone(),
        weight: read_u32(pb.weight.as_ref()).unwrap_or(1),
        request_headers: headers::decode(&pb.request_headers_to_add, &pb.request_headers_to_remove)
            .at("request")?,
        response_headers: headers::decode(
            &pb.response_headers_to_add,
            &pb.response_headers_to_remove,
        )
        .at("response")?,
    })
}

fn decode_mirrors(policies: &[RequestMirrorPolicy]) -> Result<Vec<Mirror>> {
    let one = |(i, pb): (usize, &RequestMirrorPolicy)| {
        if pb.cluster.is_empty() {
            return refuse("needs a cluster").at_index("request_mirror_policies", i);
        }
        Ok(Mirror {
            service: pb.cluster.clone(),
            parts_per_million: matching::parts_per_million(pb.runtime_fraction.as_ref()),
        })
    };
    policies.iter().enumerate().map(one).collect()
}

enum Rewrite {
    Prefix(String),
    Regex(RegexMatchAndSubstitute),
}

/// Envoy puts a prefix rewrite where the matched text was; Gateway API joins
/// the rest of the path with exactly one `/`.
fn rewrite(rewrite: &PathRewrite, path: &PathMatch) -> Rewrite {
    match (rewrite, path) {
        (PathRewrite::Full(full), _) => Rewrite::Regex(RegexMatchAndSubstitute {
            pattern: Some(matching::regex(WHOLE_PATH)),
            substitution: full.replace('\\', "\\\\"),
        }),
        (PathRewrite::Prefix(to), PathMatch::Prefix(from)) => {
            let to = to.trim_end_matches('/');
            match (from.as_str(), to) {
                ("/", to) => Rewrite::Prefix(format!("{to}/")),
                (from, "") => Rewrite::Regex(strip(from)),
                (_, to) => Rewrite::Prefix(to.to_owned()),
            }
        }
        (PathRewrite::Prefix(to), _) => Rewrite::Prefix(to.clone()),
    }
}

/// Replaces a prefix by `/` without doubling the `/` that follows.
fn strip(prefix: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute {
        pattern: Some(matching::regex(&format!("^{}/*", regex::escape(prefix)))),
        substitution: "/".to_owned(),
    }
}

fn decode_rewrite(
    prefix: &str,
    regex: Option<&RegexMatchAndSubstitute>,
    path: &PathMatch,
) -> Result<Option<PathRewrite>> {
    if !prefix.is_empty() {
        return Ok(Some(match path {
            PathMatch::Prefix(_) => PathRewrite::Prefix(match prefix.trim_end_matches('/') {
                "" => "/".to_owned(),
                prefix => prefix.to_owned(),
            }),
            // Envoy replaces all that an exact or regex match found: the path.
            PathMatch::Exact(_) | PathMatch::Regex(_) => PathRewrite::Full(prefix.to_owned()),
        }));
    }
    let Some(regex) = regex else { return Ok(None) };
    if let PathMatch::Prefix(from) = path
        && *regex == strip(from)
    {
        return Ok(Some(PathRewrite::Prefix("/".to_owned())));
    }
    let pattern = regex.pattern.as_ref().map_or("", |p| p.regex.as_str());
    match unescape(&regex.substitution) {
        Some(full) if [WHOLE_PATH, "^.*$", "^/.*"].contains(&pattern) => {
            Ok(Some(PathRewrite::Full(full)))
        }
        _ => refuse("only the whole path can be replaced by a regex_rewrite").at("regex_rewrite"),
    }
}

/// The literal text of a substitution, unless it refers to a group.
fn unescape(substitution: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = substitution.chars();
    while let Some(c) = chars.next() {
        if c == '\\' && chars.next()? != '\\' {
            return None;
        }
        out.push(c);
    }
    Some(out)
}

fn encode_redirect(redirect: &Redirect, path: &PathMatch) -> RedirectAction {
    let code = match redirect.status {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    let path =
        redirect.path.as_ref().map(|rewritten| match (rewritten, rewrite(rewritten, path)) {
            (PathRewrite::Full(full), _) => PathRewriteSpecifier::PathRedirect(full.clone()),
            (_, Rewrite::Prefix(prefix)) => PathRewriteSpecifier::PrefixRewrite(prefix),
            (_, Rewrite::Regex(regex)) => PathRewriteSpecifier::RegexRewrite(regex),
        });
    RedirectAction {
        host_redirect: redirect.host.clone().unwrap_or_default(),
        port_redirect: redirect.port.unwrap_or(0).into(),
        response_code: code as i32,
        scheme_rewrite_specifier: redirect
            .scheme
            .clone()
            .map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: path,
        ..Default::default()
    }
}

fn decode_redirect(pb: &RedirectAction, path: &PathMatch) -> Result<Redirect> {
    refuse_if(pb.strip_query, "strip_query", "is not supported")?;
    let status = match RedirectResponseCode::try_from(pb.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => 301,
        Ok(RedirectResponseCode::Found) => 302,
        Ok(RedirectResponseCode::SeeOther) => 303,
        Ok(RedirectResponseCode::TemporaryRedirect) => 307,
        Ok(RedirectResponseCode::PermanentRedirect) => 308,
        Err(_) => return refuse("unknown code").at("response_code"),
    };
    let scheme = match &pb.scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.to_ascii_lowercase()),
    };
    if scheme.as_ref().is_some_and(|s| s != "http" && s != "https") {
        return refuse("must be http or https").at("scheme_redirect");
    }
    let path = match &pb.path_rewrite_specifier {
        None => None,
        Some(PathRewriteSpecifier::PathRedirect(full)) => Some(PathRewrite::Full(full.clone())),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => decode_rewrite(prefix, None, path)?,
        Some(PathRewriteSpecifier::RegexRewrite(regex)) => decode_rewrite("", Some(regex), path)?,
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            return refuse("is not supported").at("path_rewrite");
        }
    };
    Ok(Redirect {
        scheme,
        host: (!pb.host_redirect.is_empty()).then(|| pb.host_redirect.clone()),
        port: match u16::try_from(pb.port_redirect) {
            Ok(0) => None,
            Ok(port) => Some(port),
            Err(_) => return refuse("is no port").at("port_redirect"),
        },
        path,
        status,
    })
}

fn decode_respond(pb: &DirectResponseAction) -> Result<DirectResponse> {
    refuse_if(pb.body_format.is_some(), "body_format", "is not supported")?;
    let status = u16::try_from(pb.status).ok().filter(|s| (200..600).contains(s));
    let status = status.ok_or_else(|| Invalid::new("must be 200 to 599").within("status"))?;
    let body = match pb.body.as_ref().and_then(|b| b.specifier.as_ref()) {
        None => String::new(),
        Some(data_source::Specifier::InlineString(text)) => text.clone(),
        Some(data_source::Specifier::InlineBytes(bytes)) => {
            String::from_utf8_lossy(bytes).into_owned()
        }
        Some(_) => return refuse("only an inline body is supported").at("body"),
    };
    refuse_if(body.len() > MAX_BODY_BYTES, "body", "longer than 4 KiB")?;
    Ok(DirectResponse { status, body })
}

const WHOLE_PATH: &str = "^/.*$";
/// Envoy's default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's default `stream_idle_timeout`.
const DEFAULT_IDLE: Duration = Duration::from_secs(300);
const MAX_BODY_BYTES: usize = 4_096;
