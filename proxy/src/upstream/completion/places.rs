//! Where endpoints stand, where data comes from, and what the distance lets expect.

use std::{cmp::Reverse, sync::Arc};

use geo::{Distance, Haversine, Point};
use towpath_policies::model::Coordinates;

/// The most cells of a view, [`Cell::HERE`] included.
pub(crate) const CELLS: usize = 16;
/// Numbers that cells have: more than a view needs, so that those of views that are still in use
/// keep theirs while others come.
pub(crate) const NUMBERS: usize = 32;

/// A part of the world: the endpoints of one region, or where data comes from. What is measured is told apart by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell(u8);

/// The cells of a view of a service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cells {
    /// Where the proxy stands.
    here: Option<Spot>,
    places: Vec<Place>,
}

#[derive(Clone, Debug)]
struct Place {
    cell: Cell,
    /// May be empty.
    region: String,
    at: Option<Spot>,
    /// Shared with all views whose endpoints or registered places have the number.
    in_use: Arc<()>,
}

/// A point on earth.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    coordinates: Coordinates,
    /// On the unit sphere, so that the nearest needs no angle.
    direction: [f64; 3],
}

/// What a request says of where its data comes from.
#[derive(Debug)]
pub(super) enum Said<'a> {
    /// `latitude,longitude` in degrees, on earth.
    At(Spot),
    /// What else it is; not empty.
    Region(&'a str),
}

/// Which cell has which number. What is measured is kept by it, so one that was given stays, until
/// there is none left for a cell that comes, and no view has anything there any more: then it is the
/// number of that one.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    given: Vec<Given>,
    settled: u64,
}

#[derive(Debug)]
struct Given {
    place: Place,
    /// When a view had it last, counted in views.
    used: u64,
}

/// The cells of a view, in the making.
#[derive(Debug)]
pub(crate) struct Settling<'a> {
    numbers: &'a mut Numbers,
    cells: Cells,
    /// Those whose numbers say nothing of what was measured.
    new: Vec<Cell>,
}

/// Cosine of the angle of 100 km: an endpoint without a region belongs to a place this near.
const NEAR: f64 = 0.999_876_82;
/// Light in fibre goes 200 km a millisecond, and fibre one and a half times as far as the great
/// circle: there and back 15 ms for 1,000 km.
const SECONDS_PER_METER: f64 = 15e-9;
/// Also between neighbours.
const LEAST_SECONDS: f64 = 0.000_5;

impl Cell {
    /// As an origin beside this proxy, or unknown. As the cell of an endpoint unknown.
    pub(crate) const HERE: Self = Self(0);

    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }

    pub(super) const fn number(self) -> u8 {
        self.0
    }

    /// The cell with this number; there are no others.
    pub(super) fn numbered(number: u8) -> Self {
        Self(if usize::from(number) < NUMBERS { number } else { 0 })
    }
}

impl Numbers {
    /// Begins the cells of a view, for a proxy that stands there.
    pub(crate) fn settle(&mut self, here: Option<Coordinates>) -> Settling<'_> {
        self.settled += 1;
        let cells = Cells { here: here.map(Spot::new), places: Vec::new() };
        Settling { numbers: self, cells, new: Vec::new() }
    }

    /// A number for a place, with what is known of it, and whether it is new; `None` = there is none left.
    /// `joins`: what has no region may be in one that was there before.
    fn give(&mut self, region: &str, at: Option<Spot>, joins: bool) -> Option<(Place, bool)> {
        // Those that the view has already were not what it looked for.
        let known = |given: &&mut Given| {
            let place = &given.place;
            given.used < self.settled && place.is(region, at) && (joins || place.region == region)
        };
        if let Some(given) = self.given.iter_mut().find(known) {
            given.used = self.settled;
            return Some((given.place.clone(), false));
        }
        let free = |given: &Given| Arc::strong_count(&given.place.in_use) == 1;
        let number = if self.given.len() + 1 < NUMBERS {
            self.given.len()
        } else {
            let free = self.given.iter().enumerate().filter(|(_, given)| free(given));
            free.min_by_key(|(_, given)| given.used)?.0
        };
        let cell = Cell(u8::try_from(number + 1).ok()?);
        let place = Place { cell, region: region.to_owned(), at, in_use: Arc::default() };
        let given = Given { place: place.clone(), used: self.settled };
        match self.given.get_mut(number) {
            Some(before) => *before = given,
            None => self.given.push(given),
        }
        Some((place, true))
    }
}

