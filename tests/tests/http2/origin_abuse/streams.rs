//! Streams that an origin refuses, leaves or limits, and the window of an upload.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::timeout;
use towpath_tests::{
    Proxy, RawOrigin, Script, Then, Wire, digest,
    frames::{
        ACK, DATA, END_STREAM, FrameOrigin, Frames, GET, HEADER_TABLE_SIZE, HEADERS,
        INITIAL_WINDOW_SIZE, INTERNAL_ERROR, MAX_CONCURRENT_STREAMS, NO_ERROR, PING, POST,
        REFUSED_STREAM, SETTINGS, Verdict, frame, goaway, headers, reset, setting, window,
    },
};

use super::{Play, Stage, Whole, fine, over_http1, over_http2};

#[tokio::test]
async fn a_refused_request_goes_to_the_other_endpoint() {
    let refusing = FrameOrigin::start(frame(SETTINGS, 0, 0, []), |_, seen| {
        Script::keep(if seen.kind == HEADERS { reset(seen.stream, REFUSED_STREAM) } else { vec![] })
    })
    .await;
    let willing = FrameOrigin::start(frame(SETTINGS, 0, 0, []), |_, seen| {
        let last = matches!(seen.kind, HEADERS | DATA) && seen.flags & END_STREAM != 0;
        Script::keep(if last { fine(seen.stream) } else { Vec::new() })
    })
    .await;
    let proxy = Proxy::before("HTTP2", &[refusing.address, willing.address]).await;
    // §8.7: REFUSED_STREAM guarantees that nothing was processed; any method may be sent again.
    for request in [
        headers(END_STREAM, 1, GET),
        [headers(0, 1, POST), frame(DATA, END_STREAM, 1, "ab")].concat(),
    ] {
        for _ in 0..10 {
            let outcome = over_http2(&proxy, request.clone()).await;
            assert_eq!(outcome, Whole(200, b"fine".to_vec()));
        }
    }
    let refused = refusing.take().iter().filter(|(_, f)| f.kind == HEADERS).count();
    let bodies = willing.take().into_iter().filter(|(_, f)| f.kind == DATA);
    let bodies: Vec<u8> = bodies.flat_map(|(_, f)| f.payload).collect();
    assert_eq!(bodies, b"ab".repeat(10), "each body once");
    assert!(refused > 0, "the first endpoint was asked too");
}

#[tokio::test]
async fn who_refuses_for_ever_is_not_asked_for_ever() {
    for (name, play, then) in [
        ("REFUSED_STREAM", (|s| reset(s, REFUSED_STREAM)) as Play, Then::Next),
        ("GOAWAY below", |_| goaway(0, NO_ERROR), Then::Next),
        ("GOAWAY below and the end", |_| goaway(0, NO_ERROR), Then::Close),
        ("GOAWAY below with an error", |_| goaway(0, INTERNAL_ERROR), Then::Close),
    ] {
        let stage = Stage::start().await;
        stage.plays(play, then);
        let outcome = timeout(Duration::from_secs(5), over_http1(&stage.proxy, "GET")).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("{name}: nothing in time"));
        assert!(matches!(outcome, Whole(502 | 503, _)), "{name}: {outcome:?}");
        let asked = stage.origin.take().iter().filter(|(_, f)| f.kind == HEADERS).count();
        assert!((1..=20).contains(&asked), "{name}: asked {asked} times");
    }
}

#[tokio::test]
async fn an_origin_that_leaves_gracefully_loses_no_request() {
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP2", &[origin.address]).await;
    let mut client = Frames::connect_with(proxy.address, &setting(HEADER_TABLE_SIZE, 0)).await;
    client.send(headers(END_STREAM, 1, POST)).await;
    let mut leaving = Frames::accept(origin.accept().await, &frame(SETTINGS, 0, 0, [])).await;
    let first = leaving.next_of(&[HEADERS]).await.stream;
    // §6.8: first all may come, then the last that did.
    leaving.send(goaway(0x7fff_ffff, NO_ERROR)).await;
    assert!(leaving.settled().await, "an answer, not the end");
    leaving.send(goaway(first, NO_ERROR)).await;
    client.send(headers(END_STREAM, 3, POST)).await;
    let mut next = Frames::accept(origin.accept().await, &frame(SETTINGS, 0, 0, [])).await;
    let second = next.next_of(&[HEADERS]).await.stream;
    next.send(fine(second)).await;
    assert_eq!(client.verdict(3).await, Verdict::Status(200));
    leaving.send(fine(first)).await;
    assert_eq!(client.verdict(1).await, Verdict::Status(200));
    // With nothing left to carry, the proxy leaves too.
    leaving.ended().await;
}

