//! Predicted completion time: how long an endpoint will take with a transfer, in seconds, by what
//! is known of the way to it, of what it has to do, and of how fast it does that.
//!
//! ```text
//! network + (transfer + queue) × health, × failures
//! network  = round trip between the data's origin and the endpoint
//! transfer = bytes of the request, on the way between these places and at the endpoint's goodput
//! queue    = bytes in flight that are worked off before it, at the endpoint's goodput,
//!            + (requests in flight + 1) × time of a small one
//! health   = how much slower it works than it could, by its load reports
//! failures = tries it takes until one succeeds
//! ```
//!
//! For requests that tolerate delay, what they emit and cost comes on top, in seconds that it is worth
//! ([`footprint`]).
//!
//! [`cost`] is this sum and pure. [`learn`] keeps what is measured, in relaxed atomics, [`origin`] says
//! where data comes from, [`places`] what distance lets expect before anything is measured, [`zones`] whose
//! prices bytes have, and [`draw`] which endpoints are looked at where there are too many for all. A pick reads, and neither allocates nor locks.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use towpath_policies::model::{Balancer, Class, EndpointSet, Service};

pub(crate) mod cost;
pub(crate) mod draw;
pub(crate) mod energy;
pub mod explain;
pub(crate) mod footprint;
pub(crate) mod learn;
mod origin;
pub(crate) mod places;
pub(crate) mod zones;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use super::{EndpointLive, EndpointState, Level, ServiceLive, ServiceState, Site, pick::Ask};
use crate::lock::lock;
use cost::{Factors, Facts, Parts, PerByte};
use draw::Draw;
use footprint::{Footprints, Load, Prices, Reported};
use learn::{Discipline, Learned, Median, Sample, Stopwatch, Usual, WINDOW_SECONDS, Way, real};
use origin::{Map, Origins};
use places::{Cell, NUMBERS, Numbers};
use zones::{Origin, Zones};

/// What a view of a service predicts by.
#[derive(Debug)]
pub(crate) struct Completion {
    factors: Factors,
    origins: Origins,
    map: Map,
    /// By level.
    draws: Box<[Draw]>,
    prices: Arc<Prices>,
    /// For those who tolerate delay, where that moves any.
    footprints: Option<Box<Footprints>>,
    experience: Arc<Experience>,
}

/// What a service has learned, whatever its endpoints are.
#[derive(Debug, Default)]
pub(crate) struct Experience {
    numbers: Mutex<Numbers>,
    /// By the cell of the endpoint and that of the origin.
    ways: Box<[[Way; NUMBERS]; NUMBERS]>,
    /// Seconds per byte of the endpoints of a cell.
    usual: [Usual; NUMBERS],
    /// Of a response, in bytes.
    usual_response: Median,
    discipline: Discipline,
    seconds: AtomicU64,
}

/// Goodput of an endpoint of the usual weight (100) of which nothing is known: much, so that it is tried.
const UNKNOWN_BYTES_PER_SECOND: f32 = 1e8;
const USUAL_WEIGHT: f32 = 100.0;

impl Completion {
    /// `None` for services that do not predict. Puts the members of the levels in order of their cells.
    pub(crate) fn new(
        spec: &Service,
        live: &ServiceLive,
        set: &EndpointSet,
        endpoints: &[Arc<EndpointState>],
        levels: &mut [Level],
        site: &Site,
        old: Option<&Arc<ServiceState>>,
    ) -> Option<Box<Self>> {
        if spec.balancer != Balancer::CompletionTime {
            return None;
        }
        let experience = live.experience.get_or_init(Arc::default).clone();
        let (mut origins, cells) = {
            let mut numbers = lock(&experience.numbers);
            let mut settling = numbers.settle(site.here);
            for EndpointState { spec, live, .. } in endpoints.iter().map(AsRef::as_ref) {
                let cell = settling.endpoint(&spec.locality.region, spec.coordinates);
                live.learned.stands_in(cell);
            }
            for (name, region) in &set.regions {
                region.location.coordinates.iter().for_each(|at| settling.locate(name, *at));
            }
            let origins = Origins::new(spec, &mut settling, site.clients.clone(), old);
            if !spec.prediction.origin.is_empty() {
                let others = set.origins.iter();
                others.for_each(|(name, o)| settling.region(name, o.location.coordinates));
            }
            let (cells, new) = settling.finish();
            new.into_iter().for_each(|cell| experience.begin(cell));
            (origins, cells)
        };
        let cell_of: Box<[_]> = endpoints.iter().map(|e| e.live.learned.cell()).collect();
        for (endpoint, origin) in cells.pairs() {
            let round_trip = cells.round_trip(endpoint, origin);
            experience.way(endpoint, origin).expect(round_trip);
        }
        // What the control plane makes of load reports is left aside: they count here themselves.
        let weight = |member: u32| endpoints[member as usize].spec.declared();
        let sort = |level: &mut Level| {
            level.members.sort_by_key(|member| cell_of[*member as usize]);
            let live = |member: &u32| endpoints[*member as usize].live.clone();
            level.lives = level.members.iter().map(live).collect();
        };
        levels.iter_mut().for_each(sort);
        let draws = || -> Box<[Draw]> {
            levels.iter().map(|level| Draw::new(level, &cell_of, weight)).collect()
        };
        let zones = Zones::new(set, &cells, site.here);
        origins.price(&zones);
        let map = Map { cells, zones };
        let prices = Arc::new(Prices::new(set, &map, &cell_of));
        let footprints = Footprints::new(spec, &set.regions, &map.cells, &prices, draws);
        let factors = (&spec.prediction.terms).into();
        let draws = draws();
        let new = Self { factors, origins, map, draws, prices, footprints, experience };
        new.weigh_cells(&Reported::default());
        Some(Box::new(new))
    }

