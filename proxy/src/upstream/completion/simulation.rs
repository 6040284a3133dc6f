//! Whole traces through the real pick and the real learning, in virtual time and from a seed:
//! servers that work so many transfers at a time, links with a delay and a rate, sizes from a heavy tail.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use towpath_policies::model::{
    Balancer, Class, Coordinates, Endpoint, EndpointSet, Prediction, Protocol, Region, Service,
    Terms,
};

use super::{learn::Sample, places::Cell};
use crate::upstream::{
    ServiceState, now_ms,
    pick::{Ask, Tried, pick},
    reconcile,
};

const REGIONS: [(&str, f64, f64); 3] =
    [("eu", 50.1, 8.7), ("us", 39.0, -77.5), ("ap", 1.35, 103.8)];
/// Seconds there and back, and bytes per second, by the region of the data and that of the server.
const LINKS: [[(f64, f64); 3]; 3] = [
    [(0.001, 500e6), (0.09, 40e6), (0.16, 20e6)],
    [(0.09, 40e6), (0.001, 500e6), (0.22, 15e6)],
    [(0.16, 20e6), (0.22, 15e6), (0.001, 500e6)],
];
/// Bytes per second, in turn.
const SPEEDS: [f64; 4] = [20e6, 40e6, 80e6, 40e6];
/// g/kWh of the regions in turn: a grid of wind and water, one of gas, one of coal.
const INTENSITIES: [f64; 3] = [40.0, 380.0, 620.0];
/// A request takes so many seconds besides.
const OVERHEAD: f64 = 0.002;

struct Setting {
    balancer: Balancer,
    terms: Terms,
    servers: u32,
    proxies: usize,
    jobs: u32,
    /// Of all servers' capacity.
    load: f64,
    seed: u64,
    /// The share of the jobs that tolerate delay.
    background: f64,
    /// Transfers that a server works at a time, each getting as much as the others.
    slots: usize,
    /// At half time the third server falls to a tenth, and says so after these seconds.
    falls: Option<f64>,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            balancer: Balancer::CompletionTime,
            terms: Terms::default(),
            servers: 12,
            proxies: 1,
            jobs: 20_000,
            load: 0.6,
            seed: 1,
            background: 0.0,
            slots: 1,
            falls: None,
        }
    }
}

#[derive(Default)]
struct Outcome {
    /// Seconds of each job, sorted.
    seconds: Vec<f64>,
    /// When each job was sent, and to which server.
    sent: Vec<(f64, u32)>,
    /// The seconds of each by its class, and what it emitted.
    ended: Vec<Ended>,
    /// What the first proxy learned of the order in which servers work.
    discipline: f32,
}

struct Ended {
    class: Class,
    region: usize,
    bytes: u64,
    seconds: f64,
    grams: f64,
}

/// A job under way at a server.
struct Under {
    proxy: usize,
    server: usize,
    from: usize,
    class: Class,
    origin: Cell,
    bytes: u64,
    ahead: u64,
    load: u32,
    since: f64,
}

/// A server: what it has in work, in bytes left, and what waits.
struct Shop {
    speed: f64,
    now: f64,
    active: Vec<(usize, f64)>,
    waiting: VecDeque<(usize, f64)>,
    /// When it is to be looked at, in microseconds; other looks are old.
    due: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(usize),
    /// The server may have done one.
    Works(usize),
    Answers(usize),
}

struct World {
    proxies: Vec<Arc<ServiceState>>,
    shops: Vec<Shop>,
    slots: usize,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    under: Vec<Option<Under>>,
    outcome: Outcome,
    base_ms: u64,
    background: f64,
}

fn speed(server: u32) -> f64 {
    SPEEDS[server as usize / REGIONS.len() % SPEEDS.len()]
}

/// From 64 KiB to 64 MiB, half of the bytes in the largest twentieth.
fn size() -> u64 {
    let (low, high, alpha) = (65_536_f64, 67_108_864_f64, 1.1);
    let spread = 1.0 - (low / high).powf(alpha);
    let size = low / (1.0 - fastrand::f64() * spread).powf(1.0 / alpha);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "64 MiB at most")]
    let size = size as u64;
    size
}

