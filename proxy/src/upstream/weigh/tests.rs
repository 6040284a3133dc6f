use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use towpath_policies::model::{Endpoint, EndpointSet, Protocol};

use super::*;
use crate::upstream::{
    now_ms,
    pick::{Ask, Tried, pick},
    reconcile,
};

fn spec(change: impl FnOnce(&mut Weighing)) -> Arc<Service> {
    let mut spec = Service::new("s", Protocol::Http1);
    spec.balancer = Balancer::WeightedRoundRobin;
    spec.weighing.blackout = Duration::ZERO;
    change(&mut spec.weighing);
    Arc::new(spec)
}

fn set(count: u16) -> EndpointSet {
    let endpoint = |port| Endpoint::new(([127, 0, 0, 1], port).into());
    EndpointSet::new("s".into(), (1..=count).map(endpoint).collect())
}

fn state(count: u16) -> Arc<ServiceState> {
    reconcile(None, spec(|_| {}), &set(count), 1).unwrap()
}

fn report(requests_per_second: f64, utilization: f64) -> LoadReport {
    LoadReport {
        rps_fractional: requests_per_second,
        application_utilization: utilization,
        ..LoadReport::default()
    }
}

/// Each endpoint reports that it could do so much, and weights are made of that.
fn told(state: &ServiceState, capacities: &[f64]) {
    let now = now_ms();
    for (endpoint, capacity) in state.endpoints.iter().zip(capacities) {
        state.heed(&endpoint.live, &report(*capacity, 1.0), now);
    }
    weigh(state, now);
}

fn weigh(state: &ServiceState, now: u64) {
    state.weights.as_ref().unwrap().weigh(&state.spec.weighing, &state.levels, now);
}

fn picked(state: &ServiceState) -> usize {
    let picked = pick(state, &Tried::default(), now_ms(), Ask::default()).unwrap();
    usize::from(picked.spec.address.port()) - 1
}

fn tally(state: &ServiceState, times: usize) -> Vec<usize> {
    let mut tally = vec![0; state.endpoints.len()];
    (0..times).for_each(|_| tally[picked(state)] += 1);
    tally
}

#[test]
fn a_weight_is_requests_per_second_by_utilization_and_errors() {
    let named = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let whole = LoadReport {
        rps_fractional: 100.0,
        eps: 20.0,
        cpu_utilization: 0.5,
        mem_utilization: 0.9,
        application_utilization: 0.8,
        named_metrics: [("kv".to_owned(), 0.25), ("below".to_owned(), -1.0)].into(),
        utilization: [("disk".to_owned(), 0.4)].into(),
        ..LoadReport::default()
    };
    let cpu = LoadReport { application_utilization: 0.0, ..whole.clone() };
    let old = LoadReport { rps_fractional: 0.0, rps: 50, ..whole.clone() };
    for (report, metrics, penalty, expected) in [
        (&whole, &[][..], 0.0, Some(125.0)),
        (&cpu, &[], 0.0, Some(200.0)),
        (&old, &[], 0.0, Some(62.5)),
        // A fifth of the requests fails.
        (&whole, &[], 1.0, Some(100.0)),
        (&whole, &[], 2.0, Some(100.0 / 1.2)),
        // The largest of those that are named goes before the others.
        (&whole, &["named_metrics.kv"], 0.0, Some(400.0)),
        (&whole, &["named_metrics.kv", "utilization.disk", "none.kv"], 0.0, Some(250.0)),
        (&whole, &["cpu_utilization"], 0.0, Some(200.0)),
        (&whole, &["mem_utilization"], 0.0, Some(100.0 / 0.9)),
        // Where they say nothing, the others stand in.
        (&whole, &["named_metrics.below", "named_metrics.other"], 0.0, Some(125.0)),
        (&LoadReport { rps_fractional: 0.0, ..whole.clone() }, &[], 0.0, None),
        (&LoadReport { cpu_utilization: 0.0, ..cpu.clone() }, &[], 0.0, None),
        (&LoadReport::default(), &["cpu_utilization"], 1.0, None),
    ] {
        let weight = Load::of(report, &named(metrics)).weight(penalty);
        let close = match (weight, expected) {
            (Some(weight), Some(expected)) => (weight / expected - 1.0).abs() < 1e-9,
            (weight, expected) => weight == expected,
        };
        assert!(close, "{metrics:?} {penalty}: {weight:?}, not {expected:?}");
    }
    // Errors past all measure, of which none counts.
    let mut failing = report(1e-300, 0.5);
    failing.eps = f64::MAX;
    let weight = Load::of(&failing, &[]).weight(0.0).unwrap();
    assert!((weight / 2e-6 - 1.0).abs() < 1e-9, "{weight}");
}

