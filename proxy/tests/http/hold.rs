//! Uploads that an endpoint refuses unprocessed after it was sent some of them, over HTTP/2: none is too large.

use std::{
    net::SocketAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Request, Response};
use tokio::{io::AsyncWriteExt, net::tcp::OwnedWriteHalf};
use towpath_policies::model::{
    Balancer, BudgetShare, DigestAlgorithm, Integrity, Protocol, RetryCondition, RetryPolicy, Stall,
};
use towpath_proxy::spool::Space;

use crate::{
    far::{ACK, DATA, END_HEADERS, END_STREAM, Far, HEADERS, HINTS, OK, PING, RESET, WINDOW},
    harness::{Proxy, Setup, origin},
    http2::{client, h2_origin},
};

const MIB: usize = 1 << 20;
/// The window that streams begin with unless somebody says otherwise.
const FIRST_WINDOW: u32 = 65_535;
const LIMIT: u64 = 64 << 10;

/// A body of any size, which can be told from all others at every byte.
mod body {
    use super::*;

    /// No multiple of anything that bodies are cut into.
    const LENGTH: usize = 1_000_003;
    static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut rng = fastrand::Rng::with_seed(65_535);
        (0..LENGTH).map(|_| rng.u8(..)).collect()
    });

    /// Some of it from a byte on.
    pub(super) fn part(at: usize, most: usize) -> &'static [u8] {
        let rest = &BLOCK[at % LENGTH..];
        &rest[..most.min(rest.len())]
    }

    /// Whether these bytes are the ones at this place.
    pub(super) fn goes_on(mut at: usize, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let expected = part(at, bytes.len());
            if !bytes.starts_with(expected) {
                return false;
            }
            at += expected.len();
            bytes = &bytes[expected.len()..];
        }
        true
    }
}

#[derive(Clone, Copy, Debug)]
enum Refusal {
    Reset,
    GoAway,
    /// Announced before (RFC 9113 §6.8).
    Graceful,
}

/// An endpoint that refuses every request once nothing more of it comes, since its window is used up or
/// the client asks; and the body bytes it was sent until then.
async fn refusing(how: Refusal, window: u32) -> (SocketAddr, Arc<AtomicUsize>) {
    let got = Arc::new(AtomicUsize::new(0));
    let count = got.clone();
    let (addr, _) = origin(move |io, _| {
        let count = count.clone();
        async move {
            refuse_all(Far::greet(io, window).await, how, window, count).await;
        }
    })
    .await;
    (addr, got)
}

async fn refuse_all(
    far: Option<Far>,
    how: Refusal,
    window: u32,
    got: Arc<AtomicUsize>,
) -> Option<()> {
    let mut far = far?;
    let mut open = std::collections::BTreeMap::new();
    loop {
        let frame = far.next().await?;
        match frame.kind {
            HEADERS => {
                open.insert(frame.stream, window as usize);
            }
            DATA => {
                assert_eq!(frame.flags & END_STREAM, 0, "all of it came");
                // What was on its way to a stream that was refused counts for nothing.
                if let Some(left) = open.get_mut(&frame.stream) {
                    got.fetch_add(frame.payload.len(), SeqCst);
                    *left -= frame.payload.len();
                }
            }
            _ => {}
        }
        let asks = frame.kind == PING && frame.flags != ACK;
        let refused: Vec<u32> =
            open.iter().filter(|(_, left)| asks || **left == 0).map(|(id, _)| *id).collect();
        for stream in refused {
            open.remove(&stream);
            match how {
                Refusal::Reset => {
                    far.send(RESET, 0, stream, &u32::from(Reason::REFUSED_STREAM).to_be_bytes())
                        .await?;
                }
                Refusal::GoAway => far.go_away(stream.saturating_sub(2)).await?,
                Refusal::Graceful => {
                    far.go_away(0x7fff_ffff).await?;
                    far.go_away(stream.saturating_sub(2)).await?;
                }
            }
        }
        if asks {
            far.acknowledge(&frame).await?;
        }
    }
}

