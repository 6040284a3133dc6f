use std::{collections::VecDeque, sync::Mutex};

use towpath_policies::model::{Protocol, Service, Snapshot};

use super::*;
use crate::{
    hub::tests::{node, tcp_mesh},
    status::{SourceStatus, Status, Tracker},
};

type Answers = VecDeque<io::Result<Vec<SocketAddr>>>;

/// A mesh of one service `etl`, found by DNS every 30 s, and whoever asks for it.
struct Fixture {
    names: Names,
    hub: Arc<Hub>,
    shared: Arc<Shared>,
}

impl Fixture {
    /// Gives these answers in turn, then none at all.
    fn new(answers: Vec<io::Result<Vec<SocketAddr>>>) -> Self {
        let answers = Arc::new(Mutex::new(Answers::from(answers)));
        let resolver = Resolver::new(move |_, _| {
            let answer = answers.lock().unwrap().pop_front();
            async move {
                match answer {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            }
        });
        let hub = Arc::new(Hub::default());
        let tracker = Tracker::new(SourceStatus::default(), Moment::now());
        let shared = Arc::new(Shared::new(tracker));
        Self { names: Names::new(resolver, hub.clone(), shared.clone()), hub, shared }
    }

    async fn publish(&mut self, mesh: Mesh) -> watch::Receiver<Arc<Snapshot>> {
        self.names.follow(&mesh).await;
        self.hub.publish(mesh);
        self.hub.watch(&node("a"))
    }

    fn status(&self) -> Status {
        self.shared.look(Tracker::status)
    }
}

fn mesh() -> Mesh {
    tcp_mesh("1", &["a"])
}

fn answer(ports: &[u16]) -> io::Result<Vec<SocketAddr>> {
    Ok(ports.iter().map(|port| SocketAddr::from(([10, 0, 0, 1], *port))).collect())
}

fn failure() -> io::Result<Vec<SocketAddr>> {
    Err(io::Error::other("SERVFAIL"))
}

fn ports(view: &watch::Receiver<Arc<Snapshot>>) -> Vec<u16> {
    view.borrow().endpoints["a"].endpoints.iter().map(|e| e.address.port()).collect()
}

#[test]
fn pauses_double_up_to_the_interval() {
    let refresh = Duration::from_secs(30);
    let seconds = [1, 2, 3, 5, 6, 100].map(|n| pause_after(n, refresh).as_secs());
    assert_eq!(seconds, [1, 2, 4, 16, 30, 30]);
}

#[test]
fn jitter_shortens_by_a_tenth_at_most() {
    let interval = Duration::from_secs(10);
    assert_eq!(shortened(interval, 0), interval);
    assert_eq!(shortened(interval, u32::MAX), Duration::from_secs(9));
}

#[tokio::test(start_paused = true)]
async fn a_mesh_starts_with_its_addresses_and_follows_them() {
    let mut fixture = Fixture::new(vec![answer(&[1]), answer(&[1, 2])]);
    let mut view = fixture.publish(mesh()).await;
    assert_eq!(ports(&view), [1]);
    let asked = Instant::now();
    view.changed().await.unwrap();
    assert_eq!(ports(&view), [1, 2]);
    let interval = asked.elapsed().as_secs_f64();
    assert!((27.0..=30.0).contains(&interval), "{interval}");
}

#[tokio::test(start_paused = true)]
async fn a_failure_keeps_the_last_good_addresses_and_is_told() {
    let mut fixture = Fixture::new(vec![answer(&[1]), failure(), answer(&[]), answer(&[2])]);
    let mut view = fixture.publish(mesh()).await;
    let mut told = fixture.shared.subscribe();
    told.wait_for(|t| t.status().counters.dns_failures == 2).await.unwrap();
    assert_eq!(ports(&view), [1]);
    let name = fixture.status().names[0].clone();
    assert_eq!((name.addresses, name.error.as_deref()), (1, Some("no address")));
    view.changed().await.unwrap();
    assert_eq!(ports(&view), [2]);
    assert_eq!(fixture.status().names[0].error, None);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_never_answers_holds_up_its_own_service_alone_and_that_for_a_moment() {
    let mut fixture = Fixture::new(vec![]);
    let started = Instant::now();
    let mut view = fixture.publish(mesh()).await;
    assert_eq!(started.elapsed(), FIRST_ANSWERS);
    assert!(view.borrow().services.contains_key("a") && view.borrow().endpoints.is_empty());
    view.borrow_and_update();
    view.changed().await.unwrap();
    assert_eq!(started.elapsed(), FIRST_VERDICT);
    assert_eq!(ports(&view), [0; 0], "served as a set without endpoints");
    let name = fixture.status().names[0].clone();
    assert_eq!(name.error.as_deref(), Some("no answer within 2 s so far"));
    assert_eq!(name.source.as_deref(), Some("a.yaml:1"));
    let mut told = fixture.shared.subscribe();
    told.wait_for(|t| t.status().counters.dns_failures == 2).await.unwrap();
    let error = fixture.status().names[0].error.clone();
    assert_eq!(error.as_deref(), Some("no answer within 5 s"));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_fails_at_first_has_no_endpoints_until_it_resolves() {
    let mut fixture = Fixture::new(vec![failure(), failure(), answer(&[1]), failure()]);
    let started = Instant::now();
    let mut view = fixture.publish(mesh()).await;
    assert_eq!((ports(&view), started.elapsed()), (vec![], Duration::ZERO));
    assert!(fixture.status().names[0].error.is_some());
    view.borrow_and_update();
    view.changed().await.unwrap();
    assert_eq!(ports(&view), [1]);
    assert_eq!(fixture.status().names[0].error, None);
    let mut told = fixture.shared.subscribe();
    told.wait_for(|t| t.status().counters.dns_failures == 3).await.unwrap();
    assert_eq!(ports(&view), [1], "what was known stays");
}

#[tokio::test(start_paused = true)]
async fn names_that_stay_are_not_asked_anew_and_those_that_go_are_forgotten() {
    let mut fixture = Fixture::new(vec![answer(&[1])]);
    fixture.publish(mesh()).await;
    let started = Instant::now();
    let view = fixture.publish(tcp_mesh("2", &["a"])).await;
    assert_eq!((ports(&view), started.elapsed()), (vec![1], Duration::ZERO));

    let mut listed = tcp_mesh("3", &["a"]);
    listed.services.insert("a".into(), Arc::new(Service::new("a", Protocol::Tcp)));
    fixture.publish(listed).await;
    assert!(fixture.names.running.is_empty() && fixture.status().names.is_empty());
}
