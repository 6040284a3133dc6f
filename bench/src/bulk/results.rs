//! What the cases found: named figures of named entries, round by round.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use super::Case;
use crate::contender::Contender;
use crate::machine::Machine;
use crate::report::{self, Table};
use crate::stats::Summary;

/// The figures of one turn, by their names in the JSON.
pub type Figures = BTreeMap<&'static str, f64>;

/// Everything a run found.
#[derive(Debug)]
pub struct BulkResults {
    /// The machine.
    pub machine: Machine,
    /// Whether proxies and load had cores of their own.
    pub pinned: bool,
    /// Whether sizes were smaller than those of the bars.
    pub quick: bool,
    /// The version of each proxy.
    pub versions: BTreeMap<Contender, String>,
    /// What each case found.
    pub cases: BTreeMap<Case, CaseResults>,
}

/// What a case found.
#[derive(Debug, Clone, Default)]
pub struct CaseResults {
    /// One for each proxy and setting, in the order they are listed.
    pub entries: Vec<Entry>,
    /// What a reader must know about them.
    pub notes: Vec<String>,
}

/// A proxy under certain settings.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// E.g. `towpath, bulk`.
    pub name: String,
    /// One for each round; `None` where the turn failed.
    pub turns: Vec<Option<Figures>>,
    /// Why it has no figures, if it has none.
    pub failed: Option<String>,
}

impl CaseResults {
    /// Entries of these names, without figures.
    pub fn of(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let entry = |name: String| Entry { name, ..Entry::default() };
        let entries = names.into_iter().map(|name| entry(name.into())).collect();
        Self { entries, notes: Vec::new() }
    }

    /// The entry of a name.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Whether an entry has failed: what follows could hang till its limit, so it has no more turns.
    #[must_use]
    pub fn has_failed(&self, name: &str) -> bool {
        self.entry(name).is_none_or(|entry| entry.failed.is_some())
    }

    /// Notes what a turn gave. An entry that failed once has no figures at all.
    pub fn record(&mut self, case: impl fmt::Display, name: &str, turn: anyhow::Result<Figures>) {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == name) else { return };
        match turn {
            Ok(figures) => entry.turns.push(Some(figures)),
            Err(e) => {
                eprintln!("{case}: {name} failed: {e:#}");
                entry.turns.push(None);
                entry.failed.get_or_insert_with(|| format!("{e:#}"));
            }
        }
    }

    /// Adds `called`, the ratio of an entry's `figure` to the smallest of `others`, round by round.
    /// Rounds in which one of them has no figure get none.
    pub fn relate(&mut self, name: &str, figure: &str, others: &[&str], called: &'static str) {
        let by_round = |entry: &Entry| -> Vec<Option<f64>> {
            let value = |turn: &Option<Figures>| turn.as_ref()?.get(figure).copied();
            entry.turns.iter().map(value).collect()
        };
        let theirs: Option<Vec<Vec<Option<f64>>>> =
            others.iter().map(|other| self.entry(other).map(by_round)).collect();
        let Some(theirs) = theirs.filter(|theirs| !theirs.is_empty()) else { return };
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == name) else { return };
        for (round, turn) in entry.turns.iter_mut().enumerate() {
            let best = theirs.iter().map(|rounds| rounds.get(round).copied().flatten());
            let best = best.reduce(|a, b| Some(a?.min(b?))).flatten();
            let Some((turn, best)) = turn.as_mut().zip(best.filter(|best| *best > 0.0)) else {
                continue;
            };
            if let Some(ours) = turn.get(figure).copied() {
                turn.insert(called, ours / best);
            }
        }
    }

    /// The table of the case.
    #[must_use]
    pub fn table(&self, case: Case) -> Table {
        self.table_of(case.name(), columns(case))
    }

    /// A table of some of the figures.
    pub(crate) fn table_of(&self, title: &str, columns: &[Column]) -> Table {
        let rows = self.entries.iter().map(|entry| {
            let absent = if entry.failed.is_some() { "failed" } else { "–" };
            let figures =
                columns.iter().map(|(_, figure, digits)| (entry.summary(figure), *digits));
            report::cells(&entry.name, figures, absent)
        });
        let header = report::header("entry", columns.iter().map(|(title, ..)| *title));
        let mut notes = self.notes.clone();
        let failed = self.entries.iter().filter_map(|e| Some((&e.name, e.failed.as_ref()?)));
        notes.extend(failed.map(|(name, why)| format!("{name} failed: {why}")));
        Table::new(title, header, rows.collect(), notes)
    }

    pub(crate) fn to_json(&self) -> Value {
        let entries = self.entries.iter().map(|entry| (entry.name.clone(), entry.to_json()));
        Value::Object(entries.collect())
    }
}

impl Entry {
    /// A figure over all rounds; none if the entry failed.
    #[must_use]
    pub fn summary(&self, figure: &str) -> Option<Summary> {
        if self.failed.is_some() {
            return None;
        }
        let turns = self.turns.iter().flatten();
        Summary::of(&turns.filter_map(|turn| turn.get(figure).copied()).collect::<Vec<_>>())
    }

