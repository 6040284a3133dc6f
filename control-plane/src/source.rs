//! Where policy files come from: a plain folder, a Git repository on this
//! machine, or one behind a URL.
//!
//! Reads bytes and names versions; does not know what a policy means.

mod folder;
mod git;
mod spec;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use towpath_policies::folder::{Files, FolderError};

pub(crate) use folder::Watch;
pub use spec::{Location, RemoteUrl, SourceSpec, SpecError};

/// The policy files at one version of the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// The commit id, or a digest of the files of a plain folder.
    pub version: String,
    /// The commit; `None` for a plain folder.
    pub commit: Option<Commit>,
    /// The branch followed; `None` for a plain folder or a detached `HEAD`.
    pub branch: Option<String>,
    /// The files with their texts, sorted by path.
    pub files: Files,
    /// Things that were left out, and why. Not a reason to reject.
    pub warnings: Vec<String>,
    /// Why the files were not taken at all (too large, not text); `files` is empty then.
    pub unfit: Option<String>,
}

/// Who committed what, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Full object id in hexadecimal.
    pub id: String,
    /// Name of the author.
    pub author: String,
    /// Committer's time, in seconds since the Unix epoch.
    pub time: i64,
    /// First line of the message.
    pub subject: String,
}

/// What a look at the source found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// The version seen last time.
    Unchanged,
    /// Another version.
    Changed(Revision),
}

/// Why the source could not be read. Each says what, where and what to do, the
/// cause included: there is no `source()` to print after it.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No `git` on this machine.
    #[error(
        "the program `git` is not in PATH, and following a Git repository needs it\n  next: install it (Debian: apt install git), or point --policies at a plain folder"
    )]
    GitMissing,
    /// The local path does not exist.
    #[error("{}: no such folder\n  next: check --policies", .0.display())]
    PathMissing(PathBuf),
    /// A branch was asked for where there is no repository.
    #[error("{}: not the top of a Git repository, so there is no branch to follow\n  next: name the repository's top folder and use --path for the sub-folder, or leave --branch out to follow the files as they are", .0.display())]
    NoRepository(PathBuf),
    /// What was a repository is none any more.
    #[error("{}: was a Git repository and is none any more, so its files are not taken\n  next: put the repository back; to follow the files as they are, start the control plane anew", .0.display())]
    RepositoryGone(PathBuf),
    /// The repository has no such branch.
    #[error("{at}: no branch `{branch}`{}\n  next: check --branch", known_branches(.known))]
    BranchMissing {
        /// The repository.
        at: String,
        /// What was asked for.
        branch: String,
        /// A few branches that are there.
        known: Vec<String>,
    },
    /// The repository has no commit yet.
    #[error(
        "{at}: the repository has no commit yet\n  next: commit the policy files (and push them)"
    )]
    Empty {
        /// The repository.
        at: String,
    },
    /// The commit has no such sub-folder.
    #[error("{at}: commit {} has no folder `{}`\n  next: check --path", short(.commit), .folder.display())]
    FolderMissing {
        /// The repository.
        at: String,
        /// Commit id.
        commit: String,
        /// What was asked for.
        folder: PathBuf,
    },
    /// The server refused us.
    #[error(
        "{at}: access denied: {detail}\n  next: check that `git ls-remote {at}` works for this user without a prompt (credential helper, ssh key, known_hosts)"
    )]
    Denied {
        /// The repository.
        at: String,
        /// What git said.
        detail: String,
    },
    /// The server cannot be reached, or is not a repository.
    #[error(
        "{at}: cannot be reached: {detail}\n  next: check the address and the network; it is tried again by itself"
    )]
    Unreachable {
        /// The repository.
        at: String,
        /// What git said.
        detail: String,
    },
    /// Another owner's repository.
    #[error(
        "{at}: git does not trust a repository that another user owns\n  next: run `git config --global --add safe.directory {at}` as the user of the control plane"
    )]
    Owner {
        /// The repository.
        at: String,
    },
    /// Took too long.
    #[error(
        "{at}: `git {command}` did not finish within {seconds} s and was ended\n  next: check the network; it is tried again by itself"
    )]
    TimedOut {
        /// The repository.
        at: String,
        /// Sub-command of git.
        command: String,
        /// Time allowed.
        seconds: u64,
    },
    /// More than is read.
    #[error(
        "{at}: the output of `git {command}` exceeds {limit_kib} KiB\n  next: keep policy files in a repository or sub-folder of their own (--path)"
    )]
    TooLarge {
        /// The repository.
        at: String,
        /// Sub-command of git.
        command: String,
        /// The limit.
        limit_kib: u64,
    },
    /// A plain folder that is written to without end.
    #[error("{}: the files change faster than they can be read\n  next: let whatever writes them finish; it is tried again by itself", .0.display())]
    Restless(PathBuf),
    /// A plain folder whose files cannot be taken.
    #[error("{}: {cause}", .at.display())]
    Folder {
        /// The folder.
        at: PathBuf,
        /// Why not.
        cause: FolderError,
    },
    /// Git failed otherwise.
    #[error("{at}: `git {command}` failed: {detail}")]
    Git {
        /// The repository.
        at: String,
        /// Sub-command of git.
        command: String,
        /// What git said.
        detail: String,
    },
    /// The file system failed.
    #[error("{}: {what}: {cause}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        cause: std::io::Error,
    },
}

