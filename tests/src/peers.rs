//! Real programs of others, started beside ours.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// The path of a tool that `./test` installed.
///
/// # Panics
/// When it is not there: a missing peer is a failure, never a skip.
pub fn tool(relative: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools").join(relative);
    assert!(path.exists(), "{relative} is not installed; run: ./test tools");
    path
}

/// A running peer with its standard input and output at hand; killed on drop.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    /// Starts a program with arguments and environment.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", program.display()));
        let input = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, input, lines }
    }

    /// A real Envoy, the node `envoy-1`, that is told nothing but where its control plane is, and tells
    /// it of its load. `api_type`: `DELTA_GRPC`, or `GRPC` for the state of the world.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn envoy(xds: SocketAddr, api_type: &str) -> Self {
        let config = envoy_config(xds, api_type);
        // Hot restart alone would need to tell it from others on this machine.
        let arguments = [
            "--config-yaml",
            &config,
            "--disable-hot-restart",
            "--concurrency",
            "1",
            "-l",
            "error",
        ];
        Self::start(&tool("envoy/bin/envoy"), &arguments, &[])
    }

    /// A real gRPC client (C-core) that knows the mesh only as `xds:///SERVICE`. It makes so many calls
    /// and tells who [served](Peer::served) them, and makes as many again for each line it is told.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn grpc_client(xds: SocketAddr, service: &str, calls: u32) -> Self {
        let bootstrap = serde_json::json!({
            "xds_servers": [{
                "server_uri": xds.to_string(),
                "channel_creds": [{ "type": "insecure" }],
                "server_features": ["xds_v3"],
            }],
            "node": { "id": "grpc-client" },
        });
        Self::start(
            &tool("grpc/bin/python"),
            &[
                concat!(env!("CARGO_MANIFEST_DIR"), "/clients/grpc_xds.py"),
                &format!("xds:///{service}"),
                &calls.to_string(),
            ],
            &[("GRPC_XDS_BOOTSTRAP_CONFIG", &bootstrap.to_string())],
        )
    }

    /// The next line it prints.
    ///
    /// # Panics
    /// When it ends instead, or says nothing for 60 s.
    pub async fn line(&mut self) -> String {
        self.line_within(Duration::from_secs(60)).await
    }

    /// As [`Peer::line`], for one that may be long at work.
    ///
    /// # Panics
    /// When it ends instead, or says nothing in that time.
    pub async fn line_within(&mut self, time: Duration) -> String {
        let next = tokio::time::timeout(time, self.lines.next_line());
        match next.await.expect("a line in time").expect("readable output") {
            Some(line) => line,
            None => panic!("the peer ended: {:?}", self.child.wait().await),
        }
    }

    /// Gives it a line to read.
    ///
    /// # Panics
    /// When it no longer reads.
    pub async fn say(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.expect("the peer reads");
    }

    /// Of a gRPC client: how many calls each endpoint served, by its name.
    ///
    /// # Panics
    /// When it says something else.
    pub async fn served(&mut self) -> BTreeMap<String, u32> {
        let line = self.line().await;
        let part = |part: &str| {
            let (name, calls) = part.split_once('=')?;
            Some((name.to_owned(), calls.parse().ok()?))
        };
        let served: Option<_> = line.split(' ').map(part).collect();
        served.unwrap_or_else(|| panic!("who served how many calls, not {line:?}"))
    }
}

fn envoy_config(xds: SocketAddr, api_type: &str) -> String {
    let server = "{envoy_grpc: {cluster_name: plane}}";
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    format!(
        "node: {{id: envoy-1, cluster: edge}}
cluster_manager:
  load_stats_config:
    api_type: GRPC
    transport_api_version: V3
    grpc_services: [{server}]
dynamic_resources:
  ads_config:
    api_type: {api_type}
    transport_api_version: V3
    grpc_services: [{server}]
  lds_config: {{resource_api_version: V3, ads: {{}}}}
  cds_config: {{resource_api_version: V3, ads: {{}}}}
static_resources:
  clusters:
  - name: plane
    type: STATIC
    typed_extension_protocol_options:
      {options}:
        '@type': type.googleapis.com/{options}
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: plane
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}
",
        xds.ip(),
        xds.port()
    )
}
