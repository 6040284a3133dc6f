//! What is remembered of an exchange, told to metrics and the access log when it is over, however it ends.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderName, header};
use tokio::time::Instant;

use super::{
    message::{Client, RequestHead},
    reply::Reply,
};
use crate::{
    access_log,
    router::{Action, Backend, CompiledRoute},
    transfers::{Listed, Transfer},
    upstream::{EndpointState, connect::Wire, destination::Destination},
};

/// One exchange, recorded on drop.
pub(super) struct Recorder<'a> {
    client: &'a Client,
    protocol: &'static str,
    start: Instant,
    line: Option<Box<access_log::Record>>,
    route: Option<(Arc<CompiledRoute>, usize)>,
    pub(super) status: u16,
    pub(super) reason: Option<&'static str>,
    pub(super) grpc_status: Option<u32>,
    pub(super) attempts: u32,
    pub(super) resumes: u32,
    pub(super) hedged: Option<&'static str>,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) endpoint: Option<Arc<EndpointState>>,
    /// Its place among those under way, once it lasts.
    pub(super) listed: Option<Box<Listed>>,
}

pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl<'a> Recorder<'a> {
    pub(super) fn new(client: &'a Client, head: &RequestHead, start: Instant) -> Self {
        Self {
            client,
            protocol: protocol(head),
            start,
            line: client.listener.access_log.is_some().then(|| Box::new(line(client, head))),
            route: None,
            status: 0,
            reason: None,
            grpc_status: None,
            attempts: 0,
            resumes: 0,
            hedged: None,
            request_bytes: 0,
            response_bytes: 0,
            endpoint: None,
            listed: None,
        }
    }

    /// When its head was read.
    pub(super) fn start(&self) -> Instant {
        self.start
    }

    /// Notes the route, and the position of the backend drawn.
    pub(super) fn took(&mut self, route: Arc<CompiledRoute>, backend: usize) {
        self.route = Some((route, backend));
    }

    /// Adds to the time it waited for a slot.
    pub(super) fn queued(&mut self, waited: Duration) {
        if let Some(line) = &mut self.line {
            let before = line.queued_ms.unwrap_or(0);
            let waited = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
            line.queued_ms = Some(before.saturating_add(waited));
        }
    }

    /// The answer says that the endpoint failed. UNKNOWN, INTERNAL, UNAVAILABLE and DATA_LOSS say
    /// what a 5xx says.
    pub(super) fn has_failed(&self) -> bool {
        self.status >= 500 || matches!(self.grpc_status, Some(2 | 13 | 14 | 15))
    }

    /// The endpoint did not do what was asked, as far as its response head tells: it failed, or
    /// had no room.
    pub(super) fn was_turned_away(&self) -> bool {
        self.has_failed() || self.status == 429 || self.grpc_status == Some(8)
    }

    pub(super) fn route(&self) -> Option<&CompiledRoute> {
        self.route.as_ref().map(|(route, _)| &**route)
    }

    pub(super) fn backend(&self) -> Option<&Backend> {
        let (route, backend) = self.route.as_ref()?;
        match &route.action {
            Action::Forward(forward) => forward.backends().get(*backend),
            _ => None,
        }
    }

    /// A try goes to this endpoint.
    pub(super) fn goes_to(&mut self, endpoint: &Arc<EndpointState>) {
        if let Some(listed) = &self.listed {
            listed.transfer.endpoint.store(Some(endpoint.clone()));
        }
        self.endpoint = Some(endpoint.clone());
    }

    /// Lists it among those under way.
    #[cold]
    pub(super) fn list(&mut self) {
        if self.listed.is_some() {
            return;
        }
        let transfer = Transfer {
            protocol: self.protocol,
            listener: self.client.listener.name.clone(),
            client: self.client.peer.addr,
            route: self.route().map(|route| route.name.clone()),
            service: self.backend().map(|backend| backend.name.clone()),
            endpoint: ArcSwapOption::new(self.endpoint.clone()),
            started: self.start,
            up: AtomicU64::new(self.request_bytes),
            down: AtomicU64::new(self.response_bytes),
        };
        self.listed = Some(Box::new(
            self.client.listener.transfers.list(self.client.worker, transfer.into()),
        ));
    }

    fn write(&mut self, mut line: Box<access_log::Record>) {
        let Some(log) = &self.client.listener.access_log else { return };
        line.duration = self.start.elapsed();
        line.status = (self.status != 0).then_some(self.status);
        line.grpc_status = self.grpc_status;
        line.reason = self.reason;
        line.route = self.route.as_ref().map(|(route, _)| route.name.clone());
        line.class = self.route().and_then(|route| match &route.action {
            Action::Forward(forward) => Some(forward.transfer.class.name()),
            _ => None,
        });
        line.service = self.backend().map(|b| b.name.clone());
        line.endpoint = self.endpoint.as_ref().map(|e| e.spec.name.as_str().into());
        line.attempts = self.attempts;
        line.resumes = self.resumes;
        line.hedged = self.hedged;
        line.request_bytes = self.request_bytes;
        line.response_bytes = self.response_bytes;
        log.send(*line);
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        let router;
        let metrics = match (self.backend(), &self.route) {
            (Some(backend), _) => &backend.metrics,
            (None, Some((route, _))) => &route.metrics,
            (None, None) => {
                router = self.client.router();
                &router.unmatched
            }
        };
        metrics.count(self.status);
        metrics.seconds.record(self.start.elapsed());
        if self.status == 0 && self.reason.is_none() {
            self.reason = Some("dropped");
        }
        if let Some(line) = self.line.take() {
            self.write(line);
        }
    }
}

fn line(client: &Client, head: &RequestHead) -> access_log::Record {
    let name = client.listener.name.clone();
    let mut line = access_log::Record::new(protocol(head), name, Some(client.peer.addr));
    line.method = Some(head.method.clone());
    line.host = Some(head.authority.as_str().into());
    line.path = Some(head.target.as_str().into());
    line.user_agent = head.headers.get(header::USER_AGENT).cloned();
    line.request_id = head.headers.get(X_REQUEST_ID).cloned();
    line.destination = client.peer.destination.as_ref().map(Destination::address);
    line
}

fn protocol(head: &RequestHead) -> &'static str {
    match head.received {
        Wire::Http1 => "HTTP/1.1",
        Wire::Http2 => "HTTP/2",
    }
}

/// The `grpc-status` among these fields.
pub(super) fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// Records what never became an exchange.
pub(super) fn refused(client: &Client, reply: &Reply) {
    client.router().unmatched.count(reply.status.as_u16());
    let Some(log) = &client.listener.access_log else { return };
    let name = client.listener.name.clone();
    let mut line = access_log::Record::new("HTTP", name, Some(client.peer.addr));
    line.status = Some(reply.status.as_u16());
    line.reason = Some(reply.reason);
    log.send(line);
}

/// Records a malformed HTTP/2 request, whose stream is reset.
pub(super) fn reset(client: &Client) {
    client.router().unmatched.count(0);
}
