//! Passive ejection: an endpoint that fails several times in a row, or lags
//! behind its peers, is left alone for a while, longer each time.
//!
//! Decisions are pure functions of what is remembered and the time ([`eject`],
//! [`goodput`], [`rates`]); what was decided is a time that picks compare with.
//! Failures in a row are seen as they happen, on the request's way; peers are
//! compared on the control thread (`watch`).

pub mod goodput;
pub mod meter;
pub mod peers;
pub mod rates;
pub(crate) mod watch;

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use towpath_policies::model::Outlier;

use crate::{
    metrics::registry,
    upstream::{EndpointState, ServiceState, now_ms},
};

/// How an exchange with an endpoint ended, as seen by this proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, with anything but a 5xx.
    Success,
    /// It failed.
    Failure(Failure),
}

/// The failures that count against an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A 5xx status, or a gRPC status that means the same.
    Status,
    /// The connection broke.
    Reset,
    /// No connection could be made.
    Connect,
    /// It did not answer in time.
    Timeout,
}

impl Failure {
    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Reset => "reset",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
        }
    }
}

/// Why an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Failures in a row, the last of them this one.
    InARow(Failure),
    /// Its share of successes is far below its peers'.
    SuccessRate,
    /// Its time to the response head is far above its peers'.
    Latency,
    /// Its goodput is far below its peers'.
    Goodput,
}

impl Reason {
    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InARow(failure) => failure.as_str(),
            Self::SuccessRate => "success_rate",
            Self::Latency => "latency",
            Self::Goodput => "goodput",
        }
    }
}

/// What is remembered of one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Ejections so far, less what good conduct has made up for.
    pub ejections: u32,
    /// When the last one ends, or ended; 0 = there was none.
    pub ejected_until_ms: u64,
}

/// The last ejection, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// As in metrics.
    pub reason: &'static str,
    /// For a person.
    pub why: String,
}

/// What the other endpoints of the service look like when one is about to be ejected.
#[derive(Clone, Copy, Debug)]
pub struct Others {
    /// Endpoints of the service, this one included.
    pub total: usize,
    /// Endpoints besides this one that would be picked.
    pub usable: usize,
    /// Endpoints besides this one that are ejected.
    pub ejected: usize,
}

/// Decides whether an endpoint that has failed as often in a row as `limits`
/// allow is ejected, and until when.
///
/// `None` when it must stay: it is the last usable one, too large a share is
/// out already, or it is out as it is. Each ejection is longer than the one
/// before by the base time; every base time of good conduct makes up for one.
pub fn eject(past: Past, others: Others, limits: &Outlier, now_ms: u64) -> Option<Past> {
    let share = limits.max_ejected_percent as usize * others.total;
    let share_full = others.ejected > 0 && (others.ejected + 1) * 100 > share;
    if others.usable == 0 || share_full || past.ejected_until_ms > now_ms {
        return None;
    }
    let base = millis(limits.base_ejection).max(1);
    let forgiven = (now_ms - past.ejected_until_ms) / base;
    let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
    let ejections = past.ejections.saturating_sub(forgiven).saturating_add(1);
    let time = base.saturating_mul(ejections.into()).min(millis(limits.max_ejection).max(base));
    Some(Past { ejections, ejected_until_ms: now_ms.saturating_add(time) })
}

/// Tells how an exchange with an endpoint of this service ended. Success on a
/// healthy endpoint costs one relaxed load.
pub fn report(service: &ServiceState, endpoint: &EndpointState, outcome: Outcome) {
    let live = &endpoint.live;
    let failure = match outcome {
        Outcome::Success => {
            live.learned.succeeded();
            if live.consecutive_failures.load(Relaxed) != 0 {
                live.consecutive_failures.store(0, Relaxed);
            }
            return;
        }
        Outcome::Failure(failure) => failure,
    };
    live.meter.fail();
    live.learned.failed();
    // What was under way when it was ejected says nothing of it when it comes back.
    if live.ejected(now_ms()) {
        return;
    }
    let failures = live.consecutive_failures.fetch_add(1, Relaxed).saturating_add(1);
    let Some(limits) = &service.spec.outlier else { return };
    if failures >= limits.consecutive_failures {
        let why = format!("{failures} failures in a row, the last: {}", failure.as_str());
        try_eject(service, endpoint, limits, Reason::InARow(failure), why);
    }
}

