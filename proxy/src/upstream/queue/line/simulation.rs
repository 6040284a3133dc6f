//! Many requests of many tenants before few slots, drawn from a seed.

use std::collections::{BTreeMap, BTreeSet};

use towpath_policies::model::{Class, ClassWeights, Queue as Terms};

use super::{Fit, Id, Line, Want};

const MS: u64 = 1000;

/// An endpoint of the simulation.
#[derive(Clone, Copy, Debug)]
struct Worker {
    slots: usize,
    used: usize,
    well: bool,
}

/// One request, from its arrival to its one end.
#[derive(Clone, Debug)]
struct Job {
    want: Want,
    /// What it takes, whatever was predicted.
    takes_us: u64,
    /// A worker it must not use (it failed there).
    avoids: Option<usize>,
    arrived_us: u64,
}

#[derive(Debug, Default)]
struct Ends {
    served: BTreeMap<Id, u64>,
    refused: usize,
    displaced: BTreeSet<Id>,
    expired: BTreeSet<Id>,
    left: BTreeSet<Id>,
}

struct World {
    random: fastrand::Rng,
    terms: Terms,
    line: Line,
    workers: Vec<Worker>,
    waiting: BTreeMap<Id, Job>,
    /// By the time to begin by; also of some that do not wait any more.
    late: BTreeSet<(u64, Id)>,
    /// By the time they end.
    running: BTreeMap<(u64, Id), (Job, usize)>,
    ends: Ends,
    joined: usize,
    now_us: u64,
    work: BTreeMap<(Class, u64), u64>,
    longest_wait_us: [u64; 3],
}

impl World {
    fn new(seed: u64, terms: Terms, workers: Vec<Worker>) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            terms,
            line: Line::default(),
            workers,
            waiting: BTreeMap::new(),
            late: BTreeSet::new(),
            running: BTreeMap::new(),
            ends: Ends::default(),
            joined: 0,
            now_us: 0,
            work: BTreeMap::new(),
            longest_wait_us: [0; 3],
        }
    }

    fn arrive(&mut self, mut job: Job) {
        job.arrived_us = self.now_us;
        let before: Vec<_> = Class::ALL.map(|class| self.line.of_class(class)).to_vec();
        match self.line.join(job.want, self.now_us, &self.terms) {
            Ok(joined) => {
                for id in joined.displaced {
                    let displaced = self.waiting.remove(&id).unwrap();
                    assert!(
                        displaced.want.class >= job.want.class,
                        "nobody makes room for somebody worse"
                    );
                    assert!(self.ends.displaced.insert(id));
                }
                self.joined += 1;
                self.late.insert((job.want.start_by_us, joined.id));
                self.waiting.insert(joined.id, job);
            }
            Err(_) => {
                self.ends.refused += 1;
                let after: Vec<_> = Class::ALL.map(|class| self.line.of_class(class)).to_vec();
                assert_eq!(before, after, "a refusal changes nothing");
            }
        }
        self.bind();
    }

    /// Gives out slots as long as that goes, and holds the line to it that none stays idle.
    fn bind(&mut self) {
        while self.workers.iter().any(|w| w.well && w.used < w.slots) {
            let (workers, waiting) = (&self.workers, &self.waiting);
            let free = |job: &Job| {
                let fits = |(at, w): (usize, &Worker)| {
                    (w.well && w.used < w.slots && job.avoids != Some(at)).then_some(at)
                };
                workers.iter().enumerate().find_map(fits)
            };
            let given = self.line.next(self.now_us, &self.terms, |id, _| {
                free(&waiting[&id]).map_or(Fit::No, Fit::Yes)
            });
            let Some((id, want, at)) = given else {
                let idle = waiting
                    .values()
                    .find(|job| job.want.start_by_us > self.now_us && free(job).is_some());
                assert!(idle.is_none(), "a slot is idle while {idle:?} waits");
                return;
            };
            let job = self.waiting.remove(&id).unwrap();
            assert_eq!(job.want, want);
            self.workers[at].used += 1;
            let waited = self.now_us - job.arrived_us;
            let longest = &mut self.longest_wait_us[want.class as usize];
            *longest = (*longest).max(waited);
            *self.work.entry((want.class, want.tenant)).or_default() += job.takes_us;
            self.running.insert((self.now_us + job.takes_us, id), (job, at));
        }
    }

    /// To the next end of somebody, at most to `until`.
    fn run_to(&mut self, until_us: u64) {
        while let Some((&(at, id), _)) = self.running.first_key_value() {
            if at > until_us {
                break;
            }
            self.now_us = at;
            self.expire();
            let (job, worker) = self.running.remove(&(at, id)).unwrap();
            self.workers[worker].used -= 1;
            self.line.settle(&job.want, job.takes_us, at, &self.terms);
            assert!(self.ends.served.insert(id, at).is_none());
            self.bind();
        }
        self.now_us = until_us;
        self.expire();
    }

    fn expire(&mut self) {
        while let Some(&(at, id)) = self.late.first().filter(|(at, _)| *at <= self.now_us) {
            self.late.remove(&(at, id));
            if self.waiting.remove(&id).is_some() {
                assert!(self.line.leave(id).is_some());
                assert!(self.ends.expired.insert(id));
            }
        }
    }

    fn leave_one(&mut self) {
        let ids: Vec<_> = self.waiting.keys().copied().collect();
        if let Some(id) = (!ids.is_empty()).then(|| ids[self.random.usize(..ids.len())]) {
            self.waiting.remove(&id);
            assert!(self.line.leave(id).is_some());
            assert!(self.ends.left.insert(id));
        }
    }

    /// Bounds hold, counts agree, and no slot is used twice.
    fn check(&self) {
        assert_eq!(self.line.length(), self.waiting.len());
        assert!(self.waiting.len() <= self.terms.max_requests as usize);
        let most = self.terms.max_bytes / 2;
        let bytes: u64 = self.waiting.values().map(|job| job.want.bytes.min(most)).sum();
        assert!(bytes <= self.terms.max_bytes, "{bytes}");
        assert_eq!(Class::ALL.map(|c| self.line.of_class(c).1).iter().sum::<u64>(), bytes);
        for (at, worker) in self.workers.iter().enumerate() {
            let running = self.running.values().filter(|(_, on)| *on == at).count();
            assert_eq!(running, worker.used);
        }
        let ends = &self.ends;
        let over = ends.served.len() + ends.displaced.len() + ends.expired.len() + ends.left.len();
        assert_eq!(over + self.waiting.len() + self.running.len(), self.joined, "each ends once");
    }
}

