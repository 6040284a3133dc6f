//! Flow control: the windows of the proxy, and those of the client.

use std::collections::BTreeMap;

use towpath_tests::{
    Proxy, Script, ScriptedOrigin, StrictOrigin, echo,
    frames::{
        ACK, DATA, END_STREAM, FLOW_CONTROL_ERROR, Frame, FrameOrigin, Frames, GET, GOAWAY,
        HEADER_TABLE_SIZE, HEADERS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, PADDED, PING, POST,
        RST_STREAM, SETTINGS, Verdict, WINDOW_UPDATE, frame, headers, setting, window,
    },
};

use super::{announced, connect};

#[tokio::test]
async fn sending_beyond_the_window_is_an_error_of_flow_control() {
    // An origin that grants nothing, so that nothing can be passed on.
    let origin = FrameOrigin::start(setting(INITIAL_WINDOW_SIZE, 0), |_, _| Script::keep([])).await;
    let proxy = Proxy::before("HTTP2", &[origin.address]).await;
    let mut client = connect(&proxy).await;
    client.send(headers(0, 1, POST)).await;
    let piece = frame(DATA, 0, 1, vec![7; 16_384]);
    for _ in 0..4_096 {
        if !client.wire.try_send(&piece).await {
            break;
        }
    }
    let verdict = client.verdict(1).await;
    assert!(
        matches!(verdict, Verdict::Reset(FLOW_CONTROL_ERROR) | Verdict::GoAway(FLOW_CONTROL_ERROR)),
        "{verdict:?}"
    );
}

/// A client that keeps to the windows it is given, and collects answers.
struct Careful {
    frames: Frames,
    connection: i64,
    initial: i64,
    granted: BTreeMap<u32, i64>,
    answers: BTreeMap<u32, (u16, Vec<u8>, bool)>,
    queue: Vec<u8>,
}

impl Careful {
    async fn connect(proxy: &Proxy) -> Self {
        let initial = i64::from(announced(proxy).await[&INITIAL_WINDOW_SIZE]);
        Self {
            frames: connect(proxy).await,
            connection: 65_535,
            initial,
            granted: BTreeMap::new(),
            answers: BTreeMap::new(),
            queue: Vec::new(),
        }
    }

    /// Sends what waits.
    async fn flush(&mut self) {
        self.frames.send(std::mem::take(&mut self.queue)).await;
    }

    /// Reads one frame.
    async fn read(&mut self) {
        self.flush().await;
        let kinds = [HEADERS, DATA, WINDOW_UPDATE, RST_STREAM, GOAWAY];
        let next = self.frames.next_of(&kinds).await;
        let answer = self.answers.entry(next.stream).or_default();
        match next.kind {
            HEADERS => answer.0 = next.status(),
            DATA => answer.1.extend(&next.payload),
            WINDOW_UPDATE => {
                let by = next.payload[..4].try_into().expect("four bytes");
                let by = i64::from(u32::from_be_bytes(by));
                match next.stream {
                    0 => self.connection += by,
                    stream => *self.granted.entry(stream).or_default() += by,
                }
                return;
            }
            _ => panic!("refused: {next:?}"),
        }
        answer.2 |= next.flags & END_STREAM != 0;
    }

    /// Sends DATA as soon as the windows let it.
    async fn data(&mut self, flags: u8, stream: u32, payload: &[u8]) {
        let size = payload.len() as i64;
        while size > 0
            && self
                .connection
                .min(self.initial + self.granted.get(&stream).copied().unwrap_or_default())
                < size
        {
            self.read().await;
        }
        self.connection -= size;
        *self.granted.entry(stream).or_default() -= size;
        self.queue.extend(frame(DATA, flags, stream, payload));
        if self.queue.len() > 32 << 10 {
            self.flush().await;
        }
    }

    /// The whole answer.
    async fn answer(&mut self, stream: u32) -> (u16, String) {
        while !self.answers.get(&stream).is_some_and(|a| a.2) {
            self.read().await;
        }
        let (status, body, _) = self.answers.remove(&stream).expect("an answer");
        (status, String::from_utf8(body).expect("text"))
    }
}

