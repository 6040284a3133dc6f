use super::{
    super::meter::{Lane, Transfer},
    *,
};

const MB: f64 = 1e6;

fn pace(endpoint: f64, transfer: f64) -> Pace {
    Pace { endpoint: endpoint * MB, transfer: transfer * MB, seconds: 1.0 }
}

#[test]
fn an_endpoint_lags_when_it_is_far_below_its_peers_by_itself_and_by_transfer() {
    let terms = Goodput::default();
    for (own, peers, out) in [
        ((10.0, 10.0), &[100.0, 100.0][..], true),
        ((24.0, 24.0), &[100.0, 100.0], true),
        ((26.0, 26.0), &[100.0, 100.0], false),
        // Fewer transfers than its peers have, or more.
        ((10.0, 100.0), &[100.0, 100.0], false),
        ((100.0, 10.0), &[100.0, 100.0], false),
        // A stall.
        ((0.0, 0.0), &[100.0, 100.0], true),
        // One peer is no measure, and one odd peer is none either.
        ((10.0, 10.0), &[100.0], false),
        ((10.0, 10.0), &[100.0, 110.0, 1.0, 95.0], true),
        ((10.0, 10.0), &[11.0, 9.0, 1000.0, 10.0], false),
        // Peers that differ this much among themselves.
        ((10.0, 10.0), &[50.0, 300.0], false),
        // All stand still.
        ((0.0, 0.0), &[0.0, 0.0], false),
        // Its peers would have moved less than a mebibyte.
        ((0.01, 0.01), &[1.0, 1.0], false),
        ((0.01, 0.01), &[1.1, 1.1], true),
    ] {
        let seat = |figure| Seat { group: 0, ejected: false, figure };
        let peer = |p: &f64| {
            let delivered = Some(pace(*p, *p));
            seat(Figures { delivered, lowest: delivered, ..Figures::default() })
        };
        let waited_for = Some(pace(own.0, own.1));
        let own = Figures { waited_for, ..Figures::default() };
        let mut seats = vec![seat(own)];
        seats.extend(peers.iter().map(peer));
        assert_eq!(lag(&seats, 0, 3, &terms).is_some(), out, "{own:?} {peers:?}");
        seats[0].ejected = true;
        assert_eq!(lag(&seats, 0, 3, &terms), None, "it is out as it is");
    }
}

#[test]
fn a_lag_needs_a_witness() {
    let terms = Goodput::default();
    for (began, active, best, unheard_of, acquainted, rounds) in [
        ([0, 0, 0, 0], 2, 0.0, true, ACQUAINTED, None),
        // Those that are here were faster.
        ([0, 0, 0, 0], 1, 3.0 * MB, true, ACQUAINTED, None),
        ([0, 0, 0, 0], 1, 5.0 * MB, false, 0, Some(2)),
        // Several that began are slow.
        ([1, 0, 0, 1], 0, 0.0, false, 0, None),
        ([1, 0, 1, 1], 0, 0.0, false, 0, Some(4)),
        ([3, 0, 0, 0], 0, 0.0, false, 0, Some(2)),
        // Several are slow, which was never seen of the others, in a minute.
        ([0, 0, 0, 0], 3, 0.0, true, ACQUAINTED, Some(2)),
        ([0, 0, 0, 0], 3, 0.0, false, ACQUAINTED, None),
        ([0, 0, 0, 0], 3, 0.0, true, ACQUAINTED - 1, None),
    ] {
        let lag = Lag { pace: MB, usual: 10.0 * MB, is_unheard_of: unheard_of };
        let mut track = Track { best, acquainted, ..Track::default() };
        let mut out = None;
        for (at, started) in began.into_iter().enumerate() {
            track.rounds.push_back(Sums { before: active, started, ..Sums::default() });
            if track.strike(Some(&lag), &terms) {
                out = out.or(Some(at + 1));
            }
        }
        assert_eq!(out, rounds, "{began:?} {active} {best} {unheard_of} {acquainted}");
        assert!(!track.strike(None, &terms));
        assert_eq!(track.fresh, None, "one that keeps up begins anew");
    }
}

