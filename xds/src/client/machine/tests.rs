use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use prost::Message;
use towpath_policies::model::{
    Bind, Chain, ChainKind, Endpoint, EndpointSet, HttpOptions, Listener, Location, Protocol,
    RouteTable, Service, TcpForward, WeightedBackend,
};

use super::*;
use crate::wire::Encoded;
use ResourceKind::{
    EndpointSet as Endpoints, Listener as Listeners, RouteTable as Routes, Service as Services,
};

const WAIT: Duration = Duration::from_secs(15);

/// A machine, its consumer and its outgoing requests.
struct Client {
    machine: Machine,
    applied: Vec<Arc<Snapshot>>,
    /// Names of services that the consumer rejects.
    hated: Vec<String>,
    now: Instant,
    nonce: u32,
}

impl Client {
    fn new(flavour: Flavour) -> Self {
        let mut machine = Machine::new(flavour, WAIT);
        machine.connected();
        let mut this =
            Self { machine, applied: vec![], hated: vec![], now: Instant::now(), nonce: 0 };
        assert_eq!(this.requests().len(), 2, "services and listeners");
        this
    }

    fn requests(&mut self) -> Vec<Request> {
        std::iter::from_fn(|| self.machine.outgoing()).collect()
    }

    fn tell(&mut self, kind: ResourceKind, resources: Vec<Item>, removed: &[&str]) -> Vec<Request> {
        self.nonce += 1;
        let response = Response {
            kind,
            nonce: self.nonce.to_string(),
            version: self.nonce.to_string(),
            snapshot_version: None,
            resources,
            removed: removed.iter().map(|&n| n.to_owned()).collect(),
        };
        let now = self.now;
        self.with_apply(|machine, apply| machine.handle(response, now, apply));
        self.requests()
    }

    fn wait(&mut self, time: Duration) -> Vec<Request> {
        self.now += time;
        let now = self.now;
        self.with_apply(|machine, apply| machine.tick(now, apply));
        self.requests()
    }

    fn with_apply(&mut self, act: impl FnOnce(&mut Machine, &mut Apply)) {
        let hated = self.hated.clone();
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut apply = move |snapshot: Arc<Snapshot>| {
            let bad: Vec<_> = hated
                .iter()
                .filter(|name| snapshot.services.contains_key(*name))
                .map(|name| {
                    (ResourceKey { kind: Services, name: name.clone() }, "hated".to_owned())
                })
                .collect();
            if !bad.is_empty() {
                return Err(bad);
            }
            let _ = sender.send(snapshot);
            Ok(())
        };
        act(&mut self.machine, &mut apply);
        drop(apply);
        self.applied.extend(receiver.iter());
    }

    fn latest(&self) -> &Snapshot {
        self.applied.last().unwrap()
    }
}

fn item(name: &str, any: envoy_types::pb::google::protobuf::Any) -> Item {
    Item::from(&Encoded::new(name, any))
}

fn service(name: &str) -> Item {
    item(name, codec::encode_service(&Service::new(name, Protocol::Http1)))
}

fn endpoints(name: &str, port: u16) -> Item {
    let endpoints = vec![Endpoint::new(SocketAddr::from(([10, 0, 0, 1], port)))];
    item(name, codec::encode_endpoint_set(&EndpointSet::new(name.to_owned(), endpoints)))
}

fn table(name: &str) -> Item {
    item(
        name,
        codec::encode_route_table(&RouteTable { name: name.to_owned(), virtual_hosts: vec![] }),
    )
}

fn listener(name: &str, kind: ChainKind) -> Item {
    let chains = vec![Chain::new(vec![], None, kind)];
    let bind = Bind::Socket(SocketAddr::from(([127, 0, 0, 1], 80)));
    item(
        name,
        codec::encode_listener(&Listener {
            name: name.to_owned(),
            bind,
            chains,
            location: Location::default(),
            proxy_protocol: None,
        }),
    )
}

