//! Connections that were made to another address and redirected here: where they went, what they speak,
//! and who is to have them.
//!
//! Nobody is held up by being looked at. While the client says nothing, the connection goes on to where it
//! would go unread, and whoever speaks first decides: a client that begins with HTTP or TLS is routed by
//! that, and a server that speaks first is heard at once.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::{net::TcpStream, time::timeout};
use towpath_policies::model::Redirected;

use super::{Caller, HANDSHAKE_TIMEOUT, Held, Listening, enter, tunnels};
use crate::{
    chains::{Chain, ChainKind, Chains},
    sniff::{self, First, MAX_HELLO_BYTES},
    tcp::{self, Opened, Refused, TcpChain},
    upstream::{destination::Destination, now_ms, returned},
};

/// Head start of the client: who speaks first mostly does so at once, and then a server need not see a
/// connection that is closed again.
const HEAD_START: Duration = Duration::from_millis(5);
/// Time from a client's first byte for those that tell what it speaks. Long enough for a head in two
/// segments of which one is lost in a near network; what is slower is passed on unread.
const UNDECIDED: Duration = Duration::from_millis(250);
/// Where the server cannot be reached: time for the client to ask for one that can be.
const LAST_CHANCE: Duration = Duration::from_millis(100);
/// So often at most a listener tells of connections that were not redirected.
const TELL_ASTRAY_MS: u64 = 10_000;
/// And of such as are our own.
const TELL_LOOPED_MS: u64 = 60_000;

/// Serves one connection of a listener to which connections are redirected.
pub(super) async fn serve(tcp: TcpStream, chains: Arc<Chains>, peer: SocketAddr, mut held: Held) {
    let Some(address) = destination(&tcp, &chains, &held.listening) else {
        return astray(&held.listening, peer);
    };
    if returned::came_back(peer, address).await {
        return looped(&tcp, address, &held.listening);
    }
    let transparent = chains.redirected.as_ref().is_some_and(|redirected| redirected.transparent);
    // Of a link-local address only its link knows whose it is: answers would not come back.
    let local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let shown = Some(peer.ip()).filter(|ip| transparent && !local(*ip));
    if address.port() == Redirected::TUNNELS
        && chains.redirected.as_ref().is_some_and(|r| r.tunnels)
    {
        return tunnels::serve(tcp, peer, address.ip(), shown, held).await;
    }
    let destination = Destination::new(address, shown);
    held.destination = Some(destination.clone());
    let unread = chains.choose(address, &First::Opaque);
    if chains.is_decided(address) {
        let Some(chain) = unread else { return };
        return enter(tcp, BytesMut::new(), chain, peer, None, held).await;
    }
    let caller = Caller {
        address: peer,
        reached: address,
        server_name: None,
        protocol: "TCP",
        worker: held.worker,
        destination: Some(destination),
    };
    let meanwhile = unread.and_then(|chain| match &chain.kind {
        ChainKind::Tcp(forward) if chain.tls.is_none() => Some(forward),
        _ => None,
    });
    let mut seen = BytesMut::new();
    // A client that is gone needs nobody any more.
    let Ok((first, opened)) = who_speaks(&tcp, &mut seen, meanwhile, caller).await else { return };
    let Some(chain) = settle(&chains, address, &first) else { return };
    let unread = unread.is_some_and(|unread| unread.passes_like(chain));
    match opened {
        Some(Ok(opened)) if unread => {
            opened.run::<super::NoTls>(tcp::Client::Clear(tcp, seen.freeze())).await;
        }
        Some(Err(refused)) if unread => {
            refused.tell::<super::NoTls>(tcp::Client::Clear(tcp, seen.freeze())).await;
        }
        not_needed => {
            drop(not_needed);
            let name = match first {
                First::Tls(name) => name,
                _ => None,
            };
            enter(tcp, seen, chain, peer, name, held).await;
        }
    }
}

/// The address that a connection was made to; `None` if it was made to us.
fn destination(tcp: &TcpStream, chains: &Chains, listening: &Listening) -> Option<SocketAddr> {
    let local = tcp.local_addr().ok()?;
    if chains.redirected.as_ref()?.transparent {
        return (local.port() != listening.address.port()).then_some(local);
    }
    let socket = SockRef::from(tcp);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    // The kernel knows none for a connection that it did not touch, or says that it is our own.
    original.ok()?.as_socket().filter(|original| *original != local)
}

/// Ends a connection that was made to the listener itself: sent on it would come back for ever.
fn astray(listening: &Listening, client: SocketAddr) {
    listening.metrics.not_redirected.inc();
    if is_due(&listening.told_astray_ms, TELL_ASTRAY_MS) {
        tracing::warn!(
            listener = %listening.name,
            %client,
            "closed a connection that was made to the proxy itself and not redirected to it; connect to \
             the service, and see that rules redirect what the proxy does not send itself"
        );
    }
}

/// Ends a connection of our own that was redirected back: sent on it would come back for ever.
fn looped(tcp: &TcpStream, destination: SocketAddr, listening: &Listening) {
    tcp::reset(tcp);
    listening.metrics.looped.inc();
    if is_due(&listening.told_looped_ms, TELL_LOOPED_MS) {
        let user = rustix::process::geteuid().as_raw();
        tracing::error!(
            listener = %listening.name,
            %destination,
            user,
            "ended a connection that this proxy made and that was redirected back to it: the kernel's rules do not \
             leave alone what it sends. Run it as the user that they know as the proxy's (1802, if none was told), \
             or install them with --proxy-user {user} if no other program runs as that user, or give the proxy the \
             capability NET_ADMIN, with which it marks what it sends"
        );
    }
}

