//! Streams and connections of age, in time that passes at once.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};
use towpath_policies::model::{Endpoint, EndpointSet, Health, Protocol, StreamAge};
use towpath_proxy::upstream::{self, ServiceState};

use crate::{
    harness::{Input, Proxy, Setup, eventually, origin},
    http2::client,
};

/// What the downloads would have in the end: more than this test lasts.
const LENGTH: u64 = 1 << 40;
/// What each is sent a second.
const PIECE: usize = 1000;
const MAX: Duration = Duration::from_secs(60);

/// The byte at a position: a piece of another place does not pass for it.
fn byte(position: u64) -> u8 {
    (position.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

/// An origin that sends every download a piece a second, and counts what it sends.
async fn replica() -> (SocketAddr, Arc<AtomicU64>) {
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    let (address, _) = origin(move |mut io, _| {
        let sent = count.clone();
        async move {
            let request = Input::default().message(&mut io).await.unwrap();
            let from = request.split("range: bytes=").nth(1).and_then(|r| r.split('-').next());
            let from: u64 = from.map_or(0, |from| from.parse().unwrap());
            let (last, left) = (LENGTH - 1, LENGTH - from);
            let status = match from {
                0 => "200 OK".to_owned(),
                _ => format!("206 Partial Content\r\ncontent-range: bytes {from}-{last}/{LENGTH}"),
            };
            let head =
                format!("HTTP/1.1 {status}\r\netag: \"v1\"\r\ncontent-length: {left}\r\n\r\n");
            io.write_all(head.as_bytes()).await.unwrap();
            let mut position = from;
            loop {
                let piece: Vec<u8> = (position..).take(PIECE).map(byte).collect();
                if io.write_all(&piece).await.is_err() {
                    return;
                }
                position += PIECE as u64;
                sent.fetch_add(PIECE as u64, Relaxed);
                sleep(Duration::from_secs(1)).await;
            }
        }
    })
    .await;
    (address, sent)
}

/// A client that reads on, and says how far it got without a break.
async fn download(mut io: TcpStream, alive: Arc<AtomicU32>) {
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    let mut position = 0;
    let mut buffer = vec![0; 8 * PIECE];
    alive.fetch_add(1, SeqCst);
    while let Ok(read @ 1..) = io.read(&mut buffer).await {
        if buffer[..read].iter().zip(position..).any(|(came, at)| *came != byte(at)) {
            break;
        }
        position += read as u64;
    }
    alive.fetch_sub(1, SeqCst);
}

fn age() -> Option<StreamAge> {
    Some(StreamAge { max: MAX, jitter_percent: 20 })
}

fn change(proxy: &Proxy, endpoints: Vec<Endpoint>) -> Arc<ServiceState> {
    let set = EndpointSet::new("origin".into(), endpoints);
    upstream::reconcile(Some(&proxy.service), proxy.service.spec.clone(), &set, 1).unwrap()
}

fn in_flight(service: &ServiceState) -> Vec<u32> {
    service.endpoints.iter().map(|e| e.live.requests.load(Relaxed)).collect()
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_are_added_get_their_share_within_a_minute_and_no_download_breaks() {
    let replicas = [replica().await, replica().await, replica().await, replica().await];
    let addresses: Vec<_> = replicas.iter().map(|(address, _)| *address).collect();
    let setup = Setup::to_all(&addresses[..2]).with(|s| {
        s.service.name = "balanced".into();
        s.service.admission.stream_age = age();
    });
    let proxy = setup.start().await;
    let alive = Arc::new(AtomicU32::new(0));
    for _ in 0..100 {
        tokio::spawn(download(proxy.connect().await, alive.clone()));
    }
    eventually("all run", || alive.load(SeqCst) == 100).await;
    sleep(MAX * 2).await;
    let service = change(&proxy, addresses[..2].iter().copied().map(Endpoint::new).collect());
    let moved =
        || service.live.metrics.moved.each_ref().map(towpath_proxy::metrics::Counter::value);
    let before = in_flight(&service);
    assert!(before.iter().all(|n| (45..=55).contains(n)), "{before:?}");
    let idle_moves = moved()[0];
    assert!(idle_moves <= 5, "what is even stays where it is: {idle_moves}");

    let service = change(&proxy, addresses.iter().copied().map(Endpoint::new).collect());
    sleep(Duration::from_secs(60)).await;
    let after = in_flight(&service);
    assert!(after.iter().all(|n| (21..=30).contains(n)), "{after:?}");
    let sent = || replicas.each_ref().map(|(_, sent)| sent.load(Relaxed));
    let from = sent();
    sleep(Duration::from_secs(30)).await;
    let each: Vec<u64> = sent().iter().zip(from).map(|(to, from)| to - from).collect();
    let total: u64 = each.iter().sum();
    assert!(each.iter().all(|bytes| (total / 5..=total * 3 / 10).contains(bytes)), "{each:?}");
    assert_eq!(alive.load(SeqCst), 100, "no client saw a break");
    let [balance, leaving] = moved();
    assert!((40..70).contains(&balance) && leaving == 0, "{balance} {leaving}");
}

#[tokio::test(start_paused = true)]
async fn downloads_leave_an_endpoint_that_is_to_take_nothing_new_once_of_age() {
    let (first, second) = (replica().await.0, replica().await.0);
    let setup = Setup::to(first).with(|s| {
        s.service.name = "leaving".into();
        s.service.admission.stream_age = age();
    });
    let proxy = setup.start().await;
    let alive = Arc::new(AtomicU32::new(0));
    tokio::spawn(download(proxy.connect().await, alive.clone()));
    eventually("it runs", || alive.load(SeqCst) == 1).await;
    let mut draining = Endpoint::new(first);
    draining.health = Health::Draining;
    let service = change(&proxy, vec![draining, Endpoint::new(second)]);
    sleep(MAX / 2).await;
    assert_eq!(in_flight(&service), [1, 0], "it is not of age");
    sleep(MAX).await;
    assert_eq!(in_flight(&service), [0, 1]);
    assert_eq!(service.live.metrics.moved[1].value(), 1);
    assert_eq!(alive.load(SeqCst), 1);
}

/// An endpoint that does not go on keeps nobody from the one that does.
#[tokio::test(start_paused = true)]
async fn a_download_that_nobody_continues_stays_where_it_is() {
    let (first, _) = replica().await;
    let (other, asked) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\netag: \"v2\"\r\ncontent-length: 2\r\n\r\nno";
        let _ = io.write_all(answer).await;
    })
    .await;
    let setup = Setup::to(first).with(|s| {
        s.service.name = "staying".into();
        s.service.admission.stream_age = age();
    });
    let proxy = setup.start().await;
    let alive = Arc::new(AtomicU32::new(0));
    for _ in 0..3 {
        tokio::spawn(download(proxy.connect().await, alive.clone()));
    }
    eventually("they run", || alive.load(SeqCst) == 3).await;
    let service = change(&proxy, vec![Endpoint::new(first), Endpoint::new(other)]);
    sleep(MAX * 2).await;
    assert!(asked.load(SeqCst) >= 3, "it was asked");
    assert_eq!((in_flight(&service), alive.load(SeqCst)), (vec![3, 0], 3));
    assert_eq!(service.live.metrics.moved[0].value(), 0);
}

#[tokio::test]
async fn connections_of_age_take_nothing_new_on_either_side() {
    for (max, of_age) in [(Duration::from_secs(3600), false), (Duration::ZERO, true)] {
        let (address, connections) = origin(|io, _| async move {
            let mut connection = h2::server::handshake(io).await.unwrap();
            while let Some(Ok((_, mut reply))) = connection.accept().await {
                reply.send_response(Response::new(()), true).unwrap();
            }
        })
        .await;
        let setup = Setup::to(address).speaking(Protocol::Http2).with(|s| {
            s.service.admission.stream_age = Some(StreamAge { max, jitter_percent: 20 });
        });
        let proxy = setup.start().await;
        let mut io = proxy.connect().await;
        io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert_eq!(head.contains("connection: close"), of_age, "{head}");
        if of_age {
            assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
            let gone = || proxy.service.live.connections.load(Relaxed) == 0;
            eventually("the connection to the endpoint is given up", gone).await;
        }
        let mut client = client(&proxy).await;
        let request = || Request::get("http://a/").body(()).unwrap();
        let (first, _) = client.send_request(request(), true).unwrap();
        assert_eq!(first.await.unwrap().status(), 200, "what was asked is answered");
        assert_eq!(connections.load(SeqCst), 1 + usize::from(of_age));
        if of_age {
            let refused = || client.send_request(request(), true).is_err_and(|e| e.is_go_away());
            eventually("it is told to go", refused).await;
        } else {
            let (second, _) = client.send_request(request(), true).unwrap();
            assert_eq!(second.await.unwrap().status(), 200);
            assert_eq!(connections.load(SeqCst), 1);
        }
    }
}
