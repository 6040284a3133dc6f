//! The admin endpoint: what the proxy does, and the few things it can be told.
//!
//! It has no authentication, so it belongs on loopback. Names that resolve to
//! loopback are no way in: a foreign `Host` is refused (DNS rebinding), and so
//! is a change that another site's page asks for.

mod views;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{Query, Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpListener;
use towpath_policies::model::Class;

use crate::{control::Control, logging, metrics::registry, upstream::completion::explain::Whence};

#[derive(Clone)]
struct Admin {
    control: Arc<Control>,
    loopback: bool,
}

/// Serves the admin endpoint for as long as the proxy runs, or until another process does.
pub(crate) async fn serve(listener: TcpListener, control: Arc<Control>) {
    let loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    if !loopback {
        tracing::warn!(
            "the admin endpoint can be reached from other machines and has no authentication"
        );
    }
    let handed_over = control.handed_over.watch();
    let app = app(Admin { control, loopback });
    tokio::select! {
        ended = axum::serve(listener, app) => if let Err(error) = ended {
            tracing::error!(%error, "the admin endpoint ended");
        },
        () = handed_over.drained() => {}
    }
}

fn app(admin: Admin) -> Router {
    Router::new()
        .route("/", get(|| async { HELP }))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/config_dump", get(config_dump))
        .route("/listeners", get(listeners))
        .route("/endpoints", get(endpoints))
        .route("/explain", get(explain))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/log_level", post(log_level))
        .route("/drain", get(under_way).post(drain))
        .fallback(|| async { (StatusCode::NOT_FOUND, HELP) })
        .layer(middleware::from_fn_with_state(admin.clone(), guard))
        .with_state(admin)
}

const HELP: &str = "\
towpath proxy, admin endpoint
  GET  /live                      200 while the process runs
  GET  /ready                     200 when a configuration is in force and the proxy does not drain, else 503
  GET  /config_dump               the configuration in force, its version and where it comes from (JSON)
  GET  /listeners                 listeners, their addresses and open connections (JSON)
  GET  /endpoints                 endpoints and their state (JSON)
  GET  /explain?service=S         when each endpoint would complete a request, and why (JSON);
                                  optional: &size=BYTES, &class=interactive, bulk or background, and where its data
                                  comes from: &origin=LATITUDE,LONGITUDE or a region, &registered=NAME of a tenant
                                  or device, or &client=ADDRESS
  GET  /health                    how well this machine's GPUs are, and why (JSON)
  GET  /metrics                   Prometheus text
  POST /log_level?level=LEVEL     error, warn, info, debug, trace, or per module: info,h2=debug
  GET  /drain                     whether the proxy drains, and what is under way (JSON)
  POST /drain                     finish what runs, take nothing new, then stop
";

async fn guard(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    if admin.loopback
        && let Err(reason) = allowed(request.method(), request.headers(), request.uri())
    {
        return (StatusCode::FORBIDDEN, reason).into_response();
    }
    next.run(request).await
}

/// Whether a request can come from someone who meant this endpoint.
fn allowed(method: &Method, headers: &HeaderMap, uri: &Uri) -> Result<(), &'static str> {
    let text = |name: header::HeaderName| headers.get(name).map(header::HeaderValue::to_str);
    let host = match (uri.authority(), text(header::HOST)) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(Ok(host))) => host,
        (None, None) => return Err("a Host header is needed\n"),
        (None, Some(Err(_))) => return Err("the Host header is malformed\n"),
    };
    if !is_local(host) {
        return Err(
            "reach the admin endpoint by its address or as localhost, not by another name\n",
        );
    }
    if method != Method::GET && method != Method::HEAD {
        let foreign = match text(header::ORIGIN) {
            None => false,
            // Another port or another machine's address is another site.
            Some(Ok(origin)) => {
                let from = origin.split_once("://").map(|(_, from)| from);
                !from.is_some_and(|from| from.eq_ignore_ascii_case(host))
            }
            Some(Err(_)) => true,
        };
        let site = headers.get("sec-fetch-site");
        if foreign || site.is_some_and(|site| site == "cross-site") {
            return Err("changes asked for by another site's page are refused\n");
        }
    }
    Ok(())
}

