//! A Git repository of policy files.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A repository in a temporary folder, on branch `main`.
#[derive(Debug)]
pub struct Repository {
    folder: tempfile::TempDir,
}

impl Repository {
    /// An empty one.
    ///
    /// # Panics
    /// When `git` is missing or fails.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let repository = Self { folder };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository
    }

    /// Where its work tree is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Writes one file and commits it; the commit's id.
    ///
    /// # Panics
    /// When it cannot.
    pub fn commit(&self, file: &str, text: &str) -> String {
        std::fs::write(self.folder.path().join(Path::new(file)), text).expect("a writable folder");
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "Change policies"]);
        self.git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=Test", "-c", "user.email=test@example.com"])
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .expect("git is installed (run ./test)");
        assert!(
            output.status.success(),
            "git {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Default for Repository {
    fn default() -> Self {
        Self::new()
    }
}
