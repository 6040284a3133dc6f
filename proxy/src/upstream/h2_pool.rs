//! HTTP/2 connections of one endpoint and worker: many streams share each, and
//! another is made when all are full.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    EndpointState, ServiceState,
    admission::Limit,
    age,
    connect::{ConnectError, Connector, Wire},
    io::UpstreamIo,
    pool::Shared,
    tunnel,
};
use crate::h2::{Config, Connection, MEMORY, RequestRef, Stream, Unopened};

/// A connection being made; those who wait for it see how it went.
pub(super) type Connecting = watch::Receiver<Option<Result<(), Failed>>>;

/// What the streams of a connection carry. Those of one kind never share a connection with those of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Streams {
    /// A request each, to the endpoint.
    Requests,
    /// A client's connection each, to the sidecar beside it.
    Tunnels,
}

/// Why no connection was made, for all who wait for it.
#[derive(Clone, Debug)]
pub(super) enum Failed {
    /// A limit of ours, which says nothing of the endpoint.
    Full(Limit),
    Other(Arc<str>),
}

impl From<ConnectError> for Failed {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Full(limit) => Self::Full(limit),
            error => Self::Other(error.to_string().into()),
        }
    }
}

/// Receive window of a connection, in bytes: so wide that clients who read slowly do not hold
/// up others on it.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// Receive window of a stream, in bytes.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// Terms of connections to endpoints.
const CONFIG: Config = Config {
    first_window: STREAM_WINDOW,
    stream_window: STREAM_WINDOW,
    connection_window: CONNECTION_WINDOW,
    frame: 64 * 1024,
    // On one connection, whatever the endpoint allows.
    streams: 1024,
    header_list: 256 * 1024,
    fields: 1024,
    memory: &MEMORY,
    gathers: false,
    fixed: false,
};

/// Most connections to an endpoint that a worker has at a time: enough for one that takes a
/// stream on each.
const MOST_SHARED: usize = 256;

impl EndpointState {
    /// Sends a request head on a connection that has room for another stream; `Full` when none has.
    ///
    /// # Errors
    /// [`Unopened`]; nothing was sent.
    pub(crate) fn open_stream(
        &self,
        worker: usize,
        kind: Streams,
        request: &RequestRef<'_>,
        end_of_stream: bool,
    ) -> Result<Stream, Unopened> {
        let mut pool = self.pools().lock(worker);
        let sharing = pool.sharing(kind);
        let mut at = 0;
        while let Some(shared) = sharing.shared.get(at) {
            match shared.client.open(request, end_of_stream) {
                Err(Unopened::Full) => at += 1,
                Err(Unopened::Closed) => {
                    sharing.shared.swap_remove(at);
                }
                outcome => return outcome,
            }
        }
        Err(Unopened::Full)
    }
}

/// Makes one more shared connection, or waits for the one being made.
///
/// An endpoint that allows no streams is given no further connection to say so again on.
///
/// # Errors
/// [`ConnectError`]; all who waited get the same.
pub(crate) async fn connect_shared(
    service: &Arc<ServiceState>,
    endpoint: &Arc<EndpointState>,
    worker: usize,
    kind: Streams,
) -> Result<(), ConnectError> {
    let mut connecting = {
        let mut pool = endpoint.pools().lock(worker);
        let sharing = pool.sharing(kind);
        if sharing.shared.len() >= MOST_SHARED {
            // A client that has no tunnel has a connection.
            if kind == Streams::Requests {
                service.overflow(Limit::Connections);
            }
            return Err(ConnectError::Full(Limit::Connections));
        }
        if sharing.shared.iter().any(|shared| shared.client.is_barred()) {
            return Err(ConnectError::Handshake("the endpoint allows no streams".into()));
        }
        match &sharing.connecting {
            Some(connecting) => connecting.clone(),
            None => {
                let (done, connecting) = watch::channel(None);
                sharing.connecting = Some(connecting.clone());
                let (service, endpoint) = (service.clone(), endpoint.clone());
                // Owned by all who wait for it, bounded by the connect timeout.
                tokio::spawn(async move {
                    let outcome = add_connection(&service, &endpoint, worker, kind).await;
                    match (kind, &outcome) {
                        (Streams::Requests, _) => {}
                        (Streams::Tunnels, Ok(())) => tunnel::stands(&service, &endpoint),
                        (Streams::Tunnels, Err(error)) => {
                            tunnel::unavailable(&service, &endpoint, error);
                        }
                    }
                    endpoint.pools().lock(worker).sharing(kind).connecting = None;
                    done.send_replace(Some(outcome.map_err(Failed::from)));
                });
                connecting
            }
        }
    };
    let outcome = connecting.wait_for(Option::is_some).await.map(|o| o.clone());
    match outcome {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(Some(Err(Failed::Full(limit)))) => Err(ConnectError::Full(limit)),
        Ok(Some(Err(Failed::Other(reason)))) => Err(ConnectError::Handshake(reason.to_string())),
        Ok(None) | Err(_) => Err(ConnectError::Handshake("the attempt was dropped".into())),
    }
}

