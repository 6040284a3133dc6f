//! Clients of both protocol variants, and the admin endpoint.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use towpath_control_plane::{Outcome, Resolver, Running, start};
use towpath_policies::model::{Node, ResourceKey, ResourceKind, Snapshot};
use towpath_xds::{
    Flavour,
    client::{AdsClient, Options},
};

use crate::support::*;

/// A client that takes every snapshot, but none with the endpoints it is told to refuse.
pub(crate) struct Client {
    _ads: AdsClient,
    snapshots: mpsc::UnboundedReceiver<Arc<Snapshot>>,
    refused: Arc<Mutex<BTreeSet<u16>>>,
}

impl Client {
    pub(crate) fn connect(running: &Running, node: &str, flavour: Flavour) -> Self {
        let node = Node { id: node.to_owned(), cluster: "test".to_owned(), sidecar: false };
        let options = Options { flavour, ..Options::new(running.xds_addr.to_string(), node) };
        let (sender, snapshots) = mpsc::unbounded_channel();
        let refused = Arc::new(Mutex::new(BTreeSet::new()));
        let refuses = refused.clone();
        let apply = move |snapshot: Arc<Snapshot>| {
            let ports = ports(&snapshot);
            if ports.iter().any(|port| refuses.lock().unwrap().contains(port)) {
                let key = ResourceKey { kind: ResourceKind::EndpointSet, name: "etl".into() };
                return Err(vec![(key, "that port is cursed".to_owned())]);
            }
            let _ = sender.send(snapshot);
            Ok(())
        };
        Self { _ads: AdsClient::start(options, apply).unwrap(), snapshots, refused }
    }

    pub(crate) async fn next(&mut self) -> Arc<Snapshot> {
        self.snapshots.recv().await.unwrap()
    }

    /// Takes snapshots until one has the service at `port`.
    pub(crate) async fn reaches(&mut self, port: u16) -> Arc<Snapshot> {
        loop {
            let snapshot = self.next().await;
            if ports(&snapshot) == [port] {
                return snapshot;
            }
        }
    }
}

fn ports(snapshot: &Snapshot) -> Vec<u16> {
    let set = snapshot.endpoints.get("etl");
    set.map_or(vec![], |set| set.endpoints.iter().map(|e| e.address.port()).collect())
}

#[tokio::test]
async fn commits_reach_every_client_and_are_timed() {
    let repository = Repository::new();
    repository.commit_policies(&policies(9000));
    let running = started(spec(repository.path().to_str().unwrap())).await;
    let mut delta = Client::connect(&running, "delta", Flavour::Delta);
    let mut world = Client::connect(&running, "world", Flavour::StateOfTheWorld);
    delta.reaches(9000).await;
    world.reaches(9000).await;
    when(&running, |s| s.proxies.len() == 2 && s.proxies.iter().all(|p| p.in_sync)).await;

    let second = repository.commit_policies(&policies(9001));
    assert_eq!(running.refresh().await.outcome, Outcome::Applied);
    delta.reaches(9001).await;
    world.reaches(9001).await;
    let status = when(&running, |s| s.applied[0].waiting() == 0).await;
    let applied = &status.applied[0];
    assert_eq!((applied.version.as_str(), applied.proxies, applied.acked), (&*second, 2, 2));
    let (min, max) = (applied.min_ms.unwrap(), applied.max_ms.unwrap());
    assert!(applied.published_after_ms <= min && min <= max, "{applied:?}");
    for (proxy, name) in status.proxies.iter().zip(["delta", "world"]) {
        assert_eq!((proxy.node.as_str(), proxy.cluster.as_str()), (name, "test"));
        assert_eq!(proxy.version.as_deref(), Some(second.as_str()));
        assert!(proxy.in_sync && proxy.nack.is_none() && proxy.acks > 0, "{proxy:?}");
    }

    drop(delta);
    let status = when(&running, |s| s.proxies.len() == 1).await;
    assert_eq!(status.proxies[0].node, "world");
    running.shutdown().await;
}

#[tokio::test]
async fn a_refusal_points_at_the_file_until_it_is_made_good() {
    let repository = Repository::new();
    let first = repository.commit_policies(&policies(9000));
    let running = started(spec(repository.path().to_str().unwrap())).await;
    let mut client = Client::connect(&running, "edge-1", Flavour::Delta);
    client.refused.lock().unwrap().insert(6666);
    client.reaches(9000).await;
    when(&running, |s| s.proxies.iter().all(|p| p.in_sync) && s.proxies.len() == 1).await;

    let cursed = repository.commit_policies(&policies(6666));
    assert_eq!(running.refresh().await.outcome, Outcome::Applied);
    let status = when(&running, |s| s.proxies[0].nack.is_some()).await;
    let proxy = &status.proxies[0];
    let nack = proxy.nack.as_ref().unwrap();
    assert_eq!((nack.version.as_str(), nack.kind), (&*cursed, ResourceKind::EndpointSet));
    assert_eq!(nack.resources[0].name, "etl");
    let source = nack.resources[0].source.as_deref().unwrap();
    assert!(source.starts_with("policies.yaml:"), "{source}");
    let reason = nack.resources[0].reason.as_ref().unwrap_or(&nack.reason);
    assert!(reason.contains("that port is cursed"), "{nack:?}");
    assert!(!proxy.in_sync && proxy.nacks > 0);
    let status = when(&running, |s| s.applied[0].waiting() == 0).await;
    assert_eq!((status.applied[0].nacked, status.applied[0].acked), (1, 0));
    assert_ne!(first, cursed);

    let better = repository.commit_policies(&policies(9001));
    assert_eq!(running.refresh().await.outcome, Outcome::Applied);
    client.reaches(9001).await;
    let status = when(&running, |s| s.proxies[0].in_sync).await;
    assert_eq!(status.proxies[0].nack, None);
    assert_eq!(status.proxies[0].version.as_deref(), Some(better.as_str()));
}

