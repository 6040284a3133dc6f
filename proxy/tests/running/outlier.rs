//! Ejection of an endpoint whose goodput falls behind its peers'.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    task::JoinSet,
    time::{Instant, interval},
};
use towpath_policies::model::*;
use towpath_proxy::Running;

use crate::support::*;

/// Sends a very long body of declared length, 16 KiB every so many milliseconds.
async fn paced(pause_ms: Arc<AtomicU64>) -> Origin {
    origin(move |mut tcp| {
        let pause_ms = pause_ms.clone();
        async move {
            if head(&mut tcp).await.is_none() {
                return;
            }
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1_u64 << 40);
            let mut sent = tcp.write_all(answer.as_bytes()).await;
            let mut due = Instant::now();
            while sent.is_ok() {
                sent = tcp.write_all(&[0; 16 * 1024]).await;
                due = due.max(Instant::now() - Duration::from_millis(100))
                    + Duration::from_millis(pause_ms.load(SeqCst));
                tokio::time::sleep_until(due).await;
            }
        }
    })
    .await
}

/// A service whose endpoints are judged by goodput.
fn judged(name: &str) -> Service {
    let goodput = Some(Goodput::default());
    let outlier = Some(Outlier { goodput, ..Outlier::default() });
    Service { outlier, ..Service::new(name, Protocol::Http1) }
}

/// So many reads of a slow client last several times the window.
const SLOW_READS: u32 = 50;

/// Three endpoints, and a client of each; the `slow`th reads 8 KiB every 50 ms, and ends after
/// [`SLOW_READS`] of them.
async fn three(
    service: &str,
    slow: Option<usize>,
) -> (Running, Vec<Arc<AtomicU64>>, Vec<Origin>, JoinSet<()>) {
    let paces: Vec<_> = (0..3).map(|_| Arc::new(AtomicU64::new(2))).collect();
    let mut origins = Vec::new();
    for pace in &paces {
        origins.push(paced(pace.clone()).await);
    }
    let at: Vec<_> = origins.iter().map(|o| o.address).collect();
    let world = World::default().service_with(judged(service), &at).http("in", service);
    let proxy = proxy_with(world).await;
    let mut clients = JoinSet::new();
    let to = proxy.listener_addrs()["in"];
    for n in 0..3 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let mut tcp = socket.connect(to).await.unwrap();
        tcp.write_all(b"GET /partition HTTP/1.1\r\nhost: a.test\r\n\r\n").await.unwrap();
        // The next one goes to another endpoint once this one's length is known.
        head(&mut tcp).await.unwrap();
        clients.spawn(async move {
            let mut buffer = vec![0; if slow == Some(n) { 8 * 1024 } else { 256 * 1024 }];
            let mut every = interval(Duration::from_millis(50));
            let mut reads = 0;
            while tcp.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                if slow == Some(n) {
                    every.tick().await;
                    reads += 1;
                }
                if reads == SLOW_READS {
                    return;
                }
            }
        });
    }
    (proxy, paces, origins, clients)
}

async fn endpoints(proxy: &Running) -> Vec<serde_json::Value> {
    let services = admin_json(proxy, "/endpoints").await;
    let (_, service) = services.as_object().unwrap().iter().next().unwrap();
    service["endpoints"].as_array().unwrap().clone()
}

/// Waits until the goodput of every endpoint is known, from some rounds.
async fn measured(proxy: &Running) {
    let mut last = Vec::new();
    for _ in 0..4 {
        last = eventually("the goodput of all, and anew", || async {
            let goodput = |e: &serde_json::Value| e["goodput_bytes_per_second"].as_u64();
            let all: Vec<_> = endpoints(proxy).await.iter().map(goodput).collect();
            (all.iter().all(|now| *now > Some(0)) && all != last).then_some(all)
        })
        .await;
    }
}

