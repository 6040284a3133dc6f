use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use http::{HeaderMap, HeaderValue};
use towpath_policies::model::{
    Balancer, Class, Coordinates, Endpoint, EndpointSet, Location, OriginSource, Protocol,
    Registered, Service, Terms,
};

use super::{
    learn::{Sample, Stopwatch},
    places::Cell,
};
use crate::upstream::{
    ServiceState, Site, now_ms,
    pick::{Ask, Tried, pick},
    reconcile, reconcile_at,
};

const MIB: u64 = 1 << 20;
const ORIGIN: &str = "x-origin";
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Region, latitude, longitude.
const EU: (&str, f64, f64) = ("eu", 50.1, 8.7);
const US: (&str, f64, f64) = ("us", 39.0, -77.5);

/// So many endpoints in each of these regions.
fn state_at(site: &Site, terms: Terms, regions: &[((&str, f64, f64), usize)]) -> Arc<ServiceState> {
    let mut service = Service::new("predicted", Protocol::Http1);
    service.balancer = Balancer::CompletionTime;
    service.prediction.origin = vec![OriginSource::Header(ORIGIN.to_owned())];
    service.prediction.terms = terms;
    let places = regions.iter().flat_map(|(place, count)| std::iter::repeat_n(*place, *count));
    let endpoint = |(n, (region, latitude, longitude)): (u32, (&str, f64, f64))| {
        let [_, a, b, c] = (n + 1).to_be_bytes();
        let mut endpoint = Endpoint::new(([10, a, b, c], 80).into());
        region.clone_into(&mut endpoint.locality.region);
        endpoint.coordinates = Some(Coordinates { latitude, longitude });
        endpoint
    };
    let endpoints = (0..).zip(places).map(endpoint).collect();
    let set = EndpointSet::new("predicted".into(), endpoints);
    reconcile_at(site, None, Arc::new(service), &set).unwrap()
}

fn state(regions: &[((&str, f64, f64), usize)]) -> Arc<ServiceState> {
    state_at(&Site { workers: 1, ..Site::default() }, Terms::default(), regions)
}

/// As seen from this place.
fn state_from(here: (&str, f64, f64), regions: &[((&str, f64, f64), usize)]) -> Arc<ServiceState> {
    let here = Some(Coordinates { latitude: here.1, longitude: here.2 });
    state_at(&Site { workers: 1, here, clients: None }, Terms::default(), regions)
}

fn origin(state: &ServiceState, value: &'static str) -> Cell {
    let headers = [(ORIGIN.parse().unwrap(), HeaderValue::from_static(value))];
    state.origin(&HeaderMap::from_iter(headers), CLIENT).cell
}

/// How often each endpoint is picked for so many bytes.
fn shares(state: &ServiceState, origin: Cell, bytes: u64, picks: u32) -> Vec<f64> {
    let mut counts = vec![0; state.endpoints.len()];
    let ask = Ask { bytes, origin: origin.into(), ..Ask::default() };
    for _ in 0..picks {
        let picked = pick(state, &Tried::default(), now_ms(), ask).unwrap();
        let at = state.endpoints.iter().position(|e| Arc::ptr_eq(e, picked)).unwrap();
        counts[at] += 1;
    }
    counts.into_iter().map(|count| f64::from(count) / f64::from(picks)).collect()
}

/// So many transfers of this size took so long, one after the other.
fn served(state: &ServiceState, at: usize, origin: Cell, bytes: u64, seconds: f32, times: usize) {
    let completion = state.completion.as_ref().unwrap();
    let sample = Sample { origin, seconds, bytes, ahead: 0, others: 0, load: 1.0 };
    (0..times).for_each(|_| completion.learn(&state.endpoints[at], &sample));
}

/// So many others of this size are under way at it.
fn has(state: &ServiceState, at: usize, others: u32, bytes: u64) {
    let live = &state.endpoints[at].live;
    live.requests.store(others, Relaxed);
    live.bytes_in_flight.store(u64::from(others) * bytes, Relaxed);
}

