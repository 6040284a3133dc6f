//! The gRPC services around the translation. As for Envoy, no task and no queue per stream: the response stream
//! is the loop, and is only asked for a message when HTTP/2 has room for one. So a slow client gets the newest.

use std::{
    future::Future,
    hash::{DefaultHasher, Hasher},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use linkerd2_proxy_api::{
    destination::{
        DestinationProfile, GetDestination, Update,
        destination_server::{Destination, DestinationServer},
    },
    outbound::{
        OutboundPolicy, TrafficSpec,
        outbound_policies_server::{OutboundPolicies, OutboundPoliciesServer},
        traffic_spec,
    },
};
use prost::Message;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport};
use towpath_policies::model::{EndpointSet, Snapshot};

use crate::{
    endpoints::Listing,
    policy::policy,
    profile::profile,
    target::{Malformed, Target},
    world::{Found, World},
};

/// Serves snapshots of the whole mesh to Linkerd proxies.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    worlds: watch::Sender<Arc<World>>,
    streams: Arc<Semaphore>,
    most_streams: usize,
    closing: watch::Sender<bool>,
}

impl Server {
    /// Most streams at a time, of all clients.
    pub const MOST_STREAMS: usize = 20_000;
    /// Most of one connection; a proxy has three for each destination that it talks to.
    pub const MOST_STREAMS_OF_ONE: u32 = 1_000;

    /// A server of these snapshots. One whose `version` is empty means "not ready yet": nothing is told.
    pub fn new(snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self::bounded(snapshots, Self::MOST_STREAMS)
    }

    fn bounded(snapshots: watch::Receiver<Arc<Snapshot>>, most_streams: usize) -> Self {
        let shared = Shared {
            snapshots,
            worlds: watch::Sender::default(),
            streams: Arc::new(Semaphore::new(most_streams)),
            most_streams,
            closing: watch::Sender::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Serves on `listener` until `shutdown` completes; then ends every stream and returns.
    ///
    /// # Errors
    /// When the transport fails for good.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), transport::Error> {
        let shared = self.shared.clone();
        let stop = async move {
            shutdown.await;
            shared.closing.send_replace(true);
        };
        let serve = transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .tcp_nodelay(true)
            .max_concurrent_streams(Some(Self::MOST_STREAMS_OF_ONE))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .add_service(
                DestinationServer::new(self.clone()).max_decoding_message_size(LARGEST_REQUEST),
            )
            .add_service(
                OutboundPoliciesServer::new(self.clone())
                    .max_decoding_message_size(LARGEST_REQUEST),
            )
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop);
        tokio::select! {
            served = serve => served,
            never = self.shared.follow() => match never {},
        }
    }

    /// Streams that are open.
    pub fn streams(&self) -> usize {
        self.shared.most_streams - self.shared.streams.available_permits()
    }

    /// A stream of what `teller` tells. What it says at once decides how the call is answered.
    async fn stream<T: Tell>(&self, teller: T) -> Result<Response<Outbound<T::Message>>, Status> {
        let permit = self.shared.streams.clone().try_acquire_owned();
        let permit = permit.map_err(|_| {
            tracing::error!("turned away: too many streams of Linkerd proxies");
            Status::resource_exhausted("too many streams")
        })?;
        let mut session = Session {
            worlds: self.shared.worlds.subscribe(),
            closing: self.shared.closing.subscribe(),
            teller,
            ended: false,
            _permit: permit,
        };
        let first = session.next().await.transpose()?;
        let rest = stream::unfold(session, |mut session| async move {
            session.next().await.map(|item| (item, session))
        });
        Ok(Response::new(Box::pin(stream::iter(first.map(Ok)).chain(rest))))
    }
}

