//! What a run does, drawn from its seed. Pure: the same seed and limits make the same plan.

mod fault;
mod policy;
mod show;

use std::{collections::BTreeSet, time::Duration};

use fastrand::Rng;
use towpath_policies::model::{Integrity, Queue, StreamAge};

pub(super) use fault::{At, Break, Fault, Quirk};
pub(super) use policy::{Disk, Policy};

/// What is drawn from.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest body in bytes.
    pub max_size: u64,
    /// Names of what is left out: faults of endpoints and clients, and events.
    pub skip: BTreeSet<String>,
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) client: Wire,
    pub(super) endpoint: Wire,
    /// What gateway and sidecar speak, where there is a sidecar.
    pub(super) sidecar: Option<Wire>,
    pub(super) endpoints: usize,
    /// Endpoints that come into use by a reload.
    pub(super) spares: usize,
    /// All HTTP/2 requests of the client share one connection.
    pub(super) shared: bool,
    pub(super) policy: Policy,
    /// The proxies obey an xDS server.
    pub(super) plane: bool,
    pub(super) event: Option<Event>,
    /// An upload that broke may go on at any endpoint, else only where it began.
    pub(super) shares_uploads: bool,
    /// Requests one after the other, the lanes side by side.
    pub(super) lanes: Vec<Vec<Request>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    Http1,
    Http2,
}

/// Something that happens to the whole, once so much of all bodies has passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) after_bytes: u64,
    pub(super) kind: EventKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventKind {
    /// This endpoint's listener closes and its connections are reset.
    Kill(usize),
    /// The service gets other endpoints.
    OtherEndpoints,
    /// The service gets more endpoints.
    MoreEndpoints,
    /// The routes name another service.
    OtherService,
    /// The server that the proxies obey goes away.
    PlaneGone,
    Drain,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) index: usize,
    pub(super) method: &'static str,
    pub(super) key: Option<String>,
    /// The answer has a strong entity tag, under which all endpoints hold the same bytes.
    pub(super) tagged: bool,
    /// Both bodies come with their digests.
    pub(super) proved: bool,
    /// Endpoints let an upload that breaks go on.
    pub(super) resumable: bool,
    /// And have lost so many of its last bytes.
    pub(super) lost: u64,
    pub(super) direction: Direction,
    pub(super) up: Body,
    pub(super) down: Body,
    /// Most bytes written at a time.
    pub(super) piece: u64,
    /// What each try meets at its endpoint; further ones meet nothing.
    pub(super) tries: Vec<Fault>,
    pub(super) quirk: Quirk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Upload,
    Download,
    /// The answer is the request, as it comes.
    Echo,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Body {
    pub(super) size: u64,
    /// The length is told before.
    pub(super) declared: bool,
}

impl Plan {
    /// The plan of a seed.
    pub(super) fn draw(seed: u64, limits: &Limits) -> Self {
        let mut dice = Rng::with_seed(seed);
        let wire = |dice: &mut Rng| if dice.bool() { Wire::Http1 } else { Wire::Http2 };
        let (client, endpoint) = (wire(&mut dice), wire(&mut dice));
        let sidecar = (dice.u8(..4) == 0).then(|| wire(&mut dice));
        let endpoints = dice.usize(1..=4);
        let calm = dice.u8(..8) == 0;
        let mut policy = Policy::draw(&mut dice);
        // One run in eight may have a large body, and one in two hundred has; the others are quick.
        let scale = dice.u8(..200);
        let most = if scale < 25 { limits.max_size } else { limits.max_size.min(1 << 20) };
        let stall = if policy.stall.is_some() { LONG } else { SHORT };
        let terms = Terms { client, endpoint, most, calm, stall };
        let mut lanes = Vec::new();
        let mut index = 0;
        for _ in 0..1 + (dice.f64().powi(2) * 8.0) as usize {
            let mut lane = Vec::new();
            for _ in 0..dice.usize(1..=3) {
                let most = if index == 0 { most } else { most.min(1 << 20) };
                let least = if index == 0 && scale == 0 { most / 2 } else { 1 };
                lane.push(Request::draw(&mut dice, index, least, Terms { most, ..terms }));
                index += 1;
            }
            lanes.push(lane);
        }
        let total: u64 = lanes.iter().flatten().map(|r| r.up.size + r.down.size).sum();
        let plane = dice.u8(..4) == 0;
        let aged = policy.age.is_some();
        let event = Event::draw(&mut dice, endpoints, total, plane, aged).filter(|_| !calm);
        if calm {
            policy.loosen();
            if dice.bool() {
                policy.queue = Some(Queue { slots: dice.u32(1..3), ..Queue::default() });
            }
        }
        let mut plan = Self {
            seed,
            client,
            endpoint,
            sidecar,
            endpoints,
            spares: dice.usize(1..=2),
            shared: dice.bool(),
            policy,
            plane,
            event,
            shares_uploads: dice.bool(),
            lanes,
        };
        if dice.u8(..64) == 0 && limits.max_size >= LASTING {
            plan.last(&mut dice);
        }
        if dice.u8(..16) == 0 && plan.endpoint == Wire::Http2 {
            plan.refuse(&mut dice);
        } else if dice.u8(..8) == 0 && !calm {
            plan.policy.adapt(&mut dice);
        }
        let total = plan.requests().map(|r| r.up.size + r.down.size).sum();
        plan.policy.keep_pace(total);
        plan.leave_out(&limits.skip);
        plan
    }

