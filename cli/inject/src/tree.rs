//! YAML text to a tree in which every node knows the bytes it was written in.
//!
//! Nothing is expanded: an alias stays an alias, a merge key a key. What a
//! document means is asked of [`Tree`] (`get`, `text`), where it stands of the
//! nodes, so that an editor can change the text at a place and leave the rest.
//! Knows nothing of Kubernetes or Compose.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle};

use crate::problem::Problem;

/// Most nodes of one file.
const MAX_NODES: usize = 1_000_000;
/// Deepest nesting.
const MAX_DEPTH: usize = 128;
/// Most objects that are asked for one key by way of merge keys.
const MAX_MERGES: usize = 1000;

/// Which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(usize);

/// A value and its bytes.
#[derive(Debug)]
pub(crate) struct Node {
    /// From its anchor or tag, if it has one, to its end.
    pub(crate) range: Range<usize>,
    /// It has an anchor or a tag.
    pub(crate) adorned: bool,
    /// Some alias repeats it.
    pub(crate) repeated: bool,
    pub(crate) kind: Kind,
}

/// What stands there.
#[derive(Debug)]
pub(crate) enum Kind {
    Scalar {
        text: String,
        plain: bool,
    },
    List {
        flow: bool,
        items: Vec<Id>,
    },
    Map {
        flow: bool,
        entries: Vec<Entry>,
    },
    /// What an alias repeats, if there is such a thing.
    Alias(Option<Id>),
}

/// A key and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Id,
    pub(crate) value: Id,
}

/// A value that was found in an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) value: Id,
    /// Where it is written, unless a merge key (`<<`) brought it.
    pub(crate) entry: Option<Entry>,
}

/// All documents of a text.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// The root of each document.
    pub(crate) documents: Vec<Id>,
}

