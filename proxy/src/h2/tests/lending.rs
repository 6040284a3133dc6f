//! Streams that wait or are not read, and those beside them on a connection.

use std::{future::poll_fn, time::Duration};

use http::{HeaderMap, Method};
use tokio::time::{sleep, timeout};

use super::{
    super::{
        frame,
        memory::{Memory, Taken},
        stream::Part,
    },
    raw::{CONFIG, GET, OK, POST, Raw, client_with, open, server_with},
    request,
};
use crate::h2::{Client, Config, ErrorCode, Stream, StreamError, Unopened};

/// So many bytes of a body, in frames that a peer of the least settings takes.
async fn send_body(raw: &mut Raw, stream: u32, mut bytes: usize) {
    while bytes > 0 {
        let some = bytes.min(16_384);
        raw.send(frame::DATA, 0, stream, &vec![7; some]).await;
        bytes -= some;
    }
}

/// Everything that comes until nothing more does: credit for the connection, and which streams
/// were reset.
async fn heard(raw: &mut Raw) -> (usize, Vec<u32>) {
    let (mut credit, mut reset) = (0, Vec::new());
    while let Ok(Some(frame)) = timeout(Duration::from_millis(10), raw.next()).await {
        match (frame.kind, frame.stream) {
            (frame::WINDOW_UPDATE, 0) => {
                credit += frame::number(&frame.payload).unwrap() as usize;
            }
            (frame::RST_STREAM, stream) => reset.push(stream),
            _ => {}
        }
    }
    (credit, reset)
}

#[tokio::test(start_paused = true)]
async fn what_a_reader_leaves_lying_is_lent_and_paid_back() {
    let (mut raw, client, _driving) = client_with(CONFIG, &[]).await;
    let (_lazy, mut eager) = (open(&client, true), open(&client, true));
    for stream in [1, 3] {
        raw.send(frame::HEADERS, frame::END_HEADERS, stream, OK).await;
    }
    send_body(&mut raw, 1, 60_000).await;
    let lent = heard(&mut raw).await.0;
    assert!(lent > 30_000, "the other may use most of the window: {lent}");
    // Twenty windows' worth pass by what lies there.
    let mut credit = 65_535 - 60_000 + lent;
    for _ in 0..20 {
        send_body(&mut raw, 3, 40_000).await;
        credit -= 40_000;
        let mut got = 0;
        while got < 40_000 {
            match poll_fn(|cx| eager.poll_part(cx)).await.unwrap() {
                Part::Data { bytes, .. } => {
                    got += bytes.len();
                    eager.credit(bytes.len());
                }
                Part::End(_) => panic!("it has no end"),
            }
        }
        credit += heard(&mut raw).await.0;
        assert!(credit <= 65_535, "no more is lent than lies there");
    }
}

/// A connection whose window is all but taken by four streams that nobody reads, and of which
/// nothing more is lent: the peer may send 100,000 bytes, and has sent none on a fifth. With `end`,
/// the requests are whole.
async fn starved(memory: &'static Memory, end: bool) -> (Raw, Client, Vec<Stream>) {
    const WINDOW: u32 = 12 << 20;
    let config = Config {
        first_window: WINDOW,
        stream_window: WINDOW,
        connection_window: 1 << 20,
        memory,
        ..CONFIG
    };
    let (mut raw, client, _) = client_with(config, &[]).await;
    let streams = (0..5).map(|_| open(&client, end)).collect();
    let mut credit = 1 << 20;
    for id in [1, 3, 5, 7] {
        raw.send(frame::HEADERS, frame::END_HEADERS, id, OK).await;
        // As much as is lent to one connection, 32 MiB, and its window besides.
        for _ in 0..22 {
            if credit >= 1 << 19 {
                send_body(&mut raw, id, 1 << 19).await;
                credit -= 1 << 19;
            }
            credit += heard(&mut raw).await.0;
        }
    }
    send_body(&mut raw, 7, credit - 100_000).await;
    assert_eq!(heard(&mut raw).await.0, 0, "all is lent");
    (raw, client, streams)
}

