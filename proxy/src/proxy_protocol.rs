//! HAProxy's PROXY protocol (`doc/proxy-protocol.txt`), versions 1 and 2: who the client is, said in
//! front of a connection.
//!
//! Pure: bytes in, addresses out, and the other way round. Strict where two readers could disagree, since
//! what stands here is believed: one blank between the parts of a line, ports without signs or leading
//! zeros, a checksum that is right where there is one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use towpath_policies::model::ProxyVersion;

/// The two ends of a connection, as its client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) client: SocketAddr,
    /// Where the client connected to.
    pub(crate) server: SocketAddr,
}

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// More of them are needed to tell.
    Incomplete,
    /// No header begins so.
    Absent,
    /// A header of so many bytes; without ends the connection is its peer's own.
    Header(usize, Option<Ends>),
    /// A header begins so, and is none.
    Malformed(&'static str),
}

/// The most bytes that a header may have. Load balancers send some hundred.
pub(crate) const MAX_HEADER: usize = 4096;

const V1: &[u8; 6] = b"PROXY ";
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, its end included.
const MAX_LINE: usize = 107;
/// The fixed part of version 2.
const FIXED: usize = 16;

/// Reads a header at the front of `bytes`.
pub(crate) fn read(bytes: &[u8]) -> Opening {
    let begins = |signature: &[u8]| {
        let length = bytes.len().min(signature.len());
        (bytes[..length] == signature[..length]).then_some(length == signature.len())
    };
    match (begins(V1), begins(V2)) {
        (Some(true), _) => line(bytes),
        (_, Some(true)) => binary(bytes),
        (Some(false), _) | (_, Some(false)) => Opening::Incomplete,
        (None, None) => Opening::Absent,
    }
}

fn line(bytes: &[u8]) -> Opening {
    let window = &bytes[..bytes.len().min(MAX_LINE)];
    let Some(end) = memchr::memchr(b'\n', window) else {
        return match window.len() {
            MAX_LINE => Opening::Malformed("the line is longer than 107 bytes"),
            _ => Opening::Incomplete,
        };
    };
    let text = window[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok());
    let Some(text) = text else {
        return Opening::Malformed("the line does not end in CR LF, or is no text");
    };
    let mut words = text.split(' ').skip(1);
    let ends = match words.next() {
        // Whatever follows is to be ignored.
        Some("UNKNOWN") => return Opening::Header(end + 1, None),
        Some("TCP4") => ends::<Ipv4Addr>(words),
        Some("TCP6") => ends::<Ipv6Addr>(words),
        _ => return Opening::Malformed("the protocol is none of TCP4, TCP6, UNKNOWN"),
    };
    match ends {
        Some(ends) => Opening::Header(end + 1, Some(ends)),
        None => Opening::Malformed("these are not two addresses and two ports"),
    }
}

fn ends<'a, A: std::str::FromStr + Into<IpAddr>>(
    words: impl Iterator<Item = &'a str>,
) -> Option<Ends> {
    let words: Vec<_> = words.take(5).collect();
    let [from, to, from_port, to_port] = words[..] else { return None };
    let end = |ip: &str, port: &str| Some(socket(ip.parse::<A>().ok()?, self::port(port)?));
    Some(Ends { client: end(from, from_port)?, server: end(to, to_port)? })
}

fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    (digits && (text == "0" || !text.starts_with('0'))).then(|| text.parse().ok())?
}

/// IPv4 within IPv6 is IPv4.
fn socket(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into().to_canonical(), port)
}

