//! Whether a transfer moves too little while somebody is waited for. Pure: time is an argument.
//!
//! Goodput is looked at a few times in the time that the policy names, and never between: no
//! piece of a body reads a clock. Each look notes the bytes moved so far and whom the exchange
//! waits for at that moment. When all looks of a whole such time found it waiting for the same
//! side, and less was moved in it than the floor allows, that side has stalled. An exchange that
//! waits now for one and now for the other is slow by nobody's fault alone, and is left to the
//! other limits; so is one that waits for neither.

use std::time::Duration;

use tokio::time::Instant;
use towpath_policies::model;

/// Whom an exchange waits for before another byte of a body can move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Waits {
    /// For us, or for something that is not to be hurried: a connection, a disk, the response head.
    #[default]
    Elsewhere,
    /// For the client to send its body, or to take the response.
    Client,
    /// For the endpoint to take the request body, or to send the response.
    Endpoint,
}

/// How an exchange stands when it is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    /// Body bytes moved in this try, both ways.
    pub(super) bytes: u64,
    pub(super) waits: Waits,
}

/// The looks at one exchange.
#[derive(Debug)]
pub(super) struct Stall {
    /// Fewer bytes in the whole time are too few.
    floor: u64,
    part: Duration,
    next: Instant,
    waits: Waits,
    /// Bytes at the last looks that found `waits`, the oldest first.
    bytes: [u64; LOOKS],
    looks: usize,
}

/// So many parts has the time of the policy; a stall is seen at most one of them late.
const PARTS: u32 = 8;
/// The time begins with one look and ends with another.
const LOOKS: usize = PARTS as usize + 1;

impl Stall {
    pub(super) fn new(policy: &model::Stall, now: Instant) -> Self {
        let floor = policy.time.as_millis().saturating_mul(policy.below_bytes.into()) / 1000;
        let part = (policy.time / PARTS).max(Duration::from_millis(1));
        Self {
            floor: u64::try_from(floor).unwrap_or(u64::MAX),
            part,
            next: now + part,
            waits: Waits::Elsewhere,
            bytes: [0; LOOKS],
            looks: 0,
        }
    }

    /// When it is to be looked at next.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Begins anew: another try, which has moved nothing yet.
    pub(super) fn restart(&mut self) {
        self.looks = 0;
    }

    /// One look; the side that has stalled, if one has.
    pub(super) fn look(&mut self, now: Instant, flow: Flow) -> Option<Waits> {
        self.next = now + self.part;
        if flow.waits != self.waits {
            self.waits = flow.waits;
            self.looks = 0;
        }
        if self.waits == Waits::Elsewhere {
            return None;
        }
        if self.looks == LOOKS {
            self.bytes.rotate_left(1);
            self.looks -= 1;
        }
        self.bytes[self.looks] = flow.bytes;
        self.looks += 1;
        let moved = flow.bytes.saturating_sub(self.bytes[0]);
        (self.looks == LOOKS && moved < self.floor).then_some(self.waits)
    }
}

#[cfg(test)]
mod tests;
