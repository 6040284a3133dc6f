//! Whether the counters say what happened.

use super::super::{
    answer::{End, Outcome},
    plan::{Plan, Quirk, Request},
    scene::Attempt,
};

/// Counters of the run's proxies after it.
#[derive(Debug)]
pub(in crate::faults) struct Counted<'a> {
    /// The Prometheus text.
    pub(in crate::faults) text: &'a str,
    /// Prefix of the services' names at the proxy that clients talk to, and at the one before endpoints.
    pub(in crate::faults) outer: &'a str,
    pub(in crate::faults) inner: &'a str,
    /// Names of the endpoints, in order.
    pub(in crate::faults) endpoints: &'a [String],
}

/// What shows that a thing came to pass: its name, the metric, and a label.
pub(in crate::faults) const TALLIES: [(&str, &str, &str); 17] = [
    ("retries", "towpath_retries_total", ""),
    ("retries of what was refused", "towpath_retries_total", "reason=\"refused\""),
    ("downloads resumed", "towpath_resumes_total", "outcome=\"resumed\""),
    ("uploads resumed", "towpath_upload_resumes_total", "outcome=\"resumed\""),
    ("hedges won", "towpath_hedges_total", "outcome=\"won\""),
    ("hedges lost", "towpath_hedges_total", "outcome=\"lost\""),
    ("requests limited", "towpath_limited_total", "limit=\"requests\""),
    ("transfers slowed", "towpath_limited_total", "limit=\"bytes\""),
    ("queue refused", "towpath_queue_refused_total", ""),
    ("queue expired", "towpath_queue_expired_total", ""),
    ("stalls", "towpath_stalls_total", ""),
    ("streams moved", "towpath_streams_moved_total", ""),
    ("digests made", "towpath_digests_total", "outcome=\"made\""),
    ("digests ok", "towpath_digests_total", "outcome=\"ok\""),
    ("digests wrong", "towpath_digests_total", "outcome=\"mismatch\""),
    ("overflows", "towpath_overflow_total", ""),
    ("over adaptive limits", "towpath_overflow_total", ADAPTIVE),
];

impl Counted<'_> {
    /// The sum of a metric's series that carry this label, over all proxies of the run.
    pub(in crate::faults) fn of_run(&self, name: &str, label: &str) -> u64 {
        let mut proxies = vec![self.outer];
        if self.inner != self.outer {
            proxies.push(self.inner);
        }
        let one = |proxy: &str| {
            let (service, route) = (format!("service=\"{proxy}-"), format!("route=\"{proxy}\""));
            let owner = if name == "towpath_limited_total" { &route } else { &service };
            sum(self.text, name, &[owner, label])
        };
        proxies.into_iter().map(one).sum()
    }
}

/// Adds to what is wrong.
pub(super) fn check(
    plan: &Plan,
    attempts: &[Attempt],
    outcomes: &[Outcome],
    counted: &Counted<'_>,
    wrong: &mut Vec<String>,
) {
    let sum = |name: &str, labels: &[&str]| sum(counted.text, name, labels);
    let outer = format!("service=\"{}-", counted.outer);
    let proxies = 1 + u64::from(plan.sidecar.is_some());
    Ledger { plan, attempts, outcomes, counted, wrong, proxies }.check();
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
        tries.map(|a| a.until()).max().unwrap_or(0)
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
        // The same again, where a connection seemed to have been closed before.
        let stale = |a: &&Attempt| a.stream == 0 && a.sent == 0;
        let least = of().filter(|a| !stale(a)).count() as u64;
        within(&format!("e{index} picks"), least, picks, u64::MAX);
    }
    let gauge = "towpath_bytes_in_flight";
    within(gauge, 0, sum(gauge, &[&outer]) + sum(gauge, &[&inner]), 0);
}

/// Counters of what a policy turns on: as often as it was seen at least, as often as it could be
/// at most, and never where it is off.
struct Ledger<'a> {
    plan: &'a Plan,
    attempts: &'a [Attempt],
    outcomes: &'a [Outcome],
    counted: &'a Counted<'a>,
    wrong: &'a mut Vec<String>,
    proxies: u64,
}

