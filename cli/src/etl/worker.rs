//! The worker: takes batches over HTTP/1.1, HTTP/2 and gRPC on one port and loads them.
//!
//! Knows nothing of proxies, health checks' authors or other workers; it shares
//! only the [`Store`] with them. Its [`Harness`] gives it a region: a distance,
//! a speed, and a switch that makes it slow.

mod archive;
mod harness;
mod serve;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body_util::BodyExt;
use hyper::body::Incoming;

pub use self::{
    harness::{Harness, Speed},
    serve::{serve, serve_harness},
};
use super::{
    batch::{Batch, BatchError, Delivery},
    rows::Table,
    store::{Store, StoreError},
    wire::{
        ARCHIVE_PREFIX, Deframer, FrameError, GRPC_PATH, GRPC_TYPE, INGEST_PREFIX, IngestReply,
        IngestRequest,
    },
};
use serve::Answer;

/// An upload of which no byte comes for this long is given up.
const STALL: Duration = Duration::from_secs(60);

/// What a worker is.
#[derive(Debug)]
pub struct Worker {
    name: String,
    region: String,
    store: Store,
    harness: Harness,
    counts: Counts,
}

/// What it has done so far.
#[derive(Debug, Default)]
struct Counts {
    batches: AtomicU64,
    rows: AtomicU64,
    bytes: AtomicU64,
    already: AtomicU64,
    failed: AtomicU64,
}

