//! One request, from its head to its record: routed, tried, answered.

use std::{
    future::{Future, poll_fn},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{self, Entry},
};
use tokio::time::{Instant, timeout};
use towpath_policies::model::{Class, RetryPolicy};

use super::{
    attempt::queued::{InLine, tenant_of},
    deadline::{Expired, Limits, grpc_timeout},
    digest::Digests,
    headers::with_path,
    keeps_claims,
    message::{Broken, Client, Length, RequestHead, ResponseHead},
    mirror,
    orca::{self, Asked},
    record::{Recorder, grpc_status},
    relay::{Cut, Downstream, Side, Upload, Upstream},
    replay::{Replay, Terms},
    reply::Reply,
    resume::{self, Resume},
    retry,
    stall::Waits,
    upload_resume::{self, UploadResume},
};
use crate::{
    explicit::Found,
    flow::Pace,
    h2::ErrorCode,
    outlier::{self, Failure, Outcome},
    router::{Action, Backend, CompiledRoute, Forward, Redirect, Target, is_grpc},
    transfers::LISTED_AFTER,
    upstream::{admission::Ticket, completion::zones::Origin, connect::Wire, pick::Tried},
};

/// Everything one exchange knows while it lasts.
pub(super) struct Exchange<'a, D> {
    pub(super) client: &'a Client,
    pub(super) down: &'a mut D,
    pub(super) head: RequestHead,
    pub(super) record: Recorder<'a>,
    pub(super) limits: Limits,
    pub(super) replay: Replay,
    pub(super) upload: Upload,
    /// Whom the bodies wait for.
    pub(super) waits: Waits,
    /// A byte moved since the idle limit was last looked at.
    pub(super) moved: bool,
    pub(super) ticket: Option<Ticket>,
    pub(super) grpc: bool,
    /// The answer is whole.
    pub(super) answered: bool,
    pub(super) half_closed: bool,
    /// The response waits for us alone: for its turn, or for a limit of ours.
    pub(super) held: bool,
    pub(super) class: Class,
    /// How fast its bytes may pass; `None` = as fast as they do.
    pub(super) pace: Option<Box<Pace>>,
    pub(super) response_length: Length,
    /// What goes on with the response if it breaks midway; `None` when nothing may.
    pub(super) resume: Option<Resume>,
    /// Its part in the queue of its service, where there is one.
    pub(super) in_line: Option<Box<InLine>>,
    /// Where its data comes from, as was found when an endpoint was asked for last.
    pub(super) origin: Origin,
    /// The endpoints that broke it, or could not go on.
    pub(super) broke: Option<Box<Tried>>,
    /// Where the request body goes on if it breaks midway, at servers that can take it up.
    pub(super) uploading: Option<Box<UploadResume>>,
    /// What vouches for the bodies, where a policy wants it.
    pub(super) digests: Option<Box<Digests>>,
    /// Who wants a load report.
    pub(super) asked: Asked,
    /// The largest request body that is taken.
    pub(super) most_taken: u64,
}

/// A client that closed its sending side after its request is answered if the
/// answer begins within this time; after that it is taken to be gone.
const HALF_CLOSE_GRACE: Duration = Duration::from_secs(10);

/// How an exchange ends early.
pub(super) enum Stop {
    /// With an answer of our own.
    Reply(Reply),
    /// The client is gone.
    Client(Broken),
}

/// Serves one request on `down`. What it leaves unsaid, `down` knows how to end.
///
/// Not an `async fn`, so that the head is held once and not twice.
pub(super) fn run<'a, D: Downstream>(
    client: &'a Client,
    down: &'a mut D,
    head: RequestHead,
    start: Instant,
) -> impl Future<Output = ()> + Send + 'a {
    let mut exchange = Exchange {
        client,
        down,
        upload: Upload::Active,
        limits: Limits::new(start, None, None),
        replay: Replay::new(Terms::default()),
        waits: Waits::Elsewhere,
        moved: false,
        ticket: None,
        grpc: is_grpc(&head.headers),
        answered: false,
        half_closed: false,
        held: false,
        class: Class::default(),
        pace: None,
        response_length: Length::None,
        resume: None,
        in_line: None,
        origin: Origin::HERE,
        broke: None,
        uploading: None,
        digests: None,
        asked: Asked::default(),
        most_taken: u64::MAX,
        record: Recorder::new(client, &head, start),
        head,
    };
    async move {
        if let Err(stop) = exchange.serve(start).await {
            exchange.stop(stop).await;
        }
    }
}

