//! What the documents of `testdata/good` become, and what each kind of
//! document comes to by itself.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{fs, path::Path, time::Duration};

use towpath_policies::{
    Checked, Diagnostic, check, folder,
    model::{
        Action, Bind, ChainKind, DirectResponse, Forward, HttpOptions, Mesh, NodeSelector,
        Protocol, RetryCondition, RetryPolicy, Route,
    },
};

const TESTDATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");

fn good() -> Checked {
    let files = folder::read(&Path::new(TESTDATA).join("good")).unwrap();
    check(files, "v1".to_owned())
}

fn mesh(text: &str) -> Mesh {
    let checked = check([("a.yaml".into(), text.to_owned())], "v".to_owned());
    checked.mesh.unwrap_or_else(|| panic!("{}", checked.report))
}

fn forward(route: &Route) -> &Forward {
    match &route.action {
        Action::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_examples_have_nothing_wrong() {
    let checked = good();
    assert_eq!(checked.report.to_string(), "");
    assert!(checked.report.files >= 2 && checked.report.documents >= 15);
}

/// The policies within the manifest that puts a gateway in front of a cluster.
#[test]
fn the_gateway_of_the_examples_has_nothing_wrong() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/gateway/kubernetes.yaml");
    let text = fs::read_to_string(manifest).unwrap();
    // The block scalar ends where its indent does.
    let (_, block) = text.split_once("  edge.yaml: |\n").unwrap();
    let within = |line: &&str| line.is_empty() || line.starts_with("    ");
    let lines = block.lines().take_while(within).map(|l| l.strip_prefix("    ").unwrap_or(l));
    let policies = lines.collect::<Vec<_>>().join("\n");
    let checked = check([("edge.yaml".into(), policies)], "v".to_owned());
    assert_eq!(checked.report.to_string(), "");
    assert!(checked.mesh.unwrap().listeners.contains_key("gateway/edge/8080"));
}

#[test]
fn the_wide_example_only_warns() {
    let files = folder::read(&Path::new(TESTDATA).join("wide")).unwrap();
    let checked = check(files, "v1".to_owned());
    let said: Vec<_> = checked.report.diagnostics.iter().map(|d| d.message.as_str()).collect();
    assert_eq!(said, ["the port has no effect"; 3], "{}", checked.report);
    let mesh = checked.mesh.unwrap();
    assert!(mesh.listeners.contains_key("gateway/infra/shared/8000"));
    let chain = &mesh.listeners["gateway/infra/shared/8001"].listener.chains[0];
    assert_eq!(chain.server_names, ["one.example.com", "*.two.example.com"]);
    assert!(chain.tls.is_some() && matches!(chain.kind, ChainKind::Tcp(_)));
}

/// `BLESS=1` writes the expected text; read the difference before it is committed.
#[test]
fn the_explanation_tells_every_term_and_who_set_it() {
    let said = good().explain().unwrap();
    let expected_at = Path::new(TESTDATA).join("good.explain.txt");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&expected_at, &said).unwrap();
    }
    assert_eq!(said, fs::read_to_string(&expected_at).unwrap());
}

#[test]
fn names_are_as_promised() {
    let files = folder::read(&Path::new(TESTDATA).join("good")).unwrap();
    let whole = |path: &Path| path.ends_with("edge.yaml") || path.ends_with("services.yml");
    let files = files.into_iter().filter(|(path, _)| whole(path));
    let mesh = check(files, "v1".to_owned()).mesh.unwrap();
    let names: Vec<_> = mesh.listeners.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "etl",
            "etl-canary",
            "gateway/edge/5432",
            "gateway/edge/8080",
            "gateway/edge/8443",
            "gateway/edge/9443",
            "inbound/db/one",
            "inbound/etl/us-east-1",
        ]
    );
    let tables: Vec<_> = mesh.routes.keys().map(String::as_str).collect();
    assert_eq!(
        tables,
        [
            "gateway/edge/8080",
            "gateway/edge/8443",
            "inbound/etl/us-east-1",
            "mesh/etl",
            "mesh/etl-canary"
        ]
    );
    let services: Vec<_> = mesh.services.keys().map(String::as_str).collect();
    assert_eq!(services, ["db", "etl", "etl-canary", "inbound/db/one", "inbound/etl/us-east-1"]);
    assert_eq!(mesh.endpoints.keys().collect::<Vec<_>>(), mesh.services.keys().collect::<Vec<_>>());
    for (key, source) in &mesh.sources {
        assert!(source.line > 1, "{key:?} {source}");
    }
    let resources = mesh.listeners.len() + mesh.routes.len() + 2 * mesh.services.len();
    assert_eq!(mesh.sources.len(), resources);
}

