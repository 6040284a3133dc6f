//! Frames where they may not be, with what they may not hold, and all that may come.

use std::time::Duration;

use tokio::time::timeout;
use towpath_tests::{
    Proxy,
    frames::{
        ACK, CANCEL, COMPRESSION_ERROR, CONTINUATION, DATA, ENABLE_PUSH, END_HEADERS, END_STREAM,
        FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, GET, GOAWAY, HEADER_TABLE_SIZE, HEADERS,
        INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, PADDED, PING, POST, PRIORITY, PROTOCOL_ERROR,
        PUSH_PROMISE, RST_STREAM, SETTINGS, STREAM_CLOSED, Verdict, WINDOW_UPDATE, frame, headers,
        integer, reset, section, setting, window,
    },
};

use super::{SERVED, announced, connect, framed, good, good_request, report, said};

/// Sends these bytes on connections of their own; each has to end with GOAWAY of such a code.
async fn each_ends_its_connection(proxy: &Proxy, cases: &[(&str, Vec<u8>, u32)]) {
    let mut wrong = Vec::new();
    for (name, bytes, expected) in cases {
        let mut client = connect(proxy).await;
        client.wire.try_send(bytes).await;
        let told = async {
            let mut code = None;
            while let Some(next) = client.next().await {
                if next.kind == GOAWAY && next.code() != 0 {
                    code = code.or(Some(next.code()));
                }
            }
            code
        };
        // §5.4.1: it SHOULD say GOAWAY and MUST close.
        match timeout(Duration::from_secs(5), told).await {
            Ok(Some(code)) if code == *expected => {}
            Ok(code) => wrong.push(format!("{name}: {code:?}, not {expected}")),
            Err(_) => wrong.push(format!("{name}: still open")),
        }
        let next = good(&mut connect(proxy).await, 1).await;
        if next != SERVED {
            wrong.push(format!("after {name}: {next:?}"));
        }
    }
    report(&wrong);
}

#[tokio::test]
async fn frames_in_the_wrong_place_end_the_connection() {
    let (_origin, proxy) = framed().await;
    let get = || section(GET);
    let open = |more: Vec<u8>| [headers(0, 1, POST), more].concat();
    let begun = |more: Vec<u8>| [frame(HEADERS, END_STREAM, 1, get()), more].concat();
    let promise = [&2_u32.to_be_bytes()[..], &get()].concat();
    let p = PROTOCOL_ERROR;
    each_ends_its_connection(
        &proxy,
        &[
            ("DATA on an idle stream", frame(DATA, 0, 1, "x"), p),
            ("RST_STREAM on an idle stream", reset(1, CANCEL), p),
            ("WINDOW_UPDATE on an idle stream", window(1, 1), p),
            ("CONTINUATION on an idle stream", frame(CONTINUATION, END_HEADERS, 1, get()), p),
            ("CONTINUATION after a whole head", open(frame(CONTINUATION, END_HEADERS, 1, [])), p),
            ("DATA on 0", frame(DATA, 0, 0, "x"), p),
            ("HEADERS on 0", headers(END_STREAM, 0, GET), p),
            ("RST_STREAM on 0", reset(0, CANCEL), p),
            ("PRIORITY on 0", frame(PRIORITY, 0, 0, [0, 0, 0, 3, 1]), p),
            ("SETTINGS on a stream", frame(SETTINGS, 0, 1, []), p),
            ("PING on a stream", frame(PING, 0, 1, [0; 8]), p),
            ("GOAWAY on a stream", open(frame(GOAWAY, 0, 1, [0; 8])), p),
            ("PUSH_PROMISE", open(frame(PUSH_PROMISE, END_HEADERS, 1, promise)), p),
            ("an even stream", headers(END_STREAM, 2, GET), p),
            (
                "a stream below one before",
                [headers(0, 5, POST), headers(END_STREAM, 3, GET)].concat(),
                p,
            ),
            ("PING within a head", begun(frame(PING, 0, 0, [0; 8])), p),
            ("DATA within a head", begun(frame(DATA, 0, 1, "x")), p),
            ("another head within a head", begun(headers(END_STREAM, 3, GET)), p),
            ("CONTINUATION of another", begun(frame(CONTINUATION, END_HEADERS, 3, [])), p),
            ("an unknown frame within a head", begun(frame(0xfa, 0, 1, [])), p),
            ("DATA all of padding", open(frame(DATA, PADDED, 1, [3, 0, 0])), p),
            ("HEADERS all of padding", frame(HEADERS, PADDED | END_HEADERS, 1, [9, 0, 0]), p),
        ],
    )
    .await;
}

