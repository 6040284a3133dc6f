//! What stands behind every proxy: one origin, the same for all.
//!
//! It shares the load's thread: one thread that never sleeps during a turn serves both sides (see
//! [`crate::peers`]), where two on one core would spend the turn handing it to each other. One port per kind of traffic, so that the hot ones need not look at what is asked for. The
//! origin verifies every uploaded byte and counts what it serves, so that a proxy that answers by
//! itself, or loses or repeats a request, is found out.

mod bulk_h2;
mod fixed_h2;
mod http1;
mod tcp;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpStream};

/// Bytes of a gRPC message in either direction, its five-byte prefix not counted.
pub const GRPC_MESSAGE: usize = 256;

/// A running origin. It lives as long as the runtime.
#[derive(Debug, Clone)]
pub struct Origin {
    /// HTTP/1.1: `/small`, `/down/BYTES`, `/up`.
    pub http1: SocketAddr,
    /// Cleartext HTTP/2 that answers everything with the small response.
    pub small_h2: SocketAddr,
    /// Cleartext HTTP/2 that answers everything as a gRPC unary call.
    pub grpc: SocketAddr,
    /// Cleartext HTTP/2: `/down/BYTES`, `/up`.
    pub bulk_h2: SocketAddr,
    /// Opaque TCP: see [`crate::load::tcp`].
    pub tcp: SocketAddr,
    /// What it has seen.
    pub seen: Arc<Seen>,
}

/// What an origin has seen, over all its ports.
#[derive(Debug, Default)]
pub struct Seen {
    requests: AtomicU64,
    uploaded: AtomicU64,
    complaint: Mutex<Option<String>>,
}

impl Seen {
    /// Requests answered.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of uploads that came whole and right.
    #[must_use]
    pub fn uploaded(&self) -> u64 {
        self.uploaded.load(Ordering::Relaxed)
    }

    /// Takes the first complaint since the last call, if there is one.
    #[must_use]
    pub fn take_complaint(&self) -> Option<String> {
        self.complaint.lock().ok()?.take()
    }

    fn answered(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn received_upload(&self, bytes: u64) {
        self.uploaded.fetch_add(bytes, Ordering::Relaxed);
    }

    fn complain(&self, text: String) {
        if let Ok(mut complaint) = self.complaint.lock() {
            complaint.get_or_insert(text);
        }
    }
}

/// Starts the origin on loopback; see [`start_at`].
///
/// # Errors
/// If a socket cannot be had.
pub async fn start(small_body: usize) -> anyhow::Result<Origin> {
    start_at(Ipv4Addr::LOCALHOST, small_body).await
}

/// Starts the origin at an address, as tasks of the calling runtime. Its small response has a body
/// of `small_body` bytes.
///
/// # Errors
/// If a socket cannot be had.
pub async fn start_at(at: Ipv4Addr, small_body: usize) -> anyhow::Result<Origin> {
    let seen = Arc::new(Seen::default());
    let small = move |stream, seen| fixed_h2::serve_small(stream, seen, small_body);
    Ok(Origin {
        http1: listen(at, &seen, move |stream, seen| http1::serve(stream, seen, small_body))
            .await?,
        small_h2: listen(at, &seen, small).await?,
        grpc: listen(at, &seen, fixed_h2::serve_grpc).await?,
        bulk_h2: listen(at, &seen, bulk_h2::serve).await?,
        tcp: listen(at, &seen, tcp::serve).await?,
        seen,
    })
}

/// Serves a port: every connection is a task of `serve`, whose error is kept as a complaint.
async fn listen<F, Fut>(at: Ipv4Addr, seen: &Arc<Seen>, serve: F) -> anyhow::Result<SocketAddr>
where
    F: Fn(TcpStream, Arc<Seen>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), String>> + Send + 'static,
{
    let listener = TcpListener::bind((at, 0)).await.context("origin's socket")?;
    let address = listener.local_addr()?;
    let seen = Arc::clone(seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let connection = serve(stream, Arc::clone(&seen));
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                if let Err(text) = connection.await {
                    seen.complain(format!("the origin at {address}: {text}"));
                }
            });
        }
    });
    Ok(address)
}

/// Reads `BYTES` of `/down/BYTES`.
fn down_bytes(path: &str) -> Option<u64> {
    path.strip_prefix("/down/")?.parse().ok()
}
