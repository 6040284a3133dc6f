//! The conditions of Gateway API objects, reason by reason.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use towpath_policies::{
    check,
    conditions::{Condition, ObjectStatus, Truth},
};

fn objects(text: &str) -> Vec<ObjectStatus> {
    check([("a.yaml".into(), text.to_owned())], "v".to_owned()).conditions
}

fn find<'a>(objects: &'a [ObjectStatus], kind: &str, name: &str) -> &'a ObjectStatus {
    let of = |o: &&ObjectStatus| o.kind == kind && o.metadata.name == name;
    objects.iter().find(of).unwrap_or_else(|| panic!("{kind} {name} in {objects:?}"))
}

/// `Accepted=True ResolvedRefs=BackendNotFound`: a reason where it is not as it should be.
fn told(conditions: &[Condition]) -> String {
    let one = |c: &Condition| match (c.kind.as_str(), c.status) {
        ("Conflicted", Truth::False) => None,
        ("Conflicted", _) | (_, Truth::False) => Some(format!("{}={}", c.kind, c.reason)),
        _ if c.reason != c.kind => Some(format!("{}=True:{}", c.kind, c.reason)),
        _ => Some(format!("{}=True", c.kind)),
    };
    conditions.iter().filter_map(one).collect::<Vec<_>>().join(" ")
}

/// A Gateway of this name in `edge` with these listeners.
fn gateway(name: &str, listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: edge}}\n\
         spec: {{gatewayClassName: towpath, listeners: [{listeners}]}}\n---\n"
    )
}

fn route(kind: &str, namespace: &str, parent: &str, hosts: &str, backend: &str) -> String {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    format!(
        "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: r, namespace: {namespace}}}\n\
         spec: {{parentRefs: [{{name: edge, namespace: edge{parent}}}], {hosts}rules: [{{backendRefs: [{{{backend}}}]}}]}}\n---\n"
    )
}

const SERVICE: &str = "apiVersion: towpath.dev/v1alpha1\nkind: Service\nmetadata: {name: s, namespace: edge}\n\
                       spec: {endpoints: [{address: \"10.0.0.1:80\"}]}\n---\n";
const HTTP: &str = "{name: http, port: 80, protocol: HTTP, hostname: \"*.example.com\"}";
const OPEN: &str =
    "{name: open, port: 81, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}";

#[test]
fn routes_are_told_why_no_listener_takes_them() {
    for (kind, namespace, parent, hosts, backend, expected) in [
        ("HTTPRoute", "edge", "", "", "name: s", "Accepted=True ResolvedRefs=True"),
        (
            "HTTPRoute",
            "edge",
            ", sectionName: https",
            "",
            "name: s",
            "Accepted=NoMatchingParent ResolvedRefs=True",
        ),
        (
            "HTTPRoute",
            "edge",
            ", port: 82",
            "",
            "name: s",
            "Accepted=NoMatchingParent ResolvedRefs=True",
        ),
        (
            "HTTPRoute",
            "edge",
            ", sectionName: http",
            "hostnames: [a.example.org], ",
            "name: s",
            "Accepted=NoMatchingListenerHostname ResolvedRefs=True",
        ),
        (
            "HTTPRoute",
            "apps",
            ", sectionName: http",
            "",
            "name: s, namespace: edge",
            "Accepted=NotAllowedByListeners ResolvedRefs=True",
        ),
        (
            "HTTPRoute",
            "apps",
            "",
            "",
            "name: s, namespace: edge",
            "Accepted=True ResolvedRefs=True",
        ),
        ("TCPRoute", "edge", "", "", "name: s", "Accepted=NotAllowedByListeners ResolvedRefs=True"),
        ("HTTPRoute", "edge", "", "", "name: nobody", "Accepted=True ResolvedRefs=BackendNotFound"),
        (
            "GRPCRoute",
            "edge",
            "",
            "",
            "name: s, kind: Bucket",
            "Accepted=True ResolvedRefs=InvalidKind",
        ),
    ] {
        let text = gateway("edge", &[HTTP, OPEN].join(", "))
            + &route(kind, namespace, parent, hosts, backend)
            + SERVICE;
        let objects = objects(&text);
        let parents = &find(&objects, kind, "r").status.parents;
        assert_eq!(parents.len(), 1, "{text}");
        assert_eq!(told(&parents[0].conditions), expected, "{text}");
    }
}