impl Tree {
    /// Reads `text`.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let options = granit_parser::options! {
            emit_comments: false,
            emit_unresolved_aliases: true,
            emit_anchor_events: true,
            flow_nesting_limit: MAX_DEPTH,
            block_nesting_limit: MAX_DEPTH,
        };
        let mut parser = Parser::new_from_str_with_options(text, options);
        let mut builder = Builder { text, ..Builder::default() };
        while let Some(next) = parser.next_event() {
            let (event, span) = next.map_err(|error| syntax_error(text, &error))?;
            builder.event(event, &span)?;
        }
        Ok(builder.tree)
    }

    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0]
    }

    /// The node itself, or what it repeats.
    pub(crate) fn resolve(&self, id: Id) -> Id {
        match self.node(id).kind {
            Kind::Alias(Some(target)) => target,
            _ => id,
        }
    }

    /// Whether a scalar is a string to Kubernetes, which reads plain words as YAML 1.1 does (of its numbers only the usual forms
    /// are known here).
    pub(crate) fn is_string(&self, id: Id) -> bool {
        let node = self.node(self.resolve(id));
        // A tag may say that it is one.
        let Kind::Scalar { text, plain: true } = &node.kind else { return true };
        if node.adorned {
            return true;
        }
        let word = text.to_ascii_lowercase();
        let is_word = ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "~", ""]
            .contains(&word.as_str());
        // Others that parse are `inf` and `nan`, which YAML writes with a dot.
        let is_number = text.contains(|c: char| c.is_ascii_digit()) && text.parse::<f64>().is_ok();
        !is_word && !is_number
    }

    /// The text of a scalar.
    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match &self.node(self.resolve(id)).kind {
            Kind::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Whether it is null: written out, or nothing at all.
    pub(crate) fn is_null(&self, id: Id) -> bool {
        match &self.node(self.resolve(id)).kind {
            Kind::Scalar { text, plain } => {
                *plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            Kind::Alias(_) => true,
            Kind::List { .. } | Kind::Map { .. } => false,
        }
    }

    /// Whether it is true in YAML 1.1, which Kubernetes reads.
    pub(crate) fn is_true(&self, id: Id) -> bool {
        const WORDS: [&str; 11] =
            ["true", "True", "TRUE", "yes", "Yes", "YES", "y", "Y", "on", "On", "ON"];
        match &self.node(self.resolve(id)).kind {
            Kind::Scalar { text, plain } => *plain && WORDS.contains(&text.as_str()),
            _ => false,
        }
    }

    /// What a list holds; nothing for anything else.
    pub(crate) fn items(&self, id: Id) -> &[Id] {
        match &self.node(self.resolve(id)).kind {
            Kind::List { items, .. } => items,
            _ => &[],
        }
    }

    /// What an object itself holds, without what it merges; nothing for anything else.
    pub(crate) fn entries(&self, id: Id) -> &[Entry] {
        match &self.node(self.resolve(id)).kind {
            Kind::Map { entries, .. } => entries,
            _ => &[],
        }
    }

    pub(crate) fn is_map(&self, id: Id) -> bool {
        matches!(self.node(self.resolve(id)).kind, Kind::Map { .. })
    }

    /// The value of a key, written there or merged.
    pub(crate) fn get(&self, map: Id, key: &str) -> Option<Found> {
        if let Some(entry) = self.entry(map, key) {
            return Some(Found { value: entry.value, entry: Some(entry) });
        }
        self.merged(map, key).map(|value| Found { value, entry: None })
    }

    /// The first entry of a key that is written in the object itself.
    pub(crate) fn entry(&self, map: Id, key: &str) -> Option<Entry> {
        self.entries(map).iter().copied().find(|entry| self.text(entry.key) == Some(key))
    }

    /// Follows keys from object to object.
    pub(crate) fn find(&self, from: Id, path: &[&str]) -> Option<Id> {
        path.iter().try_fold(from, |map, key| self.get(map, key).map(|found| found.value))
    }

    /// Follows keys to the text of a scalar.
    pub(crate) fn find_text(&self, from: Id, path: &[&str]) -> Option<&str> {
        self.find(from, path).and_then(|id| self.text(id))
    }

    /// The key that is written twice in one object, if one is: first and second.
    pub(crate) fn duplicate(&self, map: Id) -> Option<(Id, Id)> {
        let mut seen = HashMap::new();
        self.entries(map).iter().find_map(|entry| {
            let text = self.text(entry.key).filter(|text| *text != "<<")?;
            seen.insert(text, entry.key).map(|first| (first, entry.key))
        })
    }

    /// Asks what merge keys bring, each object once, however many ways lead to it.
    fn merged(&self, map: Id, key: &str) -> Option<Id> {
        let mut seen = HashSet::new();
        let mut ahead = self.sources(map);
        while let Some(source) = ahead.pop() {
            let source = self.resolve(source);
            if seen.len() == MAX_MERGES || !seen.insert(source) {
                continue;
            }
            if let Some(entry) = self.entry(source, key) {
                return Some(entry.value);
            }
            ahead.append(&mut self.sources(source));
        }
        None
    }

    /// What an object merges, the first one last.
    fn sources(&self, map: Id) -> Vec<Id> {
        let Some(Entry { value: from, .. }) = self.entry(map, "<<") else { return Vec::new() };
        match self.node(self.resolve(from)).kind {
            Kind::List { .. } => self.items(from).iter().rev().copied().collect(),
            _ => vec![from],
        }
    }

    /// The last byte of what is written of a node. Block lists and objects end with what they
    /// hold last; the parser has them end where the next thing begins.
    pub(crate) fn end(&self, id: Id) -> usize {
        let mut id = id;
        loop {
            let node = self.node(id);
            let last = match &node.kind {
                Kind::List { flow: false, items } => items.last().copied(),
                Kind::Map { flow: false, entries } => entries.last().map(|entry| {
                    // A value that is left out has no place of its own.
                    let nothing = self.node(entry.value).range.is_empty();
                    if nothing { entry.key } else { entry.value }
                }),
                _ => None,
            };
            match last {
                Some(last) => id = last,
                None => return node.range.end,
            }
        }
    }

    /// A place where a template is left in: `{{` reads as an object within an object's key.
    pub(crate) fn template(&self, text: &str) -> Option<Range<usize>> {
        let braces = |node: &&Node| text[node.range.start..].starts_with("{{");
        let flow = |node: &&Node| matches!(node.kind, Kind::Map { flow: true, .. });
        let found = self.nodes.iter().filter(flow).find(braces)?;
        Some(found.range.start..found.range.start + 2)
    }
}

fn syntax_error(text: &str, error: &granit_parser::ScanError) -> Problem {
    let info = error.info();
    let at = error.marker().byte_offset().unwrap_or(text.len()).min(text.len());
    let problem = Problem::new(text, at..at, format!("not valid YAML: {info}"));
    if let Some(template) = action(text) {
        return left_in(text, template);
    }
    if info.contains("tab") {
        return problem.help("indent with spaces; YAML does not allow tabs there");
    }
    problem
}

/// A template that nobody has filled in.
pub(crate) fn left_in(text: &str, at: Range<usize>) -> Problem {
    Problem::new(text, at, "a template is left in ({{ … }}): this is not YAML yet")
        .help("inject what comes out of it: helm template … | towpath inject -")
}

/// The first `{{` that begins a line or a value, in a text that is no YAML.
fn action(text: &str) -> Option<Range<usize>> {
    let mut from = 0;
    for line in text.split_inclusive('\n') {
        if let Some(at) = line.find("{{") {
            let before = line[..at].trim_start();
            if before.is_empty() || before.ends_with(": ") || before.ends_with("- ") {
                return Some(from + at..from + at + 2);
            }
        }
        from += line.len();
    }
    None
}

#[derive(Default)]
struct Builder<'t> {
    text: &'t str,
    tree: Tree,
    open: Vec<Open>,
    /// By the parser's number of the anchor.
    anchors: HashMap<usize, Id>,
}

