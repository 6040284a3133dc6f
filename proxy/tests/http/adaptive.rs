//! A limit on requests that wait for their heads, which adapts.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::Mutex,
    time::{sleep, timeout},
};
use towpath_policies::model::{AdaptiveConcurrency, Protocol};
use towpath_proxy::upstream;

use crate::{
    harness::{Input, Proxy, Setup, eventually, origin, read_all, soon},
    http2::{client, h2_origin},
};

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// A limit that stays where it is.
fn fixed(limit: u32) -> Option<AdaptiveConcurrency> {
    let (min_requests, max_requests) = (limit, limit);
    Some(AdaptiveConcurrency { min_requests, max_requests, ..AdaptiveConcurrency::default() })
}

fn limited(origins: &[SocketAddr], limit: u32) -> Setup {
    Setup::to_all(origins).with(|s| {
        s.service.admission.adaptive_concurrency = fixed(limit);
        s.forward.retry.attempts = 0;
    })
}

/// An origin that begins to answer `/watch` and never ends, answers `/held` never, reads uploads
/// without an answer, and answers all else.
async fn watched() -> SocketAddr {
    let script = |mut io: TcpStream, _| async move {
        let mut input = Input::default();
        while let Some(head) = input.until(&mut io, "\r\n\r\n").await {
            let answer: &[u8] = match head.split(' ').nth(1) {
                Some("/watch") => {
                    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"
                }
                Some("/socket") => {
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
                }
                Some("/held" | "/upload") => {
                    read_all(&mut io).await;
                    return;
                }
                _ => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            };
            io.write_all(answer).await.unwrap();
        }
    };
    origin(script).await.0
}

async fn send(proxy: &Proxy, request: &str) -> TcpStream {
    let mut io = proxy.connect().await;
    io.write_all(request.as_bytes()).await.unwrap();
    io
}

async fn head(io: &mut TcpStream) -> String {
    soon(Input::default().until(io, "\r\n\r\n")).await.unwrap()
}

fn sent_on(proxy: &Proxy) -> u32 {
    proxy.service.live.requests.load(Relaxed)
}

