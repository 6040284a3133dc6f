//! The bars that Towpath must clear, judged by a run's results.

use std::fmt;

use crate::case::{Case, Kind};
use crate::contender::Contender;
use crate::results::{CPU_PER_GB, CPU_PER_REQUEST, Figure, Missing, Results};

/// CPU per small request, at most this much of `HAProxy`'s.
const REQUEST_AGAINST_HAPROXY: f64 = 1.15;
/// CPU per small request, at most this much of Envoy's.
const REQUEST_AGAINST_ENVOY: f64 = 0.40;
/// CPU per GB, at most this much of Envoy's.
const GB_AGAINST_ENVOY: f64 = 0.80;
/// Resident memory at rest, less than this many MB.
const REST_MB: f64 = 15.0;

/// How a bar was judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What the bar asks.
    pub bar: String,
    /// The figure, or why there is none.
    pub value: Result<f64, String>,
    /// Whether the bar is met. A figure that is missing meets nothing.
    pub met: bool,
}

/// Judges every bar of the cases that ran.
#[must_use]
pub fn judge(results: &Results) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for case in results.cases.keys() {
        match (case.kind(), case) {
            (Kind::Small, Case::H1Small | Case::H2Small) => {
                for (peer, limit) in [
                    (Contender::Haproxy, REQUEST_AGAINST_HAPROXY),
                    (Contender::Envoy, REQUEST_AGAINST_ENVOY),
                ] {
                    verdicts.push(ratio(results, *case, peer, CPU_PER_REQUEST, limit));
                }
            }
            (Kind::Bulk, _) => {
                let verdict = ratio(results, *case, Contender::Envoy, CPU_PER_GB, GB_AGAINST_ENVOY);
                verdicts.push(verdict);
            }
            _ => {}
        }
    }
    verdicts.push(rest(results));
    verdicts
}

fn ratio(results: &Results, case: Case, peer: Contender, figure: Figure, limit: f64) -> Verdict {
    let what = if figure.0 == CPU_PER_GB.0 { "CPU per GB" } else { "CPU per request" };
    let value = results.ratio(case, peer, figure).map(|summary| summary.median);
    Verdict {
        bar: format!("{case}: {what} at most {limit:.2} × {peer}'s"),
        met: value.is_some_and(|value| value <= limit),
        value: value.ok_or_else(|| why_missing(results, case, peer)),
    }
}

fn rest(results: &Results) -> Verdict {
    let value = results.rest(Contender::Towpath).map(|summary| summary.median);
    Verdict {
        bar: format!("memory at rest under {REST_MB:.0} MB"),
        met: value.is_some_and(|mb| mb < REST_MB),
        value: value.ok_or_else(|| "towpath did not run".to_owned()),
    }
}

fn why_missing(results: &Results, case: Case, peer: Contender) -> String {
    for contender in [Contender::Towpath, peer] {
        match results.of(case, contender).map(|performance| &performance.missing) {
            None => return format!("{contender} was not part of the run"),
            Some(Some(Missing::Failed(reason))) => return format!("{contender} failed: {reason}"),
            Some(Some(Missing::NotPossible(reason))) => {
                return format!("{contender} cannot: {reason}");
            }
            Some(None) => {}
        }
    }
    "no round has both figures".to_owned()
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.met { "met  " } else { "SHORT" };
        match &self.value {
            Ok(value) => write!(f, "{mark} {}: {value:.3}", self.bar),
            Err(reason) => write!(f, "{mark} {}: not measured, {reason}", self.bar),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::run_with;

    fn short(results: &Results) -> Vec<String> {
        judge(results).into_iter().filter(|v| !v.met).map(|v| v.bar).collect()
    }

    #[test]
    fn a_run_at_the_bars_meets_them() {
        let mut figures = Vec::new();
        for case in Case::all() {
            figures.push((*case, Contender::Towpath, 8.0));
            figures.push((*case, Contender::Haproxy, 8.0));
            figures.push((*case, Contender::Envoy, 20.0));
        }
        let results = run_with(&figures, &[(Contender::Towpath, 14.9)]);
        assert_eq!(short(&results), Vec::<String>::new());
        // Four for small requests, five for bulk, one for memory.
        assert_eq!(judge(&results).len(), 10);
    }

    #[test]
    fn each_bar_that_falls_short_is_named() {
        let table = [
            (
                Case::H1Small,
                Contender::Haproxy,
                6.9,
                "h1-small: CPU per request at most 1.15 × haproxy's",
            ),
            (
                Case::H2Small,
                Contender::Envoy,
                19.9,
                "h2-small: CPU per request at most 0.40 × envoy's",
            ),
            (Case::H1Up, Contender::Envoy, 9.9, "h1-1g-up: CPU per GB at most 0.80 × envoy's"),
            (Case::Tcp, Contender::Envoy, 9.9, "tcp-1g: CPU per GB at most 0.80 × envoy's"),
        ];
        for (case, peer, theirs, bar) in table {
            let mut figures = vec![(case, Contender::Towpath, 8.0)];
            for other in [Contender::Haproxy, Contender::Envoy] {
                figures.push((case, other, if other == peer { theirs } else { 100.0 }));
            }
            let results = run_with(&figures, &[(Contender::Towpath, 5.0)]);
            assert_eq!(short(&results), [bar]);
        }
        let results = run_with(&[], &[(Contender::Towpath, 15.0)]);
        assert_eq!(short(&results), ["memory at rest under 15 MB"]);
    }

    #[test]
    fn a_missing_figure_falls_short_and_says_why() {
        let mut results = run_with(&[(Case::H1Small, Contender::Haproxy, 8.0)], &[]);
        let failed = Some(Missing::Failed("it ended at once".into()));
        let ours = crate::results::Performance { missing: failed, ..Default::default() };
        results.cases.entry(Case::H1Small).or_default().insert(Contender::Towpath, ours);
        let texts: Vec<String> = judge(&results).iter().map(ToString::to_string).collect();
        assert!(
            texts[0].contains("not measured, towpath failed: it ended at once"),
            "{}",
            texts[0]
        );
        assert!(texts[2].contains("towpath did not run"), "{}", texts[2]);
        assert_eq!(short(&results).len(), 3);
    }
}
