//! `CONNECT` (RFC 9110 §9.3.6) over HTTP/1.1: what is asked for, and the answers.

use std::io;

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::Authority};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use towpath_policies::model::HttpOptions;

use super::{
    Credentials,
    h1::{self, Limits},
    reply::REASON,
};
use crate::{h2::Stream, sniff};

/// Why there will be no tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    status: StatusCode,
    reason: &'static str,
    text: &'static str,
}

impl Refusal {
    pub(crate) const UNKNOWN_HOST: Self = Self {
        status: StatusCode::BAD_GATEWAY,
        reason: "unknown_host",
        text: "The name of this host has no address.",
    };

    const CREDENTIALS: Self = Self {
        status: StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        reason: "credentials",
        text: "This proxy is for one job, and this is not it.",
    };

    pub(crate) const MALFORMED: Self = Self {
        status: StatusCode::BAD_REQUEST,
        reason: "bad_request",
        text: "CONNECT names a host and a port, and nothing else.",
    };

    /// By the token that the access log has.
    pub(crate) fn of(reason: &'static str) -> Self {
        let (status, text) = match reason {
            "no_service" => (StatusCode::SERVICE_UNAVAILABLE, "The service is not configured."),
            "overflow" => (StatusCode::SERVICE_UNAVAILABLE, "A limit of the service is reached."),
            "no_healthy_endpoint" => {
                (StatusCode::SERVICE_UNAVAILABLE, "No endpoint of the service may be used now.")
            }
            "looped" => (
                StatusCode::SERVICE_UNAVAILABLE,
                "The proxy's connection came back to it: see its log.",
            ),
            _ => (StatusCode::BAD_GATEWAY, "No connection to this host could be made."),
        };
        Self { status, reason, text }
    }

    /// Answers on a stream, and ends it.
    pub(crate) fn answer(self, stream: &Stream) {
        let mut headers = HeaderMap::new();
        headers.insert(REASON, HeaderValue::from_static(self.reason));
        stream.answer(self.status, &headers, true);
    }

    /// Answers, and lets the connection be closed.
    pub(crate) async fn send(self, tcp: &mut TcpStream) {
        let Self { status, reason, text } = self;
        let length = text.len() + 1;
        let asks = match self {
            Self::CREDENTIALS => format!("proxy-authenticate: {}\r\n", Credentials::CHALLENGE),
            _ => String::new(),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nx-towpath-reason: {reason}\r\n{asks}content-type: text/plain\r\n\
             content-length: {length}\r\nconnection: close\r\n\r\n{text}\n"
        );
        // One that does not hear it is gone.
        let _ = tcp.write_all(answer.as_bytes()).await;
    }
}

/// Says that the tunnel stands.
pub(crate) async fn establish(tcp: &mut TcpStream) -> io::Result<()> {
    tcp.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await
}

/// Reads the head of a `CONNECT` of who has these credentials; what follows it stays in `seen`.
/// `None` when the client is gone.
pub(crate) async fn read_head(
    tcp: &TcpStream,
    seen: &mut BytesMut,
    options: &HttpOptions,
    credentials: Option<&Credentials>,
) -> Result<Option<Authority>, Refusal> {
    let limits =
        Limits { bytes: options.max_head_bytes as usize, fields: options.max_headers as usize };
    loop {
        match h1::request(seen, limits) {
            Ok(Some(frame)) => {
                let given = frame.fields.map.get(header::PROXY_AUTHORIZATION);
                let are = |c: &Credentials| given.is_some_and(|given| c.are(given.as_bytes()));
                if credentials.is_none_or(are) {
                    return authority(frame.method, frame.uri).map(Some);
                }
                return Err(Refusal::CREDENTIALS);
            }
            Ok(None) => {}
            Err(_) => return Err(Refusal::MALFORMED),
        }
        let before = seen.len();
        let more = sniff::read_until(tcp, seen, limits.bytes + 1, |now| {
            (now.len() > before).then_some(())
        });
        if !matches!(more.await, Ok(Some(()))) {
            return Ok(None);
        }
    }
}

fn authority(method: Method, target: http::Uri) -> Result<Authority, Refusal> {
    let parts = target.into_parts();
    let alone = parts.scheme.is_none() && parts.path_and_query.is_none();
    let named = parts.authority.filter(|a| {
        !a.as_str().contains('@') && a.port_u16().is_some_and(|p| p > 0) && !a.host().is_empty()
    });
    named.filter(|_| alone && method == Method::CONNECT).ok_or(Refusal::MALFORMED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_to_a_host_and_a_port() {
        for (target, expected) in [
            ("db.test:5432", Some("db.test:5432")),
            ("[::1]:443", Some("[::1]:443")),
            ("10.0.0.1:1", Some("10.0.0.1:1")),
            ("db.test", None),
            ("db.test:0", None),
            ("user@db.test:5432", None),
            ("http://db.test:80/", None),
            ("/db.test:80", None),
        ] {
            let asked = authority(Method::CONNECT, target.parse().unwrap());
            assert_eq!(asked.ok().as_ref().map(Authority::as_str), expected, "{target}");
        }
        assert!(authority(Method::GET, "db.test:80".parse().unwrap()).is_err());
    }
}
