//! HTTP/2 connections of one endpoint and worker: many streams share each, and
//! another is made when all are full.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::Request;
use tokio::sync::watch;

use super::{
    EndpointLive, EndpointState, ServiceState,
    coalesce::coalescing,
    connect::{ConnectError, Connector, Wire},
    now_ms,
};

/// A connection that stands.
#[derive(Debug)]
pub(super) struct Shared {
    send: SendRequest<Bytes>,
    state: Arc<SharedState>,
}

#[derive(Debug, Default)]
struct SharedState {
    streams: AtomicU32,
    idle_since_ms: AtomicU64,
    closed: AtomicBool,
}

/// A connection being made; those who wait for it see how it went.
pub(super) type Connecting = watch::Receiver<Option<Result<(), Arc<str>>>>;

/// One stream of a shared connection, counted until dropped.
#[derive(Debug)]
pub(crate) struct StreamGuard(Arc<SharedState>);

/// A request sent.
pub(crate) struct Opened {
    pub(crate) response: ResponseFuture,
    pub(crate) body: SendStream<Bytes>,
    pub(crate) guard: StreamGuard,
}

/// Receive window of a connection, in bytes.
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;
/// Receive window of a stream, in bytes.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// Largest frame accepted, in bytes.
pub(crate) const FRAME: u32 = 64 * 1024;
/// Unsent bytes h2 may hold per stream.
pub(crate) const SEND_BUFFER: usize = 256 * 1024;
/// Most streams on one connection, whatever the peer allows.
const MAX_STREAMS: u32 = 1024;
/// Small DATA frames that wait are charged (256 − length) bytes each against this, per
/// connection. A whole connection window of 16-byte records fits: a slow reader is no attack.
pub(crate) const DATA_FRAME_BUDGET: usize = 256 << 20;

impl EndpointLive {
    /// Takes and sends a request head on a connection that has room for another
    /// stream; `None`, and the request left where it is, when none has.
    pub(crate) fn open_stream(
        &self,
        worker: usize,
        request: &mut Option<Request<()>>,
        end_of_stream: bool,
    ) -> Option<Result<Opened, h2::Error>> {
        let mut pool = self.pools.lock(worker);
        let mut context = Context::from_waker(Waker::noop());
        let mut at = 0;
        while let Some(shared) = pool.shared.get_mut(at) {
            if !shared.state.closed.load(Relaxed) {
                if shared.is_full() {
                    at += 1;
                    continue;
                }
                match shared.send.poll_ready(&mut context) {
                    Poll::Ready(Ok(())) => {
                        return request.take().map(|r| shared.open(r, end_of_stream));
                    }
                    Poll::Pending => {
                        at += 1;
                        continue;
                    }
                    Poll::Ready(Err(_)) => {}
                }
            }
            pool.shared.swap_remove(at);
        }
        None
    }
}

impl Shared {
    fn is_full(&self) -> bool {
        let most = u32::try_from(self.send.current_max_send_streams()).unwrap_or(u32::MAX);
        self.state.streams.load(Relaxed) >= most.min(MAX_STREAMS)
    }

    fn open(&mut self, request: Request<()>, end: bool) -> Result<Opened, h2::Error> {
        self.state.streams.fetch_add(1, Relaxed);
        let guard = StreamGuard(self.state.clone());
        let (response, body) = self.send.send_request(request, end)?;
        Ok(Opened { response, body, guard })
    }

    /// Whether it is open, and in use or idle since later than `oldest_ms`.
    pub(super) fn stands(&self, oldest_ms: u64) -> bool {
        !self.state.closed.load(Relaxed)
            && (self.state.streams.load(Relaxed) > 0
                || self.state.idle_since_ms.load(Relaxed) > oldest_ms)
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        if self.0.streams.fetch_sub(1, Relaxed) == 1 {
            self.0.idle_since_ms.store(now_ms(), Relaxed);
        }
    }
}

/// Makes one more shared connection, or waits for the one being made.
///
/// # Errors
/// [`ConnectError`]; all who waited get the same.
pub(crate) async fn connect_shared(
    service: &Arc<ServiceState>,
    endpoint: &Arc<EndpointState>,
    worker: usize,
) -> Result<(), ConnectError> {
    let mut connecting = {
        let mut pool = endpoint.live.pools.lock(worker);
        match &pool.connecting {
            Some(connecting) => connecting.clone(),
            None => {
                let (done, connecting) = watch::channel(None);
                pool.connecting = Some(connecting.clone());
                let (service, endpoint) = (service.clone(), endpoint.clone());
                // Owned by all who wait for it, bounded by the connect timeout.
                tokio::spawn(async move {
                    let outcome = add_connection(&service, &endpoint, worker).await;
                    endpoint.live.pools.lock(worker).connecting = None;
                    done.send_replace(Some(outcome.map_err(|e| e.to_string().into())));
                });
                connecting
            }
        }
    };
    let outcome = connecting.wait_for(Option::is_some).await.map(|o| o.clone());
    match outcome {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(Some(Err(reason))) => Err(ConnectError::Handshake(reason.to_string())),
        Ok(None) | Err(_) => Err(ConnectError::Handshake("the attempt was dropped".into())),
    }
}

async fn add_connection(
    service: &ServiceState,
    endpoint: &EndpointState,
    worker: usize,
) -> Result<(), ConnectError> {
    let limit = service.spec.connect_timeout;
    let (io, guard) = Connector::connect(service, endpoint, Some(Wire::Http2)).await?;
    let (io, flusher) = coalescing(io);
    let handshake = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(256 * 1024)
        .enable_push(false)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .handshake(io);
    let mut handshake = std::pin::pin!(handshake);
    let handshake = poll_fn(|cx| flusher.drive(cx, |cx| handshake.as_mut().poll(cx)));
    let (send, mut connection) = tokio::time::timeout(limit, handshake)
        .await
        .map_err(|_| ConnectError::Timeout(limit))?
        .map_err(|e| ConnectError::Handshake(e.to_string()))?;
    let state = Arc::new(SharedState::default());
    state.idle_since_ms.store(now_ms(), Relaxed);
    let driven = state.clone();
    // Ends by itself when the last handle and the last stream are gone.
    tokio::spawn(async move {
        let _guard = guard;
        let driver = poll_fn(|cx| flusher.drive(cx, |cx| Pin::new(&mut connection).poll(cx)));
        if let Err(error) = driver.await {
            tracing::debug!(%error, "HTTP/2 connection to an endpoint ended");
        }
        driven.closed.store(true, Relaxed);
        drop(connection);
        // A peer that reads no more must not hold the socket.
        let _ = tokio::time::timeout(limit, flusher.finish()).await;
    });
    let mut pool = endpoint.live.pools.lock(worker);
    if service.connector.terms() != endpoint.live.terms.load(Relaxed) {
        return Err(ConnectError::Handshake("the terms of connections changed".into()));
    }
    // Swept even when the endpoint was removed meanwhile: the connection holds the endpoint.
    pool.shared.push(Shared { send, state });
    endpoint.live.sweep(worker, &mut pool, service.spec.pool_idle_timeout);
    Ok(())
}
