//! Disks that do not take what is kept for another try.

use std::{fs, net::SocketAddr, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Command,
};

use crate::support::*;

const SIZE: usize = 6 << 20;

fn policies(port: u16, endpoint: SocketAddr) -> String {
    format!(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, annotations: {{towpath.dev/bind: "127.0.0.1"}}}}
spec:
  gatewayClassName: towpath
  listeners:
  - {{name: in, port: {port}, protocol: HTTP}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: in}}
spec:
  parentRefs: [{{name: edge, sectionName: in}}]
  rules:
  - backendRefs: [{{group: towpath.dev, kind: Service, name: s}}]
---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: s}}
spec:
  endpoints: [{{address: "{endpoint}"}}]
---
apiVersion: towpath.dev/v1alpha1
kind: TransferPolicy
metadata: {{name: s}}
spec:
  targetRefs: [{{kind: Service, name: s}}]
  retry: {{attempts: 2, conditions: [reset], replayDiskLimit: 1GiB}}
"#
    )
}

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
        fs::write(folder.path().join("edge.yaml"), policies(port, sink.address)).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -f 2048; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_towpath-proxy")])
            .args(["--admin", "127.0.0.1:0", "--workers", "1", "--die-with-parent", "--policies"])
            .arg(folder.path())
            .arg("--spool-dir")
            .arg(folder.path())
            .args(encrypt)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
        let admin: SocketAddr =
            line.trim_end().strip_prefix("ready admin=").expect(&line).parse().unwrap();

        let mut tcp = TcpStream::connect(local(port)).await.unwrap();
        for _ in 0..2 {
            let head = format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {SIZE}\r\n\r\n");
            tcp.write_all(head.as_bytes()).await.unwrap();
            tcp.write_all(&vec![b'x'; SIZE]).await.unwrap();
            let answer = crate::support::head(&mut tcp).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "the transfer itself goes on: {answer}");
        }
        let metrics =
            format!("GET /metrics HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
        eventually("both are counted, and nothing is held", || async {
            let (_, text) = ask(admin, &metrics).await;
            let has = |line: &str| text.lines().any(|l| l == line);
            (has("towpath_spool_refused_total 2") && has("towpath_spool_bytes 0")).then_some(())
        })
        .await;
        child.start_kill().unwrap();
        let mut log = String::new();
        child.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
        let told = log.matches("no room to keep a request body").count();
        assert!(told == 1 && log.contains("File too large"), "{log}");
    }
}
