//! The modelled workers and the client of the balance comparison against each other, without a proxy.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use towpath_bench::balance::client::{Client, Outcome};
use towpath_bench::balance::trace::Job;
use towpath_bench::balance::worker::Worker;
use towpath_bench::balance::world::{FLEET, SLOTS};

const PATIENCE: Duration = Duration::from_secs(60);

fn job(origin: usize, bytes: u64) -> Job {
    Job { at: Duration::ZERO, origin, bytes, passes: 1 }
}

async fn submit_now(target: SocketAddr, jobs: &[Job]) -> Vec<Outcome> {
    let start = Instant::now();
    Client::new(target).submit(jobs, start, start + PATIENCE).await
}

#[tokio::test]
async fn a_job_takes_its_way_and_its_work_and_not_less() {
    let worker = Worker::start(FLEET[0], 0).expect("a worker");
    for (origin, bytes) in [(0, 1 << 20), (1, 1 << 20), (2, 16 << 10)] {
        let job = Job { passes: 2, ..job(origin, bytes) };
        let outcomes = submit_now(worker.address, &[job]).await;
        let time = outcomes[0].time.expect("done").as_secs_f64();
        let least = FLEET[0].alone(&job);
        assert!(time >= least, "{origin}: {time} s, least {least}");
        assert_eq!(outcomes[0].again, 0);
    }
    let arrivals = worker.take_arrivals();
    assert_eq!(arrivals.iter().map(|arrival| arrival.bytes).sum::<u64>(), (2 << 20) + (16 << 10));
    assert!(worker.take_arrivals().is_empty());
}

#[tokio::test]
async fn jobs_at_a_worker_share_its_speed() {
    let worker = Worker::start(FLEET[0], 0).expect("a worker");
    let bytes = 512 << 10;
    let jobs = vec![job(0, bytes); SLOTS * 2];
    let outcomes = submit_now(worker.address, &jobs).await;
    let work = (bytes * jobs.len() as u64) as f64 / FLEET[0].bytes_per_second();
    let last = outcomes.iter().filter_map(|outcome| outcome.time).max().expect("all done");
    assert!(last.as_secs_f64() >= work, "{last:?} for {work} s of work");
}

#[tokio::test]
async fn a_fallen_worker_is_slow_and_says_so() {
    let worker = Worker::start(FLEET[4], 0).expect("a worker");
    let mut stream = TcpStream::connect(worker.address).await.expect("connects");
    assert!(!answer(&mut stream).await.contains("goodput_factor=0.1"));
    worker.fall().await;
    // Its next look comes within a quarter of a second.
    while !answer(&mut stream).await.contains("named_metrics.towpath.goodput_factor=0.1\r\n") {}
    let bytes = 128 << 10;
    let outcomes = submit_now(worker.address, &[job(1, bytes)]).await;
    let slow = bytes as f64 / FLEET[4].bytes_per_second() * 10.0;
    assert!(outcomes[0].time.expect("done").as_secs_f64() >= slow);
}

/// The head of the answer to a small job from the worker's own region.
async fn answer(stream: &mut TcpStream) -> String {
    let request = "PUT /job/0 HTTP/1.1\r\nx-bench-region: us-east\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut text = String::new();
    while !text.ends_with("job 0 done") {
        let mut piece = [0; 1024];
        let count = stream.read(&mut piece).await.expect("read");
        assert!(count > 0, "closed after {text}");
        text.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    text
}

#[tokio::test]
async fn a_cut_resets_and_refuses_and_a_job_is_done_when_it_is_over() {
    let worker = Worker::start(FLEET[11], 0).expect("a worker");
    let mut stream = TcpStream::connect(worker.address).await.expect("connects");
    let head = "PUT /job/0 HTTP/1.1\r\nx-bench-region: us-east\r\ncontent-length: 9\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    worker.set_cut(true);
    assert!(stream.read(&mut [0; 64]).await.is_err(), "a reset");
    let refused = TcpStream::connect(worker.address).await.expect_err("refused");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let address = worker.address;
    let waiting = tokio::spawn(async move { submit_now(address, &[job(2, 64 << 10)]).await });
    // It finds nobody first.
    while TcpStream::connect(worker.address).await.is_ok() {}
    tokio::task::yield_now().await;
    worker.set_cut(false);
    let outcomes = waiting.await.expect("no panic");
    assert!(outcomes[0].time.is_some());
}

#[tokio::test]
async fn a_job_that_nobody_does_is_given_up() {
    let worker = Worker::start(FLEET[0], 0).expect("a worker");
    worker.set_cut(true);
    while TcpStream::connect(worker.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let start = Instant::now();
    let limit = start + Duration::from_millis(120);
    let outcomes = Client::new(worker.address).submit(&[job(0, 9)], start, limit).await;
    assert_eq!(outcomes[0].time, None);
    assert!(outcomes[0].again >= 1);
}
