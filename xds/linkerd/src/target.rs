//! What a Linkerd proxy asks for: a name and a port, or a socket address.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use linkerd2_proxy_api::net::TcpAddress;

/// A destination, as a proxy found it in a request or in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The authority of a request.
    Name {
        /// Lower case, without a dot at its end.
        host: String,
        /// Not 0.
        port: u16,
    },
    /// Where a connection was going; its port is not 0.
    Address(SocketAddr),
}

/// Why something is no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl Target {
    /// Never 0.
    pub const fn port(&self) -> u16 {
        match self {
            Self::Name { port, .. } => *port,
            Self::Address(address) => address.port(),
        }
    }

    fn address(ip: IpAddr, port: u16) -> Result<Self, Malformed> {
        if port == 0 {
            return Err(Malformed("port 0 is none"));
        }
        // A socket for both families tells IPv4 addresses this way.
        Ok(Self::Address(SocketAddr::new(ip.to_canonical(), port)))
    }
}

impl FromStr for Target {
    type Err = Malformed;

    /// Reads `host`, `host:port`, `address:port` or `[address]:port`; without a port it is HTTP's.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() > LONGEST {
            return Err(Malformed("longer than a host name and a port can be"));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Self::address(address.ip(), address.port());
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Self::address(ip, HTTP);
        }
        let (host, port) = match text.rsplit_once(':') {
            None => (text, HTTP),
            Some((host, port)) => (host, read_port(port).ok_or(Malformed("not a port"))?),
        };
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if host.len() > 253 || !host.split('.').all(is_label) {
            return Err(Malformed("not a host name"));
        }
        Ok(Self::Name { host, port })
    }
}

impl TryFrom<TcpAddress> for Target {
    type Error = Malformed;

    fn try_from(address: TcpAddress) -> Result<Self, Malformed> {
        let port = u16::try_from(address.port).map_err(|_| Malformed("not a port"))?;
        let ip = address.ip.ok_or(Malformed("an address without an IP address"))?;
        let ip = IpAddr::try_from(ip).map_err(|_| Malformed("not an IP address"))?;
        Self::address(ip, port)
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}

fn read_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok())?.filter(|port| *port != 0)
}

fn is_label(label: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=63).contains(&label.len()) && label.bytes().all(fits)
}

/// Where an authority names no port.
const HTTP: u16 = 80;
/// A host name, its last dot, and a port.
const LONGEST: usize = 253 + 1 + 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn name(host: &str, port: u16) -> Target {
        Target::Name { host: host.to_owned(), port }
    }

    fn address(text: &str) -> Target {
        Target::Address(text.parse().unwrap())
    }

    #[test]
    fn authorities_and_addresses_are_read() {
        for (text, target) in [
            (
                "orders.default.svc.cluster.local:8080",
                name("orders.default.svc.cluster.local", 8080),
            ),
            (
                "Orders.Default.svc.cluster.local.:8080",
                name("orders.default.svc.cluster.local", 8080),
            ),
            ("orders", name("orders", 80)),
            ("my_orders:1", name("my_orders", 1)),
            ("10.0.0.1:8080", address("10.0.0.1:8080")),
            ("10.0.0.1", address("10.0.0.1:80")),
            ("[2001:db8::1]:8080", address("[2001:db8::1]:8080")),
            ("[2001:db8::1]", address("[2001:db8::1]:80")),
            ("[::ffff:10.0.0.1]:8080", address("10.0.0.1:8080")),
        ] {
            assert_eq!(text.parse(), Ok(target), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let long = format!("{}:80", ["a"; 200].join("."));
        for text in [
            "",
            ":80",
            "orders:",
            "orders:0",
            "orders:+80",
            "orders:65536",
            "orders:http",
            "orders:80:80",
            "orders..default:80",
            ".:80",
            "orders/etl:80",
            "user@orders:80",
            "ord ers:80",
            "ördérs:80",
            "10.0.0.1:0",
            "[2001:db8::1:80",
            &"a".repeat(64),
            &long,
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_on_the_wire_are_read() {
        let sent = TcpAddress::from(SocketAddr::from(([10, 0, 0, 1], 80)));
        assert_eq!(Target::try_from(sent), Ok(address("10.0.0.1:80")));
        for broken in [
            TcpAddress { ip: None, port: 80 },
            TcpAddress { port: 0, ..sent },
            // Not port 80.
            TcpAddress { port: 65_536 + 80, ..sent },
        ] {
            assert!(Target::try_from(broken).is_err(), "{broken:?}");
        }
    }
}
