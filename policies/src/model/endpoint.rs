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
    /// Other regions, from which data comes to them at a price; of their electricity nothing is kept.
    #[serde(default)]
    pub origins: BTreeMap<String, Region>,
    /// How requests are shared out among priorities and localities.
    #[serde(default)]
    pub spread: Spread,
}

/// How requests are shared out among priorities and localities.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spread {
    /// A priority, or a locality where the service goes by their weights, has all of its share as long as
    /// the usable part of its endpoints times this is at least 100 %; what it has less goes to the next
    /// priority, or to the other localities. `None` = one usable endpoint is enough.
    pub overprovisioning_percent: Option<u32>,
    /// What localities count for within their priority, where [`super::Service::by_locality`] is set;
    /// one that is not named counts for the sum of its endpoints' weights. Each is named
    /// once, and they are in order of priority and locality.
    pub localities: Vec<LocalityWeight>,
}

/// What a locality counts for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalityWeight {
    /// As in [`Endpoint`].
    pub priority: u32,
    /// As in [`Endpoint`].
    pub locality: Locality,
    /// 0 to [`Self::MOST`]; 0 = nothing is sent there while another can be used.
    pub weight: u32,
}

impl LocalityWeight {
    /// More is taken for this. So that those of a priority do not add up to more than Envoy takes.
    pub const MOST: u32 = 50_000_000;
}

impl Spread {
    /// Envoy's, where an endpoint set says none.
    pub const USUAL_OVERPROVISIONING: u32 = 140;

    /// What a locality counts for, if that is said.
    pub fn weight(&self, priority: u32, locality: &Locality) -> Option<u32> {
        let at = self
            .localities
            .binary_search_by(|named| (named.priority, &named.locality).cmp(&(priority, locality)));
        at.ok().map(|at| self.localities[at].weight)
    }
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
    /// 0 is used first; a higher one when no lower has a usable endpoint, or as [`Spread`] says.
    pub priority: u32,
    /// What the control plane says of it.
    pub health: Health,
    /// The accelerator it works on.
    pub gpu: Option<Gpu>,
    /// Requests it works on at a time, where its service has a queue; `None` = as the queue says.
    #[serde(default)]
    pub slots: Option<u32>,
    /// The sidecar beside it takes connections of opaque bytes as streams of one, at port [`super::Redirected::TUNNELS`].
    #[serde(default)]
    pub tunnel: bool,
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
    /// Of [`Self::origins`].
    pub const MOST_ORIGINS: usize = 200;

    /// The endpoints of a service, with nothing known of their regions.
    pub const fn new(service: String, endpoints: Vec<Endpoint>) -> Self {
        let spread = Spread { overprovisioning_percent: None, localities: Vec::new() };
        Self { service, endpoints, regions: BTreeMap::new(), origins: BTreeMap::new(), spread }
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
    /// Whether nothing is said.
    pub const fn is_unsaid(&self) -> bool {
        self.place.is_none() && self.coordinates.is_none()
    }

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
            tunnel: false,
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
