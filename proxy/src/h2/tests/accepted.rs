//! What tells a client that a server will not refuse a stream any more.

use std::{
    future::poll_fn,
    task::{Context, Waker},
    time::Duration,
};

use bytes::BytesMut;
use tokio::time::timeout;

use super::{
    super::frame,
    raw::{OK, client, open},
};
use crate::h2::{ErrorCode, Stream, StreamError};

/// Whether the server is known to have accepted a stream.
fn accepted(stream: &mut Stream, grpc: bool) -> bool {
    stream.poll_accepted(&mut Context::from_waker(Waker::noop()), grpc).is_ready()
}

async fn until_accepted(stream: &mut Stream) {
    let accepted = poll_fn(|cx| stream.poll_accepted(cx, false));
    timeout(Duration::from_secs(60), accepted).await.expect("it is accepted");
}

#[tokio::test(start_paused = true)]
async fn one_ping_vouches_for_all_streams_opened_before_it() {
    let (mut raw, client, _driving) = client(&[]).await;
    let (mut one, mut three) = (open(&client, false), open(&client, false));
    assert!(!accepted(&mut one, false) && !accepted(&mut three, false));
    let mut five = open(&client, false);
    assert!(!accepted(&mut five, false));
    for stream in [1, 3] {
        assert_eq!(raw.next_of(frame::HEADERS).await.stream, stream);
    }
    let ping = raw.next_of(frame::PING).await;
    assert_eq!(ping.flags, 0);
    raw.send(frame::PING, frame::ACK, 0, &ping.payload).await;
    until_accepted(&mut one).await;
    until_accepted(&mut three).await;
    assert!(!accepted(&mut five, false), "it was opened behind the PING");
    let second = raw.next_of(frame::PING).await;
    assert_ne!(second.payload, ping.payload);
    raw.send(frame::PING, frame::ACK, 0, &second.payload).await;
    until_accepted(&mut five).await;
    drop((one, three, five, client));
    assert!(raw.rest().await.iter().all(|frame| frame.kind != frame::PING), "only one at a time");
}

#[tokio::test(start_paused = true)]
async fn what_a_server_sends_for_a_stream_says_that_it_accepted_it() {
    let update = 9_u32.to_be_bytes();
    let progress = [0x08, 3, b'1', b'0', b'4'];
    for (name, kind, flags, on, payload, says) in [
        ("a window", frame::WINDOW_UPDATE, 0, 1, &update[..], true),
        ("a head", frame::HEADERS, frame::END_HEADERS, 1, OK, true),
        ("an interim head", frame::HEADERS, frame::END_HEADERS, 1, &progress, true),
        ("a window of the connection", frame::WINDOW_UPDATE, 0, 0, &update, false),
        ("a window of another stream", frame::WINDOW_UPDATE, 0, 3, &update, false),
        ("an acknowledgement of nothing", frame::PING, frame::ACK, 0, b"took\0\0\0\x07", false),
        ("more for all streams", frame::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0], false),
    ] {
        let (mut raw, client, _driving) = client(&[]).await;
        let (mut one, _three) = (open(&client, false), open(&client, false));
        assert!(!accepted(&mut one, false));
        raw.send(kind, flags, on, payload).await;
        raw.send(frame::PING, 0, 0, &[0; 8]).await;
        while raw.next_of(frame::PING).await.flags != frame::ACK {}
        assert_eq!(accepted(&mut one, false), says, "{name}");
    }
}

/// Servers count PINGs, whatever they are for.
#[tokio::test(start_paused = true)]
async fn a_server_of_grpc_is_asked_less_where_bulk_is_measured() {
    for (bulk, asks) in [(false, 2), (true, 1)] {
        let (mut raw, client, _driving) = client(&[]).await;
        let _download = open(&client, true);
        raw.send(frame::HEADERS, frame::END_HEADERS, 1, OK).await;
        for _ in 0..if bulk { 3 } else { 1 } {
            raw.send(frame::DATA, 0, 1, &[7; 12_000]).await;
        }
        if bulk {
            let probe = raw.next_of(frame::PING).await;
            raw.send(frame::PING, frame::ACK, 0, &probe.payload).await;
        }
        let mut asked = 0;
        while !accepted(&mut open(&client, false), true) {
            let ping = raw.next_of(frame::PING).await;
            raw.send(frame::PING, frame::ACK, 0, &ping.payload).await;
            // All of it is dealt with once this is answered.
            raw.send(frame::PING, 0, 0, &[0; 8]).await;
            while raw.next_of(frame::PING).await.flags != frame::ACK {}
            asked += 1;
        }
        assert_eq!(asked, asks, "bulk: {bulk}");
    }
}

/// An acknowledgement may be sent ahead of what else there is to say.
#[tokio::test(start_paused = true)]
async fn a_refusal_on_the_heels_of_the_acknowledgement_is_heard() {
    for (kind, on, payload) in [
        (frame::RST_STREAM, 1, &ErrorCode::REFUSED_STREAM.0.to_be_bytes()[..]),
        (frame::GOAWAY, 0, &[0; 8]),
    ] {
        let (mut raw, client, _driving) = client(&[]).await;
        let mut stream = open(&client, false);
        assert!(!accepted(&mut stream, false));
        let ping = raw.next_of(frame::PING).await;
        let mut both = BytesMut::new();
        frame::put_head(&mut both, 8, frame::PING, frame::ACK, 0);
        both.extend_from_slice(&ping.payload);
        frame::put_head(&mut both, payload.len(), kind, 0, on);
        both.extend_from_slice(payload);
        raw.write(&both).await;
        assert_eq!(poll_fn(|cx| stream.poll_failed(cx)).await, StreamError::Refused);
        assert!(!accepted(&mut stream, false));
    }
}

/// gRPC's own servers close the connection at the fourth PING that nothing they sent comes between.
#[tokio::test(start_paused = true)]
async fn a_server_of_grpc_is_not_asked_too_often() {
    let (mut raw, client, _driving) = client(&[]).await;
    for round in 0..3 {
        for _ in 0..2 {
            let mut stream = open(&client, false);
            assert!(!accepted(&mut stream, true));
            let ping = raw.next_of(frame::PING).await;
            raw.send(frame::PING, frame::ACK, 0, &ping.payload).await;
            until_accepted(&mut stream).await;
        }
        let mut stream = open(&client, false);
        assert!(accepted(&mut stream, true), "{round}: it is believed");
        let mut other = open(&client, true);
        while raw.next_of(frame::HEADERS).await.flags & frame::END_STREAM == 0 {}
        let on = 8 * round + 7;
        raw.send(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, on, OK).await;
        poll_fn(|cx| other.poll_head(cx)).await.unwrap();
    }
}
