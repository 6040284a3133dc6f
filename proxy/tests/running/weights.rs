//! Turns by what endpoints report, in the answers to requests and on streams of their own.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::io::AsyncWriteExt;
use towpath_policies::model::*;
use towpath_proxy::Running;
use towpath_xds::orca::LoadReport;

use crate::support::*;

/// An application that always reports this.
async fn reporting(report: &'static str) -> (Origin, Arc<AtomicUsize>) {
    let served = Arc::<AtomicUsize>::default();
    let count = served.clone();
    let origin = origin(move |mut tcp| {
        let count = count.clone();
        async move {
            while let Some(head) = head(&mut tcp).await {
                count.fetch_add(1, SeqCst);
                let asked = head.to_lowercase().contains("endpoint-load-metrics-format: text");
                let report = match asked {
                    true => format!("endpoint-load-metrics: TEXT {report}\r\n"),
                    false => String::new(),
                };
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{report}\r\n");
                if tcp.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, served)
}

fn by_weights(name: &str, protocol: Protocol) -> Service {
    let mut service = Service::new(name, protocol);
    service.balancer = Balancer::WeightedRoundRobin;
    service.weighing.blackout = Duration::ZERO;
    service.weighing.update_period = Duration::from_millis(100);
    service
}

/// What an endpoint has reported that it can do.
async fn capacity(gateway: &Running, service: &str, at: SocketAddr) -> Option<f64> {
    let all = admin_json(gateway, "/endpoints").await;
    let endpoints = all[service]["endpoints"].as_array().unwrap();
    let endpoint = endpoints.iter().find(|e| e["address"] == at.to_string()).unwrap();
    endpoint["reported_capacity"].as_f64()
}

#[tokio::test]
async fn endpoints_get_as_much_as_they_report_that_they_can_do() {
    // A half of it at 30 a second, a half at 10.
    let (strong, most) = reporting("rps_fractional=30, application_utilization=0.5").await;
    let (weak, least) = reporting("rps_fractional=10, cpu_utilization=0.5").await;
    let at = [strong.address, weak.address];
    let world = World::default().service_with(by_weights("weights", Protocol::Http1), &at);
    let gateway = proxy_with(world.http("edge", "weights")).await;
    let mut client = connect(&gateway, "edge").await;
    let shares = eventually("turns by weight", async || {
        let before = [most.load(SeqCst), least.load(SeqCst)];
        for _ in 0..40 {
            let (head, _) = get(&mut client, "/").await;
            assert!(!head.contains("endpoint-load"), "{head}");
        }
        let shares = [most.load(SeqCst) - before[0], least.load(SeqCst) - before[1]];
        shares[0].abs_diff(30).le(&1).then_some(shares)
    })
    .await;
    assert_eq!(shares[0] + shares[1], 40);
    assert_eq!(capacity(&gateway, "weights", strong.address).await, Some(60.0));
    assert_eq!(capacity(&gateway, "weights", weak.address).await, Some(20.0));
}

/// What an application of gRPC was asked.
#[derive(Debug, Default)]
struct Asked {
    streams: AtomicUsize,
    calls: AtomicUsize,
    /// Calls that wanted a report with their answer.
    in_band: AtomicUsize,
    intervals: Mutex<Vec<Option<Duration>>>,
}

/// An application of gRPC that reports this out of band, each time it may; or that cannot.
async fn streaming(report: Option<LoadReport>) -> (Origin, Arc<Asked>) {
    let asked = Arc::<Asked>::default();
    let seen = asked.clone();
    let origin = origin(move |tcp| {
        let (report, seen) = (report.clone(), seen.clone());
        async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer(request, respond, report.clone(), seen.clone()));
            }
        }
    })
    .await;
    (origin, asked)
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<bytes::Bytes>,
    report: Option<LoadReport>,
    seen: Arc<Asked>,
) {
    let head = http::Response::builder().header("content-type", "application/grpc");
    let streams = request.uri().path().ends_with("OpenRcaService/StreamCoreMetrics");
    let Some(report) = report.filter(|_| streams) else {
        let status = if streams { "12" } else { "0" };
        let count = if streams { &seen.streams } else { &seen.calls };
        count.fetch_add(1, SeqCst);
        let wants = request.headers().contains_key("endpoint-load-metrics-format");
        seen.in_band.fetch_add(usize::from(wants), SeqCst);
        let head = head.header("grpc-status", status).body(()).unwrap();
        respond.send_response(head, true).unwrap();
        return;
    };
    seen.streams.fetch_add(1, SeqCst);
    let message = request.into_body().data().await.unwrap().unwrap();
    let interval = towpath_xds::orca::report_interval(&message[5..]);
    seen.intervals.lock().unwrap().push(interval);
    let mut send = respond.send_response(head.body(()).unwrap(), false).unwrap();
    let bytes = report.to_bytes();
    let message = [&[0][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), &bytes].concat();
    let every = interval.unwrap();
    while send.send_data(message.clone().into(), false).is_ok() {
        tokio::time::sleep(every).await;
    }
}