/// How much longer the first is predicted to take than the second.
fn ratio(state: &ServiceState) -> f32 {
    let completion = state.completion.as_ref().unwrap();
    let seconds = |at: usize| {
        completion
            .predict(&state.endpoints[at].live, Cell::HERE, super::real(MIB), 1.0, || 100)
            .total()
    };
    seconds(0) / seconds(1)
}

#[test]
fn before_anything_is_measured_work_goes_near_its_data() {
    let state = state(&[(EU, 1), (US, 1)]);
    assert_eq!(shares(&state, origin(&state, "48.1,11.6"), MIB, 100), [1.0, 0.0]);
    assert_eq!(shares(&state, origin(&state, "us"), MIB, 100), [0.0, 1.0]);
    let blind = shares(&state, origin(&state, "the moon"), MIB, 1000);
    assert!((0.4..0.6).contains(&blind[0]), "{blind:?}");
}

#[test]
fn what_is_measured_counts_and_not_the_distance() {
    let state = state(&[(EU, 1), (US, 1)]);
    let munich = origin(&state, "48.1,11.6");
    served(&state, 0, munich, MIB, 4.0, 100);
    served(&state, 1, munich, MIB, 1.0, 100);
    assert_eq!(shares(&state, munich, MIB, 100), [0.0, 1.0]);
    // What is small waits for no goodput.
    assert_eq!(shares(&state, munich, 1000, 100), [1.0, 0.0]);
}

#[test]
fn an_endpoint_is_as_busy_as_its_bytes_take() {
    let state = state(&[(EU, 2)]);
    // 1 MiB/s and 4 MiB/s.
    served(&state, 0, Cell::HERE, MIB, 1.0, 100);
    served(&state, 1, Cell::HERE, MIB, 0.25, 100);
    for (others, soonest) in [(0, 1), (2, 1), (4, 0)] {
        has(&state, 1, others, MIB);
        assert_eq!(shares(&state, Cell::HERE, MIB, 10)[soonest], 1.0, "{others}");
    }
}

#[test]
fn whether_what_is_small_waits_for_what_is_large_is_learned() {
    // Beside 64 MiB a small one took twice as long as alone, or as long as all of it.
    for (seconds, home) in [(0.06, 0), (16.0, 1)] {
        let state = state(&[(EU, 1), (US, 1)]);
        served(&state, 0, Cell::HERE, MIB, 0.25, 100);
        served(&state, 1, Cell::HERE, MIB, 0.25, 100);
        let completion = state.completion.as_ref().unwrap();
        let (bytes, ahead) = (MIB / 8, 64 * MIB);
        let beside = Sample { origin: Cell::HERE, seconds, bytes, ahead, others: 1, load: 2.0 };
        (0..100).for_each(|_| completion.learn(&state.endpoints[0], &beside));
        served(&state, 0, Cell::HERE, MIB, 0.25, 100);
        // Far away there is nothing to wait for.
        has(&state, 0, 1, 64 * MIB);
        let from_home = origin(&state, "eu");
        assert_eq!(shares(&state, from_home, MIB / 8, 10)[home], 1.0, "{seconds}");
        // What is as large as the other waits for it in either order.
        assert_eq!(shares(&state, from_home, 64 * MIB, 10)[1], 1.0, "{seconds}");
    }
}