    /// Makes it a run of downloads that last until some move to endpoints that are added or stay.
    fn last(&mut self, dice: &mut Rng) {
        self.policy.loosen();
        self.policy.queue = None;
        self.policy.integrity = Integrity::default();
        self.policy.age = Some(StreamAge { max: Duration::ZERO, jitter_percent: 20 });
        (self.policy.attempts, self.policy.resumes) = (self.policy.attempts.max(1), true);
        self.endpoints = dice.usize(1..=2);
        let kind = *pick(dice, &[EventKind::MoreEndpoints, EventKind::OtherEndpoints]);
        self.event = Some(Event { after_bytes: 1 << 16, kind });
        let wire = self.client;
        self.shared &= wire == Wire::Http1;
        self.lanes = (0..dice.usize(3..=5))
            .map(|index| {
                let size = size(dice, LASTING / 2, LASTING);
                vec![Request::lasting(dice, index, size)]
            })
            .collect();
    }

    /// Makes it a run of requests that endpoints refuse at first.
    fn refuse(&mut self, dice: &mut Rng) {
        self.policy.bear_refusals();
        self.event = None;
        for request in self.lanes.iter_mut().flatten() {
            let refusals = dice.u32(0..=self.policy.attempts);
            // An echo is answered before its body is read.
            let up = if request.direction == Direction::Echo { 0 } else { request.up.size };
            request.tries = (0..refusals).map(|_| Fault::refusal(dice, up)).collect();
            request.quirk = Quirk::None;
        }
    }

    /// Takes out what is to be skipped; the rest stays as it was drawn.
    fn leave_out(&mut self, skip: &BTreeSet<String>) {
        self.event = self.event.filter(|event| !skip.contains(event.kind.name()));
        for request in self.lanes.iter_mut().flatten() {
            for fault in &mut request.tries {
                if skip.contains(fault.name()) {
                    *fault = Fault::None;
                }
            }
            if skip.contains(request.quirk.name()) {
                request.quirk = Quirk::None;
            }
        }
    }

    pub(super) fn requests(&self) -> impl Iterator<Item = &Request> {
        self.lanes.iter().flatten()
    }
}

/// Of what requests are drawn.
#[derive(Clone, Copy)]
struct Terms {
    client: Wire,
    endpoint: Wire,
    /// Largest body.
    most: u64,
    /// Nothing goes wrong, though it may take its time.
    calm: bool,
    /// Shortest and longest standstill in milliseconds.
    stall: (u64, u64),
}

impl Event {
    fn draw(dice: &mut Rng, endpoints: usize, total: u64, plane: bool, aged: bool) -> Option<Self> {
        let kind = match dice.u8(..16) {
            0 => EventKind::Kill(dice.usize(..endpoints)),
            1 => EventKind::OtherEndpoints,
            2 => EventKind::OtherService,
            3 => EventKind::Drain,
            4..8 if plane => EventKind::PlaneGone,
            8 => EventKind::MoreEndpoints,
            9..13 if aged => EventKind::MoreEndpoints,
            _ => return None,
        };
        Some(Self { after_bytes: (total as f64 * dice.f64() * 0.8) as u64, kind })
    }
}

