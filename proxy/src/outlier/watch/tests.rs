use std::sync::Arc;

use towpath_policies::model::{Endpoint, EndpointSet, Goodput, Health, Latency, Protocol, Service};

use super::*;
use crate::{
    outlier::{Failure, Outcome, report},
    upstream::{admission::Ticket, reconcile},
};

type Services = BTreeMap<String, Arc<ServiceState>>;

fn services(name: &str, endpoints: u16, change: impl FnOnce(&mut Service)) -> Services {
    let mut service = Service::new(name, Protocol::Http1);
    service.outlier = Some(Outlier { goodput: Some(Goodput::default()), ..Outlier::default() });
    change(&mut service);
    let endpoints = (1..=endpoints).map(|n| Endpoint::new(([127, 0, 0, 1], n).into())).collect();
    let set = EndpointSet::new(name.into(), endpoints);
    let state = reconcile(None, Arc::new(service), &set, 1).unwrap();
    BTreeMap::from([(name.to_owned(), state)])
}

/// The time at which a watch looks.
struct Clock(Watch, u64);

impl Clock {
    fn new() -> Self {
        Self(Watch::default(), now_ms())
    }

    fn tick(&mut self, services: &Services) {
        self.1 += TICK_MS;
        self.0.tick(services, self.1);
    }
}

fn reasons(service: &ServiceState) -> Vec<Option<&'static str>> {
    let endpoints = service.endpoints.iter();
    endpoints.map(|e| e.live.last_ejection.load().as_ref().map(|e| e.reason)).collect()
}

fn ticket(service: &Arc<ServiceState>, at: usize) -> Ticket {
    Ticket::new(service.clone(), service.endpoints[at].clone(), 0)
}

#[test]
fn a_download_that_falls_to_a_tenth_is_seen_within_two_seconds() {
    let services = services("falls", 3, |_| {});
    let service = &services["falls"];
    let mut tickets: Vec<_> = (0..3).map(|at| ticket(service, at)).collect();
    tickets.iter_mut().for_each(|ticket| ticket.answered(1 << 40, false));
    let mut clock = Clock::new();
    for tick in 0..100 {
        for (at, ticket) in tickets.iter_mut().enumerate() {
            ticket.received(if at == 1 && tick >= 60 { 50_000 } else { 500_000 });
            ticket.download_looked_at(false);
            ticket.received(1_000);
            ticket.download_looked_at(true);
        }
        clock.tick(&services);
        assert!(tick >= 60 || reasons(service) == [None; 3], "at {tick}");
    }
    assert_eq!(reasons(service), [None, Some("goodput"), None]);
    let why = service.endpoints[1].live.last_ejection.load_full().unwrap();
    assert!(why.why.contains("MB/s"), "{}", why.why);
    let warm = service.endpoints[1].live.warm_from_ms.load(Relaxed);
    assert_eq!(warm, service.endpoints[1].live.ejected_until_ms.load(Relaxed));
    assert!(service.live.recovering.load(Relaxed), "it will not have all of its weight");
    clock.1 = warm + 60_000;
    (0..TICKS_PER_ROUND).for_each(|_| clock.tick(&services));
    assert!(!service.live.recovering.load(Relaxed));
}

#[test]
fn an_upload_is_judged_by_what_the_endpoint_takes_and_a_slow_client_is_not() {
    for (blocked, expected) in [(true, Some("goodput")), (false, None)] {
        let services = services("uploads", 3, |_| {});
        let service = &services["uploads"];
        let mut tickets: Vec<_> = (0..3).map(|at| ticket(service, at)).collect();
        let mut clock = Clock::new();
        for tick in 0..80 {
            for (at, ticket) in tickets.iter_mut().enumerate() {
                let slow = at == 1 && tick >= 20;
                ticket.sent(if slow { 20_000 } else { 120_000 });
                ticket.upload_looked_at(!slow || blocked, false);
            }
            clock.tick(&services);
        }
        assert_eq!(reasons(service), [None, expected, None], "{blocked}");
    }
}

#[test]
fn what_is_small_or_of_unknown_length_is_not_judged() {
    for declared in [0, 100_000] {
        let services = services("small", 3, |_| {});
        let service = &services["small"];
        let mut tickets: Vec<_> = (0..3).map(|at| ticket(service, at)).collect();
        let mut clock = Clock::new();
        for tick in 0..100 {
            for (at, ticket) in tickets.iter_mut().enumerate() {
                ticket.answered(if at == 1 { declared } else { 1 << 30 }, false);
                ticket.received(if at == 1 { u64::from(tick % 20 == 0) } else { 100_000 });
                ticket.download_looked_at(true);
            }
            clock.tick(&services);
        }
        assert_eq!(reasons(service), [None; 3]);
    }
}

