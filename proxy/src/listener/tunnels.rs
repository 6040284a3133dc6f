//! Connections that carry others, beside an application: each stream is a client's connection to it.
//!
//! A stream names where it goes, by `CONNECT`, and gets there what a connection that was redirected here would have got:
//! nothing is reached through a tunnel that is not reached without.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::Method;
use tokio::{net::TcpStream, time::timeout};
use towpath_policies::model::Redirected;

use super::{Caller, Counted, HANDSHAKE_TIMEOUT, Held, NoTls};
use crate::{
    chains::ChainKind,
    h2::{Config, Connection, Incoming, Request, Stream},
    http::{
        connect::Refusal,
        h2_server::{self, Times},
    },
    sniff::First,
    tcp::{self, Client},
    upstream::destination::Destination,
};

/// An idle one is closed after this: who uses it keeps it, and closes it sooner.
const IDLE: Duration = Duration::from_secs(600);
/// Time for its last words.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where the streams of one connection may go.
struct Carried {
    held: Held,
    peer: SocketAddr,
    /// What applications see of the client.
    shown: Option<IpAddr>,
}

/// Serves a connection that was made to `host`.
pub(super) async fn serve(
    tcp: TcpStream,
    peer: SocketAddr,
    host: IpAddr,
    shown: Option<IpAddr>,
    held: Held,
) {
    let draining = held.listening.drain.watch();
    let carried = Carried { held, peer, shown };
    let mut connection = Connection::server(tcp, Config::TUNNEL);
    let times = Times { first: HANDSHAKE_TIMEOUT, idle: IDLE };
    h2_server::drive(&mut connection, times, &draining, |incoming, _| match incoming {
        Incoming::Request(stream, request) => match asked(&request, host) {
            Some(address) => carried.begin(stream, address),
            None => Refusal::MALFORMED.answer(&stream),
        },
        Incoming::TooLarge(stream) => Refusal::MALFORMED.answer(&stream),
        Incoming::Malformed => {}
    })
    .await;
    // A peer that reads no more must not hold the socket.
    let _ = timeout(FAREWELL, connection.finish()).await;
}

/// The address that is asked for, if it is the host's own and no tunnel's.
fn asked(request: &Request, host: IpAddr) -> Option<SocketAddr> {
    let authority = request.authority.as_ref().filter(|_| request.method == Method::CONNECT)?;
    let address: SocketAddr = authority.as_str().parse().ok()?;
    let fits = address.ip().to_canonical() == host.to_canonical()
        && !matches!(address.port(), 0 | Redirected::TUNNELS);
    fits.then_some(address)
}

impl Carried {
    /// Starts what a connection to `address` would start, if that is an application's of which policies say that it
    /// stands here, and its bytes are nobody's to read: what is kept from the sidecar is not reached through it.
    fn begin(&self, stream: Stream, address: SocketAddr) {
        let listening = &self.held.listening;
        let chains = listening.chains.load();
        let chain = chains.choose(address, &First::Opaque);
        let chain = chain.filter(|c| c.only.port.is_some() && !c.only.networks.is_empty());
        let forward = match chain.map(|chain| (&chain.tls, &chain.kind)) {
            Some((None, ChainKind::Tcp(forward))) if chains.is_decided(address) => forward.clone(),
            _ => return Refusal::of("no_service").answer(&stream),
        };
        let slot = listening.slots.clone().try_acquire_owned();
        let Some(slot) = slot.ok().filter(|_| !listening.overload.is_full()) else {
            return Refusal::of("overflow").answer(&stream);
        };
        let caller = Caller {
            address: self.peer,
            reached: address,
            server_name: None,
            protocol: "TCP",
            worker: self.held.worker,
            destination: Some(Destination::new(address, self.shown)),
        };
        let open = (Counted::new(listening.clone()), self.held.load.clone());
        // Ends with its stream, which ends with the connection at the latest.
        tokio::spawn(async move {
            tcp::relay(forward, Client::<NoTls>::Stream(stream), caller).await;
            drop((slot, open));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_goes_to_the_host_that_its_tunnel_was_made_to_and_nowhere_else() {
        let v4: IpAddr = [10, 0, 0, 7].into();
        let v6: IpAddr = "fd00::7".parse().unwrap();
        for (method, authority, host, expected) in [
            (Method::CONNECT, Some("10.0.0.7:5432"), v4, Some("10.0.0.7:5432")),
            (Method::CONNECT, Some("[fd00::7]:5432"), v6, Some("[fd00::7]:5432")),
            (Method::CONNECT, Some("[::ffff:10.0.0.7]:80"), v4, Some("[::ffff:10.0.0.7]:80")),
            (Method::CONNECT, Some("10.0.0.8:5432"), v4, None),
            (Method::CONNECT, Some("127.0.0.1:5432"), v4, None),
            (Method::CONNECT, Some("[::1]:5432"), v6, None),
            (Method::CONNECT, Some("0.0.0.0:5432"), v4, None),
            (Method::CONNECT, Some("10.0.0.7:0"), v4, None),
            (Method::CONNECT, Some("10.0.0.7:15008"), v4, None),
            (Method::CONNECT, Some("10.0.0.7"), v4, None),
            (Method::CONNECT, Some("db.test:5432"), v4, None),
            (Method::CONNECT, None, v4, None),
            (Method::GET, Some("10.0.0.7:5432"), v4, None),
        ] {
            let request = Request {
                method: method.clone(),
                authority: authority.map(|a| a.parse().unwrap()),
                path: None,
                host: None,
                headers: http::HeaderMap::new(),
                content_length: None,
                te_trailers: false,
                expects_continue: false,
            };
            let expected = expected.map(|address| address.parse().unwrap());
            assert_eq!(asked(&request, host), expected, "{method} {authority:?} at {host}");
        }
    }
}