#[tokio::test]
async fn an_origin_that_takes_no_stream_yet_is_waited_for() {
    let open = Arc::new(Mutex::new(BTreeSet::new()));
    let known = Arc::new(Mutex::new(BTreeSet::new()));
    let origin = FrameOrigin::start(setting(MAX_CONCURRENT_STREAMS, 0), move |n, seen| {
        let acknowledged = seen.kind == SETTINGS && seen.flags & ACK != 0;
        Script::keep(match seen.kind {
            // It knows that none is allowed: now some are.
            SETTINGS if acknowledged && known.lock().expect("whole").insert(n) => {
                open.lock().expect("whole").insert(n);
                setting(MAX_CONCURRENT_STREAMS, 10)
            }
            HEADERS if open.lock().expect("whole").contains(&n) => fine(seen.stream),
            HEADERS => reset(seen.stream, REFUSED_STREAM),
            _ => Vec::new(),
        })
    })
    .await;
    let proxy = Proxy::before("HTTP2", &[origin.address]).await;
    let (one, two, three) = tokio::join!(
        over_http1(&proxy, "GET"),
        over_http1(&proxy, "GET"),
        over_http2(&proxy, headers(END_STREAM, 1, POST)),
    );
    for outcome in [one, two, three] {
        assert_eq!(outcome, Whole(200, b"fine".to_vec()));
    }
}

#[tokio::test]
async fn an_origin_that_takes_one_stream_is_given_one_and_all_are_answered() {
    // Of each connection: whether it knows of the limit, what is open, and the most that ever was.
    let state = Arc::new(Mutex::new(BTreeMap::<usize, (bool, usize, usize)>::new()));
    let counts = state.clone();
    let origin = FrameOrigin::start(setting(MAX_CONCURRENT_STREAMS, 1), move |n, seen| {
        let mut state = counts.lock().expect("whole");
        let (known, open, most) = state.entry(n).or_default();
        Script::keep(match (seen.kind, seen.flags & ACK != 0) {
            (SETTINGS, true) => {
                *known = true;
                Vec::new()
            }
            (HEADERS, _) => {
                *open += 1;
                *most = (*most).max(if *known { *open } else { 0 });
                // Answered after a turn, in which the proxy may send another by mistake.
                let stream = u64::from(seen.stream).to_be_bytes();
                frame(PING, 0, 0, stream)
            }
            (PING, true) => {
                *open -= 1;
                fine(u32::from_be_bytes(seen.payload[4..].try_into().expect("eight bytes")))
            }
            _ => Vec::new(),
        })
    })
    .await;
    let proxy = Proxy::before("HTTP2", &[origin.address]).await;
    for _ in 0..10 {
        let two = || over_http2(&proxy, headers(END_STREAM, 1, GET));
        let one = || over_http1(&proxy, "GET");
        let (a, b, c, d) = tokio::join!(one(), two(), one(), two());
        for outcome in [a, b, c, d] {
            assert_eq!(outcome, Whole(200, b"fine".to_vec()));
        }
    }
    let state = state.lock().expect("whole");
    assert!(state.values().all(|(.., most)| *most <= 1), "{state:?}");
}

#[tokio::test]
async fn an_upload_keeps_to_the_windows_of_the_origin() {
    let body: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(n) >> 5) as u8).collect();
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP2", &[origin.address]).await;
    let length = format!("POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut client = Wire::connect(proxy.address).await;
    let upload = async {
        client.send([length.as_bytes(), &body].concat()).await;
        client.response().await
    };
    let serve = async {
        let mut upstream =
            Frames::accept(origin.accept().await, &setting(INITIAL_WINDOW_SIZE, 0)).await;
        // Until it knows of ours, the defaults are its windows (§6.9.2).
        let (mut stream, mut connection, mut left) = (0, 65_535_i64, 65_535_i64);
        let (mut got, mut known) = (Vec::new(), false);
        let mut steps = [1, 5_000, 1, 2, 16_384, 30_000, 70_000].into_iter().cycle();
        loop {
            let next = upstream.any().await.expect("a frame, not the end");
            upstream.acknowledge(&next).await;
            match next.kind {
                HEADERS => stream = next.stream,
                SETTINGS if next.flags & ACK != 0 && !known => {
                    (known, left) = (true, left - 65_535)
                }
                DATA => {
                    let size = next.payload.len() as i64;
                    (connection, left) = (connection - size, left - size);
                    assert!(size == 0 || (connection >= 0 && left >= 0), "{left}, {connection}");
                    got.extend(&next.payload);
                }
                _ => {}
            }
            if next.kind == DATA && next.flags & END_STREAM != 0 {
                break;
            }
            for (id, room) in [(0, &mut connection), (stream, &mut left)] {
                if *room <= 0 && known && stream != 0 {
                    let by: i64 = steps.next().expect("endless");
                    upstream.send(window(id, (by - *room) as u32)).await;
                    *room = by;
                }
            }
        }
        upstream.send(fine(stream)).await;
        (got, upstream)
    };
    let (response, (got, _upstream)) = tokio::join!(upload, serve);
    assert_eq!((response.status, &response.body[..]), (200, &b"fine"[..]));
    assert_eq!((got.len(), digest(&got)), (body.len(), digest(&body)), "byte for byte");
}
