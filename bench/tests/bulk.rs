//! The parties of the bulk cases against each other: directly, and through relays that damage what
//! they carry, which must never pass for a measurement.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use towpath_bench::bulk::client::{Connection, fetch};
use towpath_bench::bulk::endpoint::Endpoint;
use towpath_bench::bulk::interactive::open_loop;
use towpath_bench::bulk::makespan::{Job, Workers, jobs, submit};
use towpath_bench::bulk::streams::{Streams, Way};
use towpath_bench::case::SMALL_BODY;
use towpath_bench::origin;

/// More than two samples, and no multiple of anything.
const BULK: u64 = 20_000_003;
const PACE: u64 = 1 << 30;

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// Relays opaque bytes, less the one at `up_at` or `down_at`.
async fn losing_relay(behind: SocketAddr, up_at: Option<u64>, down_at: Option<u64>) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(upstream) = TcpStream::connect(behind).await else { return };
            let (client_read, client_write) = client.into_split();
            let (upstream_read, upstream_write) = upstream.into_split();
            tokio::spawn(copy_less(client_read, upstream_write, up_at));
            tokio::spawn(copy_less(upstream_read, client_write, down_at));
        }
    });
    address
}

async fn copy_less(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    at: Option<u64>,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = 0_u64;
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let mut piece = buffer[..count].to_vec();
        if let Some(index) = at.and_then(|at| at.checked_sub(offset)).filter(|i| *i < count as u64)
        {
            piece.remove(usize::try_from(index).expect("below the buffer's size"));
        }
        offset += count as u64;
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn bulk_arrives_whole_both_ways_and_is_counted() {
    for way in [Way::Down, Way::Up] {
        let streams = Streams::new().expect("a file in memory");
        let origin = streams.serve().await.expect("origin");
        let client = tokio::spawn({
            let streams = streams.clone();
            async move { streams.client(origin, way, BULK).await }
        });
        while streams.moved() <= BULK {
            tokio::task::yield_now().await;
        }
        streams.stop();
        let count = client.await.expect("no panic").unwrap_or_else(|e| panic!("{way:?}: {e:#}"));
        assert!(count >= 2, "{way:?}");
        assert_eq!(streams.moved(), count * BULK, "{way:?}");
    }
}

#[tokio::test]
async fn a_byte_lost_between_two_samples_is_found_both_ways() {
    // After the first sample and long before the second, so that only what follows can tell.
    let between = Some(3_000_000);
    for (way, up_at, down_at) in [(Way::Down, None, between), (Way::Up, between, None)] {
        let streams = Streams::new().expect("a file in memory");
        let origin = streams.serve().await.expect("origin");
        let target = losing_relay(origin, up_at, down_at).await;
        let outcome = streams.client(target, way, BULK).await;
        assert!(outcome.is_err(), "{way:?} passed");
    }
}

#[tokio::test]
async fn every_request_of_an_open_loop_is_made_and_answered_once() {
    let origin = origin::start(SMALL_BODY).await.expect("origin");
    let latencies = open_loop(origin.http1, 2000, Duration::from_millis(100)).await.expect("right");
    assert_eq!(latencies.len(), 200);
    assert_eq!(origin.seen.requests(), 200);
}

#[tokio::test]
async fn an_open_loop_takes_no_wrong_answer() {
    let origin = origin::start(SMALL_BODY + 1).await.expect("origin");
    let error = open_loop(origin.http1, 2000, Duration::from_millis(20)).await;
    assert!(error.is_err());
}

#[tokio::test]
async fn a_worker_does_one_job_at_a_time_and_each_once() {
    let workers = Workers::start(1).await.expect("a worker");
    let jobs: Vec<Job> = jobs(40, 7)
        .into_iter()
        .map(|job| Job { time: job.time.min(Duration::from_millis(2)), ..job })
        .collect();
    let times = submit(workers.addresses[0], &jobs).await.expect("all done");
    let sum: Duration = jobs.iter().map(|job| job.time).sum();
    assert!(times.iter().max().is_some_and(|last| *last >= sum), "jobs ran side by side");
    workers.check(jobs.len()).expect("each once");
    assert!(workers.check(jobs.len()).is_err(), "none since");
}

#[tokio::test]
async fn an_endpoint_serves_fails_and_notes_what_it_gets() {
    let endpoint = Endpoint::start(PACE).await.expect("endpoint");
    let mut connection = Connection::open(endpoint.address).await.expect("connects");
    assert_eq!(connection.get("/down/300000", 300_000).await.expect("whole"), 200);
    assert_eq!(endpoint.sent(), 300_000);
    endpoint.set_failing(true);
    assert_eq!(connection.get("/down/300000", 300_000).await.expect("answered"), 503);
    endpoint.set_failing(false);
    assert_eq!(connection.get("/down/5", 5).await.expect("whole"), 200);
    assert_eq!(endpoint.take_arrivals().len(), 3);
    assert_eq!(endpoint.take_arrivals().len(), 0);
}

#[tokio::test]
async fn an_endpoint_goes_on_from_where_a_download_broke() {
    let endpoint = Endpoint::start(PACE).await.expect("endpoint");
    let mut stream = TcpStream::connect(endpoint.address).await.expect("connects");
    let request = b"GET /down/100 HTTP/1.1\r\nrange: bytes=97-\r\nif-range: \"pattern-1\"\r\n\r\n";
    stream.write_all(request).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut piece = [0; 1024];
        let count = stream.read(&mut piece).await.expect("read");
        assert!(count > 0, "closed");
        answer.extend_from_slice(&piece[..count]);
    }
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 206 "), "{text}");
    assert!(text.contains("content-range: bytes 97-99/100\r\ncontent-length: 3\r\n"), "{text}");
}

#[tokio::test]
async fn an_admin_endpoint_that_refuses_is_an_error() {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = client.read(&mut request).await;
            let _ = client.write_all(b"HTTP/1.1 404 Not Found\r\n\r\nno").await;
        }
    });
    let error = fetch(address, "/endpoints").await.expect_err("a 404");
    assert!(format!("{error:#}").contains("404"), "{error:#}");
}
