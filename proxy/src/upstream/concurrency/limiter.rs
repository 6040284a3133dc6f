//! Where the limit lies. Pure: what was measured and the time are arguments.
//!
//! Where requests queue, each one fewer in flight makes the others faster by the time between two
//! answers (Little 1961). So their times tell how many are too many, and afterwards whether taking
//! some away has helped. Where they do not queue it does not help, and the times are what the
//! requests need: the base, of which a multiple is tolerated.
//!
//! The limit is lowered where the times are too long by more than chance explains, by as many as
//! the law says, and raised where nothing queues and it is made use of. Taking away in vain twice
//! shows that the base has grown. Now and then the limit is lowered on purpose, about to where the
//! queue ends, to see what the base is. Proxies do this at the same time, by a clock that they
//! share: each alone would see the queue of the others, and take it for the base.

use towpath_policies::model::AdaptiveConcurrency;

/// What was measured since the window began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Head times.
    pub(crate) samples: u64,
    /// What is typical of them.
    pub(crate) typical_us: f64,
    /// Its standard error in parts of it, times the root of the number of samples.
    pub(crate) deviation: f64,
    /// The time in which they came.
    pub(crate) seconds: f64,
    /// Requests whose head did not come, for longer than it takes without a queue.
    pub(crate) given_up: u64,
    /// The most requests that waited at a time.
    pub(crate) peak: u32,
    /// The limit turned somebody away.
    pub(crate) reached: bool,
}

/// The limit of one endpoint, and what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Limiter {
    limit: f64,
    /// The typical head time where nothing queues, as far as is known.
    base_us: Option<f64>,
    phase: Phase,
    /// By so much it grew last.
    step: f64,
    /// The base is looked at in this round, if the limit is reached.
    round: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Steady,
    /// The limit was lowered, since there seemed to be a queue: at first from `was`, the last time
    /// from `last`. `vain`: the time before it did not help.
    Cut {
        was: Level,
        last: Level,
        vain: bool,
    },
    /// It is lowered for a moment to look at the base.
    Dip {
        was: Level,
    },
}

/// A limit, and the times under it.
#[derive(Clone, Copy, Debug)]
struct Level {
    limit: f64,
    typical_us: f64,
}

/// Where the limit begins, as long as nothing is known of the endpoint.
const FIRST: f64 = 32.0;
/// Fewer samples tell nothing.
const LEAST: u64 = 16;
/// So many tell what is typical of exponential times within 8 % (one standard error).
const ENOUGH: u64 = 256;
/// A window that has lasted so long is judged by the samples it has.
const LONGEST_SECONDS: f64 = 8.0;
/// Standard errors that chance is granted. It has many looks at each window.
const CHANCE: f64 = 3.2;
/// The same, to let more in.
const EAGER: f64 = 1.6;
/// Times vary together, since all wait in one queue: so much at least is their deviation.
const LEAST_DEVIATION: f64 = 1.0;
/// The base may be looked at in each of these rounds.
const ROUND_US: u64 = 5_000_000;
/// In one of so many rounds all proxies look at it.
const COMMON: u64 = 3;
/// So long after the beginning of a round all have lowered their limits, and what queued is gone.
const BEGUN_US: u64 = 1_000_000;
/// Before this none raises it again.
const ENDS_US: u64 = 2_000_000;
/// To look at it, so much of those in flight (by the law) is taken away.
const DIP: f64 = 0.5;
/// Times within this factor of the base are taken for it.
const SAME: f64 = 1.2;
/// With times longer by this factor the endpoint itself has grown slower.
const SLOWER: f64 = 1.25;
/// Times are taken to be at most so often what is tolerated, when it is said how many are too many.
const WORST: f64 = 8.0;
/// Times longer than what is tolerated by this factor are not explained by others that queue.
const GROSS: f64 = 1.5;
/// At most so much of the limit is taken away at once.
const DEEPEST: f64 = 0.5;

