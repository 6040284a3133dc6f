//! Each broken promise is complained of, and a kept one is not.

use std::{collections::BTreeSet, sync::Arc};

use super::{super::plan::Limits, *};

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
            && !plan.policy.mints_keys
            && is_undisturbed(plan, first)
    };
    (0..).map(of).find(calm).expect("some seed has it")
}

fn good(plan: &Plan) -> (Attempt, Outcome) {
    let request = &plan.lanes[0][0];
    let attempt = Attempt {
        request: 0,
        number: 0,
        endpoint: 0,
        key: None,
        method: request.method.into(),
        received: request.up.size,
        wrong: None,
        complete: true,
        refused: false,
        sent: request.down.size,
        connection: Arc::default(),
        stream: 1,
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
fn what_is_sent_again_under_one_key_is_loaded_once() {
    let mut plan = plan();
    (plan.policy.trusts_keys, plan.policy.mints_keys) = (true, true);
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
