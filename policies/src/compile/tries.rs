//! The terms of tries that Envoy's API has no words for.

use crate::{
    diagnostic::Rule,
    document::{
        Object,
        own::{RetryOn, StallSpec, TransferPolicySpec, TransferTimeouts},
        read::invalid,
    },
    model::Stall,
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
