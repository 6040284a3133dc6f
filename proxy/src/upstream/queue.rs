//! Requests that wait for a slot at an endpoint of their service (late binding).
//!
//! [`mod@line`] decides who is next and is pure; here are the lock around it, the wakers of those
//! who wait, and the guards that give slots back. A service without a queue has none of this.
//! The lock is held for one decision at a time, never across an `.await`, and nobody is woken
//! and no slot is given back under it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use towpath_policies::model::{Class, Queue as Terms};

pub(crate) mod line;

use super::{
    EndpointState, ServiceLive, ServiceState, now_ms, now_us,
    pick::{self, Ask, NoPick, Tried},
};
use crate::{
    lock::lock,
    metrics::{Counter, Histogram, registry},
};
use line::{Fit, Id, Line, Want};

/// All that wait for one service.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// How many wait, to be looked at without the lock.
    waiting: AtomicU32,
    pub(crate) metrics: QueueMetrics,
}

#[derive(Debug, Default)]
struct State {
    line: Line,
    places: HashMap<Id, Place>,
}

/// What is known of one that waits, besides its place in the line.
#[derive(Debug)]
struct Place {
    tried: Tried,
    ask: Ask,
    estimate: Arc<Estimate>,
    waker: Option<Waker>,
    turn: Option<Turn>,
}

/// How waiting ends.
#[derive(Debug)]
pub(crate) enum Turn {
    /// With a slot.
    Slot(Box<Slot>),
    /// There is no queue any more: it may go on without.
    Free,
    /// Somebody better came; it may try again after this.
    Displaced(Duration),
}

/// A request in the line, until dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    live: Arc<ServiceLive>,
    id: Id,
    class: Class,
    since_us: u64,
    over: bool,
}

/// One of an endpoint's slots, until dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) service: Arc<ServiceState>,
    pub(crate) endpoint: Arc<EndpointState>,
    want: Want,
    /// `None`: not on anybody's account.
    estimate: Option<Arc<Estimate>>,
    since_us: u64,
    /// The endpoint did what it was asked, so that the time it took says something.
    pub(crate) answered: bool,
}

/// What requests of a route take, of late: time in a slot, and declared body bytes.
#[derive(Debug, Default)]
pub(crate) struct Estimate {
    held_us: AtomicU64,
    bytes: AtomicU64,
}

/// Handles for `/metrics`, by class.
#[derive(Debug)]
pub(crate) struct QueueMetrics {
    /// `towpath_queue_wait_seconds`.
    wait: [Histogram; 3],
    /// `towpath_queue_refused_total`.
    refused: [Counter; 3],
    /// `towpath_queue_displaced_total`.
    displaced: [Counter; 3],
    /// `towpath_queue_expired_total`.
    expired: [Counter; 3],
}

/// Lets a request into the line of its service. Its turn may come at once.
///
/// # Errors
/// There is no room; the time after which there may be.
pub(crate) fn join(
    service: &ServiceState,
    terms: &Terms,
    want: Want,
    (tried, ask): (Tried, Ask),
    estimate: Arc<Estimate>,
) -> Result<Waiting, Duration> {
    let live = &service.live;
    let queue = live.queue.get_or_init(|| Queue::new(&service.spec.name));
    let now_us = now_us();
    let mut wakers = Vec::new();
    let id = {
        let mut state = queue.lock();
        let State { line, places } = &mut *state;
        let advice = Duration::from_micros(line.advice_us(now_us));
        let Ok(joined) = line.join(want, now_us, terms) else {
            queue.metrics.refused[want.class as usize].inc();
            return Err(advice);
        };
        for id in joined.displaced {
            let Some(place) = places.get_mut(&id) else { continue };
            place.turn = Some(Turn::Displaced(advice));
            wakers.extend(place.waker.take());
        }
        places.insert(joined.id, Place { tried, ask, estimate, waker: None, turn: None });
        queue.note_length(&state);
        joined.id
    };
    wakers.into_iter().for_each(Waker::wake);
    let waiting =
        Waiting { live: live.clone(), id, class: want.class, since_us: now_us, over: false };
    live.kick();
    Ok(waiting)
}

