//! One process of the program after the other, under load.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    sync::watch,
    task::JoinHandle,
};

use crate::support::*;

/// A long transfer's bytes; not a multiple of any buffer.
const MUCH: usize = 2 * 1024 * 1024 + 12_345;
const HALF: usize = MUCH / 2;

/// Its listener's certificate is nowhere.
const NO_CERTIFICATE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, annotations: {towpath.dev/bind: 127.0.0.1}}
spec:
  gatewayClassName: towpath
  listeners:
  - name: web
    port: 443
    protocol: HTTPS
    tls:
      options:
        towpath.dev/certificate-file: /nowhere/tls.crt
        towpath.dev/private-key-file: /nowhere/tls.key
";

fn pattern() -> Vec<u8> {
    (0..MUCH).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// What the transfers and their origins wait for, and tell.
#[derive(Clone)]
struct Stage {
    /// The second halves may be sent.
    released: watch::Sender<bool>,
    /// Transfers that are half done.
    half_done: Arc<AtomicUsize>,
}

impl Stage {
    async fn second_half(&self) {
        self.half_done.fetch_add(1, SeqCst);
        self.released_now().await;
    }

    async fn released_now(&self) {
        self.released.subscribe().wait_for(|now| *now).await.unwrap();
    }
}

/// Answers `/short`, sends `/long` in two halves, and compares what is sent to `/up`.
async fn web_origin(stage: Stage) -> Origin {
    origin(move |mut tcp| {
        let stage = stage.clone();
        async move {
            while let Some(request) = head(&mut tcp).await {
                let answer = if request.starts_with("GET /long") {
                    let body = pattern();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {MUCH}\r\n\r\n");
                    tcp.write_all(head.as_bytes()).await.unwrap();
                    tcp.write_all(&body[..HALF]).await.unwrap();
                    stage.second_half().await;
                    tcp.write_all(&body[HALF..]).await.unwrap();
                    continue;
                } else if request.starts_with("PUT /up") {
                    let mut body = vec![0; MUCH];
                    tcp.read_exact(&mut body[..HALF]).await.unwrap();
                    stage.half_done.fetch_add(1, SeqCst);
                    tcp.read_exact(&mut body[HALF..]).await.unwrap();
                    if body == pattern() { "same" } else { "other" }
                } else {
                    "ok"
                };
                let length = answer.len();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{answer}");
                if tcp.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// A folder with policies, an upgrade socket, and the logs of those who ran.
struct Place(tempfile::TempDir);

impl Place {
    fn log(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.log"))
    }

    fn command(&self, name: &str, policies: &Path) -> Command {
        let mut command = Program::command(policies);
        command
            .args(["--drain-timeout", "5m", "--upgrade-socket"])
            .arg(self.0.path().join("upgrade"))
            .stderr(fs::File::create(self.log(name)).unwrap());
        command
    }

    async fn start(&self, name: &str) -> Program {
        Program::start(&mut self.command(name, &self.0.path().join("policies"))).await
    }
}

/// Small requests without end: each kind in a task that panics at the first that fails.
struct Load {
    stop: watch::Sender<bool>,
    done: [Arc<AtomicUsize>; 4],
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(web: SocketAddr, tcp: SocketAddr) -> Self {
        let (stop, stopped) = watch::channel(false);
        let done: [Arc<AtomicUsize>; 4] = Default::default();
        let run = |index: usize| Run { done: done[index].clone(), stopped: stopped.clone() };
        let tasks = vec![
            tokio::spawn(run(0).kept_alive(web)),
            tokio::spawn(run(1).each_its_connection(web)),
            tokio::spawn(run(2).http2(web)),
            tokio::spawn(run(3).opaque(tcp)),
        ];
        Self { stop, done, tasks }
    }

    /// Waits until each kind has done this many more.
    async fn go_on(&self, more: usize) {
        let before = self.done.each_ref().map(|done| done.load(SeqCst));
        eventually("the load goes on", || async {
            for task in &self.tasks {
                assert!(!task.is_finished(), "a request failed");
            }
            let mut each = self.done.iter().zip(before);
            each.all(|(done, before)| done.load(SeqCst) >= before + more).then_some(())
        })
        .await;
    }

    async fn end(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

struct Run {
    done: Arc<AtomicUsize>,
    stopped: watch::Receiver<bool>,
}

impl Run {
    /// Counts one, and says whether to go on.
    async fn next(&self) -> bool {
        self.done.fetch_add(1, SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
        !*self.stopped.borrow()
    }

    async fn kept_alive(self, web: SocketAddr) {
        let mut tcp = TcpStream::connect(web).await.unwrap();
        loop {
            let (head, body) = get(&mut tcp, "/short").await;
            assert_eq!(body, "ok", "{head}");
            if !self.next().await {
                return;
            }
            if head.contains("connection: close") {
                tcp = TcpStream::connect(web).await.unwrap();
            }
        }
    }

    async fn each_its_connection(self, web: SocketAddr) {
        while self.next().await {
            let mut tcp = TcpStream::connect(web).await.unwrap();
            assert_eq!(get(&mut tcp, "/short").await.1, "ok");
        }
    }

    async fn http2(self, web: SocketAddr) {
        let mut client = http2(web).await;
        while self.next().await {
            // One that was told to go opens no stream; what it opened is served.
            let opened = match client.clone().ready().await {
                Ok(mut ready) => ready.send_request(request("GET", "/short", web), true),
                Err(error) => Err(error),
            };
            match opened {
                Ok((response, _)) => {
                    let mut body = response.await.unwrap().into_body();
                    assert_eq!(&body.data().await.unwrap().unwrap()[..], b"ok");
                }
                Err(error) => {
                    assert!(error.is_go_away() || error.is_io(), "{error}");
                    client = http2(web).await;
                }
            }
        }
    }

    async fn opaque(self, tcp: SocketAddr) {
        while self.next().await {
            let mut tcp = TcpStream::connect(tcp).await.unwrap();
            tcp.write_all(b"x").await.unwrap();
            tcp.read_exact(&mut [0]).await.unwrap();
        }
    }
}

async fn http2(web: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let tcp = TcpStream::connect(web).await.unwrap();
    let (client, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    client
}

fn request(method: &str, path: &str, web: SocketAddr) -> http::Request<()> {
    http::Request::builder().method(method).uri(format!("http://{web}{path}")).body(()).unwrap()
}

/// Long transfers, each half done before the upgrades and half after.
fn transfers(stage: &Stage, web: SocketAddr, tcp: SocketAddr) -> Vec<JoinHandle<()>> {
    let each = || stage.clone();
    vec![
        tokio::spawn(down1(web)),
        tokio::spawn(up1(each(), web)),
        tokio::spawn(down2(web)),
        tokio::spawn(up2(each(), web)),
        tokio::spawn(there_and_back(each(), tcp)),
    ]
}

async fn down1(web: SocketAddr) {
    let mut tcp = TcpStream::connect(web).await.unwrap();
    tcp.write_all(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    head(&mut tcp).await.unwrap();
    let mut body = vec![0; MUCH];
    tcp.read_exact(&mut body).await.unwrap();
    assert!(body == pattern());
}

async fn up1(stage: Stage, web: SocketAddr) {
    let mut tcp = TcpStream::connect(web).await.unwrap();
    let head = format!("PUT /up HTTP/1.1\r\nhost: a\r\ncontent-length: {MUCH}\r\n\r\n");
    tcp.write_all(head.as_bytes()).await.unwrap();
    let body = pattern();
    tcp.write_all(&body[..HALF]).await.unwrap();
    stage.released_now().await;
    tcp.write_all(&body[HALF..]).await.unwrap();
    let mut answer = vec![0; 1024];
    let length = tcp.read(&mut answer).await.unwrap();
    assert!(answer[..length].ends_with(b"same"), "{}", String::from_utf8_lossy(&answer));
}

async fn down2(web: SocketAddr) {
    let mut client = http2(web).await;
    let (response, _) = client.send_request(request("GET", "/long", web), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    assert!(all == pattern());
}

async fn up2(stage: Stage, web: SocketAddr) {
    let mut client = http2(web).await;
    let body = Bytes::from(pattern());
    let mut put = request("PUT", "/up", web);
    put.headers_mut().insert("content-length", MUCH.into());
    let (response, mut send) = client.send_request(put, false).unwrap();
    send.send_data(body.slice(..HALF), false).unwrap();
    stage.released_now().await;
    send.send_data(body.slice(HALF..), true).unwrap();
    let mut answer = response.await.unwrap().into_body();
    assert_eq!(&answer.data().await.unwrap().unwrap()[..], b"same");
}

async fn there_and_back(stage: Stage, tcp: SocketAddr) {
    let (mut read, mut write) = TcpStream::connect(tcp).await.unwrap().into_split();
    let (body, mut all) = (pattern(), vec![0; MUCH]);
    let (sent, came) =
        tokio::join!(write.write_all(&body[..HALF]), read.read_exact(&mut all[..HALF]));
    sent.unwrap();
    came.unwrap();
    stage.second_half().await;
    let sending = async {
        write.write_all(&body[HALF..]).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (_, came) = tokio::join!(sending, read.read_exact(&mut all[HALF..]));
    came.unwrap();
    assert!(all == body && read.read(&mut [0]).await.unwrap() == 0);
}

#[tokio::test]
async fn no_request_connection_or_transfer_is_lost_in_upgrades_and_a_bad_one_changes_nothing() {
    let stage = Stage { released: watch::Sender::new(false), half_done: Arc::default() };
    let (web, tcp) = (dead().await, dead().await);
    let (web_origin, echo) = (web_origin(stage.clone()).await, echo().await);
    let place = Place(tempfile::tempdir().unwrap());
    fs::create_dir(place.0.path().join("policies")).unwrap();
    let text =
        policies(&[("HTTP", web.port(), web_origin.address), ("TCP", tcp.port(), echo.address)]);
    fs::write(place.0.path().join("policies/edge.yaml"), text).unwrap();

    let mut first = place.start("first").await;
    let load = Load::start(web, tcp);
    let transfers = transfers(&stage, web, tcp);
    eventually("all are half done", || async {
        (stage.half_done.load(SeqCst) == transfers.len()).then_some(())
    })
    .await;
    load.go_on(20).await;

    // Policies without a mistake, of which only a proxy that has asked for sockets finds that it cannot obey them.
    let unobeyable = place.0.path().join("unobeyable.yaml");
    fs::write(&unobeyable, NO_CERTIFICATE).unwrap();
    let mut bad = place.command("bad", &unobeyable).spawn().unwrap();
    assert!(!bad.wait().await.unwrap().success());
    load.go_on(20).await;
    eventually("the first serves on", || async {
        fs::read_to_string(place.log("first")).unwrap().contains("serving on").then_some(())
    })
    .await;

    let mut second = place.start("second").await;
    assert_eq!(second.admin, first.admin, "the admin endpoint is where it was");
    load.go_on(20).await;
    let mut third = place.start("third").await;
    load.go_on(20).await;
    assert!(first.child.try_wait().unwrap().is_none(), "the first has transfers to finish");
    // The second had none, and short requests alone hold nobody up.
    assert!(second.child.wait().await.unwrap().success());

    stage.released.send_replace(true);
    for transfer in transfers {
        transfer.await.unwrap();
    }
    assert!(first.child.wait().await.unwrap().success());
    load.go_on(20).await;
    load.end().await;
    for name in ["first", "second"] {
        let log = fs::read_to_string(place.log(name)).unwrap();
        assert!(log.contains("handed over") && log.contains("drained"), "{name}: {log}");
    }
    assert!(third.child.try_wait().unwrap().is_none());
}
