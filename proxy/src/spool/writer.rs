//! What a spool and the jobs that write for it share.

use std::{
    fs::File,
    io::{self, IoSlice},
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use rustix::fs::{FallocateFlags, fallocate};

use super::{
    Space,
    idle::Backing,
    jobs::Jobs,
    seal::{BLOCK, SEALED, Seal},
};

use crate::lock::lock;

/// Bytes on their way to a file, and the file.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) space: Arc<Space>,
    seal: Option<Seal>,
    /// Made with the first write.
    file: OnceLock<File>,
    /// Of the space, for the file.
    taken: AtomicU64,
    /// What the file has of that, as far as it was asked for ahead.
    allocated: AtomicU64,
    failed: AtomicBool,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Full but for the last one. Bytes are copied here, since a view of some of them may hold
    /// many times as much, and memory is counted.
    buffers: Vec<Vec<u8>>,
    /// In `buffers`.
    bytes: usize,
    /// Buffers in the hands of a job.
    in_job: usize,
    /// A job is under way. There is never more than one.
    running: bool,
    /// The job does not leave anything behind for the next one.
    flush: bool,
    /// Bytes of content in the file.
    written: u64,
    /// What does not fill a block yet, where blocks are encrypted. It stays out of the budget,
    /// being less than what a connection reads at once.
    tail: Vec<u8>,
    waker: Option<Waker>,
}

/// What a job takes from the queue.
struct Batch {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    /// Where it goes.
    at: u64,
    tail: Vec<u8>,
}

/// Written in strides of at least so many bytes, while memory is not short.
const STRIDE: usize = 512 * 1024;
/// And so many may wait besides those being written.
pub(super) const MOST_WAITING: usize = 1024 * 1024;
/// Bytes of a buffer; all of it counts as held.
const BUFFER: usize = 64 * 1024;
/// Buffers per write call.
const SLICES: usize = 64;

