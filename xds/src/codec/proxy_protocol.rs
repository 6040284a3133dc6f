//! The PROXY protocol: in, as a listener filter, and out, as a transport socket around the others.
//!
//! Envoy's filter takes anybody's word. Whose word is taken here is said by the addresses that a
//! connection may come from directly (`direct_source_prefix_ranges` of every chain), so an Envoy closes
//! connections from elsewhere, also where we serve them as their peers' own.

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{
                CidrRange, ProxyProtocolConfig, TransportSocket, proxy_protocol_config::Version,
                transport_socket::ConfigType,
            },
            listener::v3::{
                FilterChain, FilterChainMatch, Listener as Pb, ListenerFilter, listener_filter,
            },
        },
        extensions::{
            filters::listener::proxy_protocol::v3::ProxyProtocol as Filter,
            transport_sockets::{
                proxy_protocol::v3::ProxyProtocolUpstreamTransport, raw_buffer::v3::RawBuffer,
            },
        },
    },
    google::protobuf::Any,
};
use prost::Name;
use towpath_policies::model::{IpNetwork, ProxyProtocol, ProxyVersion};

use super::common::{At, Result, pack, read_u32, refuse, refuse_if, u32_value, unpack};

pub(super) fn encode(terms: &ProxyProtocol, pb: &mut Pb) {
    let filter =
        Filter { allow_requests_without_proxy_protocol: !terms.required, ..Default::default() };
    let filter = ListenerFilter {
        name: "envoy.filters.listener.proxy_protocol".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack(&filter))),
        ..Default::default()
    };
    pb.listener_filters.insert(0, filter);
    let ranges: Vec<_> = terms.trusted.iter().map(range).collect();
    for chain in &mut pb.filter_chains {
        let matches = chain.filter_chain_match.get_or_insert_with(FilterChainMatch::default);
        matches.direct_source_prefix_ranges.clone_from(&ranges);
    }
}

fn range(network: &IpNetwork) -> CidrRange {
    CidrRange {
        address_prefix: network.ip().to_string(),
        prefix_len: u32_value(network.prefix().into()),
    }
}

fn is_filter(any: &Any) -> bool {
    any.type_url == Filter::type_url()
}

pub(super) fn decode(pb: &Pb) -> Result<Option<ProxyProtocol>> {
    let config = |filter: &'_ ListenerFilter| match &filter.config_type {
        Some(listener_filter::ConfigType::TypedConfig(any)) if is_filter(any) => Some(any.clone()),
        _ => None,
    };
    let chains = || pb.filter_chains.iter().chain(&pb.default_filter_chain);
    let at = pb.listener_filters.iter().position(|filter| config(filter).is_some());
    let Some(any) = at.and_then(|at| config(&pb.listener_filters[at])) else {
        let narrow = chains().any(|chain| !ranges(chain).is_empty());
        refuse_if(
            narrow,
            "filter_chains",
            "direct_source_prefix_ranges can be matched only beside the PROXY protocol",
        )?;
        return Ok(None);
    };
    refuse_if(at != Some(0), "listener_filters", "the PROXY protocol must come first")?;
    let again = pb.listener_filters.iter().skip(1).any(|filter| config(filter).is_some());
    refuse_if(again, "listener_filters", "there is one header of the PROXY protocol, not two")?;
    let filter: Filter = unpack(&any).at("listener_filters[0]")?;
    check(&filter).at("listener_filters[0]")?;
    let first = chains().next().map(ranges).unwrap_or_default();
    refuse_if(
        chains().any(|chain| ranges(chain) != first),
        "filter_chains",
        "direct_source_prefix_ranges must be the same in all chains",
    )?;
    refuse_if(first.len() > ProxyProtocol::MOST_TRUSTED, "filter_chains", "too many networks")?;
    let mut trusted = first.iter().map(network).collect::<Result<Vec<_>>>().at("filter_chains")?;
    if trusted.is_empty() {
        trusted = everywhere();
    }
    Ok(Some(ProxyProtocol { required: !filter.allow_requests_without_proxy_protocol, trusted }))
}

fn check(filter: &Filter) -> Result<()> {
    refuse_if(!filter.disallowed_versions.is_empty(), "disallowed_versions", "is not supported")?;
    refuse_if(!filter.rules.is_empty(), "rules", "are not supported")
}

fn ranges(chain: &FilterChain) -> &[CidrRange] {
    chain
        .filter_chain_match
        .as_ref()
        .map_or(&[], |matches| matches.direct_source_prefix_ranges.as_slice())
}

fn network(range: &CidrRange) -> Result<IpNetwork> {
    let address = range.address_prefix.parse().ok();
    let prefix = u8::try_from(read_u32(range.prefix_len.as_ref()).unwrap_or(0)).ok();
    let whole =
        address.zip(prefix).and_then(|(address, prefix)| IpNetwork::new(address, prefix).ok());
    match whole {
        // Bits beyond the prefix say nothing.
        Some(network) => IpNetwork::new(network.network(), network.prefix())
            .or_else(|_| refuse("is not a network")),
        None => refuse("is not a network").at("direct_source_prefix_ranges"),
    }
}

/// As Envoy has it where nobody says whose word is taken.
fn everywhere() -> Vec<IpNetwork> {
    ["0.0.0.0/0", "::/0"].iter().filter_map(|network| network.parse().ok()).collect()
}

/// Puts the header in front of what `inner` sends.
pub(super) fn encode_socket(
    version: Option<ProxyVersion>,
    inner: Option<TransportSocket>,
) -> Option<TransportSocket> {
    let Some(version) = version else { return inner };
    let version = match version {
        ProxyVersion::V1 => Version::V1,
        ProxyVersion::V2 => Version::V2,
    };
    let around = ProxyProtocolUpstreamTransport {
        config: Some(ProxyProtocolConfig { version: version.into(), ..Default::default() }),
        transport_socket: Some(inner.unwrap_or_else(raw)),
        // Connections of the proxy's own are for nobody.
        allow_unspecified_address: true,
        ..Default::default()
    };
    Some(TransportSocket {
        name: "envoy.transport_sockets.upstream_proxy_protocol".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pack(&around))),
    })
}

/// The version of the header, if there is to be one, and the socket behind it.
pub(super) fn decode_socket(
    socket: Option<&TransportSocket>,
) -> Result<(Option<ProxyVersion>, Option<TransportSocket>)> {
    let around: ProxyProtocolUpstreamTransport = match socket.map(|s| &s.config_type) {
        Some(Some(ConfigType::TypedConfig(any)))
            if any.type_url == ProxyProtocolUpstreamTransport::type_url() =>
        {
            unpack(any)?
        }
        _ => return Ok((None, socket.cloned())),
    };
    let config = around.config.unwrap_or_default();
    refuse_if(!config.added_tlvs.is_empty(), "config.added_tlvs", "are not supported")?;
    refuse_if(config.pass_through_tlvs.is_some(), "config.pass_through_tlvs", "is not supported")?;
    let version = match Version::try_from(config.version) {
        Ok(Version::V1) => ProxyVersion::V1,
        Ok(Version::V2) => ProxyVersion::V2,
        Err(_) => return refuse("is not known").at("config.version"),
    };
    Ok((Some(version), around.transport_socket))
}

fn raw() -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pack(&RawBuffer {}))),
    }
}
