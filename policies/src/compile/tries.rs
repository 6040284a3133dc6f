//! The terms of tries that Envoy's API has no words for.

use crate::{
    diagnostic::Rule,
    document::{
        Object,
        own::{
            HedgeSpec, RetryOn, ServiceSpec, StallSpec, TransferPolicySpec, TransferResume,
            TransferTimeouts,
        },
        read::invalid,
        value::parse_time,
    },
    model::{Hedge, HedgeAfter, Stall},
    problem::{At, Problems},
};

/// What is wrong with these policies by themselves, and with all of them together.
pub(super) fn check(policies: &[Object<TransferPolicySpec>], problems: &mut Problems) {
    let mut stalls = false;
    for policy in policies {
        if let Some(timeouts) = &policy.spec.timeouts
            && let Some(written) = &timeouts.stall
        {
            stalls |= stall(written).is_some();
            check_stall(timeouts, written, problems);
        }
        if let Some(resume) = &policy.spec.resume {
            check_resume(&policy.spec, resume, problems);
        }
        if let Some(hedge) = &policy.spec.hedge {
            check_hedge(&policy.spec, hedge, problems);
        }
    }
    if stalls {
        return;
    }
    let conditions = policies.iter().filter_map(|p| p.spec.retry.as_ref()?.conditions.as_ref());
    for condition in conditions.flat_map(|on| on.iter()).filter(|on| on.value == RetryOn::Stall) {
        problems
            .error(Rule::NoEffect, condition.span, "nothing is ever taken for a stall")
            .help("say what a stall is: `timeouts: {stall: {below: 10KiB, for: 30s}}`");
    }
}

/// Whether transfers can be resumed as the policy says.
fn check_resume(spec: &TransferPolicySpec, resume: &TransferResume, problems: &mut Problems) {
    let on = |said: &Option<At<bool>>| said.as_ref().filter(|said| said.value).map(|on| on.span);
    let (downloads, uploads) = (on(&resume.downloads), on(&resume.uploads));
    let attempts = spec.retry.as_ref().and_then(|retry| retry.attempts.as_ref());
    if let Some(attempts) = attempts.filter(|attempts| ****attempts == 0) {
        for (span, what, field) in
            [(downloads, "a download", "downloads"), (uploads, "an upload", "uploads")]
        {
            let Some(span) = span else { continue };
            let message = format!("{what} cannot be resumed without a further try");
            problems
                .error(Rule::Conflict, span, message)
                .related(attempts.span, "no further try is allowed")
                .help(format!("allow attempts, or set {field}: false"));
        }
    }
    let make = spec.integrity.as_ref().and_then(|integrity| integrity.make.as_ref());
    if let (Some(span), Some(make)) = (uploads, make.filter(|make| make.value)) {
        problems
            .error(Rule::Conflict, span, "an upload that is given a digest here is not resumed")
            .related(make.span, "digests are made")
            .help("set uploads: false, or make: false");
    }
}

/// The floor as it is written; `None` where it is 0.
pub(super) fn stall(written: &At<StallSpec>) -> Option<Stall> {
    let time = written.time.as_ref()?.0;
    (written.below.0 > 0).then_some(Stall { below_bytes: written.below.0, time })
}

fn check_stall(timeouts: &TransferTimeouts, written: &At<StallSpec>, problems: &mut Problems) {
    let below = &written.below;
    let Some(time) = &written.time else {
        if below.0 > 0 {
            problems
                .error(Rule::MissingField, written.span, "for how long is not said")
                .help("add `for`, such as `for: 30s`");
        }
        return;
    };
    if below.0 == 0 {
        problems
            .error(Rule::NoEffect, time.span, "nothing is below a floor of 0")
            .related(below.span, "the floor")
            .help("leave `for` out, or give a floor");
    } else if time.0 < Stall::SHORTEST {
        invalid(
            time.span,
            "is too short to tell a stall from a round trip",
            "at least 1s",
            problems,
        );
    } else if let Some(request) = &timeouts.request
        && request.limit().is_some_and(|limit| limit <= time.0)
    {
        problems
            .error(Rule::NoEffect, time.span, "the whole request ends before it is seen to stall")
            .related(request.span, "the whole request")
            .help("`for` must be shorter than `request`");
    }
}

/// The hedge as it is written; `None` where it is off.
pub(super) fn hedge(written: &At<HedgeSpec>) -> Option<Hedge> {
    if written.disabled.as_ref().is_some_and(|off| off.value) {
        return None;
    }
    let default = Hedge::default();
    let after = written.after.as_ref().map_or(default.after, |after| lateness(after));
    Some(Hedge {
        after,
        max_bytes: written.max_bytes.as_ref().map_or(default.max_bytes, |b| b.0),
        min_samples: written.min_samples.as_ref().map_or(default.min_samples, |n| ***n),
    })
}

/// A hedge needs a second endpoint, which may yet come.
pub(super) fn check_choice(
    policy: &TransferPolicySpec,
    service: &ServiceSpec,
    problems: &mut Problems,
) {
    let Some(written) = policy.hedge.as_ref().filter(|written| hedge(written).is_some()) else {
        return;
    };
    if let Some(endpoints) = service.endpoints.as_ref().filter(|endpoints| endpoints.len() < 2) {
        problems
            .warning(Rule::NoEffect, written.span, "there is no other endpoint to ask")
            .related(endpoints.span, "the endpoints of the Service")
            .help("list at least two endpoints, or leave `hedge` out");
    }
}

/// The text is checked already.
fn lateness(text: &str) -> HedgeAfter {
    let percentile = text.strip_prefix('p').and_then(|percent| percent.parse().ok());
    match (percentile, parse_time(text)) {
        (Some(percent), _) => HedgeAfter::Percentile(percent),
        (None, Some(time)) => HedgeAfter::Time(time),
        (None, None) => Hedge::default().after,
    }
}

fn check_hedge(spec: &TransferPolicySpec, written: &At<HedgeSpec>, problems: &mut Problems) {
    if let Some(off) = written.disabled.as_ref().filter(|off| off.value) {
        let more =
            written.after.is_some() || written.max_bytes.is_some() || written.min_samples.is_some();
        if more {
            problems
                .error(Rule::NoEffect, off.span, "what is off has no further terms")
                .help("leave `disabled` out, or the other terms");
        }
        return;
    }
    if let Some(attempts) = spec.retry.as_ref().and_then(|retry| retry.attempts.as_ref())
        && ***attempts == 0
    {
        problems
            .error(Rule::Conflict, written.span, "a hedge is a further try, and none is allowed")
            .related(attempts.span, "no further try")
            .help("raise `attempts`, or leave `hedge` out");
    }
    if let (Some(after), Some(samples)) = (&written.after, &written.min_samples)
        && let HedgeAfter::Time(_) = lateness(after)
    {
        problems
            .error(Rule::NoEffect, samples.span, "a fixed time needs no samples")
            .related(after.span, "the time")
            .help("leave `minSamples` out, or give a percentile such as `after: p95`");
    }
    if let Some(after) = &written.after
        && let HedgeAfter::Time(time) = lateness(after)
        && let Some(per_try) = spec.timeouts.as_ref().and_then(|t| t.per_try.as_ref())
        && per_try.limit().is_some_and(|limit| limit <= time)
    {
        problems
            .error(Rule::NoEffect, after.span, "the try ends before it is late")
            .related(per_try.span, "the time for one try")
            .help("`after` must be shorter than `perTry`");
    }
}
