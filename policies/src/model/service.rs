//! What requests are sent to, and how it is protected.

use std::{ops::RangeInclusive, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Balancer, Bandwidth, Class, Hashing, Prediction, Weighing, Weights};

/// A named set of endpoints and the terms under which they are used (CDS).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Unique name.
    pub name: String,
    /// What the endpoints speak.
    pub protocol: Protocol,
    /// Where the endpoints come from.
    pub discovery: Discovery,
    /// TLS towards the endpoints.
    pub tls: Option<UpstreamTls>,
    /// Each connection begins by saying for which client it is, in front of TLS; those that clients share, and
    /// those of the proxy's own, say that they are for none.
    #[serde(default)]
    pub proxy_protocol: Option<ProxyVersion>,
    /// How one is picked.
    pub balancer: Balancer,
    /// Where the endpoints' weights come from.
    #[serde(default)]
    pub weights: Weights,
    /// With [`Balancer::CompletionTime`]: what the time is predicted from.
    #[serde(default)]
    pub prediction: Prediction,
    /// With [`Balancer::Maglev`] and [`Balancer::RingHash`]: by what keys endpoints are found.
    #[serde(default)]
    pub hashing: Hashing,
    /// With [`Balancer::WeightedRoundRobin`]: what weights are made of.
    #[serde(default)]
    pub weighing: Weighing,
    /// Where the balancer goes by load reports: endpoints are asked for them out of band, so often
    /// (within [`Self::REPORT_INTERVALS`]); `None` = by the requests.
    #[serde(default)]
    pub out_of_band: Option<Duration>,
    /// First a locality is drawn, by the weights that [`super::Spread`] gives them, and then an endpoint is
    /// picked there; else localities do not matter.
    #[serde(default)]
    pub by_locality: bool,
    /// Limits.
    pub breaker: Breaker,
    /// Passive ejection; `None` = off.
    pub outlier: Option<Outlier>,
    /// Slow start on return, and the panic threshold.
    #[serde(default)]
    pub recovery: Recovery,
    /// What is admitted beyond the breaker's limits, and when.
    #[serde(default)]
    pub admission: Admission,
    /// Active probes; `None` = off.
    pub health_check: Option<HealthCheck>,
    /// Time allowed for a connection to stand (TCP and TLS). Default 5 s.
    pub connect_timeout: Duration,
    /// An idle pooled connection is closed after this. Default 60 s.
    pub pool_idle_timeout: Duration,
    /// Retries in flight as a share of requests in flight, and their bytes as a share of the bytes.
    pub retry_budget: BudgetShare,
}

/// The protocol of a service's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2: prior knowledge in cleartext, ALPN `h2` under TLS. gRPC is this.
    Http2,
    /// The version the client used (HTTP/1.1 stays 1.1, HTTP/2 stays 2).
    Follow,
    /// Opaque bytes.
    Tcp,
}

/// Where endpoints come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Discovery {
    /// Listed in the policy, or kept by the control plane: delivered as an endpoint set (EDS).
    Listed,
    /// All addresses of a DNS name, resolved by whoever owns the endpoint set.
    Dns {
        /// Host name.
        host: String,
        /// Port.
        port: u16,
        /// Time between look-ups. Default 30 s, at least 1 s.
        refresh: Duration,
    },
    /// There are none: each connection goes on to where it was made to, before it was redirected.
    OriginalDestination,
}

/// A version of HAProxy's PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Client-side TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamTls {
    /// SNI and name to verify.
    pub server_name: String,
    /// PEM roots on the proxy's machine; `None` = the system's.
    pub ca_file: Option<std::path::PathBuf>,
}

/// Circuit breaker: what goes beyond is refused at once (503, `x-towpath-reason: overflow`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breaker {
    /// Over the whole service.
    pub service: Thresholds,
    /// For each endpoint; a full endpoint is passed over while another has room.
    pub endpoint: Thresholds,
}

/// Limits; `None` = unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Open connections.
    pub max_connections: Option<u32>,
    /// Requests in flight.
    pub max_requests: Option<u32>,
    /// Requests that wait for a connection.
    pub max_pending: Option<u32>,
    /// Bytes in flight: declared or so far seen body bytes of unfinished exchanges.
    pub max_bytes_in_flight: Option<u64>,
}

