//! Clients that lie, never read, never write or reset without end: what they cost is bounded, and
//! whoever transfers beside them gets every byte.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};
use towpath_tests::{
    Proxy, Wire,
    frames::{
        CANCEL, DATA, END_STREAM, Frames, GET, INITIAL_WINDOW_SIZE, POST, frame, headers, reset,
        setting, window,
    },
};

use super::floods::{BOUND, TURN, resident};

/// Length of every answer of [`lake`].
const LENGTH: usize = 8 << 20;

/// What an answer of [`lake`] is made of.
fn block() -> Vec<u8> {
    let mut block = vec![0; LENGTH / 8];
    fastrand::Rng::with_seed(1).fill(&mut block);
    block
}

/// An origin that holds one block, sends it eight times to whoever asks, and leaves bodies unread.
fn lake() -> (SocketAddr, JoinSet<()>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    // A thousand answers that nobody reads are not to fill the kernel: it would break connections.
    socket.set_send_buffer_size(64 << 10).expect("a size for the buffer");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let listener = socket.listen(4096).expect("a bound socket listens");
    let address = listener.local_addr().expect("a bound socket has an address");
    let block: &[u8] = block().leak();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut serving = JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            serving.spawn(serve(tcp, block));
            while serving.try_join_next().is_some() {}
        }
    });
    (address, task)
}

async fn serve(mut tcp: TcpStream, block: &[u8]) {
    let mut seen = Vec::new();
    while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
        if tcp.read_buf(&mut seen).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\nconnection: close\r\n\r\n");
    let mut sent = tcp.write_all(head.as_bytes()).await;
    for _ in 0..8 {
        if sent.is_ok() {
            sent = tcp.write_all(block).await;
        }
    }
}

/// A transfer beside the attack.
async fn transfers(proxy: &Proxy) {
    let mut client = Wire::connect(proxy.address).await;
    client.send("GET /bulk HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.response_head().await.status, 200);
    let expected = block();
    for piece in 0..8 {
        assert!(client.exactly(expected.len()).await == expected, "piece {piece} is another");
    }
}

/// Transfers during the attack and after it, and looks at the memory while the attackers stand.
async fn nobody_suffers<T>(attack: impl AsyncFnOnce(&Proxy) -> T) {
    let _turn = TURN.lock().await;
    let (origin, _task) = lake();
    let proxy = Proxy::before("HTTP", &[origin]).await;
    transfers(&proxy).await;
    let before = resident();
    let (attackers, ()) = tokio::join!(attack(&proxy), transfers(&proxy));
    transfers(&proxy).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < BOUND, "{grown} bytes");
    drop(attackers);
}

#[tokio::test]
async fn who_lies_about_a_length_harms_nobody_else() {
    nobody_suffers(async |proxy| {
        let mut liars = Vec::new();
        for (told, sent) in [("1000000000", 1000), ("5", 10), ("10", 5)] {
            let mut client = Frames::connect(proxy.address).await;
            for stream in (1..100).step_by(2) {
                let head = [POST, &[("content-length", told)]].concat();
                client.wire.try_send(headers(0, stream, &head)).await;
                client.wire.try_send(frame(DATA, END_STREAM, stream, vec![7; sent])).await;
            }
            liars.push(client.wire);
            for _ in 0..20 {
                let mut client = Wire::connect(proxy.address).await;
                let head = format!("POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: {told}\r\n\r\n");
                client.try_send(head).await;
                client.try_send(vec![7; sent]).await;
                client.finish().await;
                liars.push(client);
            }
        }
        liars
    })
    .await;
}

#[tokio::test]
async fn who_never_reads_what_they_ask_for_harms_nobody_else() {
    nobody_suffers(async |proxy| {
        let mut deaf = Vec::new();
        for _ in 0..4 {
            // All may come at once: 100 answers, 800 MiB.
            let grant = setting(INITIAL_WINDOW_SIZE, 0x7fff_ffff);
            let mut client = Frames::connect_with(proxy.address, &grant).await;
            client.send(window(0, 0x7000_0000)).await;
            for stream in (1..200).step_by(2) {
                client.wire.try_send(headers(END_STREAM, stream, GET)).await;
            }
            deaf.push(client.wire);
        }
        for _ in 0..50 {
            let mut client = Wire::connect(proxy.address).await;
            client.send("GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await;
            deaf.push(client);
        }
        deaf
    })
    .await;
}

#[tokio::test]
async fn who_never_writes_what_they_announced_harms_nobody_else() {
    nobody_suffers(async |proxy| {
        let mut silent = Vec::new();
        for _ in 0..10 {
            let mut client = Frames::connect(proxy.address).await;
            for stream in (1..200).step_by(2) {
                client.wire.try_send(headers(0, stream, POST)).await;
            }
            silent.push(client.wire);
        }
        for head in ["", "POST /x HT", "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n"]
        {
            for _ in 0..50 {
                let mut client = Wire::connect(proxy.address).await;
                client.send(head).await;
                silent.push(client);
            }
        }
        silent
    })
    .await;
}

#[tokio::test]
async fn who_resets_ten_thousand_streams_harms_nobody_else() {
    nobody_suffers(async |proxy| {
        let mut client = Frames::connect(proxy.address).await;
        for stream in (1..20_000).step_by(2) {
            let pair = [headers(END_STREAM, stream, GET), reset(stream, CANCEL)].concat();
            if !client.wire.try_send(pair).await {
                break;
            }
        }
        client.wire
    })
    .await;
}
