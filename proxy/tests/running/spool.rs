//! Disks that do not take what is kept for another try.

use std::fs;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::*;

const SIZE: usize = 6 << 20;

/// A second try, out of what was kept on disk.
const RETRIED: &str = "---
apiVersion: towpath.dev/v1alpha1
kind: TransferPolicy
metadata: {name: http}
spec:
  targetRefs: [{kind: Service, name: http}]
  retry: {attempts: 2, conditions: [reset], replayDiskLimit: 1GiB}
";

/// The program on a file system that takes a megabyte a file: the write fails, as on a full disk.
#[tokio::test]
async fn a_disk_that_fills_up_costs_the_second_try_and_is_told() {
    let sink = origin(|mut tcp| async move {
        while head(&mut tcp).await.is_some() {
            let mut body = vec![0; SIZE];
            if tcp.read_exact(&mut body).await.is_err() {
                return;
            }
            let whole = body.iter().all(|byte| *byte == b'x');
            let status = if whole { "200 OK" } else { "500 Wrong" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            if tcp.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    for encrypt in [&[][..], &["--spool-encrypt"]] {
        let folder = tempfile::tempdir().unwrap();
        let port = dead().await.port();
        let policies = policies(&[("HTTP", port, sink.address)]) + RETRIED;
        fs::write(folder.path().join("edge.yaml"), policies).unwrap();
        let mut command = Program::command(folder.path());
        let command = command.arg("--spool-dir").arg(folder.path()).args(encrypt);
        let mut program = Program::start(command).await;
        let pid = program.child.id().and_then(|id| Pid::from_raw(id.try_into().unwrap()));
        let limit = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
        prlimit(pid, Resource::Fsize, limit).unwrap();

        let mut tcp = TcpStream::connect(local(port)).await.unwrap();
        for _ in 0..2 {
            let head = format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {SIZE}\r\n\r\n");
            tcp.write_all(head.as_bytes()).await.unwrap();
            tcp.write_all(&vec![b'x'; SIZE]).await.unwrap();
            let answer = crate::support::head(&mut tcp).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "the transfer itself goes on: {answer}");
        }
        eventually("both are counted, and nothing is held", || async {
            let (_, text) = admin_at(program.admin, "GET", "/metrics").await;
            let has = |line: &str| text.lines().any(|l| l == line);
            (has("towpath_spool_refused_total 2") && has("towpath_spool_bytes 0")).then_some(())
        })
        .await;
        program.child.start_kill().unwrap();
        let mut log = String::new();
        program.child.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
        let told = log.matches("no room to keep a request body").count();
        assert!(told == 1 && log.contains("File too large"), "{log}");
    }
}
