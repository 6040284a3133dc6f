//! Manifests that are made up: any shape a person may write, in any style YAML knows.

use proptest::prelude::*;

use super::meaning;
use crate::{Options, Source, inject, uninject};

/// What is written.
#[derive(Clone, Debug)]
enum Tree {
    Null,
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

/// Draws from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) >> 33).unwrap() % n
    }

    /// Once in `n` times.
    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

fn text(text: impl Into<String>) -> Tree {
    Tree::Text(text.into())
}

fn map<const N: usize>(entries: [(&str, Tree); N]) -> Tree {
    Tree::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

const TEXTS: [&str; 16] = [
    "plain",
    "two words",
    "it's",
    "say \"hi\"",
    "1.5",
    "true",
    "",
    "a: b",
    "# no comment",
    "- dash",
    "größe",
    "{{ $x }}",
    "line one\nline two\n",
    "no newline\nat the end",
    "blank lines kept\n\n\n",
    "  indented\nless\n",
];
const KEYS: [&str; 8] =
    ["env", "args", "labels", "odd key", "größe", "x-y.z/w", "volumeMounts", "data"];

fn anything(dice: &mut Dice, depth: usize) -> Tree {
    match dice.below(if depth == 0 { 4 } else { 8 }) {
        0 => Tree::Null,
        1..4 => text(dice.pick(&TEXTS)),
        4 | 5 => Tree::List((0..dice.below(4)).map(|_| anything(dice, depth - 1)).collect()),
        _ => extras(dice, depth - 1),
    }
}

fn extras(dice: &mut Dice, depth: usize) -> Tree {
    let mut entries: Vec<(String, Tree)> = Vec::new();
    for _ in 0..dice.below(4) {
        let key = dice.pick(&KEYS).to_owned();
        if entries.iter().all(|(other, _)| *other != key) {
            entries.push((key, anything(dice, depth)));
        }
    }
    Tree::Map(entries)
}

/// Mixes entries of any kind into an object, in any order.
fn mixed(dice: &mut Dice, own: Tree) -> Tree {
    let (Tree::Map(mut entries), Tree::Map(more)) = (own, extras(dice, 2)) else { unreachable!() };
    entries.extend(more);
    for at in (1..entries.len()).rev() {
        entries.swap(at, dice.below(at + 1));
    }
    Tree::Map(entries)
}

fn container(dice: &mut Dice, name: &str) -> Tree {
    let container = map([("name", text(name)), ("image", text("registry.example.com/etl:7"))]);
    mixed(dice, container)
}

/// What a collection that is added to may be before: there, empty, null, or not at all.
fn perhaps(dice: &mut Dice, entries: &mut Vec<(String, Tree)>, key: &str, full: Tree) {
    let empty = match full {
        Tree::List(_) => Tree::List(Vec::new()),
        _ => Tree::Map(Vec::new()),
    };
    match dice.below(5) {
        0 => entries.push((key.to_owned(), empty)),
        1 => entries.push((key.to_owned(), Tree::Null)),
        2 | 3 => entries.push((key.to_owned(), full)),
        _ => {}
    }
}

fn pod(dice: &mut Dice) -> Vec<(String, Tree)> {
    let count = 1 + dice.below(3);
    let containers = (0..count).map(|i| container(dice, &format!("c{i}"))).collect();
    let mut spec = vec![("containers".to_owned(), Tree::List(containers))];
    let init = Tree::List(vec![container(dice, "i0"), container(dice, "i1")]);
    perhaps(dice, &mut spec, "initContainers", init);
    let volume = map([("name", text("data")), ("emptyDir", Tree::Map(Vec::new()))]);
    let volume = mixed(dice, volume);
    perhaps(dice, &mut spec, "volumes", Tree::List(vec![volume]));
    let spec = mixed(dice, Tree::Map(spec));
    let mut pod = vec![("spec".to_owned(), spec)];
    let mut metadata = vec![("name".to_owned(), text("etl"))];
    let annotations = map([("team", text("etl")), ("note", text(dice.pick(&TEXTS)))]);
    perhaps(dice, &mut metadata, "annotations", annotations);
    let metadata = mixed(dice, Tree::Map(metadata));
    perhaps(dice, &mut pod, "metadata", metadata);
    pod
}

fn object(dice: &mut Dice) -> Tree {
    if dice.once_in(3) {
        let mut entries = pod(dice);
        entries.push(("kind".to_owned(), text("Pod")));
        entries.push(("apiVersion".to_owned(), text("v1")));
        return mixed(dice, Tree::Map(entries));
    }
    let pod = Tree::Map(pod(dice));
    let pod = mixed(dice, pod);
    let spec = mixed(dice, map([("template", pod)]));
    let kind = dice.pick(&["Deployment", "StatefulSet", "DaemonSet"]);
    mixed(dice, map([("apiVersion", text("apps/v1")), ("kind", text(kind)), ("spec", spec)]))
}

fn compose(dice: &mut Dice) -> Tree {
    let count = 1 + dice.below(4);
    let services = (0..count).map(|i| {
        let service = mixed(dice, map([("image", text("etl"))]));
        // Labels of any type are not Compose.
        let Tree::Map(mut entries) = service else { unreachable!() };
        entries.retain(|(key, _)| key != "labels");
        (format!("s{i}"), Tree::Map(entries))
    });
    let services = Tree::Map(services.collect());
    mixed(dice, map([("services", services)]))
}

/// Writes a tree in a style that is drawn place by place.
struct Writer<'d> {
    dice: &'d mut Dice,
    out: String,
    newline: &'static str,
    step: usize,
}