/// An endpoint that says how much of the body came, and whether it was right; and its requests.
async fn good() -> (SocketAddr, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let addr = h2_origin(move |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| {
        count.fetch_add(1, SeqCst);
        async move {
            let mut body = request.into_body();
            let (mut came, mut right) = (0, true);
            while let Some(Ok(bytes)) = body.data().await {
                let _ = body.flow_control().release_capacity(bytes.len());
                right &= body::goes_on(came, &bytes);
                came += bytes.len();
            }
            let mut response =
                Response::builder().header("x-came", came).header("x-right", right.to_string());
            if let Ok(Some(trailers)) = body.trailers().await
                && let Some(digest) = trailers.get("content-digest")
            {
                response = response.header("x-digest", digest);
            }
            let _ = respond.send_response(response.body(()).unwrap(), true);
        }
    })
    .await;
    (addr, requests)
}

/// The first try goes to the first of them, the next to the next.
fn setup(endpoints: &[SocketAddr], limit: u64) -> Setup {
    Setup::to_all(endpoints).speaking(Protocol::Http2).with(|s| {
        s.service.balancer = Balancer::RoundRobin;
        s.service.outlier = None;
        s.forward.retry.replay_limit_bytes = limit;
        // What is held for ever ends, if not soon.
        s.forward.idle_timeout = Some(Duration::from_secs(20));
    })
}

async fn write_body(mut write: OwnedWriteHalf, head: String, size: usize, chunked: bool) {
    // The proxy may answer before all is sent.
    let _ = write.write_all(head.as_bytes()).await;
    let mut at = 0;
    while at < size {
        let part = body::part(at, (size - at).min(50_000));
        let sent = match chunked {
            false => write.write_all(part).await,
            true => {
                let framed = [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
                write.write_all(&framed).await
            }
        };
        if sent.is_err() {
            return;
        }
        at += part.len();
    }
    if chunked {
        let _ = write.write_all(b"0\r\n\r\n").await;
    }
}

/// Uploads so much by a `POST`, and returns the answer.
async fn upload(proxy: &Proxy, size: usize, chunked: bool) -> String {
    upload_by("POST", proxy, size, chunked).await
}

async fn upload_by(method: &str, proxy: &Proxy, size: usize, chunked: bool) -> String {
    let framing = match chunked {
        true => "Transfer-Encoding: chunked".to_owned(),
        false => format!("Content-Length: {size}"),
    };
    let head = format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}\r\n\r\n");
    let (mut read, write) = proxy.connect().await.into_split();
    let sending = tokio::spawn(write_body(write, head, size, chunked));
    let mut reply = Vec::new();
    let reading = async {
        while tokio::io::AsyncReadExt::read_buf(&mut read, &mut reply).await.is_ok_and(|n| n > 0) {}
    };
    tokio::time::timeout(Duration::from_secs(120), reading).await.expect("an answer");
    sending.abort();
    String::from_utf8_lossy(&reply).into_owned()
}

fn assert_whole(what: &str, reply: &str, size: usize) {
    assert!(reply.contains("HTTP/1.1 200 "), "{what}: {reply}");
    assert!(reply.contains(&format!("x-came: {size}\r\n")), "{what}: {reply}");
    assert!(reply.contains("x-right: true\r\n"), "{what}: {reply}");
}

#[tokio::test]
async fn an_upload_of_any_size_that_is_refused_after_its_first_window_goes_on_elsewhere() {
    use Refusal::{GoAway, Graceful, Reset};
    for (size, how, limit) in [
        (5 * MIB, Reset, LIMIT),
        (5 * MIB, Reset, 1024),
        (5 * MIB, Reset, 0),
        (5 * MIB, GoAway, LIMIT),
        (5 * MIB, GoAway, 1024),
        (5 * MIB, GoAway, 0),
        (5 * MIB, Graceful, LIMIT),
        (5 * MIB, Graceful, 0),
        (100 * MIB, Reset, LIMIT),
        (100 * MIB, GoAway, 1024),
        (100 * MIB, Reset, 0),
    ] {
        let (bad, got) = refusing(how, FIRST_WINDOW).await;
        let (good, requests) = good().await;
        let proxy = setup(&[bad, good], limit).start().await;
        let what = format!("{size} {how:?} {limit}");
        let reply = upload(&proxy, size, false).await;
        assert_whole(&what, &reply, size);
        assert_eq!(requests.load(SeqCst), 1, "{what}");
        let most = limit.min(FIRST_WINDOW.into());
        assert_eq!(got.load(SeqCst) as u64, most, "{what}: all that can be kept was sent");
    }
}

