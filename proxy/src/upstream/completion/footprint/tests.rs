use std::sync::Arc;

use towpath_policies::model::{
    Balancer, Class, Coordinates, Endpoint, EndpointSet, Location, OriginSource, Protocol, Region,
    Registered, Service, Terms,
};

use super::{super::zones::Origin, Load};
use crate::{
    metrics::Sum,
    upstream::{
        ServiceState, Site,
        admission::{Tally, Ticket},
        now_ms,
        pick::{Ask, Tried, pick},
        reconcile, reconcile_at,
    },
};

const GB: u64 = 1_000_000_000;
/// 10 s for a gram, 1 s for a cent.
const BOTH: Terms = Terms {
    network: 1.0,
    transfer: 1.0,
    queue: 1.0,
    health: 1.0,
    failures: 1.0,
    carbon: 10.0,
    price: 1.0,
};

fn region(carbon_intensity: Option<f64>, egress: &[(&str, f64)]) -> Region {
    let egress = egress.iter().map(|(to, cents)| ((*to).to_owned(), *cents)).collect();
    Region { carbon_intensity, egress, ..Region::default() }
}

fn service(terms: Terms) -> Service {
    let mut service = Service::new("green", Protocol::Http1);
    service.balancer = Balancer::CompletionTime;
    service.prediction.origin = vec![OriginSource::Header("x-origin".to_owned())];
    service.prediction.terms = terms;
    service
}

/// So many endpoints in each of these regions, of which this is known.
fn set(regions: &[(&str, usize, Region)]) -> EndpointSet {
    let names = regions.iter().flat_map(|(name, count, _)| std::iter::repeat_n(*name, *count));
    let endpoint = |(n, region): (u32, &str)| {
        let [_, a, b, c] = (n + 1).to_be_bytes();
        let mut endpoint = Endpoint::new(([10, a, b, c], 80).into());
        region.clone_into(&mut endpoint.locality.region);
        endpoint
    };
    let endpoints = (0..).zip(names).map(endpoint).collect();
    let known = regions.iter().map(|(name, _, region)| ((*name).to_owned(), region.clone()));
    EndpointSet { regions: known.collect(), ..EndpointSet::new("green".into(), endpoints) }
}

fn state(terms: Terms, regions: &[(&str, usize, Region)]) -> Arc<ServiceState> {
    reconcile(None, Arc::new(service(terms)), &set(regions), 1).unwrap()
}

fn origin(state: &ServiceState, said: &str) -> Origin {
    state.completion.as_ref().unwrap().map.named(said.as_bytes()).unwrap()
}

/// The share of the endpoints of a region in picks for so many bytes.
fn share(state: &ServiceState, region: &str, class: Class, origin: Origin, bytes: u64) -> f64 {
    let ask = Ask { bytes, origin, class, ..Ask::default() };
    let there = (0..1000).filter(|_| {
        let picked = pick(state, &Tried::default(), now_ms(), ask).unwrap();
        picked.spec.locality.region == region
    });
    f64::from(u32::try_from(there.count()).unwrap()) / 1000.0
}

fn dirty_and_clean(terms: Terms) -> Arc<ServiceState> {
    let state = state(
        terms,
        &[("coal", 1, region(Some(900.0), &[])), ("hydro", 1, region(Some(20.0), &[]))],
    );
    // The clean one has a second's work to do first.
    let ahead = 100_000_000;
    state.endpoints[1].live.bytes_in_flight.store(ahead, std::sync::atomic::Ordering::Relaxed);
    state
}

#[test]
fn only_what_tolerates_delay_goes_where_electricity_is_clean() {
    let state = dirty_and_clean(BOTH);
    // 3,600 J are a thousandth of a kWh: 0.9 g against 0.02.
    for (class, clean) in [(Class::Interactive, 0.0), (Class::Bulk, 1.0), (Class::Background, 1.0)]
    {
        assert_eq!(share(&state, "hydro", class, Origin::HERE, GB), clean, "{class:?}");
    }
    // A small job is not worth the wait, and without the term none is.
    assert_eq!(share(&state, "hydro", Class::Background, Origin::HERE, GB / 100), 0.0);
    let off = dirty_and_clean(Terms::default());
    assert_eq!(share(&off, "hydro", Class::Background, Origin::HERE, GB), 0.0);
    assert!(off.completion.as_ref().unwrap().footprints(Class::Background).is_none());
}

