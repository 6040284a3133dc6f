//! One run of the `git` program: no shell, no prompt, bounded in time and output.

use std::{
    ffi::{OsStr, OsString},
    io,
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

/// Most bytes of a complaint that are kept.
const STDERR_LIMIT: u64 = 16 << 10;

/// Set for every run: nothing is asked of a terminal, messages are in English,
/// and only transports that carry data (and run nothing) are allowed.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("LC_ALL", "C"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("GCM_INTERACTIVE", "never"),
    ("GIT_OPTIONAL_LOCKS", "0"),
    ("GIT_NO_LAZY_FETCH", "1"),
    ("GIT_NO_REPLACE_OBJECTS", "1"),
    ("GIT_ALLOW_PROTOCOL", "https:http:ssh:file"),
];

/// Taken away: they would point git at another repository, as they do inside a hook.
const TAKEN_AWAY: &[&str] = &[
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_CEILING_DIRECTORIES",
    "GIT_TRACE",
];

/// Before the sub-command: nothing the repository configures is run.
const CONFIGURATION: &[&str] = &[
    "-c",
    "protocol.ext.allow=never",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "gc.autoDetach=false",
    "-c",
    "submodule.recurse=false",
];

/// A run of git that is being put together.
#[derive(Debug)]
pub(super) struct Call {
    arguments: Vec<OsString>,
    input: Vec<u8>,
    timeout: Duration,
    limit: u64,
    quiet_ssh: bool,
}

/// Why a run brought nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// No such program.
    NoProgram,
    /// It could not be started or talked to.
    Io { command: String, source: io::Error },
    /// It ended with a complaint.
    Exit { command: String, stderr: String },
    /// It took too long and was ended.
    TimedOut { command: String, after: Duration },
    /// It said more than `limit` bytes and was ended.
    TooMuch { command: String, limit: u64 },
}

impl Call {
    pub(super) fn new(timeout: Duration, limit: u64) -> Self {
        let (arguments, input) = (Vec::new(), Vec::new());
        Self { arguments, input, timeout, limit, quiet_ssh: false }
    }

    pub(super) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub(super) fn args(self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// What git reads on its standard input.
    pub(super) fn input(mut self, input: Vec<u8>) -> Self {
        self.input = input;
        self
    }

    /// Most bytes that are taken from its standard output.
    pub(super) fn limit(mut self, bytes: u64) -> Self {
        self.limit = bytes;
        self
    }

    /// Lets ssh fail where it would ask, unless the environment chooses an ssh command.
    pub(super) fn without_ssh_prompts(mut self) -> Self {
        self.quiet_ssh = true;
        self
    }

    /// Runs it; its output as text.
    pub(super) async fn text(self) -> Result<String, Failure> {
        self.bytes().await.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Runs it; its output as it comes. Dropping the future ends git and what it started.
    pub(super) async fn bytes(self) -> Result<Vec<u8>, Failure> {
        let command = self.name();
        let timeout = self.timeout;
        match tokio::time::timeout(timeout, self.run(&command)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::TimedOut { command, after: timeout }),
        }
    }

    async fn run(self, command: &str) -> Result<Vec<u8>, Failure> {
        let failed = |source| Failure::Io { command: command.to_owned(), source };
        let mut child = match self.command().spawn() {
            Ok(child) => child,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Failure::NoProgram),
            Err(e) => return Err(failed(e)),
        };
        let mut group = Group::of(&child);
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let write = async move {
            if let Some(mut stdin) = stdin {
                // A git that ended early says why on its standard error.
                let _ = stdin.write_all(&self.input).await;
            }
        };
        // All three at once: git stops writing while nobody reads.
        let ((), out, err) = tokio::join!(
            write,
            read_bounded(stdout, self.limit, AtLimit::Stop),
            read_bounded(stderr, STDERR_LIMIT, AtLimit::Discard)
        );
        let out = out.map_err(failed)?;
        let err = err.map_err(failed)?;
        if out.len() as u64 > self.limit {
            return Err(Failure::TooMuch { command: command.to_owned(), limit: self.limit });
        }
        let status = child.wait().await.map_err(failed)?;
        group.ended();
        if status.success() {
            return Ok(out);
        }
        let stderr = String::from_utf8_lossy(&err).into_owned();
        Err(Failure::Exit { command: command.to_owned(), stderr })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("git");
        command
            .args(CONFIGURATION)
            .args(&self.arguments)
            .envs(ENVIRONMENT.iter().copied())
            .stdin(if self.input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // A group of its own, so that ssh and git's helpers end with it.
            .process_group(0);
        for name in TAKEN_AWAY {
            command.env_remove(name);
        }
        let chosen = ["GIT_SSH", "GIT_SSH_COMMAND"].iter().any(|n| std::env::var_os(n).is_some());
        if self.quiet_ssh && !chosen {
            command.env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=15");
        }
        command
    }

    /// The sub-command, for messages.
    fn name(&self) -> String {
        let mut arguments = self.arguments.iter().map(|a| a.to_string_lossy());
        while let Some(argument) = arguments.next() {
            match argument.as_ref() {
                "-C" | "--git-dir" => drop(arguments.next()),
                other => return other.to_owned(),
            }
        }
        String::new()
    }
}

/// The processes that a run started; killed when dropped before it ended.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)))
    }

    fn ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Gone already is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// What to do with output beyond the limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtLimit {
    /// Leave it: the writer is about to be ended.
    Stop,
    /// Read on and forget.
    Discard,
}

/// Reads up to one byte more than `limit`, which tells that there was more.
async fn read_bounded(
    from: Option<impl AsyncRead + Unpin>,
    limit: u64,
    at_limit: AtLimit,
) -> io::Result<Vec<u8>> {
    let Some(mut from) = from else { return Ok(Vec::new()) };
    let mut bytes = Vec::new();
    (&mut from).take(limit.saturating_add(1)).read_to_end(&mut bytes).await?;
    if at_limit == AtLimit::Discard {
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Call {
        Call::new(Duration::from_secs(30), 1 << 10)
    }

    #[tokio::test]
    async fn input_and_output_go_through() {
        let id = call().args(["hash-object", "--stdin"]).input(b"hello\n".to_vec()).text().await;
        assert_eq!(id.unwrap().trim(), "ce013625030ba8dba906f756967f9e9ca394464a");
    }

    #[tokio::test]
    async fn too_much_output_is_an_error_not_a_full_memory() {
        let outcome = call().limit(10).args(["help", "-a"]).text().await;
        assert!(matches!(outcome, Err(Failure::TooMuch { limit: 10, .. })), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_complaint_is_kept() {
        let outcome = call().args(["-C", "/", "hash-object", "--no-such"]).text().await;
        let Err(Failure::Exit { command, stderr }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(command, "hash-object");
        assert!(stderr.contains("no-such"), "{stderr}");
    }

    #[tokio::test]
    async fn a_run_past_its_time_is_ended() {
        // Waits for input that never ends: `cat-file` would read for ever.
        let mut call = Call::new(Duration::from_millis(50), 1 << 10);
        call = call.args(["-c", "alias.wait=!sleep 600", "wait"]);
        let outcome = call.text().await;
        assert!(matches!(outcome, Err(Failure::TimedOut { .. })), "{outcome:?}");
    }

    #[tokio::test]
    async fn transports_that_run_programs_are_refused() {
        let outcome = call().args(["ls-remote", "--", "ext::sh -c true"]).text().await;
        let Err(Failure::Exit { stderr, .. }) = outcome else { panic!("{outcome:?}") };
        assert!(stderr.contains("not allowed"), "{stderr}");
    }
}