#[tokio::test]
async fn a_wide_window_is_no_reason_to_send_more_than_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let disk = |limit| Some(Arc::new(Space::new(folder.path().into(), limit)));
    for (window, limit, on_disk, space, expected) in [
        (MIB, LIMIT, 0, None, LIMIT),
        (16 * MIB, LIMIT, 0, None, LIMIT),
        (16 * MIB, 1024, 0, None, 1024),
        (16 * MIB, 0, 0, None, 0),
        (16 * MIB, LIMIT, 300_000, disk(1 << 30), LIMIT + 300_000),
        (16 * MIB, LIMIT, 300_000, disk(0), LIMIT),
    ] {
        for (how, chunked) in [(Refusal::Reset, false), (Refusal::GoAway, true)] {
            let (bad, got) = refusing(how, window as u32).await;
            let (good, _) = good().await;
            let proxy = setup(&[bad, good], limit)
                .with(|s| {
                    s.forward.retry.replay_disk_limit_bytes = on_disk;
                    s.spool = space.clone();
                })
                .start()
                .await;
            let what = format!("{window} {limit} {on_disk} {how:?}");
            assert_whole(&what, &upload(&proxy, 5 * MIB, chunked).await, 5 * MIB);
            // A piece goes to the disk whole, though some of it would fit into memory.
            let (got, less) = (got.load(SeqCst) as u64, if on_disk > 0 { 60_000 } else { 0 });
            assert!(got <= expected && got + less >= expected, "{what}: {got}");
        }
    }
}

/// Each of many on one connection, whichever PING vouches for it.
#[tokio::test]
async fn uploads_side_by_side_are_all_refused_and_all_go_on() {
    let (bad, _) = refusing(Refusal::Reset, MIB as u32).await;
    let (good, requests) = good().await;
    let proxy = setup(&[bad, good], 10_000)
        .with(|s| s.service.retry_budget = BudgetShare { percent: 100, min_concurrent: 100 })
        .start()
        .await;
    let proxy = Arc::new(proxy);
    let all: Vec<_> = (0..20)
        .map(|n| {
            let proxy = proxy.clone();
            tokio::spawn(async move { upload(&proxy, 300_000, n % 2 == 0).await })
        })
        .collect();
    for reply in all {
        assert_whole("one of many", &reply.await.unwrap(), 300_000);
    }
    assert_eq!(requests.load(SeqCst), 20);
}

/// A server that hands requests to an application has acknowledged PINGs long before that refuses.
#[tokio::test]
async fn the_default_limit_keeps_a_whole_first_window_whenever_it_is_refused() {
    let script = |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| async move {
        let mut body = request.into_body();
        let mut came = 0;
        while came < FIRST_WINDOW as usize {
            came += body.data().await.unwrap().unwrap().len();
        }
        respond.send_reset(Reason::REFUSED_STREAM);
    };
    let bad = h2_origin(script).await;
    let (good, _) = good().await;
    let proxy = setup(&[bad, good], LIMIT).start().await;
    for chunked in [false, true] {
        assert_whole("late", &upload(&proxy, 5 * MIB, chunked).await, 5 * MIB);
    }
}

/// How a server behaves that refuses nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Manner {
    window: u32,
    /// It acknowledges PINGs.
    acknowledges: bool,
    /// It opens the stream's window as the body comes.
    opens: bool,
    /// It opens it at once, or sends an interim head, or the final one.
    first: Option<(u8, &'static [u8])>,
    /// It announces that it goes away, and finishes what it has.
    leaves: bool,
}

/// A server with manners, the PINGs it was sent, and its requests.
async fn taking(manner: Manner) -> (SocketAddr, Arc<AtomicUsize>) {
    let pings = Arc::new(AtomicUsize::new(0));
    let count = pings.clone();
    let (addr, _) = origin(move |io, _| {
        let count = count.clone();
        async move {
            take_all(Far::greet(io, manner.window).await, manner, count).await;
        }
    })
    .await;
    (addr, pings)
}

