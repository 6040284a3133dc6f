//! What endpoints can do beside each other, out of what is told of their load. Pure.
//!
//! An endpoint's share is how much of its declared weight it gets: what it can do while it is well, by
//! what it was seen to do (requests per second by utilization, as in gRFC A58), times the share of
//! its goodput that it has now, as it says itself. What it can do is not learned while it is not
//! well, so that sickness does not count twice.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    time::Duration,
};

use tokio::time::Instant;
use towpath_policies::model::{Endpoint, EndpointSet};
use towpath_xds::load::{APPLICATION, CPU, GOODPUT_FACTOR};

use super::sums::EndpointFigures;

/// Of a service: how much of its declared weight each endpoint gets; all of it where none is named.
pub(crate) type Shares = BTreeMap<SocketAddr, f64>;

/// What is remembered of services whose weights follow the load.
#[derive(Debug, Default)]
pub(crate) struct Weigher {
    services: HashMap<String, Service>,
}

/// By address.
type Service = HashMap<SocketAddr, Known>;

#[derive(Debug)]
struct Known {
    /// The share of its goodput.
    factor: f64,
    seen: Seen,
    heard: Instant,
}

/// What an endpoint was seen to do while it was well: sums over the last intervals, older ones the less.
#[derive(Debug, Default)]
struct Seen {
    /// Not by the second: how many make out the rest.
    requests: f64,
    intervals: f64,
    succeeded: f64,
    failed: f64,
    used: f64,
}

/// A share is served anew when it would move by more than this, up or down.
const HYSTERESIS: f64 = 0.1;
/// Bounds of a share. An endpoint must go on getting requests, since its reports come with them; and
/// whoever lies about one neither starves it nor sends it everything.
const LEAST: f64 = 0.1;
const MOST: f64 = 10.0;
/// With less of its goodput an endpoint is not well.
const WELL: f64 = 0.9;
/// How much of what was seen goes with each interval; less where that would leave too few requests.
const FADES: f64 = 0.3;
const ENOUGH: f64 = 300.0;
/// Fewer requests than this tell nothing.
const LEAST_REQUESTS: f64 = 30.0;
/// The declared weight counts as much as so many requests, so that chance moves no weight.
const DOUBT: f64 = 100.0;
/// With less in use a figure is mostly noise.
const LEAST_UTILIZATION: f64 = 0.01;
/// The weights of a set are written this fine.
const FINENESS: u32 = 100;
const MOST_WEIGHT: u32 = 1_000_000;

impl Weigher {
    /// Looks at the figures of an interval. `set` is what is declared, `in_force` the shares that are
    /// served; what was heard of an endpoint holds for so long. The shares where they are to be served
    /// anew.
    pub(crate) fn weigh(
        &mut self,
        set: &EndpointSet,
        in_force: &Shares,
        figures: &BTreeMap<SocketAddr, EndpointFigures>,
        now: Instant,
        holds: Duration,
    ) -> Option<Shares> {
        let endpoints = self.services.entry(set.service.clone()).or_default();
        let addresses: HashSet<SocketAddr> =
            set.endpoints.iter().map(|endpoint| endpoint.address).collect();
        endpoints.retain(|address, known| {
            now.saturating_duration_since(known.heard) <= holds && addresses.contains(address)
        });
        for endpoint in &set.endpoints {
            if let Some(figures) = figures.get(&endpoint.address) {
                hear(endpoints, endpoint.address, figures, now);
            }
        }
        let shares = shares(set, endpoints);
        let moves = set.endpoints.iter().any(|endpoint| {
            let of = |shares: &Shares| shares.get(&endpoint.address).copied().unwrap_or(1.0);
            let (before, after) = (of(in_force), of(&shares));
            let more = after.max(before) / after.min(before);
            more > 1.0 + HYSTERESIS || (more > 1.0 && !shares.contains_key(&endpoint.address))
        });
        moves.then_some(shares)
    }

    /// Forgets services whose weights do not follow the load any more.
    pub(crate) fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        self.services.retain(|service, _| wanted(service));
    }
}

