//! The worker's sockets.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};

use super::{Worker, parameter};

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 1024;
/// Time that requests under way get when the worker is told to stop.
const GRACE: Duration = Duration::from_secs(5);
/// HTTP/2 windows in bytes, of a stream and of a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Serves batches until `stop` is done, then finishes what is under way.
///
/// # Errors
/// When the socket fails.
pub async fn serve(
    listener: TcpListener,
    worker: Arc<Worker>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let handle = move |request| {
        let worker = worker.clone();
        async move { worker.answer(request).await }
    };
    accept(listener, handle, stop).await
}

/// Serves the harness: `POST /_harness/slow?factor=N`, `GET /_harness/stats`. Bind it to loopback.
///
/// # Errors
/// When the socket fails.
pub async fn serve_harness(
    listener: TcpListener,
    worker: Arc<Worker>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let handle = move |request: Request<Incoming>| {
        let answer = harness_answer(&worker, &request);
        async move { answer }
    };
    accept(listener, handle, stop).await
}

fn harness_answer(worker: &Worker, request: &Request<Incoming>) -> Response<Answer> {
    match (request.method().as_str(), request.uri().path()) {
        ("GET", "/_harness/stats") => {
            Answer::text(StatusCode::OK, &format!("{}\n", worker.stats()))
        }
        ("POST", "/_harness/slow") => {
            match parameter(request.uri().query(), "factor").map(str::parse) {
                Some(Ok(factor @ 1..=1000)) => {
                    worker.harness.slow_down(factor);
                    Answer::text(StatusCode::OK, "ok\n")
                }
                _ => Answer::text(StatusCode::BAD_REQUEST, "factor: 1 to 1000\n"),
            }
        }
        _ => Answer::text(
            StatusCode::NOT_FOUND,
            "GET /_harness/stats, POST /_harness/slow?factor=N\n",
        ),
    }
}

async fn accept<H, F>(
    listener: TcpListener,
    handle: H,
    stop: impl Future<Output = ()>,
) -> io::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Answer>> + Send + 'static,
{
    let (stopping, stopped) = watch::channel(());
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let stream = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // the peer gave up, or descriptors ran out for a moment
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        let Ok(permit) = room.clone().try_acquire_owned() else { continue };
        let (handle, stopped) = (handle.clone(), stopped.clone());
        connections.spawn(async move {
            connection(stream, handle, stopped).await;
            drop(permit);
        });
    }
    drop(listener);
    stopping.send_replace(());
    let finished = async { while connections.join_next().await.is_some() {} };
    // what is still under way after the grace is cut off when the set is dropped
    let _ = tokio::time::timeout(GRACE, finished).await;
    Ok(())
}

async fn connection<H, F>(stream: TcpStream, handle: H, mut stopped: watch::Receiver<()>)
where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Answer>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let answer = handle(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(256);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // how a connection ends is the client's business: it has its answers or it has not
        _ = &mut connection => {}
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// A small answer, with trailers for gRPC.
pub(super) struct Answer {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Answer {
    pub(super) fn new(
        status: StatusCode,
        data: Bytes,
        trailers: Option<HeaderMap>,
    ) -> Response<Self> {
        let mut response =
            Response::new(Self { data: Some(data).filter(|d| !d.is_empty()), trailers });
        *response.status_mut() = status;
        response
    }

    pub(super) fn text(status: StatusCode, text: &str) -> Response<Self> {
        Self::new(status, Bytes::copy_from_slice(text.as_bytes()), None)
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.data.take().map(Frame::data);
        Poll::Ready(data.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, |data| data.len() as u64))
    }
}