fn binary(bytes: &[u8]) -> Opening {
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED) else { return Opening::Incomplete };
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if FIXED + length > MAX_HEADER {
        return Opening::Malformed("the header is longer than 4096 bytes");
    }
    let local = match fixed[12] {
        0x20 => true,
        0x21 => false,
        _ => return Opening::Malformed("neither LOCAL nor PROXY of version 2"),
    };
    let Some(body) = rest.get(..length) else { return Opening::Incomplete };
    if local {
        // Whatever else it says is to be skipped (§2.2).
        return Opening::Header(FIXED + length, None);
    }
    let addresses = match fixed[13] {
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        0x00 => 0,
        _ => return Opening::Malformed("the family or protocol of the addresses is not known"),
    };
    let Some((addresses, fields)) = body.split_at_checked(addresses) else {
        return Opening::Malformed("the header is too short for its addresses");
    };
    if let Err(why) = check(&bytes[..FIXED + length], fields.len()) {
        return Opening::Malformed(why);
    }
    let ends = match fixed[13] {
        0x11 => octets::<4>(addresses)
            .map(|(a, b, ports)| ends_of(Ipv4Addr::from(a), Ipv4Addr::from(b), ports)),
        0x21 => octets::<16>(addresses)
            .map(|(a, b, ports)| ends_of(Ipv6Addr::from(a), Ipv6Addr::from(b), ports)),
        // Datagrams and local sockets have no address that a TCP client could have.
        _ => None,
    };
    Opening::Header(FIXED + length, ends)
}

fn octets<const N: usize>(bytes: &[u8]) -> Option<([u8; N], [u8; N], [u8; 4])> {
    let (from, rest) = bytes.split_first_chunk::<N>()?;
    let (to, ports) = rest.split_first_chunk::<N>()?;
    Some((*from, *to, *ports.first_chunk()?))
}

fn ends_of(from: impl Into<IpAddr>, to: impl Into<IpAddr>, ports: [u8; 4]) -> Ends {
    let [a, b, c, d] = ports;
    Ends {
        client: socket(from, u16::from_be_bytes([a, b])),
        server: socket(to, u16::from_be_bytes([c, d])),
    }
}

/// Holds the fields at the end of a header to their lengths, and it to its checksum if there is one.
fn check(header: &[u8], fields: usize) -> Result<(), &'static str> {
    const CRC32C: u8 = 3;
    let mut at = header.len() - fields;
    let mut checksum = None;
    while at < header.len() {
        let Some([kind, high, low]) = header[at..].first_chunk() else {
            return Err("a field is cut off");
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let value = at + 3;
        if value + length > header.len() {
            return Err("a field is longer than the header");
        }
        if *kind == CRC32C && (length != 4 || checksum.replace(value).is_some()) {
            return Err("the checksum is malformed");
        }
        at = value + length;
    }
    let Some(at) = checksum else { return Ok(()) };
    // It is taken over the header with zeros in its own place.
    let told = &header[at..at + 4];
    let zeroed = header[..at].iter().chain(&[0; 4]).chain(&header[at + 4..]);
    (crc32c(zeroed).to_be_bytes() == *told).then_some(()).ok_or("the checksum is wrong")
}

/// RFC 9260 appendix A, bit by bit: a header is short, and seldom has one.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    const REFLECTED: u32 = 0x82F6_3B78;
    !bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (REFLECTED & 0u32.wrapping_sub(crc & 1))
        })
    })
}

/// The header of a connection between these ends; without them, of one that is nobody's but ours.
pub(crate) fn header(version: ProxyVersion, ends: Option<Ends>) -> Vec<u8> {
    let ends =
        ends.map(|ends| match (ends.client.ip().to_canonical(), ends.server.ip().to_canonical()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => (from.into(), to.into(), ends),
            (from, to) => (IpAddr::V6(wide(from)), IpAddr::V6(wide(to)), ends),
        });
    match (version, ends) {
        (ProxyVersion::V1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
        (ProxyVersion::V1, Some((from, to, ends))) => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            let (client, server) = (ends.client.port(), ends.server.port());
            format!("PROXY {family} {from} {to} {client} {server}\r\n").into_bytes()
        }
        (ProxyVersion::V2, None) => [V2, &[0x20, 0, 0, 0][..]].concat(),
        (ProxyVersion::V2, Some((from, to, ends))) => {
            let ports =
                [ends.client.port().to_be_bytes(), ends.server.port().to_be_bytes()].concat();
            match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    [V2, &[0x21, 0x11, 0, 12][..], &from.octets(), &to.octets(), &ports].concat()
                }
                (from, to) => {
                    let (from, to) = (wide(from).octets(), wide(to).octets());
                    [V2, &[0x21, 0x21, 0, 36][..], &from, &to, &ports].concat()
                }
            }
        }
    }
}

fn wide(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests;
