//! Tries that go on with a response that broke midway.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use towpath_policies::model::RetryPolicy;

use super::{
    super::{
        deadline::Expired,
        exchange::{Exchange, Stop},
        message::{Broken, ResponseHead},
        relay::{Cut, Downstream, Upstream},
        resume::ResumeOutcome,
        retry,
    },
    Tried1,
};
use crate::{
    h2,
    outlier::{self, Failure, Outcome},
    router::Backend,
    upstream::{EndpointState, ServiceState, pick::Tried},
};

impl<D: Downstream> Exchange<'_, D> {
    /// The endpoint that goes on where `cut` ended the response, or how the exchange ends.
    ///
    /// `flushed`: the client has taken all that came, so that a standstill is the
    /// endpoint's. Each try is charged like any other.
    pub(in crate::http) async fn resumed(
        &mut self,
        policy: &RetryPolicy,
        backend: &Backend,
        up: Upstream,
        cut: Cut,
        flushed: bool,
    ) -> Result<Upstream, Cut> {
        let Some(failure) = self.mendable(&cut, flushed) else { return Err(cut) };
        drop(up);
        self.limits.look = None;
        let mut tried = self.broke.take().unwrap_or_default();
        if let Some(broke) = self.ticket.take() {
            outlier::report(&broke.service, &broke.endpoint, Outcome::Failure(failure));
            tried.add(&broke.endpoint);
        }
        loop {
            let service = backend.service.as_ref().and_then(|live| live.current.load_full());
            let Some(service) = service else { return Err(cut) };
            let count = |outcome| service.live.metrics.resumes[outcome as usize].inc();
            let Some(wait) = self.grant(policy) else {
                count(ResumeOutcome::Exhausted);
                let late = self.limits.overall.is_some_and(|end| end <= Instant::now());
                return Err(if late { Cut::Expired(Expired::Overall) } else { cut });
            };
            self.record.attempts += 1;
            match self.rest_from_another(policy, backend, &mut tried, wait).await {
                Ok(Ok(up)) => {
                    count(ResumeOutcome::Resumed);
                    self.broke = Some(tried);
                    self.look_again();
                    return Ok(up);
                }
                Ok(Err(outcome)) => count(outcome),
                Err(Stop::Client(broken)) => return Err(Cut::Client(broken)),
                Err(Stop::Reply(_)) => count(ResumeOutcome::Failed),
            }
            self.ticket = None;
        }
    }

    /// What the endpoint is to blame for, if its response broke and can go on elsewhere.
    fn mendable(&self, cut: &Cut, flushed: bool) -> Option<Failure> {
        if self.answered {
            return None;
        }
        self.resume.as_ref()?;
        match cut {
            Cut::Endpoint(
                Broken::Closed
                | Broken::Reset(_)
                | Broken::Refused
                | Broken::Malformed(h2::ENDED_SHORT),
            ) => Some(Failure::Reset),
            Cut::Expired(Expired::Idle) if flushed => Some(Failure::Timeout),
            Cut::Expired(Expired::Stall) => Some(Failure::Timeout),
            _ => None,
        }
    }

    /// The pause before another try, if one may be made. No retry budget is asked: no byte is
    /// sent twice, and the load of an endpoint that died goes elsewhere either way.
    fn grant(&self, policy: &RetryPolicy) -> Option<Duration> {
        let wait = retry::resume_after(policy, self.record.attempts, fastrand::f64())?;
        self.has_time_for(wait).then_some(wait)
    }

    /// One try with an endpoint that was not tried yet.
    async fn rest_from_another(
        &mut self,
        policy: &RetryPolicy,
        backend: &Backend,
        tried: &mut Tried,
        wait: Duration,
    ) -> Result<Result<Upstream, ResumeOutcome>, Stop> {
        // The idle time begins anew.
        self.moved = true;
        self.pause(wait).await?;
        let placed = self.place(backend, tried).await?;
        let Some((service, endpoint)) = placed else { return Ok(Err(ResumeOutcome::Failed)) };
        let service = &service;
        tried.add(&endpoint);
        self.limits.of_try = policy.per_try_timeout.and_then(|t| Instant::now().checked_add(t));
        let came = self.rest_from(service, &endpoint).await;
        self.limits.of_try = None;
        came
    }

    /// One endpoint is asked for the rest, and its answer compared.
    pub(super) async fn rest_from(
        &mut self,
        service: &Arc<ServiceState>,
        endpoint: &Arc<EndpointState>,
    ) -> Result<Result<Upstream, ResumeOutcome>, Stop> {
        let delivered = self.record.response_bytes;
        let asked = self.resume.as_ref().and_then(|r| r.request(&self.head.headers, delivered));
        let Some(asked) = asked else { return Ok(Err(ResumeOutcome::Mismatch)) };
        let own = std::mem::replace(&mut self.head.headers, asked);
        self.head.upgrade = None;
        let mut came = self.try_once(service, endpoint, false).await;
        if let Ok(Tried1::Stale) = came {
            // As in `attempts`: the same one again, for nothing.
            self.keep_slot();
            self.ticket = None;
            came = self.try_once(service, endpoint, true).await;
        }
        self.head.headers = own;
        Ok(match came? {
            Tried1::Answered(up, head, false) => match self.goes_on(service, endpoint, &head) {
                true => Ok(up),
                false => Err(ResumeOutcome::Mismatch),
            },
            _ => Err(ResumeOutcome::Failed),
        })
    }

    fn goes_on(
        &mut self,
        service: &ServiceState,
        endpoint: &EndpointState,
        head: &ResponseHead,
    ) -> bool {
        let Some(resume) = &mut self.resume else { return false };
        if let Err(mismatch) = resume.check(self.record.response_bytes, head) {
            let endpoint_name = endpoint.spec.name.as_str();
            tracing::debug!(endpoint = endpoint_name, %mismatch, "a response does not go on here");
            if head.status.is_server_error() {
                self.report_status(service, endpoint);
            }
            return false;
        }
        self.record.resumes += 1;
        self.response_length = head.length;
        if let Some(ticket) = &mut self.ticket {
            ticket.answered(head.length.declared(), false);
        }
        true
    }
}