/// An IP address or `localhost`, with or without a port.
fn is_local(host: &str) -> bool {
    if host.parse::<SocketAddr>().is_ok() {
        return true;
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<std::net::IpAddr>().is_ok()
}

async fn ready(State(admin): State<Admin>) -> Response {
    let why_not = if admin.control.drain.fired() {
        "draining\n"
    } else if admin.control.view().applied.is_none() {
        "no configuration yet\n"
    } else {
        return "ready\n".into_response();
    };
    (StatusCode::SERVICE_UNAVAILABLE, why_not).into_response()
}

async fn config_dump(State(admin): State<Admin>) -> Json<Value> {
    Json(views::config_dump(&admin.control))
}

async fn listeners(State(admin): State<Admin>) -> Json<Value> {
    Json(views::listeners(&admin.control))
}

async fn endpoints(State(admin): State<Admin>) -> Json<Value> {
    Json(views::endpoints(&admin.control))
}

async fn health(State(admin): State<Admin>) -> Json<Value> {
    let gpu = admin.control.gpus.seen().map(|seen| seen.json());
    Json(serde_json::json!({ "gpu": gpu }))
}

async fn metrics(State(admin): State<Admin>) -> Response {
    views::measure(&admin.control);
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, registry().render()).into_response()
}

#[derive(Deserialize)]
struct Question {
    service: String,
    origin: Option<String>,
    registered: Option<String>,
    client: Option<IpAddr>,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    class: Class,
}

async fn explain(State(admin): State<Admin>, Query(question): Query<Question>) -> Response {
    let Question { service: name, origin, registered, client, size, class } = question;
    let whence = match (origin, registered, client) {
        (Some(origin), None, None) => Whence::Origin(origin),
        (None, Some(name), None) => Whence::Registered(name),
        (None, None, Some(address)) => Whence::Client(address),
        (None, None, None) => Whence::Here,
        _ => {
            let text = "only one of origin, registered and client may be given\n";
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
    };
    let view = admin.control.view();
    let Some(service) = view.services.get(&name) else {
        let known = view.services.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let text = format!("there is no service {name}; there are: {known}\n");
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    match service.explain(&whence, size, class) {
        Ok(explanation) => Json(explanation).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{name}: {error}\n")).into_response(),
    }
}

#[derive(Deserialize)]
struct Level {
    level: String,
}

async fn log_level(Query(Level { level }): Query<Level>) -> Response {
    match logging::set_level(&level) {
        Ok(()) => {
            tracing::info!(level, "log level changed");
            format!("log level: {level}\n").into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}\n")).into_response(),
    }
}

async fn drain(State(admin): State<Admin>) -> Json<views::Drain> {
    admin.control.begin_drain();
    Json(views::drain(&admin.control))
}

async fn under_way(State(admin): State<Admin>) -> Json<views::Drain> {
    Json(views::drain(&admin.control))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_meant_for_this_endpoint_are_answered() {
        for (host, origin, get, post) in [
            (Some("127.0.0.1:9901"), None, true, true),
            (Some("[::1]:9901"), None, true, true),
            (Some("[::1]"), None, true, true),
            (Some("localhost"), None, true, true),
            (Some("LOCALHOST:1"), None, true, true),
            (Some("evil.example:9901"), None, false, false),
            (Some("127.0.0.1.evil.example"), None, false, false),
            (Some("localhost.evil.example"), None, false, false),
            (Some(""), None, false, false),
            (None, None, false, false),
            (Some("127.0.0.1:9901"), Some("http://evil.example"), true, false),
            (Some("127.0.0.1:9901"), Some("null"), true, false),
            (Some("127.0.0.1:9901"), Some("http://10.0.0.1:9901"), true, false),
            (Some("127.0.0.1:9901"), Some("http://127.0.0.1:8080"), true, false),
            (Some("localhost:9901"), Some("http://LOCALHOST:9901"), true, true),
            (Some("127.0.0.1:9901"), Some("http://127.0.0.1:9901"), true, true),
        ] {
            let mut headers = HeaderMap::new();
            host.map(|host| headers.insert(header::HOST, host.parse().unwrap()));
            origin.map(|origin| headers.insert(header::ORIGIN, origin.parse().unwrap()));
            let uri = Uri::from_static("/drain");
            let told = [Method::GET, Method::POST].map(|m| allowed(&m, &headers, &uri).is_ok());
            assert_eq!(told, [get, post], "{host:?} {origin:?}");
        }
    }
}
