//! A real gRPC client (C-core) that knows the mesh only as `xds:///etl`.

use towpath_tests::{Origin, Peer, Repository, tool};

mod common;
use common::{control_plane, grpc_service};

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_resolves_and_balances_by_our_control_plane() {
    let (one, two, three) =
        (Origin::start("one").await, Origin::start("two").await, Origin::start("three").await);
    let repository = Repository::new();
    repository.commit("mesh.yaml", &grpc_service(&[one.address, two.address]));
    let plane = control_plane(&repository).await;
    let bootstrap = format!(
        r#"{{"xds_servers": [{{"server_uri": "{}", "channel_creds": [{{"type": "insecure"}}], "server_features": ["xds_v3"]}}], "node": {{"id": "grpc-client"}}}}"#,
        plane.xds_addr
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/grpc_xds.py");
    let mut client = Peer::start(
        &tool("grpc/bin/python"),
        &[script, "xds:///etl", "100"],
        &[("GRPC_XDS_BOOTSTRAP_CONFIG", &bootstrap)],
    );
    assert_served(&client.line().await, &["one", "two"]);

    // A commit replaces an endpoint under the running client.
    repository.commit("mesh.yaml", &grpc_service(&[two.address, three.address]));
    plane.refresh().await;
    let mut last = String::new();
    for _ in 0..50 {
        client.say("again").await;
        last = client.line().await;
        if !last.contains("one=") && last.contains("three=") {
            break;
        }
    }
    assert_served(&last, &["three", "two"]);
}

fn assert_served(line: &str, expected: &[&str]) {
    let served: Vec<(&str, u32)> = line
        .split(' ')
        .filter_map(|part| part.split_once('='))
        .map(|(name, count)| (name, count.parse().expect("a count")))
        .collect();
    let names: Vec<&str> = served.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, expected, "{line}");
    assert!(served.iter().all(|(_, count)| *count >= 20), "every endpoint gets its share: {line}");
}
