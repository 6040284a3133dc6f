//! The engine against itself, seeded: whatever the sizes, the windows and the splitting of what
//! is read, every body arrives whole and nothing waits for ever.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use fastrand::Rng;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::*;

mod accepted;
mod far;
mod lending;
mod raw;

/// A socket that takes and gives a random part of what it could.
struct Choppy {
    io: DuplexStream,
    rng: Rng,
}

impl AsyncRead for Choppy {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let most = buf.remaining().min(self.rng.usize(1..40_000));
        let mut part = vec![0; most];
        let mut part = ReadBuf::new(&mut part);
        let read = Pin::new(&mut self.io).poll_read(cx, &mut part);
        buf.put_slice(part.filled());
        read
    }
}

impl AsyncWrite for Choppy {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let most = bytes.len().min(self.rng.usize(1..40_000));
        Pin::new(&mut self.io).poll_write(cx, &bytes[..most])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

fn config(rng: &mut Rng) -> Config {
    let stream_window = rng.u32(1..200_000);
    Config {
        first_window: rng.u32(1..=stream_window),
        stream_window,
        connection_window: rng.u32(65_535..400_000),
        frame: rng.u32(16_384..100_000),
        streams: 100,
        header_list: 64 * 1024,
        fields: 100,
        memory: &MEMORY,
        gathers: false,
        fixed: false,
    }
}

fn body(seed: u64, length: usize) -> Bytes {
    let mut rng = Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes);
    bytes.into()
}

/// Sends a body in pieces of random sizes, with trailers or without.
async fn send(stream: &mut Stream, mut body: Bytes, rng: &mut Rng) -> Result<(), StreamError> {
    while !body.is_empty() {
        poll_fn(|cx| stream.poll_room(cx)).await?;
        let size = rng.usize(0..100_000).min(body.len());
        stream.send(body.split_to(size), false)?;
        if rng.u8(..) < 16 {
            tokio::task::yield_now().await;
        }
    }
    let trailers = rng.bool().then(|| HeaderMap::from_iter([("x-sum".parse().unwrap(), 7.into())]));
    stream.end(trailers)?;
    poll_fn(|cx| stream.poll_sent(cx)).await
}

async fn receive(stream: &mut Stream, rng: &mut Rng) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    loop {
        if rng.u8(..) < 8 {
            sleep(Duration::from_millis(1)).await;
        }
        match poll_fn(|cx| stream.poll_part(cx)).await? {
            Part::Data { bytes, last } => {
                stream.credit(bytes.len());
                all.extend_from_slice(&bytes);
                if last {
                    return Ok(all);
                }
            }
            Part::End(_) => return Ok(all),
        }
    }
}

/// Both ways at once, as an exchange does: what is received goes back.
async fn echo(stream: &mut Stream, rng: &mut Rng) -> Result<(), StreamError> {
    let mut headers = HeaderMap::new();
    headers.insert("x-filler", HeaderValue::try_from("f".repeat(rng.usize(0..40_000))).unwrap());
    stream.answer(StatusCode::EARLY_HINTS, &HeaderMap::new(), false);
    stream.answer(StatusCode::OK, &headers, false);
    loop {
        poll_fn(|cx| stream.poll_room(cx)).await?;
        match poll_fn(|cx| stream.poll_part(cx)).await? {
            Part::Data { bytes, last } => {
                stream.credit(bytes.len());
                stream.send(bytes, last)?;
                if last {
                    break;
                }
            }
            Part::End(trailers) => {
                stream.end(trailers)?;
                break;
            }
        }
    }
    poll_fn(|cx| stream.poll_sent(cx)).await
}

async fn serve(mut connection: Connection<Choppy>, seed: u64) {
    let mut streams = JoinSet::new();
    let mut rng = Rng::with_seed(seed);
    poll_fn(|cx| {
        let over = connection.poll(cx);
        while let Some(incoming) = connection.next_request() {
            let Incoming::Request(mut stream, _) = incoming else { panic!("{incoming:?}") };
            let mut rng = rng.fork();
            streams.spawn(async move { echo(&mut stream, &mut rng).await });
        }
        over
    })
    .await;
    connection.finish().await;
}

