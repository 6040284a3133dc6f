//! Bytes on disk that may have to be sent again.
//!
//! One [`Space`] per process bounds what all of them take together; each [`Spool`] is a file
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
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::metrics::{Counter, Gauge, registry};

/// Where spools are kept, and how much all together may take.
#[derive(Debug)]
pub struct Space {
    folder: PathBuf,
    limit: u64,
    used: AtomicU64,
    refused: Counter,
    occupied: Gauge,
    /// Said once that there is no room, until there is again.
    warned: AtomicBool,
}

/// One file: appended to, and read from anywhere.
#[derive(Debug)]
pub(crate) struct Spool {
    share: Share,
    file: Option<Arc<File>>,
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
    /// Bytes appended, written or waiting.
    length: u64,
    writing: Option<JoinHandle<io::Result<Arc<File>>>>,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    failed: bool,
}

/// What one spool has taken of the space; given back when dropped.
#[derive(Debug)]
struct Share {
    space: Arc<Space>,
    bytes: u64,
}

/// Written in strides of at least so many bytes.
const STRIDE: usize = 512 * 1024;
/// And so many may wait besides those being written.
const MOST_WAITING: usize = 1024 * 1024;
/// Read in strides of at most so many bytes.
const READ: u64 = 256 * 1024;
/// Space is taken in steps of so many bytes.
const STEP: u64 = 1 << 20;
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
            warned: AtomicBool::new(false),
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

    /// Counts a transfer that goes on without a copy, and says so the first time.
    fn refuse(&self, why: &str) {
        self.refused.inc();
        if !self.warned.swap(true, Relaxed) {
            tracing::warn!(
                folder = %self.folder.display(),
                "no room to keep a request body for another try: {why}; transfers go on without one"
            );
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.space.used.fetch_sub(self.bytes, Relaxed);
        self.space.occupied.add(-self.bytes.cast_signed());
        self.space.warned.store(false, Relaxed);
    }
}

impl Spool {
    /// An empty one; its file is made with the first write.
    pub(crate) fn new(space: Arc<Space>) -> Self {
        Self {
            share: Share { space, bytes: 0 },
            file: None,
            waiting: Vec::new(),
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
        if length > self.share.bytes {
            let more = (length - self.share.bytes).next_multiple_of(STEP);
            if !self.share.space.take(more) {
                return false;
            }
            self.share.bytes += more;
        }
        self.length = length;
        self.waiting_bytes += bytes.len();
        self.waiting.push(bytes);
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

    /// Starts to write what waits, unless a write is under way.
    fn write(&mut self, cx: &mut Context<'_>) {
        if let Some(job) = &mut self.writing {
            let Poll::Ready(done) = Pin::new(job).poll(cx) else { return };
            self.writing = None;
            match flat(done) {
                Ok(file) => self.file = Some(file),
                Err(error) => self.fail(&error),
            }
        }
        if self.failed {
            self.waiting.clear();
            self.waiting_bytes = 0;
        }
        if self.waiting.is_empty() {
            return;
        }
        let pieces = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let (file, space) = (self.file.clone(), self.share.space.clone());
        let mut job = spawn_blocking(move || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(create(&space.folder)?),
            };
            write_all(&file, &pieces)?;
            Ok(file)
        });
        // Whoever waits for room is woken by this one.
        if let Poll::Ready(done) = Pin::new(&mut job).poll(cx) {
            match flat(done) {
                Ok(file) => self.file = Some(file),
                Err(error) => self.fail(&error),
            }
        } else {
            self.writing = Some(job);
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.failed = true;
        self.share.space.refuse(&error.to_string());
    }

    /// Whether a write has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
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
            while self.writing.is_some() || !self.waiting.is_empty() {
                self.write(cx);
                if self.writing.is_some() {
                    return Poll::Pending;
                }
            }
            let Some(file) = self.file.clone().filter(|_| !self.failed) else {
                return Poll::Ready(Err(io::Error::other("the spool could not be written")));
            };
            let most = (self.length - at).min(READ) as usize;
            self.reading = Some(spawn_blocking(move || {
                let mut bytes = BytesMut::zeroed(most);
                file.read_exact_at(&mut bytes, at)?;
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
            let written = file.write_vectored(left)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut left, written);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

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
        assert_eq!(space.used.load(Relaxed), 0, "the space is given back");
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
        assert!(second.push(vec![0; 1].into()));

        let nowhere = Arc::new(Space::new(folder.path().join("none"), STEP));
        let mut third = Spool::new(nowhere);
        third.push(vec![0; 1000].into());
        let error = read(&mut third, 0).await.unwrap_err();
        assert!(!third.push(vec![0; 1].into()) || third.has_failed(), "{error}");
    }
}
