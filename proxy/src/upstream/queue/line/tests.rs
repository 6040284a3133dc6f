use towpath_policies::model::{Class, ClassWeights, Queue as Terms};

use super::{Fit, Full, Id, Line, Want, window};

const MS: u64 = 1000;
const SECOND: u64 = 1_000_000;

fn terms() -> Terms {
    Terms { max_requests: 4, max_bytes: 1000, ..Terms::default() }
}

fn want(class: Class) -> Want {
    Want { class, tenant: 0, bytes: 0, length_us: SECOND, start_by_us: 60 * SECOND, again: false }
}

/// Everybody that waits, in order of their turns.
fn turns(line: &mut Line, terms: &Terms) -> Vec<Id> {
    std::iter::from_fn(|| line.next(0, terms, |_, _| Fit::Yes(())).map(|(id, ..)| id)).collect()
}

fn wide() -> Terms {
    Terms { max_requests: 10_000, max_bytes: u64::MAX, ..Terms::default() }
}

#[test]
fn within_a_tenant_the_nearest_deadline_goes_first_and_then_the_shortest() {
    let of = |start_by: u64, length: u64, again| Want {
        length_us: length * SECOND,
        start_by_us: start_by * SECOND,
        again,
        ..want(Class::Bulk)
    };
    for (name, wants, expected) in [
        ("deadlines apart", vec![of(60, 1, false), of(20, 9, false)], vec![1, 0]),
        ("deadlines together", vec![of(60, 9, false), of(61, 1, false)], vec![1, 0]),
        ("equals, as they came", vec![of(60, 1, false), of(60, 1, false)], vec![0, 1]),
        ("one that had a slot", vec![of(5, 1, false), of(60, 9, true)], vec![1, 0]),
    ] {
        let mut line = Line::default();
        for want in wants {
            line.join(want, 0, &wide()).unwrap();
        }
        assert_eq!(turns(&mut line, &wide()), expected, "{name}");
    }
}

#[test]
fn a_newcomer_never_overtakes_one_that_waited_a_quarter_of_its_time() {
    let mut line = Line::default();
    let long = Want { length_us: 3600 * SECOND, ..want(Class::Bulk) };
    let long = line.join(long, 0, &wide()).unwrap().id;
    for (now, overtakes) in [(1, true), (16, false), (30, false)] {
        let short = Want { length_us: MS, start_by_us: (60 + now) * SECOND, ..want(Class::Bulk) };
        let short = line.join(short, now * SECOND, &wide()).unwrap().id;
        let order: Vec<_> = line.in_order().collect();
        let (short, long) =
            (order.iter().position(|id| *id == short), order.iter().position(|id| *id == long));
        assert_eq!(short < long, overtakes, "after {now} s");
    }
}

#[test]
fn times_to_begin_by_are_rounded_down_by_less_than_a_quarter_of_the_time_given() {
    for (start_by, now) in [(60 * SECOND, 0), (100 * SECOND, 99 * SECOND), (5, 4), (7, 7), (7, 9)] {
        let rounded = window(start_by, now);
        let given = start_by.saturating_sub(now);
        assert!(rounded <= start_by && start_by - rounded <= given / 4 + 1, "{start_by} {now}");
    }
}

#[test]
fn classes_share_by_weight_and_the_better_goes_first_on_ties() {
    let terms =
        Terms { weights: ClassWeights { interactive: 4, bulk: 2, background: 1 }, ..wide() };
    let mut line = Line::default();
    for _ in 0..70 {
        for class in [Class::Background, Class::Bulk, Class::Interactive] {
            line.join(want(class), 0, &terms).unwrap();
        }
    }
    let mut served = [0; 3];
    let mut first = Vec::new();
    for _ in 0..70 {
        let (_, want, ()) = line.next(0, &terms, |_, _| Fit::Yes(())).unwrap();
        served[want.class as usize] += 1;
        first.push(want.class);
    }
    assert_eq!(served, [40, 20, 10]);
    assert_eq!(first[..3], [Class::Interactive, Class::Bulk, Class::Background]);
}

#[test]
fn who_had_nothing_to_do_gets_no_credit_for_it() {
    let terms = wide();
    let mut line = Line::default();
    for _ in 0..100 {
        line.join(want(Class::Background), 0, &terms).unwrap();
        line.next(0, &terms, |_, _| Fit::Yes(())).unwrap();
    }
    for _ in 0..40 {
        line.join(want(Class::Background), 0, &terms).unwrap();
        line.join(want(Class::Interactive), 0, &terms).unwrap();
    }
    let order: Vec<_> =
        (0..34).map(|_| line.next(0, &terms, |_, _| Fit::Yes(())).unwrap().1.class).collect();
    let background = order.iter().filter(|class| **class == Class::Background).count();
    assert!((1..=2).contains(&background), "one in seventeen: {order:?}");
}

