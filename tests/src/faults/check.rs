//! What must hold after a run. Pure: from what was seen to what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};

mod counters;
mod left;

pub(super) use self::{
    counters::{Counted, TALLIES},
    left::left_counted,
};
use super::{
    answer::{End, Outcome},
    plan::{At, Direction, EventKind, Fault, Plan, Quirk, Request, Wire},
    scene::Attempt,
};

/// Everything that is wrong.
pub(super) fn check(
    plan: &Plan,
    attempts: &[Attempt],
    outcomes: &[Outcome],
    counted: Option<&Counted<'_>>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for request in plan.requests() {
        let tries: Vec<_> = attempts.iter().filter(|a| a.request == request.index).collect();
        let Some(outcome) = outcomes.iter().find(|o| o.request == request.index) else {
            wrong.push(format!("#{}: its client never ended", request.index));
            continue;
        };
        let mut complain = |what: String| wrong.push(format!("#{}: {what}", request.index));
        answer(plan, request, outcome, &mut complain);
        uploads(plan, request, &tries, outcome, &mut complain);
        digests(plan, request, &tries, outcome, &mut complain);
        if is_undisturbed(plan, request) {
            asked_once(plan, request, &tries, &mut complain);
        }
    }
    lost_to_another(attempts, &mut wrong);
    slots(plan, attempts, &mut wrong);
    if let Some(counted) = counted {
        counters::check(plan, attempts, outcomes, counted, &mut wrong);
    }
    wrong
}

/// A clean end is a true one, and what nothing disturbs comes to it.
fn answer(plan: &Plan, request: &Request, outcome: &Outcome, complain: &mut impl FnMut(String)) {
    if let Some(at) = outcome.wrong {
        complain(format!("the client got a wrong byte at {at}"));
    }
    let from_endpoint = outcome.attempt.is_some();
    if outcome.end == End::Whole && from_endpoint && outcome.whole != Some(outcome.received) {
        complain(format!("ended clean after {} of {:?} bytes", outcome.received, outcome.whole));
    }
    if outcome.end == End::Whole && !from_endpoint && !is_refusal(plan, request, outcome) {
        let reason = &outcome.reason;
        complain(format!("answered {:?} by the proxy for {reason:?}", outcome.status));
    }
    let fine = outcome.end == End::Whole && outcome.status == Some(200) && from_endpoint;
    let moves = matches!(plan.event, Some(e) if e.kind == EventKind::OtherService);
    let refused = outcome.reason.as_deref().is_some_and(|why| {
        // Another try after one that took too long finds its service gone, and so does who waits.
        let waits = plan.policy.per_try.is_some() || plan.policy.queue.is_some();
        let gone = why == "no_service" && moves && waits;
        gone || plan.policy.may_refuse(why)
    });
    // What a client sends on a connection that drains, or is of age, may not be looked at
    // (RFC 9113 §6.8).
    let drains = matches!(plan.event, Some(e) if e.kind == EventKind::Drain);
    let asked = !(drains || plan.policy.age.is_some()) || outcome.status.is_some();
    if fine || refused || !asked || plan.policy.cuts() {
        return;
    }
    if is_undisturbed(plan, request) {
        complain(format!("nothing disturbed it, and yet: {outcome:?}"));
    } else if is_only_refused(plan, request) {
        complain(format!("it was refused and nothing else, and yet: {outcome:?}"));
    }
}

/// Whether the proxy's own answer is an error that says why, for a reason that there can be, and
/// when to come again where that is known.
fn is_refusal(plan: &Plan, request: &Request, outcome: &Outcome) -> bool {
    let policy = &plan.policy;
    let Some((reason, status)) = outcome.reason.as_deref().zip(outcome.status) else {
        return false;
    };
    match (reason, status) {
        ("rate_limit", 429) => policy.limit.requests.is_some() && outcome.retry_after,
        ("queue_full" | "queue_displaced" | "queue_wait", 503) => {
            policy.queue.is_some() && outcome.retry_after
        }
        ("digest", 400) => policy.integrity.check && request.quirk == Quirk::WrongDigest,
        ("digest", 502) => policy.integrity.check && is_answered_wrong(request),
        ("stall", 504) | ("client_stall", 408) => policy.stall.is_some(),
        ("overflow", 503) | ("timeout", 504) => policy.may_refuse(reason),
        ("bad_request", 400) => matches!(request.quirk, Quirk::Truncate { .. }),
        (
            "no_healthy_endpoint"
            | "connect_failure"
            | "refused"
            | "no_service"
            | "spool"
            | "upstream_reset"
            | "upstream_protocol",
            502 | 503,
        ) => true,
        _ => false,
    }
}

