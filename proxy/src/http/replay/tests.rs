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
        replay.begin_try(true, true);
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

/// The next piece of a try, as an exchange takes it: what is kept, what was held, then the client's.
async fn take(
    replay: &mut Replay,
    client: &mut Vec<Piece>,
    accepted: impl FnOnce() -> bool,
) -> Option<Piece> {
    if let Some(piece) = next(replay).await {
        return Some(piece);
    }
    poll_fn(|cx| replay.poll_room(cx)).await;
    let piece = replay.take_held().or_else(|| client.pop())?;
    replay.admit(piece, accepted)
}

/// A body in pieces, the last first.
fn pieces(rng: &mut fastrand::Rng, body: &[u8], largest: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let (front, behind) = rest.split_at(rng.usize(1..=largest.min(rest.len())));
        rest = behind;
        pieces.push(Piece::Data { bytes: Bytes::copy_from_slice(front), last: false });
    }
    match pieces.last_mut() {
        Some(Piece::Data { last, .. }) if rng.bool() => *last = true,
        _ => pieces.push(Piece::End(None)),
    }
    pieces.reverse();
    pieces
}

/// However the body is cut, whatever is kept, and wherever tries are refused: none misses a byte or
/// sees one twice, and until one is accepted all it has seen can be sent again.
#[tokio::test]
async fn a_try_that_may_be_refused_sees_no_more_than_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let [room, full] = [1 << 30, 0].map(|limit| Arc::new(Space::new(folder.path().into(), limit)));
    for round in 0..200 {
        let mut rng = fastrand::Rng::with_seed(round);
        let memory = [0, 100, 1000, 10_000][rng.usize(..4)];
        let space = [None, Some(room.clone()), Some(full.clone())][rng.usize(..3)].clone();
        let disk = if space.is_some() { rng.u64(..3000) } else { 0 };
        let mut replay = Replay::new(Terms { memory, disk, space, slides: rng.bool() });
        let body: Vec<u8> = (0..rng.usize(..6000)).map(|_| rng.u8(..)).collect();
        let mut client = pieces(&mut rng, &body, 900);
        let mut accepted = false;
        let (mut tries, mut refused) = (0, true);
        let (mut seen, mut ended) = (Vec::new(), false);
        while !ended {
            if std::mem::take(&mut refused) {
                tries += 1;
                seen.clear();
                replay.rewind();
                replay.begin_try(false, true);
            }
            match take(&mut replay, &mut client, || accepted).await {
                Some(Piece::Data { bytes, last }) => {
                    seen.extend_from_slice(&bytes);
                    ended = last;
                }
                Some(Piece::End(_)) => ended = true,
                None => {
                    assert!(!accepted, "round {round}: nothing is held any more");
                    accepted = rng.bool();
                    refused = !accepted;
                }
            }
            assert!(accepted || replay.is_complete(), "round {round}, try {tries}");
            refused |= !accepted && rng.u8(..) < 8;
            ended &= !refused;
        }
        assert!(seen == body, "round {round}: {} of {}", seen.len(), body.len());
    }
}

#[tokio::test]
async fn nobody_is_asked_about_a_body_that_is_kept_or_a_last_try() {
    for (last, limit) in [(false, 4096), (true, 0)] {
        let mut replay = Replay::new(memory(limit));
        let mut rng = fastrand::Rng::with_seed(3);
        let mut client = pieces(&mut rng, &[7; 4096], 900);
        replay.begin_try(last, true);
        let mut seen = 0;
        while let Some(Piece::Data { bytes, last }) =
            take(&mut replay, &mut client, || panic!("asked")).await
        {
            seen += bytes.len();
            if last {
                break;
            }
        }
        assert_eq!(seen, 4096);
        assert_eq!(replay.is_complete(), !last);
    }
}

/// The window that most servers begin with fits into the limit that most policies have.
#[test]
fn the_default_limit_keeps_a_default_window() {
    let mut replay = Replay::new(memory(64 * 1024));
    for _ in 0..1000 {
        replay.note(&Piece::Data { bytes: Bytes::from_static(&[7; 65]), last: false });
    }
    replay.note(&Piece::Data { bytes: Bytes::from_static(&[7; 535]), last: false });
    assert!(replay.is_complete());
    assert_eq!(replay.length(), 65_535);
}
