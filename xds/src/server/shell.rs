//! The gRPC service around [`Stream`]. No task, no channel: the response
//! stream itself is the loop, and is only asked for a response when HTTP/2
//! has room for one.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use envoy_types::pb::envoy::{
    config::core::v3::Node as PbNode,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
};
use futures_util::stream;
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};
use towpath_policies::model::Snapshot;
use tracing::{debug, warn};

use super::{Cache, Event, Loads, Stream, StreamEvent, StreamId, Views, loads::LoadServer};
use crate::{
    Flavour,
    wire::{self, MAX_MESSAGE_BYTES, Malformed},
};

/// Serves snapshots to any xDS v3 client by ADS, delta and state of the world.
pub struct AdsServer {
    shared: Arc<Shared>,
    loads: Option<Arc<dyn Loads>>,
}

struct Shared {
    views: Arc<dyn Views>,
    cache: Arc<Cache>,
    streams: AtomicU64,
    closing: watch::Sender<bool>,
}

impl AdsServer {
    /// A server of these views.
    pub fn new(views: Arc<dyn Views>) -> Self {
        let shared = Shared {
            views,
            cache: Arc::default(),
            streams: AtomicU64::new(0),
            closing: watch::Sender::new(false),
        };
        Self { shared: Arc::new(shared), loads: None }
    }

    /// Takes load reports of clients too (LRS), at the same address.
    #[must_use]
    pub fn with_loads(mut self, loads: Arc<dyn Loads>) -> Self {
        self.loads = Some(loads);
        self
    }

    /// Serves on `listener` until `shutdown` completes; then ends every
    /// stream and returns. Clients reconnect elsewhere, or later.
    ///
    /// # Errors
    /// When the transport fails for good.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let shared = self.shared.clone();
        let stop = async move {
            shutdown.await;
            shared.closing.send_replace(true);
        };
        let shared = self.shared.clone();
        let ids = Arc::new(move || StreamId(shared.streams.fetch_add(1, Ordering::Relaxed)));
        let closing = self.shared.closing.subscribe();
        let loads = self.loads.clone().map(|loads| LoadServer::service(loads, ids, closing));
        Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .add_service(self.into_service())
            .add_optional_service(loads)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop)
            .await
    }

    /// The bare service, to be served beside others.
    pub fn into_service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn stream<W: Wire>(&self, request: Request<Streaming<W::Request>>) -> Outbound<W::Response> {
        let session = Session::<W> {
            shared: self.shared.clone(),
            peer: request.remote_addr(),
            closing: self.shared.closing.subscribe(),
            inbound: request.into_inner(),
            machine: Stream::new(W::FLAVOUR, self.shared.cache.clone()),
            client: None,
            ended: false,
        };
        Box::pin(stream::unfold(session, |mut session| async move {
            session.next().await.map(|item| (item, session))
        }))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsServer {
    type StreamAggregatedResourcesStream = Outbound<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Outbound<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(Response::new(self.stream::<World>(request)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(Response::new(self.stream::<Delta>(request)))
    }
}

type Outbound<T> = Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;

/// One protocol variant's messages.
trait Wire: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    const FLAVOUR: Flavour;
    fn read(request: Self::Request) -> (Option<PbNode>, Result<wire::Request, Malformed>);
    fn write(response: wire::Response) -> Self::Response;
}

struct Delta;
struct World;

impl Wire for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    const FLAVOUR: Flavour = Flavour::Delta;

    fn read(mut request: Self::Request) -> (Option<PbNode>, Result<wire::Request, Malformed>) {
        (request.node.take(), wire::Request::from_delta(request))
    }

    fn write(response: wire::Response) -> Self::Response {
        response.into_delta()
    }
}

impl Wire for World {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    const FLAVOUR: Flavour = Flavour::StateOfTheWorld;

    fn read(mut request: Self::Request) -> (Option<PbNode>, Result<wire::Request, Malformed>) {
        (request.node.take(), wire::Request::from_world(request))
    }

    fn write(response: wire::Response) -> Self::Response {
        response.into_world()
    }
}

struct Session<W: Wire> {
    shared: Arc<Shared>,
    peer: Option<SocketAddr>,
    closing: watch::Receiver<bool>,
    inbound: Streaming<W::Request>,
    machine: Stream,
    /// Known from the first request on.
    client: Option<Client>,
    ended: bool,
}

