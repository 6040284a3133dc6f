//! Terms of route and service, and of the proxies themselves.

use std::time::Duration;

use fastrand::Rng;

use super::{millis, pick};

/// Terms of route and service.
#[derive(Clone, Debug)]
pub(in crate::faults) struct Policy {
    pub(in crate::faults) attempts: u32,
    pub(in crate::faults) on_503: bool,
    pub(in crate::faults) replay_limit: u64,
    /// Beyond that on disk.
    pub(in crate::faults) replay_disk_limit: u64,
    pub(in crate::faults) disk: Disk,
    pub(in crate::faults) trusts_keys: bool,
    /// Requests without a key that may not be repeated get one.
    pub(in crate::faults) mints_keys: bool,
    pub(in crate::faults) resumes: bool,
    pub(in crate::faults) per_try: Option<Duration>,
    pub(in crate::faults) retries_at_once: u32,
    pub(in crate::faults) max_requests: Option<u32>,
    pub(in crate::faults) max_bytes_in_flight: Option<u64>,
}

/// What there is for bodies that may have to be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::faults) enum Disk {
    Roomy,
    /// So many bytes for all requests together.
    Full(u64),
    /// Nothing can be written.
    Broken,
}

impl Policy {
    pub(super) fn draw(dice: &mut Rng) -> Self {
        let trusts_keys = dice.u8(..4) > 0;
        Self {
            attempts: dice.u32(0..=3),
            on_503: dice.bool(),
            replay_limit: *pick(dice, &[0, 16 << 10, 64 << 10, 64 << 10, 4 << 20]),
            replay_disk_limit: *pick(dice, &[0, 0, 256 << 10, 1 << 30]),
            disk: *pick(
                dice,
                &[Disk::Roomy, Disk::Full(1 << 20), Disk::Full(4 << 20), Disk::Broken],
            ),
            trusts_keys,
            mints_keys: trusts_keys && dice.u8(..3) == 0,
            resumes: dice.u8(..4) > 0,
            per_try: (dice.u8(..12) == 0).then(|| millis(dice, 20, 80)),
            retries_at_once: *pick(dice, &[1, 3, 100]),
            max_requests: (dice.u8(..12) == 0).then(|| dice.u32(1..4)),
            max_bytes_in_flight: (dice.u8(..12) == 0).then(|| dice.u64(1..1 << 20)),
        }
    }

    /// Whether limits may refuse what nothing is wrong with.
    pub(in crate::faults) fn is_tight(&self) -> bool {
        self.per_try.is_some() || self.max_requests.is_some() || self.max_bytes_in_flight.is_some()
    }
}