#[test]
fn tenants_share_by_the_work_they_are_given_and_not_by_its_count() {
    let terms = wide();
    let mut line = Line::default();
    for _ in 0..100 {
        line.join(Want { tenant: 1, length_us: 10 * SECOND, ..want(Class::Bulk) }, 0, &terms)
            .unwrap();
        line.join(Want { tenant: 2, length_us: SECOND, ..want(Class::Bulk) }, 0, &terms).unwrap();
    }
    let mut work = [0, 0];
    for _ in 0..55 {
        let (_, want, ()) = line.next(0, &terms, |_, _| Fit::Yes(())).unwrap();
        work[usize::try_from(want.tenant - 1).unwrap()] += want.length_us / SECOND;
    }
    assert!(work[0].abs_diff(work[1]) <= 10, "{work:?}");
}

/// A tenant whose requests take ten times what was expected is charged what they took.
#[test]
fn what_was_charged_is_set_right_by_what_it_took() {
    let terms = wide();
    let mut line = Line::default();
    let mut work = [0, 0];
    for now in 0..400 {
        for tenant in [1, 2] {
            line.join(Want { tenant, ..want(Class::Bulk) }, 0, &terms).unwrap();
        }
        let (_, want, ()) = line.next(0, &terms, |_, _| Fit::Yes(())).unwrap();
        let took = if want.tenant == 1 { 10 } else { 1 };
        work[usize::try_from(want.tenant - 1).unwrap()] += took;
        line.settle(&want, took * SECOND, now * SECOND, &terms);
    }
    assert!(work[0].abs_diff(work[1]) <= 20, "{work:?}");
}

#[test]
fn a_full_line_makes_room_for_a_better_class_and_refuses_equals() {
    use Class::{Background, Bulk, Interactive};
    for (name, waiting, newcomer, expected) in [
        ("equals", [Bulk; 4], want(Bulk), Err(Full)),
        ("a worse one", [Bulk; 4], want(Background), Err(Full)),
        ("a better one", [Bulk; 4], want(Interactive), Ok(vec![3])),
        ("the lowest goes", [Background, Bulk, Background, Bulk], want(Interactive), Ok(vec![2])),
        ("the lowest of all", [Bulk, Bulk, Interactive, Bulk], want(Bulk), Err(Full)),
        ("again", [Bulk; 4], Want { again: true, ..want(Bulk) }, Ok(vec![3])),
        ("again among better", [Interactive; 4], Want { again: true, ..want(Bulk) }, Err(Full)),
        ("of another tenant", [Bulk; 4], Want { tenant: 7, ..want(Bulk) }, Ok(vec![3])),
        ("half of the bytes", [Bulk; 4], Want { bytes: 500, ..want(Interactive) }, Ok(vec![3])),
        ("more than half", [Bulk; 4], Want { bytes: 501, ..want(Interactive) }, Err(Full)),
        ("all there are", [Bulk; 4], Want { bytes: u64::MAX, ..want(Interactive) }, Err(Full)),
        ("more again", [Bulk; 4], Want { bytes: 501, again: true, ..want(Bulk) }, Err(Full)),
        ("more of another", [Bulk; 4], Want { bytes: 501, tenant: 7, ..want(Bulk) }, Err(Full)),
    ] {
        let mut line = Line::default();
        for class in waiting {
            line.join(Want { bytes: 100, ..want(class) }, 0, &terms()).unwrap();
        }
        let came = line.join(newcomer, 0, &terms()).map(|joined| joined.displaced);
        assert_eq!(came, expected, "{name}");
        let left = came.map_or(4, |displaced| 5 - displaced.len());
        assert_eq!(line.length(), left, "{name}");
    }
}

#[test]
fn bytes_bound_the_line_too_and_no_single_one_fills_it_by_its_word() {
    let mut line = Line::default();
    let of = |bytes| Want { bytes, ..want(Class::Bulk) };
    let huge = line.join(of(u64::MAX), 0, &terms()).unwrap().id;
    assert_eq!(line.of_class(Class::Bulk), (1, 500));
    line.join(of(400), 0, &terms()).unwrap();
    assert_eq!(line.join(of(101), 0, &terms()), Err(Full));
    line.leave(huge).unwrap();
    assert_eq!(line.of_class(Class::Bulk), (1, 400));
    // And so does somebody who is taken out under another limit.
    let huge = line.join(of(600), 0, &terms()).unwrap().id;
    line.join(of(1), 0, &Terms { max_bytes: 5000, ..terms() }).unwrap();
    line.leave(huge).unwrap();
    assert_eq!(line.of_class(Class::Bulk), (2, 401));
}

