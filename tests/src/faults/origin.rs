//! Endpoints that do with each try what the plan says, and write down what they saw.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use h2::server;
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
};

use super::{
    SMALL_FRAMES,
    body::{Source, Verifier},
    exchange::{Exchange, Gone, Http1, Http2},
    h1::{Framing, Reader},
    plan::{At, Break, Direction, Fault, Request, Wire},
    scene::{Attempt, Scene},
    tap::{Control, Ending, Tap},
};

/// One endpoint; ends when dropped.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) address: SocketAddr,
    connections: Arc<Mutex<Vec<Arc<Control>>>>,
    open: Arc<AtomicUsize>,
    task: AbortHandle,
}

/// A try on its way.
struct Try<'a> {
    scene: &'a Scene,
    request: &'a Request,
    exchange: Exchange<'a>,
    fault: Fault,
    /// Position in the scene.
    at: usize,
    number: usize,
    verifier: Verifier,
    /// Where the part that is asked for begins; `None` where the whole is.
    from: Option<u64>,
    sent: u64,
    /// The fault has come to pass.
    struck: bool,
    /// The answer's head is out.
    answered: bool,
}

/// Body of an answer that is none.
const SHORT: u64 = 32;

impl Origin {
    pub(super) async fn start(scene: Arc<Scene>, endpoint: usize) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let connections: Arc<Mutex<Vec<Arc<Control>>>> = Arc::default();
        let open: Arc<AtomicUsize> = Arc::default();
        let (known, count) = (connections.clone(), open.clone());
        let task = tokio::spawn(async move {
            // They end with their endpoint.
            let mut serving = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (tap, control) = Tap::new(tcp);
                known.lock().unwrap_or_else(PoisonError::into_inner).push(control.clone());
                let counted = Counted::new(count.clone());
                let scene = scene.clone();
                serving.spawn(async move {
                    let _counted = counted;
                    tokio::select! {
                        () = connection(tap, &control, scene, endpoint) => {}
                        () = control.killed() => {}
                    }
                });
                while serving.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, connections, open, task: task.abort_handle() })
    }

    /// Closes the listener and resets what stands.
    pub(super) fn kill(&self) {
        for control in self.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            control.kill(Ending::Reset);
        }
        self.task.abort();
    }

    /// Connections that stand.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection that stands, until dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(tap: Tap, control: &Arc<Control>, scene: Arc<Scene>, endpoint: usize) {
    match scene.plan.endpoint {
        Wire::Http1 => http1(tap, control, &scene, endpoint).await,
        Wire::Http2 => http2(tap, control, scene, endpoint).await,
    }
}

async fn http1(tap: Tap, control: &Arc<Control>, scene: &Scene, endpoint: usize) {
    let (read, mut writer) = tokio::io::split(tap);
    let mut reader = Reader::new(read);
    loop {
        let head = match reader.head().await {
            Ok(Some(head)) => head,
            Ok(None) => return,
            Err(error) => return scene.tell(format_args!("e{endpoint}: no head: {error}")),
        };
        let body = head.framing().unwrap_or(Framing::Length(0));
        let field = |name: &str| head.field(name).map(str::to_owned);
        let method = head.first.split(' ').next().unwrap_or_default().to_owned();
        let exchange = Exchange::Http1(Http1 {
            reader: &mut reader,
            writer: &mut writer,
            body,
            chunked: false,
            control: control.clone(),
        });
        if !serve(exchange, field, method, scene, endpoint).await {
            // An unfinished message leaves nothing to go on with.
            return;
        }
    }
}

async fn http2(tap: Tap, control: &Arc<Control>, scene: Arc<Scene>, endpoint: usize) {
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .data_frame_budget(SMALL_FRAMES);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(tap).await else { return };
    let mut streams = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            // Polled again, to write what was put in.
            () = control.poked() => {
                let _ = futures_util::poll!(poll_fn(|cx| connection.poll_closed(cx)));
                continue;
            }
        };
        let Some(Ok((request, respond))) = accepted else { return };
        let (scene, control) = (scene.clone(), control.clone());
        streams.spawn(async move {
            let (parts, body) = request.into_parts();
            let field = |name: &str| {
                parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
            };
            let http2 = Http2 { body, respond, send: None, control };
            let exchange = Exchange::Http2(Box::new(http2));
            serve(exchange, field, parts.method.to_string(), &scene, endpoint).await;
        });
        while streams.try_join_next().is_some() {}
    }
}

