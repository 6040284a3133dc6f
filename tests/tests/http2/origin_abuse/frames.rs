//! Frames that no origin may send, and those it may send besides an answer.

use std::collections::BTreeSet;

use towpath_tests::{
    Proxy, RawOrigin, Script, Then,
    frames::{
        ACK, CANCEL, CONTINUATION, DATA, ENABLE_PUSH, END_HEADERS, FrameOrigin, Frames, GET,
        GOAWAY, HEADER_TABLE_SIZE, HEADERS, INITIAL_WINDOW_SIZE, INTERNAL_ERROR, MAX_FRAME_SIZE,
        NO_ERROR, PING, PRIORITY, PUSH_PROMISE, SETTINGS, frame, goaway, refers_to_entries, reset,
        section, setting, window,
    },
};

use super::{BadGateway, Expect, Play, WELL, Whole, fine, head, over_http1, table};

#[tokio::test]
async fn frames_that_no_origin_may_send_end_the_connection_alone() {
    table(
        &[
            (
                "PUSH_PROMISE",
                |s| {
                    let promised = [&2_u32.to_be_bytes()[..], &section(GET)].concat();
                    [frame(PUSH_PROMISE, END_HEADERS, s, promised), fine(s)].concat()
                },
                BadGateway,
            ),
            ("DATA on 0", |s| [frame(DATA, 0, 0, "x"), fine(s)].concat(), BadGateway),
            ("HEADERS on 0", |s| [head(1, 0, &[]), fine(s)].concat(), BadGateway),
            ("RST_STREAM on 0", |s| [reset(0, CANCEL), fine(s)].concat(), BadGateway),
            ("PRIORITY on 0", |s| [frame(PRIORITY, 0, 0, [0; 5]), fine(s)].concat(), BadGateway),
            (
                "CONTINUATION on 0",
                |s| [frame(CONTINUATION, 4, 0, []), fine(s)].concat(),
                BadGateway,
            ),
            ("SETTINGS on a stream", |s| [frame(SETTINGS, 0, s, []), fine(s)].concat(), BadGateway),
            ("PING on a stream", |s| [frame(PING, 0, s, [0; 8]), fine(s)].concat(), BadGateway),
            ("GOAWAY on a stream", |s| [frame(GOAWAY, 0, s, [0; 8]), fine(s)].concat(), BadGateway),
            ("HEADERS of its own", |s| [head(1, 2, &[]), fine(s)].concat(), BadGateway),
            ("an idle stream", |s| [head(1, s + 20, &[]), fine(s)].concat(), BadGateway),
            (
                "DATA on an idle stream",
                |s| [frame(DATA, 0, s + 20, ""), fine(s)].concat(),
                BadGateway,
            ),
            ("a reset of an idle stream", |s| [reset(s + 20, 8), fine(s)].concat(), BadGateway),
            ("a window for an idle stream", |s| [window(s + 20, 1), fine(s)].concat(), BadGateway),
            ("a window by nothing", |s| [window(0, 0), fine(s)].concat(), BadGateway),
            ("a window too large", |s| [window(0, 0x7fff_ffff), fine(s)].concat(), BadGateway),
            (
                "an initial window too large",
                |s| [setting(INITIAL_WINDOW_SIZE, 1 << 31), fine(s)].concat(),
                BadGateway,
            ),
            ("ENABLE_PUSH of 1", |s| [setting(ENABLE_PUSH, 1), fine(s)].concat(), BadGateway),
            ("frames below 16384", |s| [setting(MAX_FRAME_SIZE, 1), fine(s)].concat(), BadGateway),
            ("PING of 7 bytes", |s| [frame(PING, 0, 0, [0; 7]), fine(s)].concat(), BadGateway),
            (
                "an ACK with a payload",
                |s| [frame(SETTINGS, ACK, 0, [0; 6]), fine(s)].concat(),
                BadGateway,
            ),
            (
                "a frame within a head",
                |s| [frame(HEADERS, 1, s, [0x88]), frame(PING, 0, 0, [0; 8])].concat(),
                BadGateway,
            ),
            // Its length alone says that it is too long.
            ("a frame of 16 MB", |_| vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1], BadGateway),
            ("an index beyond the table", |s| frame(HEADERS, 5, s, [0x88, 0xfe]), BadGateway),
            ("index 0", |s| frame(HEADERS, 5, s, [0x88, 0x80]), BadGateway),
            ("a field cut off", |s| frame(HEADERS, 5, s, [0x88, 0, 9, b'x']), BadGateway),
            (
                "a larger table than allowed",
                |s| frame(HEADERS, 5, s, [0x3f, 0xff, 0xff, 0xff, 0x7f, 0x88]),
                BadGateway,
            ),
        ],
        Then::Next,
    )
    .await;
}

