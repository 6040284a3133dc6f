//! Clients and origins that send exact bytes and see exact bytes.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

use crate::strict::{self, Parsed, Reading, Request, Response};

/// How long anything may take before a test gives up: never part of a passing run.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a peer ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// FIN: everything it sent has arrived.
    Clean,
    /// RST.
    Reset,
}

/// One end of a TCP connection. Every wait is bounded and fails the test with
/// what was received so far.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    /// Received and not yet taken.
    buffer: Vec<u8>,
    end: Option<End>,
}

impl Wire {
    /// Connects.
    ///
    /// # Panics
    /// When nobody listens there.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream =
            timeout(PATIENCE, TcpStream::connect(address)).await.expect("connects in time");
        Self::new(stream.expect("somebody listens"))
    }

    /// Wraps a connected socket.
    pub fn new(stream: TcpStream) -> Self {
        // Best effort: without it a test is slower, not wrong.
        let _ = stream.set_nodelay(true);
        Self { stream, buffer: Vec::new(), end: None }
    }

    /// Sends all of it.
    ///
    /// # Panics
    /// When the peer is gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        assert!(self.try_send(bytes).await, "the peer is gone; it had sent {}", show(&self.buffer));
    }

    /// Sends all of it, or says that the peer is gone.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let sent = timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await;
        sent.expect("the peer takes what is sent").is_ok()
    }

    /// Sends `bytes` until the peer has taken none for a while or is gone; how many went.
    pub async fn push(&mut self, bytes: &[u8]) -> usize {
        let mut sent = 0;
        while sent < bytes.len() {
            match timeout(Duration::from_millis(300), self.stream.write(&bytes[sent..])).await {
                Ok(Ok(n)) => sent += n,
                _ => break,
            }
        }
        sent
    }

    /// Sends FIN; reading goes on.
    pub async fn finish(&mut self) {
        // Fails only when the peer is gone already, which reading then tells.
        let _ = self.stream.shutdown().await;
    }

    /// The socket itself.
    ///
    /// # Panics
    /// When something was received that was not taken.
    pub fn into_stream(self) -> TcpStream {
        assert!(self.buffer.is_empty(), "not taken: {}", show(&self.buffer));
        self.stream
    }

    /// Sends RST.
    pub fn reset(self) {
        // A zero linger time turns close into RST.
        let _ = self.stream.set_zero_linger();
        drop(self.stream);
    }

    /// Waits for more bytes; `false` at the end.
    async fn more(&mut self, what: &str) -> bool {
        if self.end.is_some() {
            return false;
        }
        let mut piece = vec![0; 64 * 1024];
        let Ok(read) = timeout(PATIENCE, self.stream.read(&mut piece)).await else {
            panic!("no {what} in time; received {}", show(&self.buffer));
        };
        match read {
            Ok(0) => self.end = Some(End::Clean),
            Ok(n) => self.buffer.extend_from_slice(&piece[..n]),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => self.end = Some(End::Reset),
            Err(e) => panic!("reading {what}: {e}"),
        }
        self.end.is_none()
    }

    /// Takes exactly so many bytes.
    ///
    /// # Panics
    /// When the connection ends before.
    pub async fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            let more = self.more("bytes").await;
            assert!(more, "ended after {} of {count} bytes", self.buffer.len());
        }
        self.buffer.drain(..count).collect()
    }

    /// Takes so many bytes, or fewer when the connection ends before.
    pub async fn up_to(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count && self.more("bytes").await {}
        self.buffer.drain(..count.min(self.buffer.len())).collect()
    }

    /// Takes everything to the end of the connection.
    pub async fn rest(&mut self) -> (Vec<u8>, End) {
        while self.more("end of the connection").await {}
        (std::mem::take(&mut self.buffer), self.end.expect("ended"))
    }

    /// Waits for the end of the connection.
    ///
    /// # Panics
    /// When something came that was not taken.
    pub async fn ended(&mut self) -> End {
        let (rest, end) = self.rest().await;
        assert!(rest.is_empty(), "unexpected bytes: {}", show(&rest));
        end
    }

    async fn parsed<T>(&mut self, what: &str, parse: impl Fn(&[u8]) -> Parsed<T>) -> Option<T> {
        loop {
            match parse(&self.buffer) {
                Parsed::Message(message, length) => {
                    self.buffer.drain(..length);
                    return Some(message);
                }
                Parsed::Invalid(why) => panic!("{what} is invalid, {why}: {}", show(&self.buffer)),
                Parsed::Incomplete if self.more(what).await => {}
                Parsed::Incomplete if self.buffer.is_empty() => return None,
                Parsed::Incomplete => panic!("{what} cut off: {}", show(&self.buffer)),
            }
        }
    }

    /// Takes the head of a request; the body is left.
    ///
    /// # Panics
    /// When it does not come or is not valid.
    pub async fn request_head(&mut self) -> Request {
        self.parsed("request head", strict::request_head).await.expect("a request, not the end")
    }

    /// Takes a whole request.
    ///
    /// # Panics
    /// When it does not come or is not valid.
    pub async fn request(&mut self) -> Request {
        self.next_request().await.expect("a request, not the end")
    }

    /// Takes a whole request, or `None` at the end of the connection.
    ///
    /// # Panics
    /// When it is cut off or not valid.
    pub async fn next_request(&mut self) -> Option<Request> {
        self.parsed("request", |bytes| strict::request(bytes, Reading::Strict)).await
    }

    /// Takes the head of a response; the body is left.
    ///
    /// # Panics
    /// When it does not come or is not valid.
    pub async fn response_head(&mut self) -> Response {
        self.parsed("response head", strict::response_head).await.expect("a response, not the end")
    }

    /// Takes a whole response to `GET`.
    ///
    /// # Panics
    /// When it does not come, is cut off or not valid.
    pub async fn response(&mut self) -> Response {
        self.response_to("GET").await
    }

    /// Takes a whole response to `method`.
    ///
    /// # Panics
    /// When it does not come, is cut off or not valid.
    pub async fn response_to(&mut self, method: &str) -> Response {
        let response = self.next_response(method).await;
        response.expect("a response, not the end")
    }

    /// Takes a whole response to `method`, or `None` at the end of the connection.
    ///
    /// # Panics
    /// When it is cut off or not valid.
    pub async fn next_response(&mut self, method: &str) -> Option<Response> {
        let response = self.parsed("response", |bytes| strict::response(bytes, method)).await?;
        let mut response = response;
        if response.until_close {
            response.body.extend(self.rest().await.0);
        }
        Some(response)
    }
}

