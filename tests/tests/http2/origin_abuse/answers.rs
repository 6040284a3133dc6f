//! Answers that are malformed, cut off, or unusual.

use towpath_tests::{
    Then, Wire,
    frames::{
        CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, HEADERS, INTERNAL_ERROR,
        NO_ERROR, POST, REFUSED_STREAM, frame, goaway, headers, reset, section, window,
    },
};

use super::{
    Answer, BadGateway, Expect, NothingWhole, OK, Play, Stage, WELL, Whole, fine, head, over_http2,
    table,
};

#[tokio::test]
async fn an_answer_with_a_bad_head_is_a_bad_gateway() {
    const E: u8 = END_STREAM;
    table(
        &[
            ("no status", |s| headers(E, s, &[("x", "y")]), BadGateway),
            ("no field at all", |s| headers(E, s, &[]), BadGateway),
            ("a status of two digits", |s| headers(E, s, &[(":status", "99")]), BadGateway),
            ("a status of four digits", |s| headers(E, s, &[(":status", "2000")]), BadGateway),
            ("a status below 100", |s| headers(E, s, &[(":status", "099")]), BadGateway),
            ("a status with a sign", |s| headers(E, s, &[(":status", "+20")]), BadGateway),
            ("a status with a reason", |s| headers(E, s, &[(":status", "200 OK")]), BadGateway),
            ("an empty status", |s| headers(E, s, &[(":status", "")]), BadGateway),
            ("two statuses", |s| head(E, s, &[OK]), BadGateway),
            ("a status after a field", |s| headers(E, s, &[("x", "y"), OK]), BadGateway),
            ("a request's pseudo-header", |s| head(E, s, &[(":path", "/")]), BadGateway),
            ("101", |s| headers(0, s, &[(":status", "101")]), BadGateway),
            ("103 that ends it", |s| headers(E, s, &[(":status", "103")]), BadGateway),
            ("upper case", |s| head(E, s, &[("X-Upper", "1")]), BadGateway),
            ("an empty name", |s| head(E, s, &[("", "1")]), BadGateway),
            ("a line end in a name", |s| head(E, s, &[("x\r\ny", "1")]), BadGateway),
            (
                "a second answer in a value",
                |s| head(E, s, &[("x", "\r\n\r\nHTTP/1.1 ")]),
                BadGateway,
            ),
            ("NUL in a value", |s| head(E, s, &[("x", "a\0b")]), BadGateway),
            ("a space before a value", |s| head(E, s, &[("x", " a")]), BadGateway),
            ("connection", |s| head(E, s, &[("connection", "x")]), BadGateway),
            ("transfer-encoding", |s| head(E, s, &[("transfer-encoding", "chunked")]), BadGateway),
            ("upgrade", |s| head(E, s, &[("upgrade", "x")]), BadGateway),
            ("a length and no body", |s| head(E, s, &[("content-length", "5")]), BadGateway),
            ("a length of +0", |s| head(E, s, &[("content-length", "+0")]), BadGateway),
            (
                "a huge length",
                |s| head(E, s, &[("content-length", "18446744073709551616")]),
                BadGateway,
            ),
            (
                "unequal lengths",
                |s| head(E, s, &[("content-length", "0"), ("content-length", "1")]),
                BadGateway,
            ),
            ("DATA before the head", |s| [frame(DATA, 0, s, "x"), fine(s)].concat(), BadGateway),
            (
                "DATA after 103",
                |s| [headers(0, s, &[(":status", "103")]), frame(DATA, E, s, "x")].concat(),
                BadGateway,
            ),
            ("a reset at once", |s| reset(s, INTERNAL_ERROR), BadGateway),
            ("a cancel at once", |s| reset(s, CANCEL), BadGateway),
            ("a reset without an error", |s| reset(s, NO_ERROR), BadGateway),
        ],
        Then::Next,
    )
    .await;
}

#[tokio::test]
async fn a_part_of_an_answer_never_looks_whole() {
    const AB: Play = |s| [head(0, s, &[]), frame(DATA, 0, s, "ab")].concat();
    let cases: &[(&str, Play, Expect)] = &[
        (
            "fewer bytes",
            |s| [head(0, s, &[("content-length", "5")]), frame(DATA, 1, s, "abc")].concat(),
            NothingWhole,
        ),
        (
            "more bytes",
            |s| [head(0, s, &[("content-length", "3")]), frame(DATA, 1, s, "abcd")].concat(),
            NothingWhole,
        ),
        (
            "no bytes",
            |s| [head(0, s, &[("content-length", "3")]), frame(DATA, 1, s, "")].concat(),
            NothingWhole,
        ),
        (
            "fewer bytes and trailers",
            |s| {
                let length = head(0, s, &[("content-length", "5")]);
                [length, frame(DATA, 0, s, "abc"), headers(1, s, &[("x", "y")])].concat()
            },
            NothingWhole,
        ),
        ("a reset", |s| [AB(s), reset(s, INTERNAL_ERROR)].concat(), NothingWhole),
        ("a cancel", |s| [AB(s), reset(s, CANCEL)].concat(), NothingWhole),
        ("a refusal", |s| [AB(s), reset(s, REFUSED_STREAM)].concat(), NothingWhole),
        // §8.1: NO_ERROR is for after a complete response.
        ("a reset without an error", |s| [AB(s), reset(s, NO_ERROR)].concat(), NothingWhole),
        (
            "a pseudo-header in trailers",
            |s| [AB(s), headers(1, s, &[("x", "y"), OK])].concat(),
            NothingWhole,
        ),
        (
            "trailers in upper case",
            |s| [AB(s), headers(1, s, &[("X", "y")])].concat(),
            NothingWhole,
        ),
        (
            "a line end in trailers",
            |s| [AB(s), headers(1, s, &[("x", "\n")])].concat(),
            NothingWhole,
        ),
        ("trailers and no end", |s| [AB(s), headers(0, s, &[("x", "y")])].concat(), NothingWhole),
        ("a second head", |s| [AB(s), head(1, s, &[])].concat(), NothingWhole),
        ("too much padding", |s| [AB(s), frame(DATA, 9, s, [3, 0, 0])].concat(), NothingWhole),
        (
            "a window too large",
            |s| [AB(s), window(s, 0x7fff_ffff), frame(DATA, 1, s, "")].concat(),
            NothingWhole,
        ),
        ("GOAWAY with an error", |s| [AB(s), goaway(s, INTERNAL_ERROR)].concat(), NothingWhole),
    ];
    // The last one ends only with its connection.
    let (last, first) = cases.split_last().expect("cases");
    table(first, Then::Next).await;
    for then in [Then::Close, Then::Reset] {
        table(&[*last, ("the end of the connection", AB, NothingWhole)], then).await;
    }
}