fn worker(slots: usize) -> Worker {
    Worker { slots, used: 0, well: true }
}

fn draw(random: &mut fastrand::Rng, now_us: u64, workers: usize) -> Job {
    let takes_us = (1 << random.u64(0..14)) * MS;
    // Predictions are wrong by up to four times either way.
    let length_us = (takes_us * random.u64(1..16) / 4).max(1);
    let wait = random.u64(100..20_000) * MS;
    Job {
        want: Want {
            class: Class::ALL[random.usize(..3)],
            tenant: random.u64(..6),
            bytes: random.u64(..100),
            length_us,
            start_by_us: now_us + wait,
            again: random.u8(..10) == 0,
        },
        takes_us,
        avoids: (random.u8(..10) == 0).then(|| random.usize(..workers)),
        arrived_us: now_us,
    }
}

/// Arrivals in bursts, departures, workers that fail and come back, and changed numbers of
/// slots: after each step nobody is lost, no slot is idle for whom it fits, bounds hold.
#[test]
fn everybody_ends_once_and_no_slot_stays_idle_whatever_happens() {
    for seed in 0..30 {
        let mut random = fastrand::Rng::with_seed(seed);
        let terms = Terms {
            max_requests: random.u32(1..60),
            max_bytes: random.u64(1..3000),
            weights: ClassWeights {
                interactive: random.u32(1..20),
                bulk: random.u32(1..20),
                background: random.u32(1..20),
            },
            ..Terms::default()
        };
        let workers = (0..random.usize(1..6)).map(|_| worker(random.usize(1..4))).collect();
        let mut world = World::new(seed, terms, workers);
        for _ in 0..600 {
            let count = world.workers.len();
            match random.u8(..100) {
                0..60 => {
                    let job = draw(&mut random, world.now_us, count);
                    world.arrive(job);
                }
                60..85 => {
                    let until = world.now_us + random.u64(..500) * MS;
                    world.run_to(until);
                    world.bind();
                }
                85..90 => {
                    world.leave_one();
                    world.bind();
                }
                90..95 => {
                    let worker = &mut world.workers[random.usize(..count)];
                    worker.well = !worker.well;
                    world.bind();
                }
                _ => {
                    world.workers[random.usize(..count)].slots = random.usize(1..4);
                    world.bind();
                }
            }
            world.check();
        }
        for worker in &mut world.workers {
            worker.well = true;
        }
        world.bind();
        world.run_to(world.now_us + 3_600_000 * MS);
        world.check();
        assert!(world.waiting.is_empty() && world.running.is_empty(), "seed {seed}");
    }
}

