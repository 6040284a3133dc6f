//! Early answers, aborts and reused connections: who notices what, when.

use towpath_tests::{Proxy, RawOrigin, Wire, listener_port};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn pair() -> (RawOrigin, Proxy, Wire) {
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let client = Wire::connect(proxy.address).await;
    (origin, proxy, client)
}

/// One exchange that leaves a pooled connection behind; returns the origin's end of it.
async fn warm(origin: &RawOrigin, client: &mut Wire) -> Wire {
    client.send("GET /warm HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = origin.accept().await;
    assert_eq!(upstream.request().await.target, "/warm");
    upstream.send(OK).await;
    assert_eq!(client.response().await.body, b"ok");
    upstream
}

#[tokio::test]
async fn an_early_refusal_reaches_a_client_that_is_still_sending() {
    let (origin, _proxy, mut client) = pair().await;
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nbegin").await;
    let mut upstream = origin.accept().await;
    upstream.request_head().await;
    upstream
        .send("HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        .await;
    upstream.finish().await;
    let response = client.response().await;
    assert_eq!((response.status, response.body.as_slice()), (413, &b"big"[..]));
}

#[tokio::test]
async fn an_early_answer_does_not_end_the_upload() {
    // Both directions run at once, as long as either has something to say.
    let (origin, _proxy, mut client) = pair().await;
    client
        .send("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        .await;
    let mut upstream = origin.accept().await;
    upstream.request_head().await;
    assert_eq!(upstream.exactly(8).await, b"3\r\nabc\r\n");
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nABC\r\n").await;
    client.response_head().await;
    assert_eq!(client.exactly(8).await, b"3\r\nABC\r\n");
    client.send("3\r\ndef\r\n").await;
    assert_eq!(upstream.exactly(8).await, b"3\r\ndef\r\n");
    upstream.send("3\r\nDEF\r\n").await;
    assert_eq!(client.exactly(8).await, b"3\r\nDEF\r\n");
    client.send("0\r\n\r\n").await;
    assert_eq!(upstream.exactly(5).await, b"0\r\n\r\n");
    upstream.send("0\r\n\r\n").await;
    assert_eq!(client.exactly(5).await, b"0\r\n\r\n");
}

#[tokio::test]
async fn a_finished_answer_does_not_cut_off_the_upload() {
    // RFC 9112 §9.3: the whole body has to be read or the connection closed; what
    // the origin wants to read of it, it gets.
    let (origin, _proxy, mut client) = pair().await;
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabcde").await;
    let mut upstream = origin.accept().await;
    upstream.request_head().await;
    upstream.send(OK).await;
    assert_eq!(client.response().await.body, b"ok");
    client.try_send("fghij").await;
    client.try_send("GET /smuggled HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    // The upload goes on to its end, or it is cut off; nothing else takes its place.
    let got = upstream.up_to(10).await;
    assert!(b"abcdefghij".starts_with(&got), "{}", got.escape_ascii());
}

#[tokio::test]
async fn an_aborted_upload_is_a_visible_break_at_the_origin() {
    for (framing, first) in
        [("Content-Length: 10", "abcde"), ("Transfer-Encoding: chunked", "5\r\nabcde\r\n")]
    {
        for reset in [false, true] {
            let (origin, _proxy, mut client) = pair().await;
            client.send(format!("POST /x HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{first}")).await;
            let mut upstream = origin.accept().await;
            upstream.request_head().await;
            assert_eq!(upstream.exactly(first.len()).await, first.as_bytes());
            if reset {
                client.reset()
            } else {
                drop(client)
            }
            // The end comes at once, and no last chunk or filler before it.
            upstream.ended().await;
        }
    }
}

#[tokio::test]
async fn an_aborted_download_ends_at_the_origin() {
    let (origin, _proxy, mut client) = pair().await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = origin.accept().await;
    upstream.request().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
    client.response_head().await;
    client.reset();
    let mut sent = 0;
    while upstream.try_send(vec![0; 64 * 1024]).await {
        sent += 1;
        assert!(sent < 4096, "256 MiB went to nobody");
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_ends_the_exchange() {
    let (origin, _proxy, mut client) = pair().await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = origin.accept().await;
    upstream.request().await;
    client.reset();
    upstream.ended().await;
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_not_used_again() {
    let (origin, _proxy, mut client) = pair().await;
    let mut idle = warm(&origin, &mut client).await;
    idle.finish().await;
    idle.ended().await;
    // Even a request that must not be repeated goes through: not a byte of it was sent before.
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab").await;
    let mut upstream = origin.accept().await;
    assert_eq!(upstream.request().await.body, b"ab");
    upstream.send(OK).await;
    assert_eq!(client.response().await.body, b"ok");
}

#[tokio::test]
async fn a_connection_that_spoke_while_idle_is_not_used_again() {
    let (origin, _proxy, mut client) = pair().await;
    let mut idle = warm(&origin, &mut client).await;
    idle.send("HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .await;
    idle.ended().await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = origin.accept().await;
    upstream.request().await;
    upstream.send(OK).await;
    assert_eq!(client.response().await.body, b"ok");
}

#[tokio::test]
async fn a_safe_request_that_met_a_closing_connection_is_sent_again() {
    // RFC 9112 §9.3.1.
    for request in [
        "GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
        "PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
        "POST /x HTTP/1.1\r\nHost: a\r\nIdempotency-Key: \"k\"\r\nContent-Length: 2\r\n\r\nab",
    ] {
        for reset in [false, true] {
            let (origin, _proxy, mut client) = pair().await;
            let mut idle = warm(&origin, &mut client).await;
            client.send(request).await;
            let first = idle.request().await;
            if reset {
                idle.reset()
            } else {
                drop(idle)
            }
            let mut upstream = origin.accept().await;
            assert_eq!(upstream.request().await, first, "the same request again");
            upstream.send(OK).await;
            assert_eq!(client.response().await.body, b"ok", "{request}");
        }
    }
}

#[tokio::test]
async fn an_unsafe_request_that_met_a_closing_connection_is_not_sent_again() {
    // RFC 9110 §9.2.2.
    let (origin, _proxy, mut client) = pair().await;
    let mut idle = warm(&origin, &mut client).await;
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab").await;
    idle.request().await;
    drop(idle);
    assert_eq!(client.response().await.status, 502);
    assert!(origin.accepted().is_none(), "no second try");
}

#[tokio::test]
async fn a_request_is_not_sent_again_once_its_answer_began() {
    let (origin, _proxy, mut client) = pair().await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = origin.accept().await;
    upstream.request().await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
    client.response_head().await;
    drop(upstream);
    assert_eq!(client.rest().await.0, b"abc");
    assert!(origin.accepted().is_none(), "no second try");
}

#[tokio::test]
async fn an_endpoint_that_refuses_connections_costs_no_request() {
    let (gone, origin) = (([127, 0, 0, 1], listener_port()).into(), RawOrigin::start().await);
    let proxy = Proxy::before("HTTP", &[gone, origin.address]).await;
    for _ in 0..4 {
        let mut client = Wire::connect(proxy.address).await;
        client
            .send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab")
            .await;
        let answer = async {
            let mut upstream = origin.accept().await;
            assert_eq!(upstream.request().await.body, b"ab");
            upstream
                .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
                .await;
            client.response().await
        };
        assert_eq!(answer.await.status, 200);
    }
}

#[tokio::test]
async fn connections_to_the_origin_are_kept_and_shared() {
    let (origin, proxy, mut client) = pair().await;
    let mut upstream = warm(&origin, &mut client).await;
    for _ in 0..3 {
        let mut other = Wire::connect(proxy.address).await;
        other.send("GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert_eq!(upstream.request().await.target, "/x");
        upstream.send(OK).await;
        assert_eq!(other.response().await.body, b"ok");
        other.ended().await;
    }
}

#[tokio::test]
async fn a_slow_reader_stops_the_origin() {
    let (origin, _proxy, mut client) = pair().await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = origin.accept().await;
    upstream.request().await;
    let total = 64 << 20;
    upstream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n")).await;
    let taken = upstream.push(&vec![0; total]).await;
    assert!(taken < 32 << 20, "{taken} bytes were taken from the origin and read by nobody");
    client.response_head().await;
    let (_, rest) = tokio::join!(upstream.send(vec![0; total - taken]), client.exactly(total));
    assert_eq!(rest.len(), total);
}
