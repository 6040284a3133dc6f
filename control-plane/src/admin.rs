//! The admin endpoint: status, metrics, health, and a look on demand. Without
//! authentication, so for loopback only.

mod metrics;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use axum::{
    Json, Router,
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use towpath_policies::model::{Node, Snapshot};

use crate::{
    conditions::{self, Conditions, Transitions},
    follow::{self, Outcome, Refreshed},
    hub::Hub,
    status::{Shared, Status},
    webhook::Counts,
};

/// What the endpoint tells from.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) hub: Arc<Hub>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) requests: mpsc::Sender<follow::Request>,
    /// Since when conditions are as they are.
    pub(crate) transitions: Arc<Mutex<Transitions>>,
    /// Where it listens.
    pub(crate) address: IpAddr,
    /// The server for Linkerd's proxies, where there is one.
    pub(crate) linkerd: Option<towpath_linkerd::Server>,
    /// What the webhook counts, where there is one.
    pub(crate) webhook: Option<Arc<Counts>>,
}

const INDEX: &str = "towpath control plane
GET  /status              everything, as JSON (towpath status shows it as a table)
GET  /conditions          the status of Gateway API objects, as Kubernetes has it (towpath status --conditions)
GET  /ready               200 once policies are served, else 503
GET  /live                200 while the process answers
GET  /metrics             Prometheus text
GET  /snapshot?node=NAME[&cluster=NAME][&sidecar=true]   what this node is served, as JSON
POST /refresh             look for a new version now; answers with what came of it
";

/// All routes.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/", get(async || INDEX))
        .route("/status", get(status))
        .route("/conditions", get(conditions))
        .route("/ready", get(ready))
        .route("/live", get(async || "live\n"))
        .route("/metrics", get(metrics))
        .route("/snapshot", get(snapshot))
        .route("/refresh", post(refresh))
        .layer(middleware::from_fn_with_state(admin.address, refuse_strangers))
        .with_state(admin)
}

async fn status(State(admin): State<Admin>) -> Json<Status> {
    Json(admin.shared.look(|tracker| tracker.status()))
}

