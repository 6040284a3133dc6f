//! Hosts that no policy knows: resolved when they are asked for, and remembered for a while.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use http::{HeaderMap, Method, uri::Authority};
use tokio::time::Instant;
use towpath_policies::{
    dns::endpoint_set,
    model::{Discovery, Route, RouteTable, Service, VirtualHost},
};

use super::directory::Terms;
use crate::{
    lock::lock,
    metrics::registry,
    router::{CompiledRoute, Router, Target},
    tcp::TcpChain,
    upstream::{self, EndpointState, ServiceLive},
};

/// Those that were asked for of late.
#[derive(Debug)]
pub(super) struct Strangers {
    terms: Terms,
    spec: Arc<Service>,
    known: Mutex<HashMap<(Box<str>, u16), Entry>>,
}

/// One host and port.
#[derive(Debug)]
pub(super) struct Stranger {
    pub(super) route: Arc<CompiledRoute>,
    pub(super) opaque: Arc<TcpChain>,
    live: Arc<ServiceLive>,
}

#[derive(Debug)]
struct Entry {
    stranger: Arc<Stranger>,
    resolved: Instant,
    used: Instant,
}

/// Most hosts remembered; the one that was not asked for the longest makes room.
const MOST: usize = 1024;
/// A name is looked up again after this.
const REFRESH: Duration = Duration::from_secs(30);

impl Strangers {
    pub(super) fn new(terms: Terms) -> Self {
        let spec = Service { discovery: Discovery::Listed, ..Service::passthrough() };
        Self { terms, spec: Arc::new(spec), known: Mutex::default() }
    }

    /// The stranger at this host and port, with addresses that are not old.
    ///
    /// # Errors
    /// When the name has no address, or only this proxy's own.
    pub(super) async fn find(&self, host: &str, port: u16) -> io::Result<Arc<Stranger>> {
        let key = (Box::<str>::from(host), port);
        let (now, mut old) = (Instant::now(), None);
        if let Some(entry) = self.lock().get_mut(&key) {
            entry.used = now;
            if now - entry.resolved < REFRESH {
                return Ok(entry.stranger.clone());
            }
            old = Some(entry.stranger.clone());
        }
        let addresses = match self.resolve(host, port).await {
            Ok(addresses) => addresses,
            Err(error) => {
                let old = old.ok_or(error)?;
                // The last good answer stays in use, and the question is not asked anew by each request.
                if let Some(entry) = self.lock().get_mut(&key) {
                    entry.resolved = now;
                }
                return Ok(old);
            }
        };
        let mut known = self.lock();
        // Another request may have been faster.
        let old = known.get(&key).map(|entry| entry.stranger.clone());
        let stranger = self.at(old, addresses)?;
        if known.len() >= MOST && !known.contains_key(&key) {
            forget_one(&mut known);
        }
        known.insert(key, Entry { stranger: stranger.clone(), resolved: now, used: now });
        Ok(stranger)
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let all: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
        if all.iter().any(|address| self.terms.leads_here(*address)) {
            return Err(io::Error::other("that is this proxy itself"));
        }
        // The system puts first what it can reach (RFC 6724); the other family may be a dead end.
        let first = all.first().ok_or(io::ErrorKind::NotFound)?.is_ipv4();
        Ok(all.into_iter().filter(|address| address.is_ipv4() == first).collect())
    }

    fn at(
        &self,
        old: Option<Arc<Stranger>>,
        addresses: Vec<SocketAddr>,
    ) -> io::Result<Arc<Stranger>> {
        let before = old.as_ref().and_then(|old| old.live.current.load_full());
        let set = endpoint_set(Service::PASSTHROUGH, addresses);
        let state =
            upstream::reconcile_at(&self.terms.site, before.as_ref(), self.spec.clone(), &set)
                .map_err(io::Error::other)?;
        if let Some(before) = before {
            let gone = |e: &&Arc<EndpointState>| {
                !state.endpoints.iter().any(|n| n.spec.name == e.spec.name)
            };
            before.endpoints.iter().filter(gone).for_each(|endpoint| forget_series(endpoint));
        }
        if let Some(old) = old {
            return Ok(old);
        }
        let live = state.live.clone();
        let route = self.terms.route(&live)?;
        Ok(Arc::new(Stranger { route, opaque: self.terms.chain(live.clone()), live }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Box<str>, u16), Entry>> {
        lock(&self.known)
    }
}

impl Terms {
    /// A route that takes all requests to one service, on the terms that hold without a policy.
    fn route(&self, live: &Arc<ServiceLive>) -> io::Result<Arc<CompiledRoute>> {
        let host = VirtualHost {
            name: Service::PASSTHROUGH.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![Route::passthrough()],
        };
        let table = RouteTable { name: Service::PASSTHROUGH.to_owned(), virtual_hosts: vec![host] };
        let router = Router::compile(&self.listener, &table, &|_| Some(live.clone()))
            .map_err(io::Error::other)?;
        let any = Target {
            authority: &Authority::from_static("any"),
            path: "/",
            query: None,
            method: &Method::GET,
            headers: &HeaderMap::new(),
        };
        router.route(&any).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Makes room: idle ones go first, and of those the one that was not used the longest.
fn forget_one(known: &mut HashMap<(Box<str>, u16), Entry>) {
    use std::sync::atomic::Ordering::Relaxed;
    let busy = |entry: &Entry| entry.stranger.live.requests.load(Relaxed) > 0;
    let oldest = known.iter().min_by_key(|(_, entry)| (busy(entry), entry.used));
    let Some(key) = oldest.map(|(key, _)| key.clone()) else { return };
    let Some(gone) = known.remove(&key) else { return };
    if let Some(state) = gone.stranger.live.current.load_full() {
        state.endpoints.iter().for_each(|endpoint| forget_series(endpoint));
        upstream::retire(&state);
    }
}

fn forget_series(endpoint: &EndpointState) {
    registry().forget(&[("service", Service::PASSTHROUGH), ("endpoint", &endpoint.spec.name)]);
}
