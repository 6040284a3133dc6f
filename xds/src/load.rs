//! What clients tell of the load they make (LRS): how many requests went to which endpoints in a
//! while, how they ended, and what the endpoints said of themselves meanwhile.
//!
//! Knows neither where the figures come from nor what they are used for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use towpath_policies::model::Locality;

pub use crate::orca::GOODPUT_FACTOR;

/// Among the metrics: the body bytes of requests, both ways.
pub const BYTES: &str = "towpath.bytes";
/// Among the metrics: bytes per second of active large transfers.
pub const GOODPUT: &str = "towpath.goodput";
/// Among the metrics: the share of the CPU in use, by load reports.
pub const CPU: &str = "cpu_utilization";
/// Among the metrics: the share of the memory in use, by load reports.
pub const MEMORY: &str = "mem_utilization";
/// Among the metrics: what share of what the application can do it does, by load reports.
pub const APPLICATION: &str = "application_utilization";

/// What a server wants to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Of which services; `None` = of all.
    pub services: Option<BTreeSet<String>>,
    /// How often.
    pub every: Duration,
    /// Of each endpoint, not of localities alone.
    pub per_endpoint: bool,
}

/// What one client sent to one service in a while.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceLoad {
    /// The service.
    pub service: String,
    /// The while; zero where the client does not say.
    pub over: Duration,
    /// Requests that it refused instead of sending them.
    pub dropped: u64,
    /// By where the endpoints stand.
    pub localities: Vec<LocalityLoad>,
}

/// What went to the endpoints of one place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalityLoad {
    /// The place.
    pub locality: Locality,
    /// Priority of the endpoints.
    pub priority: u32,
    /// All of them together.
    pub load: Load,
    /// Each of them, where the server wants that.
    pub endpoints: Vec<EndpointLoad>,
}

/// What went to one endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointLoad {
    /// Its address.
    pub address: SocketAddr,
    /// What went there.
    pub load: Load,
}

/// Requests and metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests that were issued.
    pub issued: u64,
    /// Requests that the endpoint answered well.
    pub succeeded: u64,
    /// Requests that failed for a reason of the endpoint's.
    pub failed: u64,
    /// Requests that have not ended.
    pub in_progress: u64,
    /// Metrics by name.
    pub metrics: BTreeMap<String, Sum>,
}

/// A sum of so many values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub total: f64,
}

impl Terms {
    /// Where a server does not say how often.
    pub const USUAL_INTERVAL: Duration = Duration::from_secs(10);
    /// A client reports no oftener than this, whatever it is asked for.
    pub const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
    /// And no more rarely than this.
    pub const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);

    /// Whether it wants to be told of a service.
    pub fn want(&self, service: &str) -> bool {
        self.services.as_ref().is_none_or(|names| names.contains(service))
    }
}

impl Load {
    /// Whether it says nothing.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what another one says.
    pub fn add(&mut self, other: &Self) {
        self.issued = self.issued.saturating_add(other.issued);
        self.succeeded = self.succeeded.saturating_add(other.succeeded);
        self.failed = self.failed.saturating_add(other.failed);
        self.in_progress = self.in_progress.saturating_add(other.in_progress);
        for (name, sum) in &other.metrics {
            match self.metrics.get_mut(name) {
                Some(ours) => ours.add(*sum),
                None => drop(self.metrics.insert(name.clone(), *sum)),
            }
        }
    }
}

impl Sum {
    /// One value.
    pub const fn of(value: f64) -> Self {
        Self { count: 1, total: value }
    }

    /// Adds the values of another one.
    pub fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.total += other.total;
    }

    /// The mean of the values; `None` where there are none.
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    pub fn mean(self) -> Option<f64> {
        (self.count > 0).then(|| self.total / self.count as f64)
    }
}
