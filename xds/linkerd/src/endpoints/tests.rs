use std::{collections::BTreeMap, net::Ipv4Addr};

use towpath_policies::model::{Locality, Snapshot, UpstreamTls};

use super::*;

fn world(sets: Vec<(&str, Vec<Endpoint>)>) -> World {
    let mut snapshot = Snapshot { version: "1".to_owned(), ..Snapshot::default() };
    for (name, endpoints) in sets {
        let service = Service::new(name, Protocol::Http1);
        let set = EndpointSet::new(name.to_owned(), endpoints);
        snapshot.services.insert(name.to_owned(), Arc::new(service));
        snapshot.endpoints.insert(name.to_owned(), Arc::new(set));
    }
    World::default().then(Arc::new(snapshot))
}

fn endpoint(host: u8) -> Endpoint {
    Endpoint::new(([10, 0, 0, host], 80).into())
}

fn many(hosts: impl IntoIterator<Item = u32>) -> Vec<Endpoint> {
    let at = |host| Endpoint::new((Ipv4Addr::from_bits(0x0a00_0000 + host), 80).into());
    hosts.into_iter().map(at).collect()
}

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

/// What a client holds that was told all this: weights by address, or why there are none.
#[derive(Debug, Default, PartialEq)]
struct Client {
    held: BTreeMap<SocketAddr, u32>,
    none: Option<bool>,
    messages: usize,
    largest: usize,
}

impl Client {
    /// As Linkerd's does, but that it counts what there is no need to say.
    fn hear(&mut self, update: Update) {
        self.messages += 1;
        self.none = None;
        match update.update.unwrap() {
            update::Update::Add(set) => {
                self.largest = self.largest.max(set.addrs.len());
                for addr in set.addrs {
                    self.held.insert(addr.addr.unwrap().try_into().unwrap(), addr.weight);
                }
            }
            update::Update::Remove(set) => {
                self.largest = self.largest.max(set.addrs.len());
                for addr in set.addrs {
                    let known = self.held.remove(&addr.try_into().unwrap());
                    assert!(known.is_some(), "{addr:?} is removed and was never there");
                    assert!(!self.held.is_empty(), "for a moment there was nothing left");
                }
            }
            update::Update::NoEndpoints(none) => {
                self.held.clear();
                self.none = Some(none.exists);
            }
        }
    }

    fn all(&mut self, listing: &mut Listing, world: &World, target: &Target) -> usize {
        let before = self.messages;
        while let Some(update) = listing.next(world, target) {
            self.hear(update);
        }
        self.messages - before
    }

    fn hosts(&self) -> Vec<u8> {
        let last = |address: &SocketAddr| match address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        self.held.keys().map(last).collect()
    }
}

#[test]
fn a_client_holds_what_the_set_holds_through_every_change() {
    let (mut listing, mut client) = (Listing::default(), Client::default());
    let orders = target("orders:80");
    let mut hear = |sets| {
        let told = client.all(&mut listing, &world(sets), &orders);
        (told, client.hosts(), client.none)
    };
    assert_eq!(hear(vec![]), (1, vec![], Some(false)));
    assert_eq!(hear(vec![("other", vec![endpoint(9)])]), (0, vec![], Some(false)));
    assert_eq!(hear(vec![("orders", vec![endpoint(1), endpoint(2)])]), (1, vec![1, 2], None));
    assert_eq!(hear(vec![("orders", vec![endpoint(2), endpoint(3)])]), (2, vec![2, 3], None));
    assert_eq!(hear(vec![("orders", vec![endpoint(3), endpoint(2)])]), (0, vec![2, 3], None));
    assert_eq!(hear(vec![("orders", vec![])]), (1, vec![], Some(true)));
    assert_eq!(hear(vec![("orders", vec![])]), (0, vec![], Some(true)));
    assert_eq!(hear(vec![("orders", vec![endpoint(3)])]), (1, vec![3], None));
    assert_eq!(hear(vec![]), (1, vec![], Some(false)));
}

#[test]
fn only_what_changed_is_told() {
    let (mut listing, mut client) = (Listing::default(), Client::default());
    let orders = target("orders:80");
    client.all(&mut listing, &world(vec![("orders", vec![endpoint(1), endpoint(2)])]), &orders);
    let heavy = Endpoint { weight: 300, ..endpoint(2) };
    let next = world(vec![("orders", vec![endpoint(1), heavy])]);
    let update = listing.next(&next, &orders).unwrap().update.unwrap();
    let update::Update::Add(set) = update else { panic!("{update:?}") };
    assert_eq!(set.addrs.len(), 1);
    assert_eq!((set.addrs[0].weight, listing.next(&next, &orders)), (30_000, None));
}

