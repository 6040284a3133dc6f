//! What a pick by predicted completion time costs, and what it costs to learn.
//!
//! `cargo bench -p towpath-proxy --bench pick`. Allocations are counted: a pick makes none.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use divan::{AllocProfiler, Bencher};
use http::{HeaderMap, HeaderName, HeaderValue};
use towpath_policies::model::{
    Balancer, Class, Coordinates, Endpoint, EndpointSet, OriginSource, Protocol, Region, Service,
    Terms,
};
use towpath_proxy::{
    geoip::ClientPlaces,
    upstream::{
        ServiceState, Site,
        admission::Ticket,
        now_ms,
        pick::{Ask, Tried, pick},
        reconcile_at,
    },
};

#[global_allocator]
static ALLOCATOR: AllocProfiler<mimalloc::MiMalloc> = AllocProfiler::new(mimalloc::MiMalloc);

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
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

#[path = "../src/geoip/writer.rs"]
mod geoip_writer;

use geoip_writer::{city, database};

fn main() {
    divan::main();
}

fn service(balancer: Balancer) -> Service {
    let mut service = Service::new("bench", Protocol::Http2);
    service.balancer = balancer;
    service.prediction.origin = vec![OriginSource::Header(ORIGIN.to_string())];
    service
}

fn state(count: u32, balancer: Balancer) -> Arc<ServiceState> {
    at_work(service(balancer), &EndpointSet::new("bench".into(), endpoints(count)))
}

/// Endpoints of which all is measured, with work in flight.
fn at_work(service: Service, set: &EndpointSet) -> Arc<ServiceState> {
    let state = view(service, set, None);
    for endpoint in &state.endpoints {
        let mut ticket = Ticket::new(state.clone(), endpoint.clone(), 1 << 20);
        ticket.answered(1 << 20, false);
        ticket.add_bytes(fastrand::u64(..1 << 24));
        // It stays in flight.
        std::mem::forget(ticket);
    }
    state
}

fn endpoints(count: u32) -> Vec<Endpoint> {
    let endpoint = |n: u32| {
        let [_, a, b, c] = (n + 1).to_be_bytes();
        let (region, latitude, longitude) = REGIONS[n as usize % REGIONS.len()];
        let mut endpoint = Endpoint::new(([10, a, b, c], 80).into());
        region.clone_into(&mut endpoint.locality.region);
        endpoint.coordinates = Some(Coordinates { latitude, longitude });
        endpoint
    };
    (0..count).map(endpoint).collect()
}

fn view(
    service: Service,
    set: &EndpointSet,
    clients: Option<Arc<ClientPlaces>>,
) -> Arc<ServiceState> {
    let site = Site { workers: 1, here: None, clients };
    reconcile_at(&site, None, Arc::new(service), set).expect("no TLS")
}

fn ask(state: &ServiceState) -> Ask {
    let near = HeaderValue::from_static("48.1,11.6");
    Ask {
        bytes: 1 << 20,
        origin: state.origin(&HeaderMap::from_iter([(ORIGIN, near)]), CLIENT),
        ..Ask::default()
    }
}

#[divan::bench(args = SIZES)]
fn completion_time(bencher: Bencher<'_, '_>, endpoints: u32) {
    let state = state(endpoints, Balancer::CompletionTime);
    let (ask, now) = (ask(&state), now_ms());
    bencher.bench_local(|| pick(&state, black_box(&Tried::default()), now, ask).map(Arc::as_ptr));
}

