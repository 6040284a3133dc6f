use std::{collections::HashSet, net::Ipv6Addr, sync::atomic::Ordering::Relaxed};

use http::HeaderValue;
use towpath_policies::model::{Endpoint, EndpointSet, Protocol};

use super::*;
use crate::upstream::{
    admission::Ticket,
    now_ms,
    pick::{Ask, Tried, pick},
    reconcile,
};

const BOTH: [Balancer; 2] = [Balancer::Maglev, Balancer::RingHash];
const KEYS: u64 = 10_000;

fn endpoint(nth: u16) -> Endpoint {
    Endpoint::new(([10, 0, 0, 1], 1000 + nth).into())
}

fn endpoints(count: u16) -> Vec<Endpoint> {
    (0..count).map(endpoint).collect()
}

fn service(balancer: Balancer, bound: Option<u32>) -> Arc<Service> {
    let hashing = Hashing {
        key: Some(KeySource::Header("x-partition".to_owned())),
        load_bound_percent: bound,
        // So that what a table does by chance is not what is looked at.
        ring_size: (50_000, Hashing::MOST_ON_RING),
        ..Hashing::default()
    };
    Arc::new(Service { balancer, hashing, ..Service::new("s", Protocol::Http1) })
}

fn state(balancer: Balancer, bound: Option<u32>, endpoints: Vec<Endpoint>) -> Arc<ServiceState> {
    let set = EndpointSet::new("s".into(), endpoints);
    reconcile(None, service(balancer, bound), &set, 1).unwrap()
}

fn key(nth: u64) -> u64 {
    hash(format!("part-{nth:05}.parquet").as_bytes())
}

fn picked(state: &ServiceState, key: Option<u64>, tried: &Tried) -> Arc<EndpointState> {
    pick(state, tried, now_ms(), Ask { key, ..Ask::default() }).unwrap().clone()
}

fn home(state: &ServiceState, key: u64) -> SocketAddr {
    picked(state, Some(key), &Tried::default()).spec.address
}

/// The homes of all keys.
fn homes(state: &ServiceState) -> Vec<SocketAddr> {
    (0..KEYS).map(|nth| home(state, key(nth))).collect()
}

/// Per mille of the keys that have another home.
fn moved(before: &[SocketAddr], after: &[SocketAddr]) -> usize {
    before.iter().zip(after).filter(|(a, b)| a != b).count() * 1000 / before.len()
}

fn at(state: &ServiceState, address: SocketAddr) -> &Arc<EndpointState> {
    state.endpoints.iter().find(|e| e.spec.address == address).unwrap()
}

/// What Envoy's own tests of both tables say of these endpoints.
#[test]
fn tables_are_those_of_envoy() {
    let shares = |weights: &[u32]| -> Box<[Share]> {
        let share = |(port, weight)| Share { address: ([127, 0, 0, 1], port).into(), weight };
        (90..).zip(weights.iter().copied()).map(share).collect()
    };
    assert_eq!(*maglev::table(&shares(&[1; 6]), 7), [2, 4, 0, 1, 5, 0, 3]);
    let weighted = [1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 1];
    assert_eq!(*maglev::table(&shares(&[1, 2]), 17), weighted);
    let ring = Ring::new(&shares(&[1; 6]), 12, 1 << 20);
    assert_eq!(*ring.owners, [4, 2, 0, 5, 3, 1, 1, 3, 5, 2, 4, 0]);
    for (key, owner) in [
        (0, 4),
        (u64::MAX, 4),
        (3_551_244_743_356_806_947, 5),
        (3_551_244_743_356_806_948, 3),
        (16_117_243_373_044_804_880, 0),
    ] {
        assert_eq!(ring.owners[ring.next(key)], owner, "{key}");
    }
    assert_eq!(hash(b""), 0xEF46_DB37_51D8_E999);
}

#[test]
fn keys_are_spread_by_weight() {
    for balancer in BOTH {
        let mut list = endpoints(10);
        list[3].weight = 300;
        list[7].weight = 50;
        let homes = homes(&state(balancer, None, list.clone()));
        let whole: u32 = list.iter().map(|e| e.weight).sum();
        for endpoint in &list {
            let count = homes.iter().filter(|home| **home == endpoint.address).count();
            let share = count as f64 / KEYS as f64 * f64::from(whole) / f64::from(endpoint.weight);
            assert!((0.85..1.15).contains(&share), "{balancer:?}: {share} of {endpoint:?}");
        }
    }
}