#[test]
fn large_sets_come_in_parts_and_a_slow_client_ends_with_the_newest() {
    let (mut listing, mut client) = (Listing::default(), Client::default());
    let orders = target("orders:80");
    let first = world(vec![("orders", many(0..2_500))]);
    client.hear(listing.next(&first, &orders).unwrap());
    // It was slow: of what came in between it hears nothing.
    let last = world(vec![("orders", many(2_000..4_000))]);
    client.all(&mut listing, &last, &orders);
    let expected: Vec<_> = many(2_000..4_000).into_iter().map(|e| e.address).collect();
    assert_eq!(client.held.keys().copied().collect::<Vec<_>>(), expected);
    assert_eq!((client.messages, client.largest), (3 + 2 + 2, MOST_IN_UPDATE));
}

#[test]
fn nothing_is_told_before_it_is_known() {
    let mut listing = Listing::default();
    let orders = target("orders:80");
    assert_eq!(listing.next(&World::default(), &orders), None);
    // The name of its endpoints has not resolved.
    let mut snapshot = Snapshot { version: "1".to_owned(), ..Snapshot::default() };
    let service = Service::new("orders", Protocol::Http1);
    snapshot.services.insert("orders".to_owned(), Arc::new(service));
    assert_eq!(listing.next(&World::default().then(Arc::new(snapshot)), &orders), None);
}

#[test]
fn what_is_not_to_be_used_is_left_out() {
    let ill = |host, health| Endpoint { health, ..endpoint(host) };
    let spare = |host, priority| Endpoint { priority, ..endpoint(host) };
    let well = endpoint(5);
    for (endpoints, used) in [
        (
            vec![ill(1, Health::Healthy), ill(2, Health::Unhealthy), ill(3, Health::Draining)],
            vec![1],
        ),
        (vec![well.clone(), spare(6, 1)], vec![5]),
        (vec![ill(5, Health::Unhealthy), spare(6, 1), spare(7, 2)], vec![6]),
        (vec![Endpoint::new(([10, 0, 0, 8], 0).into()), well], vec![5]),
    ] {
        let mut client = Client::default();
        let world = world(vec![("orders", endpoints)]);
        client.all(&mut Listing::default(), &world, &target("orders"));
        assert_eq!(client.hosts(), used);
    }
}

#[test]
fn nothing_is_sent_in_cleartext_to_what_wants_tls() {
    let mut snapshot = Snapshot { version: "1".to_owned(), ..Snapshot::default() };
    let tls = UpstreamTls { server_name: "orders".to_owned(), ca_file: None };
    let service = Service { tls: Some(tls), ..Service::new("orders", Protocol::Http1) };
    snapshot.services.insert("orders".to_owned(), Arc::new(service));
    let set = EndpointSet::new("orders".to_owned(), vec![endpoint(1)]);
    snapshot.endpoints.insert("orders".to_owned(), Arc::new(set));
    let world = World::default().then(Arc::new(snapshot));
    for asked in ["orders", "10.0.0.1:80"] {
        let mut client = Client::default();
        client.all(&mut Listing::default(), &world, &target(asked));
        assert_eq!(client.none, Some(true), "{asked}");
    }
}

#[test]
fn an_endpoint_that_is_asked_for_is_kept_however_it_is() {
    let ill = Endpoint { health: Health::Draining, ..endpoint(2) };
    let both = vec![("orders", vec![endpoint(1), ill]), ("copy", vec![endpoint(1)])];
    let world = world(both);
    let mut client = Client::default();
    client.all(&mut Listing::default(), &world, &target("10.0.0.2:80"));
    assert_eq!(client.hosts(), [2]);
    // Of two Services it is nobody's.
    let mut client = Client::default();
    client.all(&mut Listing::default(), &world, &target("10.0.0.1:80"));
    assert_eq!(client.none, Some(false));
}

#[test]
fn endpoints_are_labelled() {
    let locality =
        Locality { region: "eu".to_owned(), zone: "eu-1".to_owned(), ..Locality::default() };
    let named = Endpoint { name: "a".to_owned(), locality, ..endpoint(1) };
    let told = weighted(&Service::new("orders", Protocol::Tcp), &named);
    let labels: BTreeMap<_, _> = told.metric_labels.into_iter().collect();
    let labels: Vec<_> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(labels, [("endpoint", "a"), ("region", "eu"), ("zone", "eu-1")]);
    assert_eq!(told.weight, 10_000);
    let opaque = told.protocol_hint.unwrap().protocol.unwrap();
    assert_eq!(opaque, protocol_hint::Protocol::Opaque(protocol_hint::Opaque {}));
    let labels = service_labels(&Service::new("etl/orders", Protocol::Http1));
    assert_eq!((labels["namespace"].as_str(), labels["service"].as_str()), ("etl", "orders"));
}
