//! Which endpoint gets the next try. Allocates nothing and takes no lock.

use std::{
    hint::black_box,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use towpath_policies::model::{Balancer, Class, Queue};

use super::{
    EndpointLive, EndpointState, Level, ServiceState,
    admission::Limit,
    completion::{Completion, zones::Origin},
    concurrency::BULK,
    weigh::Weights,
};

mod home;

/// Why none was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPick {
    /// The set is empty, or the control plane says that none may be used.
    NoneHealthy,
    /// Every endpoint that could be used has reached this limit.
    Full(Limit),
}

/// Endpoints that failed this exchange already; the first eight are remembered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    seen: [usize; 8],
    count: usize,
}

impl Tried {
    /// Remembers one.
    pub fn add(&mut self, endpoint: &Arc<EndpointState>) {
        if let Some(slot) = self.seen.get_mut(self.count) {
            *slot = key(&endpoint.live);
            self.count += 1;
        }
    }

    fn has(&self, live: &Arc<EndpointLive>) -> bool {
        self.count > 0 && self.seen[..self.count].contains(&key(live))
    }
}

/// What a try asks of an endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask {
    /// That the request declares.
    pub bytes: u64,
    /// Those of them that come from the endpoint, where that is known: what is left of a response.
    pub down: Option<u64>,
    /// Where its data comes from.
    pub origin: Origin,
    /// What it is about, hashed.
    pub key: Option<u64>,
    /// What kind of freight it is.
    pub class: Class,
    /// Where its connection was made to, if it was redirected: the endpoint there is the one that is meant.
    pub destination: Option<SocketAddr>,
}

fn key(live: &Arc<EndpointLive>) -> usize {
    Arc::as_ptr(live).addr()
}

/// Picks an endpoint for a try.
///
/// The lowest priority with a usable endpoint that has room is used, and there
/// an endpoint not yet tried before one that was. Where priorities or localities have
/// shares, one is drawn by them, and only when it has no such endpoint the others follow. When probes and ejections
/// leave too few usable ([`towpath_policies::model::Recovery::panic_percent`]),
/// they are overruled (as Envoy's panic mode does): all that the control plane
/// does not call unhealthy or draining are used, since a local judgement that
/// condemns nearly everything is more likely wrong, or at least no worse to ignore.
///
/// An endpoint that came back has a part of its weight at first.
///
/// # Errors
/// [`NoPick`].
pub fn pick<'a>(
    service: &'a ServiceState,
    tried: &Tried,
    now_ms: u64,
    ask: Ask,
) -> Result<&'a Arc<EndpointState>, NoPick> {
    if let Some(meant) = ask.destination.and_then(|address| service.at(address)) {
        return has_room(service, meant, ask)
            .inspect_err(|limit| service.overflow(*limit))
            .map_err(NoPick::Full);
    }
    let mut round = Round::new(service, tried, now_ms, ask);
    round.any_endpoint().ok_or_else(|| {
        round.full.map_or(NoPick::NoneHealthy, |limit| {
            service.overflow(limit);
            NoPick::Full(limit)
        })
    })
}

/// As [`pick`], among the endpoints with a free slot, where the service has a queue. While an
/// endpoint that was not tried yet is merely busy, it is waited for.
///
/// # Errors
/// [`NoPick`], uncounted.
pub(crate) fn seat<'a>(
    service: &'a ServiceState,
    tried: &Tried,
    now_ms: u64,
    ask: Ask,
) -> Result<&'a Arc<EndpointState>, NoPick> {
    if let Some(meant) = ask.destination.and_then(|address| service.at(address)) {
        let queue = service.spec.admission.queue.as_ref();
        if queue.is_some_and(|terms| !meant.has_slot(terms)) {
            return Err(NoPick::Full(Limit::Slots));
        }
        return has_room(service, meant, ask).map_err(NoPick::Full);
    }
    let mut round = Round::seats(service, tried, now_ms, ask);
    round.any_endpoint().ok_or_else(|| round.full.map_or(NoPick::NoneHealthy, NoPick::Full))
}

/// The endpoint that a client means, whatever is thought of it: no other could stand in for it.
fn has_room<'a>(
    service: &ServiceState,
    meant: &'a Arc<EndpointState>,
    ask: Ask,
) -> Result<&'a Arc<EndpointState>, Limit> {
    meant.live.has_room(&service.spec.breaker.endpoint, ask.bytes).map(|()| meant)
}

