//! Tells whether a file changed.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// Inode, length and times of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp([i64; 5]);

/// Of the file that is there now, if there is one.
pub(crate) fn of(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    let inode = i64::from_ne_bytes(meta.ino().to_ne_bytes());
    let length = i64::try_from(meta.len()).unwrap_or(i64::MAX);
    Some(Stamp([inode, length, meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec()]))
}
