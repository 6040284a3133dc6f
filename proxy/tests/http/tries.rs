//! What one try leaves behind for the next, and for the answer that is passed on in the end.

use std::{
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, Semaphore},
};
use towpath_policies::model::{Balancer, Protocol, Queue, RetryCondition, RetryPolicy};

use crate::{
    harness::{Input, Requests, Setup, eventually, origin, read_all, soon},
    http2::h2_origin,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy";
/// An upload resource.
const NAMED: &str = "HTTP/1.1 104 Upload Resumption Supported\r\nlocation: /uploads/1\r\nupload-draft-interop-version: 8\r\n\r\n";

fn retrying(setup: Setup, attempts: u32) -> Setup {
    setup.with(|s| {
        s.service.balancer = Balancer::RoundRobin;
        s.forward.retry = RetryPolicy {
            attempts,
            backoff_base: Duration::from_millis(1),
            ..RetryPolicy::default()
        };
        s.forward.retry.on.push(RetryCondition::Status(vec![503]));
    })
}

/// Ends a connection so that what was said before arrives, and hears out what still comes.
async fn hang_up(mut io: TcpStream) {
    let _ = io.shutdown().await;
    while io.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {}
}

fn line(request: &str) -> String {
    request.lines().next().unwrap_or_default().to_owned()
}

/// What the client does wrong while its upload goes on elsewhere is answered as such, and ends it.
#[tokio::test]
async fn a_malformed_chunk_ends_an_upload_that_goes_on_after_a_break() {
    for (name, rest) in [
        ("a chunk", "5\r\nworldxx0\r\n\r\n"),
        ("a size", "5\r\nworld\r\nx\r\n0\r\n\r\n"),
        ("trailers", "5\r\nworld\r\n0\r\nx y: z\r\n\r\n0\r\n\r\n"),
    ] {
        let asked = Requests::default();
        let log = asked.clone();
        let (addr, _) = origin(move |mut io, _| {
            let log = log.clone();
            async move {
                let mut input = Input::default();
                while let Some(head) = input.until(&mut io, "\r\n\r\n").await {
                    if head.starts_with("HEAD") {
                        log.note(line(&head));
                        let standing = "HTTP/1.1 204 No Content\r\nupload-offset: 5\r\nupload-complete: ?0\r\n\r\n";
                        io.write_all(standing.as_bytes()).await.unwrap();
                    } else if head.starts_with("PATCH") {
                        log.note(line(&head));
                        let body = read_all(&mut io).await.0;
                        assert!(!body.ends_with("0\r\n\r\n"), "it looks whole: {body}");
                        return;
                    } else {
                        io.write_all(NAMED.as_bytes()).await.unwrap();
                        input.until(&mut io, "hello\r\n").await.unwrap();
                        return hang_up(io).await;
                    }
                }
            }
        })
        .await;
        let proxy = retrying(Setup::to(addr), 6)
            .with(|s| s.forward.transfer.resume_uploads = true)
            .start()
            .await;
        let mut io = proxy.connect().await;
        let head = "POST /files HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        io.write_all(format!("{head}5\r\nhello\r\n").as_bytes()).await.unwrap();
        eventually("it goes on", || asked.all().iter().any(|l| l.starts_with("PATCH"))).await;
        io.write_all(rest.as_bytes()).await.unwrap();
        let reply = soon(read_all(&mut io)).await.0;
        assert!(reply.starts_with("HTTP/1.1 400 "), "{name}: {reply}");
        let asked = asked.all();
        assert_eq!(asked.len(), 2, "{name}: nothing more is asked for: {asked:?}");
    }
}

/// An answer is kept while another try is made, and is the answer after all when none can be.
/// What its endpoint had of the body it is not sent again.
#[tokio::test]
async fn a_kept_answer_that_is_passed_on_gets_no_byte_of_the_body_twice() {
    let (answers, ends) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (answer, end) = (answers.clone(), ends.clone());
    let got = Requests::default();
    let log = got.clone();
    let (addr, connections) = origin(move |mut io, before| {
        let (answer, end, log) = (answer.clone(), end.clone(), log.clone());
        async move {
            let mut input = Input::default();
            input.until(&mut io, "\r\n\r\n").await.unwrap();
            if before > 0 {
                end.notified().await;
                io.write_all(OK.as_bytes()).await.unwrap();
                return hang_up(io).await;
            }
            let body = input.exactly(&mut io, 10).await.unwrap();
            log.note(body);
            answer.notified().await;
            io.write_all(BUSY.as_bytes()).await.unwrap();
            log.note(read_all(&mut io).await.0);
        }
    })
    .await;
    let proxy = retrying(Setup::to(addr), 1)
        .with(|s| {
            let max_wait = Duration::from_millis(200);
            s.service.admission.queue = Some(Queue { max_wait, ..Queue::default() });
        })
        .start()
        .await;
    let mut upload = proxy.connect().await;
    let head = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n";
    upload.write_all(format!("{head}0123456789").as_bytes()).await.unwrap();
    eventually("some of the body is there", || got.all().len() == 1).await;
    // Somebody else gets the slot meanwhile, and keeps it.
    let mut other = proxy.connect().await;
    other.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    eventually("somebody waits", || proxy.service.live.queued() == 1).await;
    answers.notify_one();
    let reply = soon(Input::default().until(&mut upload, "busy")).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 503 ") && !reply.contains("x-towpath"), "{reply}");
    eventually("the connection is closed", || got.all().len() == 2).await;
    assert_eq!(got.all(), ["0123456789", ""]);
    assert_eq!(connections.load(SeqCst), 2);
    ends.notify_one();
    assert!(soon(read_all(&mut other)).await.0.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_kept_answer_takes_no_room_from_the_try_that_is_to_replace_it() {
    let (addr, connections) = origin(|mut io, before| async move {
        let mut input = Input::default();
        input.message(&mut io).await.unwrap();
        io.write_all(if before == 0 { BUSY } else { OK }.as_bytes()).await.unwrap();
        input.message(&mut io).await;
    })
    .await;
    let proxy = retrying(Setup::to(addr), 1)
        .with(|s| s.service.breaker.service.max_bytes_in_flight = Some(1000))
        .start()
        .await;
    let body = "x".repeat(800);
    let request = format!(
        "PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 800\r\n\r\n{body}"
    );
    let reply = soon(proxy.talk(&request)).await;
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    assert_eq!(connections.load(SeqCst), 2);
    eventually("nothing is in flight", || proxy.service.live.bytes_in_flight.load(Relaxed) == 0)
        .await;
}

/// One server names an upload resource and answers; the next breaks, and was never asked to keep anything.
#[tokio::test]
async fn what_one_server_said_of_an_upload_is_not_asked_of_the_next() {
    let asked = Requests::default();
    let mut endpoints = Vec::new();
    for turn in 0..3 {
        let log = asked.clone();
        let (addr, _) = origin(move |mut io, _| {
            let log = log.clone();
            async move {
                let mut input = Input::default();
                let head = input.until(&mut io, "\r\n\r\n").await.unwrap();
                log.note(format!("{turn} {}", line(&head)));
                if turn == 1 {
                    return hang_up(io).await;
                }
                let said = if turn == 0 { [NAMED, BUSY].concat() } else { OK.to_owned() };
                input.exactly(&mut io, 10).await.unwrap();
                io.write_all(said.as_bytes()).await.unwrap();
                hang_up(io).await;
            }
        })
        .await;
        endpoints.push(addr);
    }
    let proxy = retrying(Setup::to_all(&endpoints), 4)
        .with(|s| s.forward.transfer.resume_uploads = true)
        .start()
        .await;
    let request =
        "PUT /f HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 10\r\n\r\n0123456789";
    let reply = soon(proxy.talk(request)).await;
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    assert_eq!(asked.all(), [0, 1, 2].map(|turn| format!("{turn} PUT /f HTTP/1.1")));
}

/// An upload of hours brings many 104s, and may bring other interim responses besides.
#[tokio::test]
async fn any_number_of_progress_reports_leaves_room_for_other_interim_responses() {
    let said = |n| if n < 32 { 104 } else { 103 };
    let http1 = {
        let interims: String =
            (0..35).map(|n| format!("HTTP/1.1 {} So Far\r\n\r\n", said(n))).collect();
        origin(move |mut io, _| {
            let interims = interims.clone();
            async move {
                Input::default().message(&mut io).await.unwrap();
                io.write_all([interims.as_str(), OK].concat().as_bytes()).await.unwrap();
                hang_up(io).await;
            }
        })
        .await
        .0
    };
    // Over HTTP/2 one is sent once the client has that before it: what nobody has read yet is soon forgotten.
    let seen = Arc::new(Semaphore::new(0));
    let paced = seen.clone();
    let http2 = h2_origin(move |request, mut respond: SendResponse<Bytes>| {
        let paced = paced.clone();
        async move {
            let _request: Request<_> = request;
            for n in 0..35 {
                let interim = Response::builder().status(said(n)).body(()).unwrap();
                respond.send_informational(interim).unwrap();
                paced.acquire().await.unwrap().forget();
            }
            respond.send_response(Response::new(()), true).unwrap();
        }
    })
    .await;
    for (addr, protocol) in [(http1, Protocol::Http1), (http2, Protocol::Http2)] {
        let proxy = retrying(Setup::to(addr), 0).speaking(protocol).start().await;
        let mut io = proxy.connect().await;
        let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok";
        io.write_all(request.as_bytes()).await.unwrap();
        let mut input = Input::default();
        for n in 0..36 {
            let head = soon(input.until(&mut io, "\r\n\r\n")).await.unwrap();
            let expected = if n < 35 { said(n) } else { 200 };
            assert!(head.starts_with(&format!("HTTP/1.1 {expected} ")), "{protocol:?} {n}: {head}");
            seen.add_permits(usize::from(protocol == Protocol::Http2));
        }
    }
}

/// It has part of its answer, and waits for the rest; that it will send nothing more says nothing else.
#[tokio::test]
async fn a_client_that_closed_its_side_gets_a_download_that_has_to_wait_for_a_slot() {
    let (breaks, ends) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let running = Requests::default();
    let mut endpoints = Vec::new();
    for _ in 0..2 {
        let (broken, end, log) = (breaks.clone(), ends.clone(), running.clone());
        let (addr, _) = origin(move |mut io, _| {
            let (broken, end, log) = (broken.clone(), end.clone(), log.clone());
            async move {
                let request = Input::default().message(&mut io).await.unwrap();
                log.note(line(&request));
                let etag = "etag: \"v1\"\r\n";
                if request.starts_with("GET /busy") {
                    end.notified().await;
                    io.write_all(OK.as_bytes()).await.unwrap();
                } else if request.contains("range: bytes=5-") {
                    let rest = format!("HTTP/1.1 206 Partial Content\r\n{etag}content-range: bytes 5-9/10\r\ncontent-length: 5\r\n\r\n56789");
                    io.write_all(rest.as_bytes()).await.unwrap();
                } else {
                    let half = format!("HTTP/1.1 200 OK\r\n{etag}content-length: 10\r\n\r\n01234");
                    io.write_all(half.as_bytes()).await.unwrap();
                    broken.notified().await;
                }
                hang_up(io).await;
            }
        })
        .await;
        endpoints.push(addr);
    }
    let proxy = retrying(Setup::to_all(&endpoints), 1)
        .with(|s| s.service.admission.queue = Some(Queue::default()))
        .start()
        .await;
    let mut busy = proxy.connect().await;
    busy.write_all(b"GET /busy HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    eventually("one is busy", || running.all().len() == 1).await;
    let mut io = proxy.connect().await;
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut input = Input::default();
    soon(input.until(&mut io, "01234")).await.unwrap();
    io.shutdown().await.unwrap();
    breaks.notify_one();
    eventually("the rest waits", || proxy.service.live.queued() == 1).await;
    // It is looked at while it waits.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    ends.notify_one();
    assert_eq!(soon(input.until(&mut io, "56789")).await.as_deref(), Some("56789"));
    assert!(soon(read_all(&mut busy)).await.0.ends_with("ok"));
}
