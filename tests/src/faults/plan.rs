//! What a run does, drawn from its seed. Pure: the same seed and limits make the same plan.

mod show;

use std::{collections::BTreeSet, time::Duration};

use fastrand::Rng;

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
    pub(super) event: Option<Event>,
    /// Requests one after the other, the lanes side by side.
    pub(super) lanes: Vec<Vec<Request>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    Http1,
    Http2,
}

/// Terms of route and service.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) attempts: u32,
    pub(super) on_503: bool,
    pub(super) replay_limit: u64,
    pub(super) trusts_keys: bool,
    pub(super) per_try: Option<Duration>,
    pub(super) retries_at_once: u32,
    pub(super) max_requests: Option<u32>,
    pub(super) max_bytes_in_flight: Option<u64>,
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
    Drain,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) index: usize,
    pub(super) method: &'static str,
    pub(super) key: Option<String>,
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

/// What an endpoint does to a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    Break(At, Break),
    Stall(At, Duration),
    /// An answer before the body is read, which is then read or not.
    Early {
        status: u16,
        at: u64,
        read_on: bool,
    },
    /// 503, perhaps with `Retry-After: 0`.
    Unavailable {
        retry_after: bool,
    },
    /// So many interim responses first.
    Interims {
        count: u8,
        status: u16,
    },
    /// The length told of the answer is wrong by so much.
    WrongLength(i64),
}

/// How far a try has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Head,
    Upload(u64),
    /// The request is there, the answer has not begun.
    Processed,
    /// In the middle of the answer's head.
    Answer,
    Download(u64),
}

/// How an endpoint breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Break {
    /// The connection is reset.
    Reset,
    /// The connection is closed.
    Close,
    /// A frame, chunk or head begins, then the connection is closed.
    Partial,
    /// The stream is reset with this code (a reset connection over HTTP/1.1).
    Stream(u32),
    /// GOAWAY, declaring this stream unprocessed or not.
    GoAway { below: bool, abrupt: bool },
}

/// What is the matter with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quirk {
    None,
    /// Pauses in reading the answer.
    SlowReader {
        every: u64,
        pause: Duration,
    },
    StallUpload {
        at: u64,
        pause: Duration,
    },
    /// Closes its sending side after the request (HTTP/1.1).
    HalfClose,
    /// Ends the body early where more was declared.
    Truncate {
        at: u64,
    },
    VanishUpload {
        at: u64,
        reset: bool,
    },
    VanishDownload {
        at: u64,
        reset: bool,
    },
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
        let event = Event::draw(&mut dice, endpoints, total).filter(|_| !calm);
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

impl Policy {
    fn draw(dice: &mut Rng) -> Self {
        Self {
            attempts: dice.u32(0..=3),
            on_503: dice.bool(),
            replay_limit: *pick(dice, &[0, 16 << 10, 64 << 10, 64 << 10, 4 << 20]),
            trusts_keys: dice.u8(..4) > 0,
            per_try: (dice.u8(..12) == 0).then(|| millis(dice, 20, 80)),
            retries_at_once: *pick(dice, &[1, 3, 100]),
            max_requests: (dice.u8(..12) == 0).then(|| dice.u32(1..4)),
            max_bytes_in_flight: (dice.u8(..12) == 0).then(|| dice.u64(1..1 << 20)),
        }
    }

    /// Whether limits may refuse what nothing is wrong with.
    pub(super) fn is_tight(&self) -> bool {
        self.per_try.is_some() || self.max_requests.is_some() || self.max_bytes_in_flight.is_some()
    }
}

impl Event {
    fn draw(dice: &mut Rng, endpoints: usize, total: u64) -> Option<Self> {
        let kind = match dice.u8(..16) {
            0 => EventKind::Kill(dice.usize(..endpoints)),
            1 => EventKind::OtherEndpoints,
            2 => EventKind::OtherService,
            3 => EventKind::Drain,
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
            direction,
            up,
            down,
            piece: 1 << dice.u32(6..18),
            tries,
            quirk,
        }
    }
}

