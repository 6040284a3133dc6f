//! What is wrong with a policy folder, told so that a person can mend it.

use std::{fmt, path::PathBuf};

use serde::Serialize;

use crate::model::Source;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The folder cannot be used.
    Error,
    /// The folder can be used, but probably does not do what was meant.
    Warning,
}

/// What sort of thing is wrong. Stable: tools filter by [`Rule::id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The text is no YAML, or not the YAML that is accepted here.
    Yaml,
    /// Too big, too deep, too many.
    Limit,
    /// A kind that is not known here.
    UnknownKind,
    /// A field that is not known here.
    UnknownField,
    /// A field that the Gateway API knows and Towpath does not obey yet.
    Unsupported,
    /// A field that must be there is not.
    MissingField,
    /// A value of another type than the field's.
    WrongType,
    /// A value of the right type that makes no sense.
    InvalidValue,
    /// A name that nothing carries.
    DanglingReference,
    /// A name or target used twice.
    Duplicate,
    /// Two documents that claim the same thing.
    Conflict,
    /// Written down, but without effect.
    NoEffect,
    /// A place that the built-in gazetteer does not know.
    UnknownPlace,
}

impl Rule {
    /// Every rule, in order.
    pub const ALL: [Self; 13] = [
        Self::Yaml,
        Self::Limit,
        Self::UnknownKind,
        Self::UnknownField,
        Self::Unsupported,
        Self::MissingField,
        Self::WrongType,
        Self::InvalidValue,
        Self::DanglingReference,
        Self::Duplicate,
        Self::Conflict,
        Self::NoEffect,
        Self::UnknownPlace,
    ];

    /// The stable name, e.g. `unknown-field`.
    pub fn id(self) -> &'static str {
        match self {
            Self::Yaml => "yaml",
            Self::Limit => "limit",
            Self::UnknownKind => "unknown-kind",
            Self::UnknownField => "unknown-field",
            Self::Unsupported => "unsupported",
            Self::MissingField => "missing-field",
            Self::WrongType => "wrong-type",
            Self::InvalidValue => "invalid-value",
            Self::DanglingReference => "dangling-reference",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::NoEffect => "no-effect",
            Self::UnknownPlace => "unknown-place",
        }
    }

    /// One sentence for a list of rules.
    pub fn summary(self) -> &'static str {
        match self {
            Self::Yaml => "The text is not the YAML that policy files are written in.",
            Self::Limit => "A file, or what it expands to, is larger than allowed.",
            Self::UnknownKind => "The kind of a document is not known.",
            Self::UnknownField => "A field is not known.",
            Self::Unsupported => "A part of the Gateway API is not supported yet.",
            Self::MissingField => "A field that must be given is missing.",
            Self::WrongType => "A value has the wrong type.",
            Self::InvalidValue => "A value is outside what is allowed.",
            Self::DanglingReference => "A reference names something that does not exist.",
            Self::Duplicate => "A name or a target is used twice.",
            Self::Conflict => "Two documents claim the same thing.",
            Self::NoEffect => "Something is written down but has no effect.",
            Self::UnknownPlace => "The built-in gazetteer does not know a place.",
        }
    }
}

/// One thing that is wrong, and where.
///
/// Displays as `file:line:column: severity: message (help)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What sort of thing it is.
    pub rule: Rule,
    /// Path relative to the policy folder.
    pub file: PathBuf,
    /// One-based line.
    pub line: u32,
    /// One-based column, in characters.
    pub column: u32,
    /// Length of the offending text in characters, at least 1, never past the line's end.
    pub length: u32,
    /// What is wrong.
    pub message: String,
    /// The whole line as written, without its line break; long lines are cut around the column.
    pub text: String,
    /// What is allowed, or what to do.
    pub help: Option<String>,
    /// Other places that have to do with it, e.g. where a name was used first.
    pub related: Vec<Related>,
}

/// Another place that explains a [`Diagnostic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Related {
    /// Where.
    pub source: Source,
    /// What is there.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let Self { file, line, column, message, .. } = self;
        write!(f, "{}:{line}:{column}: {severity}: {message}", file.display())?;
        if let Some(help) = &self.help {
            write!(f, " ({help})")?;
        }
        for related in &self.related {
            write!(f, "; {}: {}", related.source, related.message)?;
        }
        Ok(())
    }
}

/// Everything that was found in one run, and how much was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In order of file, line and column. At most [`Report::MAX_DIAGNOSTICS`].
    pub diagnostics: Vec<Diagnostic>,
    /// How many more there were.
    pub left_out: usize,
    /// Files read.
    pub files: usize,
    /// Documents of Towpath's and the Gateway API's kinds.
    pub documents: usize,
}

impl Report {
    /// Diagnostics kept; beyond this they are only counted.
    pub const MAX_DIAGNOSTICS: usize = 1000;

    /// Whether nothing stands in the way of using the folder.
    pub fn is_ok(&self) -> bool {
        self.errors() == 0
    }

    /// Errors among the diagnostics.
    pub fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    /// Warnings among the diagnostics.
    pub fn warnings(&self) -> usize {
        self.count(Severity::Warning)
    }

    fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|d| d.severity == severity).count()
    }
}

/// One diagnostic a line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.diagnostics.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        if self.left_out > 0 {
            write!(f, "\nand {} more", self.left_out)?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// The candidate nearest to `name`, if one is near enough to have been meant.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).clamp(1, 4);
    candidates
        .into_iter()
        .map(|candidate| (distance(&name.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(far, _)| *far <= limit)
        .min_by_key(|(far, _)| *far)
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment distance: insertions, deletions, replacements and
/// swaps of neighbours each count one. Bounded by the first 64 characters.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    const LONGEST: usize = 64;
    let a: Vec<char> = a.chars().take(LONGEST).collect();
    let b: Vec<char> = b.chars().take(LONGEST).collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn the_nearest_name_is_one_that_may_have_been_meant() {
        let fields = ["backendRefs", "filters", "matches", "name", "retry", "timeouts"];
        for (written, expected) in [
            ("backendRef", Some("backendRefs")),
            ("backendrefs", Some("backendRefs")),
            ("bakcendRefs", Some("backendRefs")),
            ("timeout", Some("timeouts")),
            ("match", Some("matches")),
            ("nmae", Some("name")),
            ("colour", None),
            ("", None),
        ] {
            let candidates = fields.iter().copied();
            let found = nearest(written, candidates);
            if written == "match" {
                // Two letters off a word of five: too far to be put forward.
                assert_eq!(found, None);
            } else {
                assert_eq!(found, expected, "{written}");
            }
        }
    }
}
