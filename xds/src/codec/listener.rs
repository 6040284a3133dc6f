//! [`Listener`] ↔ Envoy's (LDS).

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::listener::v3::{
            self as lds, ApiListener, Filter, FilterChain, FilterChainMatch, ListenerFilter,
            filter, listener_filter,
        },
        extensions::filters::{
            listener::tls_inspector::v3::TlsInspector,
            network::{
                http_connection_manager::v3::HttpConnectionManager,
                tcp_proxy::v3::{
                    TcpProxy,
                    tcp_proxy::{
                        ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight,
                    },
                },
            },
        },
    },
    google::protobuf::Any,
};
use prost::Name;
use towpath_policies::model::{
    Bind, Chain, ChainKind, HttpOptions, Listener, Location, Only, RouteTable, TcpForward,
    WeightedBackend,
};

use super::{
    DecodedListener,
    common::{
        At, Result, address, duration, pack, read_address, refuse, refuse_if, timeout, unpack,
    },
    extension::Extra,
    http, proxy_protocol, redirected, route, tls,
};

pub(super) type Pb = lds::Listener;

pub(super) fn encode(listener: &Listener) -> Pb {
    let mut pb = Pb { name: listener.name.clone(), ..Default::default() };
    let mut extra = Extra::default();
    match &listener.bind {
        Bind::Socket(socket) => {
            encode_socket(*socket, listener, &mut pb);
            if listener.chains.iter().any(|chain| !chain.server_names.is_empty()) {
                pb.listener_filters = vec![tls_inspector()];
            }
            if let Some(terms) = &listener.proxy_protocol {
                proxy_protocol::encode(terms, &mut pb);
            }
        }
        Bind::Redirected(bind) => {
            encode_socket(bind.address, listener, &mut pb);
            // What no other chain takes, Envoy gives to a chain that is beside them.
            let takes_all = |chain: &Chain| chain.only.takes_all() && chain.server_names.is_empty();
            if listener.chains.last().is_some_and(takes_all) {
                pb.default_filter_chain = pb.filter_chains.pop();
            }
            redirected::encode(bind, &listener.chains, &mut pb);
            let carried = redirected::decode(&pb, bind.address).ok().flatten();
            extra.keep("redirected", &Some(bind), &carried.as_ref());
        }
        Bind::Api => {
            let http = listener.chains.iter().find_map(|chain| match &chain.kind {
                ChainKind::Http { route_table, options } => Some((route_table, options)),
                ChainKind::Tcp(_) => None,
            });
            if let Some((route_table, options)) = http {
                let hcm = http::encode(&listener.name, route_table, options, true);
                pb.api_listener = Some(ApiListener { api_listener: Some(pack(&hcm)) });
                extra = lost(&hcm, options);
            }
        }
    }
    extra.keep("location", &listener.location, &Location::default());
    pb.metadata = extra.into_metadata();
    pb
}

fn encode_socket(socket: SocketAddr, listener: &Listener, pb: &mut Pb) {
    pb.address = Some(address(socket));
    let chains = listener.chains.iter().enumerate();
    pb.filter_chains = chains.map(|(i, chain)| encode_chain(&listener.name, i, chain)).collect();
}

fn encode_chain(listener: &str, index: usize, chain: &Chain) -> FilterChain {
    let (filter, extra) = match &chain.kind {
        ChainKind::Http { route_table, options } => {
            let hcm = http::encode(listener, route_table, options, false);
            let extra = lost(&hcm, options);
            (filter("envoy.filters.network.http_connection_manager", pack(&hcm)), extra)
        }
        ChainKind::Tcp(tcp) => (
            filter("envoy.filters.network.tcp_proxy", pack(&encode_tcp(listener, tcp))),
            Extra::default(),
        ),
    };
    let narrows = !chain.server_names.is_empty() || !chain.only.takes_all();
    FilterChain {
        name: index.to_string(),
        filter_chain_match: narrows.then(|| {
            let server_names = chain.server_names.clone();
            let mut matches = FilterChainMatch { server_names, ..Default::default() };
            redirected::encode_only(&chain.only, &mut matches);
            matches
        }),
        filters: vec![filter],
        transport_socket: chain.tls.as_ref().map(tls::encode_server),
        metadata: extra.into_metadata(),
        ..Default::default()
    }
}

