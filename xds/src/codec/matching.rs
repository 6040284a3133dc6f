//! [`RouteMatch`] ↔ Envoy's.

use envoy_types::pb::envoy::{
    config::{
        core::v3::RuntimeFractionalPercent,
        route::v3::{
            self as rds, HeaderMatcher, QueryParameterMatcher,
            header_matcher::HeaderMatchSpecifier as HeaderSpec,
            query_parameter_matcher::QueryParameterMatchSpecifier as QuerySpec,
            route_match::{GrpcRouteMatchOptions, PathSpecifier},
        },
    },
    r#type::{
        matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
        v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
};
use towpath_policies::model::{PathMatch, Pattern, RouteMatch, ValueMatch};

use super::{
    Invalid,
    common::{At, Result, refuse, refuse_if},
};

pub(super) fn encode(matches: &RouteMatch, proxyless: bool) -> rds::RouteMatch {
    let path = match &matches.path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.clone()),
        PathMatch::Prefix(prefix) if prefix == "/" => PathSpecifier::Prefix(prefix.clone()),
        PathMatch::Prefix(prefix) if proxyless => {
            PathSpecifier::SafeRegex(regex(&format!("{}{OR_BELOW}", regex::escape(prefix))))
        }
        PathMatch::Prefix(prefix) => PathSpecifier::PathSeparatedPrefix(prefix.clone()),
        PathMatch::Regex(pattern) => PathSpecifier::SafeRegex(regex(pattern.as_str())),
    };
    let method = matches.method.iter().map(|method| HeaderMatcher {
        name: METHOD.to_owned(),
        header_match_specifier: Some(HeaderSpec::StringMatch(exact(method))),
        ..Default::default()
    });
    let headers = matches.headers.iter().map(|(name, value)| HeaderMatcher {
        name: name.clone(),
        header_match_specifier: Some(match value {
            ValueMatch::Exact(text) => HeaderSpec::StringMatch(exact(text)),
            ValueMatch::Regex(pattern) => HeaderSpec::StringMatch(regex_string(pattern)),
            ValueMatch::Present => HeaderSpec::PresentMatch(true),
        }),
        ..Default::default()
    });
    let query = matches.query.iter().map(|(name, value)| QueryParameterMatcher {
        name: name.clone(),
        query_parameter_match_specifier: Some(match value {
            ValueMatch::Exact(text) => QuerySpec::StringMatch(exact(text)),
            ValueMatch::Regex(pattern) => QuerySpec::StringMatch(regex_string(pattern)),
            ValueMatch::Present => QuerySpec::PresentMatch(true),
        }),
    });
    rds::RouteMatch {
        path_specifier: Some(path),
        headers: method.chain(headers).collect(),
        query_parameters: query.collect(),
        grpc: matches.grpc.then(GrpcRouteMatchOptions::default),
        ..Default::default()
    }
}

/// `rewritten` says that the route replaces the matched prefix: then a prefix
/// match stays one, since only [`PathMatch::Prefix`] can be rewritten.
pub(super) fn decode(pb: &rds::RouteMatch, rewritten: bool) -> Result<RouteMatch> {
    refuse_if(!pb.cookies.is_empty(), "cookies", "matching on cookies is not supported")?;
    refuse_if(pb.tls_context.is_some(), "tls_context", "matching on TLS is not supported")?;
    refuse_if(
        !pb.dynamic_metadata.is_empty() || !pb.filter_state.is_empty(),
        "dynamic_metadata",
        "matching on filters' data is not supported",
    )?;
    let all = parts_per_million(pb.runtime_fraction.as_ref()) == MILLION;
    refuse_if(!all, "runtime_fraction", "matching a share of the requests is not supported")?;
    let mut matches = RouteMatch {
        path: decode_path(pb, rewritten)?,
        method: None,
        headers: Vec::new(),
        query: Vec::new(),
        grpc: pb.grpc.is_some(),
    };
    for (i, header) in pb.headers.iter().enumerate() {
        decode_header(header, &mut matches).at_index("headers", i)?;
    }
    for (i, query) in pb.query_parameters.iter().enumerate() {
        let value = match &query.query_parameter_match_specifier {
            Some(QuerySpec::StringMatch(matcher)) => decode_string(matcher),
            Some(QuerySpec::PresentMatch(false)) => refuse("matching on absence is not supported"),
            Some(QuerySpec::PresentMatch(true)) | None => Ok(ValueMatch::Present),
        };
        matches.query.push((query.name.clone(), value.at_index("query_parameters", i)?));
    }
    Ok(matches)
}

fn decode_path(pb: &rds::RouteMatch, rewritten: bool) -> Result<PathMatch> {
    let any_case = pb.case_sensitive.as_ref().is_some_and(|c| !c.value);
    let escaped = |path: &str, rest: &str| {
        let flags = if any_case { "(?is)" } else { "(?s)" };
        pattern(&format!("{flags}{}{rest}", regex::escape(path)))
    };
    match &pb.path_specifier {
        Some(PathSpecifier::Path(path)) if any_case => {
            escaped(path, "").map(PathMatch::Regex).at("path")
        }
        Some(PathSpecifier::Path(path)) => Ok(PathMatch::Exact(path.clone())),
        Some(PathSpecifier::Prefix(prefix)) if prefix.is_empty() || prefix == "/" => {
            Ok(PathMatch::Prefix("/".to_owned()))
        }
        Some(PathSpecifier::Prefix(prefix)) if rewritten && !any_case => {
            Ok(PathMatch::Prefix(prefix.trim_end_matches('/').to_owned()))
        }
        Some(PathSpecifier::Prefix(prefix)) => {
            escaped(prefix, ".*").map(PathMatch::Regex).at("prefix")
        }
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) if any_case => {
            escaped(prefix, OR_BELOW).map(PathMatch::Regex).at("path_separated_prefix")
        }
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => Ok(PathMatch::Prefix(prefix.clone())),
        Some(PathSpecifier::SafeRegex(matcher)) => match prefix_of(&matcher.regex) {
            Some(prefix) => Ok(PathMatch::Prefix(prefix)),
            None => pattern(&matcher.regex).map(PathMatch::Regex).at("safe_regex"),
        },
        Some(PathSpecifier::ConnectMatcher(_)) => {
            refuse("CONNECT is not supported").at("connect_matcher")
        }
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            refuse("URI templates are not supported").at("path_match_policy")
        }
        None => refuse("a path, prefix or safe_regex is needed"),
    }
}

