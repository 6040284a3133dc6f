//! A server behind the mesh that says who it is.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{sync::watch, task::JoinHandle};
use towpath_xds::orca::LoadReport;

/// Answers every HTTP/1.1 and HTTP/2 request with its own name, method and
/// path, and every gRPC request with an empty message and status 0. The
/// header `x-origin` holds its name.
#[derive(Debug)]
pub struct Origin {
    /// Where it listens.
    pub address: SocketAddr,
    served: Arc<AtomicU64>,
    report: watch::Sender<Report>,
    task: JoinHandle<()>,
}

/// What it reports of its load (ORCA), and to whom.
#[derive(Clone, Debug, Default)]
enum Report {
    #[default]
    Nothing,
    /// As vLLM and Triton do.
    ToWhoAsks(HeaderValue),
    /// As gRPC's servers do.
    ToAll(HeaderValue),
    /// On a stream of its own.
    OutOfBand(LoadReport),
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The method that streams load reports; its calls are not counted.
const STREAM_CORE_METRICS: &str = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";

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
        let (report, reports) = watch::channel(Report::Nothing);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let (count, reports) = (count.clone(), reports.clone());
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    if request.uri().path() != STREAM_CORE_METRICS {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    answer(name, reports.clone(), request)
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

    /// Reports this of its load from now on to those who ask, as a load report's text.
    ///
    /// # Panics
    /// When it is no value of a header.
    pub fn reports(&self, text: &str) {
        let value = HeaderValue::from_str(&format!("TEXT {text}")).expect("a header's value");
        self.report.send_replace(Report::ToWhoAsks(value));
    }

    /// Reports this of its load from now on, asked or not, as gRPC does: in the trailers of its calls,
    /// and in the heads of other responses.
    ///
    /// # Panics
    /// Never: base64 is a header's value.
    pub fn reports_to_all(&self, report: &LoadReport) {
        let value = BASE64_STANDARD.encode(report.to_bytes());
        let value = HeaderValue::from_str(&value).expect("a header's value");
        self.report.send_replace(Report::ToAll(value));
    }

    /// Reports this of its load from now on to those who hold a stream of it, and nobody else.
    pub fn reports_out_of_band(&self, report: LoadReport) {
        self.report.send_replace(Report::OutOfBand(report));
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

impl Report {
    /// The field that goes with the answer to a request with these headers.
    fn answering(&self, headers: &HeaderMap) -> Option<(HeaderName, HeaderValue)> {
        let field = HeaderName::from_static;
        match self {
            Self::ToWhoAsks(report) if headers.contains_key("endpoint-load-metrics-format") => {
                Some((field("endpoint-load-metrics"), report.clone()))
            }
            Self::ToAll(report) => Some((field("endpoint-load-metrics-bin"), report.clone())),
            Self::ToWhoAsks(_) | Self::OutOfBand(_) | Self::Nothing => None,
        }
    }
}

async fn answer(
    name: &'static str,
    reports: watch::Receiver<Report>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let received = body.collect().await.map_or(0, |b| b.to_bytes().len());
    let report = reports.borrow().answering(&head.headers);
    let content = head.headers.get(CONTENT_TYPE);
    let grpc = content.is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    let mut response = if head.uri.path() == STREAM_CORE_METRICS {
        Response::new(each_report(reports))
    } else if grpc {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        trailers.extend(report);
        let frames = [Ok(Frame::data(message(&[]))), Ok(Frame::trailers(trailers))];
        Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync())
    } else {
        let text = format!("{name} {} {} {received}", head.method, head.uri.path());
        let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
        response.headers_mut().extend(report);
        response
    };
    if grpc {
        let content = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, content);
    }
    response.headers_mut().insert("x-origin", HeaderValue::from_static(name));
    Ok(response)
}

/// What it reports out of band, now and whenever that changes.
fn each_report(mut reports: watch::Receiver<Report>) -> Body {
    reports.mark_changed();
    let frames = stream::unfold(reports, async |mut reports| {
        loop {
            reports.changed().await.ok()?;
            let report = reports.borrow_and_update().clone();
            if let Report::OutOfBand(report) = report {
                return Some((Ok(Frame::data(message(&report.to_bytes()))), reports));
            }
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

/// A message as gRPC frames it.
fn message(bytes: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(u32::try_from(bytes.len()).expect("a small message"));
    message.put_slice(bytes);
    message.freeze()
}