#[test]
fn a_weight_counts_after_the_blackout_and_until_it_expires() {
    let terms = Weighing::default();
    let capacity = Capacity::default();
    assert_eq!(capacity.weight(&terms, 1_000), None, "nothing came");
    for second in 1..=20 {
        let now = second * 1_000;
        capacity.take(second as f64, now);
        let counts = (second > 10).then_some(second as f64);
        assert_eq!(capacity.weight(&terms, now), counts, "{second}");
    }
    assert_eq!(capacity.weight(&terms, 199_999), Some(20.0));
    assert_eq!(capacity.weight(&terms, 200_000), None, "too old");
    // As if it were new.
    capacity.take(7.0, 300_000);
    assert_eq!(capacity.weight(&terms, 309_999), None);
    assert_eq!(capacity.weight(&terms, 310_000), Some(7.0));
    // One that came while the last expired, before it was seen to.
    let capacity = Capacity::default();
    capacity.take(7.0, 400_000);
    capacity.since_ms.store(0, Relaxed);
    assert_eq!(capacity.weight(&terms, 400_001), None);
    capacity.take(7.0, 400_010);
    assert_eq!(capacity.weight(&terms, 410_009), None);
    assert_eq!(capacity.weight(&terms, 410_010), Some(7.0));
    let at_once = Weighing { blackout: Duration::ZERO, ..terms };
    let capacity = Capacity::default();
    capacity.take(7.0, 5);
    assert_eq!(capacity.weight(&at_once, 5), Some(7.0));
}

#[test]
fn strides_are_in_proportion_and_bounded_by_the_median() {
    for (weights, expected) in [
        (&[][..], None),
        (&[Some(5.0)], None),
        (&[Some(5.0), None, None], None),
        (&[Some(5.0), Some(5.0)], Some(&[65_535, 65_535][..])),
        (&[Some(1.0), Some(3.0)], Some(&[21_845, 65_535])),
        // The mean, of those that have one.
        (&[Some(1.0), None, Some(3.0)], Some(&[21_845, 43_690, 65_535])),
        // A liar has ten times what is usual.
        (&[Some(1e15), Some(1.0), Some(1.0)], Some(&[65_535, 6_554, 6_554])),
        (&[Some(1e15), Some(1.0)], Some(&[65_535, 6_554])),
        (&[Some(1e15), Some(1e15), Some(1.0), Some(1.0)], Some(&[65_535, 65_535, 6_554, 6_554])),
        // And the weakest a hundredth.
        (&[Some(1e-15), Some(1.0), Some(1.0)], Some(&[655, 65_535, 65_535])),
    ] {
        assert_eq!(strides(weights).as_deref(), expected, "{weights:?}");
    }
}

#[test]
fn turns_follow_the_weights_and_are_spread_evenly() {
    let state = state(3);
    told(&state, &[1.0, 2.0, 4.0]);
    let picks: Vec<usize> = (0..7_000).map(|_| picked(&state)).collect();
    // In every stretch, and not only in all.
    for part in picks.chunks(70) {
        let count = |member| part.iter().filter(|picked| **picked == member).count();
        for (member, expected) in [10usize, 20, 40].into_iter().enumerate() {
            assert!(count(member).abs_diff(expected) <= 2, "{member}: {part:?}");
        }
    }
    // The one with four sevenths of them never waits for three others.
    let longest = picks.split(|picked| *picked == 2).map(<[usize]>::len).max();
    assert!(longest <= Some(2), "{longest:?}");
}

#[test]
fn until_two_have_reported_turns_are_taken_as_configured() {
    let state = state(3);
    assert_eq!(tally(&state, 30), [10, 10, 10]);
    told(&state, &[100.0]);
    assert_eq!(tally(&state, 30), [10, 10, 10]);
    let mut list = set(2);
    list.endpoints[1].weight *= 3;
    let state = reconcile(None, spec(|_| {}), &list, 1).unwrap();
    let picks = tally(&state, 400);
    assert!(picks[0].abs_diff(100) < 5, "{picks:?}");
    // From then on what they report counts instead.
    told(&state, &[5.0, 5.0]);
    assert_eq!(tally(&state, 400), [200, 200]);
}

#[test]
fn an_endpoint_that_lies_does_not_get_everything() {
    let state = state(10);
    let now = now_ms();
    for endpoint in &state.endpoints[1..] {
        state.heed(&endpoint.live, &report(100.0, 0.5), now);
    }
    for (requests, utilization) in
        [(1e300, 1e-300), (f64::MAX, f64::MIN_POSITIVE), (1.0, 1e-12), (1e9, 0.5)]
    {
        state.heed(&state.endpoints[0].live, &report(requests, utilization), now);
        weigh(&state, now);
        let picks = tally(&state, 1_900);
        assert!(picks[0] <= 1_010, "{requests} {utilization}: {picks:?}");
        assert!(picks[1..].iter().all(|n| (95..=110).contains(n)), "{picks:?}");
    }
    // One that says nothing that can be keeps what it has.
    state.heed(&state.endpoints[0].live, &report(100.0, 0.5), now);
    for (requests, utilization) in [(-1.0, 0.5), (100.0, -0.5), (f64::NAN, f64::NAN), (0.0, 0.0)] {
        let mut report = report(requests, utilization);
        report.keep_possible();
        state.heed(&state.endpoints[0].live, &report, now);
        weigh(&state, now);
        assert_eq!(tally(&state, 100), [10; 10], "{requests} {utilization}");
    }
}

