//! Active health checks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towpath_policies::model::*;
use towpath_proxy::Running;

use crate::support::*;

fn checked(protocol: Protocol, probe: HealthProbe) -> Service {
    let mut service = Service::new("s", protocol);
    service.health_check = Some(HealthCheck {
        probe,
        interval: Duration::from_millis(10),
        timeout: Duration::from_secs(5),
        unhealthy_threshold: 2,
        healthy_threshold: 2,
    });
    service
}

/// Waits until probes say so of the `n`th endpoint.
async fn becomes(proxy: &Running, n: usize, healthy: bool) {
    eventually("the verdict", || async {
        let endpoints = admin_json(proxy, "/endpoints").await;
        (endpoints["s"]["endpoints"][n]["healthy"] == healthy).then_some(())
    })
    .await;
}

/// Answers 200 or 503 over HTTP/1.1 to requests for `/healthz` at host `s`.
async fn web(healthy: Arc<AtomicBool>) -> Origin {
    origin(move |mut tcp| {
        let healthy = healthy.clone();
        async move {
            let mut request = vec![0; 1024];
            let n = tcp.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..n]).to_lowercase();
            let asked =
                request.starts_with("get /healthz http/1.1") && request.contains("host: s\r\n");
            let status = if asked && healthy.load(Ordering::SeqCst) { 200 } else { 503 };
            let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
            let _ = tcp.write_all(answer.as_bytes()).await;
        }
    })
    .await
}

#[tokio::test]
async fn an_http_probe_takes_an_endpoint_out_and_brings_it_back() {
    let healthy = Arc::new(AtomicBool::new(true));
    let (sick, well) = (web(healthy.clone()).await, web(Arc::new(AtomicBool::new(true))).await);
    let probe = HealthProbe::Http { path: "/healthz".into(), host: None };
    let at = [sick.address, well.address];
    let world = World::default().service_with(checked(Protocol::Http1, probe), &at);
    let proxy = proxy_with(world).await;
    eventually("a few probes", || async { (sick.accepted() > 2).then_some(()) }).await;
    becomes(&proxy, 0, true).await;
    healthy.store(false, Ordering::SeqCst);
    becomes(&proxy, 0, false).await;
    becomes(&proxy, 1, true).await;
    healthy.store(true, Ordering::SeqCst);
    becomes(&proxy, 0, true).await;
}

#[tokio::test]
async fn a_tcp_probe_sees_who_listens_and_a_check_that_is_removed_is_forgotten() {
    let alive = echo().await;
    let at = [alive.address, dead().await];
    let world = World::default().service_with(checked(Protocol::Tcp, HealthProbe::Tcp), &at);
    let proxy = proxy_with(world).await;
    becomes(&proxy, 1, false).await;
    becomes(&proxy, 0, true).await;
    let unchecked = World::default().service("s", Protocol::Tcp, &at);
    proxy.apply(unchecked.build("v2")).unwrap();
    becomes(&proxy, 1, true).await;
}

/// Answers `grpc.health.v1` over HTTP/2 with a serving status.
async fn grpc(status: u8) -> Origin {
    origin(move |tcp| async move {
        let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            let response = http::Response::builder()
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            let mut stream = respond.send_response(response, false).unwrap();
            let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
            stream.send_data(message, false).unwrap();
            let trailers = [("grpc-status", "0")].map(|(n, v)| {
                (http::HeaderName::from_static(n), http::HeaderValue::from_static(v))
            });
            stream.send_trailers(trailers.into_iter().collect()).unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn a_grpc_probe_asks_for_the_serving_status() {
    const SERVING: u8 = 1;
    const NOT_SERVING: u8 = 2;
    let (well, sick) = (grpc(SERVING).await, grpc(NOT_SERVING).await);
    let probe = HealthProbe::Grpc { service: "etl".into() };
    let at = [well.address, sick.address];
    let world = World::default().service_with(checked(Protocol::Http2, probe), &at);
    let proxy = proxy_with(world).await;
    becomes(&proxy, 1, false).await;
    becomes(&proxy, 0, true).await;
    assert!(well.accepted() > 0);
}
