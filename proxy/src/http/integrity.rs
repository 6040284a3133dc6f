//! Where an exchange vouches for its bodies: digests are armed, asked for, and end what does not match.

use std::task::Context;

use http::{HeaderValue, Method, StatusCode, header};
use towpath_policies::model::Integrity;

use super::{
    digest::{self, Body, DigestOutcome, Digests, Facts, Mismatch},
    exchange::{Exchange, Stop},
    message::{Length, Piece, ResponseHead},
    relay::{Cut, Downstream, Side, Upstream},
    reply::Reply,
};
use crate::upstream::connect::Wire;

impl<D: Downstream> Exchange<'_, D> {
    /// Decides what is done with the request's digests, and asks for one of the response.
    pub(super) fn vouch_for_request(&mut self, terms: Integrity) -> Result<(), Stop> {
        if !terms.is_on() {
            return Ok(());
        }
        let head = &mut self.head;
        let wanted = digest::is_wanted(&head.headers, terms.algorithm);
        if terms.check {
            digest::want(&mut head.headers, terms.algorithm);
        }
        let empty = head.length.is_empty();
        let facts = Facts {
            length: head.length,
            trailers: head.received == Wire::Http2 || head.length == Length::Unknown,
            // What the representation of an empty request is, nothing says.
            whole: !empty && !head.headers.contains_key(header::CONTENT_RANGE),
            // Servers of gRPC take trailers from clients for a broken connection.
            make: !empty && !self.grpc,
        };
        let armed = Body::new(terms, &head.headers, facts);
        if let Ok(Some(body)) = &armed
            && body.makes()
        {
            head.headers.append(header::TRAILER, HeaderValue::from_static("content-digest"));
        }
        let request = self.armed(armed.map_err(|_| Mismatch), empty).map_err(|_| {
            Stop::Reply(Reply::bad_digest(
                "The request body does not match its digest, or the digest is malformed.",
            ))
        })?;
        self.digests = Some(Box::new(Digests { terms, wanted, request, response: None }));
        Ok(())
    }

    /// Decides what is done with the response's digests.
    pub(super) fn vouch_for_response(
        &mut self,
        answer: &ResponseHead,
        up: &Upstream,
        switched: bool,
    ) -> Result<(), Stop> {
        let Some(digests) = &self.digests else { return Ok(()) };
        if switched {
            self.digests = None;
            return Ok(());
        }
        let bodiless = self.head.method == Method::HEAD
            || matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if bodiless {
            return Ok(());
        }
        let (terms, wanted) = (digests.terms, digests.wanted);
        let empty = answer.length.is_empty();
        let facts = Facts {
            length: answer.length,
            trailers: matches!(up, Upstream::Http2(_)) || answer.length == Length::Unknown,
            whole: answer.status != StatusCode::PARTIAL_CONTENT
                && !answer.headers.contains_key(header::CONTENT_RANGE),
            make: wanted && !empty && self.down.takes_trailers(),
        };
        let armed = Body::new(terms, &answer.headers, facts).map_err(|_| Mismatch);
        let armed = self.armed(armed, empty).map_err(|_| Stop::Reply(Reply::DIGEST))?;
        if let Some(digests) = &mut self.digests {
            digests.response = armed;
        }
        Ok(())
    }

    /// A body that is empty is held against its digests at once.
    fn armed(
        &mut self,
        armed: Result<Option<Body>, Mismatch>,
        empty: bool,
    ) -> Result<Option<Body>, Mismatch> {
        let mut body = match armed {
            Ok(Some(body)) => body,
            Ok(None) => return Ok(None),
            Err(mismatch) => {
                self.count_digest(DigestOutcome::Mismatch);
                return Err(mismatch);
            }
        };
        if !empty {
            return Ok(Some(body));
        }
        let ended = body.pass(Piece::End(None));
        if let Some(outcome) = body.outcome() {
            self.count_digest(outcome);
        }
        ended.map(|_| None)
    }

    /// A digest in trailers needs a body in chunks over HTTP/1.1.
    pub(super) fn chunk_for_digest(&mut self) {
        let made = |digests: &Digests| digests.request.as_ref().is_some_and(Body::makes);
        if self.digests.as_deref().is_some_and(made) {
            self.head.headers.remove(header::CONTENT_LENGTH);
        }
    }

    /// As [`Self::chunk_for_digest`], towards the client.
    pub(super) fn leave_room_for_digest(&self, answer: &mut ResponseHead) {
        let checked = |digests: &Digests| digests.response.as_ref().is_some_and(Body::checks);
        if self.digests.as_deref().is_some_and(checked) {
            // Where it breaks off because it does not match, the rest from elsewhere would make what is
            // wrong look whole.
            answer.headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
        }
        let made = |digests: &Digests| digests.response.as_ref().is_some_and(Body::makes);
        if !self.digests.as_deref().is_some_and(made) {
            return;
        }
        answer.headers.append(header::TRAILER, HeaderValue::from_static("content-digest"));
        if self.head.received == Wire::Http1 {
            answer.headers.remove(header::CONTENT_LENGTH);
            answer.length = Length::Unknown;
        }
    }

    /// Another try sees the request body from its first byte.
    pub(super) fn restart_digests(&mut self) {
        if let Some(body) = self.vouching(Side::Request) {
            body.restart();
        }
    }

    /// The next part of the request body that may be passed on.
    pub(super) fn next_vouched(
        &mut self,
        up: &mut Upstream,
        cx: &mut Context<'_>,
    ) -> Result<Option<Piece>, Cut> {
        loop {
            if let Some(piece) = self.owed(Side::Request) {
                return Ok(Some(piece));
            }
            let Some(piece) = self.next_piece(up, cx)? else { return Ok(None) };
            self.moved = true;
            if let Some(piece) = self.vouch(Side::Request, piece)? {
                return Ok(Some(piece));
            }
        }
    }

    /// What of a body was held back and may go now.
    pub(super) fn owed(&mut self, side: Side) -> Option<Piece> {
        self.vouching(side)?.next()
    }

    /// What may be passed on of a body when `piece` has come.
    pub(super) fn vouch(&mut self, side: Side, piece: Piece) -> Result<Option<Piece>, Cut> {
        let Some(body) = self.vouching(side) else { return Ok(Some(piece)) };
        let passed = body.pass(piece);
        if let Some(outcome) = body.outcome() {
            self.count_digest(outcome);
        }
        passed.map_err(|Mismatch| Cut::Digest(side))
    }

    fn vouching(&mut self, side: Side) -> Option<&mut Body> {
        let digests = self.digests.as_mut()?;
        match side {
            Side::Request => digests.request.as_mut(),
            Side::Response => digests.response.as_mut(),
        }
    }

    fn count_digest(&self, outcome: DigestOutcome) {
        let service = self.record.backend().and_then(|backend| backend.service.as_ref());
        if let Some(service) = service {
            service.metrics.digests[outcome as usize].inc();
        }
    }
}