fn request<'a>(method: &'a Method, headers: &'a HeaderMap) -> RequestRef<'a> {
    RequestRef {
        method,
        https: false,
        authority: "a",
        path: "/echo",
        headers,
        te_trailers: true,
        expects_continue: false,
    }
}

/// One client stream: opened, echoed, or dropped midway.
async fn call(mut stream: Stream, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let most = [1, 100, 50_000, 600_000][rng.usize(0..4)];
    let length = rng.usize(0..most);
    let sent = body(seed, length);
    if rng.u8(..) < 32 {
        let _ =
            timeout(Duration::from_millis(rng.u64(..20)), send(&mut stream, sent, &mut rng)).await;
        return;
    }
    // As an exchange does, both ways are polled by one task.
    let mut back = Vec::new();
    let mut left = sent.clone();
    let mut ended = false;
    let mut headed = false;
    poll_fn(|cx| {
        while !ended && stream.poll_room(cx).is_ready() {
            let size = rng.usize(1..100_000).min(left.len());
            stream.send(left.split_to(size), false).unwrap();
            if left.is_empty() {
                ended = true;
                stream.end(None).unwrap();
            }
        }
        while !headed {
            match stream.poll_head(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(head) => headed = head.unwrap().status == StatusCode::OK,
            }
        }
        loop {
            match stream.poll_part(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Part::Data { bytes, last })) => {
                    stream.credit(bytes.len());
                    back.extend_from_slice(&bytes);
                    if last {
                        return Poll::Ready(());
                    }
                }
                Poll::Ready(Ok(Part::End(_))) => return Poll::Ready(()),
                Poll::Ready(Err(error)) => panic!("seed {seed}: {error}"),
            }
        }
    })
    .await;
    assert!(back == sent, "seed {seed}: {} of {} bytes", back.len(), sent.len());
}

async fn run(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let (ours, theirs) = duplex(rng.usize(1..300_000));
    let server = Connection::server(Choppy { io: theirs, rng: rng.fork() }, config(&mut rng));
    let io = Choppy { io: ours, rng: rng.fork() };
    let (mut connection, client) = Connection::client(io, config(&mut rng));
    let server = tokio::spawn(serve(server, rng.u64(..)));
    let driver = tokio::spawn(async move {
        poll_fn(|cx| connection.poll(cx)).await;
        connection.finish().await;
    });
    let mut calls = JoinSet::new();
    for _ in 0..rng.usize(1..40) {
        let stream = loop {
            match client.open(&request(&Method::POST, &HeaderMap::new()), false) {
                Ok(stream) => break stream,
                Err(Unopened::Full) => sleep(Duration::from_millis(1)).await,
                Err(why) => panic!("seed {seed}: {why:?}"),
            }
        };
        calls.spawn(call(stream, rng.u64(..)));
        if rng.bool() {
            sleep(Duration::from_millis(rng.u64(..3))).await;
        }
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    drop(client);
    driver.await.unwrap();
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_body_arrives_whole_whatever_the_windows() {
    for seed in 0..200 {
        // Paused time jumps only when everybody waits: that nobody moves is thus seen at once.
        timeout(Duration::from_secs(600), run(seed))
            .await
            .unwrap_or_else(|_| panic!("seed {seed}: somebody waits for ever"));
    }
}

#[tokio::test(start_paused = true)]
async fn receiving_alone_and_sending_alone_work_too() {
    let mut rng = Rng::with_seed(1);
    let (ours, theirs) = duplex(1000);
    let server = Connection::server(Choppy { io: theirs, rng: rng.fork() }, config(&mut rng));
    let io = Choppy { io: ours, rng: rng.fork() };
    let (mut connection, client) = Connection::client(io, config(&mut rng));
    tokio::spawn(serve(server, 1));
    tokio::spawn(async move { poll_fn(|cx| connection.poll(cx)).await });
    let mut stream = client.open(&request(&Method::POST, &HeaderMap::new()), false).unwrap();
    let sent = body(7, 5_000);
    send(&mut stream, sent.clone(), &mut rng).await.unwrap();
    while poll_fn(|cx| stream.poll_head(cx)).await.unwrap().status != StatusCode::OK {}
    assert!(receive(&mut stream, &mut rng).await.unwrap() == sent);
}
