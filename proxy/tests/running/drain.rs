//! The end of a proxy.

use std::{io::ErrorKind, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use towpath_policies::model::*;
use towpath_proxy::{Config, SourceConfig};

use crate::support::*;

#[tokio::test]
async fn a_drain_refuses_what_is_new_and_finishes_what_runs() {
    let echo = echo().await;
    let world = World::default().service("echo", Protocol::Tcp, &[echo.address]).tcp("in", "echo");
    let proxy = proxy_with(world).await;
    let address = proxy.listener_addrs()["in"];
    let mut open = connect(&proxy, "in").await;
    let mut byte = [0];
    open.write_all(b"1").await.unwrap();
    open.read_exact(&mut byte).await.unwrap();
    proxy.drain();
    eventually("the closed port", || async {
        match TcpStream::connect(address).await {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Some(()),
            _ => None,
        }
    })
    .await;
    open.write_all(b"2").await.unwrap();
    open.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"2", "what was open goes on");
    drop(open);
    assert_eq!(proxy.drained().await, None);
}

/// What is told once the answer has been counted, which is after it was passed on.
async fn counted(proxy: &towpath_proxy::Running, bytes: u64) -> serde_json::Value {
    eventually("the count", || async {
        let told = admin_json(proxy, "/drain").await;
        (told["transfers"][0]["response_bytes"] == bytes).then_some(told)
    })
    .await
}