struct Client {
    stream: StreamId,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// What woke a session.
enum Wake<R> {
    Request(R),
    Snapshot,
    End(Option<Status>),
}

impl<W: Wire> Session<W> {
    /// The next response, or the end of the stream.
    async fn next(&mut self) -> Option<Result<W::Response, Status>> {
        while !self.ended {
            if let Some(response) = self.machine.outgoing() {
                return Some(Ok(W::write(response)));
            }
            self.report_sync();
            match self.wake().await {
                Wake::Request(request) => {
                    if let Err(status) = self.take(request) {
                        self.ended = true;
                        return Some(Err(status));
                    }
                }
                Wake::Snapshot => self.refresh(),
                Wake::End(status) => {
                    self.ended = true;
                    return status.map(Err);
                }
            }
        }
        None
    }

    async fn wake(&mut self) -> Wake<W::Request> {
        let changed = async {
            match &mut self.client {
                Some(client) => client.snapshots.changed().await,
                None => std::future::pending().await,
            }
        };
        // All three are cancel-safe: `message` keeps partial frames in the
        // decoder, the others are watches.
        tokio::select! {
            message = self.inbound.message() => match message {
                Ok(Some(request)) => Wake::Request(request),
                Ok(None) => Wake::End(None),
                Err(status) => {
                    debug!(peer = ?self.peer, %status, "ADS stream broke");
                    Wake::End(None)
                }
            },
            changed = changed => match changed {
                Ok(()) => Wake::Snapshot,
                Err(_) => Wake::End(Some(Status::unavailable("no snapshots for this node any more"))),
            },
            _ = self.closing.wait_for(|closing| *closing) => {
                Wake::End(Some(Status::unavailable("the control plane is shutting down")))
            }
        }
    }

    fn take(&mut self, request: W::Request) -> Result<(), Status> {
        let (node, request) = W::read(request);
        if self.client.is_none() {
            self.connect(node.unwrap_or_default())?;
        }
        let request = match request {
            Ok(request) => request,
            // A client may ask for types that are not served; it is not
            // answered, as it would not be for a name that does not exist.
            Err(Malformed::UnknownType(url)) => {
                debug!(peer = ?self.peer, url, "request for a resource type that is not served");
                return Ok(());
            }
            Err(error) => return Err(refuse(&error)),
        };
        if let Some(event) = self.machine.handle(request).map_err(|e| refuse(&e))? {
            self.report(event);
        }
        Ok(())
    }

    fn connect(&mut self, node: PbNode) -> Result<(), Status> {
        self.machine.set_keeps_endpoints(wire::keeps_endpoints(&node));
        self.machine.set_opens_listeners(wire::opens_listeners(&node));
        let node = wire::node_from_pb(node);
        if node.id.is_empty() {
            return Err(Status::invalid_argument(
                "the first request must carry node.id: the name policies select this proxy by",
            ));
        }
        let stream = StreamId(self.shared.streams.fetch_add(1, Ordering::Relaxed));
        let snapshots = self.shared.views.watch(&node);
        self.client = Some(Client { stream, snapshots });
        let (peer, flavour) = (self.peer, W::FLAVOUR);
        self.shared.views.observe(StreamEvent::Connected { stream, node, peer, flavour });
        self.refresh();
        Ok(())
    }

    fn refresh(&mut self) {
        if let Some(client) = &mut self.client {
            let snapshot = client.snapshots.borrow_and_update().clone();
            self.machine.update(&snapshot);
        }
    }

    fn report(&self, event: Event) {
        let Some(Client { stream, .. }) = self.client else { return };
        self.shared.views.observe(match event {
            Event::Ack { kind, version } => StreamEvent::Ack { stream, kind, version },
            Event::Nack { kind, version, rejection } => {
                warn!(peer = ?self.peer, %kind, version, reason = %rejection, "a client rejected configuration");
                let (message, resources) = (rejection.message, rejection.resources);
                StreamEvent::Nack { stream, kind, version, resources, message }
            }
        });
    }

    fn report_sync(&mut self) {
        if let Some(Client { stream, .. }) = self.client
            && let Some(version) = self.machine.newly_synced()
        {
            let sockets = self.machine.opens_sockets();
            self.shared.views.observe(StreamEvent::Synced { stream, version, sockets });
        }
    }
}

impl<W: Wire> Drop for Session<W> {
    fn drop(&mut self) {
        if let Some(Client { stream, .. }) = self.client {
            self.shared.views.observe(StreamEvent::Disconnected { stream });
        }
    }
}

fn refuse(error: &Malformed) -> Status {
    Status::resource_exhausted(error.to_string())
}

/// A silent client is asked for a sign of life this often …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// … and given up after this.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests are small; a client that sends faster than it is read is slowed down here.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
