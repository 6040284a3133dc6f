use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use towpath_policies::model::{
    Balancer, BudgetShare, Endpoint, EndpointSet, Health, Protocol, Recovery, Service,
};

use super::{
    ServiceState,
    admission::{Limit, Ticket},
    now_ms,
    pick::{Ask, NoPick, Tried, pick},
    reconcile, warmth,
};

fn ask(bytes: u64) -> Ask {
    Ask { bytes, ..Ask::default() }
}

fn endpoints(count: u16) -> Vec<Endpoint> {
    (1..=count).map(|n| Endpoint::new(([127, 0, 0, 1], n).into())).collect()
}

fn set(endpoints: Vec<Endpoint>) -> EndpointSet {
    EndpointSet::new("s".into(), endpoints)
}

fn state(endpoints: Vec<Endpoint>, change: impl FnOnce(&mut Service)) -> Arc<ServiceState> {
    let mut service = Service::new("s", Protocol::Http1);
    change(&mut service);
    reconcile(None, Arc::new(service), &set(endpoints), 2).unwrap()
}

/// How often each of `count` endpoints (by port) is picked in `times` picks.
fn tally(state: &ServiceState, times: usize) -> Vec<usize> {
    let mut picked = vec![0; state.endpoints.len()];
    for _ in 0..times {
        let port = pick(state, &Tried::default(), now_ms(), ask(0)).unwrap().spec.address.port();
        picked[usize::from(port) - 1] += 1;
    }
    picked
}

#[test]
fn the_fewest_bytes_in_flight_in_proportion_to_weight_wins() {
    for (bytes, weights, expected) in [
        ([10, 5, 20], [100, 100, 100], 2),
        ([10, 5, 20], [100, 10, 100], 1),
        ([0, 0, 1], [1, 1, 1_000_000], 0),
        ([5, 5, 5], [100, 100, 300], 3),
    ] {
        let mut list = endpoints(3);
        list.iter_mut().zip(weights).for_each(|(e, w)| e.weight = w);
        let state = state(list, |_| {});
        for (endpoint, bytes) in state.endpoints.iter().zip(bytes) {
            endpoint.live.bytes_in_flight.store(bytes, Relaxed);
        }
        let picked = tally(&state, 50);
        if expected == 0 {
            assert_eq!(picked[2], 0, "{picked:?}");
        } else {
            assert_eq!(picked[expected - 1], 50, "{bytes:?} {weights:?}: {picked:?}");
        }
    }
}

#[test]
fn what_is_in_flight_is_not_divided_by_a_sickness_it_shows_itself() {
    for balancer in [Balancer::LeastRequest, Balancer::BytesInFlight] {
        let mut list = endpoints(2);
        list[1].weight = 10;
        list.iter_mut().for_each(|e| e.declared_weight = Some(100));
        let state = state(list, |service| service.balancer = balancer);
        // Ten times slower, it has as much in flight with a tenth of the requests.
        for (busy, expected) in [([20, 8], [0, 50]), ([0, 0], [50, 0])] {
            for (endpoint, busy) in state.endpoints.iter().zip(busy) {
                endpoint.live.requests.store(busy, Relaxed);
                endpoint.live.bytes_in_flight.store(busy.into(), Relaxed);
            }
            assert_eq!(tally(&state, 50), expected, "{balancer:?} {busy:?}");
        }
    }
}

#[test]
fn equal_bytes_are_told_apart_by_requests_and_equal_endpoints_by_chance() {
    let state = state(endpoints(4), |_| {});
    assert!(tally(&state, 400).iter().all(|n| *n > 40));
    for endpoint in &state.endpoints[..3] {
        endpoint.live.requests.store(2, Relaxed);
    }
    assert_eq!(tally(&state, 20), [0, 0, 0, 20]);
}

#[test]
fn of_many_endpoints_a_loaded_one_is_picked_seldom() {
    for balancer in [Balancer::BytesInFlight, Balancer::LeastRequest] {
        let state = state(endpoints(10), |s| s.balancer = balancer);
        state.endpoints[0].live.requests.store(1000, Relaxed);
        state.endpoints[0].live.bytes_in_flight.store(1 << 30, Relaxed);
        let picked = tally(&state, 1000);
        assert_eq!(picked[0], 0, "two different ones are drawn: {picked:?}");
        assert!(picked[1..].iter().all(|n| *n > 30), "{picked:?}");
    }
}