#[test]
fn who_may_not_be_used_loses_its_turns_to_the_others_by_their_weights() {
    let state = state(3);
    told(&state, &[3.0, 1.0, 6.0]);
    state.endpoints[2].live.probe_healthy.store(false, Relaxed);
    let picks = tally(&state, 4_000);
    assert_eq!(picks[2], 0);
    assert!(picks[0].abs_diff(3_000) < 200, "{picks:?}");
    state.endpoints[0].live.probe_healthy.store(false, Relaxed);
    assert_eq!(tally(&state, 10), [0, 10, 0]);
}

#[test]
fn weights_come_into_force_once_in_a_period_and_outlive_a_view() {
    let spec = spec(|weighing| weighing.update_period = Duration::from_secs(5));
    let state = reconcile(None, spec.clone(), &set(2), 1).unwrap();
    let begin = state.weights.as_ref().unwrap().weighed_ms.load(Relaxed);
    for (endpoint, capacity) in state.endpoints.iter().zip([1.0, 3.0]) {
        state.heed(&endpoint.live, &report(capacity, 1.0), begin);
    }
    state.weigh(begin + 4_999);
    assert_eq!(tally(&state, 40), [20, 20]);
    state.weigh(begin + 5_000);
    let near = |state, expected: &[usize]| {
        let picks = tally(state, expected.iter().sum());
        let same = picks.iter().zip(expected).all(|(n, expected)| n.abs_diff(*expected) <= 2);
        assert!(same, "{picks:?}, not {expected:?}");
    };
    near(&state, &[50, 150]);
    // A third one comes; of it nothing is known.
    let next = reconcile(Some(&state), spec, &set(3), 1).unwrap();
    near(&next, &[50, 150, 100]);
}

#[test]
fn reports_are_asked_for_by_the_policy_that_is_in_force() {
    let asks = |state: &ServiceState| state.live.asks_for_reports.load(Relaxed);
    let service = |balancer, out_of_band| {
        Arc::new(Service { balancer, out_of_band, ..Service::new("s", Protocol::Http1) })
    };
    let mut state = None;
    for (balancer, out_of_band, expected) in [
        (Balancer::CompletionTime, None, true),
        (Balancer::BytesInFlight, None, false),
        (Balancer::WeightedRoundRobin, None, true),
        (Balancer::WeightedRoundRobin, Some(Duration::from_secs(1)), false),
        (Balancer::RoundRobin, Some(Duration::from_secs(1)), false),
        (Balancer::CompletionTime, None, true),
    ] {
        let view = reconcile(state.as_ref(), service(balancer, out_of_band), &set(1), 1).unwrap();
        assert_eq!(asks(&view), expected, "{balancer:?} {out_of_band:?}");
        state = Some(view);
    }
}

proptest! {
    #[test]
    fn whatever_is_reported_everybody_has_turns_and_nobody_all(
        capacities in prop::collection::vec(
            prop_oneof![Just(None), any::<f64>().prop_map(Some), (1e-3..1e3).prop_map(Some)],
            2..12,
        ),
        utilization in any::<f64>(),
        errors in any::<f64>(),
        penalty in prop_oneof![Just(0.0f32), 0.0f32..100.0],
    ) {
        let weights: Vec<_> = capacities
            .iter()
            .map(|capacity| {
                let mut report = report((*capacity)?, utilization);
                report.eps = errors;
                report.keep_possible();
                Load::of(&report, &[]).weight(penalty)
            })
            .collect();
        for weight in weights.iter().flatten() {
            prop_assert!(weight.is_finite() && *weight > 0.0, "{}", weight);
        }
        let Some(strides) = strides(&weights) else {
            prop_assert!(weights.iter().flatten().count() < 2);
            return Ok(());
        };
        let sum: u64 = strides.iter().copied().map(u64::from).sum();
        let usual = sum as f64 / strides.len() as f64;
        prop_assert_eq!(strides.iter().max(), Some(&u16::MAX));
        prop_assert!(strides.iter().all(|stride| *stride >= 1));
        prop_assert!(f64::from(u16::MAX) <= usual * 20.5, "{:?}", strides);
        // The turns of one round after another are those that the strides say.
        let turns = Turns {
            unknown: AtomicBool::new(true),
            strides: strides.iter().map(|_| AtomicU16::new(0)).collect(),
            start: 0,
        };
        turns.set(Some(strides.clone()));
        let turn = AtomicU64::new(0);
        let mut tally = vec![0u64; strides.len()];
        (0..10_000).for_each(|_| tally[turns.next(&turn)] += 1);
        for (count, stride) in tally.iter().zip(&strides) {
            let expected = 10_000.0 * f64::from(*stride) / sum as f64;
            prop_assert!((*count as f64 - expected).abs() <= strides.len() as f64 + 2.0, "{:?} {:?}", tally, strides);
        }
    }
}