/// Whether it is time to tell again of what may happen all the time.
fn is_due(told_ms: &AtomicU64, every_ms: u64) -> bool {
    let (now, last) = (now_ms(), told_ms.load(Relaxed));
    let due = last == 0 || now.saturating_sub(last) >= every_ms;
    due && told_ms.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
}

/// Finds out how a connection begins, and who has been connected to meanwhile.
pub(crate) async fn who_speaks(
    tcp: &TcpStream,
    seen: &mut BytesMut,
    meanwhile: Option<&Arc<TcpChain>>,
    caller: Caller,
) -> io::Result<(First, Option<Result<Opened, Refused>>)> {
    let mut looking = pin!(look(tcp, seen));
    if let Ok(first) = timeout(HEAD_START, &mut looking).await {
        return Ok((first?, None));
    }
    let Some(chain) = meanwhile else {
        let first = timeout(HANDSHAKE_TIMEOUT, looking).await.unwrap_or(Ok(First::Opaque))?;
        return Ok((first, None));
    };
    let opened = tokio::select! {
        first = &mut looking => return Ok((first?, None)),
        opened = tcp::open(chain, caller) => opened,
    };
    match opened {
        Ok(opened) => {
            let first = tokio::select! {
                first = looking => first?,
                () = opened.server_speaks() => First::Opaque,
                () = opened.idle() => First::Opaque,
            };
            Ok((first, Some(Ok(opened))))
        }
        Err(refused) => {
            let first = timeout(LAST_CHANCE, looking).await.unwrap_or(Ok(First::Opaque))?;
            Ok((first, Some(Err(refused))))
        }
    }
}

/// Reads until it is known how the client begins. That it says nothing hurts nobody, but when it has begun
/// somebody waits for what it said.
async fn look(tcp: &TcpStream, seen: &mut BytesMut) -> io::Result<First> {
    let begun = |bytes: &[u8]| Some(sniff::first(bytes));
    match sniff::read_until(tcp, seen, MAX_HELLO_BYTES, begun).await? {
        None => return Ok(First::Opaque),
        Some(Some(first)) => return Ok(first),
        Some(None) => {}
    }
    match timeout(UNDECIDED, sniff::read_until(tcp, seen, MAX_HELLO_BYTES, sniff::first)).await {
        Ok(first) => Ok(first?.unwrap_or(First::Opaque)),
        Err(_) => Ok(First::Opaque),
    }
}

/// The chain for a connection that begins like this. Requests of a host of which no route knows anything pass
/// through unread.
fn settle<'a>(chains: &'a Chains, address: SocketAddr, first: &First) -> Option<&'a Arc<Chain>> {
    let chain = chains.choose(address, first)?;
    if let (ChainKind::Http(http), First::Http1 { host }) = (&chain.kind, first)
        && http.router.load().passes_through(host.as_deref().unwrap_or_default())
        && let Some(unread) = chains.choose(address, &First::Opaque)
    {
        return Some(unread);
    }
    Some(chain)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener, time::Instant};
    use towpath_policies::model::{Endpoint, EndpointSet, Protocol, Service};

    use super::*;
    use crate::{tcp::TcpMetrics, transfers::Transfers, upstream};

    const IDLE: Duration = Duration::from_secs(60);

    /// Leads to a server that accepts, and says nothing.
    async fn silent() -> (TcpListener, Arc<TcpChain>) {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let set = EndpointSet::new("s".into(), vec![Endpoint::new(server.local_addr().unwrap())]);
        let service = Arc::new(Service::new("s", Protocol::Tcp));
        let state = upstream::reconcile(None, service, &set, 1).unwrap();
        let chain = TcpChain {
            listener: "in".into(),
            backends: vec![(state.live.clone(), 1)],
            idle_timeout: Some(IDLE),
            access_log: None,
            transfers: Arc::new(Transfers::new(1)),
            metrics: TcpMetrics::new("silent"),
        };
        (server, Arc::new(chain))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nobody_speaks_has_one_idle_time() {
        // When the client says something that tells nothing, and when it is over.
        for (spoken, expected) in [(None, IDLE), (Some(IDLE / 2), IDLE * 3 / 2)] {
            let (_server, chain) = silent().await;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (tcp, address) = listener.accept().await.unwrap();
            let caller = Caller {
                address,
                reached: address,
                server_name: None,
                protocol: "TCP",
                worker: 0,
                destination: None,
            };
            let begun = Instant::now();
            let relayed = async {
                let mut seen = BytesMut::new();
                let speaking = who_speaks(&tcp, &mut seen, Some(&chain), caller).await;
                let Ok((First::Opaque, Some(Ok(opened)))) = speaking else { panic!("refused") };
                opened.run::<super::super::NoTls>(tcp::Client::Clear(tcp, seen.freeze())).await;
            };
            let speaks = async {
                if let Some(spoken) = spoken {
                    tokio::time::sleep(spoken).await;
                    client.write_all(b"\0").await.unwrap();
                }
            };
            tokio::join!(relayed, speaks);
            let took = begun.elapsed();
            let about = expected..expected + Duration::from_secs(1);
            assert!(about.contains(&took), "{spoken:?}: {took:?}");
        }
    }
}
