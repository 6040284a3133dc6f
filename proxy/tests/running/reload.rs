//! Configurations that change.

use std::{fs, net::SocketAddr, os::unix::fs::symlink, path::Path};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towpath_policies::model::*;
use towpath_proxy::{Config, Running, SourceConfig};

use crate::support::*;

/// As [`policies`], of one TCP listener.
fn tcp_policies(port: u16, endpoint: SocketAddr) -> String {
    policies(&[("TCP", port, endpoint)])
}

async fn following(folder: &Path) -> Running {
    let source = SourceConfig::Folder { folder: folder.to_owned(), node: Node::default() };
    towpath_proxy::start(Config::new(source)).await.unwrap()
}

async fn says(proxy: &Running, text: &str) {
    let name = proxy.listener_addrs().keys().next().unwrap().clone();
    eventually(text, || async { (told(proxy, &name).await == text).then_some(()) }).await;
}

#[tokio::test]
async fn a_folder_is_followed_and_mistakes_in_it_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edge.yaml");
    let (one, two) = (named("one").await, named("two").await);
    let port = dead().await.port();
    fs::write(&file, tcp_policies(port, one.address)).unwrap();
    let proxy = following(folder.path()).await;
    says(&proxy, "one").await;
    let first = proxy.version();

    fs::write(&file, tcp_policies(port, one.address).replace("backendRefs", "backendReefs"))
        .unwrap();
    eventually("the mistake", || async {
        let source = admin_json(&proxy, "/config_dump").await["source"].clone();
        let errors: Vec<&str> =
            source["errors"].as_array()?.iter().filter_map(|e| e.as_str()).collect();
        errors
            .iter()
            .any(|e| e.starts_with("edge.yaml:16:5: error") && e.contains("backendReefs"))
            .then_some(())
    })
    .await;
    assert_eq!(proxy.version(), first);
    says(&proxy, "one").await;

    fs::write(&file, tcp_policies(port, two.address)).unwrap();
    says(&proxy, "two").await;
    assert_ne!(proxy.version(), first);
    let source = &admin_json(&proxy, "/config_dump").await["source"];
    assert_eq!(source["errors"].as_array().map(Vec::len), Some(0), "{source}");
}

#[tokio::test]
async fn a_folder_swapped_by_a_symbolic_link_is_followed() {
    let root = tempfile::tempdir().unwrap();
    let mounted = root.path().join("mounted");
    let (one, two) = (named("one").await, named("two").await);
    let port = dead().await.port();
    // As the kubelet mounts a ConfigMap.
    for (version, endpoint) in [("..v1", one.address), ("..v2", two.address)] {
        fs::create_dir_all(mounted.join(version)).unwrap();
        fs::write(mounted.join(version).join("edge.yaml"), tcp_policies(port, endpoint)).unwrap();
    }
    symlink("..v1", mounted.join("..data")).unwrap();
    symlink("..data/edge.yaml", mounted.join("edge.yaml")).unwrap();
    let proxy = following(&mounted).await;
    says(&proxy, "one").await;
    symlink("..v2", mounted.join("..data_tmp")).unwrap();
    fs::rename(mounted.join("..data_tmp"), mounted.join("..data")).unwrap();
    says(&proxy, "two").await;
}

#[tokio::test]
async fn a_folder_with_mistakes_is_no_start_and_the_mistake_is_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("edge.yaml"), "apiVersion: towpath.dev/v1alpha1\nkind: Sevice\n")
        .unwrap();
    let source = SourceConfig::Folder { folder: folder.path().into(), node: Node::default() };
    // Not even where the address of the admin endpoint is taken: that is not the first thing to mend.
    let taken = named("another proxy").await;
    let config = Config { admin: Some(taken.address), ..Config::new(source) };
    let error = towpath_proxy::start(config).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("edge.yaml:2") && text.contains("Sevice"), "{text}");
}

#[tokio::test]
async fn changed_endpoints_leave_the_listener_and_its_connections_alone() {
    let (old, new) = (echo().await, named("new").await);
    let world = |at| World::default().service("s", Protocol::Tcp, &[at]).tcp("in", "s");
    let proxy = proxy_with(world(old.address)).await;
    let address = proxy.listener_addrs()["in"];
    let mut open = connect(&proxy, "in").await;
    let mut byte = [0];
    open.write_all(b"1").await.unwrap();
    open.read_exact(&mut byte).await.unwrap();
    proxy.apply(world(new.address).build("v2")).unwrap();
    assert_eq!(proxy.listener_addrs()["in"], address);
    assert_eq!(told(&proxy, "in").await, "new");
    open.write_all(b"2").await.unwrap();
    open.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"2");
}

#[tokio::test]
async fn the_next_request_of_an_open_connection_takes_the_new_route() {
    let (one, two) = (web("one").await, web("two").await);
    let world = |to: &str| {
        World::default()
            .service("one", Protocol::Http1, &[one.address])
            .service("two", Protocol::Http1, &[two.address])
            .http("in", to)
    };
    let proxy = proxy_with(world("one")).await;
    let mut client = connect(&proxy, "in").await;
    assert_eq!(get(&mut client, "/").await.1, "one");
    proxy.apply(world("two").build("v2")).unwrap();
    assert_eq!(get(&mut client, "/").await.1, "two");
}

