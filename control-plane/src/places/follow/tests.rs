//! With a map service that says what it is told to, and paused time.

use std::{collections::VecDeque, path::Path, time::SystemTime};

use towpath_policies::model::{
    Coordinates, Discovery, Endpoint, EndpointSet, Location, OriginSource, Region, Registered,
    Source,
};

use super::*;
use crate::{
    config::StateDir,
    hub::tests::{node, tcp_mesh},
    places::{Answer, Eta, Found},
    status::{Moment, SourceStatus, Tracker},
    store::Store,
};

/// Knows Atlantis, unless it is to say something else first.
#[derive(Default)]
struct Fake {
    script: Mutex<VecDeque<Result<Vec<Found>, PlaceError>>>,
    asked: watch::Sender<Vec<String>>,
    /// Does not answer at all.
    silent: bool,
}

impl Fake {
    fn saying(script: impl IntoIterator<Item = Result<Vec<Found>, PlaceError>>) -> Arc<Self> {
        let script = Mutex::new(script.into_iter().collect());
        Arc::new(Self { script, ..Self::default() })
    }

    fn asked(&self) -> Vec<String> {
        self.asked.borrow().clone()
    }
}

impl MapService for Fake {
    fn find<'a>(&'a self, name: &'a str) -> Answer<'a, Vec<Found>> {
        self.asked.send_modify(|asked| asked.push(name.to_owned()));
        let said = self.script.lock().unwrap().pop_front();
        let silent = self.silent;
        Box::pin(async move {
            if silent {
                std::future::pending::<()>().await;
            }
            said.unwrap_or_else(|| Ok(if name == "Atlantis" { found(31.0) } else { vec![] }))
        })
    }

    fn at(&self, _: Coordinates) -> Answer<'_, Vec<Found>> {
        unreachable!()
    }

    fn etas<'a>(
        &'a self,
        _: Coordinates,
        _: &'a [Coordinates],
        _: Option<SystemTime>,
    ) -> Answer<'a, Vec<Option<Eta>>> {
        unreachable!()
    }
}

fn found(latitude: f64) -> Vec<Found> {
    let coordinates = Coordinates { latitude, longitude: -24.0 };
    vec![Found { name: "There".into(), country: "PT".into(), coordinates }]
}

fn away(seconds: u64) -> Result<Vec<Found>, PlaceError> {
    Err(PlaceError::Unavailable { wait: Duration::from_secs(seconds), why: "away".into() })
}

/// Services `a` and `b` for nodes of their names, whose one endpoint is at a place each.
fn mesh(version: &str, places: [(&str, Option<f64>); 2]) -> Mesh {
    let mut mesh = tcp_mesh(version, &["a", "b"]);
    for (name, (place, latitude)) in ["a", "b"].into_iter().zip(places) {
        let mut service = towpath_policies::model::Service::clone(&mesh.services[name]);
        service.discovery = Discovery::Listed;
        mesh.services.insert(name.to_owned(), Arc::new(service));
        let endpoint = Endpoint {
            place: Some(place.to_owned()),
            coordinates: latitude.map(|latitude| Coordinates { latitude, longitude: 8.0 }),
            ..Endpoint::new(([127, 0, 0, 1], 1).into())
        };
        let set = EndpointSet::new(name.to_owned(), vec![endpoint]);
        mesh.endpoints.insert(name.to_owned(), Arc::new(set));
    }
    mesh
}

struct Stage {
    hub: Arc<Hub>,
    shared: Arc<Shared>,
    places: Places,
    store: Store,
}

impl Stage {
    fn new(fake: &Arc<Fake>, ask_for: AskFor, state: &Path) -> Self {
        let store = Store::open(&StateDir::At(state.to_owned()), "here").unwrap();
        let hub = Arc::new(Hub::default());
        let maps = Maps { service: fake.clone(), ask_for };
        let tracker = Tracker::new(SourceStatus::default(), Moment::now());
        let shared = Arc::new(Shared::new(tracker));
        let places = Places::new(Some(maps), hub.clone(), shared.clone(), store.place());
        Self { hub, shared, places, store }
    }

    /// As a change is published.
    fn publish(&self, mesh: Mesh) {
        self.places.follow(&mesh);
        self.hub.publish(mesh);
    }

    /// Ends, and waits until the state folder is free.
    async fn end(self) {
        let mut released = self.store.released();
        drop(self);
        let _ = released.changed().await;
    }

