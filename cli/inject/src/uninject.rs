//! Takes out what was put in, by what the annotation (in Compose: the label) says of it.

use std::{cmp::Ordering, collections::BTreeSet};

use crate::{
    Kind, compose,
    edit::Edits,
    kubernetes,
    problem::Problem,
    record::{INJECTED, Record, compare},
    tree::{Entry, Id, Tree},
};

/// Where a newer version than `own` has injected.
pub(crate) fn newer(text: &str, tree: &Tree, own: &str, kind: Option<Kind>) -> Vec<Problem> {
    let mut marks: Vec<Id> = Vec::new();
    for root in &tree.documents {
        marks.extend(pods(text, tree, *root).into_iter().map(|(_, _, mark)| mark.value));
        marks.extend(compose::injected(tree, *root, kind).into_iter().map(|(_, _, mark)| mark));
    }
    let newer = |mark: &Id| {
        let version = tree.text(*mark)?.split_ascii_whitespace().next()?.to_owned();
        (compare(&version, own) == Ordering::Greater).then_some(version)
    };
    let problem = |mark: &Id| {
        let message =
            format!("injected by towpath {}, which is newer than this one, {own}", newer(mark)?);
        let problem = Problem::new(text, tree.node(*mark).range.clone(), message);
        Some(problem.help("use that version, or take it out first with --uninject"))
    };
    marks.iter().filter_map(problem).collect()
}

/// Marks all that was put in for removal. Returns what it was put into.
pub(crate) fn plan(
    text: &str,
    tree: &Tree,
    kind: Option<Kind>,
    edits: &mut Edits<'_>,
) -> Result<Vec<String>, Vec<Problem>> {
    let mut changed = Vec::new();
    let mut problems = Vec::new();
    for root in &tree.documents {
        for (name, holder, mark) in pods(text, tree, *root) {
            let Some(record) = tree.text(mark.value).and_then(Record::parse) else {
                let message = "this does not say what was added in a way that is known here";
                let problem = Problem::new(text, tree.node(mark.value).range.clone(), message);
                problems.push(problem.help("use the version of towpath that wrote it"));
                continue;
            };
            take_out(tree, holder, &record, edits);
            changed.push(name);
        }
        for (services, index, _) in compose::injected(tree, *root, kind) {
            edits.remove(services, index);
            let name = tree.text(tree.entries(services)[index].key).unwrap_or_default();
            changed.push(name.strip_suffix(compose::SUFFIX).unwrap_or(name).to_owned());
        }
    }
    if problems.is_empty() { Ok(changed) } else { Err(problems) }
}

/// Pods with a record of what was added: name, what holds metadata and spec, and the annotation.
fn pods(text: &str, tree: &Tree, root: Id) -> Vec<(String, Id, Entry)> {
    let (workloads, _) = kubernetes::workloads(text, tree, root);
    let marked = workloads.into_iter().filter_map(|workload| {
        let annotations = tree.find(workload.holder, &["metadata", "annotations"])?;
        let mark = tree.entry(annotations, INJECTED)?;
        Some((workload.to_string(), workload.holder, mark))
    });
    marked.collect()
}

fn take_out(tree: &Tree, holder: Id, record: &Record, edits: &mut Edits<'_>) {
    let mut going = Going::default();
    let mark: Vec<String> = ["metadata", "annotations", INJECTED].map(str::to_owned).to_vec();
    let mut places: Vec<&Vec<String>> =
        record.added.iter().chain(record.replaced.keys()).chain([&mark]).collect();
    // From the inside out: a list that was made goes if nothing else has come into it.
    places.sort_by_key(|place| std::cmp::Reverse(place.len()));
    for place in places {
        let Some((within, index)) = locate(tree, holder, place) else { continue };
        let value = going.value(tree, within, index);
        let host = places_in(record, &mark, place);
        if host && !going.empties(tree, value) {
            continue;
        }
        match record.replaced.get(place) {
            Some(written) if tree.is_map(within) => {
                going.forget(tree, value);
                edits.restore(tree.entries(within)[index], written);
            }
            _ => {
                going.0.insert((within, index));
            }
        }
    }
    going.0.into_iter().for_each(|(within, index)| edits.remove(within, index));
}

/// Whether the record names something within this place.
fn places_in(record: &Record, mark: &[String], place: &[String]) -> bool {
    let inner = |other: &[String]| other.len() > place.len() && other.starts_with(place);
    inner(mark) || record.added.iter().any(|added| inner(added))
}

/// Entries of objects and lists that go.
#[derive(Default)]
struct Going(BTreeSet<(Id, usize)>);

impl Going {
    fn value(&self, tree: &Tree, within: Id, index: usize) -> Id {
        let value = match tree.entries(within).get(index) {
            Some(entry) => entry.value,
            None => tree.items(within)[index],
        };
        tree.resolve(value)
    }

    /// Whether nothing is left in it.
    fn empties(&self, tree: &Tree, holder: Id) -> bool {
        let count = tree.entries(holder).len() + tree.items(holder).len();
        (0..count).all(|index| self.0.contains(&(holder, index)))
    }

    /// What is in it goes with it.
    fn forget(&mut self, tree: &Tree, holder: Id) {
        let count = tree.entries(holder).len() + tree.items(holder).len();
        (0..count).for_each(|index| {
            self.0.remove(&(holder, index));
        });
    }
}

/// The object or list that a place is in, and which of its entries it is.
fn locate(tree: &Tree, holder: Id, place: &[String]) -> Option<(Id, usize)> {
    let mut within = tree.resolve(holder);
    let (last, steps) = place.split_last()?;
    for step in steps {
        let index = child(tree, within, step)?;
        within = Going::default().value(tree, within, index);
    }
    Some((within, child(tree, within, last)?))
}

fn child(tree: &Tree, within: Id, step: &str) -> Option<usize> {
    if tree.is_map(within) {
        return tree.entries(within).iter().position(|entry| tree.text(entry.key) == Some(step));
    }
    tree.items(within).iter().position(|item| tree.find_text(*item, &["name"]) == Some(step))
}
