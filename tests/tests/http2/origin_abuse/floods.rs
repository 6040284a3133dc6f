//! More than a proxy can keep.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::timeout;
use towpath_tests::{
    Proxy, RawOrigin, Then, Wire,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADER_TABLE_SIZE, HEADERS,
        INITIAL_WINDOW_SIZE, MAX_HEADER_LIST_SIZE, PING, POST, RST_STREAM, SETTINGS, frame,
        headers, section, setting,
    },
};

use super::{Broken, Play, Stage, Whole, fine, head, over_http1, read_http1};

#[tokio::test]
async fn floods_of_an_origin_end_in_an_answer() {
    let stage = Stage::start().await;
    let cases: &[(&str, Play)] = &[
        ("PING", |s| [frame(PING, 0, 0, [7; 8]).repeat(20_000), fine(s)].concat()),
        ("SETTINGS", |s| [setting(INITIAL_WINDOW_SIZE, 65_535).repeat(20_000), fine(s)].concat()),
        ("1xx", |s| {
            [headers(0, s, &[(":status", "103"), ("x", "y")]).repeat(20_000), fine(s)].concat()
        }),
        ("empty DATA", |s| [head(0, s, &[]), frame(DATA, 0, s, "").repeat(50_000)].concat()),
        ("CONTINUATION", |s| {
            let piece = frame(CONTINUATION, 0, s, section(&[("x", "y")]));
            [frame(HEADERS, 1, s, [0x88]), piece.repeat(100_000)].concat()
        }),
        ("empty CONTINUATION", |s| {
            [frame(HEADERS, 1, s, [0x88]), frame(CONTINUATION, 0, s, "").repeat(100_000)].concat()
        }),
        ("a table entry referred to again and again", |s| {
            let entry = [&[0x88, 0x40, 1, b'x', 127, 0xa1, 0x1e], &[b'y'; 4000][..]].concat();
            frame(HEADERS, 5, s, [&entry[..], &[0xbe; 12_000]].concat())
        }),
    ];
    for (name, play) in cases {
        stage.plays(*play, Then::Next);
        let client = async {
            let mut client = Wire::connect(stage.proxy.address).await;
            client.send("GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            if *name == "empty DATA" {
                // An answer without end may be kept open, or broken off.
                let head = client.response_head().await;
                return Whole(head.status, b"fine".to_vec());
            }
            read_http1(&client.rest().await.0, "GET")
        };
        let outcome = timeout(Duration::from_secs(8), client).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("{name}: nothing in time"));
        let bounded = match &outcome {
            Whole(502, _) => true,
            Whole(200, body) => {
                matches!(*name, "PING" | "SETTINGS" | "1xx" | "empty DATA") && body == b"fine"
            }
            Broken(None) => *name == "1xx",
            _ => false,
        };
        assert!(bounded, "{name}: {outcome:?}");
        stage.plays(fine, Then::Next);
        assert_eq!(over_http1(&stage.proxy, "GET").await, Whole(200, b"fine".to_vec()), "{name}");
    }
}

#[tokio::test]
async fn a_huge_head_of_one_answer_harms_no_other_stream() {
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP2", &[origin.address]).await;
    let mut client = Frames::connect_with(proxy.address, &setting(HEADER_TABLE_SIZE, 0)).await;
    client.send([headers(END_STREAM, 1, POST), headers(END_STREAM, 3, POST)].concat()).await;
    let mut upstream = Frames::accept(origin.accept().await, &frame(SETTINGS, 0, 0, [])).await;
    let (mut streams, mut limit) = (Vec::new(), 64 << 10);
    while streams.len() < 2 {
        let next = upstream.any().await.expect("a frame, not the end");
        upstream.acknowledge(&next).await;
        match next.kind {
            HEADERS => streams.push(next.stream),
            SETTINGS => {
                let said = next.settings().get(&MAX_HEADER_LIST_SIZE).copied();
                limit = said.unwrap_or(limit);
            }
            _ => {}
        }
    }
    let field = section(&[("x", &"y".repeat(16_000))]);
    let piece = frame(CONTINUATION, 0, streams[0], field).repeat(limit as usize / 16_000 + 1);
    let last = frame(CONTINUATION, END_HEADERS, streams[0], []);
    upstream.send([frame(HEADERS, END_STREAM, streams[0], [0x88]), piece, last].concat()).await;
    upstream.send(fine(streams[1])).await;
    let (mut answers, mut ended) = (BTreeMap::new(), 0);
    while ended < 2 {
        let next = client.next_of(&[HEADERS, DATA, RST_STREAM, GOAWAY]).await;
        assert_ne!(next.kind, GOAWAY, "{next:?}");
        if next.kind == HEADERS {
            answers.insert(next.stream, next.status());
        }
        ended += usize::from(next.kind == RST_STREAM || next.flags & END_STREAM != 0);
    }
    let (bad, good): (Vec<_>, Vec<_>) = answers.values().partition(|s| **s != 200);
    assert_eq!((bad, good), (vec![&502], vec![&200]));
}
