//! [`RetryPolicy`] ↔ Envoy's.

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::route::v3::{
        self as rds, header_matcher::HeaderMatchSpecifier as HeaderSpec, retry_policy::RetryBackOff,
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};
use towpath_policies::model::{RetryCondition, RetryPolicy};

use super::{
    common::{At, Result, duration, optional_duration, read_u32, timeout, u32_value},
    matching::regex,
};

/// `None` where nothing is ever retried: gRPC refuses zero tries.
pub(super) fn encode(retry: &RetryPolicy) -> Option<rds::RetryPolicy> {
    if retry.attempts == 0 {
        return None;
    }
    let mut tokens: Vec<&str> = Vec::new();
    let mut codes = Vec::new();
    for condition in &retry.on {
        match condition {
            RetryCondition::ConnectFailure => push(&mut tokens, "connect-failure"),
            RetryCondition::RefusedStream => push(&mut tokens, "refused-stream"),
            // Envoy counts a try that timed out as a reset.
            RetryCondition::Reset | RetryCondition::Timeout => push(&mut tokens, "reset"),
            // Envoy has no word for it.
            RetryCondition::Stall => {}
            RetryCondition::Status(statuses) => {
                push(&mut tokens, "retriable-status-codes");
                codes.extend(statuses.iter().map(|code| u32::from(*code)));
            }
            RetryCondition::GrpcStatus(statuses) => {
                for (token, code) in GRPC {
                    if statuses.contains(&code) {
                        push(&mut tokens, token);
                    }
                }
            }
        }
    }
    let back_off = (!retry.backoff_base.is_zero()).then(|| RetryBackOff {
        base_interval: Some(duration(retry.backoff_base)),
        max_interval: Some(duration(retry.backoff_max.max(retry.backoff_base))),
    });
    Some(rds::RetryPolicy {
        retry_on: tokens.join(","),
        num_retries: u32_value(retry.attempts),
        per_try_timeout: retry.per_try_timeout.map(duration),
        retriable_status_codes: codes,
        retry_back_off: back_off,
        retriable_request_headers: if may_repeat_work(retry) {
            repeatable(retry.with_idempotency_key)
        } else {
            Vec::new()
        },
        ..Default::default()
    })
}

/// Whether a condition may hold for a request that was processed.
fn may_repeat_work(retry: &RetryPolicy) -> bool {
    let harmless = [RetryCondition::ConnectFailure, RetryCondition::RefusedStream];
    retry.on.iter().any(|condition| !harmless.contains(condition))
}

/// Envoy repeats any method unless told which requests may be; one of these
/// headers suffices. It has one set of them for all conditions, so other
/// requests are not repeated after a failed connect either.
fn repeatable(with_idempotency_key: bool) -> Vec<rds::HeaderMatcher> {
    let methods = StringMatcher {
        match_pattern: Some(MatchPattern::SafeRegex(regex(IDEMPOTENT_METHODS))),
        ignore_case: false,
    };
    let mut headers = vec![rds::HeaderMatcher {
        name: ":method".to_owned(),
        header_match_specifier: Some(HeaderSpec::StringMatch(methods)),
        ..Default::default()
    }];
    if with_idempotency_key {
        headers.push(rds::HeaderMatcher {
            name: "idempotency-key".to_owned(),
            header_match_specifier: Some(HeaderSpec::PresentMatch(true)),
            ..Default::default()
        });
    }
    headers
}

