//! Bodies that do not match their digests never end well, whoever is to blame.

use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towpath_policies::model::{DigestAlgorithm, Integrity, Protocol};

use crate::{
    harness::{Input, Proxy, Requests, Setup, answering, eventually, origin, read_all, soon},
    http2::{client, collect, h2_origin},
};

const HELLO: &str = "{\"hello\": \"world\"}\n";
/// From RFC 9530, Appendix D.
const OF_HELLO: &str = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BOTH: Integrity = Integrity { make: true, check: true, algorithm: DigestAlgorithm::Sha256 };

fn vouching(setup: Setup, terms: Integrity) -> Setup {
    setup.with(|s| s.forward.transfer.integrity = terms)
}

/// An origin that answers every request with `answer`, and a gateway and a sidecar before it.
async fn mesh(between: Protocol, answer: &'static str) -> (Proxy, Requests) {
    let (addr, requests) = answering(answer).await;
    let sidecar = vouching(Setup::to(addr), BOTH).start().await;
    let gateway = vouching(Setup::to(sidecar.addr), BOTH).speaking(between).start().await;
    (gateway, requests)
}

#[tokio::test]
async fn a_digest_made_at_the_first_hop_crosses_the_last_in_trailers() {
    for (between, framing) in [
        (Protocol::Http1, "content-length: 19\r\n\r\n{\"hello\": \"world\"}\n"),
        (
            Protocol::Http1,
            "transfer-encoding: chunked\r\n\r\n13\r\n{\"hello\": \"world\"}\n\r\n0\r\n\r\n",
        ),
        (Protocol::Http2, "content-length: 19\r\n\r\n{\"hello\": \"world\"}\n"),
        (
            Protocol::Http2,
            "transfer-encoding: chunked\r\n\r\n13\r\n{\"hello\": \"world\"}\n\r\n0\r\n\r\n",
        ),
    ] {
        let (gateway, requests) = mesh(between, OK).await;
        let sent = format!("PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}");
        let reply = soon(gateway.talk(&sent)).await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{between:?} {framing}: {reply}");
        let seen = requests.only();
        assert!(seen.contains(HELLO), "{seen}");
        if seen.contains("transfer-encoding") {
            let trailer = format!("\r\n0\r\ncontent-digest: {OF_HELLO}\r\n\r\n");
            assert!(seen.ends_with(&trailer), "{between:?} {framing}: {seen}");
            assert!(!seen.contains("content-length"), "{seen}");
        } else {
            // Over HTTP/2 the length stays, and the sidecar has checked what HTTP/1.1 cannot say.
            assert!(seen.contains("content-length: 19\r\n") && seen.ends_with(HELLO), "{seen}");
        }
    }
}

#[tokio::test]
async fn a_response_gets_a_digest_where_it_is_wanted_and_keeps_its_shape_where_it_is_not() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 19\r\n\r\n{\"hello\": \"world\"}\n";
    let (addr, requests) = answering(answer).await;
    let make = Integrity { check: false, ..BOTH };
    let proxy = vouching(Setup::to(addr), make).start().await;
    let plain = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let reply = soon(proxy.talk(plain)).await;
    assert!(reply.contains("content-length: 19\r\n") && reply.ends_with(HELLO), "{reply}");
    let wants =
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nWant-Content-Digest: sha-256=5\r\n\r\n";
    let reply = soon(proxy.talk(wants)).await;
    assert!(reply.contains("trailer: content-digest\r\n"), "{reply}");
    assert!(!reply.contains("content-length"), "{reply}");
    assert!(reply.ends_with(&format!("0\r\ncontent-digest: {OF_HELLO}\r\n\r\n")), "{reply}");
    assert_eq!(requests.all().len(), 2);

    // A version without trailers.
    let old = "GET / HTTP/1.0\r\nHost: a\r\nWant-Content-Digest: sha-256=5\r\n\r\n";
    let reply = soon(proxy.talk(old)).await;
    assert!(reply.contains("content-length: 19\r\n") && reply.ends_with(HELLO), "{reply}");

    // A hop that checks asks for it.
    let (gateway, requests) = mesh(Protocol::Http2, answer).await;
    let (response, _) = client(&gateway)
        .await
        .send_request(Request::get("http://a/").body(()).unwrap(), true)
        .unwrap();
    let (parts, mut body) = soon(response).await.unwrap().into_parts();
    let (bytes, trailers) = soon(collect(&mut body)).await.unwrap();
    assert_eq!(bytes, HELLO.as_bytes());
    assert_eq!(trailers.unwrap()["content-digest"], OF_HELLO);
    assert_eq!(parts.headers["content-length"], "19");
    assert!(requests.only().contains("want-content-digest: sha-256=10\r\n"));
}

