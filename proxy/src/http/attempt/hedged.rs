//! Hedging (Dean & Barroso, "The Tail at Scale", 2013): a read whose response head is late is asked for once more
//! elsewhere, and the first head wins.
//!
//! Two tries are polled side by side, each with its own connection and its own place in the counts. Neither has a body
//! to send, and nothing of an answer is passed on before one has won, so that the other can be dropped: an HTTP/2 stream
//! is reset, an HTTP/1.1 connection closed. All of it lives on the heap, and only where the policy says so.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::Method;
use tokio::time::{Instant, sleep};

use super::{
    super::{
        exchange::{Exchange, Stop},
        h1_client::Http1,
        h2_client::{self, Http2},
        hedge::{Hedging, Outcome},
        message::{Broken, RequestHead, ResponseHead},
        relay::{Answer, Cut, Downstream, Upload, Upstream},
        reply::Reply,
        retry::RetryReason,
        stall::Waits,
    },
    CONNECT_ROUNDS, Tried1, connect_http1, failed_connect, retryable,
};
use crate::{
    h2::Unopened,
    outlier::{self, Failure},
    router::Forward,
    upstream::{
        EndpointState, ServiceState,
        admission::{RetryGuard, Ticket},
        completion::places::Cell,
        connect::{ConnectError, Wire},
        h2_pool::{self, Streams},
        pick::Tried,
        pool,
    },
};

/// A try of a request without a body.
struct Lane {
    ticket: Ticket,
    worker: usize,
    /// It was begun because the other was late.
    hedge: bool,
    state: State,
}

type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, ConnectError>> + Send>>;

enum State {
    Http1(Connecting<pool::Http1>),
    /// And how often one was made already.
    Http2(Connecting<()>, u8),
    Sent(Upstream),
}

/// How a lane ends without an answer.
enum Dead {
    /// As a try that may be followed by another.
    Failed(RetryReason, Reply),
    /// As one that may not.
    Over(Reply),
}

/// What is under way.
struct Race<'a> {
    forward: &'a Forward,
    hedging: &'a Hedging,
    first: Option<Lane>,
    second: Option<Second>,
    /// The first lane that ended without an answer to pass on, while the other went on.
    fallback: Option<Ended>,
}

/// The hedge, and its share of the retry budget.
struct Second {
    lane: Lane,
    _budget: RetryGuard,
}

/// How a lane ended.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly always the large one, and already on the heap"
)]
enum Ended {
    Answered(Lane, ResponseHead),
    Dead(Dead),
}