#[test]
fn turns_are_taken_in_order_and_by_weight() {
    let state = state(endpoints(3), |s| s.balancer = Balancer::RoundRobin);
    assert_eq!(tally(&state, 9), [3, 3, 3]);
    let mut list = endpoints(2);
    list[1].weight = 300;
    for balancer in [Balancer::RoundRobin, Balancer::Random] {
        let state = self::state(list.clone(), |s| s.balancer = balancer);
        let picked = tally(&state, 4000);
        assert!((800..1200).contains(&picked[0]), "{balancer:?}: {picked:?}");
    }
}

#[test]
fn a_higher_priority_is_used_only_when_no_lower_one_can_be() {
    let mut list = endpoints(4);
    list[2].priority = 1;
    list[3].priority = 7;
    let state = state(list, |_| {});
    let used = |expected: [bool; 4]| {
        let picked = tally(&state, 60);
        assert_eq!(picked.iter().map(|n| *n > 0).collect::<Vec<_>>(), expected);
    };
    used([true, true, false, false]);
    state.endpoints[0].live.probe_healthy.store(false, Relaxed);
    used([false, true, false, false]);
    state.endpoints[1].live.ejected_until_ms.store(u64::MAX, Relaxed);
    used([false, false, true, false]);
    state.endpoints[2].live.probe_healthy.store(false, Relaxed);
    used([false, false, false, true]);
    // Nothing is left by local judgement, so local judgement is overruled.
    state.endpoints[3].live.probe_healthy.store(false, Relaxed);
    used([true, true, false, false]);
}

#[test]
fn what_the_control_plane_calls_unhealthy_or_draining_is_never_picked() {
    let mut list = endpoints(3);
    list[0].health = Health::Unhealthy;
    list[1].health = Health::Draining;
    assert_eq!(tally(&state(list.clone(), |_| {}), 20), [0, 0, 20]);
    list.truncate(2);
    let state = state(list, |_| {});
    let none = pick(&state, &Tried::default(), now_ms(), ask(0)).unwrap_err();
    assert_eq!(none, NoPick::NoneHealthy);
}

#[test]
fn an_endpoint_that_was_tried_comes_last() {
    let state = state(endpoints(3), |_| {});
    let mut tried = Tried::default();
    let mut ports = Vec::new();
    for _ in 0..3 {
        let picked = pick(&state, &tried, now_ms(), ask(0)).unwrap();
        ports.push(picked.spec.address.port());
        tried.add(picked);
    }
    ports.sort_unstable();
    assert_eq!(ports, [1, 2, 3]);
    assert!(pick(&state, &tried, now_ms(), ask(0)).is_ok(), "when all were tried, any will do");
}

#[test]
fn a_full_endpoint_is_passed_over_and_all_full_is_an_overflow() {
    let state = state(endpoints(2), |s| {
        s.breaker.endpoint.max_requests = Some(1);
        s.breaker.endpoint.max_bytes_in_flight = Some(100);
    });
    let first = Ticket::new(state.clone(), state.endpoints[0].clone(), 0);
    assert_eq!(tally(&state, 10), [0, 10]);
    let mut second = Ticket::new(state.clone(), state.endpoints[1].clone(), 0);
    let full = pick(&state, &Tried::default(), now_ms(), ask(0)).unwrap_err();
    assert_eq!(full, NoPick::Full(Limit::Requests));
    drop(first);
    // A transfer larger than the limit may pass alone, and nothing beside it.
    assert!(pick(&state, &Tried::default(), now_ms(), ask(500)).is_ok());
    second.add_bytes(7);
    drop(second);
    assert_eq!(state.live.bytes_in_flight.load(Relaxed), 0);
    let held = Ticket::new(state.clone(), state.endpoints[0].clone(), 60);
    state.endpoints[0].live.requests.store(0, Relaxed);
    assert_eq!(
        state.endpoints[0].live.has_room(&state.spec.breaker.endpoint, 60),
        Err(Limit::Bytes)
    );
    assert_eq!(state.endpoints[0].live.has_room(&state.spec.breaker.endpoint, 40), Ok(()));
    state.endpoints[0].live.requests.store(1, Relaxed);
    drop(held);
}