#[test]
fn a_request_that_waited_for_something_large_is_not_taken_to_be_slow() {
    let state = state(&[(EU, 1)]);
    let completion = state.completion.as_ref().unwrap();
    served(&state, 0, Cell::HERE, MIB, 0.25, 100);
    // First come, first served: 2 kB behind 64 MiB that are somewhere on their way, or alone.
    for nth in (0..16_u8).cycle().take(400) {
        let (ahead, others) = if nth % 2 == 0 { (64 * MIB, 1) } else { (0, 0) };
        let left = f32::from(nth) + 0.001;
        let seconds = if others == 1 { left } else { 0.002 };
        let load = 1.0 + super::real(others.into());
        let sample = Sample { origin: Cell::HERE, seconds, bytes: 2000, ahead, others, load };
        completion.learn(&state.endpoints[0], &sample);
    }
    let idle = completion.predict(&state.endpoints[0].live, Cell::HERE, 2000.0, 1.0, || 100);
    assert!(idle.total() < 0.02, "{idle:?}");
}

#[test]
fn a_few_transfers_tell_how_fast_an_endpoint_is() {
    let state = state(&[(EU, 2)]);
    // 2 and 16 MiB/s, neither of which is what was thought before.
    served(&state, 0, Cell::HERE, MIB / 4, 1.0 / 8.0, 3);
    served(&state, 1, Cell::HERE, MIB / 4, 1.0 / 64.0, 3);
    let first = ratio(&state);
    assert!((6.5..9.0).contains(&first), "{first}");
    // One that was unlucky changes little of what many said.
    served(&state, 0, Cell::HERE, MIB / 4, 1.0 / 8.0, 50);
    served(&state, 0, Cell::HERE, MIB / 4, 10.0 / 8.0, 1);
    let last = ratio(&state);
    assert!((6.5..10.0).contains(&last), "{last}");
}

#[test]
fn an_endpoint_that_is_new_is_taken_for_one_of_its_region() {
    let known = state(&[(EU, 1), (US, 1)]);
    served(&known, 0, Cell::HERE, MIB, 1.0, 100);
    served(&known, 1, Cell::HERE, MIB, 0.1, 100);
    let mut set = EndpointSet::new("predicted".into(), Vec::new());
    set.endpoints.extend(known.endpoints.iter().map(|e| e.spec.clone()));
    let mut new = set.endpoints[0].clone();
    new.address = ([10, 9, 9, 9], 80).into();
    set.endpoints.push(new);
    let state = reconcile(Some(&known), known.spec.clone(), &set, 1).unwrap();
    assert_eq!(shares(&state, Cell::HERE, MIB, 100), [0.0, 1.0, 0.0]);
}

#[test]
fn a_bad_report_takes_the_traffic_away_at_once_and_is_forgotten() {
    let state = state(&[(EU, 2)]);
    let now = now_ms();
    served(&state, 0, Cell::HERE, MIB, 1.0, 100);
    served(&state, 1, Cell::HERE, MIB, 1.0, 100);
    let learned = &state.endpoints[0].live.learned;
    learned.reported(0.1, now);
    assert_eq!(shares(&state, Cell::HERE, MIB, 100), [0.0, 1.0]);
    // Nine others are worth waiting for, ten are not.
    has(&state, 1, 10, MIB);
    assert_eq!(shares(&state, Cell::HERE, MIB, 100), [1.0, 0.0]);
    has(&state, 1, 0, 0);
    (1..=10).for_each(|second| state.forget(now + second * 1000));
    assert_eq!(shares(&state, Cell::HERE, MIB, 100), [0.0, 1.0], "it holds for 10 s");
    (11..=60).for_each(|second| state.forget(now + second * 1000));
    assert!((0.9..1.1).contains(&ratio(&state)), "{}", ratio(&state));
}

#[test]
fn what_is_slow_in_sickness_is_not_taken_for_slow_in_health() {
    let state = state(&[(EU, 2)]);
    let learned = &state.endpoints[0].live.learned;
    served(&state, 1, Cell::HERE, MIB, 1.0, 100);
    learned.reported(0.25, now_ms());
    served(&state, 0, Cell::HERE, MIB, 4.0, 100);
    learned.reported(1.0, now_ms());
    assert!((0.9..1.1).contains(&ratio(&state)), "{}", ratio(&state));
}

