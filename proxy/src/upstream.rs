//! The services requests are sent to: their endpoints' live state, how one is
//! picked, what may still be admitted, and the connections that stand.
//!
//! A [`ServiceState`] is one immutable view of a service and its endpoints. A
//! configuration change makes a new one; what is alive (counters, ejections,
//! pooled connections) hangs on [`EndpointLive`] and [`ServiceLive`], which are
//! carried over by address and by name. Nothing here knows routes or HTTP
//! messages.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use arc_swap::ArcSwapOption;
use tokio::time::Instant;
use towpath_policies::model::{
    Coordinates, Endpoint, EndpointSet, Health, Locality, Protocol, Queue, Recovery, Service,
};

pub mod admission;
pub(crate) mod age;
pub(crate) mod completion;
pub(crate) mod concurrency;
pub mod connect;
pub mod destination;
pub(crate) mod h2_pool;
mod hash;
pub mod io;
pub mod pick;
pub(crate) mod pool;
pub(crate) mod queue;
pub(crate) mod reports;
pub(crate) mod returned;
mod spread;
pub(crate) mod tally;
pub(crate) mod tunnel;
mod weigh;

#[cfg(test)]
mod tests;

use crate::{
    flow::Gate,
    geoip::ClientPlaces,
    metrics,
    outlier::{Ejection, meter::Meter},
};
use completion::{Completion, Experience, energy::Energy, learn::Learned};
use concurrency::Concurrency;
use hash::Homes;
use pool::Pools;
use spread::Spread;
use tally::{Figures, Tally};
use weigh::{Capacity, Weights};

/// One view of a service: what the configuration says, and the live state it
/// shares with the views before and after it.
#[derive(Debug)]
pub struct ServiceState {
    /// The terms.
    pub spec: Arc<Service>,
    /// In the order of the endpoint set.
    pub endpoints: Box<[Arc<EndpointState>]>,
    /// Indexes into `endpoints`, grouped by priority, the lowest priority first, and by locality where the
    /// service goes by localities.
    pub levels: Box<[Level]>,
    /// Counters of the whole service; shared by all views of this name.
    pub live: Arc<ServiceLive>,
    /// How connections are made (TLS settings are built once, here).
    pub connector: connect::Connector,
    /// How far what a request declares counts.
    pub(crate) belief: admission::Belief,
    /// What completion times are predicted by, where they are.
    pub(crate) completion: Option<Box<Completion>>,
    /// Where keys are at home, where requests have any.
    pub(crate) homes: Option<Box<Homes>>,
    /// The weights that load reports tell, where turns are taken by them.
    pub(crate) weights: Option<Box<Weights>>,
    /// What levels have of the requests, where that is not all for the first that is usable.
    pub(crate) spread: Option<Box<Spread>>,
    pub(crate) by_address: destination::ByAddress,
    /// What all destinations are counted by, where connections are sent on to where they were made to.
    pub(crate) sent_on: OnceLock<EndpointMetrics>,
}

/// What a proxy is to the services it sends to.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// Worker threads.
    pub workers: usize,
    /// Where it stands.
    pub here: Option<Coordinates>,
    /// Where its clients are.
    pub clients: Option<Arc<ClientPlaces>>,
}

/// The endpoints of one priority, and of one locality where the service goes by localities.
#[derive(Debug)]
pub struct Level {
    /// As in the policy.
    pub priority: u32,
    /// Indexes into [`ServiceState::endpoints`]; without those that the control plane does not let be used.
    pub members: Box<[u32]>,
    /// What is alive of each, so that a pick need not look anywhere else.
    pub(crate) lives: Box<[Arc<EndpointLive>]>,
    /// Sum of the members' weights.
    pub weight: u64,
}

