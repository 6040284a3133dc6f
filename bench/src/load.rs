//! The load: closed loops over a fixed number of connections, a fixed number of requests.
//!
//! A session connects once per turn, warms the proxy up, and then repeats exactly the same loop
//! under the meter. Every answer is checked; a round with a wrong one has no figures.

pub mod bulk_h1;
pub mod bulk_h2;
pub mod idle;
pub mod small_h1;
pub mod small_h2;
pub mod tcp;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;

use crate::case::{Direction, Work};

/// The host name every request carries.
pub const AUTHORITY: &str = "bench.example";
/// Longest latency the histogram tells apart; anything beyond counts as this.
const MAX_LATENCY: Duration = Duration::from_secs(120);

/// What a run of requests amounted to.
#[derive(Debug)]
pub struct Outcome {
    /// Requests, or transfers, that were answered right.
    pub count: u64,
    /// Body bytes carried, both directions together.
    pub bytes: u64,
    /// Time from sending to the last byte of the answer, in microseconds.
    pub latency: Histogram<u64>,
}

/// A set of open connections to one proxy, ready to repeat a case's work.
#[derive(Debug)]
pub enum Session {
    /// Small HTTP/1.1 requests.
    SmallH1(small_h1::Session),
    /// Small HTTP/2 requests or gRPC calls.
    SmallH2(small_h2::Session),
    /// Bulk transfers over HTTP/1.1.
    BulkH1(bulk_h1::Session, Direction, u64),
    /// Bulk transfers over HTTP/2.
    BulkH2(bulk_h2::Session, Direction, u64),
    /// Bulk transfers over opaque TCP: each opens its own connection.
    Tcp(SocketAddr, u64),
    /// Connections that stay open and idle.
    Idle(idle::Session),
}

impl Session {
    /// Connects to the proxy at `target` for `work`.
    ///
    /// # Errors
    /// If the proxy does not take the connections.
    pub async fn connect(target: SocketAddr, work: Work) -> anyhow::Result<Self> {
        Ok(match work {
            Work::SmallH1 { connections, body } => {
                Self::SmallH1(small_h1::Session::connect(target, connections, body).await?)
            }
            Work::SmallH2 { connections, streams, body } => {
                let call = small_h2::Call::small(body);
                Self::SmallH2(small_h2::Session::connect(target, call, connections, streams).await?)
            }
            Work::Grpc { connections, streams } => {
                let call = small_h2::Call::grpc();
                Self::SmallH2(small_h2::Session::connect(target, call, connections, streams).await?)
            }
            Work::BulkH1(direction, bytes) => {
                Self::BulkH1(bulk_h1::Session::connect(target).await?, direction, bytes)
            }
            Work::BulkH2(direction, bytes) => {
                Self::BulkH2(bulk_h2::Session::connect(target).await?, direction, bytes)
            }
            Work::Tcp(bytes) => Self::Tcp(target, bytes),
            Work::Idle { connections, body } => {
                Self::Idle(idle::Session::connect(target, connections, body).await?)
            }
        })
    }

    /// Does the session's work `count` times and checks every answer.
    ///
    /// # Errors
    /// The first wrong answer or failed connection.
    pub async fn run(&mut self, count: u64) -> anyhow::Result<Outcome> {
        match self {
            Self::SmallH1(session) => session.run(count).await,
            Self::SmallH2(session) => session.run(count).await,
            Self::BulkH1(session, direction, bytes) => {
                let mut outcome = Outcome::new();
                for _ in 0..count {
                    let start = Instant::now();
                    session.transfer(*direction, *bytes).await.context("HTTP/1.1 transfer")?;
                    outcome.add(start.elapsed(), *bytes);
                }
                Ok(outcome)
            }
            Self::BulkH2(session, direction, bytes) => {
                let mut outcome = Outcome::new();
                for _ in 0..count {
                    let start = Instant::now();
                    session.transfer(*direction, *bytes).await.context("HTTP/2 transfer")?;
                    outcome.add(start.elapsed(), *bytes);
                }
                Ok(outcome)
            }
            Self::Tcp(target, bytes) => {
                let mut outcome = Outcome::new();
                for _ in 0..count {
                    let start = Instant::now();
                    tcp::transfer(*target, *bytes).await.context("TCP transfer")?;
                    outcome.add(start.elapsed(), *bytes);
                }
                Ok(outcome)
            }
            Self::Idle(session) => {
                session.idle(count).await;
                Ok(Outcome::new())
            }
        }
    }

    /// Ends the session with what can only be checked after the measurement.
    ///
    /// # Errors
    /// If that check fails.
    pub async fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Idle(mut session) => session.use_again().await,
            _ => Ok(()),
        }
    }
}

impl Outcome {
    fn new() -> Self {
        Self { count: 0, bytes: 0, latency: histogram() }
    }

    fn add(&mut self, latency: Duration, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
        self.latency.saturating_record(micros(latency));
    }
}

/// Requests still to be sent, shared by the connections of a session, and their latencies.
#[derive(Debug, Clone)]
struct Tickets(Arc<TicketState>);

#[derive(Debug)]
struct TicketState {
    left: AtomicU64,
    latency: Mutex<Histogram<u64>>,
}

impl Tickets {
    fn new(count: u64) -> Self {
        let latency = Mutex::new(histogram());
        Self(Arc::new(TicketState { left: AtomicU64::new(count), latency }))
    }

    /// Takes a ticket if any is left. All takers share one thread, so nothing is lost between.
    fn take(&self) -> bool {
        let left = self.0.left.load(Ordering::Relaxed);
        self.0.left.store(left.saturating_sub(1), Ordering::Relaxed);
        left > 0
    }

    fn record(&self, latency: Duration) {
        if let Ok(mut histogram) = self.0.latency.lock() {
            histogram.saturating_record(micros(latency));
        }
    }

    /// What was recorded, once every connection is done.
    fn outcome(&self, bytes_each: u64) -> Outcome {
        let latency = self.0.latency.lock().map_or_else(|_| histogram(), |h| h.clone());
        let count = latency.len();
        Outcome { count, bytes: count * bytes_each, latency }
    }
}

pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(micros(MAX_LATENCY), 3)
        .expect("one microsecond to two minutes in three digits is a valid range")
}

pub(crate) fn micros(latency: Duration) -> u64 {
    u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1)
}
