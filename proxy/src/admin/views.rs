//! The live state as JSON and as gauges.

use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;
use serde_json::{Value, json};
use towpath_policies::model::{Class, Health};

use crate::{
    access_log::Rfc3339,
    control::Control,
    drain::Leftovers,
    metrics::registry,
    upstream::{
        EndpointState, ServiceLive, ServiceState,
        completion::explain::Whence,
        concurrency::{Concurrency, Figures},
        now_ms,
        queue::Queue,
    },
};

pub(super) fn config_dump(control: &Control) -> Value {
    let view = control.view();
    json!({
        "version": view.applied.map(|_| &view.snapshot.version),
        "applied": view.applied.map(|time| Rfc3339(time).to_string()),
        "source": control.source(),
        "place": view.here,
        "draining": control.drain.fired(),
        "snapshot": &*view.snapshot,
    })
}

#[derive(Serialize)]
pub(super) struct Drain {
    draining: bool,
    seconds_left: Option<u64>,
    #[serde(flatten)]
    left: Leftovers,
}

pub(super) fn drain(control: &Control) -> Drain {
    let gone_on = control.draining_for();
    let left = |time| control.drain_timeout.saturating_sub(time).as_secs();
    Drain {
        draining: gone_on.is_some(),
        seconds_left: gone_on.map(left),
        left: control.leftovers(),
    }
}

pub(super) fn listeners(control: &Control) -> Value {
    let addresses = control.addresses();
    let view = control.view();
    view.listeners
        .iter()
        .filter_map(|listening| {
            let address = addresses.get(&*listening.name)?;
            Some(json!({
                "name": &*listening.name,
                "address": address.to_string(),
                "connections": listening.open_connections(),
            }))
        })
        .collect()
}

