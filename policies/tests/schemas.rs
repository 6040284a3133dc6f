//! The JSON Schemas and the reader say the same: what is accepted validates,
//! what the schema refuses is refused, and every field is used by an example.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeSet, path::Path};

use serde_json::{Map, Value};
use towpath_policies::{
    check, folder,
    schema::{ALL_KINDS, schemas},
};

fn documents() -> Vec<Value> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata"));
    let mut documents = Vec::new();
    let mut files = folder::read(&folder.join("good")).unwrap();
    files.extend(folder::read(&folder.join("wide")).unwrap());
    for (path, text) in files {
        for part in text.split("\n---\n") {
            let value = serde_saphyr::from_str(part);
            documents.push(value.unwrap_or_else(|e| panic!("{}: {e}", path.display())));
        }
    }
    documents
}

fn schema(name: &str) -> Value {
    schemas().into_iter().find(|(n, _)| n == name).map(|(_, s)| s).unwrap()
}

fn schema_of(document: &Value) -> Value {
    schema(&format!("{}.schema.json", document["kind"].as_str().unwrap().to_lowercase()))
}

/// Problems of one document by itself, without those of what it refers to.
fn refused(document: &Value) -> bool {
    let text = serde_json::to_string(document).unwrap();
    let report = check([("a.yaml".into(), text)], "v".to_owned()).report;
    report.diagnostics.iter().any(|d| {
        let id = d.rule.id();
        !matches!(id, "dangling-reference" | "no-effect")
    })
}

#[test]
fn every_example_validates() {
    let all = jsonschema::validator_for(&schema(ALL_KINDS)).unwrap();
    for document in documents() {
        let own = jsonschema::validator_for(&schema_of(&document)).unwrap();
        for validator in [&own, &all] {
            let errors: Vec<_> = validator
                .iter_errors(&document)
                .map(|e| format!("{}: {e}", e.instance_path()))
                .collect();
            assert!(errors.is_empty(), "{document}: {errors:?}");
        }
        assert!(!refused(&document), "{document}");
    }
}

#[test]
fn foreign_documents_are_let_be_and_misspelt_kinds_are_not() {
    let all = jsonschema::validator_for(&schema(ALL_KINDS)).unwrap();
    let of = |version: &str, kind: &str| serde_json::json!({ "apiVersion": version, "kind": kind });
    assert!(all.is_valid(&of("v1", "ConfigMap")));
    assert!(!all.is_valid(&of("towpath.dev/v1alpha1", "Servce")));
    assert!(!all.is_valid(&of("towpath.dev/v1alpha1", "Service")));
}