const SERVICE: &str = "
---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {name: etl}
spec:
  protocol: GRPC
  endpoints:
  - {name: one, address: \"10.0.0.1:80\", sidecar: {node: w1, app: \"127.0.0.1:9000\"}}
";

const GATEWAY: &str = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec: {gatewayClassName: towpath, listeners: [{name: http, port: 80, protocol: HTTP}]}
";

fn route(rule: &str) -> String {
    format!(
        "{SERVICE}{GATEWAY}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - {{name: rule, backendRefs: [{{name: etl}}]{rule}}}
"
    )
}

fn first_route(mesh: &Mesh, table: &str) -> Route {
    mesh.routes[table].virtual_hosts[0].routes[0].clone()
}

#[test]
fn a_service_by_itself_is_reached_by_the_mesh_and_by_its_sidecar() {
    let mesh = mesh(SERVICE);
    let api = &mesh.listeners["etl"];
    assert_eq!((&api.nodes, &api.listener.bind), (&NodeSelector::Any, &Bind::Api));
    let routed = first_route(&mesh, "mesh/etl");
    assert_eq!(forward(&routed).backends[0].service, "etl");
    assert_eq!(forward(&routed).timeout, None);
    assert_eq!(forward(&routed).idle_timeout, Some(Duration::from_secs(300)));
    assert_eq!(forward(&routed).retry, RetryPolicy::default());

    let inbound = &mesh.listeners["inbound/etl/one"];
    assert_eq!(inbound.nodes, NodeSelector::Matching(vec!["w1".to_owned()]));
    assert_eq!(inbound.listener.bind, Bind::Socket("10.0.0.1:80".parse().unwrap()));
    let options = HttpOptions { reports_load: true, ..HttpOptions::default() };
    let kind = ChainKind::Http { route_table: "inbound/etl/one".to_owned(), options };
    assert_eq!(inbound.listener.chains[0].kind, kind);
    let routed = first_route(&mesh, "inbound/etl/one");
    assert_eq!(forward(&routed).backends[0].service, "inbound/etl/one");
    // The caller's side retries; twice would multiply.
    assert_eq!(forward(&routed).retry.attempts, 0);
    let service = &mesh.services["inbound/etl/one"];
    assert_eq!((service.protocol, service.outlier), (Protocol::Http2, None));
    let app = &mesh.endpoints["inbound/etl/one"].endpoints[0];
    assert_eq!(app.address, "127.0.0.1:9000".parse().unwrap());
}

#[test]
fn a_byte_order_mark_and_other_line_ends_change_nothing() {
    let plain = mesh(SERVICE);
    let marked = mesh(&format!("\u{feff}{}", SERVICE.trim_start().replace('\n', "\r\n")));
    assert_eq!(plain.services, marked.services);
}

#[test]
fn tcp_services_have_no_routes() {
    let mesh = mesh(&SERVICE.replace("GRPC", "TCP"));
    assert!(mesh.routes.is_empty());
    let names: Vec<_> = mesh.listeners.keys().collect();
    assert_eq!(names, ["inbound/etl/one"]);
    let chain = &mesh.listeners["inbound/etl/one"].listener.chains[0];
    assert!(
        matches!(&chain.kind, ChainKind::Tcp(tcp) if tcp.backends[0].service == "inbound/etl/one")
    );
}

#[test]
fn other_namespaces_show_in_names() {
    let mesh = mesh(&SERVICE.replace("{name: etl}", "{name: etl, namespace: data}"));
    assert_eq!(mesh.listeners.keys().collect::<Vec<_>>(), ["data/etl", "inbound/data/etl/one"]);
    assert_eq!(mesh.routes.keys().collect::<Vec<_>>(), ["inbound/data/etl/one", "mesh/data/etl"]);
}

#[test]
fn a_route_of_a_service_replaces_its_default() {
    let text = route("").replace(
        "parentRefs: [{name: edge}]",
        "parentRefs: [{group: towpath.dev, kind: Service, name: etl}]",
    );
    let mesh = mesh(&text.replace("name: rule,", "matches: [{path: {value: /only}}],"));
    let routes = &mesh.routes["mesh/etl"].virtual_hosts[0].routes;
    assert_eq!(routes.len(), 1);
    assert_eq!(routes[0].name, "httproute/r/0");
}

#[test]
fn rules_without_anything_to_serve_answer_500() {
    for backends in ["[]", "[{name: etl, weight: 0}]"] {
        let text = route("").replace("[{name: etl}]", backends);
        let routed = first_route(&mesh(&text), "gateway/edge/80");
        assert!(
            matches!(routed.action, Action::Respond(DirectResponse { status: 500, .. })),
            "{backends}"
        );
    }
}

#[test]
fn the_nearest_policy_wins_field_by_field() {
    let policy = |name: &str, target: &str, idle: u32, request: &str| {
        format!(
            "
---
apiVersion: towpath.dev/v1alpha1
kind: TransferPolicy
metadata: {{name: {name}}}
spec: {{targetRefs: [{target}], timeouts: {{idle: {idle}s{request}}}}}
"
        )
    };
    let gateway = policy("g", "{kind: Gateway, name: edge}", 1, ", request: 100s");
    let listener = policy("l", "{kind: Gateway, name: edge, sectionName: http}", 2, "");
    let service = policy("s", "{kind: Service, name: etl}", 3, "");
    let whole = policy("r", "{kind: HTTPRoute, name: r}", 4, "");
    let section = policy("x", "{kind: HTTPRoute, name: r, sectionName: rule}", 5, "");
    let mut text = route("");
    let seconds = |text: &str| {
        let routed = first_route(&mesh(text), "gateway/edge/80");
        let terms = forward(&routed);
        (terms.idle_timeout.unwrap().as_secs(), terms.timeout.map(|t| t.as_secs()))
    };
    assert_eq!(seconds(&text), (300, None));
    for (index, more) in [gateway, listener, service, whole, section].iter().enumerate() {
        text += more;
        assert_eq!(seconds(&text), (index as u64 + 1, Some(100)), "{more}");
    }
    let inline = route(", timeouts: {request: 7s}") + &text[route("").len()..];
    assert_eq!(seconds(&inline), (5, Some(7)));
    let disabled = route(", timeouts: {request: 0s}") + &text[route("").len()..];
    assert_eq!(seconds(&disabled), (5, None));
}

#[test]
fn retries_of_a_rule_keep_what_is_always_safe() {
    let text =
        route(", retry: {attempts: 4, codes: [500], backoff: 1s}, timeouts: {backendRequest: 2s}");
    let routed = first_route(&mesh(&text), "gateway/edge/80");
    let retry = &forward(&routed).retry;
    assert_eq!(retry.attempts, 4);
    assert_eq!(retry.per_try_timeout, Some(Duration::from_secs(2)));
    assert_eq!(
        (retry.backoff_base, retry.backoff_max),
        (Duration::from_secs(1), Duration::from_secs(10))
    );
    assert_eq!(
        retry.on,
        [
            RetryCondition::ConnectFailure,
            RetryCondition::RefusedStream,
            RetryCondition::Reset,
            RetryCondition::Status(vec![500]),
        ]
    );
}

#[test]
fn downloads_are_resumed_where_resets_are_retried_or_somebody_says_so() {
    for (spec, expected) in [
        ("retry: {attempts: 1}", true),
        ("retry: {attempts: 0}", false),
        ("retry: {conditions: [reset]}", true),
        ("retry: {conditions: [connect-failure, status]}", false),
        ("retry: {conditions: [connect-failure]}, resume: {downloads: true}", true),
        ("resume: {downloads: true}", true),
        ("resume: {downloads: false}", false),
        ("resume: {}", true),
    ] {
        let policy = format!(
            "
---
apiVersion: towpath.dev/v1alpha1
kind: TransferPolicy
metadata: {{name: p}}
spec: {{targetRefs: [{{kind: Service, name: etl}}], {spec}}}
"
        );
        let routed = first_route(&mesh(&(SERVICE.to_owned() + &policy)), "mesh/etl");
        assert_eq!(forward(&routed).retry.resume_downloads, expected, "{spec}");
    }
    // What a nearer policy takes away, a farther one cannot give.
    let text = route(", retry: {attempts: 0}")
        + "
---
apiVersion: towpath.dev/v1alpha1
kind: TransferPolicy
metadata: {name: p}
spec: {targetRefs: [{kind: Service, name: etl}], resume: {downloads: true}}
";
    let routed = first_route(&mesh(&text), "gateway/edge/80");
    assert!(!forward(&routed).retry.resume_downloads);
}

#[test]
fn codes_alone_mean_that_they_are_retried_too() {
    let policy = "
---
apiVersion: towpath.dev/v1alpha1
kind: TransferPolicy
metadata: {name: p}
spec: {targetRefs: [{kind: Service, name: etl}], retry: {grpcStatusCodes: [8, 14]}}
";
    let routed = first_route(&mesh(&(SERVICE.to_owned() + policy)), "mesh/etl");
    let on = &forward(&routed).retry.on;
    assert_eq!(on.len(), 4);
    assert_eq!(on[3], RetryCondition::GrpcStatus(vec![8, 14]));
}

#[test]
fn gateways_of_other_proxies_and_addresses_share_a_port() {
    let gateway = |name: &str, annotations: &str| {
        format!(
            "
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, annotations: {{{annotations}}}}}
spec: {{gatewayClassName: towpath, listeners: [{{name: http, port: 80, protocol: TCP}}]}}
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {{name: {name}}}
spec: {{parentRefs: [{{name: {name}}}], rules: [{{backendRefs: [{{name: etl}}]}}]}}
"
        )
    };
    let text = [
        SERVICE.to_owned(),
        gateway("named", "towpath.dev/nodes: \"edge-*, front\""),
        gateway("others", "towpath.dev/nodes: \"worker-*, back\""),
        gateway("rest", ""),
        gateway("rest6", "towpath.dev/bind: \"::\""),
        gateway("ten", "towpath.dev/nodes: \"in-*\", towpath.dev/bind: 10.0.0.1"),
        gateway("eleven", "towpath.dev/nodes: \"in-*\", towpath.dev/bind: 10.0.0.2"),
    ];
    assert_eq!(mesh(&text.concat()).listeners.keys().filter(|n| n.ends_with("/80")).count(), 6);
}

