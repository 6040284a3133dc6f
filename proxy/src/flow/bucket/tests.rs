use towpath_policies::model::Rate;

use super::Bucket;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn bucket(per_second: u64, burst: u64) -> Bucket {
    Bucket::new(Rate { per_second, burst })
}

#[test]
fn a_burst_passes_at_once_and_then_the_rate() {
    for (per_second, burst) in [(1, 1), (3, 3), (10, 5), (1000, 1), (7, 100), (1_000_000, 3)] {
        let bucket = bucket(per_second, burst);
        for _ in 0..burst {
            bucket.take(1, SECOND).unwrap_or_else(|_| panic!("{per_second} {burst}"));
        }
        let wait = bucket.take(1, SECOND).unwrap_err();
        let expected = SECOND.div_ceil(per_second);
        assert!(wait.abs_diff(expected) <= burst + 1, "{per_second}, {burst}: {wait}");
        assert_eq!(bucket.take(1, SECOND + wait), Ok(()), "after the wait it passes");
        assert!(bucket.take(1, SECOND + wait).is_err());
    }
}

#[test]
fn a_pause_saves_no_more_than_the_burst() {
    let bucket = bucket(100, 10);
    let passed = (0..50).filter(|_| bucket.take(1, 1000 * SECOND).is_ok()).count();
    assert_eq!(passed, 10);
}

#[test]
fn debt_is_carried_and_paid_before_anything_else_passes() {
    let bucket = bucket(1000, 100);
    let reserve = |n| bucket.reserve(n, 0).div_ceil(MS);
    assert_eq!(reserve(100), 0, "the burst is there");
    assert_eq!(reserve(500), 500);
    assert_eq!(reserve(1), 501, "behind those before it");
    bucket.give_back(400);
    assert_eq!(reserve(1), 102, "what was not used is there again");
    assert_eq!(bucket.take(50, 100 * MS).map_err(|wait| wait.div_ceil(MS)), Err(52));
}

#[test]
fn absurd_numbers_do_no_harm() {
    for (per_second, burst, n) in
        [(1, u64::MAX, u64::MAX), (u64::MAX, 1, 1), (1 << 53, 1 << 53, 1 << 53), (1, 1, u64::MAX)]
    {
        let bucket = bucket(per_second, burst);
        let now = 40 * 365 * 24 * 3600 * SECOND / 100;
        for _ in 0..4 {
            let _ = bucket.take(n, now);
            assert!(bucket.reserve(n, now) >= now);
            bucket.give_back(n);
        }
    }
}

/// Anybody takes anything at any time: no window ever sees more than its share.
#[test]
fn no_window_sees_more_than_the_rate_and_a_burst() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let per_second = 1 + (random.u64(..) >> (30 + seed % 32));
        let burst = 1 + (random.u64(..) >> (40 + seed % 23));
        let bucket = bucket(per_second, burst);
        let (mut now, mut passed): (u64, Vec<(u64, u64)>) = (random.u64(..SECOND), Vec::new());
        for _ in 0..300 {
            let longest = 2 * SECOND / random.u64(1..1000);
            now += random.u64(..longest);
            let n = random.u64(1..=burst);
            if random.bool() {
                if bucket.take(n, now).is_ok() {
                    passed.push((now, n));
                }
            } else {
                let at = bucket.reserve(n, now);
                let used = random.u64(..=n);
                bucket.give_back(n - used);
                passed.push((at, used));
                now = now.max(at);
            }
        }
        for (index, (from, _)) in passed.iter().enumerate() {
            let mut sum = 0;
            for (at, n) in &passed[index..] {
                sum += n;
                let share = (*at - *from) as f64 * per_second as f64 / SECOND as f64;
                let most = share + burst as f64 * 1.001 + 1.0;
                assert!(sum as f64 <= most, "seed {seed}: {sum} > {most}");
            }
        }
    }
}

#[test]
fn those_who_take_equal_parts_in_turn_pass_at_an_equal_pace_and_use_all_of_the_rate() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let bucket = bucket(1_000_000, 64_000);
        let mut next = vec![0_u64; 2 + random.usize(..20)];
        let mut passed = vec![0_u64; next.len()];
        let end = 20 * SECOND;
        loop {
            let who = (0..next.len()).min_by_key(|at| next[*at]).unwrap();
            if next[who] >= end {
                break;
            }
            // A timer that is late by a while: the rate is made up for.
            let late = random.u64(..2 * MS);
            next[who] = bucket.reserve(16_000, next[who] + late);
            passed[who] += 16_000;
        }
        let total: u64 = passed.iter().sum();
        assert!((19_900_000..=20_500_000).contains(&total), "seed {seed}: {total}");
        let fair = total / passed.len() as u64;
        assert!(passed.iter().all(|n| n.abs_diff(fair) * 20 <= fair.max(320_000)), "{passed:?}");
    }
}
