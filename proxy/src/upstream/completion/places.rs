//! Where endpoints stand, where data comes from, and what the distance lets expect.

use geo::{Distance, Haversine, Point};
use towpath_policies::model::{Coordinates, Endpoint};

/// The most cells of a service, [`Cell::HERE`] included.
pub(crate) const CELLS: usize = 16;

/// A part of the world: the endpoints of one region. What is measured is told apart by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell(u8);

/// The cells of a service. Their numbers do not change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cells(Vec<Place>);

#[derive(Clone, Debug)]
struct Place {
    /// May be empty.
    region: String,
    at: Option<Spot>,
}

#[derive(Clone, Copy, Debug)]
struct Spot {
    coordinates: Coordinates,
    /// On the unit sphere, so that the nearest needs no angle.
    direction: [f64; 3],
}

/// An endpoint without a region belongs to a place this near.
const NEAR_METERS: f64 = 100_000.0;
/// Light in fibre goes 200 km a millisecond, and fibre one and a half times as far as the great
/// circle: there and back 15 ms for 1,000 km.
const SECONDS_PER_METER: f64 = 15e-9;
/// Also between neighbours.
const LEAST_SECONDS: f64 = 0.000_5;

impl Cell {
    /// Beside this proxy, or unknown.
    pub const HERE: Self = Self(0);

    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }

    pub(super) const fn number(self) -> u8 {
        self.0
    }

    /// The cell with this number; there are no others.
    pub(super) fn numbered(number: u8) -> Self {
        Self(if usize::from(number) < CELLS { number } else { 0 })
    }
}

impl Cells {
    /// The cell of an endpoint: by its region, else by its coordinates. Those for which there are no
    /// cells left belong to the nearest.
    pub(crate) fn add(&mut self, endpoint: &Endpoint) -> Cell {
        let region = &endpoint.locality.region;
        let at = endpoint.coordinates.map(Spot::new);
        if region.is_empty() && at.is_none() {
            return Cell::HERE;
        }
        let same = |place: &Place| match &at {
            _ if !region.is_empty() => place.region == *region,
            Some(at) => place.at.is_some_and(|known| known.meters(at) <= NEAR_METERS),
            None => false,
        };
        if let Some(index) = self.0.iter().position(same) {
            let place = &mut self.0[index];
            place.at = place.at.or(at);
            return cell(index);
        }
        if self.0.len() + 1 == CELLS {
            return at.and_then(|at| self.nearest(&at)).unwrap_or(Cell::HERE);
        }
        self.0.push(Place { region: region.clone(), at });
        cell(self.0.len() - 1)
    }

    /// All there are.
    pub(crate) fn all(&self) -> impl Iterator<Item = Cell> + use<> {
        (0..=self.0.len()).map(|index| Cell(u8::try_from(index).unwrap_or(0)))
    }

    /// The region of a cell; empty if it has none.
    pub(crate) fn region(&self, of: Cell) -> &str {
        self.place(of).map_or("", |place| &place.region)
    }

    /// The cell that a request names: `latitude,longitude` in degrees, or a region. What is neither, or
    /// not on earth, names none.
    pub(crate) fn named(&self, value: &[u8]) -> Option<Cell> {
        let text = std::str::from_utf8(value).ok()?.trim();
        if let Some(coordinates) = read_coordinates(text) {
            return self.nearest(&Spot::new(coordinates));
        }
        let named = |place: &Place| !text.is_empty() && place.region.eq_ignore_ascii_case(text);
        self.0.iter().position(named).map(cell)
    }

    /// Seconds there and back that the distance lets expect; 0 where it is not known.
    pub(crate) fn round_trip(&self, a: Cell, b: Cell) -> f32 {
        let spot = |cell| self.place(cell).and_then(|place| place.at);
        let (Some(a), Some(b)) = (spot(a), spot(b)) else { return 0.0 };
        #[expect(clippy::cast_possible_truncation, reason = "a fraction of a second")]
        let seconds = a.meters(&b).mul_add(SECONDS_PER_METER, LEAST_SECONDS) as f32;
        seconds
    }

    fn place(&self, of: Cell) -> Option<&Place> {
        self.0.get(of.index().checked_sub(1)?)
    }

    fn nearest(&self, spot: &Spot) -> Option<Cell> {
        let near = |place: &Place| place.at.map(|at| at.nearness(spot));
        let places = self.0.iter().enumerate().filter_map(|(at, place)| Some((at, near(place)?)));
        places.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(index, _)| cell(index))
    }
}