#[test]
fn listeners_share_a_port_by_server_name() {
    let tls =
        "tls: {options: {towpath.dev/certificate-file: /c, towpath.dev/private-key-file: /k}}";
    let listeners = format!(
        "[{{name: a, port: 443, protocol: HTTPS, hostname: a.example, {tls}}}, \
          {{name: b, port: 443, protocol: HTTPS, hostname: \"*.b.example\", {tls}}}, \
          {{name: p, port: 443, protocol: TLS, hostname: \"*.db.example\", tls: {{mode: Passthrough}}}}]"
    );
    let text = route("").replace("[{name: http, port: 80, protocol: HTTP}]", &listeners)
        + "
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TLSRoute
metadata: {name: t}
spec: {parentRefs: [{name: edge}], hostnames: [one.db.example], rules: [{backendRefs: [{name: etl}]}]}
";
    let mesh = mesh(&text);
    let chains = &mesh.listeners["gateway/edge/443"].listener.chains;
    let names: Vec<_> = chains.iter().map(|c| c.server_names.join(" ")).collect();
    assert_eq!(names, ["a.example", "*.b.example", "one.db.example"]);
    assert!(chains[0].tls.as_ref().is_some_and(|tls| tls.alpn == ["h2", "http/1.1"]));
    assert!(chains[2].tls.is_none() && matches!(chains[2].kind, ChainKind::Tcp(_)));
    for (table, host) in
        [("gateway/edge/443/a", "a.example"), ("gateway/edge/443/b", "*.b.example")]
    {
        assert_eq!(mesh.routes[table].virtual_hosts[0].domains, [host]);
    }
}