impl Ledger<'_> {
    fn check(&mut self) {
        self.limits();
        self.queue_and_stalls();
        self.resumes();
        self.hedges();
        self.digests();
    }

    fn within(&mut self, what: &str, label: &str, least: u64, most: u64) {
        let value = self.counted.of_run(what, label);
        if !(least..=most).contains(&value) {
            self.wrong.push(format!("{what}{{{label}}} counts {value}, not {least} to {most}"));
        }
    }

    /// Clients that were told so.
    fn told(&self, reason: &str) -> u64 {
        self.count(|outcome| outcome.reason.as_deref() == Some(reason))
    }

    fn count(&self, such: impl Fn(&Outcome) -> bool) -> u64 {
        self.outcomes.iter().filter(|outcome| such(outcome)).count() as u64
    }

    fn tries(&self, such: impl Fn(&Attempt) -> bool) -> u64 {
        self.attempts.iter().filter(|attempt| such(attempt)).count() as u64
    }

    /// More bodies than there were.
    fn bodies(&self) -> u64 {
        4 * (self.attempts.len() + self.plan.requests().count()) as u64
    }

    fn limits(&mut self) {
        let limit = self.plan.policy.limit;
        let told = self.told("rate_limit");
        // What a sidecar refuses may be asked for again.
        let unseen = self.count(|outcome| outcome.status.is_none());
        let most = if self.proxies > 1 { u64::MAX } else { told + unseen };
        let most = if_on(limit.requests.is_some(), most);
        self.within("towpath_limited_total", "limit=\"requests\"", told, most);
        let most = if_on(limit.bytes.is_some(), self.bodies());
        self.within("towpath_limited_total", "limit=\"bytes\"", 0, most);
    }

    fn queue_and_stalls(&mut self) {
        let policy = &self.plan.policy;
        let (queued, stalls) = (policy.queue.is_some(), policy.stall.is_some());
        for (reason, metric, label, on) in [
            ("queue_full", "towpath_queue_refused_total", "", queued),
            ("queue_displaced", "towpath_queue_displaced_total", "", queued),
            ("queue_wait", "towpath_queue_expired_total", "", queued),
            ("stall", "towpath_stalls_total", "by=\"endpoint\"", stalls),
            ("client_stall", "towpath_stalls_total", "by=\"client\"", stalls),
        ] {
            let most = if_on(on, self.bodies());
            self.within(metric, label, self.told(reason), most);
        }
        let most = if_on(policy.adapts.is_some(), self.bodies());
        self.within("towpath_overflow_total", ADAPTIVE, 0, most);
        self.within("towpath_endpoint_awaiting_head", "", 0, 0);
        self.within("towpath_queue_length", "", 0, 0);
        self.within("towpath_queue_bytes", "", 0, 0);
    }

    fn resumes(&mut self) {
        let gone_on = |outcome: &Outcome| {
            let answered = self.answering(outcome);
            answered.is_some_and(|attempt| attempt.method == "PATCH")
        };
        let least = self.count(gone_on);
        let most = self.tries(|attempt| attempt.method == "PATCH");
        self.within("towpath_upload_resumes_total", RESUMED, least, most);
        let ranged = self.tries(|attempt| attempt.ranged);
        let mended = |outcome: &Outcome| {
            let first = self.answering(outcome);
            outcome.end == End::Whole && first.is_some_and(|a| a.sent < outcome.received)
        };
        let (mended, moved) = (self.count(mended), self.counted.of_run(MOVED, ""));
        self.within("towpath_resumes_total", RESUMED, mended.saturating_sub(moved), ranged);
        self.within(MOVED, "", 0, if_on(self.plan.policy.age.is_some(), ranged));
    }

    /// The try whose answer the client got, at least the beginning of.
    fn answering(&self, outcome: &Outcome) -> Option<&Attempt> {
        let is = |a: &&Attempt| a.request == outcome.request && Some(a.number) == outcome.attempt;
        self.attempts.iter().find(is)
    }

    fn hedges(&mut self) {
        let policy = &self.plan.policy;
        let reads = self.plan.requests().filter(|r| super::may_hedge(self.plan, r)).count() as u64;
        // A hedge at the gateway is one more request for the sidecar.
        let most = reads * (self.proxies * (self.proxies + 1) / 2);
        let calm = policy.per_try.is_none() && policy.stall.is_none();
        let reads = self.plan.requests().filter(|r| {
            calm && super::may_hedge(self.plan, r) && super::is_undisturbed(self.plan, r)
        });
        // What nothing disturbs is asked for again only by a hedge.
        let again = |r: &Request| {
            let asked = self.tries(|a| a.request == r.index && super::asks_anew(a));
            asked.saturating_sub(1)
        };
        let least = reads.map(again).sum();
        let of = |outcome| self.counted.of_run("towpath_hedges_total", outcome);
        let sent = of("outcome=\"won\"") + of("outcome=\"lost\"");
        if !(least..=most).contains(&sent) {
            self.wrong.push(format!("{sent} hedges are counted, not {least} to {most}"));
        }
    }

    fn digests(&mut self) {
        let lies = self.plan.requests().any(|request| {
            request.quirk == Quirk::WrongDigest || super::is_answered_wrong(request)
        });
        let terms = self.plan.policy.integrity;
        // Once for all tries that a sidecar makes of it.
        let made = self.plan.requests().filter(|request| {
            let has = |a: &&Attempt| a.request == request.index && a.complete;
            !request.proved && self.attempts.iter().filter(has).any(|a| a.proved == Some(true))
        });
        let least = if_on(terms.make, made.count() as u64);
        let (metric, most) = ("towpath_digests_total", self.bodies());
        self.within(metric, "outcome=\"made\"", least, if_on(terms.make, most));
        self.within(metric, "outcome=\"ok\"", 0, if_on(terms.check, most));
        let told = self.told("digest");
        self.within(metric, "outcome=\"mismatch\"", told, if_on(terms.check && lies, most));
    }
}

const ADAPTIVE: &str = "limit=\"adaptive_concurrency\"";
const RESUMED: &str = "outcome=\"resumed\"";
const MOVED: &str = "towpath_streams_moved_total";

fn if_on(on: bool, most: u64) -> u64 {
    if on { most } else { 0 }
}

/// The sum of the series of this name that carry all of these labels.
pub(super) fn sum(text: &str, name: &str, labels: &[&str]) -> u64 {
    let series = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
            && labels.iter().all(|label| line.contains(label))
    });
    series.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}
