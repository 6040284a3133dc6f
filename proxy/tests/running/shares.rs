//! A bounded bandwidth, shared by class.

use std::time::Instant;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use towpath_policies::model::*;
use towpath_proxy::Running;

use crate::support::*;

const RATE: u64 = 2 << 20;

/// An endpoint that sends for ever, and a listener for each class before it.
async fn shared(name: &str) -> (Running, Origin) {
    let origin = origin(|mut tcp| async move {
        if head(&mut tcp).await.is_some() {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1_u64 << 40);
            let mut sent = tcp.write_all(answer.as_bytes()).await;
            while sent.is_ok() {
                sent = tcp.write_all(&[0; 64 * 1024]).await;
            }
        }
    })
    .await;
    let mut service = Service::new(name, Protocol::Http1);
    service.admission.bandwidth =
        Some(Bandwidth { bytes_per_second: RATE, weights: ClassWeights::default() });
    let world = World::default().service_with(service, &[origin.address]);
    let world =
        Class::ALL.into_iter().fold(world, |world, class| world.http_of(class, class.name(), name));
    (proxy_with(world).await, origin)
}

async fn download(proxy: &Running, class: Class) -> TcpStream {
    let mut tcp = connect(proxy, class.name()).await;
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    head(&mut tcp).await.unwrap();
    tcp
}

async fn read(mut tcp: TcpStream, mut bytes: u64) -> TcpStream {
    let mut part = vec![0; 64 << 10];
    while bytes > 0 {
        let most = part.len().min(usize::try_from(bytes).unwrap());
        bytes -= tcp.read_exact(&mut part[..most]).await.unwrap() as u64;
    }
    tcp
}

#[tokio::test]
async fn one_alone_has_all_of_the_bandwidth_and_no_more() {
    let (proxy, _origin) = shared("alone").await;
    // From before the request: what waits in sockets has been paid for as well.
    let begun = Instant::now();
    let tcp = download(&proxy, Class::Background).await;
    read(tcp, 2 * RATE).await;
    assert!(begun.elapsed().as_millis() >= 1800, "{:?} for two seconds' worth", begun.elapsed());
}

/// What each class was let pass.
async fn bytes(proxy: &Running) -> [f64; 3] {
    let (_, metrics) = admin(proxy, "GET", "/metrics").await;
    Class::ALL.map(|class| {
        let labels = format!("{{service=\"compete\",class=\"{}\"}} ", class.name());
        let line = metrics.lines().find_map(|line| {
            line.strip_prefix("towpath_bandwidth_bytes_total")?.strip_prefix(&labels)
        });
        line.unwrap().parse::<f64>().unwrap()
    })
}

#[tokio::test]
async fn classes_that_compete_get_shares_by_weight_and_none_starves() {
    let (proxy, _origin) = shared("compete").await;
    let [first, second, third] = Class::ALL;
    let (interactive, bulk, background) = (
        download(&proxy, first).await,
        download(&proxy, second).await,
        download(&proxy, third).await,
    );
    let drain = |mut tcp: TcpStream| async move {
        let mut part = vec![0; 64 << 10];
        while tcp.read(&mut part).await.is_ok_and(|n| n > 0) {}
    };
    let others = [tokio::spawn(drain(bulk)), tokio::spawn(drain(background))];
    // What each got before the others had begun is no share.
    let interactive = read(interactive, RATE).await;
    let before = bytes(&proxy).await;
    read(interactive, 3 * RATE).await;
    let after = bytes(&proxy).await;
    let [first, second, third] = std::array::from_fn(|class| after[class] - before[class]);
    others.iter().for_each(tokio::task::JoinHandle::abort);
    // What one is too late to use others get, so that a busy machine evens the shares out; their
    // arithmetic is tested without one.
    assert!((1.8..8.0).contains(&(first / second)), "{first} to {second}, 16 to 4");
    assert!((1.8..8.0).contains(&(second / third)), "{second} to {third}, 4 to 1");
}
