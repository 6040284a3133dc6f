//! What the control plane is told of the load (LRS): what load reports of endpoints said, in sums,
//! and all else out of the counters that exist.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use towpath_xds::{
    client::{Counted, CountedEndpoint},
    load::{APPLICATION, BYTES, CPU, GOODPUT, GOODPUT_FACTOR, Sum},
    orca::{JOULES_PER_BYTE, LoadReport},
};

use super::{EndpointState, ServiceState};

/// Sums of what an endpoint's load reports said.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    goodput_factor: Total,
    application: Total,
    cpu: Total,
}

/// What a load report says of what weights are made of, and of energy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    /// The share of its goodput that the endpoint has.
    pub(crate) goodput_factor: Option<f64>,
    /// What share of what the application can do it does.
    pub(crate) application: Option<f64>,
    /// The share of the CPU in use.
    pub(crate) cpu: Option<f64>,
    /// The energy that goes with a byte.
    pub(crate) joules_per_byte: Option<f64>,
}

/// A sum of shares, in millionths so that adding is one operation.
#[derive(Debug, Default)]
struct Total {
    count: AtomicU64,
    millionths: AtomicU64,
}

impl Figures {
    pub(crate) fn of(report: &LoadReport) -> Self {
        Self {
            goodput_factor: report.named_metrics.get(GOODPUT_FACTOR).copied(),
            application: Self::said(report.application_utilization),
            cpu: Self::said(report.cpu_utilization),
            joules_per_byte: report.named_metrics.get(JOULES_PER_BYTE).copied(),
        }
    }

    /// 0 says nothing.
    pub(crate) fn said(share: f64) -> Option<f64> {
        (share > 0.0).then_some(share)
    }
}

impl Tally {
    /// A load report came.
    pub(crate) fn heard(&self, figures: &Figures) {
        self.goodput_factor.add(figures.goodput_factor.filter(|factor| *factor <= 1.0));
        self.application.add(figures.application.filter(|share| *share > 0.0));
        self.cpu.add(figures.cpu.filter(|share| *share > 0.0));
    }
}

impl Total {
    /// What is no share is left out.
    fn add(&self, value: Option<f64>) {
        let Some(value) = value.filter(|value| (0.0..=MOST).contains(value)) else { return };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded")]
        self.millionths.fetch_add((value * 1e6) as u64, Relaxed);
        self.count.fetch_add(1, Relaxed);
    }

    #[expect(clippy::cast_precision_loss, reason = "a mean is made of it")]
    fn sum(&self) -> Sum {
        let count = self.count.load(Relaxed);
        Sum { count, total: self.millionths.load(Relaxed) as f64 / 1e6 }
    }
}

/// A utilisation may be more than 1, within reason.
const MOST: f64 = 1000.0;

impl ServiceState {
    /// What was counted so far.
    pub(crate) fn counted(&self) -> Counted {
        let refused = self.live.metrics.overflow.iter().map(|limit| limit.value());
        Counted {
            service: self.spec.name.clone(),
            dropped: refused.sum(),
            endpoints: self.endpoints.iter().map(|endpoint| endpoint.counted()).collect(),
        }
    }
}

