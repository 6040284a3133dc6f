//! The clients: they push the cargo, and push again what was not acknowledged.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    ledger::{self, Ledger},
    source::{Cargo, Parcel, UPLOADS},
};
use crate::etl::{
    client::{Client, Piece, Protocol, Rows, Upload},
    rows::Table,
    store::Receipt,
    wire::IngestReply,
};

/// Small batches under way at a time, for each protocol.
const IN_FLIGHT: usize = 8;
/// Parcels made ahead.
const AHEAD: usize = 16;
/// Pieces of a large upload made ahead.
const PIECES_AHEAD: usize = 8;
/// How often a client tries before it gives up and the demo fails.
const TRIES: u32 = 30;
/// Pause before the first repetition; grows to ten times that.
const PAUSE: Duration = Duration::from_millis(100);
const SMALL_DEADLINE: Duration = Duration::from_secs(60);
const LARGE_DEADLINE: Duration = Duration::from_secs(600);
/// Share of the small batches that waits for the end of the story.
const HELD_BACK: f64 = 0.03;
/// Large uploads start when this share of the small batches is through.
const UPLOAD_STARTS: [f64; UPLOADS as usize] = [0.13, 0.34, 0.58];
const UPLOAD_PROTOCOLS: [Protocol; UPLOADS as usize] =
    [Protocol::Http2, Protocol::Http1, Protocol::Grpc];

/// All that the clients need. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Freight {
    pub(super) cargo: Cargo,
    pub(super) client: Arc<Client>,
    pub(super) ledger: Arc<Ledger>,
    /// The small batches are spread over at least this time.
    pub(super) spread: Duration,
}

impl Freight {
    /// Pushes all small batches. The last few wait until `story_over` says so.
    pub(super) async fn small(self, mut story_over: watch::Receiver<bool>) -> anyhow::Result<()> {
        let (send, mut parcels) = mpsc::channel(AHEAD);
        let cargo = self.cargo;
        let maker = tokio::task::spawn_blocking(move || {
            cargo.small(|parcel| send.blocking_send(parcel).is_ok());
        });
        let rooms = Protocol::ALL.map(|protocol| (protocol, Arc::new(Semaphore::new(IN_FLIGHT))));
        let mut random = fastrand::Rng::with_seed(self.cargo.seed ^ 0x5eed);
        let mut tasks = JoinSet::new();
        let (start, expected) = (Instant::now(), self.cargo.small_rows() as f64);
        let mut sent = 0.0;
        while let Some(parcel) = parcels.recv().await {
            let share = (sent / expected).min(1.0);
            sent += parcel.expected.rows as f64;
            tokio::time::sleep_until(start + self.spread.mul_f64(share)).await;
            if share > 1.0 - HELD_BACK {
                // an error says that the story is gone, and so is the reason to wait
                let _ = story_over.wait_for(|over| *over).await;
            }
            let (protocol, room) = &rooms[random.usize(0..rooms.len())];
            let permit = room.clone().acquire_owned().await?;
            let (freight, protocol) = (self.clone(), *protocol);
            tasks.spawn(async move {
                let outcome = freight.deliver(protocol, parcel).await;
                drop(permit);
                outcome
            });
            while let Some(done) = tasks.try_join_next() {
                done??;
            }
        }
        maker.await.context("making the batches")?;
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        self.ledger.all_small_done();
        Ok(())
    }

    async fn deliver(&self, protocol: Protocol, parcel: Parcel) -> anyhow::Result<()> {
        for tries in 1..=TRIES {
            let started = Instant::now();
            let upload = Upload {
                table: parcel.table,
                batch: parcel.id.clone(),
                rows: Rows::Whole(parcel.text.clone()),
            };
            match self.client.push(protocol, upload, SMALL_DEADLINE).await {
                Ok(reply) => {
                    check(&parcel.id, &parcel.expected, &reply)?;
                    let bytes = parcel.text.len() as u64;
                    self.ledger.small(protocol, bytes, started.elapsed(), &reply);
                    return Ok(());
                }
                Err(error) => {
                    self.ledger.failed(format!("{} over {protocol}: {error}", parcel.id));
                    tokio::time::sleep(PAUSE * tries.min(10)).await;
                }
            }
        }
        self.give_up(&parcel.id)
    }

    /// Pushes the large uploads, each when its time has come.
    pub(super) async fn large(self) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        for index in 0..UPLOADS {
            let freight = self.clone();
            tasks.spawn(async move {
                while freight.ledger.share() < UPLOAD_STARTS[index as usize] {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                freight.upload(index).await
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }

    async fn upload(&self, index: u32) -> anyhow::Result<()> {
        let protocol = UPLOAD_PROTOCOLS[index as usize];
        let batch = format!("lineitem-upload-{index}");
        for tries in 1..=TRIES {
            let started = Instant::now();
            let (rows, maker) = self.make(index);
            let upload = Upload { table: Table::LineItem, batch: batch.clone(), rows };
            let outcome = self.client.push(protocol, upload, LARGE_DEADLINE).await;
            let took = started.elapsed();
            // the push has dropped its end of the channel, so the maker ends too
            let (expected, bytes) = maker.await.context("making a large upload")?;
            match outcome {
                Ok(reply) => {
                    check(&batch, &expected, &reply)?;
                    let (rows, region) = (reply.rows, reply.region.clone());
                    let upload =
                        ledger::Upload { batch, protocol, bytes, rows, took, tries, region };
                    self.ledger.large(upload, &reply);
                    return Ok(());
                }
                Err(error) => {
                    self.ledger.failed(format!("{batch} over {protocol}: {error}"));
                    tokio::time::sleep(PAUSE * tries.min(10)).await;
                }
            }
        }
        self.give_up(&batch)
    }

    /// Begins to make a large upload; the task tells what it came to.
    fn make(&self, index: u32) -> (Rows, tokio::task::JoinHandle<(Receipt, u64)>) {
        let (send, pieces) = mpsc::channel(PIECES_AHEAD);
        let cargo = self.cargo;
        let maker = tokio::task::spawn_blocking(move || {
            let mut bytes = 0;
            let expected = cargo.large(index, |text| {
                bytes += text.len() as u64;
                send.blocking_send(Piece::Text(text)).is_ok()
            });
            // fails only when nobody reads any more
            let _ = send.blocking_send(Piece::End);
            (expected, bytes)
        });
        (Rows::Stream(pieces), maker)
    }

    fn give_up(&self, batch: &str) -> anyhow::Result<()> {
        let notes = self.ledger.details().notes;
        bail!(
            "{batch} was not acknowledged in {TRIES} tries; the first failures were:\n  {}",
            notes.join("\n  ")
        )
    }
}

/// An acknowledgement must be of the rows that were sent.
fn check(batch: &str, expected: &Receipt, reply: &IngestReply) -> anyhow::Result<()> {
    if reply.rows == expected.rows && reply.digest == expected.digest.to_string() {
        return Ok(());
    }
    bail!(
        "{batch} was corrupted on its way: {} rows with digest {} were sent, {} with {} acknowledged",
        expected.rows,
        expected.digest,
        reply.rows,
        reply.digest
    )
}

#[cfg(test)]
mod tests;
