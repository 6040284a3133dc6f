//! What may still be sent: breaker limits, the count of what is in flight, and
//! the retry budget. Guards give back what they took when they are dropped.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use towpath_policies::model::{Breaker, Thresholds};

use super::{
    EndpointLive, EndpointState, ServiceLive, ServiceState,
    completion::{cost::PerByte, learn::Stopwatch, places::Cell},
    concurrency::{BULK, Concurrency},
    now_us,
    queue::Slot,
    wall_us,
};
use crate::{
    metrics::Sum,
    outlier::meter::{Asked, SMALLEST_JUDGED, Transfer},
};

/// A limit of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Open connections.
    Connections,
    /// Requests in flight.
    Requests,
    /// Requests that wait for a connection.
    Pending,
    /// Bytes in flight.
    Bytes,
    /// Requests an endpoint works on at a time.
    Slots,
    /// Requests that wait for a response head, where their number adapts.
    Concurrency,
}

/// One try in flight: counted on its service and its endpoint until dropped.
#[derive(Debug)]
pub struct Ticket {
    /// The service.
    pub service: Arc<ServiceState>,
    /// The endpoint picked.
    pub endpoint: Arc<EndpointState>,
    bytes: u64,
    /// What the request declares, and how much of it counts by now.
    declared: u64,
    believed: u64,
    request: Transfer,
    response: Transfer,
    asked: Asked,
    /// Where completion times are predicted.
    watch: Option<Stopwatch>,
    /// It is counted as one that waits for its response head.
    awaits_head: bool,
    /// Where there is a queue: what it has of the endpoint. Given back after all else.
    pub(crate) slot: Option<Box<Slot>>,
    /// No longer one of the requests in flight.
    aside: bool,
    /// Where the endpoint says its slots: [`now_us`] time from which it uses one.
    busy_from_us: Option<u64>,
    /// Where it is known what its bytes emit and cost.
    tally: Option<Tally>,
}

/// What a try's bytes emit and cost, and where that is counted.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) per_byte: PerByte,
    pub(crate) grams: Sum,
    pub(crate) cents: Sum,
}

/// A connection that stands, counted until dropped.
#[derive(Debug)]
pub struct ConnectionGuard {
    service: Arc<ServiceLive>,
    endpoint: Arc<EndpointLive>,
    terms: u64,
}

/// A try that waits for a connection, counted until dropped.
#[derive(Debug)]
pub struct PendingGuard<'a> {
    service: &'a ServiceLive,
    endpoint: &'a EndpointLive,
}

/// A retry under way, counted until dropped.
#[derive(Debug)]
pub struct RetryGuard {
    service: Arc<ServiceLive>,
    bytes: u64,
}

/// How far the length that a request declares counts as in flight before its bytes move.
///
/// Anybody may declare a terabyte and send none of it. Were it taken at its word, an endpoint
/// would get nothing else and a breaker let nobody pass, for as long as it trickles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Belief {
    at_once: u64,
    /// And so many for each byte that moves.
    per_byte: u64,
}

/// The most one try counts as bytes in flight: 1 TiB, whatever is declared.
const MOST_COUNTED: u64 = 1 << 40;
/// What counts at once where only the balancer looks at it: little beside bulk.
const AT_ONCE: u64 = 1 << 20;
/// What counts then for each byte that moves, so that an honest upload of any size counts whole
/// within its first hundredths.
const PER_BYTE: u64 = 64;

impl Limit {
    /// Metric label values, in order of the variants.
    pub const NAMES: [&'static str; 6] =
        ["connections", "requests", "pending", "bytes_in_flight", "slots", "adaptive_concurrency"];
}

impl ServiceState {
    /// Whether the service's own limits leave room for one more try of this declared size.
    ///
    /// A single transfer larger than the whole byte limit is let through when
    /// nothing else is in flight, else it could never pass. Beside it others pass as far as
    /// what counts of it (`Belief`) leaves room.
    ///
    /// # Errors
    /// The limit that is reached; already counted.
    pub fn has_room(&self, declared_bytes: u64) -> Result<(), Limit> {
        self.room(declared_bytes).inspect_err(|limit| self.overflow(*limit))
    }

    /// As [`Self::has_room`], uncounted.
    pub(crate) fn room(&self, declared_bytes: u64) -> Result<(), Limit> {
        let limits = &self.spec.breaker.service;
        check(limits, &self.live.requests, &self.live.bytes_in_flight, declared_bytes)
    }