async fn conditions(State(admin): State<Admin>) -> Json<Conditions> {
    let (objects, is_served, status) = admin.shared.look(|tracker| {
        let (objects, is_served) = tracker.objects();
        (objects, is_served, tracker.status())
    });
    let view = |node: &Node| admin.hub.view(node);
    let served = is_served.then(|| conditions::served(&status, view));
    let mut transitions = admin.transitions.lock().unwrap_or_else(PoisonError::into_inner);
    Json(transitions.told(objects, served.as_ref(), SystemTime::now()))
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if admin.shared.look(|tracker| tracker.is_ready()) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no valid policies yet; see /status\n")
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let linkerd = admin.linkerd.map(|server| server.streams());
    let mut text = admin.shared.look(|tracker| metrics::text(tracker, linkerd));
    text.extend(admin.webhook.map(|counts| counts.text()));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

async fn refresh(State(admin): State<Admin>) -> Response {
    let refreshed = ask(&admin.requests).await;
    let status = match refreshed.outcome {
        Outcome::Applied | Outcome::Unchanged => StatusCode::OK,
        Outcome::Rejected => StatusCode::UNPROCESSABLE_ENTITY,
        Outcome::Failed => StatusCode::BAD_GATEWAY,
    };
    (status, Json(refreshed)).into_response()
}

/// Has a look taken at the source, and waits for what comes of it.
pub(crate) async fn ask(requests: &mpsc::Sender<follow::Request>) -> Refreshed {
    let (answer, answered) = oneshot::channel();
    let failed = |error: &str| Refreshed {
        outcome: Outcome::Failed,
        error: Some(error.to_owned()),
        ..Refreshed::default()
    };
    if requests.try_send(answer).is_err() {
        return failed("too many requests for a look wait already, or the control plane is ending");
    }
    answered.await.unwrap_or_else(|_| failed("the control plane is ending"))
}

#[derive(Deserialize)]
struct Wanted {
    node: String,
    #[serde(default)]
    cluster: String,
    #[serde(default)]
    sidecar: bool,
}

/// What one node is served: the JSON of `GET /snapshot`.
#[derive(Serialize)]
struct Dump {
    node: String,
    cluster: String,
    snapshot: Arc<Snapshot>,
    /// `file:line` of each resource, by kind and name.
    sources: Vec<Origin>,
}

#[derive(Serialize)]
struct Origin {
    kind: towpath_policies::model::ResourceKind,
    name: String,
    source: String,
}

async fn snapshot(State(admin): State<Admin>, Query(wanted): Query<Wanted>) -> Json<Dump> {
    let Wanted { node, cluster, sidecar } = wanted;
    let asks = Node { id: node.clone(), cluster: cluster.clone(), sidecar };
    let snapshot = admin.hub.view(&asks);
    let origin = |(key, source): (&towpath_policies::model::ResourceKey, &_)| Origin {
        kind: key.kind,
        name: key.name.clone(),
        source: towpath_policies::model::Source::to_string(source),
    };
    let sources = snapshot.sources.iter().map(origin).collect();
    Json(Dump { node, cluster, snapshot, sources })
}

/// Turns away what a browser sends for a foreign page: a name that was made to
/// point here (DNS rebinding), or a form posted across origins.
async fn refuse_strangers(State(own): State<IpAddr>, request: Request, next: Next) -> Response {
    match check_origin(own, request.uri().host(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(why) => (StatusCode::FORBIDDEN, why).into_response(),
    }
}

fn check_origin(own: IpAddr, authority: Option<&str>, headers: &HeaderMap) -> Result<(), String> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = authority.or(text(header::HOST));
    let Some(host) = host else { return Err("no Host header\n".to_owned()) };
    if !is_own(own, host) {
        return Err(format!(
            "Host {:?} is not this machine's loopback; ask for http://127.0.0.1:PORT or http://localhost:PORT\n",
            host
        ));
    }
    let Some(origin) = text(header::ORIGIN) else { return Ok(()) };
    let host = origin.split_once("://").map_or("", |(_, host)| host);
    if is_own(own, host) {
        Ok(())
    } else {
        Err("requests of other origins are refused\n".to_owned())
    }
}

/// Whether `host[:port]` is loopback, or the address that was bound on purpose.
fn is_own(own: IpAddr, host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    // A literal address cannot be rebound.
    name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip == own || own.is_unspecified())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn allowed(own: IpAddr, host: Option<&str>, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
            if let Some(value) = value {
                headers.insert(name, value.parse().unwrap());
            }
        }
        check_origin(own, None, &headers).is_ok()
    }

    #[test]
    fn only_this_machine_is_asked_for() {
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        for host in ["127.0.0.1:1", "localhost", "LOCALHOST:80", "[::1]:1", "127.1.2.3"] {
            assert!(allowed(loopback, Some(host), None), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example:80", "10.0.0.1", "", "[::2]", "[", ":1"]
        {
            assert!(!allowed(loopback, Some(host), None), "{host}");
        }
        assert!(!allowed(loopback, None, None));
    }

    #[test]
    fn an_address_bound_on_purpose_may_be_asked_for() {
        let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        let pod = IpAddr::from([10, 1, 2, 3]);
        assert!(allowed(any, Some("10.1.2.3:9"), None) && allowed(pod, Some("10.1.2.3:9"), None));
        assert!(!allowed(any, Some("pod.example:9"), None));
        assert!(!allowed(pod, Some("10.1.2.4:9"), None));
    }

    #[test]
    fn foreign_pages_cannot_post() {
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let host = Some("127.0.0.1:1");
        assert!(allowed(loopback, host, Some("http://localhost:1")));
        assert!(!allowed(loopback, host, Some("https://evil.example")));
        assert!(!allowed(loopback, host, Some("null")));
    }
}