/// Why a request was not answered with an acknowledgement.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("no table {0:?}; there are lineitem and orders")]
    NoTable(String),
    #[error("no batch id: add ?batch=ID")]
    NoBatch,
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the upload broke off: {0}")]
    Broken(#[from] hyper::Error),
    #[error("no byte came for {} s", STALL.as_secs())]
    Stalled,
    #[error("the worker's own fault: {0}")]
    Inside(#[from] tokio::task::JoinError),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoTable(_) => StatusCode::NOT_FOUND,
            Self::NoBatch | Self::Frame(_) | Self::Broken(_) => StatusCode::BAD_REQUEST,
            Self::Stalled => StatusCode::REQUEST_TIMEOUT,
            Self::Batch(error) => match error {
                BatchError::Row { .. }
                | BatchError::TooLong { .. }
                | BatchError::NotText { .. }
                | BatchError::Store(StoreError::BadId(_)) => StatusCode::UNPROCESSABLE_ENTITY,
                BatchError::Conflict { .. } => StatusCode::CONFLICT,
                BatchError::Parquet(_) | BatchError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
            Self::Inside(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// gRPC status code.
    fn code(&self) -> u32 {
        match self.status() {
            StatusCode::NOT_FOUND => 5,
            StatusCode::REQUEST_TIMEOUT => 4,
            StatusCode::CONFLICT => 6,
            StatusCode::INTERNAL_SERVER_ERROR => 13,
            _ => 3,
        }
    }
}

impl Worker {
    /// A worker that has done nothing yet.
    pub fn new(name: String, region: String, store: Store, harness: Harness) -> Self {
        Self { name, region, store, harness, counts: Counts::default() }
    }

    /// Answers one request and says how well it is; every failure is an answer too.
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Answer> {
        self.harness.travel().await;
        let mut response = self.serve(request).await;
        let share = 1.0 / f64::from(self.harness.factor());
        // A load report (ORCA) as model servers make it.
        let report = format!("TEXT named_metrics.towpath.goodput_factor={share}");
        if let Ok(report) = HeaderValue::from_str(&report) {
            response.headers_mut().insert("endpoint-load-metrics", report);
        }
        response
    }

    async fn serve(&self, request: Request<Incoming>) -> Response<Answer> {
        let path = request.uri().path();
        match (request.method(), path) {
            (&Method::GET, "/healthz") => Answer::text(StatusCode::OK, "ok\n"),
            (&Method::POST, GRPC_PATH) => {
                let outcome = self.ingest_grpc(request).await;
                self.count(&outcome);
                grpc_answer(outcome)
            }
            (&Method::POST, path) if path.starts_with(INGEST_PREFIX) => {
                let outcome = self.ingest_http(request).await;
                self.count(&outcome);
                http_answer(outcome)
            }
            (&Method::PUT, path) if path.starts_with(ARCHIVE_PREFIX) => {
                http_answer(self.archive(request).await)
            }
            (_, path) if path == "/healthz" || path.starts_with(INGEST_PREFIX) => {
                let allowed = if path == "/healthz" { "GET" } else { "POST" };
                let mut response = Answer::text(StatusCode::METHOD_NOT_ALLOWED, "wrong method\n");
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
                response
            }
            _ => Answer::text(StatusCode::NOT_FOUND, "try POST /ingest/{table}?batch=ID\n"),
        }
    }

    async fn ingest_http(&self, request: Request<Incoming>) -> Result<IngestReply, Refusal> {
        let name = request.uri().path().trim_start_matches(INGEST_PREFIX);
        let table = Table::named(name).ok_or_else(|| Refusal::NoTable(name.to_owned()))?;
        let batch = parameter(request.uri().query(), "batch").ok_or(Refusal::NoBatch)?.to_owned();
        self.harness.begin().await;
        let mut intake = Intake::new(self, table);
        let mut body = request.into_body();
        while let Some(piece) = next_piece(&mut body).await? {
            intake.take(piece).await?;
        }
        intake.finish(batch).await
    }

    async fn ingest_grpc(&self, request: Request<Incoming>) -> Result<IngestReply, Refusal> {
        let mut body = request.into_body();
        let mut deframer = Deframer::default();
        let mut begun: Option<(Intake<'_>, String)> = None;
        while let Some(piece) = next_piece(&mut body).await? {
            deframer.push(&piece);
            while let Some(message) = deframer.next_message::<IngestRequest>()? {
                let (mut intake, batch) = match begun.take() {
                    Some(begun) => begun,
                    None => {
                        let table = Table::named(&message.table)
                            .ok_or_else(|| Refusal::NoTable(message.table.clone()))?;
                        self.harness.begin().await;
                        (Intake::new(self, table), message.batch)
                    }
                };
                intake.take(message.rows).await?;
                begun = Some((intake, batch));
            }
        }
        deframer.end()?;
        let (intake, batch) = begun.ok_or(Refusal::NoBatch)?;
        intake.finish(batch).await
    }

    fn count(&self, outcome: &Result<IngestReply, Refusal>) {
        match outcome {
            Ok(reply) => {
                self.counts.batches.fetch_add(1, Relaxed);
                self.counts.rows.fetch_add(reply.rows, Relaxed);
                self.counts.already.fetch_add(u64::from(reply.already), Relaxed);
            }
            Err(_) => {
                self.counts.failed.fetch_add(1, Relaxed);
            }
        }
    }

    /// What the harness port tells.
    fn stats(&self) -> serde_json::Value {
        serde_json::json!({
            "worker": self.name,
            "region": self.region,
            "batches": self.counts.batches.load(Relaxed),
            "rows": self.counts.rows.load(Relaxed),
            "bytes": self.counts.bytes.load(Relaxed),
            "already": self.counts.already.load(Relaxed),
            "failed": self.counts.failed.load(Relaxed),
            "slow_factor": self.harness.factor(),
        })
    }
}

/// A batch on its way in, at the worker's pace.
struct Intake<'a> {
    worker: &'a Worker,
    batch: Batch,
}

impl<'a> Intake<'a> {
    fn new(worker: &'a Worker, table: Table) -> Self {
        Self { worker, batch: Batch::new(&worker.store, table) }
    }

    async fn take(&mut self, piece: Bytes) -> Result<(), Refusal> {
        self.worker.counts.bytes.fetch_add(piece.len() as u64, Relaxed);
        self.worker.harness.work(piece.len()).await;
        self.batch.push(&piece)?;
        if self.batch.is_full() {
            let empty = Batch::new(&self.worker.store, Table::LineItem);
            let mut batch = std::mem::replace(&mut self.batch, empty);
            let (batch, flushed) = tokio::task::spawn_blocking(move || {
                let flushed = batch.flush();
                (batch, flushed)
            })
            .await?;
            self.batch = batch;
            flushed?;
        }
        Ok(())
    }

    async fn finish(self, id: String) -> Result<IngestReply, Refusal> {
        let Self { worker, batch } = self;
        let name = id.clone();
        let Delivery { receipt, already } =
            tokio::task::spawn_blocking(move || batch.finish(&name)).await??;
        Ok(IngestReply {
            batch: id,
            rows: receipt.rows,
            digest: receipt.digest.to_string(),
            already,
            worker: worker.name.clone(),
            region: worker.region.clone(),
        })
    }
}

async fn next_piece(body: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
    loop {
        let frame =
            tokio::time::timeout(STALL, body.frame()).await.map_err(|_| Refusal::Stalled)?;
        match frame.transpose()? {
            None => return Ok(None),
            Some(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// The value of a query parameter, as it stands: batch ids need no escapes.
fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?.split('&').filter_map(|pair| pair.split_once('=')).find(|(n, _)| *n == name).map(|p| p.1)
}

fn http_answer(outcome: Result<impl serde::Serialize, Refusal>) -> Response<Answer> {
    match outcome {
        Ok(reply) => {
            let json = serde_json::to_vec(&reply).unwrap_or_default();
            let mut response = Answer::new(StatusCode::OK, json.into(), None);
            let json_type = HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, json_type);
            response
        }
        Err(refusal) => Answer::text(refusal.status(), &format!("{refusal}\n")),
    }
}

fn grpc_answer(outcome: Result<IngestReply, Refusal>) -> Response<Answer> {
    let mut status = HeaderMap::new();
    let mut response = match outcome {
        Ok(reply) => {
            status.insert("grpc-status", HeaderValue::from_static("0"));
            Answer::new(StatusCode::OK, super::wire::frame(&reply), Some(status))
        }
        Err(refusal) => {
            status.insert("grpc-status", HeaderValue::from(refusal.code()));
            // gRPC wants the message percent-encoded; what could need it is replaced
            let message: String = refusal
                .to_string()
                .chars()
                .map(|c| if (' '..='~').contains(&c) && c != '%' { c } else { '?' })
                .collect();
            if let Ok(message) = HeaderValue::try_from(message) {
                status.insert("grpc-message", message);
            }
            let mut response = Answer::new(StatusCode::OK, Bytes::new(), None);
            response.headers_mut().extend(status);
            response
        }
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(GRPC_TYPE));
    response
}

#[cfg(test)]
mod tests;
