//! A real Envoy, started with nothing but a bootstrap that points at our
//! control plane, serves the quickstart's routes and follows its commits.

use std::{net::SocketAddr, time::Duration};

use towpath_control_plane::status::Finding;
use towpath_tests::{Origin, Peer, Repository, eventually, free_port, get};

mod common;
use common::{control_plane, quickstart};

#[tokio::test(flavor = "multi_thread")]
async fn envoy_serves_the_quickstart_by_delta_xds() {
    serves_the_quickstart("DELTA_GRPC").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_serves_the_quickstart_by_state_of_the_world_xds() {
    serves_the_quickstart("GRPC").await;
}

async fn serves_the_quickstart(api_type: &str) {
    let (first, second) = (Origin::start("first").await, Origin::start("second").await);
    let port = free_port();
    let repository = Repository::new();
    repository.commit("mesh.yaml", &quickstart(port, first.address, first.address));
    let plane = control_plane(&repository).await;

    let _envoy = Peer::envoy(plane.xds_addr, api_type);
    let envoy = SocketAddr::from(([127, 0, 0, 1], port));

    let answer = eventually("Envoy serves the first origin", || async {
        get(envoy, "/ingest/a", "any").await.filter(|(status, _)| *status == 200)
    })
    .await;
    assert_eq!(answer.1, "first GET /ingest/a 0");
    assert_eq!(get(envoy, "/elsewhere", "any").await.map(|a| a.0), Some(404));

    // A commit moves the traffic.
    let commit = repository.commit("mesh.yaml", &quickstart(port, second.address, second.address));
    plane.refresh().await;
    eventually("Envoy follows the commit", || async {
        get(envoy, "/ingest/a", "any").await.filter(|(_, body)| body.starts_with("second"))
    })
    .await;

    // A broken commit harms nothing, and the status says where it is wrong.
    let broken = quickstart(port, first.address, first.address).replace("    port:", "    prot:");
    let broken_line =
        1 + broken.lines().position(|l| l.contains("prot:")).expect("it is there") as u32;
    repository.commit("mesh.yaml", &broken);
    plane.refresh().await;
    let status = plane.status();
    assert_eq!(status.current.map(|c| c.version), Some(commit));
    let findings = status.rejected.expect("the broken commit is refused").diagnostics;
    let points_at_it = |f: &Finding| f.file.to_str() == Some("mesh.yaml") && f.line == broken_line;
    assert!(findings.iter().any(points_at_it), "{findings:#?}");
    let (code, body) = get(envoy, "/ingest/a", "any").await.expect("Envoy still answers");
    assert_eq!((code, body.as_str()), (200, "second GET /ingest/a 0"));

    // Envoy acknowledged all of it.
    eventually("Envoy holds the commit", || async {
        let status = plane.status();
        let proxy = status.proxies.iter().find(|p| p.node == "envoy-1")?;
        (proxy.in_sync && proxy.nacks == 0).then_some(())
    })
    .await;
    tokio::time::timeout(Duration::from_secs(5), plane.shutdown()).await.expect("ends at once");
    let (code, _) = get(envoy, "/ingest/a", "any").await.expect("Envoy goes on without us");
    assert_eq!(code, 200);
}

/// What has no socket of its own, and what goes on to where it was going: in Envoy's own words.
#[tokio::test(flavor = "multi_thread")]
async fn envoy_takes_listeners_to_which_connections_are_redirected() {
    let repository = Repository::new();
    let commit = repository.commit("mesh.yaml", &redirected(free_port(), free_port()));
    let plane = control_plane(&repository).await;
    let _envoy = Peer::envoy(plane.xds_addr, "DELTA_GRPC");
    let nacks = eventually("Envoy's verdict", || async {
        let status = plane.status();
        let proxy = status.proxies.iter().find(|p| p.node == "envoy-1")?;
        (proxy.in_sync || proxy.nacks > 0).then_some(proxy.nacks)
    })
    .await;
    let status = plane.status();
    assert_eq!(nacks, 0, "{:#?}", status.proxies);
    assert_eq!(status.current.map(|c| c.version), Some(commit));
}

fn redirected(outbound: u16, inbound: u16) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: sidecars
  annotations: {{towpath.dev/nodes: envoy-1, towpath.dev/bind: 127.0.0.1, towpath.dev/tproxy: \"true\"}}
spec:
  gatewayClassName: towpath
  listeners:
  - {{name: outbound, port: {outbound}, protocol: towpath.dev/Outbound}}
  - {{name: inbound, port: {inbound}, protocol: towpath.dev/Inbound}}
---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: db}}
spec:
  protocol: TCP
  addresses: [10.96.0.5, \"[fd00::5]:5432\"]
  endpoints: [{{address: \"10.1.0.5:5432\", sidecar: {{node: envoy-1}}}}]
---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: lake}}
spec:
  addresses: [10.97.0.0/16]
  endpoints: [{{address: \"10.1.0.6:9000\", sidecar: {{node: envoy-1}}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: lake}}
spec:
  parentRefs: [{{name: sidecars}}]
  hostnames: [lake.test]
  rules: [{{backendRefs: [{{name: lake}}]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {{name: lake}}
spec:
  parentRefs: [{{name: sidecars}}]
  hostnames: [lake.test]
  rules: [{{backendRefs: [{{name: lake}}]}}]
"
    )
}
