//! Endpoints that do with each try what the plan says, and write down what they saw.

mod serve;
mod upload;

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

use self::serve::{Asked, serve};
use super::{
    SMALL_FRAMES,
    exchange::{Exchange, Http1, Http2},
    h1::{Framing, Reader},
    plan::Wire,
    scene::Scene,
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
        let mut words = head.first.split(' ').map(str::to_owned);
        let (method, path) = (words.next(), words.next());
        let asked = Asked {
            method: method.unwrap_or_default(),
            path: path.unwrap_or_default(),
            field: &field,
        };
        let exchange = Exchange::Http1(Http1 {
            reader: &mut reader,
            writer: &mut writer,
            body,
            chunked: false,
            control: control.clone(),
        });
        if !serve(exchange, asked, scene, endpoint).await {
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
            let http2 = Http2 { body, respond, send: None, trailers: None, control };
            let exchange = Exchange::Http2(Box::new(http2));
            let asked = Asked {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                field: &field,
            };
            serve(exchange, asked, &scene, endpoint).await;
        });
        while streams.try_join_next().is_some() {}
    }
}
