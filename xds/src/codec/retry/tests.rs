use super::*;

#[test]
fn only_what_is_safe_to_repeat_is_repeated_after_it_may_have_been_processed() {
    use RetryCondition::{ConnectFailure, RefusedStream, Reset, Status};
    for (on, with_idempotency_key, expected) in [
        (vec![ConnectFailure, RefusedStream], true, &[][..]),
        (vec![ConnectFailure, Reset], false, &[":method"]),
        (vec![Status(vec![503])], true, &[":method", "idempotency-key"]),
    ] {
        let retry = RetryPolicy { on, with_idempotency_key, ..RetryPolicy::default() };
        let pb = encode(&retry).unwrap();
        let names: Vec<_> = pb.retriable_request_headers.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, expected, "{retry:?}");
        let back = decode(Some(&pb)).unwrap();
        assert_eq!((back.attempts, back.on), (retry.attempts, retry.on));
        if !expected.is_empty() {
            assert_eq!(back.with_idempotency_key, with_idempotency_key);
        }
    }
}

#[test]
fn another_choice_of_requests_is_not_widened() {
    let mut pb = encode(&RetryPolicy::default()).unwrap();
    pb.retriable_request_headers[0].name = "x-may-retry".to_owned();
    assert_eq!(decode(Some(&pb)).unwrap().attempts, 0);
}

#[test]
fn a_foreign_policy_resumes_downloads_where_it_retries_resets() {
    for (retry_on, attempts, expected) in [
        ("connect-failure,reset", 1, true),
        ("5xx", 3, true),
        ("reset", 0, false),
        ("connect-failure", 1, false),
    ] {
        let pb = rds::RetryPolicy {
            retry_on: retry_on.to_owned(),
            num_retries: u32_value(attempts),
            ..Default::default()
        };
        assert_eq!(decode(Some(&pb)).unwrap().resume_downloads, expected, "{retry_on}");
    }
    assert!(!decode(None).unwrap().resume_downloads);
}