impl Limiter {
    pub(crate) fn new(terms: &AdaptiveConcurrency) -> Self {
        Self {
            limit: bounded(FIRST, terms),
            base_us: None,
            phase: Phase::Steady,
            step: 1.0,
            round: 0,
        }
    }

    /// Requests that may wait for their heads.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by u32s")]
    pub(crate) fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// The typical head time without queueing, in microseconds.
    pub(crate) fn base_us(&self) -> Option<f64> {
        self.base_us
    }

    /// Looks at the window so far. When it was enough to decide, the next one begins after so many
    /// microseconds: what was sent before does not speak of what was decided. `shared_us` is the
    /// time by a clock that proxies share.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds at most")]
    pub(crate) fn handle(
        &mut self,
        terms: &AdaptiveConcurrency,
        window: &Window,
        shared_us: u64,
    ) -> Option<u64> {
        self.limit = bounded(self.limit, terms);
        if window.given_up >= LEAST && window.given_up > window.samples {
            // The times of those who were answered are not those of most, and what was given up may
            // still be worked on.
            self.limit = bounded(self.limit * DEEPEST, terms);
            self.phase = Phase::Steady;
            self.step = 1.0;
            return Some(BEGUN_US);
        }
        if let Phase::Dip { was } = self.phase
            && window.seconds >= 2.0 * LONGEST_SECONDS
        {
            // Hardly anybody asks any more: there is nothing to see, and nobody to hold back.
            self.phase = Phase::Steady;
            self.limit = bounded(was.limit, terms);
            self.round = (shared_us / ROUND_US + 1).next_multiple_of(COMMON);
            return Some(0);
        }
        if window.samples < LEAST {
            return None;
        }
        let look = Look::new(terms, window, shared_us);
        let before = self.limit;
        let decided = match (self.base_us, self.phase) {
            (None, _) => {
                self.base_us = Some(window.typical_us);
                self.round = shared_us / ROUND_US + 1;
                true
            }
            (Some(base), Phase::Steady) => self.steady(base, &look),
            (Some(base), Phase::Cut { was, last, vain }) => self.cut(base, was, last, vain, &look),
            (Some(base), Phase::Dip { was }) => self.dip(base, was, &look),
        };
        if !decided {
            return None;
        }
        self.limit = bounded(self.limit, terms);
        let changed = (self.limit - before).abs() > before * 0.05;
        let settles_us = if changed { (window.typical_us * 2.0).min(5e6) as u64 } else { 0 };
        let dips = matches!(self.phase, Phase::Dip { .. });
        let begun_us = if dips { BEGUN_US.saturating_sub(shared_us % ROUND_US) } else { 0 };
        Some(settles_us.max(begun_us))
    }

    /// True when something was decided, as in those below.
    fn steady(&mut self, base: f64, look: &Look<'_>) -> bool {
        let (window, typical) = (look.window, look.window.typical_us);
        let was = Level { limit: self.limit, typical_us: typical };
        let queues = typical > base * SAME;
        // At the beginning of a round, as the others do.
        let round = look.shared_us / ROUND_US;
        let due = round >= self.round && window.samples >= ENOUGH / 4;
        let wanted = queues || round.is_multiple_of(COMMON);
        if due && wanted && window.reached && self.begin_dip(was, look) {
            return true;
        }
        // To let some more in takes less evidence than to turn some away.
        let tolerated = base * look.tolerance;
        let room = typical < tolerated && look.tells_apart_by(EAGER, typical, tolerated);
        if !room && !look.tells(typical, tolerated) {
            return false;
        }
        let base = self.lower_base(base, look);
        let target = base * look.tolerance;
        if typical > target {
            // What may be chance moves nothing, else chance would push the limit down.
            if window.reached && look.tells_apart(typical, target) {
                self.lower_limit(was, target, look);
                self.phase = Phase::Cut { was, last: was, vain: false };
            }
            return true;
        }
        if f64::from(window.peak) * 2.0 >= self.limit {
            self.raise_limit(queues, look);
        }
        true
    }

