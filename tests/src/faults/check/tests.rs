//! Each broken promise is complained of, and a kept one is not.

use std::collections::BTreeSet;

use towpath_policies::model::{Hedge, Queue, Rate};

use super::{
    super::plan::{Break, Limits},
    counters::sum,
    *,
};

/// A run without faults whose first request is a POST with a body and no key.
fn plan() -> Plan {
    let limits = Limits { max_size: 1 << 10, skip: BTreeSet::new() };
    let of = |seed| Plan::draw(seed, &limits);
    let calm = |plan: &Plan| {
        let mut requests = plan.requests();
        let Some(first) = requests.next() else { return false };
        requests.next().is_none()
            && plan.sidecar.is_none()
            && first.method == "POST"
            && first.up.size > 1
            && first.key.is_none()
            && first.quirk == Quirk::None
            && !plan.policy.mints_keys
            && !plan.policy.integrity.is_on()
            && !first.proved
            && plan.event.is_none()
            && !plan.policy.cuts()
            && plan.policy.per_try.is_none()
            && is_undisturbed(plan, first)
    };
    (0..).map(of).find(calm).expect("some seed has it")
}

fn good(plan: &Plan) -> (Attempt, Outcome) {
    let request = &plan.lanes[0][0];
    let attempt = Attempt {
        request: 0,
        method: request.method.into(),
        received: request.up.size,
        complete: true,
        sent: request.down.size,
        stream: 1,
        ..Attempt::default()
    };
    let outcome = Outcome {
        request: 0,
        asked: true,
        sent: request.up.size,
        status: Some(200),
        attempt: Some(0),
        whole: Some(request.down.size),
        received: request.down.size,
        end: End::Whole,
        ..Outcome::default()
    };
    (attempt, outcome)
}

#[test]
fn every_broken_promise_is_complained_of() {
    type Spoil = fn(&mut Attempt, &mut Outcome);
    let plan = plan();
    let cases: [(&str, Spoil); 10] = [
        ("ended clean after", |_, o| o.received -= 1),
        ("the client got a wrong byte", |_, o| o.wrong = Some(0)),
        ("try 0 had a wrong byte", |a, _| a.wrong = Some(0)),
        ("try 0 ended clean", |a, _| a.received -= 1),
        ("no endpoint has it all", |a, _| a.complete = false),
        ("try 0 got", |_, o| o.sent -= 1),
        ("had the key", |a, _| a.key = Some("another".into())),
        ("was a GET", |a, _| a.method = "GET".into()),
        ("nothing disturbed it", |_, o| o.end = End::Broken("reset".into())),
        ("by the proxy", |_, o| (o.attempt, o.status) = (None, Some(404))),
    ];
    let (attempt, outcome) = good(&plan);
    assert_eq!(check(&plan, &[attempt], &[outcome], None), Vec::<String>::new());
    for (complaint, spoil) in cases {
        let (mut attempt, mut outcome) = good(&plan);
        spoil(&mut attempt, &mut outcome);
        let wrong = check(&plan, &[attempt], &[outcome], None);
        assert!(wrong.iter().any(|w| w.contains(complaint)), "{complaint}: {wrong:?}");
    }
}

#[test]
fn a_post_is_processed_once_unless_its_endpoint_disowned_it() {
    let plan = plan();
    let twice = |refused| {
        let ((mut first, _), (mut second, outcome)) = (good(&plan), good(&plan));
        (first.refused, second.number) = (refused, 1);
        check(&plan, &[first, second], &[outcome], None)
    };
    assert!(twice(false).iter().any(|wrong| wrong.contains("processed 2 times")));
    assert_eq!(twice(true), Vec::<String>::new());
}

