//! An endpoint of so many workers under load, in simulated time.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet, VecDeque},
};

use super::*;

const SECOND: u64 = 1_000_000;
const TICK: u64 = 50_000;

/// What a request asks of the endpoint.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// So many microseconds of a worker.
    Work(u64),
    /// No worker, and a head after so many microseconds. What comes after it is nobody's business.
    Head(u64),
}

/// Its body lasts, but it is not counted any more.
const STREAM: Kind = Kind::Head(1000);
const POLL: Kind = Kind::Head(10 * SECOND);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives,
    Done { proxy: usize, sent: u64 },
    GivesUp { proxy: usize, sent: u64 },
    Head { proxy: usize, sent: u64 },
    Tick,
}

/// How the endpoint works at a time, and what is asked of it.
struct World<'a> {
    seed: u64,
    proxies: usize,
    workers: &'a dyn Fn(u64) -> usize,
    /// Requests a second, of all proxies.
    load: &'a dyn Fn(u64) -> f64,
    kind: &'a dyn Fn(u64, &mut fastrand::Rng) -> Kind,
    /// Who has no head by then gives up. The endpoint does not hear of it.
    patience_us: u64,
}

/// What came of one second.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    /// Requests that took a worker, and whose clients were still there.
    worked: u32,
    refused: u32,
    /// The sum of the proxies' limits at its end.
    limit: u32,
    median_us: f64,
}

impl Second {
    fn close(&mut self, limits: &[Concurrency], times: &mut Times) {
        self.limit = limits.iter().map(|l| l.figures().limit).sum();
        self.median_us = median_us(times);
        *times = no_times();
    }
}

fn no_times() -> Times {
    Times([const { AtomicU32::new(0) }; BUCKETS])
}

impl World<'_> {
    fn run(&self, terms: &AdaptiveConcurrency, seconds: u64) -> Vec<Second> {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let limit = |_| Concurrency::new(terms, ([10, 0, 0, 1], 80).into());
        let limits: Vec<_> = (0..self.proxies).map(limit).collect();
        let mut events =
            BinaryHeap::from([Reverse((0, Event::Arrives)), Reverse((1, Event::Tick))]);
        let mut queue = VecDeque::new();
        let mut waiting = HashSet::new();
        let mut busy = 0;
        let mut out = vec![Second::default(); seconds as usize];
        let mut times = no_times();
        while let Some(Reverse((now, event))) = events.pop() {
            let Some(second) = out.get_mut((now / SECOND) as usize) else { break };
            match event {
                Event::Arrives => {
                    let gap = exponential(1e6 / (self.load)(now), &mut random);
                    events.push(Reverse((now + gap.max(1), Event::Arrives)));
                    let proxy = random.usize(..self.proxies);
                    let kind = (self.kind)(now, &mut random);
                    if !limits[proxy].has_room() {
                        second.refused += 1;
                        continue;
                    }
                    limits[proxy].enter();
                    match kind {
                        Kind::Work(time) => {
                            queue.push_back((proxy, now, time));
                            waiting.insert((proxy, now));
                            let gives_up = now.saturating_add(self.patience_us);
                            events.push(Reverse((gives_up, Event::GivesUp { proxy, sent: now })));
                        }
                        Kind::Head(after) => {
                            events.push(Reverse((now + after, Event::Head { proxy, sent: now })));
                        }
                    }
                }
                Event::GivesUp { proxy, sent } => {
                    if waiting.remove(&(proxy, sent)) {
                        limits[proxy].given_up_after(Duration::from_micros(now - sent));
                        limits[proxy].leave();
                    }
                }
                Event::Done { proxy, sent } => {
                    busy -= 1;
                    if waiting.remove(&(proxy, sent)) {
                        second.worked += 1;
                        times.0[bucket(now - sent)].fetch_add(1, Relaxed);
                        limits[proxy].answered_after(Duration::from_micros(now - sent));
                        limits[proxy].leave();
                    }
                }
                Event::Head { proxy, sent } => {
                    limits[proxy].answered_after(Duration::from_micros(now - sent));
                    limits[proxy].leave();
                }
                Event::Tick => {
                    limits.iter().for_each(|l| l.tick(terms, now, now + self.seed * SECOND));
                    events.push(Reverse((now + TICK, Event::Tick)));
                    if (now + TICK) / SECOND > now / SECOND {
                        second.close(&limits, &mut times);
                    }
                }
            }
            while busy < (self.workers)(now)
                && let Some((proxy, sent, time)) = queue.pop_front()
            {
                busy += 1;
                events.push(Reverse((now + time, Event::Done { proxy, sent })));
            }
        }
        out
    }
}

/// The median of the times of many requests.
fn median_us(times: &Times) -> f64 {
    let counts = times.read();
    let half = counts.iter().sum::<u32>() / 2;
    let mut below = 0;
    let at = counts.iter().position(|count| {
        below += count;
        below > half
    });
    at.map_or(0.0, |at| begins_us(at) as f64)
}

