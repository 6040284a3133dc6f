//! Downloads that break midway and go on with another endpoint, or end visibly broken.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};

use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};
use towpath_policies::model::{Balancer, Integrity, Mirror, Protocol, RetryCondition, RetryPolicy};
use towpath_proxy::access_log::{AccessLog, Target};

use crate::{
    harness::{Input, Proxy, Requests, Setup, eventually, origin, read_all, soon},
    http2::{client, collect, h2_origin},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const LENGTH: usize = 160_000;
const HALF: usize = LENGTH / 2;

/// Lines that each say where they stand.
fn body() -> &'static str {
    static BODY: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| (0..LENGTH / 8).map(|n| format!("{:07}\n", n * 8)).collect());
    &BODY
}

/// How a replica's answer ends before its time.
#[derive(Clone, Copy, Debug)]
enum Break {
    Close,
    Reset,
    /// In the middle of a chunk, or of the body.
    Stall,
}

async fn end(mut io: TcpStream, how: Break) {
    match how {
        Break::Close => {}
        Break::Reset => io.set_zero_linger().unwrap(),
        Break::Stall => {
            let _ = io.read(&mut [0; 1]).await;
        }
    }
}

/// A replica that sends half of what it owes, and breaks.
async fn broken(head: &'static str, chunked: bool, how: Break) -> (SocketAddr, Arc<AtomicUsize>) {
    origin(move |mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        let half = &body()[..HALF];
        let sent = match chunked {
            true => format!("{head}transfer-encoding: chunked\r\n\r\n{HALF:x}\r\n{half}\r\n"),
            false => format!("{head}content-length: {LENGTH}\r\n\r\n{half}"),
        };
        io.write_all(sent.as_bytes()).await.unwrap();
        end(io, how).await;
    })
    .await
}

/// A replica that serves what is asked for.
async fn good() -> (SocketAddr, Requests) {
    serving(|request| part(request, "etag: \"v1\"\r\n")).await
}

async fn serving(
    answer: impl Fn(&str) -> String + Clone + Send + Sync + 'static,
) -> (SocketAddr, Requests) {
    let requests = Requests::default();
    let log = requests.clone();
    let (addr, _) = origin(move |mut io, _| {
        let (log, answer) = (log.clone(), answer.clone());
        async move {
            let mut input = Input::default();
            while let Some(request) = input.message(&mut io).await {
                let sent = answer(&request);
                log.note(request);
                if io.write_all(sent.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (addr, requests)
}

/// Where a request asks to begin.
fn asked(request: &str) -> usize {
    let range = request.split("range: bytes=").nth(1).expect("a range");
    range.split('-').next().unwrap().parse().unwrap()
}

fn part(request: &str, fields: &str) -> String {
    let from = asked(request);
    let (last, rest) = (LENGTH - 1, &body()[from..]);
    format!(
        "HTTP/1.1 206 Partial Content\r\n{fields}content-range: bytes {from}-{last}/{LENGTH}\r\ncontent-length: {}\r\n\r\n{rest}",
        rest.len()
    )
}

/// The first try goes to the first of them, further ones to the next.
fn setup(origins: &[SocketAddr], attempts: u32) -> Setup {
    Setup::to_all(origins).with(|s| {
        s.service.balancer = Balancer::RoundRobin;
        s.forward.retry = RetryPolicy {
            attempts,
            backoff_base: Duration::from_millis(1),
            ..RetryPolicy::default()
        };
    })
}

fn resumes(proxy: &Proxy) -> [u64; 4] {
    proxy.service.live.metrics.resumes.each_ref().map(towpath_proxy::metrics::Counter::value)
}

/// What a client over HTTP/1.1 gets, and whether it was all.
async fn download(proxy: &Proxy) -> (String, Vec<u8>, bool) {
    let mut io = proxy.connect().await;
    io.write_all(GET.as_bytes()).await.unwrap();
    let (reply, _) = soon(read_all(&mut io)).await;
    let (head, rest) = reply.split_once("\r\n\r\n").unwrap();
    let (body, whole) = if head.contains("transfer-encoding: chunked") {
        dechunk(rest)
    } else {
        let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
        (rest.as_bytes().to_vec(), rest.len() == length.parse::<usize>().unwrap())
    };
    (head.to_owned(), body, whole)
}

fn dechunk(mut rest: &str) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, after.ends_with("\r\n"));
        }
        body.extend_from_slice(&after.as_bytes()[..size.min(after.len())]);
        let Some(next) = after.get(size + 2..) else { break };
        rest = next;
    }
    (body, false)
}

/// The same over HTTP/2.
async fn download2(proxy: &Proxy) -> Result<Vec<u8>, h2::Error> {
    let request = Request::get("http://a/").body(()).unwrap();
    let (response, _) = client(proxy).await.send_request(request, true).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    soon(collect(&mut body)).await.map(|(bytes, _)| bytes)
}

/// An access log of one line.
struct Log(AccessLog, PathBuf);

impl Log {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("towpath-{}-{name}", std::process::id()));
        Self(AccessLog::start(&Target::File(path.clone())).unwrap().unwrap(), path)
    }

    async fn line(self) -> String {
        let read = || std::fs::read_to_string(&self.1).unwrap();
        eventually("it is recorded", || {
            self.0.flush(Duration::from_secs(1));
            read().ends_with("}\n")
        })
        .await;
        let line = read();
        std::fs::remove_file(&self.1).unwrap();
        line
    }
}

