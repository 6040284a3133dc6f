//! Where a redirected connection was made to, as an endpoint of whoever has none of his own.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
};

use ahash::AHashMap;
use towpath_policies::model::{Discovery, Endpoint};

use super::{EndpointLive, EndpointState, ServiceState};

/// The address that one connection was made to before it was redirected. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Destination(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: SocketAddr,
    /// The client, if its address is to be seen there.
    client: Option<IpAddr>,
    /// Of a service that sends connections on to where they were made to.
    endpoint: OnceLock<Arc<EndpointState>>,
}

/// Where the endpoints of a service stand in its list, by address; made when a destination is first looked for.
pub(crate) type ByAddress = OnceLock<AHashMap<SocketAddr, u32>>;

/// Name under which all destinations of a service are counted: there are too many to tell apart.
const COUNTED_AS: &str = "original-destination";

impl Destination {
    /// `client` is to be seen by who is connected to.
    pub(crate) fn new(address: SocketAddr, client: Option<IpAddr>) -> Self {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        Self(Arc::new(Inner { address, client, endpoint: OnceLock::new() }))
    }

    /// Under whose address opaque bytes are sent on; `None` = our own.
    pub(crate) fn client(&self) -> Option<IpAddr> {
        self.0.client
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The destination as an endpoint, where the service sends connections on to it.
    ///
    /// Each connection has one of its own, so that what stands to one address is never used for another.
    pub(crate) fn endpoint(&self, service: &ServiceState) -> Option<&Arc<EndpointState>> {
        if service.spec.discovery != Discovery::OriginalDestination {
            return None;
        }
        Some(self.0.endpoint.get_or_init(|| {
            let counted = Endpoint { name: COUNTED_AS.to_owned(), ..Endpoint::new(self.0.address) };
            let live = EndpointLive::new(&service.spec.name, &counted, 1);
            live.terms.store(service.connector.terms(), Relaxed);
            Arc::new(EndpointState { spec: Endpoint::new(self.0.address), live: Arc::new(live) })
        }))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(endpoint) = self.endpoint.get() {
            endpoint.live.removed.store(true, Relaxed);
            endpoint.live.pools.clear();
        }
    }
}

impl ServiceState {
    /// The endpoint with this very address.
    pub(crate) fn at(&self, address: SocketAddr) -> Option<&Arc<EndpointState>> {
        let by_address = self.by_address.get_or_init(|| {
            let endpoints = (0u32..).zip(&self.endpoints);
            endpoints.map(|(index, endpoint)| (endpoint.spec.address, index)).collect()
        });
        by_address.get(&address).map(|index| &self.endpoints[*index as usize])
    }
}
