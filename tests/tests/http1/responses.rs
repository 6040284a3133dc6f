//! What of an origin's response reaches the client: framing, truncation,
//! fields; and that no byte of it ever answers another request.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use towpath_tests::{
    End, Proxy, Script, ScriptedOrigin, Wire, panic_text, show,
    strict::{self, Parsed},
};

/// What a client may see of a scripted response.
enum Want {
    /// This status and body, whole.
    Whole(u16, &'static str),
    /// 502 of the proxy's own, or a visible break.
    Bad,
    /// The status and body, or 502.
    Either(u16, &'static str),
    /// A response that visibly does not end.
    Broken,
}
use Want::{Bad, Broken, Either, Whole};

const SECOND: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond";

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn responses_end_where_their_framing_says() {
    let ok = |fields: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}");
    let chunked = "Transfer-Encoding: chunked";
    table(
        "GET",
        &[
            ("a length", Script::keep(ok("Content-Length: 2", "ab")), Whole(200, "ab")),
            ("no body", Script::keep(ok("Content-Length: 0", "")), Whole(200, "")),
            (
                "chunks",
                Script::keep(ok(chunked, "1\r\na\r\n1;x\r\nb\r\n0\r\n\r\n")),
                Whole(200, "ab"),
            ),
            ("until close", Script::close(ok("X: y", "ab")), Whole(200, "ab")),
            ("until close, without a body", Script::close(ok("X: y", "")), Whole(200, "")),
            ("HTTP/1.0 until close", Script::close("HTTP/1.0 200 OK\r\n\r\nab"), Whole(200, "ab")),
            (
                "HTTP/1.0 with a length",
                Script::close("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab"),
                Whole(200, "ab"),
            ),
            (
                "no reason",
                Script::keep("HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nab"),
                Whole(200, "ab"),
            ),
            (
                "an unknown status",
                Script::keep("HTTP/1.1 299 X\r\nContent-Length: 2\r\n\r\nab"),
                Whole(299, "ab"),
            ),
            (
                "a status beyond 599",
                Script::keep("HTTP/1.1 799 X\r\nContent-Length: 2\r\n\r\nab"),
                Either(799, "ab"),
            ),
            ("204", Script::keep("HTTP/1.1 204 No Content\r\n\r\n"), Whole(204, "")),
            (
                "204 with a length",
                Script::keep("HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\n"),
                Either(204, ""),
            ),
            (
                "204 with chunks announced",
                Script::keep(format!("HTTP/1.1 204 No Content\r\n{chunked}\r\n\r\n")),
                Either(204, ""),
            ),
            (
                "205",
                Script::keep("HTTP/1.1 205 Reset\r\nContent-Length: 0\r\n\r\n"),
                Whole(205, ""),
            ),
            (
                "304 with a length",
                Script::keep(
                    "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\nETag: \"e\"\r\n\r\n",
                ),
                Whole(304, ""),
            ),
            (
                "equal lengths",
                Script::keep(ok("Content-Length: 2\r\nContent-Length: 2", "ab")),
                Either(200, "ab"),
            ),
            ("an equal list", Script::keep(ok("Content-Length: 2, 2", "ab")), Either(200, "ab")),
            (
                "both framings",
                Script::keep(ok(
                    &format!("Content-Length: 3\r\n{chunked}"),
                    "2\r\nab\r\n0\r\n\r\n",
                )),
                Either(200, "ab"),
            ),
            (
                "both framings, the length last",
                Script::keep(ok(
                    &format!("{chunked}\r\nContent-Length: 3"),
                    "2\r\nab\r\n0\r\n\r\n",
                )),
                Either(200, "ab"),
            ),
            (
                "unequal lengths",
                Script::keep(ok("Content-Length: 2\r\nContent-Length: 3", "abc")),
                Bad,
            ),
            ("an unequal list", Script::keep(ok("Content-Length: 2, 3", "abc")), Bad),
            ("a length with a sign", Script::keep(ok("Content-Length: +2", "ab")), Bad),
            ("a length that is no number", Script::keep(ok("Content-Length: two", "ab")), Bad),
            ("an unknown coding until close", Script::close(ok("Transfer-Encoding: x", "ab")), Bad),
            (
                "chunks in HTTP/1.0",
                Script::close(format!("HTTP/1.0 200 OK\r\n{chunked}\r\n\r\n2\r\nab\r\n0\r\n\r\n")),
                Either(200, "ab"),
            ),
            (
                "white space before a colon",
                Script::close("HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nab"),
                Either(200, "ab"),
            ),
            (
                "a folded line",
                Script::keep(ok("X: y\r\n z\r\nContent-Length: 2", "ab")),
                Either(200, "ab"),
            ),
            (
                "a lone LF",
                Script::keep("HTTP/1.1 200 OK\nContent-Length: 2\n\nab"),
                Either(200, "ab"),
            ),
            (
                "NUL in a value",
                Script::keep(ok("X: y\0z\r\nContent-Length: 2", "ab")),
                Either(200, "ab"),
            ),
            (
                "CR in a value",
                Script::keep(ok("X: y\rz\r\nContent-Length: 2", "ab")),
                Either(200, "ab"),
            ),
            ("no HTTP at all", Script::close("hello\r\n\r\n"), Bad),
            ("HTTP/2.0", Script::close("HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nab"), Bad),
            ("HTTP/0.9", Script::close("<html>"), Bad),
            (
                "a status of two digits",
                Script::close("HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nab"),
                Bad,
            ),
            (
                "a status of four digits",
                Script::close("HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nab"),
                Bad,
            ),
            (
                "a status of zeros",
                Script::close("HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nab"),
                Bad,
            ),
            ("a field without a colon", Script::close(ok("X\r\nContent-Length: 2", "ab")), Bad),
            ("nothing", Script::close(""), Bad),
            ("half a head", Script::close("HTTP/1.1 200 OK\r\nContent-Le"), Bad),
            ("a long head", Script::close(ok(&"X: y\r\n".repeat(200_000), "")), Bad),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_truncated_response_never_ends_as_a_whole_one() {
    let ok = |fields: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}");
    let chunked = |body: &str| ok("Transfer-Encoding: chunked", body);
    let reset = |bytes: String| Script { bytes: bytes.into(), then: towpath_tests::Then::Reset };
    let cases = || {
        [
            ("short of its length", Script::close(ok("Content-Length: 10", "abcde")), Broken),
            ("none of its length", Script::close(ok("Content-Length: 10", "")), Broken),
            ("short of its length by reset", reset(ok("Content-Length: 10", "abcde")), Broken),
            ("no last chunk", Script::close(chunked("5\r\nabcde\r\n")), Broken),
            ("no last chunk by reset", reset(chunked("5\r\nabcde\r\n")), Broken),
            ("half a chunk", Script::close(chunked("5\r\nab")), Broken),
            ("half a size", Script::close(chunked("5\r\nabcde\r\n1")), Broken),
            ("half a last chunk", Script::close(chunked("5\r\nabcde\r\n0\r\n")), Broken),
            ("half a trailer", Script::close(chunked("5\r\nabcde\r\n0\r\nX: y")), Broken),
            ("a bad size", Script::keep(chunked("5\r\nabcde\r\nx\r\n")), Broken),
            (
                "a size beyond 64 bits",
                Script::keep(chunked("5\r\nabcde\r\n10000000000000001\r\nX")),
                Broken,
            ),
            (
                "data longer than its size",
                Script::keep(chunked("5\r\nabcdefg\r\n0\r\n\r\n")),
                Broken,
            ),
            ("until close by reset", reset(ok("X: y", "abcde")), Broken),
        ]
    };
    table("GET", &cases()).await;
    // Of what HTTP/1.0 offers, only a reset tells such a client.
    table("GET 1.0", &cases()[..1]).await;
    table("GET 1.0", &cases()[3..4]).await;
}

#[tokio::test]
async fn a_response_to_head_has_its_length_and_no_body() {
    table(
        "HEAD",
        &[
            (
                "a length",
                Script::keep("HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n"),
                Whole(200, ""),
            ),
            (
                "chunked",
                Script::keep("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
                Whole(200, ""),
            ),
            ("neither", Script::keep("HTTP/1.1 200 OK\r\n\r\n"), Whole(200, "")),
            (
                "not modified",
                Script::keep("HTTP/1.1 304 Not Modified\r\nContent-Length: 600\r\n\r\n"),
                Whole(304, ""),
            ),
        ],
    )
    .await;
    let origin =
        ScriptedOrigin::start(|_| Script::keep("HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n"))
            .await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Wire::connect(proxy.address).await;
    client.send("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let response = client.response_to("HEAD").await;
    assert_eq!(response.fields.one("content-length"), Some("600"), "RFC 9110 §9.3.2");
}

#[tokio::test]
async fn bytes_beyond_a_response_answer_no_other_request() {
    let smuggled = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled";
    let with = |head: &str| Script::keep(format!("{head}{smuggled}"));
    table("GET", &[
        ("after a length", with("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"), Either(200, "ab")),
        ("after chunks", with("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"), Either(200, "ab")),
        ("after 204", with("HTTP/1.1 204 No\r\n\r\n"), Either(204, "")),
        ("after 204 with a length", with("HTTP/1.1 204 No\r\ncontent-length: 45\r\n\r\n"), Either(204, "")),
        ("after 304", with("HTTP/1.1 304 No\r\n\r\n"), Either(304, "")),
        ("after 304 with a length", with("HTTP/1.1 304 No\r\ncontent-length: 45\r\n\r\n"), Either(304, "")),
        ("after both framings", with("HTTP/1.1 200 OK\r\ncontent-length: 45\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), Either(200, "")),
    ])
    .await;
    table(
        "HEAD",
        &[("after HEAD", with("HTTP/1.1 200 OK\r\ncontent-length: 45\r\n\r\n"), Either(200, ""))],
    )
    .await;
}

#[tokio::test]
async fn fields_of_the_origins_hop_stay_there() {
    let origin = ScriptedOrigin::start(|_| {
        Script::keep(
            "HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\n\
             Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nX-Stays: 2\r\nSet-Cookie: a=1\r\n\
             Set-Cookie: b=2\r\nContent-Length: 0\r\n\r\n",
        )
    })
    .await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Wire::connect(proxy.address).await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let fields = client.response().await.fields;
    for gone in ["x-hop", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(fields.all(gone).count(), 0, "{gone} in {fields:?}");
    }
    assert!(!fields.lists("connection", "x-hop"), "{fields:?}");
    assert_eq!(fields.one("x-stays"), Some("2"));
    assert_eq!(fields.all("set-cookie").collect::<Vec<_>>(), ["a=1", "b=2"]);
}

#[tokio::test]
async fn the_origins_close_is_not_the_clients() {
    let origin = ScriptedOrigin::start(|_| {
        Script::close("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab")
    })
    .await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Wire::connect(proxy.address).await;
    for _ in 0..3 {
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let response = client.response().await;
        assert!(!response.fields.lists("connection", "close"), "{:?}", response.fields);
        assert_eq!(response.body, b"ab");
    }
}

#[tokio::test]
async fn response_trailers_reach_the_client() {
    let origin = ScriptedOrigin::start(|_| {
        Script::keep(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
             2\r\nab\r\n0\r\nX-Sum: 7\r\nContent-Length: 1\r\n\r\n",
        )
    })
    .await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Wire::connect(proxy.address).await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!(response.body, b"ab");
    assert_eq!(response.trailers.one("x-sum"), Some("7"));
    assert_eq!(response.trailers.all("content-length").count(), 0, "RFC 9110 §6.5.1");
}

async fn table(request: &'static str, cases: &[(&str, Script, Want)]) {
    let mut wrong = Vec::new();
    for (name, script, want) in cases {
        let judged = AssertUnwindSafe(judge(request, script, want)).catch_unwind().await;
        if let Err(what) = judged.unwrap_or_else(|panic| Err(panic_text(&*panic))) {
            wrong.push(format!(
                "{request}, {name}: {what}\n    origin sent {}",
                show(&script.bytes)
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// The scripted response to `/first`, then an ordinary one to `/second` on the same connection.
async fn judge(request: &'static str, script: &Script, want: &Want) -> Result<(), String> {
    let (method, version) = request.split_once(' ').unwrap_or((request, "1.1"));
    let first = script.clone();
    let origin = ScriptedOrigin::start(move |request| match request.target.as_str() {
        "/first" => first.clone(),
        _ => Script::keep(SECOND),
    })
    .await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Wire::connect(proxy.address).await;
    client.send(format!("{method} /first HTTP/{version}\r\nHost: a\r\n\r\n")).await;
    if matches!(want, Broken) {
        let (bytes, end) = client.rest().await;
        return match strict::response(&bytes, method) {
            Parsed::Message(r, _) if r.status == 502 => Ok(()),
            Parsed::Message(r, _) if r.until_close && end == End::Reset => Ok(()),
            Parsed::Incomplete => Ok(()),
            _ => Err(format!("{} and {end:?}", show(&bytes))),
        };
    }
    let response = client.next_response(method).await.ok_or("closed without an answer")?;
    let body = String::from_utf8_lossy(&response.body).into_owned();
    let (whole, bad) = match want {
        Whole(status, body) => (Some((*status, *body)), false),
        Either(status, body) => (Some((*status, *body)), true),
        Bad | Broken => (None, true),
    };
    let as_sent = whole.is_some_and(|(status, text)| response.status == status && body == text);
    let refused = bad && response.status == 502;
    if !as_sent && !refused {
        return Err(format!("status {}, body {body:?}", response.status));
    }
    // Whatever came before, the next answer is the next request's.
    if !client.try_send("GET /second HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await {
        return Ok(());
    }
    let (rest, _) = client.rest().await;
    match strict::response(&rest, "GET") {
        _ if rest.is_empty() => Ok(()),
        Parsed::Message(r, length)
            if r.status == 200 && r.body == b"second" && length == rest.len() =>
        {
            Ok(())
        }
        _ => Err(format!("the next request was answered {}", show(&rest))),
    }
}