#[test]
fn a_place_stands_for_its_coordinates_and_one_that_is_not_known_harms_nothing() {
    let text = "
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {name: etl}
spec:
  endpoints:
  - {address: \"10.0.0.1:80\", place: Frankfurt}
  - {address: \"10.0.0.2:80\", place: eu-central-1}
  - {address: \"10.0.0.3:80\", place: Frankfrt}
  - {address: \"10.0.0.4:80\"}
";
    let checked = check([("a.yaml".into(), text.to_owned())], "v".to_owned());
    let [warning] = &checked.report.diagnostics[..] else { panic!("{}", checked.report) };
    assert_eq!((warning.rule.id(), warning.line), ("unknown-place", 9));
    assert!(warning.help.as_ref().is_some_and(|help| help.contains("`Frankfurt am Main, DE`")));
    let mesh = checked.mesh.unwrap();
    let endpoints = &mesh.endpoints["etl"].endpoints;
    let degrees = endpoints.iter().map(|e| e.coordinates.map(|c| (c.latitude, c.longitude)));
    let frankfurt = Some((50.116, 8.684));
    assert_eq!(degrees.collect::<Vec<_>>(), [frankfurt, frankfurt, None, None]);
    let places: Vec<_> = endpoints.iter().map(|e| e.place.as_deref()).collect();
    assert_eq!(places, [Some("Frankfurt"), Some("eu-central-1"), Some("Frankfrt"), None]);
}

#[test]
fn of_many_wrong_places_all_are_told_and_others_are_offered_for_a_few() {
    let mut text = "
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {name: etl}
spec:
  endpoints:
"
    .to_owned();
    for n in 0..600_u32 {
        let wrong = |n: u32| char::from(b'a' + u8::try_from(n % 26).unwrap());
        let place = format!("Frank{}{}rt", wrong(n / 26), wrong(n));
        text += &format!("  - {{address: \"10.0.{}.{}:80\", place: {place}}}\n", n / 250, n % 250);
    }
    let checked = check([("a.yaml".into(), text)], "v".to_owned());
    assert!(checked.mesh.is_some());
    assert!(checked.report.warnings() > 590);
    let offers = |d: &&Diagnostic| d.help.as_ref().is_some_and(|h| h.starts_with("did you mean"));
    // Each look through all names takes milliseconds.
    assert_eq!(checked.report.diagnostics.iter().filter(offers).count(), 20);
}
