//! Where Services are reached by clients that know nothing of the mesh.

use std::collections::{BTreeMap, HashMap};

use ipnetwork::IpNetwork;

use crate::{
    diagnostic::Rule,
    document::{Documents, Kind, own::ServiceProtocol, value::ServiceAddress},
    problem::{Problems, Span},
};

use super::index::Index;

/// Whose a destination is, for all destinations that are known.
#[derive(Debug, Default)]
pub(crate) struct Addresses(BTreeMap<ServiceAddress, Reached>);

/// A Service, as far as it matters to who connects to it.
#[derive(Clone, Debug)]
pub(crate) struct Reached {
    pub(crate) service: String,
    pub(crate) namespace: String,
    /// It may be spoken to in HTTP.
    pub(crate) http: bool,
    /// Proxies speak TLS to it, and so nobody else's TLS.
    pub(crate) tls: bool,
}

impl Addresses {
    /// Of documents as they were written, and with lists of endpoints in place of subsets.
    pub(crate) fn new(
        written: &Documents,
        documents: &Documents,
        index: &Index<'_>,
        problems: &mut Problems,
    ) -> Self {
        let subset = written.services.iter().map(|object| object.spec.subset.is_some());
        let mut taken: HashMap<ServiceAddress, Span> = HashMap::new();
        let mut known = BTreeMap::new();
        let mut endpoints: BTreeMap<ServiceAddress, Option<Reached>> = BTreeMap::new();
        for (object, subset) in documents.services.iter().zip(subset) {
            if !index.is_first(Kind::Service, object) {
                continue;
            }
            let spec = &object.spec;
            let reached = Reached {
                service: object.id(),
                namespace: object.namespace.clone(),
                tls: spec.tls.is_some(),
                http: spec.protocol.as_ref().is_none_or(|p| p.value != ServiceProtocol::Tcp),
            };
            for address in &spec.addresses {
                if let Some(first) = taken.insert(address.value, address.span) {
                    problems
                        .error(Rule::Conflict, address.span, "the address is taken")
                        .related(first, "taken here")
                        .help(
                            "a destination leads to one Service; give another address, or a port",
                        );
                    continue;
                }
                known.insert(address.value, reached.clone());
            }
            // Endpoints of a subset are those of the whole.
            let own = spec.endpoints.iter().filter(|_| !subset);
            for endpoint in own.flat_map(|list| &list.value) {
                let address = endpoint.address.value;
                let network = IpNetwork::from(address.ip());
                let address = ServiceAddress { port: Some(address.port()), network };
                // That of several says nothing of which is meant.
                let of_one = |other: &mut Option<Reached>| *other = None;
                endpoints.entry(address).and_modify(of_one).or_insert(Some(reached.clone()));
            }
        }
        for (address, reached) in endpoints {
            if let Some(reached) = reached {
                known.entry(address).or_insert(reached);
            }
        }
        Self(known)
    }

    /// The destinations of the Services that `within` lets in, by Service and port, and the ports there are.
    ///
    /// A port is looked at before the network, and then no chain without one counts any more: what has
    /// no port is there for each port, too.
    ///
    /// # Errors
    /// How many networks at ports there would be, where that is more than `most`; none is made then.
    pub(crate) fn destinations(
        &self,
        most: usize,
        within: impl Fn(&Reached) -> bool,
    ) -> Result<Destinations<'_>, usize> {
        let known = || self.0.iter().filter(|(_, reached)| within(reached));
        let mut ports: Vec<u16> = known().filter_map(|(address, _)| address.port).collect();
        ports.sort_unstable();
        ports.dedup();
        let everywhere = known().filter(|(address, _)| address.port.is_none()).count();
        let many = known().count() + everywhere * ports.len();
        if many > most {
            return Err(many);
        }
        let mut of: BTreeMap<(Option<u16>, &str), Destination<'_>> = BTreeMap::new();
        for (address, reached) in known() {
            let mut add = |port| {
                let new = || Destination { port, reached, networks: Vec::new() };
                let key = (port, reached.service.as_str());
                of.entry(key).or_insert_with(new).networks.push(address.network);
            };
            add(address.port);
            if address.port.is_none() {
                let own = |port: &&u16| {
                    let there = ServiceAddress { port: Some(**port), network: address.network };
                    self.0.get(&there).is_some_and(&within)
                };
                ports.iter().filter(|port| !own(port)).for_each(|port| add(Some(*port)));
            }
        }
        Ok(Destinations { services: of.into_values().collect(), ports })
    }
}

/// What [`Addresses::destinations`] finds.
pub(crate) struct Destinations<'a> {
    pub(crate) services: Vec<Destination<'a>>,
    pub(crate) ports: Vec<u16>,
}

/// The networks that lead to one Service at a port.
pub(crate) struct Destination<'a> {
    pub(crate) port: Option<u16>,
    pub(crate) reached: &'a Reached,
    pub(crate) networks: Vec<IpNetwork>,
}
