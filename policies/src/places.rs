//! The gazetteer: where the cities of the world and the regions of the clouds are.
//!
//! A table that is built in, so that a policy's `place` needs no network. It knows cities of
//! 80,000 people and more, capitals, a few small places of large data centres, and the names
//! that others call them. The data is GeoNames' (CC BY 4.0), see `places/generate.py`.

mod fold;
mod table;

use self::{
    fold::fold,
    table::{City, TABLE},
};
use crate::{diagnostic::distance, model::Coordinates};

/// Longest name of a place, in characters.
pub const MAX_NAME: usize = 100;
/// Names that [`similar`] offers.
const OFFERED: usize = 3;
/// Mean radius of the earth.
const EARTH_KM: f64 = 6371.0;

/// A place that the gazetteer knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Name of the city, e.g. `Frankfurt am Main`.
    pub city: &'static str,
    /// ISO 3166-1 alpha-2, e.g. `DE`.
    pub country: &'static str,
    /// Code of a state of the USA, e.g. `VA`; empty elsewhere.
    pub state: &'static str,
    /// People who live there; 0 for a region.
    pub people: u32,
    /// Where it is.
    pub coordinates: Coordinates,
    /// Name of the region and of its cloud, where that was asked for.
    pub region: Option<(&'static str, &'static str)>,
}

impl std::fmt::Display for Place {
    /// So that [`find`] finds the same place by it, unless a larger one has the name too.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { city, country, state, .. } = self;
        if let Some((region, _)) = self.region {
            return f.write_str(region);
        }
        match *state {
            "" => write!(f, "{city}, {country}"),
            _ => write!(f, "{city}, {state}, {country}"),
        }
    }
}

/// The place called `name`: a region (`eu-central-1`), a city (`Frankfurt`), or a city with its
/// country or state (`Portland, OR`, `London, CA`, `Paris, France`).
///
/// Case, accents and punctuation do not matter. Of several places whose own name it is, or else
/// that are called so by others, the one with the most people is meant.
pub fn find(name: &str) -> Option<Place> {
    let table = &*TABLE;
    if let Some(region) = table.region(name) {
        return Some(region);
    }
    let mut parts = name.split(',').map(fold);
    let city = parts.next().filter(|city| !city.is_empty())?;
    let within: Vec<Vec<&str>> =
        parts.filter(|part| !part.is_empty()).map(|part| table.codes(&part)).collect();
    let is_there = |city: &&City| within.iter().all(|codes| city.lies_in(codes));
    table.called(&city).find(is_there).map(City::place)
}

/// Names like `name` that [`find`] knows, the likeliest first.
///
/// Looks at every name of the table: milliseconds, for a few names that are wrong.
pub fn similar(name: &str) -> Vec<String> {
    let table = &*TABLE;
    let wanted = fold(name.split(',').next().unwrap_or_default());
    let namesakes: Vec<String> =
        table.called(&wanted).take(OFFERED).map(|city| city.place().to_string()).collect();
    if !namesakes.is_empty() || wanted.is_empty() {
        return namesakes;
    }
    let limit = (wanted.chars().count() / 4).clamp(1, 3);
    let letters = letters(&wanted);
    let mut near: Vec<(usize, &City)> = Vec::new();
    for (other, city) in table.names() {
        let apart = (self::letters(other) ^ letters).count_ones() as usize;
        if other.len().abs_diff(wanted.len()) > limit || apart > 2 * limit {
            continue;
        }
        let far = distance(&wanted, other);
        if far <= limit {
            near.push((far, city));
        }
    }
    near.sort_by_key(|(far, city)| (*far, city.rank));
    let mut offered: Vec<u16> = Vec::new();
    for (_, city) in near {
        if !offered.contains(&city.rank) && offered.len() < OFFERED {
            offered.push(city.rank);
        }
    }
    offered.iter().map(|rank| table.city(*rank).place().to_string()).collect()
}

/// The city nearest to a point, and the kilometres to it.
pub fn nearest(point: Coordinates) -> Option<(Place, f64)> {
    let far = TABLE.cities().map(|city| (city.place(), kilometres(point, city.coordinates)));
    far.min_by(|a, b| a.1.total_cmp(&b.1))
}

/// Kilometres along the surface between two points (great circle, spherical earth: within 0.6 %).
pub fn kilometres(a: Coordinates, b: Coordinates) -> f64 {
    let (north, east) = (b.latitude - a.latitude, b.longitude - a.longitude);
    let half = |degrees: f64| (degrees.to_radians() / 2.0).sin().powi(2);
    let parallel = a.latitude.to_radians().cos() * b.latitude.to_radians().cos();
    let chord = half(north) + parallel * half(east);
    2.0 * EARTH_KM * chord.clamp(0.0, 1.0).sqrt().asin()
}