/// For freight, where grams and cents count and are known of each region.
#[divan::bench(args = SIZES)]
fn completion_time_of_bulk(bencher: Bencher<'_, '_>, endpoints: u32) {
    let mut service = service(Balancer::CompletionTime);
    service.prediction.terms = Terms { carbon: 60.0, price: 30.0, ..Terms::default() };
    let mut set = EndpointSet::new("bench".into(), self::endpoints(endpoints));
    for (nth, (name, ..)) in (1..).zip(REGIONS) {
        let region = Region {
            carbon_intensity: Some(f64::from(nth) * 100.0),
            egress: [(Region::ANY.to_owned(), f64::from(nth) * 2.0)].into(),
            ..Region::default()
        };
        set.regions.insert(name.to_owned(), region);
    }
    let state = at_work(service, &set);
    let (ask, now) = (Ask { class: Class::Bulk, ..ask(&state) }, now_ms());
    bencher.bench_local(|| pick(&state, black_box(&Tried::default()), now, ask).map(Arc::as_ptr));
}

/// The policy that looks at two drawn at random, beside it.
#[divan::bench(args = SIZES)]
fn bytes_in_flight(bencher: Bencher<'_, '_>, endpoints: u32) {
    let state = state(endpoints, Balancer::BytesInFlight);
    let (ask, now) = (ask(&state), now_ms());
    bencher.bench_local(|| pick(&state, black_box(&Tried::default()), now, ask).map(Arc::as_ptr));
}

/// One endpoint moves to another address.
#[divan::bench(args = SIZES)]
fn reconcile(bencher: Bencher<'_, '_>, endpoints: u32) {
    let service = Arc::new(service(Balancer::CompletionTime));
    let here = EndpointSet::new("bench".into(), self::endpoints(endpoints));
    let mut there = here.clone();
    there.endpoints[0].address.set_port(81);
    let site = Site { workers: 1, ..Site::default() };
    let view =
        |old: Option<&_>, set: &_| reconcile_at(&site, old, service.clone(), set).expect("no TLS");
    let (mut state, mut turn) = (view(None, &here), 0);
    bencher.bench_local(|| {
        turn += 1;
        state = view(Some(&state), [&here, &there][turn % 2]);
    });
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

#[divan::bench_group(name = "origin")]
mod origins {
    use super::*;

    /// Where data comes from, by its coordinates.
    #[divan::bench]
    fn origin_of_coordinates(bencher: Bencher<'_, '_>) {
        let state = state(30, Balancer::CompletionTime);
        let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static("48.1374,11.5755"))]);
        bencher.bench_local(|| state.origin(black_box(&headers), CLIENT));
    }

    /// Where data comes from, by its client's address: one of 65,536 networks, half of them by IPv6.
    #[divan::bench(args = [4, 6])]
    fn origin_of_client(bencher: Bencher<'_, '_>, version: u8) {
        let networks = |n: u16| {
            let [a, b] = n.to_be_bytes();
            let place = city(f64::from(a) / 3.0, f64::from(b) - 128.0);
            let v6 = Ipv6Addr::new(0x2001, 0xdb8, n, 0, 0, 0, 0, 0);
            [([a | 1, b, a ^ b, 0].into(), 24, place.clone()), (IpAddr::V6(v6), 48, place)]
        };
        let file = std::env::temp_dir().join(format!("towpath-bench-{}.mmdb", std::process::id()));
        std::fs::write(&file, database(6, &(0..1 << 15).flat_map(networks).collect::<Vec<_>>()))
            .expect("a temporary file");
        let clients = Arc::new(ClientPlaces::open(&file).expect("a sound database"));
        std::fs::remove_file(&file).expect("it is there");
        let mut service = service(Balancer::CompletionTime);
        service.prediction.origin = vec![OriginSource::ClientAddress];
        let set = EndpointSet::new("bench".into(), endpoints(30));
        let state = view(service, &set, Some(clients));
        let headers = HeaderMap::new();
        let client = || {
            let n = fastrand::u16(..1 << 15);
            let [a, b] = n.to_be_bytes();
            match version {
                4 => IpAddr::from([a | 1, b, a ^ b, 7]),
                _ => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, n, 1, 2, 3, 4, 5)),
            }
        };
        bencher
            .with_inputs(client)
            .bench_local_values(|client| state.origin(black_box(&headers), client));
    }
}
