//! linkerd2#15649: a replay once sent the first chunk of a body twice, and the back end answered
//! 200. Here the origin records every byte of every try, however the one before it failed.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use towpath_policies::model::{Balancer, Protocol, RetryCondition};

use crate::harness::{Input, Setup, origin, soon};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// How the first try of a request ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Nobody listens.
    Connect,
    /// `REFUSED_STREAM`, after so many bytes of the body.
    Refused(usize),
    /// `GOAWAY` that names no stream, after so many bytes, and then the end of the connection.
    GoAway(usize),
    /// The connection, or the stream, is reset after so many bytes.
    Reset(usize),
    /// A pooled connection that is closed when the request comes.
    Stale,
}

/// The body bytes of each try, as they came.
type Tries = Arc<Mutex<Vec<Vec<u8>>>>;

/// A body of no pattern, so that bytes that are missing or twice show.
fn body(size: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(size as u64);
    std::iter::repeat_with(|| rng.u8(..)).take(size).collect()
}

async fn h1_origin(fault: Fault, size: usize, chunked: bool, tries: Tries) -> SocketAddr {
    origin(move |mut io, before| {
        let tries = tries.clone();
        async move {
            if fault == Fault::Stale && before == 0 {
                Input::default().message(&mut io).await.unwrap();
                io.write_all(OK).await.unwrap();
                // The second request is read as far as its head, and not answered.
                read_head(&mut io).await;
                tries.lock().unwrap().push(Vec::new());
                return;
            }
            read_head(&mut io).await;
            let of_this = {
                let mut tries = tries.lock().unwrap();
                tries.push(Vec::new());
                tries.len() - 1
            };
            let breaks = match fault {
                Fault::Reset(after) if of_this == 0 => Some(after),
                _ => None,
            };
            let mut left_of_chunk = if chunked { 0 } else { size };
            let mut got = 0;
            while got < breaks.unwrap_or(size) {
                if left_of_chunk == 0 {
                    left_of_chunk = read_chunk_size(&mut io).await;
                }
                let byte_or_more =
                    read_some(&mut io, left_of_chunk.min(breaks.unwrap_or(size) - got)).await;
                got += byte_or_more.len();
                left_of_chunk -= byte_or_more.len();
                tries.lock().unwrap()[of_this].extend_from_slice(&byte_or_more);
                if left_of_chunk == 0 && chunked {
                    assert_eq!(io.read_u16().await.unwrap(), 0x0d0a);
                }
            }
            if breaks.is_some() {
                io.set_zero_linger().unwrap();
                return;
            }
            if chunked {
                assert_eq!(read_chunk_size(&mut io).await, 0);
                assert_eq!(io.read_u16().await.unwrap(), 0x0d0a);
            }
            io.write_all(OK).await.unwrap();
            // What a body that is too long would leave behind.
            while let Ok(byte) = io.read_u8().await {
                tries.lock().unwrap()[of_this].push(byte);
            }
        }
    })
    .await
    .0
}

async fn read_some(io: &mut TcpStream, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; most.min(64 << 10)];
    let read = io.read(&mut bytes).await.unwrap();
    assert_ne!(read, 0, "the try ends early");
    bytes.truncate(read);
    bytes
}

async fn read_chunk_size(io: &mut TcpStream) -> usize {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(io.read_u8().await.unwrap());
    }
    usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap()
}

async fn read_head(io: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An HTTP/2 origin by hand, so that it sees every DATA frame as it was sent.
async fn h2_origin(fault: Fault, size: usize, tries: Tries) -> SocketAddr {
    origin(move |mut io, _| {
        let tries = tries.clone();
        // An end of the connection is an end of the script.
        async move { play(&mut io, fault, size, &tries).await.unwrap_or_default() }
    })
    .await
    .0
}

async fn play(
    io: &mut TcpStream,
    fault: Fault,
    size: usize,
    tries: &Mutex<Vec<Vec<u8>>>,
) -> Option<()> {
    io.read_exact(&mut [0; 24]).await.ok()?;
    io.write_all(&frame(SETTINGS, 0, 0, &[])).await.ok()?;
    let mut of_stream = std::collections::HashMap::new();
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        io.read_exact(&mut payload).await.ok()?;
        match head[3] {
            SETTINGS if head[4] & 1 == 0 => io.write_all(&frame(SETTINGS, 1, 0, &[])).await.ok()?,
            HEADERS => {
                let mut tries = tries.lock().unwrap();
                of_stream.insert(stream, tries.len());
                tries.push(Vec::new());
            }
            DATA => {
                let credit = length.to_be_bytes();
                if length > 0 {
                    io.write_all(&frame(WINDOW_UPDATE, 0, 0, &credit)).await.ok()?;
                }
                // What was under way of a stream that is gone goes nowhere.
                let Some(of_this) = of_stream.get(&stream) else { continue };
                tries.lock().unwrap()[*of_this].extend_from_slice(&payload);
            }
            _ => continue,
        }
        let Some(of_this) = of_stream.get(&stream).copied() else { continue };
        let got = tries.lock().unwrap()[of_this].len();
        let (after, code) = match fault {
            Fault::Refused(after) => (after, 7u32),
            Fault::GoAway(after) => (after, 0),
            Fault::Reset(after) => (after, 2),
            Fault::Connect | Fault::Stale => (usize::MAX, 0),
        };
        if of_this == 0 && got >= after {
            if let Fault::GoAway(_) = fault {
                io.write_all(&frame(GOAWAY, 0, 0, &[0; 8])).await.ok()?;
                // Reads on, so that the frame is not lost to a reset.
                io.shutdown().await.ok()?;
                while io.read(&mut [0; 4096]).await.ok()? > 0 {}
                return None;
            }
            io.write_all(&frame(RST_STREAM, 0, stream, &code.to_be_bytes())).await.ok()?;
            of_stream.remove(&stream);
            continue;
        }
        if head[3] == DATA && length > 0 {
            io.write_all(&frame(WINDOW_UPDATE, 0, stream, &length.to_be_bytes())).await.ok()?;
        }
        if got == size && matches!(head[3], DATA) && head[4] & 1 == 1 {
            // 200, from the static table.
            io.write_all(&frame(HEADERS, 0b101, stream, &[0x88])).await.ok()?;
        }
    }
}