fn proxy(setting: &Setting) -> Arc<ServiceState> {
    let mut service = Service::new("simulated", Protocol::Http1);
    service.balancer = setting.balancer;
    service.prediction.terms = setting.terms;
    let endpoint = |server: u32| {
        let [_, a, b, c] = (server + 1).to_be_bytes();
        let mut endpoint = Endpoint::new(([10, a, b, c], 80).into());
        let (region, latitude, longitude) = REGIONS[server as usize % REGIONS.len()];
        region.clone_into(&mut endpoint.locality.region);
        endpoint.coordinates = Some(Coordinates { latitude, longitude });
        endpoint
    };
    let endpoints = (0..setting.servers).map(endpoint).collect();
    let mut set = EndpointSet::new("simulated".into(), endpoints);
    set.regions = REGIONS
        .iter()
        .zip(INTENSITIES)
        .map(|((name, ..), intensity)| {
            let region = Region { carbon_intensity: Some(intensity), ..Region::default() };
            ((*name).to_owned(), region)
        })
        .collect();
    reconcile(None, Arc::new(service), &set, 1).unwrap()
}

fn run(setting: &Setting) -> Outcome {
    fastrand::seed(setting.seed);
    let mut world = World {
        proxies: (0..setting.proxies).map(|_| proxy(setting)).collect(),
        shops: (0..setting.servers).map(|server| Shop::new(speed(server))).collect(),
        slots: setting.slots,
        events: BinaryHeap::new(),
        under: Vec::new(),
        outcome: Outcome::default(),
        base_ms: now_ms(),
        background: setting.background,
    };
    let capacity: f64 = world.shops.iter().map(|shop| shop.speed).sum();
    let mean: f64 = (0..10_000).map(|_| real(size())).sum::<f64>() / 10_000.0;
    let pause = mean / (capacity * setting.load);
    let half = pause * f64::from(setting.jobs) / 2.0;
    let (mut now, mut second, mut fallen, mut told) = (0.0, 0.0, false, false);
    for _ in 0..setting.jobs {
        now += -pause * (1.0 - fastrand::f64()).ln();
        world.go_on_until(now);
        if let Some(delay) = setting.falls {
            if now > half && !fallen {
                fallen = true;
                let shop = &mut world.shops[2];
                shop.work_until(now);
                shop.speed /= 10.0;
            }
            if now > half + delay && !told {
                told = true;
                let reported =
                    |p: &Arc<ServiceState>| p.endpoints[2].live.reported(0.1, world.ms(now));
                world.proxies.iter().for_each(reported);
            }
        }
        if now >= second + 1.0 {
            second = now.floor();
            world.proxies.iter().for_each(|proxy| proxy.forget(world.ms(second)));
        }
        world.send(now);
    }
    world.go_on_until(f64::INFINITY);
    world.outcome.seconds.sort_by(f64::total_cmp);
    if let Some(completion) = &world.proxies[0].completion {
        world.outcome.discipline = completion.experience.discipline.get();
    }
    world.outcome
}

impl World {
    fn ms(&self, now: f64) -> u64 {
        self.base_ms + micros(now) / 1000
    }

    fn send(&mut self, now: f64) {
        let proxy = fastrand::usize(..self.proxies.len());
        let from = fastrand::usize(..REGIONS.len());
        let bytes = size();
        let state = &self.proxies[proxy];
        let origin =
            state.completion.as_ref().and_then(|c| c.map.named(REGIONS[from].0.as_bytes()));
        let origin = origin.unwrap_or_default();
        let background = self.background > 0.0 && fastrand::f64() < self.background;
        let class = if background { Class::Background } else { Class::Interactive };
        let ask = Ask { bytes, origin, class, ..Ask::default() };
        let picked = pick(state, &Tried::default(), self.base_ms, ask).unwrap();
        let [_, a, b, c] = match picked.spec.address.ip() {
            std::net::IpAddr::V4(address) => address.octets(),
            std::net::IpAddr::V6(_) => unreachable!(),
        };
        let server = u32::from_be_bytes([0, a, b, c]) - 1;
        let load = picked.live.requests.fetch_add(1, Relaxed) + 1;
        let ahead = picked.live.bytes_in_flight.fetch_add(bytes, Relaxed);
        self.outcome.sent.push((now, server));
        let server = server as usize;
        let (round_trip, rate) = LINKS[from][server % REGIONS.len()];
        self.at(now + round_trip / 2.0 + real(bytes) / rate, Event::Arrives(self.under.len()));
        let since = now;
        let under =
            Under { proxy, server, from, class, origin: origin.cell, bytes, ahead, load, since };
        self.under.push(Some(under));
    }