    /// Places that are not known, with where they are written and why.
    fn unknown(&self) -> Vec<String> {
        let places = self.shared.look(|tracker| tracker.status().places);
        places.iter().map(|p| format!("{} {}: {}", p.source, p.place, p.error)).collect()
    }

    fn latitude(&self, name: &str) -> Option<f64> {
        let view = self.hub.view(&node(name));
        view.endpoints[name].endpoints[0].coordinates.map(|at| at.latitude)
    }
}

/// Waits until so many questions were asked, and what came of them is done.
async fn asked(fake: &Fake, count: usize) {
    let mut asked = fake.asked.subscribe();
    asked.wait_for(|asked| asked.len() >= count).await.unwrap();
    // Nothing more is done before the next timer.
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_changes_the_sets_of_its_place_and_no_other() {
    let (fake, state) = (Fake::saying([]), tempfile::tempdir().unwrap());
    let stage = Stage::new(&fake, AskFor::Unknown, state.path());
    let (mut a, mut b) = (stage.hub.watch(&node("a")), stage.hub.watch(&node("b")));
    stage.publish(mesh("1", [("Atlantis", None), ("Frankfurt", Some(50.0))]));
    assert_eq!((stage.latitude("a"), stage.latitude("b")), (None, Some(50.0)));
    a.borrow_and_update();
    b.borrow_and_update();
    asked(&fake, 1).await;
    assert_eq!(fake.asked(), ["Atlantis"], "what the gazetteer knows is not asked for");
    assert!(a.has_changed().unwrap() && !b.has_changed().unwrap());
    assert_eq!((stage.latitude("a"), stage.latitude("b")), (Some(31.0), Some(50.0)));
    assert_eq!(a.borrow_and_update().version, "1");
    // The next mesh has it from the start, and nothing is asked again.
    stage.publish(mesh("2", [("Atlantis", None), ("Atlantis", None)]));
    assert_eq!((stage.latitude("a"), stage.latitude("b")), (Some(31.0), Some(31.0)));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(fake.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn all_places_are_asked_for_where_that_is_wanted_and_the_service_has_the_say() {
    let (fake, state) =
        (Fake::saying([Ok(found(31.0)), Ok(found(51.0))]), tempfile::tempdir().unwrap());
    let stage = Stage::new(&fake, AskFor::All, state.path());
    stage.publish(mesh("1", [("Atlantis", None), ("Frankfurt", Some(50.0))]));
    assert_eq!(stage.latitude("b"), Some(50.0), "until there is an answer");
    asked(&fake, 2).await;
    assert_eq!((stage.latitude("a"), stage.latitude("b")), (Some(31.0), Some(51.0)));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_served_while_the_service_is_silent() {
    let fake = Arc::new(Fake { silent: true, ..Fake::default() });
    let state = tempfile::tempdir().unwrap();
    let stage = Stage::new(&fake, AskFor::Unknown, state.path());
    for version in ["1", "2", "3"] {
        stage.publish(mesh(version, [("Atlantis", None), ("Lemuria", None)]));
        assert_eq!(stage.hub.version(), version);
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!((stage.latitude("a"), fake.asked().len()), (None, 1));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_away_is_asked_again_when_it_says_and_not_by_a_new_mesh() {
    let (fake, state) = (Fake::saying([away(100), away(200)]), tempfile::tempdir().unwrap());
    let stage = Stage::new(&fake, AskFor::Unknown, state.path());
    stage.publish(mesh("1", [("Atlantis", None), ("Frankfurt", Some(50.0))]));
    asked(&fake, 1).await;
    assert_eq!(stage.latitude("a"), None);
    tokio::time::sleep(Duration::from_secs(98)).await;
    assert_eq!(fake.asked().len(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(fake.asked().len(), 2);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!((fake.asked().len(), stage.latitude("a")), (3, Some(31.0)));
}

#[tokio::test(start_paused = true)]
async fn what_was_found_outlives_a_restart_without_the_service() {
    let (fake, state) = (Fake::saying([]), tempfile::tempdir().unwrap());
    let stage = Stage::new(&fake, AskFor::Unknown, state.path());
    stage.publish(mesh("1", [("Atlantis", None), ("Lemuria", None)]));
    asked(&fake, 2).await;
    stage.end().await;
    let fake = Fake::saying(std::iter::repeat_with(|| away(100)).take(100));
    let stage = Stage::new(&fake, AskFor::Unknown, state.path());
    stage.publish(mesh("1", [("Atlantis", None), ("Lemuria", None)]));
    assert_eq!((stage.latitude("a"), stage.latitude("b")), (Some(31.0), None));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(fake.asked().is_empty(), "also that Lemuria is unknown is remembered");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_damaged_or_too_large_is_as_none() {
    for damage in [b"{\"format\":1,\"entr".to_vec(), vec![b' '; 17 << 20], vec![0xff; 100]] {
        let (fake, state) = (Fake::saying([]), tempfile::tempdir().unwrap());
        let folder = Store::open(&StateDir::At(state.path().to_owned()), "here").unwrap();
        std::fs::write(folder.folder().join(FILE), damage).unwrap();
        drop(folder);
        let stage = Stage::new(&fake, AskFor::Unknown, state.path());
        stage.publish(mesh("1", [("Atlantis", None), ("Frankfurt", Some(50.0))]));
        asked(&fake, 1).await;
        assert_eq!(stage.latitude("a"), Some(31.0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_the_service_refuses_keeps_no_other_waiting() {
    let refused = Err(PlaceError::Refused("no".into()));
    let (fake, state) = (Fake::saying([refused]), tempfile::tempdir().unwrap());
    let stage = Stage::new(&fake, AskFor::Unknown, state.path());
    stage.publish(mesh("1", [("?", None), ("Atlantis", None)]));
    asked(&fake, 2).await;
    assert_eq!(fake.asked(), ["?", "Atlantis"]);
    assert_eq!((stage.latitude("a"), stage.latitude("b")), (None, Some(31.0)));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_never_gets_an_answer_keeps_no_other_waiting() {
    let (fake, state) = (Fake::saying([away(100)]), tempfile::tempdir().unwrap());
    let stage = Stage::new(&fake, AskFor::Unknown, state.path());
    stage.publish(mesh("1", [("?", None), ("Atlantis", None)]));
    asked(&fake, 2).await;
    assert_eq!(fake.asked()[..2], ["?", "Atlantis"]);
    assert_eq!(stage.latitude("b"), Some(31.0));
}

#[tokio::test(start_paused = true)]
async fn the_status_says_which_places_are_not_known_and_why() {
    let script = [Ok(vec![]), away(100)];
    let (fake, state) = (Fake::saying(script), tempfile::tempdir().unwrap());
    let stage = Stage::new(&fake, AskFor::Unknown, state.path());
    stage.publish(mesh("1", [("Amsterdm", None), ("Atlantis", None)]));
    let asked_not = ["Amsterdm", "Atlantis"].map(|p| format!("a.yaml:1 {p}: not asked for yet"));
    assert_eq!(stage.unknown(), asked_not);
    asked(&fake, 2).await;
    let amsterdam = "a.yaml:1 Amsterdm: nobody knows it; did you mean Amsterdam, NL?";
    let unknown = stage.unknown();
    assert!(unknown[0].starts_with(amsterdam), "{unknown:?}");
    assert_eq!(unknown[1], "a.yaml:1 Atlantis: away");
    tokio::time::sleep(Duration::from_secs(100)).await;
    asked(&fake, 3).await;
    assert_eq!(stage.unknown().len(), 1);
    stage.publish(mesh("2", [("Amsterdm", None), ("Frankfurt", Some(50.0))]));
    assert_eq!(stage.unknown(), ["a.yaml:1 Amsterdm: nobody knows it"]);
}

#[test]
fn a_name_is_told_with_where_it_is_written() {
    let mesh = mesh("1", [("Atlantis", None), ("Frankfurt", Some(50.0))]);
    let unknown = names(&mesh, AskFor::Unknown);
    assert_eq!(unknown, Wanted::from([("Atlantis".to_owned(), "a.yaml:1".to_owned())]));
    assert_eq!(names(&mesh, AskFor::All).len(), 2);
}

#[test]
fn a_name_that_a_policy_registers_is_told_with_the_service_and_the_tenant() {
    let mut mesh = mesh("1", [("Frankfurt", Some(50.0)), ("Frankfurt", Some(50.0))]);
    let atlantis = Location { place: Some("Atlantis".into()), coordinates: None };
    let places = [("acme".to_owned(), atlantis)].into();
    let registered = Registered { header: "x-tenant".into(), places };
    let service = mesh.services.get_mut("b").map(Arc::make_mut).unwrap();
    service.prediction.origin = vec![OriginSource::Registered(registered)];
    let key = ResourceKey { kind: ResourceKind::Service, name: "b".to_owned() };
    mesh.sources.insert(key, Source { file: "b.yaml".into(), line: 7 });
    let written_at = names(&mesh, AskFor::Unknown).remove("Atlantis").unwrap();
    assert_eq!(written_at, "b.yaml:7, registered for acme by the BalancerPolicy of b");
}

#[tokio::test(start_paused = true)]
async fn an_answer_reaches_the_regions_of_endpoints_and_those_that_data_comes_from() {
    let (fake, state) = (Fake::saying([]), tempfile::tempdir().unwrap());
    let stage = Stage::new(&fake, AskFor::Unknown, state.path());
    let atlantis = || Region {
        location: Location { place: Some("Atlantis".into()), coordinates: None },
        ..Region::default()
    };
    let mut mesh = mesh("1", [("Frankfurt", Some(50.0)), ("Frankfurt", Some(50.0))]);
    let set = mesh.endpoints.get_mut("a").map(Arc::make_mut).unwrap();
    set.regions.insert("stands".to_owned(), atlantis());
    set.origins.insert("comes".to_owned(), atlantis());
    stage.publish(mesh);
    asked(&fake, 1).await;
    let set = stage.hub.view(&node("a")).endpoints["a"].clone();
    let latitude = |region: &Region| region.location.coordinates.map(|at| at.latitude);
    assert_eq!(latitude(&set.regions["stands"]), Some(31.0));
    assert_eq!(latitude(&set.origins["comes"]), Some(31.0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_reaches_registered_places_and_proxies_that_stand_there() {
    let (fake, state) = (Fake::saying([]), tempfile::tempdir().unwrap());
    let stage = Stage::new(&fake, AskFor::Unknown, state.path());
    let (mut a, mut b) = (stage.hub.watch(&node("a")), stage.hub.watch(&node("b")));
    let atlantis = || Location { place: Some("Atlantis".into()), coordinates: None };
    let mesh = |version: &str| {
        let mut mesh = mesh(version, [("Frankfurt", Some(50.0)), ("Frankfurt", Some(50.0))]);
        let service = mesh.services.get_mut("a").map(Arc::make_mut).unwrap();
        let places = [("acme".to_owned(), atlantis())].into();
        let registered = Registered { header: "x-tenant".into(), places };
        service.prediction.origin = vec![OriginSource::Registered(registered)];
        let listener = &mut mesh.listeners.get_mut("a").unwrap().listener;
        Arc::make_mut(listener).location = atlantis();
        mesh
    };
    let latitudes = || {
        let view = stage.hub.view(&node("a"));
        let OriginSource::Registered(registered) = &view.services["a"].prediction.origin[0] else {
            unreachable!()
        };
        [&registered.places["acme"], &view.listeners["a"].location]
            .map(|location| location.coordinates.map(|at| at.latitude))
    };
    stage.publish(mesh("1"));
    assert_eq!(latitudes(), [None, None]);
    a.borrow_and_update();
    b.borrow_and_update();
    asked(&fake, 1).await;
    assert_eq!(fake.asked(), ["Atlantis"]);
    assert_eq!(latitudes(), [Some(31.0), Some(31.0)]);
    assert!(a.has_changed().unwrap() && !b.has_changed().unwrap());
    stage.publish(mesh("2"));
    assert_eq!(latitudes(), [Some(31.0), Some(31.0)]);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_kept_is_kept_later() {
    let (fake, state) = (Fake::saying([]), tempfile::tempdir().unwrap());
    let stage = Stage::new(&fake, AskFor::Unknown, state.path());
    // No file can take the place of a folder.
    let file = stage.store.folder().join(FILE);
    std::fs::create_dir_all(file.join("in the way")).unwrap();
    stage.publish(mesh("1", [("Atlantis", None), ("Frankfurt", Some(50.0))]));
    asked(&fake, 1).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(file.is_dir());
    std::fs::remove_dir_all(&file).unwrap();
    let kept = async {
        while !file.is_file() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), kept).await.expect("it is tried again");
}