impl Request {
    fn draw(dice: &mut Rng, index: usize, least: u64, terms: Terms) -> Self {
        let Terms { client, endpoint, most, calm, stall } = terms;
        let direction = *pick(dice, &[Direction::Upload, Direction::Download, Direction::Echo]);
        let method = match direction {
            Direction::Download => *pick(dice, &["GET", "GET", "POST"]),
            _ => *pick(dice, &["PUT", "POST"]),
        };
        let size = size(dice, least, most);
        let (up, down) = match direction {
            Direction::Upload => (size, 32),
            Direction::Download => (0, size),
            Direction::Echo => (size, size),
        };
        let up = Body { size: up, declared: up == 0 || dice.bool() };
        let down = Body { size: down, declared: dice.bool() };
        let resumable = direction == Direction::Upload && dice.u8(..3) > 0;
        let mut tries = Vec::new();
        if resumable && !calm && dice.u8(..3) == 0 {
            tries.push(Fault::midway(dice, up.size, endpoint));
        }
        while tries.len() < 3 {
            // Further tries fare better.
            if !tries.is_empty() && dice.u8(..4) > 0 {
                break;
            }
            let drawn = Fault::draw(dice, up.size, down.size, endpoint, stall);
            let slow = Fault::Stall(At::Processed, millis(dice, 1, 10));
            let fault = if calm { slow } else { drawn };
            tries.push(if dice.u8(..5) < 2 { Fault::None } else { fault });
        }
        let quirk = Quirk::draw(dice, up, down.size, client, stall);
        let quirk = match dice.u8(..4) {
            _ if calm => Quirk::None,
            _ if stall != SHORT && index == 0 && up.size > 0 => Quirk::StallUpload {
                at: dice.u64(..up.size),
                pause: millis(dice, stall.0, stall.1),
            },
            0 => quirk,
            _ => Quirk::None,
        };
        let key = dice.u8(..3) == 0;
        Self {
            index,
            method,
            key: key.then(|| format!("key-{:016x}", dice.u64(..))),
            tagged: method == "GET" && dice.bool(),
            proved: size <= MOST_PROVED && dice.u8(..4) == 0,
            resumable,
            lost: *pick(dice, &[0, 0, 1, 1000, 1 << 16]),
            direction,
            up,
            down,
            // Small pieces, but not a million of them.
            piece: (1 << dice.u32(6..18)).max(size >> 16),
            tries,
            quirk,
        }
    }

    /// A download that its client takes its time for.
    fn lasting(dice: &mut Rng, index: usize, size: u64) -> Self {
        Self {
            index,
            method: "GET",
            key: None,
            tagged: true,
            proved: false,
            resumable: false,
            lost: 0,
            direction: Direction::Download,
            up: Body { size: 0, declared: true },
            down: Body { size, declared: dice.bool() },
            piece: 1 << 16,
            tries: vec![],
            quirk: Quirk::Linger { pause: millis(dice, 2100, 2600) },
        }
    }
}

impl EventKind {
    /// What it is left out by.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::OtherEndpoints => "other-endpoints",
            Self::MoreEndpoints => "more-endpoints",
            Self::OtherService => "other-service",
            Self::PlaneGone => "plane-gone",
            Self::Drain => "drain",
        }
    }
}

fn pick<'a, T>(dice: &mut Rng, among: &'a [T]) -> &'a T {
    &among[dice.usize(..among.len())]
}

fn millis(dice: &mut Rng, least: u64, most: u64) -> Duration {
    Duration::from_millis(dice.u64(least..=most))
}

/// Standstills, in milliseconds: such as are seen through, and such as are not.
const SHORT: (u64, u64) = (2, 25);
const LONG: (u64, u64) = (100, 300);
/// Digests of larger bodies are not made ahead.
const MOST_PROVED: u64 = 1 << 20;
/// What lies in sockets between is less than half of it.
const LASTING: u64 = 32 << 20;

/// Mostly small: the logarithm is drawn, and small ones more often.
fn size(dice: &mut Rng, least: u64, most: u64) -> u64 {
    if least > 1 {
        return dice.u64(least..=most.max(least));
    }
    let size = (most as f64).powf(dice.f64().powf(1.5)) as u64;
    size.clamp(1, most.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_one_plan_and_what_is_skipped_changes_nothing_else() {
        let limits = |skip: &[&str]| Limits {
            max_size: 1 << 20,
            skip: skip.iter().map(|s| (*s).to_owned()).collect(),
        };
        let text = |seed, skip: &[&str]| Plan::draw(seed, &limits(skip)).to_string();
        for seed in 0..200 {
            assert_eq!(text(seed, &[]), text(seed, &[]));
            assert_eq!(text(seed, &[]).lines().count(), {
                let without = Plan::draw(seed, &limits(&["reset", "goaway", "drain"]));
                let gone = Plan::draw(seed, &limits(&[])).event.is_some() as usize
                    - without.event.is_some() as usize;
                without.to_string().lines().count() + gone
            });
        }
    }
}
