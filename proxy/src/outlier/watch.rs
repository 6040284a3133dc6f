//! Looks at every service from time to time, on the control thread, and ejects
//! those endpoints that lag behind their peers. Requests never wait for it.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use arc_swap::ArcSwap;
use towpath_policies::model::{Outlier, Recovery};

use super::{
    Reason,
    goodput::{self, TICK_MS, TICKS_PER_ROUND, Track},
    meter::{LatencyCounts, median_latency},
    peers::Seat,
    rates::{self, Conduct},
    try_eject,
};
use crate::{
    upstream::{EndpointLive, ServiceState, now_ms},
    world::View,
};

/// Looks at the services of `view` for as long as it is polled.
pub(crate) async fn run(view: Arc<ArcSwap<View>>) {
    let mut watch = Watch::default();
    let mut tick = tokio::time::interval(Duration::from_millis(TICK_MS));
    // After a pause there is nothing to make up for.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        watch.tick(&view.load().services, now_ms());
    }
}

/// What is remembered of the services.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    ticks: u64,
    last_ms: u64,
    services: HashMap<String, Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    addresses: Vec<(SocketAddr, usize)>,
    tracks: Tracks,
    conduct: Vec<Start>,
    interval_from_ms: u64,
}

/// By endpoint, for each direction.
#[derive(Debug, Default)]
struct Tracks {
    request: Vec<Track>,
    response: Vec<Track>,
}

/// Counters at the start of the interval.
#[derive(Clone, Copy, Debug)]
struct Start {
    ended: u64,
    failures: u64,
    latencies: LatencyCounts,
}

impl Watch {
    /// Looks once.
    pub(crate) fn tick(&mut self, services: &BTreeMap<String, Arc<ServiceState>>, now_ms: u64) {
        let elapsed_ms = now_ms.saturating_sub(self.last_ms);
        self.last_ms = now_ms;
        self.ticks += 1;
        let round = self.ticks.is_multiple_of(TICKS_PER_ROUND);
        if round {
            self.services.retain(|name, _| services.contains_key(name));
        }
        for (name, service) in services {
            if round {
                recover(service, now_ms);
            }
            service.adapt(now_ms);
            service.forget(now_ms);
            service.weigh(now_ms);
            service.share_out(now_ms);
            // An endpoint may have come back by itself.
            service.live.kick();
            let Some(terms) = &service.spec.outlier else {
                self.services.remove(name);
                continue;
            };
            let compared = service.endpoints.len() >= terms.min_endpoints as usize;
            // What passed between two looks is too little to tell anything from.
            let idle = service.live.requests.load(Relaxed) == 0;
            if !compared {
                // What would be measured from here when it is compared again is no tick's worth.
                self.services.remove(name);
                continue;
            }
            if idle && !self.services.contains_key(name) {
                continue;
            }
            if !self.services.contains_key(name) {
                self.services.insert(name.clone(), Watched::default());
            }
            let Some(watched) = self.services.get_mut(name) else { continue };
            watched.fit(service, now_ms);
            let keep = watched.look(service, terms, elapsed_ms, round.then_some(now_ms));
            if !keep && idle {
                self.services.remove(name);
            }
        }
    }
}

impl Watched {
    /// Follows the endpoint set; what is known of an address stays.
    fn fit(&mut self, service: &ServiceState, now_ms: u64) {
        let endpoints = &service.endpoints;
        // An address that went and came back counts from nothing.
        let addresses = || endpoints.iter().map(|e| (e.spec.address, Arc::as_ptr(&e.live).addr()));
        if self.addresses.iter().copied().eq(addresses()) {
            return;
        }
        let tracks = self.tracks.request.drain(..).zip(self.tracks.response.drain(..));
        let old: HashMap<_, _> =
            self.addresses.drain(..).zip(tracks.zip(self.conduct.drain(..))).collect();
        self.addresses = addresses().collect();
        for endpoint in endpoints {
            let known =
                old.get(&(endpoint.spec.address, Arc::as_ptr(&endpoint.live).addr())).cloned();
            let ((request, response), start) =
                known.unwrap_or_else(|| (Default::default(), Start::of(&endpoint.live)));
            self.tracks.request.push(request);
            self.tracks.response.push(response);
            self.conduct.push(start);
        }
        if self.interval_from_ms == 0 {
            self.interval_from_ms = now_ms;
        }
    }

    /// `round` is the time when this look ends a round. False when there is nothing to remember.
    fn look(
        &mut self,
        service: &ServiceState,
        terms: &Outlier,
        elapsed_ms: u64,
        round: Option<u64>,
    ) -> bool {
        for (at, endpoint) in service.endpoints.iter().enumerate() {
            let meter = &endpoint.live.meter;
            self.tracks.request[at].sample(meter.request.read(), elapsed_ms);
            self.tracks.response[at].sample(meter.response.read(), elapsed_ms);
        }
        let Some(now_ms) = round else { return true };
        if let Some(goodput) = &terms.goodput {
            self.judge_goodput(service, terms, goodput, now_ms);
        }
        let interval = u64::try_from(terms.interval.as_millis()).unwrap_or(u64::MAX);
        if now_ms.saturating_sub(self.interval_from_ms) < interval {
            return true;
        }
        self.interval_from_ms = now_ms;
        self.judge_conduct(service, terms, now_ms) || !self.tracks.all().all(Track::is_blank)
    }