#[test]
fn what_is_refused_and_could_be_sent_again_must_come_to_its_end() {
    let refused = Fault::Break(At::Head, Break::Stream(7));
    let left = Fault::Break(At::Upload(0), Break::GoAway { below: true, abrupt: false });
    let abrupt = Fault::Break(At::Upload(0), Break::GoAway { below: true, abrupt: true });
    for (attempts, at_once, replay_limit, tries, must) in [
        (2, 3, 64 << 10, vec![refused, left], true),
        (1, 3, 64 << 10, vec![refused, left], false),
        (2, 0, 64 << 10, vec![refused], false),
        (2, 3, 0, vec![refused], false),
        (2, 3, 64 << 10, vec![abrupt], false),
    ] {
        let mut plan = plan();
        let policy = &mut plan.policy;
        (policy.attempts, policy.retries_at_once) = (attempts, at_once);
        (policy.replay_limit, policy.resumes_uploads, policy.age) = (replay_limit, false, None);
        plan.lanes[0][0].tries = tries;
        let (_, outcome) = good(&plan);
        let reason = Some("refused".to_owned());
        let outcome = Outcome { status: Some(502), attempt: None, whole: None, reason, ..outcome };
        let wrong = check(&plan, &[], &[outcome], None);
        assert_eq!(!wrong.is_empty(), must, "{attempts} {at_once} {replay_limit}: {wrong:?}");
    }
}

#[test]
fn what_is_sent_again_under_one_key_is_loaded_once() {
    let mut plan = plan();
    (plan.policy.trusts_keys, plan.policy.mints_keys) = (true, true);
    plan.lanes[0][0].tries = vec![Fault::Break(At::Processed, Break::Close)];
    let twice = |keys: [&str; 2]| {
        let ((mut first, _), (mut second, outcome)) = (good(&plan), good(&plan));
        second.number = 1;
        (first.key, second.key) = (Some(keys[0].into()), Some(keys[1].into()));
        check(&plan, &[first, second], &[outcome], None)
    };
    assert_eq!(twice(["a", "a"]), Vec::<String>::new());
    assert!(twice(["a", "b"]).iter().any(|wrong| wrong.contains("loaded 2 times")));
}

#[test]
fn an_upload_that_went_on_is_processed_and_loaded_once_and_a_second_one_is_not() {
    let mut plan = plan();
    (plan.policy.resumes_uploads, plan.lanes[0][0].resumable) = (true, true);
    plan.lanes[0][0].tries = vec![Fault::Break(At::Processed, Break::Close)];
    let size = plan.lanes[0][0].up.size;
    for (upload, from, complaint) in [
        (0, size, None),
        (0, size - 1, Some("got")),
        (1, size, Some("processed 2 times")),
        (1, size, Some("loaded 2 times")),
    ] {
        let ((mut first, _), (mut second, outcome)) = (good(&plan), good(&plan));
        (first.upload, second.upload) = (Some(0), Some(upload));
        (second.method, second.number) = ("PATCH".into(), 1);
        // Too much, where it begins before the end.
        (second.from, second.received) = (from, 2 * (size - from));
        let wrong = check(&plan, &[first, second], &[outcome], None);
        match complaint {
            None => assert_eq!(wrong, Vec::<String>::new()),
            Some(is) => assert!(wrong.iter().any(|w| w.contains(is)), "{is}: {wrong:?}"),
        }
    }
}

#[test]
fn a_refusal_says_why_and_when_to_come_again_and_only_what_is_limited_is_refused() {
    for (limited, reason, again, fine) in [
        (true, Some("rate_limit"), true, true),
        (true, Some("rate_limit"), false, false),
        (true, None, true, false),
        (false, Some("rate_limit"), true, false),
    ] {
        let mut plan = plan();
        plan.policy.limit.requests = limited.then_some(Rate { per_second: 1, burst: 1 });
        let (_, outcome) = good(&plan);
        let outcome = Outcome {
            status: Some(429),
            attempt: None,
            whole: None,
            reason: reason.map(str::to_owned),
            retry_after: again,
            ..outcome
        };
        let wrong = check(&plan, &[], &[outcome], None);
        assert_eq!(wrong.is_empty(), fine, "{limited} {reason:?} {again}: {wrong:?}");
    }
}

