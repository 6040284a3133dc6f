//! Requests with a key: the same endpoint each time, whichever proxy asks, until there is too much of it.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt;
use towpath_policies::model::{Balancer, KeySource, RetryPolicy};

use crate::harness::{Input, Proxy, Requests, Setup, answering, eventually, origin, soon};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn by_partition(origins: &[SocketAddr], balancer: Balancer, bound: Option<u32>) -> Setup {
    Setup::to_all(origins).with(|s| {
        s.service.name = format!("keys-{balancer:?}-{bound:?}");
        s.service.balancer = balancer;
        s.service.hashing.key = Some(KeySource::Header("x-partition".into()));
        s.service.hashing.load_bound_percent = bound;
    })
}

fn get(partition: usize) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\nX-Partition: p{partition}\r\nConnection: close\r\n\r\n")
}

async fn get_all(proxy: &Proxy) {
    for partition in 0..40 {
        let answer = soon(proxy.talk(&get(partition))).await;
        assert!(answer.ends_with("ok"), "{answer}");
    }
}

/// How often an origin was asked for each partition.
fn tally(requests: &Requests) -> Vec<usize> {
    let all = requests.all();
    let asked = |nth: usize| all.iter().filter(|r| r.contains(&format!("p{nth}\r\n"))).count();
    (0..40).map(asked).collect()
}

#[tokio::test]
async fn each_partition_has_one_endpoint_at_all_proxies() {
    for balancer in [Balancer::Maglev, Balancer::RingHash] {
        let mut origins = Vec::new();
        for _ in 0..4 {
            origins.push(answering(OK).await);
        }
        let mut addresses: Vec<_> = origins.iter().map(|(address, _)| *address).collect();
        let one = by_partition(&addresses, balancer, Some(125)).start().await;
        addresses.reverse();
        let other = by_partition(&addresses, balancer, Some(125)).start().await;
        for proxy in [&one, &other, &one] {
            get_all(proxy).await;
        }
        let tallies: Vec<_> = origins.iter().map(|(_, requests)| tally(requests)).collect();
        for partition in 0..40 {
            let mut asked: Vec<_> = tallies.iter().map(|tally| tally[partition]).collect();
            asked.sort_unstable();
            assert_eq!(asked, [0, 0, 0, 3], "{balancer:?}: partition {partition}");
        }
        let used = tallies.iter().filter(|tally| tally.iter().any(|n| *n > 0)).count();
        assert!(used > 1, "{balancer:?}");
    }
}

#[tokio::test]
async fn a_hot_partition_spreads_and_others_need_not_wait_behind_it() {
    // Origins that read and do not answer.
    let mut origins = Vec::new();
    for _ in 0..4 {
        let silent = |mut io, _| async move {
            let mut input = Input::default();
            while input.message(&mut io).await.is_some() {}
        };
        origins.push(origin(silent).await.0);
    }
    let proxy = by_partition(&origins, Balancer::Maglev, Some(125)).start().await;
    let live = || proxy.service.endpoints.iter().map(|e| &e.live);
    let requests = || -> Vec<u32> {
        live().map(|live| live.requests.load(std::sync::atomic::Ordering::Relaxed)).collect()
    };
    let mut clients = Vec::new();
    for nth in 1..=40 {
        let mut io = proxy.connect().await;
        io.write_all(get(7).as_bytes()).await.unwrap();
        clients.push(io);
        eventually("it is with an endpoint", || requests().iter().sum::<u32>() == nth).await;
    }
    let each = requests();
    // 125 % of 10, rounded up.
    assert!(each.iter().all(|n| *n <= 13), "{each:?}");
    assert!(each.iter().any(|n| *n <= 3), "and spreads no wider than it must: {each:?}");
}

#[tokio::test]
async fn a_partition_whose_endpoint_is_gone_goes_to_one_other() {
    let mut origins = Vec::new();
    for _ in 0..3 {
        origins.push(answering(OK).await);
    }
    let gone = {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        socket.local_addr().unwrap()
    };
    let mut addresses: Vec<_> = origins.iter().map(|(address, _)| *address).collect();
    addresses.push(gone);
    let proxy = by_partition(&addresses, Balancer::Maglev, None)
        .with(|s| {
            s.service.outlier = None;
            s.forward.retry = RetryPolicy { attempts: 1, ..s.forward.retry.clone() };
        })
        .start()
        .await;
    get_all(&proxy).await;
    get_all(&proxy).await;
    let tallies: Vec<_> = origins.iter().map(|(_, requests)| tally(requests)).collect();
    for partition in 0..40 {
        let mut asked: Vec<_> = tallies.iter().map(|tally| tally[partition]).collect();
        asked.sort_unstable();
        assert_eq!(asked, [0, 0, 2], "partition {partition}");
    }
}