fn exponential(mean: f64, random: &mut fastrand::Rng) -> u64 {
    (-mean * (1.0 - random.f64()).ln()) as u64
}

const TERMS: AdaptiveConcurrency =
    AdaptiveConcurrency { min_requests: 3, max_requests: 1000, tolerance_percent: 150 };
/// Service times are exponential around it.
const MEAN_US: f64 = 20_000.0;
const WORKERS: usize = 12;
/// Requests a second that the endpoint can serve.
const CAPACITY: f64 = WORKERS as f64 / MEAN_US * 1e6;
/// The median head time without queueing.
const UNLOADED_US: f64 = MEAN_US * std::f64::consts::LN_2;
const SEEDS: std::ops::RangeInclusive<u64> = 1..=3;

/// What came of some seconds.
#[derive(Debug)]
struct Sum {
    /// Requests that took a worker, a second.
    throughput: f64,
    /// The mean of the seconds' medians.
    median_us: f64,
    refused: u32,
    /// Lowest and highest.
    limit: (u32, u32),
}

fn sum(seconds: &[Second]) -> Sum {
    let mean = |of: fn(&Second) -> f64| seconds.iter().map(of).sum::<f64>() / seconds.len() as f64;
    let limits = || seconds.iter().map(|s| s.limit);
    Sum {
        throughput: mean(|s| s.worked.into()),
        median_us: mean(|s| s.median_us),
        refused: seconds.iter().map(|s| s.refused).sum(),
        limit: (limits().min().unwrap_or(0), limits().max().unwrap_or(0)),
    }
}

fn work(_: u64, random: &mut fastrand::Rng) -> Kind {
    Kind::Work(exponential(MEAN_US, random))
}

/// Every twentieth request is of this kind.
fn mixed(kind: Kind) -> impl Fn(u64, &mut fastrand::Rng) -> Kind {
    move |now, random| if random.u32(..20) == 0 { kind } else { work(now, random) }
}

/// Three times as much is asked as can be served.
fn overload(seed: u64) -> World<'static> {
    World {
        seed,
        proxies: 1,
        workers: &|_| WORKERS,
        load: &|_| CAPACITY * 3.0,
        kind: &work,
        patience_us: u64::MAX >> 1,
    }
}

#[test]
fn under_three_times_the_load_the_endpoint_is_busy_and_quick_within_thirty_seconds() {
    for seed in SEEDS {
        let settled = sum(&overload(seed).run(&TERMS, 120)[30..]);
        println!("overload {seed}: {settled:.1?}");
        assert!(settled.throughput >= CAPACITY * 0.95, "{settled:?}");
        assert!(settled.median_us <= UNLOADED_US * 2.0, "{settled:?}");
        assert!(settled.limit.1 <= WORKERS as u32 * 3, "{settled:?}");
    }
}

#[test]
fn streams_whose_head_comes_early_take_no_place() {
    for seed in SEEDS {
        let kind = mixed(STREAM);
        let world = World { kind: &kind, ..overload(seed) };
        let settled = sum(&world.run(&TERMS, 120)[30..]);
        println!("streams {seed}: {settled:.1?}");
        assert!(settled.throughput >= CAPACITY * 0.95, "{settled:?}");
        assert!(settled.median_us <= UNLOADED_US * 2.0, "{settled:?}");
    }
}

#[test]
fn long_polls_do_not_crowd_out_the_rest() {
    for seed in SEEDS {
        let kind = mixed(POLL);
        let world = World { kind: &kind, ..overload(seed) };
        // Hundreds of polls must be under way before all workers are.
        let settled = sum(&world.run(&TERMS, 240)[90..]);
        println!("polls {seed}: {settled:.1?}");
        assert!(settled.throughput >= CAPACITY * 0.9, "{settled:?}");
    }
}

#[test]
fn it_follows_an_endpoint_that_falls_to_a_quarter_and_comes_back() {
    for seed in SEEDS {
        let falls = |now: u64| (40..80).contains(&(now / SECOND));
        let workers = |now: u64| if falls(now) { WORKERS / 4 } else { WORKERS };
        let world = World { workers: &workers, ..overload(seed) };
        let seconds = world.run(&TERMS, 130);
        let (low, back) = (sum(&seconds[70..80]), sum(&seconds[110..]));
        println!("quarter {seed}: {low:.1?} back {back:.1?}");
        assert!(low.throughput >= CAPACITY / 4.0 * 0.9, "{low:?}");
        assert!(low.median_us <= UNLOADED_US * 3.0, "{low:?}");
        assert!(back.throughput >= CAPACITY * 0.95, "{back:?}");
        assert!(back.median_us <= UNLOADED_US * 2.0, "{back:?}");
    }
}