/// Two always have work: classes get their shares, and within them tenants get theirs, whatever
/// the lengths and however wrong the predictions.
#[test]
fn shares_are_within_a_tenth_of_what_was_promised_and_nobody_starves() {
    for seed in 0..3 {
        let mut random = fastrand::Rng::with_seed(seed);
        let terms = Terms {
            max_requests: 100_000,
            max_bytes: u64::MAX,
            weights: ClassWeights { interactive: 8, bulk: 4, background: 1 },
            ..Terms::default()
        };
        let mut world = World::new(seed, terms, vec![worker(1); 8]);
        let far = u64::MAX / 2;
        let job = |random: &mut fastrand::Rng, class, tenant: u64| {
            // Tenant 0 has long ones, of which a tenth is expected.
            let takes_us = random.u64(50..150) * MS * if tenant == 0 { 10 } else { 1 };
            let length_us = if tenant == 0 { takes_us / 10 } else { takes_us };
            let want = Want { class, tenant, bytes: 1, length_us, start_by_us: far, again: false };
            Job { want, takes_us, avoids: None, arrived_us: 0 }
        };
        // Enough of each that nobody runs out.
        for class in Class::ALL {
            for tenant in 0..3 {
                for _ in 0..if tenant == 0 { 150 } else { 1500 } {
                    let job = job(&mut random, class, tenant);
                    world.arrive(job);
                }
            }
        }
        world.run_to(60_000 * MS);
        let of = |class, tenant| world.work.get(&(class, tenant)).copied().unwrap_or(0) as f64;
        let class = |c| (0..3).map(|tenant| of(c, tenant)).sum::<f64>();
        let total: f64 = Class::ALL.map(class).iter().sum();
        for (c, share) in Class::ALL.into_iter().zip([8.0 / 13.0, 4.0 / 13.0, 1.0 / 13.0]) {
            let got = class(c) / total;
            assert!((got / share - 1.0).abs() < 0.1, "seed {seed} {c:?}: {got} of {share}");
            for tenant in 0..3 {
                let got = of(c, tenant) / class(c);
                assert!((got * 3.0 - 1.0).abs() < 0.15, "seed {seed} {c:?} {tenant}: {got}");
            }
        }
    }
}

/// Interactive requests come now and then while bulk fills the line: they wait for one end of
/// one of eight, and background gets through all the same.
#[test]
fn interactive_overtakes_a_full_line_and_background_still_gets_its_share() {
    let terms = Terms { max_requests: 100_000, ..Terms::default() };
    let mut world = World::new(1, terms, vec![worker(1); 8]);
    let mut random = fastrand::Rng::with_seed(1);
    let mut job = |class, takes_us: u64| {
        let start_by_us = u64::MAX / 2;
        let want =
            Want { class, tenant: 0, bytes: 1, length_us: takes_us, start_by_us, again: false };
        Job { want, takes_us: takes_us + random.u64(..takes_us / 2), avoids: None, arrived_us: 0 }
    };
    for _ in 0..700 {
        world.arrive(job(Class::Bulk, 1000 * MS));
        world.arrive(job(Class::Background, 1000 * MS));
    }
    for at in 0..400 {
        world.run_to(at * 250 * MS);
        if at == 20 {
            // At first all eight are busy for a whole second.
            world.longest_wait_us = [0; 3];
        }
        world.arrive(job(Class::Interactive, 50 * MS));
    }
    let longest = world.longest_wait_us[0];
    assert!(longest < 1000 * MS, "eight slots of 1.25 s on average: {longest} µs");
    let of = |class| world.work[&(class, 0)];
    let (bulk, background) = (of(Class::Bulk), of(Class::Background));
    assert!(background * 5 > bulk && background * 3 < bulk, "a quarter: {background} {bulk}");
}
