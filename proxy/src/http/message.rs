//! Messages between the two sides of an exchange, in terms of neither version.

use std::{net::IpAddr, sync::Arc};

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    uri::{Authority, PathAndQuery},
};

use tokio::time::Instant;
use towpath_policies::model::{Class, StreamAge};

use super::{HttpListener, Peer, forwarded::Forwarding};
use crate::{
    drain,
    router::Router,
    upstream::{ServiceState, age, connect::Wire, pick::Ask},
};

/// What all exchanges of one client connection share.
pub(super) struct Client {
    pub(super) listener: Arc<HttpListener>,
    pub(super) peer: Peer,
    pub(super) worker: usize,
    pub(super) drain: drain::Watch,
    pub(super) forwarding: Forwarding,
    born: Instant,
    /// Where in the spread of ages its own lies, from 0 to 1.
    spread: f64,
}

impl Client {
    pub(super) fn new(
        listener: Arc<HttpListener>,
        peer: Peer,
        worker: usize,
        drain: drain::Watch,
    ) -> Self {
        let forwarding = Forwarding::new(listener.options.forwarded, &peer);
        let (born, spread) = (Instant::now(), fastrand::f64());
        Self { listener, peer, worker, drain, forwarding, born, spread }
    }

    /// Whether the connection is of age.
    pub(super) fn is_of_age(&self, terms: &StreamAge) -> bool {
        age::of_age(terms, self.born, self.spread).is_some_and(|at| at <= Instant::now())
    }

    /// The routes as they are now.
    pub(super) fn router(&self) -> arc_swap::Guard<Arc<Router>> {
        self.listener.router.load()
    }
}

/// A request's head. `headers` holds end-to-end fields only, and no `Host`.
#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) received: Wire,
    pub(super) method: Method,
    pub(super) authority: Authority,
    pub(super) target: PathAndQuery,
    pub(super) headers: HeaderMap,
    pub(super) length: Length,
    /// The client takes trailers (`TE: trailers`).
    pub(super) te_trailers: bool,
    /// The protocol of an `Upgrade` the client asks for.
    pub(super) upgrade: Option<HeaderValue>,
    /// The client waits for `100 Continue`.
    pub(super) expects_continue: bool,
}

impl RequestHead {
    /// What a try of so many bytes asks of an endpoint of this service.
    pub(super) fn ask(
        &self,
        service: &ServiceState,
        bytes: u64,
        class: Class,
        client: IpAddr,
    ) -> Ask {
        let origin = service.origin(&self.headers, client);
        let key = service.key(&self.target, &self.headers, client);
        Ask { bytes, down: None, origin, key, class, destination: None }
    }
}

/// A final response's head. `headers` holds end-to-end fields only.
#[derive(Debug)]
pub(super) struct ResponseHead {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) length: Length,
}

/// An interim response.
#[derive(Debug)]
pub(super) struct Interim {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
}

/// What is known of a body before it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// There is none, not even an empty one.
    None,
    /// So many bytes.
    Known(u64),
    /// It ends when it ends.
    Unknown,
}

/// Bodies and their breaks are the same in either version; HTTP/2 has the names.
pub(super) use crate::h2::{Part as Piece, StreamError as Broken};

impl Length {
    pub(super) fn declared(self) -> u64 {
        if let Self::Known(bytes) = self { bytes } else { 0 }
    }

    pub(super) fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Known(0))
    }
}

impl RequestHead {
    /// The path as it came, without the query.
    pub(super) fn path(&self) -> &str {
        self.target.path()
    }
}
