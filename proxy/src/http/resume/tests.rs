use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header,
    uri::{Authority, PathAndQuery},
};

use super::{Mismatch, Resume, content_range, is_strong};
use crate::{
    http::message::{Length, RequestHead, ResponseHead},
    upstream::connect::Wire,
};

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    map
}

fn request(method: Method, fields: &[(&'static str, &str)]) -> RequestHead {
    RequestHead {
        received: Wire::Http1,
        method,
        authority: Authority::from_static("a"),
        target: PathAndQuery::from_static("/"),
        headers: headers(fields),
        length: Length::None,
        te_trailers: false,
        upgrade: None,
        expects_continue: false,
    }
}

fn answer(status: u16, length: Length, fields: &[(&'static str, &str)]) -> ResponseHead {
    let status = StatusCode::from_u16(status).unwrap();
    ResponseHead { status, headers: headers(fields), length }
}

fn held(length: Length, fields: &[(&'static str, &str)]) -> Resume {
    Resume::of(&request(Method::GET, &[]), &answer(200, length, fields)).unwrap()
}

const ETAG: (&str, &str) = ("etag", "\"a\"");
const TEN: Length = Length::Known(10);

#[test]
fn only_a_get_under_a_strong_tag_can_go_on() {
    let get = || request(Method::GET, &[]);
    let ranged = || request(Method::GET, &[("range", "bytes=5-")]);
    let mut with_body = get();
    with_body.length = Length::Known(1);
    let part = ("content-range", "bytes 5-9/20");
    let five = Length::Known(5);
    for (what, request, answer, expected) in [
        ("a plain download", get(), answer(200, TEN, &[ETAG]), true),
        ("of unknown length", get(), answer(200, Length::Unknown, &[ETAG]), true),
        ("encoded", get(), answer(200, TEN, &[ETAG, ("content-encoding", "gzip")]), true),
        ("ranges are served", get(), answer(200, TEN, &[ETAG, ("accept-ranges", "bytes")]), true),
        ("without a tag", get(), answer(200, TEN, &[]), false),
        ("a weak tag", get(), answer(200, TEN, &[("etag", "W/\"a\"")]), false),
        ("two tags", get(), answer(200, TEN, &[ETAG, ETAG]), false),
        (
            "two codings",
            get(),
            answer(200, TEN, &[ETAG, ("content-encoding", "a"), ("content-encoding", "b")]),
            false,
        ),
        ("HEAD", request(Method::HEAD, &[]), answer(200, TEN, &[ETAG]), false),
        ("POST", request(Method::POST, &[]), answer(200, TEN, &[ETAG]), false),
        ("a GET with a body", with_body, answer(200, TEN, &[ETAG]), false),
        ("nothing to come", get(), answer(200, Length::None, &[ETAG]), false),
        ("an empty body", get(), answer(200, Length::Known(0), &[ETAG]), false),
        ("203", get(), answer(203, TEN, &[ETAG]), false),
        ("404", get(), answer(404, TEN, &[ETAG]), false),
        ("ranges are refused", get(), answer(200, TEN, &[ETAG, ("accept-ranges", " None")]), false),
        ("a part", ranged(), answer(206, five, &[ETAG, part]), true),
        ("a part of unknown length", ranged(), answer(206, Length::Unknown, &[ETAG, part]), true),
        ("the whole for a part", ranged(), answer(200, TEN, &[ETAG]), true),
        ("a part nobody asked for", get(), answer(206, five, &[ETAG, part]), false),
        ("a part with a wrong length", ranged(), answer(206, TEN, &[ETAG, part]), false),
        (
            "a part of nobody knows what",
            ranged(),
            answer(206, five, &[ETAG, ("content-range", "bytes 5-9/*")]),
            false,
        ),
        (
            "several parts",
            ranged(),
            answer(206, TEN, &[ETAG, ("content-type", "Multipart/ByteRanges; boundary=x")]),
            false,
        ),
        (
            "parts as a whole",
            get(),
            answer(200, TEN, &[ETAG, ("content-type", "multipart/byteranges; boundary=x")]),
            false,
        ),
    ] {
        assert_eq!(Resume::of(&request, &answer).is_some(), expected, "{what}");
    }
}

#[test]
fn a_tag_is_strong_when_it_is_quoted_and_nothing_else() {
    for (tag, strong) in [
        (&b"\"a\""[..], true),
        (b"\"\"", true),
        (b"\"a,b'\\\"", true),
        (b"\"W/\"", true),
        (b"\"\xe4\"", true),
        (b"W/\"a\"", false),
        (b"w/\"a\"", false),
        (b"a", false),
        (b"\"", false),
        (b"\"a", false),
        (b"a\"", false),
        (b"'a'", false),
        (b"\"a\"b\"", false),
        (b"\"a b\"", false),
        (b"\"a\", \"b\"", false),
        (b"*", false),
        (b"", false),
    ] {
        let value = HeaderValue::from_bytes(tag).unwrap();
        assert_eq!(is_strong(&value), strong, "{value:?}");
    }
}

#[test]
fn the_rest_is_asked_for_under_the_same_tag_and_no_other_condition() {
    let own = headers(&[
        ("accept-encoding", "gzip"),
        ("authorization", "x"),
        ("range", "bytes=0-"),
        ("if-range", "\"old\""),
        ("if-match", "*"),
        ("if-none-match", "\"b\""),
        ("if-modified-since", "Sat, 21 Nov 2026 00:00:00 GMT"),
        ("if-unmodified-since", "Sat, 21 Nov 2026 00:00:00 GMT"),
    ]);
    let asked = held(TEN, &[ETAG]).request(&own, 4).unwrap();
    let expected = headers(&[
        ("accept-encoding", "gzip"),
        ("authorization", "x"),
        ("range", "bytes=4-"),
        ("if-range", "\"a\""),
    ]);
    assert_eq!(asked, expected);
}

#[test]
fn what_is_asked_for_begins_where_the_client_stands() {
    let part = |range| {
        let ranged = request(Method::GET, &[("range", "bytes=-5")]);
        let answer = answer(206, Length::Unknown, &[ETAG, ("content-range", range)]);
        Resume::of(&ranged, &answer).unwrap()
    };
    for (what, resume, delivered, expected) in [
        ("nothing came", held(TEN, &[ETAG]), 0, Some("bytes=0-")),
        ("the last byte", held(TEN, &[ETAG]), 9, Some("bytes=9-")),
        ("all came", held(TEN, &[ETAG]), 10, None),
        ("more than all came", held(TEN, &[ETAG]), 11, None),
        (
            "nobody knows the end",
            held(Length::Unknown, &[ETAG]),
            1 << 40,
            Some("bytes=1099511627776-"),
        ),
        ("a part within", part("bytes 5-9/20"), 2, Some("bytes=7-9")),
        ("a part to the end", part("bytes 15-19/20"), 2, Some("bytes=17-")),
        ("all of a part", part("bytes 5-9/20"), 5, None),
        ("beyond all numbers", part("bytes 5-9/20"), u64::MAX, None),
    ] {
        let asked = resume.request(&HeaderMap::new(), delivered);
        let range = asked.as_ref().map(|h| h[header::RANGE].to_str().unwrap());
        assert_eq!(range, expected, "{what}");
    }
}

#[test]
fn content_range_is_read_to_the_letter() {
    for (value, expected) in [
        ("bytes 5-9/10", Some((5, 10, 10))),
        ("BYTES 5-9/10", Some((5, 10, 10))),
        ("bytes 0-0/1", Some((0, 1, 1))),
        ("bytes 05-09/010", Some((5, 10, 10))),
        ("bytes 0-18446744073709551614/18446744073709551615", Some((0, u64::MAX, u64::MAX))),
        ("bytes 5-10/10", None),
        ("bytes 6-5/10", None),
        ("bytes 0-18446744073709551615/18446744073709551616", None),
        ("bytes 99999999999999999999-99999999999999999999/10", None),
        ("bytes 5-9/*", None),
        ("bytes */10", None),
        ("bytes */*", None),
        ("bytes=5-9/10", None),
        ("bytes  5-9/10", None),
        ("bytes 5 - 9/10", None),
        ("bytes 5-9 /10", None),
        ("bytes 5-9/ 10", None),
        ("bytes 5-9/10 ", None),
        ("bytes 5-9/10, bytes 0-4/10", None),
        ("bytes +5-9/10", None),
        ("bytes -9/10", None),
        ("bytes 5-/10", None),
        ("bytes 5-9/", None),
        ("bytes 5-9/-10", None),
        ("bytes 5-9/+10", None),
        ("bytes 5-9/0x10", None),
        ("bytes 5-9", None),
        ("bytes", None),
        ("items 5-9/10", None),
        (" 5-9/10", None),
        ("5-9/10", None),
        ("", None),
    ] {
        let found = content_range(&HeaderValue::from_str(value).unwrap());
        assert_eq!(found.map(|(first, e)| (first, e.end, e.complete)), expected, "{value:?}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn an_answer_goes_on_only_if_everything_agrees() {
    let range = ("content-range", "bytes 4-9/10");
    let six = Length::Known(6);
    let csv = ("content-type", "text/csv");
    let gzip = ("content-encoding", "gzip");
    let plain = [ETAG, csv];
    let encoded = [ETAG, gzip];
    for (what, original, status, length, fields, expected) in [
        ("the rest", &plain[..], 206, six, &[ETAG, csv, range][..], Ok(())),
        ("no type, after If-Range", &plain, 206, six, &[ETAG, range], Ok(())),
        ("chunked", &plain, 206, Length::Unknown, &[ETAG, range], Ok(())),
        ("the same coding", &encoded, 206, six, &[ETAG, gzip, range], Ok(())),
        ("200", &plain, 200, TEN, &[ETAG, csv], Err(Mismatch::Status(StatusCode::OK))),
        (
            "416",
            &plain,
            416,
            Length::None,
            &[ETAG, ("content-range", "bytes */10")],
            Err(Mismatch::Status(StatusCode::RANGE_NOT_SATISFIABLE)),
        ),
        ("no tag", &plain, 206, six, &[csv, range], Err(Mismatch::Validator)),
        ("another tag", &plain, 206, six, &[("etag", "\"b\""), range], Err(Mismatch::Validator)),
        ("another case", &plain, 206, six, &[("etag", "\"A\""), range], Err(Mismatch::Validator)),
        ("a weak tag", &plain, 206, six, &[("etag", "W/\"a\""), range], Err(Mismatch::Validator)),
        ("no quotes", &plain, 206, six, &[("etag", "a"), range], Err(Mismatch::Validator)),
        ("the tag twice", &plain, 206, six, &[ETAG, ETAG, range], Err(Mismatch::Validator)),
        ("a coding", &plain, 206, six, &[ETAG, gzip, range], Err(Mismatch::Coding)),
        ("no coding", &encoded, 206, six, &[ETAG, range], Err(Mismatch::Coding)),
        (
            "another coding",
            &encoded,
            206,
            six,
            &[ETAG, ("content-encoding", "br"), range],
            Err(Mismatch::Coding),
        ),
        ("two codings", &encoded, 206, six, &[ETAG, gzip, gzip, range], Err(Mismatch::Coding)),
        (
            "another type",
            &plain,
            206,
            six,
            &[ETAG, ("content-type", "text/plain"), range],
            Err(Mismatch::MediaType),
        ),
        (
            "several parts",
            &plain,
            206,
            six,
            &[ETAG, ("content-type", "multipart/byteranges; boundary=x"), range],
            Err(Mismatch::MediaType),
        ),
        ("no range", &plain, 206, six, &[ETAG], Err(Mismatch::Range)),
        ("two ranges", &plain, 206, six, &[ETAG, range, range], Err(Mismatch::Range)),
        (
            "one byte early",
            &plain,
            206,
            Length::Known(7),
            &[ETAG, ("content-range", "bytes 3-9/10")],
            Err(Mismatch::Range),
        ),
        (
            "one byte late",
            &plain,
            206,
            Length::Known(5),
            &[ETAG, ("content-range", "bytes 5-9/10")],
            Err(Mismatch::Range),
        ),
        (
            "not to the end",
            &plain,
            206,
            Length::Known(5),
            &[ETAG, ("content-range", "bytes 4-8/10")],
            Err(Mismatch::Range),
        ),
        (
            "of more",
            &plain,
            206,
            six,
            &[ETAG, ("content-range", "bytes 4-9/11")],
            Err(Mismatch::Range),
        ),
        (
            "of who knows",
            &plain,
            206,
            six,
            &[ETAG, ("content-range", "bytes 4-9/*")],
            Err(Mismatch::Range),
        ),
        ("a shorter body", &plain, 206, Length::Known(5), &[ETAG, range], Err(Mismatch::Length)),
        ("a longer body", &plain, 206, Length::Known(7), &[ETAG, range], Err(Mismatch::Length)),
        ("no body", &plain, 206, Length::None, &[ETAG, range], Err(Mismatch::Length)),
    ] {
        let mut resume = held(TEN, original);
        let before = resume.clone();
        assert_eq!(resume.check(4, &answer(status, length, fields)), expected, "{what}");
        if expected.is_err() {
            assert_eq!(resume, before, "{what}");
        }
    }
}

#[test]
fn a_body_of_unknown_length_learns_it_and_is_held_to_it() {
    let mut resume = held(Length::Unknown, &[ETAG]);
    assert!(resume.allows(u64::MAX, true), "nobody has said anything");
    let part = |length, range| answer(206, length, &[ETAG, ("content-range", range)]);
    let not_to_the_end = resume.check(4, &part(Length::Unknown, "bytes 4-8/10"));
    assert_eq!(not_to_the_end, Err(Mismatch::Range));
    assert_eq!(resume.check(4, &part(Length::Unknown, "bytes 4-9/10")), Ok(()));
    for (delivered, last, allowed) in [
        (9, false, true),
        (9, true, false),
        (10, true, true),
        (10, false, true),
        (11, false, false),
        (11, true, false),
    ] {
        assert_eq!(resume.allows(delivered, last), allowed, "{delivered} {last}");
    }
    // It breaks again: by now its length is known.
    assert_eq!(resume.check(7, &part(Length::Unknown, "bytes 7-10/11")), Err(Mismatch::Range));
    assert_eq!(resume.check(7, &part(Length::Known(3), "bytes 7-9/10")), Ok(()));
}

#[test]
fn a_part_goes_on_within_its_own_bounds() {
    let ranged = request(Method::GET, &[("range", "bytes=5-9")]);
    let first = answer(206, Length::Known(5), &[ETAG, ("content-range", "bytes 5-9/20")]);
    let mut resume = Resume::of(&ranged, &first).unwrap();
    for (range, length, expected) in [
        ("bytes 7-9/20", 3, Ok(())),
        ("bytes 7-19/20", 13, Err(Mismatch::Range)),
        ("bytes 2-9/20", 8, Err(Mismatch::Range)),
        ("bytes 7-9/21", 3, Err(Mismatch::Range)),
    ] {
        let next = answer(206, Length::Known(length), &[ETAG, ("content-range", range)]);
        assert_eq!(resume.check(2, &next), expected, "{range}");
    }
    assert!(resume.allows(5, true) && !resume.allows(4, true) && !resume.allows(6, false));
}
