//! The listeners of a program whose proxy this is. One that was told of it (`HTTP_PROXY`) sends
//! requests that name their host (RFC 9112 §3.2.2) and asks for tunnels (`CONNECT`, RFC 9110
//! §9.3.6); one that was not has all its connections taken (TPROXY), and their own side is where
//! they were made to.
//!
//! What the mesh knows takes the routes that policies say. All else passes through to the host
//! that the program named, unharmed and counted as the service `passthrough`. Knows nothing of
//! the program.

mod directory;
mod strangers;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::uri::Authority;
use tokio::{net::TcpStream, time::timeout};
use towpath_policies::model::Redirected;

use crate::{
    access_log::Record,
    drain,
    http::{HttpListener, Peer, connect, serve_connection},
    listener::who_speaks,
    sniff::{self, First, MAX_HELLO_BYTES, Prefixed},
    tcp::{self, Caller, Client},
    upstream::connect::Wire,
};
pub(crate) use directory::{Directory, Found, Terms};

/// What such a listener does with its connections.
#[derive(Debug)]
pub(crate) struct Explicit {
    pub(crate) http: Arc<HttpListener>,
    pub(crate) directory: Arc<Directory>,
}

/// A connection as it was accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) worker: usize,
    pub(crate) drain: drain::Watch,
}

/// What a connection to us begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Connect,
    Http(Wire),
    /// Nothing that a proxy is asked for.
    Nothing,
}

/// Time for a client to speak in a tunnel to what routes know: one that has not by then is taken
/// to wait for the server.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// The names of such listeners, in logs and metrics.
pub(crate) const NAME: &str = "explicit";
pub(crate) const TAKEN: &str = "taken";

/// Serves one connection to its end.
pub(crate) async fn serve(tcp: TcpStream, explicit: Arc<Explicit>, accepted: Accepted) {
    if !explicit.directory.is_here(accepted.local) {
        return taken(tcp, &explicit, accepted).await;
    }
    let mut seen = BytesMut::new();
    let reading = sniff::read_until(&tcp, &mut seen, MAX_HELLO_BYTES, asked);
    let asked = tokio::select! {
        read = timeout(explicit.http.options.idle_timeout, reading) => match read {
            Ok(Ok(Some(asked))) => asked,
            // Nothing was asked, so nothing is answered.
            _ => return,
        },
        () = accepted.drain.idle_ends() => return,
    };
    match asked {
        Asked::Connect => tunnel(tcp, seen, &explicit, accepted).await,
        Asked::Http(wire) => requests(tcp, seen, wire, &explicit, accepted, None).await,
        Asked::Nothing => {
            tracing::debug!(client = %accepted.peer, "closed what asks nothing of a proxy");
        }
    }
}

async fn requests(
    tcp: TcpStream,
    seen: BytesMut,
    wire: Wire,
    explicit: &Explicit,
    accepted: Accepted,
    tunnel: Option<Authority>,
) {
    let Accepted { peer, local, worker, drain } = accepted;
    let io = Prefixed::new(seen.freeze(), tcp);
    let peer = Peer { addr: peer, local, tls: None, destination: None, tunnel };
    serve_connection(io, wire, explicit.http.clone(), peer, worker, drain).await;
}

/// A connection that its program made to somewhere else.
async fn taken(tcp: TcpStream, explicit: &Explicit, accepted: Accepted) {
    let (directory, destination) = (&explicit.directory, accepted.local);
    let unread = match directory.opaque_at(destination).await {
        Ok(chain) => chain,
        Err(error) => return tracing::debug!(%destination, %error, "cannot pass through"),
    };
    let caller = Caller {
        address: accepted.peer,
        reached: destination,
        server_name: Some(destination.to_string()),
        protocol: "TCP",
        worker: accepted.worker,
        destination: None,
    };
    let mut seen = BytesMut::new();
    // Where nothing could be routed, nothing is read to find out.
    if !directory.knows_http() || Redirected::SERVER_FIRST.contains(&destination.port()) {
        let client = Client::<TcpStream>::Clear(tcp, Bytes::new());
        return tcp::relay(unread, client, caller).await;
    }
    let speaking = who_speaks(&tcp, &mut seen, Some(&unread), caller.clone()).await;
    // A client that is gone needs nobody any more.
    let Ok((first, opened)) = speaking else { return };
    if let Some(wire) = directory.routes(destination, &first) {
        drop(opened);
        return requests(tcp, seen, wire, explicit, accepted, None).await;
    }
    let client = Client::<TcpStream>::Clear(tcp, seen.freeze());
    match opened {
        Some(Ok(opened)) => opened.run(client).await,
        Some(Err(refused)) => refused.tell(client).await,
        None => tcp::relay(unread, client, caller).await,
    }
}

