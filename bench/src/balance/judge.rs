//! What a run shows, reckoned from when jobs came, where they went, and when they were done.
//!
//! Pure functions. Times are seconds from the start of the run; what counts as traffic are new jobs,
//! as the workers saw them.

use super::trace::Script;

/// A new job at a worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pick {
    /// When.
    pub at: f64,
    /// Which worker.
    pub worker: usize,
    /// Bytes of its input.
    pub bytes: u64,
}

/// The share below which a fallen GPU's traffic must be, in bytes of new jobs.
pub const OUT: f64 = 0.05;
/// Windows in which it is looked at: in less time the few jobs that a GPU at a tenth deserves come to
/// that share now and then, by chance.
const OUT_WINDOW: f64 = 0.5;
/// From the start of one to that of the next.
const OUT_STEP: f64 = 0.25;
/// Windows in which shares are compared with chance: each worker gets a dozen jobs and more.
const SHARE_WINDOW: f64 = 0.5;
/// The time after a return that must be no stampede.
const RETURN_WINDOW: f64 = 1.0;

/// The value that a part `q` of `sorted` does not exceed; none if it is empty.
#[must_use]
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * q).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// Seconds from `from` to the end of the last window, before `to`, in which `worker` got [`OUT`] or
/// more of the bytes of new jobs.
#[must_use]
pub fn out_after(picks: &[Pick], worker: usize, from: f64, to: f64) -> f64 {
    let mut out = 0.0;
    for (start, window) in windows(picks, from, to, OUT_WINDOW, OUT_STEP) {
        let share = weighed(window, |is| is == worker, |pick| pick.bytes as f64);
        if share.is_some_and(|share| share >= OUT) {
            out = start + OUT_WINDOW - from;
        }
    }
    out
}

/// The share of `is` in the new jobs from `from` to `to`; none if there were none.
#[must_use]
pub fn share(picks: &[Pick], from: f64, to: f64, is: impl Fn(usize) -> bool) -> Option<f64> {
    weighed(between(picks, from, to), is, |_| 1.0)
}

/// The same as if there had been one job at least, so that others can be related to it.
#[must_use]
pub fn share_at_least_one(
    picks: &[Pick],
    from: f64,
    to: f64,
    is: impl Fn(usize) -> bool,
) -> Option<f64> {
    let one = 1.0 / between(picks, from, to).len() as f64;
    share(picks, from, to, is).map(|share| share.max(one))
}

/// The same in their bytes.
#[must_use]
pub fn share_of_bytes(
    picks: &[Pick],
    from: f64,
    to: f64,
    is: impl Fn(usize) -> bool,
) -> Option<f64> {
    weighed(between(picks, from, to), is, |pick| pick.bytes as f64)
}

/// How much more the workers' shares of new jobs vary from window to window than if each job were
/// given to a worker at random, with the same shares on average: then it is 1. Taking turns comes to
/// less; a balancer that swings, as those do that act on old reports, to much more. None without
/// windows to compare.
#[must_use]
pub fn oscillation(picks: &[Pick], workers: usize, from: f64, to: f64) -> Option<f64> {
    let windows: Vec<&[Pick]> = windows(picks, from, to, SHARE_WINDOW, SHARE_WINDOW)
        .map(|(_, window)| window)
        .filter(|window| !window.is_empty())
        .collect();
    if windows.len() < 2 {
        return None;
    }
    let (mut seen, mut by_chance) = (0.0, 0.0);
    for worker in 0..workers {
        let shares: Vec<f64> = windows
            .iter()
            .map(|window| {
                let its = window.iter().filter(|pick| pick.worker == worker).count();
                its as f64 / window.len() as f64
            })
            .collect();
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        // One less than the number of windows, since the mean is theirs.
        let squares: f64 = shares.iter().map(|share| (share - mean).powi(2)).sum();
        seen += squares / (shares.len() - 1) as f64;
        // Of a share of n independent jobs, the mean over the windows.
        let per_job: f64 = windows.iter().map(|window| 1.0 / window.len() as f64).sum();
        by_chance += mean * (1.0 - mean) * per_job / windows.len() as f64;
    }
    (by_chance > 0.0).then(|| seen / by_chance)
}

/// What the return of some workers looked like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Return {
    /// Their share of new jobs in the second that begins with the first they got, in relation to
    /// what it was in the quiet part.
    pub first_second: f64,
    /// Seconds until they got the first.
    pub first_after: f64,
}

/// How the workers that `is` names came back; none if they did not, or had no share before.
#[must_use]
pub fn returned(picks: &[Pick], script: &Script, is: impl Fn(usize) -> bool) -> Option<Return> {
    let first = picks.iter().find(|pick| pick.at >= script.heal && is(pick.worker))?.at;
    let fair = share(picks, script.warm, script.fall, &is).filter(|share| *share > 0.0)?;
    let got = share(picks, first, first + RETURN_WINDOW, &is)?;
    Some(Return { first_second: got / fair, first_after: first - script.heal })
}

fn between(picks: &[Pick], from: f64, to: f64) -> &[Pick] {
    let start = picks.partition_point(|pick| pick.at < from);
    let end = picks.partition_point(|pick| pick.at < to);
    &picks[start..end.max(start)]
}

