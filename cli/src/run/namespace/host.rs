//! What the command could reach on this machine before it had a namespace of its own.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// This machine, as far as the command is to see it inside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Host {
    /// Its own addresses, without those of loopback.
    pub(super) addresses: Vec<IpAddr>,
    /// Ports on which something listens for connections to 127.0.0.1.
    pub(super) loopback_ports: BTreeSet<u16>,
    /// Likewise to `::1`.
    pub(super) loopback_ports_v6: BTreeSet<u16>,
}

/// Most addresses taken over: a machine with containers has hundreds, and the command needs one.
const MOST_ADDRESSES: usize = 64;
/// Where a resolver is looked for when none is named.
const DEFAULT_RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DNS_PORT);
const DNS_PORT: u16 = 53;
/// Resolvers that are asked, one after the other; as many as the C library asks.
const MOST_RESOLVERS: usize = 3;

impl Host {
    /// # Errors
    /// When there is no `ip`.
    pub(super) fn look() -> anyhow::Result<Self> {
        let output = Command::new("ip")
            .args(["-j", "address", "show", "scope", "global"])
            .stdin(Stdio::null())
            .output()
            .context("cannot run `ip`: install iproute2")?;
        let mut addresses = addresses(&output.stdout)?;
        addresses.truncate(MOST_ADDRESSES);
        let mut host = Self { addresses, ..Self::default() };
        // Of a protocol that this kernel has not there is no table, and nothing listens.
        let four = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let six = fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
        host.loopback_ports.extend(listening(&four, &TO_IPV4));
        // `::` mostly takes connections of IPv4, too, and nothing here says whether it does.
        host.loopback_ports.extend(listening(&six, &TO_IPV4_BY_IPV6));
        host.loopback_ports_v6.extend(listening(&six, &TO_IPV6));
        Ok(host)
    }

    /// Whether IPv6 leads anywhere.
    pub(super) fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }
}

/// The resolvers that `resolv.conf` names.
pub(super) fn resolvers() -> Vec<SocketAddr> {
    named_resolvers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn named_resolvers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next())??;
        // One that is reached by a named interface only is none of ours.
        address.parse::<IpAddr>().ok()
    });
    let mut resolvers: Vec<_> =
        named.map(|ip| SocketAddr::new(ip, DNS_PORT)).take(MOST_RESOLVERS).collect();
    if resolvers.is_empty() {
        resolvers.push(DEFAULT_RESOLVER);
    }
    resolvers
}

/// The addresses in what `ip -j address` tells.
fn addresses(json: &[u8]) -> anyhow::Result<Vec<IpAddr>> {
    #[derive(Deserialize)]
    struct Interface {
        #[serde(default)]
        addr_info: Vec<Address>,
    }
    #[derive(Deserialize)]
    struct Address {
        local: Option<IpAddr>,
    }
    let interfaces: Vec<Interface> =
        serde_json::from_slice(json).context("`ip -j address` tells no JSON: a newer iproute2?")?;
    let all = interfaces.into_iter().flat_map(|interface| interface.addr_info);
    let global = all.filter_map(|a| a.local).filter(|address| !address.is_loopback());
    Ok(BTreeSet::from_iter(global).into_iter().collect())
}

/// Local addresses, as the kernel's tables write them, that take what is made to 127.0.0.1.
const TO_IPV4: [&str; 2] = ["00000000", "0100007F"];
const TO_IPV4_BY_IPV6: [&str; 3] = [
    "00000000000000000000000000000000",
    "0000000000000000FFFF000000000000",
    "0000000000000000FFFF00000100007F",
];
/// And what is made to `::1`.
const TO_IPV6: [&str; 2] = ["00000000000000000000000000000000", "00000000000000000000000001000000"];

/// Ports in a table like `/proc/net/tcp` on which something listens, at one of these addresses or
/// another of 127.0.0.0/8.
fn listening(table: &str, at: &[&str]) -> Vec<u16> {
    const LISTEN: &str = "0A";
    let port = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (address, port) = words.next()?.split_once(':')?;
        let state = words.nth(1)?;
        let network = address.len() == 8 && address.ends_with("7F");
        let reached = state == LISTEN && (network || at.contains(&address));
        if reached { u16::from_str_radix(port, 16).ok() } else { None }
    };
    table.lines().skip(1).filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_listen_over_loopback_are_found() {
        let table = "  sl  local_address rem_address   st tx_queue
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000
   2: 3500007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000
   3: 0200000A:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000
   4: 0100007F:9999 0100007F:1538 01 00000000:00000000 00:00000000 00000000
";
        assert_eq!(listening(table, &TO_IPV4), [5432, 22, 53]);
        let six =
            "  sl  local_address                         remote_address                        st
   0: 00000000000000000000000001000000:0277 00000000000000000000000000000000:0000 0A 0
   1: 000080FE000000000000000001000000:0278 00000000000000000000000000000000:0000 0A 0
";
        assert_eq!(listening(six, &TO_IPV6), [631]);
        assert_eq!(listening(six, &TO_IPV4_BY_IPV6), [0_u16; 0]);
    }

    #[test]
    fn resolvers_are_those_of_the_c_library() {
        let text = "# a comment\nsearch test\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\nnameserver ::1\n";
        let expected: Vec<SocketAddr> =
            vec!["10.0.0.2:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(named_resolvers(text), expected);
        assert_eq!(named_resolvers(""), [DEFAULT_RESOLVER]);
    }

    #[test]
    fn addresses_are_read_from_what_ip_tells() {
        let json = br#"[{}, {"ifname": "eth0", "addr_info": [
            {"family": "inet", "local": "10.0.0.9", "prefixlen": 24},
            {"family": "inet6", "local": "2001:db8::9"}, {}]}]"#;
        let expected: Vec<IpAddr> =
            vec!["10.0.0.9".parse().unwrap(), "2001:db8::9".parse().unwrap()];
        assert_eq!(addresses(json).unwrap(), expected);
        assert!(addresses(b"Usage: ip").is_err());
    }
}