/// One view of an endpoint.
#[derive(Debug)]
pub struct EndpointState {
    /// What the configuration says of it.
    pub spec: Endpoint,
    /// What is alive; shared by all views of this address in this service.
    pub live: Arc<EndpointLive>,
    /// Whom this view is for, where not for everybody.
    pub(crate) apart: Option<Apart>,
}

/// One client whose address the endpoint sees, and what stands to it under that address.
#[derive(Debug)]
pub(crate) struct Apart {
    pub(crate) client: IpAddr,
    pub(crate) pools: Arc<Pools>,
}

/// Counters and flags of one address. Atomics only; written by every worker.
///
/// What a pick looks at lies here, most of it in one cache line, and all else behind it: thousands of them are few
/// pages of memory, so that looking at one drawn at random waits for no page table.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct EndpointLive {
    /// Body bytes of unfinished exchanges and streams, both ways: those of a response that were
    /// declared, those of a request as far as that is believed, and those seen where no length was
    /// told.
    pub bytes_in_flight: AtomicU64,
    /// Passive ejection: [`now_ms`] time until which nothing is sent; 0 = not ejected.
    pub ejected_until_ms: AtomicU64,
    /// What completion times are predicted from.
    pub(crate) learned: Learned,
    /// Exchanges in flight.
    pub requests: AtomicU32,
    /// What active probes say; true until they say otherwise.
    pub probe_healthy: AtomicBool,
    /// What goes with its bytes besides time.
    pub(crate) energy: Energy,
    rest: Box<EndpointRest>,
}

const _: () = assert!(std::mem::offset_of!(EndpointLive, probe_healthy) < 64);
const _: () = assert!(size_of::<EndpointLive>() == 128);

/// What is alive of one address, and no pick looks at but where there is a queue, a limit that adapts, or slow start.
#[derive(Debug)]
pub struct EndpointRest {
    /// The address.
    pub address: SocketAddr,
    /// Connections that stand, pooled ones included.
    pub connections: AtomicU32,
    /// Exchanges that wait for a connection.
    pub pending: AtomicU32,
    /// Slots given to requests, where the service has a queue; written under its lock.
    pub(crate) slots_used: AtomicU32,
    /// Where it adapts: who may wait for its response heads; made when the service first wants that.
    pub(crate) concurrency: OnceLock<Box<Concurrency>>,
    /// Passive ejection: failures since the last success.
    pub consecutive_failures: AtomicU32,
    /// Passive ejection: how often it was ejected in a row.
    pub ejections: AtomicU32,
    /// Passive ejection: the last one, for a person.
    pub last_ejection: ArcSwapOption<Ejection>,
    /// Slow start: [`now_ms`] time from which its weight grows; 0 = it has all of it.
    pub warm_from_ms: AtomicU64,
    /// What it is compared with its peers by.
    pub meter: Meter,
    /// Bytes per second of active transfer, of late; 0 = unknown.
    pub goodput: AtomicU64,
    /// What it can do, by its load reports, where turns are taken by that.
    pub(crate) capacity: Capacity,
    /// What its load reports said, for the control plane.
    pub(crate) tally: Tally,
    /// Asked for reports out of band it tells none, or there is no place for its stream: requests ask.
    pub(crate) silent: AtomicBool,
    /// [`now_ms`] time until which the sidecar beside it is not asked for a new tunnel, since none could be had.
    pub(crate) no_tunnel_until_ms: AtomicU64,
    /// How often in a row.
    pub(crate) tunnels_failed: AtomicU32,
    /// Set when the endpoint left the set: pools close, no new use.
    pub removed: AtomicBool,
    /// Counters for `/metrics`.
    pub metrics: EndpointMetrics,
    /// The terms connections are made under now; those made under others are not pooled.
    pub(crate) terms: AtomicU64,
    /// Idle connections, by worker.
    pub(crate) pools: Arc<Pools>,
}

impl Deref for EndpointLive {
    type Target = EndpointRest;

    fn deref(&self) -> &EndpointRest {
        &self.rest
    }
}