#[tokio::test]
async fn an_endpoint_that_falls_to_a_tenth_of_its_peers_goodput_is_out() {
    let (proxy, paces, _origins, _clients) = three("falls", None).await;
    measured(&proxy).await;
    assert!(endpoints(&proxy).await.iter().all(|e| e["requests_in_flight"] == 1));
    paces[1].store(20, SeqCst);
    eventually("the ejection", || async {
        (endpoints(&proxy).await[1]["ejected"] == true).then_some(())
    })
    .await;
    let all = endpoints(&proxy).await;
    assert_eq!(all[1]["last_ejection"]["reason"], "goodput");
    let why = all[1]["last_ejection"]["why"].as_str().unwrap();
    assert!(why.contains("its peers' median"), "{why}");
    assert_eq!((&all[0]["usable"], &all[2]["usable"]), (&true.into(), &true.into()));
    let (_, metrics) = admin(&proxy, "GET", "/metrics").await;
    let ejected =
        |line: &str| line.starts_with("towpath_ejections_total") && line.contains("falls");
    let lines: Vec<_> = metrics.lines().filter(|l| ejected(l)).collect();
    assert!(lines.len() == 1 && lines[0].ends_with(r#"reason="goodput"} 1"#), "{lines:?}");
}

#[tokio::test]
async fn a_slow_client_does_not_cost_its_endpoint_its_place() {
    let (proxy, _paces, origins, mut clients) = three("slow", Some(1)).await;
    measured(&proxy).await;
    // It has read slowly for long, with all buffers on the way full.
    clients.join_next().await.unwrap().unwrap();
    let all = endpoints(&proxy).await;
    assert!(all.iter().all(|e| e["ejections"] == 0), "{all:?}");
    assert!(origins.iter().all(|o| o.accepted() == 1));
}

/// Reads a body, 16 KiB every so many milliseconds.
async fn taking(pause_ms: Arc<AtomicU64>) -> Origin {
    origin(move |mut tcp| {
        let pause_ms = pause_ms.clone();
        async move {
            socket2::SockRef::from(&tcp).set_recv_buffer_size(64 * 1024).unwrap();
            let mut buffer = vec![0; 16 * 1024];
            let mut due = Instant::now();
            while tcp.read_exact(&mut buffer).await.is_ok() {
                due = due.max(Instant::now() - Duration::from_millis(100))
                    + Duration::from_millis(pause_ms.load(SeqCst));
                tokio::time::sleep_until(due).await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_endpoint_that_takes_an_upload_at_a_tenth_of_its_peers_pace_is_out() {
    let paces: Vec<_> = (0..3).map(|_| Arc::new(AtomicU64::new(2))).collect();
    let mut origins = Vec::new();
    for pace in &paces {
        origins.push(taking(pace.clone()).await);
    }
    let at: Vec<_> = origins.iter().map(|o| o.address).collect();
    let world = World::default().service_with(judged("takes"), &at).http("in", "takes");
    let proxy = proxy_with(world).await;
    let mut clients = JoinSet::new();
    for n in 1..=3 {
        let mut tcp = connect(&proxy, "in").await;
        clients.spawn(async move {
            let length = 1_u64 << 40;
            let head =
                format!("PUT /p HTTP/1.1\r\nhost: a.test\r\ncontent-length: {length}\r\n\r\n");
            tcp.write_all(head.as_bytes()).await.unwrap();
            while tcp.write_all(&[0; 64 * 1024]).await.is_ok() {}
        });
        eventually("its own endpoint", || async {
            let busy = |e: &&serde_json::Value| e["requests_in_flight"] == 1;
            (endpoints(&proxy).await.iter().filter(busy).count() == n).then_some(())
        })
        .await;
    }
    measured(&proxy).await;
    paces[1].store(20, SeqCst);
    eventually("the ejection", || async {
        (endpoints(&proxy).await[1]["ejected"] == true).then_some(())
    })
    .await;
    let all = endpoints(&proxy).await;
    assert_eq!(all[1]["last_ejection"]["reason"], "goodput");
    assert_eq!((&all[0]["ejections"], &all[2]["ejections"]), (&0.into(), &0.into()));
}