async fn add_connection(
    service: &ServiceState,
    endpoint: &EndpointState,
    worker: usize,
    kind: Streams,
) -> Result<(), ConnectError> {
    let limit = service.spec.connect_timeout;
    let (io, guard) = match kind {
        Streams::Requests => {
            let (io, guard) = Connector::connect(service, endpoint, Some(Wire::Http2)).await?;
            (io, Some(guard))
        }
        // Its streams count, each as the connection that it is.
        Streams::Tunnels => (Connector::connect_tunnel(service, endpoint).await?, None),
    };
    let config = match kind {
        Streams::Requests => CONFIG,
        Streams::Tunnels => Config::TUNNEL,
    };
    let (mut connection, client) = Connection::client(io, config);
    if kind == Streams::Tunnels {
        speaks(&mut connection, limit).await?;
    }
    // Ends by itself when the client and the last stream are gone.
    tokio::spawn(async move {
        let _guard = guard;
        poll_fn(|cx| connection.poll(cx)).await;
        // A peer that reads no more must not hold the socket.
        let _ = timeout(limit, connection.finish()).await;
    });
    let mut pool = endpoint.pools().lock(worker);
    if service.connector.terms() != endpoint.live.terms.load(Relaxed) {
        return Err(ConnectError::Handshake("the terms of connections changed".into()));
    }
    // Swept even when the endpoint was removed meanwhile: the connection holds the endpoint.
    let terms = service.spec.admission.stream_age;
    let until = terms.and_then(|terms| age::of_age(&terms, Instant::now(), fastrand::f64()));
    pool.sharing(kind).shared.push(Shared { client, until });
    endpoint.pools().sweep(worker, &mut pool, service.spec.pool_idle_timeout);
    Ok(())
}

/// Waits until the peer has shown that it speaks HTTP/2.
async fn speaks(
    connection: &mut Connection<UpstreamIo>,
    limit: Duration,
) -> Result<(), ConnectError> {
    let speaking = poll_fn(|cx| {
        match connection.poll(cx) {
        Poll::Ready(()) => {
            Poll::Ready(Err(ConnectError::Handshake("what answers there takes none: another program, or not the proxy that the policy names".into())))
        }
        Poll::Pending if connection.is_established() => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    }
    });
    timeout(limit, speaking).await.map_err(|_| ConnectError::Timeout(limit))?
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use towpath_policies::model::{Endpoint, EndpointSet, Protocol, Service};

    use super::*;
    use crate::upstream::reconcile;

    #[tokio::test]
    async fn a_worker_makes_a_bounded_number_of_connections_to_an_endpoint() {
        let spec = Arc::new(Service::new("wide", Protocol::Http2));
        // Nobody listens there.
        let endpoints = vec![Endpoint::new(([127, 0, 0, 1], 1).into())];
        let set = EndpointSet::new("wide".into(), endpoints);
        let service = reconcile(None, spec, &set, 1).unwrap();
        let endpoint = &service.endpoints[0];
        let one = || {
            let (connection, client) = Connection::client(duplex(1).0, CONFIG);
            (connection, Shared { client, until: None })
        };
        let (_stand, shared): (Vec<_>, Vec<_>) = (0..MOST_SHARED).map(|_| one()).unzip();
        endpoint.live.pools.lock(0).sharing(Streams::Requests).shared = shared;
        let refused = connect_shared(&service, endpoint, 0, Streams::Requests).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Full(Limit::Connections)), "{refused}");
        endpoint.live.pools.lock(0).sharing(Streams::Requests).shared.pop();
        let tried = connect_shared(&service, endpoint, 0, Streams::Requests).await.unwrap_err();
        assert!(matches!(tried, ConnectError::Handshake(_)), "{tried}");
    }
}
