//! What goes wrong: at an endpoint, and with a client.

use std::time::Duration;

use fastrand::Rng;

use super::{Body, Plan, Policy, Wire, millis, pick};

/// What an endpoint does to a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::faults) enum Fault {
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
    /// What is served has changed meanwhile: another tag, other bytes.
    OtherVersion,
    /// The answer comes with the digest of something else, in its head or after its body.
    WrongDigest {
        trailer: bool,
    },
}

/// How far a try has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::faults) enum At {
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
pub(in crate::faults) enum Break {
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
pub(in crate::faults) enum Quirk {
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
    /// Sends the digest of something else with its body.
    WrongDigest,
    /// Does not read on for so long once the answer has begun.
    Linger {
        pause: Duration,
    },
}

impl Fault {
    pub(super) fn draw(dice: &mut Rng, up: u64, down: u64, wire: Wire, stall: (u64, u64)) -> Self {
        let at = match dice.u8(..5) {
            0 => At::Head,
            1 if up > 0 => At::Upload(dice.u64(..up)),
            2 => At::Answer,
            3 if down > 0 => At::Download(dice.u64(..down)),
            _ => At::Processed,
        };
        match dice.u8(..18) {
            0..=7 => Self::Break(at, Break::draw(dice, wire, at)),
            8..=10 => Self::Stall(at, millis(dice, stall.0, stall.1)),
            11 => Self::Early {
                status: *pick(dice, &[200, 413]),
                at: dice.u64(..=up / 2),
                read_on: dice.bool(),
            },
            12 | 13 => Self::Unavailable { retry_after: dice.bool() },
            14 => Self::Interims { count: dice.u8(1..48), status: *pick(dice, &[100, 102, 103]) },
            15 => Self::WrongLength(*pick(dice, &[-7, -1, 1, 100, 1 << 20])),
            16 => Self::OtherVersion,
            _ => Self::WrongDigest { trailer: dice.bool() },
        }
    }

    /// An upload breaks.
    pub(super) fn midway(dice: &mut Rng, up: u64, wire: Wire) -> Self {
        let at = At::Upload(dice.u64(..up));
        Self::Break(at, Break::draw(dice, wire, at))
    }

    /// The endpoint says that it looked at nothing, once so much of the body may have come.
    pub(super) fn refusal(dice: &mut Rng, up: u64) -> Self {
        let at = if up > 0 && dice.bool() { At::Upload(dice.u64(..up)) } else { At::Head };
        let leaves = dice.u8(..4) == 0;
        let stream = Break::Stream(7);
        Self::Break(at, if leaves { Break::GoAway { below: true, abrupt: false } } else { stream })
    }

    /// Whether it says that nothing was looked at, and is heard: what follows a GOAWAY at once may
    /// overtake it.
    pub(in crate::faults) fn refuses(self) -> bool {
        let Self::Break(_, how) = self else { return false };
        matches!(how, Break::Stream(7) | Break::GoAway { below: true, abrupt: false })
    }

    /// What it is left out by.
    pub(in crate::faults) fn name(self) -> &'static str {
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
            Self::OtherVersion => "other-version",
            Self::WrongDigest { .. } => "wrong-digest",
        }
    }

    /// Whether the exchange must come to its good end in spite of it.
    pub(in crate::faults) fn is_benign(self, plan: &Plan) -> bool {
        match self {
            Self::None | Self::Stall(..) | Self::OtherVersion => true,
            Self::WrongDigest { .. } => !plan.policy.integrity.check,
            Self::Interims { count, .. } => count <= 32,
            // Goes on with the stream it has.
            Self::Break(_, Break::GoAway { below: false, abrupt: false }) => {
                plan.endpoint == Wire::Http2
            }
            _ => false,
        }
    }

    /// Whether other requests on the same connection suffer.
    pub(in crate::faults) fn takes_connection(self) -> bool {
        match self {
            Self::Break(_, Break::Stream(_)) => false,
            Self::Break(_, Break::GoAway { below, abrupt }) => below || abrupt,
            Self::Break(..) | Self::WrongLength(_) => true,
            _ => false,
        }
    }
}

impl Break {
    pub(super) fn draw(dice: &mut Rng, wire: Wire, at: At) -> Self {
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
    pub(super) fn draw(dice: &mut Rng, up: Body, down: u64, wire: Wire, stall: (u64, u64)) -> Self {
        let at = dice.u64(..=up.size.saturating_sub(1));
        match dice.u8(..9) {
            0 | 1 => Self::SlowReader { every: 1 + down / 3, pause: millis(dice, 1, 10) },
            2 if up.size > 0 => Self::StallUpload { at, pause: millis(dice, stall.0, stall.1) },
            3 if wire == Wire::Http1 => Self::HalfClose,
            4 if up.size > 0 && (up.declared || wire == Wire::Http1) => Self::Truncate { at },
            5 if up.size > 0 => Self::VanishUpload { at, reset: dice.bool() },
            6 | 7 => Self::VanishDownload { at: dice.u64(..=down), reset: dice.bool() },
            8 if up.size > 0 => Self::WrongDigest,
            _ => Self::None,
        }
    }

    /// What it is left out by.
    pub(in crate::faults) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SlowReader { .. } => "slow-reader",
            Self::StallUpload { .. } => "stall-upload",
            Self::HalfClose => "half-close",
            Self::Truncate { .. } => "truncate",
            Self::VanishUpload { .. } => "vanish-upload",
            Self::VanishDownload { .. } => "vanish-download",
            Self::WrongDigest => "wrong-digest",
            Self::Linger { .. } => "linger",
        }
    }

    /// Whether the client still wants its answer, and may have it under this policy.
    pub(in crate::faults) fn is_benign(self, policy: &Policy) -> bool {
        match self {
            Self::Truncate { .. } | Self::VanishUpload { .. } | Self::VanishDownload { .. } => {
                false
            }
            // While it waits in a queue, it counts as gone.
            Self::HalfClose => policy.queue.is_none(),
            Self::WrongDigest => !policy.integrity.check,
            _ => true,
        }
    }
}
