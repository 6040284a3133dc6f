//! Where each key is at home: tables from keys to endpoints that change little when endpoints do.
//!
//! Everything is hashed by xxh64 as Envoy does it (a key with seed 0, an endpoint by its address as text),
//! so that all proxies agree, before and after a restart, and a real Envoy agrees with them. That also means
//! that who may send requests can choose keys that have one home; the bound on an endpoint's load is the
//! remedy. Tables are built when endpoints change and only read after.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, HeaderName, uri::PathAndQuery};
use towpath_policies::model::{Balancer, Hashing, KeySource, Service};
use twox_hash::XxHash64;

mod maglev;
mod ring;
#[cfg(test)]
mod tests;

use super::{EndpointState, Level, ServiceState};
use ring::Ring;

/// The homes of keys in a view of a service.
#[derive(Debug)]
pub(crate) struct Homes {
    source: Source,
    bound_percent: Option<u32>,
    /// By level.
    tables: Box<[Arc<Table>]>,
}

/// How a request tells its key.
#[derive(Debug)]
enum Source {
    Header(HeaderName),
    /// From 0.
    PathSegment(usize),
    Query(String),
    Client,
}

/// The homes of keys in one level.
#[derive(Debug)]
pub(super) struct Table {
    kind: Kind,
    /// Of the members, in their order.
    shares: Box<[Share]>,
    order: Order,
}

/// What a table is made by, besides the shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Maglev { size: u32 },
    Ring { least: u32, most: u32 },
}

/// What an endpoint counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Share {
    pub(super) address: SocketAddr,
    pub(super) weight: u32,
}

#[derive(Debug)]
enum Order {
    /// A member for each remainder.
    Maglev(Box<[u32]>),
    Ring(Ring),
}

impl Homes {
    /// Tables for the levels, whose members are brought into the order of their addresses; what `old` has
    /// and is still right is used again. `None` when no request has a key.
    pub(super) fn new(
        spec: &Service,
        endpoints: &[Arc<EndpointState>],
        levels: &mut [Level],
        old: Option<&Self>,
    ) -> Option<Box<Self>> {
        let hashing = &spec.hashing;
        let source = Source::new(hashing.key.as_ref().filter(|_| spec.balancer.hashes())?)?;
        let kind = Kind::new(spec.balancer, hashing, levels.len());
        let table = |level: &mut Level| {
            level.members.sort_by_key(|member| endpoints[*member as usize].spec.address);
            let members = || level.members.iter().map(|member| &endpoints[*member as usize]);
            level.lives = members().map(|endpoint| endpoint.live.clone()).collect();
            let share =
                |e: &Arc<EndpointState>| Share { address: e.spec.address, weight: e.spec.weight };
            let shares: Box<[_]> = members().map(share).collect();
            let known = old.into_iter().flat_map(|old| &old.tables);
            let mut same = known.filter(|table| table.kind == kind && table.shares == shares);
            same.next().cloned().unwrap_or_else(|| Arc::new(Table::new(kind, shares)))
        };
        let tables = levels.iter_mut().map(table).collect();
        let bound_percent = hashing.load_bound_percent.map(|percent| percent.max(100));
        Some(Box::new(Self { source, bound_percent, tables }))
    }

    pub(super) fn table(&self, level: usize) -> &Table {
        &self.tables[level]
    }

    /// The most that an endpoint may have of the mean load.
    pub(super) fn bound_percent(&self) -> Option<u32> {
        self.bound_percent
    }
}

impl ServiceState {
    /// The hash of a request's key, where keys count and it has one.
    pub fn key(&self, target: &PathAndQuery, headers: &HeaderMap, client: IpAddr) -> Option<u64> {
        let value = match &self.homes.as_ref()?.source {
            Source::Header(name) => headers.get(name)?.as_bytes(),
            Source::PathSegment(nth) => target.path().split('/').skip(1).nth(*nth)?.as_bytes(),
            Source::Query(name) => {
                let pairs = target.query()?.split('&').filter_map(|pair| pair.split_once('='));
                pairs.filter(|(n, _)| n == name).map(|(_, value)| value).next()?.as_bytes()
            }
            Source::Client => return Some(client_key(client)),
        };
        (!value.is_empty()).then(|| hash(value))
    }

    /// As [`Self::key`], of a connection whose bytes are opaque.
    pub(crate) fn connection_key(&self, client: IpAddr) -> Option<u64> {
        let by_client = matches!(self.homes.as_ref()?.source, Source::Client);
        by_client.then(|| client_key(client))
    }
}

impl Source {
    fn new(key: &KeySource) -> Option<Self> {
        Some(match key {
            KeySource::Header(name) => Self::Header(HeaderName::from_bytes(name.as_bytes()).ok()?),
            KeySource::PathSegment(nth) => {
                Self::PathSegment(usize::try_from(nth.checked_sub(1)?).ok()?)
            }
            KeySource::Query(name) => Self::Query(name.clone()),
            KeySource::ClientAddress => Self::Client,
        })
    }
}

impl Kind {
    /// Of so many levels each.
    fn new(balancer: Balancer, hashing: &Hashing, levels: usize) -> Self {
        let most_entries = MOST_ENTRIES / u32::try_from(levels.max(1)).unwrap_or(u32::MAX);
        let default = Hashing::default();
        let sizes = if hashing.check().is_ok() { hashing } else { &default };
        if balancer == Balancer::RingHash {
            let (least, most) = sizes.ring_size;
            let bound = MOST_POINTS.min(most_entries).max(1);
            return Self::Ring { least: least.min(bound), most: most.min(bound) };
        }
        Self::Maglev { size: sizes.table_size_within(most_entries) }
    }
}

impl Table {
    fn new(kind: Kind, shares: Box<[Share]>) -> Self {
        let order = match kind {
            Kind::Maglev { size } => Order::Maglev(maglev::table(&shares, size)),
            Kind::Ring { least, most } => Order::Ring(Ring::new(&shares, least, most)),
        };
        Self { kind, shares, order }
    }

    pub(super) fn weight(&self, member: usize) -> u32 {
        self.shares[member].weight
    }

    /// The members from a key's home on, most of them more than once.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        let (owners, start) = match &self.order {
            Order::Maglev(owners) => (owners, key.checked_rem(owners.len() as u64).unwrap_or(0)),
            Order::Ring(ring) => (&ring.owners, ring.next(key) as u64),
        };
        let (before, after) = owners.split_at(usize::try_from(start).unwrap_or(0));
        after.iter().chain(before).map(|member| *member as usize)
    }
}

fn hash(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

/// Envoy hashes an address as text.
fn client_key(client: IpAddr) -> u64 {
    let mut text = [0; LONGEST_ADDRESS];
    let mut rest = text.as_mut_slice();
    // What does not fit is cut, for all alike.
    let _ = write!(rest, "{}", client.to_canonical());
    let unused = rest.len();
    hash(&text[..LONGEST_ADDRESS - unused])
}

const LONGEST_ADDRESS: usize = 46;
/// Entries of the tables of all levels together, however many localities somebody tells: 64 MiB of Maglev's.
const MOST_ENTRIES: u32 = 1 << 24;
/// Points that a ring has at most, whatever it is told: 12 MiB.
const MOST_POINTS: u32 = 1 << 20;
