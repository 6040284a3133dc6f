//! Route tables compiled for matching: which request takes which route.
//!
//! A [`Router`] is built once per listener and configuration; matching a
//! request allocates nothing. Edits and rewrites are `HeaderName`s and
//! `HeaderValue`s already. Knows nothing of connections or endpoints: a backend
//! is a handle on its service's live state.

use std::sync::Arc;

use ahash::AHashMap;
use towpath_policies::model::{RateLimits, Route, RouteTable, WeightedBackend};

mod action;
mod edit;
mod matching;
pub(crate) mod path;
#[cfg(test)]
mod tests;

pub(crate) use action::{Action, Backend, Forward, Mirror, Redirect};
pub(crate) use edit::Edit;
pub(crate) use matching::{Target, is_grpc};

use crate::{
    flow::Limiter,
    metrics::{self, Counter, Histogram, Sum},
    upstream::ServiceLive,
};

/// The routes of one listener.
#[derive(Debug)]
pub struct Router {
    exact: AHashMap<Box<str>, u32>,
    /// Suffixes with their dot (`.example.com`), longest first.
    suffixes: Box<[(Box<str>, u32)]>,
    any: Option<u32>,
    hosts: Box<[Box<[Arc<CompiledRoute>]>]>,
    /// Requests that match nothing.
    pub(crate) unmatched: RouteMetrics,
}

/// One route, ready to be used.
#[derive(Debug)]
pub struct CompiledRoute {
    /// For logs and metrics.
    pub name: Arc<str>,
    matches: matching::Matches,
    pub(crate) action: Action,
    pub(crate) request_headers: Edit,
    pub(crate) response_headers: Edit,
    pub(crate) metrics: RouteMetrics,
}

/// Handles of one route and service; one atomic each.
#[derive(Clone, Debug)]
pub(crate) struct RouteMetrics {
    /// By status class: none sent, 1xx to 5xx.
    requests: [Counter; 6],
    pub(crate) seconds: Histogram,
    pub(crate) request_bytes: Counter,
    pub(crate) response_bytes: Counter,
    /// What its bytes emit and cost.
    pub(crate) carbon_grams: Sum,
    pub(crate) egress_cents: Sum,
}

/// The limiters of a router being compiled, by route: those of the router before it where they
/// stay as they were, so that a changed configuration forgives nobody.
pub(crate) struct Limiters<'a> {
    before: Option<&'a Router>,
    made: AHashMap<String, Arc<Limiter>>,
}

/// What in a route cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("route {route}: {what}")]
pub struct CompileError {
    /// Name of the route.
    pub route: String,
    /// What is wrong.
    pub what: String,
}

impl Router {
    /// A router that matches nothing.
    pub fn empty(listener: &str) -> Self {
        Self {
            exact: AHashMap::new(),
            suffixes: Box::default(),
            any: None,
            hosts: Box::default(),
            unmatched: RouteMetrics::new(listener, "", ""),
        }
    }

    /// Compiles `table` for `listener`; `services` finds the live state of a service by name.
    ///
    /// A backend that names an unknown service is kept, and its share of the
    /// requests is answered 503. Changed endpoints or terms of a known service
    /// need no new router: it is found through [`ServiceLive::current`].
    ///
    /// # Errors
    /// A header name or value that HTTP does not allow.
    pub fn compile(
        listener: &str,
        table: &RouteTable,
        services: &dyn Fn(&str) -> Option<Arc<ServiceLive>>,
    ) -> Result<Self, CompileError> {
        Self::compile_after(None, listener, table, services)
    }

    /// As [`Self::compile`], in place of a router that keeps its rate limits' buckets.
    ///
    /// # Errors
    /// As [`Self::compile`].
    pub fn compile_after(
        before: Option<&Self>,
        listener: &str,
        table: &RouteTable,
        services: &dyn Fn(&str) -> Option<Arc<ServiceLive>>,
    ) -> Result<Self, CompileError> {
        let mut limiters = Limiters { before, made: AHashMap::new() };
        let mut router = Self::empty(listener);
        let mut suffixes = Vec::new();
        let mut hosts = Vec::new();
        for (index, host) in (0u32..).zip(&table.virtual_hosts) {
            for domain in &host.domains {
                if domain == "*" {
                    router.any = Some(index);
                } else if let Some(suffix) = domain.strip_prefix('*') {
                    suffixes.push((suffix.to_ascii_lowercase().into_boxed_str(), index));
                } else {
                    router.exact.insert(domain.to_ascii_lowercase().into(), index);
                }
            }
            let routes: Result<Box<[_]>, CompileError> = host
                .routes
                .iter()
                .map(|route| {
                    CompiledRoute::new(listener, route, services, &mut limiters).map(Arc::new)
                })
                .collect();
            hosts.push(routes?);
        }
        suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        router.suffixes = suffixes.into();
        router.hosts = hosts.into();
        Ok(router)
    }

    /// The first route of the most specific host that matches.
    pub(crate) fn route(&self, target: &Target<'_>) -> Option<&Arc<CompiledRoute>> {
        let routes = &self.hosts[self.host(target.host())? as usize];
        let path = target.path;
        routes.iter().find(|route| route.matches.hold(target, path))
    }

