//! Idle HTTP/1.1 connections and shared HTTP/2 connections of one endpoint,
//! one pool per worker, so that a lock is never contended.

use std::sync::{Arc, Mutex, MutexGuard, Weak, atomic::Ordering::Relaxed};

use crossbeam_utils::CachePadded;
use tokio::time::{Duration, Instant, sleep};

use super::{EndpointState, admission::ConnectionGuard, h2_pool::Streams, io::UpstreamIo, now_ms};
use crate::{h2::Client, lock::lock};

/// The pools of one endpoint, by worker.
#[derive(Debug)]
pub(crate) struct Pools(Box<[CachePadded<Mutex<Pool>>]>);

/// What one worker has to one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// Last in, first out: the warmest is used, the coldest age out.
    idle: Vec<Idle>,
    requests: Sharing,
    tunnels: Sharing,
    sweeping: bool,
}

/// HTTP/2 connections of one kind.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    pub(super) shared: Vec<Shared>,
    pub(super) connecting: Option<super::h2_pool::Connecting>,
}

/// A connection that waits for its next request. Nothing is buffered for it.
#[derive(Debug)]
pub(crate) struct Http1 {
    pub(crate) io: UpstreamIo,
    pub(crate) guard: ConnectionGuard,
}

/// An HTTP/2 connection that takes streams.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    /// From when on it takes no more.
    pub(super) until: Option<Instant>,
}

#[derive(Debug)]
struct Idle {
    connection: Http1,
    since_ms: u64,
}

/// Most idle connections kept per endpoint and worker.
const MAX_IDLE: usize = 1024;
/// And for one client alone.
const MAX_IDLE_APART: usize = 16;
/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(1);

impl Pool {
    pub(super) fn sharing(&mut self, kind: Streams) -> &mut Sharing {
        match kind {
            Streams::Requests => &mut self.requests,
            Streams::Tunnels => &mut self.tunnels,
        }
    }

    fn close_shared(&mut self) {
        self.requests.shared.clear();
        self.tunnels.shared.clear();
    }
}

impl Pools {
    pub(super) fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| CachePadded::default()).collect())
    }

    pub(super) fn lock(&self, worker: usize) -> MutexGuard<'_, Pool> {
        lock(&self.0[worker % self.0.len()])
    }

    /// Closes what is idle. What is in use ends with its exchange.
    pub(super) fn clear(&self) {
        for worker in 0..self.0.len() {
            let mut pool = self.lock(worker);
            pool.idle.clear();
            pool.close_shared();
        }
    }

    /// As [`Self::clear`], by resets: nothing is on its way where nobody asked for anything, and the client's address
    /// must not lose a port for a minute each time (`TIME_WAIT`).
    pub(super) fn reset(&self) {
        for worker in 0..self.0.len() {
            let mut pool = self.lock(worker);
            pool.idle.drain(..).for_each(|idle| idle.connection.io.reset_on_close());
            pool.close_shared();
        }
    }

    /// Takes an idle connection that still stands.
    pub(crate) fn take(&self, worker: usize) -> Option<Http1> {
        let mut pool = self.lock(worker);
        loop {
            let mut idle = pool.idle.pop()?;
            if idle.connection.io.is_quiet() {
                return Some(idle.connection);
            }
        }
    }

    /// Starts the task that closes what has been idle too long; it ends with the last one.
    pub(super) fn sweep(self: &Arc<Self>, worker: usize, pool: &mut Pool, idle_timeout: Duration) {
        if !pool.sweeping {
            pool.sweeping = true;
            tokio::spawn(sweep_idle(Arc::downgrade(self), worker, idle_timeout));
        }
    }
}

impl EndpointState {
    /// Keeps a connection for the next request, unless the endpoint is gone or enough wait.
    pub(crate) fn put_back(&self, worker: usize, connection: Http1, idle_timeout: Duration) {
        let mut pool = self.pools().lock(worker);
        let removed = self.live.removed.load(Relaxed);
        let outdated = connection.guard.terms() != self.live.terms.load(Relaxed);
        let most = if self.apart.is_some() { MAX_IDLE_APART } else { MAX_IDLE };
        if removed || outdated || pool.idle.len() >= most {
            if self.apart.is_some() {
                connection.io.reset_on_close();
            }
            return;
        }
        pool.idle.push(Idle { connection, since_ms: now_ms() });
        self.pools().sweep(worker, &mut pool, idle_timeout);
    }
}

async fn sweep_idle(pools: Weak<Pools>, worker: usize, idle_timeout: Duration) {
    let idle_ms = u64::try_from(idle_timeout.as_millis()).unwrap_or(u64::MAX);
    loop {
        sleep(SWEEP.min(idle_timeout)).await;
        let Some(pools) = pools.upgrade() else { return };
        let mut pool = pools.lock(worker);
        let oldest = now_ms().saturating_sub(idle_ms);
        pool.idle.retain_mut(|i| i.since_ms > oldest && i.connection.io.is_quiet());
        let now = Instant::now();
        let mut none = pool.idle.is_empty();
        for kind in [Streams::Requests, Streams::Tunnels] {
            let shared = &mut pool.sharing(kind).shared;
            shared.retain(|shared| {
                shared.client.stands(idle_timeout) && shared.until.is_none_or(|until| now < until)
            });
            none &= shared.is_empty();
        }
        if none {
            pool.sweeping = false;
            return;
        }
    }
}