fn tcp(name: &str, service: &str) -> Item {
    let backend = WeightedBackend::new(service);
    listener(name, ChainKind::Tcp(TcpForward { backends: vec![backend], idle_timeout: None }))
}

fn http(name: &str, table: &str) -> Item {
    let options = HttpOptions::default();
    listener(name, ChainKind::Http { route_table: table.to_owned(), options })
}

fn broken(name: &str) -> Item {
    let bind = Bind::Socket(SocketAddr::from(([127, 0, 0, 1], 80)));
    item(
        name,
        codec::encode_listener(&Listener {
            name: name.to_owned(),
            bind,
            chains: vec![],
            location: Location::default(),
            proxy_protocol: None,
        }),
    )
}

fn rejection(requests: &[Request], kind: ResourceKind) -> Option<&Rejection> {
    requests.iter().find(|r| r.kind == kind && !r.nonce.is_empty())?.rejection.as_ref()
}

/// A machine with listener `l` → service `s` in use.
fn served(flavour: Flavour) -> Client {
    let mut client = Client::new(flavour);
    client.tell(Services, vec![service("s")], &[]);
    client.tell(Endpoints, vec![endpoints("s", 1)], &[]);
    client.tell(Listeners, vec![tcp("l", "s")], &[]);
    assert_eq!(client.applied.len(), 1);
    client
}

#[test]
fn nothing_is_published_until_everything_referred_to_is_there() {
    let mut client = Client::new(Flavour::Delta);
    let asked = client.tell(Services, vec![service("s")], &[]);
    assert_eq!(asked[0].rejection, None, "accepted though nothing can be published yet");
    assert_eq!(asked[1].kind, Endpoints);
    client.tell(Listeners, vec![tcp("l", "s"), http("h", "r")], &[]);
    assert_eq!(client.applied.len(), 0);
    client.tell(Endpoints, vec![endpoints("s", 1)], &[]);
    assert_eq!(client.applied.len(), 0);
    assert_eq!(client.machine.status().waiting_for.len(), 1);
    client.tell(Routes, vec![table("r")], &[]);
    assert_eq!(client.applied.len(), 1);
    assert_eq!(client.latest().listeners.len(), 2);
    assert_eq!(client.machine.deadline(), None);
}

#[test]
fn after_the_wait_a_missing_endpoint_set_is_empty() {
    let mut client = Client::new(Flavour::Delta);
    client.tell(Services, vec![service("s")], &[]);
    client.tell(Listeners, vec![tcp("l", "s")], &[]);
    client.wait(WAIT - Duration::from_millis(1));
    assert_eq!(client.applied.len(), 0);
    client.wait(Duration::from_millis(1));
    assert_eq!(client.latest().endpoints["s"].endpoints, vec![]);
    // What comes late is taken at once.
    client.tell(Endpoints, vec![endpoints("s", 1)], &[]);
    assert_eq!(client.latest().endpoints["s"].endpoints.len(), 1);
}

#[test]
fn after_the_wait_a_listener_without_routes_is_left_out_and_an_unknown_service_is_empty() {
    let mut client = Client::new(Flavour::Delta);
    client.tell(Services, vec![], &[]);
    client.tell(Listeners, vec![tcp("l", "nobody"), http("h", "r")], &[]);
    client.wait(WAIT);
    assert_eq!(client.latest().listeners.keys().collect::<Vec<_>>(), ["l"]);
    assert_eq!(client.latest().endpoints["nobody"].endpoints, vec![]);
}

#[test]
fn the_last_good_stays_while_a_new_reference_warms() {
    let mut client = served(Flavour::Delta);
    client.tell(Listeners, vec![tcp("l", "t")], &[]);
    assert_eq!(client.applied.len(), 1);
    client.tell(Services, vec![service("t")], &[]);
    assert_eq!(client.applied.len(), 1);
    client.tell(Endpoints, vec![endpoints("t", 2)], &[]);
    assert_eq!(client.latest().services.keys().collect::<Vec<_>>(), ["t"]);
}