#[test]
fn one_of_ten_that_leaves_takes_only_its_keys_along_and_gets_them_back() {
    // A ring of a fixed size has fewer points for each when there are more of them.
    for (balancer, most) in [(Balancer::Maglev, 130), (Balancer::RingHash, 200)] {
        let whole = homes(&state(balancer, None, endpoints(10)));
        for gone in [0, 4, 9] {
            let mut list = endpoints(10);
            let gone = list.remove(gone).address;
            let its = whole.iter().filter(|home| **home == gone).count() * 1000 / whole.len();
            let without = homes(&state(balancer, None, list));
            let moved = moved(&whole, &without);
            assert!((80..120).contains(&its), "{balancer:?}: {its} ‰");
            assert!(
                (its..=its * most / 100).contains(&moved),
                "{balancer:?}: {moved} ‰ of {its} ‰"
            );
        }
    }
}

#[test]
fn an_eleventh_takes_only_its_share_and_only_for_itself() {
    // A ring of a fixed size has fewer points for each when there are more of them.
    for (balancer, most) in [(Balancer::Maglev, 130), (Balancer::RingHash, 200)] {
        let before = homes(&state(balancer, None, endpoints(10)));
        let after = homes(&state(balancer, None, endpoints(11)));
        let its = after.iter().filter(|home| **home == endpoint(10).address).count();
        let its = its * 1000 / after.len();
        let moved = moved(&before, &after);
        assert!((75..110).contains(&its), "{balancer:?}: {its} ‰");
        assert!((its..=its * most / 100).contains(&moved), "{balancer:?}: {moved} ‰ of {its} ‰");
    }
}

#[test]
fn proxies_agree_in_whatever_order_they_learn_the_endpoints_and_after_any_history() {
    let mut rng = fastrand::Rng::with_seed(7);
    for balancer in BOTH {
        let one = state(balancer, None, endpoints(20));
        let mut list = endpoints(20);
        rng.shuffle(&mut list);
        let other = state(balancer, None, list.clone());
        assert_eq!(homes(&one), homes(&other), "{balancer:?}");
        let few = EndpointSet::new("s".into(), endpoints(3));
        let fewer = reconcile(Some(&other), service(balancer, None), &few, 1).unwrap();
        let all = EndpointSet::new("s".into(), list);
        let again = reconcile(Some(&fewer), service(balancer, None), &all, 1).unwrap();
        assert_eq!(homes(&one), homes(&again), "{balancer:?}");
    }
}

#[test]
fn a_table_is_built_anew_only_when_endpoints_or_weights_change() {
    let before = state(Balancer::Maglev, None, endpoints(4));
    let table = |state: &ServiceState| Arc::as_ptr(&state.homes.as_ref().unwrap().tables[0]);
    for (change, same) in [
        ((|list| list[1].name = "other".into()) as fn(&mut Vec<Endpoint>), true),
        (|list| list[1].weight = 1, false),
        (|list| list.truncate(3), false),
    ] {
        let mut endpoints = endpoints(4);
        change(&mut endpoints);
        let set = EndpointSet::new("s".into(), endpoints);
        let after = reconcile(Some(&before), service(Balancer::Maglev, None), &set, 1).unwrap();
        assert_eq!(table(&after) == table(&before), same, "{set:?}");
    }
    let set = EndpointSet::new("s".into(), endpoints(4));
    let ring = reconcile(Some(&before), service(Balancer::RingHash, None), &set, 1).unwrap();
    assert_ne!(table(&ring), table(&before));
}

