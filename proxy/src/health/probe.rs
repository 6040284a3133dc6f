//! One question to one endpoint, over a connection of its own.

use std::future::poll_fn;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use towpath_policies::model::{HealthCheck, HealthProbe, Protocol};

use crate::{
    h2::{Config, Connection, Part, RequestRef, Response, StreamError},
    upstream::{
        EndpointState, ServiceState,
        connect::{ConnectError, Connector, Wire},
        io::UpstreamIo,
        returned,
    },
};

/// An answer.
#[derive(Debug)]
pub(super) enum Verdict {
    Passed,
    Failed(String),
    /// It could not be asked, for reasons that are not the endpoint's.
    Unknown,
}

/// Asks, within the time that the terms allow.
pub(super) async fn ask(
    service: &ServiceState,
    endpoint: &EndpointState,
    terms: &HealthCheck,
) -> Verdict {
    let asked = async {
        let wire = match &terms.probe {
            HealthProbe::Tcp => None,
            HealthProbe::Grpc { .. } => Some(Wire::Http2),
            HealthProbe::Http { .. } if service.spec.protocol == Protocol::Http2 => {
                Some(Wire::Http2)
            }
            HealthProbe::Http { .. } => Some(Wire::Http1),
        };
        let (io, _guard) = match Connector::connect(service, endpoint, wire).await {
            Ok(connected) => connected,
            Err(ConnectError::Full(_) | ConnectError::Looped) => return Verdict::Unknown,
            Err(error) => return Verdict::Failed(error.to_string()),
        };
        let answer = match &terms.probe {
            HealthProbe::Tcp => Ok(()),
            HealthProbe::Grpc { service: name } => grpc(service, io, name).await,
            HealthProbe::Http { path, host } => {
                let host = host.as_deref().unwrap_or(&service.spec.name);
                match wire {
                    Some(Wire::Http2) => http2(service, io, path, host).await,
                    _ => http1(io, path, host).await,
                }
            }
        };
        match answer {
            Ok(()) => Verdict::Passed,
            // It was not asked: the connection came back to us.
            Err(_) if returned::is_looped(endpoint.spec.address) => Verdict::Unknown,
            Err(reason) => Verdict::Failed(reason),
        }
    };
    match timeout(terms.timeout, asked).await {
        Ok(verdict) => verdict,
        Err(_) => Verdict::Failed(format!("no answer within {:?}", terms.timeout)),
    }
}

fn judge(status: StatusCode) -> Result<(), String> {
    if status.is_success() { Ok(()) } else { Err(format!("answered {status}")) }
}

async fn http1(io: UpstreamIo, path: &str, host: &str) -> Result<(), String> {
    let say = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(say)?;
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    let mut connection = std::pin::pin!(connection);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // The answer and the close it asked for come together: the answer is there by now, or never.
        _ = &mut connection => answer.await,
    };
    judge(answer.map_err(say)?.status())
}

const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("towpath/", env!("CARGO_PKG_VERSION"), " health check"));

async fn http2(
    service: &ServiceState,
    io: UpstreamIo,
    path: &str,
    host: &str,
) -> Result<(), String> {
    let request = RequestRef {
        method: &Method::GET,
        https: service.connector.is_tls(),
        authority: host,
        path,
        headers: &HeaderMap::from_iter([(header::USER_AGENT, USER_AGENT)]),
        te_trailers: false,
        expects_continue: false,
    };
    let answer = exchange(io, &request, None).await?;
    judge(answer.head.status)
}

