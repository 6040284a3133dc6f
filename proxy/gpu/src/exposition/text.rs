//! The text format of Prometheus, version 0.0.4, and what OpenMetrics adds to
//! its lines.
//!
//! Our own, since we need one pass over borrowed text within bounds: the crate
//! `prometheus-parse` runs a regular expression over each line, splits labels at
//! commas within quotes, and brings chrono and itertools.

use std::borrow::Cow;

use super::MAX_BYTES;
use crate::reading::{Fault, Problem};

/// One line: a name, its labels, and a number that may not be finite.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    labels: Vec<(&'a str, Cow<'a, str>)>,
    pub(super) value: f64,
}

impl Sample<'_> {
    /// The first of `names` that is there and not empty; the case of labels is a matter of the exporter's version.
    pub(super) fn label(&self, names: &[&str]) -> Option<&str> {
        let find = |name: &&str| self.labels.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        names
            .iter()
            .filter_map(find)
            .map(|(_, value)| value.as_ref())
            .find(|value| !value.is_empty())
    }
}

/// The samples of `text`. Lines that are none are left out.
pub(super) fn samples(text: &str) -> Result<impl Iterator<Item = Sample<'_>>, Fault> {
    if text.len() > MAX_BYTES {
        return Err(Fault::new("metrics", Problem::TooMuch("8 MiB")));
    }
    Ok(text.lines().filter_map(sample))
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line.find(|letter: char| letter == '{' || letter.is_whitespace())?;
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    // A time or an exemplar may follow.
    let value = rest.split_whitespace().next()?.parse().ok()?;
    (!name.is_empty()).then_some(Sample { name, labels, value })
}

type Labels<'a> = Vec<(&'a str, Cow<'a, str>)>;

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(Labels<'_>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (name, behind) = rest.split_once('=')?;
        let (value, behind) = quoted(behind.trim_start())?;
        if labels.len() < MAX_LABELS {
            labels.push((name.trim_end(), value));
        }
        rest = behind;
    }
}

/// The quoted text that `rest` begins with, and what follows it.
fn quoted(rest: &str) -> Option<(Cow<'_, str>, &str)> {
    let rest = rest.strip_prefix('"')?;
    let mut escaped = false;
    let end = rest.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })?;
    let (raw, behind) = (&rest[..end], &rest[end + 1..]);
    if !raw.contains('\\') {
        return Some((Cow::Borrowed(raw), behind));
    }
    let mut value = String::with_capacity(raw.len());
    let mut letters = raw.chars();
    while let Some(letter) = letters.next() {
        match if letter == '\\' { letters.next() } else { Some(letter) } {
            Some('n') if letter == '\\' => value.push('\n'),
            Some(letter) => value.push(letter),
            None => {}
        }
    }
    Some((Cow::Owned(value), behind))
}

/// dcgm-exporter and Kubernetes together make a dozen.
const MAX_LABELS: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Expected<'a> = Option<(&'a str, &'a [(&'a str, &'a str)], f64)>;

    #[test]
    fn lines_of_the_format_are_read_and_others_left_out() {
        let lines: [(&str, Expected<'_>); 16] = [
            ("up 1", Some(("up", &[], 1.0))),
            ("  up\t1 1700000000000", Some(("up", &[], 1.0))),
            ("up{} 2", Some(("up", &[], 2.0))),
            ("up{a=\"b\"} 3", Some(("up", &[("a", "b")], 3.0))),
            ("up { a = \"b\" , c=\"d,e}\" , } 4", Some(("up", &[("a", "b"), ("c", "d,e}")], 4.0))),
            (r#"up{a="\"\\\n"} 5"#, Some(("up", &[("a", "\"\\\n")], 5.0))),
            ("vllm:x{m=\"Qwen/7B\"} 1.5e3", Some(("vllm:x", &[("m", "Qwen/7B")], 1500.0))),
            ("x_bucket{le=\"1\"} 6 # {trace=\"a\"} 0.5", Some(("x_bucket", &[("le", "1")], 6.0))),
            ("up{a=\"ä\"} +Inf", Some(("up", &[("a", "ä")], f64::INFINITY))),
            ("# TYPE up gauge", None),
            ("up", None),
            ("up{a=\"b\"", None),
            ("up{a=\"b} 1", None),
            ("up{a=b} 1", None),
            ("up{a=\"b\"} one", None),
            ("{a=\"b\"} 1", None),
        ];
        for (line, expected) in lines {
            let expected = expected.map(|(name, labels, value)| Sample {
                name,
                labels: labels.iter().map(|(key, value)| (*key, Cow::Borrowed(*value))).collect(),
                value,
            });
            assert_eq!(sample(line), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(\\PC|[{}=\",\\\\\n# ])*") {
            prop_assert!(samples(&text).is_ok_and(|samples| samples.count() <= text.len()));
        }

        #[test]
        fn what_was_escaped_comes_back(value in "\\PC*") {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let line = format!("up{{a=\"{escaped}\"}} 1");
            let sample = sample(&line).expect("a sample");
            prop_assert_eq!(sample.labels, vec![("a", Cow::Borrowed(value.as_str()))]);
        }
    }
}
