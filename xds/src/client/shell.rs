//! The task that keeps a [`Machine`] connected.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};
use towpath_policies::model::{ResourceKey, Snapshot};
use tracing::{info, warn};

use super::{Apply, Count, Machine, Options, Status, loads};
use crate::{
    Flavour,
    wire::{self, MAX_MESSAGE_BYTES, Malformed, Request, Response},
};

/// Keeps a configuration up to date from an ADS server, for as long as it lives.
///
/// The server may be away for any time: what is in use stays in use, and the
/// client reconnects for ever, resuming with the versions it holds.
#[derive(Debug)]
pub struct AdsClient {
    status: watch::Receiver<Status>,
    task: JoinHandle<()>,
}

impl AdsClient {
    /// Starts the client as a task of the current runtime. `apply` is called
    /// from that task with every new consistent snapshot and must not block
    /// for long.
    ///
    /// # Errors
    /// When `options.address` is no address.
    pub fn start(
        options: Options,
        apply: impl FnMut(Arc<Snapshot>) -> Result<(), Vec<(ResourceKey, String)>> + Send + 'static,
    ) -> Result<Self, String> {
        Self::start_with(options, None, Box::new(apply))
    }

    /// As [`AdsClient::start`], and tells the server of the load that is made (LRS), where it wants
    /// to know. `count` is asked for it from tasks of the runtime and must not block for long.
    ///
    /// # Errors
    /// When `options.address` is no address.
    pub fn start_reporting(
        options: Options,
        count: Arc<Count>,
        apply: impl FnMut(Arc<Snapshot>) -> Result<(), Vec<(ResourceKey, String)>> + Send + 'static,
    ) -> Result<Self, String> {
        Self::start_with(options, Some(count), Box::new(apply))
    }

    fn start_with(
        options: Options,
        count: Option<Arc<Count>>,
        apply: Box<Apply>,
    ) -> Result<Self, String> {
        let endpoint = endpoint(&options.address)?;
        let (sender, status) = watch::channel(Status::default());
        let mut machine = Machine::new(options.flavour, options.warm_wait);
        if !options.opens_listeners {
            machine.take_api_listeners();
        }
        let connection = Connection { options, endpoint, machine, apply, count, status: sender };
        Ok(Self { status, task: tokio::spawn(connection.run()) })
    }

