//! What a run does, drawn from its seed. Pure: the same seed and limits make the same plan.

mod fault;
mod policy;
mod show;

use std::{collections::BTreeSet, time::Duration};

use fastrand::Rng;

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
        // One run in eight has a large body; the others are quick.
        let large = dice.u8(..8) == 0;
        let most = if large { limits.max_size } else { limits.max_size.min(1 << 20) };
        let mut lanes = Vec::new();
        let mut index = 0;
        for _ in 0..1 + (dice.f64().powi(2) * 8.0) as usize {
            let mut lane = Vec::new();
            for _ in 0..dice.usize(1..=3) {
                let most = if index == 0 { most } else { most.min(1 << 20) };
                lane.push(Request::draw(&mut dice, index, client, endpoint, most, calm));
                index += 1;
            }
            lanes.push(lane);
        }
        let total: u64 = lanes.iter().flatten().map(|r| r.up.size + r.down.size).sum();
        let plane = dice.u8(..4) == 0;
        let event = Event::draw(&mut dice, endpoints, total, plane).filter(|_| !calm);
        if calm {
            (policy.per_try, policy.max_requests, policy.max_bytes_in_flight) = (None, None, None);
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
            lanes,
        };
        plan.leave_out(&limits.skip);
        plan
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

impl Event {
    fn draw(dice: &mut Rng, endpoints: usize, total: u64, plane: bool) -> Option<Self> {
        let kind = match dice.u8(..16) {
            0 => EventKind::Kill(dice.usize(..endpoints)),
            1 => EventKind::OtherEndpoints,
            2 => EventKind::OtherService,
            3 => EventKind::Drain,
            4..8 if plane => EventKind::PlaneGone,
            _ => return None,
        };
        Some(Self { after_bytes: (total as f64 * dice.f64() * 0.8) as u64, kind })
    }
}

impl Request {
    fn draw(
        dice: &mut Rng,
        index: usize,
        client: Wire,
        endpoint: Wire,
        most: u64,
        calm: bool,
    ) -> Self {
        let direction = *pick(dice, &[Direction::Upload, Direction::Download, Direction::Echo]);
        let method = match direction {
            Direction::Download => *pick(dice, &["GET", "GET", "POST"]),
            _ => *pick(dice, &["PUT", "POST"]),
        };
        let size = size(dice, most);
        let (up, down) = match direction {
            Direction::Upload => (size, 32),
            Direction::Download => (0, size),
            Direction::Echo => (size, size),
        };
        let up = Body { size: up, declared: up == 0 || dice.bool() };
        let down = Body { size: down, declared: dice.bool() };
        let mut tries = Vec::new();
        for _ in 0..3 {
            let fault = Fault::draw(dice, up.size, down.size, endpoint);
            tries.push(if calm || dice.u8(..5) < 2 { Fault::None } else { fault });
            // Further tries fare better.
            if dice.u8(..4) > 0 {
                break;
            }
        }
        let quirk = Quirk::draw(dice, up, down.size, client);
        let quirk = if calm || dice.u8(..4) > 0 { Quirk::None } else { quirk };
        let key = dice.u8(..3) == 0;
        Self {
            index,
            method,
            key: key.then(|| format!("key-{:016x}", dice.u64(..))),
            tagged: method == "GET" && dice.bool(),
            direction,
            up,
            down,
            // Small pieces, but not a million of them.
            piece: (1 << dice.u32(6..18)).max(size >> 16),
            tries,
            quirk,
        }
    }
}

impl EventKind {
    /// What it is left out by.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::OtherEndpoints => "other-endpoints",
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

/// Mostly small: the logarithm is drawn, and small ones more often.
fn size(dice: &mut Rng, most: u64) -> u64 {
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
