//! Real programs of others, started beside ours.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// The path of a tool that `./test` installed.
///
/// # Panics
/// When it is not there: a missing peer is a failure, never a skip.
pub fn tool(relative: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools").join(relative);
    assert!(path.exists(), "{relative} is not installed; run: ./test tools");
    path
}

/// A running peer with its standard input and output at hand; killed on drop.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    /// Starts a program with arguments and environment.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", program.display()));
        let input = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, input, lines }
    }

    /// The next line it prints.
    ///
    /// # Panics
    /// When it ends instead, or says nothing for 60 s.
    pub async fn line(&mut self) -> String {
        self.line_within(Duration::from_secs(60)).await
    }

    /// As [`Peer::line`], for one that may be long at work.
    ///
    /// # Panics
    /// When it ends instead, or says nothing in that time.
    pub async fn line_within(&mut self, time: Duration) -> String {
        let next = tokio::time::timeout(time, self.lines.next_line());
        match next.await.expect("a line in time").expect("readable output") {
            Some(line) => line,
            None => panic!("the peer ended: {:?}", self.child.wait().await),
        }
    }

    /// Gives it a line to read.
    ///
    /// # Panics
    /// When it no longer reads.
    pub async fn say(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.expect("the peer reads");
    }
}
