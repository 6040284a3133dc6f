//! The same kinds as CustomResourceDefinitions, so that a cluster takes and checks the files that
//! are read from Git.
//!
//! An API server asks for *structural* schemas: every value says its type in one place, nothing is
//! referred to, and what `anyOf` or `oneOf` hold only narrows it. What is one type or another can be
//! said only of whole numbers and text; else the value is kept as it is, and looked at by
//! `towpath check` and the control plane.

use serde_json::{Map, Value, json};

use crate::document::{Kind, OWN_GROUP, read::Definitions};

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
/// What a structural schema may say as ours do. An editor's notes, and that there are no other
/// fields (an API server drops those), are left out.
const KEPT: [&str; 12] = [
    "type",
    "description",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "allOf",
];

/// File name and definition of every kind of [`OWN_GROUP`].
pub(super) fn definitions() -> Vec<(String, Value)> {
    let own = Kind::ALL.into_iter().filter(|kind| kind.group() == OWN_GROUP);
    own.map(|kind| (format!("{}.yaml", plural(kind)), definition(kind))).collect()
}

fn plural(kind: Kind) -> String {
    let name = kind.name().to_lowercase();
    match name.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{name}s"),
    }
}

fn definition(kind: Kind) -> Value {
    let mut named = Definitions::default();
    let spec = kind.spec_schema(&mut named);
    let spec = structural(&spec, &named.into_json());
    let plural = plural(kind);
    let version = |name: &&str| {
        let schema = json!({
            "type": "object",
            "description": spec.get("description").cloned().unwrap_or_default(),
            "required": ["spec"],
            "properties": {
                "apiVersion": { "type": "string" },
                "kind": { "type": "string" },
                "metadata": { "type": "object" },
                "spec": spec.clone(),
            },
        });
        let newest = *name == kind.versions()[0];
        json!({
            "name": name,
            "served": true,
            "storage": newest,
            "schema": { "openAPIV3Schema": schema },
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{}", kind.group()),
            "labels": { "app.kubernetes.io/part-of": "towpath" },
        },
        "spec": {
            "group": kind.group(),
            "scope": "Namespaced",
            "names": {
                "kind": kind.name(),
                "listKind": format!("{}List", kind.name()),
                "plural": plural,
                "singular": kind.name().to_lowercase(),
                "categories": ["towpath"],
            },
            "versions": kind.versions().iter().map(version).collect::<Vec<_>>(),
        },
    })
}

/// `schema` as a structural one; `named` are those that it refers to, none of which contains itself.
fn structural(schema: &Value, named: &Value) -> Value {
    let schema = followed(schema, named);
    let choice = ["anyOf", "oneOf"].into_iter().find_map(|key| schema.get(key)?.as_array());
    if let Some(choice) = choice {
        return either(&schema, &choice.iter().map(|one| followed(one, named)).collect::<Vec<_>>());
    }
    let mut result = Map::new();
    for key in KEPT {
        if let Some(value) = schema.get(key) {
            result.insert(key.to_owned(), value.clone());
        }
    }
    if !result.contains_key("type") {
        result.insert(PRESERVE.to_owned(), true.into());
    }
    if let Some(Value::Object(properties)) = schema.get("properties") {
        let field = |(key, value): (&String, &Value)| (key.clone(), structural(value, named));
        let fields: Map<_, _> = properties.iter().map(field).collect();
        // API servers keep no empty list, and would take it for a change each time.
        if !fields.is_empty() {
            result.insert("properties".to_owned(), fields.into());
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(each) = schema.get(key).filter(|each| each.is_object()) {
            result.insert(key.to_owned(), structural(each, named));
        }
    }
    result.into()
}

/// What `$ref` points at, with what stands beside it.
fn followed(schema: &Value, named: &Value) -> Map<String, Value> {
    let mut schema = schema.as_object().cloned().unwrap_or_default();
    let Some(Value::String(target)) = schema.remove("$ref") else { return schema };
    let name = target.trim_start_matches("#/$defs/");
    let mut result = named[name].as_object().cloned().unwrap_or_default();
    result.extend(schema);
    result
}

/// A value that is one of `choice`.
fn either(schema: &Map<String, Value>, choice: &[Map<String, Value>]) -> Value {
    let mut result = Map::new();
    if let Some(description) = schema.get("description") {
        result.insert("description".to_owned(), description.clone());
    }
    let kind = |one: &Map<String, Value>| match one.get("const") {
        Some(value) if value.is_u64() => "integer".to_owned(),
        _ => one.get("type").and_then(Value::as_str).unwrap_or_default().to_owned(),
    };
    let kinds: Vec<_> = choice.iter().map(kind).collect();
    if kinds == ["integer", "string"] {
        result.insert("x-kubernetes-int-or-string".to_owned(), true.into());
        result.insert("anyOf".to_owned(), json!([{ "type": "integer" }, { "type": "string" }]));
        // Each of these is held against values of its own type only.
        result.extend(choice.iter().flat_map(bounds));
    } else if kinds.iter().all(|kind| kind == "integer") {
        result.insert("type".to_owned(), "integer".into());
        let narrow = choice.iter().map(|one| match one.get("const") {
            Some(value) => json!({ "enum": [value] }),
            None => bounds(one).collect(),
        });
        result.insert("anyOf".to_owned(), narrow.collect());
    } else {
        result.insert(PRESERVE.to_owned(), true.into());
    }
    result.into()
}

/// What narrows a value further than its type does.
fn bounds(schema: &Map<String, Value>) -> impl Iterator<Item = (String, Value)> {
    let narrows = |(key, _): &(&String, &Value)| KEPT[2..].contains(&key.as_str());
    schema.iter().filter(narrows).map(|(key, value)| (key.clone(), value.clone()))
}