/// Which letters and digits a folded name has: a quick look that spares most comparisons.
fn letters(name: &str) -> u64 {
    name.bytes().fold(0, |set, byte| match byte {
        b'a'..=b'z' => set | 1 << (byte - b'a'),
        b'0'..=b'9' => set | 1 << (26 + byte - b'0'),
        _ => set,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str) -> String {
        find(name).map_or_else(
            || "nowhere".to_owned(),
            |place| {
                format!("{} {} {}", place.city, place.country, place.state).trim_end().to_owned()
            },
        )
    }

    #[test]
    fn names_are_found_as_people_write_them() {
        for (name, expected) in [
            ("Frankfurt", "Frankfurt am Main DE"),
            ("frankfurt am main", "Frankfurt am Main DE"),
            ("Frankfurt, DE", "Frankfurt am Main DE"),
            ("Frankfurt,Germany", "Frankfurt am Main DE"),
            (" FRANKFURT ", "Frankfurt am Main DE"),
            ("FRA", "Frankfurt am Main DE"),
            ("München", "Munich DE"),
            ("Muenchen", "Munich DE"),
            ("munchen", "Munich DE"),
            ("Zürich", "Zürich CH"),
            ("Zu\u{308}rich", "Zürich CH"),
            ("Malmö", "Malmö SE"),
            ("Łódź", "Łódź PL"),
            ("São Paulo", "São Paulo BR"),
            ("Xi'an", "Xi’an CN"),
            ("St. Louis, MO", "St. Louis US MO"),
            ("Washington, D.C.", "Washington US DC"),
            ("New York", "New York City US NY"),
            ("Den Haag", "The Hague NL"),
            ("Reykjavik", "Reykjavík IS"),
        ] {
            assert_eq!(at(name), expected, "{name}");
        }
    }

    #[test]
    fn of_namesakes_the_largest_is_meant_and_a_country_or_state_tells_them_apart() {
        for (name, expected) in [
            ("London", "London GB"),
            ("London, CA", "London CA"),
            ("London, UK", "London GB"),
            ("Paris", "Paris FR"),
            ("Portland", "Portland US OR"),
            ("Portland, Oregon, USA", "Portland US OR"),
            ("Birmingham", "Birmingham GB"),
            ("Birmingham, AL", "Birmingham US AL"),
            ("San Francisco, CA", "San Francisco US CA"),
            // Others call Tijuana and Austin so; it is the own name of these.
            ("Zaragoza", "Zaragoza ES"),
            ("Waterloo", "Waterloo CA"),
            ("Odessa", "Odesa UA"),
            ("Odessa, TX", "Odessa US TX"),
            ("Saint Petersburg", "Saint Petersburg RU"),
        ] {
            assert_eq!(at(name), expected, "{name}");
        }
    }

    #[test]
    fn regions_of_clouds_are_places() {
        for (name, expected) in [
            ("us-east-1", "Ashburn US"),
            ("us-west1", "The Dalles US"),
            ("us-west-1", "San Jose US"),
            ("EU-Central-1", "Frankfurt am Main DE"),
            ("europe-west3", "Frankfurt am Main DE"),
            ("westeurope", "Amsterdam NL"),
        ] {
            assert_eq!(at(name), expected, "{name}");
        }
        assert_eq!(find("eu-central-1").unwrap().region, Some(("eu-central-1", "AWS")));
        assert_eq!(find("Frankfurt").unwrap().region, None);
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let long = "x".repeat(10_000);
        for name in [
            "",
            " ",
            ",",
            ",,DE",
            "Eldorado County",
            "Frankfurt, FR",
            "Paris, Nowhere",
            "東京都",
            &long,
        ] {
            assert_eq!(find(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_offered_instead_is_found() {
        for (name, expected) in [
            ("Frankfrt", "Frankfurt am Main, DE"),
            ("Amsterdm", "Amsterdam, NL"),
            ("Sinagpore", "Singapore, SG"),
            ("Chicgao", "Chicago, IL, US"),
            ("Frankfurt, FR", "Frankfurt am Main, DE"),
        ] {
            let offered = similar(name);
            assert_eq!(offered.first().map(String::as_str), Some(expected), "{name}");
            for other in offered {
                assert!(find(&other).is_some_and(|p| p.to_string() == other), "{other}");
            }
        }
        assert_eq!(similar("Qwrtzpsdfg"), Vec::<String>::new());
        assert_eq!(similar(""), Vec::<String>::new());
        similar(&"x".repeat(10_000));
    }

    #[test]
    fn every_row_of_the_table_is_on_earth_and_found_by_its_own_name() {
        assert!(TABLE.cities().count() > 5000);
        for city in TABLE.cities() {
            let Coordinates { latitude, longitude } = city.coordinates;
            assert!(latitude.abs() <= 90.0 && longitude.abs() <= 180.0, "{city:?}");
            let name = city.place().to_string();
            let found = find(&name).unwrap_or_else(|| panic!("{name}"));
            assert!(found.people >= city.people && found.country == city.country, "{name}");
        }
    }

    #[test]
    fn the_nearest_city_and_its_distance() {
        let airport = Coordinates { latitude: 50.033, longitude: 8.570 };
        let (place, far) = nearest(airport).unwrap();
        assert_eq!(place.country, "DE");
        assert!(far < 15.0, "{place} {far}");
        // Across the 180th meridian.
        let fiji = Coordinates { latitude: -18.14, longitude: -179.5 };
        assert_eq!(nearest(fiji).unwrap().0.country, "FJ");
    }

    #[test]
    fn distances_are_those_of_an_atlas() {
        let between = |a: &str, b: &str| {
            kilometres(find(a).unwrap().coordinates, find(b).unwrap().coordinates).round()
        };
        for (a, b, expected) in [
            ("Frankfurt", "Frankfurt", 0.0),
            ("Berlin", "Munich", 504.0),
            ("London", "New York", 5570.0),
            ("Sydney", "Santiago", 11_340.0),
        ] {
            let far = between(a, b);
            assert!((far - expected).abs() <= expected * 0.01, "{a} {b} {far}");
        }
    }
}