impl Writer<'_> {
    fn end_line(&mut self) {
        if self.dice.once_in(8) {
            self.out += "  # why";
        }
        self.out += self.newline;
    }

    fn between(&mut self, indent: usize) {
        if self.dice.once_in(8) {
            self.out += self.newline;
        }
        if self.dice.once_in(6) {
            let indent = if self.dice.once_in(4) { self.dice.below(8) } else { indent };
            self.out += &format!("{}# about what follows{}", " ".repeat(indent), self.newline);
        }
    }

    fn map(&mut self, entries: &[(String, Tree)], indent: usize, mut first: bool) {
        for (key, value) in entries {
            if !first {
                self.between(indent);
                self.out += &" ".repeat(indent);
            }
            first = false;
            self.out += &quoted(self.dice, key);
            self.out += if self.dice.once_in(10) { " :" } else { ":" };
            self.value(value, indent, true);
        }
    }

    fn list(&mut self, items: &[Tree], indent: usize, mut first: bool) {
        for item in items {
            if !first {
                self.between(indent);
                self.out += &" ".repeat(indent);
            }
            first = false;
            self.out.push('-');
            let gap = 1 + if self.dice.once_in(4) { self.dice.below(3) } else { 0 };
            match item {
                Tree::Map(entries) if !entries.is_empty() && !self.dice.once_in(5) => {
                    self.out += &" ".repeat(gap);
                    self.map(entries, indent + 1 + gap, true);
                }
                Tree::List(items) if !items.is_empty() && self.dice.once_in(2) => {
                    self.out += &" ".repeat(gap);
                    self.list(items, indent + 1 + gap, true);
                }
                other => self.value(other, indent, false),
            }
        }
    }

    /// Behind a colon or a dash.
    fn value(&mut self, value: &Tree, indent: usize, keyed: bool) {
        match value {
            Tree::Map(entries) if !entries.is_empty() && !self.dice.once_in(6) => {
                self.end_line();
                self.between(indent + self.step);
                self.out += &" ".repeat(indent + self.step);
                self.map(entries, indent + self.step, true);
            }
            Tree::List(items) if !items.is_empty() && !self.dice.once_in(6) => {
                self.end_line();
                let offset = if keyed && self.dice.once_in(2) { 0 } else { self.step };
                self.out += &" ".repeat(indent + offset);
                self.list(items, indent + offset, true);
            }
            Tree::Null => {
                self.out += self.dice.pick(&["", " null", " ~", ""]);
                self.end_line();
            }
            Tree::Text(text) if text.contains('\n') && !self.dice.once_in(3) => {
                self.literal(text, indent);
            }
            other => {
                self.out.push(' ');
                let spread = self.dice.once_in(2);
                self.flow(other, indent + self.step, spread);
                self.end_line();
            }
        }
    }

    fn literal(&mut self, text: &str, indent: usize) {
        let by = self.step.max(1);
        let digit = if text.starts_with(' ') { by.to_string() } else { String::new() };
        let chomp = match text.len() - text.trim_end_matches('\n').len() {
            0 => "-",
            1 => "",
            _ => "+",
        };
        self.out += &format!(" |{digit}{chomp}{}", self.newline);
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            let blank = if line.is_empty() { 0 } else { indent + by };
            self.out += &format!("{}{line}{}", " ".repeat(blank), self.newline);
        }
    }

    fn flow(&mut self, value: &Tree, indent: usize, spread: bool) {
        let (open, close, count) = match value {
            Tree::Null => {
                self.out += self.dice.pick(&["null", "~"]);
                return;
            }
            Tree::Text(text) => {
                self.out += &quoted(self.dice, text);
                return;
            }
            Tree::List(items) => ('[', ']', items.len()),
            Tree::Map(entries) => ('{', '}', entries.len()),
        };
        let line =
            if spread { format!("{}{}", self.newline, " ".repeat(indent)) } else { String::new() };
        self.out.push(open);
        for at in 0..count {
            if spread && self.dice.once_in(6) {
                self.out += " # in flow";
            }
            self.out += &line;
            match value {
                Tree::List(items) => self.flow(&items[at], indent + 1, spread),
                Tree::Map(entries) => {
                    self.out += &quoted(self.dice, &entries[at].0);
                    if matches!(entries[at].1, Tree::Null) && self.dice.once_in(2) {
                        self.out += ": ";
                    } else {
                        self.out += ": ";
                        self.flow(&entries[at].1, indent + 1, spread);
                    }
                }
                Tree::Null | Tree::Text(_) => {}
            }
            if at + 1 < count || self.dice.once_in(8) {
                self.out += if self.dice.once_in(3) { " ," } else { "," };
                if !spread && self.dice.once_in(2) {
                    self.out.push(' ');
                }
            }
        }
        if spread || self.dice.once_in(6) {
            self.out.push(' ');
        }
        self.out.push(close);
    }
}