async fn take_all(far: Option<Far>, manner: Manner, pings: Arc<AtomicUsize>) -> Option<()> {
    let mut far = far?;
    let mut came = 0;
    loop {
        let frame = far.next().await?;
        match frame.kind {
            HEADERS => {
                came = 0;
                if manner.leaves {
                    far.go_away(0x7fff_ffff).await?;
                }
                if let Some((kind, payload)) = manner.first {
                    let flags = if kind == HEADERS { END_HEADERS } else { 0 };
                    far.send(kind, flags, frame.stream, payload).await?;
                }
            }
            PING if frame.flags != ACK => {
                pings.fetch_add(1, SeqCst);
                if manner.acknowledges {
                    far.acknowledge(&frame).await?;
                    if manner.leaves {
                        far.go_away(1).await?;
                    }
                }
            }
            DATA => {
                assert!(body::goes_on(came, &frame.payload), "at {came}");
                came += frame.payload.len();
                if manner.opens && !frame.payload.is_empty() {
                    let more = (frame.payload.len() as u32).to_be_bytes();
                    far.send(WINDOW, 0, frame.stream, &more).await?;
                }
            }
            _ => {}
        }
        if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
            let answered = manner.first.is_some_and(|(_, payload)| payload == OK);
            let came = came.to_string();
            if answered {
                far.send(DATA, END_STREAM, frame.stream, came.as_bytes()).await?;
                continue;
            }
            // `x-came: …` and `x-right: true`, as literals.
            let mut block = OK.to_vec();
            for (name, value) in [("x-came", came.as_str()), ("x-right", "true")] {
                block.extend([0, name.len() as u8]);
                block.extend(name.as_bytes());
                block.push(value.len() as u8);
                block.extend(value.as_bytes());
            }
            far.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, &block).await?;
        }
    }
}

#[tokio::test]
async fn whatever_says_that_a_request_is_accepted_lets_the_rest_flow() {
    const WIDE: u32 = 16 << 20;
    let more: &'static [u8] = &[0, 0, 0, 1];
    let base = Manner { window: WIDE, ..Manner::default() };
    for (name, manner, limit) in [
        ("an acknowledgement", Manner { acknowledges: true, ..base }, LIMIT),
        ("an acknowledgement, before any of the body", Manner { acknowledges: true, ..base }, 0),
        ("a window, without any acknowledgement", Manner { opens: true, ..base }, LIMIT),
        ("a window at once", Manner { first: Some((WINDOW, more)), ..base }, 0),
        ("an interim head", Manner { first: Some((HEADERS, HINTS)), ..base }, 0),
        ("a narrow window", Manner { window: 20_000, opens: true, ..base }, LIMIT),
    ] {
        for chunked in [false, true] {
            let (addr, _) = taking(manner).await;
            let proxy = setup(&[addr], limit).start().await;
            assert_whole(name, &upload(&proxy, 5 * MIB, chunked).await, 5 * MIB);
        }
    }
    // The final head, ahead of all.
    let (addr, _) = taking(Manner { first: Some((HEADERS, OK)), ..base }).await;
    let proxy = setup(&[addr], 0).start().await;
    let reply = upload(&proxy, 5 * MIB, false).await;
    assert!(reply.starts_with("HTTP/1.1 200 ") && reply.contains("5242880"), "{reply}");
}

#[tokio::test]
async fn only_bodies_that_outgrow_what_is_kept_are_asked_for() {
    let acknowledges = Manner { window: 16 << 20, acknowledges: true, ..Manner::default() };
    let narrow = Manner { window: FIRST_WINDOW, opens: true, ..Manner::default() };
    let silent = Manner { window: 16 << 20, ..Manner::default() };
    let attempts = |attempts| RetryPolicy { attempts, ..RetryPolicy::default() };
    let connects =
        RetryPolicy { on: vec![RetryCondition::ConnectFailure], ..RetryPolicy::default() };
    for (name, manner, retry, size, asked) in [
        ("large", acknowledges, attempts(1), 5 * MIB, 1),
        ("small", silent, attempts(1), LIMIT as usize, 0),
        ("no more than the window", narrow, attempts(1), 5 * MIB, 0),
        ("no other try", silent, attempts(0), 5 * MIB, 0),
        ("no other try for that", silent, connects, 5 * MIB, 0),
    ] {
        for chunked in [false, true] {
            let (addr, pings) = taking(manner).await;
            let proxy =
                setup(&[addr], LIMIT).with(|s| s.forward.retry = retry.clone()).start().await;
            assert_whole(name, &upload(&proxy, size, chunked).await, size);
            assert_eq!(pings.load(SeqCst), asked, "{name}");
        }
    }
}