impl Settling<'_> {
    /// The cell of an endpoint: by its region, else by its coordinates. Those for which there are no
    /// cells left belong to the nearest.
    pub(crate) fn endpoint(&mut self, region: &str, at: Option<Coordinates>) -> Cell {
        let at = at.map(Spot::new);
        if region.is_empty() && at.is_none() {
            return Cell::HERE;
        }
        // Without a region it has the prices of one in which other endpoints are, and of no other.
        if let Some(cell) = self.known_or_new(region, at, false) {
            return cell;
        }
        // The proxy is no endpoint's place.
        let places = self.cells.places.iter();
        at.and_then(|at| nearest(places, &at)).map_or(Cell::HERE, |(cell, _)| cell)
    }

    /// Whether a place that data comes from has a cell already, in this view or in one before.
    pub(crate) fn knows(&self, at: Coordinates) -> bool {
        let at = Spot::new(at);
        let mut places =
            self.cells.places.iter().chain(self.numbers.given.iter().map(|g| &g.place));
        self.cells.here.is_some_and(|here| here.is_near(&at)) || places.any(|p| p.is("", Some(at)))
    }

    /// The cell of a place that data comes from; `None` where nothing is near.
    pub(crate) fn origin(&mut self, at: Coordinates) -> Option<Cell> {
        let at = Spot::new(at);
        if self.cells.here.is_some_and(|here| here.is_near(&at)) {
            return Some(Cell::HERE);
        }
        self.known_or_new("", Some(at), true).or_else(|| self.cells.nearest(&at))
    }

    /// A region that data comes from and no endpoint stands in has a cell of its own, if one is left.
    pub(crate) fn region(&mut self, name: &str, at: Option<Coordinates>) {
        self.known_or_new(name, at.map(Spot::new), false);
    }

    /// A region of which nothing says where it is, is there.
    pub(crate) fn locate(&mut self, region: &str, at: Coordinates) {
        if let Some(place) = self.cells.places.iter_mut().find(|place| place.region == region) {
            place.at = place.at.or(Some(Spot::new(at)));
        }
    }

    /// The cells, and which of them have numbers that are new. Those left are for places that views had
    /// before: requests still name a region whose last endpoint is away, and what was measured of it
    /// ages as that of the others. They do not keep a number from a later view: what is under way from
    /// such a place when it is given away is measured as from the one that got it.
    pub(crate) fn finish(self) -> (Cells, Vec<Cell>) {
        let Self { numbers, mut cells, new } = self;
        for place in &mut cells.places {
            let Some(given) = numbers.given.get_mut(place.cell.index() - 1) else { continue };
            place.at = place.at.or(given.place.at);
            given.place.at = place.at;
        }
        let mut away: Vec<_> = numbers.given.iter().filter(|g| g.used < numbers.settled).collect();
        away.sort_by_key(|given| Reverse(given.used));
        // Where there is a living one, data comes from there.
        away.retain(|given| {
            let place = &given.place;
            let lives = |living: &Place| place.at.is_some() && living.is("", place.at);
            !place.region.is_empty() && !cells.places.iter().any(lives)
        });
        let left = CELLS - 1 - cells.places.len();
        cells.places.extend(away.into_iter().take(left).map(|given| given.place.remembered()));
        (cells, new)
    }

    fn known_or_new(&mut self, region: &str, at: Option<Spot>, joins: bool) -> Option<Cell> {
        let places = &mut self.cells.places;
        if let Some(place) = places.iter_mut().find(|place| place.is(region, at)) {
            place.at = place.at.or(at);
            return Some(place.cell);
        }
        if places.len() + 1 == CELLS {
            return None;
        }
        let (mut place, new) = self.numbers.give(region, at, joins)?;
        if !region.is_empty() {
            // What is said now counts; what was said before only where nothing is.
            place.at = at;
        }
        let cell = place.cell;
        places.push(place);
        self.new.extend(new.then_some(cell));
        Some(cell)
    }
}

impl Cells {
    /// All there are.
    pub(crate) fn all(&self) -> impl Iterator<Item = Cell> {
        std::iter::once(Cell::HERE).chain(self.places.iter().map(|place| place.cell))
    }

