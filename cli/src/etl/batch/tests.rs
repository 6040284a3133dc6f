use std::sync::Barrier;

use super::*;
use crate::etl::store;

const ORDERS: &str = "1|10|F|1.00|1995-01-01|1-URGENT|Clerk#000000001|0|first\n\
    \n\
    2|11| o|2.50|1995/01/02|2-high|Clerk#000000002|0|  second |\r\n\
    3|12|P|1,003.00|1995-01-03|5-LOW|Clerk#000000003|0|third";

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (folder, store)
}

fn load(store: &Store, id: &str, text: &str) -> Result<Delivery, BatchError> {
    let mut batch = Batch::new(store, Table::Orders);
    batch.push(text.as_bytes())?;
    batch.finish(id)
}

#[test]
fn pieces_of_any_size_give_the_same_batch() {
    let (_folder, store) = store();
    let whole = load(&store, "whole", ORDERS).unwrap();
    assert_eq!(whole.receipt.rows, 3);
    for size in [1, 2, 7, 64] {
        let mut batch = Batch::new(&store, Table::Orders);
        for piece in ORDERS.as_bytes().chunks(size) {
            batch.push(piece).unwrap();
        }
        assert_eq!(batch.finish(&format!("by-{size}")).unwrap(), whole);
    }
}

#[test]
fn what_is_read_back_is_what_was_cleaned() {
    let (_folder, store) = store();
    let delivery = load(&store, "b", ORDERS).unwrap();
    let mut tally = Tally::default();
    let mut comments = Vec::new();
    let path = store.path(Table::Orders, "b").unwrap();
    let receipt = store::read(&path, Table::Orders, |row| {
        tally.add(row);
        if let Row::Order(order) = row {
            comments.push((order.comment.to_owned(), order.status.to_owned(), order.total_price));
        }
    })
    .unwrap();
    assert_eq!(tally.receipt(), delivery.receipt);
    assert_eq!(receipt, delivery.receipt);
    assert_eq!(
        comments,
        [("first", "F", 100), ("second", "O", 250), ("third", "P", 100_300)]
            .map(|(comment, status, price)| (comment.to_owned(), status.to_owned(), price))
    );
}

#[test]
fn of_many_that_bring_the_same_batch_one_loads_it() {
    let (_folder, store) = store();
    let start = Barrier::new(8);
    let outcomes: Vec<Delivery> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    load(&store, "raced", ORDERS).unwrap()
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|delivery| !delivery.already).count(), 1);
    assert!(outcomes.iter().all(|delivery| delivery.receipt == outcomes[0].receipt));
    assert_eq!(store.files(Table::Orders).unwrap().len(), 1);
}

#[test]
fn an_id_is_not_taken_twice_for_different_rows() {
    let (_folder, store) = store();
    load(&store, "b", ORDERS).unwrap();
    let other = ORDERS.replace("third", "other");
    assert!(matches!(load(&store, "b", &other), Err(BatchError::Conflict { before: 3, .. })));
}

#[test]
fn a_batch_that_is_dropped_leaves_nothing() {
    let (folder, store) = store();
    let mut batch = Batch::new(&store, Table::Orders);
    batch.push(ORDERS.as_bytes()).unwrap();
    batch.flush().unwrap();
    drop(batch);
    assert!(store.files(Table::Orders).unwrap().is_empty());
    assert_eq!(std::fs::read_dir(folder.path().join(".incoming")).unwrap().count(), 0);
}

#[test]
fn large_batches_become_several_row_groups() {
    let (_folder, store) = store();
    let mut batch = Batch::new(&store, Table::Orders);
    let mut flushes = 0;
    for key in 0..40_000 {
        let line = format!("{key}|1|F|1.00|1995-01-01|1-URGENT|Clerk#000000001|0|x\n");
        batch.push(line.as_bytes()).unwrap();
        if batch.is_full() {
            batch.flush().unwrap();
            flushes += 1;
        }
    }
    assert_eq!(flushes, 2);
    let delivery = batch.finish("large").unwrap();
    let mut next = 0;
    let path = store.path(Table::Orders, "large").unwrap();
    let receipt = store::read(&path, Table::Orders, |row| {
        assert_eq!(row.key(), (next, 0));
        next += 1;
    })
    .unwrap();
    assert_eq!((receipt.rows, next), (40_000, 40_000));
    assert_eq!(receipt, delivery.receipt);
}

#[test]
fn faults_name_the_line() {
    let (_folder, store) = store();
    for (text, line) in [
        (ORDERS.replace("|5-LOW|", "|LATER|"), 4),
        (ORDERS.replace("first", &"x".repeat(MAX_LINE_BYTES)), 1),
    ] {
        let error = load(&store, "b", &text).expect_err("must not load");
        assert!(error.to_string().starts_with(&format!("line {line}: ")), "{error}");
    }
    let mut batch = Batch::new(&store, Table::Orders);
    assert!(matches!(batch.push(b"1|\xff|\n"), Err(BatchError::NotText { line: 1 })));
}

#[test]
fn ids_that_are_no_file_names_are_refused() {
    let (_folder, store) = store();
    let long = "x".repeat(store::MAX_ID_BYTES + 1);
    for id in ["", "../up", "a/b", ".hidden", "a b", &long] {
        assert!(
            matches!(load(&store, id, ORDERS), Err(BatchError::Store(StoreError::BadId(_)))),
            "{id}"
        );
    }
}
