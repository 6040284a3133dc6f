use towpath_policies::model::{
    Balancer, Endpoint, EndpointSet, Hashing, KeySource, LocalityWeight, Protocol,
};

use super::{
    super::{
        now_ms,
        pick::{Ask, Tried, pick},
        reconcile,
    },
    *,
};

/// Levels of a hundred endpoints each, by priority and weight.
fn spread(factor: Option<f64>, levels: &[(u32, f64)]) -> Spread {
    let part = |(priority, weight): &(u32, f64)| Part {
        priority: *priority,
        weight: *weight,
        of_endpoints: 100.0,
        total: 100,
        total_in_priority: 100 * levels.iter().filter(|(p, _)| p == priority).count(),
        bound: AtomicU32::new(0),
    };
    Spread { factor, parts: levels.iter().map(part).collect() }
}

#[track_caller]
fn assert_shares(spread: &Spread, usable: &[usize], expected: &[f64]) {
    let shares = spread.shares(usable);
    for (share, expected) in shares.iter().zip(expected) {
        assert!((share * 100.0 - expected).abs() < 1.0, "{usable:?}: {shares:?}");
    }
    spread.set(usable);
    let mut counts = vec![0.0; usable.len()];
    (0..1000_u32).for_each(|nth| counts[spread.level(nth * (u32::MAX / 1000))] += 0.1);
    for (count, share) in counts.iter().zip(&shares) {
        assert!((count - share * 100.0_f64).abs() < 0.5, "{counts:?} of {shares:?}");
    }
}

#[test]
fn priorities_have_what_envoy_documents() {
    let two = spread(Some(1.4), &[(0, 1.0), (1, 1.0)]);
    for (usable, expected) in [
        ([100, 100], [100.0, 0.0]),
        ([72, 72], [100.0, 0.0]),
        ([71, 71], [99.0, 1.0]),
        ([50, 50], [70.0, 30.0]),
        ([25, 100], [35.0, 65.0]),
        ([25, 25], [50.0, 50.0]),
        ([0, 100], [0.0, 100.0]),
    ] {
        assert_shares(&two, &usable, &expected);
    }
    let three = spread(Some(1.4), &[(0, 1.0), (1, 1.0), (4, 1.0)]);
    for (usable, expected) in [
        ([100, 100, 100], [100.0, 0.0, 0.0]),
        ([72, 72, 100], [100.0, 0.0, 0.0]),
        ([71, 71, 100], [99.0, 1.0, 0.0]),
        ([50, 50, 100], [70.0, 30.0, 0.0]),
        ([25, 100, 100], [35.0, 65.0, 0.0]),
        ([25, 25, 100], [35.0, 35.0, 30.0]),
        ([25, 25, 20], [36.0, 36.0, 28.0]),
    ] {
        assert_shares(&three, &usable, &expected);
    }
}

#[test]
fn localities_have_what_envoy_documents() {
    let spread = spread(Some(1.4), &[(0, 1.0), (0, 2.0)]);
    for (usable, expected) in [
        ([100, 100], [33.3, 66.7]),
        ([70, 100], [33.0, 67.0]),
        ([69, 100], [32.0, 68.0]),
        ([50, 100], [26.0, 74.0]),
        ([25, 100], [15.0, 85.0]),
        ([0, 100], [0.0, 100.0]),
    ] {
        assert_shares(&spread, &usable, &expected);
    }
}

#[test]
fn a_priority_is_as_available_as_all_its_localities_together() {
    // 50 of 200, then 200 of 200 with a locality of no weight.
    let spread = spread(Some(1.4), &[(0, 1.0), (0, 1.0), (1, 3.0), (1, 0.0)]);
    assert_shares(&spread, &[50, 0, 100, 100], &[35.0, 0.0, 65.0, 0.0]);
}

#[test]
fn localities_without_weight_are_used_when_no_other_can_be() {
    let spread = spread(Some(1.4), &[(0, 3.0), (0, 0.0), (0, 0.0)]);
    assert_shares(&spread, &[100, 100, 100], &[100.0, 0.0, 0.0]);
    assert_shares(&spread, &[0, 100, 100], &[0.0, 50.0, 50.0]);
}

