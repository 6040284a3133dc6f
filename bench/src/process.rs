//! A proxy as a child process: started through the shim, watched, and ended with its whole tree.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};

use crate::meter::ProcessTree;

/// How long a proxy may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a proxy may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(10);

/// A running proxy. It ends when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    log: PathBuf,
}

impl Proxy {
    /// Starts `command` bound to `core`, its output going to a log file in `folder`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(
        command: &[impl AsRef<OsStr>],
        core: Option<usize>,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        Self::start_in_group(None, command, core, folder)
    }

    /// Starts it in a group, given by number, by which the kernel's packet filter tells it apart.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_in_group(
        group: Option<u32>,
        command: &[impl AsRef<OsStr>],
        core: Option<usize>,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let log = folder.join("output.log");
        let output =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let own = std::env::current_exe().context("cannot find the bench's own program")?;
        let mut shim = Command::new(own);
        shim.arg("exec");
        if let Some(core) = core {
            shim.arg("--core").arg(core.to_string());
        }
        if let Some(group) = group {
            shim.arg("--group").arg(group.to_string());
        }
        shim.arg("--").args(command);
        let child = shim
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start the bench's own program as a shim")?;
        Ok(Self { child, log })
    }

    /// Waits until the proxy listens on `address`.
    ///
    /// # Errors
    /// If it ends or stays silent; the error carries the end of its log.
    pub fn wait_until_listening(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let start = Instant::now();
        while TcpStream::connect_timeout(&address, POLL).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended at once ({status}); its last words:\n{}", self.last_words());
            }
            if start.elapsed() > START_LIMIT {
                bail!(
                    "it does not listen on {address} after {START_LIMIT:?}:\n{}",
                    self.last_words()
                );
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// The proxy's processes.
    #[must_use]
    pub fn tree(&self) -> ProcessTree {
        ProcessTree::new(self.child.id())
    }

    /// The end of what the proxy wrote.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(2000)..];
        String::from_utf8_lossy(tail).into_owned()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let members = self.tree().members();
        send(self.child.id(), Signal::TERM);
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < STOP_LIMIT {
            thread::sleep(POLL);
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            // Children first: once the root is gone they are nobody's to find.
            members.iter().rev().for_each(|pid| send(*pid, Signal::KILL));
            let _ = self.child.wait();
        }
    }
}

/// A port on loopback that was free a moment ago. Configuration files need a number; should
/// someone else take it meanwhile, the proxy's start fails and says so.
///
/// # Errors
/// If no socket can be had.
pub fn free_port() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?)
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended already, which is what was wanted.
        let _ = rustix::process::kill_process(pid, signal);
    }
}
