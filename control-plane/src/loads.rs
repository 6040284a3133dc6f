//! The load that clients make: taken in (LRS), shown, and, where a policy says so, made into weights.

mod sums;
mod weigh;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior};
use towpath_policies::model::{EndpointSet, Node};
use towpath_xds::{
    load::{ServiceLoad, Terms},
    server::{self, StreamId},
};

use crate::{
    hub::Hub,
    status::{EndpointFigures, PlaceFigures, ServiceFigures, Shared},
};
use sums::{Heard, Places, Rates, Sums};
use weigh::Weigher;
pub(crate) use weigh::{Shares, weighed};

/// What is asked of clients, and what becomes of it.
pub(crate) struct Loads {
    hub: Arc<Hub>,
    /// How often clients report.
    every: Duration,
    sums: Mutex<Sums>,
    /// Of services, for the endpoint sets that are served.
    places: Mutex<HashMap<String, Arc<Places>>>,
}

/// What a stream told counts for so many intervals.
const REPORT_HOLDS: u32 = 3;
/// What an endpoint said of itself counts for so many intervals.
const METRIC_HOLDS: u32 = 6;

impl Loads {
    pub(crate) fn new(hub: Arc<Hub>, every: Duration) -> Arc<Self> {
        let every = every.clamp(Terms::SHORTEST_INTERVAL, Terms::LONGEST_INTERVAL);
        Arc::new(Self { hub, every, sums: Mutex::default(), places: Mutex::default() })
    }

    /// Looks at what was told, once in each interval, for as long as it is polled.
    pub(crate) async fn watch(self: Arc<Self>, shared: Arc<Shared>) {
        let mut weigher = Weigher::default();
        let mut heard = Heard::new();
        let mut shown = false;
        let mut tick = tokio::time::interval(self.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let now = Instant::now();
            let interval = self.sums().turn(now, self.every * REPORT_HOLDS);
            let figures = interval.figures(&heard);
            heard = interval.heard;
            self.forget_places();
            self.weigh(&mut weigher, &figures, now);
            if shown || !figures.is_empty() {
                shown = !figures.is_empty();
                let loads = figures.into_iter().filter_map(|(service, figures)| {
                    let set = self.hub.endpoints(&service)?;
                    Some(show(&set, figures))
                });
                let loads = loads.collect();
                shared.update(|tracker| tracker.loads(loads));
            }
        }
    }

    /// Serves weights anew where they are to follow the load, and it moved.
    fn weigh(
        &self,
        weigher: &mut Weigher,
        figures: &BTreeMap<String, sums::ServiceFigures>,
        now: Instant,
    ) {
        let declared = self.hub.declared();
        let wanted: HashSet<&str> = declared.iter().map(|(set, _)| set.service.as_str()).collect();
        weigher.keep(|service| wanted.contains(service));
        let nothing = sums::ServiceFigures::default();
        for (set, in_force) in &declared {
            let told = &figures.get(&set.service).unwrap_or(&nothing).endpoints;
            let shares = weigher.weigh(set, in_force, told, now, self.every * METRIC_HOLDS);
            let Some(shares) = shares else { continue };
            let (least, most) = shares.values().fold((1.0_f64, 1.0_f64), |(least, most), share| {
                (least.min(*share), most.max(*share))
            });
            let service = &set.service;
            tracing::info!(%service, of = shares.len(), least, most, "weights follow the load");
            self.hub.set_shares(service, shares);
        }
    }

    /// The places of a service's endpoints as they are served; made where they are not known.
    fn places(&self, service: &str) -> Option<Arc<Places>> {
        let set = self.hub.endpoints(service)?;
        let known = self.known_places().get(service).filter(|known| known.are_of(&set)).cloned();
        known.or_else(|| {
            let places = Arc::new(Places::of(set));
            self.known_places().insert(service.to_owned(), places.clone());
            Some(places)
        })
    }

    /// Those of sets that are not served any more.
    fn forget_places(&self) {
        self.known_places().retain(|service, places| {
            self.hub.endpoints(service).is_some_and(|set| places.are_of(&set))
        });
    }

    fn known_places(&self) -> MutexGuard<'_, HashMap<String, Arc<Places>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        // Nothing in there panics half-way.
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl server::Loads for Loads {
    fn offered(&self, stream: StreamId, node: &Node, all: bool) -> Option<Terms> {
        if !self.sums().began(stream, Instant::now()) {
            tracing::error!(node = %node.id, "turned away: too many clients report their load");
            return None;
        }
        let names = || self.hub.view(node).services.keys().cloned().collect();
        Some(Terms { services: (!all).then(names), every: self.every, per_endpoint: true })
    }

    fn told(&self, stream: StreamId, loads: Vec<ServiceLoad>) {
        // Made before the lock is taken, which everybody wants.
        let known = |load: ServiceLoad| Some((self.places(&load.service)?, load));
        let loads: Vec<_> = loads.into_iter().filter_map(known).collect();
        self.sums().told(stream, loads, Instant::now());
    }

    fn ended(&self, stream: StreamId) {
        self.sums().ended(stream);
    }
}

/// For a person. `set` is as it is served.
fn show(set: &EndpointSet, figures: sums::ServiceFigures) -> ServiceFigures {
    let mut whole = Rates::default();
    figures.places.values().for_each(|rates| whole.add(rates));
    let place = |(place, rates): (_, Rates)| PlaceFigures {
        locality: place,
        requests_per_second: rates.ended(),
        errors_per_second: rates.failed,
        in_progress: rates.in_progress,
        bytes_per_second: rates.bytes,
    };
    let mut told = figures.endpoints;
    let endpoints = set.endpoints.iter().filter_map(|endpoint| {
        let sums::EndpointFigures { rates, metrics, .. } = told.remove(&endpoint.address)?;
        Some(EndpointFigures {
            endpoint: endpoint.name.clone(),
            address: endpoint.address.to_string(),
            requests_per_second: rates.ended(),
            errors_per_second: rates.failed,
            in_progress: rates.in_progress,
            bytes_per_second: rates.bytes,
            weight: endpoint.weight,
            declared_weight: endpoint.declared(),
            metrics: metrics.into_iter().map(|(name, mean)| (name, mean.value)).collect(),
        })
    });
    ServiceFigures {
        service: set.service.clone(),
        requests_per_second: whole.ended(),
        errors_per_second: whole.failed,
        in_progress: whole.in_progress,
        bytes_per_second: whole.bytes,
        dropped_per_second: figures.dropped,
        endpoints: endpoints.collect(),
        places: figures.places.into_iter().map(place).collect(),
    }
}
