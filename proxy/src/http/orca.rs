//! Load reports that endpoints send along with their responses (ORCA, gRFC A51;
//! `xds.data.orca.v3.OrcaLoadReport`): asked for, heeded and taken out by who picks the endpoint,
//! and added to by the sidecar beside it.
//!
//! A report comes in the head or in the trailers. Who balances by it asks for it, as vLLM and Triton
//! want it; it says nothing of us to those before us, unless they asked too. Where nobody asks, a
//! sidecar writes none.

use std::sync::atomic::Ordering::Relaxed;

use http::{HeaderMap, HeaderName, HeaderValue, header::Entry};

mod read;
mod stream;
mod write;

pub(crate) use write::Reporter;

use super::{
    exchange::Exchange,
    message::{Length, ResponseHead},
    relay::Downstream,
};
use crate::upstream::{EndpointLive, ServiceLive, ServiceState, now_ms, now_us};
use write::Format;

/// Who wants a load report of a request's endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// We do.
    by_us: bool,
    /// The client does.
    by_client: bool,
    /// We are the endpoint's sidecar, and this is how the client wants it.
    of_us: Option<Format>,
}

const METRICS: HeaderName = HeaderName::from_static("endpoint-load-metrics");
/// gRPC's.
const METRICS_BIN: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");
const FORMAT: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");
/// Time between two requests of a service that ask for a report, in the mean: small ones must not pay
/// for one each, and nothing that a report says changes faster.
const ASK_EVERY_US: u64 = 5_000;

/// Whether a request to this service is to ask for a report: now and then where somebody goes by it.
pub(super) fn is_due(service: &ServiceLive) -> bool {
    service.asks_for_reports.load(Relaxed) && is_due_at(service, now_us())
}

/// At random: endpoints have their turns in a rhythm, and with one of ours the same one could be
/// spared for good.
fn is_due_at(service: &ServiceLive, now_us: u64) -> bool {
    let due = now_us >= service.report_due_us.load(Relaxed);
    if due {
        let pause = fastrand::u64(1..2 * ASK_EVERY_US);
        service.report_due_us.store(now_us + pause, Relaxed);
    }
    due
}

impl Asked {
    /// Asks for a report if `asks`, in the client's words where it asks too. `reports`: we are the
    /// endpoint's sidecar.
    pub(super) fn with(headers: &mut HeaderMap, asks: bool, reports: bool) -> Self {
        if !asks {
            let by_client = headers.get(FORMAT);
            let of_us = by_client.filter(|_| reports).and_then(Format::named);
            return Self { by_us: false, by_client: by_client.is_some(), of_us };
        }
        match headers.entry(FORMAT) {
            Entry::Occupied(place) => {
                let of_us = Some(place.get()).filter(|_| reports).and_then(Format::named);
                Self { by_us: true, by_client: true, of_us }
            }
            Entry::Vacant(place) => {
                place.insert(HeaderValue::from_static("text"));
                Self { by_us: true, by_client: false, of_us: None }
            }
        }
    }
}

impl<D: Downstream> Exchange<'_, D> {
    /// Before the route changes any field.
    pub(super) fn report_in_head(&self, answer: &mut ResponseHead) {
        self.heed(&mut answer.headers);
        // gRPC looks for it where the call ends.
        if !self.grpc || answer.length == Length::None {
            self.report(&mut answer.headers);
        }
    }

    pub(super) fn report_in_trailers(&self, trailers: &mut HeaderMap) {
        self.heed(trailers);
        if self.grpc {
            self.report(trailers);
        }
    }

    /// Lets a report count where somebody goes by it, our balancer or the control plane, and takes out
    /// of the fields what tells those before us nothing, or what is not so.
    fn heed(&self, fields: &mut HeaderMap) {
        let Some(ticket) = &self.ticket else { return };
        let (service, live) = (&ticket.service, &ticket.endpoint.live);
        if self.asked.by_us || service.spec.reads_reports() {
            if service.spec.out_of_band.is_none() || live.silent.load(Relaxed) {
                hear(service, live, fields);
            }
            if !self.asked.by_client {
                fields.remove(METRICS);
                fields.remove(METRICS_BIN);
                return;
            }
        }
        // Who reads it would take the health of one endpoint for that of all behind us.
        let is_beside_it = self.client.listener.load.is_some();
        if !is_beside_it {
            write::without_endpoint_state(fields);
        }
    }

    /// Adds what we know of the load to what the application says.
    fn report(&self, fields: &mut HeaderMap) {
        let reporter = self.client.listener.load.as_ref();
        let (Some(reporter), Some(ticket)) = (reporter, &self.ticket) else { return };
        let Some(format) = self.asked.of_us else { return };
        let metrics = self.record.backend().map(|backend| &backend.metrics);
        let (service, slots) = (&ticket.service.live, ticket.endpoint.spec.slots);
        let ours = reporter.report(service, slots, metrics, now_ms());
        write::add(fields, ours, format, self.grpc);
    }
}

