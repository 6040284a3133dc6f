use std::{path::Path, sync::Arc};

use linkerd2_proxy_api::{
    http_route::{header_match, path_match, query_param_match},
    http_types,
    outbound::{Backend, backend},
};
use towpath_policies::{
    folder,
    model::{Node, Snapshot},
};

use super::*;

mod choice;
mod say;

/// The mesh of a policy file.
fn world(text: &str) -> World {
    of_files([("a.yaml".into(), text.to_owned())])
}

fn of_files(files: impl IntoIterator<Item = (std::path::PathBuf, String)>) -> World {
    let mesh = towpath_policies::load(files, "1".to_owned()).unwrap_or_else(|why| panic!("{why}"));
    World::default().then(Arc::new(mesh.whole()))
}

fn said(world: &World, target: &str) -> String {
    say::policy(&policy(world, &target.parse().unwrap()).unwrap())
}

const ORDERS: &str = "
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {name: orders}
spec: {endpoints: [{name: a, address: \"10.0.0.1:80\"}, {name: b, address: \"10.0.0.2:80\"}]}
";

/// `ORDERS`, a canary of it, and these further documents.
fn orders(more: &str) -> World {
    let canary = ORDERS.replace("orders", "canary").replace("10.0.0.", "10.0.1.");
    world(&format!("{ORDERS}---{canary}---{more}"))
}

/// `orders` with this for the rules of a route.
fn routed(rules: &str) -> World {
    orders(&format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: lineitem}}
spec:
  parentRefs: [{{group: towpath.dev, kind: Service, name: orders}}]
  rules:{rules}"
    ))
}

