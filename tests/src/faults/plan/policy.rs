//! Terms of route and service, and of the proxies themselves.

use std::time::Duration;

use fastrand::Rng;
use towpath_policies::model::{
    AdaptiveConcurrency, Bandwidth, ClassWeights, Hedge, HedgeAfter, Integrity, Queue, Rate,
    RateLimit, Stall, StreamAge,
};

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
    pub(in crate::faults) resumes_uploads: bool,
    pub(in crate::faults) integrity: Integrity,
    pub(in crate::faults) hedge: Option<Hedge>,
    pub(in crate::faults) per_try: Option<Duration>,
    /// Whoever moves less is given up. Shorter than documents may say, so that runs are.
    pub(in crate::faults) stall: Option<Stall>,
    pub(in crate::faults) limit: RateLimit,
    pub(in crate::faults) bandwidth: Option<Bandwidth>,
    pub(in crate::faults) queue: Option<Queue>,
    /// Not beside a queue.
    pub(in crate::faults) adapts: Option<AdaptiveConcurrency>,
    pub(in crate::faults) age: Option<StreamAge>,
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
            resumes_uploads: dice.bool(),
            integrity: Integrity {
                make: dice.u8(..5) == 0,
                check: dice.u8(..4) == 0,
                ..Integrity::default()
            },
            hedge: (dice.u8(..3) == 0).then(|| hedge(dice)),
            per_try: (dice.u8(..12) == 0).then(|| millis(dice, 20, 80)),
            stall: (dice.u8(..8) == 0).then(|| Stall {
                below_bytes: *pick(dice, &[64, 1 << 10, 1 << 20]),
                time: millis(dice, 40, 120),
            }),
            limit: RateLimit {
                requests: (dice.u8(..12) == 0)
                    .then(|| Rate { per_second: dice.u64(1..50), burst: dice.u64(1..8) }),
                bytes: (dice.u8(..10) == 0)
                    .then(|| Rate { per_second: rate(dice), burst: dice.u64(1..1 << 18) }),
            },
            bandwidth: (dice.u8(..10) == 0).then(|| Bandwidth {
                bytes_per_second: rate(dice),
                weights: ClassWeights::default(),
            }),
            queue: (dice.u8(..5) == 0).then(|| queue(dice)),
            adapts: None,
            age: (dice.u8(..8) == 0)
                .then(|| StreamAge { max: millis(dice, 0, 40), jitter_percent: 20 }),
            retries_at_once: *pick(dice, &[1, 3, 100]),
            max_requests: (dice.u8(..12) == 0).then(|| dice.u32(1..4)),
            max_bytes_in_flight: (dice.u8(..12) == 0).then(|| dice.u64(1..1 << 20)),
        }
    }

    /// Refuses nothing that nothing is wrong with.
    pub(super) fn loosen(&mut self) {
        (self.per_try, self.stall, self.limit.requests) = (None, None, None);
        (self.max_requests, self.max_bytes_in_flight, self.adapts) = (None, None, None);
        self.queue = self.queue.map(|queue| Queue { slots: queue.slots, ..Queue::default() });
    }

    /// Limits what waits for a head, where no queue does.
    pub(super) fn adapt(&mut self, dice: &mut Rng) {
        let least = dice.u32(1..4);
        let most = *pick(dice, &[least, least + 1, 1000]);
        let terms =
            AdaptiveConcurrency { min_requests: least, max_requests: most, ..Default::default() };
        self.adapts = self.queue.is_none().then_some(terms);
    }

    /// Has refusals be followed by another try, whatever else there is.
    pub(super) fn bear_refusals(&mut self) {
        self.loosen();
        (self.hedge, self.age, self.resumes_uploads) = (None, None, false);
        self.attempts = self.attempts.max(1);
        self.replay_limit = self.replay_limit.max(16 << 10);
        self.retries_at_once = 100;
    }

    /// Lets a run of so many bytes end soon, whatever is limited.
    pub(super) fn keep_pace(&mut self, bytes: u64) {
        let least = bytes.saturating_mul(PACE);
        if let Some(rate) = &mut self.limit.bytes {
            rate.per_second = rate.per_second.max(least);
        }
        if let Some(bandwidth) = &mut self.bandwidth {
            bandwidth.bytes_per_second = bandwidth.bytes_per_second.max(least);
        }
    }

    /// Whether what nothing is wrong with may be cut off.
    pub(in crate::faults) fn cuts(&self) -> bool {
        self.stall.is_some()
    }

    /// Whether what nothing is wrong with may be refused for this reason.
    pub(in crate::faults) fn may_refuse(&self, reason: &str) -> bool {
        match reason {
            "overflow" => {
                self.max_requests.is_some()
                    || self.max_bytes_in_flight.is_some()
                    || self.adapts.is_some()
            }
            "timeout" => self.per_try.is_some(),
            "rate_limit" => self.limit.requests.is_some(),
            "stall" | "client_stall" => self.stall.is_some(),
            "queue_full" | "queue_displaced" => {
                self.queue.is_some_and(|q| q.max_requests < Queue::default().max_requests)
            }
            "queue_wait" => self.queue.is_some_and(|q| q.max_wait < Queue::default().max_wait),
            _ => false,
        }
    }
}

/// Bytes pass at this many times themselves a second at least.
const PACE: u64 = 8;

/// Bytes a second.
fn rate(dice: &mut Rng) -> u64 {
    *pick(dice, &[1 << 16, 1 << 20, 16 << 20])
}

fn hedge(dice: &mut Rng) -> Hedge {
    let after = match dice.bool() {
        true => HedgeAfter::Time(Duration::from_millis(*pick(dice, &[0, 0, 1, 5]))),
        false => HedgeAfter::Percentile(dice.u32(50..=99)),
    };
    Hedge { after, max_bytes: *pick(dice, &[1, 4 << 10, 1 << 30]), min_samples: dice.u32(1..4) }
}

fn queue(dice: &mut Rng) -> Queue {
    let roomy = Queue::default();
    Queue {
        slots: dice.u32(1..4),
        max_requests: *pick(dice, &[roomy.max_requests, roomy.max_requests, 1, 2]),
        max_wait: match dice.u8(..4) {
            0 => millis(dice, 5, 40),
            _ => roomy.max_wait,
        },
        ..roomy
    }
}