#[tokio::test]
async fn what_an_origin_may_answer_is_delivered() {
    let cases: &[(&str, Play, Expect)] = &[
        ("plain", fine, WELL),
        (
            "padding and a priority",
            |s| {
                let block = [&[2, 0, 0, 0, 0, 7, 0x88][..], &[0; 2]].concat();
                let data = frame(DATA, 9, s, *b"\x03fine\0\0\0");
                [frame(HEADERS, 0x2c, s, block), data].concat()
            },
            WELL,
        ),
        (
            "a head in pieces",
            |s| {
                let (begin, none) = (frame(HEADERS, 0, s, []), frame(CONTINUATION, 0, s, []));
                let field = section(&[("x", "y")]);
                let field = field.iter().flat_map(|b| frame(CONTINUATION, 0, s, [*b]));
                let field: Vec<u8> = field.collect();
                let status = frame(CONTINUATION, 0, s, [0x88]);
                let last = frame(CONTINUATION, END_HEADERS, s, []);
                let data = frame(DATA, 1, s, "fine");
                [begin, none.clone(), status, field, none, last, data].concat()
            },
            WELL,
        ),
        (
            "empty DATA between",
            |s| {
                let length = head(0, s, &[("content-length", "4")]);
                let none = frame(DATA, 0, s, "");
                let (fi, ne) = (frame(DATA, 0, s, "fi"), frame(DATA, 0, s, "ne"));
                [length, none.clone(), fi, none, ne, frame(DATA, 1, s, "")].concat()
            },
            WELL,
        ),
        (
            "trailers",
            |s| {
                let data = frame(DATA, 0, s, "fine");
                [head(0, s, &[]), data, headers(1, s, &[("grpc-status", "0")])].concat()
            },
            WELL,
        ),
        (
            "103 before",
            |s| [headers(0, s, &[(":status", "103"), ("link", "</a>")]), fine(s)].concat(),
            WELL,
        ),
        ("100 before", |s| [headers(0, s, &[(":status", "100")]), fine(s)].concat(), WELL),
        ("204", |s| headers(1, s, &[(":status", "204")]), Answer(204, "")),
        (
            "304 with a length",
            |s| headers(1, s, &[(":status", "304"), ("content-length", "5")]),
            Answer(304, ""),
        ),
        ("a length of 0", |s| head(1, s, &[("content-length", "0")]), Answer(200, "")),
        ("a status of 599", |s| headers(1, s, &[(":status", "599")]), Answer(599, "")),
    ];
    table(cases, Then::Next).await;
    table(&[("the end of an idle connection", fine, WELL)], Then::Close).await;
}

#[tokio::test]
async fn the_answer_to_head_has_a_length_and_no_body() {
    let stage = Stage::start().await;
    stage.plays(|s| head(1, s, &[("content-length", "5")]), Then::Next);
    let mut client = Wire::connect(stage.proxy.address).await;
    for _ in 0..2 {
        client.send("HEAD /x HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let response = client.response_to("HEAD").await;
        assert_eq!((response.status, response.fields.one("content-length")), (200, Some("5")));
    }
    let request = headers(END_STREAM, 1, &[&[(":method", "HEAD")], &GET[1..]].concat());
    assert_eq!(over_http2(&stage.proxy, request).await, Whole(200, Vec::new()));
}

#[tokio::test]
async fn a_whole_early_answer_is_delivered_though_the_upload_is_not_wanted() {
    // §8.1: "Clients MUST NOT discard responses as a result of receiving such a RST_STREAM".
    let early: Play = |s| {
        let status = headers(0, s, &[(":status", "413"), ("content-length", "3")]);
        [status, frame(DATA, END_STREAM, s, "big"), reset(s, NO_ERROR)].concat()
    };
    let stage = Stage::start().await;
    stage.plays(early, Then::Next);
    for _ in 0..10 {
        let mut client = Wire::connect(stage.proxy.address).await;
        client.send("POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nbegin").await;
        let response = client.response().await;
        assert_eq!((response.status, &response.body[..]), (413, &b"big"[..]));
        let begun = [headers(0, 1, POST), frame(DATA, 0, 1, "begin")].concat();
        assert_eq!(over_http2(&stage.proxy, begun).await, Whole(413, b"big".to_vec()));
    }
}