    /// Each of an endpoint with each of an origin.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (Cell, Cell)> {
        self.all().flat_map(|endpoint| self.all().map(move |origin| (endpoint, origin)))
    }

    /// What a person calls a cell: its region, or else where it is. Empty for the proxy's own.
    pub(crate) fn name(&self, of: Cell) -> String {
        match self.places.iter().find(|place| place.cell == of) {
            Some(Place { region, at: Some(at), .. }) if region.is_empty() => {
                format!("{:.3},{:.3}", at.coordinates.latitude, at.coordinates.longitude)
            }
            Some(place) => place.region.clone(),
            None => String::new(),
        }
    }

    /// The region of a cell; empty if it has none.
    pub(crate) fn region(&self, of: Cell) -> &str {
        let place = self.places.iter().find(|place| place.cell == of);
        place.map_or("", |place| &place.region)
    }

    /// The cell of what a request says; `None` where that is no region, and nothing has coordinates.
    pub(super) fn find(&self, said: &Said<'_>) -> Option<Cell> {
        match said {
            Said::At(spot) => self.nearest(spot),
            Said::Region(name) => self.of_region(name),
        }
    }

    /// As [`Self::find`], of the value of a header.
    #[cfg(test)]
    pub(crate) fn named(&self, value: &[u8]) -> Option<Cell> {
        self.find(&Said::read(value)?)
    }

    pub(super) fn of_region(&self, name: &str) -> Option<Cell> {
        let named = |place: &&Place| place.region.eq_ignore_ascii_case(name);
        self.places.iter().find(named).map(|place| place.cell)
    }

    /// Where a cell is, as far as that is known.
    pub(super) fn spot(&self, of: Cell) -> Option<Spot> {
        match of {
            Cell::HERE => self.here,
            _ => self.places.iter().find(|place| place.cell == of)?.at,
        }
    }

    /// Seconds there and back that the distance lets expect; 0 where it is not known.
    pub(crate) fn round_trip(&self, endpoint: Cell, origin: Cell) -> f32 {
        // The proxy is no endpoint's place.
        let endpoint = Some(endpoint).filter(|endpoint| *endpoint != Cell::HERE);
        let endpoint = endpoint.and_then(|endpoint| self.spot(endpoint));
        let (Some(endpoint), Some(origin)) = (endpoint, self.spot(origin)) else { return 0.0 };
        #[expect(clippy::cast_possible_truncation, reason = "a fraction of a second")]
        let seconds = endpoint.meters(&origin).mul_add(SECONDS_PER_METER, LEAST_SECONDS) as f32;
        seconds
    }

    /// What is near the proxy is beside it, whatever is nearer.
    pub(super) fn nearest(&self, spot: &Spot) -> Option<Cell> {
        let place = nearest(self.places.iter(), spot);
        match (place, self.here.map(|here| here.nearness(spot))) {
            (Some((cell, near)), Some(here)) if here < NEAR && near > here => Some(cell),
            (_, Some(_)) => Some(Cell::HERE),
            (place, None) => place.map(|(cell, _)| cell),
        }
    }
}

impl Place {
    /// As it is known where nothing holds its number.
    fn remembered(&self) -> Self {
        Self { in_use: Arc::default(), ..self.clone() }
    }

    /// Whether it is the place of what has this region or, without one, stands there.
    fn is(&self, region: &str, at: Option<Spot>) -> bool {
        if !region.is_empty() {
            return self.region == region;
        }
        self.at.zip(at).is_some_and(|(a, b)| a.is_near(&b))
    }
}

impl<'a> Said<'a> {
    /// The value of a header; `None` where it says nothing.
    pub(super) fn read(value: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?.trim();
        let at = Coordinates::read(text).map(|at| Self::At(Spot::new(at)));
        at.or_else(|| (!text.is_empty()).then_some(Self::Region(text)))
    }
}

impl Spot {
    pub(super) fn new(coordinates: Coordinates) -> Self {
        let (latitude, longitude) =
            (coordinates.latitude.to_radians(), coordinates.longitude.to_radians());
        let ((sin, cos), (east, north)) = (latitude.sin_cos(), longitude.sin_cos());
        Self { coordinates, direction: [cos * north, cos * east, sin] }
    }

    fn meters(&self, other: &Self) -> f64 {
        let point = |spot: &Self| Point::new(spot.coordinates.longitude, spot.coordinates.latitude);
        Haversine.distance(point(self), point(other))
    }

    fn is_near(&self, other: &Self) -> bool {
        self.nearness(other) >= NEAR
    }

    /// Cosine of the angle between them.
    pub(super) fn nearness(&self, other: &Self) -> f64 {
        self.direction.iter().zip(&other.direction).map(|(a, b)| a * b).sum()
    }
}

/// The place nearest to a spot, the first of several, and how near that is.
fn nearest<'a>(places: impl Iterator<Item = &'a Place>, spot: &Spot) -> Option<(Cell, f64)> {
    let near = |place: &Place| Some((place.cell, place.at?.nearness(spot)));
    places.filter_map(near).min_by(|(_, a), (_, b)| b.total_cmp(a))
}

#[cfg(test)]
mod tests;
