//! The definitions for clusters: those in `deploy/crds` are the ones the types make, an API server
//! would take them, and they take every example.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Map, Value};
use towpath_policies::{folder, schema::crds};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds");

fn definitions() -> Vec<Value> {
    let parsed = |(name, text): (String, String)| {
        serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    crds().into_iter().map(parsed).collect()
}

fn schema(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

#[test]
fn what_is_committed_is_what_the_types_make() {
    let mut expected = BTreeSet::from(["Kustomization".to_owned()]);
    for (name, text) in crds() {
        let path = Path::new(FOLDER).join(&name);
        if std::env::var_os("BLESS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == text, "{} differs; BLESS=1 writes it", path.display());
        let listed = fs::read_to_string(Path::new(FOLDER).join("Kustomization")).unwrap();
        assert!(listed.contains(&format!("- {name}\n")), "Kustomization does not list {name}");
        expected.insert(name);
    }
    let found = fs::read_dir(FOLDER).unwrap();
    let found: BTreeSet<_> =
        found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, expected);
}

/// Calls `look` for every schema of a value, with its path; `false` within `anyOf` and the like.
fn each(
    schema: &Value,
    path: &str,
    outside: bool,
    look: &mut impl FnMut(&str, bool, &Map<String, Value>),
) {
    let schema = schema.as_object().unwrap_or_else(|| panic!("{path}: {schema}"));
    look(path, outside, schema);
    for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        each(field, &format!("{path}.{name}"), outside, look);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(key) {
            each(inner, &format!("{path}[]"), outside, look);
        }
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        for inner in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
            each(inner, &format!("{path}({key})"), false, look);
        }
    }
}

/// What API servers ask of the schemas of definitions.
#[test]
fn the_schemas_are_structural() {
    const OUTSIDE: [&str; 18] = [
        "type",
        "description",
        "enum",
        "pattern",
        "minimum",
        "maximum",
        "minItems",
        "minProperties",
        "maxProperties",
        "required",
        "properties",
        "items",
        "additionalProperties",
        "anyOf",
        "oneOf",
        "allOf",
        "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields",
    ];
    for definition in definitions() {
        each(schema(&definition), "", true, &mut |path, outside, schema| {
            for key in schema.keys() {
                assert!(OUTSIDE.contains(&key.as_str()), "{path}: {key}");
            }
            let int_or_string = schema.contains_key("x-kubernetes-int-or-string");
            let kept = schema.contains_key("x-kubernetes-preserve-unknown-fields");
            if outside {
                assert!(schema.contains_key("type") != (int_or_string || kept), "{path}: no type");
            } else {
                let odd = ["description", "properties", "items", "additionalProperties"];
                assert!(!odd.iter().any(|key| schema.contains_key(*key)), "{path}: {schema:?}");
            }
            assert!(
                !(schema.contains_key("properties") && schema.contains_key("additionalProperties")),
                "{path}"
            );
            // What a server stores must be what it was sent, or others who apply it are in conflict.
            assert!(schema.get("properties") != Some(&Value::Object(Map::new())), "{path}: empty");
        });
    }
}

/// Clients of API servers read YAML 1.1, in which a bare `off` or `no` is a truth value: a field of
/// that name would reach no server, and such a word is no text.
#[test]
fn no_field_and_no_word_is_a_truth_value_to_older_yaml() {
    const TAKEN: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let taken = |word: &str| TAKEN.contains(&word.to_ascii_lowercase().as_str());
    let mut looked_at = 0;
    for definition in definitions() {
        each(schema(&definition), "", true, &mut |path, _, schema| {
            let fields = schema.get("properties").and_then(Value::as_object);
            let words = schema.get("enum").and_then(Value::as_array);
            let words = words.into_iter().flatten().filter_map(Value::as_str);
            for word in fields.into_iter().flat_map(Map::keys).map(String::as_str).chain(words) {
                assert!(!taken(word), "{path}: {word}");
                looked_at += 1;
            }
        });
    }
    assert!(looked_at > 100, "{looked_at}");
}

#[test]
fn every_example_is_taken_and_no_field_of_one_is_dropped() {
    let mut tried = 0;
    let testdata = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata"));
    let mut files = folder::read(&testdata.join("good")).unwrap();
    files.extend(folder::read(&testdata.join("wide")).unwrap());
    for definition in definitions() {
        // What is not in the schema would be dropped by an API server.
        let mut strict = schema(&definition).clone();
        close(&mut strict);
        let validator = jsonschema::validator_for(&strict).unwrap();
        for (path, text) in &files {
            for part in text.split("\n---\n") {
                let document: Value = serde_saphyr::from_str(part).unwrap();
                let own = document["apiVersion"].as_str().unwrap().starts_with("towpath.dev/");
                if !own || document["kind"] != definition["spec"]["names"]["kind"] {
                    continue;
                }
                let errors: Vec<_> = validator
                    .iter_errors(&document)
                    .map(|e| format!("{}: {e}", e.instance_path()))
                    .collect();
                assert!(errors.is_empty(), "{}: {errors:?}", path.display());
                let mut wrong = document.clone();
                wrong["spec"] = Value::from("text");
                assert!(!validator.is_valid(&wrong));
                tried += 1;
            }
        }
    }
    assert!(tried > 20, "{tried}");
}

/// Refuses fields that are not listed, as pruning would drop them.
fn close(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    if schema.get("type") == Some(&"object".into()) && !schema.contains_key("additionalProperties")
    {
        schema.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    for field in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        // Its fields are the server's.
        if field.0 != "metadata" {
            close(field.1);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(key) {
            close(inner);
        }
    }
}

#[test]
fn what_may_be_a_number_or_text_is_bounded_as_both() {
    let find = |kind: &str| {
        definitions().into_iter().find(|d| d["spec"]["names"]["kind"] == kind).unwrap()
    };
    let transfer = find("TransferPolicy");
    let limit = schema(&transfer)
        .pointer("/properties/spec/properties/retry/properties/replayLimit")
        .unwrap();
    assert_eq!(limit["x-kubernetes-int-or-string"], true);
    let validator = jsonschema::validator_for(limit).unwrap();
    for (value, right) in [
        (Value::from(65_536), true),
        (Value::from("64KiB"), true),
        (Value::from("64 KiB"), true),
        (Value::from("much"), false),
        (Value::from(-1), false),
        (Value::from(true), false),
    ] {
        assert_eq!(validator.is_valid(&value), right, "{value}");
    }
    let balancer = find("BalancerPolicy");
    let bound = schema(&balancer).pointer("/properties/spec/properties/loadBoundPercent").unwrap();
    let validator = jsonschema::validator_for(bound).unwrap();
    for (value, right) in [(0, true), (50, false), (125, true), (1001, false)] {
        assert_eq!(validator.is_valid(&Value::from(value)), right, "{value}");
    }
}