#[test]
fn what_most_peers_too_come_down_to_is_no_lag_and_what_one_does_is_not_unheard_of() {
    let terms = Goodput::default();
    for (lowest, expected) in
        [([100.0, 100.0], Some(true)), ([100.0, 15.0], Some(false)), ([15.0, 15.0], None)]
    {
        let seat = |figure| Seat { group: 0, ejected: false, figure };
        let peer = |lowest| Figures {
            delivered: Some(pace(100.0, 100.0)),
            lowest: Some(pace(lowest, lowest)),
            ..Figures::default()
        };
        let waited_for = Some(pace(10.0, 10.0));
        let own = Figures { waited_for, ..Figures::default() };
        let seats = [own, peer(lowest[0]), peer(lowest[1])].map(seat);
        let told = lag(&seats, 0, 3, &terms).map(|lag| lag.is_unheard_of);
        assert_eq!(told, expected, "{lowest:?}");
    }
}

#[test]
fn the_best_is_of_those_that_are_here_yet_and_the_lowest_pace_fades() {
    let mut track = Track::default();
    let (mut bytes, mut started) = (0, 0);
    let mut round = |track: &mut Track, begun: u32, waiting: u32, per_tick: u64| {
        started += begun;
        for _ in 0..TICKS_PER_ROUND {
            bytes += per_tick;
            track.sample(Reading { bytes, started, waiting, ..Reading::default() }, TICK_MS);
        }
        track.end_round(&Goodput::default());
        track.figures().lowest.map_or(0.0, |lowest| lowest.transfer)
    };
    round(&mut track, 2, 2, 50_000);
    for _ in 0..2 {
        round(&mut track, 0, 2, 50_000);
    }
    assert_eq!(track.best, MB);
    round(&mut track, 1, 3, 20_000);
    assert_eq!(track.best, MB, "whoever began takes nothing from the others' testimony");
    round(&mut track, 0, 1, 50_000);
    assert_eq!(track.best, 0.0, "who was fast may be gone");
    for _ in 0..4 {
        round(&mut track, 0, 1, 5_000);
    }
    assert_eq!(round(&mut track, 0, 1, 5_000).round(), 0.1 * MB);
    for _ in 0..600 {
        round(&mut track, 0, 1, 50_000);
    }
    let after = round(&mut track, 0, 1, 50_000);
    assert!((0.3 * MB..0.4 * MB).contains(&after), "{after} after 150 s");
}

#[test]
fn only_time_that_was_surely_waited_counts() {
    for (waited, samples, known) in [(0, 20, false), (4, 20, false), (5, 20, true), (20, 20, true)]
    {
        let mut track = Track::default();
        for tick in 0..samples {
            let waiting = u32::from(tick < waited);
            let reading = Reading { bytes: 50_000 * (tick + 1), waiting, ..Reading::default() };
            track.sample(reading, TICK_MS);
            if tick % TICKS_PER_ROUND == TICKS_PER_ROUND - 1 {
                track.end_round(&Goodput::default());
            }
        }
        let told = track.figures().waited_for;
        assert_eq!(told.is_some(), known, "{waited} of {samples}");
        if waited == samples {
            // The bytes before the first sample are nobody's.
            assert_eq!(told.unwrap().endpoint.round(), 950_000.0);
        }
    }
}

#[test]
fn a_sampled_time_is_taken_at_the_end_that_speaks_for_the_endpoint() {
    for (hits, samples, least, most) in [
        (20.0, 20.0, 20.0, 20.0),
        (10.0, 20.0, 5.53, 14.47),
        (5.0, 20.0, 1.13, 8.87),
        (0.0, 20.0, 0.0, 0.0),
    ] {
        let told = (lower(hits, samples), upper(hits, samples));
        assert!((told.0 - least).abs() < 0.01 && (told.1 - most).abs() < 0.01, "{hits}: {told:?}");
    }
}

#[test]
fn what_an_endpoint_delivered_counts_the_time_its_clients_took() {
    let mut track = Track::default();
    for tick in 0..20 {
        let bytes = tick * 50_000;
        // Two transfers, one of which waits for the endpoint every other time.
        let waiting = u32::from(tick % 2 == 0);
        let reading = Reading { bytes, started: 2, waiting, elsewhere: 2 - waiting, ahead: 0 };
        track.sample(reading, TICK_MS);
    }
    track.end_round(&Goodput::default());
    let delivered = track.figures().delivered.unwrap();
    assert_eq!((delivered.endpoint, delivered.transfer), (950_000.0, 475_000.0));
}