impl SourceError {
    /// Whether waiting cannot mend it: the command line names something that is not there.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::GitMissing | Self::PathMissing(_) | Self::NoRepository(_))
    }

    pub(crate) fn io(what: &'static str, path: &Path, cause: std::io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), cause }
    }
}

/// Follows one source: remembers the version it saw last.
#[derive(Debug)]
pub(crate) struct Follower {
    spec: SourceSpec,
    /// Where a remote repository is mirrored.
    mirror: PathBuf,
    last: Option<String>,
    /// Whether a local path was seen to be a repository. It stays one: while
    /// somebody replaces it, its files are nobody's commit.
    repository: bool,
}

impl Follower {
    pub(crate) fn new(spec: SourceSpec, state_dir: &Path) -> Self {
        Self { spec, mirror: state_dir.join("mirror.git"), last: None, repository: false }
    }

    /// Reads the source if its version is not the one seen last.
    ///
    /// Safe to drop at any point: a half-done look is forgotten.
    pub(crate) async fn look(&mut self) -> Result<Look, SourceError> {
        let last = self.last.as_deref();
        let sub = self.spec.folder.as_deref();
        let branch = self.spec.branch.as_deref();
        let look = match &self.spec.location {
            Location::Remote(url) => {
                git::Remote { url, mirror: &self.mirror, branch }.look(sub, last).await?
            }
            Location::Local(path) if spec::is_repository(path) => {
                self.repository = true;
                git::Local { path, branch }.look(sub, last).await?
            }
            Location::Local(path) if !path.exists() => {
                return Err(SourceError::PathMissing(path.clone()));
            }
            Location::Local(path) if self.repository => {
                return Err(SourceError::RepositoryGone(path.clone()));
            }
            Location::Local(path) if branch.is_some() => {
                return Err(SourceError::NoRepository(path.clone()));
            }
            Location::Local(path) => {
                let folder = sub.map_or_else(|| path.clone(), |sub| path.join(sub));
                folder::look(folder, last).await?
            }
        };
        if let Look::Changed(revision) = &look {
            self.last = Some(revision.version.clone());
        }
        Ok(look)
    }

    /// The folder whose changes are worth a look before the next poll.
    pub(crate) fn watched(&self) -> Option<folder::Watched> {
        let Location::Local(path) = &self.spec.location else { return None };
        if spec::is_repository(path) {
            git::Local { path, branch: None }.refs_folder().map(folder::Watched::Refs)
        } else {
            let folder = self.spec.folder.as_ref().map_or_else(|| path.clone(), |s| path.join(s));
            Some(folder::Watched::Files(folder))
        }
    }
}

/// The first twelve characters of a commit id or digest.
pub fn short(version: &str) -> &str {
    let digits = version.strip_prefix("folder-").unwrap_or(version);
    digits.get(..12).unwrap_or(digits)
}

fn known_branches(known: &[String]) -> impl fmt::Display {
    if known.is_empty() { String::new() } else { format!("; there are: {}", known.join(", ")) }
}
