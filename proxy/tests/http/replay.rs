//! Large bodies sent again from disk, and keys by which a receiver tells that they are.

use std::{
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, tcp::OwnedWriteHalf},
};
use towpath_policies::model::RetryCondition;
use towpath_proxy::spool::Space;

use crate::harness::{Input, Setup, eventually, origin, soon};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const SIZE: usize = 6_000_000;

fn body() -> String {
    let mut rng = fastrand::Rng::with_seed(7);
    (0..SIZE).map(|_| rng.lowercase()).collect()
}

/// An origin that breaks after so many bytes of the first request, and hears out the others.
async fn breaking(
    after: usize,
) -> (std::net::SocketAddr, Arc<std::sync::atomic::AtomicUsize>, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let (addr, connections) = origin(move |mut io: TcpStream, before| {
        let log = log.clone();
        async move {
            let mut input = Input::default();
            if before == 0 {
                input.until(&mut io, "\r\n\r\n").await.unwrap();
                input.exactly(&mut io, after).await.unwrap();
                io.set_zero_linger().unwrap();
                return;
            }
            let message = input.message(&mut io).await.unwrap();
            log.lock().unwrap().push(message);
            io.write_all(OK.as_bytes()).await.unwrap();
        }
    })
    .await;
    (addr, connections, seen)
}

fn keeping(setup: Setup, space: Space) -> Setup {
    setup.with(|s| {
        s.forward.retry.replay_disk_limit_bytes = 1 << 30;
        s.spool = Some(Arc::new(space));
    })
}

async fn put(mut write: OwnedWriteHalf, text: String) {
    // The proxy may have refused it before its end.
    let _ = write.write_all(text.as_bytes()).await;
}

#[tokio::test]
async fn a_large_body_goes_on_at_another_try_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let body = body();
    let chunked: String = body
        .as_bytes()
        .chunks(50_000)
        .map(|c| format!("{:x}\r\n{}\r\n", c.len(), std::str::from_utf8(c).unwrap()))
        .collect::<String>()
        + "0\r\n\r\n";
    for (framing, text, encrypted) in [
        (format!("Content-Length: {SIZE}"), body.clone(), false),
        (format!("Content-Length: {SIZE}"), body.clone(), true),
        ("Transfer-Encoding: chunked".into(), chunked.clone(), false),
        ("Transfer-Encoding: chunked".into(), chunked, true),
    ] {
        let (addr, connections, seen) = breaking(SIZE * 4 / 5).await;
        let space = Space::new(folder.path().into(), 1 << 30).encrypted(encrypted);
        let proxy = keeping(Setup::to(addr), space).start().await;
        let (mut read, write) = proxy.connect().await.into_split();
        let request = format!("PUT / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{text}");
        let sending = tokio::spawn(put(write, request));
        let mut reply = vec![0; 12];
        soon(tokio::io::AsyncReadExt::read_exact(&mut read, &mut reply)).await.unwrap();
        assert_eq!(reply, b"HTTP/1.1 200", "{framing}");
        sending.await.unwrap();
        assert_eq!(connections.load(SeqCst), 2, "{framing}");
        let seen = seen.lock().unwrap();
        let (_, got) = seen[0].split_once("\r\n\r\n").unwrap();
        if framing.starts_with("Content") {
            assert!(got == body, "the second try saw the body, once and in order");
        } else {
            assert!(unchunked(got) == body, "the second try saw the body, once and in order");
        }
    }
    eventually("no file is left", || std::fs::read_dir(folder.path()).unwrap().count() == 0).await;
}

fn unchunked(mut text: &str) -> String {
    let mut all = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        all.push_str(&rest[..size]);
        text = rest[size..].strip_prefix("\r\n").unwrap_or_default();
        if size == 0 {
            break;
        }
    }
    all
}

/// The one spool of this folder, as its own process sees it, once it holds so many bytes.
async fn spool_in(folder: &std::path::Path, bytes: u64) -> std::fs::File {
    let find = || {
        let links = std::fs::read_dir("/proc/self/fd").ok()?;
        let mut links = links.filter_map(|entry| Some(entry.ok()?.path()));
        let link = links.find(|l| std::fs::read_link(l).is_ok_and(|to| to.starts_with(folder)))?;
        let file = std::fs::OpenOptions::new().write(true).read(true).open(link).ok()?;
        (file.metadata().ok()?.len() >= bytes).then_some(file)
    };
    eventually("the spool is written", || find().is_some()).await;
    find().unwrap()
}