#[test]
fn only_endpoints_moved_shares_everything_else() {
    let mut client = served(Flavour::Delta);
    client.tell(Endpoints, vec![endpoints("s", 2)], &[]);
    let [before, after] = &client.applied[..] else { panic!("two snapshots") };
    assert!(Arc::ptr_eq(&before.services["s"], &after.services["s"]));
    assert_eq!(after.endpoints["s"].endpoints[0].address.port(), 2);
}

#[test]
fn a_bad_resource_is_named_and_the_good_beside_it_is_used() {
    for flavour in [Flavour::Delta, Flavour::StateOfTheWorld] {
        let mut client = served(flavour);
        let answer = client.tell(Listeners, vec![broken("l"), tcp("m", "s")], &[]);
        let rejection = rejection(&answer, Listeners).unwrap();
        assert_eq!(
            rejection.resources,
            [("l".to_owned(), "filter_chains: must not be empty".to_owned())]
        );
        // The old `l` stays.
        assert_eq!(client.latest().listeners.keys().collect::<Vec<_>>(), ["l", "m"]);
        assert_eq!(client.machine.status().rejected.len(), 1);
        assert_ne!(client.machine.held(Listeners)["l"], broken("l").version);
        client.tell(Listeners, vec![tcp("l", "s"), tcp("m", "s")], &[]);
        assert_eq!(client.machine.status().rejected, []);
    }
}

#[test]
fn what_the_consumer_rejects_is_not_held() {
    let mut client = served(Flavour::Delta);
    client.hated = vec!["t".to_owned()];
    client.tell(Services, vec![service("t")], &[]);
    client.tell(Endpoints, vec![endpoints("t", 1)], &[]);
    let answer = client.tell(Listeners, vec![tcp("m", "t")], &[]);
    // The listener is fine; the service, accepted before, is rejected late.
    assert_eq!(rejection(&answer, Listeners), None);
    let late = rejection(&answer, Services).unwrap();
    assert_eq!(late.resources, [("t".to_owned(), "hated".to_owned())]);
    assert!(!client.machine.held(Services).contains_key("t"));
    assert_eq!(client.latest().listeners.keys().collect::<Vec<_>>(), ["l"]);
}

#[test]
fn a_stream_resumes_with_what_is_held() {
    let mut client = served(Flavour::Delta);
    client.machine.disconnected("gone");
    assert!(!client.machine.status().connected);
    client.machine.connected();
    for request in client.requests() {
        let Subscription::Delta { held, .. } = request.subscription else { panic!("delta") };
        assert_eq!(held, client.machine.held(request.kind), "{}", request.kind);
        assert!(!held.is_empty());
    }
    assert_eq!(client.applied.len(), 1, "what is in use stays");
}

#[test]
fn a_mixed_state_does_not_resume_by_version() {
    let mut client = served(Flavour::StateOfTheWorld);
    let version = |client: &mut Client| {
        client.machine.disconnected("gone");
        client.machine.connected();
        let requests = client.requests();
        let listeners = requests.into_iter().find(|r| r.kind == Listeners).unwrap();
        let Subscription::World { version, .. } = listeners.subscription else { panic!("world") };
        version
    };
    assert_eq!(version(&mut client), "3");
    client.tell(Listeners, vec![broken("l"), tcp("m", "s")], &[]);
    assert_eq!(version(&mut client), "");
}

#[test]
fn whole_responses_remove_what_they_leave_out() {
    let mut client = served(Flavour::StateOfTheWorld);
    client.tell(Listeners, vec![tcp("m", "s")], &[]);
    assert_eq!(client.latest().listeners.keys().collect::<Vec<_>>(), ["m"]);
}

#[test]
fn resources_nobody_asked_for_are_not_kept() {
    let mut client = served(Flavour::Delta);
    let answer =
        client.tell(Endpoints, (0..100).map(|i| endpoints(&i.to_string(), 1)).collect(), &[]);
    assert_eq!(rejection(&answer, Endpoints), None);
    assert_eq!(client.machine.held(Endpoints).len(), 1);
}

