//! A GET over HTTP/1.1, bounded in time and size, on a connection of its own.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    Request, StatusCode, Uri,
    header::{ACCEPT, CONNECTION, HOST, HeaderName, RETRY_AFTER},
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// Time allowed for a whole exchange.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest body of an answer.
const MAX_BODY: usize = 1 << 20;
/// Largest head of an answer.
const MAX_HEAD: usize = 64 << 10;

/// A server that answers GETs.
#[derive(Clone)]
pub(crate) struct Http {
    /// `host` or `host:port`.
    authority: String,
    /// What the URL's path begins with, without a slash at its end.
    prefix: String,
    dial: Dial,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Bytes,
}

/// Why there is no answer, or no server.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Not a URL of a server we talk to.
    #[error("{0:?} is no https URL (http only for this machine)")]
    Url(String),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// No connection.
    #[error("no connection: {0}")]
    Connect(io::Error),
    /// The connection broke, or it is not HTTP that is spoken there.
    #[error("the exchange broke off: {0}")]
    Exchange(hyper::Error),
    /// The body broke off, or is too large.
    #[error("the answer's body: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// Too slow.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Slow,
    /// Something of ours that no header may hold.
    #[error(transparent)]
    Request(#[from] http::Error),
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;
/// Makes a connection.
pub(crate) type Dial = Arc<dyn Fn() -> Dialing + Send + Sync>;

impl Http {
    pub(crate) fn new(url: &str, roots: RootCertStore) -> Result<Self, HttpError> {
        let wrong = || HttpError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let (Some(authority), Some(scheme)) = (uri.authority(), uri.scheme_str()) else {
            return Err(wrong());
        };
        if uri.query().is_some() || authority.as_str().contains('@') {
            return Err(wrong());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match scheme {
            "https" => Some(tls(&host, roots)?.ok_or_else(wrong)?),
            // Tokens do not travel in the clear.
            "http" if is_this_machine(&host) => None,
            _ => return Err(wrong()),
        };
        let port = authority.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let dial: Dial = Arc::new(move || {
            let (host, tls) = (host.clone(), tls.clone());
            Box::pin(async move {
                let stream = TcpStream::connect((host, port)).await?;
                Ok(match tls {
                    Some((tls, name)) => Box::new(tls.connect(name, stream).await?) as _,
                    None => Box::new(stream) as _,
                })
            })
        });
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { authority: authority.to_string(), prefix, dial })
    }

    /// A server that is reached in another way.
    #[cfg(test)]
    pub(crate) fn over(dial: Dial) -> Self {
        Self { authority: "maps.test".to_owned(), prefix: String::new(), dial }
    }

    /// Asks for `target` with what says who asks: the field and its value.
    pub(crate) async fn get(
        &self,
        target: &str,
        credentials: (HeaderName, &str),
    ) -> Result<Response, HttpError> {
        let exchange = self.exchange(target, credentials);
        tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or(Err(HttpError::Slow))
    }

    async fn exchange(
        &self,
        target: &str,
        (field, value): (HeaderName, &str),
    ) -> Result<Response, HttpError> {
        let stream = (self.dial)().await.map_err(HttpError::Connect)?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD).max_headers(100);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(HttpError::Exchange)?;
        // What goes wrong there is told by the sender.
        let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
        let request = Request::get(format!("{}{target}", self.prefix))
            .header(HOST, &self.authority)
            .header(field, value)
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await.map_err(HttpError::Exchange)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(HttpError::Body)?;
        let retry_after = head.headers.get(RETRY_AFTER).and_then(|value| {
            let text = value.to_str().ok()?.trim();
            let at =
                || httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok();
            text.parse().ok().map(Duration::from_secs).or_else(at)
        });
        Ok(Response { status: head.status, retry_after, body: body.to_bytes() })
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Http({}{})", self.authority, self.prefix)
    }
}

type Tls = (TlsConnector, ServerName<'static>);

/// `None` where the host is no name that a certificate could have.
fn tls(host: &str, roots: RootCertStore) -> Result<Option<Tls>, HttpError> {
    let Ok(name) = ServerName::try_from(host.to_owned()) else { return Ok(None) };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Some((TlsConnector::from(Arc::new(config)), name)))
}

/// The roots that this system believes; `None` where there are none.
pub(crate) fn system_roots() -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    (!roots.is_empty()).then_some(roots)
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Text as part of a query (RFC 3986 §2).
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped += &format!("%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_and_this_machine_are_talked_to() {
        let parse = |url: &str| Http::new(url, RootCertStore::empty());
        for url in [
            "https://maps-api.apple.com",
            "http://127.0.0.1:8080",
            "http://[::1]:1/a/",
            "http://localhost",
        ] {
            parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        }
        for url in [
            "",
            "maps-api.apple.com",
            "http://maps-api.apple.com",
            "http://127.0.0.1.evil.example",
            "ftp://127.0.0.1",
            "https://",
            "https://a/?b",
            "https://user@a",
            "https://a b",
            "/v1",
        ] {
            assert!(parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("São Paulo, BR&x=1/..#"), "S%C3%A3o%20Paulo%2C%20BR%26x%3D1%2F..%23");
    }
}
