//! Where a route sends what it takes.

use std::time::Duration;

use linkerd2_proxy_api::outbound::{
    Backend, Queue,
    backend::{
        BalanceP2c, EndpointDiscovery, Kind, balance_p2c,
        endpoint_discovery::{self, DestinationGet},
    },
    http_route, opaque_route,
};
use towpath_policies::model::{Endpoint, Service, WeightedBackend};

use crate::{duration, endpoints::weighted, names, world::World};

use super::filters;

pub(super) struct Backends<'w> {
    pub(super) world: &'w World,
    /// Of the target. Services have none, but a proxy asks for none without.
    pub(super) port: u16,
    /// Whoever addresses an endpoint of this Service keeps it.
    pub(super) pinned: Option<(&'w str, &'w Endpoint)>,
}

impl Backends<'_> {
    pub(super) fn http(&self, backends: &[WeightedBackend]) -> http_route::Distribution {
        use http_route::distribution::{Kind, RandomAvailable};
        let drawn = backends.iter().filter(|backend| backend.weight > 0);
        let backends = drawn.map(|backend| {
            let mut filters = filters::of_request(&backend.request_headers);
            filters.extend(filters::of_response(&backend.response_headers));
            let route = http_route::RouteBackend {
                backend: Some(self.backend(&backend.service)),
                filters,
                ..Default::default()
            };
            http_route::WeightedRouteBackend { backend: Some(route), weight: backend.weight }
        });
        let kind = Kind::RandomAvailable(RandomAvailable { backends: backends.collect() });
        http_route::Distribution { kind: Some(kind) }
    }

    pub(super) fn opaque(&self, service: &str) -> opaque_route::Distribution {
        use opaque_route::distribution::{FirstAvailable, Kind};
        let backend = Some(self.backend(service));
        let backends = vec![opaque_route::RouteBackend { backend, filters: Vec::new() }];
        let kind = Kind::FirstAvailable(FirstAvailable { backends });
        opaque_route::Distribution { kind: Some(kind) }
    }

    fn backend(&self, name: &str) -> Backend {
        let service = self.world.service(name);
        let pinned = self.pinned.filter(|(of, _)| *of == name).map(|(_, endpoint)| endpoint);
        // One without a kind is one that fails.
        let kind = match (service, pinned) {
            (Some(service), Some(_)) if service.tls.is_some() => None,
            (Some(service), Some(endpoint)) => Some(Kind::Forward(weighted(service, endpoint))),
            _ => names::authority(name, self.port).map(|path| Kind::Balancer(balancer(path))),
        };
        Backend {
            metadata: Some(names::service_metadata(name, self.port)),
            queue: Some(queue(service.map(|service| &**service))),
            kind,
        }
    }
}

fn balancer(path: String) -> BalanceP2c {
    let discovery =
        EndpointDiscovery { kind: Some(endpoint_discovery::Kind::Dst(DestinationGet { path })) };
    let load = balance_p2c::Load::PeakEwma(balance_p2c::PeakEwma {
        default_rtt: Some(duration(FIRST_ROUND_TRIP)),
        decay: Some(duration(DECAY)),
    });
    BalanceP2c { discovery: Some(discovery), load: Some(load) }
}

/// What waits there waits for a connection.
fn queue(service: Option<&Service>) -> Queue {
    let pending = service.and_then(|service| service.breaker.service.max_pending);
    let timeout = service.map_or(FAILFAST, |service| service.connect_timeout);
    Queue {
        capacity: pending.unwrap_or(CAPACITY).max(1),
        failfast_timeout: Some(duration(timeout)),
    }
}

// All as Linkerd's own control plane says them.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(30);
const DECAY: Duration = Duration::from_secs(10);
const CAPACITY: u32 = 100;
const FAILFAST: Duration = Duration::from_secs(3);
