use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

use super::*;
use crate::etl::{
    batch::Tally,
    client::{Client, Piece, Protocol, PushError, Rows, Upload},
    rows::Row,
    store,
};

const DEADLINE: Duration = Duration::from_secs(30);

struct Running {
    address: SocketAddr,
    worker: Arc<Worker>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn start(store: &Store, name: &str) -> Running {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let harness = Harness::new(Speed::default());
    let worker = Arc::new(Worker::new(name.into(), "eu-west".into(), store.clone(), harness));
    let (stop, stopped) = oneshot::channel();
    let until = async {
        let _ = stopped.await;
    };
    let task = tokio::spawn(serve(listener, worker.clone(), until));
    Running { address, worker, stop, task }
}

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (folder, store)
}

fn line(key: i64) -> String {
    format!(" {key}|7|o|1,000.50|1995/01/03| 5-low|Clerk#000000001|0| number {key} |\n")
}

fn text(keys: std::ops::Range<i64>) -> (Bytes, String) {
    let text: String = keys.map(line).collect();
    let mut tally = Tally::default();
    for line in text.lines() {
        tally.add(&Row::parse(Table::Orders, line).unwrap());
    }
    (text.into(), tally.receipt().digest.to_string())
}

fn upload(batch: &str, rows: Rows) -> Upload {
    Upload { table: Table::Orders, batch: batch.to_owned(), rows }
}

#[tokio::test]
async fn every_protocol_loads_small_and_streamed_batches() {
    let (_folder, store) = store();
    let running = start(&store, "w").await;
    let client = Client::new(running.address, "etl.example");
    for protocol in Protocol::ALL {
        let (small, digest) = text(0..50);
        let name = format!("small-{}", protocol.name());
        let reply =
            client.push(protocol, upload(&name, Rows::Whole(small)), DEADLINE).await.unwrap();
        assert_eq!((reply.rows, reply.already), (50, false), "{protocol}");
        assert_eq!((reply.digest, reply.worker), (digest, "w".to_owned()));

        let (large, digest) = text(0..17_000);
        let (send, pieces) = mpsc::channel(4);
        let feed = async {
            for piece in large.chunks(60_000) {
                send.send(Piece::Text(Bytes::copy_from_slice(piece))).await.unwrap();
            }
            send.send(Piece::End).await.unwrap();
        };
        let name = format!("large-{}", protocol.name());
        let (reply, ()) = tokio::join!(
            client.push(protocol, upload(&name, Rows::Stream(pieces)), DEADLINE),
            feed
        );
        let reply = reply.unwrap();
        assert_eq!((reply.rows, reply.digest), (17_000, digest), "{protocol}");
        let path = store.path(Table::Orders, &name).unwrap();
        assert_eq!(store::receipt(&path).unwrap().rows, 17_000);
    }
    drop(client);
    running.stop.send(()).unwrap();
    running.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_batch_sent_again_to_another_worker_is_loaded_once() {
    let (_folder, store) = store();
    let (one, two) = (start(&store, "one").await, start(&store, "two").await);
    let (rows, digest) = text(0..100);
    let (left, right) =
        (Client::new(one.address, "etl.example"), Client::new(two.address, "etl.example"));
    let (first, second) = tokio::join!(
        left.push(Protocol::Http1, upload("b", Rows::Whole(rows.clone())), DEADLINE),
        right.push(Protocol::Grpc, upload("b", Rows::Whole(rows)), DEADLINE),
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(first.already != second.already, "{first:?} {second:?}");
    assert_eq!((&first.digest, &second.digest), (&digest, &digest));
    assert_eq!(store.files(Table::Orders).unwrap().len(), 1);
}

#[tokio::test]
async fn a_truncated_upload_is_not_loaded() {
    let (folder, store) = store();
    let running = start(&store, "w").await;
    let client = Client::new(running.address, "etl.example");
    for protocol in Protocol::ALL {
        let (send, pieces) = mpsc::channel(4);
        // whole lines, so that only the missing end tells that it is not complete
        send.send(Piece::Text(text(0..10).0)).await.unwrap();
        drop(send);
        let outcome = client.push(protocol, upload("cut", Rows::Stream(pieces)), DEADLINE).await;
        assert!(outcome.is_err(), "{protocol}: {outcome:?}");
    }
    running.stop.send(()).unwrap();
    running.task.await.unwrap().unwrap();
    assert!(store.files(Table::Orders).unwrap().is_empty());
    let left = std::fs::read_dir(folder.path().join(".incoming")).unwrap().count();
    assert_eq!(left, 0, "files written aside are gone");
}

#[tokio::test]
async fn refusals_say_why() {
    let (_folder, store) = store();
    let running = start(&store, "w").await;
    let client = Client::new(running.address, "etl.example");
    let bad = || Rows::Whole(Bytes::from_static(b"1|7|o|dear|\n"));
    for protocol in [Protocol::Http1, Protocol::Http2] {
        match client.push(protocol, upload("bad", bad()), DEADLINE).await {
            Err(PushError::Refused { status, text }) => {
                assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
                assert!(text.contains("line 1: o_totalprice: \"dear\""), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
    match client.push(Protocol::Grpc, upload("bad", bad()), DEADLINE).await {
        Err(PushError::Grpc { code, message }) => {
            assert_eq!(code, "3");
            assert!(message.contains("o_totalprice"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(running.worker.stats()["failed"], 3);
}

#[tokio::test]
async fn bytes_of_any_kind_are_acknowledged_by_their_digest() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let (_folder, store) = store();
    let running = start(&store, "one").await;
    let mut stream = tokio::net::TcpStream::connect(running.address).await.unwrap();
    let head =
        "PUT /archive/x HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    // FIPS 180-4, example 1.
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(digest), "{answer}");
    assert!(answer.contains(r#""bytes":3"#), "{answer}");
}