impl Writer {
    pub(super) fn new(space: Arc<Space>) -> Self {
        let seal = space.encrypted.then(Seal::new).transpose();
        let failed = AtomicBool::new(seal.is_err());
        Self {
            space,
            seal: seal.unwrap_or_default(),
            file: OnceLock::new(),
            taken: AtomicU64::new(0),
            allocated: AtomicU64::new(0),
            failed,
            queue: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// Makes sure of space for this much content. False when there is none.
    pub(super) fn reserve(&self, content: u64) -> bool {
        let needed = match self.seal {
            Some(_) => content.div_ceil(BLOCK as u64) * SEALED as u64,
            None => content,
        };
        let mut taken = self.taken.load(Relaxed);
        if taken == 0
            && let Some(Backing { file, bytes }) = self.space.idle_file()
            && self.file.set(file).is_ok()
        {
            taken = bytes;
            self.taken.store(bytes, Relaxed);
            self.allocated.store(bytes, Relaxed);
        }
        let Some(missing) = needed.checked_sub(taken).filter(|missing| *missing > 0) else {
            return true;
        };
        // Larger and larger steps, for the disk's sake; the smallest when there is no room for them.
        let least = missing.next_multiple_of(STEP);
        let step = least.max(taken.min(MOST_STEP));
        let got = [step, least].into_iter().find(|step| self.space.take(*step));
        if let Some(got) = got {
            self.taken.fetch_add(got, Relaxed);
        } else {
            self.space.refuse("its limit is reached; raise --spool-bytes");
        }
        got.is_some()
    }

    /// Adds a piece. True when a job must be started.
    pub(super) fn add(&self, bytes: &[u8]) -> bool {
        let mut queue = self.lock();
        let more = queue.add(bytes);
        self.space.memory.take(more * BUFFER);
        let due = queue.bytes >= STRIDE || self.space.memory.is_short();
        queue.starts(due)
    }

    /// True when a job must be started, so that nothing waits.
    pub(super) fn flush(&self) -> bool {
        let mut queue = self.lock();
        queue.starts(true)
    }

    /// Ready when this spool may hold more. It does not start a job: there is one by then.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut queue = self.lock();
        if queue.bytes < MOST_WAITING || self.has_failed() {
            return Poll::Ready(());
        }
        queue.wake_later(cx);
        Poll::Pending
    }

    /// Ready once all is written, or cannot be. `start` is called where a job must be started.
    pub(super) fn poll_settled(&self, cx: &mut Context<'_>, start: impl FnOnce()) -> Poll<()> {
        let mut queue = self.lock();
        if self.has_failed() || queue.bytes + queue.in_job == 0 {
            return Poll::Ready(());
        }
        queue.wake_later(cx);
        queue.flush = true;
        if queue.starts(true) {
            drop(queue);
            start();
        }
        Poll::Pending
    }

    /// The job: writes what waits, and comes again while something does. Blocks.
    pub(super) fn run(writer: Arc<Self>) {
        let mut queue = writer.lock();
        if writer.has_failed() {
            writer.space.memory.give_back(queue.clear() * BUFFER);
        }
        let all = queue.flush || writer.space.memory.is_short();
        let Some(mut batch) = queue.next(all) else { return };
        // There is room for more while this is written.
        queue.wake();
        drop(queue);
        let outcome = writer.write(&mut batch);
        let Batch { buffers, tail, .. } = batch;
        let held = buffers.len() * BUFFER;
        drop(buffers);
        writer.space.memory.give_back(held);
        let mut queue = writer.lock();
        queue.in_job = 0;
        match outcome {
            Ok(written) => (queue.written, queue.tail) = (written, tail),
            Err(error) => {
                writer.failed.store(true, Relaxed);
                writer.space.refuse(&error.to_string());
            }
        }
        queue.wake();
        drop(queue);
        // Behind those of others.
        let jobs = writer.space.jobs.clone();
        Jobs::run(&jobs, move || Self::run(writer));
    }

    /// Writes a batch, and leaves in it what does not fill a block. How far the file goes then.
    fn write(&self, batch: &mut Batch) -> io::Result<u64> {
        let file = self.file()?;
        self.allocate(file);
        let Some(seal) = &self.seal else {
            write_all_at(file, batch.at, &batch.buffers)?;
            return Ok(batch.at + batch.bytes as u64);
        };
        let mut number = batch.at / BLOCK as u64;
        let (first, mut sealed) = (number, Vec::with_capacity(batch.bytes + batch.bytes / 512));
        for mut piece in batch.buffers.iter().map(Vec::as_slice) {
            while !piece.is_empty() {
                let (some, rest) = piece.split_at((BLOCK - batch.tail.len()).min(piece.len()));
                piece = rest;
                batch.tail.extend_from_slice(some);
                if batch.tail.len() == BLOCK {
                    seal.seal(number, &batch.tail, &mut sealed)?;
                    batch.tail.clear();
                    number += 1;
                }
            }
        }
        file.write_all_at(&sealed, first * SEALED as u64)?;
        Ok(number * BLOCK as u64)
    }

    fn file(&self) -> io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        // One job at a time: nobody else can have made it meanwhile.
        let file = create(&self.space.folder)?;
        Ok(self.file.get_or_init(|| file))
    }

    /// Asks for room on the disk ahead, in large steps, which costs less than with every write.
    /// Whether it is there, the write itself will tell.
    fn allocate(&self, file: &File) {
        let (from, to) = (self.allocated.load(Relaxed), self.taken.load(Relaxed));
        if to >= from + AHEAD {
            let _ = fallocate(file, FallocateFlags::KEEP_SIZE, from, to - from);
            self.allocated.store(to, Relaxed);
        }
    }

