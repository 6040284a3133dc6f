//! Transfers that move too little: whose fault it is, and what becomes of them.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};
use towpath_policies::model::{Balancer, Protocol, RetryCondition, RetryPolicy, Stall};

use crate::{
    harness::{Input, Proxy, Setup, answering, eventually, origin, read_all},
    http2::{client, collect, h2_origin},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
/// More than the kernel and all windows take for nobody.
const SIZE: usize = 24 << 20;

/// Counters go by the name of the service, so each test has its own.
fn holding(name: &str, origins: &[SocketAddr]) -> Setup {
    Setup::to_all(origins).with(|s| {
        s.service.name = format!("stall-{name}");
        s.service.balancer = Balancer::RoundRobin;
        s.forward.transfer.stall =
            Some(Stall { below_bytes: 10 << 10, time: Duration::from_secs(8) });
        s.forward.retry = RetryPolicy {
            attempts: 1,
            on: vec![RetryCondition::Reset, RetryCondition::Stall],
            backoff_base: Duration::from_millis(1),
            replay_limit_bytes: 64 << 20,
            ..RetryPolicy::default()
        };
    })
}

/// Stalls counted: of endpoints, and of clients.
fn stalls(proxy: &Proxy) -> [u64; 2] {
    proxy.service.live.metrics.stalls.each_ref().map(towpath_proxy::metrics::Counter::value)
}

fn failures(proxy: &Proxy, endpoint: usize) -> u32 {
    proxy.service.endpoints[endpoint].live.consecutive_failures.load(Relaxed)
}

async fn nothing_left(proxy: &Proxy) {
    eventually("nothing is left", || {
        proxy.service.endpoints.iter().all(|e| e.live.requests.load(Relaxed) == 0)
    })
    .await;
}

/// Reads no more than the head.
async fn deaf() -> SocketAddr {
    origin(|mut io, _| async move {
        let mut head = [0; 64];
        io.read_exact(&mut head).await.unwrap();
        sleep(Duration::from_secs(100_000)).await;
    })
    .await
    .0
}

/// In real time: with a clock that jumps whenever nothing is ready, a long transfer would seem to
/// stand still whenever the kernel takes a moment.
fn quick(setup: Setup) -> Setup {
    setup.with(|s| {
        s.forward.transfer.stall =
            Some(Stall { below_bytes: 1 << 10, time: Duration::from_secs(2) });
    })
}

async fn put(proxy: &Proxy) -> (String, Duration) {
    let (mut read, mut write) = proxy.connect().await.into_split();
    let start = Instant::now();
    let sending = tokio::spawn(async move {
        let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n");
        let _ = write.write_all(head.as_bytes()).await;
        let _ = write.write_all(&vec![b'x'; SIZE]).await;
        write
    });
    let mut reply = Vec::new();
    while !reply.windows(4).any(|w| w == b"\r\n\r\n") {
        assert_ne!(read.read_buf(&mut reply).await.unwrap(), 0);
    }
    sending.abort();
    (String::from_utf8_lossy(&reply).into_owned(), start.elapsed())
}

#[tokio::test]
async fn an_endpoint_that_takes_no_body_is_given_up_for_another() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let received = Arc::new(AtomicUsize::new(0));
        let (log, tries) = (received.clone(), Arc::new(AtomicUsize::new(0)));
        let origins = if protocol == Protocol::Http1 {
            let (good, _) = origin(move |mut io, _| {
                let log = log.clone();
                async move {
                    let body = Input::default().message(&mut io).await.unwrap();
                    log.store(body.split_once("\r\n\r\n").unwrap().1.len(), Relaxed);
                    io.write_all(OK.as_bytes()).await.unwrap();
                }
            })
            .await;
            [deaf().await, good]
        } else {
            let script = move |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| {
                let (log, tries) = (log.clone(), tries.clone());
                async move {
                    let mut body = request.into_body();
                    if tries.fetch_add(1, Relaxed) == 0 {
                        sleep(Duration::from_secs(100_000)).await;
                    }
                    log.store(collect(&mut body).await.unwrap().0.len(), Relaxed);
                    respond.send_response(Response::new(()), true).unwrap();
                }
            };
            [h2_origin(script.clone()).await, h2_origin(script).await]
        };
        let setup = holding(&format!("{protocol:?}"), &origins).speaking(protocol);
        let proxy = quick(setup).start().await;
        let (reply, took) = put(&proxy).await;
        assert!(reply.starts_with("HTTP/1.1 200 "), "{protocol:?}: {reply}");
        assert_eq!(received.load(Relaxed), SIZE, "{protocol:?}");
        assert!(took.as_secs() >= 2, "{protocol:?}: {took:?}");
        assert_eq!(stalls(&proxy), [1, 0], "{protocol:?}");
        assert_eq!(failures(&proxy, 0) + failures(&proxy, 1), 1, "{protocol:?}");
        assert_eq!(proxy.service.live.metrics.retries[4].value(), 1, "{protocol:?}");
        nothing_left(&proxy).await;
    }
}

#[tokio::test]
async fn without_the_condition_a_stalled_upload_is_answered_504() {
    let proxy = quick(holding("2", &[deaf().await]))
        .with(|s| s.forward.retry.on = vec![RetryCondition::Reset])
        .start()
        .await;
    let (reply, _) = put(&proxy).await;
    assert!(reply.starts_with("HTTP/1.1 504 "), "{reply}");
    assert!(reply.contains("x-towpath-reason: stall\r\n"), "{reply}");
}

