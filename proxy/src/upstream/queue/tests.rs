use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use towpath_policies::model::{Class, Endpoint, EndpointSet, Protocol, Queue as Terms, Service};

use super::{Estimate, LONGEST_US, Turn, UNKNOWN_US, Waiting, Want, idle_slot, join};
use crate::upstream::{
    ServiceState, now_ms, now_us,
    pick::{self, Ask, Tried},
    reconcile, retire,
};

fn service(queue: Option<Terms>, endpoints: u16) -> (Arc<Service>, EndpointSet) {
    let mut service = Service::new("queued", Protocol::Http1);
    service.admission.queue = queue;
    let endpoints = (1..=endpoints).map(|n| Endpoint::new(([127, 0, 0, 1], n).into())).collect();
    (Arc::new(service), EndpointSet::new("queued".into(), endpoints))
}

fn state(terms: Terms, endpoints: u16) -> Arc<ServiceState> {
    let (service, set) = service(Some(terms), endpoints);
    reconcile(None, service, &set, 1).unwrap()
}

fn ask(state: &Arc<ServiceState>, class: Class, tried: Tried) -> Result<Waiting, Duration> {
    let start_by_us = now_us() + 60_000_000;
    let want = Want { class, tenant: 0, bytes: 1, length_us: 1000, start_by_us, again: false };
    let terms = state.spec.admission.queue.unwrap_or_default();
    join(state, &terms, want, (tried, Ask::default()), Arc::default())
}

fn wait(state: &Arc<ServiceState>) -> Waiting {
    ask(state, Class::Bulk, Tried::default()).unwrap()
}

fn look(waiting: &mut Waiting) -> Poll<Turn> {
    waiting.poll(&mut Context::from_waker(Waker::noop()))
}

