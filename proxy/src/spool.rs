//! Bytes on disk that may have to be sent again.
//!
//! One [`Space`] per process bounds what all of them take together; each `Spool` is a file
//! without a name, gone with its last user, whatever becomes of the process. What is written
//! goes through threads for blocking work in large strides; so little is held in memory for it
//! that a slow disk slows its transfer down rather than filling memory.

use std::{
    fs::File,
    future::Future,
    io::{self, IoSlice, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    runtime::Handle,
    task::{JoinHandle, spawn_blocking},
};

use crate::metrics::{Counter, Gauge, registry};

/// Where spools are kept, and how much all together may take.
#[derive(Debug)]
pub struct Space {
    folder: PathBuf,
    limit: u64,
    used: AtomicU64,
    refused: Counter,
    occupied: Gauge,
    since: Instant,
    /// Seconds after `since` before which nothing more is said of refusals.
    quiet_until: AtomicU64,
}

/// One file: appended to, and read from anywhere.
#[derive(Debug)]
pub(crate) struct Spool {
    held: Arc<Held>,
    waiting: Vec<Bytes>,
    /// Small pieces behind those, joined: many must not cost more than their bytes.
    joined: BytesMut,
    waiting_bytes: usize,
    /// Bytes appended, written or waiting.
    length: u64,
    writing: Option<JoinHandle<io::Result<()>>>,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    failed: bool,
}

/// A file, and what it has taken of the space; given back with its last user, jobs included.
#[derive(Debug)]
struct Held {
    space: Arc<Space>,
    file: OnceLock<File>,
    taken: AtomicU64,
}

/// A file on its way out.
struct Closing {
    space: Arc<Space>,
    file: Option<File>,
    taken: u64,
}

/// Written in strides of at least so many bytes.
const STRIDE: usize = 512 * 1024;
/// And so many may wait besides those being written.
const MOST_WAITING: usize = 1024 * 1024;
/// Read in strides of at most so many bytes.
const READ: u64 = 256 * 1024;
/// Space is taken in steps of so many bytes.
const STEP: u64 = 1 << 20;
/// Pieces below this are joined.
const JOINED: usize = 8 * 1024;
/// Seconds between two warnings that there is no room.
const QUIET: u64 = 60;
/// Pieces per write call.
const SLICES: usize = 64;

impl Space {
    /// A space of `limit` bytes in files of this folder.
    pub fn new(folder: PathBuf, limit: u64) -> Self {
        Self {
            folder,
            limit,
            used: AtomicU64::new(0),
            refused: registry().counter("towpath_spool_refused_total", &[]),
            occupied: registry().gauge("towpath_spool_bytes", &[]),
            since: Instant::now(),
            quiet_until: AtomicU64::new(0),
        }
    }

    fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|total| *total <= self.limit);
        let taken = self.used.fetch_update(Relaxed, Relaxed, fits).is_ok();
        if taken {
            self.occupied.add(bytes.cast_signed());
        } else {
            self.refuse("its limit is reached; raise --spool-bytes");
        }
        taken
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
}

impl Held {
    fn file(&self) -> io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        // One job at a time: nobody else can have made it meanwhile.
        let file = create(&self.space.folder)?;
        Ok(self.file.get_or_init(|| file))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let taken = std::mem::take(self.taken.get_mut());
        let closing = Closing { space: self.space.clone(), file: self.file.take(), taken };
        // To give gigabytes back takes the kernel a while, and this may be a worker's thread.
        match Handle::try_current() {
            Ok(runtime) if closing.file.is_some() => drop(runtime.spawn_blocking(|| drop(closing))),
            _ => drop(closing),
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.file = None;
        self.space.used.fetch_sub(self.taken, Relaxed);
        self.space.occupied.add(-self.taken.cast_signed());
    }
}

impl Spool {
    /// An empty one; its file is made with the first write.
    pub(crate) fn new(space: Arc<Space>) -> Self {
        Self {
            held: Arc::new(Held { space, file: OnceLock::new(), taken: AtomicU64::new(0) }),
            waiting: Vec::new(),
            joined: BytesMut::new(),
            waiting_bytes: 0,
            length: 0,
            writing: None,
            reading: None,
            failed: false,
        }
    }

    /// Bytes appended.
    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// Appends. False when there is no room, or the disk failed: nothing can be read any more then.
    pub(crate) fn push(&mut self, bytes: Bytes) -> bool {
        let length = self.length + bytes.len() as u64;
        let taken = self.held.taken.load(Relaxed);
        if length > taken {
            let more = (length - taken).next_multiple_of(STEP);
            if !self.held.space.take(more) {
                return false;
            }
            self.held.taken.fetch_add(more, Relaxed);
        }
        self.length = length;
        self.waiting_bytes += bytes.len();
        if bytes.len() < JOINED {
            self.joined.extend_from_slice(&bytes);
        } else {
            self.flush_joined();
            self.waiting.push(bytes);
        }
        if self.waiting_bytes >= STRIDE {
            self.write(&mut Context::from_waker(Waker::noop()));
        }
        !self.failed
    }