#[tokio::test]
async fn a_request_that_a_leaving_server_took_is_finished_there() {
    let manner = Manner { window: 16 << 20, acknowledges: true, leaves: true, ..Manner::default() };
    let (first, pings) = taking(manner).await;
    let (other, requests) = good().await;
    let proxy = setup(&[first, other], LIMIT).start().await;
    assert_whole("leaving", &upload(&proxy, 5 * MIB, false).await, 5 * MIB);
    assert_eq!((pings.load(SeqCst), requests.load(SeqCst)), (1, 0));
}

#[tokio::test]
async fn a_server_that_says_nothing_at_all_has_stalled() {
    let (deaf, _) = taking(Manner { window: 16 << 20, ..Manner::default() }).await;
    let (good, _) = good().await;
    let proxy = setup(&[deaf, good], LIMIT)
        .with(|s| {
            s.service.name = "hold-deaf".into();
            s.forward.transfer.stall =
                Some(Stall { below_bytes: 1 << 10, time: Duration::from_secs(2) });
            s.forward.retry.on.push(RetryCondition::Stall);
        })
        .start()
        .await;
    // Nobody said that it was not processed. What may be repeated all the same is all there yet.
    let reply = upload(&proxy, 5 * MIB, false).await;
    assert!(reply.contains("x-towpath-reason: stall"), "{reply}");
    assert_whole("good first", &upload(&proxy, 1, false).await, 1);
    assert_whole("a PUT", &upload_by("PUT", &proxy, 5 * MIB, false).await, 5 * MIB);
    assert_eq!(proxy.service.live.metrics.stalls[0].value(), 2);
}

#[tokio::test]
async fn a_client_of_http2_sees_nothing_of_it() {
    let (bad, got) = refusing(Refusal::Reset, MIB as u32).await;
    let (good, _) = good().await;
    let proxy = setup(&[bad, good], 1024).start().await;
    let request = Request::post("http://a/").body(()).unwrap();
    let (response, mut send) = client(&proxy).await.send_request(request, false).unwrap();
    let size = 3 * MIB;
    let mut at = 0;
    while at < size {
        send.reserve_capacity(size - at);
        let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
        let part = body::part(at, room.min(size - at));
        at += part.len();
        send.send_data(Bytes::from_static(part), at == size).unwrap();
    }
    let response = response.await.unwrap();
    assert_eq!(response.headers()["x-came"], size.to_string());
    assert_eq!(response.headers()["x-right"], "true");
    assert_eq!(got.load(SeqCst), 1024);
}

/// A digest is of the whole body, whichever part of it was held and sent again.
#[tokio::test]
async fn what_is_held_and_sent_again_has_its_digest() {
    let terms = Integrity { make: true, check: true, algorithm: DigestAlgorithm::Sha256 };
    let mut digests = Vec::new();
    for refused in [false, true] {
        let (good, _) = good().await;
        let (bad, _) = refusing(Refusal::Reset, MIB as u32).await;
        let endpoints = if refused { vec![bad, good] } else { vec![good] };
        let proxy =
            setup(&endpoints, LIMIT).with(|s| s.forward.transfer.integrity = terms).start().await;
        let reply = upload(&proxy, 2 * MIB, true).await;
        assert_whole("with a digest", &reply, 2 * MIB);
        digests.push(reply.lines().find(|line| line.starts_with("x-digest: ")).unwrap().to_owned());
    }
    assert_eq!(digests[0], digests[1]);
}

/// The buffer of an upload that may be resumed keeps the last bytes, but none is lost before its time.
#[tokio::test]
async fn an_upload_that_may_be_resumed_can_be_refused_first() {
    let (bad, got) = refusing(Refusal::GoAway, MIB as u32).await;
    let (good, _) = good().await;
    let proxy =
        setup(&[bad, good], LIMIT).with(|s| s.forward.transfer.resume_uploads = true).start().await;
    assert_whole("resumable", &upload(&proxy, 5 * MIB, false).await, 5 * MIB);
    assert_eq!(got.load(SeqCst) as u64, LIMIT);
}
