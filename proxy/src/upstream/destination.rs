//! Where a redirected connection was made to, as an endpoint of whoever has none of his own.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, OnceLock, atomic::Ordering::Relaxed},
};

use ahash::AHashMap;
use towpath_policies::model::{Discovery, Endpoint};

use super::{EndpointLive, EndpointMetrics, EndpointState, ServiceState};
use crate::lock::lock;

/// The address that one connection was made to before it was redirected. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Destination(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: SocketAddr,
    /// The client, if its address is to be seen there.
    client: Option<IpAddr>,
    /// Of services that send connections on to where they were made to, by the terms they connect under.
    endpoints: Mutex<Vec<(u64, Arc<EndpointState>)>>,
}

/// Where the endpoints of a service stand in its list, by address; made when a destination is first looked for.
pub(crate) type ByAddress = OnceLock<AHashMap<SocketAddr, u32>>;

/// Name under which all destinations of a service are counted: there are too many to tell apart.
const COUNTED_AS: &str = "original-destination";

impl Destination {
    /// `client` is to be seen by who is connected to.
    pub(crate) fn new(address: SocketAddr, client: Option<IpAddr>) -> Self {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        Self(Arc::new(Inner { address, client, endpoints: Mutex::default() }))
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
    /// Each connection has one of its own, so that what stands to one address is never used for another, and
    /// one for each service's terms: what one connects to in clear another may connect to by TLS.
    pub(crate) fn endpoint(&self, service: &ServiceState) -> Option<Arc<EndpointState>> {
        if service.spec.discovery != Discovery::OriginalDestination {
            return None;
        }
        let terms = service.connector.terms();
        let mut endpoints = lock(&self.0.endpoints);
        if let Some((_, known)) = endpoints.iter().find(|(of, _)| *of == terms) {
            return Some(known.clone());
        }
        let counted = || EndpointMetrics::shared(&service.spec.name, COUNTED_AS);
        let metrics = service.sent_on.get_or_init(counted).clone();
        let live = EndpointLive::counted(self.0.address, metrics, 1);
        live.terms.store(terms, Relaxed);
        let spec = Endpoint::new(self.0.address);
        let endpoint = Arc::new(EndpointState { spec, live: Arc::new(live) });
        endpoints.push((terms, endpoint.clone()));
        Some(endpoint)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for (_, endpoint) in lock(&self.endpoints).iter() {
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

#[cfg(test)]
mod tests {
    use towpath_policies::model::{EndpointSet, Protocol, Service};

    use super::*;
    use crate::upstream::reconcile;

    fn service(name: &str) -> Arc<ServiceState> {
        let discovery = Discovery::OriginalDestination;
        let spec = Service { discovery, ..Service::new(name, Protocol::Follow) };
        reconcile(None, Arc::new(spec), &EndpointSet::new(name.into(), Vec::new()), 2).unwrap()
    }

    #[test]
    fn services_share_no_connections_to_a_destination() {
        let destination = Destination::new(([10, 0, 0, 1], 80).into(), None);
        let services = [service("in-clear"), service("by-tls")];
        for service in &services {
            let of = || destination.endpoint(service).unwrap();
            assert!(Arc::ptr_eq(&of(), &of()), "{}", service.spec.name);
            assert_eq!(of().live.terms.load(Relaxed), service.connector.terms());
        }
        let [a, b] = services.map(|service| destination.endpoint(&service).unwrap());
        assert!(!Arc::ptr_eq(&a.live, &b.live));
        drop(destination);
        assert!(a.live.removed.load(Relaxed) && b.live.removed.load(Relaxed));
    }

    #[test]
    fn all_destinations_of_a_service_count_as_one() {
        let service = service("counted-as-one");
        let of = |port| Destination::new(([10, 0, 0, 1], port).into(), None).endpoint(&service);
        let [a, b] = [1, 2].map(|port| of(port).unwrap());
        a.live.metrics.picks.inc();
        b.live.metrics.picks.inc();
        assert_eq!(a.live.metrics.picks.value(), 2);
    }
}
