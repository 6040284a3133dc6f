//! Reports out of band: `xds.service.orca.v3.OpenRcaService/StreamCoreMetrics`, answered by the
//! sidecar itself, for those whose calls last too long or come too rarely to carry reports.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::time::{Instant, timeout};
use towpath_xds::orca::report_interval;

use super::Reporter;
use crate::{
    http::{
        exchange::{Exchange, Stop},
        message::{Broken, Length, Piece, ResponseHead},
        record::GRPC_STATUS,
        relay::{Downstream, Gone},
        reply::Reply,
    },
    router::Backend,
    upstream::{now_ms, reports::STREAM_CORE_METRICS},
};

/// Of a listener. Each may want ten reports a second, and lasts.
pub(super) const MOST_STREAMS: usize = 256;
const SERVICE: &str = "/xds.service.orca.v3.OpenRcaService/";
/// Where the caller does not say how often.
const USUAL_INTERVAL: Duration = Duration::from_secs(10);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);
/// More than a request with a hundred names of costs takes.
const MAX_REQUEST_BYTES: usize = 16 * 1024;
/// Of a message in gRPC: whether it is compressed, and its length.
const PREFIX: usize = 5;
const UNAVAILABLE: HeaderValue = HeaderValue::from_static("14");

/// How a stream of reports ends.
enum End {
    Gone(Broken),
    Drain,
}

impl<D: Downstream> Exchange<'_, D> {
    /// Whether this is a call for a stream of reports, and we are the endpoint's sidecar.
    pub(in crate::http) fn wants_reports(&self) -> bool {
        self.client.listener.load.is_some() && self.grpc && self.head.path() == STREAM_CORE_METRICS
    }

    /// A call for reports is not sent on from elsewhere: its answer would tell of the one endpoint that
    /// happens to be picked, as if that were all that is behind us. Once the route has changed the path.
    pub(in crate::http) fn keep_from_endpoint(&self) -> Result<(), Stop> {
        if self.grpc && self.client.listener.load.is_none() && self.head.path().starts_with(SERVICE)
        {
            return Err(Stop::Reply(Reply::REPORTS_OF_ONE));
        }
        Ok(())
    }

    /// Reports on the application behind `backend` until the caller leaves or we drain.
    pub(in crate::http) async fn stream_reports(&mut self, backend: &Backend) -> Result<(), Stop> {
        let client = self.client;
        let Some(reporter) = &client.listener.load else { return Err(Stop::Reply(Reply::BROKEN)) };
        let place = reporter.streams.try_acquire();
        let _place = place.map_err(|_| Stop::Reply(Reply::REPORTS_FULL))?;
        let limit = client.listener.options.head_timeout;
        let every = timeout(limit, self.interval()).await;
        let every = every.map_err(|_| Stop::Reply(Reply::HEAD_TIMEOUT))??;
        let mut headers = HeaderMap::with_capacity(1);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let head = ResponseHead { status: StatusCode::OK, headers, length: Length::Unknown };
        self.record.status = head.status.as_u16();
        self.down.respond(head).map_err(Stop::Client)?;
        let mut drained = pin!(client.drain.drained());
        let ended = loop {
            if let Err(end) = self.wait(None, drained.as_mut()).await {
                break end;
            }
            let message = message(reporter, backend);
            self.record.response_bytes += message.len() as u64;
            if let Err(broken) = self.down.data(message, false) {
                break End::Gone(broken);
            }
            let next = Instant::now() + every;
            if let Err(end) = self.wait(Some(next), drained.as_mut()).await {
                break end;
            }
        };
        match ended {
            End::Gone(broken) => Err(Stop::Client(broken)),
            End::Drain => {
                self.record.grpc_status = Some(14);
                let trailers = HeaderMap::from_iter([(GRPC_STATUS, UNAVAILABLE)]);
                self.down.end(Some(trailers)).map_err(Stop::Client)?;
                poll_fn(|cx| self.down.poll_flush(cx)).await.map_err(Stop::Client)
            }
        }
    }

    /// How often the caller wants a report: the one message it sends.
    async fn interval(&mut self) -> Result<Duration, Stop> {
        let bad = |what| Stop::Reply(Reply::bad_request(what));
        let mut body = BytesMut::new();
        loop {
            let piece = poll_fn(|cx| match self.down.poll_body(cx) {
                Poll::Pending => self.poll_cut(cx).map_err(|_| Broken::Closed),
                ready => ready,
            });
            let Piece::Data { bytes, last } = piece.await.map_err(Stop::Client)? else { break };
            self.down.credit(bytes.len());
            self.record.request_bytes += bytes.len() as u64;
            if body.len() + bytes.len() > MAX_REQUEST_BYTES {
                return Err(bad("the request is too long"));
            }
            body.extend_from_slice(&bytes);
            if last {
                break;
            }
        }
        let message = message_in(&body).ok_or(bad("the request is no message of gRPC"))?;
        let asked = report_interval(message).ok_or(bad("the request is malformed"))?;
        Ok(if asked.is_zero() {
            USUAL_INTERVAL
        } else {
            asked.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)
        })
    }

    /// Waits for `until`, or else for room for another message.
    async fn wait(
        &mut self,
        until: Option<Instant>,
        mut drained: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), End> {
        poll_fn(|cx| {
            if let Poll::Ready(Err(broken)) = self.down.poll_flush(cx) {
                return Poll::Ready(Err(End::Gone(broken)));
            }
            if let Poll::Ready(Gone::Broken(broken)) = self.down.poll_gone(cx) {
                return Poll::Ready(Err(End::Gone(broken)));
            }
            if drained.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(End::Drain));
            }
            match until {
                Some(until) => self.down.poll_until(cx, until).map(Ok),
                None => self.down.poll_room(cx).map_err(End::Gone),
            }
        })
        .await
    }
}

/// The one message of a request.
fn message_in(body: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = body.split_at_checked(PREFIX)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    (prefix[0] == 0 && usize::try_from(length) == Ok(message.len())).then_some(message)
}

fn message(reporter: &Reporter, backend: &Backend) -> Bytes {
    let report = match &backend.service {
        Some(service) => {
            let view = service.current.load();
            let slots = view.as_ref().and_then(|view| view.endpoints.first()?.spec.slots);
            reporter.report(service, slots, Some(&backend.metrics), now_ms())
        }
        None => Default::default(),
    };
    let report = report.to_bytes();
    let mut message = BytesMut::with_capacity(PREFIX + report.len());
    message.put_u8(0);
    message.put_u32(u32::try_from(report.len()).unwrap_or(0));
    message.put_slice(&report);
    message.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_whole_message_that_is_not_compressed() {
        for (body, message) in [
            (&b"\0\0\0\0\0"[..], Some(&b""[..])),
            (b"\0\0\0\0\x02ab", Some(b"ab")),
            (b"\x01\0\0\0\x02ab", None),
            (b"\0\0\0\0\x02a", None),
            (b"\0\0\0\0\x02abc", None),
            (b"\0\xff\xff\xff\xffab", None),
            (b"\0\0\0\0", None),
            (b"", None),
        ] {
            assert_eq!(message_in(body), message, "{body:?}");
        }
    }
}