pub(super) fn endpoints(control: &Control) -> Value {
    let view = control.view();
    let now = now_ms();
    view.services
        .iter()
        .map(|(name, service)| {
            let live = &service.live;
            let each = service.endpoints.iter().map(|e| endpoint(e, service, now));
            let value = json!({
                "protocol": service.spec.protocol,
                "requests_in_flight": live.requests.load(Relaxed),
                "bytes_in_flight": live.bytes_in_flight.load(Relaxed),
                "connections": live.connections.load(Relaxed),
                "pending": live.pending.load(Relaxed),
                "retries_in_flight": live.retries.load(Relaxed),
                "retry_bytes_in_flight": live.retry_bytes.load(Relaxed),
                "panics": live.panics.load(Relaxed),
                "queue": service.spec.admission.queue.is_some().then(|| queue(live)),
                "shares": shares(service),
                "endpoints": each.collect::<Value>(),
            });
            (name.clone(), value)
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// What priorities and localities have of the requests, where that is shared out.
fn shares(service: &ServiceState) -> Option<Value> {
    let all = service.shares()?.into_iter();
    let each = all.map(|(priority, locality, share)| {
        let percent = (share * 1000.0).round() / 10.0;
        json!({ "priority": priority, "locality": locality, "percent": percent })
    });
    Some(each.collect())
}

/// Who waits, by class.
fn queue(live: &ServiceLive) -> Value {
    lengths(live)
        .map(|(class, length, bytes)| {
            (class.name().to_owned(), json!({ "requests": length, "bytes": bytes }))
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn lengths(live: &ServiceLive) -> impl Iterator<Item = (Class, usize, u64)> {
    let lengths = live.queue.get().map(Queue::lengths);
    let each = lengths.into_iter().flat_map(|lengths| Class::ALL.into_iter().zip(lengths));
    each.map(|(class, (length, bytes))| (class, length, bytes))
}

fn endpoint(endpoint: &EndpointState, service: &ServiceState, now: u64) -> Value {
    let (spec, live) = (&endpoint.spec, &endpoint.live);
    let figures = service.concurrency(endpoint).map(Concurrency::figures);
    let service = &service.spec;
    let slots = service.admission.queue.as_ref().map(|terms| endpoint.slots(terms));
    let concurrency = figures.map(|figures| {
        json!({
            "limit": figures.limit,
            "awaiting_head": figures.waiting,
            "head_ms": figures.typical.map(|time| time.as_secs_f64() * 1e3),
            "unqueued_head_ms": figures.unqueued.map(|time| time.as_secs_f64() * 1e3),
        })
    });
    json!({
        "name": spec.name,
        "address": spec.address.to_string(),
        "locality": spec.locality,
        "place": spec.place,
        "coordinates": spec.coordinates,
        "gpu": spec.gpu,
        "weight": spec.weight,
        "declared_weight": spec.declared(),
        "priority": spec.priority,
        "health": spec.health,
        "usable": endpoint.usable(now),
        "healthy": live.probe_healthy.load(Relaxed) && spec.health != Health::Unhealthy,
        "ejected": live.ejected(now),
        "ejected_for_ms": live.ejected_until_ms.load(Relaxed).saturating_sub(now),
        "ejections": live.ejections.load(Relaxed),
        "last_ejection": live.last_ejection.load().as_ref().map(|e| json!({ "reason": e.reason, "why": e.why })),
        "weight_percent_now": live.warmth(now, &service.recovery) / 10,
        "goodput_bytes_per_second": Some(live.goodput.load(Relaxed)).filter(|g| *g > 0),
        "reported_capacity": live.capacity.value(),
        "consecutive_failures": live.consecutive_failures.load(Relaxed),
        "requests_in_flight": live.requests.load(Relaxed),
        "bytes_in_flight": live.bytes_in_flight.load(Relaxed),
        "concurrency": concurrency,
        "slots": slots,
        "slots_used": slots.map(|_| live.slots_used.load(Relaxed)),
        "connections": live.connections.load(Relaxed),
        "pending": live.pending.load(Relaxed),
        "picks_total": live.metrics.picks.value(),
        "request_bytes_total": live.metrics.bytes_sent.value(),
        "response_bytes_total": live.metrics.bytes_received.value(),
    })
}

/// The terms of a service's predictions are told of each endpoint up to so many of them.
const PREDICTED: usize = 100;

/// What is predicted of a request as is usual, from beside the proxy, that tolerates delay.
fn measure_predictions(name: &str, service: &ServiceState) {
    let Ok(explained) = service.explain(&Whence::Here, 0, Class::Background) else { return };
    for endpoint in explained.endpoints {
        for (term, seconds) in endpoint.terms.named() {
            let labels = [("service", name), ("endpoint", &*endpoint.name), ("term", term)];
            registry().real("towpath_endpoint_predicted_seconds", &labels).set(seconds.into());
        }
    }
}

/// Brings the gauges up to date that are only looked at when asked for.
pub(super) fn measure(control: &Control) {
    let registry = registry();
    let now = now_ms();
    for (name, service) in &control.view().services {
        let of = [("service", name.as_str())];
        let live = &service.live;
        let bytes = i64::try_from(live.bytes_in_flight.load(Relaxed)).unwrap_or(i64::MAX);
        registry.gauge("towpath_bytes_in_flight", &of).set(bytes);
        let connections = live.connections.load(Relaxed).into();
        registry.gauge("towpath_upstream_connections", &of).set(connections);
        for (class, length, bytes) in lengths(live) {
            let labels = [of[0], ("class", class.name())];
            let set = |name, value: i64| registry.gauge(name, &labels).set(value);
            set("towpath_queue_length", i64::try_from(length).unwrap_or(i64::MAX));
            set("towpath_queue_bytes", i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        for endpoint in &service.endpoints {
            let labels = [of[0], ("endpoint", endpoint.spec.name.as_str())];
            let usable = endpoint.usable(now).into();
            registry.gauge("towpath_endpoint_usable", &labels).set(usable);
            let goodput = endpoint.live.goodput.load(Relaxed);
            let goodput = i64::try_from(goodput).unwrap_or(i64::MAX);
            registry.gauge("towpath_endpoint_goodput_bytes_per_second", &labels).set(goodput);
            if let Some(concurrency) = service.concurrency(endpoint) {
                let Figures { limit, waiting, .. } = concurrency.figures();
                registry.gauge("towpath_endpoint_concurrency_limit", &labels).set(limit.into());
                registry.gauge("towpath_endpoint_awaiting_head", &labels).set(waiting.into());
            }
        }
        if service.endpoints.len() <= PREDICTED {
            measure_predictions(name, service);
        }
    }
    let uptime = i64::try_from(control.started.elapsed().as_secs()).unwrap_or(i64::MAX);
    registry.gauge("towpath_uptime_seconds", &[]).set(uptime);
    if let Some(resident) = crate::overload::resident() {
        registry.gauge("towpath_process_resident_bytes", &[]).set(resident.cast_signed());
    }
}
