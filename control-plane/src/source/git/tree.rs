//! The policy files of one commit, straight from the object store.

use std::path::{Path, PathBuf};

use towpath_policies::folder::{
    Collector, Files, FolderError, MAX_FILES, MAX_TOTAL_BYTES, is_policy_path,
};

use super::{
    super::{Commit, Revision, SourceError, short},
    command::{Call, Failure},
    explain,
};

/// Most bytes of a tree's listing: some hundred thousand entries.
const LISTING_LIMIT: u64 = 32 << 20;
/// Bytes added to each object by `cat-file --batch`.
const HEADER_ALLOWANCE: u64 = 128;
/// Largest commit object that is looked at.
const COMMIT_LIMIT: u64 = 1 << 20;
/// Warnings kept of one commit.
const WARNINGS_KEPT: usize = 20;

/// What a commit holds for us.
pub(super) struct Tree {
    author: String,
    time: i64,
    subject: String,
    files: Result<Files, FolderError>,
    warnings: Vec<String>,
}

impl Tree {
    pub(super) fn into_revision(self, commit: String, branch: Option<String>) -> Revision {
        let Self { author, time, subject, files, warnings } = self;
        let about = Commit { id: commit.clone(), author, time, subject };
        let (files, unfit) = match files {
            Ok(files) => (files, None),
            Err(why) => (Files::new(), Some(why.to_string())),
        };
        Revision { version: commit, commit: Some(about), branch, files, warnings, unfit }
    }
}

/// Reads the policy files below `sub` in `commit`.
pub(super) async fn read(
    call: &(impl Fn() -> Call + Sync),
    at: &str,
    commit: &str,
    sub: Option<&Path>,
) -> Result<Tree, SourceError> {
    let listing = list(call, at, commit, sub).await?;
    let (blobs, warnings) = choose(&listing);
    let (blobs, unfit) = match check_limits(&blobs) {
        Ok(()) => (blobs, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    let bytes: u64 = blobs.iter().map(|blob| blob.size).sum();
    let mut input = format!("{commit}\n").into_bytes();
    for blob in &blobs {
        input.extend_from_slice(blob.id.as_bytes());
        input.push(b'\n');
    }
    let limit = bytes + COMMIT_LIMIT + HEADER_ALLOWANCE * (blobs.len() as u64 + 1);
    let run = call().args(["cat-file", "--batch"]).limit(limit).input(input);
    let output = run.bytes().await.map_err(|e| explain(e, at, str::to_owned))?;
    let broken = |what: &str| SourceError::Git {
        at: at.to_owned(),
        command: "cat-file".to_owned(),
        detail: format!("{what} in commit {} cannot be read", short(commit)),
    };
    let mut rest = output.as_slice();
    let about = next_object(&mut rest).ok_or_else(|| broken("the commit itself"))?;
    let (author, time, subject) = about_commit(about);
    let mut contents = Vec::with_capacity(blobs.len());
    for blob in blobs {
        let Some(bytes) = next_object(&mut rest) else {
            return Err(broken(&blob.path.display().to_string()));
        };
        contents.push((blob.path, bytes.to_vec()));
    }
    let files = unfit.map_or_else(|| collect(contents), Err);
    Ok(Tree { author, time, subject, files, warnings })
}

fn collect(contents: Vec<(PathBuf, Vec<u8>)>) -> Result<Files, FolderError> {
    let mut collector = Collector::default();
    for (path, bytes) in contents {
        collector.add(path, bytes)?;
    }
    Ok(collector.finish())
}

async fn list(
    call: &(impl Fn() -> Call + Sync),
    at: &str,
    commit: &str,
    sub: Option<&Path>,
) -> Result<Vec<u8>, SourceError> {
    let tree = match sub {
        // `commit:path` names the sub-tree, so that paths come relative to it.
        Some(folder) => format!("{commit}:{}", folder.display()),
        None => commit.to_owned(),
    };
    let run = call().args(["ls-tree", "-r", "-z", "--long", "--full-tree", "--end-of-options"]);
    match run.arg(&tree).limit(LISTING_LIMIT).bytes().await {
        Ok(listing) => Ok(listing),
        Err(Failure::Exit { stderr, command }) => match sub {
            Some(folder)
                if ["Not a valid object name", "not a tree object", "does not exist"]
                    .iter()
                    .any(|sign| stderr.contains(sign)) =>
            {
                let (commit, folder) = (commit.to_owned(), folder.to_owned());
                Err(SourceError::FolderMissing { at: at.to_owned(), commit, folder })
            }
            _ => Err(explain(Failure::Exit { stderr, command }, at, str::to_owned)),
        },
        Err(failure) => Err(explain(failure, at, str::to_owned)),
    }
}

/// A file of the tree that will be read.
#[derive(Debug, PartialEq, Eq)]
struct Blob {
    id: String,
    size: u64,
    path: PathBuf,
}

/// Picks the policy files out of a listing; symbolic links and submodules,
/// which point outside of the commit, are left out and told.
fn choose(listing: &[u8]) -> (Vec<Blob>, Vec<String>) {
    let (mut blobs, mut warnings) = (Vec::new(), Vec::new());
    for entry in listing.split(|b| *b == 0).filter(|entry| !entry.is_empty()) {
        let Some((mode, id, size, path)) = parse_entry(entry) else { continue };
        match mode {
            "160000" => warnings.push(format!("{}: a submodule, left out", path.display())),
            "120000" if is_policy_path(&path) => {
                warnings.push(format!("{}: a symbolic link, left out", path.display()));
            }
            "100644" | "100755" if is_policy_path(&path) => {
                blobs.push(Blob { id: id.to_owned(), size, path });
            }
            _ => {}
        }
    }
    warnings.truncate(WARNINGS_KEPT);
    (blobs, warnings)
}

/// Before anything is read: what is too large is not read at all.
fn check_limits(blobs: &[Blob]) -> Result<(), FolderError> {
    if blobs.len() > MAX_FILES {
        return Err(FolderError::TooManyFiles);
    }
    let bytes = blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
    if bytes > MAX_TOTAL_BYTES {
        return Err(FolderError::TotalTooLarge);
    }
    Ok(())
}

/// `mode SP type SP id SP+ size TAB path`; the size of what is no blob is `-`.
fn parse_entry(entry: &[u8]) -> Option<(&str, &str, u64, PathBuf)> {
    let tab = entry.iter().position(|b| *b == b'\t')?;
    let (head, path) = (std::str::from_utf8(&entry[..tab]).ok()?, &entry[tab + 1..]);
    let mut words = head.split_ascii_whitespace();
    let (mode, _type, id) = (words.next()?, words.next()?, words.next()?);
    let size = words.next()?.parse().unwrap_or(0);
    Some((mode, id, size, PathBuf::from(String::from_utf8_lossy(path).into_owned())))
}

/// `id SP type SP size LF content LF`; `None` for `id SP missing LF` and for cut output.
fn next_object<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|b| *b == b'\n')?;
    let head = std::str::from_utf8(&rest[..end]).ok()?;
    let size: usize = head.split(' ').nth(2)?.parse().ok()?;
    let start = end + 1;
    let content = rest.get(start..start.checked_add(size)?)?;
    *rest = rest.get(start + size + 1..)?;
    Some(content)
}