    /// The adaptive limit of an endpoint, where the service wants one.
    pub(crate) fn concurrency<'a>(&self, endpoint: &'a EndpointState) -> Option<&'a Concurrency> {
        self.spec.admission.adaptive_concurrency.as_ref()?;
        endpoint.live.concurrency.get().map(AsRef::as_ref)
    }

    /// Moves the limits that adapt, by what came since. To be called many times a second.
    pub fn adapt(&self, now_ms: u64) {
        let Some(terms) = &self.spec.admission.adaptive_concurrency else { return };
        for concurrency in self.endpoints.iter().filter_map(|e| self.concurrency(e)) {
            concurrency.tick(terms, now_ms * 1000, wall_us());
        }
    }

    /// Counts a refusal.
    pub fn overflow(&self, limit: Limit) {
        self.live.metrics.overflow[limit as usize].inc();
    }

    /// Starts one more retry if the budget allows it: one that sends `bytes` again.
    ///
    /// A few may always be under way. Beyond those, retries stay within their share of the
    /// requests in flight and, as far as bodies go, of the bytes in flight: a thousand small
    /// repeats and one huge one are the same load to those who are still well.
    pub fn retry(&self, bytes: u64) -> Option<RetryGuard> {
        let budget = self.spec.retry_budget;
        let share = |all: u64| all.saturating_mul(u64::from(budget.percent)) / 100;
        let live = &self.live;
        let before = live.retries.fetch_add(1, Relaxed);
        let bytes_before = live.retry_bytes.fetch_add(bytes, Relaxed);
        let mut guard = RetryGuard { service: live.clone(), bytes };
        if before < budget.min_concurrent {
            // The few do not use up the share of the many.
            live.retry_bytes.fetch_sub(std::mem::take(&mut guard.bytes), Relaxed);
            return Some(guard);
        }
        let fits =
            |before: u64| before.saturating_add(bytes) <= share(live.bytes_in_flight.load(Relaxed));
        if u64::from(before) < share(u64::from(live.requests.load(Relaxed)))
            && (bytes == 0 || fits(bytes_before))
        {
            return Some(guard);
        }
        live.metrics.budget_exhausted.inc();
        None
    }

    /// Counts a try that waits for a connection to `endpoint`.
    ///
    /// # Errors
    /// [`Limit::Pending`] when too many wait already; counted.
    pub fn wait_for_connection<'a>(
        &'a self,
        endpoint: &'a EndpointState,
    ) -> Result<PendingGuard<'a>, Limit> {
        let breaker = &self.spec.breaker;
        let service = self.live.pending.fetch_add(1, Relaxed);
        let of_endpoint = endpoint.live.pending.fetch_add(1, Relaxed);
        let guard = PendingGuard { service: &self.live, endpoint: &endpoint.live };
        let full = |limit: Option<u32>, before: u32| limit.is_some_and(|l| before >= l);
        if full(breaker.service.max_pending, service)
            || full(breaker.endpoint.max_pending, of_endpoint)
        {
            self.overflow(Limit::Pending);
            return Err(Limit::Pending);
        }
        Ok(guard)
    }

    /// Counts a new connection to `endpoint`.
    ///
    /// # Errors
    /// [`Limit::Connections`] when too many stand already; counted.
    pub fn open_connection(&self, endpoint: &EndpointState) -> Result<ConnectionGuard, Limit> {
        let breaker = &self.spec.breaker;
        let service = self.live.connections.fetch_add(1, Relaxed);
        let of_endpoint = endpoint.live.connections.fetch_add(1, Relaxed);
        let guard = ConnectionGuard {
            service: self.live.clone(),
            endpoint: endpoint.live.clone(),
            terms: self.connector.terms(),
        };
        let full = |limit: Option<u32>, before: u32| limit.is_some_and(|l| before >= l);
        if full(breaker.service.max_connections, service)
            || full(breaker.endpoint.max_connections, of_endpoint)
        {
            self.overflow(Limit::Connections);
            return Err(Limit::Connections);
        }
        Ok(guard)
    }
}

impl Belief {
    /// With a limit on bytes in flight it is half of the least, rounded up: two transfers that each declare
    /// more than that never pass at once, and no single one keeps all others out by its word.
    pub(crate) fn under(breaker: &Breaker) -> Self {
        let limits = [&breaker.service, &breaker.endpoint];
        let least = limits.into_iter().filter_map(|l| l.max_bytes_in_flight).min();
        least.map_or(Self { at_once: AT_ONCE, per_byte: PER_BYTE }, |most| Self {
            at_once: most.div_ceil(2),
            per_byte: 1,
        })
    }

    /// Bytes that count once so many have moved.
    fn after(self, moved: u64) -> u64 {
        self.at_once.saturating_add(moved.saturating_mul(self.per_byte))
    }
}