/// The path of which a regular expression matches itself and what is below it.
fn prefix_of(regex: &str) -> Option<String> {
    let escaped = regex.strip_suffix(OR_BELOW)?;
    let mut prefix = String::with_capacity(escaped.len());
    let mut chars = escaped.chars();
    while let Some(c) = chars.next() {
        prefix.push(if c == '\\' { chars.next()? } else { c });
    }
    (prefix.starts_with('/') && regex::escape(&prefix) == escaped).then_some(prefix)
}

fn decode_header(header: &HeaderMatcher, matches: &mut RouteMatch) -> Result<()> {
    refuse_if(header.invert_match, "invert_match", "is not supported")?;
    refuse_if(
        header.treat_missing_header_as_empty,
        "treat_missing_header_as_empty",
        "is not supported",
    )?;
    #[expect(deprecated, reason = "older servers still write these")]
    let value = match &header.header_match_specifier {
        Some(HeaderSpec::StringMatch(matcher)) => decode_string(matcher)?,
        Some(HeaderSpec::ExactMatch(text)) => ValueMatch::Exact(text.clone()),
        Some(HeaderSpec::SafeRegexMatch(matcher)) => ValueMatch::Regex(pattern(&matcher.regex)?),
        Some(HeaderSpec::PrefixMatch(text)) => part("", text, ".*", false)?,
        Some(HeaderSpec::SuffixMatch(text)) => part(".*", text, "", false)?,
        Some(HeaderSpec::ContainsMatch(text)) => part(".*", text, ".*", false)?,
        Some(HeaderSpec::PresentMatch(false)) => {
            return refuse("matching on absence is not supported");
        }
        Some(HeaderSpec::PresentMatch(true)) | None => ValueMatch::Present,
        Some(HeaderSpec::RangeMatch(_)) => return refuse("range_match is not supported"),
    };
    let name = header.name.to_ascii_lowercase();
    if name == METHOD {
        return match value {
            ValueMatch::Exact(method) if matches.method.is_none() => {
                matches.method = Some(method);
                Ok(())
            }
            _ => refuse("only one exact :method is supported"),
        };
    }
    if name.is_empty() || name.starts_with(':') {
        return refuse(format!("{name:?} cannot be matched"));
    }
    matches.headers.push((name, value));
    Ok(())
}

fn decode_string(matcher: &StringMatcher) -> Result<ValueMatch> {
    let any_case = matcher.ignore_case;
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) if any_case => part("", text, "", true),
        Some(MatchPattern::Exact(text)) => Ok(ValueMatch::Exact(text.clone())),
        Some(MatchPattern::Prefix(text)) => part("", text, ".*", any_case),
        Some(MatchPattern::Suffix(text)) => part(".*", text, "", any_case),
        Some(MatchPattern::Contains(text)) => part(".*", text, ".*", any_case),
        Some(MatchPattern::SafeRegex(matcher)) => Ok(ValueMatch::Regex(pattern(&matcher.regex)?)),
        Some(MatchPattern::Custom(_)) | None => {
            refuse("this kind of string match is not supported")
        }
    }
}

fn part(before: &str, text: &str, after: &str, any_case: bool) -> Result<ValueMatch> {
    let flags = if any_case { "(?is)" } else { "(?s)" };
    pattern(&format!("{flags}{before}{}{after}", regex::escape(text))).map(ValueMatch::Regex)
}

fn pattern(text: &str) -> Result<Pattern> {
    Pattern::new(text).map_err(|reason| {
        let text: String = text.chars().take(128).collect();
        Invalid::new(format!("regular expression {text:?}: {reason}"))
    })
}

fn exact(text: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Exact(text.to_owned())), ignore_case: false }
}

fn regex_string(pattern: &Pattern) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(MatchPattern::SafeRegex(regex(pattern.as_str()))),
        ignore_case: false,
    }
}

pub(super) fn regex(text: &str) -> RegexMatcher {
    RegexMatcher { regex: text.to_owned(), ..Default::default() }
}

/// A share of the requests; all when nothing is said.
pub(super) fn parts_per_million(fraction: Option<&RuntimeFractionalPercent>) -> u32 {
    let Some(FractionalPercent { numerator, denominator }) = fraction.and_then(|f| f.default_value)
    else {
        return MILLION;
    };
    let factor = match DenominatorType::try_from(denominator) {
        Ok(DenominatorType::Million) => 1,
        Ok(DenominatorType::TenThousand) => 100,
        Ok(DenominatorType::Hundred) | Err(_) => 10_000,
    };
    numerator.saturating_mul(factor).min(MILLION)
}

pub(super) const MILLION: u32 = 1_000_000;
/// "Or continued after a slash."
const OR_BELOW: &str = "(?:/.*)?";
const METHOD: &str = ":method";
