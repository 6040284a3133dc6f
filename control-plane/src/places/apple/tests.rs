//! The client beside a stand-in, in memory and with paused time; and over real sockets and TLS.

use std::sync::Arc;

use super::{
    standin::{Instead, KEY_ID, Standin, TEAM_ID},
    *,
};

/// More than any test asks for.
const PLENTY: Limits = Limits { per_second: 1000, per_day: 1000 };

fn key(standin: &Standin) -> AppleKey {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("AuthKey.p8");
    std::fs::write(&path, standin.pem()).unwrap();
    AppleKey::read(&path, KEY_ID, TEAM_ID).unwrap()
}

fn in_memory(standin: &Arc<Standin>, key: AppleKey, limits: Limits) -> AppleMaps {
    let standin = standin.clone();
    let dial: fetch::Dial = Arc::new(move || {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(standin.clone().serve(theirs));
        Box::pin(async { Ok(Box::new(ours) as _) })
    });
    AppleMaps::over(Http::over(dial), key, limits)
}

fn beside(standin: &Arc<Standin>) -> AppleMaps {
    in_memory(standin, key(standin), PLENTY)
}

fn at(latitude: f64, longitude: f64) -> Coordinates {
    Coordinates { latitude, longitude }
}

fn paths(standin: &Standin) -> Vec<String> {
    let path = |call: &String| call.split('?').next().unwrap_or_default().to_owned();
    standin.calls().iter().map(path).collect()
}

