//! What is added, as block YAML or as JSON, which is flow YAML as well.

/// A value that is added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// Text, quoted where it needs to be.
    Text(String),
    /// A number or a Boolean, as it is written.
    Word(String),
    List(Vec<Value>),
    Map(Vec<(String, Value)>),
}

impl Value {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(crate) fn word(word: impl ToString) -> Self {
        Self::Word(word.to_string())
    }

    pub(crate) fn texts<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::List(texts.into_iter().map(Self::text).collect())
    }

    pub(crate) fn map<const N: usize>(entries: [(&str, Self); N]) -> Self {
        Self::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }
}

/// How a block is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout<'t> {
    /// What each line begins with.
    pub(crate) indent: &'t str,
    /// How far lists stand to the right of their key.
    pub(crate) list_offset: usize,
    /// What each line ends with.
    pub(crate) newline: &'t str,
}

/// `key: value` as whole lines.
pub(crate) fn block_entry(key: &str, value: &Value, layout: Layout<'_>) -> String {
    let mut lines = Vec::new();
    entry_lines(key, value, layout.list_offset, &mut lines);
    join(&lines, layout)
}

/// `- value` as whole lines.
pub(crate) fn block_item(value: &Value, layout: Layout<'_>) -> String {
    let mut lines = Vec::new();
    item_lines(value, layout.list_offset, &mut lines);
    join(&lines, layout)
}

fn join(lines: &[String], layout: Layout<'_>) -> String {
    lines.iter().map(|line| format!("{}{line}{}", layout.indent, layout.newline)).collect()
}

fn entry_lines(key: &str, value: &Value, list_offset: usize, lines: &mut Vec<String>) {
    let key = scalar(key);
    match value {
        Value::Map(entries) if !entries.is_empty() => {
            lines.push(format!("{key}:"));
            nested(2, lines, |lines| {
                entries.iter().for_each(|(key, value)| entry_lines(key, value, list_offset, lines));
            });
        }
        Value::List(items) if !items.is_empty() => {
            lines.push(format!("{key}:"));
            nested(list_offset, lines, |lines| {
                items.iter().for_each(|item| item_lines(item, list_offset, lines));
            });
        }
        leaf => lines.push(format!("{key}: {}", block_leaf(leaf))),
    }
}

fn item_lines(value: &Value, list_offset: usize, lines: &mut Vec<String>) {
    let first = lines.len();
    match value {
        Value::Map(entries) if !entries.is_empty() => nested(2, lines, |lines| {
            entries.iter().for_each(|(key, value)| entry_lines(key, value, list_offset, lines));
        }),
        Value::List(items) if !items.is_empty() => nested(2, lines, |lines| {
            items.iter().for_each(|item| item_lines(item, list_offset, lines));
        }),
        leaf => lines.push(format!("  {}", block_leaf(leaf))),
    }
    lines[first].replace_range(..1, "-");
}

fn nested(by: usize, lines: &mut Vec<String>, write: impl FnOnce(&mut Vec<String>)) {
    let from = lines.len();
    write(lines);
    let blank = " ".repeat(by);
    lines[from..].iter_mut().for_each(|line| line.insert_str(0, &blank));
}

fn block_leaf(value: &Value) -> String {
    match value {
        Value::Text(text) => scalar(text),
        Value::Word(word) => word.clone(),
        Value::List(_) => "[]".to_owned(),
        Value::Map(_) => "{}".to_owned(),
    }
}

/// Text as it can stand in a block: bare where nobody can misread it.
fn scalar(text: &str) -> String {
    let letter = |text: &str| text.starts_with(|c: char| c.is_ascii_alphabetic());
    let begins =
        letter(text) || text.starts_with('/') || text.strip_prefix("--").is_some_and(letter);
    let inside = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:=$()@+".contains(&b));
    // YAML 1.1 reads more words as Booleans than 1.2 does; Kubernetes' reader is of 1.1.
    let word = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word));
    // 50m, 64Mi, 30s; with an e or an x it could be another number.
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let quantity = unit.len() < text.len() && ["m", "s", "h", "Ki", "Mi", "Gi"].contains(&unit);
    let bare = begins && inside && !word && !text.ends_with(':');
    if bare || quantity { text.to_owned() } else { quoted(text) }
}

