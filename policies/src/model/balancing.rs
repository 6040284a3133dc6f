//! How an endpoint is picked.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::Location;

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
    /// In turn, by weights that endpoints' load reports tell, as [`Weighing`] says.
    WeightedRoundRobin,
    /// Uniformly at random, by weight.
    Random,
    /// The endpoint that a Maglev table has for the request's key, as [`Hashing`] says.
    Maglev,
    /// The endpoint next to the request's key on a ring, as [`Hashing`] says.
    RingHash,
}

impl Balancer {
    /// Whether it sends the same key to the same endpoint.
    pub const fn hashes(self) -> bool {
        matches!(self, Self::Maglev | Self::RingHash)
    }

    /// Whether it goes by what endpoints report of their load.
    pub const fn reads_reports(self) -> bool {
        matches!(self, Self::CompletionTime | Self::WeightedRoundRobin)
    }
}

/// What [`Balancer::WeightedRoundRobin`] makes of load reports (gRFC A58): a weight is requests per
/// second by utilization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Weighing {
    /// Metrics of a report (`named_metrics.NAME`, `utilization.NAME`, `cpu_utilization`…) of which the
    /// largest is the utilization, at most [`Self::MOST_METRICS`]. Where none is above 0 it is `application_utilization`, else
    /// `cpu_utilization`.
    pub metrics: Vec<String>,
    /// An endpoint must have reported for so long before its weight counts. Default 10 s.
    pub blackout: Duration,
    /// A weight without a new report for so long counts no more. Default 3 min.
    pub expiration: Duration,
    /// Weights come into force so often, at least every [`Self::SHORTEST_UPDATE`]. Default 1 s.
    pub update_period: Duration,
    /// How much the share of errors counts beside the utilization: finite and not below 0. Default 1.
    pub error_penalty: f32,
}

/// A field of [`Weighing`] that has bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeighingField {
    /// [`Weighing::metrics`].
    Metrics,
    /// [`Weighing::update_period`].
    UpdatePeriod,
    /// [`Weighing::error_penalty`].
    ErrorPenalty,
}

impl Weighing {
    /// gRPC's limit.
    pub const SHORTEST_UPDATE: Duration = Duration::from_millis(100);
    /// Each report is looked for in so many places at most.
    pub const MOST_METRICS: usize = 16;

    /// Whether the figures are within their bounds.
    ///
    /// # Errors
    /// Which of them is not, and what must be so.
    pub fn check(&self) -> Result<(), (WeighingField, &'static str)> {
        if self.metrics.len() > Self::MOST_METRICS {
            return Err((WeighingField::Metrics, "at most 16 metrics are looked for in a report"));
        }
        if !(self.error_penalty.is_finite() && self.error_penalty >= 0.0) {
            let why = "the penalty of errors must be a number of 0 or more";
            return Err((WeighingField::ErrorPenalty, why));
        }
        if self.update_period < Self::SHORTEST_UPDATE {
            let why = "weights cannot come into force more often than every 100ms";
            return Err((WeighingField::UpdatePeriod, why));
        }
        Ok(())
    }
}

impl Default for Weighing {
    fn default() -> Self {
        Self {
            metrics: Vec::new(),
            blackout: Duration::from_secs(10),
            expiration: Duration::from_secs(180),
            update_period: Duration::from_secs(1),
            error_penalty: 1.0,
        }
    }
}

/// Where the weights of endpoints come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Weights {
    /// From the policy.
    #[default]
    Declared,
    /// From the policy, and from there on as load reports tell the control plane.
    FromLoad,
}

/// What [`Balancer::Maglev`] and [`Balancer::RingHash`] go by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hashing {
    /// How a request tells its key; requests without one are balanced as by
    /// [`Balancer::BytesInFlight`].
    pub key: Option<KeySource>,
    /// An endpoint has at most so many per cent of the mean number of requests in flight, in
    /// proportion to weight; at least 100, `None` = not bounded.
    pub load_bound_percent: Option<u32>,
    /// Entries of a Maglev table: a prime of at most [`Self::MOST_IN_TABLE`]. Default 65,537.
    pub table_size: u32,
    /// Points on a ring, at least and at most (more of them only where weights are to be told
    /// apart). Default 1,024 and [`Self::MOST_ON_RING`].
    pub ring_size: (u32, u32),
}

/// How a request tells its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeySource {
    /// By a header's value; its name is in lower case.
    Header(String),
    /// By this segment of the path, from 1 to [`Self::LAST_SEGMENT`].
    PathSegment(u32),
    /// By the value of this query parameter, as it is in the URL.
    Query(String),
    /// By its client's IP address.
    ClientAddress,
}

impl Hashing {
    /// The bound where a policy says none.
    pub const DEFAULT_BOUND_PERCENT: u32 = 125;
    /// Envoy's limit, a prime.
    pub const MOST_IN_TABLE: u32 = 5_000_011;
    /// Envoy's limit.
    pub const MOST_ON_RING: u32 = 8 << 20;

    /// The size of a table that is bounded to so many entries: a prime.
    pub fn table_size_within(&self, most: u32) -> u32 {
        let fits = |size: &u32| *size <= most;
        Some(self.table_size)
            .filter(fits)
            .or_else(|| (2..=most).rev().find(|size| is_prime(*size)))
            .unwrap_or(2)
    }