#[test]
fn a_declared_length_counts_as_far_as_it_is_proven() {
    const MIB: u64 = 1 << 20;
    let none = [None, None];
    for (limits, declared, moved, counts) in [
        (none, 1000, 0, 1000),
        (none, 1000, 1000, 1000),
        (none, 1 << 62, 0, MIB),
        (none, 1 << 62, 1000, MIB + 64_000),
        (none, 5 << 30, 80 * MIB, 5 << 30),
        (none, u64::MAX, u64::MAX / 2, 1 << 40),
        ([Some(1000), None], 500, 0, 500),
        ([Some(1000), None], 1 << 62, 0, 500),
        ([Some(1000), None], 1 << 62, 200, 700),
        ([Some(1000), None], 600, 200, 600),
        ([Some(1000), Some(100)], 1 << 62, 0, 50),
        ([None, Some(100)], 90, 30, 80),
    ] {
        let state = state(endpoints(1), |s| {
            let breaker = &mut s.breaker;
            breaker.service.max_bytes_in_flight = limits[0];
            breaker.endpoint.max_bytes_in_flight = limits[1];
        });
        let mut ticket = Ticket::new(state.clone(), state.endpoints[0].clone(), declared);
        // However it comes, and whatever the response declares meanwhile.
        ticket.sent(moved / 2);
        ticket.answered(7, false);
        ticket.sent(moved - moved / 2);
        let counted = state.live.bytes_in_flight.load(Relaxed);
        let expected = (counts + 7).min(1 << 40);
        assert_eq!(counted, expected, "{declared} under {limits:?} after {moved}");
        ticket.set_aside();
        ticket.sent(1);
        assert_eq!(state.endpoints[0].live.bytes_in_flight.load(Relaxed), 0);
    }
}

#[test]
fn the_retry_budget_is_a_share_of_what_is_active_with_a_floor() {
    let state = state(endpoints(1), |s| {
        s.retry_budget = BudgetShare { percent: 20, min_concurrent: 1 };
    });
    let one = state.retry(1 << 40).unwrap();
    assert!(state.retry(0).is_none());
    state.live.requests.store(100, Relaxed);
    let two = state.retry(0).expect("what sends no bytes needs no share of them");
    assert!(state.retry(1).is_none());
    state.live.bytes_in_flight.store(1000, Relaxed);
    let three = state.retry(200).expect("the one that is always allowed is not counted");
    assert!(state.retry(1).is_none());
    drop((one, two, three));
    assert_eq!(state.live.retries.load(Relaxed), 0);
    assert_eq!(state.live.retry_bytes.load(Relaxed), 0);
}

#[test]
fn what_is_alive_survives_a_change_by_address() {
    let old = state(endpoints(3), |_| {});
    old.endpoints[0].live.consecutive_failures.store(3, Relaxed);
    old.endpoints[1].live.bytes_in_flight.store(9, Relaxed);
    let mut list = endpoints(2);
    list[1].weight = 7;
    let new = reconcile(Some(&old), old.spec.clone(), &set(list), 2).unwrap();
    assert!(Arc::ptr_eq(&old.endpoints[0], &new.endpoints[0]), "unchanged ones are the same");
    assert_eq!(new.endpoints[1].spec.weight, 7);
    assert!(Arc::ptr_eq(&old.endpoints[1].live, &new.endpoints[1].live));
    assert!(old.endpoints[2].live.removed.load(Relaxed));
    assert!(Arc::ptr_eq(&old.live, &new.live));
    assert!(Arc::ptr_eq(&new, &old.live.current.load_full().unwrap()));
}

