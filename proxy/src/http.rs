//! The HTTP data path: what happens to a connection that speaks HTTP/1.1 or
//! HTTP/2, from its first byte to its last.
//!
//! `serve_connection` reads requests; each becomes an exchange: routed, sent to
//! an endpoint in one or more attempts, and relayed both ways under
//! back-pressure. Knows nothing of sockets, accept loops, or where the
//! configuration comes from.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use http::{HeaderValue, uri::Authority};
use tokio::io::{AsyncRead, AsyncWrite};
use towpath_policies::model::{ForwardedHeader, HttpOptions};

mod attempt;
mod base64;
pub(crate) mod connect;
mod credentials;
mod deadline;
mod digest;
mod exchange;
mod forwarded;
mod h1;
mod h1_client;
mod h1_server;
mod h2_client;
pub(crate) mod h2_server;
mod head_times;
mod headers;
pub(crate) mod hedge;
mod integrity;
mod message;
mod mirror;
pub(crate) mod orca;
mod record;
mod relay;
mod replay;
mod reply;
mod resume;
mod retry;
mod stall;
mod upload_resume;

pub use credentials::Credentials;
pub use digest::DigestOutcome;
pub use resume::ResumeOutcome;
pub use retry::RetryReason;

use crate::{
    access_log::AccessLog,
    drain,
    explicit::Directory,
    overload::Overload,
    router::Router,
    spool::Space,
    transfers::Transfers,
    upstream::{connect::Wire, destination::Destination},
};

/// What an HTTP listener (one chain of it) needs to serve its connections.
#[derive(Debug)]
pub struct HttpListener {
    /// Name of the listener, for logs and metrics.
    pub name: Arc<str>,
    /// Limits and headers.
    pub options: HttpOptions,
    /// The routes; swapped when the configuration changes.
    pub router: Arc<ArcSwap<Router>>,
    /// Where finished exchanges are written.
    pub access_log: Option<AccessLog>,
    /// Where request bodies are kept on disk for another try.
    pub spool: Option<Arc<Space>>,
    /// Where exchanges that last are listed.
    pub transfers: Arc<Transfers>,
    /// Says which classes are shed now.
    pub overload: Arc<Overload>,
    /// Where load reports are answered with when asked for: before an application on this machine.
    pub(crate) load: Option<orca::Reporter>,
    /// Where hosts are found that the router does not know: for programs whose proxy this is.
    pub(crate) directory: Option<Arc<Directory>>,
    /// What clients have to say to be served.
    pub(crate) credentials: Option<Credentials>,
    via: Option<Via>,
}

#[derive(Debug)]
struct Via {
    http1: HeaderValue,
    http2: HeaderValue,
}

/// The two ends of a client's connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The client.
    pub addr: SocketAddr,
    /// Our side.
    pub local: SocketAddr,
    /// What TLS told, when it was terminated here.
    pub tls: Option<TlsInfo>,
    /// Where the connection was made to, if it was redirected here.
    pub destination: Option<Destination>,
    /// The host that its tunnel is to, where it is in one.
    pub tunnel: Option<Authority>,
}

/// What a TLS handshake told.
#[derive(Clone, Debug, Default)]
pub struct TlsInfo {
    /// SNI.
    pub server_name: Option<Box<str>>,
}

/// A client's connection: a socket, TLS over one, or one with bytes already read.
pub trait ClientIo: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Makes the close that follows visible as a break: a TCP reset where that
    /// is possible (`SO_LINGER` 0), for bodies that only a close delimits.
    fn reset_on_close(&self) {}
}

impl ClientIo for tokio::net::TcpStream {
    fn reset_on_close(&self) {
        // Failing to set it leaves an ordinary close, which is all that can be had then.
        let _ = socket2::SockRef::from(self).set_linger(Some(std::time::Duration::ZERO));
    }
}

impl HttpListener {
    /// A listener with these terms.
    pub fn new(
        name: Arc<str>,
        options: HttpOptions,
        router: Arc<ArcSwap<Router>>,
        transfers: Arc<Transfers>,
        overload: Arc<Overload>,
    ) -> Self {
        let via = options.via.as_deref().and_then(|pseudonym| {
            Some(Via {
                http1: HeaderValue::from_str(&format!("1.1 {pseudonym}")).ok()?,
                http2: HeaderValue::from_str(&format!("2 {pseudonym}")).ok()?,
            })
        });
        Self {
            name,
            options,
            router,
            access_log: None,
            spool: None,
            transfers,
            overload,
            load: None,
            directory: None,
            credentials: None,
            via,
        }
    }

    fn via(&self, received: Wire) -> Option<&HeaderValue> {
        self.via.as_ref().map(|via| match received {
            Wire::Http1 => &via.http1,
            Wire::Http2 => &via.http2,
        })
    }
}

/// Serves one client connection to its end.
///
/// `wire` is what the connection speaks (ALPN, or the HTTP/2 preface seen).
/// `worker` names the pools to use: that of the runtime this is polled on. When
/// `drain` fires, what is under way is finished and nothing new is taken
/// (`Connection: close`, `GOAWAY`).
pub async fn serve_connection<I: ClientIo>(
    io: I,
    wire: Wire,
    listener: Arc<HttpListener>,
    peer: Peer,
    worker: usize,
    drain: drain::Watch,
) {
    let client = message::Client::new(listener, peer, worker, drain);
    match wire {
        Wire::Http1 => h1_server::serve(io, client).await,
        Wire::Http2 => h2_server::serve(io, client).await,
    }
}

/// Whether what a client claims about its own clients is passed on at all.
const fn keeps_claims(mode: ForwardedHeader) -> bool {
    !matches!(mode, ForwardedHeader::Off)
}
