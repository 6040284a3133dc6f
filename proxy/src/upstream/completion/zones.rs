//! By which region's prices bytes go: that of the endpoints' policies which a request names, or the one that
//! its data is near to.
//!
//! Measured is by [`Cell`], of which there are few, and each has what is nearest to it. Prices end at the
//! border: what is not near a region is in none, whatever is nearest.

use std::collections::{BTreeSet, HashMap};

use towpath_policies::model::{Coordinates, EndpointSet, Region};

use super::places::{Cell, Cells, NUMBERS, Said, Spot};

/// A region by its number in a view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Zone(u8);

/// Where data comes from: for what is measured, and for what it costs.
///
/// A zone has its number in one view. In another one it may be another's: requests that wait while
/// names of regions come or go may be weighed by the prices of a wrong one, once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub(crate) cell: Cell,
    pub(crate) zone: Zone,
}

/// The regions of a view that bytes have prices from or to; none where there are no prices.
#[derive(Debug, Default)]
pub(crate) struct Zones {
    /// By name, so that numbers stay while endpoints come and go.
    named: Box<[Named]>,
    /// That of the proxy.
    here: Zone,
    /// By cell, of what comes from there.
    of_cell: [Zone; NUMBERS],
}

#[derive(Debug)]
struct Named {
    region: String,
    at: Option<Spot>,
    /// Cosine of the angle within which data is the region's.
    near: f64,
}

impl Zone {
    /// Nobody knows.
    pub(crate) const UNKNOWN: Self = Self(0);
    /// In none of those whose places are known.
    pub(crate) const ELSEWHERE: Self = Self(1);
    /// Numbers before those of regions.
    const FIRST: usize = 2;

    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }

    /// Of the region at this place in [`Zones::named`].
    fn nth(place: usize) -> Self {
        u8::try_from(place + Self::FIRST).map_or(Self::UNKNOWN, Self)
    }
}

impl Origin {
    /// Beside the proxy, or unknown, where nobody knows what that costs.
    pub const HERE: Self = Self { cell: Cell::HERE, zone: Zone::UNKNOWN };
}

impl Zones {
    pub(super) fn new(set: &EndpointSet, cells: &Cells, here: Option<Coordinates>) -> Self {
        let told = || set.regions.iter().chain(&set.origins);
        if told().all(|(_, region)| region.egress.is_empty()) {
            return Self::default();
        }
        // Of this view: cells are fewer, and remember where a region was.
        let mut stands: HashMap<&str, Coordinates> = HashMap::new();
        for endpoint in &set.endpoints {
            if let Some(at) = endpoint.coordinates {
                stands.entry(&endpoint.locality.region).or_insert(at);
            }
        }
        // Those of endpoints first, should there be too many.
        let names = set.endpoints.iter().map(|endpoint| &endpoint.locality.region);
        let names = names.chain(told().map(|(name, _)| name));
        let names = names.chain(set.regions.values().flat_map(|region| region.egress.keys()));
        let (mut known, usual) = (BTreeSet::from([Region::ANY, ""]), Region::default());
        let named = names.filter(|name| known.insert(name)).map(|name| {
            let region = set.regions.get(name).or_else(|| set.origins.get(name)).unwrap_or(&usual);
            let at = region.location.coordinates.or_else(|| stands.get(name.as_str()).copied());
            let kilometers = region.radius_kilometers.unwrap_or(Region::USUAL_KILOMETERS);
            Named {
                region: name.clone(),
                at: at.map(Spot::new),
                near: (f64::from(kilometers) / EARTH_KILOMETERS).cos(),
            }
        });
        let mut named: Box<[Named]> = named.take(MOST).collect();
        named.sort_by(|a, b| a.region.cmp(&b.region));
        let mut new = Self { named, ..Self::default() };
        new.here = here.map_or(Zone::UNKNOWN, |at| new.around(&Spot::new(at)));
        for cell in cells.all() {
            let region = cells.region(cell);
            let around = || cells.spot(cell).map_or(Zone::UNKNOWN, |spot| new.around(&spot));
            new.of_cell[cell.index()] = match cell {
                Cell::HERE => new.here,
                _ if region.is_empty() => around(),
                _ => new.of_region(region).unwrap_or_default(),
            };
        }
        new
    }

    /// Of what comes from beside the proxy.
    pub(super) const fn here(&self) -> Zone {
        self.here
    }

    /// Of what comes from a cell, where nothing else is said.
    pub(super) const fn of_cell(&self, cell: Cell) -> Zone {
        self.of_cell[cell.index()]
    }

    /// What a request says; `None` where that is no region, or nobody knows.
    pub(super) fn find(&self, said: &Said<'_>) -> Option<Zone> {
        match said {
            Said::At(spot) => Some(self.around(spot)).filter(|zone| *zone != Zone::UNKNOWN),
            Said::Region(name) => self.of_region(name),
        }
    }

    /// Where the region is.
    pub(super) fn spot(&self, of: Zone) -> Option<Spot> {
        self.named.get(of.index().checked_sub(Zone::FIRST)?)?.at
    }

    /// Its name; [`Region::ANY`] where it is in none, and empty where nobody knows.
    pub(super) fn name(&self, of: Zone) -> &str {
        if of == Zone::ELSEWHERE {
            return Region::ANY;
        }
        let named = of.index().checked_sub(Zone::FIRST).and_then(|place| self.named.get(place));
        named.map_or("", |named| &named.region)
    }

    /// All there are, with the names of those that have one.
    pub(super) fn all(&self) -> impl Iterator<Item = (Zone, &str)> {
        let none = [Zone::UNKNOWN, Zone::ELSEWHERE].map(|zone| (zone, ""));
        let named = self.named.iter().enumerate();
        none.into_iter().chain(named.map(|(place, named)| (Zone::nth(place), &*named.region)))
    }

    /// The nearest region of those that are near enough; of several, the first by name.
    pub(super) fn around(&self, spot: &Spot) -> Zone {
        let mut nearest = (Zone::UNKNOWN, -2.0);
        for (place, named) in self.named.iter().enumerate() {
            let Some(at) = &named.at else { continue };
            let nearness = at.nearness(spot);
            if nearness >= named.near && nearness > nearest.1 {
                nearest = (Zone::nth(place), nearness);
            } else if nearest.0 == Zone::UNKNOWN {
                nearest.0 = Zone::ELSEWHERE;
            }
        }
        nearest.0
    }

    pub(super) fn of_region(&self, name: &str) -> Option<Zone> {
        let place = self.named.iter().position(|n| n.region.eq_ignore_ascii_case(name))?;
        Some(Zone::nth(place))
    }
}

/// So that each has a number.
const MOST: usize = u8::MAX as usize - Zone::FIRST;
/// Mean radius.
const EARTH_KILOMETERS: f64 = 6371.0;

#[cfg(test)]
impl From<Cell> for Origin {
    fn from(cell: Cell) -> Self {
        Self { cell, zone: Zone::UNKNOWN }
    }
}