impl<D: Downstream> Exchange<'_, D> {
    /// The terms of hedging, where this request is one that may be hedged: a read without a body, not yet hedged, with a
    /// try left.
    pub(super) fn may_hedge<'f>(
        &self,
        forward: &Forward,
        hedging: Option<&'f Hedging>,
    ) -> Option<&'f Hedging> {
        let hedging = hedging?;
        let head = &self.head;
        let reads = matches!(head.method, Method::GET | Method::HEAD) && head.length.is_empty();
        let may = reads
            && head.upgrade.is_none()
            && self.record.hedged.is_none()
            // A slot is bound to one endpoint, and a digest to one answer.
            && self.in_line.is_none()
            && self.digests.is_none()
            && self.record.attempts <= forward.retry.attempts;
        may.then_some(hedging)
    }

    /// A try that is joined by another when its head is late. `endpoint` becomes that of the answer.
    pub(super) async fn try_hedged(
        &mut self,
        forward: &Forward,
        hedging: &Hedging,
        service: &Arc<ServiceState>,
        endpoint: &mut Arc<EndpointState>,
        tried: &mut Tried,
    ) -> Result<Tried1, Stop> {
        let wire = self.wire(service.spec.protocol);
        match wire {
            Wire::Http2 => self.head.upgrade = None,
            Wire::Http1 if self.head.received == Wire::Http2 => {
                super::super::headers::join_cookies(&mut self.head.headers);
            }
            Wire::Http1 => {}
        }
        self.ticket = None;
        self.record.goes_to(endpoint);
        self.waits = Waits::Elsewhere;
        self.upload = Upload::Done;
        let began = Instant::now();
        let delay = hedging.delay();
        let mut timer = delay.map(|delay| Box::pin(sleep(delay)));
        let mut first = self.begin_lane(service, endpoint, wire).map_err(Stop::Reply)?;
        self.tally(&mut first.ticket);
        let mut race = Race { forward, hedging, first: Some(first), second: None, fallback: None };
        let ended = poll_fn(|cx| {
            loop {
                if let Poll::Ready(ended) = race.poll(&self.head, cx) {
                    return Poll::Ready(Ok(ended));
                }
                let late = timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
                if !late {
                    return self.poll_cut(cx);
                }
                timer = None;
                match self.second(service, endpoint, wire, tried) {
                    Some(second) => race.second = Some(second),
                    None => service.live.metrics.hedges[Outcome::Refused as usize].inc(),
                }
            }
        })
        .await;
        let hedged = self.record.hedged.is_some();
        let ended = match ended {
            Ok(ended) => ended,
            Err(cut) => {
                if hedged {
                    service.live.metrics.hedges[Outcome::Lost as usize].inc();
                }
                return self.cut_while_hedged(cut, service, endpoint);
            }
        };
        if hedged {
            let won = matches!(&ended, Ended::Answered(lane, _) if lane.hedge);
            let outcome = if won { Outcome::Won } else { Outcome::Lost };
            service.live.metrics.hedges[outcome as usize].inc();
            self.record.hedged = Some(Outcome::NAMES[outcome as usize]);
        }
        drop(race);
        match ended {
            Ended::Answered(lane, head) => {
                hedging.times.record(began.elapsed());
                let State::Sent(up) = lane.state else { return Err(Stop::Reply(Reply::BROKEN)) };
                *endpoint = lane.ticket.endpoint.clone();
                self.record.goes_to(endpoint);
                self.ticket = Some(lane.ticket);
                Ok(Tried1::Answered(up, head, false))
            }
            Ended::Dead(Dead::Failed(reason, reply)) => Ok(Tried1::Failed { reason, reply }),
            Ended::Dead(Dead::Over(reply)) => Err(Stop::Reply(reply)),
        }
    }

    /// Another try, with another endpoint, if there is one and the budget allows it. The
    /// configuration may have changed since the first: it goes where a request would go now.
    fn second(
        &mut self,
        service: &Arc<ServiceState>,
        first: &Arc<EndpointState>,
        wire: Wire,
        tried: &mut Tried,
    ) -> Option<Second> {
        tried.add(first);
        let service = &service.live.current.load_full()?;
        // The head was made ready for this wire, and a slot would have to be waited for.
        if self.wire(service.spec.protocol) != wire || service.spec.admission.queue.is_some() {
            return None;
        }
        let endpoint = self.admit(service, tried).ok()?;
        if Arc::ptr_eq(&endpoint.live, &first.live) {
            return None;
        }
        let budget = service.retry(0)?;
        let mut lane = self.begin_lane(service, &endpoint, wire).ok()?;
        lane.hedge = true;
        self.tally(&mut lane.ticket);
        tried.add(&endpoint);
        self.record.attempts += 1;
        self.record.hedged = Some(Outcome::NAMES[Outcome::Lost as usize]);
        Some(Second { lane, _budget: budget })
    }

    fn cut_while_hedged(
        &mut self,
        cut: Cut,
        service: &ServiceState,
        endpoint: &EndpointState,
    ) -> Result<Tried1, Stop> {
        match cut {
            Cut::Client(Broken::Malformed(what)) => Err(Stop::Reply(Reply::bad_request(what))),
            Cut::Client(broken) | Cut::Endpoint(broken) => Err(Stop::Client(broken)),
            // The hedge had less time, and is not blamed.
            Cut::Expired(expired) => self.expired(expired, service, endpoint, false),
            Cut::Spool(_) => Err(Stop::Reply(Reply::SPOOL)),
            // What has digests, or a body, is not hedged, and nothing moves before there is an answer.
            Cut::Digest(_) | Cut::TooLarge | Cut::Moves => Err(Stop::Reply(Reply::BROKEN)),
        }
    }
}