#[test]
fn a_release_that_takes_three_times_as_long_is_not_starved() {
    for seed in SEEDS {
        let kind = |now: u64, random: &mut fastrand::Rng| {
            let factor = if now / SECOND < 40 { 1.0 } else { 3.0 };
            Kind::Work(exponential(MEAN_US * factor, random))
        };
        let world = World { kind: &kind, ..overload(seed) };
        let seconds = world.run(&TERMS, 130);
        let (change, after) = (sum(&seconds[40..70]), sum(&seconds[70..]));
        println!("slower {seed}: {change:.1?} then {after:.1?}");
        assert!(change.throughput >= CAPACITY / 3.0 * 0.3, "{change:?}");
        assert!(after.throughput >= CAPACITY / 3.0 * 0.95, "{after:?}");
        assert!(after.median_us <= UNLOADED_US * 6.0, "{after:?}");
    }
}

#[test]
fn under_low_load_nobody_is_turned_away() {
    for seed in SEEDS {
        for (load, mean_us) in [(0.02, MEAN_US), (0.3, MEAN_US), (0.6, MEAN_US), (0.5, 500_000.0)] {
            let kind =
                |_: u64, random: &mut fastrand::Rng| Kind::Work(exponential(mean_us, random));
            let rate = WORKERS as f64 / mean_us * 1e6 * load;
            let even = |_: u64| rate;
            let world = World { kind: &kind, load: &even, ..overload(seed) };
            let all = sum(&world.run(&TERMS, 300));
            println!("low load {load} of {mean_us} {seed}: {all:.1?}");
            assert_eq!(all.refused, 0, "{load} {all:?}");
        }
    }
}

#[test]
fn times_of_two_kinds_are_no_riddle() {
    for seed in SEEDS {
        for slow_percent in [5, 20, 50, 80] {
            let kind = |_: u64, random: &mut fastrand::Rng| {
                Kind::Work(if random.u32(..100) < slow_percent { 200_000 } else { 5_000 })
            };
            let mean = f64::from(slow_percent) * 2_000.0 + f64::from(100 - slow_percent) * 50.0;
            let capacity = WORKERS as f64 / mean * 1e6;
            let load = |_: u64| capacity * 3.0;
            let world = World { kind: &kind, load: &load, ..overload(seed) };
            let settled = sum(&world.run(&TERMS, 180)[30..]);
            println!("bimodal {slow_percent} % {seed}: of {capacity:.0} {settled:.1?}");
            assert!(settled.throughput >= capacity * 0.9, "{settled:?}");
        }
    }
}

#[test]
fn proxies_that_share_an_endpoint_share_its_capacity() {
    for seed in SEEDS {
        let (workers, load) = (|_: u64| WORKERS * 2, |_: u64| CAPACITY * 6.0);
        let world = World { proxies: 4, workers: &workers, load: &load, ..overload(seed) };
        let settled = sum(&world.run(&TERMS, 150)[60..]);
        println!("four proxies {seed}: {settled:.1?}");
        assert!(settled.throughput >= CAPACITY * 2.0 * 0.95, "{settled:?}");
        assert!(settled.median_us <= UNLOADED_US * 5.0, "{settled:?}");
    }
}

#[test]
fn endpoints_of_all_sizes_are_found() {
    for seed in SEEDS {
        for (workers, mean_us, most) in
            [(1, 20_000.0, 12.0), (4, 100_000.0, 5.0), (64, 50_000.0, 2.0), (300, 200_000.0, 2.0)]
        {
            let kind =
                |_: u64, random: &mut fastrand::Rng| Kind::Work(exponential(mean_us, random));
            let capacity = workers as f64 / mean_us * 1e6;
            let (count, load) = (|_: u64| workers, |_: u64| capacity * 2.0);
            let world = World { kind: &kind, load: &load, workers: &count, ..overload(seed) };
            let settled = sum(&world.run(&TERMS, 150)[60..]);
            let times = settled.median_us / (mean_us * std::f64::consts::LN_2);
            println!("{workers} of {mean_us} {seed}: of {capacity:.0} {settled:.1?} {times:.1}");
            assert!(settled.throughput >= capacity * 0.9, "{settled:?}");
            assert!(times <= most, "{times} {settled:?}");
        }
    }
}

#[test]
fn clients_that_give_up_do_not_keep_the_limit_high() {
    for seed in SEEDS {
        for workers in [1, 2, 4] {
            let (count, load) = (|_: u64| workers, |_: u64| workers as f64 / MEAN_US * 5e6);
            // No longer than the first limit takes to be worked off.
            let patience_us = 500_000 / workers as u64;
            let patient = overload(seed);
            let world = World { workers: &count, load: &load, patience_us, ..patient };
            let settled = sum(&world.run(&TERMS, 120)[30..]);
            println!("give up {workers} {seed}: {settled:.1?}");
            let capacity = workers as f64 / MEAN_US * 1e6;
            assert!(settled.throughput >= capacity * 0.85, "{settled:?}");
        }
    }
}