fn hear(
    endpoints: &mut HashMap<SocketAddr, Known>,
    address: SocketAddr,
    figures: &EndpointFigures,
    now: Instant,
) {
    let news = |name: &str| figures.metrics.get(name).filter(|mean| mean.new);
    let metric = |name: &str| news(name).map(|mean| mean.value);
    let factor = metric(GOODPUT_FACTOR).map(|factor| factor.clamp(0.0, 1.0));
    let used = metric(APPLICATION).or(metric(CPU)).filter(|used| *used >= LEAST_UTILIZATION);
    if factor.is_none() && used.is_none() {
        return;
    }
    let known = endpoints.entry(address).or_insert(Known {
        factor: 1.0,
        seen: Seen::default(),
        heard: now,
    });
    known.heard = now;
    if let Some(factor) = factor {
        // Bad news is believed at once, good news by and by.
        let halfway = (known.factor + factor) / 2.0;
        let better = if factor - halfway < 0.02 { factor } else { halfway };
        known.factor = if factor < known.factor { factor } else { better };
    }
    if let Some(used) = used.filter(|_| known.factor >= WELL && figures.requests > 0) {
        known.seen.add(figures, used);
    }
}

impl Seen {
    fn add(&mut self, figures: &EndpointFigures, used: f64) {
        let keep = (ENOUGH / self.requests).clamp(1.0 - FADES, 1.0);
        let add = |sum: &mut f64, value: f64| *sum = *sum * keep + value;
        #[expect(clippy::cast_precision_loss, reason = "a weight of a mean")]
        add(&mut self.requests, figures.requests as f64);
        add(&mut self.intervals, 1.0);
        add(&mut self.succeeded, figures.rates.succeeded);
        add(&mut self.failed, figures.rates.failed);
        add(&mut self.used, used);
    }

    /// Requests per second that it would answer well were it used to the full. Who fails fast uses
    /// little, so failures count as use, and not as work.
    fn capacity(&self) -> Option<f64> {
        let ended = self.succeeded + self.failed;
        (self.requests >= LEAST_REQUESTS && ended > 0.0)
            .then(|| self.succeeded / (self.used + self.intervals * self.failed / ended))
    }
}

fn shares(set: &EndpointSet, endpoints: &HashMap<SocketAddr, Known>) -> Shares {
    let measured = |endpoint: &Endpoint| {
        let capacity = endpoints.get(&endpoint.address)?.seen.capacity()?;
        Some((f64::from(endpoint.weight), capacity))
    };
    let all: Vec<(f64, f64)> = set.endpoints.iter().filter_map(measured).collect();
    // Together those that were measured keep their weight, and share it by what they can do. One alone
    // has nothing to be compared with.
    let (weight, capacity) =
        all.iter().fold((0.0, 0.0), |(w, c), (weight, capacity)| (w + weight, c + capacity));
    let comparable = all.len() > 1 && capacity > 0.0;
    let share = |endpoint: &Endpoint| {
        let known = endpoints.get(&endpoint.address)?;
        let able = measured(endpoint).filter(|_| comparable);
        let able = able.map_or(1.0, |(own, able)| {
            let seen = known.seen.requests;
            (able / capacity * weight / own * seen + DOUBT) / (seen + DOUBT)
        });
        let share = (able * known.factor).clamp(LEAST, MOST);
        (share != 1.0).then_some((endpoint.address, share))
    };
    set.endpoints.iter().filter_map(share).collect()
}

