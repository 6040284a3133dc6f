//! What clients told, in sums by service, place and endpoint. Pure: time is an argument.
//!
//! What was told last of each stream is kept, and lost with it. Of metrics only the sums of an
//! interval are kept, whoever told them.

use std::{
    collections::{BTreeMap, HashMap},
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
    /// Metrics of this interval and of the one before.
    metrics: [HashMap<String, Metrics>; 2],
}

/// By endpoint and name.
type Metrics = HashMap<SocketAddr, BTreeMap<String, Sum>>;

#[derive(Debug)]
struct Stream {
    at: Instant,
    services: HashMap<String, Told>,
}

#[derive(Debug, Default)]
struct Told {
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
    /// Means by name.
    pub(crate) metrics: BTreeMap<String, f64>,
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

    /// A client tells what it did of late. `known`: the endpoints of a service; what is not among them
    /// is left out.
    pub(crate) fn told(
        &mut self,
        stream: StreamId,
        loads: Vec<ServiceLoad>,
        known: impl Fn(&str) -> Option<Arc<EndpointSet>>,
        now: Instant,
    ) {
        let Some(Stream { at, services }) = self.streams.get_mut(&stream) else { return };
        let since = now.saturating_duration_since(*at);
        *at = now;
        self.entries -= services.drain().map(|(_, told)| told.entries()).sum::<usize>();
        let [window, _] = &mut self.metrics;
        for load in loads {
            let Some(set) = known(&load.service) else { continue };
            let over = if load.over.is_zero() { since } else { load.over };
            let over = over.clamp(SHORTEST, LONGEST).as_secs_f64();
            let room = MOST_ENTRIES - self.entries;
            let told = services.entry(load.service.clone()).or_default();
            let before = told.entries();
            told.dropped += real(load.dropped) / over;
            let metrics = window.entry(load.service).or_default();
            let places = Places::of(&set);
            for place in load.localities {
                if told.entries() - before + place.endpoints.len() + 1 > room {
                    break;
                }
                told.add(place, over, &places, metrics);
            }
            self.entries += told.entries() - before;
        }
    }

    /// A stream ended.
    pub(crate) fn ended(&mut self, stream: StreamId) {
        if let Some(gone) = self.streams.remove(&stream) {
            self.entries -= gone.services.values().map(Told::entries).sum::<usize>();
        }
    }

    /// An interval is over.
    pub(crate) fn turn(&mut self) {
        let [window, before] = &mut self.metrics;
        *before = std::mem::take(window);
    }

    /// What was told, without streams that have told nothing for longer than `holds`.
    pub(crate) fn figures(
        &self,
        now: Instant,
        holds: Duration,
    ) -> BTreeMap<String, ServiceFigures> {
        let mut all: BTreeMap<String, ServiceFigures> = BTreeMap::new();
        let fresh = |stream: &&Stream| now.saturating_duration_since(stream.at) <= holds;
        for stream in self.streams.values().filter(fresh) {
            for (service, told) in &stream.services {
                let figures = all.entry(service.clone()).or_default();
                figures.dropped += told.dropped;
                for (place, rates) in &told.places {
                    figures.places.entry(place.clone()).or_default().add(rates);
                }
                for (address, rates) in &told.endpoints {
                    figures.endpoints.entry(*address).or_default().rates.add(rates);
                }
            }
        }
        // What this interval says goes before what the last one said.
        for window in self.metrics.iter().rev() {
            for (service, endpoints) in window {
                let Some(figures) = all.get_mut(service) else { continue };
                for (address, sums) in endpoints {
                    let Some(endpoint) = figures.endpoints.get_mut(address) else { continue };
                    let means =
                        sums.iter().filter_map(|(name, sum)| Some((name.clone(), sum.mean()?)));
                    endpoint.metrics.extend(means);
                }
            }
        }
        all
    }
}

/// The addresses of a service, and those that are alone where they are.
struct Places<'a> {
    addresses: HashMap<SocketAddr, &'a Locality>,
    alone: HashMap<&'a Locality, Option<SocketAddr>>,
}

impl<'a> Places<'a> {
    fn of(set: &'a EndpointSet) -> Self {
        let mut alone = HashMap::new();
        for endpoint in &set.endpoints {
            alone
                .entry(&endpoint.locality)
                .and_modify(|only| *only = None)
                .or_insert(Some(endpoint.address));
        }
        let addresses = set.endpoints.iter().map(|e| (e.address, &e.locality)).collect();
        Self { addresses, alone }
    }
}

impl Told {
    fn entries(&self) -> usize {
        self.places.len() + self.endpoints.len()
    }

    fn add(&mut self, place: LocalityLoad, over: f64, known: &Places<'_>, metrics: &mut Metrics) {
        let Some(alone) = known.alone.get(&place.locality) else { return };
        if place.endpoints.is_empty()
            && let Some(address) = *alone
        {
            // Clients of gRPC tell of places only.
            self.add_endpoint(address, &place.load, over, metrics);
        }
        self.places.entry(place.locality).or_default().add(&Rates::of(&place.load, over));
        for endpoint in place.endpoints {
            if known.addresses.contains_key(&endpoint.address) {
                self.add_endpoint(endpoint.address, &endpoint.load, over, metrics);
            }
        }
    }

