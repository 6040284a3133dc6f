//! A server behind the mesh that says who it is.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::task::JoinHandle;

/// Answers every HTTP/1.1 and HTTP/2 request with its own name, method and
/// path, and every gRPC request with an empty message and status 0. The
/// header `x-origin` holds its name.
#[derive(Debug)]
pub struct Origin {
    /// Where it listens.
    pub address: SocketAddr,
    served: Arc<AtomicU64>,
    report: Report,
    task: JoinHandle<()>,
}

/// What it reports of its load (ORCA) to those who ask.
type Report = Arc<Mutex<Option<HeaderValue>>>;

impl Origin {
    /// Starts one on a free port.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn start(name: &'static str) -> Self {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = socket.local_addr().expect("a bound socket has an address");
        let served = Arc::new(AtomicU64::new(0));
        let count = served.clone();
        let report = Report::default();
        let says = report.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let (count, says) = (count.clone(), says.clone());
                let service = hyper::service::service_fn(move |request| {
                    count.fetch_add(1, Ordering::Relaxed);
                    let report = says.lock().expect("not poisoned").clone();
                    answer(name, report, request)
                });
                tokio::spawn(async move {
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, served, report, task }
    }

    /// Reports this of its load from now on, as a load report's text.
    ///
    /// # Panics
    /// When it is no value of a header.
    pub fn reports(&self, text: &str) {
        let report = HeaderValue::from_str(&format!("TEXT {text}")).expect("a header's value");
        *self.report.lock().expect("not poisoned") = Some(report);
    }

    /// Requests so far.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    name: &'static str,
    report: Option<HeaderValue>,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let (head, body) = request.into_parts();
    let received = body.collect().await.map_or(0, |b| b.to_bytes().len());
    let grpc = head
        .headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    let mut response = if grpc {
        let message = Frame::data(Bytes::from_static(&[0, 0, 0, 0, 0]));
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let frames = [Ok(message), Ok(Frame::trailers(trailers))];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let mut response = Response::new(BodyExt::boxed(body));
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    } else {
        let text = format!("{name} {} {} {received}", head.method, head.uri.path());
        Response::new(BodyExt::boxed(Full::new(Bytes::from(text))))
    };
    response.headers_mut().insert("x-origin", HeaderValue::from_static(name));
    let asked = head.headers.contains_key("endpoint-load-metrics-format");
    if let Some(report) = report.filter(|_| asked) {
        response.headers_mut().insert("endpoint-load-metrics", report);
    }
    Ok(response)
}