async fn grpc(service: &ServiceState, io: UpstreamIo, name: &str) -> Result<(), String> {
    let content_type = HeaderValue::from_static("application/grpc");
    let request = RequestRef {
        method: &Method::POST,
        https: service.connector.is_tls(),
        authority: &service.spec.name,
        path: "/grpc.health.v1.Health/Check",
        headers: &HeaderMap::from_iter([
            (header::USER_AGENT, USER_AGENT),
            (header::CONTENT_TYPE, content_type),
        ]),
        te_trailers: true,
        expects_continue: false,
    };
    let answer = exchange(io, &request, Some(check_request(name))).await?;
    judge(answer.head.status)?;
    let status = answer.trailers.as_ref().unwrap_or(&answer.head.headers).get("grpc-status");
    match status.map(HeaderValue::as_bytes) {
        Some(b"0") => {}
        Some(other) => return Err(format!("grpc-status {}", String::from_utf8_lossy(other))),
        None => return Err("answered without a grpc-status".into()),
    }
    match serving_status(&answer.body) {
        Some(SERVING) => Ok(()),
        Some(other) => Err(format!("serving status {other}, not SERVING")),
        None => Err("answered with something that is no HealthCheckResponse".into()),
    }
}

struct Answer {
    head: Response,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

/// Most bytes of an answer that are looked at.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// Sends one request over HTTP/2 and reads the answer.
async fn exchange(
    io: UpstreamIo,
    request: &RequestRef<'_>,
    body: Option<Bytes>,
) -> Result<Answer, String> {
    let (mut connection, client) = Connection::client(io, Config::SMALL);
    let say = |error: StreamError| error.to_string();
    let opened = client.open(request, body.is_none());
    let mut stream = opened.map_err(|_| "the connection takes no request".to_owned())?;
    let asking = async {
        if let Some(body) = body {
            stream.send(body, true).map_err(say)?;
        }
        let head = loop {
            let head = poll_fn(|cx| stream.poll_head(cx)).await.map_err(say)?;
            if !head.status.is_informational() {
                break head;
            }
        };
        let mut body = BytesMut::new();
        let trailers = loop {
            match poll_fn(|cx| stream.poll_part(cx)).await.map_err(say)? {
                Part::End(trailers) => break trailers,
                Part::Data { bytes, .. } => {
                    stream.credit(bytes.len());
                    if body.len() + bytes.len() > MAX_ANSWER_BYTES {
                        return Err(format!("answered with more than {MAX_ANSWER_BYTES} bytes"));
                    }
                    body.extend_from_slice(&bytes);
                }
            }
        };
        Ok(Answer { head, body: body.freeze(), trailers })
    };
    let mut asking = std::pin::pin!(asking);
    tokio::select! {
        biased;
        answer = &mut asking => answer,
        // What came before the end is still there to be read.
        () = poll_fn(|cx| connection.poll(cx)) => asking.await,
    }
}

/// `HealthCheckResponse.ServingStatus.SERVING` of `grpc.health.v1`.
const SERVING: u64 = 1;
/// Protobuf tag of field 1 with a length.
const FIELD_1_BYTES: u8 = 0x0a;
/// Protobuf tag of field 1 as a varint.
const FIELD_1_VARINT: u8 = 0x08;

/// A length-prefixed `HealthCheckRequest { service }`.
fn check_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(FIELD_1_BYTES);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(&message);
    framed.freeze()
}

/// The status in a length-prefixed `HealthCheckResponse`; absent in the message means 0.
fn serving_status(mut body: &[u8]) -> Option<u64> {
    if body.len() < 5 || body.get_u8() != 0 {
        return None;
    }
    let length = body.get_u32() as usize;
    match body.get(..length)? {
        [] => Some(0),
        [FIELD_1_VARINT, value] if *value < 0x80 => Some(u64::from(*value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_health_messages_are_those_of_grpc_health_v1() {
        assert_eq!(&check_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&check_request("etl")[..], b"\0\0\0\0\x05\x0a\x03etl");
        assert_eq!(&check_request(&"x".repeat(200))[..8], b"\0\0\0\0\xcb\x0a\xc8\x01");
        for (body, expected) in [
            (&b"\0\0\0\0\x02\x08\x01"[..], Some(1)),
            (b"\0\0\0\0\x02\x08\x02", Some(2)),
            (b"\0\0\0\0\0", Some(0)),
            (b"\0\0\0\0\x02\x08", None),
            (b"\x01\0\0\0\0", None),
            (b"", None),
        ] {
            assert_eq!(serving_status(body), expected, "{body:?}");
        }
    }
}
