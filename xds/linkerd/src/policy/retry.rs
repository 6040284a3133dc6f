//! [`RetryPolicy`] as Linkerd says it.
//!
//! A proxy asks neither whether a method is idempotent nor for an `Idempotency-Key`. So what may repeat work is
//! told for the methods that may be repeated, and for the others only what it retries in any case: a stream that
//! was refused, and a request that never left it.

use linkerd2_proxy_api::outbound::http_route::{
    Retry,
    retry::{Conditions, conditions::StatusRange},
};
use towpath_policies::model::{Action, RetryCondition, RetryPolicy, Route};

use crate::duration;

/// Whether the route is to be retried in another way where the method allows it.
pub(super) fn depends_on_method(route: &Route) -> bool {
    let Action::Forward(forward) = &route.action else { return false };
    route.matches.method.is_none() && encode(&forward.retry, true) != encode(&forward.retry, false)
}

/// `None` where nothing is ever retried.
pub(super) fn encode(retry: &RetryPolicy, idempotent: bool) -> Option<Retry> {
    if retry.attempts == 0 {
        return None;
    }
    let timeout = retry.per_try_timeout.filter(|_| retry.on.contains(&RetryCondition::Timeout));
    Some(Retry {
        max_retries: retry.attempts.min(u16::MAX.into()),
        max_request_bytes: u32::try_from(retry.replay_limit_bytes).unwrap_or(u32::MAX),
        conditions: Some(Conditions {
            status_ranges: if idempotent { ranges(&retry.on) } else { Vec::new() },
        }),
        // What passes it is retried, so that it is told only where it may be.
        timeout: timeout.filter(|_| idempotent).map(duration),
        backoff: Some(super::backoff(retry.backoff_base, retry.backoff_max)),
    })
}

fn ranges(on: &[RetryCondition]) -> Vec<StatusRange> {
    let mut codes: Vec<u32> = on
        .iter()
        .flat_map(|condition| match condition {
            RetryCondition::Status(codes) => codes.as_slice(),
            _ => &[],
        })
        .map(|code| u32::from(*code))
        // A proxy refuses the whole policy for others.
        .filter(|code| (100..=599).contains(code))
        .collect();
    codes.sort_unstable();
    codes.dedup();
    let mut ranges: Vec<StatusRange> = Vec::new();
    for code in codes {
        match ranges.last_mut() {
            Some(last) if last.end + 1 == code => last.end = code,
            _ => ranges.push(StatusRange { start: code, end: code }),
        }
    }
    ranges
}