    /// Ready when more may be appended.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiting_bytes < MOST_WAITING {
            return Poll::Ready(());
        }
        self.write(cx);
        if self.failed || self.waiting_bytes < MOST_WAITING {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn flush_joined(&mut self) {
        if !self.joined.is_empty() {
            self.waiting.push(self.joined.split().freeze());
        }
    }

    /// Starts to write what waits, unless a write is under way.
    fn write(&mut self, cx: &mut Context<'_>) {
        if let Some(job) = &mut self.writing {
            let Poll::Ready(done) = Pin::new(job).poll(cx) else { return };
            self.wrote(flat(done));
        }
        self.flush_joined();
        let pieces = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        if self.failed || pieces.is_empty() {
            return;
        }
        let held = self.held.clone();
        let job = self.writing.insert(spawn_blocking(move || write_all(held.file()?, &pieces)));
        // Whoever waits for room is woken by this one.
        if let Poll::Ready(done) = Pin::new(job).poll(cx) {
            self.wrote(flat(done));
        }
    }

    fn wrote(&mut self, done: io::Result<()>) {
        self.writing = None;
        if let Err(error) = done {
            self.failed = true;
            self.held.space.refuse(&error.to_string());
        }
    }

    /// Whether a write has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Ready once all that was appended is written, or cannot be.
    pub(crate) fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.writing.is_some() || self.waiting_bytes > 0 {
            self.write(cx);
            if self.writing.is_some() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// Some bytes from `at` on, which lies before the end.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, at: u64) -> Poll<io::Result<Bytes>> {
        loop {
            if let Some(job) = &mut self.reading {
                let done = ready!(Pin::new(job).poll(cx));
                self.reading = None;
                return Poll::Ready(flat(done));
            }
            ready!(self.poll_settled(cx));
            if self.failed {
                return Poll::Ready(Err(io::Error::other("the spool could not be written")));
            }
            let held = self.held.clone();
            let most = (self.length - at).min(READ) as usize;
            self.reading = Some(spawn_blocking(move || {
                let mut bytes = BytesMut::zeroed(most);
                held.file()?.read_exact_at(&mut bytes, at)?;
                Ok(bytes.freeze())
            }));
        }
    }

    /// Forgets a read under way: the next one is from elsewhere.
    pub(crate) fn rewind(&mut self) {
        self.reading = None;
    }
}

fn flat<T>(done: Result<io::Result<T>, tokio::task::JoinError>) -> io::Result<T> {
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// A file without a name, for this user alone.
fn create(folder: &Path) -> io::Result<File> {
    tempfile::tempfile_in(folder).map_err(|error| {
        io::Error::new(error.kind(), format!("{}: {error}; see --spool-dir", folder.display()))
    })
}

fn write_all(mut file: &File, pieces: &[Bytes]) -> io::Result<()> {
    for some in pieces.chunks(SLICES) {
        let mut slices: Vec<_> = some.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let written = match file.write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                written => written?,
            };
            IoSlice::advance_slices(&mut left, written);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Waits for files to be closed, by another thread.
    async fn given_back(space: &Space) {
        for _ in 0..10_000 {
            if space.used.load(Relaxed) == 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        panic!("{} bytes are not given back", space.used.load(Relaxed));
    }

    async fn read(spool: &mut Spool, from: u64) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while from + (all.len() as u64) < spool.len() {
            let at = from + all.len() as u64;
            all.extend_from_slice(&poll_fn(|cx| spool.poll_read(cx, at)).await?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn what_is_appended_can_be_read_from_anywhere_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let space = Arc::new(Space::new(folder.path().into(), 64 << 20));
        let mut spool = Spool::new(space.clone());
        let mut rng = fastrand::Rng::with_seed(1);
        let mut all = Vec::new();
        for _ in 0..400 {
            let mut piece = vec![0; rng.usize(1..40_000)];
            rng.fill(&mut piece);
            all.extend_from_slice(&piece);
            poll_fn(|cx| spool.poll_room(cx)).await;
            assert!(spool.push(piece.into()));
            assert!(spool.waiting_bytes <= MOST_WAITING + 40_000, "memory stays bounded");
        }
        for from in [0, 1, 300_000, all.len() as u64 - 1, 0] {
            assert!(read(&mut spool, from).await.unwrap() == all[from as usize..], "from {from}");
        }
        assert!(spool.push(Bytes::from_static(b"more")));
        assert_eq!(read(&mut spool, all.len() as u64).await.unwrap(), b"more");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no name in the folder");
        assert!(space.used.load(Relaxed) >= all.len() as u64);
        drop(spool);
        given_back(&space).await;
    }

    #[tokio::test]
    async fn a_full_space_or_a_disk_that_fails_is_told_and_gives_everything_back() {
        let folder = tempfile::tempdir().unwrap();
        let space = Arc::new(Space::new(folder.path().into(), STEP));
        let mut first = Spool::new(space.clone());
        assert!(first.push(vec![0; 1000].into()));
        let mut second = Spool::new(space.clone());
        assert!(!second.push(vec![0; 1].into()), "the first has it all");
        assert_eq!(read(&mut first, 0).await.unwrap().len(), 1000);
        drop(first);
        given_back(&space).await;
        assert!(second.push(vec![0; 1].into()));

        let nowhere = Arc::new(Space::new(folder.path().join("none"), STEP));
        let mut third = Spool::new(nowhere);
        third.push(vec![0; 1000].into());
        let error = read(&mut third, 0).await.unwrap_err();
        assert!(!third.push(vec![0; 1].into()) || third.has_failed(), "{error}");
    }
}