    fn weigh_cells(&self, reported: &Reported) {
        let bytes = self.experience.usual_response.value();
        let seconds = |cell: Cell, origin: Cell| {
            let way = self.experience.way(cell, origin);
            let per_byte = way.per_byte() + self.experience.usual(cell, USUAL_WEIGHT).0;
            self.network(cell, origin).unwrap_or(0.0) + bytes * per_byte
        };
        let Map { cells, zones } = &self.map;
        self.draws.iter().for_each(|draw| draw.weigh(cells, seconds));
        let Some(footprints) = &self.footprints else { return };
        let joules = reported.means();
        for draw in &footprints.draws {
            draw.weigh(cells, |cell, origin| {
                let zone = zones.of_cell(origin);
                let load = Load { zone, up: 0.0, down: bytes, now_ms: 0 };
                seconds(cell, origin) + footprints.usual(cell, joules[cell.index()], &load)
            });
        }
    }

    /// Seconds there and back, as measured or as the distance lets expect.
    fn network(&self, endpoint: Cell, origin: Cell) -> Option<f32> {
        self.experience.way(endpoint, origin).round_trip.seconds()
    }
}

impl Experience {
    fn way(&self, endpoint: Cell, origin: Cell) -> &Way {
        &self.ways[endpoint.index()][origin.index()]
    }

    /// Nothing is known of this cell.
    fn begin(&self, cell: Cell) {
        self.usual[cell.index()].begin();
        for other in 0..NUMBERS {
            self.ways[cell.index()][other].begin();
            self.ways[other][cell.index()].begin();
        }
    }

    /// Seconds per byte and per request of an endpoint of this cell and weight of which nothing else is known.
    fn usual(&self, cell: Cell, weight: f32) -> (f32, f32) {
        let (usual, share) = (&self.usual[cell.index()], USUAL_WEIGHT / weight);
        let per_byte = usual.per_byte().unwrap_or(1.0 / UNKNOWN_BYTES_PER_SECOND);
        (per_byte * share, usual.per_request() * share)
    }
}

impl ServiceState {
    /// A try was made, for good or bad.
    pub(crate) fn learn(
        &self,
        watch: Stopwatch,
        endpoint: &EndpointState,
        sent: u64,
        received: u64,
    ) {
        let Some(completion) = &self.completion else { return };
        let others = endpoint.live.requests.load(Relaxed);
        let Some(sample) = watch.end(others, sent, received) else { return };
        completion.experience.usual_response.add(real(received));
        completion.learn(endpoint, &sample);
    }

    /// Forgets what is not so any more. To be called many times a second.
    pub(crate) fn forget(&self, now_ms: u64) {
        let Some(completion) = &self.completion else { return };
        let (experience, second) = (&completion.experience, now_ms / 1000);
        let before = experience.seconds.swap(second, Relaxed);
        if before == second {
            return;
        }
        let window_ends = before / WINDOW_SECONDS != second / WINDOW_SECONDS;
        let mut reported = Reported::default();
        let usual_joules = footprint::joules_per_byte(&self.spec);
        for endpoint in &self.endpoints {
            let energy = &endpoint.live.energy;
            if energy.is_doubtful(now_ms, usual_joules) {
                let (service, endpoint) = (&*self.spec.name, endpoint.spec.address);
                tracing::warn!(
                    service,
                    %endpoint,
                    "it reports less than a tenth of the usual joules per byte; a tenth counts"
                );
            }
            let joules = energy.joules_per_byte(now_ms, usual_joules);
            reported.add(endpoint.live.learned.cell(), joules);
            let (learned, weight) = (&endpoint.live.learned, real(endpoint.spec.declared().into()));
            learned.second(now_ms, window_ends, experience.usual(learned.cell(), weight));
        }
        for (endpoint, origin) in completion.map.cells.pairs() {
            experience.way(endpoint, origin).second(window_ends);
        }
        completion.weigh_cells(&reported);
    }