const STRONG: &str = "HTTP/1.1 200 OK\r\netag: \"v1\"\r\ncontent-type: text/csv\r\n";

#[tokio::test]
async fn a_download_goes_on_where_it_broke_and_the_client_sees_one_body() {
    for chunked in [false, true] {
        for how in [Break::Close, Break::Reset] {
            let (first, connections) = broken(STRONG, chunked, how).await;
            let (second, requests) = good().await;
            let name = format!("whole-{chunked}-{how:?}");
            let setup = setup(&[first, second], 1).with(|s| s.service.name = name);
            let proxy = setup.start().await;
            let (head, got, whole) = download(&proxy).await;
            assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("content-range"), "{head}");
            assert!(whole && got == body().as_bytes(), "{chunked} {how:?}: {} bytes", got.len());
            let request = requests.only();
            assert!(request.contains("range: bytes=") && asked(&request) <= HALF, "{request}");
            assert!(request.contains("if-range: \"v1\"\r\n"), "{request}");
            assert_eq!(connections.load(SeqCst), 1);
            assert_eq!(resumes(&proxy), [1, 0, 0, 0]);
            let failures =
                |n: usize| proxy.service.endpoints[n].live.consecutive_failures.load(Relaxed);
            assert_eq!((failures(0), failures(1)), (1, 0));
            eventually("all is given back", || {
                proxy.service.live.bytes_in_flight.load(Relaxed) == 0
                    && proxy.service.live.requests.load(Relaxed) == 0
                    && proxy.service.live.retries.load(Relaxed) == 0
            })
            .await;

            // The first replica has its turn again.
            let proxy = self::setup(&[first, second], 1).start().await;
            assert_eq!(download2(&proxy).await.unwrap(), body().as_bytes(), "{chunked} {how:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_stalls_is_left_for_another() {
    let (first, _) = broken(STRONG, true, Break::Stall).await;
    let (second, _) = good().await;
    let setup =
        setup(&[first, second], 1).with(|s| s.forward.idle_timeout = Some(Duration::from_secs(10)));
    let proxy = setup.start().await;
    let (_, got, whole) = download(&proxy).await;
    assert!(whole && got == body().as_bytes(), "{} bytes", got.len());
    assert_eq!(proxy.service.endpoints[0].live.consecutive_failures.load(Relaxed), 1);
}

/// Nothing moves, but it is the client that takes nothing.
#[tokio::test(start_paused = true)]
async fn a_client_that_stalls_is_not_the_endpoints_fault() {
    let (first, _) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        io.write_all(format!("{STRONG}transfer-encoding: chunked\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let chunk = format!("{LENGTH:x}\r\n{}\r\n", body());
        while io.write_all(chunk.as_bytes()).await.is_ok() {}
    })
    .await;
    let (second, requests) = good().await;
    let setup =
        setup(&[first, second], 1).with(|s| s.forward.idle_timeout = Some(Duration::from_secs(10)));
    let proxy = setup.start().await;
    let mut io = proxy.connect().await;
    io.write_all(GET.as_bytes()).await.unwrap();
    let live = &proxy.service.live;
    eventually("it begins", || live.requests.load(Relaxed) == 1).await;
    eventually("it is given up", || live.requests.load(Relaxed) == 0).await;
    assert_eq!(requests.all().len(), 0);
    assert_eq!(proxy.service.endpoints[0].live.consecutive_failures.load(Relaxed), 0);
}

#[tokio::test]
async fn what_does_not_continue_exactly_leaves_the_answer_visibly_broken() {
    type Answer = fn(&str) -> String;
    let table: [(&str, Answer); 10] = [
        ("another tag", |r| part(r, "etag: \"v2\"\r\n")),
        ("a weak tag", |r| part(r, "etag: W/\"v1\"\r\n")),
        ("no tag", |r| part(r, "")),
        ("compressed", |r| part(r, "etag: \"v1\"\r\ncontent-encoding: gzip\r\n")),
        ("another type", |r| part(r, "etag: \"v1\"\r\ncontent-type: text/plain\r\n")),
        ("the whole", |_| format!("{STRONG}content-length: {LENGTH}\r\n\r\n{}", body())),
        ("one byte early", |r| {
            let from = asked(r) - 1;
            part(&format!("range: bytes={from}-"), "etag: \"v1\"\r\n")
        }),
        ("one byte late", |r| {
            let from = asked(r) + 1;
            part(&format!("range: bytes={from}-"), "etag: \"v1\"\r\n")
        }),
        ("another total", |r| {
            part(r, "etag: \"v1\"\r\n").replace(&format!("/{LENGTH}"), &format!("/{}", LENGTH + 1))
        }),
        ("416", |_| {
            format!(
                "HTTP/1.1 416 Range Not Satisfiable\r\netag: \"v1\"\r\ncontent-range: bytes */{LENGTH}\r\ncontent-length: 0\r\n\r\n"
            )
        }),
    ];
    for (what, answer) in table {
        for chunked in [false, true] {
            let (first, _) = broken(STRONG, chunked, Break::Close).await;
            let (second, requests) = serving(answer).await;
            let name = format!("mismatch-{what}-{chunked}");
            let proxy = setup(&[first, second], 1).with(|s| s.service.name = name).start().await;
            let (_, got, whole) = download(&proxy).await;
            assert!(!whole && got.len() == HALF, "{what} {chunked}: {} bytes", got.len());
            assert_eq!(requests.all().len(), 1, "{what} {chunked}");
            assert_eq!(resumes(&proxy), [0, 1, 0, 1], "{what} {chunked}");
            assert_eq!(
                proxy.service.endpoints[1].live.consecutive_failures.load(Relaxed),
                0,
                "{what} {chunked}"
            );

            let proxy = setup(&[first, second], 1).start().await;
            download2(&proxy).await.expect_err(what);
        }
    }
}

#[tokio::test]
async fn a_replica_that_cannot_go_on_is_passed_over_for_the_next() {
    let (first, _) = broken(STRONG, false, Break::Close).await;
    let (second, _) = serving(|r| part(r, "etag: \"v2\"\r\n")).await;
    let (third, _) =
        serving(|_| "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".into()).await;
    let (fourth, _) = good().await;
    for (attempts, expected) in [(3, true), (2, false)] {
        let name = format!("next-{attempts}");
        let setup =
            setup(&[first, second, third, fourth], attempts).with(|s| s.service.name = name);
        let proxy = setup.start().await;
        let (_, got, whole) = download(&proxy).await;
        assert_eq!(whole, expected, "{} bytes", got.len());
        assert_eq!(resumes(&proxy), if expected { [1, 2, 0, 0] } else { [0, 2, 0, 1] });
        let failures =
            |n: usize| proxy.service.endpoints[n].live.consecutive_failures.load(Relaxed);
        assert_eq!((failures(0), failures(1), failures(2)), (1, 0, 1));
    }
}

#[tokio::test]
async fn a_download_that_breaks_thrice_goes_on_thrice_and_every_time_is_charged() {
    for (attempts, expected) in [(3, true), (2, false)] {
        let (addr, connections) = origin(move |mut io, before| async move {
            let request = Input::default().message(&mut io).await.unwrap();
            let mut sent = match before {
                0 => format!("{STRONG}content-length: {LENGTH}\r\n\r\n{}", body()),
                _ => part(&request, "etag: \"v1\"\r\n"),
            };
            if before < 3 {
                sent.truncate(LENGTH / 4);
            }
            io.write_all(sent.as_bytes()).await.unwrap();
        })
        .await;
        let name = format!("thrice-{attempts}");
        let log = Log::new(&name);
        let setup = setup(&[addr], attempts).with(|s| {
            s.service.name = name;
            s.access_log = Some(log.0.clone());
        });
        let proxy = setup.start().await;
        let (_, got, whole) = download(&proxy).await;
        assert_eq!((whole, got == body().as_bytes()), (expected, expected));
        assert_eq!(connections.load(SeqCst), attempts as usize + 1);
        assert_eq!(resumes(&proxy), if expected { [3, 0, 0, 0] } else { [2, 0, 0, 1] });
        let line = log.line().await;
        let counts = format!("\"attempts\":{},\"resumes\":{attempts},", attempts + 1);
        assert!(line.contains(&counts), "{line}");
        assert_eq!(line.contains("upstream_broken"), !expected, "{line}");
    }
}

#[tokio::test]
async fn only_what_a_strong_tag_and_the_policy_allow_is_resumed() {
    const WEAK: &str = "HTTP/1.1 200 OK\r\netag: W/\"v1\"\r\n";
    const NONE: &str = "HTTP/1.1 200 OK\r\n";
    const REFUSED: &str = "HTTP/1.1 200 OK\r\netag: \"v1\"\r\naccept-ranges: none\r\n";
    let post = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let on = RetryPolicy::default();
    let off = RetryPolicy { resume_downloads: false, ..RetryPolicy::default() };
    let unconditional =
        RetryPolicy { on: vec![RetryCondition::ConnectFailure], ..RetryPolicy::default() };
    for (what, head, request, retry, expected) in [
        ("allowed", STRONG, GET, &on, 1),
        ("whatever is retried", STRONG, GET, &unconditional, 1),
        ("weak", WEAK, GET, &on, 0),
        ("no tag", NONE, GET, &on, 0),
        ("no ranges", REFUSED, GET, &on, 0),
        ("a POST", STRONG, post, &on, 0),
        ("switched off", STRONG, GET, &off, 0),
    ] {
        let (first, _) = broken(head, false, Break::Close).await;
        let (second, requests) = good().await;
        let proxy =
            setup(&[first, second], 1).with(|s| s.forward.retry = retry.clone()).start().await;
        soon(proxy.talk(request)).await;
        assert_eq!(requests.all().len(), expected, "{what}");
    }
}

#[tokio::test]
async fn what_sends_nothing_twice_needs_no_retry_budget() {
    let (first, _) = broken(STRONG, false, Break::Close).await;
    let (second, requests) = good().await;
    let setup = setup(&[first, second], 1).with(|s| {
        s.service.name = "resume-budget".into();
        s.service.retry_budget.min_concurrent = 0;
        s.service.retry_budget.percent = 0;
    });
    let proxy = setup.start().await;
    let (_, got, whole) = download(&proxy).await;
    assert!(whole && got == body().as_bytes(), "{}", got.len());
    assert_eq!(requests.all().len(), 1);
    assert_eq!(resumes(&proxy), [1, 0, 0, 0]);
}

#[tokio::test]
async fn a_part_that_the_client_asked_for_goes_on_within_its_bounds() {
    let (first, _) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        let head = format!("HTTP/1.1 206 Partial Content\r\netag: \"v1\"\r\ncontent-range: bytes 8-87/{LENGTH}\r\ncontent-length: 80\r\n\r\n{}", &body()[8..40]);
        io.write_all(head.as_bytes()).await.unwrap();
    })
    .await;
    let (second, requests) = serving(|_| {
        format!("HTTP/1.1 206 Partial Content\r\netag: \"v1\"\r\ncontent-range: bytes 40-87/{LENGTH}\r\ncontent-length: 48\r\n\r\n{}", &body()[40..88])
    })
    .await;
    let proxy = setup(&[first, second], 1).start().await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nRange: bytes=8-87\r\nIf-None-Match: \"x\"\r\nConnection: close\r\n\r\n";
    let reply = soon(proxy.talk(request)).await;
    assert!(reply.starts_with("HTTP/1.1 206 "), "{reply}");
    assert!(reply.contains(&format!("content-range: bytes 8-87/{LENGTH}\r\n")), "{reply}");
    assert!(reply.ends_with(&format!("\r\n\r\n{}", &body()[8..88])), "{reply}");
    let asked = requests.only();
    assert!(
        asked.contains("range: bytes=40-87\r\n") && !asked.contains("if-none-match"),
        "{asked}"
    );
}

