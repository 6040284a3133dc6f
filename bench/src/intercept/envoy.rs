//! Envoy as a sidecar: what is redirected to it goes on to where it was meant to go.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use serde_json::{Value, json};

use crate::contender::{CommandLine, envoy};
use crate::tools::Tools;

/// Writes a bootstrap for a sidecar that takes connections at `port`, as HTTP or as they are.
pub(super) fn prepare(
    http: bool,
    port: u16,
    metrics: SocketAddr,
    tools: &Tools,
    folder: &Path,
) -> anyhow::Result<CommandLine> {
    let all = json!([{
        "match": {"prefix": "/"},
        "route": {"cluster": envoy::ORIGIN, "timeout": "0s"},
    }]);
    let filter = if http { envoy::connection_manager(all) } else { envoy::tcp_proxy() };
    let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let mut bootstrap = envoy::bootstrap(listen, metrics, filter, vec![cluster()]);
    bootstrap["static_resources"]["listeners"][0]["listener_filters"] = json!([{
        "name": "envoy.filters.listener.original_dst",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
        },
    }]);
    envoy::command(tools, folder, &bootstrap)
}

/// Wherever a connection was meant to go.
fn cluster() -> Value {
    let mut cluster = envoy::cluster(envoy::ORIGIN, false, &[]);
    cluster["type"] = json!("ORIGINAL_DST");
    cluster["lb_policy"] = json!("CLUSTER_PROVIDED");
    if let Some(cluster) = cluster.as_object_mut() {
        cluster.remove("load_assignment");
    }
    cluster
}