    fn add_endpoint(&mut self, at: SocketAddr, load: &Load, over: f64, metrics: &mut Metrics) {
        self.endpoints.entry(at).or_default().add(&Rates::of(load, over));
        let kept = metrics.entry(at).or_default();
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
        sums.told(a, told(1.0), known, now);
        sums.told(b, told(0.5), known, now);
        let figures = sums.figures(now, SECOND).remove("s").unwrap();
        let first = &figures.endpoints[&at(1)];
        assert_eq!(
            first.rates,
            Rates { succeeded: 4.0, failed: 2.0, bytes: 200.0, in_progress: 2 }
        );
        assert_eq!(first.metrics["towpath.goodput_factor"], 0.75);
        assert_eq!((figures.dropped, figures.places[&region("us")].succeeded), (1.0, 5.0));
        // Told anew: what it told before counts no more.
        sums.told(a, vec![report("us", &[(2, load(10, 0, None))])], known, now);
        let figures = sums.figures(now, SECOND).remove("s").unwrap();
        assert_eq!(figures.endpoints[&at(1)].rates.succeeded, 2.0);
        assert_eq!(figures.endpoints[&at(2)].rates.succeeded, 1.5);
        sums.ended(b);
        let figures = sums.figures(now, SECOND).remove("s").unwrap();
        assert!(!figures.endpoints.contains_key(&at(1)));
        sums.ended(a);
        assert!(sums.figures(now, SECOND).is_empty() && sums.entries == 0);
    }

    #[test]
    fn a_stream_that_falls_silent_counts_no_more() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        sums.began(StreamId(1), now);
        sums.told(StreamId(1), vec![report("us", &[(1, load(1, 0, None))])], known, now);
        assert_eq!(sums.figures(now + 30 * SECOND, 30 * SECOND).len(), 1);
        assert_eq!(sums.figures(now + 31 * SECOND, 30 * SECOND).len(), 0);
    }

    #[test]
    fn metrics_are_those_of_the_newest_interval_that_has_some() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        sums.began(StreamId(1), now);
        let tell = |sums: &mut Sums, factor| {
            let loads = vec![report("us", &[(1, load(1, 0, factor))])];
            sums.told(StreamId(1), loads, known, now);
            let figures = sums.figures(now, SECOND);
            figures["s"].endpoints[&at(1)].metrics.get("towpath.goodput_factor").copied()
        };
        assert_eq!(tell(&mut sums, Some(1.0)), Some(1.0));
        sums.turn();
        assert_eq!(tell(&mut sums, None), Some(1.0));
        assert_eq!(tell(&mut sums, Some(0.25)), Some(0.25));
        sums.turn();
        sums.turn();
        assert_eq!(tell(&mut sums, None), None);
    }

    #[test]
    fn only_what_the_mesh_knows_is_kept() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        sums.began(StreamId(1), now);
        let mut other = report("us", &[(1, load(1, 0, None))]);
        other.service = "unknown".into();
        let loads = vec![
            other,
            report("mars", &[(1, load(1, 0, None))]),
            report("us", &[(9, load(1, 0, None))]),
        ];
        sums.told(StreamId(1), loads.clone(), known, now);
        let figures = sums.figures(now, SECOND);
        assert_eq!(figures.keys().collect::<Vec<_>>(), ["s"]);
        assert!(figures["s"].endpoints.is_empty());
        assert_eq!(figures["s"].places.keys().collect::<Vec<_>>(), [&region("us")]);
        assert_eq!(sums.entries, 1);
        // And nothing of a stream that never began.
        sums.told(StreamId(7), loads, known, now);
        assert_eq!(sums.entries, 1);
    }

    #[test]
    fn metrics_of_an_endpoint_are_bounded_whoever_tells_them() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        for stream in 0..10 {
            sums.began(StreamId(stream), now);
            let mut odd = load(1, 0, None);
            odd.metrics = (0..10).map(|i| (format!("{stream}-{i}"), Sum::of(1.0))).collect();
            sums.told(StreamId(stream), vec![report("us", &[(1, odd)])], known, now);
        }
        let figures = sums.figures(now, SECOND);
        assert_eq!(figures["s"].endpoints[&at(1)].metrics.len(), MOST_METRICS);
    }

    #[test]
    fn a_report_about_no_time_is_about_the_time_since_the_last() {
        let (mut sums, start) = (Sums::default(), Instant::now());
        sums.began(StreamId(1), start);
        let mut timeless = report("us", &[(1, load(40, 0, None))]);
        timeless.over = Duration::ZERO;
        let tell = |sums: &mut Sums, now| {
            sums.told(StreamId(1), vec![timeless.clone()], known, now);
            sums.figures(now, SECOND)["s"].endpoints[&at(1)].rates.succeeded
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
        sums.told(StreamId(1), vec![of_place("us"), of_place("eu")], known, now);
        let figures = sums.figures(now, SECOND).remove("s").unwrap();
        assert_eq!(figures.endpoints.keys().collect::<Vec<_>>(), [&at(3)]);
        assert_eq!(figures.endpoints[&at(3)].metrics["towpath.goodput_factor"], 0.5);
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