#[tokio::test]
async fn many_frames_of_one_byte_are_an_upload_like_any_other() {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Careful::connect(&proxy).await;
    let body: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(n) >> 9) as u8).collect();
    let length = body.len().to_string();
    let fields = [POST, &[("content-length", length.as_str())]].concat();
    client.frames.send(headers(0, 1, &fields)).await;
    for (n, byte) in body.iter().enumerate() {
        client.data(u8::from(n + 1 == body.len()), 1, &[*byte]).await;
    }
    assert_eq!(client.answer(1).await, (200, echo("POST", "/x", &body)));
}

#[tokio::test]
async fn padding_is_taken_off_and_its_window_given_back() {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let said = announced(&proxy).await;
    let mut client = Careful::connect(&proxy).await;
    client.frames.send(headers(0, 1, POST)).await;
    // Padding worth more than any window that was given at first.
    let frames = (said[&INITIAL_WINDOW_SIZE] as usize).max(1 << 20) * 2 / 257;
    let body: Vec<u8> = (0..frames).map(|n| (n % 251) as u8).collect();
    for (n, byte) in body.iter().enumerate() {
        let mut padded = [0; 257];
        (padded[0], padded[1]) = (255, *byte);
        client.data(PADDED | u8::from(n + 1 == frames), 1, &padded).await;
    }
    assert_eq!(client.answer(1).await, (200, echo("POST", "/x", &body)));
}

#[tokio::test]
async fn a_hundred_interleaved_uploads_do_not_mix() {
    const STREAMS: u32 = 100;
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Careful::connect(&proxy).await;
    let paths: Vec<String> = (0..STREAMS).map(|n| format!("/{n}")).collect();
    let bodies: Vec<Vec<u8>> = (0..STREAMS)
        .map(|n| (0..6_000 + n * 7).map(|k| ((k * (n + 3)) >> 3) as u8).collect())
        .collect();
    for (n, path) in (0..).zip(&paths) {
        client.frames.send(headers(0, 2 * n + 1, &[&POST[..3], &[(":path", path)]].concat())).await;
    }
    for round in 0..10 {
        for (n, body) in (0..).zip(&bodies) {
            let step = body.len() / 10;
            let end = if round == 9 { body.len() } else { (round + 1) * step };
            client.data(u8::from(round == 9), 2 * n + 1, &body[round * step..end]).await;
        }
    }
    for ((n, path), body) in (0..).zip(&paths).zip(&bodies) {
        assert_eq!(client.answer(2 * n + 1).await, (200, echo("POST", path, body)), "{path}");
    }
}

/// A client that holds the proxy to the windows it gives.
struct Downloader {
    frames: Frames,
    connection: i64,
    /// What stream 1 may still be sent.
    window: i64,
    largest: usize,
    body: Vec<u8>,
    ended: bool,
}

impl Downloader {
    /// Asks for `/x` on stream 1. The connection's window is `connection` more than at first.
    async fn start(proxy: &Proxy, initial: u32, connection: u32, more: &[u8]) -> Self {
        let settings = [setting(HEADER_TABLE_SIZE, 0), setting(INITIAL_WINDOW_SIZE, initial)];
        let settings = [&settings.concat(), more].concat();
        let mut frames = Frames::connect_with(proxy.address, &settings).await;
        if connection > 0 {
            frames.send(window(0, connection)).await;
        }
        frames.send(headers(END_STREAM, 1, GET)).await;
        Self {
            frames,
            connection: 65_535 + i64::from(connection),
            window: i64::from(initial),
            largest: 0,
            body: Vec::new(),
            ended: false,
        }
    }

    async fn read(&mut self) -> Frame {
        let next = self.frames.any().await.expect("a frame, not the end");
        self.frames.acknowledge(&next).await;
        assert!(!matches!(next.kind, RST_STREAM | GOAWAY), "{next:?}");
        if next.kind == DATA {
            let size = next.payload.len();
            (self.connection, self.window) =
                (self.connection - size as i64, self.window - size as i64);
            let kept = size == 0 || (self.window >= 0 && self.connection >= 0);
            assert!(kept, "{size} bytes, beyond by {} or {}", -self.window, -self.connection);
            self.largest = self.largest.max(size);
            self.body.extend(&next.payload);
            self.ended |= next.flags & END_STREAM != 0;
        }
        next
    }

    async fn grant(&mut self, stream: u32, by: u32) {
        self.frames.send(window(stream, by)).await;
        *(if stream == 0 { &mut self.connection } else { &mut self.window }) += i64::from(by);
    }

