//! Late binding: work waits in the proxy for a slot, in order, and not behind a busy worker.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{Notify, Semaphore},
    task::JoinHandle,
};
use towpath_policies::model::{
    Class, Endpoint, EndpointSet, Protocol, Queue, RetryCondition, TenantKey, Transfer,
};
use towpath_proxy::{
    access_log::{AccessLog, Target},
    upstream,
};

use crate::{
    harness::{Input, Proxy, Requests, Setup, eventually, origin, read_all, soon},
    http2::{client, h2_origin, push_all},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Workers that answer when they are told to.
#[derive(Clone, Default)]
struct Workers {
    /// What was begun, in order.
    begun: Requests,
    running: Arc<AtomicUsize>,
    /// One permit ends one request, of any worker.
    ends: Gate,
}

#[derive(Clone)]
struct Gate(Arc<Semaphore>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }
}

impl Workers {
    /// One more, which says whether it was ever given two at a time.
    async fn one(&self) -> (SocketAddr, Arc<AtomicUsize>) {
        let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (workers, seen) = (self.clone(), most.clone());
        let (addr, _) = origin(move |mut io, _| {
            let (workers, now, most) = (workers.clone(), now.clone(), seen.clone());
            async move {
                let mut input = Input::default();
                while let Some(request) = input.message(&mut io).await {
                    most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                    workers.begun.note(path(&request));
                    workers.running.fetch_add(1, SeqCst);
                    workers.ends.0.acquire().await.unwrap().forget();
                    workers.running.fetch_sub(1, SeqCst);
                    // It is free once it has answered: what is sent to it before is one too many.
                    now.fetch_sub(1, SeqCst);
                    if io.write_all(OK.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        (addr, most)
    }

    fn end(&self, requests: usize) {
        self.ends.0.add_permits(requests);
    }

    async fn until_running(&self, count: usize) {
        eventually("requests that run", || self.running.load(SeqCst) == count).await;
    }

    async fn until_begun(&self, count: usize) {
        eventually("requests that began", || self.begun.all().len() == count).await;
    }
}

/// The path of a request, which names it.
fn path(request: &str) -> String {
    request.split(' ').nth(1).unwrap_or_default().to_owned()
}

fn setup(workers: &[SocketAddr], queue: Queue) -> Setup {
    Setup::to_all(workers).with(|s| {
        s.service.admission.queue = Some(queue);
        for (prefix, class) in [("/bulk", Class::Bulk), ("/background", Class::Background)] {
            let mut forward = s.forward.clone();
            forward.transfer.class = class;
            s.also.push((prefix, forward));
        }
    })
}

/// Sends a request on a connection of its own, and reads the answer.
fn ask(proxy: &Proxy, path: &str, fields: &str) -> JoinHandle<String> {
    let (addr, request) = (
        proxy.addr,
        format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n"),
    );
    tokio::spawn(async move {
        let mut io = TcpStream::connect(addr).await.unwrap();
        io.write_all(request.as_bytes()).await.unwrap();
        soon(read_all(&mut io)).await.0
    })
}

async fn until_queued(proxy: &Proxy, count: u32) {
    eventually("requests that wait", || proxy.service.live.queued() == count).await;
}

/// As [`ask`], until it waits as the `count`th.
async fn enqueue(proxy: &Proxy, path: &str, fields: &str, count: u32) -> JoinHandle<String> {
    let asked = ask(proxy, path, fields);
    until_queued(proxy, count).await;
    asked
}

#[tokio::test]
async fn uploads_that_wait_do_not_hold_up_the_one_on_their_connection_that_has_the_slot() {
    let workers = Workers::default();
    let (addr, _) = workers.one().await;
    let proxy = setup(&[addr], Queue::default()).start().await;
    let mut client = client(&proxy).await;
    workers.end(6);
    let mut uploads = Vec::new();
    for nth in 0..6 {
        let request = http::Request::put(format!("http://a/{nth}"))
            .header("content-length", 10_000_000)
            .body(())
            .unwrap();
        let (response, mut send) = client.send_request(request, false).unwrap();
        tokio::spawn(async move { push_all(&mut send, vec![7; 10_000_000].into()).await });
        uploads.push(response);
    }
    for upload in uploads {
        assert_eq!(soon(upload).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn eight_one_slot_workers_never_get_a_second_request_while_one_runs() {
    let workers = Workers::default();
    let (mut addrs, mut most) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        let (addr, seen) = workers.one().await;
        addrs.push(addr);
        most.push(seen);
    }
    let proxy = setup(&addrs, Queue::default()).start().await;
    let asked: Vec<_> = (0..64).map(|n| ask(&proxy, &format!("/bulk/{n}"), "")).collect();
    workers.until_running(8).await;
    until_queued(&proxy, 56).await;
    for ended in 1..=56 {
        workers.end(1);
        workers.until_begun(8 + ended).await;
    }
    workers.end(8);
    for answer in asked {
        assert!(answer.await.unwrap().starts_with("HTTP/1.1 200 "));
    }
    assert!(most.iter().all(|most| most.load(SeqCst) == 1), "{most:?}");
}

#[tokio::test]
async fn interactive_overtakes_what_waits_and_background_has_its_turn_too() {
    let workers = Workers::default();
    let (addr, _) = workers.one().await;
    let proxy = setup(&[addr], Queue::default()).start().await;
    let mut asked = vec![ask(&proxy, "/bulk/0", "")];
    workers.until_running(1).await;
    for (count, path) in ["/background/1", "/bulk/2", "/bulk/3", "/4"].iter().enumerate() {
        asked.push(enqueue(&proxy, path, "", 1 + count as u32).await);
    }
    for begun in 2..=5 {
        workers.end(1);
        workers.until_begun(begun).await;
    }
    workers.end(1);
    for answer in asked {
        assert!(answer.await.unwrap().starts_with("HTTP/1.1 200 "));
    }
    let order = workers.begun.all();
    assert_eq!(order[1], "/4", "{order:?}");
    assert_eq!(order[4], "/bulk/3", "background has its turn before the third of bulk: {order:?}");
}

#[tokio::test]
async fn two_tenants_take_turns_however_many_one_of_them_sends() {
    let workers = Workers::default();
    let (addr, _) = workers.one().await;
    let proxy = setup(&[addr], Queue::default())
        .with(|s| {
            let tenant = Some(TenantKey::Header("x-team".into()));
            s.forward.transfer = Transfer { class: Class::Bulk, tenant, ..Transfer::default() };
        })
        .start()
        .await;
    let mut asked = vec![ask(&proxy, "/a0", "X-Team: a\r\n")];
    workers.until_running(1).await;
    for n in 1..=6 {
        asked.push(enqueue(&proxy, &format!("/a{n}"), "X-Team: a\r\n", n).await);
    }
    for n in 1..=2 {
        asked.push(enqueue(&proxy, &format!("/b{n}"), "X-Team: b\r\n", 6 + n).await);
    }
    for begun in 2..=9 {
        workers.end(1);
        workers.until_begun(begun).await;
    }
    workers.end(1);
    for answer in asked {
        assert!(answer.await.unwrap().starts_with("HTTP/1.1 200 "));
    }
    let order = workers.begun.all();
    let last_of_b = order.iter().rposition(|path| path.starts_with("/b")).unwrap();
    // Those of b came last. How long each ran is a matter of this machine.
    assert!(last_of_b <= 6, "at least two of a after both of b: {order:?}");
}

#[tokio::test]
async fn overflow_is_answered_with_a_time_to_come_again() {
    let workers = Workers::default();
    let (addr, _) = workers.one().await;
    let proxy = setup(&[addr], Queue { max_requests: 1, ..Queue::default() }).start().await;
    let running = ask(&proxy, "/bulk/0", "");
    workers.until_running(1).await;
    let waiting = enqueue(&proxy, "/bulk/1", "", 1).await;

    let reply = ask(&proxy, "/bulk/2", "").await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
    assert!(reply.contains("\r\nretry-after: 1\r\n"), "{reply}");
    assert!(reply.contains("x-towpath-reason: queue_full"), "{reply}");

    let reply = ask(&proxy, "/bulk/3", "Content-Type: application/grpc\r\n").await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    assert!(reply.contains("\r\ngrpc-status: 8\r\n"), "{reply}");
    assert!(reply.contains("\r\ngrpc-retry-pushback-ms: 1000\r\n"), "{reply}");
    assert!(reply.contains("\r\ngrpc-status-details-bin: CAgS"), "{reply}");

    // Somebody better makes its own room.
    let better = enqueue(&proxy, "/4", "", 1).await;
    let reply = waiting.await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
    assert!(reply.contains("x-towpath-reason: queue_displaced"), "{reply}");
    assert!(reply.contains("\r\nretry-after: 1\r\n"), "{reply}");
    workers.end(2);
    for answer in [running, better] {
        assert!(answer.await.unwrap().starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(workers.begun.all(), ["/bulk/0", "/4"]);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place_at_once() {
    let workers = Workers::default();
    let (addr, _) = workers.one().await;
    let proxy = setup(&[addr], Queue::default()).start().await;
    let running = ask(&proxy, "/0", "");
    workers.until_running(1).await;
    for (name, request) in [
        ("no body", "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a body on its way", "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nx"),
        ("a whole body", "PUT /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"),
    ] {
        let mut io = proxy.connect().await;
        io.write_all(request.as_bytes()).await.unwrap();
        until_queued(&proxy, 1).await;
        drop(io);
        eventually(name, || proxy.service.live.queued() == 0).await;
    }
    // A stream of HTTP/2 that is reset.
    let mut h2 = client(&proxy).await;
    let request = http::Request::post("http://a/4").body(()).unwrap();
    let (response, mut send) = h2.send_request(request, false).unwrap();
    until_queued(&proxy, 1).await;
    send.send_reset(h2::Reason::CANCEL);
    drop((response, send));
    until_queued(&proxy, 0).await;
    workers.end(1);
    assert!(running.await.unwrap().starts_with("HTTP/1.1 200 "));
    assert_eq!(workers.begun.all(), ["/0"], "no work is begun for who is gone");
}

/// Declares a length that nobody can send, once where others wait and once where nobody does.
#[tokio::test]
async fn a_length_that_is_only_declared_drives_nobody_out_of_the_line_nor_shuts_it() {
    let workers = Workers::default();
    let (addr, _) = workers.one().await;
    let proxy = setup(&[addr], Queue { max_bytes: 1000, ..Queue::default() }).start().await;
    let huge = format!("Content-Length: {}\r\n", 1_u64 << 62);
    let mut asked = vec![ask(&proxy, "/0", "")];
    workers.until_running(1).await;
    asked.push(enqueue(&proxy, "/bulk/1", "", 1).await);
    asked.push(enqueue(&proxy, "/background/2", "", 2).await);
    let liar = enqueue(&proxy, "/liar", &huge, 3).await;
    let small = "Content-Length: 4\r\n\r\nbody";
    asked.push(enqueue(&proxy, "/bulk/3", small, 4).await);
    liar.abort();
    until_queued(&proxy, 3).await;
    workers.end(4);
    for answer in asked {
        let answer = answer.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn a_body_waits_with_its_request_and_arrives_whole() {
    let workers = Workers::default();
    let (addr, _) = workers.one().await;
    let proxy = setup(&[addr], Queue::default()).start().await;
    let running = ask(&proxy, "/0", "");
    workers.until_running(1).await;
    let mut io = proxy.connect().await;
    let body = "0123456789".repeat(100_000);
    let head = format!(
        "PUT /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let (mut reading, mut writing) = io.split();
    let sent = async {
        writing.write_all(head.as_bytes()).await.unwrap();
        writing.write_all(body.as_bytes()).await.unwrap();
    };
    let released = async {
        until_queued(&proxy, 1).await;
        workers.end(2);
    };
    let answer = async {
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut reading, &mut text).await.unwrap();
        text
    };
    let (_, _, text) = soon(async { tokio::join!(sent, released, answer) }).await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    assert!(running.await.unwrap().starts_with("HTTP/1.1 200 "));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_in_the_queue_is_a_504_and_too_long_a_wait_a_503() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let writer = AccessLog::start(&Target::File(log.path().to_owned())).unwrap().unwrap();
    for (timeout, max_wait, status, reason) in
        [(50, 60_000, 504, "timeout"), (60_000, 50, 503, "queue_wait")]
    {
        let workers = Workers::default();
        let (addr, _) = workers.one().await;
        let queue = Queue { max_wait: Duration::from_millis(max_wait), ..Queue::default() };
        let proxy = setup(&[addr], queue)
            .with(|s| {
                s.also[0].1.timeout = Some(Duration::from_millis(timeout));
                s.access_log = Some(writer.clone());
            })
            .start()
            .await;
        let running = ask(&proxy, "/0", "");
        workers.until_running(1).await;
        let reply = ask(&proxy, "/bulk/1", "").await.unwrap();
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{reply}");
        assert!(reply.contains(&format!("x-towpath-reason: {reason}")), "{reply}");
        assert_eq!(reply.contains("retry-after: "), status == 503, "{reply}");
        assert_eq!(proxy.service.live.queued(), 0);
        let grpc = "Content-Type: application/grpc\r\nGrpc-Timeout: 20m\r\n";
        let reply = ask(&proxy, "/bulk/2", grpc).await.unwrap();
        assert!(reply.contains("\r\ngrpc-status: 4\r\n"), "{reply}");
        workers.end(1);
        assert!(running.await.unwrap().starts_with("HTTP/1.1 200 "));
        assert_eq!(workers.begun.all(), ["/0"]);
    }
    writer.flush(Duration::from_secs(10));
    let lines = std::fs::read_to_string(log.path()).unwrap();
    let of = |path: &str| lines.lines().find(|l| l.contains(path)).unwrap().to_owned();
    let waited: serde_json::Value = serde_json::from_str(&of("\"/bulk/1\"")).unwrap();
    assert!(waited["queued_ms"].as_u64().unwrap() >= 49, "{waited}");
    assert_eq!(waited["attempts"], 0, "{waited}");
    assert!(of("\"/0\"").contains("\"queued_ms\":"), "{lines}");
}

/// A worker dies with its request: that waits again, ahead of the others and for another
/// worker, while the dead one's slot goes to those it did not fail.
#[tokio::test]
async fn the_request_of_a_worker_that_dies_goes_first_to_another() {
    let workers = Workers::default();
    let (well, most) = workers.one().await;
    let dies = Arc::new(Notify::new());
    let (begun, wait) = (workers.begun.clone(), dies.clone());
    let (ill, _) = origin(move |mut io, before| {
        let (begun, wait) = (begun.clone(), wait.clone());
        async move {
            let mut input = Input::default();
            while let Some(request) = input.message(&mut io).await {
                begun.note(format!("ill {}", path(&request)));
                if before == 0 {
                    wait.notified().await;
                    io.set_zero_linger().unwrap();
                    return;
                }
                io.write_all(OK.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let proxy = setup(&[well, ill], Queue::default()).start().await;
    let mut asked = vec![ask(&proxy, "/a", "")];
    workers.until_begun(1).await;
    asked.push(ask(&proxy, "/b", ""));
    workers.until_begun(2).await;
    for (count, path) in ["/c", "/d"].into_iter().enumerate() {
        asked.push(enqueue(&proxy, path, "", 1 + count as u32).await);
    }
    // The dead one's slot goes to the others, who are both served there; its own request waits.
    dies.notify_one();
    workers.until_begun(4).await;
    let failed = workers.begun.all().into_iter().find(|p| p.starts_with("ill ")).unwrap();
    until_queued(&proxy, 1).await;
    workers.end(1);
    workers.until_begun(5).await;
    workers.end(1);
    for answer in asked {
        assert!(answer.await.unwrap().starts_with("HTTP/1.1 200 "));
    }
    let order = workers.begun.all();
    assert_eq!(order[4], failed.trim_start_matches("ill "), "{order:?}");
    assert_eq!(most.load(SeqCst), 1);
}

/// The only worker answers what is retried: that answer is kept, but not the slot.
#[tokio::test]
async fn a_retry_does_not_wait_for_the_answer_it_is_to_replace() {
    let (addr, connections) = origin(|mut io, before| async move {
        let mut input = Input::default();
        input.message(&mut io).await.unwrap();
        let busy = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 1000\r\n\r\n";
        io.write_all(if before == 0 { busy } else { OK }.as_bytes()).await.unwrap();
        input.message(&mut io).await;
    })
    .await;
    let proxy = setup(&[addr], Queue::default())
        .with(|s| s.forward.retry.on.push(RetryCondition::Status(vec![503])))
        .start()
        .await;
    assert!(ask(&proxy, "/", "").await.unwrap().starts_with("HTTP/1.1 200 "));
    assert_eq!(connections.load(SeqCst), 2);
}

#[tokio::test]
async fn a_configuration_that_changes_while_requests_wait_loses_none() {
    let workers = Workers::default();
    let (first, _) = workers.one().await;
    let (second, _) = workers.one().await;
    let proxy = setup(&[first], Queue::default()).start().await;
    let asked: Vec<_> = (0..10).map(|n| ask(&proxy, &format!("/{n}"), "")).collect();
    until_queued(&proxy, 9).await;
    let mut spec = (*proxy.service.spec).clone();
    let mut endpoints = vec![Endpoint::new(first), Endpoint::new(second)];
    let mut change = |old: &Arc<upstream::ServiceState>, slots: Option<u32>, own: Option<u32>| {
        spec.admission.queue = slots.map(|slots| Queue { slots, ..Queue::default() });
        endpoints[1].slots = own;
        let set = EndpointSet::new("origin".into(), endpoints.clone());
        upstream::reconcile(Some(old), Arc::new(spec.clone()), &set, 1).unwrap()
    };
    let state = change(&proxy.service, Some(1), None);
    workers.until_running(2).await;
    let state = change(&state, Some(1), Some(3));
    workers.until_running(4).await;
    // A worker leaves: what it has it may finish, and it gets nothing more.
    let state = upstream::reconcile(
        Some(&state),
        state.spec.clone(),
        &EndpointSet::new("origin".into(), vec![Endpoint::new(first)]),
        1,
    )
    .unwrap();
    until_queued(&proxy, 6).await;
    change(&state, None, None);
    workers.until_running(10).await;
    workers.end(10);
    for answer in asked {
        assert!(answer.await.unwrap().starts_with("HTTP/1.1 200 "));
    }
}

/// gRPC streams wait like other requests, and hold their slot to their end.
#[tokio::test]
async fn streams_of_http2_wait_their_turn_too() {
    let gate = Arc::new(Semaphore::new(0));
    let running = Arc::new(AtomicUsize::new(0));
    let (ends, count) = (gate.clone(), running.clone());
    let worker = h2_origin(move |_request, mut respond| {
        let (ends, count) = (ends.clone(), count.clone());
        async move {
            let mut send = respond.send_response(http::Response::new(()), false).unwrap();
            count.fetch_add(1, SeqCst);
            // The head is long gone; the stream still holds its slot.
            ends.acquire().await.unwrap().forget();
            count.fetch_sub(1, SeqCst);
            send.send_data("ok".into(), true).unwrap();
        }
    })
    .await;
    let proxy = setup(&[worker], Queue { slots: 2, ..Queue::default() })
        .speaking(Protocol::Http2)
        .start()
        .await;
    let mut h2 = client(&proxy).await;
    let mut bodies = Vec::new();
    for _ in 0..6 {
        let request = http::Request::get("http://a/").body(()).unwrap();
        let (response, _) = h2.send_request(request, true).unwrap();
        bodies.push(tokio::spawn(async move {
            let mut body = response.await.unwrap().into_body();
            crate::http2::collect(&mut body).await.unwrap().0
        }));
    }
    until_queued(&proxy, 4).await;
    for left in [3, 2, 1, 0] {
        eventually("two run", || running.load(SeqCst) == 2).await;
        gate.add_permits(1);
        until_queued(&proxy, left).await;
    }
    gate.add_permits(2);
    for body in bodies {
        assert_eq!(soon(body).await.unwrap(), b"ok");
    }
}
