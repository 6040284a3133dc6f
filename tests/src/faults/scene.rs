//! What is known of a run while it goes on: the plan, what endpoints saw, the story.

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;

use super::{
    plan::{Plan, Request},
    tap::Control,
};

/// One run, as all its parts see it.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) plan: Plan,
    start: Instant,
    attempts: Mutex<Vec<Attempt>>,
    uploads: Mutex<Vec<Stored>>,
    story: Mutex<String>,
    passed: AtomicU64,
    progress: Notify,
}

/// A try, as its endpoint saw it.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    pub(super) request: usize,
    /// Counted from 0 for each request.
    pub(super) number: usize,
    pub(super) endpoint: usize,
    pub(super) key: Option<String>,
    pub(super) method: String,
    /// Body bytes.
    pub(super) received: u64,
    /// Where the body first was not the client's.
    pub(super) wrong: Option<u64>,
    /// The body ended as a whole one does.
    pub(super) complete: bool,
    /// The endpoint said that it did not process it.
    pub(super) refused: bool,
    /// Body bytes of the answer that may have been sent.
    pub(super) sent: u64,
    pub(super) connection: Arc<Control>,
    /// 0 over HTTP/1.1.
    pub(super) stream: u32,
    /// Where in the client's body its own begins.
    pub(super) from: u64,
    /// It asked for the rest of an answer.
    pub(super) ranged: bool,
    /// The upload it began, asked for or went on with.
    pub(super) upload: Option<usize>,
    /// Whether the body was what its digest says, where it came with one.
    pub(super) proved: Option<bool>,
    /// The endpoint has more to do for it.
    pub(super) working: bool,
    /// Others that the endpoint worked on when this one came.
    pub(super) beside: usize,
}

/// An upload that can go on, as its server keeps it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) request: usize,
    /// Where it began.
    pub(super) endpoint: usize,
    pub(super) bytes: u64,
    pub(super) complete: bool,
    /// The try that may append to it: the last that began, asked or went on.
    pub(super) owner: usize,
}

/// Longest story kept, in bytes.
const MAX_STORY: usize = 1 << 20;

impl Scene {
    pub(super) fn new(plan: Plan) -> Arc<Self> {
        Arc::new(Self {
            plan,
            start: Instant::now(),
            attempts: Mutex::default(),
            uploads: Mutex::default(),
            story: Mutex::default(),
            passed: AtomicU64::new(0),
            progress: Notify::new(),
        })
    }

    pub(super) fn request(&self, index: usize) -> Option<&Request> {
        self.plan.requests().find(|request| request.index == index)
    }

    /// Adds a line to the story.
    pub(super) fn tell(&self, what: impl std::fmt::Display) {
        let mut story = self.story.lock().unwrap_or_else(PoisonError::into_inner);
        if story.len() < MAX_STORY {
            let at = self.start.elapsed().as_secs_f64() * 1e3;
            let _ = writeln!(story, "{at:9.3} ms  {what}");
        }
    }

    pub(super) fn story(&self) -> String {
        self.story.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a new try; its position and its number among those of its request.
    pub(super) fn begin(&self, mut attempt: Attempt) -> (usize, usize) {
        let mut attempts = self.attempts();
        let number = attempts.iter().filter(|a| a.request == attempt.request).count();
        attempt.number = number;
        let beside = |a: &&Attempt| a.endpoint == attempt.endpoint && a.working;
        attempt.beside = attempts.iter().filter(beside).count();
        attempts.push(attempt);
        (attempts.len() - 1, number)
    }

    pub(super) fn note(&self, attempt: usize, note: impl FnOnce(&mut Attempt)) {
        if let Some(attempt) = self.attempts().get_mut(attempt) {
            note(attempt);
        }
    }

    pub(super) fn attempts(&self) -> MutexGuard<'_, Vec<Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new upload that can go on.
    pub(super) fn store(&self, stored: Stored) -> usize {
        let mut uploads = self.uploads();
        uploads.push(stored);
        uploads.len() - 1
    }

    pub(super) fn uploads(&self) -> MutexGuard<'_, Vec<Stored>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that so many bytes of bodies arrived.
    pub(super) fn pass(&self, bytes: usize) {
        self.passed.fetch_add(bytes as u64, Ordering::Relaxed);
        self.progress.notify_waiters();
    }

    /// Waits until so many bytes have arrived.
    pub(super) async fn passed(&self, bytes: u64) {
        loop {
            let mut more = std::pin::pin!(self.progress.notified());
            more.as_mut().enable();
            if self.passed.load(Ordering::Relaxed) >= bytes {
                return;
            }
            more.await;
        }
    }
}

impl Attempt {
    /// Whether the endpoint may have acted on it: all of it arrived, and was not refused.
    pub(super) fn is_processed(&self) -> bool {
        self.method != "HEAD"
            && self.complete
            && !self.refused
            && !self.connection.is_disowned(self.stream)
    }

    /// Whether it is about an upload that broke.
    pub(super) fn goes_on(&self) -> bool {
        matches!(self.method.as_str(), "HEAD" | "PATCH")
    }

    /// How far into the client's body it got.
    pub(super) fn until(&self) -> u64 {
        self.from + self.received
    }
}
