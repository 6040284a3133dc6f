//! Tries: an endpoint picked, a connection found, the request sent, an answer awaited.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use http::header;
use tokio::time::{Instant, timeout};
use towpath_policies::model::{RetryCondition, RetryPolicy};

mod hedged;
mod moved;
pub(super) mod queued;
mod resumed;
mod uploaded;

use super::{
    deadline::{Expired, grpc_timeout_value},
    exchange::{Exchange, IDEMPOTENCY_KEY, Stop},
    h1_client::Http1,
    h2_client::{self, Http2},
    message::{Broken, ResponseHead},
    record::grpc_status,
    relay::{Answer, Cut, Downstream, Side, Upload, Upstream},
    reply::Reply,
    retry::{self, Facts, RetryReason},
    stall::Waits,
};
use crate::{
    h2::Unopened,
    outlier::{self, Failure, Outcome},
    router::{Backend, Forward},
    upstream::{
        self, EndpointState, ServiceState,
        admission::{Tally, Ticket},
        connect::{ConnectError, Connector, Wire},
        destination::Destination,
        h2_pool::{self, Streams},
        pick::{self, Ask, NoPick, Tried},
        pool, returned,
    },
};

/// What a try came to.
enum Tried1 {
    Answered(Upstream, ResponseHead, bool),
    Failed {
        reason: RetryReason,
        reply: Reply,
    },
    /// A pooled connection had been closed by the endpoint before it saw the request.
    Stale,
}

/// An answer that another try shall replace, if one can be made. Rare, so on the heap.
type Held = Box<(Upstream, ResponseHead, Option<Ticket>)>;

/// So often a try connects over HTTP/2 to find a stream that others did not take first.
const CONNECT_ROUNDS: u8 = 4;

/// Time for a disk to write the last of a body before it is sent again.
const SETTLE_TIME: Duration = Duration::from_secs(10);

/// A connection for a try.
type Ready = Result<Upstream, ConnectError>;

