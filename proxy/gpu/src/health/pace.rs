//! Time, and how what is seen now and what was seen before come together.

use std::time::Duration;

use super::{Limits, terms::Term};

/// A clock that never goes back and never jumps, made of one that may.
#[derive(Debug, Default)]
pub(super) struct Clock {
    last: Option<Duration>,
    elapsed: Duration,
    warned: bool,
}

impl Clock {
    /// The time since the first call, in which no step was longer than `longest`.
    pub(super) fn advance(&mut self, now: Duration, longest: Duration) -> Duration {
        let step = match self.last.replace(now) {
            None => Duration::ZERO,
            Some(last) => {
                let back = now < last;
                let step = now.saturating_sub(last);
                if (back || step > longest) && !self.warned {
                    self.warned = true;
                    tracing::warn!(
                        ?last,
                        ?now,
                        "the clock jumped between two readings of the GPUs"
                    );
                }
                step.min(longest)
            }
        };
        self.elapsed = self.elapsed.saturating_add(step);
        self.elapsed
    }
}

/// What a source said last. Its silence never makes things better soon.
#[derive(Debug, Default)]
pub(super) struct Remembered(Option<(Term, Duration)>);

impl Remembered {
    /// What to go by when `term` was said at `at`, or nothing. `None` for a source that never said anything.
    pub(super) fn follow(
        &mut self,
        term: Option<Term>,
        source: &str,
        at: Duration,
        limits: &Limits,
    ) -> Option<Term> {
        if let Some(term) = term {
            self.0 = Some((term.clone(), at));
            return Some(term);
        }
        let (last, seen) = self.0.as_ref()?;
        let silent = at.saturating_sub(*seen);
        if silent < limits.patience {
            return Some(last.clone());
        }
        let unknown = Term::new(limits.unknown, format!("{source} is silent"));
        Some(if silent < limits.memory { unknown.worse(last.clone()) } else { unknown })
    }

    /// Starts anew.
    pub(super) fn forget(&mut self) {
        self.0 = None;
    }
}

/// The factor that is told: it falls at once, and rises by steps once all was better for a while.
#[derive(Debug, Default)]
pub(super) struct Pace {
    told: Option<f64>,
    /// Since when all is better, and the least that was asked for since.
    rising: Option<(Duration, f64)>,
}

impl Pace {
    pub(super) fn follow(&mut self, target: f64, at: Duration, limits: &Limits) -> f64 {
        let target = target.clamp(0.0, 1.0);
        let told = *self.told.get_or_insert(target);
        if target <= told {
            self.rising = None;
            self.told = Some(target);
            return target;
        }
        let (since, least) = self.rising.unwrap_or((at, target));
        let least = least.min(target);
        self.rising = Some((since, least));
        if at.saturating_sub(since) < limits.rise_after {
            return told;
        }
        let risen = least.min(told + limits.rise_step);
        self.told = Some(risen);
        self.rising = Some((at, target));
        risen
    }
}