#[tokio::test]
async fn what_goes_on_after_its_head_takes_no_place() {
    let proxy = limited(&[watched().await], 1).start().await;
    let mut open = Vec::new();
    for request in [
        "GET /watch HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /watch HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /socket HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        let mut io = send(&proxy, request).await;
        let head = head(&mut io).await;
        assert!(head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.1 101"), "{head}");
        open.push(io);
    }
}

#[tokio::test]
async fn one_without_its_head_takes_a_place_and_who_is_refused_is_told_why() {
    let proxy = limited(&[watched().await], 1).start().await;
    let held = send(&proxy, "GET /held HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually("it is sent on", || sent_on(&proxy) == 1).await;
    let refused = soon(proxy.talk("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    for line in ["x-towpath-reason: overflow\r\n", "retry-after: ", "adaptive_concurrency"] {
        assert!(refused.contains(line), "{line} not in {refused}");
    }
    let grpc = "POST /s/M HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\n\
        content-length: 0\r\nconnection: close\r\n\r\n";
    let refused = soon(proxy.talk(grpc)).await;
    for line in ["HTTP/1.1 200", "grpc-status: 8\r\n", "grpc-retry-pushback-ms: "] {
        assert!(refused.contains(line), "{line} not in {refused}");
    }
    drop(held);
    eventually("its place is free again", || sent_on(&proxy) == 0).await;
    assert!(
        head(&mut send(&proxy, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await).await.contains("200")
    );
}

#[tokio::test]
async fn a_full_endpoint_is_passed_over() {
    let proxy = limited(&[watched().await, watched().await], 1).start().await;
    let _held = send(&proxy, "GET /held HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually("it is sent on", || sent_on(&proxy) == 1).await;
    let mut io = proxy.connect().await;
    for _ in 0..10 {
        io.write_all(GET).await.unwrap();
        let answer = soon(Input::default().message(&mut io)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn large_uploads_take_no_place() {
    let proxy = limited(&[watched().await], 1).start().await;
    let piece = "x".repeat(80 << 10);
    let declared =
        format!("PUT /upload HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", 1 << 20);
    let _declared = send(&proxy, &declared).await;
    eventually("it is sent on", || sent_on(&proxy) == 1).await;
    let length = piece.len();
    let chunk = format!("{length:x}\r\n{piece}\r\n");
    let chunked = "PUT /upload HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut undeclared = send(&proxy, chunked).await;
    eventually("it is sent on too", || sent_on(&proxy) == 2).await;
    let refused = head(&mut send(&proxy, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await).await;
    assert!(refused.contains("503"), "nobody knows yet that it is large: {refused}");
    undeclared.write_all(chunk.as_bytes()).await.unwrap();
    eventually("it turned out large", || {
        proxy.service.live.bytes_in_flight.load(Relaxed) >= (1 << 20) + length as u64
    })
    .await;
    assert!(
        head(&mut send(&proxy, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await).await.contains("200")
    );
}

#[tokio::test]
async fn a_stream_takes_no_place_after_its_head_over_http2() {
    let at = h2_origin(|request, mut respond| async move {
        match request.uri().path() {
            "/watch" => {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(b"first"), false).unwrap();
                std::future::pending().await
            }
            "/held" => std::future::pending().await,
            _ => drop(respond.send_response(Response::new(()), true).unwrap()),
        }
    })
    .await;
    let proxy = limited(&[at], 1).speaking(Protocol::Http2).start().await;
    let mut client = client(&proxy).await;
    let mut get = |path: &str| {
        client
            .send_request(Request::get(format!("http://a{path}")).body(()).unwrap(), true)
            .unwrap()
            .0
    };
    let mut open = Vec::new();
    for path in ["/watch", "/watch", "/"] {
        let answer = soon(get(path)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        open.push(answer);
    }
    eventually("the last one is over", || sent_on(&proxy) == 2).await;
    let _held = get("/held");
    eventually("it is sent on", || sent_on(&proxy) == 3).await;
    let refused = soon(get("/")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["x-towpath-reason"], "overflow");
}

/// What the endpoint needs for a request, one at a time.
const WORK: Duration = Duration::from_millis(10);
/// What a client waits before it gives up and asks anew.
const PATIENCE: Duration = Duration::from_millis(400);
const CLIENTS: usize = 60;
const RUN: Duration = Duration::from_secs(20);

/// Works on one request at a time, also on those whose clients are gone.
async fn work(worker: &Mutex<()>) {
    let _turn = worker.lock().await;
    sleep(WORK).await;
}

async fn serial() -> SocketAddr {
    let worker = Arc::new(Mutex::new(()));
    let script = move |mut io: TcpStream, _| {
        let worker = worker.clone();
        async move {
            let mut input = Input::default();
            while input.message(&mut io).await.is_some() {
                work(&worker).await;
                if io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                    return;
                }
            }
        }
    };
    origin(script).await.0
}

/// Asks again and again; a refusal is heeded, for a while.
async fn asks(proxy: Arc<Proxy>, good: Arc<AtomicU32>) {
    loop {
        let mut io = proxy.connect().await;
        loop {
            io.write_all(GET).await.unwrap();
            let answer = timeout(PATIENCE, Input::default().message(&mut io)).await;
            let Ok(Some(answer)) = answer else { break };
            if answer.starts_with("HTTP/1.1 200") {
                good.fetch_add(1, Relaxed);
            } else {
                sleep(Duration::from_millis(200 + fastrand::u64(..200))).await;
            }
        }
    }
}

/// Answers in time in the second half of the run, a second.
async fn goodput(setup: Setup, clients: impl AsyncFn(Arc<Proxy>, Arc<AtomicU32>)) -> f64 {
    let proxy = Arc::new(setup.start().await);
    let service = proxy.service.clone();
    let ticks = tokio::spawn(async move {
        loop {
            sleep(Duration::from_millis(50)).await;
            service.adapt(upstream::now_ms());
        }
    });
    let good = Arc::new(AtomicU32::new(0));
    clients(proxy, good.clone()).await;
    sleep(RUN / 2).await;
    let before = good.load(Relaxed);
    sleep(RUN / 2).await;
    ticks.abort();
    f64::from(good.load(Relaxed) - before) / (RUN / 2).as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_serialises_is_protected_and_goodput_holds() {
    let mut goodputs = Vec::new();
    for terms in [None, Some(AdaptiveConcurrency::default())] {
        let setup =
            Setup::to(serial().await).with(|s| s.service.admission.adaptive_concurrency = terms);
        let clients = async |proxy: Arc<Proxy>, good: Arc<AtomicU32>| {
            for _ in 0..CLIENTS {
                tokio::spawn(asks(proxy.clone(), good.clone()));
            }
        };
        goodputs.push(goodput(setup, clients).await);
    }
    let best = 1.0 / WORK.as_secs_f64();
    println!("of {best} a second: {goodputs:.1?}");
    assert!(goodputs[0] < best * 0.5, "all wait for nothing: {goodputs:?}");
    // How much of it is for the simulation to say: here the kernel has its say too.
    assert!(goodputs[1] > best * 0.5, "{goodputs:?}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_serialises_is_protected_over_http2_too() {
    let mut goodputs = Vec::new();
    for terms in [None, Some(AdaptiveConcurrency::default())] {
        let worker = Arc::new(Mutex::new(()));
        let at = h2_origin(move |_, mut respond| {
            let worker = worker.clone();
            async move {
                work(&worker).await;
                let _ = respond.send_response(Response::new(()), true);
            }
        })
        .await;
        let setup = Setup::to(at).speaking(Protocol::Http2);
        let setup = setup.with(|s| s.service.admission.adaptive_concurrency = terms);
        let clients = async |proxy: Arc<Proxy>, good: Arc<AtomicU32>| {
            // A connection each: all their cancels on one would be a flood.
            for _ in 0..CLIENTS {
                tokio::spawn(asks_http2(client(&proxy).await, good.clone()));
            }
        };
        goodputs.push(goodput(setup, clients).await);
    }
    let best = 1.0 / WORK.as_secs_f64();
    println!("of {best} a second: {goodputs:.1?}");
    assert!(goodputs[0] < best * 0.5, "all wait for nothing: {goodputs:?}");
    // How much of it is for the simulation to say: here the kernel has its say too.
    assert!(goodputs[1] > best * 0.5, "{goodputs:?}");
}

async fn asks_http2(mut client: h2::client::SendRequest<Bytes>, good: Arc<AtomicU32>) {
    loop {
        let request = Request::get("http://a/").body(()).unwrap();
        let (answer, _) = client.send_request(request, true).unwrap();
        match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) if answer.status() == StatusCode::OK => {
                good.fetch_add(1, Relaxed);
            }
            Ok(Ok(_)) => sleep(Duration::from_millis(200 + fastrand::u64(..200))).await,
            _ => {}
        }
    }
}
