//! Bytes on disk that may have to be sent again.
//!
//! One [`Space`] per process bounds what all of them take together, on disk and in memory; each
//! `Spool` is a file without a name, gone with its last user, whatever becomes of the process.
//! What is written goes through threads for blocking work in large strides; so little is held in
//! memory for it that a slow disk slows its transfers down rather than filling memory.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use tokio::{runtime::Handle, sync::oneshot};

mod idle;
mod jobs;
mod memory;
mod seal;
mod writer;

#[cfg(test)]
mod tests;

use self::{
    idle::{Backing, IDLE, Idle, MOST},
    jobs::Jobs,
    memory::{Memory, Place},
    writer::Writer,
};
use crate::{
    lock::lock,
    metrics::{Counter, Gauge, registry},
};

/// Where spools are kept, and how much all together may take.
#[derive(Debug)]
pub struct Space {
    folder: PathBuf,
    limit: u64,
    encrypted: bool,
    memory: Memory,
    jobs: Arc<Jobs>,
    /// On disk, by spools and by idle files.
    used: AtomicU64,
    idle: Mutex<Idle>,
    refused: Counter,
    occupied: Gauge,
    since: Instant,
    /// Seconds after `since` before which nothing more is said of refusals.
    quiet_until: AtomicU64,
}

/// One file: appended to, and read from anywhere.
#[derive(Debug)]
pub(crate) struct Spool {
    writer: Arc<Writer>,
    /// Bytes appended, written or waiting.
    length: u64,
    reading: Option<oneshot::Receiver<io::Result<Bytes>>>,
    /// While it waits for room in memory.
    place: Option<Place>,
}

/// Bytes that all spools of a process may hold in memory together, unless told otherwise.
pub const DEFAULT_MEMORY: u64 = 32 << 20;

/// Read in strides of at most so many bytes.
const READ: u64 = 128 * 1024;
/// Seconds between two warnings that there is no room.
const QUIET: u64 = 60;

impl Space {
    /// A space of `limit` bytes in files of this folder.
    pub fn new(folder: PathBuf, limit: u64) -> Self {
        Self {
            folder,
            limit,
            encrypted: false,
            memory: memory(DEFAULT_MEMORY),
            jobs: Arc::default(),
            used: AtomicU64::new(0),
            idle: Mutex::default(),
            refused: registry().counter("towpath_spool_refused_total", &[]),
            occupied: registry().gauge("towpath_spool_bytes", &[]),
            since: Instant::now(),
            quiet_until: AtomicU64::new(0),
        }
    }

    /// Encrypts what is on disk, each spool by a key of its own that is nowhere but in memory.
    #[must_use]
    pub fn encrypted(mut self, encrypted: bool) -> Self {
        self.encrypted = encrypted;
        self
    }

