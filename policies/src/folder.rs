//! Reads a policy folder: which files count, and how much is too much.
//!
//! The one place of this crate that touches a disk. Git trees go through the
//! same rules by [`is_policy_path`] and [`Collector`].

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs, io,
    path::{Component, Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// Most policy files in a folder.
pub const MAX_FILES: usize = 10_000;
/// Largest policy file in bytes.
pub const MAX_FILE_BYTES: u64 = 4 << 20;
/// Largest sum of all policy files in bytes.
pub const MAX_TOTAL_BYTES: u64 = 64 << 20;
/// Deepest nesting of folders.
pub const MAX_DEPTH: usize = 32;

/// Path relative to the folder, and its text.
pub type Files = Vec<(PathBuf, String)>;

/// Why a folder could not be read. Each says the cause itself: there is no `source()` to print after it.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The operating system refused.
    #[error("cannot read {path}: {cause}", path = .path.display())]
    Io {
        /// What was to be read.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// A symbolic link leads elsewhere.
    #[error("{path} is a symbolic link out of the policy folder; copy the file in instead", path = .0.display())]
    Escapes(PathBuf),
    /// More than [`MAX_FILES`].
    #[error("more than {MAX_FILES} policy files; point at the folder that holds only policies")]
    TooManyFiles,
    /// More than [`MAX_FILE_BYTES`].
    #[error("{path} is larger than {} MiB, the most a policy file may have", MAX_FILE_BYTES >> 20, path = .0.display())]
    FileTooLarge(PathBuf),
    /// More than [`MAX_TOTAL_BYTES`].
    #[error("the policy files together are larger than {} MiB", MAX_TOTAL_BYTES >> 20)]
    TotalTooLarge,
    /// More than [`MAX_DEPTH`].
    #[error("{path} is nested more than {MAX_DEPTH} folders deep", path = .0.display())]
    TooDeep(PathBuf),
    /// Not UTF-8.
    #[error("{path} is not UTF-8 text", path = .0.display())]
    NotText(PathBuf),
}

/// Whether a path relative to the policy folder names a policy file: `*.yaml`
/// or `*.yml`, with no hidden component (one that starts with a dot).
pub fn is_policy_path(path: &Path) -> bool {
    let shown = path.components().all(|part| match part {
        Component::Normal(name) => !is_hidden(name),
        _ => false,
    });
    let yaml = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("yaml") || e.eq_ignore_ascii_case("yml"));
    shown && yaml
}

/// Gathers policy files under the limits of this module, from wherever they come.
#[derive(Debug, Default)]
pub struct Collector {
    files: Files,
    total: u64,
}

impl Collector {
    /// Takes a file; anything that [`is_policy_path`] does not accept is passed over.
    ///
    /// # Errors
    /// When a limit is exceeded, or the file is not UTF-8.
    pub fn add(&mut self, path: PathBuf, content: Vec<u8>) -> Result<(), FolderError> {
        if !is_policy_path(&path) {
            return Ok(());
        }
        if self.files.len() >= MAX_FILES {
            return Err(FolderError::TooManyFiles);
        }
        let size = content.len() as u64;
        if size > MAX_FILE_BYTES {
            return Err(FolderError::FileTooLarge(path));
        }
        self.total += size;
        if self.total > MAX_TOTAL_BYTES {
            return Err(FolderError::TotalTooLarge);
        }
        let Ok(text) = String::from_utf8(content) else { return Err(FolderError::NotText(path)) };
        self.files.push((path, text));
        Ok(())
    }

    /// All files, sorted by path.
    pub fn finish(mut self) -> Files {
        self.files.sort_by(|a, b| a.0.cmp(&b.0));
        self.files
    }
}

/// Reads all policy files below `root`, sorted by path; or the one file `root` names.
///
/// Symbolic links are followed as long as they stay below `root`, as in a
/// mounted Kubernetes ConfigMap (`a.yaml -> ..data/a.yaml`).
///
/// # Errors
/// When something cannot be read, leads out of the folder, or exceeds a limit.
pub fn read(root: &Path) -> Result<Files, FolderError> {
    let io_error = |cause| FolderError::Io { path: root.to_owned(), cause };
    let real_root = fs::canonicalize(root).map_err(io_error)?;
    let mut collector = Collector::default();
    if fs::metadata(root).map_err(io_error)?.is_file() {
        let name = root.file_name().map_or_else(|| PathBuf::from("policy.yaml"), PathBuf::from);
        let content = read_file(root)?;
        // A file that was named outright counts whatever it is called.
        let name = if is_policy_path(&name) { name } else { name.with_extension("yaml") };
        collector.add(name, content)?;
        return Ok(collector.finish());
    }
    let mut walk = Walk { root: &real_root, entered: HashSet::new(), collector };
    walk.folder(root, Path::new(""), 0)?;
    Ok(walk.collector.finish())
}

