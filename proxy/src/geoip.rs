//! Where clients are, by their addresses: a database in MaxMind's format, which is read again when
//! its file changes. Knows no requests.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;
use maxminddb::{LookupResult, MaxMindDbError, PathElement, Reader, WithinOptions};
use serde::Deserialize;
use towpath_policies::model::Coordinates;

use crate::{
    lock::lock,
    stamp::{self, Stamp},
};

/// Places of addresses.
#[derive(Debug)]
pub struct ClientPlaces {
    path: PathBuf,
    database: ArcSwap<Reader<Vec<u8>>>,
    read: Mutex<Read>,
}

/// What was made of the file.
#[derive(Debug)]
struct Read {
    /// Of the file in use.
    stamp: Option<Stamp>,
    /// The last failure that was told: not told again.
    failed: Option<(Option<Stamp>, String)>,
    /// Of a file that is no sound database: it is not looked through again until it changes.
    damaged: Option<Stamp>,
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GeoIpError {
    /// The file cannot be read.
    #[error("{}: {error}", .path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// It is none, or damaged.
    #[error("{}: is no sound database in MaxMind's format: {error}", .path.display())]
    Damaged {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        error: MaxMindDbError,
    },
}

/// The part of a record that counts.
#[derive(Deserialize)]
struct Location {
    latitude: f64,
    longitude: f64,
}

/// Largest file that is read: it is kept in memory. Those of all the world's cities have 0.1 GB.
const MOST_BYTES: u64 = 2 << 30;

/// Records that are looked at to see whether it has any places.
const LOOKED_AT: usize = 4096;

impl ClientPlaces {
    /// Reads a database, and looks through all of it.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn open(path: &Path) -> Result<Self, GeoIpError> {
        // Taken before the file is read: a change in between is then seen as one.
        let stamp = stamp::of(path);
        let database = ArcSwap::from_pointee(load(path)?);
        Ok(Self { path: path.to_owned(), database, read: Mutex::new(Read::well(stamp)) })
    }

    /// Where an address is; `None` when the database does not say.
    pub fn find(&self, address: IpAddr) -> Option<Coordinates> {
        locate(&self.database.load(), address.to_canonical())
    }

    /// Reads the file again if it changed. On an error what was read before stays in use, and the next
    /// calls are silent about it; they try again what may go well without another file.
    pub(crate) fn reload(&self) -> Result<bool, GeoIpError> {
        let mut read = lock(&self.read);
        let now = stamp::of(&self.path);
        if !read.is_due(now) {
            return Ok(false);
        }
        match load(&self.path) {
            Ok(database) => {
                self.database.store(Arc::new(database));
                *read = Read::well(now);
                Ok(true)
            }
            Err(error) => {
                read.damaged = now.filter(|_| matches!(error, GeoIpError::Damaged { .. }));
                let failed = Some((now, error.to_string()));
                if read.failed == failed {
                    return Ok(false);
                }
                read.failed = failed;
                Err(error)
            }
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Read {
    fn well(stamp: Option<Stamp>) -> Self {
        Self { stamp, failed: None, damaged: None }
    }

    /// Whether the file that is there now is to be read.
    fn is_due(&self, now: Option<Stamp>) -> bool {
        self.stamp != now && (now.is_none() || self.damaged != now)
    }
}

fn locate(database: &Reader<Vec<u8>>, address: IpAddr) -> Option<Coordinates> {
    if address.is_ipv6() && database.metadata().ip_version == 4 {
        return None;
    }
    location(&database.lookup(address).ok()?)
}

fn location(record: &LookupResult<'_, Vec<u8>>) -> Option<Coordinates> {
    let at: Location = record.decode_path(&[PathElement::Key("location")]).ok()??;
    let at = Coordinates { latitude: at.latitude, longitude: at.longitude };
    at.on_earth().then_some(at)
}

fn load(path: &Path) -> Result<Reader<Vec<u8>>, GeoIpError> {
    let bad = |error| GeoIpError::File { path: path.to_owned(), error };
    if fs::metadata(path).map_err(bad)?.len() > MOST_BYTES {
        return Err(bad(io::Error::other("is larger than 2 GiB")));
    }
    let bytes = fs::read(path).map_err(bad)?;
    let damaged = |error| GeoIpError::Damaged { path: path.to_owned(), error };
    let database = Reader::from_source(bytes).map_err(damaged)?;
    database.verify().map_err(damaged)?;
    if !tells_places(&database) {
        tracing::warn!(
            file = %path.display(),
            database_type = database.metadata().database_type,
            "this database does not seem to say where addresses are (latitude and longitude, as those of \
             cities do), so that clients are nowhere"
        );
    }
    Ok(database)
}

/// Whether any of the first records has a place: those of countries or networks have none.
fn tells_places(database: &Reader<Vec<u8>>) -> bool {
    let Ok(records) = database.networks(WithinOptions::default()) else { return false };
    records.take(LOOKED_AT).flatten().any(|record| location(&record).is_some())
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod writer;
