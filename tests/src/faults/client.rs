//! Clients: one lane of requests after the other, over HTTP/1.1 or HTTP/2.

use std::{future::poll_fn, net::SocketAddr, pin::pin, sync::Arc};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client};
use tokio::{
    io::{AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    sync::Mutex,
    task::AbortHandle,
};

use super::{
    SMALL_FRAMES,
    answer::{Answer, End, Outcome},
    body::{Source, digest_of, wrong_digest},
    exchange::send_some,
    h1::{Head, Reader, chunk},
    plan::{Quirk, Request, Wire},
    scene::Scene,
    tap::{Control, Ending, Tap},
};

/// The client's side of a run.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    scene: Arc<Scene>,
    shared: Mutex<Option<Http2>>,
}

/// So many are looked at for one that takes a request.
const CONNECTIONS: usize = 4;

#[derive(Debug)]
struct Http1 {
    reader: Reader<ReadHalf<Tap>>,
    writer: WriteHalf<Tap>,
    control: Arc<Control>,
}

#[derive(Clone, Debug)]
struct Http2 {
    requests: client::SendRequest<Bytes>,
    control: Arc<Control>,
    _task: Arc<Owned>,
}

#[derive(Debug)]
struct Owned(AbortHandle);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    pub(super) fn new(address: SocketAddr, scene: Arc<Scene>) -> Self {
        Self { address, scene, shared: Mutex::new(None) }
    }

    /// Makes the requests of one lane.
    pub(super) async fn lane(&self, requests: &[Request], outcomes: &mut Vec<Outcome>) {
        let mut kept = None;
        for request in requests {
            let mut answer = Answer::new(&self.scene, request);
            answer.outcome.end = match self.scene.plan.client {
                Wire::Http1 => self.http1(&mut kept, &mut answer).await,
                Wire::Http2 => self.http2(&mut answer).await,
            };
            let outcome = answer.finish();
            self.scene.tell(format_args!("client: {outcome:?}"));
            outcomes.push(outcome);
        }
    }

    async fn http1(&self, kept: &mut Option<Http1>, answer: &mut Answer<'_>) -> End {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => match TcpStream::connect(self.address).await {
                Ok(tcp) => Http1::new(tcp),
                Err(error) => return End::Broken(format!("no connection: {error}")),
            },
        };
        answer.outcome.asked = true;
        let end = connection.exchange(answer).await;
        match end {
            Kept::Yes(end) => {
                *kept = Some(connection);
                end
            }
            Kept::No(end) => end,
        }
    }

    async fn http2(&self, answer: &mut Answer<'_>) -> End {
        let mut why = String::new();
        for _ in 0..CONNECTIONS {
            let mut connection = match self.connection().await {
                Ok(connection) => connection,
                Err(error) => return End::Broken(format!("no connection: {error}")),
            };
            let end = connection.exchange(answer).await;
            if !matches!(end, Ok(End::Whole | End::Left)) && connection.is_over().await {
                *self.shared.lock().await = None;
            }
            match end {
                Ok(end) => return end,
                // The connection takes nothing new.
                Err(unsent) => why = unsent,
            }
        }
        End::Broken(why)
    }

    async fn connection(&self) -> Result<Http2, String> {
        let mut shared = self.shared.lock().await;
        if let Some(connection) = &*shared {
            return Ok(connection.clone());
        }
        let tcp = TcpStream::connect(self.address).await.map_err(|e| e.to_string())?;
        let connection = Http2::new(tcp).await?;
        if self.scene.plan.shared {
            *shared = Some(connection.clone());
        }
        Ok(connection)
    }
}

/// Whether a connection serves another request.
enum Kept {
    Yes(End),
    No(End),
}

impl Http1 {
    fn new(tcp: TcpStream) -> Self {
        let (tap, control) = Tap::new(tcp);
        let (read, writer) = tokio::io::split(tap);
        Self { reader: Reader::new(read), writer, control }
    }

    async fn exchange(&mut self, answer: &mut Answer<'_>) -> Kept {
        let (scene, request) = (answer.scene, answer.request);
        let mut sent = 0;
        let mut uploaded = None;
        let mut close = false;
        let end = {
            let mut upload = pin!(upload_http1(scene, request, &mut self.writer, &mut sent));
            let mut download = pin!(download_http1(&mut self.reader, answer, &mut close));
            loop {
                tokio::select! {
                    biased;
                    end = &mut download => break end,
                    done = &mut upload, if uploaded.is_none() => {
                        if let Err(Left(ending)) = done {
                            self.control.kill(ending);
                            break End::Left;
                        }
                        uploaded = Some(done.is_ok_and(|whole| whole));
                    }
                }
            }
        };
        answer.outcome.sent = sent;
        if let (End::Left, Quirk::VanishDownload { reset: true, .. }) = (&end, request.quirk) {
            self.control.kill(Ending::Reset);
        }
        let whole = uploaded == Some(true) && end == End::Whole;
        // An answer that overtakes a large body has the proxy close without having said so.
        let overtaken = !request.tries.iter().all(|fault| fault.is_benign(&scene.plan));
        if whole && !close && !overtaken && request.quirk != Quirk::HalfClose {
            Kept::Yes(end)
        } else {
            Kept::No(end)
        }
    }
}