#[tokio::test]
async fn a_body_that_was_changed_on_disk_ends_as_a_failure_that_the_client_sees() {
    for change in [Some(1_000_000), None] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let got = Arc::new(Mutex::new(Vec::new()));
        let second = got.clone();
        let (addr, _) = origin(move |mut io: TcpStream, before| {
            let (path, second) = (path.clone(), second.clone());
            async move {
                if before > 0 {
                    let mut all = Vec::new();
                    let _ = tokio::io::AsyncReadExt::read_to_end(&mut io, &mut all).await;
                    *second.lock().unwrap() = all;
                    return;
                }
                let mut input = Input::default();
                input.until(&mut io, "\r\n\r\n").await.unwrap();
                input.exactly(&mut io, SIZE * 4 / 5).await.unwrap();
                let file = spool_in(&path, 2_000_000).await;
                match change {
                    Some(at) => {
                        let mut byte = [0];
                        file.read_exact_at(&mut byte, at).unwrap();
                        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
                    }
                    // Cut short, as by a file system that lost it.
                    None => file.set_len(1_000_000).unwrap(),
                }
                io.set_zero_linger().unwrap();
            }
        })
        .await;
        let space = Space::new(folder.path().into(), 1 << 30).encrypted(true);
        let proxy = keeping(Setup::to(addr), space).start().await;
        let (mut read, write) = proxy.connect().await.into_split();
        // Ten bytes short: the client is not through when the endpoint breaks.
        let body = body();
        let request =
            format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n{}", &body[10..]);
        let sending = tokio::spawn(async move {
            let mut write = write;
            let _ = write.write_all(request.as_bytes()).await;
            write
        });
        let mut reply = vec![0; 12];
        soon(tokio::io::AsyncReadExt::read_exact(&mut read, &mut reply)).await.unwrap();
        assert_eq!(reply, b"HTTP/1.1 503", "{change:?}");
        sending.abort();
        eventually("the second try ends", || !got.lock().unwrap().is_empty()).await;
        let got = String::from_utf8(std::mem::take(&mut *got.lock().unwrap())).unwrap();
        let (_, got) = got.split_once("\r\n\r\n").unwrap();
        assert!(got.len() < 1_000_000, "it ends before what was changed");
        assert!(body[10..].starts_with(got), "not a byte of it is wrong");
    }
}

/// A disk that is full, or gone, costs the second try and nothing else.
#[tokio::test]
async fn without_room_on_disk_a_transfer_goes_on_without_a_second_try() {
    let folder = tempfile::tempdir().unwrap();
    let gone = tempfile::tempdir().unwrap();
    let missing = gone.path().join("none");
    for (name, disk, space) in [
        ("the request's limit", 1_000_000, Space::new(folder.path().into(), 1 << 30)),
        ("the limit for all", 1 << 30, Space::new(folder.path().into(), 2 << 20)),
        ("no such folder", 1 << 30, Space::new(missing, 1 << 30)),
    ] {
        let (addr, connections, seen) = breaking(SIZE * 4 / 5).await;
        let space = Arc::new(space);
        let proxy = Setup::to(addr)
            .with(|s| {
                s.forward.retry.replay_disk_limit_bytes = disk;
                s.spool = Some(space);
            })
            .start()
            .await;
        for (status, tries) in [("502", 1), ("200", 2)] {
            let (mut read, write) = proxy.connect().await.into_split();
            let request =
                format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n{}", body());
            let sending = tokio::spawn(put(write, request));
            let mut reply = vec![0; 12];
            soon(tokio::io::AsyncReadExt::read_exact(&mut read, &mut reply)).await.unwrap();
            let reply = String::from_utf8(reply).unwrap();
            assert_eq!(reply, format!("HTTP/1.1 {status}"), "{name}");
            sending.abort();
            assert_eq!(connections.load(SeqCst), tries, "{name}");
        }
        assert_eq!(seen.lock().unwrap().len(), 1, "{name}");
    }
}

#[tokio::test]
async fn a_minted_key_is_the_same_for_all_tries_and_another_for_another_request() {
    let keys = Arc::new(Mutex::new(Vec::new()));
    let log = keys.clone();
    let (addr, _) = origin(move |mut io, _| {
        let log = log.clone();
        async move {
            let message = Input::default().message(&mut io).await.unwrap();
            let key = message.lines().find_map(|l| l.strip_prefix("idempotency-key: "));
            log.lock().unwrap().push(key.map(str::to_owned));
            io.set_zero_linger().unwrap();
        }
    })
    .await;
    let proxy = Setup::to(addr)
        .with(|s| {
            s.forward.retry.attempts = 2;
            s.forward.retry.on = vec![RetryCondition::Reset];
            s.forward.retry.mint_idempotency_key = true;
        })
        .start()
        .await;
    for request in ["POST / HTTP/1.1\r\n", "POST / HTTP/1.1\r\n", "GET / HTTP/1.1\r\n"] {
        let text = format!("{request}Host: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        assert!(soon(proxy.talk(&text)).await.starts_with("HTTP/1.1 502 "));
    }
    let keys = keys.lock().unwrap().clone();
    let [a, b, c, d, e, f, g, h, i] = &keys[..] else { panic!("{keys:?}") };
    assert!(a == b && b == c && d == e && e == f && a != d, "{keys:?}");
    assert!(a.as_ref().is_some_and(|key| key.len() == 34 && key.starts_with('"')), "{keys:?}");
    assert_eq!([g, h, i], [&None, &None, &None], "a GET needs none");
}
