//! The load that clients make: taken in (LRS), shown, and, where a policy says so, made into weights.

mod sums;
mod weigh;

use std::{
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
use sums::{Rates, Sums};
use weigh::Weigher;
pub(crate) use weigh::{Shares, weighed};

/// What is asked of clients, and what becomes of it.
pub(crate) struct Loads {
    hub: Arc<Hub>,
    /// How often clients report.
    every: Duration,
    sums: Mutex<Sums>,
}

/// What a stream told counts for so many intervals.
const REPORT_HOLDS: u32 = 3;
/// What an endpoint said of itself counts for so many intervals.
const METRIC_HOLDS: u32 = 6;

impl Loads {
    pub(crate) fn new(hub: Arc<Hub>, every: Duration) -> Arc<Self> {
        let every = every.clamp(Terms::SHORTEST_INTERVAL, Terms::LONGEST_INTERVAL);
        Arc::new(Self { hub, every, sums: Mutex::default() })
    }

    /// Looks at what was told, once in each interval, for as long as it is polled.
    pub(crate) async fn watch(self: Arc<Self>, shared: Arc<Shared>) {
        let mut weigher = Weigher::default();
        let mut shown = false;
        let mut tick = tokio::time::interval(self.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let now = Instant::now();
            let figures = {
                let mut sums = self.sums();
                let figures = sums.figures(now, self.every * REPORT_HOLDS);
                sums.turn();
                figures
            };
            let declared = self.hub.declared();
            weigher.keep(|service| declared.iter().any(|set| set.service == service));
            let nothing = sums::ServiceFigures::default();
            for set in declared {
                let told = &figures.get(&set.service).unwrap_or(&nothing).endpoints;
                let shares = weigher.weigh(&set, told, now, self.every * METRIC_HOLDS);
                if let Some(shares) = shares {
                    tracing::info!(service = %set.service, ?shares, "weights follow the load");
                    self.hub.set_shares(&set.service, shares);
                }
            }
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
        let known = |service: &str| self.hub.endpoints(service);
        self.sums().told(stream, loads, known, Instant::now());
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
        let sums::EndpointFigures { rates, metrics } = told.remove(&endpoint.address)?;
        Some(EndpointFigures {
            endpoint: endpoint.name.clone(),
            address: endpoint.address.to_string(),
            requests_per_second: rates.ended(),
            errors_per_second: rates.failed,
            in_progress: rates.in_progress,
            bytes_per_second: rates.bytes,
            weight: endpoint.weight,
            declared_weight: endpoint.declared(),
            metrics,
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