/// Looks into a report as far as it counts.
fn hear(service: &ServiceState, live: &EndpointLive, fields: &HeaderMap) {
    let now = now_ms();
    if service.weights.is_some() {
        if !live.capacity.wants_news(now) {
            return;
        }
        if let Some(report) = read::find(fields).and_then(read::Found::report) {
            service.heed(live, &report, now);
        }
    } else if let Some(found) = read::find(fields) {
        live.heard(&found.figures(), now);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use towpath_policies::model::{Balancer, Endpoint, EndpointSet, Protocol, Service};

    use super::*;
    use crate::upstream::reconcile;

    #[test]
    fn a_policy_that_was_replaced_asks_for_nothing() {
        let set = EndpointSet::new("s".into(), vec![Endpoint::new(([127, 0, 0, 1], 1).into())]);
        let view = |old: Option<&Arc<ServiceState>>, balancer| {
            let spec = Service { balancer, ..Service::new("s", Protocol::Http1) };
            let view = reconcile(old, Arc::new(spec), &set, 1).unwrap();
            // As if it were long since the last one.
            view.live.report_due_us.store(0, Relaxed);
            view
        };
        let predicts = view(None, Balancer::CompletionTime);
        assert!(is_due(&predicts.live));
        let counts = view(Some(&predicts), Balancer::BytesInFlight);
        assert!(!is_due(&counts.live));
        assert!(is_due(&view(Some(&counts), Balancer::WeightedRoundRobin).live));
    }

    #[test]
    fn each_of_those_that_take_turns_is_asked_whatever_the_rhythm() {
        let set = EndpointSet::new("s".into(), Vec::new());
        let service = reconcile(None, Arc::new(Service::new("s", Protocol::Http1)), &set, 1);
        let live = &service.unwrap().live;
        assert!(is_due_at(live, 7));
        assert!(!is_due_at(live, 7), "at most once in a while");
        for (members, every_us) in [(2, 2_500), (5, 1_000), (3, 5_000 / 3), (10, 500), (4, 5_000)] {
            let mut asked = vec![0; members];
            live.report_due_us.store(0, Relaxed);
            for nth in 0..20_000 {
                if is_due_at(live, nth as u64 * every_us) {
                    asked[nth % members] += 1;
                }
            }
            let most = asked.iter().max().unwrap();
            assert!(asked.iter().all(|n| n * 3 > *most), "{members} {every_us}: {asked:?}");
        }
    }

    #[test]
    fn a_report_is_asked_for_where_it_counts_and_a_client_keeps_its_words() {
        let json = Some(Format::Json);
        for (asks, reports, client, sent, (by_us, by_client, of_us)) in [
            (false, false, None, None, (false, false, None)),
            (false, false, Some("json"), Some("json"), (false, true, None)),
            (true, false, None, Some("text"), (true, false, None)),
            (true, false, Some("json"), Some("json"), (true, true, None)),
            (false, true, None, None, (false, false, None)),
            (false, true, Some("json"), Some("json"), (false, true, json)),
            (false, true, Some("xml"), Some("xml"), (false, true, None)),
            (true, true, Some("json"), Some("json"), (true, true, json)),
            (true, true, None, Some("text"), (true, false, None)),
        ] {
            let mut headers = HeaderMap::new();
            client.map(|format| headers.insert(FORMAT, HeaderValue::from_static(format)));
            let got = Asked::with(&mut headers, asks, reports);
            assert_eq!(got, Asked { by_us, by_client, of_us }, "{asks} {reports} {client:?}");
            assert_eq!(headers.get(FORMAT).map(|v| v.to_str().unwrap()), sent);
        }
    }
}
