//! How often an outside service may be asked: so many a second, so many a day, and ever more rarely
//! where it says that this is too much, or says nothing. Time and chance are arguments.

use std::time::Duration;

use tokio::time::Instant;

const DAY: u64 = 24 * 3600;
/// A service that asks for a longer rest than this is asked again all the same.
const LONGEST_REST: Duration = Duration::from_secs(DAY);

/// How much may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls a second. At least 1.
    pub per_second: u32,
    /// Calls a day (UTC).
    pub per_day: u32,
}

impl Default for Limits {
    /// Five a second, and as many a day as Apple grants to a membership.
    fn default() -> Self {
        Self { per_second: 5, per_day: 25_000 }
    }
}

/// What is wrong with a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It says that it is asked too much, and perhaps for how long.
    TooMuch(Option<Duration>),
    /// It does not accept who asks.
    Credentials,
    /// It cannot be reached, or gives no useful answer.
    Away,
}

impl Trouble {
    /// The first pause and the longest.
    fn pauses(self) -> (Duration, Duration) {
        let (first, longest) = match self {
            Self::TooMuch(_) => (10, 3600),
            Self::Credentials => (60, 3600),
            Self::Away => (1, 300),
        };
        (Duration::from_secs(first), Duration::from_secs(longest))
    }
}

#[derive(Debug)]
pub(crate) struct Pace {
    limits: Limits,
    /// When the bucket is full again.
    full_at: Option<Instant>,
    /// Days since 1970, and calls on that day.
    day: (u64, u32),
    failures: u32,
    /// After a failure.
    not_before: Option<Instant>,
}

impl Pace {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, full_at: None, day: (0, 0), failures: 0, not_before: None }
    }

    /// Counts a call, or says for how long there may be none, and why. `since_1970` is the wall
    /// clock's.
    pub(crate) fn admit(
        &mut self,
        now: Instant,
        since_1970: Duration,
    ) -> Result<(), (Duration, &'static str)> {
        if let Some(rest) = self.rests(now) {
            return Err((rest, "it failed, or said that it is asked too often"));
        }
        let day = since_1970.as_secs() / DAY;
        if self.day.0 != day {
            self.day = (day, 0);
        }
        if self.day.1 >= self.limits.per_day {
            let rest = Duration::from_secs((day + 1) * DAY).saturating_sub(since_1970);
            return Err((rest, "the day's quota is used up"));
        }
        let interval = Duration::from_secs(1) / self.limits.per_second.max(1);
        let full = self.full_at.map_or(now, |at| at.max(now));
        // A second's worth may be asked at once.
        let early = (full + interval).duration_since(now).saturating_sub(Duration::from_secs(1));
        if !early.is_zero() {
            return Err((early, "so many a second are enough"));
        }
        self.full_at = Some(full + interval);
        self.day.1 += 1;
        Ok(())
    }

    /// How long it is left alone yet after a failure.
    pub(crate) fn rests(&self, now: Instant) -> Option<Duration> {
        self.not_before?.checked_duration_since(now).filter(|rest| !rest.is_zero())
    }

    /// There was a useful answer.
    pub(crate) fn answered(&mut self) {
        self.failures = 0;
    }

    /// There was none; how long it is left alone. `chance` is in [0, 1).
    pub(crate) fn failed(&mut self, trouble: Trouble, now: Instant, chance: f64) -> Duration {
        let (first, longest) = trouble.pauses();
        let doubled = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures = self.failures.saturating_add(1);
        let rest = match trouble {
            Trouble::TooMuch(Some(asked)) => asked.clamp(first / 10, LONGEST_REST),
            // Between half of it and all, so that many who failed together do not come back so.
            _ => doubled.mul_f64(0.5 + 0.5 * chance),
        };
        self.not_before = Some(now + rest);
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Duration = Duration::from_secs(20_000 * DAY + DAY / 2);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn five_a_second_and_no_more_saved_up_than_five() {
        let mut pace = Pace::new(Limits::default());
        let start = Instant::now();
        let mut admitted = 0;
        for tenth in 0..100_u32 {
            let now = start + Duration::from_millis(100) * tenth;
            while pace.admit(now, NOON).is_ok() {
                admitted += 1;
            }
        }
        // Five at once, then five in each of the 9.9 s.
        assert_eq!(admitted, 5 + 49);
        let later = start + Duration::from_secs(3600);
        let at_once = (0..100).filter(|_| pace.admit(later, NOON).is_ok()).count();
        assert_eq!(at_once, 5);
        let (wait, _) = pace.admit(later, NOON).unwrap_err();
        assert_eq!(wait, Duration::from_millis(200));
        assert!(pace.admit(later + wait, NOON).is_ok());
    }

    #[test]
    fn a_day_has_its_quota_and_the_next_one_has_another() {
        let mut pace = Pace::new(Limits { per_second: 1000, per_day: 3 });
        let now = Instant::now();
        for _ in 0..3 {
            pace.admit(now, NOON).unwrap();
        }
        let (wait, why) = pace.admit(now, NOON).unwrap_err();
        assert_eq!(wait, Duration::from_secs(DAY / 2), "until midnight");
        assert!(why.contains("quota"));
        assert!(pace.admit(now + wait, NOON + wait).is_ok());
    }

    #[test]
    fn failures_in_a_row_make_it_rarer_up_to_a_bound() {
        let mut pace = Pace::new(Limits::default());
        let now = Instant::now();
        let waits: Vec<_> = (0..12).map(|_| pace.failed(Trouble::Away, now, 1.0)).collect();
        assert_eq!(waits[..4], [1.0, 2.0, 4.0, 8.0].map(seconds));
        assert_eq!(waits[11], seconds(300.0));
        pace.answered();
        assert_eq!(pace.failed(Trouble::Away, now, 0.0), seconds(0.5), "half of it at least");
        for _ in 0..100 {
            pace.failed(Trouble::TooMuch(None), now, 0.3);
        }
        assert!(pace.failed(Trouble::TooMuch(None), now, 1.0) <= seconds(3600.0));
    }

    #[test]
    fn a_rest_that_is_asked_for_is_kept_within_reason() {
        let mut pace = Pace::new(Limits::default());
        let now = Instant::now();
        for (asked, expected) in [(120, 120), (0, 1), (u64::MAX, DAY)] {
            let asked = Trouble::TooMuch(Some(Duration::from_secs(asked)));
            assert_eq!(pace.failed(asked, now, 0.5), Duration::from_secs(expected));
        }
        let mut pace = Pace::new(Limits::default());
        pace.failed(Trouble::TooMuch(Some(seconds(120.0))), now, 0.5);
        assert_eq!(pace.admit(now + seconds(119.0), NOON).unwrap_err().0, seconds(1.0));
        assert!(pace.admit(now + seconds(120.0), NOON).is_ok());
    }
}
