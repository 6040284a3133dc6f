//! The domain types a policy folder becomes: one immutable [`Snapshot`] of
//! listeners, route tables, services and endpoints.
//!
//! Everything in here is already validated ("parse, don't validate"): a value
//! that exists is a value that can be obeyed. The shape follows Envoy's v3
//! resources one to one (listener = LDS, route table = RDS, service = CDS,
//! endpoint set = EDS), so that `towpath-xds` can encode it and decode it
//! again without loss.

mod balancing;
mod endpoint;
mod listener;
mod mesh;
mod passthrough;
mod rate;
mod region;
mod route;
mod service;
mod snapshot;
mod transfer;
mod tries;

pub use balancing::{
    Balancer, Hashing, KeySource, OriginSource, Prediction, Registered, Terms, Weighing,
    WeighingField, Weights,
};
pub use endpoint::{
    Coordinates, Endpoint, EndpointSet, Gpu, Health, Locality, LocalityWeight, Location, Spread,
};
pub use ipnetwork::IpNetwork;
pub use listener::{
    Bind, Chain, ChainKind, ForwardedHeader, HttpOptions, KeyFiles, Listener, Only, ProxyProtocol,
    Redirected, Speaks, TcpForward, TlsServer,
};
pub(crate) use mesh::overlap;
pub use mesh::{Mesh, Node, NodeSelector, ScopedListener};
pub use rate::{Bandwidth, Rate, RateLimit, RateLimits};
pub use region::Region;
pub use route::{
    Action, DirectResponse, Forward, HeaderEdit, HostRewrite, Mirror, PathMatch, PathRewrite,
    Pattern, Redirect, RetryCondition, RetryPolicy, Route, RouteMatch, RouteTable, ValueMatch,
    VirtualHost, WeightedBackend,
};
pub use service::{
    AdaptiveConcurrency, Admission, Breaker, BudgetShare, ClassWeights, Discovery, Goodput,
    HealthCheck, HealthProbe, Latency, Outlier, Protocol, ProxyVersion, Queue, Recovery, Service,
    StreamAge, SuccessRate, Thresholds, UpstreamTls,
};
pub use snapshot::{ResourceKey, ResourceKind, Snapshot, Source};
pub use transfer::{Class, DigestAlgorithm, Integrity, TenantKey, Transfer};
pub use tries::{Hedge, HedgeAfter, Stall};