/// Serves a try; true when the connection can go on.
async fn serve(
    exchange: Exchange<'_>,
    field: impl Fn(&str) -> Option<String>,
    method: String,
    scene: &Scene,
    endpoint: usize,
) -> bool {
    let index = field("x-request").and_then(|text| text.parse().ok());
    let Some(request) = index.and_then(|index| scene.request(index)) else {
        scene.tell(format_args!("e{endpoint}: a request that nobody sent"));
        return false;
    };
    let (at, number) = scene.begin(Attempt {
        request: request.index,
        number: 0,
        endpoint,
        key: field("idempotency-key"),
        method,
        received: 0,
        wrong: None,
        complete: false,
        refused: false,
        sent: 0,
        connection: exchange.control().clone(),
        stream: exchange.stream(),
    });
    let fault = request.tries.get(number).copied().unwrap_or(Fault::None);
    scene.tell(format_args!(
        "e{endpoint}: #{}.{number} begins on stream {}, meets {fault:?}",
        request.index,
        exchange.stream()
    ));
    let verifier = Verifier::new(Source::new(scene.plan.seed, request.index, None));
    let mut this = Try {
        scene,
        request,
        exchange,
        fault,
        at,
        number,
        verifier,
        from: asked_from(request, fault, &field),
        sent: 0,
        struck: false,
        answered: false,
    };
    let outcome = this.run().await;
    let (received, sent) = (this.verifier.received, this.sent);
    scene.tell(format_args!(
        "e{endpoint}: #{}.{number} ends, received {received}, sent {sent}: {outcome:?}",
        request.index
    ));
    if outcome.is_err() && matches!(this.exchange, Exchange::Http1(_)) {
        // Whatever it was, the connection is no use any more.
        this.exchange.control().kill(Ending::Close);
    }
    outcome.is_ok()
}

