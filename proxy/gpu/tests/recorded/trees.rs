//! Copies of the trees in `testdata/sysfs`, to be read or spoilt.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A copy of a tree, removed with this.
pub(crate) struct Tree(tempfile::TempDir);

impl Tree {
    /// A copy of the tree `name`; of `NAME.FAULT`, that of `NAME` with what differs.
    pub(crate) fn copy(name: &str) -> Self {
        let trees = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/sysfs");
        let tree = Self(tempfile::tempdir().expect("a folder"));
        if let Some((well, _)) = name.split_once('.') {
            copy(&trees.join(well), tree.path());
        }
        copy(&trees.join(name), tree.path());
        let removed = fs::read_to_string(tree.path().join("REMOVE")).unwrap_or_default();
        for path in removed.lines() {
            tree.remove(Path::new(path));
        }
        tree
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Its files, relative to it and sorted.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let (mut files, mut folders) = (Vec::new(), vec![self.path().to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path.strip_prefix(self.path()).expect("within").to_owned());
                }
            }
        }
        files.sort();
        files
    }

    pub(crate) fn write(&self, file: &Path, bytes: &[u8]) {
        fs::write(self.path().join(file), bytes).expect("to write");
    }

    pub(crate) fn remove(&self, path: &Path) {
        let path = self.path().join(path);
        let done = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        done.expect("what is to be removed is there");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a tree of testdata") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("to copy");
        }
    }
}
