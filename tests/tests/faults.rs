//! A part of the fault campaign that has time in every test run; `--bin faults` makes the rest.

use towpath_tests::faults::{Campaign, Limits};

#[test]
fn whatever_breaks_nothing_is_lost_repeated_or_passed_off_as_whole() {
    let limits = Limits { max_size: 1 << 20, skip: Default::default() };
    let campaign = Campaign { seed: 1, runs: 300, limits, verbose: false };
    let report = campaign.run();
    let seeds: Vec<_> = report.failures.iter().map(|failure| failure.seed).collect();
    assert!(seeds.is_empty(), "failing seeds: {seeds:?}; their stories are above");
    println!("{report}");
}
