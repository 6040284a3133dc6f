//! What a pick by predicted completion time costs, and what it costs to learn.
//!
//! `cargo bench -p towpath-proxy --bench pick`. Allocations are counted: a pick makes none.

use std::{hint::black_box, sync::Arc};

use divan::{AllocProfiler, Bencher};
use http::{HeaderMap, HeaderName, HeaderValue};
use towpath_policies::model::{
    Balancer, Coordinates, Endpoint, EndpointSet, OriginSource, Protocol, Service,
};
use towpath_proxy::upstream::{
    ServiceState,
    admission::Ticket,
    now_ms,
    pick::{Ask, Tried, pick},
    reconcile,
};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const SIZES: [u32; 4] = [3, 30, 1000, 10_000];
const REGIONS: [(&str, f64, f64); 6] = [
    ("eu-central", 50.1, 8.7),
    ("us-east", 39.0, -77.5),
    ("us-west", 45.6, -121.2),
    ("ap-south", 19.1, 72.9),
    ("ap-northeast", 35.7, 139.7),
    ("sa-east", -23.5, -46.6),
];
const ORIGIN: HeaderName = HeaderName::from_static("x-origin");

fn main() {
    divan::main();
}

/// Endpoints of which all is measured, with work in flight.
fn state(count: u32, balancer: Balancer) -> Arc<ServiceState> {
    let mut service = Service::new("bench", Protocol::Http2);
    service.balancer = balancer;
    service.prediction.origin = Some(OriginSource::Header(ORIGIN.to_string()));
    let endpoint = |n: u32| {
        let [_, a, b, c] = (n + 1).to_be_bytes();
        let (region, latitude, longitude) = REGIONS[n as usize % REGIONS.len()];
        let mut endpoint = Endpoint::new(([10, a, b, c], 80).into());
        region.clone_into(&mut endpoint.locality.region);
        endpoint.coordinates = Some(Coordinates { latitude, longitude });
        endpoint
    };
    let set =
        EndpointSet { service: "bench".into(), endpoints: (0..count).map(endpoint).collect() };
    let state = reconcile(None, Arc::new(service), &set, 1).expect("no TLS");
    for endpoint in &state.endpoints {
        let mut ticket = Ticket::new(state.clone(), endpoint.clone(), 1 << 20);
        ticket.answered(1 << 20, false);
        ticket.add_bytes(fastrand::u64(..1 << 24));
        // It stays in flight.
        std::mem::forget(ticket);
    }
    state
}

fn ask(state: &ServiceState) -> Ask {
    let near = HeaderValue::from_static("48.1,11.6");
    Ask {
        bytes: 1 << 20,
        origin: state.origin(&HeaderMap::from_iter([(ORIGIN, near)])),
        ..Ask::default()
    }
}

#[divan::bench(args = SIZES)]
fn completion_time(bencher: Bencher<'_, '_>, endpoints: u32) {
    let state = state(endpoints, Balancer::CompletionTime);
    let (ask, now) = (ask(&state), now_ms());
    bencher.bench_local(|| pick(&state, black_box(&Tried::default()), now, ask).map(Arc::as_ptr));
}

/// The policy that looks at two drawn at random, beside it.
#[divan::bench(args = SIZES)]
fn bytes_in_flight(bencher: Bencher<'_, '_>, endpoints: u32) {
    let state = state(endpoints, Balancer::BytesInFlight);
    let (ask, now) = (ask(&state), now_ms());
    bencher.bench_local(|| pick(&state, black_box(&Tried::default()), now, ask).map(Arc::as_ptr));
}

/// One endpoint's health changes.
#[divan::bench(args = SIZES)]
fn report(bencher: Bencher<'_, '_>, endpoints: u32) {
    let state = state(endpoints, Balancer::CompletionTime);
    let now = now_ms();
    bencher
        .with_inputs(|| (fastrand::usize(..state.endpoints.len()), fastrand::f64()))
        .bench_local_values(|(at, factor)| state.endpoints[at].live.reported(factor, now));
}

/// A try begins and ends, and what it took is learned.
#[divan::bench(args = SIZES)]
fn learn(bencher: Bencher<'_, '_>, endpoints: u32) {
    let state = state(endpoints, Balancer::CompletionTime);
    bencher
        .with_inputs(|| state.endpoints[fastrand::usize(..state.endpoints.len())].clone())
        .bench_local_values(|endpoint| {
            let mut ticket = Ticket::new(state.clone(), endpoint, 1 << 20);
            ticket.answered(1 << 20, false);
        });
}

/// Where data comes from, by its coordinates.
#[divan::bench]
fn origin(bencher: Bencher<'_, '_>) {
    let state = state(30, Balancer::CompletionTime);
    let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static("48.1374,11.5755"))]);
    bencher.bench_local(|| state.origin(black_box(&headers)));
}
