//! What a route does, ready to be done.

use std::{sync::Arc, time::Duration};

use http::{StatusCode, uri::Authority};
use towpath_policies::model::{
    self, Discovery, HostRewrite, PathMatch, PathRewrite, RetryPolicy, Route, Transfer,
};

use super::{Edit, Limiters, RouteMetrics, edit, live, matching::after_prefix};
use crate::{
    flow::Limiter,
    http::hedge::Hedging,
    upstream::{ServiceLive, queue::Estimate},
};

#[derive(Debug)]
pub(crate) enum Action {
    Forward(Box<Forward>),
    Redirect(Redirect),
    Respond { status: StatusCode, body: bytes::Bytes },
}

impl Action {
    /// Whether requests go on to where their connections were made to.
    pub(super) fn passes_through(&self) -> bool {
        let Self::Forward(forward) = self else { return false };
        forward.backends.iter().all(|backend| {
            let service = backend.service.as_ref().and_then(|live| live.current.load_full());
            service.is_some_and(|s| s.spec.discovery == Discovery::OriginalDestination)
        })
    }
}

#[derive(Debug)]
pub(crate) struct Forward {
    backends: Box<[Backend]>,
    weight: u64,
    pub(crate) host: Option<Authority>,
    pub(crate) path: Option<Rewrite>,
    pub(crate) mirrors: Box<[Mirror]>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) retry: RetryPolicy,
    pub(crate) transfer: Transfer,
    /// `None` = unlimited. Shared by all routes of one name.
    pub(crate) limiter: Option<Arc<Limiter>>,
}

#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) name: Arc<str>,
    pub(crate) service: Option<Arc<ServiceLive>>,
    weight: u64,
    pub(crate) host: Option<Authority>,
    pub(crate) request_headers: Edit,
    pub(crate) response_headers: Edit,
    pub(crate) metrics: RouteMetrics,
    /// What its requests take, for the queue of the service.
    pub(crate) estimate: Arc<Estimate>,
    /// Rare and large, so on the heap.
    pub(crate) hedging: Option<Box<Hedging>>,
}

#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) service: Option<Arc<ServiceLive>>,
    pub(crate) parts_per_million: u32,
}

/// A path rewrite, with the prefix it replaces.
#[derive(Debug)]
pub(crate) enum Rewrite {
    Full(String),
    Prefix { matched: String, with: String },
}

#[derive(Debug)]
pub(crate) struct Redirect {
    pub(crate) scheme: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) path: Option<Rewrite>,
    pub(crate) status: StatusCode,
}

impl Action {
    pub(crate) fn new(
        listener: &str,
        route: &Route,
        services: &dyn Fn(&str) -> Option<Arc<ServiceLive>>,
        limiters: &mut Limiters<'_>,
    ) -> Result<Self, String> {
        let status = |code| StatusCode::from_u16(code).map_err(|_| format!("{code} is no status"));
        Ok(match &route.action {
            model::Action::Forward(forward) => {
                Self::Forward(Box::new(Forward::new(listener, route, forward, services, limiters)?))
            }
            model::Action::Redirect(redirect) => Self::Redirect(Redirect {
                scheme: redirect.scheme.clone(),
                host: redirect.host.clone(),
                port: redirect.port,
                path: Rewrite::new(redirect.path.as_ref(), &route.matches.path),
                status: status(redirect.status)?,
            }),
            model::Action::Respond(response) => Self::Respond {
                status: status(response.status)?,
                body: response.body.clone().into(),
            },
        })
    }
}

impl Forward {
    fn new(
        listener: &str,
        route: &Route,
        spec: &model::Forward,
        services: &dyn Fn(&str) -> Option<Arc<ServiceLive>>,
        limiters: &mut Limiters<'_>,
    ) -> Result<Self, String> {
        let backends = spec
            .backends
            .iter()
            .map(|backend| {
                Ok(Backend {
                    name: backend.service.as_str().into(),
                    service: live(backend, services),
                    weight: backend.weight.into(),
                    host: edit::host(&backend.request_headers).map(authority).transpose()?,
                    request_headers: Edit::new(&backend.request_headers)?,
                    response_headers: Edit::new(&backend.response_headers)?,
                    metrics: RouteMetrics::new(listener, &route.name, &backend.service),
                    estimate: Arc::default(),
                    hedging: spec.transfer.hedge.as_ref().map(|h| Box::new(Hedging::new(h))),
                })
            })
            .collect::<Result<Box<[_]>, String>>()?;
        let host = match &spec.host {
            HostRewrite::Literal(host) => Some(authority(host)?),
            HostRewrite::Keep => edit::host(&route.request_headers).map(authority).transpose()?,
        };
        Ok(Self {
            weight: backends.iter().map(|b| b.weight).sum(),
            backends,
            host,
            path: Rewrite::new(spec.path.as_ref(), &route.matches.path),
            mirrors: spec
                .mirrors
                .iter()
                .map(|m| Mirror {
                    service: services(&m.service),
                    parts_per_million: m.parts_per_million,
                })
                .collect(),
            timeout: spec.timeout,
            idle_timeout: spec.idle_timeout,
            retry: spec.retry.clone(),
            transfer: spec.transfer.clone(),
            limiter: limiters.of(&route.name, &spec.transfer.limits),
        })
    }

    pub(crate) fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Draws the position of a backend by weight.
    pub(crate) fn draw(&self) -> usize {
        if self.backends.len() == 1 || self.weight == 0 {
            return 0;
        }
        let mut rest = fastrand::u64(..self.weight);
        for (index, backend) in self.backends.iter().enumerate() {
            if rest < backend.weight {
                return index;
            }
            rest -= backend.weight;
        }
        0
    }
}

impl Rewrite {
    fn new(spec: Option<&PathRewrite>, matched: &PathMatch) -> Option<Self> {
        Some(match spec? {
            PathRewrite::Full(path) => Self::Full(path.clone()),
            PathRewrite::Prefix(with) => Self::Prefix {
                matched: match matched {
                    PathMatch::Prefix(prefix) | PathMatch::Exact(prefix) => prefix.clone(),
                    PathMatch::Regex(_) => "/".into(),
                },
                with: with.clone(),
            },
        })
    }

    /// The path after the rewrite; always begins with a slash.
    pub(crate) fn apply(&self, path: &str) -> String {
        let rewritten = match self {
            Self::Full(full) => full.clone(),
            Self::Prefix { matched, with } => {
                let matched = matched.trim_end_matches('/');
                let rest = after_prefix(path, matched).unwrap_or(path);
                format!("{}{rest}", with.trim_end_matches('/'))
            }
        };
        if rewritten.starts_with('/') { rewritten } else { format!("/{rewritten}") }
    }
}

fn authority(host: &str) -> Result<Authority, String> {
    host.parse().map_err(|_| format!("`{host}` is no host"))
}