#[test]
fn bytes_cost_what_the_region_asks_that_they_leave() {
    let regions = [
        ("dear", 1, region(None, &[("*", 9.0)])),
        ("cheap", 1, region(None, &[("*", 1.0), ("dear", 2.0)])),
        ("here", 1, region(None, &[("dear", 0.5), ("cheap", 30.0)])),
    ];
    let state = state(BOTH, &regions);
    let here = origin(&state, "here");
    let per_byte = |at: usize| {
        let per_byte = state.per_byte(&state.endpoints[at].live, here).unwrap();
        per_byte.cents.map(|(to, from)| [to, from].map(|cents| (cents * 1e10).round() / 10.0))
    };
    assert_eq!(per_byte(0), Some([0.5, 9.0]));
    assert_eq!(per_byte(1), Some([30.0, 1.0]));
    assert_eq!(per_byte(2), Some([0.0, 0.0]), "what stays costs nothing");
    assert!(
        state.per_byte(&state.endpoints[0].live, Origin::HERE).is_none(),
        "nobody knows from where"
    );
    // Uploads go where the way there is cheap, before them those that stay.
    state.endpoints[2].live.bytes_in_flight.store(GB, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(share(&state, "dear", Class::Bulk, here, GB), 1.0);
    let even = share(&state, "dear", Class::Interactive, here, GB);
    // Of three in turn, the first of the two that are even.
    assert!((0.6..0.75).contains(&even), "{even}");
}

#[test]
fn what_is_not_known_of_a_region_is_taken_for_the_worst() {
    let regions = [
        ("coal", 1, region(Some(900.0), &[("*", 9.0)])),
        ("gas", 1, region(Some(400.0), &[("*", 5.0)])),
        ("dark", 1, Region::default()),
        ("far", 1, region(Some(900.0), &[("*", 9.0)])),
    ];
    let state = state(BOTH, &regions);
    for from in [Origin::HERE, origin(&state, "far")] {
        let far = share(&state, "far", Class::Bulk, from, GB);
        let gas = share(&state, "gas", Class::Bulk, from, GB);
        assert_eq!(share(&state, "dark", Class::Bulk, from, GB), 0.0);
        assert!(far + gas == 1.0 && (from != Origin::HERE || gas == 1.0), "{far} {gas}");
    }
    assert!(state.per_byte(&state.endpoints[2].live, Origin::HERE).is_none(), "nor is it counted");
}

#[test]
fn what_stays_in_a_region_that_nothing_describes_costs_nothing() {
    let dear = || region(None, &[("*", 9.0)]);
    let state =
        state(BOTH, &[("dear", 1, dear()), ("also", 1, dear()), ("dark", 1, region(None, &[]))]);
    assert_eq!(share(&state, "dark", Class::Bulk, origin(&state, "dark"), GB), 1.0);
    assert_eq!(share(&state, "dear", Class::Bulk, origin(&state, "dear"), GB), 1.0);
}

#[test]
fn what_is_left_of_a_response_is_priced_as_what_comes_back() {
    // To go to b is dear, to come from there is not.
    let state = state(
        BOTH,
        &[
            ("here", 1, region(None, &[("a", 2.0), ("b", 9.0)])),
            ("a", 1, region(None, &[("*", 5.0)])),
            ("b", 1, region(None, &[("*", 1.0)])),
        ],
    );
    let from = origin(&state, "here");
    let completion = state.completion.as_ref().unwrap();
    let footprints = completion.footprints(Class::Bulk).unwrap();
    let price = |at: usize, down| {
        let ask = Ask { bytes: GB, down, origin: from, class: Class::Bulk, ..Ask::default() };
        footprints.seconds(&state.endpoints[at].live, &completion.load(&ask, now_ms())).1
    };
    assert!(price(1, None) < price(2, None));
    assert!(price(1, Some(GB)) > price(2, Some(GB)));
    assert!((0.99..1.01).contains(&price(2, Some(GB))), "{}", price(2, Some(GB)));
}

#[test]
fn what_a_sidecar_measures_counts_instead_of_the_default() {
    let regions = [("a", 1, region(Some(400.0), &[])), ("b", 1, region(Some(500.0), &[]))];
    let state = state(BOTH, &regions);
    assert_eq!(share(&state, "a", Class::Bulk, Origin::HERE, GB), 1.0);
    state.endpoints[0].live.energy.reported(2e-5, now_ms());
    assert_eq!(share(&state, "b", Class::Bulk, Origin::HERE, GB), 1.0, "it takes 5 times as much");
    let grams = |at: usize| state.per_byte(&state.endpoints[at].live, Origin::HERE).unwrap().grams;
    assert!((2.2e-9..2.3e-9).contains(&grams(0).unwrap()), "{:?}", grams(0));
    assert!((4.9e-10..5.1e-10).contains(&grams(1).unwrap()), "{:?}", grams(1));
}

#[test]
fn among_many_those_of_clean_regions_are_looked_at() {
    let regions = [
        ("coal", 300, region(Some(900.0), &[])),
        ("lignite", 300, region(Some(1100.0), &[])),
        ("hydro", 300, region(Some(20.0), &[])),
    ];
    let state = state(BOTH, &regions);
    let completion = state.completion.as_ref().unwrap();
    completion.experience.usual_response.add(1e9);
    state.forget(5000);
    let clean = share(&state, "hydro", Class::Background, Origin::HERE, 0);
    assert!(clean > 0.85, "{clean}");
    let even = share(&state, "hydro", Class::Interactive, Origin::HERE, 0);
    assert!((0.2..0.6).contains(&even), "{even}");
}

#[test]
fn a_try_counts_the_bytes_that_moved() {
    let regions =
        [("eu", 1, region(Some(360.0), &[("us", 2.0)])), ("us", 1, region(None, &[("eu", 8.0)]))];
    let mut plain = service(Terms::default());
    plain.prediction.joules_per_gigabyte = 10_000.0;
    let state = reconcile(None, Arc::new(plain), &set(&regions), 1).unwrap();
    let (grams, cents) = (Sum::default(), Sum::default());
    let us = origin(&state, "us");
    let mut ticket = Ticket::new(state.clone(), state.endpoints[0].clone(), GB);
    let per_byte = state.per_byte(&state.endpoints[0].live, us).unwrap();
    ticket.tallies(Tally { per_byte, grams: grams.clone(), cents: cents.clone() });
    ticket.sent(GB / 2);
    ticket.received(GB);
    assert_eq!(grams.value(), 0.0, "it has not ended");
    drop(ticket);
    // 15 kJ at a ten-thousandth of a gram each; half a gigabyte to the eu, one back.
    assert!((1.499..1.501).contains(&grams.value()), "{}", grams.value());
    assert!((5.999..6.001).contains(&cents.value()), "{}", cents.value());
    // Another balancer predicts nothing, and counts grams all the same.
    let mut other = (*state.spec).clone();
    other.balancer = Balancer::RoundRobin;
    let state = reconcile(Some(&state), Arc::new(other), &set(&regions), 1).unwrap();
    let per_byte = state.per_byte(&state.endpoints[0].live, Origin::HERE).unwrap();
    assert!(per_byte.grams.is_some() && per_byte.cents.is_none(), "{per_byte:?}");
}

#[test]
fn other_figures_count_from_the_next_request_on() {
    let before =
        state(BOTH, &[("a", 1, region(Some(400.0), &[])), ("b", 1, region(Some(500.0), &[]))]);
    assert_eq!(share(&before, "a", Class::Bulk, Origin::HERE, GB), 1.0);
    let now = [("a", 1, region(Some(400.0), &[])), ("b", 1, region(Some(30.0), &[]))];
    let after = reconcile(Some(&before), before.spec.clone(), &set(&now), 1).unwrap();
    assert_eq!(share(&after, "b", Class::Bulk, Origin::HERE, GB), 1.0);
}

const FRANKFURT: (f64, f64) = (50.1, 8.7);
/// 27 km from there.
const MAINZ: (f64, f64) = (50.0, 8.27);
/// 304 km.
const MUNICH: (f64, f64) = (48.1, 11.6);
const VIRGINIA: (f64, f64) = (39.0, -77.5);
const FIJI: (f64, f64) = (-17.7, 178.1);

fn at((latitude, longitude): (f64, f64)) -> Location {
    Location::at(Coordinates { latitude, longitude })
}

/// A place as a request says it.
fn said((latitude, longitude): (f64, f64)) -> String {
    format!("{latitude},{longitude}")
}

/// Endpoints in `eu`, of which the policy says where it is, and in `us`, whose endpoint says it itself. Data
/// comes from `lab` in Munich too, which says what bytes to `eu` cost.
fn atlas() -> EndpointSet {
    let eu = Region {
        location: at(FRANKFURT),
        ..region(None, &[("us", 2.0), ("lab", 4.0), ("*", 9.0)])
    };
    let us = region(None, &[("eu", 3.0), ("barn", 6.0), ("*", 8.0)]);
    let mut set = set(&[("eu", 1, eu), ("us", 1, us)]);
    set.endpoints[1].coordinates = at(VIRGINIA).coordinates;
    let lab = Region { location: at(MUNICH), ..region(None, &[("eu", 1.0), ("*", 7.0)]) };
    set.origins = [("lab".to_owned(), lab), ("yard".to_owned(), Region::default())].into();
    set
}

fn atlas_from(here: Option<(f64, f64)>, service: Service) -> Arc<ServiceState> {
    let here = here.and_then(|place| at(place).coordinates);
    reconcile_at(&Site { workers: 1, here, clients: None }, None, Arc::new(service), &atlas())
        .unwrap()
}

/// Cents per gigabyte to an endpoint, and from it.
fn cents(state: &ServiceState, endpoint: usize, origin: Origin) -> Option<[f64; 2]> {
    let cents = state.per_byte(&state.endpoints[endpoint].live, origin)?.cents?;
    Some([cents.0, cents.1].map(|cents| (f64::from(cents) * 1e10).round() / 10.0))
}

#[test]
fn bytes_have_the_prices_of_the_region_that_is_named_or_near() {
    let state = atlas_from(None, service(BOTH));
    for (from, eu, us) in [
        // By name, also where the service has no endpoint and nobody describes it.
        ("eu", [0.0, 0.0], [2.0, 3.0]),
        ("lab", [1.0, 4.0], [7.0, 8.0]),
        ("LAB", [1.0, 4.0], [7.0, 8.0]),
        ("yard", [0.0, 9.0], [0.0, 8.0]),
        ("barn", [0.0, 9.0], [0.0, 6.0]),
        // By its place, which the policy says or an endpoint.
        (&said(MAINZ), [0.0, 0.0], [2.0, 3.0]),
        (&said(MUNICH), [1.0, 4.0], [7.0, 8.0]),
        (&said(VIRGINIA), [3.0, 2.0], [0.0, 0.0]),
        // Near none of them.
        (&said(FIJI), [0.0, 9.0], [0.0, 8.0]),
    ] {
        let origin = origin(&state, from);
        assert_eq!(cents(&state, 0, origin), Some(eu), "{from}");
        assert_eq!(cents(&state, 1, origin), Some(us), "{from}");
    }
    // Nearest for what is measured, but not near.
    assert_eq!(origin(&state, &said(FIJI)).cell, origin(&state, "us").cell);
    assert_ne!(origin(&state, "lab").cell, origin(&state, "eu").cell, "it is told apart");
    assert!(state.completion.as_ref().unwrap().map.named(b"mars").is_none());
}

#[test]
fn requests_that_say_nothing_have_the_prices_of_where_the_proxy_is() {
    for (here, eu) in [
        (None, None),
        (Some(MAINZ), Some([0.0, 0.0])),
        (Some(MUNICH), Some([1.0, 4.0])),
        (Some(FIJI), Some([0.0, 9.0])),
    ] {
        let state = atlas_from(here, service(BOTH));
        let nothing = state.origin(&http::HeaderMap::new(), [127, 0, 0, 1].into());
        assert_eq!(nothing.cell, Origin::HERE.cell);
        assert_eq!(cents(&state, 0, nothing), eu, "{here:?}");
        // So has what is said to be beside it.
        let Some(here) = here else { continue };
        let beside = origin(&state, &said(here));
        assert_eq!((beside, cents(&state, 0, beside)), (nothing, eu), "{here:?}");
    }
}

#[test]
fn registered_places_have_the_prices_of_the_regions_near_them() {
    let mut service = service(BOTH);
    let places = [("inn", MUNICH), ("main", MAINZ), ("reef", FIJI)];
    let places = places.into_iter().map(|(name, place)| (name.to_owned(), at(place))).collect();
    service.prediction.origin =
        vec![OriginSource::Registered(Registered { header: "x-tenant".to_owned(), places })];
    let state = atlas_from(None, service);
    for (name, eu) in [("inn", [1.0, 4.0]), ("main", [0.0, 0.0]), ("reef", [0.0, 9.0])] {
        let origin = state.completion.as_ref().unwrap().origins.registered(name).unwrap();
        assert_eq!(cents(&state, 0, origin), Some(eu), "{name}");
    }
}

#[test]
fn a_region_is_as_wide_as_it_says_and_the_nearest_of_several_counts() {
    let mut set = atlas();
    set.regions.get_mut("eu").unwrap().radius_kilometers = Some(400);
    set.origins.get_mut("lab").unwrap().radius_kilometers = Some(20_000);
    let state = reconcile(None, Arc::new(service(BOTH)), &set, 1).unwrap();
    let name = |from: &str| {
        let map = &state.completion.as_ref().unwrap().map;
        map.zones.name(map.named(from.as_bytes()).unwrap().zone).to_owned()
    };
    // Nuremberg, at 188 km from Frankfurt and 151 from Munich; and Kassel, at 140 and 388.
    assert_eq!([name("49.45,11.08"), name("51.3,9.5"), name(&said(FIJI))], ["lab", "eu", "lab"]);
    set.origins.clear();
    let state = reconcile(None, Arc::new(service(BOTH)), &set, 1).unwrap();
    let map = &state.completion.as_ref().unwrap().map;
    assert_eq!(map.zones.name(map.named(b"49.45,11.08").unwrap().zone), "eu");
}

#[test]
fn where_a_region_may_be_that_does_not_say_it_nothing_is_known() {
    let mut set = atlas();
    set.endpoints[1].coordinates = None;
    let state = reconcile(None, Arc::new(service(BOTH)), &set, 1).unwrap();
    let fiji = origin(&state, &said(FIJI));
    assert_eq!((cents(&state, 0, fiji), cents(&state, 1, fiji)), (Some([0.0, 9.0]), None));
}

#[test]
fn a_region_is_no_longer_where_the_policy_said_before() {
    let mut set = atlas();
    let before = reconcile(None, Arc::new(service(BOTH)), &set, 1).unwrap();
    set.regions.get_mut("eu").unwrap().location = Location::default();
    set.origins.get_mut("lab").unwrap().location = Location::default();
    let after = reconcile(Some(&before), before.spec.clone(), &set, 1).unwrap();
    let names = |state: &ServiceState| {
        let map = &state.completion.as_ref().unwrap().map;
        let zone = |at| map.named(said(at).as_bytes()).unwrap().zone;
        [MAINZ, MUNICH, VIRGINIA].map(|at| map.zones.name(zone(at)).to_owned())
    };
    assert_eq!(names(&before), ["eu", "lab", "us"]);
    assert_eq!(names(&after), ["*", "*", "us"]);
}

#[test]
fn each_region_of_endpoints_is_where_they_say_however_many_there_are() {
    let names: Vec<_> = (0..20).map(|n| format!("r{n:02}")).collect();
    let prices = region(None, &[("*", 1.0)]);
    let regions: Vec<_> = names.iter().map(|name| (&**name, 1, prices.clone())).collect();
    let mut set = set(&regions);
    let place = |n: u8| (f64::from(n) * 4.0, 0.0);
    for (endpoint, n) in set.endpoints.iter_mut().zip(0..) {
        endpoint.coordinates = at(place(n)).coordinates;
    }
    let state = reconcile(None, Arc::new(service(BOTH)), &set, 1).unwrap();
    let map = &state.completion.as_ref().unwrap().map;
    for (name, n) in names.iter().zip(0..) {
        assert_eq!(map.zones.name(origin(&state, &said(place(n))).zone), name);
    }
}

#[test]
fn what_waits_while_endpoints_come_and_go_has_the_prices_of_its_region() {
    let mut set = atlas();
    let before = reconcile(None, Arc::new(service(BOTH)), &set, 1).unwrap();
    let from = [origin(&before, "eu"), origin(&before, "lab"), origin(&before, "us")];
    let names = |state: &ServiceState| {
        let map = &state.completion.as_ref().unwrap().map;
        from.map(|origin| map.zones.name(origin.zone).to_owned())
    };
    set.endpoints.reverse();
    let turned = reconcile(Some(&before), before.spec.clone(), &set, 1).unwrap();
    assert_eq!(names(&turned), ["eu", "lab", "us"]);
    // The last of `eu` is away, of which is told as of one that data comes from.
    set.endpoints.pop();
    set.origins.extend(set.regions.remove_entry("eu"));
    let away = reconcile(Some(&turned), turned.spec.clone(), &set, 1).unwrap();
    assert_eq!(names(&away), ["eu", "lab", "us"]);
}

#[test]
fn work_for_a_region_without_endpoints_goes_where_its_bytes_are_cheap() {
    let state = atlas_from(None, service(Terms { price: 100.0, ..BOTH }));
    // So much work is there already that it takes longer there than across the ocean.
    let ahead = 10 * GB;
    state.endpoints[0].live.bytes_in_flight.store(ahead, std::sync::atomic::Ordering::Relaxed);
    for (from, class, eu) in [
        ("lab", Class::Bulk, 1.0),
        (&*said(MUNICH), Class::Background, 1.0),
        ("lab", Class::Interactive, 0.0),
    ] {
        assert_eq!(share(&state, "eu", class, origin(&state, from), GB), eu, "{from} {class:?}");
    }
}

#[test]
fn what_is_unknown_for_all_endpoints_is_nothing_to_choose_by_whatever_stays_in_a_region() {
    let regions =
        [("eu", 1, region(None, &[("us", 2.0)])), ("us", 1, region(None, &[("eu", 3.0)]))];
    let mut set = set(&regions);
    // Nobody says what bytes to there cost, but that those cost nothing which stay there.
    set.origins = [("lab".to_owned(), region(None, &[("eu", 1.0)]))].into();
    let state = reconcile(None, Arc::new(service(BOTH)), &set, 1).unwrap();
    let footprints = state.completion.as_ref().unwrap().footprints(Class::Bulk).unwrap();
    let zone = origin(&state, "lab").zone;
    let seconds = |up, down| {
        let load = Load { zone, up, down, now_ms: now_ms() };
        [0, 1].map(|at| footprints.seconds(&state.endpoints[at].live, &load).1.round())
    };
    assert_eq!(seconds(0.0, 1e9), [0.0, 0.0]);
    assert_eq!(seconds(1e9, 0.0), [1.0, 3.0], "what is known of one is, and the other the worst");
}

#[test]
fn without_prices_nobody_is_asked_for_a_region() {
    let mut set = atlas();
    set.regions.values_mut().chain(set.origins.values_mut()).for_each(|r| r.egress.clear());
    let state = reconcile(None, Arc::new(service(BOTH)), &set, 1).unwrap();
    let map = &state.completion.as_ref().unwrap().map;
    assert_eq!(map.zones.all().count(), 2, "none has a name");
    let munich = origin(&state, &said(MUNICH));
    assert_eq!(munich, munich.cell.into());
    assert!(state.completion.as_ref().unwrap().footprints(Class::Bulk).is_none());
}

#[test]
fn there_may_be_more_regions_than_numbers() {
    let mut set = atlas();
    let origin = |n: u32| (format!("o{n:03}"), region(None, &[("eu", f64::from(n))]));
    set.origins = (0..400).map(origin).collect();
    let state = reconcile(None, Arc::new(service(BOTH)), &set, 1).unwrap();
    let map = &state.completion.as_ref().unwrap().map;
    assert_eq!(map.zones.all().count(), 255);
    let all: Vec<_> = map.zones.all().filter(|(_, name)| name.starts_with('o')).collect();
    for (zone, name) in all {
        let from = map.named(name.as_bytes()).unwrap();
        assert_eq!(from.zone, zone);
        let up: f64 = name[1..].parse().unwrap();
        assert_eq!(cents(&state, 0, from).unwrap()[0], up, "{name}");
    }
}
