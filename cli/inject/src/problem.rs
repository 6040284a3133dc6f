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
    pub help: Option<Box<str>>,
    /// The bytes that are meant, if it is about a place.
    at: Option<Range<usize>>,
}

impl Problem {
    /// About the bytes `range` of `text`; which line that is, [`placed`] tells.
    pub(crate) fn new(text: &str, range: Range<usize>, message: impl Into<String>) -> Self {
        let start = floor(text, range.start);
        let at = start..floor(text, range.end.max(start));
        Self { at: Some(at), ..Self::general(message) }
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
            at: None,
        }
    }

    /// The same about another text, in which things stand elsewhere.
    pub(crate) fn moved(self, place: impl Fn(usize) -> usize) -> Self {
        Self { at: self.at.map(|at| place(at.start)..place(at.end)), ..self }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into().into_boxed_str());
        self
    }

    fn place(&mut self, file: &str, text: &str, lines: &[usize]) {
        self.file = file.into();
        let Some(at) = &self.at else { return };
        let start = floor(text, at.start);
        let number = lines.partition_point(|begin| *begin <= start);
        let begin = lines[number - 1];
        let next = lines.get(number).map_or(text.len(), |next| next - 1);
        let line = text[begin..next].trim_end_matches('\r');
        let end = floor(text, at.end.clamp(start, (begin + line.len()).max(start)));
        self.line = small(number);
        self.column = small(text[begin..start].trim_start_matches('\u{feff}').chars().count() + 1);
        line.trim_start_matches('\u{feff}').clone_into(&mut self.text);
        self.length = small(text[start..end].chars().count().max(1));
    }
}

/// Says of problems with `text` in which lines of `file` they are. Lines are counted once.
pub(crate) fn placed(file: &str, text: &str, mut problems: Vec<Problem>) -> Vec<Problem> {
    if !problems.is_empty() {
        let breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        let lines: Vec<usize> = [0].into_iter().chain(breaks).collect();
        problems.iter_mut().for_each(|problem| problem.place(file, text, &lines));
    }
    problems
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

#[cfg(test)]
mod tests {
    use super::{Problem, placed};

    /// Counting lines anew for each would take hours.
    #[test]
    fn many_problems_of_a_long_file_are_placed_in_one_pass() {
        let lines = 100_000;
        let text = "x: é!\r\n".repeat(lines);
        let problems = text.match_indices('!').map(|(at, _)| Problem::new(&text, at..at + 9, ""));
        let placed = placed("f", &text, problems.collect());
        assert_eq!(placed.len(), lines);
        for (number, problem) in (1..).zip(&placed) {
            let told = (problem.line, problem.column, problem.length, problem.text.as_str());
            assert_eq!(told, (number, 5, 1, "x: é!"));
        }
        let end = super::placed("f", "a\n", vec![Problem::new("a\n", 2..2, "")]).remove(0);
        assert_eq!((end.line, end.column, end.text.as_str()), (2, 1, ""));
    }
}