    /// Some bytes from `at` on, at most `most`, of what is written. Blocks.
    ///
    /// # Errors
    /// When the disk fails, or what is there is not what was written.
    pub(super) fn read(&self, at: u64, most: usize) -> io::Result<Bytes> {
        let written = {
            let queue = self.lock();
            if at >= queue.written {
                let from = usize::try_from(at - queue.written).unwrap_or(usize::MAX);
                let rest = queue.tail.get(from..).filter(|rest| !rest.is_empty());
                let rest = rest.ok_or(io::ErrorKind::UnexpectedEof)?;
                return Ok(Bytes::copy_from_slice(rest));
            }
            queue.written
        };
        let file = self.file()?;
        let most = usize::try_from(written - at).map_or(most, |left| left.min(most));
        let Some(seal) = &self.seal else {
            let mut bytes = BytesMut::zeroed(most);
            file.read_exact_at(&mut bytes, at)?;
            return Ok(bytes.freeze());
        };
        let first = at / BLOCK as u64;
        let blocks = most.div_ceil(BLOCK).min((written / BLOCK as u64 - first) as usize);
        let mut sealed = vec![0; blocks * SEALED];
        file.read_exact_at(&mut sealed, first * SEALED as u64)?;
        let mut content = BytesMut::with_capacity(blocks * BLOCK);
        for (number, block) in (first..).zip(sealed.chunks_mut(SEALED)) {
            content.extend_from_slice(seal.open(number, block)?);
        }
        Ok(content.freeze().split_off((at % BLOCK as u64) as usize))
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().bytes
    }
}

/// Space is taken in steps of so many bytes at first, …
const STEP: u64 = 1 << 20;
/// … and of so many later.
const MOST_STEP: u64 = 64 << 20;
/// A file is not worth asking for less than this ahead.
const AHEAD: u64 = 4 << 20;

impl Queue {
    /// Adds a copy of them; how many buffers that took.
    fn add(&mut self, mut bytes: &[u8]) -> usize {
        self.bytes += bytes.len();
        let before = self.buffers.len();
        while !bytes.is_empty() {
            let last = match self.buffers.last_mut() {
                Some(last) if last.len() < BUFFER => last,
                _ => self.buffers.push_mut(Vec::with_capacity(BUFFER)),
            };
            let (some, rest) = bytes.split_at((BUFFER - last.len()).min(bytes.len()));
            last.extend_from_slice(some);
            bytes = rest;
        }
        self.buffers.len() - before
    }

    /// Whether the caller must start a job, where one is `due`.
    fn starts(&mut self, due: bool) -> bool {
        due && self.bytes > 0 && !std::mem::replace(&mut self.running, due)
    }

    /// What the job is to write next; `None` ends it.
    fn next(&mut self, all: bool) -> Option<Batch> {
        if self.bytes == 0 || (self.bytes < STRIDE && !all) {
            self.running = false;
            self.flush = false;
            return None;
        }
        let buffers = std::mem::take(&mut self.buffers);
        self.in_job = buffers.len();
        let (bytes, tail) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.tail));
        Some(Batch { buffers, bytes, at: self.written, tail })
    }

    /// Drops everything; how many buffers that was.
    fn clear(&mut self) -> usize {
        self.bytes = 0;
        std::mem::take(&mut self.buffers).len()
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn wake_later(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let queue = self.queue.get_mut().unwrap_or_else(PoisonError::into_inner);
        // A job that was never run has left its share there.
        let buffers = queue.clear() + queue.in_job;
        self.space.memory.give_back(buffers * BUFFER);
        let bytes = *self.taken.get_mut();
        match self.file.take() {
            Some(file) => Space::retire(&self.space, Backing { file, bytes }, !self.has_failed()),
            None => self.space.give_back(bytes),
        }
    }
}

/// A file without a name, for this user alone.
fn create(folder: &Path) -> io::Result<File> {
    tempfile::tempfile_in(folder).map_err(|error| {
        io::Error::new(error.kind(), format!("{}: {error}; see --spool-dir", folder.display()))
    })
}

fn write_all_at(file: &File, at: u64, pieces: &[Vec<u8>]) -> io::Result<()> {
    let mut at = at;
    for some in pieces.chunks(SLICES) {
        let mut slices: Vec<_> = some.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let written = match rustix::io::pwritev(file, left, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(rustix::io::Errno::INTR) => continue,
                written => written?,
            };
            at += written as u64;
            IoSlice::advance_slices(&mut left, written);
        }
    }
    Ok(())
}
