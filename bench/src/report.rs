//! Tables for people, on a terminal and for `BENCHMARKS.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::case::{Case, Kind};
use crate::contender::Contender;
use crate::machine::Machine;
use crate::results::{
    BUSY, CPU_PER_GB, CPU_PER_REQUEST, CPU_PER_SECOND, Figure, Missing, P50, P99, Performance, RPS,
    RSS, Results, WAITED,
};
use crate::stats::Summary;

/// A table of texts: the first column is aligned to the left, the others to the right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    title: String,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

/// The form a table is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Aligned columns.
    Terminal,
    /// A Markdown table.
    Markdown,
}

/// All tables of a run.
#[must_use]
pub fn tables(results: &Results) -> Vec<Table> {
    let mut tables: Vec<Table> =
        results.cases.keys().map(|case| case_table(results, *case)).collect();
    tables.push(rest_table(results));
    tables
}

/// The line that says where and how a comparison took place.
#[must_use]
pub fn preamble(results: &Results) -> String {
    let Results { machine, rounds, sizes, pinned, versions, .. } = results;
    let what = format!("{rounds} rounds, small answers of {} bytes", sizes.small_body);
    setting(machine, &[&what], *pinned, sizes.quick, versions)
}

/// Where and how a run took place.
pub(crate) fn setting(
    machine: &Machine,
    what: &[&str],
    pinned: bool,
    quick: bool,
    versions: &BTreeMap<Contender, String>,
) -> String {
    let pinned = if pinned { "proxy and load pinned to cores of their own" } else { "not pinned" };
    let how = format!("{pinned}{}", if quick { ", quick sizes" } else { "" });
    let versions: Vec<String> =
        versions.iter().map(|(proxy, version)| format!("{proxy} {version}")).collect();
    [&[&*machine.describe()], what, &[&how, &versions.join(", ")]].concat().join("; ")
}

/// A column of a table: its header, what it shows, and with how many digits.
pub(crate) type Column = (&'static str, Figure, usize);

/// What matters in cases of a kind.
pub(crate) fn columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Small => &[
            ("CPU µs/request", CPU_PER_REQUEST, 2),
            ("requests/s", RPS, 0),
            ("p50 ms", P50, 2),
            ("p99 ms", P99, 2),
            ("peak MB", RSS, 1),
            ("busy", BUSY, 2),
            ("waited", WAITED, 2),
        ],
        Kind::Bulk => &[
            ("CPU ms/GB", CPU_PER_GB, 1),
            ("transfers/s", RPS, 2),
            ("p50 ms", P50, 0),
            ("peak MB", RSS, 1),
            ("busy", BUSY, 2),
            ("waited", WAITED, 2),
        ],
        Kind::Idle => &[("peak MB", RSS, 1), ("CPU µs/s while idle", CPU_PER_SECOND, 0)],
    }
}

/// The table of one case.
#[must_use]
pub fn case_table(results: &Results, case: Case) -> Table {
    let columns = columns(case.kind());
    let mut header = header("proxy", columns.iter().map(|(name, ..)| *name));
    header.push("towpath ÷ it".to_owned());
    let mut table = Table { title: case.to_string(), header, rows: Vec::new(), notes: Vec::new() };
    for (contender, performance) in results.cases.get(&case).into_iter().flatten() {
        table.rows.push(row(results, case, *contender, performance, columns));
        if let Some(remark) = performance.remark {
            table.notes.push(format!("{contender}: {remark}"));
        }
        match &performance.missing {
            Some(Missing::NotPossible(reason)) => {
                table.notes.push(format!("{contender}: {reason}"))
            }
            Some(Missing::Failed(why)) => table.notes.push(format!("{contender} failed: {why}")),
            None => {}
        }
    }
    table
}

fn row(
    results: &Results,
    case: Case,
    contender: Contender,
    performance: &Performance,
    columns: &[Column],
) -> Vec<String> {
    let absent = match performance.missing {
        Some(Missing::NotPossible(_)) => "n/a",
        Some(Missing::Failed(_)) => "failed",
        None => "–",
    };
    let figures = columns.iter().map(|(_, figure, digits)| (performance.summary(*figure), *digits));
    let mut cells = cells(&contender.to_string(), figures, absent);
    let ratio = results.ratio(case, contender, case.main_figure());
    let ratio = ratio.filter(|_| contender != Contender::Towpath);
    cells.push(ratio.map_or_else(String::new, |r| format!("{:.2}", r.median)));
    cells
}

