//! `Region` (towpath.dev/v1alpha1).

use super::{
    own::CoordinatesSpec,
    read::object,
    value::{Decimal, PlaceName, Whole, text},
};
use crate::problem::At;

object! {
    /// What is known of the region that endpoints name in `locality.region`, or that data comes from; its name
    /// is the document's.
    struct RegionSpec {
        /// Grams of CO2 equivalent that a kilowatt-hour emits there, 0 to 100000.
        "carbonIntensity" => carbon_intensity: Option<At<Decimal<100_000>>>,
        /// Its zone at Electricity Maps, e.g. `DE` or `US-CAL-CISO`: a control plane that may ask there takes
        /// the carbon intensity of this hour from it, and the one written here where there is no answer.
        "electricityMapsZone" => electricity_maps_zone: Option<At<ZoneName>>,
        /// What bytes cost that leave it.
        "egress" => egress: Option<At<Vec<EgressSpec>>>,
        /// Name of the place where it is, instead of `coordinates`: a city (`Frankfurt`, `Portland, OR`) or a
        /// cloud's region (`eu-central-1`). Data from near there has the region's prices.
        "place" => place: Option<At<PlaceName>>,
        /// Where that is, if `place` is not given.
        "coordinates" => coordinates: Option<CoordinatesSpec>,
        /// How near, 1 to 20000; default 100.
        "radiusKilometers" => radius_kilometers: Option<At<Whole<1, 20_000>>>,
    }
}

object! {
    /// The price of bytes to another region. What stays in the region costs nothing.
    struct EgressSpec {
        /// The region they go to, or `*` for every other.
        "to" => to: At<RegionName>,
        /// Cents per gigabyte (10^9 bytes), 0 to 100000; of the currency in which all prices are.
        "centsPerGigabyte" => cents_per_gigabyte: At<Decimal<100_000>>,
    }
}

text!(
    /// A zone of Electricity Maps.
    ZoneName,
    "^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$",
    |text| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
        let fits = (1..=32).contains(&text.len()) && text.bytes().all(inner);
        if fits && text.starts_with(|c: char| c.is_ascii_alphanumeric()) { Ok(()) } else { Err("is not a zone") }
    },
    "a zone as Electricity Maps writes it: DE, FR, US-CAL-CISO"
);
text!(
    /// A region, or all others.
    RegionName,
    "^[^ ].{0,252}$",
    |text| {
        let fits = (1..=253).contains(&text.len()) && text.trim() == text;
        if fits && !text.chars().any(char::is_control) { Ok(()) } else { Err("is not a region") }
    },
    "the region of an endpoint, or \"*\" for every other"
);