#[tokio::test]
async fn trailers_come_at_the_end_and_digests_of_a_part_do_not() {
    let (first, _) = broken(STRONG, true, Break::Close).await;
    let (second, _) = serving(|request| {
        let from = asked(request);
        let rest = &body()[from..];
        format!("HTTP/1.1 206 Partial Content\r\netag: \"v1\"\r\ncontent-range: bytes {from}-{}/{LENGTH}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{rest}\r\n0\r\nx-rows: 7\r\ncontent-digest: sha-256=:AA==:\r\n\r\n", LENGTH - 1, rest.len())
    })
    .await;
    let proxy = setup(&[first, second], 1).start().await;
    let reply = soon(proxy.talk(GET)).await;
    assert!(reply.ends_with("\r\n0\r\nx-rows: 7\r\n\r\n"), "{}", &reply[reply.len() - 200..]);
    let (got, whole) = dechunk(reply.split_once("\r\n\r\n").unwrap().1);
    assert!(whole && got == body().as_bytes());
}

/// A replica that says one thing in `Content-Range` and sends another.
#[tokio::test]
async fn parts_that_do_not_make_the_whole_never_end_cleanly() {
    for more_or_less in [-8, 8] {
        let (first, _) = broken(STRONG, true, Break::Close).await;
        let (second, _) = serving(move |request| {
            let from = asked(request);
            let mut rest = body()[from..].to_owned();
            if more_or_less < 0 { rest.truncate(rest.len() - 8) } else { rest += "surplus\n" }
            format!("HTTP/1.1 206 Partial Content\r\netag: \"v1\"\r\ncontent-range: bytes {from}-{}/{LENGTH}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{rest}\r\n0\r\n\r\n", LENGTH - 1, rest.len())
        })
        .await;
        let proxy = setup(&[first, second], 1).start().await;
        let (_, got, whole) = download(&proxy).await;
        assert!(!whole, "{more_or_less}: {} bytes", got.len());
        let proxy = setup(&[first, second], 1).start().await;
        download2(&proxy).await.unwrap_err();
    }
}