#[test]
fn a_hot_key_spreads_and_nobody_gets_more_than_the_bound() {
    for (balancer, percent, spread) in [(Balancer::Maglev, 125, 8), (Balancer::RingHash, 150, 6)] {
        let mut list = endpoints(10);
        list[2].weight = 300;
        let whole: u64 = list.iter().map(|e| u64::from(e.weight)).sum();
        let state = state(balancer, Some(percent), list);
        let hot = key(1);
        let first = picked(&state, Some(hot), &Tried::default());
        let mut tickets = Vec::new();
        for total in 1..=600_u64 {
            let endpoint = picked(&state, Some(hot), &Tried::default());
            let weight = u64::from(endpoint.spec.weight);
            tickets.push(Ticket::new(state.clone(), endpoint.clone(), 0));
            let requests = u64::from(endpoint.live.requests.load(Relaxed));
            let most = (u64::from(percent) * total * weight).div_ceil(100 * whole);
            assert!(requests <= most, "{balancer:?}: {requests} of {total}, at most {most}");
        }
        let used = state.endpoints.iter().filter(|e| e.live.requests.load(Relaxed) > 0).count();
        assert!(used >= spread, "{balancer:?}: {used}");
        let at_home = u64::from(first.live.requests.load(Relaxed));
        let full = u64::from(percent) * 600 * u64::from(first.spec.weight) / (100 * whole);
        assert!(at_home >= full, "its home has its fill: {at_home} of {full}");
        drop(tickets);
        assert_eq!(home(&state, hot), first.spec.address, "and it comes back to it");
    }
}

#[test]
fn without_a_bound_a_hot_key_stays_at_home() {
    let state = state(Balancer::Maglev, None, endpoints(5));
    let home = at(&state, home(&state, key(1))).clone();
    home.live.requests.store(1000, Relaxed);
    assert_eq!(self::home(&state, key(1)), home.spec.address);
}

#[test]
fn what_hangs_at_an_endpoint_that_is_out_does_not_raise_the_bound_of_others() {
    let state = state(Balancer::Maglev, Some(100), endpoints(5));
    let home = at(&state, home(&state, key(1))).clone();
    let out = state.endpoints.iter().find(|e| !Arc::ptr_eq(e, &home)).unwrap();
    out.live.probe_healthy.store(false, Relaxed);
    out.live.requests.store(1000, Relaxed);
    home.live.requests.store(1, Relaxed);
    assert_ne!(self::home(&state, key(1)), home.spec.address, "it has more than the mean");
}

#[test]
fn an_endpoint_that_came_back_bears_a_part_at_first() {
    let state = state(Balancer::Maglev, Some(200), endpoints(4));
    let home = at(&state, home(&state, key(1))).clone();
    state.endpoints.iter().for_each(|e| e.live.requests.store(10, Relaxed));
    assert_eq!(self::home(&state, key(1)), home.spec.address);
    state.live.recovering.store(true, Relaxed);
    home.live.warm_from_ms.store(now_ms(), Relaxed);
    assert_ne!(self::home(&state, key(1)), home.spec.address);
}

#[test]
fn a_key_whose_home_is_out_or_was_tried_goes_to_one_other_and_others_stay() {
    for balancer in BOTH {
        let state = state(balancer, Some(125), endpoints(10));
        let before = homes(&state);
        let out = at(&state, before[0]).clone();
        out.live.ejected_until_ms.store(u64::MAX, Relaxed);
        let after = homes(&state);
        assert_eq!(after, homes(&state));
        let mut refuges = HashSet::new();
        for (before, after) in before.iter().zip(&after) {
            if *before == out.spec.address {
                refuges.insert(*after);
            } else {
                assert_eq!(before, after);
            }
        }
        assert_eq!(refuges.len(), 9, "its keys are spread over all others: {balancer:?}");
        out.live.ejected_until_ms.store(0, Relaxed);
        let mut tried = Tried::default();
        tried.add(&out);
        assert_eq!(picked(&state, Some(key(0)), &tried).spec.address, after[0]);
    }
}

#[test]
fn every_endpoint_is_found_when_the_others_are_out() {
    for balancer in BOTH {
        let state = state(balancer, Some(125), endpoints(200));
        // Less would be a panic.
        let usable: Vec<_> = state.endpoints.iter().take(20).collect();
        state.endpoints[20..].iter().for_each(|e| e.live.probe_healthy.store(false, Relaxed));
        let mut tickets = Vec::new();
        for nth in 0..200 {
            let endpoint = picked(&state, Some(key(nth)), &Tried::default());
            assert!(usable.iter().any(|e| Arc::ptr_eq(e, &endpoint)));
            tickets.push(Ticket::new(state.clone(), endpoint, 0));
        }
        let most = usable.iter().map(|e| e.live.requests.load(Relaxed)).max();
        assert!(most <= Some(13), "125 % of 10: {most:?}");
    }
}