#[test]
fn success_and_latency_are_compared_over_the_interval() {
    let services = services("conduct", 4, |s| {
        let outlier = s.outlier.insert(Outlier::default());
        outlier.consecutive_failures = u32::MAX;
        outlier.latency = Some(Latency::default());
    });
    let service = &services["conduct"];
    let mut clock = Clock::new();
    let held = ticket(service, 0);
    for tick in 0..250 {
        for (at, endpoint) in service.endpoints.iter().enumerate() {
            drop(ticket(service, at));
            if at == 1 && tick % 4 == 0 {
                report(service, endpoint, Outcome::Failure(Failure::Status));
            }
            let millis = if at == 2 { 600 } else { 20 };
            endpoint.live.meter.answered_after(Duration::from_millis(millis));
        }
        clock.tick(&services);
        assert!(tick > 190 || reasons(service) == [None; 4], "before the interval is over");
    }
    drop(held);
    assert_eq!(reasons(service), [None, Some("success_rate"), Some("latency"), None]);
}

#[test]
fn a_service_that_nobody_uses_is_forgotten() {
    let services = services("idle", 3, |s| {
        s.outlier.as_mut().unwrap().interval = Duration::from_secs(1);
    });
    let mut clock = Clock::new();
    clock.tick(&services);
    assert!(clock.0.services.is_empty());
    let held = ticket(&services["idle"], 0);
    clock.tick(&services);
    assert_eq!(clock.0.services.len(), 1);
    drop(held);
    (0..60).for_each(|_| clock.tick(&services));
    assert!(clock.0.services.is_empty());
}

#[test]
fn with_too_few_usable_ones_ejections_are_ignored() {
    for (usable, allowed, percent, expected) in [
        (3, 10, 30, false),
        (2, 10, 30, true),
        (0, 3, 10, true),
        (1, 3, 10, false),
        (0, 3, 0, false),
        (0, 0, 50, false),
    ] {
        let terms = Recovery { panic_percent: percent, ..Recovery::default() };
        assert_eq!(panics(usable, allowed, &terms), expected, "{usable} of {allowed}, {percent} %");
    }
    let services = services("panics", 4, |s| s.recovery.panic_percent = 60);
    let service = &services["panics"];
    let mut clock = Clock::new();
    let mut panics = |services: &Services| {
        (0..TICKS_PER_ROUND).for_each(|_| clock.tick(services));
        services["panics"].live.panics.load(Relaxed)
    };
    assert!(!panics(&services));
    for endpoint in &service.endpoints[..2] {
        endpoint.live.probe_healthy.store(false, Relaxed);
    }
    assert!(panics(&services));
    service.endpoints[0].live.probe_healthy.store(true, Relaxed);
    assert!(!panics(&services));
    assert_eq!(service.endpoints[0].spec.health, Health::Unknown);
}

#[test]
fn priorities_that_bear_all_together_do_not_panic() {
    // As Envoy documents it: 4 of 10 and 4 of 10 bear 56 % and the rest; 2 and 2 not all.
    for (usable, panics, expected) in [(4, false, [0.56, 0.44]), (2, true, [0.5, 0.5])] {
        let mut service = Service::new("together", Protocol::Http1);
        service.recovery.panic_percent = 50;
        let endpoint = |n: u16| Endpoint {
            priority: u32::from(n > 10),
            ..Endpoint::new(([127, 0, 0, 1], n).into())
        };
        let mut set = EndpointSet::new("together".into(), (1..=20).map(endpoint).collect());
        set.spread.overprovisioning_percent = Some(140);
        let state = reconcile(None, Arc::new(service), &set, 1).unwrap();
        for half in state.endpoints.chunks(10) {
            half[usable..].iter().for_each(|e| e.live.probe_healthy.store(false, Relaxed));
        }
        let services = BTreeMap::from([("together".to_owned(), state.clone())]);
        let mut clock = Clock::new();
        (0..100).for_each(|_| clock.tick(&services));
        assert_eq!(state.live.panics.load(Relaxed), panics, "{usable}");
        let shares: Vec<f64> = state.shares().unwrap().iter().map(|share| share.2).collect();
        let near = |(share, expected): (&f64, &f64)| (share - expected).abs() < 0.001;
        assert!(shares.iter().zip(&expected).all(near), "{usable}: {shares:?}");
    }
}