/// Where a request for the rest of a body has it begin, if that is of the version this try serves.
fn asked_from(
    request: &Request,
    fault: Fault,
    field: &impl Fn(&str) -> Option<String>,
) -> Option<u64> {
    let from = field("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()?;
    let same = field("if-range").is_some_and(|held| held == tag(fault));
    (request.tagged && same && from < request.down.size).then_some(from)
}

/// What a try serves under a tag.
fn version(fault: Fault) -> usize {
    usize::from(fault == Fault::OtherVersion)
}

fn tag(fault: Fault) -> String {
    format!("\"version-{}\"", version(fault))
}

impl Try<'_> {
    async fn run(&mut self) -> Result<(), Gone> {
        self.reach(At::Head).await?;
        if let Fault::Interims { count, status } = self.fault {
            for _ in 0..count {
                self.exchange.inform(status).await?;
            }
        }
        if let Fault::Early { status, at, read_on } = self.fault {
            return self.answer_early(status, at, read_on).await;
        }
        if self.request.direction == Direction::Echo && !self.answers_otherwise() {
            self.head().await?;
            while let Some(bytes) = self.read().await? {
                self.write(bytes).await?;
            }
            return self.end().await;
        }
        while self.read().await?.is_some() {}
        self.reach(At::Processed).await?;
        if let Fault::Unavailable { retry_after } = self.fault {
            let retry = retry_after.then(|| ("retry-after", "0".to_owned()));
            return self.short(503, retry).await;
        }
        self.head().await?;
        let mut body = self.answer_body();
        let from = self.from.unwrap_or(0);
        body.skip(from);
        let mut left = self.request.down.size - from;
        while left > 0 {
            let bytes = body.next(left.min(self.request.piece));
            left -= bytes.len() as u64;
            self.write(bytes).await?;
        }
        self.end().await
    }

    async fn end(&mut self) -> Result<(), Gone> {
        let size = self.request.down.size;
        self.reach(At::Download(size)).await?;
        self.exchange.end().await?;
        match self.fault {
            Fault::WrongLength(_) => Err("the length was wrong".into()),
            _ => Ok(()),
        }
    }

    fn answers_otherwise(&self) -> bool {
        matches!(self.fault, Fault::Unavailable { .. })
    }

    /// Which body the answer has; `None` where it is the request's.
    fn answer(&self) -> Option<usize> {
        let echo = self.request.direction == Direction::Echo && !self.answers_otherwise();
        let own = if self.request.tagged { version(self.fault) } else { self.number };
        (!echo).then_some(own)
    }

    fn answer_body(&self) -> Source {
        Source::new(self.scene.plan.seed, self.request.index, self.answer())
    }

    /// Says whose answer this is, and which.
    fn fields(&self, whole: u64) -> Vec<(&'static str, String)> {
        let mut fields =
            vec![("x-attempt", self.number.to_string()), ("x-whole", whole.to_string())];
        fields.extend(self.answer().map(|answer| ("x-answer", answer.to_string())));
        fields
    }

    async fn head(&mut self) -> Result<(), Gone> {
        self.reach(At::Answer).await?;
        let size = self.request.down.size;
        let (declared, whole) = match self.fault {
            Fault::WrongLength(by) => {
                let told = size.saturating_add_signed(by);
                (Some(told), told)
            }
            _ => (self.request.down.declared.then_some(size), size),
        };
        let mut fields = self.fields(whole);
        if self.request.tagged {
            fields.push(("etag", tag(self.fault)));
        }
        self.answered = true;
        let Some(from) = self.from else {
            return self.exchange.respond(200, declared, &fields).await;
        };
        fields.push(("content-range", format!("bytes {from}-{}/{whole}", size - 1)));
        let declared = declared.map(|whole| whole.saturating_sub(from));
        self.exchange.respond(206, declared, &fields).await
    }

    /// Passes a point of the try, where the fault may strike.
    async fn reach(&mut self, point: At) -> Result<(), Gone> {
        let (Fault::Break(at, _) | Fault::Stall(at, _)) = self.fault else { return Ok(()) };
        let here = match (at, point) {
            (At::Upload(at), At::Upload(now)) | (At::Download(at), At::Download(now)) => at <= now,
            (at, point) => at == point,
        };
        if !here || std::mem::replace(&mut self.struck, true) {
            return Ok(());
        }
        match self.fault {
            Fault::Stall(_, pause) => tokio::time::sleep(pause).await,
            Fault::Break(_, how) => {
                if self.exchange.break_off(how, !self.answered).await {
                    self.scene.note(self.at, |attempt| attempt.refused = true);
                }
                if !matches!(how, Break::GoAway { below: false, abrupt: false }) {
                    if !matches!(how, Break::Stream(_)) {
                        // Until the connection is gone.
                        self.exchange.control().gone().await;
                    }
                    return Err(format!("broke off by {how:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<Option<Bytes>, Gone> {
        let piece = self.exchange.read().await?;
        if let Some(bytes) = &piece {
            self.verifier.take(bytes);
            self.scene.pass(bytes.len());
        }
        let Verifier { received, wrong, .. } = self.verifier;
        self.scene.note(self.at, |attempt| {
            (attempt.received, attempt.wrong) = (received, wrong);
            attempt.complete |= piece.is_none();
        });
        if piece.is_some() {
            self.reach(At::Upload(received)).await?;
        }
        Ok(piece)
    }

    async fn write(&mut self, mut bytes: Bytes) -> Result<(), Gone> {
        let at = self.from.unwrap_or(0) + self.sent;
        if let Fault::Break(At::Download(until), _) | Fault::Stall(At::Download(until), _) =
            self.fault
            && (at + 1..at + bytes.len() as u64).contains(&until)
        {
            // The fault strikes at its byte, not before or after the piece.
            let first = bytes.split_to((until - at) as usize);
            self.send(first).await?;
        }
        self.send(bytes).await
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        self.reach(At::Download(self.from.unwrap_or(0) + self.sent)).await?;
        self.sent += bytes.len() as u64;
        let sent = self.sent;
        self.scene.note(self.at, |attempt| attempt.sent = sent);
        self.exchange.write(bytes).await
    }

    async fn answer_early(&mut self, status: u16, at: u64, read_on: bool) -> Result<(), Gone> {
        while self.verifier.received < at && self.read().await?.is_some() {}
        self.short(status, None).await?;
        if !read_on {
            self.exchange.want_no_more();
            return Err("wanted no more".into());
        }
        while self.read().await?.is_some() {}
        Ok(())
    }

    /// Answers with little.
    async fn short(&mut self, status: u16, more: Option<(&str, String)>) -> Result<(), Gone> {
        let mut fields = self.fields(SHORT);
        fields.extend(more);
        self.answered = true;
        self.exchange.respond(status, Some(SHORT), &fields).await?;
        let body = self.answer_body().next(SHORT);
        self.write(body).await?;
        self.exchange.end().await
    }
}
