//! Field sections: what is refused, what it leaves behind, and how it is compressed.

use towpath_tests::{
    Proxy, Seen, StrictOrigin,
    frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, FrameOrigin, GET, HEADERS,
        MAX_HEADER_LIST_SIZE, POST, PROTOCOL_ERROR, SETTINGS, Verdict, frame, headers,
        refers_to_entries, section,
    },
};

use super::{SERVED, announced, connect, framed_origin, good, report, said};

/// RFC 9113 §8.1.1: a stream error of type PROTOCOL_ERROR, or an answer that tells a person.
fn is_refusal(verdict: Option<Verdict>) -> bool {
    matches!(verdict, Some(Verdict::Reset(PROTOCOL_ERROR) | Verdict::Status(400..500)))
}

/// HEADERS and as many CONTINUATION as a field section needs.
fn long_headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    let pieces: Vec<&[u8]> = block.chunks(16_384).collect();
    let encode = |(n, piece): (usize, &&[u8])| {
        let last = if n + 1 == pieces.len() { END_HEADERS } else { 0 };
        match n {
            0 => frame(HEADERS, flags | last, stream, *piece),
            _ => frame(CONTINUATION, last, stream, *piece),
        }
    };
    pieces.iter().enumerate().flat_map(encode).collect()
}

/// The two kinds of origins, and how many requests they heard of and heard whole.
struct Origins {
    strict: StrictOrigin,
    framed: FrameOrigin,
}

impl Origins {
    async fn start() -> Self {
        Self { strict: StrictOrigin::start().await, framed: framed_origin().await }
    }

    async fn proxy(&self, protocol: &str) -> Proxy {
        let address = if protocol == "HTTP" { self.strict.address } else { self.framed.address };
        Proxy::before(protocol, &[address]).await
    }

    fn heard_and_whole(&self) -> (usize, usize) {
        let (strict, framed) = (self.strict.take(), self.framed.take());
        let whole = strict.iter().filter(|s| matches!(s, Seen::Request(_))).count();
        let frames = |test: fn(&Frame) -> bool| framed.iter().filter(|(_, f)| test(f)).count();
        let ended = |f: &Frame| matches!(f.kind, DATA | HEADERS) && f.flags & END_STREAM != 0;
        (strict.len() + frames(|f| f.kind == HEADERS), whole + frames(ended))
    }
}

