//! Standard output, whose reader may have seen enough.

use std::io::{self, Write as _};

use anyhow::Context as _;

/// Writes to standard output, and says whether somebody reads it still.
///
/// Not `print!`: that the reader is gone (`| head`) is an end, not a panic.
///
/// # Errors
/// When it cannot be written for another reason, e.g. a full disk.
pub(crate) fn print(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        outcome => outcome.map(|()| true).context("standard output cannot be written"),
    }
}
