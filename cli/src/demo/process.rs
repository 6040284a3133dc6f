//! The processes of the stage: started, watched, and all ended.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout, Command},
};

/// Time a process has to say that it is ready.
const START: Duration = Duration::from_secs(30);
/// Time a process has to end when asked to.
const GRACE: Duration = Duration::from_secs(4);
/// Longest first line.
const MAX_LINE_BYTES: u64 = 4096;

/// All processes by name. Those left when it is dropped are killed.
#[derive(Debug)]
pub(super) struct Fleet {
    logs: PathBuf,
    running: BTreeMap<String, Process>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    pid: Pid,
    addresses: BTreeMap<String, SocketAddr>,
}

impl Fleet {
    /// No process yet; their logs go to this folder.
    pub(super) fn new(logs: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(logs).with_context(|| format!("cannot make {}", logs.display()))?;
        Ok(Self { logs: logs.to_owned(), running: BTreeMap::new() })
    }

    /// Starts this very program with `args` and waits until it is ready.
    ///
    /// Call it on the program's first thread: the child ends with the thread that started it.
    pub(super) async fn start(&mut self, name: &str, args: &[String]) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let path = self.log(name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut child = Command::new(&program)
            .args(args)
            .arg("--die-with-parent")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone().context("cannot share a log file")?)
            // a group of its own: Ctrl-C in a terminal reaches the demo, which ends the rest in order
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let pid = pid.ok_or_else(|| anyhow!("{name} ended at once"))?;
        let output = child.stdout.take().ok_or_else(|| anyhow!("{name} has no output"))?;
        let addresses = match tokio::time::timeout(START, ready(output, log)).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => bail!("{name} did not start: {error}{}", self.tail(name)),
            Err(_) => bail!("{name} was not ready in {} s{}", START.as_secs(), self.tail(name)),
        };
        self.running.insert(name.to_owned(), Process { child, pid, addresses });
        Ok(())
    }

    /// An address from the process's ready line.
    pub(super) fn address(&self, name: &str, which: &str) -> anyhow::Result<SocketAddr> {
        self.running
            .get(name)
            .and_then(|process| process.addresses.get(which))
            .copied()
            .ok_or_else(|| anyhow!("{name} told no address {which:?} when it was ready"))
    }

    /// Process id.
    pub(super) fn pid(&self, name: &str) -> Option<i32> {
        self.running.get(name).map(|process| process.pid.as_raw_nonzero().get())
    }

    /// Kills a process as a crash would.
    pub(super) async fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let Some(mut process) = self.running.remove(name) else {
            bail!("{name} is not running");
        };
        process.child.kill().await.with_context(|| format!("cannot kill {name}"))
    }

    /// Asks a process to end, and waits until it has.
    pub(super) async fn stop(&mut self, name: &str) {
        if let Some(process) = self.running.remove(name) {
            process.end().await;
        }
    }

    /// Stops every process whose name starts with `prefix`, all at once.
    pub(super) async fn stop_all(&mut self, prefix: &str) {
        let names: Vec<String> =
            self.running.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        let ending = names.iter().filter_map(|name| self.running.remove(name)).map(Process::end);
        let mut ending: tokio::task::JoinSet<()> = ending.collect();
        while ending.join_next().await.is_some() {}
    }

    /// Fails when a process ended that nobody asked to.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        let ended = self.running.iter_mut().find_map(|(name, process)| {
            let status = process.child.try_wait().ok().flatten()?;
            Some((name.clone(), status))
        });
        match ended {
            Some((name, status)) => bail!("{name} ended by itself: {status}{}", self.tail(&name)),
            None => Ok(()),
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// The end of a process's log, to go under an error.
    fn tail(&self, name: &str) -> String {
        let path = self.log(name);
        let text = std::fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(15)..];
        if last.is_empty() {
            return String::new();
        }
        format!("\n  the end of {}:\n    {}", path.display(), last.join("\n    "))
    }
}

impl Process {
    async fn end(mut self) {
        // it may just have ended, which is what is wanted
        let _ = kill_process(self.pid, Signal::TERM);
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// Reads `ready name=ADDR …`, and leaves the rest of the output to the log.
async fn ready(output: ChildStdout, log: File) -> anyhow::Result<BTreeMap<String, SocketAddr>> {
    let mut output = BufReader::new(output);
    let mut line = String::new();
    (&mut output).take(MAX_LINE_BYTES).read_line(&mut line).await?;
    let addresses = addresses(&line).ok_or_else(|| match line.trim() {
        "" => anyhow!("it ended without a word"),
        said => anyhow!("instead of being ready it said {said:?}"),
    })?;
    tokio::spawn(async move {
        let mut log = tokio::fs::File::from_std(log);
        // the log is a convenience; a full disk must not stop the process
        let _ = tokio::io::copy(&mut output, &mut log).await;
    });
    Ok(addresses)
}

fn addresses(line: &str) -> Option<BTreeMap<String, SocketAddr>> {
    line.trim()
        .strip_prefix("ready")?
        .split_ascii_whitespace()
        .map(|pair| {
            let (name, address) = pair.split_once('=')?;
            Some((name.to_owned(), address.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_lines() {
        let read = addresses("ready admin=127.0.0.1:1 xds=[::1]:2\n").unwrap();
        assert_eq!(read["xds"].port(), 2);
        assert_eq!(addresses("ready\n").unwrap().len(), 0);
        for line in ["", "error: no", "ready admin", "ready admin=nowhere"] {
            assert!(addresses(line).is_none(), "{line}");
        }
    }
}