impl Spot {
    fn new(coordinates: Coordinates) -> Self {
        let (latitude, longitude) =
            (coordinates.latitude.to_radians(), coordinates.longitude.to_radians());
        let ((sin, cos), (east, north)) = (latitude.sin_cos(), longitude.sin_cos());
        Self { coordinates, direction: [cos * north, cos * east, sin] }
    }

    fn meters(&self, other: &Self) -> f64 {
        let point = |spot: &Self| Point::new(spot.coordinates.longitude, spot.coordinates.latitude);
        Haversine.distance(point(self), point(other))
    }

    /// Cosine of the angle between them.
    fn nearness(&self, other: &Self) -> f64 {
        self.direction.iter().zip(&other.direction).map(|(a, b)| a * b).sum()
    }
}

/// `latitude,longitude`, both in degrees and on earth.
pub(crate) fn read_coordinates(text: &str) -> Option<Coordinates> {
    let (latitude, longitude) = text.split_once(',')?;
    let degrees = |text: &str, most: f64| {
        text.trim().parse::<f64>().ok().filter(|degrees| degrees.abs() <= most)
    };
    Some(Coordinates { latitude: degrees(latitude, 90.0)?, longitude: degrees(longitude, 180.0)? })
}

fn cell(index: usize) -> Cell {
    Cell(u8::try_from(index + 1).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRANKFURT: (f64, f64) = (50.1, 8.7);
    const VIRGINIA: (f64, f64) = (39.0, -77.5);
    const FIJI: (f64, f64) = (-17.7, 178.1);

    fn endpoint(region: &str, at: Option<(f64, f64)>) -> Endpoint {
        let mut endpoint = Endpoint::new("127.0.0.1:1".parse().unwrap());
        region.clone_into(&mut endpoint.locality.region);
        endpoint.coordinates = at.map(|(latitude, longitude)| Coordinates { latitude, longitude });
        endpoint
    }

    fn world() -> Cells {
        let mut cells = Cells::default();
        cells.add(&endpoint("eu", Some(FRANKFURT)));
        cells.add(&endpoint("us", Some(VIRGINIA)));
        cells.add(&endpoint("", Some(FIJI)));
        cells
    }

    #[test]
    fn an_origin_is_the_nearest_place_or_one_named() {
        let cells = world();
        for (value, cell) in [
            ("48.1,11.6", Some(1)),
            (" 45.5 , -73.6 ", Some(2)),
            // Across the date line.
            ("-13.8,-171.8", Some(3)),
            ("90,0", Some(1)),
            ("EU", Some(1)),
            ("us", Some(2)),
            ("", None),
            ("mars", None),
            ("91,0", None),
            ("0,181", None),
            ("NaN,1", None),
            ("inf,1", None),
            ("1,2,3", None),
            ("1", None),
        ] {
            assert_eq!(cells.named(value.as_bytes()), cell.map(Cell), "{value:?}");
        }
        assert_eq!(cells.named(b"\xff\xfe"), None);
        assert_eq!(Cells::default().named(b"48.1,11.6"), None);
    }

    #[test]
    fn endpoints_of_a_region_share_a_cell_and_its_number_stays() {
        let mut cells = world();
        assert_eq!(cells.add(&endpoint("us", None)), Cell(2));
        assert_eq!(cells.add(&endpoint("", Some((50.0, 8.5)))), Cell(1), "35 km from Frankfurt");
        assert_eq!(cells.add(&endpoint("", None)), Cell::HERE);
        assert_eq!(cells.add(&endpoint("new", None)), Cell(4));
        assert_eq!(cells.add(&endpoint("eu", Some(FRANKFURT))), Cell(1));
    }

    #[test]
    fn when_no_cell_is_left_the_nearest_takes_what_comes() {
        let mut cells = world();
        for region in 0..100 {
            let at = cells.add(&endpoint(&region.to_string(), None));
            assert_eq!(at, if region < 12 { Cell(region + 4) } else { Cell::HERE });
        }
        assert_eq!(cells.add(&endpoint("munich", Some((48.1, 11.6)))), Cell(1));
        assert_eq!(cells.all().count(), CELLS);
    }

    #[test]
    fn distance_lets_expect_a_round_trip() {
        let cells = world();
        let ms = |a, b| (cells.round_trip(Cell(a), Cell(b)) * 1000.0).round();
        assert_eq!(ms(1, 2), 99.0, "6,556 km; 90 ms are usual");
        assert_eq!(ms(2, 1), 99.0);
        assert_eq!(ms(1, 1), 1.0);
        assert_eq!(ms(0, 1), 0.0, "unknown");
    }
}