/// Whether an answer may not be what its digest says.
fn is_answered_wrong(request: &Request) -> bool {
    request.tries.iter().any(|fault| match fault {
        Fault::WrongDigest { .. } => true,
        Fault::WrongLength(_) => request.proved,
        _ => false,
    })
}

/// A body that is not what its digest says never ends well where digests are checked, and made
/// ones are right.
fn digests(
    plan: &Plan,
    request: &Request,
    tries: &[&Attempt],
    outcome: &Outcome,
    complain: &mut impl FnMut(String),
) {
    let terms = plan.policy.integrity;
    let lies = request.quirk == Quirk::WrongDigest;
    for attempt in tries.iter().filter(|attempt| attempt.complete) {
        let number = attempt.number;
        if lies && terms.check {
            complain(format!("try {number} ended clean against its digest"));
        }
        if attempt.proved == Some(false) && !lies {
            complain(format!("try {number} had a digest of something else"));
        }
        // Of a part there is none, and the sidecar checks what a body of told length cannot say
        // over HTTP/1.1.
        let unsaid = plan.sidecar == Some(Wire::Http2)
            && plan.endpoint == Wire::Http1
            && request.up.declared;
        let due = terms.make && request.up.size > 0 && !unsaid && !attempt.goes_on();
        if attempt.proved.is_none() && due {
            complain(format!("try {number} had no digest"));
        }
    }
    let met = outcome.attempt.and_then(|attempt| request.tries.get(attempt));
    // A body whose length was told has no room for it behind, over HTTP/1.1.
    let shown = |trailer: bool| !trailer || plan.endpoint == Wire::Http2 || !request.down.declared;
    let refuted = matches!(met, Some(Fault::WrongDigest { trailer }) if shown(*trailer));
    if refuted && terms.check && outcome.end == End::Whole {
        complain("the digest was of something else, and it ended clean".into());
    }
}

/// Nothing is asked twice that nothing disturbs, but for reads that are hedged or moved.
fn asked_once(
    plan: &Plan,
    request: &Request,
    tries: &[&Attempt],
    complain: &mut impl FnMut(String),
) {
    let policy = &plan.policy;
    if policy.per_try.is_some() || policy.stall.is_some() {
        return;
    }
    let times = tries.iter().filter(|attempt| asks_anew(attempt)).count();
    let proxies = 1 + u32::from(plan.sidecar.is_some());
    let most = if may_hedge(plan, request) { 2_usize.pow(proxies) } else { 1 };
    if times > most {
        complain(format!("nothing disturbed it, and it was asked {times} times"));
    }
}

/// Whether it asks for the whole, and was not turned away.
fn asks_anew(attempt: &Attempt) -> bool {
    !attempt.ranged && !attempt.refused && !attempt.connection.is_disowned(attempt.stream)
}

fn may_hedge(plan: &Plan, request: &Request) -> bool {
    let policy = &plan.policy;
    let digests = policy.integrity.is_on();
    request.method == "GET" && policy.hedge.is_some() && policy.queue.is_none() && !digests
}

/// An endpoint works on no more than it has slots for. Looked at where all goes well: it may be
/// late to see that it was left.
fn slots(plan: &Plan, attempts: &[Attempt], wrong: &mut Vec<String>) {
    let Some(queue) = plan.policy.queue else { return };
    let swapped = matches!(plan.event, Some(event) if event.kind != EventKind::PlaneGone);
    let cut = plan.policy.cuts() || plan.policy.per_try.is_some();
    if swapped || cut || !plan.requests().all(|request| is_undisturbed(plan, request)) {
        return;
    }
    for attempt in attempts.iter().filter(|attempt| attempt.beside >= queue.slots as usize) {
        let (endpoint, beside) = (attempt.endpoint, attempt.beside);
        wrong.push(format!("e{endpoint} has {} slots, and got one beside {beside}", queue.slots));
    }
}

