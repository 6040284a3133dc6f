//! The conditions of Gateway API objects: a line for each object, listener and parent, and what is not as it
//! should be.

use serde::Deserialize;
use towpath_policies::conditions::{Condition, ObjectStatus, Truth};

use crate::admin::plain;

/// The answer of the control plane.
#[derive(Deserialize)]
struct List {
    items: Vec<ObjectStatus>,
}

pub(super) fn text(body: &[u8]) -> anyhow::Result<String> {
    let List { items } = serde_json::from_slice(body)?;
    let mut lines = Vec::new();
    for object in &items {
        let name = match &object.metadata.namespace {
            Some(namespace) => format!("{namespace}/{}", object.metadata.name),
            None => object.metadata.name.clone(),
        };
        line(0, &format!("{} {name}", object.kind), &object.status.conditions, &mut lines);
        for listener in &object.status.listeners {
            let routes = listener.attached_routes;
            let what = format!("listener {} ({routes} attached)", listener.name);
            line(1, &what, &listener.conditions, &mut lines);
        }
        for parent in &object.status.parents {
            let at = &parent.parent_ref;
            let section = at.section_name.as_ref().map(|s| format!("/{s}")).unwrap_or_default();
            let port = at.port.map(|port| format!(" port {port}")).unwrap_or_default();
            let what = format!("at {} {}/{}{section}{port}", at.kind, at.namespace, at.name);
            line(1, &what, &parent.conditions, &mut lines);
        }
    }
    Ok(lines.iter().fold(String::new(), |page, line| page + line + "\n"))
}

fn line(indent: usize, what: &str, conditions: &[Condition], lines: &mut Vec<String>) {
    let margin = "  ".repeat(indent);
    let short: Vec<_> = conditions.iter().filter_map(short).collect();
    lines.push(
        format!("{margin}{}  {}", plain(what), plain(&short.join(" "))).trim_end().to_owned(),
    );
    for condition in conditions.iter().filter(|condition| is_bad(condition)) {
        let said = format!("{}: {}", condition.reason, condition.message);
        lines.push(format!("{margin}    {}", plain(&said)));
    }
}

/// No conflict is no news.
fn short(condition: &Condition) -> Option<String> {
    match (condition.kind.as_str(), condition.status) {
        ("Conflicted", Truth::False) => None,
        (kind, Truth::True) => Some(kind.to_owned()),
        (kind, Truth::False) => Some(format!("not-{kind}")),
        (kind, Truth::Unknown) => Some(format!("{kind}?")),
    }
}

fn is_bad(condition: &Condition) -> bool {
    (condition.status == Truth::True) == (condition.kind == "Conflicted")
        || condition.reason == "ListenersNotValid"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_it_should_be_is_told_with_its_reason() {
        let condition = |kind: &str, status: &str, reason: &str| {
            serde_json::json!({
                "type": kind, "status": status, "reason": reason, "message": "because",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        };
        let body = serde_json::json!({
            "apiVersion": "v1", "kind": "List", "items": [
                {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                 "metadata": {"namespace": "default", "name": "edge"},
                 "status": {
                    "conditions": [condition("Accepted", "True", "Accepted"), condition("Programmed", "False", "Pending")],
                    "listeners": [{"name": "http", "supportedKinds": [], "attachedRoutes": 2, "conditions": [
                        condition("Accepted", "True", "Accepted"), condition("Conflicted", "False", "NoConflicts")]}]}},
                {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                 "metadata": {"namespace": "apps", "name": "web"},
                 "status": {"parents": [{"parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway",
                    "namespace": "default", "name": "edge", "sectionName": "http"}, "controllerName": "c",
                    "conditions": [condition("Accepted", "False", "NotAllowedByListeners")]}]}},
            ],
        });
        assert_eq!(
            text(body.to_string().as_bytes()).unwrap(),
            "Gateway default/edge  Accepted not-Programmed\n    Pending: because\n  \
             listener http (2 attached)  Accepted\nHTTPRoute apps/web\n  \
             at Gateway default/edge/http  not-Accepted\n      NotAllowedByListeners: because\n"
        );
        assert!(text(b"{}").is_err());
    }
}
