//! The program itself: its ready line, its signals, its access log.

use std::{fs, net::SocketAddr, path::Path};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};

use crate::support::*;

/// Starts the program on policies that send TCP to `endpoint`; with it comes its listener.
async fn start(folder: &Path, endpoint: SocketAddr) -> (Program, SocketAddr) {
    let listener = dead().await;
    let text = policies(&[("TCP", listener.port(), endpoint)]);
    fs::write(folder.join("edge.yaml"), text).unwrap();
    let mut command = Program::command(folder);
    let command = command.arg("--access-log").arg(folder.join("access.log"));
    (Program::start(command).await, listener)
}

/// Connects and passes a byte there and back.
async fn open(listener: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(listener).await.unwrap();
    tcp.write_all(b"x").await.unwrap();
    tcp.read_exact(&mut [0]).await.unwrap();
    tcp
}

impl Program {
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.try_into().unwrap())).unwrap();
        kill_process(pid, signal).unwrap();
    }

    async fn ready(&self) -> u16 {
        admin_at(self.admin, "GET", "/ready").await.0
    }

    /// Whether it ended well, and what it logged.
    async fn end(mut self) -> (bool, String) {
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
        (self.child.wait().await.unwrap().success(), log)
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn sigterm_finishes_what_runs_and_every_connection_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let echo = echo().await;
    let (program, listener) = start(folder.path(), echo.address).await;
    assert_eq!(program.ready().await, 200);
    let mut tcp = open(listener).await;
    program.signal(Signal::TERM);
    eventually("the drain", || async { (program.ready().await == 503).then_some(()) }).await;
    tcp.write_all(b"still").await.unwrap();
    tcp.read_exact(&mut [0; 5]).await.unwrap();
    drop(tcp);
    let (well, log) = program.end().await;
    assert!(well && log.contains("drained"), "{log}");
    let lines = lines(&folder.path().join("access.log"));
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    assert_eq!((&line["protocol"], &line["service"]), (&"TCP".into(), &"tcp".into()));
    assert_eq!((&line["request_bytes"], &line["response_bytes"]), (&6.into(), &6.into()));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once_and_tells_what_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let echo = echo().await;
    let (program, listener) = start(folder.path(), echo.address).await;
    let mut tcp = open(listener).await;
    program.signal(Signal::INT);
    eventually("the drain", || async { (program.ready().await == 503).then_some(()) }).await;
    program.signal(Signal::INT);
    let (well, log) = program.end().await;
    assert!(well && log.contains("cut what was still under way connections=1"), "{log}");
    assert!(matches!(tcp.read(&mut [0]).await, Ok(0) | Err(_)));
    assert_eq!(lines(&folder.path().join("access.log")).len(), 1, "what was cut is logged too");
}

#[tokio::test]
async fn a_rotated_access_log_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let echo = echo().await;
    let (program, listener) = start(folder.path(), echo.address).await;
    let (log, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    drop(open(listener).await);
    eventually("a line", || async { (lines(&log).len() == 1).then_some(()) }).await;
    fs::rename(&log, &old).unwrap();
    program.signal(Signal::USR1);
    eventually("the new file", || async { log.exists().then_some(()) }).await;
    drop(open(listener).await);
    eventually("a line", || async { (lines(&log).len() == 1).then_some(()) }).await;
    assert_eq!(lines(&old).len(), 1);
}

#[tokio::test]
async fn what_cannot_be_is_told_in_a_line_with_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let taken = tokio::net::TcpListener::bind(local(0)).await.unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (arguments, expected) in [
        (vec![], "--policies <DIR>"),
        (vec!["--control-plane", "127.0.0.1:1"], "--node <NAME>"),
        (vec!["--policies", folder, "--drain-timeout", "soon"], "write 30s, 1h30m or 250ms"),
        (vec!["--policies", folder, "--log-level", "a=b=c"], "is no log level"),
        (vec!["--policies", folder, "--admin", &taken], "is another proxy running?"),
        (vec!["--policies", "/nowhere", "--admin", "127.0.0.1:0"], "/nowhere"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_towpath-proxy")).args(&arguments).output();
        let output = output.await.unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains(expected), "{arguments:?}: {told}");
    }
}