    /// Lets more in: few where some queue, else more and more.
    fn raise_limit(&mut self, queues: bool, look: &Look<'_>) {
        let in_flight = look.per_second * look.window.typical_us / 1e6;
        self.step = if queues {
            (in_flight / 32.0).max(1.0)
        } else {
            (self.step * 2.0).max(in_flight / 4.0).min(self.limit / 4.0).max(1.0)
        };
        self.limit += self.step;
    }

    /// Takes away those who queue too long.
    fn lower_limit(&mut self, now: Level, target: f64, look: &Look<'_>) {
        // With few left beside long polls, those are what was timed.
        let typical = now.typical_us.min(target * WORST);
        self.limit = look.less(now.limit, look.per_second * (typical - target) / 1e6);
        self.step = 1.0;
    }

    /// Times below the base are the better base.
    fn lower_base(&mut self, base: f64, look: &Look<'_>) -> f64 {
        let typical = look.window.typical_us;
        // Of few samples the short ones come first.
        if typical < base && look.is_full() && look.tells_apart(typical, base) {
            self.base_us = Some(typical);
            return typical;
        }
        base
    }

    /// Whether taking some away made the others faster.
    fn cut(&mut self, base: f64, was: Level, last: Level, vain: bool, look: &Look<'_>) -> bool {
        let typical = look.window.typical_us;
        let target = base * look.tolerance;
        let hoped = (last.limit - self.limit) / look.per_second * 1e6;
        let half = (last.typical_us - hoped / 2.0).max(target);
        if !look.tells(typical, half) {
            return false;
        }
        let now = Level { limit: self.limit, typical_us: typical };
        // It may also be that the endpoint grows slower still.
        let helped = typical <= half || typical > last.typical_us * SLOWER;
        if !helped && (vain || now.limit <= look.least()) {
            // The requests themselves take longer, or others queue as well. The former if by so much.
            self.phase = Phase::Steady;
            if typical > target * GROSS {
                self.base_us = Some(typical / SAME);
            }
            self.limit = was.limit;
        } else if typical > target && look.tells_apart(typical, target) {
            self.lower_limit(now, target, look);
            self.phase = Phase::Cut { was, last: now, vain: !helped };
        } else {
            self.phase = Phase::Steady;
            return self.steady(base, look);
        }
        true
    }

    /// Lowers the limit for a moment, if it may be lowered at all.
    fn begin_dip(&mut self, was: Level, look: &Look<'_>) -> bool {
        let in_flight = look.per_second * was.typical_us / 1e6;
        let limit = look.less(was.limit, (DIP * in_flight).max(1.0));
        if limit > was.limit - 1.0 {
            return false;
        }
        self.phase = Phase::Dip { was };
        self.limit = limit;
        true
    }

    /// What the base is, by the times under less load.
    fn dip(&mut self, base: f64, was: Level, look: &Look<'_>) -> bool {
        if !look.is_full() || look.shared_us % ROUND_US < ENDS_US {
            return false;
        }
        self.phase = Phase::Steady;
        let round = look.shared_us / ROUND_US;
        let common = round.is_multiple_of(COMMON);
        // Seldom enough that this is a small part of the time.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "few")]
        let rounds = (look.window.seconds * 4e6 / ROUND_US as f64) as u64;
        self.round = (round + rounds + 1).next_multiple_of(COMMON);
        let typical = look.window.typical_us;
        if typical > was.typical_us * SLOWER {
            // The endpoint grew slower meanwhile.
            self.limit = was.limit;
            return true;
        }
        let hoped = (was.limit - self.limit) / look.per_second * 1e6;
        let queues = typical < was.typical_us - hoped * 0.75;
        let same = typical <= base * SAME && typical >= base / SAME;
        let base = if same && (common || typical < base) {
            f64::midpoint(base, typical)
        } else if same {
            base
        } else if queues {
            // Those who were left still queue: this limit is enough, and perhaps too much.
            self.base_us = Some(base.min(typical));
            self.round = round + rounds + 1;
            return true;
        } else if typical < base || common {
            typical
        } else {
            // Perhaps the others queue.
            base
        };
        self.base_us = Some(base);
        let target = base * look.tolerance;
        let room = look.per_second * (target - typical).max(0.0) / 1e6;
        self.limit = if was.typical_us <= target { was.limit } else { self.limit + room };
        self.limit = self.limit.min(was.limit);
        true
    }
}