fn quoted(dice: &mut Dice, text: &str) -> String {
    let bare = !text.is_empty()
        && text.chars().all(|c| c.is_alphanumeric() || "-./".contains(c))
        && text.starts_with(char::is_alphabetic);
    match dice.below(4) {
        0 | 1 if bare => text.to_owned(),
        2 if !text.contains('\n') => format!("'{}'", text.replace('\'', "''")),
        _ => {
            format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
        }
    }
}

fn manifest(seed: u64) -> (String, bool) {
    let mut dice = Dice(seed);
    let is_compose = dice.once_in(4);
    let documents = 1 + dice.below(3);
    let newline = dice.pick(&["\n", "\n", "\n", "\r\n"]);
    let newline = if newline == "\n" { "\n" } else { "\r\n" };
    let step = 1 + dice.below(4);
    let mut out = String::new();
    for at in 0..documents {
        if at > 0 || dice.once_in(3) {
            out += dice.pick(&["---", "--- # next", "...\n---"]);
            out += newline;
        }
        let tree = if is_compose { compose(&mut dice) } else { object(&mut dice) };
        let mut writer = Writer { dice: &mut dice, out: String::new(), newline, step };
        match &tree {
            Tree::Map(entries) if !writer.dice.once_in(5) => writer.map(entries, 0, true),
            flow => {
                let spread = writer.dice.once_in(2);
                writer.flow(flow, 1, spread);
                writer.end_line();
            }
        }
        out += &writer.out;
    }
    if dice.once_in(4) {
        out.truncate(out.trim_end_matches(['\n', '\r']).len());
    }
    (out, is_compose)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn any_manifest_gets_its_sidecar_and_back(seed in any::<u64>()) {
        let (text, compose) = manifest(seed);
        let mut options = Options::new("0.1.0");
        options.plain = seed.is_multiple_of(5);
        options.source = compose.then(|| Source::Policies("./policies".to_owned()));
        let once = match inject("f", &text, &options) {
            Ok(outcome) => outcome,
            Err(problems) => return Err(TestCaseError::fail(format!("{problems:?}\n{text}"))),
        };
        prop_assert!(!once.changed.is_empty(), "nothing happened to\n{text}");
        meaning::check("f", &text, &once.text);
        let back = uninject("f", &once.text, None).unwrap();
        prop_assert_eq!(&back.text, &text, "by way of\n{}", &once.text);
        let twice = inject("f", &once.text, &options).unwrap();
        prop_assert_eq!(&twice.text, &once.text);
    }
}

#[test]
fn mangled_manifests_are_refused_or_come_back() {
    let files = super::files("");
    let mut accepted = 0;
    for seed in 0..3000 {
        let mut dice = Dice(seed);
        let (name, text) = &files[dice.below(files.len())];
        let mut text = text.clone();
        for _ in 0..=dice.below(3) {
            mangle(&mut dice, &mut text);
        }
        // What a mangled label says of itself is not for this test.
        if text.contains(crate::record::INJECTED) {
            continue;
        }
        let Ok(outcome) = inject(name, &text, &super::options(name, &text)) else { continue };
        accepted += usize::from(!outcome.changed.is_empty());
        meaning::check(name, &text, &outcome.text);
        let back = uninject(name, &outcome.text, None).unwrap();
        assert!(
            back.text == text,
            "seed {seed}, {name}:\n{}\nby way of\n{}",
            crate::unified(name, &text, &back.text),
            outcome.text
        );
    }
    assert!(accepted > 300, "{accepted} accepted");
}

/// Does to a text what a slip of the hand may.
fn mangle(dice: &mut Dice, text: &mut String) {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    if lines.is_empty() {
        return;
    }
    let at = dice.below(lines.len());
    let other = dice.below(lines.len());
    let indented = format!("{}{}", " ".repeat(1 + dice.below(3)), lines[at]);
    match dice.below(8) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(at, lines[other]),
        2 => lines.insert(at, dice.pick(&["\n", "# a\n", "   # b\n", "    \n", "---\n", "\r\n"])),
        3 => lines.swap(at, other),
        4 => lines[at] = &indented,
        5 => lines[at] = lines[at].strip_prefix("  ").unwrap_or(lines[at]),
        6 => lines[at] = lines[at].split_at(lines[at].find(':').map_or(0, |at| at + 1)).0,
        _ => {
            let chars: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            let at = chars[dice.below(chars.len())];
            let insert =
                dice.pick(&["", " ", "\n", ",", "]", "}", "'", "\"", "#", "&a ", "? ", "|", "\t"]);
            text.replace_range(
                at..at + text[at..].chars().next().map_or(0, char::len_utf8),
                insert,
            );
            return;
        }
    }
    *text = lines.concat();
}
