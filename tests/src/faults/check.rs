//! What must hold after a run. Pure: from what was seen to what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    answer::{End, Outcome},
    plan::{EventKind, Fault, Plan, Quirk, Request, Wire},
    scene::Attempt,
};

/// Counters of the run's proxies after it.
#[derive(Debug)]
pub(super) struct Counted<'a> {
    /// The Prometheus text.
    pub(super) text: &'a str,
    /// Prefix of the services' names at the proxy that clients talk to, and at the one before endpoints.
    pub(super) outer: &'a str,
    pub(super) inner: &'a str,
    /// Names of the endpoints, in order.
    pub(super) endpoints: &'a [String],
}

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
    }
    lost_to_another(attempts, &mut wrong);
    if let Some(counted) = counted {
        counters(plan, attempts, outcomes, counted, &mut wrong);
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
    let truncated = matches!(request.quirk, Quirk::Truncate { .. });
    let refused = outcome.status.is_some_and(|s| s >= 500 || (truncated && s >= 400));
    if outcome.end == End::Whole && !from_endpoint && !refused {
        complain(format!("answered {:?} by the proxy", outcome.status));
    }
    let fine = outcome.end == End::Whole && outcome.status == Some(200) && from_endpoint;
    let asked =
        !matches!(plan.event, Some(e) if e.kind == EventKind::Drain) || outcome.status.is_some();
    if !fine && asked && is_undisturbed(plan, request) {
        complain(format!("nothing disturbed it, and yet: {outcome:?}"));
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
        if attempt.received > outcome.sent {
            complain(format!("try {number} got {} of {} bytes", attempt.received, outcome.sent));
        }
        if attempt.complete && attempt.received != request.up.size {
            let size = request.up.size;
            complain(format!("try {number} ended clean after {} of {size}", attempt.received));
        }
        if !has_its_key(plan, request, attempt, tries) {
            complain(format!("try {number} had the key {:?}", attempt.key));
        }
        if attempt.method != request.method {
            complain(format!("try {number} was a {}", attempt.method));
        }
    }
    let trusted = plan.policy.trusts_keys && tries.iter().all(|attempt| attempt.key.is_some());
    let processed = tries.iter().filter(|attempt| attempt.is_processed()).count();
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
    // One more each where a pooled connection had been closed.
    let most = (plan.policy.attempts + 2).pow(proxies) as usize;
    if tries.len() > most {
        complain(format!("{} tries, {most} at most", tries.len()));
    }
}

/// The client's key, or where there is none and the policy says so, one that all tries have.
fn has_its_key(plan: &Plan, request: &Request, attempt: &Attempt, tries: &[&Attempt]) -> bool {
    let minted = plan.policy.mints_keys && request.key.is_none() && !is_idempotent(request);
    if minted {
        attempt.key.is_some() && tries.iter().all(|other| other.key == attempt.key)
    } else {
        attempt.key == request.key
    }
}

/// How often rows are loaded where each endpoint keeps to keys, and all know of each other's loads.
fn loads(tries: &[&Attempt]) -> usize {
    let done = || tries.iter().filter(|attempt| attempt.is_processed());
    let keys: BTreeSet<_> = done().filter_map(|attempt| attempt.key.as_ref()).collect();
    keys.len() + done().filter(|attempt| attempt.key.is_none()).count()
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
    let early = request.tries.iter().any(|fault| matches!(fault, Fault::Early { .. }));
    !early && outcome.status == Some(200) && outcome.end == End::Whole && outcome.attempt.is_some()
}

/// Whether the request must succeed: nothing happens to it or to what it shares with others.
fn is_undisturbed(plan: &Plan, request: &Request) -> bool {
    let benign = |r: &Request| {
        r.quirk.is_benign() && r.tries.iter().all(|fault| fault.is_benign(plan.endpoint))
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
    benign(request) && !plan.policy.is_tight() && !killed && !endpoint && !client
}

fn counters(
    plan: &Plan,
    attempts: &[Attempt],
    outcomes: &[Outcome],
    counted: &Counted<'_>,
    wrong: &mut Vec<String>,
) {
    let sum = |name: &str, labels: &[&str]| sum(counted.text, name, labels);
    let outer = format!("service=\"{}-", counted.outer);
    let mut within = |what: &str, least: u64, value: u64, most: u64| {
        if !(least..=most).contains(&value) {
            wrong.push(format!("{what} counts {value}, not {least} to {most}"));
        }
    };
    let answered = outcomes.iter().filter(|o| o.status.is_some()).count() as u64;
    let asked = outcomes.iter().filter(|o| o.asked).count() as u64;
    // A GOAWAY has clients of this library ask again what was not looked at.
    within("requests", answered, sum("towpath_requests_total", &[&outer]), asked);
    let furthest = |request: &Request| {
        let tries = attempts.iter().filter(|a| a.request == request.index);
        tries.map(|a| a.received).max().unwrap_or(0)
    };
    within(
        "request bytes",
        plan.requests().map(furthest).sum(),
        sum("towpath_request_bytes_total", &[&outer]),
        outcomes.iter().map(|o| o.sent).sum(),
    );
    within(
        "response bytes",
        outcomes.iter().map(|o| o.received).sum(),
        sum("towpath_response_bytes_total", &[&outer]),
        // What a sidecar answers itself comes from no endpoint.
        if plan.sidecar.is_some() { u64::MAX } else { attempts.iter().map(|a| a.sent).sum() },
    );
    let inner = format!("service=\"{}-", counted.inner);
    for (index, name) in counted.endpoints.iter().enumerate() {
        let endpoint = format!("endpoint=\"{name}\"");
        let series =
            |direction: &str| sum("towpath_endpoint_bytes_total", &[&inner, &endpoint, direction]);
        if !counted.text.contains(&endpoint) {
            continue;
        }
        let of = || attempts.iter().filter(|a| a.endpoint == index);
        let received = of().map(|a| a.received).sum();
        within(&format!("e{index} sent"), received, series("direction=\"request\""), u64::MAX);
        let sent = of().map(|a| a.sent).sum();
        within(&format!("e{index} received"), 0, series("direction=\"response\""), sent);
        let picks = sum("towpath_picks_total", &[&inner, &endpoint]);
        within(&format!("e{index} picks"), of().count() as u64, picks, u64::MAX);
    }
    let gauge = "towpath_bytes_in_flight";
    within(gauge, 0, sum(gauge, &[&outer]) + sum(gauge, &[&inner]), 0);
}

/// The sum of the series of this name that carry all of these labels.
fn sum(text: &str, name: &str, labels: &[&str]) -> u64 {
    let series = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
            && labels.iter().all(|label| line.contains(label))
    });
    series.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests;
