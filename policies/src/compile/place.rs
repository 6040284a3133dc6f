//! Where things stand: the coordinates of the places that policies name.

use std::collections::BTreeMap;

use crate::{
    diagnostic::Rule,
    document::{own::CoordinatesSpec, read::ticked, value::PlaceName},
    model::{Coordinates, Location},
    places,
    problem::{At, Problems, Span},
};

/// Unknown names that others are offered for: looking for them takes milliseconds.
const OFFERED_FOR: usize = 20;

/// The places that a mesh names.
#[derive(Default)]
pub(super) struct Places {
    /// Names that are not known, and what is like them.
    unknown: BTreeMap<String, String>,
}

impl Places {
    /// Where an endpoint or a region is; without coordinates where its place is not known. `otherwise`: what
    /// that means.
    pub(super) fn either(
        &mut self,
        place: Option<&At<PlaceName>>,
        given: Option<&CoordinatesSpec>,
        otherwise: &str,
        problems: &mut Problems,
    ) -> Location {
        let Some(name) = place else {
            let coordinates = given.map(|c| c.coordinates());
            return Location { place: None, coordinates };
        };
        if let Some(given) = given {
            problems
                .error(
                    Rule::Conflict,
                    name.span,
                    "only one of `place` and `coordinates` may be given",
                )
                .related(given.span, "the coordinates are here")
                .help("remove one of them");
            return Location { place: Some(name.to_string()), coordinates: None };
        }
        self.named(name, otherwise, problems)
    }

    /// Where this place is. `otherwise`: what it means that nobody knows it.
    pub(super) fn named(
        &mut self,
        name: &At<PlaceName>,
        otherwise: &str,
        problems: &mut Problems,
    ) -> Location {
        let coordinates = self.find(name, name.span, otherwise, problems);
        Location { place: Some(name.to_string()), coordinates }
    }

    fn find(
        &mut self,
        name: &str,
        span: Span,
        otherwise: &str,
        problems: &mut Problems,
    ) -> Option<Coordinates> {
        if let Some(place) = places::find(name) {
            return Some(place.coordinates);
        }
        let message = format!("no place called {} is known here", ticked(name));
        let effect =
            format!("{otherwise}, unless the control plane has a map service that knows the place");
        let help = match self.similar(name) {
            "" => format!("{effect}; write a larger city near it"),
            near => format!("did you mean {near}? else {effect}"),
        };
        problems.warning(Rule::UnknownPlace, span, message).help(help);
        None
    }

    fn similar(&mut self, name: &str) -> &str {
        let offer = self.unknown.len() < OFFERED_FOR;
        self.unknown.entry(name.to_owned()).or_insert_with(|| {
            let near = if offer { places::similar(name) } else { Vec::new() };
            near.iter().map(|name| ticked(name)).collect::<Vec<_>>().join(" or ")
        })
    }
}
