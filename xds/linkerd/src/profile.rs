//! `Destination.GetProfile`: the name of a destination, and whether it speaks something opaque.

use std::time::Duration;

use linkerd2_proxy_api::destination::{DestinationProfile, RetryBudget};
use towpath_policies::model::{Protocol, Service};

use crate::{
    duration,
    endpoints::weighted,
    names,
    target::Target,
    world::{Found, World},
};

/// What is told of `target`. Its routes are told by its policy: a proxy would heed those of a profile in their place.
pub(crate) fn profile(world: &World, target: &Target) -> DestinationProfile {
    match world.find(target) {
        Some(Found::Service(service)) => DestinationProfile {
            fully_qualified_name: names::host(&service.name).unwrap_or_default(),
            ..of_service(service, target)
        },
        Some(Found::Endpoint(service, _, endpoint)) => DestinationProfile {
            endpoint: service.tls.is_none().then(|| weighted(service, endpoint)),
            ..of_service(service, target)
        },
        Some(Found::Host(..)) | None => DestinationProfile::default(),
    }
}

fn of_service(service: &Service, target: &Target) -> DestinationProfile {
    let budget = service.retry_budget;
    #[expect(clippy::cast_precision_loss, reason = "per cent")]
    let retry_ratio = budget.percent.min(100_000) as f32 / 100.0;
    DestinationProfile {
        opaque_protocol: service.protocol == Protocol::Tcp,
        // Ours counts retries at a time, Linkerd's those of a second.
        retry_budget: Some(RetryBudget {
            retry_ratio,
            min_retries_per_second: budget.min_concurrent.min(i32::MAX.unsigned_abs()),
            ttl: Some(duration(BUDGET_WINDOW)),
        }),
        parent_ref: Some(names::service_metadata(&service.name, target.port())),
        ..Default::default()
    }
}

/// Linkerd's default.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use towpath_policies::model::{Endpoint, EndpointSet, Snapshot};

    use super::*;

    #[test]
    fn names_addresses_and_strangers_have_profiles() {
        let mut snapshot = Snapshot { version: "1".to_owned(), ..Snapshot::default() };
        for (name, protocol, host) in [("etl/orders", Protocol::Http2, 1), ("db", Protocol::Tcp, 2)]
        {
            let endpoint = Endpoint::new(([10, 0, 0, host], 80).into());
            let set = EndpointSet::new(name.to_owned(), vec![endpoint]);
            snapshot.services.insert(name.to_owned(), Arc::new(Service::new(name, protocol)));
            snapshot.endpoints.insert(name.to_owned(), Arc::new(set));
        }
        let world = World::default().then(Arc::new(snapshot));
        let of = |text: &str| profile(&world, &text.parse().unwrap());
        let orders = of("orders.etl:8080");
        assert_eq!(orders.fully_qualified_name, "orders.etl.svc.cluster.local");
        assert!(!orders.opaque_protocol && orders.routes.is_empty());
        let budget = orders.retry_budget.unwrap();
        assert!((budget.retry_ratio - 0.2).abs() < 1e-6 && budget.min_retries_per_second == 3);
        assert!(of("db").opaque_protocol);
        let pinned = of("10.0.0.2:80");
        assert!(pinned.opaque_protocol && pinned.fully_qualified_name.is_empty());
        assert!(pinned.endpoint.unwrap().protocol_hint.is_some());
        assert_eq!(of("10.0.0.9:80"), DestinationProfile::default());
    }
}
