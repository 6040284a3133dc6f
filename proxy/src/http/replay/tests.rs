use std::future::poll_fn;

use super::*;

fn data(text: &'static str) -> Piece {
    Piece::Data { bytes: Bytes::from_static(text.as_bytes()), last: false }
}

fn memory(bytes: u64) -> Terms {
    Terms { memory: bytes, ..Terms::default() }
}

/// Keeping everything in memory, everything on disk, and the first two pieces in memory; on disk
/// in the clear and encrypted.
fn places(folder: &tempfile::TempDir) -> [Terms; 5] {
    let [clear, sealed] =
        [false, true].map(|on| Arc::new(Space::new(folder.path().into(), 1 << 30).encrypted(on)));
    let disk = |memory, space: &Arc<Space>| {
        let space = Some(space.clone());
        Terms { memory, disk: 1000, space, slides: false }
    };
    let some = 2 * (PIECE_BYTES + 1);
    [memory(1000), disk(0, &clear), disk(some, &clear), disk(0, &sealed), disk(some, &sealed)]
}

async fn next(replay: &mut Replay) -> Option<Piece> {
    poll_fn(|cx| replay.poll_next(cx)).await.unwrap()
}

/// What a try would be handed: replayed pieces, then `fresh` ones.
async fn run(replay: &mut Replay, fresh: &[&'static str], end: bool) -> String {
    let mut seen = String::new();
    let mut take = |piece: &Piece| match piece {
        Piece::Data { bytes, .. } => seen += std::str::from_utf8(bytes).unwrap(),
        Piece::End(_) => seen += "|",
    };
    while let Some(piece) = next(replay).await {
        take(&piece);
    }
    for text in fresh {
        let piece = data(text);
        poll_fn(|cx| replay.poll_room(cx)).await;
        replay.note(&piece);
        take(&piece);
        assert!(next(replay).await.is_none(), "what was just sent is not handed out again");
    }
    if end {
        replay.note(&Piece::End(None));
        take(&Piece::End(None));
        assert!(next(replay).await.is_none());
    }
    seen
}

#[tokio::test]
async fn every_try_sees_every_piece_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    for terms in places(&folder) {
        let mut replay = Replay::new(terms);
        assert!(!replay.has_begun());
        assert_eq!(run(&mut replay, &["a", "b"], false).await, "ab");
        replay.rewind();
        assert_eq!(run(&mut replay, &["c"], false).await, "abc");
        replay.rewind();
        assert_eq!(run(&mut replay, &[], false).await, "abc");
        replay.rewind();
        assert_eq!(run(&mut replay, &["d"], true).await, "abcd|");
        replay.rewind();
        assert_eq!(run(&mut replay, &[], false).await, "abcd|");
        assert!(replay.is_complete() && replay.has_begun());
    }
}

#[tokio::test]
async fn a_try_that_stops_half_way_through_the_replay_costs_the_next_one_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for terms in places(&folder) {
        let mut replay = Replay::new(terms);
        run(&mut replay, &["a", "b", "c"], false).await;
        replay.rewind();
        assert!(
            matches!(next(&mut replay).await, Some(Piece::Data { bytes, .. }) if bytes[0] == b'a')
        );
        replay.rewind();
        assert_eq!(run(&mut replay, &["d"], false).await, "abcd");
    }
}

#[tokio::test]
async fn giving_up_half_way_through_the_replay_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for terms in places(&folder) {
        for end in [false, true] {
            let mut replay = Replay::new(terms.clone());
            run(&mut replay, &["a", "b", "c"], end).await;
            replay.rewind();
            let Some(Piece::Data { bytes, .. }) = next(&mut replay).await else { panic!() };
            replay.give_up();
            assert!(!replay.is_complete());
            let rest = run(&mut replay, &[], false).await;
            let all = [std::str::from_utf8(&bytes).unwrap(), &rest].concat();
            assert_eq!(all, if end { "abc|" } else { "abc" });
            assert_eq!(run(&mut replay, &["d"], !end).await, if end { "d" } else { "d|" });
            assert!(replay.spool.is_none(), "the disk is given back once all is read");
        }
    }
}

