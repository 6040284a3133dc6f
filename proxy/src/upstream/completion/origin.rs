//! Where the data of a request comes from: what it says itself, where who sent it is registered,
//! or where its client's address is; else from beside the proxy.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use http::{HeaderMap, HeaderName};
use towpath_policies::model::{OriginSource, Prediction, Registered};

use super::places::{Cell, Cells, Settling};
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
    Registered { header: HeaderName, places: HashMap<Box<[u8]>, Cell, ahash::RandomState> },
    Client,
}

impl Origins {
    /// Registered places take cells, as far as endpoints have left any.
    pub(super) fn new(
        prediction: &Prediction,
        settling: &mut Settling<'_>,
        clients: Option<Arc<ClientPlaces>>,
    ) -> Self {
        let sources = prediction.origin.iter().filter_map(|spec| Source::new(spec, settling));
        Self { sources: sources.collect(), clients }
    }

    /// The cell of the first source that says something.
    fn find(&self, cells: &Cells, headers: Option<&HeaderMap>, client: Option<IpAddr>) -> Cell {
        let said = |source: &Source| match source {
            Source::Header(name) => cells.named(headers?.get(name)?.as_bytes()),
            Source::Registered { header, places } => {
                places.get(headers?.get(header)?.as_bytes()).copied()
            }
            Source::Client => cells.at(self.clients.as_ref()?.find(client?)?),
        };
        self.sources.iter().find_map(said).unwrap_or(Cell::HERE)
    }

    /// The registered place of a tenant or device.
    pub(super) fn registered(&self, name: &str) -> Option<Cell> {
        self.sources.iter().find_map(|source| match source {
            Source::Registered { places, .. } => places.get(name.as_bytes()).copied(),
            _ => None,
        })
    }

    /// Where an address is, whether the policy asks for that or not.
    pub(super) fn client(&self, cells: &Cells, address: IpAddr) -> Option<Cell> {
        cells.at(self.clients.as_ref()?.find(address)?)
    }
}

impl Source {
    fn new(spec: &OriginSource, settling: &mut Settling<'_>) -> Option<Self> {
        let header = |name: &str| HeaderName::from_bytes(name.as_bytes()).ok();
        Some(match spec {
            OriginSource::Header(name) => Self::Header(header(name)?),
            OriginSource::Registered(Registered { header: name, places }) => {
                let cell = |(name, place): (&String, &towpath_policies::model::Location)| {
                    Some((name.as_bytes().into(), settling.origin(place.coordinates?)?))
                };
                let places = places.iter().filter_map(cell).collect();
                Self::Registered { header: header(name)?, places }
            }
            OriginSource::ClientAddress => Self::Client,
        })
    }
}

impl ServiceState {
    /// Where the data of a request comes from.
    pub fn origin(&self, headers: &HeaderMap, client: IpAddr) -> Cell {
        let Some(completion) = &self.completion else { return Cell::HERE };
        completion.origins.find(&completion.cells, Some(headers), Some(client))
    }

    /// Where the data of a connection comes from whose bytes are opaque.
    pub(crate) fn connection_origin(&self, client: IpAddr) -> Cell {
        let Some(completion) = &self.completion else { return Cell::HERE };
        completion.origins.find(&completion.cells, None, Some(client))
    }
}
