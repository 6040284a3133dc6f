//! Where data comes from, and so where requests go before anything is measured.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use towpath_policies::model::*;
use towpath_proxy::{Config, Running, SourceConfig};

use crate::{
    geoip_writer::{city, database},
    support::{
        Origin, Program, World, admin, admin_at, admin_json, ask, dead, eventually, named,
        policies, told, web,
    },
};

const FRANKFURT: Coordinates = Coordinates { latitude: 50.1, longitude: 8.7 };
const VIRGINIA: Coordinates = Coordinates { latitude: 39.0, longitude: -77.5 };

/// Endpoints in Frankfurt and in Virginia, which answer `eu` and `us`.
struct Stage {
    eu: Origin,
    us: Origin,
}

impl Stage {
    async fn new() -> Self {
        Self { eu: web("eu").await, us: web("us").await }
    }

    /// They say so to whoever connects.
    async fn opaque() -> Self {
        Self { eu: named("eu").await, us: named("us").await }
    }

    fn world(&self, name: &str, origin: Vec<OriginSource>) -> World {
        self.service(Service::new(name, Protocol::Http1), origin).http("edge", name)
    }

    fn service(&self, mut service: Service, origin: Vec<OriginSource>) -> World {
        service.balancer = Balancer::CompletionTime;
        service.prediction.origin = origin;
        let endpoint = |region: &str, at: &Origin, coordinates| Endpoint {
            locality: Locality { region: region.to_owned(), ..Locality::default() },
            coordinates: Some(coordinates),
            ..Endpoint::new(at.address)
        };
        let endpoints =
            vec![endpoint("eu", &self.eu, FRANKFURT), endpoint("us", &self.us, VIRGINIA)];
        World::default().service_of(service, endpoints)
    }
}

/// A database that has all of loopback there, in place of the one before.
fn write_loopback(file: &Path, at: Coordinates) {
    let next = file.with_extension("next");
    let loopback = ([127, 0, 0, 0].into(), 8, city(at.latitude, at.longitude));
    fs::write(&next, database(4, &[loopback])).unwrap();
    fs::rename(&next, file).unwrap();
}

async fn start(change: impl FnOnce(&mut Config)) -> Running {
    let mut config = Config::new(SourceConfig::Manual);
    change(&mut config);
    towpath_proxy::start(config).await.unwrap()
}

/// Who answers ten requests with these header lines.
async fn answers(proxy: &Running, headers: &str) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..10 {
        let request =
            format!("GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n{headers}\r\n");
        all.push(ask(proxy.listener_addrs()["edge"], &request).await.1);
    }
    all.dedup();
    all
}

#[tokio::test]
async fn a_proxy_that_knows_its_place_sends_near_it_from_the_first_request_on() {
    let stage = Stage::new().await;
    for (place, expected) in [(VIRGINIA, "us"), (FRANKFURT, "eu")] {
        let told = start(|config| config.place = Some(place)).await;
        let name = format!("own-{expected}");
        told.apply(stage.world(&name, vec![]).build("v1")).unwrap();
        assert_eq!(answers(&told, "").await, [expected]);
        // By its listener, and by another one from then on; what the command line says goes before both.
        let asked = start(|_| {}).await;
        for (version, at, after) in [
            ("v1", Location::at(place), expected),
            ("v2", Location::at(VIRGINIA), "us"),
            ("v3", Location::at(FRANKFURT), "eu"),
        ] {
            // A service of another name, since what is measured goes before where it stands.
            let world = stage.world(&format!("asked-{expected}-{version}"), vec![]);
            let snapshot = world.located(&at).build(version);
            told.apply(snapshot.clone()).unwrap();
            asked.apply(snapshot).unwrap();
            assert_eq!(answers(&told, "").await, [expected], "{version}");
            assert_eq!(answers(&asked, "").await, [after], "{version}");
        }
    }
}

#[tokio::test]
async fn a_proxy_that_moves_thinks_anew_of_services_that_stayed_the_same() {
    let stage = Stage::new().await;
    let proxy = start(|_| {}).await;
    for (version, at, nearest) in [
        ("v1", None, None),
        ("v2", Some(VIRGINIA), Some("us")),
        ("v3", Some(FRANKFURT), Some("eu")),
    ] {
        let location = Location { place: None, coordinates: at };
        proxy.apply(stage.world("same", vec![]).located(&location).build(version)).unwrap();
        let said = admin_json(&proxy, "/explain?service=same").await;
        let network = |at: usize| said["endpoints"][at]["terms"]["network"].as_f64().unwrap();
        let first = said["endpoints"][0]["region"].as_str().unwrap();
        match nearest {
            Some(nearest) => assert!(first == nearest && network(1) > 0.09, "{version}: {said}"),
            None => assert_eq!((network(0), network(1)), (0.0, 0.0), "{version}: {said}"),
        }
    }
}