/// A slot that is free while nobody waits for one, on nobody's account.
pub(crate) fn idle_slot(service: &Arc<ServiceState>, ask: Ask) -> Option<Box<Slot>> {
    let queue = service.live.queue.get()?;
    let state = queue.lock();
    if state.line.length() > 0 || service.room(ask.bytes).is_err() {
        return None;
    }
    let endpoint = pick::seat(service, &Tried::default(), now_ms(), ask).ok()?;
    let want = Want {
        class: Class::Background,
        tenant: 0,
        bytes: ask.bytes,
        length_us: 0,
        start_by_us: 0,
        again: false,
    };
    Some(Slot::take(service, endpoint, want, None))
}

impl ServiceLive {
    /// How many requests wait for a slot.
    pub fn queued(&self) -> u32 {
        self.queue.get().map_or(0, |queue| queue.waiting.load(Relaxed))
    }

    /// Gives free slots to those who wait for them. To be called when a slot came free, and
    /// when an endpoint or the configuration changed.
    pub(crate) fn kick(&self) {
        let Some(queue) = self.queue.get() else { return };
        // Whoever joins looks for a slot itself, after it is counted here.
        while queue.waiting.load(Relaxed) > 0 {
            let service = self.current.load_full();
            let Some(waker) = queue.grant(service.as_ref()) else { return };
            waker.inspect(Waker::wake_by_ref);
        }
    }
}

impl Queue {
    pub(crate) fn new(service: &str) -> Self {
        Self {
            state: Mutex::default(),
            waiting: AtomicU32::new(0),
            metrics: QueueMetrics::new(service),
        }
    }

    /// How many of each class wait, and the bytes of theirs that count.
    pub(crate) fn lengths(&self) -> [(usize, u64); 3] {
        let state = self.lock();
        Class::ALL.map(|class| state.line.of_class(class))
    }

    /// Gives one slot away, if there is one and somebody to take it; returns whom to wake.
    fn grant(&self, service: Option<&Arc<ServiceState>>) -> Option<Option<Waker>> {
        let mut state = self.lock();
        let State { line, places } = &mut *state;
        let queued = service.and_then(|s| Some((s, s.spec.admission.queue.as_ref()?)));
        let (id, turn) = if let Some((service, terms)) = queued {
            let (now_us, now_ms) = (now_us(), now_ms());
            // Else each that waits would ask each endpoint in vain, at every kick.
            if !pick::any_seat(service, now_ms) {
                return None;
            }
            let (id, want, endpoint) = line.next(now_us, terms, |id, want| {
                let Some(place) = places.get(&id) else { return Fit::No };
                if service.room(want.bytes).is_err() {
                    // The first in order, or large requests would never get through.
                    return Fit::Nobody;
                }
                let ask = Ask { bytes: want.bytes, ..place.ask };
                match pick::seat(service, &place.tried, now_ms, ask) {
                    Ok(endpoint) => Fit::Yes(endpoint),
                    Err(NoPick::Full(_)) => Fit::No,
                    Err(NoPick::NoneHealthy) => Fit::Nobody,
                }
            })?;
            let estimate = places.get(&id)?.estimate.clone();
            (id, Turn::Slot(Slot::take(service, endpoint, want, Some(estimate))))
        } else {
            let id = line.first()?;
            line.leave(id);
            (id, Turn::Free)
        };
        let place = places.get_mut(&id)?;
        place.turn = Some(turn);
        let waker = place.waker.take();
        self.note_length(&state);
        Some(waker)
    }

    fn note_length(&self, state: &State) {
        self.waiting.store(u32::try_from(state.line.length()).unwrap_or(u32::MAX), Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held is a bug that was logged; what is inside is still the best there is.
        lock(&self.state)
    }
}

impl Waiting {
    /// Ready when waiting is over.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let Some(queue) = self.live.queue.get() else { return Poll::Pending };
        let mut state = queue.lock();
        let Some(place) = state.places.get_mut(&self.id) else { return Poll::Pending };
        let Some(turn) = place.turn.take() else {
            if !place.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                place.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        state.places.remove(&self.id);
        drop(state);
        self.over = true;
        match turn {
            Turn::Slot(_) => queue.metrics.wait[self.class as usize].record(self.waited()),
            Turn::Displaced(_) => queue.metrics.displaced[self.class as usize].inc(),
            Turn::Free => {}
        }
        Poll::Ready(turn)
    }

    /// Time since it joined.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_micros(now_us().saturating_sub(self.since_us))
    }

