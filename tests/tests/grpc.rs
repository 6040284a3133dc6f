//! A real gRPC client (C-core) that knows the mesh only as `xds:///etl`.

use std::collections::BTreeMap;

use towpath_tests::{Origin, Peer, Repository};

mod common;
use common::{control_plane, grpc_service};

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_resolves_and_balances_by_our_control_plane() {
    let (one, two, three) =
        (Origin::start("one").await, Origin::start("two").await, Origin::start("three").await);
    let repository = Repository::new();
    repository.commit("mesh.yaml", &grpc_service(&[one.address, two.address]));
    let plane = control_plane(&repository).await;
    let mut client = Peer::grpc_client(plane.xds_addr, "etl", 100);
    assert_served(&client.served().await, &["one", "two"]);

    // A commit replaces an endpoint under the running client.
    repository.commit("mesh.yaml", &grpc_service(&[two.address, three.address]));
    plane.refresh().await;
    let mut last = BTreeMap::new();
    for _ in 0..50 {
        client.say("again").await;
        last = client.served().await;
        if !last.contains_key("one") && last.contains_key("three") {
            break;
        }
    }
    assert_served(&last, &["three", "two"]);
}

fn assert_served(served: &BTreeMap<String, u32>, expected: &[&str]) {
    assert!(served.keys().eq(expected), "{served:?}");
    assert!(served.values().all(|calls| *calls >= 20), "every endpoint gets its share: {served:?}");
}
