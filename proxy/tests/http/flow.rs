//! Rate limits, and the turns that transfers take.

use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Barrier,
};
use towpath_policies::model::{Class, Protocol, Rate, RateLimit, RateLimits, TenantKey};

use crate::{
    harness::{Input, Proxy, Setup, answering, eventually, origin, soon},
    http2::{client, collect, h2_origin, push_all},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    Some(Rate { per_second, burst })
}

fn requests(per_second: u64, burst: u64) -> RateLimit {
    RateLimit { requests: rate(per_second, burst), bytes: None }
}

fn bytes(per_second: u64, burst: u64) -> RateLimit {
    RateLimit { requests: None, bytes: rate(per_second, burst) }
}

fn limited(setup: Setup, route: RateLimit, tenant: RateLimit) -> Setup {
    setup.with(|s| {
        s.forward.transfer.tenant = Some(TenantKey::Header("x-team".into()));
        s.forward.transfer.limits = RateLimits { route, tenant };
    })
}

async fn ask(proxy: &Proxy, fields: &str) -> String {
    soon(proxy.talk(&format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n")))
        .await
}

#[tokio::test]
async fn requests_beyond_the_rate_are_refused_and_told_when_to_come_again() {
    let (addr, seen) = answering(OK).await;
    let proxy = limited(Setup::to(addr), requests(1, 2), RateLimit::default()).start().await;
    let mut refused = None;
    for _ in 0..2000 {
        let reply = ask(&proxy, "").await;
        if !reply.starts_with("HTTP/1.1 200 ") {
            refused = Some(reply);
            break;
        }
    }
    let refused = refused.expect("more than one a second for long");
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert!(refused.contains("x-towpath-reason: rate_limit\r\n"), "{refused}");
    assert!(refused.contains("retry-after: 1\r\n"), "{refused}");
    assert!(seen.all().len() >= 2, "the burst passed");
}

#[tokio::test]
async fn grpc_is_told_so_in_its_own_words() {
    let (addr, _) = answering(OK).await;
    let proxy = limited(Setup::to(addr), requests(1, 1), RateLimit::default()).start().await;
    for _ in 0..2000 {
        let reply = ask(&proxy, "Content-Type: application/grpc\r\n").await;
        if reply.contains("grpc-retry-pushback-ms: ") {
            assert!(reply.contains("grpc-status: 8\r\n"), "{reply}");
            return;
        }
    }
    panic!("never refused");
}

#[tokio::test]
async fn one_tenants_limit_is_not_anothers() {
    let (addr, _) = answering(OK).await;
    // A minute's worth each, which no test exhausts by waiting.
    let proxy = limited(Setup::to(addr), RateLimit::default(), requests(1, 60)).start().await;
    let mut passed = 0;
    while ask(&proxy, "X-Team: red\r\n").await.starts_with("HTTP/1.1 200 ") {
        passed += 1;
        assert!(passed < 5000, "never refused");
    }
    assert!(passed >= 60, "{passed}");
    assert!(ask(&proxy, "X-Team: blue\r\n").await.starts_with("HTTP/1.1 200 "));
    assert!(
        ask(&proxy, "").await.starts_with("HTTP/1.1 200 "),
        "those without a name are one more"
    );
}

#[tokio::test]
async fn transfers_beyond_the_rate_are_slowed_and_never_cut() {
    const SIZE: usize = 640 << 10;
    let (addr, _) = origin(move |mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
        io.write_all(head.as_bytes()).await.unwrap();
        io.write_all(&[7; SIZE]).await.unwrap();
    })
    .await;
    // The pauses are longer than the idle time: they are ours, and no standstill.
    let proxy = limited(Setup::to(addr), bytes(256 << 10, 256 << 10), RateLimit::default())
        .with(|s| s.forward.idle_timeout = Some(Duration::from_millis(100)))
        .start()
        .await;
    let begun = Instant::now();
    let mut io = proxy.connect().await;
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut body = Vec::new();
    soon(io.read_to_end(&mut body)).await.unwrap();
    assert!(body.ends_with(&[7; SIZE]), "{} bytes", body.len());
    // A burst of 256 KiB, then the rate; the last read is not waited for any more.
    assert!(begun.elapsed() >= Duration::from_millis(450), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn uploads_count_as_well_and_what_is_owed_is_paid_by_the_next() {
    let (addr, requests) = answering(OK).await;
    let proxy =
        limited(Setup::to(addr), RateLimit::default(), bytes(256 << 10, 256 << 10)).start().await;
    let begun = Instant::now();
    for _ in 0..3 {
        let body = "x".repeat(256 << 10);
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n", body.len());
        let request = format!("{head}Connection: close\r\n\r\n{body}");
        assert!(soon(proxy.talk(&request)).await.starts_with("HTTP/1.1 200 "));
    }
    assert!(begun.elapsed() >= Duration::from_millis(950), "{:?}", begun.elapsed());
    assert_eq!(requests.all().len(), 3);
}

#[tokio::test]
async fn while_a_limit_holds_a_transfer_its_endpoint_is_not_waited_for() {
    let (addr, _) = origin(move |mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n").await.unwrap();
        let _ = io.write_all(&[7; 10_000_000]).await;
    })
    .await;
    let proxy =
        limited(Setup::to(addr), bytes(1 << 10, 256 << 10), RateLimit::default()).start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut read = vec![0; 256 << 10];
    soon(io.read_exact(&mut read)).await.unwrap();
    let meter = &proxy.service.endpoints[0].live.meter;
    eventually("the transfer waits for us", || {
        let reading = meter.response.read();
        (reading.elsewhere, reading.ahead, reading.waiting) == (1, 0, 0)
    })
    .await;
}

/// With more on its way than a connection holds, and most of it waiting for our limit.
#[tokio::test(start_paused = true)]
async fn what_a_limit_slows_is_not_given_up_for_others_on_its_connection() {
    let all = Arc::new(Barrier::new(120));
    let script = move |_, mut respond: h2::server::SendResponse<bytes::Bytes>| {
        let all = all.clone();
        async move {
            let mut send = respond.send_response(http::Response::new(()), false).unwrap();
            // Else those that come late would get another connection.
            all.wait().await;
            push_all(&mut send, vec![7; 1 << 20].into()).await;
        }
    };
    let proxy =
        limited(Setup::to(h2_origin(script).await), bytes(100_000, 1), RateLimit::default())
            .speaking(Protocol::Http2)
            .start()
            .await;
    let mut client = client(&proxy).await;
    let mut downloads = Vec::new();
    for _ in 0..120 {
        let request = http::Request::get("http://a/").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let mut body = response.await.unwrap().into_body();
        downloads.push(tokio::spawn(async move { collect(&mut body).await }));
    }
    // Enough for a frame of 64 KiB of each of them every 80 s, and for a quarter of all.
    tokio::time::sleep(Duration::from_secs(300)).await;
    let ended = downloads.iter().filter(|download| download.is_finished()).count();
    assert_eq!(ended, 0, "cut off");
}

/// Whatever the sockets hold, others have their turn after a bounded part of it.
#[tokio::test]
async fn a_transfer_moves_a_bounded_part_at_a_time() {
    const SIZE: usize = 64 << 20;
    for class in Class::ALL {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut io, _) = socket.accept().unwrap();
            let _ = io.read(&mut [0; 1024]).unwrap();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
            io.write_all(head.as_bytes()).unwrap();
            let part = vec![7; 1 << 20];
            (0..SIZE >> 20).for_each(|_| io.write_all(&part).unwrap());
        });
        let proxy = Setup::to(addr).with(|s| s.forward.transfer.class = class).start().await;
        let to = proxy.addr;
        static DONE: AtomicBool = AtomicBool::new(false);
        DONE.store(false, SeqCst);
        let client = std::thread::spawn(move || {
            let mut io = std::net::TcpStream::connect(to).unwrap();
            io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            let mut part = vec![0; 1 << 20];
            let mut sum = 0;
            while let Ok(n @ 1..) = io.read(&mut part) {
                sum += n;
            }
            DONE.store(true, SeqCst);
            sum
        });
        let counter = &proxy.service.endpoints[0].live.metrics.bytes_received;
        let before = counter.value();
        let (mut last, mut most) = (before, 0);
        while !DONE.load(SeqCst) {
            tokio::task::yield_now().await;
            let now = counter.value();
            most = most.max(now - last);
            last = now;
        }
        assert!(client.join().unwrap() >= SIZE);
        // A turn and one more read; twice, where the socket is ready just after a turn began.
        assert!(most <= 4 * (256 << 10), "{class:?}: {most} bytes at once");
        assert!(last - before == SIZE as u64, "{class:?}");
    }
}
