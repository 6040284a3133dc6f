//! What listeners for redirected connections say in Envoy's words: listener filters that find out where a
//! connection went and what it speaks, and the matches of filter chains that go by that.

use std::net::IpAddr;

use envoy_types::pb::envoy::{
    config::{
        core::v3::CidrRange,
        listener::v3::{
            FilterChainMatch, Listener, ListenerFilter, ListenerFilterChainMatchPredicate,
            listener_filter,
            listener_filter_chain_match_predicate::{MatchSet, Rule},
        },
    },
    extensions::filters::listener::{
        http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst,
        original_src::v3::OriginalSrc, proxy_protocol::v3::ProxyProtocol,
        tls_inspector::v3::TlsInspector,
    },
    r#type::v3::Int32Range,
};
use envoy_types::pb::google::protobuf::Any;
use ipnetwork::IpNetwork;
use prost::Name;
use towpath_policies::model::{Chain, Only, Redirected, Speaks};

use super::common::{
    At, Result, bool_value, duration, pack, read_bool, read_u32, refuse, refuse_if, u32_value,
};

/// Has a listener take connections that were made to other addresses.
pub(super) fn encode(redirected: &Redirected, chains: &[Chain], pb: &mut Listener) {
    let filter = |name: &str, config: Any| ListenerFilter {
        name: format!("envoy.filters.listener.{name}"),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    pb.listener_filters = vec![filter("original_dst", pack(&OriginalDst::default()))];
    if redirected.transparent {
        pb.transparent = bool_value(true);
        let config = OriginalSrc { mark: Redirected::MARK, ..Default::default() };
        pb.listener_filters.push(filter("original_src", pack(&config)));
    }
    let disabled = encode_ports(&redirected.opaque_ports);
    let mut inspect = |name: &str, config: Any| {
        let filter_disabled = disabled.clone();
        pb.listener_filters.push(ListenerFilter { filter_disabled, ..filter(name, config) });
    };
    let speaks = |speaks| chains.iter().any(|chain| chain.only.speaks == Some(speaks));
    if speaks(Speaks::Tls) || chains.iter().any(|chain| !chain.server_names.is_empty()) {
        inspect("tls_inspector", pack(&TlsInspector::default()));
    }
    if speaks(Speaks::Http) {
        inspect("http_inspector", pack(&HttpInspector::default()));
    }
    // Envoy does not connect meanwhile: a server that speaks first is heard so much later.
    pb.listener_filters_timeout = Some(duration(INSPECTION));
    pb.continue_on_listener_filters_timeout = true;
}

fn encode_ports(ports: &[u16]) -> Option<ListenerFilterChainMatchPredicate> {
    let rule = |port: &u16| {
        let start = i32::from(*port);
        let range = Int32Range { start, end: start + 1 };
        ListenerFilterChainMatchPredicate { rule: Some(Rule::DestinationPortRange(range)) }
    };
    match ports {
        [] => None,
        [port] => Some(rule(port)),
        // Of one rule Envoy would make no alternative.
        ports => {
            let rules = ports.iter().map(rule).collect();
            let rule = Some(Rule::OrMatch(MatchSet { rules }));
            Some(ListenerFilterChainMatchPredicate { rule })
        }
    }
}

/// Reads the listener filters of a listener at `address`; `None` where nothing is redirected to it.
pub(super) fn decode(pb: &Listener, address: std::net::SocketAddr) -> Result<Option<Redirected>> {
    let mut redirected = read_bool(pb.use_original_dst.as_ref());
    let mut keeps_source = false;
    let mut opaque_ports: Option<Vec<u16>> = None;
    for (i, filter) in pb.listener_filters.iter().enumerate() {
        let url = match &filter.config_type {
            Some(listener_filter::ConfigType::TypedConfig(any)) => any.type_url.as_str(),
            Some(_) => "",
            None if filter.name == "envoy.filters.listener.tls_inspector" => {
                &TlsInspector::type_url()
            }
            None => "",
        };
        if url == OriginalDst::type_url() {
            redirected = true;
        } else if url == OriginalSrc::type_url() {
            keeps_source = true;
        } else if url == ProxyProtocol::type_url() {
            // Whose word is taken is another's to say.
        } else if url == TlsInspector::type_url() || url == HttpInspector::type_url() {
            let ports = decode_ports(filter.filter_disabled.as_ref())
                .at("filter_disabled")
                .at_index("listener_filters", i)?;
            if opaque_ports.as_ref().is_some_and(|other| *other != ports) {
                return refuse("must be the same of all inspectors")
                    .at("filter_disabled")
                    .at_index("listener_filters", i);
            }
            opaque_ports = Some(ports);
            continue;
        } else {
            let name: String = filter.name.chars().take(128).collect();
            return refuse(format!("{name:?} is not supported")).at_index("listener_filters", i);
        }
        refuse_if(filter.filter_disabled.is_some(), "filter_disabled", "is not supported here")
            .at_index("listener_filters", i)?;
    }
    let transparent = read_bool(pb.transparent.as_ref());
    if !redirected {
        refuse_if(keeps_source, "listener_filters", "original_src needs original_dst")?;
        refuse_if(transparent, "transparent", "needs the listener filter original_dst")?;
        return Ok(None);
    }
    refuse_if(
        keeps_source != transparent,
        "listener_filters",
        "original_src and transparent are supported together only",
    )?;
    let opaque_ports = opaque_ports.unwrap_or_default();
    Ok(Some(Redirected { address, transparent, opaque_ports, tunnels: false }))
}

fn decode_ports(pb: Option<&ListenerFilterChainMatchPredicate>) -> Result<Vec<u16>> {
    let rules = match pb.map(|predicate| predicate.rule.as_ref()) {
        None => return Ok(Vec::new()),
        Some(Some(Rule::OrMatch(set))) => set.rules.iter().map(|p| p.rule.as_ref()).collect(),
        Some(rule) => vec![rule],
    };
    let mut ports = Vec::new();
    for rule in rules {
        let Some(Rule::DestinationPortRange(range)) = rule else {
            return refuse("only ranges of destination ports, and any of them, are supported");
        };
        for port in range.start..range.end {
            let Ok(port) = u16::try_from(port) else { return refuse(format!("{port} is no port")) };
            if ports.len() >= Redirected::MOST_PORTS {
                return refuse(format!("at most {} ports are supported", Redirected::MOST_PORTS));
            }
            ports.push(port);
        }
    }
    Ok(ports)
}

/// Adds to the match of a filter chain which destinations and protocols it takes.
pub(super) fn encode_only(only: &Only, pb: &mut FilterChainMatch) {
    pb.destination_port = only.port.and_then(|port| u32_value(port.into()));
    let range = |network: &IpNetwork| CidrRange {
        address_prefix: network.ip().to_string(),
        prefix_len: u32_value(network.prefix().into()),
    };
    pb.prefix_ranges = only.networks.iter().map(range).collect();
    match only.speaks {
        Some(Speaks::Http) => pb.application_protocols = HTTP.map(str::to_owned).into(),
        Some(Speaks::Tls) => "tls".clone_into(&mut pb.transport_protocol),
        None => {}
    }
}

pub(super) fn decode_only(pb: &FilterChainMatch) -> Result<Only> {
    let port = match read_u32(pb.destination_port.as_ref()).map(u16::try_from) {
        None => None,
        Some(Ok(port)) => Some(port),
        Some(Err(_)) => return refuse("is no port").at("destination_port"),
    };
    let mut networks = Vec::new();
    for (i, range) in pb.prefix_ranges.iter().enumerate() {
        networks.push(network(range).at_index("prefix_ranges", i)?);
    }
    let http = match pb.application_protocols.as_slice() {
        [] => false,
        some if HTTP.iter().all(|p| some.iter().any(|s| s == p)) && some.len() == HTTP.len() => {
            true
        }
        _ => {
            return refuse(format!("only {} together can be matched", HTTP.join(", ")))
                .at("application_protocols");
        }
    };
    let speaks = match (pb.transport_protocol.as_str(), http) {
        ("" | "raw_buffer", true) => Some(Speaks::Http),
        ("", false) => None,
        ("tls", false) => Some(Speaks::Tls),
        (other, _) => {
            return refuse(format!("{other:?} cannot be matched")).at("transport_protocol");
        }
    };
    Ok(Only { port, networks, speaks })
}

fn network(range: &CidrRange) -> Result<IpNetwork> {
    let Ok(ip) = range.address_prefix.parse::<IpAddr>() else { return refuse("has no IP address") };
    // Left out it is 0.
    let length = read_u32(range.prefix_len.as_ref()).unwrap_or(0);
    let network = u8::try_from(length).ok().and_then(|length| IpNetwork::new(ip, length).ok());
    let Some(network) = network else {
        return refuse(format!("{length} is no length of a prefix"));
    };
    // What is beyond it counts for nothing.
    match IpNetwork::new(network.network(), network.prefix()) {
        Ok(network) => Ok(network),
        Err(_) => refuse("is no network"),
    }
}

/// What `http_inspector` finds.
const HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];
/// Time that Envoy has to find out what is spoken.
const INSPECTION: std::time::Duration = std::time::Duration::from_millis(100);