/// HTTP options that the standard part of an encoded HCM does not say.
fn lost(hcm: &HttpConnectionManager, options: &HttpOptions) -> Extra {
    let mut extra = Extra::default();
    match http::decode(hcm) {
        Ok((_, carried)) => extra.keep("http", options, &carried),
        Err(_) => extra.set("http", options),
    }
    extra
}

fn encode_tcp(listener: &str, tcp: &TcpForward) -> TcpProxy {
    // Envoy wants every weight positive; a backend of weight 0 draws nothing.
    let clusters = tcp.backends.iter().filter(|b| b.weight > 0).map(|b| ClusterWeight {
        name: b.service.clone(),
        weight: b.weight,
        ..Default::default()
    });
    TcpProxy {
        stat_prefix: listener.to_owned(),
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: clusters.collect(),
        })),
        idle_timeout: Some(duration(tcp.idle_timeout.unwrap_or_default())),
        ..Default::default()
    }
}

fn filter(name: &str, config: Any) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}

fn tls_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack(&TlsInspector::default()))),
        ..Default::default()
    }
}

pub(super) fn decode(pb: &Pb) -> Result<DecodedListener> {
    refuse_if(pb.name.is_empty(), "name", "must not be empty")?;
    let mut inline = Vec::new();
    let mut extra = Extra::read(pb.metadata.as_ref())?;
    let mut location = Location::default();
    extra.restore("location", &mut location)?;
    let odd = location.coordinates.is_some_and(|at| !at.on_earth());
    refuse_if(odd, "location.coordinates", "out of range")?;
    let mut proxy_protocol = None;
    let (bind, chains) = match &pb.api_listener {
        Some(api) => {
            let any = api.api_listener.clone().unwrap_or_default();
            let hcm: HttpConnectionManager = unpack(&any).at("api_listener")?;
            let kind = decode_http(&pb.name, &hcm, extra, &mut inline).at("api_listener")?;
            (Bind::Api, vec![Chain::new(Vec::new(), None, kind)])
        }
        None => {
            check_supported(pb)?;
            proxy_protocol = proxy_protocol::decode(pb)?;
            let socket = read_address(pb.address.as_ref()).at("address")?;
            let mut bind = redirected::decode(pb, socket)?;
            extra.restore("redirected", &mut bind)?;
            refuse_if(
                bind.is_some() && proxy_protocol.is_some(),
                "listener_filters",
                "the PROXY protocol and original_dst are not supported together",
            )?;
            let chains = decode_chains(pb, bind.is_some(), &mut inline)?;
            (bind.map_or(Bind::Socket(socket), Bind::Redirected), chains)
        }
    };
    let name = pb.name.clone();
    let listener = Arc::new(Listener { name, bind, chains, location, proxy_protocol });
    Ok(DecodedListener { listener, inline })
}

/// Refuses what would change who is served, or how, and is not done.
fn check_supported(pb: &Pb) -> Result<()> {
    refuse_if(!pb.additional_addresses.is_empty(), "additional_addresses", "are not supported")?;
    refuse_if(pb.fcds_config.is_some(), "fcds_config", "is not supported")?;
    refuse_if(pb.filter_chain_matcher.is_some(), "filter_chain_matcher", "is not supported")?;
    refuse_if(pb.udp_listener_config.is_some(), "udp_listener_config", "is not supported")?;
    refuse_if(pb.listener_specifier.is_some(), "internal_listener", "is not supported")?;
    refuse_if(
        pb.bind_to_port.as_ref().is_some_and(|bind| !bind.value),
        "bind_to_port",
        "listeners that do not bind are not supported",
    )?;
    Ok(())
}

fn decode_chains(
    pb: &Pb,
    redirected: bool,
    inline: &mut Vec<Arc<RouteTable>>,
) -> Result<Vec<Chain>> {
    let mut seen = HashSet::new();
    let mut chains: Vec<Chain> = Vec::new();
    let all = pb.filter_chains.iter().chain(&pb.default_filter_chain);
    for (i, chain) in all.enumerate() {
        let chain =
            decode_chain(&pb.name, chain, redirected, inline).at_index("filter_chains", i)?;
        if !seen.insert((chain.server_names.clone(), chain.only.clone())) {
            return refuse("another chain matches the same connections")
                .at_index("filter_chains", i);
        }
        chains.push(chain);
    }
    refuse_if(chains.is_empty(), "filter_chains", "must not be empty")?;
    Ok(chains)
}