    /// Its time is over; returns the time after which another try may have more luck.
    pub(crate) fn expire(self) -> Duration {
        let Some(queue) = self.live.queue.get() else { return Duration::ZERO };
        queue.metrics.expired[self.class as usize].inc();
        Duration::from_micros(queue.lock().line.advice_us(now_us()))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(queue) = self.live.queue.get().filter(|_| !self.over) else { return };
        let place = {
            let mut state = queue.lock();
            state.line.leave(self.id);
            let place = state.places.remove(&self.id);
            queue.note_length(&state);
            place
        };
        // It may have been given a slot in the meantime, or held up those behind it.
        drop(place);
        self.live.kick();
    }
}

impl Slot {
    /// Under the queue's lock.
    fn take(
        service: &Arc<ServiceState>,
        endpoint: &Arc<EndpointState>,
        want: Want,
        estimate: Option<Arc<Estimate>>,
    ) -> Box<Self> {
        endpoint.live.slots_used.fetch_add(1, Relaxed);
        Box::new(Self {
            service: service.clone(),
            endpoint: endpoint.clone(),
            want,
            estimate,
            since_us: now_us(),
            answered: false,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let live = &self.service.live;
        let now_us = now_us();
        let took_us = now_us.saturating_sub(self.since_us);
        if let (Some(estimate), true) = (&self.estimate, self.answered) {
            estimate.learn(took_us, self.want.bytes);
        }
        if let Some(queue) = live.queue.get() {
            let mut state = queue.lock();
            self.endpoint.live.slots_used.fetch_sub(1, Relaxed);
            if let (Some(terms), true) =
                (&self.service.spec.admission.queue, self.estimate.is_some())
            {
                state.line.settle(&self.want, took_us, now_us, terms);
            }
        }
        live.kick();
    }
}

impl Estimate {
    /// How long a request will take in a slot, in µs: as long as others of its route did of
    /// late, in proportion to the bytes it declares. `None`: it declares none.
    pub(crate) fn predict_us(&self, bytes: Option<u64>) -> u64 {
        let held = self.held_us.load(Relaxed);
        let guess = match (held, bytes) {
            (0, None) => UNKNOWN_US,
            (0, Some(bytes)) => UNKNOWN_US / 10 + bytes / UNKNOWN_BYTES_PER_US,
            (held, None) => held,
            (held, Some(bytes)) => {
                let usual = u128::from(self.bytes.load(Relaxed)) + SMALL_BYTES;
                let scaled = u128::from(held) * (u128::from(bytes) + SMALL_BYTES) / usual;
                let scaled = u64::try_from(scaled).unwrap_or(u64::MAX);
                scaled.clamp(held / MOST_RATIO, held.saturating_mul(MOST_RATIO))
            }
        };
        guess.clamp(1, LONGEST_US)
    }

    fn learn(&self, held_us: u64, bytes: u64) {
        // Two at once may lose one of the two: it is an estimate.
        for (value, seen) in [(&self.held_us, held_us.max(1)), (&self.bytes, bytes)] {
            let old = value.load(Relaxed);
            let seen = seen.min(1 << 60);
            let first = self.held_us.load(Relaxed) == 0;
            value.store(if first { seen } else { old - old / 8 + seen / 8 }, Relaxed);
        }
    }
}

/// What a request takes of which nothing is known yet.
const UNKNOWN_US: u64 = 100_000;
/// And its bytes: 100 MB/s.
const UNKNOWN_BYTES_PER_US: u64 = 100;
/// Below this, size makes no difference.
const SMALL_BYTES: u128 = 4096;
/// A request is expected to take at most so many times what others take, whatever it declares.
const MOST_RATIO: u64 = 64;
/// The most that is expected: an hour.
const LONGEST_US: u64 = 3_600_000_000;

impl QueueMetrics {
    fn new(service: &str) -> Self {
        let registry = registry();
        let of = |class: Class| [("service", service), ("class", class.name())];
        let counter = |name| Class::ALL.map(|class| registry.counter(name, &of(class)));
        Self {
            wait: Class::ALL
                .map(|class| registry.histogram("towpath_queue_wait_seconds", &of(class))),
            refused: counter("towpath_queue_refused_total"),
            displaced: counter("towpath_queue_displaced_total"),
            expired: counter("towpath_queue_expired_total"),
        }
    }
}

#[cfg(test)]
mod tests;