fn uploads(
    plan: &Plan,
    request: &Request,
    tries: &[&Attempt],
    outcome: &Outcome,
    complain: &mut impl FnMut(String),
) {
    for attempt in tries {
        let number = attempt.number;
        if let Some(at) = attempt.wrong {
            complain(format!("try {number} had a wrong byte at {at}"));
        }
        let until = attempt.until();
        if until > outcome.sent {
            complain(format!("try {number} got {until} of {} bytes", outcome.sent));
        }
        if attempt.complete && attempt.method != "HEAD" && until != request.up.size {
            let size = request.up.size;
            complain(format!("try {number} ended clean after {until} of {size}"));
        }
        if !has_its_key(plan, request, attempt, tries) {
            complain(format!("try {number} had the key {:?}", attempt.key));
        }
        let goes_on = matches!(attempt.method.as_str(), "HEAD" | "PATCH");
        let may_go_on = plan.policy.resumes_uploads && request.resumable;
        if attempt.method != request.method && !(goes_on && may_go_on) {
            complain(format!("try {number} was a {}", attempt.method));
        }
    }
    let keyed = || tries.iter().filter(|a| !a.goes_on()).all(|attempt| attempt.key.is_some());
    let trusted = plan.policy.trusts_keys && keyed();
    let processed = processed(tries).len();
    if !is_idempotent(request) && !trusted && processed > 1 {
        complain(format!("a {} was processed {processed} times", request.method));
    }
    // What an endpoint that loads once by key has loaded.
    let loaded = loads(tries);
    if !is_idempotent(request) && loaded > 1 {
        complain(format!("a {} was loaded {loaded} times", request.method));
    }
    if is_acknowledged(request, outcome) && !tries.iter().any(|attempt| attempt.complete) {
        complain("acknowledged, and no endpoint has it all".into());
    }
    let proxies = 1 + u32::from(plan.sidecar.is_some());
    // One more each where a pooled connection had been closed, and two each to go on.
    let tries_each = if plan.policy.resumes_uploads && request.resumable { 2 } else { 1 };
    let most = (tries_each * plan.policy.attempts + 2).pow(proxies) as usize;
    if tries.len() > most {
        complain(format!("{} tries, {most} at most", tries.len()));
    }
}

/// The client's key, or where there is none and the policy says so, one that all tries have. What
/// goes on with an upload is of the upload, and has none.
fn has_its_key(plan: &Plan, request: &Request, attempt: &Attempt, tries: &[&Attempt]) -> bool {
    if attempt.goes_on() {
        return attempt.key.is_none();
    }
    let minted = plan.policy.mints_keys && request.key.is_none() && !is_idempotent(request);
    if minted {
        let mut others = tries.iter().filter(|other| !other.goes_on());
        attempt.key.is_some() && others.all(|other| other.key == attempt.key)
    } else {
        attempt.key == request.key
    }
}

/// Tries that were processed: one for each upload, whatever its parts.
fn processed<'a>(tries: &[&'a Attempt]) -> Vec<&'a Attempt> {
    let mut uploads = BTreeSet::new();
    let done = tries.iter().filter(|attempt| attempt.is_processed());
    done.filter(|a| a.upload.is_none_or(|upload| uploads.insert(upload))).copied().collect()
}

/// How often rows are loaded where each endpoint keeps to keys, and all know of each other's loads.
fn loads(tries: &[&Attempt]) -> usize {
    // An upload has the key that it began with.
    let key = |done: &Attempt| match done.upload {
        Some(_) => tries.iter().find(|a| a.upload == done.upload).and_then(|a| a.key.clone()),
        None => done.key.clone(),
    };
    let keys: Vec<_> = processed(tries).into_iter().map(key).collect();
    let unkeyed = keys.iter().filter(|key| key.is_none()).count();
    keys.iter().flatten().collect::<BTreeSet<_>>().len() + unkeyed
}

