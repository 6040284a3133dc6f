use towpath_policies::model::{Bandwidth, Class, ClassWeights};

use super::{Ask, SECOND, Shares};

const MS: u64 = 1_000_000;

fn shares(bytes_per_second: u64) -> Shares {
    Shares::new(&Bandwidth { bytes_per_second, weights: ClassWeights::default() }, 0)
}

/// A transfer of the simulation.
struct Transfer {
    class: Class,
    tenant: u64,
    part: u64,
    got: u64,
    /// It takes so long from a grant to its next ask.
    pause: u64,
    asks_at: Option<u64>,
}

/// Runs to `end`; timers are late by up to a millisecond, as the runtime's are.
fn run(shares: &mut Shares, transfers: &mut [Transfer], end: u64, random: &mut fastrand::Rng) {
    let mut now = shares.last;
    while now < end {
        for (id, transfer) in (0u64..).zip(transfers.iter_mut()) {
            if transfer.asks_at.is_some_and(|at| at <= now) {
                transfer.asks_at = None;
                shares.ask(transfer.class, transfer.tenant, Ask { id, bytes: transfer.part });
            }
        }
        while let Some(ask) = shares.grant(now) {
            let transfer = &mut transfers[usize::try_from(ask.id).unwrap()];
            transfer.got += ask.bytes;
            transfer.asks_at = Some(now + transfer.pause);
            if transfer.pause == 0 {
                transfer.asks_at = None;
                shares.ask(transfer.class, transfer.tenant, ask);
            }
        }
        let asks = transfers.iter().filter_map(|t| t.asks_at).min();
        let grant = shares.next_at().map(|at| at + random.u64(..MS));
        now = asks.into_iter().chain(grant).min().unwrap_or(end).max(now + 1);
    }
}

fn transfer(class: Class, tenant: u64, part: u64) -> Transfer {
    Transfer { class, tenant, part, got: 0, pause: 0, asks_at: Some(0) }
}

fn got(transfers: &[Transfer], of: impl Fn(&Transfer) -> bool) -> f64 {
    transfers.iter().filter(|t| of(t)).map(|t| t.got).sum::<u64>() as f64
}

#[test]
fn classes_get_shares_by_weight_and_the_whole_rate_is_used() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let rate = [1 << 20, 10 << 20, 125_000_000, 1_250_000_000][seed as usize % 4];
        let mut shares = shares(rate);
        let mut transfers = Vec::new();
        for class in Class::ALL {
            for tenant in 0..1 + random.u64(..5) {
                let part = Shares::most(rate);
                transfers.extend((0..1 + random.u64(..5)).map(|_| transfer(class, tenant, part)));
            }
        }
        let end = 60 * SECOND;
        run(&mut shares, &mut transfers, end, &mut random);
        let all = got(&transfers, |_| true);
        let expected = rate as f64 * 60.0;
        assert!((all - expected).abs() < expected * 0.02, "seed {seed}: {all} of {expected}");
        for (class, weight) in Class::ALL.into_iter().zip([16.0, 4.0, 1.0]) {
            let share = got(&transfers, |t| t.class == class) / all;
            let fair = weight / 21.0;
            assert!(
                (share - fair).abs() < fair * 0.05,
                "seed {seed}, {class:?}: {share} of {fair}"
            );
        }
    }
}

#[test]
fn within_a_class_tenants_share_equally_and_within_a_tenant_transfers() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut shares = shares(100 << 20);
        // One tenant of one transfer, one of ten.
        let mut transfers: Vec<_> = (0..11)
            .map(|n| transfer(Class::Bulk, u64::from(n > 0), Shares::most(100 << 20)))
            .collect();
        run(&mut shares, &mut transfers, 20 * SECOND, &mut random);
        let (one, ten) = (got(&transfers, |t| t.tenant == 0), got(&transfers, |t| t.tenant == 1));
        assert!((one / ten - 1.0).abs() < 0.05, "seed {seed}: {one} and {ten}");
        for t in &transfers[1..] {
            assert!((t.got as f64 / ten * 10.0 - 1.0).abs() < 0.05, "seed {seed}: {}", t.got);
        }
    }
}

#[test]
fn what_a_class_does_not_use_is_there_for_others() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut shares = shares(10 << 20);
    let mut slow = transfer(Class::Interactive, 0, 16 << 10);
    slow.pause = 100 * MS;
    let mut transfers = [slow, transfer(Class::Background, 0, 16 << 10)];
    run(&mut shares, &mut transfers, 20 * SECOND, &mut random);
    let slow = transfers[0].got as f64 / 20.0;
    assert!((slow - 160.0 * 1024.0).abs() < 16_000.0, "it waits for nobody: {slow}");
    let rest = transfers[1].got as f64 / 20.0;
    assert!(rest > (9 << 20) as f64, "{rest}");
}

#[test]
fn nobody_starves_and_whoever_rested_gets_no_arrears() {
    let mut shares = shares(1 << 20);
    let mut random = fastrand::Rng::with_seed(1);
    let mut transfers = vec![transfer(Class::Background, 0, 16 << 10)];
    transfers.extend((0..50).map(|n| transfer(Class::Interactive, n, 16 << 10)));
    run(&mut shares, &mut transfers, 10 * SECOND, &mut random);
    let background = transfers[0].got;
    assert!(background > (1 << 20) * 10 / 17 * 9 / 10, "a seventeenth, however many: {background}");
    // Bulk comes late: its share begins now.
    let before = got(&transfers, |_| true);
    transfers.push(Transfer { asks_at: Some(10 * SECOND), ..transfer(Class::Bulk, 0, 16 << 10) });
    run(&mut shares, &mut transfers, 11 * SECOND, &mut random);
    let (bulk, all) =
        (got(&transfers, |t| t.class == Class::Bulk), got(&transfers, |_| true) - before);
    assert!(bulk / all < 4.0 / 21.0 * 1.25, "{bulk} of {all}");
}

#[test]
fn who_leaves_takes_nothing_along() {
    let mut shares = shares(1 << 20);
    shares.owe(10 << 20);
    for id in 0..3 {
        shares.ask(Class::Bulk, id % 2, Ask { id, bytes: 1000 });
    }
    shares.withdraw(Class::Bulk, 0, 0);
    shares.withdraw(Class::Bulk, 1, 1);
    shares.withdraw(Class::Bulk, 5, 9);
    assert_eq!(shares.grant(0), None, "what is owed comes first");
    let at = shares.next_at().unwrap();
    assert!(at > 9 * SECOND && at < 11 * SECOND, "{at}");
    assert_eq!(shares.grant(at - MS), None);
    assert_eq!(shares.grant(at).map(|ask| ask.id), Some(2));
    assert_eq!(shares.grant(100 * SECOND), None);
    assert_eq!(shares.next_at(), None);
}