#[test]
fn reports_that_cannot_be_are_ignored() {
    let state = state(&[(EU, 2)]);
    let learned = &state.endpoints[0].live.learned;
    learned.reported(-0.0, now_ms());
    assert!(learned.strain() > 1000.0, "nothing is left");
    learned.reported(1.0, now_ms());
    for odd in [f64::NAN, -1.0, 1.01, f64::INFINITY, f64::NEG_INFINITY] {
        learned.reported(odd, now_ms());
        assert_eq!(learned.strain(), 1.0, "{odd}");
    }
    learned.reported(0.0, now_ms());
    assert!(learned.strain().is_finite());
    assert_eq!(shares(&state, Cell::HERE, MIB, 10), [0.0, 1.0]);
    state.endpoints[1].live.learned.reported(0.0, now_ms());
    assert!((shares(&state, Cell::HERE, MIB, 100)[0]) > 0.0, "one of them has to");
}

#[test]
fn fast_errors_attract_nothing() {
    let state = state(&[(EU, 3)]);
    (0..3).for_each(|at| served(&state, at, Cell::HERE, 1000, 0.02, 10));
    let mut errors = 0;
    for _ in 0..1000 {
        let ask = Ask { bytes: 1000, ..Ask::default() };
        let picked = pick(&state, &Tried::default(), now_ms(), ask).unwrap();
        if Arc::ptr_eq(picked, &state.endpoints[0]) {
            errors += 1;
            picked.live.learned.failed();
        } else {
            picked.live.learned.succeeded();
        }
    }
    assert!(errors < 50, "{errors} of 1000");
}

#[test]
fn any_sample_leaves_predictions_finite() {
    let state = state(&[(EU, 2)]);
    for seconds in [0.0, 1e-9, 1e9, f32::MAX, f32::INFINITY] {
        for bytes in [0, 1, 65_536, u64::MAX] {
            served(&state, 0, Cell::HERE, bytes, seconds, 3);
            let completion = state.completion.as_ref().unwrap();
            let parts =
                completion.predict(&state.endpoints[0].live, Cell::HERE, 1e13, 0.01, || 100);
            assert!(
                parts.total().is_finite() && parts.total() > 0.0,
                "{seconds} {bytes} {parts:?}"
            );
        }
    }
}

#[test]
fn among_many_the_near_are_likely_and_the_far_take_what_is_too_much() {
    let state = state(&[(EU, 500), (US, 500)]);
    let munich = origin(&state, "48.1,11.6");
    let near = |state| shares(state, munich, MIB, 4000)[..500].iter().sum::<f64>();
    assert!(near(&state) > 0.95, "{}", near(&state));
    for endpoint in &state.endpoints[..500] {
        endpoint.live.bytes_in_flight.store(1000 * MIB, Relaxed);
    }
    assert!(near(&state) < 0.1, "{}", near(&state));
}

#[test]
fn a_term_that_is_off_does_not_count() {
    let terms = Terms { network: 0.0, transfer: 0.0, ..Terms::default() };
    let site = Site { workers: 1, ..Site::default() };
    let state = state_at(&site, terms, &[(EU, 1), (US, 1)]);
    let even = shares(&state, origin(&state, "us"), 1000, 1000);
    assert!((0.4..0.6).contains(&even[0]), "{even:?}");
}

#[test]
fn a_response_that_may_pause_tells_only_when_it_began() {
    for (length_told, bytes) in [(true, 3 * MIB), (false, MIB)] {
        let mut watch = Stopwatch::start(1, 0);
        watch.answered(length_told);
        let sample = watch.end(1, MIB, 2 * MIB).unwrap();
        assert_eq!(sample.bytes, bytes, "{length_told}");
    }
    assert!(Stopwatch::start(1, 0).end(1, 0, 0).is_none(), "it was not served");
}

