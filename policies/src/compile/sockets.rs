//! Which sockets are opened on which proxies: on one proxy each only once.
//!
//! Whether two patterns name a proxy in common is decided name by name. That a
//! proxy's id matches one and its cluster the other cannot be known here.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::{
    document::read::ticked,
    model::{NodeSelector, overlap},
    problem::Span,
};

/// The sockets claimed so far, by port and address.
#[derive(Debug, Default)]
pub(crate) struct Sockets(HashMap<u16, BTreeMap<IpAddr, Vec<Claim>>>);

/// Who opens a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opener {
    Gateway,
    Sidecar,
}

#[derive(Clone, Debug)]
struct Claim {
    opener: Opener,
    nodes: NodeSelector,
    span: Span,
}

/// An earlier claim of the same socket on the same proxies.
#[derive(Debug, PartialEq)]
pub(crate) struct Taken {
    pub(crate) opener: Opener,
    pub(crate) span: Span,
    /// What to say of its place.
    pub(crate) note: String,
}

impl Sockets {
    /// Claims a socket; tells of the first earlier claim that it cannot stand beside.
    pub(crate) fn claim(
        &mut self,
        opener: Opener,
        nodes: &NodeSelector,
        address: SocketAddr,
        span: Span,
    ) -> Option<Taken> {
        let ip = address.ip().to_canonical();
        let port = self.0.entry(address.port()).or_default();
        let beside = |claim: &Claim| {
            let note = shared(&claim.nodes, nodes)?;
            Some(Taken { opener: claim.opener, span: claim.span, note })
        };
        let taken = if ip.is_unspecified() {
            let met = port.iter().filter(|(other, _)| meets(ip, **other));
            met.flat_map(|(_, claims)| claims).filter_map(beside).min_by_key(|t| t.span)
        } else {
            // Not all claims of the port: a mesh has as many sidecars on one as it has hosts.
            let all: IpAddr = match ip {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let met = [ip, all].into_iter().filter_map(|other| port.get(&other));
            met.flatten().filter_map(beside).min_by_key(|t| t.span)
        };
        port.entry(ip).or_default().push(Claim { opener, nodes: nodes.clone(), span });
        taken
    }
}

/// Whether one proxy cannot listen on both. Proxies open `::` for IPv6 alone.
fn meets(a: IpAddr, b: IpAddr) -> bool {
    a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
}

/// What to say of two selections that have a proxy in common; `None` where they have none.
fn shared(earlier: &NodeSelector, later: &NodeSelector) -> Option<String> {
    match (earlier, later) {
        (NodeSelector::Matching(earlier), NodeSelector::Matching(later)) => {
            let pairs = earlier.iter().flat_map(|a| later.iter().map(move |b| (a, b)));
            let (a, b) = pairs.into_iter().find(|(a, b)| overlap(a, b))?;
            Some(if a == b {
                format!("taken here, on {}", ticked(a))
            } else {
                format!("taken here, on {}, which {} overlaps", ticked(a), ticked(b))
            })
        }
        (NodeSelector::Unclaimed, NodeSelector::Unclaimed) => Some("taken here".to_owned()),
        // Who is named by any pattern is not unclaimed; a listener for any client has no socket.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching(patterns: &[&str]) -> NodeSelector {
        NodeSelector::Matching(patterns.iter().map(|p| (*p).to_owned()).collect())
    }

    #[test]
    fn addresses_meet_when_one_socket_takes_the_others_connections() {
        for (a, b, expected) in [
            ("0.0.0.0", "0.0.0.0", true),
            ("0.0.0.0", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("::", "10.0.0.1", false),
            ("::", "0.0.0.0", false),
            ("::", "::1", true),
            ("0.0.0.0", "::1", false),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
        ] {
            for (a, b) in [(a, b), (b, a)] {
                let mut sockets = Sockets::default();
                let [a, b]: [IpAddr; 2] = [a, b].map(|ip| ip.parse().expect("an address"));
                let mut claim = |ip| {
                    let address = SocketAddr::new(ip, 80);
                    let span = Span::default();
                    sockets.claim(Opener::Gateway, &matching(&["n"]), address, span)
                };
                assert_eq!(claim(a), None);
                assert_eq!(claim(b).is_some(), expected, "{a} {b}");
            }
        }
    }

    #[test]
    fn who_is_named_is_not_among_the_unclaimed() {
        let (all, some) = (NodeSelector::Unclaimed, matching(&["*"]));
        assert_eq!(shared(&all, &some), None);
        assert_eq!(shared(&some, &all), None);
        assert!(shared(&all, &all).is_some() && shared(&some, &matching(&["a", "b"])).is_some());
        assert_eq!(shared(&matching(&["a", "b"]), &matching(&["c", "d"])), None);
    }
}
