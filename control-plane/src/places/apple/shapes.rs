//! What the API answers, as Apple documents it, read with care.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use towpath_policies::model::Coordinates;

use super::super::{Eta, Found, readable};

/// Places kept of an answer.
const PLACES_KEPT: usize = 10;
/// How far what is said of a destination may be from the one that was asked for, in degrees.
const SAME: f64 = 1e-3;

/// `GET /v1/token`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TokenResponse {
    #[serde(deserialize_with = "token")]
    pub(super) access_token: String,
    pub(super) expires_in_seconds: u64,
}

/// Fit for a header.
fn token<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    const LONGEST: usize = 16 << 10;
    let text = String::deserialize(deserializer)?;
    let fit =
        !text.is_empty() && text.len() <= LONGEST && text.bytes().all(|b| b.is_ascii_graphic());
    if fit { Ok(text) } else { Err(serde::de::Error::custom("the access token is none")) }
}

/// `GET /v1/geocode` and `/v1/reverseGeocode`.
#[derive(Debug, Deserialize)]
pub(super) struct PlaceResults {
    results: Vec<Place>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Place {
    coordinate: Option<Location>,
    name: Option<String>,
    #[serde(default)]
    formatted_address_lines: Vec<String>,
    #[serde(default)]
    structured_address: StructuredAddress,
    country: Option<String>,
    country_code: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StructuredAddress {
    locality: Option<String>,
    administrative_area: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Location {
    latitude: f64,
    longitude: f64,
}

impl Location {
    fn on_earth(self) -> Option<Coordinates> {
        let Self { latitude, longitude } = self;
        let is = latitude.abs() <= 90.0 && longitude.abs() <= 180.0;
        is.then_some(Coordinates { latitude, longitude })
    }
}

impl PlaceResults {
    /// Those that are somewhere, the likeliest first.
    pub(super) fn found(self) -> Vec<Found> {
        self.results.into_iter().filter_map(Place::found).take(PLACES_KEPT).collect()
    }
}

impl Place {
    fn found(self) -> Option<Found> {
        let coordinates = self.coordinate?.on_earth()?;
        let StructuredAddress { locality, administrative_area } = self.structured_address;
        let parts = [locality, administrative_area, self.country];
        let mut parts: Vec<_> = parts.into_iter().flatten().filter(|p| !p.is_empty()).collect();
        parts.dedup();
        let name = match &parts[..] {
            [] if self.formatted_address_lines.is_empty() => self.name.unwrap_or_default(),
            [] => self.formatted_address_lines.join(", "),
            parts => parts.join(", "),
        };
        let country = self.country_code.map(|code| readable(&code)).unwrap_or_default();
        Some(Found { name: readable(&name), country, coordinates })
    }
}

/// `GET /v1/etas`.
#[derive(Debug, Deserialize)]
pub(super) struct Etas {
    etas: Vec<OneEta>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OneEta {
    destination: Option<Location>,
    distance_meters: Option<f64>,
    expected_travel_time_seconds: Option<f64>,
    static_travel_time_seconds: Option<f64>,
}

impl Etas {
    /// Those of the destinations that were asked for, in their order. What is left out, or said
    /// of another place, shifts nothing.
    pub(super) fn of(self, destinations: &[Coordinates]) -> Vec<Option<Eta>> {
        let mut told: Vec<Option<OneEta>> = self.etas.into_iter().map(Some).collect();
        let mut take = |wanted: &Coordinates| {
            let is_it = |eta: &OneEta| {
                eta.destination.is_some_and(|at| {
                    (at.latitude - wanted.latitude).abs() < SAME
                        && (at.longitude - wanted.longitude).abs() < SAME
                })
            };
            told.iter_mut().find(|eta| eta.as_ref().is_some_and(is_it))?.take()?.eta()
        };
        destinations.iter().map(&mut take).collect()
    }
}

impl OneEta {
    fn eta(self) -> Option<Eta> {
        /// More than any way or time on earth.
        const MOST: f64 = 1e9;
        let sound = |number: f64| (0.0..=MOST).contains(&number).then_some(number);
        let seconds = |number| Some(Duration::from_secs_f64(sound(number)?));
        let expected = seconds(self.expected_travel_time_seconds?)?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
        let distance_meters = sound(self.distance_meters?)?.round() as u64;
        let empty_roads = self.static_travel_time_seconds.and_then(seconds).unwrap_or(expected);
        Some(Eta { distance_meters, expected, empty_roads })
    }
}

/// The body of an answer that is none.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Failure {
    error: Option<ErrorResponse>,
}

#[derive(Debug, Default, Deserialize)]
struct ErrorResponse {
    message: Option<String>,
    #[serde(default)]
    details: Vec<String>,
}

impl Failure {
    /// The status and what Apple says about it.
    pub(super) fn words(status: StatusCode, body: &[u8]) -> String {
        let told: Self = serde_json::from_slice(body).unwrap_or_default();
        let ErrorResponse { message, details } = told.error.unwrap_or_default();
        let told: Vec<_> = message.into_iter().chain(details).map(|t| readable(&t)).collect();
        let told: Vec<_> = told.into_iter().filter(|text| !text.is_empty()).take(4).collect();
        if told.is_empty() {
            format!("status {status}")
        } else {
            format!("status {}, {}", status.as_u16(), told.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Apple's documentation.
    const PARK: &str = r#"{"results":[{"coordinate":{"latitude":37.3301996,"longitude":-122.0106415},
        "displayMapRegion":{"southLatitude":37.32,"westLongitude":-122.01,"northLatitude":37.33,"eastLongitude":-122.0},
        "name":"Apple Park Way","formattedAddressLines":["Apple Park Way","Cupertino, CA  95014","United States"],
        "structuredAddress":{"administrativeArea":"California","administrativeAreaCode":"CA","locality":"Cupertino",
        "postCode":"95014","thoroughfare":"Apple Park Way","fullThoroughfare":"Apple Park Way","areasOfInterest":["Apple Park"]},
        "country":"United States","countryCode":"US"}]}"#;

    fn found(json: &str) -> Vec<Found> {
        serde_json::from_str::<PlaceResults>(json).unwrap().found()
    }

    #[test]
    fn places_are_read_as_apple_writes_them() {
        let places = found(PARK);
        assert_eq!(places.len(), 1);
        assert_eq!(places[0].name, "Cupertino, California, United States");
        assert_eq!(places[0].country, "US");
        assert_eq!(places[0].coordinates.latitude, 37.3301996);
        assert!(found(r#"{"results":[]}"#).is_empty());
    }

    #[test]
    fn places_off_the_earth_are_none_and_their_words_are_harmless() {
        let json = r#"{"results":[
            {"name":"no place"},
            {"coordinate":{"latitude":91,"longitude":0}},
            {"coordinate":{"latitude":0,"longitude":-180.1}},
            {"coordinate":{"latitude":1,"longitude":2},"name":"a\u001b[2Jb"}]}"#;
        let places = found(json);
        assert_eq!(places.len(), 1);
        assert_eq!(places[0].name, "a [2Jb");
        let many: Vec<_> =
            std::iter::repeat_n(r#"{"coordinate":{"latitude":1,"longitude":2}}"#, 99).collect();
        assert_eq!(found(&format!(r#"{{"results":[{}]}}"#, many.join(","))).len(), PLACES_KEPT);
    }

    #[test]
    fn times_of_arrival_are_those_of_their_destinations() {
        let at = |latitude, longitude| Coordinates { latitude, longitude };
        // The documentation's example, and one more destination that is not answered.
        let json = r#"{"etas":[
            {"destination":{"latitude":37.44176585512703,"longitude":-122.17259315798667},"transportType":"AUTOMOBILE",
             "distanceMeters":23286,"expectedTravelTimeSeconds":1336,"staticTravelTimeSeconds":1039},
            {"destination":{"latitude":37.32556561130194,"longitude":-121.94635203581443},"transportType":"AUTOMOBILE",
             "distanceMeters":9550,"expectedTravelTimeSeconds":975,"staticTravelTimeSeconds":540},
            {"destination":{"latitude":1,"longitude":1},"distanceMeters":-5,"expectedTravelTimeSeconds":1e300}]}"#;
        let etas: Etas = serde_json::from_str(json).unwrap();
        let etas = etas.of(&[
            at(37.325566, -121.946352),
            at(0.0, 0.0),
            at(37.441766, -122.172593),
            at(1.0, 1.0),
        ]);
        let eta = |distance_meters, expected, empty| {
            let (expected, empty_roads) =
                (Duration::from_secs(expected), Duration::from_secs(empty));
            Some(Eta { distance_meters, expected, empty_roads })
        };
        assert_eq!(etas, [eta(9550, 975, 540), None, eta(23_286, 1336, 1039), None]);
    }

    #[test]
    fn failures_are_told_in_apples_words_or_by_their_status() {
        let words = |body: &str| Failure::words(StatusCode::UNAUTHORIZED, body.as_bytes());
        assert_eq!(
            words(r#"{"error":{"message":"Not Authorized","details":["token expired"]}}"#),
            "status 401, Not Authorized, token expired"
        );
        for body in ["", "<html>", "{}", r#"{"error":{}}"#, r#"{"error":"no"}"#] {
            assert_eq!(words(body), "status 401 Unauthorized", "{body}");
        }
    }
}
