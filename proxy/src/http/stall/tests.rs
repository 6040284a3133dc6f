use super::{Flow, PARTS, Stall, Waits};
use std::time::Duration;

use tokio::time::Instant;
use towpath_policies::model;

/// Below 1000 bytes a second for 8 s, so that it is looked at once a second.
const POLICY: model::Stall = model::Stall { below_bytes: 1000, time: Duration::from_secs(8) };

/// The second in which a stall is seen, and whose it is, when `flow` tells how it stands at each.
fn seen(seconds: u64, flow: impl Fn(u64) -> (u64, Waits)) -> Option<(u64, Waits)> {
    let start = Instant::now();
    let mut stall = Stall::new(&POLICY, start);
    (1..=seconds).find_map(|second| {
        let now = start + Duration::from_secs(second);
        assert_eq!(stall.next(), now);
        let (bytes, waits) = flow(second);
        stall.look(now, Flow { bytes, waits }).map(|of| (second, of))
    })
}

#[test]
fn a_side_stalls_when_it_moves_less_than_the_floor_in_the_whole_time() {
    use Waits::{Client, Elsewhere, Endpoint};
    for side in [Client, Endpoint] {
        for (what, per_second, expected) in [
            ("nothing", 0, Some((9, side))),
            ("just below", 999, Some((9, side))),
            ("at the floor", 1000, None),
            ("far above", 1 << 40, None),
        ] {
            assert_eq!(seen(100, |s| (s * per_second, side)), expected, "{what} {side:?}");
        }
        let bursts = |s: u64| (s / 4 * 4000, side);
        assert_eq!(seen(100, bursts), None, "bursts that make the floor are no stall");
        let late = |s: u64| (s.min(50) * 5000, side);
        assert_eq!(seen(100, late), Some((57, side)), "one that was fast long ago");
    }
    assert_eq!(seen(100, |_| (0, Elsewhere)), None, "nobody is waited for");
}

#[test]
fn only_a_side_that_is_waited_for_all_the_time_is_to_blame() {
    use Waits::{Client, Elsewhere, Endpoint};
    let turns = |s: u64| (0, if s.is_multiple_of(2) { Client } else { Endpoint });
    assert_eq!(seen(100, turns), None);
    for between in [Client, Elsewhere] {
        let mostly = |s: u64| (0, if s.is_multiple_of(8) { between } else { Endpoint });
        assert_eq!(seen(100, mostly), None, "{between:?}");
        let since = |s: u64| (0, if s <= 5 { between } else { Endpoint });
        assert_eq!(seen(100, since), Some((6 + u64::from(PARTS), Endpoint)), "{between:?}");
    }
}

#[test]
fn another_try_begins_anew() {
    let start = Instant::now();
    let mut stall = Stall::new(&POLICY, start);
    let mut now = start;
    let mut look = |stall: &mut Stall, bytes| {
        now += Duration::from_secs(1);
        stall.look(now, Flow { bytes, waits: Waits::Endpoint })
    };
    for _ in 0..8 {
        assert_eq!(look(&mut stall, 0), None);
    }
    stall.restart();
    for _ in 0..8 {
        assert_eq!(look(&mut stall, 0), None);
    }
    assert_eq!(look(&mut stall, 0), Some(Waits::Endpoint));
}

/// Whatever comes: no stall where every window moved enough, and none where no window was waited for throughout.
#[test]
fn what_is_called_a_stall_is_one() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let start = Instant::now();
        let mut stall = Stall::new(&POLICY, start);
        let mut past: Vec<(u64, Waits)> = Vec::new();
        let mut bytes = 0;
        let mut waits = Waits::Endpoint;
        for second in 1..200 {
            bytes += rng.u64(0..1400);
            if rng.u8(0..12) == 0 {
                waits = [Waits::Endpoint, Waits::Client, Waits::Elsewhere][rng.usize(0..3)];
            }
            past.push((bytes, waits));
            let told = stall.look(start + Duration::from_secs(second), Flow { bytes, waits });
            let window = past.len().checked_sub(9).map(|from| &past[from..]);
            let expected = window.filter(|w| {
                waits != Waits::Elsewhere
                    && w.iter().all(|(_, of)| *of == waits)
                    && bytes - w[0].0 < 8000
            });
            assert_eq!(told, expected.map(|_| waits), "seed {seed}, second {second}");
        }
    }
}
