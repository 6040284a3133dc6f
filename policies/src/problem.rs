//! Problems while they are gathered: places are spans until the end, when the
//! text of their lines is looked up once.

use std::path::PathBuf;

use crate::{
    diagnostic::{Diagnostic, Related, Report, Rule, Severity},
    model::Source,
};

/// Where something stands: file by index, one-based line and column, length in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Span {
    pub(crate) file: u32,
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) length: u32,
}

/// A value and the place where it was written.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
}

impl<T> std::ops::Deref for At<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: std::fmt::Display> std::fmt::Display for At<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.value.fmt(f)
    }
}

/// A [`Diagnostic`] in the making.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) severity: Severity,
    pub(crate) rule: Rule,
    pub(crate) span: Span,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    pub(crate) related: Vec<(Span, String)>,
}

impl Problem {
    pub(crate) fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn related(&mut self, span: Span, message: impl Into<String>) -> &mut Self {
        self.related.push((span, message.into()));
        self
    }
}

/// All problems of one run. Bounded: what goes beyond is counted only.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    list: Vec<Problem>,
    errors: usize,
}

impl Problems {
    /// Gathered before sorting, so that the report keeps the first by place and not by discovery.
    const MAX_GATHERED: usize = 10 * Report::MAX_DIAGNOSTICS;

    pub(crate) fn error(
        &mut self,
        rule: Rule,
        span: Span,
        message: impl Into<String>,
    ) -> &mut Problem {
        self.errors += 1;
        self.push(Severity::Error, rule, span, message.into())
    }

    pub(crate) fn warning(
        &mut self,
        rule: Rule,
        span: Span,
        message: impl Into<String>,
    ) -> &mut Problem {
        self.push(Severity::Warning, rule, span, message.into())
    }

    pub(crate) fn errors(&self) -> usize {
        self.errors
    }

    fn push(
        &mut self,
        severity: Severity,
        rule: Rule,
        span: Span,
        message: String,
    ) -> &mut Problem {
        // Past the bound the last one is overwritten: the caller still gets something to fill.
        if self.list.len() >= Self::MAX_GATHERED {
            self.list.pop();
        }
        let problem = Problem { severity, rule, span, message, help: None, related: Vec::new() };
        self.list.push(problem);
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    /// Sorts by place and looks up the lines' texts.
    pub(crate) fn into_report(mut self, files: &[(PathBuf, String)], documents: usize) -> Report {
        self.list.sort_by(|a, b| (a.span, &a.message).cmp(&(b.span, &b.message)));
        self.list.dedup_by(|a, b| a.span == b.span && a.message == b.message);
        let found = self.list.len();
        if found > Report::MAX_DIAGNOSTICS {
            // Errors stay before warnings do.
            self.list.sort_by_key(|p| p.severity);
            self.list.truncate(Report::MAX_DIAGNOSTICS);
            self.list.sort_by_key(|p| p.span);
        }
        let lines = Lines::new(files);
        Report {
            left_out: found - self.list.len(),
            diagnostics: self.list.into_iter().map(|problem| lines.diagnostic(problem)).collect(),
            files: files.len(),
            documents,
        }
    }
}

/// The place of a span, for [`crate::model::Mesh::sources`].
pub(crate) fn source(files: &[(PathBuf, String)], span: Span) -> Source {
    let file = files.get(span.file as usize).map(|(path, _)| path.clone()).unwrap_or_default();
    Source { file, line: span.line }
}

struct Lines<'a> {
    files: &'a [(PathBuf, String)],
    /// Lines of each file that was asked for.
    split: Vec<std::cell::OnceCell<Vec<&'a str>>>,
}

impl<'a> Lines<'a> {
    fn new(files: &'a [(PathBuf, String)]) -> Self {
        Self { files, split: files.iter().map(|_| std::cell::OnceCell::new()).collect() }
    }

    fn diagnostic(&self, problem: Problem) -> Diagnostic {
        let Problem { severity, rule, span, message, help, related } = problem;
        let line = self.line(span);
        let rest = line.chars().count().saturating_sub(span.column as usize - 1).max(1);
        let related = related
            .into_iter()
            .map(|(span, message)| Related { source: source(self.files, span), message })
            .collect();
        Diagnostic {
            severity,
            rule,
            file: source(self.files, span).file,
            line: span.line,
            column: span.column,
            length: span.length.clamp(1, u32::try_from(rest).unwrap_or(u32::MAX)),
            message,
            text: line.to_owned(),
            help,
            related,
        }
    }

    /// The text of the line, or nothing where it is too long to be shown.
    fn line(&self, span: Span) -> &'a str {
        const LONGEST_SHOWN: usize = 400;
        let file = span.file as usize;
        let Some((_, text)) = self.files.get(file) else { return "" };
        let lines = self.split[file].get_or_init(|| text.lines().collect());
        let line = lines.get((span.line as usize).saturating_sub(1)).copied().unwrap_or("");
        if line.len() > LONGEST_SHOWN { "" } else { line }
    }
}
