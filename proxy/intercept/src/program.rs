//! Runs the programs that speak to the kernel.

use std::{
    env, fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::Error;

/// Where system programs are that a person's `PATH` often leaves out.
const SYSTEM: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// Most that is repeated of what a program said.
const SAID: usize = 600;

/// A program that is here.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    path: PathBuf,
}

/// What a run of it gave.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) success: bool,
    pub(crate) text: String,
    /// What it complained about, in one line.
    pub(crate) said: String,
}

impl Program {
    pub(crate) fn find(name: &'static str) -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = env::split_paths(&path).chain(SYSTEM.map(PathBuf::from));
        let path = folders.map(|folder| folder.join(name)).find(|path| runs(path))?;
        Some(Self { name, path })
    }

    /// Runs it to its end, with its messages in English.
    pub(crate) fn run(&self, arguments: &[&str], input: Option<&str>) -> Result<Output, Error> {
        let failed = |source| Error::Run { program: self.name, source };
        let mut child = Command::new(&self.path)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        // These programs read everything before they write, and one that has ended says why.
        if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
            let _ = pipe.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().map_err(failed)?;
        Ok(Output {
            success: output.status.success(),
            text: String::from_utf8_lossy(&output.stdout).into_owned(),
            said: in_a_line(&String::from_utf8_lossy(&output.stderr)),
        })
    }
}

fn runs(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

fn in_a_line(text: &str) -> String {
    // nft repeats the line with marks under it, which is nothing in a line.
    let lines = text.lines().map(str::trim).filter(|line| line.chars().any(char::is_alphanumeric));
    let line = lines.collect::<Vec<_>>().join("; ");
    line.chars().take(SAID).collect()
}

/// What a failure means.
pub(crate) fn failure(program: &'static str, said: &str, needs: &'static str) -> Error {
    let any = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let said = said.to_owned();
    if any(&["Operation not permitted", "Permission denied", "must be root"]) {
        return Error::NotPermitted { program };
    }
    let lacks = [
        "No such file or directory",
        "not supported",
        "Protocol not supported",
        "does not exist (do you need to insmod?)",
        "can't initialize",
        "No chain/target/match by that name",
        "missing kernel module",
    ];
    if any(&lacks) {
        Error::Kernel { program, said, needs }
    } else {
        Error::Failed { program, said }
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, failure, in_a_line};

    #[test]
    fn what_a_program_says_is_put_in_words() {
        let failed = |said| failure("nft", said, "nat");
        let denied = "netlink: Error: cache initialization failed: Operation not permitted";
        assert!(matches!(failed(denied), Error::NotPermitted { .. }));
        let lacking = "Error: Could not process rule: No such file or directory";
        assert!(matches!(failed(lacking), Error::Kernel { .. }));
        let wrong = "Error: syntax error, unexpected newline";
        assert!(matches!(failed(wrong), Error::Failed { .. }));
        let said = "Error: syntax error\nadd rule x\n    ^^^^\n";
        assert_eq!(in_a_line(said), "Error: syntax error; add rule x");
    }
}
