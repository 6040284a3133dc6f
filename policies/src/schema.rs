//! JSON Schemas of the policy documents, for editors, and the definitions of our kinds for clusters.
//!
//! Derived from the very declarations that the documents are read by.

mod crd;
mod write;

use serde_json::{Value, json};

use crate::document::{self, Kind};

/// File name of the schema that knows every kind.
pub const ALL_KINDS: &str = "towpath.schema.json";

/// File name and schema of every kind, and [`ALL_KINDS`] first.
pub fn schemas() -> Vec<(String, Value)> {
    let mut schemas = vec![(ALL_KINDS.to_owned(), all_kinds())];
    for kind in Kind::ALL {
        let name = format!("{}.schema.json", kind.name().to_lowercase());
        schemas.push((name, document::schema(kind)));
    }
    schemas
}

/// File name and text of a `CustomResourceDefinition` (YAML, `apiextensions.k8s.io/v1`) for each of
/// Towpath's own kinds.
pub fn crds() -> Vec<(String, String)> {
    let written = |(name, definition)| (name, format!("{CRD_HEAD}{}", write::yaml(&definition)));
    crd::definitions().into_iter().map(written).collect()
}

const CRD_HEAD: &str = "# Written by `towpath schema --crds`; edit the Rust types in its place.\n";

/// Picks by `apiVersion` and `kind`, so that an editor tells what is wrong in
/// that kind, and lets documents of other groups be.
fn all_kinds() -> Value {
    let mut definitions = serde_json::Map::new();
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        let Value::Object(mut schema) = document::schema(kind) else { continue };
        schema.remove("$schema");
        if let Some(Value::Object(own)) = schema.remove("$defs") {
            definitions.extend(own);
        }
        let group = format!("^{}/", kind.group().replace('.', "\\."));
        cases.push(json!({
            "if": {
                "properties": {
                    "apiVersion": { "type": "string", "pattern": group },
                    "kind": { "const": kind.name() },
                },
                "required": ["apiVersion", "kind"],
            },
            "then": { "$ref": format!("#/$defs/{}", kind.name()) },
        }));
        definitions.insert(kind.name().to_owned(), Value::Object(schema));
    }
    for group in [document::OWN_GROUP, document::GATEWAY_GROUP] {
        let kinds = Kind::ALL.iter().filter(|k| k.group() == group).map(|k| k.name());
        let kinds: Vec<_> = kinds.collect();
        let pattern = format!("^{}/", group.replace('.', "\\."));
        cases.push(json!({
            "if": {
                "properties": { "apiVersion": { "type": "string", "pattern": pattern } },
                "required": ["apiVersion"],
            },
            "then": { "properties": { "kind": { "enum": kinds } } },
        }));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Towpath policy document",
        "type": "object",
        "properties": {
            "apiVersion": { "type": "string", "description": "Group and version, e.g. towpath.dev/v1alpha1." },
            "kind": { "type": "string", "description": "Kind of the document." },
        },
        "required": ["apiVersion", "kind"],
        "allOf": cases,
        "$defs": definitions,
    })
}
