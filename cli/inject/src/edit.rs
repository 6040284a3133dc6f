//! Changes to a text at places of its tree, made so that they can be taken back to the byte.
//!
//! What is added to block style takes whole lines, in front of a line that is there already:
//! behind the last line a block scalar without a final newline would change. What is added to
//! flow style (JSON too) stands in front of the first entry and takes its layout. So whatever is
//! added can be taken out by its place in the tree, without a mark in the text.

mod place;
mod removal;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use crate::{
    emit::{self, Layout, Spread, Value},
    problem::Problem,
    tree::{Entry, Id, Kind, Tree},
};

/// What is put into a list or an object.
#[derive(Clone, Debug)]
pub(crate) enum Addition {
    Items(Vec<Value>),
    Entries(Vec<(String, Value)>),
}

/// What became of the list or object that was added to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// It was not there.
    Made,
    /// It was there, and is only longer now.
    Extended,
    /// It was null, and this is how that was written.
    Replaced(String),
}

/// What comes first of what is put at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The value of the key above.
    Value,
    /// What stands in front of what follows.
    Before,
}

/// Changes that are gathered and then made at once.
#[derive(Debug)]
pub(crate) struct Edits<'t> {
    text: &'t str,
    tree: &'t Tree,
    /// By place. Where a key without a value is followed by one that something is put in front of,
    /// the value comes first.
    inserts: BTreeMap<(usize, Rank), String>,
    replaces: BTreeMap<usize, (usize, String)>,
    /// By list or object: which of its entries go.
    removed: BTreeMap<Id, BTreeSet<usize>>,
}

impl<'t> Edits<'t> {
    pub(crate) fn new(text: &'t str, tree: &'t Tree) -> Self {
        Self {
            text,
            tree,
            inserts: BTreeMap::new(),
            replaces: BTreeMap::new(),
            removed: BTreeMap::new(),
        }
    }

    /// Whether anything changes.
    pub(crate) fn is_empty(&self) -> bool {
        self.inserts.is_empty() && self.replaces.is_empty() && self.removed.is_empty()
    }

    /// Adds to the value of `key` in `map`, and makes one in front of one of the keys `before`
    /// where there is none.
    pub(crate) fn add(
        &mut self,
        map: Id,
        key: &str,
        addition: Addition,
        before: &[&str],
    ) -> Result<Host, Problem> {
        let host = self.host(map, key);
        let Some(found) = self.tree.get(map, key) else {
            let value = match addition {
                Addition::Items(items) => Value::List(items),
                Addition::Entries(entries) => Value::Map(entries),
            };
            self.insert_key(map, key, &value, before)?;
            return Ok(host);
        };
        let Some(entry) = found.entry else {
            return Err(self.merged(map, key));
        };
        self.refuse_shared(entry.value, key)?;
        if self.tree.is_null(entry.value) {
            self.fill_null(map, entry, &addition)?;
            return Ok(host);
        }
        match (&self.tree.node(entry.value).kind, addition) {
            (Kind::List { flow: true, items }, Addition::Items(new)) => {
                let parts =
                    |spread: &Spread| new.iter().map(|item| emit::flow(item, spread)).collect();
                self.insert_flow(entry.value, items.first().copied(), '[', parts)?;
            }
            (Kind::Map { flow: true, entries }, Addition::Entries(new)) => {
                let parts = |spread: &Spread| {
                    new.iter().map(|(key, value)| emit::flow_entry(key, value, spread)).collect()
                };
                self.insert_flow(entry.value, entries.first().map(|entry| entry.key), '{', parts)?;
            }
            (Kind::List { flow: false, .. }, Addition::Items(new)) => {
                self.insert_items(entry, &new)?;
            }
            (Kind::Map { flow: false, .. }, Addition::Entries(new)) => {
                for (key, value) in &new {
                    self.insert_key(entry.value, key, value, &[])?;
                }
            }
            (_, addition) => {
                let what = match addition {
                    Addition::Items(_) => "a list",
                    Addition::Entries(_) => "an object",
                };
                return Err(self.problem(entry.value, format!("`{key}` must be {what}")));
            }
        }
        Ok(host)
    }

    /// What adding to the value of `key` would come to.
    pub(crate) fn host(&self, map: Id, key: &str) -> Host {
        let Some(found) = self.tree.get(map, key) else { return Host::Made };
        if !self.tree.is_null(found.value) {
            return Host::Extended;
        }
        let flow = matches!(self.tree.node(map).kind, Kind::Map { flow: true, .. });
        match &self.text[self.tree.node(found.value).range.clone()] {
            "" if !flow => Host::Extended,
            written => Host::Replaced(written.to_owned()),
        }
    }