/// Two requests of one key: what the second carries is never loaded.
fn lost_to_another(attempts: &[Attempt], wrong: &mut Vec<String>) {
    let mut owners = BTreeMap::new();
    for attempt in attempts {
        let Some(key) = &attempt.key else { continue };
        let owner = *owners.entry(key).or_insert(attempt.request);
        if owner != attempt.request {
            wrong.push(format!("#{} has the key of #{owner}", attempt.request));
        }
    }
}

fn is_idempotent(request: &Request) -> bool {
    matches!(request.method, "GET" | "PUT")
}

/// Whether the client was told that an endpoint has taken it all.
fn is_acknowledged(request: &Request, outcome: &Outcome) -> bool {
    // An echo that is told shorter than the request is whole before that is.
    let early = request.tries.iter().any(|fault| match fault {
        Fault::Early { .. } => true,
        Fault::WrongLength(by) => *by < 0 && request.direction == Direction::Echo,
        _ => false,
    });
    !early && outcome.status == Some(200) && outcome.end == End::Whole && outcome.attempt.is_some()
}

/// Whether the request must succeed: nothing happens to it or to what it shares with others.
fn is_undisturbed(plan: &Plan, request: &Request) -> bool {
    let benign = |r: &Request| {
        r.quirk.is_benign(&plan.policy) && r.tries.iter().all(|fault| fault.is_benign(plan))
    };
    let killed = matches!(plan.event, Some(e) if matches!(e.kind, EventKind::Kill(_)));
    let others = || plan.requests().filter(|r| r.index != request.index);
    // Endpoints' connections are shared over HTTP/2, and after a garbled answer over HTTP/1.1.
    let endpoint = others().flat_map(|r| &r.tries).any(|fault| match plan.endpoint {
        Wire::Http2 => fault.takes_connection() || matches!(fault, Fault::Break(..)),
        Wire::Http1 => matches!(fault, Fault::WrongLength(_)),
    });
    let client = plan.client == Wire::Http2
        && plan.shared
        && others().any(|r| {
            matches!(
                r.quirk,
                Quirk::VanishUpload { reset: true, .. } | Quirk::VanishDownload { reset: true, .. }
            )
        });
    benign(request) && !killed && !endpoint && !client
}

/// Whether nothing happens to the request but that endpoints refuse it unprocessed, and another try
/// can and must follow each time: the policy has tries enough, their budget has room for all that are
/// under way, and the body is small enough to be kept whatever its pieces are.
fn is_only_refused(plan: &Plan, request: &Request) -> bool {
    let policy = &plan.policy;
    let others = || plan.requests().filter(|r| r.index != request.index).flat_map(|r| &r.tries);
    let is_beside = |lane: &&Vec<Request>| lane.iter().all(|r| r.index != request.index);
    let beside = || plan.lanes.iter().filter(is_beside).flatten().flat_map(|r| &r.tries);
    let refusals = request.tries.iter().filter(|fault| fault.refuses()).count();
    // An echo is answered before its body is read: what follows is no refusal.
    let answered = |fault: &Fault| {
        request.direction == Direction::Echo && matches!(fault, Fault::Break(At::Upload(_), _))
    };
    let pieces = 2 * (request.up.size / request.piece + 1);
    let kept = request.up.size == 0
        || request.up.size <= policy.replay_limit && pieces * 64 <= policy.replay_limit;
    refusals <= policy.attempts as usize
        && kept
        && plan.lanes.len() <= policy.retries_at_once as usize
        && policy.per_try.is_none()
        && policy.age.is_none()
        && !may_hedge(plan, request)
        && !(policy.resumes_uploads && request.resumable)
        && plan
            .event
            .is_none_or(|e| !matches!(e.kind, EventKind::Kill(_) | EventKind::OtherService))
        && plan.requests().all(|r| r.quirk.is_benign(policy))
        && request.tries.iter().all(|fault| fault.refuses() || fault.is_benign(plan))
        && !request.tries.iter().any(answered)
        && others().all(|fault| {
            fault.refuses() || !matches!(fault, Fault::Break(..) | Fault::WrongLength(_))
        })
        // Who goes away refuses others too, and may have answered them in part.
        && !beside().any(|fault| fault.takes_connection())
}

#[cfg(test)]
mod tests;