#[tokio::test]
async fn frames_with_impossible_content_end_the_connection() {
    let (_origin, proxy) = framed().await;
    let said = announced(&proxy).await;
    let open = |more: Vec<u8>| [headers(0, 1, POST), more].concat();
    let too_long = vec![0; said[&MAX_FRAME_SIZE] as usize + 1];
    let block = |block: &[u8]| frame(HEADERS, END_STREAM | END_HEADERS, 1, block);
    let table = integer(0x20, 5, said[&HEADER_TABLE_SIZE] as usize + 1);
    let raised = [window(1, 0x7fff_ffff - 65_535), setting(INITIAL_WINDOW_SIZE, 65_536)].concat();
    let (p, f, s, c) = (PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, COMPRESSION_ERROR);
    each_ends_its_connection(
        &proxy,
        &[
            ("WINDOW_UPDATE by nothing", window(0, 0), p),
            ("a window beyond 31 bits", window(0, 0x7fff_ffff), f),
            ("a stream's window raised beyond 31 bits", open(raised), f),
            ("an initial window beyond 31 bits", setting(INITIAL_WINDOW_SIZE, 1 << 31), f),
            ("frames below 16384", setting(MAX_FRAME_SIZE, 16_383), p),
            ("frames beyond 24 bits", setting(MAX_FRAME_SIZE, 1 << 24), p),
            ("ENABLE_PUSH of 2", setting(ENABLE_PUSH, 2), p),
            ("SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, [0; 5]), s),
            ("SETTINGS ACK with a payload", frame(SETTINGS, ACK, 0, [0, 1, 0, 0, 0, 0]), s),
            ("PING of 7 bytes", frame(PING, 0, 0, [0; 7]), s),
            ("PING of 9 bytes", frame(PING, 0, 0, [0; 9]), s),
            ("WINDOW_UPDATE of 3 bytes", frame(WINDOW_UPDATE, 0, 0, [0, 0, 1]), s),
            ("WINDOW_UPDATE of 5 bytes", open(frame(WINDOW_UPDATE, 0, 1, [0, 0, 0, 1, 0])), s),
            ("RST_STREAM of 3 bytes", open(frame(RST_STREAM, 0, 1, [0; 3])), s),
            ("RST_STREAM of 5 bytes", open(frame(RST_STREAM, 0, 1, [0; 5])), s),
            ("GOAWAY of 7 bytes", frame(GOAWAY, 0, 0, [0; 7]), s),
            ("too long HEADERS", block(&too_long), s),
            ("a too long unknown frame", frame(0xfa, 0, 0, &too_long[..]), s),
            ("index 0", block(&[0x80]), c),
            ("an index beyond the table", block(&[0xbe]), c),
            ("a name beyond the table", block(&[0x7e, 1, b'x']), c),
            ("an index of too many bits", block(&[[0xff; 12].as_slice(), &[1]].concat()), c),
            ("a name cut off", block(&[0, 5, b'x']), c),
            ("a value cut off", block(&[0, 1, b'x', 5, b'y']), c),
            ("a length cut off", block(&[0, 127, 0x80]), c),
            ("EOS in a Huffman code", block(&[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]), c),
            ("a byte of Huffman padding", block(&[0, 1, b'x', 0x82, 0x1f, 0xff]), c),
            ("Huffman padding of zeros", block(&[0, 1, b'x', 0x81, 0x18]), c),
            ("a larger table than allowed", block(&[&table[..], &section(GET)].concat()), c),
        ],
    )
    .await;
}

#[tokio::test]
async fn an_error_of_a_stream_leaves_the_connection_alive() {
    let (origin, proxy) = framed().await;
    let (mut client, mut stream) = (connect(&proxy).await, 1);
    let mut wrong = Vec::new();
    type Piece = fn(u32) -> Vec<u8>;
    let cases: &[(&str, Piece, u32)] = &[
        (
            "WINDOW_UPDATE by nothing",
            |s| [headers(0, s, POST), window(s, 0)].concat(),
            PROTOCOL_ERROR,
        ),
        (
            "a window too large",
            |s| [headers(0, s, POST), window(s, 0x7fff_ffff)].concat(),
            FLOW_CONTROL_ERROR,
        ),
        (
            "DATA after the end",
            |s| [headers(END_STREAM, s, GET), frame(DATA, 0, s, "x")].concat(),
            STREAM_CLOSED,
        ),
        ("a head after the end", |s| headers(END_STREAM, s, GET).repeat(2), STREAM_CLOSED),
        (
            "PRIORITY of 4 bytes",
            |s| [headers(0, s, POST), frame(PRIORITY, 0, s, [0; 4])].concat(),
            FRAME_SIZE_ERROR,
        ),
    ];
    for (name, bytes, expected) in cases {
        client.wire.try_send(bytes(stream)).await;
        let told = said(&mut client, stream).await;
        let next = good(&mut client, stream + 2).await;
        if told != Some(Verdict::Reset(*expected)) || next != SERVED {
            wrong.push(format!("{name}: {told:?}, not {expected}; then {next:?}"));
            (client, stream) = (connect(&proxy).await, 1);
            continue;
        }
        stream += 4;
    }
    let whole = origin.take().iter().filter(|(_, f)| f.kind == DATA).count();
    assert_eq!(whole, cases.len(), "DATA of good requests alone, of {wrong:?}");
    report(&wrong);
}

#[tokio::test]
async fn a_stream_that_was_closed_is_not_opened_again() {
    let (_origin, proxy) = framed().await;
    let mut wrong = Vec::new();
    let again: [(&str, Vec<u8>); 2] =
        [("HEADERS", headers(END_STREAM, 1, GET)), ("DATA", frame(DATA, END_STREAM, 1, "x"))];
    for (name, frames) in &again {
        // Reset before or after its answer.
        for answered in [true, false] {
            let mut client = connect(&proxy).await;
            if answered {
                assert_eq!(good(&mut client, 1).await, SERVED);
            } else {
                client.send(headers(0, 1, POST)).await;
            }
            client.send(reset(1, CANCEL)).await;
            assert!(client.settled().await, "a reset is no error");
            client.send(frames).await;
            let told = said(&mut client, 1).await;
            // §5.1, closed: a stream error, or for a new head §5.1.1's connection error.
            if !matches!(told, Some(Verdict::Reset(5) | Verdict::GoAway(1 | 5))) {
                wrong.push(format!("{name}, answered {answered}: {told:?}"));
            }
        }
    }
    report(&wrong);
}

#[tokio::test]
async fn what_a_peer_may_say_harms_nothing() {
    let (_origin, proxy) = framed().await;
    let head = section(POST);
    let prioritised = [&[0x80, 0, 0, 0, 7], &head[..]].concat();
    let padded = [&[5, 0, 0, 0, 0, 7], &head[..], &[0; 5]].concat();
    let data = || frame(DATA, END_STREAM, 1, "ok");
    let before = |more: Vec<u8>| [more, good_request(1)].concat();
    let between = |more: Vec<u8>| [headers(0, 1, POST), more, data()].concat();
    let mut reserved = good_request(1);
    reserved[5] |= 0x80;
    let split = head.iter().enumerate().flat_map(|(n, byte)| {
        let last = if n + 1 == head.len() { END_HEADERS } else { 0 };
        frame(if n == 0 { HEADERS } else { CONTINUATION }, last, 1, [*byte])
    });
    let split = split.chain(data()).collect();
    let mut wrong = Vec::new();
    for (name, bytes) in [
        ("an unknown frame", before(frame(0xfa, 0xff, 0, [1; 100]))),
        ("an unknown frame on a stream", between(frame(0xfa, 0xff, 1, [1; 100]))),
        ("an unknown frame on an idle stream", before(frame(0xfa, 0, 7, []))),
        ("an unknown setting", before(setting(0xfafa, 1))),
        ("undefined flags of HEADERS", [frame(HEADERS, 0xc4, 1, head.clone()), data()].concat()),
        ("undefined flags of SETTINGS", before(frame(SETTINGS, 0xfe, 0, []))),
        ("undefined flags of PING", before(frame(PING, 0xfe, 0, [7; 8]))),
        ("the reserved bit of a stream", reserved),
        ("PRIORITY on an idle stream", before(frame(PRIORITY, 0, 9, [0, 0, 0, 1, 7]))),
        ("HEADERS with a priority", [frame(HEADERS, 0x24, 1, prioritised), data()].concat()),
        ("padding and priority", [frame(HEADERS, 0x2c, 1, padded), data()].concat()),
        ("padding of nothing", between(frame(DATA, PADDED, 1, [0]))),
        ("padding alone", between(frame(DATA, PADDED, 1, [4, 0, 0, 0, 0]))),
        ("a head of a byte at a time", split),
        ("GOAWAY amid a request", between(frame(GOAWAY, 0, 0, [0; 8]))),
        ("the same setting thrice", before(setting(INITIAL_WINDOW_SIZE, 7).repeat(3))),
    ] {
        let mut client = connect(&proxy).await;
        client.send(&bytes).await;
        let verdict = client.verdict(1).await;
        if verdict != Verdict::Status(200) {
            wrong.push(format!("{name}: {verdict:?}"));
        }
    }
    // What crosses a reset on its way is to be expected (§5.1, closed).
    let mut client = connect(&proxy).await;
    let late = frame(PRIORITY, 0, 1, [0, 0, 0, 0, 1]);
    client
        .send(
            [headers(0, 1, POST), reset(1, CANCEL), window(1, 5), reset(1, CANCEL), late].concat(),
        )
        .await;
    let verdict = good(&mut client, 3).await;
    if verdict != SERVED {
        wrong.push(format!("frames after a reset: {verdict:?}"));
    }
    // RFC 7540 made it an error, RFC 9113 §5.3.2 has nobody read it.
    let mut client = connect(&proxy).await;
    let own = frame(PRIORITY, 0, 1, [0, 0, 0, 1, 1]);
    client.send([headers(0, 1, POST), own, data()].concat()).await;
    let verdict = client.verdict(1).await;
    if !matches!(verdict, Verdict::Status(200) | Verdict::Reset(1) | Verdict::GoAway(1)) {
        wrong.push(format!("a stream that depends on itself: {verdict:?}"));
    }
    report(&wrong);
}

#[tokio::test]
async fn a_ping_is_answered_with_its_own_bytes() {
    let (_origin, proxy) = framed().await;
    let mut client = connect(&proxy).await;
    client.send([headers(0, 1, POST), frame(PING, 0, 0, *b"12345678")].concat()).await;
    loop {
        let next = client.any().await.expect("an answer, not the end");
        if next.kind == PING && next.flags & ACK != 0 {
            assert_eq!((next.stream, &next.payload[..]), (0, &b"12345678"[..]));
            break;
        }
    }
}

#[tokio::test]
async fn goaway_names_the_last_stream_that_the_origin_heard_of() {
    let (_origin, proxy) = framed().await;
    let mut client = connect(&proxy).await;
    assert_eq!(good(&mut client, 1).await, SERVED);
    assert_eq!(good(&mut client, 3).await, SERVED);
    client.send(frame(DATA, 0, 0, "x")).await;
    let goodbye = client.next_of(&[GOAWAY]).await;
    // §6.8: a stream above may be sent again, which would be a duplicate of what was done.
    assert_eq!(goodbye.payload[..4], 3_u32.to_be_bytes());
}
