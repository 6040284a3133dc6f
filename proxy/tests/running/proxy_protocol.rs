//! The PROXY protocol: load balancers say who the client is, and endpoints are told.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use towpath_policies::model::*;
use towpath_proxy::Running;

use crate::{support::*, tls::write_certificate};

/// Answers each request with its head.
async fn reflecting() -> Origin {
    origin(|mut tcp| async move {
        while let Some(head) = head(&mut tcp).await {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
            if tcp.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

fn from(required: bool, trusted: &[&str]) -> Option<ProxyProtocol> {
    let trusted = trusted.iter().map(|network| network.parse().unwrap()).collect();
    Some(ProxyProtocol { required, trusted })
}

/// What a connection that begins so is answered; empty when it is closed.
async fn answer(proxy: &Running, bytes: &[u8]) -> String {
    let mut tcp = connect(proxy, "in").await;
    // It may be closed before all was sent.
    let _ = tcp.write_all(bytes).await;
    let mut text = Vec::new();
    let _ = tcp.read_to_end(&mut text).await;
    String::from_utf8(text).unwrap()
}

const ASK: &str = "GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
const LINE: &str = "PROXY TCP4 192.0.2.1 198.51.100.7 12345 443\r\n";
/// The same in version 2, with a field that nobody knows.
const BINARY: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11\xc0\0\x02\x01\xc6\x33\x64\x07\x30\x39\x01\xbb\xea\0\x02hi";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

#[tokio::test]
async fn the_client_is_whom_a_trusted_balancer_says_and_nobody_else_is_believed() {
    let origin = reflecting().await;
    let world = |terms| {
        World::default()
            .service("s", Protocol::Http1, &[origin.address])
            .http("in", "s")
            .introduced("in", terms)
    };
    let told = "x-forwarded-for: 192.0.2.1\r\n";
    let own = "x-forwarded-for: 127.0.0.1\r\n";
    let (here, elsewhere) = (&["127.0.0.0/8"][..], &["10.0.0.0/8", "::/0"][..]);
    let cases: [(bool, &[&str], &[u8], &str); 10] = [
        (true, here, LINE.as_bytes(), told),
        (true, here, BINARY, told),
        (true, here, LOCAL, own),
        (true, here, b"PROXY UNKNOWN\r\n", own),
        (true, here, b"", ""),
        (true, here, b"PROXY TCP4 nonsense\r\n", ""),
        (true, elsewhere, LINE.as_bytes(), ""),
        (false, here, LINE.as_bytes(), told),
        (false, here, b"", own),
        // Not looked for, so the line is no request of HTTP.
        (false, elsewhere, LINE.as_bytes(), "HTTP/1.1 505 "),
    ];
    let proxy = proxy().await;
    for (index, (required, trusted, header, expected)) in cases.into_iter().enumerate() {
        proxy.apply(world(from(required, trusted)).build(&index.to_string())).unwrap();
        let text = answer(&proxy, &[header, ASK.as_bytes()].concat()).await;
        let header = String::from_utf8_lossy(header);
        assert!(text.contains(expected), "{required} {trusted:?} {header:?}: {text}");
        assert_eq!(
            text.is_empty(),
            expected.is_empty(),
            "{required} {trusted:?} {header:?}: {text}"
        );
    }
    let (_, metrics) = admin(&proxy, "GET", "/metrics").await;
    let refused = "towpath_proxy_protocol_errors_total{listener=\"in\"} 3";
    assert!(metrics.contains(refused), "{metrics}");
}

#[tokio::test]
async fn health_checks_that_end_without_a_byte_are_no_errors() {
    let dir = tempfile::tempdir().unwrap();
    let tls = write_certificate(dir.path(), "a", "a.test");
    let tls = vec![Chain::new(vec![], Some(tls), tcp("s"))];
    let service = World::default().service("s", Protocol::Http1, &[local(9)]);
    let listeners = [("checked", true, 0), ("looked-for", false, 0), ("secured", true, 1)];
    let world = listeners.iter().fold(service, |world, (name, required, _)| {
        let world = match *name {
            "secured" => world.listener(name, tls.clone()),
            name => world.http(name, "s"),
        };
        world.introduced(name, from(*required, &["127.0.0.0/8"]))
    });
    let proxy = proxy_with(world).await;
    for (name, _, handshakes) in listeners {
        let ended = async |bytes: &[u8], reset: bool| {
            let mut tcp = connect(&proxy, name).await;
            tcp.write_all(bytes).await.unwrap();
            if reset {
                return socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
            }
            tcp.shutdown().await.unwrap();
            let _ = tcp.read_to_end(&mut Vec::new()).await;
        };
        for begun in [&b""[..], LOCAL] {
            ended(begun, false).await;
        }
        ended(b"", true).await;
        // Ended midway: that is one, where it must be whole.
        ended(b"PROXY TC", false).await;
        if handshakes > 0 {
            ended(&[LOCAL, b"\x16\x03\x01"].concat(), false).await;
        }
        let (_, metrics) = admin(&proxy, "GET", "/metrics").await;
        let value = |metric: &str| {
            let series = format!("towpath_{metric}{{listener=\"{name}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&series)).unwrap().to_owned()
        };
        let refused = if name == "looked-for" { "0" } else { "1" };
        assert_eq!(value("proxy_protocol_errors_total"), refused, "{name}");
        assert_eq!(value("tls_handshake_errors_total"), handshakes.to_string(), "{name}");
    }
}

#[tokio::test]
async fn a_header_may_come_in_pieces_and_with_what_follows() {
    let origin = reflecting().await;
    let world = World::default()
        .service("s", Protocol::Http1, &[origin.address])
        .http("in", "s")
        .introduced("in", from(true, &["127.0.0.1/32"]));
    let proxy = proxy_with(world).await;
    let whole = [BINARY, ASK.as_bytes()].concat();
    let mut tcp = connect(&proxy, "in").await;
    tcp.set_nodelay(true).unwrap();
    for byte in whole {
        tcp.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut text = String::new();
    tcp.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("x-forwarded-for: 192.0.2.1\r\n"), "{text}");
}

/// Everything that an origin is sent, to its end.
async fn hearing() -> (Origin, tokio::sync::mpsc::Receiver<Vec<u8>>) {
    let (tell, told) = tokio::sync::mpsc::channel(8);
    let origin = origin(move |mut tcp| {
        let tell = tell.clone();
        async move {
            let mut bytes = Vec::new();
            tcp.read_to_end(&mut bytes).await.unwrap();
            let _ = tell.send(bytes).await;
        }
    })
    .await;
    (origin, told)
}

fn service(name: &str, protocol: Protocol, version: ProxyVersion) -> Service {
    Service { proxy_protocol: Some(version), ..Service::new(name, protocol) }
}

#[tokio::test]
async fn endpoints_of_opaque_services_are_told_their_client() {
    let (origin, mut heard) = hearing().await;
    let world = World::default()
        .service_with(service("old", Protocol::Tcp, ProxyVersion::V1), &[origin.address])
        .service_with(service("new", Protocol::Tcp, ProxyVersion::V2), &[origin.address])
        .tcp("in", "old")
        .tcp("new", "new")
        .tcp("through", "old")
        .introduced("through", from(true, &["127.0.0.0/8"]));
    let proxy = proxy_with(world).await;
    let send = async |listener: &str, text: &str| -> (SocketAddr, SocketAddr) {
        let mut tcp = connect(&proxy, listener).await;
        tcp.write_all(text.as_bytes()).await.unwrap();
        tcp.shutdown().await.unwrap();
        (tcp.local_addr().unwrap(), tcp.peer_addr().unwrap())
    };
    let line = |client: SocketAddr, server: SocketAddr| {
        let (from, to) = (client.ip(), server.ip());
        format!("PROXY TCP4 {from} {to} {} {}\r\n", client.port(), server.port())
    };
    let (client, server) = send("in", "hello").await;
    assert_eq!(heard.recv().await.unwrap(), (line(client, server) + "hello").into_bytes());
    let (client, server) = send("new", "hello").await;
    let ports = [client.port().to_be_bytes(), server.port().to_be_bytes()].concat();
    let start = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01";
    assert_eq!(heard.recv().await.unwrap(), [&start[..], &ports, b"hello"].concat());
    // What came in goes out, both ends of it.
    send("through", &format!("{LINE}hello")).await;
    assert_eq!(heard.recv().await.unwrap(), format!("{LINE}hello").into_bytes());
}

#[tokio::test]
async fn connections_that_clients_share_are_nobodys() {
    let origin = origin(|mut tcp: TcpStream| async move {
        let mut line = [0; 15];
        tcp.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"PROXY UNKNOWN\r\n");
        while head(&mut tcp).await.is_some() {
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let world = World::default()
        .service_with(service("s", Protocol::Http1, ProxyVersion::V1), &[origin.address])
        .http("in", "s");
    let proxy = proxy_with(world.clone()).await;
    for _ in 0..3 {
        let (_, body) = get(&mut connect(&proxy, "in").await, "/").await;
        assert_eq!(body, "ok");
    }
}
