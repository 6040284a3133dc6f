use std::future::poll_fn;

use super::*;
use crate::timer::Timer;

const FLOW: Flow = Flow { bytes: 0, waits: Waits::Elsewhere };

#[test]
fn grpc_timeouts_are_read_and_written_as_grpc_says() {
    for (text, expected) in [
        ("1H", Some(Duration::from_secs(3600))),
        ("2M", Some(Duration::from_secs(120))),
        ("3S", Some(Duration::from_secs(3))),
        ("99999999m", Some(Duration::from_millis(99_999_999))),
        ("5u", Some(Duration::from_micros(5))),
        ("7n", Some(Duration::from_nanos(7))),
        ("100000000m", None),
        ("S", None),
        ("", None),
        ("-1S", None),
        ("1s", None),
        ("1.5S", None),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(GRPC_TIMEOUT, HeaderValue::from_static(text));
        assert_eq!(grpc_timeout(&headers), expected, "{text}");
    }
    for (left, expected) in [
        (Duration::from_micros(1), "1u"),
        (Duration::from_millis(1500), "1500000u"),
        (Duration::from_secs(100), "100000m"),
        (Duration::from_secs(200_000), "200000S"),
        (Duration::from_secs(u64::MAX), "99999999S"),
    ] {
        assert_eq!(grpc_timeout_value(left).unwrap(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_limit_reached_is_the_one_told() {
    for (overall, of_try, idle, expected, after_ms) in [
        (Some(10), Some(5), Some(100), Expired::Try, 5),
        (Some(10), None, Some(100), Expired::Overall, 10),
        (Some(1000), None, Some(100), Expired::Idle, 100),
    ] {
        let start = Instant::now();
        let millis = |ms: Option<u64>| ms.map(Duration::from_millis);
        let mut limits = Limits::new(start, millis(overall), millis(idle));
        limits.of_try = millis(of_try).map(|t| start + t);
        let mut timer = Timer::default();
        let mut moved = false;
        let expired = poll_fn(|cx| limits.poll(|at| timer.poll(cx, at), &mut moved, || FLOW)).await;
        assert_eq!(expired, Err(expected));
        assert!(start.elapsed() >= Duration::from_millis(after_ms));
        assert!(start.elapsed() < Duration::from_millis(after_ms + 3));
    }
}

#[tokio::test(start_paused = true)]
async fn movement_puts_the_idle_limit_off() {
    let start = Instant::now();
    let mut limits = Limits::new(start, None, Some(Duration::from_millis(100)));
    let mut timer = Timer::default();
    let mut moved = false;
    let moving = async {
        let expired = poll_fn(|cx| {
            if start.elapsed() < Duration::from_millis(500) {
                moved = true;
            }
            limits.poll(|at| timer.poll(cx, at), &mut moved, || FLOW)
        })
        .await;
        assert_eq!(expired, Err(Expired::Idle));
    };
    moving.await;
    let elapsed = start.elapsed();
    assert!(
        (Duration::from_millis(550)..Duration::from_millis(650)).contains(&elapsed),
        "{elapsed:?}"
    );
}