/// The client goes away, in this manner.
struct Left(Ending);

/// Sends a request; false when the proxy takes no more of it.
async fn upload_http1(
    scene: &Scene,
    request: &Request,
    writer: &mut WriteHalf<Tap>,
    sent: &mut u64,
) -> Result<bool, Left> {
    let head = head_text(scene, request);
    if writer.write_all(head.as_bytes()).await.is_err() {
        return Ok(false);
    }
    let mut body = Source::new(scene.plan.seed, request.index, None);
    let mut stalled = false;
    while *sent < request.up.size {
        match request.quirk {
            Quirk::StallUpload { at, pause } if at <= *sent && !stalled => {
                stalled = true;
                tokio::time::sleep(pause).await;
            }
            Quirk::VanishUpload { at, reset } if at <= *sent => {
                return Err(Left(if reset { Ending::Reset } else { Ending::Close }));
            }
            Quirk::Truncate { at } if at <= *sent => {
                let _ = writer.shutdown().await;
                return Ok(false);
            }
            _ => {}
        }
        let bytes = body.next(request.piece.min(request.up.size - *sent));
        *sent += bytes.len() as u64;
        let written = if request.up.declared {
            writer.write_all(&bytes).await
        } else {
            writer.write_all(&chunk(&bytes)).await
        };
        if written.is_err() {
            return Ok(false);
        }
    }
    if !request.up.declared && writer.write_all(b"0\r\n\r\n").await.is_err() {
        return Ok(false);
    }
    if request.quirk == Quirk::HalfClose {
        let _ = writer.shutdown().await;
    }
    Ok(true)
}

fn head_text(scene: &Scene, request: &Request) -> String {
    let mut text = format!(
        "{} /r/{} HTTP/1.1\r\nhost: faults.test\r\nx-request: {}\r\n",
        request.method, request.index, request.index
    );
    if let Some(key) = &request.key {
        text.push_str(&format!("idempotency-key: {key}\r\n"));
    }
    if let Some(digest) = digest(scene, request) {
        text.push_str(&format!("content-digest: {digest}\r\n"));
    }
    text.push_str(&match (request.up.size, request.up.declared) {
        (0, _) if request.method == "GET" => "\r\n".to_owned(),
        (size, true) => format!("content-length: {size}\r\n\r\n"),
        (_, false) => "transfer-encoding: chunked\r\n\r\n".to_owned(),
    });
    text
}

/// The digest that the body comes with.
fn digest(scene: &Scene, request: &Request) -> Option<String> {
    if request.quirk == Quirk::WrongDigest {
        return Some(wrong_digest());
    }
    let body = Source::new(scene.plan.seed, request.index, None);
    (request.proved && request.up.size > 0).then(|| digest_of(body, request.up.size))
}