#[test]
fn listeners_tell_what_they_take_and_what_is_in_their_way() {
    let tls =
        "tls: {options: {towpath.dev/certificate-file: /c, towpath.dev/private-key-file: /k}}";
    for (listeners, gateway_told, expected) in [
        (format!("{HTTP}, {OPEN}"), "Accepted=True", vec!["Accepted=True ResolvedRefs=True"; 2]),
        (
            format!(
                "{HTTP}, {{name: same, port: 80, protocol: HTTP, hostname: \"*.example.com\"}}"
            ),
            "Accepted=ListenersNotValid",
            vec!["Accepted=HostnameConflict Conflicted=HostnameConflict ResolvedRefs=True"; 2],
        ),
        (
            format!("{OPEN}, {HTTP}, {{name: tcp, port: 80, protocol: TCP}}"),
            "Accepted=True:ListenersNotValid",
            vec![
                "Accepted=True ResolvedRefs=True",
                "Accepted=ProtocolConflict Conflicted=ProtocolConflict ResolvedRefs=True",
                "Accepted=ProtocolConflict Conflicted=ProtocolConflict ResolvedRefs=True",
            ],
        ),
        (
            format!(
                "{{name: a, port: 443, protocol: HTTPS, {tls}}}, {{name: b, port: 444, protocol: HTTPS}}"
            ),
            "Accepted=True",
            vec![
                "Accepted=True ResolvedRefs=True",
                "Accepted=True ResolvedRefs=InvalidCertificateRef",
            ],
        ),
        (
            "{name: a, port: 80, protocol: HTTP, allowedRoutes: {kinds: [{kind: TCPRoute}]}}"
                .to_owned(),
            "Accepted=True",
            vec!["Accepted=True ResolvedRefs=InvalidRouteKinds"],
        ),
    ] {
        let objects = objects(&gateway("edge", &listeners));
        let status = &find(&objects, "Gateway", "edge").status;
        assert_eq!(told(&status.conditions), gateway_told, "{listeners}");
        let each: Vec<_> = status.listeners.iter().map(|l| told(&l.conditions)).collect();
        assert_eq!(each, expected, "{listeners}");
    }
}

#[test]
fn attached_routes_are_counted_once_and_kinds_follow_the_protocol() {
    let twice = route("HTTPRoute", "edge", "", "", "name: s")
        .replace("parentRefs: [", "parentRefs: [{name: edge, sectionName: open}, ");
    let objects = objects(&(gateway("edge", &[HTTP, OPEN].join(", ")) + &twice + SERVICE));
    let listeners = &find(&objects, "Gateway", "edge").status.listeners;
    assert_eq!(listeners.iter().map(|l| l.attached_routes).collect::<Vec<_>>(), [1, 1]);
    let kinds: Vec<_> = listeners[0].supported_kinds.iter().map(|k| k.kind.as_str()).collect();
    assert_eq!(kinds, ["HTTPRoute", "GRPCRoute"]);
    assert_eq!(find(&objects, "HTTPRoute", "r").status.parents.len(), 2);
}

#[test]
fn gateways_of_others_are_let_be_and_broken_ones_are_told() {
    let theirs = gateway("theirs", HTTP).replace("towpath", "other");
    let broken = gateway("broken", "{name: a, port: 80, protocol: QUIC}");
    let objects = objects(&(theirs + &broken + &gateway("edge", HTTP)));
    let names: Vec<_> = objects.iter().map(|o| o.metadata.name.as_str()).collect();
    assert_eq!(names, ["towpath", "edge", "broken"]);
    assert_eq!(told(&find(&objects, "Gateway", "broken").status.conditions), "Accepted=Invalid");
}
