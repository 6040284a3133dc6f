//! Makes connections: TCP, TLS and ALPN under one deadline.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use socket2::{Domain, Protocol as Transport, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use towpath_policies::model::{Protocol, ProxyVersion, Redirected, Service, UpstreamTls};

use super::{
    EndpointState, ServiceState,
    admission::{ConnectionGuard, Limit},
    io::UpstreamIo,
    returned,
};
use crate::proxy_protocol::{self, Ends};

/// The HTTP version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// How a service's connections are made. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    tls: Option<Tls>,
    /// In front of TLS.
    proxy_protocol: Option<ProxyVersion>,
    /// Unlike for every connector built, and the same for its clones.
    terms: u64,
}

#[derive(Clone)]
struct Tls {
    http1: TlsConnector,
    http2: TlsConnector,
    opaque: TlsConnector,
    name: ServerName<'static>,
}

/// Why a connector could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    /// The CA file cannot be used.
    #[error("CA file {path}: {reason}; give a readable PEM file with at least one certificate")]
    CaFile {
        /// As in the policy.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The server name is neither a DNS name nor an IP address.
    #[error("TLS server name `{0}` is neither a DNS name nor an IP address")]
    ServerName(String),
    /// This machine has no root certificates.
    #[error("no root certificates on this machine; install ca-certificates or set caFile")]
    NoRoots,
    /// The TLS library refused the settings.
    #[error("TLS settings: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A breaker limit.
    #[error("too many connections")]
    Full(Limit),
    /// The kernel brings connections to it back to us, as it did a moment ago.
    #[error("the proxy's own connections to it are redirected back to the proxy")]
    Looped,
    /// TCP failed.
    #[error("connect: {0}")]
    Tcp(#[source] io::Error),
    /// The TLS handshake failed.
    #[error("TLS handshake: {0}")]
    Tls(#[source] io::Error),
    /// The endpoint does not speak the protocol (ALPN).
    #[error("the endpoint does not accept HTTP/2 (ALPN)")]
    Alpn,
    /// It took longer than the service's connect timeout.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// The sidecar beside the endpoint has no connection to it.
    #[error("its sidecar answers {0}")]
    Refused(http::StatusCode),
    /// The HTTP/2 handshake failed, or another try's connection that this one waited for did.
    #[error("connection failed: {0}")]
    Handshake(String),
}

impl ConnectError {
    /// It says nothing of the endpoint: a limit, no port is free here, or the way there leads back.
    pub(crate) fn is_ours(&self) -> bool {
        use io::ErrorKind::{AddrInUse, AddrNotAvailable};
        match self {
            Self::Full(_) | Self::Looped => true,
            Self::Tcp(error) => matches!(error.kind(), AddrInUse | AddrNotAvailable),
            _ => false,
        }
    }
}

impl Connector {
    /// Builds the TLS settings of a service.
    ///
    /// # Errors
    /// [`ConnectorError`].
    pub fn new(spec: &Service) -> Result<Self, ConnectorError> {
        let tls = match &spec.tls {
            Some(tls) => Some(Tls::new(tls)?),
            None => None,
        };
        static TERMS: AtomicU64 = AtomicU64::new(0);
        let terms = TERMS.fetch_add(1, Relaxed) + 1;
        Ok(Self { tls, proxy_protocol: spec.proxy_protocol, terms })
    }

    /// Under which terms it connects: connections under others must not be shared.
    pub(crate) fn terms(&self) -> u64 {
        self.terms
    }

    /// Whether connections are under TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Connects to `endpoint` within the service's connect timeout; `None` for opaque bytes.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(
        service: &ServiceState,
        endpoint: &EndpointState,
        wire: Option<Wire>,
    ) -> Result<(UpstreamIo, ConnectionGuard), ConnectError> {
        let guard = service.open_connection(endpoint).map_err(ConnectError::Full)?;
        let io = Self::connect_uncounted(service, endpoint, wire).await?;
        Ok((io, guard))
    }

    /// As [`Self::connect`], for the opaque bytes of one client.
    pub(crate) async fn connect_opaque(
        service: &ServiceState,
        endpoint: &EndpointState,
        ends: Ends,
    ) -> Result<(UpstreamIo, ConnectionGuard), ConnectError> {
        let guard = service.open_connection(endpoint).map_err(ConnectError::Full)?;
        let limit = service.spec.connect_timeout;
        let standing = service.connector.connect_now(endpoint, None, Some(ends));
        let io = timeout(limit, standing).await.map_err(|_| ConnectError::Timeout(limit))??;
        Ok((io, guard))
    }

    /// As [`Self::connect`], for what lasts and is no request: it has no place among the service's
    /// connections, and takes none.
    pub(crate) async fn connect_uncounted(
        service: &ServiceState,
        endpoint: &EndpointState,
        wire: Option<Wire>,
    ) -> Result<UpstreamIo, ConnectError> {
        let limit = service.spec.connect_timeout;
        let standing = service.connector.connect_now(endpoint, wire, None);
        timeout(limit, standing).await.map_err(|_| ConnectError::Timeout(limit))?
    }

    /// A connection to the sidecar beside an endpoint that takes many as one.
    pub(super) async fn connect_tunnel(
        service: &ServiceState,
        endpoint: &EndpointState,
    ) -> Result<UpstreamIo, ConnectError> {
        let limit = service.spec.connect_timeout;
        let address = SocketAddr::new(endpoint.spec.address.ip(), Redirected::TUNNELS);
        let standing = async {
            let tcp = ours(address).await?;
            tcp.set_nodelay(true)?;
            // It may be quiet for long, and many go by it.
            SockRef::from(&tcp).set_tcp_keepalive(&KEEPALIVE)?;
            io::Result::Ok(UpstreamIo::Tcp(tcp))
        };
        let stood = timeout(limit, standing).await.map_err(|_| ConnectError::Timeout(limit))?;
        stood.map_err(ConnectError::Tcp)
    }

    async fn connect_now(
        &self,
        endpoint: &EndpointState,
        wire: Option<Wire>,
        ends: Option<Ends>,
    ) -> Result<UpstreamIo, ConnectError> {
        let start = Instant::now();
        let address = endpoint.spec.address;
        if returned::is_looped(address) {
            return Err(ConnectError::Looped);
        }
        let tcp = match endpoint.apart.as_ref().map(|apart| apart.client) {
            Some(client) if client.is_ipv4() == address.is_ipv4() => under(client, address).await,
            _ => ours(address).await,
        };
        let mut tcp = tcp.map_err(ConnectError::Tcp)?;
        endpoint.live.learned.connected(start.elapsed().as_secs_f32());
        tcp.set_nodelay(true).map_err(ConnectError::Tcp)?;
        if let Some(version) = self.proxy_protocol {
            let header = proxy_protocol::header(version, ends);
            tcp.write_all(&header).await.map_err(ConnectError::Tcp)?;
        }
        let Some(tls) = &self.tls else { return Ok(UpstreamIo::Tcp(tcp)) };
        let connector = match wire {
            Some(Wire::Http1) => &tls.http1,
            Some(Wire::Http2) => &tls.http2,
            None => &tls.opaque,
        };
        let stream = connector.connect(tls.name.clone(), tcp).await.map_err(ConnectError::Tls)?;
        if wire == Some(Wire::Http2) && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(ConnectError::Alpn);
        }
        Ok(UpstreamIo::Tls(Box::new(stream)))
    }
}