impl<D: Downstream> Exchange<'_, D> {
    /// Tries until an answer is to be passed on.
    pub(super) async fn attempts(
        &mut self,
        forward: &Forward,
        backend: &Backend,
    ) -> Result<(Upstream, ResponseHead, bool), Stop> {
        let policy = &forward.retry;
        let mut tried = Tried::default();
        let mut fresh = false;
        let mut budget = None;
        let mut held: Option<Held> = None;
        loop {
            let (service, mut endpoint) = match self.place(backend, &tried).await {
                Ok(Some(place)) => place,
                // The configuration changed meanwhile.
                Ok(None) => continue,
                // Nobody is left to ask again: what was answered is better than nothing.
                Err(stop) => return self.hand_out(held.ok_or(stop)?),
            };
            held = None;
            self.begin_try(policy, &service, fresh);
            let outcome = match self.may_hedge(forward, backend.hedging.as_deref()) {
                // Rare and large, so on the heap.
                Some(hedging) if !fresh => {
                    let endpoint = &mut endpoint;
                    Box::pin(self.try_hedged(forward, hedging, &service, endpoint, &mut tried))
                        .await?
                }
                _ => self.try_once(&service, &endpoint, fresh).await?,
            };
            let (reason, reply, answer) = match outcome {
                Tried1::Stale => {
                    // No endpoint failed here, so nothing is charged: the same one again.
                    // Nor must this request's own place count against it.
                    self.keep_slot();
                    self.ticket = None;
                    self.replay.rewind();
                    fresh = true;
                    continue;
                }
                Tried1::Answered(up, head, switched) => match retryable(forward, &head) {
                    Some(reason) if !switched => (reason, None, Some((up, head))),
                    _ => return Ok((up, head, switched)),
                },
                Tried1::Failed { reason, reply } => {
                    match self.append(reason, policy, backend, &endpoint).await? {
                        Some((up, head)) => return Ok((up, head, false)),
                        None => (reason, Some(reply), None),
                    }
                }
            };
            fresh = false;
            self.settle_replay().await;
            let facts = self.facts(reason, answer.as_ref().map(|(_, head)| head));
            let wait = retry::decide(policy, &facts).filter(|wait| self.has_time_for(*wait));
            let granted = wait.and_then(|wait| {
                drop(budget.take());
                budget = service.retry(self.replay.length());
                budget.is_some().then_some(wait)
            });
            let Some(wait) = granted else {
                return match (answer, reply) {
                    (Some((up, head)), _) => Ok((up, head, false)),
                    (None, Some(reply)) => Err(Stop::Reply(reply)),
                    (None, None) => Err(Stop::Reply(Reply::BROKEN)),
                };
            };
            service.live.metrics.retries[reason.index()].inc();
            if answer.is_some() {
                self.report_status(&service, &endpoint);
            }
            let ticket = self.set_aside();
            held = answer.map(|(up, head)| Box::new((up, head, ticket)));
            tried.add(&endpoint);
            self.replay.rewind();
            self.limits.half_closed = None;
            self.half_closed = false;
            self.pause(wait).await?;
        }
    }

    /// Passes on an answer that was kept.
    fn hand_out(&mut self, held: Held) -> Result<(Upstream, ResponseHead, bool), Stop> {
        let (up, head, ticket) = *held;
        self.ticket = ticket;
        if self.upload == Upload::Active {
            // The body was put back to its beginning for a try that was not made.
            self.upload = Upload::Stopped;
        }
        Ok((up, head, false))
    }

    fn begin_try(&mut self, policy: &RetryPolicy, service: &ServiceState, fresh: bool) {
        if let Some(terms) = &service.spec.admission.stream_age {
            self.retire_client(terms);
        }
        if !fresh {
            self.record.attempts += 1;
        }
        let refusable = self.wire(service.spec.protocol) == Wire::Http2;
        self.replay.begin_try(
            self.record.attempts > policy.attempts,
            refusable && retry::repeats_refused(policy),
        );
        if let Some(upload) = &mut self.uploading {
            // What a server said of the last try says nothing of this one.
            upload.forget();
        }
        self.limits.of_try = policy.per_try_timeout.and_then(|t| Instant::now().checked_add(t));
    }

    /// The answer to an upload that broke and was appended to what the server has of it.
    async fn append(
        &mut self,
        reason: RetryReason,
        policy: &RetryPolicy,
        backend: &Backend,
        endpoint: &Arc<EndpointState>,
    ) -> Result<Option<(Upstream, ResponseHead)>, Stop> {
        if self.may_append(reason) {
            // Rare and large, so on the heap.
            let appended = Box::pin(self.appended(policy, backend, endpoint)).await?;
            if appended.is_some() {
                return Ok(appended);
            }
        }
        if let Some(upload) = &mut self.uploading {
            upload.forget();
        }
        Ok(None)
    }

    fn facts(&self, reason: RetryReason, answer: Option<&ResponseHead>) -> Facts {
        Facts {
            reason,
            tries: self.record.attempts,
            idempotent: self.is_idempotent(),
            keyed: self.head.headers.contains_key(IDEMPOTENCY_KEY),
            replayable: self.replay.is_complete(),
            retry_after: answer.and_then(retry_after),
            jitter: fastrand::f64(),
        }
    }

    /// Waits until it is known whether the request body could be kept. A disk that does not
    /// say so in time is one that failed.
    async fn settle_replay(&mut self) {
        if self.replay.is_spooled()
            && timeout(SETTLE_TIME, poll_fn(|cx| self.replay.poll_settled(cx))).await.is_err()
        {
            self.replay.give_up();
        }
    }

    /// Takes the ticket of an answer that is only kept: nobody need wait for it.
    fn set_aside(&mut self) -> Option<Ticket> {
        let mut ticket = self.ticket.take()?;
        ticket.set_aside();
        Some(ticket)
    }

    /// What a try of so many bytes asks for.
    fn ask(&mut self, service: &ServiceState, bytes: u64) -> Ask {
        let peer = &self.client.peer;
        let ask = self.head.ask(service, bytes, self.class, peer.addr.ip());
        self.origin = ask.origin;
        Ask { destination: peer.destination.as_ref().map(Destination::address), ..ask }
    }

    /// Has what a try emits and costs counted by its route, where that is known.
    fn tally(&self, ticket: &mut Ticket) {
        let per_byte = ticket.service.per_byte(&ticket.endpoint.live, self.origin);
        if let (Some(per_byte), Some(backend)) = (per_byte, self.record.backend()) {
            let (grams, cents) = (&backend.metrics.carbon_grams, &backend.metrics.egress_cents);
            ticket.tallies(Tally { per_byte, grams: grams.clone(), cents: cents.clone() });
        }
    }

    fn admit(
        &mut self,
        service: &Arc<ServiceState>,
        tried: &Tried,
    ) -> Result<Arc<EndpointState>, Stop> {
        let declared = self.head.length.declared();
        service.has_room(declared).map_err(|limit| Stop::Reply(Reply::overflow(limit)))?;
        let ask = self.ask(service, declared);
        let original = self.client.peer.destination.as_ref().and_then(|d| d.endpoint(service));
        if let Some(endpoint) = original {
            return Ok(endpoint);
        }
        pick::pick(service, tried, upstream::now_ms(), ask).cloned().map_err(|none| {
            Stop::Reply(match none {
                NoPick::NoneHealthy => Reply::NO_ENDPOINT,
                NoPick::Full(limit) => Reply::overflow(limit),
            })
        })
    }

    /// The endpoint as it is for this client alone, where that is to see the client's address.
    fn apart(
        &self,
        service: &ServiceState,
        endpoint: &Arc<EndpointState>,
    ) -> Option<Arc<EndpointState>> {
        self.client.peer.destination.as_ref()?.apart(service, endpoint)
    }

    fn has_time_for(&self, wait: Duration) -> bool {
        self.limits.overall.is_none_or(|end| Instant::now() + wait < end)
    }

    fn report_status(&self, service: &ServiceState, endpoint: &EndpointState) {
        outlier::report(service, endpoint, Outcome::Failure(Failure::Status));
    }

    async fn try_once(
        &mut self,
        service: &Arc<ServiceState>,
        endpoint: &Arc<EndpointState>,
        fresh: bool,
    ) -> Result<Tried1, Stop> {
        let apart = self.apart(service, endpoint);
        let endpoint = apart.as_ref().unwrap_or(endpoint);
        let declared = self.head.length.declared();
        self.ticket = None;
        let mut ticket = Ticket::new(service.clone(), endpoint.clone(), declared);
        ticket.comes_from(self.origin.cell);
        self.tally(&mut ticket);
        ticket.slot = self.in_line.as_mut().and_then(|line| line.slot.take());
        self.ticket = Some(ticket);
        self.limits.begin_try();
        self.record.goes_to(endpoint);
        self.limit_grpc();
        let worker = self.client.worker;
        let mut up = match self.wire(service.spec.protocol) {
            Wire::Http1 => {
                let pooled = if fresh { None } else { endpoint.pools().take(worker) };
                match pooled {
                    Some(connection) => self.on_http1(connection, true),
                    None => {
                        // Rare and large, so on the heap: the exchange's own state stays small.
                        let connect = Box::pin(connect_http1(service, endpoint));
                        match self.while_waiting(connect).await? {
                            Ok(Ok(connection)) => self.on_http1(connection, false),
                            Ok(Err(error)) => return Ok(failed_connect(service, endpoint, &error)),
                            Err(expired) => return self.expired(expired, service, endpoint, false),
                        }
                    }
                }
            }
            Wire::Http2 => {
                self.head.upgrade = None;
                match self.on_http2(service, endpoint).await? {
                    Ok(Ok(up)) => up,
                    Ok(Err(error)) => return Ok(failed_connect(service, endpoint, &error)),
                    Err(expired) => return self.expired(expired, service, endpoint, false),
                }
            }
        };
        self.upload = up.begin(&self.head);
        self.restart_digests();
        match self.await_answer(&mut up).await {
            Ok((head, switched)) => Ok(Tried1::Answered(up, head, switched)),
            Err(Cut::Client(Broken::Malformed(what))) => Err(Stop::Reply(Reply::bad_request(what))),
            Err(Cut::Client(broken)) => Err(Stop::Client(broken)),
            Err(Cut::Expired(expired)) => {
                let blameless = self.upload == Upload::Active && expired != Expired::Stall;
                self.expired(expired, service, endpoint, blameless)
            }
            Err(Cut::Endpoint(broken)) => self.broken(&broken, &up, service, endpoint),
            Err(Cut::Digest(Side::Request)) => Err(Stop::Reply(Reply::bad_digest(
                "The request body does not match its digest, or the digest is malformed.",
            ))),
            Err(Cut::Digest(Side::Response)) => Err(Stop::Reply(Reply::DIGEST)),
            Err(Cut::TooLarge) => Err(Stop::Reply(Reply::BODY_TOO_LARGE)),
            // Only a response under way moves.
            Err(Cut::Moves) => Err(Stop::Reply(Reply::BROKEN)),
            Err(Cut::Spool(error)) => {
                tracing::warn!(%error, "a request body kept for another try cannot be read");
                Err(Stop::Reply(Reply::SPOOL))
            }
        }
    }

    /// Rewrites `grpc-timeout` to what is left: of the try, or of the whole if that is less.
    fn limit_grpc(&mut self) {
        if !self.grpc {
            return;
        }
        let ends = [self.limits.overall, self.limits.of_try];
        let Some(end) = ends.into_iter().flatten().min() else { return };
        let left = end.saturating_duration_since(Instant::now());
        if let Some(value) = grpc_timeout_value(left) {
            self.head.headers.insert(super::deadline::GRPC_TIMEOUT, value);
        }
    }

    fn on_http1(&mut self, connection: pool::Http1, reused: bool) -> Upstream {
        if self.head.received == Wire::Http2 {
            super::headers::join_cookies(&mut self.head.headers);
        }
        self.chunk_for_digest();
        let authority = &self.head.authority;
        Upstream::Http1(Box::new(Http1::new(connection, reused, &self.head, authority)))
    }

    async fn on_http2(
        &mut self,
        service: &Arc<ServiceState>,
        endpoint: &Arc<EndpointState>,
    ) -> Result<Result<Ready, Expired>, Stop> {
        let worker = self.client.worker;
        for _ in 0..CONNECT_ROUNDS {
            let request = h2_client::request(&self.head, service.connector.is_tls());
            let end = self.head.length.is_empty();
            match endpoint.open_stream(worker, Streams::Requests, &request, end) {
                Ok(stream) => {
                    let up = Http2::new(stream, self.head.method.clone());
                    return Ok(Ok(Ok(Upstream::Http2(up))));
                }
                Err(Unopened::TooLarge) => return Err(Stop::Reply(Reply::HEAD_TOO_LARGE)),
                Err(Unopened::Full | Unopened::Closed) => {}
            }
            let connect = Box::pin(async {
                let _waiting = service.wait_for_connection(endpoint).map_err(ConnectError::Full)?;
                h2_pool::connect_shared(service, endpoint, worker, Streams::Requests).await
            });
            match self.while_waiting(connect).await? {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Ok(Ok(Err(error))),
                Err(expired) => return Ok(Err(expired)),
            }
        }
        Ok(Ok(Err(ConnectError::Handshake("others took every stream".into()))))
    }

    /// Waits for `work`, unless the client goes or time runs out.
    async fn while_waiting<T>(
        &mut self,
        mut work: impl Future<Output = T> + Unpin,
    ) -> Result<Result<T, Expired>, Stop> {
        // The request body is left where it is until there is somewhere to send it.
        let body = std::mem::replace(&mut self.upload, Upload::Stopped);
        self.waits = Waits::Elsewhere;
        let done = poll_fn(|cx| {
            if let Poll::Ready(done) = Pin::new(&mut work).poll(cx) {
                return Poll::Ready(Ok(done));
            }
            self.poll_cut_waiting(cx)
        })
        .await;
        self.upload = body;
        match done {
            Ok(done) => Ok(Ok(done)),
            Err(Cut::Expired(expired)) => Ok(Err(expired)),
            Err(Cut::Client(broken) | Cut::Endpoint(broken)) => Err(Stop::Client(broken)),
            // Nothing is read or moved while a connection is waited for.
            Err(Cut::Spool(_) | Cut::Digest(_) | Cut::TooLarge | Cut::Moves) => {
                Err(Stop::Reply(Reply::SPOOL))
            }
        }
    }

    fn poll_cut_waiting<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, Cut>> {
        // Reading ahead for a close is safe only where no body is on its way.
        if self.head.length.is_empty() || self.head.received == Wire::Http2 {
            return self.poll_cut(cx);
        }
        self.poll_limits(cx)
    }

    async fn pause(&mut self, wait: Duration) -> Result<(), Stop> {
        if wait.is_zero() {
            return Ok(());
        }
        self.limits.of_try = None;
        match self.while_waiting(Box::pin(tokio::time::sleep(wait))).await? {
            Ok(()) => Ok(()),
            Err(Expired::Idle) => Err(Stop::Reply(Reply::IDLE)),
            Err(_) => Err(Stop::Reply(Reply::TIMEOUT)),
        }
    }

    /// Sends the body, passes interim responses on, and waits for the final head.
    async fn await_answer(&mut self, up: &mut Upstream) -> Result<(ResponseHead, bool), Cut> {
        poll_fn(|cx| {
            self.poll_upload(up, cx)?;
            if self.waits == Waits::Client && self.head.expects_continue && !self.replay.has_begun()
            {
                // It was not told to go on yet.
                self.waits = Waits::Elsewhere;
            }
            loop {
                match up.poll_answer(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Err(broken)) => return Poll::Ready(Err(Cut::Endpoint(broken))),
                    Poll::Ready(Ok(Answer::Final(head))) => return Poll::Ready(Ok((head, false))),
                    Poll::Ready(Ok(Answer::Switched(head))) => {
                        return Poll::Ready(Ok((head, true)));
                    }
                    Poll::Ready(Ok(Answer::Interim(mut interim))) => {
                        self.moved = true;
                        if let Some(upload) = &mut self.uploading
                            && upload.hear(&interim, &self.head)
                        {
                            continue;
                        }
                        // RFC 9110 §8.6: it has none.
                        interim.headers.remove(header::CONTENT_LENGTH);
                        self.guard(&mut interim.headers, false);
                        let is_continue = interim.status == http::StatusCode::CONTINUE;
                        // Nobody waits for a 100 that was not asked for, or once the body flows.
                        if !is_continue || (self.head.expects_continue && !self.replay.has_begun())
                        {
                            self.down.inform(interim);
                        }
                    }
                }
            }
            if let Poll::Ready(Err(broken)) = self.down.poll_flush(cx) {
                return Poll::Ready(Err(Cut::Client(broken)));
            }
            self.poll_cut(cx)
        })
        .await
    }

    fn broken(
        &mut self,
        broken: &Broken,
        up: &Upstream,
        service: &ServiceState,
        endpoint: &EndpointState,
    ) -> Result<Tried1, Stop> {
        let repeatable = self.replay.is_complete() && self.is_idempotent();
        // Large bodies take their time: what ends then was no connection closed long before.
        if up.was_stale() && repeatable && !self.replay.is_spooled() {
            return Ok(Tried1::Stale);
        }
        let (reason, reply) = of_broken(broken, endpoint);
        if reason != RetryReason::Refused {
            outlier::report(service, endpoint, Outcome::Failure(Failure::Reset));
        }
        tracing::debug!(endpoint = %endpoint.spec.address, %broken, "a try failed");
        if let Broken::Malformed(_) = broken {
            // An answer came, though none that could be passed on: no case for a retry.
            return Err(Stop::Reply(reply));
        }
        Ok(Tried1::Failed { reason, reply })
    }

    /// `blameless`: the endpoint still waited for the client's body, so that the time
    /// that ran out says nothing of it.
    fn expired(
        &mut self,
        expired: Expired,
        service: &ServiceState,
        endpoint: &EndpointState,
        blameless: bool,
    ) -> Result<Tried1, Stop> {
        let report = |ours: bool| {
            if ours && !blameless {
                outlier::report(service, endpoint, Outcome::Failure(Failure::Timeout));
            }
        };
        match expired {
            Expired::Idle => Err(Stop::Reply(Reply::IDLE)),
            Expired::HalfClosed => Err(Stop::Client(Broken::Closed)),
            Expired::ClientStall => Err(Stop::Reply(Reply::CLIENT_STALL)),
            Expired::Stall => {
                report(true);
                Ok(Tried1::Failed { reason: RetryReason::Stall, reply: Reply::STALL })
            }
            Expired::Overall => {
                report(self.limits.ours);
                Err(Stop::Reply(Reply::TIMEOUT))
            }
            Expired::Try => {
                report(true);
                Ok(Tried1::Failed { reason: RetryReason::Timeout, reply: Reply::TIMEOUT })
            }
        }
    }
}

