//! `Expect: 100-continue` (RFC 9110 §10.1.1) and other interim responses
//! (§15.2), in every order in which they come.

use towpath_tests::{End, Proxy, RawOrigin, Wire};

const ASK: &str =
    "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn pair() -> (RawOrigin, Proxy, Wire) {
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let client = Wire::connect(proxy.address).await;
    (origin, proxy, client)
}

#[tokio::test]
async fn the_origin_says_continue() {
    let (origin, _proxy, mut client) = pair().await;
    client.send(ASK).await;
    let mut upstream = origin.accept().await;
    let head = upstream.request_head().await;
    assert!(head.fields.lists("expect", "100-continue"), "{:?}", head.fields);
    upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.response_head().await.status, 100);
    client.send("hello").await;
    assert_eq!(upstream.exactly(5).await, b"hello");
    upstream.send(OK).await;
    let response = client.response().await;
    assert_eq!((response.status, response.body.as_slice()), (200, &b"ok"[..]));
}

#[tokio::test]
async fn the_origin_refuses_before_the_body_is_sent() {
    let (origin, _proxy, mut client) = pair().await;
    client.send(ASK).await;
    let mut upstream = origin.accept().await;
    upstream.request_head().await;
    upstream.send("HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig").await;
    // No 100 before it: that would be leave to send what the origin does not want.
    let response = client.response().await;
    assert_eq!((response.status, response.body.as_slice()), (413, &b"big"[..]));
    // The body was promised and never came: this connection can carry nothing more.
    client.finish().await;
    assert_eq!(upstream.rest().await.0, b"");
}