#[test]
fn one_that_came_back_grows_from_the_floor_to_its_weight() {
    let terms = Recovery {
        slow_start: Duration::from_secs(10),
        slow_start_floor_percent: 20,
        panic_percent: 0,
    };
    for (back_for_ms, permille) in
        [(0, 200), (1_999, 200), (5_000, 500), (9_999, 999), (10_000, 1000), (u64::MAX, 1000)]
    {
        assert_eq!(warmth(back_for_ms, &terms), permille, "{back_for_ms} ms");
    }
    let at_once = Recovery { slow_start: Duration::ZERO, ..terms };
    assert_eq!(warmth(0, &at_once), 1000);
}

#[test]
fn one_that_came_back_is_picked_less_often_at_first() {
    for balancer in [Balancer::BytesInFlight, Balancer::RoundRobin, Balancer::Random] {
        let state = state(endpoints(3), |s| s.balancer = balancer);
        let endpoint = &state.endpoints[0];
        state.live.recovering.store(true, Relaxed);
        let now = now_ms();
        let share = |back_for_ms: u64| {
            let mut tickets = Vec::new();
            let times: u32 = 3000;
            endpoint.live.warm_from_ms.store(now, Relaxed);
            for _ in 0..times {
                let picked = pick(&state, &Tried::default(), now + back_for_ms, ask(1000)).unwrap();
                tickets.push(Ticket::new(state.clone(), picked.clone(), 1000));
            }
            endpoint.live.requests.load(Relaxed) * 100 / times
        };
        // A tenth of a weight beside two whole ones; a half; and all of it.
        for (back_for_ms, expected) in [(0, 2..9), (5_000, 15..26), (10_000, 28..39)] {
            let percent = share(back_for_ms);
            assert!(expected.contains(&percent), "{balancer:?} {back_for_ms}: {percent} %");
        }
    }
}

#[test]
fn the_only_one_is_picked_however_cold() {
    for balancer in [Balancer::BytesInFlight, Balancer::RoundRobin, Balancer::Random] {
        let state = state(endpoints(1), |s| s.balancer = balancer);
        state.endpoints[0].live.warm_from_ms.store(now_ms(), Relaxed);
        state.live.recovering.store(true, Relaxed);
        assert_eq!(tally(&state, 50), [50]);
    }
}

#[test]
fn in_panic_ejections_and_probes_are_ignored_unless_they_always_count() {
    for (percent, expected) in [(50, [true; 3]), (0, [false, false, true])] {
        let state = state(endpoints(3), |s| s.recovery.panic_percent = percent);
        state.endpoints[0].live.probe_healthy.store(false, Relaxed);
        state.endpoints[1].live.ejected_until_ms.store(u64::MAX, Relaxed);
        assert_eq!(tally(&state, 60)[2], 60, "before it is noticed");
        state.live.panics.store(true, Relaxed);
        let picked: Vec<_> = tally(&state, 90).iter().map(|n| *n > 0).collect();
        assert_eq!(picked, expected, "{percent} %");
        state.live.panics.store(false, Relaxed);
        state.endpoints[2].live.probe_healthy.store(false, Relaxed);
        let last = pick(&state, &Tried::default(), now_ms(), ask(0));
        assert_eq!(last.is_ok(), percent > 0, "none is left: {percent} %");
    }
}

#[tokio::test(start_paused = true)]
async fn slots_are_busy_for_as_long_as_tries_take() {
    // Clocks begin before, and past the time at which those began that other tests have moved.
    let _ = (now_ms(), super::now_us());
    tokio::time::advance(Duration::from_secs(1 << 24)).await;
    for (slots, expected_us) in [(Some(4), 2_500_000), (None, 0)] {
        let mut endpoint = Endpoint::new(([127, 0, 0, 1], 1).into());
        endpoint.slots = slots;
        let state = state(vec![endpoint], |_| {});
        let ticket = || Ticket::new(state.clone(), state.endpoints[0].clone(), 0);
        let pass = |ms| tokio::time::advance(Duration::from_millis(ms));
        let first = ticket();
        pass(1_000).await;
        let mut second = ticket();
        pass(500).await;
        drop(first);
        pass(500).await;
        second.set_aside();
        pass(1_000).await;
        drop(second);
        assert_eq!(state.live.busy_us.load(Relaxed), expected_us);
    }
}