#[tokio::test]
async fn clients_that_come_before_the_first_policies_wait_for_them() {
    let repository = Repository::new();
    let running = started(spec(repository.path().to_str().unwrap())).await;
    let mut client = Client::connect(&running, "early", Flavour::Delta);
    when(&running, |s| s.proxies.len() == 1).await;
    assert!(client.snapshots.try_recv().is_err());
    repository.commit_policies(&policies(9000));
    assert_eq!(running.refresh().await.outcome, Outcome::Applied);
    client.reaches(9000).await;
}

#[tokio::test]
async fn names_become_endpoints() {
    let text = policies(9000).replace(
        "endpoints:\n  - {address: \"127.0.0.1:9000\"}",
        "dns: {host: etl.internal, port: 9000, refresh: 1h}",
    );
    let folder = folder_of(&[("a.yaml", &text)]);
    let mut config = config(spec(folder.path().to_str().unwrap()));
    config.resolver = Resolver::new(|host, port| async move {
        assert_eq!(host, "etl.internal");
        Ok(vec![SocketAddr::from(([10, 0, 0, 2], port)), SocketAddr::from(([10, 0, 0, 1], port))])
    });
    let running = start(config).await.unwrap();
    let mut client = Client::connect(&running, "edge", Flavour::Delta);
    let snapshot = client.next().await;
    assert_eq!(ports(&snapshot), [9000, 9000]);
    assert_eq!(snapshot.endpoints["etl"].endpoints[0].name, "10.0.0.1:9000");
    let names = running.status().names;
    assert_eq!((names[0].host.as_str(), names[0].addresses), ("etl.internal:9000", 2));
}

/// One request; status code and body.
pub(crate) async fn http(admin: SocketAddr, method: &str, path: &str, host: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn the_admin_endpoint_answers() {
    let repository = Repository::new();
    repository.commit_policies(&broken_policies());
    let running = started(spec(repository.path().to_str().unwrap())).await;
    let ask = |method, path| http(running.admin_addr, method, path, "localhost");
    assert_eq!(ask("GET", "/live").await.0, 200);
    assert_eq!(ask("GET", "/ready").await.0, 503);
    let (code, body) = ask("POST", "/refresh").await;
    assert!(code == 422 && body.contains("\"line\":15"), "{code} {body}");

    let good = repository.commit_policies(&policies(9000));
    let (code, body) = ask("POST", "/refresh").await;
    assert!(code == 200 && body.contains(&good), "{code} {body}");
    assert_eq!(ask("GET", "/ready").await.0, 200);
    let (_, body) = ask("GET", "/status").await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&body).unwrap()["ready"], true);
    let (_, body) = ask("GET", "/snapshot?node=edge").await;
    let dump: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(dump["snapshot"]["version"], good);
    let sources = dump["sources"].as_array().unwrap();
    let gateway = sources.iter().find(|source| source["name"] == "gateway/edge/8080").unwrap();
    let source = gateway["source"].as_str().unwrap();
    assert!(source.starts_with("policies.yaml:") && gateway["kind"] == "listener", "{gateway}");
    let programmed = async || {
        let (_, body) = ask("GET", "/conditions").await;
        let list: serde_json::Value = serde_json::from_str(&body).unwrap();
        let items = list["items"].as_array().unwrap();
        let gateway = items.iter().find(|item| item["kind"] == "Gateway").unwrap().clone();
        let conditions = gateway["status"]["conditions"].as_array().unwrap();
        let found = conditions.iter().find(|condition| condition["type"] == "Programmed");
        found.unwrap()["status"] == "True"
    };
    assert!(!programmed().await, "no proxy is there");
    let (_, body) = ask("GET", "/metrics").await;
    for line in [
        "towpath_control_plane_ready 1",
        "towpath_control_plane_snapshots_total 1",
        "towpath_control_plane_rejects_total 1",
        "towpath_control_plane_apply_seconds_count 0",
    ] {
        assert!(body.lines().any(|l| l == line), "{line} is not in {body}");
    }
    let mut client = Client::connect(&running, "edge", Flavour::Delta);
    client.next().await;
    when(&running, |s| s.proxies.len() == 1 && s.proxies[0].in_sync).await;
    assert!(programmed().await, "a proxy has acknowledged it");
    assert_eq!(http(running.admin_addr, "GET", "/status", "evil.example").await.0, 403);
    assert_eq!(ask("GET", "/refresh").await.0, 405);
}
