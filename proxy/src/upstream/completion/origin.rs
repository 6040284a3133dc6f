//! Where the data of a request comes from: what it says itself, where who sent it is registered,
//! or where its client's address is; else from beside the proxy.

use std::{cmp::Reverse, collections::HashMap, net::IpAddr, sync::Arc};

use http::{HeaderMap, HeaderName};
use towpath_policies::model::{Coordinates, OriginSource, Registered, Service};

use super::{
    places::{Cell, Cells, Said, Settling, Spot},
    zones::{Origin, Zone, Zones},
};
use crate::{geoip::ClientPlaces, upstream::ServiceState};

/// What is asked of a request, one after the other.
#[derive(Debug)]
pub(super) struct Origins {
    sources: Box<[Source]>,
    clients: Option<Arc<ClientPlaces>>,
}

#[derive(Debug)]
enum Source {
    Header(HeaderName),
    Registered { header: HeaderName, register: Arc<Register>, origins: Box<[Option<Origin>]> },
    Client,
}

/// The places of a view.
#[derive(Debug)]
pub(super) struct Map {
    pub(super) cells: Cells,
    pub(super) zones: Zones,
}

/// Where tenants or devices are. There may be thousands, and it is the same for all views of a policy.
#[derive(Debug)]
pub(super) struct Register {
    /// Indexes into `places`.
    by_name: HashMap<Box<[u8]>, u32, ahash::RandomState>,
    /// Each once, those of the most names first.
    places: Box<[Coordinates]>,
}

impl Origins {
    /// Registered places take cells, as far as endpoints have left any. For their zones see [`Self::price`].
    pub(super) fn new(
        spec: &Service,
        settling: &mut Settling<'_>,
        clients: Option<Arc<ClientPlaces>>,
        old: Option<&Arc<ServiceState>>,
    ) -> Self {
        let before = old.and_then(|old| Some((&*old.spec, &old.completion.as_ref()?.origins)));
        let wanted = &spec.prediction.origin;
        let same = |old: &Service| std::ptr::eq(old, spec) || old.prediction.origin == *wanted;
        let kept = before.filter(|(old, _)| same(old)).into_iter().flat_map(|(_, o)| o.registers());
        let mut kept = kept.cloned();
        let sources = wanted.iter().filter_map(|source| Source::new(source, settling, &mut kept));
        let new = Self { sources: sources.collect(), clients };
        // Told once, and not with each change of the endpoints.
        if new.is_blind() && !before.is_some_and(|(_, before)| before.is_blind()) {
            tracing::warn!(
                service = spec.name,
                "a policy asks where clients are, and there is no database that says it (--geoip)"
            );
        }
        new
    }

    /// Says by which prices bytes go from registered places.
    pub(super) fn price(&mut self, zones: &Zones) {
        for source in &mut self.sources {
            let Source::Registered { register, origins, .. } = source else { continue };
            for (origin, at) in origins.iter_mut().zip(&register.places) {
                let cell = origin.map(|origin| origin.cell);
                *origin = joined(cell, zones.find(&Said::At(Spot::new(*at))));
            }
        }
    }

    /// Asks where clients are, and nobody knows.
    pub(super) fn is_blind(&self) -> bool {
        self.clients.is_none() && self.sources.iter().any(|source| matches!(source, Source::Client))
    }

    pub(super) fn registers(&self) -> impl Iterator<Item = &Arc<Register>> {
        self.sources.iter().filter_map(|source| match source {
            Source::Registered { register, .. } => Some(register),
            _ => None,
        })
    }

    /// What the first source says that says something.
    fn find(&self, map: &Map, headers: Option<&HeaderMap>, client: Option<IpAddr>) -> Origin {
        let said = |source: &Source| match source {
            Source::Header(name) => map.named(headers?.get(name)?.as_bytes()),
            Source::Registered { header, register, origins } => {
                origins[register.find(headers?.get(header)?.as_bytes())?]
            }
            Source::Client => map.at(self.clients.as_ref()?.find(client?)?),
        };
        self.sources.iter().find_map(said).unwrap_or_else(|| map.here())
    }

    /// The registered place of a tenant or device.
    pub(super) fn registered(&self, name: &str) -> Option<Origin> {
        self.sources.iter().find_map(|source| match source {
            Source::Registered { register, origins, .. } => {
                origins[register.find(name.as_bytes())?]
            }
            _ => None,
        })
    }

