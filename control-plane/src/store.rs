//! What outlives a restart: the last good policies, and the mirror of a remote repository.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::{config::StateDir, source::Revision};

/// Raised when the stored shape changes; a file of another one is not read.
const FORMAT: u32 = 1;
/// Largest stored file that is read: the limit of a policy folder with room for JSON's escapes.
const MAX_STORED_BYTES: u64 = 256 << 20;
const LAST_GOOD: &str = "last-good.json";
/// What the name of a file that is being written starts with.
const UNFINISHED: &str = ".last-good-";

/// A folder of one source, held by one control plane at a time.
#[derive(Debug)]
pub(crate) struct Store {
    place: Place,
    released: watch::Receiver<()>,
}

/// The right to a folder; released when dropped.
#[derive(Debug)]
struct Lock {
    file: File,
    _temporary: Option<tempfile::TempDir>,
    /// Gone after the lock is.
    _held: watch::Sender<()>,
}

/// Where the last good policies are. The folder stays locked as long as there
/// is one: a save goes on when whoever waited for it is gone.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    folder: PathBuf,
    identity: String,
    _lock: Arc<Lock>,
}

/// Why there is no place for state.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else is there.
    #[error("{}: another control plane that follows the same source uses this state folder\n  next: end it, or give this one another --state-dir", .0.display())]
    InUse(PathBuf),
    /// The file system refused.
    #[error("{}: the state folder cannot be used: {cause}\n  next: give a writable --state-dir", .folder.display())]
    Io {
        /// Where.
        folder: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    identity: String,
    revision: Revision,
}

impl Store {
    /// Opens the folder of the source called `identity`.
    pub(crate) fn open(state: &StateDir, identity: &str) -> Result<Self, StoreError> {
        match state {
            StateDir::At(folder) => Self::open_in(folder, identity, None),
            StateDir::Temporary => Self::temporary(identity),
            StateDir::User => match user_folder() {
                None => Self::temporary(identity),
                Some(folder) => Self::open_in(&folder, identity, None).or_else(|error| {
                    tracing::warn!("{error}\n  for now: nothing will be remembered over a restart");
                    Self::temporary(identity)
                }),
            },
        }
    }

    /// The folder itself.
    pub(crate) fn folder(&self) -> &Path {
        &self.place.folder
    }

    /// For a thread that reads or writes while others go on.
    pub(crate) fn place(&self) -> Place {
        self.place.clone()
    }

    /// Ends (with an error) when the folder is free for another.
    pub(crate) fn released(&self) -> watch::Receiver<()> {
        self.released.clone()
    }

    fn temporary(identity: &str) -> Result<Self, StoreError> {
        let made = tempfile::Builder::new().prefix("towpath-").tempdir();
        let temporary =
            made.map_err(|cause| StoreError::Io { folder: std::env::temp_dir(), cause })?;
        let folder = temporary.path().to_owned();
        Self::open_in(&folder, identity, Some(temporary))
    }

    fn open_in(
        state: &Path,
        identity: &str,
        temporary: Option<tempfile::TempDir>,
    ) -> Result<Self, StoreError> {
        let hash = Sha256::digest(identity.as_bytes());
        let name: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let folder = state.join(name);
        let failed = |cause| StoreError::Io { folder: folder.clone(), cause };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(folder.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(folder)),
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
        }
        sweep(&folder).map_err(failed)?;
        let (held, released) = watch::channel(());
        let lock = Arc::new(Lock { file: lock, _temporary: temporary, _held: held });
        let place = Place { folder, identity: identity.to_owned(), _lock: lock };
        Ok(Self { place, released })
    }
}

