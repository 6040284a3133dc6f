//! Where endpoints stand: the coordinates of the places they name.

use std::collections::BTreeMap;

use crate::{
    diagnostic::Rule,
    document::{own::EndpointSpec, read::ticked},
    model::Coordinates,
    places,
    problem::Problems,
};

/// Unknown names that others are offered for: looking for them takes milliseconds.
const OFFERED_FOR: usize = 20;

/// The places that endpoints name.
#[derive(Default)]
pub(super) struct Places {
    /// Names that are not known, and what to do about each.
    unknown: BTreeMap<String, String>,
}

impl Places {
    /// The coordinates of an endpoint; none where its place is not known.
    pub(super) fn coordinates(
        &mut self,
        written: &EndpointSpec,
        problems: &mut Problems,
    ) -> Option<Coordinates> {
        let given = written.coordinates.as_ref();
        let Some(name) = &written.place else {
            return given.map(|c| Coordinates { latitude: c.latitude.0, longitude: c.longitude.0 });
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
            return None;
        }
        if let Some(place) = places::find(name) {
            return Some(place.coordinates);
        }
        let message = format!("no place called {} is known here", ticked(name));
        problems.warning(Rule::UnknownPlace, name.span, message).help(self.advice(name));
        None
    }

    fn advice(&mut self, name: &str) -> &str {
        const EFFECT: &str =
            "without coordinates, unless the control plane has a map service that knows it";
        let offer = self.unknown.len() < OFFERED_FOR;
        self.unknown.entry(name.to_owned()).or_insert_with(|| {
            let near = if offer { places::similar(name) } else { Vec::new() };
            let near: Vec<_> = near.iter().map(|name| ticked(name)).collect();
            match &near[..] {
                [] => format!("the endpoint is {EFFECT}; write a larger city near it"),
                near => format!("did you mean {}? else it is {EFFECT}", near.join(" or ")),
            }
        })
    }
}