#[tokio::test]
async fn what_is_not_done_in_time_is_reported_and_cut() {
    let echo = echo().await;
    let mut config = Config::new(SourceConfig::Manual);
    config.drain_timeout = Duration::ZERO;
    let proxy = towpath_proxy::start(config).await.unwrap();
    let world = World::default().service("echo", Protocol::Tcp, &[echo.address]).tcp("in", "echo");
    proxy.apply(world.build("v1")).unwrap();
    let mut open = connect(&proxy, "in").await;
    let mut byte = [0];
    open.write_all(b"1").await.unwrap();
    open.read_exact(&mut byte).await.unwrap();
    counted(&proxy, 1).await;
    proxy.drain();
    let left = proxy.drained().await;
    let left = left.unwrap();
    assert_eq!((left.connections, left.requests, left.more), (1, 1, 0));
    let [cut] = &left.transfers[..] else { panic!("{left:?}") };
    assert_eq!((cut.protocol, &*cut.listener, cut.route.as_deref()), ("TCP", "in", None));
    assert_eq!(cut.client, open.local_addr().unwrap());
    assert_eq!(cut.service.as_deref(), Some("echo"));
    assert_eq!(cut.endpoint, Some(echo.address.to_string()));
    assert_eq!((cut.request_bytes, cut.response_bytes), (1, 1));
    let (status, told) = admin(&proxy, "POST", "/drain").await;
    assert_eq!(status, 200);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["draining"], &told["seconds_left"]), (&true.into(), &0.into()));
    assert_eq!(told["transfers"][0]["response_bytes"], 1, "{told}");
    proxy.shutdown();
    assert!(matches!(open.read(&mut byte).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn what_is_under_way_can_be_asked_for_at_any_time() {
    let echo = echo().await;
    let world = World::default().service("echo", Protocol::Tcp, &[echo.address]).tcp("in", "echo");
    let proxy = proxy_with(world).await;
    let mut open = connect(&proxy, "in").await;
    open.write_all(b"12345").await.unwrap();
    open.read_exact(&mut [0; 5]).await.unwrap();
    let told = counted(&proxy, 5).await;
    assert_eq!((&told["draining"], &told["seconds_left"]), (&false.into(), &().into()));
    assert_eq!(told["transfers"][0]["request_bytes"], 5, "{told}");
    drop(open);
    eventually("an empty table", || async {
        (admin_json(&proxy, "/drain").await["transfers"] == serde_json::json!([])).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_asked_for_nothing_does_not_hold_a_drain() {
    let world = World::default().service("web", Protocol::Http1, &[local(9)]).http("in", "web");
    let proxy = proxy_with(world).await;
    let mut silent = connect(&proxy, "in").await;
    eventually("the connection", || async {
        (admin_json(&proxy, "/listeners").await[0]["connections"] == 1).then_some(())
    })
    .await;
    proxy.drain();
    assert_eq!(proxy.drained().await, None);
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_drain_answers_what_was_asked_and_closes_kept_alive_connections() {
    let (asked, mut seen) = tokio::sync::mpsc::channel(1);
    let (answer, answered) = tokio::sync::watch::channel(false);
    let slow = origin(move |mut tcp| {
        let (asked, mut answered) = (asked.clone(), answered.clone());
        async move {
            head(&mut tcp).await.unwrap();
            asked.send(()).await.unwrap();
            answered.wait_for(|now| *now).await.unwrap();
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone").await.unwrap();
            // Kept open: it is not the origin that ends this.
            let _ = tcp.read(&mut [0]).await;
        }
    })
    .await;
    let idle_origin = web("idle").await;
    let world = World::default()
        .service("slow", Protocol::Http1, &[slow.address])
        .service("idle", Protocol::Http1, &[idle_origin.address])
        .http("slow", "slow")
        .http("idle", "idle");
    let proxy = proxy_with(world).await;
    let mut idle = connect(&proxy, "idle").await;
    assert_eq!(get(&mut idle, "/").await.1, "idle");
    let mut busy = connect(&proxy, "slow").await;
    let client = tokio::spawn(async move {
        let told = get(&mut busy, "/").await;
        (told, busy.read(&mut [0]).await.unwrap())
    });
    seen.recv().await.unwrap();
    proxy.drain();
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0, "nothing was asked on it");
    answer.send_replace(true);
    let ((_, body), more) = client.await.unwrap();
    assert_eq!((body.as_str(), more), ("done", 0));
    assert_eq!(proxy.drained().await, None);
}

#[tokio::test]
async fn a_drain_tells_http2_clients_to_go_and_finishes_their_streams() {
    let (asked, mut seen) = tokio::sync::mpsc::channel(1);
    let (answer, answered) = tokio::sync::watch::channel(false);
    let slow = origin(move |mut tcp| {
        let (asked, mut answered) = (asked.clone(), answered.clone());
        async move {
            head(&mut tcp).await.unwrap();
            asked.send(()).await.unwrap();
            answered.wait_for(|now| *now).await.unwrap();
            tcp.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            let _ = tcp.read(&mut [0]).await;
        }
    })
    .await;
    let world = World::default().service("s", Protocol::Http1, &[slow.address]).http("in", "s");
    let proxy = proxy_with(world).await;
    let (mut client, connection) =
        h2::client::handshake(connect(&proxy, "in").await).await.unwrap();
    let ended = tokio::spawn(connection);
    let request = http::Request::get("http://a.test/").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    seen.recv().await.unwrap();
    proxy.drain();
    answer.send_replace(true);
    assert_eq!(response.await.unwrap().status(), 204);
    // Ended by the proxy, in good order: the client still holds its handle.
    ended.await.unwrap().unwrap();
    assert_eq!(proxy.drained().await, None);
}

#[tokio::test]
async fn a_removed_listener_closes_its_port_and_finishes_its_connections() {
    let echo = echo().await;
    let services = World::default().service("echo", Protocol::Tcp, &[echo.address]);
    let proxy = proxy_with(services.clone().tcp("old", "echo").tcp("stays", "echo")).await;
    let addresses = proxy.listener_addrs();
    let mut open = connect(&proxy, "old").await;
    proxy.apply(services.tcp("stays", "echo").build("v2")).unwrap();
    eventually("the closed port", || async {
        TcpStream::connect(addresses["old"]).await.is_err().then_some(())
    })
    .await;
    let mut byte = [0];
    open.write_all(b"1").await.unwrap();
    open.read_exact(&mut byte).await.unwrap();
    assert_eq!(proxy.listener_addrs().keys().collect::<Vec<_>>(), ["stays"]);
    assert_eq!(proxy.listener_addrs()["stays"], addresses["stays"], "the same socket");
}
