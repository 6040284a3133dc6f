use std::time::Duration;

use super::*;
use crate::reading::{Clocks, Heat, Residency, State, Throttle, Vendor};

/// A well card that tells everything.
fn card(id: &str) -> Reading {
    Reading {
        id: id.into(),
        vendor: Some(Vendor::Amd),
        busy: Some(0.9),
        vram_used_bytes: Some(50),
        vram_total_bytes: Some(100),
        junction: Heat { now: Some(80.0), critical: Some(110.0), emergency: Some(115.0) },
        ecc_uncorrected: Some(0),
        throttle: Some(Throttle::No),
        ..Reading::default()
    }
}

fn full(share: u64) -> Reading {
    Reading { vram_used_bytes: Some(share), ..card("a") }
}

fn hot(celsius: f64) -> Reading {
    Reading { junction: Heat { now: Some(celsius), ..card("a").junction }, ..card("a") }
}

fn errors(count: u64) -> Reading {
    Reading { ecc_uncorrected: Some(count), ..card("a") }
}

fn xid(code: u64) -> Reading {
    Reading { xid: Some(code), ecc_uncorrected: None, ..card("a") }
}

fn state(state: State) -> Reading {
    Reading { state, ..card("a") }
}

/// A node and its time.
#[derive(Default)]
struct Node {
    judge: Judge,
    seconds: u64,
}

impl Node {
    fn see(&mut self, cards: &[Reading]) -> Verdict {
        self.hear(Some(cards), None)
    }

    /// One second later.
    fn hear(&mut self, cards: Option<&[Reading]>, server: Option<&ServerLoad>) -> Verdict {
        self.seconds += 1;
        self.judge.observe(Duration::from_secs(self.seconds), cards, server)
    }

    /// The same for so many seconds.
    fn watch(&mut self, seconds: u64, card: &Reading) -> Verdict {
        (0..seconds).map(|_| self.see(std::slice::from_ref(card))).last().expect("a second")
    }
}

#[test]
fn one_number_makes_one_factor_and_names_it() {
    let throttled = |throttle, clocks, busy| Reading {
        throttle: Some(throttle),
        clocks,
        busy: Some(busy),
        ..hot(104.0)
    };
    let clocks = |now| Some(Clocks { now, most: 2000.0 });
    let nvidia = |celsius| Reading {
        vendor: Some(Vendor::Nvidia),
        edge: Heat { now: Some(celsius), ..Heat::default() },
        ..card("a")
    };
    for (card, factor, reason) in [
        (card("a"), 1.0, None),
        (
            Reading {
                busy: Some(1.0),
                power_watts: Some(750.0),
                power_cap_watts: Some(750.0),
                ..card("a")
            },
            1.0,
            None,
        ),
        (Reading { ecc_corrected: Some(1_000_000), ..card("a") }, 1.0, None),
        (full(90), 1.0, None),
        (full(95), 0.55, Some("VRAM 95 %")),
        (full(100), 0.1, Some("VRAM 100 %")),
        (hot(105.0), 1.0, None),
        (hot(107.0), 0.8, Some("junction at 107 °C of 110")),
        (hot(110.0), 0.5, Some("junction at 110 °C of 110")),
        (hot(114.0), 0.1, Some("junction at 114 °C of 110")),
        (hot(115.0), 0.0, Some("junction at 115 °C of 110")),
        (nvidia(85.0), 1.0, None),
        (nvidia(90.0), 0.5, Some("edge at 90 °C of 90")),
        (throttled(Throttle::Heat, None, 1.0), 0.5, Some("throttled at 104 °C")),
        (throttled(Throttle::Heat, clocks(1400.0), 1.0), 0.7, Some("throttled at 104 °C")),
        (throttled(Throttle::Heat, clocks(10.0), 1.0), 0.2, Some("throttled at 104 °C")),
        (throttled(Throttle::Heat, clocks(10.0), 0.1), 0.5, Some("throttled at 104 °C")),
        (throttled(Throttle::Power, clocks(1400.0), 1.0), 1.0, None),
        (throttled(Throttle::Unsaid, clocks(1400.0), 1.0), 1.0, None),
        (errors(7), 1.0, None),
        (xid(31), 1.0, None),
        (xid(48), 1.0, None),
        (xid(79), 0.0, Some("XID 79: needs a reset")),
        (state(State::Resetting), 0.0, Some("is being reset")),
        (state(State::Lost), 0.0, Some("is lost")),
        (state(State::Asleep), 1.0, None),
        (
            Reading { healthy: Some(false), ..self::card("a") },
            0.0,
            Some("unhealthy, says its exporter"),
        ),
        (Reading { id: "a".into(), ..Reading::default() }, 0.9, Some("nothing is known")),
    ] {
        let verdict = Node::default().see(std::slice::from_ref(&card));
        assert!(
            (verdict.factor - factor).abs() < 1e-9,
            "{verdict:?} instead of {factor} for {card:?}"
        );
        assert_eq!(verdict.reason.as_deref(), reason, "{card:?}");
    }
}