/// All whole windows of a length, with their starts; picks are sorted by time.
fn windows(
    picks: &[Pick],
    from: f64,
    to: f64,
    length: f64,
    step: f64,
) -> impl Iterator<Item = (f64, &[Pick])> {
    // A window that ends at `to` but for rounding is whole.
    let starts = (0..).map(move |nth| from + f64::from(nth) * step);
    let starts = starts.take_while(move |start| start + length <= to + 1e-9);
    starts.map(move |start| (start, between(picks, start, start + length)))
}

fn weighed(
    picks: &[Pick],
    is: impl Fn(usize) -> bool,
    weight: impl Fn(&Pick) -> f64,
) -> Option<f64> {
    let all: f64 = picks.iter().map(&weight).sum();
    let its: f64 = picks.iter().filter(|pick| is(pick.worker)).map(&weight).sum();
    // The sum of none is -0.
    (all > 0.0).then(|| its / all + 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred jobs a second for so long, to the workers that `to` says by number.
    fn picks(seconds: u32, to: impl Fn(usize) -> usize) -> Vec<Pick> {
        (0..seconds as usize * 100)
            .map(|nth| Pick { at: nth as f64 / 100.0, worker: to(nth), bytes: 10 })
            .collect()
    }

    /// A number without a rhythm.
    fn scattered(nth: usize) -> usize {
        let mut x = (nth as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((x ^ (x >> 31)) % 1000).expect("small")
    }

    #[test]
    fn quantiles_are_values_that_so_many_do_not_exceed() {
        let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(quantile(&sorted, 0.5), Some(100.0));
        assert_eq!(quantile(&sorted, 0.99), Some(198.0));
        assert_eq!(quantile(&sorted, 1.0), Some(200.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn a_worker_is_out_after_the_last_window_with_a_twentieth() {
        // A tenth until 2.6, a fiftieth from then on.
        let all =
            picks(10, |nth| usize::from(if nth < 260 { nth % 10 == 0 } else { nth % 50 == 0 }));
        assert_eq!(out_after(&all, 1, 1.0, 10.0), 1.75);
        assert_eq!(out_after(&all, 1, 5.0, 10.0), 0.0);
        // One that falls back in is not out before.
        let all = picks(10, |nth| usize::from(nth % 10 == 0 && !(260..=950).contains(&nth)));
        assert_eq!(out_after(&all, 1, 1.0, 10.0), 9.0);
    }

    #[test]
    fn shares_are_of_jobs_or_bytes_in_a_time() {
        let mut all = picks(4, |nth| usize::from(nth >= 200 && nth % 4 == 0));
        all[300].bytes = 1000;
        assert_eq!(share(&all, 0.0, 2.0, |worker| worker == 1), Some(0.0));
        assert_eq!(share(&all, 2.0, 4.0, |worker| worker == 1), Some(0.25));
        let bytes = share_of_bytes(&all, 2.0, 4.0, |worker| worker == 1).expect("jobs");
        assert!((bytes - 1490.0 / 2990.0).abs() < 1e-9, "{bytes}");
        assert_eq!(share(&all, 5.0, 6.0, |_| true), None);
        assert_eq!(share_at_least_one(&all, 2.0, 4.0, |worker| worker == 1), Some(0.25));
        assert_eq!(share_at_least_one(&all, 2.0, 4.0, |worker| worker == 7), Some(0.005));
        assert_eq!(share_at_least_one(&all, 5.0, 6.0, |_| true), None);
    }

    #[test]
    fn chance_is_one_turns_are_less_and_swings_are_more() {
        let chance = oscillation(&picks(60, |nth| scattered(nth) % 12), 12, 0.0, 60.0);
        let chance = chance.expect("windows");
        assert!((0.85..1.15).contains(&chance), "{chance}");
        // Uneven shares are no swing.
        let uneven = picks(60, |nth| usize::from(scattered(nth) < 100));
        let uneven = oscillation(&uneven, 2, 0.0, 60.0).expect("windows");
        assert!((0.6..1.5).contains(&uneven), "{uneven}");
        let turns = oscillation(&picks(60, |nth| nth % 12), 12, 0.0, 60.0).expect("windows");
        assert!(turns < 0.1, "{turns}");
        // All follow whoever was said to be idle, a second long.
        let swings = oscillation(&picks(60, |nth| nth / 100 % 2), 2, 0.0, 60.0).expect("windows");
        assert!(swings > 20.0, "{swings}");
        assert_eq!(oscillation(&[], 12, 0.0, 60.0), None);
    }

    #[test]
    fn a_return_is_measured_from_the_first_job_against_the_quiet_share() {
        let script = Script { warm: 1.0, fall: 4.0, cut: 5.0, heal: 6.0, fail: 9.0, end: 10.0 };
        // A quarter while all is well; back after 0.7 s with a half.
        let all = picks(10, |nth| {
            usize::from(match nth {
                0..500 => nth % 4 == 0,
                500..670 => false,
                _ => nth % 2 == 0,
            })
        });
        let found = returned(&all, &script, |worker| worker == 1).expect("back");
        assert!((found.first_second - 2.0).abs() < 0.01, "{found:?}");
        assert!((found.first_after - 0.7).abs() < 1e-9, "{found:?}");
        assert_eq!(returned(&all, &script, |worker| worker == 7), None);
    }
}
