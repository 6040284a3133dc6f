//! Responses of age that go on with another endpoint, though theirs did not break.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;
use towpath_policies::model::StreamAge;

use super::super::{
    exchange::{Exchange, Stop},
    relay::{Cut, Downstream, Upload, Upstream},
};
use crate::{
    router::Backend,
    transfers::LISTED_AFTER,
    upstream::{
        EndpointState, ServiceState,
        age::{self, Load, MoveReason},
        now_ms,
        pick::{self, Ask, Tried},
    },
};

/// With less than this to come, a response stays where it is.
const WORTH_MOVING_BYTES: u64 = 1 << 20;
/// Time for another endpoint to answer. The client waits meanwhile.
const MOVE_TIME: Duration = Duration::from_secs(10);

impl<D: Downstream> Exchange<'_, D> {
    /// Looks at an exchange that lasts: lists it, and says whether its response, once of age,
    /// is to go on elsewhere.
    #[cold]
    pub(in crate::http) fn look(&mut self) -> Option<Cut> {
        self.record.list();
        let Some(service) = self.current_service() else {
            // Between two tries.
            self.look_again();
            return None;
        };
        let terms = service.spec.admission.stream_age?;
        let (now, start) = (Instant::now(), self.record.start());
        if age::earliest(&terms, start).is_some_and(|earliest| now < earliest) {
            self.limits.look = age::of_age(&terms, start, fastrand::f64());
            return None;
        }
        self.limits.look = age::again(now, fastrand::f64());
        self.better().map(|_| Cut::Moves)
    }

    /// Its service as it is now.
    fn current_service(&self) -> Option<Arc<ServiceState>> {
        self.ticket.as_ref()?.service.live.current.load_full()
    }

    /// An endpoint with which the response goes on clearly better.
    fn better(&mut self) -> Option<(Arc<ServiceState>, Arc<EndpointState>, MoveReason)> {
        if self.answered || !self.down.has_responded() {
            return None;
        }
        let left = self.resume.as_ref()?.left(self.record.response_bytes);
        if left.is_some_and(|left| left < WORTH_MOVING_BYTES) {
            return None;
        }
        let down = left;
        let left = left.unwrap_or(0);
        let here = self.ticket.as_ref()?.endpoint.clone();
        let service = self.current_service()?;
        if service.spec.admission.queue.is_some() {
            // A slot is bound to one endpoint.
            return None;
        }
        let mut tried = Tried::default();
        tried.add(&here);
        let ask = Ask { down, ..self.ask(&service, left) };
        let there = pick::seat(&service, &tried, now_ms(), ask).ok()?.clone();
        if Arc::ptr_eq(&there.live, &here.live) {
            return None;
        }
        let mut same = service.endpoints.iter().filter(|e| Arc::ptr_eq(&e.live, &here.live));
        let stays = same.next().is_some_and(|endpoint| endpoint.allowed());
        if !stays {
            return Some((service, there, MoveReason::Leaving));
        }
        let evens = age::relieves(load(&here), load(&there), left);
        evens.then_some((service, there, MoveReason::Balance))
    }

    /// Has another endpoint go on with the response; the one it is with stays until that one
    /// does, and keeps it otherwise.
    ///
    /// # Errors
    /// When the client is gone.
    pub(in crate::http) async fn move_elsewhere(
        &mut self,
        backend: &Backend,
        up: Upstream,
    ) -> Result<Upstream, Cut> {
        let Some((service, there, reason)) = self.better() else { return Ok(up) };
        let here = self.ticket.take();
        let look = self.limits.look.take();
        self.limits.of_try = Instant::now().checked_add(MOVE_TIME);
        let came = self.rest_from(&service, &there).await;
        self.limits.of_try = None;
        self.limits.look = look;
        // The idle time begins anew.
        self.moved = true;
        match came {
            Ok(Ok(next)) => {
                service.live.metrics.moved[reason as usize].inc();
                tracing::debug!(
                    service = &*backend.name,
                    to = there.spec.name,
                    reason = MoveReason::NAMES[reason as usize],
                    "a stream moved"
                );
                Ok(next)
            }
            Err(Stop::Client(broken)) => Err(Cut::Client(broken)),
            Ok(Err(_)) | Err(Stop::Reply(_)) => {
                if let Some(here) = &here {
                    self.record.goes_to(&here.endpoint);
                }
                self.ticket = here;
                self.upload = Upload::Done;
                Ok(up)
            }
        }
    }

    /// A client's connection that is of age is to take nothing after this request.
    pub(super) fn retire_client(&mut self, terms: &StreamAge) {
        if self.client.is_of_age(terms) {
            self.down.retire();
        }
    }

    /// When to look at how it goes, after what could not be interrupted.
    pub(super) fn look_again(&mut self) {
        self.limits.look = Instant::now().checked_add(LISTED_AFTER);
    }
}

fn load(endpoint: &EndpointState) -> Load {
    Load {
        requests: endpoint.live.requests.load(Relaxed),
        bytes: endpoint.live.bytes_in_flight.load(Relaxed),
        weight: endpoint.spec.weight,
    }
}