pub(super) fn decode(pb: Option<&rds::RetryPolicy>) -> Result<RetryPolicy> {
    let none = RetryPolicy {
        attempts: 0,
        on: Vec::new(),
        resume_downloads: false,
        ..RetryPolicy::default()
    };
    let Some(pb) = pb else { return Ok(none) };
    let mut retry = RetryPolicy {
        attempts: read_u32(pb.num_retries.as_ref()).unwrap_or(1),
        per_try_timeout: timeout(pb.per_try_timeout.as_ref(), None, "per_try_timeout")?,
        on: conditions(pb),
        ..none
    };
    if !pb.retriable_request_headers.is_empty() {
        let ours = [true, false]
            .into_iter()
            .find(|with_key| pb.retriable_request_headers == repeatable(*with_key));
        match ours {
            Some(with_key) => retry.with_idempotency_key = with_key,
            // A narrowing that cannot be kept may only mean fewer tries.
            None => retry.attempts = 0,
        }
    }
    // Envoy has no word for it: another server's route resumes as a policy file's does that says nothing.
    retry.resume_downloads = RetryPolicy::resumes_by_default(retry.attempts, &retry.on);
    if let Some(back_off) = &pb.retry_back_off {
        let base = optional_duration(back_off.base_interval.as_ref(), "base_interval")
            .at("retry_back_off")?;
        let max = optional_duration(back_off.max_interval.as_ref(), "max_interval")
            .at("retry_back_off")?;
        retry.backoff_base = base.unwrap_or(DEFAULT_BASE);
        // Envoy's default ceiling is ten times the base.
        retry.backoff_max = max.unwrap_or_else(|| retry.backoff_base.saturating_mul(10));
    }
    Ok(retry)
}

fn conditions(pb: &rds::RetryPolicy) -> Vec<RetryCondition> {
    use RetryCondition::{ConnectFailure, GrpcStatus, RefusedStream, Reset, Status, Timeout};
    let mut on: Vec<RetryCondition> = Vec::new();
    let mut grpc = Vec::new();
    let mut grpc_at = None;
    let add = |on: &mut Vec<RetryCondition>, conditions: &[RetryCondition]| {
        for condition in conditions {
            if !on.contains(condition) {
                on.push(condition.clone());
            }
        }
    };
    for token in pb.retry_on.split(',').map(str::trim) {
        match token {
            "connect-failure" => add(&mut on, &[ConnectFailure]),
            "refused-stream" => add(&mut on, &[RefusedStream]),
            "reset" | "reset-before-request" => add(&mut on, &[Reset]),
            "5xx" => add(
                &mut on,
                &[ConnectFailure, RefusedStream, Reset, Timeout, Status((500..=599).collect())],
            ),
            "gateway-error" => {
                add(&mut on, &[ConnectFailure, Reset, Timeout, Status(vec![502, 503, 504])]);
            }
            "retriable-4xx" => add(&mut on, &[Status(vec![409])]),
            "retriable-status-codes" => {
                let codes: Vec<u16> = pb
                    .retriable_status_codes
                    .iter()
                    .filter_map(|c| u16::try_from(*c).ok())
                    .collect();
                add(&mut on, &[Status(codes)]);
            }
            // Tokens nobody knows only mean fewer tries.
            token => {
                if let Some((_, code)) = GRPC.iter().find(|(known, _)| *known == token) {
                    grpc_at.get_or_insert(on.len());
                    grpc.push(*code);
                }
            }
        }
    }
    if let Some(at) = grpc_at {
        on.insert(at, GrpcStatus(grpc));
    }
    on
}

fn push<'a>(tokens: &mut Vec<&'a str>, token: &'a str) {
    if !tokens.contains(&token) {
        tokens.push(token);
    }
}

/// The gRPC status codes `retry_on` has words for.
const GRPC: [(&str, u32); 5] = [
    ("cancelled", 1),
    ("deadline-exceeded", 4),
    ("resource-exhausted", 8),
    ("internal", 13),
    ("unavailable", 14),
];
/// The methods that RFC 9110 §9.2.2 calls idempotent, as a regular expression for all of the text.
const IDEMPOTENT_METHODS: &str = "GET|HEAD|OPTIONS|TRACE|PUT|DELETE";
/// Envoy's default.
const DEFAULT_BASE: Duration = Duration::from_millis(25);

#[cfg(test)]
mod tests;