    fn judge_goodput(
        &mut self,
        service: &ServiceState,
        terms: &Outlier,
        goodput: &towpath_policies::model::Goodput,
        now_ms: u64,
    ) {
        let groups = groups(service);
        let place = |at: usize| (groups[at], service.endpoints[at].live.ejected(now_ms));
        let min = terms.min_endpoints;
        let end = |tracks: &mut [Track]| goodput::end_round(tracks, place, min, goodput);
        let mut out = Vec::new();
        out.extend(end(&mut self.tracks.request).into_iter().map(|lag| ("takes", lag)));
        out.extend(end(&mut self.tracks.response).into_iter().map(|lag| ("gives", lag)));
        let delivered = |track: &Track| track.figures().delivered.map_or(0.0, |pace| pace.endpoint);
        for (at, endpoint) in service.endpoints.iter().enumerate() {
            let [request, response] =
                [&self.tracks.request[at], &self.tracks.response[at]].map(delivered);
            endpoint.live.goodput.store(bytes_per_second(request + response), Relaxed);
        }
        for (what, (at, lag)) in out {
            let (pace, usual) = (megabytes(lag.pace), megabytes(lag.usual));
            let why = format!("goodput: {what} {pace}, its peers' median {usual}");
            try_eject(service, &service.endpoints[at], terms, Reason::Goodput, why);
        }
    }

    /// True when there were requests within the interval.
    fn judge_conduct(&mut self, service: &ServiceState, terms: &Outlier, now_ms: u64) -> bool {
        let seats: Vec<_> = self
            .conduct
            .iter_mut()
            .zip(service.endpoints.iter().zip(groups(service)))
            .map(|(start, (endpoint, group))| Seat {
                group,
                ejected: endpoint.live.ejected(now_ms),
                figure: start.take(&endpoint.live),
            })
            .collect();
        for (at, endpoint) in service.endpoints.iter().enumerate() {
            let min = terms.min_endpoints;
            let rate = terms.success_rate.and_then(|t| rates::unsuccessful(&seats, at, min, &t));
            if let Some((own, usual)) = rate {
                let why = format!("{own:.1} % successes, its peers' median {usual:.1} %");
                try_eject(service, endpoint, terms, Reason::SuccessRate, why);
                continue;
            }
            let late = terms.latency.and_then(|t| rates::late(&seats, at, min, &t));
            if let Some((own, usual)) = late {
                let why = format!("{own:.3} s to the head, its peers' median {usual:.3} s");
                try_eject(service, endpoint, terms, Reason::Latency, why);
            }
        }
        seats.iter().any(|seat| seat.figure.requests > 0)
    }
}

impl Tracks {
    fn all(&self) -> impl Iterator<Item = &Track> {
        self.request.iter().chain(&self.response)
    }
}

impl Start {
    fn of(live: &EndpointLive) -> Self {
        // What is under way has not ended.
        let ended = live.metrics.picks.value().saturating_sub(live.requests.load(Relaxed).into());
        let failures = live.meter.failures();
        Self { ended, failures, latencies: live.meter.latencies() }
    }

    /// What was done since, and starts over.
    fn take(&mut self, live: &EndpointLive) -> Conduct {
        let now = Self::of(live);
        let before = std::mem::replace(self, now);
        let latencies: LatencyCounts =
            std::array::from_fn(|at| now.latencies[at].wrapping_sub(before.latencies[at]));
        Conduct {
            requests: now.ended.saturating_sub(before.ended),
            failures: now.failures.saturating_sub(before.failures),
            timed: latencies.iter().map(|n| u64::from(*n)).sum(),
            latency: median_latency(&latencies),
        }
    }
}

/// Whom each endpoint is compared with: those of its priority and region. The way to another
/// region is longer for all who are there, and no fault of theirs.
fn groups(service: &ServiceState) -> Vec<u32> {
    let mut known = HashMap::new();
    let mut groups = Vec::with_capacity(service.endpoints.len());
    for endpoint in &service.endpoints {
        let next = u32::try_from(known.len()).unwrap_or(u32::MAX);
        let group = (endpoint.spec.priority, endpoint.spec.locality.region.as_str());
        groups.push(*known.entry(group).or_insert(next));
    }
    groups
}

/// Keeps what picks read up to date: whether too few are usable, and who is warm again.
fn recover(service: &ServiceState, now_ms: u64) {
    let terms = &service.spec.recovery;
    let endpoints = &service.endpoints;
    // By priority: as long as one of them is well, there is somewhere to go.
    let mut levels: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|e| e.allowed()) {
        let (usable, allowed) = levels.entry(endpoint.spec.priority).or_default();
        *usable += usize::from(endpoint.usable(now_ms));
        *allowed += 1;
    }
    let usable: usize = levels.values().map(|(usable, _)| usable).sum();
    let allowed: usize = levels.values().map(|(_, allowed)| allowed).sum();
    let recovering = endpoints.iter().any(|e| e.live.warmth(now_ms, terms) < 1000);
    service.live.recovering.store(recovering, Relaxed);
    let panics = !levels.is_empty()
        && levels.values().all(|(usable, allowed)| panics(*usable, *allowed, terms))
        && !service.bears_all(now_ms);
    if service.live.panics.swap(panics, Relaxed) != panics {
        let service = service.spec.name.as_str();
        if panics {
            tracing::warn!(service, usable, allowed, "too few are usable, ejections are ignored");
        } else {
            tracing::info!(service, usable, allowed, "ejections and probes are heeded again");
        }
    }
}

/// Whether so few of the endpoints that may be used are usable that local judgements are ignored.
pub(crate) fn panics(usable: usize, allowed: usize, terms: &Recovery) -> bool {
    usable * 100 < allowed * terms.panic_percent as usize
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
fn bytes_per_second(pace: f64) -> u64 {
    pace.clamp(0.0, 1e15) as u64
}

fn megabytes(pace: f64) -> String {
    format!("{:.2} MB/s", pace / 1e6)
}

#[cfg(test)]
mod tests;
