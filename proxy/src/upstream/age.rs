//! When streams and connections are of age, and whether one moves. Pure.

use tokio::time::{Duration, Instant};
use towpath_policies::model::StreamAge;

/// What an endpoint has in flight, and its weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) requests: u32,
    pub(crate) bytes: u64,
    pub(crate) weight: u32,
}

/// Why a stream moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MoveReason {
    /// Another endpoint has less to do.
    Balance,
    /// Its endpoint left the configuration, or is to take nothing new.
    Leaving,
}

/// A stream of age is looked at so often, give or take a third.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

impl MoveReason {
    /// Metric label values, in order of the variants.
    pub(crate) const NAMES: [&'static str; 2] = ["balance", "leaving"];
}

/// When something that began at `start` is of age; `draw` is from 0 to 1.
pub(crate) fn of_age(terms: &StreamAge, start: Instant, draw: f64) -> Option<Instant> {
    let jitter = f64::from(terms.jitter_percent.min(100)) / 100.0;
    start.checked_add(terms.max.mul_f64(1.0 + jitter * (2.0 * draw - 1.0)))
}

/// The time before which nothing is of age.
pub(crate) fn earliest(terms: &StreamAge, start: Instant) -> Option<Instant> {
    of_age(terms, start, 0.0)
}

/// When a stream of age is looked at next.
pub(crate) fn again(now: Instant, draw: f64) -> Option<Instant> {
    now.checked_add(LOOK_AGAIN.mul_f64(2.0 / 3.0 * (1.0 + draw)))
}

/// Whether a stream that has `left` bytes to come goes on clearly better `there` than `here`.
///
/// There must be fewer streams, in proportion to the weights, by a tenth at least, with this
/// one counted where it would be: so none goes to and fro, and the largest load only falls.
/// And not more bytes, lest one huge transfer be taken for light.
pub(crate) fn relieves(here: Load, there: Load, left: u64) -> bool {
    let (weight_here, weight_there) = (u128::from(here.weight), u128::from(there.weight));
    let fewer = (u128::from(there.requests) + 1) * weight_here * 10
        <= u128::from(here.requests) * weight_there * 9;
    let lighter = (u128::from(there.bytes) + u128::from(left)) * weight_here
        <= u128::from(here.bytes) * weight_there;
    fewer && lighter
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(requests: u32, bytes: u64) -> Load {
        Load { requests, bytes, weight: 1 }
    }

    #[test]
    fn ages_spread_around_the_limit() {
        let terms = StreamAge { max: Duration::from_secs(100), jitter_percent: 20 };
        let start = Instant::now();
        for (draw, expected) in [(0.0, 80), (0.5, 100), (1.0, 120)] {
            let at = of_age(&terms, start, draw).unwrap();
            assert_eq!((at - start).as_millis(), expected * 1000, "{draw}");
        }
        assert_eq!(earliest(&terms, start), of_age(&terms, start, 0.0));
        for (draw, expected) in [(0.0, 10), (0.5, 15), (1.0, 20)] {
            assert_eq!((again(start, draw).unwrap() - start).as_millis(), expected * 1000);
        }
    }

    #[test]
    fn a_stream_moves_only_where_that_clearly_evens_the_load() {
        for (here, there, left, expected) in [
            (load(50, 50), load(0, 0), 1, true),
            (load(2, 2), load(0, 0), 1, true),
            (load(1, 1), load(0, 0), 1, false),
            (load(2, 2), load(1, 1), 1, false),
            (load(26, 26), load(24, 24), 1, false),
            (load(28, 28), load(22, 22), 1, true),
            // One huge transfer there is no light load.
            (load(9, 9), load(1, 1000), 1, false),
            (load(9, 1000), load(1, 0), 900, true),
            // Three times the weight is owed three times the streams.
            (load(10, 10), Load { requests: 20, bytes: 20, weight: 3 }, 1, true),
            (load(10, 10), Load { requests: 28, bytes: 28, weight: 3 }, 1, false),
        ] {
            assert_eq!(relieves(here, there, left), expected, "{here:?} {there:?} {left}");
        }
    }

    #[test]
    fn streams_settle_evenly_and_then_stay() {
        fastrand::seed(7);
        for _ in 0..200 {
            let count = 2 + fastrand::usize(..6);
            let mut loads: Vec<_> = (0..count).map(|_| load(0, 0)).collect();
            // All begin on one or two, as before others were added.
            for _ in 0..fastrand::u32(1..200) {
                let to = fastrand::usize(..2);
                loads[to] = load(loads[to].requests + 1, loads[to].bytes + 1);
            }
            let mut moves = 0;
            let mut quiet = 0;
            while quiet < 500 {
                let (from, to) = (fastrand::usize(..count), fastrand::usize(..count));
                quiet += 1;
                if from != to && loads[from].requests > 0 && relieves(loads[from], loads[to], 1) {
                    loads[from] = load(loads[from].requests - 1, loads[from].bytes - 1);
                    loads[to] = load(loads[to].requests + 1, loads[to].bytes + 1);
                    moves += 1;
                    quiet = 0;
                }
                assert!(moves < 2000, "to and fro: {loads:?}");
            }
            let most = loads.iter().map(|l| l.requests).max().unwrap();
            let fewest = loads.iter().map(|l| l.requests).min().unwrap();
            assert!((fewest + 1) * 10 > most * 9, "{loads:?}");
        }
    }
}