impl Place {
    /// The last good policies of this source, if there are any that can be read.
    pub(crate) fn load(&self) -> Option<Revision> {
        let path = self.folder.join(LAST_GOOD);
        let known = self.kept(LAST_GOOD, MAX_STORED_BYTES).transpose()?;
        let stored = known.and_then(|bytes| Ok(serde_json::from_slice::<Stored>(&bytes)?));
        match stored {
            Ok(stored) if stored.format == FORMAT && stored.identity == self.identity => {
                Some(stored.revision)
            }
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the last good policies cannot be read back");
                None
            }
        }
    }

    /// Keeps `revision` as the last good one: whole, or not at all.
    pub(crate) fn save(&self, revision: &Revision) -> io::Result<()> {
        let revision = revision.clone();
        let stored = Stored { format: FORMAT, identity: self.identity.clone(), revision };
        self.keep(LAST_GOOD, &serde_json::to_vec(&stored)?)
    }

    /// Keeps a file of the folder: whole, or as it was.
    pub(crate) fn keep(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        // Readable by its owner alone, as temporary files are.
        let mut next = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.folder)?;
        next.write_all(bytes)?;
        next.as_file().sync_all()?;
        next.persist(self.folder.join(file))?;
        Ok(())
    }

    /// A file of the folder that is not larger than `most`, if it is there.
    pub(crate) fn kept(&self, file: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        let path = self.folder.join(file);
        match fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Ok(found) if found.len() > most => Err(io::Error::other("too large")),
            Ok(_) => fs::read(&path).map(Some),
            Err(e) => Err(e),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that is being started (git, somebody
        // else's) has a copy of the descriptor until it becomes another program.
        let _ = self.file.unlock();
    }
}

/// Removes what a save left that was cut short (a kill, a loss of power).
fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Where state of this user's services belongs (systemd, XDG base directories).
fn user_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("STATE_DIRECTORY")
        .or_else(|| Some(set("XDG_STATE_HOME")?.join("towpath")))
        .or_else(|| Some(set("HOME")?.join(".local/state/towpath")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(version: &str) -> Revision {
        Revision {
            version: version.into(),
            commit: None,
            branch: Some("main".into()),
            files: vec![("a.yaml".into(), "kind: Gateway".into())],
            warnings: vec![],
            unfit: None,
        }
    }

    #[test]
    fn what_is_saved_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let at = StateDir::At(dir.path().to_owned());
        let store = Store::open(&at, "here").unwrap();
        assert_eq!(store.place().load(), None);
        store.place().save(&revision("1")).unwrap();
        store.place().save(&revision("2")).unwrap();
        drop(store);
        assert_eq!(Store::open(&at, "here").unwrap().place().load(), Some(revision("2")));
        assert_eq!(Store::open(&at, "elsewhere").unwrap().place().load(), None);
    }

    #[test]
    fn a_cut_file_is_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&StateDir::At(dir.path().to_owned()), "here").unwrap();
        store.place().save(&revision("1")).unwrap();
        let path = store.folder().join(LAST_GOOD);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(store.place().load(), None);
    }

    #[test]
    fn who_still_saves_holds_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let at = StateDir::At(dir.path().to_owned());
        let store = Store::open(&at, "here").unwrap();
        let (saving, released) = (store.place(), store.released());
        drop(store);
        assert!(matches!(Store::open(&at, "here"), Err(StoreError::InUse(_))));
        assert!(released.has_changed().is_ok());
        saving.save(&revision("1")).unwrap();
        drop(saving);
        assert!(released.has_changed().is_err());
        assert_eq!(Store::open(&at, "here").unwrap().place().load(), Some(revision("1")));
    }

    #[test]
    fn what_a_cut_save_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let at = StateDir::At(dir.path().to_owned());
        let store = Store::open(&at, "here").unwrap();
        store.place().save(&revision("1")).unwrap();
        let left = store.folder().join(format!("{UNFINISHED}a1b2c3"));
        fs::write(&left, "{").unwrap();
        drop(store);
        let store = Store::open(&at, "here").unwrap();
        assert!(!left.exists());
        assert_eq!(store.place().load(), Some(revision("1")));
    }

    #[test]
    fn one_source_has_one_control_plane_in_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let at = StateDir::At(dir.path().to_owned());
        let first = Store::open(&at, "here").unwrap();
        assert!(matches!(Store::open(&at, "here"), Err(StoreError::InUse(_))));
        Store::open(&at, "elsewhere").unwrap();
        drop(first);
        Store::open(&at, "here").unwrap();
    }
}