#[test]
fn a_resource_with_another_name_inside_is_rejected() {
    let mut client = served(Flavour::Delta);
    let mut wrong = service("inner");
    wrong.name = "outer".to_owned();
    let answer = client.tell(Services, vec![wrong], &[]);
    assert_eq!(rejection(&answer, Services).unwrap().resources[0].0, "outer");
}

#[test]
fn what_is_gone_but_in_use_stays_until_nothing_leads_to_it() {
    let mut client = served(Flavour::Delta);
    client.tell(Services, vec![], &["s"]);
    client.tell(Endpoints, vec![], &["s"]);
    client.wait(WAIT);
    client.tell(Services, vec![service("x")], &[]);
    client.tell(Endpoints, vec![endpoints("x", 2)], &[]);
    client.tell(Listeners, vec![tcp("m", "x")], &[]);
    assert_eq!(client.latest().listeners.len(), 2);
    assert_eq!(client.latest().endpoints["s"].endpoints.len(), 1);
    // Once more: the first change after the wait is not special.
    client.tell(Endpoints, vec![endpoints("x", 3)], &[]);
    assert_eq!(client.latest().endpoints["x"].endpoints[0].address.port(), 3);
    assert_eq!(client.latest().endpoints["s"].endpoints.len(), 1);

    client.tell(Listeners, vec![tcp("l", "x")], &[]);
    assert_eq!(client.latest().services.keys().collect::<Vec<_>>(), ["x"]);
    // What was gone does not come back from the dead.
    client.tell(Listeners, vec![tcp("l", "s")], &[]);
    client.wait(WAIT);
    assert_eq!(client.latest().endpoints["s"].endpoints, vec![]);
}

#[test]
fn what_cannot_be_read_takes_nothing_away() {
    let mut client = served(Flavour::StateOfTheWorld);
    let mut garbage = tcp("l", "s");
    garbage.name.clear();
    garbage.any.value = vec![0xff; 8];
    let answer = client.tell(Listeners, vec![garbage, tcp("m", "s")], &[]);
    assert!(rejection(&answer, Listeners).is_some());
    assert_eq!(client.latest().listeners.keys().collect::<Vec<_>>(), ["l", "m"]);
}

#[test]
fn only_answers_carry_a_nonce() {
    let mut client = served(Flavour::Delta);
    let requests = client.tell(Services, vec![service("t")], &[]);
    let sent: Vec<_> = requests.iter().map(|r| (r.kind, r.nonce.as_str())).collect();
    assert_eq!(sent, [(Services, "4"), (Endpoints, "")]);
}

/// A service whose endpoint set goes by another name.
fn aliased(name: &str, eds: &str) -> Item {
    let mut any = codec::encode_service(&Service::new(name, Protocol::Http1));
    let mut cluster = Cluster::decode(&*any.value).unwrap();
    cluster.eds_cluster_config.as_mut().unwrap().service_name = eds.to_owned();
    any.value = cluster.encode_to_vec();
    item(name, any)
}

#[test]
fn services_may_share_an_endpoint_set() {
    let mut client = Client::new(Flavour::Delta);
    client.tell(Services, vec![aliased("a", "a"), aliased("b", "a"), aliased("c", "e")], &[]);
    client.tell(Endpoints, vec![endpoints("a", 1), endpoints("e", 1)], &[]);
    client.tell(Listeners, vec![tcp("l", "a"), tcp("m", "b"), tcp("n", "c")], &[]);
    client.tell(Endpoints, vec![endpoints("a", 2)], &[]);
    let port = |client: &Client, name: &str| {
        client.latest().endpoints[name].endpoints.first().map(|e| e.address.port())
    };
    assert_eq!((port(&client, "a"), port(&client, "b")), (Some(2), Some(2)));
    // The one of another name is accepted, so it can stand in.
    client.tell(Endpoints, vec![], &["e"]);
    client.wait(WAIT);
    client.tell(Endpoints, vec![endpoints("a", 3)], &[]);
    assert_eq!((port(&client, "b"), port(&client, "c")), (Some(3), Some(1)));
}
