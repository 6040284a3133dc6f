//! Says each fault once, not at every reading.

use std::collections::HashSet;

use crate::reading::{Fault, Reading};

/// The faults that were said already.
#[derive(Debug, Default)]
pub struct FaultLog(HashSet<(String, Fault)>);

impl FaultLog {
    /// Logs those faults of `readings` that were never logged, and says how many.
    ///
    /// One that comes and goes is logged the first time only, and past a bound none are: a sensor on the brink must not
    /// fill a disk.
    pub fn note(&mut self, readings: &[Reading]) -> usize {
        let mut new = 0;
        for (card, fault) in
            readings.iter().flat_map(|card| card.faults.iter().map(|fault| (&card.id, fault)))
        {
            if self.0.len() < MAX_REMEMBERED && self.0.insert((card.clone(), fault.clone())) {
                new += 1;
                tracing::warn!(%card, %fault, "a sensor of a GPU is not used");
            }
        }
        new
    }
}

/// More than a node with eight cards in eight partitions can have.
const MAX_REMEMBERED: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::Problem;

    fn faulty(what: String) -> Reading {
        let faults = vec![Fault::new(what, Problem::Missing)];
        Reading { id: "0000:c1:00.0".into(), faults, ..Reading::default() }
    }

    #[test]
    fn a_fault_is_said_once() {
        let mut log = FaultLog::default();
        for (what, new) in [("a", 1), ("a", 0), ("b", 1), ("a", 0), ("b", 0)] {
            assert_eq!(log.note(&[faulty(what.into())]), new);
        }
    }

    #[test]
    fn faults_without_end_are_bounded() {
        let mut log = FaultLog::default();
        let said: usize = (0..10_000).map(|number| log.note(&[faulty(number.to_string())])).sum();
        assert_eq!(said, MAX_REMEMBERED);
    }
}
