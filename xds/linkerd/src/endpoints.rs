//! `Destination.Get`: the endpoints of a Service, and what changes of them.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use linkerd2_proxy_api::destination::{
    AddrSet, NoEndpoints, ProtocolHint, Update, WeightedAddr, WeightedAddrSet, protocol_hint,
    update,
};
use towpath_policies::model::{Endpoint, EndpointSet, Health, Protocol, Service};

use crate::{
    names,
    target::Target,
    world::{Found, World},
};

/// What one stream was told, and what it is about to be told.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    told: Told,
    /// More than fits one message; is told to its end before something newer is looked at.
    telling: Option<Telling>,
}

#[derive(Debug, Default)]
enum Told {
    #[default]
    Nothing,
    Unknown,
    Endpoints(Usable),
}

#[derive(Debug)]
struct Telling {
    to: Usable,
    /// Places in `to`'s set, the last first.
    add: Vec<usize>,
    remove: Vec<SocketAddr>,
}

/// The endpoints that something may be sent to, as a set is now.
#[derive(Clone, Debug)]
struct Usable {
    service: Arc<Service>,
    set: Arc<EndpointSet>,
    /// This one and no other.
    only: Option<SocketAddr>,
}

/// What there is to tell.
enum Wanted {
    /// Nothing yet: it is not known.
    Later,
    /// That there is no such thing.
    Unknown,
    Endpoints(Usable),
}

impl Listing {
    /// The next message for a stream that asked for `target`; `None` until the world is another.
    pub(crate) fn next(&mut self, world: &World, target: &Target) -> Option<Update> {
        if let Some(part) = self.part() {
            return Some(part);
        }
        match wanted(world, target) {
            Wanted::Later => None,
            Wanted::Unknown => {
                let news = !matches!(self.told, Told::Unknown);
                self.told = Told::Unknown;
                news.then(|| no_endpoints(false))
            }
            Wanted::Endpoints(to) => self.begin(to),
        }
    }

    fn begin(&mut self, to: Usable) -> Option<Update> {
        let held = match &self.told {
            Told::Endpoints(held) if held.is_same(&to) => return None,
            Told::Endpoints(held) => Some(held),
            Told::Nothing | Told::Unknown => None,
        };
        if to.endpoints().next().is_none() {
            let news = held.is_none_or(|held| held.endpoints().next().is_some());
            self.told = Told::Endpoints(to);
            return news.then(|| no_endpoints(true));
        }
        let (add, remove) = difference(held, &to);
        self.telling = Some(Telling { to, add, remove });
        self.part()
    }

    /// The next part of what is being told. What is new comes first, so that there is always something left.
    fn part(&mut self) -> Option<Update> {
        let Telling { to, add, remove } = self.telling.as_mut()?;
        let part = if !add.is_empty() {
            let rest = add.len().saturating_sub(MOST_IN_UPDATE);
            let places = add.drain(rest..).rev();
            let addrs = places.map(|at| weighted(&to.service, &to.set.endpoints[at])).collect();
            let metric_labels = service_labels(&to.service);
            Some(update::Update::Add(WeightedAddrSet { addrs, metric_labels }))
        } else if !remove.is_empty() {
            let rest = remove.len().saturating_sub(MOST_IN_UPDATE);
            let addrs = remove.drain(rest..).map(Into::into).collect();
            Some(update::Update::Remove(AddrSet { addrs }))
        } else {
            None
        };
        if add.is_empty() && remove.is_empty() {
            self.told = Told::Endpoints(self.telling.take()?.to);
        }
        Some(Update { update: Some(part?) })
    }
}

