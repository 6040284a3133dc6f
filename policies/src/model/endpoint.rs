//! The addresses behind a service.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::Region;

/// The endpoints of one service (EDS). Equal addresses appear once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndpointSet {
    /// Name of the [`super::Service`].
    pub service: String,
    /// In order of appearance.
    pub endpoints: Vec<Endpoint>,
    /// What is known of the regions in which they stand, by name; of others nothing is kept.
    #[serde(default)]
    pub regions: BTreeMap<String, Region>,
}

/// One address that serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// For logs and metrics; the address when none was given.
    pub name: String,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Where it stands.
    pub locality: Locality,
    /// The name of the place where it stands, as it was written.
    #[serde(default)]
    pub place: Option<String>,
    /// Where that is; `None` = not known (yet).
    pub coordinates: Option<Coordinates>,
    /// Relative capacity, 1 to 1,000,000. Default 100.
    pub weight: u32,
    /// What the policy says of it, where `weight` follows the load ([`super::Weights::FromLoad`]).
    #[serde(default)]
    pub declared_weight: Option<u32>,
    /// 0 is used first; a higher one only when no lower has a usable endpoint.
    pub priority: u32,
    /// What the control plane says of it.
    pub health: Health,
    /// The accelerator it works on.
    pub gpu: Option<Gpu>,
    /// Requests it works on at a time, where its service has a queue; `None` = as the queue says.
    #[serde(default)]
    pub slots: Option<u32>,
}

/// Region, zone and sub-zone, from the largest to the smallest; empty = unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Locality {
    /// E.g. `us-east`.
    pub region: String,
    /// E.g. `us-east-1a`.
    pub zone: String,
    /// E.g. a rack.
    pub sub_zone: String,
}

/// Degrees (WGS 84); finite, latitude in [-90, 90], longitude in [-180, 180].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Coordinates {
    /// North positive.
    pub latitude: f64,
    /// East positive.
    pub longitude: f64,
}

/// Where something stands, as far as that is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Location {
    /// The name of the place, as it was written.
    pub place: Option<String>,
    /// Where that is; `None` = not known (yet).
    pub coordinates: Option<Coordinates>,
}

/// Declared accelerator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// `amd` or `nvidia`.
    pub vendor: String,
    /// E.g. `MI300X`.
    pub model: String,
    /// How many. At least 1.
    pub count: u32,
}

/// Health as told by the control plane; a proxy's own probes and ejections come on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// Not known; used like healthy.
    #[default]
    Unknown,
    /// Usable.
    Healthy,
    /// Not to be used.
    Unhealthy,
    /// Finishes what it has, gets nothing new.
    Draining,
}

impl EndpointSet {
    /// The endpoints of a service, with nothing known of their regions.
    pub const fn new(service: String, endpoints: Vec<Endpoint>) -> Self {
        Self { service, endpoints, regions: BTreeMap::new() }
    }
}

impl Coordinates {
    /// Reads `latitude,longitude`, both in degrees and on earth.
    pub fn read(text: &str) -> Option<Self> {
        let (latitude, longitude) = text.split_once(',')?;
        let degrees = |text: &str| text.trim().parse::<f64>().ok();
        let read = Self { latitude: degrees(latitude)?, longitude: degrees(longitude)? };
        read.on_earth().then_some(read)
    }

    /// Whether there is such a point.
    pub fn on_earth(&self) -> bool {
        self.latitude.abs() <= 90.0 && self.longitude.abs() <= 180.0
    }
}

impl Location {
    /// A point without a name.
    pub fn at(coordinates: Coordinates) -> Self {
        Self { place: None, coordinates: Some(coordinates) }
    }
}

impl Endpoint {
    /// An endpoint with every default.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            name: address.to_string(),
            address,
            locality: Locality::default(),
            place: None,
            coordinates: None,
            weight: 100,
            declared_weight: None,
            priority: 0,
            health: Health::Unknown,
            gpu: None,
            slots: None,
        }
    }

    /// Where it stands, but for its locality.
    pub fn location(&self) -> Location {
        Location { place: self.place.clone(), coordinates: self.coordinates }
    }

    /// Its relative capacity while it is well, as the policy says.
    pub fn declared(&self) -> u32 {
        self.declared_weight.unwrap_or(self.weight)
    }
}
