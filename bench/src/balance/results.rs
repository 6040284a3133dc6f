//! What the comparison found, as figures of each entry, tables and JSON.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::client::Outcome;
use super::judge::{self, Pick, quantile};
use super::trace::{Job, Script};
use super::world::{CUT, FALLING, FLEET};
use super::{BLIND, LATE, OURS, VARIANTS};
use crate::bulk::results::{CaseResults, Column, Figures};
use crate::contender::Contender;
use crate::machine::Machine;
use crate::report::{self, Table};

/// Everything a run found.
#[derive(Debug)]
pub struct BalanceResults {
    /// The machine.
    pub machine: Machine,
    /// Whether proxy and load had cores of their own.
    pub pinned: bool,
    /// Whether the run was shorter than that of the bars.
    pub quick: bool,
    /// Whether each term was left out in turn.
    pub ablate: bool,
    /// The version of each proxy.
    pub versions: BTreeMap<Contender, String>,
    /// The figures of each entry, round by round.
    pub found: CaseResults,
}

/// How long jobs took.
const TIMES: &[Column] = &[
    ("p50 ms", "p50_ms", 1),
    ("p99 ms", "p99_ms", 0),
    ("mean ms", "mean_ms", 0),
    ("quiet p50", "quiet_p50_ms", 1),
    ("quiet p99", "quiet_p99_ms", 0),
    ("p50 ÷ best blind", "p50_to_blind", 2),
    ("p99 ÷ best blind", "p99_to_blind", 2),
    ("batch s", "makespan_s", 2),
    ("÷ bound", "makespan_to_bound", 2),
    ("split ÷ bound", "split_to_bound", 2),
];

/// Where they went.
const WHEREABOUTS: &[Column] = &[
    ("GPU out after s", "gpu_out_s", 2),
    ("its jobs then", "gpu_share", 3),
    ("its bytes then", "gpu_share_of_bytes", 3),
    ("swing ÷ chance", "oscillation", 2),
    ("÷ fresh", "oscillation_to_fresh", 2),
    ("back: 1st s ÷ fair", "return_to_fair", 2),
    ("back after s", "return_after_s", 2),
    ("near", "near", 2),
    ("failed jobs", "failed", 0),
    ("handed in again", "again", 0),
    ("given up", "given_up", 0),
    ("late ms", "late_ms", 1),
];

/// What a term is worth.
const ABSENCE: &[Column] = &[
    ("p50 ÷ full", "p50_ms_to_full", 2),
    ("p99 ÷ full", "p99_ms_to_full", 2),
    ("mean ÷ full", "mean_ms_to_full", 2),
    ("batch ÷ full", "makespan_s_to_full", 2),
    ("GPU ÷ full", "gpu_first_share_to_full", 2),
    ("GPU out after s", "gpu_out_s", 2),
    ("failed ÷ full", "failed_to_full", 2),
    ("given up", "given_up", 0),
    ("worst", "worst_to_full", 2),
];

