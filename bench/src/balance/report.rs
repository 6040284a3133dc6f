//! What a worker says of itself: a load report of ORCA (gRFC A51), as text in a header of its answers.
//!
//! Agents look at a machine now and then, so what is said is always a little old; a report can be
//! held back longer, to see whether a balancer swings under what it no longer says.

use std::collections::VecDeque;
use std::fmt::Write as _;

/// The header it comes in.
pub const HEADER: &str = "endpoint-load-metrics";
/// Seconds between two looks.
pub const PERIOD: f64 = 0.25;
/// Seconds over which a look's figures decay by 1/e.
const MEMORY: f64 = 1.0;

/// What is seen at a look.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Share of the time in which there was work.
    pub utilisation: f64,
    /// Jobs that ended each second.
    pub rate: f64,
    /// Jobs that wait.
    pub queued: usize,
    /// What is left of the worker's speed.
    pub goodput_factor: f64,
}

/// Looks at a worker, and says what it saw some looks ago.
#[derive(Debug)]
pub struct Reporter {
    lag: usize,
    seen: VecDeque<Load>,
    busy: f64,
    ended: u64,
}

impl Reporter {
    /// One whose reports come so many looks late.
    #[must_use]
    pub fn new(lag: usize) -> Self {
        Self { lag, seen: VecDeque::new(), busy: 0.0, ended: 0 }
    }

    /// Looks, one [`PERIOD`] after the last time: seconds of work and jobs ended since the start,
    /// jobs that wait, and the worker's state.
    pub fn look(&mut self, busy: f64, ended: u64, queued: usize, goodput_factor: f64) {
        let utilisation = ((busy - self.busy) / PERIOD).clamp(0.0, 1.0);
        let rate = (ended - self.ended) as f64 / PERIOD;
        (self.busy, self.ended) = (busy, ended);
        let keep = (-PERIOD / MEMORY).exp();
        let decayed = |last: f64, new: f64| keep * last + (1.0 - keep) * new;
        let load = match self.seen.back() {
            None => Load { utilisation, rate, queued, goodput_factor },
            Some(last) => Load {
                utilisation: decayed(last.utilisation, utilisation),
                rate: decayed(last.rate, rate),
                queued,
                goodput_factor,
            },
        };
        self.seen.push_back(load);
        if self.seen.len() > self.lag + 1 {
            self.seen.pop_front();
        }
    }

    /// The header's value; none before there was something to see.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        let Load { utilisation, rate, queued, goodput_factor } =
            self.seen.front().filter(|_| self.seen.len() > self.lag)?;
        let mut text = format!("TEXT application_utilization={utilisation:.4}");
        let _ = write!(text, ",rps_fractional={rate:.3},eps=0");
        let _ = write!(text, ",named_metrics.queue_depth={queued}");
        let _ = write!(text, ",named_metrics.towpath.goodput_factor={goodput_factor}");
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_was_seen() {
        let mut reporter = Reporter::new(0);
        assert_eq!(reporter.text(), None);
        reporter.look(0.125, 5, 3, 1.0);
        let text = reporter.text().expect("a look");
        assert_eq!(
            text,
            "TEXT application_utilization=0.5000,rps_fractional=20.000,eps=0,\
             named_metrics.queue_depth=3,named_metrics.towpath.goodput_factor=1"
        );
    }

    #[test]
    fn load_decays_and_the_state_does_not() {
        let mut reporter = Reporter::new(0);
        reporter.look(0.25, 10, 0, 1.0);
        reporter.look(0.25, 10, 0, 0.1);
        let text = reporter.text().expect("a look");
        assert!(text.contains("application_utilization=0.7788,"), "{text}");
        assert!(text.ends_with("goodput_factor=0.1"), "{text}");
    }

    #[test]
    fn a_late_report_says_what_was() {
        let mut reporter = Reporter::new(2);
        reporter.look(0.25, 0, 0, 1.0);
        reporter.look(0.5, 0, 0, 0.1);
        assert_eq!(reporter.text(), None);
        reporter.look(0.75, 0, 0, 0.1);
        assert!(reporter.text().is_some_and(|text| text.ends_with("goodput_factor=1")));
        reporter.look(1.0, 0, 0, 0.1);
        assert!(reporter.text().is_some_and(|text| text.ends_with("goodput_factor=0.1")));
    }
}
