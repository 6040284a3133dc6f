//! Ports that the kubelet asks at.
//!
//! They are left out of interception, and probes go on asking the application itself: the kubelet
//! has no identity of the mesh, and a probe that went through the sidecar would say how the two of
//! them are, so that a restart of one would be answered by a restart of the other. Rewriting
//! probes (as Istio does) would need a second way into the application through the proxy; the
//! price of not having it is that the port's other traffic is left out as well, which is told.

use crate::tree::{Id, Tree};

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const HOOKS: [&str; 2] = ["postStart", "preStop"];
const ACTIONS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// All ports that are probed.
pub(super) fn ports(tree: &Tree, spec: Id) -> Vec<u16> {
    probed(tree, spec).into_iter().map(|(_, port)| port).collect()
}

/// Probed ports that a container also declares, so that other traffic comes in there.
pub(super) fn shared(tree: &Tree, spec: Id) -> Vec<(Id, u16)> {
    let declared: Vec<u16> = containers(tree, spec)
        .flat_map(|container| declared(tree, container).map(|(_, port)| port).collect::<Vec<_>>())
        .collect();
    let mut shared = probed(tree, spec);
    shared.retain(|(_, port)| declared.contains(port));
    shared.sort_by_key(|(_, port)| *port);
    shared.dedup_by_key(|(_, port)| *port);
    shared
}

fn probed(tree: &Tree, spec: Id) -> Vec<(Id, u16)> {
    let mut found = Vec::new();
    for container in containers(tree, spec) {
        let probes = PROBES.iter().filter_map(|probe| tree.find(container, &[probe]));
        let hooks = HOOKS.iter().filter_map(|hook| tree.find(container, &["lifecycle", hook]));
        for action in probes.chain(hooks) {
            let ports = ACTIONS.iter().filter_map(|kind| tree.find(action, &[kind, "port"]));
            found.extend(ports.filter_map(|at| Some((at, number(tree, container, at)?))));
        }
    }
    found
}

/// A port by its number, or by the name that the container gives it.
fn number(tree: &Tree, container: Id, at: Id) -> Option<u16> {
    let text = tree.text(at)?;
    text.parse().ok().or_else(|| {
        declared(tree, container).find(|(name, _)| *name == Some(text)).map(|(_, port)| port)
    })
}

fn declared(tree: &Tree, container: Id) -> impl Iterator<Item = (Option<&str>, u16)> {
    let ports = tree.find(container, &["ports"]).map_or(&[][..], |ports| tree.items(ports));
    ports.iter().filter_map(|port| {
        let number = tree.find_text(*port, &["containerPort"])?.parse().ok()?;
        Some((tree.find_text(*port, &["name"]), number))
    })
}

fn containers(tree: &Tree, spec: Id) -> impl Iterator<Item = Id> {
    ["initContainers", "containers"]
        .into_iter()
        .filter_map(move |key| tree.find(spec, &[key]))
        .flat_map(|list| tree.items(list).iter().copied())
}