#[tokio::test(start_paused = true)]
async fn one_token_serves_until_shortly_before_it_expires() {
    let standin = Standin::new();
    let maps = beside(&standin);
    let found = maps.find("Atlantis").await.unwrap();
    assert_eq!(found[0].coordinates, at(31.25, -24.25));
    assert_eq!(found[0].name, "Atlantis, Atlantic, Country");
    maps.find("Avalon").await.unwrap();
    assert!(maps.find("Nowhere").await.unwrap().is_empty());
    assert_eq!(paths(&standin), ["/v1/token", "/v1/geocode", "/v1/geocode", "/v1/geocode"]);
    tokio::time::advance(Duration::from_secs(1739)).await;
    maps.find("Atlantis").await.unwrap();
    assert_eq!(paths(&standin).len(), 5);
    tokio::time::advance(Duration::from_secs(2)).await;
    maps.find("Atlantis").await.unwrap();
    assert_eq!(paths(&standin)[5..], ["/v1/token", "/v1/geocode"]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_accepted_any_more_is_renewed_once() {
    let standin = Standin::new();
    let maps = beside(&standin);
    maps.find("Atlantis").await.unwrap();
    standin.revoke();
    maps.find("Atlantis").await.unwrap();
    assert_eq!(paths(&standin)[2..], ["/v1/geocode", "/v1/token", "/v1/geocode"]);
    standin.instead([Instead::Error(401, None), Instead::Error(401, None)]);
    let error = maps.find("Atlantis").await.unwrap_err();
    assert!(
        matches!(&error, PlaceError::Credentials { why, .. } if why.contains("as it was told"))
    );
    assert_eq!(paths(&standin).len(), 8, "no third try");
    let error = maps.find("Atlantis").await.unwrap_err();
    assert!(matches!(error, PlaceError::Waiting { wait, .. } if wait >= Duration::from_secs(29)));
    assert_eq!(paths(&standin).len(), 8, "and it is left alone");
}

#[tokio::test(start_paused = true)]
async fn a_key_of_somebody_else_is_refused_in_plain_words() {
    let standin = Standin::new();
    let maps = in_memory(&standin, key(&Standin::new()), PLENTY);
    let error = maps.find("Atlantis").await.unwrap_err().to_string();
    assert!(
        error.contains("the credentials are refused: status 401, another signature"),
        "{error}"
    );
    assert_eq!(paths(&standin), ["/v1/token"]);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_asked_too_much_gets_the_rest_it_wants() {
    let standin = Standin::new();
    let maps = beside(&standin);
    standin.instead([Instead::Error(429, Some("120".into()))]);
    let error = maps.find("Atlantis").await.unwrap_err();
    assert_eq!(error.wait(), Some(Duration::from_secs(120)), "{error}");
    tokio::time::advance(Duration::from_secs(117)).await;
    let error = maps.find("Atlantis").await.unwrap_err();
    assert!(matches!(error, PlaceError::Waiting { .. }), "{error}");
    assert_eq!(paths(&standin).len(), 2);
    tokio::time::advance(Duration::from_secs(3)).await;
    maps.find("Atlantis").await.unwrap();
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
    standin.instead([Instead::Error(429, Some(date))]);
    let wait = maps.find("Atlantis").await.unwrap_err().wait().unwrap();
    assert!((3500..=3600).contains(&wait.as_secs()), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_say_for_how_long_is_asked_ever_more_rarely() {
    let standin = Standin::new();
    let maps = beside(&standin);
    standin.instead(std::iter::repeat_n(Instead::Error(429, None), 10));
    let mut waits = Vec::new();
    while let Err(error) = maps.find("Atlantis").await {
        let wait = error.wait().unwrap();
        waits.push(wait.as_secs_f64());
        tokio::time::advance(wait).await;
    }
    assert_eq!(waits.len(), 10);
    for (n, wait) in waits.iter().enumerate() {
        let most = f64::from(10 << n).min(3600.0);
        assert!((most / 2.0..=most).contains(wait), "{waits:?}");
    }
    let asked = paths(&standin).iter().filter(|path| *path == "/v1/geocode").count();
    assert_eq!(asked, 11, "in more than an hour and a half");
}

#[tokio::test(start_paused = true)]
async fn whatever_it_answers_is_an_error_that_passes() {
    let standin = Standin::new();
    let maps = beside(&standin);
    for (what, expected) in [
        (Instead::Error(500, None), "status 500, as it was told, of the stand-in"),
        (Instead::Error(503, None), "status 503"),
        (Instead::Body("<html>"), "does not document"),
        (Instead::Body("{}"), "does not document"),
        (
            Instead::Body(r#"{"results":[{"coordinate":{"latitude":"a","longitude":1}}]}"#),
            "does not document",
        ),
        (Instead::Giant, "length limit exceeded"),
        (Instead::Silence, "no answer within 10 s"),
        (Instead::HangUp, "broke off"),
    ] {
        standin.instead([what.clone()]);
        let error = maps.find("Atlantis").await.unwrap_err();
        assert!(
            matches!(&error, PlaceError::Unavailable { why, .. } if why.contains(expected)),
            "{what:?} {error}"
        );
        tokio::time::advance(error.wait().unwrap()).await;
        maps.find("Atlantis").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_that_is_not_taken_keeps_no_other_waiting() {
    let standin = Standin::new();
    let maps = beside(&standin);
    let error = maps.find("").await.unwrap_err();
    assert!(matches!(error, PlaceError::Refused(_)), "{error}");
    assert_eq!(error.wait(), None);
    maps.find("Atlantis").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn questions_are_spread_over_time_and_end_with_the_days_quota() {
    let standin = Standin::new();
    let maps = in_memory(&standin, key(&standin), Limits { per_second: 5, per_day: 30 });
    let start = Instant::now();
    for _ in 0..29 {
        maps.find("Atlantis").await.unwrap();
    }
    // With the token's 30 calls: five at once, the others 0.2 s apart.
    assert_eq!(start.elapsed().as_millis() / 100, 50);
    let error = maps.find("Atlantis").await.unwrap_err();
    assert!(error.to_string().contains("quota"), "{error}");
    assert_eq!(standin.calls().len(), 30);
}

#[tokio::test(start_paused = true)]
async fn points_have_names_and_ways_have_times() {
    let standin = Standin::new();
    let maps = beside(&standin);
    let found = maps.at(at(37.3316851, -122.0300674)).await.unwrap();
    assert_eq!(found[0].country, "US");
    let destinations: Vec<_> = (0..12).map(|n| at(f64::from(n % 11), 1.0)).collect();
    let etas = maps.etas(at(0.0, 0.0), &destinations, None).await.unwrap();
    let metres: Vec<_> = etas.iter().map(|eta| eta.map(|eta| eta.distance_meters)).collect();
    let expected: Vec<_> = (0..12).map(|n| (n % 11 != 0).then_some((n % 11 + 1) * 1000)).collect();
    assert_eq!(metres, expected, "in the order of the destinations, over two calls");
    let departure = UNIX_EPOCH + Duration::from_secs(1_893_484_800);
    let etas = maps.etas(at(0.0, 0.0), &destinations[1..2], Some(departure)).await.unwrap();
    let eta = etas[0].unwrap();
    assert_eq!((eta.expected.as_secs(), eta.empty_roads.as_secs()), (4000, 1000));
    let calls = standin.calls();
    assert_eq!(calls[1], "/v1/reverseGeocode?loc=37.331685,-122.030067&lang=en-US");
    assert_eq!(
        calls[4],
        "/v1/etas?origin=0.000000,0.000000&destinations=1.000000,1.000000&transportType=Automobile&departureDate=2030-01-01T08:00:00Z"
    );
    assert!(maps.etas(at(0.0, 0.0), &[], None).await.unwrap().is_empty());
}

#[tokio::test]
async fn over_tls_only_a_server_that_the_roots_vouch_for_is_told_a_token() {
    let standin = Standin::new();
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], signing_key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("localhost:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let server = standin.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                server.clone().serve(stream).await;
            }
        }
    });
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let maps = AppleMaps::new(&url, roots, key(&standin), PLENTY).unwrap();
    assert_eq!(maps.find("Avalon").await.unwrap()[0].country, "GB");

    let calls = standin.calls().len();
    let maps = AppleMaps::new(&url, RootCertStore::empty(), key(&standin), PLENTY).unwrap();
    let error = maps.find("Avalon").await.unwrap_err().to_string();
    assert!(error.contains("no connection") && error.contains("certificate"), "{error}");
    assert_eq!(standin.calls().len(), calls);
}

#[tokio::test]
async fn over_tcp_one_that_is_gone_is_left_alone() {
    let standin = Standin::new();
    let url = standin.listen().await;
    let maps = AppleMaps::new(&url, RootCertStore::empty(), key(&standin), PLENTY).unwrap();
    maps.find("Atlantis").await.unwrap();
    standin.set_away(true);
    let error = maps.find("Atlantis").await.unwrap_err();
    assert!(matches!(error, PlaceError::Unavailable { .. }), "{error}");
    let nobody =
        AppleMaps::new("http://127.0.0.1:1", RootCertStore::empty(), key(&standin), PLENTY);
    let error = nobody.unwrap().find("Atlantis").await.unwrap_err().to_string();
    assert!(error.contains("no connection"), "{error}");
}