    fn at(&mut self, seconds: f64, event: Event) {
        self.events.push(Reverse((micros(seconds), event)));
    }

    fn go_on_until(&mut self, now: f64) {
        while let Some(Reverse((at, event))) = self.events.peek().copied() {
            let due = at;
            #[expect(clippy::cast_precision_loss, reason = "days at most")]
            let at = at as f64 / 1e6;
            if at > now {
                return;
            }
            self.events.pop();
            match event {
                Event::Arrives(job) => {
                    let Some(Under { server, bytes, .. }) = self.under[job] else { continue };
                    self.works(server, at);
                    let shop = &mut self.shops[server];
                    shop.waiting.push_back((job, real(bytes) + OVERHEAD * shop.speed));
                    self.works(server, at);
                }
                Event::Works(server) if self.shops[server].due == due => self.works(server, at),
                Event::Works(_) => {}
                Event::Answers(job) => self.answer(job, at),
            }
        }
    }

    /// Works on until `now`, begins what there is room for, and says when it is to be looked at again.
    fn works(&mut self, server: usize, now: f64) {
        let slots = self.slots;
        let shop = &mut self.shops[server];
        shop.work_until(now);
        let done: Vec<usize> = shop.take_done();
        while shop.active.len() < slots
            && let Some(next) = shop.waiting.pop_front()
        {
            shop.active.push(next);
        }
        if let Some(next) = shop.next_end() {
            // Rounded up, or it might be looked at for ever.
            shop.due = micros(next) + 1;
            self.events.push(Reverse((shop.due, Event::Works(server))));
        }
        for job in done {
            let Some(Under { from, .. }) = self.under[job] else { continue };
            let (round_trip, _) = LINKS[from][server % REGIONS.len()];
            self.at(now + round_trip / 2.0, Event::Answers(job));
        }
    }

    fn answer(&mut self, job: usize, now: f64) {
        let Some(job) = self.under[job].take() else { return };
        let state = &self.proxies[job.proxy];
        let endpoint = &state.endpoints[job.server];
        let live = &endpoint.live;
        let load = live.requests.fetch_sub(1, Relaxed);
        live.bytes_in_flight.fetch_sub(job.bytes, Relaxed);
        let seconds = now - job.since;
        self.outcome.seconds.push(seconds);
        let region = job.server % REGIONS.len();
        let joules = real(job.bytes) * Prediction::DEFAULT_JOULES / 1e9;
        let grams = joules / 3.6e6 * INTENSITIES[region];
        let (class, bytes) = (job.class, job.bytes);
        self.outcome.ended.push(Ended { class, region, bytes, seconds, grams });
        let Some(completion) = &state.completion else { return };
        #[expect(clippy::cast_possible_truncation, reason = "a measurement")]
        let seconds = seconds as f32;
        let Under { origin, bytes, ahead, load: before, .. } = job;
        let load = (super::real(before.into()) + super::real(load.into())) / 2.0;
        let sample = Sample { origin, seconds, bytes, ahead, others: before - 1, load };
        completion.learn(endpoint, &sample);
    }
}

impl Shop {
    fn new(speed: f64) -> Self {
        Self { speed, now: 0.0, active: Vec::new(), waiting: VecDeque::new(), due: 0 }
    }

    /// Nothing ends before `now`, or but now.
    fn work_until(&mut self, now: f64) {
        let each = (now - self.now) * self.speed / real(self.active.len().max(1) as u64);
        self.active.iter_mut().for_each(|(_, left)| *left -= each);
        self.now = now;
    }

    fn take_done(&mut self) -> Vec<usize> {
        // Rounding may leave a crumb of a byte.
        let done = |(_, left): &(usize, f64)| *left < 0.01;
        let jobs = self.active.iter().filter(|job| done(job)).map(|(job, _)| *job).collect();
        self.active.retain(|job| !done(job));
        jobs
    }

