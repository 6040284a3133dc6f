//! Work that blocks, on few threads: a disk gets no faster by more of them, and each costs memory.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::task::spawn_blocking;

use crate::lock::lock;

/// What is to be done, first come, first served. It holds at most two for each spool: one
/// that writes, and one that reads.
#[derive(Default)]
pub(super) struct Jobs {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    threads: usize,
}

type Job = Box<dyn FnOnce() + Send>;

/// Most threads that work at a time.
const THREADS: usize = 4;

impl Jobs {
    /// Does this soon, on another thread.
    pub(super) fn run(jobs: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        let mut state = jobs.lock();
        state.waiting.push_back(Box::new(job));
        if state.threads < THREADS {
            state.threads += 1;
            drop(state);
            let thread = Thread { jobs: jobs.clone(), counted: true };
            drop(spawn_blocking(move || thread.work()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").finish_non_exhaustive()
    }
}

/// One of the threads; counted until it ends, be it by a panic.
struct Thread {
    jobs: Arc<Jobs>,
    counted: bool,
}

impl Thread {
    fn work(mut self) {
        let jobs = self.jobs.clone();
        loop {
            let mut state = jobs.lock();
            let Some(job) = state.waiting.pop_front() else {
                // In one step with the look, so that nobody relies on a thread that has left.
                state.threads -= 1;
                self.counted = false;
                return;
            };
            drop(state);
            job();
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if self.counted {
            self.jobs.lock().threads -= 1;
        }
    }
}
