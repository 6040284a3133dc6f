//! A bare forwarder on hyper: no routes, no metrics, no limits, no timeouts, one origin.
//!
//! It marks what the HTTP library itself costs, so that one sees what a proxy built on it adds.
//! Each client connection has its own connection to the origin. It is not a usable proxy.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

/// Flow-control windows: what a bulk stream may have under way.
const WINDOW: u32 = 1 << 20;
/// Buffer for each direction of opaque TCP.
const COPY_BUFFER: usize = 64 * 1024;

/// The hidden `forward` command.
#[derive(Debug, clap::Args)]
pub struct ForwardArgs {
    /// What to speak on both sides.
    #[arg(long)]
    protocol: Protocol,
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Where to forward to.
    #[arg(long)]
    origin: SocketAddr,
}

/// What a forwarder speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1.
    H1,
    /// Cleartext HTTP/2.
    H2,
    /// Opaque TCP.
    Tcp,
}

/// Forwards until the process ends.
///
/// # Errors
/// If it cannot listen.
pub fn forward(args: &ForwardArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen)
            .await
            .with_context(|| format!("cannot listen on {}", args.listen))?;
        serve(listener, args.protocol, args.origin).await
    })
}

/// Forwards every connection of `listener` to `origin`.
///
/// # Errors
/// If accepting fails.
pub async fn serve(
    listener: TcpListener,
    protocol: Protocol,
    origin: SocketAddr,
) -> anyhow::Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        tokio::spawn(async move {
            // A broken connection ends with itself; the load notices and tells.
            let _ = match protocol {
                Protocol::H1 => http1(client, origin).await,
                Protocol::H2 => http2(client, origin).await,
                Protocol::Tcp => tcp(client, origin).await,
            };
        });
    }
}

async fn http1(client: TcpStream, origin: SocketAddr) -> anyhow::Result<()> {
    let (sender, connection) = http1::handshake(TokioIo::new(dial(origin).await?)).await?;
    tokio::spawn(connection);
    // One request at a time is in flight on the connection, so the lock never waits.
    let sender = Arc::new(Mutex::new(sender));
    let service = service_fn(move |request: Request<Incoming>| {
        let sender = Arc::clone(&sender);
        async move {
            let mut sender = sender.lock().await;
            if sender.ready().await.is_err() {
                return Ok(bad_gateway());
            }
            let answer = sender.send_request(request).await;
            Ok::<_, hyper::Error>(
                answer.map_or_else(|_| bad_gateway(), |a| a.map(BodyExt::boxed_unsync)),
            )
        }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(client), service)
        .await?;
    Ok(())
}

async fn http2(client: TcpStream, origin: SocketAddr) -> anyhow::Result<()> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(TokioIo::new(dial(origin).await?))
        .await?;
    tokio::spawn(connection);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let mut sender = sender.clone();
        async move {
            // hyper's server leaves the scheme out for cleartext, its client needs one.
            let mut parts = std::mem::take(request.uri_mut()).into_parts();
            parts.scheme.get_or_insert(http::uri::Scheme::HTTP);
            let Ok(uri) = Uri::from_parts(parts) else { return Ok(bad_gateway()) };
            *request.uri_mut() = uri;
            let answer = sender.send_request(request).await;
            Ok::<_, hyper::Error>(
                answer.map_or_else(|_| bad_gateway(), |a| a.map(BodyExt::boxed_unsync)),
            )
        }
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .serve_connection(TokioIo::new(client), service)
        .await?;
    Ok(())
}

async fn tcp(mut client: TcpStream, origin: SocketAddr) -> anyhow::Result<()> {
    let mut upstream = dial(origin).await?;
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, COPY_BUFFER, COPY_BUFFER)
        .await?;
    Ok(())
}

async fn dial(origin: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(origin).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn bad_gateway() -> Response<UnsyncBoxBody<Bytes, hyper::Error>> {
    let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}