/// A service in numbers: endpoints with a capacity, shared evenly by the
/// transfers that have room; clients that take what they can; and the meters
/// and tracks of the real thing. A step is a millisecond.
struct World {
    random: fastrand::Rng,
    endpoints: Vec<Server>,
    transfers: Vec<Moving>,
    terms: Goodput,
    now_ms: u64,
    out: Vec<(u64, usize)>,
    plan: Plan,
}

struct Server {
    meter: Lane,
    /// Bytes per millisecond, before and after noise.
    capacity: f64,
    now: f64,
}

struct Moving {
    at: usize,
    transfer: Transfer,
    left: f64,
    buffered: f64,
    client: f64,
    /// What it can get at all.
    most: f64,
}

/// What arrives.
#[derive(Clone, Copy)]
struct Plan {
    /// Transfers held in flight, or, when `pause_ms` is set, starting so often.
    in_flight: usize,
    pause_ms: u64,
    bytes: f64,
    /// By endpoint: bytes per millisecond its clients take.
    client: fn(usize) -> f64,
    /// Bytes per millisecond that one transfer can get at all, as over a long way.
    most: f64,
    /// Endpoints get transfers at random in these proportions; the least busy one when there are none.
    share: Option<fn(usize) -> usize>,
    /// Of a hundred transfers, so many get a twentieth for reasons of their own.
    slow_percent: u32,
    /// Of a hundred clients, so many take a twentieth of what there is.
    slow_clients_percent: u32,
    /// Sizes from a tenth to twenty times, most of them small.
    heavy: bool,
    /// So many begin at once.
    burst: usize,
}

const PLAN: Plan = Plan {
    in_flight: 12,
    pause_ms: 0,
    bytes: 40.0 * MB,
    client: |_| 1e9,
    most: 1e9,
    share: None,
    slow_percent: 0,
    slow_clients_percent: 0,
    heavy: false,
    burst: 1,
};
/// Room in the proxy between an endpoint and its client.
const ROOM: f64 = 65_536.0;

impl World {
    fn new(seed: u64, endpoints: usize, plan: Plan) -> Self {
        let server = || Server { meter: Lane::default(), capacity: 20_000.0, now: 20_000.0 };
        Self {
            random: fastrand::Rng::with_seed(seed),
            endpoints: (0..endpoints).map(|_| server()).collect(),
            transfers: Vec::new(),
            terms: Goodput::default(),
            now_ms: 0,
            out: Vec::new(),
            plan,
        }
    }

    fn start(&mut self) {
        let at = match self.plan.share {
            Some(share) => {
                let count = 0..self.endpoints.len();
                let list = count.flat_map(|at| std::iter::repeat_n(at, share(at)));
                let list: Vec<_> = list.collect();
                list[self.random.usize(..list.len())]
            }
            None => {
                let busy = |at: &usize| self.transfers.iter().filter(|m| m.at == *at).count();
                let first = self.random.usize(..self.endpoints.len());
                let all = (0..self.endpoints.len()).map(|at| (at + first) % self.endpoints.len());
                all.min_by_key(busy).unwrap()
            }
        };
        let mut transfer = Transfer::default();
        transfer.judge(&self.endpoints[at].meter);
        let part = self.random.f64();
        let left = match self.plan.heavy {
            // A Pareto distribution, cut off.
            true => self.plan.bytes * (0.1 / (1.0 - part).powf(0.9)).min(20.0),
            false => self.plan.bytes * (0.1 + 1.8 * part),
        };
        let mut slow = |percent| if self.random.u32(..100) < percent { 0.05 } else { 1.0 };
        let fair = self.endpoints[at].capacity / 4.0;
        let most = self.plan.most.min(match slow(self.plan.slow_percent) {
            1.0 => f64::MAX,
            part => fair * part,
        });
        let client = (self.plan.client)(at).min(match slow(self.plan.slow_clients_percent) {
            1.0 => f64::MAX,
            part => fair * part,
        });
        self.transfers.push(Moving { at, transfer, left, buffered: 0.0, client, most });
    }