#[tokio::test]
async fn a_body_sent_after_a_refusal_is_no_request() {
    let (origin, _proxy, mut client) = pair().await;
    let body = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    client.send(ASK.replace("Content-Length: 5", &format!("Content-Length: {}", body.len()))).await;
    let mut upstream = origin.accept().await;
    upstream.request_head().await;
    upstream.send("HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(client.response().await.status, 413);
    // Either the connection is closed, or the body is read as a body.
    client.try_send(body).await;
    client.try_send("GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    client.finish().await;
    let next = async {
        // The body may go on to the origin that refused it, as the body it is.
        let got = upstream.up_to(body.len()).await;
        assert!(body.as_bytes().starts_with(&got), "{}", got.escape_ascii());
        let whole = got.len() == body.len();
        let mut request = if whole { upstream.next_request().await } else { None };
        if request.is_none() {
            upstream = origin.accept().await;
            request = upstream.next_request().await;
        }
        assert_eq!(request.map(|r| r.target).as_deref(), Some("/next"));
        upstream.send(OK).await;
    };
    tokio::select! {
        () = next => {}
        (rest, _) = client.rest() => assert_eq!(rest, b"", "closed, without a word more"),
    }
}

#[tokio::test]
async fn the_origin_ignores_the_expectation_and_the_client_sends_anyway() {
    let (origin, _proxy, mut client) = pair().await;
    client.send(ASK).await;
    let mut upstream = origin.accept().await;
    upstream.request_head().await;
    client.send("hello").await;
    assert_eq!(upstream.exactly(5).await, b"hello");
    upstream.send(OK).await;
    let mut response = client.response().await;
    if response.status == 100 {
        response = client.response().await;
    }
    assert_eq!((response.status, response.body.as_slice()), (200, &b"ok"[..]));
}

#[tokio::test]
async fn the_client_does_not_wait_at_all() {
    let (origin, _proxy, mut client) = pair().await;
    client.send(format!("{ASK}hello")).await;
    let mut upstream = origin.accept().await;
    assert_eq!(upstream.request().await.body, b"hello");
    upstream.send(format!("HTTP/1.1 100 Continue\r\n\r\n{OK}")).await;
    let mut response = client.response().await;
    if response.status == 100 {
        response = client.response().await;
    }
    assert_eq!(response.body, b"ok");
    client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(upstream.request().await.target, "/next");
    upstream.send(OK).await;
    assert_eq!(client.response().await.body, b"ok");
}

#[tokio::test]
async fn a_client_of_http_1_0_is_sent_no_interim_response() {
    let (origin, _proxy, mut client) = pair().await;
    client.send(ASK.replace("HTTP/1.1", "HTTP/1.0")).await;
    client.send("hello").await;
    let mut upstream = origin.accept().await;
    assert_eq!(upstream.request().await.body, b"hello");
    upstream
        .send(format!(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n{OK}"
        ))
        .await;
    assert_eq!(client.response().await.status, 200);
}

#[tokio::test]
async fn a_request_that_the_proxy_refuses_itself_is_not_told_to_continue() {
    let port = towpath_tests::listener_port();
    let policies = towpath_tests::policies(port, "HTTP", &[([127, 0, 0, 1], 1).into()]);
    let policies = policies
        .replace("  - backendRefs", "  - matches: [{path: {value: /elsewhere}}]\n    backendRefs");
    let proxy = Proxy::start(port, &policies).await;
    let mut client = Wire::connect(proxy.address).await;
    client.send(ASK).await;
    assert_eq!(client.response().await.status, 404);
}

#[tokio::test]
async fn interim_responses_pass_in_order() {
    let (origin, _proxy, mut client) = pair().await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = origin.accept().await;
    upstream.request().await;
    upstream.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
    let hints = client.response_head().await;
    assert_eq!((hints.status, hints.fields.one("link")), (103, Some("</a>")));
    upstream
        .send(format!(
            "HTTP/1.1 103 Early Hints\r\nlink: </b>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n{OK}"
        ))
        .await;
    let hints = client.response_head().await;
    assert_eq!((hints.status, hints.fields.one("link")), (103, Some("</b>")));
    assert_eq!(client.response_head().await.status, 102);
    assert_eq!(client.response().await.body, b"ok");
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel_with_half_close_from_the_client() {
    let (mut client, mut upstream, _keep) = tunnel().await;
    client.send("ping").await;
    assert_eq!(upstream.exactly(4).await, b"ping");
    upstream.send("pong").await;
    assert_eq!(client.exactly(4).await, b"pong");
    client.send("last words").await;
    client.finish().await;
    assert_eq!(upstream.rest().await, (b"last words".to_vec(), End::Clean));
    upstream.send(vec![7; 300_000]).await;
    upstream.finish().await;
    assert_eq!(client.rest().await, (vec![7; 300_000], End::Clean));
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel_with_half_close_from_the_origin() {
    let (mut client, mut upstream, _keep) = tunnel().await;
    upstream.send("last words").await;
    upstream.finish().await;
    assert_eq!(client.rest().await, (b"last words".to_vec(), End::Clean));
    client.send(vec![7; 300_000]).await;
    client.finish().await;
    assert_eq!(upstream.rest().await, (vec![7; 300_000], End::Clean));
}

async fn tunnel() -> (Wire, Wire, (RawOrigin, Proxy)) {
    let (origin, proxy, mut client) = pair().await;
    client
        .send("GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n")
        .await;
    let mut upstream = origin.accept().await;
    let head = upstream.request().await;
    assert_eq!(head.fields.one("upgrade"), Some("websocket"));
    assert!(head.fields.lists("connection", "upgrade"), "{:?}", head.fields);
    // The first bytes of the new protocol may come with the answer.
    upstream
        .send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nearly")
        .await;
    let response = client.response_head().await;
    assert_eq!((response.status, response.fields.one("upgrade")), (101, Some("websocket")));
    assert!(response.fields.lists("connection", "upgrade"), "{:?}", response.fields);
    assert_eq!(client.exactly(5).await, b"early");
    (client, upstream, (origin, proxy))
}

#[tokio::test]
async fn an_origin_that_does_not_upgrade_answers_as_ever() {
    let (origin, _proxy, mut client) = pair().await;
    client
        .send("GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    let mut upstream = origin.accept().await;
    upstream.request().await;
    upstream.send(OK).await;
    assert_eq!(client.response().await.body, b"ok");
    client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(upstream.request().await.target, "/next");
    upstream.send(OK).await;
    assert_eq!(client.response().await.body, b"ok");
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_a_bad_gateway() {
    // RFC 9110 §15.2.2.
    let (origin, _proxy, mut client) = pair().await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = origin.accept().await;
    upstream.request().await;
    upstream.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n").await;
    assert_eq!(client.response().await.status, 502);
}
