//! What makes every connection of the namespace come to the sidecar, as text.
//!
//! All addresses are local in it, so that a connection to any of them comes in by loopback. There
//! TPROXY gives it to the sidecar, under the address that it was made to. Unlike a redirect that
//! knows whether something inside listens there itself, and then leaves it alone.

use std::{fmt::Write as _, net::IpAddr};

use super::{Host, NAMES_PORT, PORT};

/// An address for programs that ask whether this machine has one at all (RFC 7600).
const DUMMY: &str = "192.0.0.8";

/// What `ip -batch -` is given.
pub(super) fn links(host: &Host) -> String {
    let mut text = "link set lo up\n".to_owned();
    if host.addresses.iter().all(IpAddr::is_ipv6) {
        let _ = writeln!(text, "address add {DUMMY}/32 dev lo");
    }
    for address in &host.addresses {
        let _ = match address {
            IpAddr::V4(four) => writeln!(text, "address add {four}/32 dev lo"),
            IpAddr::V6(six) => writeln!(text, "address add {six}/128 dev lo nodad"),
        };
    }
    text.push_str("route add local 0.0.0.0/0 dev lo\n");
    if host.has_ipv6() {
        text.push_str("route add local ::/0 dev lo\n");
    }
    text
}

/// What `nft -f -` is given.
pub(super) fn ruleset(host: &Host) -> String {
    let mut rules = String::new();
    let mut rule = |text: &str| {
        let _ = writeln!(rules, "\t\t{text}");
    };
    rule("type filter hook prerouting priority mangle; policy accept;");
    rule("meta l4proto != tcp accept");
    // What stands, and what something inside listens for at this very address.
    rule("socket wildcard 0 accept");
    // What something inside listens for at all addresses of the machine.
    for (family, own) in own(host) {
        rule(&format!("{family} daddr {{ {own} }} socket wildcard 1 accept"));
    }
    // On the machine's loopback, only what was there before the command.
    for (loopback, ports) in
        [("ip daddr 127.0.0.0/8", &host.loopback_ports), ("ip6 daddr ::1", &host.loopback_ports_v6)]
    {
        let ports = list(ports.iter());
        let others =
            if ports.is_empty() { String::new() } else { format!("tcp dport != {{ {ports} }} ") };
        rule(&format!("{loopback} {others}accept"));
    }
    rule(&format!("meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:{PORT} accept"));
    rule(&format!("meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:{PORT} accept"));
    format!(
        "table inet towpath {{
\tchain taken {{
{rules}\t}}
\tchain names {{
\t\ttype nat hook output priority -101; policy accept;
\t\tudp dport 53 redirect to :{NAMES_PORT}
\t}}
\tchain others {{
\t\ttype filter hook output priority filter; policy accept;
\t\tip daddr != {{ {} }} icmp type echo-request reject with icmp admin-prohibited
\t\tip6 daddr != {{ {} }} icmpv6 type echo-request reject with icmpv6 admin-prohibited
\t}}
}}
",
        own(host)[0].1,
        own(host)[1].1,
    )
}

/// The machine's own addresses, by family.
fn own(host: &Host) -> [(&'static str, String); 2] {
    let of = |six: bool| host.addresses.iter().filter(move |address| address.is_ipv6() == six);
    let joined = |first: &str, six| {
        let all = std::iter::once(first.to_owned()).chain(of(six).map(IpAddr::to_string));
        list(all)
    };
    [("ip", joined("127.0.0.0/8", false)), ("ip6", joined("::1", true))]
}

fn list<T: ToString>(values: impl Iterator<Item = T>) -> String {
    values.map(|value| value.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_has_is_there_inside() {
        let host = Host {
            addresses: vec!["10.0.0.9".parse().unwrap(), "2001:db8::9".parse().unwrap()],
            loopback_ports: [22].into(),
            loopback_ports_v6: [22, 5432].into(),
        };
        let links = links(&host);
        assert!(links.contains("address add 10.0.0.9/32 dev lo\n"), "{links}");
        assert!(links.contains("address add 2001:db8::9/128 dev lo nodad\n"), "{links}");
        assert!(links.contains("route add local ::/0 dev lo\n"), "{links}");
        let rules = ruleset(&host);
        for line in [
            "ip daddr { 127.0.0.0/8, 10.0.0.9 } socket wildcard 1 accept",
            "ip6 daddr ::1 tcp dport != { 22, 5432 } accept",
            "meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:15001 accept",
        ] {
            assert!(rules.contains(&format!("\t\t{line}\n")), "{rules}");
        }
    }

    #[test]
    fn a_machine_without_ipv6_and_without_anything_has_neither_inside() {
        let links = links(&Host::default());
        assert!(links.contains(DUMMY) && !links.contains("::"), "{links}");
        assert!(ruleset(&Host::default()).contains("\t\tip daddr 127.0.0.0/8 accept\n"));
    }
}
