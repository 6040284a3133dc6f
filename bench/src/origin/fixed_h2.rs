//! Cleartext HTTP/2 origins that give one fixed answer, as cheaply as frames allow.
//!
//! A general HTTP/2 server would cost more per request than the fastest proxies here, which would
//! then mostly wait, and a waiting proxy pays for more wake-ups per request.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::{GRPC_MESSAGE, Seen};
use crate::wire::h2::{self, Frame, HeaderBlock, kind, setting};
use crate::wire::{ReadBuffer, write_all};

const BUFFER: usize = 256 * 1024;
/// What a peer may send on a connection before it must wait for an update.
const RECEIVE_WINDOW: u32 = 16 << 20;
/// An update is sent once this much was taken in.
const WINDOW_STEP: u32 = 4 << 20;
/// Streams that may wait for the peer's window; more than the load ever opens.
const MAX_WAITING: usize = 4096;

/// Serves a connection on which every request gets the small response.
pub(super) async fn serve_small(
    stream: TcpStream,
    seen: Arc<Seen>,
    body: usize,
) -> Result<(), String> {
    let length = body.to_string();
    let head = HeaderBlock::new(&[8]).with(&[
        (0, "server", "origin"),
        (0, "date", "Fri, 20 Nov 2026 12:00:00 GMT"),
        (0, "content-type", "application/json"),
        (0, "cache-control", "no-store"),
        (0, "content-length", length.as_str()),
    ]);
    let answer = Answer { head, body: vec![b'x'; body], trailers: None };
    Connection::new(answer, &seen).run(&stream).await
}

/// Serves a connection on which every request is a unary call that succeeds.
pub(super) async fn serve_grpc(stream: TcpStream, seen: Arc<Seen>) -> Result<(), String> {
    let head = HeaderBlock::new(&[8])
        .with(&[(0, "content-type", "application/grpc"), (0, "grpc-encoding", "identity")]);
    let mut body = vec![0, 0, 0];
    body.extend_from_slice(&[(GRPC_MESSAGE >> 8) as u8, (GRPC_MESSAGE & 0xff) as u8]);
    body.resize(5 + GRPC_MESSAGE, b'y');
    // Always in full: a real server inserts it once, but our insertions belong to `head`.
    let trailers = HeaderBlock::default().with(&[(0, "grpc-status", "0")]);
    let answer = Answer { head, body, trailers: Some(trailers.encoded(0, 0).to_vec()) };
    Connection::new(answer, &seen).run(&stream).await
}

struct Answer {
    head: HeaderBlock,
    body: Vec<u8>,
    trailers: Option<Vec<u8>>,
}

struct Connection<'a> {
    answer: Answer,
    seen: &'a Seen,
    answered: u64,
    peer_table: u32,
    send_window: i64,
    received: u32,
    waiting: VecDeque<u32>,
    /// Whether the stream of an unfinished header block has ended.
    block_ends_stream: bool,
    out: Vec<u8>,
}

impl<'a> Connection<'a> {
    fn new(answer: Answer, seen: &'a Seen) -> Self {
        Self {
            answer,
            seen,
            answered: 0,
            peer_table: h2::DEFAULT_TABLE,
            send_window: i64::from(h2::DEFAULT_WINDOW),
            received: 0,
            waiting: VecDeque::new(),
            block_ends_stream: false,
            out: Vec::with_capacity(BUFFER),
        }
    }

    /// Runs until the peer closes. Socket errors are the peer's right; protocol errors are not.
    async fn run(mut self, stream: &TcpStream) -> Result<(), String> {
        let mut buffer = ReadBuffer::new(BUFFER);
        while buffer.filled().len() < h2::PREFACE.len() {
            if !matches!(buffer.fill(stream).await, Ok(1..)) {
                return Ok(());
            }
        }
        if !buffer.filled().starts_with(h2::PREFACE) {
            return Err("the connection does not start with the HTTP/2 preface".to_owned());
        }
        buffer.consume(h2::PREFACE.len());
        h2::put_settings(
            &mut self.out,
            &[(setting::INITIAL_WINDOW_SIZE, 1 << 20), (setting::MAX_CONCURRENT_STREAMS, 1024)],
        );
        h2::put_window_update(&mut self.out, 0, RECEIVE_WINDOW - h2::DEFAULT_WINDOW);
        loop {
            while let Some(frame) = Frame::first_in(buffer.filled()) {
                let length = frame.length();
                self.take(&frame)?;
                buffer.consume(length);
            }
            self.answer_waiting();
            if write_all(stream, &self.out).await.is_err() {
                return Ok(());
            }
            self.out.clear();
            if !matches!(buffer.fill(stream).await, Ok(1..)) {
                return Ok(());
            }
        }
    }

    fn take(&mut self, frame: &Frame<'_>) -> Result<(), String> {
        match frame.kind {
            kind::HEADERS => {
                self.block_ends_stream = frame.has(h2::END_STREAM);
                if frame.has(h2::END_HEADERS) && self.block_ends_stream {
                    self.enqueue(frame.stream)?;
                }
            }
            kind::CONTINUATION if frame.has(h2::END_HEADERS) && self.block_ends_stream => {
                self.enqueue(frame.stream)?;
            }
            kind::DATA => {
                self.received += u32::try_from(frame.payload.len()).unwrap_or(0);
                if self.received >= WINDOW_STEP {
                    h2::put_window_update(&mut self.out, 0, self.received);
                    self.received = 0;
                }
                if frame.has(h2::END_STREAM) {
                    self.enqueue(frame.stream)?;
                }
            }
            kind::SETTINGS if !frame.has(h2::ACK) => {
                for (identifier, value) in frame.settings() {
                    if identifier == setting::HEADER_TABLE_SIZE {
                        self.peer_table = value;
                    }
                }
                h2::put(&mut self.out, kind::SETTINGS, h2::ACK, 0, &[]);
            }
            kind::PING if !frame.has(h2::ACK) => {
                h2::put(&mut self.out, kind::PING, h2::ACK, 0, frame.payload);
            }
            kind::WINDOW_UPDATE if frame.stream == 0 => {
                self.send_window += i64::from(frame.number());
            }
            _ => {}
        }
        Ok(())
    }

    fn enqueue(&mut self, stream: u32) -> Result<(), String> {
        if self.waiting.len() == MAX_WAITING {
            return Err(format!("more than {MAX_WAITING} streams wait for the peer's window"));
        }
        self.waiting.push_back(stream);
        Ok(())
    }

    fn answer_waiting(&mut self) {
        let cost = i64::try_from(self.answer.body.len()).unwrap_or(i64::MAX);
        while self.send_window >= cost {
            let Some(stream) = self.waiting.pop_front() else { return };
            self.send_window -= cost;
            let head = self.answer.head.encoded(self.answered, self.peer_table);
            let out = &mut self.out;
            h2::put(out, kind::HEADERS, h2::END_HEADERS, stream, head);
            let end = if self.answer.trailers.is_none() { h2::END_STREAM } else { 0 };
            h2::put(out, kind::DATA, end, stream, &self.answer.body);
            if let Some(trailers) = &self.answer.trailers {
                h2::put(out, kind::HEADERS, h2::END_HEADERS | h2::END_STREAM, stream, trailers);
            }
            self.answered += 1;
            self.seen.answered();
        }
    }
}
