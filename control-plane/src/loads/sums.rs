//! What clients told, in sums by service, place and endpoint. Pure: time is an argument.
//!
//! What was told last of each stream is kept, and lost with it. What endpoints say of themselves is
//! kept for the interval in which it is told, whoever told it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use towpath_policies::model::{EndpointSet, Locality};
use towpath_xds::{
    load::{BYTES, Load, LocalityLoad, ServiceLoad, Sum},
    server::StreamId,
};

/// Everything that was told of late.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    streams: HashMap<StreamId, Stream>,
    /// Endpoints and places that streams told of, all together.
    entries: usize,
    heard: Heard,
}

/// What was told of endpoints in an interval, by service.
pub(crate) type Heard = HashMap<String, HashMap<SocketAddr, News>>;

/// What was told of an endpoint in an interval.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Requests that ended.
    requests: u64,
    /// What it said of itself, by name.
    metrics: BTreeMap<String, Sum>,
}

/// An interval that is over, to be looked at while others go on.
#[derive(Debug, Default)]
pub(crate) struct Interval {
    /// What streams told last, by service.
    told: Vec<(String, Arc<Told>)>,
    pub(crate) heard: Heard,
}

#[derive(Debug)]
struct Stream {
    at: Instant,
    services: HashMap<String, Arc<Told>>,
}

#[derive(Debug, Default)]
pub(crate) struct Told {
    dropped: f64,
    places: HashMap<Locality, Rates>,
    endpoints: HashMap<SocketAddr, Rates>,
}

/// How much goes somewhere, in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    pub(crate) succeeded: f64,
    pub(crate) failed: f64,
    pub(crate) bytes: f64,
    /// Not by the second: those that have not ended.
    pub(crate) in_progress: u64,
}

/// What all clients together do with a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ServiceFigures {
    pub(crate) dropped: f64,
    pub(crate) places: BTreeMap<Locality, Rates>,
    pub(crate) endpoints: BTreeMap<SocketAddr, EndpointFigures>,
}

/// What all clients together do with an endpoint, and what it says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct EndpointFigures {
    pub(crate) rates: Rates,
    /// Requests of which it was told in this interval that they ended.
    pub(crate) requests: u64,
    /// By name.
    pub(crate) metrics: BTreeMap<String, Mean>,
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mean {
    pub(crate) value: f64,
    /// It was told in this interval, not in the one before.
    pub(crate) new: bool,
}

/// Most streams.
const MOST_STREAMS: usize = 20_000;
/// Most endpoints and places that all streams together tell of.
const MOST_ENTRIES: usize = 1_000_000;
/// Names of metrics kept of an endpoint, whoever tells them.
const MOST_METRICS: usize = 16;
/// A shorter time than this is no time to tell rates from.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(3600);

impl Sums {
    /// A client offers reports; false where there are too many already.
    pub(crate) fn began(&mut self, stream: StreamId, now: Instant) -> bool {
        let room = self.streams.len() < MOST_STREAMS;
        if room {
            self.streams.insert(stream, Stream { at: now, services: HashMap::new() });
        }
        room
    }

    /// A client tells what it did of late, of services each of which is named once. Endpoints and
    /// places that are not known are left out.
    pub(crate) fn told(
        &mut self,
        stream: StreamId,
        loads: Vec<(Arc<Places>, ServiceLoad)>,
        now: Instant,
    ) {
        let Some(Stream { at, services }) = self.streams.get_mut(&stream) else { return };
        let since = now.saturating_duration_since(*at);
        *at = now;
        self.entries -= services.drain().map(|(_, told)| told.entries()).sum::<usize>();
        for (places, load) in loads {
            if services.contains_key(&load.service) {
                continue;
            }
            let over = if load.over.is_zero() { since } else { load.over };
            let over = over.clamp(SHORTEST, LONGEST).as_secs_f64();
            let room = MOST_ENTRIES - self.entries;
            let mut told = Told { dropped: real(load.dropped) / over, ..Told::default() };
            let heard = self.heard.entry(load.service.clone()).or_default();
            for place in load.localities {
                if told.entries() + place.endpoints.len() + 1 > room {
                    break;
                }
                told.add(place, over, &places, heard);
            }
            self.entries += told.entries();
            services.insert(load.service, Arc::new(told));
        }
    }

    /// A stream ended.
    pub(crate) fn ended(&mut self, stream: StreamId) {
        if let Some(gone) = self.streams.remove(&stream) {
            self.entries -= gone.services.values().map(|told| told.entries()).sum::<usize>();
        }
    }

