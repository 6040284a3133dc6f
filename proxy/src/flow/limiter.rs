//! Rate limits of one route: its own, and its tenants'.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;
use towpath_policies::model::{RateLimit, RateLimits};

use super::{bucket::Bucket, tenants::Tenants};
use crate::{
    lock::lock,
    metrics::{Counter, registry},
};

/// The limits of one route, shared by all workers.
#[derive(Debug)]
pub(crate) struct Limiter {
    spec: RateLimits,
    /// Times count from here.
    born: Instant,
    route: Buckets,
    /// Asked once per request, and only where tenants are limited.
    tenants: Option<Mutex<Tenants<Buckets>>>,
    metrics: Metrics,
}

/// The buckets of a route or of a tenant.
#[derive(Debug)]
pub(super) struct Buckets {
    pub(super) requests: Option<Bucket>,
    pub(super) bytes: Option<Bucket>,
}

/// A request beyond a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// When it is worth trying again.
    pub(crate) after: Duration,
}

/// `towpath_limited_total{route,limit,per}`.
#[derive(Debug)]
struct Metrics {
    requests_of_route: Counter,
    requests_of_tenant: Counter,
    bytes: Counter,
}

/// Tenants known at a time. Of more, the least recently seen are forgotten, and begin anew.
const MOST_TENANTS: usize = 10_000;

impl Limiter {
    pub(crate) fn new(route: &str, spec: RateLimits) -> Self {
        let limited = |limit, per| {
            let labels = [("route", route), ("limit", limit), ("per", per)];
            registry().counter("towpath_limited_total", &labels)
        };
        Self {
            spec,
            born: Instant::now(),
            route: Buckets::new(&spec.route),
            tenants: (!spec.tenant.is_unlimited()).then(|| Mutex::new(Tenants::new(MOST_TENANTS))),
            metrics: Metrics {
                requests_of_route: limited("requests", "route"),
                requests_of_tenant: limited("requests", "tenant"),
                bytes: limited("bytes", "any"),
            },
        }
    }

    pub(crate) fn spec(&self) -> &RateLimits {
        &self.spec
    }

    /// Whether body bytes are limited.
    pub(crate) fn limits_bytes(&self) -> bool {
        self.spec.route.bytes.is_some() || self.spec.tenant.bytes.is_some()
    }

    /// Lets a request of this tenant pass, with the tenant's buckets for its bytes.
    pub(super) fn admit(&self, tenant: u64) -> Result<Option<Arc<Buckets>>, Refused> {
        let tenant = self.tenants.as_ref().map(|tenants| {
            let mut tenants = lock(tenants);
            tenants.of(tenant, || Buckets::new(&self.spec.tenant))
        });
        let of_tenant = tenant.as_ref().and_then(|t| t.requests.as_ref());
        if of_tenant.is_none() && self.route.requests.is_none() {
            return Ok(tenant);
        }
        let now = self.now();
        let refused = |counter: &Counter, nanos| {
            counter.inc();
            Refused { after: Duration::from_nanos(nanos) }
        };
        if let Some(bucket) = of_tenant {
            bucket.take(1, now).map_err(|w| refused(&self.metrics.requests_of_tenant, w))?;
        }
        if let Some(bucket) = &self.route.requests
            && let Err(wait) = bucket.take(1, now)
        {
            // It did not pass, so its tenant has not used it.
            of_tenant.inspect(|bucket| bucket.give_back(1));
            return Err(refused(&self.metrics.requests_of_route, wait));
        }
        Ok(tenant)
    }

    pub(super) fn route(&self) -> &Buckets {
        &self.route
    }

    /// Counts a transfer that is slowed.
    pub(super) fn slowed(&self) {
        self.metrics.bytes.inc();
    }

    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX / 4)
    }

    /// The time that buckets call so.
    pub(super) fn at(&self, nanos: u64) -> Option<Instant> {
        self.born.checked_add(Duration::from_nanos(nanos))
    }
}

impl Buckets {
    fn new(limit: &RateLimit) -> Self {
        Self { requests: limit.requests.map(Bucket::new), bytes: limit.bytes.map(Bucket::new) }
    }
}
