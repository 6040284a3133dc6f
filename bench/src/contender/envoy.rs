//! Envoy's bootstrap.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::{CommandLine, Ports, write};
use crate::case::Setup;
use crate::tools::Tools;

/// The one cluster of a bootstrap.
pub(crate) const ORIGIN: &str = "origin";

pub(super) fn prepare(
    setup: Setup,
    ports: Ports,
    tools: &Tools,
    folder: &Path,
) -> anyhow::Result<CommandLine> {
    // The default deadline of 15 s for a whole response is no limit for bulk data.
    let all = json!([{"match": {"prefix": "/"}, "route": {"cluster": ORIGIN, "timeout": "0s"}}]);
    let filter = if setup == Setup::Tcp { tcp_proxy() } else { connection_manager(all) };
    let http2 = matches!(setup, Setup::H2Small | Setup::H2Bulk | Setup::Grpc);
    let cluster = cluster(ORIGIN, http2, &[ports.origin]);
    command(tools, folder, &bootstrap(ports.listen, ports.metrics, filter, vec![cluster]))
}

/// Writes a bootstrap and gives the command line that obeys it.
pub(crate) fn command(
    tools: &Tools,
    folder: &Path,
    bootstrap: &Value,
) -> anyhow::Result<CommandLine> {
    let file = write(folder, "envoy.json", &serde_json::to_string_pretty(bootstrap)?)?;
    let mut command: CommandLine = vec![tools.envoy()?.into(), "-c".into(), file.into()];
    // One worker. Hot restart is about replacing a running Envoy, which would need a base id.
    command.extend(["--concurrency", "1", "--disable-hot-restart", "-l", "error"].map(Into::into));
    Ok(command)
}

/// One listener with one filter, which knows the clusters by their names.
pub(crate) fn bootstrap(
    listen: SocketAddr,
    metrics: SocketAddr,
    filter: Value,
    clusters: Vec<Value>,
) -> Value {
    json!({
        // Statistics are always on; the admin port serves them.
        "admin": {"address": address(metrics)},
        "static_resources": {
            "listeners": [{
                "name": "bench",
                "address": address(listen),
                "filter_chains": [{"filters": [filter]}],
            }],
            "clusters": clusters,
        },
    })
}

/// The filter for HTTP, with a list of routes for all hosts.
pub(crate) fn connection_manager(routes: Value) -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "bench",
            // The default: HTTP/1.1 or HTTP/2, whichever the client speaks.
            "codec_type": "AUTO",
            // No other contender makes a request id.
            "generate_request_id": false,
            "route_config": {
                "name": "bench",
                "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}],
            },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                },
            }],
        },
    })
}

/// The filter for anything else.
pub(crate) fn tcp_proxy() -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "bench",
            "cluster": ORIGIN,
        },
    })
}

/// Endpoints that serve the same.
pub(crate) fn cluster(name: &str, http2: bool, endpoints: &[SocketAddr]) -> Value {
    let protocol = if http2 { "http2_protocol_options" } else { "http_protocol_options" };
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|endpoint| json!({"endpoint": {"address": address(*endpoint)}}))
        .collect();
    // The default of 1024 requests and connections would refuse work, not speed it up.
    let threshold = json!({
        "max_connections": 1_000_000,
        "max_pending_requests": 1_000_000,
        "max_requests": 1_000_000,
    });
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [threshold]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {protocol: {}},
            },
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": endpoints}],
        },
    })
}

fn address(socket: SocketAddr) -> Value {
    json!({"socket_address": {"address": socket.ip().to_string(), "port_value": socket.port()}})
}
