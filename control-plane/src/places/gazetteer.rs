//! The built-in table in the shape of a map service.

use std::{future::ready, time::SystemTime};

use towpath_policies::{
    model::Coordinates,
    places::{self, Place},
};

use super::{Answer, Eta, Found, MapService, PlaceError};

/// What is built in: cities and regions, no roads.
#[derive(Clone, Copy, Debug)]
pub struct Gazetteer;

impl MapService for Gazetteer {
    fn find<'a>(&'a self, name: &'a str) -> Answer<'a, Vec<Found>> {
        Box::pin(ready(Ok(places::find(name).map(found).into_iter().collect())))
    }

    fn at(&self, point: Coordinates) -> Answer<'_, Vec<Found>> {
        let nearest = places::nearest(point).map(|(place, _)| found(place));
        Box::pin(ready(Ok(nearest.into_iter().collect())))
    }

    fn etas<'a>(
        &'a self,
        _: Coordinates,
        _: &'a [Coordinates],
        _: Option<SystemTime>,
    ) -> Answer<'a, Vec<Option<Eta>>> {
        let error = "the built-in gazetteer knows no roads; travel times need Apple Maps (--apple-maps-key, --apple-maps-key-id, --apple-maps-team-id)";
        Box::pin(ready(Err(PlaceError::Refused(error.to_owned()))))
    }
}

fn found(place: Place) -> Found {
    let mut name = place.city.to_owned();
    if !place.state.is_empty() {
        name += &format!(", {}", place.state);
    }
    name += &format!(", {}", place.country);
    if let Some((region, cloud)) = place.region {
        name += &format!(" ({cloud} {region})");
    }
    Found { name, country: place.country.to_owned(), coordinates: place.coordinates }
}
