//! Reads a commit's files through the `git` program, without a shell and
//! without a work tree.

use std::{
    ffi::OsStr,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, anyhow, bail};
use towpath_policies::folder::{
    Collector, Files, FolderError, MAX_FILE_BYTES, MAX_FILES, MAX_TOTAL_BYTES, is_policy_path,
};

/// The id of the commit that `name` stands for.
pub(super) fn resolve(repo: &Path, name: &str) -> anyhow::Result<String> {
    let commit = format!("{name}^{{commit}}");
    let id = output(git(repo).args(["rev-parse", "--verify", "--end-of-options", &commit]))?;
    Ok(String::from_utf8_lossy(&id).trim().to_owned())
}

/// The policy files of a commit, relative to `below`.
pub(super) fn files(repo: &Path, commit: &str, below: Option<&Path>) -> anyhow::Result<Files> {
    let mut command = git(repo);
    command.args(["ls-tree", "-r", "-z", "-l", "--full-tree", commit]);
    // Git's paths have no `./` in front.
    let below: PathBuf =
        below.iter().flat_map(|p| p.components()).filter(|c| *c != Component::CurDir).collect();
    let (blobs, warnings) = blobs(&output(&mut command)?, &below)?;
    for warning in warnings {
        eprintln!("towpath diff: warning: {warning}");
    }
    let mut collector = Collector::default();
    let contents = contents(repo, blobs.iter().map(|blob| blob.id.clone()).collect())?;
    for (blob, content) in blobs.into_iter().zip(contents) {
        collector.add(blob.path, content)?;
    }
    Ok(collector.finish())
}

struct Blob {
    id: String,
    path: PathBuf,
}

fn git(repo: &Path) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(repo).stdin(Stdio::null());
    // Plain English answers, no questions, no locks taken.
    command.env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0").env("GIT_OPTIONAL_LOCKS", "0");
    command
}

fn missing(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::NotFound {
        return anyhow!("the program git is not there; install it, or compare two folders");
    }
    anyhow::Error::new(error).context("cannot start git")
}

fn output(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let output = command.output().map_err(missing)?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("git: {}", why.trim().trim_start_matches("fatal: "));
    }
    Ok(output.stdout)
}

/// Picks the policy files from `git ls-tree -z -l`: `mode type id size\tpath\0`.
/// Symbolic links, which may point outside of the commit, are left out and told.
/// What is too large is refused before any of it is read.
fn blobs(listing: &[u8], below: &Path) -> anyhow::Result<(Vec<Blob>, Vec<String>)> {
    let (mut blobs, mut warnings, mut total) = (Vec::new(), Vec::new(), 0_u64);
    for entry in listing.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()) {
        let tab = entry.iter().position(|b| *b == b'\t').context("git ls-tree: no tab")?;
        let path = Path::new(OsStr::from_bytes(&entry[tab + 1..]));
        let Ok(path) = path.strip_prefix(below) else { continue };
        if !is_policy_path(path) {
            continue;
        }
        let head = std::str::from_utf8(&entry[..tab])?;
        let mut words = head.split_ascii_whitespace();
        let (mode, kind, id, size) = (words.next(), words.next(), words.next(), words.next());
        if mode == Some("120000") {
            warnings.push(format!("{}: a symbolic link, left out", path.display()));
            continue;
        }
        if kind != Some("blob") {
            continue;
        }
        let size: u64 = size.unwrap_or_default().parse().context("git ls-tree: no size")?;
        if size > MAX_FILE_BYTES {
            bail!("{} is larger than {} MiB", path.display(), MAX_FILE_BYTES >> 20);
        }
        total = total.saturating_add(size);
        if total > MAX_TOTAL_BYTES {
            return Err(FolderError::TotalTooLarge.into());
        }
        let id = id.context("git ls-tree: no id")?.to_owned();
        blobs.push(Blob { id, path: path.to_owned() });
    }
    if blobs.len() > MAX_FILES {
        bail!("more than {MAX_FILES} policy files; name their folder with --path");
    }
    Ok((blobs, warnings))
}

/// The contents of blobs, in order, from one `git cat-file --batch`.
fn contents(repo: &Path, ids: Vec<String>) -> anyhow::Result<Vec<Vec<u8>>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = git(repo);
    command.args(["cat-file", "--batch"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(missing)?;
    let mut input = child.stdin.take().context("git cat-file has no input")?;
    let mut answers = BufReader::new(child.stdout.take().context("git cat-file has no output")?);
    let asked = ids.join("\n") + "\n";
    // Asked on a thread of its own: git answers while it is still being asked.
    let asking = thread::spawn(move || input.write_all(asked.as_bytes()));
    let contents = ids.iter().map(|_| answer(&mut answers)).collect::<anyhow::Result<Vec<_>>>();
    drop(answers);
    let status = child.wait().context("git cat-file")?;
    let contents = contents?;
    if !status.success() || !matches!(asking.join(), Ok(Ok(()))) {
        bail!("git cat-file ended early");
    }
    Ok(contents)
}

/// One answer: `id blob size\n`, the content, `\n`.
fn answer(answers: &mut impl io::BufRead) -> anyhow::Result<Vec<u8>> {
    let mut head = String::new();
    answers.by_ref().take(256).read_line(&mut head)?;
    let size: u64 = head
        .split_ascii_whitespace()
        .nth(2)
        .and_then(|size| size.parse().ok())
        .filter(|size| *size <= MAX_FILE_BYTES)
        .with_context(|| format!("git cat-file: unexpected answer {:?}", head.trim()))?;
    let mut content = Vec::new();
    answers.by_ref().take(size).read_to_end(&mut content)?;
    let mut end = [0];
    answers.read_exact(&mut end)?;
    if content.len() as u64 != size {
        bail!("git cat-file ended early");
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbolic_links_are_left_out_and_told() {
        let listing = b"120000 blob aa 6\tp/link.yaml\x00100644 blob bb 9\tp/a.yaml\0";
        let (blobs, warnings) = blobs(listing, Path::new("p")).unwrap();
        assert_eq!(blobs.len(), 1);
        assert_eq!((&*blobs[0].id, blobs[0].path.as_path()), ("bb", Path::new("a.yaml")));
        assert_eq!(warnings, ["link.yaml: a symbolic link, left out"]);
    }

    #[test]
    fn the_sum_of_all_files_is_limited_before_any_is_read() {
        let listing = |files: u64| {
            let one = |n| format!("100644 blob aa {MAX_FILE_BYTES}\t{n}.yaml\0");
            (0..files).map(one).collect::<String>()
        };
        let most = MAX_TOTAL_BYTES / MAX_FILE_BYTES;
        assert!(blobs(listing(most).as_bytes(), Path::new("")).is_ok());
        let refused = blobs(listing(most + 1).as_bytes(), Path::new("")).err().unwrap();
        assert!(matches!(refused.downcast_ref(), Some(FolderError::TotalTooLarge)), "{refused}");
    }
}
