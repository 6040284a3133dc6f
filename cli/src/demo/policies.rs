//! The policy files of the demonstration, as a person would write them.

use std::fmt::Write as _;

use super::place::{FAVOURED, HOST, Node, Places};

/// A file of the repository.
pub(super) struct File {
    pub(super) path: &'static str,
    pub(super) text: String,
}

/// Where the traffic shift is written.
pub(super) const ROUTES: &str = "mesh/routes.yaml";
/// Where the mistake is made.
pub(super) const TRANSFER: &str = "mesh/transfer.yaml";

/// The service for the one upload that must survive.
pub(super) const ARCHIVE: &str = "archive";

/// Shares of the freight in per cent: to all regions alike, and to the favoured one only.
pub(super) const EVEN: (u32, u32) = (100, 0);
/// After the shift.
pub(super) const SHIFTED: (u32, u32) = (30, 70);

/// A field name mistyped: what is right, and what is pushed.
pub(super) const TYPO: (&str, &str) = ("replayLimit", "replayLimt");

/// Every file of the first commit.
pub(super) fn files(places: &Places) -> Vec<File> {
    let file = |path, text| File { path, text };
    vec![
        file("README.md", README.to_owned()),
        file("mesh/gateway.yaml", gateway(places)),
        file(ROUTES, routes(EVEN)),
        file("mesh/services.yaml", services(places)),
        file(TRANSFER, transfer()),
        file("mesh/archive.yaml", archive(places)),
    ]
}

/// The routes, with these shares.
pub(super) fn routes((even, favoured): (u32, u32)) -> String {
    let backends = format!(
        "    backendRefs:
    - {{group: towpath.dev, kind: Service, name: etl, weight: {even}}}
    - {{group: towpath.dev, kind: Service, name: etl-{FAVOURED}, weight: {favoured}}}
"
    );
    let mut text = format!(
        "# Batches over plain HTTP, a rule for each table.
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: ingest}}
spec:
  parentRefs: [{{name: edge, sectionName: freight}}]
  hostnames: [{HOST}]
  rules:
"
    );
    for table in ["lineitem", "orders"] {
        // writing to a String cannot fail
        let _ = write!(
            text,
            "  - matches:
    - path: {{type: PathPrefix, value: /ingest/{table}}}
      method: POST
{backends}"
        );
    }
    let _ = write!(
        text,
        "---
# The same by gRPC.
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {{name: loader}}
spec:
  parentRefs: [{{name: edge, sectionName: freight}}]
  hostnames: [{HOST}]
  rules:
  - matches:
    - method: {{service: towpath.etl.v1.Loader, method: Ingest}}
{backends}"
    );
    text
}

fn gateway(places: &Places) -> String {
    format!(
        "# Where clients come in.
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: edge
  annotations:
    towpath.dev/nodes: edge-*
    towpath.dev/bind: {}
spec:
  gatewayClassName: towpath
  listeners:
  - {{name: freight, port: {}, protocol: HTTP}}
",
        places.gateway.ip(),
        places.gateway.port()
    )
}

fn services(places: &Places) -> String {
    let mut text = "# Six workers in three regions. Each has a sidecar in front: `address` is the
# sidecar's, `app` the worker's own.
"
    .to_owned();
    text.push_str(&service("etl", places.nodes.iter(), true));
    let _ = write!(text, "---\n# The workers of {FAVOURED} alone, to shift traffic to.\n");
    let favoured = places.nodes.iter().filter(|node| node.region.name == FAVOURED);
    text.push_str(&service(&format!("etl-{FAVOURED}"), favoured, false));
    text
}

fn service<'a>(name: &str, nodes: impl Iterator<Item = &'a Node>, sidecars: bool) -> String {
    let mut text = format!(
        "apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: {name}}}
spec:
  protocol: FOLLOW
  connectTimeout: 2s
  healthCheck:
    http: {{path: /healthz}}
    interval: 500ms
    timeout: 2s
    unhealthyThreshold: 2
    healthyThreshold: 1
  endpoints:
"
    );
    for node in nodes {
        let region = node.region;
        let zone = format!("{}{}", region.name, if node.gpu { "b" } else { "a" });
        let _ = write!(
            text,
            "  - name: {}
    address: {}
    locality: {{region: {}, zone: {zone}}}
    coordinates: {{latitude: {}, longitude: {}}}
    weight: {}
",
            node.name,
            node.address,
            region.name,
            region.latitude,
            region.longitude,
            if node.gpu { 200 } else { 100 },
        );
        if node.gpu {
            let (vendor, model) = region.gpu;
            let _ = writeln!(text, "    gpu: {{vendor: {vendor}, model: {model}, count: 1}}");
        }
        if sidecars {
            let _ =
                writeln!(text, "    sidecar: {{node: {}, app: \"{}\"}}", node.sidecar(), node.app);
        }
    }
    text
}

