//! Success rate and latency, judged over an interval. Pure.

use std::time::Duration;

use towpath_policies::model::{Latency, SuccessRate};

use super::peers::{Seat, usual};

/// Standard errors that chance is granted: with ten thousand judgements of an endpoint a day, two
/// would be too few.
const ERRORS: f64 = 3.0;

/// What an endpoint did within the interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conduct {
    /// Requests that ended.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Requests whose time to the response head is known.
    pub timed: u64,
    /// Their median time.
    pub latency: Option<Duration>,
}

/// This endpoint's and its peers' share of successes, in per cent, when it is too low.
pub fn unsuccessful(
    seats: &[Seat<Conduct>],
    at: usize,
    min_endpoints: u32,
    terms: &SuccessRate,
) -> Option<(f64, f64)> {
    let rate = |conduct: &Conduct| {
        let enough = conduct.requests >= u64::from(terms.min_requests).max(1);
        let failures = conduct.failures.min(conduct.requests);
        enough.then(|| 100.0 - 100.0 * failures as f64 / conduct.requests as f64)
    };
    let seat = seats.get(at).filter(|seat| !seat.ejected)?;
    let own = rate(&seat.figure)?;
    let usual = usual(seats, at, min_endpoints, rate)?;
    let deviations = f64::from(terms.deviation_permille) / 1000.0 * usual.deviation;
    let margin = deviations.max(f64::from(terms.margin_percent));
    let at_best = at_best(own / 100.0, seat.figure.requests as f64) * 100.0;
    (at_best < usual.median - margin).then_some((own, usual.median))
}

/// The share of successes that this one of so many requests may yet be a sample of: the upper end of
/// Wilson's interval. A hundred requests tell a share of a half within 5 points only one time in two.
fn at_best(share: f64, requests: f64) -> f64 {
    let z2 = ERRORS * ERRORS;
    let spread = (share * (1.0 - share) / requests + z2 / (4.0 * requests * requests)).sqrt();
    (share + z2 / (2.0 * requests) + ERRORS * spread) / (1.0 + z2 / requests)
}

/// This endpoint's and its peers' median time to a response head, in seconds, when it is too long.
pub fn late(
    seats: &[Seat<Conduct>],
    at: usize,
    min_endpoints: u32,
    terms: &Latency,
) -> Option<(f64, f64)> {
    let time = |conduct: &Conduct| {
        let enough = conduct.timed >= u64::from(terms.min_requests);
        conduct.latency.filter(|_| enough).map(|time| time.as_secs_f64())
    };
    let seat = seats.get(at).filter(|seat| !seat.ejected)?;
    let own = time(&seat.figure)?;
    let usual = usual(seats, at, min_endpoints, time)?;
    let factor = f64::from(terms.above_percent) / 100.0;
    let late = own > usual.median * factor && own > usual.median + terms.margin.as_secs_f64();
    late.then_some((own, usual.median))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(conducts: impl IntoIterator<Item = Conduct>) -> Vec<Seat<Conduct>> {
        let seat = |figure| Seat { group: 0, ejected: false, figure };
        conducts.into_iter().map(seat).collect()
    }

    #[test]
    fn far_fewer_successes_than_the_peers_have_are_too_few() {
        let terms = SuccessRate::default();
        for (failures, out) in [
            (&[50, 0, 0][..], true),
            (&[21, 0, 0], true),
            // Of a hundred requests, so many may fail by chance where it is a tenth.
            (&[18, 0, 0], false),
            (&[60, 45, 48], false),
            (&[75, 45, 48], true),
            (&[100, 0, 0, 0, 0], true),
            // The peers differ among themselves as much.
            (&[40, 0, 10, 20, 30], false),
            (&[100, 100, 100], false),
            (&[50, 0], false),
        ] {
            let conduct = |failures: &u64| Conduct {
                requests: 100,
                failures: *failures,
                ..Conduct::default()
            };
            let table = seats(failures.iter().map(conduct));
            assert_eq!(unsuccessful(&table, 0, 3, &terms).is_some(), out, "{failures:?}");
        }
        let few = Conduct { requests: 99, failures: 99, ..Conduct::default() };
        let good = Conduct { requests: 1000, ..Conduct::default() };
        assert_eq!(unsuccessful(&seats([few, good, good]), 0, 3, &terms), None);
        assert_eq!(unsuccessful(&seats([few, few, good, good]), 0, 4, &terms), None);
    }

    #[test]
    fn the_more_requests_the_smaller_the_difference_that_tells() {
        for (requests, percent, out) in [
            (100, 15, false),
            (1_000, 15, true),
            (1_000, 12, false),
            (10_000, 12, true),
            (1_000_000, 10, false),
        ] {
            let bad =
                Conduct { requests, failures: requests * percent / 100, ..Conduct::default() };
            let good = Conduct { requests, ..Conduct::default() };
            let table = seats([bad, good, good]);
            let told = unsuccessful(&table, 0, 3, &SuccessRate::default()).is_some();
            assert_eq!(told, out, "{percent} % of {requests}");
        }
    }

    #[test]
    fn among_equals_that_fail_half_the_time_chance_condemns_none() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut out = 0;
        for _ in 0..5_000 {
            let table = seats((0..5).map(|_| Conduct {
                requests: 100,
                failures: (0..100).filter(|_| random.bool()).count() as u64,
                ..Conduct::default()
            }));
            let condemned = |at| unsuccessful(&table, at, 3, &SuccessRate::default()).is_some();
            out += (0..5).filter(|at| condemned(*at)).count();
        }
        assert!(out <= 1, "{out} of 25000");
    }

    #[test]
    fn a_head_is_late_by_share_and_by_time() {
        let terms = Latency::default();
        for (millis, out) in [
            ([500, 100, 100], true),
            ([400, 100, 100], false),
            // Five times as long, and nobody would notice.
            ([5, 1, 1], false),
            ([500, 100, 200], false),
            ([500, 1, 900], false),
        ] {
            let conduct = |millis| Conduct {
                timed: 100,
                latency: Some(Duration::from_millis(millis)),
                ..Conduct::default()
            };
            let mut table = seats(millis.map(conduct));
            assert_eq!(late(&table, 0, 3, &terms).is_some(), out, "{millis:?}");
            table[0].figure.timed = 99;
            assert_eq!(late(&table, 0, 3, &terms), None);
        }
    }
}
