//! Two values as plain data: where they differ, and how to say it.

use std::{collections::HashMap, time::Duration};

use serde_json::{Map, Value};

use super::FieldChange;
use crate::{
    model::{Action, RouteMatch},
    words,
};

pub(super) fn compare(
    path: &mut Vec<String>,
    was: &Value,
    is: &Value,
    changes: &mut Vec<FieldChange>,
) {
    if was == is {
        return;
    }
    match (was, is) {
        (Value::Object(old), Value::Object(new)) if !is_leaf(old) && !is_leaf(new) => {
            objects(path, old, new, changes);
        }
        (Value::Array(old), Value::Array(new)) if old.iter().chain(new).any(Value::is_object) => {
            lists(path, old, new, changes);
        }
        _ => changes.push(FieldChange {
            path: path.clone(),
            before: Some(text(was)),
            after: Some(text(is)),
        }),
    }
}

/// Objects that are read as one value.
fn is_leaf(object: &Map<String, Value>) -> bool {
    duration(object).is_some() || object.contains_key("grpc") || object.contains_key("latitude")
}

fn objects(
    path: &mut Vec<String>,
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    changes: &mut Vec<FieldChange>,
) {
    let variant = |object: &Map<String, Value>| {
        let (name, _) = object.iter().next().filter(|_| object.len() == 1)?;
        name.starts_with(char::is_uppercase).then(|| name.clone())
    };
    // An enum's variants: the same one is looked into, another one is another value.
    if let (Some(a), Some(b)) = (variant(old), variant(new)) {
        if a == b {
            compare(path, &old[&a], &new[&b], changes);
        } else {
            let (before, after) =
                (text(&Value::Object(old.clone())), text(&Value::Object(new.clone())));
            let (before, after) = (Some(before), Some(after));
            changes.push(FieldChange { path: path.clone(), before, after });
        }
        return;
    }
    for (key, was) in old {
        path.push(key.replace('_', " "));
        match new.get(key) {
            Some(is) => compare(path, was, is, changes),
            None => changes.push(FieldChange {
                path: path.clone(),
                before: Some(text(was)),
                after: None,
            }),
        }
        path.pop();
    }
    for (key, is) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
        path.push(key.replace('_', " "));
        changes.push(FieldChange { path: path.clone(), before: None, after: Some(text(is)) });
        path.pop();
    }
}

/// Lists of things with names: told by name, not by place.
fn lists(path: &mut Vec<String>, old: &[Value], new: &[Value], changes: &mut Vec<FieldChange>) {
    let what = path.pop().unwrap_or_default();
    let singular = singular(&what);
    let (old, new) = (labelled(old), labelled(new));
    let find = |list: &[(String, &Value)], label: &str| -> Option<Value> {
        list.iter().find(|(l, _)| l == label).map(|(_, value)| (*value).clone())
    };
    for (label, was) in &old {
        path.push(format!("{singular} {label}"));
        match find(&new, label) {
            Some(is) => compare(path, was, &is, changes),
            None => {
                let before = Some(item_text(was));
                changes.push(FieldChange { path: path.clone(), before, after: None });
            }
        }
        path.pop();
    }
    for (label, is) in new.iter().filter(|(label, _)| find(&old, label).is_none()) {
        path.push(format!("{singular} {label}"));
        let after = Some(item_text(is));
        changes.push(FieldChange { path: path.clone(), before: None, after });
        path.pop();
    }
    let order = |list: &[(String, &Value)], other: &[(String, &Value)]| -> Vec<String> {
        let kept = |l: &&(String, &Value)| other.iter().any(|(label, _)| *label == l.0);
        list.iter().filter(kept).map(|(label, _)| label.clone()).collect()
    };
    let (before, after) = (order(&old, &new), order(&new, &old));
    if before != after {
        path.push(format!("order of {what}"));
        let (before, after) = (Some(before.join(" | ")), Some(after.join(" | ")));
        changes.push(FieldChange { path: path.clone(), before, after });
        path.pop();
    }
    path.push(what);
}

fn singular(what: &str) -> String {
    match what.strip_suffix('s') {
        Some(one) => one.to_owned(),
        None => what.to_owned(),
    }
}

/// Each item under a label that is its own within the list.
fn labelled(list: &[Value]) -> Vec<(String, &Value)> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    list.iter()
        .map(|item| {
            let label = label(item);
            let times = seen.entry(label.clone()).or_default();
            *times += 1;
            let label = if *times > 1 { format!("{label} #{times}") } else { label };
            (label, item)
        })
        .collect()
}

fn label(item: &Value) -> String {
    let field = |name: &str| item.get(name).and_then(Value::as_str);
    if let (Some(name), Some(matches)) = (field("name"), item.get("matches")) {
        return format!("{name} {}", text(matches));
    }
    if let Some(name) = field("name").or(field("service")) {
        return name.to_owned();
    }
    // Sources of an origin.
    if let Some(header) = item.pointer("/registered/header") {
        return format!("registered by {}", text(header));
    }
    match item.get("server_names").and_then(Value::as_array) {
        Some(names) if names.is_empty() => "any".to_owned(),
        Some(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        None => text(item),
    }
}

/// What is worth saying of an item that came or went.
fn item_text(item: &Value) -> String {
    if let Some(action) = item.get("action") {
        return format!("-> {}", text(action));
    }
    if let Some(address) = item.get("address") {
        return format!("at {}", text(address));
    }
    if let Some(weight) = item.get("weight") {
        return format!("weight {}", text(weight));
    }
    if let Some(routes) = item.get("routes").and_then(Value::as_array) {
        return format!("with {} routes", routes.len());
    }
    if let Some(chains) = item.get("chains").and_then(Value::as_array) {
        return format!("with {} chains", chains.len());
    }
    if let Some(places) = item.pointer("/registered/places").and_then(Value::as_object) {
        return format!("with {} places", places.len());
    }
    text(item)
}

fn duration(object: &Map<String, Value>) -> Option<Duration> {
    let secs = object.get("secs")?.as_u64()?;
    let nanos = u32::try_from(object.get("nanos")?.as_u64()?).ok()?;
    (object.len() == 2).then(|| Duration::new(secs, nanos))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(text).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(object) => object_text(object, value),
        other => other.to_string(),
    }
}

fn object_text(object: &Map<String, Value>, value: &Value) -> String {
    if let Some(time) = duration(object) {
        return words::time(time);
    }
    if object.contains_key("grpc")
        && let Ok(matches) = serde_json::from_value::<RouteMatch>(value.clone())
    {
        return words::matches(&matches);
    }
    if object.len() == 1
        && let Ok(action) = serde_json::from_value::<Action>(value.clone())
    {
        return words::action(&action);
    }
    let parts: Vec<_> = object
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| format!("{} {}", key.replace('_', " "), text(value)))
        .collect();
    parts.join(", ")
}