#[test]
fn counters_of_heat_tell_in_how_much_of_the_time_it_held_the_clocks_down() {
    let reading = |looks, hot| Reading {
        residency: Some(Residency { looks, hot }),
        throttle: None,
        ..card("a")
    };
    for (now, factor) in [
        ((u32::MAX - 99, 50), 1.0),    // stood still
        ((u32::MAX, 50), 1.0),         // looked, and it was cool
        ((0, 130), 0.6),               // 80 of 100, over the edge of the counter
        ((u32::MAX - 49, 52), 1.0),    // for an instant
        ((u32::MAX - 89, 5_000), 1.0), // more than it looked: started over
    ] {
        let mut node = Node::default();
        node.see(&[reading(u32::MAX - 99, 50)]);
        let verdict = node.see(&[reading(now.0, now.1)]);
        assert!((verdict.factor - factor).abs() < 0.01, "{now:?}: {verdict:?}");
    }
}

#[test]
fn a_node_is_the_mean_of_its_cards_and_names_the_worst() {
    let ids = ["0", "1", "2", "3", "4", "5", "6", "7"];
    let mut cards: Vec<Reading> = ids.map(card).into();
    let mut node = Node::default();
    assert_eq!(node.see(&cards).factor, 1.0);
    cards[2] = Reading { vram_used_bytes: Some(95), ..cards[2].clone() };
    cards[5].state = State::Lost;
    let verdict = node.see(&cards);
    assert!((verdict.factor - (6.0 + 0.55) / 8.0).abs() < 1e-9);
    assert_eq!(verdict.reason.as_deref(), Some("5: is lost"));
}

#[test]
fn a_card_that_is_gone_is_dead_at_the_second_look() {
    let (a, b) = (card("a"), card("b"));
    let mut node = Node::default();
    node.see(&[a.clone(), b.clone()]);
    assert_eq!(
        node.see(std::slice::from_ref(&a)).factor,
        1.0,
        "the exporter may have been at work"
    );
    let verdict = node.see(std::slice::from_ref(&a));
    assert_eq!((verdict.factor, verdict.reason.as_deref()), (0.5, Some("b: is gone")));
    assert_eq!(node.watch(3600, &a).factor, 0.5, "and does not come back by waiting");
    assert_eq!(node.hear(None, None).factor, 0.5, "nor by silence");
    for _ in 0..60 {
        node.see(&[a.clone(), b.clone()]);
    }
    assert_eq!(node.see(&[a, b]).factor, 1.0, "but by itself");
}

#[test]
fn it_falls_at_once_and_rises_by_steps_once_all_is_better_for_a_while() {
    let mut node = Node::default();
    assert_eq!(node.see(&[card("a")]).factor, 1.0);
    assert_eq!(node.see(&[state(State::Lost)]).factor, 0.0);
    let mut told = Vec::new();
    for _ in 0..60 {
        told.push(node.see(&[card("a")]));
    }
    assert_eq!(told[5].reason.as_deref(), Some("recovering from: is lost"));
    assert_eq!(told.last().and_then(|verdict| verdict.reason.clone()), None);
    let steps: Vec<(usize, f64)> = (1..told.len())
        .filter(|second| told[*second].factor != told[*second - 1].factor)
        .map(|second| (second, told[second].factor))
        .collect();
    assert_eq!(steps, [(10, 0.25), (20, 0.5), (30, 0.75), (40, 1.0)]);
}

#[test]
fn a_node_on_the_brink_does_not_flap() {
    let mut node = Node::default();
    node.see(&[card("a")]);
    let mut rises = 0;
    let mut told = 1.0;
    for second in 0..600 {
        // Well for 9 s, hot for 1 s.
        let reading = if second % 10 == 0 { hot(110.0) } else { card("a") };
        let factor = node.see(&[reading]).factor;
        rises += u32::from(factor > told);
        told = factor;
    }
    assert_eq!((rises, told), (0, 0.5));
}

