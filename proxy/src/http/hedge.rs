//! When a read is asked for a second time, and what came of it.

use std::time::Duration;

use towpath_policies::model::{Hedge, HedgeAfter};

use super::head_times::HeadTimes;

/// The terms of a route, and what is known of how long its service takes.
#[derive(Debug)]
pub(crate) struct Hedging {
    pub(crate) policy: Hedge,
    pub(crate) times: HeadTimes,
}

/// What came of a hedge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its answer was passed on.
    Won,
    /// The first try's was, or none.
    Lost,
    /// It was not sent: no other endpoint, or no budget.
    Refused,
}

impl Outcome {
    /// Metric label values, in order of the variants.
    pub(crate) const NAMES: [&'static str; 3] = ["won", "lost", "refused"];
}

impl Hedging {
    pub(crate) fn new(policy: &Hedge) -> Self {
        let percent = match policy.after {
            HedgeAfter::Percentile(percent) => percent,
            HedgeAfter::Time(_) => 100,
        };
        Self { policy: policy.clone(), times: HeadTimes::new(percent) }
    }

    /// How long a head is waited for before it is late; `None` while too little is known.
    pub(crate) fn delay(&self) -> Option<Duration> {
        match self.policy.after {
            HedgeAfter::Percentile(_) => self.times.quantile(self.policy.min_samples),
            HedgeAfter::Time(time) => Some(time),
        }
    }
}
