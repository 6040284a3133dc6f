//! Opaque connections.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towpath_policies::model::*;

use crate::support::*;

/// Not a multiple of any buffer.
const MUCH: usize = 9 * 1024 * 1024 + 12_345;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[tokio::test]
async fn bytes_and_half_closes_pass_both_ways_and_are_counted() {
    let echo = echo().await;
    let proxy = proxy_with(
        World::default().service("echo", Protocol::Tcp, &[echo.address]).tcp("in", "echo"),
    )
    .await;
    let (mut read, mut write) = connect(&proxy, "in").await.into_split();
    let sent = pattern(MUCH);
    let expected = sent.clone();
    let sending = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        // The origin ends only when it sees this, and is still heard after it.
        write.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    sending.await.unwrap();
    assert!(received == expected, "{} of {MUCH} bytes came back as they were", received.len());
    let endpoint = &admin_json(&proxy, "/endpoints").await["echo"]["endpoints"][0];
    assert_eq!(endpoint["request_bytes_total"], MUCH);
    assert_eq!(endpoint["response_bytes_total"], MUCH);
    assert_eq!(endpoint["picks_total"], 1);
}

/// TCP's urgent byte (RFC 9293 §3.8.5), as FTP and Telnet send it: reading stops in front of it though more is there.
/// It is none of the stream's bytes, and those behind it must neither wait for others nor be lost.
#[tokio::test]
async fn what_comes_behind_an_urgent_byte_passes() {
    let echo = echo().await;
    let proxy = proxy_with(
        World::default().service("echo", Protocol::Tcp, &[echo.address]).tcp("in", "echo"),
    )
    .await;
    for before in [1, 100, 32 * 1024, 300_000] {
        let mut client = connect(&proxy, "in").await;
        let mut expected = pattern(before);
        client.write_all(&expected).await.unwrap();
        let urgent = || socket2::SockRef::from(&client).send_out_of_band(b"!");
        client.async_io(tokio::io::Interest::WRITABLE, urgent).await.unwrap();
        // A connection of its own each time: the proxy finds all of it there when it comes to read.
        client.write_all(b"behind").await.unwrap();
        expected.extend(b"behind");
        let mut received = vec![0; expected.len()];
        let reading = client.read_exact(&mut received);
        let read = tokio::time::timeout(Duration::from_secs(20), reading).await;
        read.expect("what is behind waits for nothing").unwrap();
        assert!(received == expected, "{before} bytes, and what is behind");
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut received).await.unwrap(), 0, "and no more");
    }
}

#[tokio::test]
async fn an_origin_that_speaks_first_is_heard() {
    let greeter = named("220 ready").await;
    let proxy = proxy_with(
        World::default().service("greeter", Protocol::Tcp, &[greeter.address]).tcp("in", "greeter"),
    )
    .await;
    assert_eq!(told(&proxy, "in").await, "220 ready");
}

