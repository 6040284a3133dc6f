//! YAML text to a tree in which every key and value knows its place.
//!
//! Accepts YAML 1.2 under budgets (nodes, depth, documents, what aliases
//! expand to), and refuses what makes files ambiguous: duplicate keys, keys
//! that are no text, merge keys, tags. Knows nothing of policies.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Span as Range, StrInput, Tag};

use crate::{
    diagnostic::Rule,
    problem::{At, Problems, Span},
};

/// Most nodes (scalars, lists, objects) of one file.
const MAX_NODES: usize = 500_000;
/// Most nodes that anchors and aliases of one file may copy.
const MAX_ALIAS_NODES: usize = 50_000;
/// Deepest nesting.
const MAX_DEPTH: usize = 64;
/// Most documents of one file.
const MAX_DOCUMENTS: usize = 20_000;

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) value: Value,
}

/// What stands there.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    /// Scalar text; `plain` when it was written without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(At<String>, Node)>),
}

/// What a scalar means by itself (YAML 1.2 core schema).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScalarKind {
    Bool,
    Integer,
    Float,
    Text,
}

impl Node {
    /// How to speak of it: `a list`, `the number 5`.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "an object".to_owned(),
            Value::Scalar { text, plain } => match scalar_kind(text, *plain) {
                ScalarKind::Bool => format!("the boolean {text}"),
                ScalarKind::Integer | ScalarKind::Float => format!("the number {text}"),
                ScalarKind::Text => format!("the text {}", quoted(text)),
            },
        }
    }

    /// The value of a key, for a look ahead before the document is read.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|(name, _)| name.value == key).map(|(_, node)| node)
    }

    /// The text of a scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }
}

/// Text in quotes, cut when long.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    if text.chars().count() > LONGEST {
        let cut: String = text.chars().take(LONGEST).collect();
        return format!("{cut:?}…");
    }
    format!("{text:?}")
}

pub(crate) fn scalar_kind(text: &str, plain: bool) -> ScalarKind {
    if !plain {
        return ScalarKind::Text;
    }
    if matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE") {
        return ScalarKind::Bool;
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let radix =
        digits.strip_prefix("0x").map(|d| (d, 16)).or(digits.strip_prefix("0o").map(|d| (d, 8)));
    if let Some((digits, radix)) = radix
        && !digits.is_empty()
        && digits.chars().all(|c| c.is_digit(radix))
    {
        return ScalarKind::Integer;
    }
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return ScalarKind::Integer;
    }
    let named =
        matches!(digits, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN");
    let numeric = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().any(|b| b.is_ascii_digit())
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
        && digits.parse::<f64>().is_ok();
    if named || numeric { ScalarKind::Float } else { ScalarKind::Text }
}

/// All documents of a file that could be read, in order. Empty ones are left out.
/// `whole` is false when a part of the file could not be read.
pub(crate) struct Documents {
    pub(crate) documents: Vec<Node>,
    pub(crate) whole: bool,
}

/// Parses one file. Goes on with the next document after a syntax error.
pub(crate) fn parse(file: u32, text: &str, problems: &mut Problems) -> Documents {
    let options = granit_parser::options! {
        emit_comments: false,
        emit_unresolved_aliases: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut parser = Parser::new_from_str_with_options(text, options);
    let document = Document::default();
    let mut builder = Builder { file, problems, nodes: 0, copied: 0, found: 0, document };
    let mut documents = Vec::new();
    let mut whole = true;
    loop {
        match next_document(&mut parser, &mut builder) {
            Step::Document(node) => documents.extend(node),
            Step::End => break,
            Step::Stop => {
                whole = false;
                break;
            }
            Step::Broken => {
                whole = false;
                builder.document = Document::default();
                if !matches!(parser.proceed_next_document(), Ok(true)) {
                    break;
                }
            }
        }
    }
    Documents { documents, whole }
}

enum Step {
    /// A document was completed; `None` when it was empty.
    Document(Option<Node>),
    /// A syntax error: the rest of this document is lost.
    Broken,
    /// A budget is exceeded: the rest of the file is lost.
    Stop,
    End,
}

fn next_document<'i>(parser: &mut Parser<'i, StrInput<'i>>, builder: &mut Builder<'_>) -> Step {
    loop {
        let (event, range) = match parser.next_event() {
            None => return Step::End,
            Some(Ok(next)) => next,
            Some(Err(error)) => {
                builder.syntax_error(&error);
                return Step::Broken;
            }
        };
        match event {
            Event::DocumentEnd => {
                let document = std::mem::take(&mut builder.document);
                let node = document.root.filter(|node| !matches!(node.value, Value::Null));
                return Step::Document(node);
            }
            Event::StreamEnd => return Step::End,
            event => {
                if !builder.event(event, range) {
                    return Step::Stop;
                }
            }
        }
    }
}

