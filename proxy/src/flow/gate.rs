//! The bounded bandwidth to a service, and the places of those who share it.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use ahash::AHashMap;
use tokio::time::{Instant, sleep_until};
use towpath_policies::model::{Bandwidth, Class};

use super::shares::{Ask, Shares};
use crate::{
    lock::lock,
    metrics::{Counter, registry},
};

/// The queue before a service whose bandwidth is bounded. A lock, taken once per part of some
/// milliseconds' worth of bytes, and only where a policy asks for it.
#[derive(Debug)]
pub(crate) struct Gate {
    spec: Bandwidth,
    /// Times count from here.
    born: Instant,
    queue: Mutex<Queue>,
    /// `towpath_bandwidth_bytes_total{service,class}`.
    bytes: [Counter; Class::ALL.len()],
}

#[derive(Debug)]
struct Queue {
    shares: Shares,
    seats: AHashMap<u64, Waiting>,
    last_id: u64,
    /// A task waits for the next grant.
    driven: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    waker: Option<Waker>,
    granted: u64,
    asked: bool,
}

/// A transfer's place at a [`Gate`].
#[derive(Debug)]
pub(super) struct Seat {
    gate: Arc<Gate>,
    class: Class,
    tenant: u64,
    id: u64,
    /// Bytes granted and not moved, or moved and not granted.
    allowance: i64,
    asked: bool,
    /// What is asked for next. Small at first: most exchanges are.
    part: u64,
    most: u64,
}

/// What is asked for first.
const FIRST: u64 = 8 * 1024;

impl Gate {
    pub(crate) fn new(service: &str, spec: Bandwidth) -> Self {
        let bytes = Class::ALL.map(|class| {
            let labels = [("service", service), ("class", class.name())];
            registry().counter("towpath_bandwidth_bytes_total", &labels)
        });
        let queue = Queue {
            shares: Shares::new(&spec, 0),
            seats: AHashMap::new(),
            last_id: 0,
            driven: false,
        };
        Self { spec, born: Instant::now(), queue: Mutex::new(queue), bytes }
    }

    pub(crate) fn spec(&self) -> &Bandwidth {
        &self.spec
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX / 4)
    }
}

impl Queue {
    fn grant(&mut self, now: u64) {
        while let Some(ask) = self.shares.grant(now) {
            let Some(waiting) = self.seats.get_mut(&ask.id) else { continue };
            waiting.granted += ask.bytes;
            waiting.asked = false;
            if let Some(waker) = waiting.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Seat {
    pub(super) fn new(gate: &Arc<Gate>, class: Class, tenant: u64) -> Self {
        let mut queue = gate.lock();
        queue.last_id += 1;
        let id = queue.last_id;
        queue.seats.insert(id, Waiting::default());
        drop(queue);
        let most = Shares::most(gate.spec.bytes_per_second);
        let gate = gate.clone();
        Self { gate, class, tenant, id, allowance: 0, asked: false, part: FIRST, most }
    }

    /// Ready when more may be moved. Asks ahead, so that a transfer that could go faster is
    /// never missing from the queue.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.allowance > 0 && (self.asked || self.allowance >= self.part.cast_signed()) {
            return Poll::Ready(());
        }
        let gate = self.gate.clone();
        let now = gate.now();
        let mut queue = gate.lock();
        loop {
            if !self.asked {
                let ask = Ask { id: self.id, bytes: self.part };
                queue.shares.ask(self.class, self.tenant, ask);
                self.asked = true;
                if let Some(waiting) = queue.seats.get_mut(&self.id) {
                    waiting.asked = true;
                }
                queue.grant(now);
            }
            let Some(waiting) = queue.seats.get_mut(&self.id) else { return Poll::Ready(()) };
            self.allowance =
                self.allowance.saturating_add_unsigned(std::mem::take(&mut waiting.granted));
            if !waiting.asked {
                self.asked = false;
                self.part = (self.part * 2).min(self.most);
            }
            if self.allowance > 0 || self.asked {
                waiting.waker = (self.allowance <= 0).then(|| cx.waker().clone());
                break;
            }
        }
        if self.asked && !std::mem::replace(&mut queue.driven, true) {
            tokio::spawn(drive(Driving { gate: gate.clone(), done: false }));
        }
        if self.allowance > 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(super) fn moved(&mut self, bytes: usize) {
        self.allowance = self.allowance.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.gate.bytes[self.class as usize].add(bytes as u64);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut queue = self.gate.lock();
        let granted = queue.seats.remove(&self.id).map_or(0, |waiting| waiting.granted);
        queue.shares.withdraw(self.class, self.tenant, self.id);
        let left = self.allowance.saturating_add_unsigned(granted);
        if left > 0 {
            queue.shares.give_back(left.unsigned_abs());
        } else {
            queue.shares.owe(left.unsigned_abs());
        }
    }
}

/// The one task that grants what time brings, while somebody waits.
struct Driving {
    gate: Arc<Gate>,
    done: bool,
}

impl Drop for Driving {
    fn drop(&mut self) {
        // Cut short with its runtime: whoever asks next starts another.
        if !self.done {
            self.gate.lock().driven = false;
        }
    }
}

async fn drive(mut driving: Driving) {
    let gate = driving.gate.clone();
    while !driving.done {
        let next = {
            let mut queue = gate.lock();
            queue.grant(gate.now());
            let next = queue.shares.next_at();
            // Under the same lock, so that whoever asks next finds nobody at it.
            queue.driven = next.is_some();
            driving.done = next.is_none();
            next
        };
        if let Some(at) = next.and_then(|at| gate.born.checked_add(Duration::from_nanos(at))) {
            sleep_until(at).await;
        }
    }
}