fn at_half(requests_per_second: f64) -> LoadReport {
    LoadReport {
        rps_fractional: requests_per_second,
        application_utilization: 0.5,
        ..LoadReport::default()
    }
}

async fn call(client: &mut h2::client::SendRequest<bytes::Bytes>) {
    let request = http::Request::post("http://a.test/etl.Rows/Get")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let mut ready = client.clone().ready().await.unwrap();
    let (answer, _) = ready.send_request(request.body(()).unwrap(), true).unwrap();
    assert_eq!(answer.await.unwrap().headers()["grpc-status"], "0");
}

#[tokio::test]
async fn reports_come_out_of_band_and_requests_ask_only_where_one_does_not_stream() {
    let ((strong, most), (weak, least)) =
        (streaming(Some(at_half(30.0))).await, streaming(Some(at_half(10.0))).await);
    let (mute, cannot) = streaming(None).await;
    let at = [strong.address, weak.address, mute.address];
    let mut service = by_weights("streams", Protocol::Http2);
    service.out_of_band = Some(Duration::from_millis(100));
    // A stream has no part in what is left for requests.
    service.breaker.endpoint.max_connections = Some(1);
    let world = World::default().service_with(service, &at).http("edge", "streams");
    let gateway = proxy_with(world.clone()).await;
    let tcp = connect(&gateway, "edge").await;
    let (mut client, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    // The mean is for the one that does not report: 30 of 90.
    eventually("turns by weight", async || {
        let all = [&most, &least, &cannot].map(|asked| asked.calls.load(SeqCst));
        for _ in 0..90 {
            call(&mut client).await;
        }
        let now = [&most, &least, &cannot].map(|asked| asked.calls.load(SeqCst));
        let shares = [now[0] - all[0], now[1] - all[1], now[2] - all[2]];
        let near = |share: usize, expected| share.abs_diff(expected) <= 2;
        (near(shares[0], 45) && near(shares[1], 15) && near(shares[2], 30)).then_some(())
    })
    .await;
    eventually("the one that does not stream is asked", async || {
        call(&mut client).await;
        (cannot.in_band.load(SeqCst) > 0).then_some(())
    })
    .await;
    assert_eq!(most.intervals.lock().unwrap()[..], [Some(Duration::from_millis(100))]);
    assert_eq!(capacity(&gateway, "streams", mute.address).await, None);

    // Other configuration leaves the streams as they are. One that cannot is not asked again, however long
    // the others go on: two seconds' reports, of which a pause would have been one.
    gateway.apply(world.clone().http("other", "streams").build("v2")).unwrap();
    let heard = async || {
        let (_, metrics) = admin(&gateway, "GET", "/metrics").await;
        let of = |endpoint: SocketAddr| {
            let line = metrics.lines().find(|line| {
                line.starts_with("towpath_out_of_band_reports_total")
                    && line.contains(&endpoint.to_string())
            });
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
        };
        at.map(of)
    };
    let before = heard().await;
    eventually("more reports", async || (heard().await[0] > before[0] + 20.0).then_some(())).await;
    assert_eq!(heard().await[2], 0.0);
    let streams = [&most, &least, &cannot].map(|asked| asked.streams.load(SeqCst));
    assert_eq!(streams, [1, 1, 1]);

    // A policy that no longer asks ends them.
    let service = by_weights("streams", Protocol::Http2);
    gateway
        .apply(World::default().service_with(service, &at).http("edge", "streams").build("v3"))
        .unwrap();
    let asked = most.in_band.load(SeqCst);
    eventually("requests ask", async || {
        call(&mut client).await;
        (most.in_band.load(SeqCst) > asked).then_some(())
    })
    .await;
    let before = heard().await;
    eventually("weights expire or not, but nothing is heard", async || {
        call(&mut client).await;
        (most.in_band.load(SeqCst) > asked + 5).then_some(())
    })
    .await;
    assert_eq!(heard().await, before);
}

#[tokio::test]
async fn a_stream_that_breaks_is_asked_for_again() {
    let streams = Arc::<AtomicUsize>::default();
    let count = streams.clone();
    // Nobody speaks HTTP/2 here at first.
    let origin = origin(move |tcp| {
        let first = count.fetch_add(1, SeqCst) == 0;
        async move {
            if first {
                return;
            }
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                let report = Some(at_half(40.0));
                tokio::spawn(answer(request, respond, report, Arc::default()));
            }
        }
    })
    .await;
    let mut service = by_weights("again", Protocol::Http1);
    service.out_of_band = Some(Duration::from_millis(100));
    let world = World::default().service_with(service, &[origin.address]);
    let gateway = proxy_with(world.http("edge", "again")).await;
    let heard = eventually("a report", async || capacity(&gateway, "again", origin.address).await);
    assert_eq!(heard.await, 80.0);
    assert_eq!(streams.load(SeqCst), 2);
}
