//! Load reports between a gateway that predicts and the sidecars of its endpoints.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use towpath_policies::model::*;
use towpath_proxy::{Cards, Config, Counters, Running, SourceConfig};
use towpath_xds::orca::LoadReport;

use crate::support::*;

/// An application that says a part of its report when asked, as vLLM does.
struct App {
    origin: Origin,
    served: Arc<AtomicUsize>,
    broken: Arc<AtomicBool>,
}

async fn app(name: &'static str) -> App {
    let (served, broken) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let (count, is_broken) = (served.clone(), broken.clone());
    let origin = origin(move |mut tcp| {
        let (count, is_broken) = (count.clone(), is_broken.clone());
        async move {
            while let Some(head) = head(&mut tcp).await {
                count.fetch_add(1, SeqCst);
                let factor = if is_broken.load(SeqCst) { 0 } else { 1 };
                let report = format!(
                    "endpoint-load-metrics: JSON {{\"named_metrics\": {{\"kv_cache_usage_perc\": 0.5, \
                     \"towpath.goodput_factor\": {factor}}}}}\r\n"
                );
                let asked = head.to_lowercase().contains("endpoint-load-metrics-");
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{}\r\n{name}",
                    name.len(),
                    if asked { &report } else { "" },
                );
                if tcp.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    App { origin, served, broken }
}

impl App {
    fn served(&self) -> usize {
        self.served.load(SeqCst)
    }
}

/// A sidecar before this application.
async fn sidecar(name: &str, app: &App) -> Running {
    sidecar_with(Config::new(SourceConfig::Manual), name, app).await
}

async fn sidecar_with(config: Config, name: &str, app: &App) -> Running {
    let service = format!("inbound/{name}");
    let mut endpoint = Endpoint::new(app.origin.address);
    endpoint.slots = Some(4);
    let options = HttpOptions { reports_load: true, ..HttpOptions::default() };
    let kind = ChainKind::Http { route_table: service.clone(), options };
    let chain = Chain::new(vec![], None, kind);
    let world = World::default()
        .service_of(Service::new(&service, Protocol::Follow), vec![endpoint])
        .routes(&service, &service)
        .listener("in", vec![chain]);
    let sidecar = towpath_proxy::start(config).await.unwrap();
    sidecar.apply(world.build("v1")).unwrap();
    sidecar
}

/// A gateway before these endpoints of a service of its own name.
async fn gateway(service: &str, protocol: Protocol, endpoints: &[SocketAddr]) -> Running {
    let gateway = proxy().await;
    lead_to(&gateway, service, protocol, endpoints);
    gateway
}

fn lead_to(gateway: &Running, name: &str, protocol: Protocol, endpoints: &[SocketAddr]) {
    let mut service = Service::new(name, protocol);
    service.balancer = Balancer::CompletionTime;
    let world = World::default().service_with(service, endpoints).http("edge", name);
    gateway.apply(world.build(&endpoints.len().to_string())).unwrap();
}

/// Where a sidecar is reached.
fn inbound(sidecar: &Running) -> SocketAddr {
    sidecar.listener_addrs()["in"]
}

/// What the gateway makes of the reports of this endpoint.
async fn health(gateway: &Running, service: &str, endpoint: SocketAddr) -> f64 {
    let explanation = admin_json(gateway, &format!("/explain?service={service}")).await;
    let rows = explanation["endpoints"].as_array().unwrap();
    let row = rows.iter().find(|row| row["address"] == endpoint.to_string()).unwrap();
    row["health"].as_f64().unwrap()
}

#[tokio::test]
async fn an_endpoint_whose_application_reports_a_fault_gets_no_more_and_no_client_sees_it() {
    let (one, other) = (app("one").await, app("other").await);
    let sidecars = [sidecar("reports-one", &one).await, sidecar("reports-other", &other).await];
    let at = [inbound(&sidecars[0]), inbound(&sidecars[1])];
    let gateway = gateway("reports", Protocol::Http1, &at[..1]).await;
    let mut client = connect(&gateway, "edge").await;
    let mut ask = async || {
        let (head, _) = get(&mut client, "/").await;
        assert!(!head.contains("endpoint-load"), "{head}");
    };
    ask().await;
    one.broken.store(true, SeqCst);
    eventually("the fault is known", async || {
        ask().await;
        (health(&gateway, "reports", at[0]).await < 0.01).then_some(())
    })
    .await;
    let (_, page) = admin(&gateway, "GET", "/metrics").await;
    let health = ["service=\"reports\"", "term=\"health\""];
    let slower = metric(&page, "towpath_endpoint_predicted_seconds", &health).unwrap();
    assert!(slower > 0.01, "a hundred times a small request's 100 µs at least: {slower}");
    lead_to(&gateway, "reports", Protocol::Http1, &at);
    let before = one.served();
    for _ in 0..20 {
        ask().await;
    }
    assert_eq!((one.served(), other.served()), (before, 20));
}

async fn asked(proxy: &Running, format: &str) -> String {
    let mut tcp: TcpStream = connect(proxy, "in").await;
    let format = match format {
        "" => String::new(),
        _ => format!("endpoint-load-metrics-format: {format}\r\n"),
    };
    tcp.write_all(format!("GET / HTTP/1.1\r\nhost: a\r\n{format}\r\n").as_bytes()).await.unwrap();
    let head = head(&mut tcp).await.unwrap();
    let report = head.lines().find_map(|line| line.strip_prefix("endpoint-load-metrics: "));
    report.unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_sidecar_adds_to_what_the_application_reports_in_the_format_asked_for() {
    let app = app("app").await;
    let sidecar = sidecar("formats", &app).await;
    assert_eq!(asked(&sidecar, "").await, "", "nobody asked");
    let text = asked(&sidecar, "text").await;
    let report = text.strip_prefix("TEXT ").expect(&text);
    for part in [
        "named_metrics.kv_cache_usage_perc=0.5",
        "named_metrics.towpath.goodput_factor=1",
        "named_metrics.towpath.requests_in_flight=1",
        "named_metrics.towpath.bytes_in_flight=",
        // No second has passed by which to say how busy they are, but that there are slots.
        "application_utilization=0.000001",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    let json = asked(&sidecar, "JSON").await;
    let json: serde_json::Value =
        serde_json::from_str(json.strip_prefix("JSON ").expect(&json)).unwrap();
    assert_eq!(json["named_metrics"]["kv_cache_usage_perc"], 0.5);
    assert_eq!(json["named_metrics"]["towpath.requests_in_flight"], 1.0);
    let binary = asked(&sidecar, "bin").await;
    assert!(binary.starts_with("BIN "), "{binary}");
    // Once asked for, the machine is looked at.
    eventually("the machine's memory", async || {
        asked(&sidecar, "text").await.contains("mem_utilization=0.").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_client_that_asks_is_told_in_its_own_words() {
    let app = app("app").await;
    let sidecar = sidecar("through", &app).await;
    let gateway = gateway("through", Protocol::Http1, &[inbound(&sidecar)]).await;
    let mut tcp = connect(&gateway, "edge").await;
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nendpoint-load-metrics-format: json\r\n\r\n")
        .await
        .unwrap();
    let head = head(&mut tcp).await.unwrap();
    assert!(head.contains("endpoint-load-metrics: JSON {"), "{head}");
}

#[tokio::test]
async fn a_gateway_does_not_pass_on_the_health_of_one_endpoint_as_its_own() {
    for (nth, balancer) in
        [Balancer::BytesInFlight, Balancer::CompletionTime].into_iter().enumerate()
    {
        let app = app("app").await;
        app.broken.store(true, SeqCst);
        let name = format!("passed-on-{nth}");
        let service = Service { balancer, ..Service::new(&name, Protocol::Http1) };
        let world = World::default().service_with(service, &[app.origin.address]);
        let gateway = proxy_with(world.http("edge", &name)).await;
        for format in ["format: text", "format: json", "unasked: 1"] {
            let mut tcp = connect(&gateway, "edge").await;
            let request =
                format!("GET / HTTP/1.1\r\nhost: a\r\nendpoint-load-metrics-{format}\r\n\r\n");
            tcp.write_all(request.as_bytes()).await.unwrap();
            let head = head(&mut tcp).await.unwrap();
            let taken_out = format.starts_with("un") && balancer != Balancer::BytesInFlight;
            assert_eq!(!head.contains("kv_cache_usage_perc"), taken_out, "{balancer:?}: {head}");
            assert!(!head.contains("goodput_factor"), "{balancer:?}: {head}");
        }
        let calls = grpc_app().await;
        calls.broken.store(true, SeqCst);
        let name = format!("passed-calls-{nth}");
        let service = Service { balancer, ..Service::new(&name, Protocol::Http2) };
        let world = World::default().service_with(service, &[calls.origin.address]);
        let gateway = proxy_with(world.http("edge", &name)).await;
        let trailers = call(&mut grpc_client(&gateway, "edge").await, true).await;
        // All that it said was that.
        assert_eq!(trailers["endpoint-load-metrics-bin"], "", "{balancer:?}");
    }
}

/// A gRPC application that reports in its trailers, unasked, as gRPC's servers do.
async fn grpc_app() -> App {
    let (served, broken) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let (count, is_broken) = (served.clone(), broken.clone());
    let origin = origin(move |tcp| {
        let (count, is_broken) = (count.clone(), is_broken.clone());
        async move {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                count.fetch_add(1, SeqCst);
                // named_metrics {towpath.goodput_factor: 0}, or nothing.
                let report = match is_broken.load(SeqCst) {
                    true => "QiEKFnRvd3BhdGguZ29vZHB1dF9mYWN0b3IRAAAAAAAAAAA",
                    false => "",
                };
                let head = http::Response::builder()
                    .header("content-type", "application/grpc")
                    .body(())
                    .unwrap();
                let mut send = respond.send_response(head, false).unwrap();
                send.send_data(vec![0; 5].into(), false).unwrap();
                let trailers = [("grpc-status", "0"), ("endpoint-load-metrics-bin", report)];
                let trailers = trailers.map(|(name, value)| {
                    (name.parse().unwrap(), http::HeaderValue::from_static(value))
                });
                send.send_trailers(trailers.into_iter().collect()).unwrap();
            }
        }
    })
    .await;
    App { origin, served, broken }
}

/// The trailers of one call.
async fn call(client: &mut h2::client::SendRequest<bytes::Bytes>, asks: bool) -> http::HeaderMap {
    let mut request = http::Request::post("http://a.test/etl.Rows/Get")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if asks {
        request = request.header("endpoint-load-metrics-format", "bin");
    }
    let mut ready = client.clone().ready().await.unwrap();
    let (answer, _) = ready.send_request(request.body(()).unwrap(), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    while body.data().await.is_some() {}
    body.trailers().await.unwrap().unwrap()
}

async fn grpc_client(proxy: &Running, listener: &str) -> h2::client::SendRequest<bytes::Bytes> {
    let tcp = connect(proxy, listener).await;
    let (client, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn reports_in_the_trailers_of_calls_count_and_are_taken_out() {
    let (one, other) = (grpc_app().await, grpc_app().await);
    let at = [one.origin.address, other.origin.address];
    let gateway = gateway("calls", Protocol::Http2, &at[..1]).await;
    let mut client = grpc_client(&gateway, "edge").await;
    let mut ask = async || {
        let trailers = call(&mut client, false).await;
        assert_eq!(trailers["grpc-status"], "0");
        assert!(!trailers.contains_key("endpoint-load-metrics-bin"), "{trailers:?}");
    };
    ask().await;
    one.broken.store(true, SeqCst);
    eventually("the fault is known", async || {
        ask().await;
        (health(&gateway, "calls", at[0]).await < 0.01).then_some(())
    })
    .await;
    lead_to(&gateway, "calls", Protocol::Http2, &at);
    let before = one.served();
    for _ in 0..20 {
        ask().await;
    }
    assert_eq!((one.served(), other.served()), (before, 20));
}

#[tokio::test]
async fn a_sidecar_reports_in_the_trailers_of_calls() {
    let app = grpc_app().await;
    app.broken.store(true, SeqCst);
    let sidecar = sidecar("calls", &app).await;
    let mut client = grpc_client(&sidecar, "in").await;
    let unasked = call(&mut client, false).await;
    let alone = unasked["endpoint-load-metrics-bin"].to_str().unwrap().to_owned();
    let asked = call(&mut client, true).await;
    let both = asked["endpoint-load-metrics-bin"].to_str().unwrap();
    assert!(both.len() > alone.len() + 60, "{alone}: {both}");
}

/// A stream of reports, one each hour, or how it was refused.
async fn reports_of(
    client: &mut h2::client::SendRequest<bytes::Bytes>,
) -> Result<h2::RecvStream, http::HeaderMap> {
    let request =
        http::Request::post("http://a.test/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
    let mut ready = client.clone().ready().await.unwrap();
    let (answer, mut send) = ready.send_request(request.body(()).unwrap(), false).unwrap();
    // report_interval: 3600 s
    send.send_data(b"\0\0\0\0\x05\x0a\x03\x08\x90\x1c".to_vec().into(), true).unwrap();
    let answer = answer.await.unwrap();
    if answer.headers().contains_key("grpc-status") {
        return Err(answer.headers().clone());
    }
    let mut body = answer.into_body();
    body.data().await.unwrap().unwrap();
    Ok(body)
}

#[tokio::test]
async fn a_gateway_does_not_send_a_call_for_reports_on_to_some_endpoint() {
    let app = grpc_app().await;
    let sidecar = sidecar("kept", &app).await;
    let gateway = gateway("kept", Protocol::Http2, &[inbound(&sidecar)]).await;
    let refused = reports_of(&mut grpc_client(&gateway, "edge").await).await.unwrap_err();
    // UNIMPLEMENTED, so that nobody asks again.
    assert_eq!(refused["grpc-status"], "12");
    assert_eq!(refused["x-towpath-reason"], "reports_of_one");
    // The sidecar itself answers, and other calls pass.
    assert!(reports_of(&mut grpc_client(&sidecar, "in").await).await.is_ok());
    call(&mut grpc_client(&gateway, "edge").await, false).await;
    assert_eq!(app.served(), 1);
}

#[tokio::test]
async fn a_sidecar_streams_reports_to_so_many_and_no_more() {
    let app = grpc_app().await;
    let sidecar = sidecar("many-streams", &app).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut client = grpc_client(&sidecar, "in").await;
        for _ in 0..64 {
            streams.push(reports_of(&mut client).await.unwrap());
        }
    }
    let mut client = grpc_client(&sidecar, "in").await;
    let refused = reports_of(&mut client).await.unwrap_err();
    // RESOURCE_EXHAUSTED
    assert_eq!(refused["grpc-status"], "8");
    assert_eq!(refused["x-towpath-reason"], "reports_full");
    streams.pop();
    let _stream = eventually("a place is free", async || reports_of(&mut client).await.ok()).await;
}

#[tokio::test]
async fn a_sidecar_reports_out_of_band_until_it_drains() {
    let app = grpc_app().await;
    let sidecar = sidecar("stream", &app).await;
    let mut client = grpc_client(&sidecar, "in").await;
    let request =
        http::Request::post("http://a.test/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
    let (answer, mut send) = client.send_request(request.body(()).unwrap(), false).unwrap();
    // report_interval: 0.1 s
    send.send_data(b"\0\0\0\0\x07\x0a\x05\x10\x80\xc2\xd7\x2f".to_vec().into(), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    for _ in 0..2 {
        let message = body.data().await.unwrap().unwrap();
        let report = LoadReport::from_bytes(&message[5..]).unwrap();
        // This stream is none of the application's.
        assert_eq!(report.named_metrics["towpath.requests_in_flight"], 0.0);
    }
    assert_eq!(app.served(), 0);
    sidecar.drain();
    while body.data().await.is_some() {}
    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "14");
}

/// Copies a tree of files.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

#[tokio::test]
async fn an_endpoint_whose_gpu_is_gone_gets_no_more() {
    let trees = Path::new(env!("CARGO_MANIFEST_DIR")).join("gpu/testdata/sysfs");
    let tree = tempfile::tempdir().unwrap();
    copy(&trees.join("rx7900xtx"), tree.path());
    let (one, other) = (app("one").await, app("other").await);
    let mut config = Config::new(SourceConfig::Manual);
    config.gpu.cards = Cards::Sysfs(tree.path().to_owned());
    config.gpu.every = Duration::from_millis(10);
    let sidecars =
        [sidecar_with(config, "gpu-one", &one).await, sidecar("gpu-other", &other).await];
    let at = [inbound(&sidecars[0]), inbound(&sidecars[1])];
    let gateway = gateway("gpus", Protocol::Http1, &at[..1]).await;
    let mut client = connect(&gateway, "edge").await;
    let mut ask = async || {
        let (head, _) = get(&mut client, "/").await;
        assert!(!head.contains("endpoint-load"), "{head}");
    };
    ask().await;
    let well = eventually("the card is seen", async || {
        let health = admin_json(&sidecars[0], "/health").await["gpu"].clone();
        (!health.is_null()).then_some(health)
    })
    .await;
    assert_eq!((&well["goodput_factor"], &well["reason"]), (&json!(1.0), &Value::Null), "{well}");
    let card = std::fs::read_dir(tree.path()).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_dir_all(card).unwrap();
    eventually("the fault is known", async || {
        ask().await;
        (health(&gateway, "gpus", at[0]).await < 0.01).then_some(())
    })
    .await;
    lead_to(&gateway, "gpus", Protocol::Http1, &at);
    let before = one.served();
    for _ in 0..20 {
        ask().await;
    }
    assert_eq!((one.served(), other.served()), (before, 20));
    let gone = admin_json(&sidecars[0], "/health").await["gpu"].clone();
    assert_eq!(gone["goodput_factor"], 0.0, "{gone}");
    assert!(gone["reason"].as_str().unwrap().contains("gone"), "{gone}");
    let (_, metrics) = admin(&sidecars[0], "GET", "/metrics").await;
    assert!(metrics.contains("towpath_gpu_goodput_factor 0\n"), "{metrics}");
}

/// What stands behind a metric whose labels hold all of these.
fn metric(page: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let line = page
        .lines()
        .find(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)));
    line?.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn what_a_machine_takes_for_a_byte_is_measured_reported_and_counted() {
    const BODY: usize = 48 << 20;
    const PACKAGES: u32 = 20;
    let tree = tempfile::tempdir().unwrap();
    let package = |nth: u32| tree.path().join(format!("intel-rapl:{nth}"));
    for nth in 0..PACKAGES {
        std::fs::create_dir(package(nth)).unwrap();
        std::fs::write(package(nth).join("name"), format!("package-{nth}")).unwrap();
        std::fs::write(package(nth).join("max_energy_range_uj"), "262143328850").unwrap();
    }
    // Each takes 200 W more with every second, and is believed up to 5 kW.
    let start = std::time::Instant::now();
    let take = || {
        let micros = start.elapsed().as_millis().pow(2) * 100;
        for nth in 0..PACKAGES {
            std::fs::write(package(nth).join("energy_uj"), micros.to_string()).unwrap();
        }
    };
    take();
    let origin = origin(move |mut tcp| async move {
        while head(&mut tcp).await.is_some() {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n");
            let (head, body) = (tcp.write_all(head.as_bytes()).await, vec![b'x'; BODY]);
            if head.is_err() || tcp.write_all(&body).await.is_err() {
                return;
            }
        }
    })
    .await;
    let app = App { origin, served: Arc::default(), broken: Arc::default() };
    let mut config = Config::new(SourceConfig::Manual);
    config.energy = Counters::Powercap(tree.path().to_owned());
    let sidecar = sidecar_with(config, "energy", &app).await;
    let gateway = proxy().await;
    let mut service = Service::new("energy", Protocol::Http1);
    service.balancer = Balancer::CompletionTime;
    let coal = Region { carbon_intensity: Some(900.0), ..Region::default() };
    let world = World::default()
        .service_with(service, &[inbound(&sidecar)])
        .region("energy", "eu", coal)
        .http("edge", "energy");
    gateway.apply(world.build("v1")).unwrap();
    let mut client = connect(&gateway, "edge").await;
    let row = async || {
        let page = admin_json(&gateway, "/explain?service=energy&size=1000000000").await;
        page["endpoints"][0]["footprint"].clone()
    };
    // 3,600 J by default: a thousandth of a kWh, at 900 g.
    let before = row().await;
    assert!((0.89..0.91).contains(&before["grams"].as_f64().unwrap()), "{before}");
    assert_eq!(before["cents"], Value::Null);
    let after = eventually("a report of energy", async || {
        take();
        let (_, body) = get(&mut client, "/").await;
        assert_eq!(body.len(), BODY);
        row().await["grams"].as_f64().filter(|grams| *grams > 5.0)
    })
    .await;
    let (_, page) = admin(&sidecar, "GET", "/metrics").await;
    let measured = metric(&page, "towpath_energy_joules_per_byte", &[]).unwrap();
    assert!(measured > 1e-5 && after < 1000.0, "{measured} {after}");
    let (_, page) = admin(&gateway, "GET", "/metrics").await;
    let of = ["route=\"edge/all\"", "service=\"energy\""];
    let grams = metric(&page, "towpath_carbon_grams_total", &of).unwrap();
    assert!(grams > 0.04, "48 MiB at 0.9 g a gigabyte: {grams}");
    assert_eq!(metric(&page, "towpath_egress_cents_total", &of), None);
}
