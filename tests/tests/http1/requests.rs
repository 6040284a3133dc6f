//! What of a request reaches the origin: target, host, method, fields, limits.

use towpath_tests::{
    Proxy, RawOrigin, Seen, StrictOrigin, Wire, echo, listener_port, policies, strict::Request,
};

/// Sends one request and returns what the origin saw of it.
async fn forwarded(more_policies: &str, bytes: &str) -> Request {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::with("HTTP", &[origin.address], more_policies).await;
    let mut client = Wire::connect(proxy.address).await;
    client.send(bytes).await;
    let method = bytes.split(' ').next().unwrap_or_default();
    let response = client.response_to(method).await;
    let seen = origin.take();
    match (response.status, &seen[..]) {
        (200, [Seen::Request(request)]) => request.clone(),
        (status, seen) => panic!("{status} for {bytes:?}, the origin saw {seen:?}"),
    }
}

#[tokio::test]
async fn the_host_of_an_absolute_target_wins_over_the_field() {
    // RFC 9112 §3.2.2.
    for (target, host, path) in [
        ("http://b.test/x?y=1", "b.test", "/x?y=1"),
        ("http://b.test:81/x", "b.test:81", "/x"),
        ("http://b.test", "b.test", "/"),
        ("HTTP://B.test/x", "b.test", "/x"),
        ("http://b.test?q", "b.test", "/?q"),
    ] {
        let request =
            forwarded("", &format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
        assert_eq!(request.resource(), (host.to_owned(), path.to_owned()), "{target}");
        assert_eq!(
            request.fields.one("host").map(str::to_ascii_lowercase),
            Some(host.to_owned()),
            "{target}"
        );
    }
}

#[tokio::test]
async fn methods_and_targets_pass_as_they_are() {
    for line in [
        "get /x",
        "PATCH /x",
        "M-SEARCH /x",
        "!#$%&'*+-.^_`|~ /x",
        "DELETE /a%2Fb/c//d;p=1/%41?q=%00&r=a+b/../&s=[]",
        "OPTIONS /x",
        "GET /?",
        "GET //double//slash",
        "HEAD /x",
    ] {
        let request = forwarded("", &format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(format!("{} {}", request.method, request.target), line);
        assert_eq!(request.minor, 1);
    }
    let request = forwarded("", "GET /old HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert_eq!(
        (request.target.as_str(), request.minor),
        ("/old", 1),
        "RFC 9110 §2.5: the proxy's own version"
    );
}

#[tokio::test]
async fn dot_segments_do_not_leave_the_route_that_let_them_in() {
    let origin = StrictOrigin::start().await;
    let port = listener_port();
    let policies = policies(port, "HTTP", &[origin.address]);
    let policies = policies
        .replace("  - backendRefs", "  - matches: [{path: {value: /public}}]\n    backendRefs");
    let proxy = Proxy::start(port, &policies).await;
    for (target, reached) in [
        ("/public/a", true),
        ("/public/./a", true),
        ("/public/a/../b", true),
        ("/publicly", false),
        ("/secret", false),
        ("/public/../secret", false),
        ("/public/%2e%2E/secret", false),
        ("/public/a/../../secret", false),
        ("/./public/.%2e/secret", false),
        ("http://a/public/../secret", false),
    ] {
        let mut client = Wire::connect(proxy.address).await;
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
        let status = client.response().await.status;
        let seen = origin.take();
        match &seen[..] {
            [Seen::Request(_)] if reached && status == 200 => {}
            [] if !reached && matches!(status, 400 | 404) => {}
            _ => panic!("{target}: {status}, the origin saw {seen:?}"),
        }
    }
}

#[tokio::test]
async fn options_of_the_server_as_a_whole_keep_the_asterisk() {
    // RFC 9112 §3.2.4. A route for every path is also one for `*`.
    let request = forwarded("", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((request.method.as_str(), request.target.as_str()), ("OPTIONS", "*"));
    let request = forwarded("", "OPTIONS http://b.test HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((request.target.as_str(), request.fields.one("host")), ("*", Some("b.test")));
}

#[tokio::test]
async fn max_forwards_is_counted_down_and_obeyed() {
    // RFC 9110 §7.6.2.
    let request = forwarded("", "OPTIONS /x HTTP/1.1\r\nHost: a\r\nMax-Forwards: 3\r\n\r\n").await;
    assert_eq!(request.fields.one("max-forwards"), Some("2"));
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    for method in ["OPTIONS", "TRACE"] {
        let mut client = Wire::connect(proxy.address).await;
        client.send(format!("{method} /x HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n")).await;
        client.response().await;
        assert_eq!(origin.take(), [], "{method} with nothing left goes no further");
    }
}

#[tokio::test]
async fn fields_of_this_hop_stay_here() {
    // RFC 9110 §7.6.1.
    let request = forwarded(
        "",
        "POST /x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Foo\r\nConnection: x-bar,,\r\n\
         X-Foo: 1\r\nx-BAR: 2\r\nX-Foo: 3\r\nX-Stays: 4\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nTE: gzip, trailers\r\nContent-Length: 2\r\n\r\nab",
    )
    .await;
    for gone in ["x-foo", "x-bar", "keep-alive", "proxy-connection"] {
        assert_eq!(request.fields.all(gone).count(), 0, "{gone} in {:?}", request.fields);
    }
    assert!(!request.fields.lists("connection", "x-foo"), "{:?}", request.fields);
    assert!(!request.fields.lists("te", "gzip"), "{:?}", request.fields);
    assert_eq!(request.fields.one("x-stays"), Some("4"));
    assert_eq!(request.body, b"ab");
}

#[tokio::test]
async fn connection_cannot_take_away_what_holds_a_message_together() {
    for option in
        ["content-length", "host", "transfer-encoding", "close, content-length", "x-forwarded-for"]
    {
        let request = forwarded(
            "",
            &format!(
                "POST /x HTTP/1.1\r\nHost: a\r\nConnection: {option}\r\nContent-Length: 2\r\n\r\nab"
            ),
        )
        .await;
        assert_eq!(request.body, b"ab", "{option}");
        assert_eq!(request.fields.one("host"), Some("a"), "{option}");
        assert_eq!(request.fields.one("x-forwarded-for"), Some("127.0.0.1"), "{option}");
    }
    let request = forwarded(
        "",
        "POST /x HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\n\
         Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    )
    .await;
    assert_eq!(request.body, b"ab");
}

#[tokio::test]
async fn http2_is_not_offered_to_the_origin_in_the_clients_name() {
    // RFC 9113 §3.1: h2c by Upgrade is obsolete; forwarded, it would switch protocols behind the proxy.
    let request = forwarded(
        "",
        "GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    )
    .await;
    for gone in ["upgrade", "http2-settings"] {
        assert_eq!(request.fields.all(gone).count(), 0, "{gone} in {:?}", request.fields);
    }
    assert!(!request.fields.lists("connection", "upgrade"), "{:?}", request.fields);
}

#[tokio::test]
async fn the_client_is_named_to_the_origin() {
    let request =
        forwarded("", "GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n").await;
    let told: Vec<_> =
        request.fields.all("x-forwarded-for").flat_map(|v| v.split(',')).map(str::trim).collect();
    assert_eq!(told, ["192.0.2.1", "127.0.0.1"]);
    assert_eq!(request.fields.one("x-forwarded-proto"), Some("http"));
}

#[tokio::test]
async fn fields_keep_their_values_their_order_and_their_number() {
    let request = forwarded(
        "",
        "GET /x HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nX-B: \"q, r\"\r\nX-A:\r\nCookie: a=1\r\nX-A: 3, 4\r\n\
         X-Obs: caf\u{e9}\r\nX-Tab: a\tb\r\n\r\n",
    )
    .await;
    assert_eq!(request.fields.all("x-a").collect::<Vec<_>>(), ["1", "", "3, 4"]);
    assert_eq!(request.fields.one("x-b"), Some("\"q, r\""));
    assert_eq!(request.fields.one("x-tab"), Some("a\tb"));
    // Bytes outside ASCII pass as they are (RFC 9110 §5.5): here UTF-8, a character per byte.
    assert_eq!(request.fields.one("x-obs"), Some("caf\u{c3}\u{a9}"));
}

#[tokio::test]
async fn heads_beyond_the_limits_are_refused_and_the_connection_closed() {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let fields = |count: usize| (0..count).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let long = "x".repeat(80 * 1024);
    for (name, head, statuses) in [
        ("101 fields", format!("GET /x HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(100)), &[431][..]),
        ("5000 fields", format!("GET /x HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(5000)), &[431]),
        ("a long field", format!("GET /x HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), &[431]),
        ("a long name", format!("GET /x HTTP/1.1\r\nHost: a\r\n{long}: y\r\n\r\n"), &[400, 431]),
        ("a long target", format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), &[414, 431]),
        ("a long method", format!("{long} / HTTP/1.1\r\nHost: a\r\n\r\n"), &[400, 414, 431, 501]),
        ("no end of line", "x".repeat(1024 * 1024), &[400, 414, 431]),
        (
            "no end of fields",
            format!("GET /x HTTP/1.1\r\n{}", "X: y\r\n".repeat(200_000)),
            &[400, 431],
        ),
    ] {
        let mut client = Wire::connect(proxy.address).await;
        client.try_send(&head).await;
        let response = client
            .next_response("GET")
            .await
            .unwrap_or_else(|| panic!("{name}: closed without an answer"));
        assert!(statuses.contains(&response.status), "{name}: {}", response.status);
        client.ended().await;
        assert_eq!(origin.take(), [], "{name}");
    }
    let request = forwarded("", &format!("GET /x HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(99))).await;
    assert_eq!(request.fields.one("x-98"), Some("y"), "100 fields are within the limit");
    let target = format!("/{}", "y".repeat(30 * 1024));
    let request = forwarded(
        "",
        &format!("GET {target} HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", &long[..20_000]),
    )
    .await;
    assert_eq!(request.target, target, "a head of 50 KiB is within the limit");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Wire::connect(proxy.address).await;
    let (mut sent, mut expected) = (String::new(), Vec::new());
    for n in 0..40 {
        let (target, body) = (format!("/p{n}"), "b".repeat(n * 7));
        sent += &match n % 4 {
            0 => format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => format!(
                "POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ),
            2 => format!(
                "PUT {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            ),
            _ => format!("HEAD {target} HTTP/1.1\r\nHost: a\r\n\r\n"),
        };
        let method = ["GET", "POST", "PUT", "HEAD"][n % 4];
        let body = if matches!(n % 4, 1 | 2) { body } else { String::new() };
        expected.push((method, echo(method, &target, body.as_bytes())));
    }
    client.send(&sent).await;
    for (method, text) in &expected {
        let response = client.response_to(method).await;
        let body = String::from_utf8_lossy(&response.body).into_owned();
        let length = response.fields.one("content-length").and_then(|l| l.parse().ok());
        assert_eq!((response.status, length), (200, Some(text.len())), "{text}");
        assert_eq!(body, if *method == "HEAD" { "" } else { text });
    }
    let seen = origin.take();
    assert_eq!(seen.len(), expected.len(), "{seen:?}");
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks_and_keeps_the_connection_only_if_it_asked() {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Wire::connect(proxy.address).await;
    client.send("GET /x HTTP/1.0\r\nHost: a\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!(response.status, 200);
    client.ended().await;
    let mut client = Wire::connect(proxy.address).await;
    for _ in 0..2 {
        client.send("GET /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!(response.status, 200);
        assert!(response.fields.lists("connection", "keep-alive"), "{:?}", response.fields);
    }
}

#[tokio::test]
async fn close_is_answered_with_close() {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Wire::connect(proxy.address).await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /y HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let response = client.response().await;
    assert!(response.fields.lists("connection", "close"), "{:?}", response.fields);
    client.ended().await;
    assert_eq!(origin.take().len(), 1, "what follows a close is no request (RFC 9112 §9.6)");
}

#[tokio::test]
async fn trailers_reach_the_origin() {
    let request = forwarded(
        "",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         2\r\nab\r\n0\r\nX-Sum: 7\r\nX-Authorization: none\r\n\r\n",
    )
    .await;
    assert_eq!(request.body, b"ab");
    assert_eq!(request.trailers.one("x-sum"), Some("7"));
    assert_eq!(
        request.fields.all("x-authorization").count(),
        0,
        "trailers are not merged into the head"
    );
}

#[tokio::test]
async fn trailers_that_would_change_the_message_are_dropped_or_refused() {
    // RFC 9110 §6.5.1: framing, routing and authentication have no place in trailers.
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    for trailer in
        ["Content-Length: 99", "Host: b", "Transfer-Encoding: gzip", "Transfer-Encoding: chunked"]
    {
        let mut client = Wire::connect(proxy.address).await;
        let head = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(format!("{head}2\r\nab\r\n0\r\n{trailer}\r\n\r\n")).await;
        let status = client.response().await.status;
        match &origin.take()[..] {
            [] if status == 400 => client.ended().await,
            [Seen::Request(request)] if status == 200 && request.body == b"ab" => {
                assert_eq!(request.trailers.0, [], "{trailer}");
                assert_eq!(request.fields.one("host"), Some("a"));
                continue;
            }
            [Seen::Broken(_)] if status == 400 => client.ended().await,
            seen => panic!("{trailer}: {status}, the origin saw {seen:?}"),
        };
    }
}

#[tokio::test]
async fn a_body_is_forwarded_while_it_arrives() {
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Wire::connect(proxy.address).await;
    client
        .send("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        .await;
    let mut upstream = origin.accept().await;
    let head = upstream.request_head().await;
    assert!(head.fields.lists("transfer-encoding", "chunked"), "{:?}", head.fields);
    assert_eq!(upstream.exactly(8).await, b"3\r\nabc\r\n");
    client.send("2\r\nde\r\n").await;
    assert_eq!(upstream.exactly(7).await, b"2\r\nde\r\n");
    client.send("0\r\n\r\n").await;
    assert_eq!(upstream.exactly(5).await, b"0\r\n\r\n");
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(client.response().await.body, b"ok");
}

#[tokio::test]
async fn a_tunnel_to_a_place_of_the_clients_choice_is_refused() {
    let (origin, elsewhere) = (StrictOrigin::start().await, RawOrigin::start().await);
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Wire::connect(proxy.address).await;
    client.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", elsewhere.address)).await;
    let response = client.response_head().await;
    assert!(response.status >= 400, "{}", response.status);
    client.finish().await;
    client.rest().await;
    assert!(elsewhere.accepted().is_none(), "nobody was called in the client's name");
}