impl EndpointLive {
    /// Whether one more try of this declared size fits under `limits`.
    pub fn has_room(&self, limits: &Thresholds, declared_bytes: u64) -> Result<(), Limit> {
        check(limits, &self.requests, &self.bytes_in_flight, declared_bytes)
    }
}

impl Ticket {
    /// Counts a try as in flight, and of the `declared_bytes` of its request what is believed.
    pub fn new(
        service: Arc<ServiceState>,
        endpoint: Arc<EndpointState>,
        declared_bytes: u64,
    ) -> Self {
        service.live.requests.fetch_add(1, Relaxed);
        let load = endpoint.live.requests.fetch_add(1, Relaxed) + 1;
        endpoint.live.metrics.picks.inc();
        let ahead = || endpoint.live.bytes_in_flight.load(Relaxed);
        let watch = service.completion.as_ref().map(|_| Stopwatch::start(load, ahead()));
        let mut ticket = Self {
            service,
            endpoint,
            bytes: 0,
            declared: declared_bytes,
            believed: 0,
            request: Transfer::default(),
            response: Transfer::default(),
            asked: Asked::default(),
            watch,
            awaits_head: false,
            slot: None,
            aside: false,
            tally: None,
            busy_from_us: None,
        };
        ticket.busy_from_us = ticket.endpoint.spec.slots.map(|_| now_us());
        if let Some(concurrency) = ticket.service.concurrency(&ticket.endpoint)
            && declared_bytes <= BULK
        {
            concurrency.enter();
            ticket.awaits_head = true;
        }
        if declared_bytes >= SMALLEST_JUDGED {
            ticket.request.judge(&ticket.endpoint.live.meter.request);
        }
        ticket.believe();
        ticket
    }

    /// Where the data of its request comes from.
    pub(crate) fn comes_from(&mut self, origin: Cell) {
        if let Some(watch) = &mut self.watch {
            watch.comes_from(origin);
        }
    }

    /// What its bytes emit and cost is counted.
    pub(crate) fn tallies(&mut self, tally: Tally) {
        self.tally = Some(tally);
    }

    /// How it went says nothing of how fast the endpoint is.
    pub(crate) fn tells_nothing(&mut self) {
        self.watch = None;
    }

    /// Counts what is believed by now of what the request declares.
    fn believe(&mut self) {
        let believed = self.service.belief.after(self.request.total()).min(self.declared);
        self.add_bytes(believed - self.believed);
        self.believed = believed;
    }

    /// Its head came, or it does not count any more.
    pub(crate) fn has_head(&mut self) {
        if std::mem::take(&mut self.awaits_head)
            && let Some(concurrency) = self.endpoint.live.concurrency.get()
        {
            concurrency.leave();
        }
    }

    /// The answer is only kept: nothing more is asked of the endpoint, nothing of it is in flight, and its slot is free.
    pub(crate) fn set_aside(&mut self) {
        if !std::mem::replace(&mut self.aside, true) {
            self.leave();
        }
        self.has_head();
        if let Some(watch) = &mut self.watch {
            watch.stop();
        }
        self.declared = self.believed;
        let bytes = std::mem::take(&mut self.bytes);
        self.service.live.bytes_in_flight.fetch_sub(bytes, Relaxed);
        self.endpoint.live.bytes_in_flight.fetch_sub(bytes, Relaxed);
        self.slot = None;
    }

    /// It is no longer one of the requests in flight.
    fn leave(&self) {
        self.service.live.requests.fetch_sub(1, Relaxed);
        self.endpoint.live.requests.fetch_sub(1, Relaxed);
        if let Some(from) = self.busy_from_us {
            self.service.live.busy_us.fetch_add(now_us().saturating_sub(from), Relaxed);
        }
    }