#[test]
fn a_body_against_its_digest_must_not_end_clean_where_digests_are_checked() {
    for checks in [true, false] {
        let mut plan = plan();
        plan.policy.integrity.check = checks;
        let mut lying = plan.clone();
        plan.lanes[0][0].tries = vec![Fault::WrongDigest { trailer: false }];
        lying.lanes[0][0].quirk = Quirk::WrongDigest;
        for plan in [plan, lying] {
            let (mut attempt, outcome) = good(&plan);
            attempt.proved = Some(plan.lanes[0][0].quirk != Quirk::WrongDigest);
            let wrong = check(&plan, &[attempt], &[outcome], None);
            assert_eq!(wrong.is_empty(), !checks, "{wrong:?}");
        }
    }
    let mut plan = plan();
    plan.policy.integrity.make = true;
    for (proved, fine) in [(Some(true), true), (Some(false), false), (None, false)] {
        let (mut attempt, outcome) = good(&plan);
        attempt.proved = proved;
        let wrong = check(&plan, &[attempt], &[outcome], None);
        assert_eq!(wrong.is_empty(), fine, "{proved:?}: {wrong:?}");
    }
}

#[test]
fn an_endpoint_that_gets_more_than_it_has_slots_for_is_complained_of() {
    let mut plan = plan();
    plan.policy.queue = Some(Queue { slots: 2, ..Queue::default() });
    for (beside, fine) in [(1, true), (2, false)] {
        let (mut attempt, outcome) = good(&plan);
        attempt.beside = beside;
        let wrong = check(&plan, &[attempt], &[outcome], None);
        assert_eq!(wrong.is_empty(), fine, "{wrong:?}");
    }
}

#[test]
fn what_nothing_disturbs_is_asked_twice_only_by_a_hedge_that_is_counted() {
    let endpoints = ["127.0.0.1:1".to_owned()];
    for (method, hedges, counted, fine) in [
        ("GET", true, 1, true),
        ("GET", true, 0, false),
        ("GET", false, 0, false),
        ("PUT", true, 0, false),
        ("GET", true, 2, false),
    ] {
        let mut plan = plan();
        (plan.policy.hedge, plan.policy.queue) = (hedges.then(Hedge::default), None);
        plan.lanes[0][0].method = method;
        let ((first, _), (mut second, outcome)) = (good(&plan), good(&plan));
        second.number = 1;
        let of = "service=\"o-0\"";
        let text = format!(
            "towpath_requests_total{{{of}}} 1\ntowpath_request_bytes_total{{{of}}} {}\n\
             towpath_response_bytes_total{{{of}}} {}\n\
             towpath_hedges_total{{{of},outcome=\"won\"}} {counted}\n",
            first.received, first.sent
        );
        let counted = Counted { text: &text, outer: "o", inner: "o", endpoints: &endpoints };
        let wrong = check(&plan, &[first, second], &[outcome], Some(&counted));
        assert_eq!(wrong.is_empty(), fine, "{method} {hedges}: {wrong:?}");
    }
}

#[test]
fn a_key_that_two_requests_share_is_complained_of() {
    let shared = |key: &str| {
        let ((mut one, _), (mut other, _)) = (good(&plan()), good(&plan()));
        other.request = 1;
        (one.key, other.key) = (Some("a".into()), Some(key.into()));
        let mut wrong = Vec::new();
        lost_to_another(&[one, other], &mut wrong);
        wrong.len()
    };
    assert_eq!((shared("a"), shared("b")), (1, 0));
}

#[test]
fn counters_that_say_too_much_or_too_little_are_complained_of() {
    let plan = plan();
    let endpoints = ["127.0.0.1:1".to_owned()];
    for (requests, fine) in [(0, false), (1, true), (2, false)] {
        let (attempt, outcome) = good(&plan);
        let of = "service=\"o-0\"";
        let text = format!(
            "towpath_requests_total{{{of}}} {requests}\ntowpath_request_bytes_total{{{of}}} {}\n\
             towpath_response_bytes_total{{{of}}} {}\n",
            attempt.received, attempt.sent
        );
        let counted = Counted { text: &text, outer: "o", inner: "o", endpoints: &endpoints };
        let wrong = check(&plan, &[attempt], &[outcome], Some(&counted));
        assert_eq!(wrong.is_empty(), fine, "{wrong:?}");
    }
}

#[test]
fn series_are_summed_by_label() {
    let text =
        "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\"} 4\nab{x=\"1\"} 5\na{x=\"2\"} 6\n";
    assert_eq!(sum(text, "a", &["x=\"1\""]), 7);
    assert_eq!(sum(text, "a", &["x=\"1\"", "y=\"2\""]), 3);
}