#[tokio::test]
async fn a_clients_reset_reaches_the_origin() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let origin = origin(move |mut tcp| {
        let tell = tell.clone();
        async move {
            let mut buffer = [0; 16];
            tcp.read_exact(&mut buffer[..1]).await.unwrap();
            tell.send(tcp.read(&mut buffer).await.map_err(|e| e.kind())).await.unwrap();
        }
    })
    .await;
    let proxy =
        proxy_with(World::default().service("s", Protocol::Tcp, &[origin.address]).tcp("in", "s"))
            .await;
    let mut client = connect(&proxy, "in").await;
    client.write_all(b"x").await.unwrap();
    eventually("the byte at the origin", || async {
        let endpoints = admin_json(&proxy, "/endpoints").await;
        (endpoints["s"]["endpoints"][0]["request_bytes_total"] == 1).then_some(())
    })
    .await;
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(told.recv().await.unwrap(), Err(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn an_origins_reset_reaches_the_client_after_what_it_sent() {
    let origin = origin(|mut tcp| async move {
        tcp.write_all(b"half of").await.unwrap();
        let mut byte = [0];
        tcp.read_exact(&mut byte).await.unwrap();
        socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    let proxy =
        proxy_with(World::default().service("s", Protocol::Tcp, &[origin.address]).tcp("in", "s"))
            .await;
    let mut client = connect(&proxy, "in").await;
    let mut text = [0; 7];
    client.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"half of");
    client.write_all(b"x").await.unwrap();
    let end = client.read(&mut text).await.map_err(|e| e.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "a break is no clean end");
}

#[tokio::test]
async fn a_relay_that_is_cut_is_reset_at_both_ends() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let origin = origin(move |mut tcp| {
        let tell = tell.clone();
        async move {
            tcp.write_all(b"half of").await.unwrap();
            tell.send(tcp.read(&mut [0]).await.map_err(|e| e.kind())).await.unwrap();
        }
    })
    .await;
    let proxy =
        proxy_with(World::default().service("s", Protocol::Tcp, &[origin.address]).tcp("in", "s"))
            .await;
    let mut client = connect(&proxy, "in").await;
    let mut text = [0; 7];
    client.read_exact(&mut text).await.unwrap();
    tokio::task::spawn_blocking(move || proxy.shutdown()).await.unwrap();
    let end = client.read(&mut text).await.map_err(|e| e.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    assert_eq!(told.recv().await.unwrap(), Err(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_passed_over() {
    let alive = named("alive").await;
    let mut service = Service::new("s", Protocol::Tcp);
    service.balancer = Balancer::RoundRobin;
    let world =
        World::default().service_with(service, &[dead().await, alive.address]).tcp("in", "s");
    let proxy = proxy_with(world).await;
    for _ in 0..20 {
        assert_eq!(told(&proxy, "in").await, "alive");
    }
    let endpoints = admin_json(&proxy, "/endpoints").await;
    assert_eq!(
        endpoints["s"]["endpoints"][0]["ejected"], true,
        "failures in a row eject: {endpoints}"
    );
    assert_eq!(alive.accepted(), 20);
}

#[tokio::test]
async fn without_a_reachable_endpoint_the_client_is_reset() {
    let world = World::default().service("s", Protocol::Tcp, &[dead().await]).tcp("in", "s");
    let proxy = proxy_with(world).await;
    // The reset may be seen as early as by the connect.
    let end = match tokio::net::TcpStream::connect(proxy.listener_addrs()["in"]).await {
        Ok(mut client) => client.read(&mut [0]).await,
        Err(error) => Err(error),
    };
    assert_eq!(end.map_err(|e| e.kind()), Err(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn backends_are_drawn_by_weight() {
    let (a, b) = (named("a").await, named("b").await);
    let forward = TcpForward {
        backends: vec![backend("a", 3), backend("b", 1), backend("unused", 0)],
        idle_timeout: None,
    };
    let world = World::default()
        .service("a", Protocol::Tcp, &[a.address])
        .service("b", Protocol::Tcp, &[b.address])
        .service("unused", Protocol::Tcp, &[dead().await])
        .listener("in", vec![Chain::new(vec![], None, ChainKind::Tcp(forward))]);
    let proxy = proxy_with(world).await;
    let mut heard = [0, 0];
    for _ in 0..200 {
        match told(&proxy, "in").await.as_str() {
            "a" => heard[0] += 1,
            "b" => heard[1] += 1,
            other => panic!("{other}"),
        }
    }
    // Expected 150 and 50; outside this range once in more than 10^9 runs.
    assert!((100..=190).contains(&heard[0]), "{heard:?}");
}

#[tokio::test]
async fn a_silent_connection_ends_after_the_idle_timeout_and_a_talking_one_does_not() {
    let echo = echo().await;
    let limit = Duration::from_millis(300);
    let forward = TcpForward { backends: vec![backend("echo", 1)], idle_timeout: Some(limit) };
    let world = World::default()
        .service("echo", Protocol::Tcp, &[echo.address])
        .listener("in", vec![Chain::new(vec![], None, ChainKind::Tcp(forward))]);
    let proxy = proxy_with(world).await;
    let begun = std::time::Instant::now();
    let mut client = connect(&proxy, "in").await;
    let mut byte = [0];
    while begun.elapsed() < limit * 2 {
        client.write_all(b"x").await.unwrap();
        client.read_exact(&mut byte).await.unwrap();
        tokio::time::sleep(limit / 20).await;
    }
    let silent = std::time::Instant::now();
    assert!(matches!(client.read(&mut byte).await, Ok(0) | Err(_)), "closed from the other side");
    assert!(silent.elapsed() >= limit / 2, "not before its time");
}

#[tokio::test]
async fn many_connections_at_once_over_several_workers() {
    let echo = echo().await;
    let mut config = towpath_proxy::Config::new(towpath_proxy::SourceConfig::Manual);
    config.workers = 3;
    let proxy = towpath_proxy::start(config).await.unwrap();
    let world = World::default().service("echo", Protocol::Tcp, &[echo.address]).tcp("in", "echo");
    proxy.apply(world.build("v1")).unwrap();
    let address = proxy.listener_addrs()["in"];
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..120_usize {
        clients.spawn(async move {
            let sent = pattern(1000 + n * 997);
            let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            let (mut read, mut write) = tcp.split();
            let mut received = vec![0; sent.len()];
            let (wrote, heard) =
                tokio::join!(write.write_all(&sent), read.read_exact(&mut received));
            wrote.and(heard.map(|_| ())).unwrap();
            assert!(received == sent);
        });
    }
    clients.join_all().await;
}

#[tokio::test]
async fn at_the_limit_of_connections_the_next_one_waits_for_room() {
    let echo = echo().await;
    let mut config = towpath_proxy::Config::new(towpath_proxy::SourceConfig::Manual);
    config.max_connections = 1;
    let proxy = towpath_proxy::start(config).await.unwrap();
    let world = World::default().service("echo", Protocol::Tcp, &[echo.address]).tcp("in", "echo");
    proxy.apply(world.build("v1")).unwrap();
    let mut first = connect(&proxy, "in").await;
    let mut second = connect(&proxy, "in").await;
    let mut byte = [0];
    first.write_all(b"1").await.unwrap();
    first.read_exact(&mut byte).await.unwrap();
    second.write_all(b"2").await.unwrap();
    let listeners = admin_json(&proxy, "/listeners").await;
    assert_eq!(listeners[0]["connections"], 1, "{listeners}");
    drop(first);
    second.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"2");
}