impl Race<'_> {
    /// Ready when the race is decided.
    fn poll(&mut self, head: &RequestHead, cx: &mut Context<'_>) -> Poll<Ended> {
        if let Some(lane) = &mut self.first
            && let Poll::Ready(came) = lane.poll(head, cx)
        {
            let ended = self.first.take().map(|lane| ended(lane, came));
            if let Some(decided) = ended.and_then(|ended| self.decide(ended, self.second.is_some()))
            {
                return Poll::Ready(decided);
            }
        }
        if let Some(second) = &mut self.second
            && let Poll::Ready(came) = second.lane.poll(head, cx)
        {
            let alone = self.first.is_none();
            let ended = self.second.take().map(|second| ended(second.lane, came));
            let ended = ended.filter(|ended| alone || !self.too_large(ended));
            if let Some(decided) = ended.and_then(|ended| self.decide(ended, !alone)) {
                return Poll::Ready(decided);
            }
        }
        Poll::Pending
    }

    /// What the race comes to by the end of one lane; `None` while the other may do better.
    fn decide(&mut self, ended: Ended, other_runs: bool) -> Option<Ended> {
        let good =
            matches!(&ended, Ended::Answered(_, head) if retryable(self.forward, head).is_none());
        if good {
            if let Some(Ended::Answered(lane, _)) = self.fallback.take() {
                lane.report(Failure::Status);
            }
            return Some(ended);
        }
        if other_runs {
            self.fallback = Some(ended);
            return None;
        }
        // An answer, if only a failing one, before none; of two alike the first.
        Some(match (self.fallback.take(), ended) {
            (Some(Ended::Answered(lane, head)), _) => Ended::Answered(lane, head),
            (_, Ended::Answered(lane, head)) => Ended::Answered(lane, head),
            (Some(first), _) => first,
            (None, ended) => ended,
        })
    }

    /// Whether an answer is no small read, so that it does not take the place of one that may still come.
    fn too_large(&self, ended: &Ended) -> bool {
        matches!(ended, Ended::Answered(_, head) if head.length.declared() > self.hedging.policy.max_bytes)
    }
}

fn ended(lane: Lane, came: Result<ResponseHead, Dead>) -> Ended {
    match came {
        Ok(head) => Ended::Answered(lane, head),
        Err(dead) => Ended::Dead(dead),
    }
}

impl<D: Downstream> Exchange<'_, D> {
    fn begin_lane(
        &self,
        service: &Arc<ServiceState>,
        endpoint: &Arc<EndpointState>,
        wire: Wire,
    ) -> Result<Lane, Reply> {
        let apart = self.apart(service, endpoint);
        let endpoint = apart.as_ref().unwrap_or(endpoint);
        Lane::begin(service, endpoint, self.origin.cell, &self.head, wire, self.client.worker)
    }
}

impl Lane {
    fn begin(
        service: &Arc<ServiceState>,
        endpoint: &Arc<EndpointState>,
        origin: Cell,
        head: &RequestHead,
        wire: Wire,
        worker: usize,
    ) -> Result<Self, Reply> {
        let mut ticket = Ticket::new(service.clone(), endpoint.clone(), 0);
        ticket.comes_from(origin);
        let state = match wire {
            Wire::Http1 => match endpoint.pools().take(worker) {
                Some(connection) => sent_http1(connection, true, head),
                None => State::Http1(connecting_http1(&ticket)),
            },
            Wire::Http2 => http2(&ticket, head, worker, 0)?,
        };
        Ok(Self { ticket, worker, hedge: false, state })
    }

