use super::*;

const ALGORITHMS: [DigestAlgorithm; 2] = [DigestAlgorithm::Sha256, DigestAlgorithm::Sha512];

fn terms(make: bool, check: bool, algorithm: DigestAlgorithm) -> Integrity {
    Integrity { make, check, algorithm }
}

fn facts(length: Length) -> Facts {
    Facts { length, trailers: true, whole: true, make: true }
}

fn head(fields: &[(&'static str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &str)| {
        (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
    };
    let mut head = HeaderMap::new();
    for (name, value) in fields.iter().map(field) {
        head.append(name, value);
    }
    head
}

fn digest_of(algorithm: DigestAlgorithm, bytes: &[u8]) -> HeaderValue {
    let mut hasher = context(algorithm);
    hasher.update(bytes);
    fields::value(algorithm, hasher.finish().as_ref())
}

/// What was passed on, with `|` and the trailers at a clean end.
fn run(body: &mut Body, pieces: Vec<Piece>) -> (Vec<u8>, Option<Option<HeaderMap>>) {
    let mut seen = Vec::new();
    let mut ended = None;
    let mut take = |piece: Piece| match piece {
        Piece::Data { bytes, last } => {
            seen.extend_from_slice(&bytes);
            if last {
                ended = Some(None);
            }
        }
        Piece::End(trailers) => ended = Some(trailers),
    };
    for piece in pieces {
        match body.pass(piece) {
            Ok(Some(piece)) => take(piece),
            Ok(None) => {}
            Err(Mismatch) => break,
        }
        while let Some(piece) = body.next() {
            take(piece);
        }
    }
    (seen, ended)
}

fn cut(bytes: &[u8], rng: &mut fastrand::Rng) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rng.usize(1..=rest.len()));
        pieces.push(Piece::Data { bytes: Bytes::copy_from_slice(piece), last: false });
        rest = after;
    }
    pieces
}

#[test]
fn the_examples_of_rfc_9530_are_read_and_made() {
    // Appendix D, and §2.
    let hello = b"{\"hello\": \"world\"}\n";
    let sha256 = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:";
    let sha512 = "sha-512=:YMAam51Jz/jOATT6/zvHrLVgOYTGFy1d6GJiOHTohq4yP+pgk4vf2aCsyRZOtw8MjkM7iw7yZ/WkppmM44T3qg==:";
    assert_eq!(digest_of(DigestAlgorithm::Sha256, hello), sha256);
    assert_eq!(digest_of(DigestAlgorithm::Sha512, hello), sha512);
    let both = format!("{sha256}, {sha512}");
    for field in [sha256, sha512, &both] {
        for name in ["content-digest", "repr-digest"] {
            let check = terms(false, true, DigestAlgorithm::Sha256);
            let head = head(&[(name, field)]);
            for (sent, good) in [(&hello[..], true), (b"{\"hello\": \"World\"}\n", false)] {
                let mut body = Body::new(check, &head, facts(Length::Unknown)).unwrap().unwrap();
                let pieces = vec![
                    Piece::Data { bytes: Bytes::copy_from_slice(sent), last: false },
                    Piece::End(None),
                ];
                assert_eq!(run(&mut body, pieces).1.is_some(), good, "{name} {field}");
                let outcome = if good { DigestOutcome::Ok } else { DigestOutcome::Mismatch };
                assert_eq!(body.outcome(), Some(outcome));
            }
        }
    }
}

/// Cut anywhere, in either framing, with one bit flipped or none, and tried more than once.
#[test]
fn what_one_hop_makes_the_next_checks_and_no_flipped_bit_ends_well() {
    let mut rng = fastrand::Rng::with_seed(9530);
    for round in 0..400 {
        let algorithm = ALGORITHMS[round % 2];
        let bytes: Vec<u8> = (0..rng.usize(1..3000)).map(|_| rng.u8(..)).collect();
        let length = match rng.bool() {
            true => Length::Known(bytes.len() as u64),
            false => Length::Unknown,
        };
        let mut first = Body::new(terms(true, false, algorithm), &HeaderMap::new(), facts(length))
            .unwrap()
            .unwrap();
        let mut second = Body::new(terms(true, true, algorithm), &HeaderMap::new(), facts(length))
            .unwrap()
            .unwrap();
        for _ in 0..2 {
            first.restart();
            second.restart();
            let mut pieces = cut(&bytes, &mut rng);
            match pieces.last_mut() {
                Some(Piece::Data { last, .. }) if rng.bool() => *last = true,
                _ => pieces.push(Piece::End(None)),
            }
            let (passed, trailers) = run(&mut first, pieces);
            assert!(passed == bytes, "nothing is held back for good");
            let trailers = trailers.unwrap().unwrap();
            assert_eq!(trailers[CONTENT_DIGEST], digest_of(algorithm, &bytes));
            assert_eq!(first.outcome(), Some(DigestOutcome::Made));

            let mut sent = bytes.clone();
            let flipped = rng.bool();
            if flipped {
                let at = rng.usize(..sent.len());
                sent[at] ^= 1 << rng.u8(..8);
            }
            let mut pieces = cut(&sent, &mut rng);
            pieces.push(Piece::End(Some(trailers.clone())));
            let (passed, ended) = run(&mut second, pieces);
            if flipped {
                assert!(ended.is_none(), "round {round}");
                // A body of told length would be whole with its last byte.
                assert!(length == Length::Unknown || passed.len() < sent.len());
                assert_eq!(second.outcome(), Some(DigestOutcome::Mismatch));
            } else {
                assert!(passed == bytes && ended == Some(Some(trailers)), "round {round}");
                assert_eq!(second.outcome(), Some(DigestOutcome::Ok));
            }
        }
    }
}

