//! Pushes batches to a worker, or to whatever stands before workers.
//!
//! Connections are kept: a pool for HTTP/1.1, one multiplexed connection each
//! for HTTP/2 and gRPC. Nothing is retried here; the caller knows best.

mod outgoing;

use std::{
    fmt, io,
    net::SocketAddr,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_TYPE, HOST, TE},
};
use http_body_util::{BodyExt, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use self::outgoing::Outgoing;
pub use self::outgoing::{Piece, Rows};
use super::{
    rows::Table,
    wire::{Deframer, GRPC_PATH, GRPC_TYPE, IDEMPOTENCY_KEY, INGEST_PREFIX, IngestReply},
};

/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Idle HTTP/1.1 connections kept.
const MAX_IDLE: usize = 64;

/// How a batch travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1.1 over kept-alive connections.
    Http1,
    /// Cleartext HTTP/2, streams of one connection.
    Http2,
    /// gRPC over cleartext HTTP/2.
    Grpc,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Grpc];

    /// The short name in flags and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2",
            Self::Grpc => "grpc",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Grpc => "gRPC",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.name() == text)
            .ok_or_else(|| format!("no protocol {text:?}; there are h1, h2 and grpc"))
    }
}

/// One batch to send.
#[derive(Debug)]
pub struct Upload {
    /// Into which table.
    pub table: Table,
    /// Under which id.
    pub batch: String,
    /// The text.
    pub rows: Rows,
}

/// Why a batch was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// No connection.
    #[error("cannot connect to {target}: {source}")]
    Connect {
        /// Where to.
        target: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The connection or stream failed.
    #[error("the exchange broke off: {0}")]
    Exchange(#[from] hyper::Error),
    /// Another answer than 200.
    #[error("answered {status}: {text}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// The start of its body.
        text: String,
    },
    /// A gRPC status other than OK.
    #[error("gRPC status {code}: {message}")]
    Grpc {
        /// Status code.
        code: String,
        /// Message.
        message: String,
    },
    /// An answer that cannot be read.
    #[error("unreadable answer: {0}")]
    Unreadable(String),
    /// Out of time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Deadline(Duration),
}

/// Sends batches to one address. Cheap to share by reference among tasks.
#[derive(Debug)]
pub struct Client {
    target: SocketAddr,
    authority: String,
    idle: Mutex<Vec<http1::SendRequest<Outgoing>>>,
    http2: Mutex<Option<http2::SendRequest<Outgoing>>>,
    grpc: Mutex<Option<http2::SendRequest<Outgoing>>>,
}

impl Client {
    /// A client without connections yet.
    pub fn new(target: SocketAddr, authority: impl Into<String>) -> Self {
        Self {
            target,
            authority: authority.into(),
            idle: Mutex::default(),
            http2: Mutex::default(),
            grpc: Mutex::default(),
        }
    }

    /// Sends a batch and waits for its acknowledgement.
    ///
    /// # Errors
    /// When none came within `deadline`. The batch may have been loaded all the
    /// same: send it again under the same id.
    pub async fn push(
        &self,
        protocol: Protocol,
        upload: Upload,
        deadline: Duration,
    ) -> Result<IngestReply, PushError> {
        let exchange = async {
            match protocol {
                Protocol::Http1 => self.push_http1(upload).await,
                Protocol::Http2 => self.push_http2(upload).await,
                Protocol::Grpc => self.push_grpc(upload).await,
            }
        };
        tokio::time::timeout(deadline, exchange).await.map_err(|_| PushError::Deadline(deadline))?
    }

    async fn push_http1(&self, upload: Upload) -> Result<IngestReply, PushError> {
        let mut request = self.post(&upload, ingest_path(&upload))?;
        let host = self.authority.parse().map_err(|_| self.bad_authority())?;
        request.headers_mut().insert(HOST, host);
        *request.body_mut() = Outgoing::new(upload.rows, None);
        let idle = lock(&self.idle).pop();
        let mut sender = match idle.filter(|sender| sender.is_ready()) {
            Some(sender) => sender,
            None => {
                let (sender, connection) = http1::handshake(self.connect().await?).await?;
                tokio::spawn(connection);
                sender
            }
        };
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        let reply = json_reply(response).await;
        if reply.is_ok() && sender.ready().await.is_ok() {
            let mut idle = lock(&self.idle);
            if idle.len() < MAX_IDLE {
                idle.push(sender);
            }
        }
        reply
    }

