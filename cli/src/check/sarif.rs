//! SARIF 2.1.0 (OASIS), as GitHub code scanning reads it.

use std::path::Path;

use serde_json::{Value, json};
use towpath_policies::{
    Diagnostic, Report, Severity,
    diagnostic::{Related, Rule},
};

use super::Root;

pub(super) fn document(report: &Report, root: &Root) -> anyhow::Result<String> {
    let rules: Vec<_> = Rule::ALL.iter().map(|rule| self::rule(*rule)).collect();
    let results: Vec<_> = report.diagnostics.iter().map(|d| result(d, root)).collect();
    let document = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "towpath",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            } },
            "columnKind": "unicodeCodePoints",
            "invocations": [{ "executionSuccessful": true }],
            "results": results,
        }],
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn rule(rule: Rule) -> Value {
    json!({
        "id": rule.id(),
        "shortDescription": { "text": rule.summary() },
        "fullDescription": { "text": rule.summary() },
        "defaultConfiguration": {
            "level": if rule == Rule::NoEffect { "warning" } else { "error" },
        },
    })
}

fn result(diagnostic: &Diagnostic, root: &Root) -> Value {
    let message = match &diagnostic.help {
        Some(help) => format!("{} ({help})", diagnostic.message),
        None => diagnostic.message.clone(),
    };
    let mut region = json!({
        "startLine": diagnostic.line,
        "startColumn": diagnostic.column,
        "endLine": diagnostic.line,
        "endColumn": diagnostic.column + diagnostic.length,
    });
    if !diagnostic.text.is_empty() {
        region["snippet"] = json!({ "text": diagnostic.text });
    }
    let level = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let related: Vec<_> = diagnostic.related.iter().map(|r| self::related(r, root)).collect();
    let index = Rule::ALL.iter().position(|rule| *rule == diagnostic.rule);
    let mut result = json!({
        "ruleId": diagnostic.rule.id(),
        "level": level,
        "message": { "text": message },
        "locations": [{ "physicalLocation": {
            "artifactLocation": { "uri": uri(&root.path(&diagnostic.file)) },
            "region": region,
        } }],
    });
    if let Some(index) = index {
        result["ruleIndex"] = index.into();
    }
    if !related.is_empty() {
        result["relatedLocations"] = related.into();
    }
    result
}

fn related(related: &Related, root: &Root) -> Value {
    json!({
        "message": { "text": related.message },
        "physicalLocation": {
            "artifactLocation": { "uri": uri(&root.path(&related.source.file)) },
            "region": { "startLine": related.source.line },
        },
    })
}

/// Relative to the folder the command ran in, where that is possible: code
/// scanning wants paths of the repository.
fn uri(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let path = path.strip_prefix(&here).unwrap_or(path);
    let escaped = escape(path);
    if path.is_absolute() { format!("file://{escaped}") } else { escaped }
}

/// RFC 3986: everything but unreserved characters and the slash as `%XX`.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(*byte));
            }
            other => text += &format!("%{other:02X}"),
        }
    }
    text
}