#[test]
fn what_a_field_may_hold() {
    let empty = digest_of(DigestAlgorithm::Sha256, b"");
    let empty = empty.to_str().unwrap();
    for (field, expected) in [
        (String::new(), Ok(0)),
        (empty.to_owned(), Ok(1)),
        (format!("{empty};a=1;b"), Ok(1)),
        (format!("md5=:AAAA:,\t{empty}"), Ok(1)),
        (format!("x=(1 \"a\\\"b\" tok;p=?1);q, y=-1.5, z, {empty}"), Ok(1)),
        // The last of several is meant.
        (format!("sha-256=:AAAA:, {empty}"), Ok(1)),
        ("sha-256=:AAAA".to_owned(), Err(Malformed)),
        ("sha-256=:AA*A:".to_owned(), Err(Malformed)),
        ("sha-256=:AAA=A:".to_owned(), Err(Malformed)),
        ("sha-256=AAAA".to_owned(), Err(Malformed)),
        ("sha-256".to_owned(), Err(Malformed)),
        ("SHA-256=:AAAA:".to_owned(), Err(Malformed)),
        (format!("{empty},"), Err(Malformed)),
        (format!("{empty} {empty}"), Err(Malformed)),
        ("=1".to_owned(), Err(Malformed)),
        ("a=\"".to_owned(), Err(Malformed)),
        ("a=(1".to_owned(), Err(Malformed)),
        ("a=?2".to_owned(), Err(Malformed)),
    ] {
        let head = head(&[("content-digest", &field)]);
        let read = fields::digests(&head, &CONTENT_DIGEST).map(|read| read.len());
        assert_eq!(read, expected, "{field}");
    }
    // One that is too short is a digest of nothing.
    let short = head(&[("content-digest", "sha-256=:AAAA:")]);
    let check = terms(false, true, DigestAlgorithm::Sha256);
    let mut body = Body::new(check, &short, facts(Length::Unknown)).unwrap().unwrap();
    assert_eq!(run(&mut body, vec![Piece::End(None)]).1, None);
}

#[test]
fn any_bytes_are_read_or_refused() {
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..20_000 {
        let letters = b"sha-256=:A/+;,() \"\\?10.@\tz*";
        let text: Vec<u8> =
            (0..rng.usize(..40)).map(|_| letters[rng.usize(..letters.len())]).collect();
        let mut head = HeaderMap::new();
        head.insert(CONTENT_DIGEST, HeaderValue::from_bytes(&text).unwrap());
        let _ = fields::digests(&head, &CONTENT_DIGEST);
    }
}

#[test]
fn a_digest_is_made_only_where_there_is_none() {
    let told = head(&[("content-digest", "sha-512=:AAAA:")]);
    let make = terms(true, false, DigestAlgorithm::Sha256);
    assert!(Body::new(make, &told, facts(Length::Unknown)).unwrap().is_none());
    let mut body = Body::new(make, &HeaderMap::new(), facts(Length::Unknown)).unwrap().unwrap();
    let (_, ended) = run(&mut body, vec![Piece::End(Some(told.clone()))]);
    assert_eq!(ended, Some(Some(told)));
}

#[test]
fn a_part_is_not_held_against_the_digest_of_the_whole() {
    let told = head(&[("repr-digest", "sha-256=:AAAA:")]);
    let part = Facts { whole: false, trailers: false, ..facts(Length::Known(4)) };
    let check = terms(false, true, DigestAlgorithm::Sha256);
    assert!(Body::new(check, &told, part).unwrap().is_none());
}

#[test]
fn wishes_are_understood() {
    for (field, wanted) in [
        ("sha-256=10", true),
        ("sha-512=3, sha-256=1", true),
        ("sha-256=0", false),
        ("sha-256=11", false),
        ("sha-256=1, sha-256=0", false),
        ("sha-512=3", false),
        ("sha-256", false),
        ("sha-256=:AAAA:", false),
        ("sha-256=1,", false),
    ] {
        let head = head(&[("want-content-digest", field)]);
        assert_eq!(is_wanted(&head, DigestAlgorithm::Sha256), wanted, "{field}");
    }
    let mut own = head(&[("want-content-digest", "sha-512=1")]);
    want(&mut own, DigestAlgorithm::Sha256);
    assert_eq!(own["want-content-digest"], "sha-512=1", "the client's own wish stays");
}