async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Small: a few chunks, kept in memory. Large: more than any buffer or window on the way.
const SMALL: usize = 40_000;
const LARGE: usize = 5 << 20;

#[tokio::test]
async fn every_try_sees_each_byte_once_and_in_order_however_the_one_before_failed() {
    use Fault::{Connect, GoAway, Refused, Reset, Stale};
    for (protocol, size, faults) in [
        (
            Protocol::Http1,
            SMALL,
            vec![Connect, Reset(0), Reset(1), Reset(20_000), Reset(SMALL), Stale],
        ),
        (
            Protocol::Http2,
            SMALL,
            vec![
                Connect,
                Refused(0),
                Refused(1),
                Refused(20_000),
                GoAway(0),
                GoAway(20_000),
                Reset(0),
                Reset(20_000),
                Reset(SMALL),
            ],
        ),
        // As large as this only what was not processed is tried again.
        (Protocol::Http1, LARGE, vec![Connect]),
        (Protocol::Http2, LARGE, vec![Connect, Refused(0), GoAway(0)]),
    ] {
        for fault in faults {
            for chunked in [false, true] {
                let what = format!("{protocol:?}, {size} bytes, {fault:?}, chunked: {chunked}");
                let got = upload(protocol, size, fault, chunked).await;
                let expected = body(size);
                let tries = if fault == Connect { 1 } else { 2 };
                assert_eq!(got.len(), tries, "{what}");
                for (n, bytes) in got.iter().enumerate() {
                    assert!(expected.starts_with(bytes), "{what}: try {n} saw other bytes");
                }
                assert!(got.last().unwrap().len() == size, "{what}: the last try saw less");
            }
        }
    }
}

/// The bytes of each try of one upload, which ends well.
async fn upload(protocol: Protocol, size: usize, fault: Fault, chunked: bool) -> Vec<Vec<u8>> {
    let tries = Tries::default();
    let addr = match protocol {
        Protocol::Http2 => h2_origin(fault, size, tries.clone()).await,
        _ => h1_origin(fault, size, chunked, tries.clone()).await,
    };
    let addrs = if fault == Fault::Connect { vec![nobody().await, addr] } else { vec![addr] };
    let proxy = Setup::to_all(&addrs)
        .speaking(protocol)
        .with(|s| {
            s.service.balancer = Balancer::RoundRobin;
            // What is sent before a refusal comes is at most the endpoint's window.
            s.forward.retry.replay_limit_bytes = 128 << 10;
            s.forward.retry.on = vec![
                RetryCondition::ConnectFailure,
                RetryCondition::RefusedStream,
                RetryCondition::Reset,
            ];
        })
        .start()
        .await;
    let mut io = proxy.connect().await;
    if fault == Fault::Stale {
        io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        soon(Input::default().message(&mut io)).await.unwrap();
    }
    let (mut read, mut write) = io.into_split();
    let body = body(size);
    let sending = tokio::spawn(async move {
        let framing = match chunked {
            true => "Transfer-Encoding: chunked".to_owned(),
            false => format!("Content-Length: {}", body.len()),
        };
        let head = format!("PUT / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
        write.write_all(head.as_bytes()).await?;
        for piece in body.chunks(7_001) {
            if chunked {
                write.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
            }
            write.write_all(piece).await?;
            if chunked {
                write.write_all(b"\r\n").await?;
            }
        }
        if chunked {
            write.write_all(b"0\r\n\r\n").await?;
        }
        std::io::Result::Ok(write)
    });
    let mut reply = vec![0; 12];
    soon(read.read_exact(&mut reply)).await.unwrap();
    let reply = String::from_utf8(reply).unwrap();
    assert_eq!(reply, "HTTP/1.1 200", "{protocol:?}, {size} bytes, {fault:?}, chunked: {chunked}");
    let _ = soon(sending).await.unwrap();
    drop(read);
    tries.lock().unwrap().clone()
}