/// A version for a folder that has none of its own: a digest of names and
/// contents, e.g. `folder-3f2a…`. Equal content gives an equal version.
pub fn digest(files: &[(PathBuf, String)]) -> String {
    let mut hash = Sha256::new();
    for (path, text) in files {
        for part in [path.as_os_str().as_encoded_bytes(), text.as_bytes()] {
            // Lengths first, so that no two lists of files give the same stream.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    let hex: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("folder-{hex}")
}

struct Walk<'a> {
    root: &'a Path,
    /// Real paths of the folders on the way, against links that lead in circles.
    entered: HashSet<PathBuf>,
    collector: Collector,
}

impl Walk<'_> {
    fn folder(&mut self, path: &Path, relative: &Path, depth: usize) -> Result<(), FolderError> {
        if depth > MAX_DEPTH {
            return Err(FolderError::TooDeep(relative.to_owned()));
        }
        let io_error = |cause| FolderError::Io { path: path.to_owned(), cause };
        let real = fs::canonicalize(path).map_err(io_error)?;
        if !self.entered.insert(real) {
            return Ok(());
        }
        for entry in fs::read_dir(path).map_err(io_error)? {
            let entry = entry.map_err(io_error)?;
            if is_hidden(&entry.file_name()) {
                continue;
            }
            self.entry(&entry.path(), &relative.join(entry.file_name()), depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, relative: &Path, depth: usize) -> Result<(), FolderError> {
        let io_error = |cause| FolderError::Io { path: path.to_owned(), cause };
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            // A dangling link, or gone since it was listed: it only matters if it would count.
            Err(_) if !is_policy_path(relative) => return Ok(()),
            Err(cause) => return Err(io_error(cause)),
        };
        let counts = meta.is_dir() || (meta.is_file() && is_policy_path(relative));
        if !counts {
            return Ok(());
        }
        let real = fs::canonicalize(path).map_err(io_error)?;
        if !real.starts_with(self.root) {
            return Err(FolderError::Escapes(relative.to_owned()));
        }
        if meta.is_dir() {
            return self.folder(path, relative, depth + 1);
        }
        let content = read_file(path)?;
        self.collector.add(relative.to_owned(), content)
    }
}

/// Reads at most one byte more than allowed, so that a file that grows cannot fill the memory.
fn read_file(path: &Path) -> Result<Vec<u8>, FolderError> {
    let io_error = |cause| FolderError::Io { path: path.to_owned(), cause };
    let file = fs::File::open(path).map_err(io_error)?;
    let mut content = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE_BYTES + 1), &mut content)
        .map_err(io_error)?;
    Ok(content)
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().first() == Some(&b'.')
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, path::PathBuf};

    use super::*;

    fn names(files: &Files) -> Vec<String> {
        files.iter().map(|(path, _)| path.display().to_string()).collect()
    }

    #[test]
    fn only_shown_yaml_files_count() {
        for (path, expected) in [
            ("a.yaml", true),
            ("a/b/c.yml", true),
            ("a.YAML", true),
            ("a.json", false),
            (".a.yaml", false),
            (".git/a.yaml", false),
            ("..data/a.yaml", false),
            ("../a.yaml", false),
            ("/a.yaml", false),
            ("yaml", false),
        ] {
            assert_eq!(is_policy_path(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn what_is_not_there_is_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("nope");
        let error = read(&missing).unwrap_err();
        let told = format!("cannot read {}: No such file or directory", missing.display());
        assert!(error.to_string().starts_with(&told), "{error}");
        // Whoever prints causes after an error would say it again.
        assert!(std::error::Error::source(&error).is_none());
    }

    #[test]
    fn a_mounted_config_map_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let version = dir.path().join("..2026_01_01");
        fs::create_dir(&version).unwrap();
        fs::write(version.join("a.yaml"), "a: 1").unwrap();
        symlink("..2026_01_01", dir.path().join("..data")).unwrap();
        symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
        let files = read(dir.path()).unwrap();
        assert_eq!(files, [(PathBuf::from("a.yaml"), "a: 1".to_owned())]);
    }

    #[test]
    fn links_out_of_the_folder_are_refused_and_circles_end() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("b.yaml"), "b: 1").unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("deep")).unwrap();
        fs::write(dir.path().join("deep/a.yml"), "a: 1").unwrap();
        symlink("..", dir.path().join("deep/up")).unwrap();
        assert_eq!(names(&read(dir.path()).unwrap()), ["deep/a.yml"]);
        symlink(outside.path().join("b.yaml"), dir.path().join("b.yaml")).unwrap();
        let refused = read(dir.path()).unwrap_err();
        assert!(matches!(refused, FolderError::Escapes(path) if path == Path::new("b.yaml")));
    }

    #[test]
    fn limits_hold() {
        let mut collector = Collector::default();
        let large = vec![b' '; MAX_FILE_BYTES as usize + 1];
        let refused = collector.add("a.yaml".into(), large).unwrap_err();
        assert!(matches!(refused, FolderError::FileTooLarge(_)));
        for index in 0..MAX_FILES {
            collector.add(format!("{index}.yaml").into(), vec![]).unwrap();
        }
        let refused = collector.add("b.yaml".into(), vec![]).unwrap_err();
        assert!(matches!(refused, FolderError::TooManyFiles));
        let refused = Collector::default().add("c.yaml".into(), vec![0xff]).unwrap_err();
        assert!(matches!(refused, FolderError::NotText(_)));
    }

    #[test]
    fn the_digest_tells_names_from_contents() {
        let of = |files: &[(&str, &str)]| {
            let files: Files = files.iter().map(|(p, t)| ((*p).into(), (*t).into())).collect();
            digest(&files)
        };
        assert_eq!(of(&[("a", "b")]), of(&[("a", "b")]));
        assert_ne!(of(&[("a", "b")]), of(&[("ab", "")]));
        assert_ne!(of(&[("a", "b")]), of(&[("a", "c")]));
        assert_ne!(of(&[]), of(&[("", "")]));
    }
}