    /// An interval is over: what was told, without streams that have told nothing for longer than
    /// `holds`.
    pub(crate) fn turn(&mut self, now: Instant, holds: Duration) -> Interval {
        let fresh = |stream: &&Stream| now.saturating_duration_since(stream.at) <= holds;
        let told = self.streams.values().filter(fresh).flat_map(|stream| &stream.services);
        let told = told.map(|(service, told)| (service.clone(), told.clone())).collect();
        Interval { told, heard: std::mem::take(&mut self.heard) }
    }
}

impl Interval {
    /// All of it together. What was heard in this interval goes before what was in the one before.
    pub(crate) fn figures(&self, before: &Heard) -> BTreeMap<String, ServiceFigures> {
        let mut all: BTreeMap<String, ServiceFigures> = BTreeMap::new();
        for (service, told) in &self.told {
            let figures = all.entry(service.clone()).or_default();
            figures.dropped += told.dropped;
            for (place, rates) in &told.places {
                figures.places.entry(place.clone()).or_default().add(rates);
            }
            for (address, rates) in &told.endpoints {
                figures.endpoints.entry(*address).or_default().rates.add(rates);
            }
        }
        for (heard, new) in [(before, false), (&self.heard, true)] {
            for (service, endpoints) in heard {
                let Some(figures) = all.get_mut(service) else { continue };
                for (address, news) in endpoints {
                    if let Some(endpoint) = figures.endpoints.get_mut(address) {
                        endpoint.hear(news, new);
                    }
                }
            }
        }
        all
    }
}

impl EndpointFigures {
    fn hear(&mut self, news: &News, new: bool) {
        if new {
            self.requests = news.requests;
        }
        let mean =
            |(name, sum): (&String, &Sum)| Some((name.clone(), Mean { value: sum.mean()?, new }));
        self.metrics.extend(news.metrics.iter().filter_map(mean));
    }
}

/// The addresses of a service, and those that are alone where they are.
#[derive(Debug)]
pub(crate) struct Places {
    set: Arc<EndpointSet>,
    addresses: HashSet<SocketAddr>,
    alone: HashMap<Locality, Option<SocketAddr>>,
}

impl Places {
    pub(crate) fn of(set: Arc<EndpointSet>) -> Self {
        let mut alone = HashMap::new();
        for endpoint in &set.endpoints {
            match alone.get_mut(&endpoint.locality) {
                Some(only) => *only = None,
                None => {
                    alone.insert(endpoint.locality.clone(), Some(endpoint.address));
                }
            }
        }
        let addresses = set.endpoints.iter().map(|endpoint| endpoint.address).collect();
        Self { set, addresses, alone }
    }

    /// Whether they are those of just this set.
    pub(crate) fn are_of(&self, set: &Arc<EndpointSet>) -> bool {
        Arc::ptr_eq(&self.set, set)
    }
}

impl Told {
    fn entries(&self) -> usize {
        self.places.len() + self.endpoints.len()
    }

    fn add(
        &mut self,
        place: LocalityLoad,
        over: f64,
        known: &Places,
        heard: &mut HashMap<SocketAddr, News>,
    ) {
        let Some(alone) = known.alone.get(&place.locality) else { return };
        if place.endpoints.is_empty()
            && let Some(address) = *alone
        {
            // Clients of gRPC tell of places only.
            self.add_endpoint(address, &place.load, over, heard.entry(address).or_default());
        }
        self.places.entry(place.locality).or_default().add(&Rates::of(&place.load, over));
        for endpoint in place.endpoints {
            let address = endpoint.address;
            if known.addresses.contains(&address) {
                let heard = heard.entry(address).or_default();
                self.add_endpoint(address, &endpoint.load, over, heard);
            }
        }
    }

    fn add_endpoint(&mut self, at: SocketAddr, load: &Load, over: f64, heard: &mut News) {
        self.endpoints.entry(at).or_default().add(&Rates::of(load, over));
        let ended = load.succeeded.saturating_add(load.failed);
        heard.requests = heard.requests.saturating_add(ended);
        let kept = &mut heard.metrics;
        for (name, sum) in load.metrics.iter().filter(|(name, _)| *name != BYTES) {
            let room = kept.len() < MOST_METRICS;
            match kept.get_mut(name) {
                Some(kept) => kept.add(*sum),
                None if room => drop(kept.insert(name.clone(), *sum)),
                None => {}
            }
        }
    }
}

