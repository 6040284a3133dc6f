//! A client's opaque connection as a stream of one that many share, to the sidecar beside the endpoint.
//!
//! Each connection of its own costs both proxies a call into the kernel for each message; what many clients say at
//! the same time goes out by one here. Nobody depends on it: where no tunnel can be had, connections are made as ever.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Poll, ready},
    time::Duration,
};

use http::{HeaderMap, Method, StatusCode};
use tokio::time::timeout;

use super::{
    EndpointState, ServiceState,
    admission::ConnectionGuard,
    connect::ConnectError,
    h2_pool::{self, Streams},
    now_ms,
};
use crate::h2::{RequestRef, Stream, Unopened};

/// What a client waits for a new tunnel; then it has a connection of its own.
const PATIENCE: Duration = Duration::from_secs(1);
/// Nobody asks again for so long where none could be had; twice as long each time, up to the longest.
const PAUSE_MS: u64 = 1000;
const LONGEST_PAUSE_MS: u64 = 60_000;

/// Opens a stream to the endpoint's application, if its sidecar takes any. `None` where a connection is to be made
/// instead.
///
/// # Errors
/// When the sidecar has no connection to the application.
pub(crate) async fn open(
    service: &Arc<ServiceState>,
    endpoint: &Arc<EndpointState>,
    worker: usize,
) -> Result<Option<(Stream, ConnectionGuard)>, ConnectError> {
    let sealed = service.connector.is_tls() || service.spec.proxy_protocol.is_some();
    if !endpoint.spec.tunnel || endpoint.apart.is_some() || sealed {
        return Ok(None);
    }
    let guard = service.open_connection(endpoint).map_err(ConnectError::Full)?;
    let limit = service.spec.connect_timeout.min(PATIENCE);
    let Some(mut stream) = ask(service, endpoint, worker).await else { return Ok(None) };
    let answering = poll_fn(|cx| {
        loop {
            match ready!(stream.poll_head(cx)) {
                Ok(head) if head.status.is_informational() => {}
                answer => return Poll::Ready(answer),
            }
        }
    });
    let Ok(answer) = timeout(limit, answering).await else {
        // It may be dead without a word: the next client is to have another, and this one a connection.
        stream.leave();
        return Ok(None);
    };
    match answer {
        Ok(head) if head.status.is_success() => {
            service.live.metrics.tunnelled.inc();
            Ok(Some((stream, guard)))
        }
        // The sidecar has tried.
        Ok(head) if head.status == StatusCode::BAD_GATEWAY => {
            Err(ConnectError::Refused(head.status))
        }
        // It takes no more, or none for this endpoint, or it broke. Nothing was said yet: a connection does as well.
        answer => {
            tracing::debug!(endpoint = endpoint.spec.name, ?answer, "no stream in a tunnel");
            Ok(None)
        }
    }
}

async fn ask(
    service: &Arc<ServiceState>,
    endpoint: &Arc<EndpointState>,
    worker: usize,
) -> Option<Stream> {
    let authority = endpoint.spec.address.to_string();
    let request = RequestRef {
        method: &Method::CONNECT,
        https: false,
        authority: &authority,
        path: "",
        headers: &HeaderMap::new(),
        te_trailers: false,
        expects_continue: false,
    };
    let opening = async {
        loop {
            match endpoint.open_stream(worker, Streams::Tunnels, &request, false) {
                Ok(stream) => return Some(stream),
                Err(Unopened::TooLarge) => return None,
                // Another client may fill a new one before.
                Err(Unopened::Full | Unopened::Closed) => {}
            }
            if now_ms() < endpoint.live.no_tunnel_until_ms.load(Relaxed) {
                return None;
            }
            h2_pool::connect_shared(service, endpoint, worker, Streams::Tunnels).await.ok()?;
        }
    };
    timeout(PATIENCE, opening).await.unwrap_or_else(|_| {
        // It may still come. Until it has, or has failed, nobody waits for it again.
        let left = service.spec.connect_timeout.saturating_sub(PATIENCE).as_millis();
        let until = now_ms().saturating_add(u64::try_from(left).unwrap_or(u64::MAX));
        endpoint.live.no_tunnel_until_ms.fetch_max(until, Relaxed);
        None
    })
}

/// Notes that a tunnel stands.
pub(super) fn stands(service: &ServiceState, endpoint: &EndpointState) {
    endpoint.live.no_tunnel_until_ms.store(0, Relaxed);
    if endpoint.live.tunnels_failed.swap(0, Relaxed) > 0 {
        let (service, endpoint) = (&service.spec.name, &endpoint.spec.name);
        tracing::info!(service, endpoint, "a tunnel to the sidecar of this endpoint stands again");
    }
}

/// Notes that no tunnel could be made.
pub(super) fn unavailable(service: &ServiceState, endpoint: &EndpointState, error: &ConnectError) {
    // A limit of ours, or new terms, says nothing of the sidecar.
    if error.is_ours() {
        return;
    }
    let failed = endpoint.live.tunnels_failed.fetch_add(1, Relaxed);
    let pause = (PAUSE_MS << failed.min(8)).min(LONGEST_PAUSE_MS);
    endpoint.live.no_tunnel_until_ms.store(now_ms() + pause, Relaxed);
    if failed > 0 {
        return;
    }
    tracing::info!(
        service = service.spec.name,
        endpoint = endpoint.spec.name,
        %error,
        "no tunnel to the sidecar of this endpoint: its clients are connected one by one until there is"
    );
}