    /// Puts `key: value` into an object, in front of one of the keys `before` if it can be.
    pub(crate) fn insert_key(
        &mut self,
        map: Id,
        key: &str,
        value: &Value,
        before: &[&str],
    ) -> Result<(), Problem> {
        let entries = self.tree.entries(map);
        if let Kind::Map { flow: true, .. } = self.tree.node(map).kind {
            let parts = |spread: &Spread| vec![emit::flow_entry(key, value, spread)];
            return self.insert_flow(map, entries.first().map(|entry| entry.key), '{', parts);
        }
        let wanted = before.iter().filter_map(|key| self.tree.entry(map, key));
        let alone = |entry: &Entry| self.indent(self.start(entry.key)).is_some();
        let Some(next) = wanted.chain(entries.iter().copied()).find(alone) else {
            let message = format!("there is no line of its own here for `{key}`");
            return Err(self
                .problem(map, message)
                .help("write the keys of this object on lines of their own"));
        };
        let start = self.start(next.key);
        let indent = self.indent(start).unwrap_or_default();
        let place = entries.iter().position(|entry| *entry == next).unwrap_or_default();
        let above = place.checked_sub(1).map_or(0, |at| self.entry_end(entries[at]));
        let layout =
            Layout { indent, list_offset: self.list_offset(entries), newline: self.newline(start) };
        let chunk = emit::block_entry(key, value, layout);
        let at = self.above_comments(start, above);
        self.insert(at, Rank::Before, &chunk);
        Ok(())
    }

    /// Marks an entry of an object or a list for removal.
    pub(crate) fn remove(&mut self, holder: Id, index: usize) {
        self.removed.entry(holder).or_default().insert(index);
    }

    /// Writes null again, as it was written before it was replaced.
    pub(crate) fn restore(&mut self, entry: Entry, written: &str) {
        let value = &self.tree.node(entry.value).range;
        let start = if written.is_empty() {
            self.colon(entry).map_or(value.start, |at| at + 1)
        } else {
            value.start
        };
        self.replaces.insert(start, (value.end.max(start), written.to_owned()));
    }

    /// The text with all changes.
    pub(crate) fn apply(&self) -> Result<String, Problem> {
        let changes = self.changes()?;
        let mut text = String::with_capacity(self.text.len() + 2048);
        let mut done = 0;
        for (range, new) in changes {
            text.push_str(&self.text[done..range.start]);
            text.push_str(new);
            done = range.end;
        }
        text.push_str(&self.text[done..]);
        Ok(text)
    }

    /// Where what stands at a place after the changes was before them.
    pub(crate) fn origin(&self, after: usize) -> usize {
        let (mut before, mut written) = (0, 0);
        for (range, new) in self.changes().unwrap_or_default() {
            let kept = range.start - before;
            if after < written + kept {
                break;
            }
            written += kept;
            if after < written + new.len() {
                return range.start;
            }
            written += new.len();
            before = range.end;
        }
        before + (after - written)
    }

    /// What is replaced by what, in order, without overlap.
    fn changes(&self) -> Result<Vec<(Range<usize>, &str)>, Problem> {
        let mut changes: Vec<(Range<usize>, &str)> = Vec::new();
        changes.extend(self.inserts.iter().map(|((at, _), text)| (*at..*at, text.as_str())));
        changes.extend(self.replaces.iter().map(|(at, (end, text))| (*at..*end, text.as_str())));
        changes.extend(self.removals()?.into_iter().map(|range| (range, "")));
        changes.sort_by_key(|(range, _)| range.start);
        let mut done = 0;
        // What is replaced goes as a whole, with what is removed within it.
        changes.retain_mut(|(range, new)| {
            let within = range.end <= done
                && (range.start < done || !new.is_empty())
                && range.start != range.end;
            range.start = range.start.max(done);
            done = done.max(range.end);
            !within && range.start <= range.end
        });
        Ok(changes)
    }

    fn insert(&mut self, at: usize, rank: Rank, chunk: &str) {
        self.inserts.entry((at, rank)).or_default().push_str(chunk);
    }

    /// Puts parts in front of the first thing within braces or brackets.
    fn insert_flow(
        &mut self,
        holder: Id,
        first: Option<Id>,
        bracket: char,
        parts: impl FnOnce(&Spread) -> Vec<String>,
    ) -> Result<(), Problem> {
        let begin = self.start(holder);
        let open = self.text[begin..].find(bracket).map_or(begin, |at| begin + at + 1);
        let Some(first) = first else {
            let parts = parts(&Spread::Line).join(", ");
            let so_far = self.inserts.entry((open, Rank::Value)).or_default();
            let comma = if so_far.is_empty() { "" } else { ", " };
            so_far.push_str(&format!("{comma}{parts}"));
            return Ok(());
        };
        let at = self.start(first);
        let gap = &self.text[open..at];
        if gap.lines().any(|line| !line.trim().is_empty() && !line.trim().starts_with('#')) {
            return Err(self
                .problem(first, "nothing can be put in front of this")
                .help("write it without `?`"));
        }
        let margin = &self.text[self.line_start(at)..at];
        let (spread, separator) = if gap.contains('\n') && margin.trim().is_empty() {
            let outer = &self.text[self.line_start(begin)..];
            let outer = &outer[..outer.len() - outer.trim_start_matches([' ', '\t']).len()];
            let step = margin.strip_prefix(outer).filter(|step| !step.is_empty()).unwrap_or("  ");
            let newline = self.newline(begin);
            let spread =
                Spread::Lines { indent: margin.to_owned(), step: step.to_owned(), newline };
            (spread, format!(",{newline}{margin}"))
        } else {
            (Spread::Line, ", ".to_owned())
        };
        let chunk: String = parts(&spread).into_iter().map(|part| part + &separator).collect();
        self.insert(at, Rank::Before, &chunk);
        Ok(())
    }