#[test]
fn without_a_factor_one_usable_endpoint_bears_all() {
    let spread = spread(None, &[(0, 1.0), (0, 3.0), (1, 1.0)]);
    assert_shares(&spread, &[1, 100, 100], &[25.0, 75.0, 0.0]);
    assert_shares(&spread, &[0, 1, 100], &[0.0, 100.0, 0.0]);
    assert_shares(&spread, &[0, 0, 1], &[0.0, 0.0, 100.0]);
}

fn locality(region: &str) -> Locality {
    Locality { region: region.to_owned(), ..Locality::default() }
}

/// Ten endpoints in `a` and ten in `b`, ports 1 to 20.
fn state(change: impl FnOnce(&mut Service, &mut EndpointSet)) -> Arc<ServiceState> {
    let endpoint = |port: u16| Endpoint {
        locality: locality(if port <= 10 { "a" } else { "b" }),
        ..Endpoint::new(([127, 0, 0, 1], port).into())
    };
    let mut set = EndpointSet {
        service: "s".into(),
        endpoints: (1..=20).map(endpoint).collect(),
        ..Default::default()
    };
    let mut service = Service::new("s", Protocol::Http1);
    change(&mut service, &mut set);
    reconcile(None, Arc::new(service), &set, 1).unwrap()
}

fn weighed(service: &mut Service, set: &mut EndpointSet) {
    let weight =
        |region, weight| LocalityWeight { priority: 0, locality: locality(region), weight };
    service.by_locality = true;
    set.spread.localities = vec![weight("a", 3), weight("b", 1)];
    set.spread.overprovisioning_percent = Some(140);
}

/// How many of 1000 picks are of ports 1 to 10.
fn picked_in_a(state: &ServiceState) -> usize {
    fastrand::seed(7);
    let in_a = |_: &usize| {
        let picked = pick(state, &Tried::default(), now_ms(), Ask::default()).unwrap();
        picked.spec.address.port() <= 10
    };
    (0..1000).filter(in_a).count()
}

#[test]
fn every_balancer_picks_in_a_locality_drawn_by_weight() {
    for balancer in [
        Balancer::BytesInFlight,
        Balancer::CompletionTime,
        Balancer::LeastRequest,
        Balancer::RoundRobin,
        Balancer::WeightedRoundRobin,
        Balancer::Random,
    ] {
        let state = state(|service, set| {
            weighed(service, set);
            service.balancer = balancer;
        });
        let picked = picked_in_a(&state);
        assert!((690..810).contains(&picked), "{balancer:?}: {picked}");
        // 3 × 1.4 × 2 / 10 to 1.
        state.endpoints[..8].iter().for_each(|e| e.live.probe_healthy.store(false, Relaxed));
        state.share_out(now_ms());
        let picked = picked_in_a(&state);
        assert!((400..515).contains(&picked), "{balancer:?}: {picked}");
        let shares = state.shares().unwrap();
        let [(0, Some(_), a), (0, Some(_), b)] = shares[..] else { panic!("{shares:?}") };
        assert!((a - 0.4565).abs() < 0.001 && (a + b - 1.0).abs() < 1e-6, "{shares:?}");
    }
}

#[test]
fn localities_do_not_matter_unless_the_service_goes_by_them() {
    let state = state(|service, set| {
        weighed(service, set);
        service.by_locality = false;
    });
    let picked = picked_in_a(&state);
    assert!((420..580).contains(&picked), "{picked}");
}

#[test]
fn a_locality_that_is_full_or_was_just_lost_leaves_its_share_to_others() {
    let state = state(|service, set| {
        weighed(service, set);
        service.breaker.endpoint.max_requests = Some(1);
    });
    state.endpoints[..10].iter().for_each(|e| e.live.requests.store(1, Relaxed));
    assert_eq!(picked_in_a(&state), 0, "full");
    state.endpoints[..10].iter().for_each(|e| e.live.requests.store(0, Relaxed));
    state.endpoints[..10].iter().for_each(|e| e.live.probe_healthy.store(false, Relaxed));
    assert_eq!(picked_in_a(&state), 0, "not usable, before that is reckoned with");
}

