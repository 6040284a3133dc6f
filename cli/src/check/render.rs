//! A diagnostic as text: the line, and a mark under what is wrong.

use std::fmt::Write as _;

use towpath_policies::{Diagnostic, Report, Severity};

use super::Root;

/// Terminal attributes, or nothing.
struct Paint {
    on: bool,
}

impl Paint {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn severity(&self, severity: Severity, text: &str) -> String {
        match severity {
            Severity::Error => self.paint("1;31", text),
            Severity::Warning => self.paint("1;33", text),
        }
    }

    fn dim(&self, text: &str) -> String {
        self.paint("34", text)
    }
}

/// One diagnostic with its line, e.g.
///
/// ```text
/// error[unknown-field]: unknown field `backendRef`
///   --> policies/edge.yaml:12:5
///    |
/// 12 |     backendRef: []
///    |     ^^^^^^^^^^ did you mean `backendRefs`?
/// ```
pub(super) fn diagnostic(diagnostic: &Diagnostic, root: &Root, colour: bool) -> String {
    let paint = Paint { on: colour };
    let Diagnostic { severity, rule, line, column, length, message, .. } = diagnostic;
    let word = match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let mut text = String::new();
    let head = paint.severity(*severity, &format!("{word}[{}]", rule.id()));
    let _ = writeln!(text, "{head}: {}", paint.paint("1", &printable(message)));
    let number = line.to_string();
    let margin = " ".repeat(number.len());
    let path = root.path(&diagnostic.file);
    let _ = writeln!(text, "{margin}{} {}:{line}:{column}", paint.dim("-->"), path.display());
    let bar = paint.dim("|");
    if !diagnostic.text.is_empty() {
        let (before, marked, after) = split(&diagnostic.text, *column, *length);
        // Tabs stay tabs, so that the mark stands under what it marks.
        let blank: String = before.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let marks = "^".repeat(marked.chars().count().max(1));
        let _ = writeln!(text, "{margin} {bar}");
        let line = printable(&format!("{before}{marked}{after}"));
        let _ = writeln!(text, "{} {bar} {}", paint.dim(&number), line.trim_end());
        let _ = writeln!(text, "{margin} {bar} {blank}{}", paint.severity(*severity, &marks));
    }
    if let Some(help) = &diagnostic.help {
        let _ = writeln!(text, "{margin} {} {}", paint.dim("= help:"), printable(help));
    }
    for related in &diagnostic.related {
        let path = root.path(&related.source.file);
        let place = format!("{}:{}", path.display(), related.source.line);
        let note = paint.dim("= note:");
        let _ = writeln!(text, "{margin} {note} {place}: {}", printable(&related.message));
    }
    text
}

/// `3 files, 9 documents: 2 errors, 1 warning`. Only documents of kinds that are Towpath's or the Gateway API's count.
pub(super) fn summary(report: &Report, colour: bool) -> String {
    let paint = Paint { on: colour };
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let documents = match report.documents {
        0 => "no document of Towpath's or the Gateway API's kinds".to_owned(),
        documents => count(documents, "document"),
    };
    let seen = format!("{}, {documents}", count(report.files, "file"));
    let (errors, warnings) = (report.errors(), report.warnings());
    let verdict = match (errors, warnings) {
        (0, 0) => paint.paint("1;32", "nothing wrong"),
        (0, _) => paint.severity(Severity::Warning, &count(warnings, "warning")),
        (_, 0) => paint.severity(Severity::Error, &count(errors, "error")),
        _ => {
            let both = format!("{}, {}", count(errors, "error"), count(warnings, "warning"));
            paint.severity(Severity::Error, &both)
        }
    };
    format!("{seen}: {verdict}\n")
}

/// The line before, at and after the mark.
fn split(line: &str, column: u32, length: u32) -> (&str, &str, &str) {
    let at = |count: usize| line.char_indices().nth(count).map_or(line.len(), |(at, _)| at);
    let start = column.saturating_sub(1) as usize;
    let (from, to) = (at(start), at(start + length as usize));
    (&line[..from], &line[from..to], &line[to..])
}

/// Files are strangers' text: no escape sequences to the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}