    /// So many bytes may wait in memory to be written, of all spools together. Beyond that
    /// transfers wait their turn.
    #[must_use]
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.memory = memory(bytes);
        self
    }

    fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|total| *total <= self.limit);
        let take = || self.used.fetch_update(Relaxed, Relaxed, fits).is_ok();
        let taken = take() || (self.give_up_idle() && take());
        if taken {
            self.occupied.add(bytes.cast_signed());
        }
        taken
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
        self.occupied.add(-bytes.cast_signed());
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        lock(&self.idle)
    }

    /// A file that another spool has done with.
    fn idle_file(&self) -> Option<Backing> {
        let backing = self.idle().take()?;
        self.occupied.add(backing.bytes.cast_signed());
        Some(backing)
    }

    /// Closes what is idle. Whether there was anything.
    fn give_up_idle(&self) -> bool {
        let gone = self.idle().clear();
        let some = !gone.is_empty();
        self.close(gone);
        some
    }

    fn close(&self, files: Vec<Backing>) {
        let bytes: u64 = files.iter().map(|backing| backing.bytes).sum();
        self.used.fetch_sub(bytes, Relaxed);
        // To give gigabytes back takes the kernel a while, and this may be a worker's thread.
        match Handle::try_current() {
            Ok(runtime) if !files.is_empty() => drop(runtime.spawn_blocking(|| drop(files))),
            _ => drop(files),
        }
    }

    /// Takes a file back from a spool, for the next one if it is good.
    fn retire(space: &Arc<Self>, mut backing: Backing, good: bool) {
        space.occupied.add(-backing.bytes.cast_signed());
        let Some(runtime) = Handle::try_current().ok().filter(|_| good) else {
            return space.close(vec![backing]);
        };
        let owned = space.clone();
        let handle = runtime.clone();
        runtime.spawn_blocking(move || {
            if backing.bytes > MOST {
                if backing.file.set_len(MOST).is_err() {
                    return owned.close(vec![backing]);
                }
                owned.used.fetch_sub(backing.bytes - MOST, Relaxed);
                backing.bytes = MOST;
            }
            let (gone, watched) = {
                let mut idle = owned.idle();
                (idle.put(backing), std::mem::replace(&mut idle.watched, true))
            };
            owned.close(gone);
            if !watched {
                Self::watch_idle(&owned, &handle);
            }
        });
    }

    /// Closes idle files once nothing has been added to them for a while.
    fn watch_idle(space: &Arc<Self>, runtime: &Handle) {
        let space = Arc::downgrade(space);
        runtime.spawn(async move {
            let mut seen = 0;
            loop {
                tokio::time::sleep(IDLE).await;
                let Some(space) = space.upgrade() else { return };
                let mut idle = space.idle();
                if idle.generation == seen {
                    idle.watched = false;
                    let gone = idle.clear();
                    drop(idle);
                    return space.close(gone);
                }
                seen = idle.generation;
            }
        });
    }

    /// Counts a transfer that goes on without a copy, and says so now and then.
    fn refuse(&self, why: &str) {
        self.refused.inc();
        let now = self.since.elapsed().as_secs();
        let said = |until: u64| (until <= now).then_some(now + QUIET);
        if self.quiet_until.fetch_update(Relaxed, Relaxed, said).is_ok() {
            tracing::warn!(
                folder = %self.folder.display(),
                "no room to keep a request body for another try: {why}; transfers go on without one"
            );
        }
    }

    /// On disk for transfers.
    #[cfg(test)]
    fn in_use(&self) -> u64 {
        let idle = self.idle();
        self.used.load(Relaxed) - idle.bytes()
    }
}

impl Spool {
    /// An empty one; its file is made with the first write.
    pub(crate) fn new(space: Arc<Space>) -> Self {
        let writer = Arc::new(Writer::new(space));
        Self { writer, length: 0, reading: None, place: None }
    }

    /// Bytes appended.
    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// Whether a write has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.writer.has_failed()
    }

    /// Appends. False when there is no room, or the disk failed: nothing can be read any more then.
    pub(crate) fn push(&mut self, bytes: Bytes) -> bool {
        let length = self.length + bytes.len() as u64;
        if self.writer.has_failed() || !self.writer.reserve(length) {
            return false;
        }
        self.length = length;
        if self.writer.add(&bytes) {
            start(&self.writer);
        }
        true
    }

    /// Ready when more may be appended.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.writer.poll_room(cx));
        let memory = &self.writer.space.memory;
        // Nothing of ours stays behind while others wait for room, and we with them.
        if memory.is_full() && self.writer.flush() {
            start(&self.writer);
        }
        memory.poll_room(cx, &mut self.place)
    }

    /// Ready once all that was appended is written, or cannot be. Who waits for that appends nothing.
    pub(crate) fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.place = None;
        self.writer.poll_settled(cx, || start(&self.writer))
    }

    /// Some bytes from `at` on, which lies before the end.
    ///
    /// # Errors
    /// When the disk fails, or what is there was changed.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, at: u64) -> Poll<io::Result<Bytes>> {
        loop {
            if let Some(job) = &mut self.reading {
                let done = ready!(Pin::new(job).poll(cx));
                self.reading = None;
                return Poll::Ready(done.unwrap_or_else(|error| Err(io::Error::other(error))));
            }
            ready!(self.poll_settled(cx));
            if self.has_failed() {
                return Poll::Ready(Err(io::Error::other("the spool could not be written")));
            }
            let writer = self.writer.clone();
            let most = (self.length - at).min(READ) as usize;
            let jobs = writer.space.jobs.clone();
            let (done, reading) = oneshot::channel();
            self.reading = Some(reading);
            // Whoever waited for it may be gone.
            Jobs::run(&jobs, move || drop(done.send(writer.read(at, most))));
        }
    }

    /// Forgets a read under way: the next one is from elsewhere. Nor is room waited for until it
    /// is asked for again.
    pub(crate) fn rewind(&mut self) {
        self.reading = None;
        self.place = None;
    }
}

fn start(writer: &Arc<Writer>) {
    let own = writer.clone();
    Jobs::run(&writer.space.jobs, move || Writer::run(own));
}

fn memory(bytes: u64) -> Memory {
    Memory::new(usize::try_from(bytes).unwrap_or(usize::MAX))
}
