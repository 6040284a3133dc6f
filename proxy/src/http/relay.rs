//! The two sides of an exchange, and the bytes between them.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use tokio::{task::yield_now, time::Instant};
use towpath_policies::model::Class;

use super::{
    deadline::Expired,
    exchange::Exchange,
    h1_client::Http1,
    h2_client::Http2,
    message::{Broken, Interim, Piece, RequestHead, ResponseHead},
    stall::{Flow, Waits},
};
use crate::upstream::admission::Ticket;

/// The client's side of an exchange.
pub(super) trait Downstream: Send {
    /// The next part of the request body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Broken>>;
    /// So many body bytes were passed on; the client may send as many more.
    fn credit(&mut self, bytes: usize);
    /// The connection is to take nothing more after this exchange; called before the head is sent.
    fn retire(&mut self);
    /// Nobody takes what is left of the request body.
    fn forgo_body(&mut self) {}
    /// Sends an interim response, where the client's version knows them.
    fn inform(&mut self, interim: Interim);
    /// Sends the head of the final response.
    fn respond(&mut self, head: ResponseHead) -> Result<(), Broken>;
    /// Whether trailers reach the client, in its version.
    fn takes_trailers(&self) -> bool {
        true
    }
    /// Whether [`Self::respond`] was called.
    fn has_responded(&self) -> bool;
    /// Ready when more of the response may be queued.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;
    fn data(&mut self, bytes: Bytes, last: bool) -> Result<(), Broken>;
    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken>;
    /// Ready when everything queued is out of our hands.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;
    /// Ready when the client is gone, or has closed its sending side.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone>;
    /// Ready when the client is gone, or will send no more, while its request waits. Unlike
    /// [`Self::poll_gone`] it also looks while a body is on its way, of which it reads a little.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_gone(cx).map(|_| ())
    }
    /// Ready once `deadline` has passed.
    fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()>;
    /// Ends the exchange so that the client cannot take it for complete.
    fn abort(&mut self, cause: &Broken);
    /// From here on, bytes both ways until both sides close (after a 101).
    fn tunnel(&mut self);
}

/// What became of the client.
#[derive(Debug)]
pub(super) enum Gone {
    /// It gave up.
    Broken(Broken),
    /// It closed its sending side, and may still want the response.
    HalfClosed,
}

/// The endpoint's side of an exchange.
pub(super) enum Upstream {
    Http1(Box<Http1>),
    Http2(Http2),
}

/// A head from an endpoint.
pub(super) enum Answer {
    Interim(Interim),
    Final(ResponseHead),
    /// 101: the connection changes its protocol.
    Switched(ResponseHead),
}

/// How far the request body has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upload {
    Active,
    /// All of it was sent.
    Done,
    /// The endpoint takes no more of it.
    Stopped,
}

/// Whose body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Request,
    Response,
}

/// Why an exchange ended before its time.
#[derive(Debug)]
pub(super) enum Cut {
    Client(Broken),
    Endpoint(Broken),
    Expired(Expired),
    /// The request body is larger than is taken.
    TooLarge,
    /// A body is not what its digest says.
    Digest(Side),
    /// The response is to go on with another endpoint, if one takes it.
    Moves,
    /// What was kept of the request body cannot be read.
    Spool(std::io::Error),
}

