use std::sync::Arc;

use towpath_policies::model::{
    Balancer, Class, Endpoint, EndpointSet, OriginSource, Protocol, Region, Service, Terms,
};

use super::super::places::Cell;
use crate::{
    metrics::Sum,
    upstream::{
        ServiceState,
        admission::{Tally, Ticket},
        now_ms,
        pick::{Ask, Tried, pick},
        reconcile,
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

fn origin(state: &ServiceState, region: &str) -> Cell {
    state.completion.as_ref().unwrap().cells.named(region.as_bytes()).unwrap()
}

/// The share of the endpoints of a region in picks for so many bytes.
fn share(state: &ServiceState, region: &str, class: Class, origin: Cell, bytes: u64) -> f64 {
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
        assert_eq!(share(&state, "hydro", class, Cell::HERE, GB), clean, "{class:?}");
    }
    // A small job is not worth the wait, and without the term none is.
    assert_eq!(share(&state, "hydro", Class::Background, Cell::HERE, GB / 100), 0.0);
    let off = dirty_and_clean(Terms::default());
    assert_eq!(share(&off, "hydro", Class::Background, Cell::HERE, GB), 0.0);
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
        state.per_byte(&state.endpoints[0].live, Cell::HERE).is_none(),
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
    for from in [Cell::HERE, origin(&state, "far")] {
        let far = share(&state, "far", Class::Bulk, from, GB);
        let gas = share(&state, "gas", Class::Bulk, from, GB);
        assert_eq!(share(&state, "dark", Class::Bulk, from, GB), 0.0);
        assert!(far + gas == 1.0 && (from != Cell::HERE || gas == 1.0), "{far} {gas}");
    }
    assert!(state.per_byte(&state.endpoints[2].live, Cell::HERE).is_none(), "nor is it counted");
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
    assert_eq!(share(&state, "a", Class::Bulk, Cell::HERE, GB), 1.0);
    state.endpoints[0].live.energy.reported(2e-5, now_ms());
    assert_eq!(share(&state, "b", Class::Bulk, Cell::HERE, GB), 1.0, "it takes 5 times as much");
    let grams = |at: usize| state.per_byte(&state.endpoints[at].live, Cell::HERE).unwrap().grams;
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
    let clean = share(&state, "hydro", Class::Background, Cell::HERE, 0);
    assert!(clean > 0.85, "{clean}");
    let even = share(&state, "hydro", Class::Interactive, Cell::HERE, 0);
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
    let per_byte = state.per_byte(&state.endpoints[0].live, Cell::HERE).unwrap();
    assert!(per_byte.grams.is_some() && per_byte.cents.is_none(), "{per_byte:?}");
}

#[test]
fn other_figures_count_from_the_next_request_on() {
    let before =
        state(BOTH, &[("a", 1, region(Some(400.0), &[])), ("b", 1, region(Some(500.0), &[]))]);
    assert_eq!(share(&before, "a", Class::Bulk, Cell::HERE, GB), 1.0);
    let now = [("a", 1, region(Some(400.0), &[])), ("b", 1, region(Some(30.0), &[]))];
    let after = reconcile(Some(&before), before.spec.clone(), &set(&now), 1).unwrap();
    assert_eq!(share(&after, "b", Class::Bulk, Cell::HERE, GB), 1.0);
}