    async fn push_http2(&self, upload: Upload) -> Result<IngestReply, PushError> {
        let path = format!("http://{}{}", self.authority, ingest_path(&upload));
        let mut request = self.post(&upload, path)?;
        *request.version_mut() = Version::HTTP_2;
        *request.body_mut() = Outgoing::new(upload.rows, None);
        let mut sender = self.multiplexed(&self.http2).await?;
        sender.ready().await?;
        json_reply(sender.send_request(request).await?).await
    }

    async fn push_grpc(&self, upload: Upload) -> Result<IngestReply, PushError> {
        let mut request = self.post(&upload, format!("http://{}{GRPC_PATH}", self.authority))?;
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(GRPC_TYPE));
        headers.insert(TE, http::HeaderValue::from_static("trailers"));
        *request.body_mut() = Outgoing::new(upload.rows, Some((upload.table, upload.batch)));
        let mut sender = self.multiplexed(&self.grpc).await?;
        sender.ready().await?;
        grpc_reply(sender.send_request(request).await?).await
    }

    fn post(&self, upload: &Upload, uri: String) -> Result<Request<Outgoing>, PushError> {
        let uri: Uri = uri.parse().map_err(|_| self.bad_authority())?;
        let mut request = Request::new(Outgoing::default());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        if let Ok(key) = upload.batch.parse() {
            request.headers_mut().insert(IDEMPOTENCY_KEY, key);
        }
        Ok(request)
    }

    fn bad_authority(&self) -> PushError {
        PushError::Unreadable(format!("{:?} is no host name", self.authority))
    }

    async fn connect(&self) -> Result<TokioIo<TcpStream>, PushError> {
        let target = self.target;
        let stream = TcpStream::connect(target)
            .await
            .map_err(|source| PushError::Connect { target, source })?;
        // an acknowledgement must not wait for Nagle; a failure only costs time
        let _ = stream.set_nodelay(true);
        Ok(TokioIo::new(stream))
    }

    /// The kept connection, or a new one. Two tasks may both find none; the later one is kept.
    async fn multiplexed(
        &self,
        kept: &Mutex<Option<http2::SendRequest<Outgoing>>>,
    ) -> Result<http2::SendRequest<Outgoing>, PushError> {
        if let Some(sender) = lock(kept).as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake(self.connect().await?)
            .await?;
        tokio::spawn(connection);
        *lock(kept) = Some(sender.clone());
        Ok(sender)
    }
}

fn ingest_path(upload: &Upload) -> String {
    format!("{INGEST_PREFIX}{}?batch={}", upload.table, upload.batch)
}

async fn json_reply(response: Response<Incoming>) -> Result<IngestReply, PushError> {
    let status = response.status();
    let body = whole(response.into_body()).await?;
    if status != StatusCode::OK {
        let text = String::from_utf8_lossy(&body).trim().chars().take(200).collect();
        return Err(PushError::Refused { status, text });
    }
    serde_json::from_slice(&body).map_err(|error| PushError::Unreadable(error.to_string()))
}

async fn grpc_reply(response: Response<Incoming>) -> Result<IngestReply, PushError> {
    let status = response.status();
    if status != StatusCode::OK {
        let text = String::from_utf8_lossy(&whole(response.into_body()).await?).trim().to_owned();
        return Err(PushError::Refused { status, text });
    }
    let (head, body) = response.into_parts();
    let collected = Limited::new(body, MAX_ANSWER_BYTES)
        .collect()
        .await
        .map_err(|error| PushError::Unreadable(error.to_string()))?;
    let field = |name: &str| {
        let trailer = collected.trailers().and_then(|trailers| trailers.get(name));
        let value = trailer.or_else(|| head.headers.get(name))?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    match field("grpc-status") {
        Some(code) if code == "0" => {}
        code => {
            let code = code.unwrap_or_else(|| "missing".to_owned());
            let message = field("grpc-message").unwrap_or_default();
            return Err(PushError::Grpc { code, message });
        }
    }
    let mut deframer = Deframer::default();
    deframer.push(&collected.to_bytes());
    match deframer.next_message() {
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => Err(PushError::Unreadable("no message".to_owned())),
        Err(error) => Err(PushError::Unreadable(error.to_string())),
    }
}

async fn whole(body: Incoming) -> Result<Bytes, PushError> {
    let collected = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    collected
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| PushError::Unreadable(error.to_string()))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