impl EndpointState {
    fn counted(&self) -> CountedEndpoint {
        let (live, tally) = (&self.live, &self.live.tally);
        let (issued, bytes) = (live.metrics.picks.value(), live.metrics.bytes());
        #[expect(clippy::cast_precision_loss, reason = "no more than a person reads")]
        let (bytes, goodput) = (bytes as f64, live.goodput.load(Relaxed) as f64);
        let metrics = vec![
            (GOODPUT_FACTOR, tally.goodput_factor.sum()),
            (APPLICATION, tally.application.sum()),
            (CPU, tally.cpu.sum()),
            (BYTES, Sum { count: issued, total: bytes }),
        ];
        CountedEndpoint {
            address: self.spec.address,
            locality: self.spec.locality.clone(),
            priority: self.spec.priority,
            issued,
            failed: live.meter.failures(),
            in_progress: live.requests.load(Relaxed).into(),
            metrics,
            now: (goodput > 0.0).then_some((GOODPUT, goodput)).into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use towpath_policies::model::{Endpoint, EndpointSet, Protocol, Service};

    use super::*;
    use crate::upstream::{
        admission::{Limit, Ticket},
        reconcile,
    };

    #[test]
    fn what_is_told_is_what_was_counted() {
        let set =
            EndpointSet::new("tallied".into(), vec![Endpoint::new(([10, 0, 0, 1], 80).into())]);
        let spec = Arc::new(Service::new("tallied", Protocol::Http1));
        let state = reconcile(None, spec, &set, 1).unwrap();
        let endpoint = &state.endpoints[0];
        drop(Ticket::new(state.clone(), endpoint.clone(), 0));
        let _under_way = Ticket::new(state.clone(), endpoint.clone(), 0);
        endpoint.live.meter.fail();
        endpoint.live.metrics.bytes_sent.add(1000);
        endpoint.live.goodput.store(5_000_000, Relaxed);
        state.overflow(Limit::Requests);
        state.overflow(Limit::Bytes);
        for figures in [
            Figures {
                goodput_factor: Some(1.0),
                application: Some(1.5),
                cpu: Some(0.25),
                ..Figures::default()
            },
            Figures { goodput_factor: Some(0.5), ..Figures::default() },
            // No shares.
            Figures {
                goodput_factor: Some(2.0),
                application: Some(f64::NAN),
                cpu: Some(-1.0),
                ..Figures::default()
            },
            Figures {
                goodput_factor: Some(f64::INFINITY),
                application: Some(1e300),
                cpu: Some(0.0),
                ..Figures::default()
            },
        ] {
            endpoint.live.heard(&figures, 1);
        }
        let counted = state.counted();
        assert_eq!((counted.service.as_str(), counted.dropped), ("tallied", 2));
        let [told] = counted.endpoints.as_slice() else { panic!("{counted:?}") };
        assert_eq!((told.issued, told.in_progress, told.failed), (2, 1, 1));
        let metrics = [
            (GOODPUT_FACTOR, Sum { count: 2, total: 1.5 }),
            (APPLICATION, Sum { count: 1, total: 1.5 }),
            (CPU, Sum { count: 1, total: 0.25 }),
            (BYTES, Sum { count: 2, total: 1000.0 }),
        ];
        assert_eq!(told.metrics, metrics);
        assert_eq!(told.now, [(GOODPUT, 5e6)]);
    }

    #[test]
    fn an_endpoint_that_moves_begins_anew_while_the_one_before_drains_and_metrics_go_on() {
        let set = |address: [u8; 4]| {
            let endpoint = Endpoint { name: "moves".into(), ..Endpoint::new((address, 80).into()) };
            EndpointSet::new("moving".into(), vec![endpoint])
        };
        let spec = Arc::new(Service::new("moving", Protocol::Http1));
        let before = reconcile(None, spec.clone(), &set([10, 0, 0, 1]), 1).unwrap();
        let told = |state: &Arc<ServiceState>| {
            drop(Ticket::new(state.clone(), state.endpoints[0].clone(), 0));
            state.endpoints[0].live.metrics.bytes_received.add(1000);
            let counted = state.counted().endpoints.remove(0);
            (counted.address.ip().to_string(), counted.issued, counted.metrics[3].1)
        };
        assert_eq!(told(&before), ("10.0.0.1".into(), 1, Sum { count: 1, total: 1000.0 }));
        let after = reconcile(Some(&before), spec, &set([10, 0, 0, 2]), 1).unwrap();
        before.endpoints[0].live.metrics.bytes_received.add(5000);
        assert_eq!(told(&after), ("10.0.0.2".into(), 1, Sum { count: 1, total: 1000.0 }));
        let shown = crate::metrics::registry().render();
        let labels = r#"{service="moving",endpoint="moves",region=""#;
        for line in [
            format!("towpath_picks_total{labels}\"}} 2"),
            format!("towpath_endpoint_bytes_total{labels}\",direction=\"response\"}} 7000"),
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line} not in\n{shown}");
        }
    }
}