    fn limiter(&self, route: &str) -> Option<&Arc<Limiter>> {
        let mut routes = self.hosts.iter().flat_map(|routes| routes.iter());
        routes.find(|r| &*r.name == route).and_then(|route| match &route.action {
            Action::Forward(forward) => forward.limiter.as_ref(),
            _ => None,
        })
    }

    /// Whether all that is known of a host is that its requests go on to where they were made to.
    pub(crate) fn passes_through(&self, host: &str) -> bool {
        let routes = self.host(host).map(|index| &self.hosts[index as usize]);
        routes.is_some_and(|routes| routes.iter().all(|route| route.action.passes_through()))
    }

    fn host(&self, host: &str) -> Option<u32> {
        if self.exact.is_empty() && self.suffixes.is_empty() {
            return self.any;
        }
        let mut lower = [0; 256];
        let lower = lower_case(host, &mut lower)?;
        self.named(lower).or(self.any)
    }

    /// How closely routes name this host (in lower case): 0 where they do not, most where they name it and no other.
    pub(crate) fn closeness(&self, host: &str) -> usize {
        if self.exact.contains_key(host) {
            return usize::MAX;
        }
        let is_within = |suffix: &str| host.len() > suffix.len() && host.ends_with(suffix);
        // The longest stands first.
        let within = self.suffixes.iter().find(|(suffix, _)| is_within(suffix));
        within.map_or(0, |(suffix, _)| suffix.len())
    }

    fn named(&self, lower: &str) -> Option<u32> {
        if let Some(index) = self.exact.get(lower) {
            return Some(*index);
        }
        self.suffixes
            .iter()
            .find(|(suffix, _)| lower.len() > suffix.len() && lower.ends_with(&**suffix))
            .map(|(_, index)| *index)
    }
}

/// The host in lower case; borrowed as it is when it already was. `None` when longer than a host name can be.
fn lower_case<'a>(host: &'a str, room: &'a mut [u8; 256]) -> Option<&'a str> {
    if !host.bytes().any(|b| b.is_ascii_uppercase()) {
        return Some(host);
    }
    let room = room.get_mut(..host.len())?;
    room.copy_from_slice(host.as_bytes());
    room.make_ascii_lowercase();
    std::str::from_utf8(room).ok()
}

impl CompiledRoute {
    fn new(
        listener: &str,
        route: &Route,
        services: &dyn Fn(&str) -> Option<Arc<ServiceLive>>,
        limiters: &mut Limiters<'_>,
    ) -> Result<Self, CompileError> {
        let error = |what: String| CompileError { route: route.name.clone(), what };
        Ok(Self {
            name: route.name.as_str().into(),
            matches: matching::Matches::new(&route.matches).map_err(error)?,
            action: Action::new(listener, route, services, limiters).map_err(error)?,
            request_headers: Edit::new(&route.request_headers).map_err(error)?,
            response_headers: Edit::new(&route.response_headers).map_err(error)?,
            metrics: RouteMetrics::new(listener, &route.name, ""),
        })
    }
}

impl Limiters<'_> {
    fn of(&mut self, route: &str, spec: &RateLimits) -> Option<Arc<Limiter>> {
        if spec.is_unlimited() {
            return None;
        }
        if let Some(made) = self.made.get(route).filter(|made| made.spec() == spec) {
            return Some(made.clone());
        }
        let before = self.before.and_then(|router| router.limiter(route));
        let limiter = match before.filter(|before| before.spec() == spec) {
            Some(before) => before.clone(),
            None => Arc::new(Limiter::new(route, *spec)),
        };
        self.made.insert(route.to_owned(), limiter.clone());
        Some(limiter)
    }
}

impl RouteMetrics {
    pub(crate) fn new(listener: &str, route: &str, service: &str) -> Self {
        let registry = metrics::registry();
        let of = [("route", route), ("service", service)];
        let class = |class| {
            registry.counter(
                "towpath_requests_total",
                &[("listener", listener), of[0], of[1], ("code_class", class)],
            )
        };
        Self {
            requests: ["none", "1xx", "2xx", "3xx", "4xx", "5xx"].map(class),
            seconds: registry.histogram("towpath_request_seconds", &[("route", route)]),
            request_bytes: registry.counter("towpath_request_bytes_total", &of),
            response_bytes: registry.counter("towpath_response_bytes_total", &of),
            carbon_grams: registry.sum("towpath_carbon_grams_total", &of),
            egress_cents: registry.sum("towpath_egress_cents_total", &of),
        }
    }

    /// Counts a request answered with this status; 0 = none was sent.
    pub(crate) fn count(&self, status: u16) {
        self.requests[usize::from(status / 100).min(5)].inc();
    }

    /// How many requests have ended, and how many of them without an answer or with a 5xx.
    pub(crate) fn ended(&self) -> (u64, u64) {
        let all = self.requests.iter().map(Counter::value).sum();
        (all, self.requests[0].value() + self.requests[5].value())
    }
}

fn live(
    backend: &WeightedBackend,
    services: &dyn Fn(&str) -> Option<Arc<ServiceLive>>,
) -> Option<Arc<ServiceLive>> {
    services(&backend.service)
}