/// A silent tunnel is asked whether it still stands after this, then this often.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));

/// Connections are redirected to this process.
static REDIRECTED: AtomicBool = AtomicBool::new(false);
/// What the proxy sends is marked, so that it is not redirected to it.
static MARKED: AtomicBool = AtomicBool::new(false);

/// Has connections marked from now on, where the proxy may do that. Where not, the kernel's rules know it by its user.
/// In case that they do not, it is remembered which are our own.
pub(crate) fn mark() {
    let may =
        Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|s| s.set_mark(Redirected::MARK));
    MARKED.store(may.is_ok(), Relaxed);
    REDIRECTED.store(true, Relaxed);
}

/// A socket to connect to there, marked where that may be.
pub(super) fn socket(to: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(to), kind, Some(Transport::TCP))?;
    if MARKED.load(Relaxed) {
        socket.set_mark(Redirected::MARK)?;
    }
    Ok(socket)
}

/// Connects from an address of ours.
async fn ours(to: SocketAddr) -> io::Result<TcpStream> {
    match REDIRECTED.load(Relaxed) {
        true => returned::connect(socket(to)?, to).await,
        false => TcpStream::connect(to).await,
    }
}

/// Connects from an address that is not ours (`IP_TRANSPARENT`); the kernel's rules bring the answers here.
async fn under(client: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(to)?;
    match client {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    socket.bind(&SocketAddr::new(client, 0).into())?;
    returned::connect(socket, to).await
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls({:?})", self.name)
    }
}

impl Wire {
    /// The version to speak to a service's endpoints when the client spoke `client`.
    pub fn towards(protocol: Protocol, client: Self) -> Self {
        match protocol {
            Protocol::Http1 => Self::Http1,
            Protocol::Http2 => Self::Http2,
            Protocol::Follow | Protocol::Tcp => client,
        }
    }
}

impl Tls {
    fn new(spec: &UpstreamTls) -> Result<Self, ConnectorError> {
        let roots = roots(spec)?;
        let name = ServerName::try_from(spec.server_name.clone())
            .map_err(|_| ConnectorError::ServerName(spec.server_name.clone()))?;
        let connector = |alpn: &[&[u8]]| -> Result<TlsConnector, ConnectorError> {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
            Ok(Arc::new(config).into())
        };
        Ok(Self {
            http1: connector(&[b"http/1.1"])?,
            http2: connector(&[b"h2"])?,
            opaque: connector(&[])?,
            name,
        })
    }
}

fn roots(spec: &UpstreamTls) -> Result<Arc<RootCertStore>, ConnectorError> {
    let mut store = RootCertStore::empty();
    if let Some(path) = &spec.ca_file {
        let bad = |reason: String| ConnectorError::CaFile { path: path.clone(), reason };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|e| bad(e.to_string()))?;
            store.add(certificate).map_err(|e| bad(e.to_string()))?;
        }
        if store.is_empty() {
            return Err(bad("no certificate in it".into()));
        }
    } else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if store.is_empty() {
            return Err(ConnectorError::NoRoots);
        }
    }
    Ok(Arc::new(store))
}