/// Whether [`seat`] has one for anybody.
pub(crate) fn any_seat(service: &ServiceState, now_ms: u64) -> bool {
    let mut round = Round::seats(service, &NOTHING_TRIED, now_ms, Ask::default());
    let free = |round: &mut Round<'_, '_>| {
        service.levels.iter().any(|level| round.search(level, 0).is_some())
    };
    free(&mut round) || round.panics_now() && free(&mut round)
}

static NOTHING_TRIED: Tried = Tried { seen: [0; 8], count: 0 };
/// With this many endpoints or fewer, all are weighed; with more, two that are drawn.
const WEIGH_ALL: usize = 4;
/// With this many endpoints or fewer, the completion time of all is predicted.
const PREDICT_ALL: usize = 16;
/// With more, of so many that are likely to be the soonest, and of one from elsewhere.
const LIKELY: usize = 3;
/// Draws before the level is searched from end to end.
const DRAWS: usize = 8;

struct Round<'a, 't> {
    service: &'a ServiceState,
    tried: &'t Tried,
    now_ms: u64,
    ask: Ask,
    panic: bool,
    /// Nearly always false, and then nobody's warmth is looked at.
    recovering: bool,
    warm: Warm,
    full: Option<Limit>,
    /// Only endpoints with a free slot are eligible.
    slots: Option<&'a Queue>,
}

/// Who may be picked where endpoints are not weighed against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Warm {
    /// Everybody.
    All,
    /// One that is not warm yet as often as it is warm.
    Drawn,
    /// As before, and one was passed over.
    Passed,
}

impl<'a, 't> Round<'a, 't> {
    fn new(service: &'a ServiceState, tried: &'t Tried, now_ms: u64, ask: Ask) -> Self {
        let heeds = service.spec.recovery.panic_percent == 0;
        Self {
            service,
            tried,
            now_ms,
            ask,
            panic: !heeds && service.live.panics.load(Relaxed),
            recovering: service.live.recovering.load(Relaxed),
            warm: Warm::All,
            full: None,
            slots: None,
        }
    }

    /// Among the endpoints with a free slot.
    fn seats(service: &'a ServiceState, tried: &'t Tried, now_ms: u64, ask: Ask) -> Self {
        let slots = service.spec.admission.queue.as_ref();
        Self { slots, ..Self::new(service, tried, now_ms, ask) }
    }

