//! Small HTTP/2 requests and gRPC unary calls: a fixed number of streams in flight on each of a
//! few connections.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Context as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{AUTHORITY, Outcome, Tickets};
use crate::origin::GRPC_MESSAGE;
use crate::wire::h2::{self, Frame, HeaderBlock, kind, setting};
use crate::wire::{ReadBuffer, unexpected, write_all};

const BUFFER: usize = 256 * 1024;
const RECEIVE_WINDOW: u32 = 16 << 20;
const WINDOW_STEP: u32 = 4 << 20;

/// A kind of request and the answer it must get.
#[derive(Debug, Clone)]
pub struct Call {
    head: HeaderBlock,
    message: Option<Vec<u8>>,
    answer_bytes: usize,
    trailers: bool,
}

impl Call {
    /// A request without a body, answered by the small response of `body` bytes.
    #[must_use]
    pub fn small(body: usize) -> Self {
        // :method GET, :scheme http by the static table.
        let head = HeaderBlock::new(&[2, 6]).with(&[
            (4, "", "/small"),
            (1, "", AUTHORITY),
            (0, "user-agent", "towpath-bench/1"),
            (0, "accept", "application/json"),
            (0, "x-batch", "lineitem-000017"),
            (0, "authorization", "Bearer 0123456789abcdef0123456789abcdef"),
        ]);
        Self { head, message: None, answer_bytes: body, trailers: false }
    }

    /// A gRPC unary call.
    #[must_use]
    pub fn grpc() -> Self {
        // :method POST, :scheme http by the static table.
        let head = HeaderBlock::new(&[3, 6]).with(&[
            (4, "", "/towpath.bench.Echo/Unary"),
            (1, "", AUTHORITY),
            (0, "user-agent", "grpc-towpath-bench/1"),
            (0, "content-type", "application/grpc"),
            (0, "te", "trailers"),
            (0, "grpc-encoding", "identity"),
        ]);
        let mut message = vec![0, 0, 0, (GRPC_MESSAGE >> 8) as u8, (GRPC_MESSAGE & 0xff) as u8];
        message.resize(5 + GRPC_MESSAGE, b'z');
        Self { head, message: Some(message), answer_bytes: 5 + GRPC_MESSAGE, trailers: true }
    }

    fn request_bytes(&self) -> usize {
        self.message.as_ref().map_or(0, Vec::len)
    }
}

/// The open connections.
#[derive(Debug)]
pub struct Session {
    connections: Vec<Connection>,
    bytes_each: u64,
}

impl Session {
    /// Opens `connections` connections that will keep `streams` requests in flight each.
    ///
    /// # Errors
    /// If one is refused or the proxy's settings do not allow it.
    pub async fn connect(
        target: SocketAddr,
        call: Call,
        connections: usize,
        streams: usize,
    ) -> anyhow::Result<Self> {
        let bytes_each = (call.request_bytes() + call.answer_bytes) as u64;
        let mut session = Self { connections: Vec::with_capacity(connections), bytes_each };
        for _ in 0..connections {
            session.connections.push(Connection::open(target, call.clone(), streams).await?);
        }
        Ok(session)
    }

    /// Sends `count` requests over all connections together.
    ///
    /// # Errors
    /// The first wrong answer.
    pub async fn run(&mut self, count: u64) -> anyhow::Result<Outcome> {
        let tickets = Tickets::new(count);
        let mut tasks = JoinSet::new();
        for mut connection in self.connections.drain(..) {
            let tickets = tickets.clone();
            tasks.spawn(async move {
                connection.run(&tickets).await?;
                Ok::<_, io::Error>(connection)
            });
        }
        while let Some(done) = tasks.join_next().await {
            self.connections.push(done?.context("small HTTP/2 request")?);
        }
        Ok(tickets.outcome(self.bytes_each))
    }
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    buffer: ReadBuffer,
    call: Call,
    streams: usize,
    sent: u64,
    peer_table: u32,
    send_window: i64,
    received: u32,
    in_flight: Vec<Exchange>,
    out: Vec<u8>,
}

#[derive(Debug)]
struct Exchange {
    stream: u32,
    start: Instant,
    answered: bool,
    body: usize,
}