#[test]
fn a_new_endpoint_takes_as_long_for_a_small_request_as_its_like() {
    let known = state(&[(EU, 2)]);
    (0..2).for_each(|at| served(&known, at, Cell::HERE, 1000, 0.3, 30));
    for endpoint in &known.endpoints {
        endpoint.live.requests.store(8, Relaxed);
    }
    let mut set = EndpointSet::new("predicted".into(), Vec::new());
    set.endpoints.extend(known.endpoints.iter().map(|e| e.spec.clone()));
    let mut new = set.endpoints[0].clone();
    new.address = ([10, 9, 9, 9], 80).into();
    set.endpoints.push(new);
    let state = reconcile(Some(&known), known.spec.clone(), &set, 1).unwrap();
    let new = &state.endpoints[2].live;
    let mut taken = 0;
    while shares(&state, Cell::HERE, 1000, 1)[2] > 0.5 {
        taken += 1;
        new.requests.store(taken, Relaxed);
    }
    assert!((4..12).contains(&taken), "{taken} at once");
}

#[test]
fn what_was_bad_once_is_forgotten_where_nothing_bears_it_out() {
    let state = state(&[(EU, 2)]);
    served(&state, 1, Cell::HERE, 1000, 0.3, 30);
    served(&state, 0, Cell::HERE, 1000, 30.0, 10);
    assert_eq!(shares(&state, Cell::HERE, 1000, 10), [0.0, 1.0]);
    let now = now_ms();
    for second in 1..=200 {
        state.forget(now + second * 1000);
        served(&state, 1, Cell::HERE, 1000, 0.3, 1);
    }
    state.endpoints[1].live.requests.store(1, Relaxed);
    assert_eq!(shares(&state, Cell::HERE, 1000, 10), [1.0, 0.0]);
}

#[test]
fn an_answer_that_needed_nothing_from_the_origin_does_not_bring_it_near() {
    let state = state(&[(EU, 1), (US, 1)]);
    let us = origin(&state, "us");
    served(&state, 0, us, 100, 0.001, 30);
    served(&state, 1, us, 100, 0.001, 30);
    assert_eq!(shares(&state, us, 1000, 100), [0.0, 1.0]);
}

#[test]
fn a_proxy_that_knows_where_it_is_begins_with_what_is_near() {
    let state = state_from(EU, &[(EU, 1), (US, 1)]);
    assert_eq!(shares(&state, Cell::HERE, MIB, 100), [1.0, 0.0]);
    assert_eq!(shares(&state, origin(&state, "us"), MIB, 100), [0.0, 1.0]);
    // Among many too.
    let state = state_from(US, &[(EU, 500), (US, 500)]);
    let near = shares(&state, Cell::HERE, MIB, 4000)[500..].iter().sum::<f64>();
    assert!(near > 0.95, "{near}");
}

#[test]
fn a_measured_round_trip_counts_and_not_where_the_proxy_is_said_to_be() {
    let state = state_from(EU, &[(EU, 1), (US, 1)]);
    state.endpoints[0].live.learned.connected(0.2);
    state.endpoints[1].live.learned.connected(0.001);
    assert_eq!(shares(&state, Cell::HERE, 1000, 100), [0.0, 1.0]);
}

#[test]
fn a_place_that_is_corrected_counts_until_something_is_measured() {
    let wrong = state_from(US, &[(EU, 1), (US, 1)]);
    let set = EndpointSet::new(
        "predicted".into(),
        wrong.endpoints.iter().map(|e| e.spec.clone()).collect(),
    );
    let here = Some(Coordinates { latitude: EU.1, longitude: EU.2 });
    let site = Site { workers: 1, here, clients: None };
    let right = reconcile_at(&site, Some(&wrong), wrong.spec.clone(), &set).unwrap();
    assert_eq!(shares(&right, Cell::HERE, MIB, 100), [1.0, 0.0]);
    served(&right, 0, Cell::HERE, 1000, 2.0, 10);
    let again = reconcile_at(&site, Some(&right), right.spec.clone(), &set).unwrap();
    assert_eq!(shares(&again, Cell::HERE, 1000, 100), [0.0, 1.0]);
}

