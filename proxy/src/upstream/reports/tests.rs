use towpath_policies::model::{Balancer, Endpoint, EndpointSet, Protocol, Service};

use super::*;
use crate::upstream::reconcile;

/// A service that asks out of band, of so many endpoints at which nobody listens.
fn streamed(name: &str, endpoints: u16) -> Arc<ServiceState> {
    let mut spec = Service::new(name, Protocol::Http2);
    spec.balancer = Balancer::WeightedRoundRobin;
    spec.out_of_band = Some(Duration::from_secs(1));
    let endpoint = |port| Endpoint::new(([127, 0, 0, 1], port).into());
    let endpoints = (1..=endpoints).map(endpoint).collect();
    let set = EndpointSet::new(name.into(), endpoints);
    reconcile(None, Arc::new(spec), &set, 1).unwrap()
}

fn asks(service: &ServiceState) -> bool {
    service.live.asks_for_reports.load(Relaxed)
}

#[tokio::test(start_paused = true)]
async fn who_gets_no_stream_is_asked_by_requests_and_those_that_ended_leave_their_places() {
    let services = BTreeMap::from([
        ("a".to_owned(), streamed("a", 1_000)),
        ("b".to_owned(), streamed("b", 24)),
        ("c".to_owned(), streamed("c", 2)),
    ]);
    let (b, c) = (&services["b"], &services["c"]);
    let mut streams = Streams::default();
    streams.reconcile(&services);
    assert!(!asks(b) && asks(c));
    let runs = |streams: &Streams| {
        let running = streams.running.values().flat_map(HashMap::values);
        running.filter(|running| !running.task.is_finished()).count()
    };
    assert_eq!(runs(&streams), MOST_STREAMS);
    // One of them does not know the method, say.
    streams.running["a"][&([127, 0, 0, 1], 7).into()].task.abort();
    tokio::task::yield_now().await;
    assert_eq!(runs(&streams), MOST_STREAMS - 1);
    streams.reconcile(&services);
    assert_eq!(runs(&streams), MOST_STREAMS);
    let silent = [0, 1].map(|nth| c.endpoints[nth].live.silent.load(Relaxed));
    assert_eq!(silent, [false, true]);
    assert!(asks(c), "for the other one");
}

#[tokio::test(start_paused = true)]
async fn requests_ask_an_endpoint_whose_stream_broke_a_few_times_until_it_tells_again() {
    let service = streamed("vain", 1);
    let services = BTreeMap::from([("vain".to_owned(), service.clone())]);
    let mut streams = Streams::default();
    streams.reconcile(&services);
    let live = &service.endpoints[0].live;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert!(!live.silent.load(Relaxed) && !asks(&service), "it was asked once or twice");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(live.silent.load(Relaxed) && asks(&service));
    service.tells_out_of_band(live, true);
    assert!(!live.silent.load(Relaxed) && !asks(&service));
}

#[test]
fn requests_ask_as_long_as_one_of_many_endpoints_tells_nothing() {
    let service = streamed("many", 10_000);
    let tells = |service: &ServiceState, nth: usize, tells| {
        service.tells_out_of_band(&service.endpoints[nth].live, tells);
        let silent = |e: &Arc<EndpointState>| e.live.silent.load(Relaxed);
        assert_eq!(asks(service), service.endpoints.iter().any(silent), "{nth} {tells}");
    };
    for nth in [3, 3, 9_999, 0] {
        tells(&service, nth, false);
    }
    // One that goes takes its silence with it.
    let set = |ports: std::ops::RangeInclusive<u16>| {
        let endpoint = |port| Endpoint::new(([127, 0, 0, 1], port).into());
        EndpointSet::new("many".into(), ports.map(endpoint).collect())
    };
    let service = reconcile(Some(&service), service.spec.clone(), &set(1..=9_999), 1).unwrap();
    for nth in [3, 0, 0] {
        tells(&service, nth, true);
    }
    assert!(!asks(&service));
    tells(&service, 9_998, false);
    let service = reconcile(Some(&service), service.spec.clone(), &set(1..=9_998), 1).unwrap();
    assert!(!asks(&service));
}

#[test]
fn pauses_grow_up_to_two_minutes_and_begin_again_after_a_report() {
    let mut backoff = Backoff::default();
    let seconds: Vec<f64> = (0..14).map(|_| backoff.next(0.5).as_secs_f64()).collect();
    assert!((seconds[0] - 1.0).abs() < 1e-9 && (seconds[1] - 1.6).abs() < 1e-9, "{seconds:?}");
    assert!(seconds.windows(2).all(|pair| pair[0] <= pair[1]), "{seconds:?}");
    assert!((seconds[13] - 120.0).abs() < 1e-9, "{seconds:?}");
    for jitter in [0.0, 1.0] {
        let pause = (0..1_000).map(|_| backoff.next(jitter)).max().unwrap().as_secs_f64();
        assert!((95.0..145.0).contains(&pause), "{pause}");
    }
    backoff = Backoff::default();
    assert!(backoff.next(1.0) < Duration::from_millis(1_201));
}

#[test]
fn of_what_came_the_newest_whole_message_is_kept_and_the_rest_waits() {
    for (came, expected, left) in [
        (&b""[..], Ok(None), 0),
        (b"\0\0\0\0", Ok(None), 4),
        (b"\0\0\0\0\0", Ok(Some(&b""[..])), 0),
        (b"\0\0\0\0\x02ab", Ok(Some(b"ab")), 0),
        (b"\0\0\0\0\x02a", Ok(None), 6),
        (b"\0\0\0\0\x01a\0\0\0\0\x01b\0\0", Ok(Some(b"b")), 2),
        (b"\x01\0\0\0\x01a", Err(()), 6),
        (b"\0\xff\xff\xff\xff", Err(()), 5),
        (b"\0\0\0\x40\x01", Err(()), 5),
    ] {
        let mut buffer = BytesMut::from(came);
        let last = last_message(&mut buffer).map_err(|_| ());
        assert_eq!(
            last.as_ref().map(|last| last.as_deref()),
            expected.as_ref().copied(),
            "{came:?}"
        );
        assert_eq!(buffer.len(), left, "{came:?}");
    }
}

#[test]
fn one_that_does_not_know_the_method_is_told_from_one_that_cannot_now() {
    let fields = |status: &'static str| {
        HeaderMap::from_iter([(
            header::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static(status),
        )])
    };
    for (status, fields, expected) in [
        (200, HeaderMap::new(), None),
        (200, fields("12"), Some(true)),
        (200, fields("14"), Some(false)),
        (200, fields("0"), Some(false)),
        (404, HeaderMap::new(), Some(true)),
        (503, HeaderMap::new(), Some(false)),
        (404, fields("14"), Some(false)),
    ] {
        let end = refused(StatusCode::from_u16(status).unwrap(), &fields);
        let unknown = end.map(|end| end == End::Unknown);
        assert_eq!(unknown, expected, "{status} {fields:?}");
    }
}
