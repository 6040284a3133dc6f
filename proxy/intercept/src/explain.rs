//! What happens to a connection, and by which rule.

use std::net::{IpAddr, SocketAddr};

use crate::{
    Network, Spec, nft,
    rules::{self, Act, Rule, Select},
};

/// A connection that is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// From here or to here.
    pub direction: Direction,
    /// Over what.
    pub protocol: Protocol,
    /// Where to.
    pub destination: SocketAddr,
    /// Where from, if that is known; inbound networks are told by it.
    pub source: Option<IpAddr>,
    /// The user of an outbound connection, if that is known.
    pub user: Option<u32>,
    /// The group of an outbound connection, if that is known.
    pub group: Option<u32>,
    /// The mark of its packets; 0 is none.
    pub mark: u32,
    /// Whether the destination is an address of this machine, so that an outbound connection goes
    /// over loopback and an inbound one ends here.
    pub local: bool,
}

impl Connection {
    /// A TCP connection of nobody in particular: outbound to another machine (or over loopback, if
    /// the address is one), or inbound from another machine.
    #[must_use]
    pub fn new(direction: Direction, destination: SocketAddr) -> Self {
        let inbound = direction == Direction::Inbound;
        Self {
            direction,
            protocol: Protocol::Tcp,
            destination,
            source: None,
            user: None,
            group: None,
            mark: 0,
            local: inbound || destination.ip().is_loopback(),
        }
    }
}

/// Which way a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It begins in this namespace.
    Outbound,
    /// It comes in from outside.
    Inbound,
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What happens to a connection, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What happens.
    pub verdict: Verdict,
    /// Why, in a sentence.
    pub why: String,
    /// The chain and the rule's name and text, if one decided.
    pub rule: Option<(String, String, String)>,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is left alone.
    Left,
    /// It is sent to this port here, by another destination address.
    Redirected(u16),
    /// It is given to whom listens at this port here, unchanged.
    Tproxied(u16),
}

/// Goes through the rules as the kernel does.
#[must_use]
pub fn explain(spec: &Spec, connection: &Connection) -> Explanation {
    let name = match connection.direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    };
    let left = |why: String| Explanation { verdict: Verdict::Left, why, rule: None };
    let Some(chain) = rules::chains(spec).into_iter().find(|chain| chain.name == name) else {
        return left(format!("{name} connections are not intercepted"));
    };
    for rule in &chain.rules {
        let verdict = match rule.act {
            _ if !matches(&rule.select, connection) => continue,
            Act::Leave => Verdict::Left,
            Act::Redirect(port) => Verdict::Redirected(port),
            Act::Tproxy(port) => Verdict::Tproxied(port),
            Act::Refuse | Act::MarkConnection(_) | Act::Mark(_) => continue,
        };
        let text = nft::texts(rule);
        let six = connection.destination.is_ipv6();
        // Of a rule in two lines, the second is IPv6's.
        let text = if six { text.last() } else { text.first() }.cloned().unwrap_or_default();
        let rule_of = (chain.name.to_owned(), rule.name.to_owned(), text);
        return Explanation { verdict, why: why(spec, rule, connection), rule: Some(rule_of) };
    }
    left("only TCP is intercepted, and DNS where told".to_owned())
}

fn matches(select: &Select, connection: &Connection) -> bool {
    let tcp = connection.protocol == Protocol::Tcp;
    let inbound = connection.direction == Direction::Inbound;
    let Connection { destination, source, user, group, mark, local, .. } = *connection;
    let port = destination.port();
    let within = |networks: &[Network], ip| networks.iter().any(|network| network.contains(ip));
    match select {
        Select::Mark(wanted) => mark == *wanted,
        Select::Users(users) => user.is_some_and(|user| users.contains(&user)),
        Select::Groups(groups) => group.is_some_and(|group| groups.contains(&group)),
        Select::OutByLoopback => local && !inbound,
        Select::ToLoopback => destination.ip().is_loopback(),
        Select::NotHere => !local,
        Select::Ipv6 => destination.is_ipv6(),
        Select::To(networks) => within(networks, destination.ip()),
        Select::From(networks) => source.is_some_and(|source| within(networks, source)),
        Select::Ports(ports) => tcp && ports.contains(&port),
        Select::OtherPorts(ports) => tcp && !ports.contains(&port),
        Select::DnsRequest => !tcp && port == 53,
        Select::DnsConnection => tcp && port == 53,
        Select::Opening => tcp,
        Select::InByLoopback => inbound && source.is_some_and(|source| source.is_loopback()),
        // None of these is the opening of a connection from another machine.
        Select::Later(_) | Select::Answers(_) | Select::FromElsewhere => false,
    }
}

fn why(spec: &Spec, rule: &Rule, connection: &Connection) -> String {
    let port = connection.destination.port();
    match (&rule.select, rule.act) {
        (Select::DnsRequest | Select::DnsConnection, _) => {
            "it is a DNS request, and those are sent to a port of their own".to_owned()
        }
        (_, Act::Redirect(_) | Act::Tproxy(_)) => "nothing excludes it".to_owned(),
        (Select::Mark(mark), _) => format!("packets with mark {mark:#x} are left alone"),
        (Select::Users(_), _) if rule.name == "proxy user" => {
            "it is the proxy's own: sent to the proxy it would never end".to_owned()
        }
        (Select::Groups(_), _) if rule.name == "proxy group" => {
            "it is of the proxy's group: sent to the proxy it would never end".to_owned()
        }
        (Select::Users(_), _) => "its user is excluded".to_owned(),
        (Select::Groups(_), _) => "its group is excluded".to_owned(),
        (Select::OutByLoopback | Select::InByLoopback, _) => {
            "it stays on this machine, and loopback is left alone".to_owned()
        }
        (Select::ToLoopback, _) => "addresses of loopback are left alone".to_owned(),
        (Select::NotHere, _) => "it only passes through this machine".to_owned(),
        (Select::Ipv6, _) => "IPv6 is not intercepted".to_owned(),
        (Select::To(networks), _) => excluded(networks, Some(connection.destination.ip()), "to"),
        (Select::From(networks), _) => excluded(networks, connection.source, "from"),
        (Select::Ports(_), _) if rule.name == "dns" => "DNS is left alone".to_owned(),
        (Select::Ports(_), _) => format!("port {port} is excluded"),
        (Select::OtherPorts(_), _) => {
            let only = match connection.direction {
                Direction::Outbound => &spec.only_outbound_ports,
                Direction::Inbound => &spec.only_inbound_ports,
            };
            let only: Vec<String> = only.iter().map(u16::to_string).collect();
            format!("only port {} is intercepted", only.join(", "))
        }
        _ => String::new(),
    }
}

fn excluded(networks: &[Network], ip: Option<IpAddr>, way: &str) -> String {
    let network = networks.iter().find(|network| ip.is_some_and(|ip| network.contains(ip)));
    let network = network.map(ToString::to_string).unwrap_or_default();
    format!("connections {way} {network} are left alone")
}
