//! The proxies of a run, and what they are told.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use towpath_policies::model::{
    Action, Bind, BudgetShare, Chain, ChainKind, Endpoint, EndpointSet, Forward, HeaderEdit,
    HostRewrite, HttpOptions, Listener, Location, Node, PathMatch, Protocol, RateLimits,
    RetryCondition, RetryPolicy, Route, RouteMatch, RouteTable, Service, Snapshot, Transfer,
    VirtualHost, WeightedBackend,
};
use towpath_proxy::{Config, Running, SourceConfig};

use super::{
    plan::{Disk, EventKind, Plan, Policy, Wire},
    plane::Plane,
};

/// A gateway, perhaps a sidecar behind it, and endpoints behind that.
#[derive(Debug)]
pub(super) struct Mesh {
    pub(super) gateway: Running,
    pub(super) sidecar: Option<Running>,
    /// Whom both obey, unless they are told directly.
    plane: Option<Plane>,
    /// Where clients connect.
    pub(super) address: SocketAddr,
    /// Where the sidecar listens.
    behind: Option<SocketAddr>,
    policy: Policy,
    protocol: Protocol,
    /// Tells the series of this run from those of others.
    mark: String,
}

const LISTENER: &str = "in";
/// Names of the proxies as nodes.
const GATEWAY: &str = "gateway";
const SIDECAR: &str = "sidecar";
/// More time than a proxy takes to obey an xDS server.
const PATIENCE: Duration = Duration::from_secs(15);

impl Mesh {
    /// Starts the proxies of a run in front of these endpoints.
    pub(super) async fn start(plan: &Plan, origins: &[SocketAddr]) -> anyhow::Result<Self> {
        let protocol = |wire| match wire {
            Wire::Http1 => Protocol::Http1,
            Wire::Http2 => Protocol::Http2,
        };
        let mark = format!("faults-{:x}", plan.seed);
        let plane = if plan.plane { Some(Plane::start().await?) } else { None };
        let start = |node| proxy(node, plane.as_ref(), plan.policy.disk);
        let gateway = start(GATEWAY).await?;
        let sidecar = if plan.sidecar.is_some() { Some(start(SIDECAR).await?) } else { None };
        let inner = protocol(plan.endpoint);
        let mut mesh = Self {
            address: gateway.admin_addr(),
            behind: None,
            gateway,
            sidecar,
            plane,
            policy: plan.policy.clone(),
            protocol: inner,
            mark,
        };
        mesh.apply_inner(mesh.snapshot(SIDECAR, inner, origins, 0)).await?;
        if let (Some(sidecar), Some(wire)) = (&mesh.sidecar, plan.sidecar) {
            let behind = address(sidecar)?;
            mesh.behind = Some(behind);
            let snapshot = mesh.snapshot(GATEWAY, protocol(wire), &[behind], 0);
            mesh.apply(GATEWAY, &mesh.gateway, snapshot).await?;
        }
        mesh.address = address(&mesh.gateway)?;
        Ok(mesh)
    }

    /// The proxy before the endpoints.
    pub(super) fn inner(&self) -> &Running {
        self.sidecar.as_ref().unwrap_or(&self.gateway)
    }

    /// The proxies and where they listen, from the client on.
    pub(super) fn proxies(&self) -> impl Iterator<Item = (&Running, SocketAddr)> {
        let sidecar = self.sidecar.as_ref().zip(self.behind);
        [(&self.gateway, self.address)].into_iter().chain(sidecar)
    }

    /// Reloads with other endpoints, or with another service that has them.
    pub(super) async fn reload(
        &self,
        kind: EventKind,
        origins: &[SocketAddr],
    ) -> anyhow::Result<()> {
        let generation = u32::from(kind == EventKind::OtherService);
        let mut snapshot = self.snapshot(SIDECAR, self.protocol, origins, generation);
        // The same version twice would be no change.
        snapshot.version = format!("v{generation}-{}", kind.name());
        self.apply_inner(snapshot).await
    }

    /// Whom the proxies obey goes away.
    pub(super) fn lose_plane(&self) {
        if let Some(plane) = &self.plane {
            plane.leave();
        }
    }

    /// Tells the proxy before the endpoints.
    async fn apply_inner(&self, snapshot: Snapshot) -> anyhow::Result<()> {
        let node = if self.sidecar.is_some() { SIDECAR } else { GATEWAY };
        self.apply(node, self.inner(), snapshot).await
    }

    /// Tells a proxy, and waits until it obeys.
    async fn apply(&self, node: &str, proxy: &Running, snapshot: Snapshot) -> anyhow::Result<()> {
        let Some(plane) = &self.plane else {
            let rejected = |rejected| anyhow::anyhow!("{rejected:?}");
            return proxy.apply(Arc::new(snapshot)).map_err(rejected);
        };
        let version = snapshot.version.clone();
        plane.tell(node, snapshot);
        let obeyed = tokio::time::timeout(PATIENCE, proxy.version_is(&version)).await;
        obeyed.with_context(|| format!("{node} at {:?}, not {version}", proxy.version()))
    }

    /// The label value that the series of the inner proxy (or of the gateway before it) carry.
    pub(super) fn service(&self, proxy: &str) -> String {
        format!("{}-{proxy}", self.mark)
    }

