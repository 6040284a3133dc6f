//! What stands on the wire: ambiguous messages are refused, all others mean one thing to all.

use tokio::io::AsyncWriteExt;

use crate::harness::{Input, Setup, answering, origin, read_all, soon};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn an_ambiguous_or_malformed_request_is_refused_and_closed_and_no_origin_sees_it() {
    let (addr, requests) = answering(OK).await;
    let proxy = Setup::to(addr).start().await;
    for (what, request, status) in [
        (
            "CL and TE",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "TE and CL",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "two equal CL",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
            400,
        ),
        (
            "two CL",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 1\r\n\r\nok",
            400,
        ),
        ("CL list", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nok", 400),
        ("signed CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\nok", 400),
        (
            "huge CL",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nok",
            400,
        ),
        ("empty CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\nok", 400),
        (
            "chunked twice",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "chunked, chunked",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            501,
        ),
        ("identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 501),
        (
            "gzip",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            501,
        ),
        (
            "xchunked",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            501,
        ),
        (
            "TE in 1.0",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("obs-fold", "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n", 400),
        ("fold first", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        ("bare LF", "GET / HTTP/1.1\nHost: a\n\n", 400),
        ("bare LF in the middle", "GET / HTTP/1.1\r\nHost: a\nX-A: b\r\n\r\n", 400),
        ("bare CR", "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\rX-B: c\r\n\r\n", 400),
        ("space before colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        ("no colon", "GET / HTTP/1.1\r\nHost: a\r\nX-A\r\n\r\n", 400),
        ("NUL", "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\0c\r\n\r\n", 400),
        ("empty name", "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
        ("no Host", "GET / HTTP/1.1\r\n\r\n", 400),
        ("two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("bad Host", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("path in Host", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("user in Host", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
        ("absolute, no Host", "GET http://a/ HTTP/1.1\r\n\r\n", 400),
        ("version", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        ("no version", "GET /\r\nHost: a\r\n\r\n", 400),
        ("two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("space in target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 505),
        ("method", "G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("%00", "GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("backslash", "GET /a\\..\\b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET *", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 405),
        (
            "expectation",
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: wonders\r\nContent-Length: 0\r\n\r\n",
            417,
        ),
    ] {
        let reply =
            soon(proxy.talk(&format!("{request}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"))).await;
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {reply}");
        assert!(!reply.contains("\nHTTP/1.1 "), "answered twice: {what}: {reply}");
        assert!(reply.contains("connection: close"), "{what}: {reply}");
        assert!(reply.contains("x-towpath-reason: "), "{what}: {reply}");
    }
    assert_eq!(requests.all(), Vec::<String>::new());
}

#[tokio::test]
async fn a_malformed_chunk_breaks_the_request_towards_the_origin() {
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "\r\n",
        "g\r\n",
        "11111111111111111\r\n",
        "5;\rx\r\nhello\r\n0\r\n\r\n",
        "0\r\nX : y\r\n\r\n",
        "0\r\nX: y\n\r\n\r\n",
    ] {
        let (sender, mut seen) = tokio::sync::mpsc::channel(1);
        let (addr, _) = origin(move |mut io, _| {
            let sender = sender.clone();
            async move { sender.send(read_all(&mut io).await.0).await.unwrap() }
        })
        .await;
        let proxy = Setup::to(addr).start().await;
        let mut io = proxy.connect().await;
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        io.write_all(head.as_bytes()).await.unwrap();
        io.write_all(body.as_bytes()).await.unwrap();
        let sent = soon(seen.recv()).await.unwrap();
        assert!(!sent.ends_with("0\r\n\r\n"), "{body:?} became complete: {sent:?}");
        let (reply, _) = soon(read_all(&mut io)).await;
        assert!(reply.starts_with("HTTP/1.1 400 "), "{body:?}: {reply}");
    }
}

#[tokio::test]
async fn chunk_extensions_are_dropped_and_sizes_rewritten() {
    let (addr, requests) = answering(OK).await;
    let proxy = Setup::to(addr).start().await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: Chunked\r\n\r\n\
                   005;a=\"b\"\r\nhello\r\n1 ; c\r\n!\r\n000\r\n\r\n";
    assert!(soon(proxy.talk(request)).await.starts_with("HTTP/1.1 200 "));
    let sent = requests.only();
    let body = sent.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(body, "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n");
}

#[tokio::test]
async fn an_absolute_target_wins_over_host() {
    let (addr, requests) = answering(OK).await;
    let proxy = Setup::to(addr).start().await;
    let request =
        "GET http://wins.example/x?y HTTP/1.1\r\nHost: loses.example\r\nConnection: close\r\n\r\n";
    soon(proxy.talk(request)).await;
    let sent = requests.only();
    assert!(sent.starts_with("GET /x?y HTTP/1.1\r\nhost: wins.example\r\n"), "{sent}");
    assert!(!sent.contains("loses"), "{sent}");
}

#[tokio::test]
async fn dot_segments_are_resolved_before_the_origin_sees_them() {
    let (addr, requests) = answering(OK).await;
    let proxy = Setup::to(addr).start().await;
    for (path, expected) in [
        ("/a/../b", "/b"),
        ("/a/%2e%2E/b?q=../x", "/b?q=../x"),
        ("/../../a/./b/", "/a/b/"),
        ("/a/b/..", "/a/"),
        ("/a//b", "/a//b"),
        ("/a%2fb", "/a%2fb"),
        ("/.a/..b/...", "/.a/..b/..."),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        soon(proxy.talk(&request)).await;
        let sent = requests.all().pop().unwrap();
        assert!(sent.starts_with(&format!("GET {expected} HTTP/1.1\r\n")), "{path}: {sent}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (addr, _) = origin(|mut io, _| async move {
        let mut input = Input::default();
        while let Some(request) = input.message(&mut io).await {
            let path = request.split(' ').nth(1).unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
            io.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = Setup::to(addr).start().await;
    let reply = soon(proxy.talk(
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
         GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ))
    .await;
    let bodies: Vec<_> =
        reply.split("HTTP/1.1 200 OK").filter_map(|r| r.split("\r\n\r\n").nth(1)).collect();
    assert_eq!(bodies, ["/1", "/2", "/3"]);
}

#[tokio::test]
async fn hop_by_hop_fields_and_those_connection_names_go_no_further() {
    let answer = "HTTP/1.1 200 OK\r\nconnection: x-mine, keep-alive\r\nx-mine: 1\r\nkeep-alive: timeout=5\r\n\
                  proxy-connection: x\r\nx-kept: 1\r\ncontent-length: 0\r\n\r\n";
    let (addr, requests) = answering(answer).await;
    let proxy = Setup::to(addr).start().await;
    let reply = soon(proxy.talk(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: 1\r\n\
         Proxy-Connection: keep-alive\r\nTE: gzip, trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nX-Kept: 1\r\n\r\n",
    ))
    .await;
    let sent = requests.only();
    for gone in
        ["x-secret", "keep-alive", "proxy-connection", "gzip", "upgrade", "http2-settings", "close"]
    {
        assert!(!sent.contains(gone), "{gone} in {sent}");
    }
    assert!(sent.contains("x-kept: 1") && sent.contains("te: trailers"), "{sent}");
    for gone in ["x-mine", "keep-alive", "proxy-connection"] {
        assert!(!reply.contains(gone), "{gone} in {reply}");
    }
    assert!(reply.contains("x-kept: 1"), "{reply}");
}

#[tokio::test]
async fn http_1_0_is_answered_without_chunks_and_closed_unless_asked_otherwise() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let (addr, requests) = answering(chunked).await;
    let proxy = Setup::to(addr).start().await;
    let reply = soon(proxy.talk("GET / HTTP/1.0\r\nHost: a\r\n\r\n")).await;
    assert!(reply.ends_with("\r\n\r\nok") && !reply.contains("chunked"), "{reply}");
    assert!(requests.only().starts_with("GET / HTTP/1.1\r\nhost: a\r\n"));

    let (addr, _) = answering(OK).await;
    let proxy = Setup::to(addr).start().await;
    let twice = "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n";
    let reply = soon(proxy.talk(twice)).await;
    assert_eq!(reply.matches("200 OK").count(), 2, "{reply}");
    assert!(reply.contains("connection: keep-alive") && reply.contains("connection: close"));
}

#[tokio::test]
async fn answers_without_a_body_keep_their_lengths_and_the_connection() {
    for (method, answer, expected) in [
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", "content-length: 10"),
        ("HEAD", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "200 OK"),
        ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n", "content-length: 10"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", "204 No Content"),
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "content-length: 0"),
    ] {
        let (addr, requests) = answering(answer).await;
        let proxy = Setup::to(addr).start().await;
        let request = format!(
            "{method} /1 HTTP/1.1\r\nHost: a\r\n\r\n{method} /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        );
        let reply = soon(proxy.talk(&request)).await;
        assert_eq!(reply.matches("HTTP/1.1 ").count(), 2, "{answer}: {reply}");
        assert_eq!(reply.matches(expected).count(), 2, "{answer}: {reply}");
        assert!(reply.ends_with("\r\n\r\n") && !reply.contains("chunked"), "{answer}: {reply}");
        assert_eq!(requests.all().len(), 2);
    }
}

#[tokio::test]
async fn a_malformed_answer_is_a_502_and_its_connection_is_not_used_again() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok",
        "HTTP/1.1 200 OK\nx: y\n\n",
        "nonsense\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let (addr, _) = answering(answer).await;
        let proxy = Setup::to(addr).start().await;
        let reply =
            soon(proxy.talk(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            ))
            .await;
        assert!(reply.starts_with("HTTP/1.1 502 "), "{answer:?}: {reply}");
        assert!(reply.contains("x-towpath-reason: upstream_protocol"), "{answer:?}: {reply}");
    }
}

#[tokio::test]
async fn a_head_beyond_the_limits_is_a_431() {
    let (addr, requests) = answering(OK).await;
    let proxy = Setup::to(addr)
        .with(|s| {
            s.options.max_head_bytes = 8192;
            s.options.max_headers = 10;
        })
        .start()
        .await;
    let many = "X-A: b\r\n".repeat(11);
    let long = format!("X-A: {}\r\n", "b".repeat(9000));
    for fields in [many, long] {
        let reply = soon(proxy.talk(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))).await;
        assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    }
    assert!(requests.all().is_empty());
}

#[tokio::test]
async fn http_1_0_is_refused_where_a_policy_says_so() {
    let (addr, requests) = answering(OK).await;
    let proxy = Setup::to(addr).with(|s| s.options.http10 = false).start().await;
    let reply = soon(proxy.talk("GET / HTTP/1.0\r\nHost: a\r\n\r\n")).await;
    assert!(reply.starts_with("HTTP/1.1 505 "), "{reply}");
    assert!(reply.contains("x-towpath-reason: http10\r\n"), "{reply}");
    assert!(requests.all().is_empty());
    let newer = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert!(soon(proxy.talk(newer)).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_a_413_whether_its_length_was_told_or_not() {
    let (addr, requests) = answering(OK).await;
    let limited = |s: &mut Setup| s.forward.transfer.max_request_bytes = Some(10);
    let proxy = Setup::to(addr).with(limited).start().await;
    let post = |fields: &str, body: &str| {
        format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n\r\n{body}")
    };
    let fits = post("Content-Length: 10", "0123456789");
    assert!(soon(proxy.talk(&fits)).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(requests.all().len(), 1);
    for (fields, body) in [
        ("Content-Length: 11", "0123456789a"),
        // Told before the client sends it, and not asked for.
        ("Content-Length: 11\r\nExpect: 100-continue", ""),
        ("Transfer-Encoding: chunked", "6\r\n012345\r\n6\r\n6789ab\r\n0\r\n\r\n"),
    ] {
        let reply = soon(proxy.talk(&post(fields, body))).await;
        assert!(reply.starts_with("HTTP/1.1 413 "), "{fields}: {reply}");
        assert!(reply.contains("x-towpath-reason: body_too_large\r\n"), "{fields}: {reply}");
    }
    assert_eq!(requests.all().len(), 1, "no endpoint took more of them for whole");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_end_in_time_is_a_408() {
    let (addr, _) = answering(OK).await;
    let proxy = Setup::to(addr).start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    let (reply, _) = read_all(&mut io).await;
    assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");
}
