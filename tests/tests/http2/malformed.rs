//! Malformed requests are stream errors (RFC 9113 §8.1.1), and no byte of them
//! becomes a request to an HTTP/1.1 origin.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use towpath_tests::{
    Proxy, Seen, StrictOrigin,
    frames::{
        END_HEADERS, END_STREAM, Fields, Frames, GET, POST, Verdict, frame, headers, section,
        window,
    },
    panic_text,
};

#[tokio::test]
async fn malformed_heads_are_refused_before_the_origin_hears_of_them() {
    let with = |more: Fields| [GET, more].concat();
    let instead = |name: &str, value: &'static str| {
        GET.iter().map(|(n, v)| (*n, if *n == name { value } else { *v })).collect::<Vec<_>>()
    };
    let without = |name: &str| GET.iter().copied().filter(|(n, _)| *n != name).collect::<Vec<_>>();
    let after = |more: Fields| [&[("x-first", "1")], more].concat();
    table(&[
        ("host against :authority", with(&[("host", "b")])),
        ("host against :authority's port", with(&[("host", "a:81")])),
        ("two hosts", with(&[("host", "a"), ("host", "b")])),
        ("two :authority", with(&[(":authority", "a")])),
        ("two :path", with(&[(":path", "/y")])),
        ("two :method", with(&[(":method", "GET")])),
        ("no :method", without(":method")),
        ("no :scheme", without(":scheme")),
        ("no :path", without(":path")),
        ("no authority and no host", without(":authority")),
        ("an empty :path", instead(":path", "")),
        ("an empty :method", instead(":method", "")),
        ("a :path without a slash", instead(":path", "x")),
        ("a :path that is an absolute URI", instead(":path", "http://b/x")),
        ("a :path with a fragment", instead(":path", "/x#y")),
        ("an asterisk for GET", instead(":path", "*")),
        ("a pseudo-header after a field", after(GET)),
        ("an unknown pseudo-header", with(&[(":x", "y")])),
        (":status", with(&[(":status", "200")])),
        ("CONNECT without :authority", vec![(":method", "CONNECT")]),
        ("CONNECT with :path", vec![(":method", "CONNECT"), (":authority", "a:1"), (":path", "/")]),
        (
            "CONNECT with :scheme",
            vec![(":method", "CONNECT"), (":authority", "a:1"), (":scheme", "http")],
        ),
        ("connection", with(&[("connection", "keep-alive")])),
        ("connection: close", with(&[("connection", "close")])),
        ("keep-alive", with(&[("keep-alive", "timeout=1")])),
        ("proxy-connection", with(&[("proxy-connection", "keep-alive")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("te other than trailers", with(&[("te", "gzip")])),
        ("te with more than trailers", with(&[("te", "trailers, gzip")])),
        ("an upper case name", with(&[("X-Upper", "1")])),
        ("an empty name", with(&[("", "1")])),
        ("a colon in a name", with(&[("x:y", "1")])),
        ("a space in a name", with(&[("x y", "1")])),
        ("a line end in a name", with(&[("x\r\ny", "1")])),
        ("a request in a name", with(&[("x: y\r\n\r\nget /smuggled http/1.1\r\nz", "1")])),
        ("CR LF in a value", with(&[("x", "y\r\nz: 1")])),
        ("CR in a value", with(&[("x", "y\rz")])),
        ("LF in a value", with(&[("x", "y\nz")])),
        ("NUL in a value", with(&[("x", "y\0z")])),
        (
            "a request line in :path",
            instead(":path", "/x HTTP/1.1\r\nhost: a\r\n\r\nGET /smuggled"),
        ),
        ("a space in :path", instead(":path", "/x y")),
        ("a request line in :method", instead(":method", "GET /smuggled HTTP/1.1\r\nx: ")),
        ("a space in :method", instead(":method", "GET ")),
        ("a line end in :authority", instead(":authority", "a\r\nx: y")),
        ("a space in :authority", instead(":authority", "a b")),
        ("user information in :authority", instead(":authority", "u:p@a")),
        ("a path in :authority", instead(":authority", "a/b")),
        ("a line end in :scheme", instead(":scheme", "http\r\nx")),
        ("a path in :scheme", instead(":scheme", "http://a/smuggled?")),
        ("a length without a body", with(&[("content-length", "5")])),
        ("unequal lengths", with(&[("content-length", "0"), ("content-length", "5")])),
        ("a length with a sign", with(&[("content-length", "+0")])),
        ("a length beyond 64 bits", with(&[("content-length", "18446744073709551616")])),
    ])
    .await;
}

async fn table(cases: &[(&str, Vec<(&str, &str)>)]) {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut wrong = Vec::new();
    for (name, fields) in cases {
        let judged = AssertUnwindSafe(async {
            let mut client = Frames::connect(proxy.address).await;
            client.send(headers(END_STREAM, 1, fields)).await;
            let verdict = refused(client.verdict(1).await);
            nothing_whole(&origin).and(verdict)
        });
        let judged = judged.catch_unwind().await.unwrap_or_else(|panic| Err(panic_text(&*panic)));
        if let Err(what) = judged {
            wrong.push(format!("{name}: {what}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn refused(verdict: Verdict) -> Result<(), String> {
    match verdict {
        // §8.1.1: PROTOCOL_ERROR, or a 4xx first for a person.
        Verdict::Reset(1)
        | Verdict::GoAway(1)
        | Verdict::Status(400 | 404 | 405 | 413 | 421 | 501) => Ok(()),
        // A field section that HPACK or the limits refuse may also end the connection.
        Verdict::GoAway(9) | Verdict::Status(431) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

fn nothing_whole(origin: &StrictOrigin) -> Result<(), String> {
    let seen = origin.take();
    let broken = seen.iter().all(|s| matches!(s, Seen::Broken(_)));
    if broken { Ok(()) } else { Err(format!("the origin saw {seen:?}")) }
}

#[tokio::test]
async fn a_body_of_another_length_than_declared_reaches_no_origin_whole() {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    for (name, declared, body) in [
        ("too short", "5", "abc"),
        ("too long", "3", "abcGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("not empty", "0", "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("empty", "5", ""),
    ] {
        let mut client = Frames::connect(proxy.address).await;
        client.send(headers(0, 1, &[POST, &[("content-length", declared)]].concat())).await;
        client.send(frame(0, END_STREAM, 1, body)).await;
        refused(client.verdict(1).await).unwrap_or_else(|what| panic!("{name}: {what}"));
        // A clean request afterwards ends whatever connection could carry leftovers.
        let mut other = Frames::connect(proxy.address).await;
        other.send(headers(END_STREAM, 1, &[GET, &[("x-next", "1")]].concat())).await;
        assert_eq!(other.verdict(1).await, Verdict::Status(200), "{name}");
        for what in origin.take() {
            match what {
                Seen::Request(r) if r.fields.one("x-next").is_some() => assert_eq!(r.target, "/x"),
                // Declared empty, it is whole before the body that should not be comes.
                Seen::Request(r) if declared == "0" => assert!(r.body.is_empty()),
                Seen::Broken(_) => {}
                other => panic!("{name}: the origin saw {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn trailers_are_no_second_head() {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    for (name, trailers) in [
        (":path", &[(":path", "/smuggled")][..]),
        (":authority", &[(":authority", "b")]),
        (":status", &[(":status", "200")]),
        (":method after a field", &[("x", "y"), (":method", "GET")]),
        ("transfer-encoding", &[("transfer-encoding", "chunked")]),
        ("connection", &[("connection", "close")]),
        ("an upper case name", &[("X", "y")]),
        ("a line end", &[("x", "y\r\n\r\nGET /smuggled HTTP/1.1")]),
    ] {
        let mut client = Frames::connect(proxy.address).await;
        client.send(headers(0, 1, POST)).await;
        client.send(frame(0, 0, 1, "ab")).await;
        client.send(headers(END_STREAM, 1, trailers)).await;
        let verdict = client.verdict(1).await;
        refused(verdict)
            .and_then(|()| nothing_whole(&origin))
            .unwrap_or_else(|what| panic!("{name}: {what}"));
    }
    // A second field section that does not end the stream is no trailers (§8.1).
    let mut client = Frames::connect(proxy.address).await;
    client.send(headers(0, 1, POST)).await;
    client.send(headers(0, 1, &[("x", "y")])).await;
    let verdict = client.verdict(1).await;
    refused(verdict).and_then(|()| nothing_whole(&origin)).expect("refused");
}

#[tokio::test]
async fn frames_that_no_client_may_send_end_the_connection() {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let promise = [&2_u32.to_be_bytes()[..], &section(GET)].concat();
    for (name, bytes) in [
        ("PUSH_PROMISE", frame(5, END_HEADERS, 1, promise)),
        ("an even stream", headers(END_STREAM, 2, GET)),
        ("DATA on the connection", frame(0, 0, 0, "ab")),
        ("HEADERS on the connection", headers(END_STREAM, 0, GET)),
        ("DATA on an idle stream", frame(0, 0, 1, "ab")),
        ("WINDOW_UPDATE by nothing", frame(8, 0, 0, 0_u32.to_be_bytes())),
        ("CONTINUATION of nothing", frame(9, END_HEADERS, 1, section(GET))),
        ("SETTINGS on a stream", frame(4, 0, 1, [])),
        ("PING of seven bytes", frame(6, 0, 0, [0; 7])),
        ("a window beyond 31 bits", [window(0, 0x7fff_ffff), window(0, 0x7fff_ffff)].concat()),
        ("a field section that is no HPACK", frame(1, END_STREAM | END_HEADERS, 1, [0xff; 20])),
    ] {
        // More than once: the end may race with the settings exchange.
        for _ in 0..10 {
            let mut client = Frames::connect(proxy.address).await;
            client.send(&bytes).await;
            let verdict = client.verdict(1).await;
            assert!(matches!(verdict, Verdict::GoAway(_) | Verdict::Closed), "{name}: {verdict:?}");
            client.ended().await;
        }
    }
    assert_eq!(origin.take(), []);
}

#[tokio::test]
async fn what_is_well_formed_becomes_one_clean_request() {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Frames::connect(proxy.address).await;
    let mut stream = 1;
    for (name, fields, body, trailers) in [
        ("host equal to :authority", [GET, &[("host", "a")]].concat(), None, None),
        ("host equal but for case", [GET, &[("host", "A")]].concat(), None, None),
        ("host alone", [&GET[..2], &GET[3..], &[("host", "a")]].concat(), None, None),
        ("te: trailers", [GET, &[("te", "trailers")]].concat(), None, None),
        ("a body without a length", POST.to_vec(), Some("ab"), None),
        ("a body with its length", [POST, &[("content-length", "2")]].concat(), Some("ab"), None),
        ("trailers", POST.to_vec(), Some("ab"), Some(("x-sum", "7"))),
        ("crumbs of a cookie", [GET, &[("cookie", "a=1"), ("cookie", "b=2")]].concat(), None, None),
        ("bytes outside ASCII", [GET, &[("x-obs", "\u{e9}")]].concat(), None, None),
    ] {
        let end = if body.is_none() { END_STREAM } else { 0 };
        client.send(headers(end, stream, &fields)).await;
        if let Some(body) = body {
            let end = if trailers.is_none() { END_STREAM } else { 0 };
            client.send(frame(0, end, stream, body)).await;
        }
        if let Some(trailer) = trailers {
            client.send(headers(END_STREAM, stream, &[trailer])).await;
        }
        assert_eq!(client.verdict(stream).await, Verdict::Status(200), "{name}");
        stream += 2;
        let seen = origin.take();
        let [Seen::Request(request)] = &seen[..] else { panic!("{name}: the origin saw {seen:?}") };
        assert_eq!(request.resource().0, "a", "{name}");
        assert_eq!(request.target, "/x", "{name}");
        assert_eq!(request.body, body.unwrap_or_default().as_bytes(), "{name}");
        let trailer = trailers.map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(request.trailers.0, Vec::from_iter(trailer), "{name}");
        // §8.2.3: a single cookie field with `; ` between.
        let cookie = name.contains("cookie").then_some("a=1; b=2");
        assert_eq!(request.fields.one("cookie"), cookie, "{name}");
    }
}
