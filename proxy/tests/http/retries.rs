//! Tries: what is sent again, when, and never twice within one.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use towpath_policies::model::{Balancer, Mirror, Protocol, RetryCondition, RetryPolicy};

use crate::harness::{Input, Setup, answering, eventually, origin, read_all, soon};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn policy(attempts: u32, on: Vec<RetryCondition>) -> RetryPolicy {
    RetryPolicy { attempts, on, backoff_base: Duration::from_millis(1), ..RetryPolicy::default() }
}

#[tokio::test]
async fn a_failed_connect_costs_no_byte_of_a_body_of_any_size() {
    let (good, requests) = answering(OK).await;
    let proxy = Setup::to_all(&[nobody().await, good])
        .with(|s| s.service.balancer = Balancer::RoundRobin)
        .start()
        .await;
    for _ in 0..4 {
        let mut io = proxy.connect().await;
        let body = "x".repeat(1 << 20);
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        io.write_all(request.as_bytes()).await.unwrap();
        assert!(soon(read_all(&mut io)).await.0.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(requests.all().len(), 4);
    assert!(requests.all().iter().all(|r| r.len() > 1 << 20));
}

#[tokio::test]
async fn when_nobody_listens_the_answer_says_so() {
    let proxy = Setup::to(nobody().await).start().await;
    let reply = soon(proxy.talk("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
    assert!(reply.contains("x-towpath-reason: connect_failure"), "{reply}");
}

/// linkerd2#15649: a retry must not see a chunk twice, nor miss one, wherever the first try broke.
#[tokio::test]
async fn a_replayed_body_has_every_chunk_once_and_in_order() {
    for broken_after in [0, 1, 3, 4] {
        let seen = Arc::new(Mutex::new(String::new()));
        let log = seen.clone();
        let (addr, connections) = origin(move |mut io, before| {
            let log = log.clone();
            async move {
                let mut input = Input::default();
                if before == 0 {
                    input.until(&mut io, "\r\n\r\n").await.unwrap();
                    for n in 0..broken_after {
                        input.until(&mut io, &format!("chunk{n}\r\n")).await.unwrap();
                    }
                    io.set_zero_linger().unwrap();
                    return;
                }
                *log.lock().unwrap() = input.message(&mut io).await.unwrap();
                io.write_all(OK.as_bytes()).await.unwrap();
            }
        })
        .await;
        let proxy = Setup::to(addr).start().await;
        let mut io = proxy.connect().await;
        io.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await
            .unwrap();
        for n in 0..4 {
            io.write_all(format!("6\r\nchunk{n}\r\n").as_bytes()).await.unwrap();
            if n + 1 == broken_after {
                eventually("the second try", || connections.load(SeqCst) == 2).await;
            }
        }
        io.write_all(b"0\r\nx-rows: 4\r\n\r\n").await.unwrap();
        let reply = soon(Input::default().message(&mut io)).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 "), "{broken_after}: {reply}");
        let sent = seen.lock().unwrap().clone();
        let chunks: Vec<_> = sent.lines().filter(|l| l.starts_with("chunk")).collect();
        assert_eq!(chunks, ["chunk0", "chunk1", "chunk2", "chunk3"], "{broken_after}");
        assert!(sent.ends_with("0\r\nx-rows: 4\r\n\r\n"), "{broken_after}: {sent}");
    }
}

#[tokio::test]
async fn a_body_beyond_the_replay_limit_is_not_sent_again() {
    let (addr, connections) = origin(|mut io, _| async move {
        let mut input = Input::default();
        input.until(&mut io, "\r\n\r\n").await.unwrap();
        input.exactly(&mut io, 20_000).await.unwrap();
        io.set_zero_linger().unwrap();
    })
    .await;
    let proxy = Setup::to(addr)
        .with(|s| {
            s.forward.retry =
                RetryPolicy { replay_limit_bytes: 10_000, ..policy(3, vec![RetryCondition::Reset]) }
        })
        .start()
        .await;
    let body = "x".repeat(20_000);
    let reply = soon(proxy.talk(&format!(
        "PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 20000\r\n\r\n{body}"
    )))
    .await;
    assert!(reply.starts_with("HTTP/1.1 502 "), "{reply}");
    assert_eq!(connections.load(SeqCst), 1);
}

#[tokio::test]
async fn a_post_is_sent_again_only_with_a_key() {
    for (key, tries) in [("", 1), ("Idempotency-Key: 1\r\n", 2)] {
        let (addr, connections) = origin(|mut io, _| async move {
            Input::default().message(&mut io).await.unwrap();
            io.set_zero_linger().unwrap();
        })
        .await;
        let proxy = Setup::to(addr).start().await;
        let reply = soon(proxy.talk(&format!(
            "POST / HTTP/1.1\r\nHost: a\r\n{key}Content-Length: 2\r\nConnection: close\r\n\r\nok"
        )))
        .await;
        assert!(reply.starts_with("HTTP/1.1 502 "), "{reply}");
        assert_eq!(connections.load(SeqCst), tries, "{key}");
    }
}

#[tokio::test]
async fn a_stale_pooled_connection_is_replaced_without_a_try_being_charged() {
    let (addr, connections) = origin(|mut io, before| async move {
        let mut input = Input::default();
        input.message(&mut io).await.unwrap();
        io.write_all(OK.as_bytes()).await.unwrap();
        if before == 0 {
            // Reads the second request, and closes as if it had not seen it.
            input.message(&mut io).await.unwrap();
        }
    })
    .await;
    let proxy = Setup::to(addr).with(|s| s.forward.retry.attempts = 0).start().await;
    let mut io = proxy.connect().await;
    let mut input = Input::default();
    for _ in 0..2 {
        io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let reply = soon(input.message(&mut io)).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    }
    assert_eq!(connections.load(SeqCst), 2);
}

#[tokio::test]
async fn a_pooled_connection_closed_by_the_origin_is_not_used() {
    let (addr, connections) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        io.write_all(OK.as_bytes()).await.unwrap();
    })
    .await;
    let proxy = Setup::to(addr).with(|s| s.forward.retry.attempts = 0).start().await;
    let live = proxy.service.endpoints[0].live.clone();
    for n in 1..=3 {
        let reply =
            soon(proxy.talk(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            ))
            .await;
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
        assert_eq!(connections.load(SeqCst), n);
        eventually("the closed connection is dropped", || live.connections.load(Relaxed) == 0)
            .await;
    }
}

#[tokio::test]
async fn a_status_the_policy_names_is_tried_elsewhere() {
    let (bad, _) = answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
    let (good, _) = answering(OK).await;
    let proxy = Setup::to_all(&[bad, good])
        .with(|s| {
            s.forward.retry = policy(1, vec![RetryCondition::Status(vec![503])]);
            s.service.outlier = None;
        })
        .start()
        .await;
    for _ in 0..20 {
        let reply =
            soon(proxy.talk("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    }
    let reply = soon(proxy.talk("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
    assert!(reply.ends_with("ok"));
}

#[tokio::test]
async fn the_last_failing_answer_is_passed_on_as_it_is() {
    let (bad, requests) =
        answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\nx-own: 1\r\n\r\nbusy")
            .await;
    let proxy = Setup::to(bad)
        .with(|s| s.forward.retry = policy(2, vec![RetryCondition::Status(vec![503])]))
        .start()
        .await;
    let reply = soon(proxy.talk("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
    assert!(reply.contains("x-own: 1") && reply.ends_with("busy"), "{reply}");
    assert_eq!(requests.all().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_try_that_takes_too_long_is_given_up_for_another() {
    let (slow, _) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        let _ = io.read(&mut [0; 1]).await;
    })
    .await;
    let (good, _) = answering(OK).await;
    let proxy = Setup::to_all(&[slow, good])
        .with(|s| {
            s.service.balancer = Balancer::RoundRobin;
            s.forward.retry = RetryPolicy {
                per_try_timeout: Some(Duration::from_secs(1)),
                ..policy(1, vec![RetryCondition::Timeout])
            };
        })
        .start()
        .await;
    for _ in 0..2 {
        let reply = proxy.talk("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_whole_time_bounds_all_tries_together() {
    let (slow, connections) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        let _ = io.read(&mut [0; 1]).await;
    })
    .await;
    let proxy = Setup::to(slow)
        .with(|s| {
            s.forward.timeout = Some(Duration::from_millis(2500));
            s.forward.retry = RetryPolicy {
                per_try_timeout: Some(Duration::from_secs(1)),
                ..policy(100, vec![RetryCondition::Timeout])
            };
        })
        .start()
        .await;
    let reply = proxy.talk("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 504 "), "{reply}");
    assert_eq!(connections.load(SeqCst), 3);
}

#[tokio::test]
async fn retries_beyond_the_budget_are_not_made() {
    let (addr, connections) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        io.set_zero_linger().unwrap();
    })
    .await;
    let proxy = Setup::to(addr)
        .with(|s| {
            s.service.retry_budget.min_concurrent = 0;
            s.service.retry_budget.percent = 0;
        })
        .start()
        .await;
    let reply = soon(proxy.talk("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
    assert!(reply.starts_with("HTTP/1.1 502 "), "{reply}");
    assert_eq!(connections.load(SeqCst), 1);
}

#[tokio::test]
async fn a_refused_stream_is_tried_again_even_for_a_post() {
    let (addr, _) = origin(|io, _| async move {
        let mut connection = h2::server::handshake(io).await.unwrap();
        let mut first = true;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            if std::mem::take(&mut first) {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            } else {
                respond.send_response(http::Response::new(()), true).unwrap();
            }
        }
    })
    .await;
    let proxy = Setup::to(addr).speaking(Protocol::Http2).start().await;
    let reply = soon(
        proxy
            .talk("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"),
    )
    .await;
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
}

#[tokio::test]
async fn requests_beyond_the_breaker_are_refused_at_once() {
    let (addr, _) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        let _ = io.read(&mut [0; 1]).await;
    })
    .await;
    let proxy =
        Setup::to(addr).with(|s| s.service.breaker.service.max_requests = Some(1)).start().await;
    let mut held = proxy.connect().await;
    held.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    eventually("one is in flight", || proxy.service.live.requests.load(Relaxed) == 1).await;
    let reply = soon(proxy.talk("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
    assert!(
        reply.starts_with("HTTP/1.1 503 ") && reply.contains("x-towpath-reason: overflow"),
        "{reply}"
    );
}

#[tokio::test]
async fn bytes_in_flight_are_those_declared_and_those_seen() {
    let (addr, _) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf").await.unwrap();
        let _ = io.read(&mut [0; 1]).await;
    })
    .await;
    let proxy = Setup::to(addr).start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await.unwrap();
    let live = proxy.service.endpoints[0].live.clone();
    eventually("both lengths are counted", || live.bytes_in_flight.load(Relaxed) == 1003).await;
    io.set_zero_linger().unwrap();
    drop(io);
    eventually("nothing is left", || live.bytes_in_flight.load(Relaxed) == 0).await;
}

#[tokio::test]
async fn a_mirror_gets_its_own_whole_copy() {
    let (good, requests) = answering(OK).await;
    let proxy = Setup::to(good)
        .with(|s| {
            s.forward.mirrors =
                vec![Mirror { service: "origin".into(), parts_per_million: 1_000_000 }]
        })
        .start()
        .await;
    let reply =
        soon(proxy.talk(
            "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        ))
        .await;
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    eventually("the copy arrives", || requests.all().len() == 2).await;
    assert!(
        requests.all().iter().all(|r| r.starts_with("POST /x HTTP/1.1\r\n") && r.ends_with("abc"))
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_not_lost_when_its_service_goes_before_the_next_try() {
    let (busy, requests) =
        answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy").await;
    let proxy = Setup::to(busy)
        .with(|s| {
            s.forward.retry = RetryPolicy {
                backoff_base: Duration::from_secs(10),
                backoff_max: Duration::from_secs(10),
                ..policy(2, vec![RetryCondition::Status(vec![503])])
            };
        })
        .start()
        .await;
    let mut io = proxy.connect().await;
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    eventually("the first try", || requests.all().len() == 1).await;
    eventually("the pause", || proxy.service.live.retries.load(Relaxed) == 1).await;
    towpath_proxy::upstream::retire(&proxy.service);
    let reply = read_all(&mut io).await.0;
    assert!(reply.starts_with("HTTP/1.1 503 ") && reply.ends_with("busy"), "{reply}");
    assert_eq!(requests.all().len(), 1);
    eventually("nothing is left", || proxy.service.live.requests.load(Relaxed) == 0).await;
}

/// What is sent on is what is left of the try, or of the whole if that is less.
#[tokio::test(start_paused = true)]
async fn grpc_timeout_carries_the_smaller_deadline_onward() {
    let seconds = |s| Some(Duration::from_secs(s));
    for (asked, whole, per_try, least, most) in [
        ("30S", None, seconds(5), 4_000_000, 5_000_000),
        ("2S", seconds(60), seconds(5), 1_000_000, 2_000_000),
        ("30S", seconds(3), None, 2_000_000, 3_000_000),
        ("", None, seconds(5), 4_000_000, 5_000_000),
        ("", None, None, 0, 0),
    ] {
        let (addr, requests) = answering(OK).await;
        let proxy = Setup::to(addr)
            .with(|s| {
                s.forward.timeout = whole;
                s.forward.retry.per_try_timeout = per_try;
            })
            .start()
            .await;
        let asks = match asked {
            "" => String::new(),
            asked => format!("grpc-timeout: {asked}\r\n"),
        };
        proxy
            .talk(&format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\n{asks}Content-Length: 0\r\nConnection: close\r\n\r\n"
            ))
            .await;
        let request = requests.only();
        let told = request.lines().find_map(|l| l.strip_prefix("grpc-timeout: "));
        let told = told.map(|t| t.strip_suffix('u').unwrap().parse::<u64>().unwrap());
        let what = format!("{asked:?} {whole:?} {per_try:?}: {told:?}");
        assert!((least..=most).contains(&told.unwrap_or(0)), "{what}");
        assert_eq!(told.is_none(), most == 0, "{what}");
    }
}
