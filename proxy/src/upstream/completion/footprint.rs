//! What requests emit and cost besides their time, and how long that is worth waiting for.
//!
//! Those who tolerate delay are weighed by it ([`Footprints`]); counted is what everybody moves
//! ([`PerByte`]). What is not known of one region is taken for the worst that is known of another,
//! so that nothing is moved there for its sake; it is not counted.

use std::{array, collections::BTreeMap, sync::Arc};

use towpath_policies::model::{EndpointSet, Region, Service};

use super::{
    cost::{PerByte, Worth},
    draw::Draw,
    energy::{Energy, grams_per_joule},
    origin::Map,
    places::{Cell, Cells, NUMBERS},
    zones::Zone,
};
use crate::upstream::{EndpointLive, now_ms};

/// What requests that tolerate delay are weighed by.
#[derive(Debug)]
pub(crate) struct Footprints {
    worth: Worth,
    /// Where an endpoint does not say.
    joules_per_byte: f32,
    /// By cell.
    grams_per_joule: [Option<f32>; NUMBERS],
    /// The most that is known.
    dirtiest: f32,
    prices: Arc<Prices>,
    /// By level: which endpoints are looked at where there are many.
    pub(super) draws: Box<[Draw]>,
}

/// What bytes cost, by the zone of their origin and the cell of their endpoint.
#[derive(Debug, Default)]
pub(crate) struct Prices {
    rows: Box<[[Price; NUMBERS]]>,
    /// Cents per byte: the most that is known.
    dearest: f32,
}

/// Cents per byte to the endpoint, and from it.
#[derive(Clone, Copy, Debug, Default)]
struct Price {
    known: (Option<f32>, Option<f32>),
    /// As endpoints are weighed by it.
    taken: (f32, f32),
}

/// What a request will move.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) zone: Zone,
    /// Bytes to the endpoint, and from it.
    pub(crate) up: f32,
    pub(crate) down: f32,
    pub(crate) now_ms: u64,
}

const GIGABYTE: f64 = 1e9;

impl Footprints {
    /// `None` where no request is moved by it: its terms are off, or nothing is known.
    pub(super) fn new(
        spec: &Service,
        regions: &BTreeMap<String, Region>,
        cells: &Cells,
        prices: &Arc<Prices>,
        draws: impl FnOnce() -> Box<[Draw]>,
    ) -> Option<Box<Self>> {
        let worth = Worth::from(&spec.prediction.terms);
        let mut by_cell = [None; NUMBERS];
        for cell in cells.all() {
            let region = regions.get(cells.region(cell));
            let intensity = region.and_then(|region| region.carbon_intensity);
            by_cell[cell.index()] = intensity.map(grams_per_joule);
        }
        let dirtiest = by_cell.iter().flatten().copied().fold(0.0, f32::max);
        let moves =
            worth.carbon > 0.0 && dirtiest > 0.0 || worth.price > 0.0 && prices.dearest > 0.0;
        moves.then(|| {
            Box::new(Self {
                worth,
                joules_per_byte: joules_per_byte(spec),
                grams_per_joule: by_cell,
                dirtiest,
                prices: prices.clone(),
                draws: draws(),
            })
        })
    }

    /// Seconds that what a request leaves behind with an endpoint is worth: for its grams, and for its cents.
    #[inline]
    pub(crate) fn seconds(&self, live: &EndpointLive, load: &Load) -> (f32, f32) {
        let energy = &live.energy;
        let joules = energy.joules_per_byte(load.now_ms, self.joules_per_byte);
        let joules = joules.unwrap_or(self.joules_per_byte);
        let grams = energy.grams_per_joule().unwrap_or(self.dirtiest);
        self.worth_of(joules * grams, live.learned.cell(), load)
    }

    /// The same with what is usual in a cell, whose endpoints take so many joules for a byte by their reports.
    pub(super) fn usual(&self, cell: Cell, joules: Option<f32>, load: &Load) -> f32 {
        let grams = self.grams_per_joule[cell.index()].unwrap_or(self.dirtiest);
        let (carbon, price) =
            self.worth_of(joules.unwrap_or(self.joules_per_byte) * grams, cell, load);
        carbon + price
    }

    fn worth_of(&self, grams_per_byte: f32, cell: Cell, load: &Load) -> (f32, f32) {
        let cents = self.prices.between(load.zone, cell).map(|price| price.taken);
        let per_byte = PerByte { grams: Some(grams_per_byte), cents };
        self.worth.seconds(per_byte.footprint(load.up, load.down))
    }
}