fn slot(waiting: &mut Waiting) -> Box<super::Slot> {
    match look(waiting) {
        Poll::Ready(Turn::Slot(slot)) => slot,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_slot_is_taken_until_its_guard_is_dropped_and_then_goes_to_who_waits() {
    let state = state(Terms::default(), 1);
    let (mut first, mut second) = (wait(&state), wait(&state));
    let held = slot(&mut first);
    assert!(look(&mut second).is_pending());
    assert_eq!(state.live.queued(), 1);
    drop(held);
    slot(&mut second);
    assert_eq!(state.live.queued(), 0);
    assert_eq!(state.endpoints[0].live.slots_used.load(Relaxed), 0);
}

#[test]
fn whoever_goes_away_leaves_its_place_or_its_slot_to_others() {
    let state = state(Terms::default(), 1);
    let mut first = wait(&state);
    let (second, third, mut fourth) = (wait(&state), wait(&state), wait(&state));
    drop(third);
    let held = slot(&mut first);
    // The second is given the slot and never looks.
    drop(held);
    drop(second);
    slot(&mut fourth);
    assert_eq!(state.live.queued(), 0);
    assert_eq!(state.endpoints[0].live.slots_used.load(Relaxed), 0);
}

#[test]
fn who_tried_an_endpoint_waits_for_another_while_that_is_only_busy() {
    let state = state(Terms::default(), 2);
    let (mut first, mut second) = (wait(&state), wait(&state));
    let (first, second) = (slot(&mut first), slot(&mut second));
    let mut tried = Tried::default();
    tried.add(&first.endpoint);
    let mut again = ask(&state, Class::Bulk, tried).unwrap();
    let other = second.endpoint.clone();
    drop(first);
    assert!(look(&mut again).is_pending(), "not there again");
    let mut newcomer = wait(&state);
    let newcomer = slot(&mut newcomer);
    drop(second);
    assert_eq!(slot(&mut again).endpoint.spec, other.spec);
    drop(newcomer);
    // Where there is no other, the same has to do.
    tried.add(&other);
    slot(&mut ask(&state, Class::Bulk, tried).unwrap());
}

#[test]
fn endpoints_that_are_ejected_or_unhealthy_offer_no_slots() {
    let state = state(Terms::default(), 3);
    state.endpoints[0].live.ejected_until_ms.store(u64::MAX, Relaxed);
    state.endpoints[1].live.probe_healthy.store(false, Relaxed);
    let (mut first, mut second) = (wait(&state), wait(&state));
    assert_eq!(slot(&mut first).endpoint.spec, state.endpoints[2].spec);
    let held = slot(&mut second);
    let mut third = wait(&state);
    assert!(look(&mut third).is_pending());
    state.endpoints[1].live.probe_healthy.store(true, Relaxed);
    state.live.kick();
    assert_eq!(slot(&mut third).endpoint.spec, state.endpoints[1].spec);
    drop(held);
}

/// With a thousand that wait, an endpoint that is out would else be offered to each at each kick.
#[test]
fn nobody_is_asked_while_only_endpoints_are_free_that_take_nobody() {
    let state = state(Terms::default(), 2);
    let [out, busy] = &*state.endpoints else { panic!("two") };
    for (name, ejected, well, panics, slots, seats) in [
        ("one is free", false, true, false, [0, 1], true),
        ("both are busy", false, true, false, [1, 1], false),
        ("the free one is ejected", true, true, false, [0, 1], false),
        ("and in panic that is ignored", true, true, true, [0, 1], true),
        ("the free one is ill", false, false, false, [0, 1], false),
    ] {
        out.live.ejected_until_ms.store(if ejected { u64::MAX } else { 0 }, Relaxed);
        out.live.probe_healthy.store(well, Relaxed);
        state.live.panics.store(panics, Relaxed);
        out.live.slots_used.store(slots[0], Relaxed);
        busy.live.slots_used.store(slots[1], Relaxed);
        assert_eq!(pick::any_seat(&state, now_ms()), seats, "{name}");
    }
    // When none is left they are not heeded, noticed or not.
    busy.live.probe_healthy.store(false, Relaxed);
    assert!(pick::any_seat(&state, now_ms()));
    busy.live.probe_healthy.store(true, Relaxed);
    busy.live.slots_used.store(0, Relaxed);
    busy.live.requests.store(1, Relaxed);
    assert!(!pick::any_seat(&state, now_ms()), "sent without a queue");
}

#[test]
fn a_change_of_the_configuration_while_requests_wait_loses_nobody() {
    let old = state(Terms::default(), 1);
    let mut all: Vec<_> = (0..5).map(|_| wait(&old)).collect();
    let mut held = vec![slot(&mut all[0])];
    // Another slot.
    let (spec, mut set) = service(Some(Terms { slots: 2, ..Terms::default() }), 1);
    let new = reconcile(Some(&old), spec.clone(), &set, 1).unwrap();
    held.push(slot(&mut all[1]));
    assert!(look(&mut all[2]).is_pending());
    // Another endpoint, with a number of its own.
    set.endpoints.push(Endpoint { slots: Some(1), ..Endpoint::new(([127, 0, 0, 1], 9).into()) });
    let new = reconcile(Some(&new), spec.clone(), &set, 1).unwrap();
    held.push(slot(&mut all[2]));
    assert!(look(&mut all[3]).is_pending());
    // No endpoints at all, and then one.
    let none = EndpointSet::new("queued".into(), vec![]);
    let new = reconcile(Some(&new), spec.clone(), &none, 1).unwrap();
    held.clear();
    assert!(look(&mut all[3]).is_pending());
    let new = reconcile(Some(&new), spec, &set, 1).unwrap();
    let third = slot(&mut all[3]);
    assert!(matches!(look(&mut all[4]), Poll::Ready(Turn::Slot(_))));
    // No queue.
    let mut more: Vec<_> = (0..4).map(|_| wait(&new)).collect();
    let (spec, set) = service(None, 1);
    let new = reconcile(Some(&new), spec, &set, 1).unwrap();
    let free = more
        .iter_mut()
        .filter_map(|w| matches!(look(w), Poll::Ready(Turn::Free)).then_some(()))
        .count();
    assert!(free >= 2, "those that had no slot yet go on without: {free}");
    drop((third, more));
    assert_eq!(new.live.queued(), 0);
}

#[test]
fn when_the_service_goes_nobody_waits_for_it_any_longer() {
    let state = state(Terms::default(), 1);
    let (mut first, mut second) = (wait(&state), wait(&state));
    let _held = slot(&mut first);
    retire(&state);
    assert!(matches!(look(&mut second), Poll::Ready(Turn::Free)));
}

#[test]
fn the_better_class_displaces_the_worse_and_both_are_told_when_to_come_again() {
    let state = state(Terms { max_requests: 1, ..Terms::default() }, 1);
    let mut first = wait(&state);
    let _held = slot(&mut first);
    let mut bulk = wait(&state);
    assert!(ask(&state, Class::Bulk, Tried::default()).unwrap_err() >= Duration::from_secs(1));
    let mut interactive = ask(&state, Class::Interactive, Tried::default()).unwrap();
    let Poll::Ready(Turn::Displaced(wait)) = look(&mut bulk) else { panic!("still there") };
    assert!(wait >= Duration::from_secs(1));
    assert!(look(&mut interactive).is_pending());
}

#[test]
fn requests_sent_without_a_queue_count_when_there_is_one() {
    let (spec, set) = service(None, 1);
    let old = reconcile(None, spec, &set, 1).unwrap();
    old.endpoints[0].live.requests.fetch_add(1, Relaxed);
    let (spec, set) = service(Some(Terms::default()), 1);
    let new = reconcile(Some(&old), spec, &set, 1).unwrap();
    let mut first = wait(&new);
    assert!(look(&mut first).is_pending());
    assert!(idle_slot(&new, Ask::default()).is_none(), "and a copy takes nobody's place");
    new.endpoints[0].live.requests.fetch_sub(1, Relaxed);
    new.live.kick();
    drop(slot(&mut first));
    assert!(idle_slot(&new, Ask::default()).is_some());
    assert_eq!(new.endpoints[0].live.slots_used.load(Relaxed), 0);
}

/// Several threads, as workers are: no slot is given twice, and none is lost.
#[test]
fn from_many_threads_no_slot_is_used_twice_and_everybody_is_served() {
    const THREADS: usize = 4;
    const EACH: usize = 400;
    let state = state(Terms { max_requests: 10_000, ..Terms::default() }, 3);
    let busy: Arc<[AtomicU32]> = (0..3).map(|_| AtomicU32::new(0)).collect();
    let served = Arc::new(AtomicU32::new(0));
    let work = |thread: u64| {
        let (state, busy, served) = (state.clone(), busy.clone(), served.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        std::thread::spawn(move || {
            runtime.block_on(async move {
                let mut random = fastrand::Rng::with_seed(thread);
                let mut tasks = tokio::task::JoinSet::new();
                for _ in 0..EACH {
                    let (state, busy, served) = (state.clone(), busy.clone(), served.clone());
                    let gives_up = random.u8(..10) == 0;
                    let yields = random.u8(..5);
                    tasks.spawn(async move {
                        let mut waiting = wait(&state);
                        if gives_up {
                            tokio::task::yield_now().await;
                            served.fetch_add(1, Relaxed);
                            return;
                        }
                        let Turn::Slot(slot) = poll_fn(|cx| waiting.poll(cx)).await else {
                            panic!("no slot");
                        };
                        let port = slot.endpoint.spec.address.port();
                        let busy = &busy[usize::from(port) - 1];
                        assert_eq!(busy.fetch_add(1, Relaxed), 0, "one at a time");
                        for _ in 0..yields {
                            tokio::task::yield_now().await;
                        }
                        busy.fetch_sub(1, Relaxed);
                        served.fetch_add(1, Relaxed);
                    });
                }
                while let Some(done) = tasks.join_next().await {
                    done.unwrap();
                }
            });
        })
    };
    let threads: Vec<_> = (0..THREADS as u64).map(work).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(served.load(Relaxed) as usize, THREADS * EACH);
    assert_eq!(state.live.queued(), 0);
    assert!(state.endpoints.iter().all(|e| e.live.slots_used.load(Relaxed) == 0));
}

#[test]
fn a_request_is_expected_to_take_what_others_took_in_proportion_to_its_size() {
    let estimate = Estimate::default();
    assert_eq!(estimate.predict_us(None), UNKNOWN_US);
    assert!(estimate.predict_us(Some(1 << 30)) > 10_000_000, "10 s for a GiB of nothing known");
    for _ in 0..100 {
        estimate.learn(2_000_000, 1 << 20);
    }
    let of = |bytes| estimate.predict_us(bytes);
    assert!((1_900_000..=2_000_000).contains(&of(None)), "{}", of(None));
    assert!(of(Some(2 << 20)).abs_diff(2 * of(Some(1 << 20))) < 20_000);
    assert!(of(Some(u64::MAX)) <= 64 * 2_000_000, "whatever is declared");
    assert!(of(Some(0)) >= 2_000_000 / 65);
    estimate.learn(u64::MAX, 0);
    assert_eq!(of(None), LONGEST_US);
}