#[tokio::test]
async fn the_last_try_sees_everything_and_keeps_nothing_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    for terms in places(&folder) {
        let on_disk = terms.disk > 0;
        let mut replay = Replay::new(terms);
        run(&mut replay, &["a", "b", "c"], false).await;
        replay.rewind();
        replay.begin_try(true);
        assert_eq!(run(&mut replay, &["d"], true).await, "abcd|");
        assert!(replay.spool.is_none());
        assert_eq!(replay.is_complete(), !on_disk, "memory serves a connection that was stale");
    }
}

#[tokio::test]
async fn beyond_the_limits_nothing_is_kept_or_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    let space = Arc::new(Space::new(folder.path().into(), 1 << 20));
    let full = Arc::new(Space::new(folder.path().into(), 0));
    for terms in [
        memory(3 + PIECE_BYTES),
        Terms { memory: 0, disk: 3, space: Some(space), slides: false },
        Terms { memory: 3 + PIECE_BYTES, disk: 100, space: Some(full), slides: false },
    ] {
        let mut replay = Replay::new(terms);
        run(&mut replay, &["ab"], false).await;
        assert!(replay.is_complete());
        run(&mut replay, &["cd"], false).await;
        assert!(!replay.is_complete() && replay.has_begun() && replay.whole().is_none());
        replay.rewind();
        assert!(next(&mut replay).await.is_none());
    }
}

#[tokio::test]
async fn a_last_piece_ends_the_body() {
    let mut replay = Replay::new(memory(1000));
    replay.note(&Piece::Data { bytes: Bytes::from_static(b"x"), last: true });
    assert!(next(&mut replay).await.is_none());
    replay.rewind();
    assert_eq!(run(&mut replay, &[], false).await, "x|");
    assert_eq!(replay.whole().unwrap().0.len(), 1);
}

/// Whatever still lies in the buffer is handed out from any byte on, and nothing else is.
#[tokio::test]
async fn a_body_can_be_taken_up_at_any_byte_that_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let space = Arc::new(Space::new(folder.path().into(), 1 << 30));
    let mut rng = fastrand::Rng::with_seed(8);
    for round in 0..40 {
        let memory = 2_000;
        let terms = match round % 4 {
            0 => Terms { memory, disk: 1 << 20, space: Some(space.clone()), slides: true },
            _ => Terms { memory, slides: true, ..Terms::default() },
        };
        let slides = terms.space.is_none();
        let mut replay = Replay::new(terms);
        let mut all = Vec::new();
        for _ in 0..rng.usize(1..60) {
            let piece: Vec<u8> = (0..rng.usize(1..300)).map(|_| rng.u8(..)).collect();
            all.extend_from_slice(&piece);
            poll_fn(|cx| replay.poll_room(cx)).await;
            replay.note(&Piece::Data { bytes: piece.into(), last: false });
        }
        replay.note(&Piece::End(None));
        assert!(replay.bytes <= memory, "memory stays bounded");
        assert_eq!(replay.is_complete(), replay.base == 0);
        assert!(replay.whole().is_none() || replay.base == 0);
        assert!(!slides || all.len() < 1_000 || all.len() as u64 - replay.base > 200);
        for _ in 0..5 {
            let from = rng.usize(..=all.len());
            let kept = from as u64 >= replay.base;
            assert_eq!(replay.seek(from as u64), kept, "{from} of {}", replay.base);
            if !kept {
                continue;
            }
            let mut seen = Vec::new();
            loop {
                match next(&mut replay).await {
                    Some(Piece::Data { bytes, .. }) => seen.extend_from_slice(&bytes),
                    Some(Piece::End(_)) => break,
                    None => panic!("no end"),
                }
            }
            assert!(seen == all[from..], "round {round} from {from}");
        }
        assert!(!replay.seek(all.len() as u64 + 1));
    }
}
