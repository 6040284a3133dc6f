//! Bulk over a long road: simulated delay, paused time.

use std::{future::poll_fn, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::mpsc::unbounded_channel,
    time::{Instant, sleep_until, timeout},
};

use super::request;
use crate::h2::{Config, Connection, Incoming, MEMORY, Part};

const CONFIG: Config = Config {
    first_window: 1 << 20,
    stream_window: 1 << 20,
    connection_window: 4 << 20,
    frame: 16_384,
    streams: 100,
    header_list: 65_536,
    fields: 100,
    memory: &MEMORY,
    gathers: false,
    fixed: false,
};
const ONE_WAY: Duration = Duration::from_millis(50);

/// Carries bytes with a delay and without any other bound.
async fn carry(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
    let (send, mut receive) = unbounded_channel::<(Instant, Vec<u8>)>();
    let arriving = tokio::spawn(async move {
        while let Some((at, bytes)) = receive.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut piece = vec![0; 1 << 20];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        let _ = send.send((Instant::now() + ONE_WAY, piece[..read].to_vec()));
    }
    drop(send);
    let _ = arriving.await;
}

/// Two ends of a road that takes 100 ms there and back.
fn road() -> (DuplexStream, DuplexStream) {
    let ((here, a), (b, there)) = (duplex(1 << 20), duplex(1 << 20));
    let ((a_read, a_write), (b_read, b_write)) = (split(a), split(b));
    tokio::spawn(carry(a_read, b_write));
    tokio::spawn(carry(b_read, a_write));
    (here, there)
}

/// Time to fetch so many bytes, taking `pace` for each part that is read.
async fn fetch(bytes: usize, pace: Duration) -> (Duration, u32) {
    let (ours, theirs) = road();
    let mut server = Connection::server(theirs, CONFIG);
    tokio::spawn(async move {
        poll_fn(|cx| {
            let over = server.poll(cx);
            while let Some(Incoming::Request(mut stream, _)) = server.next_request() {
                tokio::spawn(async move {
                    stream.answer(StatusCode::OK, &HeaderMap::new(), false);
                    for _ in 0..bytes / 65_536 {
                        poll_fn(|cx| stream.poll_room(cx)).await.unwrap();
                        stream.send(Bytes::from_static(&[7; 65_536]), false).unwrap();
                    }
                    stream.end(None).unwrap();
                    poll_fn(|cx| stream.poll_sent(cx)).await.unwrap();
                });
            }
            over
        })
        .await;
    });
    let (mut connection, client) = Connection::client(ours, CONFIG);
    let shared = connection.window();
    tokio::spawn(async move { poll_fn(|cx| connection.poll(cx)).await });
    let mut stream = client.open(&request(&Method::GET, &HeaderMap::new()), true).unwrap();
    let before = Instant::now();
    let mut got = 0;
    while let Part::Data { bytes, .. } = poll_fn(|cx| stream.poll_part(cx)).await.unwrap() {
        got += bytes.len();
        if !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
        stream.credit(bytes.len());
    }
    assert_eq!(got, bytes / 65_536 * 65_536);
    (before.elapsed(), shared())
}

#[tokio::test(start_paused = true)]
async fn windows_grow_to_what_the_road_carries() {
    let (took, window) = fetch(96 << 20, Duration::ZERO).await;
    // At 1 MiB each round trip it would be 9.6 s.
    assert!(took < Duration::from_millis(2500), "{took:?}");
    assert_eq!(window, 16 << 20);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_slow_or_takes_little_keeps_its_window() {
    let slow = fetch(8 << 20, Duration::from_millis(10));
    let (_, window) = timeout(Duration::from_secs(600), slow).await.unwrap();
    assert_eq!(window, 1 << 20, "16 KiB each 10 ms are no reason for more");
    let (_, window) = fetch(256 << 10, Duration::ZERO).await;
    assert_eq!(window, 1 << 20);
}
