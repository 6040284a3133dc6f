//! How fast one exchange's bytes may pass.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::time::Instant;
use towpath_policies::model::Class;

use super::{
    bucket::Bucket,
    gate::{Gate, Seat},
    limiter::{Buckets, Limiter, Refused},
};
use crate::timer::Timer;

/// The pace of one exchange, both ways together: its limits, and its share of a bounded bandwidth.
#[derive(Debug)]
pub(crate) struct Pace {
    limited: Option<Limited>,
    seat: Option<Seat>,
}

/// The part of it that rate limits dictate.
///
/// Bytes are paid for before they are read, a little at a time: equal parts in turn, so that
/// those who share a limit pass at an equal pace whatever the size of their pieces. A piece that
/// is larger than what was paid for is paid for before the next. What is left at the end is given back.
#[derive(Debug)]
struct Limited {
    limiter: Arc<Limiter>,
    tenant: Option<Arc<Buckets>>,
    /// Bytes paid for and not moved, or moved and not paid for.
    allowance: i64,
    /// What is paid for next. Small at first: most exchanges are.
    part: u64,
    most: u64,
    /// When what was paid for last may be used.
    from: Option<Instant>,
    timer: Timer,
    slowed: bool,
}

/// Bytes paid for first.
const FIRST: u64 = 4 * 1024;
/// The most paid for at a time, in bytes.
const MOST: u64 = 64 * 1024;
/// And in time at the limit's rate, in parts of a second.
const MOST_TIME: u64 = 50;

impl Pace {
    /// Lets a request pass; with a pace if its bytes are limited.
    pub(crate) fn admit(limiter: &Arc<Limiter>, tenant: u64) -> Result<Option<Box<Self>>, Refused> {
        let tenant = limiter.admit(tenant)?;
        if !limiter.limits_bytes() {
            return Ok(None);
        }
        let limited = Some(Limited::new(limiter.clone(), tenant));
        Ok(Some(Box::new(Self { limited, seat: None })))
    }

    /// Has the exchange share the bandwidth behind `gate`.
    pub(crate) fn share(pace: &mut Option<Box<Self>>, gate: &Arc<Gate>, class: Class, tenant: u64) {
        let pace = pace.get_or_insert_with(|| Box::new(Self { limited: None, seat: None }));
        pace.seat = Some(Seat::new(gate, class, tenant));
    }

    /// Ready when more may be moved.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(limited) = &mut self.limited {
            ready!(limited.poll(cx));
        }
        match &mut self.seat {
            Some(seat) => seat.poll(cx),
            None => Poll::Ready(()),
        }
    }

    /// So many bytes were moved.
    pub(crate) fn moved(&mut self, bytes: usize) {
        if let Some(limited) = &mut self.limited {
            limited.moved(bytes);
        }
        if let Some(seat) = &mut self.seat {
            seat.moved(bytes);
        }
    }
}

impl Limited {
    fn new(limiter: Arc<Limiter>, tenant: Option<Arc<Buckets>>) -> Self {
        let mut limited = Self {
            limiter,
            tenant,
            allowance: 0,
            part: FIRST,
            most: MOST,
            from: None,
            timer: Timer::default(),
            slowed: false,
        };
        let slowest = limited.buckets().map(Bucket::per_second).min().unwrap_or(u64::MAX);
        limited.most = (slowest / MOST_TIME).clamp(FIRST, MOST);
        limited
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(from) = self.from {
                ready!(self.timer.poll(cx, from));
                self.from = None;
            }
            if self.allowance > 0 {
                return Poll::Ready(());
            }
            self.pay();
        }
    }

    fn moved(&mut self, bytes: usize) {
        self.allowance = self.allowance.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn pay(&mut self) {
        let now = self.limiter.now();
        let at = self.buckets().map(|bucket| bucket.reserve(self.part, now)).max().unwrap_or(now);
        self.allowance += self.part.cast_signed();
        self.part = (self.part * 2).min(self.most);
        if at > now {
            if !std::mem::replace(&mut self.slowed, true) {
                self.limiter.slowed();
            }
            self.from = self.limiter.at(at);
        }
    }

    fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        let tenant = self.tenant.as_ref().and_then(|t| t.bytes.as_ref());
        self.limiter.route().bytes.iter().chain(tenant)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let left = self.allowance.unsigned_abs();
        if self.allowance > 0 {
            self.buckets().for_each(|bucket| bucket.give_back(left));
        } else if left > 0 {
            let now = self.limiter.now();
            for bucket in self.buckets() {
                bucket.reserve(left, now);
            }
        }
    }
}