    fn next_end(&self) -> Option<f64> {
        let least = self.active.iter().map(|(_, left)| *left).reduce(f64::min)?;
        Some(self.now + least * real(self.active.len() as u64) / self.speed)
    }
}

impl Outcome {
    fn quantile(&self, permille: usize) -> f64 {
        self.seconds[(self.seconds.len() - 1) * permille / 1000]
    }

    fn mean(&self) -> f64 {
        self.seconds.iter().sum::<f64>() / real(self.seconds.len() as u64)
    }

    /// The share of the jobs sent within this time that a server got.
    fn share(&self, server: u32, from: f64, to: f64) -> f64 {
        let within = self.sent.iter().filter(|(at, _)| (from..to).contains(at));
        let all = within.clone().count();
        let own = within.filter(|(_, to)| *to == server).count();
        real(own as u64) / real(all.max(1) as u64)
    }

    /// Of the jobs of a class: the mean time, its 99th percentile, grams of all, and the share of their bytes
    /// that the first region got.
    fn of(&self, class: Class) -> OfClass {
        let jobs: Vec<_> = self.ended.iter().filter(|job| job.class == class).collect();
        let mut seconds: Vec<_> = jobs.iter().map(|job| job.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let count = real(jobs.len() as u64);
        let bytes = |of: fn(&Ended) -> bool| -> f64 {
            jobs.iter().filter(|job| of(job)).map(|job| real(job.bytes)).sum()
        };
        OfClass {
            mean: seconds.iter().sum::<f64>() / count,
            p99: seconds[(seconds.len() - 1) * 99 / 100],
            grams: jobs.iter().map(|job| job.grams).sum(),
            clean: bytes(|job| job.region == 0) / bytes(|_| true),
        }
    }

    fn length(&self) -> f64 {
        self.sent.last().map_or(0.0, |(at, _)| *at)
    }
}

#[derive(Debug)]
struct OfClass {
    mean: f64,
    p99: f64,
    grams: f64,
    clean: f64,
}

fn micros(seconds: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive; saturates"
    )]
    let micros = (seconds * 1e6) as u64;
    micros
}

#[expect(clippy::cast_precision_loss, reason = "a measurement")]
fn real(number: u64) -> f64 {
    number as f64
}

fn mean_of(seeds: std::ops::RangeInclusive<u64>, setting: impl Fn(u64) -> Setting) -> f64 {
    let count = real(seeds.clone().count() as u64);
    seeds.map(|seed| run(&setting(seed)).mean()).sum::<f64>() / count
}

/// p50 and p99 of ours, in proportion to the better of those that see no geography.
fn beside_the_blind(servers: u32, jobs: u32, seed: u64, slots: usize) -> (f64, f64) {
    let of = |balancer| {
        let outcome = run(&Setting { servers, jobs, seed, slots, balancer, ..Setting::default() });
        (outcome.quantile(500), outcome.quantile(990))
    };
    let ours = of(Balancer::CompletionTime);
    let (a, b) = (of(Balancer::LeastRequest), of(Balancer::BytesInFlight));
    (ours.0 / a.0.min(b.0), ours.1 / a.1.min(b.1))
}

#[test]
fn work_completes_sooner_than_where_geography_is_not_seen() {
    for (seed, slots) in (1..=3).flat_map(|seed| [(seed, 1), (seed, 4)]) {
        let (p50, p99) = beside_the_blind(12, 20_000, seed, slots);
        assert!(p50 < 0.7 && p99 < 0.5, "seed {seed}, {slots} slots: {p50} {p99}");
    }
}

#[test]
fn so_it_does_among_ten_thousand() {
    let (p50, p99) = beside_the_blind(10_000, 80_000, 1, 4);
    assert!(p50 < 0.7 && p99 < 0.5, "{p50} {p99}");
}

#[test]
fn a_server_that_falls_loses_its_traffic() {
    for proxies in [1, 4] {
        let setting = Setting { proxies, falls: Some(0.2), jobs: 40_000, ..Setting::default() };
        let outcome = run(&setting);
        let (fall, end) = (outcome.length() / 2.0, outcome.length());
        let (before, after) =
            (outcome.share(2, end / 4.0, fall), outcome.share(2, fall + 1.0, end));
        assert!(before > 0.04 && after < 0.03, "{proxies} proxies: {before} {after}");
    }
}