#[tokio::test]
async fn the_first_source_that_says_something_counts() {
    let stage = Stage::new().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("places.mmdb");
    write_loopback(&file, VIRGINIA);
    let proxy = start(|config| config.geoip = Some(file.clone())).await;
    let header = || OriginSource::Header("x-origin".to_owned());
    let unknown = Location { place: Some("Atlantis".to_owned()), coordinates: None };
    let places = [("acme", Location::at(FRANKFURT)), ("globex", Location::at(VIRGINIA))];
    let places = places.into_iter().chain([("initech", unknown)]);
    let places = places.map(|(name, place)| (name.to_owned(), place)).collect();
    let registered = OriginSource::Registered(Registered { header: "x-tenant".to_owned(), places });
    let all = vec![header(), registered, OriginSource::ClientAddress];
    proxy.apply(stage.world("by-client", all).build("v1")).unwrap();
    for (headers, expected) in [
        ("x-origin: 48.1,11.6\r\nx-tenant: globex\r\n", "eu"),
        ("x-origin: us\r\nx-tenant: acme\r\n", "us"),
        ("x-origin: the moon\r\nx-tenant: acme\r\n", "eu"),
        ("x-tenant: globex\r\n", "us"),
        // What has no place, or none that is known, leaves it to the next.
        ("x-tenant: initech\r\n", "us"),
        ("x-tenant: umbrella\r\n", "us"),
        ("", "us"),
    ] {
        assert_eq!(answers(&proxy, headers).await, [expected], "{headers:?}");
    }
    for (question, origin) in [
        ("registered=acme", "eu"),
        ("registered=globex", "us"),
        ("client=127.0.0.9", "us"),
        ("origin=48.1,11.6", "eu"),
    ] {
        let path = format!("/explain?service=by-client&{question}");
        assert_eq!(admin_json(&proxy, &path).await["origin"], origin, "{question}");
    }
    for (question, why) in [
        ("registered=initech", "no place is registered under this name"),
        ("client=203.0.113.7", "--geoip"),
        ("client=127.0.0.1&origin=us", "only one of origin, registered and client"),
    ] {
        let path = format!("/explain?service=by-client&{question}");
        let (status, body) = admin(&proxy, "GET", &path).await;
        assert!(status == 400 && body.contains(why), "{question}: {status} {body}");
    }
    write_loopback(&file, FRANKFURT);
    proxy.reload_places().await;
    assert_eq!(answers(&proxy, "").await, ["eu"]);
}

#[tokio::test]
async fn opaque_connections_go_near_their_clients() {
    let stage = Stage::opaque().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("places.mmdb");
    let header = OriginSource::Header("x-origin".to_owned());
    for (at, expected) in [(VIRGINIA, "us"), (FRANKFURT, "eu")] {
        write_loopback(&file, at);
        let proxy = start(|config| config.geoip = Some(file.clone())).await;
        let name = format!("opaque-{expected}");
        let sources = vec![header.clone(), OriginSource::ClientAddress];
        let world = stage.service(Service::new(&name, Protocol::Tcp), sources).tcp("edge", &name);
        proxy.apply(world.build("v1")).unwrap();
        for _ in 0..10 {
            assert_eq!(told(&proxy, "edge").await, expected);
        }
    }
}

#[tokio::test]
async fn a_signal_has_the_database_read_again() {
    let (folder, stage) = (tempfile::tempdir().unwrap(), Stage::opaque().await);
    let (policies_in, file) = (folder.path().join("policies"), folder.path().join("places.mmdb"));
    let text = policies(&[("TCP", dead().await.port(), stage.eu.address)]);
    let placed = text.replace("{address: ", "{place: Frankfurt, address: ");
    assert_ne!(text, placed);
    let balancer = "---
apiVersion: towpath.dev/v1alpha1
kind: BalancerPolicy
metadata: {name: tcp}
spec:
  targetRefs: [{kind: Service, name: tcp}]
  policy: CompletionTime
  origin: {clientAddress: {}}
";
    fs::create_dir(&policies_in).unwrap();
    fs::write(policies_in.join("edge.yaml"), placed + balancer).unwrap();
    write_loopback(&file, VIRGINIA);
    let mut command = Program::command(&policies_in);
    let program = Program::start(command.args(["--place", "Ashburn", "--geoip"]).arg(&file)).await;
    let origin = async || {
        let path = "/explain?service=tcp&client=127.0.0.1";
        let (status, body) = admin_at(program.admin, "GET", path).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()["origin"].as_str().unwrap().to_owned()
    };
    assert_eq!(origin().await, "", "beside the proxy");
    // The file is looked at every two seconds anyway: ten changes, each made when the one before was
    // seen, would be seen in no less than eighteen.
    let begun = Instant::now();
    for (at, place) in [(FRANKFURT, "50.1"), (VIRGINIA, "")].into_iter().cycle().take(10) {
        write_loopback(&file, at);
        program.signal(Signal::HUP);
        let there = async || {
            let origin = origin().await;
            (origin.starts_with(place) && origin.is_empty() == place.is_empty()).then_some(())
        };
        eventually("the place that was written", there).await;
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(18), "after {took:?}: not by the signal");
}

