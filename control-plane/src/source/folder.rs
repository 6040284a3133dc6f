//! A plain folder: the files as they lie there, whatever wrote them.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use towpath_policies::folder::{self, Files, FolderError};

use super::{Look, Revision, SourceError};

/// Reads of a folder whose files come and go meanwhile, before that is an error.
const ATTEMPTS: usize = 3;
/// How long a folder must stay the same to be taken as it is.
const SETTLE: Duration = Duration::from_millis(20);
/// Reads of a folder that does not stay the same, before that is an error.
const MAX_READS: usize = 100;

/// What is worth watching between two polls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// A folder of policy files, with everything below.
    Files(PathBuf),
    /// A Git directory: `HEAD`, `packed-refs` and `refs/`.
    Refs(PathBuf),
}

/// A running watch; ends when dropped.
pub(crate) struct Watch {
    _watcher: notify::RecommendedWatcher,
    watched: Watched,
    /// Device and inode: another folder may come to stand at the same path.
    identity: Option<(u64, u64)>,
}

impl Watch {
    /// Wakes `changed` whenever something below `watched` may have changed.
    ///
    /// Only a hint: network file systems tell nothing and a replaced folder is
    /// lost from sight, so the poll stays in charge.
    pub(crate) fn start(watched: Watched, changed: Arc<Notify>) -> notify::Result<Self> {
        // Reading a folder is itself an event; waking on it would never end.
        let wake = move |event: notify::Result<notify::Event>| {
            if !matches!(event, Ok(event) if event.kind.is_access()) {
                changed.notify_one();
            }
        };
        let mut watcher = notify::recommended_watcher(wake)?;
        match &watched {
            Watched::Files(folder) => watcher.watch(folder, RecursiveMode::Recursive)?,
            Watched::Refs(git_dir) => {
                watcher.watch(git_dir, RecursiveMode::NonRecursive)?;
                watcher.watch(&git_dir.join("refs"), RecursiveMode::Recursive)?;
            }
        }
        let identity = watched.identity();
        Ok(Self { _watcher: watcher, watched, identity })
    }

    /// Whether this watches what is to be watched, as it is now.
    pub(crate) fn is_of(&self, watched: &Watched) -> bool {
        self.watched == *watched && self.identity == watched.identity()
    }
}

impl Watched {
    fn identity(&self) -> Option<(u64, u64)> {
        let (Self::Files(path) | Self::Refs(path)) = self;
        std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
    }
}

/// Reads the folder; its version is a digest of the paths and contents.
///
/// What is new is read again until it stays the same for a moment: a file that
/// an editor has emptied and not yet written would be a valid one.
pub(crate) async fn look(folder: PathBuf, last: Option<&str>) -> Result<Look, SourceError> {
    let mut before = None;
    for _ in 0..MAX_READS {
        let files = read_off_runtime(folder.clone()).await?;
        let version = folder::digest(&files);
        if last == Some(version.as_str()) {
            return Ok(Look::Unchanged);
        }
        if before.as_ref() == Some(&version) {
            let (warnings, unfit) = (Vec::new(), None);
            let (commit, branch) = (None, None);
            return Ok(Look::Changed(Revision { version, commit, branch, files, warnings, unfit }));
        }
        before = Some(version);
        tokio::time::sleep(SETTLE).await;
    }
    Err(SourceError::Restless(folder))
}

async fn read_off_runtime(folder: PathBuf) -> Result<Files, SourceError> {
    let at = folder.clone();
    match tokio::task::spawn_blocking(move || read(&folder)).await {
        Ok(files) => files,
        Err(stopped) => {
            Err(SourceError::io("the reading task ended", &at, io::Error::other(stopped)))
        }
    }
}

fn read(path: &Path) -> Result<Files, SourceError> {
    let mut attempt = 1;
    loop {
        match folder::read(path) {
            Ok(files) => return Ok(files),
            Err(FolderError::Io { .. }) if !path.exists() => {
                return Err(SourceError::PathMissing(path.to_owned()));
            }
            // A file listed and gone: somebody is writing right now.
            Err(FolderError::Io { cause, .. })
                if cause.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS =>
            {
                attempt += 1;
            }
            Err(cause) => return Err(SourceError::Folder { at: path.to_owned(), cause }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn the_version_follows_what_counts() {
        let dir = tempfile::tempdir().unwrap();
        let folder = || dir.path().to_owned();
        fs::write(dir.path().join("a.yaml"), "a: 1").unwrap();
        let Look::Changed(first) = look(folder(), None).await.unwrap() else { panic!("first") };
        assert_eq!(first.files, [(PathBuf::from("a.yaml"), "a: 1".to_owned())]);
        fs::write(dir.path().join("notes.md"), "changed").unwrap();
        assert_eq!(look(folder(), Some(&first.version)).await.unwrap(), Look::Unchanged);
        fs::write(dir.path().join("a.yaml"), "a: 2").unwrap();
        let Look::Changed(second) = look(folder(), Some(&first.version)).await.unwrap() else {
            panic!("second")
        };
        assert_ne!(second.version, first.version);
    }

    #[tokio::test]
    async fn a_missing_folder_says_so() {
        let error = look("/nowhere/at/all".into(), None).await.unwrap_err();
        assert!(matches!(error, SourceError::PathMissing(_)), "{error}");
    }

    #[tokio::test]
    async fn writes_wake_the_watch() {
        let dir = tempfile::tempdir().unwrap();
        let changed = Arc::new(Notify::new());
        let _watch = Watch::start(Watched::Files(dir.path().to_owned()), changed.clone()).unwrap();
        fs::write(dir.path().join("a.yaml"), "a").unwrap();
        changed.notified().await;
    }
}
