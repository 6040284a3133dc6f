//! What a proxy listens on, and what it does with what it accepts.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Location, WeightedBackend};

/// One listening socket (or one API listener for proxyless gRPC).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// Unique name, e.g. `gateway/edge/http`.
    pub name: String,
    /// Where it binds.
    pub bind: Bind,
    /// Chosen by SNI; exactly one when no TLS is involved. Never empty.
    pub chains: Vec<Chain>,
    /// Where the proxy stands that serves it.
    #[serde(default)]
    pub location: Location,
}

/// Where a listener is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bind {
    /// A TCP socket.
    Socket(SocketAddr),
    /// No socket: a proxyless gRPC client (`xds:///name`) reads its routes (Envoy `api_listener`).
    Api,
}

/// What happens to connections whose SNI matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chain {
    /// SNI names: exact (`a.example`) or one leading wildcard label
    /// (`*.example`); empty matches any connection. The most specific wins.
    pub server_names: Vec<String>,
    /// Terminate TLS with these certificates; `None` leaves the bytes as they come.
    pub tls: Option<TlsServer>,
    /// HTTP or opaque bytes.
    pub kind: ChainKind,
}

/// The protocol a chain speaks after TLS, if any.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ChainKind {
    /// HTTP/1.1 and HTTP/2 (prior knowledge or ALPN), routed by a route table.
    Http {
        /// Name of the [`super::RouteTable`].
        route_table: String,
        /// Limits and headers of this listener.
        options: HttpOptions,
    },
    /// Opaque TCP, or TLS passed through when `server_names` is set and `tls` is not.
    Tcp(TcpForward),
}

/// Where opaque connections go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TcpForward {
    /// Drawn by weight per connection. Never empty.
    pub backends: Vec<WeightedBackend>,
    /// Close after this long without a byte either way; `None` = never.
    pub idle_timeout: Option<Duration>,
}

/// Server-side TLS. Key material stays in files on the proxy's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsServer {
    /// PEM certificate chain, leaf first.
    pub certificate_file: PathBuf,
    /// PEM private key.
    pub private_key_file: PathBuf,
    /// ALPN protocols in order of preference, e.g. `h2`, `http/1.1`. Empty for opaque TCP.
    pub alpn: Vec<String>,
}

/// Limits and header behaviour of an HTTP listener. All limits are finite by default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpOptions {
    /// Longest accepted request head in bytes (request line and headers). Default 64 KiB.
    pub max_head_bytes: u32,
    /// Most header fields in a message. Default 100.
    pub max_headers: u32,
    /// Time allowed to send a complete request head. Default 30 s.
    pub head_timeout: Duration,
    /// An idle keep-alive connection is closed after this. Default 1 h.
    pub idle_timeout: Duration,
    /// Most concurrent HTTP/2 streams of one connection. Default 256.
    pub max_concurrent_streams: u32,
    /// Add `Via` (RFC 9110 §7.6.3) under this pseudonym; `None` adds none.
    pub via: Option<String>,
    /// What to tell the upstream about the client.
    pub forwarded: ForwardedHeader,
    /// What stands behind it is on this machine: responses carry a load report where the request asks for one.
    #[serde(default)]
    pub reports_load: bool,
}

/// How the client's address is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForwardedHeader {
    /// Drop what came and add nothing.
    Off,
    /// `X-Forwarded-For`, `-Proto` (append). Envoy's manner, and the default.
    XForwarded,
    /// `Forwarded` (RFC 7239, append).
    Rfc7239,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            max_head_bytes: 64 * 1024,
            max_headers: 100,
            head_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(3600),
            max_concurrent_streams: 256,
            via: None,
            forwarded: ForwardedHeader::XForwarded,
            reports_load: false,
        }
    }
}