    fn step(&mut self) {
        self.now_ms += 1;
        match self.plan.pause_ms {
            0 => {
                while self.transfers.len() < self.plan.in_flight {
                    self.start();
                }
            }
            pause => {
                if self.random.u64(..pause) == 0 && self.transfers.len() < 200 {
                    (0..self.plan.burst).for_each(|_| self.start());
                }
            }
        }
        if self.now_ms.is_multiple_of(100) {
            for endpoint in &mut self.endpoints {
                endpoint.now = endpoint.capacity * (0.5 + self.random.f64());
            }
        }
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            let mine = |m: &&mut Moving| m.at == at;
            let active = self.transfers.iter_mut().filter(mine).filter(|m| m.buffered < ROOM);
            let share = endpoint.now / active.count().max(1) as f64;
            for moving in self.transfers.iter_mut().filter(mine) {
                let moved =
                    share.min(moving.most).min(ROOM - moving.buffered).min(moving.left).max(0.0);
                moving.left -= moved;
                moving.buffered += moved;
                moving.buffered -= moving.client.min(moving.buffered);
                moving.transfer.moved(moved as u64);
                moving.transfer.look(&endpoint.meter, moving.buffered <= 0.0 && moving.left > 0.0);
            }
        }
        let endpoints = &self.endpoints;
        self.transfers.retain_mut(|moving| {
            let over = moving.left <= 0.0 && moving.buffered <= 0.0;
            if over {
                moving.transfer.end(&endpoints[moving.at].meter);
            }
            !over
        });
    }

    fn run(&mut self, tracks: &mut [Track], seconds: u64) {
        for _ in 0..seconds * 1000 {
            self.step();
            if self.now_ms.is_multiple_of(TICK_MS) {
                for (track, endpoint) in tracks.iter_mut().zip(&self.endpoints) {
                    track.sample(endpoint.meter.read(), TICK_MS);
                }
            }
            if self.now_ms.is_multiple_of(TICK_MS * TICKS_PER_ROUND) {
                let out: Vec<usize> = self.out.iter().map(|(_, at)| *at).collect();
                let place = |at: usize| (0, out.contains(&at));
                let found = end_round(tracks, place, 3, &self.terms);
                self.out.extend(found.iter().map(|(at, _)| (self.now_ms, *at)));
            }
        }
    }
}

#[test]
fn one_that_falls_to_a_tenth_is_out_within_two_seconds_and_no_other() {
    for endpoints in 3..=10 {
        for seed in 0..2 {
            let plan = Plan { in_flight: endpoints * 4, ..PLAN };
            let mut world = World::new(seed, endpoints, plan);
            let mut tracks = vec![Track::default(); endpoints];
            world.run(&mut tracks, 62);
            assert_eq!(world.out, [], "{endpoints} {seed}");
            world.endpoints[1].capacity /= 10.0;
            world.run(&mut tracks, 4);
            let at: Vec<_> = world.out.iter().map(|(_, at)| *at).collect();
            assert_eq!(at, [1], "{endpoints} {seed}");
            assert!(world.out[0].0 <= 64_000, "{endpoints} {seed}: {:?}", world.out);
        }
    }
}

#[test]
fn one_that_stands_still_is_out_within_two_seconds() {
    for seed in 0..6 {
        let mut world = World::new(seed, 4, PLAN);
        let mut tracks = vec![Track::default(); 4];
        world.run(&mut tracks, 62);
        world.endpoints[2].capacity = 0.0;
        world.run(&mut tracks, 2);
        assert_eq!(world.out.iter().map(|(_, at)| *at).collect::<Vec<_>>(), [2], "{seed}");
    }
}

#[test]
fn among_noisy_equals_none_is_out_however_long() {
    let plans = [
        PLAN,
        // Few and short ones: the sampling itself is the noise.
        Plan { pause_ms: 100, bytes: 0.5 * MB, ..PLAN },
        Plan { pause_ms: 400, bytes: 2.0 * MB, ..PLAN },
        Plan { pause_ms: 30, bytes: MB, ..PLAN },
        // One has far more transfers, one far fewer.
        Plan { in_flight: 20, share: Some(|at| [12, 4, 4, 1][at % 4]), ..PLAN },
        Plan { in_flight: 20, share: Some(|at| [12, 4, 4, 1][at % 4]), most: 400.0, ..PLAN },
        Plan { share: Some(|_| 1), ..PLAN },
    ];
    for (index, plan) in plans.into_iter().enumerate() {
        for seed in 0..3 {
            let endpoints = 3 + (seed as usize) * 2;
            let mut world = World::new(seed, endpoints, plan);
            let mut tracks = vec![Track::default(); endpoints];
            world.run(&mut tracks, 100);
            assert_eq!(world.out, [], "plan {index}, {endpoints} endpoints");
        }
    }
}