/// What a test has for itself.
const fn memory() -> Memory {
    Memory::new(1 << 30, 1 << 30)
}

#[tokio::test(start_paused = true)]
async fn streams_that_nobody_reads_are_given_up_for_the_others_and_slow_ones_are_not() {
    static MEMORY: Memory = memory();
    let (mut raw, client, mut streams) = starved(&MEMORY, true).await;
    let another = client.open(&request(&Method::GET, &HeaderMap::new()), true);
    assert!(matches!(another, Err(Unopened::Full)), "it would wait for others");
    // One of them is slow, but moves.
    for _ in 0..4 {
        sleep(Duration::from_secs(4)).await;
        if let Ok(Part::Data { bytes, .. }) = poll_fn(|cx| streams[0].poll_part(cx)).await {
            streams[0].credit(bytes.len());
        }
    }
    let (back, reset) = heard(&mut raw).await;
    assert!(!reset.contains(&1) && reset.contains(&3), "{reset:?}");
    assert!(back >= 1 << 19, "the others go on: {back}");
    let unread = poll_fn(|cx| streams[1].poll_part(cx)).await;
    assert!(matches!(unread, Err(StreamError::Unread)), "{unread:?}");
    client.open(&request(&Method::GET, &HeaderMap::new()), true).unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_limit_of_ours_holds_back_is_not_given_up() {
    static MEMORY: Memory = memory();
    let (mut raw, _client, streams) = starved(&MEMORY, true).await;
    streams[2].hold_back(true);
    sleep(Duration::from_secs(60)).await;
    let (_, reset) = heard(&mut raw).await;
    assert!(reset.contains(&3) && !reset.contains(&5), "{reset:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_first_bytes_have_just_come_has_its_time_too() {
    static MEMORY: Memory = memory();
    let (mut raw, _client, _streams) = starved(&MEMORY, true).await;
    sleep(Duration::from_secs(9)).await;
    raw.send(frame::HEADERS, frame::END_HEADERS, 9, OK).await;
    send_body(&mut raw, 9, 1000).await;
    sleep(Duration::from_secs(2)).await;
    let (_, reset) = heard(&mut raw).await;
    assert!(reset.contains(&3) && !reset.contains(&9), "{reset:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_hears_that_a_request_is_given_up_of_which_it_waits_for_the_rest() {
    static MEMORY: Memory = memory();
    for whole in [false, true] {
        let (mut raw, _client, _streams) = starved(&MEMORY, whole).await;
        raw.send(frame::DATA, frame::END_STREAM, 3, &[]).await;
        sleep(Duration::from_secs(11)).await;
        let (_, reset) = heard(&mut raw).await;
        assert!(reset.contains(&5), "{reset:?}");
        assert_eq!(reset.contains(&3), !whole, "both sides have ended it: {whole}");
    }
}

#[tokio::test(start_paused = true)]
async fn however_much_others_carry_or_owe_a_connection_is_lent_some() {
    static MEMORY: Memory = memory();
    let (mut grown, mut owed) = (Taken::of(&MEMORY.growth), Taken::of(&MEMORY.loans));
    assert!(grown.take(1 << 30));
    for nothing_left in [false, true] {
        assert!(!nothing_left || owed.take(1 << 30));
        let (mut raw, client, _) = client_with(Config { memory: &MEMORY, ..CONFIG }, &[]).await;
        let _lazy = open(&client, true);
        raw.send(frame::HEADERS, frame::END_HEADERS, 1, OK).await;
        send_body(&mut raw, 1, 60_000).await;
        let lent = heard(&mut raw).await.0;
        assert!(lent > 30_000, "{lent}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_reads_yet_is_let_in_by_its_first_window_alone() {
    let config = Config { first_window: 10_000, ..CONFIG };
    let (mut raw, mut streams, _driving) = server_with(config).await;
    raw.send(frame::HEADERS, frame::END_HEADERS, 1, POST).await;
    send_body(&mut raw, 1, 10_000).await;
    let mut stream = streams.recv().await.unwrap();
    heard(&mut raw).await;
    assert!(matches!(poll_fn(|cx| stream.poll_part(cx)).await, Ok(Part::Data { .. })));
    let more = raw.next_of(frame::WINDOW_UPDATE).await;
    assert_eq!((more.stream, frame::number(&more.payload)), (1, Some(55_535)), "now it is read");

    raw.send(frame::HEADERS, frame::END_HEADERS, 3, POST).await;
    send_body(&mut raw, 3, 10_001).await;
    let reset = raw.next_of(frame::RST_STREAM).await;
    assert_eq!((reset.stream, frame::number(&reset.payload)), (3, Some(3)), "FLOW_CONTROL_ERROR");
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_most_is_cancelled_is_left_before_its_server_ends_it() {
    let config = Config { streams: 1000, ..CONFIG };
    let (mut raw, client, _driving) = client_with(config, &[(3, 1000)]).await;
    let kept = open(&client, true);
    for _ in 0..199 {
        drop(open(&client, true));
        heard(&mut raw).await;
    }
    drop(open(&client, true));
    let closed = client.open(&request(&Method::GET, &HeaderMap::new()), true);
    assert!(matches!(closed, Err(Unopened::Closed)), "others go on a new connection");
    raw.next_of(frame::GOAWAY).await;
    assert!(!kept.is_at_end(), "what is under way goes on");
}

#[tokio::test(start_paused = true)]
async fn what_went_well_long_ago_excuses_no_cancels() {
    let config = Config { streams: 1000, ..CONFIG };
    let (mut raw, client, _driving) = client_with(config, &[(3, 1000)]).await;
    for nth in 0..3000 {
        let mut stream = open(&client, true);
        let end = frame::END_HEADERS | frame::END_STREAM;
        raw.send(frame::HEADERS, end, 2 * nth + 1, OK).await;
        poll_fn(|cx| stream.poll_head(cx)).await.unwrap();
        raw.next_of(frame::HEADERS).await;
    }
    let cancels = (0..3000)
        .take_while(|_| client.open(&request(&Method::GET, &HeaderMap::new()), true).is_ok());
    assert!(cancels.count() < 1000, "a server would have ended it");
}

#[tokio::test(start_paused = true)]
async fn cancels_of_some_do_not_end_the_streams_of_others() {
    let (mut raw, mut streams, _driving) = server_with(Config { streams: 100, ..CONFIG }).await;
    let cancel = (ErrorCode::CANCEL.0).to_be_bytes();
    let end = frame::END_HEADERS | frame::END_STREAM;
    raw.send(frame::HEADERS, end, 1, GET).await;
    let kept = streams.recv().await.unwrap();
    let mut id = 3;
    for nth in 0..3000 {
        raw.send(frame::HEADERS, end, id, GET).await;
        let mut stream = streams.recv().await.unwrap();
        // Two are cancelled for one that is answered: 1,000 more in no time at all.
        if nth % 3 == 0 {
            stream.answer(http::StatusCode::OK, &HeaderMap::new(), true);
        } else {
            raw.send(frame::RST_STREAM, 0, id, &cancel).await;
            poll_fn(|cx| stream.poll_failed(cx)).await;
        }
        drop(stream);
        id += 2;
    }
    // One too many: nothing new, and what is under way is answered still.
    for _ in 0..30 {
        raw.send(frame::HEADERS, end, id, GET).await;
        raw.send(frame::RST_STREAM, 0, id, &cancel).await;
        id += 2;
    }
    let goaway = raw.next_of(frame::GOAWAY).await;
    assert_eq!(frame::number(&goaway.payload[4..8]), Some(ErrorCode::ENHANCE_YOUR_CALM.0));
    kept.answer(http::StatusCode::OK, &HeaderMap::new(), true);
    let answer = raw.next_of(frame::HEADERS).await;
    assert_eq!((answer.stream, answer.flags), (1, end));
}