fn transfer() -> String {
    format!(
        "# A batch is safe to repeat: its id is its Idempotency-Key.
apiVersion: towpath.dev/v1alpha1
kind: TransferPolicy
metadata: {{name: freight}}
spec:
  targetRefs:
  - {{group: towpath.dev, kind: Service, name: etl}}
  - {{group: towpath.dev, kind: Service, name: etl-{FAVOURED}}}
  timeouts: {{request: 10m, idle: 2m}}
  retry:
    attempts: 4
    conditions: [connect-failure, refused-stream, reset, status, grpc-status]
    statusCodes: [502, 503, 504]
    grpcStatusCodes: [14]
    backoff: {{base: 25ms, max: 500ms}}
    {}: 1MiB
    withIdempotencyKey: true
    budget: {{percent: 50, minConcurrent: 10}}
---
# To the worker that completes it first.
apiVersion: towpath.dev/v1alpha1
kind: BalancerPolicy
metadata: {{name: freight}}
spec:
  targetRefs:
  - {{group: towpath.dev, kind: Service, name: etl}}
  - {{group: towpath.dev, kind: Service, name: etl-{FAVOURED}}}
  policy: CompletionTime
---
apiVersion: towpath.dev/v1alpha1
kind: BreakerPolicy
metadata: {{name: freight}}
spec:
  targetRefs:
  - {{group: towpath.dev, kind: Service, name: etl}}
  - {{group: towpath.dev, kind: Service, name: etl-{FAVOURED}}}
  service: {{maxRequests: 2000, maxBytesInFlight: 4GiB}}
  endpoint: {{maxRequests: 500, maxBytesInFlight: 1GiB}}
  outlier: {{consecutiveFailures: 3, baseEjection: 2s, maxEjection: 10s, maxEjectedPercent: 50}}
",
        TYPO.0
    )
}

fn archive(places: &Places) -> String {
    let service = service(ARCHIVE, places.nodes.iter(), false);
    format!(
        "# Large files: what a worker has got of one goes to another if it dies.
{service}---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {ARCHIVE}}}
spec:
  parentRefs: [{{name: edge, sectionName: freight}}]
  hostnames: [{HOST}]
  rules:
  - matches:
    - path: {{type: PathPrefix, value: /archive}}
      method: PUT
    backendRefs:
    - {{group: towpath.dev, kind: Service, name: {ARCHIVE}}}
---
apiVersion: towpath.dev/v1alpha1
kind: TransferPolicy
metadata: {{name: {ARCHIVE}}}
spec:
  targetRefs:
  - {{group: towpath.dev, kind: Service, name: {ARCHIVE}}}
  timeouts: {{request: 10m, idle: 2m}}
  retry:
    attempts: 3
    conditions: [connect-failure, refused-stream, reset, status]
    statusCodes: [502, 503, 504]
    backoff: {{base: 25ms, max: 500ms}}
    replayDiskLimit: 8GiB
"
    )
}

const README: &str = "# The rules of the demonstration's mesh

The control plane follows this repository. Change a file in `mesh/`, commit,
and the proxies obey it a moment later; commit something wrong, and they do not.
Try the weights in `mesh/routes.yaml`.
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::place::Capacity;

    #[test]
    fn the_files_hold_what_the_story_changes() {
        let places = Places::find(Capacity { mib: 90.0, batch_ms: 1 }).unwrap();
        let files = files(&places);
        let text = |path| &files.iter().find(|file| file.path == path).unwrap().text;
        assert_eq!(text(TRANSFER).matches(TYPO.0).count(), 1);
        assert_eq!(text(ROUTES), &routes(EVEN));
        assert_ne!(routes(EVEN), routes(SHIFTED));
        assert!(text("mesh/archive.yaml").contains("replayDiskLimit"));
        for node in &places.nodes {
            assert!(text("mesh/services.yaml").contains(&node.app.to_string()));
        }
    }
}