impl Upstream {
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match self {
            Self::Http1(h1) => h1.conn.poll_room(cx).map_err(|_| Broken::Closed),
            Self::Http2(h2) => h2.poll_room(cx),
        }
    }

    /// Whether the endpoint will not refuse the request unprocessed any more. If not, the task is woken once
    /// that is so.
    fn has_accepted(&mut self, cx: &mut Context<'_>, grpc: bool) -> bool {
        match self {
            Self::Http1(_) => true,
            Self::Http2(h2) => h2.poll_accepted(cx, grpc).is_ready(),
        }
    }

    fn data(&mut self, bytes: Bytes, last: bool) -> Result<(), Broken> {
        match self {
            Self::Http1(h1) => h1.data(bytes, last),
            Self::Http2(h2) => h2.data(bytes, last),
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        match self {
            Self::Http1(h1) => h1.end(trailers.as_ref()),
            Self::Http2(h2) => h2.end(trailers),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match self {
            Self::Http1(h1) => h1.poll_flush(cx),
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Broken>> {
        match self {
            Self::Http1(h1) => h1.poll_answer(cx),
            Self::Http2(h2) => h2.poll_answer(cx),
        }
    }

    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Broken>> {
        match self {
            Self::Http1(h1) => h1.conn.poll_body(cx),
            Self::Http2(h2) => h2.poll_body(cx),
        }
    }

    pub(super) fn credit(&mut self, bytes: usize) {
        if let Self::Http2(h2) = self {
            h2.credit(bytes);
        }
    }

    /// Says whether we hold back what the client would take.
    fn hold_back(&mut self, held: bool) {
        if let Self::Http2(h2) = self {
            h2.hold_back(held);
        }
    }

    /// Tells the endpoint why it is cut off; a closed connection says it for HTTP/1.1.
    fn abort(&mut self, cause: &Broken) {
        if let (Self::Http2(h2), Broken::Reset(reason)) = (self, cause) {
            h2.reset(*reason);
        }
    }

    fn tunnel(&mut self) {
        if let Self::Http1(h1) = self {
            h1.tunnel();
        }
    }
}

/// One poll's part of the worker, in one direction: so many bytes, then others have their turn.
#[derive(Debug)]
pub(super) struct Turn {
    left: usize,
    /// More could be moved, but not now, and it is we who hold it back.
    held: bool,
}

/// Bytes moved at a time while somebody waits for them: large enough that the turn itself costs
/// nothing, small enough that a hundred transfers hold a request up for a few milliseconds.
const TURN: usize = 256 * 1024;
/// The same for freight, which waits for others and not others for it.
const TURN_OF_FREIGHT: usize = 128 * 1024;

impl Turn {
    pub(super) fn of(class: Class) -> Self {
        let left = if class == Class::Interactive { TURN } else { TURN_OF_FREIGHT };
        Self { left, held: false }
    }
}

impl<D: Downstream> Exchange<'_, D> {
    /// Whether another piece may be moved now. If not, the task is woken when it may.
    fn may_move(&mut self, turn: &mut Turn, cx: &mut Context<'_>) -> bool {
        if turn.left == 0 {
            turn.held = true;
            // Behind all who are ready, and those whose sockets have become so meanwhile.
            let _ = pin!(yield_now()).poll(cx);
            return false;
        }
        if let Some(pace) = &mut self.pace
            && pace.poll(cx).is_pending()
        {
            turn.held = true;
            // Our own limit is no standstill.
            self.moved = true;
            return false;
        }
        true
    }

    fn pay(&mut self, turn: &mut Turn, bytes: usize) {
        turn.left = turn.left.saturating_sub(bytes);
        if let Some(pace) = &mut self.pace {
            pace.moved(bytes);
        }
    }

    /// Moves the request body to the endpoint as far as it goes now.
    ///
    /// # Errors
    /// When the client breaks off. An endpoint that takes no more merely stops
    /// the upload: its answer may already be on the way.
    pub(super) fn poll_upload(
        &mut self,
        up: &mut Upstream,
        cx: &mut Context<'_>,
    ) -> Result<(), Cut> {
        let mut full = false;
        self.waits = Waits::Elsewhere;
        let mut turn = Turn::of(self.class);
        while self.upload == Upload::Active {
            match up.poll_room(cx) {
                Poll::Pending => {
                    full = true;
                    self.waits = Waits::Endpoint;
                    break;
                }
                Poll::Ready(Err(_)) => {
                    self.upload = Upload::Stopped;
                    return Ok(());
                }
                Poll::Ready(Ok(())) => {}
            }
            if !self.may_move(&mut turn, cx) {
                break;
            }
            let Some(piece) = self.next_vouched(up, cx)? else {
                full = self.waits == Waits::Endpoint;
                break;
            };
            self.moved = true;
            let sent = match piece {
                Piece::Data { bytes, last } => {
                    self.count_sent(bytes.len() as u64);
                    self.pay(&mut turn, bytes.len());
                    if last {
                        self.upload = Upload::Done;
                    }
                    up.data(bytes, last)
                }
                Piece::End(mut trailers) => {
                    self.guard_trailers(trailers.as_mut(), true);
                    self.upload = Upload::Done;
                    up.end(trailers)
                }
            };
            if sent.is_err() {
                self.upload = Upload::Stopped;
                return Ok(());
            }
        }
        // A failed write is no verdict either: what counts is what can still be read.
        match up.poll_flush(cx) {
            Poll::Ready(Err(_)) => self.upload = Upload::Stopped,
            // It has not even taken what came before.
            Poll::Pending if self.upload == Upload::Active => self.waits = Waits::Endpoint,
            _ => {}
        }
        if let Some(ticket) = &mut self.ticket {
            ticket.upload_looked_at(full, self.upload != Upload::Active);
        }
        Ok(())
    }

    pub(super) fn next_piece(
        &mut self,
        up: &mut Upstream,
        cx: &mut Context<'_>,
    ) -> Result<Option<Piece>, Cut> {
        match self.replay.poll_next(cx) {
            Poll::Pending => return Ok(None),
            Poll::Ready(Err(error)) => return Err(Cut::Spool(error)),
            Poll::Ready(Ok(Some(piece))) => return Ok(Some(piece)),
            Poll::Ready(Ok(None)) => {}
        }
        if self.replay.poll_room(cx).is_pending() {
            return Ok(None);
        }
        let piece = match self.replay.take_held() {
            Some(held) => held,
            None => match self.down.poll_body(cx) {
                Poll::Pending => {
                    self.waits = Waits::Client;
                    return Ok(None);
                }
                Poll::Ready(Err(broken)) => return Err(Cut::Client(broken)),
                Poll::Ready(Ok(piece)) => {
                    if let Piece::Data { bytes, .. } = &piece {
                        self.count_taken(bytes.len() as u64);
                        if self.record.request_bytes > self.most_taken {
                            return Err(Cut::TooLarge);
                        }
                    }
                    piece
                }
            },
        };
        let grpc = self.grpc;
        let Some(piece) = self.replay.admit(piece, || up.has_accepted(cx, grpc)) else {
            self.waits = Waits::Endpoint;
            return Ok(None);
        };
        if let Piece::Data { bytes, .. } = &piece {
            self.down.credit(bytes.len());
        }
        Ok(Some(piece))
    }

    /// Relays both bodies to the end of the response (of both, in a tunnel).
    pub(super) async fn relay(&mut self, up: &mut Upstream, tunnel: bool) -> Result<(), Cut> {
        if tunnel {
            self.down.tunnel();
            up.tunnel();
            self.upload = Upload::Active;
            self.most_taken = u64::MAX;
            // A tunnel lasts as long as something moves in it.
            self.limits.overall = None;
        }
        let outcome = poll_fn(|cx| {
            if let Err(cut) = self.poll_upload(up, cx) {
                return Poll::Ready(Err(cut));
            }
            let mut turn = Turn::of(self.class);
            if !self.answered {
                self.answered = self.poll_download(up, &mut turn, cx)?.is_ready();
            }
            if self.held || turn.held {
                up.hold_back(turn.held);
            }
            self.held = turn.held;
            let flushed = self.down.poll_flush(cx).map_err(Cut::Client)?.is_ready();
            if let Some(ticket) = &mut self.ticket {
                ticket.download_looked_at(flushed && !self.answered && !turn.held);
            }
            self.waits = self.waits_in_relay(flushed, tunnel);
            if flushed && self.answered && (!tunnel || self.upload != Upload::Active) {
                return Poll::Ready(Ok(()));
            }
            self.poll_cut(cx)
        })
        .await;
        match (&outcome, &*up) {
            (Err(_), Upstream::Http1(h1)) => h1.reset_tunnel(),
            (Err(Cut::Client(broken)), _) => up.abort(broken),
            _ => {}
        }
        outcome
    }

    /// Whom both bodies wait for, once each was moved as far as it goes.
    fn waits_in_relay(&self, flushed: bool, tunnel: bool) -> Waits {
        if tunnel {
            return Waits::Elsewhere;
        }
        // A client that does not take the response may be why the endpoint takes no more either.
        if !flushed {
            return Waits::Client;
        }
        if self.held {
            return Waits::Elsewhere;
        }
        match (self.upload, self.waits) {
            // Each may well wait for the other's next word.
            (Upload::Active, Waits::Client) => Waits::Elsewhere,
            (Upload::Active, waits) => waits,
            _ => Waits::Endpoint,
        }
    }

    /// Moves the response body to the client as far as it goes now; ready at its end.
    fn poll_download(
        &mut self,
        up: &mut Upstream,
        turn: &mut Turn,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Cut>> {
        loop {
            ready!(self.down.poll_room(cx).map_err(Cut::Client))?;
            let piece = match self.owed(Side::Response) {
                Some(piece) => piece,
                None => {
                    if !self.may_move(turn, cx) {
                        return Poll::Pending;
                    }
                    let mut piece = ready!(up.poll_body(cx)).map_err(of_endpoint)?;
                    self.moved = true;
                    if let Piece::Data { bytes, .. } = &piece {
                        self.pay(turn, bytes.len());
                    }
                    self.received(&mut piece, up)?;
                    let Some(piece) = self.vouch(Side::Response, piece)? else { continue };
                    piece
                }
            };
            match piece {
                Piece::Data { bytes, last } => {
                    self.down.data(bytes, last).map_err(of_client)?;
                    if last {
                        return Poll::Ready(Ok(()));
                    }
                }
                Piece::End(trailers) => {
                    self.down.end(trailers).map_err(of_client)?;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// Counts a part of the response, and holds it to what was promised.
    fn received(&mut self, piece: &mut Piece, up: &mut Upstream) -> Result<(), Cut> {
        match piece {
            Piece::Data { bytes, last } => {
                self.count_received(bytes.len() as u64);
                self.check_extent(*last)?;
                up.credit(bytes.len());
            }
            Piece::End(trailers) => {
                self.check_extent(true)?;
                if let Some(trailers) = trailers {
                    self.report_in_trailers(trailers);
                }
                self.guard_trailers(trailers.as_mut(), false);
                self.note_trailers(trailers.as_ref());
            }
        }
        Ok(())
    }

    /// Holds a response that went on elsewhere to what was promised: its parts make the whole.
    fn check_extent(&self, last: bool) -> Result<(), Cut> {
        match &self.resume {
            Some(resume)
                if self.record.resumes > 0 && !resume.allows(self.record.response_bytes, last) =>
            {
                Err(Cut::Endpoint(Broken::Malformed("the parts of the body do not make the whole")))
            }
            _ => Ok(()),
        }
    }

    /// Ready when the exchange must end: the client is gone, or a limit is reached.
    pub(super) fn poll_cut<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, Cut>> {
        // While the body is still coming, this says only that it was broken off.
        match self.down.poll_gone(cx) {
            Poll::Ready(Gone::Broken(broken)) => return Poll::Ready(Err(Cut::Client(broken))),
            Poll::Ready(Gone::HalfClosed) if self.upload != Upload::Active => self.half_closed(),
            Poll::Ready(Gone::HalfClosed) | Poll::Pending => {}
        }
        self.poll_limits(cx)
    }

    /// Ready when a time limit is reached.
    pub(super) fn poll_limits<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, Cut>> {
        loop {
            let until = |deadline| self.down.poll_until(cx, deadline);
            let flow =
                || Flow { bytes: self.ticket.as_ref().map_or(0, Ticket::moved), waits: self.waits };
            let Err(expired) = ready!(self.limits.poll(until, &mut self.moved, flow)) else {
                if let Some(cut) = self.look() {
                    return Poll::Ready(Err(cut));
                }
                continue;
            };
            let by = match expired {
                Expired::Stall => 0,
                Expired::ClientStall => 1,
                _ => return Poll::Ready(Err(Cut::Expired(expired))),
            };
            if let Some(ticket) = &self.ticket {
                ticket.service.live.metrics.stalls[by].inc();
            }
            return Poll::Ready(Err(Cut::Expired(expired)));
        }
    }
}

/// A stream that was given up since the client did not read it says nothing of the endpoint.
fn of_endpoint(broken: Broken) -> Cut {
    match broken {
        Broken::Unread => Cut::Expired(Expired::ClientStall),
        _ => Cut::Endpoint(broken),
    }
}

/// What the client's side finds malformed is the endpoint's doing.
fn of_client(broken: Broken) -> Cut {
    match broken {
        Broken::Malformed(_) => Cut::Endpoint(broken),
        _ => Cut::Client(broken),
    }
}

impl Upstream {
    /// Whether this request's bytes were written to a connection that had served
    /// others and then ended without a single byte of an answer.
    pub(super) fn was_stale(&self) -> bool {
        matches!(self, Self::Http1(h1) if h1.was_stale())
    }

    pub(super) fn begin(&self, head: &RequestHead) -> Upload {
        if head.length.is_empty() { Upload::Done } else { Upload::Active }
    }
}

impl Upstream {
    /// Sends a body that is all there.
    pub(super) async fn send_all(
        &mut self,
        pieces: Vec<Bytes>,
        trailers: Option<HeaderMap>,
    ) -> Option<()> {
        for bytes in pieces {
            poll_fn(|cx| self.poll_room(cx)).await.ok()?;
            self.data(bytes, false).ok()?;
        }
        self.end(trailers).ok()
    }
}
