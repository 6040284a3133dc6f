//! Whether a failed try is followed by another, and when. Pure.

use std::time::Duration;

use towpath_policies::model::{RetryCondition, RetryPolicy};

/// Why a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryReason {
    /// No connection could be made.
    Connect,
    /// The endpoint refused the stream unprocessed.
    Refused,
    /// The connection broke before a response head.
    Reset,
    /// The try's deadline passed before a response head.
    Timeout,
    /// The endpoint took too little of the request body for too long.
    Stall,
    /// This status was answered.
    Status(u16),
    /// This gRPC status was answered.
    GrpcStatus(u32),
}

/// What the decision depends on besides the policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) reason: RetryReason,
    /// Tries made, the failed one included.
    pub(super) tries: u32,
    /// The method is idempotent (RFC 9110 §9.2.2).
    pub(super) idempotent: bool,
    /// The request has an `Idempotency-Key`.
    pub(super) keyed: bool,
    /// Every body byte taken from the client so far is kept (or none was taken).
    pub(super) replayable: bool,
    /// What the endpoint asked for by `Retry-After`.
    pub(super) retry_after: Option<Duration>,
    /// A random number in [0, 1).
    pub(super) jitter: f64,
}

/// A `Retry-After` longer than this is not waited for: the answer is passed on instead.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(5);

impl RetryReason {
    /// Metric label values, in order of the variants.
    pub const NAMES: [&'static str; 7] =
        ["connect", "refused", "reset", "timeout", "stall", "status", "grpc_status"];

    /// Position in [`Self::NAMES`].
    pub(super) fn index(self) -> usize {
        match self {
            Self::Connect => 0,
            Self::Refused => 1,
            Self::Reset => 2,
            Self::Timeout => 3,
            Self::Stall => 4,
            Self::Status(_) => 5,
            Self::GrpcStatus(_) => 6,
        }
    }

    /// Whether the endpoint certainly did nothing with the request.
    fn unprocessed(self) -> bool {
        matches!(self, Self::Connect | Self::Refused)
    }
}

/// The time to wait before the next try; `None` when there is none.
///
/// What was certainly not processed may be sent again whatever the method;
/// else the method must be idempotent, or carry a key where the policy trusts
/// keys. Bytes that are gone cannot be sent again in any case.
pub(super) fn decide(policy: &RetryPolicy, facts: &Facts) -> Option<Duration> {
    let safe = facts.reason.unprocessed()
        || facts.idempotent
        || (policy.with_idempotency_key && facts.keyed);
    if facts.tries > policy.attempts
        || !safe
        || !facts.replayable
        || !policy.on.iter().any(|condition| covers(condition, facts.reason))
    {
        return None;
    }
    match facts.retry_after {
        Some(asked) if asked > MAX_RETRY_AFTER => None,
        Some(asked) => Some(asked.max(backoff(policy, facts.tries, facts.jitter))),
        None => Some(backoff(policy, facts.tries, facts.jitter)),
    }
}

/// Whether a request that was refused unprocessed may be followed by another try.
pub(super) fn repeats_refused(policy: &RetryPolicy) -> bool {
    policy.on.iter().any(|condition| covers(condition, RetryReason::Refused))
}

/// Most bytes of a body that another try may have to be sent again. Where only what was certainly
/// not processed is repeated, an endpoint has taken at most a window of it: more need not be kept.
pub(super) fn most_replayed(policy: &RetryPolicy, idempotent: bool, keyed: bool) -> u64 {
    let safe = idempotent || (policy.with_idempotency_key && keyed);
    let unprocessed_only = policy.on.iter().all(|condition| {
        matches!(condition, RetryCondition::ConnectFailure | RetryCondition::RefusedStream)
    });
    if safe && !unprocessed_only { u64::MAX } else { MOST_WINDOW }
}

/// The largest HTTP/2 window that endpoints are commonly set to.
const MOST_WINDOW: u64 = 16 << 20;

/// The time to wait before a response that broke midway is asked for elsewhere; `None` when
/// it is not. What makes it safe is the entity tag and not the reason, so that none is asked for.
pub(super) fn resume_after(policy: &RetryPolicy, tries: u32, jitter: f64) -> Option<Duration> {
    (policy.resume_downloads && tries <= policy.attempts).then(|| backoff(policy, tries, jitter))
}

/// As [`resume_after`], for an upload that a server takes up where it broke.
pub(super) fn append_after(policy: &RetryPolicy, tries: u32, jitter: f64) -> Option<Duration> {
    (tries <= policy.attempts).then(|| backoff(policy, tries, jitter))
}

/// Full jitter over an exponentially growing span, but never nothing: between half of it and all of it.
fn backoff(policy: &RetryPolicy, tries: u32, jitter: f64) -> Duration {
    let doublings = tries.saturating_sub(1).min(20);
    let span = policy.backoff_base.saturating_mul(1 << doublings).min(policy.backoff_max);
    span.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

fn covers(condition: &RetryCondition, reason: RetryReason) -> bool {
    match (condition, reason) {
        (RetryCondition::ConnectFailure, RetryReason::Connect)
        | (RetryCondition::RefusedStream, RetryReason::Refused)
        | (RetryCondition::Reset, RetryReason::Reset | RetryReason::Refused)
        | (RetryCondition::Timeout, RetryReason::Timeout)
        | (RetryCondition::Stall, RetryReason::Stall) => true,
        (RetryCondition::Status(codes), RetryReason::Status(code)) => codes.contains(&code),
        (RetryCondition::GrpcStatus(codes), RetryReason::GrpcStatus(code)) => codes.contains(&code),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