impl Rates {
    fn of(load: &Load, over: f64) -> Self {
        Self {
            succeeded: real(load.succeeded) / over,
            failed: real(load.failed) / over,
            bytes: load.metrics.get(BYTES).map_or(0.0, |bytes| bytes.total) / over,
            in_progress: load.in_progress,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.bytes += other.bytes;
        self.in_progress = self.in_progress.saturating_add(other.in_progress);
    }

    /// Requests that ended.
    pub(crate) fn ended(&self) -> f64 {
        self.succeeded + self.failed
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn real(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use towpath_policies::model::Endpoint;
    use towpath_xds::load::EndpointLoad;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    fn region(name: &str) -> Locality {
        Locality { region: name.to_owned(), ..Locality::default() }
    }

    /// Two endpoints in `us`, one in `eu`.
    fn known(service: &str) -> Option<Arc<EndpointSet>> {
        let endpoint = |port, name| Endpoint { locality: region(name), ..Endpoint::new(at(port)) };
        let endpoints = vec![endpoint(1, "us"), endpoint(2, "us"), endpoint(3, "eu")];
        (service == "s").then(|| Arc::new(EndpointSet::new(service.into(), endpoints)))
    }

    fn hear(sums: &mut Sums, stream: StreamId, loads: Vec<ServiceLoad>, now: Instant) {
        let known = |load: ServiceLoad| {
            let places = Places::of(known(&load.service)?);
            Some((Arc::new(places), load))
        };
        sums.told(stream, loads.into_iter().filter_map(known).collect(), now);
    }

    /// The figures of an interval that ends now and the next to begin.
    fn summed(sums: &mut Sums, now: Instant, holds: Duration) -> BTreeMap<String, ServiceFigures> {
        let interval = sums.turn(now, holds);
        let figures = interval.figures(&Heard::new());
        sums.heard = interval.heard;
        figures
    }

    fn load(succeeded: u64, failed: u64, factor: Option<f64>) -> Load {
        let metric = |factor| ("towpath.goodput_factor".to_owned(), Sum::of(factor));
        let mut metrics: BTreeMap<_, _> = factor.map(metric).into_iter().collect();
        metrics.insert(BYTES.to_owned(), Sum { count: succeeded, total: 1e3 });
        Load { issued: succeeded + failed, succeeded, failed, in_progress: 1, metrics }
    }

    fn report(name: &str, endpoints: &[(u16, Load)]) -> ServiceLoad {
        let mut whole = Load::default();
        endpoints.iter().for_each(|(_, load)| whole.add(load));
        let each =
            |(port, load): &(u16, Load)| EndpointLoad { address: at(*port), load: load.clone() };
        let endpoints = endpoints.iter().map(each).collect();
        let place = LocalityLoad { locality: region(name), load: whole, endpoints, priority: 0 };
        ServiceLoad { service: "s".into(), over: 10 * SECOND, dropped: 5, localities: vec![place] }
    }

    #[test]
    fn streams_add_up_and_what_one_told_goes_with_it() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        let (a, b) = (StreamId(1), StreamId(2));
        assert!(sums.began(a, now) && sums.began(b, now));
        let told =
            |factor| vec![report("us", &[(1, load(20, 10, Some(factor))), (2, load(5, 0, None))])];
        hear(&mut sums, a, told(1.0), now);
        hear(&mut sums, b, told(0.5), now);
        let figures = summed(&mut sums, now, SECOND).remove("s").unwrap();
        let first = &figures.endpoints[&at(1)];
        assert_eq!(
            first.rates,
            Rates { succeeded: 4.0, failed: 2.0, bytes: 200.0, in_progress: 2 }
        );
        assert_eq!(first.metrics["towpath.goodput_factor"].value, 0.75);
        assert_eq!((figures.dropped, figures.places[&region("us")].succeeded), (1.0, 5.0));
        // Told anew: what it told before counts no more.
        hear(&mut sums, a, vec![report("us", &[(2, load(10, 0, None))])], now);
        let figures = summed(&mut sums, now, SECOND).remove("s").unwrap();
        assert_eq!(figures.endpoints[&at(1)].rates.succeeded, 2.0);
        assert_eq!(figures.endpoints[&at(2)].rates.succeeded, 1.5);
        sums.ended(b);
        let figures = summed(&mut sums, now, SECOND).remove("s").unwrap();
        assert!(!figures.endpoints.contains_key(&at(1)));
        sums.ended(a);
        assert!(summed(&mut sums, now, SECOND).is_empty() && sums.entries == 0);
    }

    #[test]
    fn a_stream_that_falls_silent_counts_no_more() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        sums.began(StreamId(1), now);
        hear(&mut sums, StreamId(1), vec![report("us", &[(1, load(1, 0, None))])], now);
        assert_eq!(summed(&mut sums, now + 30 * SECOND, 30 * SECOND).len(), 1);
        assert_eq!(summed(&mut sums, now + 31 * SECOND, 30 * SECOND).len(), 0);
    }

    #[test]
    fn metrics_are_those_of_the_newest_interval_that_has_some_and_new_once() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        sums.began(StreamId(1), now);
        let mut before = Heard::new();
        let mut interval = |factor: Option<Option<f64>>| {
            let loads = factor.map(|factor| vec![report("us", &[(1, load(2, 1, factor))])]);
            loads.into_iter().for_each(|loads| hear(&mut sums, StreamId(1), loads, now));
            let interval = sums.turn(now, SECOND);
            let mut figures = interval.figures(&before).remove("s").unwrap();
            before = interval.heard;
            let of = figures.endpoints.remove(&at(1)).unwrap();
            let factor = of.metrics.get("towpath.goodput_factor").copied();
            (of.requests, factor.map(|mean| (mean.value, mean.new)))
        };
        assert_eq!(interval(Some(Some(1.0))), (3, Some((1.0, true))));
        assert_eq!(interval(None), (0, Some((1.0, false))), "told before, and no news");
        assert_eq!(interval(Some(Some(0.25))), (3, Some((0.25, true))));
        assert_eq!(interval(Some(None)), (3, Some((0.25, false))));
        assert_eq!(interval(None), (0, None));
    }

