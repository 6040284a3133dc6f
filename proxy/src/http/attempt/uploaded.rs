//! Tries that go on with an upload that broke midway.

use std::sync::Arc;

use tokio::time::Instant;
use towpath_policies::model::RetryPolicy;

use super::{
    super::{
        exchange::{Exchange, Stop},
        message::{RequestHead, ResponseHead},
        relay::{Downstream, Upload, Upstream},
        resume::ResumeOutcome,
        retry::{self, RetryReason},
        upload_resume::{self, Verdict},
    },
    Tried1,
};
use crate::{
    router::Backend,
    upstream::{EndpointState, ServiceState, pick::Tried},
};

impl<D: Downstream> Exchange<'_, D> {
    /// Whether the server that broke the upload said where it can go on.
    pub(super) fn may_append(&self, reason: RetryReason) -> bool {
        let broke = matches!(
            reason,
            RetryReason::Reset | RetryReason::Refused | RetryReason::Timeout | RetryReason::Stall
        );
        // A slot is bound to one try.
        let free = self.in_line.is_none();
        broke && free && self.uploading.as_ref().is_some_and(|upload| upload.can_go_on())
    }

    /// The answer to an upload that broke at `endpoint`, appended to what the server has of it;
    /// `None` when it does not go on. Asks the same endpoint first, then others. No retry budget
    /// is asked, as for downloads: no byte is sent that the server has.
    pub(super) async fn appended(
        &mut self,
        policy: &RetryPolicy,
        backend: &Backend,
        endpoint: &Arc<EndpointState>,
    ) -> Result<Option<(Upstream, ResponseHead)>, Stop> {
        let mut tried = Tried::default();
        let mut next = Some(endpoint.clone());
        loop {
            let service = backend.service.as_ref().and_then(|live| live.current.load_full());
            let Some(service) = service else { return Ok(None) };
            let count = |outcome| service.live.metrics.upload_resumes[outcome as usize].inc();
            let wait = retry::append_after(policy, self.record.attempts, fastrand::f64());
            let Some(wait) = wait.filter(|wait| self.has_time_for(*wait)) else {
                count(ResumeOutcome::Exhausted);
                return Ok(None);
            };
            self.record.attempts += 1;
            self.ticket = None;
            // The idle time begins anew.
            self.moved = true;
            self.pause(wait).await?;
            let endpoint = match next.take() {
                Some(endpoint) => endpoint,
                None => match self.admit(&service, &tried) {
                    Ok(endpoint) => endpoint,
                    Err(_) => return Ok(None),
                },
            };
            tried.add(&endpoint);
            self.limits.of_try = policy.per_try_timeout.and_then(|t| Instant::now().checked_add(t));
            match self.append_rest(&service, &endpoint).await? {
                Ok(answered) => {
                    count(ResumeOutcome::Resumed);
                    return Ok(Some(answered));
                }
                Err(Broke::Here) => count(ResumeOutcome::Failed),
                Err(Broke::Midway) => {
                    // It knows the upload: the same again.
                    next = Some(endpoint);
                    count(ResumeOutcome::Failed);
                }
                Err(Broke::ForGood) => {
                    count(ResumeOutcome::Mismatch);
                    return Ok(None);
                }
            }
        }
    }

    /// One try: the server is asked how much it has, and sent the rest.
    async fn append_rest(
        &mut self,
        service: &Arc<ServiceState>,
        endpoint: &Arc<EndpointState>,
    ) -> Result<Result<(Upstream, ResponseHead), Broke>, Stop> {
        let question = self.uploading.as_ref().and_then(|upload| upload.question(&self.head));
        let Some(question) = question else { return Ok(Err(Broke::ForGood)) };
        let Some((up, standing)) = self.try_as(question, service, endpoint).await? else {
            return Ok(Err(Broke::Here));
        };
        if let (Upstream::Http1(h1), Some(ticket)) = (up, self.ticket.take()) {
            let idle = service.spec.pool_idle_timeout;
            h1.finish(&ticket.endpoint, self.client.worker, idle);
        }
        let offset = match upload_resume::offset(&standing) {
            Ok(offset) => offset,
            Err(Verdict::Over) => return Ok(Err(Broke::ForGood)),
            Err(_) => return Ok(Err(Broke::Here)),
        };
        self.settle_replay().await;
        let append = self.uploading.as_ref().and_then(|upload| upload.append(&self.head, offset));
        let Some(append) = append.filter(|_| self.replay.seek(offset)) else {
            tracing::debug!(endpoint = %endpoint.spec.address, offset, "an upload stands where nothing is kept");
            return Ok(Err(Broke::ForGood));
        };
        let Some((up, answer)) = self.try_as(append, service, endpoint).await? else {
            return Ok(Err(Broke::Midway));
        };
        Ok(match upload_resume::verdict(&answer) {
            Verdict::Answer => Ok((up, answer)),
            Verdict::Again => Err(Broke::Midway),
            Verdict::Over => Err(Broke::ForGood),
        })
    }

    /// A try with another head than the client's; `None` when it was not answered.
    async fn try_as(
        &mut self,
        head: RequestHead,
        service: &Arc<ServiceState>,
        endpoint: &Arc<EndpointState>,
    ) -> Result<Option<(Upstream, ResponseHead)>, Stop> {
        let own = std::mem::replace(&mut self.head, head);
        let mut came = self.try_once(service, endpoint, false).await;
        if let Ok(Tried1::Stale) = came {
            // As in `attempts`: the same one again, for nothing.
            self.ticket = None;
            came = self.try_once(service, endpoint, true).await;
        }
        self.head = own;
        // Whoever comes next takes up the body where it is put.
        if !matches!(came, Ok(Tried1::Answered(..))) {
            self.upload = Upload::Stopped;
        }
        match came {
            Ok(Tried1::Answered(up, head, false)) => Ok(Some((up, head))),
            // What the client did wrong does not go away with another try.
            Err(Stop::Reply(reply)) if reply.status.is_client_error() => Err(Stop::Reply(reply)),
            Ok(_) | Err(Stop::Reply(_)) => Ok(None),
            Err(stop @ Stop::Client(_)) => Err(stop),
        }
    }
}

/// How a try to go on ended.
enum Broke {
    /// The endpoint could not say how much there is.
    Here,
    /// The endpoint took some more.
    Midway,
    /// There is nothing to go on with.
    ForGood,
}