    /// Ready with the final head. Interim ones are for nobody: which answer counts is not known yet.
    fn poll(
        &mut self,
        head: &RequestHead,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, Dead>> {
        loop {
            match &mut self.state {
                State::Http1(connecting) => match ready!(connecting.as_mut().poll(cx)) {
                    Ok(connection) => self.state = sent_http1(connection, false, head),
                    Err(error) => return Poll::Ready(Err(self.no_connection(&error))),
                },
                State::Http2(connecting, rounds) => {
                    let rounds = *rounds + 1;
                    match ready!(connecting.as_mut().poll(cx)) {
                        Ok(()) if rounds < CONNECT_ROUNDS => {
                            match http2(&self.ticket, head, self.worker, rounds) {
                                Ok(state) => self.state = state,
                                Err(reply) => return Poll::Ready(Err(Dead::Over(reply))),
                            }
                        }
                        Ok(()) => {
                            let error = ConnectError::Handshake("others took every stream".into());
                            return Poll::Ready(Err(self.no_connection(&error)));
                        }
                        Err(error) => return Poll::Ready(Err(self.no_connection(&error))),
                    }
                }
                State::Sent(up) => {
                    self.ticket.all_sent();
                    // A failed write is no verdict: what counts is what can still be read.
                    let _ = up.poll_flush(cx);
                    match ready!(up.poll_answer(cx)) {
                        Ok(Answer::Interim(_)) => {}
                        Ok(Answer::Final(head)) => return Poll::Ready(Ok(head)),
                        Ok(Answer::Switched(_)) => {
                            return Poll::Ready(Err(Dead::Over(Reply::MALFORMED)));
                        }
                        Err(_) if up.was_stale() => {
                            self.state = State::Http1(connecting_http1(&self.ticket));
                        }
                        Err(broken) => return Poll::Ready(Err(self.broken(&broken))),
                    }
                }
            }
        }
    }

    fn report(&self, failure: Failure) {
        let failure = outlier::Outcome::Failure(failure);
        outlier::report(&self.ticket.service, &self.ticket.endpoint, failure);
    }

    fn no_connection(&self, error: &ConnectError) -> Dead {
        match failed_connect(&self.ticket.service, &self.ticket.endpoint, error) {
            Tried1::Failed { reason, reply } => Dead::Failed(reason, reply),
            _ => Dead::Over(Reply::CONNECT_FAILED),
        }
    }

    fn broken(&self, broken: &Broken) -> Dead {
        let (reason, reply) = super::of_broken(broken, &self.ticket.endpoint);
        if reason != RetryReason::Refused {
            self.report(Failure::Reset);
        }
        match broken {
            Broken::Malformed(_) => Dead::Over(reply),
            _ => Dead::Failed(reason, reply),
        }
    }
}

fn sent_http1(connection: pool::Http1, reused: bool, head: &RequestHead) -> State {
    State::Sent(Upstream::Http1(Box::new(Http1::new(connection, reused, head, &head.authority))))
}

fn connecting_http1(ticket: &Ticket) -> Connecting<pool::Http1> {
    let (service, endpoint) = (ticket.service.clone(), ticket.endpoint.clone());
    Box::pin(async move { connect_http1(&service, &endpoint).await })
}

/// A stream, or the way to one.
fn http2(ticket: &Ticket, head: &RequestHead, worker: usize, rounds: u8) -> Result<State, Reply> {
    let (service, endpoint) = (ticket.service.clone(), ticket.endpoint.clone());
    let request = h2_client::request(head, service.connector.is_tls());
    match endpoint.open_stream(worker, Streams::Requests, &request, true) {
        Ok(stream) => Ok(State::Sent(Upstream::Http2(Http2::new(stream, head.method.clone())))),
        Err(Unopened::TooLarge) => Err(Reply::HEAD_TOO_LARGE),
        Err(Unopened::Full | Unopened::Closed) => {
            let connecting = Box::pin(async move {
                let _waiting =
                    service.wait_for_connection(&endpoint).map_err(ConnectError::Full)?;
                h2_pool::connect_shared(&service, &endpoint, worker, Streams::Requests).await
            });
            Ok(State::Http2(connecting, rounds))
        }
    }
}