/// What a `BreakerPolicy` says that Envoy's API has no words for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Admission {
    /// Requests wait in the proxy until an endpoint has a slot for them; `None` = they are sent at once.
    pub queue: Option<Queue>,
    /// The bandwidth through one proxy; `None` = unlimited.
    pub bandwidth: Option<Bandwidth>,
    /// What becomes of streams and connections that last; `None` = nothing, the default.
    pub stream_age: Option<StreamAge>,
    /// A limit of each endpoint that follows what it can do; `None` = none, the default.
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
}

/// A limit on the requests that wait for an endpoint's response head, kept by each proxy for each
/// endpoint: as many as it answers without queueing, and some more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdaptiveConcurrency {
    /// The limit never falls below. Default 3.
    pub min_requests: u32,
    /// Nor rises above. Default 1,000.
    pub max_requests: u32,
    /// The time to the head that is tolerated, in per cent of what it is without queueing. Default 150.
    pub tolerance_percent: u32,
}

impl Default for AdaptiveConcurrency {
    fn default() -> Self {
        Self { min_requests: 3, max_requests: 1000, tolerance_percent: 150 }
    }
}

/// A queue before the endpoints of a service. Each has so many slots; a request that finds none
/// free waits in the proxy, and gets an endpoint when a slot comes free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// Requests an endpoint works on at a time, where it does not say so itself. Default 1.
    pub slots: u32,
    /// The most requests that wait. Default 1,000.
    pub max_requests: u32,
    /// The most declared body bytes of those that wait. Default 10 GiB.
    pub max_bytes: u64,
    /// The longest a request waits. Default 60 s.
    pub max_wait: Duration,
    /// Shares of the slots where not all can be served.
    pub weights: ClassWeights,
}

/// Shares of the classes, in proportion to each other; each from 1 to 1,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassWeights {
    /// Default 16.
    pub interactive: u32,
    /// Default 4.
    pub bulk: u32,
    /// Default 1.
    pub background: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            slots: 1,
            max_requests: 1000,
            max_bytes: 10 << 30,
            max_wait: Duration::from_secs(60),
            weights: ClassWeights::default(),
        }
    }
}

impl ClassWeights {
    /// The weight of a class.
    pub const fn of(&self, class: Class) -> u32 {
        match class {
            Class::Interactive => self.interactive,
            Class::Bulk => self.bulk,
            Class::Background => self.background,
        }
    }
}

impl Default for ClassWeights {
    fn default() -> Self {
        Self { interactive: 16, bulk: 4, background: 1 }
    }
}

/// From an age on, downloads move to endpoints that have less to do, and connections take
/// nothing new, so that endpoints that are added get their share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamAge {
    /// The age. Default 10 min.
    pub max: Duration,
    /// Each stream and connection has an age of its own, so many per cent longer or shorter. Default 20.
    pub jitter_percent: u32,
}

impl Default for StreamAge {
    fn default() -> Self {
        Self { max: Duration::from_secs(600), jitter_percent: 20 }
    }
}

/// Retries allowed at a time: a few always, beyond those a share of the requests in flight and,
/// as far as bodies are sent again, of the bytes in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetShare {
    /// Per cent of requests and of bytes in flight. Default 20.
    pub percent: u32,
    /// Always allowed. Default 3.
    pub min_concurrent: u32,
}

impl Default for BudgetShare {
    fn default() -> Self {
        Self { percent: 20, min_concurrent: 3 }
    }
}

/// Passive ejection. The last usable endpoint is never ejected.
///
/// Failures in a row are seen as they happen; the rest compares an endpoint
/// with its peers, the other endpoints of its priority, from time to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outlier {
    /// Consecutive failures (5xx, reset, connect failure, timeout) that eject. Default 5.
    pub consecutive_failures: u32,
    /// First ejection; grows linearly with each further one. Default 30 s.
    pub base_ejection: Duration,
    /// Longest ejection. Default 300 s.
    pub max_ejection: Duration,
    /// Largest share of the endpoints ejected at once, in per cent; one may always be. Default 50.
    pub max_ejected_percent: u32,
    /// Success rate and latency are judged over this time. Default 10 s.
    pub interval: Duration,
    /// Endpoints with enough traffic to be compared, this one included, below
    /// which none is judged by its peers. Default 3.
    pub min_endpoints: u32,
    /// Ejection by the share of successes; `None` = off. On by default.
    pub success_rate: Option<SuccessRate>,
    /// Ejection by the time to the response head; `None` = off, the default:
    /// requests of one service may differ by orders of magnitude in what they ask for.
    pub latency: Option<Latency>,
    /// Ejection by goodput; `None` = off, the default.
    pub goodput: Option<Goodput>,
}

