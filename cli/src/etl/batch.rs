//! One batch on its way from text to a Parquet file: parsed, cleaned, aggregated.
//!
//! Fed in pieces of any size. Holds at most a row group and an unfinished line,
//! however large the batch.

use parquet::{
    errors::ParquetError,
    file::{metadata::KeyValue, writer::SerializedFileWriter},
};
use tempfile::NamedTempFile;

use super::{
    columns::{self, Columns},
    digest::Digester,
    q1::Q1,
    rows::{MAX_LINE_BYTES, Row, RowError, Table},
    store::{DIGEST_KEY, Loaded, Q1_KEY, ROWS_KEY, Receipt, Store, StoreError},
};

/// Rows of a row group.
pub const GROUP_ROWS: usize = 16 * 1024;

/// A batch being read. [`Batch::push`] only computes; [`Batch::flush`] and
/// [`Batch::finish`] write files and belong on a thread that may block.
#[derive(Debug)]
pub struct Batch {
    store: Store,
    table: Table,
    lines: Lines,
    tally: Tally,
    columns: Columns,
    writer: Option<SerializedFileWriter<NamedTempFile>>,
}

/// Why a batch was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// A field cannot be cleaned.
    #[error("line {line}: {source}")]
    Row {
        /// Counted from 1.
        line: u64,
        /// Which field and why.
        #[source]
        source: RowError,
    },
    /// A line is longer than [`MAX_LINE_BYTES`].
    #[error("line {line}: longer than {MAX_LINE_BYTES} bytes")]
    TooLong {
        /// Counted from 1.
        line: u64,
    },
    /// A line is no UTF-8.
    #[error("line {line}: not UTF-8")]
    NotText {
        /// Counted from 1.
        line: u64,
    },
    /// Other rows were loaded under the same id before.
    #[error("batch {batch} is already loaded with other rows ({before} of them)")]
    Conflict {
        /// The id.
        batch: String,
        /// Rows of the earlier batch.
        before: u64,
    },
    /// The Parquet writer.
    #[error("writing Parquet: {0}")]
    Parquet(#[from] ParquetError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A loaded batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// What was loaded.
    pub receipt: Receipt,
    /// An earlier delivery had already loaded it.
    pub already: bool,
}

/// Rows counted, digested and aggregated.
#[derive(Debug, Default)]
pub struct Tally {
    rows: u64,
    digester: Digester,
    q1: Q1,
}

impl Tally {
    /// Takes a row in.
    pub fn add(&mut self, row: &Row<'_>) {
        self.rows += 1;
        self.digester.add(row);
        if let Row::LineItem(item) = row {
            self.q1.add(item);
        }
    }

    /// The result so far.
    pub fn receipt(&self) -> Receipt {
        Receipt { rows: self.rows, digest: self.digester.digest(), q1: self.q1.clone() }
    }
}

impl Batch {
    /// An empty batch.
    pub fn new(store: &Store, table: Table) -> Self {
        Self {
            store: store.clone(),
            table,
            lines: Lines::default(),
            tally: Tally::default(),
            columns: Columns::new(table),
            writer: None,
        }
    }

    /// Takes the next piece of text.
    ///
    /// # Errors
    /// When a line in it cannot be cleaned; the batch is then good for nothing.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), BatchError> {
        let Self { lines, table, tally, columns, .. } = self;
        lines.push(piece, |number, line| take(number, line, *table, tally, columns))
    }

    /// Whether a row group is complete and wants [`Self::flush`].
    pub fn is_full(&self) -> bool {
        self.columns.len() >= GROUP_ROWS
    }

    /// Writes the rows held.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn flush(&mut self) -> Result<(), BatchError> {
        if self.writer.is_none() {
            self.writer = Some(columns::writer(self.table, self.store.incoming()?)?);
        }
        if let Some(writer) = &mut self.writer {
            self.columns.flush(writer)?;
        }
        Ok(())
    }

    /// Ends the batch and puts it in the store under its id, unless it is there already.
    ///
    /// # Errors
    /// When its last line cannot be cleaned, the file cannot be written, or
    /// other rows are there under this id.
    pub fn finish(mut self, batch: &str) -> Result<Delivery, BatchError> {
        let Self { lines, table, tally, columns, .. } = &mut self;
        lines.end(|number, line| take(number, line, *table, tally, columns))?;
        if self.columns.len() > 0 || self.writer.is_none() {
            self.flush()?;
        }
        let receipt = self.tally.receipt();
        let Some(mut writer) = self.writer else {
            return Err(ParquetError::General("nothing was begun".to_owned()).into());
        };
        for (key, value) in [
            (ROWS_KEY, receipt.rows.to_string()),
            (DIGEST_KEY, receipt.digest.to_string()),
            (Q1_KEY, receipt.q1.to_string()),
        ] {
            writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        match self.store.put(writer.into_inner()?, self.table, batch)? {
            Loaded::Now => Ok(Delivery { receipt, already: false }),
            Loaded::Before(before) if before == receipt => Ok(Delivery { receipt, already: true }),
            Loaded::Before(before) => {
                Err(BatchError::Conflict { batch: batch.to_owned(), before: before.rows })
            }
        }
    }
}

fn take(
    number: u64,
    line: &str,
    table: Table,
    tally: &mut Tally,
    columns: &mut Columns,
) -> Result<(), BatchError> {
    let row = Row::parse(table, line).map_err(|source| BatchError::Row { line: number, source })?;
    tally.add(&row);
    columns.push(&row);
    Ok(())
}

/// Cuts pieces into lines. Blank lines are skipped, but counted.
#[derive(Debug, Default)]
pub struct Lines {
    unfinished: Vec<u8>,
    number: u64,
}

impl Lines {
    /// Hands every line completed by `piece` to `take`, with its number from 1.
    ///
    /// # Errors
    /// When a line is too long or not UTF-8, or `take` fails.
    pub fn push(
        &mut self,
        piece: &[u8],
        mut take: impl FnMut(u64, &str) -> Result<(), BatchError>,
    ) -> Result<(), BatchError> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            if self.unfinished.len() + part.len() > MAX_LINE_BYTES {
                return Err(BatchError::TooLong { line: self.number + 1 });
            }
            if !part.ends_with(b"\n") {
                self.unfinished.extend_from_slice(part);
            } else if self.unfinished.is_empty() {
                self.number += 1;
                hand(self.number, part, &mut take)?;
            } else {
                self.unfinished.extend_from_slice(part);
                self.end(&mut take)?;
            }
        }
        Ok(())
    }

    /// Hands over a last line that had no line end.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn end(
        &mut self,
        mut take: impl FnMut(u64, &str) -> Result<(), BatchError>,
    ) -> Result<(), BatchError> {
        if self.unfinished.is_empty() {
            return Ok(());
        }
        self.number += 1;
        let outcome = hand(self.number, &self.unfinished, &mut take);
        self.unfinished.clear();
        outcome
    }
}

fn hand(
    number: u64,
    line: &[u8],
    take: &mut impl FnMut(u64, &str) -> Result<(), BatchError>,
) -> Result<(), BatchError> {
    let line = std::str::from_utf8(line).map_err(|_| BatchError::NotText { line: number })?;
    if line.trim_ascii().is_empty() { Ok(()) } else { take(number, line) }
}

#[cfg(test)]
mod tests;