/// Author, committer's time and first line of a commit object.
fn about_commit(object: &[u8]) -> (String, i64, String) {
    let text = String::from_utf8_lossy(object);
    let (head, message) = text.split_once("\n\n").unwrap_or((&text, ""));
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    let author = field("author ").and_then(|line| line.split(" <").next()).unwrap_or_default();
    let time = field("committer ")
        .and_then(|line| line.rsplit_once("> ")?.1.split(' ').next()?.parse().ok())
        .unwrap_or(0);
    let printable = |text: &str| text.chars().filter(|c| !c.is_control()).take(200).collect();
    (printable(author), time, printable(message.lines().next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_files_are_chosen_and_the_rest_is_told() {
        let listing = [
            "100644 blob aa      12\ta.yaml",
            "120000 blob bb       7\tlink.yaml",
            "160000 commit cc       -\tsub",
            "100755 blob dd       3\tx/b.yml",
            "100644 blob ee       1\tREADME.md",
            "100644 blob ff       1\t.github/ci.yaml",
            "",
        ]
        .join("\0");
        let (blobs, warnings) = choose(listing.as_bytes());
        let paths: Vec<_> = blobs.iter().map(|b| b.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["a.yaml", "x/b.yml"]);
        assert_eq!(
            warnings,
            ["link.yaml: a symbolic link, left out", "sub: a submodule, left out"]
        );
    }

    #[test]
    fn commits_that_are_too_large_are_refused_before_they_are_read() {
        let listing = format!("100644 blob aa {}\ta.yaml\0", MAX_TOTAL_BYTES + 1);
        let (blobs, _) = choose(listing.as_bytes());
        assert!(matches!(check_limits(&blobs), Err(FolderError::TotalTooLarge)));
    }

    #[test]
    fn batches_are_read_object_by_object() {
        let mut rest: &[u8] = b"aa blob 3\na\nb\nbb missing\n";
        assert_eq!(next_object(&mut rest), Some(&b"a\nb"[..]));
        assert_eq!(next_object(&mut rest), None);
        for cut in [&b"aa blob 3\na"[..], b"aa blob 18446744073709551615\n", b"aa", b""] {
            assert_eq!(next_object(&mut { cut }), None);
        }
    }

    #[test]
    fn a_commit_tells_who_when_and_what() {
        let object = b"tree aa\nparent bb\nauthor Ada L <ada@example.com> 1 +0000\n\
            committer Bob <b@example.com> 1700000000 +0200\ngpgsig x\n\nShift 10%\n\nbody\n";
        assert_eq!(about_commit(object), ("Ada L".into(), 1_700_000_000, "Shift 10%".into()));
        assert_eq!(about_commit(b""), (String::new(), 0, String::new()));
    }
}
