//! Waiting for a slot, where the service has a queue.

use std::{
    future::poll_fn,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, OnceLock},
    task::Poll,
};

use tokio::time::Instant;
use towpath_policies::model::{Class, TenantKey};

use super::super::{
    deadline::Expired,
    exchange::{Exchange, Stop},
    message::{Broken, Length, RequestHead},
    relay::{Cut, Downstream, Gone},
    reply::Reply,
    stall::Waits,
};
use crate::{
    router::{Action, Backend},
    upstream::{
        EndpointState, ServiceState, now_ms, now_us,
        pick::{self, NoPick, Tried},
        queue::{self, Slot, Turn, line::Want},
    },
};

/// What a request has to do with the queue of its service.
#[derive(Debug, Default)]
pub(in crate::http) struct InLine {
    /// Whose it is; 0 where nobody asked.
    pub(in crate::http) tenant: u64,
    /// Had, and not in use by a try at the moment.
    pub(in crate::http) slot: Option<Box<Slot>>,
}

/// Whose a request is, as a number that only this process knows the meaning of.
pub(in crate::http) fn tenant_of(
    key: Option<&TenantKey>,
    head: &RequestHead,
    client: SocketAddr,
) -> u64 {
    // Keyed at random, so that nobody can choose to be taken for somebody else.
    static HASHER: OnceLock<ahash::RandomState> = OnceLock::new();
    let hash = |value: &dyn AsRef<[u8]>| {
        HASHER.get_or_init(ahash::RandomState::new).hash_one(value.as_ref())
    };
    match key {
        None => 0,
        Some(TenantKey::Header(name)) => head.headers.get(name.as_str()).map_or(0, |v| hash(v)),
        Some(TenantKey::ClientAddress) => hash(&network(client.ip().to_canonical()).octets()),
    }
}

/// An address of IPv6 stands for its /64: one host may have as many addresses of it as it likes.
pub(super) fn network(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)),
    }
}

/// Where a try goes: an endpoint, and the view of the service it was found in.
pub(super) type Placed = (Arc<ServiceState>, Arc<EndpointState>);

impl<D: Downstream> Exchange<'_, D> {
    /// Finds a place for a try; `None` when the configuration changed meanwhile, and what holds
    /// now is to be looked at.
    pub(super) async fn place(
        &mut self,
        backend: &Backend,
        tried: &Tried,
    ) -> Result<Option<Placed>, Stop> {
        let service = backend.service.as_ref().and_then(|live| live.current.load_full());
        let service = service.ok_or(Stop::Reply(Reply::NO_SERVICE))?;
        if service.spec.admission.queue.is_none() {
            let endpoint = self.admit(&service, tried)?;
            return Ok(Some((service, endpoint)));
        }
        // Rare and large, so on the heap.
        Box::pin(self.queued(backend, &service, tried)).await
    }

    /// Waits for a slot; `None` when the service has no queue any more.
    async fn queued(
        &mut self,
        backend: &Backend,
        service: &Arc<ServiceState>,
        tried: &Tried,
    ) -> Result<Option<Placed>, Stop> {
        let Some(terms) = &service.spec.admission.queue else { return Ok(None) };
        if let Some(slot) = self.in_line.as_ref().and_then(|line| line.slot.as_ref()) {
            return Ok(Some((slot.service.clone(), slot.endpoint.clone())));
        }
        let want = self.want(backend);
        let ask = self.ask(service, want.bytes);
        if let Err(NoPick::NoneHealthy) = pick::seat(service, tried, now_ms(), ask) {
            return Err(Stop::Reply(Reply::NO_ENDPOINT));
        }
        let want = Want { start_by_us: self.start_by_us(terms.max_wait), ..want };
        let mut waiting =
            queue::join(service, terms, want, (*tried, ask), backend.estimate.clone())
                .map_err(|wait| Stop::Reply(Reply::QUEUE_FULL.again_after(wait)))?;
        self.limits.of_try = Instant::now().checked_add(terms.max_wait);
        self.waits = Waits::Elsewhere;
        let turn = poll_fn(|cx| {
            if let Poll::Ready(turn) = waiting.poll(cx) {
                return Poll::Ready(Ok(turn));
            }
            // That nothing moves is our doing.
            self.moved = true;
            // Who has part of the answer may have closed its side, and waits for the rest.
            let left = if self.down.has_responded() {
                matches!(self.down.poll_gone(cx), Poll::Ready(Gone::Broken(_)))
            } else {
                self.down.poll_left(cx).is_ready()
            };
            if left {
                return Poll::Ready(Err(Cut::Client(Broken::Closed)));
            }
            self.poll_limits(cx)
        })
        .await;
        self.limits.of_try = None;
        self.moved = true;
        self.record.queued(waiting.waited());
        match turn {
            Ok(Turn::Slot(slot)) => {
                let place = (slot.service.clone(), slot.endpoint.clone());
                self.in_line.get_or_insert_default().slot = Some(slot);
                Ok(Some(place))
            }
            Ok(Turn::Free) => Ok(None),
            Ok(Turn::Displaced(wait)) => Err(Stop::Reply(Reply::QUEUE_DISPLACED.again_after(wait))),
            Err(Cut::Expired(Expired::Try)) => {
                Err(Stop::Reply(Reply::QUEUE_WAIT.again_after(waiting.expire())))
            }
            Err(Cut::Expired(Expired::Overall)) => {
                waiting.expire();
                Err(Stop::Reply(Reply::TIMEOUT))
            }
            Err(_) => Err(Stop::Client(Broken::Closed)),
        }
    }

    /// Takes the slot back from a try that is made again.
    pub(super) fn keep_slot(&mut self) {
        if let (Some(line), Some(ticket)) = (&mut self.in_line, &mut self.ticket) {
            line.slot = ticket.slot.take();
        }
    }

    fn want(&self, backend: &Backend) -> Want {
        let class = self.record.route().map_or(Class::default(), |route| match &route.action {
            Action::Forward(forward) => forward.transfer.class,
            _ => Class::default(),
        });
        let declared = match self.head.length {
            Length::Known(bytes) => Some(bytes),
            Length::None | Length::Unknown => None,
        };
        Want {
            class,
            tenant: self.in_line.as_ref().map_or(0, |line| line.tenant),
            bytes: declared.unwrap_or(0),
            length_us: backend.estimate.predict_us(declared),
            start_by_us: 0,
            again: self.record.attempts > 0,
        }
    }

    /// The deadline, or the longest wait if that is over first, on the queue's clock.
    fn start_by_us(&self, max_wait: std::time::Duration) -> u64 {
        let left = self.limits.overall.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.map_or(max_wait, |left| left.min(max_wait));
        now_us().saturating_add(u64::try_from(left.as_micros()).unwrap_or(u64::MAX))
    }
}
