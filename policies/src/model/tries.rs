//! What a try may cost in time, beyond the deadlines.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The least that a body must move while it is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stall {
    /// Floor in bytes per second, above 0.
    pub below_bytes: u64,
    /// Time over which it is held, at least [`Stall::SHORTEST`].
    #[serde(rename = "for")]
    pub time: Duration,
}

impl Stall {
    /// Shorter times say more of round trips than of goodput.
    pub const SHORTEST: Duration = Duration::from_secs(1);
}

/// When a read without a body is asked for a second time, elsewhere: its response head is late.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hedge {
    /// What is late.
    pub after: HedgeAfter,
    /// An answer of the hedge that declares more bytes than this does not take the place of the
    /// first try's, while that is under way.
    pub max_bytes: u64,
    /// Times to the head that must be known of the route before any is late by their percentile.
    pub min_samples: u32,
}

/// What is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HedgeAfter {
    /// Beyond this percentile, 50 to 99, of the route's own times to the response head.
    Percentile(u32),
    /// After this time.
    Time(Duration),
}

impl Default for Hedge {
    fn default() -> Self {
        Self { after: HedgeAfter::Percentile(95), max_bytes: 64 << 10, min_samples: 100 }
    }
}