    /// What metrics call the endpoint.
    pub(super) fn endpoint(origin: SocketAddr) -> String {
        origin.to_string()
    }

    fn snapshot(
        &self,
        proxy: &str,
        protocol: Protocol,
        endpoints: &[SocketAddr],
        generation: u32,
    ) -> Snapshot {
        let policy = &self.policy;
        let name = format!("{}-{generation}", self.service(proxy));
        let mut service = Service::new(name.clone(), protocol);
        service.outlier = None;
        service.retry_budget = BudgetShare { percent: 20, min_concurrent: policy.retries_at_once };
        service.admission.queue = policy.queue;
        service.admission.adaptive_concurrency = policy.adapts;
        service.admission.bandwidth = policy.bandwidth;
        service.admission.stream_age = policy.age;
        service.breaker.service.max_requests = policy.max_requests;
        service.breaker.service.max_bytes_in_flight = policy.max_bytes_in_flight;
        let table = self.service(proxy);
        let endpoints = endpoints.iter().copied().map(Endpoint::new).collect();
        let mut snapshot = Snapshot { version: format!("v{generation}"), ..Snapshot::default() };
        let set = EndpointSet::new(name.clone(), endpoints);
        snapshot.endpoints.insert(name.clone(), Arc::new(set));
        snapshot.routes.insert(table.clone(), Arc::new(routes(&table, &name, policy)));
        snapshot.services.insert(name, Arc::new(service));
        let kind = ChainKind::Http { route_table: table, options: HttpOptions::default() };
        let listener = Listener {
            name: LISTENER.into(),
            bind: Bind::Socket(([127, 0, 0, 1], 0).into()),
            chains: vec![Chain::new(vec![], None, kind)],
            location: Location::default(),
            proxy_protocol: None,
        };
        snapshot.listeners.insert(LISTENER.into(), Arc::new(listener));
        snapshot
    }

    /// Has the registry of this process forget the run.
    pub(super) fn forget(&self) {
        for proxy in [GATEWAY, SIDECAR] {
            let route = self.service(proxy);
            for generation in 0..2 {
                let service = format!("{route}-{generation}");
                towpath_proxy::metrics::registry().forget(&[("service", &service)]);
            }
            towpath_proxy::metrics::registry().forget(&[("route", &route)]);
        }
    }
}

async fn proxy(node: &str, plane: Option<&Plane>, disk: Disk) -> anyhow::Result<Running> {
    let source = plane.map_or(SourceConfig::Manual, |plane| SourceConfig::ControlPlane {
        address: plane.address.to_string(),
        node: Node { id: node.into(), cluster: String::new(), sidecar: false },
        cache_dir: None,
    });
    let mut config = Config::new(source);
    config.drain_timeout = Duration::from_secs(20);
    match disk {
        Disk::Roomy => {}
        Disk::Full(bytes) => config.spool_bytes = bytes,
        // A device is no folder.
        Disk::Broken => config.spool_dir = "/dev/null".into(),
    }
    towpath_proxy::start(config).await
}

fn address(proxy: &Running) -> anyhow::Result<SocketAddr> {
    proxy.listener_addrs().get(LISTENER).copied().context("the listener stands")
}

fn routes(table: &str, service: &str, policy: &Policy) -> RouteTable {
    let defaults = RetryPolicy::default();
    let mut on = defaults.on.clone();
    if policy.on_503 {
        on.push(RetryCondition::Status(vec![503]));
    }
    if policy.per_try.is_some() {
        on.push(RetryCondition::Timeout);
    }
    if policy.stall.is_some() {
        on.push(RetryCondition::Stall);
    }
    let transfer = Transfer {
        integrity: policy.integrity,
        stall: policy.stall,
        hedge: policy.hedge.clone(),
        limits: RateLimits { route: policy.limit, ..RateLimits::default() },
        resume_uploads: policy.resumes_uploads,
        ..Transfer::default()
    };
    let retry = RetryPolicy {
        attempts: policy.attempts,
        on,
        per_try_timeout: policy.per_try,
        backoff_base: Duration::from_millis(1),
        replay_limit_bytes: policy.replay_limit,
        replay_disk_limit_bytes: policy.replay_disk_limit,
        with_idempotency_key: policy.trusts_keys,
        mint_idempotency_key: policy.mints_keys,
        resume_downloads: policy.resumes && policy.attempts > 0,
        ..defaults
    };
    let backend = WeightedBackend {
        service: service.into(),
        weight: 1,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    };
    let forward = Forward {
        backends: vec![backend],
        host: HostRewrite::Keep,
        path: None,
        mirrors: vec![],
        timeout: None,
        idle_timeout: None,
        retry,
        transfer,
    };
    let matches = RouteMatch {
        path: PathMatch::Prefix("/".into()),
        method: None,
        headers: vec![],
        query: vec![],
        grpc: false,
    };
    let route = Route {
        name: table.into(),
        matches,
        action: Action::Forward(forward),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    };
    let host = VirtualHost { name: "all".into(), domains: vec!["*".into()], routes: vec![route] };
    RouteTable { name: table.into(), virtual_hosts: vec![host] }
}
