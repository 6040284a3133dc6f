//! The proof: what was loaded is what the source holds, each row once.

use std::time::{Duration, Instant};

use super::source::{Keys, Truth};
use crate::etl::{
    batch::Tally,
    q1::Q1,
    rows::Table,
    store::{self, Receipt, Store, StoreError},
};

/// What a comparison of source and store came to.
#[derive(Debug)]
pub(super) struct Proof {
    pub(super) rows_in: u64,
    pub(super) rows_loaded: u64,
    /// Loaded more than once.
    pub(super) rows_duplicated: u64,
    /// Of the source, and not loaded.
    pub(super) rows_lost: u64,
    /// Loaded, and not of the source.
    pub(super) rows_foreign: u64,
    /// Of source and store.
    pub(super) line_items: (Receipt, Receipt),
    /// Of source and store.
    pub(super) orders: (Receipt, Receipt),
    /// The workers' own partial answers, added up.
    pub(super) q1_of_workers: Q1,
    pub(super) files: u64,
    pub(super) file_bytes: u64,
    pub(super) took: Duration,
}

impl Proof {
    /// Reads everything that was loaded back and compares.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn of(truth: &Truth, store: &Store) -> Result<Self, StoreError> {
        let started = Instant::now();
        let mut keys = Keys::default();
        let mut q1_of_workers = Q1::default();
        let (mut duplicated, mut files, mut file_bytes) = (0, 0, 0);
        let mut read = |table| {
            let mut tally = Tally::default();
            for path in store.files(table)? {
                let receipt = store::read(&path, table, |row| {
                    tally.add(row);
                    duplicated += u64::from(!keys.insert(row.key()));
                })?;
                q1_of_workers.merge(&receipt.q1);
                files += 1;
                file_bytes += path.metadata().map_or(0, |metadata| metadata.len());
            }
            Ok::<_, StoreError>(tally.receipt())
        };
        let (line_items, orders) = (read(Table::LineItem)?, read(Table::Orders)?);
        Ok(Self {
            rows_in: truth.line_items.rows + truth.orders.rows,
            rows_loaded: line_items.rows + orders.rows,
            rows_duplicated: duplicated,
            rows_lost: truth.keys.missing_in(&keys),
            rows_foreign: keys.missing_in(&truth.keys),
            line_items: (truth.line_items.clone(), line_items),
            orders: (truth.orders.clone(), orders),
            q1_of_workers,
            files,
            file_bytes,
            took: started.elapsed(),
        })
    }

    /// Whether the content is equal, row by row.
    pub(super) fn digests_equal(&self) -> bool {
        let (source, loaded) = &self.line_items;
        let (orders_in, orders_loaded) = &self.orders;
        source.digest == loaded.digest && orders_in.digest == orders_loaded.digest
    }

    /// Whether the query's answer is the same over source, store and the workers' parts.
    pub(super) fn q1_equal(&self) -> bool {
        let (source, loaded) = &self.line_items;
        source.q1 == loaded.q1 && source.q1 == self.q1_of_workers
    }

    /// Nothing lost, doubled, strange or changed.
    pub(super) fn holds(&self) -> bool {
        self.rows_in == self.rows_loaded
            && self.rows_duplicated == 0
            && self.rows_lost == 0
            && self.rows_foreign == 0
            && self.digests_equal()
            && self.q1_equal()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{demo::source::Cargo, etl::batch::Batch};

    const TINY: Cargo = Cargo { scale: 0.001, seed: 3 };

    /// Loads the whole cargo without a mesh, except for one parcel, which is given to `odd`.
    fn load(odd: impl FnOnce(&Store, Table, &str, &[u8])) -> (tempfile::TempDir, Proof) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let put = |table, id: &str, text: &[u8]| {
            let mut batch = Batch::new(&store, table);
            batch.push(text).unwrap();
            batch.finish(id).unwrap();
        };
        let mut odd = Some(odd);
        TINY.small(|parcel| {
            match odd.take_if(|_| parcel.table == Table::LineItem) {
                Some(odd) => odd(&store, parcel.table, &parcel.id, &parcel.text),
                None => put(parcel.table, &parcel.id, &parcel.text),
            }
            true
        });
        for index in 0..crate::demo::source::UPLOADS {
            let mut text = Vec::new();
            TINY.large(index, |piece| {
                text.extend_from_slice(&piece);
                true
            });
            put(Table::LineItem, &format!("upload-{index}"), &text);
        }
        let proof = Proof::of(&TINY.truth(), &store).unwrap();
        (folder, proof)
    }

    fn put(store: &Store, table: Table, id: &str, text: &[u8]) {
        let mut batch = Batch::new(store, table);
        batch.push(text).unwrap();
        batch.finish(id).unwrap();
    }

    #[test]
    fn a_complete_load_is_proven() {
        let (_folder, proof) = load(put);
        assert!(proof.holds(), "{proof:?}");
        assert!(proof.rows_in > 7000);
    }

    #[test]
    fn a_lost_batch_shows() {
        let (_folder, proof) = load(|_, _, _, _| {});
        assert!(proof.rows_lost > 0 && !proof.holds());
        assert!(!proof.digests_equal() && !proof.q1_equal());
        assert_eq!(proof.rows_in - proof.rows_loaded, proof.rows_lost);
    }

    #[test]
    fn a_batch_loaded_twice_shows() {
        let (_folder, proof) = load(|store, table, id, text| {
            put(store, table, id, text);
            put(store, table, "again", text);
        });
        assert!(proof.rows_duplicated > 0 && !proof.holds());
        assert_eq!(proof.rows_loaded - proof.rows_in, proof.rows_duplicated);
    }

    #[test]
    fn a_changed_value_shows_although_every_key_is_there() {
        let (_folder, proof) = load(|store, table, id, text| {
            let text = std::str::from_utf8(text).unwrap();
            let (ours, theirs) =
                if text.contains("TRUCK") { ("TRUCK", "RAIL") } else { ("MAIL", "RAIL") };
            put(store, table, id, text.replacen(ours, theirs, 1).as_bytes());
        });
        assert_eq!((proof.rows_lost, proof.rows_duplicated, proof.rows_foreign), (0, 0, 0));
        assert!(!proof.digests_equal() && !proof.holds());
    }
}