    /// Everything that was sent before the proxy read all of ours.
    async fn settle(&mut self) {
        self.frames.send(frame(PING, 0, 0, *b"settled?")).await;
        while self.read().await.kind != PING {}
    }

    /// Another initial window, from when the proxy knows of it.
    async fn lower(&mut self, from: u32, to: u32) {
        self.frames.send(setting(INITIAL_WINDOW_SIZE, to)).await;
        loop {
            let next = self.read().await;
            if next.kind == SETTINGS && next.flags & ACK != 0 {
                break;
            }
        }
        self.window += i64::from(to) - i64::from(from);
    }

    /// The rest, with more of each window whenever there is none, in steps of all sizes.
    async fn finish(&mut self, expected: &[u8]) {
        let mut steps = [1, 2, 3, 100, 1, 5_000, 16_384, 40_000].into_iter().cycle();
        while !self.ended {
            for (stream, left) in [(0, self.connection), (1, self.window)] {
                if left <= 0 {
                    let step = steps.next().expect("endless");
                    self.grant(stream, (step - left) as u32).await;
                }
            }
            self.read().await;
        }
        assert!(self.body == expected, "{} of {} bytes alike", self.body.len(), expected.len());
    }
}

/// An origin with 100 KB, and these bytes.
async fn library() -> (ScriptedOrigin, Vec<u8>) {
    let body: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer = [head.as_bytes(), &body].concat();
    (ScriptedOrigin::start(move |_| Script::keep(answer.clone())).await, body)
}

#[tokio::test]
async fn a_download_keeps_to_every_window_and_loses_no_byte() {
    let (origin, body) = library().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    // A window of one byte, and a connection's window that runs out.
    let mut one = Downloader::start(&proxy, 1, 1 << 20, &[]).await;
    one.finish(&body).await;
    let mut narrow = Downloader::start(&proxy, 1 << 20, 0, &[]).await;
    narrow.finish(&body).await;
    // None at first: the head comes, the body waits.
    let mut none = Downloader::start(&proxy, 0, 1 << 20, &[]).await;
    while none.read().await.kind != HEADERS {}
    none.settle().await;
    assert!(none.body.is_empty());
    none.frames.send(setting(INITIAL_WINDOW_SIZE, 30_000)).await;
    none.window += 30_000;
    while none.window > 0 {
        none.read().await;
    }
    none.finish(&body).await;
    // Lowered amid the body, so that it is below zero.
    let mut lowered = Downloader::start(&proxy, 65_535, 1 << 20, &[]).await;
    while lowered.body.len() < 20_000 {
        lowered.read().await;
    }
    lowered.lower(65_535, 100).await;
    assert!(lowered.window < 0, "{} left", lowered.window);
    lowered.settle().await;
    let (had, below) = (lowered.body.len(), lowered.window);
    lowered.grant(1, (-below) as u32).await;
    lowered.settle().await;
    assert_eq!(lowered.body.len(), had, "a window of nothing");
    lowered.grant(1, 10).await;
    while lowered.body.len() < had + 10 {
        lowered.read().await;
    }
    lowered.settle().await;
    assert_eq!(lowered.body.len(), had + 10);
    lowered.finish(&body).await;
    // Frames no longer than the client takes, by default and by its word.
    for (most, said) in [(16_384, Vec::new()), (20_000, setting(MAX_FRAME_SIZE, 20_000))] {
        let mut client = Downloader::start(&proxy, 1 << 20, 1 << 20, &said).await;
        client.finish(&body).await;
        assert!(client.largest <= most, "{} bytes in a frame, not {most}", client.largest);
    }
}

#[tokio::test]
async fn a_stream_without_a_window_stops_no_other() {
    let (origin, body) = library().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Downloader::start(&proxy, 0, 1 << 20, &[]).await;
    let others = (3..=21).step_by(2).flat_map(|s| headers(END_STREAM, s, GET)).collect::<Vec<_>>();
    client.frames.send([others, window(21, 1 << 20)].concat()).await;
    let mut got = Vec::new();
    while got.len() < body.len() {
        let next = client.frames.next_of(&[DATA, RST_STREAM, GOAWAY]).await;
        assert_eq!((next.kind, next.stream), (DATA, 21));
        got.extend(next.payload);
    }
    assert!(got == body, "byte for byte");
    client.finish(&body).await;
}
