//! What is remembered of a story.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::Context;
use serde_json::Value;

use crate::demo::{admin::Metrics, place::FAVOURED, repository::Commit};

/// An effect beyond what chance does to some dozens of picks.
const CLEAR_PERCENT: f64 = 15.0;

/// Everything the report needs that only the story saw.
#[derive(Debug, Default)]
pub(in crate::demo) struct Chronicle {
    /// Picks before any fault.
    pub(in crate::demo) before: Shares,
    /// Picks after the traffic shift.
    pub(in crate::demo) after: Shares,
    /// Commits that were obeyed, in their order.
    pub(in crate::demo) commits: Vec<CommitTimes>,
    /// Faults, in their order.
    pub(in crate::demo) events: Vec<Value>,
}

/// How long a commit took to be obeyed.
#[derive(Clone, Debug)]
pub(in crate::demo) struct CommitTimes {
    pub(in crate::demo) commit: Commit,
    /// By the gateway; `None` when it changed nothing for it.
    pub(in crate::demo) gateway: Option<Duration>,
    /// By every proxy, as the control plane knows.
    pub(in crate::demo) all: Duration,
}

/// Picks by region and by endpoint over some time, in per cent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::demo) struct Shares {
    pub(in crate::demo) regions: BTreeMap<String, f64>,
    endpoints: BTreeMap<String, f64>,
}

impl Chronicle {
    pub(super) fn event(&mut self, event: Value) {
        self.events.push(event);
    }

    /// Whether the commit that shifts traffic had a clear effect.
    pub(in crate::demo) fn shifted(&self) -> bool {
        self.after.of(FAVOURED) > self.before.of(FAVOURED) + CLEAR_PERCENT
    }

    /// The commit in force.
    pub(super) fn latest(&self) -> anyhow::Result<Commit> {
        self.commits.last().map(|times| times.commit.clone()).context("no commit was obeyed yet")
    }
}

impl Shares {
    /// What was picked between two scrapes of the gateway.
    pub(super) fn between(earlier: &Metrics, later: &Metrics) -> Self {
        let shares = |label| {
            let before = earlier.by("towpath_picks_total", label);
            let mut picks = later.by("towpath_picks_total", label);
            for (name, count) in &mut picks {
                *count -= before.get(name).copied().unwrap_or_default();
            }
            let total = picks.values().sum::<f64>().max(1.0);
            picks.values_mut().for_each(|count| *count *= 100.0 / total);
            picks
        };
        Self { regions: shares("region"), endpoints: shares("endpoint") }
    }

    pub(super) fn of(&self, region: &str) -> f64 {
        self.regions.get(region).copied().unwrap_or_default()
    }

    pub(super) fn of_endpoint(&self, endpoint: &str) -> f64 {
        self.endpoints.get(endpoint).copied().unwrap_or_default()
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (region, percent)) in self.regions.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{region} {percent:.0} %")?;
        }
        Ok(())
    }
}