async fn download_http1(
    reader: &mut Reader<ReadHalf<Tap>>,
    answer: &mut Answer<'_>,
    close: &mut bool,
) -> End {
    let head = loop {
        match reader.head().await {
            Err(error) => return End::Broken(error.to_string()),
            Ok(None) => return End::Broken("closed before an answer".into()),
            Ok(Some(head)) => match status_of(&head) {
                Some(100..200) => {}
                Some(status) => {
                    answer.begin(status, |name| head.field(name).map(str::to_owned));
                    break head;
                }
                None => return End::Broken("no status".into()),
            },
        }
    };
    *close = head.field("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
    let Some(mut framing) = head.framing() else {
        return End::Broken("neither a length nor chunks".into());
    };
    loop {
        if answer.leaves().await {
            return End::Left;
        }
        match reader.piece(&mut framing).await {
            Ok(Some(bytes)) => answer.take(&bytes),
            Ok(None) => return End::Whole,
            Err(error) => return End::Broken(error.to_string()),
        }
    }
}

fn status_of(head: &Head) -> Option<u16> {
    head.first.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

impl Http2 {
    async fn new(tcp: TcpStream) -> Result<Self, String> {
        let (tap, control) = Tap::new(tcp);
        let mut builder = client::Builder::new();
        builder
            .initial_window_size(256 << 10)
            .initial_connection_window_size(1 << 20)
            .data_frame_budget(SMALL_FRAMES);
        let (requests, connection) =
            builder.handshake(tap).await.map_err(|error| error.to_string())?;
        let killed = control.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                _ = connection => {}
                () = killed.killed() => {}
            }
        });
        Ok(Self { requests, control, _task: Arc::new(Owned(task.abort_handle())) })
    }

    /// Whether no more requests can be made on it.
    async fn is_over(&mut self) -> bool {
        let ready = self.requests.clone().ready();
        tokio::time::timeout(std::time::Duration::from_millis(1), ready)
            .await
            .is_ok_and(|ready| ready.is_err())
    }

    /// One request; an error when nothing of it was sent.
    async fn exchange(&mut self, answer: &mut Answer<'_>) -> Result<End, String> {
        let (scene, request) = (answer.scene, answer.request);
        let ready = self.requests.clone().ready().await;
        let mut requests = ready.map_err(|error| format!("not ready: {error}"))?;
        let mut head = http::Request::builder()
            .method(request.method)
            .uri(format!("http://faults.test/r/{}", request.index))
            .header("x-request", request.index);
        if let Some(key) = &request.key {
            head = head.header("idempotency-key", key);
        }
        if let Some(digest) = digest(scene, request) {
            head = head.header("content-digest", digest);
        }
        if request.up.declared && request.up.size > 0 {
            head = head.header("content-length", request.up.size);
        }
        let head = head.body(()).map_err(|error| error.to_string())?;
        let opened = requests.send_request(head, request.up.size == 0);
        let (response, mut send) = opened.map_err(|error| format!("not sent: {error}"))?;
        answer.outcome.asked = true;
        drop(requests);
        let mut sent = 0;
        let end = {
            let mut upload = pin!(upload_http2(scene, request, &mut send, &mut sent));
            let mut download = pin!(async {
                let response = match response.await {
                    Ok(response) => response,
                    Err(error) => return End::Broken(error.to_string()),
                };
                let field = |name: &str| {
                    let value = response.headers().get(name);
                    value.and_then(|v| v.to_str().ok()).map(str::to_owned)
                };
                answer.begin(response.status().as_u16(), field);
                download_http2(response.into_body(), answer).await
            });
            let mut uploaded = false;
            loop {
                tokio::select! {
                    biased;
                    end = &mut download => break end,
                    done = &mut upload, if !uploaded => match done {
                        Ok(()) => uploaded = true,
                        Err(Left(_)) => break End::Left,
                    }
                }
            }
        };
        answer.outcome.sent = sent;
        if end == End::Left {
            self.leave(request, &mut send);
        }
        Ok(end)
    }

    /// Goes away: from the stream, or for good where the connection is its own.
    fn leave(&self, request: &Request, send: &mut SendStream<Bytes>) {
        match request.quirk {
            Quirk::VanishUpload { reset: true, .. } | Quirk::VanishDownload { reset: true, .. } => {
                self.control.kill(Ending::Reset);
            }
            _ => send.send_reset(Reason::CANCEL),
        }
    }
}

async fn upload_http2(
    scene: &Scene,
    request: &Request,
    send: &mut SendStream<Bytes>,
    sent: &mut u64,
) -> Result<(), Left> {
    let mut body = Source::new(scene.plan.seed, request.index, None);
    let mut stalled = false;
    if request.up.size == 0 {
        return Ok(());
    }
    while *sent < request.up.size {
        match request.quirk {
            Quirk::StallUpload { at, pause } if at <= *sent && !stalled => {
                stalled = true;
                tokio::time::sleep(pause).await;
            }
            Quirk::VanishUpload { at, reset } if at <= *sent => {
                return Err(Left(if reset { Ending::Reset } else { Ending::Close }));
            }
            Quirk::Truncate { at } if at <= *sent => break,
            _ => {}
        }
        let mut bytes = body.next(request.piece.min(request.up.size - *sent));
        *sent += bytes.len() as u64;
        while !bytes.is_empty() {
            if send_some(send, &mut bytes).await.is_err() {
                return Ok(());
            }
        }
    }
    // An error says what the answer will say.
    let _ = send.send_data(Bytes::new(), true);
    Ok(())
}

async fn download_http2(mut body: RecvStream, answer: &mut Answer<'_>) -> End {
    loop {
        if answer.leaves().await {
            return End::Left;
        }
        match body.data().await {
            Some(Ok(bytes)) => {
                answer.take(&bytes);
                let _ = body.flow_control().release_capacity(bytes.len());
            }
            Some(Err(error)) => return End::Broken(error.to_string()),
            None => break,
        }
    }
    match poll_fn(|cx| body.poll_trailers(cx)).await {
        Ok(_) => End::Whole,
        Err(error) => End::Broken(error.to_string()),
    }
}
