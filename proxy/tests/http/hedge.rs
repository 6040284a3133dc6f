//! Reads that are late: asked for once more elsewhere, and one answer.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    sync::mpsc,
    time::{Instant, sleep},
};
use towpath_policies::model::{
    Balancer, Endpoint, EndpointSet, Hedge, HedgeAfter, Protocol, RetryCondition, RetryPolicy,
};

use crate::{
    harness::{Input, Proxy, Setup, eventually, origin},
    http2::h2_origin,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const FIRST: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst";
const OTHER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy";
const LARGE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\n";
/// It resets the connection.
const RESET: &str = "";
/// Longer than anything waits for.
const NEVER: u64 = 1_000_000;

/// An origin that answers so many milliseconds after each request; and how many it got.
async fn after(ms: u64, answer: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let (addr, _) = origin(move |mut io, _| {
        let count = count.clone();
        async move {
            let mut input = Input::default();
            while input.message(&mut io).await.is_some() {
                count.fetch_add(1, Relaxed);
                sleep(Duration::from_millis(ms)).await;
                if answer == RESET {
                    io.set_zero_linger().unwrap();
                    return;
                }
                if io.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (addr, requests)
}

/// Late is what takes longer than 50 ms. The first try goes to the first of them.
fn hedging(name: &str, origins: &[SocketAddr]) -> Setup {
    Setup::to_all(origins).with(|s| {
        s.service.name = format!("hedge-{name}");
        s.service.balancer = Balancer::RoundRobin;
        s.forward.retry = RetryPolicy {
            attempts: 1,
            backoff_base: Duration::from_millis(1),
            ..RetryPolicy::default()
        };
        let after = HedgeAfter::Time(Duration::from_millis(50));
        s.forward.transfer.hedge = Some(Hedge { after, ..Hedge::default() });
    })
}

/// Hedges counted: won, lost, refused.
fn hedges(proxy: &Proxy) -> [u64; 3] {
    proxy.service.live.metrics.hedges.each_ref().map(towpath_proxy::metrics::Counter::value)
}

async fn nothing_left(proxy: &Proxy) {
    eventually("nothing is left", || {
        let live = &proxy.service.live;
        let endpoints = &proxy.service.endpoints;
        live.retries.load(Relaxed) == 0
            && live.requests.load(Relaxed) == 0
            && endpoints.iter().all(|e| e.live.requests.load(Relaxed) == 0)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_two_tries_the_first_good_head_wins_and_the_other_is_dropped() {
    for (name, first, other, expected, counted, failures, ms) in [
        ("slow", (NEVER, FIRST), (0, OTHER), "other", [1, 0, 0], [0, 0], 50),
        ("late", (200, FIRST), (NEVER, OTHER), "first", [0, 1, 0], [0, 0], 200),
        ("quick", (10, FIRST), (0, OTHER), "first", [0, 0, 0], [0, 0], 10),
        // A failure of either is none while the other may do better.
        ("first-breaks", (100, RESET), (100, OTHER), "other", [1, 0, 0], [1, 0], 150),
        ("other-breaks", (200, FIRST), (0, RESET), "first", [0, 1, 0], [0, 1], 200),
        ("other-busy", (200, FIRST), (0, BUSY), "first", [0, 1, 0], [0, 1], 200),
        ("first-busy", (100, BUSY), (100, OTHER), "other", [1, 0, 0], [1, 0], 150),
        // And what is no small read does not move.
        ("other-large", (200, FIRST), (0, LARGE), "first", [0, 1, 0], [0, 0], 200),
        // One error where both fail, and no third try beyond the one allowed.
        ("both-break", (100, RESET), (100, RESET), "502", [0, 1, 0], [1, 1], 150),
        ("one-busy", (100, RESET), (100, BUSY), "busy", [1, 0, 0], [1, 1], 150),
    ] {
        let origins = [after(first.0, first.1).await, after(other.0, other.1).await];
        let proxy = hedging(name, &origins.each_ref().map(|o| o.0))
            .with(|s| {
                let busy = RetryCondition::Status(vec![503]);
                s.forward.retry.on = vec![RetryCondition::Reset, busy];
            })
            .start()
            .await;
        let start = Instant::now();
        let reply = proxy.talk(GET).await;
        let took = start.elapsed();
        if expected == "502" {
            assert!(reply.starts_with("HTTP/1.1 502 "), "{name}: {reply}");
        } else {
            assert!(reply.ends_with(expected), "{name}: {reply}");
        }
        assert_eq!(hedges(&proxy), counted, "{name}");
        let least = Duration::from_millis(ms);
        assert!(took >= least && took < least + Duration::from_millis(40), "{name}: {took:?}");
        nothing_left(&proxy).await;
        let asked = origins.each_ref().map(|o| o.1.load(Relaxed));
        let hedged = usize::from(counted != [0, 0, 0]);
        assert_eq!(asked, [1, hedged], "{name}");
        let live = |n: usize| &proxy.service.endpoints[n].live;
        let failed = [0, 1].map(|n| live(n).consecutive_failures.load(Relaxed));
        assert_eq!(failed, failures, "{name}");
        if first.0 == NEVER {
            // A lane that lost may have gone on to answer on a connection nobody reads.
            eventually("its connection is closed", || live(0).connections.load(Relaxed) == 0).await;
        }
        if other.0 == NEVER {
            eventually("its connection is closed", || live(1).connections.load(Relaxed) == 0).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_read_without_a_body_is_hedged_once_elsewhere_within_the_budget() {
    let get = GET;
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let put = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    let body = "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    let off = |s: &mut Setup| s.forward.transfer.hedge = None;
    let poor = |s: &mut Setup| {
        s.service.retry_budget.min_concurrent = 0;
        s.service.retry_budget.percent = 0;
    };
    let alone = |s: &mut Setup| s.endpoints.truncate(1);
    let no_tries = |s: &mut Setup| s.forward.retry.attempts = 0;
    let nothing = |_: &mut Setup| {};
    type Change = fn(&mut Setup);
    for (name, request, change, counted) in [
        ("post", post, nothing as Change, [0, 0, 0]),
        ("put", put, nothing, [0, 0, 0]),
        ("body", body, nothing, [0, 0, 0]),
        ("off", get, off, [0, 0, 0]),
        ("no-tries", get, no_tries, [0, 0, 0]),
        ("poor", get, poor, [0, 0, 1]),
        ("alone", get, alone, [0, 0, 1]),
    ] {
        let (first, _) = after(200, FIRST).await;
        let (other, asked) = after(0, OTHER).await;
        let proxy = hedging(name, &[first, other]).with(change).start().await;
        let reply = proxy.talk(request).await;
        assert!(reply.ends_with("first"), "{name}: {reply}");
        assert_eq!((hedges(&proxy), asked.load(Relaxed)), (counted, 0), "{name}");
        nothing_left(&proxy).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_goes_where_a_request_would_go_when_it_is_sent() {
    let (first, begun) = after(NEVER, FIRST).await;
    let (left, asked) = after(0, FIRST).await;
    let (came, _) = after(0, OTHER).await;
    let proxy = hedging("changed", &[first, left]).start().await;
    let read = async { proxy.talk(GET).await };
    let change = async {
        eventually("the first try", || begun.load(Relaxed) == 1).await;
        let endpoints = [first, came].map(Endpoint::new).to_vec();
        let set = EndpointSet::new("origin".into(), endpoints);
        let spec = proxy.service.spec.clone();
        towpath_proxy::upstream::reconcile(Some(&proxy.service), spec, &set, 1).unwrap()
    };
    let (reply, _now) = tokio::join!(read, change);
    assert!(reply.ends_with("other"), "{reply}");
    assert_eq!(asked.load(Relaxed), 0, "it was taken out of the configuration");
}

#[tokio::test(start_paused = true)]
async fn late_is_what_takes_longer_than_the_routes_own_percentile() {
    let origins = [after(10, FIRST).await, after(10, OTHER).await, after(NEVER, FIRST).await];
    let addrs = origins.each_ref().map(|o| o.0);
    let proxy = hedging("percentile", &addrs)
        .with(|s| {
            s.forward.transfer.hedge = Some(Hedge { min_samples: 64, ..Hedge::default() });
        })
        .start()
        .await;
    // The third is out of the way until enough is known.
    let slow = proxy.service.endpoints[2].live.clone();
    slow.probe_healthy.store(false, Relaxed);
    for _ in 0..70 {
        assert!(proxy.talk(GET).await.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(hedges(&proxy)[0], 0);
    slow.probe_healthy.store(true, Relaxed);
    for _ in 0..6 {
        let start = Instant::now();
        assert!(proxy.talk(GET).await.starts_with("HTTP/1.1 200 "));
        assert!(start.elapsed() < Duration::from_millis(60), "{:?}", start.elapsed());
    }
    assert!(hedges(&proxy)[0] >= 1 && origins[2].1.load(Relaxed) >= 1);
    nothing_left(&proxy).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_leaves_neither_try_behind() {
    let origins = [after(NEVER, FIRST).await, after(NEVER, OTHER).await];
    let proxy = hedging("gone", &origins.each_ref().map(|o| o.0)).start().await;
    let mut io = proxy.connect().await;
    io.write_all(GET.as_bytes()).await.unwrap();
    eventually("both are asked", || origins.iter().all(|o| o.1.load(Relaxed) == 1)).await;
    io.set_zero_linger().unwrap();
    drop(io);
    nothing_left(&proxy).await;
    assert_eq!(hedges(&proxy), [0, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn the_stream_that_loses_is_cancelled() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let first = h2_origin(move |_, mut respond| {
        let tell = tell.clone();
        async move {
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            tell.send(reason.unwrap()).unwrap();
        }
    })
    .await;
    let other = h2_origin(|_, mut respond| async move {
        respond.send_response(http::Response::new(()), true).unwrap();
    })
    .await;
    let proxy = hedging("h2", &[first, other]).speaking(Protocol::Http2).start().await;
    assert!(proxy.talk(GET).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(told.recv().await, Some(h2::Reason::CANCEL));
    assert_eq!(hedges(&proxy), [1, 0, 0]);
    nothing_left(&proxy).await;
}