#[tokio::test]
async fn a_request_that_does_not_match_is_refused_and_breaks_off_at_the_endpoint() {
    for (what, framing) in [
        (
            "length",
            format!(
                "Content-Digest: {OF_HELLO}\r\nContent-Length: 19\r\n\r\n{{\"hello\": \"w0rld\"}}\n"
            ),
        ),
        (
            "repr",
            format!(
                "Repr-Digest: {OF_HELLO}\r\nContent-Length: 19\r\n\r\n{{\"hello\": \"w0rld\"}}\n"
            ),
        ),
        (
            "chunks",
            format!(
                "Content-Digest: {OF_HELLO}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nHELLO\r\n0\r\n\r\n"
            ),
        ),
        (
            "trailers",
            format!(
                "Transfer-Encoding: chunked\r\n\r\n5\r\nHELLO\r\n0\r\nContent-Digest: {OF_HELLO}\r\n\r\n"
            ),
        ),
        ("malformed", "Content-Digest: nonsense=\r\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("empty", format!("Content-Digest: {OF_HELLO}\r\nContent-Length: 0\r\n\r\n")),
    ] {
        let (addr, requests) = answering(OK).await;
        let proxy = vouching(Setup::to(addr), BOTH).start().await;
        let sent = format!("PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}");
        let reply = soon(proxy.talk(&sent)).await;
        assert!(reply.starts_with("HTTP/1.1 400"), "{what}: {reply}");
        assert!(reply.contains("x-towpath-reason: digest\r\n"), "{what}: {reply}");
        assert!(requests.all().is_empty(), "{what}: no whole request is seen");
        assert!(proxy.service.live.metrics.digests[2].value() > 0, "{what}: counted");

        // With checks off it is nobody's business here.
        let proxy = Setup::to(addr).start().await;
        let reply = soon(proxy.talk(&sent)).await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{what}: {reply}");
    }
}

#[tokio::test]
async fn a_response_that_does_not_match_never_looks_whole() {
    for (what, answer) in [
        ("length", format!("content-digest: {OF_HELLO}\r\ncontent-length: 5\r\n\r\nHELLO")),
        (
            "chunks",
            format!(
                "content-digest: {OF_HELLO}\r\ntransfer-encoding: chunked\r\n\r\n5\r\nHELLO\r\n0\r\n\r\n"
            ),
        ),
        (
            "trailers",
            format!(
                "transfer-encoding: chunked\r\n\r\n5\r\nHELLO\r\n0\r\ncontent-digest: {OF_HELLO}\r\n\r\n"
            ),
        ),
    ] {
        let answer: &'static str = format!("HTTP/1.1 200 OK\r\n{answer}").leak();
        let (addr, _) = answering(answer).await;
        let proxy = vouching(Setup::to(addr), BOTH).start().await;
        let mut io = proxy.connect().await;
        io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let (reply, _) = soon(read_all(&mut io)).await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{what}: {reply}");
        assert!(!reply.ends_with("HELLO") || !reply.contains("content-length"), "{what}: {reply}");
        assert!(!reply.contains("\r\n0\r\n"), "{what}: {reply}");

        let (response, _) = client(&proxy)
            .await
            .send_request(Request::get("http://a/").body(()).unwrap(), true)
            .unwrap();
        let mut body = soon(response).await.unwrap().into_body();
        assert!(soon(collect(&mut body)).await.is_err(), "{what}");
    }
    for field in [
        "content-digest: x=\r\ncontent-length: 2\r\n\r\nok".to_owned(),
        format!("content-digest: {OF_HELLO}\r\ncontent-length: 0\r\n\r\n"),
    ] {
        let answer: &'static str = format!("HTTP/1.1 200 OK\r\n{field}").leak();
        let (addr, _) = answering(answer).await;
        let proxy = vouching(Setup::to(addr), BOTH).start().await;
        let reply =
            soon(proxy.talk("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
        assert!(reply.starts_with("HTTP/1.1 502"), "{field}: {reply}");
        assert!(reply.contains("x-towpath-reason: digest\r\n"), "{field}: {reply}");
    }
}

/// HTTP/2 has lengths and trailers at once: the last bytes must wait for the digest.
#[tokio::test]
async fn a_body_of_known_length_is_not_whole_before_its_trailers_are() {
    let addr = h2_origin(|_, mut respond| async move {
        let response = Response::builder().header("content-length", "5").body(()).unwrap();
        let mut send = respond.send_response(response, false).unwrap();
        send.send_data("HELLO".into(), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("content-digest", HeaderValue::from_static(OF_HELLO));
        send.send_trailers(trailers).unwrap();
    })
    .await;
    let setup = vouching(Setup::to(addr), BOTH).speaking(Protocol::Http2);
    let proxy = setup.start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (reply, _) = soon(read_all(&mut io)).await;
    assert!(reply.contains("content-length: 5\r\n") && !reply.ends_with("HELLO"), "{reply}");
}

/// A try that broke must not count in the digest of the next.
#[tokio::test]
async fn a_digest_is_of_the_body_as_the_last_try_sent_it() {
    let requests = Requests::default();
    let log = requests.clone();
    let (addr, connections) = origin(move |mut io, before| {
        let log = log.clone();
        async move {
            let mut input = Input::default();
            if before == 0 {
                input.until(&mut io, "hello").await.unwrap();
                io.set_zero_linger().unwrap();
                return;
            }
            log.note(input.message(&mut io).await.unwrap());
            io.write_all(OK.as_bytes()).await.unwrap();
            let _ = io.read(&mut [0; 1]).await;
        }
    })
    .await;
    let proxy = vouching(Setup::to(addr), BOTH).start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 19\r\n\r\n{\"hello\": ")
        .await
        .unwrap();
    eventually("a second try", || connections.load(std::sync::atomic::Ordering::SeqCst) == 2).await;
    io.write_all(b"\"world\"}\n").await.unwrap();
    let reply = soon(Input::default().message(&mut io)).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    let seen = requests.only();
    assert!(seen.ends_with(&format!("0\r\ncontent-digest: {OF_HELLO}\r\n\r\n")), "{seen}");
}