/// A sidecar finds at the end that the body is not what its digest says. What it let pass may be wrong, and the
/// rest from elsewhere would make it look whole.
#[tokio::test]
async fn what_does_not_match_its_digest_at_the_sidecar_is_not_completed_from_elsewhere() {
    let other = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:";
    let (origin, _) = serving(move |_| {
        format!("HTTP/1.1 200 OK\r\netag: \"v1\"\r\ncontent-digest: {other}\r\ncontent-length: {LENGTH}\r\n\r\n{}", body())
    })
    .await;
    for checked in [true, false] {
        let terms = Integrity { check: checked, ..Integrity::default() };
        let sidecar =
            Setup::to(origin).with(|s| s.forward.transfer.integrity = terms).start().await;
        let (replica, asked) = good().await;
        let gateway = setup(&[sidecar.addr, replica], 1).start().await;
        let (_, got, whole) = download(&gateway).await;
        assert_eq!(whole, !checked, "checked {checked}: {} bytes", got.len());
        assert!(asked.all().is_empty(), "checked {checked}: the replica was asked");
    }
}

/// As before, where the sidecar checks a part with which a download goes on.
#[tokio::test]
async fn a_part_that_does_not_match_its_digest_is_not_completed_either() {
    let other = "content-digest: sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:\r\n";
    let (origin, _) =
        serving(move |request| part(request, &format!("etag: \"v1\"\r\n{other}"))).await;
    for checked in [true, false] {
        let terms = Integrity { check: checked, ..Integrity::default() };
        let sidecar =
            Setup::to(origin).with(|s| s.forward.transfer.integrity = terms).start().await;
        let (first, _) = broken(STRONG, false, Break::Close).await;
        let (replica, asked) = good().await;
        let gateway = setup(&[first, sidecar.addr, replica], 3).start().await;
        let (_, got, whole) = download(&gateway).await;
        assert_eq!(whole, !checked, "checked {checked}: {} bytes", got.len());
        assert!(asked.all().is_empty(), "checked {checked}: the replica was asked");
    }
}