/// The header of a table whose first figure has a column for its range.
pub(crate) fn header(
    first: &'static str,
    columns: impl Iterator<Item = &'static str>,
) -> Vec<String> {
    let mut header: Vec<String> = [first].into_iter().chain(columns).map(str::to_owned).collect();
    header.insert(2, "range".to_owned());
    header
}

/// A row under it: medians with so many digits, or `absent`.
pub(crate) fn cells(
    first: &str,
    figures: impl Iterator<Item = (Option<Summary>, usize)>,
    absent: &str,
) -> Vec<String> {
    let mut cells = vec![first.to_owned()];
    for (summary, digits) in figures {
        cells.push(summary.map_or(absent.to_owned(), |s| format!("{:.digits$}", s.median)));
        if cells.len() == 2 {
            let range = summary.map(|s| format!("{:.digits$}–{:.digits$}", s.min, s.max));
            cells.push(range.unwrap_or_default());
        }
    }
    cells
}

/// The table of memory at rest.
#[must_use]
pub fn rest_table(results: &Results) -> Table {
    let rows = results.rest_mb.keys().filter_map(|contender| {
        let rest = results.rest(*contender)?;
        Some(vec![
            contender.to_string(),
            format!("{:.1}", rest.median),
            format!("{:.1}–{:.1}", rest.min, rest.max),
        ])
    });
    Table {
        title: "memory at rest".to_owned(),
        header: ["proxy", "MB", "range"].map(str::to_owned).to_vec(),
        rows: rows.collect(),
        notes: Vec::new(),
    }
}

impl Table {
    /// A table; every row has as many cells as the header.
    pub(crate) fn new(
        title: &str,
        header: Vec<String>,
        rows: Vec<Vec<String>>,
        notes: Vec<String>,
    ) -> Self {
        Self { title: title.to_owned(), header, rows, notes }
    }

    /// The table as text.
    #[must_use]
    pub fn render(&self, form: Form) -> String {
        match form {
            Form::Terminal => self.terminal(),
            Form::Markdown => self.markdown(),
        }
    }

    fn terminal(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| &row[column]);
            cells.chain([&self.header[column]]).map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let mut text = format!("{}\n", self.title);
        for row in std::iter::once(&self.header).chain(&self.rows) {
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let _ = match column {
                    0 => write!(text, "  {cell:<width$}"),
                    _ => write!(text, "  {cell:>width$}"),
                };
            }
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        text
    }

    fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n| {} |\n|---|", self.title, self.header.join(" | "));
        text.push_str(&"---:|".repeat(self.header.len().saturating_sub(1)));
        text.push('\n');
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        for note in &self.notes {
            // A note may quote a log; it must stay one paragraph.
            let _ = write!(text, "\n{}\n", note.replace('\n', " "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::run_with;

    fn results() -> Results {
        let figures =
            [(Case::H1Small, Contender::Towpath, 11.0), (Case::H1Small, Contender::Haproxy, 10.0)];
        run_with(&figures, &[(Contender::Towpath, 7.25)])
    }

    #[test]
    fn the_terminal_table_lines_up() {
        let text = tables(&results())[0].render(Form::Terminal);
        let expected = "\
h1-small
  proxy    CPU µs/request        range  requests/s  p50 ms  p99 ms  peak MB  busy  waited  towpath ÷ it
  towpath           11.00  11.00–11.00        1000    1.00    2.00      9.5  0.90    0.01              
  haproxy           10.00  10.00–10.00        1000    1.00    2.00      9.5  0.90    0.01          1.10
";
        assert_eq!(text, expected);
    }

    #[test]
    fn markdown_has_as_many_cells_in_every_row() {
        for table in tables(&results()) {
            let text = table.render(Form::Markdown);
            let bars: Vec<usize> = text
                .lines()
                .filter(|line| line.starts_with('|'))
                .map(|line| line.matches('|').count())
                .collect();
            assert!(bars.len() >= 3 && bars.iter().all(|count| *count == bars[0]), "{text}");
        }
    }

    #[test]
    fn a_missing_figure_shows_its_reason() {
        let mut results = results();
        let missing = Some(Missing::NotPossible("no such module".into()));
        let nginx = Performance { missing, ..Performance::default() };
        results.cases.entry(Case::H1Small).or_default().insert(Contender::Nginx, nginx);
        let text = tables(&results)[0].render(Form::Terminal);
        assert!(text.contains("nginx") && text.contains("n/a"), "{text}");
        assert!(text.ends_with("nginx: no such module\n"), "{text}");
    }
}