#[test]
fn it_rises_to_the_least_that_was_seen_meanwhile() {
    let mut node = Node::default();
    node.see(&[full(100)]);
    for second in 0..10 {
        node.see(&[if second == 4 { full(99) } else { card("a") }]);
    }
    let factor = node.see(&[card("a")]).factor;
    assert!((factor - 0.19).abs() < 1e-9, "{factor}");
}

#[test]
fn new_memory_errors_drain_a_card_until_they_are_history() {
    let mut node = Node::default();
    assert_eq!(node.see(&[errors(7)]).factor, 1.0, "what was there may be of last year");
    let verdict = node.see(&[errors(8)]);
    assert_eq!((verdict.factor, verdict.reason.as_deref()), (0.0, Some("uncorrectable ECC")));
    assert_eq!(node.watch(599, &errors(8)).factor, 0.0);
    assert_eq!(node.watch(60, &errors(8)).factor, 1.0, "ten minutes without another");
    assert_eq!(node.see(&[errors(9)]).factor, 0.0);
    let asleep = Reading { state: State::Asleep, ..errors(9) };
    assert_eq!(node.watch(600, &asleep).factor, 0.0, "asleep it is not well either");
    assert_eq!(node.watch(599, &errors(9)).factor, 0.0, "the second time twice as long");
    assert_eq!(node.watch(60, &errors(9)).factor, 1.0);
}

#[test]
fn a_reset_ends_what_memory_errors_began() {
    for after in [errors(8), errors(9), errors(0)] {
        let mut node = Node::default();
        node.see(&[errors(7)]);
        node.see(&[errors(8)]);
        let verdict = node.see(&[state(State::Resetting)]);
        assert_eq!((verdict.reason.as_deref(), verdict.resets), (Some("is being reset"), 1));
        assert_eq!(node.see(&[state(State::Resetting)]).resets, 1, "one reset takes its time");
        // Errors that were not told before it are those that it was made for.
        assert_eq!(node.watch(60, &after).factor, 1.0, "{:?}", after.ecc_uncorrected);
    }
    // A counter that falls clears nobody: a part of it may be out of reach.
    let mut node = Node::default();
    node.see(&[errors(7)]);
    node.see(&[errors(8)]);
    assert_eq!(node.watch(60, &errors(0)).factor, 0.0);
}

#[test]
fn an_xid_drains_when_it_is_of_the_memory_and_new() {
    for (before, now, factor) in
        [(0, 48, 0.0), (0, 94, 0.0), (48, 48, 1.0), (0, 31, 1.0), (0, 43, 1.0), (0, 79, 0.0)]
    {
        let mut node = Node::default();
        node.see(&[xid(before)]);
        assert_eq!(node.see(&[xid(now)]).factor, factor, "{before} {now}");
    }
}

#[test]
fn a_sensor_that_vanishes_neither_attracts_nor_drains() {
    let blind = Reading { junction: Heat::default(), ..card("a") };
    for (before, at_once, after_a_minute, after_an_hour) in
        [(card("a"), 1.0, 0.9, 0.9), (hot(110.0), 0.5, 0.5, 0.9), (hot(115.0), 0.0, 0.0, 0.9)]
    {
        let mut node = Node::default();
        node.see(&[before]);
        assert_eq!(node.see(std::slice::from_ref(&blind)).factor, at_once);
        assert_eq!(node.watch(60, &blind).factor, after_a_minute);
        let verdict = node.watch(3600, &blind);
        assert_eq!(
            (verdict.factor, verdict.reason.as_deref()),
            (after_an_hour, Some("junction is silent"))
        );
    }
}

#[test]
fn limits_of_temperature_that_were_told_once_hold() {
    let hot = |critical| Reading {
        junction: Heat { now: Some(97.0), critical, emergency: None },
        ..card("a")
    };
    let mut node = Node::default();
    assert_eq!(node.see(&[hot(Some(97.0))]).factor, 0.5);
    assert_eq!(node.watch(60, &hot(None)).factor, 0.5, "and not 0.8, as by the limit of others");
}

#[test]
fn clocks_that_are_silent_are_not_half_of_what_they_were() {
    let slow = |clocks| Reading { throttle: Some(Throttle::Heat), clocks, ..card("a") };
    let mut node = Node::default();
    assert_eq!(node.see(&[slow(Some(Clocks { now: 500.0, most: 2000.0 }))]).factor, 0.25);
    assert_eq!(node.watch(60, &slow(None)).factor, 0.25);
}

