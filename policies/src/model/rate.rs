//! How much may pass in a time.

use serde::{Deserialize, Serialize};

use super::ClassWeights;

/// What one proxy lets pass on a route (a rule of a route, on one listener).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RateLimits {
    /// All of it.
    pub route: RateLimit,
    /// Each tenant's part of it.
    pub tenant: RateLimit,
}

/// Limits on requests and on body bytes; `None` = unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RateLimit {
    /// Requests beyond it are refused (429).
    pub requests: Option<Rate>,
    /// Body bytes of requests and responses together; transfers beyond it are slowed.
    pub bytes: Option<Rate>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// In the long run, at least 1.
    pub per_second: u64,
    /// And so many at once after a pause, at least 1.
    pub burst: u64,
}

/// The bandwidth to a service through one proxy, and who gets how much of it when there is
/// not enough for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Body bytes of requests and responses together, at least 1.
    pub bytes_per_second: u64,
    /// Shares of the classes that have something to move.
    #[serde(default)]
    pub weights: ClassWeights,
}

impl RateLimits {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.route.is_unlimited() && self.tenant.is_unlimited()
    }
}

impl RateLimit {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.requests.is_none() && self.bytes.is_none()
    }
}