#[tokio::test]
async fn a_malformed_head_harms_no_neighbour_and_reaches_no_origin() {
    let with = |name, value| [GET, &[(name, value)]].concat();
    let without = |name: &str| GET.iter().copied().filter(|(n, _)| *n != name).collect::<Vec<_>>();
    let path = |path| [&GET[..3], &[(":path", path)]].concat();
    let cases = [
        ("a fragment", path("/x#y")),
        ("a bare fragment", path("#y")),
        ("DEL in a name", with("x\u{7f}", "1")),
        ("a byte beyond ASCII in a name", with("x\u{e9}", "1")),
        ("upper case", with("X-Upper", "1")),
        ("an empty name", with("", "1")),
        ("CR", with("x", "a\rb")),
        ("LF", with("x", "a\nb")),
        ("NUL", with("x", "a\0b")),
        ("a space before a value", with("x", " a")),
        ("a space after a value", with("x", "a ")),
        ("a tab before a value", with("x", "\ta")),
        ("a tab after a value", with("x", "a\t")),
        ("a value of a space", with("x", " ")),
        ("connection", with("connection", "x")),
        ("transfer-encoding", with("transfer-encoding", "chunked")),
        ("te", with("te", "gzip")),
        ("a pseudo-header after a field", [&GET[..3], &[("x", "1"), (":path", "/x")]].concat()),
        ("two :path", with(":path", "/x")),
        ("two :scheme", with(":scheme", "http")),
        ("two :method", with(":method", "GET")),
        ("no :path", without(":path")),
        ("no :method", without(":method")),
        ("no :scheme", without(":scheme")),
        ("no field at all", Vec::new()),
        (":status", with(":status", "200")),
        (":protocol, which we never allowed", with(":protocol", "websocket")),
        ("a length and no body", with("content-length", "2")),
        ("a length of +0", with("content-length", "+0")),
        ("a length of -0", with("content-length", "-0")),
        ("a length in hexadecimal", with("content-length", "0x0")),
        ("an empty length", with("content-length", "")),
        ("a huge length", with("content-length", "18446744073709551616")),
        ("a length that wraps to 0", with("content-length", "36893488147419103232")),
        ("unequal lengths", [GET, &[("content-length", "0"), ("content-length", "1")]].concat()),
        ("unequal lengths in one field", with("content-length", "0, 1")),
    ];
    let mut wrong = Vec::new();
    for protocol in ["HTTP", "HTTP2"] {
        let origins = Origins::start().await;
        let proxy = origins.proxy(protocol).await;
        let (mut client, mut stream) = (connect(&proxy).await, 1);
        for (name, fields) in &cases {
            client.wire.try_send(headers(END_STREAM, stream, fields)).await;
            let refused = said(&mut client, stream).await;
            let next = good(&mut client, stream + 2).await;
            let heard = origins.heard_and_whole();
            if !is_refusal(refused) || next != SERVED || heard.0 != 1 {
                wrong.push(format!("{protocol}, {name}: {refused:?}, {next:?}, heard {heard:?}"));
                (client, stream) = (connect(&proxy).await, 1);
                continue;
            }
            stream += 4;
        }
    }
    report(&wrong);
}

#[tokio::test]
async fn a_request_that_goes_wrong_after_its_head_is_never_whole() {
    type Rest = fn(u32) -> Vec<Vec<u8>>;
    const AB: fn(u32) -> Vec<u8> = |s| frame(DATA, 0, s, "ab");
    let cases: &[(&str, &str, Rest)] = &[
        ("fewer bytes", "5", |s| vec![frame(DATA, END_STREAM, s, "abc")]),
        ("more bytes", "3", |s| vec![frame(DATA, END_STREAM, s, "abcd")]),
        ("late bytes", "2", |s| vec![AB(s), frame(DATA, END_STREAM, s, "c")]),
        ("no bytes", "5", |s| vec![frame(DATA, END_STREAM, s, "")]),
        ("fewer bytes, then trailers", "5", |s| vec![AB(s), headers(END_STREAM, s, &[("x", "y")])]),
        (":path at the end", "", |s| vec![AB(s), headers(END_STREAM, s, &[(":path", "/y")])]),
        (":status at the end", "", |s| vec![AB(s), headers(END_STREAM, s, &[(":status", "200")])]),
        ("a pseudo-header last", "", |s| {
            vec![AB(s), headers(END_STREAM, s, &[("x", "y"), (":method", "GET")])]
        }),
        ("upper case", "", |s| vec![AB(s), headers(END_STREAM, s, &[("X", "y")])]),
        ("a line end", "", |s| vec![AB(s), headers(END_STREAM, s, &[("x", "y\nz")])]),
        ("a connection field", "", |s| {
            vec![AB(s), headers(END_STREAM, s, &[("transfer-encoding", "chunked")])]
        }),
        ("trailers that do not end it", "", |s| vec![AB(s), headers(0, s, &[("x", "y")])]),
    ];
    let mut wrong = Vec::new();
    for protocol in ["HTTP", "HTTP2"] {
        let origins = Origins::start().await;
        let proxy = origins.proxy(protocol).await;
        for (name, length, rest) in cases {
            if (protocol, *name) == ("HTTP", "late bytes") {
                // With HTTP/1.1 it was whole by its length before the rest came.
                continue;
            }
            let mut client = connect(&proxy).await;
            let length = Some(("content-length", *length)).filter(|(_, l)| !l.is_empty());
            client.send(headers(0, 1, &[POST, length.as_slice()].concat())).await;
            for piece in rest(1) {
                client.wire.try_send(piece).await;
            }
            let refused = said(&mut client, 1).await;
            let next = good(&mut client, 3).await;
            let whole = origins.heard_and_whole().1;
            if !is_refusal(refused) || next != SERVED || whole != 1 {
                wrong.push(format!("{protocol}, {name}: {refused:?}, {next:?}, {whole} whole"));
            }
        }
    }
    report(&wrong);
}

