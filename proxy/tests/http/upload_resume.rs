//! Uploads that break at a server of resumable uploads (draft-ietf-httpbis-resumable-upload) and go on there.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use towpath_policies::model::{Protocol, RetryPolicy};

use crate::{
    harness::{Input, Setup, answering, origin, soon},
    http2::{client, h2_origin},
};

/// What the server has, and where it will break.
#[derive(Default)]
struct Server {
    uploaded: String,
    complete: bool,
    /// After so many bytes of each further request; it may lose some of what it had read.
    faults: Vec<(usize, usize)>,
    /// Methods and offsets asked for.
    asked: Vec<String>,
    /// Methods of those that came with a digest in their trailers.
    proved: Vec<String>,
    /// It knows nothing of resumption.
    plain: bool,
    /// It forgets uploads that broke.
    forgets: bool,
}

type Shared = Arc<Mutex<Server>>;

impl Server {
    /// What to say at once (a 104, or an answer), and whether content is taken.
    fn begin(&mut self, method: &str, offset: Option<usize>) -> Begun {
        self.asked.push(match offset {
            Some(offset) => format!("{method} {offset}"),
            None => method.to_owned(),
        });
        match method {
            "HEAD" if self.forgets => Begun::Gone,
            "HEAD" => Begun::Standing(self.uploaded.len(), self.complete),
            "PATCH" if offset != Some(self.uploaded.len()) => Begun::Conflict(self.uploaded.len()),
            "PATCH" => Begun::Takes { named: false },
            _ => {
                self.uploaded.clear();
                Begun::Takes { named: !self.plain }
            }
        }
    }

    fn fault(&mut self) -> Option<(usize, usize)> {
        self.faults.pop()
    }

    fn take(&mut self, content: &str, lost: usize) {
        self.uploaded.push_str(&content[..content.len() - lost.min(content.len())]);
    }
}

enum Begun {
    Gone,
    Standing(usize, bool),
    Conflict(usize),
    Takes { named: bool },
}

const NAMED: &str = "HTTP/1.1 104 Upload Resumption Supported\r\nlocation: /uploads/1\r\nupload-draft-interop-version: 8\r\n\r\n";

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

async fn server(shared: Shared) -> SocketAddr {
    origin(move |io, _| serve(io, shared.clone())).await.0
}

