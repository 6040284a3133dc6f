use super::*;

fn data(text: &'static str) -> Piece {
    Piece::Data { bytes: Bytes::from_static(text.as_bytes()), last: false }
}

/// What a try would be handed: replayed pieces, then `fresh` ones.
fn run(replay: &mut Replay, fresh: &[&'static str], end: bool) -> String {
    let mut seen = String::new();
    let mut take = |piece: &Piece| match piece {
        Piece::Data { bytes, .. } => seen += std::str::from_utf8(bytes).unwrap(),
        Piece::End(_) => seen += "|",
    };
    while let Some(piece) = replay.next() {
        take(&piece);
    }
    for text in fresh {
        let piece = data(text);
        replay.note(&piece);
        take(&piece);
        assert!(replay.next().is_none(), "what was just sent is not handed out again");
    }
    if end {
        replay.note(&Piece::End(None));
        take(&Piece::End(None));
        assert!(replay.next().is_none());
    }
    seen
}

#[test]
fn every_try_sees_every_piece_once_and_in_order() {
    let mut replay = Replay::new(1000);
    assert!(!replay.has_begun());
    assert_eq!(run(&mut replay, &["a", "b"], false), "ab");
    replay.rewind();
    assert_eq!(run(&mut replay, &["c"], false), "abc");
    replay.rewind();
    assert_eq!(run(&mut replay, &[], false), "abc");
    replay.rewind();
    assert_eq!(run(&mut replay, &["d"], true), "abcd|");
    replay.rewind();
    assert_eq!(run(&mut replay, &[], false), "abcd|");
    assert_eq!(replay.whole().unwrap().0.len(), 4);
}

#[test]
fn a_try_that_stops_half_way_through_the_replay_costs_the_next_one_nothing() {
    let mut replay = Replay::new(1000);
    run(&mut replay, &["a", "b", "c"], false);
    replay.rewind();
    assert!(matches!(replay.next(), Some(Piece::Data { bytes, .. }) if bytes == "a"));
    replay.rewind();
    assert_eq!(run(&mut replay, &["d"], false), "abcd");
}

#[test]
fn giving_up_half_way_through_the_replay_loses_nothing() {
    for end in [false, true] {
        let mut replay = Replay::new(1000);
        run(&mut replay, &["a", "b", "c"], end);
        replay.rewind();
        assert!(matches!(replay.next(), Some(Piece::Data { bytes, .. }) if bytes == "a"));
        replay.give_up();
        assert!(!replay.is_complete());
        assert_eq!(run(&mut replay, &[], false), if end { "bc|" } else { "bc" });
        assert_eq!(run(&mut replay, &["d"], !end), if end { "d" } else { "d|" });
    }
}

#[test]
fn beyond_the_limit_nothing_is_kept_or_handed_out() {
    let mut replay = Replay::new(3 + PIECE_BYTES);
    run(&mut replay, &["ab"], false);
    assert!(replay.is_complete());
    run(&mut replay, &["cd"], false);
    assert!(!replay.is_complete() && replay.has_begun() && replay.whole().is_none());
    replay.rewind();
    assert!(replay.next().is_none());
}

#[test]
fn a_last_piece_ends_the_body() {
    let mut replay = Replay::new(1000);
    replay.note(&Piece::Data { bytes: Bytes::from_static(b"x"), last: true });
    assert!(replay.next().is_none());
    replay.rewind();
    assert_eq!(run(&mut replay, &[], false), "x|");
}
