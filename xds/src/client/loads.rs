//! The client's half of load reports (LRS), as a state machine without I/O: told what was counted so
//! far, it says what is new since the last report, as often as the server wants.

mod shell;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::Instant,
};

use towpath_policies::model::Locality;

use crate::load::{EndpointLoad, Load, LocalityLoad, ServiceLoad, Sum, Terms};
pub(super) use shell::report;

/// What a client has counted for a service so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    /// The service.
    pub service: String,
    /// Requests refused instead of being sent.
    pub dropped: u64,
    /// Its endpoints.
    pub endpoints: Vec<CountedEndpoint>,
}

/// What a client has counted for an endpoint so far. Sums only grow; one that is less than before
/// has begun anew.
#[derive(Clone, Debug, PartialEq)]
pub struct CountedEndpoint {
    /// Its address.
    pub address: SocketAddr,
    /// Where it stands.
    pub locality: Locality,
    /// Its priority.
    pub priority: u32,
    /// Requests issued.
    pub issued: u64,
    /// Of these: failed for a reason of the endpoint's.
    pub failed: u64,
    /// Of these: not ended by now.
    pub in_progress: u64,
    /// Metrics and the sums of their values.
    pub metrics: Vec<(&'static str, Sum)>,
    /// Metrics that have one value at a time, and what it is now. Told where there is other news.
    pub now: Vec<(&'static str, f64)>,
}

/// Most endpoints named in a report, so that it is one that servers take; of the rest only places are
/// told.
const MOST_ENDPOINTS: usize = 40_000;

/// Asks for what was counted.
pub type Count = dyn Fn() -> Vec<Counted> + Send + Sync;

/// One stream of reports to a server.
#[derive(Debug, Default)]
pub struct Reports {
    terms: Option<Terms>,
    due: Option<Instant>,
    before: BTreeMap<String, Before>,
}

/// A service at its last report.
#[derive(Debug)]
struct Before {
    at: Instant,
    dropped: u64,
    endpoints: HashMap<SocketAddr, CountedEndpoint>,
}

impl Reports {
    /// The server says what it wants to be told. What it was told before goes on where it was; what
    /// is new begins here.
    pub fn asked(&mut self, terms: Terms, counted: Vec<Counted>, now: Instant) {
        self.due = now.checked_add(terms.every);
        self.before.retain(|service, _| terms.want(service));
        for counted in counted.into_iter().filter(|counted| terms.want(&counted.service)) {
            self.before.entry(counted.service.clone()).or_insert_with(|| Before::new(counted, now));
        }
        self.terms = Some(terms);
    }

    /// When the next report is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// What is new since the last report; `None` where none is due. Services of which there is no
    /// news are left out.
    pub fn report(&mut self, counted: Vec<Counted>, now: Instant) -> Option<Vec<ServiceLoad>> {
        let terms = self.terms.as_ref().filter(|_| self.due.is_some_and(|due| now >= due))?;
        self.due = now.checked_add(terms.every);
        let mut before = std::mem::take(&mut self.before);
        let mut loads = Vec::new();
        let mut room = if terms.per_endpoint { MOST_ENDPOINTS } else { 0 };
        for counted in counted.into_iter().filter(|counted| terms.want(&counted.service)) {
            // One that was not there before begins here.
            let load =
                before.remove(&counted.service).map(|before| before.news(&counted, &mut room, now));
            loads.extend(load.filter(|load| load.dropped > 0 || !load.localities.is_empty()));
            self.before.insert(counted.service.clone(), Before::new(counted, now));
        }
        Some(loads)
    }

    /// The report that is due cannot be sent now; what it would say is said in the next.
    pub fn skip(&mut self, now: Instant) {
        self.due = self.terms.as_ref().and_then(|terms| now.checked_add(terms.every));
    }
}

impl Before {
    fn new(counted: Counted, at: Instant) -> Self {
        let endpoints = counted.endpoints.into_iter().map(|e| (e.address, e)).collect();
        Self { at, dropped: counted.dropped, endpoints }
    }

    fn news(&self, counted: &Counted, room: &mut usize, now: Instant) -> ServiceLoad {
        let mut places: BTreeMap<(u32, &Locality), LocalityLoad> = BTreeMap::new();
        for endpoint in &counted.endpoints {
            let load = endpoint.since(self.endpoints.get(&endpoint.address));
            if load.is_nothing() {
                continue;
            }
            let place = places.entry((endpoint.priority, &endpoint.locality)).or_default();
            place.load.add(&load);
            if *room > 0 {
                *room -= 1;
                place.endpoints.push(EndpointLoad { address: endpoint.address, load });
            }
        }
        let localities = places.into_iter().map(|((priority, locality), load)| LocalityLoad {
            priority,
            locality: locality.clone(),
            ..load
        });
        ServiceLoad {
            service: counted.service.clone(),
            over: now.saturating_duration_since(self.at),
            dropped: grown(self.dropped, counted.dropped),
            localities: localities.collect(),
        }
    }
}

impl CountedEndpoint {
    fn since(&self, before: Option<&Self>) -> Load {
        let of = |figure: fn(&Self) -> u64| before.map_or(0, figure);
        let issued = grown(of(|b| b.issued), self.issued);
        let failed = grown(of(|b| b.failed), self.failed);
        let ended = issued.saturating_add(of(|b| b.in_progress)).saturating_sub(self.in_progress);
        let metric = |(name, now): &(&'static str, Sum)| {
            let before = before.and_then(|b| b.metrics.iter().find(|(known, _)| known == name));
            let before = before.map_or(Sum::default(), |(_, sum)| *sum);
            let news = match now.count.checked_sub(before.count) {
                Some(count) => Sum { count, total: now.total - before.total },
                None => *now,
            };
            // Of a transfer that lasts bytes come between its beginning and its end.
            let count = news.count.max((news.total > 0.0).into());
            (count > 0).then(|| ((*name).to_owned(), Sum { count, ..news }))
        };
        let mut load = Load {
            issued,
            failed,
            succeeded: ended.saturating_sub(failed),
            in_progress: self.in_progress,
            metrics: self.metrics.iter().filter_map(metric).collect(),
        };
        if !load.is_nothing() {
            let now = self.now.iter().map(|(name, value)| ((*name).to_owned(), Sum::of(*value)));
            load.metrics.extend(now);
        }
        load
    }
}

/// How much a sum has grown, or how much it is where it has begun anew.
fn grown(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn terms(services: Option<&[&str]>) -> Terms {
        let services = services.map(|names| names.iter().map(|n| (*n).to_owned()).collect());
        Terms { services, every: 10 * SECOND, per_endpoint: true }
    }

    fn endpoint(port: u16, issued: u64, failed: u64, in_progress: u64) -> CountedEndpoint {
        CountedEndpoint {
            address: ([10, 0, 0, 1], port).into(),
            locality: Locality::default(),
            priority: 0,
            issued,
            failed,
            in_progress,
            metrics: Vec::new(),
            now: vec![("towpath.goodput", 5e6)],
        }
    }

    fn counted(service: &str, dropped: u64, endpoints: Vec<CountedEndpoint>) -> Counted {
        Counted { service: service.to_owned(), dropped, endpoints }
    }

    fn figures(load: &Load) -> (u64, u64, u64, u64) {
        (load.issued, load.succeeded, load.failed, load.in_progress)
    }

    #[test]
    fn nothing_is_told_before_the_server_asks() {
        let mut reports = Reports::default();
        assert_eq!(reports.deadline(), None);
        assert_eq!(reports.report(vec![counted("s", 1, vec![])], Instant::now()), None);
    }

    #[test]
    fn each_report_says_what_is_new_since_the_last() {
        let start = Instant::now();
        let mut reports = Reports::default();
        reports.asked(terms(None), vec![counted("s", 5, vec![endpoint(1, 100, 10, 4)])], start);
        assert_eq!(reports.deadline(), Some(start + 10 * SECOND));
        let now = counted("s", 7, vec![endpoint(1, 120, 11, 1), endpoint(2, 3, 0, 3)]);
        assert_eq!(reports.report(vec![now.clone()], start + 9 * SECOND), None, "not yet due");
        let loads = reports.report(vec![now.clone()], start + 10 * SECOND).unwrap();
        let [load] = loads.as_slice() else { panic!("{loads:?}") };
        assert_eq!((load.over, load.dropped), (10 * SECOND, 2));
        // 20 came and 4 were there; 1 is left and 1 failed.
        let [place] = load.localities.as_slice() else { panic!("{load:?}") };
        let each: Vec<_> = place.endpoints.iter().map(|e| figures(&e.load)).collect();
        assert_eq!(each, [(20, 22, 1, 1), (3, 0, 0, 3)]);
        assert_eq!(figures(&place.load), (23, 22, 1, 4));
        // What has not ended is told again, what has is not.
        let loads = reports.report(vec![now], start + 20 * SECOND).unwrap();
        assert_eq!(figures(&loads[0].localities[0].load), (0, 0, 0, 4));
        let idle = counted("s", 7, vec![endpoint(1, 120, 11, 0), endpoint(2, 3, 0, 0)]);
        reports.report(vec![idle.clone()], start + 30 * SECOND).unwrap();
        assert_eq!(reports.report(vec![idle], start + 40 * SECOND), Some(vec![]));
    }

    #[test]
    fn only_what_is_asked_for_is_told_and_new_services_begin_when_they_come() {
        let start = Instant::now();
        let mut reports = Reports::default();
        let at = |n| vec![counted("a", n, vec![]), counted("b", n, vec![])];
        let told = |loads: Option<Vec<ServiceLoad>>| -> Vec<(String, u64)> {
            loads.unwrap().into_iter().map(|load| (load.service, load.dropped)).collect()
        };
        reports.asked(terms(Some(&["a"])), at(1), start);
        assert_eq!(told(reports.report(at(3), start + 10 * SECOND)), [("a".to_owned(), 2)]);
        // Asked for more: what was told before goes on where it was.
        reports.asked(terms(None), at(4), start + 12 * SECOND);
        let both = [("a".to_owned(), 3), ("b".to_owned(), 2)];
        assert_eq!(told(reports.report(at(6), start + 22 * SECOND)), both);
        let mut more = at(6);
        more.push(counted("c", 9, vec![]));
        assert_eq!(told(reports.report(more.clone(), start + 32 * SECOND)), []);
        more[2].dropped = 10;
        assert_eq!(told(reports.report(more, start + 42 * SECOND)), [("c".to_owned(), 1)]);
    }

    #[test]
    fn a_report_that_cannot_be_sent_is_made_up_for_by_the_next() {
        let start = Instant::now();
        let mut reports = Reports::default();
        let at = |n| vec![counted("s", n, vec![])];
        reports.asked(terms(None), at(0), start);
        reports.skip(start + 10 * SECOND);
        assert_eq!(reports.report(at(1), start + 11 * SECOND), None);
        let loads = reports.report(at(5), start + 20 * SECOND).unwrap();
        assert_eq!((loads[0].dropped, loads[0].over), (5, 20 * SECOND));
    }

    #[test]
    fn a_report_names_so_many_endpoints_and_tells_of_all() {
        let start = Instant::now();
        let mut reports = Reports::default();
        let at = |n| {
            let each = |i: u32| CountedEndpoint {
                address: (std::net::Ipv4Addr::from(i), 80).into(),
                ..endpoint(1, n, 0, 0)
            };
            vec![counted("s", 0, (0..40_005).map(each).collect())]
        };
        reports.asked(terms(None), at(0), start);
        let loads = reports.report(at(1), start + 10 * SECOND).unwrap();
        let [place] = loads[0].localities.as_slice() else { panic!() };
        assert_eq!(place.endpoints.len(), MOST_ENDPOINTS);
        assert_eq!(place.load.succeeded, 40_005);
    }

    #[test]
    fn a_sum_that_begins_anew_is_told_whole() {
        let start = Instant::now();
        let metric = |count, total| {
            let metrics = vec![(crate::load::BYTES, Sum { count, total })];
            vec![counted("s", 0, vec![CountedEndpoint { metrics, ..endpoint(1, count, 0, 0) }])]
        };
        let mut reports = Reports::default();
        reports.asked(terms(None), metric(50, 5000.0), start);
        let loads = reports.report(metric(60, 6500.0), start + 10 * SECOND).unwrap();
        let bytes = |loads: &[ServiceLoad]| loads[0].localities[0].load.metrics["towpath.bytes"];
        assert_eq!(bytes(&loads), Sum { count: 10, total: 1500.0 });
        let goodput = loads[0].localities[0].load.metrics["towpath.goodput"];
        assert_eq!(goodput, Sum { count: 1, total: 5e6 });
        let loads = reports.report(metric(3, 300.0), start + 20 * SECOND).unwrap();
        assert_eq!(bytes(&loads), Sum { count: 3, total: 300.0 });
        assert_eq!(loads[0].localities[0].load.succeeded, 3);
    }
}
