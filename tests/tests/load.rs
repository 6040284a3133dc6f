//! Clients tell the control plane what load they make, and those who do not know what endpoints say
//! of themselves follow by the weights that it makes of that.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr, time::Duration};

use towpath_control_plane::{Running, status::ServiceFigures};
use towpath_tests::{Origin, Peer, Repository, eventually, get, listener_port};

mod common;
use common::{control_plane_asking, proxy_called};

const EVERY: Duration = Duration::from_millis(200);

/// A gateway of its own for each node, all with a route to the service `work`, whose endpoints stand
/// in regions of their own.
fn policies(nodes: &[(&str, u16)], protocol: &str, origins: &[SocketAddr]) -> String {
    let mut text = String::new();
    for (node, port) in nodes {
        let _ = write!(
            text,
            "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: {node}
  annotations: {{towpath.dev/bind: 127.0.0.1, towpath.dev/nodes: {node}}}
spec:
  gatewayClassName: towpath
  listeners: [{{name: all, port: {port}, protocol: HTTP}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {node}}}
spec:
  parentRefs: [{{name: {node}}}]
  rules: [{{backendRefs: [{{name: work}}]}}]
---
"
        );
    }
    let _ = write!(
        text,
        "apiVersion: towpath.dev/v1alpha1
kind: BalancerPolicy
metadata: {{name: work}}
spec:
  targetRefs: [{{kind: Service, name: work}}]
  policy: LeastRequest
  weights: FromLoad
---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: work}}
spec:
  protocol: {protocol}
  endpoints:
"
    );
    for (n, origin) in origins.iter().enumerate() {
        let place = format!("locality: {{region: r{n}}}");
        let _ = writeln!(text, "  - {{name: e{n}, address: \"{origin}\", {place}}}");
    }
    text
}

async fn ask(port: u16, times: usize) {
    for _ in 0..times {
        let answer = get(([127, 0, 0, 1], port).into(), "/", "any").await;
        assert_eq!(answer.map(|(status, _)| status), Some(200));
    }
}

async fn serves(port: u16) {
    eventually("the listener serves", || async {
        get(([127, 0, 0, 1], port).into(), "/", "any").await.filter(|(status, _)| *status == 200)
    })
    .await;
}

fn told(plane: &Running) -> Option<ServiceFigures> {
    plane.status().loads.into_iter().find(|load| load.service == "work")
}

fn weights(load: &ServiceFigures) -> Vec<(&str, u32)> {
    load.endpoints.iter().map(|of| (of.endpoint.as_str(), of.weight)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_sends_less_to_a_worker_that_told_our_proxies_of_its_sick_gpu() {
    let (well, sick) = (Origin::start("well").await, Origin::start("sick").await);
    well.reports("named_metrics.towpath.goodput_factor=1");
    sick.reports("named_metrics.towpath.goodput_factor=1");
    let [one, two, third] = [listener_port(), listener_port(), listener_port()];
    let nodes = [("proxy-1", one), ("proxy-2", two), ("envoy-1", third)];
    let repository = Repository::new();
    repository.commit("mesh.yaml", &policies(&nodes, "HTTP", &[well.address, sick.address]));
    let plane = control_plane_asking(&repository, EVERY).await;
    let address = plane.xds_addr.to_string();
    let _proxies =
        (proxy_called("proxy-1", &address).await, proxy_called("proxy-2", &address).await);
    let _envoy = Peer::envoy(plane.xds_addr, "DELTA_GRPC");
    for port in [one, two, third] {
        serves(port).await;
    }

    // While both are well they get the same.
    let load = eventually("both proxies tell what they do", || async {
        ask(one, 10).await;
        ask(two, 10).await;
        told(&plane).filter(|load| {
            load.endpoints.len() == 2
                && load.endpoints.iter().all(|of| {
                    of.metrics.get("towpath.goodput_factor") == Some(&1.0)
                        && of.requests_per_second > 1.0
                })
        })
    })
    .await;
    assert_eq!(weights(&load), [("e0", 100), ("e1", 100)]);
    let share = share_of(&sick, &well, third).await;
    assert!((0.4..=0.6).contains(&share), "{share}");

    sick.reports("named_metrics.towpath.goodput_factor=0.1");
    eventually("the weight follows", || async {
        ask(one, 10).await;
        ask(two, 10).await;
        told(&plane).filter(|load| weights(load) == [("e0", 100), ("e1", 10)])
    })
    .await;
    eventually("Envoy follows", || async {
        ask(one, 5).await;
        let share = share_of(&sick, &well, third).await;
        (share <= 0.2).then_some(())
    })
    .await;

    // And back.
    sick.reports("named_metrics.towpath.goodput_factor=1");
    eventually("Envoy follows back", || async {
        ask(one, 10).await;
        let share = share_of(&sick, &well, third).await;
        (share >= 0.4).then_some(())
    })
    .await;
}

/// What `origin` gets of 40 requests through this port.
async fn share_of(origin: &Origin, other: &Origin, port: u16) -> f64 {
    let before = (origin.served(), other.served());
    ask(port, 40).await;
    let (ours, others) = (origin.served() - before.0, other.served() - before.1);
    ours as f64 / (ours + others) as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn what_envoy_tells_of_its_load_is_taken() {
    let (first, second) = (Origin::start("first").await, Origin::start("second").await);
    let port = listener_port();
    let repository = Repository::new();
    let origins = [first.address, second.address];
    repository.commit("mesh.yaml", &policies(&[("envoy-1", port)], "HTTP", &origins));
    let plane = control_plane_asking(&repository, EVERY).await;
    let _envoy = Peer::envoy(plane.xds_addr, "DELTA_GRPC");
    serves(port).await;
    let load = eventually("Envoy tells what it does", || async {
        ask(port, 10).await;
        told(&plane).filter(|load| load.endpoints.len() == 2)
    })
    .await;
    assert!(load.requests_per_second > 0.0, "{load:#?}");
    assert_eq!((load.errors_per_second, weights(&load)), (0.0, vec![("e0", 100), ("e1", 100)]));
    tokio::time::timeout(Duration::from_secs(5), plane.shutdown()).await.expect("ends at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_follows_the_weights_and_tells_of_its_load() {
    let (well, sick) = (Origin::start("well").await, Origin::start("sick").await);
    well.reports("named_metrics.towpath.goodput_factor=1");
    sick.reports("named_metrics.towpath.goodput_factor=0.1");
    let port = listener_port();
    let repository = Repository::new();
    let origins = [well.address, sick.address];
    repository.commit("mesh.yaml", &policies(&[("proxy-1", port)], "HTTP2", &origins));
    let plane = control_plane_asking(&repository, EVERY).await;
    let mut client = Peer::grpc_client(plane.xds_addr, "work", 50);
    // Nobody has told anything of the endpoints yet.
    let share = |served: &BTreeMap<String, u32>| served.get("sick").copied().unwrap_or(0);
    let served = client.served().await;
    assert!((10..=40).contains(&share(&served)), "{served:?}");
    eventually("the gRPC client's load is known", || async { told(&plane) }).await;

    let _proxy = proxy_called("proxy-1", &plane.xds_addr.to_string()).await;
    serves(port).await;
    eventually("the weight follows", || async {
        ask(port, 10).await;
        told(&plane).filter(|load| weights(load).contains(&("e1", 10)))
    })
    .await;
    let mut last = BTreeMap::new();
    for _ in 0..20 {
        ask(port, 5).await;
        client.say("again").await;
        last = client.served().await;
        if share(&last) <= 10 {
            return;
        }
    }
    panic!("the gRPC client does not follow: {last:?}");
}
