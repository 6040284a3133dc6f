//! Beside a stand-in, in memory and with paused time.

use std::path::Path;

use towpath_policies::model::{Discovery, Endpoint, EndpointSet, Region, Snapshot};

use super::{
    super::standin::{Instead, Standin, TOKEN},
    *,
};
use crate::{
    config::StateDir,
    hub::tests::{node, tcp_mesh},
    store::Store,
};

const MINUTE: Duration = Duration::from_secs(60);

/// Services `a` and `b` for nodes of their names, each in a region of this zone and intensity.
fn mesh(version: &str, regions: [(&str, Option<f64>); 2]) -> Mesh {
    let mut mesh = tcp_mesh(version, &["a", "b"]);
    for (name, (zone, carbon_intensity)) in ["a", "b"].into_iter().zip(regions) {
        let mut service = towpath_policies::model::Service::clone(&mesh.services[name]);
        service.discovery = Discovery::Listed;
        mesh.services.insert(name.to_owned(), Arc::new(service));
        let mut endpoint = Endpoint::new(([127, 0, 0, 1], 1).into());
        endpoint.locality.region = format!("region-{name}");
        let mut set = EndpointSet::new(name.to_owned(), vec![endpoint]);
        let electricity_maps_zone = (!zone.is_empty()).then(|| zone.to_owned());
        let region = Region { carbon_intensity, electricity_maps_zone, ..Region::default() };
        set.regions.insert(format!("region-{name}"), region);
        mesh.endpoints.insert(name.to_owned(), Arc::new(set));
    }
    mesh
}

struct Stage {
    hub: Arc<Hub>,
    intensities: Intensities,
    store: Store,
}

impl Stage {
    fn new(standin: &Arc<Standin>, token: &str, state: &Path) -> Self {
        let store = Store::open(&StateDir::At(state.to_owned()), "here").unwrap();
        let hub = Arc::new(Hub::default());
        let api = Some(Arc::new(standin.client(token)));
        let intensities = Intensities::new(api, hub.clone(), store.place());
        Self { hub, intensities, store }
    }

    /// As a change is published.
    fn publish(&self, mesh: Mesh) {
        self.intensities.follow(&mesh);
        self.hub.publish(mesh);
    }

    fn view(&self, name: &str) -> Arc<Snapshot> {
        self.hub.view(&node(name))
    }

    fn grams(&self, name: &str) -> Option<f64> {
        let view = self.view(name);
        view.endpoints[name].regions[&format!("region-{name}")].carbon_intensity
    }

    /// Ends, and waits until the state folder is free.
    async fn end(self) {
        let mut released = self.store.released();
        drop(self);
        let _ = released.changed().await;
    }
}

/// Lets so much time pass, in small parts.
async fn pass(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        sleep(Duration::from_secs(1).min(until - Instant::now())).await;
        // The file is written on another thread.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_api_says_goes_to_the_sets_of_its_zone_alone() {
    let state = tempfile::tempdir().unwrap();
    let standin = Standin::new(&[("DE", 350.0)]);
    let stage = Stage::new(&standin, TOKEN, state.path());
    let a = stage.hub.watch(&node("a"));
    let mut b = stage.hub.watch(&node("b"));
    stage.publish(mesh("1", [("DE", Some(400.0)), ("", Some(100.0))]));
    assert_eq!(stage.grams("a"), Some(400.0), "nothing waits for an answer");
    b.borrow_and_update();
    pass(MINUTE).await;
    assert_eq!((stage.grams("a"), stage.grams("b")), (Some(350.0), Some(100.0)));
    assert!(a.has_changed().unwrap() && !b.has_changed().unwrap());
    assert_eq!(standin.calls().len(), 1);
    // The same answer again is no change.
    let before = stage.view("a").endpoints["a"].clone();
    pass(MINUTE * 60).await;
    let calls = standin.calls();
    assert!((4..=12).contains(&(calls.len() - 1)), "each 5 to 15 minutes: {calls:?}");
    assert!(Arc::ptr_eq(&before, &stage.view("a").endpoints["a"]));
    standin.set("DE", 90.0);
    pass(MINUTE * 15 + MINUTE).await;
    assert_eq!(stage.grams("a"), Some(90.0));
    // A commit changes nothing about it.
    stage.publish(mesh("2", [("DE", Some(410.0)), ("", Some(100.0))]));
    assert_eq!(stage.grams("a"), Some(90.0));
    // One that names no zone any more does.
    stage.publish(mesh("3", [("", Some(410.0)), ("", Some(100.0))]));
    assert_eq!(stage.grams("a"), Some(410.0));
}

