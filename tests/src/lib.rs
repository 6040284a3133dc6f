//! What the whole-program tests share: origins, policy repositories, and the
//! real peers (`./test` installs them under `target/tools`).
//!
//! Everything started here ends when its value is dropped.

pub mod faults;
pub mod frames;
mod git;
mod origin;
mod peers;
mod proxy;
mod raw;
pub mod strict;

pub use git::Repository;
pub use origin::Origin;
pub use peers::{Peer, tool};
pub use proxy::{Proxy, listener_port, policies};
pub use raw::{
    End, RawOrigin, Script, ScriptedOrigin, Seen, StrictOrigin, Then, Wire, digest, echo,
    panic_text, show,
};

use std::{future::Future, time::Duration};

/// Asks again and again until there is an answer, for state that lives in another process.
///
/// # Panics
/// With `what` when there is none within 30 s.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let mut tick = tokio::time::interval(Duration::from_millis(25));
    for _ in 0..1200 {
        tick.tick().await;
        if let Some(answer) = ask().await {
            return answer;
        }
    }
    panic!("not within 30 s: {what}");
}

/// A TCP port that was free a moment ago, for programs that cannot be told "port 0".
///
/// # Panics
/// When the machine has no free port.
pub fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("a bound socket has an address").port()
}

/// `GET url` over HTTP/1.1; the status and body, or `None` when nothing answers.
pub async fn get(address: std::net::SocketAddr, path: &str, host: &str) -> Option<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut answer))
        .await
        .ok()?
        .ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        dechunk(body)?
    } else {
        body.to_owned()
    };
    Some((status, body))
}

fn dechunk(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size + 2..)?;
    }
}
