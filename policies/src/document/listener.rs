//! `ListenerPolicy` (towpath.dev/v1alpha1).

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Value as Json, json};

use super::{
    own::TargetRef,
    read::{AtLeastOne, Definitions, Read, choice, invalid, object, ticked, wrong_type},
    value::{Bytes, PositiveTime, Whole},
};
use crate::{
    problem::{At, Problems},
    yaml::Node,
};

object! {
    /// What a Gateway's listeners take from clients. A listener's own policy counts more than its Gateway's, field by field.
    struct ListenerPolicySpec {
        /// Gateways, or listeners of theirs by `sectionName`.
        "targetRefs" => target_refs: AtLeastOne<TargetRef>,
        /// Who may say in front of a connection for which client it is; default: nobody.
        "proxyProtocol" => proxy_protocol: Option<At<ProxyProtocolSpec>>,
        /// Limits of HTTP.
        "http" => http: Option<At<ListenerHttpSpec>>,
    }
}

object! {
    /// HAProxy's PROXY protocol, version 1 or 2: a load balancer tells the client's address in front of everything else.
    struct ProxyProtocolSpec {
        /// Default `required`.
        "mode" => mode: Option<At<ProxyProtocolMode>>,
        /// The load balancers, as networks (`10.0.0.0/8`) or addresses: nobody else's word is taken.
        "trustedNetworks" => trusted: At<AtLeastOne<At<Network>>>,
    }
}

choice! {
    /// Whether connections must begin with a header.
    enum ProxyProtocolMode {
        /// A connection without one, or from elsewhere, is closed.
        "required" => Required,
        /// A connection without one, or from elsewhere, is its peer's own.
        "optional" => Optional,
    }
}

object! {
    /// Limits of HTTP on a listener.
    struct ListenerHttpSpec {
        /// Longest request head, 1KiB to 8MiB; longer ones are answered 431. Default 64KiB.
        "maxHeaderBytes" => max_header_bytes: Option<At<Bytes>>,
        /// Most header fields of a request, 1 to 1000; more are answered 431. Default 100.
        "maxHeaders" => max_headers: Option<At<Whole<1, 1_000>>>,
        /// Time for a request head to come; default 30s.
        "headTimeout" => head_timeout: Option<At<PositiveTime>>,
        /// A connection without a request is closed after this; default 1h.
        "idleTimeout" => idle_timeout: Option<At<PositiveTime>>,
        /// Most requests at a time on an HTTP/2 connection; default 256.
        "maxConcurrentStreams" => max_concurrent_streams: Option<At<Whole<1, 65_535>>>,
        /// Whether clients that speak HTTP/1.0 are served; default `serve`.
        "http10" => http10: Option<At<Http10>>,
    }
}

choice! {
    /// What becomes of HTTP/1.0.
    enum Http10 {
        /// Served: by default a connection carries one request, and no body comes in chunks.
        "serve" => Serve,
        /// Answered 505.
        "refuse" => Refuse,
    }
}

/// A network, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network(pub(crate) IpNetwork);

const NETWORK_HELP: &str = "an IP network or address, e.g. 10.0.0.0/8, 192.0.2.7 or fd00::/8";

impl Read for Network {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let Some(text) = node.text() else {
            wrong_type(node, "a network", problems).help(NETWORK_HELP);
            return None;
        };
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let network = address.parse::<IpAddr>().ok().and_then(|address| {
            let whole = if address.is_ipv4() { 32 } else { 128 };
            let digits = |p: &str| p.bytes().all(|b| b.is_ascii_digit());
            let prefix = prefix.map_or(Some(whole), |p| p.parse().ok().filter(|_| digits(p)))?;
            IpNetwork::new(address, prefix).ok()
        });
        let Some(network) = network else {
            let message = format!("{} is not a network", ticked(text));
            invalid(node.span, message, NETWORK_HELP, problems);
            return None;
        };
        if network.ip() != network.network() {
            let message = format!("{} has bits beyond its prefix", ticked(text));
            let help = format!("{}/{}", network.network(), network.prefix());
            invalid(node.span, message, help, problems);
            return None;
        }
        if network.ip().to_canonical() != network.ip() {
            let message = format!("{} is IPv4 written as IPv6", ticked(text));
            invalid(node.span, message, "write it as IPv4", problems);
            return None;
        }
        Some(Self(network))
    }

    fn schema(definitions: &mut Definitions) -> Json {
        definitions.refer("Network", |_| {
            json!({
                "type": "string",
                "description": NETWORK_HELP,
                "pattern": "^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$",
            })
        })
    }
}
