//! The place batches are loaded into: a folder shared by all workers, as an object store would be.
//!
//! A batch is one Parquet file named after its id. It is written aside and moved
//! into place only when complete, and only when no file of that name is there
//! ("put if absent"): whoever comes second with the same batch finds it loaded.
//! That makes a batch that was sent twice, to whichever workers, loaded once.
//! A file in place stays when the worker dies; the demonstration does not
//! guard against a power failure and so spends no `fsync`.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use parquet::{
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
};
use tempfile::NamedTempFile;

use super::{
    columns::Columns,
    digest::Digest,
    q1::Q1,
    rows::{Row, Table},
};

/// Longest batch id.
pub const MAX_ID_BYTES: usize = 128;

const INCOMING: &str = ".incoming";
pub(crate) const ROWS_KEY: &str = "towpath.rows";
pub(crate) const DIGEST_KEY: &str = "towpath.digest";
pub(crate) const Q1_KEY: &str = "towpath.q1";

/// The folder.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// What is known of a loaded batch; kept in the file's footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Rows.
    pub rows: u64,
    /// Over its rows.
    pub digest: Digest,
    /// The batch's share of the answer; empty for `orders`.
    pub q1: Q1,
}

/// How a batch came to be in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// By this call.
    Now,
    /// By an earlier one; its receipt.
    Before(Receipt),
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The id cannot be a file name.
    #[error(
        "batch id {0:?}: 1 to {MAX_ID_BYTES} characters of a-z, A-Z, 0-9, '-', '_', '.', not starting with '.'"
    )]
    BadId(String),
    /// The file system.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is not as this module writes it.
    #[error("{path}: {source}", path = path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ParquetError,
    },
    /// The file's footer lacks what this module puts there.
    #[error("{path}: no {key} in the file's metadata", path = path.display())]
    NoReceipt {
        /// The file.
        path: PathBuf,
        /// The missing entry.
        key: &'static str,
    },
}

impl Store {
    /// Opens a store and creates its folders.
    ///
    /// # Errors
    /// When a folder cannot be created.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let store = Self { root: root.into() };
        for folder in Table::ALL.map(Table::name).into_iter().chain([INCOMING]) {
            let path = store.root.join(folder);
            fs::create_dir_all(&path).map_err(at(&path))?;
        }
        Ok(store)
    }

    /// A file to write a batch to; it vanishes unless it is put in place.
    pub(crate) fn incoming(&self) -> Result<NamedTempFile, StoreError> {
        let path = self.root.join(INCOMING);
        NamedTempFile::with_suffix_in(".parquet", &path).map_err(at(&path))
    }

    /// Moves a complete file into place, unless the batch is already there.
    pub(crate) fn put(
        &self,
        file: NamedTempFile,
        table: Table,
        batch: &str,
    ) -> Result<Loaded, StoreError> {
        let path = self.path(table, batch)?;
        match file.persist_noclobber(&path) {
            Ok(_) => Ok(Loaded::Now),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                receipt(&path).map(Loaded::Before)
            }
            Err(error) => Err(at(&path)(error.error)),
        }
    }

    /// Where a batch lies once it is loaded.
    ///
    /// # Errors
    /// When the id cannot be a file name.
    pub fn path(&self, table: Table, batch: &str) -> Result<PathBuf, StoreError> {
        let usable = (1..=MAX_ID_BYTES).contains(&batch.len())
            && !batch.starts_with('.')
            && batch.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !usable {
            return Err(StoreError::BadId(batch.chars().take(MAX_ID_BYTES).collect()));
        }
        Ok(self.root.join(table.name()).join(format!("{batch}.parquet")))
    }

    /// The files of a table, sorted by name.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn files(&self, table: Table) -> Result<Vec<PathBuf>, StoreError> {
        let folder = self.root.join(table.name());
        let mut files = fs::read_dir(&folder)
            .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
            .map_err(at(&folder))?;
        files.sort();
        Ok(files)
    }
}

/// Reads the receipt from a file's footer.
///
/// # Errors
/// When the file cannot be read or has none.
pub fn receipt(path: &Path) -> Result<Receipt, StoreError> {
    receipt_of(path, &open(path)?)
}

/// Reads every row of a file, one row group at a time, and its receipt.
///
/// # Errors
/// When the file cannot be read or is not one of this table.
pub fn read(
    path: &Path,
    table: Table,
    mut take: impl FnMut(&Row<'_>),
) -> Result<Receipt, StoreError> {
    let reader = open(path)?;
    let rows = |take: &mut dyn FnMut(&Row<'_>)| {
        for index in 0..reader.num_row_groups() {
            let group = reader.get_row_group(index)?;
            let columns = Columns::read(table, group.as_ref())?;
            for row in 0..columns.len() {
                take(&columns.row(row)?);
            }
        }
        Ok(())
    };
    rows(&mut take).map_err(|source| StoreError::Parquet { path: path.to_owned(), source })?;
    receipt_of(path, &reader)
}

fn open(path: &Path) -> Result<SerializedFileReader<File>, StoreError> {
    let file = File::open(path).map_err(at(path))?;
    SerializedFileReader::new(file)
        .map_err(|source| StoreError::Parquet { path: path.to_owned(), source })
}

fn receipt_of(path: &Path, reader: &SerializedFileReader<File>) -> Result<Receipt, StoreError> {
    let metadata = reader.metadata().file_metadata().key_value_metadata();
    let entry = |key: &'static str| {
        metadata
            .and_then(|entries| entries.iter().find(|entry| entry.key == key))
            .and_then(|entry| entry.value.as_deref())
            .ok_or(StoreError::NoReceipt { path: path.to_owned(), key })
    };
    let missing = |key| StoreError::NoReceipt { path: path.to_owned(), key };
    Ok(Receipt {
        rows: entry(ROWS_KEY)?.parse().map_err(|_| missing(ROWS_KEY))?,
        digest: entry(DIGEST_KEY)?.parse().map_err(|_| missing(DIGEST_KEY))?,
        q1: entry(Q1_KEY)?.parse().map_err(|_| missing(Q1_KEY))?,
    })
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { path, source }
}