#[test]
fn shares_do_not_swing_when_reports_come_late() {
    // Four proxies learn of a fall a second late, all at once.
    let setting = Setting { proxies: 4, falls: Some(1.0), jobs: 60_000, ..Setting::default() };
    let outcome = run(&setting);
    let (fall, end) = (outcome.length() / 2.0, outcome.length());
    // The others' shares, second by second, once it has been told.
    let seconds = |server| {
        let mut shares = Vec::new();
        let mut from = fall + 2.0;
        while from + 1.0 < end {
            shares.push(outcome.share(server, from, from + 1.0));
            from += 1.0;
        }
        shares
    };
    for server in (0..12).filter(|server| *server != 2) {
        let shares = seconds(server);
        let count = real(shares.len() as u64);
        let mean = shares.iter().sum::<f64>() / count;
        let variance = shares.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / count;
        let swing = variance.sqrt() / mean;
        assert!(shares.len() > 20 && swing < 0.7, "{server}: {swing:.2} of {mean:.3}");
    }
}

#[test]
fn each_term_earns_its_place() {
    let all = Terms::default();
    let mean =
        |terms, falls| mean_of(1..=3, |seed| Setting { terms, falls, seed, ..Setting::default() });
    let whole = mean(all, None);
    for (name, terms, at_least) in [
        ("network", Terms { network: 0.0, ..all }, 1.3),
        ("transfer", Terms { transfer: 0.0, ..all }, 1.1),
        ("queue", Terms { queue: 0.0, ..all }, 20.0),
    ] {
        let without = mean(terms, None) / whole;
        assert!(without > at_least, "without {name} {without:.2} times as long");
    }
}

/// A transfer that is small waits for all that came before it, or for nearly nothing.
#[test]
fn in_what_order_servers_work_is_learned_and_pays() {
    for (slots, most, order) in [(1, 0.055, 0.4..1.0), (4, 0.026, 0.0..0.15)] {
        let mean = mean_of(1..=3, |seed| {
            let setting = Setting { seed, slots, ..Setting::default() };
            let learned = run(&setting).discipline;
            assert!(order.contains(&learned), "{slots} slots: {learned}");
            setting
        });
        assert!(mean < most, "{slots} slots: {mean}");
    }
}

#[test]
fn health_takes_traffic_away_before_anything_is_measured() {
    let terms = Terms { health: 0.0, ..Terms::default() };
    let within_a_second = |terms| {
        let setting = Setting { terms, falls: Some(0.1), jobs: 40_000, ..Setting::default() };
        let outcome = run(&setting);
        let fall = outcome.length() / 2.0;
        outcome.share(2, fall + 0.1, fall + 1.1)
    };
    let (with, without) = (within_a_second(Terms::default()), within_a_second(terms));
    assert!(with < 0.5 * without, "{with} {without}");
}

#[test]
fn what_tolerates_delay_moves_to_clean_electricity_and_nothing_else_does() {
    for seed in 1..=3 {
        let run = |carbon| {
            let terms = Terms { carbon, ..Terms::default() };
            let (load, background) = (0.1, 0.4);
            let outcome = run(&Setting { terms, background, load, seed, ..Setting::default() });
            (outcome.of(Class::Interactive), outcome.of(Class::Background))
        };
        let ((waits, freight), (waits_now, freight_now)) = (run(0.0), run(300.0));
        let all = format!("{seed}: {waits:?} {freight:?}, {waits_now:?} {freight_now:?}");
        assert!(freight_now.grams < 0.65 * freight.grams, "{all}");
        assert!(freight_now.clean > freight.clean + 0.2, "{all}");
        // Those who wait stay where they were. But these servers know no classes, so that they wait behind
        // what has moved: a little in the mean, and now and then for long.
        assert!((waits_now.clean - waits.clean).abs() < 0.03, "{all}");
        assert!(waits_now.mean < 1.2 * waits.mean && waits_now.p99 < 1.7 * waits.p99, "{all}");
    }
}
