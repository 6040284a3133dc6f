//! What `diff` says of two meshes.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use towpath_policies::{
    diff::{ChangeKind, diff},
    folder, load,
    model::Mesh,
};

fn mesh(replace: &[(&str, &str)]) -> Mesh {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/good"));
    let mut files = folder::read(folder).unwrap();
    for (from, to) in replace {
        assert!(files.iter().any(|(_, text)| text.contains(from)), "{from} is there");
        for (_, text) in &mut files {
            *text = text.replace(from, to);
        }
    }
    load(files, "v".to_owned()).unwrap_or_else(|report| panic!("{report}"))
}

fn said(replace: &[(&str, &str)]) -> Vec<String> {
    diff(&mesh(&[]), &mesh(replace)).iter().map(ToString::to_string).collect()
}

#[test]
fn a_comment_or_a_written_out_default_is_no_change() {
    assert_eq!(
        said(&[
            ("  protocol: HTTP2", "  protocol: GRPC # a comment"),
            ("refresh: 30s}", "refresh: 0m30s}")
        ]),
        [""; 0]
    );
}

#[test]
fn values_are_told_by_name_before_and_after() {
    for (from, to, expected) in [
        (
            "weight: 100\n",
            "weight: 50\n",
            "~ endpoint set etl  (services.yml:10)\n    endpoint us-east-1, weight: 100 -> 50",
        ),
        (
            "maxRequests: 10000",
            "maxRequests: 20000",
            "~ service etl  (services.yml:3)\n    breaker, service, max requests: 10000 -> 20000",
        ),
        (
            "conditions: [connect-failure, refused-stream, reset, timeout,",
            "conditions: [connect-failure, refused-stream, reset,",
            "action, retry, condition Timeout: removed Timeout",
        ),
        ("connectTimeout: 5s", "connectTimeout: 1m30s", "    connect timeout: 5s -> 1m30s"),
        (
            "towpath.dev/bind: \"127.0.0.1\"",
            "towpath.dev/bind: \"127.0.0.2\"",
            "    bind: 127.0.0.1:8080 -> 127.0.0.2:8080",
        ),
        ("policy: BytesInFlight", "policy: Random", "    balancer: BytesInFlight -> Random"),
        (
            "name: etl, weight: 9}",
            "name: etl, weight: 4}",
            "    virtual host etl.example.com, route httproute/ingest/0 = /ingest/status, action, backend etl, weight: 9 -> 4",
        ),
        (
            "value: /old}",
            "value: /older}",
            "    virtual host etl.example.com, route httproute/ingest/1 /older[/*]: added -> etl",
        ),
        ("nodes: \"edge-*, gateway\"", "nodes: \"edge-*\"", "    nodes: edge-*, gateway -> edge-*"),
        (
            "sidecar: {node: db-0.redirected}",
            "sidecar: {node: db-9.redirected}",
            "    sidecar db-0.redirected: removed with 2 chains\n    sidecar db-9.redirected: added with 2 chains",
        ),
    ] {
        let said = said(&[(from, to)]).join("\n");
        assert!(said.contains(expected), "{from}: expected {expected}, said\n{said}");
    }
}

#[test]
fn of_a_list_of_registered_places_only_those_that_changed_are_told() {
    let registered = "  - registered:\n      header: X-Device\n      places:\n        pump-7: Munich\n        \"0042\": {latitude: 45.5, longitude: -122.7}\n";
    let device = "prediction, origin registered by x-device, registered, places";
    for (from, to, expected) in [
        (
            "longitude: -122.7}",
            "longitude: -122.5}",
            vec![format!(
                "{device}, 0042, coordinates: latitude 45.5, longitude -122.7 -> latitude 45.5, longitude -122.5"
            )],
        ),
        (
            "pump-7: Munich",
            "pump-8: Munich",
            vec![
                format!(
                    "{device}, pump-7: removed place Munich, coordinates latitude 48.137, longitude 11.575"
                ),
                format!(
                    "{device}, pump-8: added place Munich, coordinates latitude 48.137, longitude 11.575"
                ),
            ],
        ),
        (
            registered,
            "",
            vec!["prediction, origin registered by x-device: removed with 2 places".to_owned()],
        ),
        (
            "header: X-Device",
            "header: X-Pump",
            vec![
                "prediction, origin registered by x-device: removed with 2 places".to_owned(),
                "prediction, origin registered by x-pump: added with 2 places".to_owned(),
            ],
        ),
    ] {
        let said = said(&[(from, to)]).join("\n");
        for line in expected {
            assert!(said.contains(&line), "{from}: expected {line}, said\n{said}");
        }
    }
}

#[test]
fn what_came_and_what_went_is_told_with_its_place() {
    let (old, new) = (mesh(&[]), mesh(&[("- {name: pg, port: 5432", "- {name: pg, port: 5433")]));
    let changes = diff(&old, &new);
    let of = |kind| {
        changes.iter().filter(move |c| c.change == kind).map(|c| c.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(of(ChangeKind::Added), ["+ listener gateway/edge/5433  (edge.yaml:23)"]);
    assert_eq!(of(ChangeKind::Removed), ["- listener gateway/edge/5432  (edge.yaml:23)"]);
}
