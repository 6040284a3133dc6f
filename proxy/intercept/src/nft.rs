//! The nftables text of rules, and what `nft` tells about ours.

use std::fmt::Write as _;

use crate::{
    Error, Network, Spec,
    install::Counter,
    program::{self, Program},
    rules::{Act, Chain, Hook, INBOUND_MARK, Rule, Select},
};

/// What everything of ours is called.
pub(crate) const TABLE: &str = "towpath";
const NEEDS: &str =
    "nf_tables with nat for inet (Linux 5.2 and newer), fib, and for --tproxy nft_tproxy";
/// Before other tables' redirects, which have -100, so that the destination is the one that was
/// dialed.
const NAT_PRIORITY: i32 = -101;

/// The transaction. The table is made if need be so that it can be deleted, and made anew.
pub(crate) fn ruleset(spec: &Spec, chains: &[Chain]) -> String {
    let mut text = removal();
    let _ = writeln!(text, "table inet {TABLE} {{");
    let version = format!("towpath {}", env!("CARGO_PKG_VERSION"));
    let record = std::iter::once(version).chain(spec.options());
    let record: Vec<String> = record.map(|line| format!("return comment \"{line}\"")).collect();
    block(&mut text, "record", &record);
    for chain in chains {
        let hook = match chain.hook {
            Hook::OutputNat => format!("type nat hook output priority {NAT_PRIORITY}"),
            Hook::PreroutingNat => format!("type nat hook prerouting priority {NAT_PRIORITY}"),
            Hook::Prerouting => "type filter hook prerouting priority mangle".to_owned(),
            Hook::OutputRoute => "type route hook output priority mangle".to_owned(),
        };
        let mut lines = vec![format!("{hook}; policy accept;")];
        lines.extend(chain.rules.iter().flat_map(texts));
        text.push('\n');
        block(&mut text, chain.name, &lines);
    }
    text.push_str("}\n");
    text
}

