//! The engine against raw frames, with paused time: what a peer does that means no good, or
//! does nothing at all.

use std::{future::poll_fn, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{super::frame, request};
use crate::h2::{
    Client, Config, Connection, ErrorCode, Incoming, MEMORY, Stream, StreamError, Unopened,
};

pub(super) const CONFIG: Config = Config {
    first_window: 65_535,
    stream_window: 65_535,
    connection_window: 65_535,
    frame: 16_384,
    streams: 10,
    header_list: 16_384,
    fields: 100,
    memory: &MEMORY,
    gathers: false,
    fixed: false,
};

/// GET / of `a`, and POST, as HPACK.
pub(super) const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'a'];
pub(super) const POST: &[u8] = &[0x83, 0x86, 0x84, 0x41, 1, b'a'];
/// `:status: 200`.
pub(super) const OK: &[u8] = &[0x88];

#[derive(Debug, PartialEq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

/// A peer that says exactly what a test has it say.
pub(super) struct Raw(pub(super) DuplexStream);

impl Raw {
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub(super) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut bytes = BytesMut::new();
        frame::put_head(&mut bytes, payload.len(), kind, flags, stream);
        bytes.extend_from_slice(payload);
        self.write(&bytes).await;
    }

    pub(super) async fn settings(&mut self, settings: &[(u16, u32)]) {
        let mut payload = Vec::new();
        for (setting, value) in settings {
            payload.extend(setting.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        self.send(frame::SETTINGS, 0, 0, &payload).await;
    }

    /// The next frame, or `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; frame::HEAD];
        self.0.read_exact(&mut head).await.ok()?;
        let head = frame::Head::read(&head)?;
        let mut payload = vec![0; head.length];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind: head.kind, flags: head.flags, stream: head.stream, payload })
    }

    /// The next frame of this kind.
    pub(super) async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = timeout(Duration::from_secs(120), self.next()).await.expect("in time");
            let frame = frame.expect("a frame, not the end");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Reads to the end of the connection.
    pub(super) async fn rest(&mut self) -> Vec<Frame> {
        let mut all = Vec::new();
        while let Some(frame) = self.next().await {
            all.push(frame);
        }
        all
    }
}

fn code(frame: &Frame) -> ErrorCode {
    let at = if frame.kind == frame::GOAWAY { 4 } else { 0 };
    ErrorCode(frame::number(&frame.payload[at..at + 4]).unwrap())
}

/// A server of ours, whose streams are handed out, and a raw client that has said hello.
async fn server() -> (Raw, tokio::sync::mpsc::Receiver<Stream>, JoinHandle<()>) {
    server_with(CONFIG).await
}

pub(super) async fn server_with(
    config: Config,
) -> (Raw, tokio::sync::mpsc::Receiver<Stream>, JoinHandle<()>) {
    let (ours, theirs) = duplex(64 * 1024);
    let mut connection = Connection::server(ours, config);
    let (give, streams) = tokio::sync::mpsc::channel(100);
    let driving = tokio::spawn(async move {
        poll_fn(|cx| {
            let over = connection.poll(cx);
            while let Some(incoming) = connection.next_request() {
                if let Incoming::Request(stream, _) = incoming {
                    give.try_send(stream).unwrap();
                }
            }
            if give.is_closed() {
                connection.leave();
            }
            over
        })
        .await;
        let _ = timeout(Duration::from_secs(30), connection.finish()).await;
    });
    let mut raw = Raw(theirs);
    raw.0.write_all(frame::PREFACE).await.unwrap();
    raw.settings(&[]).await;
    (raw, streams, driving)
}

/// A client of ours, and a raw server that has said hello.
pub(super) async fn client(settings: &[(u16, u32)]) -> (Raw, Client, JoinHandle<()>) {
    client_with(CONFIG, settings).await
}

pub(super) async fn client_with(
    config: Config,
    settings: &[(u16, u32)],
) -> (Raw, Client, JoinHandle<()>) {
    let (ours, theirs) = duplex(64 * 1024);
    let (mut connection, client) = Connection::client(ours, config);
    let driving = tokio::spawn(async move {
        poll_fn(|cx| connection.poll(cx)).await;
        connection.finish().await;
    });
    let mut raw = Raw(theirs);
    let mut preface = [0; 24];
    raw.0.read_exact(&mut preface).await.unwrap();
    assert_eq!(&preface, frame::PREFACE);
    raw.settings(settings).await;
    let ack = loop {
        let frame = raw.next().await.unwrap();
        let added = frame.kind == frame::WINDOW_UPDATE;
        assert_eq!(added, added && config.connection_window > 65_535, "nothing to add: {frame:?}");
        if frame.kind == frame::SETTINGS && frame.flags == frame::ACK {
            break frame;
        }
    };
    assert!(ack.payload.is_empty());
    (raw, client, driving)
}