    #[test]
    fn only_what_the_mesh_knows_is_kept() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        sums.began(StreamId(1), now);
        let mut other = report("us", &[(1, load(1, 0, None))]);
        other.service = "unknown".into();
        let mut ours = report("mars", &[(1, load(1, 0, None))]);
        ours.localities.extend(report("us", &[(9, load(1, 0, None))]).localities);
        let again = report("us", &[(1, load(1, 0, None))]);
        let loads = vec![other, ours, again];
        hear(&mut sums, StreamId(1), loads.clone(), now);
        let figures = summed(&mut sums, now, SECOND);
        assert_eq!(figures.keys().collect::<Vec<_>>(), ["s"]);
        assert!(figures["s"].endpoints.is_empty());
        assert_eq!(figures["s"].places.keys().collect::<Vec<_>>(), [&region("us")]);
        assert_eq!(sums.entries, 1);
        // And nothing of a stream that never began.
        hear(&mut sums, StreamId(7), loads, now);
        assert_eq!(sums.entries, 1);
    }

    #[test]
    fn metrics_of_an_endpoint_are_bounded_whoever_tells_them() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        for stream in 0..10 {
            sums.began(StreamId(stream), now);
            let mut odd = load(1, 0, None);
            odd.metrics = (0..10).map(|i| (format!("{stream}-{i}"), Sum::of(1.0))).collect();
            hear(&mut sums, StreamId(stream), vec![report("us", &[(1, odd)])], now);
        }
        let figures = summed(&mut sums, now, SECOND);
        assert_eq!(figures["s"].endpoints[&at(1)].metrics.len(), MOST_METRICS);
    }

    #[test]
    fn a_report_about_no_time_is_about_the_time_since_the_last() {
        let (mut sums, start) = (Sums::default(), Instant::now());
        sums.began(StreamId(1), start);
        let mut timeless = report("us", &[(1, load(40, 0, None))]);
        timeless.over = Duration::ZERO;
        let tell = |sums: &mut Sums, now| {
            hear(sums, StreamId(1), vec![timeless.clone()], now);
            summed(sums, now, SECOND)["s"].endpoints[&at(1)].rates.succeeded
        };
        assert_eq!(tell(&mut sums, start + 4 * SECOND), 10.0);
        assert_eq!(
            tell(&mut sums, start + 4 * SECOND),
            800.0,
            "no time at all is taken for a little"
        );
    }

    #[test]
    fn the_only_endpoint_of_a_place_is_what_is_told_of_the_place() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        sums.began(StreamId(1), now);
        let of_place = |name: &str| {
            let mut report = report(name, &[(3, load(10, 0, Some(0.5)))]);
            report.localities[0].endpoints.clear();
            report
        };
        let mut both = of_place("us");
        both.localities.extend(of_place("eu").localities);
        hear(&mut sums, StreamId(1), vec![both], now);
        let figures = summed(&mut sums, now, SECOND).remove("s").unwrap();
        assert_eq!(figures.endpoints.keys().collect::<Vec<_>>(), [&at(3)]);
        assert_eq!(figures.endpoints[&at(3)].metrics["towpath.goodput_factor"].value, 0.5);
    }

    #[test]
    fn streams_are_bounded() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        for stream in 0..MOST_STREAMS as u64 {
            assert!(sums.began(StreamId(stream), now));
        }
        assert!(!sums.began(StreamId(u64::MAX), now));
    }
}