impl BalanceResults {
    /// Adds what relates one entry to others.
    pub fn relate(&mut self) {
        self.found.relate(OURS, "p50_ms", &BLIND, "p50_to_blind");
        self.found.relate(OURS, "p99_ms", &BLIND, "p99_to_blind");
        self.found.relate(LATE, "oscillation", &[OURS], "oscillation_to_fresh");
        for variant in VARIANTS.iter().filter(|variant| variant.without.is_some()) {
            for (figure, called) in [
                ("p50_ms", "p50_ms_to_full"),
                ("p99_ms", "p99_ms_to_full"),
                ("mean_ms", "mean_ms_to_full"),
                ("makespan_s", "makespan_s_to_full"),
                ("gpu_first_share", "gpu_first_share_to_full"),
                ("failed", "failed_to_full"),
            ] {
                self.found.relate(variant.name, figure, &[OURS], called);
            }
        }
        for turn in self.found.entries.iter_mut().flat_map(|entry| &mut entry.turns).flatten() {
            let ratios = turn.iter().filter(|(name, _)| name.ends_with("_to_full"));
            if let Some(worst) = ratios.map(|(_, ratio)| *ratio).reduce(f64::max) {
                turn.insert("worst_to_full", worst);
            }
        }
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> Vec<Table> {
        let (whole, part) = self.parted();
        let mut tables = vec![
            whole.table_of("balance: time of a job", TIMES),
            CaseResults { notes: Vec::new(), ..whole }
                .table_of("balance: where jobs go", WHEREABOUTS),
        ];
        if self.ablate {
            tables.push(part.table_of("balance: without a term", ABSENCE));
        }
        tables
    }

    /// The entries with all terms, and those without one.
    fn parted(&self) -> (CaseResults, CaseResults) {
        let is_part = |name: &str| {
            VARIANTS.iter().any(|variant| variant.name == name && variant.without.is_some())
        };
        let (part, whole) =
            self.found.entries.iter().cloned().partition(|entry| is_part(&entry.name));
        let notes = self.found.notes.clone();
        (CaseResults { entries: whole, notes }, CaseResults { entries: part, notes: Vec::new() })
    }

    /// The line that says where and how a run took place.
    #[must_use]
    pub fn preamble(&self) -> String {
        report::setting(&self.machine, &[], self.pinned, self.quick, &self.versions)
    }

    /// The whole as JSON: `entries.<entry>.<figure>` and what is needed to judge it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let versions: Map<String, Value> = self
            .versions
            .iter()
            .map(|(proxy, version)| (proxy.to_string(), json!(version)))
            .collect();
        json!({
            "bench": "balance",
            "machine": self.machine,
            "settings": {"pinned": self.pinned, "quick": self.quick, "ablate": self.ablate},
            "versions": versions,
            "entries": self.found.to_json(),
        })
    }
}

/// The figures of a trace. Picks are sorted by time; a job that was given up counts as done at
/// `limit`, in seconds from the start.
#[must_use]
pub fn figures(
    jobs: &[Job],
    outcomes: &[Outcome],
    picks: &[(usize, Pick)],
    script: &Script,
    limit: f64,
) -> Figures {
    let mut figures = times(jobs, outcomes, script, limit);
    let near = |(job, pick): &&(usize, Pick)| {
        jobs.get(*job).is_some_and(|job| job.origin == FLEET[pick.worker].region)
    };
    let quiet = |(_, pick): &&(usize, Pick)| (script.warm..script.fall).contains(&pick.at);
    let all = picks.iter().filter(quiet).count().max(1) as f64;
    figures.insert("near", picks.iter().filter(quiet).filter(near).count() as f64 / all);
    let picks: Vec<Pick> = picks.iter().map(|(_, pick)| *pick).collect();
    let Script { warm, fall, cut, .. } = *script;
    figures.insert("gpu_out_s", judge::out_after(&picks, FALLING, fall, cut));
    let is_gpu = |worker| worker == FALLING;
    let first = judge::share_at_least_one(&picks, fall, fall + 2.0, is_gpu);
    let is_cut = |worker: usize| FLEET[worker].region == CUT;
    let returned = judge::returned(&picks, script, is_cut);
    let more = [
        ("gpu_first_share", first),
        ("gpu_share", judge::share(&picks, fall + 1.0, cut, is_gpu)),
        ("gpu_share_of_bytes", judge::share_of_bytes(&picks, fall + 1.0, cut, is_gpu)),
        ("oscillation", judge::oscillation(&picks, FLEET.len(), warm, fall)),
        ("return_to_fair", returned.map(|returned| returned.first_second)),
        ("return_after_s", returned.map(|returned| returned.first_after)),
    ];
    figures.extend(more.into_iter().filter_map(|(name, value)| Some((name, value?))));
    figures
}

