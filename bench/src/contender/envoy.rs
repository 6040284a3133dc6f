//! Envoy's bootstrap.

use std::path::Path;

use serde_json::{Value, json};

use super::{CommandLine, Ports, write};
use crate::case::Setup;
use crate::tools::Tools;

pub(super) fn prepare(
    setup: Setup,
    ports: Ports,
    tools: &Tools,
    folder: &Path,
) -> anyhow::Result<CommandLine> {
    let text = serde_json::to_string_pretty(&bootstrap(setup, ports))?;
    let file = write(folder, "envoy.json", &text)?;
    let mut command: CommandLine = vec![tools.envoy()?.into(), "-c".into(), file.into()];
    // One worker. Hot restart is about replacing a running Envoy, which would need a base id.
    command.extend(["--concurrency", "1", "--disable-hot-restart", "-l", "error"].map(Into::into));
    Ok(command)
}

fn bootstrap(setup: Setup, ports: Ports) -> Value {
    let filter = if setup == Setup::Tcp { tcp_proxy() } else { connection_manager() };
    json!({
        // Statistics are always on; the admin port serves them.
        "admin": {"address": address(ports.metrics)},
        "static_resources": {
            "listeners": [{
                "name": "bench",
                "address": address(ports.listen),
                "filter_chains": [{"filters": [filter]}],
            }],
            "clusters": [cluster(setup, ports)],
        },
    })
}

fn connection_manager() -> Value {
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
                "virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    // The default deadline of 15 s for a whole response is no limit for bulk data.
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "origin", "timeout": "0s"}}],
                }],
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

fn tcp_proxy() -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "bench",
            "cluster": "origin",
        },
    })
}

fn cluster(setup: Setup, ports: Ports) -> Value {
    let protocol = match setup {
        Setup::H2Small | Setup::H2Bulk | Setup::Grpc => json!({"http2_protocol_options": {}}),
        Setup::H1Small | Setup::H1Bulk | Setup::Tcp => json!({"http_protocol_options": {}}),
    };
    // The default of 1024 requests and connections would refuse work, not speed it up.
    let threshold = json!({
        "max_connections": 1_000_000,
        "max_pending_requests": 1_000_000,
        "max_requests": 1_000_000,
    });
    json!({
        "name": "origin",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [threshold]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": protocol,
            },
        },
        "load_assignment": {
            "cluster_name": "origin",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(ports.origin)}}]}],
        },
    })
}

fn address(socket: std::net::SocketAddr) -> Value {
    json!({"socket_address": {"address": socket.ip().to_string(), "port_value": socket.port()}})
}