    /// Whether the figures are within their bounds.
    ///
    /// # Errors
    /// What must be so and is not.
    pub fn check(&self) -> Result<(), &'static str> {
        let (least, most) = self.ring_size;
        if !(2..=Self::MOST_IN_TABLE).contains(&self.table_size) || !is_prime(self.table_size) {
            return Err("a table's size must be a prime of at most 5,000,011");
        }
        if !(1..=Self::MOST_ON_RING).contains(&most) || !(1..=most).contains(&least) {
            return Err("a ring must have from 1 to 8,388,608 points, and no least above its most");
        }
        if self.load_bound_percent.is_some_and(|percent| percent < 100) {
            return Err("an endpoint must be let have at least 100 % of the mean load");
        }
        match &self.key {
            Some(KeySource::PathSegment(nth)) if !(1..=KeySource::LAST_SEGMENT).contains(nth) => {
                Err("a segment of the path is from 1 to 64")
            }
            _ => Ok(()),
        }
    }
}

fn is_prime(number: u32) -> bool {
    number >= 2 && !(2..).take_while(|i| i * i <= number).any(|i| number.is_multiple_of(i))
}

impl Default for Hashing {
    fn default() -> Self {
        Self {
            key: None,
            load_bound_percent: None,
            table_size: 65_537,
            ring_size: (1_024, Self::MOST_ON_RING),
        }
    }
}

impl KeySource {
    /// Segments of a path beyond this one are not looked at.
    pub const LAST_SEGMENT: u32 = 64;
}

/// What a completion time is predicted from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Prediction {
    /// How a request tells where its data comes from: the first of these that says it. Where none
    /// does, it comes from beside the proxy.
    pub origin: Vec<OriginSource>,
    /// How much each part counts.
    pub terms: Terms,
    /// Energy that goes with a gigabyte (10⁹ bytes) at endpoints that do not say, up to
    /// [`Self::MOST_JOULES`]; counted whatever the balancer.
    pub joules_per_gigabyte: f64,
}

impl Prediction {
    /// 0.001 kWh: the figure of Cloud Carbon Footprint's methodology for networking between data centres.
    pub const DEFAULT_JOULES: f64 = 3_600.0;
    /// 1 kW at 1 MB/s.
    pub const MOST_JOULES: f64 = 1e6;

    /// Whether the figures are within their bounds.
    ///
    /// # Errors
    /// What must be so and is not.
    pub fn check(&self) -> Result<(), &'static str> {
        let Terms { carbon, price, .. } = self.terms;
        if !self.terms.named().iter().all(|(_, factor)| (0.0..=100.0).contains(factor)) {
            return Err("factors are from 0 to 100");
        }
        if ![carbon, price].iter().all(|rate| (0.0..=Terms::MOST_SECONDS).contains(rate)) {
            return Err("a gram and a cent are from 0 to 1,000,000 seconds");
        }
        if !(0.0..=Self::MOST_JOULES).contains(&self.joules_per_gigabyte) {
            return Err("a gigabyte takes from 0 to 1,000,000 joules");
        }
        Ok(())
    }
}

impl Default for Prediction {
    fn default() -> Self {
        let joules_per_gigabyte = Self::DEFAULT_JOULES;
        Self { origin: Vec::new(), terms: Terms::default(), joules_per_gigabyte }
    }
}

/// How a request tells where its data comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OriginSource {
    /// A header's value (its name is in lower case): `latitude,longitude` in degrees, or the region
    /// of an endpoint.
    Header(String),
    /// The place that is registered for the tenant or device that it names.
    Registered(Registered),
    /// Where its client's IP address is, by the database that the proxy has.
    ClientAddress,
}

/// Places of tenants or devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    /// The header that names the tenant or device; in lower case.
    pub header: String,
    /// By name, at most [`Self::MOST`].
    pub places: BTreeMap<String, Location>,
}

impl Registered {
    /// Of one policy.
    pub const MOST: usize = 10_000;
}

/// Factors by which the parts of a predicted time count, each finite and from 0 to 100, default 1;
/// and the time that emissions and money are worth, default none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// The round trip between origin and endpoint.
    pub network: f64,
    /// The bytes of the request, on the way from their origin and at the endpoint's goodput.
    pub transfer: f64,
    /// Bytes in flight at the endpoint's goodput, and requests there at the time small ones took of late.
    pub queue: f64,
    /// What its load reports say of its health.
    pub health: f64,
    /// Tries that fail and are repeated.
    pub failures: f64,
    /// Seconds per gram of CO₂ equivalent, from 0 to [`Self::MOST_SECONDS`].
    pub carbon: f64,
    /// Seconds per cent, likewise.
    pub price: f64,
}

impl Terms {
    /// The most that a gram or a cent is worth: 11 days.
    pub const MOST_SECONDS: f64 = 1e6;

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
        let (network, transfer, queue, health, failures) = (1.0, 1.0, 1.0, 1.0, 1.0);
        Self { network, transfer, queue, health, failures, carbon: 0.0, price: 0.0 }
    }
}