/// How long jobs took, and what became of them.
fn times(jobs: &[Job], outcomes: &[Outcome], script: &Script, limit: f64) -> Figures {
    let (mut whole, mut quiet, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for (job, outcome) in jobs.iter().zip(outcomes) {
        let at = job.at.as_secs_f64();
        let time = outcome.time.map_or(limit - at, |time| time.as_secs_f64()) * 1e3;
        whole.push(time);
        if (script.warm..script.fall).contains(&at) {
            quiet.push(time);
        }
        late.push(outcome.late.as_secs_f64() * 1e3);
    }
    let mean = whole.iter().sum::<f64>() / whole.len().max(1) as f64;
    let again: u32 = outcomes.iter().map(|outcome| outcome.again).sum();
    let given_up = outcomes.iter().filter(|outcome| outcome.time.is_none()).count();
    let mut figures = Figures::from([
        ("mean_ms", mean),
        ("again", f64::from(again)),
        ("given_up", given_up as f64),
    ]);
    let mut part = |values: &mut Vec<f64>, q: f64, name: &'static str| {
        values.sort_by(f64::total_cmp);
        figures.extend(quantile(values, q).map(|value| (name, value)));
    };
    part(&mut whole, 0.5, "p50_ms");
    part(&mut whole, 0.99, "p99_ms");
    part(&mut quiet, 0.5, "quiet_p50_ms");
    part(&mut quiet, 0.99, "quiet_p99_ms");
    part(&mut late, 0.99, "late_ms");
    figures
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bulk::results::tests::case_with;

    pub(crate) fn results(found: CaseResults, ablate: bool) -> BalanceResults {
        let (machine, versions) = (Machine::look(), BTreeMap::new());
        BalanceResults { machine, pinned: true, quick: false, ablate, versions, found }
    }

    #[test]
    fn what_was_given_up_counts_as_long_as_it_was_waited_for() {
        let script = Script { warm: 1.0, fall: 3.0, cut: 4.0, heal: 5.0, fail: 5.5, end: 6.0 };
        let job = |at| Job { at: Duration::from_secs(at), origin: 0, bytes: 1, passes: 1 };
        let outcome = |nth, time: Option<u64>, again| {
            let late = Duration::from_millis(1);
            Outcome { nth, time: time.map(Duration::from_secs), again, late }
        };
        let jobs = [job(0), job(1), job(2), job(4)];
        let outcomes = [
            outcome(0, Some(9), 0),
            outcome(1, Some(2), 0),
            outcome(2, Some(3), 2),
            outcome(3, None, 1),
        ];
        let found = figures(&jobs, &outcomes, &[], &script, 54.0);
        assert_eq!(found["p99_ms"], 50_000.0);
        assert_eq!((found["quiet_p50_ms"], found["quiet_p99_ms"]), (2000.0, 3000.0));
        assert_eq!((found["given_up"], found["again"], found["late_ms"]), (1.0, 3.0, 1.0));
        assert_eq!(found["mean_ms"], 16_000.0);
        assert!(!found.contains_key("return_to_fair"), "nobody was there to return");
    }

    #[test]
    fn a_job_is_near_where_its_data_is() {
        let script = Script { warm: 0.0, fall: 3.0, cut: 4.0, heal: 5.0, fail: 5.5, end: 6.0 };
        let jobs =
            [0, 1, 2, 2].map(|origin| Job { at: Duration::ZERO, origin, bytes: 1, passes: 1 });
        let picks: Vec<(usize, Pick)> =
            (0..4).map(|job| (job, Pick { at: 1.0, worker: job * 4 % 12, bytes: 1 })).collect();
        assert_eq!(figures(&jobs, &[], &picks, &script, 9.0)["near"], 0.75);
    }

    #[test]
    fn ours_is_held_against_the_best_of_the_blind_and_parts_against_the_whole() {
        let mut entries: Vec<(&str, &[f64])> = vec![(OURS, &[6.0]), ("towpath, no queue", &[9.0])];
        entries.extend([(BLIND[0], &[12.0][..]), (BLIND[1], &[10.0]), (BLIND[2], &[20.0])]);
        let mut results = results(case_with("p99_ms", &entries), true);
        results.relate();
        let figure = |name: &str, figure: &str| {
            results.found.entry(name).and_then(|e| e.summary(figure)).map(|s| s.median)
        };
        assert_eq!(figure(OURS, "p99_to_blind"), Some(0.6));
        assert_eq!(figure("towpath, no queue", "worst_to_full"), Some(1.5));
        assert_eq!(figure(BLIND[0], "worst_to_full"), None);
    }

    #[test]
    fn entries_without_a_term_have_a_table_of_their_own() {
        let found = case_with("p99_ms", &[(OURS, &[6.0]), ("towpath, no queue", &[9.0])]);
        let tables = results(found.clone(), true).tables();
        let texts: Vec<String> =
            tables.iter().map(|table| table.render(report::Form::Terminal)).collect();
        assert_eq!(texts.len(), 3);
        assert!(texts[0].contains(OURS) && !texts[0].contains("no queue"), "{}", texts[0]);
        assert!(!texts[2].contains(OURS) && texts[2].contains("no queue"), "{}", texts[2]);
        assert_eq!(results(found, false).tables().len(), 2);
    }
}