#[tokio::test]
async fn without_a_database_clients_are_nowhere_and_a_bad_one_is_told_at_the_start() {
    let stage = Stage::new().await;
    let proxy = start(|config| config.place = Some(FRANKFURT)).await;
    let sources = vec![OriginSource::ClientAddress];
    proxy.apply(stage.world("nowhere", sources).build("v1")).unwrap();
    assert_eq!(answers(&proxy, "").await, ["eu"]);
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(SourceConfig::Manual);
    config.geoip = Some(folder.path().join("none.mmdb"));
    let error = format!("{:#}", towpath_proxy::start(config).await.unwrap_err());
    assert!(error.starts_with("--geoip: ") && error.contains("none.mmdb"), "{error}");
}

#[tokio::test]
async fn bytes_have_prices_wherever_a_policy_says_that_they_come_from() {
    let (folder, stage) = (tempfile::tempdir().unwrap(), Stage::new().await);
    let text = format!(
        "apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: web}}
spec:
  protocol: HTTP
  endpoints: [{{name: eu, address: \"{}\", place: Frankfurt, locality: {{region: eu}}}}]
---
apiVersion: towpath.dev/v1alpha1
kind: Region
metadata: {{name: eu}}
spec: {{egress: [{{to: lab, centsPerGigabyte: 3}}, {{to: \"*\", centsPerGigabyte: 8}}]}}
---
apiVersion: towpath.dev/v1alpha1
kind: Region
metadata: {{name: lab}}
spec: {{place: Munich, egress: [{{to: \"*\", centsPerGigabyte: 1}}]}}
---
apiVersion: towpath.dev/v1alpha1
kind: BalancerPolicy
metadata: {{name: web}}
spec:
  targetRefs: [{{kind: Service, name: web}}]
  policy: CompletionTime
  origin: {{header: x-origin}}
  terms: {{price: 10}}
---
apiVersion: towpath.dev/v1alpha1
kind: TransferPolicy
metadata: {{name: web}}
spec: {{targetRefs: [{{kind: Service, name: web}}], class: bulk}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, annotations: {{towpath.dev/place: Munich}}}}
spec: {{gatewayClassName: towpath, listeners: [{{name: http, protocol: HTTP, port: {}}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web}}
spec: {{parentRefs: [{{name: edge}}], rules: [{{backendRefs: [{{group: towpath.dev, kind: Service, name: web}}]}}]}}
",
        stage.eu.address,
        dead().await.port(),
    );
    fs::write(folder.path().join("web.yaml"), text).unwrap();
    let program = Program::start(&mut Program::command(folder.path())).await;
    let explained = async |question: &str| {
        let path = format!("/explain?service=web&size=1000000000&class=bulk{question}");
        let (status, body) = admin_at(program.admin, "GET", &path).await;
        assert_eq!(status, 200, "{body}");
        let said: Value = serde_json::from_str(&body).unwrap();
        let endpoint = &said["endpoints"][0];
        let figure = |figure: &Value| figure.as_f64().map(f64::round);
        let (cents, price) = (&endpoint["footprint"]["cents"], &endpoint["terms"]["price"]);
        (said["priced_from"].as_str().unwrap().to_owned(), figure(cents), figure(price))
    };
    for (question, whose, cents) in [
        ("", "lab", 1.0),
        ("&origin=lab", "lab", 1.0),
        ("&origin=48.3,11.5", "lab", 1.0),
        ("&origin=eu", "eu", 0.0),
        // What comes back is what responses usually have, which is nothing yet.
        ("&origin=-17.7,178.1", "*", 0.0),
    ] {
        let expected = (whose.to_owned(), Some(cents), Some(cents * 10.0));
        assert_eq!(explained(question).await, expected, "{question}");
    }
}
