//! Files that their spool has no use for any more, kept a little for the next one.
//!
//! What a file costs is less the copying than the pages that it is copied to: they are found,
//! entered, and given back for every byte. To write over a file that was written before costs
//! the copy alone.

use std::{collections::VecDeque, fs::File, time::Duration};

/// A file, and how much of the disk it has.
#[derive(Debug)]
pub(super) struct Backing {
    pub(super) file: File,
    pub(super) bytes: u64,
}

/// Most bytes kept; what a file has beyond them is given back at once.
pub(super) const MOST: u64 = 1 << 30;
/// Most files kept.
const FILES: usize = 32;
/// So long after the last was put there, they go.
pub(super) const IDLE: Duration = Duration::from_secs(10);

/// The files kept, the one used last at the back.
#[derive(Debug, Default)]
pub(super) struct Idle {
    files: VecDeque<Backing>,
    bytes: u64,
    /// Counts what came in.
    pub(super) generation: u64,
    /// Somebody sees to it that they go in time.
    pub(super) watched: bool,
}

impl Idle {
    /// The file used last: its pages are the likeliest to be in memory.
    pub(super) fn take(&mut self) -> Option<Backing> {
        let backing = self.files.pop_back()?;
        self.bytes -= backing.bytes;
        Some(backing)
    }

    /// Keeps a file; returns what is to be closed for it.
    pub(super) fn put(&mut self, backing: Backing) -> Vec<Backing> {
        self.generation += 1;
        self.bytes += backing.bytes;
        self.files.push_back(backing);
        let mut gone = Vec::new();
        while self.bytes > MOST || self.files.len() > FILES {
            let Some(oldest) = self.files.pop_front() else { break };
            self.bytes -= oldest.bytes;
            gone.push(oldest);
        }
        gone
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All of them.
    pub(super) fn clear(&mut self) -> Vec<Backing> {
        self.bytes = 0;
        self.files.drain(..).collect()
    }
}