#[test]
fn a_source_that_is_silent_says_nothing_of_its_cards() {
    let mut node = Node::default();
    node.see(&[card("a"), card("b")]);
    assert_eq!(node.hear(None, None).factor, 1.0);
    let verdict = (0..100).map(|_| node.hear(None, None)).last().expect("a verdict");
    assert_eq!(verdict.factor, 0.9);
    assert_eq!(verdict.reason.as_deref(), Some("a: the GPU's source is silent"));
    let mut node = Node::default();
    let verdict = node.hear(None, None);
    assert_eq!((verdict.factor, verdict.reason.as_deref()), (0.9, Some("no GPU is seen")));
    assert_eq!(Node::default().see(&[]).factor, 0.9);
}

#[test]
fn silence_does_not_end_a_hold() {
    let mut node = Node::default();
    node.see(&[errors(0)]);
    // A hold of twenty minutes, longer than anything is remembered.
    node.see(&[errors(1)]);
    node.watch(700, &errors(1));
    node.see(&[errors(2)]);
    let verdict = (0..1000).map(|_| node.hear(None, None)).last().expect("a verdict");
    assert_eq!((verdict.factor, verdict.reason.as_deref()), (0.0, Some("uncorrectable ECC")));
}

#[test]
fn a_model_server_alone_can_speak_for_a_node() {
    let load = |waiting, running, kv_cache| ServerLoad {
        waiting,
        running,
        kv_cache,
        ..ServerLoad::default()
    };
    for (load, factor, reason) in [
        (load(Some(0.0), Some(0.0), Some(0.0)), 1.0, None),
        (load(Some(8.0), Some(1.0), None), 1.0, None),
        (load(Some(24.0), Some(24.0), Some(0.9)), 1.0, None),
        (load(Some(72.0), Some(24.0), None), 0.5, Some("72 requests wait")),
        (load(Some(1e6), Some(24.0), None), 0.3, Some("1000000 requests wait")),
        (load(Some(24.0), None, None), 0.5, Some("24 requests wait")),
        (load(None, None, Some(0.95)), 0.65, Some("KV cache 95 %")),
        (load(None, None, Some(1.0)), 0.3, Some("KV cache 100 %")),
        (load(Some(f64::NAN), Some(-1.0), Some(f64::INFINITY)), 0.9, Some("no GPU is seen")),
    ] {
        let verdict = Node::default().hear(None, Some(&load));
        assert!((verdict.factor - factor).abs() < 1e-9, "{load:?}: {verdict:?}");
        assert_eq!(verdict.reason.as_deref(), reason, "{load:?}");
    }
}

#[test]
fn a_clock_that_jumps_ends_no_hold_and_lets_nothing_rise() {
    let second = Duration::from_secs(1);
    for jump in
        [Duration::from_secs(1 << 40), Duration::MAX, Duration::ZERO, Duration::from_millis(1)]
    {
        let mut judge = Judge::default();
        judge.observe(second * 1000, Some(&[errors(0)]), None);
        judge.observe(second * 1001, Some(&[errors(1)]), None);
        assert_eq!(judge.observe(jump, Some(&[errors(1)]), None).factor, 0.0, "{jump:?}");
        for second in 1..120 {
            let after = jump.saturating_add(Duration::from_secs(second));
            assert_eq!(judge.observe(after, Some(&[errors(1)]), None).factor, 0.0, "{jump:?}");
        }
    }
    // Back and forth between two times, it goes on as if it stood still or a little faster, and never at once.
    let mut judge = Judge::default();
    judge.observe(second, Some(&[state(State::Lost)]), None);
    let factor = judge.observe(Duration::MAX, Some(&[card("a")]), None).factor;
    assert_eq!(factor, 0.0);
    assert!(judge.observe(Duration::ZERO, Some(&[card("a")]), None).factor <= 0.25);
}

#[test]
fn cards_without_end_are_bounded() {
    let cards: Vec<Reading> = (0..1000).map(|number| card(&number.to_string())).collect();
    let mut node = Node::default();
    for some in cards.chunks(10) {
        node.see(some);
        node.see(&cards[..some.len() / 2]);
    }
    assert!(node.judge.cards.len() <= MAX_CARDS);
    node.see(&cards);
    assert_eq!(node.judge.cards.len(), MAX_CARDS);
}

#[test]
fn cards_that_are_called_by_another_name_are_not_gone() {
    let mut node = Node::default();
    node.see(&[card("0"), state(State::Resetting)]);
    node.see(&[card("0"), card("a")]);
    for _ in 0..60 {
        node.see(&[card("GPU-1"), card("GPU-2")]);
    }
    let verdict = node.see(&[card("GPU-1"), card("GPU-2")]);
    assert_eq!((verdict.factor, verdict.resets), (1.0, 1));
}