    fn any_endpoint(&mut self) -> Option<&'a Arc<EndpointState>> {
        if let Some(found) = self.any_level() {
            return Some(found);
        }
        let waits = self.slots.is_some() && self.full.is_some();
        if self.tried.count > 0 && !waits {
            self.tried = &NOTHING_TRIED;
            if let Some(found) = self.any_level() {
                return Some(found);
            }
        }
        if self.panics_now() { self.any_level() } else { None }
    }

    /// None was usable: the last usable one may have gone since the share was last looked at.
    fn panics_now(&mut self) -> bool {
        let heeds = self.service.spec.recovery.panic_percent == 0;
        let panics = self.full.is_none() && !self.panic && !heeds;
        self.panic |= panics;
        panics
    }

    fn any_level(&mut self) -> Option<&'a Arc<EndpointState>> {
        let service = self.service;
        let count = service.levels.len();
        let Some((spread, drawn)) = service.level_for(self.ask.key) else {
            return (0..count).find_map(|nth| self.level(nth));
        };
        if let Some(found) = self.level(drawn) {
            return Some(found);
        }
        (0..3).find_map(|rank| {
            let others = (1..count).map(|step| wrap(drawn + step, count));
            let mut next = others.filter(|nth| spread.rank(*nth, drawn) == rank);
            next.find_map(|nth| self.level(nth))
        })
    }

    fn level(&mut self, nth: usize) -> Option<&'a Arc<EndpointState>> {
        let level = &self.service.levels[nth];
        if let Some(completion) = &self.service.completion {
            return self.soonest(completion, nth, level);
        }
        if let (Some(homes), Some(key)) = (&self.service.homes, self.ask.key) {
            return self.at_home(homes, nth, level, key);
        }
        let weights = self.service.weights.as_deref();
        if let Some(weights) = weights.filter(|weights| weights.count_in(nth)) {
            return self.by_reports(weights, nth, level);
        }
        match self.service.spec.balancer {
            // Predicted above.
            Balancer::CompletionTime => None,
            Balancer::BytesInFlight | Balancer::LeastRequest => self.least(level),
            // A request without a key.
            Balancer::Maglev | Balancer::RingHash => self.least(level),
            // As long as reports tell nothing, weights are those that are configured.
            Balancer::RoundRobin | Balancer::WeightedRoundRobin => {
                let turn = self.service.live.turn.fetch_add(1, Relaxed);
                let start = self.in_turn(level, turn);
                self.unweighed(|round| round.search(level, start))
            }
            Balancer::Random => self.unweighed(|round| {
                (0..DRAWS)
                    .find_map(|_| round.eligible(level, by_weight(round.service, level, random())))
                    .or_else(|| round.search(level, fastrand::usize(..level.members.len())))
            }),
        }
    }

    /// In turn, by the weights that reports tell.
    fn by_reports(
        &mut self,
        weights: &Weights,
        nth: usize,
        level: &Level,
    ) -> Option<&'a Arc<EndpointState>> {
        let turn = &self.service.live.turn;
        self.unweighed(|round| {
            (0..DRAWS)
                .find_map(|_| round.eligible(level, weights.next(nth, turn)))
                .or_else(|| round.search(level, fastrand::usize(..level.members.len())))
        })
    }

    /// Searches so that an endpoint that is not warm yet is found the less often.
    fn unweighed(
        &mut self,
        mut search: impl FnMut(&mut Self) -> Option<&'a Arc<EndpointState>>,
    ) -> Option<&'a Arc<EndpointState>> {
        if !self.recovering {
            return search(self);
        }
        self.warm = Warm::Drawn;
        let found = search(self);
        let passed = std::mem::replace(&mut self.warm, Warm::All) == Warm::Passed;
        if found.is_none() && passed { search(self) } else { found }
    }

    /// Whether an endpoint that is not warm has no luck this time.
    #[cold]
    fn passes_over(&mut self, endpoint: &EndpointState) -> bool {
        let passed = fastrand::u64(..1000) >= self.warmth(endpoint);
        if passed {
            self.warm = Warm::Passed;
        }
        passed
    }

    #[cold]
    fn warmth(&self, endpoint: &EndpointState) -> u64 {
        endpoint.live.warmth(self.now_ms, &self.service.spec.recovery)
    }

    fn least(&mut self, level: &Level) -> Option<&'a Arc<EndpointState>> {
        let count = level.members.len();
        let start = if count > 1 { fastrand::usize(..count) } else { 0 };
        let mut best: Option<&Arc<EndpointState>> = None;
        if count <= WEIGH_ALL {
            for step in 0..count {
                let candidate = self.eligible(level, wrap(start + step, count));
                best = self.better(best, candidate);
            }
            return best;
        }
        let mut drawn = 0;
        for _ in 0..DRAWS {
            let candidate = self.eligible(level, fastrand::usize(..count));
            let Some(candidate) = candidate else { continue };
            if best.is_some_and(|b| Arc::ptr_eq(b, candidate)) {
                continue;
            }
            best = self.better(best, Some(candidate));
            drawn += 1;
            if drawn == 2 {
                return best;
            }
        }
        best.or_else(|| self.search(level, start))
    }

    /// The one that completes it soonest, as far as that can be foretold.
    fn soonest(
        &mut self,
        completion: &Completion,
        nth: usize,
        level: &Level,
    ) -> Option<&'a Arc<EndpointState>> {
        let count = level.members.len();
        let bytes = completion.expected(&self.ask);
        let origin = self.ask.origin.cell;
        let footprints = completion.footprints(self.ask.class);
        let load = footprints.map(|_| completion.load(&self.ask, self.now_ms));
        let mut best: Option<(f32, &Arc<EndpointState>)> = None;
        let mut look = |round: &mut Self, member: usize| {
            let Some(candidate) = round.eligible(level, member) else { return };
            #[expect(clippy::cast_precision_loss, reason = "at most 1000")]
            let warmth = match round.recovering {
                true => round.warmth(candidate).max(1) as f32 / 1000.0,
                false => 1.0,
            };
            let weight = || candidate.spec.declared();
            let live = &level.lives[member];
            let mut seconds = completion.predict(live, origin, bytes, warmth, weight).time();
            if let (Some(footprints), Some(load)) = (footprints, &load) {
                let (carbon, price) = footprints.seconds(live, load);
                seconds += carbon + price;
            }
            if best.is_none_or(|(least, _)| seconds < least) {
                best = Some((seconds, candidate));
            }
        };
        if count <= PREDICT_ALL {
            // Not always the first of those that are even.
            let start = if count > 1 { fastrand::usize(..count) } else { 0 };
            (0..count).for_each(|step| look(self, wrap(start + step, count)));
            return best.map(|(_, endpoint)| endpoint);
        }
        let draw = completion.draw(nth, footprints);
        let likely = [(); LIKELY].map(|()| draw.likely(origin));
        let beside = draw.beside(likely[0].1);
        let drawn = likely.map(|(member, _)| member);
        // All are touched before any is weighed, so that their cache lines are waited for together.
        let touch = |member: usize| level.lives[member].requests.load(Relaxed);
        black_box((drawn.map(touch), touch(beside)));
        drawn.into_iter().for_each(|member| look(self, member));
        look(self, beside);
        match best {
            Some((_, endpoint)) => Some(endpoint),
            None => self.search(level, fastrand::usize(..count)),
        }
    }

    fn better(
        &self,
        a: Option<&'a Arc<EndpointState>>,
        b: Option<&'a Arc<EndpointState>>,
    ) -> Option<&'a Arc<EndpointState>> {
        let (Some(a), Some(b)) = (a, b) else { return a.or(b) };
        Some(if self.cost_less(b, a) { b } else { a })
    }

    /// Whether `a` is strictly cheaper than `b`, both in proportion to what they can do. What they have
    /// is related to what they can do while they are well: one that is not has more for it, so a weight
    /// that follows the load would count that twice. What would come is related to what they can do now.
    #[expect(clippy::cast_precision_loss, reason = "compared with others as large")]
    fn cost_less(&self, a: &EndpointState, b: &EndpointState) -> bool {
        let warmth = |e| if self.recovering { self.warmth(e) as f64 } else { 1.0 };
        let (warm_a, warm_b) = (warmth(a), warmth(b));
        let cost = |e: &EndpointState, warmth: f64, has: u64, more: u64| {
            let (declared, now) = (f64::from(e.spec.declared()), f64::from(e.spec.weight));
            (has as f64 / declared + more as f64 / now) / warmth
        };
        let requests =
            |e: &EndpointState, warmth| cost(e, warmth, e.live.requests.load(Relaxed).into(), 1);
        let by_requests = || requests(a, warm_a) < requests(b, warm_b);
        if self.service.spec.balancer == Balancer::LeastRequest {
            return by_requests();
        }
        let bytes = |e: &EndpointState, warmth| {
            cost(e, warmth, e.live.bytes_in_flight.load(Relaxed), self.ask.bytes)
        };
        let (cost_a, cost_b) = (bytes(a, warm_a), bytes(b, warm_b));
        cost_a < cost_b || (cost_a.total_cmp(&cost_b).is_eq() && by_requests())
    }

    fn in_turn(&self, level: &Level, turn: u64) -> usize {
        let first = self.service.endpoints[level.members[0] as usize].spec.weight;
        let count = level.members.len() as u64;
        if level.weight == u64::from(first) * count {
            return usize::try_from(turn % count).unwrap_or(0);
        }
        // Multiples of the golden ratio spread evenly over the weights in any prefix.
        by_weight(self.service, level, turn.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn search(&mut self, level: &Level, start: usize) -> Option<&'a Arc<EndpointState>> {
        let count = level.members.len();
        (0..count).find_map(|step| self.eligible(level, wrap(start + step, count)))
    }

    fn eligible(&mut self, level: &Level, member: usize) -> Option<&'a Arc<EndpointState>> {
        let service = self.service;
        let endpoint = &service.endpoints[level.members[member] as usize];
        // Levels hold none that the control plane does not let be used.
        let live = &level.lives[member];
        let usable = self.panic || live.usable(self.now_ms);
        if !usable || self.tried.has(live) {
            return None;
        }
        if self.warm != Warm::All && self.passes_over(endpoint) {
            return None;
        }
        if self.slots.is_some_and(|terms| !endpoint.has_slot(terms)) {
            self.full = Some(Limit::Slots);
            return None;
        }
        if self.ask.bytes <= BULK
            && service.concurrency(endpoint).is_some_and(|concurrency| !concurrency.has_room())
        {
            self.full = Some(Limit::Concurrency);
            return None;
        }
        match live.has_room(&service.spec.breaker.endpoint, self.ask.bytes) {
            Ok(()) => Some(endpoint),
            Err(limit) => {
                self.full = Some(limit);
                None
            }
        }
    }
}

fn random() -> u64 {
    fastrand::u64(..)
}

/// The member on which `point` of the whole `u64` range falls when members lie side by side, as wide as their weights.
fn by_weight(service: &ServiceState, level: &Level, point: u64) -> usize {
    let scaled = (u128::from(point) * u128::from(level.weight)) >> 64;
    let mut rest = u64::try_from(scaled).unwrap_or(0);
    for (index, member) in level.members.iter().enumerate() {
        let weight = u64::from(service.endpoints[*member as usize].spec.weight);
        if rest < weight {
            return index;
        }
        rest -= weight;
    }
    0
}

fn wrap(index: usize, count: usize) -> usize {
    if index < count { index } else { index - count }
}
