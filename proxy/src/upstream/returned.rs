//! Connections of our own that the kernel redirects back to us.
//!
//! Rules that redirect to a proxy leave out what the proxy itself sends: by its user or by its mark. Where they do not
//! know it, each of its connections would make the next one, without end. So it is remembered where connections were
//! begun from and to, and one that was accepted from and to the same is put to the test: the kernel may have changed
//! the port of another program's connection into that of one of ours, but then a further connection of ours to the
//! same address does not come back.
//!
//! What is remembered is of this process. While another one shares its listeners (an upgrade) a connection may go to
//! and fro between them until it meets the one that began it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        LazyLock, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ahash::RandomState;
use rustix::io::Errno;
use socket2::Socket;
use tokio::{net::TcpStream, sync::oneshot, time::timeout};

use super::{connect, now_ms};
use crate::lock::lock;

/// Connections that are remembered; one that is forgotten too soon is taken for another's and makes one more.
const PLACES: usize = 4096;
/// Locks for those that are being begun, told apart by where they go.
const WAYS: usize = 256;
/// Time for a connection that tests to come back. It takes no network, only a worker that is not too busy.
const TEST_TIME: Duration = Duration::from_millis(250);
/// Nothing is sent for so long to an address from which connections came back: rules may have been mended by then.
const LOOPED_FOR_MS: u64 = 1000;
/// Addresses of which that is remembered.
const MOST_LOOPED: usize = 256;

/// The low bits of a place, which say when, and for how much of that it is remembered: what comes back does so at once, and
/// soon another program may have the port.
const STAMP: u64 = 0xffff;
const REMEMBERED: u64 = 8;

/// What this process has begun.
struct Connects {
    hasher: RandomState,
    /// By the hash of where from and where to: that hash, and in its low bits when that was.
    begun: [AtomicU64; PLACES],
    /// By the hash of where to: shared by those that have no port yet.
    beginning: [RwLock<()>; WAYS],
    tests: Mutex<Vec<Test>>,
    /// Until when nothing is sent there, in [`now_ms`].
    looped: Mutex<Vec<(SocketAddr, u64)>>,
    /// The latest of them.
    looped_until_ms: AtomicU64,
}

/// A connection that was begun to see whether it comes back.
struct Test {
    port: u16,
    to: SocketAddr,
    back: oneshot::Sender<()>,
}

static CONNECTS: LazyLock<Connects> = LazyLock::new(Connects::new);

/// Connects a non-blocking socket, and remembers that this is our own.
pub(super) async fn connect(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    CONNECTS.begin(&socket, to)?;
    let tcp = TcpStream::from_std(socket.into())?;
    tcp.writable().await?;
    match tcp.take_error()? {
        Some(error) => Err(error),
        None => Ok(tcp),
    }
}

/// Whether a connection that was redirected here, made from `from` to `to`, is our own.
pub(crate) async fn came_back(from: SocketAddr, to: SocketAddr) -> bool {
    CONNECTS.came_back(from, to).await
}

/// Whether connections of ours to this address came back a moment ago.
pub(crate) fn is_looped(to: SocketAddr) -> bool {
    CONNECTS.is_looped(to)
}

impl Connects {
    fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            begun: [const { AtomicU64::new(0) }; PLACES],
            beginning: [const { RwLock::new(()) }; WAYS],
            tests: Mutex::default(),
            looped: Mutex::default(),
            looped_until_ms: AtomicU64::new(0),
        }
    }

    fn begin(&self, socket: &Socket, to: SocketAddr) -> io::Result<()> {
        let _beginning = self.beginning(to).read().unwrap_or_else(PoisonError::into_inner);
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            begun => begun?,
        }
        if let Some(local) = socket.local_addr()?.as_socket() {
            let (place, hash) = self.place(local, to);
            place.store(hash | stamp(), Relaxed);
        }
        Ok(())
    }

    async fn came_back(&self, from: SocketAddr, to: SocketAddr) -> bool {
        if !self.may_be_own(from, to) {
            return false;
        }
        if self.ends_test(from.port(), to) {
            return true;
        }
        let back = self.is_looped(to) || Box::pin(self.test(to)).await;
        if back {
            self.looped(to);
        }
        back
    }

    fn may_be_own(&self, from: SocketAddr, to: SocketAddr) -> bool {
        // A connection can be here before its `connect` has returned there, which takes some microseconds.
        drop(self.beginning(to).write().unwrap_or_else(PoisonError::into_inner));
        let (place, hash) = self.place(from, to);
        let begun = place.load(Relaxed);
        let age = stamp().wrapping_sub(begun) & STAMP;
        begun & !STAMP == hash && age <= REMEMBERED
    }

    /// Whether another connection to the same address comes back.
    async fn test(&self, to: SocketAddr) -> bool {
        let Ok((back, _socket, port)) = self.begin_test(to) else { return false };
        let came_back = matches!(timeout(TEST_TIME, back).await, Ok(Ok(())));
        lock(&self.tests).retain(|test| (test.port, test.to) != (port, to));
        came_back
    }

    fn begin_test(&self, to: SocketAddr) -> io::Result<(oneshot::Receiver<()>, Socket, u16)> {
        let socket = connect::socket(to)?;
        let any = match to {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        // It is known by its port when it comes back, however early that is.
        socket.bind(&any.into())?;
        let port = socket.local_addr()?.as_socket().map_or(0, |local| local.port());
        let (tell, back) = oneshot::channel();
        lock(&self.tests).push(Test { port, to, back: tell });
        if let Err(error) = self.begin(&socket, to) {
            lock(&self.tests).retain(|test| (test.port, test.to) != (port, to));
            return Err(error);
        }
        Ok((back, socket, port))
    }

    /// Tells who tests that the connection from this port is here; false if nobody does.
    fn ends_test(&self, port: u16, to: SocketAddr) -> bool {
        let mut tests = lock(&self.tests);
        let Some(at) = tests.iter().position(|test| (test.port, test.to) == (port, to)) else {
            return false;
        };
        // Who does not wait any more has taken the connection before for another's.
        let _ = tests.swap_remove(at).back.send(());
        true
    }

    fn looped(&self, to: SocketAddr) {
        let (now, until) = (now_ms(), now_ms() + LOOPED_FOR_MS);
        let mut looped = lock(&self.looped);
        looped.retain(|(address, until)| *until > now && *address != to);
        if looped.len() < MOST_LOOPED {
            looped.push((to, until));
        }
        self.looped_until_ms.store(until, Relaxed);
    }

    fn is_looped(&self, to: SocketAddr) -> bool {
        let until = self.looped_until_ms.load(Relaxed);
        if until == 0 {
            return false;
        }
        let now = now_ms();
        now < until
            && lock(&self.looped).iter().any(|(address, until)| *address == to && now < *until)
    }

    fn place(&self, from: SocketAddr, to: SocketAddr) -> (&AtomicU64, u64) {
        // An empty place is 0.
        let hash = (self.hasher.hash_one((end(from), end(to))) | (STAMP + 1)) & !STAMP;
        // Of the upper bits, as the lowest say nothing.
        (&self.begun[(hash >> 32) as usize % PLACES], hash)
    }

    fn beginning(&self, to: SocketAddr) -> &RwLock<()> {
        &self.beginning[self.hasher.hash_one(end(to)) as usize % WAYS]
    }
}