impl Shared {
    /// Makes a world of each snapshot, once for all streams.
    async fn follow(&self) -> std::convert::Infallible {
        let mut snapshots = self.snapshots.clone();
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            let next = self.worlds.borrow().then(snapshot);
            self.worlds.send_replace(Arc::new(next));
            if snapshots.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

type Outbound<T> = Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Destination for Server {
    type GetStream = Outbound<Update>;
    type GetProfileStream = Outbound<DestinationProfile>;

    async fn get(
        &self,
        request: Request<GetDestination>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let target = read_path(&request)?;
        self.stream(Listings { target, listing: Listing::default() }).await
    }

    async fn get_profile(
        &self,
        request: Request<GetDestination>,
    ) -> Result<Response<Self::GetProfileStream>, Status> {
        let target = read_path(&request)?;
        self.stream(Profiles(News::of(target))).await
    }
}

#[tonic::async_trait]
impl OutboundPolicies for Server {
    type WatchStream = Outbound<OutboundPolicy>;

    async fn get(&self, request: Request<TrafficSpec>) -> Result<Response<OutboundPolicy>, Status> {
        let mut policies = Policies(News::of(read_spec(&request)?));
        let world = self.shared.worlds.borrow().clone();
        let policy = policies.next(&world);
        policy.unwrap_or_else(|| Err(Status::unavailable("no policies yet"))).map(Response::new)
    }

    async fn watch(
        &self,
        request: Request<TrafficSpec>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let target = read_spec(&request)?;
        self.stream(Policies(News::of(target))).await
    }
}

fn read_path(request: &Request<GetDestination>) -> Result<Target, Status> {
    request.get_ref().path.parse().map_err(|why: Malformed| {
        tracing::debug!(peer = ?request.remote_addr(), %why, "a Linkerd proxy asks for what cannot be");
        Status::invalid_argument(format!("path: {why}"))
    })
}

fn read_spec(request: &Request<TrafficSpec>) -> Result<Target, Status> {
    let target = match &request.get_ref().target {
        Some(traffic_spec::Target::Addr(address)) => Target::try_from(*address),
        Some(traffic_spec::Target::Authority(authority)) => authority.parse(),
        None => return Err(Status::invalid_argument("target: is missing")),
    };
    target.map_err(|why| {
        tracing::debug!(peer = ?request.remote_addr(), %why, "a Linkerd proxy asks for what cannot be");
        Status::invalid_argument(format!("target: {why}"))
    })
}

struct Session<T> {
    worlds: watch::Receiver<Arc<World>>,
    closing: watch::Receiver<bool>,
    teller: T,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl<T: Tell> Session<T> {
    /// The next message, or the end of the stream.
    async fn next(&mut self) -> Option<Result<T::Message, Status>> {
        while !self.ended {
            let world = self.worlds.borrow_and_update().clone();
            if let Some(message) = self.teller.next(&world) {
                self.ended = message.is_err();
                return Some(message);
            }
            drop(world);
            // Both are watches, which are cancel-safe. The sender of worlds lives as long as that of `closing`.
            tokio::select! {
                changed = self.worlds.changed() => self.ended = changed.is_err(),
                _ = self.closing.wait_for(|closing| *closing) => {
                    self.ended = true;
                    return Some(Err(Status::unavailable("the control plane is shutting down")));
                }
            }
        }
        None
    }
}

/// One kind of stream.
trait Tell: Send + 'static {
    type Message: Send + 'static;
    /// What is to be told next; `None` until the world is another. Nothing comes after an error.
    fn next(&mut self, world: &World) -> Option<Result<Self::Message, Status>>;
}

struct Listings {
    target: Target,
    listing: Listing,
}

impl Tell for Listings {
    type Message = Update;

    fn next(&mut self, world: &World) -> Option<Result<Update, Status>> {
        self.listing.next(world, &self.target).map(Ok)
    }
}

struct Profiles(News);

impl Tell for Profiles {
    type Message = DestinationProfile;

    fn next(&mut self, world: &World) -> Option<Result<DestinationProfile, Status>> {
        if !self.0.may_have_changed(world) {
            return None;
        }
        let profile = profile(world, &self.0.target);
        self.0.is_news(&profile.encode_to_vec()).then_some(Ok(profile))
    }
}

struct Policies(News);

impl Tell for Policies {
    type Message = OutboundPolicy;

    fn next(&mut self, world: &World) -> Option<Result<OutboundPolicy, Status>> {
        if !self.0.may_have_changed(world) {
            return None;
        }
        let Some(policy) = policy(world, &self.0.target) else {
            return Some(Err(Status::not_found("no policy is about this destination")));
        };
        let bytes = policy.encode_to_vec();
        if bytes.len() > LARGEST_POLICY {
            let name = policy.metadata;
            tracing::error!(
                ?name,
                bytes = bytes.len(),
                "the routes are too many for a Linkerd proxy"
            );
            let why = "the routes of this destination come to more than 4 MiB";
            return Some(Err(Status::resource_exhausted(why)));
        }
        self.0.is_news(&bytes).then_some(Ok(policy))
    }
}

/// What a stream knows that tells the whole of something each time.
struct News {
    target: Target,
    seen: Option<(u64, Option<Arc<EndpointSet>>)>,
    /// A digest of what was sent last: the message itself may be large.
    sent: Option<u64>,
}

impl News {
    const fn of(target: Target) -> Self {
        Self { target, seen: None, sent: None }
    }

    /// Whether anything is different of what the target's message is made of.
    fn may_have_changed(&mut self, world: &World) -> bool {
        if !world.is_ready() {
            return false;
        }
        let set = match world.find(&self.target) {
            Some(Found::Endpoint(_, set, _)) => Some(set),
            _ => None,
        };
        if let Some((rules, seen)) = &self.seen
            && *rules == world.rules()
            && seen.as_ref().map(Arc::as_ptr) == set.map(Arc::as_ptr)
        {
            return false;
        }
        self.seen = Some((world.rules(), set.cloned()));
        true
    }

    fn is_news(&mut self, bytes: &[u8]) -> bool {
        let mut digest = DefaultHasher::new();
        digest.write(bytes);
        let digest = Some(digest.finish());
        std::mem::replace(&mut self.sent, digest) != digest
    }
}

/// A silent client is asked for a sign of life this often …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// … and given up after this.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A question is a name and a token.
const LARGEST_REQUEST: usize = 64 << 10;
/// More a client does not take.
const LARGEST_POLICY: usize = 4 << 20;
/// Questions are small.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

#[cfg(test)]
mod tests;
