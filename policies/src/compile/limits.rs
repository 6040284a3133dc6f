//! Rate limits of a `TransferPolicy`, and the bandwidth of a `BreakerPolicy`.

use crate::{
    diagnostic::Rule,
    document::{
        own::{BandwidthSpec, RateLimitSpec, RateLimitsSpec, TransferPolicySpec},
        read::invalid,
    },
    model::{Bandwidth, Protocol, Rate, RateLimit, RateLimits},
    problem::Problems,
};

use super::queue;

/// A proxy reads a body in pieces up to this size; a burst below it would only make transfers stutter.
const PIECE: u64 = 256 << 10;
/// Below this rate a single piece would take minutes.
const SLOWEST: u64 = 1 << 10;
/// A burst of bytes that nobody gave: a tenth of a second's worth, and at least this.
const LEAST_BURST: u64 = 1 << 20;

/// A bandwidth below this is a misprint.
const NARROWEST: u64 = 64 << 10;

/// What is wrong with the limits of one policy.
pub(super) fn check(policy: &TransferPolicySpec, problems: &mut Problems) {
    let Some(limits) = &policy.limits else { return };
    if limits.route.is_none() && limits.tenant.is_none() {
        problems
            .error(Rule::NoEffect, limits.span, "nothing is limited")
            .help("give `route`, `tenant`, or both");
    }
    for limit in [&limits.route, &limits.tenant].into_iter().flatten() {
        check_one(limit, problems);
    }
    if let (Some(limit), None) = (&limits.tenant, &policy.tenant) {
        problems
            .error(Rule::NoEffect, limit.span, "all requests are of one tenant")
            .help("say in the same policy how a request tells its `tenant`, or limit the `route`");
    }
}

fn check_one(limit: &RateLimitSpec, problems: &mut Problems) {
    if limit.requests_per_second.is_none() && limit.bytes_per_second.is_none() {
        problems
            .error(Rule::NoEffect, limit.span, "nothing is limited")
            .help("give `requestsPerSecond` or `bytesPerSecond`");
    }
    if let (Some(burst), None) = (&limit.request_burst, &limit.requests_per_second) {
        problems
            .error(Rule::NoEffect, burst.span, "a burst of requests without a rate")
            .help("give `requestsPerSecond`");
    }
    if let (Some(burst), None) = (&limit.byte_burst, &limit.bytes_per_second) {
        problems
            .error(Rule::NoEffect, burst.span, "a burst of bytes without a rate")
            .help("give `bytesPerSecond`");
    }
    if let Some(rate) = limit.bytes_per_second.as_ref().filter(|rate| rate.0 < SLOWEST) {
        invalid(rate.span, "so slow a transfer never ends", "at least 1KiB", problems);
    }
    if let Some(burst) = limit.byte_burst.as_ref().filter(|burst| burst.0 < PIECE) {
        let message = "the burst is smaller than one piece of a body";
        invalid(burst.span, message, "at least 256KiB", problems);
    }
}

pub(super) fn bandwidth(
    written: &BandwidthSpec,
    protocol: Protocol,
    problems: &mut Problems,
) -> Bandwidth {
    let rate = &written.bytes_per_second;
    if rate.0 < NARROWEST {
        invalid(rate.span, "a bandwidth of next to nothing", "at least 64KiB", problems);
    }
    if protocol == Protocol::Tcp {
        let message = "opaque connections do not share bandwidth";
        problems.error(Rule::NoEffect, written.span, message);
    }
    let weights = written.weights.as_ref().map(queue::weights).unwrap_or_default();
    Bandwidth { bytes_per_second: rate.0.max(1), weights }
}

pub(super) fn compile(written: &RateLimitsSpec) -> RateLimits {
    let or_none = |limit: Option<&RateLimitSpec>| limit.map_or(RateLimit::default(), one);
    RateLimits { route: or_none(written.route.as_ref()), tenant: or_none(written.tenant.as_ref()) }
}

fn one(limit: &RateLimitSpec) -> RateLimit {
    let requests = limit.requests_per_second.as_ref().map(|rate| {
        let per_second = u64::from(***rate);
        let burst = limit.request_burst.as_ref().map_or(per_second, |b| u64::from(***b));
        Rate { per_second, burst }
    });
    let bytes = limit.bytes_per_second.as_ref().map(|rate| {
        let burst = limit.byte_burst.as_ref().map_or(LEAST_BURST.max(rate.0 / 10), |b| b.0);
        Rate { per_second: rate.0.max(1), burst: burst.max(1) }
    });
    RateLimit { requests, bytes }
}