#[tokio::test]
async fn what_an_origin_may_say_besides_harms_no_answer() {
    let cases: &[(&str, Play, Expect)] = &[
        (
            "unknown frames",
            |s| [frame(0xfa, 9, s, "x"), frame(0xfb, 9, 0, ""), fine(s)].concat(),
            WELL,
        ),
        (
            "ALTSVC and ORIGIN",
            |s| [frame(10, 0, s, [0; 2]), frame(12, 0, 0, ""), fine(s)].concat(),
            WELL,
        ),
        ("PRIORITY", |s| [frame(PRIORITY, 0, s, [0, 0, 0, 9, 1]), fine(s)].concat(), WELL),
        ("an unknown setting", |s| [setting(0xfafa, 1), fine(s)].concat(), WELL),
        ("windows", |s| [window(0, 1), window(s, 1), fine(s), window(s, 1)].concat(), WELL),
        ("a table of nothing", |s| [setting(HEADER_TABLE_SIZE, 0), fine(s)].concat(), WELL),
        ("a huge table", |s| [setting(HEADER_TABLE_SIZE, u32::MAX), fine(s)].concat(), WELL),
        ("a reset after the end", |s| [fine(s), reset(s, NO_ERROR)].concat(), WELL),
        ("an error after the end", |s| [fine(s), reset(s, INTERNAL_ERROR)].concat(), WELL),
        ("DATA after the end", |s| [fine(s), frame(DATA, 1, s, "more")].concat(), WELL),
        ("a second answer", |s| [fine(s), fine(s)].concat(), WELL),
        ("GOAWAY after the end", |s| [fine(s), goaway(s, NO_ERROR)].concat(), WELL),
        ("GOAWAY above before it", |s| [goaway(s, NO_ERROR), fine(s)].concat(), WELL),
        ("GOAWAY far above before it", |s| [goaway(0x7fff_ffff, NO_ERROR), fine(s)].concat(), WELL),
        ("some PINGs", |s| [frame(PING, 0, 0, [7; 8]).repeat(100), fine(s)].concat(), WELL),
    ];
    table(cases, Then::Next).await;
    table(
        &[("GOAWAY and the end", |s| [fine(s), goaway(s, NO_ERROR)].concat(), WELL)],
        Then::Close,
    )
    .await;
}

#[tokio::test]
async fn an_origin_that_never_acknowledges_settings_is_served_well() {
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP2", &[origin.address]).await;
    let serve = async {
        let mut upstream = Frames::accept(origin.accept().await, &frame(SETTINGS, 0, 0, [])).await;
        let mut first = true;
        while let Some(next) = upstream.any().await {
            if std::mem::take(&mut first) {
                assert_eq!((next.kind, next.flags), (SETTINGS, 0), "§3.4: SETTINGS first");
                assert_eq!(next.settings().get(&ENABLE_PUSH), Some(&0), "pushes are not wanted");
            }
            if next.kind == HEADERS {
                upstream.send(fine(next.stream)).await;
            }
        }
    };
    let ask = async {
        for _ in 0..5 {
            assert_eq!(over_http1(&proxy, "GET").await, Whole(200, b"fine".to_vec()));
        }
    };
    tokio::select! { () = serve => panic!("the proxy hung up"), () = ask => {} }
}

#[tokio::test]
async fn an_origin_without_a_table_is_sent_no_reference_to_one() {
    let origin = FrameOrigin::start(setting(HEADER_TABLE_SIZE, 0), |_, seen| {
        Script::keep(if seen.kind == HEADERS { fine(seen.stream) } else { Vec::new() })
    })
    .await;
    let proxy = Proxy::before("HTTP2", &[origin.address]).await;
    for _ in 0..4 {
        assert_eq!(over_http1(&proxy, "GET").await, Whole(200, b"fine".to_vec()));
    }
    // Connections that said their table is empty, and those that have to.
    let (mut empty, mut bound, mut blocks) = (BTreeSet::new(), BTreeSet::new(), 0);
    for (connection, seen) in origin.take() {
        if seen.kind == SETTINGS && seen.flags & ACK != 0 {
            bound.insert(connection);
        } else if seen.kind == HEADERS {
            if seen.payload[0] == 0x20 {
                empty.insert(connection);
            }
            if bound.contains(&connection) {
                // §4.3.1: unless it was none before, the next field block MUST begin so.
                let known = empty.contains(&connection);
                assert!(known, "no update of the size: {:02x?}", seen.payload);
                assert_eq!(refers_to_entries(&seen.payload), Some(false), "{:02x?}", seen.payload);
                blocks += 1;
            }
        }
    }
    assert!(blocks >= 3, "{blocks} field sections after the acknowledgement");
}
