//! The rules that a [`Spec`] comes down to: one list for nftables, iptables and explanations.

use crate::{Fail, Loopback, Network, Spec};

/// On connections (not packets) that came in by TPROXY.
pub(crate) const INBOUND_MARK: u32 = 0x7470;
/// On connections of the proxy to the application that are made from a client's address, and on
/// the answers, which would leave the machine without it.
pub(crate) const RETURN_MARK: u32 = 0x7471;

/// Rules that are gone through in order until one decides; behind the last one a connection is
/// left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) hook: Hook,
    pub(crate) rules: Vec<Rule>,
}

/// Where the kernel goes through a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// The first packet of each connection that begins here.
    OutputNat,
    /// The first packet of each connection that comes in.
    PreroutingNat,
    /// Every packet that comes in.
    Prerouting,
    /// Every packet that goes out, before its way is settled.
    OutputRoute,
}

/// What one rule looks at, and what becomes of a connection then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Its name in its chain.
    pub(crate) name: &'static str,
    pub(crate) select: Select,
    pub(crate) act: Act,
}

/// What a rule looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Select {
    Mark(u32),
    Users(Vec<u32>),
    Groups(Vec<u32>),
    /// It leaves by the loopback interface.
    OutByLoopback,
    /// It comes in by the loopback interface.
    InByLoopback,
    /// To 127.0.0.0/8 or ::1.
    ToLoopback,
    /// Not to an address of this machine: it only passes through.
    NotHere,
    Ipv6,
    To(Vec<Network>),
    From(Vec<Network>),
    Ports(Vec<u16>),
    OtherPorts(Vec<u16>),
    /// DNS over UDP, and over TCP.
    DnsRequest,
    DnsConnection,
    /// The packet that opens a TCP connection. Others of connections that are not known yet belong
    /// to such as were there before the rules, and must go on as they did.
    Opening,
    /// Later packets of a connection with this mark, from whom opened it.
    Later(u32),
    /// Answers on a connection with this mark.
    Answers(u32),
    /// A connection over loopback from an address that is not of this machine.
    FromElsewhere,
}

/// What becomes of what a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Leave,
    /// To this port here, with another destination.
    Redirect(u16),
    /// To whom listens at this port, unchanged; to the next rule if nobody does.
    Tproxy(u16),
    Refuse,
    /// Marks the connection, and goes on.
    MarkConnection(u32),
    /// Marks the packet.
    Mark(u32),
}

/// All chains, outbound first.
pub(crate) fn chains(spec: &Spec) -> Vec<Chain> {
    let mut chains = Vec::new();
    if let Some(port) = spec.outbound {
        chains.push(Chain { name: "outbound", hook: Hook::OutputNat, rules: outbound(spec, port) });
    }
    if let Some(port) = spec.inbound {
        let hook = if spec.tproxy { Hook::Prerouting } else { Hook::PreroutingNat };
        chains.push(Chain { name: "inbound", hook, rules: inbound(spec, port) });
    }
    if spec.tproxy {
        let back = rule("answers", Select::Answers(RETURN_MARK), Act::Mark(RETURN_MARK));
        chains.push(Chain { name: "back", hook: Hook::OutputRoute, rules: vec![back] });
    }
    chains
}

fn outbound(spec: &Spec, port: u16) -> Vec<Rule> {
    let mut rules = vec![rule("mark", Select::Mark(spec.mark), Act::Leave)];
    let mut leave = |name, wanted: bool, select| {
        if wanted {
            rules.push(rule(name, select, Act::Leave));
        }
    };
    let one = |id: Option<u32>| id.into_iter().collect::<Vec<u32>>();
    let some = |list: &[u32]| !list.is_empty();
    leave("proxy user", spec.proxy_user.is_some(), Select::Users(one(spec.proxy_user)));
    leave("proxy group", spec.proxy_group.is_some(), Select::Groups(one(spec.proxy_group)));
    leave("users", some(&spec.exclude_users), Select::Users(spec.exclude_users.clone()));
    leave("groups", some(&spec.exclude_groups), Select::Groups(spec.exclude_groups.clone()));
    leave("loopback", spec.loopback == Loopback::Leave, Select::OutByLoopback);
    leave("loopback", spec.loopback == Loopback::Own, Select::ToLoopback);
    leave("ipv6", !spec.ipv6, Select::Ipv6);
    let networks = Network::disjoint(&spec.exclude_outbound_networks);
    leave("networks", !networks.is_empty(), Select::To(networks));
    match spec.dns {
        Some(dns) => {
            rules.push(rule("dns", Select::DnsRequest, Act::Redirect(dns)));
            rules.push(rule("dns over tcp", Select::DnsConnection, Act::Redirect(dns)));
        }
        None => rules.push(rule("dns", Select::Ports(vec![53]), Act::Leave)),
    }
    ports(&mut rules, &spec.exclude_outbound_ports, &spec.only_outbound_ports);
    rules.push(rule("taken", Select::Opening, Act::Redirect(port)));
    rules
}

fn inbound(spec: &Spec, port: u16) -> Vec<Rule> {
    let mut rules = Vec::new();
    if spec.tproxy {
        rules.push(rule("later packets", Select::Later(INBOUND_MARK), Act::Tproxy(port)));
        let as_client = Act::MarkConnection(RETURN_MARK);
        rules.push(rule("as the client", Select::FromElsewhere, as_client));
    }
    rules.push(rule("loopback", Select::InByLoopback, Act::Leave));
    rules.push(rule("passing through", Select::NotHere, Act::Leave));
    if !spec.ipv6 {
        rules.push(rule("ipv6", Select::Ipv6, Act::Leave));
    }
    let networks = Network::disjoint(&spec.exclude_inbound_networks);
    if !networks.is_empty() {
        rules.push(rule("networks", Select::From(networks), Act::Leave));
    }
    ports(&mut rules, &spec.exclude_inbound_ports, &spec.only_inbound_ports);
    let act = if spec.tproxy { Act::Tproxy(port) } else { Act::Redirect(port) };
    rules.push(rule("taken", Select::Opening, act));
    if spec.tproxy && spec.fail == Fail::Closed {
        rules.push(rule("nobody listens", Select::Opening, Act::Refuse));
    }
    rules
}

fn ports(rules: &mut Vec<Rule>, exclude: &[u16], only: &[u16]) {
    if !exclude.is_empty() {
        rules.push(rule("ports", Select::Ports(sorted(exclude)), Act::Leave));
    }
    if !only.is_empty() {
        rules.push(rule("other ports", Select::OtherPorts(sorted(only)), Act::Leave));
    }
}

fn sorted(ports: &[u16]) -> Vec<u16> {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn rule(name: &'static str, select: Select, act: Act) -> Rule {
    Rule { name, select, act }
}
