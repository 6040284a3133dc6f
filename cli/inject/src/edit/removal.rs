//! Which bytes go when entries do.

use std::{collections::BTreeSet, ops::Range};

use super::Edits;
use crate::{
    problem::Problem,
    tree::{Id, Kind},
};

impl Edits<'_> {
    /// The bytes that go.
    pub(super) fn removals(&self) -> Result<Vec<Range<usize>>, Problem> {
        let mut ranges = Vec::new();
        let mut lines = BTreeSet::new();
        for (holder, indices) in &self.removed {
            let flow = match self.tree.node(*holder).kind {
                Kind::List { flow, .. } | Kind::Map { flow, .. } => flow,
                Kind::Scalar { .. } | Kind::Alias(_) => continue,
            };
            if flow {
                ranges
                    .extend(indices.iter().map(|index| self.flow_range(*holder, *index, indices)));
                continue;
            }
            for index in indices {
                let (start, end) = self.extent(*holder, *index);
                if self.indent(start).is_none() {
                    let message = "what towpath added here shares a line with something else";
                    return Err(Problem::new(self.text, start..end, message).help(
                        "take it out by hand, and the annotation towpath.dev/injected with it",
                    ));
                }
                let range = self.line_start(start)..self.line_end(end);
                lines.insert(range.end);
                ranges.push(range);
            }
        }
        ranges.sort_by_key(|range| (range.start, range.end));
        let mut merged: Vec<Range<usize>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        // Without a newline at its end, the file ends as the line in front of what goes did.
        if let Some(last) = merged.last_mut()
            && last.end == self.text.len()
            && lines.contains(&last.end)
            && !self.text.ends_with('\n')
        {
            let before = &self.text[..last.start];
            let before = before.strip_suffix('\n').unwrap_or(before);
            last.start = before.strip_suffix('\r').unwrap_or(before).len();
        }
        Ok(merged)
    }

    /// From the entry to the next one, or from the one before it that stays.
    fn flow_range(&self, holder: Id, index: usize, going: &BTreeSet<usize>) -> Range<usize> {
        let (start, end) = self.extent(holder, index);
        if index + 1 < self.len(holder) {
            return start..self.extent(holder, index + 1).0;
        }
        let stays = (0..index).rev().find(|before| !going.contains(before));
        stays.map_or(start, |before| self.extent(holder, before).1)..end
    }

    /// Where an entry begins (an item of a block list: at its dash) and ends.
    fn extent(&self, holder: Id, index: usize) -> (usize, usize) {
        match &self.tree.node(holder).kind {
            Kind::List { items, flow } => {
                let item = items[index];
                let start = if *flow { None } else { self.dash(holder, index) };
                (start.unwrap_or_else(|| self.start(item)), self.tree.end(item))
            }
            Kind::Map { entries, .. } => {
                (self.start(entries[index].key), self.entry_end(entries[index]))
            }
            Kind::Scalar { .. } | Kind::Alias(_) => (self.start(holder), self.tree.end(holder)),
        }
    }

    fn len(&self, holder: Id) -> usize {
        self.tree.items(holder).len() + self.tree.entries(holder).len()
    }
}
