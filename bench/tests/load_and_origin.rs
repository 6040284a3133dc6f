//! The load against the origin: directly, through the bare forwarder, and through relays that
//! damage what they carry, which must never pass for a measurement.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use towpath_bench::case::{Direction, Work};
use towpath_bench::forward::{self, Protocol};
use towpath_bench::load::Session;
use towpath_bench::origin::{self, Origin};

const BULK: u64 = 3_000_001;
const SMALL: usize = 777;

fn works(origin: &Origin) -> Vec<(Work, Protocol, SocketAddr)> {
    let both = [Direction::Down, Direction::Up];
    let mut works = vec![
        (Work::SmallH1 { connections: 8, body: SMALL }, Protocol::H1, origin.http1),
        (Work::SmallH2 { connections: 2, streams: 16, body: SMALL }, Protocol::H2, origin.small_h2),
        (Work::Grpc { connections: 2, streams: 16 }, Protocol::H2, origin.grpc),
        (Work::Tcp(BULK), Protocol::Tcp, origin.tcp),
        (Work::Idle { connections: 5, body: SMALL }, Protocol::H1, origin.http1),
    ];
    works.extend(both.map(|way| (Work::BulkH1(way, BULK), Protocol::H1, origin.http1)));
    works.extend(both.map(|way| (Work::BulkH2(way, BULK), Protocol::H2, origin.bulk_h2)));
    works
}

fn count_of(work: Work) -> u64 {
    match work {
        Work::SmallH1 { .. } | Work::SmallH2 { .. } | Work::Grpc { .. } => 500,
        Work::Idle { .. } => 0,
        _ => 3,
    }
}

/// Does `work` at `target` and compares both ends.
async fn done_right(origin: &Origin, work: Work, target: SocketAddr) {
    let (requests, uploaded) = (origin.seen.requests(), origin.seen.uploaded());
    let count = count_of(work);
    let mut session = Session::connect(target, work).await.expect("connects");
    // Twice: a session is warmed up and then measured on the same connections.
    for _ in 0..2 {
        let outcome = session.run(count).await.unwrap_or_else(|e| panic!("{work:?}: {e:#}"));
        assert_eq!(outcome.count, count, "{work:?}");
        assert_eq!(outcome.latency.len(), count, "{work:?}");
    }
    session.finish().await.unwrap_or_else(|e| panic!("{work:?}: {e:#}"));
    // The TCP origin counts once its last byte is sent, the load once it has come.
    while matches!(work, Work::Tcp(_)) && origin.seen.requests() - requests < 2 * count {
        tokio::task::yield_now().await;
    }
    let answered = origin.seen.requests() - requests;
    match work {
        Work::Idle { connections, .. } => assert_eq!(answered, 2 * connections as u64),
        _ => assert_eq!(answered, 2 * count, "{work:?}"),
    }
    assert_eq!(origin.seen.uploaded() - uploaded, 2 * count * work.uploaded_bytes(), "{work:?}");
    assert_eq!(origin.seen.take_complaint(), None, "{work:?}");
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

#[tokio::test]
async fn every_kind_of_work_is_done_right_without_a_proxy() {
    let origin = origin::start(SMALL).await.expect("origin");
    for (work, _, target) in works(&origin) {
        done_right(&origin, work, target).await;
    }
}

#[tokio::test]
async fn every_kind_of_work_is_done_right_through_the_bare_forwarder() {
    let origin = origin::start(SMALL).await.expect("origin");
    let mut forwarders = JoinSet::new();
    for (work, protocol, behind) in works(&origin) {
        let (listener, target) = listener().await;
        forwarders.spawn(async move { forward::serve(listener, protocol, behind).await });
        done_right(&origin, work, target).await;
    }
}

/// Relays opaque bytes and changes the one at `at` of a direction.
async fn damaging_relay(
    behind: SocketAddr,
    up_at: Option<u64>,
    down_at: Option<u64>,
) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(upstream) = TcpStream::connect(behind).await else { return };
            let (client_read, client_write) = client.into_split();
            let (upstream_read, upstream_write) = upstream.into_split();
            tokio::spawn(copy_damaged(client_read, upstream_write, up_at));
            tokio::spawn(copy_damaged(upstream_read, client_write, down_at));
        }
    });
    address
}

async fn copy_damaged(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    at: Option<u64>,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut offset = 0_u64;
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if let Some(index) = at.and_then(|at| at.checked_sub(offset)).filter(|i| *i < count as u64)
        {
            buffer[usize::try_from(index).expect("below the buffer's size")] ^= 0x01;
        }
        offset += count as u64;
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_byte_changed_on_the_way_is_found_in_every_bulk_case() {
    let origin = origin::start(SMALL).await.expect("origin");
    let middle = Some(BULK / 4);
    let table = [
        (Work::BulkH1(Direction::Down, BULK), origin.http1, None, middle),
        (Work::BulkH1(Direction::Up, BULK), origin.http1, middle, None),
        (Work::BulkH2(Direction::Down, BULK), origin.bulk_h2, None, middle),
        (Work::BulkH2(Direction::Up, BULK), origin.bulk_h2, middle, None),
        (Work::Tcp(BULK), origin.tcp, middle, None),
        (Work::Tcp(BULK), origin.tcp, None, middle),
    ];
    for (work, behind, up_at, down_at) in table {
        let target = damaging_relay(behind, up_at, down_at).await;
        let mut session = Session::connect(target, work).await.expect("connects");
        let outcome = session.run(1).await;
        assert!(outcome.is_err(), "{work:?} passed");
        // Where HTTP/2's frames begin is not fixed: the byte may belong to a frame's header, which
        // the other side of the relay then refuses.
        if matches!(work, Work::BulkH2(..)) {
            let _ = origin.seen.take_complaint();
            continue;
        }
        let found_behind = origin.seen.take_complaint().is_some();
        assert_eq!(found_behind, up_at.is_some(), "{work:?}: who found it");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_200_is_no_measurement() {
    let (listener, target) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = client.read(&mut request).await;
            let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 1024\r\n\r\n";
            let _ = client.write_all(answer).await;
        }
    });
    let work = Work::SmallH1 { connections: 1, body: SMALL };
    let mut session = Session::connect(target, work).await.expect("connects");
    let error = session.run(1).await.expect_err("a 503");
    assert!(format!("{error:#}").contains("503"), "{error:#}");
}
