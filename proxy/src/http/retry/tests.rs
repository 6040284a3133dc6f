use std::time::Duration;

use towpath_policies::model::{RetryCondition, RetryPolicy};

use super::{Facts, MAX_RETRY_AFTER, MOST_WINDOW, RetryReason, decide, most_replayed};

const FACTS: Facts = Facts {
    reason: RetryReason::Reset,
    tries: 1,
    idempotent: true,
    keyed: false,
    replayable: true,
    retry_after: None,
    jitter: 0.0,
};

fn policy() -> RetryPolicy {
    RetryPolicy {
        attempts: 2,
        on: vec![
            RetryCondition::ConnectFailure,
            RetryCondition::RefusedStream,
            RetryCondition::Reset,
            RetryCondition::Timeout,
            RetryCondition::Stall,
            RetryCondition::Status(vec![502, 503]),
            RetryCondition::GrpcStatus(vec![14]),
        ],
        ..RetryPolicy::default()
    }
}

#[test]
fn a_try_follows_only_where_it_is_allowed_safe_and_possible() {
    use RetryReason::{Connect, GrpcStatus, Refused, Reset, Stall, Status, Timeout};
    let unsafe_ = Facts { idempotent: false, ..FACTS };
    let keyed = Facts { keyed: true, ..unsafe_ };
    for (what, facts, expected) in [
        ("reset of a GET", FACTS, true),
        ("second further try", Facts { tries: 2, ..FACTS }, true),
        ("third further try", Facts { tries: 3, ..FACTS }, false),
        ("reset of a POST", unsafe_, false),
        ("reset of a keyed POST", keyed, true),
        ("connect of a POST", Facts { reason: Connect, ..unsafe_ }, true),
        ("refused POST", Facts { reason: Refused, ..unsafe_ }, true),
        ("timeout of a POST", Facts { reason: Timeout, ..unsafe_ }, false),
        ("stalled PUT", Facts { reason: Stall, ..FACTS }, true),
        ("stalled POST", Facts { reason: Stall, ..unsafe_ }, false),
        ("503 of a POST", Facts { reason: Status(503), ..unsafe_ }, false),
        ("503 of a GET", Facts { reason: Status(503), ..FACTS }, true),
        ("500 of a GET", Facts { reason: Status(500), ..FACTS }, false),
        ("UNAVAILABLE, keyed", Facts { reason: GrpcStatus(14), ..keyed }, true),
        ("INTERNAL, keyed", Facts { reason: GrpcStatus(13), ..keyed }, false),
        ("refused, body gone", Facts { reason: Refused, replayable: false, ..FACTS }, false),
        ("reset, body gone", Facts { reason: Reset, replayable: false, ..FACTS }, false),
        ("asked to wait", Facts { retry_after: Some(MAX_RETRY_AFTER), ..FACTS }, true),
        (
            "asked to wait too long",
            Facts { retry_after: Some(MAX_RETRY_AFTER + Duration::from_secs(1)), ..FACTS },
            false,
        ),
    ] {
        assert_eq!(decide(&policy(), &facts).is_some(), expected, "{what}");
    }
    let deaf = RetryPolicy { with_idempotency_key: false, ..policy() };
    assert_eq!(decide(&deaf, &keyed), None);
    let nothing = RetryPolicy { on: Vec::new(), ..policy() };
    assert_eq!(decide(&nothing, &FACTS), None);
}

#[test]
fn what_cannot_be_asked_for_again_need_not_be_kept() {
    let refused = vec![RetryCondition::ConnectFailure, RetryCondition::RefusedStream];
    let refused = RetryPolicy { on: refused, ..policy() };
    let deaf = RetryPolicy { with_idempotency_key: false, ..policy() };
    for (what, policy, idempotent, keyed, all) in [
        ("PUT", &policy(), true, false, true),
        ("POST", &policy(), false, false, false),
        ("POST with a key", &policy(), false, true, true),
        ("POST with a key nobody heeds", &deaf, false, true, false),
        ("PUT where nothing processed is repeated", &refused, true, false, false),
    ] {
        let most = most_replayed(policy, idempotent, keyed);
        assert_eq!(most, if all { u64::MAX } else { MOST_WINDOW }, "{what}");
    }
}

#[test]
fn back_off_doubles_up_to_its_ceiling_and_jitters_within_a_half() {
    let policy = RetryPolicy {
        attempts: 100,
        backoff_base: Duration::from_millis(100),
        backoff_max: Duration::from_millis(350),
        ..policy()
    };
    for (tries, jitter, expected) in
        [(1, 0.0, 50), (1, 1.0, 100), (2, 0.0, 100), (2, 0.5, 150), (3, 1.0, 350), (90, 1.0, 350)]
    {
        let wait = decide(&policy, &Facts { tries, jitter, ..FACTS }).unwrap();
        assert_eq!(wait, Duration::from_millis(expected), "{tries} {jitter}");
    }
    let asked = Facts { retry_after: Some(Duration::from_secs(1)), ..FACTS };
    assert_eq!(decide(&policy, &asked), Some(Duration::from_secs(1)));
}
