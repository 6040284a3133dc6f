//! What is wrong with a file, where, and what to do about it.

use std::{fmt, ops::Range};

/// Longest line that is shown.
const MAX_LINE: usize = 160;

/// One thing that is wrong.
///
/// Displays as the message, the place, the line with a mark under it, and the help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as the person named it.
    pub file: Box<str>,
    /// One-based line; 0 when it is about no place.
    pub line: u32,
    /// One-based column, in characters.
    pub column: u32,
    /// The line itself.
    pub text: String,
    /// Characters that are meant, at least 1.
    pub length: u32,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// The bytes that are meant.
    at: Range<usize>,
}

impl Problem {
    /// About the bytes `range` of `text`.
    pub(crate) fn new(text: &str, range: Range<usize>, message: impl Into<String>) -> Self {
        let start = floor(text, range.start);
        let begin = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let rest = &text[begin..];
        let line = rest.find('\n').map_or(rest, |at| &rest[..at]).trim_end_matches('\r');
        let end = floor(text, range.end.clamp(start, (begin + line.len()).max(start)));
        Self {
            file: Box::default(),
            line: small(text[..start].matches('\n').count() + 1),
            column: small(text[begin..start].trim_start_matches('\u{feff}').chars().count() + 1),
            text: line.trim_start_matches('\u{feff}').to_owned(),
            length: small(text[start..end].chars().count().max(1)),
            message: message.into(),
            help: None,
            at: start..end,
        }
    }

    /// About no place in a text.
    pub(crate) fn general(message: impl Into<String>) -> Self {
        Self {
            file: Box::default(),
            line: 0,
            column: 0,
            text: String::new(),
            length: 1,
            message: message.into(),
            help: None,
            at: 0..0,
        }
    }

    /// The same about another text, in which things stand elsewhere.
    pub(crate) fn moved(self, text: &str, place: impl Fn(usize) -> usize) -> Self {
        if self.line == 0 {
            return self;
        }
        let at = place(self.at.start)..place(self.at.end);
        Self { help: self.help, ..Self::new(text, at, self.message) }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn within(mut self, file: &str) -> Self {
        self.file = file.into();
        self
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The nearest place at or before `at` where a character begins.
fn floor(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            let colon = if self.file.is_empty() { "" } else { ": " };
            write!(f, "{}{colon}{}", self.file, self.message)?;
        } else {
            write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
            if self.text.chars().count() <= MAX_LINE {
                let text: String =
                    self.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                let number = self.line.to_string();
                let margin = " ".repeat(number.len());
                let blank = " ".repeat(self.column.saturating_sub(1) as usize);
                let marks = "^".repeat(self.length as usize);
                write!(f, "\n{number} | {text}\n{margin} | {blank}{marks}")?;
            }
        }
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}
