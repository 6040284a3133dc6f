//! The tables as they are built in, and the index of names over them, made on first use.

use std::{borrow::Cow, sync::LazyLock};

use super::{Place, fold::fold};
use crate::model::Coordinates;

const CITIES: &str = include_str!("cities.tsv");
const COUNTRIES: &str = include_str!("countries.tsv");
const REGIONS: &str = include_str!("regions.tsv");

pub(super) static TABLE: LazyLock<Table> = LazyLock::new(Table::new);

/// A row of `cities.tsv`.
#[derive(Debug)]
pub(super) struct City {
    pub(super) name: &'static str,
    pub(super) country: &'static str,
    state: &'static str,
    pub(super) coordinates: Coordinates,
    pub(super) people: u32,
    /// 0 is the one with the most people.
    pub(super) rank: u16,
}

/// A name of a city. Equal names stand in the order in which they are meant.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    text: Cow<'static, str>,
    /// Not the city's own name, but what others call it.
    foreign: bool,
    rank: u16,
}

pub(super) struct Table {
    cities: Vec<City>,
    /// Sorted.
    names: Vec<Name>,
    /// Names of countries and states, with their codes.
    codes: Vec<(&'static str, &'static str)>,
    regions: Vec<Place>,
}

impl City {
    fn read(row: &'static str, rank: usize) -> Option<(Self, &'static str)> {
        let mut fields = row.split('\t');
        let mut next = || fields.next();
        let city = Self {
            name: next()?,
            country: next()?,
            state: next()?,
            coordinates: Coordinates {
                latitude: next()?.parse().ok()?,
                longitude: next()?.parse().ok()?,
            },
            people: next()?.parse().ok()?,
            rank: u16::try_from(rank).ok()?,
        };
        Some((city, next()?))
    }

    /// Whether it lies in a country or state of these codes (`DE`, `US-OR`).
    pub(super) fn lies_in(&self, codes: &[&str]) -> bool {
        codes.iter().any(|code| match code.strip_prefix("US-") {
            Some(state) => self.country == "US" && self.state == state,
            None => self.country == *code,
        })
    }

    pub(super) fn place(&self) -> Place {
        let Self { name, country, state, coordinates, people, .. } = *self;
        Place { city: name, country, state, people, coordinates, region: None }
    }
}

impl Table {
    fn new() -> Self {
        let mut cities: Vec<City> = Vec::new();
        let mut names = Vec::new();
        for row in rows(CITIES) {
            // None is malformed: a test sees to it.
            let Some((city, others)) = City::read(row, cities.len()) else { continue };
            let rank = city.rank;
            names.push(Name { text: fold(city.name).into(), foreign: false, rank });
            for other in others.split(';').filter(|other| !other.is_empty()) {
                // Marked where it is as good as the own name.
                let (text, foreign) = match other.strip_prefix('!') {
                    Some(text) => (text, false),
                    None => (other, true),
                };
                names.push(Name { text: text.into(), foreign, rank });
            }
            cities.push(city);
        }
        names.sort_unstable();
        let codes = rows(COUNTRIES)
            .filter_map(|row| row.split_once('\t'))
            .flat_map(|(code, names)| names.split(';').map(move |name| (name, code)));
        let (codes, regions) = (codes.collect(), rows(REGIONS).filter_map(region).collect());
        Self { cities, names, codes, regions }
    }

    /// The cities of a folded name, the one that is meant first.
    pub(super) fn called(&self, name: &str) -> impl Iterator<Item = &City> {
        let first = self.names.partition_point(|n| *n.text < *name);
        let same = self.names[first..].iter().take_while(move |n| n.text == name);
        same.map(|n| self.city(n.rank))
    }

    /// The codes of the countries and states with a folded name or code.
    pub(super) fn codes(&self, name: &str) -> Vec<&'static str> {
        self.codes.iter().filter(|(n, _)| *n == name).map(|(_, code)| *code).collect()
    }

    /// The region of a cloud.
    pub(super) fn region(&self, name: &str) -> Option<Place> {
        let name = name.trim();
        let is_it = |place: &&Place| {
            place.region.is_some_and(|(region, _)| region.eq_ignore_ascii_case(name))
        };
        self.regions.iter().find(is_it).copied()
    }

    /// All names, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, &City)> {
        self.names.iter().map(|name| (&*name.text, self.city(name.rank)))
    }

    /// All cities, the largest first.
    pub(super) fn cities(&self) -> impl Iterator<Item = &City> {
        self.cities.iter()
    }

    pub(super) fn city(&self, rank: u16) -> &City {
        &self.cities[usize::from(rank)]
    }
}

fn region(row: &'static str) -> Option<Place> {
    let mut fields = row.split('\t');
    let mut next = || fields.next();
    let region = Some((next()?, next()?));
    let (city, country) = (next()?, next()?);
    let coordinates =
        Coordinates { latitude: next()?.parse().ok()?, longitude: next()?.parse().ok()? };
    Some(Place { city, country, state: "", people: 0, coordinates, region })
}

fn rows(table: &'static str) -> impl Iterator<Item = &'static str> {
    table.lines().filter(|line| !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_is_readable_and_small() {
        assert_eq!(TABLE.cities.len(), rows(CITIES).count());
        assert_eq!(TABLE.regions.len(), rows(REGIONS).count());
        assert!(rows(COUNTRIES).all(|row| row.contains('\t')));
        assert!(TABLE.cities.is_sorted_by_key(|city| std::cmp::Reverse(city.people)));
        assert!(CITIES.len() + COUNTRIES.len() + REGIONS.len() < 600_000);
    }

    #[test]
    fn names_are_folded_as_the_generator_does_it() {
        for name in &TABLE.names {
            assert_eq!(fold(&name.text), *name.text);
        }
        for (name, code) in &TABLE.codes {
            assert_eq!(fold(name), *name, "{code}");
        }
    }
}