/// The document that is being built.
#[derive(Default)]
struct Document {
    open: Vec<Open>,
    root: Option<Node>,
    /// Finished anchored nodes.
    anchors: HashMap<usize, (Node, Extent)>,
}

/// How large a node is.
#[derive(Clone, Copy)]
struct Extent {
    /// Nodes, itself among them.
    size: usize,
    /// Levels of lists and objects.
    depth: usize,
}

/// One scalar.
const SCALAR: Extent = Extent { size: 1, depth: 0 };

/// A list or object whose end has not been seen.
struct Open {
    span: Span,
    anchor: usize,
    /// Nodes of the file before this one.
    before: usize,
    /// Levels of what it holds.
    depth: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map { entries: Vec<(At<String>, Node)>, key: Option<At<String>> },
}

struct Builder<'p> {
    file: u32,
    problems: &'p mut Problems,
    nodes: usize,
    copied: usize,
    found: usize,
    document: Document,
}

impl Builder<'_> {
    /// Takes an event; false when a budget is exceeded.
    fn event(&mut self, event: Event<'_>, range: Range) -> bool {
        let span = self.span(range);
        match event {
            Event::DocumentStart(..) => {
                self.found += 1;
                if self.found > MAX_DOCUMENTS {
                    return self.too_much(
                        span,
                        format!("more than {MAX_DOCUMENTS} documents in one file"),
                    );
                }
                true
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = self.tag(tag.as_deref(), span, style == ScalarStyle::Plain);
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null {
                    Value::Null
                } else {
                    Value::Scalar { text: text.into_owned(), plain }
                };
                self.count(span) && self.finished(Node { span, value }, anchor, SCALAR)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), span, true);
                self.open(span, anchor, OpenKind::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), span, true);
                self.open(span, anchor, OpenKind::Map { entries: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(id) => self.alias(id, span),
            Event::UnresolvedAlias(name) => {
                self.problems
                    .error(Rule::Yaml, span, format!("nothing is anchored as &{name} before this"))
                    .help("an alias (*name) repeats an earlier &name of the same document");
                self.finished(Node { span, value: Value::Null }, 0, SCALAR)
            }
            _ => true,
        }
    }

    fn span(&self, range: Range) -> Span {
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let length = if range.start.line() == range.end.line() {
            range.end.col().saturating_sub(range.start.col())
        } else {
            // Clamped to the end of the line when the line is looked up.
            usize::MAX
        };
        Span {
            file: self.file,
            line: small(range.start.line().max(1)),
            column: small(range.start.col() + 1),
            length: small(length).max(1),
        }
    }

    fn syntax_error(&mut self, error: &granit_parser::ScanError) {
        let at = error.marker();
        let span = self.span(Range::empty(*at));
        let info = error.info();
        if *error.kind() == granit_parser::ErrorKind::RecursionLimitExceeded {
            self.too_deep(span);
            return;
        }
        let problem = self.problems.error(Rule::Yaml, span, format!("not valid YAML: {info}"));
        if info.contains("tab") {
            problem.help("indent with spaces; YAML does not allow tabs there");
        }
    }

    fn too_much(&mut self, span: Span, message: String) -> bool {
        self.problems.error(Rule::Limit, span, message).help("split the file");
        false
    }

    fn too_deep(&mut self, span: Span) -> bool {
        self.problems.error(Rule::Limit, span, format!("nested more than {MAX_DEPTH} levels deep"));
        false
    }

    fn count(&mut self, span: Span) -> bool {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return self.too_much(span, format!("more than {MAX_NODES} values in one file"));
        }
        true
    }

    /// Looks at an explicit tag; returns whether the scalar still counts as plain.
    fn tag(&mut self, tag: Option<&Tag>, span: Span, plain: bool) -> bool {
        let Some(tag) = tag else { return plain };
        if tag.is_yaml_core_schema_tag("str") {
            return false;
        }
        self.problems
            .error(Rule::Yaml, span, format!("the tag {} is not accepted", tag.original()))
            .help("policy files are plain data; only !!str may be written out");
        plain
    }

    fn open(&mut self, span: Span, anchor: usize, kind: OpenKind) -> bool {
        if self.document.open.len() >= MAX_DEPTH {
            return self.too_deep(span);
        }
        let span = Span { length: 1, ..span };
        let before = self.nodes;
        self.document.open.push(Open { span, anchor, before, depth: 0, kind });
        self.count(span)
    }

    fn close(&mut self) -> bool {
        let Some(open) = self.document.open.pop() else { return true };
        let mut span = open.span;
        let value = match open.kind {
            OpenKind::List(items) => Value::List(items),
            OpenKind::Map { entries, .. } => {
                self.refuse_duplicates(&entries);
                // Point at the first key as a whole: the object itself has no text of its own.
                if let Some((key, _)) = entries.first()
                    && (key.span.line, key.span.column) == (span.line, span.column)
                {
                    span = key.span;
                }
                Value::Map(entries)
            }
        };
        let extent = Extent { size: self.nodes - open.before, depth: open.depth + 1 };
        self.finished(Node { span, value }, open.anchor, extent)
    }

    fn refuse_duplicates(&mut self, entries: &[(At<String>, Node)]) {
        let mut first: HashMap<&str, Span> = HashMap::with_capacity(entries.len());
        for (key, _) in entries {
            if let Some(earlier) = first.get(key.value.as_str()) {
                self.problems
                    .error(
                        Rule::Duplicate,
                        key.span,
                        format!("the key `{}` is there twice", key.value),
                    )
                    .related(*earlier, "first here");
            } else {
                first.insert(&key.value, key.span);
            }
        }
    }

    /// Puts a finished node into what encloses it.
    fn finished(&mut self, node: Node, anchor: usize, extent: Extent) -> bool {
        if anchor != 0 {
            if !self.copy(node.span, extent.size) {
                return false;
            }
            self.document.anchors.insert(anchor, (node.clone(), extent));
        }
        if let Some(open) = self.document.open.last_mut() {
            open.depth = open.depth.max(extent.depth);
        }
        match self.document.open.last_mut().map(|open| &mut open.kind) {
            None => self.document.root = Some(node),
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map { entries, key }) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => *key = Some(Self::key(self.problems, node)),
            },
        }
        true
    }

    fn key(problems: &mut Problems, node: Node) -> At<String> {
        let span = node.span;
        let value = match node.value {
            Value::Scalar { text, .. } => text,
            Value::Null => "null".to_owned(),
            Value::List(_) | Value::Map(_) => {
                problems
                    .error(Rule::Yaml, span, "a key must be text, not a list or an object")
                    .help("text with a { or [ in front needs quotes");
                String::new()
            }
        };
        if value == "<<" {
            problems
                .error(Rule::Yaml, span, "merge keys (<<) are not accepted")
                .help("write the fields out, or repeat a whole value by an alias");
        }
        At { value, span }
    }

    fn alias(&mut self, id: usize, span: Span) -> bool {
        let Some(extent) = self.document.anchors.get(&id).map(|(_, extent)| *extent) else {
            self.problems.error(Rule::Yaml, span, "an alias inside of what it repeats");
            return self.finished(Node { span, value: Value::Null }, 0, SCALAR);
        };
        // What an alias repeats nests below where it stands; unbounded depth would exhaust the stack.
        if self.document.open.len() + extent.depth > MAX_DEPTH {
            return self.too_deep(span);
        }
        if !self.copy(span, extent.size) {
            return false;
        }
        let value = self.document.anchors.get(&id).map_or(Value::Null, |(n, _)| n.value.clone());
        self.finished(Node { span, value }, 0, extent)
    }

    fn copy(&mut self, span: Span, size: usize) -> bool {
        self.copied += size;
        // Copies count as nodes too, so that what encloses them knows its size.
        self.nodes += size;
        if self.copied > MAX_ALIAS_NODES {
            let message = format!("aliases that expand to more than {MAX_ALIAS_NODES} values");
            self.problems
                .error(Rule::Limit, span, message)
                .help("aliases of aliases multiply; write the values out");
            return false;
        }
        true
    }
}