#[test]
fn a_service_without_routes_takes_everything() {
    assert_eq!(
        said(&world(ORDERS), "orders:8080"),
        "towpath.dev/Service default/orders:8080
detect 10s, ejects after 5 failures for 30s to 300s
mesh/orders
  /*
    to orders.default.svc.cluster.local:8080 (100 wait 5s)
    idle 300s, retry 1 of 65536 bytes after 25ms to 250ms
opaque to orders.default.svc.cluster.local:8080 (100 wait 5s)
"
    );
}

#[test]
fn conditions_weights_and_edits_are_told() {
    let world = routed(
        "
  - matches:
    - path: {type: PathPrefix, value: /ingest/}
      method: POST
      headers: [{name: X-Class, value: bulk}, {type: RegularExpression, name: x-job, value: \"a|ab\"}]
      queryParams: [{name: v, value: \"2\"}]
    - path: {type: RegularExpression, value: \"/v[0-9]+\"}
      method: POST
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-route, value: r}], add: [{name: x-seen, value: \"1\"}], remove: [x-internal]}
    backendRefs:
    - {name: orders, weight: 9}
    - {name: canary, weight: 0}
    - name: canary
      weight: 1
      filters:
      - type: ResponseHeaderModifier
        responseHeaderModifier: {set: [{name: x-canary, value: \"yes\"}]}
    timeouts: {request: 30s}",
    );
    let to = "to 9 orders.default.svc.cluster.local:80 (100 wait 5s), 1 canary.default.svc.cluster.local:80 (100 wait 5s) response set x-canary=yes";
    let rest = format!(
        "request remove x-internal; request set x-route=r; request add x-seen=1
    {to}
    within 30s, idle 300s, retry 1 of 65536 bytes after 25ms to 250ms"
    );
    assert_eq!(
        said(&world, "orders").lines().skip(2).collect::<Vec<_>>().join("\n"),
        format!(
            "HTTPRoute default/lineitem
  POST ~^(?:/v[0-9]+)$
    {rest}
HTTPRoute default/lineitem
  POST /ingest* x-class=bulk x-job~^(?:a|ab)$ ?v=2
    {rest}
opaque to orders.default.svc.cluster.local:80 (100 wait 5s)"
        )
    );
}

#[test]
fn only_what_may_be_repeated_is_retried_after_an_answer() {
    let text = "
apiVersion: towpath.dev/v1alpha1
kind: TransferPolicy
metadata: {name: orders}
spec:
  targetRefs: [{kind: Service, name: orders}]
  timeouts: {perTry: 2s}
  retry: {attempts: 3, conditions: [timeout, status], statusCodes: [502, 503, 504, 500, 429], replayLimit: 1MiB}
";
    let told = said(&orders(text), "orders");
    let retries: Vec<_> =
        told.lines().filter(|l| l.contains("/*") || l.contains("retry")).map(str::trim).collect();
    assert_eq!(
        retries,
        [
            "GET /* or HEAD /* or OPTIONS /* or TRACE /* or PUT /* or DELETE /*",
            "idle 300s, retry 3 of 1048576 bytes after 25ms to 250ms on 429 500 502..504 or 2s",
            "/*",
            "idle 300s, retry 3 of 1048576 bytes after 25ms to 250ms",
        ]
    );
}

#[test]
fn routes_that_name_no_method_stay_in_their_order() {
    // Both match a GET with both headers. Were only the second told by method, a proxy would prefer it.
    let world = routed(
        "
  - matches: [{headers: [{name: x-a, value: \"1\"}]}]
    backendRefs: [{name: orders}]
  - matches: [{headers: [{name: x-b, value: \"1\"}]}]
    backendRefs: [{name: canary}]
    retry: {attempts: 1, codes: [503]}",
    );
    let told = said(&world, "orders");
    let matches: Vec<_> = told.lines().filter(|line| line.contains("x-")).collect();
    assert_eq!(matches.len(), 4, "{told}");
    assert!(matches[0].contains("GET /* x-a=1") && !matches[1].contains("GET"), "{told}");
}

#[test]
fn answers_are_told_and_what_cannot_be_said_is_refused() {
    let world = routed(
        "
  - matches: [{path: {value: /moved}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {scheme: https, hostname: new.example.com, port: 8443, path: {type: ReplacePrefixMatch, replacePrefixMatch: /now}, statusCode: 301}
  - matches: [{path: {value: /old}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
    backendRefs: [{name: orders}]
  - matches: [{path: {value: /other}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: other.example.com}}]
    backendRefs: [{name: orders}]
  - matches: [{path: {value: /none}}]",
    );
    let told = said(&world, "orders");
    for wanted in [
        "  /moved*\n    redirect 301 https new.example.com:8443 prefix /now\n    to nobody",
        "  /old*\n    answer 500 the route rewrites paths, which a Linkerd proxy cannot\n    to nobody",
        "  /other*\n    answer 500 the route rewrites the host, which a Linkerd proxy cannot\n    to nobody",
        "  /none*\n    answer 500",
    ] {
        assert!(told.contains(wanted), "{wanted} is not in\n{told}");
    }
}

#[test]
fn who_addresses_an_endpoint_keeps_it_under_the_policies_of_its_service() {
    let world = routed("\n  - backendRefs: [{name: orders, weight: 3}, {name: canary}]");
    let told = said(&world, "10.0.0.2:80");
    let to =
        "to 3 10.0.0.2:80 b (100 wait 5s), 1 canary.default.svc.cluster.local:80 (100 wait 5s)";
    assert!(told.contains(to) && told.contains("opaque to 10.0.0.2:80 b"), "{told}");
    assert!(told.starts_with("towpath.dev/Service default/orders:80\n"), "{told}");
}

#[test]
fn opaque_services_are_told_so_and_breakers_bound_the_queue() {
    let db = "
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {name: db, namespace: etl}
spec: {protocol: TCP, connectTimeout: 2s, endpoints: [{name: a, address: \"10.0.2.1:5432\"}]}
---
apiVersion: towpath.dev/v1alpha1
kind: BreakerPolicy
metadata: {name: db, namespace: etl}
spec: {targetRefs: [{kind: Service, name: db}], service: {maxPending: 7}}
";
    assert_eq!(
        said(&orders(db), "db.etl:5432"),
        "towpath.dev/Service etl/db:5432\nopaque to db.etl.svc.cluster.local:5432 (7 wait 2s)\n"
    );
}

#[test]
fn hosts_of_gateways_are_found_by_the_most_specific_domain_and_the_port() {
    let gateway = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: towpath
  listeners:
  - {name: a, port: 8080, protocol: HTTP}
  - {name: b, port: 9090, protocol: HTTP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: wide}
spec:
  parentRefs: [{name: edge}]
  hostnames: [\"*.example.com\"]
  rules: [{backendRefs: [{name: canary}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: narrow}
spec:
  parentRefs: [{name: edge, sectionName: b}]
  hostnames: [etl.example.com]
  rules: [{backendRefs: [{name: orders}]}]
";
    let world = orders(gateway);
    let first_line = |target: &str| said(&world, target).lines().next().unwrap().to_owned();
    let leads_to = |target: &str, to: &str| said(&world, target).contains(&format!("to {to}."));
    assert_eq!(first_line("etl.example.com:9090"), "gateway/edge/9090");
    assert!(leads_to("etl.example.com:9090", "orders"));
    assert!(leads_to("ETL.example.com.:9090", "orders"));
    // The narrower one is not there.
    assert!(leads_to("etl.example.com:8080", "canary"));
    // No Gateway is at this port: so any.
    assert!(leads_to("etl.example.com:80", "orders"));
    assert_eq!(first_line("a.b.example.com:8080"), "gateway/edge/8080");
    assert!(leads_to("a.b.example.com:8080", "canary"));
    assert!(leads_to("a.b.example.com:9090", "canary"));
    for stranger in ["example.com", "example.org", "com", "10.9.9.9:80"] {
        assert_eq!(policy(&world, &stranger.parse().unwrap()), None, "{stranger}");
    }
}

#[test]
fn addresses_of_a_service_lead_to_all_its_endpoints() {
    let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: sidecars}
spec:
  gatewayClassName: towpath
  listeners: [{name: outbound, port: 15001, protocol: towpath.dev/Outbound}]
";
    let given = ORDERS.replace(
        "spec: {",
        "spec: {addresses: [10.96.0.5, \"10.97.0.6:8080\", 10.98.0.0/16, \"[fd00::6]:80\"], ",
    );
    let narrow = ORDERS.replace("orders", "canary").replace("10.0.0.", "10.0.1.");
    let narrow = narrow.replace("spec: {", "spec: {addresses: [10.98.7.0/24], ");
    let world = world(&format!("{given}---{narrow}---{text}"));
    let leads_to = |target: &str| {
        let policy = policy(&world, &target.parse().unwrap())?;
        let said = say::policy(&policy);
        let to = said.lines().last().unwrap().strip_prefix("opaque to ").unwrap();
        Some(to.split(' ').next().unwrap().to_owned())
    };
    let orders = |port: u16| Some(format!("orders.default.svc.cluster.local:{port}"));
    for (target, to) in [
        ("10.96.0.5:80", orders(80)),
        ("10.96.0.5:8080", orders(8080)),
        ("10.97.0.6:8080", orders(8080)),
        ("10.97.0.6:80", None),
        ("10.98.1.1:9", orders(9)),
        ("10.98.7.1:9", Some("canary.default.svc.cluster.local:9".to_owned())),
        ("[fd00::6]:80", orders(80)),
        ("[fd00::7]:80", None),
        // Whoever means an endpoint gets it.
        ("10.0.0.1:80", Some("10.0.0.1:80".to_owned())),
    ] {
        assert_eq!(leads_to(target), to, "{target}");
    }
}

/// A proxy refuses the whole of a policy for one thing that is not as it should be, and panics for some.
#[test]
fn all_that_the_examples_say_is_taken_by_a_proxy() {
    let good = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies/testdata/good");
    let mesh = towpath_policies::load(folder::read(&good).unwrap(), "1".to_owned());
    let mesh = mesh.unwrap_or_else(|why| panic!("{why}"));
    let snapshot: Snapshot = mesh.whole();
    // What one proxy sees is a part of it.
    assert!(mesh.view(&Node::default()).services.len() < snapshot.services.len());
    let services = snapshot.services.keys().filter_map(|id| names::authority(id, 80));
    let addresses = snapshot.endpoints.values().flat_map(|set| &set.endpoints);
    let addresses = addresses.map(|endpoint| endpoint.address.to_string());
    let domains = snapshot.routes.values().flat_map(|t| &t.virtual_hosts).flat_map(|h| &h.domains);
    let domains = domains.map(|domain| domain.replace('*', "any"));
    let targets: Vec<String> = services.chain(addresses).chain(domains).collect();
    let world = World::default().then(Arc::new(snapshot.clone()));
    let mut told = 0;
    for target in &targets {
        let Some(policy) = policy(&world, &target.parse().unwrap()) else { continue };
        say::check(&policy);
        told += 1;
    }
    assert!(told > 40, "{told} of {} targets", targets.len());
}