#[test]
fn in_panic_shares_are_as_if_all_were_usable() {
    let state = state(weighed);
    state.endpoints.iter().for_each(|e| e.live.probe_healthy.store(false, Relaxed));
    state.share_out(now_ms());
    let picked = picked_in_a(&state);
    assert!((690..810).contains(&picked), "{picked}");
}

#[test]
fn what_the_control_plane_takes_out_is_missing_from_its_priority() {
    let state = state(|_, set| {
        set.endpoints[10..].iter_mut().for_each(|e| e.priority = 1);
        set.endpoints[..5].iter_mut().for_each(|e| e.health = model::Health::Unhealthy);
        set.spread.overprovisioning_percent = Some(140);
    });
    let picked = picked_in_a(&state);
    assert!((640..760).contains(&picked), "{picked}");
}

#[test]
fn a_key_stays_in_its_locality() {
    let state = state(|service, set| {
        weighed(service, set);
        service.balancer = Balancer::Maglev;
        let key = Some(KeySource::Header("x".to_owned()));
        service.hashing = Hashing { key, table_size: 251, ..Hashing::default() };
    });
    let home = |key: u64| {
        let ask = Ask { key: Some(key.wrapping_mul(0xD6E8_FEB8_6659_FD93)), ..Ask::default() };
        let picked = pick(&state, &Tried::default(), now_ms(), ask).unwrap();
        picked.spec.address.port()
    };
    let homes: Vec<u16> = (0..1000).map(home).collect();
    let in_a = homes.iter().filter(|port| **port <= 10).count();
    assert!((690..810).contains(&in_a), "{in_a}");
    assert!((0..1000).map(home).eq(homes));
}

#[test]
fn a_locality_of_no_named_weight_misses_its_unhealthy_only_once() {
    // Two zones of ten, half of one told unhealthy: 0.7 to 1, weights being equal.
    let state = state(|service, set| {
        service.by_locality = true;
        set.spread.overprovisioning_percent = Some(140);
        set.endpoints[..5].iter_mut().for_each(|e| e.health = model::Health::Unhealthy);
    });
    let shares = state.shares().unwrap();
    assert!((shares[0].2 - 0.7 / 1.7).abs() < 0.001, "{shares:?}");
}

#[test]
fn where_nobody_has_room_those_without_a_share_come_last() {
    let state = state(|service, set| {
        weighed(service, set);
        set.endpoints[15..].iter_mut().for_each(|e| e.priority = 1);
        let far = LocalityWeight { priority: 1, locality: locality("b"), weight: 1 };
        set.spread.localities[0].weight = 0;
        set.spread.localities.push(far);
        set.spread.overprovisioning_percent = Some(100);
        service.breaker.endpoint.max_requests = Some(1);
    });
    // Priority 0 is half there, so that 1 has a share.
    state.endpoints[..8].iter().for_each(|e| e.live.probe_healthy.store(false, Relaxed));
    state.share_out(now_ms());
    let shares: Vec<f64> = state.shares().unwrap().iter().map(|share| share.2).collect();
    assert!(shares[0] == 0.0 && shares[1] > 0.4 && shares[2] > 0.4, "{shares:?}");
    assert_eq!(picked_in_a(&state), 0);
    state.endpoints[10..15].iter().for_each(|e| e.live.requests.store(1, Relaxed));
    assert_eq!(picked_in_a(&state), 0, "the other priority has a share");
    state.endpoints[15..].iter().for_each(|e| e.live.requests.store(1, Relaxed));
    assert_eq!(picked_in_a(&state), 1000, "none else has room");
}

#[test]
fn many_localities_share_the_room_for_tables() {
    for (size, levels, expected) in [
        (65_537, 2, 65_537),
        (5_000_011, 2, 5_000_011),
        (65_537, 1000, 16_763),
        (251, 9_999_999, 2),
    ] {
        let hashing = Hashing { table_size: size, ..Hashing::default() };
        assert_eq!(hashing.table_size_within((1 << 24) / levels), expected);
    }
}