impl Fault {
    fn draw(dice: &mut Rng, up: u64, down: u64, wire: Wire) -> Self {
        let at = match dice.u8(..5) {
            0 => At::Head,
            1 if up > 0 => At::Upload(dice.u64(..up)),
            2 => At::Answer,
            3 if down > 0 => At::Download(dice.u64(..down)),
            _ => At::Processed,
        };
        match dice.u8(..16) {
            0..=7 => Self::Break(at, Break::draw(dice, wire, at)),
            8..=10 => Self::Stall(at, millis(dice, 2, 25)),
            11 => Self::Early {
                status: *pick(dice, &[200, 413]),
                at: dice.u64(..=up / 2),
                read_on: dice.bool(),
            },
            12 | 13 => Self::Unavailable { retry_after: dice.bool() },
            14 => Self::Interims { count: dice.u8(1..48), status: *pick(dice, &[100, 102, 103]) },
            _ => Self::WrongLength(*pick(dice, &[-7, -1, 1, 100, 1 << 20])),
        }
    }

    /// What it is left out by.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Break(_, Break::Reset) => "reset",
            Self::Break(_, Break::Close) => "close",
            Self::Break(_, Break::Partial) => "partial",
            Self::Break(_, Break::Stream(7)) => "refused",
            Self::Break(_, Break::Stream(_)) => "stream-reset",
            Self::Break(_, Break::GoAway { below: true, .. }) => "goaway-below",
            Self::Break(_, Break::GoAway { .. }) => "goaway",
            Self::Stall(..) => "stall",
            Self::Early { .. } => "early",
            Self::Unavailable { .. } => "unavailable",
            Self::Interims { .. } => "interims",
            Self::WrongLength(_) => "wrong-length",
        }
    }

    /// Whether the exchange must come to its good end in spite of it.
    pub(super) fn is_benign(self, wire: Wire) -> bool {
        match self {
            Self::None | Self::Stall(..) => true,
            Self::Interims { count, .. } => count <= 32,
            // Goes on with the stream it has.
            Self::Break(_, Break::GoAway { below: false, abrupt: false }) => wire == Wire::Http2,
            _ => false,
        }
    }

    /// Whether other requests on the same connection suffer.
    pub(super) fn takes_connection(self) -> bool {
        match self {
            Self::Break(_, Break::Stream(_)) => false,
            Self::Break(_, Break::GoAway { below, abrupt }) => below || abrupt,
            Self::Break(..) | Self::WrongLength(_) => true,
            _ => false,
        }
    }
}

impl Break {
    fn draw(dice: &mut Rng, wire: Wire, at: At) -> Self {
        let kinds = if wire == Wire::Http1 { 3 } else { 8 };
        match dice.u8(..kinds) {
            0 => Self::Reset,
            1 => Self::Close,
            2 => Self::Partial,
            3 => Self::Stream(*pick(dice, &[0, 2, 8, 11])),
            // What was answered in part was not refused.
            4 | 5 if matches!(at, At::Head | At::Upload(_)) => Self::Stream(7),
            4 | 5 => Self::Stream(8),
            _ => {
                let below = matches!(at, At::Head | At::Upload(_)) && dice.bool();
                Self::GoAway { below, abrupt: dice.bool() }
            }
        }
    }
}

impl Quirk {
    fn draw(dice: &mut Rng, up: Body, down: u64, wire: Wire) -> Self {
        let at = dice.u64(..=up.size.saturating_sub(1));
        match dice.u8(..8) {
            0 | 1 => Self::SlowReader { every: 1 + down / 3, pause: millis(dice, 1, 10) },
            2 if up.size > 0 => Self::StallUpload { at, pause: millis(dice, 2, 25) },
            3 if wire == Wire::Http1 => Self::HalfClose,
            4 if up.size > 0 && (up.declared || wire == Wire::Http1) => Self::Truncate { at },
            5 if up.size > 0 => Self::VanishUpload { at, reset: dice.bool() },
            6 | 7 => Self::VanishDownload { at: dice.u64(..=down), reset: dice.bool() },
            _ => Self::None,
        }
    }

    /// What it is left out by.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SlowReader { .. } => "slow-reader",
            Self::StallUpload { .. } => "stall-upload",
            Self::HalfClose => "half-close",
            Self::Truncate { .. } => "truncate",
            Self::VanishUpload { .. } => "vanish-upload",
            Self::VanishDownload { .. } => "vanish-download",
        }
    }

    /// Whether the client still wants its answer, and may have it.
    pub(super) fn is_benign(self) -> bool {
        !matches!(
            self,
            Self::Truncate { .. } | Self::VanishUpload { .. } | Self::VanishDownload { .. }
        )
    }
}

impl EventKind {
    /// What it is left out by.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::OtherEndpoints => "other-endpoints",
            Self::OtherService => "other-service",
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