/// Text in double quotes, as JSON and YAML both have it.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// How JSON is laid out: on one line, or on lines that begin with an indent.
#[derive(Clone, Debug)]
pub(crate) enum Spread {
    Line,
    Lines { indent: String, step: String, newline: &'static str },
}

/// `"key": value`.
pub(crate) fn flow_entry(key: &str, value: &Value, spread: &Spread) -> String {
    format!("{}: {}", quoted(key), flow(value, spread))
}

/// A value as JSON.
pub(crate) fn flow(value: &Value, spread: &Spread) -> String {
    let inner = match spread {
        Spread::Line => Spread::Line,
        Spread::Lines { indent, step, newline } => {
            Spread::Lines { indent: format!("{indent}{step}"), step: step.clone(), newline }
        }
    };
    let (parts, open, close): (Vec<String>, _, _) = match value {
        Value::Text(text) => return quoted(text),
        Value::Word(word) => return word.clone(),
        Value::List(items) => (items.iter().map(|item| flow(item, &inner)).collect(), '[', ']'),
        Value::Map(entries) => {
            let parts = entries.iter().map(|(key, value)| flow_entry(key, value, &inner));
            (parts.collect(), '{', '}')
        }
    };
    match (spread, &inner) {
        (Spread::Lines { indent, newline, .. }, Spread::Lines { indent: deeper, .. })
            if !parts.is_empty() =>
        {
            let parts = parts.join(&format!(",{newline}{deeper}"));
            format!("{open}{newline}{deeper}{parts}{newline}{indent}{close}")
        }
        _ => format!("{open}{}{close}", parts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Layout, Spread, Value, block_entry, block_item, flow, scalar};

    #[test]
    fn text_is_bare_only_where_it_cannot_be_misread() {
        for (text, written) in [
            ("towpath-proxy", "towpath-proxy"),
            ("--node=$(POD_NAME).$(POD_NAMESPACE)", "--node=$(POD_NAME).$(POD_NAMESPACE)"),
            ("/var/lib/towpath", "/var/lib/towpath"),
            ("ghcr.io/towpath/proxy:0.1.0", "ghcr.io/towpath/proxy:0.1.0"),
            ("off", "\"off\""),
            ("50m", "50m"),
            ("64Mi", "64Mi"),
            ("1e3", "\"1e3\""),
            ("15", "\"15\""),
            ("1802:1802", "\"1802:1802\""),
            ("0.1.0 +spec", "\"0.1.0 +spec\""),
            ("a: b", "\"a: b\""),
            ("a:", "\"a:\""),
            ("- a", "\"- a\""),
            ("---", "\"---\""),
            ("say \"hi\"\n", "\"say \\\"hi\\\"\\u000a\""),
            ("", "\"\""),
        ] {
            assert_eq!(scalar(text), written);
        }
    }

    #[test]
    fn the_same_value_is_written_as_block_and_as_json() {
        let value = Value::map([
            ("name", Value::text("towpath")),
            ("emptyDir", Value::map([])),
            ("ports", Value::List(vec![Value::map([("containerPort", Value::word(9901))])])),
        ]);
        let list = Value::List(vec![value.clone()]);
        let layout = Layout { indent: "  ", list_offset: 0, newline: "\n" };
        assert_eq!(
            block_entry("volumes", &list, layout),
            "  volumes:\n  - name: towpath\n    emptyDir: {}\n    ports:\n    - containerPort: 9901\n"
        );
        let layout = Layout { indent: "", list_offset: 2, newline: "\r\n" };
        assert_eq!(
            block_item(&value, layout),
            "- name: towpath\r\n  emptyDir: {}\r\n  ports:\r\n    - containerPort: 9901\r\n"
        );
        assert_eq!(
            flow(&list, &Spread::Line),
            r#"[{"name": "towpath", "emptyDir": {}, "ports": [{"containerPort": 9901}]}]"#
        );
        let spread = Spread::Lines { indent: "\t".into(), step: "\t".into(), newline: "\n" };
        assert_eq!(
            flow(&value, &spread),
            "{\n\t\t\"name\": \"towpath\",\n\t\t\"emptyDir\": {},\n\t\t\"ports\": [\n\t\t\t{\n\t\t\t\t\"containerPort\": 9901\n\t\t\t}\n\t\t]\n\t}"
        );
    }
}
