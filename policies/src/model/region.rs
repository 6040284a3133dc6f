//! What is known of a region: where it is, what its electricity emits, and what it costs to send bytes out of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Location;

/// A region, as endpoints name it in [`super::Locality::region`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Region {
    /// Grams of CO₂ equivalent per kilowatt-hour, up to [`Self::MOST_CARBON`]; `None` = not known.
    pub carbon_intensity: Option<f64>,
    /// Its zone at Electricity Maps, for those who ask for the intensity of this hour.
    pub electricity_maps_zone: Option<String>,
    /// Cents per gigabyte (10⁹ bytes), up to [`Self::MOST_CENTS`], by the region that bytes go to;
    /// [`Self::ANY`] stands for all others.
    pub egress: BTreeMap<String, f64>,
    /// Where it is; endpoints in it that say better are believed.
    pub location: Location,
    /// Data from so near is taken for the region's, 1 to [`Self::MOST_KILOMETERS`]; `None` =
    /// [`Self::USUAL_KILOMETERS`].
    pub radius_kilometers: Option<u32>,
}

impl Region {
    /// Every other region.
    pub const ANY: &str = "*";
    /// In g/kWh. The dirtiest grids are near 1,000.
    pub const MOST_CARBON: f64 = 100_000.0;
    /// Per gigabyte.
    pub const MOST_CENTS: f64 = 100_000.0;
    /// Half the way around the earth.
    pub const MOST_KILOMETERS: u32 = 20_000;
    /// A city and what is around it. Farther, bytes from a cloud's region have left it.
    pub const USUAL_KILOMETERS: u32 = 100;

    /// Cents per gigabyte from this region, which is called `name`, to another; what stays costs
    /// nothing. `None` = not known.
    pub fn cents_to(&self, name: &str, to: &str) -> Option<f64> {
        if name == to {
            return Some(0.0);
        }
        self.egress.get(to).or_else(|| self.egress.get(Self::ANY)).copied()
    }

    /// Whether the figures are within their bounds.
    ///
    /// # Errors
    /// What must be so and is not.
    pub fn check(&self) -> Result<(), &'static str> {
        let within = |most: f64| move |figure: &f64| (0.0..=most).contains(figure);
        if !self.carbon_intensity.iter().all(within(Self::MOST_CARBON)) {
            return Err("a carbon intensity is from 0 to 100,000 g/kWh");
        }
        if !self.egress.values().all(within(Self::MOST_CENTS)) {
            return Err("egress costs from 0 to 100,000 cents per gigabyte");
        }
        if self.location.coordinates.is_some_and(|at| !at.on_earth()) {
            return Err("its coordinates are not on earth");
        }
        if self.radius_kilometers.is_some_and(|km| !(1..=Self::MOST_KILOMETERS).contains(&km)) {
            return Err("a radius is from 1 to 20,000 km");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cost_what_the_nearest_line_says() {
        let egress = [("us".to_owned(), 2.0), ("*".to_owned(), 9.0)].into();
        let eu = Region { egress, ..Region::default() };
        for (to, cents) in [("us", Some(2.0)), ("ap", Some(9.0)), ("eu", Some(0.0))] {
            assert_eq!(eu.cents_to("eu", to), cents, "{to}");
        }
        assert_eq!(Region::default().cents_to("eu", "us"), None);
    }
}
