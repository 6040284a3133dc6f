//! Hands jobs in, each at its time whatever became of those before, and again if it comes back
//! undone, as one does who needs the result.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::trace::Job;
use super::worker::{PASSES_HEADER, REGION_HEADER};
use super::world::REGIONS;
use crate::bulk::client::Connection;
use crate::load::AUTHORITY;
use crate::wire::unexpected;

/// Tells the proxy where a job's data is, in degrees.
pub const ORIGIN_HEADER: &str = "x-towpath-origin";
/// Before a job that came back undone is handed in again.
const PAUSE: Duration = Duration::from_millis(50);
/// Connections kept for later jobs.
const IDLE: usize = 2048;

/// What became of a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Its number.
    pub nth: usize,
    /// From when it was due to the end of its answer; none if it was given up.
    pub time: Option<Duration>,
    /// How often it was handed in again.
    pub again: u32,
    /// How late the bench was to hand it in.
    pub late: Duration,
}

/// Who hands jobs in.
#[derive(Debug, Clone)]
pub struct Client {
    target: SocketAddr,
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Client {
    /// One that hands jobs in through the proxy at `target`.
    #[must_use]
    pub fn new(target: SocketAddr) -> Self {
        Self { target, idle: Arc::default() }
    }

    /// Opens connections until so many wait for a job: that many jobs at once would have to wait for
    /// each other's connections to be accepted.
    ///
    /// # Errors
    /// If one is refused.
    pub async fn open(&self, count: usize) -> io::Result<()> {
        let idle = self.idle.lock().map_or(0, |idle| idle.len());
        for _ in idle..count.min(IDLE) {
            let connection = Connection::open(self.target).await?;
            self.keep(connection);
        }
        Ok(())
    }

    /// Hands all jobs in, counted from `start`, and waits for them until `limit`. Sorted by number.
    pub async fn submit(&self, jobs: &[Job], start: Instant, limit: Instant) -> Vec<Outcome> {
        let mut tasks = JoinSet::new();
        let mut outcomes = Vec::with_capacity(jobs.len());
        for (nth, job) in jobs.iter().copied().enumerate() {
            let due = start + job.at;
            if due > Instant::now() {
                sleep_until(due).await;
            }
            let late = due.elapsed();
            let client = self.clone();
            tasks.spawn(async move {
                let mut again = 0;
                let done = timeout_at(limit, client.hand_in(nth, job, &mut again)).await;
                Outcome { nth, time: done.is_ok().then(|| due.elapsed()), again, late }
            });
            while let Some(Ok(outcome)) = tasks.try_join_next() {
                outcomes.push(outcome);
            }
        }
        while let Some(outcome) = tasks.join_next().await {
            outcomes.extend(outcome);
        }
        outcomes.sort_unstable_by_key(|outcome| outcome.nth);
        outcomes
    }

    /// Hands one job in until it is done.
    async fn hand_in(&self, nth: usize, job: Job, again: &mut u32) {
        let region = &REGIONS[job.origin];
        let head = format!(
            "PUT /job/{nth} HTTP/1.1\r\nhost: {AUTHORITY}\r\n{ORIGIN_HEADER}: {},{}\r\n\
             {REGION_HEADER}: {}\r\n{PASSES_HEADER}: {}\r\ncontent-length: {}\r\n\r\n",
            region.latitude, region.longitude, region.name, job.passes, job.bytes
        );
        let wanted = format!("job {nth} done");
        while self.attempt(&head, job.bytes, &wanted).await.is_err() {
            *again += 1;
            sleep(PAUSE).await;
        }
    }

    async fn attempt(&self, head: &str, bytes: u64, wanted: &str) -> io::Result<()> {
        let kept = self.idle.lock().ok().and_then(|mut idle| idle.pop());
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(self.target).await?,
        };
        let (status, answer) = connection.send(head, bytes).await?;
        if status != 200 || answer != wanted {
            return Err(unexpected(format!("status {status}, {answer:?}")));
        }
        self.keep(connection);
        Ok(())
    }

    fn keep(&self, connection: Connection) {
        if let Ok(mut idle) = self.idle.lock()
            && idle.len() < IDLE
        {
            idle.push(connection);
        }
    }
}