/// Calls `change` for every object within `value`, one at a time, on a fresh copy.
fn each_object(
    value: &Value,
    change: &mut impl FnMut(&str, &Map<String, Value>) -> Vec<Map<String, Value>>,
) -> Vec<Value> {
    fn walk(
        root: &Value,
        pointer: &str,
        change: &mut impl FnMut(&str, &Map<String, Value>) -> Vec<Map<String, Value>>,
        found: &mut Vec<Value>,
    ) {
        match root.pointer(pointer).unwrap() {
            Value::Object(object) => {
                for changed in change(pointer, object) {
                    let mut copy = root.clone();
                    *copy.pointer_mut(pointer).unwrap() = Value::Object(changed);
                    found.push(copy);
                }
                for key in object.keys() {
                    let key = key.replace('~', "~0").replace('/', "~1");
                    walk(root, &format!("{pointer}/{key}"), change, found);
                }
            }
            Value::Array(items) => {
                for index in 0..items.len() {
                    walk(root, &format!("{pointer}/{index}"), change, found);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(value, "", change, &mut found);
    found
}

#[test]
fn an_unknown_field_is_refused_by_both_wherever_it_stands() {
    let mut tried = 0;
    for document in documents() {
        let validator = jsonschema::validator_for(&schema_of(&document)).unwrap();
        let mut add = |pointer: &str, object: &Map<String, Value>| {
            if pointer.ends_with("/labels") || pointer.ends_with("/annotations") {
                return Vec::new();
            }
            let mut changed = object.clone();
            changed.insert("unheardOf".to_owned(), Value::from(1));
            vec![changed]
        };
        for changed in each_object(&document, &mut add) {
            assert!(!validator.is_valid(&changed), "the schema accepts {changed}");
            assert!(refused(&changed), "the reader accepts {changed}");
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn what_the_schema_refuses_the_reader_refuses() {
    let wrong = || {
        [
            Value::from(-7),
            Value::from("\u{0}"),
            Value::from(true),
            serde_json::json!([[]]),
            serde_json::json!({ "a": {} }),
        ]
    };
    let (mut tried, mut invalid) = (0, 0);
    for document in documents() {
        let validator = jsonschema::validator_for(&schema_of(&document)).unwrap();
        let mut change = |_: &str, object: &Map<String, Value>| {
            let mut all = Vec::new();
            for key in object.keys() {
                let mut without = object.clone();
                without.shift_remove(key);
                all.push(without);
                for wrong in wrong() {
                    let mut changed = object.clone();
                    changed.insert(key.clone(), wrong);
                    all.push(changed);
                }
            }
            all
        };
        for changed in each_object(&document, &mut change) {
            tried += 1;
            // A document of an unknown kind is passed over, and a version is no matter of the schema of a kind.
            if validator.is_valid(&changed) || changed.get("kind").is_none_or(|k| !k.is_string()) {
                continue;
            }
            invalid += 1;
            assert!(
                refused(&changed) || changed["apiVersion"] != document["apiVersion"],
                "the reader accepts {changed}"
            );
        }
    }
    assert!(tried > 2000 && invalid > 1000, "{tried} {invalid}");
}

/// Fields that an example need not have: a cluster fills them in.
const OF_A_CLUSTER: [&str; 8] = [
    "status",
    "creationTimestamp",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "uid",
];

#[test]
fn sizes_that_a_double_does_not_hold_are_refused_by_both() {
    let document = |bytes: u64| {
        serde_json::json!({
            "apiVersion": "towpath.dev/v1alpha1",
            "kind": "BreakerPolicy",
            "metadata": { "name": "large" },
            "spec": {
                "targetRefs": [{ "kind": "Service", "name": "etl" }],
                "service": { "maxBytesInFlight": bytes },
            },
        })
    };
    let schema = jsonschema::validator_for(&schema("breakerpolicy.schema.json")).unwrap();
    for (bytes, fits) in [(1 << 53, true), ((1 << 53) + 1, false), (u64::MAX, false)] {
        let document = document(bytes);
        assert_eq!((schema.is_valid(&document), !refused(&document)), (fits, fits), "{bytes}");
    }
}

#[test]
fn every_field_is_described_and_used_by_an_example() {
    let mut known = BTreeSet::new();
    let mut used = BTreeSet::new();
    for (name, schema) in schemas() {
        if name == ALL_KINDS {
            continue;
        }
        for (definition, body) in schema["$defs"].as_object().unwrap() {
            for (field, body) in body["properties"].as_object().into_iter().flatten() {
                assert!(
                    body["description"].as_str().is_some_and(|d| !d.is_empty()),
                    "{definition}.{field}"
                );
                if !OF_A_CLUSTER.contains(&field.as_str()) {
                    known.insert(format!("{definition}.{field}"));
                }
            }
        }
    }
    for document in documents() {
        let schema = schema_of(&document);
        visit(&schema, &schema, "", &document, &mut used);
    }
    let unused: Vec<_> = known.difference(&used).collect();
    assert!(unused.is_empty(), "no example uses {unused:?}");
}

fn visit(root: &Value, schema: &Value, name: &str, instance: &Value, used: &mut BTreeSet<String>) {
    if let Some(definition) = schema["$ref"].as_str().and_then(|r| r.strip_prefix("#/$defs/")) {
        return visit(root, &root["$defs"][definition], definition, instance, used);
    }
    for alternative in schema["anyOf"].as_array().into_iter().flatten() {
        visit(root, alternative, name, instance, used);
    }
    match instance {
        Value::Object(object) => {
            for (key, value) in object {
                if let Some(property) = schema["properties"].get(key) {
                    used.insert(format!("{name}.{key}"));
                    visit(root, property, "", value, used);
                } else if let Some(any) = schema.get("additionalProperties") {
                    visit(root, any, "", value, used);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                visit(root, &schema["items"], "", item, used);
            }
        }
        _ => {}
    }
}
