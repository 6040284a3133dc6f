use towpath_policies::model::{Protocol, Service};

use super::*;
use crate::status::Refused;

const PEER: &str = "127.0.0.1:1";

struct Fixture {
    tracker: Tracker,
    start: Moment,
}

impl Fixture {
    fn new() -> Self {
        let start = Moment::now();
        Self { tracker: Tracker::new(SourceStatus::default(), start), start }
    }

    /// So many milliseconds after the start.
    fn at(&self, ms: u64) -> Moment {
        let since = Duration::from_millis(ms);
        Moment { wall: self.start.wall + since, monotonic: self.start.monotonic + since }
    }

    fn connect(&mut self, id: StreamId, name: &str) {
        self.tracker.connected(id, &node(name), PEER.to_owned(), self.start);
    }

    /// Seen at `seen` ms, published 10 ms later.
    fn publish(&mut self, version: &str, seen: u64, changed: &[&str]) {
        let current = Current { version: version.to_owned(), ..Current::default() };
        let changed = changed.iter().map(|name| node(name)).collect();
        let (seen, now) = (self.at(seen), self.at(seen + 10));
        self.tracker.published(current, seen, now, &changed);
    }

    fn settle(&mut self, id: StreamId, version: &str, ms: u64) {
        let now = self.at(ms);
        self.tracker.settled(id, version, &view(version, 0), now);
    }

    fn applied(&self) -> Applied {
        self.tracker.status().applied[0].clone()
    }
}

fn node(name: &str) -> Node {
    Node { id: name.to_owned(), cluster: String::new(), sidecar: false }
}

/// A snapshot with a service `etl`, of which there are many.
fn view(version: &str, which: u64) -> Arc<Snapshot> {
    let mut service = Service::new("etl", Protocol::Http1);
    service.connect_timeout = Duration::from_secs(which);
    let mut view = Snapshot { version: version.to_owned(), ..Snapshot::default() };
    view.services.insert("etl".into(), Arc::new(service));
    Arc::new(view)
}

fn nack(version: &str) -> Nack {
    let refused = Refused { name: "etl".into(), ..Refused::default() };
    Nack {
        unix_ms: 0,
        version: version.to_owned(),
        kind: ResourceKind::Service,
        resources: vec![refused],
        reason: "no".into(),
    }
}

#[test]
fn the_time_to_apply_counts_those_who_were_there_and_had_something_to_do() {
    let mut f = Fixture::new();
    for (id, name) in [(1, "a"), (2, "b"), (3, "c"), (4, "gone"), (5, "unmoved")] {
        f.connect(id, name);
    }
    f.publish("1", 100, &["a", "b", "c", "gone"]);
    f.connect(6, "late");
    for (id, ms) in [(1, 130), (2, 150), (2, 900), (5, 115), (6, 950)] {
        f.settle(id, "1", ms);
    }
    f.tracker.disconnected(4);
    let applied = f.applied();
    assert_eq!((applied.proxies, applied.acked, applied.lost, applied.waiting()), (4, 2, 1, 1));
    assert_eq!((applied.min_ms, applied.max_ms), (Some(30.0), Some(50.0)));
    assert_eq!(applied.published_after_ms, 10.0);
    // Overtaken: nobody is waited for any more.
    f.publish("2", 1000, &["a"]);
    let first = f.tracker.status().applied[1].clone();
    assert_eq!((first.lost, first.waiting()), (2, 0));
    f.settle(1, "2", 1500);
    assert_eq!(f.applied().max_ms, Some(500.0));
    let times = f.tracker.apply_times();
    assert_eq!((times.count, times.buckets[2], times.buckets[5]), (3, 2, 3));
}

#[test]
fn in_sync_means_the_newest_version_as_a_whole() {
    let mut f = Fixture::new();
    f.connect(1, "a");
    let in_sync = |f: &Fixture| f.tracker.status().proxies[0].in_sync;
    f.publish("1", 0, &["a"]);
    assert!(!in_sync(&f));
    f.settle(1, "1", 20);
    assert!(in_sync(&f));
    f.publish("2", 30, &[]);
    assert!(!in_sync(&f));
    f.settle(1, "2", 40);
    assert!(in_sync(&f));
}

#[test]
fn a_refusal_stands_until_the_refused_is_replaced() {
    let mut f = Fixture::new();
    f.connect(1, "a");
    f.publish("1", 0, &["a"]);
    let first = view("1", 1);
    f.tracker.nacked(1, nack("1"), first.clone());
    assert_eq!((f.applied().nacked, f.applied().waiting()), (1, 0));
    let refuses = |f: &Fixture| f.tracker.status().proxies[0].nack.is_some();
    let settled = |f: &mut Fixture, version: &str, view: &Snapshot| {
        let now = f.at(50);
        f.tracker.settled(1, version, view, now);
    };
    settled(&mut f, "1", &first);
    assert!(refuses(&f), "the rest of the same version was accepted");
    let mut same = Snapshot::clone(&first);
    same.version = "2".to_owned();
    settled(&mut f, "2", &same);
    assert!(refuses(&f), "the refused one is the same in version 2");
    settled(&mut f, "3", &view("3", 1));
    assert!(!refuses(&f), "version 3 replaced it");
    f.tracker.nacked(1, nack("3"), view("4", 1));
    settled(&mut f, "4", &view("4", 1));
    assert!(!refuses(&f), "what was refused was replaced before it was told");
}

#[test]
fn the_last_stream_of_a_node_is_told() {
    let mut f = Fixture::new();
    f.connect(1, "a");
    f.connect(2, "a");
    assert_eq!(f.tracker.disconnected(1), None);
    assert_eq!(f.tracker.disconnected(2), Some(node("a")));
    assert_eq!(f.tracker.disconnected(2), None);
}

#[test]
fn memory_is_bounded() {
    let mut f = Fixture::new();
    for version in 0..100 {
        f.publish(&version.to_string(), version, &[]);
    }
    let status = f.tracker.status();
    assert_eq!((status.applied.len(), status.applied[0].version.as_str()), (VERSIONS_KEPT, "99"));
    let diagnostics = vec![super::super::Finding::default(); 500];
    f.tracker.rejected(Rejected { diagnostics, left_out: 3, ..Rejected::default() });
    let rejected = f.tracker.status().rejected.unwrap();
    assert_eq!((rejected.diagnostics.len(), rejected.left_out), (FINDINGS_KEPT, 403));
}

#[test]
fn the_same_trouble_is_no_news() {
    let mut f = Fixture::new();
    assert!(f.tracker.source_failed("a".into()));
    assert!(!f.tracker.source_failed("a".into()));
    assert!(f.tracker.source_failed("b".into()));
    assert_eq!(f.tracker.failures(), 3);
    f.tracker.source_read(f.start);
    assert!(f.tracker.failures() == 0 && f.tracker.source_failed("b".into()));
}