/// About the seconds that have passed, modulo the bits there are.
fn stamp() -> u64 {
    (now_ms() >> 10) & STAMP
}

/// Without what of an IPv6 address only one end knows.
fn end(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip(), address.port())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A listener, to which a connection is to the eye what the kernel would bring back.
    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn begin(connects: &Connects, to: SocketAddr) -> Socket {
        let socket = connect::socket(to).unwrap();
        connects.begin(&socket, to).unwrap();
        socket
    }

    #[tokio::test]
    async fn our_own_is_known_by_another_that_comes_back_too() {
        let (listener, address) = listen().await;
        let connects = Connects::new();
        let _own = begin(&connects, address);
        let (_first, peer) = listener.accept().await.unwrap();
        let tested = async {
            let (_test, peer) = listener.accept().await.unwrap();
            assert!(connects.came_back(peer, address).await);
        };
        assert!(!connects.is_looped(address));
        let (back, ()) = tokio::join!(connects.came_back(peer, address), tested);
        assert!(back && connects.is_looped(address));
        assert!(!connects.is_looped(([127, 0, 0, 1], 1).into()));
        assert!(lock(&connects.tests).is_empty());
        // The next one needs no test.
        let _own = begin(&connects, address);
        let (_accepted, peer) = listener.accept().await.unwrap();
        assert!(connects.came_back(peer, address).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_begun_is_forgotten_before_another_has_its_port() {
        let (_listener, address) = listen().await;
        let connects = Connects::new();
        let own = begin(&connects, address);
        let from = own.local_addr().unwrap().as_socket().unwrap();
        for (passes, expected) in [(0, true), (6, true), (6, false), (65_536, false)] {
            tokio::time::advance(Duration::from_millis(passes * 1024)).await;
            assert_eq!(connects.may_be_own(from, address), expected, "{passes}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_the_ends_of_one_of_ours_by_chance_is_not_ours() {
        let (listener, address) = listen().await;
        let connects = Connects::new();
        let own = begin(&connects, address);
        // As the kernel makes it look where it changed a port. Ours went to the server itself.
        let looks_like = own.local_addr().unwrap().as_socket().unwrap();
        assert!(!connects.came_back(looks_like, address).await);
        assert!(!connects.is_looped(address));
        assert!(lock(&connects.tests).is_empty());
        drop(listener);
    }

    #[tokio::test]
    async fn a_connection_of_another_is_not_put_to_the_test() {
        let (listener, address) = listen().await;
        let connects = Connects::new();
        let _own = begin(&connects, address);
        listener.accept().await.unwrap();
        let _other = TcpStream::connect(address).await.unwrap();
        let (_accepted, peer) = listener.accept().await.unwrap();
        assert!(!connects.came_back(peer, address).await);
        let ours_elsewhere = SocketAddr::from(([10, 0, 0, 1], 80));
        assert!(!connects.came_back(peer, ours_elsewhere).await);
    }

    #[test]
    fn addresses_that_loop_are_forgotten_and_bounded() {
        let connects = Connects::new();
        for n in 0..2000_u16 {
            connects.looped(([10, 0, 0, 1], n).into());
        }
        assert_eq!(lock(&connects.looped).len(), MOST_LOOPED);
        assert!(connects.is_looped(([10, 0, 0, 1], 0).into()));
        lock(&connects.looped).iter_mut().for_each(|(_, until)| *until = 0);
        assert!(!connects.is_looped(([10, 0, 0, 1], 0).into()));
    }
}
