//! Predicted completion time: how long an endpoint will take with a transfer, in seconds, by what
//! is known of the way to it, of what it has to do, and of how fast it does that.
//!
//! ```text
//! network + (transfer + queue) × health, × failures
//! network  = round trip between the data's origin and the endpoint
//! transfer = (bytes in flight + bytes of this one) / goodput
//! queue    = (requests in flight + 1) × time of a small one
//! health   = how much slower it works than it could, by its load reports
//! failures = tries it takes until one succeeds
//! ```
//!
//! [`cost`] is this sum and pure. [`learn`] keeps what is measured, in relaxed atomics, [`places`]
//! says what distance lets expect before anything is, and [`draw`] which endpoints are looked at
//! where there are too many for all. A pick reads, and neither allocates nor locks.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use http::{HeaderMap, HeaderName};
use towpath_policies::model::{Balancer, OriginSource, Service};

pub(crate) mod cost;
pub(crate) mod draw;
pub mod explain;
pub(crate) mod learn;
pub(crate) mod places;

#[cfg(test)]
mod tests;

use super::{EndpointLive, EndpointState, Level, ServiceLive, ServiceState};
use crate::lock::lock;
use cost::{Factors, Facts, Parts};
use draw::Draw;
use learn::{Median, Path, Stopwatch, WINDOW_SECONDS};
use places::{CELLS, Cell, Cells};

/// What a view of a service predicts by.
#[derive(Debug)]
pub(crate) struct Completion {
    factors: Factors,
    /// The header that says where data comes from.
    origin: Option<HeaderName>,
    cells: Cells,
    /// By endpoint.
    cell_of: Box<[Cell]>,
    /// By level.
    draws: Box<[Draw]>,
    experience: Arc<Experience>,
}

/// What a service has learned, whatever its endpoints are.
#[derive(Debug, Default)]
pub(crate) struct Experience {
    /// Cells keep their numbers while the process runs, since paths are told apart by them.
    cells: Mutex<Cells>,
    /// By the cell of the endpoint and that of the origin.
    pairs: Box<[[Path; CELLS]; CELLS]>,
    /// Of a response, in bytes.
    usual_response: Median,
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
        endpoints: &[Arc<EndpointState>],
        levels: &mut [Level],
    ) -> Option<Box<Self>> {
        if spec.balancer != Balancer::CompletionTime {
            return None;
        }
        let experience = live.experience.get_or_init(Arc::default).clone();
        let cells = {
            let mut cells = lock(&experience.cells);
            endpoints.iter().for_each(|e| e.live.learned.stands_in(cells.add(&e.spec)));
            cells.clone()
        };
        let cell_of: Box<[_]> = endpoints.iter().map(|e| e.live.learned.cell()).collect();
        for (endpoint, cell) in endpoints.iter().zip(&cell_of) {
            for origin in cells.all() {
                let expected = experience.network(&cells, *cell, origin);
                endpoint.live.learned.paths[origin.index()].expect(expected);
            }
        }
        let weight = |member: u32| endpoints[member as usize].spec.weight;
        let draw = |level: &mut Level| {
            level.members.sort_by_key(|member| cell_of[*member as usize]);
            Draw::new(level, &cell_of, weight)
        };
        let draws = levels.iter_mut().map(draw).collect();
        let origin = spec.prediction.origin.as_ref();
        let origin = origin
            .and_then(|OriginSource::Header(name)| HeaderName::from_bytes(name.as_bytes()).ok());
        let factors = (&spec.prediction.terms).into();
        let new = Self { factors, origin, cells, cell_of, draws, experience };
        new.weigh_cells();
        Some(Box::new(new))
    }

    fn weigh_cells(&self) {
        let bytes = self.experience.usual_response.value();
        for draw in &self.draws {
            draw.weigh(&self.cells, |cell, origin| {
                let network = self.experience.network(&self.cells, cell, origin);
                network + bytes * self.experience.seconds_per_byte(cell, origin)
            });
        }
    }
}

impl Experience {
    /// Seconds between two cells, as measured or as the distance lets expect.
    fn network(&self, cells: &Cells, endpoint: Cell, origin: Cell) -> f32 {
        let known = self.pairs[endpoint.index()][origin.index()].network();
        known.unwrap_or_else(|| cells.round_trip(endpoint, origin))
    }

    /// What endpoints of a cell take, of which nothing else is known.
    fn seconds_per_byte(&self, endpoint: Cell, origin: Cell) -> f32 {
        let known = self.pairs[endpoint.index()][origin.index()].seconds_per_byte();
        known.unwrap_or(1.0 / UNKNOWN_BYTES_PER_SECOND)
    }
}

impl ServiceState {
    /// Where the data of a request comes from, as far as it says so.
    pub fn origin(&self, headers: &HeaderMap) -> Cell {
        let Some(completion) = &self.completion else { return Cell::HERE };
        let value = completion.origin.as_ref().and_then(|name| headers.get(name));
        value.and_then(|value| completion.cells.named(value.as_bytes())).unwrap_or(Cell::HERE)
    }

    /// A try was made, for good or bad.
    pub(crate) fn learn(
        &self,
        watch: Stopwatch,
        endpoint: &EndpointLive,
        sent: u64,
        received: u64,
    ) {
        let Some(completion) = &self.completion else { return };
        let others = endpoint.requests.load(Relaxed);
        let Some(sample) = watch.end(others, sent.saturating_add(received)) else { return };
        let experience = &completion.experience;
        experience.usual_response.add(real(received));
        let learned = &endpoint.learned;
        let pair = &experience.pairs[learned.cell().index()][sample.origin.index()];
        learned.served(&sample, pair, completion.factors.health);
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
        self.endpoints.iter().for_each(|e| e.live.learned.second(now_ms, window_ends));
        if window_ends {
            experience.pairs.as_flattened().iter().for_each(Path::end_window);
        }
        completion.weigh_cells();
    }
}

impl Completion {
    /// The draw of a level.
    pub(crate) fn draw(&self, level: usize) -> &Draw {
        &self.draws[level]
    }

    /// Bytes that a request will move which says that it brings so many.
    pub(crate) fn expected(&self, declared: u64) -> f32 {
        real(declared) + self.experience.usual_response.value()
    }

    /// Seconds in which an endpoint will complete a try of so many bytes, in parts. `warmth`: the share
    /// of its weight that an endpoint has which came back not long ago.
    #[inline]
    pub(crate) fn predict(
        &self,
        (index, endpoint): (usize, &EndpointState),
        origin: Cell,
        bytes: f32,
        warmth: f32,
    ) -> Parts {
        let live = &endpoint.live;
        let learned = &live.learned;
        let path = &learned.paths[origin.index()];
        let known = path.seconds_per_byte();
        let facts = Facts {
            network: path.network().unwrap_or(0.0),
            seconds_per_byte: known.unwrap_or_else(|| self.unknown(index, endpoint, origin)),
            bytes: real(live.bytes_in_flight.load(Relaxed)) + bytes,
            seconds_per_request: learned.per_request(),
            requests: real(u64::from(live.requests.load(Relaxed)) + 1),
            strain: learned.strain() / warmth,
            tries: learned.tries(),
        };
        facts.parts(&self.factors)
    }

    #[cold]
    fn unknown(&self, index: usize, endpoint: &EndpointState, origin: Cell) -> f32 {
        let usual = self.experience.seconds_per_byte(self.cell_of[index], origin);
        usual * USUAL_WEIGHT / real(endpoint.spec.weight.into())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a prediction")]
fn real(number: u64) -> f32 {
    number as f32
}
