use std::net::Ipv4Addr;

use tokio::net::TcpListener;

use super::*;
use crate::{
    demo::{proof::Proof, source::Cargo},
    etl::{
        store::Store,
        worker::{self, Harness, Speed, Worker},
    },
};

/// The whole way but the mesh: clients straight to one worker.
#[tokio::test]
async fn clients_and_a_worker_alone_deliver_everything_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target = listener.local_addr().unwrap();
    let harness = Harness::new(Speed::default());
    let worker = Arc::new(Worker::new("w".into(), "here".into(), store.clone(), harness));
    let serving = tokio::spawn(worker::serve(listener, worker, std::future::pending()));

    let cargo = Cargo { scale: 0.001, seed: 11 };
    let ledger = Arc::new(Ledger::new(cargo.small_rows()));
    let client = Arc::new(Client::new(target, "etl.example.com"));
    let freight =
        Freight { cargo, client, ledger: ledger.clone(), spread: Duration::from_millis(1) };
    let (over, story_over) = watch::channel(false);
    let large = freight.clone().large();
    let story = async {
        while ledger.share() < 0.5 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(ledger.share() < 0.999, "the last batches wait for the story");
        over.send_replace(true);
        Ok(())
    };
    tokio::try_join!(freight.small(story_over), large, story).unwrap();
    serving.abort();

    let counts = ledger.counts();
    assert_eq!((counts.failures, counts.already), (0, 0));
    let details = ledger.details();
    assert_eq!(details.uploads.len(), 3);
    assert!(details.lanes.values().all(|lane| lane.batches() > 0));
    let proof = Proof::of(&cargo.truth(), &store).unwrap();
    assert_eq!(counts.rows, proof.rows_in);
    assert!(proof.holds(), "{proof:?}");
}