#[test]
fn an_endpoint_over_the_bound_is_better_than_none() {
    let mut spec = (*service(Balancer::Maglev, Some(100))).clone();
    spec.breaker.endpoint.max_bytes_in_flight = Some(1000);
    let set = EndpointSet::new("s".into(), endpoints(3));
    let state = reconcile(None, Arc::new(spec), &set, 1).unwrap();
    let first = at(&state, home(&state, key(1))).clone();
    first.live.requests.store(4, Relaxed);
    assert_ne!(home(&state, key(1)), first.spec.address, "others have room");
    for other in state.endpoints.iter().filter(|e| !Arc::ptr_eq(e, &first)) {
        other.live.bytes_in_flight.store(1000, Relaxed);
    }
    let ask = Ask { bytes: 10, key: Some(key(1)), ..Ask::default() };
    let picked = pick(&state, &Tried::default(), now_ms(), ask).unwrap();
    assert_eq!(picked.spec.address, first.spec.address);
}

#[test]
fn a_request_without_a_key_goes_where_the_fewest_bytes_are_in_flight() {
    for balancer in BOTH {
        let state = state(balancer, Some(125), endpoints(4));
        state.endpoints.iter().for_each(|e| e.live.bytes_in_flight.store(10, Relaxed));
        state.endpoints[2].live.bytes_in_flight.store(5, Relaxed);
        for _ in 0..50 {
            let endpoint = picked(&state, None, &Tried::default());
            assert!(Arc::ptr_eq(&endpoint, &state.endpoints[2]));
        }
    }
}

#[test]
fn keys_are_found_where_the_policy_says() {
    let client = "192.0.2.7".parse().unwrap();
    let header = KeySource::Header("x-partition".into());
    let segment = KeySource::PathSegment;
    let query = || KeySource::Query("p".into());
    for (source, url, header, expected) in [
        (header.clone(), "/", Some("7"), Some("7")),
        (header.clone(), "/", Some(""), None),
        (header, "/", None, None),
        (segment(1), "/orders/2024?x/y", None, Some("orders")),
        (segment(2), "/orders/2024?x/y", None, Some("2024")),
        (segment(3), "/orders/2024?x/y", None, None),
        (segment(2), "/orders//x", None, None),
        (segment(1), "/", None, None),
        (query(), "/?a=1&p=%207&p=8", None, Some("%207")),
        (query(), "/?pp=1&p", None, None),
        (query(), "/?p=", None, None),
        (query(), "/", None, None),
        (KeySource::ClientAddress, "/", None, Some("192.0.2.7")),
    ] {
        let mut spec = (*service(Balancer::Maglev, None)).clone();
        spec.hashing.key = Some(source.clone());
        let set = EndpointSet::new("s".into(), endpoints(2));
        let state = reconcile(None, Arc::new(spec), &set, 1).unwrap();
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert("x-partition", HeaderValue::from_static(value));
        }
        let found = state.key(&url.parse().unwrap(), &headers, client);
        assert_eq!(found, expected.map(|key| hash(key.as_bytes())), "{source:?} {url}");
        let connection = matches!(source, KeySource::ClientAddress).then_some(found).flatten();
        assert_eq!(state.connection_key(client), connection);
    }
    let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
    assert_eq!(client_key(mapped), client_key(client));
    let longest = IpAddr::V6(Ipv6Addr::from_bits(u128::MAX));
    assert_eq!(client_key(longest), hash(longest.to_string().as_bytes()));
}

#[test]
fn odd_sets_and_sizes_have_tables_too() {
    for balancer in BOTH {
        let none = state(balancer, Some(125), vec![]);
        let ask = Ask { key: Some(1), ..Ask::default() };
        assert!(pick(&none, &Tried::default(), now_ms(), ask).is_err());
        let mut list = endpoints(3);
        list[0].weight = 1;
        list[1].weight = 1_000_000;
        let mut spec = (*service(balancer, Some(125))).clone();
        // None of them is valid, none of them hangs.
        spec.hashing.table_size = 65_536;
        spec.hashing.ring_size = (0, 0);
        let set = EndpointSet::new("s".into(), list);
        let state = reconcile(None, Arc::new(spec), &set, 1).unwrap();
        assert_eq!(home(&state, key(1)), home(&state, key(1)));
    }
    let many: Box<[_]> =
        endpoints(40).iter().map(|e| Share { address: e.address, weight: e.weight }).collect();
    let small: HashSet<_> = maglev::table(&many, 7).iter().copied().collect();
    assert_eq!(small.len(), 7, "more endpoints than places");
}