#[test]
fn of_a_region_that_comes_where_many_have_gone_nothing_bad_is_known() {
    let mut state = state(&[(EU, 1), (US, 1)]);
    let seconds = |state: &ServiceState| {
        let completion = state.completion.as_ref().unwrap();
        let new = &state.endpoints[1].live;
        completion.predict(new, origin(state, "eu"), 1000.0, 1.0, || 100).total()
    };
    for n in 0..100_u8 {
        let mut set = EndpointSet::new("predicted".into(), Vec::new());
        set.endpoints.extend(state.endpoints.iter().map(|e| e.spec.clone()));
        let new = &mut set.endpoints[1];
        new.address = ([10, 9, 9, n], 80).into();
        new.locality.region = format!("region {n}");
        let spec = state.spec.clone();
        state = reconcile(Some(&state), spec, &set, 1).unwrap();
        assert!(seconds(&state) < 0.2, "{n}: {}", seconds(&state));
        let eu = origin(&state, "eu");
        served(&state, 1, eu, 1000, 5.0, 30);
        served(&state, 1, eu, MIB, 50.0, 30);
        assert!(seconds(&state) > 1.0, "{n}: {}", seconds(&state));
    }
}

#[test]
fn a_weight_lowered_for_what_an_endpoint_reports_does_not_count_beside_the_report() {
    let predicted = |weight: u32, declared_weight: Option<u32>| {
        let mut service = Service::new("lowered", Protocol::Http1);
        service.balancer = Balancer::CompletionTime;
        let mut endpoints: Vec<_> =
            (1..3).map(|n| Endpoint::new(([10, 0, 0, n], 80).into())).collect();
        (endpoints[1].weight, endpoints[1].declared_weight) = (weight, declared_weight);
        let set = EndpointSet::new("lowered".into(), endpoints);
        let state = reconcile(None, Arc::new(service), &set, 1).unwrap();
        state.endpoints[1].live.reported(0.1, now_ms());
        let rows =
            state.explain(&super::explain::Whence::Here, MIB, Class::default()).unwrap().endpoints;
        rows[1].seconds / rows[0].seconds
    };
    let (plain, lowered) = (predicted(100, None), predicted(10, Some(100)));
    assert!((9.0..=10.1).contains(&plain) && plain == lowered, "{plain} {lowered}");
    assert!(predicted(10, None) > 50.0, "a declared weight counts until something is measured");
}

fn set(endpoints: Vec<Endpoint>) -> EndpointSet {
    EndpointSet::new("predicted".into(), endpoints)
}

/// The same endpoints but the last, which is away.
fn without_last(old: &Arc<ServiceState>, spec: Arc<Service>) -> Arc<ServiceState> {
    let mut endpoints: Vec<_> = old.endpoints.iter().map(|e| e.spec.clone()).collect();
    endpoints.pop();
    reconcile(Some(old), spec, &set(endpoints), 1).unwrap()
}

#[test]
fn data_of_a_region_whose_endpoints_are_away_still_goes_where_it_is_fast() {
    let fiji = ("fiji", -17.7, 178.1);
    let all = state(&[(EU, 1), (US, 1), (fiji, 1)]);
    let from = origin(&all, "fiji");
    served(&all, 0, from, 1000, 0.16, 30);
    served(&all, 1, from, 1000, 0.5, 30);
    let left = without_last(&all, all.spec.clone());
    assert_eq!(origin(&left, "fiji"), from);
    assert_eq!(shares(&left, origin(&left, "fiji"), 1000, 100), [1.0, 0.0]);
}

fn registered(places: impl IntoIterator<Item = (String, (f64, f64))>) -> OriginSource {
    let location = |(latitude, longitude)| Location::at(Coordinates { latitude, longitude });
    let places = places.into_iter().map(|(name, at)| (name, location(at))).collect();
    OriginSource::Registered(Registered { header: "x-tenant".to_owned(), places })
}

