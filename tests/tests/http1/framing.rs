//! Where one request ends and the next begins: malformed and ambiguous framing
//! is refused with a clear 4xx and a close, or repaired so that the origin sees
//! exactly one request.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use towpath_tests::{Proxy, Seen, StrictOrigin, Wire, echo, panic_text, show};

/// What may become of a case.
enum Want {
    /// One of these statuses and a close; the origin sees no request.
    Refused(&'static [u16]),
    /// The origin sees one request with this body.
    Once(&'static str),
    /// Either of the two.
    Either(&'static [u16], &'static str),
}
use Want::{Either, Once, Refused};

/// RFC 9112 §6.1: 501 is what an unknown transfer coding should get.
const BAD: &[u16] = &[400];
const BAD_CODING: &[u16] = &[400, 501];
const BAD_VERSION: &[u16] = &[400, 505];
const TOO_LARGE: &[u16] = &[400, 413, 431];

#[tokio::test]
async fn ambiguous_lengths_are_refused_or_read_in_the_one_permitted_way() {
    // A body that a reader of the other length would take for a request.
    let chunked_first = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let length_first = "27\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\nX: 123\r\n0\r\n\r\n";
    assert_eq!(length_first.len(), 4 + 0x27 + 7);
    let post = |fields: &str, body: &str| {
        format!("POST /one HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}")
    };
    let te = "Transfer-Encoding: chunked";
    table(&[
        (
            "CL.TE",
            post(&format!("Content-Length: {}\r\n{te}", chunked_first.len()), chunked_first),
            Either(BAD, ""),
        ),
        (
            "TE.CL",
            post(&format!("{te}\r\nContent-Length: 4"), length_first),
            Either(BAD, "GET /smuggled HTTP/1.1\r\nHost: a\r\nX: 123"),
        ),
        (
            "CL 0 and TE",
            post(&format!("Content-Length: 0\r\n{te}"), "1\r\na\r\n0\r\n\r\n"),
            Either(BAD, "a"),
        ),
        ("equal lengths", post("Content-Length: 1\r\nContent-Length: 1", "a"), Either(BAD, "a")),
        ("an equal list", post("Content-Length: 1,1", "a"), Either(BAD, "a")),
        ("unequal lengths", post("Content-Length: 1\r\nContent-Length: 2", "ab"), Refused(BAD)),
        ("an unequal list", post("Content-Length: 1, 2", "ab"), Refused(BAD)),
        ("plus", post("Content-Length: +1", "a"), Refused(BAD)),
        ("minus", post("Content-Length: -1", "a"), Refused(BAD)),
        ("minus zero", post("Content-Length: -0", ""), Refused(BAD)),
        ("hexadecimal", post("Content-Length: 0x1", "a"), Refused(BAD)),
        ("a fraction", post("Content-Length: 1.0", "a"), Refused(BAD)),
        ("an exponent", post("Content-Length: 1e0", "a"), Refused(BAD)),
        ("a space within", post("Content-Length: 1 1", "a"), Refused(BAD)),
        ("nothing", post("Content-Length:", ""), Refused(BAD)),
        ("a comma", post("Content-Length: ,", ""), Refused(BAD)),
        ("quoted", post("Content-Length: \"1\"", "a"), Refused(BAD)),
        ("beyond 64 bits", post("Content-Length: 18446744073709551617", "a"), Refused(TOO_LARGE)),
        ("a vertical tab", post("Content-Length:\x0b1", "a"), Refused(BAD)),
        ("leading zeros", post("Content-Length: 0000000001", "a"), Once("a")),
        ("surrounding white space", post("Content-Length: \t 1 \t", "a"), Once("a")),
    ])
    .await;
}

#[tokio::test]
async fn transfer_codings_other_than_a_last_chunked_are_refused() {
    let post = |fields: &str| {
        format!(
            "POST /one HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n1\r\na\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        )
    };
    let single = |fields: &str| {
        format!("POST /one HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n1\r\na\r\n0\r\n\r\n")
    };
    let old =
        "POST /one HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
    let old_both = old.replace("\r\n\r\n1", "\r\nContent-Length: 11\r\n\r\n1");
    table(&[
        ("chunked twice", post("Transfer-Encoding: chunked, chunked"), Refused(BAD_CODING)),
        (
            "chunked twice in two fields",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
            Refused(BAD_CODING),
        ),
        ("identity", post("Transfer-Encoding: identity"), Refused(BAD_CODING)),
        (
            "identity after chunked",
            post("Transfer-Encoding: chunked, identity"),
            Refused(BAD_CODING),
        ),
        (
            "identity in a second field",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
            Refused(BAD_CODING),
        ),
        (
            "identity with a length",
            post("Transfer-Encoding: identity\r\nContent-Length: 11"),
            Refused(BAD_CODING),
        ),
        ("xchunked", post("Transfer-Encoding: xchunked"), Refused(BAD_CODING)),
        ("chunked in quotes", post("Transfer-Encoding: \"chunked\""), Refused(BAD_CODING)),
        ("chunked with a parameter", post("Transfer-Encoding: chunked;q=1"), Refused(BAD_CODING)),
        (
            "a vertical tab before chunked",
            post("Transfer-Encoding: \x0bchunked"),
            Refused(BAD_CODING),
        ),
        (
            "a no-break space before chunked",
            post("Transfer-Encoding: \u{a0}chunked"),
            Refused(BAD_CODING),
        ),
        ("empty", post("Transfer-Encoding:"), Refused(BAD_CODING)),
        ("white space before the colon", post("Transfer-Encoding : chunked"), Refused(BAD)),
        ("white space before the colon of a length", post("Content-Length : 11"), Refused(BAD)),
        ("a folded coding", single("Transfer-Encoding:\r\n chunked"), Either(BAD, "a")),
        (
            "a folded length",
            single("X: 1\r\n Content-Length: 11\r\nTransfer-Encoding: chunked"),
            Either(BAD, "a"),
        ),
        ("upper case", single("TRANSFER-ENCODING: CHUNKED"), Once("a")),
        ("an empty element", single("Transfer-Encoding: , chunked"), Either(BAD_CODING, "a")),
        ("HTTP/1.0", old.to_owned(), Either(BAD, "a")),
        ("HTTP/1.0 with both", old_both, Either(BAD, "a")),
    ])
    .await;
}

#[tokio::test]
async fn chunks_are_read_to_the_letter() {
    let post = |body: &str| {
        format!("POST /one HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
    };
    let long_extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(64 * 1024));
    let many_extensions =
        format!("{}0\r\n\r\n", format!("1;{}\r\na\r\n", "y".repeat(4000)).repeat(100));
    let long_trailer = format!("1\r\na\r\n0\r\nX: {}\r\n\r\n", "x".repeat(300 * 1024));
    table(&[
        ("extensions", post("1;a=b;c=\"d\"\r\na\r\n0;e\r\n\r\n"), Once("a")),
        ("bad white space before an extension", post("1 ; a\r\na\r\n0\r\n\r\n"), Either(BAD, "a")),
        ("leading zeros", post("0000000000000001\r\na\r\n0\r\n\r\n"), Once("a")),
        ("upper case digits", post("A\r\n0123456789\r\n0\r\n\r\n"), Once("0123456789")),
        ("a size beyond 64 bits", post("10000000000000001\r\na\r\n0\r\n\r\n"), Refused(TOO_LARGE)),
        ("a size of 64 bits", post("ffffffffffffffff0\r\na\r\n0\r\n\r\n"), Refused(TOO_LARGE)),
        ("0x", post("0x1\r\na\r\n0\r\n\r\n"), Refused(BAD)),
        ("plus", post("+1\r\na\r\n0\r\n\r\n"), Refused(BAD)),
        ("minus", post("-1\r\na\r\n0\r\n\r\n"), Refused(BAD)),
        ("underscore", post("1_0\r\n0123456789abcdef\r\n0\r\n\r\n"), Refused(BAD)),
        ("no size", post("\r\na\r\n0\r\n\r\n"), Refused(BAD)),
        ("only an extension", post(";a\r\na\r\n0\r\n\r\n"), Refused(BAD)),
        ("white space before the size", post(" 1\r\na\r\n0\r\n\r\n"), Refused(BAD)),
        ("no CRLF after the data", post("1\r\na0\r\n\r\n"), Refused(BAD)),
        ("LF after the data", post("1\r\na\n0\r\n\r\n"), Refused(BAD)),
        ("LF after the size", post("1\na\r\n0\r\n\r\n"), Refused(BAD)),
        ("CR after the size", post("1\ra\r\n0\r\n\r\n"), Refused(BAD)),
        ("LF in an extension", post("1;\na\r\n0\r\n\r\n"), Refused(BAD)),
        ("CR in an extension", post("1;x\rx\r\na\r\n0\r\n\r\n"), Refused(BAD)),
        ("NUL in an extension", post("1;\0\r\na\r\n0\r\n\r\n"), Either(BAD, "a")),
        ("data longer than its size", post("1\r\naa\r\n0\r\n\r\n"), Refused(BAD)),
        ("a long extension", post(&long_extension), Refused(TOO_LARGE)),
        ("many extensions", post(&many_extensions), Refused(TOO_LARGE)),
        ("long trailers", post(&long_trailer), Refused(TOO_LARGE)),
        (
            "a trailer without a colon",
            post("1\r\na\r\n0\r\nGET /smuggled HTTP/1.1\r\n\r\n"),
            Refused(BAD),
        ),
        (
            "white space before a trailer's colon",
            post("1\r\na\r\n0\r\nX : y\r\n\r\n"),
            Refused(BAD),
        ),
    ])
    .await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn lines_end_and_begin_where_the_grammar_says() {
    let get = |fields: &str| format!("GET /one HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let text = str::to_owned;
    table(&[
        ("bare LF throughout", text("GET /one HTTP/1.1\nHost: a\n\n"), Either(BAD, "")),
        (
            "bare LF before a framing field",
            text("POST /one HTTP/1.1\r\nHost: a\r\nX: y\nContent-Length: 1\r\n\r\na"),
            Either(BAD, "a"),
        ),
        ("bare CR between fields", get("X: y\rContent-Length: 30\r\n"), Either(BAD, "")),
        (
            "bare CR in the request line",
            text("GET /one\rHTTP/1.1\r\nHost: a\r\n\r\n"),
            Either(BAD, ""),
        ),
        ("bare CR before a colon", get("X\r: y\r\n"), Refused(BAD)),
        ("CR CR LF", get("X: y\r\r\n"), Either(BAD, "")),
        ("NUL in a value", get("X: a\0b\r\n"), Either(BAD, "")),
        ("NUL in a name", get("X\0: a\r\n"), Refused(BAD)),
        ("NUL in the target", text("GET /o\0ne HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(BAD)),
        ("NUL in the method", text("G\0ET /one HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(BAD)),
        (
            "white space before the first field",
            text("GET /one HTTP/1.1\r\n Host: b\r\nHost: a\r\n\r\n"),
            Either(BAD, ""),
        ),
        (
            "only a field that begins with white space",
            text("GET /one HTTP/1.1\r\n Host: a\r\n\r\n"),
            Refused(BAD),
        ),
        ("a folded line", get("X: a\r\n b\r\n"), Either(BAD, "")),
        (
            "a folded line that looks like framing",
            get("X: a\r\n\tTransfer-Encoding: chunked\r\n"),
            Either(BAD, ""),
        ),
        ("no colon", get("X\r\n"), Refused(BAD)),
        ("no name", get(": y\r\n"), Refused(BAD)),
        ("a name in quotes", get("\"X\": y\r\n"), Refused(BAD)),
        ("a name with a slash", get("X/Y: y\r\n"), Refused(BAD)),
        ("a name outside ASCII", get("X\u{e9}: y\r\n"), Refused(BAD)),
        (
            "empty lines first",
            text("\r\n\r\nGET /one HTTP/1.1\r\nHost: a\r\n\r\n"),
            Either(BAD, ""),
        ),
        ("two words", text("GET /one\r\nHost: a\r\n\r\n"), Refused(BAD_VERSION)),
        ("one word", text("GET\r\nHost: a\r\n\r\n"), Refused(BAD)),
        ("four words", text("GET /one two HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(BAD_VERSION)),
        ("a tab between words", text("GET\t/one HTTP/1.1\r\nHost: a\r\n\r\n"), Either(BAD, "")),
        (
            "two spaces between words",
            text("GET  /one HTTP/1.1\r\nHost: a\r\n\r\n"),
            Either(BAD, ""),
        ),
        (
            "white space before the method",
            text(" GET /one HTTP/1.1\r\nHost: a\r\n\r\n"),
            Either(BAD, ""),
        ),
        (
            "white space after the version",
            text("GET /one HTTP/1.1 \r\nHost: a\r\n\r\n"),
            Either(BAD, ""),
        ),
        (
            "HTTP/2.0 in a request line",
            text("GET /one HTTP/2.0\r\nHost: a\r\n\r\n"),
            Refused(BAD_VERSION),
        ),
        ("HTTP/0.9", text("GET /one HTTP/0.9\r\nHost: a\r\n\r\n"), Refused(BAD_VERSION)),
        ("HTTP/1.2", text("GET /one HTTP/1.2\r\nHost: a\r\n\r\n"), Either(BAD_VERSION, "")),
        ("HTTP/1.01", text("GET /one HTTP/1.01\r\nHost: a\r\n\r\n"), Refused(BAD_VERSION)),
        (
            "http/1.1 in lower case",
            text("GET /one http/1.1\r\nHost: a\r\n\r\n"),
            Refused(BAD_VERSION),
        ),
        ("a method in parentheses", text("G(ET) /one HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(BAD)),
        ("a relative target", text("GET one HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(BAD)),
        ("an empty target", text("GET  HTTP/1.1\r\nHost: a\r\n\r\n"), Refused(BAD)),
        ("TLS to a cleartext port", text("\u{16}\u{3}\u{1}\0\u{5}hello\r\n\r\n"), Refused(BAD)),
    ])
    .await;
}

#[tokio::test]
async fn host_is_one_valid_field() {
    let text = str::to_owned;
    table(&[
        ("missing", text("GET /one HTTP/1.1\r\n\r\n"), Refused(BAD)),
        ("twice", text("GET /one HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), Refused(BAD)),
        ("twice the same", text("GET /one HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), Refused(BAD)),
        ("a list", text("GET /one HTTP/1.1\r\nHost: a, b\r\n\r\n"), Refused(BAD)),
        ("a space", text("GET /one HTTP/1.1\r\nHost: a b\r\n\r\n"), Refused(BAD)),
        ("a path", text("GET /one HTTP/1.1\r\nHost: a/b\r\n\r\n"), Refused(BAD)),
        ("user information", text("GET /one HTTP/1.1\r\nHost: u@a\r\n\r\n"), Refused(BAD)),
        ("a bad port", text("GET /one HTTP/1.1\r\nHost: a:b\r\n\r\n"), Refused(BAD)),
        (
            "a port beyond 65535",
            text("GET /one HTTP/1.1\r\nHost: a:99999\r\n\r\n"),
            Either(BAD, ""),
        ),
        ("an unfinished address", text("GET /one HTTP/1.1\r\nHost: [::1\r\n\r\n"), Refused(BAD)),
        ("characters no host has", text("GET /one HTTP/1.1\r\nHost: a<b>\r\n\r\n"), Refused(BAD)),
        ("missing in HTTP/1.0", text("GET /one HTTP/1.0\r\n\r\n"), Either(BAD, "")),
        ("an IPv6 address", text("GET /one HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"), Once("")),
        ("upper case and a port", text("GET /one HTTP/1.1\r\nHost: A.Test:8080\r\n\r\n"), Once("")),
    ])
    .await;
}

async fn table(cases: &[(&str, String, Want)]) {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut wrong = Vec::new();
    for (name, bytes, want) in cases {
        let judged =
            AssertUnwindSafe(judge(&proxy, &origin, bytes.as_bytes(), want)).catch_unwind().await;
        let judged = judged.unwrap_or_else(|panic| Err(panic_text(&*panic)));
        if let Err(what) = judged {
            wrong.push(format!(
                "{name}: {what}\n    sent {}",
                show(&bytes.as_bytes()[..bytes.len().min(300)])
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

async fn judge(
    proxy: &Proxy,
    origin: &StrictOrigin,
    bytes: &[u8],
    want: &Want,
) -> Result<(), String> {
    let method = if bytes.starts_with(b"POST") { "POST" } else { "GET" };
    let mut client = Wire::connect(proxy.address).await;
    // A proxy that refuses early may not read the rest.
    client.try_send(bytes).await;
    let response = client.next_response(method).await.ok_or("closed without an answer")?;
    // A refused connection closes by itself; another has nothing more to say.
    if response.status < 400 {
        client.finish().await;
    }
    let (rest, _) = client.rest().await;
    let seen = origin.take();
    let requests: Vec<_> =
        seen.iter().filter_map(|s| if let Seen::Request(r) = s { Some(r) } else { None }).collect();
    if let Some(Seen::Malformed(why, bytes)) =
        seen.iter().find(|s| matches!(s, Seen::Malformed(..)))
    {
        return Err(format!("the origin got {why}: {}", show(bytes)));
    }
    if !rest.is_empty() {
        return Err(format!("{} and then {}", response.status, show(&rest)));
    }
    let (refusals, body) = match want {
        Refused(statuses) => (*statuses, None),
        Once(body) => (&[][..], Some(*body)),
        Either(statuses, body) => (*statuses, Some(*body)),
    };
    match (body, &requests[..]) {
        (_, []) if refusals.contains(&response.status) => Ok(()),
        (Some(body), [request]) if response.status == 200 => {
            let expected = echo(method, "/one", body.as_bytes());
            let answered = String::from_utf8_lossy(&response.body);
            let same = request.body == body.as_bytes() && answered == expected;
            if same {
                Ok(())
            } else {
                Err(format!("the origin saw {request:?} and the client {answered}"))
            }
        }
        _ => Err(format!("status {}; the origin saw {seen:?}", response.status)),
    }
}