    /// What goes with the bytes of a try with this endpoint; `None` where nothing is known of that.
    pub(crate) fn per_byte(&self, endpoint: &EndpointLive, origin: Origin) -> Option<PerByte> {
        let grams = footprint::grams_per_byte(&endpoint.energy, &self.spec);
        let completion = self.completion.as_ref();
        let cents = completion.and_then(|c| c.prices.known(origin.zone, endpoint.learned.cell()));
        Some(PerByte { grams, cents }).filter(|per_byte| !per_byte.is_unknown())
    }
}

impl Completion {
    /// What requests of this class are weighed by besides their time, if anything.
    #[inline]
    pub(crate) fn footprints(&self, class: Class) -> Option<&Footprints> {
        self.footprints.as_deref().filter(|_| class != Class::Interactive)
    }

    /// The draw of a level, for those who are weighed by this too.
    pub(crate) fn draw<'a>(&'a self, level: usize, footprints: Option<&'a Footprints>) -> &'a Draw {
        &footprints.map_or(&self.draws, |footprints| &footprints.draws)[level]
    }

    /// What a request will move.
    pub(crate) fn load(&self, ask: &Ask, now_ms: u64) -> Load {
        let (up, down) = self.ways(ask);
        Load { zone: ask.origin.zone, up, down, now_ms }
    }

    /// Bytes that a request will move.
    pub(crate) fn expected(&self, ask: &Ask) -> f32 {
        let (up, down) = self.ways(ask);
        up + down
    }

    /// Bytes to the endpoint, and from it.
    fn ways(&self, ask: &Ask) -> (f32, f32) {
        match ask.down {
            Some(down) => (real(ask.bytes.saturating_sub(down)), real(down)),
            None => (real(ask.bytes), self.experience.usual_response.value()),
        }
    }

    fn learn(&self, endpoint: &EndpointState, sample: &Sample) {
        let (learned, experience) = (&endpoint.live.learned, &self.experience);
        let (cell, weight) = (learned.cell(), real(endpoint.spec.declared().into()));
        let way = experience.way(cell, sample.origin);
        let network = self.round_trip(learned, sample.origin);
        let usual = experience.usual(cell, weight);
        let (health, discipline) = (self.factors.health, &experience.discipline);
        learned.served(sample, way, network, usual, health, discipline);
        let as_usual = |seconds: f32| seconds * weight / USUAL_WEIGHT;
        let (per_byte, per_request) = (learned.per_byte(), learned.per_request());
        experience.usual[cell.index()].saw(per_byte.map(as_usual), per_request.map(as_usual));
    }

    /// Of a way of which nothing is known, that from this proxy is a part. 0 where that is not known either.
    fn round_trip(&self, learned: &Learned, origin: Cell) -> f32 {
        let own = learned.round_trip.seconds();
        let network = || self.network(learned.cell(), origin);
        let known = if origin == Cell::HERE { own.or_else(network) } else { network().or(own) };
        known.unwrap_or(0.0)
    }

    /// Seconds in which an endpoint will complete a try of so many bytes, in parts. `warmth`: the share
    /// of its weight that an endpoint has which came back not long ago; `weight` is asked for where
    /// nothing was measured.
    #[inline]
    pub(crate) fn predict(
        &self,
        live: &EndpointLive,
        origin: Cell,
        bytes: f32,
        warmth: f32,
        weight: impl FnOnce() -> u32,
    ) -> Parts {
        let learned = &live.learned;
        let way = self.experience.way(learned.cell(), origin);
        let (per_byte, per_request) = match (learned.per_byte(), learned.per_request()) {
            (Some(per_byte), Some(per_request)) => (per_byte, per_request),
            (per_byte, per_request) => {
                let usual = self.experience.usual(learned.cell(), real(weight().into()));
                (per_byte.unwrap_or(usual.0), per_request.unwrap_or(usual.1))
            }
        };
        let (ahead, others) = (live.bytes_in_flight.load(Relaxed), live.requests.load(Relaxed));
        let (ahead, others) = (real(ahead), real(others.into()));
        let facts = Facts {
            network: self.round_trip(learned, origin),
            bytes,
            seconds_per_byte_on_the_way: way.per_byte(),
            bytes_ahead: self.experience.discipline.waits_for(bytes, ahead, others),
            seconds_per_byte: per_byte,
            requests: others + 1.0,
            seconds_per_request: per_request,
            strain: learned.strain() / warmth,
            tries: learned.tries(),
        };
        facts.parts(&self.factors)
    }
}