/// As [`run`], for a task that owns its side of the exchange.
pub(super) async fn run_owned<D: Downstream + 'static>(
    client: Arc<Client>,
    mut down: D,
    head: RequestHead,
    start: Instant,
) {
    run(&client, &mut down, head, start).await;
}

impl<D: Downstream> Exchange<'_, D> {
    async fn serve(&mut self, start: Instant) -> Result<(), Stop> {
        self.check_credentials()?;
        let route = self.client.router().route(&target(&self.head)).cloned();
        let route = match route {
            Some(route) => route,
            // Rare and large, so on the heap.
            None if self.client.listener.directory.is_some() => {
                Box::pin(looked_up(self.client, &self.head)).await?
            }
            None => return Err(Stop::Reply(Reply::NO_ROUTE)),
        };
        match &route.action {
            Action::Forward(forward) => {
                let drawn = forward.draw();
                self.record.took(route.clone(), drawn);
                let backend = &forward.backends()[drawn];
                if self.wants_reports() {
                    return Box::pin(self.stream_reports(backend)).await;
                }
                self.forward(&route, forward, backend, start).await
            }
            Action::Redirect(redirect) => {
                self.record.took(route.clone(), 0);
                let head = self.redirect(redirect)?;
                self.answer(&route, head, bytes::Bytes::new()).await
            }
            Action::Respond { status, body } => {
                self.record.took(route.clone(), 0);
                let mut headers = HeaderMap::new();
                if !body.is_empty() {
                    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                }
                headers.insert(header::CONTENT_LENGTH, body.len().into());
                let length = Length::Known(body.len() as u64);
                let head = ResponseHead { status: *status, headers, length };
                self.answer(&route, head, body.clone()).await
            }
        }
    }

    /// Whether the client may ask, where not all may. What it says for that goes no further.
    fn check_credentials(&mut self) -> Result<(), Stop> {
        match &self.client.listener.credentials {
            Some(credentials) if self.client.peer.tunnel.is_none() => {
                let given = self.head.headers.remove(header::PROXY_AUTHORIZATION);
                if given.is_none_or(|given| !credentials.are(given.as_bytes())) {
                    return Err(Stop::Reply(Reply::CREDENTIALS));
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn forward(
        &mut self,
        route: &CompiledRoute,
        forward: &Forward,
        backend: &Backend,
        start: Instant,
    ) -> Result<(), Stop> {
        let asked = if self.grpc { grpc_timeout(&self.head.headers) } else { None };
        let overall = match (forward.timeout, asked) {
            (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
            (ours, theirs) => ours.or(theirs),
        };
        self.limits = Limits::new(start, overall, forward.idle_timeout);
        self.limits.ours = overall == forward.timeout;
        self.limits.look = start.checked_add(LISTED_AFTER);
        self.limits.hold(forward.transfer.stall.as_ref(), start);
        self.most_taken = forward.transfer.max_request_bytes.unwrap_or(u64::MAX);
        if self.head.length.declared() > self.most_taken {
            return Err(Stop::Reply(Reply::BODY_TOO_LARGE));
        }
        self.admit_to_proxy(forward, backend)?;
        if backend.service.as_ref().is_some_and(|service| service.queue.get().is_some()) {
            // Before the route changes any field.
            self.in_line = Some(Box::new(InLine { tenant: self.tenant(forward), slot: None }));
        }
        let mirrors = mirror::draw(forward);
        self.prepare(route, forward, backend)?;
        self.vouch_for_request(forward.transfer.integrity)?;
        self.uploading = self.make_resumable(forward);
        self.replay = Replay::new(self.keep(&forward.retry, !mirrors.is_empty()));
        let (mut up, mut answer, switched) = self.attempts(forward, backend).await?;
        if let Some(upload) = self.uploading.take() {
            upload.clean(&mut answer);
        }
        self.vouch_for_response(&answer, &up, switched)?;
        if forward.retry.resume_downloads {
            self.resume = Resume::of(&self.head, &answer);
        }
        if (mirrors.is_empty() && self.resume.is_none()) || switched || self.replay.is_spooled() {
            self.replay.give_up();
        }
        self.finish_head(route, backend, answer)?;
        while let Err(cut) = self.relay(&mut up, switched).await {
            if matches!(cut, Cut::Moves) {
                match Box::pin(self.move_elsewhere(backend, up)).await {
                    Ok(next) => up = next,
                    Err(cut) => {
                        self.cut(&cut);
                        return Ok(());
                    }
                }
                continue;
            }
            // What came before the break is passed on as far as it goes at once.
            let flushed = poll_fn(|cx| Poll::Ready(self.down.poll_flush(cx).is_ready())).await;
            // Rare and large, so on the heap.
            match Box::pin(self.resumed(&forward.retry, backend, up, cut, flushed)).await {
                Ok(next) => up = next,
                Err(cut) => {
                    self.cut(&cut);
                    return Ok(());
                }
            }
        }
        self.complete(up, mirrors);
        Ok(())
    }

    /// Lets the request in, as far as the proxy as a whole and the route's limits allow, and finds
    /// the pace of its bytes. Before the route changes any field.
    fn admit_to_proxy(&mut self, forward: &Forward, backend: &Backend) -> Result<(), Stop> {
        self.class = forward.transfer.class;
        if self.client.listener.overload.admit(self.class).is_err() {
            // Not all at the same moment again.
            let after = Duration::from_millis(1000 + fastrand::u64(..2000));
            return Err(Stop::Reply(Reply::OVERLOAD.again_after(after)));
        }
        if let Some(limiter) = &forward.limiter {
            self.pace = Pace::admit(limiter, self.tenant(forward))
                .map_err(|refused| Stop::Reply(Reply::LIMITED.again_after(refused.after)))?;
        }
        let gate = backend.service.as_ref().and_then(|service| service.gate.get());
        if let Some(gate) = gate.and_then(|gate| gate.load_full()) {
            let tenant = self.tenant(forward);
            Pace::share(&mut self.pace, &gate, self.class, tenant);
        }
        Ok(())
    }

    fn tenant(&self, forward: &Forward) -> u64 {
        tenant_of(forward.transfer.tenant.as_ref(), &self.head, self.client.peer.addr)
    }

    /// How much of the request body is kept.
    fn keep(&self, policy: &RetryPolicy, mirrored: bool) -> Terms {
        let retried = policy.attempts > 0;
        let keyed = policy.mint_idempotency_key || self.head.headers.contains_key(IDEMPOTENCY_KEY);
        let most = retry::most_replayed(policy, self.is_idempotent(), keyed);
        let disk = if retried { policy.replay_disk_limit_bytes.min(most) } else { 0 };
        Terms {
            memory: if retried || mirrored { policy.replay_limit_bytes } else { 0 },
            disk,
            space: self.client.listener.spool.clone().filter(|_| disk > 0),
            slides: self.uploading.is_some(),
        }
    }

    /// Offers endpoints to take the upload up where it breaks. A digest made or checked here is of
    /// a body sent in one piece.
    fn make_resumable(&mut self, forward: &Forward) -> Option<Box<UploadResume>> {
        let digested = self.digests.as_ref().is_some_and(|digests| digests.request.is_some());
        if !forward.transfer.resume_uploads || forward.retry.attempts == 0 || self.grpc || digested
        {
            return None;
        }
        UploadResume::of(&mut self.head).map(Box::new)
    }

    /// Turns the request into what endpoints get.
    fn prepare(
        &mut self,
        route: &CompiledRoute,
        forward: &Forward,
        backend: &Backend,
    ) -> Result<(), Stop> {
        let head = &mut self.head;
        if let Some(rewrite) = &forward.path {
            let path = rewrite.apply(head.target.path());
            head.target = with_path(&head.target, &path).map_err(Stop::Reply)?;
        }
        self.keep_from_endpoint()?;
        let head = &mut self.head;
        if self.client.listener.directory.is_none() {
            // What a program asks for itself comes from nobody else.
            self.client.forwarding.apply(&mut head.headers);
        }
        if let Some(via) = self.client.listener.via(head.received) {
            head.headers.append(header::VIA, via.clone());
        }
        // A part of an upload has no life of its own.
        let mints = forward.retry.mint_idempotency_key
            && !head.method.is_idempotent()
            && !upload_resume::is_part(head);
        if mints
            && let Entry::Vacant(place) = head.headers.entry(IDEMPOTENCY_KEY)
            && let Some(key) = mint_key()
        {
            // The same for all tries, so that a receiver can tell that it has seen the request.
            place.insert(key);
        }
        if let Some(host) = backend.host.as_ref().or(forward.host.as_ref()) {
            if keeps_claims(self.client.listener.options.forwarded)
                && let Ok(original) = HeaderValue::from_str(head.authority.as_str())
            {
                head.headers.entry(X_FORWARDED_HOST).or_insert(original);
            }
            head.authority = host.clone();
        }
        let asks = backend.service.as_ref().is_some_and(|service| orca::is_due(service));
        let reports = self.client.listener.load.is_some();
        self.asked = Asked::with(&mut head.headers, asks, reports);
        route.request_headers.apply(&mut head.headers);
        backend.request_headers.apply(&mut head.headers);
        Ok(())
    }

    /// Sends the final head on to the client.
    fn finish_head(
        &mut self,
        route: &CompiledRoute,
        backend: &Backend,
        mut answer: ResponseHead,
    ) -> Result<(), Stop> {
        self.report_in_head(&mut answer);
        backend.response_headers.apply(&mut answer.headers);
        route.response_headers.apply(&mut answer.headers);
        if let Some(via) = self.client.listener.via(self.head.received) {
            answer.headers.append(header::VIA, via.clone());
        }
        self.record.status = answer.status.as_u16();
        if self.grpc {
            self.record.grpc_status = grpc_status(&answer.headers);
        }
        self.response_length = answer.length;
        if let Some(ticket) = &mut self.ticket {
            ticket.answered(answer.length.declared(), self.record.was_turned_away());
            if answer.status.is_client_error() {
                ticket.tells_nothing();
            }
        }
        self.limits.of_try = None;
        self.limits.half_closed = None;
        self.leave_room_for_digest(&mut answer);
        self.down.respond(answer).map_err(Stop::Client)
    }

    fn complete(&mut self, up: Upstream, mirrors: mirror::Drawn<'_>) {
        self.report_answer();
        if let (Some(ticket), Upstream::Http1(h1)) = (self.ticket.take(), up) {
            let idle = ticket.service.spec.pool_idle_timeout;
            h1.finish(&ticket.endpoint, self.client.worker, idle);
        }
        if !mirrors.is_empty() {
            mirror::send(mirrors, &self.head, &self.replay, self.client);
        }
    }

    /// Ends a response that had begun so that nobody takes it for whole.
    fn cut(&mut self, cut: &Cut) {
        let (reason, failure, cause) = match cut {
            Cut::Client(broken) => ("client_gone", None, *broken),
            Cut::Endpoint(broken) => ("upstream_broken", Some(Failure::Reset), *broken),
            Cut::Expired(Expired::Idle) => ("idle_timeout", None, Broken::Reset(ErrorCode::CANCEL)),
            Cut::Expired(Expired::Stall) => {
                ("stall", Some(Failure::Timeout), Broken::Reset(ErrorCode::CANCEL))
            }
            Cut::Expired(Expired::ClientStall) => {
                ("client_stall", None, Broken::Reset(ErrorCode::CANCEL))
            }
            // None moves here.
            Cut::Moves | Cut::Spool(_) => ("spool", None, Broken::Closed),
            Cut::TooLarge => ("body_too_large", None, Broken::Reset(ErrorCode::CANCEL)),
            Cut::Digest(Side::Request) => ("digest", None, Broken::Closed),
            Cut::Digest(Side::Response) => ("digest", Some(Failure::Reset), Broken::Closed),
            Cut::Expired(Expired::HalfClosed) => ("client_gone", None, Broken::Closed),
            Cut::Expired(_) => {
                // A client that set the deadline, or was itself slow, says nothing of the endpoint.
                // Nor does a response that we held back ourselves.
                let waited = self.upload != Upload::Active && !self.answered && !self.held;
                let blamed = self.limits.ours && waited;
                let failure = blamed.then_some(Failure::Timeout);
                ("timeout", failure, Broken::Reset(ErrorCode::CANCEL))
            }
        };
        self.record.reason = Some(reason);
        if let (Some(failure), Some(ticket)) = (failure, &self.ticket) {
            outlier::report(&ticket.service, &ticket.endpoint, Outcome::Failure(failure));
        }
        self.down.abort(&cause);
    }

    fn report_answer(&mut self) {
        let Some(ticket) = &mut self.ticket else { return };
        let outcome = if self.record.has_failed() {
            ticket.tells_nothing();
            Outcome::Failure(Failure::Status)
        } else {
            Outcome::Success
        };
        outlier::report(&ticket.service, &ticket.endpoint, outcome);
    }

    async fn stop(&mut self, stop: Stop) {
        match stop {
            Stop::Client(broken) => {
                self.record.reason = Some("client_gone");
                self.down.abort(&broken);
            }
            Stop::Reply(reply) => {
                self.record.reason = Some(reply.reason);
                if self.grpc {
                    self.record.grpc_status = Some(reply.grpc_status());
                }
                let (head, body) = reply.into_message(self.grpc);
                self.send(head, body).await;
            }
        }
    }

    async fn answer(
        &mut self,
        route: &CompiledRoute,
        mut head: ResponseHead,
        body: bytes::Bytes,
    ) -> Result<(), Stop> {
        route.response_headers.apply(&mut head.headers);
        self.send(head, body).await;
        Ok(())
    }

    /// Sends an answer of our own.
    async fn send(&mut self, head: ResponseHead, body: bytes::Bytes) {
        self.record.status = head.status.as_u16();
        let bodiless = self.head.method == Method::HEAD
            || head.length.is_empty()
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.down.forgo_body();
        let mut sent = self.down.respond(head);
        if sent.is_ok() {
            self.record.response_bytes = if bodiless { 0 } else { body.len() as u64 };
            sent = if bodiless { self.down.end(None) } else { self.down.data(body, true) };
        }
        // A client that does not read its answer holds no place at an endpoint, and not for long.
        self.ticket = None;
        self.in_line = None;
        let limit = self.client.listener.options.head_timeout;
        let flushed = match sent {
            Ok(()) => timeout(limit, poll_fn(|cx| self.down.poll_flush(cx)))
                .await
                .unwrap_or(Err(Broken::Closed)),
            Err(broken) => Err(broken),
        };
        if let Err(broken) = flushed {
            self.record.reason = Some("client_gone");
            self.down.abort(&broken);
        }
    }

    fn redirect(&self, redirect: &Redirect) -> Result<ResponseHead, Stop> {
        let scheme = redirect.scheme.as_deref().unwrap_or(if self.client.peer.tls.is_some() {
            "https"
        } else {
            "http"
        });
        let authority = &self.head.authority;
        let host = redirect.host.as_deref().unwrap_or(authority.host());
        // A port given wins; a changed scheme means its default; else the request's own.
        let port = redirect.port.or_else(|| match redirect.scheme {
            Some(_) => None,
            None => authority.port_u16(),
        });
        let port = match (port, scheme) {
            (None, _) | (Some(80), "http") | (Some(443), "https") => String::new(),
            (Some(port), _) => format!(":{port}"),
        };
        let path = match &redirect.path {
            Some(rewrite) => std::borrow::Cow::Owned(rewrite.apply(self.head.path())),
            None => self.head.path().into(),
        };
        let query = self.head.target.query().map(|q| format!("?{q}")).unwrap_or_default();
        let location = HeaderValue::try_from(format!("{scheme}://{host}{port}{path}{query}"))
            .map_err(|_| Stop::Reply(Reply::bad_request("the path is not valid")))?;
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(header::LOCATION, location);
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        Ok(ResponseHead { status: redirect.status, headers, length: Length::Known(0) })
    }

    /// Whether repeating the request does no harm (RFC 9110 §9.2.2).
    pub(super) fn is_idempotent(&self) -> bool {
        self.head.method.is_idempotent()
    }

    pub(super) fn wire(&self, protocol: towpath_policies::model::Protocol) -> Wire {
        Wire::towards(protocol, self.head.received)
    }

    pub(super) fn half_closed(&mut self) {
        if !std::mem::replace(&mut self.half_closed, true) && !self.down.has_responded() {
            self.limits.half_closed = Instant::now().checked_add(HALF_CLOSE_GRACE);
        }
    }

    pub(super) fn count_taken(&mut self, bytes: u64) {
        self.record.request_bytes += bytes;
        if let Some(listed) = &self.record.listed {
            listed.transfer.up.fetch_add(bytes, Relaxed);
        }
        if let Some(backend) = self.record.backend() {
            backend.metrics.request_bytes.add(bytes);
        }
    }

    pub(super) fn count_sent(&mut self, bytes: u64) {
        let Some(ticket) = &mut self.ticket else { return };
        ticket.endpoint.live.metrics.bytes_sent.add(bytes);
        ticket.sent(bytes);
        if self.head.length == Length::Unknown {
            ticket.add_bytes(bytes);
        }
    }

    pub(super) fn count_received(&mut self, bytes: u64) {
        self.record.response_bytes += bytes;
        if let Some(listed) = &self.record.listed {
            listed.transfer.down.fetch_add(bytes, Relaxed);
        }
        if let Some(backend) = self.record.backend() {
            backend.metrics.response_bytes.add(bytes);
        }
        let Some(ticket) = &mut self.ticket else { return };
        ticket.endpoint.live.metrics.bytes_received.add(bytes);
        ticket.received(bytes);
        if self.response_length == Length::Unknown {
            ticket.add_bytes(bytes);
        }
    }

    /// Fields that the route removes or sets are not let in by trailers.
    pub(super) fn guard_trailers(&self, trailers: Option<&mut HeaderMap>, request: bool) {
        let Some(trailers) = trailers else { return };
        // What goes on with a body is not all that its digest is of.
        let goes_on = match request {
            true => self.uploading.is_some() && self.head.method == Method::PATCH,
            false => self.resume.is_some() && self.record.resumes > 0,
        };
        if goes_on {
            resume::strip_digests(trailers);
        }
        self.guard(trailers, request);
    }

    /// Nor are they by whatever else is no final head.
    pub(super) fn guard(&self, fields: &mut HeaderMap, request: bool) {
        let Some(route) = self.record.route() else { return };
        let backend = self.record.backend();
        if request {
            route.request_headers.guard(fields);
            backend.inspect(|b| b.request_headers.guard(fields));
        } else {
            route.response_headers.guard(fields);
            backend.inspect(|b| b.response_headers.guard(fields));
        }
    }

    pub(super) fn note_trailers(&mut self, trailers: Option<&HeaderMap>) {
        if let (true, Some(trailers)) = (self.grpc, trailers) {
            self.record.grpc_status = grpc_status(trailers).or(self.record.grpc_status);
        }
    }
}

fn target(head: &RequestHead) -> Target<'_> {
    Target {
        authority: &head.authority,
        path: head.path(),
        query: head.target.query(),
        method: &head.method,
        headers: &head.headers,
    }
}

/// The route of a program's own request, whose host may be known to nobody else.
async fn looked_up(client: &Client, head: &RequestHead) -> Result<Arc<CompiledRoute>, Stop> {
    let Some(directory) = &client.listener.directory else {
        return Err(Stop::Reply(Reply::NO_ROUTE));
    };
    match directory.find(&target(head)) {
        Found::Route(route) => Ok(route),
        Found::NoRoute => Err(Stop::Reply(Reply::NO_ROUTE)),
        Found::Stranger => {
            let local = client.peer.local;
            let found = match &client.peer.tunnel {
                // The host of a tunnel is where it goes, whatever is said in it.
                Some(host) => match directory.find(&Target { authority: host, ..target(head) }) {
                    Found::Route(route) => Ok(Some(route)),
                    Found::NoRoute => Ok(None),
                    Found::Stranger => directory.stranger(host).await.map(Some),
                },
                None if directory.is_here(local) => {
                    directory.stranger(&head.authority).await.map(Some)
                }
                None => directory.at(local, &target(head)).await,
            };
            let found = found.map_err(|error| {
                tracing::debug!(host = %head.authority, %error, "cannot pass through");
                Stop::Reply(Reply::UNKNOWN_HOST)
            });
            found?.ok_or(Stop::Reply(Reply::NO_ROUTE))
        }
    }
}

/// draft-ietf-httpapi-idempotency-key-header.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// 128 random bits, as a structured field's string.
fn mint_key() -> Option<HeaderValue> {
    // From the system, since two requests anywhere with one key would be taken for one.
    let mut key = [0; 16];
    rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty()).ok()?;
    HeaderValue::try_from(format!("\"{:032x}\"", u128::from_ne_bytes(key))).ok()
}

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