fn try_eject(
    service: &ServiceState,
    endpoint: &EndpointState,
    limits: &Outlier,
    reason: Reason,
    why: String,
) {
    // One decision at a time, or two workers could each eject the other's last usable endpoint.
    static DECIDING: Mutex<()> = Mutex::new(());
    let _deciding = DECIDING.lock().unwrap_or_else(PoisonError::into_inner);
    let now = now_ms();
    let live = &endpoint.live;
    let past = Past {
        ejections: live.ejections.load(Relaxed),
        ejected_until_ms: live.ejected_until_ms.load(Relaxed),
    };
    let mut others = Others { total: service.endpoints.len(), usable: 0, ejected: 0 };
    for other in service.endpoints.iter().filter(|o| o.spec.address != endpoint.spec.address) {
        others.usable += usize::from(other.usable(now));
        others.ejected += usize::from(other.live.ejected(now));
    }
    let Some(decided) = eject(past, others, limits, now) else { return };
    live.ejections.store(decided.ejections, Relaxed);
    live.ejected_until_ms.store(decided.ejected_until_ms, Relaxed);
    live.warm_from_ms.store(decided.ejected_until_ms, Relaxed);
    live.consecutive_failures.store(0, Relaxed);
    let (service, name) = (service.spec.name.as_str(), endpoint.spec.name.as_str());
    let reason = reason.as_str();
    let labels = [("service", service), ("endpoint", name), ("reason", reason)];
    registry().counter("towpath_ejections_total", &labels).inc();
    let for_ms = decided.ejected_until_ms - now;
    tracing::warn!(service, endpoint = name, reason, for_ms, why, "endpoint ejected");
    live.last_ejection.store(Some(Arc::new(Ejection { reason, why })));
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Outlier = Outlier {
        consecutive_failures: 5,
        base_ejection: Duration::from_secs(30),
        max_ejection: Duration::from_secs(100),
        max_ejected_percent: 50,
        interval: Duration::from_secs(10),
        min_endpoints: 3,
        success_rate: None,
        latency: None,
        goodput: None,
    };
    const OTHERS: Others = Others { total: 3, usable: 2, ejected: 0 };

    #[test]
    fn each_ejection_is_longer_up_to_the_longest_and_good_conduct_makes_up_for_it() {
        let (mut past, mut now) = (Past::default(), 1_000_000);
        for seconds in [30, 60, 90, 100, 100] {
            past = eject(past, OTHERS, &LIMITS, now).unwrap();
            assert_eq!(past.ejected_until_ms, now + seconds * 1000);
            assert_eq!(eject(past, OTHERS, &LIMITS, past.ejected_until_ms - 1), None, "it is out");
            now = past.ejected_until_ms;
        }
        now += 4 * 30_000;
        past = eject(past, OTHERS, &LIMITS, now).unwrap();
        assert_eq!(past.ejected_until_ms, now + 60_000, "five ejections, four made up for");
    }

    #[test]
    fn the_share_is_kept_and_the_last_usable_one_stays() {
        for (total, percent, expected) in
            [(1, 100, 0), (2, 50, 1), (2, 100, 1), (4, 50, 2), (4, 0, 1), (10, 30, 3), (3, 100, 2)]
        {
            let limits = Outlier { max_ejected_percent: percent, ..LIMITS };
            let mut ejected = 0;
            for _ in 0..total {
                let others = Others { total, usable: total - 1 - ejected, ejected };
                ejected += usize::from(eject(Past::default(), others, &limits, 1).is_some());
            }
            assert_eq!(ejected, expected, "{percent} % of {total}");
        }
    }
}
