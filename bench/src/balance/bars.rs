//! The bars of the comparison.

use super::judge;
use super::results::BalanceResults;
use super::{LATE, OURS, VARIANTS};
use crate::bulk::results::Entry;
use crate::check::Verdict;
use crate::stats::Summary;

/// A figure and the most it may be.
struct Bar {
    entry: &'static str,
    figure: &'static str,
    of_rounds: fn(Summary) -> f64,
    limit: f64,
    /// What it asks, in words.
    text: &'static str,
}

const fn bar(figure: &'static str, limit: f64, text: &'static str) -> Bar {
    Bar { entry: OURS, figure, of_rounds: |summary| summary.median, limit, text }
}

/// A bar that every round must meet.
const fn always(entry: &'static str, figure: &'static str, limit: f64, text: &'static str) -> Bar {
    Bar { entry, figure, of_rounds: |summary| summary.max, limit, text }
}

/// The most that shares may vary, in relation to chance.
const SWING: f64 = 4.0;
/// The most that they may vary under late reports, in relation to fresh ones.
const LATE_SWING: f64 = 1.25;
/// What some figure must be without a term, in relation to what it is with all.
const WORTH: f64 = 1.05;

const BARS: &[Bar] = &[
    bar("p50_to_blind", 0.70, "p50 at most 0.70 × that of the best peer that knows no places"),
    bar("p99_to_blind", 0.50, "p99 at most 0.50 × that of the best peer that knows no places"),
    bar("makespan_to_bound", 1.20, "a batch takes at most 1.20 × what no schedule goes below"),
    always(
        OURS,
        "gpu_out_s",
        1.0,
        "a GPU that fell gets less than 5 % of the bytes within 1 s and ever after, in every round",
    ),
    always(
        OURS,
        "gpu_share",
        judge::OUT,
        "and less than 5 % of the jobs from then on, in every round",
    ),
    always(
        OURS,
        "oscillation",
        SWING,
        "shares vary at most 4 × as they would by chance, in every round",
    ),
    always(LATE, "oscillation", SWING, "and so under reports that come 2 s late, in every round"),
    Bar {
        entry: LATE,
        ..bar(
            "oscillation_to_fresh",
            LATE_SWING,
            "which make them vary at most 1.25 × as much as fresh ones",
        )
    },
    bar(
        "return_to_fair",
        1.5,
        "a region that is back gets at most 1.5 × its fair share in its first second",
    ),
    always(OURS, "given_up", 0.0, "no job is given up, in every round"),
];

/// Judges every bar, and what each term that was left out is worth: those that had a turn (`--only`).
#[must_use]
pub fn judge(results: &BalanceResults) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = BARS
        .iter()
        .map(|bar| {
            let value = value(results, bar.entry, bar.figure, bar.of_rounds);
            let met = value.as_ref().is_ok_and(|value| *value <= bar.limit);
            Verdict { bar: bar.text.to_owned(), value, met }
        })
        .collect();
    if results.ablate {
        for variant in VARIANTS.iter().filter(|v| results.found.entry(v.name).is_some()) {
            let Some(term) = variant.without else { continue };
            let value = value(results, variant.name, "worst_to_full", |summary| summary.median);
            verdicts.push(Verdict {
                bar: format!("without `{term}` some figure is at least {WORTH} × as large"),
                met: value.as_ref().is_ok_and(|value| *value >= WORTH),
                value,
            });
        }
    }
    verdicts
}

fn value(
    results: &BalanceResults,
    name: &str,
    figure: &str,
    of_rounds: fn(Summary) -> f64,
) -> Result<f64, String> {
    let entry = results.found.entry(name);
    let summary = entry.and_then(|entry| entry.summary(figure));
    summary.map(of_rounds).ok_or_else(|| match entry {
        None => format!("{name} was not part of the run"),
        Some(Entry { failed: Some(reason), .. }) => format!("{name} failed: {reason}"),
        Some(_) => format!("no round has what {name} is judged by"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::results::tests::results;
    use crate::bulk::results::{CaseResults, Figures};

    /// A run in which every bar's figure has these values, one a round.
    fn run(values: impl Fn(&Bar) -> Vec<f64>, worth: f64) -> BalanceResults {
        let mut found = CaseResults::of(VARIANTS.iter().map(|variant| variant.name));
        for bar in BARS {
            let values = values(bar);
            for entry in found.entries.iter_mut().filter(|entry| entry.name == bar.entry) {
                entry.turns.resize(values.len(), Some(Figures::new()));
                for (turn, value) in entry.turns.iter_mut().flatten().zip(&values) {
                    turn.insert(bar.figure, *value);
                }
            }
        }
        for variant in VARIANTS.iter().filter(|variant| variant.without.is_some()) {
            for entry in found.entries.iter_mut().filter(|entry| entry.name == variant.name) {
                entry.turns = vec![Some(Figures::from([("worst_to_full", worth)]))];
            }
        }
        results(found, true)
    }

    fn short(results: &BalanceResults) -> Vec<String> {
        judge(results).into_iter().filter(|v| !v.met).map(|v| v.bar).collect()
    }

    #[test]
    fn a_run_at_the_bars_meets_them_all() {
        let results = run(|bar| vec![bar.limit; 3], WORTH);
        assert_eq!(short(&results), Vec::<String>::new());
        assert_eq!(judge(&results).len(), BARS.len() + 5);
    }

    #[test]
    fn each_bar_that_falls_short_is_named_alone() {
        for missed in BARS {
            let over =
                |bar: &Bar| if bar.text == missed.text { bar.limit + 0.01 } else { bar.limit };
            assert_eq!(short(&run(|bar| vec![over(bar); 3], WORTH)), [missed.text]);
        }
    }

    #[test]
    fn a_term_that_is_worth_nothing_falls_short() {
        assert_eq!(short(&run(|bar| vec![bar.limit], 1.04)).len(), 5);
        let mut results = run(|bar| vec![bar.limit], 1.04);
        results.ablate = false;
        assert!(short(&results).is_empty(), "terms were not asked about");
    }

    #[test]
    fn a_term_that_had_no_turn_is_not_judged() {
        let mut results = run(|bar| vec![bar.limit], WORTH);
        let ablated = |name: &str| VARIANTS.iter().any(|v| v.name == name && v.without.is_some());
        let mut kept = 1;
        results
            .found
            .entries
            .retain(|entry| !ablated(&entry.name) || std::mem::take(&mut kept) > 0);
        assert_eq!(short(&results), Vec::<String>::new());
        assert_eq!(judge(&results).len(), BARS.len() + 1);
    }

    #[test]
    fn a_missing_figure_meets_no_bar_and_says_why() {
        let mut results = run(|bar| vec![bar.limit], WORTH);
        results.found.record("balance", OURS, Err(anyhow::anyhow!("it broke")));
        results.found.entries.retain(|entry| entry.name != LATE);
        let texts: Vec<String> =
            judge(&results).iter().filter(|v| !v.met).map(ToString::to_string).collect();
        assert!(texts[0].contains(&format!("{OURS} failed: it broke")), "{texts:?}");
        assert!(texts.iter().any(|text| text.contains("was not part of the run")), "{texts:?}");
    }
}