/// A window, and what can be told by it.
struct Look<'a> {
    terms: &'a AdaptiveConcurrency,
    window: &'a Window,
    shared_us: u64,
    tolerance: f64,
    per_second: f64,
}

impl<'a> Look<'a> {
    fn new(terms: &'a AdaptiveConcurrency, window: &'a Window, shared_us: u64) -> Self {
        let tolerance = f64::from(terms.tolerance_percent.max(101)) / 100.0;
        let per_second = window.samples as f64 / window.seconds.max(1e-3);
        Self { terms, window, shared_us, tolerance, per_second }
    }

    fn is_full(&self) -> bool {
        self.window.samples >= ENOUGH || self.window.seconds >= LONGEST_SECONDS
    }

    /// Whether chance does not explain that these differ.
    fn tells_apart(&self, typical: f64, other: f64) -> bool {
        self.tells_apart_by(CHANCE, typical, other)
    }

    fn tells_apart_by(&self, chance: f64, typical: f64, other: f64) -> bool {
        let deviation = self.window.deviation.max(LEAST_DEVIATION);
        (typical / other).ln().abs() > chance * deviation / (self.window.samples as f64).sqrt()
    }

    /// Whether it is plain which is larger, or there is nothing to wait for.
    fn tells(&self, typical: f64, other: f64) -> bool {
        self.is_full() || self.tells_apart(typical, other)
    }

    fn least(&self) -> f64 {
        self.terms.min_requests.into()
    }

    fn less(&self, limit: f64, by: f64) -> f64 {
        (limit - by.min(limit * DEEPEST)).max(self.least())
    }
}

fn bounded(limit: f64, terms: &AdaptiveConcurrency) -> f64 {
    let least = f64::from(terms.min_requests.max(1));
    limit.clamp(least, f64::from(terms.max_requests).max(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// A limiter in time.
    struct Life {
        limiter: Limiter,
        now_us: u64,
        begun_us: u64,
    }

    impl Life {
        /// One more second of a window, in which so many have been answered by now.
        fn second(&mut self, samples: u64) {
            self.now_us += SECOND;
            let seconds = (self.now_us - self.begun_us) as f64 / 1e6;
            let window = Window {
                samples,
                typical_us: 100_000.0,
                deviation: 1.0,
                seconds,
                given_up: 0,
                peak: self.limiter.limit(),
                reached: true,
            };
            let terms = AdaptiveConcurrency { max_requests: 32, ..AdaptiveConcurrency::default() };
            if let Some(after_us) = self.limiter.handle(&terms, &window, self.now_us) {
                self.now_us += after_us;
                self.begun_us = self.now_us;
            }
        }

        /// Until the limit is lowered to look at the base, for so many seconds at most.
        fn until_dip(&mut self, seconds: u64) -> bool {
            (0..seconds).any(|_| {
                self.second(256);
                matches!(self.limiter.phase, Phase::Dip { .. })
            })
        }
    }

    #[test]
    fn a_lull_while_the_limit_is_lowered_leaves_it_neither_low_nor_unlooked_at() {
        for asked in [0, 1, LEAST] {
            let limiter = Limiter::new(&AdaptiveConcurrency::default());
            let mut life = Life { limiter, now_us: 0, begun_us: 0 };
            assert!(life.until_dip(120), "it is looked at");
            assert!(life.limiter.limit() < 32);
            (0..3600).for_each(|_| life.second(asked));
            assert_eq!(life.limiter.limit(), 32, "{asked}");
            assert!(life.until_dip(120), "{asked}: it is looked at again");
        }
    }
}