/// The set with the shares put into its weights; `None` where there are none.
pub(crate) fn weighed(set: &EndpointSet, shares: Option<&Shares>) -> Option<EndpointSet> {
    let shares = shares.filter(|shares| !shares.is_empty())?;
    let weights = set.endpoints.iter().map(|endpoint| endpoint.weight);
    let (least, most) = (weights.clone().min()?.max(1), weights.max()?.max(1));
    let scale = FINENESS.div_ceil(least).min(MOST_WEIGHT / most).max(1);
    let mut set = set.clone();
    for endpoint in &mut set.endpoints {
        let share = shares.get(&endpoint.address).copied().unwrap_or(1.0);
        let weight = f64::from(endpoint.weight) * f64::from(scale) * share;
        endpoint.declared_weight = Some(endpoint.weight);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded")]
        let weight = weight.round().clamp(1.0, f64::from(MOST_WEIGHT)) as u32;
        endpoint.weight = weight;
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loads::sums::{Mean, Rates};

    const SECOND: Duration = Duration::from_secs(1);
    /// So many that nobody doubts.
    const MANY: u64 = 1_000_000;
    const HOLDS: Duration = Duration::from_secs(60);

    /// One whose word is served at once.
    #[derive(Default)]
    struct Serving {
        weigher: Weigher,
        in_force: Shares,
    }

    impl Serving {
        fn weigh(
            &mut self,
            set: &EndpointSet,
            figures: &BTreeMap<SocketAddr, EndpointFigures>,
            now: Instant,
            holds: Duration,
        ) -> Option<Shares> {
            let shares = self.weigher.weigh(set, &self.in_force, figures, now, holds)?;
            self.in_force.clone_from(&shares);
            Some(shares)
        }
    }

    fn at(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    fn set(weights: &[u32]) -> EndpointSet {
        let endpoint =
            |(port, weight): (u16, &u32)| Endpoint { weight: *weight, ..Endpoint::new(at(port)) };
        let endpoints = (1..).zip(weights).map(endpoint).collect();
        EndpointSet::new("s".into(), endpoints)
    }

    /// Port, requests served per second, and the means of metrics.
    type Told<'a> = (u16, f64, &'a [(&'a str, f64)]);

    fn figures(of: &[Told<'_>]) -> BTreeMap<SocketAddr, EndpointFigures> {
        let one = |(port, succeeded, metrics): &Told<'_>| {
            let mean = |(name, value): &(&str, f64)| {
                ((*name).to_owned(), Mean { value: *value, new: true })
            };
            let metrics = metrics.iter().map(mean).collect();
            let rates = Rates { succeeded: *succeeded, ..Rates::default() };
            (at(*port), EndpointFigures { rates, requests: MANY, metrics })
        };
        of.iter().map(one).collect()
    }

    fn sick(factor: f64) -> BTreeMap<SocketAddr, EndpointFigures> {
        figures(&[(1, 10.0, &[(GOODPUT_FACTOR, 1.0)]), (2, 10.0, &[(GOODPUT_FACTOR, factor)])])
    }

    fn weights(set: &EndpointSet, shares: &Shares) -> Vec<u32> {
        let set = weighed(set, Some(shares)).unwrap_or_else(|| set.clone());
        set.endpoints.iter().map(|endpoint| endpoint.weight).collect()
    }

    #[test]
    fn a_gpu_at_a_tenth_gets_a_tenth_at_once_and_its_weight_back_by_and_by() {
        let (mut weigher, set, now) = (Serving::default(), set(&[100, 200]), Instant::now());
        assert_eq!(weigher.weigh(&set, &sick(1.0), now, HOLDS), None);
        let shares = weigher.weigh(&set, &sick(0.1), now, HOLDS).unwrap();
        assert_eq!(weights(&set, &shares), [100, 20]);
        assert_eq!(weigher.weigh(&set, &sick(0.1), now, HOLDS), None, "said already");
        let mut given = Vec::new();
        for _ in 0..12 {
            let shares = weigher.weigh(&set, &sick(1.0), now, HOLDS);
            given.extend(shares.map(|shares| weights(&set, &shares)[1]));
        }
        assert_eq!(given, [110, 155, 178, 200]);
    }

    #[test]
    fn small_moves_are_not_served() {
        let (mut weigher, set, now) = (Serving::default(), set(&[100, 100]), Instant::now());
        assert_eq!(weigher.weigh(&set, &sick(0.92), now, HOLDS), None);
        assert!(weigher.weigh(&set, &sick(0.88), now, HOLDS).is_some());
        assert_eq!(weigher.weigh(&set, &sick(0.82), now, HOLDS), None);
        assert!(weigher.weigh(&set, &sick(0.5), now, HOLDS).is_some());
    }

    #[test]
    fn when_reports_cease_the_declared_weights_come_back() {
        let (mut weigher, set, now) = (Serving::default(), set(&[100, 100]), Instant::now());
        weigher.weigh(&set, &sick(0.5), now, HOLDS).unwrap();
        let none = BTreeMap::new();
        assert_eq!(weigher.weigh(&set, &none, now + HOLDS, HOLDS), None);
        let shares = weigher.weigh(&set, &none, now + HOLDS + SECOND, HOLDS).unwrap();
        assert_eq!(shares, Shares::new());
        assert_eq!(weigher.weigh(&set, &none, now + HOLDS + SECOND, HOLDS), None);
    }

    #[test]
    fn a_weight_is_at_least_a_tenth_and_at_most_ten_times_what_is_declared() {
        let (mut weigher, set, now) = (Serving::default(), set(&[100, 100]), Instant::now());
        let shares = weigher.weigh(&set, &sick(0.0), now, HOLDS).unwrap();
        assert_eq!(weights(&set, &shares), [100, 10]);
        // One that claims to do nearly everything with nearly nothing.
        let lie = figures(&[(1, 10.0, &[(CPU, 0.5)]), (2, 1e9, &[(CPU, 0.01)])]);
        let mut weigher = Serving::default();
        let shares = weigher.weigh(&set, &lie, now, HOLDS).unwrap();
        assert_eq!(weights(&set, &shares), [10, 200]);
    }

    #[test]
    fn what_endpoints_can_do_is_told_by_what_they_do_with_what_they_use() {
        let (mut weigher, set, now) = (Serving::default(), set(&[100, 100]), Instant::now());
        let twice =
            figures(&[(1, 10.0, &[(APPLICATION, 0.5), (CPU, 0.01)]), (2, 10.0, &[(CPU, 0.25)])]);
        let shares = weigher.weigh(&set, &twice, now, HOLDS).unwrap();
        assert_eq!(weights(&set, &shares), [67, 133]);
        // Declared so already: nothing is counted twice.
        let declared = super::tests::set(&[100, 200]);
        assert_eq!(Serving::default().weigh(&declared, &twice, now, HOLDS), None);
        // One alone is compared with nobody.
        let alone = figures(&[(1, 10.0, &[(CPU, 0.5)])]);
        assert_eq!(Serving::default().weigh(&set, &alone, now, HOLDS), None);
        // Errors count as use.
        let mut failing = figures(&[(1, 10.0, &[(CPU, 0.25)]), (2, 10.0, &[(CPU, 0.25)])]);
        let rates = Rates { succeeded: 5.0, failed: 5.0, ..Rates::default() };
        failing.get_mut(&at(2)).unwrap().rates = rates;
        let shares = Serving::default().weigh(&set, &failing, now, HOLDS).unwrap();
        assert_eq!(weights(&set, &shares), [171, 29]);
    }

    #[test]
    fn one_that_fails_fast_gets_less() {
        let (set, now) = (set(&[100, 100]), Instant::now());
        let mut figures = figures(&[(1, 100.0, &[(CPU, 0.5)]), (2, 100.0, &[(CPU, 0.01)])]);
        for (succeeded, failed, expected) in [(1.0, 999.0, [199, 10]), (20.0, 80.0, [178, 22])] {
            let rates = Rates { succeeded, failed, ..Rates::default() };
            figures.get_mut(&at(2)).unwrap().rates = rates;
            let shares = Serving::default().weigh(&set, &figures, now, HOLDS).unwrap();
            assert_eq!(weights(&set, &shares), expected, "{succeeded} {failed}");
        }
    }

    #[test]
    fn chance_moves_no_weight() {
        let (set, now) = (set(&[100; 4]), Instant::now());
        let half: &[(&str, f64)] = &[(CPU, 0.5)];
        let mut each = figures(&[(1, 0.0, half), (2, 0.0, half), (3, 0.0, half), (4, 0.0, half)]);
        for requests in [1_u32, 10, 100, 1_000] {
            let mut random = fastrand::Rng::with_seed(requests.into());
            let mut serving = Serving::default();
            for _ in 0..100 {
                for of in each.values_mut() {
                    // About so many, as chance has it.
                    let came: u32 =
                        (0..10 * requests).map(|_| u32::from(random.u8(..10) == 0)).sum();
                    of.requests = came.into();
                    of.rates.succeeded = f64::from(came) / 10.0;
                }
                assert_eq!(serving.weigh(&set, &each, now, HOLDS), None, "{requests}");
            }
        }
    }

    #[test]
    fn few_requests_add_up() {
        let (set, now) = (set(&[100, 100]), Instant::now());
        let mut serving = Serving::default();
        let mut each = figures(&[(1, 1.0, &[(CPU, 0.5)]), (2, 1.0, &[(CPU, 0.1)])]);
        each.values_mut().for_each(|of| of.requests = 10);
        assert_eq!(serving.weigh(&set, &each, now, HOLDS), None);
        assert_eq!(serving.weigh(&set, &each, now, HOLDS), None);
        let mut last = None;
        for _ in 0..40 {
            last = serving.weigh(&set, &each, now, HOLDS).or(last);
        }
        let last = weights(&set, &last.unwrap());
        assert!(last[1] >= 140 && last[0] <= 60, "{last:?}");
    }

    #[test]
    fn what_was_told_before_is_not_heard_again() {
        let (set, now) = (set(&[100, 100]), Instant::now());
        let mut serving = Serving::default();
        serving.weigh(&set, &sick(0.1), now, HOLDS).unwrap();
        let better = serving.weigh(&set, &sick(1.0), now, HOLDS).unwrap();
        assert_eq!(weights(&set, &better), [100, 55]);
        let mut again = sick(1.0);
        for mean in again.values_mut().flat_map(|of| of.metrics.values_mut()) {
            mean.new = false;
        }
        assert_eq!(serving.weigh(&set, &again, now, HOLDS), None);
    }

    #[test]
    fn shares_that_are_in_force_no_more_are_served_again() {
        let (set, now) = (set(&[100, 100]), Instant::now());
        let mut serving = Serving::default();
        let shares = serving.weigh(&set, &sick(0.1), now, HOLDS);
        // The policy said otherwise for a while.
        serving.in_force.clear();
        assert_eq!(serving.weigh(&set, &sick(0.1), now, HOLDS), shares);
    }

    #[test]
    fn sickness_that_shows_in_what_an_endpoint_does_counts_once() {
        let (mut weigher, set, now) = (Serving::default(), set(&[100, 100]), Instant::now());
        let at = |second: f64, factor: f64| {
            figures(&[
                (1, 10.0, &[(GOODPUT_FACTOR, 1.0), (APPLICATION, 0.5)]),
                (2, second, &[(GOODPUT_FACTOR, factor), (APPLICATION, 0.5)]),
            ])
        };
        assert_eq!(weigher.weigh(&set, &at(10.0, 1.0), now, HOLDS), None);
        let shares = weigher.weigh(&set, &at(1.0, 0.1), now, HOLDS).unwrap();
        assert_eq!(weights(&set, &shares), [100, 10]);
        for _ in 0..20 {
            assert_eq!(weigher.weigh(&set, &at(1.0, 0.1), now, HOLDS), None);
        }
    }

    #[test]
    fn small_weights_are_written_finer() {
        let set = set(&[1, 3]);
        let shares = Shares::from([(at(2), 0.1)]);
        assert_eq!(weights(&set, &shares), [100, 30]);
        let heavy = super::tests::set(&[1, 1_000_000]);
        assert_eq!(weights(&heavy, &Shares::from([(at(2), 0.5)])), [1, 500_000]);
        assert_eq!(weighed(&set, Some(&Shares::new())), None);
        let declared: Vec<_> = weighed(&set, Some(&shares))
            .unwrap()
            .endpoints
            .iter()
            .map(Endpoint::declared)
            .collect();
        assert_eq!(declared, [1, 3]);
    }
}
