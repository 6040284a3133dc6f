//! Which parts of a mesh name places.

use towpath_policies::model::{
    Coordinates, EndpointSet, Listener, Location, OriginSource, Registered, Service,
};

/// Something that names places.
pub(crate) trait Locate: Clone {
    /// Tells each place that it names, where that is as far as it is known, and who is registered there,
    /// if anybody is.
    fn places(&self, told: impl FnMut(&str, Option<Coordinates>, Option<&str>));

    /// Puts in where places are; those of which nothing is said stay as they are.
    fn locate(&mut self, at: impl Fn(&str) -> Option<Coordinates>);
}

impl Locate for EndpointSet {
    fn places(&self, mut told: impl FnMut(&str, Option<Coordinates>, Option<&str>)) {
        for endpoint in &self.endpoints {
            endpoint.place.iter().for_each(|place| told(place, endpoint.coordinates, None));
        }
        for region in self.regions.values().chain(self.origins.values()) {
            region.location.places(&mut told);
        }
    }

    fn locate(&mut self, at: impl Fn(&str) -> Option<Coordinates>) {
        for endpoint in &mut self.endpoints {
            let said = endpoint.place.as_deref().and_then(&at);
            endpoint.coordinates = said.or(endpoint.coordinates);
        }
        for region in self.regions.values_mut().chain(self.origins.values_mut()) {
            region.location.locate(&at);
        }
    }
}

/// The places of tenants and devices.
impl Locate for Service {
    fn places(&self, mut told: impl FnMut(&str, Option<Coordinates>, Option<&str>)) {
        for source in &self.prediction.origin {
            let OriginSource::Registered(Registered { places, .. }) = source else { continue };
            for (who, location) in places {
                location.places(|place, at, _| told(place, at, Some(who)));
            }
        }
    }

    fn locate(&mut self, at: impl Fn(&str) -> Option<Coordinates>) {
        for source in &mut self.prediction.origin {
            let OriginSource::Registered(Registered { places, .. }) = source else { continue };
            places.values_mut().for_each(|location| location.locate(&at));
        }
    }
}

/// The place of the proxy that serves it.
impl Locate for Listener {
    fn places(&self, told: impl FnMut(&str, Option<Coordinates>, Option<&str>)) {
        self.location.places(told);
    }

    fn locate(&mut self, at: impl Fn(&str) -> Option<Coordinates>) {
        self.location.locate(at);
    }
}

impl Locate for Location {
    fn places(&self, mut told: impl FnMut(&str, Option<Coordinates>, Option<&str>)) {
        self.place.iter().for_each(|place| told(place, self.coordinates, None));
    }

    fn locate(&mut self, at: impl Fn(&str) -> Option<Coordinates>) {
        let said = self.place.as_deref().and_then(at);
        self.coordinates = said.or(self.coordinates);
    }
}