/// An HTTP/2 replica; its whole answer ends after half, by a reset once that is told to have arrived.
async fn h2_replica(arrived: Option<Arc<Notify>>) -> SocketAddr {
    h2_origin(move |request, mut respond| {
        let arrived = arrived.clone();
        async move {
            let head = Response::builder().header("etag", "\"v1\"");
            if let Some(range) = request.headers().get("range") {
                let from = asked(&format!("range: {}", range.to_str().unwrap()));
                let range = format!("bytes {from}-{}/{LENGTH}", LENGTH - 1);
                let head = head.status(206).header("content-range", range).body(()).unwrap();
                let mut send = respond.send_response(head, false).unwrap();
                return send.send_data(body()[from..].into(), true).unwrap();
            }
            let head = head.header("content-length", LENGTH).body(()).unwrap();
            let mut send = respond.send_response(head, false).unwrap();
            send.send_data(body()[..HALF].into(), arrived.is_none()).unwrap();
            if let Some(arrived) = arrived {
                arrived.notified().await;
                send.send_reset(h2::Reason::INTERNAL_ERROR);
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_http2_origin_that_resets_or_ends_short_is_left_for_another() {
    for reset in [true, false] {
        let arrived = Arc::new(Notify::new());
        let first = h2_replica(reset.then(|| arrived.clone())).await;
        let second = h2_replica(None).await;
        let setup = || setup(&[first, second], 1).speaking(Protocol::Http2);

        let mut io = setup().start().await.connect().await;
        io.write_all(GET.as_bytes()).await.unwrap();
        let mut input = Input::default();
        soon(input.until(&mut io, "\r\n\r\n")).await.unwrap();
        let half = soon(input.exactly(&mut io, HALF)).await.unwrap();
        arrived.notify_one();
        let rest = soon(input.exactly(&mut io, LENGTH - HALF)).await.expect("the rest");
        assert!(half + &rest == body(), "{reset}");

        let proxy = setup().start().await;
        let request = Request::get("http://a/").body(()).unwrap();
        let (response, _) = client(&proxy).await.send_request(request, true).unwrap();
        let mut stream = soon(response).await.unwrap().into_body();
        let mut got = Vec::new();
        while got.len() < HALF {
            let bytes = soon(stream.data()).await.unwrap().unwrap();
            stream.flow_control().release_capacity(bytes.len()).unwrap();
            got.extend_from_slice(&bytes);
        }
        arrived.notify_one();
        got.extend(soon(collect(&mut stream)).await.unwrap().0);
        assert!(got == body().as_bytes(), "{reset}");
    }
}

#[tokio::test]
async fn bytes_in_flight_move_to_the_endpoint_that_goes_on_and_end_with_the_client() {
    for chunked in [false, true] {
        let (first, _) = broken(STRONG, chunked, Break::Close).await;
        let (second, _) = origin(|mut io, _| async move {
            let request = Input::default().message(&mut io).await.unwrap();
            let mut sent = part(&request, "etag: \"v1\"\r\n");
            sent.truncate(sent.len() - 80);
            io.write_all(sent.as_bytes()).await.unwrap();
            let _ = io.read(&mut [0; 1]).await;
        })
        .await;
        let proxy = setup(&[first, second], 1).start().await;
        let mut io = proxy.connect().await;
        io.write_all(GET.as_bytes()).await.unwrap();
        let mut head = Input::default();
        soon(head.until(&mut io, &body()[LENGTH - 88..LENGTH - 80])).await.unwrap();
        let bytes = |n: usize| proxy.service.endpoints[n].live.bytes_in_flight.load(Relaxed);
        assert_eq!((bytes(0), bytes(1)), (0, HALF as u64));
        io.set_zero_linger().unwrap();
        drop(io);
        eventually("nothing is left", || bytes(1) == 0).await;
    }
}

#[tokio::test]
async fn the_endpoints_that_broke_are_avoided() {
    fn answer(request: &str) -> String {
        match request.contains("range: ") {
            true => part(request, "etag: \"v1\"\r\n"),
            false => format!("{STRONG}content-length: {LENGTH}\r\n\r\n{}", body()),
        }
    }
    async fn breaking() -> SocketAddr {
        let script = |mut io: TcpStream, _| async move {
            let mut sent = answer(&Input::default().message(&mut io).await.unwrap());
            sent.truncate(LENGTH / 4);
            io.write_all(sent.as_bytes()).await.unwrap();
        };
        origin(script).await.0
    }
    let good = serving(answer).await.0;
    let setup = setup(&[breaking().await, breaking().await, good], 2).with(|s| {
        s.service.balancer = Balancer::BytesInFlight;
        s.service.outlier = None;
    });
    let proxy = setup.start().await;
    for _ in 0..30 {
        assert!(download(&proxy).await.2);
    }
}

#[tokio::test]
async fn a_mirror_is_sent_what_the_client_asked_for() {
    let copies = Requests::default();
    let log = copies.clone();
    let (first, _) = origin(move |mut io, _| {
        let log = log.clone();
        async move {
            log.note(Input::default().message(&mut io).await.unwrap());
            let half = &body()[..HALF];
            let sent = format!("{STRONG}content-length: {LENGTH}\r\n\r\n{half}");
            io.write_all(sent.as_bytes()).await.unwrap();
        }
    })
    .await;
    let (second, _) = good().await;
    let setup = setup(&[first, second], 1).with(|s| {
        s.forward.mirrors = vec![Mirror { service: "origin".into(), parts_per_million: 1_000_000 }];
    });
    let proxy = setup.start().await;
    let own = "GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: \"x\"\r\nConnection: close\r\n\r\n";
    soon(proxy.talk(own)).await;
    eventually("the copy arrives", || copies.all().len() == 2).await;
    let copy = &copies.all()[1];
    assert!(copy.contains("if-none-match: \"x\"") && !copy.contains("range"), "{copy}");
}

#[tokio::test]
async fn a_stale_pooled_connection_costs_no_resume() {
    let (first, _) = broken(STRONG, false, Break::Close).await;
    let (second, connections) = origin(|mut io, before| async move {
        let mut input = Input::default();
        let request = input.message(&mut io).await.unwrap();
        io.write_all(part(&request, "etag: \"v1\"\r\n").as_bytes()).await.unwrap();
        if before == 0 {
            // Reads the next request, and closes as if it had not seen it.
            input.message(&mut io).await.unwrap();
        }
    })
    .await;
    let setup = setup(&[first, second], 1).with(|s| s.service.name = "resume-stale".into());
    let proxy = setup.start().await;
    for _ in 0..2 {
        let (_, got, whole) = download(&proxy).await;
        assert!(whole && got == body().as_bytes());
    }
    assert_eq!(connections.load(SeqCst), 2);
    assert_eq!(resumes(&proxy), [2, 0, 0, 0]);
    assert_eq!(proxy.service.endpoints[1].live.consecutive_failures.load(Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_while_the_rest_is_awaited_ends_it() {
    let (first, _) = broken(STRONG, false, Break::Close).await;
    let gone = Arc::new(AtomicUsize::new(0));
    let seen = gone.clone();
    let (second, connections) = origin(move |mut io, _| {
        let seen = seen.clone();
        async move {
            Input::default().message(&mut io).await.unwrap();
            let _ = io.read(&mut [0; 1]).await;
            seen.fetch_add(1, SeqCst);
        }
    })
    .await;
    let log = Log::new("resume-gone");
    let setup = setup(&[first, second], 5).with(|s| s.access_log = Some(log.0.clone()));
    let proxy = setup.start().await;
    let mut io = proxy.connect().await;
    io.write_all(GET.as_bytes()).await.unwrap();
    eventually("the rest is asked for", || connections.load(SeqCst) == 1).await;
    io.set_zero_linger().unwrap();
    drop(io);
    eventually("the second is let go", || gone.load(SeqCst) == 1).await;
    eventually("nothing is left", || proxy.service.live.requests.load(Relaxed) == 0).await;
    assert_eq!(connections.load(SeqCst), 1);
    let line = log.line().await;
    assert!(line.contains("\"reason\":\"client_gone\""), "{line}");
}

#[tokio::test(start_paused = true)]
async fn the_whole_time_bounds_resumed_tries_too() {
    let (first, _) = broken(STRONG, false, Break::Close).await;
    let (second, connections) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        let _ = io.read(&mut [0; 1]).await;
    })
    .await;
    let log = Log::new("resume-late");
    let setup = setup(&[first, second], 100).with(|s| {
        s.access_log = Some(log.0.clone());
        s.forward.timeout = Some(Duration::from_millis(2500));
        s.forward.retry.per_try_timeout = Some(Duration::from_secs(1));
    });
    let proxy = setup.start().await;
    let (_, got, whole) = download(&proxy).await;
    assert!(!whole && got.len() == HALF);
    // In between, the first has its turns too, and answers 200.
    assert_eq!(connections.load(SeqCst), 3);
    let line = log.line().await;
    assert!(line.contains("\"reason\":\"timeout\""), "{line}");
}
