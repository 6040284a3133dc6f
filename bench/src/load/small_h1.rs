//! Small HTTP/1.1 requests: one in flight on each of many keep-alive connections.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Context as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{AUTHORITY, Outcome, Tickets};
use crate::wire::{ReadBuffer, h1, unexpected, write_all};

const BUFFER: usize = 16 * 1024;

/// The open connections.
#[derive(Debug)]
pub struct Session {
    connections: Vec<Connection>,
    body: usize,
}

/// One keep-alive connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: ReadBuffer,
}

impl Session {
    /// Opens `connections` connections for requests whose answers have `body` bytes.
    ///
    /// # Errors
    /// If one is refused.
    pub async fn connect(
        target: SocketAddr,
        connections: usize,
        body: usize,
    ) -> anyhow::Result<Self> {
        let mut session = Self { connections: Vec::with_capacity(connections), body };
        for _ in 0..connections {
            session.connections.push(Connection::open(target).await?);
        }
        Ok(session)
    }

    /// Sends `count` requests over all connections together.
    ///
    /// # Errors
    /// The first wrong answer.
    pub async fn run(&mut self, count: u64) -> anyhow::Result<Outcome> {
        let tickets = Tickets::new(count);
        let (request, body) = (request(), self.body);
        let mut tasks = JoinSet::new();
        for mut connection in self.connections.drain(..) {
            let (tickets, request) = (tickets.clone(), request.clone());
            tasks.spawn(async move {
                while tickets.take() {
                    let start = Instant::now();
                    connection.exchange(&request, body).await?;
                    tickets.record(start.elapsed());
                }
                Ok::<_, io::Error>(connection)
            });
        }
        while let Some(done) = tasks.join_next().await {
            self.connections.push(done?.context("small HTTP/1.1 request")?);
        }
        Ok(tickets.outcome(self.body as u64))
    }
}

impl Connection {
    pub(crate) async fn open(target: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(target)
            .await
            .with_context(|| format!("the proxy refuses a connection on {target}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: ReadBuffer::new(BUFFER) })
    }

    /// Sends a request and takes its whole answer, whose body must have `body` bytes.
    pub(crate) async fn exchange(&mut self, request: &[u8], body: usize) -> io::Result<()> {
        write_all(&self.stream, request).await?;
        loop {
            if self.buffer.fill(&self.stream).await? == 0 {
                return Err(unexpected("the proxy closed a keep-alive connection mid-exchange"));
            }
            let Some(head) = h1::response(self.buffer.filled())? else { continue };
            if head.status != 200 || head.content_length != body as u64 {
                return Err(unexpected(format!("a wrong answer: {head:?}")));
            }
            let whole = head.length + body;
            match self.buffer.filled().len() {
                have if have < whole => {}
                have if have == whole => {
                    self.buffer.consume(whole);
                    return Ok(());
                }
                _ => return Err(unexpected("more bytes came than the response has")),
            }
        }
    }
}

/// The request: what a service's client would send, without a body.
pub(crate) fn request() -> Vec<u8> {
    format!(
        "GET /small HTTP/1.1\r\nhost: {AUTHORITY}\r\nuser-agent: towpath-bench/1\r\n\
         accept: application/json\r\nx-batch: lineitem-000017\r\n\
         authorization: Bearer 0123456789abcdef0123456789abcdef\r\n\r\n"
    )
    .into_bytes()
}
