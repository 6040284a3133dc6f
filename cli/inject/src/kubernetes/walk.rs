//! From a document to the pods in it.

use std::fmt;

use crate::{
    problem::Problem,
    tree::{Entry, Id, Kind, Tree},
};

/// Something that makes pods, or one itself.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) kind: &'static str,
    pub(crate) name: Option<String>,
    /// The object.
    pub(crate) object: Id,
    /// What holds the pod's `metadata` and `spec`: the template, or the Pod itself.
    pub(crate) holder: Id,
    /// The pod's `spec`.
    pub(crate) spec: Id,
    /// The way from the document to `spec`.
    pub(crate) trail: Vec<Step>,
}

/// From one object to a value in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) within: Id,
    pub(crate) key: &'static str,
    pub(crate) value: Id,
    /// A merge key brought the value.
    pub(crate) merged: bool,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name.as_deref().unwrap_or("?"))
    }
}

/// Kinds, the groups they are of, and the way to what holds the pod.
const KINDS: [(&str, &[&str], &[&str]); 7] = [
    ("Pod", &[""], &[]),
    ("Deployment", &["apps", "extensions"], &["spec", "template"]),
    ("StatefulSet", &["apps"], &["spec", "template"]),
    ("DaemonSet", &["apps", "extensions"], &["spec", "template"]),
    ("ReplicaSet", &["apps", "extensions"], &["spec", "template"]),
    ("Job", &["batch"], &["spec", "template"]),
    ("CronJob", &["batch"], &["spec", "jobTemplate", "spec", "template"]),
];

/// The workloads of a document, those of a List among them; and what looks like one but lacks its
/// containers.
pub(crate) fn workloads(text: &str, tree: &Tree, root: Id) -> (Vec<Workload>, Vec<Problem>) {
    let mut found = Vec::new();
    let mut notes = Vec::new();
    let mut objects = Vec::new();
    let list = tree.find_text(root, &["kind"]) == Some("List")
        && tree.find_text(root, &["apiVersion"]) == Some("v1");
    if list && let Some(items) = tree.find(root, &["items"]) {
        for item in tree.items(items) {
            if tree.find_text(*item, &["kind"]) == Some("List") {
                let message = "passed over: a List in a List";
                notes.push(Problem::new(text, head(tree, *item), message));
                continue;
            }
            let step = |value| Step { within: root, key: "items", value, merged: false };
            objects.push((*item, vec![step(items), step(*item)]));
        }
    } else {
        objects.push((root, Vec::new()));
    }
    for (object, trail) in objects {
        match workload(text, tree, object, trail) {
            Some(Ok(workload)) => found.push(workload),
            Some(Err(note)) => notes.push(note),
            None => {}
        }
    }
    (found, notes)
}

fn workload(
    text: &str,
    tree: &Tree,
    object: Id,
    mut trail: Vec<Step>,
) -> Option<Result<Workload, Problem>> {
    let kind = tree.find_text(object, &["kind"])?;
    let version = tree.find_text(object, &["apiVersion"])?;
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let (kind, _, path) =
        *KINDS.iter().find(|(name, groups, _)| *name == kind && groups.contains(&group))?;
    let pass_over = |why: String| {
        Problem::new(text, head(tree, object), format!("passed over: this {kind} has {why}"))
    };
    let mut holder = object;
    for key in path {
        let found = tree.get(holder, key).filter(|found| tree.is_map(found.value));
        let Some(found) = found else {
            return Some(Err(pass_over(format!("no {}", path.join(".")))));
        };
        trail.push(Step { within: holder, key, value: found.value, merged: found.entry.is_none() });
        holder = tree.resolve(found.value);
    }
    let containers = tree.find(holder, &["spec", "containers"]);
    let (Some(spec), Some(_)) =
        (tree.get(holder, "spec"), containers.filter(|id| !tree.items(*id).is_empty()))
    else {
        return Some(Err(pass_over("no containers; is it a patch?".to_owned())));
    };
    trail.push(Step {
        within: holder,
        key: "spec",
        value: spec.value,
        merged: spec.entry.is_none(),
    });
    let spec = tree.resolve(spec.value);
    let name = tree.find_text(object, &["metadata", "name"]);
    let name = name.or_else(|| {
        let prefix = tree.find_text(object, &["metadata", "generateName"])?;
        Some(prefix.trim_end_matches('-'))
    });
    let name = name.map(str::to_owned);
    Some(Ok(Workload { kind, name, object, holder, spec, trail }))
}

/// Where the kind of an object is written.
fn head(tree: &Tree, object: Id) -> std::ops::Range<usize> {
    match &tree.node(tree.resolve(object)).kind {
        Kind::Map { entries, .. } => {
            let kind = entries.iter().find(|entry: &&Entry| tree.text(entry.key) == Some("kind"));
            kind.map_or(0..0, |entry| tree.node(entry.value).range.clone())
        }
        _ => tree.node(object).range.clone(),
    }
}
