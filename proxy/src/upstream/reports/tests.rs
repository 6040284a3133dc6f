use super::*;

#[test]
fn pauses_grow_up_to_two_minutes_and_begin_again_after_a_report() {
    let mut backoff = Backoff::default();
    let seconds: Vec<f64> = (0..14).map(|_| backoff.next(0.5).as_secs_f64()).collect();
    assert!((seconds[0] - 1.0).abs() < 1e-9 && (seconds[1] - 1.6).abs() < 1e-9, "{seconds:?}");
    assert!(seconds.windows(2).all(|pair| pair[0] <= pair[1]), "{seconds:?}");
    assert!((seconds[13] - 120.0).abs() < 1e-9, "{seconds:?}");
    for jitter in [0.0, 1.0] {
        let pause = (0..1_000).map(|_| backoff.next(jitter)).max().unwrap().as_secs_f64();
        assert!((95.0..145.0).contains(&pause), "{pause}");
    }
    backoff = Backoff::default();
    assert!(backoff.next(1.0) < Duration::from_millis(1_201));
}

#[test]
fn of_what_came_the_newest_whole_message_is_kept_and_the_rest_waits() {
    for (came, expected, left) in [
        (&b""[..], Ok(None), 0),
        (b"\0\0\0\0", Ok(None), 4),
        (b"\0\0\0\0\0", Ok(Some(&b""[..])), 0),
        (b"\0\0\0\0\x02ab", Ok(Some(b"ab")), 0),
        (b"\0\0\0\0\x02a", Ok(None), 6),
        (b"\0\0\0\0\x01a\0\0\0\0\x01b\0\0", Ok(Some(b"b")), 2),
        (b"\x01\0\0\0\x01a", Err(()), 6),
        (b"\0\xff\xff\xff\xff", Err(()), 5),
        (b"\0\0\0\x40\x01", Err(()), 5),
    ] {
        let mut buffer = BytesMut::from(came);
        let last = last_message(&mut buffer).map_err(|_| ());
        assert_eq!(
            last.as_ref().map(|last| last.as_deref()),
            expected.as_ref().copied(),
            "{came:?}"
        );
        assert_eq!(buffer.len(), left, "{came:?}");
    }
}

#[test]
fn one_that_does_not_know_the_method_is_told_from_one_that_cannot_now() {
    let fields = |status: &'static str| {
        HeaderMap::from_iter([(
            header::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static(status),
        )])
    };
    for (status, fields, expected) in [
        (200, HeaderMap::new(), None),
        (200, fields("12"), Some(true)),
        (200, fields("14"), Some(false)),
        (200, fields("0"), Some(false)),
        (404, HeaderMap::new(), Some(true)),
        (503, HeaderMap::new(), Some(false)),
        (404, fields("14"), Some(false)),
    ] {
        let end = refused(StatusCode::from_u16(status).unwrap(), &fields);
        let unknown = end.map(|end| end == End::Unknown);
        assert_eq!(unknown, expected, "{status} {fields:?}");
    }
}