/// Handles that cost one atomic addition each. They count for this address alone; `/metrics` goes by
/// names, and has the sum of all addresses that one has had.
#[derive(Clone, Debug)]
pub struct EndpointMetrics {
    /// `towpath_picks_total`.
    pub picks: metrics::Counter,
    /// `towpath_endpoint_bytes_total{direction="request"}`.
    pub bytes_sent: metrics::Counter,
    /// `towpath_endpoint_bytes_total{direction="response"}`.
    pub bytes_received: metrics::Counter,
}

/// Counters of one service. Atomics only.
#[derive(Debug)]
pub struct ServiceLive {
    /// Body bytes of unfinished exchanges and streams, both ways.
    pub bytes_in_flight: AtomicU64,
    /// Exchanges in flight.
    pub requests: AtomicU32,
    /// Connections that stand.
    pub connections: AtomicU32,
    /// Exchanges that wait for a connection.
    pub pending: AtomicU32,
    /// Retries in flight.
    pub retries: AtomicU32,
    /// Bytes that retries under way send again.
    pub retry_bytes: AtomicU64,
    /// So few endpoints are usable that ejections and probes are ignored.
    pub panics: AtomicBool,
    /// An endpoint may not have all of its weight yet.
    pub recovering: AtomicBool,
    /// Position of [`towpath_policies::model::Balancer::RoundRobin`].
    pub(crate) turn: AtomicU64,
    /// Those who wait for a slot; made when the service first has a queue.
    pub(crate) queue: OnceLock<queue::Queue>,
    /// What completion times are predicted from, once a policy wants them.
    pub(crate) experience: OnceLock<Arc<Experience>>,
    /// Endpoints of the newest view that are [silent](EndpointRest::silent).
    pub(crate) silent: AtomicI64,
    /// Requests ask for load reports: the newest view, or the control plane, goes by them, and we do
    /// not ask out of band.
    pub(crate) asks_for_reports: AtomicBool,
    /// [`now_us`] time from which a request asks for a load report again.
    pub(crate) report_due_us: AtomicU64,
    /// Microseconds that tries took which are over, at endpoints that say their slots.
    pub(crate) busy_us: AtomicU64,
    /// Where its bandwidth is shared, once a policy has bounded it.
    pub(crate) gate: OnceLock<ArcSwapOption<Gate>>,
    /// Handles for `/metrics`.
    pub metrics: ServiceMetrics,
    /// The newest view, for tasks that outlive the one they started with (health checks).
    pub current: ArcSwapOption<ServiceState>,
}

/// Handles that cost one atomic addition each.
#[derive(Debug)]
pub struct ServiceMetrics {
    /// `towpath_retries_total{reason}`, by [`crate::http::RetryReason`].
    pub retries: [metrics::Counter; 7],
    /// `towpath_hedges_total{outcome}`: won, lost, refused.
    pub hedges: [metrics::Counter; 3],
    /// `towpath_stalls_total{by}`: the endpoint, the client.
    pub stalls: [metrics::Counter; 2],
    /// `towpath_resumes_total{outcome}`, by [`crate::http::ResumeOutcome`].
    pub resumes: [metrics::Counter; 4],
    /// `towpath_upload_resumes_total{outcome}`, by [`crate::http::ResumeOutcome`].
    pub upload_resumes: [metrics::Counter; 4],
    /// `towpath_digests_total{outcome}`, by [`crate::http::DigestOutcome`].
    pub digests: [metrics::Counter; 3],
    /// `towpath_retry_budget_exhausted_total`.
    pub budget_exhausted: metrics::Counter,
    /// `towpath_overflow_total{limit}`, by [`admission::Limit`].
    pub overflow: [metrics::Counter; 6],
    /// `towpath_streams_moved_total{reason}`, by reason: `balance`, `leaving`.
    pub moved: [metrics::Counter; 2],
    /// `towpath_tunnelled_connections_total`.
    pub tunnelled: metrics::Counter,
    /// `towpath_mirrors_dropped_total`: copies not sent (too large, or too many under way).
    pub mirrors_dropped: metrics::Counter,
}