impl Connection {
    async fn open(target: SocketAddr, call: Call, streams: usize) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(target)
            .await
            .with_context(|| format!("the proxy refuses a connection on {target}"))?;
        stream.set_nodelay(true)?;
        let mut out = h2::PREFACE.to_vec();
        h2::put_settings(&mut out, &[(setting::INITIAL_WINDOW_SIZE, 1 << 20)]);
        h2::put_window_update(&mut out, 0, RECEIVE_WINDOW - h2::DEFAULT_WINDOW);
        Ok(Self {
            stream,
            buffer: ReadBuffer::new(BUFFER),
            call,
            streams,
            sent: 0,
            peer_table: h2::DEFAULT_TABLE,
            send_window: i64::from(h2::DEFAULT_WINDOW),
            received: 0,
            in_flight: Vec::with_capacity(streams),
            out,
        })
    }

    /// Sends and takes until no ticket is left and nothing is in flight.
    async fn run(&mut self, tickets: &Tickets) -> io::Result<()> {
        loop {
            self.start_requests(tickets);
            write_all(&self.stream, &self.out).await?;
            self.out.clear();
            if self.in_flight.is_empty() {
                return Ok(());
            }
            if self.buffer.fill(&self.stream).await? == 0 {
                return Err(unexpected("the proxy closed the connection with requests in flight"));
            }
            let mut consumed = 0;
            while let Some(frame) = Frame::first_in(&self.buffer.filled()[consumed..]) {
                consumed += frame.length();
                take(&frame, &mut self.in_flight, &self.call, tickets)?;
                match frame.kind {
                    kind::DATA => self.received += u32::try_from(frame.payload.len()).unwrap_or(0),
                    kind::SETTINGS if !frame.has(h2::ACK) => {
                        for (identifier, value) in frame.settings() {
                            check_setting(identifier, value, self.streams)?;
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
                    kind::GOAWAY => return Err(unexpected("the proxy sent GOAWAY")),
                    _ => {}
                }
            }
            self.buffer.consume(consumed);
            if self.received >= WINDOW_STEP {
                h2::put_window_update(&mut self.out, 0, self.received);
                self.received = 0;
            }
        }
    }

    fn start_requests(&mut self, tickets: &Tickets) {
        let cost = i64::try_from(self.call.request_bytes()).unwrap_or(0);
        let start = Instant::now();
        while self.in_flight.len() < self.streams && self.send_window >= cost && tickets.take() {
            // 2^30 requests on one connection are more than any run sends.
            let stream = u32::try_from(self.sent).unwrap_or(u32::MAX >> 2) * 2 + 1;
            let head = self.call.head.encoded(self.sent, self.peer_table);
            self.sent += 1;
            self.send_window -= cost;
            let end = if self.call.message.is_some() { 0 } else { h2::END_STREAM };
            h2::put(&mut self.out, kind::HEADERS, h2::END_HEADERS | end, stream, head);
            if let Some(message) = &self.call.message {
                h2::put(&mut self.out, kind::DATA, h2::END_STREAM, stream, message);
            }
            self.in_flight.push(Exchange { stream, start, answered: false, body: 0 });
        }
    }
}

/// Takes a frame of an answer in; records the exchange and forgets it once it is whole and right.
fn take(
    frame: &Frame<'_>,
    in_flight: &mut Vec<Exchange>,
    call: &Call,
    tickets: &Tickets,
) -> io::Result<()> {
    let Some(at) = in_flight.iter().position(|exchange| exchange.stream == frame.stream) else {
        return Ok(());
    };
    let exchange = &mut in_flight[at];
    let mut trailers = false;
    match frame.kind {
        kind::HEADERS if !exchange.answered => {
            if !h2::is_status_200(frame.payload) {
                return Err(unexpected("an answer whose status is not 200"));
            }
            exchange.answered = true;
        }
        kind::HEADERS => trailers = true,
        kind::DATA => exchange.body += frame.payload.len(),
        kind::RST_STREAM => {
            return Err(unexpected(format!("the proxy reset a stream, code {}", frame.number())));
        }
        _ => return Ok(()),
    }
    if frame.has(h2::END_STREAM) {
        if exchange.body != call.answer_bytes || trailers != call.trailers {
            let body = exchange.body;
            return Err(unexpected(format!("an answer of {body} bytes, trailers: {trailers}")));
        }
        tickets.record(exchange.start.elapsed());
        in_flight.swap_remove(at);
    }
    Ok(())
}

fn check_setting(identifier: u16, value: u32, streams: usize) -> io::Result<()> {
    let streams = u32::try_from(streams).unwrap_or(u32::MAX);
    match identifier {
        setting::MAX_CONCURRENT_STREAMS if value < streams => {
            Err(unexpected(format!("the proxy allows only {value} streams, {streams} are needed")))
        }
        setting::INITIAL_WINDOW_SIZE if value < 4096 => {
            Err(unexpected(format!("the proxy's stream window is only {value} bytes")))
        }
        _ => Ok(()),
    }
}
