//! Load reports of clients (LRS), served beside ADS: asks each client once, hands on what it tells.
//! As there, no task and no channel: the response stream is the loop.

use std::{net::SocketAddr, pin::Pin, sync::Arc};

use envoy_types::pb::envoy::{
    config::core::v3::Node as PbNode,
    service::load_stats::v3::{
        LoadStatsRequest, LoadStatsResponse,
        load_reporting_service_server::{LoadReportingService, LoadReportingServiceServer},
    },
};
use futures_util::stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};
use towpath_policies::model::Node;
use tracing::debug;

use super::StreamId;
use crate::{
    codec::loads,
    load::{ServiceLoad, Terms},
    wire,
};

/// Whom a server tells of the load that its clients make. Called from the streams' tasks: must not
/// block.
pub trait Loads: Send + Sync + 'static {
    /// A client offers reports: what it is to tell, `None` to turn it away. `all`: it can be asked
    /// for all of its services without naming them.
    fn offered(&self, stream: StreamId, node: &Node, all: bool) -> Option<Terms>;

    /// A client tells what it did since it told something last. What is not in it is nothing.
    fn told(&self, stream: StreamId, loads: Vec<ServiceLoad>);

    /// The stream ended; what the client told counts no more. Only called for those not turned away.
    fn ended(&self, stream: StreamId);
}

/// The gRPC service.
pub(super) struct LoadServer {
    shared: Arc<Shared>,
}

struct Shared {
    loads: Arc<dyn Loads>,
    ids: Arc<dyn Fn() -> StreamId + Send + Sync>,
    closing: watch::Receiver<bool>,
}

impl LoadServer {
    pub(super) fn service(
        loads: Arc<dyn Loads>,
        ids: Arc<dyn Fn() -> StreamId + Send + Sync>,
        closing: watch::Receiver<bool>,
    ) -> LoadReportingServiceServer<Self> {
        let shared = Arc::new(Shared { loads, ids, closing });
        LoadReportingServiceServer::new(Self { shared }).max_decoding_message_size(MAX_REPORT_BYTES)
    }
}

#[tonic::async_trait]
impl LoadReportingService for LoadServer {
    type StreamLoadStatsStream = Outbound;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Outbound>, Status> {
        let session = Session {
            shared: self.shared.clone(),
            closing: self.shared.closing.clone(),
            peer: request.remote_addr(),
            inbound: request.into_inner(),
            stream: None,
            ended: false,
        };
        let responses = stream::unfold(session, |mut session| async move {
            session.next().await.map(|item| (item, session))
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

type Outbound = Pin<Box<dyn futures_util::Stream<Item = Result<LoadStatsResponse, Status>> + Send>>;

struct Session {
    shared: Arc<Shared>,
    closing: watch::Receiver<bool>,
    peer: Option<SocketAddr>,
    inbound: Streaming<LoadStatsRequest>,
    /// Known from the first request on.
    stream: Option<StreamId>,
    ended: bool,
}

impl Session {
    /// The next response, or the end of the stream.
    async fn next(&mut self) -> Option<Result<LoadStatsResponse, Status>> {
        while !self.ended {
            // Both are cancel-safe: `message` keeps partial frames in the decoder.
            let message = tokio::select! {
                message = self.inbound.message() => message,
                _ = self.closing.wait_for(|closing| *closing) => {
                    Err(Status::unavailable("the control plane is shutting down"))
                }
            };
            match message {
                Ok(Some(request)) => match self.take(request) {
                    Ok(None) => {}
                    Ok(Some(terms)) => return Some(Ok(loads::encode_terms(&terms))),
                    Err(status) => {
                        self.ended = true;
                        return Some(Err(status));
                    }
                },
                Ok(None) => self.ended = true,
                Err(status) => {
                    debug!(peer = ?self.peer, %status, "stream of load reports ended");
                    self.ended = true;
                    return Some(Err(status));
                }
            }
        }
        None
    }

    /// What the client is to be asked, after its first request.
    fn take(&mut self, request: LoadStatsRequest) -> Result<Option<Terms>, Status> {
        let told = loads::decode_report(request.cluster_stats);
        if let Some(stream) = self.stream {
            self.shared.loads.told(stream, told);
            return Ok(None);
        }
        let terms = self.offer(request.node.unwrap_or_default())?;
        Ok(Some(terms))
    }

    fn offer(&mut self, node: PbNode) -> Result<Terms, Status> {
        let all = wire::reports_all(&node);
        let node = wire::node_from_pb(node);
        if node.id.is_empty() {
            return Err(Status::invalid_argument("the first request must carry node.id"));
        }
        let stream = (self.shared.ids)();
        let terms = self.shared.loads.offered(stream, &node, all);
        let terms = terms.ok_or_else(|| Status::resource_exhausted("too many report already"))?;
        self.stream = Some(stream);
        Ok(terms)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(stream) = self.stream {
            self.shared.loads.ended(stream);
        }
    }
}

/// Room for 400 bytes of each of 40,000 endpoints, which is what our clients name.
const MAX_REPORT_BYTES: usize = 16 << 20;