/// Milliseconds since this process first asked; monotonic, never 0.
pub fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
}

/// Microseconds on a clock of their own; monotonic.
pub(crate) fn now_us() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Microseconds since 1970, by the system's clock when this process first asked, and from there on
/// without jumps.
pub(crate) fn wall_us() -> u64 {
    static START: OnceLock<(u128, Instant)> = OnceLock::new();
    let (since_1970, start) = *START.get_or_init(|| {
        let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        (since_1970.as_micros(), Instant::now())
    });
    u64::try_from(since_1970 + start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Builds the view of `spec` and `set`, taking over what is alive in `old`.
///
/// An endpoint that `old` had under the same address keeps its counters,
/// ejection and pools; one that is gone is marked `removed`, and its idle
/// connections close. For a proxy with so many workers that does not know where it is.
///
/// # Errors
/// When the TLS settings cannot be built (a CA file that cannot be read or parsed).
pub fn reconcile(
    old: Option<&Arc<ServiceState>>,
    spec: Arc<Service>,
    set: &EndpointSet,
    workers: usize,
) -> Result<Arc<ServiceState>, connect::ConnectorError> {
    reconcile_at(&Site { workers, ..Site::default() }, old, spec, set)
}

/// As [`reconcile`], for a proxy of which more is known.
///
/// # Errors
/// As there.
pub fn reconcile_at(
    site: &Site,
    old: Option<&Arc<ServiceState>>,
    spec: Arc<Service>,
    set: &EndpointSet,
) -> Result<Arc<ServiceState>, connect::ConnectorError> {
    let same_wire = |o: &Arc<ServiceState>| {
        let of = |s: &Service| (s.tls.clone(), s.protocol, s.proxy_protocol);
        of(&o.spec) == of(&spec)
    };
    let connector = match old {
        Some(old) if same_wire(old) => old.connector.clone(),
        _ => connect::Connector::new(&spec)?,
    };
    // Connections made under other terms must not be reused.
    let same_wire = old.is_none_or(same_wire);
    let live = old.map_or_else(|| Arc::new(ServiceLive::new(&spec.name)), |o| o.live.clone());
    let known: HashMap<SocketAddr, &Arc<EndpointState>> =
        old.iter().flat_map(|o| o.endpoints.iter()).map(|e| (e.spec.address, e)).collect();
    let endpoints: Box<[_]> = set
        .endpoints
        .iter()
        .map(|e| match known.get(&e.address) {
            Some(state) if state.spec == *e => (*state).clone(),
            Some(state) => Arc::new(EndpointState::new(e.clone(), state.live.clone())),
            None => {
                let live = EndpointLive::new(&spec.name, e, site.workers);
                Arc::new(EndpointState::new(e.clone(), Arc::new(live)))
            }
        })
        .collect();
    let kept: HashSet<SocketAddr> = set.endpoints.iter().map(|e| e.address).collect();
    for gone in known.values().filter(|k| !kept.contains(&k.spec.address)) {
        gone.live.removed.store(true, Relaxed);
        gone.live.pools.clear();
    }
    endpoints.iter().for_each(|e| e.live.terms.store(connector.terms(), Relaxed));
    if !same_wire {
        endpoints.iter().for_each(|e| e.live.pools.clear());
    }
    let mut levels = levels(&endpoints, spec.by_locality);
    if spec.admission.queue.is_some() {
        live.queue.get_or_init(|| queue::Queue::new(&spec.name));
    }
    bound(&live, &spec);
    adapt(&spec, &endpoints);
    let belief = admission::Belief::under(&spec.breaker);
    stand_in_regions(&endpoints, set);
    let completion = Completion::new(&spec, &live, set, &endpoints, &mut levels, site, old);
    let old_homes = old.and_then(|old| old.homes.as_deref());
    let homes = Homes::new(&spec, &endpoints, &mut levels, old_homes);
    let weights = Weights::new(&spec, &levels, now_ms());
    let spread = Spread::new(&spec, &set.spread, &endpoints, &levels);
    let state = Arc::new(ServiceState {
        spec,
        endpoints,
        levels,
        live: live.clone(),
        connector,
        belief,
        completion,
        homes,
        weights,
        spread,
        by_address: destination::ByAddress::new(),
        sent_on: OnceLock::new(),
    });
    state.count_silent();
    state.share_out(now_ms());
    live.current.store(Some(state.clone()));
    // There may be more slots now, or no queue.
    live.kick();
    Ok(state)
}

/// Tells endpoints what is known of their regions now.
fn stand_in_regions(endpoints: &[Arc<EndpointState>], set: &EndpointSet) {
    for endpoint in endpoints {
        endpoint.live.energy.stands_in(set.regions.get(&endpoint.spec.locality.region));
    }
}

/// Has endpoints adapt how many requests they have, where the policy wants that.
fn adapt(spec: &Service, endpoints: &[Arc<EndpointState>]) {
    let Some(terms) = &spec.admission.adaptive_concurrency else { return };
    if spec.protocol == Protocol::Tcp {
        return;
    }
    for EndpointState { spec, live, .. } in endpoints.iter().map(AsRef::as_ref) {
        live.concurrency.get_or_init(|| Box::new(Concurrency::new(terms, spec.address)));
    }
}

/// Bounds the bandwidth as the policy says now; those who wait stay where they are if it says the same.
fn bound(live: &ServiceLive, spec: &Service) {
    let Some(bandwidth) = spec.admission.bandwidth else {
        if let Some(gate) = live.gate.get() {
            gate.store(None);
        }
        return;
    };
    let gate = live.gate.get_or_init(ArcSwapOption::empty);
    if gate.load().as_ref().is_none_or(|gate| *gate.spec() != bandwidth) {
        gate.store(Some(Arc::new(Gate::new(&spec.name, bandwidth))));
    }
}

fn levels(endpoints: &[Arc<EndpointState>], by_locality: bool) -> Box<[Level]> {
    let mut groups = BTreeMap::<(u32, Option<&Locality>), Vec<u32>>::new();
    for (index, endpoint) in (0u32..).zip(endpoints).filter(|(_, e)| e.allowed()) {
        let locality = by_locality.then_some(&endpoint.spec.locality);
        groups.entry((endpoint.spec.priority, locality)).or_default().push(index);
    }
    groups
        .into_iter()
        .map(|((priority, _), members)| Level {
            priority,
            weight: members.iter().map(|m| u64::from(endpoints[*m as usize].spec.weight)).sum(),
            lives: members.iter().map(|m| endpoints[*m as usize].live.clone()).collect(),
            members: members.into(),
        })
        .collect()
}

/// Ends what hangs on a service that left the configuration: idle connections
/// close, and nobody finds it through [`ServiceLive::current`] any more.
pub fn retire(old: &ServiceState) {
    old.live.current.store(None);
    old.live.kick();
    for endpoint in &old.endpoints {
        endpoint.live.removed.store(true, Relaxed);
        endpoint.live.pools.clear();
    }
}

impl EndpointState {
    /// For everybody.
    fn new(spec: Endpoint, live: Arc<EndpointLive>) -> Self {
        Self { spec, live, apart: None }
    }

    /// Idle connections for whom it is.
    pub(crate) fn pools(&self) -> &Arc<Pools> {
        self.apart.as_ref().map_or(&self.live.pools, |apart| &apart.pools)
    }

    /// Whether new exchanges may go here: told healthy, probed healthy, not ejected.
    pub fn usable(&self, now_ms: u64) -> bool {
        self.allowed() && self.live.usable(now_ms)
    }

    /// Whether one of its slots is free. Requests that were sent without a queue take some too.
    pub(crate) fn has_slot(&self, terms: &Queue) -> bool {
        let slots = self.slots(terms);
        self.live.slots_used.load(Relaxed) < slots && self.live.requests.load(Relaxed) < slots
    }

    /// Requests it works on at a time.
    pub(crate) fn slots(&self, terms: &Queue) -> u32 {
        self.spec.slots.unwrap_or(terms.slots)
    }

    /// Whether the control plane lets it be used.
    pub fn allowed(&self) -> bool {
        matches!(self.spec.health, Health::Unknown | Health::Healthy)
    }
}

impl EndpointLive {
    fn new(service: &str, spec: &Endpoint, workers: usize) -> Self {
        Self::counted(spec.address, EndpointMetrics::new(service, spec), workers)
    }

    fn counted(address: SocketAddr, metrics: EndpointMetrics, workers: usize) -> Self {
        let rest = EndpointRest {
            address,
            connections: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            slots_used: AtomicU32::new(0),
            concurrency: OnceLock::new(),
            consecutive_failures: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            last_ejection: ArcSwapOption::empty(),
            warm_from_ms: AtomicU64::new(0),
            meter: Meter::default(),
            goodput: AtomicU64::new(0),
            capacity: Capacity::default(),
            tally: Tally::default(),
            silent: AtomicBool::new(false),
            no_tunnel_until_ms: AtomicU64::new(0),
            tunnels_failed: AtomicU32::new(0),
            removed: AtomicBool::new(false),
            metrics,
            terms: AtomicU64::new(0),
            pools: Arc::new(Pools::new(workers)),
        };
        Self {
            bytes_in_flight: AtomicU64::new(0),
            ejected_until_ms: AtomicU64::new(0),
            learned: Learned::default(),
            requests: AtomicU32::new(0),
            probe_healthy: AtomicBool::new(true),
            energy: Energy::default(),
            rest: Box::new(rest),
        }
    }

    /// A load report says what share of its goodput it has, by its accelerators' health. What is not
    /// from 0 to 1 is ignored.
    pub fn reported(&self, goodput_factor: f64, now_ms: u64) {
        self.learned.reported(goodput_factor, now_ms);
    }

    /// A load report came.
    pub(crate) fn heard(&self, figures: &Figures, now_ms: u64) {
        if let Some(factor) = figures.goodput_factor {
            self.reported(factor, now_ms);
        }
        if let Some(joules) = figures.joules_per_byte {
            self.energy.reported(joules, now_ms);
        }
        self.tally.heard(figures);
    }

    /// Whether probes and outlier detection leave it in use.
    pub fn usable(&self, now_ms: u64) -> bool {
        self.probe_healthy.load(Relaxed) && !self.ejected(now_ms)
    }

    /// Its share of its weight at this time, in thousandths: all, but for a
    /// while after it was ejected or failed its probes.
    pub fn warmth(&self, now_ms: u64, terms: &Recovery) -> u64 {
        match self.warm_from_ms.load(Relaxed) {
            0 => 1000,
            from => warmth(now_ms.saturating_sub(from), terms),
        }
    }

    /// Whether it is ejected at this time.
    pub fn ejected(&self, now_ms: u64) -> bool {
        self.ejected_until_ms.load(Relaxed) > now_ms
    }
}

/// The share of its weight that an endpoint has so long after it came back, in thousandths.
fn warmth(back_for_ms: u64, terms: &Recovery) -> u64 {
    let whole = u64::try_from(terms.slow_start.as_millis()).unwrap_or(u64::MAX);
    if back_for_ms >= whole {
        return 1000;
    }
    let floor = u64::from(terms.slow_start_floor_percent.clamp(1, 100)) * 10;
    floor.max(u64::try_from(u128::from(back_for_ms) * 1000 / u128::from(whole)).unwrap_or(1000))
}

impl EndpointMetrics {
    fn new(service: &str, spec: &Endpoint) -> Self {
        let (name, region) = (&spec.name, &spec.locality.region);
        Self::made(service, name, region, |name, labels| {
            metrics::registry().counter_part(name, labels)
        })
    }

    /// Of addresses that nobody tells apart. Parts would be looked through whenever one is added.
    fn shared(service: &str, name: &str) -> Self {
        Self::made(service, name, "", |name, labels| metrics::registry().counter(name, labels))
    }

    fn made(
        service: &str,
        endpoint: &str,
        region: &str,
        counter: impl Fn(&'static str, &[(&str, &str)]) -> metrics::Counter,
    ) -> Self {
        let labels = [("service", service), ("endpoint", endpoint), ("region", region)];
        let bytes = |direction| {
            let [service, endpoint, region] = labels;
            counter(
                "towpath_endpoint_bytes_total",
                &[service, endpoint, region, ("direction", direction)],
            )
        };
        Self {
            picks: counter("towpath_picks_total", &labels),
            bytes_sent: bytes("request"),
            bytes_received: bytes("response"),
        }
    }

    /// Body bytes both ways.
    fn bytes(&self) -> u64 {
        self.bytes_sent.value() + self.bytes_received.value()
    }
}

impl ServiceLive {
    fn new(service: &str) -> Self {
        Self {
            bytes_in_flight: AtomicU64::new(0),
            requests: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            retries: AtomicU32::new(0),
            retry_bytes: AtomicU64::new(0),
            panics: AtomicBool::new(false),
            recovering: AtomicBool::new(false),
            turn: AtomicU64::new(0),
            queue: OnceLock::new(),
            experience: OnceLock::new(),
            silent: AtomicI64::new(0),
            asks_for_reports: AtomicBool::new(false),
            report_due_us: AtomicU64::new(0),
            busy_us: AtomicU64::new(0),
            gate: OnceLock::new(),
            metrics: ServiceMetrics::new(service),
            current: ArcSwapOption::empty(),
        }
    }
}

impl ServiceMetrics {
    fn new(service: &str) -> Self {
        let registry = metrics::registry();
        let of = ("service", service);
        Self {
            retries: crate::http::RetryReason::NAMES
                .map(|reason| registry.counter("towpath_retries_total", &[of, ("reason", reason)])),
            hedges: crate::http::hedge::Outcome::NAMES.map(|outcome| {
                registry.counter("towpath_hedges_total", &[of, ("outcome", outcome)])
            }),
            stalls: ["endpoint", "client"]
                .map(|by| registry.counter("towpath_stalls_total", &[of, ("by", by)])),
            resumes: crate::http::ResumeOutcome::NAMES.map(|outcome| {
                registry.counter("towpath_resumes_total", &[of, ("outcome", outcome)])
            }),
            upload_resumes: crate::http::ResumeOutcome::NAMES.map(|outcome| {
                registry.counter("towpath_upload_resumes_total", &[of, ("outcome", outcome)])
            }),
            digests: crate::http::DigestOutcome::NAMES.map(|outcome| {
                registry.counter("towpath_digests_total", &[of, ("outcome", outcome)])
            }),
            budget_exhausted: registry.counter("towpath_retry_budget_exhausted_total", &[of]),
            overflow: admission::Limit::NAMES
                .map(|limit| registry.counter("towpath_overflow_total", &[of, ("limit", limit)])),
            moved: age::MoveReason::NAMES.map(|reason| {
                registry.counter("towpath_streams_moved_total", &[of, ("reason", reason)])
            }),
            tunnelled: registry.counter("towpath_tunnelled_connections_total", &[of]),
            mirrors_dropped: registry.counter("towpath_mirrors_dropped_total", &[of]),
        }
    }
}