    /// Where the client stands, now and from now on.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

impl Drop for AdsClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Connection {
    options: Options,
    endpoint: Endpoint,
    machine: Machine,
    apply: Box<Apply>,
    count: Option<Arc<Count>>,
    status: watch::Sender<Status>,
}

/// The messages of an open stream.
enum Inbound {
    Delta(Streaming<DeltaDiscoveryResponse>),
    World(Streaming<DiscoveryResponse>),
}

enum Outbound {
    Delta(mpsc::Sender<DeltaDiscoveryRequest>),
    World(mpsc::Sender<DiscoveryRequest>),
}

/// What woke an open stream.
enum Wake {
    Response(Box<Response>),
    Skipped,
    Sent,
    Deadline,
    Broken(String),
}

impl Connection {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let started = Instant::now();
            let error = self.stream().await;
            let lived = started.elapsed() > self.options.backoff_max;
            failures = if lived { 0 } else { failures + 1 };
            let pause = self.pause(failures);
            warn!(server = %self.options.address, %error, ?pause, "xDS stream ended; what is in use stays, will reconnect");
            self.machine.disconnected(error);
            self.publish_status();
            self.ticking(sleep(pause)).await;
        }
    }

    /// Doubles from the base to the ceiling; full jitter above half of it.
    fn pause(&self, failures: u32) -> Duration {
        let ceiling = self
            .options
            .backoff_base
            .saturating_mul(1 << failures.min(16))
            .min(self.options.backoff_max);
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Waits for something; a warming deadline may pass meanwhile.
    async fn ticking<T>(&mut self, awaited: impl Future<Output = T>) -> T {
        let mut awaited = std::pin::pin!(awaited);
        loop {
            tokio::select! {
                output = &mut awaited => return output,
                () = reached(self.machine.deadline()) => {}
            }
            self.tick();
        }
    }

    /// One stream from connecting to its end; returns why it ended.
    async fn stream(&mut self) -> String {
        let channel = match tokio::time::timeout(CONNECT_TIMEOUT, self.endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return format!("cannot connect: {}", chain(&error)),
            Err(_) => return format!("cannot connect within {CONNECT_TIMEOUT:?}"),
        };
        self.machine.connected();
        let (mut inbound, outbound) = match self.open(channel.clone()).await {
            Ok(open) => open,
            Err(status) => return format!("refused: {status}"),
        };
        self.machine.established();
        self.publish_status();
        info!(server = %self.options.address, flavour = ?self.options.flavour, "xDS stream stands");
        // Ends with this stream.
        let mut reporting = JoinSet::new();
        if let Some(count) = &self.count {
            reporting.spawn(loads::report(channel, self.options.node.clone(), count.clone()));
        }
        loop {
            match self.wake(&mut inbound, &outbound).await {
                Wake::Response(response) => {
                    self.machine.handle(*response, Instant::now().into_std(), &mut *self.apply);
                    self.publish_status();
                }
                Wake::Deadline => self.tick(),
                Wake::Sent | Wake::Skipped => {}
                Wake::Broken(error) => return error,
            }
        }
    }

    /// Opens the stream. The first requests travel with the call, because
    /// some servers answer the call only with their first response.
    async fn open(&mut self, channel: Channel) -> Result<(Inbound, Outbound), tonic::Status> {
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let mut node = wire::node_to_pb(&self.options.node);
        if !self.options.opens_listeners {
            wire::open_no_listeners(&mut node);
        }
        let mut node = Some(node);
        // One per type: fewer than the channel has room for.
        let first: Vec<Request> = std::iter::from_fn(|| self.machine.outgoing()).collect();
        match self.options.flavour {
            Flavour::Delta => {
                let (sender, receiver) = mpsc::channel(IN_FLIGHT);
                for request in first {
                    let _ = sender.try_send(request.into_delta(node.take()));
                }
                let call = client.delta_aggregated_resources(ReceiverStream::new(receiver));
                let stream = self.ticking(call).await?.into_inner();
                Ok((Inbound::Delta(stream), Outbound::Delta(sender)))
            }
            Flavour::StateOfTheWorld => {
                let (sender, receiver) = mpsc::channel(IN_FLIGHT);
                for request in first {
                    let _ = sender.try_send(request.into_world(node.take()));
                }
                let call = client.stream_aggregated_resources(ReceiverStream::new(receiver));
                let stream = self.ticking(call).await?.into_inner();
                Ok((Inbound::World(stream), Outbound::World(sender)))
            }
        }
    }

    async fn wake(&mut self, inbound: &mut Inbound, outbound: &Outbound) -> Wake {
        let backlog = self.machine.backlog();
        let deadline = reached(self.machine.deadline());
        let machine = &mut self.machine;
        // Cancel-safe: `message` keeps partial frames in the decoder, a
        // request leaves the machine only once its place is reserved.
        tokio::select! {
            sent = outbound.send(machine), if backlog > 0 => sent,
            // Not read while answers pile up, so a peer cannot make them.
            response = inbound.next(), if backlog < MAX_BACKLOG => response,
            () = deadline => Wake::Deadline,
        }
    }

    fn tick(&mut self) {
        self.machine.tick(Instant::now().into_std(), &mut *self.apply);
        self.publish_status();
    }

    fn publish_status(&self) {
        let status = self.machine.status();
        self.status.send_if_modified(|old| {
            let differs = *old != status;
            *old = status;
            differs
        });
    }
}

impl Inbound {
    async fn next(&mut self) -> Wake {
        let response = match self {
            Self::Delta(stream) => stream.message().await.map(|m| m.map(Response::from_delta)),
            Self::World(stream) => stream.message().await.map(|m| m.map(Response::from_world)),
        };
        match response {
            Ok(Some(Ok(response))) => Wake::Response(Box::new(response)),
            Ok(Some(Err(error @ Malformed::UnknownType(_)))) => {
                warn!(%error, "the server sent what was not asked for");
                Wake::Skipped
            }
            Ok(Some(Err(error))) => Wake::Broken(error.to_string()),
            Ok(None) => Wake::Broken("the server ended the stream".to_owned()),
            Err(status) => Wake::Broken(format!("stream broke: {status}")),
        }
    }
}

impl Outbound {
    async fn send(&self, machine: &mut Machine) -> Wake {
        let gone = || Wake::Broken("the server ended the stream".to_owned());
        match self {
            Self::Delta(sender) => {
                let Ok(place) = sender.reserve().await else { return gone() };
                if let Some(request) = machine.outgoing() {
                    place.send(request.into_delta(None));
                }
            }
            Self::World(sender) => {
                let Ok(place) = sender.reserve().await else { return gone() };
                if let Some(request) = machine.outgoing() {
                    place.send(request.into_world(None));
                }
            }
        }
        Wake::Sent
    }
}

pub(super) async fn reached(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => sleep_until(Instant::from_std(deadline)).await,
        None => std::future::pending().await,
    }
}

fn endpoint(address: &str) -> Result<Endpoint, String> {
    let url =
        if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(url)
        .map_err(|e| format!("{address:?} is no address of a control plane (host:port): {e}"))?;
    if endpoint.uri().scheme_str() != Some("http") {
        return Err(format!("{address:?}: only plain http:// is supported, with host and port"));
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW))
}

/// An error with its causes: the transport's own text says only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent server is asked for a sign of life this often …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// … and given up after this.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Requests handed to HTTP/2 and not yet sent.
const IN_FLIGHT: usize = 16;
/// Answers that may wait before no more responses are read.
const MAX_BACKLOG: usize = 16;