/// Services whose transfers differ, so that now and then an endpoint has only slow ones.
const MIXED: [Plan; 7] = [
    Plan { slow_percent: 2, ..PLAN },
    Plan { slow_percent: 10, ..PLAN },
    Plan { slow_percent: 5, in_flight: 5, ..PLAN },
    Plan { slow_percent: 5, heavy: true, ..PLAN },
    Plan { slow_clients_percent: 20, heavy: true, ..PLAN },
    Plan { heavy: true, pause_ms: 300, burst: 6, bytes: 4.0 * MB, ..PLAN },
    Plan {
        slow_percent: 3,
        slow_clients_percent: 10,
        heavy: true,
        pause_ms: 150,
        burst: 2,
        ..PLAN
    },
];

/// Endpoints ejected for nothing, and hours of endpoints looked at.
fn false_alarms(plan: Plan, seeds: std::ops::Range<u64>, seconds: u64) -> (usize, f64) {
    let (mut out, mut hours) = (0, 0.0);
    for seed in seeds {
        let endpoints = 3 + seed as usize % 6;
        let in_flight = (plan.in_flight * endpoints).div_ceil(4);
        let mut world = World::new(seed, endpoints, Plan { in_flight, ..plan });
        world.run(&mut vec![Track::default(); endpoints], seconds);
        out += world.out.len();
        hours += (endpoints as u64 * seconds) as f64 / 3600.0;
    }
    (out, hours)
}

/// `TOWPATH_SEEDS` looks at more of them, and tells what it found.
#[test]
fn transfers_that_are_slow_for_reasons_of_their_own_condemn_nobody() {
    let seeds = std::env::var("TOWPATH_SEEDS").ok().and_then(|text| text.parse().ok());
    for (index, plan) in MIXED.into_iter().enumerate() {
        let (out, hours) = false_alarms(plan, 0..seeds.unwrap_or(2), 60);
        if seeds.is_some() {
            println!("plan {index}: {out} ejected for nothing in {hours:.1} hours of endpoints");
        } else {
            assert_eq!(out, 0, "plan {index}");
        }
    }
}

#[test]
fn among_mixed_transfers_too_one_that_falls_is_out_within_two_seconds() {
    for (index, seed) in (0..2).flat_map(|index| (0..4).map(move |seed| (index, seed))) {
        let plan = [Plan { slow_clients_percent: 5, ..PLAN }, Plan { heavy: true, ..PLAN }][index];
        let mut world = World::new(seed, 4, Plan { in_flight: 24, ..plan });
        let mut tracks = vec![Track::default(); 4];
        world.run(&mut tracks, 62);
        world.endpoints[1].capacity /= 10.0;
        world.run(&mut tracks, 2);
        let at: Vec<_> = world.out.iter().map(|(_, at)| *at).collect();
        assert_eq!(at, [1], "{index} {seed}");
    }
}

#[test]
fn slow_clients_condemn_nobody() {
    let plans = [
        // All of one endpoint's clients take a hundredth of what it could send.
        Plan { client: |at| if at == 1 { 200.0 } else { 1e9 }, ..PLAN },
        Plan { client: |at| if at == 1 { 1_000.0 } else { 1e9 }, ..PLAN },
        Plan { client: |at| if at == 1 { 1e9 } else { 200.0 }, ..PLAN },
        Plan { client: |_| 300.0, ..PLAN },
    ];
    for (index, plan) in plans.into_iter().enumerate() {
        for seed in 0..4 {
            let mut world = World::new(seed, 4, plan);
            let mut tracks = vec![Track::default(); 4];
            world.run(&mut tracks, 30);
            assert_eq!(world.out, [], "plan {index}, seed {seed}");
        }
    }
}

#[test]
fn when_all_slow_down_at_once_none_is_out() {
    for seed in 0..4 {
        let mut world = World::new(seed, 5, PLAN);
        let mut tracks = vec![Track::default(); 5];
        world.run(&mut tracks, 5);
        world.endpoints.iter_mut().for_each(|endpoint| endpoint.capacity /= 10.0);
        world.run(&mut tracks, 30);
        assert_eq!(world.out, [], "{seed}");
    }
}
