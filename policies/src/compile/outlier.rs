//! Ejection, and the way back: the terms of a `BreakerPolicy` that say which
//! endpoints are left alone, and when they are used again.

use std::time::Duration;

use crate::{
    diagnostic::Rule,
    document::{
        own::{BreakerPolicySpec, GoodputSpec, LatencySpec, OutlierSpec, SuccessRateSpec},
        read::invalid,
    },
    model::{Goodput, Latency, Outlier, Protocol, Recovery, Service, SuccessRate},
    problem::{At, Problems, Span},
};

use super::services::{count, time};

const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);
/// Proxies look every 50 ms; a judgement needs several looks.
const SHORTEST_WINDOW: Duration = Duration::from_millis(250);
const LONGEST_WINDOW: Duration = Duration::from_secs(60);

pub(super) fn compile(
    written: Option<&OutlierSpec>,
    service: &Service,
    problems: &mut Problems,
) -> Option<Outlier> {
    let default = Outlier::default();
    let Some(spec) = written else { return Some(default) };
    if let Some(off) = spec.disabled.as_ref().filter(|off| off.value) {
        if says_more(spec) {
            no_effect(off.span, problems);
        }
        return None;
    }
    let outlier = Outlier {
        consecutive_failures: count(
            spec.consecutive_failures.as_ref(),
            default.consecutive_failures,
        ),
        base_ejection: time(spec.base_ejection.as_ref(), default.base_ejection),
        max_ejection: time(spec.max_ejection.as_ref(), default.max_ejection),
        max_ejected_percent: spec
            .max_ejected_percent
            .as_ref()
            .map_or(default.max_ejected_percent, |p| ***p),
        interval: time(spec.interval.as_ref(), default.interval),
        min_endpoints: spec.min_endpoints.as_ref().map_or(default.min_endpoints, |n| ***n),
        success_rate: success_rate(spec.success_rate.as_ref(), problems),
        latency: spec.latency.as_ref().map(latency),
        goodput: goodput(spec.goodput.as_ref(), problems),
    };
    check(spec, &outlier, service, problems);
    Some(outlier)
}

fn success_rate(written: Option<&SuccessRateSpec>, problems: &mut Problems) -> Option<SuccessRate> {
    let default = SuccessRate::default();
    let Some(spec) = written else { return Some(default) };
    let says_more = spec.min_requests.is_some() || spec.margin_percent.is_some();
    is_on(spec.disabled.as_ref(), says_more, problems).then(|| SuccessRate {
        min_requests: count(spec.min_requests.as_ref(), default.min_requests),
        margin_percent: spec.margin_percent.as_ref().map_or(default.margin_percent, |p| ***p),
        ..default
    })
}

fn latency(spec: &LatencySpec) -> Latency {
    let default = Latency::default();
    Latency {
        min_requests: count(spec.min_requests.as_ref(), default.min_requests),
        above_percent: spec.above_percent.as_ref().map_or(default.above_percent, |p| ***p),
        margin: time(spec.margin.as_ref(), default.margin),
    }
}

fn goodput(written: Option<&GoodputSpec>, problems: &mut Problems) -> Option<Goodput> {
    let default = Goodput::default();
    let spec = written?;
    let says_more =
        spec.below_percent.is_some() || spec.window.is_some() || spec.min_bytes.is_some();
    is_on(spec.disabled.as_ref(), says_more, problems).then(|| Goodput {
        below_percent: spec.below_percent.as_ref().map_or(default.below_percent, |p| ***p),
        window: time(spec.window.as_ref(), default.window),
        min_bytes: spec.min_bytes.as_ref().map_or(default.min_bytes, |b| b.0),
    })
}

