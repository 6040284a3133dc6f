//! Where things stand: lines, indents, dashes and colons.

use super::Edits;
use crate::tree::{Entry, Id, Kind};

impl<'t> Edits<'t> {
    pub(super) fn start(&self, id: Id) -> usize {
        self.tree.node(id).range.start
    }

    pub(super) fn entry_end(&self, entry: Entry) -> usize {
        let value = self.tree.node(entry.value);
        if value.range.is_empty() && !matches!(value.kind, Kind::List { .. } | Kind::Map { .. }) {
            return self.tree.end(entry.key);
        }
        self.tree.end(entry.value).max(self.tree.end(entry.key))
    }

    /// The dash of an item of a block list.
    pub(super) fn dash(&self, list: Id, index: usize) -> Option<usize> {
        let start = self.start(*self.tree.items(list).get(index)?);
        let mut rest = &self.text[..start];
        // Between dash and item there may be comments and line breaks.
        loop {
            let line = &rest[rest.rfind('\n').map_or(0, |at| at + 1)..];
            let body = line.trim_start();
            if let Some(after) = body.strip_prefix('-')
                && (after.trim().is_empty() || after.trim_start().starts_with('#'))
            {
                return Some(rest.len() - body.len());
            }
            // In `- - a` the inner dash is the last one of its line.
            if let Some(before) = line.trim_end().strip_suffix('-') {
                return Some(rest.len() - line.len() + before.len());
            }
            let blank = body.trim_end().is_empty() || body.starts_with('#');
            if !blank || line.len() == rest.len() {
                return None;
            }
            rest = &rest[..rest.len() - line.len() - 1];
        }
    }

    /// The colon behind a key.
    pub(super) fn colon(&self, entry: Entry) -> Option<usize> {
        let end = self.tree.end(entry.key);
        let rest = &self.text[end..];
        let at = end + rest.len() - rest.trim_start().len();
        self.text[at..].starts_with(':').then_some(at)
    }

    /// What a line begins with, if that is nothing but spaces up to `at`.
    pub(super) fn indent(&self, at: usize) -> Option<&'t str> {
        let indent = &self.text[self.line_start(at)..at];
        indent.bytes().all(|b| b == b' ').then_some(indent)
    }

    /// How far lists stand to the right of their keys in this object.
    pub(super) fn list_offset(&self, entries: &[Entry]) -> usize {
        let offset = entries.iter().find_map(|entry| {
            let Kind::List { flow: false, .. } = self.tree.node(entry.value).kind else {
                return None;
            };
            let dash = self.indent(self.dash(entry.value, 0)?)?.len();
            let key = self.start(entry.key);
            dash.checked_sub(key - self.line_start(key))
        });
        offset.map_or(0, |offset| offset.min(8))
    }

    /// The beginning of the lines of comment directly above a line, with the same indent.
    pub(super) fn above_comments(&self, at: usize, not_before: usize) -> usize {
        let indent = self.indent(at);
        let mut top = self.line_start(at);
        while top > 0 {
            let above = self.line_start(top - 1);
            let line = &self.text[above..top];
            let comment = line.trim_start_matches(' ').starts_with('#');
            let level = indent.is_some_and(|indent| {
                line.len() - line.trim_start_matches(' ').len() == indent.len()
            });
            if !comment || !level || above < not_before {
                break;
            }
            top = above;
        }
        top
    }

    pub(super) fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |at| at + 1)
    }

    /// Behind the newline of the line.
    pub(super) fn line_end(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |end| at + end + 1)
    }

    pub(super) fn newline(&self, at: usize) -> &'static str {
        let end = self.line_end(at);
        let line = if self.text[..end].ends_with('\n') {
            &self.text[..end]
        } else {
            &self.text[..self.line_start(at)]
        };
        if line.ends_with("\r\n") { "\r\n" } else { "\n" }
    }
}