fn decode_chain(
    listener: &str,
    pb: &FilterChain,
    redirected: bool,
    inline: &mut Vec<Arc<RouteTable>>,
) -> Result<Chain> {
    let (server_names, only) = match &pb.filter_chain_match {
        Some(matches) => decode_match(matches, redirected).at("filter_chain_match")?,
        None => (Vec::new(), Only::default()),
    };
    let [filter] = pb.filters.as_slice() else {
        return refuse("exactly one filter is supported: http_connection_manager or tcp_proxy")
            .at("filters");
    };
    let Some(filter::ConfigType::TypedConfig(any)) = &filter.config_type else {
        return refuse("needs a typed_config").at("filters[0]");
    };
    let kind = if any.type_url == TcpProxy::type_url() {
        decode_tcp(&unpack(any)?).map(ChainKind::Tcp).at("tcp_proxy")?
    } else {
        let hcm: HttpConnectionManager = unpack(any).at("filters[0]")?;
        let extra = Extra::read(pb.metadata.as_ref())?;
        decode_http(listener, &hcm, extra, inline).at("http_connection_manager")?
    };
    let tls = tls::decode_server(pb.transport_socket.as_ref()).at("transport_socket")?;
    Ok(Chain { server_names, tls, kind, only })
}

/// Server names, and where connections are redirected what else is matched.
fn decode_match(pb: &FilterChainMatch, redirected: bool) -> Result<(Vec<String>, Only)> {
    let narrows = !pb.address_suffix.is_empty()
        || pb.suffix_len.is_some()
        || pb.source_type != 0
        || !pb.source_prefix_ranges.is_empty()
        || !pb.source_ports.is_empty();
    let by_destination = pb.destination_port.is_some()
        || !pb.prefix_ranges.is_empty()
        || !pb.application_protocols.is_empty();
    if narrows || by_destination && !redirected {
        return refuse(
            "only server_names can be matched, and destinations of redirected connections",
        );
    }
    let server_names: Vec<String> =
        pb.server_names.iter().map(|name| name.to_ascii_lowercase()).collect();
    if redirected {
        return Ok((server_names, redirected::decode_only(pb)?));
    }
    match pb.transport_protocol.as_str() {
        "" => {}
        "tls" if !server_names.is_empty() => {}
        other => return refuse(format!("transport_protocol {other:?} cannot be matched")),
    }
    Ok((server_names, Only::default()))
}

fn decode_http(
    listener: &str,
    hcm: &HttpConnectionManager,
    mut extra: Extra,
    inline: &mut Vec<Arc<RouteTable>>,
) -> Result<ChainKind> {
    let (routes, mut options) = http::decode(hcm)?;
    extra.restore("http", &mut options)?;
    let route_table = match routes {
        http::Routes::Named(name) => name,
        http::Routes::Inline(mut table) => {
            // Inline tables have names of their own choice, or none.
            table.name = format!("inline/{listener}/{}", inline.len());
            let table = route::decode(&table).at("route_config")?;
            let name = table.name.clone();
            inline.push(Arc::new(table));
            name
        }
    };
    Ok(ChainKind::Http { route_table, options })
}

fn decode_tcp(pb: &TcpProxy) -> Result<TcpForward> {
    refuse_if(pb.tunneling_config.is_some(), "tunneling_config", "is not supported")?;
    refuse_if(pb.metadata_match.is_some(), "metadata_match", "endpoint subsets are not supported")?;
    let backend = |name: &str, weight| WeightedBackend { weight, ..WeightedBackend::new(name) };
    let backends: Vec<WeightedBackend> = match &pb.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => vec![backend(name, 1)],
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            weighted.clusters.iter().map(|c| backend(&c.name, c.weight)).collect()
        }
        None => Vec::new(),
    };
    let sum = backends.iter().try_fold(0u32, |sum, b| sum.checked_add(b.weight));
    let named = backends.iter().all(|b| !b.service.is_empty());
    if !named || sum.unwrap_or(0) == 0 {
        return refuse("needs a cluster, or weighted_clusters with a positive sum below 2^32");
    }
    let idle_timeout = timeout(pb.idle_timeout.as_ref(), Some(DEFAULT_TCP_IDLE), "idle_timeout")?;
    Ok(TcpForward { backends, idle_timeout })
}

/// Envoy's default.
const DEFAULT_TCP_IDLE: Duration = Duration::from_secs(3600);