    /// Bytes of the request body are on their way to the endpoint.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.request.moved(bytes);
        if self.awaits_head && self.request.total() > BULK {
            self.has_head();
        }
        if self.request.total() >= SMALLEST_JUDGED {
            self.request.judge(&self.endpoint.live.meter.request);
        }
        if self.believed < self.declared {
            self.believe();
        }
    }

    /// Body bytes moved in this try, both ways.
    pub(crate) fn moved(&self) -> u64 {
        self.request.total() + self.response.total()
    }

    /// Bytes of the response body came.
    pub(crate) fn received(&mut self, bytes: u64) {
        self.response.moved(bytes);
    }

    /// The end of a poll of the upload: whether the endpoint takes no more now, or all was sent.
    pub(crate) fn upload_looked_at(&mut self, full: bool, over: bool) {
        let lane = &self.endpoint.live.meter.request;
        if let Some(watch) = &mut self.watch {
            watch.mark(full || over);
        }
        if over {
            self.request.end(lane);
            self.all_sent();
        } else {
            self.request.look(lane, full);
        }
    }

    /// All of the request is on its way.
    pub(crate) fn all_sent(&mut self) {
        if self.awaits_head || self.service.spec.outlier.is_some_and(|o| o.latency.is_some()) {
            self.asked.now();
        }
    }

    /// The final head came. A response is judged only if it was said how long it will be. `failed`:
    /// its time is not that of a request that was served.
    pub fn answered(&mut self, declared_bytes: u64, failed: bool) {
        let time = self.asked.answered(&self.endpoint.live.meter);
        if let Some(time) = time.filter(|_| self.awaits_head && !failed)
            && let Some(concurrency) = self.endpoint.live.concurrency.get()
        {
            concurrency.answered_after(time);
        }
        self.has_head();
        let meter = &self.endpoint.live.meter;
        if let Some(slot) = &mut self.slot {
            slot.answered = true;
        }
        if let Some(watch) = self.watch.as_mut().filter(|_| !failed) {
            watch.answered(declared_bytes > 0);
        }
        if declared_bytes >= SMALLEST_JUDGED {
            self.response.judge(&meter.response);
        }
        self.add_bytes(declared_bytes);
    }

    /// The end of a poll of the response: whether the client has everything and waits for more.
    pub(crate) fn download_looked_at(&mut self, waits: bool) {
        if let Some(watch) = &mut self.watch {
            watch.mark(waits);
        }
        self.response.look(&self.endpoint.live.meter.response, waits);
    }

    /// Counts further bytes in flight: a declared response length, or bytes of
    /// a body whose length was not declared.
    pub fn add_bytes(&mut self, bytes: u64) {
        // So that no number of them overflows the sums.
        let bytes = bytes.min(MOST_COUNTED.saturating_sub(self.bytes));
        if bytes == 0 {
            return;
        }
        self.bytes += bytes;
        self.service.live.bytes_in_flight.fetch_add(bytes, Relaxed);
        self.endpoint.live.bytes_in_flight.fetch_add(bytes, Relaxed);
    }
}

impl Tally {
    #[expect(clippy::cast_precision_loss, reason = "a measurement")]
    fn count(&self, sent: u64, received: u64) {
        let (up, down) = (sent as f64, received as f64);
        if let Some(grams) = self.per_byte.grams {
            self.grams.add((up + down) * f64::from(grams));
        }
        if let Some((to, from)) = self.per_byte.cents {
            self.cents.add(up * f64::from(to) + down * f64::from(from));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.request.end(&self.endpoint.live.meter.request);
        self.response.end(&self.endpoint.live.meter.response);
        if let Some(watch) = self.watch.take() {
            let (sent, received) = (self.request.total(), self.response.total());
            self.service.learn(watch, &self.endpoint, sent, received);
        }
        if let Some(tally) = self.tally.take() {
            tally.count(self.request.total(), self.response.total());
        }
        if !self.aside {
            self.leave();
        }
        if self.awaits_head
            && let (Some(waited), Some(concurrency)) =
                (self.asked.waited(), self.endpoint.live.concurrency.get())
        {
            concurrency.given_up_after(waited);
        }
        self.has_head();
        if self.bytes > 0 {
            self.service.live.bytes_in_flight.fetch_sub(self.bytes, Relaxed);
            self.endpoint.live.bytes_in_flight.fetch_sub(self.bytes, Relaxed);
        }
    }
}

impl ConnectionGuard {
    /// The terms the connection was made under.
    pub(crate) fn terms(&self) -> u64 {
        self.terms
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.service.connections.fetch_sub(1, Relaxed);
        self.endpoint.connections.fetch_sub(1, Relaxed);
    }
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        self.service.pending.fetch_sub(1, Relaxed);
        self.endpoint.pending.fetch_sub(1, Relaxed);
    }
}

impl Drop for RetryGuard {
    fn drop(&mut self) {
        self.service.retries.fetch_sub(1, Relaxed);
        self.service.retry_bytes.fetch_sub(self.bytes, Relaxed);
    }
}

fn check(
    limits: &Thresholds,
    requests: &AtomicU32,
    bytes: &AtomicU64,
    declared_bytes: u64,
) -> Result<(), Limit> {
    if limits.max_requests.is_some_and(|most| requests.load(Relaxed) >= most) {
        return Err(Limit::Requests);
    }
    if let Some(most) = limits.max_bytes_in_flight {
        let held = bytes.load(Relaxed);
        if held >= most || (held > 0 && held.saturating_add(declared_bytes) > most) {
            return Err(Limit::Bytes);
        }
    }
    Ok(())
}
