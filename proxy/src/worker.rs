//! The threads that carry traffic: one single-threaded runtime each.
//!
//! A connection stays on one worker for its life. Where it goes is decided once,
//! when it is accepted: to the worker with the fewest open connections, since a
//! few huge ones must not pile up on one core.

use std::{
    future::Future,
    io,
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicU32,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread::JoinHandle,
};

use crossbeam_utils::CachePadded;
use tokio::{runtime::Handle, sync::oneshot};

use crate::lock::lock;

/// All workers of a proxy.
#[derive(Debug)]
pub(crate) struct Workers {
    workers: Box<[Worker]>,
    threads: Mutex<Vec<Thread>>,
    accepting: Arc<AtomicU32>,
}

#[derive(Debug)]
struct Worker {
    handle: Handle,
    open: Arc<CachePadded<AtomicU32>>,
}

#[derive(Debug)]
struct Thread {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// One listener whose accepted connections may not all be counted yet, until dropped.
#[derive(Debug)]
pub(crate) struct Accepting(Arc<AtomicU32>);

/// One open connection, counted on its worker until dropped.
#[derive(Debug)]
pub(crate) struct Load(Arc<CachePadded<AtomicU32>>);

impl Workers {
    /// Starts `count` threads, each with its runtime.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        let mut workers = Vec::new();
        let mut threads = Vec::new();
        for index in 0..count.max(1) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            workers.push(Worker { handle: runtime.handle().clone(), open: Arc::default() });
            let (stop, stopped) = oneshot::channel();
            let thread =
                std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                    // An error means the sender is gone, which also means stop.
                    let _ = runtime.block_on(stopped);
                    // Blocking work of others (a DNS look-up) is not waited for.
                    runtime.shutdown_background();
                })?;
            threads.push(Thread { stop, thread });
        }
        Ok(Self {
            workers: workers.into(),
            threads: Mutex::new(threads),
            accepting: Arc::default(),
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.workers.len()
    }

    /// Runs a task on one worker.
    pub(crate) fn spawn_on<F>(&self, worker: usize, task: F) -> tokio::task::JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.workers[worker % self.workers.len()].handle.spawn(task)
    }

    /// The worker with the fewest connections, and the count of one more on it; ties go to `here`.
    pub(crate) fn least_loaded(&self, here: usize) -> (usize, Load) {
        let open = |index: usize| self.workers[index].open.load(Relaxed);
        let mut chosen = here;
        for index in 0..self.workers.len() {
            if open(index) < open(chosen) {
                chosen = index;
            }
        }
        let count = self.workers[chosen].open.clone();
        count.fetch_add(1, Relaxed);
        (chosen, Load(count))
    }

    /// Counts a listener that accepts; what it accepts must be counted before it ends.
    pub(crate) fn accepting(&self) -> Accepting {
        self.accepting.fetch_add(1, Relaxed);
        Accepting(self.accepting.clone())
    }

    /// Whether no connection is open, and no listener still hands over what the kernel had
    /// accepted for it.
    pub(crate) fn are_idle(&self) -> bool {
        // In this order, and ordered with the drop below: who is no longer among the accepting
        // has counted all its connections.
        self.accepting.load(Acquire) == 0 && self.open_connections() == 0
    }

    /// Client connections open now.
    pub(crate) fn open_connections(&self) -> u32 {
        self.workers.iter().map(|w| w.open.load(Relaxed)).sum()
    }

    /// Ends every task where it stands and joins the threads.
    pub(crate) fn stop(&self) {
        let threads = std::mem::take(&mut *lock(&self.threads));
        let stopping: Vec<_> = threads
            .into_iter()
            .map(|Thread { stop, thread }| {
                // A worker that is gone already needs no telling.
                let _ = stop.send(());
                thread
            })
            .collect();
        let this = std::thread::current().id();
        for thread in stopping {
            // The last owner may be a task on a worker, which cannot wait for itself.
            if thread.thread().id() == this {
                continue;
            }
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Release);
    }
}

impl Clone for Load {
    /// One more connection of the same worker.
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Relaxed);
        Self(self.0.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_spread_over_the_workers() {
        let workers = Workers::start(3).unwrap();
        let held: Vec<_> = (0..9).map(|_| workers.least_loaded(1)).collect();
        for worker in 0..3 {
            assert_eq!(held.iter().filter(|(w, _)| *w == worker).count(), 3);
        }
        assert_eq!(held[0].0, 1, "the first stays where it was accepted");
        assert_eq!(workers.open_connections(), 9);
        drop(held);
        assert_eq!(workers.open_connections(), 0);
    }

    #[test]
    fn stopping_drops_what_runs() {
        let workers = Workers::start(2).unwrap();
        let (_, load) = workers.least_loaded(0);
        workers.spawn_on(1, async move {
            let _load = load;
            std::future::pending::<()>().await;
        });
        assert_eq!(workers.open_connections(), 1);
        workers.stop();
        assert_eq!(workers.open_connections(), 0);
    }
}