/// Each request of a tenant that was never seen before, as many as are served, and one that is known.
#[test]
fn tenants_that_are_always_new_leave_a_known_one_its_share() {
    let mut line = Line::default();
    let terms = wide();
    let of = |tenant| Want { tenant, ..want(Class::Bulk) };
    for _ in 0..100 {
        line.join(of(1), 0, &terms).unwrap();
    }
    let mut known = 0;
    for now in 1..=90 {
        line.join(of(1000 + now), 0, &terms).unwrap();
        let (_, served, ()) = line.next(0, &terms, |_, _| Fit::Yes(())).unwrap();
        line.settle(&served, SECOND, now * SECOND, &terms);
        known += usize::from(served.tenant == 1);
    }
    // Each time it is served one more of the others waits: its share is that of one of them.
    assert!((9..=30).contains(&known), "{known} of 90");
}

/// Where newcomers begin moves on with the work that was done, not with what was expected of it.
#[test]
fn a_newcomer_is_served_no_later_than_its_equals_whatever_was_predicted() {
    let mut line = Line::default();
    let terms = wide();
    for tenant in 0..4 {
        for _ in 0..200 {
            let long = Want { tenant, length_us: 3600 * SECOND, ..want(Class::Bulk) };
            line.join(long, 0, &terms).unwrap();
        }
    }
    for now in 1..=100 {
        let (_, served, ()) = line.next(0, &terms, |_, _| Fit::Yes(())).unwrap();
        line.settle(&served, SECOND, now * SECOND, &terms);
    }
    line.join(Want { tenant: 9, ..want(Class::Bulk) }, 0, &terms).unwrap();
    let order: Vec<_> =
        (0..5).map(|_| line.next(0, &terms, |_, _| Fit::Yes(())).unwrap().1.tenant).collect();
    assert!(order.contains(&9), "{order:?}");
}

#[test]
fn those_whose_time_has_passed_are_passed_over_and_so_are_those_who_do_not_fit() {
    let mut line = Line::default();
    for start_by in [5, 10, 20] {
        let late = Want { start_by_us: start_by * SECOND, ..want(Class::Bulk) };
        line.join(late, 0, &terms()).unwrap();
    }
    let asked = std::cell::RefCell::new(Vec::new());
    let took = line.next(6 * SECOND, &terms(), |id, _| {
        asked.borrow_mut().push(id);
        if id == 1 { Fit::No } else { Fit::Yes(()) }
    });
    assert_eq!((took.map(|(id, ..)| id), asked.into_inner()), (Some(2), vec![1, 2]));
    assert!(line.next::<()>(0, &terms(), |_, _| Fit::Nobody).is_none());
    assert_eq!(line.length(), 2);
}

#[test]
fn advice_follows_the_rate_at_which_slots_come_free() {
    let mut line = Line::default();
    let terms = wide();
    assert_eq!(line.advice_us(0), SECOND, "at least a second");
    for _ in 0..10 {
        line.join(want(Class::Bulk), 0, &terms).unwrap();
    }
    for n in 1..=20 {
        line.settle(&want(Class::Bulk), SECOND, n * 2 * SECOND, &terms);
    }
    let advice = line.advice_us(40 * SECOND);
    assert!((20 * SECOND..=24 * SECOND).contains(&advice), "eleven of two seconds: {advice}");
    assert_eq!(line.advice_us(90 * SECOND), 300 * SECOND, "nothing moves, and no longer than that");
    turns(&mut line, &terms);
    line.join(want(Class::Bulk), 10_000 * SECOND, &terms).unwrap();
    assert!(line.advice_us(10_000 * SECOND) <= 5 * SECOND, "idle time is not waited for");
}

#[test]
fn tenants_that_left_are_forgotten_whether_they_were_served_or_not() {
    for served in [true, false] {
        let mut line = Line::default();
        let terms = wide();
        for tenant in 0..10_000 {
            let joined = line.join(Want { tenant, ..want(Class::Bulk) }, 0, &terms).unwrap();
            match served {
                true => drop(line.next(0, &terms, |_, _| Fit::Yes(())).unwrap()),
                false => drop(line.leave(joined.id).unwrap()),
            }
        }
        assert!(line.ranks[1].tenants.len() <= super::IDLE_TENANTS + 1, "{served}");
        assert!(line.ranks[1].ready.is_empty() && line.waiting.is_empty());
    }
}