    /// Where an address is, whether the policy asks for that or not.
    pub(super) fn client(&self, map: &Map, address: IpAddr) -> Option<Origin> {
        map.at(self.clients.as_ref()?.find(address)?)
    }
}

impl Map {
    /// Beside the proxy.
    pub(super) fn here(&self) -> Origin {
        Origin { cell: Cell::HERE, zone: self.zones.here() }
    }

    /// Where a request says: `latitude,longitude` in degrees, or a region.
    pub(super) fn named(&self, value: &[u8]) -> Option<Origin> {
        self.find(&Said::read(value)?)
    }

    /// A point; `None` where nothing has coordinates.
    fn at(&self, coordinates: Coordinates) -> Option<Origin> {
        self.find(&Said::At(Spot::new(coordinates)))
    }

    fn find(&self, said: &Said<'_>) -> Option<Origin> {
        let zone = self.zones.find(said);
        let cell = self.cells.find(said).or_else(|| self.cells.nearest(&self.zones.spot(zone?)?));
        joined(cell, zone)
    }
}

/// What is known of either.
fn joined(cell: Option<Cell>, zone: Option<Zone>) -> Option<Origin> {
    let known = cell.is_some() || zone.is_some();
    known.then(|| Origin { cell: cell.unwrap_or_default(), zone: zone.unwrap_or_default() })
}

impl Source {
    /// `kept`: the registers of a view before, where they say the same.
    fn new(
        spec: &OriginSource,
        settling: &mut Settling<'_>,
        kept: &mut impl Iterator<Item = Arc<Register>>,
    ) -> Option<Self> {
        let header = |name: &str| HeaderName::from_bytes(name.as_bytes()).ok();
        Some(match spec {
            OriginSource::Header(name) => Self::Header(header(name)?),
            OriginSource::Registered(spec) => {
                let header = header(&spec.header)?;
                let register = kept.next().unwrap_or_else(|| Arc::new(Register::new(spec)));
                let cells = register.settle(settling);
                let origins = cells.iter().map(|cell| joined(*cell, None)).collect();
                Self::Registered { header, register, origins }
            }
            OriginSource::ClientAddress => Self::Client,
        })
    }
}

impl Register {
    fn new(spec: &Registered) -> Self {
        let key = |at: Coordinates| [at.latitude, at.longitude].map(f64::to_bits);
        let located =
            || spec.places.iter().filter_map(|(name, place)| Some((name, place.coordinates?)));
        let mut counted = HashMap::new();
        for (_, at) in located() {
            counted.entry(key(at)).or_insert((0, at)).0 += 1;
        }
        let mut places: Vec<(u32, Coordinates)> = counted.into_values().collect();
        places.sort_by_key(|(names, at)| (Reverse(*names), key(*at)));
        let index: HashMap<_, u32> = places.iter().map(|(_, at)| key(*at)).zip(0..).collect();
        let by_name = located().map(|(name, at)| (name.as_bytes().into(), index[&key(at)]));
        Self { by_name: by_name.collect(), places: places.into_iter().map(|(_, at)| at).collect() }
    }

    /// The cells of its places. Those that have numbers keep them, and what was measured with them.
    fn settle(&self, settling: &mut Settling<'_>) -> Box<[Option<Cell>]> {
        let mut cells = vec![None; self.places.len()];
        let places = self.places.iter().enumerate();
        let (known, new): (Vec<_>, Vec<_>) = places.partition(|(_, at)| settling.knows(**at));
        for (index, at) in known.into_iter().chain(new) {
            cells[index] = settling.origin(*at);
        }
        cells.into()
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        self.by_name.get(name).map(|index| *index as usize)
    }
}

impl ServiceState {
    /// Where the data of a request comes from.
    pub fn origin(&self, headers: &HeaderMap, client: IpAddr) -> Origin {
        let Some(completion) = &self.completion else { return Origin::HERE };
        completion.origins.find(&completion.map, Some(headers), Some(client))
    }

    /// Where the data of a connection comes from whose bytes are opaque.
    pub(crate) fn connection_origin(&self, client: IpAddr) -> Origin {
        let Some(completion) = &self.completion else { return Origin::HERE };
        completion.origins.find(&completion.map, None, Some(client))
    }
}