struct Open {
    id: Id,
    key: Option<Id>,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Problem> {
        let range = self.range(span);
        let tag = span.tag_start().and_then(|mark| mark.byte_offset());
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                // Nothing at all is told as `~` or as no text.
                let text =
                    if range.is_empty() && plain { String::new() } else { text.into_owned() };
                let id = self.add(range, tag, anchor, Kind::Scalar { text, plain })?;
                self.place(id);
            }
            Event::SequenceStart(style, anchor, _) => {
                let flow = style == StructureStyle::Flow;
                let kind = Kind::List { flow, items: Vec::new() };
                let id = self.add(range, tag, anchor, kind)?;
                self.open.push(Open { id, key: None });
            }
            Event::MappingStart(style, anchor, _) => {
                let flow = style == StructureStyle::Flow;
                let kind = Kind::Map { flow, entries: Vec::new() };
                let id = self.add(range, tag, anchor, kind)?;
                self.open.push(Open { id, key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                let node = &mut self.tree.nodes[open.id.0];
                node.range.end = range.end.max(node.range.start);
                self.place(open.id);
            }
            Event::Alias(anchor) => {
                let target = self.anchors.get(&anchor).copied();
                if let Some(target) = target {
                    if self.open.iter().any(|open| open.id == target) {
                        let message = "this repeats what it stands in, without end";
                        return Err(Problem::new(self.text, range, message).help("take it out"));
                    }
                    self.tree.nodes[target.0].repeated = true;
                }
                let id = self.add(range, tag, 0, Kind::Alias(target))?;
                self.place(id);
            }
            // Stands before the node that has just been told.
            Event::Anchor(anchor, _) => {
                if let Some(id) = self.anchors.get(&anchor) {
                    let node = &mut self.tree.nodes[id.0];
                    node.range.start = node.range.start.min(range.start);
                }
            }
            Event::UnresolvedAlias(name) => {
                let message = format!("nothing is anchored as &{name} before this");
                return Err(Problem::new(self.text, range, message)
                    .help("an alias (*name) repeats an earlier &name of the same document"));
            }
            _ => {}
        }
        Ok(())
    }

    fn range(&self, span: &Span) -> Range<usize> {
        let range = span.byte_range().unwrap_or(0..0);
        range.start.min(self.text.len())..range.end.min(self.text.len())
    }

    fn add(
        &mut self,
        mut range: Range<usize>,
        tag: Option<usize>,
        anchor: usize,
        kind: Kind,
    ) -> Result<Id, Problem> {
        if self.tree.nodes.len() == MAX_NODES {
            let message = format!("more than {MAX_NODES} values in one file");
            return Err(Problem::new(self.text, range, message).help("split the file"));
        }
        let id = Id(self.tree.nodes.len());
        range.start = range.start.min(tag.unwrap_or(range.start));
        if anchor != 0 {
            self.anchors.insert(anchor, id);
        }
        let adorned = tag.is_some() || anchor != 0;
        self.tree.nodes.push(Node { range, adorned, repeated: false, kind });
        Ok(id)
    }

    /// Puts a finished node into what encloses it.
    fn place(&mut self, id: Id) {
        let Some(open) = self.open.last_mut() else {
            self.tree.documents.push(id);
            return;
        };
        match &mut self.tree.nodes[open.id.0].kind {
            Kind::List { items, .. } => items.push(id),
            Kind::Map { entries, .. } => match open.key.take() {
                Some(key) => entries.push(Entry { key, value: id }),
                None => open.key = Some(id),
            },
            Kind::Scalar { .. } | Kind::Alias(_) => {}
        }
    }
}
