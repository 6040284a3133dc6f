//! Copies of requests, sent and forgotten.
//!
//! A copy is made only of a body that was kept whole (see [`super::replay`]):
//! a larger one is not copied, and counted. Its answer is read and thrown away,
//! and its failures are nobody's business. Few run at a time.

use std::{
    future::poll_fn,
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::timeout;
use towpath_policies::model::Class;

use super::{
    h1_client::Http1,
    h2_client::{self, Http2},
    message::{Client, Length, Piece, RequestHead},
    relay::{Answer, Upstream},
    replay::Replay,
};
use crate::{
    router::{Forward, Mirror},
    upstream::{
        self, ServiceLive,
        admission::Ticket,
        connect::{Connector, Wire},
        h2_pool::{self, Streams},
        pick::{self, Tried},
        pool, queue,
    },
};

/// The mirrors drawn for a request.
pub(super) type Drawn<'a> = Vec<&'a Mirror>;

/// Copies under way in this process.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
/// The most copies under way.
const MOST: usize = 1024;
/// Time for one copy, answer included.
const LIMIT: Duration = Duration::from_secs(30);

/// Draws, for each mirror, whether this request is copied. Allocates only when one is.
pub(super) fn draw(forward: &Forward) -> Drawn<'_> {
    let drawn = |m: &&Mirror| fastrand::u32(..1_000_000) < m.parts_per_million;
    forward.mirrors.iter().filter(drawn).collect()
}

/// Sends the copies from tasks of their own.
pub(super) fn send(mirrors: Drawn<'_>, head: &RequestHead, replay: &Replay, client: &Client) {
    let (worker, client) = (client.worker, client.peer.addr.ip());
    for service in mirrors.into_iter().filter_map(|m| m.service.clone()) {
        let Some((pieces, trailers)) = whole(head, replay) else {
            service.metrics.mirrors_dropped.inc();
            continue;
        };
        if UNDER_WAY.fetch_add(1, Relaxed) >= MOST {
            UNDER_WAY.fetch_sub(1, Relaxed);
            service.metrics.mirrors_dropped.inc();
            continue;
        }
        let copy = copy(head, pieces.iter().map(|p| p.len() as u64).sum());
        // Owned by the count above, bounded by the time limit.
        tokio::spawn(async move {
            let _under_way = UnderWay;
            let sent =
                timeout(LIMIT, exchange(&service, copy, pieces, trailers, (worker, client))).await;
            if !matches!(sent, Ok(Some(()))) {
                tracing::debug!("a mirrored request failed");
            }
        });
    }
}

struct UnderWay;

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Relaxed);
    }
}

fn whole(head: &RequestHead, replay: &Replay) -> Option<(Vec<Bytes>, Option<HeaderMap>)> {
    if head.length.is_empty() {
        return Some((Vec::new(), None));
    }
    replay.whole().map(|(pieces, trailers)| (pieces.to_vec(), trailers.cloned()))
}

fn copy(head: &RequestHead, bytes: u64) -> RequestHead {
    RequestHead {
        received: head.received,
        method: head.method.clone(),
        authority: head.authority.clone(),
        target: head.target.clone(),
        headers: head.headers.clone(),
        length: match head.length {
            Length::Unknown => Length::Unknown,
            Length::Known(_) => Length::Known(bytes),
            Length::None => Length::None,
        },
        te_trailers: head.te_trailers,
        upgrade: None,
        expects_continue: false,
    }
}

async fn exchange(
    live: &ServiceLive,
    mut head: RequestHead,
    pieces: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    (worker, client): (usize, IpAddr),
) -> Option<()> {
    let service = live.current.load_full()?;
    let declared = head.length.declared();
    service.has_room(declared).ok()?;
    let ask = head.ask(&service, declared, Class::default(), client);
    let (endpoint, slot) = if service.spec.admission.queue.is_none() {
        let picked = pick::pick(&service, &Tried::default(), upstream::now_ms(), ask).ok()?;
        (picked.clone(), None)
    } else {
        // A copy takes nobody's place: without an idle slot it is not sent.
        let Some(slot) = queue::idle_slot(&service, ask) else {
            live.metrics.mirrors_dropped.inc();
            return None;
        };
        (slot.endpoint.clone(), Some(slot))
    };
    let mut ticket = Ticket::new(service.clone(), endpoint.clone(), declared);
    ticket.comes_from(ask.origin.cell);
    ticket.slot = slot;
    let mut up = match Wire::towards(service.spec.protocol, head.received) {
        Wire::Http1 => {
            super::headers::join_cookies(&mut head.headers);
            let pooled = endpoint.pools().take(worker);
            let reused = pooled.is_some();
            let connection = match pooled {
                Some(connection) => connection,
                None => {
                    let made = Connector::connect(&service, &endpoint, Some(Wire::Http1));
                    let (io, guard) = made.await.ok()?;
                    pool::Http1 { io, guard }
                }
            };
            Upstream::Http1(Box::new(Http1::new(connection, reused, &head, &head.authority)))
        }
        Wire::Http2 => {
            let request = h2_client::request(&head, service.connector.is_tls());
            let empty = head.length.is_empty();
            let stream = match endpoint.open_stream(worker, Streams::Requests, &request, empty) {
                Ok(stream) => stream,
                Err(_) => {
                    h2_pool::connect_shared(&service, &endpoint, worker, Streams::Requests)
                        .await
                        .ok()?;
                    endpoint.open_stream(worker, Streams::Requests, &request, empty).ok()?
                }
            };
            Upstream::Http2(Http2::new(stream, head.method.clone()))
        }
    };
    if !head.length.is_empty() {
        up.send_all(pieces, trailers).await?;
    }
    discard(&mut up, &mut ticket).await?;
    if let Upstream::Http1(h1) = up {
        h1.finish(&endpoint, worker, service.spec.pool_idle_timeout);
    }
    Some(())
}

/// Reads an answer to its end and throws it away.
async fn discard(up: &mut Upstream, ticket: &mut Ticket) -> Option<()> {
    poll_fn(|cx| {
        if up.poll_flush(cx).is_pending() {
            return Poll::Pending;
        }
        loop {
            match up.poll_answer(cx) {
                Poll::Ready(Ok(Answer::Interim(_))) => {}
                Poll::Ready(Ok(Answer::Final(_))) => return Poll::Ready(Some(())),
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await?;
    ticket.has_head();
    poll_fn(|cx| {
        loop {
            match up.poll_body(cx) {
                Poll::Ready(Ok(Piece::Data { bytes, .. })) => up.credit(bytes.len()),
                Poll::Ready(Ok(Piece::End(_))) => return Poll::Ready(Some(())),
                Poll::Ready(Err(_)) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}
