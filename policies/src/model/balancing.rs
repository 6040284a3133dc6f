//! How an endpoint is picked.

use serde::{Deserialize, Serialize};

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Balancer {
    /// Fewest bytes in flight in proportion to weight, among two drawn at random
    /// (all, when there are four or fewer); ties go to fewer requests in flight.
    #[default]
    BytesInFlight,
    /// The least predicted time to completion, as [`Prediction`] says.
    CompletionTime,
    /// Fewest requests in flight, among two drawn at random.
    LeastRequest,
    /// In turn, by weight.
    RoundRobin,
    /// Uniformly at random, by weight.
    Random,
}

/// What a completion time is predicted from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Prediction {
    /// How a request tells where its data comes from; `None` = from beside the proxy.
    pub origin: Option<OriginSource>,
    /// How much each part counts.
    pub terms: Terms,
}

/// How a request tells where its data comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OriginSource {
    /// A header's value (its name is in lower case): `latitude,longitude` in degrees, or the region
    /// of an endpoint.
    Header(String),
}

/// Factors by which the parts of a predicted time count, each finite and from 0 to 100. Default 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// The round trip between origin and endpoint.
    pub network: f64,
    /// Bytes in flight, and those of the request, at the endpoint's goodput.
    pub transfer: f64,
    /// Requests at the endpoint, at the time small ones took of late.
    pub queue: f64,
    /// What its load reports say of its health.
    pub health: f64,
    /// Tries that fail and are repeated.
    pub failures: f64,
}

impl Terms {
    /// The factors and their names in a policy.
    pub const fn named(&self) -> [(&'static str, f64); 5] {
        [
            ("network", self.network),
            ("transfer", self.transfer),
            ("queue", self.queue),
            ("health", self.health),
            ("failures", self.failures),
        ]
    }
}

impl Default for Terms {
    fn default() -> Self {
        Self { network: 1.0, transfer: 1.0, queue: 1.0, health: 1.0, failures: 1.0 }
    }
}
