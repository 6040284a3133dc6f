//! The bars of the bulk cases.

use super::Case;
use super::results::{BulkResults, Entry};
use crate::check::Verdict;
use crate::stats::Summary;

/// A figure and the most it may be.
struct Bar {
    case: Case,
    entry: &'static str,
    figure: &'static str,
    of_rounds: fn(Summary) -> f64,
    limit: f64,
    /// What it asks, in words.
    text: &'static str,
}

const fn bar(
    case: Case,
    entry: &'static str,
    figure: &'static str,
    limit: f64,
    text: &'static str,
) -> Bar {
    Bar { case, entry, figure, of_rounds: |summary| summary.median, limit, text }
}

/// A bar that every round must meet.
const fn always(
    case: Case,
    entry: &'static str,
    figure: &'static str,
    limit: f64,
    text: &'static str,
) -> Bar {
    Bar { case, entry, figure, of_rounds: |summary| summary.max, limit, text }
}

const BARS: &[Bar] = &[
    bar(
        Case::Replay,
        "h1, memory",
        "to_off",
        1.05,
        "HTTP/1.1, replay in memory: CPU per GB at most 1.05 × off",
    ),
    bar(
        Case::Replay,
        "h2, memory",
        "to_off",
        1.05,
        "HTTP/2, replay in memory: CPU per GB at most 1.05 × off",
    ),
    bar(
        Case::Replay,
        "h1, disk",
        "to_off",
        1.05,
        "HTTP/1.1, replay on disk: CPU per GB at most 1.05 × off",
    ),
    bar(
        Case::Replay,
        "h2, disk",
        "to_off",
        1.05,
        "HTTP/2, replay on disk: CPU per GB at most 1.05 × off",
    ),
    bar(
        Case::Interactive,
        "towpath, bulk",
        "p99_to_best_peer",
        1.0,
        "p99 beside bulk at most the better peer's",
    ),
    bar(
        Case::Makespan,
        "towpath",
        "makespan_to_best_peer",
        1.02,
        "makespan at most 1.02 × the better peer's",
    ),
    bar(
        Case::Makespan,
        "towpath",
        "mean_to_best_peer",
        1.02,
        "mean time of a job at most 1.02 × the better peer's",
    ),
    always(
        Case::Eject,
        "towpath, goodput",
        "out_s",
        2.0,
        "out within 2 s at a tenth of its goodput, in every round",
    ),
    always(
        Case::Eject,
        "towpath, 5xx",
        "out_s",
        2.0,
        "out within 2 s when it answers 5xx, in every round",
    ),
    always(
        Case::Rebalance,
        "towpath",
        "fair_s",
        60.0,
        "new endpoints carry their share within 60 s, in every round",
    ),
];

/// Judges every bar of the cases that ran.
#[must_use]
pub fn judge(results: &BulkResults) -> Vec<Verdict> {
    let judged = BARS.iter().filter_map(|bar| {
        let found = results.cases.get(&bar.case)?;
        Some(verdict(bar, found.entry(bar.entry)))
    });
    judged.collect()
}

fn verdict(bar: &Bar, entry: Option<&Entry>) -> Verdict {
    let value = entry.and_then(|entry| entry.summary(bar.figure)).map(bar.of_rounds);
    let why_missing = || match entry {
        None => format!("{} was not part of the run", bar.entry),
        Some(Entry { failed: Some(reason), .. }) => format!("{} failed: {reason}", bar.entry),
        Some(_) => format!("no round has what {} is compared with", bar.entry),
    };
    Verdict {
        bar: format!("{}: {}", bar.case, bar.text),
        met: value.is_some_and(|value| value <= bar.limit),
        value: value.ok_or_else(why_missing),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bulk::results::tests::case_with;
    use crate::bulk::results::{CaseResults, Figures};
    use crate::machine::Machine;

    /// A run in which every bar's figure has these values, one a round.
    fn run(values: impl Fn(&Bar) -> Vec<f64>) -> BulkResults {
        let mut cases: BTreeMap<Case, CaseResults> = BTreeMap::new();
        for bar in BARS {
            let found = cases.entry(bar.case).or_default();
            if found.entry(bar.entry).is_none() {
                found.entries.extend(case_with(bar.figure, &[(bar.entry, &[])]).entries);
            }
            let values = values(bar);
            for entry in found.entries.iter_mut().filter(|entry| entry.name == bar.entry) {
                entry.turns.resize(values.len(), Some(Figures::new()));
                for (turn, value) in entry.turns.iter_mut().flatten().zip(&values) {
                    turn.insert(bar.figure, *value);
                }
            }
        }
        let machine = Machine::look();
        BulkResults { machine, pinned: true, quick: false, versions: BTreeMap::new(), cases }
    }

    fn short(results: &BulkResults) -> Vec<String> {
        judge(results).into_iter().filter(|v| !v.met).map(|v| v.bar).collect()
    }

    #[test]
    fn a_run_at_the_bars_meets_them_all() {
        let results = run(|bar| vec![bar.limit; 3]);
        assert_eq!(short(&results), Vec::<String>::new());
        assert_eq!(judge(&results).len(), BARS.len());
    }

    #[test]
    fn each_bar_that_falls_short_is_named_alone() {
        for missed in BARS {
            let is = |bar: &Bar| bar.text == missed.text;
            let results = run(|bar| vec![if is(bar) { bar.limit * 1.001 } else { bar.limit }; 3]);
            assert_eq!(short(&results), [format!("{}: {}", missed.case, missed.text)]);
        }
    }

    #[test]
    fn one_slow_round_misses_only_the_bars_that_every_round_must_meet() {
        let results = run(|bar| vec![bar.limit, bar.limit * 9.0, bar.limit]);
        assert_eq!(short(&results).len(), 3);
    }

    #[test]
    fn a_missing_figure_meets_no_bar_and_says_why() {
        let mut results = run(|bar| vec![bar.limit]);
        let found = results.cases.get_mut(&Case::Eject).expect("it ran");
        found.record(Case::Eject, "towpath, goodput", Err(anyhow::anyhow!("never out")));
        found.entries.retain(|entry| entry.name != "towpath, 5xx");
        let texts: Vec<String> =
            judge(&results).iter().filter(|v| !v.met).map(ToString::to_string).collect();
        assert_eq!(texts.len(), 2);
        assert!(texts[0].contains("not measured, towpath, goodput failed: never out"), "{texts:?}");
        assert!(texts[1].contains("towpath, 5xx was not part of the run"), "{texts:?}");
    }

    #[test]
    fn cases_that_did_not_run_are_not_judged() {
        let mut results = run(|bar| vec![bar.limit]);
        results.cases.retain(|case, _| *case == Case::Replay);
        assert_eq!(judge(&results).len(), 4);
    }
}
