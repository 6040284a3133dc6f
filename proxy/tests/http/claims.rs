//! Clients and endpoints that say of themselves what is not so: it costs others nothing.

use std::sync::atomic::Ordering::SeqCst;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use towpath_policies::model::Protocol;

use crate::harness::{Input, Proxy, Setup, answering, eventually, origin, soon};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// Declares so many bytes, and sends none.
async fn declare(proxy: &Proxy, bytes: u64) -> TcpStream {
    let mut io = proxy.connect().await;
    let head = format!("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes}\r\n\r\n");
    io.write_all(head.as_bytes()).await.unwrap();
    io
}

#[tokio::test]
async fn a_length_that_is_only_declared_steers_others_by_no_more_than_a_mebibyte() {
    let silent = || {
        origin(|mut io, _| async move {
            Input::default().until(&mut io, "\r\n\r\n").await;
            let _ = io.read(&mut [0; 1]).await;
        })
    };
    let ((a, at_a), (b, at_b)) = (silent().await, silent().await);
    let counts = || [at_a.load(SeqCst), at_b.load(SeqCst)];
    let proxy = Setup::to_all(&[a, b]).start().await;
    let mut held = vec![declare(&proxy, 1 << 40).await];
    eventually("the liar is somewhere", || counts().iter().sum::<usize>() == 1).await;
    let liar = counts().iter().position(|count| *count == 1).unwrap();
    for others in 1..=4 {
        held.push(declare(&proxy, 600_000).await);
        eventually("it is somewhere too", || counts().iter().sum::<usize>() == 1 + others).await;
    }
    assert!(counts()[liar] > 1, "its endpoint gets others too: {:?}", counts());
}

#[tokio::test]
async fn a_length_that_is_only_declared_shuts_no_breaker() {
    for of_endpoint in [false, true] {
        let (addr, requests) = answering(OK).await;
        let proxy = Setup::to(addr)
            .with(|s| {
                let breaker = &mut s.service.breaker;
                let limits = if of_endpoint { &mut breaker.endpoint } else { &mut breaker.service };
                limits.max_bytes_in_flight = Some(10_000);
            })
            .start()
            .await;
        let _liar = declare(&proxy, 1 << 40).await;
        let requests_in_flight = || proxy.service.live.requests.load(SeqCst);
        eventually("the liar is in", || requests_in_flight() == 1).await;
        for body in ["", "four"] {
            let length = body.len();
            let put = GET
                .replace("GET", "PUT")
                .replace("Connection", &format!("Content-Length: {length}\r\nConnection"));
            let reply = soon(proxy.talk(&(put + body))).await;
            assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
        }
        assert_eq!(requests.all().len(), 2);
    }
}

#[tokio::test]
async fn of_two_that_declare_more_than_half_of_a_breakers_bytes_one_passes() {
    let (addr, _) = answering(OK).await;
    let proxy = Setup::to(addr)
        .with(|s| s.service.breaker.service.max_bytes_in_flight = Some(5))
        .start()
        .await;
    let _first = declare(&proxy, 3).await;
    eventually("it is in", || proxy.service.live.requests.load(SeqCst) == 1).await;
    let put = GET.replace("GET", "PUT").replace("Connection", "Content-Length: 3\r\nConnection");
    let reply = soon(proxy.talk(&(put + "two"))).await;
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
}

#[tokio::test]
async fn an_endpoint_that_allows_no_streams_does_not_get_a_connection_for_each_request() {
    let (addr, connections) = origin(|io, _| async move {
        let mut connection = h2::server::Builder::new()
            .max_concurrent_streams(0)
            .handshake::<_, bytes::Bytes>(io)
            .await
            .unwrap();
        while let Some(Ok(_)) = connection.accept().await {}
    })
    .await;
    let proxy = Setup::to(addr).speaking(Protocol::Http2).start().await;
    for _ in 0..10 {
        let reply = soon(proxy.talk(GET)).await;
        assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
    }
    assert_eq!(connections.load(SeqCst), 1);
}
