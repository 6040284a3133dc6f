use super::*;
use crate::etl::{digest::Digest, q1::decimal};

const TINY: Cargo = Cargo { scale: 0.001, seed: 7 };

/// Parses text as a worker does.
fn tally(table: Table, text: &str, tally: &mut Tally, keys: &mut Keys) {
    for line in text.lines().filter(|line| !line.trim_ascii().is_empty()) {
        let row = Row::parse(table, line).unwrap();
        assert!(keys.insert(row.key()), "{line}");
        tally.add(&row);
    }
}

#[test]
fn all_parcels_and_uploads_together_are_the_source_and_cleaning_restores_it() {
    let truth = TINY.truth();
    let mut keys = Keys::default();
    let (mut items, mut orders) = (Tally::default(), Tally::default());
    let mut dirty = 0;
    TINY.small(|parcel| {
        let text = std::str::from_utf8(&parcel.text).unwrap();
        let whole = if parcel.table == Table::LineItem { &mut items } else { &mut orders };
        dirty += text.lines().filter(|line| line.contains("  ") || line.contains('\t')).count();
        let before = whole.receipt();
        tally(parcel.table, text, whole, &mut keys);
        let mut sum: Digest = before.digest;
        sum += parcel.expected.digest;
        assert_eq!(whole.receipt().digest, sum, "{}", parcel.id);
        assert_eq!(whole.receipt().rows, before.rows + parcel.expected.rows);
        true
    });
    assert!(dirty > 50, "the feed is sloppy: {dirty}");
    for index in 0..UPLOADS {
        let mut text = Vec::new();
        let expected = TINY.large(index, |piece| {
            text.extend_from_slice(&piece);
            true
        });
        let before = items.receipt().rows;
        tally(Table::LineItem, std::str::from_utf8(&text).unwrap(), &mut items, &mut keys);
        assert_eq!(items.receipt().rows - before, expected.rows);
    }
    assert_eq!(items.receipt(), truth.line_items);
    assert_eq!(orders.receipt(), truth.orders);
    assert_eq!((keys.missing_in(&truth.keys), truth.keys.missing_in(&keys)), (0, 0));
}

#[test]
fn a_seed_gives_the_same_text_and_another_seed_another() {
    let text = |seed| {
        let mut all = Vec::new();
        Cargo { seed, ..TINY }.small(|parcel| {
            all.extend_from_slice(&parcel.text);
            true
        });
        all
    };
    assert!(text(1) == text(1));
    assert!(text(1) != text(2));
}

#[test]
fn nothing_more_is_made_once_nobody_wants_it() {
    let mut made = 0;
    TINY.small(|_| {
        made += 1;
        made < 3
    });
    assert_eq!(made, 3);
}

#[test]
fn keys_tell_doubles_and_strangers() {
    let (mut one, mut two) = (Keys::default(), Keys::default());
    assert!(one.insert((5, 0)) && one.insert((5, 7)) && one.insert((9, 1)));
    assert!(!one.insert((5, 7)), "twice");
    for stranger in [(-1, 1), (1, 8), (1, -1), (i64::MAX, 1)] {
        assert!(!one.insert(stranger), "{stranger:?}");
    }
    assert!(two.insert((5, 7)));
    assert_eq!((one.missing_in(&two), two.missing_in(&one)), (2, 0));
}

/// The answer that other TPC-H programs give at scale 0.01.
#[test]
fn q1_of_the_source_is_the_known_answer() {
    let truth = Cargo { scale: 0.01, seed: 0 }.truth();
    let lines: Vec<String> = truth
        .line_items
        .q1
        .lines()
        .map(|(flag, status, sums)| {
            format!(
                "{flag} {status} {} {} {} {} {} {} {} {}",
                decimal(sums.quantity, 2),
                decimal(sums.base_price, 2),
                decimal(sums.discounted_price, 4),
                decimal(sums.charge, 6),
                decimal(sums.average(sums.quantity), 2),
                decimal(sums.average(sums.base_price), 2),
                decimal(sums.average(sums.discount), 2),
                sums.count
            )
        })
        .collect();
    assert_eq!(
        lines,
        [
            "A F 380456.00 532348211.65 505822441.4861 526165934.000839 25.58 35785.71 0.05 14876",
            "N F 8971.00 12384801.37 11798257.2080 12282485.056933 25.78 35588.51 0.05 348",
            "N O 742802.00 1041502841.45 989737518.6346 1029418531.523350 25.45 35691.13 0.05 29181",
            "R F 381449.00 534594445.35 507996454.4067 528524219.358903 25.60 35874.01 0.05 14902",
        ]
    );
}
