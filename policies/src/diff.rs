//! What changes between two meshes, resource by resource and field by field.

mod fields;

use std::{collections::BTreeSet, fmt};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    model::{Mesh, ResourceKey, ResourceKind, Source},
    words,
};

/// What happened to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// Only the new mesh has it.
    Added,
    /// Only the old mesh has it.
    Removed,
    /// Both have it, and it is not the same.
    Changed,
}

/// A resource that is not the same in both meshes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Which resource.
    pub resource: ResourceKey,
    /// What happened to it.
    pub change: ChangeKind,
    /// What of it changed, in a person's words; empty when it was added or removed.
    pub fields: Vec<FieldChange>,
    /// Where the old one is written.
    pub before: Option<Source>,
    /// Where the new one is written.
    pub after: Option<Source>,
}

/// A value that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// Which one, from the outside to the inside, e.g. `route httproute/ingest/0 /ingest[/*]`, `backend etl`, `weight`.
    pub path: Vec<String>,
    /// The old value; `None` when there was none.
    pub before: Option<String>,
    /// The new value; `None` when there is none.
    pub after: Option<String>,
}

/// Compares two meshes. Sorted by kind (listener, route table, service, endpoint set) and name.
pub fn diff(old: &Mesh, new: &Mesh) -> Vec<Change> {
    let mut changes = Vec::new();
    for kind in [
        ResourceKind::Listener,
        ResourceKind::RouteTable,
        ResourceKind::Service,
        ResourceKind::EndpointSet,
    ] {
        for name in names(old, kind).union(&names(new, kind)) {
            let resource = ResourceKey { kind, name: name.clone() };
            changes.extend(compare(old, new, resource));
        }
    }
    changes
}

fn names(mesh: &Mesh, kind: ResourceKind) -> BTreeSet<String> {
    match kind {
        ResourceKind::Listener => mesh.listeners.keys().cloned().collect(),
        ResourceKind::RouteTable => mesh.routes.keys().cloned().collect(),
        ResourceKind::Service => mesh.services.keys().cloned().collect(),
        ResourceKind::EndpointSet => mesh.endpoints.keys().cloned().collect(),
    }
}

fn compare(old: &Mesh, new: &Mesh, resource: ResourceKey) -> Option<Change> {
    let (was, is) = (value(old, &resource), value(new, &resource));
    let mut fields = Vec::new();
    let change = match (&was, &is) {
        (Some(was), Some(is)) => {
            fields::compare(&mut Vec::new(), was, is, &mut fields);
            if fields.is_empty() {
                return None;
            }
            ChangeKind::Changed
        }
        (None, Some(_)) => ChangeKind::Added,
        (Some(_), None) => ChangeKind::Removed,
        (None, None) => return None,
    };
    let before = old.sources.get(&resource).filter(|_| was.is_some()).cloned();
    let after = new.sources.get(&resource).filter(|_| is.is_some()).cloned();
    Some(Change { resource, change, fields, before, after })
}

/// A resource as plain data, in which equal things look equal.
fn value(mesh: &Mesh, resource: &ResourceKey) -> Option<Value> {
    let name = &resource.name;
    match resource.kind {
        ResourceKind::Listener => {
            let scoped = mesh.listeners.get(name)?;
            let mut value = serde_json::to_value(&*scoped.listener).ok()?;
            value["nodes"] = words::nodes(scoped).into();
            let own = scoped.own.iter().map(|(name, l)| json!({"name": name, "chains": l.chains}));
            value["sidecars"] = own.collect();
            Some(value)
        }
        ResourceKind::RouteTable => serde_json::to_value(&**mesh.routes.get(name)?).ok(),
        ResourceKind::Service => serde_json::to_value(&**mesh.services.get(name)?).ok(),
        ResourceKind::EndpointSet => serde_json::to_value(&**mesh.endpoints.get(name)?).ok(),
    }
}

/// `+ service etl (a.yaml:3)`, then an indented line for each field.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.change {
            ChangeKind::Added => '+',
            ChangeKind::Removed => '-',
            ChangeKind::Changed => '~',
        };
        write!(f, "{sign} {} {}", self.resource.kind, self.resource.name)?;
        match (&self.before, &self.after) {
            (Some(before), Some(after)) if before == after => write!(f, "  ({after})")?,
            (Some(before), Some(after)) => write!(f, "  ({before} -> {after})")?,
            (Some(one), None) | (None, Some(one)) => write!(f, "  ({one})")?,
            (None, None) => {}
        }
        for field in &self.fields {
            write!(f, "\n    {field}")?;
        }
        Ok(())
    }
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.join(", "))?;
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => write!(f, "{before} -> {after}"),
            (None, Some(after)) => write!(f, "added {after}"),
            (Some(before), None) => write!(f, "removed {before}"),
            (None, None) => Ok(()),
        }
    }
}