/// How endpoints come back, and when ejections and probes are ignored.
pub(super) fn recovery(
    written: Option<&BreakerPolicySpec>,
    outlier: Option<&Outlier>,
    problems: &mut Problems,
) -> Recovery {
    let default = Recovery::default();
    let most_ejected = outlier.map_or(0, |o| o.max_ejected_percent);
    // Ejections alone never lead into the mode that ignores them.
    let default =
        Recovery { panic_percent: default.panic_percent.min(100 - most_ejected), ..default };
    let Some(spec) = written else { return default };
    let recovery = Recovery {
        slow_start: spec.slow_start.as_ref().map_or(default.slow_start, |t| t.0),
        slow_start_floor_percent: spec
            .slow_start_floor_percent
            .as_ref()
            .map_or(default.slow_start_floor_percent, |p| ***p),
        panic_percent: spec.panic_percent.as_ref().map_or(default.panic_percent, |p| ***p),
    };
    if let Some(panic) = &spec.panic_percent
        && most_ejected + recovery.panic_percent > 100
    {
        let message = format!(
            "with {most_ejected} % ejected, fewer than {} % are left, and then ejections are ignored",
            recovery.panic_percent
        );
        let help = format!("at most {}, or a smaller maxEjectedPercent", 100 - most_ejected);
        invalid(panic.span, message, help, problems);
    }
    if let (Some(floor), true) = (&spec.slow_start_floor_percent, recovery.slow_start.is_zero()) {
        problems
            .warning(Rule::NoEffect, floor.span, "without a slow start its floor has no effect")
            .help("remove it, or give `slowStart` a time");
    }
    recovery
}

/// Where the first of the terms of [`recovery`] is written.
pub(super) fn recovery_span(spec: &BreakerPolicySpec) -> Option<Span> {
    let slow_start = spec.slow_start.as_ref().map(|t| t.span);
    let floor = spec.slow_start_floor_percent.as_ref().map(|p| p.span);
    slow_start.or(floor).or_else(|| spec.panic_percent.as_ref().map(|p| p.span))
}

fn is_on(off: Option<&At<bool>>, says_more: bool, problems: &mut Problems) -> bool {
    let Some(off) = off.filter(|off| off.value) else { return true };
    if says_more {
        no_effect(off.span, problems);
    }
    false
}

fn no_effect(off: Span, problems: &mut Problems) {
    problems
        .warning(Rule::NoEffect, off, "ejection is off, so the other values have no effect")
        .help("remove them, or `disabled`");
}

fn says_more(spec: &OutlierSpec) -> bool {
    spec.consecutive_failures.is_some()
        || spec.base_ejection.is_some()
        || spec.max_ejection.is_some()
        || spec.max_ejected_percent.is_some()
        || spec.interval.is_some()
        || spec.min_endpoints.is_some()
        || spec.success_rate.is_some()
        || spec.latency.is_some()
        || spec.goodput.is_some()
}

/// What cannot be meant.
fn check(spec: &OutlierSpec, outlier: &Outlier, service: &Service, problems: &mut Problems) {
    if outlier.max_ejection < outlier.base_ejection {
        let span = spec
            .max_ejection
            .as_ref()
            .or(spec.base_ejection.as_ref())
            .map_or(spec.span, |t| t.span);
        let help = "maxEjection (default 5m) must be at least baseEjection (default 30s)";
        invalid(span, "the longest ejection is shorter than the first", help, problems);
    }
    if let Some(interval) = &spec.interval
        && !(SHORTEST_INTERVAL..=LONGEST_INTERVAL).contains(&interval.0)
    {
        invalid(interval.span, "the interval is out of range", "1s to 1h", problems);
    }
    if let Some(goodput) = &spec.goodput {
        if let Some(window) = &goodput.window
            && !(SHORTEST_WINDOW..=LONGEST_WINDOW).contains(&window.0)
        {
            let message = "goodput cannot be judged over this time";
            invalid(window.span, message, "250ms to 1m; it is sampled every 50ms", problems);
        }
        if let Some(bytes) = goodput.min_bytes.as_ref().filter(|bytes| bytes.0 == 0) {
            let message = "0 bytes say nothing of an endpoint";
            invalid(bytes.span, message, "at least 1; the default is 1MiB", problems);
        }
    }
    if service.protocol == Protocol::Tcp {
        let off = |off: Option<&At<bool>>| off.is_some_and(|off| off.value);
        let latency = spec.latency.as_ref().map(|l| ("latency", l.span));
        let goodput = spec
            .goodput
            .as_ref()
            .filter(|g| !off(g.disabled.as_ref()))
            .map(|g| ("goodput", g.span));
        for (what, span) in latency.into_iter().chain(goodput) {
            let message = format!(
                "the Service {} speaks TCP, and opaque connections have no {what} to judge",
                service.name
            );
            problems
                .error(Rule::Conflict, span, message)
                .help(format!("remove `{what}`, or set the Service's protocol"));
        }
    }
}