/// A connection to the host and port that a `CONNECT` names.
async fn tunnel(mut tcp: TcpStream, mut seen: BytesMut, explicit: &Explicit, accepted: Accepted) {
    let options = &explicit.http.options;
    let credentials = explicit.http.credentials.as_ref();
    let heading = connect::read_head(&tcp, &mut seen, options, credentials);
    let authority = match timeout(options.head_timeout, heading).await {
        Ok(Ok(Some(authority))) => authority,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(refusal)) => return refusal.send(&mut tcp).await,
    };
    let directory = &explicit.directory;
    let caller = Caller {
        address: accepted.peer,
        reached: accepted.local,
        server_name: Some(authority.to_string()),
        protocol: "TCP",
        worker: accepted.worker,
        destination: None,
    };
    if directory.speaks_http(&authority) {
        // Which route it takes is known only when it has asked for something.
        if connect::establish(&mut tcp).await.is_err() {
            return;
        }
        let wire = match first_word(&tcp, &mut seen).await {
            First::Http1 { .. } => Some(Wire::Http1),
            First::Http2 => Some(Wire::Http2),
            First::Tls(_) | First::Opaque => None,
        };
        if let Some(wire) = wire {
            return requests(tcp, seen, wire, explicit, accepted, Some(authority)).await;
        }
        if let Ok(chain) = directory.opaque(&authority).await {
            let client = Client::<TcpStream>::Clear(tcp, seen.freeze());
            tcp::relay(chain, client, caller).await;
        }
        return;
    }
    match directory.opaque(&authority).await {
        Ok(chain) => {
            let client = Client::<TcpStream>::Tunnel(tcp, seen.freeze());
            tcp::relay(chain, client, caller).await;
        }
        Err(error) => {
            tracing::debug!(host = %authority, %error, "cannot tunnel");
            if let Some(log) = &explicit.http.access_log {
                let mut record = Record::new("TCP", NAME.into(), Some(accepted.peer));
                record.host = Some(authority.as_str().into());
                record.reason = Some("unknown_host");
                log.send(record);
            }
            connect::Refusal::UNKNOWN_HOST.send(&mut tcp).await;
        }
    }
}

/// What a client begins with inside a tunnel; one that waits for the server begins with nothing.
async fn first_word(tcp: &TcpStream, seen: &mut BytesMut) -> First {
    if !seen.is_empty()
        && let Some(first) = sniff::first(seen)
    {
        return first;
    }
    let reading = sniff::read_until(tcp, seen, MAX_HELLO_BYTES, sniff::first);
    let read = timeout(FIRST_WORD, reading).await;
    read.ok().and_then(Result::ok).flatten().unwrap_or(First::Opaque)
}

/// Decides on the bytes so far; `None` while they could be one or the other.
fn asked(bytes: &[u8]) -> Option<Asked> {
    const CONNECT: &[u8] = b"CONNECT ";
    const LONGEST_METHOD: usize = 32;
    if bytes.starts_with(CONNECT) {
        return Some(Asked::Connect);
    }
    match sniff::is_http2(bytes) {
        Some(false) => {}
        http2 => return http2.map(|_| Asked::Http(Wire::Http2)),
    }
    // An empty line before a request is tolerated (RFC 9112 §2.2).
    let line = bytes.iter().position(|b| !b"\r\n".contains(b)).unwrap_or(bytes.len());
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let method = bytes[line..].iter().take_while(|b| is_token(b)).count();
    match bytes.get(line + method) {
        None if method <= LONGEST_METHOD && line <= LONGEST_METHOD => None,
        Some(b' ') if (1..=LONGEST_METHOD).contains(&method) => Some(Asked::Http(Wire::Http1)),
        _ => Some(Asked::Nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_decide_as_soon_as_they_can() {
        let http1 = Some(Asked::Http(Wire::Http1));
        for (bytes, expected) in [
            (&b""[..], None),
            (b"C", None),
            (b"CONNECT", None),
            (b"CONNECT a:1", Some(Asked::Connect)),
            (b"CONNECTION ", http1),
            (b"GET", None),
            (b"GET ", http1),
            (b"\r\nGET ", http1),
            (b"P", None),
            (b"PUT http", http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Asked::Http(Wire::Http2))),
            (b"\x16\x03\x01", Some(Asked::Nothing)),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Some(Asked::Nothing)),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Some(Asked::Nothing)),
            (&[b'a'; 33], Some(Asked::Nothing)),
        ] {
            assert_eq!(asked(bytes), expected, "{bytes:?}");
        }
    }
}
