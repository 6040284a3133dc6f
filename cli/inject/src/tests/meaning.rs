//! What a text means, apart from how it is written, and what towpath adds to that.

use crate::{
    kubernetes::{INTERCEPT, PROXY},
    record::INJECTED,
    tree::{Id, Kind, Tree},
};

/// A document without its style.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Meaning {
    Null,
    /// `bare` where it would be text if it were quoted.
    Scalar {
        text: String,
        bare: bool,
    },
    List(Vec<Meaning>),
    Map(Vec<(Meaning, Meaning)>),
    /// Names are not changed; what one repeats may hold the alias itself.
    Alias,
}

/// Asserts that `output` is `input`, and sidecars.
pub(super) fn check(name: &str, input: &str, output: &str) {
    let (before, after) = (documents(input), documents(output));
    assert_eq!(before.len(), after.len(), "{name}");
    for (before, after) in before.into_iter().zip(after) {
        assert_eq!(bare(before), bare(after), "{name}");
    }
}

/// As JSON on one line per document, as other tools write manifests anew; `None` with aliases.
pub(super) fn anew(text: &str) -> Option<String> {
    let documents = documents(text);
    let lines: Option<Vec<String>> = documents.iter().map(json).collect();
    lines.map(|lines| lines.join("\n---\n"))
}

fn json(meaning: &Meaning) -> Option<String> {
    Some(match meaning {
        Meaning::Null => "null".to_owned(),
        Meaning::Alias => return None,
        Meaning::Scalar { text, bare: true } => text.clone(),
        Meaning::Scalar { text, .. } => crate::emit::quoted(text),
        Meaning::List(items) => {
            let items: Option<Vec<String>> = items.iter().map(json).collect();
            format!("[{}]", items?.join(","))
        }
        Meaning::Map(entries) => {
            let entry = |(key, value): &(Meaning, Meaning)| {
                Some(format!("{}: {}", json(key)?, json(value)?))
            };
            let entries: Option<Vec<String>> = entries.iter().map(entry).collect();
            format!("{{{}}}", entries?.join(","))
        }
    })
}

pub(super) fn documents(text: &str) -> Vec<Meaning> {
    let tree = Tree::parse(text).unwrap();
    tree.documents.iter().map(|root| meaning(&tree, *root)).collect()
}

/// A number or a Boolean.
fn is_word(text: &str) -> bool {
    let boolean = ["true", "false", "yes", "no", "on", "off"];
    boolean.contains(&text.to_lowercase().as_str())
        || text.starts_with(|c: char| c.is_ascii_digit() || ".+-".contains(c))
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-_:".contains(&b))
}

fn meaning(tree: &Tree, id: Id) -> Meaning {
    match &tree.node(id).kind {
        Kind::Alias(_) => Meaning::Alias,
        _ if tree.is_null(id) => Meaning::Null,
        Kind::Scalar { text, plain } => {
            Meaning::Scalar { text: text.clone(), bare: *plain && is_word(text) }
        }
        Kind::List { items, .. } => {
            Meaning::List(items.iter().map(|id| meaning(tree, *id)).collect())
        }
        Kind::Map { entries, .. } => {
            let entry =
                |entry: &crate::tree::Entry| (meaning(tree, entry.key), meaning(tree, entry.value));
            Meaning::Map(entries.iter().map(entry).collect())
        }
    }
}

/// Without what towpath adds, and without what is then empty.
fn bare(meaning: Meaning) -> Meaning {
    match meaning {
        Meaning::List(items) => {
            let ours = |item: &Meaning| {
                let name = field(item, "name");
                [PROXY, INTERCEPT, "towpath"].into_iter().any(|own| name.as_deref() == Some(own))
            };
            Meaning::List(items.into_iter().filter(|item| !ours(item)).map(bare).collect())
        }
        Meaning::Map(entries) => {
            let mut kept = Vec::new();
            for (key, value) in entries {
                let name = text(&key).unwrap_or_default();
                let sidecar = value_has_mark(&value);
                if name == INJECTED || sidecar {
                    continue;
                }
                // It is there for a plain sidecar only where it was not before.
                if name == "kubectl.kubernetes.io/default-container" {
                    continue;
                }
                let value = bare(value);
                let made = ["initContainers", "volumes", "annotations", "metadata"];
                let empty = match &value {
                    Meaning::Null => true,
                    Meaning::List(items) => items.is_empty(),
                    Meaning::Map(entries) => entries.is_empty(),
                    _ => false,
                };
                if !(empty && made.contains(&name.as_str())) {
                    kept.push((key, value));
                }
            }
            Meaning::Map(kept)
        }
        other => other,
    }
}

/// A Compose service that was added.
fn value_has_mark(value: &Meaning) -> bool {
    let Meaning::Map(entries) = value else { return false };
    let labels = entries.iter().find(|(key, _)| text(key).as_deref() == Some("labels"));
    labels.is_some_and(|(_, labels)| field(labels, INJECTED).is_some())
}

fn field(map: &Meaning, name: &str) -> Option<String> {
    let Meaning::Map(entries) = map else { return None };
    entries
        .iter()
        .find(|(key, _)| text(key).as_deref() == Some(name))
        .and_then(|(_, value)| text(value))
}

fn text(meaning: &Meaning) -> Option<String> {
    match meaning {
        Meaning::Scalar { text, .. } => Some(text.clone()),
        _ => None,
    }
}
