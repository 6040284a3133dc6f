//! Where a redirected connection was made to, as an endpoint of whoever has none of his own.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, OnceLock, atomic::Ordering::Relaxed},
};

use ahash::AHashMap;
use towpath_policies::model::{Discovery, Endpoint};

use super::{Apart, EndpointLive, EndpointMetrics, EndpointState, ServiceState, pool::Pools};
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
    /// Views of others' endpoints for the client alone, by the same.
    apart: Mutex<Vec<(u64, Arc<EndpointState>)>>,
}

/// Where the endpoints of a service stand in its list, by address; made when a destination is first looked for.
pub(crate) type ByAddress = OnceLock<AHashMap<SocketAddr, u32>>;

/// Name under which all destinations of a service are counted: there are too many to tell apart.
const COUNTED_AS: &str = "original-destination";

impl Destination {
    /// `client` is to be seen by who is connected to.
    pub(crate) fn new(address: SocketAddr, client: Option<IpAddr>) -> Self {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let (endpoints, apart) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { address, client, endpoints, apart }))
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
        let apart = self.0.client.map(Apart::new);
        let endpoint = Arc::new(EndpointState { spec, live: Arc::new(live), apart });
        endpoints.push((terms, endpoint.clone()));
        Some(endpoint)
    }

    /// An endpoint's view for the client alone, where that is to see the client's address: it has connections of its
    /// own, and shares all that is alive with the view for everybody.
    pub(crate) fn apart(
        &self,
        service: &ServiceState,
        endpoint: &Arc<EndpointState>,
    ) -> Option<Arc<EndpointState>> {
        let client = self.0.client.filter(|_| endpoint.apart.is_none())?;
        let terms = service.connector.terms();
        let mut views = lock(&self.0.apart);
        let known = views
            .iter()
            .position(|(of, view)| *of == terms && Arc::ptr_eq(&view.live, &endpoint.live));
        let apart = match known {
            Some(at) if views[at].1.spec == endpoint.spec => return Some(views[at].1.clone()),
            // What stands to it is as good after it was described anew.
            Some(at) => Apart { client, pools: views.swap_remove(at).1.pools().clone() },
            None => Apart::new(client),
        };
        views.retain(|(of, view)| {
            *of == view.live.terms.load(Relaxed) && !view.live.removed.load(Relaxed)
        });
        let (spec, live) = (endpoint.spec.clone(), endpoint.live.clone());
        let view = Arc::new(EndpointState { spec, live, apart: Some(apart) });
        views.push((terms, view.clone()));
        Some(view)
    }
}

impl Apart {
    /// One connection is on one worker.
    fn new(client: IpAddr) -> Self {
        Self { client, pools: Arc::new(Pools::new(1)) }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for (_, endpoint) in lock(&self.endpoints).iter() {
            endpoint.live.removed.store(true, Relaxed);
            match endpoint.apart {
                Some(_) => endpoint.pools().reset(),
                None => endpoint.pools().clear(),
            }
        }
        lock(&self.apart).iter().for_each(|(_, endpoint)| endpoint.pools().reset());
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
    fn what_a_client_has_to_an_endpoint_is_its_own_and_lasts_as_it_is_described_anew() {
        let endpoint = |weight| Endpoint { weight, ..Endpoint::new(([10, 0, 0, 2], 80).into()) };
        let spec = Arc::new(Service::new("apart", Protocol::Http1));
        let view = |old: Option<&_>, weight| {
            let set = EndpointSet::new("apart".into(), vec![endpoint(weight)]);
            reconcile(old, spec.clone(), &set, 2).unwrap()
        };
        let service = view(None, 100);
        let (one, other) = (Some([192, 0, 2, 1].into()), Some([192, 0, 2, 2].into()));
        let [one, other, nobody] =
            [one, other, None].map(|client| Destination::new(([10, 0, 0, 1], 80).into(), client));
        let of = |whose: &Destination, service: &ServiceState| {
            whose.apart(service, &service.endpoints[0]).unwrap()
        };
        assert!(nobody.apart(&service, &service.endpoints[0]).is_none());
        let first = of(&one, &service);
        assert!(Arc::ptr_eq(&first, &of(&one, &service)));
        assert!(Arc::ptr_eq(&first.live, &service.endpoints[0].live));
        assert!(!Arc::ptr_eq(first.pools(), &first.live.pools));
        assert!(!Arc::ptr_eq(first.pools(), of(&other, &service).pools()));
        for weight in 1..100 {
            let service = view(Some(&service), weight);
            let anew = of(&one, &service);
            assert_eq!(anew.spec.weight, weight);
            assert!(Arc::ptr_eq(anew.pools(), first.pools()));
        }
        assert_eq!(lock(&one.0.apart).len(), 1, "bounded");
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
