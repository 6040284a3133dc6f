//! The Git repository of policy files, by the `git` program.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use super::policies::File;

/// The branch that is followed.
pub(super) const BRANCH: &str = "main";

/// A repository with a work tree.
#[derive(Debug)]
pub(super) struct Repository {
    folder: PathBuf,
}

/// A commit.
#[derive(Clone, Debug)]
pub(super) struct Commit {
    /// Full id.
    pub(super) id: String,
    pub(super) subject: String,
}

impl Commit {
    /// The first seven characters of the id.
    pub(super) fn short(&self) -> &str {
        self.id.get(..7).unwrap_or(&self.id)
    }
}

impl Repository {
    /// Makes an empty one.
    pub(super) fn create(folder: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let repository = Self { folder };
        // a branch name by this way is understood by every Git; `init -b` is not
        repository.git(&["init", "--quiet"])?;
        repository.git(&["symbolic-ref", "HEAD", &format!("refs/heads/{BRANCH}")])?;
        for (key, value) in [
            ("user.name", "Towpath demo"),
            ("user.email", "demo@towpath.invalid"),
            ("commit.gpgsign", "false"),
        ] {
            repository.git(&["config", key, value])?;
        }
        Ok(repository)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes files and commits them.
    pub(super) fn commit(&self, subject: &str, files: &[File]) -> anyhow::Result<Commit> {
        for file in files {
            let path = self.folder.join(file.path);
            let parent = path.parent().unwrap_or(&self.folder);
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&path, &file.text))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--no-verify", "-m", subject])?;
        self.head(subject)
    }

    /// Takes the last commit back by another one.
    pub(super) fn revert(&self) -> anyhow::Result<Commit> {
        self.git(&["revert", "--no-edit", "HEAD"])?;
        let subject = self.git(&["log", "-1", "--format=%s"])?;
        self.head(&subject)
    }

    /// The text of a file in the work tree.
    pub(super) fn read(&self, path: &str) -> anyhow::Result<String> {
        let path = self.folder.join(path);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn head(&self, subject: &str) -> anyhow::Result<Commit> {
        let id = self.git(&["rev-parse", "HEAD"])?;
        Ok(Commit { id, subject: subject.to_owned() })
    }

    /// Runs Git apart from the user's own settings and from any repository around.
    fn git(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("git");
        command.arg("-C").arg(&self.folder).args(args);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("GIT_")) {
                command.env_remove(name);
            }
        }
        command
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_EDITOR", "true")
            .env("LC_ALL", "C")
            // Ctrl-C in a terminal is for the demo alone
            .process_group(0);
        let output = command.output().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow::anyhow!(
                "the program `git` is not installed: the demo keeps its policies in a real \
                 repository. On Debian: apt install git"
            ),
            _ => anyhow::Error::new(error).context("cannot run git"),
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("git {}: {}: {}", args.join(" "), output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        File { path: "mesh/a.yaml", text: text.to_owned() }
    }

    #[test]
    fn commits_follow_each_other_and_a_revert_restores() {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::create(folder.path().join("policies")).unwrap();
        let first = repository.commit("first", &[file("a: 1\n")]).unwrap();
        let second = repository.commit("second", &[file("a: 2\n")]).unwrap();
        assert_eq!(repository.read("mesh/a.yaml").unwrap(), "a: 2\n");
        let third = repository.revert().unwrap();
        assert_eq!(repository.read("mesh/a.yaml").unwrap(), "a: 1\n");
        assert_eq!(third.subject, "Revert \"second\"");
        let ids = repository.git(&["log", "--format=%H", BRANCH]).unwrap();
        assert_eq!(ids.lines().collect::<Vec<_>>(), [third.id, second.id, first.id]);
    }

    #[test]
    fn what_git_says_is_passed_on() {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::create(folder.path().join("policies")).unwrap();
        let error = repository.revert().expect_err("nothing to revert").to_string();
        assert!(error.starts_with("git revert"), "{error}");
    }
}