/// An origin whose every connection a test plays by hand.
#[derive(Debug)]
pub struct RawOrigin {
    /// Where it listens.
    pub address: SocketAddr,
    listener: TcpListener,
}

impl RawOrigin {
    /// Listens on a free port.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        Self { address, listener }
    }

    /// The next connection somebody makes.
    ///
    /// # Panics
    /// When nobody does.
    pub async fn accept(&self) -> Wire {
        let accepted =
            timeout(PATIENCE, self.listener.accept()).await.expect("a connection in time");
        Wire::new(accepted.expect("accepts").0)
    }

    /// A connection that was made already, if any.
    pub fn accepted(&self) -> Option<Wire> {
        let waker = std::task::Waker::noop();
        match self.listener.poll_accept(&mut std::task::Context::from_waker(waker)) {
            std::task::Poll::Ready(Ok((stream, _))) => Some(Wire::new(stream)),
            _ => None,
        }
    }
}

/// What a [`ScriptedOrigin`] does with a request.
#[derive(Clone, Debug)]
pub struct Script {
    /// Sent as it is.
    pub bytes: Vec<u8>,
    /// What follows.
    pub then: Then,
}

/// What follows a scripted answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The next request.
    Next,
    /// FIN, after everything sent has been read.
    Close,
    /// RST.
    Reset,
}

impl Script {
    /// These bytes, and the next request.
    pub fn keep(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), then: Then::Next }
    }

    /// These bytes, and the end of the connection.
    pub fn close(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), then: Then::Close }
    }
}

/// An origin that reads requests strictly and answers each as a function says.
#[derive(Debug)]
pub struct ScriptedOrigin {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl ScriptedOrigin {
    /// Listens on a free port.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn start(answer: impl Fn(&Request) -> Script + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut wire = Wire::new(stream);
                    while let Some(request) = wire.next_request().await {
                        let script = answer(&request);
                        if !wire.try_send(script.bytes).await {
                            return;
                        }
                        match script.then {
                            Then::Next => {}
                            Then::Close => return,
                            Then::Reset => return wire.reset(),
                        }
                    }
                });
            }
        });
        Self { address, task }
    }
}

impl Drop for ScriptedOrigin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What an origin read on its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A whole request.
    Request(Request),
    /// A request that was cut off by the end of the connection.
    Broken(Vec<u8>),
    /// Bytes that no valid request begins with, and why.
    Malformed(&'static str, Vec<u8>),
}

/// An origin that reads strictly, answers each request with [`echo`] of it, and
/// keeps what it saw.
#[derive(Debug)]
pub struct StrictOrigin {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl StrictOrigin {
    /// Listens on a free port.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_strictly(stream, log.clone()));
            }
        });
        Self { address, seen, task }
    }

    /// What was seen since the last call.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for StrictOrigin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What [`StrictOrigin`] answers: method, target, length and digest of the body.
pub fn echo(method: &str, target: &str, body: &[u8]) -> String {
    format!("{method} {target} {} {:016x}", body.len(), digest(body))
}

/// FNV-1a: enough to tell bodies apart.
pub fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

async fn serve_strictly(mut stream: TcpStream, seen: Arc<Mutex<Vec<Seen>>>) {
    let note = |what| seen.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    let (mut buffer, mut piece) = (Vec::new(), [0; 16 * 1024]);
    loop {
        match strict::request(&buffer, Reading::Strict) {
            Parsed::Message(request, length) => {
                buffer.drain(..length);
                let text = echo(&request.method, &request.target, &request.body);
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
                let body = if request.method == "HEAD" { "" } else { &text };
                note(Seen::Request(request));
                if stream.write_all(format!("{head}{body}").as_bytes()).await.is_err() {
                    return;
                }
            }
            Parsed::Invalid(why) => return note(Seen::Malformed(why, buffer)),
            Parsed::Incomplete => match stream.read(&mut piece).await {
                Ok(n) if n > 0 => buffer.extend_from_slice(&piece[..n]),
                _ if buffer.is_empty() => return,
                _ => return note(Seen::Broken(buffer)),
            },
        }
    }
}

/// Bytes for a person: escaped, and cut when long.
pub fn show(bytes: &[u8]) -> String {
    let text = bytes[..bytes.len().min(2048)].escape_ascii();
    let more =
        if bytes.len() > 2048 { format!("… ({} bytes)", bytes.len()) } else { String::new() };
    format!("\"{text}\"{more}")
}

/// What a caught panic said, so that a table can go on and name every failing case.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}
