//! Our proxy obeys an xDS server that is not ours (go-control-plane).

use std::net::SocketAddr;

use towpath_tests::{Origin, Peer, eventually, free_port, get, tool};

mod common;
use common::proxy_by_xds;

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_runs_under_go_control_plane() {
    let (first, second) = (Origin::start("first").await, Origin::start("second").await);
    let port = free_port();
    let mut server = Peer::start(&tool("foreign-xds"), &[&port.to_string()], &[]);
    let xds = server.line().await.trim_start_matches("ready ").to_owned();
    server.say(&first.address.port().to_string()).await;

    let proxy = proxy_by_xds(&xds).await;
    let listener = SocketAddr::from(([127, 0, 0, 1], port));
    let answer = eventually("the proxy serves the foreign listener", || async {
        get(listener, "/x", "any").await.filter(|(status, _)| *status == 200)
    })
    .await;
    assert_eq!(answer.1, "first GET /x 0");

    server.say(&second.address.port().to_string()).await;
    eventually("the proxy follows", || async {
        get(listener, "/x", "any").await.filter(|(_, body)| body.starts_with("second"))
    })
    .await;

    // The server goes away; the proxy goes on.
    drop(server);
    for _ in 0..5 {
        assert_eq!(get(listener, "/x", "any").await.map(|a| a.0), Some(200));
    }
    proxy.shutdown();
}
