//! Which route a request takes: Gateway API precedence and host names.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use towpath_policies::{
    load,
    model::{Action, Mesh, RouteTable},
};

/// A mesh of HTTPRoutes `(name, listener, hosts, matches of its rules)`; the
/// rule `n` of the route `r` forwards to the Service `r-n`.
fn mesh(listeners: &[(&str, &str)], routes: &[(&str, &str, &str, &[&str])]) -> Mesh {
    let mut text = String::from(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: towpath
  listeners:
",
    );
    for (name, host) in listeners {
        let host = if host.is_empty() { String::new() } else { format!(", hostname: \"{host}\"") };
        text += &format!("  - {{name: {name}, port: 80, protocol: HTTP{host}}}\n");
    }
    for (name, listener, hosts, rules) in routes {
        text += &format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}}}
spec:
  parentRefs: [{{name: edge, sectionName: {listener}}}]
  hostnames: [{hosts}]
  rules:
"
        );
        for (index, matches) in rules.iter().enumerate() {
            text +=
                &format!("  - {{matches: [{matches}], backendRefs: [{{name: {name}-{index}}}]}}\n");
        }
        for index in 0..rules.len() {
            text += &format!(
                "---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: {name}-{index}}}
spec: {{endpoints: [{{address: \"10.0.0.1:80\"}}]}}
"
            );
        }
    }
    load([("a.yaml".into(), text)], "v".to_owned()).unwrap()
}

/// The services of a host's routes, in the order they are tried.
fn order(table: &RouteTable, domain: &str) -> Vec<String> {
    let host = table.virtual_hosts.iter().find(|h| h.domains.iter().any(|d| d == domain));
    let service = |action: &Action| match action {
        Action::Forward(forward) => forward.backends[0].service.clone(),
        other => panic!("{other:?}"),
    };
    host.map(|h| h.routes.iter().map(|r| service(&r.action)).collect()).unwrap_or_default()
}

#[test]
fn the_most_specific_match_is_tried_first() {
    let rules: &[&str] = &[
        "{path: {value: /}}",
        "{path: {value: /}, queryParams: [{name: a, value: a}]}",
        "{path: {value: /}, headers: [{name: a, value: a}]}",
        "{path: {value: /}, headers: [{name: a, value: a}, {name: b, value: b}]}",
        "{path: {value: /}, headers: [{name: a, value: a}], queryParams: [{name: a, value: a}]}",
        "{path: {value: /}, method: GET}",
        "{path: {value: /a}}",
        "{path: {value: /a/b}}",
        "{path: {type: RegularExpression, value: \"/.*\"}}",
        "{path: {type: Exact, value: /}}",
        "{path: {type: Exact, value: /a}}",
        "{path: {type: Exact, value: /a}, method: GET}",
    ];
    let expected = [11, 10, 9, 8, 7, 6, 5, 3, 4, 2, 1, 0].map(|n| format!("r-{n}"));
    let forwards = mesh(&[("l", "")], &[("r", "l", "", rules)]);
    assert_eq!(order(&forwards.routes["gateway/edge/80"], "*"), expected);
    // The order in which they are written does not matter.
    let reversed: Vec<_> = rules.iter().rev().copied().collect();
    let backwards = mesh(&[("l", "")], &[("r", "l", "", &reversed)]);
    let expected = [11, 10, 9, 8, 7, 6, 5, 3, 4, 2, 1, 0].map(|n| format!("r-{}", 11 - n));
    assert_eq!(order(&backwards.routes["gateway/edge/80"], "*"), expected);
}

#[test]
fn equals_are_tried_by_name_and_then_in_order() {
    let a = "{headers: [{name: a, value: a}]}";
    let b = "{headers: [{name: b, value: b}]}";
    let c = "{headers: [{name: c, value: c}]}";
    let mesh = mesh(&[("l", "")], &[("z", "l", "", &[a]), ("y", "l", "", &[c, b])]);
    assert_eq!(order(&mesh.routes["gateway/edge/80"], "*"), ["y-0", "y-1", "z-0"]);
}

#[test]
fn a_narrower_host_comes_first_and_falls_through_to_wider_ones() {
    let mesh = mesh(
        &[("l", "")],
        &[
            ("all", "l", "", &["{path: {type: Exact, value: /long/path}}"]),
            ("wild", "l", "\"*.example.com\"", &["{path: {value: /b}}"]),
            ("deep", "l", "\"*.a.example.com\"", &["{path: {value: /c}}"]),
            ("exact", "l", "x.a.example.com", &["{path: {value: /d}}"]),
        ],
    );
    let table = &mesh.routes["gateway/edge/80"];
    assert_eq!(order(table, "x.a.example.com"), ["exact-0", "deep-0", "wild-0", "all-0"]);
    assert_eq!(order(table, "*.a.example.com"), ["deep-0", "wild-0", "all-0"]);
    assert_eq!(order(table, "*.example.com"), ["wild-0", "all-0"]);
    assert_eq!(order(table, "*"), ["all-0"]);
}

#[test]
fn a_narrower_listener_keeps_its_hosts_from_wider_ones() {
    let any = "{path: {value: /}}";
    let mesh = mesh(
        &[
            ("any", ""),
            ("wild", "*.example.com"),
            ("one", "one.example.com"),
            ("none", "none.example.com"),
        ],
        &[
            ("a", "any", "", &[any]),
            ("w", "wild", "one.example.com, two.example.com", &[any]),
            ("o", "one", "", &[any]),
        ],
    );
    let table = &mesh.routes["gateway/edge/80"];
    assert_eq!(order(table, "one.example.com"), ["o-0"]);
    assert_eq!(order(table, "two.example.com"), ["w-0"]);
    assert_eq!(order(table, "*"), ["a-0"]);
    // Hosts that a narrower listener owns and nobody routes are 404, not the wider listener's.
    for host in ["*.example.com", "none.example.com"] {
        assert_eq!(order(table, host), [""; 0]);
        assert!(table.virtual_hosts.iter().any(|h| h.domains.iter().any(|d| d == host)), "{host}");
    }
    let mut domains: Vec<_> = table.virtual_hosts.iter().flat_map(|h| &h.domains).collect();
    domains.sort();
    let count = domains.len();
    domains.dedup();
    assert_eq!(domains.len(), count, "no domain twice");
}

#[test]
fn hosts_that_multiply_are_refused() {
    let hosts: Vec<_> = (0..1100).map(|n| format!("h{n}.example")).collect();
    let rules: Vec<_> = (0..100)
        .map(|n| format!("{{matches: [{{path: {{value: /r{n}}}}}], backendRefs: [{{name: etl}}]}}"))
        .collect();
    let text = format!(
        "apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: etl}}
spec: {{endpoints: [{{address: \"10.0.0.1:80\"}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec: {{gatewayClassName: towpath, listeners: [{{name: http, port: 80, protocol: HTTP}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: all}}
spec: {{parentRefs: [{{name: edge}}], rules: [{}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: hosts}}
spec: {{parentRefs: [{{name: edge}}], hostnames: [{}], rules: [{{backendRefs: [{{name: etl}}]}}]}}
",
        rules.join(", "),
        hosts.join(", ")
    );
    let report = load([("a.yaml".into(), text)], "v".to_owned()).unwrap_err();
    assert_eq!(report.diagnostics.len(), 1, "{report}");
    assert_eq!(report.diagnostics[0].rule.id(), "limit");
}

#[test]
fn grpc_methods_become_paths() {
    use towpath_policies::model::PathMatch;
    let text = |matches: &str| {
        format!(
            "apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: etl}}
spec: {{endpoints: [{{address: \"10.0.0.1:80\"}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {{name: g}}
spec:
  parentRefs: [{{group: towpath.dev, kind: Service, name: etl}}]
  rules: [{{matches: [{matches}], backendRefs: [{{name: etl}}]}}]
"
        )
    };
    for (matches, path, fits, fits_not) in [
        ("{method: {service: a.B, method: C}}", "Exact", "/a.B/C", "/a.B/CD"),
        ("{method: {service: a.B}}", "Prefix", "/a.B/C", "/a.BC/C"),
        ("{method: {method: C}}", "Regex", "/a.B/C", "/a.B/X/C"),
        ("{method: {type: RegularExpression, service: \"a|b\"}}", "Regex", "/b/C", "/ba/C"),
        ("{}", "Prefix", "/anything", ""),
    ] {
        let mesh = load([("a.yaml".into(), text(matches))], "v".to_owned()).unwrap();
        let route = &mesh.routes["mesh/etl"].virtual_hosts[0].routes[0];
        assert!(route.matches.grpc);
        assert!(format!("{:?}", route.matches.path).starts_with(path), "{matches}");
        let is_match = |request: &str| match &route.matches.path {
            PathMatch::Exact(exact) => exact == request,
            PathMatch::Prefix(prefix) if prefix == "/" => !request.is_empty(),
            PathMatch::Prefix(prefix) => request
                .strip_prefix(prefix.as_str())
                .is_some_and(|r| r.is_empty() || r.starts_with('/')),
            PathMatch::Regex(pattern) => pattern.is_match(request),
        };
        assert!(is_match(fits) && !is_match(fits_not), "{matches}");
    }
}