pub(super) fn open(client: &Client, end: bool) -> Stream {
    client.open(&request(&Method::POST, &HeaderMap::new()), end).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_dropped_is_reset_and_none_of_it_follows() {
    let (mut raw, client, _driving) = client(&[(4, 1000)]).await;
    let stream = open(&client, false);
    stream.send(Bytes::from(vec![7; 5000]), true).unwrap();
    assert_eq!(raw.next_of(frame::DATA).await.payload.len(), 1000, "what the window allows");
    drop(stream);
    assert_eq!(code(&raw.next_of(frame::RST_STREAM).await), ErrorCode::CANCEL);
    raw.send(frame::WINDOW_UPDATE, 0, 1, &5000_u32.to_be_bytes()).await;
    drop(client);
    let rest = raw.rest().await;
    assert!(rest.iter().all(|f| f.kind != frame::DATA), "{rest:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_takes_is_reset_in_time_and_the_connection_ends() {
    let (mut raw, mut streams, driving) = server().await;
    raw.settings(&[(4, 0)]).await;
    raw.send(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, GET).await;
    let stream = streams.recv().await.unwrap();
    stream.answer(StatusCode::OK, &HeaderMap::new(), false);
    stream.send(Bytes::from_static(b"refused"), true).unwrap();
    drop(stream);
    let before = Instant::now();
    raw.next_of(frame::HEADERS).await;
    assert_eq!(raw.next_of(frame::RST_STREAM).await.stream, 1);
    assert!(before.elapsed() >= Duration::from_secs(9), "it has had time: {:?}", before.elapsed());
    drop(streams);
    raw.send(frame::PING, 0, 0, &[0; 8]).await;
    raw.rest().await;
    driving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_reading_does_not_hold_the_connection() {
    let (mut raw, mut streams, driving) = server().await;
    raw.settings(&[(4, 1 << 30)]).await;
    raw.send(frame::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()).await;
    raw.send(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, GET).await;
    let mut stream = streams.recv().await.unwrap();
    stream.answer(StatusCode::OK, &HeaderMap::new(), false);
    while let Ok(Ok(())) = timeout(Duration::from_secs(5), poll_fn(|cx| stream.poll_room(cx))).await
    {
        stream.send(Bytes::from(vec![0; 50_000]), false).unwrap();
    }
    drop((stream, streams));
    raw.send(frame::PING, 0, 0, &[0; 8]).await;
    timeout(Duration::from_secs(60), driving).await.expect("it ends").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_header_block_that_does_not_end_ends_the_connection() {
    let (mut raw, _streams, driving) = server().await;
    raw.send(frame::HEADERS, frame::END_STREAM, 1, GET).await;
    let goaway = raw.next_of(frame::GOAWAY).await;
    assert_eq!(code(&goaway), ErrorCode::ENHANCE_YOUR_CALM);
    raw.rest().await;
    driving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_crosses_the_last_goaway_harms_nobody() {
    let (mut raw, mut streams, driving) = server().await;
    raw.send(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, GET).await;
    let stream = streams.recv().await.unwrap();
    drop(streams);
    raw.send(frame::PING, 0, 0, &[0; 8]).await;
    let first = raw.next_of(frame::GOAWAY).await;
    assert_eq!(first.payload[..4], frame::MOST.to_be_bytes());
    // It is not answered, so that the last one comes by itself.
    let last = raw.next_of(frame::GOAWAY).await;
    assert_eq!(last.payload[..4], 1_u32.to_be_bytes());
    raw.send(frame::HEADERS, frame::END_HEADERS, 3, POST).await;
    raw.send(frame::WINDOW_UPDATE, 0, 3, &1_u32.to_be_bytes()).await;
    raw.send(frame::DATA, frame::END_STREAM, 3, b"late").await;
    stream.answer(StatusCode::OK, &HeaderMap::new(), false);
    stream.send(Bytes::from_static(b"whole"), true).unwrap();
    let data = raw.next_of(frame::DATA).await;
    assert_eq!((&data.payload[..], data.stream, data.flags), (&b"whole"[..], 1, frame::END_STREAM));
    drop(stream);
    raw.rest().await;
    driving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_said_not_to_be_looked_at_is_not_said_to_be_looked_at_later() {
    let (mut raw, mut streams, _driving) = server().await;
    raw.send(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, GET).await;
    let _stream = streams.recv().await.unwrap();
    drop(streams);
    raw.send(frame::PING, 0, 0, &[0; 8]).await;
    for last in [frame::MOST, 1] {
        assert_eq!(raw.next_of(frame::GOAWAY).await.payload[..4], last.to_be_bytes());
    }
    raw.send(frame::HEADERS, frame::END_HEADERS, 3, POST).await;
    raw.send(frame::PING, 0, 0, &[0; 7]).await;
    let fatal = raw.next_of(frame::GOAWAY).await;
    assert_eq!(code(&fatal), ErrorCode::FRAME_SIZE_ERROR);
    assert_eq!(fatal.payload[..4], 1_u32.to_be_bytes(), "it may be sent elsewhere");
}

#[tokio::test(start_paused = true)]
async fn what_came_before_the_socket_broke_can_be_read() {
    let (mut raw, client, _driving) = client(&[]).await;
    let mut stream = open(&client, false);
    raw.next_of(frame::HEADERS).await;
    raw.send(frame::HEADERS, frame::END_HEADERS, 1, OK).await;
    raw.send(frame::DATA, frame::END_STREAM, 1, b"early").await;
    drop(raw);
    // The write that follows fails.
    stream.send(Bytes::from_static(b"more"), false).ok();
    let head = poll_fn(|cx| stream.poll_head(cx)).await.unwrap();
    assert_eq!(head.status, StatusCode::OK);
    let part = poll_fn(|cx| stream.poll_part(cx)).await.unwrap();
    assert!(matches!(part, crate::h2::Part::Data { bytes, last: true } if bytes == "early"));
}

#[tokio::test(start_paused = true)]
async fn a_stream_beyond_the_last_one_a_server_looked_at_was_not_processed() {
    let (mut raw, client, driving) = client(&[]).await;
    let (mut one, mut three) = (open(&client, true), open(&client, true));
    raw.send(frame::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]).await;
    assert_eq!(poll_fn(|cx| three.poll_failed(cx)).await, StreamError::Refused);
    let closed = client.open(&request(&Method::GET, &HeaderMap::new()), true);
    assert!(matches!(closed, Err(Unopened::Closed)));
    raw.send(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, OK).await;
    assert_eq!(poll_fn(|cx| one.poll_head(cx)).await.unwrap().status, StatusCode::OK);
    drop((one, three));
    raw.rest().await;
    driving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_reads_nothing_or_takes_short_heads_gets_no_more() {
    let (_raw, client, _driving) = client(&[(6, 200)]).await;
    let long =
        HeaderMap::from_iter([("x-long".parse().unwrap(), "y".repeat(200).parse().unwrap())]);
    let refused = client.open(&request(&Method::GET, &long), true);
    assert!(matches!(refused, Err(Unopened::TooLarge)));

    let (_raw, client, _driving) = self::client(&[(3, 1_000_000)]).await;
    let long =
        HeaderMap::from_iter([("x-long".parse().unwrap(), "y".repeat(60_000).parse().unwrap())]);
    let opened = (0..10)
        .take_while(|_| {
            // Cancelled at once: only what waits to be written can bound it.
            client.open(&request(&Method::GET, &long), true).is_ok()
        })
        .count();
    assert!((4..7).contains(&opened), "{opened} heads of 60 kB wait");
}

#[tokio::test(start_paused = true)]
async fn what_a_peer_makes_us_do_for_nothing_is_bounded() {
    for (name, kind, payload) in [
        ("PING", frame::PING, &[0; 8][..]),
        ("SETTINGS", frame::SETTINGS, &[]),
        ("resets", frame::RST_STREAM, &[0, 0, 0, 8]),
    ] {
        let (raw, mut streams, _driving) = server().await;
        let taking = tokio::spawn(async move { while streams.recv().await.is_some() {} });
        let (mut read, mut write) = tokio::io::split(raw.0);
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.map(|_| all)
        });
        let mut sent = 0;
        for n in 0..5000_u32 {
            let mut bytes = BytesMut::new();
            let mut on = 0;
            if kind == frame::RST_STREAM {
                on = 2 * n + 1;
                let flags = frame::END_HEADERS | frame::END_STREAM;
                frame::put_head(&mut bytes, GET.len(), frame::HEADERS, flags, on);
                bytes.extend_from_slice(GET);
            }
            frame::put_head(&mut bytes, payload.len(), kind, 0, on);
            bytes.extend_from_slice(payload);
            if write.write_all(&bytes).await.is_err() {
                break;
            }
            sent = n;
        }
        drop(write);
        let said = reading.await.unwrap().unwrap();
        let why = b"too many frames that carry nothing";
        assert!(said.windows(why.len()).any(|w| w == why), "{name}: after {sent}");
        taking.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn small_pieces_are_few_frames_and_more_interims_than_are_kept_are_forgotten() {
    let (mut raw, client, _driving) = client(&[]).await;
    let mut stream = open(&client, false);
    for n in 0..200_u8 {
        stream.send(Bytes::from(vec![n; 64]), false).unwrap();
    }
    stream.end(None).unwrap();
    let data = raw.next_of(frame::DATA).await;
    let expected: Vec<u8> = (0..200_u8).flat_map(|n| [n; 64]).collect();
    assert!(data.payload == expected && data.flags == frame::END_STREAM, "{}", data.payload.len());
    for _ in 0..31 {
        // `:status: 103`
        raw.send(frame::HEADERS, frame::END_HEADERS, 1, &[0x08, 3, b'1', b'0', b'3']).await;
    }
    raw.send(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, OK).await;
    // All of it has come once this is answered.
    raw.send(frame::PING, 0, 0, &[0; 8]).await;
    raw.next_of(frame::PING).await;
    let mut interims = 0;
    while poll_fn(|cx| stream.poll_head(cx)).await.unwrap().status != StatusCode::OK {
        interims += 1;
    }
    assert_eq!(interims, 8);
}