impl Prices {
    /// `cell_of`: by endpoint.
    pub(super) fn new(set: &EndpointSet, map: &Map, cell_of: &[Cell]) -> Self {
        let told = |name: &str| set.regions.get(name).or_else(|| set.origins.get(name));
        let cents = |from: &str, to: &str| match told(from) {
            Some(region) => region.cents_to(from, to),
            // What stays costs nothing, whatever is known of the region.
            None => (from == to).then_some(0.0),
        };
        let Map { cells, zones } = map;
        // What is known of the others, if only that staying there costs nothing, says nothing of endpoints.
        let mut has_endpoints = [false; NUMBERS];
        cell_of.iter().for_each(|cell| has_endpoints[cell.index()] = true);
        let row = |(zone, origin): (Zone, &str)| {
            let mut row = [Price::default(); NUMBERS];
            for cell in cells.all().filter(|cell| has_endpoints[cell.index()]) {
                let region = cells.region(cell);
                if region.is_empty() || zone == Zone::UNKNOWN {
                    continue;
                }
                row[cell.index()].known = if zone == Zone::ELSEWHERE {
                    // Where a region is that does not say, it may be there.
                    let is_somewhere = zones.of_region(region).and_then(|z| zones.spot(z));
                    let any = |region: &Region| region.egress.get(Region::ANY).copied();
                    (None, is_somewhere.and_then(|_| per_byte(told(region).and_then(any))))
                } else {
                    (per_byte(cents(origin, region)), per_byte(cents(region, origin)))
                };
            }
            row
        };
        let mut rows: Box<[_]> = zones.all().map(row).collect();
        let known = |price: &Price| price.known.0.into_iter().chain(price.known.1);
        let dearest = rows.iter().flatten().flat_map(known).fold(0.0, f32::max);
        for row in &mut rows {
            // The same for all is nothing to choose by.
            let worst = |any: bool| if any { dearest } else { 0.0 };
            let up = worst(row.iter().any(|price| price.known.0.is_some()));
            let down = worst(row.iter().any(|price| price.known.1.is_some()));
            for Price { known, taken } in row {
                *taken = (known.0.unwrap_or(up), known.1.unwrap_or(down));
            }
        }
        Self { rows, dearest }
    }

    /// Zones are those of this view; of another one's that are not here nothing is known.
    fn between(&self, origin: Zone, endpoint: Cell) -> Option<&Price> {
        Some(&self.rows.get(origin.index())?[endpoint.index()])
    }

    /// For those from the origin to the endpoint, and for those back, of what is known; `None` where
    /// nothing is.
    pub(super) fn known(&self, origin: Zone, endpoint: Cell) -> Option<(f32, f32)> {
        let (up, down) = self.between(origin, endpoint)?.known;
        (up.is_some() || down.is_some()).then(|| (up.unwrap_or(0.0), down.unwrap_or(0.0)))
    }
}

/// Cents per byte.
#[expect(clippy::cast_possible_truncation, reason = "at most 1e-4")]
fn per_byte(cents_per_gigabyte: Option<f64>) -> Option<f32> {
    cents_per_gigabyte.map(|cents| (cents / GIGABYTE) as f32)
}

/// Grams that go with a byte at an endpoint, where its region's are known.
pub(super) fn grams_per_byte(energy: &Energy, spec: &Service) -> Option<f32> {
    let grams = energy.grams_per_joule()?;
    let usual = joules_per_byte(spec);
    Some(grams * energy.joules_per_byte(now_ms(), usual).unwrap_or(usual))
}

/// The mean by cell of what endpoints there report.
#[derive(Debug, Default)]
pub(super) struct Reported {
    sums: [(f32, f32); NUMBERS],
}

impl Reported {
    pub(super) fn add(&mut self, cell: Cell, joules_per_byte: Option<f32>) {
        if let Some(joules) = joules_per_byte {
            let (sum, count) = &mut self.sums[cell.index()];
            *sum += joules;
            *count += 1.0;
        }
    }

    pub(super) fn means(&self) -> [Option<f32>; NUMBERS] {
        array::from_fn(|cell| {
            let (sum, count) = self.sums[cell];
            (count > 0.0).then(|| sum / count)
        })
    }
}

/// As the policy says.
#[expect(clippy::cast_possible_truncation, reason = "at most 1e-3")]
pub(super) fn joules_per_byte(spec: &Service) -> f32 {
    (spec.prediction.joules_per_gigabyte / GIGABYTE) as f32
}

#[cfg(test)]
mod tests;
