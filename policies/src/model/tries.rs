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