/// An endpoint is out when its share of successes lies this far below its peers' median.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SuccessRate {
    /// Requests within the interval below which an endpoint is not judged. Default 100.
    pub min_requests: u32,
    /// Percentage points below the median. Default 10.
    pub margin_percent: u32,
    /// And so many thousandths of a standard deviation (estimated from the
    /// median absolute deviation). Default 1,900, as Envoy's `success_rate_stdev_factor`.
    pub deviation_permille: u32,
}

/// An endpoint is out when its median time to the response head lies this far above its peers'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Requests within the interval below which an endpoint is not judged. Default 100.
    pub min_requests: u32,
    /// Per cent of the peers' median, above 100. Default 400.
    pub above_percent: u32,
    /// And so much more than it. Default 100 ms.
    pub margin: Duration,
}

/// An endpoint is out when its goodput lies this far below its peers': bytes
/// per second of the time in which a transfer waited for the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Goodput {
    /// Per cent of the peers' median, below 100. Default 25.
    pub below_percent: u32,
    /// Judged over this time. Default 1 s.
    pub window: Duration,
    /// An endpoint is judged when its peers would have moved so many bytes in its place. Default 1 MiB.
    pub min_bytes: u64,
}

/// What happens to endpoints that come back, and when too few are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recovery {
    /// After an ejection or failed probes the weight grows from the floor to
    /// the full one over this time; zero = at once. Default 10 s.
    pub slow_start: Duration,
    /// Where the weight starts, in per cent, at least 1. Default 10.
    pub slow_start_floor_percent: u32,
    /// When a smaller share of the endpoints than this (in per cent) is usable,
    /// ejections and probes are ignored; 0 = never. Default 10: a tenth cannot
    /// carry the load of all, and a judgement that condemns nine of ten is more
    /// likely wrong than right. Envoy's 50 would send most transfers of a set of
    /// three to the two that are down.
    pub panic_percent: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected_percent: 50,
            interval: Duration::from_secs(10),
            min_endpoints: 3,
            success_rate: Some(SuccessRate::default()),
            latency: None,
            goodput: None,
        }
    }
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { min_requests: 100, margin_percent: 10, deviation_permille: 1_900 }
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self { min_requests: 100, above_percent: 400, margin: Duration::from_millis(100) }
    }
}

impl Default for Goodput {
    fn default() -> Self {
        Self { below_percent: 25, window: Duration::from_secs(1), min_bytes: 1 << 20 }
    }
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            slow_start: Duration::from_secs(10),
            slow_start_floor_percent: 10,
            panic_percent: 10,
        }
    }
}

/// Active probing of every endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: HealthProbe,
    /// Time between probes. Default 10 s.
    pub interval: Duration,
    /// Time allowed for an answer. Default 2 s.
    pub timeout: Duration,
    /// Failures in a row that make an endpoint unhealthy. Default 3.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make it healthy again. Default 1.
    pub healthy_threshold: u32,
}

/// A probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthProbe {
    /// `GET path`, any 2xx is healthy.
    Http {
        /// Path.
        path: String,
        /// `Host`; `None` = the service's name.
        host: Option<String>,
    },
    /// `grpc.health.v1.Health/Check` for this service name (empty = the server as a whole).
    Grpc {
        /// Service name asked for.
        service: String,
    },
    /// A TCP connection can be made.
    Tcp,
}

impl Service {
    /// How often endpoints may be asked for load reports out of band.
    pub const REPORT_INTERVALS: RangeInclusive<Duration> =
        Duration::from_millis(100)..=Duration::from_secs(3600);

    /// A service with every safe default, whose endpoints are listed.
    pub fn new(name: impl Into<String>, protocol: Protocol) -> Self {
        Self {
            name: name.into(),
            protocol,
            discovery: Discovery::Listed,
            tls: None,
            proxy_protocol: None,
            balancer: Balancer::default(),
            weights: Weights::default(),
            prediction: Prediction::default(),
            hashing: Hashing::default(),
            weighing: Weighing::default(),
            out_of_band: None,
            by_locality: false,
            breaker: Breaker::default(),
            outlier: Some(Outlier::default()),
            recovery: Recovery::default(),
            admission: Admission::default(),
            health_check: None,
            connect_timeout: Duration::from_secs(5),
            pool_idle_timeout: Duration::from_secs(60),
            retry_budget: BudgetShare::default(),
        }
    }

    /// Whether what endpoints report of their load counts: for the balancer, or at the control plane.
    pub fn reads_reports(&self) -> bool {
        self.balancer.reads_reports() || self.weights == Weights::FromLoad
    }
}
