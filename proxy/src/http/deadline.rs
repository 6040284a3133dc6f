//! Time limits of an exchange, and gRPC's own deadline.

use std::{
    task::{Poll, ready},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;
use towpath_policies::model;

use super::stall::{Flow, Stall, Waits};

/// What ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    /// The whole exchange's time.
    Overall,
    /// The try's time.
    Try,
    /// Nothing moved.
    Idle,
    /// The endpoint took or sent too little.
    Stall,
    /// The client sent or took too little.
    ClientStall,
    /// The client closed its sending side and no answer began.
    HalfClosed,
}

/// The time limits of one exchange.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) overall: Option<Instant>,
    /// `overall` is the route's and not the client's own deadline.
    pub(super) ours: bool,
    pub(super) of_try: Option<Instant>,
    pub(super) half_closed: Option<Instant>,
    /// When to look at how it goes; taken back then.
    pub(super) look: Option<Instant>,
    idle: Option<Duration>,
    idle_check: Option<Instant>,
    still: u8,
    stall: Option<Box<Stall>>,
}

/// An idle limit is looked at so often; it is met at most one such part late.
const IDLE_PARTS: u8 = 4;

impl Limits {
    pub(super) fn new(start: Instant, overall: Option<Duration>, idle: Option<Duration>) -> Self {
        Self {
            overall: overall.and_then(|o| start.checked_add(o)),
            ours: true,
            of_try: None,
            half_closed: None,
            look: None,
            idle,
            idle_check: idle.and_then(|i| start.checked_add(i / u32::from(IDLE_PARTS))),
            still: 0,
            stall: None,
        }
    }

    /// Also holds the bodies to a floor.
    pub(super) fn hold(&mut self, floor: Option<&model::Stall>, start: Instant) {
        self.stall = floor.map(|floor| Box::new(Stall::new(floor, start)));
    }

    /// Another try begins.
    pub(super) fn begin_try(&mut self) {
        if let Some(stall) = &mut self.stall {
            stall.restart();
        }
    }

    /// Ready when a limit is reached, or it is time to look; `until` is ready once a time has passed. `moved`
    /// says whether a byte moved since the last look, and is taken back; `flow` says how the bodies stand.
    pub(super) fn poll(
        &mut self,
        mut until: impl FnMut(Instant) -> Poll<()>,
        moved: &mut bool,
        flow: impl Fn() -> Flow,
    ) -> Poll<Result<(), Expired>> {
        loop {
            let stall = self.stall.as_ref().map(|stall| stall.next());
            let all =
                [self.overall, self.of_try, self.half_closed, self.look, self.idle_check, stall];
            let Some(first) = all.into_iter().flatten().min() else { return Poll::Pending };
            ready!(until(first));
            let now = Instant::now().max(first);
            if self.overall.is_some_and(|at| at <= now) {
                return Poll::Ready(Err(Expired::Overall));
            }
            if self.of_try.is_some_and(|at| at <= now) {
                return Poll::Ready(Err(Expired::Try));
            }
            if self.half_closed.is_some_and(|at| at <= now) {
                return Poll::Ready(Err(Expired::HalfClosed));
            }
            if self.look.take_if(|at| *at <= now).is_some() {
                return Poll::Ready(Ok(()));
            }
            if let Some(stall) = self.stall.as_mut().filter(|stall| stall.next() <= now) {
                match stall.look(now, flow()) {
                    Some(Waits::Endpoint) => return Poll::Ready(Err(Expired::Stall)),
                    Some(Waits::Client) => return Poll::Ready(Err(Expired::ClientStall)),
                    _ => {}
                }
            }
            if self.idle_check.is_none_or(|at| at > now) {
                continue;
            }
            self.still = if std::mem::take(moved) { 0 } else { self.still + 1 };
            if self.still >= IDLE_PARTS {
                return Poll::Ready(Err(Expired::Idle));
            }
            self.idle_check = self.idle.and_then(|i| now.checked_add(i / u32::from(IDLE_PARTS)));
        }
    }
}

pub(super) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The deadline a gRPC client set. A value that is none is ignored, as gRPC says of unknown metadata.
pub(super) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(&GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// What is left of a deadline, as `grpc-timeout` writes it: at most eight digits.
pub(super) fn grpc_timeout_value(left: Duration) -> Option<HeaderValue> {
    let micros = left.as_micros();
    let (amount, unit) = match micros {
        0..100_000_000 => (micros, 'u'),
        100_000_000..100_000_000_000 => (micros / 1000, 'm'),
        _ => ((micros / 1_000_000).min(99_999_999), 'S'),
    };
    HeaderValue::from_str(&format!("{amount}{unit}")).ok()
}

#[cfg(test)]
mod tests;
