use http::HeaderMap;

use super::*;
use crate::upstream::connect::Wire;

fn upload(method: Method, fields: &[(&'static str, &'static str)]) -> RequestHead {
    RequestHead {
        received: Wire::Http1,
        method,
        authority: "etl.example:80".parse().unwrap(),
        target: "/files".parse().unwrap(),
        headers: headers(fields),
        length: Length::Known(100),
        te_trailers: false,
        upgrade: None,
        expects_continue: true,
    }
}

fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    fields.iter().map(field).collect()
}

fn interim(status: u16, fields: &[(&'static str, &'static str)]) -> Interim {
    Interim { status: StatusCode::from_u16(status).unwrap(), headers: headers(fields) }
}

fn answer(status: u16, fields: &[(&'static str, &'static str)]) -> ResponseHead {
    let status = StatusCode::from_u16(status).unwrap();
    ResponseHead { status, headers: headers(fields), length: Length::None }
}

const V8: (&str, &str) = ("upload-draft-interop-version", "8");

#[test]
fn only_uploads_whose_client_leaves_it_to_us_are_offered() {
    for (method, fields, offered) in [
        (Method::PUT, &[][..], true),
        (Method::POST, &[("content-type", "a/b")], true),
        (Method::PATCH, &[], false),
        (Method::GET, &[], false),
        (Method::POST, &[("upload-complete", "?0")], false),
        (Method::PUT, &[("upload-length", "3")], false),
        (Method::PUT, &[("upload-draft-interop-version", "6")], false),
    ] {
        let mut request = upload(method, fields);
        assert_eq!(UploadResume::of(&mut request).is_some(), offered, "{request:?}");
        if offered {
            assert_eq!(request.headers["upload-complete"], "?1");
            assert_eq!(request.headers["upload-draft-interop-version"], "8");
        }
    }
    let mut empty = upload(Method::PUT, &[]);
    empty.length = Length::Known(0);
    assert!(UploadResume::of(&mut empty).is_none());
}

#[test]
fn a_resource_is_believed_only_from_the_same_server_and_version() {
    for (location, target) in [
        ("/uploads/1", Some("/uploads/1")),
        ("/uploads/1?a=b#c", Some("/uploads/1?a=b")),
        ("http://ETL.example:80/u", Some("/u")),
        ("https://etl.example:80/u", Some("/u")),
        ("http://other.example/u", None),
        ("//other.example/u", None),
        ("u/1", None),
        ("", None),
    ] {
        let request = upload(Method::PUT, &[]);
        let mut resume = UploadResume::default();
        assert!(resume.hear(&interim(104, &[("location", location), V8]), &request));
        let question = resume.question(&request);
        assert_eq!(question.as_ref().map(|q| q.target.as_str()), target, "{location}");
    }
    let request = upload(Method::PUT, &[]);
    let mut resume = UploadResume::default();
    assert!(!resume.hear(&interim(103, &[("location", "/u"), V8]), &request));
    assert!(resume.hear(&interim(104, &[("location", "/u")]), &request));
    let old = ("upload-draft-interop-version", "7");
    assert!(resume.hear(&interim(104, &[("location", "/u"), old]), &request));
    assert!(!resume.can_go_on(), "another version says something else");
    assert!(resume.hear(&interim(104, &[("location", "/u"), V8]), &request));
    assert!(resume.hear(&interim(104, &[("upload-offset", "9"), V8]), &request));
    assert!(resume.can_go_on(), "progress changes nothing");
    assert!(resume.hear(&interim(104, &[("location", "/v"), V8]), &request));
    assert!(!resume.can_go_on(), "it must be the same in all messages");
}

#[test]
fn what_is_sent_on_speaks_of_the_rest_alone() {
    let mut request = upload(
        Method::PUT,
        &[
            ("content-length", "100"),
            ("content-type", "a/b"),
            ("content-encoding", "gzip"),
            ("content-digest", "sha-256=:AAAA:"),
            ("if-none-match", "*"),
            ("idempotency-key", "\"k\""),
            ("authorization", "me"),
        ],
    );
    let mut resume = UploadResume::of(&mut request).unwrap();
    assert!(resume.append(&request, 40).is_none(), "no resource is known");
    resume.hear(&interim(104, &[("location", "/u"), V8]), &request);
    let question = resume.question(&request).unwrap();
    assert_eq!((&question.method, question.length), (&Method::HEAD, Length::None));
    assert_eq!(question.headers, headers(&[("authorization", "me"), V8]));
    let append = resume.append(&request, 40).unwrap();
    assert_eq!((&append.method, append.length), (&Method::PATCH, Length::Known(60)));
    assert_eq!(
        append.headers,
        headers(&[
            ("authorization", "me"),
            V8,
            ("upload-complete", "?1"),
            ("upload-offset", "40"),
            ("content-type", "application/partial-upload"),
            ("content-length", "60"),
        ])
    );
    assert!(resume.append(&request, 101).is_none(), "no server has more than there is");

    let mut last = answer(201, &[("location", "/u"), ("upload-complete", "?1"), ("etag", "\"e\"")]);
    resume.clean(&mut last);
    assert_eq!(last.headers, headers(&[("etag", "\"e\"")]));
    let mut elsewhere = answer(201, &[("location", "/files/7")]);
    resume.clean(&mut elsewhere);
    assert!(elsewhere.headers.contains_key("location"), "where the new thing is");
}

#[test]
fn answers_of_the_upload_are_told_from_answers_about_it() {
    for (status, fields, expected) in [
        (200, &[][..], Verdict::Answer),
        (201, &[("upload-complete", "?1")], Verdict::Answer),
        (400, &[("upload-complete", "?1")], Verdict::Answer),
        (500, &[("upload-complete", "?1")], Verdict::Answer),
        (204, &[("upload-complete", "?0")], Verdict::Again),
        (409, &[("upload-complete", "?0")], Verdict::Again),
        (503, &[], Verdict::Again),
        (404, &[], Verdict::Over),
        (307, &[], Verdict::Over),
    ] {
        assert_eq!(verdict(&answer(status, fields)), expected, "{status} {fields:?}");
    }
    for (status, value, expected) in [
        (204, "0", Ok(0)),
        (200, "25;a=1", Ok(25)),
        (204, "-1", Err(Verdict::Again)),
        (204, "1.5", Err(Verdict::Again)),
        (204, "1234567890123456", Err(Verdict::Again)),
        (503, "3", Err(Verdict::Again)),
        (404, "3", Err(Verdict::Over)),
    ] {
        assert_eq!(offset(&answer(status, &[("upload-offset", value)])), expected, "{value}");
    }
}
