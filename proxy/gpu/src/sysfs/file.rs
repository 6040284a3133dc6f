//! Files of one device, each read up to a bound, with what is wrong with them.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::reading::{Fault, Problem};

/// The folder of one device, and the faults found in it.
pub(super) struct Device<'a> {
    path: &'a Path,
    faults: Vec<Fault>,
}

/// Why a file tells nothing.
#[derive(Debug)]
pub(super) enum Failure {
    Missing,
    Garbled,
    TooLarge,
    System { code: Option<i32>, text: String },
}

impl<'a> Device<'a> {
    pub(super) fn new(path: &'a Path) -> Self {
        Self { path, faults: Vec::new() }
    }

    pub(super) fn into_faults(self) -> Vec<Fault> {
        self.faults
    }

    pub(super) fn fault(&mut self, file: &str, problem: Problem) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(Fault::new(file, problem));
        }
    }

    /// What `result` holds, or `None` and a fault.
    pub(super) fn noted<T>(&mut self, file: &str, result: Result<T, Failure>) -> Option<T> {
        let problem = match result {
            Ok(value) => return Some(value),
            Err(Failure::Missing) => Problem::Missing,
            Err(Failure::Garbled) => Problem::Garbled("what it should"),
            Err(Failure::TooLarge) => Problem::TooMuch("a page"),
            Err(Failure::System { text, .. }) => Problem::Unreadable(text),
        };
        self.fault(file, problem);
        None
    }

    pub(super) fn text(&mut self, file: &str) -> Option<String> {
        let text = self.try_text(file);
        self.noted(file, text)
    }

    /// As `text`, where it is no fault that the file is not there.
    pub(super) fn optional_text(&mut self, file: &str) -> Option<String> {
        let text = self.try_text(file);
        self.unless_missing(file, text)
    }

    pub(super) fn optional_bytes(&mut self, file: &str) -> Option<Vec<u8>> {
        let bytes = self.try_bytes(file);
        self.unless_missing(file, bytes)
    }

    pub(super) fn number<T: FromStr>(&mut self, file: &str) -> Option<T> {
        let number = self.try_number(file);
        self.noted(file, number)
    }

    pub(super) fn optional_number<T: FromStr>(&mut self, file: &str) -> Option<T> {
        let number = self.try_number(file);
        self.unless_missing(file, number)
    }

    pub(super) fn try_number<T: FromStr>(&self, file: &str) -> Result<T, Failure> {
        self.try_text(file)?.trim().parse().map_err(|_| Failure::Garbled)
    }

    /// The folder of the card's sensors, relative to it.
    pub(super) fn monitor(&self) -> Option<String> {
        self.names("hwmon", |name| name.starts_with("hwmon"))
            .into_iter()
            .map(|name| format!("hwmon/{name}"))
            .next()
    }

    /// The names in `folder` that are `wanted`, sorted.
    pub(super) fn names(&self, folder: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path.join(folder))
            .into_iter()
            .flatten()
            .take(MAX_NAMES)
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| wanted(name))
            .collect();
        names.sort();
        names
    }

    fn unless_missing<T>(&mut self, file: &str, result: Result<T, Failure>) -> Option<T> {
        if matches!(result, Err(Failure::Missing)) { None } else { self.noted(file, result) }
    }

    fn try_text(&self, file: &str) -> Result<String, Failure> {
        String::from_utf8(self.try_bytes(file)?).map_err(|_| Failure::Garbled)
    }

    fn try_bytes(&self, file: &str) -> Result<Vec<u8>, Failure> {
        let path: PathBuf = self.path.join(file);
        // Opening a pipe would wait for its writer.
        if !fs::metadata(&path)?.is_file() {
            return Err(Failure::Garbled);
        }
        let mut bytes = Vec::new();
        File::open(&path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BYTES { Err(Failure::TooLarge) } else { Ok(bytes) }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == ErrorKind::NotFound {
            return Self::Missing;
        }
        Self::System { code: error.raw_os_error(), text: error.to_string() }
    }
}

/// The kernel shows a page at most.
const MAX_BYTES: u64 = 4096;
const MAX_NAMES: usize = 256;
const MAX_FAULTS: usize = 64;