    fn to_json(&self) -> Value {
        if let Some(reason) = &self.failed {
            return json!({ "failed": reason });
        }
        let mut object = Map::new();
        let mut range = Map::new();
        let names: std::collections::BTreeSet<&str> =
            self.turns.iter().flatten().flat_map(|turn| turn.keys().copied()).collect();
        for name in names {
            let Some(summary) = self.summary(name) else { continue };
            object.insert(name.into(), json!(summary.median));
            range.insert(name.into(), json!({"min": summary.min, "max": summary.max}));
        }
        object.insert("range".into(), Value::Object(range));
        object.insert("rounds".into(), json!(self.turns.iter().flatten().count()));
        Value::Object(object)
    }
}

impl BulkResults {
    /// The line that says where and how a run took place.
    #[must_use]
    pub fn preamble(&self) -> String {
        report::setting(&self.machine, &[], self.pinned, self.quick, &self.versions)
    }

    /// The whole as JSON: `cases.<case>.<entry>.<figure>` and what is needed to judge it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let cases: Map<String, Value> =
            self.cases.iter().map(|(case, found)| (case.to_string(), found.to_json())).collect();
        let versions: Map<String, Value> = self
            .versions
            .iter()
            .map(|(proxy, version)| (proxy.to_string(), json!(version)))
            .collect();
        json!({
            "bench": "bulk",
            "machine": self.machine,
            "settings": {"pinned": self.pinned, "quick": self.quick},
            "versions": versions,
            "cases": cases,
        })
    }
}

/// A column of a table: its title, the figure in it, and digits after the point.
pub(crate) type Column = (&'static str, &'static str, usize);

fn columns(case: Case) -> &'static [Column] {
    match case {
        Case::Replay => &[
            ("CPU ms/GB", "cpu_ms_per_gb", 1),
            ("÷ off", "to_off", 3),
            ("GB/s", "gb_per_s", 2),
            ("peak MB", "rss_mb", 1),
            ("busy", "busy", 2),
            ("waited", "waited", 2),
        ],
        Case::Interactive => &[
            ("p99 ms", "p99_ms", 2),
            ("p50 ms", "p50_ms", 2),
            ("p99.9 ms", "p999_ms", 2),
            ("÷ better peer", "p99_to_best_peer", 2),
            ("bulk GB/s", "bulk_gb_per_s", 2),
            ("busy", "busy", 2),
            ("waited", "waited", 2),
            ("floor p99 ms", "floor_p99_ms", 2),
        ],
        Case::Makespan => &[
            ("makespan s", "makespan_s", 3),
            ("÷ bound", "makespan_to_bound", 3),
            ("÷ better peer", "makespan_to_best_peer", 3),
            ("mean s", "mean_s", 3),
            ("mean ÷ better peer", "mean_to_best_peer", 3),
            ("p99 s", "p99_s", 3),
        ],
        Case::Eject => &[
            ("out after s", "out_s", 2),
            ("last transfer s", "last_transfer_s", 2),
            ("transfers to it", "transfers", 0),
            ("failed for clients", "failures", 0),
        ],
        Case::Rebalance => {
            &[("fair after s", "fair_s", 1), ("least share at the end", "share_at_end", 2)]
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A case with one figure for some entries, round by round.
    pub(crate) fn case_with(figure: &'static str, entries: &[(&str, &[f64])]) -> CaseResults {
        let mut found = CaseResults::of(entries.iter().map(|(name, _)| *name));
        for (entry, (_, values)) in found.entries.iter_mut().zip(entries) {
            entry.turns = values.iter().map(|v| Some(Figures::from([(figure, *v)]))).collect();
        }
        found
    }

    #[test]
    fn a_ratio_takes_the_best_of_the_others_in_the_same_round() {
        let entries: &[(&str, &[f64])] =
            &[("ours", &[6.0, 9.0]), ("a", &[3.0, 18.0]), ("b", &[4.0, 9.0])];
        let mut found = case_with("p99_ms", entries);
        found.relate("ours", "p99_ms", &["a", "b"], "ratio");
        let ratio = found.entry("ours").and_then(|e| e.summary("ratio")).expect("both rounds");
        assert_eq!((ratio.min, ratio.max), (1.0, 2.0));
        assert!(found.entry("a").is_some_and(|e| e.summary("ratio").is_none()));
    }

    #[test]
    fn a_ratio_needs_every_other() {
        let mut found = case_with("x", &[("ours", &[6.0]), ("a", &[3.0]), ("b", &[])]);
        found.relate("ours", "x", &["a", "b"], "ratio");
        found.relate("ours", "x", &["a", "absent"], "ratio");
        assert!(found.entry("ours").is_some_and(|e| e.summary("ratio").is_none()));
    }

    #[test]
    fn an_entry_that_failed_once_has_no_figures() {
        let mut found = case_with("x", &[("ours", &[6.0])]);
        found.record(Case::Replay, "ours", Err(anyhow::anyhow!("it broke")));
        assert!(found.has_failed("ours"));
        assert!(found.entry("ours").is_some_and(|e| e.summary("x").is_none()));
        let json = found.to_json();
        assert_eq!(json["ours"]["failed"], "it broke");
    }

    #[test]
    fn tables_have_as_many_cells_in_every_row() {
        for case in Case::all() {
            let found = case_with(columns(*case)[0].1, &[("ours", &[6.0]), ("a", &[])]);
            let text = found.table(*case).render(crate::report::Form::Markdown);
            let bars: Vec<usize> = text
                .lines()
                .filter(|line| line.starts_with('|'))
                .map(|line| line.matches('|').count())
                .collect();
            assert!(bars.len() == 4 && bars.iter().all(|count| *count == bars[0]), "{text}");
        }
    }
}