fn of_broken(broken: &Broken, endpoint: &EndpointState) -> (RetryReason, Reply) {
    if returned::is_looped(endpoint.spec.address) {
        // The endpoint never saw it.
        return (RetryReason::Refused, Reply::LOOPED);
    }
    match broken {
        Broken::Refused => (RetryReason::Refused, Reply::REFUSED),
        Broken::Closed | Broken::Reset(_) | Broken::Unread => (RetryReason::Reset, Reply::BROKEN),
        Broken::Malformed(_) => (RetryReason::Reset, Reply::MALFORMED),
    }
}

async fn connect_http1(
    service: &ServiceState,
    endpoint: &EndpointState,
) -> Result<pool::Http1, ConnectError> {
    let _waiting = service.wait_for_connection(endpoint).map_err(ConnectError::Full)?;
    let (io, guard) = Connector::connect(service, endpoint, Some(Wire::Http1)).await?;
    Ok(pool::Http1 { io, guard })
}

fn failed_connect(
    service: &ServiceState,
    endpoint: &EndpointState,
    error: &ConnectError,
) -> Tried1 {
    tracing::debug!(endpoint = %endpoint.spec.address, %error, "no connection");
    if let ConnectError::Full(limit) = error {
        return Tried1::Failed { reason: RetryReason::Refused, reply: Reply::overflow(*limit) };
    }
    if returned::is_looped(endpoint.spec.address) {
        return Tried1::Failed { reason: RetryReason::Refused, reply: Reply::LOOPED };
    }
    if !error.is_ours() {
        outlier::report(service, endpoint, Outcome::Failure(Failure::Connect));
    }
    Tried1::Failed { reason: RetryReason::Connect, reply: Reply::CONNECT_FAILED }
}

/// Whether the policy looks at this answer as a failure.
fn retryable(forward: &Forward, head: &ResponseHead) -> Option<RetryReason> {
    let status = head.status.as_u16();
    forward.retry.on.iter().find_map(|condition| match condition {
        RetryCondition::Status(codes) if codes.contains(&status) => {
            Some(RetryReason::Status(status))
        }
        RetryCondition::GrpcStatus(codes) => grpc_status(&head.headers)
            .filter(|code| *code != 0 && codes.contains(code))
            .map(RetryReason::GrpcStatus),
        _ => None,
    })
}

/// `Retry-After` (RFC 9110 §10.2.3): seconds, or a date, which is compared with the answer's own
/// `Date` so that clocks need not agree.
fn retry_after(head: &ResponseHead) -> Option<Duration> {
    let text = |name| Some(head.headers.get(name)?.to_str().ok()?.trim());
    let value = text(header::RETRY_AFTER)?;
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let now = text(header::DATE).and_then(|date| httpdate::parse_http_date(date).ok());
    Some(until.duration_since(now.unwrap_or_else(SystemTime::now)).unwrap_or_default())
}

#[cfg(test)]
mod tests;