#[tokio::test(start_paused = true)]
async fn what_was_said_last_counts_for_six_hours_over_restarts_too() {
    let state = tempfile::tempdir().unwrap();
    let standin = Standin::new(&[("DE", 350.0)]);
    let both = || mesh("1", [("DE", Some(400.0)), ("DE", None)]);
    let stage = Stage::new(&standin, TOKEN, state.path());
    stage.publish(both());
    pass(MINUTE).await;
    standin.set_away(true);
    pass(MINUTE * 60 * 3).await;
    assert_eq!((stage.grams("a"), stage.grams("b")), (Some(350.0), Some(350.0)));
    let asked = standin.calls().len();
    assert!((20..120).contains(&asked), "it is asked ever more rarely: {asked}");
    stage.end().await;
    let stage = Stage::new(&standin, TOKEN, state.path());
    stage.publish(both());
    assert_eq!(stage.grams("a"), Some(350.0));
    pass(MINUTE * 60 * 7).await;
    assert_eq!((stage.grams("a"), stage.grams("b")), (Some(400.0), None), "too old");
    standin.set_away(false);
    pass(MINUTE * 6).await;
    assert_eq!((stage.grams("a"), stage.grams("b")), (Some(350.0), Some(350.0)));
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_api_that_asks_for_rest_gets_it() {
    let state = tempfile::tempdir().unwrap();
    let standin = Standin::new(&[("DE", 350.0), ("FR", 30.0)]);
    standin.instead([
        Instead::Error(429, Some("600")),
        Instead::Error(503, Some("300")),
        Instead::Error(500, Some("60")),
    ]);
    let stage = Stage::new(&standin, TOKEN, state.path());
    stage.publish(mesh("1", [("DE", Some(400.0)), ("FR", None)]));
    pass(MINUTE * 20).await;
    let calls = standin.calls();
    let at: Vec<_> = calls.iter().take(5).map(|(at, _)| at.as_secs()).collect();
    assert_eq!(at[0], 0);
    assert!((600..603).contains(&at[1]), "{at:?}");
    assert!((900..905).contains(&at[2]), "{at:?}");
    assert!((960..966).contains(&at[3]) && at[4] > at[3], "{at:?}");
    assert_eq!((stage.grams("a"), stage.grams("b")), (Some(350.0), Some(30.0)));
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_changes_nothing() {
    let odd = [
        Instead::Error(500, None),
        Instead::Error(401, None),
        Instead::HangUp,
        Instead::Silence,
        Instead::Body(""),
        Instead::Body("{\"zone\":\"DE\"}"),
        Instead::Body("{\"zone\":\"DE\",\"carbonIntensity\":null}"),
        Instead::Body("{\"zone\":\"DE\",\"carbonIntensity\":\"12\"}"),
        Instead::Body("{\"zone\":\"DE\",\"carbonIntensity\":-5}"),
        Instead::Body("{\"zone\":\"DE\",\"carbonIntensity\":1e6}"),
        Instead::Body("{\"zone\":\"FR\",\"carbonIntensity\":50}"),
    ];
    for instead in odd {
        let state = tempfile::tempdir().unwrap();
        let standin = Standin::new(&[("DE", 350.0)]);
        standin.instead([instead.clone()]);
        let stage = Stage::new(&standin, TOKEN, state.path());
        stage.publish(mesh("1", [("DE", Some(400.0)), ("", None)]));
        pass(Duration::from_millis(200)).await;
        assert_eq!(stage.grams("a"), Some(400.0), "{instead:?}");
        pass(MINUTE * 62).await;
        assert_eq!(stage.grams("a"), Some(350.0), "{instead:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_token_is_asked_with_rarely_and_an_unknown_zone_keeps_no_other_back() {
    let state = tempfile::tempdir().unwrap();
    let standin = Standin::new(&[("DE", 350.0)]);
    let stage = Stage::new(&standin, "another", state.path());
    stage.publish(mesh("1", [("DE", Some(400.0)), ("", None)]));
    pass(MINUTE * 60 * 5).await;
    assert!(standin.calls().len() < 16, "{:?}", standin.calls());
    assert_eq!(stage.grams("a"), Some(400.0));
    stage.end().await;
    let stage = Stage::new(&standin, TOKEN, state.path());
    stage.publish(mesh("1", [("AA", Some(400.0)), ("DE", None)]));
    pass(MINUTE).await;
    assert_eq!((stage.grams("a"), stage.grams("b")), (Some(400.0), Some(350.0)));
}

#[tokio::test(start_paused = true)]
async fn a_zone_that_always_fails_keeps_no_other_back() {
    for failure in [Instead::Error(500, None), Instead::Body("{}"), Instead::HangUp] {
        let state = tempfile::tempdir().unwrap();
        let standin = Standin::new(&[("DE", 350.0), ("FR", 30.0)]);
        standin.fails("AA", failure.clone());
        let stage = Stage::new(&standin, TOKEN, state.path());
        let mut mesh = mesh("1", [("DE", Some(400.0)), ("FR", None)]);
        let mut set = EndpointSet::clone(&mesh.endpoints["a"]);
        let electricity_maps_zone = Some("AA".to_owned());
        let bad = Region { electricity_maps_zone, ..Region::default() };
        set.regions.insert("another".to_owned(), bad);
        mesh.endpoints.insert("a".to_owned(), Arc::new(set));
        stage.publish(mesh);
        pass(MINUTE).await;
        assert_eq!((stage.grams("a"), stage.grams("b")), (Some(350.0), Some(30.0)), "{failure:?}");
        // Nor later.
        standin.set("DE", 90.0);
        standin.set("FR", 20.0);
        pass(MINUTE * 30).await;
        assert_eq!((stage.grams("a"), stage.grams("b")), (Some(90.0), Some(20.0)), "{failure:?}");
    }
}

#[test]
fn a_zone_that_always_fails_among_others_is_told_of_once() {
    let mut failing = Failing::default();
    assert!(failing.failed("AA"));
    for _ in 0..3 {
        assert!(!failing.answered("DE") && !failing.failed("AA"));
    }
    assert!(!failing.failed("DE"), "the whole of it is away");
    assert!(!failing.answered("DE"));
    assert!(failing.answered("AA") && !failing.answered("AA"));
    assert!(failing.failed("DE"));
}
