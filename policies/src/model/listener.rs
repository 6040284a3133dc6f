//! What a proxy listens on, and what it does with what it accepts.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{Location, WeightedBackend};

/// One listening socket (or one API listener for proxyless gRPC).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// Unique name, e.g. `gateway/edge/http`.
    pub name: String,
    /// Where it binds.
    pub bind: Bind,
    /// Chosen by SNI, and by destination where connections are redirected; else exactly one when no TLS is
    /// involved. Never empty.
    pub chains: Vec<Chain>,
    /// Where the proxy stands that serves it.
    #[serde(default)]
    pub location: Location,
    /// Who may say in front of a connection for which client it is; `None` = nobody.
    #[serde(default)]
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// Whose word is taken for who the client is: HAProxy's PROXY protocol, version 1 or 2, in front of everything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyProtocol {
    /// A connection that does not come from a trusted network, or does not begin with a header, is closed; else it
    /// is its peer's own.
    pub required: bool,
    /// The networks of load balancers, at most [`Self::MOST_TRUSTED`] and never none: from elsewhere no header is
    /// looked for.
    pub trusted: Vec<IpNetwork>,
}

impl ProxyProtocol {
    /// Each new connection is held against so many networks at most.
    pub const MOST_TRUSTED: usize = 64;

    /// Whether a peer's word is taken.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted.iter().any(|network| network.contains(peer))
    }
}

/// Where a listener is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bind {
    /// A TCP socket.
    Socket(SocketAddr),
    /// A TCP socket to which the kernel hands connections that were made to other addresses.
    Redirected(Redirected),
    /// No socket: a proxyless gRPC client (`xds:///name`) reads its routes (Envoy `api_listener`).
    Api,
}

/// How connections that were made to other addresses come to a socket, and what is known of them beforehand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Redirected {
    /// Where it binds.
    pub address: SocketAddr,
    /// They come by TPROXY, and applications see their clients' addresses; else by REDIRECT.
    #[serde(default)]
    pub transparent: bool,
    /// Destination ports, at most [`Self::MOST_PORTS`], of which nothing is read to find out what is spoken:
    /// there servers speak first.
    #[serde(default)]
    pub opaque_ports: Vec<u16>,
    /// Those to port [`Self::TUNNELS`] carry others, to chains that name a port and networks of the same host.
    #[serde(default)]
    pub tunnels: bool,
}

/// Which of the connections that come redirected a chain takes; the default takes them all.
///
/// Looked at in this order, and each time only those that are most specific are left: the port, the longest
/// of the networks, the server name, what is spoken. When none is left, the chain that takes all has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Only {
    /// Destination port; `None` = any.
    pub port: Option<u16>,
    /// Networks of the destination; empty = any.
    pub networks: Vec<IpNetwork>,
    /// What the client begins with; `None` = anything, also when it says nothing.
    pub speaks: Option<Speaks>,
}

/// What a client begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Speaks {
    /// A request of HTTP/1, or the preface of HTTP/2.
    Http,
    /// A TLS ClientHello.
    Tls,
}

/// What happens to connections that it is chosen for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chain {
    /// SNI names: exact (`a.example`) or one leading wildcard label
    /// (`*.example`); empty matches any connection. The most specific wins.
    pub server_names: Vec<String>,
    /// Terminate TLS with these certificates; `None` leaves the bytes as they come.
    pub tls: Option<TlsServer>,
    /// HTTP or opaque bytes.
    pub kind: ChainKind,
    /// Where connections are redirected: which of them.
    #[serde(default)]
    pub only: Only,
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
    /// For clients that do not take the first by its kind of key, e.g. RSA beside ECDSA.
    #[serde(default)]
    pub second: Option<KeyFiles>,
    /// ALPN protocols in order of preference, e.g. `h2`, `http/1.1`. Empty for opaque TCP.
    pub alpn: Vec<String>,
}

impl Bind {
    /// The socket, if there is one.
    pub const fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) | Self::Redirected(Redirected { address, .. }) => Some(*address),
            Self::Api => None,
        }
    }
}

impl Redirected {
    /// Mark (`SO_MARK`) of what must not be redirected again, and of what is sent under a client's address.
    pub const MARK: u32 = 0x746f;
    /// Port at which a sidecar takes many connections as one: streams of HTTP/2 that ask by `CONNECT` (RFC 9113
    /// §8.5), as Istio's HBONE, so far without its TLS.
    pub const TUNNELS: u16 = 15008;
    /// The most [`Self::opaque_ports`].
    pub const MOST_PORTS: usize = 64;
    /// Ports of well-known protocols in which the server speaks first: FTP, SSH, Telnet, SMTP, POP3, NNTP, IMAP,
    /// submission, rsync, MySQL, VNC.
    pub const SERVER_FIRST: [u16; 11] = [21, 22, 23, 25, 110, 119, 143, 587, 873, 3306, 5900];
}

impl Only {
    /// Whether it takes everything.
    pub fn takes_all(&self) -> bool {
        *self == Self::default()
    }
}

impl Chain {
    /// For connections with these server names, or any if there are none.
    pub fn new(server_names: Vec<String>, tls: Option<TlsServer>, kind: ChainKind) -> Self {
        Self { server_names, tls, kind, only: Only::default() }
    }
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFiles {
    /// Certificate chain, leaf first.
    pub certificate_file: PathBuf,
    /// Private key.
    pub private_key_file: PathBuf,
}

/// Limits and header behaviour of an HTTP listener. All limits are finite by default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
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
    pub reports_load: bool,
    /// HTTP/1.0 is served too; else it is refused. Default true.
    pub http10: bool,
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
            http10: true,
        }
    }
}