impl Usable {
    /// With their places in the set.
    fn endpoints(&self) -> impl Iterator<Item = (usize, &Endpoint)> {
        // Linkerd knows no priorities: it gets the first of which something is left.
        let usable = |e: &&Endpoint| matches!(e.health, Health::Unknown | Health::Healthy);
        let priority = self.set.endpoints.iter().filter(usable).map(|e| e.priority).min();
        // It would send in cleartext.
        let sends = self.service.tls.is_none();
        self.set.endpoints.iter().enumerate().filter(move |(_, endpoint)| {
            let wanted = match self.only {
                Some(address) => endpoint.address == address,
                None => usable(endpoint) && Some(endpoint.priority) == priority,
            };
            sends && wanted && endpoint.address.port() != 0
        })
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.service, &other.service)
            && Arc::ptr_eq(&self.set, &other.set)
            && self.only == other.only
    }
}

fn wanted(world: &World, target: &Target) -> Wanted {
    if !world.is_ready() {
        return Wanted::Later;
    }
    let (service, set, only) = match world.find(target) {
        Some(Found::Service(service)) => match world.endpoints(&service.name) {
            Some(set) => (service, set, None),
            None => return Wanted::Later,
        },
        Some(Found::Endpoint(service, set, endpoint)) => (service, set, Some(endpoint.address)),
        // A host's routes name the Services, which are asked for by their own names.
        Some(Found::Host(..)) | None => return Wanted::Unknown,
    };
    Wanted::Endpoints(Usable { service: service.clone(), set: set.clone(), only })
}

/// What to add, the last first, and what to remove.
fn difference(held: Option<&Usable>, to: &Usable) -> (Vec<usize>, Vec<SocketAddr>) {
    let before: HashMap<SocketAddr, &Endpoint> =
        held.iter().flat_map(|held| held.endpoints()).map(|(_, e)| (e.address, e)).collect();
    let spoken_as_before = held.is_some_and(|held| held.service.protocol == to.service.protocol);
    let told = |endpoint: &Endpoint| {
        spoken_as_before && before.get(&endpoint.address).is_some_and(|known| *known == endpoint)
    };
    let mut add: Vec<usize> =
        to.endpoints().filter(|(_, endpoint)| !told(endpoint)).map(|(at, _)| at).collect();
    add.reverse();
    let after: HashSet<SocketAddr> = to.endpoints().map(|(_, e)| e.address).collect();
    (add, before.into_keys().filter(|address| !after.contains(address)).collect())
}

/// One endpoint as Linkerd is told of it.
pub(crate) fn weighted(service: &Service, endpoint: &Endpoint) -> WeightedAddr {
    let locality = &endpoint.locality;
    let labels = [
        ("endpoint", endpoint.name.as_str()),
        ("region", &locality.region),
        ("zone", &locality.zone),
        ("sub_zone", &locality.sub_zone),
        ("place", endpoint.place.as_deref().unwrap_or_default()),
        ("gpu", endpoint.gpu.as_ref().map_or("", |gpu| &gpu.model)),
    ];
    let opaque = protocol_hint::Protocol::Opaque(protocol_hint::Opaque {});
    let hint = ProtocolHint { protocol: Some(opaque), opaque_transport: None };
    WeightedAddr {
        addr: Some(endpoint.address.into()),
        weight: endpoint.weight.saturating_mul(ONE_IN_LINKERD / ONE_HERE),
        metric_labels: labels
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .collect(),
        protocol_hint: (service.protocol == Protocol::Tcp).then_some(hint),
        ..Default::default()
    }
}

fn service_labels(service: &Service) -> HashMap<String, String> {
    let (namespace, name) = names::parts(&service.name).unwrap_or(("", &service.name));
    HashMap::from([
        ("namespace".to_owned(), namespace.to_owned()),
        ("service".to_owned(), name.to_owned()),
    ])
}

fn no_endpoints(exists: bool) -> Update {
    Update { update: Some(update::Update::NoEndpoints(NoEndpoints { exists })) }
}

/// So that a message stays far below the 4 MiB that a client takes.
const MOST_IN_UPDATE: usize = 1_000;
/// The weight of an endpoint like any other.
const ONE_IN_LINKERD: u32 = 10_000;
const ONE_HERE: u32 = 100;

#[cfg(test)]
mod tests;