/// Sends a head and half of a body, and then a byte a second.
async fn trickling(head: &'static str) -> SocketAddr {
    origin(move |mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        io.write_all(head.as_bytes()).await.unwrap();
        io.write_all(&[b'a'; 50_000]).await.unwrap();
        while io.write_all(b"a").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    })
    .await
    .0
}

const STRONG: &str = "HTTP/1.1 200 OK\r\netag: \"v1\"\r\ncontent-length: 100000\r\n\r\n";
const WEAK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// A replica that has the rest.
async fn replica() -> SocketAddr {
    origin(|mut io, _| async move {
        let request = Input::default().message(&mut io).await.unwrap();
        let from = request.split("range: bytes=").nth(1).unwrap().split('-').next().unwrap();
        let rest = 100_000 - from.parse::<usize>().unwrap();
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\netag: \"v1\"\r\ncontent-range: bytes {from}-99999/100000\r\ncontent-length: {rest}\r\n\r\n"
        );
        io.write_all((head + &"a".repeat(rest)).as_bytes()).await.unwrap();
    })
    .await
    .0
}

#[tokio::test(start_paused = true)]
async fn a_download_that_stalls_goes_on_elsewhere_or_ends_visibly_broken() {
    let whole = "a".repeat(100_000);
    let proxy = holding("3", &[trickling(STRONG).await, replica().await]).start().await;
    let reply = proxy.talk(GET).await;
    assert!(reply.ends_with(&format!("\r\n\r\n{whole}")));
    assert_eq!((stalls(&proxy), failures(&proxy, 0)), ([1, 0], 1));
    nothing_left(&proxy).await;

    let proxy = holding("4", &[trickling(STRONG).await, replica().await]).start().await;
    let request = Request::get("http://a/").body(()).unwrap();
    let (response, _) = client(&proxy).await.send_request(request, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert!(collect(&mut body).await.unwrap().0 == whole.as_bytes());

    let proxy = holding("5", &[trickling(WEAK).await, replica().await]).start().await;
    let reply = proxy.talk(GET).await;
    let (_, body) = reply.split_once("\r\n\r\n").unwrap();
    assert!((50_000..50_100).contains(&body.len()), "{}", body.len());
    assert_eq!((stalls(&proxy), failures(&proxy, 0)), ([1, 0], 1));
    nothing_left(&proxy).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_trickles_its_body_is_answered_408_and_no_endpoint_is_blamed() {
    let proxy = holding("6", &[deaf().await]).start().await;
    let (mut read, mut write) = proxy.connect().await.into_split();
    let sending = tokio::spawn(async move {
        write
            .write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
            .await
            .unwrap();
        while write.write_all(b"x").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    let mut reply = vec![0; 200];
    read.read_exact(&mut reply).await.unwrap();
    let reply = String::from_utf8_lossy(&reply);
    assert!(reply.starts_with("HTTP/1.1 408 ") && reply.contains("client_stall"), "{reply}");
    assert_eq!((stalls(&proxy), failures(&proxy, 0)), ([0, 1], 0));
    nothing_left(&proxy).await;
    sending.abort();
}

#[tokio::test]
async fn a_client_that_takes_no_response_is_cut_off_and_no_endpoint_is_blamed() {
    let (addr, _) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        let head = format!("HTTP/1.1 200 OK\r\netag: \"v1\"\r\ncontent-length: {SIZE}\r\n\r\n");
        let _ = io.write_all(head.as_bytes()).await;
        let _ = io.write_all(&vec![b'a'; SIZE]).await;
    })
    .await;
    let proxy = quick(holding("7", &[addr])).start().await;
    let mut io = proxy.connect().await;
    io.write_all(GET.as_bytes()).await.unwrap();
    eventually("it is cut off", || stalls(&proxy) == [0, 1]).await;
    assert_eq!((stalls(&proxy), failures(&proxy, 0)), ([0, 1], 0));
    nothing_left(&proxy).await;
    assert!(read_all(&mut io).await.0.len() < SIZE);
}

#[tokio::test(start_paused = true)]
async fn time_to_the_head_and_a_client_that_waits_to_be_asked_are_no_stall() {
    let seen = Arc::new(Mutex::new(String::new()));
    let log = seen.clone();
    let (addr, _) = origin(move |mut io: TcpStream, _| {
        let log = log.clone();
        async move {
            let mut input = Input::default();
            let head = input.until(&mut io, "\r\n\r\n").await.unwrap();
            if head.contains("100-continue") {
                sleep(Duration::from_secs(60)).await;
                io.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
                *log.lock().unwrap() = input.exactly(&mut io, 2).await.unwrap();
            }
            sleep(Duration::from_secs(60)).await;
            io.write_all(OK.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = holding("8", &[addr]).start().await;
    assert!(proxy.talk(GET).await.starts_with("HTTP/1.1 200 "));
    let mut io = proxy.connect().await;
    io.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .await
        .unwrap();
    let mut input = Input::default();
    let interim = input.until(&mut io, "\r\n\r\n").await.unwrap();
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
    io.write_all(b"ok").await.unwrap();
    assert!(input.message(&mut io).await.unwrap().starts_with("HTTP/1.1 200 "));
    assert_eq!((seen.lock().unwrap().as_str(), stalls(&proxy)), ("ok", [0, 0]));
}

#[tokio::test(start_paused = true)]
async fn where_no_floor_is_set_a_trickle_goes_on() {
    let (addr, _) = answering(OK).await;
    let proxy = Setup::to(addr).start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n").await.unwrap();
    for _ in 0..100 {
        sleep(Duration::from_secs(10)).await;
        io.write_all(b"x").await.unwrap();
    }
    assert!(Input::default().message(&mut io).await.unwrap().starts_with("HTTP/1.1 200 "));
}