    /// Puts items in front of the first one of a block list.
    fn insert_items(&mut self, entry: Entry, new: &[Value]) -> Result<(), Problem> {
        let dash = self.dash(entry.value, 0);
        let Some((dash, indent)) = dash.and_then(|at| Some((at, self.indent(at)?))) else {
            return Err(
                self.problem(entry.value, "this list is not laid out as one that can be added to")
            );
        };
        let list_offset = if self.indent(self.start(entry.key)) == Some(indent) { 0 } else { 2 };
        let layout = Layout { indent, list_offset, newline: self.newline(dash) };
        let chunk: String = new.iter().map(|item| emit::block_item(item, layout)).collect();
        let at = self.above_comments(dash, self.colon(entry).unwrap_or_default());
        self.insert(at, Rank::Before, &chunk);
        Ok(())
    }

    /// Gives a key without a value one.
    fn fill_null(&mut self, map: Id, entry: Entry, addition: &Addition) -> Result<(), Problem> {
        let value = self.tree.node(entry.value);
        let flow = matches!(self.tree.node(map).kind, Kind::Map { flow: true, .. });
        let written = &self.text[value.range.clone()];
        let line = match addition {
            Addition::Items(items) => emit::flow(&Value::List(items.clone()), &Spread::Line),
            Addition::Entries(entries) => emit::flow(&Value::Map(entries.clone()), &Spread::Line),
        };
        if value.adorned || matches!(value.kind, Kind::Alias(_)) {
            let message = "a null with an anchor or a tag cannot be added to";
            return Err(self.problem(entry.value, message).help("leave it out"));
        }
        if !written.is_empty() {
            self.replaces.insert(value.range.start, (value.range.end, line));
            return Ok(());
        }
        let Some(colon) = self.colon(entry) else {
            return Err(self.problem(entry.key, "a key without a colon cannot be added to"));
        };
        if flow {
            self.insert(colon + 1, Rank::Value, &format!(" {line}"));
            return Ok(());
        }
        let start = self.start(entry.key);
        let Some(indent) = self.indent(start) else {
            return Err(self.problem(entry.key, "this key does not stand on a line of its own"));
        };
        let list_offset = self.list_offset(self.tree.entries(map));
        let newline = self.newline(start);
        let by = if matches!(addition, Addition::Items(_)) { list_offset } else { 2 };
        let indent = format!("{indent}{}", " ".repeat(by));
        let layout = Layout { indent: &indent, list_offset, newline };
        let chunk: String = match addition {
            Addition::Items(items) => {
                items.iter().map(|item| emit::block_item(item, layout)).collect()
            }
            Addition::Entries(entries) => {
                entries.iter().map(|(key, value)| emit::block_entry(key, value, layout)).collect()
            }
        };
        let at = self.line_end(colon);
        if self.text[..at].ends_with('\n') {
            self.insert(at, Rank::Value, &chunk);
        } else {
            self.insert(at, Rank::Value, &format!("{newline}{}", chunk.trim_end_matches(newline)));
        }
        Ok(())
    }

    /// Refuses to add where an alias would add the same elsewhere.
    pub(crate) fn refuse_shared(&self, id: Id, name: &str) -> Result<(), Problem> {
        let node = self.tree.node(id);
        if let Kind::Alias(Some(_)) = node.kind {
            let message =
                format!("`{name}` is an alias, and what it repeats cannot be added to here alone");
            return Err(self.problem(id, message).help(WRITE_OUT));
        }
        if node.repeated {
            let message =
                format!("`{name}` is repeated by an alias: adding to it would change both places");
            return Err(self.problem(id, message).help(WRITE_OUT));
        }
        Ok(())
    }

    /// Refuses to add to what a merge key brings.
    pub(crate) fn merged(&self, map: Id, key: &str) -> Problem {
        let message = format!("`{key}` comes here by a merge key (<<) and cannot be added to");
        self.problem(map, message).help(WRITE_OUT)
    }

    pub(crate) fn problem(&self, id: Id, message: impl Into<String>) -> Problem {
        let start = self.start(id);
        let line = self.text[start..].find(['\n', '\r']).map_or(self.text.len(), |at| start + at);
        let node = self.tree.node(id);
        let end = match node.kind {
            // A block has no text of its own: its first key or dash is shown.
            Kind::List { flow: false, .. } => start + 1,
            Kind::Map { flow: false, ref entries } => {
                entries.first().map_or(start, |entry| self.tree.end(entry.key))
            }
            _ => node.range.end,
        };
        Problem::new(self.text, start..end.min(line.max(start)), message)
    }
}

const WRITE_OUT: &str = "write it out in full here";