#[tokio::test]
async fn counters_of_a_service_survive_a_change_of_its_terms() {
    let origin = named("x").await;
    let service = Service::new("kept", Protocol::Tcp);
    let world = |service| {
        World::default().service_with(service, &[origin.address]).tcp("in", "kept").build("v")
    };
    let proxy = proxy().await;
    proxy.apply(world(service.clone())).unwrap();
    told(&proxy, "in").await;
    let mut changed = service;
    changed.breaker.service.max_requests = Some(7);
    proxy.apply(world(changed)).unwrap();
    told(&proxy, "in").await;
    let endpoints = admin_json(&proxy, "/endpoints").await;
    assert_eq!(endpoints["kept"]["endpoints"][0]["picks_total"], 2);
}

#[tokio::test]
async fn metrics_forget_routes_that_are_in_force_no_more_or_never_were() {
    let origin = web("x").await;
    let world = || World::default().service("s", Protocol::Http1, &[origin.address]);
    let proxy = proxy_with(world().http("counted-a", "s").http("counted-b", "s")).await;
    let shows = async |route: &str| {
        let (_, text) = admin(&proxy, "GET", "/metrics").await;
        text.contains(&format!("route=\"{route}/all\""))
    };
    assert!(shows("counted-a").await && shows("counted-b").await);
    proxy.apply(world().http("counted-c", "s").http("counted-b", "s").build("v2")).unwrap();
    assert!(!shows("counted-a").await);
    assert!(shows("counted-b").await && shows("counted-c").await);
    let chain = Chain::new(vec![], None, http("nowhere"));
    let wrong = world().http("counted-b", "s").http("counted-d", "s").listener("in", vec![chain]);
    proxy.apply(wrong.build("v3")).unwrap_err();
    assert!(!shows("counted-d").await);
    assert!(shows("counted-b").await && shows("counted-c").await, "these are still in force");
}

#[tokio::test]
async fn a_name_is_resolved_where_nobody_delivers_its_endpoints() {
    let origin = named("found").await;
    let mut service = Service::new("s", Protocol::Tcp);
    let refresh = std::time::Duration::from_secs(30);
    let port = origin.address.port();
    service.discovery = Discovery::Dns { host: "localhost".into(), port, refresh };
    let mut world =
        (*World::default().service_with(service, &[]).tcp("in", "s").build("v1")).clone();
    world.endpoints.clear();
    let proxy = proxy().await;
    proxy.apply(world.into()).unwrap();
    eventually("the endpoint", || async {
        let endpoints = admin_json(&proxy, "/endpoints").await;
        let found = endpoints["s"]["endpoints"]
            .as_array()?
            .iter()
            .any(|e| e["address"] == format!("127.0.0.1:{port}"));
        found.then_some(())
    })
    .await;
    assert_eq!(told(&proxy, "in").await, "found");
}

#[tokio::test]
async fn a_socket_passes_to_the_listener_that_takes_its_address() {
    let (one, two) = (named("one").await, named("two").await);
    let services = World::default().service("one", Protocol::Tcp, &[one.address]).service(
        "two",
        Protocol::Tcp,
        &[two.address],
    );
    let chain = |service| vec![Chain::new(vec![], None, tcp(service))];
    let at = dead().await;
    let proxy = proxy_with(services.clone().listener_at("before", at, chain("one"))).await;
    assert_eq!(told(&proxy, "before").await, "one");
    proxy.apply(services.clone().listener_at("after", at, chain("two")).build("v2")).unwrap();
    // The task that accepted before may still take a connection it was woken for.
    eventually("the new service", || async {
        (told(&proxy, "after").await == "two").then_some(())
    })
    .await;
    let taken = services.listener_at("after", at, chain("two")).listener_at("x", at, chain("one"));
    let rejections = proxy.apply(taken.build("v3")).unwrap_err();
    assert_eq!(rejections[0].key.name, "x");
    assert!(rejections[0].reason.contains("another program or listener has this port"));
}

#[tokio::test]
async fn every_wrong_resource_is_named_and_nothing_is_swapped() {
    let origin = named("hello").await;
    let good = World::default().service("s", Protocol::Tcp, &[origin.address]).tcp("in", "s");
    let proxy = proxy_with(good.clone()).await;
    let mut untrusted = Service::new("untrusted", Protocol::Http2);
    let ca_file = Some("/nowhere/ca.pem".into());
    untrusted.tls = Some(UpstreamTls { server_name: "a.test".into(), ca_file });
    let routeless = vec![Chain::new(vec![], None, http("nowhere"))];
    let bad = good
        .service_with(untrusted, &[])
        .tcp("dangling", "nobody")
        .listener("routeless", routeless)
        .build("v2");
    let mut told_of: Vec<String> =
        proxy.apply(bad).unwrap_err().iter().map(ToString::to_string).collect();
    told_of.sort();
    for (told, expected) in told_of.iter().zip([
        "listener `dangling`: there is no service `nobody`",
        "listener `routeless`: there is no route table `nowhere`",
        "service `untrusted`: CA file /nowhere/ca.pem",
    ]) {
        assert!(told.starts_with(expected), "{told}");
    }
    assert_eq!(told_of.len(), 3);
    assert_eq!(proxy.version().as_deref(), Some("v1"));
    assert_eq!(told(&proxy, "in").await, "hello");
}
