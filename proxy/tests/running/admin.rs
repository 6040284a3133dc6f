//! The admin endpoint.

use towpath_policies::model::*;

use crate::support::*;

#[tokio::test]
async fn readiness_follows_the_configuration_and_the_drain() {
    let proxy = proxy().await;
    assert_eq!(admin(&proxy, "GET", "/live").await.0, 200);
    assert_eq!(admin(&proxy, "GET", "/ready").await.0, 503);
    proxy.apply(World::default().build("v1")).unwrap();
    assert_eq!(admin(&proxy, "GET", "/ready").await.0, 200);
    let (status, body) = admin(&proxy, "POST", "/drain").await;
    let told: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &told["draining"], &told["connections"]), (200, &true.into(), &0.into()));
    assert_eq!(admin(&proxy, "GET", "/ready").await, (503, "draining\n".into()));
    assert_eq!(admin(&proxy, "GET", "/live").await.0, 200);
}

#[tokio::test]
async fn what_is_in_force_can_be_looked_at() {
    let world = World::default().service("etl", Protocol::Tcp, &[local(9)]).tcp("seen", "etl");
    let proxy = proxy_with(world).await;
    let dump = admin_json(&proxy, "/config_dump").await;
    assert_eq!(dump["version"], "v1");
    assert_eq!(dump["source"]["kind"], "manual");
    assert_eq!(dump["snapshot"]["services"]["etl"]["name"], "etl");
    let listeners = admin_json(&proxy, "/listeners").await;
    assert_eq!(listeners[0]["name"], "seen");
    assert_eq!(listeners[0]["address"], proxy.listener_addrs()["seen"].to_string());
    let endpoints = admin_json(&proxy, "/endpoints").await;
    let endpoint = &endpoints["etl"]["endpoints"][0];
    assert_eq!(endpoint["address"], "127.0.0.1:9");
    assert_eq!((&endpoint["healthy"], &endpoint["ejected"]), (&true.into(), &false.into()));
    let (_, metrics) = admin(&proxy, "GET", "/metrics").await;
    for line in [
        "# TYPE towpath_bytes_in_flight gauge",
        r#"towpath_bytes_in_flight{service="etl"} 0"#,
        r#"towpath_connections{listener="seen"} 0"#,
        r#"towpath_endpoint_usable{service="etl",endpoint="127.0.0.1:9"} 1"#,
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} not in\n{metrics}");
    }
    assert!(admin(&proxy, "GET", "/").await.1.contains("GET  /endpoints"));
    assert_eq!(admin(&proxy, "GET", "/nothing").await.0, 404);
}

#[tokio::test]
async fn changes_need_post_and_a_local_host_name() {
    let proxy = proxy_with(World::default()).await;
    assert_eq!(admin(&proxy, "GET", "/log_level?level=info").await.0, 405);
    assert_eq!(admin(&proxy, "POST", "/log_level?level=nonsense,,=").await.0, 400);
    assert_eq!(admin(&proxy, "POST", "/log_level").await.0, 400);
    for (head, expected) in [
        ("GET /ready HTTP/1.1\r\nhost: evil.example\r\n", 403),
        ("GET /ready HTTP/1.1\r\nhost: localhost:1\r\n", 200),
        ("POST /drain HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example\r\n", 403),
    ] {
        let request = format!("{head}connection: close\r\n\r\n");
        assert_eq!(ask(proxy.admin_addr(), &request).await.0, expected, "{head}");
    }
    assert_eq!(admin(&proxy, "GET", "/ready").await.0, 200, "nothing was drained");
}

#[tokio::test]
async fn a_limit_that_adapts_is_shown() {
    let mut service = Service::new("adapts", Protocol::Http1);
    let terms = AdaptiveConcurrency { max_requests: 7, ..AdaptiveConcurrency::default() };
    service.admission.adaptive_concurrency = Some(terms);
    let world = World::default().service_with(service, &[local(1)]).http("in", "adapts");
    let proxy = proxy_with(world).await;
    let services = admin_json(&proxy, "/endpoints").await;
    let concurrency = &services["adapts"]["endpoints"][0]["concurrency"];
    assert_eq!((&concurrency["limit"], &concurrency["awaiting_head"]), (&7.into(), &0.into()));
    let (_, metrics) = admin(&proxy, "GET", "/metrics").await;
    let gauge = |line: &str| {
        line.starts_with("towpath_endpoint_concurrency_limit{")
            && line.contains("adapts")
            && line.ends_with("} 7")
    };
    assert!(metrics.lines().any(gauge), "{metrics}");
}
