//! Network namespaces that go away with the test, and a client and servers in them.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    process::Command,
    sync::atomic::{AtomicU16, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use rustix::{
    process::{Gid, Uid},
    thread::{
        LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};
use socket2::{Domain, SockRef, Socket, Type};

/// Long enough for a busy machine; only what is wrong waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A network namespace.
pub(crate) struct Space {
    name: String,
}

impl Space {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("towpath-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        shell(&format!("ip netns add {name}"));
        let space = Self { name };
        space.shell("ip link set lo up");
        space
    }

    /// Does something on a thread that is in it.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = File::open(path).unwrap();
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a line of shell in it.
    pub(crate) fn shell(&self, line: &str) -> String {
        self.within(|| shell(line))
    }

    /// A server at this port, of IPv4 and IPv6, that tells each client `name`, where the client
    /// says it is, and where the client thought it went.
    pub(crate) fn serve(&self, name: &'static str, port: u16) {
        let listener = self.within(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
        answer(listener, name);
    }

    /// The same for datagrams, at one address: answers come from there.
    pub(crate) fn serve_datagrams(&self, name: &'static str, at: &str) {
        let socket = self.within(|| UdpSocket::bind(at).unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    }

    /// What a server says to whom dials from here.
    pub(crate) fn dial(&self, who: Who, to: &str) -> Result<String, io::ErrorKind> {
        let mut stream = self.connect(who, to)?;
        let mut said = String::new();
        stream.read_to_string(&mut said).map_err(|error| error.kind())?;
        Ok(said)
    }

    /// The same from one of several addresses here.
    pub(crate) fn dial_from(&self, from: &str, to: &str) -> Result<String, io::ErrorKind> {
        let (from, to): (IpAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        self.within(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
            socket.connect_timeout(&to.into(), PATIENCE).map_err(|error| error.kind())?;
            let mut said = String::new();
            TcpStream::from(socket).read_to_string(&mut said).map_err(|error| error.kind())?;
            Ok(said)
        })
    }

    /// A connection from here.
    pub(crate) fn connect(&self, who: Who, to: &str) -> Result<TcpStream, io::ErrorKind> {
        let to: SocketAddr = to.parse().unwrap();
        self.within(|| {
            let socket = who.socket(to, Type::STREAM);
            socket.connect_timeout(&to.into(), PATIENCE).map_err(|error| error.kind())?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            Ok(stream)
        })
    }

    /// What a server of datagrams says to whom asks from here, each time from another port: the
    /// kernel remembers for a while where those of one port went.
    pub(crate) fn ask(&self, who: Who, to: &str) -> Result<String, io::ErrorKind> {
        static NEXT: AtomicU16 = AtomicU16::new(20_000);
        let to: SocketAddr = to.parse().unwrap();
        let any: IpAddr =
            if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let from = SocketAddr::new(any, NEXT.fetch_add(1, Ordering::Relaxed));
        self.within(|| {
            let socket = who.socket(to, Type::DGRAM);
            socket.bind(&from.into()).unwrap();
            let socket = UdpSocket::from(socket);
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(to).map_err(|error| error.kind())?;
            socket.send(b"?").map_err(|error| error.kind())?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).map_err(|error| error.kind())?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Who dials.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Who {
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) mark: u32,
}

impl Who {
    /// Makes the thread its own: it ends soon.
    fn socket(self, to: SocketAddr, kind: Type) -> Socket {
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(group, group, group).unwrap();
        let marked = |mark: u32| {
            let socket = Socket::new(Domain::for_address(to), kind, None).unwrap();
            if mark != 0 {
                socket.set_mark(mark).unwrap();
            }
            socket
        };
        if self.mark != 0 {
            // Only root may mark, and a socket is of whom made it.
            assert_eq!(self.user, 0);
            return marked(self.mark);
        }
        set_thread_res_uid(user, user, user).unwrap();
        marked(0)
    }
}

/// Answers each connection as [`Space::serve`] says.
pub(crate) fn answer(listener: TcpListener, name: &'static str) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = write!(stream, "{name} {} {}", peer(&stream), original(&stream));
        }
    });
}

/// Where a client is.
pub(crate) fn peer(stream: &TcpStream) -> IpAddr {
    stream.peer_addr().unwrap().ip().to_canonical()
}

/// Where a client thought it went: before the redirect, or where it is.
pub(crate) fn original(stream: &TcpStream) -> SocketAddr {
    let here = plain(stream.local_addr().unwrap());
    let socket = SockRef::from(stream);
    let before = if here.is_ipv6() { socket.original_dst_v6() } else { socket.original_dst_v4() };
    before.ok().and_then(|address| address.as_socket()).map_or(here, plain)
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Runs a line of shell.
pub(crate) fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).env("LC_ALL", "C").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}(these tests need root, nft, iptables and ip)");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The application's namespace and one of another machine, and a cable between them.
///
/// The other machine has 10.9.0.2 and fd09::2, and behind it 10.77.0.2, 192.0.2.9 and fd77::2.
/// The application's is 10.9.0.1 and fd09::1.
pub(crate) fn pair() -> (Space, Space) {
    let (app, peer) = (Space::new(), Space::new());
    shell(&format!("ip link add a0 netns {} type veth peer name b0 netns {}", app.name, peer.name));
    app.shell(
        "ip addr add 10.9.0.1/24 dev a0 && ip addr add fd09::1/64 dev a0 nodad && ip link set a0 up",
    );
    peer.shell(
        "ip addr add 10.9.0.2/24 dev b0 && ip addr add fd09::2/64 dev b0 nodad && ip link set b0 up
         ip addr add 10.77.0.2/32 dev lo && ip addr add 192.0.2.9/32 dev lo
         ip addr add fd77::2/128 dev lo nodad",
    );
    app.shell("ip route add default via 10.9.0.2 && ip -6 route add default via fd09::2");
    (app, peer)
}