async fn serve(mut io: TcpStream, shared: Shared) {
    let mut input = Input::default();
    while let Some(head) = input.until(&mut io, "\r\n\r\n").await {
        let method = head.split(' ').next().unwrap();
        let offset = field(&head, "upload-offset").map(|text| text.parse().unwrap());
        let begun = shared.lock().unwrap().begin(method, offset);
        let answer = match begun {
            Begun::Gone => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".into(),
            Begun::Standing(offset, complete) => format!(
                "HTTP/1.1 204 No Content\r\nupload-offset: {offset}\r\nupload-complete: ?{}\r\n\r\n",
                u8::from(complete)
            ),
            Begun::Conflict(offset) => format!(
                "HTTP/1.1 409 Conflict\r\nupload-offset: {offset}\r\nupload-complete: ?0\r\ncontent-length: 0\r\n\r\n"
            ),
            Begun::Takes { named } => {
                if method == "PATCH" {
                    assert_eq!(field(&head, "content-type"), Some("application/partial-upload"));
                    assert!(head.starts_with("PATCH /uploads/1 "), "{head}");
                }
                if named {
                    io.write_all(NAMED.as_bytes()).await.unwrap();
                }
                let length: usize = field(&head, "content-length").unwrap().parse().unwrap();
                let fault = shared.lock().unwrap().fault();
                let until = fault.map_or(length, |(after, _)| after.min(length));
                let Some(content) = input.exactly(&mut io, until).await else { return };
                {
                    let mut server = shared.lock().unwrap();
                    server.take(&content, fault.map_or(0, |(_, lost)| lost));
                    server.complete = fault.is_none();
                }
                if fault.is_some() {
                    // Not a reset: what was said before must arrive.
                    let _ = io.shutdown().await;
                    while io.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {}
                    return;
                }
                "HTTP/1.1 200 OK\r\nupload-complete: ?1\r\ncontent-length: 4\r\n\r\ndone".into()
            }
        };
        if io.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn h2_server(shared: Shared) -> SocketAddr {
    h2_origin(move |request, mut respond| {
        let shared = shared.clone();
        async move {
            let (parts, mut body) = request.into_parts();
            let offset = parts.headers.get("upload-offset");
            let offset = offset.map(|text| text.to_str().unwrap().parse().unwrap());
            let begun = shared.lock().unwrap().begin(parts.method.as_str(), offset);
            let answer = Response::builder();
            let answer = match begun {
                Begun::Gone => answer.status(404),
                Begun::Standing(offset, complete) => answer
                    .status(204)
                    .header("upload-offset", offset)
                    .header("upload-complete", if complete { "?1" } else { "?0" }),
                Begun::Conflict(offset) => answer.status(409).header("upload-offset", offset),
                Begun::Takes { named } => {
                    if named {
                        let named = Response::builder()
                            .status(104)
                            .header("location", "/uploads/1")
                            .header("upload-draft-interop-version", "8");
                        respond.send_informational(named.body(()).unwrap()).unwrap();
                    }
                    let fault = shared.lock().unwrap().fault();
                    let mut content = String::new();
                    while fault.is_none_or(|(after, _)| content.len() < after) {
                        let Some(Ok(bytes)) = body.data().await else { break };
                        let _ = body.flow_control().release_capacity(bytes.len());
                        content.push_str(std::str::from_utf8(&bytes).unwrap());
                    }
                    if let Some((after, lost)) = fault {
                        content.truncate(after);
                        shared.lock().unwrap().take(&content, lost);
                        // The 104 first: a reset would overtake it.
                        for _ in 0..50 {
                            tokio::task::yield_now().await;
                        }
                        respond.send_reset(h2::Reason::INTERNAL_ERROR);
                        return;
                    }
                    let trailers = body.trailers().await.unwrap().unwrap_or_default();
                    let mut server = shared.lock().unwrap();
                    if trailers.contains_key("content-digest") {
                        server.proved.push(parts.method.to_string());
                    }
                    server.take(&content, 0);
                    server.complete = true;
                    answer.header("upload-complete", "?1")
                }
            };
            respond.send_response(answer.body(()).unwrap(), true).unwrap();
        }
    })
    .await
}

fn resuming(setup: Setup, memory: u64) -> Setup {
    setup.with(|s| {
        s.forward.transfer.resume_uploads = true;
        s.forward.retry = RetryPolicy {
            attempts: 8,
            backoff_base: Duration::from_millis(1),
            replay_limit_bytes: memory,
            ..RetryPolicy::default()
        };
    })
}

fn text(rng: &mut fastrand::Rng, length: usize) -> String {
    (0..length).map(|_| rng.lowercase()).collect()
}

fn request(method: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} /files HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// Faults at every byte position drawn, with bytes lost or not, in both versions: what the
/// server has in the end is the body, no byte twice and none missing.
#[tokio::test]
async fn an_upload_that_breaks_anywhere_arrives_whole_and_is_answered_once() {
    let mut rng = fastrand::Rng::with_seed(104);
    for round in 0..60 {
        let length = rng.usize(1..60_000);
        let body = text(&mut rng, length);
        let faults: Vec<_> = (0..rng.usize(1..4))
            .map(|_| (rng.usize(0..=length), if rng.bool() { 0 } else { rng.usize(..2000) }))
            .collect();
        let shared =
            Shared::new(Mutex::new(Server { faults: faults.clone(), ..Server::default() }));
        let (addr, protocol) = match round % 2 {
            0 => (server(shared.clone()).await, Protocol::Http1),
            _ => (h2_server(shared.clone()).await, Protocol::Http2),
        };
        let proxy = resuming(Setup::to(addr), 1 << 20).speaking(protocol).start().await;
        // A POST could not be sent twice.
        let reply = soon(proxy.talk(&request("POST", &body))).await;
        let server = shared.lock().unwrap();
        let told = format!("round {round} {protocol:?} {length} {faults:?} {:?}", server.asked);
        assert!(reply.starts_with("HTTP/1.1 200"), "{told}: {reply}");
        assert!(!reply.contains("upload-"), "{told}: {reply}");
        assert!(server.uploaded == body, "{told}: {} bytes", server.uploaded.len());
        assert_eq!(server.asked.iter().filter(|asked| *asked == "POST").count(), 1, "{told}");
    }
}

/// The buffer keeps the last of the body, which is what a server is missing.
#[tokio::test]
async fn a_large_upload_goes_on_out_of_a_small_buffer() {
    let mut rng = fastrand::Rng::with_seed(5);
    let body = text(&mut rng, 4_000_000);
    let faults = vec![(300_000, 100), (3_000_000, 5_000)];
    let shared = Shared::new(Mutex::new(Server { faults, ..Server::default() }));
    // What lies in the sockets between has to fit.
    let proxy = resuming(Setup::to(server(shared.clone()).await), 3 << 20).start().await;
    let reply = soon(proxy.talk(&request("POST", &body))).await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    let server = shared.lock().unwrap();
    assert!(server.uploaded == body, "{:?}", server.asked);
    assert_eq!(server.asked.len(), 5, "{:?}", server.asked);
}

#[tokio::test]
async fn what_cannot_go_on_is_sent_again_whole_or_breaks() {
    for (what, plain, forgets) in [("plain", true, false), ("forgets", false, true)] {
        for (method, answered) in [("PUT", true), ("POST", false)] {
            let faults = vec![(500, 0)];
            let shared =
                Shared::new(Mutex::new(Server { faults, plain, forgets, ..Server::default() }));
            let proxy = resuming(Setup::to(server(shared.clone()).await), 1 << 20).start().await;
            let body = text(&mut fastrand::Rng::with_seed(1), 1000);
            let reply = soon(proxy.talk(&request(method, &body))).await;
            let status = if answered { "HTTP/1.1 200" } else { "HTTP/1.1 502" };
            assert!(reply.starts_with(status), "{what} {method}: {reply}");
            let server = shared.lock().unwrap();
            assert_eq!(server.uploaded == body, answered, "{what} {method}: {:?}", server.asked);
        }
    }
}

#[tokio::test]
async fn a_client_that_sees_to_it_itself_is_left_alone() {
    let shared = Shared::default();
    let proxy = resuming(Setup::to(server(shared.clone()).await), 1 << 20).start().await;
    let own = "POST /files HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUpload-Complete: ?1\r\nContent-Length: 2\r\n\r\nok";
    let reply = soon(proxy.talk(own)).await;
    assert!(reply.starts_with("HTTP/1.1 104") && reply.contains("location: /uploads/1"), "{reply}");
    assert!(reply.contains("upload-complete: ?1"), "{reply}");

    // And so is everybody without the policy.
    let proxy = Setup::to(server(shared.clone()).await).start().await;
    let reply = soon(proxy.talk(&request("POST", "ok"))).await;
    assert!(reply.starts_with("HTTP/1.1 104"), "{reply}");
}

/// In trailers it comes when the body may long have become one of several parts.
#[tokio::test]
async fn the_digest_of_a_body_does_not_follow_a_part_of_it() {
    for (faults, asked, proved) in [
        (vec![], vec!["POST"], vec!["POST".to_owned()]),
        (vec![(3, 0)], vec!["POST", "HEAD", "PATCH 3"], vec![]),
        (vec![(5, 0)], vec!["POST", "HEAD", "PATCH 5"], vec![]),
    ] {
        let shared = Shared::new(Mutex::new(Server { faults, ..Server::default() }));
        let addr = h2_server(shared.clone()).await;
        let proxy = resuming(Setup::to(addr), 1 << 20).speaking(Protocol::Http2).start().await;
        let sent = "POST /files HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
            Transfer-Encoding: chunked\r\nTrailer: content-digest\r\n\r\n\
            5\r\nhello\r\n0\r\nContent-Digest: sha-256=:AAAA:\r\n\r\n";
        let reply = soon(proxy.talk(sent)).await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        let server = shared.lock().unwrap();
        assert_eq!(server.asked, asked);
        assert_eq!((&*server.uploaded, &*server.proved), ("hello", &*proved));
    }
}

/// As a gateway's to a sidecar: the upload has its key.
#[tokio::test]
async fn what_a_client_appends_itself_gets_no_key() {
    for (field, keyed) in [("Upload-Offset: 3\r\n", false), ("", true)] {
        let (addr, requests) = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
        let minting = Setup::to(addr).with(|s| s.forward.retry.mint_idempotency_key = true);
        let sent = format!(
            "PATCH /uploads/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{field}Content-Length: 2\r\n\r\nok"
        );
        let reply = soon(minting.start().await.talk(&sent)).await;
        assert!(reply.starts_with("HTTP/1.1 204"), "{reply}");
        assert_eq!(requests.only().contains("idempotency-key"), keyed, "{field}");
    }
}

#[tokio::test]
async fn an_http2_client_sees_one_answer_too() {
    let shared = Shared::new(Mutex::new(Server { faults: vec![(7, 2)], ..Server::default() }));
    let addr = h2_server(shared.clone()).await;
    let proxy = resuming(Setup::to(addr), 1 << 20).speaking(Protocol::Http2).start().await;
    let request = Request::post("http://a/files").body(()).unwrap();
    let (response, mut send) = client(&proxy).await.send_request(request, false).unwrap();
    for part in ["hello ", "world, ", "again"] {
        send.send_data(part.into(), false).unwrap();
        tokio::task::yield_now().await;
    }
    send.send_data("".into(), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 200);
    let server = shared.lock().unwrap();
    assert_eq!(server.uploaded, "hello world, again", "{:?}", server.asked);
}
