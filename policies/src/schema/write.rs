//! JSON written as YAML, for people to read.

use std::fmt::Write as _;

use serde_json::Value;

/// `value` in block style.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

/// Writes `value` after `key:` or `-`, and ends the line.
fn after(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push('\n');
            block(value, depth + 1, text);
        }
        // A list stands where its key does.
        Value::Array(list) if !list.is_empty() => {
            text.push('\n');
            block(value, depth, text);
        }
        _ => {
            text.push(' ');
            block(value, depth, text);
        }
    }
}

fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                // Writing to a string cannot fail.
                let _ = write!(text, "{indent}{}:", scalar(key));
                after(value, depth, text);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for item in list {
                let begin = text.len();
                block(item, depth + 1, text);
                let inner = matches!(item, Value::Object(map) if !map.is_empty());
                // The first key of an object stands beside the dash.
                let rest = text.split_off(begin);
                let rest = if inner { &rest[indent.len() + 2..] } else { &rest };
                let _ = write!(text, "{indent}- {rest}");
            }
        }
        Value::String(word) => {
            let _ = writeln!(text, "{}", scalar(word));
        }
        other => {
            let _ = writeln!(text, "{other}");
        }
    }
}

/// Text as it is where it cannot be taken for anything else, else as JSON has it, which is YAML.
fn scalar(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"./-_$".contains(&b);
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.bytes().all(plain);
    // What some version of YAML reads as a truth value or as nothing.
    let taken = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if word && !taken.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}