#[tokio::test]
async fn what_is_refused_still_changes_the_compression_table() {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let limit = announced(&proxy).await.get(&MAX_HEADER_LIST_SIZE).copied().unwrap_or(64 << 10);
    let entry = b"\x40\x06x-sync\x04kept";
    let post = section(POST);
    let small = section(&[("a", "b")]);
    let tiny = small.repeat(limit as usize / 34 + 100);
    let large = section(&[("a", &"b".repeat(8000))]).repeat(limit as usize / 8033 + 2);
    let upper = section(&[("X", "y")]);
    let mut wrong = Vec::new();
    for (name, head, trailers, codes) in [
        ("malformed", [&post, &upper, &entry[..]].concat(), None, 400..=499),
        ("too many fields", [&post, &tiny, &entry[..]].concat(), None, 431..=431),
        ("too large fields", [&post, &large, &entry[..]].concat(), None, 431..=431),
        ("bad trailers", post.clone(), Some([&upper, &entry[..]].concat()), 400..=499),
        ("large trailers", post.clone(), Some([&large, &entry[..]].concat()), 400..=499),
    ] {
        let mut client = connect(&proxy).await;
        let end = if trailers.is_some() { 0 } else { END_STREAM };
        let mut bytes = long_headers(end, 1, &head);
        bytes.extend(trailers.iter().flat_map(|t| long_headers(END_STREAM, 1, t)));
        client.wire.try_send(bytes).await;
        match client.verdict(1).await {
            Verdict::Status(status) if codes.contains(&status) => {}
            Verdict::Reset(_) => {}
            // §10.5.1: "unless the connection is closed".
            Verdict::GoAway(_) if name.contains("large") || name.contains("many") => {
                origin.take();
                continue;
            }
            other => wrong.push(format!("{name}: {other:?}")),
        }
        let next = [&post[..], &[0xbe]].concat();
        client.wire.try_send(frame(HEADERS, END_STREAM | END_HEADERS, 3, next)).await;
        let verdict = client.verdict(3).await;
        let whole = origin.take().into_iter().filter_map(|seen| match seen {
            Seen::Request(request) => Some(request.fields.one("x-sync").map(str::to_owned)),
            _ => None,
        });
        let whole: Vec<_> = whole.collect();
        if verdict != Verdict::Status(200) || whole != [Some("kept".to_owned())] {
            wrong.push(format!("after {name}: {verdict:?}, the origin heard {whole:?}"));
        }
    }
    report(&wrong);
}

#[tokio::test]
async fn a_client_without_a_table_is_sent_no_reference_to_one() {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = connect(&proxy).await;
    let (mut acknowledged, mut first) = (false, true);
    for stream in [1, 3, 5] {
        client.send(headers(END_STREAM, stream, GET)).await;
        let block = loop {
            let next = client.any().await.expect("an answer, not the end");
            acknowledged |= next.kind == SETTINGS && next.flags & ACK != 0;
            if next.kind == HEADERS {
                break next.payload;
            }
        };
        assert!(acknowledged, "settings that came first are acknowledged first");
        // §4.3.1: the next field block MUST start with the size that was reduced.
        let update = !std::mem::take(&mut first) || block[0] == 0x20;
        assert!(update, "no update of the size: {block:02x?}");
        assert_eq!(refers_to_entries(&block), Some(false), "{block:02x?}");
    }
}