fn service_of(sources: Vec<OriginSource>) -> Arc<Service> {
    let mut service = Service::new("predicted", Protocol::Http1);
    service.balancer = Balancer::CompletionTime;
    service.prediction.origin = sources;
    Arc::new(service)
}

#[test]
fn of_many_registered_places_those_known_and_those_of_the_most_names_have_cells() {
    // At 40 places a thousand kilometres and more apart; at the last ones there are most.
    let place = |n: u32| (f64::from(n / 8) * 15.0 - 30.0, f64::from(n % 8) * 40.0 - 160.0);
    let names = (0..40).flat_map(|n| (0..=n).map(move |i| (format!("{n}-{i}"), place(n))));
    let before = state(&[(EU, 1), (US, 1)]);
    let of = |state: &ServiceState| set(state.endpoints.iter().map(|e| e.spec.clone()).collect());
    // Of these only the first was there already.
    let first = service_of(vec![registered([("0-0".to_owned(), place(0))])]);
    let first = reconcile(Some(&before), first, &of(&before), 1).unwrap();
    let all = service_of(vec![registered(names)]);
    let all = reconcile(Some(&first), all, &of(&first), 1).unwrap();
    let cell = |state: &ServiceState, n: u32| {
        let completion = state.completion.as_ref().unwrap();
        completion.origins.registered(&format!("{n}-0")).unwrap().cell
    };
    assert_eq!(cell(&all, 0), cell(&first, 0));
    let mut cells: Vec<_> = (28..40).chain([0]).map(|n| cell(&all, n)).collect();
    cells.sort();
    cells.dedup();
    assert_eq!(cells.len(), 13, "each its own");
    // The list is not gone through again with each change of the endpoints.
    let register = |state: &ServiceState| {
        let completion = state.completion.as_ref().unwrap();
        completion.origins.registers().next().unwrap().clone()
    };
    let later = without_last(&all, all.spec.clone());
    assert!(Arc::ptr_eq(&register(&all), &register(&later)));
    assert!(!Arc::ptr_eq(&register(&all), &register(&first)));
}

#[test]
fn clients_that_nobody_can_place_are_noticed() {
    for (source, blind) in
        [(OriginSource::ClientAddress, true), (OriginSource::Header(ORIGIN.to_owned()), false)]
    {
        let state = reconcile(None, service_of(vec![source]), &set(Vec::new()), 1).unwrap();
        assert_eq!(state.completion.as_ref().unwrap().origins.is_blind(), blind);
    }
}

#[test]
fn of_a_way_of_which_nothing_is_known_that_from_the_proxy_counts() {
    let places = Coordinates { latitude: 0.0, longitude: 0.0 };
    let endpoint = |n: u8, region: &str| {
        let mut endpoint = Endpoint::new(([10, 0, 0, n], 80).into());
        region.clone_into(&mut endpoint.locality.region);
        endpoint
    };
    let mut known = endpoint(3, "c");
    known.coordinates = Some(places);
    let set = set(vec![endpoint(1, "a"), endpoint(2, "b"), known]);
    let service = service_of(vec![OriginSource::Header(ORIGIN.to_owned())]);
    let state = reconcile(None, service, &set, 1).unwrap();
    for (endpoint, seconds) in state.endpoints.iter().zip([0.08, 0.01, 0.2]) {
        endpoint.live.learned.connected(seconds);
    }
    let network = |origin: &'static str| -> Vec<f32> {
        let completion = state.completion.as_ref().unwrap();
        let origin = self::origin(&state, origin);
        state.endpoints.iter().map(|e| completion.round_trip(&e.live.learned, origin)).collect()
    };
    assert_eq!(network("a"), [0.08, 0.01, 0.2]);
    assert_eq!(network("0,0"), [0.08, 0.01, 0.000_5], "of the last one the distance is known");
}