/// The transaction that takes everything out, whether anything is there or not.
pub(crate) fn removal() -> String {
    format!("table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// The lines of one rule: two where IPv4 and IPv6 are said apart.
pub(crate) fn texts(rule: &Rule) -> Vec<String> {
    let act = act(rule.act);
    let name = rule.name;
    let line = |select: String| format!("{select} {act} comment \"{name}\"");
    select(&rule.select).into_iter().map(line).collect()
}

fn select(select: &Select) -> Vec<String> {
    const OPENING: &str = "tcp flags & (fin | syn | rst | ack) == syn";
    let one = match select {
        Select::Mark(mark) => format!("meta mark {mark:#x}"),
        Select::Users(users) => format!("meta skuid {}", set(users)),
        Select::Groups(groups) => format!("meta skgid {}", set(groups)),
        Select::OutByLoopback => "oifname \"lo\"".to_owned(),
        Select::InByLoopback => "iifname \"lo\"".to_owned(),
        Select::ToLoopback => {
            return vec!["ip daddr 127.0.0.0/8".to_owned(), "ip6 daddr ::1".to_owned()];
        }
        Select::NotHere => "fib daddr type != local".to_owned(),
        Select::Ipv6 => "meta nfproto ipv6".to_owned(),
        Select::To(networks) => return of_family("daddr", networks),
        Select::From(networks) => return of_family("saddr", networks),
        Select::Ports(ports) => format!("tcp dport {}", set(ports)),
        Select::OtherPorts(ports) => format!("tcp dport != {}", set(ports)),
        Select::DnsRequest => "udp dport 53".to_owned(),
        Select::DnsConnection => format!("tcp dport 53 {OPENING}"),
        Select::Opening => OPENING.to_owned(),
        Select::Later(mark) => {
            format!("meta l4proto tcp ct mark {mark:#x} ct direction original")
        }
        Select::Answers(mark) => format!("ct mark {mark:#x} ct direction reply"),
        Select::FromElsewhere => format!("iifname \"lo\" {OPENING} fib saddr type != local"),
    };
    vec![one]
}

fn of_family(side: &str, networks: &[Network]) -> Vec<String> {
    let (six, four): (Vec<Network>, Vec<Network>) =
        networks.iter().partition(|network| network.is_ipv6());
    [("ip", four), ("ip6", six)]
        .into_iter()
        .filter(|(_, networks)| !networks.is_empty())
        .map(|(family, networks)| format!("{family} {side} {}", set(&networks)))
        .collect()
}

fn set<T: ToString>(values: &[T]) -> String {
    let texts: Vec<String> = values.iter().map(T::to_string).collect();
    match &texts[..] {
        [one] => one.clone(),
        many => format!("{{ {} }}", many.join(", ")),
    }
}

/// Counted is what is done: TPROXY ends a rule where nobody listens.
fn act(act: Act) -> String {
    match act {
        Act::Leave => "counter return".to_owned(),
        Act::Redirect(port) => format!("counter redirect to :{port}"),
        Act::Tproxy(port) => {
            format!("tproxy to :{port} counter ct mark set {INBOUND_MARK:#x} accept")
        }
        Act::Refuse => "counter reject with tcp reset".to_owned(),
        Act::MarkConnection(mark) => format!("counter ct mark set {mark:#x}"),
        Act::Mark(mark) => format!("counter meta mark set {mark:#x}"),
    }
}

fn block(text: &mut String, chain: &str, lines: &[String]) {
    let _ = writeln!(text, "\tchain {chain} {{");
    for line in lines {
        let _ = writeln!(text, "\t\t{line}");
    }
    text.push_str("\t}\n");
}

/// What is in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The lines of the record.
    pub(crate) record: Vec<String>,
    pub(crate) counters: Vec<Counter>,
}

/// Looks for our table.
pub(crate) fn find(nft: &Program) -> Result<Option<Found>, Error> {
    let output = nft.run(&["list", "table", "inet", TABLE], None)?;
    if output.success {
        return Ok(Some(read(&output.text)));
    }
    if output.said.contains("No such file or directory") {
        return Ok(None);
    }
    Err(program::failure(nft.name, &output.said, NEEDS))
}

/// Runs a transaction.
pub(crate) fn apply(nft: &Program, text: &str) -> Result<(), Error> {
    let output = nft.run(&["-f", "-"], Some(text))?;
    if output.success { Ok(()) } else { Err(program::failure(nft.name, &output.said, NEEDS)) }
}

/// Reads what `nft list table` prints, as far as it is ours: whatever way `nft` words a rule, its
/// comment and its counter stay.
fn read(text: &str) -> Found {
    let mut found = Found::default();
    let mut chain = "";
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches('{').trim();
            continue;
        }
        let Some((rule, comment)) = line.split_once(" comment \"") else { continue };
        let Some(comment) = comment.strip_suffix('"') else { continue };
        if chain == "record" {
            found.record.push(comment.to_owned());
            continue;
        }
        let amount = |word: &str| {
            let mut words = rule.split(' ').skip_while(|found| *found != word);
            words.nth(1).and_then(|amount| amount.parse().ok()).unwrap_or(0)
        };
        Counter::add(&mut found.counters, chain, comment, amount("packets"), amount("bytes"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn what_nft_lists_is_read_back() {
        let found = read(include_str!("../testdata/list.txt"));
        assert_eq!(found.record, ["towpath 0.1.0", "--outbound-port=15001", "--no-inbound"]);
        let counters: Vec<_> = found
            .counters
            .iter()
            .map(|c| (c.chain.as_str(), c.rule.as_str(), c.packets, c.bytes))
            .collect();
        assert_eq!(
            counters,
            [
                ("outbound", "loopback", 5, 300),
                ("outbound", "dns", 0, 0),
                ("outbound", "taken", 7, 420)
            ]
        );
    }
}
